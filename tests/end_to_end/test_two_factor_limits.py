"""How often a second-factor code may be tried: by account, over all its sessions, challenges and sources."""

import asyncio
from collections import Counter
from uuid import UUID

import pytest

from tests.authenticator import Authenticator, enrolled
from tests.gateway import PASSWORD, Gateway, Reply, database
from tests.program import Dev

WRONG = "Wrong-Password-1"


def assert_limited(reply: Reply, limit: str) -> None:
    assert (reply.code, reply.body.get("error", {}).get("limit")) == ("RATE_LIMITED", limit), reply.body
    assert reply.body["error"]["retryAfter"] > 0


async def set_wrong_codes(dev: Dev, user_id: UUID, count: int, *, ago: str) -> None:
    """As if so many wrong codes had been shown in a row, the last of them some time ago."""
    async with database(dev.ready) as rows:
        await rows.execute(
            f"UPDATE second_factors SET wrong_codes = $2, last_wrong_at = now() - interval '{ago}' WHERE user_id = $1",
            user_id, count,
        )  # fmt: skip


async def wrong_codes(dev: Dev, user_id: UUID) -> int:
    async with database(dev.ready) as rows:
        return int(await rows.fetchval("SELECT wrong_codes FROM second_factors WHERE user_id = $1", user_id))


async def test_five_wrong_codes_of_an_account_wherever_they_are_shown(limited_client: Gateway) -> None:
    app = await enrolled(limited_client)
    replies = [
        await app.show(headers={"Client-Ip": "192.0.2.60"}, code=app.wrong_code()),
        await app.show(headers={"Client-Ip": "192.0.2.61"}, backupCode="00000000"),
    ]
    call, access = limited_client.call, app.access
    regenerate, code = "two-factor.backup-codes.regenerate", app.wrong_code()
    replies += [
        await call("two-factor.disable", access=access, password=PASSWORD, backupCode="00000000"),
        await call("two-factor.disable", access=access, password=PASSWORD, code=code),
        await call(regenerate, access=access, password=PASSWORD, code=code),
    ]
    assert [reply.code for reply in replies] == ["INVALID_TWO_FACTOR_CODE"] * 5
    assert [reply.headers["RateLimit-Remaining"] for reply in replies] == ["4", "3", "2", "1", "0"]
    assert_limited(await app.show(headers={"Client-Ip": "192.0.2.62"}, code=app.code()), "auth:code")
    off = await limited_client.call("two-factor.disable", access=app.access, password=PASSWORD, code=app.code())
    assert_limited(off, "auth:code")


async def test_wrong_codes_at_once_are_counted_exactly(limited: Dev, limited_client: Gateway) -> None:
    app = await enrolled(limited_client)
    challenges = [await app.challenge() for _ in range(20)]
    calls = [
        limited_client.call("auth.two-factor", challengeToken=token, code=app.wrong_code()) for token in challenges
    ]
    codes = Counter(reply.code for reply in await asyncio.gather(*calls))
    assert codes == {"INVALID_TWO_FACTOR_CODE": 5, "RATE_LIMITED": 15}
    assert await wrong_codes(limited, app.user_id) == 5


async def test_right_codes_use_nothing_up(limited_client: Gateway) -> None:
    app = await enrolled(limited_client)
    for _ in range(4):
        assert (await app.show(code=app.wrong_code())).code == "INVALID_TWO_FACTOR_CODE"
    for _ in range(3):
        assert (await app.show(code=await app.fresh_code())).ok


async def test_a_right_password_uses_up_no_try_of_it_and_wrong_ones_still_count(limited_client: Gateway) -> None:
    app = await enrolled(limited_client)
    source = {"Client-Ip": "192.0.2.63"}
    codes = []
    for password in (WRONG, WRONG, PASSWORD, PASSWORD, PASSWORD, WRONG, WRONG, WRONG, PASSWORD):
        reply = await limited_client.call("auth.login", headers=source, email=app.email, password=password)
        codes.append(reply.code)
    refused = "INVALID_CREDENTIALS"
    assert codes == [refused, refused, "OK", "OK", "OK", refused, refused, refused, "RATE_LIMITED"]


@pytest.mark.parametrize(
    ("count", "ago", "waits"),
    [(9, "1 second", False), (10, "1 second", True), (10, "61 minutes", False), (50, "9 days", True)],
)
async def test_unknown_devices_wait_after_many_wrong_codes_and_known_ones_do_not(
    limited: Dev, limited_client: Gateway, count: int, ago: str, waits: bool
) -> None:
    app = await enrolled(limited_client)
    await set_wrong_codes(limited, app.user_id, count, ago=ago)
    unknown = await app.show(headers={"Device-Token": "of-nobody"}, code=app.code())
    if waits:
        assert_limited(unknown, "auth:code:unknown-device")
        assert await wrong_codes(limited, app.user_id) == count  # a code that is not looked at is no wrong one
        act = await limited_client.call("two-factor.disable", access=app.access, password=PASSWORD, code=app.code())
        assert_limited(act, "auth:code:unknown-device")
        known = {"Device-Token": str(app.tokens["deviceToken"])}
        assert (await app.show(headers=known, code=app.code())).ok
        assert (await app.show(code=await app.fresh_code())).ok  # a right code forgets the wrong ones
    else:
        assert unknown.ok
    assert await wrong_codes(limited, app.user_id) == 0


async def test_a_known_device_is_known_to_its_own_user_alone(limited: Dev, limited_client: Gateway) -> None:
    app, other = [await enrolled(limited_client) for _ in range(2)]
    await set_wrong_codes(limited, app.user_id, 50, ago="1 day")
    reply = await app.show(headers={"Device-Token": str(other.tokens["deviceToken"])}, code=app.code())
    assert_limited(reply, "auth:code:unknown-device")


async def test_of_many_tries_at_once_one_an_hour_is_looked_at(limited: Dev, limited_client: Gateway) -> None:
    app = await enrolled(limited_client)
    challenges = [await app.challenge() for _ in range(20)]
    await set_wrong_codes(limited, app.user_id, 10, ago="61 minutes")
    calls = [
        limited_client.call("auth.two-factor", challengeToken=token, code=app.wrong_code()) for token in challenges
    ]
    codes = Counter(reply.code for reply in await asyncio.gather(*calls))
    assert codes == {"INVALID_TWO_FACTOR_CODE": 1, "RATE_LIMITED": 19}
    assert await wrong_codes(limited, app.user_id) == 11


async def test_wrong_codes_of_a_pending_factor_count_as_well(limited: Dev, limited_client: Gateway) -> None:
    account = await limited_client.signed_in()
    access = account["tokens"]["accessToken"]
    for _ in range(2):  # a new secret is no new count
        begun = (await limited_client.call("two-factor.enable", access=access, password=PASSWORD)).data
        app = Authenticator(limited_client, account, begun["secret"])
        for _ in range(2):
            reply = await limited_client.call("two-factor.verify", access=access, code=app.wrong_code())
            assert reply.code == "INVALID_TWO_FACTOR_CODE"
    assert await wrong_codes(limited, UUID(account["user"]["id"])) == 4
