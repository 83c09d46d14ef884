"""The pool: tiers, isolation between runs, cancellation, crashes, ends."""

# ruff: noqa: E501  (programs, one a line where that reads best)

import asyncio
import os
import signal
import time
from typing import Any

import pytest

import sandbox
from sandbox.errors import SandboxError, SandboxUnavailable
from sandbox.pool import UNSAFE_VARIABLE, UNSAFE_WORD, Pool
from sandbox.runner import Zygote
from sandbox.selfcheck import descendants
from sandbox.types import Limits, Tier, Verdict
from tests.sandbox.conftest import Lab

pytestmark = pytest.mark.isolation
SQUARE = "def f(x):\n    return x * x\n"


def test_calls_positional_and_by_keyword(lab: Lab) -> None:
    run = lab.run(SQUARE, entry="f", calls=[[3], {"x": 4}])
    assert run.verdict is Verdict.OK
    assert run.values == (9, 16)
    assert len(run.durations_s) == 2
    assert run.tier is lab.pool.tier


def test_the_function_that_fits_is_found_without_a_name(lab: Lab) -> None:
    code = "def helper(a, b):\n    return a\ndef main(x):\n    return helper(x, 1)\ndef _p(x): pass"
    assert lab.run(code, calls=[[5]]).values == (5,)
    assert lab.run("x = 1", calls=[[5]]).error_type == "NameError"
    assert lab.run(SQUARE, entry="g", calls=[[5]]).error_type == "NameError"


def test_a_script_reads_stdin_and_ends_as_scripts_do(lab: Lab) -> None:
    code = (
        "import atexit, sys, threading\n"
        "atexit.register(print, 'bye')\n"
        "threading.Thread(target=lambda: print('thread')).start()\n"
        "print(__name__, sum(map(int, sys.stdin)))\n"
        "sys.exit(0)\n"
    )
    run = lab.run(code, stdin="1\n2\n")
    assert run.verdict is Verdict.OK
    assert set(run.stdout.split("\n")) == {"__main__ 3", "thread", "bye", ""}
    assert lab.run("import sys; sys.exit(3)").word == "ERROR:SystemExit"
    assert lab.run("print(input())").word == "ERROR:EOFError"


def test_a_large_stdin_arrives(lab: Lab) -> None:
    run = lab.run("import sys; print(len(sys.stdin.read()))", stdin="x" * 3_000_000)
    assert run.stdout == "3000000\n"


def test_cells_take_and_give_named_variables(lab: Lab) -> None:
    run = lab.run("b = a + [3]", variables={"a": [1, 2]}, outputs=["b", "missing"], setup="c = 1")
    assert run.outputs == {"b": [1, 2, 3]}


def test_an_argument_that_cannot_cross_is_the_callers_fault(lab: Lab) -> None:
    with pytest.raises(ValueError, match="cannot be written"):
        lab.run(SQUARE, entry="f", calls=[[object()]])


def test_too_long_a_source_is_a_verdict(lab: Lab) -> None:
    run = lab.run("#" * (33 << 20))
    assert run.word == "ERROR:SyntaxError"


def test_random_numbers_differ_between_runs_and_obey_a_seed(lab: Lab) -> None:
    code = "import random, numpy\ndef f():\n    return random.random(), float(numpy.random.rand())"
    first, second = (lab.run(code, entry="f", calls=[[]]).values[0] for _ in range(2))
    assert first[0] != second[0]
    assert first[1] != second[1]
    seeded = [lab.run(code, entry="f", calls=[[]], seed=7).values for _ in range(2)]
    assert seeded[0] == seeded[1]


def test_nothing_is_left_between_runs(lab: Lab) -> None:
    dirty = "import json, os, builtins\njson.x = builtins.x = 1\nopen('left', 'w')\nos.environ['X'] = 'y'"
    clean = (
        "import json, os, builtins\ndef f():\n"
        "    return [hasattr(json, 'x'), hasattr(builtins, 'x'), os.listdir('.'), 'X' in os.environ]"
    )
    for _ in range(3):
        assert lab.run(dirty).verdict is Verdict.OK
        assert lab.run(clean, entry="f", calls=[[]]).values == ([False, False, [], False],)


def test_limits_of_one_run_do_not_stick(lab: Lab) -> None:
    code = "def f():\n    return len(bytearray(400 << 20))"
    small = Limits(memory_bytes=410 << 20)
    assert lab.run(code, entry="f", calls=[[]], limits=small).verdict is Verdict.MEMORY
    assert lab.run(code, entry="f", calls=[[]]).verdict is Verdict.OK


