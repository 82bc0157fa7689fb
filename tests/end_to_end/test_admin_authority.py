"""Who may act on whom: every cell of the table, on every operation that there is for operators."""

from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from contracts.api import OPERATIONS
from contracts.operations import Permission
from tests.gateway import Gateway, database, gateway, new_email
from tests.people import Person, account, grown_old, signed_in
from tests.program import Dev

ROLES = ("user", "moderator", "admin")
LOWER_OR_SAME = {"user": (), "moderator": ("user",), "admin": ROLES}

# For each act on an account: what is asked beside its id, whose accounts each role may do it to, and who to oneself.
ACTS: dict[str, tuple[dict[str, Any], dict[str, tuple[str, ...]], tuple[str, ...]]] = {
    "admin.users.get": ({}, {"user": (), "moderator": ROLES, "admin": ROLES}, ("moderator", "admin")),
    "admin.users.update-status": ({"status": "suspended", "reason": "spam"}, LOWER_OR_SAME, ()),
    "admin.users.update-role": ({"role": "user", "reason": "left"}, {"admin": ROLES}, ()),
    "admin.users.unlock": ({"reason": "called us"}, LOWER_OR_SAME, ("admin",)),
    "admin.users.require-password-reset": ({"reason": "leaked"}, LOWER_OR_SAME, ("admin",)),
    "admin.users.revoke-sessions": ({"reason": "stolen"}, LOWER_OR_SAME, ("admin",)),
    "admin.users.reset-two-factor": ({"reason": "lost"}, LOWER_OR_SAME, ()),
    "admin.users.delete": ({"reason": "asked for"}, LOWER_OR_SAME, ()),
}
# Operations on no account: who may call them.
OTHERS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "admin.users.list": ({}, ("moderator", "admin")),
    "admin.users.create": ({"firstName": "Ada", "lastName": "Lovelace"}, ("moderator", "admin")),
    "admin.audit-logs.list": ({}, ("moderator", "admin")),
}
FOR_ADMINS = [operation for operation in OPERATIONS if isinstance(operation.caller, Permission)]
FRESH = sorted(operation.subject.removeprefix("users.v1.") for operation in FOR_ADMINS if operation.fresh)
ALLOWED = {"OK", "CONFLICT"}
"""Two-factor is off on the targets: resetting it is a conflict, which only who may do it is told."""


def body_of(operation: str) -> dict[str, Any]:
    """A body that is accepted, on an account that is not there."""
    if operation in ACTS:
        return ACTS[operation][0] | {"userId": str(uuid4())}
    extra = {"email": new_email()} if operation == "admin.users.create" else {}
    return OTHERS[operation][0] | extra


def test_every_operation_for_operators_has_its_row() -> None:
    wanted = {operation.subject.removeprefix("users.v1.") for operation in FOR_ADMINS}
    assert {name for name in wanted if "dead-letters" not in name and "timeline" not in name} == {*ACTS, *OTHERS}


async def trace(client: Gateway, person: Person) -> tuple[Any, ...]:
    """All of an account that an act could change."""
    async with database(client.ready) as rows:
        row = await rows.fetchrow(
            "SELECT role, status, version, password_reset_required, failed_login_attempts FROM users WHERE id = $1",
            person.uuid,
        )
        ended = await rows.fetchval(
            "SELECT count(*) FROM user_sessions WHERE user_id = $1 AND ended_at IS NOT NULL", person.uuid
        )
    return (*(row or ()), ended)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("operation", sorted(ACTS))
