"""One set of servers for all faults; each test finds them running and empty streams."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.canary import Search
from tests.faults.house import House, open_house


@pytest_asyncio.fixture(scope="package")
async def _house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    base = tmp_path_factory.mktemp("house")
    async with open_house(base) as house:
        yield house
        search = Search(base)
        found = await search.found_in_servers(house.at.database_url, house.at.redis_url)
    found |= search.found_in_files()
    assert not found, sorted(found)


@pytest_asyncio.fixture
async def house(_house: House) -> AsyncIterator[House]:
    await _house.empty_streams()
    yield _house
    await _house.heal()
