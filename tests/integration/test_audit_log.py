"""The audit log: one row for an event, filters, pages that do not shift, and nothing personal in plain."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from uuid import UUID, uuid4

import asyncpg
import pytest

from adapters.audit_log import AuditRow, add_audit_row, list_audit_rows
from adapters.cursors import make_cursor
from adapters.event_log import Trail, unsent_events
from adapters.keys import CannotOpen
from adapters.personal_data import PersonalData
from adapters.postgres import Database
from adapters.unit_of_work import unit_of_work
from contracts.admin import AuditEntry, ListAuditLogs
from contracts.wire import Empty, Pagination
from domain.refusals import InvalidInput
from domain.user import User
from handlers.events.audit import Audit, action_of
from tests.builders import NOW, ORIGIN, a_user


class Log:
    """The log, with the words that a test does not care for filled in."""

    def __init__(self, database: Database, personal: PersonalData, trail: Trail) -> None:
        self.database, self.personal, self.trail = database, personal, trail

    async def add(self, action: str, *, user_id: UUID | None = None, minute: int = 0, success: bool = True) -> None:
        row = AuditRow(action=action, success=success, at=NOW + timedelta(minutes=minute), user_id=user_id)
        async with self.database.transaction() as connection:
            await add_audit_row(connection, self.personal, self.trail, row)

    async def list(self, **query: object) -> tuple[list[AuditEntry], Pagination]:
        async with self.database.connection() as connection:
            return await list_audit_rows(connection, self.personal, ListAuditLogs.model_validate(query))

    async def register(self) -> User:
        user = a_user()
        async with unit_of_work(self.database, self.personal, self.trail, announce=lambda _: None) as work:
            user.refuse_password(origin=ORIGIN, at=NOW)
            assert await work.users.add(user)
            await work.commit(Empty())
        return user


@pytest.fixture
def log(database: Database, personal: PersonalData, trail: Trail) -> Log:
    return Log(database, personal, trail)


async def test_an_event_makes_one_row_however_often_it_comes(log: Log) -> None:
    user = await log.register()
    async with log.database.connection() as connection:
        events, _ = await unsent_events(connection, log.personal, [user.id], events_max=10)
    audit = Audit(log.database, log.personal)
    await asyncio.gather(*(audit.handle(stored) for _ in range(10) for stored in events))
    rows, pages = await log.list(user_id=user.id)
    assert [(row.action, row.success) for row in rows] == [("login_failed", False), ("user_registered", True)]
    assert pages.total == 2
    assert {row.event_id for row in rows} == {stored.event.id for stored in events}
    registered = rows[1]
    assert registered.details["email"] == user.email
    assert (registered.ip_address, registered.user_agent) == (log.trail.ip, log.trail.user_agent)
    assert (registered.request_id, registered.actor_id) == (log.trail.request_id, user.id)


async def test_nothing_personal_stands_in_plain(log: Log, owner: asyncpg.Connection) -> None:
    user = await log.register()
    async with log.database.connection() as connection:
        events, _ = await unsent_events(connection, log.personal, [user.id], events_max=10)
    for stored in events:
        await Audit(log.database, log.personal).handle(stored)
    row = AuditRow(action="refused", success=False, at=NOW, personal={"email": "marked@example.org"})
    async with log.database.transaction() as connection:
        await add_audit_row(connection, log.personal, log.trail, row)
    texts = await owner.fetch(
        "SELECT a::text AS text FROM audit_logs a WHERE user_id = $1 OR request_id = $2", user.id, log.trail.request_id
    )
    assert len(texts) == 3
    for text in texts:
        for word in (user.email, "Ada", "Lovelace", "192.0.2", "marked", "Mozilla"):
            assert word not in text["text"]
    shown, _ = await log.list(action="refused", user_id=None)
    mine = [entry for entry in shown if entry.request_id == log.trail.request_id]
    assert mine[0].details == {"email": "marked@example.org"}
    assert mine[0].ip_address == log.trail.ip


async def test_erasing_a_user_leaves_the_rows_without_what_is_personal(log: Log) -> None:
    user = await log.register()
    await log.add("profile_read", user_id=user.id)
    async with log.database.connection() as connection:
        await connection.execute("DELETE FROM user_keys WHERE user_id = $1", user.id)
    await log.add("erased", user_id=user.id, minute=1)
    rows, _ = await log.list(user_id=user.id)
    assert [(row.action, row.ip_address, row.user_agent) for row in rows] == [
        ("erased", None, None),
        ("profile_read", None, None),
    ]


async def test_filters(log: Log) -> None:
    ada, eve, action = uuid4(), uuid4(), f"act_{uuid4().hex}"
    for minute, (user_id, success) in enumerate([(ada, True), (ada, False), (eve, True), (eve, False)]):
        await log.add(action, user_id=user_id, minute=minute, success=success)
    await log.add("another", user_id=ada, minute=9)

    async def minutes(**query: object) -> list[float]:
        rows, pages = await log.list(**query)
        assert pages.total == len(rows)
        return [(row.created_at - NOW).total_seconds() / 60 for row in rows]

    assert await minutes(action=action) == [3, 2, 1, 0]
    assert await minutes(user_id=ada) == [9, 1, 0]
    assert await minutes(action=action, user_id=ada) == [1, 0]
    assert await minutes(action=action, success=True) == [2, 0]
    assert await minutes(action=action, success=False, user_id=eve) == [3]
    assert await minutes(action=action, **{"from": NOW + timedelta(minutes=1)}) == [3, 2, 1]
    assert await minutes(action=action, to=NOW + timedelta(minutes=1)) == [0]
    assert await minutes(action=action, user_id=uuid4()) == []


async def test_pages_by_number(log: Log) -> None:
    action = f"act_{uuid4().hex}"
    for minute in range(5):
        await log.add(action, minute=minute)
    rows, pages = await log.list(action=action, limit=2, page=2)
    assert [row.created_at for row in rows] == [NOW + timedelta(minutes=minute) for minute in (2, 1)]
    assert (pages.page, pages.total, pages.total_pages, pages.has_next, pages.has_prev) == (2, 5, 3, True, True)
    rows, pages = await log.list(action=action, limit=2, page=3)
    assert (len(rows), pages.has_next, pages.next_cursor) == (1, False, None)
    rows, pages = await log.list(action=action, limit=2, page=9)
    assert (rows, pages.has_next) == ([], False)


async def test_a_cursor_stays_where_it_is_while_rows_come_in(log: Log) -> None:
    action = f"act_{uuid4().hex}"
    for _ in range(7):  # all of one time: the order is still total
        await log.add(action)
    before, _ = await log.list(action=action, limit=100)
    seen: list[UUID] = []
    cursor: str | None = None
    while True:
        rows, pages = await log.list(action=action, limit=2, **({"cursor": cursor} if cursor else {}))
        seen += [row.id for row in rows]
        cursor = pages.next_cursor
        if cursor is None:
            break
        assert pages.has_next
        await log.add(action, minute=1)
        await log.add(action)
    assert seen == [row.id for row in before]
    assert len(set(seen)) == 7


@pytest.mark.parametrize(
    "place",
    [
        ("yesterday", "1"), (NOW.isoformat(), "one"), (NOW.isoformat(), "9" * 30), (NOW.isoformat(), "-" + "9" * 30),
        ("0001-01-01T00:00:00", "1"), ("0001-01-01T00:00:00+23:00", "1"), ("9999-12-31T23:59:59-23:00", "1"),
        (NOW.isoformat(), "1\x00"), (NOW.isoformat(),), ("1", "2", "3"),
    ],
)  # fmt: skip
async def test_a_cursor_that_somebody_made_up(log: Log, place: tuple[str, ...]) -> None:
    with pytest.raises(InvalidInput):
        await log.list(cursor=make_cursor(*place))


async def test_a_row_of_nobody_is_read_with_a_key_of_its_own(log: Log, owner: asyncpg.Connection) -> None:
    action = f"act_{uuid4().hex}"
    await asyncio.gather(*(log.add(action) for _ in range(5)))
    rows, _ = await log.list(action=action)
    assert {row.ip_address for row in rows} == {log.trail.ip}
    assert await owner.fetchval("SELECT count(*) FROM user_keys WHERE user_id = $1", UUID(int=0)) == 1


async def test_a_row_moved_to_another_user_does_not_open(log: Log, trail: Trail) -> None:
    ada, eve = await log.register(), await log.register()
    await Log(log.database, log.personal, replace(trail, ip="192.0.2.9")).add("act", user_id=ada.id)
    async with log.database.connection() as connection:
        row = await connection.fetchrow("SELECT * FROM audit_logs WHERE user_id = $1", ada.id)
        wrapped = (await log.personal.keys_of(connection, {eve.id}))[eve.id]
    assert row is not None
    with pytest.raises(CannotOpen):
        log.personal.open(wrapped, eve.id, row["ip_address"], place=f"audit_logs.ip_address:{row['id']}")


def test_an_action_is_its_event_in_other_spelling() -> None:
    assert action_of("UserRegistered") == "user_registered"
    assert action_of("RefreshTokenReused") == "refresh_token_reused"
