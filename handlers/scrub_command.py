"""`user-service scrub`: what erasing leaves in PostgreSQL's files goes, at an hour that the operator chooses."""

import json
import os
from pathlib import Path

import typer

from handlers.terminal import AsJson, Failure, ReadyFile, progress_bar, read_ready, run_to_end


def scrub(as_json: AsJson = False, ready_file: ReadyFile = None) -> None:
    """Write every table anew, so that no file of PostgreSQL holds what was erased (as its owner, DATABASE_OWNER_URL).

    A table is locked while it is written (docs/operations.md, "Deleting and erasing"). Exit 1 when something is left.
    """
    import asyncpg

    from adapters.rewriting import rewrite_files
    from adapters.server_urls import where

    url = _owner_url(ready_file)
    left: list[str] = []

    async def work() -> None:
        try:
            with progress_bar("scrub") as tell:
                left.extend(await rewrite_files(url, tell=tell))
        except (OSError, TimeoutError, asyncpg.PostgresError) as error:
            raise Failure(f"PostgreSQL at {where(url)}: {type(error).__name__}: {error}") from error

    run_to_end(work())
    if as_json:
        typer.echo(json.dumps({"left": left}))
    else:
        typer.echo("\n".join(f"left: {text}" for text in left) or "nothing of what was erased is left in the files")
    if left:
        raise typer.Exit(1)


def _owner_url(ready_file: Path | None) -> str:
    url = os.environ.get("DATABASE_OWNER_URL")
    if ready_file is None and url:
        return url
    return str(read_ready(ready_file)["databaseOwnerUrl"])
