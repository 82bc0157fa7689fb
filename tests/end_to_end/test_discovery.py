"""What the bus shows of the service: its endpoints, their figures, how much time is left, and who may do what."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import nats
import pytest
from nats.aio.client import Client

from contracts.api import OPERATIONS
from contracts.wire import ErrorCode
from tests.gateway import PASSWORD, Gateway, database, new_email
from tests.program import Dev, eventually


async def asked(client: Gateway, subject: str) -> dict[str, Any]:
    """A discovery reply."""
    found: dict[str, Any] = json.loads((await client.nc.request(subject, b"", timeout=5)).data)
    return found


async def figures(client: Gateway, subject: str) -> dict[str, Any]:
    """What `$SRV.STATS` says of one operation."""
    stats = await asked(client, "$SRV.STATS.user-service")
    (found,) = [endpoint for endpoint in stats["endpoints"] if endpoint["subject"] == subject]
    return dict(found)


@asynccontextmanager
async def connected(dev: Dev, role: str, refusals: list[str]) -> AsyncIterator[Client]:
    """A connection of one role; what the server refuses it is noted."""

    async def note(error: Exception) -> None:
        refusals.append(str(error))

    nc = await nats.connect(
        dev.ready["natsUrls"][role], inbox_prefix=f"_INBOX.{role}".encode(), error_cb=note, allow_reconnect=False
    )
    try:
        yield nc
    finally:
        await nc.close()


async def settled(nc: Client) -> None:
    """Wait until the server has read all we wrote: the first ping of the library overtakes its buffer."""
    await nc.flush()
    await nc.flush()


async def test_info_lists_every_operation_with_its_schema(client: Gateway) -> None:
    info = await asked(client, "$SRV.INFO.user-service")
    assert (info["name"], info["type"]) == ("user-service", "io.nats.micro.v1.info_response")
    shown = {endpoint["subject"]: endpoint for endpoint in info["endpoints"]}
    assert set(shown) == {operation.subject for operation in OPERATIONS}
    for operation in OPERATIONS:
        endpoint = shown[operation.subject]
        assert endpoint["queue_group"] == "user-service"
        assert endpoint["metadata"]["schema"] == f"urn:user-service:operations:v1:{operation.name}"
        assert endpoint["metadata"]["route"] == operation.route


@pytest.mark.parametrize("subject", ["$SRV.PING", "$SRV.PING.user-service"])
async def test_ping_is_answered(client: Gateway, subject: str) -> None:
    pong = await asked(client, subject)
    assert (pong["name"], pong["type"]) == ("user-service", "io.nats.micro.v1.ping_response")
    assert pong["version"].count(".") == 2
    assert (await asked(client, f"$SRV.PING.user-service.{pong['id']}"))["id"] == pong["id"]


async def test_stats_count_requests_errors_and_the_real_time_of_handling(client: Gateway) -> None:
    email = await client.verified()
    before = await figures(client, "users.v1.auth.login")
    assert (await client.call("auth.login", email=email, password=PASSWORD)).ok
    assert (await client.call("auth.login", email=email, password="Wrong-Password-1")).code == "INVALID_CREDENTIALS"
    assert (await client.call("auth.login", email="nobody")).code == "VALIDATION_ERROR"
    after = await figures(client, "users.v1.auth.login")
    assert after["num_requests"] - before["num_requests"] == 3
    assert after["num_errors"] - before["num_errors"] == 2
    spent = after["processing_time"] - before["processing_time"]
    assert 1_000_000 < spent < 60_000_000_000  # two hashes and two transactions take more than a millisecond
    assert after["average_processing_time"] == after["processing_time"] // after["num_requests"]
    assert after["last_error"] == "VALIDATION_ERROR"


async def test_the_last_error_is_a_code_and_nothing_more(client: Gateway) -> None:
    await client.call("auth.register", email="somebody@private.example", password="short", firstName="\x00")
    stats = await asked(client, "$SRV.STATS.user-service")
    said = {endpoint.get("last_error") or "" for endpoint in stats["endpoints"]}
    assert said <= {code.name for code in ErrorCode} | {""}


@pytest.mark.parametrize(
    ("operation", "code", "number"),
    [
        ("auth.login", "VALIDATION_ERROR", "400"),
        ("me.get", "AUTHENTICATION_REQUIRED", "401"),
        ("admin.users.list", "AUTHENTICATION_REQUIRED", "401"),
    ],
)
async def test_an_error_reply_says_so_in_its_headers(client: Gateway, operation: str, code: str, number: str) -> None:
    reply = await client.call(operation)
    assert (reply.code, reply.headers["Nats-Service-Error-Code"]) == (code, number)
    assert reply.headers["Nats-Service-Error"] == reply.body["error"]["message"]


def late_headers() -> list[dict[str, str]]:
    past = datetime.now(UTC) - timedelta(seconds=1)
    return [
        {"Timeout-Ms": "0"},
        {"Deadline": past.isoformat()},
        {"Deadline": past.isoformat().replace("+00:00", "Z")},
        {"Timeout-Ms": "5000", "Deadline": past.isoformat()},
        {"Timeout-Ms": "0", "Deadline": (past + timedelta(hours=1)).isoformat()},
    ]


async def test_what_comes_too_late_is_not_carried_out(dev: Dev, client: Gateway) -> None:
    for headers in late_headers():
        email = new_email()
        reply = await client.register(email, headers=headers)
        assert (reply.code, reply.headers["Nats-Service-Error-Code"]) == ("DEADLINE_EXCEEDED", "504"), headers
        async with database(dev.ready) as rows:
            assert await rows.fetchval("SELECT count(*) FROM users WHERE email = $1", email) == 0


async def test_a_deadline_far_ahead_is_cut_and_one_ahead_is_kept(client: Gateway) -> None:
    for ahead in (timedelta(seconds=20), timedelta(days=4000)):
        assert (await client.register(headers={"Deadline": (datetime.now(UTC) + ahead).isoformat()})).ok


async def test_the_reply_tells_the_services_clock(client: Gateway) -> None:
    before = datetime.now(UTC)
    said = datetime.fromisoformat((await client.call("auth.jwks")).body["meta"]["timestamp"])
    assert before - timedelta(seconds=1) < said < datetime.now(UTC) + timedelta(seconds=1)
    assert said.tzinfo is not None


async def test_gateway_and_listener_may_do_their_work_and_no_more(dev: Dev) -> None:
    for role in ("gateway", "listener"):
        refusals: list[str] = []
        async with connected(dev, role, refusals) as nc:
            for subject in ("users.v1.>", "_INBOX.>", "_INBOX.worker.>", "_INBOX.adminGateway.x", "users.events.>"):
                await nc.subscribe(subject)
            await nc.subscribe("users.v1.auth.login", queue="user-service")
            foreign = ("users.events.v1.UserRegistered.x", "_INBOX.worker.x", "_INBOX.operator.x", "users.invalidate.x",
                       "$JS.API.STREAM.PURGE.USER_EVENTS", "$JS.API.STREAM.UPDATE.USER_EVENTS")  # fmt: skip
            for subject in foreign:
                await nc.publish(subject, b"{}")
            await settled(nc)
            denied = [refusal for refusal in refusals if "permissions violation" in refusal]
            assert len(denied) == 6 + len(foreign), denied


async def test_a_gateway_is_answered_in_its_own_inbox(dev: Dev) -> None:
    refusals: list[str] = []
    async with connected(dev, "gateway", refusals) as nc:
        reply = json.loads((await nc.request("users.v1.auth.jwks", b"", timeout=5)).data)
        assert reply["data"]["keys"]
    assert refusals == []


def targets() -> list[str]:
    return [
        f"users.events.v1.X.{uuid4()}", "$JS.API.STREAM.PURGE.USER_EVENTS", "$JS.API.STREAM.DELETE.USER_EVENTS",
        "users.dead-letters.email.X.y", "users.replay.email.X.y", "users.invalidate.x", "users.v1.auth.logout",
        "_INBOX.worker.x", "$SRV.PING",
    ]  # fmt: skip


async def test_an_answer_asked_for_elsewhere_reaches_nothing(dev: Dev, client: Gateway) -> None:
    await client.verified()
    js = client.nc.jetstream()
    before = {name: (await js.stream_info(name)).state for name in ("USER_EVENTS", "USER_DEAD_LETTERS")}
    assert before["USER_EVENTS"].messages > 0
    served = await figures(client, "users.v1.auth.jwks")
    for target in targets():
        await client.nc.publish("users.v1.auth.jwks", b"", reply=target)
        await client.nc.publish("users.v1.auth.jwks", b"[]", reply=target)
    wanted = served["num_requests"] + 2 * len(targets())

    async def all_served() -> bool:
        return bool((await figures(client, "users.v1.auth.jwks"))["num_requests"] >= wanted)

    await eventually(all_served, within_s=10, what="every request to be handled")
    assert (await client.call("auth.jwks")).ok
    async with database(dev.ready) as rows:

        async def all_announced() -> bool:
            return bool(await rows.fetchval("SELECT count(*) = 0 FROM outbox"))

        await eventually(all_announced, within_s=10, what="the relay to have nothing left")
    events = (await js.stream_info("USER_EVENTS", subjects_filter="users.events.v1.X.>")).state
    assert events.subjects is None
    after: Mapping[str, Any] = {name: (await js.stream_info(name)).state for name in before}
    assert after["USER_EVENTS"].first_seq == before["USER_EVENTS"].first_seq
    assert after["USER_EVENTS"].messages >= before["USER_EVENTS"].messages
    assert after["USER_DEAD_LETTERS"].messages == before["USER_DEAD_LETTERS"].messages
    assert (await client.call("health.ready")).ok


async def test_a_message_without_a_reply_subject_has_no_effect(dev: Dev, client: Gateway) -> None:
    email = new_email()
    body = {"email": email, "password": PASSWORD, "firstName": "Ada", "lastName": "Lovelace", "acceptTerms": True}
    await client.nc.publish("users.v1.auth.register", json.dumps(body).encode())
    await client.verified()
    async with database(dev.ready) as rows:
        assert await rows.fetchval("SELECT count(*) FROM users WHERE email = $1", email) == 0
