"""Messages on the events' subjects that are no events of ours: they have no effect, and stop nobody's real ones."""

import asyncio
import json
from typing import Any
from uuid import UUID, uuid4

from nats.js.api import PubAck

from tests.faults.house import House
from tests.faults.ledger import GROUPS, Ledger, emails, mails_by_address, require_audit, require_rows, until_finished
from tests.gateway import database, stored_events

_LETTERS = """
SELECT group_name, reason, n, body FROM dead_letters WHERE stream = $1 AND stream_sequence = $2 AND created_at > $3"""
_AUDITED = "SELECT count(*) FROM audit_logs WHERE event_id IS NOT NULL"
ASKED = "EmailVerificationRequested"


def forged(event: dict[str, Any], _: str) -> tuple[str, bytes]:
    """An event that never happened, about somebody who is there."""
    return event["aggregateId"], json.dumps(event | {"id": str(uuid4()), "version": 3}).encode()


def altered(event: dict[str, Any], _: str) -> tuple[str, bytes]:
    """An event that happened, with another address in it."""
    data = event["data"] | {"email": "mallory@example.com"}
    return event["aggregateId"], json.dumps(event | {"data": data}).encode()


def readdressed(event: dict[str, Any], other: str) -> tuple[str, bytes]:
    """An event that happened to somebody else."""
    return other, json.dumps(event).encode()


def unreadable(event: dict[str, Any], _: str) -> tuple[str, bytes]:
    return event["aggregateId"], b"\xff\x00{"


def nested(event: dict[str, Any], _: str) -> tuple[str, bytes]:
    """JSON deeper than a parser dares to go."""
    return event["aggregateId"], b'{"id":' + b"[" * 100_000


def empty(event: dict[str, Any], _: str) -> tuple[str, bytes]:
    return event["aggregateId"], b""


FORGERIES = (forged, altered, readdressed, unreadable, nested, empty)


async def letters_at(
    house: House,
    ack: PubAck,
    since: Any,  # noqa: ANN401
    count: int,
) -> list[tuple[str, str, bytes]]:
    """The letters of one message, once there are so many."""
    async with database(house.ready) as rows, asyncio.timeout(20):
        while len(found := await rows.fetch(_LETTERS, ack.stream, ack.seq, since)) < count:
            await asyncio.sleep(0.05)
    return sorted((row["group_name"], row["reason"], bytes(row["body"])) for row in found)


async def test_what_is_no_event_of_ours_has_no_effect(house: House) -> None:
    wanted, ledger = emails(2), Ledger()
    async with house.run(), house.gateway() as client:
        await ledger.register(client, wanted, at_once=2)
        await until_finished(house.ready, ledger.user_ids.values(), within_s=20)
        user_id, other = (str(ledger.user_ids[email]) for email in wanted)
        [event] = await stored_events(house.ready, f"users.events.v1.{ASKED}.{user_id}")
        event = {name: value for name, value in event.items() if name not in {"subject", "headers"}}
        mails = mails_by_address(house.mail_dir)
        async with database(house.ready) as rows:
            audited, since = await rows.fetchval(_AUDITED), await rows.fetchval("SELECT clock_timestamp()")

        async with house.worker() as nc:
            for forge in FORGERIES:
                addressed, body = forge(event, other)
                subject = f"users.events.v1.{ASKED}.{addressed}"
                ack = await nc.jetstream().publish(subject, body, headers={"Nats-Msg-Id": str(uuid4())})
                letters = await letters_at(house, ack, since, len(GROUPS))
                assert letters == [(group, "unauthentic", body) for group in sorted(GROUPS)], forge.__name__
                for group in GROUPS:  # a replay goes to one group alone
                    subject = f"users.replay.{group}.{ASKED}.{addressed}"
                    ack = await nc.jetstream().publish(subject, body, headers={"Nats-Msg-Id": str(uuid4())})
                    letters = await letters_at(house, ack, since, 1)
                    assert letters == [(group, "unauthentic", body)], forge.__name__

        assert mails_by_address(house.mail_dir) == mails
        async with database(house.ready) as rows:
            assert await rows.fetchval(_AUDITED) == audited

        await asyncio.gather(*(client.call("auth.resend-verification", email=email) for email in wanted))
        await until_finished(house.ready, ledger.user_ids.values(), within_s=20)
        versions = await require_rows(house.ready, ledger.user_ids)
        for email in wanted:
            assert len(client.mails_to(email, "verify-email")) == 2
    async with database(house.ready) as rows:
        known = {str(row["id"]): row["version"] for row in await rows.fetch(_EVENTS, list(versions))}
    on_stream: list[dict[str, Any]] = []
    async with house.worker() as nc:
        for found_id in versions:
            sequence = (await nc.jetstream().get_last_msg("USER_EVENTS", f"users.events.v1.*.{found_id}")).seq or 0
            assert sequence
            last = json.loads((await nc.jetstream().get_msg("USER_EVENTS", sequence)).data or b"{}")
            assert known[last["id"]] == last["version"] == versions[found_id] == 3
            on_stream.append(last)
    await require_audit(house.ready, on_stream)


