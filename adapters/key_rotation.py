"""Changes to a key file: a new key that takes over once everybody knows it, and old ones that leave.

The file is replaced whole by a rename; running processes read it again within `RELOAD_S`.
"""

import json
import os
import secrets
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg

from adapters.keys import ASYMMETRIC, SYMMETRIC, BadKeys, Purpose, b64, read_keys

RELOAD_S = 2.0
"""How often a running process looks whether its key file has changed."""
LEAD_S = 60.0
"""How long a key is known before it is used: every process has read it by then, with its clock a little off too."""
KEPT_S: dict[Purpose, float] = {"access": 15 * 60, "refresh": 30 * 86_400, "idempotency": 86_400}
"""How long what an older key has made is still good after the next one took over."""
SEALED_UNDER: dict[Purpose, str] = {
    "personal": "SELECT count(*) FROM user_keys WHERE wrapped LIKE $1",
    "two-factor": "SELECT count(*) FROM second_factors WHERE secret LIKE $1",
}
"""How many rows a key would lock for ever if it went."""
PURPOSES: tuple[Purpose, ...] = (*ASYMMETRIC, *SYMMETRIC)


@dataclass(frozen=True, slots=True)
class KeyShown:
    """A key of a ring, without the key."""

    purpose: str
    kid: str
    state: str
    """`in force`, `next`, or `older`: it still opens and verifies."""
    from_s: float | None


def shown(path: Path) -> list[KeyShown]:
    """Every key of the file by its id; raises `BadKeys`."""
    found = []
    for purpose, ring in read_keys(path).rings.items():
        for kid in ring.keys:
            coming = ring.successor is not None and ring.successor.kid == kid
            state = "in force" if kid == ring.in_force else "next" if coming else "older"
            found.append(KeyShown(purpose, kid, state, ring.successor.from_s if ring.successor and coming else None))
    return found


def rotate(path: Path, purpose: Purpose, *, lead_s: float) -> KeyShown:
    """Add a key that takes over after `lead_s`; raises `BadKeys` while another waits to take over."""
    ring = read_keys(path).ring(purpose)
    if ring.successor is not None and ring.in_force != ring.successor.kid:
        raise BadKeys(f"{ring.successor.kid} waits already to take over; let it first")
    kid, at = secrets.token_hex(4), time.time() + lead_s
    raw = _raw(path)
    raw[purpose] = {
        "current": ring.in_force,
        "keys": raw[purpose]["keys"] | {kid: b64(os.urandom(32))},
        "next": {"kid": kid, "from": at},
    }
    _replace(path, raw)
    return KeyShown(purpose, kid, "next", at)


async def rows_under(connection: asyncpg.Connection, purpose: Purpose, kid: str) -> int:
    """How many rows only this key opens; of purposes whose keys seal none that stay, 0."""
    statement = SEALED_UNDER.get(purpose)
    found: int = 0 if statement is None else await connection.fetchval(statement, f"v1.{kid}.%")
    return found


def require_outlived(path: Path, purpose: Purpose) -> None:
    """Raises `BadKeys` while something may be about that an older key of this purpose has made and is still good."""
    ring = read_keys(path).ring(purpose)
    if purpose == "seal":
        raise BadKeys("without it nobody can tell that what it sealed is unchanged: it is kept for good")
    took_over = ring.successor.from_s if ring.successor and ring.in_force == ring.successor.kid else None
    left_s = 0.0 if took_over is None else took_over + KEPT_S.get(purpose, 0) - time.time()
    if left_s > 0:
        raise BadKeys(f"what it has made is good for another {round(left_s)} s")


def retire(path: Path, purpose: Purpose, kid: str) -> None:
    """Take an old key away: what was signed or sealed under it is good no more. Raises `BadKeys` for one in use."""
    ring = read_keys(path).ring(purpose)
    if kid not in ring.keys:
        raise BadKeys(f"{purpose} has no key {kid}")
    if kid == ring.in_force or (ring.successor is not None and kid == ring.successor.kid):
        raise BadKeys(f"{kid} is in force or about to be; rotate first")
    raw = _raw(path)
    keys = {name: key for name, key in raw[purpose]["keys"].items() if name != kid}
    if ring.successor is not None and ring.in_force == ring.successor.kid:
        raw[purpose] = {"current": ring.in_force, "keys": keys}
    else:
        raw[purpose] = raw[purpose] | {"keys": keys}
    _replace(path, raw)


def _raw(path: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(path.read_text())
    return found


def _replace(path: Path, raw: dict[str, dict[str, Any]]) -> None:
    """Whole or not at all, with the mode and the owner that the file had."""
    before = path.stat()
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w") as file:
            json.dump(raw, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), before.st_mode & 0o777)
            if os.geteuid() == 0:
                os.fchown(file.fileno(), before.st_uid, before.st_gid)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
