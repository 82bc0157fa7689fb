"""The command line: `user-service …`. Exit 0 for done, 1 for refused or failed, 2 for words that make no command."""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer
from rich.console import Console

from adapters.environment import BadSettings, lines_of, read_what_is_good, variable_of, written
from adapters.settings import Settings
from handlers.audit_command import audit_app
from handlers.console_command import console, require_console
from handlers.dev_commands import dev_app
from handlers.event_commands import events_app
from handlers.key_commands import keys_app
from handlers.letter_commands import letters_app
from handlers.login_commands import login, logout
from handlers.own_servers import of_dev, own_keys
from handlers.scrub_command import scrub
from handlers.terminal import (
    STOP_S_MAX,
    WORKER_STOP_S_MAX,
    AsJson,
    Failure,
    ReadyFile,
    leaves_of,
    nats_url_of,
    read_ready,
    run_to_end,
    stop_on_signals,
)
from handlers.timeline_command import timeline
from handlers.user_commands import users_app

if TYPE_CHECKING:
    from adapters.keys import Keys

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Accounts and sessions over NATS.",
)
app.add_typer(audit_app, name="audit")
app.add_typer(dev_app, name="dev")
app.add_typer(events_app, name="events")
app.add_typer(keys_app, name="keys")
app.add_typer(letters_app, name="dead-letters")
app.add_typer(users_app, name="users")
app.command()(console)
app.command()(login)
app.command()(logout)
app.command()(scrub)
app.command()(timeline)

out, err = Console(), Console(stderr=True, highlight=False, soft_wrap=True)


def _version(wanted: bool) -> None:
    if wanted:
        from adapters.telemetry import release

        typer.echo(release())
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Accounts and sessions over NATS."""


def main() -> None:
    """Run a command; every foreseen failure is one line on stderr and exit 1."""
    try:
        app()
    except (Exception, BaseExceptionGroup) as error:
        leaves = leaves_of(error)
        if not all(isinstance(leaf, (Failure, BadSettings)) for leaf in leaves):
            raise
        for leaf in leaves:
            err.print(str(leaf), style="red", markup=False)
        sys.exit(1)


@app.command()
def run(
    groups: Annotated[
        list[str] | None,
        typer.Argument(help="requests relay email audit cache jobs console; default: all but the console"),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Processes, under one supervisor.")] = 1,
) -> None:
    """Run the service, or some of its groups, on the servers that the environment names."""
    from adapters.telemetry import set_up_logs
    from handlers.app import ALL_GROUPS, GROUPS, serve
    from handlers.endings import Ended
    from handlers.groups import GroupIsSilent
    from handlers.supervisor import supervise
    from handlers.vitals import PortTaken

    unknown = sorted(set(groups or ()) - set(ALL_GROUPS))
    if unknown:
        raise typer.BadParameter(f"no such group: {', '.join(unknown)}; there are {', '.join(ALL_GROUPS)}")
    if workers > 1 and "console" in (groups or ()):
        raise typer.BadParameter("who is signed in at the console is known to one process: run it by itself")
    settings, keys = _settings_and_keys()
    if "console" in (groups or ()):
        require_console(settings)
    set_up_logs(settings.log_level, settings.environment, settings.log_format)
    chosen = tuple(groups or GROUPS)

    async def work() -> None:
        stop = stop_on_signals(within_s=WORKER_STOP_S_MAX if _is_supervised() else STOP_S_MAX)
        if workers > 1:
            await supervise(settings, chosen, workers, stop=stop)
        else:
            await serve(settings, keys, chosen, stop=stop, on_ready=_log_ready, with_http=not _is_supervised())

    run_to_end(work(), foreseen=(Ended, GroupIsSilent, PortTaken))


@app.command()
def migrate(
    status: Annotated[bool, typer.Option("--status", help="Show what is applied; change nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Bring the schema to this release, as its owner (DATABASE_OWNER_URL, else DATABASE_URL)."""
    import asyncpg

    from adapters import migrations
    from adapters.postgres import role_of
    from adapters.server_urls import where

    url = os.environ.get("DATABASE_OWNER_URL") or os.environ.get("DATABASE_URL")
    if not url and status:
        url = str(read_ready(None)["databaseUrl"])
    if not url:
        raise Failure("DATABASE_OWNER_URL (or DATABASE_URL): not set; `make run` migrates by itself")
    app_role = role_of(os.environ.get("DATABASE_URL") or url)

    async def work() -> None:
        try:
            await act()
        except asyncpg.InsufficientPrivilegeError as error:
            raise Failure(f"{role_of(url)} may not change the schema: set DATABASE_OWNER_URL to its owner's") from error
        except (OSError, TimeoutError, asyncpg.PostgresError) as error:
            said = f"PostgreSQL at {where(url)}: {type(error).__name__}"
            raise Failure(f"{said}; start it, or correct DATABASE_OWNER_URL (role, password, database)") from error

    async def act() -> None:
        if not status:
            applied = await migrations.migrate(url, app_role=app_role)
            typer.echo(json.dumps({"applied": applied}) if as_json else "\n".join(applied) or "nothing to do")
            return
        found = await migrations.status(url)
        rows = [{"name": m.name, "appliedAt": m.applied_at.isoformat() if m.applied_at else None} for m in found]
        typer.echo(
            json.dumps(rows) if as_json else "\n".join(f"{r['name']}  {r['appliedAt'] or 'waits'}" for r in rows)
        )

    run_to_end(work())


