"""Sessions as their owner sees them: listed, ended, made fresh, disowned."""

import asyncio
import json
from typing import Any
from uuid import UUID, uuid4

import jwt
import pytest

from adapters.mail_sink import token_of
from adapters.tokens import hash_of
from tests.gateway import PASSWORD, Gateway, Reply, database, new_email, stored_events
from tests.program import Dev, eventually

NEW_PASSWORD = "Difference_Engine#1822"
FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"


async def sign_in(client: Gateway, email: str, *, headers: dict[str, str] | None = None) -> dict[str, Any]:
    found: dict[str, Any] = (await client.call("auth.login", email=email, password=PASSWORD, headers=headers)).data
    return found["tokens"]  # type: ignore[no-any-return]


def session_of(tokens: dict[str, Any]) -> str:
    return str(jwt.decode(tokens["accessToken"], options={"verify_signature": False})["sid"])


async def claims_of(client: Gateway, access: str) -> dict[str, Any]:
    found: dict[str, Any] = (await client.call("auth.verify-token", token=access)).data["claims"]
    return found


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
    old = (await client.signed_in())["tokens"]
    before = await claims_of(client, old["accessToken"])
    async with database(dev.ready) as rows:
        await rows.execute(
            "UPDATE user_sessions SET auth_time = now() - interval '1 hour' WHERE id = $1", UUID(before["sid"])
        )
    stale = (await client.call("auth.refresh", refreshToken=old["refreshToken"])).data["tokens"]

    wrong = await client.call("me.reauthenticate", access=stale["accessToken"], password=NEW_PASSWORD)
    assert wrong.code == "INVALID_CREDENTIALS"
    assert (await claims_of(client, stale["accessToken"]))["auth_time"] < before["auth_time"]
    fresh = (await client.call("me.reauthenticate", access=stale["accessToken"], password=PASSWORD)).data["tokens"]
    after = await claims_of(client, fresh["accessToken"])
    assert (after["sid"], after["auth_time"] >= before["auth_time"]) == (before["sid"], True)
    assert len(await sessions_of(client, fresh["accessToken"])) == 1
    assert fresh["refreshToken"] != stale["refreshToken"]
    next_ = (await client.call("auth.refresh", refreshToken=fresh["refreshToken"])).data["tokens"]
    assert (await claims_of(client, next_["accessToken"]))["auth_time"] == after["auth_time"]


async def test_within_the_grace_the_tokens_from_before_a_proof_get_the_one_that_came_with_it(client: Gateway) -> None:
    """The reply may be lost, and other tabs may refresh meanwhile: nobody is signed out by a proof."""
    tokens = (await client.signed_in())["tokens"]
    first = tokens["refreshToken"]
    second = (await client.call("auth.refresh", refreshToken=first)).data["tokens"]["refreshToken"]
    fresh = (await client.call("me.reauthenticate", access=tokens["accessToken"], password=PASSWORD)).data["tokens"]
    for token in (first, second, second, first):
        again = await client.call("auth.refresh", refreshToken=token)
        assert again.data["tokens"]["refreshToken"] == fresh["refreshToken"]
    assert (await client.call("auth.refresh", refreshToken=fresh["refreshToken"])).ok


@pytest.mark.parametrize("late", ["from another device", "after the grace", "after the next was used"])
async def test_a_proof_spends_the_refresh_token_from_before(dev: Dev, client: Gateway, late: str) -> None:
    """Whoever else holds it must not come by a session that its owner has just made fresh."""
    tokens = (await client.signed_in())["tokens"]
    fresh = (await client.call("me.reauthenticate", access=tokens["accessToken"], password=PASSWORD)).data["tokens"]
    headers = {"User-Agent": "curl/8"} if late == "from another device" else None
    if late == "after the grace":
        async with database(dev.ready) as rows:
            await rows.execute(
                "UPDATE refresh_tokens SET used_at = used_at - interval '10 s' WHERE hash = $1",
                hash_of(tokens["refreshToken"]),
            )
    if late == "after the next was used":
        fresh = (await client.call("auth.refresh", refreshToken=fresh["refreshToken"])).data["tokens"]
    reply = await client.call("auth.refresh", refreshToken=tokens["refreshToken"], headers=headers)
    assert reply.code == "INVALID_TOKEN"
    assert (await client.call("me.get", access=fresh["accessToken"])).code == "INVALID_TOKEN"
    assert (await client.call("auth.refresh", refreshToken=fresh["refreshToken"])).code == "INVALID_TOKEN"


