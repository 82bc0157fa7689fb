"""`user-service console`: the console by itself, and the first admin's way in."""

import asyncio
import os
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from adapters.environment import BadSettings, read_settings
from adapters.server_urls import LOOPBACK
from adapters.settings import Settings
from handlers.terminal import STOP_S_MAX, Failure, ReadyFile, read_ready, run_to_end, stop_on_signals

if TYPE_CHECKING:
    from handlers.console.app import Served


def require_console(settings: Settings) -> None:
    """Raise `BadSettings` where the console would have nobody to ask."""
    if settings.console_nats_url is None:
        raise BadSettings(
            "USER_SERVICE_CONSOLE_NATS_URL: not set; NATS, with an operator's credentials, for example "
            "tls://operator:password@host:4222"
        )
    if settings.console_url is None and settings.console_host not in LOOPBACK:
        raise BadSettings(
            "USER_SERVICE_CONSOLE_URL: not set; where the console listens beyond loopback, the https address at which "
            "browsers reach it"
        )


def console(ready_file: ReadyFile = None) -> None:
    """Serve the console; where nobody is an admin yet, print a link with which you become one. Ctrl-C ends it.

    Without settings it asks the service of a running dev, which serves one already.
    """
    from adapters.keys import BadKeys, read_keys
    from adapters.telemetry import set_up_logs
    from handlers.console.app import Wishes, console_alone
    from handlers.endings import START_S, Loops, NotWanted, wanted
    from handlers.vitals import PortTaken

    settings = read_settings() if ready_file is None and os.environ.get("DATABASE_URL") else _of_dev(ready_file)
    require_console(settings)
    if settings.keys_file is None:
        raise Failure("USER_SERVICE_KEYS_FILE: not set; `user-service keys init FILE` makes one")
    try:
        keys = read_keys(settings.keys_file)
    except BadKeys as error:
        raise Failure(str(error)) from error
    set_up_logs(settings.log_level, settings.environment, settings.log_format)

    async def work() -> None:
        stop, lost = stop_on_signals(within_s=STOP_S_MAX), asyncio.Event()

        async def on_closed() -> None:
            lost.set()
            stop.set()

        async with AsyncExitStack() as stack:
            with suppress(NotWanted):
                async with wanted("the start", unless=stop, within_s=START_S):
                    loops = await stack.enter_async_context(Loops())
                    wishes = Wishes(_say, links=True)
                    alone = console_alone(settings, keys, loops.start, wishes, on_closed=on_closed)
                    await stack.enter_async_context(alone)
                await stop.wait()
            if lost.is_set():
                raise Failure("the NATS connection was closed for good")

    run_to_end(work(), foreseen=(PortTaken,))


def _say(served: "Served") -> None:
    typer.echo(f"console at {served.url}")
    if served.first_link is not None:
        typer.echo("nobody is an admin yet; whoever opens this link becomes one (once, for 15 minutes):")
        typer.echo(f"\n  {served.first_link}\n")


def _of_dev(ready_file: Path | None) -> Settings:
    found = read_ready(ready_file)
    return read_settings(
        nats_url=found["natsUrls"]["operator"],
        console_nats_url=found["natsUrls"]["operator"],
        console_port=os.environ.get("USER_SERVICE_CONSOLE_PORT", "0"),
        database_url=found["databaseUrl"],
        redis_url=found["redisUrl"] or "none",
        smtp_url=found["smtpUrl"],
        keys_file=Path(str(found["mailDir"])).parent / "keys.json",
    )
