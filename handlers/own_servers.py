"""What a command needs that works on the servers directly: their settings and keys."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapters.environment import read_settings
from adapters.settings import Settings
from handlers.terminal import Failure, read_ready

if TYPE_CHECKING:
    from adapters.keys import Keys
    from adapters.personal_data import PersonalData


def own_settings(ready_file: Path | None) -> Settings:
    """Of the environment, else of a running dev."""
    if ready_file is None and os.environ.get("DATABASE_URL"):
        return read_settings()
    return read_settings(**of_dev(read_ready(ready_file)))


def of_dev(ready: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that lead to a running dev's servers and keys, by its ready file."""
    return {
        "nats_url": ready["natsUrls"]["operator"],
        "database_url": ready["databaseUrl"],
        "redis_url": ready["redisUrl"] or "none",
        "smtp_url": ready["smtpUrl"],
        "keys_file": Path(str(ready["mailDir"])).parent / "keys.json",
    }


def own_keys(settings: Settings, *, needed_for: str) -> "Keys":
    """The key rings; `needed_for` says to whom they are missing what cannot be done."""
    from adapters.keys import BadKeys, read_keys

    if settings.keys_file is None:
        raise Failure(f"USER_SERVICE_KEYS_FILE: not set; {needed_for}")
    try:
        return read_keys(settings.keys_file)
    except BadKeys as error:
        raise Failure(str(error)) from error


def own_means(ready_file: Path | None) -> tuple[Settings, "PersonalData"]:
    """Settings, and what opens and seals names and addresses."""
    from adapters.personal_data import PersonalData

    settings = own_settings(ready_file)
    return settings, PersonalData(own_keys(settings, needed_for="names and addresses are sealed under its keys"))
