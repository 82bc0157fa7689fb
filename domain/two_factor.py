"""The second factor's rules: what a code looks like, what follows from wrong ones, and what a challenge is good for."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal
from uuid import UUID

from domain.refusals import BadToken, ExpiredToken, RateLimited

Method = Literal["totp", "backup-code"]
STEP_S = 30
DIGITS = 6
SECRET_CHARS = 32
BACKUP_CODES = 10
CHALLENGES_MAX = 100
"""How many challenges a user may have open; the oldest gives way."""
CHALLENGE_WRONG_MAX = 5
_TOTP = re.compile(rf"[0-9]{{{DIGITS}}}")
_BACKUP_CODE = re.compile(r"[0-9A-F]{8}")


def totp_form(code: str) -> str | None:
    """Six digits as an app shows them, with spaces or without; None for what can be no code at all."""
    digits = code.replace(" ", "")
    return digits if _TOTP.fullmatch(digits) else None


def backup_code_form(code: str) -> str | None:
    """Eight upper-case hex digits, however they were typed; None for what can be no backup code at all."""
    digits = code.replace(" ", "").replace("-", "").upper()
    return digits if _BACKUP_CODE.fullmatch(digits) else None


def step_of(at: datetime) -> int:
    """The number of the 30 seconds that a time lies in (RFC 6238)."""
    return int(at.timestamp()) // STEP_S


@dataclass(frozen=True, slots=True)
class WrongCodes:
    """What follows from so many wrong codes in a row of an account, over all its sessions and challenges."""

    mailed: int = 3
    slowed: int = 10
    known_only: int = 50
    pause: timedelta = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class CodeSet:
    """The backup codes that are left, as hashes under one salt: a try costs one hash, whatever their number."""

    salt: bytes
    cost: tuple[int, int, int]
    """argon2id: KiB, passes, lanes."""
    hashes: tuple[bytes, ...]
    made_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Factor:
    """A user's second factor as it stands; pending until its first code has been shown."""

    id: UUID
    user_id: UUID
    secret_sealed: str
    is_on: bool
    last_step: int
    codes: CodeSet | None
    wrong_codes: int
    last_wrong_at: datetime | None
    device_known: bool
    """Does the call come from a device that is known to the user?"""

    def require_may_try(self, limits: WrongCodes, *, at: datetime) -> None:
        """After many wrong codes in a row a device that nobody knows waits, and at last is not heard any more.

        Raises `RateLimited`.
        """
        if self.device_known or self.wrong_codes < limits.slowed or self.last_wrong_at is None:
            return
        until = self.last_wrong_at + limits.pause
        if self.wrong_codes >= limits.known_only:
            until = at + limits.pause
        if at < until:
            raise RateLimited("auth:code:unknown-device", max(1, int((until - at).total_seconds())))

    @property
    def methods(self) -> list[Method]:
        """What may be shown."""
        return ["totp", "backup-code"] if self.codes and self.codes.hashes else ["totp"]

    def unused(self, steps: Sequence[int]) -> int | None:
        """The first of these steps that comes after every one accepted so far."""
        return min((step for step in steps if step > self.last_step), default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """The right password was shown; whoever has this token may show the code. Good once, and for a short time."""

    hash: bytes
    user_id: UUID
    password_mark: bytes
    remember_me: bool
    expires_at: datetime
    wrong_codes: int = 0
    spent_at: datetime | None = None

    @property
    def is_spent(self) -> bool:
        """By success, or by wrong codes."""
        return self.spent_at is not None or self.wrong_codes >= CHALLENGE_WRONG_MAX

    def is_open(self, at: datetime) -> bool:
        return not self.is_spent and at < self.expires_at

    def require_open(self, at: datetime) -> None:
        """Raises `BadToken` for one that is spent, and `ExpiredToken`."""
        if self.is_spent:
            raise BadToken()
        if at >= self.expires_at:
            raise ExpiredToken()
