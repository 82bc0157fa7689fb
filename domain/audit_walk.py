"""Along the audit log's seals: what is no longer as it was sealed, signed and published, by name."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from domain.audit_chain import Entry, Link, Seal, unpacked

NAMED_MAX = 10_000
"""So many faults of seals, and of rows, are kept to be named; those beyond are counted."""


class Kind(StrEnum):
    """What somebody has done. Rows are named by their positions, seals and heads by their numbers, and what is no head
    of ours by its place on the stream."""

    ROW_EDITED = "row_edited"
    ROW_REMOVED = "row_removed"
    ROW_INSERTED = "row_inserted"
    ROWS_SWAPPED = "rows_swapped"
    ROW_MOVED = "row_moved"
    ROW_FORGED = "row_forged"
    SEAL_ALTERED = "seal_altered"
    SEAL_REMOVED = "seal_removed"
    CHAIN_BROKEN = "chain_broken"
    CHAIN_ANEW = "chain_anew"
    TAIL_CUT = "tail_cut"
    HEAD_REMOVED = "head_removed"
    HEAD_FOREIGN = "head_foreign"


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is not as it was sealed, from `first` to `last`; of two rows that changed places, both."""

    kind: Kind
    first: int
    last: int
    says: str


def forgery(action: str, *, has_event: bool, told: str | None, actions_of_events: frozenset[str]) -> str | None:
    """Why a row is none of ours, if it is not. `told` is the action that its event tells, None where no event says the
    same of that user at that time; acts without an event (refusals, reads, an operator's acts) prove nothing here."""
    if has_event and told is None:
        return "its event is not there, or says something else"
    if has_event and told != action:
        return f"its event tells of {told}"
    if not has_event and action in actions_of_events:
        return "such a row comes from an event, and names none"
    return None


class Walk:
    """Goes along seals, rows and published heads in order, and names every fault at the end.

    Heads are told up to a seal's number before that seal, rows after the seal they stand under. Memory is bounded.
    """

    def __init__(self, is_ours: Callable[[bytes, str], bool], *, first: Seal | None = None) -> None:
        """`first` is where to begin, if not at the beginning: what was before it is not looked at."""
        self._is_ours = is_ours
        self._link = Link() if first is None else Link(first.number, first.from_position, first.previous)
        self._seen_to = self._link.position - 1
        self._heads: dict[int, Seal] = {}
        self._last_head = 0
        self._rows = _Rows()
        self._faults: list[Fault] = []
        self._of_seals: dict[tuple[Kind, str], int] = {}
        self._unnamed = 0

    @property
    def last_published(self) -> int:
        """The highest number that was published; 0 for none."""
        return self._last_head

    def is_head(self, head: Seal) -> bool:
        """Whether a published head is one that we have signed."""
        return head.hash == head.hashed() and self._is_ours(head.hash, head.signature)

    def published(self, head: Seal) -> None:
        """A head of ours that stands outside of the database, in order of their numbers."""
        if head.number > self._last_head + 1 and self._last_head:
            self._note(Kind.HEAD_REMOVED, self._last_head + 1, head.number - 1, "gone from among the published heads")
        self._last_head = max(self._last_head, head.number)
        self._heads.setdefault(head.number, head)
        if len(self._heads) > 2:  # a seal asks for its own and for its predecessor's
            del self._heads[min(self._heads)]

    def foreign(self, sequence: int) -> None:
        """A message where heads are published that is none of ours, by its place there."""
        self._note(Kind.HEAD_FOREIGN, sequence, sequence, "a message among the published heads that we have not signed")

    def seal(self, seal: Seal, packed_entries: bytes) -> int:
        """The next seal of the table, with what is kept to tell its rows; the position at which its rows end."""
        self._rows.close()
        self._see_link(seal)
        good = self._good(seal, hashlib.sha256(packed_entries).digest())
        entries = unpacked(packed_entries) if good else []
        since = None
        if good and (seal.number > self._link.number or not self._rows.is_compared):
            since = good.from_position  # rows before it stand under no seal that is any good
        self._rows.begin(entries if good else None, since=since)
        self._seen_to = good.to_position if good else self._seen_to
        self._link = Link(seal.number + 1, seal.to_position + 1, seal.hash)
        return self._seen_to

    def _good(self, seal: Seal, content: bytes) -> Seal | None:
        """What rows can be held against: the head that was published, else the seal if it is ours, where the list of
        rows that is kept belongs to it. Whatever the owner of the table makes up hides no row under another seal."""
        is_whole = seal.hash == seal.hashed() and seal.content == content
        is_signed = self._is_ours(seal.hash, seal.signature)
        head = self._heads.get(seal.number)
        if not is_whole:
            self._note(Kind.SEAL_ALTERED, seal.number, seal.number, "it does not have the hash that it says")
        elif not is_signed:
            self._note(Kind.CHAIN_ANEW, seal.number, seal.number, "not signed by a key of ours")
        if head is not None and head.hash != seal.hash:
            self._note(Kind.CHAIN_ANEW, seal.number, seal.number, "another one was published under its number")
        good = head or (seal if is_whole and is_signed else None)
        return good if good and good.content == content and good.to_position > self._seen_to else None

    def row(self, position: int, digest: bytes) -> None:
        """The next row up to the position at which those of the last seal end."""
        self._rows.found(position, digest)

    def forged(self, position: int, why: str) -> None:
        """A row, sealed or not, that no event and no act of ours has left."""
        self._note(Kind.ROW_FORGED, position, position, why)

    def end(self) -> list[Fault]:
        """No seal and no head is left: all faults, those of neighbouring seals taken together."""
        self._rows.close()
        last = self._link.number - 1
        if self._last_head > last:
            self._note(Kind.TAIL_CUT, last + 1, self._last_head, "published, and not in the table")
        return [*self._faults, *self._rows.named()]

    @property
    def unnamed(self) -> int:
        """How many faults there are beyond those that are named."""
        return self._rows.unnamed + self._unnamed

    def _see_link(self, seal: Seal) -> None:
        link, previous = self._link, self._link.previous
        if seal.number > link.number:
            is_cut = seal.from_position == link.position  # sealed anew from there, under the numbers behind
            kind = Kind.TAIL_CUT if is_cut else Kind.SEAL_REMOVED
            self._note(kind, link.number, seal.number - 1, "not in the table")
            before = self._heads.get(seal.number - 1)
            previous = before.hash if before else seal.previous
        elif seal.from_position != link.position:
            self._note(Kind.CHAIN_BROKEN, seal.number, seal.number, "it does not begin where the one before it ends")
        if seal.previous != previous:
            self._note(Kind.CHAIN_BROKEN, seal.number, seal.number, "it does not hang on the one before it")

    def _note(self, kind: Kind, first: int, last: int, says: str) -> None:
        """Add a fault, or let the one of the seal before go on."""
        before = self._of_seals.get((kind, says))
        if not kind.startswith("row") and before is not None and self._faults[before].last + 1 == first:
            self._faults[before] = replace(self._faults[before], last=last)
        elif len(self._faults) < NAMED_MAX:
            self._of_seals[kind, says] = len(self._faults)
            self._faults.append(Fault(kind, first, last, says))
        else:
            self._unnamed += 1