async def test_a_replayed_event_goes_to_its_group_alone_and_has_its_effect_once(house: House) -> None:
    pauses = {"USER_SERVICE_DELIVERY_PAUSES": "0.1 0.1"}
    async with house.run(**pauses) as run, house.gateway() as client, house.worker() as nc:
        async with house.without_mail():
            user_id = UUID((await client.register()).data["user"]["id"])
            async with database(house.ready) as rows, asyncio.timeout(30):
                while not (letter := await rows.fetchrow(_LETTER, user_id)):
                    await asyncio.sleep(0.05)
        subject = f"users.replay.email.{ASKED}.{user_id}"
        for number in range(1, 4):
            await nc.jetstream().publish(
                subject, letter["body"], headers={"Nats-Msg-Id": f"{letter['event_id']}:r{number}"}
            )
        email = json.loads(letter["body"])["data"]["email"]
        await client.mail_to(email, "verify-email")
        async with asyncio.timeout(20):
            while (await nc.jetstream().stream_info("USER_REPLAYS")).state.messages:
                await asyncio.sleep(0.05)
        assert len(client.mails_to(email)) == 1
        assert not run.has_ended
    async with database(house.ready) as rows:
        assert await rows.fetchval("SELECT count(*) FROM dead_letters WHERE user_id = $1", user_id) == 1
        assert await rows.fetchval("SELECT count(*) FROM audit_logs WHERE event_id = $1", letter["event_id"]) == 1


_LETTER = "SELECT event_id, body FROM dead_letters WHERE user_id = $1 AND group_name = 'email'"
_EVENTS = "SELECT id, version FROM events WHERE aggregate_id = ANY($1)"


async def test_the_relay_goes_on_behind_a_forged_message(house: House) -> None:
    """Also where the message bears the id of the user's last event: what our table says of the id is what counts."""
    wanted, ledger = emails(2), Ledger()
    settings = {"USER_SERVICE_DUPLICATE_WINDOW_SECONDS": "1"}
    async with house.run("requests", "relay", **settings), house.gateway() as client, house.worker() as nc:
        js = nc.jetstream()
        await ledger.register(client, wanted, at_once=2)
        for email in wanted:
            user_id = ledger.user_ids[email]
            last = await until_last(house, js.get_last_msg, user_id, 2)
            message_id = str(uuid4()) if email == wanted[0] else last["id"]
            async with asyncio.timeout(10):  # past the window in which the server knows the id
                while True:
                    subject = f"users.events.v1.{ASKED}.{user_id}"
                    if not (await js.publish(subject, b"{}", headers={"Nats-Msg-Id": message_id})).duplicate:
                        break
                    await asyncio.sleep(0.1)
            await client.call("auth.resend-verification", email=email)
            await until_last(house, js.get_last_msg, user_id, 3)


async def until_last(house: House, get_last: Any, user_id: UUID, version: int) -> dict[str, Any]:  # noqa: ANN401
    """The user's last message, once it has this version."""
    async with database(house.ready) as rows, asyncio.timeout(15):
        while await rows.fetchval("SELECT count(*) FROM outbox WHERE user_id = $1", user_id):
            await asyncio.sleep(0.02)
    found: dict[str, Any] = json.loads((await get_last("USER_EVENTS", f"users.events.v1.*.{user_id}")).data)
    assert found["version"] == version
    return found
