"""The SQL of the audit log's seals: what may be sealed, the seals, and the log as it is walked to verify it."""

import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import asyncpg

from adapters.postgres import Connection, Database
from domain.audit_chain import ROWS_MAX, Columns, Entry, Seal, digest_of, link_behind, packed, seal_rows

_LOCK = 6_201_737_404
"""One process seals at a time."""
PAGE_ROWS = 5000
_PAGE_SEALS = 20
COLUMNS = (
    "id", "event_id", "user_id", "actor_id", "action", "resource", "resource_id", "details", "personal", "ip_address",
    "user_agent", "success", "request_id", "created_at",
)  # fmt: skip
"""What a row's hash is over, in this order, all as text; `details` as PostgreSQL writes jsonb, times as seconds."""
_TEXTS = ", ".join(
    "extract(epoch FROM a.created_at)::text" if name == "created_at" else f"a.{name}::text" for name in COLUMNS
)
_SEAL = "number, from_position, to_position, row_count, content, previous, sealed_us, hash, signature"

_DRAWN = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM audit_logs_position_seq"
# One that was never drawn somebody has made up: sealed, it would keep all rows to come from their seals.
_NEWEST = f"SELECT coalesce(max(position), 0) FROM audit_logs WHERE position <= ({_DRAWN})"
_WRITERS = """
SELECT DISTINCT virtualtransaction FROM pg_locks
WHERE locktype = 'relation' AND relation = 'audit_logs'::regclass AND mode = 'RowExclusiveLock'
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"""
_STILL_WRITING = f"SELECT EXISTS (SELECT FROM ({_WRITERS}) AS w WHERE w.virtualtransaction = ANY($1))"


@dataclass(frozen=True, slots=True)
class Watermark:
    """The newest position that is seen, and the transactions that may still add a row before it."""

    position: int
    writers: list[str]


async def watermark(connection: Connection) -> Watermark:
    """A writer holds its lock on the table from before it draws a position to its end: whoever drew one before the
    newest that is seen, and is not done, is among those who hold that lock a moment later."""
    position = await connection.fetchval(_NEWEST)
    return Watermark(position, [row["virtualtransaction"] for row in await connection.fetch(_WRITERS)])


async def is_settled(connection: Connection, mark: Watermark) -> bool:
    """Whether no row can be added at or before the watermark any more."""
    return not mark.writers or not await connection.fetchval(_STILL_WRITING, mark.writers)


_LAST = f"SELECT {_SEAL} FROM audit_seals ORDER BY number DESC LIMIT 1"
_UNSEALED = f"""
SELECT a.position, {_TEXTS} FROM audit_logs a WHERE a.position BETWEEN $1 AND $2 ORDER BY a.position LIMIT $3"""
_ADD = f"""
INSERT INTO audit_seals ({_SEAL}, entries) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)"""


class UnsoundSeal(Exception):
    """The last seal of the table is none that we can have made: nothing can be sealed behind it."""


async def last_seal(connection: Connection) -> Seal | None:
    """The seal with the highest number."""
    row = await connection.fetchrow(_LAST)
    return None if row is None else _seal(row)


