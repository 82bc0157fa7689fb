"""The command line: `user-service …`. Exit 0 for done, 1 for refused or failed, 2 for words that make no command."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from adapters.settings import BadSettings, Settings, read_settings, variable_of

if TYPE_CHECKING:
    from adapters.keys import Keys

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Accounts and sessions over NATS.",
)
dev_app = typer.Typer(help="Run the whole service on embedded servers, or look at its mail.")
events_app = typer.Typer(no_args_is_help=True, help="Look at the stream of events.")
keys_app = typer.Typer(no_args_is_help=True, help="Make the server's keys.")
app.add_typer(dev_app, name="dev")
app.add_typer(events_app, name="events")
app.add_typer(keys_app, name="keys")

out, err = Console(), Console(stderr=True, highlight=False, soft_wrap=True)
DataDir = Annotated[Path, typer.Option(help="Where the embedded servers keep their data.")]
ReadyFile = Annotated[Path | None, typer.Option(help="Ready file of `dev`; default: ready.json in its data directory.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
DEFAULT_DIR = Path(".dev")


class Failure(Exception):
    """What a command could not do, in one line for its user."""


def main() -> None:
    """Run a command; every foreseen failure is one line on stderr and exit 1."""
    try:
        app()
    except* (Failure, BadSettings) as group:
        for error in group.exceptions:
            err.print(str(error), style="red", markup=False)
        sys.exit(1)


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run to the end; what is foreseen to go wrong becomes one line, also from inside a task group."""
    import uvloop  # noqa: PLC0415 - imports that only some commands need are made there
    from nats.errors import Error as NatsError  # noqa: PLC0415

    from adapters.bus_client import BusFailure  # noqa: PLC0415
    from adapters.migrations import MigrationRefused  # noqa: PLC0415
    from domain.refusals import Unavailable  # noqa: PLC0415

    try:
        uvloop.run(work)
    except* Unavailable as group:
        cause = type(group.exceptions[0].__cause__ or group.exceptions[0]).__name__
        raise Failure(f"a server does not answer ({cause}); `user-service doctor` says which") from group
    except* (BusFailure, MigrationRefused, NatsError, OSError) as group:
        raise Failure("; ".join(str(error) or type(error).__name__ for error in group.exceptions)) from group
    except* KeyboardInterrupt:
        sys.exit(130)


@dev_app.callback(invoke_without_command=True)
def dev(context: typer.Context, data_dir: DataDir = DEFAULT_DIR, ready_file: ReadyFile = None) -> None:
    """Start PostgreSQL, NATS, Valkey and a mail sink, and the whole service on them; stop with Ctrl-C."""
    if context.invoked_subcommand is not None:
        return
    from adapters.embedded_state import EmbeddedFailure  # noqa: PLC0415
    from adapters.telemetry import set_up_logs  # noqa: PLC0415
    from handlers.app import Ended, GroupIsSilent  # noqa: PLC0415
    from handlers.vitals import PortTaken  # noqa: PLC0415

    ready = (ready_file or data_dir / "ready.json").absolute()
    set_up_logs(level=os.environ.get("USER_SERVICE_LOG_LEVEL", "warning"), environment="development")

    async def work() -> None:
        from handlers.dev import dev as serve_dev  # noqa: PLC0415 - fails in one line where the extra is missing

        await serve_dev(data_dir.absolute(), ready, stop=_stop_on_signals(), say=typer.echo)

    try:
        _run(work())
    except* (EmbeddedFailure, PortTaken, Ended, GroupIsSilent) as group:
        raise Failure("; ".join(str(error) for error in group.exceptions)) from group
    except* ImportError as group:
        raise Failure("the embedded servers are missing: install user-service[dev]") from group


@dev_app.command("mail")
def dev_mail(
    last: Annotated[bool, typer.Option("--last", help="The newest mail alone.")] = False,
    link: Annotated[bool, typer.Option("--link", help="Print the links alone.")] = False,
    token: Annotated[bool, typer.Option("--token", help="Print the links' tokens alone.")] = False,
    ready_file: ReadyFile = None,
) -> None:
    """Show the inbox of a running dev."""
    from adapters.mail_sink import link_of, read_mail, stored_mails, token_of  # noqa: PLC0415

    paths = stored_mails(Path(str(_ready(ready_file)["mailDir"])))
    if not paths:
        raise Failure("no mail has come yet")
    for path in paths[-1:] if last else paths:
        mail = read_mail(path)
        if link or token:
            found = link_of(mail) if link else token_of(mail)
            if found is None and last:
                raise Failure("the newest mail has no link")
            if found:
                typer.echo(found)
        elif last:
            body = mail.get_body(("plain",))
            typer.echo(f"From: {mail['From']}\nTo: {mail['To']}\nSubject: {mail['Subject']}\n")
            typer.echo(body.get_content() if body else "")
        else:
            typer.echo(f"{path.name}  {mail['To']}  {mail['Subject']}")


