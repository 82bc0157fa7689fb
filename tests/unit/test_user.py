"""The `User` aggregate: a state, one call, these events."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from domain.events import (
    DomainEvent,
    EmailVerificationRequested,
    EmailVerified,
    LoginFailed,
    ProfileUpdated,
    RefreshTokenReused,
    SessionRevoked,
    UserLoggedOut,
    UserLogin,
    UserRegistered,
    UserRoleChanged,
)
from domain.refusals import AccountSuspended, EmailNotVerified, NotFound, Stale, StateConflict
from domain.user import Status, User
from tests.builders import NOW, ORIGIN, a_user, an_old_user

SESSION = UUID(int=7)
TOKEN = UUID(int=99)
LATER = NOW + timedelta(hours=1)


def test_registering_leaves_the_first_event() -> None:
    user = a_user(email="ada@example.org")
    assert user.recorded == [
        UserRegistered(
            user_id=user.id, email="ada@example.org", first_name="Ada", last_name="Lovelace", origin="registration"
        )
    ]
    assert (user.version, user.revision, user.role, user.status) == (1, 1, "user", "active")
    assert not user.email_verified
    assert user.created_at == user.updated_at == user.last_password_change == NOW


EVENTS: list[tuple[Callable[[User], None], Callable[[User], DomainEvent]]] = [
    (
        lambda user: user.request_verification(
            token_id=SESSION, not_me_token_id=TOKEN, expires_at=LATER, reason="resend", at=LATER
        ),
        lambda user: EmailVerificationRequested(
            user_id=user.id,
            email=user.email,
            token_id=SESSION,
            not_me_token_id=TOKEN,
            expires_at=LATER,
            reason="resend",
        ),
    ),
    (
        lambda user: user.verify_email(reason="registration", at=LATER),
        lambda user: EmailVerified(user_id=user.id, email=user.email, reason="registration"),
    ),
    (
        lambda user: user.session_ended(SESSION, reason="logout", at=LATER),
        lambda user: UserLoggedOut(user_id=user.id, session_id=SESSION),
    ),
    (
        lambda user: user.session_ended(SESSION, reason="cap", at=LATER),
        lambda user: SessionRevoked(user_id=user.id, session_id=SESSION, reason="cap"),
    ),
    (
        lambda user: user.refresh_token_reused(SESSION, token_id=TOKEN, expires_at=LATER, origin=ORIGIN, at=LATER),
        lambda user: RefreshTokenReused(
            user_id=user.id,
            session_id=SESSION,
            ip=ORIGIN.ip,
            user_agent=ORIGIN.user_agent,
            token_id=TOKEN,
            expires_at=LATER,
        ),
    ),
    (
        lambda user: user.refuse_password(origin=ORIGIN, at=LATER),
        lambda user: LoginFailed(
            user_id=user.id, ip=ORIGIN.ip, user_agent=ORIGIN.user_agent, reason="wrong_password", failures=1
        ),
    ),
    (
        lambda user: user.change({"first_name": "Augusta"}, expected_revision=1, at=LATER),
        lambda user: ProfileUpdated(user_id=user.id, changed={"first_name": "Augusta"}, revision=2),
    ),
    (
        lambda user: user.change_role("admin", reason="founder", at=LATER),
        lambda user: UserRoleChanged(user_id=user.id, from_="user", to="admin", reason="founder"),
    ),
]


@pytest.mark.parametrize(("act", "event"), EVENTS)
def test_an_act_leaves_one_event_and_one_version(
    act: Callable[[User], None], event: Callable[[User], DomainEvent]
) -> None:
    user = an_old_user()
    act(user)
    assert user.recorded == [event(user)]
    assert user.version == 2
    assert user.updated_at == LATER


def test_versions_count_events_without_a_gap() -> None:
    user = a_user()
    for act, _ in EVENTS:
        act(user)
    assert user.version == len(user.recorded) == 1 + len(EVENTS)


def test_an_address_is_verified_once() -> None:
    user = an_old_user()
    user.verify_email(reason="registration", at=NOW)
    user.verify_email(reason="registration", at=NOW)
    assert user.email_verified
    assert len(user.recorded) == 1


def test_a_deleted_account_cannot_be_verified() -> None:
    user = an_old_user()
    user.status = "deleted"
    with pytest.raises(NotFound):
        user.verify_email(reason="registration", at=NOW)
    assert not user.email_verified
    assert user.recorded == []


def test_another_password_than_was_seen_is_stale() -> None:
    user = an_old_user()
    user.require_password_hash("hash of the first")
    with pytest.raises(Stale):
        user.require_password_hash("hash of the second")


def test_every_failure_counts_and_every_doubling_is_told() -> None:
    user = an_old_user()
    for _ in range(20):
        user.refuse_password(origin=ORIGIN, at=NOW)
    told = [event.failures for event in user.recorded if isinstance(event, LoginFailed)]
    assert user.failed_logins == 20
    assert told == [1, 2, 4, 8, 16]
    assert user.version == 1 + len(told)


def test_signing_in_starts_the_count_again() -> None:
    user = an_old_user()
    for _ in range(3):
        user.refuse_password(origin=ORIGIN, at=NOW)
    user.sign_in(session_id=SESSION, method="password", known_device=False, origin=ORIGIN, at=LATER)
    user.refuse_password(origin=ORIGIN, at=LATER)
    assert user.failed_logins == 1
    assert isinstance(user.recorded[-1], LoginFailed)
    assert user.last_login_at == LATER


@pytest.mark.parametrize(
    ("earlier_logins", "known_device", "new_device"),
    [(0, False, False), (0, True, False), (1, False, True), (1, True, False)],
)
def test_a_new_device_is_told_of_but_for_the_first_sign_in(
    earlier_logins: int, known_device: bool, new_device: bool
) -> None:
    user = an_old_user()
    for _ in range(earlier_logins):
        user.sign_in(session_id=uuid4(), method="password", known_device=False, origin=ORIGIN, at=NOW)
    user.sign_in(session_id=SESSION, method="password", known_device=known_device, origin=ORIGIN, at=LATER)
    assert user.recorded[-1] == UserLogin(
        user_id=user.id,
        ip=ORIGIN.ip,
        user_agent=ORIGIN.user_agent,
        timestamp=LATER,
        session_id=SESSION,
        method="password",
        new_device=new_device,
        device_info=ORIGIN.device_info,
    )


@pytest.mark.parametrize(
    ("status", "verified", "required", "refusal"),
    [
        ("active", True, True, None),
        ("active", False, False, None),
        ("active", False, True, EmailNotVerified),
        ("suspended", True, True, AccountSuspended),
        ("suspended", False, True, AccountSuspended),
    ],
)
def test_who_may_sign_in(status: Status, verified: bool, required: bool, refusal: type[Exception] | None) -> None:
    user = an_old_user()
    user.status, user.email_verified = status, verified
    if refusal is None:
        user.require_may_sign_in(verified_email_required=required)
    else:
        with pytest.raises(refusal):
            user.require_may_sign_in(verified_email_required=required)
    assert user.recorded == []


def test_what_stays_the_same_is_no_event() -> None:
    user = an_old_user()
    user.change({"first_name": "Ada", "bio": None, "notifications": {"sms": False}}, expected_revision=1, at=LATER)
    user.change({}, expected_revision=None, at=LATER)
    user.change_role("user", reason="again", at=LATER)
    assert user.recorded == []
    assert (user.revision, user.version, user.updated_at) == (1, 1, NOW)


def test_only_what_changed_is_told() -> None:
    user = an_old_user()
    user.change({"last_name": "King", "first_name": "Ada", "bio": "Wrote notes."}, expected_revision=None, at=LATER)
    assert user.recorded == [
        ProfileUpdated(user_id=user.id, changed={"last_name": "King", "bio": "Wrote notes."}, revision=2)
    ]
    assert (user.first_name, user.last_name, user.profile.bio) == ("Ada", "King", "Wrote notes.")


def test_a_part_of_the_notifications_leaves_the_others() -> None:
    user = an_old_user()
    before = user.profile.notifications
    user.change({"notifications": {"sms": True}}, expected_revision=None, at=LATER)
    assert user.profile.notifications == {"email": True, "push": True, "sms": True}
    assert before["sms"] is False  # what a reader holds does not change under them


@pytest.mark.parametrize("expected", [0, 2, -1])
def test_another_revision_than_expected_changes_nothing(expected: int) -> None:
    user = an_old_user()
    before = replace(user)
    with pytest.raises(StateConflict):
        user.change({"first_name": "Augusta", "bio": "x"}, expected_revision=expected, at=LATER)
    assert user == before
