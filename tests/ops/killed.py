"""A process that is killed at every line of a registry operation, one child a line.

    python killed.py DIRECTORY OPERATION STEP

For each line of `ops.registry`, `ops.artifacts` and the store's transactions that the operation
runs (every STEP-th of them), a forked child gets SIGKILL there. What it leaves is looked at, and
the operation is done again. Prints one JSON line: how many kills, and every violation.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from ops import artifacts
from ops.errors import NotFound, OpsError
from ops.records import AdapterState, Alias
from ops.registry import Registry
from ops.store import Store

TRACED = ("ops/registry.py", "ops/artifacts.py")
WRITES = ("transition", "add_adapter", "_require_aliases", "_write")
"""Of the store only what writes: a kill elsewhere in it is a kill before or after."""
Operation = Callable[[Registry], object]


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


def opened(directory: Path) -> tuple[Registry, Store]:
    store = Store(f"sqlite:///{directory / 'r.db'}")
    return Registry(store, directory / "adapters"), store


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
            code = frame.f_code
            writes = code.co_filename.endswith("ops/store.py") and code.co_name in WRITES
            return local if writes or code.co_filename.endswith(TRACED) else None

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


def main() -> None:
    directory, name, step = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    operation, done = OPERATIONS[name]
    template = directory / "template"
    template.mkdir(parents=True)
    # The path of an adapter is in its row: each round has the same directory.
    here = directory / "here"
    Store.open(f"sqlite:///{template / 'r.db'}").close()
    here.mkdir()
    shutil.copytree(template, here, dirs_exist_ok=True)
    prepare(here)
    shutil.rmtree(template)
    shutil.copytree(here, template)

    def restore() -> None:
        shutil.rmtree(here)
        shutil.copytree(template, here)

    restore()
    lines = run_until(operation, here, 0)
    found: list[str] = []
    kills = 0
    for line in range(1, lines + 1, step):
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
    sys.stdout.write(json.dumps({"lines": lines, "kills": kills, "violations": found}))


if __name__ == "__main__":
    main()