@app.command()
def call(
    subject: Annotated[str, typer.Argument(help="For example users.v1.me.get; the prefix users.v1. may be left out.")],
    body: Annotated[str, typer.Argument(help="The request's JSON.")] = "{}",
    token: Annotated[
        str | None, typer.Option(envvar="USER_SERVICE_TOKEN", help="Access token of the caller.", show_envvar=True)
    ] = None,
    header: Annotated[list[str] | None, typer.Option(help="`Name: value`; may be given many times.")] = None,
    timeout_s: Annotated[float, typer.Option("--timeout", min=0.1, max=300, help="Seconds to wait.")] = 10,
    as_json: AsJson = False,
    ready_file: ReadyFile = None,
) -> None:
    """Send one request and print its reply; exit 1 when it is an error."""
    from uuid import uuid4

    from adapters.bus_client import bus_client, request
    from contracts.api import BY_SUBJECT

    whole = subject if subject.startswith(("users.", "$SRV.")) else f"users.v1.{subject}"
    if whole not in BY_SUBJECT and not whole.startswith("$SRV."):
        raise Failure(f"there is no operation {whole}; docs/operations-table.md lists them all")
    headers = {"Request-Id": str(uuid4()), **dict(_header(line) for line in header or ())}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    url = nats_url_of(ready_file)
    refused = False

    async def work() -> None:
        nonlocal refused
        async with bus_client(url) as client:
            reply, _ = await request(client, whole, body.encode(), headers=headers, timeout_s=timeout_s)
        refused = reply.get("success") is False
        if as_json:
            typer.echo(json.dumps(reply, ensure_ascii=False))
        else:
            out.print_json(json.dumps(reply, ensure_ascii=False))

    run_to_end(work())
    if refused:
        sys.exit(1)


@app.command("create-admin")
def create_admin(
    email: Annotated[str, typer.Argument(help="The admin's address; it counts as verified.")],
    first_name: Annotated[str, typer.Option()] = "Admin",
    last_name: Annotated[str, typer.Option()] = "Admin",
) -> None:
    """Make an account with the role admin; the password is asked for, or read from USER_SERVICE_ADMIN_PASSWORD."""
    from adapters.hashing import Hasher
    from adapters.migrations import require_current
    from adapters.personal_data import PersonalData
    from adapters.postgres import Database
    from handlers.operators import NewAdmin, Unacceptable, checked
    from handlers.operators import create_admin as make_admin

    settings, keys = _settings_and_keys()
    password = os.environ.get("USER_SERVICE_ADMIN_PASSWORD") or typer.prompt(
        "Password", hide_input=True, confirmation_prompt=True
    )
    try:
        admin = checked(settings, NewAdmin(email, password, first_name, last_name))
    except Unacceptable as error:
        raise Failure(str(error)) from error

    async def work() -> None:
        database = await Database.connect(settings, name="user-service create-admin")
        try:
            await require_current(settings.database_url.get_secret_value())
            hasher = Hasher(settings.argon2, threads=1, waiting_max=1)
            made = await make_admin(database, PersonalData(keys), hasher, admin)
        finally:
            await database.close()
        if not made:
            raise Failure(f"{email} is already registered")
        typer.echo(f"made {email} an admin")

    run_to_end(work())