async def add_seal(
    connection: Connection, *, up_to: int, published: Seal | None, sign: Callable[[bytes], str],
    is_ours: Callable[[Seal], bool],
) -> Seal | None:  # fmt: skip
    """In the caller's transaction: seal the next rows, up to a settled position; None where there are none, or another
    process is at it."""
    if not await connection.fetchval("SELECT pg_try_advisory_xact_lock($1)", _LOCK):
        return None
    last = await last_seal(connection)
    if last is not None and not (last.is_sound(await drawn_positions(connection)) and is_ours(last)):
        raise UnsoundSeal(f"seal {last.number}")
    link = link_behind(last, published)
    entries = [_entry(row) for row in await connection.fetch(_UNSEALED, link.position, up_to, ROWS_MAX)]
    if not entries:
        return None
    seal = seal_rows(entries, link, at_us=time.time_ns() // 1000, sign=sign)
    await connection.execute(
        _ADD, seal.number, seal.from_position, seal.to_position, seal.count, seal.content, seal.previous,
        seal.sealed_us, seal.hash, seal.signature, packed(entries),
    )  # fmt: skip
    return seal


_AGE = """
SELECT extract(epoch FROM now() - created_at)::float FROM audit_logs WHERE position > $1 ORDER BY position LIMIT 1"""


async def age_of_next_s(connection: Connection, position: int) -> float:
    """Age of the first row behind a position; 0 where there is none."""
    return max(0.0, await connection.fetchval(_AGE, position) or 0.0)


_BEHIND = f"SELECT {_SEAL} FROM audit_seals WHERE number > $1 ORDER BY number LIMIT $2"
_NEWEST_SEALS = f"SELECT * FROM (SELECT {_SEAL} FROM audit_seals ORDER BY number DESC LIMIT $1) AS s ORDER BY number"


async def seals_behind(connection: Connection, number: int, *, seals_max: int) -> list[Seal]:
    """Seals with higher numbers, in order."""
    return [_seal(row) for row in await connection.fetch(_BEHIND, number, seals_max)]


async def newest_seals(connection: Connection, *, seals_max: int) -> list[Seal]:
    """The last few seals, in order."""
    return [_seal(row) for row in await connection.fetch(_NEWEST_SEALS, seals_max)]


_WALKED_SEALS = f"SELECT {_SEAL}, entries FROM audit_seals WHERE number BETWEEN $1 AND $2 ORDER BY number LIMIT $3"
_SEAL_AT = f"SELECT {_SEAL} FROM audit_seals WHERE to_position >= $1 ORDER BY to_position, number LIMIT 1"


async def seal_at(connection: Connection, position: int) -> Seal | None:
    """The seal that a position stands under; the last one for what stands under none yet."""
    row = await connection.fetchrow(_SEAL_AT, position)
    return await last_seal(connection) if row is None else _seal(row)


async def walk_seals(database: Database, first: int, last: int) -> AsyncIterator[tuple[Seal, bytes]]:
    """The seals of these numbers with their entries, in order, some at a time."""
    while True:
        async with database.connection() as connection:
            rows = await connection.fetch(_WALKED_SEALS, first, last, _PAGE_SEALS)
        for row in rows:
            yield _seal(row), row["entries"]
        if len(rows) < _PAGE_SEALS or rows[-1]["number"] >= last:
            return
        first = rows[-1]["number"] + 1


@dataclass(frozen=True, slots=True)
class LoggedRow:
    """A row as it stands, and the type of its event where the event says the same as the row."""

    position: int
    columns: Columns
    told_by: str | None

    @property
    def action(self) -> str:
        return self.columns[4] or ""

    @property
    def has_event(self) -> bool:
        return self.columns[1] is not None


# The page is cut before the join, by a figure that the planner knows: it would read all events for each page otherwise.
_WALKED_ROWS = f"""
SELECT a.position, {_TEXTS}, CASE WHEN e.aggregate_id = a.user_id AND e.occurred_at = a.created_at
    AND e.metadata ->> 'requestId' IS NOT DISTINCT FROM a.request_id AND e.data @> a.details THEN e.type END
FROM (SELECT * FROM audit_logs WHERE position >= $1 ORDER BY position LIMIT {PAGE_ROWS}) AS a
LEFT JOIN events e ON e.id = a.event_id ORDER BY a.position"""


async def walk_rows(connection: Connection, position: int) -> list[LoggedRow]:
    """A page of the log from a position on."""
    rows = await connection.fetch(_WALKED_ROWS, position)
    return [LoggedRow(row[0], tuple(row)[1:-1], row[-1]) for row in rows]


async def newest_position(connection: Connection) -> int:
    """The highest position of the log; 0 where it is empty."""
    found: int = await connection.fetchval(_NEWEST)
    return found


async def drawn_positions(connection: Connection) -> int:
    """The last position that any row can have by now."""
    found: int = await connection.fetchval(_DRAWN)
    return found


def _entry(row: asyncpg.Record) -> Entry:
    return row[0], digest_of(tuple(row)[1:])


def _seal(row: asyncpg.Record) -> Seal:
    return Seal(
        number=row["number"], from_position=row["from_position"], to_position=row["to_position"],
        count=row["row_count"], content=row["content"], previous=row["previous"], sealed_us=row["sealed_us"],
        hash=row["hash"], signature=row["signature"],
    )  # fmt: skip
