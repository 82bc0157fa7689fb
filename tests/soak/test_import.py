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

import asyncpg
import bcrypt
import pytest
from argon2 import PasswordHasher

from tests.faults.ledger import GROUPS
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


async def _all_have_heard(client: Gateway, rows: asyncpg.Connection) -> None:
    """Every event is announced, and every group has answered for it."""
    async with asyncio.timeout(5000):
        while await rows.fetchval("SELECT EXISTS (SELECT FROM outbox)"):
            await asyncio.sleep(1)
        for group in GROUPS:
            while (
                at := await client.nc.jetstream().consumer_info("USER_EVENTS", group)
            ).num_pending + at.num_ack_pending:
                await asyncio.sleep(1)


Ask = Callable[[], Awaitable[Reply]]


async def _asks(client: Gateway, users: int) -> dict[str, Ask]:
    """The same of each house; the deep page lies in its middle, what is searched for has one find, some, or many."""
    admin = await client.admin()
    access = (await client.call("auth.login", email=_address(1), password=PASSWORD)).data["tokens"]["accessToken"]
    cursor = None
    for _ in range(users // 200):
        page = await client.call("admin.users.list", access=admin, limit=100, cursor=cursor)
        cursor = page.body["pagination"]["nextCursor"]

    def search(text: str) -> Ask:
        return lambda: client.call("admin.users.list", access=admin, search=text)

    surname = _name(7, 3)
    return {
        "login": lambda: client.call("auth.login", email=_address(FEW // 2), password=PASSWORD),
        "me.get": lambda: client.call("me.get", access=access),
        "first page": lambda: client.call("admin.users.list", access=admin),
        "deep page": lambda: client.call("admin.users.list", access=admin, cursor=cursor),
        "search by address": search(_address(FEW // 3)),
        "search by beginning": search("user-00001"),
        "search by surname": search(_name(FEW // 2, 3)),
        "search in a surname": search(surname[1:6]),
        "search of three letters": search(surname[1:4]),
    }


async def _took_ms(ask: Ask) -> float:
    began = time.perf_counter()
    reply = await ask()
    assert reply.ok, reply.body
    return (time.perf_counter() - began) * 1000


@pytest.mark.timeout(7200)
async def test_a_million_users_make_nothing_slow(tmp_path: Path) -> None:
    """`USERS=…` for another number. The house with all of them and one with a thousand are asked in turns, so that both
    meet the same noise: every median is within one and a half times of the other."""
    async with Dev(tmp_path / "many") as many, gateway(many.ready) as asked_many:
        began = time.perf_counter()
        done = await _import(many, _write(tmp_path / "many.jsonl", range(MANY), HASH))
        assert (done["imported"], done["refused"]) == (MANY, 0)
        print(f"{MANY} users in {time.perf_counter() - began:.0f} s")

        async with database(many.ready) as rows:
            await _all_have_heard(asked_many, rows)
        print(f"handled by every group after {time.perf_counter() - began:.0f} s")
        async with Dev(tmp_path / "few") as few, gateway(few.ready) as asked_few:
            await _import(few, _write(tmp_path / "few.jsonl", range(FEW), HASH))
            async with database(few.ready) as rows:
                await _all_have_heard(asked_few, rows)
            slow = await _compare(await _asks(asked_few, FEW), await _asks(asked_many, MANY))
    assert not slow


async def _compare(few: dict[str, Ask], many: dict[str, Ask]) -> list[str]:
    """Print the medians; what is slow by them."""
    slow = []
    for name, ask in few.items():
        took = [(await _took_ms(ask), await _took_ms(many[name])) for _ in range(ROUNDS)]
        at_few, at_many = (median(column) for column in zip(*took, strict=True))
        print(f"{name:24} {at_few:7.2f} ms {at_many:7.2f} ms  x{at_many / at_few:.2f}", flush=True)
        if at_many > 1.5 * at_few:
            slow.append(name)
    return slow
