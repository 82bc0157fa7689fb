"""Whatever somebody does to rows, seals or both by hand is named; what nobody touched is not."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.audit_chain import ORIGIN, Link, Seal, digest_of, link_behind, packed, seal_rows, unpacked
from domain.audit_walk import Fault, Kind, Walk, forgery

COLUMNS = (
    "id", "event_id", "user_id", "actor_id", "action", "resource", "resource_id", "details", "personal", "ip_address",
    "user_agent", "success", "request_id", "created_at",
)  # fmt: skip
_PLACED = tuple(enumerate(COLUMNS))
Row = tuple[str | None, ...]


def signed_by(secret: str) -> Callable[[bytes], str]:
    return lambda hashed: f"v1.{secret}.{hashlib.sha256(secret.encode() + hashed).hexdigest()}"


def is_ours(hashed: bytes, signature: str) -> bool:
    return signature == signed_by("ours")(hashed)


def tell(walk: Walk, head: Seal) -> None:
    if walk.is_head(head):
        walk.published(head)
    else:
        walk.foreign(head.number)


@dataclass
class Log:
    """A log of some rows, its seals, and the heads that were published."""

    rows: dict[int, Row]
    seals: list[Seal] = field(default_factory=list)
    kept: dict[int, bytes] = field(default_factory=dict)
    heads: list[Seal] = field(default_factory=list)

    def seal(self, size: int, *, secret: str = "ours") -> None:
        """Seal the next rows."""
        link = link_behind(self.seals[-1] if self.seals else None, self.heads[-1] if self.heads else None)
        entries = [(at, digest_of(self.rows[at])) for at in sorted(self.rows) if at >= link.position][:size]
        sealed = seal_rows(entries, link, at_us=link.number, sign=signed_by(secret))
        self.seals.append(sealed)
        self.kept[sealed.number] = packed(entries)

    def sealed_anew(self, *, secret: str) -> None:
        """Every seal made again over the rows as they are now."""
        ends, self.seals = [seal.to_position for seal in self.seals], []
        link = Link()
        for end in ends:
            entries = [(at, digest_of(row)) for at, row in sorted(self.rows.items()) if link.position <= at <= end]
            self.seals.append(seal_rows(entries, link, at_us=link.number, sign=signed_by(secret)))
            self.kept[link.number] = packed(entries)
            link = link_behind(self.seals[-1], None)

    def faults(self, *, first: Seal | None = None) -> list[Fault]:
        walk = Walk(is_ours, first=first)
        begins = -(2**63) if first is None else first.from_position
        heads, rows = list(self.heads), sorted(item for item in self.rows.items() if item[0] >= begins)
        for seal in self.seals:
            if first is not None and seal.number < first.number:
                continue
            while heads and heads[0].number <= seal.number:
                tell(walk, heads.pop(0))
            ends_at = walk.seal(seal, self.kept[seal.number])
            while rows and rows[0][0] <= ends_at:
                at, row = rows.pop(0)
                walk.row(at, digest_of(row))
        for head in heads:
            tell(walk, head)
        return walk.end()

    def kinds(self) -> set[tuple[Kind, int, int]]:
        return {(fault.kind, fault.first, fault.last) for fault in self.faults()}


@st.composite
def logs(draw: st.DrawFn) -> Log:
    """Some dozens of rows with gaps between their positions, all but the last few sealed and published."""
    masks = draw(st.lists(st.integers(0, 3 * 2**13 - 1), min_size=6, max_size=30))
    at, rows = 0, {}
    for mask in masks:
        at += 1 + mask % 3
        rows[at] = tuple(f"{name} of {at}" if place == 0 or mask >> place & 1 else None for place, name in _PLACED)
    log = Log(rows)
    for size in draw(st.lists(st.integers(1, 9), min_size=2, max_size=6)):
        if not log.seals or log.seals[-1].to_position < max(rows):
            log.seal(size)
            log.heads.append(log.seals[-1])
    return log


def sealed_positions(log: Log) -> list[int]:
    return [at for at in sorted(log.rows) if at <= log.seals[-1].to_position]


@given(logs(), st.data())
@settings(max_examples=40)
def test_what_nobody_touched_is_clean(log: Log, data: st.DataObject) -> None:
    assert log.faults() == []
    log.heads = log.heads[data.draw(st.integers(0, len(log.heads))) :]  # old ones leave the stream
    assert log.faults() == []
    log.heads = log.heads[: data.draw(st.integers(0, len(log.heads)))]  # the last are not there yet
    assert log.faults() == []
    assert log.faults(first=data.draw(st.sampled_from(log.seals))) == []


@pytest.mark.parametrize("column", COLUMNS)
@given(logs(), st.data())
@settings(max_examples=20)
def test_an_altered_column_is_named(column: str, log: Log, data: st.DataObject) -> None:
    at = data.draw(st.sampled_from(sealed_positions(log)))
    place = COLUMNS.index(column)
    other: str | None = data.draw(st.one_of(st.none(), st.text()).filter(lambda text: text != log.rows[at][place]))
    log.rows[at] = (*log.rows[at][:place], other, *log.rows[at][place + 1 :])
    assert log.kinds() == {(Kind.ROW_EDITED, at, at)}


@given(logs(), st.data())
@settings(max_examples=100)
def test_removed_rows_are_named(log: Log, data: st.DataObject) -> None:
    gone = data.draw(st.sets(st.sampled_from(sealed_positions(log)), min_size=1))
    for at in gone:
        del log.rows[at]
    assert log.kinds() == {(Kind.ROW_REMOVED, at, at) for at in gone}


@given(logs(), st.data())
@settings(max_examples=100)
def test_an_inserted_row_is_named(log: Log, data: st.DataObject) -> None:
    free = sorted(set(range(-3, log.seals[-1].to_position)) - log.rows.keys())
    at = data.draw(st.sampled_from(free))
    log.rows[at] = tuple(f"forged {name}" for name in COLUMNS)
    assert log.kinds() == {(Kind.ROW_INSERTED, at, at)}


@given(logs(), st.data())
@settings(max_examples=100)
def test_rows_that_changed_places_are_named(log: Log, data: st.DataObject) -> None:
    one, two = sorted(data.draw(st.lists(st.sampled_from(sealed_positions(log)), min_size=2, max_size=2, unique=True)))
    log.rows[one], log.rows[two] = log.rows[two], log.rows[one]
    assert log.kinds() == {(Kind.ROWS_SWAPPED, one, two)}


@given(logs(), st.data())
@settings(max_examples=40)
def test_a_row_that_was_put_elsewhere_is_told_once(log: Log, data: st.DataObject) -> None:
    positions = sealed_positions(log)
    one, two = data.draw(st.lists(st.sampled_from(positions), min_size=2, max_size=2, unique=True))
    log.rows[two] = log.rows.pop(one)
    assert log.kinds() == {(Kind.ROW_MOVED, one, two), (Kind.ROW_REMOVED, two, two)}


@given(logs(), st.data(), st.sampled_from(["theirs", "ours"]), st.booleans())
@settings(max_examples=100)
def test_a_chain_computed_anew_is_named(log: Log, data: st.DataObject, secret: str, is_published: bool) -> None:
    """By its signatures; and were the key known to them, by the heads that were published."""
    at = data.draw(st.sampled_from(sealed_positions(log)))
    log.rows[at] = ("another", *log.rows[at][1:])
    since = next(seal.number for seal in log.seals if at <= seal.to_position)
    log.sealed_anew(secret=secret)
    if not is_published:
        log.heads = []
    named = {(fault.first, fault.last) for fault in log.faults() if fault.kind is Kind.CHAIN_ANEW}
    last = log.seals[-1].number
    expected = ({(1, last)} if secret == "theirs" else set()) | ({(since, last)} if is_published else set())
    assert named == expected
    assert {fault.kind for fault in log.faults()} <= {Kind.CHAIN_ANEW}


@given(logs(), st.data(), st.booleans(), st.booleans())
@settings(max_examples=100)
def test_a_cut_tail_is_named_for_good(log: Log, data: st.DataObject, rows_too: bool, goes_on: bool) -> None:
    left = data.draw(st.integers(0, len(log.seals) - 1))
    last = log.seals[-1].number
    log.seals = log.seals[:left]
    end = log.seals[-1].to_position if log.seals else 0
    if rows_too:
        log.rows = {at: row for at, row in log.rows.items() if at <= end}
    if goes_on:
        log.rows |= {at: tuple(f"{name} of later {at}" for name in COLUMNS) for at in range(end + 1, end + 4)}
        log.seal(9)
        log.heads.append(log.seals[-1])
    assert log.kinds() == {(Kind.TAIL_CUT, left + 1, last)}


ALTERED: dict[str, Callable[[Seal], Seal]] = {
    "count": lambda seal: replace(seal, count=seal.count + 1),
    "content": lambda seal: replace(seal, content=bytes(32)),
    "hash": lambda seal: replace(seal, hash=bytes(32)),
    "previous": lambda seal: replace(seal, previous=b"\1" * 32),
    "sealed at": lambda seal: replace(seal, sealed_us=seal.sealed_us + 1),
    "to": lambda seal: replace(seal, to_position=seal.to_position + 1),
    "from": lambda seal: replace(seal, from_position=seal.from_position - 1),
}


@pytest.mark.parametrize("what", ALTERED)
@given(logs(), st.data())
@settings(max_examples=30)
def test_an_altered_seal_is_named_and_no_row_is_blamed(what: str, log: Log, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(log.seals) - 1))
    number, begin, end = log.seals[place].number, log.seals[place].from_position, log.seals[place].to_position
    log.seals[place] = ALTERED[what](log.seals[place])
    assert (Kind.SEAL_ALTERED, number, number) in log.kinds()
    assert not [fault for fault in log.faults() if fault.kind.startswith("row")]
    at = data.draw(st.sampled_from([at for at in log.rows if begin <= at <= end]))
    log.rows[at] = ("another", *log.rows[at][1:])
    assert (Kind.ROW_EDITED, at, at) in log.kinds(), "the head that was published still tells"


@given(logs(), st.data(), st.integers(1, 2**63 - 1), st.integers(-(2**63), 2**63 - 1))
@settings(max_examples=40)
def test_a_seal_that_is_nonsense_hides_no_row_under_the_others(
    log: Log, data: st.DataObject, number: int, end: int
) -> None:
    place = data.draw(st.integers(0, len(log.seals) - 1))
    others = [seal for seal in log.seals if seal is not log.seals[place]]
    under_others = [at for at in sealed_positions(log) if any(s.from_position <= at <= s.to_position for s in others)]
    kept = log.kept.pop(log.seals[place].number)
    if number in log.kept or not others:
        return
    log.seals[place] = replace(log.seals[place], number=number, to_position=end, from_position=end - 7)
    log.kept[number] = data.draw(st.sampled_from([kept, kept[:-1], b""]))
    log.seals.sort(key=lambda seal: seal.number)
    assert [fault for fault in log.faults() if fault.kind is Kind.SEAL_ALTERED]
    assert not [fault for fault in log.faults() if fault.kind.startswith("row")]
    at = data.draw(st.sampled_from(under_others))
    log.rows[at] = ("another", *log.rows[at][1:])
    assert (Kind.ROW_EDITED, at, at) in log.kinds()


@given(logs(), st.data())
@settings(max_examples=40)
def test_another_signature_and_other_entries_are_named(log: Log, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(log.seals) - 1))
    seal = log.seals[place]
    log.seals[place] = replace(seal, signature=signed_by("theirs")(seal.hash))
    assert log.kinds() == {(Kind.CHAIN_ANEW, seal.number, seal.number)}
    log.seals[place], kept = seal, bytearray(log.kept[seal.number])
    kept[data.draw(st.integers(0, len(kept) - 1))] ^= 1
    log.kept[seal.number] = bytes(kept)[: data.draw(st.integers(0, len(kept)))]
    assert log.kinds() == {(Kind.SEAL_ALTERED, seal.number, seal.number)}


@given(logs(), st.data())
@settings(max_examples=40)
def test_a_seal_taken_out_of_the_middle_is_named(log: Log, data: st.DataObject) -> None:
    if len(log.seals) < 2:
        return
    gone = log.seals.pop(data.draw(st.integers(0, len(log.seals) - 2)))
    assert log.kinds() == {(Kind.SEAL_REMOVED, gone.number, gone.number)}


@given(logs(), st.data())
@settings(max_examples=40)
def test_heads_that_are_gone_or_none_of_ours_are_named(log: Log, data: st.DataObject) -> None:
    if len(log.heads) < 3:
        return
    gone = log.heads.pop(data.draw(st.integers(1, len(log.heads) - 2)))
    assert log.kinds() == {(Kind.HEAD_REMOVED, gone.number, gone.number)}
    log.heads.insert(gone.number - 1, replace(gone, signature="v1.theirs.x"))
    assert log.kinds() == {
        (Kind.HEAD_REMOVED, gone.number, gone.number), (Kind.HEAD_FOREIGN, gone.number, gone.number),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("action", "has_event", "told", "forged"),
    [
        ("user_login", True, "user_login", False),
        ("user_login", True, None, True),
        ("user_login", True, "user_deleted", True),
        ("user_login", False, None, True),
        ("login_refused", False, None, False),
    ],
)
def test_a_row_that_no_event_tells_is_forged(action: str, has_event: bool, told: str | None, forged: bool) -> None:
    found = forgery(action, has_event=has_event, told=told, actions_of_events=frozenset({"user_login"}))
    assert (found is not None) is forged


@given(st.sampled_from(["login_refused", "users_listed"]), st.text(), st.booleans())
def test_only_acts_without_an_event_prove_nothing(act: str, told: str, has_event: bool) -> None:
    events = frozenset({"user_login", "user_deleted"})
    assert (forgery(act, has_event=has_event, told=None, actions_of_events=events) is not None) is has_event
    for action in events:
        assert forgery(action, has_event=False, told=None, actions_of_events=events)
        assert (forgery(action, has_event=True, told=told, actions_of_events=events) is None) is (told == action)


def test_what_is_kept_is_read_again_whatever_is_cut_off() -> None:
    entries: Sequence[tuple[int, bytes]] = [(1, bytes(32)), (2**62, b"\xff" * 32)]
    assert unpacked(packed(entries)) == list(entries)
    assert unpacked(packed(entries)[:-1]) == [entries[0]]
    assert Link().previous == ORIGIN
