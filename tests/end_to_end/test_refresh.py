"""Refresh tokens: spent once, forgiven within a short grace, and the end of a family when somebody else has one too."""

import asyncio
from collections.abc import Mapping
from email.message import EmailMessage
from typing import Any
from uuid import UUID

import jwt
import pytest

from tests.gateway import PASSWORD, Gateway, Reply, database, stored_events
from tests.program import Dev, eventually, until

BROWSER = {"User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"}


async def refreshed(client: Gateway, token: str, headers: Mapping[str, str] = BROWSER) -> Reply:
    return await client.call("auth.refresh", headers=headers, refreshToken=token)


async def tokens_of(client: Gateway) -> tuple[dict[str, Any], dict[str, Any]]:
    """A user and the tokens of a fresh session."""
    found = await client.signed_in(headers=BROWSER)
    return found["user"], found["tokens"]


async def assert_family_is_over(client: Gateway, tokens: Mapping[str, Any], *refresh_tokens: str) -> None:
    for token in (tokens["refreshToken"], *refresh_tokens):
        assert (await refreshed(client, token)).code == "INVALID_TOKEN"
        assert (await client.call("auth.logout", refreshToken=token)).code == "INVALID_TOKEN"
    assert (await client.call("me.get", access=tokens["accessToken"])).code == "INVALID_TOKEN"
    assert (await client.call("auth.verify-token", token=tokens["accessToken"])).data == {"active": False}


async def assert_reuse_was_told(dev: Dev, client: Gateway, user: Mapping[str, Any], session_id: str) -> None:
    """One event on the stream, one mail to the owner."""

    async def told() -> list[dict[str, Any]]:
        return await stored_events(dev.ready, f"users.events.v1.RefreshTokenReused.{user['id']}")

    def warnings() -> list[EmailMessage]:
        return [mail for mail in client.mails_to(user["email"]) if "ended a session" in mail["Subject"]]

    await eventually(told, within_s=15, what="the event")
    assert [event["data"]["sessionId"] for event in await told()] == [session_id]
    await until(warnings, within_s=15, what="the mail")
    assert len(warnings()) == 1


async def test_twenty_refreshes_at_once_give_one_successor(dev: Dev, client: Gateway) -> None:
    _, tokens = await tokens_of(client)
    replies = await asyncio.gather(*(refreshed(client, tokens["refreshToken"]) for _ in range(20)))
    successors = {reply.data["tokens"]["refreshToken"] for reply in replies}
    assert len(successors) == 1
    session = UUID(session_of(tokens["accessToken"]))
    async with database(dev.ready) as rows:
        assert await rows.fetchval("SELECT count(*) FROM refresh_tokens WHERE session_id = $1", session) == 2
    for reply in replies:
        assert (await client.call("me.get", access=reply.data["tokens"]["accessToken"])).ok
    assert (await refreshed(client, successors.pop())).ok


def session_of(access: str) -> str:
    return str(jwt.decode(access, options={"verify_signature": False})["sid"])


async def test_the_old_token_after_its_successor_was_used_ends_the_family(dev: Dev, client: Gateway) -> None:
    user, tokens = await tokens_of(client)
    first = tokens["refreshToken"]
    second = (await refreshed(client, first)).data["tokens"]["refreshToken"]
    third = (await refreshed(client, second)).data["tokens"]["refreshToken"]
    assert (await refreshed(client, first)).code == "INVALID_TOKEN"
    await assert_family_is_over(client, tokens, second, third)
    await assert_reuse_was_told(dev, client, user, session_of(tokens["accessToken"]))
    async with database(dev.ready) as rows:
        ended = await rows.fetchrow("SELECT * FROM user_sessions WHERE user_id = $1", UUID(user["id"]))
    assert ended is not None
    assert (ended["ended_at"] is not None, ended["end_reason"]) == (True, "refresh_token_reused")


async def test_another_browser_within_the_grace_ends_the_family(client: Gateway) -> None:
    _, tokens = await tokens_of(client)
    successor = (await refreshed(client, tokens["refreshToken"])).data["tokens"]["refreshToken"]
    thief = await refreshed(client, tokens["refreshToken"], {"User-Agent": "curl/8"})
    assert thief.code == "INVALID_TOKEN"
    await assert_family_is_over(client, tokens, successor)


async def test_the_grace_is_the_devices_where_it_has_a_token(client: Gateway) -> None:
    _, tokens = await tokens_of(client)
    device = {"Device-Token": tokens["deviceToken"]}
    first = await refreshed(client, tokens["refreshToken"], BROWSER | device)
    again = await refreshed(client, tokens["refreshToken"], {"User-Agent": "updated meanwhile"} | device)
    assert again.data["tokens"]["refreshToken"] == first.data["tokens"]["refreshToken"]


