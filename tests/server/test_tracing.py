"""A verified request as a trace: from the client's span to vLLM's, with sandbox and record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from ops import tracing
from tests.server.conftest import Running

SPEC = {"entry_point": "add", "examples": [{"input": [1, 2], "output": 3}]}
CLIENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    tracing.configure(None, "test", exporter=exporter)
    yield exporter
    tracing.configure(None, "test")


def _within(spans: InMemorySpanExporter) -> Counter[tuple[str, str | None]]:
    """How often each span stands under which."""
    found = {span.context.span_id: span for span in spans.get_finished_spans()}

    def parent(span: ReadableSpan) -> str | None:
        over = found.get(span.parent.span_id) if span.parent else None
        return over.name if over else None

    return Counter((span.name, parent(span)) for span in found.values())


def test_a_verified_request_is_one_trace(server: Running, spans: InMemorySpanExporter) -> None:
    body = {"model": "code", "messages": [{"role": "user", "content": "add"}], "io_spec": SPEC}
    answer = server.http.post("/v1/chat/completions", json=body, headers={"traceparent": CLIENT})
    assert answer.status_code == 200
    server.until(lambda: any(s.name == "request" for s in spans.get_finished_spans()))
    assert _within(spans) == {
        ("request", None): 1,
        ("generation", "request"): 1,
        ("engine", "generation"): 1,
        ("sandbox", "generation"): 1,
        ("record", "request"): 1,
    }
    finished = spans.get_finished_spans()
    assert {span.context.trace_id for span in finished} == {int(CLIENT.split("-")[1], 16)}
    engine = next(span for span in finished if span.name == "engine")
    _, _, sent = server.engine.requests[-1]
    assert sent["traceparent"].split("-")[1:3] == [
        f"{engine.context.trace_id:032x}",
        f"{engine.context.span_id:016x}",
    ]
    request = next(span for span in finished if span.name == "request")
    interaction = answer.headers["x-journeyman-interaction-id"]
    assert dict(request.attributes or {})["journeyman.request_id"] == interaction
    assert not any("add" in span.to_json() for span in finished)


def test_a_stream_is_one_trace_too(server: Running, spans: InMemorySpanExporter) -> None:
    assert server.chat(stream=True).status_code == 200
    server.until(lambda: any(s.name == "request" for s in spans.get_finished_spans()))
    assert _within(spans) == {
        ("request", None): 1,
        ("engine", "request"): 1,
        ("record", "request"): 1,
    }


def test_without_tracing_the_engine_gets_no_trace(server: Running) -> None:
    assert server.chat().status_code == 200
    assert "traceparent" not in server.engine.requests[-1][2]
