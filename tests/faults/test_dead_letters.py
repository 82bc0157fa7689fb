"""What a paged operator does about letters: find the cause, try one, replay the rest; and what keeps that from harm."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from aiosmtpd.smtp import Envelope
from nats.errors import TimeoutError as NatsTimeout
from nats.js.api import AckPolicy, ConsumerConfig

from tests.faults.house import House
from tests.faults.ledger import Ledger, emails
from tests.gateway import Gateway, Reply, database
from tests.integration.mail_server import MailServer
from tests.program import eventually

NOT_NOW = "450 4.2.1 the mailbox {} is busy, try again in {}.5 s"
QUICK = {"USER_SERVICE_DELIVERY_PAUSES": "0.1"}


class Ward:
    """A mail server that refuses everything, until it is healed."""

    def __init__(self) -> None:
        self.healed = False
        self.refuses: set[str] = set()
        self._asked = 0

    async def on_rcpt(self, envelope: Envelope) -> str:
        self._asked += 1
        if self.healed and not self.refuses & set(envelope.rcpt_tos):
            return "250 OK"
        return NOT_NOW.format(envelope.rcpt_tos[-1] if envelope.rcpt_tos else "", self._asked)


@asynccontextmanager
async def mail_server(ward: Ward) -> AsyncIterator[MailServer]:
    server = MailServer(on_rcpt=ward.on_rcpt)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def letters_stand(house: House, ledger: Ledger, count: int) -> None:
    async with database(house.ready) as rows, asyncio.timeout(30):
        while (
            await rows.fetchval(
                "SELECT count(*) FROM dead_letters WHERE user_id = ANY($1) AND state = 'dead'",
                list(ledger.user_ids.values()),
            )
            < count
        ):
            await asyncio.sleep(0.05)


@dataclass
class Scene:
    """Users whose mail has become letters, a mail server that is well again, and an operator."""

    emails: list[str]
    ledger: Ledger
    ward: Ward
    server: MailServer
    client: Gateway
    admin: str

    async def act(self, operation: str, **body: Any) -> Reply:  # noqa: ANN401 - JSON
        """What the operator is told."""
        return await self.client.call(f"admin.dead-letters.{operation}", access=self.admin, **body)

    async def letter_ids(self, *emails: str) -> list[str]:
        found = [await of_user(self.client, self.admin, self.ledger, email) for email in emails]
        return [letter["id"] for letters in found for letter in letters]

    async def ended(self, begun: Reply) -> dict[str, Any]:
        return await ended(self.client, self.admin, begun.data["jobId"])


@asynccontextmanager
async def with_letters(house: House, users: int, *, resent: bool = False) -> AsyncIterator[Scene]:
    """One letter of each user, or two where the mail was asked for again."""
    wanted, ledger, ward = emails(users), Ledger(), Ward()
    async with mail_server(ward) as server, house.run(SMTP_URL=server.url, **QUICK), house.gateway() as client:
        await ledger.register(client, wanted, at_once=3)
        for email in wanted if resent else ():
            assert (await client.call("auth.resend-verification", email=email)).ok
        await letters_stand(house, ledger, users * (1 + resent))
        ward.healed = True
        yield Scene(wanted, ledger, ward, server, client, await client.admin())


async def ended(client: Gateway, access: str, job_id: str) -> dict[str, Any]:
    async with asyncio.timeout(60):
        while True:
            found = await client.call("admin.dead-letters.jobs.get", access=access, jobId=job_id)
            if found.data["job"]["state"] != "running":
                return dict(found.data["job"])
            await asyncio.sleep(0.1)


async def of_user(client: Gateway, access: str, ledger: Ledger, email: str) -> list[dict[str, Any]]:
    found = await client.call("admin.dead-letters.list", access=access, userId=str(ledger.user_ids[email]))
    return list(found.data)


async def test_a_paged_operator_finds_the_cause_and_has_every_mail_sent_once(house: House) -> None:
    wanted, ledger, ward, began = emails(20), Ledger(), Ward(), datetime.now(UTC).isoformat()
    async with mail_server(ward) as server, house.run(SMTP_URL=server.url, **QUICK), house.gateway() as client:
        await ledger.register(client, wanted, at_once=5)
        await letters_stand(house, ledger, 20)
        admin = await client.admin()
        since: dict[str, Any] = {"from": began, "type": "EmailVerificationRequested"}
        (cause,) = (await client.call("admin.dead-letters.groups", access=admin, **since)).data["causes"]
        assert (cause["group"], cause["letters"], cause["users"]) == ("email", 20, 20)
        assert "450 4.2.1 the mailbox *** is busy, try again in * s" in cause["text"]
        which = since | {"cause": cause["cause"]}
        listed = await client.call("admin.dead-letters.list", access=admin, limit=7, **which)
        assert (listed.body["pagination"]["total"], len(listed.data)) == (20, 7)
        shown = await client.call("admin.dead-letters.get", access=admin, letterId=listed.data[0]["id"])
        letter = shown.data["letter"]
        assert [attempt["attempt"] for attempt in letter["attempts"]] == [1, 2]
        assert json.loads(letter["bodyText"])["id"] == letter["eventId"]

        dry = await client.call("admin.dead-letters.replay", access=admin, cause=cause["cause"], dryRun=True, **since)
        assert (dry.data["jobId"], dry.data["matched"], len(dry.data["sample"])) == (None, 20, 5)
        too_soon = await client.call("admin.dead-letters.replay", access=admin, **which)
        stopped = await ended(client, admin, too_soon.data["jobId"])
        assert (stopped["state"], stopped["failedAgain"], stopped["waiting"]) == ("stopped", 1, 19)
        assert len(server.received) == 0

        ward.healed = True
        begun = await client.call("admin.dead-letters.replay", access=admin, cause=cause["cause"], rate=200, **since)
        job = await ended(client, admin, begun.data["jobId"])
        assert (job["state"], job["done"], job["total"]) == ("done", 20, 20)
        resumed = await client.call("admin.dead-letters.jobs.resume", access=admin, jobId=too_soon.data["jobId"])
        assert resumed.ok
        over = await ended(client, admin, too_soon.data["jobId"])
        assert (over["state"], over["alreadyHandled"], over["failedAgain"]) == ("done", 19, 1)
        none = await client.call("admin.dead-letters.groups", access=admin, **since)
        assert none.data["causes"] == []
        log = await client.call("admin.audit-logs.list", access=admin, action="dead_letters_replayed")
        me = (await client.call("me.get", access=admin)).data["user"]["id"]
        assert [entry["details"]["count"] for entry in log.data[:3]] == [20, 20, 20]
        assert {entry["actorId"] for entry in log.data[:3]} == {me}
    assert sorted(address for to, _ in server.received for address in to if address in wanted) == sorted(wanted)


async def test_a_killed_replay_goes_on_where_it_was_and_repeats_nothing(house: House) -> None:
    wanted, ledger, ward, began = emails(60), Ledger(), Ward(), datetime.now(UTC).isoformat()
    async with mail_server(ward) as server:
        async with house.run(SMTP_URL=server.url, **QUICK) as run, house.gateway() as client:
            await ledger.register(client, wanted, at_once=10)
            await letters_stand(house, ledger, 60)
            ward.healed = True
            admin = await client.admin()
            since: dict[str, Any] = {"from": began, "type": "EmailVerificationRequested"}
            begun = await client.call("admin.dead-letters.replay", access=admin, **since, atOnce=True, rate=30)
            async with asyncio.timeout(30):
                while len(server.received) < 20:
                    await asyncio.sleep(0.02)
            await run.kill()
        async with house.run(SMTP_URL=server.url, **QUICK), house.gateway() as client:
            job = await ended(client, await client.admin(), begun.data["jobId"])
            assert job["state"] == "done"
            assert job["done"] + job["alreadyHandled"] == 60
    received = [address for to, _ in server.received for address in to if address in ledger.user_ids]
    assert set(received) == set(wanted)
    # Handed to the mail server right before the kill, and not written down yet: at most those in work then.
    assert len(received) <= 60 + 4


async def test_a_users_letters_are_replayed_in_their_order_and_others_do_not_wait(house: House) -> None:
    async with with_letters(house, 3, resent=True) as scene:
        unlucky, *_ = scene.emails
        scene.ward.refuses = {unlucky}
        job = await scene.ended(
            await scene.act("replay", ids=await scene.letter_ids(*scene.emails), atOnce=True, rate=1000)
        )
        assert (job["state"], job["done"], job["failedAgain"]) == ("done", 4, 2)
        items = (await scene.act("jobs.get", jobId=job["id"])).data["items"]
        for user_id in map(str, scene.ledger.user_ids.values()):
            first, second = (item for item in items if item["userId"] == user_id)
            assert first["sentAt"] < first["endedAt"] <= second["sentAt"]
        refused = [item for item in items if item["userId"] == str(scene.ledger.user_ids[unlucky])]
        others = [item for item in items if item not in refused]
        assert max(item["endedAt"] for item in others) < max(item["endedAt"] for item in refused)


async def test_a_single_letter_that_fails_again_ends_its_replay(house: House) -> None:
    async with with_letters(house, 1) as scene:
        scene.ward.healed = False
        job = await scene.ended(await scene.act("replay", ids=await scene.letter_ids(*scene.emails)))
        assert (job["state"], job["failedAgain"], job["waiting"], job["why"]) == ("done", 1, 0, None)
        user = str(scene.ledger.user_ids[scene.emails[0]])
        [newest] = (await scene.act("list", userId=user)).data
        [oldest] = (await scene.act("list", userId=user, state="failed_again")).data
        shown = (await scene.act("get", letterId=newest["id"])).data["letter"]
        [before] = shown["replays"]
        assert (before["jobId"], before["letterId"], before["outcome"]) == (job["id"], oldest["id"], "failed_again")


async def test_a_cancelled_replay_closes_what_was_on_its_way(house: House) -> None:
    async def slowly(_: Envelope) -> str:
        await asyncio.sleep(1.5)
        return "250 OK"

    async with with_letters(house, 3) as scene:
        scene.server.on_data = slowly
        ids = await scene.letter_ids(*scene.emails)
        job_id = (await scene.act("replay", ids=ids, atOnce=True, rate=1000)).data["jobId"]
        async with database(house.ready) as rows, asyncio.timeout(30):
            on_their_way = "SELECT count(*) FROM replay_items WHERE job_id = $1 AND sent_at IS NOT NULL"
            while await rows.fetchval(on_their_way, job_id) < 3:
                await asyncio.sleep(0.05)
            assert (await scene.act("jobs.cancel", jobId=job_id)).ok
            while await rows.fetchval("SELECT count(*) FROM dead_letters WHERE id = ANY($1) AND state = 'dead'", ids):
                await asyncio.sleep(0.1)
        job = (await scene.act("jobs.get", jobId=job_id)).data["job"]
        assert (job["state"], job["done"], job["sent"]) == ("cancelled", 3, 0)


async def test_what_waits_long_on_the_stream_is_sent_again_only_where_it_is_lost_there(house: House) -> None:
    wanted, ledger, ward = emails(3), Ledger(), Ward()
    async with mail_server(ward) as server, database(house.ready) as rows, house.worker() as nc:
        js = nc.jetstream()
        async with house.run(SMTP_URL=server.url, **QUICK), house.gateway() as client:
            await ledger.register(client, wanted, at_once=3)
            await letters_stand(house, ledger, 3)
        ward.healed = True
        async with house.run("requests", "jobs", SMTP_URL=server.url, **QUICK), house.gateway() as client:
            admin = await client.admin()
            ids = [letter["id"] for email in wanted for letter in await of_user(client, admin, ledger, email)]
            begun = await client.call("admin.dead-letters.replay", access=admin, ids=ids, atOnce=True, rate=1000)
            job_id = begun.data["jobId"]

            async def all_are_sent() -> bool:
                return int(await rows.fetchval(_SENT_LATELY, job_id)) == 3

            async def held() -> int:
                return int((await js.stream_info("USER_REPLAYS")).state.messages)

            async def looked_for() -> int:
                """How many stand there once those that were sent long ago were looked for."""
                await rows.execute(_SENT_LONG_AGO, job_id)
                await eventually(all_are_sent, within_s=20, what="all to be looked for")
                return await held()

            await eventually(all_are_sent, within_s=20, what="all to be sent")
            before = await held()
            assert await looked_for() == before, "the group is not there, so what was sent waits"
            first = await rows.fetchval("SELECT min(sent_sequence) FROM replay_items WHERE job_id = $1", job_id)
            await js.delete_msg("USER_REPLAYS", first)
            config = (await js.stream_info("USER_REPLAYS")).config
            for window_s in (0.2, 0.1):  # the server takes a second copy, as it does two minutes after the first
                await js.update_stream(replace(config, duplicate_window=window_s))
                await asyncio.sleep(0.3)
            assert await looked_for() == before, "what is lost is sent again, and it alone"
            await js.update_stream(config)
            async with house.run("email", SMTP_URL=server.url, **QUICK):
                assert (await ended(client, admin, job_id))["done"] == 3
    sent = [address for to, _ in server.received for address in to if address in wanted]
    assert sorted(sent) == sorted(wanted)


_SENT_LATELY = "SELECT count(*) FROM replay_items WHERE job_id = $1 AND sent_at > now() - interval '1 minute'"
_SENT_LONG_AGO = "UPDATE replay_items SET sent_at = now() - interval '3 minutes' WHERE job_id = $1"


async def test_a_slow_replay_lets_others_have_their_turn(house: House) -> None:
    async with with_letters(house, 9) as scene:
        ids = await scene.letter_ids(*scene.emails)
        slow = await scene.act("replay", ids=ids[:8], atOnce=True, rate=0.5)
        quick = await scene.act("replay", ids=ids[8:], atOnce=True, rate=50)
        assert (await scene.ended(quick))["done"] == 1
        job = (await scene.act("jobs.get", jobId=slow.data["jobId"])).data["job"]
        assert (job["state"], job["done"] < 8) == ("running", True)
        assert (await scene.act("jobs.cancel", jobId=job["id"])).ok


async def test_discarded_letters_are_left_out_and_can_be_restored(house: House) -> None:
    async with with_letters(house, 4) as scene:
        user = str(scene.ledger.user_ids[scene.emails[0]])
        [letter_id] = await scene.letter_ids(scene.emails[0])
        assert (await scene.act("discard", userId=user, why="not theirs", dryRun=True)).data["count"] == 1
        assert await scene.letter_ids(scene.emails[0]) == [letter_id]
        assert (await scene.act("discard", why="a test")).code == "VALIDATION_ERROR"
        assert (await scene.act("discard", userId=user, why="not theirs")).data["count"] == 1
        me = (await scene.client.call("me.get", access=scene.admin)).data["user"]["id"]
        closed = (await scene.act("get", letterId=letter_id)).data["letter"]
        assert (closed["state"], closed["stateBy"], closed["stateWhy"]) == ("discarded", me, "not theirs")
        steps = (await scene.client.call("admin.timeline.get", access=scene.admin, userId=user)).data
        assert [(step["actorId"], step["text"]) for step in steps if step["kind"] == "discarded"] == [
            (me, "not theirs")
        ]
        begun = await scene.act("replay", ids=await scene.letter_ids(*scene.emails[1:]), why="theirs is another case")
        assert (await scene.ended(begun))["done"] == 3
        assert (await scene.act("restore", userId=user, why="theirs after all")).data["count"] == 1
        assert (await scene.ended(await scene.act("replay", userId=user)))["done"] == 1
        log = (
            await scene.client.call("admin.audit-logs.list", access=scene.admin, action="dead_letters_replayed")
        ).data
        assert log[1]["details"]["why"] == "theirs is another case"
    sent = [address for to, _ in scene.server.received for address in to if address in scene.emails]
    assert sorted(sent) == sorted(scene.emails)


async def test_what_the_server_gave_up_while_nobody_listened_becomes_a_letter(house: House) -> None:
    async with house.run(**QUICK):
        pass  # streams and durables are there now
    async with house.run("requests", "relay", **QUICK), house.gateway() as client, house.worker() as nc:
        ledger = Ledger()
        await ledger.register(client, emails(2), at_once=2)
        subscription = await nc.jetstream().pull_subscribe_bind("email", stream="USER_EVENTS")
        idle = 0
        while idle < 2:  # workers that die under each delivery, as far as the server can tell
            try:
                for message in await subscription.fetch(10, timeout=0.5):
                    await message.nak()
                    idle = 0
            except (NatsTimeout, TimeoutError):
                idle += 1
    async with house.run("jobs", **QUICK) as run, database(house.ready) as rows:
        await letters_stand(house, ledger, 4)
        assert (await run.figures())['event_deliveries_given_up_total{group="email"}'] == 4
        told = {(line["eventId"], line["requestId"]) for line in run.lines("dead letter")}
        asked = "SELECT id::text, metadata ->> 'requestId' FROM events WHERE aggregate_id = ANY($1)"
        assert told == {tuple(row) for row in await rows.fetch(asked, list(ledger.user_ids.values()))}
        found = await rows.fetch(
            "SELECT reason, deliveries, version, body FROM dead_letters WHERE user_id = ANY($1)",
            list(ledger.user_ids.values()),
        )
    assert {(row["reason"], row["deliveries"]) for row in found} == {("worker_died", 6)}
    assert sorted(row["version"] for row in found) == [1, 1, 2, 2]
    assert all(json.loads(row["body"])["id"] for row in found)


async def advisories_read(house: House) -> int:
    """How many were handed out, once none is left."""
    async with house.worker() as nc, asyncio.timeout(20):
        while True:
            place = await nc.jetstream().consumer_info("USER_ADVISORIES", "given-up")
            if not place.num_pending and not place.num_ack_pending:
                return place.delivered.consumer_seq if place.delivered else 0
            await asyncio.sleep(0.05)


async def test_what_others_give_up_or_make_up_is_no_letter_of_ours(house: House) -> None:
    advisories = "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.USER_EVENTS"
    async with house.run(**QUICK), house.gateway() as client, house.listener() as listener:
        before, js = await advisories_read(house), listener.jetstream()
        own = ConsumerConfig(durable_name="billing", ack_policy=AckPolicy.EXPLICIT, max_deliver=1, ack_wait=0.3)
        await js.add_consumer("USER_EVENTS", own)
        ledger = Ledger()
        await ledger.register(client, emails(1), at_once=1)
        subscription = await js.pull_subscribe_bind("billing", "USER_EVENTS")
        assert await subscription.fetch(2, timeout=5)  # and never acknowledges them
        await js.add_consumer("USER_EVENTS", replace(own, durable_name="none", filter_subject="users.events.v1.None.>"))
        nothing = json.dumps({"batch": 1, "no_wait": True}).encode()
        for _ in range(3):  # the status that answers a pull goes wherever it says, without a body
            await listener.publish("$JS.API.CONSUMER.MSG.NEXT.USER_EVENTS.none", nothing, reply=f"{advisories}.email")

        async def all_are_read() -> bool:
            return await advisories_read(house) == before + 3

        await eventually(all_are_read, within_s=20, what="what was made up to be read")
        await asyncio.sleep(2)
        assert await advisories_read(house) == before + 3, "none comes again, and none is of the listener's own"
        async with database(house.ready) as rows:
            assert not await rows.fetchval("SELECT count(*) FROM dead_letters WHERE group_name = 'billing'")
        for name in ("billing", "none"):
            await js.delete_consumer("USER_EVENTS", name)
