"""The audit log's seals: rows in batches, each hashed with the batch before it and signed."""

import hashlib
import json
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

ORIGIN = bytes(32)
"""The predecessor of the first seal."""
_NUMBER_MAX, _US_MAX = 2**62, 2**52
ROWS_MAX = 1000
"""Rows under one seal at most."""

_ENTRY = struct.Struct(">q32s")
Columns = Sequence[str | None]
Entry = tuple[int, bytes]
"""A row's position, and the hash of its columns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seal:
    """Rows from one position to another, all there were when nobody could add one any more; and the seal before."""

    number: int
    from_position: int
    to_position: int
    count: int
    content: bytes
    previous: bytes
    sealed_us: int
    """Microseconds since the epoch."""
    hash: bytes
    signature: str

    def hashed(self) -> bytes:
        """What `hash` must be."""
        said = [
            "audit-seal.v1", self.number, self.from_position, self.to_position, self.count, self.content.hex(),
            self.previous.hex(), self.sealed_us,
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(said).encode()).digest()

    def is_sound(self, drawn: int) -> bool:
        """Whether it can be one that we made: its hash fits, and its rows are at positions that were drawn by now."""
        is_in_bounds = 0 < self.number < _NUMBER_MAX and self.to_position <= drawn and 0 < self.sealed_us < _US_MAX
        return is_in_bounds and self.hash == self.hashed()


@dataclass(frozen=True, slots=True)
class Link:
    """What the next seal hangs on: its number, the position it begins at, and its predecessor's hash."""

    number: int = 1
    position: int = 1
    previous: bytes = ORIGIN


def digest_of(columns: Columns) -> bytes:
    """The hash of a row's columns as they are stored: what is personal as ciphertext, which erasing leaves."""
    return hashlib.sha256(json.dumps(columns).encode()).digest()


def packed(entries: Iterable[Entry]) -> bytes:
    """What is kept with a seal, to tell which row is another."""
    return b"".join(_ENTRY.pack(*entry) for entry in entries)


def unpacked(entries: bytes) -> list[Entry]:
    """The entries again; an incomplete one at the end is left out."""
    return list(_ENTRY.iter_unpack(entries[: len(entries) // _ENTRY.size * _ENTRY.size]))


def link_behind(sealed: Seal | None, published: Seal | None) -> Link:
    """Where the chain goes on. Where more was published than is there, the numbers go on behind it, so that the gap
    stays to be seen; the positions go on where the last seal that is there ends."""
    link = Link() if sealed is None else Link(sealed.number + 1, sealed.to_position + 1, sealed.hash)
    if published is not None and published.number >= link.number:
        return Link(published.number + 1, link.position, published.hash)
    return link


def seal_rows(entries: Sequence[Entry], link: Link, *, at_us: int, sign: Callable[[bytes], str]) -> Seal:
    """Seal rows in order of their positions, at least one."""
    unsigned = Seal(
        number=link.number, from_position=link.position, to_position=entries[-1][0], count=len(entries),
        content=hashlib.sha256(packed(entries)).digest(), previous=link.previous, sealed_us=at_us, hash=b"",
        signature="",
    )  # fmt: skip
    hashed = unsigned.hashed()
    return replace(unsigned, hash=hashed, signature=sign(hashed))
