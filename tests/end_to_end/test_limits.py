"""Rate limits as a gateway meets them; every test has addresses and sources of its own."""

import asyncio
import re
from collections.abc import Awaitable
from uuid import UUID

import pytest

from tests.console import browser
from tests.gateway import PASSWORD, Gateway, Reply, database, new_email
from tests.program import Dev, eventually

WRONG = "Wrong-Password-1"


def login(client: Gateway, email: str, source: str, password: str = WRONG) -> Awaitable[Reply]:
    return client.call("auth.login", headers={"Client-Ip": source}, email=email, password=password)


def assert_limited(reply: Reply, limit: str, tries: int, window_s: int) -> None:
    assert (reply.code, reply.headers["Nats-Service-Error-Code"]) == ("RATE_LIMITED", "429"), reply.body
    assert reply.body["error"]["limit"] == limit
    assert 0 < reply.body["error"]["retryAfter"] <= window_s
    assert (reply.headers["RateLimit-Limit"], reply.headers["RateLimit-Remaining"]) == (str(tries), "0")
    assert reply.headers["RateLimit-Reset"] == str(reply.body["error"]["retryAfter"])


@pytest.mark.parametrize("known", [True, False])
async def test_the_sixth_failure_is_not_even_looked_at(limited_client: Gateway, known: bool) -> None:
    email = await limited_client.verified() if known else new_email()
    source = "192.0.2.1" if known else "192.0.2.2"
    codes = [(await login(limited_client, email, source)).code for _ in range(5)]
    assert codes == ["INVALID_CREDENTIALS"] * 5
    assert_limited(await login(limited_client, email, source), "auth:login", 5, 900)
    assert_limited(await login(limited_client, email, source, PASSWORD), "auth:login", 5, 900)
    elsewhere = await login(limited_client, email, "192.0.2.3", PASSWORD)
    assert elsewhere.code == ("OK" if known else "INVALID_CREDENTIALS")  # nobody locks out a stranger


async def test_failures_at_once_are_counted_exactly(limited_client: Gateway) -> None:
    email = await limited_client.verified()
    replies = await asyncio.gather(*(login(limited_client, email, "192.0.2.10") for _ in range(20)))
    codes = [reply.code for reply in replies]
    assert (codes.count("INVALID_CREDENTIALS"), codes.count("RATE_LIMITED")) == (5, 15)


async def test_a_login_that_succeeds_uses_nothing_up(limited_client: Gateway) -> None:
    email = await limited_client.verified()
    for _ in range(2):
        assert [(await login(limited_client, email, "192.0.2.11")).code for _ in range(2)] == [
            "INVALID_CREDENTIALS"
        ] * 2
        codes = [(await login(limited_client, email, "192.0.2.11", PASSWORD)).code for _ in range(4)]
        assert codes == ["OK"] * 4


async def test_a_source_is_limited_over_all_accounts(limited_client: Gateway) -> None:
    replies: list[Reply] = []
    for _ in range(3):
        replies += await asyncio.gather(*(login(limited_client, new_email(), "192.0.2.12") for _ in range(20)))
    assert [reply.code for reply in replies].count("INVALID_CREDENTIALS") == 50
    assert_limited(await login(limited_client, new_email(), "192.0.2.12"), "auth:login:source", 50, 900)


@pytest.mark.parametrize(
    ("sources", "other"),
    [
        (["192.0.2.20"] * 4, "192.0.2.21"),
        (["2001:db8::1", "2001:db8::2", "2001:db8:0:0:ffff::3", "2001:db8::4"], "2001:db8:0:1::1"),
        (["::ffff:192.0.2.22", "192.0.2.22"] * 2, "192.0.2.23"),
    ],
)
async def test_three_registrations_an_hour_from_a_source(
    limited_client: Gateway, sources: list[str], other: str
) -> None:
    replies = [await limited_client.register(headers={"Client-Ip": source}) for source in sources]
    assert [reply.code for reply in replies] == ["OK"] * 3 + ["RATE_LIMITED"]
    assert [reply.headers["RateLimit-Remaining"] for reply in replies] == ["2", "1", "0", "0"]
    assert_limited(replies[3], "auth:register", 3, 3600)
    assert (await limited_client.register(headers={"Client-Ip": other})).ok


