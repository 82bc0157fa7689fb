"""What a stream has lost is put back from the tables: all of it, in order, once, and nothing else."""

import asyncio
from datetime import UTC, datetime, timedelta
from functools import partial
from uuid import UUID, uuid4

import asyncpg
import pytest
import pytest_asyncio
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.errors import TimeoutError as NatsTimeout
from nats.js import JetStreamContext
from nats.js.api import RawStreamMsg
from nats.js.errors import NotFoundError

from adapters.event_log import Trail
from adapters.inbox import add_letter
from adapters.personal_data import PersonalData
from adapters.postgres import Database
from adapters.refill import RETENTION, last_position
from adapters.stream_marks import (
    first_mark,
    give_back_mark,
    lease_mark,
    move_mark,
    note_loss,
    note_refilled,
    note_refilled_to,
)
from adapters.stream_reader import StreamState
from adapters.streams import EVENTS_STREAM, LETTERS_STREAM
from adapters.telemetry import Metrics
from contracts.events import chain_of
from domain.refusals import Stale
from domain.user import User
from handlers.dead_letters import Announcer
from handlers.reconciler import Reconciler
from handlers.refill import EventsRefill, LettersRefill
from tests.builders import NOW, settings_of
from tests.integration.relaying import a_past, relayed, renamed, without_memory
from tests.program import eventually


async def on_stream(js: JetStreamContext, user: User) -> list[str]:
    """The ids of a user's events, in the stream's order."""
    found: list[str] = []
    sequence = 1
    while True:
        try:
            message = await js.get_msg(EVENTS_STREAM, seq=sequence, subject=chain_of(user.id), next=True)
        except NotFoundError:
            return found
        found.append((message.headers or {})["Nats-Msg-Id"])
        sequence = (message.seq or 0) + 1


async def in_table(database: Database, user: User) -> list[str]:
    async with database.connection() as rows:
        found = await rows.fetch("SELECT id FROM events WHERE aggregate_id = $1 ORDER BY version", user.id)
    return [str(row["id"]) for row in found]


@pytest_asyncio.fixture
async def start(owner: asyncpg.Connection) -> int:
    await owner.execute("DELETE FROM outbox")  # of other tests
    return await last_position(owner) + 1  # type: ignore[arg-type]


@pytest.mark.usefixtures("start")
async def test_a_relay_puts_nothing_behind_a_gap(
    database: Database, personal: PersonalData, trail: Trail, events_bus: Client
) -> None:
    js = events_bus.jetstream()
    async with relayed(database, events_bus, personal):
        gone, short, whole = [await a_past(database, personal, trail) for _ in range(3)]
    async with without_memory(events_bus):
        await js.purge_stream(EVENTS_STREAM, subject=chain_of(gone.id))
        last = await js.get_last_msg(EVENTS_STREAM, chain_of(short.id))
        await js.delete_msg(EVENTS_STREAM, last.seq or 0)
        async with relayed(database, events_bus, personal):
            for user in (gone, short, whole):
                await renamed(database, personal, trail, user)
                await renamed(database, personal, trail, user)
    for user in (gone, short, whole):
        assert await on_stream(js, user) == await in_table(database, user)


async def test_what_its_age_has_ended_does_not_come_back(
    database: Database, personal: PersonalData, trail: Trail, events_bus: Client, start: int
) -> None:
    js, old = events_bus.jetstream(), datetime.now(UTC) - RETENTION - timedelta(days=1)
    async with relayed(database, events_bus, personal):
        user = await a_past(database, personal, trail, at=old)
    await js.purge_stream(EVENTS_STREAM, subject=chain_of(user.id))
    assert await missing(database, js, start) == 0
    async with relayed(database, events_bus, personal):
        await renamed(database, personal, trail, user)
    assert await on_stream(js, user) == (await in_table(database, user))[-1:]


