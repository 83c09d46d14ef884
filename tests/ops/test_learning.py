"""The answer to "is it learning?", over the life of an installation."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from ops.learning import learning, lines
from ops.records import CycleState, now
from ops.registry import Registry
from ops.store import Recording, Store
from tests.ops import records
from tests.ops.test_cli import add


def serve(store: Store, count: int, *, verified: int, **changes: Any) -> None:
    rows = [records.interaction(verified=place < verified, **changes) for place in range(count)]
    store.add([Recording(interaction=row) for row in rows])


def asked(store: Store) -> tuple[dict[str, Any], str]:
    at = now()
    wanted = {"feedback": 200, "failures": None}
    report = learning(store, thresholds=wanted, schedule="0 3 * * *", at=at)
    shown = lines(report, at)
    assert len(shown) <= 6
    return report, "\n".join(shown)


def test_an_empty_installation(store: Store) -> None:
    report, shown = asked(store)
    assert report["learning"] is False
    assert "not yet; no improvement cycle has run yet" in shown
    assert "last 7 days: 0 requests; the 7 before: 0 requests" in shown
    assert 'begins at 200 feedback or on "0 3 * * *"' in shown


def test_one_that_gets_better(store: Store, registry: Registry) -> None:
    serve(store, 10, verified=5, created_at=now() - timedelta(days=8))
    version = add(registry, "a").version
    store.add_cycle(
        records.cycle(
            state=CycleState.SUCCEEDED,
            finished_at=now() - timedelta(hours=5),
            report={"release": {"state": "champion", "reason": "better by 6 tasks"}},
        )
    )
    registry.promote(version, actor="improver", reason="better by 6 tasks", force=True)
    serve(store, 4, verified=3, adapter_version=version)
    store.put_feedback([records.comment(store.interactions()[0])])
    report, shown = asked(store)
    assert report["learning"] is True
    assert "learning: yes; code@v1 answers since" in shown
    assert "better by 6 tasks" in shown
    assert "base 50% of 10 · code@v1 75% of 4" in shown
    assert "last 7 days: 4 requests, 75% of 4 with a spec; the 7 before: 10 requests" in shown
    assert "last cycle: ilf, 5 h ago: champion: better by 6 tasks" in shown
    assert "new since the last cycle: 1 feedback, 1 failures, 0 accepted" in shown


def test_one_whose_candidates_are_refused(store: Store) -> None:
    running = records.cycle(state=CycleState.RUNNING)
    store.add_cycle(running)
    assert "the first cycle is under way" in asked(store)[1]
    assert f"running: cycle {running.id}" in asked(store)[1]
    store.update_cycle(
        running.id, state=CycleState.SKIPPED, error="3 rows; 8 are wanted", finished_at=now()
    )
    store.add_cycle(records.cycle(settings={"dry_run": True}, finished_at=now()))
    report, shown = asked(store)
    assert report["learning"] is False
    assert "of 1 cycles none is in service; the last: 3 rows; 8 are wanted" in shown


def test_without_schedule_or_thresholds_it_waits_to_be_asked(store: Store) -> None:
    at = now()
    report = learning(store, thresholds={"feedback": None}, schedule=None, at=at)
    assert lines(report, at)[-1].endswith("the next one begins when asked for")
