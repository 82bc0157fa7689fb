"""A password's life: `users.v1.auth.*-password` and `users.v1.me.change-password`."""

from contracts.operations import Caller, Even, Limit, Operation
from contracts.wire import Code, Email, Empty, PersonName, Secret, Token, Wire


class CheckPassword(Wire):
    """Ask how good a password is and whether it would be taken, before it is sent; nothing is kept."""

    password: Secret
    email: Email | None = None
    first_name: PersonName | None = None
    last_name: PersonName | None = None


class Violation(Wire):
    """A rule that a password breaks: a stable code, our own words."""

    code: str
    message: str


class PasswordChecked(Wire):
    """`score` from 0, guessed at once, to 4."""

    acceptable: bool
    score: int
    violations: list[Violation]
    suggestions: list[str]


class ForgotPassword(Wire):
    """Ask for a reset mail; the answer never tells whether there is such an account."""

    email: Email


class ResetPassword(Wire):
    """Set a password by the link of a reset or invitation mail: every session ends, a second factor stays on."""

    token: Token
    new_password: Secret


class ChangePassword(Wire):
    """Replace the caller's password; their other sessions end."""

    current_password: Secret
    new_password: Secret
    code: Code | None = None
    backup_code: Code | None = None


OPERATIONS = (
    Operation("users.v1.auth.check-password", CheckPassword, PasswordChecked, "POST /auth/check-password"),
    Operation(
        "users.v1.auth.forgot-password",
        ForgotPassword,
        Empty,
        "POST /auth/forgot-password",
        limit=Limit.MAIL,
        even=Even.ALWAYS,
        writes=True,
        emits=("PasswordResetRequested",),
        audits=("password_reset_asked",),
    ),
    Operation(
        "users.v1.auth.reset-password",
        ResetPassword,
        Empty,
        "POST /auth/reset-password",
        writes=True,
        emits=("PasswordReset", "AccountUnlocked", "EmailVerified", "SessionRevoked"),
    ),
    Operation(
        "users.v1.me.change-password",
        ChangePassword,
        Empty,
        "PUT /users/me/password",
        caller=Caller.SIGNED_IN,
        writes=True,
        emits=("PasswordChanged", "SessionRevoked", "LoginFailed", "AccountLocked", "BackupCodeUsed"),
        audits=("login_refused", "two_factor_refused"),
    ),
)
