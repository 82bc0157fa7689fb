"""One trace from the gateway's `traceparent` to the mail; and nobody waits for a collector that is away."""

import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.collector import Collector, attributes_of, collector
from tests.gateway import Gateway, gateway, new_email
from tests.program import Dev, until

Kind = Span.SpanKind
PASSWORD = "Analytical-Engine-1843"


async def test_a_registration_is_one_trace_and_nobody_waits_for_a_collector_that_is_away(tmp_path: Path) -> None:
    with collector() as found:
        dev = Dev(tmp_path / "data", OTEL_EXPORTER_OTLP_ENDPOINT=found.url, OTEL_BSP_SCHEDULE_DELAY="100")
        await dev.start()
        async with gateway(dev.ready) as client:
            await require_one_trace(found, client)
            await require_a_refusal_without_words(found, client)
    async with dev_that_runs(dev), gateway(dev.ready) as client:
        began = time.monotonic()
        for _ in range(50):
            assert (await client.call("auth.jwks", headers={"traceparent": traceparent()[1]})).ok
        assert time.monotonic() - began < 5
        began = time.monotonic()
    assert time.monotonic() - began < 15
    assert "Traceback" not in dev.log
    assert dev.log.count("the collector takes no traces") == 1


@asynccontextmanager
async def dev_that_runs(dev: Dev) -> AsyncIterator[None]:
    """Looked through for secrets at its end, as every `dev` is."""
    try:
        yield
    finally:
        await dev.__aexit__(None, None, None)


def traceparent() -> tuple[str, str]:
    """A trace as a gateway begins it: its id, and the header."""
    trace_id = secrets.token_hex(16)
    return trace_id, f"00-{trace_id}-{secrets.token_hex(8)}-01"


async def require_one_trace(found: Collector, client: Gateway) -> None:
    trace_id, header = traceparent()
    email = new_email()
    reply = await client.call(
        "auth.register", headers={"traceparent": header, "Request-Id": f"req-{trace_id}"},
        email=email, password=PASSWORD, firstName="Ada", lastName="Lovelace", acceptTerms=True,
    )  # fmt: skip
    await client.mail_to(email, "verify-email")

    def named(name: str) -> list[Span]:
        return [span for span in found.of_trace(trace_id) if span.name == name]

    await until(lambda: len(named("cache UserRegistered")) == 1 and named("send mail"), within_s=10, what="the spans")
    await until(lambda: named("email EmailVerificationRequested"), within_s=10, what="the span of the delivery")
    (request,) = named("users.v1.auth.register")
    assert (request.parent_span_id.hex(), request.kind) == (header.split("-")[2], Kind.SPAN_KIND_SERVER)
    assert attributes_of(request)["code"] == "OK"
    statements = [
        span
        for span in found.of_trace(trace_id)
        if span.parent_span_id == request.span_id and span.kind == Kind.SPAN_KIND_CLIENT
    ]
    assert any("INSERT INTO users" in attributes_of(span)["db.query.text"] for span in statements)
    (published,) = named("publish EmailVerificationRequested")
    assert (published.parent_span_id, published.kind) == (request.span_id, Kind.SPAN_KIND_PRODUCER)
    (delivered,) = named("email EmailVerificationRequested")
    assert (delivered.parent_span_id, delivered.kind) == (published.span_id, Kind.SPAN_KIND_CONSUMER)
    assert attributes_of(delivered)["outcome"] == "sent"
    (mailed,) = named("send mail")
    assert (mailed.parent_span_id, mailed.kind) == (delivered.span_id, Kind.SPAN_KIND_CLIENT)
    for group in ("audit", "cache"):
        (other,) = named(f"{group} EmailVerificationRequested")
        assert other.parent_span_id == published.span_id
    assert not [span for span in found.of_trace(trace_id) if span.status.code == Status.STATUS_CODE_ERROR]

    sent = b"".join(found.raw)
    for private in (email, reply.data["user"]["id"], PASSWORD, "Ada", "Lovelace", "example"):
        assert private.encode() not in sent, private


async def require_a_refusal_without_words(found: Collector, client: Gateway) -> None:
    trace_id, header = traceparent()
    refused = await client.call("me.get", headers={"traceparent": header})
    assert refused.code == "AUTHENTICATION_REQUIRED"
    await until(lambda: found.of_trace(trace_id), within_s=10, what="the span of a refusal")
    (request,) = found.of_trace(trace_id)
    assert (request.name, attributes_of(request)["error.type"]) == ("users.v1.me.get", "NoCaller")
    assert request.status.code == Status.STATUS_CODE_UNSET
