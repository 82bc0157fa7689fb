"""What a search for users means, as a condition that the indexes of `user_directory` serve."""

import re
import unicodedata
from typing import NamedTuple

from adapters.addresses import email_prefix


class Found(NamedTuple):
    """A condition on `u`, a row of the directory, with its values; `by_index` is the same one, said so that an index
    reads less for it."""

    matches: str
    by_index: str
    values: tuple[str, ...] = ()


PART_MIN = 3
"""From so many letters on a search finds parts of names: trigrams serve it. Fewer find beginnings alone."""
_SHORT_MAX = 5
"""Up to so many letters have no more trigrams than there would be pieces."""
_PIECES_MAX = 2
_WORD = re.compile("[A-Za-z0-9]{3,}")


def found_by(search: str) -> Found:
    """An address or how it begins, or a name, how a part of it begins, and from three letters on anything in it."""
    if "@" in search:  # no name holds one
        return _plain("u.email_key LIKE $1", f"{_literal(email_prefix(search.strip()))}%")
    text = " ".join(unicodedata.normalize("NFC", search).split())
    if not any(char.isalnum() for char in text):
        return _plain("false")
    address, name = f"{_literal(email_prefix(text))}%", _literal(text)
    if len(text) < PART_MIN:
        beginnings = "(u.email_key LIKE $1 OR u.name_key LIKE name_key($2) OR u.name_key LIKE name_key($3))"
        return _plain(beginnings, address, f"{name}%", f"% {name}%")
    plain = _plain("(u.email_key LIKE $1 OR u.name_key LIKE name_key($2))", address, f"%{name}%")
    pieces = _pieces(f"%{name}%") if text.isascii() and len(text) > _SHORT_MAX else []
    if not pieces:
        return plain
    in_name = " AND ".join([*pieces, "u.name_key || '' LIKE name_key($2)"])
    return plain._replace(by_index=f"(u.email_key LIKE $1 OR ({in_name}))")


def _plain(condition: str, *values: str) -> Found:
    return Found(condition, condition, values)


def _pieces(pattern: str) -> list[str]:
    """Conditions on three letters of the pattern in $2 each: of the longest word, where it begins and in its middle.
    For all of it the index would intersect the rows of every three letters in a row: many lists, some long."""
    places: list[int] = []
    for run in sorted(_WORD.finditer(pattern), key=lambda run: run.start() - run.end()):
        middle = (run.end() - run.start()) // 2 - 1
        places += [run.start(), run.start() + middle] if middle >= 2 else [run.start()]
    return [f"u.name_key LIKE name_key('%' || substr($2, {at + 1}, 3) || '%')" for at in places[:_PIECES_MAX]]


def _literal(text: str) -> str:
    """The signs of a LIKE pattern, taken as they are."""
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