@app.command()
def run(
    groups: Annotated[
        list[str] | None, typer.Argument(help="requests relay email audit cache jobs; default: all")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Processes, under one supervisor.")] = 1,
) -> None:
    """Run the service, or some of its groups, on the servers that the environment names."""
    from adapters.telemetry import set_up_logs  # noqa: PLC0415
    from handlers.app import GROUPS, Ended, GroupIsSilent, serve  # noqa: PLC0415
    from handlers.supervisor import supervise  # noqa: PLC0415
    from handlers.vitals import PortTaken  # noqa: PLC0415

    unknown = sorted(set(groups or ()) - set(GROUPS))
    if unknown:
        raise typer.BadParameter(f"no such group: {', '.join(unknown)}; there are {', '.join(GROUPS)}")
    settings = read_settings()
    keys = _keys(settings)
    set_up_logs(settings.log_level, settings.environment, settings.log_format)
    chosen = tuple(groups or GROUPS)

    async def work() -> None:
        stop = _stop_on_signals()
        if workers > 1:
            await supervise(settings, chosen, workers, stop=stop)
        else:
            await serve(settings, keys, chosen, stop=stop, on_ready=_log_ready, with_http=not _is_supervised())

    try:
        _run(work())
    except* (Ended, GroupIsSilent, PortTaken) as group:
        raise Failure("; ".join(str(error) for error in group.exceptions)) from group


@app.command()
def migrate(
    status: Annotated[bool, typer.Option("--status", help="Show what is applied; change nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Bring the schema to this release, as its owner (DATABASE_OWNER_URL, else DATABASE_URL)."""
    from adapters import migrations  # noqa: PLC0415
    from adapters.postgres import role_of  # noqa: PLC0415

    url = os.environ.get("DATABASE_OWNER_URL") or os.environ.get("DATABASE_URL")
    if not url:
        raise Failure("DATABASE_OWNER_URL (or DATABASE_URL): Field required")
    app_role = role_of(os.environ.get("DATABASE_URL") or url)

    async def work() -> None:
        if not status:
            applied = await migrations.migrate(url, app_role=app_role)
            typer.echo(json.dumps({"applied": applied}) if as_json else "\n".join(applied) or "nothing to do")
            return
        found = await migrations.status(url)
        rows = [{"name": m.name, "appliedAt": m.applied_at.isoformat() if m.applied_at else None} for m in found]
        typer.echo(
            json.dumps(rows) if as_json else "\n".join(f"{r['name']}  {r['appliedAt'] or 'waits'}" for r in rows)
        )

    _run(work())


@app.command()
def call(
    subject: Annotated[str, typer.Argument(help="For example users.v1.me.get; the prefix users.v1. may be left out.")],
    body: Annotated[str, typer.Argument(help="The request's JSON.")] = "{}",
    token: Annotated[str | None, typer.Option(help="Access token of the caller.")] = None,
    header: Annotated[list[str] | None, typer.Option(help="`Name: value`; may be given many times.")] = None,
    timeout_s: Annotated[float, typer.Option("--timeout", min=0.1, max=300, help="Seconds to wait.")] = 10,
    as_json: AsJson = False,
    ready_file: ReadyFile = None,
) -> None:
    """Send one request and print its reply; exit 1 when it is an error."""
    from uuid import uuid4  # noqa: PLC0415

    from adapters.bus_client import bus_client, request  # noqa: PLC0415

    headers = {"Request-Id": str(uuid4()), **dict(_header(line) for line in header or ())}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    url = _nats_url(ready_file)
    refused = False

    async def work() -> None:
        nonlocal refused
        async with bus_client(url) as client:
            whole = subject if subject.startswith(("users.", "$")) else f"users.v1.{subject}"
            reply, _ = await request(client, whole, body.encode(), headers=headers, timeout_s=timeout_s)
        refused = reply.get("success") is False
        if as_json:
            typer.echo(json.dumps(reply, ensure_ascii=False))
        else:
            out.print_json(json.dumps(reply, ensure_ascii=False))

    _run(work())
    if refused:
        sys.exit(1)


@app.command("create-admin")
def create_admin(
    email: Annotated[str, typer.Argument(help="The admin's address; it counts as verified.")],
    first_name: Annotated[str, typer.Option()] = "Admin",
    last_name: Annotated[str, typer.Option()] = "Admin",
) -> None:
    """Make an account with the role admin; the password is asked for, or read from USER_SERVICE_ADMIN_PASSWORD."""
    from adapters.hashing import Hasher  # noqa: PLC0415
    from adapters.personal_data import PersonalData  # noqa: PLC0415
    from adapters.postgres import Database  # noqa: PLC0415
    from handlers.operators import NewAdmin, Unacceptable, checked  # noqa: PLC0415
    from handlers.operators import create_admin as make_admin  # noqa: PLC0415

    settings = read_settings()
    keys = _keys(settings)
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
            hasher = Hasher(settings.argon2, threads=1, waiting_max=1)
            made = await make_admin(database, PersonalData(keys), hasher, admin)
        finally:
            await database.close()
        if not made:
            raise Failure(f"{email} is already registered")
        typer.echo(f"made {email} an admin")

    _run(work())


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
    from adapters.bus_client import bus_client, tail_events  # noqa: PLC0415

    url = _nats_url(ready_file)

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

    _run(work())


@keys_app.command("init")
def keys_init(path: Annotated[Path, typer.Argument(help="A new file; one that is there is never touched.")]) -> None:
    """Make a file of fresh random keys for USER_SERVICE_KEYS_FILE. Keep a backup: without it sessions and data are lost."""
    from adapters.keys import write_keys  # noqa: PLC0415

    try:
        write_keys(path)
    except FileExistsError as error:
        raise Failure(f"{path} is there already") from error
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}") from error
    typer.echo(f"wrote {path}")


@app.command()
def doctor(as_json: AsJson = False, ready_file: ReadyFile = None) -> None:
    """Look at settings, servers, schema, streams, consumers and clock; say what to do about each fault."""
    from dataclasses import asdict  # noqa: PLC0415

    from handlers.doctor import Finding, examine  # noqa: PLC0415

    settings, nats_url = _settings_to_examine(ready_file)
    findings: list[Finding] = []

    async def work() -> None:
        async for finding in examine(settings, nats_url):
            findings.append(finding)
            if not as_json:
                typer.echo(f"{'ok   ' if finding.good else 'FAULT'}  {finding.what}: {finding.says}")
                if not finding.good:
                    typer.echo(f"       → {finding.advice}")

    _run(work())
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings]))
    if not all(finding.good for finding in findings):
        sys.exit(1)


