"""Every way in which a rule says no: one class for each code a caller can act on."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Fault:
    """One broken rule of an input: a dotted path, a stable code, our own words."""

    field: str
    code: str
    message: str


class Refusal(Exception):
    """A request is understood and refused; nothing is wrong with the service."""

    code: ClassVar[str]


@dataclass(eq=False)
class InvalidInput(Refusal):
    code: ClassVar[str] = "VALIDATION_ERROR"
    faults: list[Fault]


@dataclass(eq=False)
class WeakPassword(Refusal):
    code: ClassVar[str] = "PASSWORD_POLICY_VIOLATION"
    faults: list[Fault]


class WrongCredentials(Refusal):
    code = "INVALID_CREDENTIALS"


class NoCaller(Refusal):
    code = "AUTHENTICATION_REQUIRED"


@dataclass(eq=False)
class ReauthenticationRequired(Refusal):
    """The caller's proof of identity is older than this act allows."""

    code: ClassVar[str] = "REAUTHENTICATION_REQUIRED"
    age_s_max: int


class WrongCode(Refusal):
    """A second-factor code that is wrong, replayed or spent."""

    code = "INVALID_TWO_FACTOR_CODE"


class BadToken(Refusal):
    code = "INVALID_TOKEN"


class ExpiredToken(Refusal):
    code = "TOKEN_EXPIRED"


class Forbidden(Refusal):
    code = "FORBIDDEN"


class SecondFactorRequired(Refusal):
    """The caller's session was opened without a second factor, which this act asks for."""

    code = "TWO_FACTOR_REQUIRED"


class EmailNotVerified(Refusal):
    code = "EMAIL_NOT_VERIFIED"


class AccountSuspended(Refusal):
    code = "ACCOUNT_SUSPENDED"


class PasswordExpired(Refusal):
    code = "PASSWORD_EXPIRED"


class PasswordDisowned(Refusal):
    """Somebody other than its owner may know the password: it opens nothing until it is reset."""

    code = "PASSWORD_RESET_REQUIRED"


class NotFound(Refusal):
    code = "NOT_FOUND"


class EmailTaken(Refusal):
    code = "EMAIL_ALREADY_REGISTERED"


class IdempotencyKeyReused(Refusal):
    code = "IDEMPOTENCY_KEY_REUSED"


class StateConflict(Refusal):
    code = "CONFLICT"


class PayloadTooLarge(Refusal):
    code = "PAYLOAD_TOO_LARGE"


@dataclass(eq=False)
class RateLimited(Refusal):
    code: ClassVar[str] = "RATE_LIMITED"
    limit: str
    retry_after_s: int


@dataclass(eq=False)
class AccountLocked(Refusal):
    code: ClassVar[str] = "ACCOUNT_LOCKED"
    locked_until: datetime


@dataclass(eq=False)
class Overloaded(Refusal):
    code: ClassVar[str] = "OVERLOADED"
    retry_after_s: int = field(default=1)


@dataclass(eq=False)
class Unavailable(Refusal):
    """A dependency did not answer; the log has the cause."""

    code: ClassVar[str] = "SERVICE_UNAVAILABLE"
    retry_after_s: int = field(default=1)


@dataclass(eq=False)
class NotReady(Unavailable):
    """The checks of all dependencies, the bad ones among them."""

    faults: list[Fault] = field(default_factory=list)


class DeadlineExceeded(Refusal):
    code = "DEADLINE_EXCEEDED"


class Stale(Exception):
    """What a decision relied on changed before the lock was held: run the use case again."""
