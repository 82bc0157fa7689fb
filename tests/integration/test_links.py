"""Mail links: good once, to a time, and at most three of a purpose at a time."""

import asyncio
import secrets
from datetime import timedelta
from uuid import UUID, uuid4

import pytest_asyncio

from adapters.event_log import Trail
from adapters.links import MAILED_MAX, Link, Links, Purpose, add_link_token, link_by_id, link_by_token
from adapters.personal_data import PersonalData
from adapters.postgres import Database
from adapters.tokens import hash_of
from adapters.unit_of_work import unit_of_work
from contracts.wire import Empty
from tests.builders import NOW, a_user

HOUR = timedelta(hours=1)


def _link(user_id: UUID, purpose: Purpose = "verification") -> Link:
    return Link(id=uuid4(), user_id=user_id, purpose=purpose, address="ada@example.org", expires_at=NOW + HOUR)


@pytest_asyncio.fixture
async def user_id(database: Database, personal: PersonalData, trail: Trail) -> UUID:
    user = a_user()
    async with unit_of_work(database, personal, trail, announce=lambda _: None) as work:
        assert await work.users.add(user)
        await work.commit(Empty())
    return user.id


async def _open(database: Database, link: Link, minute: int = 0) -> None:
    async with database.transaction() as connection:
        await Links(connection).open(link, at=NOW + timedelta(minutes=minute))


async def _mail(database: Database, link: Link, minute: int = 0) -> None:
    await _open(database, link, minute)
    async with database.connection() as connection:
        await add_link_token(connection, link.id, secrets.token_bytes(32), at=NOW + timedelta(minutes=minute))


async def _use(database: Database, link_id: UUID, after: timedelta = timedelta()) -> bool:
    async with database.transaction() as connection:
        return await Links(connection).use(link_id, at=NOW + after)


async def _is_open(database: Database, link_id: UUID) -> bool:
    async with database.connection() as connection:
        link = await link_by_id(connection, link_id)
    assert link is not None
    return link.is_open(NOW + timedelta(minutes=30))


async def test_of_many_uses_at_once_one_counts(database: Database, user_id: UUID) -> None:
    link = _link(user_id)
    await _open(database, link)
    used = await asyncio.gather(*(_use(database, link.id) for _ in range(20)))
    assert sum(used) == 1
    assert not await _use(database, link.id)
    assert not await _is_open(database, link.id)


async def test_a_link_ends_with_its_time(database: Database, user_id: UUID) -> None:
    link = _link(user_id)
    await _open(database, link)
    assert not await _use(database, link.id, after=HOUR)
    assert await _use(database, link.id, after=HOUR - timedelta(seconds=1))
    assert not await _use(database, uuid4())


async def test_a_use_that_is_taken_back_did_not_count(database: Database, user_id: UUID) -> None:
    link = _link(user_id)
    await _open(database, link)
    async with database.connection() as connection:
        transaction = connection.transaction()
        await transaction.start()
        assert await Links(connection).use(link.id, at=NOW)
        await transaction.rollback()
    assert await _use(database, link.id)


async def test_of_the_links_of_a_purpose_the_last_three_that_were_mailed_are_good(
    database: Database, user_id: UUID
) -> None:
    links = [_link(user_id) for _ in range(6)]
    other = _link(user_id, "reset")
    await _mail(database, other)
    for minute, link in enumerate(links):
        await _mail(database, link, minute)
        is_open = [await _is_open(database, one.id) for one in links[: minute + 1]]
        assert sum(is_open) == min(minute + 1, MAILED_MAX)
    assert [await _is_open(database, link.id) for link in links] == [False, False, False, True, True, True]
    assert await _is_open(database, other.id)


async def test_a_link_that_is_never_mailed_pushes_none_out(database: Database, user_id: UUID) -> None:
    mailed = [_link(user_id) for _ in range(3)]
    for minute, link in enumerate(mailed):
        await _mail(database, link, minute)
    for minute in range(3, 9):
        await _open(database, _link(user_id), minute)
    assert all([await _is_open(database, link.id) for link in mailed])


async def test_a_used_link_takes_nobodys_place(database: Database, user_id: UUID) -> None:
    links = [_link(user_id) for _ in range(4)]
    for minute, link in enumerate(links[:3]):
        await _mail(database, link, minute)
    await _use(database, links[2].id, after=timedelta(minutes=2))
    await _mail(database, links[3], 3)
    assert [await _is_open(database, link.id) for link in links] == [True, True, False, True]


async def test_any_of_its_tokens_opens_a_link(database: Database, user_id: UUID) -> None:
    link = _link(user_id)
    await _open(database, link)
    tokens = [secrets.token_urlsafe(32) for _ in range(2)]
    async with database.connection() as connection:
        for token in tokens:
            await add_link_token(connection, link.id, hash_of(token), at=NOW)
        for token in tokens:
            assert await link_by_token(connection, hash_of(token), "verification") == link
            assert await link_by_token(connection, hash_of(token), "reset") is None
        assert await link_by_token(connection, hash_of("another"), "verification") is None
        assert await link_by_id(connection, uuid4()) is None
