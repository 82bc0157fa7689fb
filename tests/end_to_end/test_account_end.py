"""The end of an account, and what its owner may take along."""

import asyncio
import json
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from tests.gateway import PASSWORD, Gateway, Reply, database, gateway, new_email, stored_events
from tests.program import Dev, eventually


async def delete(client: Gateway, access: str, password: str = PASSWORD) -> Reply:
    return await client.call("me.delete", access=access, password=password)


async def test_a_deleted_account_lets_nobody_in_and_is_shown_to_nobody(dev: Dev, client: Gateway) -> None:
    me, other = await client.signed_in(), await client.signed_in()
    access, email = me["tokens"]["accessToken"], me["user"]["email"]
    more = (await client.call("auth.login", email=email, password=PASSWORD)).data["tokens"]
    assert (await delete(client, access)).data == {}
    for token in (access, more["accessToken"]):
        assert (await client.call("me.get", access=token)).code == "INVALID_TOKEN"
        assert (await client.call("auth.verify-token", token=token)).data == {"active": False}
    assert (await client.call("auth.refresh", refreshToken=more["refreshToken"])).code == "INVALID_TOKEN"
    assert (await client.call("auth.login", email=email, password=PASSWORD)).code == "INVALID_CREDENTIALS"
    seen = await client.call("profile.get", access=other["tokens"]["accessToken"], userId=me["user"]["id"])
    assert seen.code == "NOT_FOUND"
    assert (await client.register(email)).code == "EMAIL_ALREADY_REGISTERED"
    types = await types_until(dev, me["user"]["id"], "UserDeleted")
    assert types[-3:] == ["SessionRevoked", "SessionRevoked", "UserDeleted"]


async def types_until(dev: Dev, user_id: str, last: str) -> list[str]:
    """The types of the user's events, once the last of them is on the stream."""
    found: list[str] = []

    async def is_there() -> bool:
        found[:] = [event["type"] for event in await stored_events(dev.ready, f"users.events.v1.*.{user_id}")]
        return found[-1:] == [last]

    await eventually(is_there, within_s=20, what=last)
    return found


async def test_a_deletion_whose_reply_was_lost_is_answered_again(client: Gateway) -> None:
    access = (await client.signed_in())["tokens"]["accessToken"]
    key = {"Idempotency-Key": uuid4().hex}
    replies = [await client.call("me.delete", access=access, headers=key, password=PASSWORD) for _ in range(2)]
    assert [reply.data for reply in replies] == [{}, {}]
    assert replies[1].headers["Idempotent-Replayed"] == "true"


async def test_of_deletions_at_once_one_comes_about(dev: Dev, client: Gateway) -> None:
    me = await client.signed_in()
    replies = await asyncio.gather(*(delete(client, me["tokens"]["accessToken"]) for _ in range(10)))
    assert sorted(reply.code for reply in replies).count("OK") == 1
    assert {reply.code for reply in replies} == {"OK", "INVALID_TOKEN"}
    assert (await types_until(dev, me["user"]["id"], "UserDeleted")).count("UserDeleted") == 1


async def test_the_last_admin_cannot_leave(tmp_path: Path) -> None:
    async with Dev(tmp_path / "data") as alone, gateway(alone.ready) as client:
        admin = client.ready["admin"]
        assert (await delete(client, await client.admin(), password=admin["password"])).code == "CONFLICT"
        assert await client.admin()


async def test_the_password_is_asked_for(client: Gateway) -> None:
    access = (await client.signed_in())["tokens"]["accessToken"]
    for operation in ("me.delete", "me.export"):
        assert (await client.call(operation, access=access, password="not it")).code == "INVALID_CREDENTIALS"
    assert (await client.call("me.get", access=access)).ok


async def test_an_export_holds_what_was_told_and_no_secret(client: Gateway) -> None:
    agent = f"Agent/{uuid4().hex}"
    headers = {"User-Agent": agent, "Client-Ip": "192.0.2.44"}
    me = await client.signed_in(headers=headers)
    access, asked = me["tokens"]["accessToken"], new_email()
    bio = f"A life {uuid4().hex}"
    await client.call("profile.update", access=access, bio=bio)
    await client.call("me.change-email", access=access, newEmail=asked, password=PASSWORD)
    reply = await client.call("me.export", access=access, password=PASSWORD)
    export = reply.data["export"]
    assert export["user"]["email"] == me["user"]["email"]
    assert export["profile"]["bio"] == bio
    assert [session["userAgent"] for session in export["sessions"]] == [agent]
    assert {link["address"] for link in export["links"]} == {me["user"]["email"], asked}
    assert len(export["devices"]) == 1
    versions = [event["version"] for event in export["events"]]
    assert versions == list(range(len(versions), 0, -1))
    login = next(event for event in export["events"] if event["type"] == "UserLogin")
    assert (login["data"]["userAgent"], login["ipAddress"]) == (agent, "192.0.2.44")
    assert (export["omitted"], export["nextCursor"]) == ({}, None)
    text = json.dumps(reply.body)
    for secret in ("argon2", PASSWORD, *me["tokens"].values()):
        assert str(secret) not in text or len(str(secret)) < 8


async def test_an_export_is_an_event(dev: Dev, client: Gateway) -> None:
    me = await client.signed_in()
    assert (await client.call("me.export", access=me["tokens"]["accessToken"], password=PASSWORD)).ok
    assert "DataExported" in await types_until(dev, me["user"]["id"], "DataExported")


async def test_an_export_is_given_again_to_its_key(client: Gateway) -> None:
    access = (await client.signed_in())["tokens"]["accessToken"]
    key = {"Idempotency-Key": uuid4().hex}
    first, again = [await client.call("me.export", access=access, headers=key, password=PASSWORD) for _ in range(2)]
    assert again.data == first.data
    assert again.headers["Idempotent-Replayed"] == "true"


async def test_what_does_not_fit_into_an_export_is_had_with_its_cursor(dev: Dev, client: Gateway) -> None:
    me = await client.signed_in()
    access = me["tokens"]["accessToken"]
    for number in range(300):
        links = [f"https://example.org/{number}/{place}/{'x' * 400}" for place in range(10)]
        assert (await client.call("profile.update", access=access, socialLinks=links)).ok
    versions: list[int] = []
    cursor, pages = None, 0
    while pages == 0 or cursor:
        more: dict[str, Any] = {"cursor": cursor} if cursor else {}
        reply = await client.call("me.export", access=access, password=PASSWORD, **more)
        assert len(json.dumps(reply.body)) < 1_000_000
        export = reply.data["export"]
        if pages == 0:
            assert export["nextCursor"]
        versions += [event["version"] for event in export["events"]]
        cursor, pages = export["nextCursor"], pages + 1
        assert pages < 10
    async with database(dev.ready) as rows:
        held = await rows.fetchval(
            "SELECT max(version) FROM events WHERE aggregate_id = $1 AND type <> 'DataExported'", UUID(me["user"]["id"])
        )
    assert sorted(versions) == list(range(1, held + 1))


async def test_a_cursor_of_another_list_is_refused(client: Gateway) -> None:
    access = (await client.signed_in())["tokens"]["accessToken"]
    for cursor in ("bm9uc2Vuc2U=", "WyItMSIsICI5OTk5OTk5OTk5OTk5OTk5OTk5OTk5Il0="):
        reply = await client.call("me.export", access=access, password=PASSWORD, cursor=cursor)
        assert reply.code == "VALIDATION_ERROR", reply.body
