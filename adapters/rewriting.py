"""PostgreSQL's files without what was deleted from its tables.

A deleted row's bytes stay in its page, in its indexes, in the statistics and in the write-ahead log. Erasing is whole
in the files once every table was written anew and the log of before is gone.
"""

import asyncio
from collections.abc import Callable

import asyncpg

_TABLES = """
SELECT format('%I.%I', schemaname, tablename) FROM pg_tables
WHERE schemaname = current_schema() ORDER BY pg_table_size(format('%I.%I', schemaname, tablename)::regclass)"""
# Most common values and the bounds of histograms are values as they were.
_STATISTICS = ("pg_catalog.pg_statistic", "pg_catalog.pg_statistic_ext_data")
_LOCK_WAIT = "3s"
_TRIES_MAX = 5
_RETRY_S = 1.0
_TABLE_S = 3600.0

_LEFT = """
SELECT CASE WHEN current_setting('wal_level') <> 'minimal' AND EXISTS (SELECT FROM pg_replication_slots)
    THEN 'replication slots keep what they have not read yet' END,
    CASE WHEN current_setting('wal_recycle')::boolean
    THEN 'segments of the write-ahead log keep their bytes until they are written over: set wal_recycle=off' END,
    CASE WHEN current_setting('archive_mode') <> 'off' THEN 'archived segments are kept by whoever archives them' END"""


async def rewrite_files(url: str, *, tell: Callable[[int, int], None]) -> list[str]:
    """As the tables' owner, write each table anew, then end the write-ahead log of before; says what is left and why.

    Each table is locked for as long as it is written; one that is not free within five tries of three seconds is named
    in what is left. `tell` hears how many steps of how many are done.
    """
    connection = await asyncpg.connect(url, timeout=5, server_settings={"application_name": "user-service scrub"})
    try:
        await connection.execute(f"SET lock_timeout = '{_LOCK_WAIT}'")
        # The statistics last: by then they know nothing but what the tables hold.
        tables = [row[0] for row in await connection.fetch(_TABLES)] + list(_STATISTICS)
        left = []
        for done, table in enumerate(tables):
            tell(done, len(tables) + 1)
            left += await _rewrite(connection, table)
        left += await _end_the_log(connection)
        tell(len(tables) + 1, len(tables) + 1)
        return left
    finally:
        await connection.close(timeout=5)


async def _rewrite(connection: asyncpg.Connection, table: str) -> list[str]:
    options = "FULL" if table in _STATISTICS else "FULL, ANALYZE"
    before = await _file_of(connection, table)
    for _ in range(_TRIES_MAX):
        try:
            await connection.execute(f"VACUUM ({options}) {table}", timeout=_TABLE_S)
        except asyncpg.LockNotAvailableError:
            await asyncio.sleep(_RETRY_S)
            continue
        if await _file_of(connection, table) != before:
            return []
        owner = "the database's" if table in _STATISTICS else "its"  # PostgreSQL passes it over with a warning
        return [f"{table} was not written anew: run this as {owner} owner"]
    return [f"{table} was in use: run this again in a quieter hour"]


async def _file_of(connection: asyncpg.Connection, table: str) -> object:
    return await connection.fetchval("SELECT pg_relation_filenode($1::text::regclass)", table)


async def _end_the_log(connection: asyncpg.Connection) -> list[str]:
    """Begin a new segment, then let a checkpoint remove all before it, with the files that tables had before."""
    try:
        await connection.execute("SELECT pg_switch_wal()")
        await connection.execute("CHECKPOINT", timeout=_TABLE_S)
    except asyncpg.InsufficientPrivilegeError:
        role = await connection.fetchval("SELECT current_user")
        return [f"the write-ahead log of before: grant {role} pg_checkpoint, and EXECUTE on pg_switch_wal()"]
    return [text for text in await connection.fetchrow(_LEFT) or () if text]
