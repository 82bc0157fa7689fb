"""NATS goes and comes back, requests that nobody waits for any more, and what is too large for its `max_payload`."""

import asyncio
import os
import signal
import urllib.request
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import nats
import pytest
from nats.errors import Error as NatsError

from tests.faults.house import House, Run
from tests.faults.late import late_registration, require_dropped
from tests.faults.ledger import (
    Ledger,
    emails,
    require_audit,
    require_mail,
    require_rows,
    require_stream,
    until_finished,
)
from tests.faults.people import BACK_S_MAX, UNVERIFIED, answering_after_s
from tests.gateway import PASSWORD, Gateway, new_email, stored_events
from tests.program import eventually, until

TOO_LARGE = "an event is too large for the bus"


async def test_a_bus_that_goes_and_comes_back(
    house: House, record_testsuite_property: Callable[[str, object], None]
) -> None:
    wanted, ledger = emails(400), Ledger()
    async with house.run() as run:
        async with house.gateway() as client:
            registering = asyncio.create_task(ledger.register(client, wanted, at_once=20))
            await until(lambda: len(ledger.accepted) >= 60, within_s=20, what="60 registrations")
            await house.servers.stop_one("nats")
            registering.cancel()  # what was asked last has no answer
            await asyncio.wait([registering])
        assert len(ledger.accepted) < 400
        await house.servers.start_one("nats")
        back_s = await answering_after_s(house)
        record_testsuite_property("bus back, seconds", back_s)
        assert back_s < BACK_S_MAX
        async with house.gateway() as client:
            await ledger.register(client, wanted, at_once=20)
        assert set(ledger.accepted) == set(wanted)
        await until_finished(house.ready, ledger.user_ids.values(), within_s=45)
        assert not run.has_ended
    events = await require_stream(house.ready, await require_rows(house.ready, ledger.user_ids))
    await require_audit(house.ready, (event for of_user in events.values() for event in of_user))
    require_mail(house.mail_dir, wanted, twice_max=0)


async def test_what_a_client_kept_while_the_bus_was_away_is_not_carried_out_late(house: House) -> None:
    email = new_email()
    async with house.run() as run:
        # Back later than the service, so that what it kept finds somebody to take it.
        client = await nats.connect(house.at.nats_url, reconnect_time_wait=2, max_reconnect_attempts=-1, error_cb=quiet)
        try:
            async with house.without("nats"):
                body, headers = late_registration(email)
                with pytest.raises(NatsError):
                    await client.request("users.v1.auth.register", body, timeout=0.5, headers=headers)
                await asyncio.sleep(0.5)
            await require_dropped(house, run, email, headers["Request-Id"])
        finally:
            await client.close()


async def quiet(_: Exception) -> None:
    """That the bus is away is what the test is about."""


async def test_what_reached_a_frozen_process_is_not_carried_out_late(house: House) -> None:
    email = new_email()
    async with house.run() as run, house.gateway() as client:
        body, headers = late_registration(email)
        run.send(signal.SIGSTOP)
        with pytest.raises(NatsError):
            await client.nc.request("users.v1.auth.register", body, timeout=0.5, headers=headers)
        await asyncio.sleep(0.5)
        run.send(signal.SIGCONT)
        await require_dropped(house, run, email, headers["Request-Id"])


@asynccontextmanager
async def max_payload(house: House, limit: str) -> AsyncIterator[None]:
    """nats-server is started again with this limit, and afterwards with its usual one."""
    async with house.without("nats"):
        os.environ["USER_SERVICE_DEV_NATS_MAX_PAYLOAD"] = limit
    try:
        yield
    finally:
        async with house.without("nats"):
            del os.environ["USER_SERVICE_DEV_NATS_MAX_PAYLOAD"]


def require_undisturbed(run: Run) -> None:
    """No connection of the process has been lost."""
    assert not run.has_ended
    assert run.lines("nats disconnected") == run.lines("nats reconnected") == run.lines("nats error") == []