async def test_a_copy_that_the_server_does_not_store_is_not_counted_as_announced(
    database: Database, personal: PersonalData, trail: Trail, events_bus: Client, start: int, owner: asyncpg.Connection
) -> None:
    """It remembers ids for two minutes, also of what was deleted, and acknowledges a copy that it does not keep."""
    js, waiting = events_bus.jetstream(), "SELECT count(*) FROM outbox"
    async with relayed(database, events_bus, personal):
        user = await a_past(database, personal, trail)
    last = await js.get_last_msg(EVENTS_STREAM, chain_of(user.id))
    await js.delete_msg(EVENTS_STREAM, last.seq or 0)
    async with relayed(database, events_bus, personal):
        assert await put_back(database, js, start) == 1
        await asyncio.sleep(1.0)  # two passes of the relay
        assert await owner.fetchval(waiting) == 1
        async with without_memory(events_bus):
            await eventually(partial(nothing_waits, owner), within_s=10, what="the copy to be taken")
    assert await on_stream(js, user) == await in_table(database, user)


async def nothing_waits(owner: asyncpg.Connection) -> bool:
    return not await owner.fetchval("SELECT EXISTS (SELECT FROM outbox)")


async def put_back(database: Database, js: JetStreamContext, start: int) -> int:
    refill, after, count = EventsRefill(database, js, from_position=start), None, 0
    while (step := await refill.page(after)) is not None and step.to is not None:
        after, count = step.to, count + step.put_back
    return count


async def test_of_an_erased_user_nothing_comes_back_while_the_stream_is_swept(
    database: Database, personal: PersonalData, trail: Trail, events_bus: Client, start: int
) -> None:
    js = events_bus.jetstream()
    async with relayed(database, events_bus, personal):
        user = await a_past(database, personal, trail)
    await js.purge_stream(EVENTS_STREAM, subject=chain_of(user.id))
    async with database.connection() as rows:
        await rows.execute("DELETE FROM user_keys WHERE user_id = $1", user.id)
        await rows.execute(
            "WITH last AS (INSERT INTO events (id, aggregate_id, version, type, occurred_at, data, metadata) SELECT "
            "$2, $1, 6, 'UserErased', now(), '{}', metadata FROM events WHERE aggregate_id = $1 AND version = 1 "
            "RETURNING position) INSERT INTO outbox (position, user_id, version) SELECT position, $1, 6 FROM last",
            user.id, uuid4(),
        )  # fmt: skip
    assert await missing(database, js, start) == 0
    async with relayed(database, events_bus, personal):
        pass
    assert await on_stream(js, user) == (await in_table(database, user))[-1:]
    assert await missing(database, js, start) == 0


async def missing(database: Database, js: JetStreamContext, start: int) -> int:
    refill, after, count = EventsRefill(database, js, from_position=start), None, 0
    while (step := await refill.look(after)).to is not None:
        after, count = step.to, count + step.put_back
    return count


async def test_only_letters_that_their_stream_has_lost_are_announced_again(
    database: Database, events_bus: Client, owner: asyncpg.Connection
) -> None:
    js, user_id = events_bus.jetstream(), uuid4()
    await owner.execute("UPDATE dead_letters SET announced_at = now() WHERE announced_at IS NULL")
    async with database.connection() as rows:
        for number in range(5):
            await add_letter(
                rows, group="email", event_id=uuid4(), user_id=user_id, event_type="UserLogin", reason="a_test",
                error="E", message="", subject="s", body=b"{}", headers={}, deliveries=1, stream="USER_EVENTS",
                stream_sequence=number, durable="email",
            )  # fmt: skip
    announcer = Announcer(database, events_bus)
    assert not await announcer._announce_some()
    subject = f"users.dead-letters.email.UserLogin.{user_id}"
    first = await js.get_msg(LETTERS_STREAM, seq=1, subject=subject, next=True)
    await js.delete_msg(LETTERS_STREAM, first.seq or 0)
    lost, after = 0, None
    while (step := await LettersRefill(database, js).page(after)) is not None and step.to is not None:
        after = step.to
    again = await owner.fetch("SELECT id FROM dead_letters WHERE announced_at IS NULL AND user_id = $1", user_id)
    lost += len(again)
    assert [str(row["id"]) for row in again] == [(first.headers or {})["Dead-Letter-Id"]]
    assert lost == 1


