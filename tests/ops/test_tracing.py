"""Spans: none while off; a tree when on; sent to a collector over HTTP."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from ops import tracing
from ops.errors import SettingsError


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    tracing.configure(None, "test", exporter=exporter)
    yield exporter
    tracing.configure(None, "test")


def test_off_imports_nothing_and_says_nothing() -> None:
    code = (
        "import sys; from ops import tracing\n"
        "with tracing.span('request', path='/') as span: span.set(status=200)\n"
        "assert tracing.headers() == span.headers() == {}\n"
        "assert not [m for m in sys.modules if m.startswith('opentelemetry')]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_spans_within_are_children_and_those_aside_are_nobodys_parents(
    spans: InMemorySpanExporter,
) -> None:
    with tracing.span("request", path="/v1") as outer:
        with tracing.aside("engine") as engine:
            assert engine.headers()["traceparent"] != outer.headers()["traceparent"]
            with tracing.span("sandbox"):
                pass
        outer.set(status=200, nothing=None)
    found = {span.name: span for span in spans.get_finished_spans()}
    request = found["request"]
    assert request.parent is None
    assert dict(request.attributes or {}) == {"journeyman.path": "/v1", "journeyman.status": 200}
    for name in ("engine", "sandbox"):
        parent = found[name].parent
        assert parent is not None
        assert parent.span_id == request.context.span_id


def test_a_trace_goes_on_in_the_next_process(spans: InMemorySpanExporter) -> None:
    with tracing.span("cycle"):
        sent = tracing.headers()
    with tracing.span("request", parent=sent):
        pass
    with tracing.span("request", parent={"traceparent": "rubbish"}):
        pass
    cycle, inner, own = spans.get_finished_spans()
    assert inner.context.trace_id == cycle.context.trace_id
    assert own.parent is None


async def test_an_error_is_named_without_its_words(spans: InMemorySpanExporter) -> None:
    with pytest.raises(ValueError, match="secret"), tracing.span("stage"):
        raise ValueError("a user's secret")
    with pytest.raises(asyncio.CancelledError), tracing.span("engine"):
        raise asyncio.CancelledError
    failed, cancelled = spans.get_finished_spans()
    assert (failed.status.status_code.name, failed.status.description) == ("ERROR", "ValueError")
    assert "secret" not in failed.to_json()
    assert cancelled.status.is_ok or cancelled.status.status_code.name == "UNSET"
    assert dict(cancelled.attributes or {}) == {"journeyman.cancelled": True}


def test_a_collector_gets_them_over_http() -> None:
    got: list[tuple[str, ExportTraceServiceRequest]] = []
    arrived = threading.Event()

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            import gzip

            data = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                data = gzip.decompress(data)
            got.append((self.path, ExportTraceServiceRequest.FromString(data)))
            self.send_response(200)
            self.end_headers()
            arrived.set()

        def log_message(self, *arguments: object) -> None:
            pass

    collector = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    try:
        tracing.configure(f"http://127.0.0.1:{collector.server_address[1]}/", "journeyman-test")
        with tracing.span("request", path="/v1/chat/completions"):
            pass
        tracing.flush()
        assert arrived.wait(10)
    finally:
        tracing.configure(None, "test")
        collector.shutdown()
        collector.server_close()
    path, sent = got[0]
    assert path == "/v1/traces"
    [resource] = sent.resource_spans
    names = {a.key: a.value.string_value for a in resource.resource.attributes}
    assert names["service.name"] == "journeyman-test"
    assert resource.scope_spans[0].spans[0].name == "request"


def test_without_the_extra_a_set_endpoint_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(SettingsError, match="the extra `tracing`"):
        tracing.configure("http://127.0.0.1:4318", "test")
