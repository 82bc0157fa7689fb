"""One running `dev` for all stories that leave it as it was."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.gateway import Gateway, gateway
from tests.program import Dev


@pytest_asyncio.fixture(scope="session")
async def dev(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Dev]:
    base: Path = tmp_path_factory.mktemp("dev")
    async with Dev(base / "data", USER_SERVICE_DELIVERY_PAUSES="0.2 0.4") as running:
        yield running


@pytest_asyncio.fixture
async def client(dev: Dev) -> AsyncIterator[Gateway]:
    async with gateway(dev.ready) as found:
        yield found


@pytest_asyncio.fixture(scope="session")
async def limited(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Dev]:
    """A `dev` whose rate limits are on; what is tested on it has addresses and sources of its own."""
    base: Path = tmp_path_factory.mktemp("limited")
    async with Dev(base / "data", USER_SERVICE_RATE_LIMITS="on") as running:
        yield running


@pytest_asyncio.fixture
async def limited_client(limited: Dev) -> AsyncIterator[Gateway]:
    async with gateway(limited.ready) as found:
        yield found
