"""What an authenticator app and its owner are given: secrets, the address and the picture that carry them, codes."""

import hmac
import secrets
from datetime import datetime

import pyotp
import segno

from domain.two_factor import BACKUP_CODES, DIGITS, SECRET_CHARS, STEP_S, step_of


def new_totp_secret() -> str:
    """160 random bits in base 32."""
    return pyotp.random_base32(SECRET_CHARS)


def new_backup_codes() -> list[str]:
    """Codes of 8 upper-case hex digits, no two alike."""
    codes: dict[str, None] = {}
    while len(codes) < BACKUP_CODES:
        codes[secrets.token_hex(4).upper()] = None
    return list(codes)


def matching_steps(secret: str, code: str, *, at: datetime, window: int) -> list[int]:
    """The steps around a time whose code this is; every one is computed and compared, whatever the first ones say."""
    totp, now = _totp(secret), step_of(at)
    steps = range(max(now - window, 0), now + window + 1)
    return [step for step in steps if hmac.compare_digest(totp.generate_otp(step).encode(), code.encode())]


def otpauth_uri(secret: str, *, account: str, issuer: str) -> str:
    """The address that authenticator apps read (`otpauth://totp/…`)."""
    return _totp(secret).provisioning_uri(name=account, issuer_name=issuer)


def qr_code(text: str) -> str:
    """A picture of a text, as a `data:` address."""
    return segno.make(text, error="m", micro=False).png_data_uri(scale=5)


def _totp(secret: str) -> pyotp.TOTP:
    return pyotp.TOTP(secret, digits=DIGITS, interval=STEP_S)
