"""Trials: which one is under way, and what the record says of it."""

from __future__ import annotations

import random
import runpy
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from ops import trials
from ops.records import Adapter, Alias, Decision, Metric, Source, now
from ops.registry import Registry
from ops.store import Recording, Store
from ops.trials import Kind, Rules, Trial
from tests.ops.records import comment, interaction

RULES = Rules(canary_share=0.2, canary_requests=40, watch_requests=40)


def _version(registry: Registry, content: str) -> Adapter:
    adapter = registry.add(
        lambda draft: (draft / "x").write_text(content) and None,
        base_model="base",
        base_sha256="ff",
        rank=8,
        recipe="ilf",
        cycle_id=None,
        lineage={},
        actor="test",
    )
    registry.examined(adapter.version, actor="gate", reason="r", evidence={})
    return adapter


def _promoted(registry: Registry, content: str) -> Adapter:
    adapter = _version(registry, content)
    registry.promote(adapter.version, actor="gate", reason="r")
    return adapter


def _answered(store: Store, version: int, *verified: bool | None, **more: Any) -> list[str]:
    """Put answers of a version on record, a moment apart."""
    rows = [
        interaction(
            **{
                "adapter_version": version,
                "verified": good,
                "duration_s": 1.0,
                **more,
            }
        )
        for good in verified
    ]
    store.add([Recording(interaction=row, attempts=(), executions=()) for row in rows])
    return [row.id for row in rows]


def _say(store: Store, inference_id: str, accepted: bool, **more: Any) -> None:
    of = store.interaction(inference_id)
    store.put_feedback([comment(of, metric=Metric.ACCEPTED, value=accepted, **more)])


def _current(store: Store) -> Trial:
    found = trials.current(store, RULES)
    assert found is not None
    return found


def _judge(store: Store, *, elapsed_s: float = 0.0, rules: Rules = RULES) -> trials.Verdict:
    trial = trials.current(store, rules)
    assert trial is not None
    return trials.judge(store, trial, rules, elapsed_s=elapsed_s)


def test_the_registry_says_which_trial_is_under_way(registry: Registry, store: Store) -> None:
    assert trials.current(store, RULES) is None
    first = _promoted(registry, "a")
    watch = _current(store)
    assert (watch.kind, watch.version, watch.against) == (Kind.WATCH, first.version, 0)
    assert (watch.split, watch.share) == (0, 0.0)
    second = _version(registry, "b")
    registry.canary(second.version, actor="gate", reason="r")
    canary = _current(store)
    assert (canary.kind, canary.version, canary.against) == (Kind.CANARY, 2, 1)
    assert (canary.split, canary.share) == (2, 0.2)
    registry.promote(second.version, actor="server", reason="r")
    watch = _current(store)
    assert (watch.kind, watch.version, watch.against, watch.split) == (Kind.WATCH, 2, 1, 1)
    registry.confirm(second.version, actor="server", reason="r", evidence={})
    assert trials.current(store, RULES) is None
    registry.rollback(actor="me", reason="r")
    assert trials.current(store, RULES) is None, "who came back is not left again"


def test_a_canary_may_bring_its_share_and_none_is_watched_where_that_is_off(
    registry: Registry, store: Store
) -> None:
    _promoted(registry, "a")
    assert trials.current(store, Rules(watch_hours=0)) is None
    registry.canary(
        _version(registry, "b").version, actor="me", reason="r", evidence={"share": 0.3}
    )
    assert _current(store).share == 0.3
    other = Registry(store, Path(registry.get(1).directory).parent)
    other.canary(_version(registry, "c").version, actor="me", reason="r")
    found = trials.current(store, Rules())
    assert found is not None
    assert found.share == trials.SMALL_SHARE


def test_a_trial_starts_anew_when_the_champion_changes(registry: Registry, store: Store) -> None:
    _promoted(registry, "a")
    canary = _version(registry, "b").version
    registry.canary(canary, actor="me", reason="r")
    _answered(store, canary, *[False] * 20)
    _answered(store, 1, *[True] * 20)
    assert _judge(store).decision is Decision.REJECT
    _promoted(registry, "c")
    assert _current(store).against == 3
    assert _judge(store).decision is Decision.CONTINUE


def test_a_worse_canary_is_taken_back_with_numbers(registry: Registry, store: Store) -> None:
    _promoted(registry, "a")
    canary = _version(registry, "b").version
    registry.canary(canary, actor="me", reason="r")
    assert _judge(store).decision is Decision.CONTINUE
    for _ in range(12):
        _answered(store, 1, True, True, True)
        _answered(store, canary, False)
    verdict = _judge(store)
    assert verdict.decision is Decision.REJECT
    assert verdict.reason.startswith(
        "worse than code@v1 on live traffic: 0 of 12 (0%) verified instead of 36 of 36 (100%)"
    )
    assert verdict.numbers["requests"] == {"candidate": 12, "champion": 36}
    words = trials.describe(verdict.numbers)
    assert "code@v2 answered 12 requests, code@v1 36." in words
    assert "Verified: code@v2 0 of 12 (0%), code@v1 36 of 36 (100%)" in words


def test_a_better_canary_need_not_use_up_its_budget(registry: Registry, store: Store) -> None:
    canary = _version(registry, "b").version
    registry.canary(canary, actor="me", reason="r")
    for _ in range(12):
        _answered(store, 0, False, False)
        _answered(store, canary, True)
    verdict = _judge(store)
    assert verdict.decision is Decision.PROMOTE
    assert "better than the base model" in verdict.reason


