"""JetStream's data are gone, or an older copy of them is put back: streams are refilled, and nothing happens twice."""

import asyncio
import json
import shutil
import signal
import sys
from collections import Counter
from contextlib import suppress
from typing import Any
from uuid import UUID

import pytest
from nats.errors import Error as NatsError
from nats.js.errors import NotFoundError

from adapters.environment import read_settings
from adapters.settings import Settings
from adapters.streams import provision
from handlers.database_findings import streams_compared
from tests.faults.house import ADMIN_EMAIL, House
from tests.faults.ledger import (
    GROUPS,
    Ledger,
    emails,
    mails_by_address,
    require_mail,
    require_rows,
    require_stream,
    until_finished,
)
from tests.faults.mortal_republish import POINTS, republish
from tests.faults.test_dead_letters import QUICK, Ward, letters_stand, mail_server
from tests.gateway import PASSWORD, Gateway, database, stored_events
from tests.integration.mail_server import MailServer
from tests.program import clean_environment, eventually

SETTINGS = QUICK | {"USER_SERVICE_REQUIRE_VERIFIED_EMAIL": "false"}
_DONE = """
SELECT NOT EXISTS (SELECT FROM outbox) AND NOT EXISTS (
    SELECT FROM stream_marks WHERE lost_at IS NOT NULL AND refilled_at IS NULL)
    AND (SELECT count(*) FROM stream_marks WHERE lost_at IS NOT NULL) = $1"""


def mails(server: MailServer) -> Counter[str]:
    """How many came to each user; what is put back may hold the one mail that the house's admin has never had."""
    found = Counter(address for to, _ in server.received for address in to)
    assert found.pop(ADMIN_EMAIL, 0) <= 1
    return found


async def ids_on_stream(house: House, ledger: Ledger) -> Counter[str]:
    """What a listener who keeps the ids has of these users."""
    ours = {str(user_id) for user_id in ledger.user_ids.values()}
    return Counter(event["id"] for event in await stored_events(house.ready) if event["aggregateId"] in ours)


async def announced_letters(house: House, ledger: Ledger) -> Counter[str]:
    """What a listener finds of these users on the stream of letters, by the letters' ids."""
    found: Counter[str] = Counter()
    ours = {str(user_id) for user_id in ledger.user_ids.values()}
    async with house.worker() as nc:
        js = nc.jetstream()
        try:
            state = (await js.stream_info("USER_DEAD_LETTERS")).state
        except NotFoundError:
            return found
        for sequence in range(max(state.first_seq, 1), state.last_seq + 1):
            message = await js.get_msg("USER_DEAD_LETTERS", seq=sequence)
            if (message.subject or "").rpartition(".")[2] in ours:
                found[(message.headers or {})["Dead-Letter-Id"]] += 1
    return found


async def marked(house: House) -> None:
    """The service has looked at its streams."""

    async def is_so() -> bool:
        async with database(house.ready) as rows:
            return bool(await rows.fetchval("SELECT count(*) = 2 FROM stream_marks"))

    await eventually(is_so, within_s=20, what="the first look at the streams")


async def refilled(house: House, streams: int) -> None:
    async def is_so() -> bool:
        async with database(house.ready) as rows:
            return bool(await rows.fetchval(_DONE, streams))

    await eventually(is_so, within_s=30, what="the streams to be refilled")


async def doctor_says(house: House) -> str:
    async with database(house.ready) as rows:
        findings = await streams_compared(rows)
    assert all(finding.good for finding in findings)
    return "\n".join(f"{finding.what}: {finding.says}" for finding in findings)


async def verified(house: House, ledger: Ledger) -> tuple[int, dict[str, Any]]:
    """Exit code and report of `events verify`, from the first of these users on."""
    async with database(house.ready) as rows:
        first = await rows.fetchval(
            "SELECT min(position) FROM events WHERE aggregate_id = ANY($1)", list(ledger.user_ids.values())
        )
    code, out, err = await house.command("events", "verify", "--from", str(first), "--json")
    assert code < 2, err
    return code, json.loads(out)


