"""SIGTERM under load: nobody is left without an answer, nothing is lost, and no delivery waits out its ack time."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from uuid import UUID

import pytest
from nats.errors import NoRespondersError
from nats.errors import TimeoutError as NatsTimeout

from tests.faults.house import SERVERS, House, Run
from tests.faults.ledger import (
    GROUPS,
    Ledger,
    emails,
    key_of,
    require_audit,
    require_mail,
    require_rows,
    require_stream,
    until_finished,
)
from tests.gateway import Gateway
from tests.integration.mail_server import MailServer, never
from tests.program import until

STOP_S_MAX = 10.0
ALONE_STOP_S_MAX = 14.0  # nine seconds are promised where no server answers; this machine is shared
ANSWERED_S_MAX = 5.0  # a delivery that is not handed back lies still for 15 s, and a start takes three
AT_ONCE_S_MAX = 3.0  # a request that reaches nobody is silent for 20 s
GIVEN_UP_S_MAX = 3.0  # a server that is silent is waited for five seconds
MAY_RETRY = {"OVERLOADED", "SERVICE_UNAVAILABLE"}


@dataclass
class Crowd:
    """Callers that register one user after the other, ask again when told to, and count what they were answered."""

    ledger: Ledger = field(default_factory=Ledger)
    refused: dict[str, int] = field(default_factory=dict)
    silences: list[str] = field(default_factory=list)
    nobody_s_max: float = 0.0

    async def register(self, client: Gateway, *, again: bool) -> None:
        """One address; with `again` until it is registered, under its one key."""
        [email] = emails(1)
        self.ledger.unanswered.add(email)
        while await self._ask(client, email) and again:
            await asyncio.sleep(0.02)

    async def _ask(self, client: Gateway, email: str) -> bool:
        """True when it may be asked again."""
        began = time.monotonic()
        try:
            reply = await client.register(email, headers={"Idempotency-Key": key_of(email)})
        except NoRespondersError:
            self.nobody_s_max = max(self.nobody_s_max, time.monotonic() - began)
            self._count("nobody")
            return True
        except (NatsTimeout, TimeoutError):
            self.silences.append(email)
            return False
        if reply.ok:
            self.ledger.accepted[email] = reply
            self.ledger.unanswered.discard(email)
            return False
        assert reply.code in MAY_RETRY, reply.body
        assert reply.body["error"]["retryAfter"] >= 1
        self._count(reply.code)
        return True

    def _count(self, what: str) -> None:
        self.refused[what] = self.refused.get(what, 0) + 1

    @asynccontextmanager
    async def at_work(self, client: Gateway, *, at_once: int, again: bool) -> AsyncIterator[None]:
        """So many at once, while the block lasts; who has begun comes to an end."""
        stop = asyncio.Event()

        async def work() -> None:
            while not stop.is_set() and not self.refused.get("nobody"):
                await self.register(client, again=again)
                await asyncio.sleep(0.01)

        async with asyncio.TaskGroup() as workers:
            for _ in range(at_once):
                workers.create_task(work())
            try:
                yield
            finally:
                stop.set()


async def stopped(run: Run) -> float:
    """SIGTERM; how long the stop took."""
    began = time.monotonic()
    assert await run.stop() == 0, run.log[-3000:]
    return time.monotonic() - began


async def handed_out(house: House) -> dict[str, int]:
    """How far each group has been given the stream."""
    async with house.worker() as nc:
        found = [await nc.jetstream().consumer_info("USER_EVENTS", group) for group in GROUPS]
    return {info.name: info.delivered.stream_seq if info.delivered else 0 for info in found}


async def answered_after(house: House, wanted: Mapping[str, int]) -> dict[str, float]:
    """Seconds until each group has answered all that it had been given."""
    began = time.monotonic()
    took: dict[str, float] = {}
    async with house.worker() as nc, asyncio.timeout(30):
        while wanted.keys() - took.keys():
            for group in wanted.keys() - took.keys():
                info = await nc.jetstream().consumer_info("USER_EVENTS", group)
                if info.ack_floor and info.ack_floor.stream_seq >= wanted[group]:
                    took[group] = time.monotonic() - began
            await asyncio.sleep(0.05)
    return took


async def require_all_of_it(house: House, crowd: Crowd) -> None:
    """Who was registered stays so, once, with all that follows; who was not is by the same key."""
    ledger = crowd.ledger
    before = dict(ledger.accepted)
    async with house.gateway() as client:
        await ledger.register(client, [*before, *ledger.unanswered], at_once=16)
    assert not ledger.refused
    assert not ledger.unanswered
    assert all(ledger.accepted[email].data == reply.data for email, reply in before.items())
    await until_finished(house.ready, ledger.user_ids.values(), within_s=45)
    events = await require_stream(house.ready, await require_rows(house.ready, ledger.user_ids))
    await require_audit(house.ready, (event for of_user in events.values() for event in of_user))


async def finished_by_the_next(house: House, crowd: Crowd) -> dict[str, float]:
    """Another run takes over, and all is as it should be; seconds until each group had answered what it was given."""
    wanted = await handed_out(house)
    async with house.run():
        took = await answered_after(house, wanted)
        await require_all_of_it(house, crowd)
    require_mail(house.mail_dir, crowd.ledger.accepted, twice_max=0)
    assert max(took.values()) < ANSWERED_S_MAX, took
    return took


@pytest.mark.parametrize("words", [(), ("--workers", "2")], ids=["all groups", "two workers"])
async def test_a_stop_answers_everyone_and_leaves_no_delivery_lying(
    house: House, record_testsuite_property: Callable[[str, object], None], words: tuple[str, ...]
) -> None:
    crowd, what = Crowd(), "two workers" if words else "all groups"
    async with house.run(*words) as run, house.gateway() as client, crowd.at_work(client, at_once=24, again=False):
        await until(lambda: len(crowd.ledger.accepted) >= 200, within_s=30, what="200 registrations")
        stop_s = await stopped(run)
        await until(lambda: crowd.refused.get("nobody"), within_s=5, what="callers who find nobody")
    took = await finished_by_the_next(house, crowd)
    record_testsuite_property(f"stop of {what}, seconds", stop_s)
    record_testsuite_property(f"stop of {what}, deliveries answered after the next start, seconds", max(took.values()))
    record_testsuite_property(f"stop of {what}, refused", json.dumps(crowd.refused))
    assert crowd.silences == []
    assert stop_s < STOP_S_MAX
    assert crowd.nobody_s_max < AT_ONCE_S_MAX


async def test_a_stop_hands_back_the_mail_that_a_server_does_not_take(
    house: House, record_testsuite_property: Callable[[str, object], None]
) -> None:
    crowd = Crowd()
    hanging = MailServer(on_data=never)
    await hanging.start()
    try:
        async with house.run(SMTP_URL=hanging.url) as run, house.gateway() as client:
            await crowd.ledger.register(client, emails(12), at_once=6)
            await until(lambda: "MAIL" in hanging.commands, within_s=10, what="mail in work")
            stop_s = await stopped(run)
    finally:
        await hanging.stop()
    took = await finished_by_the_next(house, crowd)
    record_testsuite_property("stop with mail that hangs, seconds", stop_s)
    record_testsuite_property(
        "stop with mail that hangs, deliveries answered after the next start, seconds", took["email"]
    )
    assert stop_s < STOP_S_MAX


async def test_one_of_two_that_stops_leaves_its_callers_to_the_other(
    house: House, record_testsuite_property: Callable[[str, object], None]
) -> None:
    crowd = Crowd()
    async with house.run("requests") as run, house.run(), house.gateway() as client:
        async with crowd.at_work(client, at_once=24, again=True):
            await until(lambda: len(crowd.ledger.accepted) >= 100, within_s=30, what="100 registrations")
            stop_s = await stopped(run)
            stopped_at = len(crowd.ledger.accepted)
            await until(lambda: len(crowd.ledger.accepted) >= stopped_at + 50, within_s=20, what="50 more")
        assert not crowd.ledger.unanswered
        await require_all_of_it(house, crowd)
    require_mail(house.mail_dir, crowd.ledger.accepted, twice_max=0)
    record_testsuite_property("stop of one of two, seconds", stop_s)
    record_testsuite_property("stop of one of two, refused", json.dumps(crowd.refused))
    assert crowd.silences == []
    assert crowd.refused.keys() <= {"OVERLOADED"}
    assert stop_s < STOP_S_MAX


async def test_an_event_that_comes_during_a_stop_is_not_used_up_by_handing_it_back(house: House) -> None:
    """With little to do a pull is still open then: what is handed back too early comes straight back into it."""
    [email] = emails(1)
    async with house.run() as run, house.gateway() as client:
        reply = await client.register(email)  # the relay takes a breath before it announces what came of that
        await stopped(run)
    user_id = UUID(reply.data["user"]["id"])
    async with house.run(), house.worker() as nc:
        await until_finished(house.ready, [user_id], within_s=10)
        for group in GROUPS:
            found = await nc.jetstream().consumer_info("USER_EVENTS", group)
            assert found.delivered
            handed_out_again = (found.delivered.consumer_seq or 0) - (found.delivered.stream_seq or 0)
            assert handed_out_again <= 2, group  # each of the two events once more, at most
    require_mail(house.mail_dir, [email], twice_max=0)


@pytest.mark.parametrize("how", ["gone", "frozen"])
async def test_a_stop_is_as_short_with_every_server_away(
    house: House, record_testsuite_property: Callable[[str, object], None], how: str
) -> None:
    async with house.run() as run, house.gateway() as client, AsyncExitStack() as away:
        registering = [asyncio.create_task(client.register()) for _ in range(8)]
        await asyncio.wait(registering)
        for name in SERVERS:
            if how == "gone":
                await away.enter_async_context(house.without(name))
            else:
                away.enter_context(house.frozen(name))
        stop_s = await stopped(run)
    record_testsuite_property(f"stop with every server {how}, seconds", stop_s)
    assert stop_s < ALONE_STOP_S_MAX


@pytest.mark.parametrize("words", [(), ("--workers", "2")], ids=["all groups", "two workers"])
async def test_a_stop_ends_a_start_that_waits_for_a_server(house: House, words: tuple[str, ...]) -> None:
    asked = asyncio.Event()

    async def never_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await reader.read()
        writer.close()

    silent = await asyncio.start_server(never_answer, "127.0.0.1", 0)
    async with silent:
        run = house.run(*words, NATS_URL=f"nats://127.0.0.1:{silent.sockets[0].getsockname()[1]}")
        await run.launch()
        async with asyncio.timeout(30):
            await asked.wait()
        assert await stopped(run) < GIVEN_UP_S_MAX
        assert run.lines("stopping") or words
        assert not run.lines("ready")
        assert not run.lines("supervising")
