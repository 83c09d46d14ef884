"""An installation with a past, made in seconds: the product's own parts around the fake engine.

Real requests are asked of a real server, verified in the sandbox, recorded and spoken of; real
cycles collect, build, screen, examine and release. Two things are not: no model answers (a script
does, better from version to version), and no weights are trained. Afterwards the record is spread
over the last days, or everything would have happened in one minute.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa

from improver import importer
from improver.benchmarks.builtin import Builtin
from improver.cycle import CycleRun, Means, Plan, start
from improver.policy import Policy
from improver.types import TrainJob
from ops.models import Model
from ops.records import Cycle, CycleState, Interaction, Metric, now
from ops.settings import GateSettings, IlfSettings, ImproverSettings, TrainSettings
from ops.store import Store
from ops.tables.schema import feedback, interactions
from tests.fake_engine import BASE, RANK, write_adapter
from tests.improver.conftest import ExecJudge
from tests.improver.test_cycle import QuietShow
from tests.server.conftest import Running

T = TypeVar("T")
Json = dict[str, Any]
EXAMPLES = Path(__file__).parents[2] / "ops" / "examples"
NAME = re.compile(r"Signature: (\w+)\(|Call it `(\w+)`|assert (\w+)\(")
HOSTILE = "<script>document.title='taken'</script><img src=x onerror=alert(1)>"
RIGHT = {
    "every_second": "def every_second(items):\n    return items[::2]\n",
    "count_upper": "def count_upper(text):\n    return sum(letter.isupper() for letter in text)\n",
    "swap_dict": "def swap_dict(given):\n    return {value: key for key, value in given.items()}\n",
    "keep_first": "def keep_first(items):\n    return list(dict.fromkeys(items))\n",
    "largest_step": (
        "def largest_step(values):\n"
        "    return max((abs(a - b) for a, b in zip(values, values[1:])), default=0)\n"
    ),
    "chunk_list": (
        "def chunk_list(items, size):\n"
        "    return [items[i : i + size] for i in range(0, len(items), size)]\n"
    ),
    "single_words": (
        "def single_words(text):\n"
        "    words = text.split()\n"
        "    return sorted(word for word in words if words.count(word) == 1)\n"
    ),
    "balanced": (
        "def balanced(text):\n"
        "    pairs, waiting = {')': '(', ']': '[', '}': '{'}, []\n"
        "    for one in text:\n"
        "        if one in pairs.values():\n"
        "            waiting.append(one)\n"
        "        elif one in pairs and (not waiting or waiting.pop() != pairs[one]):\n"
        "            return False\n"
        "    return not waiting\n"
    ),
    "run_lengths": (
        "from itertools import groupby\n\n"
        "def run_lengths(text):\n"
        "    return ''.join(f'{one}{len(list(same))}' for one, same in groupby(text))\n"
    ),
    "matrix_product": (
        "def matrix_product(a, b):\n"
        "    columns = list(zip(*b))\n"
        "    return [[sum(x * y for x, y in zip(row, c)) for c in columns] for row in a]\n"
    ),
    "merge": (
        "def merge(intervals):\n"
        "    merged = []\n"
        "    for start, end in sorted(intervals):\n"
        "        if merged and start <= merged[-1][1]:\n"
        "            merged[-1][1] = max(merged[-1][1], end)\n"
        "        else:\n"
        "            merged.append([start, end])\n"
        "    return merged\n"
    ),
}
"""What is asked in `ops/examples/tasks.jsonl` and in the console, as far as the script knows it."""


@dataclass
class Story:
    """What happens, and what the scripted model knows."""

    server: Running
    skill: dict[str, float] = field(default_factory=lambda: {BASE: 0.3})
    """Share of tasks that each model solves."""

    def __post_init__(self) -> None:
        self.known = dict(RIGHT)
        for task in Builtin().tasks():
            if task.spec.entry_point and task.reference:
                self.known[task.spec.entry_point] = task.reference
        self.refined = {}
        for line in (EXAMPLES / "feedback.jsonl").read_text(encoding="utf-8").splitlines():
            entry = importer.read_ilf(json.loads(line))
            if entry.spec is not None and entry.spec.entry_point is not None:
                right = str(dict(entry.feedback)[Metric.DEMONSTRATION])
                self.refined[entry.spec.entry_point] = right
        self.server.engine.script = self.answer

    def answer(self, body: Json, index: int) -> str:
        """What the model writes: the right program if it knows the task, else one that is not."""
        if "messages" not in body:  # the server's probe of an adapter
            return ""
        text = body["messages"][-1]["content"]
        found = NAME.search(text)
        name = next(filter(None, found.groups()), "f") if found else "f"
        if "### Program" in text and name in self.refined:
            return f"```python\n{self.refined[name]}```" if index == 0 else "I do not know."
        right = self.known.get(name) or self.refined.get(name)
        if right is not None and _luck(name) < self.skill.get(body["model"], 0.3):
            return f"```python\n{right}```"
        wrong = ("return None", "raise ValueError('not yet')", "return args[0]")[index % 3]
        return f"```python\ndef {name}(*args):\n    {wrong}\n```"

    def ask(self, times: int) -> list[Interaction]:
        """Ask the example tasks, the first assert visible, and say what people would."""
        lines = (EXAMPLES / "tasks.jsonl").read_text(encoding="utf-8").splitlines()
        asked = []
        for number in range(times):
            row = json.loads(lines[number % len(lines)])
            tests = [{"code": c, "hidden": place > 0} for place, c in enumerate(row["test_list"])]
            reply = self.server.chat(
                messages=[{"role": "user", "content": row["text"]}],
                io_spec={"tests": tests, "candidates": 2},
                user=f"user-{number % 3}",
            )
            reply.raise_for_status()
            answer = reply.json()
            asked.append(self.server.store.interaction(answer["id"].removeprefix("chatcmpl-")))
            if answer["choices"][0]["verification"]["verified"]:
                if number % 2:
                    self.say(answer["id"], "accepted", True)
            else:
                words = "It returns nothing for ordinary input; follow the examples."
                self.say(answer["id"], "comment", words)
        return asked

    def say(self, inference_id: str, metric: str, value: Any) -> None:
        given = {"inference_id": inference_id, "metric_name": metric, "value": value}
        self.server.http.post("/v1/feedback", json=given).raise_for_status()

    def import_feedback(self) -> None:
        judge: Any = ExecJudge()
        path = EXAMPLES / "feedback.jsonl"
        _in_a_loop(importer.import_file(path, "ilf", self.server.store, judge))

    def learn(self, skill: float, *, fill: bytes) -> Cycle:
        """Run a cycle whose candidate knows so much; another `fill` is another adapter."""
        return _in_a_loop(self._learn(skill, fill))

    async def _learn(self, skill: float, fill: bytes) -> Cycle:
        settings = self.server.settings
        plan = Plan(
            improver=ImproverSettings(
                recipe="ilf",
                train=TrainSettings(rank=8, held_out_share=0.2),
                ilf=IlfSettings(samples=2),
                gate=GateSettings(guard_tasks=6, replay_tasks=6),
            ),
            engine_model="starter-small",
            max_lora_rank=16,
            swap_timeout_s=20.0,
        )
        store = self.server.store
        cycle = start(
            store, plan, settings.cycles_dir, trigger="schedule", state=CycleState.RUNNING
        )
        versions = [adapter.version for adapter in store.adapters()]
        self.skill[f"code@v{max(versions, default=0) + 1}"] = skill
        judge: Any = ExecJudge()
        async with Policy(self.server.url, patience_s=10.0) as policy:
            means = Means(
                store=store,
                registry=self.server.registry,
                policy=policy,
                pool=judge,
                resolve=lambda name: Model(
                    name=BASE, directory=settings.data_dir, sha256="0" * 64, origin="test"
                ),
                environment={},
                show=QuietShow(),
                train=_trainer(fill),
            )
            return await CycleRun(cycle, means).run()

    def spread(self, days: float = 6.0) -> None:
        """Move what was recorded back over the last days, the oldest first."""
        _spread(self.server.store, days)


def _in_a_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run to its end in a loop of its own: a browser may hold this thread's."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


def _luck(name: str) -> float:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") / 2**32


def _trainer(fill: bytes) -> Any:
    async def train(
        directory: Path,
        job: TrainJob,
        *,
        nice: int,
        environment: Mapping[str, str],
        on_progress: Callable[[Json], None],
    ) -> Json:
        """Leaves what the training process leaves; its adapter is one the fake engine proves."""
        adapter = directory / "adapter"
        adapter.mkdir(exist_ok=True)
        write_adapter(adapter, fill=fill)
        on_progress({"step": 3, "steps": 3, "tokens_per_s": 412.0, "held_out_loss": 0.71})
        return {
            "steps": 3,
            "rank": RANK,
            "stopped_early": False,
            "loss_first": 1.34,
            "loss_last": 0.62,
            "tokens_per_s": 412.0,
            "dtype": "float32",
            "device": "cpu",
            "peak_memory_bytes": 1 << 30,
            "held_out_loss": 0.71,
            "held_out_loss_base": 1.12,
            "best_step": 3,
        }

    return train


def _spread(store: Store, days: float) -> None:
    with sa.create_engine(store.url).begin() as connection:
        for table in (interactions, feedback):
            ids = [row[0] for row in connection.execute(sa.select(table.c.id).order_by(table.c.id))]
            for place, one in enumerate(ids):
                # Denser towards the end, as it is where people come to like a thing.
                back = days * (1 - (place + 1) / len(ids)) ** 2
                change = {"created_at": now() - timedelta(days=back)}
                connection.execute(sa.update(table).where(table.c.id == one).values(change))