@app.command()
def doctor(as_json: AsJson = False, ready_file: ReadyFile = None) -> None:
    """Look at settings, keys, servers, schema, streams, consumers, port and clock; say what to do about each fault."""
    from dataclasses import asdict

    from handlers.doctor import examine
    from handlers.findings import Finding

    settings, faults, nats_url = _settings_to_examine(ready_file)
    findings: list[Finding] = []

    async def work() -> None:
        async for finding in examine(settings, faults, nats_url):
            findings.append(finding)
            if not as_json:
                typer.echo(f"{'ok   ' if finding.good else 'FAULT'}  {finding.what}: {finding.says}")
                if not finding.good:
                    typer.echo(f"       → {finding.advice}")

    run_to_end(work())
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings]))
    if not all(finding.good for finding in findings):
        sys.exit(1)


@app.command()
def config(as_json: AsJson = False) -> None:
    """Every setting with its meaning, its default, and the value in force (secrets as ***)."""
    settings, faults = read_what_is_good()
    rows = [_row(name, settings, faults.get(name, [])) for name in Settings.model_fields]
    if as_json:
        typer.echo(json.dumps(rows))
        return
    for row in rows:
        typer.echo(f"{row['variable']}\n    {row['meaning']}\n    default {row['default']}; now {row['value'] or '-'}")
        if row["fault"]:
            typer.echo(f"    FAULT  {row['fault']}")


def _row(name: str, settings: Settings, faults: list[str]) -> dict[str, str]:
    """What there is to say about a setting; of a wrong one, the value as it was written."""
    field = Settings.model_fields[name]
    value = os.environ.get(variable_of(name), "") if faults else written(getattr(settings, name))
    is_secret = "url" in name and name not in {"public_url", "console_url"} and value not in {"", "none"}
    return {
        "variable": variable_of(name),
        "default": "none, it must be set" if field.is_required() else written(field.default),
        "value": "***" if is_secret else value,
        "meaning": field.description or "",
        "fault": "; ".join(faults),
    }


def _settings_and_keys() -> tuple[Settings, "Keys"]:
    """Raises `BadSettings` with every fault of both, so that nobody mends one to be told of the next."""
    settings, faults = read_what_is_good()
    lines = lines_of(faults)
    try:
        if "keys_file" not in faults:
            keys = own_keys(settings, needed_for="`user-service keys init FILE` makes one")
            if not lines:
                return settings, keys
    except Failure as fault:
        lines.append(str(fault))
    raise BadSettings("\n".join(lines))


def _settings_to_examine(ready_file: Path | None) -> tuple[Settings, dict[str, list[str]], str]:
    """The settings with what is wrong with them; where the environment names no server, those of a running dev."""
    if ready_file is None and any(os.environ.get(variable_of(name)) for name in _SERVERS):
        settings, faults = read_what_is_good()
        return settings, faults, settings.nats_url.get_secret_value()
    found = read_ready(ready_file)
    settings, faults = read_what_is_good(**of_dev(found), http_port=urlsplit(str(found["httpUrl"])).port)
    return settings, faults, str(found["natsUrls"]["operator"])


_SERVERS = ("nats_url", "database_url", "redis_url", "smtp_url")


def _header(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    if not colon or not name.strip():
        raise typer.BadParameter(f"{line!r} is no `Name: value`")
    return name.strip(), value.strip()


async def _log_ready(port: int | None) -> None:
    import structlog

    structlog.get_logger().info("ready", httpPort=port)


def _is_supervised() -> bool:
    return os.environ.get("USER_SERVICE_SUPERVISED") == "1"