def test_more_requests_than_workers_wait_their_turn(lab: Lab) -> None:
    async def many() -> list[Any]:
        jobs = (lab.pool.run(SQUARE, entry="f", calls=[[n]]) for n in range(30))
        return [run.values for run in await asyncio.gather(*jobs)]

    assert lab.do(many()) == [(n * n,) for n in range(30)]
    assert lab.pool.gauges()["waiting"] == 0


def test_cancelling_kills_the_run_within_a_second(lab: Lab) -> None:
    async def cancel() -> tuple[float, int]:
        task = asyncio.create_task(lab.pool.run("while True: pass", limits=Limits(wall_s=60)))
        await asyncio.sleep(0.3)
        began = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while lab.pool.gauges()["idle"] < 2:
            await asyncio.sleep(0.01)
        return time.monotonic() - began, len(descendants(*lab.pool.process_ids()))

    seconds, processes = lab.do(cancel())
    assert seconds < 1
    assert processes <= 3 * len(lab.pool.process_ids())
    assert lab.run(SQUARE, entry="f", calls=[[2]]).values == (4,)


def test_cancelling_while_waiting_for_a_worker_loses_no_worker(lab: Lab) -> None:
    async def cancel() -> None:
        busy = [asyncio.create_task(lab.pool.run("import time; time.sleep(0.5)")) for _ in range(2)]
        waiting = [asyncio.create_task(lab.pool.run("pass")) for _ in range(5)]
        await asyncio.sleep(0.1)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*busy, *waiting, return_exceptions=True)

    lab.do(cancel())
    assert lab.pool.gauges()["idle"] == 2


def busy_zygotes(pool: Pool) -> list[Zygote]:
    return [s.zygote for s in pool._slots if s.zygote is not None]


def test_a_killed_zygote_loses_no_request(lab: Lab) -> None:
    async def crash() -> Any:
        before = lab.pool.gauges()["retries_total"]
        task = asyncio.create_task(
            lab.pool.run("import time; time.sleep(0.6)\ndef f(x): return x", entry="f", calls=[[1]])
        )
        await asyncio.sleep(0.2)
        for zygote in busy_zygotes(lab.pool):
            os.kill(zygote.pid, signal.SIGKILL)
        run = await task
        return run, lab.pool.gauges()["retries_total"] - before

    run, retries = lab.do(crash())
    assert run.values == (1,)
    assert retries == 1
    assert lab.run(SQUARE, entry="f", calls=[[2]]).values == (4,)


def test_killed_twice_is_an_infrastructure_error_and_never_a_verdict(lab: Lab) -> None:
    async def crash() -> None:
        task = asyncio.create_task(lab.pool.run("import time; time.sleep(30)"))
        for _ in range(400):
            await asyncio.sleep(0.05)
            for zygote in busy_zygotes(lab.pool):
                if zygote.runs and zygote.pid and not zygote.lost:
                    os.kill(zygote.pid, signal.SIGKILL)
            if task.done():
                break
        await task

    with pytest.raises(SandboxError):
        lab.do(crash())
    assert lab.run(SQUARE, entry="f", calls=[[2]]).values == (4,)


def test_zygotes_that_die_while_idle_are_replaced(lab: Lab) -> None:
    async def kill() -> None:
        for zygote in busy_zygotes(lab.pool):
            os.kill(zygote.pid, signal.SIGKILL)
        await asyncio.sleep(0.1)

    lab.do(kill())
    assert [lab.run(SQUARE, entry="f", calls=[[n]]).values for n in range(4)] == [
        (0,),
        (1,),
        (4,),
        (9,),
    ]


