"""An account through its life: what a password must be, what a stranger learns, and how its owner changes it."""

import asyncio
import json
from typing import Any
from uuid import UUID, uuid4

import pytest

from adapters.mail_sink import token_of
from tests.gateway import PASSWORD, Gateway, Reply, database, new_email
from tests.program import Dev


def without_meta(reply: Reply) -> str:
    """All bytes of a reply but those of its `meta`."""
    return json.dumps({name: part for name, part in reply.body.items() if name != "meta"})


async def test_a_wrong_password_and_an_unknown_address_are_answered_alike(client: Gateway) -> None:
    email = await client.verified()
    wrong = await client.call("auth.login", email=email, password="Wrong-Password-1")
    unknown = await client.call("auth.login", email=new_email(), password="Wrong-Password-1")
    assert wrong.code == "INVALID_CREDENTIALS"
    assert without_meta(wrong) == without_meta(unknown)
    ignored = {"Request-Id"}
    assert {name: text for name, text in wrong.headers.items() if name not in ignored} == {
        name: text for name, text in unknown.headers.items() if name not in ignored
    }


async def test_only_the_right_password_learns_that_the_address_is_not_verified(client: Gateway) -> None:
    email = new_email()
    assert (await client.register(email)).ok
    assert (await client.call("auth.login", email=email, password="Wrong-Password-1")).code == "INVALID_CREDENTIALS"
    assert (await client.call("auth.login", email=email, password=PASSWORD)).code == "EMAIL_NOT_VERIFIED"


async def test_an_address_is_one_whatever_its_case(client: Gateway) -> None:
    email = await client.verified()
    assert (await client.register(email.upper())).code == "EMAIL_ALREADY_REGISTERED"
    assert (await client.call("auth.login", email=f"  {email.title()} ", password=PASSWORD)).ok


@pytest.mark.parametrize(
    ("password", "broken"),
    [
        ("a", {"too_short", "no_upper_case", "no_digit", "no_special", "too_common"}),
        ("A1!" * 50, {"too_long", "no_lower_case"}),
        ("Password1!", {"too_common"}),
        ("Lovelace-Xq7!vT", {"holds_own_data"}),
        ("L0v3lac3-Xq7!vT", {"holds_own_data"}),
        ("analyticalengine", {"no_upper_case", "no_digit", "no_special"}),
    ],
)
async def test_every_broken_rule_of_a_password_is_named(client: Gateway, password: str, broken: set[str]) -> None:
    reply = await client.call(
        "auth.register", email=new_email(), password=password, firstName="Ada", lastName="Lovelace", acceptTerms=True
    )
    assert (reply.code, reply.headers["Nats-Service-Error-Code"]) == ("PASSWORD_POLICY_VIOLATION", "422")
    named = {fault["code"] for fault in reply.body["error"]["details"]}
    assert named >= broken
    assert {fault["field"] for fault in reply.body["error"]["details"]} == {"password"}


async def test_a_verification_link_is_good_once(client: Gateway) -> None:
    email = new_email()
    assert (await client.register(email)).ok
    token = token_of(await client.mail_to(email, "verify-email"))
    assert (await client.call("auth.verify-email", token=token)).data["user"]["emailVerified"] is True
    assert (await client.call("auth.verify-email", token=token)).code == "INVALID_TOKEN"
    assert (await client.call("auth.verify-email", token="x" * 43)).code == "INVALID_TOKEN"


async def test_an_owner_changes_their_name_and_reads_it_at_once(client: Gateway) -> None:
    found = await client.signed_in()
    access = found["tokens"]["accessToken"]
    assert (await client.call("me.get", access=access)).data["user"]["firstName"] == "Ada"
    for number in range(10):
        name = f"Ada {number}"
        changed = (await client.call("me.update", access=access, firstName=name)).data["user"]
        seen = (await client.call("me.get", access=access)).data["user"]
        assert (seen["firstName"], seen["lastName"]) == (name, "Lovelace")
        assert seen["revision"] == changed["revision"] == found["user"]["revision"] + number + 1


async def test_writers_at_once_are_all_counted(client: Gateway) -> None:
    found = await client.signed_in()
    access = found["tokens"]["accessToken"]
    names = [f"Ada {number}" for number in range(20)]
    replies = await asyncio.gather(*(client.call("me.update", access=access, firstName=name) for name in names))
    assert all(reply.ok for reply in replies)
    assert (await client.call("me.get", access=access)).data["user"]["revision"] == found["user"]["revision"] + 20