def test_acceptance_counts_by_what_people_say_first(registry: Registry, store: Store) -> None:
    _promoted(registry, "a")
    canary = _version(registry, "b").version
    registry.canary(canary, actor="me", reason="r")
    for _ in range(14):
        (mine,) = _answered(store, canary, None)
        (theirs,) = _answered(store, 1, None)
        _say(store, mine, False)
        _say(store, theirs, True)
        _say(store, mine, True, choice_index=1)
    verdict = _judge(store)
    assert verdict.decision is Decision.REJECT
    assert "0 of 14 (0%) accepted instead of 14 of 14" in verdict.reason
    assert verdict.numbers["verified"]["pairs"] == 0


def test_a_canary_that_is_much_slower_is_taken_back(registry: Registry, store: Store) -> None:
    _promoted(registry, "a")
    canary = _version(registry, "b").version
    registry.canary(canary, actor="me", reason="r")
    for _ in range(5):
        _answered(store, 1, True, duration_s=1.0)
        _answered(store, canary, True, duration_s=1.9)
    assert _judge(store).decision is Decision.CONTINUE
    for _ in range(30):
        _answered(store, 1, True, duration_s=1.0)
        _answered(store, canary, True, duration_s=2.5)
    verdict = _judge(store)
    assert verdict.decision is Decision.REJECT
    assert verdict.reason.startswith(
        "slower than code@v1 on live traffic: 2.50 s instead of 1.00 s"
    )
    # Answers to other kinds of requests are not compared with each other.
    kinds = trials.judge(store, _current(store), Rules(latency_ratio=1000), elapsed_s=0.0).numbers[
        "slow"
    ]
    assert (kinds["pairs"], kinds["slower"]) == (35, 0)


@pytest.mark.parametrize(("requests", "elapsed_s"), [(40, 0.0), (3, 25 * 3600.0), (0, 25 * 3600.0)])
def test_not_worse_within_the_budget_is_enough(
    registry: Registry, store: Store, requests: int, elapsed_s: float
) -> None:
    _promoted(registry, "a")
    canary = _version(registry, "b").version
    registry.canary(canary, actor="me", reason="r")
    _answered(store, canary, *[True, False] * (requests // 2))
    _answered(store, 1, *[True, False] * requests)
    verdict = _judge(store, elapsed_s=elapsed_s)
    assert verdict.decision is Decision.PROMOTE
    assert verdict.reason == f"not worse than code@v1 in {requests // 2 * 2} live requests"


def test_what_is_not_of_the_trial_is_not_seen(registry: Registry, store: Store) -> None:
    _promoted(registry, "a")
    canary = _version(registry, "b").version
    _answered(store, canary, *[False] * 20)  # before it began
    registry.canary(canary, actor="me", reason="r")
    _answered(store, canary, *[False] * 20, model=f"code@v{canary}")
    _answered(store, canary, *[False] * 20, source=Source.IMPORTED)
    _answered(store, 7, *[True] * 20)
    _answered(store, 1, *[True] * 20)
    assert _judge(store).numbers["requests"] == {"candidate": 0, "champion": 20}


def test_a_new_champion_is_set_beside_what_the_one_before_did(
    registry: Registry, store: Store
) -> None:
    first = _promoted(registry, "a").version
    earlier = now() - timedelta(hours=3)
    for place in range(30):
        at = earlier + timedelta(minutes=place)
        _answered(store, first, True, created_at=at)
    second = _promoted(registry, "b").version
    _answered(store, second, *[False] * 12)
    verdict = _judge(store)
    assert verdict.decision is Decision.REJECT
    assert verdict.numbers["verified"]["pairs"] == 12
    assert verdict.numbers["slow"] == {}, "yesterday's load is not today's"


def test_a_watch_with_a_control_compares_what_came_meanwhile(
    registry: Registry, store: Store
) -> None:
    first = _promoted(registry, "a").version
    _answered(store, first, *[True] * 30)
    second = _promoted(registry, "b").version
    rules = Rules(control_share=0.1)
    _answered(store, second, *[False] * 30)
    assert _judge(store, rules=rules).decision is Decision.CONTINUE
    for _ in range(12):
        _answered(store, first, True)
        _answered(store, second, False, False)
    assert _judge(store, rules=rules).decision is Decision.REJECT


@pytest.mark.parametrize(("truth", "most", "least"), [(0.6, 4, 0), (0.2, 40, 36)])
def test_how_often_a_canary_is_taken_back(truth: float, most: int, least: int) -> None:
    """Equal ones seldom, though looked at again and again; much worse ones nearly always."""
    chance = random.Random(11)
    trial = Trial(kind=Kind.CANARY, version=2, against=1, since=now(), share=0.2)
    rules, back = Rules(), 0
    for _ in range(40):
        marks = []
        for place in range(600):
            own = chance.random() < 0.2
            good = chance.random() < (truth if own else 0.6)
            marks.append((trial.since + timedelta(seconds=place), 2 if own else 1, good))
        back += any(
            trials.quality(trial, marks[:n], rules, alone=False)["e_worse"] >= rules.threshold
            for n in range(50, 601, 50)
        )
    assert least <= back <= most


def test_aliases_name_the_canary(registry: Registry, store: Store) -> None:
    version = _version(registry, "b").version
    registry.canary(version, actor="me", reason="r")
    assert store.aliases() == {Alias.CANARY: version}


def test_the_simulation_takes_back_what_is_broken(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Path(__file__).parents[2] / "ops" / "bench" / "canary.py"
    monkeypatch.setattr("sys.argv", ["canary.py", "--runs", "6"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(script), run_name="__main__")
    rows = [line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines()[1:]]
    assert rows[0] == "100.0%"
    assert rows[-1] == "0.0%"
