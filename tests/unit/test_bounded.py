"""The bounded dictionary: however it is written, it never grows past its bound."""

from hypothesis import given
from hypothesis import strategies as st

from adapters.bounded import BoundedDict

WRITES = st.lists(st.tuples(st.sampled_from(["set", "setdefault", "update", "pop"]), st.integers(0, 9)), max_size=60)


@given(st.integers(1, 5), WRITES)
def test_it_never_grows_past_its_bound(entries_max: int, writes: list[tuple[str, int]]) -> None:
    kept: BoundedDict[int, int] = BoundedDict(entries_max)
    for way, key in writes:
        match way:
            case "set":
                kept[key] = key
                assert next(reversed(kept)) == key
            case "setdefault":
                assert kept.setdefault(key, key) == key
            case "update":
                kept.update({key: key, key + 1: key + 1})
            case _:
                kept.pop(key, None)
        assert len(kept) <= entries_max
        assert all(kept[key] == key for key in kept)


def test_the_least_recently_written_leaves_first() -> None:
    kept: BoundedDict[str, int] = BoundedDict(2)
    kept["a"], kept["b"] = 1, 2
    kept["a"] = 3
    kept["c"] = 4
    assert kept == {"a": 3, "c": 4}
