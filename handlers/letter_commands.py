"""`user-service dead-letters …`: what an operator does about letters, as somebody signed in."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from adapters.bus_client import BusFailure
from handlers.letter_lines import counted, line_of_job, line_of_letter, lines_of_letter
from handlers.own_session import Operator, operator_on
from handlers.terminal import AsJson, Failure, ReadyFile, Token, nats_url_of, run_to_end
from handlers.timeline_command import around, line_of

letters_app = typer.Typer(no_args_is_help=True, help="Understand, replay, discard and restore dead letters.")
jobs_app = typer.Typer(no_args_is_help=True, help="Look after replays.")
letters_app.add_typer(jobs_app, name="jobs")

Group = Annotated[str | None, typer.Option(help="Of one group: email, audit, cache.")]
Type = Annotated[str | None, typer.Option(help="Of one event type, such as UserRegistered.")]
User = Annotated[str | None, typer.Option(help="Of one user, by id.")]
From = Annotated[str | None, typer.Option("--from", help="Written at that time or later (like 2026-03-01T12:00:00Z).")]
To = Annotated[str | None, typer.Option("--to", help="Written before that time (like 2026-03-01T12:00:00Z).")]
Why = Annotated[
    str | None,
    typer.Option("--reason", help="Of one reason: attempts_exhausted, mail_refused, worker_died, unauthentic, held."),
]
State = Annotated[str, typer.Option(help="dead, held, replayed, failed_again or discarded.")]
CauseId = Annotated[str | None, typer.Option("--cause", help="Of one cause, as `groups` names it.")]
Ids = Annotated[list[str] | None, typer.Argument(help="Letters by their ids.")]
Everything = Annotated[bool, typer.Option("--all", help="All letters, where no id and no filter is given.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say how many.")]
JobId = Annotated[str, typer.Argument(help="A replay, by its id.")]
POLL_S = 0.5


@letters_app.command("groups")
def groups(
    group: Group = None, type: Type = None, user: User = None, from_: From = None, to: To = None, reason: Why = None,
    cause: CauseId = None, state: State = "dead",
    token: Token = None, as_json: AsJson = False, ready_file: ReadyFile = None,
) -> None:  # fmt: skip
    """Show what letters have died of, the most frequent cause first."""
    body = _filters(group, type, user, from_, to, reason, cause) | {"state": state, "limit": 100}

    def show(reply: Any) -> None:  # noqa: ANN401 - JSON
        data = reply["data"]
        for one in data["causes"]:
            typer.echo(
                f"{one['cause']}  {counted(one['letters'], 'letter'):>14} of {counted(one['users'], 'user')}  "
                f"{one['group']} {one['type']}"
            )
            typer.echo(f"    {one['reason']}: {one['error']}: {one['text']}")
            typer.echo(f"    first {one['firstAt']}  last {one['lastAt']}  latest {one['latestId']}")
        counts = data["counts"]
        typer.echo(f"{counts['dead']} dead, {counts['held']} held, {counts['discarded']} discarded in all")

    _ask("admin.dead-letters.groups", body, show, token=token, as_json=as_json, ready_file=ready_file)


@letters_app.command("list")
def list_letters(
    group: Group = None, type: Type = None, user: User = None, from_: From = None, to: To = None, reason: Why = None,
    cause: CauseId = None, state: State = "dead",
    limit: Annotated[int, typer.Option(min=1, max=100)] = 20,
    cursor: Annotated[str | None, typer.Option(help="Where the page before ended.")] = None,
    token: Token = None, as_json: AsJson = False, ready_file: ReadyFile = None,
) -> None:  # fmt: skip
    """Show letters, newest first."""
    body = _filters(group, type, user, from_, to, reason, cause) | {"state": state, "limit": limit}
    if cursor is not None:
        body["cursor"] = cursor

    def show(reply: Any) -> None:  # noqa: ANN401 - JSON
        for letter in reply["data"]:
            typer.echo(line_of_letter(letter))
        if not reply["data"]:
            typer.echo(f"no letter of this kind is {state}{_unknown(type)}", err=True)
        if (following := reply["pagination"]["nextCursor"]) is not None:
            typer.echo(f"more: --cursor {following}")

    _ask("admin.dead-letters.list", body, show, token=token, as_json=as_json, ready_file=ready_file)


@letters_app.command("show")
def show(
    letter: Annotated[str, typer.Argument(help="A letter, by its id.")],
    token: Token = None, as_json: AsJson = False, ready_file: ReadyFile = None,
) -> None:  # fmt: skip
    """Show one letter whole: headers, exact bytes, every attempt's error, what was replayed before; then what else
    happened to its user around it."""

    async def act(operator: Operator) -> None:
        whole = await operator.call("admin.dead-letters.get", {"letterId": letter})
        found, steps = whole["data"]["letter"], []
        if found["userId"] is not None:
            steps = (await operator.call("admin.timeline.get", around(found)))["data"]
        if as_json:
            typer.echo(json.dumps(whole | {"timeline": steps}, ensure_ascii=False))
            return
        for line in lines_of_letter(found):
            typer.echo(line)
        for step in steps:
            typer.echo(line_of(step))

    _run(act, token=token, ready_file=ready_file)


@letters_app.command("replay")
def replay(
    ids: Ids = None, group: Group = None, type: Type = None, user: User = None, from_: From = None, to: To = None,
    reason: Why = None, cause: CauseId = None, everything: Everything = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be replayed.")] = False,
    rate: Annotated[float, typer.Option(min=0.01, max=1000, help="Letters a second.")] = 50,
    limit: Annotated[int | None, typer.Option(min=1, help="Of the oldest so many.")] = None,
    at_once: Annotated[bool, typer.Option("--at-once", help="Not first one, then ten, then all the others.")] = False,
    why: Annotated[str | None, typer.Option("--why", help="The reason, for the audit log.")] = None,
    wait: Annotated[bool, typer.Option(help="Watch it to its end.")] = True,
    token: Token = None, as_json: AsJson = False, ready_file: ReadyFile = None,
) -> None:  # fmt: skip
    """Hand letters to their group again. Ctrl-C stops watching; the replay goes on, `jobs cancel` ends it.

    Exit 1 when it stopped, or letters failed again.
    """
    body = _some(ids, everything, _filters(group, type, user, from_, to, reason, cause)) | {
        "dryRun": dry_run, "rate": rate, "atOnce": at_once,
    }  # fmt: skip
    body |= {name: value for name, value in (("limit", limit), ("why", why)) if value is not None}

    async def act(operator: Operator) -> None:
        begun = (await operator.call("admin.dead-letters.replay", body))["data"]
        if begun["jobId"] is None or not wait:
            _tell_begun(begun, as_json=as_json)
            return
        typer.echo(f"replay {begun['jobId']} of {counted(begun['matched'], 'letter')}", err=True)
        try:
            job = await _watch(operator, begun["jobId"])
        except BusFailure as failure:
            goes_on = "the replay goes on by itself once the service runs"
            raise Failure(f"{failure}; {goes_on}: `dead-letters jobs show {begun['jobId']}`") from failure
        _tell_ended(job, as_json=as_json)

    _run(act, token=token, ready_file=ready_file)


@jobs_app.command("list")
def jobs_list(token: Token = None, as_json: AsJson = False, ready_file: ReadyFile = None) -> None:
    """Show the latest replays."""

    def show(reply: Any) -> None:  # noqa: ANN401 - JSON
        for job in reply["data"]:
            typer.echo(line_of_job(job))

    _ask("admin.dead-letters.jobs.list", {"limit": 50}, show, token=token, as_json=as_json, ready_file=ready_file)


@jobs_app.command("show")
def jobs_show(
    job: JobId,
    outcome: Annotated[
        str | None, typer.Option(help="done, failed_again, already_handled, discarded or waiting.")
    ] = None,
    after: Annotated[int, typer.Option(min=0, help="Behind that place.")] = 0,
    token: Token = None, as_json: AsJson = False, ready_file: ReadyFile = None,
) -> None:  # fmt: skip
    """Show a replay, and what has become of each letter."""
    body = {"jobId": job, "outcome": outcome, "after": after, "limit": 100}

    def show(reply: Any) -> None:  # noqa: ANN401 - JSON
        typer.echo(line_of_job(reply["data"]["job"]))
        for item in reply["data"]["items"]:
            typer.echo(f"{item['place']:>7}  {item['letterId'] or item['eventId']}  {item['outcome'] or 'waiting'}")
        if reply["data"]["more"]:
            typer.echo(f"more: --after {reply['data']['items'][-1]['place']}")

    _ask("admin.dead-letters.jobs.get", body, show, token=token, as_json=as_json, ready_file=ready_file)


@jobs_app.command("cancel")
def jobs_cancel(job: JobId, token: Token = None, as_json: AsJson = False, ready_file: ReadyFile = None) -> None:
    """Send no more letters of a replay."""
    _change_job("cancel", job, token=token, as_json=as_json, ready_file=ready_file)


@jobs_app.command("resume")
def jobs_resume(job: JobId, token: Token = None, as_json: AsJson = False, ready_file: ReadyFile = None) -> None:
    """Go on with a replay that stopped or was cancelled."""
    _change_job("resume", job, token=token, as_json=as_json, ready_file=ready_file)


def _change_job(act: str, job: str, *, token: str | None, as_json: bool, ready_file: Path | None) -> None:
    def show(reply: Any) -> None:  # noqa: ANN401 - JSON
        typer.echo(line_of_job(reply["data"]["job"]))

    _ask(f"admin.dead-letters.jobs.{act}", {"jobId": job}, show, token=token, as_json=as_json, ready_file=ready_file)


@letters_app.command("discard")
def discard(
    why: Annotated[str, typer.Option("--why", help="The reason, for the audit log.")],
    ids: Ids = None, group: Group = None, type: Type = None, user: User = None, from_: From = None, to: To = None,
    reason: Why = None, cause: CauseId = None, everything: Everything = False, dry_run: DryRun = False,
    token: Token = None, as_json: AsJson = False, ready_file: ReadyFile = None,
) -> None:  # fmt: skip
    """Close letters without a replay; `restore` opens them again."""
    body = _some(ids, everything, _filters(group, type, user, from_, to, reason, cause)) | {
        "why": why, "dryRun": dry_run,
    }  # fmt: skip
    _ask("admin.dead-letters.discard", body, _tell_count, token=token, as_json=as_json, ready_file=ready_file)


@letters_app.command("restore")
def restore(
    why: Annotated[str, typer.Option("--why", help="The reason, for the audit log.")],
    ids: Ids = None, group: Group = None, type: Type = None, user: User = None, from_: From = None, to: To = None,
    reason: Why = None, cause: CauseId = None, everything: Everything = False, dry_run: DryRun = False,
    token: Token = None, as_json: AsJson = False, ready_file: ReadyFile = None,
) -> None:  # fmt: skip
    """Open discarded letters again."""
    body = _some(ids, everything, _filters(group, type, user, from_, to, reason, cause)) | {
        "why": why, "dryRun": dry_run,
    }  # fmt: skip
    _ask("admin.dead-letters.restore", body, _tell_count, token=token, as_json=as_json, ready_file=ready_file)


def _filters(
    group: str | None, type: str | None, user: str | None, from_: str | None, to: str | None, reason: str | None,
    cause: str | None,
) -> dict[str, object]:  # fmt: skip
    asked = {"group": group, "type": type, "userId": user, "from": from_, "to": to, "reason": reason, "cause": cause}
    return {name: value for name, value in asked.items() if value is not None}


def _some(ids: list[str] | None, everything: bool, filters: dict[str, object]) -> dict[str, object]:
    return filters | ({"ids": ids} if ids else {}) | ({"all": True} if everything else {})


def _unknown(type: str | None) -> str:
    """A name that is mistyped finds nothing, as one of which nothing died."""
    from contracts.events import EVENTS

    return "" if type is None or type in EVENTS else f"; there is no event {type}"


def _tell_count(reply: Any) -> None:  # noqa: ANN401 - JSON
    typer.echo(counted(reply["data"]["count"], "letter"))


def _tell_begun(begun: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(begun, ensure_ascii=False))
        return
    if not begun["matched"]:
        typer.echo("nothing to replay: no letter of this kind is dead (`list --state held`, `discarded`)", err=True)
        return
    found = counted(begun["matched"], "letter")
    typer.echo(f"{found}, the oldest of {begun['oldest']}, the newest of {begun['newest']}")
    for letter in begun["sample"]:
        typer.echo(line_of_letter(letter))
    if begun["jobId"] is not None:
        typer.echo(f"replay {begun['jobId']}: `user-service dead-letters jobs show {begun['jobId']}`")


def _tell_ended(job: Mapping[str, Any], *, as_json: bool) -> None:
    typer.echo(json.dumps(job, ensure_ascii=False) if as_json else line_of_job(job))
    if job["state"] != "done" or job["failedAgain"]:
        raise typer.Exit(1)


async def _watch(operator: Operator, job_id: str) -> dict[str, Any]:
    """A bar on standard error, where that is a terminal, until the replay has ended."""
    console = Console(stderr=True)
    columns = (TextColumn("replay"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("replay", total=None)
        while True:
            job: dict[str, Any] = (await operator.call("admin.dead-letters.jobs.get", {"jobId": job_id, "limit": 1}))[
                "data"
            ]["job"]
            progress.update(task, completed=job["total"] - job["waiting"] - job["sent"], total=job["total"])
            if job["state"] != "running":
                return job
            await asyncio.sleep(POLL_S)


def _ask(
    operation: str, body: Mapping[str, object], show: Callable[[Any], None], *, token: str | None, as_json: bool,
    ready_file: Path | None,
) -> None:  # fmt: skip
    async def act(operator: Operator) -> None:
        reply = await operator.call(operation, body)
        if as_json:
            typer.echo(json.dumps(reply, ensure_ascii=False))
        else:
            show(reply)

    _run(act, token=token, ready_file=ready_file)


def _run(act: Callable[[Operator], Awaitable[None]], *, token: str | None, ready_file: Path | None) -> None:
    async def work() -> None:
        async with operator_on(nats_url_of(ready_file), token) as operator:
            await act(operator)

    run_to_end(work())
