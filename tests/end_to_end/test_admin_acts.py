"""What operators do to accounts, as its owner, its events and the audit log see it."""

from typing import Any
from uuid import UUID, uuid4

import pytest

from adapters.mail_sink import token_of
from tests.authenticator import enrolled
from tests.gateway import PASSWORD, Gateway, Reply, database, new_email, stored_events
from tests.people import Person, account, sign_in, signed_in
from tests.program import eventually

NAMES: dict[str, Any] = {"firstName": "Grace", "lastName": "Hopper"}
BY_REASON = ["unlock", "require-password-reset", "revoke-sessions", "reset-two-factor", "delete"]


async def act(client: Gateway, verb: str, person: Person, **body: Any) -> Reply:  # noqa: ANN401 - JSON
    """One act of the admin that `dev` made."""
    wanted = {"userId": person.id, "reason": "a reason of ours"} | body
    return await client.call(f"admin.users.{verb}", access=await client.admin(), **wanted)


async def events_of(client: Gateway, person: Person, wanted: str) -> list[dict[str, Any]]:
    """The data of an account's events of one type; waited for."""
    found: list[dict[str, Any]] = []

    async def are_there() -> bool:
        found[:] = await stored_events(client.ready, f"users.events.v1.{wanted}.{person.id}")
        return bool(found)

    await eventually(are_there, within_s=10, what=wanted)
    return found


async def audited(client: Gateway, action: str, user_id: str | None) -> list[dict[str, Any]]:
    """Rows of the audit log; waited for."""
    access = await client.admin()
    query: dict[str, Any] = {"action": action} | ({} if user_id is None else {"userId": user_id})
    found: list[dict[str, Any]] = []

    async def are_there() -> bool:
        found[:] = (await client.call("admin.audit-logs.list", access=access, **query)).data
        return bool(found)

    await eventually(are_there, within_s=10, what=action)
    return found


async def login(client: Gateway, person: Person, password: str = PASSWORD) -> str:
    return (await client.call("auth.login", email=person.email, password=password)).code


async def test_an_invited_person_sets_the_password_and_signs_in(client: Gateway) -> None:
    email, access = new_email(), await client.admin()
    admin_id = (await client.call("me.get", access=access)).data["user"]["id"]
    created = await client.call("admin.users.create", access=access, email=email, role="moderator", **NAMES)
    user = created.data["user"]
    assert (user["email"], user["role"], user["status"], user["emailVerified"]) == (email, "moderator", "active", False)
    person = Person(user["id"], email, "moderator")
    (registered,) = await events_of(client, person, "UserRegistered")
    assert (registered["data"]["origin"], registered["metadata"]["actorId"]) == ("admin", admin_id)
    (invited,) = await events_of(client, person, "UserInvited")
    assert invited["data"]["email"] == email
    async with database(client.ready) as rows:
        assert await rows.fetchval("SELECT password_hash FROM users WHERE id = $1", person.uuid) == "!"
    for password in ("!", PASSWORD):
        assert await login(client, person, password) == "INVALID_CREDENTIALS"

    token = token_of(await client.mail_to(email, "accept-invitation"))
    assert (await client.call("auth.reset-password", token=token, newPassword=PASSWORD)).ok
    signed = (await client.call("auth.login", email=email, password=PASSWORD)).data["user"]
    assert (signed["role"], signed["emailVerified"]) == ("moderator", True)
    again = await client.call("auth.reset-password", token=token, newPassword="Another-Engine-1843")
    assert again.code == "INVALID_TOKEN"


async def test_a_taken_address_is_not_invited(client: Gateway) -> None:
    person = await account(client)
    for email in (person.email, person.email.upper()):
        reply = await client.call("admin.users.create", access=await client.admin(), email=email, **NAMES)
        assert reply.code == "EMAIL_ALREADY_REGISTERED"
    rows = await audited(client, "invitation_refused", None)
    assert {"reason": "EMAIL_ALREADY_REGISTERED", "role": "user"}.items() <= rows[0]["details"].items()
    assert rows[0]["success"] is False


async def test_a_suspended_account_is_out_at_once_and_back_when_it_is_let_in(client: Gateway) -> None:
    person = await signed_in(client)
    suspended = await act(client, "update-status", person, status="suspended", reason="spam")
    assert suspended.data["user"]["status"] == "suspended"
    assert (await client.call("me.get", access=person.access)).code == "INVALID_TOKEN"
    assert (await client.call("auth.refresh", refreshToken=person.refresh)).code == "INVALID_TOKEN"
    assert await login(client, person) == "ACCOUNT_SUSPENDED"
    (changed,) = await events_of(client, person, "UserStatusChanged")
    assert changed["data"] == {"userId": person.id, "from": "active", "to": "suspended", "reason": "spam"}
    (revoked,) = await events_of(client, person, "SessionRevoked")
    assert revoked["data"]["reason"] == "suspended"
    (row,) = await audited(client, "user_status_changed", person.id)
    assert row["actorId"] == changed["metadata"]["actorId"]
    assert (await act(client, "update-status", person, status="active")).data["user"]["status"] == "active"
    assert await login(client, person) == "OK"
    assert (await client.call("me.get", access=person.access)).code == "INVALID_TOKEN"  # ended is ended


