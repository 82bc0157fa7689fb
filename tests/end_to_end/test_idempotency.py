"""The same request many times over: one effect, one answer, and nothing at rest that could open it."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.request import urlopen
from uuid import UUID, uuid4

import pytest_asyncio
from redis.asyncio import Redis

from tests.gateway import PASSWORD, Gateway, Reply, database, new_email
from tests.program import Dev

SHED = {"OVERLOADED", "SERVICE_UNAVAILABLE"}
MANY = 200


def new_key() -> dict[str, str]:
    return {"Idempotency-Key": f"key-{uuid4().hex}"}


async def many(ask: Callable[[], Awaitable[Reply]], count: int = MANY) -> list[Reply]:
    """The same request at once, many times; what was shed is sent again, as its sender would."""

    async def insist() -> Reply:
        reply = await ask()
        async with asyncio.timeout(30):
            while reply.code in SHED:
                await asyncio.sleep(0.1)
                reply = await ask()
        return reply

    return list(await asyncio.gather(*(insist() for _ in range(count))))


def replayed(reply: Reply) -> bool:
    return reply.headers.get("Idempotent-Replayed") == "true"


async def figure(dev: Dev, name: str) -> float:
    """A metric of the running service."""

    def read() -> str:
        with urlopen(f"{dev.ready['httpUrl']}/metrics", timeout=5) as page:
            return str(page.read().decode())

    found = re.search(rf"^{name} (\S+)$", await asyncio.to_thread(read), re.MULTILINE)
    assert found, name
    return float(found[1])


async def count(dev: Dev, statement: str, *arguments: object) -> int:
    async with database(dev.ready) as rows:
        return int(await rows.fetchval(statement, *arguments))


@asynccontextmanager
async def valkey(dev: Dev) -> AsyncIterator[Redis]:
    connection = Redis.from_url(dev.ready["redisUrl"])
    try:
        yield connection
    finally:
        await connection.aclose()


@pytest_asyncio.fixture
async def user(client: Gateway) -> dict[str, Any]:
    return await client.signed_in()


async def test_two_hundred_registrations_of_one_address_make_one_account(dev: Dev, client: Gateway) -> None:
    email = new_email()
    first = await asyncio.gather(*(client.register(email) for _ in range(MANY)))
    codes = [reply.code for reply in first]
    assert codes.count("OK") == 1
    assert set(codes) <= {"OK", "EMAIL_ALREADY_REGISTERED", "OVERLOADED"}
    again = await many(lambda: client.register(email), count=20)
    assert {reply.code for reply in again} == {"EMAIL_ALREADY_REGISTERED"}
    assert await count(dev, "SELECT count(*) FROM users WHERE email = $1", email) == 1
    await client.mail_to(email, "verify-email")
    await client.verified()  # mail goes out in order: had there been another one, it would be here by now
    assert len(client.mails_to(email)) == 1


async def test_two_hundred_requests_with_one_key_are_one_registration(dev: Dev, client: Gateway) -> None:
    email, key = new_email(), new_key()
    hashes = await figure(dev, "password_hashes_total")
    replies = await many(lambda: client.register(email, headers=key))
    assert len({str(reply.data) for reply in replies}) == 1
    assert [replayed(reply) for reply in replies].count(False) == 1
    assert len({reply.body["meta"]["requestId"] for reply in replies}) == MANY
    assert await count(dev, "SELECT count(*) FROM users WHERE email = $1", email) == 1
    assert await figure(dev, "password_hashes_total") == hashes + 1


async def test_a_key_is_bound_to_its_body(client: Gateway) -> None:
    email, key = new_email(), new_key()
    assert (await client.register(email, headers=key)).ok
    other = await client.register(new_email(), headers=key)
    assert (other.code, other.headers["Nats-Service-Error-Code"]) == ("IDEMPOTENCY_KEY_REUSED", "409")
    spaced = b'{ "acceptTerms": true, "lastName": "Lovelace", "firstName": "Ada", "password": "%s", "email": "%s" }' % (
        PASSWORD.encode(),
        email.encode(),
    )
    assert replayed(await client.send("users.v1.auth.register", spaced, headers=key))


async def test_a_key_is_bound_to_its_subject_and_its_caller(client: Gateway, user: dict[str, Any]) -> None:
    key, other = new_key(), await client.signed_in()
    access, foreign = user["tokens"]["accessToken"], other["tokens"]["accessToken"]
    assert not replayed(await client.call("profile.update", access=access, headers=key, firstName="Augusta"))
    assert not replayed(await client.call("me.update", access=access, headers=key, firstName="Augusta"))
    elsewhere = await client.call("profile.update", access=foreign, headers=key, firstName="Augusta")
    assert (replayed(elsewhere), elsewhere.data["profile"]["userId"]) == (False, other["user"]["id"])
    assert replayed(await client.call("profile.update", access=access, headers=key, firstName="Augusta"))


async def test_a_flushed_valkey_forgets_no_key(dev: Dev, client: Gateway) -> None:
    email, key = new_email(), new_key()
    first = await client.register(email, headers=key)
    async with valkey(dev) as connection:
        await connection.flushall()
    again = await client.register(email, headers=key)
    assert (replayed(again), again.data) == (True, first.data)


async def test_a_login_is_given_again_until_its_token_is_used(dev: Dev, client: Gateway) -> None:
    email, key = await client.verified(), new_key()

    async def login() -> Reply:
        return await client.call("auth.login", headers=key, email=email, password=PASSWORD)

    first, again = await login(), await login()
    assert (replayed(first), replayed(again)) == (False, True)
    assert again.data == first.data
    statement = "SELECT count(*) FROM user_sessions WHERE user_id = $1"
    assert await count(dev, statement, UUID(first.data["user"]["id"])) == 1
    assert (await client.call("auth.refresh", refreshToken=first.data["tokens"]["refreshToken"])).ok
    assert (await login()).code == "CONFLICT"


async def test_a_login_is_not_given_again_after_a_minute_or_a_logout(dev: Dev, client: Gateway) -> None:
    email = await client.verified()

    async def login(key: Mapping[str, str]) -> Reply:
        return await client.call("auth.login", headers=key, email=email, password=PASSWORD)

    ended, old = new_key(), new_key()
    found = await login(ended)
    assert (await client.call("auth.logout", access=found.data["tokens"]["accessToken"])).ok
    assert (await login(ended)).code == "CONFLICT"
    user_id = UUID((await login(old)).data["user"]["id"])
    async with database(dev.ready) as rows:
        await rows.execute("UPDATE idempotency_keys SET secret_until = secret_until - interval '61 s'")
    assert (await login(old)).code == "CONFLICT"
    assert await count(dev, "SELECT count(*) FROM user_sessions WHERE user_id = $1", user_id) == 2


async def test_a_refusal_that_left_an_effect_is_given_again(dev: Dev, client: Gateway) -> None:
    email = await client.verified()
    wrong, taken = new_key(), new_key()

    async def fail() -> Reply:
        return await client.call("auth.login", headers=wrong, email=email, password="Wrong-Password-1")

    first, *rest = [await fail() for _ in range(3)]
    assert {reply.code for reply in (first, *rest)} == {"INVALID_CREDENTIALS"}
    assert [replayed(reply) for reply in (first, *rest)] == [False, True, True]
    assert all(reply.body["error"] == first.body["error"] for reply in rest)
    assert rest[0].headers["Nats-Service-Error-Code"] == "401"
    assert await count(dev, "SELECT failed_login_attempts FROM users WHERE email = $1", email) == 1

    twice = [await client.register(email, headers=taken) for _ in range(2)]
    assert [reply.code for reply in twice] == ["EMAIL_ALREADY_REGISTERED"] * 2
    assert [replayed(reply) for reply in twice] == [False, True]


async def test_a_refusal_without_an_effect_does_not_use_the_key_up(client: Gateway) -> None:
    email, key = new_email(), new_key()
    weak: dict[str, Any] = {"email": email, "password": "short", "firstName": "A", "lastName": "L", "acceptTerms": True}
    assert (await client.call("auth.register", headers=key, **weak)).code == "PASSWORD_POLICY_VIOLATION"
    assert (await client.register(email, headers=key)).ok


async def test_fifty_changes_with_one_key_are_one_event(dev: Dev, client: Gateway, user: dict[str, Any]) -> None:
    key, access = new_key(), user["tokens"]["accessToken"]
    replies = await many(lambda: client.call("me.update", access=access, headers=key, firstName="Augusta"), count=50)
    assert len({str(reply.data) for reply in replies}) == 1
    assert [replayed(reply) for reply in replies].count(False) == 1
    statement = "SELECT count(*) FROM events WHERE aggregate_id = $1 AND type = 'ProfileUpdated'"
    assert await count(dev, statement, UUID(user["user"]["id"])) == 1


async def test_a_waiter_gives_up_at_its_own_deadline(client: Gateway) -> None:
    """Requests that wait for another's work are bounded by what they said themselves."""
    key, email = new_key(), new_email()
    hurried = key | {"Timeout-Ms": "1"}
    replies = await asyncio.gather(*(client.register(email, headers=hurried) for _ in range(10)))
    assert {reply.code for reply in replies} <= {"OK", "DEADLINE_EXCEEDED", "EMAIL_ALREADY_REGISTERED"}
    patient = await client.register(email, headers=key)
    assert patient.ok, patient.body


