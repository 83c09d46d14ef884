"""`python survivors.py`: the parts of an installation as processes that are cheap to start.

Reads orders from standard input, one JSON object a line, forks for each a process that is the part
(everything is imported once, before the first fork), and answers with its pid. Ends its children
when the input ends. What is real: HTTP, the store, the registry, adapters and their proofs, the
daemon, the lease, every stage of a cycle. What is scripted: the engine's words, the judge (in this
process), the training (`train_by_steps`).
"""

from __future__ import annotations

import asyncio
import ctypes
import functools
import hashlib
import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import uvicorn

sys.path.insert(0, str(Path(__file__).parents[2]))
from improver import idle, importer, lease, orders, policy, worker
from improver.benchmarks.builtin import Builtin
from improver.cycle import CycleRun, Means
from improver.policy import Policy
from improver.progress import LogShow
from improver.types import TrainJob
from ops import logs
from ops.models import Model
from ops.records import Cycle, Metric
from ops.registry import Registry
from ops.settings import EngineSettings, ImproverSettings, ServerSettings, Settings
from ops.store import Store
from sandbox.pool import Pool
from sandbox.spec import Spec
from sandbox.types import Verification
from server.app import create_app
from tests.fake_engine import BASE, FakeEngine, write_adapter
from tests.improver.conftest import ExecJudge

Json = dict[str, Any]
EXAMPLES = Path(__file__).parents[2] / "ops" / "examples" / "feedback.jsonl"
NAME = re.compile(r"Signature: (\w+)\(|Call it `(\w+)`|assert (\w+)\(")
PR_SET_PDEATHSIG = 1
RUINOUS = 0.01
"""What is trained at a larger learning rate is ruined."""
STEPS = 8
STEP_S = 0.04
LEASE_S = 1.0


def entries() -> list[importer.Entry]:
    """The programs of another model, with what people said of them."""
    lines = EXAMPLES.read_text(encoding="utf-8").splitlines()
    return [importer.read_ilf(json.loads(line)) for line in lines]


# --- the engine ---------------------------------------------------------------------------------


def words(adapters: Mapping[str, str]) -> Callable[[Json, int], str]:
    """What the model says: wrong programs, right ones when it is told why, all of them once taught.

    It never solves what users ask, so that there is always something to learn from. What was
    taught at a ruinous learning rate says nothing any more.

    Args:
        adapters: the directories of those that are loaded, by name.
    """
    known = {task.spec.entry_point: task.reference for task in Builtin().tasks()}
    wrong, right = {}, {}
    for entry in entries():
        assert entry.spec is not None
        name = str(entry.spec.entry_point)
        wrong[name] = entry.program
        right[name] = str(dict(entry.feedback)[Metric.DEMONSTRATION])

    def say(body: Json, index: int) -> str:
        text = str(body["messages"][-1]["content"]) if "messages" in body else ""
        found = NAME.search(text)
        name = (found[1] or found[2] or found[3]) if found else ""
        if name in right:
            told = "### Program" in text and index == 0
            return f"```python\n{right[name] if told else wrong[name]}```"
        adapter = adapters.get(str(body["model"]))
        if adapter is not None:
            made_by = json.loads((Path(adapter) / "made_by.json").read_text())
            if made_by["learning_rate"] > RUINOUS:
                return "la la la"
        taught = adapter is not None and name in known
        return f"```python\n{known[name] if taught else 'x = 1'}\n```"

    return say


def engine(port: int) -> None:
    fake = FakeEngine()
    fake.port = port
    fake.script = words(fake.adapters)
    fake.start()
    signal.pause()


# --- the server ---------------------------------------------------------------------------------


class Checker(ExecJudge):
    """Judges in this process; the programs are this file's own."""

    async def check(self, code: str, spec: Spec, *, limits: object = None) -> Verification:
        return await super().check(code, spec)

    def gauges(self) -> dict[str, float]:
        return {}

    @property
    def tier(self) -> Any:
        from sandbox.types import Tier

        return Tier.NONE

    async def __aenter__(self) -> Checker:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        return None


