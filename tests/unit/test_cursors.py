"""Cursors: what was put in comes out, and what others make up is refused before it reaches a statement."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from adapters.cursors import make_cursor, read_cursor
from contracts.wire import Cursor
from domain.refusals import InvalidInput


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=20), min_size=1, max_size=3))
def test_a_place_comes_back(place: list[str]) -> None:
    assert read_cursor(make_cursor(*place), parts=len(place)) == place


def test_a_cursor_fits_the_contract() -> None:
    cursor = make_cursor("2026-03-01T12:00:00.123456+00:00", 2**63 - 1)
    assert TypeAdapter[str](Cursor).validate_python(cursor) == cursor


def _of(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode()


@pytest.mark.parametrize(
    "cursor",
    [
        "", "x", "AAAA", "é", "====", _of(None), _of("ab"), _of({"0": "a", "1": "b"}), _of([]), _of(["a"]),
        _of(["a", "b", "c"]), _of(["a", 1]), _of([["a"], "b"]), _of(["a", "b\x00"]), _of(["a", "\ud800"]),
        base64.urlsafe_b64encode(b"\xff\xfe").decode(), base64.urlsafe_b64encode(b"[" * 290).decode(),
        base64.urlsafe_b64encode(b"1" * 5000).decode(),
    ],
)  # fmt: skip
def test_what_is_no_cursor(cursor: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_cursor(cursor, parts=2)
    assert [(fault.field, fault.code) for fault in caught.value.faults] == [("cursor", "not_a_cursor")]
