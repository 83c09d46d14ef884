"""The second engine of `journeyman up`: it serves the champion, merged with its base.

Merged weights cost per token what the base model costs; LoRA costs more. With `engine.merged` set,
and while nothing is on trial (no canary, no candidate under examination or in shadow, no champion
that is still watched), the champion is merged (`improver.merge`) and a second engine is started on
it. What reaches it is the server's affair (`server.merged`): it proves that both engines say the
same and falls back to the first one, which keeps the adapter loaded, whenever it must. When the
champion changes or something is on trial, the server leaves first; the engine is stopped when
nothing runs on it any more.

Memory is looked at before each start, as it really is; where there is too little, that is said and
everything stays as it was. Looked at every `LOOK_S`, between two ticks of the supervisor.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from ops import memory, merges, processes, services, trials
from ops.errors import OpsError, ProcessError
from ops.models import Model
from ops.processes import Child, State, Supervisor
from ops.records import Adapter, Alias
from ops.registry import Registry
from ops.services import EngineBuild
from ops.settings import Settings
from ops.store import Store

LOOK_S = 1.0
AGAIN_S = 60.0
"""After memory was found too little."""
TRIES = 3
"""Starts of an engine that never became ready; then this version is served by the first alone."""
GIB = memory.GIB
MERGE_GIB = 1.0
"""What the merging process takes beside the weights, in float32."""
ENGINE_GIB = 2.5
"""What an engine takes on a CPU beside its weights and its KV cache (measured: 2.2, vLLM 0.32)."""
RESERVE_GIB = 1.0
"""Left free for everything else."""
GPU_SHARE = 0.9
"""Of a GPU's memory that vLLM takes unless told otherwise."""
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class SecondEngine:
    """Keeps the second engine what the registry calls for.

    Args:
        settings: the settings; `engine.merged` is on.
        model: the base model.
        build: the engine's build.
        supervisor: what the engine is started and watched by.
        say: is told what a person should know.
    """

    def __init__(
        self,
        settings: Settings,
        model: Model,
        build: EngineBuild,
        supervisor: Supervisor,
        say: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._model = model
        self._build = build
        self._supervisor = supervisor
        self._say = say
        self._rules = trials.Rules.among(settings.release.model_dump())
        self._store: Store | None = None
        self._adapter: Adapter | None = None
        """What is merged, being merged, or was and is being left."""
        self._merging: Child | None = None
        self._engine: Child | None = None
        self._was_ready = False
        self._left_at: float | None = None
        self._given_up: set[int] = set()
        self._due = 0.0
        self._complained = ""

    def look(self) -> None:
        """Do the next thing that is due, if any; never blocks for longer than a few reads."""
        at = time.monotonic()
        if at < self._due:
            return
        self._due = at + LOOK_S
        try:
            wanted = self._wanted()
            if self._left_at is not None or self._is_another(wanted):
                self._leave(at)
            elif self._adapter is None:
                if wanted is not None:
                    self._begin(wanted)
            elif self._merging is not None:
                self._follow_merge(self._adapter, self._merging)
            elif self._engine is not None:
                self._watch(self._adapter, self._engine)
        except (OpsError, OSError) as error:
            self._complain(f"the second engine: {error}")

    def _is_another(self, wanted: Adapter | None) -> bool:
        """Whether what is merged is not what is wanted."""
        mine = self._adapter
        return mine is not None and (wanted is None or wanted.sha256 != mine.sha256)

    def close(self) -> None:
        """End what the supervisor does not know of."""
        if self._merging is not None:
            self._merging.kill()
        if self._store is not None:
            self._store.close()

    def _wanted(self) -> Adapter | None:
        """The champion, while it alone matters; None: the first engine is enough."""
        version = trials.settled(self._opened(), self._rules)
        if version is None or version in self._given_up:
            return None
        return self._opened().adapter(version)

    def _opened(self) -> Store:
        if self._store is None:
            self._store = Store.open(self._settings.store_url)
            self._tidy(self._store)  # what changed while nothing ran, an erasure perhaps
        return self._store

    def _tidy(self, store: Store) -> None:
        """Keep the merged weights of the champion alone: others are of no use, or were erased."""
        champion = store.aliases().get(Alias.CHAMPION)
        keep = store.adapter(champion).sha256 if champion else None
        merges.keep_only(self._settings.merged_dir, keep)

    # --- on the way in --------------------------------------------------------------------------

    def _begin(self, adapter: Adapter) -> None:
        if self._model.sha256 != adapter.base_sha256:
            self._give_up(adapter, "it was trained on another base model")
            return
        lack = too_little(self._settings, self._model, self._build)
        if lack:
            self._complain(f"{adapter.name} is not merged: {lack}")
            self._due = time.monotonic() + AGAIN_S
            return
        Registry(self._opened(), self._settings.adapters_dir).verify(adapter)
        merges.keep_only(self._settings.merged_dir, adapter.sha256)
        service = services.merge(self._settings, self._model, adapter, self._build)
        self._merging = self._supervisor.apart(service)
        self._merging.start()
        self._adapter = adapter
        self._say(f"merging {adapter.name} with {self._model.name} for a second engine")

    def _follow_merge(self, adapter: Adapter, merging: Child) -> None:
        if not merging.wait(0):
            if merging.seconds > merging.service.start_timeout_s:
                self._give_up(adapter, "merging takes too long")
            return
        self._merging = None
        what = merges.Merge(
            adapter_sha256=adapter.sha256,
            base_sha256=self._model.sha256,
            dtype=services.merged_dtype(self._settings, self._build),
        )
        merged = merges.find(self._settings.merged_dir, what)
        if merging.exit_status != 0 or merged is None:
            self._give_up(adapter, f"merging failed: {merging.tail().strip()[-300:]}")
            return
        service = services.second_engine(self._settings, merged, adapter.name, self._build)
        self._was_ready = False
        self._engine = self._supervisor.add(service)

    def _watch(self, adapter: Adapter, engine: Child) -> None:
        if engine.state is State.READY and not self._was_ready:
            self._was_ready = True
            self._say(f"the second engine has {adapter.name} merged; the server proves it now")
        elif not self._was_ready and engine.restarts >= TRIES:
            self._give_up(adapter, f"its engine does not start (its log: {engine.log})")

    # --- on the way out -------------------------------------------------------------------------

    def _leave(self, at: float) -> None:
        """Stop the engine once no server asks it any more; called until that is done."""
        if self._left_at is None:
            self._left_at = at
        if self._merging is not None:
            self._merging.kill()
            self._merging = None
        engine = self._engine
        if engine is not None and engine.state is not State.STOPPED:
            if at - self._left_at < self._settings.server.request_timeout_s and self._in_use():
                return
            self._say("the second engine is not needed any more: stopping it")
            engine.ask_to_stop()
            return
        if engine is not None and not engine.wait(0):
            if engine.seconds > engine.service.stop_timeout_s:
                engine.kill()
            return
        if engine is not None:
            self._supervisor.remove(engine)
        self._engine = self._adapter = self._left_at = None
        self._complained = ""
        self._tidy(self._opened())

    def _in_use(self) -> bool:
        """Whether our server still has requests on it, or may send some."""
        try:
            body: Any = httpx.get(f"{self._settings.server_url}/ready", timeout=3).json()
            return body.get("merged") is not None
        except (httpx.HTTPError, ValueError, AttributeError):
            return False  # a server that is gone asks nothing

    def _give_up(self, adapter: Adapter, why: str) -> None:
        self._say(f"{adapter.name} is served without merging: {why}")
        self._given_up.add(adapter.version)

    def _complain(self, line: str) -> None:
        if line != self._complained:
            self._say(line)
            self._complained = line


def require(settings: Settings) -> None:
    """Refuse at the start what a second engine could not be started with later.

    Raises:
        ProcessError: the first engine is not ours, or the second one's port is taken.
    """
    if not settings.engine.merged:
        return
    if not settings.engine_is_ours:
        raise ProcessError(
            "engine.merged is for the engine that `journeyman up` starts, and engine.url or "
            "engine.urls names others: unset one of them"
        )
    port, flag = settings.engine.merged_port, "JOURNEYMAN_ENGINE__MERGED_PORT"
    processes.require_port("127.0.0.1", port, "second engine", flag)


def too_little(settings: Settings, model: Model, build: EngineBuild) -> str:
    """Return why memory does not allow a second engine now; empty where it does."""
    parameters = _parameters(model.directory)
    free = memory.free_bytes()
    needed = 4 * parameters + MERGE_GIB * GIB
    if build.device == "cpu":
        each = _BYTES[services.merged_dtype(settings, build)]
        engine = each * parameters + (settings.engine.kv_cache_gib + ENGINE_GIB) * GIB
        needed = max(needed, engine)
    needed += RESERVE_GIB * GIB
    if free < needed:
        return f"{needed / GIB:.1f} GiB of memory are needed, {free / GIB:.1f} are free"
    if build.device == "cuda":
        gpu_free, total = memory.gpu_bytes()
        share = _gpu_share(settings)
        if gpu_free < share * total:
            return (
                f"vLLM takes {share * total / GIB:.1f} GiB of the GPU for each engine and "
                f"{gpu_free / GIB:.1f} are free: give both a smaller share (engine.extra_args = "
                '["--gpu-memory-utilization", "0.45"])'
            )
    return ""


def _parameters(directory: Path) -> int:
    """How many weights a model has, by the size of its files."""
    config = json.loads((directory / "config.json").read_text())
    each = _BYTES.get(str(config.get("dtype") or config.get("torch_dtype")), 2)
    return sum(file.stat().st_size for file in directory.glob("*.safetensors")) // each


def _gpu_share(settings: Settings) -> float:
    words = " ".join(settings.engine.extra_args)
    found = re.findall(r"--gpu[-_]memory[-_]utilization[ =]([0-9.]+)", words)
    return float(found[-1]) if found else GPU_SHARE
