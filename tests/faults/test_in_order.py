"""A group that asks for order takes nothing of a user past what it could not deal with, and meanwhile all of others."""

import asyncio
import json
from typing import Any
from uuid import UUID, uuid4

from tests.faults.house import House
from tests.faults.ledger import Ledger, emails
from tests.faults.test_dead_letters import Ward, ended, letters_stand, mail_server
from tests.gateway import Gateway, database, stored_events
from tests.program import eventually

IN_ORDER = {"USER_SERVICE_IN_ORDER": "email"}
ONCE = {"USER_SERVICE_DELIVERY_PAUSES": "0.1"}


async def states(house: House, user_id: UUID) -> list[str]:
    """Of the user's letters of mail, by the versions of their events."""
    async with database(house.ready) as rows:
        found = await rows.fetch(
            "SELECT state FROM dead_letters WHERE user_id = $1 AND group_name = 'email' ORDER BY version, n", user_id
        )
    return [row["state"] for row in found]


async def dealt_with(house: House, user_id: UUID) -> list[int]:
    """Versions of the user's events in the order in which the mail group was done with them."""
    async with database(house.ready) as rows:
        found = await rows.fetch(
            "SELECT e.version FROM inbox i JOIN events e ON e.id = i.event_id "
            "WHERE i.group_name = 'email' AND e.aggregate_id = $1 ORDER BY i.done_at", user_id,
        )  # fmt: skip
    return [row["version"] for row in found]


async def all_dealt_with(house: House, user_id: UUID) -> None:
    async with database(house.ready) as rows:
        last = await rows.fetchval("SELECT version FROM users WHERE id = $1", user_id)

    async def is_done() -> bool:
        return sorted(await dealt_with(house, user_id)) == list(range(1, last + 1))

    await eventually(is_done, within_s=30, what="all of the user's events")


async def ask_again(client: Gateway, email: str, times: int) -> None:
    for _ in range(times):
        assert (await client.call("auth.resend-verification", email=email)).ok


async def test_later_events_wait_behind_a_letter_and_go_out_in_order_with_its_replay(house: House) -> None:
    wanted, ledger, ward = emails(3), Ledger(), Ward()
    ward.healed, ward.refuses = True, {wanted[0]}
    async with (
        mail_server(ward) as server,
        house.run(SMTP_URL=server.url, **IN_ORDER, **ONCE),
        house.run(SMTP_URL=server.url, **IN_ORDER, **ONCE),
        house.gateway() as client,
    ):
        await ledger.register(client, wanted, at_once=3)
        await letters_stand(house, ledger, 1)
        for email in wanted:
            await ask_again(client, email, 2)
        blocked = ledger.user_ids[wanted[0]]
        for email in wanted[1:]:  # others flow on
            await all_dealt_with(house, ledger.user_ids[email])

        async def all_held() -> bool:
            return await states(house, blocked) == ["dead", "held", "held"]

        await eventually(all_held, within_s=20, what="the later events to be held")
        admin = await client.admin()
        ward.refuses = set()
        await asyncio.sleep(2.5)  # nothing goes on by itself while the letter is open
        assert await states(house, blocked) == ["dead", "held", "held"]
        steps = (await client.call("admin.timeline.get", access=admin, userId=str(blocked))).data
        assert [step["kind"] for step in steps if step["letterId"]] == ["dead", "held", "held"]
        begun = await client.call("admin.dead-letters.replay", access=admin, userId=str(blocked))
        assert (await ended(client, admin, begun.data["jobId"]))["done"] == 1
        await all_dealt_with(house, blocked)
        done = await dealt_with(house, blocked)
        assert done == sorted(done)
    assert [to for to, _ in server.received].count([wanted[0]]) == 3


async def test_an_event_behind_one_that_is_tried_again_goes_on_by_itself(house: House) -> None:
    wanted, ledger, ward = emails(1), Ledger(), Ward()
    env: dict[str, Any] = IN_ORDER | {"USER_SERVICE_DELIVERY_PAUSES": "1 1 1 1 1 1 1 1 1 1"}
    async with mail_server(ward) as server, house.run(SMTP_URL=server.url, **env), house.gateway() as client:
        await ledger.register(client, wanted, at_once=1)
        await ask_again(client, wanted[0], 2)
        user_id = ledger.user_ids[wanted[0]]

        async def some_held() -> bool:
            return await states(house, user_id) == ["held", "held"]

        await eventually(some_held, within_s=20, what="the later events to be held")
        ward.healed = True
        await all_dealt_with(house, user_id)
        done = await dealt_with(house, user_id)
        assert done == sorted(done)

        async def all_closed() -> bool:
            return await states(house, user_id) == ["replayed", "replayed"]

        await eventually(all_closed, within_s=20, what="the letters to be closed")


