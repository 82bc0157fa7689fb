"""Key rings: what is sealed opens at its place alone; files and reprs give nothing away."""

import json
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.keys import (
    ASYMMETRIC,
    SYMMETRIC,
    BadKeys,
    CannotOpen,
    Keys,
    Ring,
    Successor,
    mac,
    new_keys,
    read_keys,
    write_keys,
)

OLD, NEW = b"o" * 32, b"n" * 32
KEYS = Keys({"personal": Ring("new", {"new": NEW, "old": OLD}), "two-factor": Ring("new", {"new": NEW})})
BEFORE = Keys({"personal": Ring("old", {"old": OLD})})


@given(st.binary(max_size=200), st.text(max_size=20).filter(str.isprintable))
def test_what_is_sealed_opens(plain: bytes, place: str) -> None:
    sealed = KEYS.seal("personal", plain, place=place)
    assert sealed.startswith("v1.new.")
    assert sealed.isascii()
    assert KEYS.open("personal", sealed, place=place) == plain
    assert KEYS.seal("personal", plain, place=place) != sealed


def test_an_older_key_still_opens() -> None:
    assert KEYS.open("personal", BEFORE.seal("personal", b"x", place="a"), place="a") == b"x"


def test_a_key_that_is_gone_opens_nothing() -> None:
    with pytest.raises(CannotOpen):
        BEFORE.open("personal", KEYS.seal("personal", b"x", place="a"), place="a")


SEALED = KEYS.seal("personal", b"a plain marker", place="table.column:1")


@pytest.mark.parametrize(
    "altered",
    [
        SEALED[:20] + ("A" if SEALED[20] != "A" else "B") + SEALED[21:],
        SEALED[:-5],
        SEALED + "AAAA",
        SEALED.replace("v1.new.", "v1.old."),
        SEALED.replace("v1.new.", "v1..."),
        SEALED.replace("v1.", "v2."),
        SEALED.removeprefix("v1."),
        "",
        "v1.new.",
        "v1.new.AAAA",
        "v1.new.ü",
        "v1.../../etc/passwd.AAAA",
    ],
    ids=range(12),  # the texts themselves are random
)
def test_what_is_altered_does_not_open(altered: str) -> None:
    with pytest.raises(CannotOpen) as caught:
        KEYS.open("personal", altered, place="table.column:1")
    assert "marker" not in str(caught.value)


@pytest.mark.parametrize("place", ["table.column:2", "table.other:1", "", "table.column:1 "])
def test_another_place_does_not_open(place: str) -> None:
    with pytest.raises(CannotOpen) as caught:
        KEYS.open("personal", SEALED, place=place)
    assert ":" not in str(caught.value)  # the owner in a place is nobody's business


def test_a_mac_knows_where_its_parts_end() -> None:
    key, other = KEYS.ring("personal").key, BEFORE.ring("personal").key
    assert mac(key, b"ab", b"c") != mac(key, b"a", b"bc")
    assert mac(key, b"ab") == mac(key, b"ab")
    assert mac(key, b"ab") != mac(other, b"ab")


def test_a_repr_says_nothing() -> None:
    for shown in (repr(KEYS), str(KEYS), f"{KEYS}", repr(KEYS.ring("personal")), str(KEYS.rings)):
        assert "nnnn" not in shown
        assert "oooo" not in shown
    assert repr(KEYS) == "Keys(***)"


def test_new_keys_are_random() -> None:
    one, other = new_keys(), new_keys()
    assert set(one) == set(other) == {*ASYMMETRIC, *SYMMETRIC}
    texts = [json.dumps(ring["keys"]) for made in (one, other) for ring in made.values()]
    assert len(set(texts)) == len(texts)


def test_a_key_file_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    write_keys(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    written = path.read_bytes()
    with pytest.raises(FileExistsError):
        write_keys(path)
    assert path.read_bytes() == written
    keys = read_keys(path)
    for purpose in (*ASYMMETRIC, *SYMMETRIC):
        assert len(keys.ring(purpose).key) == 32


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o666, 0o602])
def test_a_file_open_to_everybody_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "keys.json"
    write_keys(path)
    path.chmod(mode)
    with pytest.raises(BadKeys, match="chmod 600"):
        read_keys(path)


def _whole() -> dict[str, object]:
    return dict(new_keys())


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        '"x"',
        "{}",
        json.dumps(_whole() | {"access": None}),
        json.dumps(_whole() | {"access": {"current": "a", "keys": {}}}),
        json.dumps(_whole() | {"access": {"current": "a", "keys": {"b": "QUFB"}}}),
        json.dumps(_whole() | {"access": {"current": "a", "keys": {"a": "bWFya2Vy"}}}),
        json.dumps(_whole() | {"access": {"current": "a", "keys": {"a": 5}}}),
        json.dumps(_whole() | {"access": {"current": "a", "keys": ["a"]}}),
        json.dumps(_whole() | {"personal": {"current": "a.b", "keys": {"a.b": "A" * 43}}}),
        json.dumps({name: ring for name, ring in _whole().items() if name != "seal"}),
    ],
)
def test_a_file_that_is_no_key_file(tmp_path: Path, content: str) -> None:
    path = tmp_path / "keys.json"
    path.touch(mode=0o600)
    path.write_text(content)
    with pytest.raises(BadKeys) as caught:
        read_keys(path)
    assert "bWFya2Vy" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_no_file_at_all(tmp_path: Path) -> None:
    with pytest.raises(BadKeys):
        read_keys(tmp_path / "absent.json")


def test_a_successor_takes_over_at_its_time_and_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = Keys({"personal": Ring("old", {"old": OLD, "new": NEW}, Successor("new", 1000.0))})
    monkeypatch.setattr("adapters.keys.time.time", lambda: 999.9)
    assert keys.seal("personal", b"x", place="a").startswith("v1.old.")
    monkeypatch.setattr("adapters.keys.time.time", lambda: 1000.0)
    sealed = keys.seal("personal", b"x", place="a")
    assert sealed.startswith("v1.new.")
    assert keys.open("personal", sealed, place="a") == b"x"
    assert keys.open("personal", BEFORE.seal("personal", b"y", place="a"), place="a") == b"y"
