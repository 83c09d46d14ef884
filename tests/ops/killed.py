"""A process that is killed at every line of a registry operation, one child a line.

    python killed.py

Reads orders, one JSON list a line: a directory, an operation, N, and whether it is every N-th line
or all the others. For each such line of `ops.registry`, `ops.artifacts` and the store's
transactions that the operation runs, a forked child gets SIGKILL there. What it leaves is looked
at, and the operation is done again. Answers with one JSON line: how many kills, every violation.

A killed process leaves what it has written to the operating system's cache, so that nothing has to
reach a disk here. What a power failure leaves is not tried.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Container
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import sqlalchemy as sa

from ops import artifacts
from ops.errors import NotFound, OpsError
from ops.records import AdapterState, Alias
from ops.registry import Registry
from ops.store import Store

TRACED = ("ops/registry.py", "ops/artifacts.py")
WRITES = ("transition", "add_adapter", "_require_aliases", "_write")
"""Of the store only what writes: a kill elsewhere in it is a kill before or after."""
OPS = f"{os.sep}ops{os.sep}"
Operation = Callable[[Registry], object]
Json = dict[str, Any]


def add(registry: Registry, content: str) -> int:
    def write(draft: Path) -> None:
        (draft / "adapter_model.safetensors").write_text(content)

    return registry.add(
        write,
        base_model="base",
        base_sha256="ff",
        rank=8,
        recipe="ilf",
        cycle_id=None,
        lineage={},
        actor="test",
    ).version


def prepare(directory: Path) -> None:
    """Three versions: 1 retired and the way back, 2 champion, 3 examined; 4 rejected."""
    registry, store = opened(directory)
    for version, content in enumerate(("a", "b", "c", "d"), 1):
        add(registry, content)
        numbers = {"target": {"candidate": version / 10}}
        registry.examined(version, actor="t", reason="r", evidence=numbers)
        if version < 3:
            registry.promote(version, actor="t", reason="r")
    registry.reject(4, actor="t", reason="r")
    store.close()


@cache
def opened(directory: Path) -> tuple[Registry, Store]:
    """Open the registry there, once: children inherit statements that are compiled already.

    Whoever forks or changes the files closes the store first; it connects again when it is used.
    """
    store = Store(f"sqlite:///{directory / 'r.db'}")
    sa.event.listen(store._engine, "connect", _never_wait_for_the_disk)
    return Registry(store, directory / "adapters"), store


def _never_wait_for_the_disk(connection: Any, record: object) -> None:
    connection.execute("PRAGMA synchronous=OFF")


@cache
def traced(code: CodeType) -> bool:
    """Whether a kill at a line of this function is a kill of its own."""
    writes = OPS in code.co_filename and code.co_name in WRITES
    return writes or code.co_filename.endswith(TRACED)


def confirmed(registry: Registry) -> bool:
    return registry._store.transitions(2)[-1].from_state is AdapterState.CHAMPION


OPERATIONS: dict[str, tuple[Operation, Callable[[Registry], bool]]] = {
    "add": (lambda r: add(r, "new"), lambda r: r.get(5).state is AdapterState.BUILT),
    "promote": (
        lambda r: r.promote(3, actor="t", reason="r"),
        lambda r: r.at(Alias.CHAMPION) == r.get(3) and r.at(Alias.ROLLBACK) == r.get(2),
    ),
    "rollback": (
        lambda r: r.rollback(actor="t", reason="r"),
        lambda r: r.at(Alias.CHAMPION) == r.get(1) and r.at(Alias.ROLLBACK) is None,
    ),
    "canary": (
        lambda r: r.canary(3, actor="t", reason="r"),
        lambda r: r.get(3).state is AdapterState.CANARY and r.at(Alias.CANARY) == r.get(3),
    ),
    "take_back": (
        lambda r: r.take_back(2, actor="t", reason="r", evidence={}),
        lambda r: r.at(Alias.CHAMPION) == r.get(1) and r.get(2).state is AdapterState.REJECTED,
    ),
    "confirm": (
        lambda r: r.confirm(2, actor="t", reason="r", evidence={}),
        confirmed,
    ),
    "retain": (
        lambda r: r.retain(keep_recent=1, keep_best=0, actor="t"),
        lambda r: r.get(3).state is AdapterState.ERASED,
    ),
}


def run_until(operation: Operation, directory: Path, line: int) -> int:
    """Do the operation in a child that is killed at a line; 0 lets it live. Returns lines run."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        count = 0

        def local(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal count
            if event == "line":
                count += 1
                if count == line:
                    os.kill(os.getpid(), signal.SIGKILL)
            return local

        def trace(frame: FrameType, event: str, argument: Any) -> Any:
            return local if traced(frame.f_code) else None

        registry, _ = opened(directory)
        sys.settrace(trace)
        operation(registry)
        sys.settrace(None)
        os.write(write, str(count).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return int(said or 0)


def is_done(done: Callable[[Registry], bool], registry: Registry) -> bool:
    try:
        return done(registry)
    except NotFound:
        return False


def violations(directory: Path) -> list[str]:
    """What must hold whenever somebody was killed."""
    registry, store = opened(directory)
    try:
        adapters, aliases = store.adapters(), store.aliases()
        champions = [a.version for a in adapters if a.state is AdapterState.CHAMPION]
        found = []
        if champions != [v for alias, v in aliases.items() if alias is Alias.CHAMPION]:
            found.append(f"champions {champions}, aliases {aliases}")
        for adapter in adapters:
            history = store.transitions(adapter.version)
            if history[-1].to_state is not adapter.state:
                found.append(f"v{adapter.version} is {adapter.state}, its history says otherwise")
            if adapter.state is AdapterState.ERASED:
                if adapter.version in aliases.values():
                    found.append(f"an alias points at erased v{adapter.version}")
                continue
            try:
                registry.verify(adapter)
            except OpsError as error:
                found.append(str(error))
        for path in (directory / "adapters").iterdir():
            if not path.name.startswith("."):
                artifacts.verify(path)
        return found
    finally:
        store.close()


def kill_at(directory: Path, name: str, wanted: Container[int]) -> Json:
    """Kill the operation at every line whose number is wanted, and look at what is left."""
    operation, done = OPERATIONS[name]
    template = directory / "template"
    template.mkdir(parents=True)
    # The path of an adapter is in its row: each round has the same directory.
    here = directory / "here"
    Store.open(f"sqlite:///{here / 'r.db'}").close()
    prepare(here)
    shutil.copytree(here, template, dirs_exist_ok=True)

    def restore() -> None:
        shutil.rmtree(here)
        shutil.copytree(template, here)

    lines = run_until(operation, here, 0)
    found: list[str] = []
    kills = 0
    for line in (line for line in range(1, lines + 1) if line in wanted):
        restore()
        run_until(operation, here, line)
        kills += 1
        found += [f"line {line}: {words}" for words in violations(here)]
        registry, store = opened(here)
        if not is_done(done, registry):
            operation(registry)
        if not is_done(done, registry):
            found.append(f"line {line}: cannot be done again")
        registry.sweep(abandoned_s=-1.0)
        names = {Path(a.directory).name for a in store.adapters() if a.state != "erased"}
        left = {path.name for path in (here / "adapters").iterdir()}
        if left != names:
            found.append(f"line {line}: {sorted(left ^ names)} left after a sweep")
        store.close()
    return {"lines": lines, "kills": kills, "violations": found}


def main() -> None:
    os.fsync = lambda fd: None
    for order in sys.stdin:
        directory, name, apart, rest = json.loads(order)
        every = range(1, 10_000)
        chosen = set(every[::apart])
        found = kill_at(Path(directory), name, set(every) - chosen if rest else chosen)
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
