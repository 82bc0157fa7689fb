"""Many users come in: ten thousand with the hashes of another system, cut off in the middle; and a million, after which
nothing may be slower than at a thousand."""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median

import bcrypt
import pytest
from argon2 import PasswordHasher

from tests.gateway import PASSWORD, Gateway, Reply, database, gateway
from tests.program import Dev, clean_environment, eventually

MANY = int(os.environ.get("USERS", "1000000"))
FEW = 1000
ROUNDS = 200
HASH = PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1).hash(PASSWORD)

pytestmark = pytest.mark.soak
SYLLABLES = (
    "ba", "ko", "ri", "mu", "te", "sol", "van", "dor", "lin", "gre", "ma", "ni", "ha", "ste", "cas", "wel", "fi", "jo",
    "pra", "lou", "bri", "han", "zo", "kal", "vin", "der", "ost", "per", "tu", "ilk",
)  # fmt: skip


def _address(number: int) -> str:
    return f"user-{number:07}@example.net"


def _name(number: int, syllables: int) -> str:
    """Names of many letters, as people have them: 900 first names, 27,000 surnames, the latter in no order."""
    number = number * 7919 if syllables == 3 else number
    return "".join(SYLLABLES[number // 30**place % 30] for place in range(syllables)).capitalize()


def _write(path: Path, numbers: range, password_hash: str) -> Path:
    with path.open("w") as file:
        for number in numbers:
            line = {
                "email": _address(number), "firstName": _name(number, 2), "lastName": _name(number, 3),
                "passwordHash": password_hash, "emailVerified": True,
            }  # fmt: skip
            file.write(json.dumps(line) + "\n")
    return path


async def _importing(dev: Dev, file: Path) -> asyncio.subprocess.Process:
    words = ("users", "import", str(file), "--json", "--ready-file", str(dev.ready_file))
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "handlers.start", *words, env=clean_environment(), stdout=asyncio.subprocess.PIPE
    )


async def _import(dev: Dev, file: Path) -> dict[str, int]:
    out, _ = await (await _importing(dev, file)).communicate()
    found: dict[str, int] = json.loads(out)
    return found


@pytest.mark.timeout(1800)
async def test_ten_thousand_hashes_of_bcrypt_come_in_and_are_replaced_as_their_owners_sign_in(tmp_path: Path) -> None:
    file = _write(tmp_path / "users.jsonl", range(10_000), bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode())
    async with Dev(tmp_path / "data") as dev, gateway(dev.ready) as client, database(dev.ready) as rows:
        importing = await _importing(dev, file)

        async def in_the_middle() -> bool:
            return bool(await rows.fetchval("SELECT count(*) >= 3000 FROM users"))

        await eventually(in_the_middle, within_s=60, what="the middle of the import")
        importing.send_signal(signal.SIGKILL)
        await importing.wait()
        done = await _import(dev, file)
        assert (done["imported"], done["refused"]) == (10_000, 0)
        assert 0 < done["resumed"] < 10_000
        waiting = iter(range(10_000))

        async def sign_in() -> None:
            for number in waiting:
                reply = await client.call("auth.login", email=_address(number), password=PASSWORD)
                assert reply.ok, (number, reply.body)

        began = time.perf_counter()
        await asyncio.gather(*(sign_in() for _ in range(32)))
        upgraded = await rows.fetchval("SELECT count(*) FROM users WHERE password_hash LIKE '$argon2id$%'")
        assert upgraded >= 10_000
        print(f"resumed behind line {done['resumed']}; 10,000 signed in within {time.perf_counter() - began:.0f} s")


Ask = Callable[[], Awaitable[Reply]]


async def _medians(client: Gateway, users: int) -> dict[str, float]:
    """Milliseconds of one request after another."""
    admin = await client.admin()
    access = (await client.call("auth.login", email=_address(1), password=PASSWORD)).data["tokens"]["accessToken"]
    body: dict[str, object] = {"limit": 100}
    for _ in range(5):
        page = await client.call("admin.users.list", access=admin, **body)  # type: ignore[arg-type]
        cursor = page.body["pagination"]["nextCursor"]
        body["cursor"] = cursor
    asks: dict[str, Ask] = {
        "login": lambda: client.call("auth.login", email=_address(users // 2), password=PASSWORD),
        "me.get": lambda: client.call("me.get", access=access),
        "first page": lambda: client.call("admin.users.list", access=admin),
        "deep page": lambda: client.call("admin.users.list", access=admin, cursor=cursor),
        "search by address": lambda: client.call("admin.users.list", access=admin, search=_address(users // 3)),
        "search by beginning": lambda: client.call("admin.users.list", access=admin, search="user-00001"),
        "search by surname": lambda: client.call("admin.users.list", access=admin, search=_name(users // 2, 3)),
        "search in a surname": lambda: client.call("admin.users.list", access=admin, search=_name(7, 3)[1:6]),
        "search of three letters": lambda: client.call("admin.users.list", access=admin, search=_name(7, 3)[1:4]),
    }
    found = {}
    for name, ask in asks.items():
        took = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            reply = await ask()
            took.append((time.perf_counter() - began) * 1000)
            assert reply.ok, (name, reply.body)
        found[name] = median(took)
    return found


@pytest.mark.timeout(7200)
async def test_a_million_users_make_nothing_slow(tmp_path: Path) -> None:
    """`USERS=…` for another number. Every median within one and a half times of that at a thousand, and 3 ms."""
    async with Dev(tmp_path / "data") as dev, gateway(dev.ready) as client:
        await _import(dev, _write(tmp_path / "few.jsonl", range(FEW), HASH))
        few = await _medians(client, FEW)
        began = time.perf_counter()
        done = await _import(dev, _write(tmp_path / "many.jsonl", range(FEW, MANY), HASH))
        assert (done["imported"], done["refused"]) == (MANY - FEW, 0)
        print(f"{MANY - FEW} users in {time.perf_counter() - began:.0f} s")

        async def announced() -> bool:
            async with database(dev.ready) as rows:
                return not await rows.fetchval("SELECT EXISTS (SELECT FROM outbox)")

        await eventually(announced, within_s=3600, what="their events to be announced")
        print(f"announced after {time.perf_counter() - began:.0f} s")
        many = await _medians(client, MANY)
    for name in few:
        print(f"{name:22} {few[name]:8.2f} ms  {many[name]:8.2f} ms")
    slow = {name: (few[name], many[name]) for name in few if many[name] > 1.5 * few[name] + 3}
    assert not slow
