"""The longest path: register, verify, sign in, change a profile; events, mail and audit rows behind it."""

import asyncio
import json
from uuid import UUID

from tests.gateway import PASSWORD, Gateway, database, new_email, stored_events
from tests.program import Dev


async def test_a_stranger_registers_and_is_told_to_verify(client: Gateway) -> None:
    email = new_email()
    user = (await client.register(email, headers={"Request-Id": "story-1", "Client-Ip": "192.0.2.7"})).data["user"]
    assert (user["emailVerified"], user["version"], user["role"]) == (False, 2, "user")

    refused = await client.call("auth.login", email=email, password=PASSWORD)
    assert refused.code == "EMAIL_NOT_VERIFIED"

    await client.verified(other := new_email())
    mail = await client.mail_to(email, "verify-email")
    assert mail["Auto-Submitted"] == "auto-generated"
    await client.mail_to(other, "verify-email")


async def test_mail_speaks_the_language_of_the_gateways_header(client: Gateway) -> None:
    email = new_email()
    await client.register(email, headers={"Accept-Language": "fr;q=0.3, de-AT, en;q=0.9"})
    mail = await client.mail_to(email, "verify-email")
    assert mail["Content-Language"] == "de"
    assert "Bestätigen" in mail["Subject"]


async def test_the_log_names_request_and_user_of_each_request(dev: Dev, client: Gateway) -> None:
    found = await client.signed_in()
    await client.call("me.get", access=found["tokens"]["accessToken"], headers={"Request-Id": "log-line-1"})
    line = next(json.loads(text) for text in dev.log.splitlines() if "log-line-1" in text)
    assert (line["userId"], line["subject"], line["code"]) == (found["user"]["id"], "users.v1.me.get", "OK")
    assert line["durationMs"] > 0


async def test_every_change_is_an_event_in_order_and_an_audit_row(dev: Dev, client: Gateway) -> None:
    found = await client.signed_in()
    user_id, token = found["user"]["id"], found["tokens"]["accessToken"]
    changed = await client.call("profile.update", access=token, displayName="The Countess", timezone="Europe/London")
    assert changed.data["profile"]["displayName"] == "The Countess"
    me = (await client.call("me.get", access=token)).data
    assert me["profile"]["timezone"] == "Europe/London"
    assert me["user"]["version"] == 5

    async with asyncio.timeout(10):
        while len(events := await stored_events(dev.ready, f"users.events.v1.*.{user_id}")) < me["user"]["version"]:
            await asyncio.sleep(0.02)
    assert [event["version"] for event in events] == [1, 2, 3, 4, 5]
    assert [event["type"] for event in events] == [
        "UserRegistered", "EmailVerificationRequested", "EmailVerified", "UserLogin", "ProfileUpdated",
    ]  # fmt: skip
    assert events[4]["data"]["changed"] == {"displayName": "The Countess", "timezone": "Europe/London"}

    async with database(dev.ready) as rows:
        async with asyncio.timeout(10):
            while await rows.fetchval(_AUDITED, UUID(user_id)) < len(events):
                await asyncio.sleep(0.02)
    entries = (await client.call("admin.audit-logs.list", access=await client.admin(), userId=user_id)).data
    assert {entry["eventId"] for entry in entries if entry["eventId"]} == {event["id"] for event in events}


_AUDITED = "SELECT count(*) FROM audit_logs WHERE user_id = $1 AND event_id IS NOT NULL"
