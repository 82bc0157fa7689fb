"""What the mark of a stream tells of the stream as it is now."""

from dataclasses import replace
from datetime import timedelta

import pytest

from adapters.stream_marks import STILL_MAX, Loss, Mark
from adapters.stream_reader import StreamState
from tests.builders import NOW

MARK = Mark(
    created_at=NOW, last_sequence=100, message_id="a", moved_at=NOW, compared_to=0, lost_what=None, refilled_to=None
)
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
    ("emptied", replace(STATE, first_sequence=101), None, "lacks what was announced"),
    ("emptied and grown", replace(STATE, first_sequence=150, last_sequence=160), None, "lacks what was announced"),
]


@pytest.mark.parametrize(("state", "message_id", "loss"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_stream_that_has_lost_something_is_told(
    state: StreamState, message_id: str | None, loss: Loss | None
) -> None:
    assert MARK.loss(state, message_id, at=NOW) == loss


def test_what_its_age_has_ended_is_no_loss() -> None:
    emptied = replace(STATE, first_sequence=101)
    assert MARK.loss(emptied, None, at=NOW + STILL_MAX) is None


def test_a_stream_that_was_empty_has_lost_nothing() -> None:
    mark = replace(MARK, last_sequence=0, message_id=None)
    assert mark.loss(StreamState(NOW, 1, 7), None, at=NOW) is None
