"""A cycle as a trace: its stages, and the requests by which it asks the server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from improver.policy import Policy
from ops import tracing
from ops.records import CycleState
from tests.improver.conftest import judge, server
from tests.improver.test_cycle import STAGES, World, world

__all__ = ["judge", "server", "world"]


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    tracing.configure(None, "test", exporter=exporter)
    yield exporter
    tracing.configure(None, "test")


async def test_a_cycle_is_one_trace_with_its_stages(
    world: World, spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    ask = Policy._ask

    async def asked(policy: Policy, body: dict[str, object]) -> object:
        sent.append(tracing.headers()["traceparent"])
        return await ask(policy, body)

    monkeypatch.setattr(Policy, "_ask", asked)
    cycle = await world.run(world.start())
    assert cycle.state is CycleState.SUCCEEDED, cycle.error
    *stages, whole = spans.get_finished_spans()
    assert [span.name for span in stages] == list(STAGES)
    assert whole.name == "cycle"
    assert {s.parent.span_id if s.parent else 0 for s in stages} == {whole.context.span_id}
    trace = f"{whole.context.trace_id:032x}"
    assert {words.split("-")[1] for words in sent} == {trace}
    over = {f"{s.context.span_id:016x}": s.name for s in stages}
    assert {over[words.split("-")[2]] for words in sent} == {"build", "evaluate"}
