"""Another address: asked for in secret of whom it belongs to, confirmed from the new mailbox, undone from the old."""

import asyncio
from typing import Any
from uuid import UUID, uuid4

import pytest

from adapters.mail_sink import token_of
from tests.authenticator import enrolled
from tests.gateway import PASSWORD, Gateway, Reply, database, new_email, registration, stored_events
from tests.program import Dev, eventually

CONFIRM, CANCEL = "confirm-email-change", "cancel-email-change"


async def ask(client: Gateway, me: dict[str, Any], new: str, password: str = PASSWORD) -> Reply:
    return await client.call("me.change-email", access=me["tokens"]["accessToken"], newEmail=new, password=password)


async def token_to(client: Gateway, address: str, page: str) -> str:
    return str(token_of(await client.mail_to(address, page)))


async def confirm(client: Gateway, me: dict[str, Any], token: str) -> Reply:
    return await client.call("me.confirm-email-change", access=me["tokens"]["accessToken"], token=token)


async def moved(client: Gateway, me: dict[str, Any]) -> str:
    """The new address, asked for and confirmed."""
    new = new_email()
    assert (await ask(client, me, new)).data == {}
    assert (await confirm(client, me, await token_to(client, new, CONFIRM))).data["user"]["email"] == new
    return new


async def announced(dev: Dev, me: dict[str, Any], type: str) -> list[dict[str, Any]]:
    """The data of the user's events of a type, once there are any on the stream."""
    found: list[dict[str, Any]] = []

    async def are_there() -> bool:
        events = await stored_events(dev.ready, f"users.events.v1.{type}.{me['user']['id']}")
        found[:] = [event["data"] for event in events]
        return bool(found)

    await eventually(are_there, within_s=20, what=type)
    return found


async def login(client: Gateway, email: str) -> str:
    return (await client.call("auth.login", email=email, password=PASSWORD)).code


async def test_a_change_takes_effect_when_the_new_mailbox_confirms_it(dev: Dev, client: Gateway) -> None:
    me = await client.signed_in()
    old, new = me["user"]["email"], new_email()
    assert (await ask(client, me, new)).data == {}
    token = await token_to(client, new, CONFIRM)
    assert await token_to(client, old, CANCEL)
    assert (await login(client, old), await login(client, new)) == ("OK", "INVALID_CREDENTIALS")
    user = (await confirm(client, me, token)).data["user"]
    assert (user["email"], user["emailVerified"]) == (new, True)
    assert (await login(client, old), await login(client, new)) == ("INVALID_CREDENTIALS", "OK")
    assert await announced(dev, me, "EmailChanged") == [
        {"userId": user["id"], "email": new, "previousEmail": old},
    ]
    assert (await confirm(client, me, token)).code == "INVALID_TOKEN"
    assert (await client.call("me.get", access=me["tokens"]["accessToken"])).data["user"]["email"] == new


async def test_the_address_that_was_left_is_nobody_elses_for_a_while(client: Gateway) -> None:
    me = await client.signed_in()
    old = me["user"]["email"]
    await moved(client, me)
    assert (await client.register(old)).code == "EMAIL_ALREADY_REGISTERED"
    other = await client.signed_in()
    await ask(client, other, old)
    await asyncio.sleep(0)
    assert client.mails_to(old, CONFIRM) == []


async def test_who_registers_while_an_address_is_left_never_gets_it(client: Gateway) -> None:
    for _ in range(10):
        me = await client.signed_in()
        old, new = me["user"]["email"], new_email()
        await ask(client, me, new)
        token = await token_to(client, new, CONFIRM)
        confirmed, *registered = await asyncio.gather(
            confirm(client, me, token), *(client.register(old) for _ in range(5))
        )
        assert confirmed.ok
        assert {reply.code for reply in registered} == {"EMAIL_ALREADY_REGISTERED"}


async def test_a_taken_address_is_answered_and_recorded_like_a_free_one(dev: Dev, client: Gateway) -> None:
    taken = await client.verified()
    seen = []
    for address in (new_email(), taken):
        me = await client.signed_in()
        reply = await ask(client, me, address)
        await client.mail_to(me["user"]["email"], CANCEL)
        export = (await client.call("me.export", access=me["tokens"]["accessToken"], password=PASSWORD)).data["export"]
        async with database(dev.ready) as rows:
            links = await rows.fetch(
                "SELECT purpose, used_at, expires_at - created_at AS lifetime FROM links WHERE user_id = $1 "
                "ORDER BY purpose",
                UUID(me["user"]["id"]),
            )
            audited = await rows.fetchval(
                "SELECT count(*) FROM audit_logs WHERE user_id = $1 AND event_id IS NULL", UUID(me["user"]["id"])
            )
        shapes = {name: [sorted(entry) for entry in value] for name, value in export.items() if isinstance(value, list)}
        shapes.pop("auditLog")  # its rows come when the group has made them
        seen.append(
            (
                reply.body["data"],
                sorted(reply.headers),
                [(link["purpose"], link["lifetime"].days) for link in links],
                audited,
                shapes,
            )
        )
        assert [link["used_at"] for link in links if "email-change" in link["purpose"]] == [None, None]
    assert seen[0] == seen[1]
    await eventually_handled(dev)
    assert client.mails_to(taken, CONFIRM) == []


