"""Pages of users: by page number near the top, by cursor without a bound."""

from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from adapters.cursors import COUNTED_MAX, make_cursor, not_a_cursor, offset_of, pagination, read_cursor, read_time
from adapters.postgres import Connection
from adapters.users import USER_COLUMNS, view_of_row
from contracts.admin import ListUsers, UserSort
from contracts.users import User
from contracts.wire import Pagination


class _Order(NamedTuple):
    """How a sort reads: the column (never null: a cursor compares it), its type, and the direction."""

    column: str
    kind: str
    way: str


_ORDERS: dict[UserSort, _Order] = {
    "createdAt": _Order("u.created_at", "timestamptz", "ASC"),
    "-createdAt": _Order("u.created_at", "timestamptz", "DESC"),
    "email": _Order("u.email_key", "text", "ASC"),
    "lastLoginAt": _Order("coalesce(u.last_login_at, '1970-01-01Z'::timestamptz)", "timestamptz", "DESC"),
}
_MATCHING = """
u.status = coalesce($1, u.status) AND ($1 IS NOT NULL OR u.status <> 'deleted') AND u.role = coalesce($2, u.role)
AND ($3::text IS NULL OR u.email_key LIKE $3 OR lower(u.first_name) LIKE $3 OR lower(u.last_name) LIKE $3
     OR lower(u.first_name || ' ' || u.last_name) LIKE $3)"""


async def list_users(connection: Connection, query: ListUsers) -> tuple[list[User], Pagination]:
    """A page, with a cursor to the next; raises `InvalidInput` for a page past row 10,000."""
    offset = offset_of(query)
    order = _ORDERS[query.sort]
    filters = (query.status, query.role, _prefix(query.search))
    rows = await connection.fetch(_statement(order), *filters, *_after(query.cursor, order), offset, query.limit + 1)
    counted = await connection.fetchval(_COUNT, *filters, COUNTED_MAX + 1)
    shown, more = rows[: query.limit], len(rows) > query.limit
    cursor = make_cursor(_text(shown[-1]["place"]), shown[-1]["id"]) if more else None
    return [view_of_row(row) for row in shown], pagination(query, counted=counted, next_cursor=cursor)


_COUNT = f"SELECT count(*) FROM (SELECT 1 FROM users u WHERE {_MATCHING} LIMIT $4) AS counted"


def _statement(order: _Order) -> str:
    column, kind, way = order
    beyond = ">" if way == "ASC" else "<"
    return (
        f"SELECT {column} AS place, {USER_COLUMNS} WHERE {_MATCHING} "
        f"AND ($4::{kind} IS NULL OR ({column}, u.id) {beyond} ($4, $5::uuid)) "
        f"ORDER BY {column} {way}, u.id {way} OFFSET $6 LIMIT $7"
    )


def _prefix(search: str | None) -> str | None:
    """A LIKE pattern for what begins so; the pattern's own signs are taken literally."""
    if search is None:
        return None
    literal = search.casefold().replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return f"{literal}%"


def _text(place: object) -> str:
    return place.isoformat() if isinstance(place, datetime) else str(place)


def _after(cursor: str | None, order: _Order) -> tuple[datetime | str | None, UUID | None]:
    if cursor is None:
        return None, None
    place, user_id = read_cursor(cursor, parts=2)
    try:
        return read_time(place) if order.kind == "timestamptz" else place, UUID(user_id)
    except ValueError as error:
        raise not_a_cursor() from error
