"""`user-service events …`: watch the stream, compare it with the table, fill it up, hand a stretch of it out again."""

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer
from rich.console import Console

from adapters.environment import BadSettings
from domain.refusals import Overloaded
from handlers.own_servers import own_means
from handlers.terminal import AsJson, Failure, ReadyFile, nats_url_of, progress_bar, run_to_end

if TYPE_CHECKING:
    from nats.aio.client import Client

    from adapters.personal_data import PersonalData
    from adapters.postgres import Database
    from contracts.dead_letters import Job
    from handlers.event_verification import Verified
    from handlers.history_replays import Begun
    from handlers.republish import Republished

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
    from handlers.republish import NoStream, republish

    found: list[Republished] = []

    async def work() -> None:
        async with _servers(ready_file) as (database, client, personal):
            with progress_bar("users") as tell:
                done = await republish(
                    database, personal, client.jetstream(), from_position=from_position, dry_run=dry_run, by=operator(),
                    tell=tell,
                )  # fmt: skip
            found.append(done)

    run_to_end(work(), foreseen=(NoStream,))
    _tell_republished(found[0], dry_run=dry_run, as_json=as_json)
    if found[0].waiting:
        raise typer.Exit(1)


def _tell_republished(done: "Republished", *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        figures = {"users": done.users, "events": done.events, "foreign": done.foreign, "waiting": done.waiting}
        typer.echo(json.dumps({**figures, "dryRun": dry_run}))
        return
    typer.echo(f"{done.events} events {'are missing' if dry_run else 'put back'}, of {done.users} users looked at")
    if done.foreign:
        typer.echo(f"{done.foreign} users are left alone: what is last there is no event of theirs (`events verify`)")
    if done.waiting:
        typer.echo(f"{done.waiting} events still wait for a relay: does one run?", err=True)


@events_app.command("verify")
def events_verify(
    from_position: Annotated[
        int, typer.Option("--from", min=0, help="Only users and events from that position of table `events` on.")
    ] = 0,
    as_json: AsJson = False,
    ready_file: ReadyFile = None,
) -> None:
    """Compare rows with what their events say, and the stream with the table. Changes nothing.

    Exit 0 where all agree, 1 where a fault is named, 2 where it could not be done.
    """
    from handlers.event_verification import StreamVerification, Verified, verify_rows

    found = Verified()

    async def work() -> None:
        async with _servers(ready_file) as (database, client, personal):
            with progress_bar("rows") as tell:
                await verify_rows(database, personal, found, from_position=from_position, tell=tell)
            with progress_bar("stream") as tell:
                await StreamVerification(database, client, found, from_position=from_position).run(tell)

    try:
        run_to_end(work(), foreseen=(Overloaded,))
    except (Failure, BadSettings) as error:
        err.print(str(error), style="red", markup=False)
        raise typer.Exit(2) from error
    _tell_verified(found, as_json=as_json)
    if found.faults_counted:
        raise typer.Exit(1)


def _tell_verified(found: "Verified", *, as_json: bool) -> None:
    if as_json:
        counts = {"users": found.users, "events": found.events, "messages": found.messages}
        faults = [
            {"kind": fault.kind, "userId": fault.user_id and str(fault.user_id), "says": fault.says}
            for fault in found.faults
        ]
        typer.echo(json.dumps({**counts, "faults": found.faults_counted, "named": faults}))
        return
    for fault in found.faults:
        typer.echo(f"FAULT  {fault.kind}: {f'user {fault.user_id}: ' if fault.user_id else ''}{fault.says}")
    if found.faults_counted > len(found.faults):
        typer.echo(f"and {found.faults_counted - len(found.faults)} more")
    typer.echo(f"{found.users} users, {found.events} events, {found.messages} messages: {found.faults_counted} faults")


@events_app.command("replay")
def events_replay(
    group: Annotated[str, typer.Option(help="The group that gets them: email, audit or cache.")],
    start: Annotated[str, typer.Option("--from", help="Events from that position or time (RFC 3339) on.")],
    end: Annotated[str, typer.Option("--to", help="Events before that position or time.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be delivered.")] = False,
    rate: Annotated[float, typer.Option(min=0.01, max=1000, help="Events a second.")] = 50,
    at_once: Annotated[bool, typer.Option("--at-once", help="Not first one, then ten, then all the others.")] = False,
    wait: Annotated[bool, typer.Option(help="Watch it to its end.")] = True,
    as_json: AsJson = False,
    ready_file: ReadyFile = None,
) -> None:
    """Hand a group a stretch of history again; what it has dealt with stays as it is, and nobody else hears of it.

    A job of the service: Ctrl-C stops watching, `dead-letters jobs cancel` ends it. Exit 1 when it stopped, or events
    failed.
    """
    from adapters.streams import EVENT_GROUPS, first_unanswered
    from handlers.history_replays import Begun, NotPossible, replay_history, watch_job
    from handlers.operators import operator

    begun: list[Begun] = []
    ended: list[Job] = []

    async def work() -> None:
        async with _servers(ready_file) as (database, client, personal):
            at_work_from = await first_unanswered(client.jetstream(), group) if group in EVENT_GROUPS else None
            done = await replay_history(
                database, personal, group, _bound(start), _bound(end), dry_run=dry_run, rate=rate, careful=not at_once,
                at_work_from=UUID(at_work_from) if at_work_from else None, by=operator(),
            )  # fmt: skip
            begun.append(done)
            if done.job_id is not None and wait:
                typer.echo(f"replay {done.job_id} of {done.found.to_deliver} events", err=True)
                with progress_bar("replay") as tell:
                    ended.append(await watch_job(database, done.job_id, tell))

    run_to_end(work(), foreseen=(NotPossible,))
    _tell_replayed(begun[0], ended[0] if ended else None, as_json=as_json)
    if ended and (ended[0].state != "done" or ended[0].failed_again):
        raise typer.Exit(1)


def _bound(text: str) -> int | datetime:
    """A position, or a time with its zone."""
    if text.isdecimal() and len(text) < 19:
        return int(text)
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        at = None
    if at is None or at.tzinfo is None:
        raise Failure(f"{text!r} is neither a position of table `events` nor a time like 2026-03-01T12:00:00Z")
    return at


def _tell_replayed(begun: "Begun", job: "Job | None", *, as_json: bool) -> None:
    found = begun.found
    if as_json:
        figures = {
            "jobId": begun.job_id and str(begun.job_id), "matched": found.matched, "toDeliver": found.to_deliver,
            "alreadyHandled": found.already_handled, "discarded": found.discarded,
            "sample": [
                {"position": event.position, "eventId": str(event.id), "userId": str(event.user_id), "type": event.type}
                for event in begun.sample
            ],
            "job": job and job.model_dump(mode="json", by_alias=True),
        }  # fmt: skip
        typer.echo(json.dumps(figures))
        return
    typer.echo(
        f"{found.matched} events: {found.to_deliver} to deliver, {found.already_handled} already handled, "
        f"{found.discarded} discarded"
    )
    if job is not None:
        why = f" ({job.why})" if job.why else ""
        typer.echo(f"{job.state}{why}: {job.done} done, {job.failed_again} failed")
        return
    for event in begun.sample:
        typer.echo(f"{event.occurred_at.isoformat()}  {event.position}  {event.user_id}  v{event.version} {event.type}")
    if begun.job_id is not None:
        typer.echo(f"replay {begun.job_id}: `user-service dead-letters jobs show {begun.job_id}`")


@asynccontextmanager
async def _database(ready_file: Path | None) -> AsyncIterator[tuple["Database", "PersonalData"]]:
    """Database and keys, as their operator."""
    from adapters.migrations import require_current
    from adapters.postgres import Database

    settings, personal = own_means(ready_file)
    patient = settings.model_copy(update={"statement_ms_max": STATEMENT_MS_MAX})
    await require_current(settings.database_url.get_secret_value())
    database = await Database.connect(patient, name="user-service events")
    try:
        yield database, personal
    finally:
        await database.close()


@asynccontextmanager
async def _servers(ready_file: Path | None) -> AsyncIterator[tuple["Database", "Client", "PersonalData"]]:
    """Database, keys and bus."""
    from adapters.bus_client import bus_client

    url = own_means(ready_file)[0].nats_url.get_secret_value()
    async with _database(ready_file) as (database, personal), bus_client(url) as client:
        yield database, client, personal