async def test_a_proof_is_given_again_to_its_key_until_its_token_is_used(client: Gateway) -> None:
    tokens = (await client.signed_in())["tokens"]
    key = {"Idempotency-Key": uuid4().hex}

    async def prove() -> Reply:
        return await client.call("me.reauthenticate", access=tokens["accessToken"], headers=key, password=PASSWORD)

    first, again = await prove(), await prove()
    assert again.data == first.data
    assert (await client.call("auth.refresh", refreshToken=first.data["tokens"]["refreshToken"])).ok
    assert (await prove()).code == "CONFLICT"


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


async def test_a_session_is_disowned_also_where_it_has_changed_the_password(client: Gateway) -> None:
    """Who came in by a stolen password must not shut out the mailbox's owner by changing it."""
    email = await client.verified()
    await sign_in(client, email)
    theirs = await sign_in(client, email)
    token = await token_in_mail(client, email, "/not-me?", newest=2)
    reply = await client.call(
        "me.change-password", access=theirs["accessToken"], currentPassword=PASSWORD, newPassword=NEW_PASSWORD
    )
    assert reply.ok, reply.body
    assert (await client.call("auth.not-me", token=token)).ok
    assert (await client.call("me.get", access=theirs["accessToken"])).code == "INVALID_TOKEN"
    assert (await client.call("auth.login", email=email, password=NEW_PASSWORD)).code == "PASSWORD_RESET_REQUIRED"


async def test_a_password_that_its_owner_changed_is_not_disowned_by_an_older_mail(client: Gateway) -> None:
    email = await client.verified()
    mine = await sign_in(client, email)
    await sign_in(client, email)
    token = await token_in_mail(client, email, "/not-me?", newest=2)
    reply = await client.call(
        "me.change-password", access=mine["accessToken"], currentPassword=PASSWORD, newPassword=NEW_PASSWORD
    )
    assert reply.ok, reply.body
    assert (await client.call("auth.not-me", token=token)).code == "INVALID_TOKEN"
    assert (await client.call("auth.login", email=email, password=NEW_PASSWORD)).ok


async def test_whose_token_was_reused_may_disown_what_was_done(client: Gateway) -> None:
    email = await client.verified()
    first = await sign_in(client, email)
    second = (await client.call("auth.refresh", refreshToken=first["refreshToken"])).data["tokens"]
    assert (await client.call("auth.refresh", refreshToken=second["refreshToken"])).ok
    assert (await client.call("auth.refresh", refreshToken=first["refreshToken"])).code == "INVALID_TOKEN"
    token = await token_in_mail(client, email, "/not-me?", newest=2)
    assert (await client.call("auth.not-me", token=token)).data == {}
    assert (await client.call("auth.login", email=email, password=PASSWORD)).code == "PASSWORD_RESET_REQUIRED"


