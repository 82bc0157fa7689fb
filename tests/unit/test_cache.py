"""L1: nothing older than a drop, nothing older than a minute, nothing at all while invalidations may be missed."""

from uuid import UUID, uuid4

import pytest

from adapters import cache
from adapters.bounded import BoundedDict
from adapters.cache import L1_SECONDS, LocalCache

USER, OTHER = UUID(int=1), UUID(int=2)


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def local(clock: Clock) -> LocalCache[str]:
    made: LocalCache[str] = LocalCache(clock)
    made.is_trusted = True
    return made


def test_what_was_put_is_there(local: LocalCache[str]) -> None:
    local.put("key", USER, 1, "value")
    assert local.get("key") == "value"
    assert local.get("another") is None
    assert (local.hits, local.misses) == (1, 1)


def test_nothing_lives_longer_than_a_minute(local: LocalCache[str], clock: Clock) -> None:
    local.put("key", USER, 1, "value")
    clock.now += L1_SECONDS
    assert local.get("key") == "value"
    clock.now += 0.001
    assert local.get("key") is None


def test_a_drop_hides_what_was_read_before(local: LocalCache[str]) -> None:
    local.put("key", USER, 1, "old")
    local.put("second key", USER, 1, "old")
    local.put("of another", OTHER, 1, "kept")
    local.drop(USER, 2)
    assert local.get("key") is None
    assert local.get("second key") is None
    assert local.get("of another") == "kept"


def test_a_slow_reader_cannot_put_an_older_value_back(local: LocalCache[str]) -> None:
    local.drop(USER, 5)
    local.put("key", USER, 4, "old")
    assert local.get("key") is None
    local.put("key", USER, 5, "new")
    assert local.get("key") == "new"


def test_an_older_value_does_not_take_the_place_of_a_newer(local: LocalCache[str]) -> None:
    local.put("key", USER, 5, "new")
    local.put("key", USER, 4, "old")
    assert local.get("key") == "new"


def test_a_late_drop_does_not_lower_the_floor(local: LocalCache[str]) -> None:
    local.drop(USER, 5)
    local.drop(USER, 3)
    assert local.floor_of(USER) == 5
    local.put("key", USER, 4, "old")
    assert local.get("key") is None


def test_without_trust_nothing_is_shown_or_kept(local: LocalCache[str]) -> None:
    local.put("key", USER, 1, "value")
    local.is_trusted = False
    assert local.get("key") is None
    local.put("late", USER, 1, "value")
    local.clear()
    local.is_trusted = True
    assert local.get("key") is None
    assert local.get("late") is None


def test_floors_outlive_a_loss_of_trust(local: LocalCache[str]) -> None:
    local.drop(USER, 5)
    local.is_trusted = False
    local.drop(USER, 7)
    local.clear()
    local.is_trusted = True
    local.put("key", USER, 6, "old")
    assert local.get("key") is None


def test_a_drop_is_heard_however_many_users_there_are(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    monkeypatch.setattr(cache, "_L1_MAX", 10)
    local: LocalCache[str] = LocalCache(clock)
    local.is_trusted = True
    local.put("key", USER, 1, "first")
    for _ in range(9):
        other = uuid4()
        local.put(other, other, 1, "another")
    local.put("key", USER, 1, "again")
    local.put(OTHER, OTHER, 1, "one more")
    local.drop(USER, 2)
    assert local.get("key") is None


def test_it_is_bounded() -> None:
    local: LocalCache[int] = LocalCache()
    local.is_trusted = True
    assert isinstance(local._entries, BoundedDict)
    for number in range(cache._L1_MAX + 10):
        local.put(number, USER, 1, number)
    assert len(local._entries) == cache._L1_MAX
    assert local.get(0) is None