def test_zygotes_are_replaced_on_schedule(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandbox.pool.RECYCLE_RUNS", 5)

    async def work() -> tuple[int, float]:
        async with Pool(workers=1, recheck_s=0) as pool:
            first = busy_zygotes(pool)[0].pid
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                run = await pool.run("pass")
                assert run.verdict is Verdict.OK
                if busy_zygotes(pool)[0].pid != first:
                    break
            return int(busy_zygotes(pool)[0].pid != first), pool.gauges()["recycled_total"]

    assert lab.do(work()) == (1, 1)


def test_closing_leaves_no_process_and_no_file(lab: Lab) -> None:
    async def work() -> tuple[int, set[int], str]:
        async with Pool(workers=2, recheck_s=0) as pool:
            running = asyncio.create_task(pool.run("while True: pass"))
            await asyncio.sleep(0.2)
            home = pool._home
            started = descendants(*pool.process_ids())
            running.cancel()
        left = started
        for _ in range(50):
            left = {pid for pid in left if os.path.exists(f"/proc/{pid}")}
            if not left:
                break
            await asyncio.sleep(0.1)
        return len(started), left, home

    started, left, home = lab.do(work())
    assert started >= 2
    assert left == set()
    assert not os.path.exists(home)


def test_what_a_killed_service_left_is_swept_and_what_is_in_use_is_not(lab: Lab) -> None:
    from sandbox.pool import _make_home

    left, lock = _make_home()
    os.close(lock)
    used, lock = _make_home()
    assert not os.path.exists(left)
    assert os.path.exists(lab.pool._home)
    another, other_lock = _make_home()
    assert os.path.exists(used)
    for descriptor in (lock, other_lock):
        os.close(descriptor)
    _, lock = _make_home()
    os.close(lock)
    assert not os.path.exists(used)
    assert not os.path.exists(another)


def test_a_pool_that_is_not_open_says_so() -> None:
    pool = Pool()
    with pytest.raises(SandboxUnavailable, match="not open"):
        _ = pool.tier
    with pytest.raises(ValueError, match="worker"):
        Pool(workers=0)


def refusal(lab: Lab, **options: Any) -> SandboxUnavailable:
    async def enter() -> None:
        async with Pool(workers=1, recheck_s=0, **options):
            pass

    with pytest.raises(SandboxUnavailable) as caught:
        lab.do(enter())
    return caught.value


def test_less_than_the_minimum_is_refused(lab: Lab) -> None:
    assert "runtime" in str(refusal(lab, min_tier=Tier.RUNTIME))


def test_a_tier_that_fails_a_probe_is_refused_with_the_list(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sandbox.probes import PROBES, Probe

    broken = Probe("read the answer", "def probe(facts):\n    return 'read it'\n")
    monkeypatch.setattr("sandbox.pool.PROBES", (*PROBES, broken))
    error = refusal(lab, tiers=[lab.pool.tier])
    assert error.failures == (f"{lab.pool.tier.label}: read the answer: read it",)


def test_a_tier_that_cannot_start_is_refused_with_the_step(lab: Lab) -> None:
    error = refusal(lab, tiers=[Tier.RUNTIME], runtime=("/nonexistent/runsc", "do"))
    assert "runsc" in str(error)
    error = refusal(lab, tiers=[lab.pool.tier], imports=("no_such_module",))
    assert "no_such_module" in str(error)


@pytest.mark.parametrize(
    ("options", "variable"),
    [
        ({"min_tier": Tier.NONE}, UNSAFE_WORD),
        ({"min_tier": Tier.NONE, "allow_unsafe": True}, None),
        ({"min_tier": Tier.NONE, "allow_unsafe": True}, "yes"),
        ({"allow_unsafe": True}, UNSAFE_WORD),
    ],
)
def test_running_unsafe_needs_the_setting_the_variable_and_the_minimum(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], variable: str | None
) -> None:
    monkeypatch.delenv(UNSAFE_VARIABLE, raising=False)
    if variable:
        monkeypatch.setenv(UNSAFE_VARIABLE, variable)
    refusal(lab, tiers=[], **options)


def test_running_unsafe_is_logged_and_stamped_on_every_result(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(UNSAFE_VARIABLE, UNSAFE_WORD)

    async def work() -> Any:
        async with Pool(1, tiers=[], min_tier=Tier.NONE, allow_unsafe=True, recheck_s=0) as pool:
            return await pool.run(SQUARE, entry="f", calls=[[3]])

    run = lab.do(work())
    assert run.values == (9,)
    assert run.tier is Tier.NONE
    assert "WITHOUT ISOLATION" in caplog.text


def test_the_self_test_is_repeated_and_a_breach_stops_the_pool(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sandbox.probes import Probe

    async def work() -> None:
        async with Pool(workers=1, tiers=[lab.pool.tier], recheck_s=0.2) as pool:
            breach = Probe("new hole", "def probe(facts):\n    return 'open'\n")
            monkeypatch.setattr(Pool.self_test, "__defaults__", ((breach,),))
            for _ in range(100):
                await asyncio.sleep(0.05)
                await pool.run("pass")

    with pytest.raises(SandboxUnavailable, match="new hole"):
        lab.do(work())


def test_the_synchronous_surface() -> None:
    run = sandbox.run(SQUARE, entry="f", calls=[[3]])
    assert run.verdict is sandbox.Verdict.OK
    assert run.values == (9,)
    assert sorted(sandbox.__all__) == sandbox.__all__
    for name in sandbox.__all__:
        assert getattr(sandbox, name) is not None
    with pytest.raises(AttributeError):
        _ = sandbox.nothing
