"""One list that says what has become of a user, a mail or a request."""

import asyncio
from typing import Any

from tests.gateway import Gateway, new_email

GROUPS = {"email", "audit", "cache"}


async def settled(client: Gateway, access: str, **asked: str) -> list[dict[str, Any]]:
    """The timeline once nothing of it waits any more."""
    async with asyncio.timeout(20):
        while True:
            steps = list((await client.call("admin.timeline.get", access=access, **asked)).data)  # type: ignore[arg-type]
            if steps and not any(step["kind"] == "waiting" for step in steps):
                return steps
            await asyncio.sleep(0.05)


async def test_from_the_request_to_what_each_group_made_of_its_events(client: Gateway) -> None:
    admin, email = await client.admin(), new_email()
    registered = await client.register(email, headers={"Request-Id": f"asked-{email}"})
    for asked in ({"email": email}, {"userId": registered.data["user"]["id"]}, {"requestId": f"asked-{email}"}):
        steps = await settled(client, admin, **asked)
        events = [step for step in steps if step["kind"] == "event"]
        assert [(step["type"], step["version"]) for step in events] == [
            ("UserRegistered", 1),
            ("EmailVerificationRequested", 2),
        ]
        assert {step["requestId"] for step in steps} == {f"asked-{email}"}
        for event in events:
            done = {step["group"]: step["text"] for step in steps if step["eventId"] == event["eventId"]}
            assert done.keys() >= GROUPS
        assert any(step["text"] == "sent" for step in steps)
        assert [step["at"] for step in steps] == sorted(step["at"] for step in steps)
    steps = await settled(client, admin, requestId=f"asked-{email}")
    event_id = next(step["eventId"] for step in steps if step["kind"] == "event")
    mail = await client.mail_to(email, "verify-email")
    for named in (str(mail["Message-ID"]), event_id):  # what somebody who asks may have in hand
        assert await settled(client, admin, requestId=named) == steps


async def test_what_has_no_event_stands_there_too(client: Gateway) -> None:
    admin, found = await client.admin(), await client.signed_in()
    await client.call("auth.login", email=found["user"]["email"], password="Not-The-Password-1")
    steps = await settled(client, admin, userId=found["user"]["id"])
    assert {"UserLogin", "LoginFailed"} <= {step["type"] for step in steps}
    looked = await client.call("admin.users.get", access=admin, userId=found["user"]["id"])
    assert looked.ok


async def test_nobodys_address_is_not_found_and_one_of_three_is_named(client: Gateway) -> None:
    admin = await client.admin()
    assert (await client.call("admin.timeline.get", access=admin, email=new_email())).code == "NOT_FOUND"
    assert (await client.call("admin.timeline.get", access=admin)).code == "VALIDATION_ERROR"
    both = await client.call("admin.timeline.get", access=admin, email=new_email(), requestId="x")
    assert both.code == "VALIDATION_ERROR"
    own = (await client.signed_in())["tokens"]["accessToken"]
    assert (await client.call("admin.timeline.get", access=own, requestId="x")).code == "FORBIDDEN"
