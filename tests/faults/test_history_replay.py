"""A stretch of history handed to one group again: what it has done stays done, what it has not is done now."""

import asyncio
import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from uuid import UUID

from aiosmtpd.smtp import Envelope

from tests.faults.house import House
from tests.faults.ledger import Ledger, emails, until_finished
from tests.faults.test_dead_letters import QUICK, Ward, letters_stand, mail_server
from tests.gateway import Gateway, database

ASKED = "EmailVerificationRequested"
_FORGET = """
DELETE FROM inbox i USING events e
WHERE i.event_id = e.id AND i.group_name = 'email' AND e.type = $2 AND e.aggregate_id = ANY($1)"""
_OUTCOMES = """
SELECT e.type, e.aggregate_id, i.outcome FROM replay_items i JOIN events e ON e.id = i.event_id
WHERE i.job_id = $1 ORDER BY i.place"""


async def of_user(client: Gateway, access: str, user_id: UUID) -> str:
    found = await client.call("admin.dead-letters.list", access=access, userId=str(user_id))
    return str(found.data[0]["id"])


async def through_with_all(house: House) -> None:
    """Until all is announced and the group has answered for it: what it is at is left to it."""
    async with house.worker() as nc, database(house.ready) as rows, asyncio.timeout(20):
        while True:
            waiting = await rows.fetchval("SELECT EXISTS (SELECT FROM outbox)")
            info = await nc.jetstream().consumer_info("USER_EVENTS", "email")
            if not (waiting or info.num_pending or info.num_ack_pending):
                return
            await asyncio.sleep(0.1)


async def test_what_a_group_has_not_done_is_done_and_nothing_twice(house: House) -> None:
    wanted, ledger, ward = emails(8), Ledger(), Ward()
    ward.healed, ward.refuses = True, set(wanted[:2])
    async with mail_server(ward) as server, house.run(SMTP_URL=server.url, **QUICK), house.gateway() as client:
        began = datetime.now(UTC)
        await ledger.register(client, wanted, at_once=4)
        dead, discarded, forgotten = (ledger.user_ids[email] for email in wanted[:3])
        await letters_stand(house, ledger, 2)
        await until_finished(house.ready, [ledger.user_ids[email] for email in wanted[2:]], within_s=20)
        admin = await client.admin()
        letter = await of_user(client, admin, discarded)
        assert (await client.call("admin.dead-letters.discard", access=admin, ids=[letter], why="a test")).ok
        ward.refuses.clear()
        async with database(house.ready) as rows:
            done = await rows.execute(_FORGET, [forgotten], ASKED)  # as if the group had never had it
            assert done == "DELETE 1"
            first = await rows.fetchval("SELECT min(position) FROM events WHERE aggregate_id = $1", forgotten)
            assert first
        await through_with_all(house)
        until = datetime.now(UTC) + timedelta(seconds=5)
        stretch = ("--group", "email", "--from", began.isoformat(), "--to", until.isoformat())
        code, out, err = await house.command("events", "replay", *stretch, "--dry-run", "--json")
        dry = json.loads(out)
        assert (code, dry["jobId"], dry["toDeliver"], dry["discarded"]) == (0, None, 2, 1), err
        assert dry["alreadyHandled"] == dry["matched"] - 3
        assert {event["userId"] for event in dry["sample"]} == {str(dead), str(forgotten)}
        code, out, err = await house.command("events", "replay", *stretch, "--json")
        assert code == 0, err
        said = json.loads(out)
        assert (said["job"]["state"], said["job"]["done"], said["job"]["failedAgain"]) == ("done", 2, 0)
        assert said["job"]["total"] == said["matched"]
        async with database(house.ready) as rows:
            items = await rows.fetch(_OUTCOMES, UUID(said["jobId"]))
            states = await rows.fetch(
                "SELECT user_id, state FROM dead_letters WHERE user_id = ANY($1)", [dead, discarded]
            )
            [by] = await rows.fetch("SELECT details FROM audit_logs WHERE action = 'events_replayed'")
        assert {tuple(item) for item in items} == {(ASKED, dead, "done"), (ASKED, forgotten, "done")}
        assert {row["user_id"]: row["state"] for row in states} == {dead: "replayed", discarded: "discarded"}
        assert json.loads(by["details"])["operator"].startswith("operator:")
        shown = await client.call("admin.dead-letters.jobs.get", access=admin, jobId=said["jobId"])
        assert [item["letterId"] is None for item in shown.data["items"]].count(True) == 1
    mails = Counter(address for to, _ in server.received for address in to if address in wanted)
    assert mails == Counter([*wanted, wanted[2]]) - Counter([wanted[1]])


async def test_what_the_group_is_at_by_itself_is_left_to_it(house: House) -> None:
    """Two processes, each with deliveries of its own in hand: no mail goes out of both."""
    wanted, ledger, ward = emails(12), Ledger(), Ward()
    ward.healed = True

    async def slowly(_: Envelope) -> str:
        await asyncio.sleep(0.5)
        return "250 OK"

    async with mail_server(ward) as server:
        server.on_data = slowly
        async with house.run(SMTP_URL=server.url), house.run(SMTP_URL=server.url), house.gateway() as client:
            began = datetime.now(UTC)
            await ledger.register(client, wanted, at_once=12)
            stretch = ("--from", began.isoformat(), "--to", (began + timedelta(minutes=1)).isoformat())
            code, _, err = await house.command("events", "replay", "--group", "email", *stretch, "--at-once", "--json")
            assert code == 0, err
            await until_finished(house.ready, ledger.user_ids.values(), within_s=30)
            await asyncio.sleep(1)  # whoever had found one not done would be at it still
    mails = Counter(address for to, _ in server.received for address in to if address in wanted)
    assert mails == Counter(wanted)
