"""The whole loop on a real vLLM with the small starter model, through the front door only.

One system is started as its user would start it (`tests/real_system.py`); the tests below are the
chapters of one story and run in order.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import httpx
import pytest

from ops.records import AdapterState, CycleState, Metric, Source
from tests.real_system import System

pytestmark = [pytest.mark.slow, pytest.mark.engine, pytest.mark.timeout(900)]

EXAMPLES = Path(__file__).parents[2] / "ops" / "examples"
IMPORTED = 6
DOUBLE = {
    "types": "(x: int) -> int",
    "entry_point": "double",
    "examples": [{"input": [2], "output": 4}, {"input": [-3], "output": -6, "hidden": True}],
}


def _processes_of(data_dir: Path) -> list[str]:
    """Command lines of all processes that work for a data directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            environ = (entry / "environ").read_bytes()
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if str(data_dir).encode() in environ and int(entry.name) != os.getpid():
            found.append(command.replace(b"\0", b" ").decode(errors="replace"))
    return found


def test_a_plain_request_is_a_plain_completion(system: System) -> None:
    answer = system.ask()
    assert answer.choices[0].message.content
    assert answer.adapter["version"] == 0
    with system.client() as client:
        stream = client.chat.completions.create(
            model="code",
            messages=[{"role": "user", "content": "Say hello."}],
            max_tokens=8,
            stream=True,
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert text


def test_a_request_with_a_spec_is_run_before_it_is_answered(system: System) -> None:
    answer = system.ask(
        extra_body={"io_spec": DOUBLE | {"early_stop": False}}, max_tokens=160, temperature=0.8
    )
    verification = answer.choices[0].verification
    assert verification["total"] == 2
    assert verification["verified"] is (verification["passed"] == 2)
    interaction_id = answer.id.removeprefix("chatcmpl-")
    kept = system.store.interaction(interaction_id)
    assert kept.verified is verification["verified"]
    assert kept.spec is not None
    attempts = system.store.attempts(interaction_id)
    assert len(attempts) == 4
    programs = {attempt.program_sha256 for attempt in attempts if attempt.program}
    # A program that several attempts share runs once.
    ran = {run.program_sha256 for run in system.store.executions(interaction_id)}
    assert ran == programs
    system.notes["interaction_id"] = interaction_id


def test_feedback_is_kept_with_its_answer(system: System) -> None:
    interaction_id = system.notes["interaction_id"]
    for metric, value in (
        ("accepted", False),
        ("rating", 0.2),
        ("comment", "It must return twice the number: use x * 2."),
        ("demonstration", "def double(x):\n    return x * 2\n"),
    ):
        sent = {"inference_id": interaction_id, "metric_name": metric, "value": value}
        answer = httpx.post(f"{system.url}/v1/feedback", json=sent)
        assert answer.status_code == 200, answer.text
    kept = {row.metric: row.value for row in system.store.feedback(interaction_id)}
    assert kept["accepted"] is False
    assert kept["comment"].startswith("It must return")


def test_programs_of_another_model_are_imported_once(system: System, tmp_path: Path) -> None:
    rows = (EXAMPLES / "feedback.jsonl").read_text(encoding="utf-8").splitlines()
    few = tmp_path / "feedback.jsonl"
    few.write_text("\n".join(rows[:IMPORTED]), encoding="utf-8")
    for _ in range(2):
        system.journeyman("import", str(few), "--format", "ilf")
    imported = system.store.interactions(source=Source.IMPORTED)
    assert len(imported) == IMPORTED
    metrics = {row.metric for row in system.store.feedback(imported[0].id)}
    assert metrics >= {Metric.COMMENT, Metric.DEMONSTRATION}


def test_a_cycle_trains_and_examines_an_adapter(system: System) -> None:
    system.journeyman("improve", "--recipe", "ilf")
    cycle = system.store.cycles(limit=1)[0]
    assert cycle.state is CycleState.SUCCEEDED, cycle.error
    assert cycle.adapter_version == 1
    adapter = system.store.adapter(1)
    assert adapter.state in (AdapterState.REJECTED, AdapterState.CHAMPION)
    kept = [row for row in system.store.dataset(cycle.id) if row.kept]
    assert kept
    assert system.store.adapters_taught_by(kept[0].interaction_ids[0]) == [adapter]
    assert json.loads((Path(adapter.directory) / "training.json").read_text())["loss_last"] > 0


def test_a_promotion_swaps_under_load_without_a_failed_request(system: System) -> None:
    stop = threading.Event()
    answers: list[int] = []
    failures: list[BaseException] = []

    def load() -> None:
        while not stop.is_set():
            try:
                answers.append(system.ask().adapter["version"])
            except BaseException as error:
                failures.append(error)

    if system.store.adapter(1).state is AdapterState.CHAMPION:
        system.journeyman("rollback")
    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        system.journeyman("adapters", "promote", "v1", "--force")
        deadline = time.monotonic() + 60
        while answers.count(1) < 3 and time.monotonic() < deadline:
            time.sleep(0.2)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert set(answers) == {0, 1}
    receipt = system.store.receipts(version=1)[0]
    assert receipt.accepted
    assert receipt.probe["engine_shift"] > 0


def test_the_adapter_answers_differently_from_the_base(system: System) -> None:
    ours = system.ask(logprobs=True)
    with system.client() as client:
        base = client.models.list().data
        base_id = next(model.id for model in base if model.id not in ("code", "code@v1"))
        theirs = client.chat.completions.create(
            model=base_id,
            messages=[{"role": "user", "content": "Write a function that doubles a number."}],
            max_tokens=64,
            temperature=0,
            logprobs=True,
        )
    assert ours.adapter["version"] == 1
    assert theirs.adapter["version"] == 0
    first = [token.logprob for token in ours.choices[0].logprobs.content[:5]]
    second = [token.logprob for token in theirs.choices[0].logprobs.content[:5]]
    assert first != second


def test_a_killed_engine_comes_back_with_its_adapter(system: System) -> None:
    command = f"--port {system.env['JOURNEYMAN_ENGINE__PORT']}"
    found = subprocess.run(
        ["pgrep", "-f", f"api_server.*{command}"], capture_output=True, text=True, check=True
    )
    # The engine itself, not the guard in front of it, whose command line names the engine's.
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in found.stdout.split()}
    engine = next(int(pid) for pid, command in commands.items() if b"guard.py" not in command)
    os.kill(engine, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while system.ready().status_code == 200 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert system.ready().status_code == 503
    refused = httpx.post(
        f"{system.url}/v1/chat/completions",
        json={"model": "code", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2},
        timeout=60,
    )
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) > 0
    system.wait_ready()
    assert system.ask().adapter["version"] == 1