async def test_who_may_act_on_whom(client: Gateway, operation: str, role: str) -> None:
    body, allowed, on_oneself = ACTS[operation]
    caller = await signed_in(client, role)
    for other in ROLES:
        target = await account(client, other)
        before = await trace(client, target)
        reply = await client.call(operation, access=caller.access, userId=target.id, **body)
        if other in allowed.get(role, ()):
            assert reply.code in ALLOWED, (other, reply.body)
        else:
            assert (other, reply.code) == (other, "FORBIDDEN")
            assert await trace(client, target) == before
    before = await trace(client, caller)
    itself = await client.call(operation, access=caller.access, userId=caller.id, **body)
    if role in on_oneself:
        assert itself.ok
    else:
        assert itself.code == "FORBIDDEN"
        assert await trace(client, caller) == before


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("operation", sorted(OTHERS))
async def test_who_may_call_what_is_on_no_account(client: Gateway, operation: str, role: str) -> None:
    caller = await signed_in(client, role)
    reply = await client.call(operation, access=caller.access, **body_of(operation))
    assert reply.code == ("OK" if role in OTHERS[operation][1] else "FORBIDDEN")


@pytest.mark.parametrize("role", ROLES)
async def test_nobody_gives_a_role_above_their_own(client: Gateway, role: str) -> None:
    caller = await signed_in(client, role)
    target = await account(client)
    for given in ROLES:
        body: dict[str, Any] = {"email": new_email(), "firstName": "Ada", "lastName": "Lovelace", "role": given}
        created = await client.call("admin.users.create", access=caller.access, **body)
        assert (given, created.code) == (given, "OK" if given in LOWER_OR_SAME[role] else "FORBIDDEN")
        raised = await client.call("admin.users.update-role", access=caller.access, userId=target.id, role=given)
        assert (given, raised.code) == (given, "OK" if role == "admin" else "FORBIDDEN")


@pytest.mark.parametrize("operation", sorted({*ACTS, *OTHERS}))
async def test_only_the_acts_that_weigh_ask_for_a_fresh_proof(client: Gateway, operation: str) -> None:
    old = await grown_old(client, await signed_in(client, "admin"))
    reply = await client.call(operation, access=old.access, **body_of(operation))
    if operation in FRESH:
        assert reply.code == "REAUTHENTICATION_REQUIRED"
        assert reply.body["error"]["maxAge"] == 900
    else:
        assert reply.code in {"OK", "NOT_FOUND"}


def test_what_weighs_is_what_was_promised() -> None:
    weigh = ("create", "delete", "reset-two-factor", "update-role", "update-status")
    assert [name for name in FRESH if "dead-letters" not in name] == [f"admin.users.{verb}" for verb in weigh]


async def test_what_counts_is_the_role_of_the_row_and_not_of_the_token(client: Gateway) -> None:
    root, caller = await signed_in(client, "admin"), await signed_in(client, "moderator")
    target = await account(client)
    demoted = await client.call("admin.users.update-role", access=root.access, userId=caller.id, role="user")
    assert demoted.data["user"]["role"] == "user"
    body: dict[str, Any] = {"userId": target.id, "reason": "still in my token"}
    assert (await client.call("admin.users.unlock", access=caller.access, **body)).code == "FORBIDDEN"
    raised = await client.call("admin.users.update-role", access=root.access, userId=caller.id, role="admin")
    assert raised.data["user"]["role"] == "admin"
    assert (await client.call("admin.users.unlock", access=caller.access, **body)).ok


async def test_without_a_second_factor_no_operator_acts_where_it_is_asked_for(tmp_path: Path) -> None:
    async with (
        Dev(tmp_path / "data", USER_SERVICE_ADMIN_SECOND_FACTOR="true") as dev,
        gateway(dev.ready) as client,
    ):
        people = {role: await signed_in(client, role) for role in ROLES}
        for operation in sorted({*ACTS, *OTHERS}):
            for role, caller in people.items():
                reply = await client.call(operation, access=caller.access, **body_of(operation))
                lacks = role == "user" or (role == "moderator" and operation == "admin.users.update-role")
                assert (operation, role, reply.code) == (
                    operation,
                    role,
                    "FORBIDDEN" if lacks else "TWO_FACTOR_REQUIRED",
                )
