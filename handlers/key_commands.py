"""`user-service keys …`: make the server's keys, and change them while it runs."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from handlers.terminal import AsJson, Failure, read_ready, run_to_end

if TYPE_CHECKING:
    from adapters.key_rotation import KeyShown
    from adapters.keys import Purpose

keys_app = typer.Typer(no_args_is_help=True, help="Make the server's keys, and change them while it runs.")
KeyFile = Annotated[
    Path | None, typer.Option("--file", help="Key file; default: USER_SERVICE_KEYS_FILE, else that of a running dev.")
]
PurposeName = Annotated[str, typer.Argument(help="access, refresh, idempotency, personal, two-factor or seal.")]


@keys_app.command("init")
def init(path: Annotated[Path, typer.Argument(help="A new file; one that is there is never touched.")]) -> None:
    """Make a file of random keys for USER_SERVICE_KEYS_FILE. Back it up: without it personal data cannot be read."""
    from adapters.keys import write_keys

    try:
        write_keys(path)
    except FileExistsError as error:
        raise Failure(f"{path} is there already") from error
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}") from error
    typer.echo(f"wrote {path}")


@keys_app.command("list")
def list_keys(file: KeyFile = None, as_json: AsJson = False) -> None:
    """Show every key by its id: which is in force, which takes over and when, which only opens and verifies."""
    from adapters.key_rotation import shown

    with _said():
        found = shown(_path(file))
    if as_json:
        typer.echo(json.dumps([_row(key) for key in found]))
        return
    for key in found:
        when = f"  from {_time(key.from_s)}" if key.from_s else ""
        typer.echo(f"{key.purpose:12} {key.kid:12} {key.state}{when}")


@keys_app.command("rotate")
def rotate(
    purpose: PurposeName,
    file: KeyFile = None,
    lead_s: Annotated[
        float | None,
        typer.Option(
            "--lead", min=0, max=7 * 86_400, help="Seconds until the new key takes over; default: long enough."
        ),
    ] = None,
) -> None:
    """Add a key that takes over once every process, and for `access` every gateway's JWKS, has it. Older ones stay."""
    from adapters.key_rotation import LEAD_S
    from adapters.key_rotation import rotate as rotate_key
    from adapters.settings import Settings

    wanted = _purpose(purpose)
    max_age = (
        os.environ.get("USER_SERVICE_JWKS_MAX_AGE_SECONDS") or Settings.model_fields["jwks_max_age_seconds"].default
    )
    least_s = LEAD_S + (float(max_age) if wanted == "access" else 0)
    with _said():
        key = rotate_key(_path(file), wanted, lead_s=least_s if lead_s is None else lead_s)
    typer.echo(f"{key.kid} takes over at {_time(key.from_s)}; back the file up")


@keys_app.command("retire")
def retire(
    purpose: PurposeName,
    kid: str,
    file: KeyFile = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also where something is lost with it: for a key that was stolen.")
    ] = False,
) -> None:
    """Take an older key away. Refused while something that is still good, or a row, hangs on it."""
    from adapters.key_rotation import require_outlived
    from adapters.key_rotation import retire as retire_key

    wanted = _purpose(purpose)
    if not force:
        with _said():
            require_outlived(_path(file), wanted)
        _require_no_row(wanted, kid)
    with _said():
        retire_key(_path(file), wanted, kid)
    typer.echo(f"{kid} is gone")


def _require_no_row(purpose: "Purpose", kid: str) -> None:
    """The group `jobs` seals rows anew within minutes of a rotation: a key goes when none is left under it."""
    import asyncpg

    from adapters.key_rotation import SEALED_UNDER, rows_under

    if purpose not in SEALED_UNDER:
        return
    url = os.environ.get("DATABASE_URL") or str(read_ready(None)["databaseUrl"])

    async def work() -> None:
        try:
            connection = await asyncpg.connect(url, timeout=5)
        except (OSError, TimeoutError, asyncpg.PostgresError) as error:
            raise Failure(f"PostgreSQL does not say whether rows hang on it ({type(error).__name__})") from error
        try:
            left = await rows_under(connection, purpose, kid)
        finally:
            await connection.close()
        if left:
            raise Failure(f"{left} rows are still sealed under {kid}: nobody could read them; see that `jobs` runs")

    run_to_end(work())


def _path(file: Path | None) -> Path:
    named = file or os.environ.get("USER_SERVICE_KEYS_FILE")
    return Path(named) if named else Path(str(read_ready(None)["mailDir"])).parent / "keys.json"


def _purpose(name: str) -> "Purpose":
    from adapters.key_rotation import PURPOSES

    for purpose in PURPOSES:
        if purpose == name:
            return purpose
    raise typer.BadParameter(f"{name!r} is none of {', '.join(PURPOSES)}")


def _row(key: "KeyShown") -> dict[str, str | None]:
    from_ = _time(key.from_s) if key.from_s else None
    return {"purpose": key.purpose, "kid": key.kid, "state": key.state, "from": from_}


def _time(at: float | None) -> str:
    return datetime.fromtimestamp(at or 0, UTC).isoformat(timespec="seconds")


@contextmanager
def _said() -> Iterator[None]:
    from adapters.keys import BadKeys

    try:
        yield
    except BadKeys as error:
        raise Failure(str(error)) from error
    except OSError as error:
        raise Failure(f"{error.filename}: {error.strerror}") from error
