"""The second factor's rules: which step a code belongs to, which is good again, and who waits after wrong ones."""

import base64
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit
from uuid import UUID, uuid4

import pytest

from adapters.totp import matching_steps, new_backup_codes, new_totp_secret, otpauth_uri, qr_code
from domain.events import BackupCodesRegenerated, BackupCodeUsed, LoginFailed, TwoFactorDisabled, TwoFactorEnabled
from domain.refusals import BadToken, EmailNotVerified, ExpiredToken, RateLimited, StateConflict
from domain.two_factor import Challenge, Factor, WrongCodes, backup_code_form, step_of, totp_form
from domain.user import User
from tests.builders import NOW, ORIGIN, an_old_user

RFC_SECRET = base64.b32encode(b"12345678901234567890").decode()
# RFC 6238, appendix B, SHA-1; the last six of its eight digits.
RFC_CODES = [
    (59, "287082"), (1111111109, "081804"), (1111111111, "050471"), (1234567890, "005924"), (2000000000, "279037"),
    (20000000000, "353130"),
]  # fmt: skip
LIMITS = WrongCodes()


def at_second(second: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=second)


@pytest.mark.parametrize(("second", "code"), RFC_CODES, ids=[str(second) for second, _ in RFC_CODES])
def test_codes_are_those_of_the_rfc(second: int, code: str) -> None:
    assert matching_steps(RFC_SECRET, code, at=at_second(second), window=0) == [second // 30]


@pytest.mark.parametrize("window", [0, 1, 2])
def test_a_code_is_good_within_its_window_alone(window: int) -> None:
    second, code = RFC_CODES[1]
    for off in range(-4, 5):
        found = matching_steps(RFC_SECRET, code, at=at_second(second + 30 * off), window=window)
        assert found == ([second // 30] if abs(off) <= window else []), off


def test_there_is_no_step_before_the_first() -> None:
    assert matching_steps(RFC_SECRET, "755224", at=at_second(0), window=2) == [0]


def test_secrets_and_codes_have_their_forms() -> None:
    assert len({new_totp_secret() for _ in range(100)}) == 100
    assert len(base64.b32decode(new_totp_secret())) == 20
    codes = new_backup_codes()
    assert len(set(codes)) == 10
    assert [backup_code_form(code) for code in codes] == codes


def test_the_address_for_the_app_says_whose_it_is() -> None:
    uri = urlsplit(otpauth_uri(RFC_SECRET, account="ada+x@example.org", issuer="A & B"))
    assert (uri.scheme, uri.netloc, uri.path) == ("otpauth", "totp", "/A%20%26%20B:ada%2Bx%40example.org")
    assert {"secret": [RFC_SECRET], "issuer": ["A & B"]}.items() <= parse_qs(uri.query).items()
    assert qr_code("otpauth://totp/x").startswith("data:image/png;base64,")


@pytest.mark.parametrize(
    ("typed", "read"),
    [("123456", "123456"), (" 123 456 ", "123456"), ("12345", None), ("1234567", None), ("12345a", None), ("", None),
     ("\uff11" * 6, None), ("123456\n", None)],
    ids=["plain", "spaced", "short", "long", "letter", "empty", "wide", "newline"],
)  # fmt: skip
def test_a_code_has_six_digits(typed: str, read: str | None) -> None:
    assert totp_form(typed) == read


@pytest.mark.parametrize(
    ("typed", "read"),
    [("0123ABCD", "0123ABCD"), ("0123abcd", "0123ABCD"), ("0123-ABCD", "0123ABCD"), ("0123ABCG", None), ("0123", None)],
    ids=["plain", "lower case", "parted", "no hex", "short"],
)
def test_a_backup_code_has_eight_hex_digits(typed: str, read: str | None) -> None:
    assert backup_code_form(typed) == read


def a_factor(*, wrong_codes: int = 0, minutes_ago: float = 1, device_known: bool = False) -> Factor:
    return Factor(
        id=UUID(int=1),
        user_id=uuid4(),
        secret_sealed="v1.k.x",
        is_on=True,
        last_step=100,
        codes=None,
        wrong_codes=wrong_codes,
        last_wrong_at=NOW - timedelta(minutes=minutes_ago) if wrong_codes else None,
        device_known=device_known,
    )


def test_a_step_is_accepted_once_and_none_before_it() -> None:
    factor = a_factor()
    assert factor.unused([99, 100]) is None
    assert factor.unused([99, 100, 101, 102]) == 101
    assert factor.unused([]) is None
    assert step_of(at_second(59)) == 1


@pytest.mark.parametrize(
    ("wrong_codes", "minutes_ago", "waits_s"),
    [(0, 0, 0), (9, 0, 0), (10, 0, 3600), (10, 59, 60), (10, 60, 0), (49, 61, 0), (50, 61, 3600), (500, 9999, 3600)],
)
def test_an_unknown_device_waits_after_many_wrong_codes(wrong_codes: int, minutes_ago: int, waits_s: int) -> None:
    factor = a_factor(wrong_codes=wrong_codes, minutes_ago=minutes_ago)
    replace(factor, device_known=True).require_may_try(LIMITS, at=NOW)
    if not waits_s:
        factor.require_may_try(LIMITS, at=NOW)
        return
    with pytest.raises(RateLimited) as refused:
        factor.require_may_try(LIMITS, at=NOW)
    assert (refused.value.limit, refused.value.retry_after_s) == ("auth:code:unknown-device", waits_s)


def a_challenge() -> Challenge:
    return Challenge(
        hash=b"h", user_id=uuid4(), password_mark=b"m", remember_me=False, expires_at=NOW + timedelta(minutes=5)
    )


def test_a_challenge_is_open_until_it_is_spent_or_over() -> None:
    challenge = a_challenge()
    challenge.require_open(NOW)
    replace(challenge, wrong_codes=4).require_open(NOW)
    with pytest.raises(ExpiredToken):
        challenge.require_open(challenge.expires_at)
    for spent in (replace(challenge, wrong_codes=5), replace(challenge, spent_at=NOW)):
        assert not spent.is_open(NOW)
        with pytest.raises(BadToken):
            spent.require_open(NOW)


def a_verified_user() -> User:
    user = an_old_user()
    user.email_verified = True
    return user


def test_a_second_factor_is_turned_on_and_off_once() -> None:
    user = a_verified_user()
    with pytest.raises(StateConflict):
        user.disable_two_factor(by="user", at=NOW)
    with pytest.raises(StateConflict):
        user.regenerate_backup_codes(at=NOW)
    user.enable_two_factor(by="user", at=NOW)
    with pytest.raises(StateConflict):
        user.enable_two_factor(by="user", at=NOW)
    user.regenerate_backup_codes(at=NOW)
    user.use_backup_code(remaining=9, at=NOW)
    user.disable_two_factor(by="admin", at=NOW)
    assert not user.two_factor_enabled
    assert user.recorded == [
        TwoFactorEnabled(user_id=user.id, by="user"),
        BackupCodesRegenerated(user_id=user.id),
        BackupCodeUsed(user_id=user.id, remaining=9),
        TwoFactorDisabled(user_id=user.id, by="admin"),
    ]


def test_there_is_no_second_factor_before_the_address_is_verified() -> None:
    with pytest.raises(EmailNotVerified):
        an_old_user().enable_two_factor(by="user", at=NOW)


def test_wrong_codes_are_told_by_every_doubling_and_by_the_third() -> None:
    user = a_verified_user()
    for wrong in range(1, 10):
        user.refuse_code(wrong_codes=wrong, mailed=3, origin=ORIGIN, at=NOW)
    told = [event for event in user.recorded if isinstance(event, LoginFailed)]
    assert [(event.failures, event.wrong_codes) for event in told] == [(1, 1), (2, 2), (3, 3), (4, 4), (8, 8)]
    assert {event.reason for event in told} == {"wrong_second_factor"}
