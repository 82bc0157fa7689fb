"""OpenTelemetry behind `adapters.tracing`, which alone imports this, once a collector is named: the extra `otel`."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import asyncpg
import structlog
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from structlog.contextvars import bind_contextvars

from adapters.telemetry import SERVICE, release
from domain.refusals import Refusal

log = structlog.get_logger()

EXPORT_S = 3.0
SILENCE_S = 60.0
WAITING_MAX = 2048
"""Spans that wait for the collector at most; what comes beyond is dropped."""
_STATEMENT_CHARACTERS_MAX = 2000
_KINDS = {
    "server": SpanKind.SERVER,
    "producer": SpanKind.PRODUCER,
    "consumer": SpanKind.CONSUMER,
    "client": SpanKind.CLIENT,
}
_OF_THE_BUS = frozenset({"server", "producer", "consumer"})


def _first_word(statement: str) -> str:
    return statement.lstrip().partition(" ")[0].partition("\n")[0].strip(";").upper() or "EMPTY"


class Span:
    """A span that has begun."""

    def __init__(self, span: trace.Span) -> None:
        self._span = span

    @property
    def traceparent(self) -> str:
        """How others continue it (W3C trace context)."""
        found = self._span.get_span_context()
        return f"00-{found.trace_id:032x}-{found.span_id:016x}-{found.trace_flags:02x}"

    def note(self, name: str, value: str) -> None:
        """Say something about it: a word of ours, never what somebody sent."""
        self._span.set_attribute(name, value)


class _QuietExporter(OTLPSpanExporter):
    """Says once in a while that the collector takes nothing, where the library says so of each batch."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(endpoint, timeout=EXPORT_S)
        self._silent_until = 0.0
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch; a failure costs the batch alone."""
        result = super().export(spans)
        now = time.monotonic()
        if result is SpanExportResult.FAILURE and now > self._silent_until:
            self._silent_until = now + SILENCE_S
            log.warning("the collector takes no traces", spans=len(spans))
        return result


class Tracer:
    """Makes spans, and sends them in batches from a thread of its own: nobody waits for a collector."""

    def __init__(self, endpoint: str, environment: str) -> None:
        resource = Resource.create(
            {"service.name": SERVICE, "service.version": release(), "deployment.environment.name": environment}
        )
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        exporter = _QuietExporter(f"{endpoint.rstrip('/')}/v1/traces")
        self._provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=WAITING_MAX))
        self._tracer = self._provider.get_tracer(SERVICE, release())

    @contextmanager
    def span(self, kind: str, name: str, parent: str | None) -> Iterator[Span]:
        """A span around the block, which is current in it. Of an error it says the class alone."""
        context = None
        if parent is not None:
            context = TraceContextTextMapPropagator().extract({"traceparent": parent}, Context())
        attributes = {"messaging.system": "nats"} if kind in _OF_THE_BUS else None
        with self._tracer.start_as_current_span(
            name, context, _KINDS[kind], attributes, record_exception=False, set_status_on_exception=False
        ) as span:
            if kind in _OF_THE_BUS:
                bind_contextvars(traceId=f"{span.get_span_context().trace_id:032x}")
            try:
                yield Span(span)
            except BaseException as error:
                span.set_attribute("error.type", type(error).__name__)
                if not isinstance(error, Refusal):
                    span.set_status(StatusCode.ERROR)
                raise

    def note_statement(self, done: asyncpg.connection.LoggedQuery) -> None:
        """A span of a statement that is over, within the span in which it was asked; what belongs to none has none."""
        if not trace.get_current_span().is_recording():
            return
        ended_ns = time.time_ns()
        span = self._tracer.start_span(
            _first_word(done.query),
            kind=SpanKind.CLIENT,
            attributes={
                "db.system.name": "postgresql",
                "db.query.text": done.query.strip()[:_STATEMENT_CHARACTERS_MAX],
            },
            start_time=ended_ns - round(done.elapsed * 1e9),
        )
        if done.exception is not None:
            span.set_attribute("error.type", type(done.exception).__name__)
            span.set_status(StatusCode.ERROR)
        span.end(ended_ns)

    def close(self) -> None:
        """Send what waits; blocks its caller while the collector hangs."""
        self._provider.shutdown()