def settings_of(order: Json) -> Settings:
    return Settings(
        data_dir=Path(order["data_dir"]),
        store={"url": order["store_url"]},
        engine=EngineSettings(url=f"http://127.0.0.1:{order['engine_port']}", model="tiny"),
        server=ServerSettings(port=order["server_port"], poll_s=0.1, request_timeout_s=10.0),
        improver=ImproverSettings(
            schedule=None,
            after_feedback=None,
            train={"held_out_share": 0.2, "rank": 8},
            ilf={"samples": 2, "min_rows": 4, "max_interactions": 24},
            gate={"guard_tasks": 2, "replay_tasks": 4},
        ),
    )


def server(order: Json) -> None:
    settings = settings_of(order)
    app = create_app(settings, checker=None if order.get("sandbox") else Checker())
    uvicorn.run(app, host="127.0.0.1", port=settings.server.port, log_config=None, access_log=False)


# --- the improver -------------------------------------------------------------------------------


async def train_by_steps(
    directory: Path,
    job: TrainJob,
    *,
    nice: int,
    environment: Mapping[str, str],
    on_progress: Callable[[Json], None],
) -> Json:
    """Keeps the promises of the training process, without a model.

    Goes on from its checkpoint, makes the same adapter of the same rows however often it is
    killed, and writes `training.json` last. Every step and every end is noted in a log that only
    grows.
    """
    done, checkpoint, log = (directory / n for n in ("training.json", "checkpoint", "steps.log"))
    if not done.exists():
        step = int(checkpoint.read_text()) if checkpoint.exists() else 0
        while step < STEPS:
            await asyncio.sleep(STEP_S)
            step += 1
            with log.open("a") as file:
                file.write(f"{step}\n")
            draft = checkpoint.with_suffix(".draft")
            draft.write_text(str(step))
            draft.rename(checkpoint)
            on_progress({"step": step, "steps": STEPS, "loss": 1.0, "tokens_per_s": 1.0})
        adapter = directory / "adapter"
        adapter.mkdir(exist_ok=True)
        write_adapter(adapter, fill=_digest(directory / "train.jsonl")[:1])
        made_by = {"cycle": directory.parent.name, "learning_rate": job.learning_rate}
        (adapter / "made_by.json").write_text(json.dumps(made_by))
        with log.open("a") as file:
            file.write("end\n")
        report = {"steps": STEPS, "loss_first": 2.0, "loss_last": 1.0, "tokens_per_s": 1.0}
        draft = done.with_suffix(".draft")
        draft.write_text(json.dumps(report))
        draft.rename(done)
    report = json.loads(done.read_text())
    return dict(report)


def _digest(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


def improver(order: Json) -> None:
    settings = settings_of(order)
    worker.LOOK_S = orders.LOOK_S = idle.LOOK_S = 0.1
    worker.BEAT_S = worker.ERASE_S = 0.5
    policy.LONGEST_PAUSE_S = 0.5
    worker.lease.held = functools.partial(lease.held, ttl_s=LEASE_S)  # type: ignore[assignment]
    base = Model(name=BASE, directory=settings.data_dir, sha256="0" * 64, origin="test")
    store = Store.open(settings.store_url)

    async def run_cycle(cycle: Cycle) -> Cycle:
        judge = Pool(workers=1) if order.get("sandbox") else Checker()
        async with judge, Policy(settings.server_url, patience_s=30.0) as asked:
            means = Means(
                store=store,
                registry=Registry(store, settings.adapters_dir),
                policy=asked,
                pool=judge,  # type: ignore[arg-type]
                resolve=lambda name: base,
                environment={},
                show=LogShow(cycle.id),
                train=train_by_steps,
            )
            return await CycleRun(cycle, means).run()

    asyncio.run(worker.Worker(settings, store, run_cycle).run())


# --- the nursery --------------------------------------------------------------------------------


def become(order: Json) -> None:
    """Turn the forked child into a part; never returns."""
    status = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        logs.configure("text")
        if order["part"] == "engine":
            engine(order["engine_port"])
        else:
            {"server": server, "improver": improver}[order["part"]](order)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for what is killed
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            become(order)
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