async def test_nothing_at_rest_opens_a_key_or_its_reply(dev: Dev, client: Gateway) -> None:
    email, key = await client.verified(), new_key()
    reply = await client.call("auth.login", headers=key, email=email, password=PASSWORD)
    async with database(dev.ready) as rows:
        dump = "\n".join(row[0] for row in await rows.fetch("SELECT k::text FROM idempotency_keys k"))
    plain = [key["Idempotency-Key"], email, PASSWORD, "refreshToken", "tokenType", *reply.data["tokens"].values()]
    secrets = [str(text) for text in plain if len(str(text)) > 8]
    assert [text for text in secrets if text in dump or text.encode().hex() in dump] == []


async def test_a_logout_whose_reply_was_lost_is_answered_again(client: Gateway) -> None:
    """Its session has ended by then, so its token alone would be refused."""
    access = (await client.signed_in())["tokens"]["accessToken"]
    headers = {"Idempotency-Key": uuid4().hex}
    first = await client.call("auth.logout", access=access, headers=headers)
    again = await client.call("auth.logout", access=access, headers=headers)
    assert (first.data, again.data) == ({}, {})
    assert again.headers["Idempotent-Replayed"] == "true"
    assert (await client.call("auth.logout", access=access, headers={"Idempotency-Key": uuid4().hex})).code == (
        "INVALID_TOKEN"
    )
    assert (await client.call("auth.logout", access=access, headers=headers, other=1)).code == "IDEMPOTENCY_KEY_REUSED"
