"""Users in and out as lines of JSON, streaming; cut off in the middle, both ways go on where they were."""

import asyncio
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO
from uuid import UUID, uuid4

import uuid_utils.compat as uuid_utils
from pydantic import JsonValue, ValidationError

from adapters.addresses import email_key
from adapters.audit_log import AuditRow, add_audit_row
from adapters.bulk_users import (
    Progress,
    add_users,
    export_page,
    give_back_file,
    keep_progress,
    progress_of,
    take_file,
    taken_among,
    users_counted,
)
from adapters.event_log import EventLog, Trail
from adapters.foreign_hashes import is_importable
from adapters.hash_costs import note_costs
from adapters.personal_data import PersonalData
from adapters.postgres import Connection, Database
from contracts.transfer import ImportedUser, RefusedLine
from domain.password import NO_PASSWORD
from domain.user import User, UserId
from handlers.clock import now
from handlers.envelope import faults_of
from handlers.operators import operator

BATCH = 500
LINE_BYTES_MAX = 16 * 1024
_READ_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the file with its number, from 1, and where the file stands behind it."""

    number: int
    raw: bytes
    end: int


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import came to; `resumed` is how many lines an earlier run had done."""

    lines: int
    imported: int
    refused: int
    resumed: int


Report = Callable[[RefusedLine], None]
Tell = Callable[[int, int], None]
"""Told how much is done, and of how much."""


TAKE_TRIES_MAX, TAKE_PAUSE_S = 30, 0.1


class ImportRuns(Exception):
    """Two runs of one file would refuse each other's lines as taken."""


async def import_users(
    database: Database, personal: PersonalData, path: Path, *, dry_run: bool, report: Report, tell: Tell
) -> Imported:
    """Add every user of a file; bad lines are reported and left out, and nobody is mailed.

    Lines are committed in batches with how far they go: the same file given again goes on behind them. A dry run
    reads the whole file, says the same of its lines as far as that can be known, and writes nothing.
    Raises `ImportRuns` while another run takes the same file in.
    """
    digest, size = await asyncio.to_thread(_digest_of, path), path.stat().st_size  # noqa: ASYNC240
    async with database.connection() as kept:
        await _take(kept, digest, path.name)
        try:
            return await _import(database, personal, path, digest, size, dry_run=dry_run, report=report, tell=tell)
        finally:
            await give_back_file(kept, digest)


async def _take(kept: Connection, digest: bytes, name: str) -> None:
    """Wait a little: a run that was killed lets go once its server has seen that."""
    for _ in range(TAKE_TRIES_MAX):
        if await take_file(kept, digest):
            return
        await asyncio.sleep(TAKE_PAUSE_S)
    raise ImportRuns(f"{name} is being imported by another run")


async def _import(
    database: Database, personal: PersonalData, path: Path, digest: bytes, size: int, *, dry_run: bool, report: Report,
    tell: Tell,
) -> Imported:  # fmt: skip
    trail = Trail(request_id=f"cli-{uuid4()}")
    async with database.connection() as connection:
        before = Progress(0, 0, 0) if dry_run else await progress_of(connection, digest)
        if not dry_run:
            await _audit(
                connection, personal, trail, "users_import_begun", {"file": digest.hex(), "line": before.lines}
            )
    done = before
    with path.open("rb") as file:
        for batch in _batches(_lines(file, behind=before.lines)):
            done = await _import_batch(database, personal, trail, digest, batch, done, dry_run=dry_run, report=report)
            tell(batch[-1].end, size)
    if not dry_run:
        async with database.connection() as connection:
            counts: dict[str, JsonValue] = {"file": digest.hex(), "imported": done.imported, "refused": done.refused}
            await _audit(connection, personal, trail, "users_imported", counts)
    return Imported(done.lines, done.imported, done.refused, before.lines)


async def _import_batch(
    database: Database, personal: PersonalData, trail: Trail, digest: bytes, batch: list[Line], done: Progress, *,
    dry_run: bool, report: Report,
) -> Progress:  # fmt: skip
    at = now()
    users: dict[UUID, tuple[int, User]] = {}
    refused: list[RefusedLine] = []
    addresses: set[str] = set()
    for line in batch:
        user = _user_of(line, at)
        if not isinstance(user, User):
            refused += user
        elif (key := email_key(user.email)) in addresses:
            refused.append(_taken(line.number))
        else:
            addresses.add(key)
            users[user.id] = line.number, user
    bad_lines = len(batch) - len(users)
    added = set(users)
    async with database.connection() as connection, connection.transaction():
        if dry_run:
            taken_keys = await taken_among(connection, list(addresses))
            added = {id for id, (_, user) in users.items() if email_key(user.email) not in taken_keys}
        elif users:
            wanted = [user for _, user in users.values()]
            await note_costs(connection, {user.password_hash for user in wanted})
            added = await add_users(connection, personal, EventLog(personal, trail), wanted)
        taken = [_taken(number) for id, (number, _) in users.items() if id not in added]
        for fault in sorted([*refused, *taken], key=lambda fault: fault.line):
            report(fault)  # before it is committed: after a crash a line is told twice rather than never
        after = Progress(batch[-1].number, done.imported + len(added), done.refused + bad_lines + len(taken))
        if not dry_run:
            await keep_progress(connection, digest, after)
    return after


