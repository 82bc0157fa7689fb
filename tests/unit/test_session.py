"""Refresh tokens: spent once, given again for moments, else the end of their family."""

from dataclasses import replace
from datetime import datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.session import Lifetimes, RefreshToken, Session, Standing, Use, judge
from domain.user import Status
from tests.builders import NOW

LIFETIMES = Lifetimes()
SECOND = timedelta(seconds=1)
SESSION = Session(
    id=UUID(int=1),
    user_id=UUID(int=2),
    remember_me=False,
    auth_time=NOW,
    amr=("pwd",),
    created_at=NOW,
    last_active_at=NOW,
    expires_at=NOW + LIFETIMES.refresh,
    ended_at=None,
)
STANDING = Standing(
    user_id=SESSION.user_id,
    session_id=SESSION.id,
    email="ada@example.org",
    role="user",
    status="active",
    version=1,
    amr=("pwd",),
    auth_time=NOW + timedelta(microseconds=1),
    session_ended=False,
    last_active_at=NOW,
    expires_at=NOW + SECOND,
)
FRESH = RefreshToken(SESSION.id, None, NOW + LIFETIMES.refresh, None, None)
SPENT = RefreshToken(SESSION.id, NOW, NOW + LIFETIMES.refresh, False, "laptop")
OLD = replace(SESSION, created_at=NOW - LIFETIMES.family, last_active_at=NOW, expires_at=NOW + LIFETIMES.refresh)

