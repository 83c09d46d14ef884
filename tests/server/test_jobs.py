"""Improvement cycles through OpenAI's fine-tuning client."""

from __future__ import annotations

import openai
import pytest

from ops.records import CycleEvent, CycleState, new_id, now
from tests.ops import records
from tests.server.conftest import Running


def test_cycles_are_read_with_the_openai_client(server: Running) -> None:
    states = {
        CycleState.QUEUED: "queued",
        CycleState.RUNNING: "running",
        CycleState.FAILED: "failed",
        CycleState.SKIPPED: "cancelled",
        CycleState.SUCCEEDED: "succeeded",
    }
    cycles = []
    for state in states:
        cycle = records.cycle(state=state, error="boom" if state is CycleState.FAILED else None)
        server.store.add_cycle(cycle)
        cycles.append(cycle)
    server.store.update_cycle(cycles[-1].id, adapter_version=3, finished_at=now())
    jobs = server.openai.fine_tuning.jobs
    listed = list(jobs.list(limit=2))  # the client turns the pages
    assert [job.id for job in listed] == [f"ftjob-{cycle.id}" for cycle in reversed(cycles)]
    assert [job.status for job in reversed(listed)] == list(states.values())
    job = jobs.retrieve(f"ftjob-{cycles[-1].id}")
    assert job.fine_tuned_model == "code@v3"
    assert job.metadata is not None
    assert job.metadata["recipe"] == cycles[-1].recipe
    (checkpoint,) = jobs.checkpoints.list(job.id)
    assert checkpoint.fine_tuned_model_checkpoint == "code@v3"
    failed = jobs.retrieve(f"ftjob-{cycles[2].id}")
    assert failed.error is not None
    assert failed.error.message == "boom"
    assert list(jobs.checkpoints.list(failed.id)) == []


def test_events_come_newest_first(server: Running) -> None:
    cycle = records.cycle()
    server.store.add_cycle(cycle)
    for number in range(3):
        event = CycleEvent(
            id=new_id(),
            cycle_id=cycle.id,
            created_at=now(),
            level="warning",
            message=f"m{number}",
            data={"loss": 1.0} if number else {},
        )
        server.store.add_event(event)
    events = list(server.openai.fine_tuning.jobs.list_events(f"ftjob-{cycle.id}", limit=2))
    assert [event.message for event in events] == ["m2", "m1", "m0"]
    assert {event.level for event in events} == {"warn"}
    assert [event.type for event in events] == ["metrics", "metrics", "message"]


def test_a_job_that_does_not_exist_is_a_404(server: Running) -> None:
    for path in ("x", "x/events", "x/checkpoints"):
        assert server.http.get(f"/v1/fine_tuning/jobs/{path}").status_code == 404
    with pytest.raises(openai.NotFoundError):
        server.openai.fine_tuning.jobs.retrieve("ftjob-x")
