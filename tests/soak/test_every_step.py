"""A worker is killed at every step of relay, dead-lettering and replay, by name; another one finishes its work."""

import asyncio
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from nats.errors import Error as NatsError

from tests.faults.house import House, Run
from tests.faults.ledger import (
    Ledger,
    emails,
    key_of,
    mails_by_address,
    require_audit,
    require_rows,
    require_stream,
    until_finished,
)
from tests.faults.test_dead_letters import QUICK, Ward, ended, letters_stand, mail_server
from tests.gateway import Gateway, database
from tests.integration.mail_server import MailServer
from tests.program import until

USERS = 3
RELAY = (
    "after handlers.relay unsent_events",
    "before handlers.relay Relay._publish",
    "after handlers.relay Relay._publish",
    "before handlers.relay Relay._store",
    "after handlers.relay Relay._store",
    "before handlers.relay Relay._invalidate",
    "after handlers.relay Relay._invalidate",
)
LETTERS = (
    "before handlers.delivery record_attempt",
    "after handlers.delivery record_attempt",
    "before handlers.delivery add_letter",
    "after handlers.delivery add_letter",
    "before nats.aio.msg Msg.term",
    "after nats.aio.msg Msg.term",
    "before handlers.dead_letters Announcer._announce",
    "after handlers.dead_letters Announcer._announce",
    "before handlers.dead_letters mark_announced",
    "after handlers.dead_letters mark_announced",
)
REPLAY = (
    "before handlers.requests.dead_letters begin_job",
    "after handlers.requests.dead_letters begin_job",
    "after handlers.replays lease_job",
    "before handlers.replays next_letters",
    "before handlers.replays _Round._publish",
    "after handlers.replays _Round._publish",
    "before handlers.replays mark_sent",
    "after handlers.replays mark_sent",
    "before adapters.smtp Mailer.send",
    "after adapters.smtp Mailer.send",
    "before handlers.delivery mark_done",
    "after handlers.delivery mark_done",
    "after handlers.delivery Deliverer._do",
    "after handlers.replays settle",
    "before handlers.replays end_job",
    "after handlers.replays end_job",
)

BEFORE_A_MAIL = REPLAY[:5]

pytestmark = [pytest.mark.soak, pytest.mark.timeout(120)]


_WAITING = """
SELECT EXISTS (SELECT FROM outbox) OR EXISTS (
    SELECT FROM events e CROSS JOIN unnest('{email,audit,cache}'::text[]) AS g (name)
    WHERE e.occurred_at >= $1
        AND NOT EXISTS (SELECT FROM inbox i WHERE i.event_id = e.id AND i.group_name = g.name)
        AND NOT EXISTS (SELECT FROM dead_letters d WHERE d.event_id = e.id AND d.group_name = g.name))"""


async def killed(run: Run) -> None:
    await until(lambda: run.has_ended, within_s=40, what="the worker to come to the point")
    assert run.process.returncode == -9, run.log[-2000:]


async def register(client: Gateway, ledger: Ledger, wanted: list[str]) -> None:
    """As a gateway does: who was not answered is asked for again under its key."""
    for email in wanted:
        if email in ledger.accepted:
            continue
        try:
            reply = await client.register(email, headers={"Idempotency-Key": key_of(email), "Timeout-Ms": "3000"})
        except (NatsError, TimeoutError):
            continue
        if reply.ok:
            ledger.accepted[email] = reply


async def all_stands(house: House, ledger: Ledger, server: MailServer, *, twice_max: int) -> None:
    """Every event once and in order on the stream, one audit row each, and each mail once but for what was in hand."""
    await until_finished(house.ready, ledger.user_ids.values(), within_s=60)
    events = await require_stream(house.ready, await require_rows(house.ready, ledger.user_ids))
    await require_audit(house.ready, (event for of_user in events.values() for event in of_user))
    ids = [str(mail["Message-ID"]) for to, mail in server.received if to[0] in ledger.user_ids]
    assert len(set(ids)) == USERS
    assert len(ids) <= USERS + twice_max
    assert not set(mails_by_address(house.mail_dir)) & set(ledger.user_ids)


