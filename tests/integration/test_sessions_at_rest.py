"""Sessions in the database: what counts as one, what their use writes, and when their rows go."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from secrets import token_bytes
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
import pytest_asyncio

from adapters.event_log import Trail
from adapters.personal_data import PersonalData
from adapters.postgres import Database
from adapters.sessions import Sessions, sessions_of, standing_of, touch
from adapters.unit_of_work import UnitOfWork, unit_of_work
from adapters.users import candidate_of
from contracts.wire import Empty
from domain.events import SessionRevoked
from domain.session import Lifetimes, Session, Standing
from handlers.activity import Activity
from handlers.jobs import clear_once
from tests.builders import a_user

DAY, MINUTE = timedelta(days=1), timedelta(minutes=1)
LIFETIMES = Lifetimes()


@dataclass
class Bench:
    """A user, and rows of sessions as a test wants them."""

    database: Database
    personal: PersonalData
    trail: Trail
    owner: asyncpg.Connection
    user_id: UUID
    email: str

    @asynccontextmanager
    async def work(self) -> AsyncIterator[UnitOfWork]:
        async with unit_of_work(self.database, self.personal, self.trail, announce=lambda _: None) as work:
            yield work

    async def open(self, *, tokens: int = 1, **columns: Any) -> UUID:  # noqa: ANN401 - values of columns
        """A session of this user, opened a moment ago and good for a week unless `columns` say otherwise."""
        now = datetime.now(UTC)
        row = {
            "id": uuid4(), "user_id": self.user_id, "refresh_token_hash": token_bytes(32), "amr": ["pwd"],
            "auth_time": now, "expires_at": now + 7 * DAY, "created_at": now, "last_active_at": now, **columns,
        }  # fmt: skip
        places = ", ".join(f"${number}" for number in range(1, len(row) + 1))
        await self.owner.execute(f"INSERT INTO user_sessions ({', '.join(row)}) VALUES ({places})", *row.values())
        await self.owner.executemany(
            "INSERT INTO refresh_tokens (hash, session_id, expires_at) VALUES ($1, $2, $3)",
            [(token_bytes(32), row["id"], row["expires_at"]) for _ in range(tokens)],
        )
        assert isinstance(row["id"], UUID)
        return row["id"]

    async def standing(self, session_id: UUID) -> Standing:
        async with self.database.connection() as connection:
            found = await standing_of(connection, self.user_id, session_id, LIFETIMES)
        assert found is not None
        return found

    async def shown(self) -> list[UUID]:
        async with self.database.connection() as connection:
            found = await sessions_of(
                connection, self.user_id, lifetimes=LIFETIMES, at=datetime.now(UTC), sessions_max=100
            )
        return [session.id for session in found]

    async def past_cap(self, cap: int) -> list[UUID]:
        async with self.database.connection() as connection:
            seen = await candidate_of(
                connection, self.email, device_hash=None, session_cap=cap, idle=LIFETIMES.idle, at=datetime.now(UTC)
            )
        assert seen is not None
        return seen.sessions_past_cap

    async def last_active(self, session_id: UUID) -> datetime:
        found = await self.owner.fetchval("SELECT last_active_at FROM user_sessions WHERE id = $1", session_id)
        assert isinstance(found, datetime)
        return found

    async def is_there(self, session_id: UUID) -> bool:
        return bool(await self.owner.fetchval("SELECT true FROM user_sessions WHERE id = $1", session_id))


@pytest_asyncio.fixture
async def bench(database: Database, personal: PersonalData, trail: Trail, owner: asyncpg.Connection) -> Bench:
    user = a_user(email=f"{uuid4().hex}@example.org")
    async with unit_of_work(database, personal, trail, announce=lambda _: None) as work:
        assert await work.users.add(user)
        await work.commit(Empty())
    return Bench(database, personal, trail, owner, user.id, user.email)


OVER: dict[str, dict[str, Any]] = {
    "idle": {"last_active_at": -14 * DAY, "expires_at": 10 * DAY},
    "of an old family": {"created_at": -90 * DAY},
    "expired": {"expires_at": -MINUTE},
    "ended": {"ended_at": -MINUTE},
}


@pytest.mark.parametrize("how", OVER)
async def test_a_session_that_is_over_is_not_shown_and_its_bearer_stands_for_nobody(bench: Bench, how: str) -> None:
    now = datetime.now(UTC)
    live = await bench.open(created_at=now - 80 * DAY, last_active_at=now - 13 * DAY)
    over = await bench.open(**{column: now + when for column, when in OVER[how].items()})
    assert await bench.shown() == [live]
    assert (await bench.standing(live)).is_live(now)
    assert not (await bench.standing(over)).is_live(now)


async def test_the_cap_counts_live_sessions_alone(bench: Bench) -> None:
    now = datetime.now(UTC)
    first, second = [await bench.open(created_at=now - age * MINUTE) for age in (2, 1)]
    for columns in OVER.values():
        if "created_at" not in columns:
            await bench.open(**{column: now + when for column, when in columns.items()})
    assert await bench.past_cap(3) == []
    assert await bench.past_cap(2) == [first]
    assert set(await bench.past_cap(1)) == {first, second}


async def test_the_end_of_all_sessions_is_that_of_the_idle_ones_too(bench: Bench) -> None:
    """A longer idle time, set later, would bring them back."""
    now = datetime.now(UTC)
    kept, live, idle = [await bench.open(last_active_at=now - days * DAY) for days in (0, 1, 20)]
    async with bench.work() as work:
        user = await work.users.lock(bench.user_id)
        assert user is not None
        ended = await work.end_sessions(user, reason="revoked", at=now, but=kept)
        assert set(ended) == {live, idle}
        assert [type(event) for event in user.recorded] == [SessionRevoked] * 2
        await work.users.save(user)
        await work.commit(Empty())
    async with bench.work() as work:
        user = await work.users.lock(bench.user_id)
        assert user is not None
        assert await work.end_sessions(user, only=[live, idle], reason="logout", at=now) == []
        assert user.recorded == []


async def test_nobody_ends_a_session_of_another(bench: Bench, database: Database) -> None:
    session_id = await bench.open()
    async with database.transaction() as connection:
        assert await Sessions(connection).end(uuid4(), [session_id], reason="revoked", at=datetime.now(UTC)) == []
    assert await bench.shown() == [session_id]


async def test_use_is_noted_where_the_row_is_older_by_a_minute(bench: Bench, database: Database) -> None:
    now = datetime.now(UTC)
    old = await bench.open(last_active_at=now - DAY)
    recent = await bench.open(last_active_at=now - MINUTE / 2)
    ended = await bench.open(last_active_at=now - DAY, ended_at=now)
    async with database.connection() as connection:
        await touch(connection, dict.fromkeys((old, recent, ended, uuid4()), now), at_least_after=MINUTE)
    assert await bench.last_active(old) == now
    assert await bench.last_active(recent) == now - MINUTE / 2
    assert await bench.last_active(ended) == now - DAY


async def test_noting_use_waits_for_nobody_who_ends_the_session(bench: Bench, database: Database) -> None:
    now = datetime.now(UTC)
    locked, free = [await bench.open(last_active_at=now - DAY) for _ in range(2)]
    async with database.transaction() as ending:
        await Sessions(ending).end(bench.user_id, [locked], reason="revoked", at=now)
        async with asyncio.timeout(4), database.connection() as connection:
            await touch(connection, {locked: now, free: now}, at_least_after=MINUTE)
    assert await bench.last_active(locked) == now - DAY
    assert await bench.last_active(free) == now


async def test_use_is_written_once_a_minute_behind_the_requests(bench: Bench, database: Database) -> None:
    now = datetime.now(UTC)
    session_id = await bench.open(last_active_at=now - DAY)
    stands = await bench.standing(session_id)
    activity = Activity(database, LIFETIMES.idle)
    running = asyncio.create_task(activity.run())
    try:
        for second in range(60):
            activity.note(stands, now + timedelta(seconds=second))
        async with asyncio.timeout(5):
            while await bench.last_active(session_id) != now:
                await asyncio.sleep(0.02)
        activity.note(stands, now + MINUTE)
        async with asyncio.timeout(5):
            while await bench.last_active(session_id) != now + MINUTE:
                await asyncio.sleep(0.02)
    finally:
        running.cancel()


async def test_a_session_holds_the_refresh_tokens_of_one_lifetime(bench: Bench, database: Database) -> None:
    now = datetime.now(UTC)
    presented, first, successor = token_bytes(32), token_bytes(32), token_bytes(32)
    session_id = await bench.open(tokens=0, refresh_token_hash=presented)
    await bench.owner.executemany(
        "INSERT INTO refresh_tokens (hash, session_id, expires_at, used_at) VALUES ($1, $2, $3, $4)",
        [(first, session_id, now - MINUTE, now - DAY), (presented, session_id, now + DAY, None)],
    )
    async with database.transaction() as connection:
        await Sessions(connection).spend(
            session_id, presented, used_by="laptop", successor_hash=successor, successor_sealed="sealed",
            expires_at=now + 7 * DAY, at=now,
        )  # fmt: skip
    rows = await bench.owner.fetch("SELECT hash, used_at FROM refresh_tokens WHERE session_id = $1", session_id)
    assert {row["hash"]: row["used_at"] for row in rows} == {presented: now, successor: None}


async def test_a_new_proof_puts_one_token_in_the_place_of_all_that_could_be_used(
    bench: Bench, database: Database
) -> None:
    now = datetime.now(UTC)
    before, newest, successor = token_bytes(32), token_bytes(32), token_bytes(32)
    session_id = await bench.open(tokens=0, refresh_token_hash=newest)
    await bench.owner.executemany(
        "INSERT INTO refresh_tokens (hash, session_id, expires_at, used_at, used_by, successor_hash, successor_sealed) "
        "VALUES ($1, $2, $3, $4, $5, $6, $7)",
        [
            (before, session_id, now + DAY, now, "laptop", newest, "sealed for it"),
            (newest, session_id, now + DAY, None, None, None, None),
        ],
    )
    async with database.transaction() as connection:
        sessions = Sessions(connection)
        session = await sessions.get(session_id)
        assert isinstance(session, Session)
        await sessions.renew(
            session.proven_again(now, second_factor=True), used_by="phone", successor_hash=successor,
            successor_sealed="sealed for both", expires_at=now + 7 * DAY, at=now,
        )  # fmt: skip
        renewed = await sessions.get(session_id)
        found = [await sessions.token(token) for token in (before, newest, successor)]
    assert renewed is not None
    assert (renewed.auth_time, renewed.amr, renewed.expires_at) == (now, ("pwd", "otp"), now + 7 * DAY)
    assert [spent and (spent.token.used_by, spent.successor_sealed) for spent in found] == [
        ("laptop", "sealed for both"), ("phone", "sealed for both"), (None, None),
    ]  # fmt: skip
    assert [spent and spent.token.successor_used for spent in found] == [False, False, None]


async def test_rows_of_sessions_go_a_month_after_they_have_expired_with_their_tokens(
    bench: Bench, database: Database
) -> None:
    now = datetime.now(UTC)
    gone = [
        await bench.open(expires_at=now - 31 * DAY, tokens=2500),
        await bench.open(expires_at=now - 31 * DAY, ended_at=now - 35 * DAY),
        await bench.open(expires_at=now - 31 * DAY, tokens=0),
    ]
    kept = [
        await bench.open(expires_at=now - 29 * DAY),
        await bench.open(ended_at=now - 35 * DAY),
        await bench.open(),
    ]
    await clear_once(database)
    assert [await bench.is_there(session_id) for session_id in gone] == [False] * 3
    assert [await bench.is_there(session_id) for session_id in kept] == [True] * 3
    count = "SELECT count(*) FROM refresh_tokens WHERE session_id = ANY($1)"
    assert (await bench.owner.fetchval(count, gone), await bench.owner.fetchval(count, kept)) == (0, 3)
