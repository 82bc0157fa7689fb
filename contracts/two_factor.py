"""The caller's second factor: `users.v1.two-factor.*`."""

from pydantic import Field

from contracts.operations import Caller, Limit, Operation
from contracts.wire import Code, Empty, Secret, Timestamp, Wire


class EnableTwoFactor(Wire):
    """Ask for a secret; the second factor is on once a code of it has been shown."""

    password: Secret


class TwoFactorBegun(Wire):
    secret: str = Field(description="32 characters of base 32, to be typed where the picture cannot be read")
    otpauth_uri: str = Field(description="what the picture says")
    qr_code: str = Field(description="a picture for the app, as a `data:` address")


class VerifyTwoFactor(Wire):
    """Turn the second factor on by the first code of the app."""

    code: Code


class TwoFactorVerified(Wire):
    backup_codes: list[str] = Field(description="ten, each good once; shown here and never again")


class DisableTwoFactor(Wire):
    """Turn the second factor off."""

    password: Secret
    code: Code | None = None
    backup_code: Code | None = None


class CountBackupCodes(Wire):
    """Ask how many backup codes are left."""


class BackupCodesCounted(Wire):
    remaining: int
    generated_at: Timestamp


class RegenerateBackupCodes(Wire):
    """Ask for new backup codes; the old ones are good no more."""

    password: Secret
    code: Code


class NewBackupCodes(Wire):
    backup_codes: list[str] = Field(description="ten, each good once; shown here and never again")


_REFUSED = ("login_refused", "two_factor_refused")

OPERATIONS = (
    Operation(
        "users.v1.two-factor.enable",
        EnableTwoFactor,
        TwoFactorBegun,
        "POST /users/me/2fa/enable",
        caller=Caller.SIGNED_IN,
        writes=True,
        holds_secrets=True,
        emits=(
            "LoginFailed",
            "AccountLocked",
        ),
        audits=("login_refused", "two_factor_begun"),
    ),
    Operation(
        "users.v1.two-factor.verify",
        VerifyTwoFactor,
        TwoFactorVerified,
        "POST /users/me/2fa/verify",
        caller=Caller.SIGNED_IN,
        limit=Limit.CODE,
        writes=True,
        holds_secrets=True,
        emits=("TwoFactorEnabled", "LoginFailed"),
        audits=("two_factor_refused",),
    ),
    Operation(
        "users.v1.two-factor.disable",
        DisableTwoFactor,
        Empty,
        "POST /users/me/2fa/disable",
        caller=Caller.SIGNED_IN,
        limit=Limit.CODE,
        writes=True,
        emits=("TwoFactorDisabled", "BackupCodeUsed", "LoginFailed", "AccountLocked"),
        audits=_REFUSED,
    ),
    Operation(
        "users.v1.two-factor.backup-codes",
        CountBackupCodes,
        BackupCodesCounted,
        "GET /users/me/2fa/backup-codes",
        caller=Caller.SIGNED_IN,
    ),
    Operation(
        "users.v1.two-factor.backup-codes.regenerate",
        RegenerateBackupCodes,
        NewBackupCodes,
        "POST /users/me/2fa/backup-codes/regenerate",
        caller=Caller.SIGNED_IN,
        limit=Limit.CODE,
        writes=True,
        holds_secrets=True,
        emits=("BackupCodesRegenerated", "LoginFailed", "AccountLocked"),
        audits=_REFUSED,
    ),
)