class _Rows:
    """Compares rows with what a seal keeps of them, and remembers what differs until all is seen: a row that is missing
    here may turn up there."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._next = 0
        self._since: int | None = None
        self.is_compared = True
        self._differences: list[tuple[int, bytes | None, bytes | None]] = []
        self.unnamed = 0

    def begin(self, entries: list[Entry] | None, *, since: int | None) -> None:
        """None where a seal's list of rows is no good; `since` is given where rows before it stand under no seal."""
        self._entries, self._next, self._since, self.is_compared = entries or [], 0, since, entries is not None

    def found(self, position: int, digest: bytes) -> None:
        if not self.is_compared or (self._since is not None and position < self._since):
            return
        entries = self._entries
        while self._next < len(entries) and entries[self._next][0] < position:
            self._differ(*entries[self._next], None)
            self._next += 1
        if self._next == len(entries) or entries[self._next][0] > position:
            self._differ(position, None, digest)
            return
        if entries[self._next][1] != digest:
            self._differ(*entries[self._next], digest)
        self._next += 1

    def close(self) -> None:
        for position, sealed in self._entries[self._next :]:
            self._differ(position, sealed, None)
        self._entries = []

    def _differ(self, position: int, sealed: bytes | None, found: bytes | None) -> None:
        if len(self._differences) < NAMED_MAX:
            self._differences.append((position, sealed, found))
        else:
            self.unnamed += 1

    def named(self) -> Iterator[Fault]:
        """What differs, by what must have been done; a row that stands elsewhere is told once."""
        was_at = {sealed: position for position, sealed, _ in self._differences if sealed}
        is_at = {found: position for position, _, found in self._differences if found}
        for position, sealed, found in self._differences:
            origin, target = was_at.get(found or b""), is_at.get(sealed or b"")
            if origin is not None and origin == target:
                if position < origin:
                    yield Fault(Kind.ROWS_SWAPPED, position, origin, "each stands where the other was sealed")
            elif origin is not None:
                yield Fault(Kind.ROW_MOVED, origin, position, "it was sealed at the first, and stands at the last")
                if sealed and target is None:
                    yield Fault(Kind.ROW_REMOVED, position, position, "it was sealed, and another stands there")
            elif sealed and found and target is None:
                yield Fault(Kind.ROW_EDITED, position, position, "it is not what was sealed")
            elif sealed and target is None:
                yield Fault(Kind.ROW_REMOVED, position, position, "it was sealed, and is gone")
            elif found:
                yield Fault(Kind.ROW_INSERTED, position, position, "it was not there when its neighbours were sealed")