async def test_registrations_at_once_are_counted_exactly(limited_client: Gateway) -> None:
    source = {"Client-Ip": "192.0.2.24"}
    replies = await asyncio.gather(*(limited_client.register(headers=source) for _ in range(12)))
    codes = [reply.code for reply in replies]
    assert (codes.count("OK"), codes.count("RATE_LIMITED")) == (3, 9)


async def test_resending_is_silent_past_its_limit(limited: Dev, limited_client: Gateway) -> None:
    email = new_email()
    user_id = (await limited_client.register(email)).data["user"]["id"]
    replies = [await limited_client.call("auth.resend-verification", email=email) for _ in range(5)]
    stranger = await limited_client.call("auth.resend-verification", email=new_email())
    assert [reply.data for reply in (*replies, stranger)] == [{}] * 6
    assert {tuple(sorted(set(reply.headers) - {"Request-Id"})) for reply in (*replies, stranger)} == {()}
    async with database(limited.ready) as rows:
        asked = await rows.fetchval(
            "SELECT count(*) FROM events WHERE aggregate_id = $1 AND type = 'EmailVerificationRequested'", UUID(user_id)
        )
    assert asked == 1 + 3


async def test_an_address_gets_three_mails_of_a_kind_in_an_hour(limited: Dev, limited_client: Gateway) -> None:
    await limited_client.register(email := new_email())
    for sent in range(1, 4):
        async with asyncio.timeout(10):
            while len(limited_client.mails_to(email, "verify-email")) < sent:
                await asyncio.sleep(0.02)
        assert (await limited_client.call("auth.resend-verification", email=email)).ok
    async with database(limited.ready) as rows:

        async def capped() -> bool:
            return bool(await rows.fetchval(_CAPPED, email))

        await eventually(capped, within_s=10, what="the fourth mail to be left out")
    assert len(limited_client.mails_to(email, "verify-email")) == 3


_CAPPED = """
SELECT count(*) FROM inbox i JOIN events e ON e.id = i.event_id JOIN users u ON u.id = e.aggregate_id
WHERE i.group_name = 'email' AND i.outcome = 'capped' AND u.email = $1"""


async def test_the_rest_is_counted_by_caller_and_says_what_remains(limited_client: Gateway) -> None:
    one, other = [(await limited_client.signed_in())["tokens"]["accessToken"] for _ in range(2)]
    headers = [(await limited_client.call("me.get", access=access)).headers for access in (one, one, other)]
    assert [found["RateLimit-Limit"] for found in headers] == ["1000"] * 3
    assert [found["RateLimit-Remaining"] for found in headers] == ["999", "998", "999"]
    assert all(0 < int(found["RateLimit-Reset"]) <= 900 for found in headers)


@pytest.mark.parametrize("operation", ["auth.jwks", "auth.verify-token", "health.check", "health.ready"])
async def test_some_are_not_limited_at_all(limited_client: Gateway, operation: str) -> None:
    reply = await limited_client.call(operation, token="x")
    assert reply.ok
    assert not [name for name in reply.headers if name.startswith("RateLimit")]


async def test_a_fresh_key_for_every_try_is_no_way_around_a_limit(limited_client: Gateway) -> None:
    email = await limited_client.verified()
    codes = []
    for number in range(6):
        headers = {"Client-Ip": "192.0.2.30", "Idempotency-Key": f"a-key-of-{email}-{number}"}
        codes.append((await limited_client.call("auth.login", headers=headers, email=email, password=WRONG)).code)
    assert codes == ["INVALID_CREDENTIALS"] * 5 + ["RATE_LIMITED"]


async def test_the_console_holds_nobody_back_less(limited: Dev, limited_client: Gateway) -> None:
    email = await limited_client.verified()
    async with browser(limited.ready["consoleUrl"]) as guesser:
        for _ in range(5):
            assert (await guesser.sign_in(email, WRONG)).said == "Email or password is wrong."
        page = await guesser.sign_in(email, PASSWORD)
    assert page.status == 401
    assert re.fullmatch(r"Too many requests; wait and try again. Try again in \d+ s.", page.said)