def _user_of(line: Line, at: datetime) -> User | list[RefusedLine]:
    if len(line.raw) > LINE_BYTES_MAX:
        return [RefusedLine(line=line.number, field="", code="too_long", message="This line is too long.")]
    try:
        wanted = ImportedUser.model_validate_json(line.raw)
    except ValidationError as error:
        return [
            RefusedLine(line=line.number, field=fault.field, code=fault.code, message=fault.message)
            for fault in faults_of(error)
        ]
    if wanted.password_hash is not None and not is_importable(wanted.password_hash):
        words = "This hash is of no kind that can be checked, or costs too much."
        return [RefusedLine(line=line.number, field="passwordHash", code="not_importable", message=words)]
    return _new_user(wanted, at)


def _new_user(wanted: ImportedUser, at: datetime) -> User:
    user = User.register(
        UserId(uuid_utils.uuid7()),
        email=wanted.email,
        first_name=wanted.first_name,
        last_name=wanted.last_name,
        password_hash=wanted.password_hash or NO_PASSWORD,
        at=at,
        origin="import",
    )
    if wanted.email_verified:
        user.verify_email(reason="operator", at=at)
    user.change_role(wanted.role, reason="import", at=at)
    if wanted.suspended:
        user.change_status("suspended", reason="import", at=at)
    user.created_at = wanted.created_at or at
    user.last_password_change = wanted.password_changed_at or at
    user.profile.language = wanted.language
    return user


def _taken(number: int) -> RefusedLine:
    words = "This address has an account already."
    return RefusedLine(line=number, field="email", code="already_registered", message=words)


def _digest_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _lines(file: BinaryIO, *, behind: int) -> Iterator[Line]:
    """The lines that hold anything; of one that is too long only as much as shows it."""
    number = end = 0
    while raw := file.readline(LINE_BYTES_MAX + 2):
        end += len(raw)
        whole = raw.endswith(b"\n")
        while not whole and (rest := file.readline(_READ_BYTES)):
            end += len(rest)
            whole = rest.endswith(b"\n")
        number += 1
        if number > behind and raw.strip():
            yield Line(number, raw.rstrip(b"\r\n"), end)


def _batches(lines: Iterator[Line]) -> Iterator[list[Line]]:
    batch: list[Line] = []
    for line in lines:
        batch.append(line)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


async def _audit(
    connection: Connection, personal: PersonalData, trail: Trail, action: str, counts: Mapping[str, JsonValue]
) -> None:
    row = AuditRow(action=action, success=True, at=now(), details={"operator": operator(), **counts})
    await add_audit_row(connection, personal, trail, row)


async def export_users(
    database: Database, personal: PersonalData, path: Path, *, with_hashes: bool, resume: bool, tell: Tell
) -> int:
    """Write every user that is not deleted as a line of JSON; how many this run wrote.

    The file is its owner's alone. `resume` goes on behind the last whole line; else a file that is there is refused
    with `FileExistsError`.
    """
    trail = Trail(request_id=f"cli-{uuid4()}")
    after, count = (_last_of(path) if resume else None), 0
    flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if resume else os.O_EXCL)
    with os.fdopen(os.open(path, flags, 0o600), "ab") as file:
        async with database.connection() as connection:
            about = await users_counted(connection)
            await _audit(connection, personal, trail, "users_exported", {"hashes": str(with_hashes).lower()})
        while True:
            async with database.connection() as connection:
                page = await export_page(connection, after, users_max=BATCH, with_hashes=with_hashes)
            if not page:
                return count
            file.writelines(user.model_dump_json(by_alias=True).encode() + b"\n" for user in page)
            file.flush()
            after, count = page[-1].id, count + len(page)
            tell(count, about)


def _last_of(path: Path) -> UUID | None:
    """The id in the last whole line; what was cut off behind it is taken away."""
    if not path.exists():
        return None
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        start = max(0, size - 4 * LINE_BYTES_MAX)
        file.seek(start)
        tail = file.read()
        whole = tail.rfind(b"\n") + 1
        file.truncate(start + whole)
        lines = tail[:whole].splitlines()
    return UUID(str(json.loads(lines[-1])["id"])) if lines else None
