"""The migration runner on a real server: once however many run it, and refused where files and schema differ."""

import asyncio

import asyncpg
import pytest

from adapters import migrations
from adapters.embedded import EmbeddedServers
from adapters.migrations import Migration, MigrationRefused, migrate, shipped, status
from adapters.postgres import role_of


@pytest.fixture
def app_role(servers: EmbeddedServers) -> str:
    return role_of(servers.addresses.database_url)


def _ship(monkeypatch: pytest.MonkeyPatch, *files: Migration) -> None:
    monkeypatch.setattr(migrations, "shipped", lambda: list(files))


FIRST = Migration(1, "0001_first.sql", "CREATE TABLE first (id integer)")
SECOND = Migration(2, "0002_second.sql", "CREATE TABLE second (id integer)")


async def _tables(url: str) -> set[str]:
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        return {row["tablename"] for row in rows}
    finally:
        await connection.close()


async def test_five_at_once_apply_each_file_once(empty_database: str, app_role: str) -> None:
    applied = await asyncio.gather(*(migrate(empty_database, app_role=app_role) for _ in range(5)))
    names = [migration.name for migration in shipped()]
    assert sorted(applied, key=len) == [[], [], [], [], names]
    assert [(m.name, m.applied_at is not None) for m in await status(empty_database)] == [(n, True) for n in names]


async def test_status_before_and_after(empty_database: str, app_role: str) -> None:
    assert all(migration.applied_at is None for migration in await status(empty_database))
    assert await _tables(empty_database) == set()
    await migrate(empty_database, app_role=app_role)
    assert all(migration.applied_at is not None for migration in await status(empty_database))


async def test_a_newer_release_adds_what_is_new(
    empty_database: str, app_role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _ship(monkeypatch, FIRST)
    assert await migrate(empty_database, app_role=app_role) == [FIRST.name]
    _ship(monkeypatch, FIRST, SECOND)
    assert await migrate(empty_database, app_role=app_role) == [SECOND.name]
    assert await migrate(empty_database, app_role=app_role) == []


async def test_a_file_changed_afterwards_is_refused(
    empty_database: str, app_role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _ship(monkeypatch, FIRST)
    await migrate(empty_database, app_role=app_role)
    _ship(monkeypatch, Migration(1, FIRST.name, FIRST.sql + " "), SECOND)
    for run in (migrate(empty_database, app_role=app_role), status(empty_database)):
        with pytest.raises(MigrationRefused, match=r"0001_first\.sql was changed"):
            await run
    assert await _tables(empty_database) == {"first", "schema_migrations"}


async def test_a_schema_ahead_is_refused(empty_database: str, app_role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _ship(monkeypatch, FIRST, SECOND)
    await migrate(empty_database, app_role=app_role)
    _ship(monkeypatch, FIRST)
    for run in (migrate(empty_database, app_role=app_role), status(empty_database)):
        with pytest.raises(MigrationRefused, match=r"ahead of this release \(migration 2\)"):
            await run


async def test_a_file_that_fails_leaves_nothing_of_itself(
    empty_database: str, app_role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _ship(monkeypatch, FIRST, Migration(2, "0002_bad.sql", "CREATE TABLE half (id integer); SELECT 1 / 0"))
    with pytest.raises(asyncpg.DivisionByZeroError):
        await migrate(empty_database, app_role=app_role)
    assert await _tables(empty_database) == {"first", "schema_migrations"}
    _ship(monkeypatch, FIRST, SECOND)
    assert await migrate(empty_database, app_role=app_role) == [SECOND.name]


async def test_another_run_is_waited_for_to_a_deadline(empty_database: str, app_role: str) -> None:
    holder = await asyncpg.connect(empty_database)
    try:
        await holder.execute("SELECT pg_advisory_lock($1)", migrations._LOCK_KEY)
        with pytest.raises(MigrationRefused, match=r"running for 0\.3 s"):
            await migrate(empty_database, app_role=app_role, wait_s=0.3)
        waiting = asyncio.create_task(migrate(empty_database, app_role=app_role, wait_s=20))
        await asyncio.sleep(0)
        await holder.execute("SELECT pg_advisory_unlock($1)", migrations._LOCK_KEY)
        assert await waiting
    finally:
        await holder.close()


async def test_a_table_in_use_is_not_waited_for_long(
    empty_database: str, app_role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _ship(monkeypatch, FIRST)
    await migrate(empty_database, app_role=app_role)
    _ship(monkeypatch, FIRST, Migration(2, "0002_alter.sql", "ALTER TABLE first ADD COLUMN more text"))
    holder = await asyncpg.connect(empty_database)
    try:
        async with holder.transaction():
            await holder.execute("LOCK TABLE first IN ACCESS SHARE MODE")
            with pytest.raises(asyncpg.LockNotAvailableError):
                await migrate(empty_database, app_role=app_role, lock_timeout_ms=100)
        assert await migrate(empty_database, app_role=app_role) == ["0002_alter.sql"]
    finally:
        await holder.close()


async def test_the_application_may_not_migrate(servers: EmbeddedServers, database_url: str) -> None:
    assert all(migration.applied_at is not None for migration in await status(database_url))
    connection = await asyncpg.connect(servers.addresses.database_url)
    try:
        for statement in (
            "CREATE TABLE mine (id integer)",
            "DELETE FROM schema_migrations",
            "ALTER TABLE users ADD COLUMN mine text",
            "DROP TABLE events",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(statement)
    finally:
        await connection.close()
