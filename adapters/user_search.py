"""What a search for users means, as a condition that the indexes of `user_directory` serve."""

import unicodedata

from adapters.addresses import email_prefix

Found = tuple[str, tuple[str, ...]]
"""A condition on `u`, a row of the directory, with its values."""

PART_MIN = 3
"""From so many letters on a search finds parts of names: trigrams serve it. Fewer find beginnings alone."""


def found_by(search: str) -> Found:
    """An address or how it begins, or a name, how a part of it begins, and from
    three letters on anything in it."""
    if "@" in search:  # no name holds one
        return "u.email_key LIKE $1", (f"{_literal(email_prefix(search.strip()))}%",)
    text = " ".join(unicodedata.normalize("NFC", search).split())
    if not any(char.isalnum() for char in text):
        return "false", ()
    address, name = f"{_literal(email_prefix(text))}%", _literal(text)
    if len(text) < PART_MIN:
        beginnings = "u.email_key LIKE $1 OR u.name_key LIKE name_key($2) OR u.name_key LIKE name_key($3)"
        return f"({beginnings})", (address, f"{name}%", f"% {name}%")
    return "(u.email_key LIKE $1 OR u.name_key LIKE name_key($2))", (address, f"%{name}%")


def _literal(text: str) -> str:
    """The signs of a LIKE pattern, taken as they are."""
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
