"""A key file that changes under running processes: a new key is known first, used later, and the old leaves last."""

import os
import stat
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from adapters.key_rotation import PURPOSES, retire, rotate, shown
from adapters.keys import BadKeys, Keys, Purpose, read_keys, write_keys
from adapters.tokens import TokenMint
from domain.refusals import BadToken

SECOND = 1.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_keys(tmp_path / "keys.json")
    return tmp_path / "keys.json"


def _token(mint: TokenMint) -> str:
    at = datetime.now(UTC)
    return mint.access(
        user_id=uuid4(), email="ada@example.org", role="user", session_id=uuid4(), auth_time=at, amr=("pwd",), at=at,
        lifetime=timedelta(minutes=15),
    )  # fmt: skip


def _later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    now = time.time() + seconds
    monkeypatch.setattr("adapters.keys.time.time", lambda: now)


@pytest.mark.parametrize("purpose", PURPOSES)
def test_a_new_key_is_known_before_it_is_used(path: Path, purpose: Purpose, monkeypatch: pytest.MonkeyPatch) -> None:
    before = read_keys(path).ring(purpose).in_force
    made = rotate(path, purpose, lead_s=60)
    ring = read_keys(path).ring(purpose)
    assert ring.in_force == before
    assert set(ring.keys) == {before, made.kid}
    _later(monkeypatch, 61)
    assert ring.in_force == made.kid


def test_a_gateway_has_the_key_before_a_token_needs_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = read_keys(path)
    mint = TokenMint(keys)
    old = _token(mint)
    made = rotate(path, "access", lead_s=60)
    assert keys.reload()
    assert {key["kid"] for key in mint.jwks} >= {made.kid}
    _later(monkeypatch, 61)
    new = _token(mint)
    for token in (old, new):
        mint.read_access(token, at=datetime.now(UTC))


def test_what_a_retired_key_signed_is_refused_though_it_was_remembered(path: Path) -> None:
    keys = read_keys(path)
    mint = TokenMint(keys)
    token = _token(mint)
    mint.read_access(token, at=datetime.now(UTC))
    old = keys.ring("access").in_force
    rotate(path, "access", lead_s=0)
    retire(path, "access", old)
    assert keys.reload()
    with pytest.raises(BadToken):
        mint.read_access(token, at=datetime.now(UTC))
    mint.read_access(_token(mint), at=datetime.now(UTC))


def test_a_key_in_use_is_not_retired(path: Path) -> None:
    made = rotate(path, "refresh", lead_s=60)
    for kid in (read_keys(path).ring("refresh").in_force, made.kid, "absent"):
        with pytest.raises(BadKeys):
            retire(path, "refresh", kid)


def test_one_rotation_waits_for_the_other(path: Path) -> None:
    rotate(path, "seal", lead_s=60)
    with pytest.raises(BadKeys, match="waits already"):
        rotate(path, "seal", lead_s=60)


def test_a_key_that_takes_over_at_once_can_be_followed_by_another(path: Path) -> None:
    kids = [rotate(path, "idempotency", lead_s=0).kid for _ in range(3)]
    ring = read_keys(path).ring("idempotency")
    assert ring.in_force == kids[-1]
    assert set(kids) < set(ring.keys)


def test_a_damaged_file_changes_nothing_and_says_so_once(path: Path) -> None:
    keys = read_keys(path)
    sealed = keys.seal("personal", b"x", place="a")
    path.write_text("{")
    with pytest.raises(BadKeys):
        keys.reload()
    assert keys.reload() is False
    assert keys.open("personal", sealed, place="a") == b"x"


def test_an_untouched_file_is_not_read_again(path: Path) -> None:
    keys = read_keys(path)
    assert (keys.reload(), keys.generation) == (False, 0)
    assert (Keys(keys.rings).reload(), Keys(keys.rings).generation) == (False, 0)


def test_the_file_stays_its_owners_alone_and_no_other_is_left_behind(path: Path) -> None:
    path.chmod(0o640)
    rotate(path, "personal", lead_s=0)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert path.stat().st_uid == os.geteuid()
    assert [found.name for found in path.parent.iterdir()] == [path.name]


def test_the_list_names_keys_and_shows_none(path: Path) -> None:
    made = rotate(path, "access", lead_s=60)
    rows = [row for row in shown(path) if row.purpose == "access"]
    assert sorted(row.state for row in rows) == ["in force", "next"]
    assert [row.from_s is not None for row in rows if row.kid == made.kid] == [True]
    assert {row.purpose for row in shown(path)} == set(PURPOSES)
    secret = next(iter(read_keys(path).ring("access").keys.values()))
    assert secret.hex() not in repr(shown(path))
