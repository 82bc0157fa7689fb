"""Pages of users: by page number near the top, by cursor without a bound, each out of an index and in its order."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import asyncpg

from adapters.cursors import make_cursor, not_a_cursor, offset_of, pagination, read_cursor, read_time
from adapters.postgres import Connection
from adapters.totals import expected_rows, total_of
from adapters.user_search import Found, found_by
from adapters.users import USER_COLUMNS, view_of_row
from contracts.admin import ListUsers, UserSort
from contracts.users import Role, Status, User
from contracts.wire import Pagination

_MANY = 2_500
"""From so many expected finds on, the page is looked for in the order first, among the next rows of it: to read a row
there costs a quarter of what it costs to find it by its letters."""
_LOOKED_AT_MAX = 10_000
_DIRECTORY = "user_directory u"
_COUNTED = "FROM (SELECT u.*, count(*) OVER () AS matched"
# Looked up row by row, for what is found alone: a join would read a table whole.
_NAMES = "SELECT * FROM user_directory d WHERE d.id = l.id"
_LOGIN = "(SELECT l.last_login_at FROM users l WHERE l.id = d.id) AS last_login_at"


@dataclass(frozen=True, slots=True)
class _Order:
    """How a sort reads: the columns of its index, their types, the direction, and the table. No column is ever null,
    and together they are unique: a cursor compares them. `searched` is the directory with these columns, `named` makes
    some rows of the table rows of it."""

    columns: tuple[str, ...]
    kinds: tuple[str, ...]
    way: str
    table: str = _DIRECTORY
    searched: str = _DIRECTORY
    named: str = "({}) AS u"

    @property
    def by(self) -> str:
        return ", ".join(f"{column} {self.way}" for column in self.columns)

    def beyond(self, first: int) -> str:
        """What comes behind the place that is given by the values from this number on."""
        marks = ", ".join(f"${first + n}::{kind}" for n, kind in enumerate(self.kinds))
        return f"({', '.join(self.columns)}) {'>' if self.way == 'ASC' else '<'} ({marks})"


_ALL = Found("true", "true")
_TIME = ("timestamptz", "uuid")
_ORDERS: dict[UserSort, _Order] = {
    "createdAt": _Order(("u.created_at", "u.id"), _TIME, "ASC"),
    "-createdAt": _Order(("u.created_at", "u.id"), _TIME, "DESC"),
    "email": _Order(("u.email_key",), ("text",), "ASC"),
    # Written by every sign-in, so the directory does not hold it.
    "lastLoginAt": _Order(
        ("coalesce(u.last_login_at, '1970-01-01Z'::timestamptz)", "u.id"), _TIME, "DESC",
        table="users u",
        searched=f"(SELECT d.*, {_LOGIN} FROM user_directory d) AS u",
        named=f"(SELECT d.*, l.last_login_at FROM ({{}}) AS l, LATERAL ({_NAMES} OFFSET 0) AS d) AS u",
    ),
}  # fmt: skip
# Written out, not sent as values: which index serves best depends on them.
_STATUS: dict[Status | None, str] = {
    None: "u.status <> 'deleted'",
    "active": "u.status = 'active'",
    "suspended": "u.status = 'suspended'",
    "deleted": "u.status = 'deleted'",
}
_ROLE: dict[Role | None, str] = {
    None: "",
    "user": " AND u.role = 'user'",
    "moderator": " AND u.role = 'moderator'",
    "admin": " AND u.role = 'admin'",
}


async def list_users(connection: Connection, query: ListUsers) -> tuple[list[User], Pagination]:
    """A page, with a cursor to the next; raises `InvalidInput` for a page past row 10,000."""
    order, wanted = _ORDERS[query.sort], f"{_STATUS[query.status]}{_ROLE[query.role]}"
    if query.search is None:
        page, expected = _Page(query, order, order.table, wanted), None
        rows = await page.read(connection, page.in_order())
    else:
        page = _Page(query, order, order.searched, wanted, found_by(query.search))
        expected = await expected_rows(connection, page.matching, page.values)
        rows = await page.read(connection, page.among_the_next()) if expected >= _MANY else []
        if len(rows) <= query.limit:
            rows = await page.read(connection, page.sorted())
    counted: int | None = rows[0]["matched"] if rows else None
    if counted is None:
        counted = await total_of(connection, query, page.matching, page.values, rows_read=len(rows), expected=expected)
    shown, more = rows[: query.limit], len(rows) > query.limit
    cursor = make_cursor(*(_text(part) for part in shown[-1]["place"])) if more else None
    return [view_of_row(row) for row in shown], pagination(query, counted=counted, next_cursor=cursor)


class _Page:
    """One page's statements. They are planned for the values at hand: a plan for just any search would read far too
    much for some."""

    def __init__(self, query: ListUsers, order: _Order, table: str, wanted: str, found: Found = _ALL) -> None:
        self._order, self._wanted = order, wanted
        self._found, self.values = found, found.values
        self.matching = f"FROM {table} WHERE {found.matches} AND {wanted}"
        self._by_index = f"FROM {table} WHERE {found.by_index} AND {wanted}"
        self._place = _place(query.cursor, order)
        self._beyond = order.beyond(len(self.values) + 1) if self._place else "true"
        self._skipped, self._taken = offset_of(query), query.limit + 1

    def in_order(self) -> str:
        """Out of an index, in its order."""
        return f"{self.matching} AND {self._beyond}"

    def among_the_next(self) -> str:
        """What is found among the next rows in the order: enough, where much is found and it lies anywhere."""
        order = self._order
        where = f"{self._wanted} AND {self._beyond}"
        next_rows = f"SELECT u.* FROM {order.table} WHERE {where} ORDER BY {order.by} LIMIT {_LOOKED_AT_MAX}"
        return f"FROM {order.named.format(next_rows)} WHERE {self._found.matches}"

    def sorted(self) -> str:
        """All that is found, by the indexes of the search, counted and then sorted: never a walk through all there
        is."""
        return f"{_COUNTED} {self._by_index} OFFSET 0) AS u WHERE {self._beyond}"

    async def read(self, connection: Connection, found: str) -> list[asyncpg.Record]:
        """The page and one row more; only they are read whole."""
        order, n = self._order, len(self.values) + len(self._place)
        matched = "u.matched" if found.startswith(_COUNTED) else "NULL::bigint AS matched"
        statement = (
            f"WITH page AS MATERIALIZED (SELECT u.id, ROW({', '.join(order.columns)}) AS place, {matched} {found} "
            f"ORDER BY {order.by} OFFSET ${n + 1} LIMIT ${n + 2}) "
            f"SELECT page.place, page.matched, {USER_COLUMNS} JOIN page ON page.id = u.id "
            f"ORDER BY page.place {order.way}"
        )
        prepared = await connection.prepare(statement, name="")
        return list(await prepared.fetch(*self.values, *self._place, self._skipped, self._taken))


def _text(part: object) -> str:
    return part.isoformat() if isinstance(part, datetime) else str(part)


def _place(cursor: str | None, order: _Order) -> list[datetime | UUID | str]:
    if cursor is None:
        return []
    parts = read_cursor(cursor, parts=len(order.kinds))
    try:
        return [_value(part, kind) for part, kind in zip(parts, order.kinds, strict=True)]
    except ValueError as error:
        raise not_a_cursor() from error


def _value(part: str, kind: str) -> datetime | UUID | str:
    match kind:
        case "timestamptz":
            return read_time(part)
        case "uuid":
            return UUID(part)
        case _:
            return part