async def test_a_discarded_letter_lets_the_later_events_go(house: House) -> None:
    wanted, ledger, ward = emails(1), Ledger(), Ward()
    async with (
        mail_server(ward) as server,
        house.run(SMTP_URL=server.url, **IN_ORDER, **ONCE),
        house.gateway() as client,
    ):
        await ledger.register(client, wanted, at_once=1)
        await letters_stand(house, ledger, 1)
        await ask_again(client, wanted[0], 1)
        user_id = ledger.user_ids[wanted[0]]

        async def is_held() -> bool:
            return await states(house, user_id) == ["dead", "held"]

        await eventually(is_held, within_s=20, what="the later event to be held")
        ward.healed = True
        gone = await client.call(
            "admin.dead-letters.discard", access=await client.admin(), userId=str(user_id), why="superseded"
        )
        assert gone.data["count"] == 1

        async def is_closed() -> bool:
            return await states(house, user_id) == ["discarded", "replayed"]

        await eventually(is_closed, within_s=20, what="the held event to go on")
    assert [to for to, _ in server.received].count([wanted[0]]) == 1


async def test_nothing_waits_behind_what_somebody_else_wrote(house: House) -> None:
    wanted, ledger = emails(1), Ledger()
    async with house.run(**IN_ORDER), house.gateway() as client, house.worker() as bus:
        await ledger.register(client, wanted, at_once=1)
        user_id = ledger.user_ids[wanted[0]]
        await all_dealt_with(house, user_id)
        subject = f"users.events.v1.EmailVerificationRequested.{user_id}"
        [event] = await stored_events(house.ready, subject)
        body = json.dumps(event | {"data": event["data"] | {"email": "mallory@example.com"}}).encode()
        await bus.jetstream().publish(subject, body, headers={"Nats-Msg-Id": str(uuid4())})

        async def is_dead() -> bool:
            return await states(house, user_id) == ["dead"]

        await eventually(is_dead, within_s=20, what="the letter of the forgery")
        await ask_again(client, wanted[0], 2)
        await all_dealt_with(house, user_id)
        assert await states(house, user_id) == ["dead"]


async def test_a_job_that_waits_for_its_turn_has_it_before_those_that_come_later(house: House) -> None:
    """Else each later letter is let go, held again and let go once more, and the answer to the first is never seen."""
    [email], ledger, ward = emails(1), Ledger(), Ward()
    async with mail_server(ward) as server, database(house.ready) as rows:
        async with house.run(SMTP_URL=server.url, **IN_ORDER, **ONCE), house.gateway() as client:
            await ledger.register(client, [email], at_once=1)
            await letters_stand(house, ledger, 1)
            await ask_again(client, email, 2)
            user_id = ledger.user_ids[email]

            async def all_held() -> bool:
                return await states(house, user_id) == ["dead", "held", "held"]

            await eventually(all_held, within_s=20, what="the later events to be held")
        job_id = uuid4()  # it was sent and answered while another job had the turn
        await rows.execute("UPDATE dead_letters SET state = 'discarded' WHERE user_id = $1 AND version = 2", user_id)
        await rows.execute(_JOB, job_id)
        await rows.execute(_SENT, job_id, user_id)
        ward.healed = True
        async with house.run(SMTP_URL=server.url, **IN_ORDER, **ONCE):

            async def is_over() -> bool:
                return await states(house, user_id) == ["discarded", "replayed", "replayed"]

            await eventually(is_over, within_s=20, what="the held letters to go out")
        assert await rows.fetchval("SELECT state FROM replay_jobs WHERE id = $1", job_id) == "done"


_JOB = """
INSERT INTO replay_jobs (id, created_by, asked, rate, careful, total, leased_until)
VALUES ($1, $1, '{}', 100, false, 1, now())"""
_SENT = """
WITH letter AS (SELECT id, event_id, user_id FROM dead_letters WHERE user_id = $2 AND version = 3), handled AS (
    INSERT INTO inbox (group_name, event_id, outcome) SELECT 'email', event_id, 'sent' FROM letter
)
INSERT INTO replay_items (job_id, place, letter_id, group_name, event_id, user_id, sent_at)
SELECT $1, 1, id, 'email', event_id, user_id, now() FROM letter"""
