"""Replay: the installation's own requests, with the hidden examples their authors gave.

A share of these requests is held back for it, by a hash of their words: whatever is asked again
falls on the same side, so that a request is either learned from or examined with, for good (a cycle
gives all of them to the firewall). The newest come first; of those that are alike one is taken.
The reference is the answer that passed when it was served, if any.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from improver.benchmarks.base import Task
from improver.firewall import normal_text
from ops.records import Interaction, Source
from ops.store import Store
from sandbox.errors import SpecError
from sandbox.spec import parse_spec
from sandbox.syntax import parse_bounded

PAGE = 200


def tenant_of(task_id: str) -> str:
    """Whose request a replay task is, by its id."""
    return task_id.split("/")[1] if task_id.startswith("replay/") else ""


def held_back(text: str, share: float) -> bool:
    """Whether a request belongs to the share that is only ever examined with."""
    digest = hashlib.sha256(f"replay:{normal_text(text)}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


@dataclass(frozen=True, kw_only=True)
class Replay:
    """The held-back requests of a record.

    `share` is the share of requests held back; 1 takes all. `limit` is the most tasks, `look_at`
    the most interactions that are looked at. Only interactions older than the id `before` count:
    a cycle that names its own sees the same tasks at every stage.
    """

    store: Store
    share: float = 0.2
    limit: int = 100
    look_at: int = 20_000
    before: str | None = None

    name = "replay"

    def tasks(self) -> Sequence[Task]:
        """Return the newest held-back requests that can tell right from wrong unseen."""
        found: dict[str, Task] = {}
        before = self.before
        looked = 0
        while len(found) < self.limit and looked < self.look_at:
            page = self.store.interactions(limit=PAGE, before=before, source=Source.SERVED)
            for interaction in page:
                task = self._task(interaction)
                if task is not None and len(found) < self.limit:
                    found.setdefault(normal_text(task.text), task)
            if len(page) < PAGE:
                break
            looked += len(page)
            before = page[-1].id
        return list(found.values())

    def _task(self, interaction: Interaction) -> Task | None:
        """The interaction as a task; None where it is not one."""
        messages = interaction.messages
        if interaction.spec is None or len(messages) != 1 or messages[0].get("role") != "user":
            return None
        text = messages[0].get("content")
        if not isinstance(text, str) or not held_back(text, self.share):
            return None
        try:
            spec = parse_spec(interaction.spec)
        except SpecError:
            return None
        if not spec.hidden().has_checks:
            return None
        return Task(
            id=f"replay/{interaction.tenant}/{interaction.id}",
            benchmark=self.name,
            text=text,
            spec=spec,
            reference=self._reference(interaction) if interaction.verified else None,
        )

    def _reference(self, interaction: Interaction) -> str | None:
        for attempt in self.store.attempts(interaction.id):
            # What cannot be compared later is no reference: the firewall would refuse to start.
            if attempt.choice_index == 0 and parse_bounded(attempt.program or "") is not None:
                return attempt.program
        return None
