"""`user-service users import|export`: directly on the database, as its operator."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from handlers.own_servers import own_means
from handlers.terminal import AsJson, Failure, ReadyFile, progress_bar, run_to_end

if TYPE_CHECKING:
    from contracts.transfer import RefusedLine
    from handlers.transfer import Imported

users_app = typer.Typer(no_args_is_help=True, help="Bring users in from elsewhere, or take them along.")
_SHOWN_MAX = 20


@users_app.command("import")
def import_users(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="One user a line, as JSON.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Read and check everything; write nothing.")] = False,
    report: Annotated[
        Path | None, typer.Option(help="Where refused lines go, as JSON lines; a run that goes on appends.")
    ] = None,
    as_json: AsJson = False,
    ready_file: ReadyFile = None,
) -> None:
    """Add users with the password hashes they have. Cut off, the same command goes on where it was. Nobody is mailed.

    Exit 1 when a line was refused.
    """
    from handlers.transfer import ImportRuns
    from handlers.transfer import import_users as act

    settings, personal = own_means(ready_file)
    done: list[Imported] = []

    async def work() -> None:
        from adapters.postgres import Database

        database = await Database.connect(settings, name="user-service users import")
        try:
            with progress_bar("import") as tell, _reporting(report) as refuse:
                done.append(await act(database, personal, file, dry_run=dry_run, report=refuse, tell=tell))
        finally:
            await database.close()

    run_to_end(work(), foreseen=(ImportRuns,))
    (found,) = done
    if as_json:
        figures = {"lines": found.lines, "imported": found.imported, "refused": found.refused, "resumed": found.resumed}
        typer.echo(json.dumps({**figures, "dryRun": dry_run}))
    else:
        before = f" (of these, lines 1 to {found.resumed} by an earlier run)" if found.resumed else ""
        typer.echo(f"{found.imported} {'would be ' if dry_run else ''}imported, {found.refused} lines refused{before}")
    if found.refused:
        raise typer.Exit(1)


@users_app.command("export")
def export_users(
    file: Annotated[Path, typer.Argument(help="A new file; one that is there is refused.")],
    with_hashes: Annotated[bool, typer.Option("--with-hashes", help="Password hashes too, for a move.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on behind the last whole line of the file.")] = False,
    as_json: AsJson = False,
    ready_file: ReadyFile = None,
) -> None:
    """Write every user that is not deleted, one a line, as JSON that `users import` reads."""
    settings, personal = own_means(ready_file)
    counts: list[int] = []

    async def work() -> None:
        from adapters.postgres import Database
        from handlers.transfer import export_users as act

        database = await Database.connect(settings, name="user-service users export")
        try:
            with progress_bar("export") as tell:
                counts.append(await act(database, personal, file, with_hashes=with_hashes, resume=resume, tell=tell))
        except FileExistsError as error:
            raise Failure(f"{file} is there already; name another, or go on with --resume") from error
        finally:
            await database.close()

    run_to_end(work())
    typer.echo(json.dumps({"exported": counts[0]}) if as_json else f"{counts[0]} users")


@contextmanager
def _reporting(path: Path | None) -> Iterator[Callable[["RefusedLine"], None]]:
    """To the file that was named, else the first few to standard error."""
    shown = 0
    file: TextIO | None = (
        os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a", 1) if path else None
    )

    def refuse(line: "RefusedLine") -> None:
        nonlocal shown
        if file is not None:
            file.write(line.model_dump_json(by_alias=True) + "\n")
            return
        shown += 1
        if shown <= _SHOWN_MAX:
            typer.echo(f"line {line.line}: {line.field or 'the line'}: {line.message}", err=True)
        elif shown == _SHOWN_MAX + 1:
            typer.echo("and more; --report FILE takes them all", err=True)

    try:
        yield refuse
    finally:
        if file is not None:
            file.close()
