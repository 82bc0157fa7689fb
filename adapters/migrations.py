"""The migration runner: plain SQL files, forward only, each in its own transaction, one runner at a time."""

import asyncio
import hashlib
import re
import time
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files

import asyncpg

from adapters.server_urls import asked
from domain.refusals import Unavailable

_LOCK_KEY = 0x75736572_73766331  # "usersvc1"
_FILE = re.compile(r"(\d{4})_\w+\.sql")

_LEDGER = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    version integer PRIMARY KEY, name text NOT NULL, checksum text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)"""


class MigrationRefused(Exception):
    """The schema is not what the files say; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file; `applied_at` is None while it waits."""

    version: int
    name: str
    sql: str
    applied_at: datetime | None = None

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


def shipped() -> list[Migration]:
    """The migrations of this release, in order."""
    found = [entry for entry in files("migrations").iterdir() if _FILE.fullmatch(entry.name)]
    return [
        Migration(int(entry.name[:4]), entry.name, entry.read_text(encoding="utf-8"))
        for entry in sorted(found, key=lambda entry: entry.name)
    ]


async def status(url: str) -> list[Migration]:
    """Every shipped migration with the time it was applied; raises `MigrationRefused` for a changed file."""
    connection = await asyncpg.connect(url, timeout=5, command_timeout=10)
    try:
        return await _status(connection)
    finally:
        await connection.close(timeout=5)


async def require_current(url: str) -> None:
    """Raise `MigrationRefused` for a schema that this release cannot work on, `Unavailable` where nobody answers."""
    try:
        waiting = [migration.name for migration in await status(url) if migration.applied_at is None]
    except asyncpg.InsufficientPrivilegeError:
        waiting = ["schema_migrations cannot be read"]
    except (OSError, TimeoutError) as error:
        with asked("PostgreSQL", url):
            raise Unavailable from error
    if waiting:
        raise MigrationRefused(f"the schema is too old ({waiting[0]}); run `user-service migrate` as its owner")


async def migrate(url: str, *, app_role: str, wait_s: float = 30, lock_timeout_ms: int = 5000) -> list[str]:
    """Apply what waits, as the schema's owner; returns the names applied. Safe to run many times at once."""
    connection = await asyncpg.connect(url, timeout=5, server_settings={"application_name": "user-service migrate"})
    try:
        await _take_lock(connection, wait_s)
        await connection.execute(_LEDGER)
        applied = []
        for migration in await _status(connection):
            if migration.applied_at is None:
                await _apply(connection, migration, app_role, lock_timeout_ms)
                applied.append(migration.name)
        return applied
    finally:
        await connection.close(timeout=5)


async def _take_lock(connection: asyncpg.Connection, wait_s: float) -> None:
    """Tries instead of waiting in the server, so that the deadline holds and no queue forms behind us."""
    deadline = time.monotonic() + wait_s
    while not await connection.fetchval("SELECT pg_try_advisory_lock($1)", _LOCK_KEY):
        if time.monotonic() > deadline:
            raise MigrationRefused(f"another migration has been running for {wait_s:g} s; wait for it or end it")
        await asyncio.sleep(0.2)


async def _status(connection: asyncpg.Connection) -> list[Migration]:
    there = await connection.fetchval("SELECT to_regclass('schema_migrations') IS NOT NULL")
    rows = await connection.fetch("SELECT version, name, checksum, applied_at FROM schema_migrations") if there else []
    done = {row["version"]: row for row in rows}
    ours = shipped()
    for migration in ours:
        row = done.get(migration.version)
        if row is not None and row["checksum"] != migration.checksum:
            raise MigrationRefused(f"{migration.name} was changed after it was applied; restore it and add a new file")
    ahead = set(done) - {migration.version for migration in ours}
    if ahead:
        raise MigrationRefused(f"the schema is ahead of this release (migration {max(ahead)}); run the newer release")
    return [
        Migration(m.version, m.name, m.sql, done[m.version]["applied_at"] if m.version in done else None) for m in ours
    ]


async def _apply(connection: asyncpg.Connection, migration: Migration, app_role: str, lock_timeout_ms: int) -> None:
    async with connection.transaction():
        await connection.execute("SELECT set_config('lock_timeout', $1, true)", str(lock_timeout_ms))
        await connection.execute("SELECT set_config('user_service.app_role', $1, true)", app_role)
        await connection.execute(migration.sql)
        await connection.execute(
            "INSERT INTO schema_migrations (version, name, checksum) VALUES ($1, $2, $3)",
            migration.version,
            migration.name,
            migration.checksum,
        )