async def a_letter_is_announced(house: House, ledger: Ledger) -> None:
    async def is_so() -> bool:
        return len(await announced_letters(house, ledger)) == 1

    await eventually(is_so, within_s=20, what="letters to be announced")


async def sign_in(client: Gateway, email: str) -> str:
    reply = await client.call("auth.login", email=email, password=PASSWORD)
    return str(reply.data["tokens"]["accessToken"])


async def answered(client: Gateway) -> None:
    """The service is back on the bus."""
    async with asyncio.timeout(20):
        while True:
            with suppress(NatsError):
                if (await client.call("health.ready", timeout=2)).ok:
                    return
            await asyncio.sleep(0.05)


async def rename(house: House, access: str, name: str) -> None:
    """As soon as somebody answers: the bus may have been away."""
    async with house.gateway() as client:
        await answered(client)
        assert (await client.call("me.update", access=access, firstName=name)).ok


async def all_handed_out(house: House) -> None:
    """Every group has had all that the stream holds, and has answered."""

    async def is_so() -> bool:
        async with house.worker() as nc:
            places = [await nc.jetstream().consumer_info("USER_EVENTS", group) for group in GROUPS]
        return not any(place.num_pending or place.num_ack_pending for place in places)

    await eventually(is_so, within_s=30, what="all groups to have had all")


async def versions(house: House, ledger: Ledger) -> dict[UUID, int]:
    return await require_rows(house.ready, ledger.user_ids)


async def test_data_that_are_gone_are_put_back_from_the_tables(house: House) -> None:
    wanted, ledger, ward = emails(20), Ledger(), Ward()
    ward.healed, ward.refuses = True, {wanted[0]}
    async with (
        mail_server(ward) as server,
        house.run(SMTP_URL=server.url, **SETTINGS) as run,
        house.gateway() as client,
    ):
        await marked(house)
        await ledger.register(client, wanted, at_once=5)
        access = await sign_in(client, wanted[1])
        await letters_stand(house, ledger, 1)
        await a_letter_is_announced(house, ledger)
        letters, before = await announced_letters(house, ledger), await ids_on_stream(house, ledger)
        async with house.without("nats"):
            shutil.rmtree(house.bus_files)
        # One of them does something at once: that must not stand in front of what is lost.
        await rename(house, access, "Grace")
        await refilled(house, 2)
        by_user = await require_stream(house.ready, await versions(house, ledger))
        after = await ids_on_stream(house, ledger)
        new = {event["id"] for event in by_user[ledger.user_ids[wanted[1]]] if event["type"] == "ProfileUpdated"}
        assert set(before) <= set(after)
        assert set(after) - set(before) == new
        assert set(after.values()) == {1}
        await a_letter_is_announced(house, ledger)
        assert await announced_letters(house, ledger) == letters
        assert "USER_DEAD_LETTERS: compared with its table" in (says := await doctor_says(house))
        assert "found made anew at" in says
        await all_handed_out(house)
        code, report = await verified(house, ledger)
        assert (code, report["faults"], report["users"] >= len(wanted)) == (0, 0, True), report
        assert {
            line["what"] for line in run.lines("a stream has lost messages; they are put back from the tables")
        } == {"made anew"}
        async with database(house.ready) as rows:
            assert (
                await rows.fetchval("SELECT count(*) FROM dead_letters WHERE event_id = ANY($1)", [*map(UUID, after)])
                == 1
            )
    assert mails(server) == Counter(wanted[1:])


