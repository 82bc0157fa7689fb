"""An account that is locked for devices that are not known."""

from datetime import timedelta
from uuid import UUID

from domain.events import AccountLocked, AccountUnlocked, UserLogin
from domain.user import User
from tests.builders import NOW, ORIGIN, an_old_user

LINK = UUID(int=9)
UNTIL = NOW + timedelta(minutes=15)


def _locked() -> User:
    user = an_old_user()
    user.failed_logins = 50
    user.lock(until=UNTIL, token_id=LINK, expires_at=NOW + timedelta(hours=24), at=NOW)
    return user


def test_a_lock_is_told_with_its_end_and_its_link() -> None:
    user = _locked()
    assert user.recorded == [
        AccountLocked(user_id=user.id, until=UNTIL, token_id=LINK, expires_at=NOW + timedelta(hours=24))
    ]
    assert user.is_locked(NOW)


def test_a_lock_ends_by_itself() -> None:
    user = _locked()
    assert user.is_locked(UNTIL - timedelta(microseconds=1))
    assert not user.is_locked(UNTIL)


def test_unlocking_forgets_the_failures_and_is_told_once() -> None:
    user = _locked()
    user.recorded.clear()
    for _ in range(2):
        user.unlock(reason="link", at=NOW)
    assert user.recorded == [AccountUnlocked(user_id=user.id, reason="link")]
    assert (user.account_locked, user.lockout_until, user.failed_logins) == (False, None, 0)


def _sign_in(user: User) -> None:
    user.sign_in(session_id=UUID(int=7), method="password", known_device=True, origin=ORIGIN, at=user.updated_at)


def test_a_sign_in_leaves_a_lock_that_stands_to_strangers() -> None:
    user = _locked()
    _sign_in(user)
    assert user.is_locked(NOW)
    assert user.failed_logins == 0


def test_a_sign_in_clears_a_lock_that_is_past_without_a_word() -> None:
    user = _locked()
    user.recorded.clear()
    user.updated_at = UNTIL
    _sign_in(user)
    assert (user.account_locked, user.lockout_until) == (False, None)
    assert [type(event) for event in user.recorded] == [UserLogin]


def test_a_reset_takes_the_lock_off() -> None:
    user = _locked()
    user.recorded.clear()
    user.reset_password("another hash", at=NOW)
    assert AccountUnlocked(user_id=user.id, reason="password_reset") in user.recorded
    assert not user.account_locked
