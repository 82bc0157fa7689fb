"""A million audit rows, half of them from events: sealed, walked within minutes in bounded memory, found altered."""

import os
import resource
import time
from collections.abc import AsyncIterator

import asyncpg
import pytest
import pytest_asyncio

from adapters.embedded import EmbeddedServers
from adapters.keys import Keys
from adapters.migrations import migrate
from adapters.nats import close, connect
from adapters.personal_data import PersonalData
from adapters.postgres import Database, role_of
from adapters.seal_keys import SealKeys
from adapters.streams import provision
from adapters.telemetry import Metrics
from domain.audit_walk import Kind
from handlers.audit_verification import verify
from handlers.sealing import Sealer
from tests.builders import settings_of
from tests.integration.conftest import database_url, keys, servers

__all__ = ["database_url", "keys", "servers"]
ROWS = int(os.environ.get("ROWS", "1000000"))
MIB_MAX = 100
SECONDS_MAX = 300
pytestmark = pytest.mark.soak

_EVENTS = """
INSERT INTO events (id, aggregate_id, version, type, occurred_at, data, personal, metadata)
SELECT gen_random_uuid(), ('0192f0c1-8d2e-7b5a-9c3d-' || lpad(to_hex(n / 50), 12, '0'))::uuid, n % 50 + 1, 'UserLogin',
    timestamptz '2026-01-01' + n * interval '1 second', '{"method": "password", "newDevice": false}',
    'v1.user.' || repeat(md5(n::text), 6), jsonb_build_object('requestId', 'request-' || n)
FROM generate_series(1, $1::integer) AS n"""
_FROM_EVENTS = """
INSERT INTO audit_logs (id, event_id, user_id, actor_id, action, resource, resource_id, details, personal, ip_address,
    user_agent, success, request_id, created_at)
SELECT gen_random_uuid(), id, aggregate_id, aggregate_id, 'user_login', 'user', aggregate_id::text, data, personal,
    left(personal, 70), left(personal, 200), true, metadata ->> 'requestId', occurred_at
FROM events ORDER BY position"""
_ACTS = """
INSERT INTO audit_logs (id, user_id, action, resource, details, personal, ip_address, success, request_id, created_at)
SELECT gen_random_uuid(), gen_random_uuid(), 'login_refused', 'user', '{"reason": "wrong_password"}',
    'v1.user.' || repeat(md5(n::text), 4), 'v1.user.' || repeat(md5(n::text), 2), false, 'request-' || n,
    timestamptz '2026-06-01' + n * interval '1 second'
FROM generate_series(1, $1::integer) AS n"""


@pytest_asyncio.fixture
async def filled(servers: EmbeddedServers, database_url: str) -> AsyncIterator[tuple[Database, asyncpg.Connection]]:
    settings = settings_of(database_url)
    await migrate(servers.addresses.database_owner_url, app_role=role_of(database_url))
    database, owner = await Database.connect(settings), await asyncpg.connect(servers.addresses.database_owner_url)
    await owner.execute("ALTER TABLE audit_logs DISABLE TRIGGER USER")
    await owner.execute(_EVENTS, ROWS // 2)
    await owner.execute(_FROM_EVENTS)
    await owner.execute(_ACTS, ROWS - ROWS // 2)
    await owner.execute("VACUUM ANALYZE")
    yield database, owner
    await owner.close()
    await database.close()


async def _nothing() -> None:
    return


@pytest.mark.timeout(3600)
async def test_a_million_rows_are_walked_within_minutes(
    servers: EmbeddedServers, filled: tuple[Database, asyncpg.Connection], keys: Keys
) -> None:
    database, owner = filled
    settings = settings_of(servers.addresses.database_url, nats_url=servers.addresses.nats_worker_url)
    bus = await connect(settings, name="test", on_closed=_nothing)
    await provision(bus.jetstream(), settings, ())
    began = time.perf_counter()
    await Sealer(database, bus, SealKeys(keys), Metrics()).seal_once()
    took = time.perf_counter() - began
    print(f"\nsealed {ROWS} rows in {took:.1f} s: {ROWS / took:.0f} rows a second")

    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()

    async def walk() -> set[tuple[Kind, int, int]]:
        found = await verify(
            database, PersonalData(keys), SealKeys(keys), bus.jetstream(), from_position=None, tell=lambda *_: None
        )
        assert found.rows >= ROWS
        return {(fault.kind, fault.first, fault.last) for fault in found.faults}

    assert await walk() == set()
    took = time.perf_counter() - began
    grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib) / 1024
    print(f"verified in {took:.1f} s: {ROWS / took:.0f} rows a second, {grown_mib:.0f} MiB more than sealing took")
    assert took < SECONDS_MAX
    assert grown_mib < MIB_MAX
    await owner.execute("UPDATE audit_logs SET success = NOT success WHERE position = $1", ROWS // 3)
    await owner.execute("DELETE FROM audit_logs WHERE position = $1", ROWS // 2)
    assert await walk() == {(Kind.ROW_EDITED, ROWS // 3, ROWS // 3), (Kind.ROW_REMOVED, ROWS // 2, ROWS // 2)}
    await close(bus)
