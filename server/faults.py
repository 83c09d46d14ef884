"""Faults of a canary: requests that fail under its name and are answered under the champion's.

A request that fails leaves no interaction, so the record cannot tell a version that makes the
engine fail from one that was asked less. So what the engine answered with an error is asked again,
short, in the background: of the canary and of the champion, by the same engines at the same time.
Only where the canary fails once more and the champion answers is it the canary's fault. A client's
mistake fails under both; an engine that is away, late or overloaded is no answer, and never counts;
nor does a conversation twice.

Each server counts its own, in memory: three are enough, and what a restart forgets comes back.
Judging is `server.canary`'s.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict

from ops.records import Json, new_id
from server.adapters import Adapters
from server.calls import CHAT, MESSAGES, RESPONSES, TEXT
from server.errors import EngineFault, EngineRefusal, EngineUnavailable
from server.replicas import Replicas
from server.traffic import Role, beginning

ENOUGH = 3
"""Faults that prove something; one may be a freak of the engine that happened to repeat."""
AT_ONCE = 2
"""So many are asked again at once; more than that tell nothing new."""
_AGAIN = "again-"
"""Begins the ids of what is asked again."""
_LENGTH = {CHAT: "max_tokens", TEXT: "max_tokens", MESSAGES: "max_tokens"}
_SHORTEST = {"max_tokens": 1, "max_output_tokens": 16}
_LEFT_OUT = ("stream_options", "max_completion_tokens", "n", "best_of", "min_tokens")


class Faults:
    """Counts the faults of canaries.

    Args:
        replicas: the engines, which tell of each failure.
        adapters: which version is a canary.
    """

    def __init__(self, replicas: Replicas, adapters: Adapters) -> None:
        self._replicas = replicas
        self._adapters = adapters
        self._found: dict[int, set[str]] = defaultdict(set)
        """Version -> how the conversations began that it failed."""
        self._last: dict[int, str] = {}
        self._trying: set[asyncio.Task[None]] = set()
        replicas.on_failure = self._noticed

    def of(self, version: int) -> tuple[int, str]:
        """Return how many requests a version has failed by its own fault, and the last error."""
        return len(self._found.get(version, ())), self._last.get(version, "")

    async def close(self) -> None:
        """Ask nothing any more."""
        for task in self._trying:
            task.cancel()
        await asyncio.gather(*self._trying, return_exceptions=True)

    def _noticed(self, path: str, body: Json, request_id: str, error: Exception) -> None:
        if request_id.startswith(_AGAIN):
            return
        split, champion = self._adapters.split, self._adapters.champion
        if split is None or split.role is not Role.CANARY or champion is None:
            return
        canary = f"code@v{split.version}"
        if body.get("model") != canary or not _answered(error) or len(self._trying) >= AT_ONCE:
            return
        work = self._try(path, body, split.version, (canary, champion.model), str(error))
        task = asyncio.create_task(work, name=f"fault of {canary}")
        self._trying.add(task)
        task.add_done_callback(self._trying.discard)

    async def _try(
        self, path: str, body: Json, version: int, models: tuple[str, str], error: str
    ) -> None:
        canary, champion = [await self._fails(path, body, model) for model in models]
        if canary is True and champion is False:
            self._found[version].add(beginning(body))
            self._last[version] = error

    async def _fails(self, path: str, body: Json, model: str) -> bool | None:
        """Whether the engine answers a request with an error; None: it does not answer."""
        try:
            await self._replicas.post(path, _short(path, body, model), request_id=_AGAIN + new_id())
        except (EngineRefusal, EngineUnavailable) as error:
            return True if _answered(error) else None
        return False


def _answered(error: Exception) -> bool:
    """Whether the engine itself said that it failed: not a network's or a deadline's error.

    A 404 is an engine that was restarted and has lost the version.
    """
    if isinstance(error, EngineRefusal):
        return error.status != 404
    return isinstance(error, EngineFault)


def _short(path: str, body: Json, model: str) -> Json:
    """The same question, for the shortest answer."""
    kept = {key: value for key, value in body.items() if key not in _LEFT_OUT}
    length = _LENGTH.get(path, "max_output_tokens" if path == RESPONSES else None)
    if length is not None:
        kept[length] = _SHORTEST[length]
    # No cached block of one version may answer for another.
    return {**kept, "model": model, "stream": False, "cache_salt": new_id()}
