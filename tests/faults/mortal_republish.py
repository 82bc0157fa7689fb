"""`events republish`, killed at a named point: `python -m tests.faults.mortal_republish POINT`."""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable

from adapters.bus_client import bus_client
from adapters.environment import read_settings
from adapters.keys import read_keys
from adapters.personal_data import PersonalData
from adapters.postgres import Database
from adapters.settings import Settings
from handlers import refill
from handlers import republish as command

POINTS = {
    "the stream is looked at": (refill, "tails_of"),
    "put back and not committed": (refill, "put_back"),
    "the first page is committed": (refill.EventsRefill, "page"),
    "the last page is committed": (command, "_announced"),
}


def die_behind(owner: object, name: str) -> None:
    act: Callable[..., Awaitable[object]] = getattr(owner, name)

    async def to_its_end(*words: object, **more: object) -> None:
        await act(*words, **more)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, to_its_end)


async def republish(settings: Settings) -> command.Republished:
    """Small pages, so that there is something before and behind each point."""
    refill.USERS_MAX = 4
    assert settings.keys_file
    database = await Database.connect(settings)
    try:
        async with bus_client(settings.nats_url.get_secret_value()) as client:
            return await command.republish(
                database, PersonalData(read_keys(settings.keys_file)), client.jetstream(), from_position=0,
                dry_run=False, by="a test", tell=lambda *_: None,
            )  # fmt: skip
    finally:
        await database.close()


if __name__ == "__main__":
    die_behind(*POINTS[sys.argv[1]])
    asyncio.run(republish(read_settings()))