CASES = {
    "unspent": (FRESH, SESSION, "laptop", NOW, Use.SPEND),
    "unspent, from another device": (FRESH, SESSION, "phone", NOW, Use.SPEND),
    "unspent, in its last moment": (FRESH, SESSION, "laptop", FRESH.expires_at - SECOND, Use.SPEND),
    "unspent, past its time": (
        replace(FRESH, expires_at=NOW + SECOND),
        SESSION,
        "laptop",
        NOW + SECOND,
        Use.REFUSE,
    ),
    "spent a moment ago": (SPENT, SESSION, "laptop", NOW + SECOND, Use.GIVE_AGAIN),
    "spent, at the end of the grace": (
        SPENT,
        SESSION,
        "laptop",
        NOW + LIFETIMES.grace - timedelta(microseconds=1),
        Use.GIVE_AGAIN,
    ),
    "spent, the grace is over": (SPENT, SESSION, "laptop", NOW + LIFETIMES.grace, Use.END_FAMILY),
    "spent, by another device": (SPENT, SESSION, "phone", NOW + SECOND, Use.END_FAMILY),
    "spent, its successor too": (replace(SPENT, successor_used=True), SESSION, "laptop", NOW + SECOND, Use.END_FAMILY),
    "spent, without a successor": (
        replace(SPENT, successor_used=None),
        SESSION,
        "laptop",
        NOW + SECOND,
        Use.END_FAMILY,
    ),
    "spent, past its time": (replace(SPENT, expires_at=NOW), SESSION, "laptop", NOW + LIFETIMES.grace, Use.END_FAMILY),
    "of an ended session": (FRESH, replace(SESSION, ended_at=NOW), "laptop", NOW, Use.REFUSE),
    "spent, of an ended session": (SPENT, replace(SESSION, ended_at=NOW), "laptop", NOW + SECOND, Use.REFUSE),
    "of an expired session": (FRESH, replace(SESSION, expires_at=NOW), "laptop", NOW, Use.REFUSE),
    "of an idle session": (
        replace(FRESH, expires_at=NOW + timedelta(days=60)),
        replace(SESSION, expires_at=NOW + timedelta(days=60)),
        "laptop",
        NOW + LIFETIMES.idle,
        Use.REFUSE,
    ),
    "of a family at its end": (FRESH, OLD, "laptop", NOW, Use.REFUSE),
    "of a family just before its end": (FRESH, OLD, "laptop", NOW - SECOND, Use.SPEND),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_comes_of_a_token(case: str) -> None:
    token, session, device, at, use = CASES[case]
    assert judge(token, session, device=device, at=at, lifetimes=LIFETIMES) is use


TIMES = st.integers(-100_000_000, 100_000_000).map(lambda seconds: NOW + timedelta(seconds=seconds))
SPENT_TOKENS = st.builds(
    RefreshToken,
    session_id=st.just(SESSION.id),
    used_at=TIMES,
    expires_at=TIMES,
    successor_used=st.sampled_from([None, False, True]),
    used_by=st.sampled_from([None, "", "laptop"]),
)
SESSIONS = st.builds(
    Session,
    id=st.just(SESSION.id),
    user_id=st.just(SESSION.user_id),
    remember_me=st.booleans(),
    auth_time=TIMES,
    amr=st.just(("pwd",)),
    created_at=TIMES,
    last_active_at=TIMES,
    expires_at=TIMES,
    ended_at=st.none() | TIMES,
)


@given(token=SPENT_TOKENS, session=SESSIONS, device=st.sampled_from(["", "laptop"]), at=TIMES)
def test_a_spent_token_is_never_spent_again(token: RefreshToken, session: Session, device: str, at: datetime) -> None:
    use = judge(token, session, device=device, at=at, lifetimes=LIFETIMES)
    assert use is not Use.SPEND
    if use is Use.GIVE_AGAIN:
        assert token.successor_used is False
        assert token.used_by == device
        assert session.is_live(at, LIFETIMES)


@given(token=SPENT_TOKENS, session=SESSIONS, at=TIMES)
def test_nothing_comes_of_a_session_that_is_over(token: RefreshToken, session: Session, at: datetime) -> None:
    over = replace(session, ended_at=NOW)
    for presented in (token, replace(token, used_at=None)):
        assert judge(presented, over, device="laptop", at=at, lifetimes=LIFETIMES) is Use.REFUSE


@pytest.mark.parametrize(("remember_me", "days"), [(False, 7), (True, 30)])
def test_a_refresh_token_lives_as_long_as_was_asked_for(remember_me: bool, days: int) -> None:
    session = replace(SESSION, remember_me=remember_me)
    assert session.refresh_lifetime(NOW, LIFETIMES) == timedelta(days=days)


def test_no_refresh_token_outlives_its_family() -> None:
    assert SESSION.refresh_lifetime(NOW + timedelta(days=89), LIFETIMES) == timedelta(days=1)


@pytest.mark.parametrize(
    ("status", "ended", "left", "live"),
    [
        ("active", False, SECOND, True),
        ("active", False, 0 * SECOND, False),
        ("active", True, SECOND, False),
        ("suspended", False, SECOND, False),
        ("deleted", False, SECOND, False),
    ],
)
def test_whose_token_counts(status: Status, ended: bool, left: timedelta, live: bool) -> None:
    standing = replace(STANDING, status=status, session_ended=ended, expires_at=NOW + left)
    assert standing.is_live(NOW) is live


@pytest.mark.parametrize(
    ("seconds", "otp", "older"),
    [(-1, False, False), (0, False, False), (0, True, True), (1, False, True), (1, True, True)],
)
def test_what_was_remembered_of_a_session_is_older_than_a_token_of_a_later_proof(
    seconds: int, otp: bool, older: bool
) -> None:
    assert STANDING.is_older_than(NOW + seconds * SECOND, has_second_factor=otp) is older


@pytest.mark.parametrize(
    ("amr", "second_factor", "then"),
    [
        (("pwd",), False, ("pwd",)),
        (("pwd",), True, ("pwd", "otp")),
        (("pwd", "otp"), True, ("pwd", "otp")),
        (("pwd", "otp"), False, ("pwd", "otp")),
    ],
    ids=str,
)
def test_a_new_proof_makes_the_same_session_fresh(
    amr: tuple[str, ...], second_factor: bool, then: tuple[str, ...]
) -> None:
    later = NOW + timedelta(hours=1)
    proven = replace(SESSION, amr=amr).proven_again(later, second_factor=second_factor)
    assert proven == replace(SESSION, auth_time=later, amr=then)
