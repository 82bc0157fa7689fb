"""Everybody is told of a change that may have come about, whatever becomes of the request that made it."""

import asyncio
from uuid import UUID, uuid4

import pytest

from adapters.event_log import Trail
from adapters.personal_data import PersonalData
from adapters.postgres import Database
from adapters.unit_of_work import unit_of_work
from contracts.wire import Empty


@pytest.mark.parametrize("ending", [asyncio.CancelledError, RuntimeError])
async def test_a_commit_is_announced_although_its_request_ends_badly(
    database: Database, personal: PersonalData, trail: Trail, ending: type[BaseException]
) -> None:
    told: dict[UUID, int] = {}
    user_id = uuid4()
    with pytest.raises(ending):  # noqa: PT012 - the block is what is tested
        async with unit_of_work(database, personal, trail, announce=told.update) as work:
            work.users.touched[user_id] = 7
            await work.commit(Empty())
            raise ending
    assert told == {user_id: 7}


async def test_what_was_taken_back_is_not_announced(database: Database, personal: PersonalData, trail: Trail) -> None:
    told: dict[UUID, int] = {}
    async with unit_of_work(database, personal, trail, announce=told.update) as work:
        work.users.touched[uuid4()] = 7
    assert told == {}
