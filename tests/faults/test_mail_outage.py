"""Mail that cannot be sent: it waits, at last becomes letters, and what else is to be done goes on."""

import asyncio
import json
from collections import Counter
from collections.abc import Iterable
from typing import Any
from uuid import UUID

from aiosmtpd.smtp import Envelope
from nats.errors import TimeoutError as NatsTimeout

from tests.faults.house import House
from tests.faults.ledger import (
    Ledger,
    emails,
    require_audit,
    require_mail,
    require_rows,
    require_stream,
    until_finished,
)
from tests.gateway import database, new_email
from tests.integration.mail_server import MailServer
from tests.program import until

ASKED = "EmailVerificationRequested"
_LETTERS = "SELECT * FROM dead_letters WHERE user_id = ANY($1) ORDER BY created_at"
_DONE = """
SELECT count(*) FROM inbox
WHERE group_name = ANY($2) AND event_id IN (SELECT id FROM events WHERE aggregate_id = ANY($1))"""


async def announced(house: House, count: int) -> list[tuple[str, dict[str, str], bytes]]:
    """So many messages of the letters' stream: subject, headers, body."""
    async with house.worker() as nc:
        subscription = await nc.jetstream().pull_subscribe("users.dead-letters.>", stream="USER_DEAD_LETTERS")
        found: list[tuple[str, dict[str, str], bytes]] = []
        async with asyncio.timeout(15):
            while len(found) < count:
                try:
                    messages = await subscription.fetch(count - len(found), timeout=1)
                except NatsTimeout:
                    continue
                found += [(message.subject, dict(message.headers or {}), message.data) for message in messages]
        return found


async def letters_of(house: House, user_ids: Iterable[UUID], count: int, *, within_s: float = 15) -> list[Any]:
    """The rows of these users' letters, once there are so many."""
    wanted = list(user_ids)
    async with database(house.ready) as rows, asyncio.timeout(within_s):
        while len(found := await rows.fetch(_LETTERS, wanted)) < count:
            await asyncio.sleep(0.05)
    return list(found)


async def test_mail_waits_for_its_server(house: House) -> None:
    wanted, ledger = emails(20), Ledger()
    async with house.run(), house.gateway() as client:
        async with house.without_mail():
            await ledger.register(client, wanted, at_once=5)
            assert set(ledger.accepted) == set(wanted)
            async with database(house.ready) as rows, asyncio.timeout(10):
                while not await rows.fetchval("SELECT count(*) FROM delivery_attempts WHERE group_name = 'email'"):
                    await asyncio.sleep(0.02)
        await until_finished(house.ready, ledger.user_ids.values(), within_s=20)
    require_mail(house.mail_dir, wanted, twice_max=0)
    async with database(house.ready) as rows:
        assert await rows.fetch(_LETTERS, list(ledger.user_ids.values())) == []


async def test_mail_that_is_never_taken_becomes_letters(house: House) -> None:
    wanted, ledger = emails(20), Ledger()
    async with house.run(USER_SERVICE_DELIVERY_PAUSES="0.1 0.2 0.3") as run, house.gateway() as client:
        async with house.without_mail():
            await ledger.register(client, wanted, at_once=5)
            letters = await letters_of(house, ledger.user_ids.values(), 20)
            assert (await run.figures())['event_redeliveries_total{group="email"}'] == 60
            on_stream = await announced(house, 20)
        async with database(house.ready) as rows, asyncio.timeout(10):
            while await rows.fetchval(_DONE, list(ledger.user_ids.values()), ["audit", "cache"]) < 80:
                await asyncio.sleep(0.05)
        later = new_email()
        await client.register(later)
        await client.mail_to(later, "verify-email")
        versions = await require_rows(house.ready, ledger.user_ids)
        events = await require_stream(house.ready, versions)

    published = {event["id"]: event for of_user in events.values() for event in of_user if event["type"] == ASKED}
    told = [(line["eventId"], line["requestId"], line["group"]) for line in run.lines("delivery failed")]
    assert Counter(told) == {(id, event["metadata"]["requestId"], "email"): 4 for id, event in published.items()}
    assert {(line["eventId"], line["requestId"], line["group"]) for line in run.lines("dead letter")} == set(told)
    await require_audit(house.ready, (event for of_user in events.values() for event in of_user))
    assert {(row["group_name"], row["reason"], row["deliveries"], row["n"]) for row in letters} == {
        ("email", "attempts_exhausted", 4, 1)
    }
    assert [[attempt["attempt"] for attempt in json.loads(row["attempts"])] for row in letters] == [[1, 2, 3, 4]] * 20
    assert {str(row["event_id"]) for row in letters} == set(published)

    by_letter = {headers["Dead-Letter-Id"]: (subject, headers, body) for subject, headers, body in on_stream}
    assert len(by_letter) == 20
    for row in letters:
        subject, headers, body = by_letter[str(row["id"])]
        event = published[str(row["event_id"])]
        assert subject == f"users.dead-letters.email.{ASKED}.{event['aggregateId']}"
        assert (
            headers.items()
            >= {
                "Nats-Msg-Id": f"dl:email:{event['id']}:1",
                "Original-Nats-Msg-Id": event["id"],
                "Dead-Letter-Group": "email",
                "Dead-Letter-Reason": "attempts_exhausted",
                "Dead-Letter-Deliveries": "4",
                "Dead-Letter-Stream-Sequence": str(row["stream_sequence"]),
                "Dead-Letter-Time": row["created_at"].isoformat(),
            }.items()
        )
        assert headers["Dead-Letter-Error"].startswith("MailUnavailable")
        original = {name: text for name, text in event["headers"].items() if not name.startswith("Nats-")}
        assert {"ce-id", "ce-type", "ce-time", "ce-dataschema", "Request-Id", "Content-Type"} <= original.keys()
        assert headers.items() >= original.items()
        assert {name for name in headers if name.startswith("Nats-")} == {"Nats-Msg-Id"}
        assert body == bytes(row["body"])
        assert json.loads(body) == {k: v for k, v in event.items() if k not in {"subject", "headers"}}


async def test_a_refused_recipient_stands_in_nobodys_way(house: House) -> None:
    wanted, ledger = emails(8), Ledger()
    refused = wanted[3]

    async def refuse_one(envelope: Envelope) -> str:
        return "550 no such mailbox" if refused in envelope.rcpt_tos else "250 OK"

    server = MailServer(on_rcpt=refuse_one)
    await server.start()
    try:
        async with house.run(SMTP_URL=server.url), house.gateway() as client:
            await ledger.register(client, wanted, at_once=4)
            [letter] = await letters_of(house, ledger.user_ids.values(), 1)
            await until(lambda: len(server.received) >= 7, within_s=15, what="the other mails")
    finally:
        await server.stop()
    assert (letter["reason"], letter["deliveries"]) == ("mail_refused", 1)
    assert letter["user_id"] == ledger.user_ids[refused]
    [attempt] = json.loads(letter["attempts"])
    assert (attempt["attempt"], attempt["message"]) == (1, letter["message"])
    assert "no such mailbox" in attempt["trace"]
    assert refused not in letter["message"] + letter["attempts"]
    assert sorted(address for to, _ in server.received for address in to) == sorted(set(wanted) - {refused})