def test_rollback_brings_the_base_back(system: System) -> None:
    system.journeyman("rollback")
    deadline = time.monotonic() + 30
    while system.ask().adapter["version"] != 0 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert system.ask().adapter["version"] == 0


def test_an_altered_adapter_is_refused_and_serving_goes_on(system: System) -> None:
    adapter = system.store.adapter(1)
    config = Path(adapter.directory) / "adapter_config.json"
    before = config.read_bytes()
    config.write_bytes(before.replace(b"16", b"64", 1))
    try:
        done = system.journeyman("adapters", "promote", "v1", "--force", check=False)
        assert done.returncode != 0
        assert "adapter_config.json" in done.stdout + done.stderr
    finally:
        config.write_bytes(before)
    assert system.ask().adapter["version"] == 0


def test_metrics_tell_the_story(system: System) -> None:
    text = httpx.get(f"{system.url}/metrics").text
    for name in (
        "journeyman_requests_total",
        "journeyman_candidates_verified_total",
        "journeyman_feedback_total",
        "journeyman_adapter_swaps_total",
        "journeyman_cycles",
    ):
        assert f"\n{name}{{" in text, name


def test_ctrl_c_leaves_no_process(system: System) -> None:
    assert len(_processes_of(system.data_dir)) >= 4
    system.process.send_signal(signal.SIGINT)
    assert system.process.wait(timeout=120) in (0, 130)
    # The engine's resource tracker ends by itself, once it sees that its pipe is closed.
    deadline = time.monotonic() + 5
    while _processes_of(system.data_dir) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert _processes_of(system.data_dir) == []
