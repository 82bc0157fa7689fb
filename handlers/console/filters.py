"""Filters as they stand in an address: read from it, and given to an operation."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

LETTERS = ("group", "type", "userId", "from", "to", "reason", "cause")
AUDIT = ("userId", "action", "success", "from", "to")
_TIMES = frozenset({"from", "to"})


def read_filters(address: Mapping[str, str], names: Sequence[str]) -> dict[str, object]:
    """Those of these names that were given. Times without an offset are UTC, as all that is shown here."""
    found: dict[str, object] = {name: address[name].strip() for name in names if address.get(name, "").strip()}
    return found | {name: _with_offset(str(found[name])) for name in _TIMES & found.keys()}


def _with_offset(written: str) -> str:
    """What cannot be read goes on as it is: the service says what is wrong with it."""
    try:
        at = datetime.fromisoformat(written)
    except ValueError:
        return written
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).isoformat()


def page_asked(address: Mapping[str, str], *, limit: int) -> dict[str, object]:
    """Which page of a list: the one behind a cursor, or the first."""
    return {"limit": limit} | ({"cursor": address["cursor"]} if address.get("cursor") else {})
