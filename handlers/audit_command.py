"""`user-service audit verify`: is the audit log as it was written? Directly on the servers, with the keys."""

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adapters.environment import BadSettings
from handlers.own_servers import own_keys, own_settings
from handlers.terminal import AsJson, Failure, ReadyFile, progress_bar, run_to_end

if TYPE_CHECKING:
    from handlers.audit_verification import Verdict

audit_app = typer.Typer(no_args_is_help=True, help="Look after the audit log.")
_SHOWN_MAX = 100


@audit_app.callback()
def audit() -> None:
    """Look after the audit log."""


@audit_app.command("verify")
def verify(
    from_: Annotated[
        int | None, typer.Option("--from", min=1, help="Begin at the seal over that position of the log.")
    ] = None,
    as_json: AsJson = False,
    ready_file: ReadyFile = None,
) -> None:
    """Hold every row against its seal, every seal against its signature and what was published; name what differs.

    Exit 0 when all is as it was written, 1 when something is not, 2 when that could not be found out.
    """
    try:
        found = _verify(from_, ready_file)
    except (Failure, BadSettings) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from error
    if as_json:
        typer.echo(json.dumps(asdict(found) | {"clean": not found.faults}))
    else:
        _tell(found)
    if found.faults:
        raise typer.Exit(1)


def _verify(from_: int | None, ready_file: Path | None) -> "Verdict":
    import asyncpg

    from adapters.bus_client import bus_client
    from adapters.migrations import require_current
    from adapters.personal_data import PersonalData
    from adapters.postgres import Database
    from adapters.seal_keys import SealKeys
    from domain.refusals import Overloaded, Stale
    from handlers.audit_verification import verify as act

    settings = own_settings(ready_file)
    keys = own_keys(settings, needed_for="signatures are verified with the keys that made them")
    found: list[Verdict] = []

    async def work() -> None:
        async with bus_client(settings.nats_url.get_secret_value()) as client:
            database = await Database.connect(settings, name="user-service audit verify")
            try:
                await require_current(settings.database_url.get_secret_value())
                with progress_bar("verify") as tell:
                    found.append(
                        await act(
                            database, PersonalData(keys), SealKeys(keys), client.jetstream(), from_position=from_,
                            tell=tell,
                        )
                    )  # fmt: skip
            finally:
                await database.close()

    run_to_end(work(), foreseen=(Overloaded, Stale, asyncpg.PostgresError))
    return found[0]


def _tell(found: "Verdict") -> None:
    for fault in found.faults[:_SHOWN_MAX]:
        where = str(fault.first) if fault.first == fault.last else f"{fault.first} to {fault.last}"
        typer.echo(f"{fault.kind:13} {where}: {fault.says}")
    if len(found.faults) > _SHOWN_MAX:
        kinds = Counter(str(fault.kind) for fault in found.faults)
        typer.echo(f"and more; --json names them: {', '.join(f'{count} {kind}' for kind, count in kinds.items())}")
    if found.unnamed:
        typer.echo(f"and {found.unnamed} more that are not named")
    state = f"{len(found.faults)} faults" if found.faults else "as they were sealed"
    typer.echo(f"{found.rows} rows under {found.seals} seals: {state}")
    if found.unsealed or found.unpublished:
        typer.echo(f"{found.unsealed} rows wait for their seal, {found.unpublished} seals to be published")
