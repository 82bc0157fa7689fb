"""Guessing and lockout: who guesses is shut out, and nobody can shut the owner out."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio

from adapters.mail_sink import token_of
from tests.gateway import PASSWORD, Gateway, Reply, database, gateway, new_email, stored_events
from tests.program import Dev, eventually

WRONG = "Wrong-Password-1"


async def login(client: Gateway, email: str, source: str, password: str = WRONG, *, device: str | None = None) -> Reply:
    headers = {"Client-Ip": source} | ({"Device-Token": device} if device else {})
    return await client.call("auth.login", headers=headers, email=email, password=password)


async def a_device(client: Gateway, email: str, source: str) -> str:
    """The token of a device from which the owner has signed in."""
    reply = await login(client, email, source, PASSWORD)
    return str(reply.data["tokens"]["deviceToken"])


async def guess_from_everywhere(client: Gateway, email: str, sources: int, *, net: str) -> list[Reply]:
    """Five guesses from each of so many addresses, a source's all at once."""
    replies: list[Reply] = []
    for host in range(sources):
        replies += await asyncio.gather(*(login(client, email, f"{net}.{host}") for _ in range(5)))
    return replies


def told(reply: Reply) -> tuple[Any, ...]:
    """All that a caller can see of a refusal, the seconds and the id apart."""
    error = {name: value for name, value in reply.body["error"].items() if name != "retryAfter"}
    headers = {name: value for name, value in reply.headers.items() if name not in {"Request-Id", "RateLimit-Reset"}}
    return error, headers


async def test_a_pair_stays_locked_for_a_quarter_of_an_hour(limited_client: Gateway) -> None:
    email = await limited_client.verified()
    for _ in range(5):
        assert (await login(limited_client, email, "198.51.100.1")).code == "INVALID_CREDENTIALS"
    refused = await login(limited_client, email, "198.51.100.1", PASSWORD)
    assert (refused.code, refused.body["error"]["limit"]) == ("RATE_LIMITED", "auth:login")
    assert 895 <= refused.body["error"]["retryAfter"] <= 900


async def test_a_known_device_has_tries_of_its_own(limited_client: Gateway) -> None:
    email, office = await limited_client.verified(), "198.51.100.2"
    device = await a_device(limited_client, email, office)
    await asyncio.gather(*(login(limited_client, email, office) for _ in range(6)))
    assert (await login(limited_client, email, office, PASSWORD)).code == "RATE_LIMITED"
    assert (await login(limited_client, email, office, PASSWORD, device=device)).ok
    for _ in range(5):
        await asyncio.gather(*(login(limited_client, new_email(), office) for _ in range(12)))
    assert (await login(limited_client, new_email(), office)).body["error"]["limit"] == "auth:login:source"
    assert (await login(limited_client, email, office, PASSWORD, device=device)).ok


async def test_a_known_device_that_is_locked_is_told_until_when(limited_client: Gateway) -> None:
    email = await limited_client.verified()
    locked = await a_device(limited_client, email, "198.51.100.3")
    other = await a_device(limited_client, email, "198.51.100.3")
    codes = [(await login(limited_client, email, "198.51.100.3", device=locked)).code for _ in range(5)]
    assert codes == ["INVALID_CREDENTIALS"] * 5
    refused = await login(limited_client, email, "198.51.100.4", PASSWORD, device=locked)
    assert (refused.code, refused.headers["Nats-Service-Error-Code"]) == ("ACCOUNT_LOCKED", "423")
    left = datetime.fromisoformat(refused.body["error"]["lockedUntil"]) - datetime.fromisoformat(
        refused.body["meta"]["timestamp"]
    )
    assert timedelta(minutes=14) < left <= timedelta(minutes=15, seconds=1)
    assert (refused.headers["RateLimit-Limit"], refused.headers["RateLimit-Remaining"]) == ("5", "0")
    assert (await login(limited_client, email, "198.51.100.3", PASSWORD, device=other)).ok
    assert (await login(limited_client, email, "198.51.100.3", PASSWORD)).ok


async def test_a_device_of_somebody_else_is_no_known_one(limited_client: Gateway) -> None:
    email, mine = await limited_client.verified(), await limited_client.verified()
    device = await a_device(limited_client, mine, "198.51.100.5")
    for _ in range(5):
        assert (await login(limited_client, email, "198.51.100.5", device=device)).code == "INVALID_CREDENTIALS"
    assert (await login(limited_client, email, "198.51.100.5", PASSWORD, device=device)).code == "RATE_LIMITED"
    assert (await login(limited_client, email, "198.51.100.6", device="no-token-of-ours")).ok is False


