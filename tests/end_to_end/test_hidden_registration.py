"""Where registered emails are hidden, and whoever registers is told nothing of others."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest
import pytest_asyncio

from adapters.mail_sink import token_of
from tests.gateway import PASSWORD, Gateway, Reply, database, gateway, new_email, registration
from tests.program import Dev, command


@pytest_asyncio.fixture(scope="module")
async def hiding(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Dev]:
    env = {"USER_SERVICE_HIDE_REGISTERED_EMAILS": "true", "USER_SERVICE_RATE_LIMITS": "on"}
    env |= {"USER_SERVICE_LIMIT_REGISTER": "1000/60"}
    async with Dev(tmp_path_factory.mktemp("hiding") / "data", **env) as running:
        yield running


@pytest_asyncio.fixture
async def hidden(hiding: Dev) -> AsyncIterator[Gateway]:
    async with gateway(hiding.ready) as found:
        yield found


@pytest_asyncio.fixture
async def rows(hiding: Dev) -> AsyncIterator[asyncpg.Connection]:
    async with database(hiding.ready) as found:
        yield found


def told(reply: Reply) -> tuple[Any, ...]:
    """All that a caller can see, times and the request's own id apart."""
    body = {name: value for name, value in reply.body.items() if name != "meta"}
    if "error" in body:
        body["error"] = {name: value for name, value in body["error"].items() if name != "retryAfter"}
    varying = {"Request-Id", "RateLimit-Reset", "RateLimit-Remaining"}
    return body, {name: value for name, value in reply.headers.items() if name not in varying}


async def id_of(rows: asyncpg.Connection, email: str) -> UUID:
    found: UUID = await rows.fetchval("SELECT id FROM users WHERE email = $1 AND status = 'active'", email)
    return found


async def test_a_taken_address_is_answered_like_a_free_one_and_its_owner_is_told(hidden: Gateway) -> None:
    taken, free = await hidden.verified(), new_email()
    replies = [await hidden.register(email) for email in (taken, free)]
    assert replies[0].data == {}
    assert told(replies[0]) == told(replies[1])
    await hidden.mail_to(free, "verify-email")
    async with asyncio.timeout(10):
        while len(hidden.mails_to(taken)) < 3:  # verification, welcome, and that somebody tried
            await asyncio.sleep(0.02)
    assert len(hidden.mails_to(taken, "verify-email")) == 1


@pytest.mark.parametrize("case", [str.upper, str.title])
async def test_another_spelling_of_a_taken_address_is_taken(
    hidden: Gateway, rows: asyncpg.Connection, case: Callable[[str], str]
) -> None:
    taken = await hidden.verified()
    assert (await hidden.register(case(taken))).data == {}
    assert await rows.fetchval("SELECT count(*) FROM users WHERE lower(email) = $1", taken) == 1


async def test_a_second_registration_changes_nothing_of_the_first(hidden: Gateway) -> None:
    taken = await hidden.verified()
    body = registration(taken) | {"password": "Difference-Engine-1822", "firstName": "Mallory"}
    assert (await hidden.call("auth.register", **body)).data == {}
    assert (
        await hidden.call("auth.login", email=taken, password="Difference-Engine-1822")
    ).code == "INVALID_CREDENTIALS"
    assert (await hidden.call("auth.login", email=taken, password=PASSWORD)).data["user"]["firstName"] == "Ada"


async def test_signing_in_after_registering_tells_nothing(hidden: Gateway) -> None:
    """Whoever registers with a password and then signs in by it learns nothing of who had the address before."""
    taken, free = await hidden.verified(), new_email()
    mine = "Difference-Engine-1822"
    for email in (taken, free):
        assert (await hidden.call("auth.register", **registration(email) | {"password": mine})).data == {}
    for source in ("192.0.2.90", "192.0.2.91"):
        pairs = []
        for email in (taken, free, new_email()):
            headers = {"Client-Ip": source}
            tries = [await hidden.call("auth.login", headers=headers, email=email, password=mine) for _ in range(6)]
            assert [one.code for one in tries] == ["INVALID_CREDENTIALS"] * 5 + ["RATE_LIMITED"]
            pairs.append([told(one) for one in tries])
        assert pairs[0] == pairs[1] == pairs[2]


