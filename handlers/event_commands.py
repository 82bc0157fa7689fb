"""`user-service events …`: watch the stream, compare it with the table, fill it up, hand a stretch of it out again."""

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from handlers.direct_means import direct_means, progress_bar
from handlers.terminal import AsJson, Failure, ReadyFile, nats_url_of, run_to_end

if TYPE_CHECKING:
    from nats.js import JetStreamContext

    from adapters.personal_data import PersonalData
    from adapters.postgres import Database

events_app = typer.Typer(
    no_args_is_help=True, help="Watch the stream of events, verify it, fill it up, hand it out again."
)
err = Console(stderr=True, highlight=False, soft_wrap=True)

STATEMENT_MS_MAX = 25_000
"""For statements over stretches of history; below the longest transaction."""


@events_app.command("tail")
def events_tail(
    subject: Annotated[str, typer.Argument(help="Which events.")] = "users.events.v1.>",
    from_start: Annotated[
        bool, typer.Option("--from-start", help="All that the stream holds, then what comes.")
    ] = False,
    count: Annotated[int | None, typer.Option(min=1, help="End after so many.")] = None,
    as_json: AsJson = False,
    ready_file: ReadyFile = None,
) -> None:
    """Watch events go by; Ctrl-C ends it."""
    from adapters.bus_client import bus_client, tail_events

    url = nats_url_of(ready_file)
    if not subject.startswith("users.events."):
        raise Failure("events have subjects like users.events.v1.UserLogin.* or users.events.v1.*.<user id>")
    if sys.stderr.isatty():
        err.print(f"waiting for {subject}; Ctrl-C ends it", markup=False)

    async def work() -> None:
        left = count
        async with bus_client(url) as client:
            async for message in tail_events(client, subject=subject, from_start=from_start):
                event = json.loads(message.data)
                if as_json:
                    typer.echo(json.dumps(event, ensure_ascii=False))
                else:
                    data = json.dumps(event["data"], ensure_ascii=False)
                    typer.echo(
                        f"{event['timestamp']}  {event['aggregateId']}  v{event['version']}  {event['type']}  {data}"
                    )
                left = None if left is None else left - 1
                if left == 0:
                    return

    run_to_end(work())


@events_app.command("republish")
def events_republish(
    from_position: Annotated[
        int, typer.Option("--from", min=0, help="The first position of table `events`; 0 is all there is.")
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what is missing.")] = False,
    as_json: AsJson = False,
    ready_file: ReadyFile = None,
) -> None:
    """Put events back on the stream that it has lost, each user's in order. Cut off, the same command goes on.

    What stands there is left alone; what is older than 90 days is not put back. Exit 1 when relays do not announce it.
    """
    from handlers.operators import operator
    from handlers.republish import NoStream, Republished, republish

    found: list[Republished] = []

    async def work() -> None:
        async with _servers(ready_file) as (database, js, personal):
            with progress_bar("users") as tell:
                done = await republish(
                    database, personal, js, from_position=from_position, dry_run=dry_run, by=operator(), tell=tell
                )
            found.append(done)

    run_to_end(work(), foreseen=(NoStream,))
    (done,) = found
    if as_json:
        figures = {"users": done.users, "events": done.events, "foreign": done.foreign, "waiting": done.waiting}
        typer.echo(json.dumps({**figures, "dryRun": dry_run}))
    else:
        typer.echo(f"{done.events} events {'are missing' if dry_run else 'put back'}, of {done.users} users looked at")
    if done.foreign:
        typer.echo(
            f"{done.foreign} users are left alone: their last message is none of our events; see the log", err=True
        )
    if done.waiting:
        typer.echo(f"{done.waiting} events still wait for a relay: does one run?", err=True)
        raise typer.Exit(1)


@asynccontextmanager
async def _servers(ready_file: Path | None) -> AsyncIterator[tuple["Database", "JetStreamContext", "PersonalData"]]:
    """Database, stream and keys, as their operator."""
    from adapters.bus_client import bus_client
    from adapters.migrations import require_current
    from adapters.postgres import Database

    settings, personal = direct_means(ready_file)
    patient = settings.model_copy(update={"statement_ms_max": STATEMENT_MS_MAX})
    await require_current(settings.database_url.get_secret_value())
    database = await Database.connect(patient, name="user-service events")
    try:
        async with bus_client(settings.nats_url.get_secret_value()) as client:
            yield database, client.jetstream(), personal
    finally:
        await database.close()