async def test_an_attack_from_everywhere_keeps_the_owner_out_of_nothing(limited: Dev, limited_client: Gateway) -> None:
    client, email = limited_client, await limited_client.verified()
    device = await a_device(client, email, "203.0.113.1")
    user_id = (await login(client, email, "203.0.113.1", PASSWORD, device=device)).data["user"]["id"]

    attack = asyncio.create_task(guess_from_everywhere(client, email, 20, net="10.66.0"))
    while not attack.done():
        assert (await login(client, email, "203.0.113.1", PASSWORD, device=device)).ok
    codes = [reply.code for reply in await attack]
    assert (codes.count("INVALID_CREDENTIALS"), codes.count("RATE_LIMITED")) == (50, 50)
    assert (await login(client, email, "203.0.113.1", PASSWORD, device=device)).ok

    new_device = await login(client, email, "203.0.113.2", PASSWORD)
    assert (new_device.code, new_device.body["error"]["limit"]) == ("RATE_LIMITED", "auth:login:account")
    assert 890 <= new_device.body["error"]["retryAfter"] <= 900
    async with database(limited.ready) as rows:
        until = await rows.fetchval("SELECT lockout_until FROM users WHERE id = $1 AND account_locked", UUID(user_id))
    assert until is not None

    mail = await client.mail_to(email, "/unlock")
    opened = await client.call("auth.unlock", headers={"Client-Ip": "203.0.113.2"}, token=token_of(mail))
    known = opened.data["deviceToken"]
    assert (await login(client, email, "203.0.113.2", PASSWORD, device=known)).ok
    assert (await login(client, email, "203.0.113.3", PASSWORD)).ok  # all is cleared, for everybody
    assert (await client.call("auth.unlock", token=token_of(mail))).code == "INVALID_TOKEN"
    async with database(limited.ready) as rows:
        row = await rows.fetchrow(
            "SELECT account_locked, lockout_until, failed_login_attempts FROM users WHERE id = $1", UUID(user_id)
        )
    assert row is not None
    assert tuple(row) == (False, None, 0)

    async def told_of() -> list[Any]:
        events = await stored_events(limited.ready, f"users.events.v1.*.{user_id}")
        return [event for event in events if event["type"] in {"AccountLocked", "AccountUnlocked"}]

    async def both() -> bool:
        return len(await told_of()) >= 2

    await eventually(both, within_s=10, what="the events of lock and unlock")
    locked, unlocked = await told_of()
    assert (locked["type"], unlocked["type"], unlocked["data"]["reason"]) == (
        "AccountLocked",
        "AccountUnlocked",
        "link",
    )
    assert locked["data"]["until"] < locked["data"]["expiresAt"]


async def test_an_attack_tells_nothing_of_whether_there_is_an_account(limited_client: Gateway) -> None:
    client, known, unknown = limited_client, await limited_client.verified(), new_email()
    there = await guess_from_everywhere(client, known, 11, net="10.67.0")
    nowhere = await guess_from_everywhere(client, unknown, 11, net="10.68.0")
    assert sorted(map(str, map(told, there))) == sorted(map(str, map(told, nowhere)))
    late = [await login(client, email, "203.0.113.9", PASSWORD) for email in (known, unknown)]
    assert told(late[0]) == told(late[1])
    waits = [reply.body["error"]["retryAfter"] for reply in late]
    assert all(885 <= wait <= 900 for wait in waits)


async def test_a_reset_lets_the_owner_in_again_as_well(limited_client: Gateway) -> None:
    client, email = limited_client, await limited_client.verified()
    await guess_from_everywhere(client, email, 10, net="10.69.0")
    assert (await login(client, email, "203.0.113.20", PASSWORD)).code == "RATE_LIMITED"
    assert (await client.call("auth.forgot-password", headers={"Client-Ip": "203.0.113.20"}, email=email)).ok
    mail = await client.mail_to(email, "/reset-password")
    changed = "Difference-Engine-1822"
    assert (await client.call("auth.reset-password", token=token_of(mail), newPassword=changed)).ok
    assert (await login(client, email, "203.0.113.20", changed)).ok


@pytest.mark.parametrize("token", ["x", "not-a-token-of-ours"])
async def test_an_unlock_token_that_is_none_opens_nothing(limited_client: Gateway, token: str) -> None:
    assert (await limited_client.call("auth.unlock", token=token)).code == "INVALID_TOKEN"


