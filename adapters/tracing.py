"""Traces, where settings name a collector: one trace from the gateway's `traceparent` to the mail that comes of it.

Set up once for the process, as logs are. Where no collector is named, nothing of OpenTelemetry is imported, a span is
one object that does nothing, and statements are not looked at. No span holds anything personal: names of operations,
events and groups, texts of statements without their values, classes of errors.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Literal

from adapters.settings import Settings

if TYPE_CHECKING:
    import asyncpg

    from adapters.otel import Span, Tracer

Kind = Literal["server", "producer", "consumer", "client"]
STOP_S = 2.0
"""How long a stop waits for the last spans to be sent."""
_NO_SPAN: AbstractContextManager[None] = nullcontext()
_tracer: "Tracer | None" = None


@asynccontextmanager
async def exported_traces(settings: Settings) -> AsyncIterator[None]:
    """Send spans to the collector that settings name, while the block lasts; one that is away costs spans alone."""
    global _tracer  # noqa: PLW0603 - as logs: handed to every function that may have a span, it would be everywhere
    if settings.traces_url is None:
        yield
        return
    from adapters.otel import Tracer

    tracer = _tracer = Tracer(settings.traces_url.get_secret_value(), settings.environment)
    try:
        yield
    finally:
        _tracer = None
        ending = threading.Thread(target=tracer.close, daemon=True)  # a collector that hangs must not keep us
        ending.start()
        await asyncio.to_thread(ending.join, STOP_S)


def span(kind: Kind, *words: str, parent: str | None = None) -> "AbstractContextManager[Span | None]":
    """A span around the block, named by these words: of `parent` (a `traceparent`), else of the span it stands in."""
    return _NO_SPAN if _tracer is None else _tracer.span(kind, " ".join(words), parent)


def statement_listener() -> "Callable[[asyncpg.connection.LoggedQuery], None] | None":
    """What a connection must tell of its statements; None while nobody wants to know."""
    return None if _tracer is None else _tracer.note_statement