async def eventually_handled(dev: Dev) -> None:
    """Until `email` has had all that was asked for."""
    async with database(dev.ready) as rows:

        async def all_had() -> bool:
            return bool(
                await rows.fetchval(
                    "SELECT NOT EXISTS (SELECT FROM events e WHERE e.type = 'EmailChangeRequested' AND NOT EXISTS ("
                    "SELECT FROM inbox i WHERE i.event_id = e.id AND i.group_name = 'email'))"
                )
            )

        await eventually(all_had, within_s=20, what="all mails of address changes")


async def test_an_address_that_was_taken_meanwhile_is_no_word_to_the_caller(client: Gateway) -> None:
    me, new = await client.signed_in(), new_email()
    await ask(client, me, new)
    token = await token_to(client, new, CONFIRM)
    assert (await client.register(new)).ok
    assert (await confirm(client, me, token)).code == "INVALID_TOKEN"
    assert (await client.call("me.get", access=me["tokens"]["accessToken"])).data["user"]["email"] == me["user"][
        "email"
    ]


async def test_of_many_who_want_one_address_one_gets_it(client: Gateway) -> None:
    new = new_email()
    people = [await client.signed_in() for _ in range(6)]
    for me in people:
        await ask(client, me, new)

    async def tokens() -> list[str]:
        return [str(token_of(mail)) for mail in client.mails_to(new, CONFIRM)]

    async def all_came() -> bool:
        return len(await tokens()) == len(people)

    await eventually(all_came, within_s=20, what="all mails")
    sent = await tokens()
    replies = await asyncio.gather(*(confirm(client, me, token) for me in people for token in sent))
    assert sorted(reply.code for reply in replies).count("OK") == 1
    assert {reply.code for reply in replies} == {"OK", "INVALID_TOKEN"}


async def test_only_who_asked_may_confirm_and_a_newer_request_takes_the_place_of_the_older(client: Gateway) -> None:
    me, stranger = await client.signed_in(), await client.signed_in()
    first, second = new_email(), new_email()
    await ask(client, me, first)
    token = await token_to(client, first, CONFIRM)
    assert (await confirm(client, stranger, token)).code == "INVALID_TOKEN"
    await ask(client, me, second)
    assert (await confirm(client, me, token)).code == "INVALID_TOKEN"
    assert (await confirm(client, me, await token_to(client, second, CONFIRM))).ok


async def test_the_old_mailbox_calls_a_change_off(dev: Dev, client: Gateway) -> None:
    me, new = await client.signed_in(), new_email()
    old = me["user"]["email"]
    await ask(client, me, new)
    cancel, token = await token_to(client, old, CANCEL), await token_to(client, new, CONFIRM)
    assert (await client.call("auth.cancel-email-change", token=cancel)).data == {}
    assert (await confirm(client, me, token)).code == "INVALID_TOKEN"
    assert (await client.call("auth.cancel-email-change", token=cancel)).code == "INVALID_TOKEN"
    assert await login(client, old) == "OK"
    assert [data["email"] for data in await announced(dev, me, "EmailChangeCancelled")] == [old]
    assert (await client.call("me.get", access=me["tokens"]["accessToken"])).ok


async def test_the_old_mailbox_undoes_a_change_with_every_session_ended(dev: Dev, client: Gateway) -> None:
    me = await client.signed_in()
    old = me["user"]["email"]
    new = await moved(client, me)
    another = (await client.call("auth.login", email=new, password=PASSWORD)).data["tokens"]
    assert (await client.call("auth.cancel-email-change", token=await token_to(client, old, CANCEL))).data == {}
    for access in (me["tokens"]["accessToken"], another["accessToken"]):
        assert (await client.call("me.get", access=access)).code == "INVALID_TOKEN"
    assert (await client.call("auth.refresh", refreshToken=another["refreshToken"])).code == "INVALID_TOKEN"
    assert await login(client, new) == "INVALID_CREDENTIALS"
    assert await login(client, old) == "PASSWORD_RESET_REQUIRED"
    await client.call("auth.forgot-password", email=old)
    reset = await token_to(client, old, "reset-password")
    assert (await client.call("auth.reset-password", token=reset, newPassword="Difference-Engine-1822")).ok
    assert (await client.call("auth.login", email=old, password="Difference-Engine-1822")).ok
    assert (await client.register(new)).ok  # what the thief had is free again
    assert {data["reason"] for data in await announced(dev, me, "SessionRevoked")} == {"email_change_undone"}


