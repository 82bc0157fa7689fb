"""`user-service dev` and `dev mail`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from handlers.terminal import (
    DEFAULT_DIR,
    Failure,
    ReadyFile,
    read_ready,
    run_to_end,
    stop_on_signals,
)

dev_app = typer.Typer(help="Run the whole service on embedded servers, or look at its mail.")
DataDir = Annotated[Path, typer.Option(help="Where the embedded servers keep their data.")]


@dev_app.callback(invoke_without_command=True)
def dev(context: typer.Context, data_dir: DataDir = DEFAULT_DIR, ready_file: ReadyFile = None) -> None:
    """Start PostgreSQL, NATS, Valkey and a mail sink, and the whole service on them; stop with Ctrl-C."""
    if context.invoked_subcommand is not None:
        return
    from adapters.embedded_state import EmbeddedFailure
    from adapters.telemetry import set_up_logs
    from handlers.endings import Ended
    from handlers.groups import GroupIsSilent
    from handlers.vitals import PortTaken

    ready = (ready_file or data_dir / "ready.json").absolute()
    form = os.environ.get("USER_SERVICE_LOG_FORMAT", "auto")
    set_up_logs(os.environ.get("USER_SERVICE_LOG_LEVEL", "info"), "development", form)

    async def work() -> None:
        from handlers.dev import dev as serve_dev

        await serve_dev(data_dir.absolute(), ready, stop=stop_on_signals(), say=typer.echo)
        typer.echo(f"stopped; the data is kept in {data_dir}")

    try:
        run_to_end(work(), foreseen=(EmbeddedFailure, PortTaken, Ended, GroupIsSilent))
    except ImportError as error:
        raise Failure("the embedded servers are missing: install user-service[dev]") from error


@dev_app.command("mail")
def dev_mail(
    context: typer.Context,
    last: Annotated[
        bool, typer.Option("--last", help="The newest mail alone; with --link, the newest that has one.")
    ] = False,
    link: Annotated[bool, typer.Option("--link", help="Print the links alone.")] = False,
    token: Annotated[bool, typer.Option("--token", help="Print the links' tokens alone.")] = False,
    ready_file: ReadyFile = None,
) -> None:
    """Show the inbox of a running dev."""
    from adapters.mail_sink import link_of, read_mail, stored_mails, token_of

    data_dir = (context.parent.params if context.parent else {}).get("data_dir", DEFAULT_DIR)
    paths = stored_mails(Path(str(read_ready(ready_file or data_dir / "ready.json")["mailDir"])))
    if not paths:
        raise Failure("no mail has come yet")
    if link or token:
        found = [text for path in paths if (text := (link_of if link else token_of)(read_mail(path)))]
        if not found:
            raise Failure("no mail with a link has come yet")
        typer.echo("\n".join(found[-1:] if last else found))
        return
    for path in paths[-1:] if last else paths:
        mail = read_mail(path)
        if last:
            body = mail.get_body(("plain",))
            typer.echo(f"From: {mail['From']}\nTo: {mail['To']}\nSubject: {mail['Subject']}\n")
            typer.echo(body.get_content() if body else "")
        else:
            typer.echo(f"{path.name}  {mail['To']}  {mail['Subject']}")
