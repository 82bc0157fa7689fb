"""Erasing, step by step: whatever dies in between, and whoever is at it besides, in the end nothing is left."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import pytest
import pytest_asyncio
from nats.aio.client import Client
from nats.js.errors import NotFoundError

from adapters.cache import SharedCache
from adapters.embedded import EmbeddedServers
from adapters.erasure import EMPTIED, LEASE, SETTLED_AFTER
from adapters.event_log import Trail, events_by_id
from adapters.inbox import add_letter
from adapters.nats import close, connect
from adapters.personal_data import PersonalData
from adapters.postgres import Database
from adapters.redis import Redis
from adapters.streams import EVENTS_STREAM, LETTERS_STREAM, REPLAYS_STREAM, provision
from adapters.telemetry import Metrics
from adapters.unit_of_work import unit_of_work
from contracts.wire import Empty
from domain.user import User, UserId
from handlers.endings import Loops
from handlers.erasure import Erasure
from handlers.relay import Relay
from tests.builders import settings_of
from tests.program import eventually

STREAMS = {
    EVENTS_STREAM: "users.events.v1.UserRegistered.{}",
    LETTERS_STREAM: "users.dead-letters.email.UserRegistered.{}",
    REPLAYS_STREAM: "users.replay.email.UserRegistered.{}",
}
GRACE = timedelta(days=30)


class Clock:
    """Begins now: nothing that other tests left is due before its time."""

    def __init__(self) -> None:
        self.time = datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.time


@pytest_asyncio.fixture
async def bus(servers: EmbeddedServers, database_url: str) -> AsyncIterator[Client]:
    settings = settings_of(database_url, nats_url=servers.addresses.nats_worker_url)

    async def on_closed() -> None:
        return

    client = await connect(settings, name="test", on_closed=on_closed)
    await provision(client.jetstream(), settings, ())
    yield client
    await close(client)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def erasure(
    database_url: str, database: Database, personal: PersonalData, bus: Client, redis: Redis, clock: Clock
) -> Erasure:
    settings = settings_of(database_url)
    return Erasure(database, personal, bus, SharedCache(redis), settings, now=clock, wake_relay=lambda: None)


async def a_deleted_user(
    database: Database, personal: PersonalData, trail: Trail, at: datetime, *, changes: int = 1
) -> User:
    """With a word of theirs in a row, in events, and nowhere else yet."""
    word = f"word{uuid4().hex}"
    user = User.register(
        UserId(uuid4()), email=f"{word}@example.org", first_name=word, last_name=word, password_hash="hash of theirs",
        at=at, origin="registration",
    )  # fmt: skip
    async with unit_of_work(database, personal, trail, announce=lambda _: None) as work:
        assert await work.users.add(user)
        await work.commit(Empty())
    async with unit_of_work(database, personal, trail, announce=lambda _: None) as work:
        locked = await work.users.lock(user.id)
        assert locked is not None
        for number in range(changes):
            locked.change({"bio": f"{word} {number}"}, expected_revision=None, at=at)
        locked.delete(by="user", at=at)
        await work.users.save(locked)
        await work.commit(Empty())
    return user


async def put_everywhere(database: Database, bus: Client, user: User) -> None:
    """Messages on all streams, as relay, announcer and replays leave them, and rows beside."""
    for subject in STREAMS.values():
        for _ in range(3):
            await bus.jetstream().publish(subject.format(user.id), user.email.encode())
    async with database.connection() as rows:
        event_id = await rows.fetchval("SELECT id FROM events WHERE aggregate_id = $1 LIMIT 1", user.id)
        await rows.execute(
            "INSERT INTO delivery_attempts (group_name, event_id, attempt, error, message, trace) "
            "VALUES ('email', $1, 1, 'Refused', $2, $2)", event_id, user.email,
        )  # fmt: skip
        await rows.execute(
            "INSERT INTO email_reservations VALUES ($1, $2, now() + interval '1 day')", f"old.{user.email}", user.id
        )
        await a_letter(rows, user, event_id)


async def a_letter(rows: asyncpg.pool.PoolConnectionProxy, user: User, event_id: UUID) -> None:
    await add_letter(
        rows, group="email", event_id=event_id, user_id=user.id, event_type="UserRegistered", reason="mail_refused",
        error="Permanent", message=user.email, subject="users.events.v1", body=user.email.encode(),
        headers={"X": user.email}, deliveries=1, stream=EVENTS_STREAM, stream_sequence=uuid4().int % 2**62,
        durable="email",
    )  # fmt: skip


async def left_of(database: Database, bus: Client, user: User) -> list[str]:
    """Where a word of theirs is still to be found."""
    found = []
    word = user.email.partition("@")[0]
    async with database.connection() as rows:
        for (table,) in await rows.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'"):
            if await rows.fetchval("SELECT has_table_privilege($1, 'SELECT')", table):
                hexed = word.encode().hex()
                query = f'SELECT count(*) FROM "{table}" t WHERE t::text LIKE $1 OR t::text LIKE $2'
                if await rows.fetchval(query, f"%{word}%", f"%{hexed}%"):
                    found.append(table)
    for stream, subject in STREAMS.items():
        try:
            await bus.jetstream().get_last_msg(stream, subject.format(user.id))
            found.append(stream)
        except NotFoundError:
            continue
    return sorted(found)


async def finish(erasure: Erasure) -> None:
    for _ in range(50):
        if not await erasure.erase_one():
            return
    raise AssertionError("erasing finds no end")


async def test_nothing_happens_before_the_grace_is_over(
    erasure: Erasure, clock: Clock, database: Database, personal: PersonalData, trail: Trail, bus: Client
) -> None:
    user = await a_deleted_user(database, personal, trail, clock())
    clock.time += GRACE - timedelta(seconds=1)
    await finish(erasure)
    assert await left_of(database, bus, user) != []
    clock.time += timedelta(seconds=2)
    await finish(erasure)
    assert await left_of(database, bus, user) == []


class Died(Exception):
    """The process, at this point."""


STEPS = ("erase_user", "sweep_rows", "version_of", "remove_all", "delete_messages", "note_swept")


@pytest.mark.parametrize(("step", "after"), list(itertools.product(STEPS, (False, True))))
async def test_a_death_at_any_step_leaves_the_user_to_the_next(
    erasure: Erasure, clock: Clock, database: Database, personal: PersonalData, trail: Trail, bus: Client,
    monkeypatch: pytest.MonkeyPatch, step: str, *, after: bool,
) -> None:  # fmt: skip
    user = await a_deleted_user(database, personal, trail, clock())
    await put_everywhere(database, bus, user)
    assert len(await left_of(database, bus, user)) >= 7
    clock.time += GRACE + timedelta(hours=2)
    with monkeypatch.context() as patched:
        patched.setattr(f"handlers.erasure.{step}", dying(step, after=after))
        with pytest.raises(Died):
            await erasure.erase_one()
    clock.time += LEASE + timedelta(seconds=1)
    await finish(erasure)
    assert await left_of(database, bus, user) == []
    async with database.connection() as rows:
        ends = await rows.fetchval(
            "SELECT count(*) FROM events WHERE aggregate_id = $1 AND type = 'UserErased'", user.id
        )
        assert await rows.fetchval("SELECT count(*) FROM user_keys WHERE user_id = $1", user.id) == 0
    assert ends == 1


def dying(step: str, *, after: bool) -> Callable[..., Awaitable[object]]:
    import handlers.erasure

    real = getattr(handlers.erasure, step)

    async def die(*args: object, **more: object) -> object:
        if after:
            await real(*args, **more)
        raise Died

    return die


async def test_several_at_once_erase_each_user_once(
    erasure: Erasure, clock: Clock, database: Database, personal: PersonalData, trail: Trail, bus: Client
) -> None:
    users = [await a_deleted_user(database, personal, trail, clock()) for _ in range(10)]
    clock.time += GRACE + timedelta(hours=2)
    await asyncio.gather(*(finish(erasure) for _ in range(4)))
    async with database.connection() as rows:
        ends = await rows.fetch(
            "SELECT count(*) FROM events WHERE aggregate_id = ANY($1) AND type = 'UserErased' GROUP BY aggregate_id",
            [user.id for user in users],
        )
    assert [row[0] for row in ends] == [1] * len(users)
    assert [place for user in users for place in await left_of(database, bus, user)] == []


async def test_what_was_written_while_it_was_erased_goes_with_the_second_sweep(
    erasure: Erasure, clock: Clock, database: Database, personal: PersonalData, trail: Trail, bus: Client
) -> None:
    user = await a_deleted_user(database, personal, trail, clock())
    clock.time += GRACE + timedelta(hours=2)
    await finish(erasure)
    await bus.jetstream().publish(STREAMS[EVENTS_STREAM].format(user.id), user.email.encode())  # had been buffered
    clock.time += SETTLED_AFTER + timedelta(seconds=1)
    await finish(erasure)
    assert await left_of(database, bus, user) == []
    async with database.connection() as rows:
        assert await rows.fetchval("SELECT is_swept FROM users WHERE id = $1", user.id)


async def test_a_letter_that_comes_after_says_only_that_something_died(
    erasure: Erasure, clock: Clock, database: Database, personal: PersonalData, trail: Trail, bus: Client
) -> None:
    user = await a_deleted_user(database, personal, trail, clock())
    clock.time += GRACE + timedelta(hours=2)
    await finish(erasure)
    async with database.connection() as rows:
        event_id = await rows.fetchval("SELECT id FROM events WHERE aggregate_id = $1 LIMIT 1", user.id)
        await a_letter(rows, user, event_id)
        assert await rows.fetchval("SELECT reason FROM dead_letters WHERE user_id = $1", user.id) == "mail_refused"
    assert await left_of(database, bus, user) == []


async def test_a_relay_in_the_middle_of_it_leaves_nothing_plain_and_announces_the_end(
    erasure: Erasure, clock: Clock, database: Database, personal: PersonalData, trail: Trail, bus: Client,
    owner: asyncpg.Connection,
) -> None:  # fmt: skip
    """Hundreds of events wait while the key goes: what is relayed before is deleted, what is relayed after is empty."""
    await owner.execute("DELETE FROM outbox")
    relay = Relay(database, bus, personal, Metrics(), fence=True)
    for _ in range(5):
        user = await a_deleted_user(database, personal, trail, clock(), changes=300)
        clock.time += GRACE + timedelta(hours=2)
        async with Loops() as loops:
            loops.start(relay.run(), "relay")
            relay.wake()
            await asyncio.sleep(0.06)  # into its pass
            await finish(erasure)
            await eventually(partial(nothing_waits, owner, user), within_s=20, what="all events to be announced")
        assert await owner.fetchval("SELECT version FROM relay_heads WHERE user_id = $1", user.id) == 303
        messages = await all_of(bus, user)
        assert messages[-1][0] == f"users.events.v1.UserErased.{user.id}"
        assert [body for _, body in messages if user.first_name.encode() in body] == []


async def test_the_key_goes_only_when_no_relay_holds_what_it_opened(
    erasure: Erasure, clock: Clock, database: Database, personal: PersonalData, trail: Trail, bus: Client,
    owner: asyncpg.Connection,
) -> None:  # fmt: skip
    user = await a_deleted_user(database, personal, trail, clock())
    clock.time += GRACE + timedelta(hours=2)
    async with owner.transaction():  # as a relay does while it publishes
        await owner.fetch("SELECT FROM relay_heads WHERE user_id = $1 FOR UPDATE", user.id)
        erasing = asyncio.create_task(finish(erasure))
        await eventually(partial(waits_for_a_lock, owner), within_s=10, what="the erasure to wait")
        await bus.jetstream().publish(STREAMS[EVENTS_STREAM].format(user.id), user.email.encode())
    await erasing
    assert await left_of(database, bus, user) == []


async def waits_for_a_lock(owner: asyncpg.Connection) -> bool:
    return bool(
        await owner.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE pg_backend_pid() = ANY(pg_blocking_pids(pid))"
        )
    )


async def nothing_waits(owner: asyncpg.Connection, user: User) -> bool:
    return not await owner.fetchval("SELECT count(*) FROM outbox WHERE user_id = $1", user.id)


async def all_of(bus: Client, user: User) -> list[tuple[str, bytes]]:
    found: list[tuple[str, bytes]] = []
    seq = 1
    while True:
        try:
            message = await bus.jetstream().get_msg(
                EVENTS_STREAM, seq=seq, subject=f"users.events.v1.*.{user.id}", next=True
            )
        except NotFoundError:
            return found
        found.append((message.subject or "", message.data or b""))
        seq = (message.seq or 0) + 1


async def test_the_last_event_reads_without_its_key(
    erasure: Erasure, clock: Clock, database: Database, personal: PersonalData, trail: Trail
) -> None:
    user = await a_deleted_user(database, personal, trail, clock())
    clock.time += GRACE + timedelta(hours=2)
    await finish(erasure)
    async with database.connection() as rows:
        ids = await rows.fetch("SELECT id FROM events WHERE aggregate_id = $1 ORDER BY version", user.id)
        events = await events_by_id(rows, personal, [row["id"] for row in ids])
    stored = [events[row["id"]] for row in ids]
    assert [getattr(one, "event").erased for one in stored] == [True] * (len(stored) - 1) + [None]  # noqa: B009


async def test_every_table_that_names_a_user_is_emptied_or_kept_for_a_reason(owner: asyncpg.Connection) -> None:
    """A new table with a `user_id` has to say which."""
    kept = {
        "user_keys",  # goes first, with the key
        "events", "audit_logs",  # sealed under that key
        "outbox", "relay_heads",  # numbers alone
        "dead_letters", "replay_items",  # emptied of their content; what was replayed, by ids
        "avatar_leftovers",  # names of objects, removed by their own job
    }  # fmt: skip
    rows = await owner.fetch(
        "SELECT table_name FROM information_schema.columns WHERE table_schema = 'public' AND column_name = 'user_id'"
    )
    assert {row["table_name"] for row in rows} - kept - set(EMPTIED) == set()


async def test_an_address_comes_free_in_its_time_and_the_owner_can_still_be_told(
    clock: Clock, database: Database, personal: PersonalData, trail: Trail, owner: asyncpg.Connection,
    database_url: str, bus: Client, redis: Redis,
) -> None:  # fmt: skip
    user = await a_deleted_user(database, personal, trail, clock())
    settings = settings_of(database_url, email_reuse_after_seconds=60)
    early = Erasure(database, personal, bus, SharedCache(redis), settings, now=clock, wake_relay=lambda: None)
    clock.time += timedelta(seconds=59)
    await early.free_addresses()
    key = "SELECT email_key FROM users WHERE id = $1"
    assert await owner.fetchval(key, user.id) == user.email
    clock.time += timedelta(seconds=2)
    await early.free_addresses()
    assert "@" not in await owner.fetchval(key, user.id)
    assert await owner.fetchval("SELECT email FROM users WHERE id = $1", user.id) == user.email


async def test_a_pending_account_ends_after_its_week(
    erasure: Erasure, clock: Clock, database: Database, personal: PersonalData, trail: Trail, owner: asyncpg.Connection
) -> None:
    clock.time -= timedelta(days=4000)  # long before anything that other tests opened
    users = [await an_account(database, personal, trail, clock(), verified=verified) for verified in (False, True)]
    imported = await an_account(database, personal, trail, clock(), origin="import")
    clock.time += timedelta(days=7) - timedelta(seconds=1)
    await erasure.end_pending()
    status = "SELECT status FROM users WHERE id = $1"
    assert [await owner.fetchval(status, user.id) for user in users] == ["active", "active"]
    clock.time += timedelta(seconds=2)
    await erasure.end_pending()
    assert [await owner.fetchval(status, user.id) for user in users] == ["deleted", "active"]
    assert await owner.fetchval(status, imported.id) == "active"
    again = await an_account(database, personal, trail, clock(), email=users[0].email)  # free at once
    assert again.id != users[0].id


async def an_account(
    database: Database, personal: PersonalData, trail: Trail, at: datetime, *, verified: bool = False,
    origin: str = "registration", email: str | None = None,
) -> User:  # fmt: skip
    user = User.register(
        UserId(uuid4()), email=email or f"{uuid4().hex}@example.org", first_name="Ada", last_name="Lovelace",
        password_hash="hash", at=at, origin=origin,
    )  # fmt: skip
    if verified:
        user.verify_email(reason="registration", at=at)
    async with unit_of_work(database, personal, trail, announce=lambda _: None) as work:
        assert await work.users.add(user)
        await work.commit(Empty())
    return user


async def test_the_files_of_the_tables_hold_nothing_once_they_are_written_anew(
    servers: EmbeddedServers, erasure: Erasure, clock: Clock, database: Database, personal: PersonalData, trail: Trail,
    bus: Client,
) -> None:  # fmt: skip
    """Before that, a deleted row leaves its bytes in its page: `docs/operations.md` says so."""
    user = await a_deleted_user(database, personal, trail, clock())
    await put_everywhere(database, bus, user)
    admin = await asyncpg.connect(servers.addresses.database_admin_url)
    try:
        directory = Path(await admin.fetchval("SHOW data_directory")) / "base"
        await admin.execute("CHECKPOINT")
        assert await asyncio.to_thread(files_with, directory, user.first_name) != []
        clock.time += GRACE + timedelta(hours=2)
        await finish(erasure)
        await admin.execute("VACUUM FULL")
        await admin.execute("CHECKPOINT")
        assert await asyncio.to_thread(files_with, directory, user.first_name) == []
    finally:
        await admin.close()


def files_with(directory: Path, word: str) -> list[str]:
    return [path.name for path in directory.rglob("*") if path.is_file() and word.encode() in path.read_bytes()]
