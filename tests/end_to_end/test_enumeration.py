"""Known and unknown addresses are answered alike, by bytes and by time; `make soak` measures the same with more tries.

So few tries, on a machine that does other things beside them, can show a tell-tale difference alone: the bound is four
standard deviations of the statistic, which chance passes once in some sixteen thousand runs.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import bcrypt
import pytest
import pytest_asyncio

from tests.gateway import PASSWORD, Gateway, database, gateway, new_email
from tests.program import Dev, command, eventually
from tests.telltale import MEASURED, OPERATIONS, compare, deviation_of_auc, known_addresses

TRIES = 40


@pytest_asyncio.fixture(scope="module")
async def measured(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Dev]:
    async with Dev(tmp_path_factory.mktemp("measured") / "data", **MEASURED) as running:
        yield running


@pytest_asyncio.fixture
async def alike(measured: Dev) -> AsyncIterator[Gateway]:
    async with gateway(measured.ready) as found:
        yield found


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_a_known_and_an_unknown_address_are_answered_alike(alike: Gateway, operation: str) -> None:
    known = await known_addresses(alike, 10, verified=operation != "resend")
    verdict = await compare(alike, OPERATIONS[operation], known, tries=TRIES, seed=1)
    assert verdict.answers == 1
    assert verdict.auc_within(4 * deviation_of_auc(TRIES)), verdict


async def test_no_deadline_tells_how_long_the_work_took(alike: Gateway) -> None:
    """One that is shorter than the step is refused before any work, whoever is asked for."""
    known = await alike.verified()
    for timeout_ms in ("1", "20", "99"):
        replies = [
            await alike.call("auth.login", headers={"Timeout-Ms": timeout_ms}, email=email, password="Wrong-1")
            for email in (known, new_email())
        ]
        assert [reply.code for reply in replies] == ["DEADLINE_EXCEEDED"] * 2


async def test_only_a_refused_sign_in_is_held_back(tmp_path: Path) -> None:
    step = {"USER_SERVICE_ANSWER_MS_STEP": "2000"}
    async with Dev(tmp_path / "data", **step) as running, gateway(running.ready) as client:
        email, loop = await client.verified(), asyncio.get_running_loop()

        async def took(password: str) -> float:
            began = loop.time()
            await client.call("auth.login", email=email, password=password)
            return loop.time() - began

        assert min([await took(PASSWORD) for _ in range(3)]) < 2
        assert await took("Wrong-Password-1") >= 2


async def test_whose_hash_came_from_elsewhere_is_not_told_by_time(tmp_path: Path) -> None:
    """A check of theirs takes longer than ours: everybody's refusal waits for it, as long as there are such hashes."""
    email = new_email()
    foreign = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(10)).decode()
    line = {"email": email, "firstName": "Ada", "lastName": "L", "passwordHash": foreign, "emailVerified": True}
    (tmp_path / "users.jsonl").write_text(json.dumps(line))
    async with Dev(tmp_path / "data", **MEASURED) as running, gateway(running.ready) as client:
        words = ("users", "import", str(tmp_path / "users.jsonl"), "--ready-file", str(running.ready_file))
        code, _, err = await command(*words)
        assert code == 0, err

        async def took_s(address: str) -> float:
            began = asyncio.get_running_loop().time()
            reply = await client.call("auth.login", email=address, password="Wrong-Password-1")
            assert reply.code == "INVALID_CREDENTIALS"
            return asyncio.get_running_loop().time() - began

        async with database(running.ready) as rows:
            cost_s = float(await rows.fetchval("SELECT max(took_ms) FROM foreign_hashes")) / 1000
        least_s = max(0.2, 3 * cost_s)

        async def waits_for_it() -> bool:
            return min([await took_s(new_email()) for _ in range(3)]) >= least_s

        await eventually(waits_for_it, within_s=30, what="the service to know of the hash")
        known, unknown = [await took_s(email) for _ in range(5)], [await took_s(new_email()) for _ in range(5)]
    assert min(*known, *unknown) >= least_s
