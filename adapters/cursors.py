"""Cursors: where a page ended, opaque to the caller. They name a row's place, so rows that come in shift nothing."""

import base64
import json
from datetime import datetime

from domain.refusals import Fault, InvalidInput


def make_cursor(*place: object) -> str:
    """A cursor from the values that order the list, as text."""
    return base64.urlsafe_b64encode(json.dumps([str(part) for part in place]).encode()).decode()


def read_cursor(cursor: str, *, parts: int) -> list[str]:
    """The values back; raises `InvalidInput` for what is no cursor of such a list."""
    try:
        place = json.loads(base64.urlsafe_b64decode(cursor))
    except ValueError as error:
        raise not_a_cursor() from error
    if not isinstance(place, list) or len(place) != parts or not all(_is_plain(part) for part in place):
        raise not_a_cursor()
    return place


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