async def test_an_older_copy_is_filled_up_with_what_it_lacks(house: House) -> None:
    old, later, ledger, ward = emails(8), emails(8), Ledger(), Ward()
    ward.healed = True
    copy = house.base / "older copy"
    async with mail_server(ward) as server, house.run(SMTP_URL=server.url, **SETTINGS) as run:
        await marked(house)
        async with house.gateway() as client:
            await ledger.register(client, old, at_once=4)
        await until_finished(house.ready, ledger.user_ids.values(), within_s=20)
        async with house.without("nats"):
            shutil.copytree(house.bus_files, copy)
        async with house.gateway() as client:
            await answered(client)
            accesses = [await sign_in(client, email) for email in old]
            await ledger.register(client, later, at_once=4)
        for access in accesses:
            await rename(house, access, "Grace")
        await until_finished(house.ready, ledger.user_ids.values(), within_s=20)
        before = await ids_on_stream(house, ledger)
        async with house.without("nats"):
            shutil.rmtree(house.bus_files)
            copy.rename(house.bus_files)
        await rename(house, accesses[0], "Ada")
        await refilled(house, 1)
        by_user = await require_stream(house.ready, await versions(house, ledger))
        after = await ids_on_stream(house, ledger)
        assert set(after) - set(before) == {by_user[ledger.user_ids[old[0]]][-1]["id"]}
        assert set(before) <= set(after)
        await all_handed_out(house)
        async with database(house.ready) as rows:
            await rows.execute("UPDATE users SET first_name = 'Mallory' WHERE id = $1", ledger.user_ids[later[0]])
        code, report = await verified(house, ledger)
        assert (code, report["faults"]) == (1, 1), report
        assert report["named"][0] == {
            "kind": "row", "userId": str(ledger.user_ids[later[0]]),
            "says": "the row says otherwise than the events: first_name",
        }  # fmt: skip
        (said,) = run.lines("a stream has lost messages; they are put back from the tables")
        assert said["what"] in {"older than it was", "lacks what was announced"}
    assert mails(server) == Counter([*old, *later])


async def dies_at(house: House, point: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.faults.mortal_republish", point, env=clean_environment() | house.env
    )
    async with asyncio.timeout(30):
        assert await process.wait() == -signal.SIGKILL, point


async def announced(house: House) -> bool:
    async with database(house.ready) as rows:
        return not await rows.fetchval("SELECT EXISTS (SELECT FROM outbox)")


async def loses_its_stream(house: House, settings: Settings) -> None:
    async with house.worker() as nc:
        await nc.jetstream().delete_stream("USER_EVENTS")
        await provision(nc.jetstream(), settings, GROUPS)


async def test_a_refill_that_is_killed_anywhere_loses_nothing_and_is_done_again(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand, without the group `jobs`; a relay is at work all the while."""
    for name, value in (house.env | SETTINGS).items():
        monkeypatch.setenv(name, value)
    settings, ledger = read_settings(), Ledger()
    async with house.run("requests", "relay", "email", "audit", "cache", **SETTINGS), house.gateway() as client:
        await ledger.register(client, emails(12), at_once=6)
        access = await sign_in(client, next(iter(ledger.accepted)))
        await until_finished(house.ready, ledger.user_ids.values(), within_s=20)
        before = await ids_on_stream(house, ledger)
        for number, point in enumerate(POINTS, start=1):
            await loses_its_stream(house, settings)
            await dies_at(house, point)
            assert (await client.call("me.update", access=access, firstName=f"Grace {point}"[:20])).ok
            done = await republish(settings)
            assert (done.foreign, done.waiting) == (0, 0)
            await eventually(lambda: announced(house), within_s=10, what="the update to be announced")
            after = await ids_on_stream(house, ledger)
            assert (len(after), set(after.values())) == (len(before) + number, {1}), point
            await require_stream(house.ready, await versions(house, ledger))
        await all_handed_out(house)
    require_mail(house.mail_dir, ledger.accepted, twice_max=0)
    assert all(sum(mails_by_address(house.mail_dir)[email].values()) == 1 for email in ledger.accepted)


async def test_what_cannot_be_verified_is_no_fault(house: House) -> None:
    code, out, err = await house.command("events", "verify", NATS_URL="nats://worker:x@127.0.0.1:1")
    assert (code, out) == (2, ""), err
    assert "127.0.0.1:1" in err
    assert "Traceback" not in err
    code, out, err = await house.command("events", "verify", DATABASE_URL="postgresql://u:x@127.0.0.1:1/x")
    assert (code, out) == (2, ""), err
    assert err.startswith("PostgreSQL at postgresql://127.0.0.1:1 does not answer")
