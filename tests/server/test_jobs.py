"""Improvement cycles through OpenAI's fine-tuning client."""

from __future__ import annotations

import openai
import pytest

from improver import cookbook
from improver.cycle import Plan
from ops.records import CycleEvent, CycleState, new_id, now
from server.jobs import RECIPES
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


def test_a_job_is_a_queued_cycle_that_the_improver_understands(server: Running) -> None:
    jobs = server.openai.fine_tuning.jobs
    job = jobs.create(
        model="code",
        training_file="record",
        seed=11,
        metadata={"recipe": "gift4code"},
        method={
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": 5, "learning_rate_multiplier": 0.5}},
        },
    )
    assert (job.status, job.seed, job.hyperparameters.n_epochs) == ("queued", 11, 5)  # type: ignore[union-attr]
    (cycle,) = server.store.cycles(state=CycleState.QUEUED)
    assert (cycle.recipe, cycle.trigger) == ("gift4code", "api")
    plan = Plan.model_validate(cycle.settings)
    defaults = server.settings.improver.train
    assert plan.improver.recipe == "gift4code"
    assert (plan.improver.train.epochs, plan.improver.train.seed) == (5, 11)
    assert plan.improver.train.learning_rates == pytest.approx([defaults.learning_rate / 2])
    assert plan.improver.train.batch_rows == defaults.batch_rows
    assert set(RECIPES) == {*cookbook.names("all"), "all"}


def test_a_job_is_paused_resumed_and_cancelled_before_it_is_taken(server: Running) -> None:
    jobs = server.openai.fine_tuning.jobs
    job = jobs.create(model="fake-base", training_file="record")
    assert jobs.pause(job.id).status == "paused"
    assert server.store.cycles(state=CycleState.QUEUED) == []
    with pytest.raises(openai.ConflictError):
        jobs.pause(job.id)
    assert jobs.resume(job.id).status == "queued"
    assert jobs.cancel(job.id).status == "cancelled"
    for verb in (jobs.cancel, jobs.pause, jobs.resume):
        with pytest.raises(openai.ConflictError):
            verb(job.id)
        with pytest.raises(openai.NotFoundError):
            verb("ftjob-none")
    failed = records.cycle(state=CycleState.FAILED, error="boom", finished_at=now())
    server.store.add_cycle(failed)
    assert jobs.resume(f"ftjob-{failed.id}").error is None


def test_a_running_job_is_paused_resumed_and_cancelled(server: Running) -> None:
    jobs = server.openai.fine_tuning.jobs
    running = records.cycle(state=CycleState.RUNNING, stage="train")
    server.store.add_cycle(running)
    job_id = f"ftjob-{running.id}"
    assert jobs.pause(job_id).status == "paused"
    assert jobs.resume(job_id).status == "queued"
    server.store.update_cycle(running.id, state=CycleState.RUNNING)
    cancelled = jobs.cancel(job_id)
    assert cancelled.status == "cancelled"
    assert cancelled.finished_at is not None
    assert cancelled.error is not None
    assert cancelled.error.message == "cancelled by request"


def test_a_job_whose_adapter_goes_into_service_is_left_to_end(server: Running) -> None:
    jobs = server.openai.fine_tuning.jobs
    releasing = records.cycle(state=CycleState.RUNNING, stage="release")
    server.store.add_cycle(releasing)
    for verb in (jobs.cancel, jobs.pause):
        with pytest.raises(openai.ConflictError, match="being released"):
            verb(f"ftjob-{releasing.id}")
    assert server.store.cycle(releasing.id) == releasing


def test_a_wrong_job_is_refused_and_names_the_field(server: Running) -> None:
    good = {"model": "code", "training_file": "record"}
    wrong = [
        ({"model": "gpt-4"}, 404, "model"),
        ({"training_file": "file-1"}, 400, "training_file"),
        ({"metadata": {"recipe": "magic"}}, 400, "metadata.recipe"),
        ({"metadata": {"a": 1}}, 400, "metadata.a"),
        ({"method": {"type": "dpo"}}, 400, "method.type"),
        ({"hyperparameters": {"n_epochs": 0}}, 400, "hyperparameters.n_epochs"),
        ({"seed": -1}, 400, "seed"),
        ({"suffix": "mine"}, 400, "suffix"),
        ({"surprise": 1}, 400, "surprise"),
    ]
    for change, status, param in wrong:
        response = server.http.post("/v1/fine_tuning/jobs", json=good | change)
        assert response.status_code == status, (change, response.text)
        assert response.json()["error"]["param"].startswith(param), response.text
    assert server.store.cycles() == []
