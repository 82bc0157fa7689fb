"""One set of real servers for the run, one migrated database, and the adapters on them."""

from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest
import pytest_asyncio
from nats.aio.client import Client

from adapters.embedded import EmbeddedServers
from adapters.event_log import Trail
from adapters.keys import Keys
from adapters.migrations import migrate
from adapters.nats import close, connect
from adapters.personal_data import PersonalData
from adapters.postgres import Database, role_of
from adapters.redis import Redis
from adapters.streams import provision
from tests.builders import fresh_keys, settings_of


@pytest_asyncio.fixture(scope="package")
async def servers(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EmbeddedServers]:
    directory: Path = tmp_path_factory.mktemp("servers")
    async with EmbeddedServers(directory / "data", log=lambda _line: None, sync_interval_always=False) as running:
        yield running


@pytest_asyncio.fixture(scope="package")
async def database_url(servers: EmbeddedServers) -> str:
    """The migrated database, as the application's role."""
    addresses = servers.addresses
    await migrate(addresses.database_owner_url, app_role=role_of(addresses.database_url))
    return addresses.database_url


@pytest_asyncio.fixture(scope="package")
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = await Database.connect(settings_of(database_url))
    yield opened
    await opened.close()


@pytest_asyncio.fixture
async def owner(servers: EmbeddedServers, database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """The schema's owner, for what the application's role must not do."""
    assert role_of(database_url) != role_of(servers.addresses.database_owner_url)
    connection = await asyncpg.connect(servers.addresses.database_owner_url)
    yield connection
    await connection.close()


@pytest_asyncio.fixture
async def empty_database(servers: EmbeddedServers) -> AsyncIterator[str]:
    """A database of the owner's with nothing in it."""
    name = f"empty_{uuid4().hex}"
    addresses = servers.addresses
    admin = await asyncpg.connect(addresses.database_admin_url)
    try:
        await admin.execute(f"CREATE DATABASE {name} OWNER {role_of(addresses.database_owner_url)}")
        yield f"{addresses.database_owner_url.rpartition('/')[0]}/{name}"
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await admin.close()


@pytest_asyncio.fixture
async def redis(servers: EmbeddedServers, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Redis]:
    monkeypatch.setattr("adapters.redis.TIMEOUT_S", 10.0)  # a busy machine is not a server that is away
    client = Redis(servers.addresses.redis_url)
    await client.ping()
    yield client
    await client.close()


@pytest.fixture(scope="package")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return fresh_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def personal(keys: Keys) -> PersonalData:
    return PersonalData(keys)


@pytest.fixture
def trail() -> Trail:
    return Trail(request_id=uuid4().hex, ip="192.0.2.77", user_agent="a marked agent", traceparent="00-x")


@pytest_asyncio.fixture
async def events_bus(servers: EmbeddedServers) -> AsyncIterator[Client]:
    """A connection with the rights of the service, to streams as this release wants them."""

    async def closed() -> None:
        return

    settings = settings_of(servers.addresses.database_url, nats_url=servers.addresses.nats_worker_url)
    client = await connect(settings, name="test", on_closed=closed)
    await provision(client.jetstream(), settings, ())
    yield client
    await close(client)