async def test_what_is_so_already_leaves_no_event_but_an_audit_row(client: Gateway) -> None:
    person = await account(client)
    for verb, body, action in (
        ("update-status", {"status": "active"}, "status_kept"),
        ("update-role", {"role": "user"}, "role_kept"),
        ("unlock", {}, "tries_cleared"),
        ("revoke-sessions", {}, "sessions_revoked"),
    ):
        assert (await act(client, verb, person, **body)).ok
        (row,) = await audited(client, action, person.id)
        assert (row["details"], row["success"]) == ({"reason": "a reason of ours"}, True)
    async with database(client.ready) as rows:
        assert await rows.fetchval("SELECT version FROM users WHERE id = $1", person.uuid) == 2  # register, verify mail


async def test_another_role_counts_at_once(client: Gateway) -> None:
    person = await signed_in(client)
    assert (await client.call("admin.users.list", access=person.access)).code == "FORBIDDEN"
    assert (await act(client, "update-role", person, role="moderator")).data["user"]["role"] == "moderator"
    assert (await client.call("admin.users.list", access=person.access)).ok
    (changed,) = await events_of(client, person, "UserRoleChanged")
    wanted = {"userId": person.id, "from": "user", "to": "moderator", "reason": "a reason of ours"}
    assert changed["data"] == wanted
    await client.mail_to(person.email, "moderator")
    assert (await act(client, "update-role", person, role="user")).ok
    assert (await client.call("admin.users.list", access=person.access)).code == "FORBIDDEN"


async def test_unlocking_takes_the_lock_and_the_failures_away(client: Gateway) -> None:
    person = await account(client)
    async with database(client.ready) as rows:
        await rows.execute(
            "UPDATE users SET account_locked = true, lockout_until = now() + interval '1 h', "
            "failed_login_attempts = 50 WHERE id = $1", person.uuid,
        )  # fmt: skip
    assert (await act(client, "unlock", person)).data["user"]["id"] == person.id
    shown = (await client.call("admin.users.get", access=await client.admin(), userId=person.id)).data["security"]
    assert (shown["accountLocked"], shown["lockoutUntil"], shown["failedLoginAttempts"]) == (False, None, 0)
    (unlocked,) = await events_of(client, person, "AccountUnlocked")
    assert unlocked["data"]["reason"] == "a reason of ours"
    assert (await act(client, "unlock", person)).ok


async def test_a_disowned_password_opens_nothing_before_it_is_reset(client: Gateway) -> None:
    person = await signed_in(client)
    assert (await act(client, "require-password-reset", person)).data["user"]["id"] == person.id
    assert (await client.call("me.get", access=person.access)).code == "INVALID_TOKEN"
    assert await login(client, person) == "PASSWORD_RESET_REQUIRED"
    (event,) = await events_of(client, person, "PasswordResetRequired")
    assert event["data"]["reason"] == "a reason of ours"
    assert (await act(client, "require-password-reset", person)).ok
    await audited(client, "reset_requirement_kept", person.id)
    assert (await client.call("auth.forgot-password", email=person.email)).ok
    token = token_of(await client.mail_to(person.email, "reset-password"))
    assert (await client.call("auth.reset-password", token=token, newPassword="Difference-Engine-1822")).ok
    assert await login(client, person, "Difference-Engine-1822") == "OK"


async def test_all_sessions_of_an_account_end(client: Gateway) -> None:
    first = await signed_in(client)
    second = await sign_in(client, first)
    assert (await act(client, "revoke-sessions", first)).data == {"revoked": 2}
    for person in (first, second):
        assert (await client.call("me.get", access=person.access)).code == "INVALID_TOKEN"
    assert (await act(client, "revoke-sessions", first)).data == {"revoked": 0}
    reasons = {event["data"]["reason"] for event in await events_of(client, first, "SessionRevoked")}
    assert reasons == {"revoked_by_admin"}
    assert len(await audited(client, "sessions_revoked", first.id)) == 2