async def test_a_reply_too_large_for_the_bus_is_an_error_and_costs_no_connection(house: House) -> None:
    async with max_payload(house, "16KB"), house.run(**UNVERIFIED) as run, house.gateway() as client:
        await Ledger().register(client, emails(40), at_once=8)
        admin = await client.admin()
        for _ in range(3):
            refused = await client.call("admin.users.list", access=admin, limit=100)
            assert refused.code == "PAYLOAD_TOO_LARGE"
            assert refused.headers["Nats-Service-Error-Code"] == "413"
        assert len((await client.call("admin.users.list", access=admin, limit=5)).data) == 5
        require_undisturbed(run)


async def gauge(run: Run, name: str) -> float:
    """A figure of the process' metrics page."""
    url = f"http://127.0.0.1:{run.http_port}/metrics"

    def read() -> str:
        with urllib.request.urlopen(url, timeout=5) as page:
            return str(page.read().decode())

    lines = (await asyncio.to_thread(read)).splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"{name} ")))


async def write_much(client: Gateway) -> UUID:
    """A new user whose fourth event takes more than 5 KB, and whose fifth is small."""
    email = new_email()
    user_id = UUID((await client.register(email)).data["user"]["id"])
    access = (await client.call("auth.login", email=email, password=PASSWORD)).data["tokens"]["accessToken"]
    links = [f"https://example.com/{'a' * 470}{number}" for number in range(10)]
    assert (await client.call("profile.update", access=access, socialLinks=links)).ok
    assert (await client.call("profile.update", access=access, bio="short")).ok
    return user_id


async def are_announced(house: House, versions: Mapping[UUID, int]) -> bool:
    """Are so many events of these users on the stream?"""
    found = await stored_events(house.ready)
    return sum(UUID(event["aggregateId"]) in versions for event in found) == sum(versions.values())


def require_told(lines: list[dict[str, Any]], events: dict[UUID, dict[str, Any]]) -> None:
    """One line for each: which event it is, how large, what the limit is, and what to do."""
    assert {UUID(line["userId"]): line["eventId"] for line in lines} == {
        user_id: event["id"] for user_id, event in events.items()
    }
    assert len(lines) == len(events)
    for line in lines:
        assert (line["level"], line["type"], line["maxPayload"]) == ("error", "ProfileUpdated", 12 * 1024)
        assert 4 * 1024 < line["size"] < 8 * 1024
        assert f"set max_payload of nats-server to {line['size'] + 8 * 1024} or more" in line["advice"]


async def test_an_event_too_large_for_the_bus_waits_in_sight_and_goes_out_once_the_limit_is_raised(
    house: House,
) -> None:
    relay, ledger = house.run("relay"), Ledger()
    try:
        async with house.run("requests", **UNVERIFIED):
            async with house.gateway() as client:
                writers = [await write_much(client) for _ in range(2)]
            async with max_payload(house, "12KB"):
                await relay.start()
                await until(lambda: len(relay.lines(TOO_LARGE)) >= 2, within_s=15, what="errors in the log")
                await answering_after_s(house)  # the requests had to find the bus again, too
                async with house.gateway() as client:
                    await ledger.register(client, emails(30), at_once=4)
                others = await require_rows(house.ready, ledger.user_ids)
                assert len(others) == 30
                await eventually(lambda: are_announced(house, others), within_s=10, what="the events of others")
                await require_stream(house.ready, others | dict.fromkeys(writers, 3))
                assert await gauge(relay, "relay_users_set_aside") == 2
                require_undisturbed(relay)
        await eventually(lambda: are_announced(house, dict.fromkeys(writers, 5)), within_s=15, what="the large events")

        async def nobody_is_set_aside() -> bool:
            return await gauge(relay, "relay_users_set_aside") == 0

        await eventually(nobody_is_set_aside, within_s=10, what="the figure to follow")
        assert not relay.has_ended
    finally:
        await relay.stop()
    found = await require_stream(house.ready, others | dict.fromkeys(writers, 5))
    require_told(relay.lines(TOO_LARGE), {user_id: found[user_id][3] for user_id in writers})
    too_large = {found[user_id][3]["id"]: found[user_id][3]["metadata"]["requestId"] for user_id in writers}
    assert {line["eventId"]: line["requestId"] for line in relay.lines(TOO_LARGE)} == too_large
