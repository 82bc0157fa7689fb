"""One trace from the gateway's `traceparent` to the mail; and nobody waits for a collector that is away."""

import json
import secrets
import time
from contextlib import ExitStack
from pathlib import Path

from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.collector import Collector, attributes_of, collector
from tests.gateway import Gateway, gateway, new_email
from tests.program import Dev, until

Kind = Span.SpanKind
AWAY = "the collector takes no traces"
PASSWORD = "Analytical-Engine-1843"


async def test_a_registration_is_one_trace_and_nobody_waits_for_a_collector_that_is_away(tmp_path: Path) -> None:
    with ExitStack() as held:
        found = held.enter_context(collector())
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": found.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}
        async with Dev(tmp_path / "data", **env) as dev:
            async with gateway(dev.ready) as client:
                trace_id = await require_one_trace(found, client)
                lines = [json.loads(line) for line in dev.log.splitlines() if f"req-{trace_id}" in line]
                assert [(line["message"], line["traceId"]) for line in lines] == [("request", trace_id)]
                await require_a_refusal_without_words(found, client)
                held.close()
                began = time.monotonic()
                for _ in range(50):
                    assert (await client.call("auth.jwks", headers={"traceparent": traceparent()[1]})).ok
                assert time.monotonic() - began < 5
            await until(lambda: AWAY in dev.log, within_s=10, what="the log to say that the collector is away")
            began = time.monotonic()
        assert time.monotonic() - began < 25  # its secrets are looked for, too
    assert dev.log.count(AWAY) == 1
    assert "Traceback" not in dev.log


def traceparent() -> tuple[str, str]:
    """A trace as a gateway begins it: its id, and the header."""
    trace_id = secrets.token_hex(16)
    return trace_id, f"00-{trace_id}-{secrets.token_hex(8)}-01"


async def require_one_trace(found: Collector, client: Gateway) -> str:
    trace_id, header = traceparent()
    email = new_email()
    reply = await client.call(
        "auth.register", headers={"traceparent": header, "Request-Id": f"req-{trace_id}"},
        email=email, password=PASSWORD, firstName="Ada", lastName="Lovelace", acceptTerms=True,
    )  # fmt: skip
    await client.mail_to(email, "verify-email")

    def named(name: str) -> list[Span]:
        return [span for span in found.of_trace(trace_id) if span.name == name]

    awaited = ("send mail", *(f"{group} EmailVerificationRequested" for group in ("email", "audit", "cache")))
    await until(lambda: all(named(name) for name in awaited), within_s=10, what="the spans of all groups")
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
    return trace_id


async def require_a_refusal_without_words(found: Collector, client: Gateway) -> None:
    trace_id, header = traceparent()
    refused = await client.call("me.get", headers={"traceparent": header})
    assert refused.code == "AUTHENTICATION_REQUIRED"
    await until(lambda: found.of_trace(trace_id), within_s=10, what="the span of a refusal")
    (request,) = found.of_trace(trace_id)
    assert (request.name, attributes_of(request)["error.type"]) == ("users.v1.me.get", "NoCaller")
    assert request.status.code == Status.STATUS_CODE_UNSET