async def test_who_has_not_verified_is_invisible(hidden: Gateway, rows: asyncpg.Connection) -> None:
    access = (await hidden.signed_in())["tokens"]["accessToken"]
    await hidden.register(email := new_email())
    await hidden.mail_to(email, "verify-email")
    user_id = str(await id_of(rows, email))
    assert (await hidden.call("profile.get", access=access, userId=user_id)).code == "NOT_FOUND"
    await hidden.call("auth.verify-email", token=token_of(await hidden.mail_to(email, "verify-email")))
    assert (await hidden.call("profile.get", access=access, userId=user_id)).ok


async def test_a_reply_given_again_tells_nothing_either(hidden: Gateway) -> None:
    taken, free = await hidden.verified(), new_email()
    again = []
    for email in (taken, free):
        key = {"Idempotency-Key": f"a-key-nobody-guesses-{email}"}
        replies = [await hidden.register(email, headers=key) for _ in range(2)]
        assert [reply.headers.get("Idempotent-Replayed") for reply in replies] == [None, "true"]
        again.append(told(replies[1]))
    assert again[0] == again[1]


async def test_many_at_once_for_one_address_make_one_account(hidden: Gateway, rows: asyncpg.Connection) -> None:
    email = new_email()
    replies = await asyncio.gather(*(hidden.register(email) for _ in range(10)))
    assert [reply.data for reply in replies] == [{}] * 10
    assert await rows.fetchval("SELECT count(*) FROM users WHERE email = $1", email) == 1


async def abandon(rows: asyncpg.Connection, email: str) -> UUID:
    """As if the day of the verification link were over."""
    user_id = await id_of(rows, email)
    await rows.execute("UPDATE links SET expires_at = now() - interval '1 second' WHERE user_id = $1", user_id)
    return user_id


@pytest.mark.parametrize("hides", [True, False])
async def test_an_account_that_nobody_verified_in_time_gives_way(hiding: Dev, dev: Dev, hides: bool) -> None:
    ready, changed = (hiding if hides else dev).ready, "Difference-Engine-1822"
    async with gateway(ready) as client, database(ready) as rows:
        await client.register(email := new_email())
        first = await client.mail_to(email, "verify-email")
        before = await abandon(rows, email)
        bodies = [registration(email) | {"password": changed, "firstName": f"Ada{word}"} for word in ("One", "Two")]
        replies = await asyncio.gather(*(client.call("auth.register", **body) for body in bodies))
        assert sorted(reply.code for reply in replies) == (
            ["OK", "OK"] if hides else ["EMAIL_ALREADY_REGISTERED", "OK"]
        )
        after = await id_of(rows, email)
        assert after != before
        assert await rows.fetchval("SELECT status FROM users WHERE id = $1", before) == "deleted"
        assert (await client.call("auth.verify-email", token=token_of(first))).code == "INVALID_TOKEN"
        async with asyncio.timeout(10):
            while len(client.mails_to(email, "verify-email")) < 2:
                await asyncio.sleep(0.02)
        second = client.mails_to(email, "verify-email")[1]
        assert (await client.call("auth.verify-email", token=token_of(second))).ok
        assert (await client.call("auth.login", email=email, password=changed)).ok


async def test_an_account_gives_way_no_sooner_than_its_link_ends(dev: Dev, client: Gateway) -> None:
    await client.register(pending := new_email())
    assert (await client.register(pending)).code == "EMAIL_ALREADY_REGISTERED"
    verified = await client.verified()
    async with database(dev.ready) as rows:
        await abandon(rows, verified)
    assert (await client.register(verified)).code == "EMAIL_ALREADY_REGISTERED"


async def test_who_came_in_by_an_import_gives_way_to_nobody(dev: Dev, client: Gateway, tmp_path: Path) -> None:
    """Also where a stranger has had them mailed a link, and let it end."""
    email = new_email()
    file = tmp_path / "users.jsonl"
    file.write_text(json.dumps({"email": email, "firstName": "Ada", "lastName": "Lovelace"}))
    code, _, err = await command("users", "import", str(file), "--ready-file", str(dev.ready_file))
    assert code == 0, err
    assert (await client.call("auth.resend-verification", email=email)).ok
    await client.mail_to(email, "verify-email")
    async with database(dev.ready) as rows:
        imported = await abandon(rows, email)
        assert (await client.register(email)).code == "EMAIL_ALREADY_REGISTERED"
        assert await rows.fetchval("SELECT status FROM users WHERE id = $1", imported) == "active"
