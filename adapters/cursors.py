"""Pages of long lists: by number near the top, by cursor without a bound.

A cursor says where a page ended, opaque to the caller. It names a row's place, so rows that come in shift nothing.
"""

import base64
import json
from datetime import datetime
from typing import Protocol
from uuid import UUID

from contracts.wire import Pagination
from domain.refusals import Fault, InvalidInput

ROWS_BY_PAGE_MAX = 10_000
COUNTED_MAX = 1_000
"""Rows counted for a total; above it the total is an estimate, and says so."""


class Asked(Protocol):
    """What every request for a list names."""

    @property
    def page(self) -> int | None: ...
    @property
    def cursor(self) -> str | None: ...
    @property
    def limit(self) -> int: ...


def offset_of(asked: Asked) -> int:
    """Rows to skip; raises `InvalidInput` for a page so deep that skipping would cost what a cursor does not."""
    if asked.cursor is not None:
        return 0
    page = asked.page or 1
    if page * asked.limit > ROWS_BY_PAGE_MAX:
        raise InvalidInput([Fault("page", "too_deep", f"Use nextCursor to go past row {ROWS_BY_PAGE_MAX}.")])
    return (page - 1) * asked.limit


def pagination(asked: Asked, *, counted: int, next_cursor: str | None) -> Pagination:
    """What a reply says of its page; `counted` stops one past `COUNTED_MAX`."""
    page = asked.page or 1
    return Pagination(
        page=page if asked.cursor is None else None,
        limit=asked.limit,
        total=counted,
        total_is_estimate=counted > COUNTED_MAX,
        total_pages=-(-counted // asked.limit),
        has_next=next_cursor is not None,
        has_prev=asked.cursor is not None or page > 1,
        next_cursor=next_cursor,
    )


def make_cursor(*place: object) -> str:
    """A cursor from the values that order the list, as text."""
    return base64.urlsafe_b64encode(json.dumps([str(part) for part in place], ensure_ascii=False).encode()).decode()


def read_cursor(cursor: str, *, parts: int) -> list[str]:
    """The values back; raises `InvalidInput` for what is no cursor of such a list."""
    try:
        place = json.loads(base64.urlsafe_b64decode(cursor))
    except ValueError as error:
        raise not_a_cursor() from error
    if not isinstance(place, list) or len(place) != parts or not all(_is_plain(part) for part in place):
        raise not_a_cursor()
    return place


def time_and_id(cursor: str | None) -> tuple[datetime, UUID] | tuple[()]:
    """Where a page ended of a list in order of time and id; nothing for the first page."""
    if cursor is None:
        return ()
    at, id = read_cursor(cursor, parts=2)
    try:
        return read_time(at), UUID(id)
    except ValueError as error:
        raise not_a_cursor() from error


def read_time(text: str) -> datetime:
    """A time of a cursor; raises `ValueError` for one that no row can have."""
    at = datetime.fromisoformat(text)
    if at.tzinfo is None or not 1970 <= at.year < 9000:
        raise ValueError("no time of ours")
    return at


def _is_plain(part: object) -> bool:
    return isinstance(part, str) and "\x00" not in part and not any("\ud800" <= char <= "\udfff" for char in part)


def not_a_cursor() -> InvalidInput:
    """The refusal for what somebody else made up, or a cursor of another list."""
    return InvalidInput([Fault("cursor", "not_a_cursor", "Use the nextCursor of an earlier page of the same list.")])
