"""Registration, sign-in and tokens: `users.v1.auth.*`."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, JsonValue, SecretStr

from contracts.operations import Caller, Even, Limit, Operation
from contracts.users import Tokens, User
from contracts.wire import Broken, Code, Email, Empty, PersonName, Secret, Token, Wire


def _accepted(terms: bool) -> bool:
    if not terms:
        raise Broken("not_accepted", "The terms must be accepted.")
    return terms


def _is_none(value: object) -> bool:
    return value is None


class Register(Wire):
    """Open an account; it can sign in once its address is verified."""

    email: Email
    password: Secret
    first_name: PersonName
    last_name: PersonName
    accept_terms: Annotated[bool, AfterValidator(_accepted)]


class Registered(Wire):
    user: User | None = Field(
        default=None, exclude_if=_is_none, description="absent where registered emails are hidden"
    )


class VerifyEmail(Wire):
    """Use the link of the verification mail; it is good once."""

    token: Token


class EmailVerified(Wire):
    user: User


class ResendVerification(Wire):
    """Ask for the verification mail again; the answer never tells whether there is such an account."""

    email: Email


class Login(Wire):
    """Sign in with a password."""

    email: Email
    password: Secret
    remember_me: bool = False


class LoggedIn(Wire):
    """Either `user` and `tokens`, or, where a second factor is on, what `auth.two-factor` is asked with."""

    user: User | None = Field(default=None, exclude_if=_is_none)
    tokens: Tokens | None = Field(default=None, exclude_if=_is_none)
    two_factor_required: Literal[True] | None = Field(default=None, exclude_if=_is_none)
    challenge_token: str | None = Field(default=None, exclude_if=_is_none, description="good once")
    expires_in: int | None = Field(default=None, exclude_if=_is_none, description="seconds until the challenge expires")
    methods: list[Literal["totp", "backup-code"]] | None = Field(
        default=None, exclude_if=_is_none, description="what may be shown"
    )


class ShowSecondFactor(Wire):
    """Finish a sign-in by a code of the app, or by a backup code."""

    challenge_token: Token
    code: Code | None = None
    backup_code: Code | None = None


class SecondFactorShown(Wire):
    user: User
    tokens: Tokens


class Unlock(Wire):
    """Use the link of the mail about a locked account; it is good once."""

    token: Token


class Unlocked(Wire):
    device_token: str = Field(description="keep it as after a sign-in: this device is known and may try its password")


class Refresh(Wire):
    """Spend a refresh token for a new pair."""

    refresh_token: Token


class Refreshed(Wire):
    tokens: Tokens


class Logout(Wire):
    """End the session of the access token, or of the refresh token in the body."""

    refresh_token: Token | None = None


class VerifyToken(Wire):
    """Ask whether an access token is live. Any text may be asked about."""

    token: SecretStr


class TokenVerdict(Wire):
    """`{active: false}` and nothing more for all that is not a live access token."""

    active: bool
    claims: dict[str, JsonValue] | None = Field(default=None, exclude_if=lambda claims: claims is None)


class Jwks(Wire):
    """Ask for the keys that access tokens are signed with."""


class KeySet(Wire):
    """A JSON Web Key Set (RFC 7517)."""

    keys: list[dict[str, str]]


OPERATIONS = (
    Operation(
        "users.v1.auth.register",
        Register,
        Registered,
        "POST /auth/register",
        limit=Limit.REGISTER,
        even=Even.WHERE_HIDDEN,
        writes=True,
        emits=("UserRegistered", "EmailVerificationRequested", "RegistrationRepeated", "UserDeleted"),
        audits=("registration_refused",),
    ),
    Operation(
        "users.v1.auth.verify-email",
        VerifyEmail,
        EmailVerified,
        "POST /auth/verify-email",
        writes=True,
        emits=("EmailVerified",),
    ),
    Operation(
        "users.v1.auth.resend-verification",
        ResendVerification,
        Empty,
        "POST /auth/resend-verification",
        limit=Limit.MAIL,
        even=Even.ALWAYS,
        writes=True,
        emits=("EmailVerificationRequested",),
        audits=("verification_requested",),
    ),
    Operation(
        "users.v1.auth.login",
        Login,
        LoggedIn,
        "POST /auth/login",
        limit=Limit.LOGIN,
        even=Even.REFUSALS,
        writes=True,
        holds_secrets=True,
        emits=("UserLogin", "LoginFailed", "AccountLocked", "SessionRevoked"),
        audits=("login_refused", "two_factor_challenged"),
    ),
    Operation(
        "users.v1.auth.two-factor",
        ShowSecondFactor,
        SecondFactorShown,
        "POST /auth/two-factor",
        limit=Limit.CODE,
        writes=True,
        holds_secrets=True,
        emits=("UserLogin", "LoginFailed", "BackupCodeUsed", "SessionRevoked"),
        audits=("two_factor_refused", "login_refused"),
    ),
    Operation(
        "users.v1.auth.unlock",
        Unlock,
        Unlocked,
        "POST /auth/unlock",
        writes=True,
        holds_secrets=True,
        emits=("AccountUnlocked",),
    ),
    Operation(
        "users.v1.auth.refresh",
        Refresh,
        Refreshed,
        "POST /auth/refresh",
        emits=("RefreshTokenReused", "SessionRevoked"),
        audits=("refresh_replayed",),
    ),
    Operation(
        "users.v1.auth.logout",
        Logout,
        Empty,
        "POST /auth/logout",
        caller=Caller.IF_SIGNED_IN,
        writes=True,
        emits=("UserLoggedOut",),
    ),
    Operation("users.v1.auth.verify-token", VerifyToken, TokenVerdict, "POST /auth/introspect", limit=Limit.NONE),
    Operation("users.v1.auth.jwks", Jwks, KeySet, "GET /.well-known/jwks.json", limit=Limit.NONE),
)
