"""Sessions as their owner sees them: listed, ended, made fresh, disowned; and every path that ends one."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from adapters.mail_sink import token_of
from tests.gateway import PASSWORD, Gateway, Reply, database, new_email, stored_events
from tests.program import Dev, eventually

NEW_PASSWORD = "Difference_Engine#1822"
FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"


async def sign_in(client: Gateway, email: str, *, headers: dict[str, str] | None = None) -> dict[str, Any]:
    found: dict[str, Any] = (await client.call("auth.login", email=email, password=PASSWORD, headers=headers)).data
    return found["tokens"]  # type: ignore[no-any-return]


async def sessions_of(client: Gateway, access: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await client.call("me.sessions.list", access=access)).data
    return found


async def token_in_mail(client: Gateway, email: str, path: str, *, newest: int = 1) -> str:
    """The token behind a path in the newest mail that has it, once there are so many."""

    async def there() -> bool:
        return len(client.mails_to(email, path)) >= newest

    await eventually(there, within_s=20, what=f"a mail with {path}")
    body = client.mails_to(email, path)[-1].get_body(("plain",))
    assert body is not None
    (line,) = [word for word in body.get_content().split() if path in word]
    return str(line).partition("token=")[2]


async def test_sessions_are_listed_and_ended_by_their_owner_alone(client: Gateway) -> None:
    email = await client.verified()
    mine = await sign_in(client, email, headers={"User-Agent": FIREFOX, "Client-Ip": "192.0.2.7"})
    other, third = await sign_in(client, email), await sign_in(client, email)
    listed = await sessions_of(client, mine["accessToken"])
    assert len(listed) == 3
    assert [session["current"] for session in listed] == [False, False, True]
    assert (listed[2]["ipAddress"], listed[2]["deviceInfo"]["browser"]) == ("192.0.2.7", "Firefox")

    stranger = (await client.signed_in())["tokens"]["accessToken"]
    wanted = listed[1]["id"]
    for access, session_id in ((stranger, wanted), (mine["accessToken"], "00000000-0000-7000-8000-000000000000")):
        assert (await client.call("me.sessions.revoke", access=access, sessionId=session_id)).code == "NOT_FOUND"
    assert (await client.call("me.sessions.revoke", access=mine["accessToken"], sessionId=wanted)).data == {}
    assert (await client.call("me.sessions.revoke", access=mine["accessToken"], sessionId=wanted)).code == "NOT_FOUND"
    assert (await client.call("me.get", access=other["accessToken"])).code == "INVALID_TOKEN"

    reply = await client.call("me.sessions.revoke-others", access=mine["accessToken"])
    assert reply.data == {"revoked": 1}
    assert (await client.call("me.get", access=third["accessToken"])).code == "INVALID_TOKEN"
    assert [session["current"] for session in await sessions_of(client, mine["accessToken"])] == [True]
    assert (await client.call("me.sessions.revoke-others", access=mine["accessToken"])).data == {"revoked": 0}
    reply = await client.call("me.sessions.revoke-others", access=mine["accessToken"], includeCurrent=True)
    assert reply.data == {"revoked": 1}
    assert (await client.call("me.get", access=mine["accessToken"])).code == "INVALID_TOKEN"


async def test_a_proof_makes_the_same_session_fresh(dev: Dev, client: Gateway) -> None:
    session = await client.signed_in()
    email, old = session["user"]["email"], session["tokens"]
    before = (await client.call("auth.verify-token", token=old["accessToken"])).data["claims"]
    async with database(dev.ready) as rows:
        await rows.execute(
            "UPDATE user_sessions SET auth_time = now() - interval '1 hour' WHERE id = $1", before["sid"]
        )
    stale = (await client.call("auth.refresh", refreshToken=old["refreshToken"])).data["tokens"]

    wrong = await client.call("me.reauthenticate", access=stale["accessToken"], password=NEW_PASSWORD)
    assert wrong.code == "INVALID_CREDENTIALS"
    fresh = (await client.call("me.reauthenticate", access=stale["accessToken"], password=PASSWORD)).data["tokens"]
    claims = (await client.call("auth.verify-token", token=fresh["accessToken"])).data["claims"]
    assert claims["sid"] == before["sid"]
    assert claims["auth_time"] >= before["auth_time"]
    assert len(await sessions_of(client, fresh["accessToken"])) == 1
    assert fresh["refreshToken"] != stale["refreshToken"]

    # The reply may have been lost: the token from before is good until either is used, and the other is spent then.
    again = (await client.call("auth.refresh", refreshToken=stale["refreshToken"])).data["tokens"]
    assert (await client.call("auth.refresh", refreshToken=fresh["refreshToken"])).code == "INVALID_TOKEN"
    assert (await client.call("auth.refresh", refreshToken=again["refreshToken"])).ok, email


async def test_what_a_new_device_did_can_be_disowned(client: Gateway) -> None:
    email = await client.verified()
    mine = await sign_in(client, email)
    theirs = (
        await client.call(
            "auth.login", email=email, password=PASSWORD, headers={"User-Agent": FIREFOX, "Client-Ip": "198.51.100.9"}
        )
    ).data["tokens"]
    token = await token_in_mail(client, email, "/not-me?", newest=2)  # the first is in the verification mail
    assert (await client.call("auth.not-me", token=token)).data == {}
    assert (await client.call("me.get", access=theirs["accessToken"])).code == "INVALID_TOKEN"
    assert (await client.call("me.get", access=mine["accessToken"])).ok
    for headers in (None, {"Device-Token": theirs["deviceToken"]}):
        reply = await client.call("auth.login", email=email, password=PASSWORD, headers=headers)
        assert reply.code == "PASSWORD_RESET_REQUIRED"
    assert (await client.call("auth.not-me", token=token)).code == "INVALID_TOKEN"

    await client.call("auth.forgot-password", email=email)
    reset = token_of(await client.mail_to(email, "/reset-password"))
    assert (await client.call("auth.reset-password", token=reset, newPassword=NEW_PASSWORD)).ok
    headers = {"Device-Token": theirs["deviceToken"], "User-Agent": FIREFOX}
    reply = await client.call("auth.login", email=email, password=NEW_PASSWORD, headers=headers)
    assert reply.data["tokens"]["deviceToken"], "the stranger's device is known no more"


async def test_an_account_that_a_stranger_opened_goes_by_its_mail_and_the_address_is_free(client: Gateway) -> None:
    email = new_email()
    await client.register(email)
    token = await token_in_mail(client, email, "/not-me?")
    verify = await token_in_mail(client, email, "/verify-email?")
    assert (await client.call("auth.not-me", token=token)).data == {}
    assert (await client.call("auth.verify-email", token=verify)).code == "INVALID_TOKEN"
    assert (await client.call("auth.login", email=email, password=PASSWORD)).code == "INVALID_CREDENTIALS"
    assert (await client.register(email)).ok


async def test_a_verified_account_does_not_go_by_an_old_verification_mail(client: Gateway) -> None:
    email = new_email()
    await client.register(email)
    token = await token_in_mail(client, email, "/not-me?")
    verify = await token_in_mail(client, email, "/verify-email?")
    assert (await client.call("auth.verify-email", token=verify)).ok
    assert (await client.call("auth.not-me", token=token)).code == "INVALID_TOKEN"
    assert (await client.call("auth.login", email=email, password=PASSWORD)).ok


@pytest.mark.parametrize(
    "state",
    ["last_active_at = now() - interval '15 days'", "created_at = now() - interval '91 days'", "expires_at = now()"],
)
async def test_a_session_past_its_time_is_neither_shown_nor_taken(dev: Dev, client: Gateway, state: str) -> None:
    email = await client.verified()
    old = await sign_in(client, email)
    async with database(dev.ready) as rows:
        await rows.execute(
            f"UPDATE user_sessions SET {state} WHERE user_id = (SELECT id FROM users WHERE email = $1)", email
        )
    mine = await sign_in(client, email)
    assert len(await sessions_of(client, mine["accessToken"])) == 1
    assert (await client.call("auth.refresh", refreshToken=old["refreshToken"])).code == "INVALID_TOKEN"
    assert (await client.call("auth.verify-token", token=old["accessToken"])).data == {"active": False}


@dataclass
class Held:
    """A session that is about to end, and what it takes to end it."""

    client: Gateway
    email: str
    user_id: str
    tokens: dict[str, Any]
    dev: Dev

    async def call(self, operation: str, **body: object) -> Reply:
        reply = await self.client.call(operation, access=self.tokens["accessToken"], **body)  # type: ignore[arg-type]
        assert reply.ok, reply.body
        return reply

    async def as_admin(self, operation: str, **body: object) -> Reply:
        admin = await self.client.admin()
        reply = await self.client.call(operation, access=admin, userId=self.user_id, reason="asked", **body)  # type: ignore[arg-type]
        assert reply.ok, reply.body
        return reply

    async def by_mail(self, ask: str, path: str, answer: str, **body: object) -> None:
        assert (await self.client.call(ask, email=self.email)).ok
        token = await token_in_mail(self.client, self.email, path)
        assert (await self.client.call(answer, token=token, **body)).ok  # type: ignore[arg-type]


async def _reuse(held: Held) -> None:
    first = held.tokens["refreshToken"]
    second = (await held.client.call("auth.refresh", refreshToken=first)).data["tokens"]["refreshToken"]
    assert (await held.client.call("auth.refresh", refreshToken=second)).ok
    assert (await held.client.call("auth.refresh", refreshToken=first)).code == "INVALID_TOKEN"


async def _past_the_cap(held: Held) -> None:
    for _ in range(10):
        await sign_in(held.client, held.email)


async def _not_me(held: Held) -> None:
    await held.client.call("auth.logout", refreshToken=held.tokens["refreshToken"])
    held.tokens = await sign_in(held.client, held.email, headers={"Client-Ip": "198.51.100.9"})
    token = await token_in_mail(held.client, held.email, "/not-me?", newest=2)
    assert (await held.client.call("auth.not-me", token=token)).ok


async def _change_from_elsewhere(held: Held) -> None:
    other = await sign_in(held.client, held.email)
    reply = await held.client.call(
        "me.change-password", access=other["accessToken"], currentPassword=PASSWORD, newPassword=NEW_PASSWORD
    )
    assert reply.ok, reply.body


async def _revoke_own(held: Held) -> None:
    (session,) = await sessions_of(held.client, held.tokens["accessToken"])
    await held.call("me.sessions.revoke", sessionId=session["id"])


ENDS: dict[str, Callable[[Held], Awaitable[object]]] = {
    "logout": lambda held: held.call("auth.logout"),
    "logout by the refresh token": lambda held: held.client.call(
        "auth.logout", refreshToken=held.tokens["refreshToken"]
    ),
    "revoke": _revoke_own,
    "revoke all": lambda held: held.call("me.sessions.revoke-others", includeCurrent=True),
    "a spent refresh token": _reuse,
    "more sessions than the cap": _past_the_cap,
    "not me": _not_me,
    "reset": lambda held: held.by_mail(
        "auth.forgot-password", "/reset-password?", "auth.reset-password", newPassword=NEW_PASSWORD
    ),
    "a change of the password elsewhere": _change_from_elsewhere,
}


@pytest.mark.parametrize("path", ENDS)
async def test_whatever_ends_a_session_says_so_and_its_tokens_are_refused(dev: Dev, client: Gateway, path: str) -> None:
    session = await client.signed_in()
    user = session["user"]
    held = Held(client, user["email"], user["id"], session["tokens"], dev)
    assert (await client.call("me.get", access=held.tokens["accessToken"])).ok
    await ENDS[path](held)
    access, refresh = held.tokens["accessToken"], held.tokens["refreshToken"]
    assert (await client.call("me.get", access=access)).code == "INVALID_TOKEN"
    assert (await client.call("auth.verify-token", token=access)).data == {"active": False}
    assert (await client.call("auth.refresh", refreshToken=refresh)).code == "INVALID_TOKEN"

    async def told() -> bool:
        events = await stored_events(dev.ready, f"users.events.v1.*.{user['id']}")
        return any(event["type"] in {"SessionRevoked", "UserLoggedOut"} for event in events)

    await eventually(told, within_s=10, what="the event of the session's end")


async def test_twenty_sign_ins_at_once_never_leave_more_than_the_cap(dev: Dev, client: Gateway) -> None:
    """Fifty rounds of twenty callers."""
    email = await client.verified()
    async with database(dev.ready) as rows:
        for _ in range(50):
            replies = await asyncio.gather(
                *(client.call("auth.login", email=email, password=PASSWORD) for _ in range(20))
            )
            assert {reply.code for reply in replies} <= {"OK", "OVERLOADED"}
            live = await rows.fetchval(
                "SELECT count(*) FROM user_sessions s JOIN users u ON u.id = s.user_id "
                "WHERE u.email = $1 AND s.ended_at IS NULL", email,
            )  # fmt: skip
            assert live == 10


async def test_a_refresh_token_used_by_many_at_once_has_one_successor(client: Gateway) -> None:
    """Fifty rounds of twenty callers: one family, and one next token."""
    tokens = (await client.signed_in())["tokens"]
    for _ in range(50):
        replies = await asyncio.gather(
            *(client.call("auth.refresh", refreshToken=tokens["refreshToken"]) for _ in range(20))
        )
        assert {reply.code for reply in replies} == {"OK"}
        assert len({reply.data["tokens"]["refreshToken"] for reply in replies}) == 1
        tokens = replies[0].data["tokens"]


async def test_a_reused_refresh_token_ends_the_family_once(dev: Dev, client: Gateway) -> None:
    """Fifty rounds of twenty thieves."""
    email = await client.verified()
    for _ in range(50):
        first = await sign_in(client, email)
        second = (await client.call("auth.refresh", refreshToken=first["refreshToken"])).data["tokens"]
        assert (await client.call("auth.refresh", refreshToken=second["refreshToken"])).ok
        replies = await asyncio.gather(
            *(client.call("auth.refresh", refreshToken=first["refreshToken"]) for _ in range(20))
        )
        assert {reply.code for reply in replies} == {"INVALID_TOKEN"}
    async with database(dev.ready) as rows:
        told = await rows.fetchval(
            "SELECT count(*) FROM events WHERE type = 'RefreshTokenReused' AND aggregate_id = "
            "(SELECT id FROM users WHERE email = $1)", email,
        )  # fmt: skip
    assert told == 50


async def test_a_verification_link_used_by_many_at_once_verifies_once(dev: Dev, client: Gateway) -> None:
    """Fifty rounds of twenty callers on a link that is opened again."""
    email = new_email()
    await client.register(email)
    token = await token_in_mail(client, email, "/verify-email?")
    async with database(dev.ready) as rows:
        for _ in range(50):
            replies = await asyncio.gather(*(client.call("auth.verify-email", token=token) for _ in range(20)))
            assert sorted(reply.code for reply in replies) == ["INVALID_TOKEN"] * 19 + ["OK"]
            await rows.execute("UPDATE links SET used_at = NULL WHERE address = $1 AND purpose = 'verification'", email)
        verified = await rows.fetchval(
            "SELECT count(*) FROM events WHERE type = 'EmailVerified' AND aggregate_id = "
            "(SELECT id FROM users WHERE email = $1)", email,
        )  # fmt: skip
    assert verified == 1
