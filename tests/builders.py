"""What many tests begin with: a point in time, a user, keys and settings made for a test."""

from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

from adapters.keys import Keys, read_keys, write_keys
from adapters.settings import Settings
from domain.user import Origin, User, UserId

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
ORIGIN = Origin("192.0.2.7", "Mozilla/5.0 (X11; Linux x86_64)", {"browser": "Firefox"})


def a_user(*, email: str | None = None, id: UUID | None = None, password_hash: str = "hash of the first") -> User:
    """A fresh account, just registered."""
    user_id = UserId(id or uuid4())
    return User.register(
        user_id,
        email=email or f"ada-{user_id.hex}@example.org",
        first_name="Ada",
        last_name="Lovelace",
        password_hash=password_hash,
        at=NOW,
        origin="registration",
    )


def an_old_user() -> User:
    """An account whose first events have been written already."""
    user = a_user()
    user.recorded.clear()
    return user


def fresh_keys(directory: Path) -> Keys:
    """Key rings of their own, by way of a key file."""
    path = directory / f"keys-{uuid4().hex}.json"
    write_keys(path)
    return read_keys(path)


def settings_of(database_url: str, **changes: object) -> Settings:
    """Settings of a program that talks to this database."""
    wanted = {
        "nats_url": "nats://127.0.0.1:4222",
        "database_url": database_url,
        "redis_url": "none",
        "smtp_url": "smtp://127.0.0.1:25",
        "pool_min": 1,
        "pool_max": 30,
        "pool_wait_ms": 20_000,
    } | changes
    return Settings.model_validate(wanted)
