"""When a server is left alone, and who finds it back."""

from hypothesis import given
from hypothesis import strategies as st

from adapters.breaker import Breaker

PAUSE_S = 1.0


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def opened(clock: Clock) -> Breaker:
    breaker = Breaker(failures_max=3, pause_s=PAUSE_S, clock=clock)
    assert [breaker.failed() for _ in range(3)] == [False, False, True]
    return breaker


def test_failures_in_a_row_open_it_and_a_success_between_them_does_not() -> None:
    breaker = Breaker(failures_max=3, pause_s=PAUSE_S)
    for _ in range(10):
        assert not breaker.failed()
        assert not breaker.failed()
        assert not breaker.succeeded()
    assert breaker.admits()
    assert breaker.state == "closed"


def test_half_open_it_lets_one_ask_in_each_pause() -> None:
    clock = Clock()
    breaker = opened(clock)
    states: list[str] = [breaker.state]
    assert not breaker.admits()
    clock.now += PAUSE_S
    states.append(breaker.state)
    assert states == ["open", "half open"]
    assert [breaker.admits() for _ in range(5)] == [True, False, False, False, False]
    clock.now += PAUSE_S  # the one who asked never came back: another may
    assert [breaker.admits() for _ in range(3)] == [True, False, False]


def test_one_success_closes_it_and_one_failure_keeps_it_open() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now += PAUSE_S
    assert breaker.admits()
    assert not breaker.failed()  # it was open before
    assert not breaker.admits()
    clock.now += PAUSE_S
    assert breaker.admits()
    assert breaker.succeeded()
    assert [breaker.admits() for _ in range(5)] == [True] * 5
    assert not breaker.succeeded()


@given(st.lists(st.sampled_from(["fails", "answers", "waits"]), max_size=60))
def test_it_never_stays_open_once_the_server_answers(story: list[str]) -> None:
    """Whatever has happened: after a pause somebody may ask, and one answer lets everybody."""
    clock = Clock()
    breaker = Breaker(failures_max=3, pause_s=PAUSE_S, clock=clock)
    for step in story:
        if step == "waits":
            clock.now += PAUSE_S / 2
        elif breaker.admits():
            breaker.failed() if step == "fails" else breaker.succeeded()
    clock.now += PAUSE_S
    assert breaker.admits()
    breaker.succeeded()
    assert breaker.state == "closed"