@pytest.mark.usefixtures("start")
async def test_a_stream_that_somebody_purged_is_filled_up_and_an_erased_users_messages_are_not_missed(
    database: Database, personal: PersonalData, trail: Trail, events_bus: Client, database_url: str,
    owner: asyncpg.Connection,
) -> None:  # fmt: skip
    js = events_bus.jetstream()
    await owner.execute("DELETE FROM stream_marks")
    await owner.execute("UPDATE relay_heads SET version = 0")  # nothing of other tests was announced
    reconciler = Reconciler(database, js, settings_of(database_url), Metrics())
    losses = "SELECT lost_what, put_back, refilled_at IS NOT NULL AS done FROM stream_marks WHERE stream = $1"

    async def look() -> tuple[object, ...]:
        await owner.execute("UPDATE stream_marks SET leased_until = '-infinity'")
        await reconciler.look_at(EVENTS_STREAM)
        return tuple((await owner.fetch(losses, EVENTS_STREAM))[0])

    async with relayed(database, events_bus, personal):
        erased = await a_past(database, personal, trail)
    assert await look() == (None, 0, False)
    await owner.execute("DELETE FROM user_keys WHERE user_id = $1", erased.id)
    await js.purge_stream(EVENTS_STREAM)
    assert await look() == (None, 0, False)
    async with without_memory(events_bus), relayed(database, events_bus, personal):
        user = await a_past(database, personal, trail)
        await eventually(partial(nothing_waits, owner), within_s=10, what="the relay")
        assert await look() == (None, 0, False)
        await js.purge_stream(EVENTS_STREAM)
        assert await look() == ("lacks what was announced", 5 + 5, True)
    assert await on_stream(js, user) == await in_table(database, user)
    assert await look() == ("lacks what was announced", 10, True)
    await owner.execute("DELETE FROM stream_marks")


async def test_one_process_at_a_time_looks_at_a_stream(database: Database) -> None:
    stream, state = f"S{uuid4().hex}", StreamState(NOW, 1, 5)
    async with database.connection() as first, database.connection() as second:
        assert await lease_mark(first, stream) is None
        await first_mark(first, stream, state, "a", compared_to=7)
        leases = await asyncio.gather(lease_mark(first, stream), lease_mark(second, stream))
        assert [lease is None for lease in leases].count(False) == 1
        late = leases[0] or leases[1]
        assert late
        await give_back_mark(first, late, rest=timedelta())
        mark = await lease_mark(second, stream)
        assert mark
        assert (mark.last_sequence, mark.message_id, mark.compared_to, mark.lost_what) == (5, "a", 7, None)
        await note_loss(second, mark, state, "a", "made anew")
        await note_refilled_to(second, mark, user := uuid4(), 3)
        await give_back_mark(second, mark, rest=timedelta())
        again = await lease_mark(first, stream)  # whoever comes next goes on where the other was
        assert again
        assert (again.lost_what, again.refilled_to) == ("made anew", user)
        assert await note_refilled(first, again) == 3
        for write in (  # whose lease is over changes nothing any more
            move_mark(first, late, state, "z", compared_to=99),
            note_loss(first, late, state, "z", "made anew"),
            note_refilled_to(first, mark, uuid4(), 3),
            note_refilled(first, mark),
            give_back_mark(first, late, rest=timedelta()),
        ):
            with pytest.raises(Stale):
                await write
        await first.execute("DELETE FROM stream_marks WHERE stream = $1", stream)


class Silent(JetStreamContext):
    """A JetStream that does not answer."""

    async def get_last_msg(self, *_: object, **__: object) -> RawStreamMsg:
        raise NatsTimeout


async def test_a_silent_jetstream_is_not_held_against_the_database(
    database: Database, personal: PersonalData, trail: Trail, events_bus: Client, start: int
) -> None:
    async with relayed(database, events_bus, personal):
        user = await a_past(database, personal, trail)
    before = UUID(int=user.id.int - 1)  # other tests may have made more users than the first page holds
    for _ in range(6):
        with pytest.raises(NatsError, match="does not answer"):
            await EventsRefill(database, Silent(events_bus), from_position=start).page(before)
    assert database.breaker.state == "closed"