@app.command()
def config(as_json: AsJson = False) -> None:
    """Every setting with its meaning, its default, and the value in force (secrets as ***)."""
    with suppress(BadSettings):
        settings: Settings | None = read_settings()
    rows = []
    for name, field in Settings.model_fields.items():
        default = "none" if field.is_required() else str(field.default)
        now = str(getattr(settings, name)) if settings else os.environ.get(variable_of(name), "")
        secret = "url" in name and name != "public_url"
        rows.append(
            {
                "variable": variable_of(name),
                "default": default,
                "value": "***" if secret and now else now,
                "meaning": field.description or "",
            }
        )
    if as_json:
        typer.echo(json.dumps(rows))
        return
    for row in rows:
        typer.echo(f"{row['variable']}\n    {row['meaning']}\n    default {row['default']}; now {row['value'] or '-'}")


def _keys(settings: Settings) -> "Keys":
    from adapters.keys import BadKeys, read_keys  # noqa: PLC0415

    if settings.keys_file is None:
        raise Failure("USER_SERVICE_KEYS_FILE: Field required; `user-service keys init FILE` makes one")
    try:
        return read_keys(settings.keys_file)
    except BadKeys as error:
        raise Failure(str(error)) from error


def _ready(ready_file: Path | None) -> dict[str, Any]:
    """The ready file of a running dev."""
    path = ready_file or DEFAULT_DIR / "ready.json"
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise Failure(f"no running `user-service dev` found ({path} cannot be read), and no NATS_URL is set") from error
    return found


def _nats_url(ready_file: Path | None) -> str:
    """An explicit ready file, else NATS_URL, else the dev of this folder."""
    if ready_file is None and os.environ.get("NATS_URL"):
        return os.environ["NATS_URL"]
    return str(_ready(ready_file)["natsUrl"])


def _settings_to_examine(ready_file: Path | None) -> tuple[Settings, str]:
    if ready_file is None and os.environ.get("NATS_URL"):
        settings = read_settings()
        return settings, settings.nats_url.get_secret_value()
    found = _ready(ready_file)
    operator = str(found["natsUrls"]["operator"])
    settings = read_settings(
        nats_url=operator,
        database_url=found["databaseUrl"],
        redis_url=found["redisUrl"] or "none",
        smtp_url=found["smtpUrl"],
        keys_file=Path(str(found["mailDir"])).parent / "keys.json",
    )
    return settings, operator


def _header(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    if not colon or not name.strip():
        raise typer.BadParameter(f"{line!r} is no `Name: value`")
    return name.strip(), value.strip()


def _stop_on_signals() -> asyncio.Event:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


async def _log_ready(port: int | None) -> None:
    import structlog  # noqa: PLC0415

    structlog.get_logger().info("ready", httpPort=port)


def _is_supervised() -> bool:
    return os.environ.get("USER_SERVICE_SUPERVISED") == "1"


if __name__ == "__main__":
    main()
