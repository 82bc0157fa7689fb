"""Pages of users: by page number near the top, by cursor without a bound. Migrations 0008 and 0012 index each."""

from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from adapters.addresses import email_prefix
from adapters.cursors import make_cursor, not_a_cursor, offset_of, pagination, read_cursor, read_time
from adapters.postgres import Connection
from adapters.totals import total_of
from adapters.users import USER_COLUMNS, view_of_row
from contracts.admin import ListUsers, UserSort
from contracts.users import Role, Status, User
from contracts.wire import Pagination


class _Order(NamedTuple):
    """How a sort reads: the column (never null: a cursor compares it), its type, and the direction."""

    column: str
    kind: str
    way: str


_ORDERS: dict[UserSort, _Order] = {
    "createdAt": _Order("u.created_at", "timestamptz", "ASC"),
    "-createdAt": _Order("u.created_at", "timestamptz", "DESC"),
    "email": _Order('u.email_key COLLATE "C"', "text", "ASC"),
    "lastLoginAt": _Order("coalesce(u.last_login_at, '1970-01-01Z'::timestamptz)", "timestamptz", "DESC"),
}
# Written out, not bound: only so does the planner see that a partial index serves.
_OF_STATUS: dict[Status | None, str] = {
    None: "u.status <> 'deleted'",
    "active": "u.status = 'active'",
    "suspended": "u.status = 'suspended'",
    "deleted": "u.status = 'deleted'",
}
_OF_ROLE: dict[Role | None, str] = {
    None: "true",
    "user": "u.role = 'user'",
    "moderator": "u.role = 'moderator'",
    "admin": "u.role = 'admin'",
}
_EMAIL = 'u.email_key COLLATE "C"'
_NAMES = "lower(u.first_name || ' ' || u.last_name)"
_PART_MIN = 3
"""From so many letters on, a part of a name is looked for; what is shorter is the beginning of one."""


class Page(NamedTuple):
    """The statement of a page with its values, and what matches, to be counted."""

    statement: str
    values: list[object]
    matching: str
    patterns: list[str]


async def list_users(connection: Connection, query: ListUsers) -> tuple[list[User], Pagination]:
    """A page, with a cursor to the next; raises `InvalidInput` for a page past row 10,000."""
    page = page_of(query)
    # Prepared anew, so that it is planned for this very search: a plan for any search would be one for none.
    statement = await connection.prepare(page.statement)
    rows = await statement.fetch(*page.values)
    counted = await total_of(connection, query, page.matching, page.patterns, rows_read=len(rows))
    shown, more = rows[: query.limit], len(rows) > query.limit
    cursor = make_cursor(_text(shown[-1]["place"]), shown[-1]["id"]) if more else None
    return [view_of_row(row) for row in shown], pagination(query, counted=counted, next_cursor=cursor)


def page_of(query: ListUsers) -> Page:
    """One row more than asked for is read: it tells whether there is a next page."""
    column, kind, way = order = _ORDERS[query.sort]
    search, patterns = _search(query.search)
    matching = f"FROM users u WHERE {_OF_STATUS[query.status]} AND {_OF_ROLE[query.role]} AND {search}"
    after, place, next_value = _after(query.cursor, order), "", len(patterns) + 1
    if after:
        beyond = ">" if way == "ASC" else "<"
        place = f"AND ({column}, u.id) {beyond} (${next_value}::{kind}, ${next_value + 1}::uuid)"
        next_value += 2
    statement = (
        f"SELECT page.place, {USER_COLUMNS} JOIN ("
        f"SELECT u.id, {column} AS place {matching} {place} "
        f"ORDER BY {column} {way}, u.id {way} OFFSET ${next_value} LIMIT ${next_value + 1}"
        f") AS page ON page.id = u.id ORDER BY page.place {way}, u.id {way}"
    )
    return Page(statement, [*patterns, *after, offset_of(query), query.limit + 1], matching, patterns)


def _search(search: str | None) -> tuple[str, list[str]]:
    """A condition with its values: an address or its beginning, a part of a name, or the beginning of a short one."""
    if search is None:
        return "true", []
    by_email = f"{_EMAIL} LIKE $1"
    patterns = [f"{_literal(email_prefix(search))}%"]
    if "@" in search:  # no name holds one
        return by_email, patterns
    name = _literal(search.strip().lower())
    if len(search.strip()) >= _PART_MIN:
        return f"({by_email} OR {_NAMES} LIKE $2)", [*patterns, f"%{name}%"]
    return f"({by_email} OR {_NAMES} LIKE $2 OR {_NAMES} LIKE $3)", [*patterns, f"{name}%", f"% {name}%"]


def _literal(text: str) -> str:
    """The signs of a LIKE pattern, taken literally."""
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


def _text(place: object) -> str:
    return place.isoformat() if isinstance(place, datetime) else str(place)


def _after(cursor: str | None, order: _Order) -> tuple[datetime | str | UUID, ...]:
    if cursor is None:
        return ()
    place, user_id = read_cursor(cursor, parts=2)
    try:
        return read_time(place) if order.kind == "timestamptz" else place, UUID(user_id)
    except ValueError as error:
        raise not_a_cursor() from error