@pytest_asyncio.fixture(scope="module")
async def hasty(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Dev]:
    """A `dev` whose locks last two seconds."""
    limits = {"LIMIT_LOGIN": "3/2", "LIMIT_LOGIN_ACCOUNT": "6/2", "RATE_LIMITS": "on"}
    env = {f"USER_SERVICE_{name}": value for name, value in limits.items()}
    async with Dev(tmp_path_factory.mktemp("hasty") / "data", **env) as running:
        yield running


async def _lock(client: Gateway, email: str) -> None:
    """Guess until strangers are shut out; those of a lock that has just ended count no more."""

    async def locked() -> bool:
        replies = [await login(client, email, f"10.71.0.{host}") for host in range(4) for _ in range(3)]
        return replies[-1].code == "RATE_LIMITED" and replies[-1].body["error"]["limit"] == "auth:login:account"

    await eventually(locked, within_s=10, what="strangers to be shut out")


async def test_a_lock_ends_by_itself_and_a_sign_in_clears_its_row(hasty: Dev) -> None:
    async with gateway(hasty.ready) as client, database(hasty.ready) as rows:
        email = await client.verified()
        await _lock(client, email)
        assert await rows.fetchval("SELECT account_locked FROM users WHERE email = $1", email)

        async def open_again() -> bool:
            return (await login(client, email, "203.0.113.30", PASSWORD)).ok

        await eventually(open_again, within_s=10, what="the lock to end")
        row = await rows.fetchrow("SELECT account_locked, lockout_until FROM users WHERE email = $1", email)
        assert row is not None
        assert tuple(row) == (False, None)


async def test_every_link_that_a_long_attack_has_mailed_stays_good(hasty: Dev) -> None:
    async with gateway(hasty.ready) as client, database(hasty.ready) as rows:
        email = await client.verified()
        user_id = await rows.fetchval("SELECT id FROM users WHERE email = $1", email)

        async def locked_four_times() -> bool:
            await _lock(client, email)
            found = await rows.fetch(_LOCKS, user_id)
            return len(found) >= 4

        await eventually(locked_four_times, within_s=40, what="four locks")
        assert len({row["token_id"] for row in await rows.fetch(_LOCKS, user_id)}) == 1
        first = await client.mail_to(email, "/unlock")
        device = (await client.call("auth.unlock", token=token_of(first))).data["deviceToken"]
        assert (await login(client, email, "203.0.113.31", PASSWORD, device=device)).ok


_LOCKS = "SELECT data->>'tokenId' AS token_id FROM events WHERE aggregate_id = $1 AND type = 'AccountLocked'"


async def test_who_comes_after_a_try_that_was_cut_off_locks_the_account_in_its_place(
    limited: Dev, limited_client: Gateway
) -> None:
    """The count is full, and the try that filled it ended before it could write that down."""
    email = await limited_client.verified()
    await guess_from_everywhere(limited_client, email, 10, net="198.18.77")
    await limited_client.mail_to(email, "/unlock")
    async with database(limited.ready) as rows:
        await rows.execute("UPDATE users SET account_locked = false, lockout_until = NULL WHERE email = $1", email)
        replies = await asyncio.gather(
            *(login(limited_client, email, f"198.18.78.{host}", PASSWORD) for host in range(5))
        )
        assert {reply.code for reply in replies} == {"RATE_LIMITED"}
        row = await rows.fetchrow("SELECT account_locked, lockout_until, id FROM users WHERE email = $1", email)
        assert row
        assert row["account_locked"]
        locks = "SELECT count(*) FROM events WHERE aggregate_id = $1 AND type = 'AccountLocked'"
        assert await rows.fetchval(locks, row["id"]) == 2
    async with asyncio.timeout(20):
        while len(mails := limited_client.mails_to(email, "/unlock")) < 2:
            await asyncio.sleep(0.05)
    assert (await limited_client.call("auth.unlock", token=token_of(mails[1]))).ok
    assert (await login(limited_client, email, "198.18.79.1", PASSWORD)).ok


@pytest.mark.parametrize("known", [False, True], ids=["any device", "known device"])
async def test_whoever_gets_in_has_all_tries_again(limited_client: Gateway, known: bool) -> None:
    email, source = await limited_client.verified(), f"198.51.100.{91 + known}"
    device = await a_device(limited_client, email, source) if known else None
    for _ in range(3):
        for _ in range(4):
            assert (await login(limited_client, email, source, device=device)).code == "INVALID_CREDENTIALS"
        assert (await login(limited_client, email, source, PASSWORD, device=device)).ok
