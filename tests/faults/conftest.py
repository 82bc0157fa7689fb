"""One set of servers for all faults; each test finds them running and empty streams."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.faults.house import House, open_house


@pytest_asyncio.fixture(scope="session")
async def _house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    async with open_house(tmp_path_factory.mktemp("house")) as found:
        yield found


@pytest_asyncio.fixture
async def house(_house: House) -> AsyncIterator[House]:
    await _house.empty_streams()
    yield _house
    await _house.heal()
