"""What commands share that work directly on the servers, as their operator: settings, keys, and a bar to watch."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from adapters.settings import Settings, read_settings
from handlers.terminal import Failure, read_ready

if TYPE_CHECKING:
    from adapters.personal_data import PersonalData


def direct_means(ready_file: Path | None) -> tuple[Settings, "PersonalData"]:
    """Database and keys: of the environment, else those of a running dev."""
    from adapters.keys import BadKeys, read_keys
    from adapters.personal_data import PersonalData

    settings = read_settings() if ready_file is None and os.environ.get("DATABASE_URL") else _of_dev(ready_file)
    if settings.keys_file is None:
        raise Failure("USER_SERVICE_KEYS_FILE: not set; names and addresses are sealed under its keys")
    try:
        return settings, PersonalData(read_keys(settings.keys_file))
    except BadKeys as error:
        raise Failure(str(error)) from error


def _of_dev(ready_file: Path | None) -> Settings:
    found = read_ready(ready_file)
    return read_settings(
        nats_url=found["natsUrls"]["operator"],
        database_url=found["databaseUrl"],
        redis_url=found["redisUrl"] or "none",
        smtp_url=found["smtpUrl"],
        keys_file=Path(str(found["mailDir"])).parent / "keys.json",
    )


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error, where that is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn(what), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total or None)