async def test_a_lost_second_factor_is_turned_off(client: Gateway) -> None:
    app = await enrolled(client)
    person = Person(str(app.user_id), app.email, "user", app.access)
    shown = (await client.call("admin.users.get", access=await client.admin(), userId=person.id)).data
    assert shown["security"]["twoFactorEnabled"] is True
    assert (await act(client, "reset-two-factor", person)).data == {}
    signed = (await client.call("auth.login", email=app.email, password=PASSWORD)).data
    assert "tokens" in signed
    (event,) = await events_of(client, person, "TwoFactorDisabled")
    assert event["data"]["by"] == "admin"
    (row,) = await audited(client, "two_factor_reset", person.id)
    assert row["details"] == {"reason": "a reason of ours"}
    assert (await act(client, "reset-two-factor", person)).code == "CONFLICT"
    (refused,) = await audited(client, "two_factor_reset_refused", person.id)
    assert (refused["success"], refused["details"]) == (False, {"reason": "CONFLICT"})


async def test_a_deleted_account_is_gone(client: Gateway) -> None:
    person = await signed_in(client)
    assert (await act(client, "delete", person)).data == {}
    assert (await client.call("me.get", access=person.access)).code == "INVALID_TOKEN"
    assert await login(client, person) == "INVALID_CREDENTIALS"
    (event,) = await events_of(client, person, "UserDeleted")
    assert event["data"]["by"] == "admin"
    access = await client.admin()
    assert (await client.call("admin.users.get", access=access, userId=person.id)).code == "NOT_FOUND"
    for status, found in ((None, 0), ("active", 0), ("deleted", 1)):
        query: dict[str, Any] = {"search": person.email} | ({} if status is None else {"status": status})
        assert len((await client.call("admin.users.list", access=access, **query)).data) == found
    for verb, body in (("delete", {}), ("unlock", {}), ("update-status", {"status": "active"})):
        assert (await act(client, verb, person, **body)).code == "NOT_FOUND"


async def test_a_forbidden_act_is_written_down(client: Gateway) -> None:
    moderator, target = await signed_in(client, "moderator"), await account(client, "admin")
    body: dict[str, Any] = {"userId": target.id, "reason": "a coup"}
    assert (await client.call("admin.users.delete", access=moderator.access, **body)).code == "FORBIDDEN"
    (row,) = await audited(client, "deletion_refused", target.id)
    assert (row["actorId"], row["success"], row["details"]) == (moderator.id, False, {"reason": "FORBIDDEN"})


async def test_an_act_is_done_once_for_a_key(client: Gateway) -> None:
    person, access = await account(client), await client.admin()
    headers = {"Idempotency-Key": uuid4().hex}
    body: dict[str, Any] = {"userId": person.id, "status": "suspended", "reason": "spam"}
    replies = [await client.call("admin.users.update-status", access=access, headers=headers, **body) for _ in range(2)]
    assert replies[0].data == replies[1].data
    assert replies[1].headers["Idempotent-Replayed"] == "true"
    refused = {"Idempotency-Key": uuid4().hex}
    reset: dict[str, Any] = {"userId": person.id, "reason": "lost"}
    for _ in range(2):
        reply = await client.call("admin.users.reset-two-factor", access=access, headers=refused, **reset)
        assert reply.code == "CONFLICT"
    assert len(await audited(client, "two_factor_reset_refused", person.id)) == 1


@pytest.mark.parametrize("verb", BY_REASON)
@pytest.mark.parametrize("reason", ["", "   ", "x" * 501, None, 7], ids=["empty", "blank", "long", "null", "number"])
async def test_a_reason_has_one_to_five_hundred_letters(client: Gateway, verb: str, reason: object) -> None:
    body: dict[str, Any] = {"userId": str(uuid4()), "reason": reason}
    reply = await client.call(f"admin.users.{verb}", access=await client.admin(), **body)
    assert reply.code == "VALIDATION_ERROR"
    assert [fault["field"] for fault in reply.body["error"]["details"]] == ["reason"]


@pytest.mark.parametrize(
    ("verb", "body", "field"),
    [
        ("update-status", {"status": "deleted"}, "status"),
        ("update-role", {"role": "king"}, "role"),
        ("update-role", {"role": "user", "reason": "import"}, "reason"),
        ("unlock", {"userId": "x"}, "userId"),
    ],
    ids=["deleted", "king", "reserved", "no id"],
)
async def test_what_no_act_takes_is_refused(client: Gateway, verb: str, body: dict[str, Any], field: str) -> None:
    wanted = {"userId": str(uuid4()), "reason": "a reason"} | body
    reply = await client.call(f"admin.users.{verb}", access=await client.admin(), **wanted)
    assert [fault["field"] for fault in reply.body["error"]["details"]] == [field]


async def test_an_account_that_is_not_there_is_not_found(client: Gateway) -> None:
    nobody = Person(str(UUID(int=1)), "nobody@example.com", "user")
    for verb in BY_REASON:
        assert (await act(client, verb, nobody)).code == "NOT_FOUND"