async def test_an_account_that_a_stranger_opened_goes_by_its_mail_and_the_address_is_free(
    dev: Dev, client: Gateway
) -> None:
    email = new_email()
    first = (await client.register(email)).data["user"]
    token = await token_in_mail(client, email, "/not-me?")
    verify = await token_in_mail(client, email, "/verify-email?")
    assert (await client.call("auth.not-me", token=token)).data == {}
    assert (await client.call("auth.verify-email", token=verify)).code == "INVALID_TOKEN"
    assert (await client.call("auth.login", email=email, password=PASSWORD)).code == "INVALID_CREDENTIALS"
    assert (await client.call("auth.not-me", token=token)).code == "INVALID_TOKEN"
    again = await client.register(email)
    assert again.data["user"]["id"] != first["id"]

    async def told() -> bool:
        events = await stored_events(dev.ready, f"users.events.v1.UserDeleted.{first['id']}")
        return [event["data"]["by"] for event in events] == ["user"]

    await eventually(told, within_s=10, what="the event")


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


@pytest.mark.parametrize("use", ["me.get", "auth.verify-token"])
async def test_who_is_active_is_not_idle(dev: Dev, client: Gateway, use: str) -> None:
    """The use of an access token counts, as well where a gateway asks about one; no version tells of it."""
    tokens = (await client.signed_in())["tokens"]
    session_id = UUID(session_of(tokens))
    async with database(dev.ready) as rows:
        version = "SELECT version FROM users u JOIN user_sessions s ON s.user_id = u.id WHERE s.id = $1"
        before = await rows.fetchval(version, session_id)
        await rows.execute(
            "UPDATE user_sessions SET last_active_at = now() - interval '13 days' WHERE id = $1", session_id
        )
        body = {"token": tokens["accessToken"]} if use == "auth.verify-token" else {}
        assert (await client.call(use, access=tokens["accessToken"], **body)).ok

        async def noted() -> bool:
            statement = "SELECT last_active_at > now() - interval '1 minute' FROM user_sessions WHERE id = $1"
            return bool(await rows.fetchval(statement, session_id))

        await eventually(noted, within_s=5, what="the use to be noted")
        assert await rows.fetchval(version, session_id) == before


async def test_a_disowned_password_proves_nothing_to_a_session_that_goes_on(client: Gateway) -> None:
    email = await client.verified()
    headers = {"User-Agent": FIREFOX}
    replies = [await client.call("auth.login", email=email, password=PASSWORD, headers=headers) for _ in range(2)]
    first, second = (reply.data["tokens"] for reply in replies)
    asked = await client.call("me.change-email", access=first["accessToken"], newEmail=new_email(), password=PASSWORD)
    assert asked.ok
    token = await token_in_mail(client, email, "/not-me?", newest=2)
    assert (await client.call("auth.not-me", token=token)).ok
    is_first = (await client.call("me.get", access=first["accessToken"])).ok
    access = (first if is_first else second)["accessToken"]
    assert (await client.call("me.get", access=access)).ok
    for operation, more in (
        ("me.reauthenticate", {}), ("me.change-email", {"newEmail": new_email()}), ("me.delete", {}), ("me.export", {}),
        ("two-factor.enable", {}), ("me.change-password", {"newPassword": NEW_PASSWORD}),
    ):  # fmt: skip
        proof = {"currentPassword" if operation == "me.change-password" else "password": PASSWORD}
        refused = await client.send(
            f"users.v1.{operation}", json.dumps(proof | more).encode(), headers={"Authorization": f"Bearer {access}"}
        )
        assert (operation, refused.code) == (operation, "PASSWORD_RESET_REQUIRED")


async def test_more_sign_ins_than_mails_leave_every_mailed_link_good(limited_client: Gateway) -> None:
    email = await limited_client.verified()
    for host in range(6):
        headers = {"Client-Ip": f"203.0.113.{host}", "User-Agent": FIREFOX}
        assert (await limited_client.call("auth.login", email=email, password=PASSWORD, headers=headers)).ok
    async with asyncio.timeout(20):
        while len(mails := limited_client.mails_to(email, "/not-me?")) < 4:  # the first is the verification mail's
            await asyncio.sleep(0.05)
    for mail in mails[1:]:
        assert (await limited_client.call("auth.not-me", token=token_of(mail))).ok
