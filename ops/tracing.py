"""Traces for OpenTelemetry: what a request or a cycle spent its time on, across processes.

    request → generation → engine (vLLM's own spans follow, by W3C traceparent)
                         → sandbox
            → record
    cycle   → stage → request …

Off unless `configure` was called with an endpoint; then a span is one comparison and nothing of
OpenTelemetry is imported. Needs the extra `tracing`. Spans go out in batches by OTLP over HTTP,
from a thread of their own: a collector that is away costs nothing but the spans. Texts of users
and programs never enter a span; ids, names and numbers do.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from ops.errors import SettingsError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span, Tracer

Value = str | int | float | bool
_tracer: Tracer | None = None
_provider: TracerProvider | None = None


class Off:
    """The span that is none."""

    def set(self, **attributes: Value | None) -> None:
        """Do nothing."""

    def headers(self) -> dict[str, str]:
        """Return no headers."""
        return {}


class On:
    """A span that is being taken."""

    def __init__(self, span: Span) -> None:
        self._span = span

    def set(self, **attributes: Value | None) -> None:
        """Add attributes; None is left out."""
        for name, value in attributes.items():
            if value is not None:
                self._span.set_attribute(f"journeyman.{name}", value)

    def headers(self) -> dict[str, str]:
        """Return the headers that make another process's spans children of this one."""
        from opentelemetry.trace import set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier, set_span_in_context(self._span))
        return carrier


_OFF: AbstractContextManager[Off | On] = contextlib.nullcontext(Off())


def configure(
    endpoint: str | None,
    service: str,
    *,
    share: float = 1.0,
    exporter: SpanExporter | None = None,
) -> None:
    """Begin to take spans, or stop where there is no endpoint.

    Args:
        endpoint: of an OTLP/HTTP collector, without `/v1/traces`.
        service: this process's name in traces.
        share: part of the traces that are taken, where the caller's own decides nothing.
        exporter: takes each span at once instead of the endpoint; for tests.

    Raises:
        SettingsError: the extra `tracing` is not installed.
    """
    global _tracer, _provider
    if _provider is not None:
        _provider.shutdown()
    _tracer = _provider = None
    if endpoint is None and exporter is None:
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
    except ImportError as error:
        raise SettingsError(
            "tracing.endpoint is set, but OpenTelemetry is not installed: the extra `tracing` "
            f"brings it ({error})"
        ) from error
    provider = TracerProvider(
        resource=Resource.create({"service.name": service}), sampler=ParentBasedTraceIdRatio(share)
    )
    if exporter is not None:
        provider.add_span_processor(SimpleSpanProcessor(exporter))
    else:
        url = f"{(endpoint or '').rstrip('/')}/v1/traces"
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url)))
    _tracer, _provider = provider.get_tracer("journeyman"), provider


def flush() -> None:
    """Send what has been taken so far."""
    if _provider is not None:
        _provider.force_flush()


def span(
    name: str, *, parent: Mapping[str, str] | None = None, **attributes: Value | None
) -> AbstractContextManager[Off | On]:
    """Take a span of the block, and make it the parent of those within.

    Args:
        name: of a fixed few; what varies goes into attributes.
        parent: headers of the request that this answers.
        attributes: ids and numbers; None is left out.
    """
    return _OFF if _tracer is None else _taken(_tracer, name, parent, attributes, current=True)


def aside(name: str, **attributes: Value | None) -> AbstractContextManager[Off | On]:
    """Take a span of the block that is nobody's parent here.

    For blocks within generators: what runs between two of their items is not theirs.
    """
    return _OFF if _tracer is None else _taken(_tracer, name, None, attributes, current=False)


def headers() -> dict[str, str]:
    """Return the headers that make another process's spans children of the current one."""
    if _tracer is None:
        return {}
    from opentelemetry.trace import get_current_span

    return On(get_current_span()).headers()


@contextlib.contextmanager
def _taken(
    tracer: Tracer,
    name: str,
    parent: Mapping[str, str] | None,
    attributes: Mapping[str, Any],
    *,
    current: bool,
) -> Iterator[On]:
    from opentelemetry.trace import Status, StatusCode, use_span
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    context = None if parent is None else TraceContextTextMapPropagator().extract(dict(parent))
    span = tracer.start_span(name, context=context)
    taken = On(span)
    taken.set(**attributes)
    held = (
        use_span(span, record_exception=False, set_status_on_exception=False)
        if current
        else contextlib.nullcontext()
    )
    try:
        with held:
            yield taken
    except (asyncio.CancelledError, GeneratorExit):
        taken.set(cancelled=True)  # a client that left, or an attempt that was not needed any more
        raise
    except BaseException as error:
        # The class only: a message may quote what a user sent.
        span.set_status(Status(StatusCode.ERROR, type(error).__name__))
        raise
    finally:
        span.end()