async def test_after_the_grace_a_second_use_ends_the_family(dev: Dev, client: Gateway) -> None:
    _, tokens = await tokens_of(client)
    successor = (await refreshed(client, tokens["refreshToken"])).data["tokens"]["refreshToken"]
    async with database(dev.ready) as rows:
        moved = await rows.execute(
            "UPDATE refresh_tokens SET used_at = used_at - interval '10 s' "
            "WHERE session_id = $1 AND used_at IS NOT NULL",
            UUID(session_of(tokens["accessToken"])),
        )
    assert moved == "UPDATE 1"
    assert (await refreshed(client, tokens["refreshToken"])).code == "INVALID_TOKEN"
    await assert_family_is_over(client, tokens, successor)


async def test_refreshing_and_a_stolen_use_at_once_leave_no_live_token(client: Gateway) -> None:
    """Whatever the order of a race between owner and thief: either one of them has won the grace, or nobody lives."""
    _, tokens = await tokens_of(client)
    owner, thief = await asyncio.gather(
        refreshed(client, tokens["refreshToken"]), refreshed(client, tokens["refreshToken"], {"User-Agent": "curl/8"})
    )
    assert {owner.code, thief.code} == {"OK", "INVALID_TOKEN"}
    won = owner if owner.ok else thief
    assert (await refreshed(client, won.data["tokens"]["refreshToken"])).code == "INVALID_TOKEN"


@pytest.mark.parametrize("by", ["access token", "refresh token"])
async def test_logging_out_ends_the_session_at_once(client: Gateway, by: str) -> None:
    _, tokens = await tokens_of(client)
    if by == "access token":
        reply = await client.call("auth.logout", access=tokens["accessToken"])
    else:
        reply = await client.call("auth.logout", refreshToken=tokens["refreshToken"])
    assert reply.data == {}
    await assert_family_is_over(client, tokens)


async def test_logging_out_without_any_token_is_refused(client: Gateway) -> None:
    assert (await client.call("auth.logout")).code == "AUTHENTICATION_REQUIRED"
    _, tokens = await tokens_of(client)
    assert (await client.call("auth.logout", refreshToken=tokens["accessToken"])).code == "INVALID_TOKEN"
    assert (await client.call("me.get", access=tokens["refreshToken"])).code == "INVALID_TOKEN"


async def test_verify_token_says_nothing_of_what_is_not_live(client: Gateway) -> None:
    user, tokens = await tokens_of(client)
    access = tokens["accessToken"]
    live = (await client.call("auth.verify-token", token=access)).data
    assert (live["active"], live["claims"]["sub"]) == (True, user["id"])
    head, body, signature = access.split(".")
    none = jwt.encode(live["claims"], "", algorithm="none", headers={"typ": "at+jwt"})
    forged = jwt.encode(live["claims"], "k" * 32, algorithm="HS256", headers={"typ": "at+jwt", "kid": "x"})
    for token in (
        "garbage",
        "a.b.c",
        f"{head}.{body}.{signature[::-1]}",
        tokens["refreshToken"],
        none,
        forged,
        "x" * 4096,
    ):
        assert (await client.call("auth.verify-token", token=token)).data == {"active": False}, token
    assert (await client.call("auth.logout", access=access)).ok
    assert (await client.call("auth.verify-token", token=access)).data == {"active": False}


async def test_a_key_of_the_jwks_verifies_an_access_token(client: Gateway) -> None:
    user, tokens = await tokens_of(client)
    keys = jwt.PyJWKSet.from_dict((await client.call("auth.jwks")).data)
    header = jwt.get_unverified_header(tokens["accessToken"])
    assert (header["typ"], header["alg"]) == ("at+jwt", "EdDSA")
    claims = jwt.decode(
        tokens["accessToken"], keys[header["kid"]], algorithms=["EdDSA"], audience="project5-api", issuer="user-service"
    )
    assert (claims["sub"], claims["email"], claims["role"]) == (user["id"], user["email"], "user")
    assert (claims["permissions"], claims["amr"]) == ([], ["pwd"])
    assert claims["exp"] - claims["iat"] == 900
    assert {"sid", "auth_time", "jti", "nbf"} <= set(claims)
    with pytest.raises(jwt.PyJWTError):
        jwt.decode(tokens["refreshToken"], keys[header["kid"]], algorithms=["EdDSA"], audience="project5-api")


async def test_a_session_lives_a_week_or_a_month_when_remembered(client: Gateway) -> None:
    user, tokens = await tokens_of(client)
    assert tokens["refreshExpiresIn"] == 7 * 86_400
    reply = await client.call("auth.login", email=user["email"], password=PASSWORD, rememberMe=True)
    assert reply.data["tokens"]["refreshExpiresIn"] == 30 * 86_400
    assert reply.data["tokens"]["expiresIn"] == 900
