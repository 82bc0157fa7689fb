"""The audit log: rows from events, and rows without one (refusals, reads by admins, operators' acts)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

import asyncpg
import uuid_utils.compat as uuid_utils
from pydantic import JsonValue

from adapters.cursors import make_cursor, not_a_cursor, offset_of, pagination, read_cursor, read_time
from adapters.event_log import Trail
from adapters.personal_data import PersonalData
from adapters.postgres import Connection
from adapters.totals import total_of
from contracts.admin import AuditEntry, ListAuditLogs
from contracts.wire import Pagination


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRow:
    """One act. `personal` is the part of the details that is encrypted under the user's key."""

    action: str
    success: bool
    at: datetime
    user_id: UUID | None = None
    resource: str = "user"
    resource_id: str | None = None
    details: dict[str, JsonValue] = field(default_factory=dict)
    personal: dict[str, JsonValue] = field(default_factory=dict)
    event_id: UUID | None = None


_ADD = """
INSERT INTO audit_logs (id, event_id, user_id, actor_id, action, resource, resource_id, details, personal, ip_address,
    user_agent, success, request_id, created_at)
SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[], $5::text[], $6::text[], $7::text[], $8::jsonb[],
    $9::text[], $10::text[], $11::text[], $12::boolean[], $13::text[], $14::timestamptz[])
ON CONFLICT (event_id) DO NOTHING"""


async def add_audit_row(connection: Connection, personal: PersonalData, trail: Trail, row: AuditRow) -> None:
    """Write one row in the caller's transaction."""
    await add_audit_rows(connection, personal, [(trail, row)])


async def add_audit_rows(
    connection: Connection, personal: PersonalData, rows: Sequence[tuple[Trail, AuditRow]]
) -> None:
    """Write rows in the caller's transaction; one from an event is written once, however often it is delivered.

    Personal parts of an erased user are left out: there is no key to keep them under.
    """
    wrapped = await personal.keys_of(connection, {row.user_id for _, row in rows})
    values = [_values(personal, wrapped.get(row.user_id), trail, row) for trail, row in rows]
    await connection.execute(_ADD, *(list(column) for column in zip(*values, strict=True)))


def _values(personal: PersonalData, wrapped: str | None, trail: Trail, row: AuditRow) -> tuple[object, ...]:
    """The columns of `_ADD`."""
    id = uuid_utils.uuid7()

    def sealed(value: object, column: str) -> str | None:
        if value in (None, {}) or wrapped is None:
            return None
        return personal.seal(wrapped, row.user_id, value, place=f"audit_logs.{column}:{id}")

    return (
        id, row.event_id, row.user_id, trail.actor_id, row.action, row.resource, row.resource_id, row.details,
        sealed(row.personal, "personal"), sealed(trail.ip, "ip_address"), sealed(trail.user_agent, "user_agent"),
        row.success, trail.request_id, row.at,
    )  # fmt: skip


_CONDITIONS = {
    "user_id": "a.user_id = ${}",
    "action": "a.action = ${}",
    "success": "a.success = ${}",
    "from_": "a.created_at >= ${}",
    "to": "a.created_at < ${}",
}


class Page(NamedTuple):
    """The statement of a page with its values, and what matches, to be counted."""

    statement: str
    values: list[object]
    matching: str
    filters: list[object]


async def list_audit_rows(
    connection: Connection, personal: PersonalData, query: ListAuditLogs
) -> tuple[list[AuditEntry], Pagination]:
    """A page of the log, newest first, by page number or by the cursor of the page before."""
    page = page_of(query)
    # Prepared anew, so that it is planned for these very values: an action may be rare or half of the log.
    statement = await connection.prepare(page.statement)
    rows = await statement.fetch(*page.values)
    counted = await total_of(connection, query, page.matching, page.filters, rows_read=len(rows))
    shown, more = rows[: query.limit], len(rows) > query.limit
    cursor = make_cursor(shown[-1]["created_at"].isoformat(), shown[-1]["position"]) if more else None
    return [_entry(row, personal) for row in shown], pagination(query, counted=counted, next_cursor=cursor)


_ABOUT = """
SELECT a.*, k.wrapped FROM audit_logs a LEFT JOIN user_keys k ON k.user_id = a.user_id
WHERE a.user_id = $1 AND a.position < $2 ORDER BY a.position DESC LIMIT $3"""


async def audit_rows_about(
    connection: Connection, user_id: UUID, *, before_position: int, rows_max: int
) -> list[asyncpg.Record]:
    """Rows about a user before one, the newest first, as they are stored; `entry_of` reads them."""
    return await connection.fetch(_ABOUT, user_id, before_position, rows_max)


def entry_of(row: asyncpg.Record, personal: PersonalData) -> AuditEntry:
    """A row with its personal parts."""
    return _entry(row, personal)


def page_of(query: ListAuditLogs) -> Page:
    """One row more than asked for is read: it tells whether there is a next page."""
    asked = {name: getattr(query, name) for name in _CONDITIONS if getattr(query, name) is not None}
    conditions = [_CONDITIONS[name].format(number) for number, name in enumerate(asked, start=1)]
    matching = f"FROM audit_logs a WHERE {' AND '.join(conditions) or 'true'}"
    filters, after = list(asked.values()), _after(query.cursor)
    place, next_value = "", len(filters) + 1
    if after:
        place = f"AND (a.created_at, a.position) < (${next_value}::timestamptz, ${next_value + 1}::bigint)"
        next_value += 2
    statement = (
        f"SELECT page.*, k.wrapped FROM (SELECT a.* {matching} {place} "
        f"ORDER BY a.created_at DESC, a.position DESC OFFSET ${next_value} LIMIT ${next_value + 1}) AS page "
        "LEFT JOIN user_keys k ON k.user_id = coalesce(page.user_id, '00000000-0000-0000-0000-000000000000') "
        "ORDER BY page.created_at DESC, page.position DESC"
    )
    return Page(statement, [*filters, *after, offset_of(query), query.limit + 1], matching, filters)


def _entry(row: asyncpg.Record, personal: PersonalData) -> AuditEntry:
    def opened(column: str) -> object:
        place = f"audit_logs.{column}:{row['id']}"
        return personal.open(row["wrapped"], row["user_id"], row[column], place=place)

    hidden = opened("personal")
    return AuditEntry.model_validate(
        {
            **{name: row[name] for name in _PLAIN},
            "details": row["details"] | (hidden if isinstance(hidden, dict) else {}),
            "ip_address": opened("ip_address"),
            "user_agent": opened("user_agent"),
        }
    )


_PLAIN = (
    "id", "user_id", "actor_id", "action", "resource", "resource_id", "success", "request_id", "event_id", "created_at",
)  # fmt: skip


def _after(cursor: str | None) -> tuple[datetime, int] | tuple[()]:
    if cursor is None:
        return ()
    at, position = read_cursor(cursor, parts=2)
    try:
        return read_time(at), _position(position)
    except ValueError as error:
        raise not_a_cursor() from error


def _position(text: str) -> int:
    position = int(text)
    if not 0 <= position < 2**63:
        raise ValueError("no position of ours")
    return position