async def test_who_hops_on_with_the_account_does_not_outrun_its_first_mailbox(client: Gateway) -> None:
    """A thief moves it, and moves it again and again: the links to addresses of theirs push out none to the first,
    and undo nothing once the first has spoken."""
    me = await client.signed_in()
    first = me["user"]["email"]
    second = await moved(client, me)
    for _ in range(4):
        await ask(client, me, new_email())
    third = await moved(client, me)
    theirs = await token_to(client, second, CANCEL)
    assert (await client.call("auth.cancel-email-change", token=await token_to(client, first, CANCEL))).ok
    assert (await client.call("auth.cancel-email-change", token=theirs)).code == "INVALID_TOKEN"
    assert await login(client, third) == "INVALID_CREDENTIALS"
    assert await login(client, first) == "PASSWORD_RESET_REQUIRED"


async def test_links_to_the_old_address_die_with_the_change(client: Gateway) -> None:
    me = await client.signed_in()
    old = me["user"]["email"]
    await client.call("auth.forgot-password", email=old)
    reset = await token_to(client, old, "reset-password")
    await moved(client, me)
    reply = await client.call("auth.reset-password", token=reset, newPassword="Difference-Engine-1822")
    assert reply.code == "INVALID_TOKEN"


async def test_a_change_that_waits_dies_with_the_password(client: Gateway) -> None:
    me, new = await client.signed_in(), new_email()
    await ask(client, me, new)
    token = await token_to(client, new, CONFIRM)
    changed = await client.call(
        "me.change-password", access=me["tokens"]["accessToken"], currentPassword=PASSWORD,
        newPassword="Difference-Engine-1822",
    )  # fmt: skip
    assert changed.ok, changed.body
    assert (await confirm(client, me, token)).code == "INVALID_TOKEN"


async def test_undoing_and_confirming_at_once_leave_one_address(client: Gateway) -> None:
    for _ in range(8):
        me, new = await client.signed_in(), new_email()
        old = me["user"]["email"]
        await ask(client, me, new)
        token, cancel = await token_to(client, new, CONFIRM), await token_to(client, old, CANCEL)
        confirmed, cancelled = await asyncio.gather(
            confirm(client, me, token), client.call("auth.cancel-email-change", token=cancel)
        )
        assert cancelled.ok
        assert confirmed.code in {"OK", "INVALID_TOKEN"}
        assert await login(client, new) == "INVALID_CREDENTIALS"
        assert await login(client, old) == ("PASSWORD_RESET_REQUIRED" if confirmed.ok else "OK")


@pytest.mark.parametrize("new", ["nobody", "a@b.example,c@d.example", ""])
async def test_what_is_no_address_is_refused(client: Gateway, new: str) -> None:
    me = await client.signed_in()
    assert (await ask(client, me, new)).code == "VALIDATION_ERROR"


async def test_the_password_is_asked_for(client: Gateway) -> None:
    me = await client.signed_in()
    assert (await ask(client, me, new_email(), password="not it")).code == "INVALID_CREDENTIALS"


async def test_mails_to_a_stranger_are_bounded_in_silence(limited_client: Gateway) -> None:
    victim = new_email()
    source = {"Client-Ip": f"2001:db8:{uuid4().hex[:4]}::1"}
    for _ in range(2):
        email = new_email()
        await limited_client.call("auth.register", headers=source, **registration(email))
        token = token_of(await limited_client.mail_to(email, "verify-email"))
        await limited_client.call("auth.verify-email", headers=source, token=token)
        me = (await limited_client.call("auth.login", headers=source, email=email, password=PASSWORD)).data
        for _ in range(4):
            reply = await limited_client.call(
                "me.change-email",
                access=me["tokens"]["accessToken"],
                headers=source,
                newEmail=victim,
                password=PASSWORD,
            )
            assert reply.data == {}
    await limited_client.mail_to(victim, CONFIRM)
    assert len(limited_client.mails_to(victim, CONFIRM)) <= 3


async def test_past_the_limits_a_code_is_used_up_all_the_same(limited_client: Gateway) -> None:
    app = await enrolled(limited_client, headers={"Client-Ip": f"2001:db8:{uuid4().hex[:4]}::2"})
    for _ in range(3):
        asked = await limited_client.call(
            "me.change-email", access=app.access, newEmail=new_email(), password=PASSWORD, code=await app.fresh_code()
        )
        assert asked.data == {}
    code = await app.fresh_code()
    silent = await limited_client.call(
        "me.change-email", access=app.access, newEmail=new_email(), password=PASSWORD, code=code
    )
    assert silent.data == {}
    again = await limited_client.call("me.reauthenticate", access=app.access, password=PASSWORD, code=code)
    assert again.code == "INVALID_TWO_FACTOR_CODE"
