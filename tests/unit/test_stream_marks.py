"""What the mark of a stream tells of the stream as it is now."""

from dataclasses import replace
from datetime import timedelta

import pytest

from adapters.stream_marks import Loss, Mark
from adapters.stream_reader import StreamState
from tests.builders import NOW

MARK = Mark(
    stream="S", looked_at=NOW, created_at=NOW, last_sequence=100, message_id="a", compared_to=0, lost_what=None,
    refilled_to=None,
)  # fmt: skip
STATE = StreamState(created_at=NOW, first_sequence=1, last_sequence=100)
CASES: list[tuple[str, StreamState, str | None, Loss | None]] = [
    ("the same", STATE, "a", None),
    ("grown", replace(STATE, last_sequence=200), "a", None),
    ("the marked message was deleted", STATE, None, None),
    ("the oldest have ended", replace(STATE, first_sequence=100), "a", None),
    ("made anew", replace(STATE, created_at=NOW + timedelta(seconds=1)), "a", "made anew"),
    ("made anew and grown", replace(STATE, created_at=NOW + timedelta(seconds=1), last_sequence=500), "b", "made anew"),
    ("an older copy", replace(STATE, last_sequence=99), None, "older than it was"),
    ("an older copy that has grown", replace(STATE, last_sequence=120), "b", "older than it was"),
    ("emptied", replace(STATE, first_sequence=101), None, None),
]


@pytest.mark.parametrize(("state", "message_id", "loss"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_stream_that_has_lost_something_is_told(
    state: StreamState, message_id: str | None, loss: Loss | None
) -> None:
    assert MARK.loss(state, message_id) == loss


def test_where_nothing_is_left_of_what_there_was_it_is_looked_for_from_the_beginning() -> None:
    assert MARK.is_passed(replace(STATE, first_sequence=101))
    assert MARK.is_passed(replace(STATE, first_sequence=150, last_sequence=160))
    assert not MARK.is_passed(replace(STATE, first_sequence=100))
    assert not replace(MARK, last_sequence=0).is_passed(STATE)


def test_a_stream_that_was_empty_has_lost_nothing() -> None:
    mark = replace(MARK, last_sequence=0, message_id=None)
    assert mark.loss(StreamState(NOW, 1, 7), None) is None
