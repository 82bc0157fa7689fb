"""Users come in from elsewhere with the hashes they have, and go out again; cut off in the middle, both go on."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from argon2 import PasswordHasher

from tests.gateway import PASSWORD, gateway, new_email, stored_events
from tests.program import Dev, clean_environment, command, eventually

HASH = PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1).hash(PASSWORD)


@pytest_asyncio.fixture(scope="module")
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Dev]:
    """A `dev` of its own: what is imported here fills every list."""
    base: Path = tmp_path_factory.mktemp("import")
    async with Dev(base / "data") as running:
        yield running


def _line(**changes: object) -> dict[str, object]:
    return {
        "email": new_email(), "firstName": "Grace", "lastName": "Hopper", "passwordHash": HASH, "emailVerified": True,
    } | changes  # fmt: skip


def _file(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


async def _users(house: Dev, *words: str) -> tuple[int, dict[str, Any], str]:
    code, out, err = await command("users", *words, "--json", "--ready-file", str(house.ready_file))
    return code, json.loads(out) if out else {}, err


async def test_imported_users_sign_in_with_the_passwords_they_had_and_nobody_is_mailed(
    dev: Dev, tmp_path: Path
) -> None:
    wanted = [
        _line(language="de", createdAt="2020-02-03T04:05:06Z"),
        _line(role="moderator"),
        _line(suspended=True),
        _line(emailVerified=False),
        _line(passwordHash=None),
    ]
    file = _file(tmp_path / "users.jsonl", wanted)
    code, dry, _ = await _users(dev, "import", str(file), "--dry-run")
    assert (code, dry["imported"], dry["refused"]) == (0, 5, 0)
    code, done, err = await _users(dev, "import", str(file))
    assert (code, done["imported"], done["refused"]) == (0, 5, 0), err
    async with gateway(dev.ready) as client:
        said = [(await client.call("auth.login", email=line["email"], password=PASSWORD)) for line in wanted]
        assert [reply.code for reply in said] == [
            "OK", "OK", "ACCOUNT_SUSPENDED", "EMAIL_NOT_VERIFIED", "INVALID_CREDENTIALS",
        ]  # fmt: skip
        user = said[0].data["user"]
        assert user["createdAt"] == "2020-02-03T04:05:06.000000Z"
        assert said[1].data["user"]["role"] == "moderator"

        async def announced() -> bool:
            events = await stored_events(dev.ready, f"users.events.v1.*.{user['id']}")
            return [(event["type"], event["version"]) for event in events][:2] == [
                ("UserRegistered", 1), ("EmailVerified", 2),
            ]  # fmt: skip

        await eventually(announced, within_s=20, what="the events of an imported user")
        assert not any(client.mails_to(str(line["email"])) for line in wanted)


async def test_every_bad_line_is_named_and_the_good_ones_come_in(house: Dev, tmp_path: Path) -> None:
    good, taken = _line(), _line()
    lines = [
        good, "{", "[]", _line(email="nobody"), _line(firstName=""), _line(role="king"), taken, taken,
        _line(passwordHash="$argon2id$v=19$m=4294967295,t=3,p=4$c2FsdHNhbHQ$aGFzaA"), "x" * 20_000,
        {"email": new_email()}, _line(createdAt="yesterday"),
    ]  # fmt: skip
    file, report = _file(tmp_path / "users.jsonl", lines), tmp_path / "report.jsonl"
    code, done, _ = await _users(house, "import", str(file), "--report", str(report))
    assert (code, done["lines"], done["imported"], done["refused"]) == (1, 12, 2, 10)
    told = [json.loads(line) for line in report.read_text().splitlines()]
    assert {row["line"] for row in told} == {2, 3, 4, 5, 6, 8, 9, 10, 11, 12}
    assert {(row["line"], row["field"], row["code"]) for row in told} >= {
        (4, "email", "not_an_address"), (8, "email", "already_registered"), (9, "passwordHash", "not_importable"),
        (10, "", "too_long"), (11, "firstName", "required"), (11, "lastName", "required"),
    }  # fmt: skip
    assert "salt" not in report.read_text()


async def test_an_import_cut_off_goes_on_and_each_user_comes_in_once(house: Dev, tmp_path: Path) -> None:
    lines = [_line() for _ in range(6000)]
    file = _file(tmp_path / "users.jsonl", lines)
    words = ("users", "import", str(file), "--json", "--ready-file", str(house.ready_file))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "handlers.start", *words, env=clean_environment(), stdout=asyncio.subprocess.DEVNULL
    )
    async with gateway(house.ready) as client:

        async def begun() -> bool:
            return (await client.call("auth.login", email=lines[500]["email"], password=PASSWORD)).ok

        await eventually(begun, within_s=30, what="the first batches")
        process.send_signal(signal.SIGKILL)
        await process.wait()
        code, done, err = await _users(house, "import", str(file))
        assert (code, done["lines"], done["imported"], done["refused"]) == (0, 6000, 6000, 0), err
        assert 500 <= done["resumed"] < 6000
        assert (await client.call("auth.login", email=lines[-1]["email"], password=PASSWORD)).ok
    _, again, _ = await _users(house, "import", str(file))
    assert (again["imported"], again["resumed"]) == (6000, 6000)


async def test_of_two_imports_of_one_file_none_refuses_what_the_other_took(house: Dev, tmp_path: Path) -> None:
    lines = [_line() for _ in range(2000)]
    file = _file(tmp_path / "users.jsonl", lines)
    with file.open("a") as more:
        more.write("\n\n")  # blank lines are no users
    words = ("users", "import", str(file), "--json", "--ready-file", str(house.ready_file))
    runs = await asyncio.gather(*(command(*words) for _ in range(3)))
    done = [json.loads(out) for code, out, _ in runs if code == 0]
    assert done
    assert all((found["imported"], found["refused"]) == (2000, 0) for found in done)
    assert all("by another run" in err for code, _, err in runs if code)


async def test_what_is_exported_can_be_imported_and_an_export_goes_on(house: Dev, tmp_path: Path) -> None:
    mine, without = _line(), _line(passwordHash=None)
    await _users(house, "import", str(_file(tmp_path / "two.jsonl", [mine, without])))
    whole, plain = tmp_path / "all.jsonl", tmp_path / "plain.jsonl"
    code, done, err = await _users(house, "export", str(whole), "--with-hashes")
    assert code == 0, err
    rows = [json.loads(line) for line in whole.read_text().splitlines()]
    assert done["exported"] == len(rows)
    assert [row["passwordHash"] for row in rows if row["email"] == mine["email"]] == [HASH]
    assert not any("passwordHash" in row for row in rows if row["email"] == without["email"])
    assert whole.stat().st_mode & 0o777 == 0o600
    assert (await _users(house, "export", str(whole)))[0] == 1  # never over one that is there

    cut = whole.read_bytes()[: len(whole.read_bytes()) // 2]
    whole.write_bytes(cut)
    assert (await _users(house, "export", str(whole), "--with-hashes", "--resume"))[0] == 0
    assert [json.loads(line) for line in whole.read_text().splitlines()] == rows
    await _users(house, "export", str(plain))
    assert "argon2" not in plain.read_text()
    code, done, _ = await _users(house, "import", str(whole), "--dry-run")
    assert (code, done["imported"], done["refused"]) == (1, 0, len(rows)), "all of them are here"