@pytest.mark.parametrize("operation", ["me.update", "profile.update"])
async def test_a_stale_revision_is_a_conflict(client: Gateway, operation: str) -> None:
    found = await client.signed_in()
    access, revision = found["tokens"]["accessToken"], found["user"]["revision"]
    assert (await client.call(operation, access=access, firstName="Augusta", expectedRevision=revision)).ok
    stale = await client.call(operation, access=access, firstName="Byron", expectedRevision=revision)
    assert (stale.code, stale.headers["Nats-Service-Error-Code"]) == ("CONFLICT", "409")
    assert (await client.call("me.get", access=access)).data["user"]["firstName"] == "Augusta"


async def test_a_change_that_changes_nothing_is_no_event(client: Gateway) -> None:
    found = await client.signed_in()
    access = found["tokens"]["accessToken"]
    same = (await client.call("me.update", access=access, firstName="Ada")).data["user"]
    assert (same["revision"], same["version"]) == (found["user"]["revision"], found["user"]["version"])


PUBLIC = {"userId", "displayName", "bio", "website", "location", "avatar", "socialLinks"}


async def test_others_see_the_public_part_of_a_profile(client: Gateway) -> None:
    owner, other = await client.signed_in(), await client.signed_in()
    user_id, own = owner["user"]["id"], owner["tokens"]["accessToken"]
    assert (await client.call("profile.update", access=own, displayName="The Countess", timezone="Europe/London")).ok
    public = (await client.call("profile.get", access=other["tokens"]["accessToken"], userId=user_id)).data["profile"]
    assert set(public) == PUBLIC
    assert public["displayName"] == "The Countess"
    whole = (await client.call("profile.get", access=own, userId=user_id)).data["profile"]
    assert set(whole) == PUBLIC | {"timezone", "language", "theme", "notifications", "revision", "updatedAt"}
    assert (await client.call("profile.get", access=own, userId=str(uuid4()))).code == "NOT_FOUND"
    assert (await client.call("profile.get", userId=user_id)).code == "AUTHENTICATION_REQUIRED"


async def test_a_suspended_account_is_shut_out_at_its_next_look(dev: Dev, client: Gateway) -> None:
    """Not by an operation yet: the row says so, and what a process remembers is a minute old at most."""
    found, other = await client.signed_in(), await client.signed_in()
    async with database(dev.ready) as rows:
        await rows.execute("UPDATE users SET status = 'suspended' WHERE id = $1", UUID(found["user"]["id"]))
    email = found["user"]["email"]
    assert (await client.call("auth.login", email=email, password=PASSWORD)).code == "ACCOUNT_SUSPENDED"
    assert (await client.call("auth.login", email=email, password="Wrong-Password-1")).code == "INVALID_CREDENTIALS"
    refresh = found["tokens"]["refreshToken"]
    assert (await client.call("auth.refresh", refreshToken=refresh)).code == "INVALID_TOKEN"
    hidden = await client.call("profile.get", access=other["tokens"]["accessToken"], userId=found["user"]["id"])
    assert hidden.code == "NOT_FOUND"


async def test_the_eleventh_session_ends_the_oldest(dev: Dev, client: Gateway) -> None:
    email = await client.verified()
    logins = [(await client.call("auth.login", email=email, password=PASSWORD)).data for _ in range(11)]

    async def works(login: dict[str, Any]) -> bool:
        return (await client.call("me.get", access=login["tokens"]["accessToken"])).ok

    assert [await works(login) for login in logins] == [False] + [True] * 10
    refused = await client.call("auth.refresh", refreshToken=logins[0]["tokens"]["refreshToken"])
    assert refused.code == "INVALID_TOKEN"
    async with database(dev.ready) as rows:
        reasons = await rows.fetch(
            "SELECT end_reason FROM user_sessions WHERE user_id = $1 AND ended_at IS NOT NULL",
            UUID(logins[0]["user"]["id"]),
        )
    assert [row["end_reason"] for row in reasons] == ["session_cap"]


async def test_twenty_logins_at_once_leave_ten_sessions(dev: Dev, client: Gateway) -> None:
    email = await client.verified()
    logins = await asyncio.gather(*(client.call("auth.login", email=email, password=PASSWORD) for _ in range(20)))
    assert all(login.ok for login in logins)
    async with database(dev.ready) as rows:
        live = await rows.fetchval(
            "SELECT count(*) FROM user_sessions s JOIN users u ON u.id = s.user_id "
            "WHERE u.email = $1 AND s.ended_at IS NULL",
            email,
        )
    assert live == 10