@pytest.mark.parametrize("point", RELAY)
async def test_a_relay_that_is_killed_at_a_step_loses_and_doubles_nothing(house: House, point: str) -> None:
    wanted, ledger, ward = emails(USERS), Ledger(), Ward()
    ward.healed = True
    async with mail_server(ward) as server:
        env: dict[str, Any] = {"SMTP_URL": server.url} | QUICK
        async with house.run(**env, DIES_AT=point) as run, house.gateway() as client:
            await register(client, ledger, wanted)
            await killed(run)
        async with house.run(**env), house.gateway() as client:
            await register(client, ledger, wanted)
            await all_stands(house, ledger, server, twice_max=USERS)


@pytest.mark.parametrize("point", LETTERS)
async def test_a_worker_killed_at_a_step_of_dead_lettering_leaves_one_letter_each(house: House, point: str) -> None:
    wanted, ledger, ward = emails(USERS), Ledger(), Ward()
    async with mail_server(ward) as server:
        env: dict[str, Any] = {"SMTP_URL": server.url} | QUICK
        async with house.run(**env, DIES_AT=point) as run, house.gateway() as client:
            await register(client, ledger, wanted)
            await killed(run)
        async with house.run(**env), house.gateway() as client:
            await register(client, ledger, wanted)
            await letters_stand(house, ledger, USERS)
            async with database(house.ready) as rows:
                found = await rows.fetch(
                    "SELECT event_id, count(*) FROM dead_letters WHERE user_id = ANY($1) GROUP BY 1",
                    ledger.user_ids.values(),
                )
            assert sorted(row["count"] for row in found) == [1] * USERS
            ward.healed = True
            begun = await client.call(
                "admin.dead-letters.replay", access=await client.admin(), ids=await ids_of(house, ledger)
            )
            await ended(client, await client.admin(), begun.data["jobId"])
            await all_stands(house, ledger, server, twice_max=0)


@pytest.mark.parametrize("point", REPLAY)
async def test_a_worker_killed_at_a_step_of_a_replay_leaves_an_outcome_for_each(house: House, point: str) -> None:
    wanted, ledger, ward, began = emails(USERS), Ledger(), Ward(), datetime.now(UTC)
    async with mail_server(ward) as server:
        env: dict[str, Any] = {"SMTP_URL": server.url} | QUICK
        async with house.run(**env), house.gateway() as client:
            await register(client, ledger, wanted)
            await letters_stand(house, ledger, USERS)
            admin = await client.admin()
            async with database(house.ready) as rows, asyncio.timeout(30):
                while await rows.fetchval(_WAITING, began):  # else it would bring the worker to the point
                    await asyncio.sleep(0.1)
        ward.healed = True
        asked: dict[str, Any] = {"ids": await ids_of(house, ledger), "atOnce": True, "rate": 1000}
        headers = {"Idempotency-Key": uuid4().hex, "Timeout-Ms": "3000"}
        async with house.run(**env, DIES_AT=point) as run, house.gateway() as client:
            with suppress(NatsError, TimeoutError):
                await client.call("admin.dead-letters.replay", access=admin, headers=headers, timeout=5, **asked)
            await killed(run)
        async with house.run(**env), house.gateway() as client:
            begun = await client.call("admin.dead-letters.replay", access=admin, headers=headers, **asked)
            job = await ended(client, admin, begun.data["jobId"])
            assert (job["state"], job["done"] + job["alreadyHandled"]) == ("done", USERS), job
            # A mail that was in the server's hands at the kill, and not written down yet, may go out once more.
            await all_stands(house, ledger, server, twice_max=0 if point in BEFORE_A_MAIL else USERS)


async def ids_of(house: House, ledger: Ledger) -> list[str]:
    async with database(house.ready) as rows:
        found = await rows.fetch("SELECT id FROM dead_letters WHERE user_id = ANY($1)", ledger.user_ids.values())
    return [str(row["id"]) for row in found]
