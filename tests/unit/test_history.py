"""What a user's events say that the user must be; and what no history may hold."""

from collections.abc import Callable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.history import History, Past
from domain.positions import Positions

REGISTERED: Mapping[str, object] = {
    "email": "ada@example.org", "firstName": "Ada", "lastName": "Lovelace", "origin": "registration",
}  # fmt: skip
ROW: Mapping[str, object] = {
    "role": "user", "status": "active", "email_verified": False, "two_factor_enabled": False, "revision": 1,
    "password_reset_required": False, "erased": False, "version": 1, "email": "ada@example.org", "first_name": "Ada",
    "last_name": "Lovelace", "display_name": None, "bio": None, "website": None, "location": None, "social_links": [],
    "avatar": None, "timezone": "UTC", "language": None, "theme": "light",
    "notifications": {"email": True, "push": True, "sms": False},
}  # fmt: skip


def history(*events: tuple[str, Mapping[str, object]]) -> History:
    """As they follow each other behind the registration."""
    found = History()
    for version, (type, data) in enumerate([("UserRegistered", REGISTERED), *events], start=1):
        found.take(Past(version, type, data))
    return found


CHANGES: list[tuple[str, Mapping[str, object], Mapping[str, object]]] = [
    ("EmailVerified", {"email": "ada@example.org"}, {"email_verified": True}),
    ("UserRoleChanged", {"from": "user", "to": "admin"}, {"role": "admin"}),
    ("UserStatusChanged", {"from": "active", "to": "suspended"}, {"status": "suspended"}),
    ("TwoFactorEnabled", {"by": "user"}, {"two_factor_enabled": True}),
    ("PasswordResetRequired", {"reason": "not_me"}, {"password_reset_required": True}),
    ("EmailChanged", {"email": "b@example.org", "previousEmail": "ada@example.org"}, {"email": "b@example.org"}),
    ("EmailChangeCancelled", {"email": "c@example.org"}, {"email": "c@example.org"}),
    ("UserDeleted", {"by": "user"}, {"status": "deleted"}),
    ("ProfileUpdated", {"changed": {"firstName": "Grace", "bio": "x"}, "revision": 2},
     {"first_name": "Grace", "bio": "x", "revision": 2}),
    ("AvatarUpdated", {"avatar": {"id": "1"}}, {"avatar": {"id": "1"}}),
    ("UserLogin", {"sessionId": "1"}, {}),
]  # fmt: skip


@pytest.mark.parametrize(("type", "data", "facts"), CHANGES, ids=[type for type, _, _ in CHANGES])
def test_each_event_says_what_the_row_must_be(
    type: str, data: Mapping[str, object], facts: Mapping[str, object]
) -> None:
    found = history((type, data))
    assert found.against({**ROW, **facts, "version": 2}) == []
    assert found.against(ROW) == sorted({*facts, "version"})
    assert found.faults == []


@pytest.mark.parametrize("name", sorted(ROW.keys() - {"language", "erased"}))
def test_whatever_a_row_says_otherwise_is_named(name: str) -> None:
    assert history().against({**ROW, name: "something else"}) == [name]


def test_a_language_counts_once_its_owner_has_chosen() -> None:
    assert history().against({**ROW, "language": "de"}) == []
    chosen = history(("ProfileUpdated", {"changed": {"language": "fr"}, "revision": 2}))
    assert chosen.against({**ROW, "language": "de", "version": 2, "revision": 2}) == ["language"]


def test_the_last_of_two_counts() -> None:
    back = history(
        ("TwoFactorEnabled", {}), ("TwoFactorDisabled", {}), ("PasswordResetRequired", {}), ("PasswordReset", {})
    )
    assert back.against({**ROW, "version": 5}) == []


def test_of_an_erased_user_nothing_personal_is_compared() -> None:
    erased = history(("UserDeleted", {}), ("UserErased", {}))
    row = {
        **ROW,
        "email": "erased",
        "first_name": "",
        "last_name": "",
        "status": "deleted",
        "erased": True,
        "version": 3,
    }
    assert erased.against(row) == []
    assert erased.against({**row, "erased": False, "status": "active"}) == ["erased", "status"]
    assert history().against({**ROW, "erased": True}) == ["erased"]


BROKEN: list[tuple[str, Callable[[list[Past]], list[Past]], str]] = [
    ("a gap", lambda past: [past[0], past[2]], "version 3 follows 1"),
    ("an order", lambda past: [past[1], past[0], past[2]], "version 2 is EmailVerified"),
    ("a beginning", lambda past: past[1:], "version 2 follows 0"),
    ("two beginnings", lambda past: [past[0], Past(2, "UserRegistered", REGISTERED)], "version 2 is UserRegistered"),
    ("life after the end", lambda past: [*past, Past(4, "UserErased", {}), Past(5, "UserLogin", {})],
     "version 5 comes after the user was erased"),
]  # fmt: skip


@pytest.mark.parametrize(("break_it", "says"), [row[1:] for row in BROKEN], ids=[row[0] for row in BROKEN])
def test_what_no_history_may_hold_is_named(break_it: Callable[[list[Past]], list[Past]], says: str) -> None:
    past = [Past(1, "UserRegistered", REGISTERED), Past(2, "EmailVerified", {}), Past(3, "UserLogin", {})]
    found = History()
    for event in break_it(past):
        found.take(event)
    assert says in found.faults


@given(st.lists(st.integers(0, 100_000), max_size=200))
def test_positions_are_a_set(numbers: list[int]) -> None:
    positions, known = Positions(), set[int]()
    for number in numbers:
        assert positions.add(number) == (number not in known)
        known.add(number)
    assert list(positions) == sorted(known)
    assert all(number in positions for number in known)
    assert not any(number in positions for number in range(0, 100_000, 97) if number not in known)
