"""Every path that ends a session, as one table: its event comes, and its tokens are refused within a second in every
process; at once in the one that wrote.

Two processes answer requests here. Which one does is the bus' choice, so what is asked is asked often enough that both
are heard.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
import pytest
import pytest_asyncio

from tests.faults.house import House, open_house
from tests.gateway import PASSWORD, Gateway, Reply, new_email, stored_events
from tests.program import eventually

NEW_PASSWORD = "Difference_Engine#1822"
ASKED = range(16)
"""So often both processes are asked; that one of them is not is a chance of 1 in 32,768."""


@pytest_asyncio.fixture(scope="module")
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    """All groups in one process, and one more that answers requests."""
    base: Path = tmp_path_factory.mktemp("two")
    async with open_house(base) as found, found.run(), found.run("requests"):
        yield found


@pytest_asyncio.fixture
async def client(house: House) -> AsyncIterator[Gateway]:
    async with house.gateway() as found:
        yield found


@dataclass
class Held:
    """A session that is about to end, and what it takes to end it."""

    client: Gateway
    user: dict[str, Any]
    tokens: dict[str, Any]

    async def call(self, operation: str, **body: Any) -> Reply:  # noqa: ANN401 - JSON
        """As the bearer of the session."""
        return await accepted(self.client.call(operation, access=self.tokens["accessToken"], **body))

    async def from_elsewhere(self, operation: str, **body: Any) -> Reply:  # noqa: ANN401 - JSON
        """As the same user, signed in once more."""
        other = await self.sign_in()
        return await accepted(self.client.call(operation, access=other["accessToken"], **body))

    async def by_admin(self, operation: str, **body: Any) -> Reply:  # noqa: ANN401 - JSON
        """As an admin, on this user."""
        admin = await self.client.admin()
        return await accepted(self.client.call(operation, access=admin, userId=self.user["id"], **body))

    async def sign_in(self) -> dict[str, Any]:
        reply = await accepted(self.client.call("auth.login", email=self.user["email"], password=PASSWORD))
        found: dict[str, Any] = reply.data["tokens"]
        return found

    async def codes_of(self, operation: str) -> set[str]:
        """What every process answers to the bearer of the session."""
        access = self.tokens["accessToken"]
        return {
            reply.code for reply in await asyncio.gather(*(self.client.call(operation, access=access) for _ in ASKED))
        }

    async def remembered_by_all(self) -> None:
        """Every process has seen the session live."""
        assert await self.codes_of("me.get") == {"OK"}

    async def refused_by_all(self) -> bool:
        token = self.tokens["accessToken"]
        verdicts = await asyncio.gather(*(self.client.call("auth.verify-token", token=token) for _ in ASKED))
        return all(verdict.data == {"active": False} for verdict in verdicts)

    async def mailed_token(self, page: str, *, mails: int = 1, to: str | None = None) -> str:
        """What stands behind a page's link in the newest of so many mails."""
        email = to or self.user["email"]

        async def there() -> bool:
            return len(self.client.mails_to(email, page)) >= mails

        await eventually(there, within_s=20, what=f"a mail with {page}")
        body = self.client.mails_to(email, page)[-1].get_body(("plain",))
        assert body is not None
        (link,) = [word for word in body.get_content().split() if page in word]
        return str(link).partition("token=")[2]


async def accepted(asked: Awaitable[Reply]) -> Reply:
    reply = await asked
    assert reply.ok, reply.body
    return reply


async def log_out(held: Held) -> None:
    await held.call("auth.logout")


async def log_out_by_the_refresh_token(held: Held) -> None:
    await accepted(held.client.call("auth.logout", refreshToken=held.tokens["refreshToken"]))


async def revoke_it(held: Held) -> None:
    (session,) = (await held.call("me.sessions.list")).data
    await held.call("me.sessions.revoke", sessionId=session["id"])


async def revoke_it_from_elsewhere(held: Held) -> None:
    (session,) = (await held.call("me.sessions.list")).data
    await held.from_elsewhere("me.sessions.revoke", sessionId=session["id"])


async def revoke_all(held: Held) -> None:
    assert (await held.call("me.sessions.revoke-others", includeCurrent=True)).data == {"revoked": 1}


async def revoke_the_others(held: Held) -> None:
    assert (await held.from_elsewhere("me.sessions.revoke-others")).data == {"revoked": 1}


async def use_a_spent_token(held: Held) -> None:
    first = held.tokens["refreshToken"]
    second = await accepted(held.client.call("auth.refresh", refreshToken=first))
    held.tokens |= second.data["tokens"]
    await accepted(held.client.call("auth.refresh", refreshToken=held.tokens["refreshToken"]))
    assert (await held.client.call("auth.refresh", refreshToken=first)).code == "INVALID_TOKEN"


async def sign_in_past_the_cap(held: Held) -> None:
    for _ in range(10):
        await held.sign_in()


async def disown_it(held: Held) -> None:
    await held.call("auth.logout")
    held.tokens = await held.sign_in()  # the second sign-in is the first from a new device
    await held.remembered_by_all()
    token = await held.mailed_token("/not-me?", mails=2)  # the first is in the verification mail
    await accepted(held.client.call("auth.not-me", token=token))


async def reset_the_password(held: Held) -> None:
    await accepted(held.client.call("auth.forgot-password", email=held.user["email"]))
    token = await held.mailed_token("/reset-password?")
    await accepted(held.client.call("auth.reset-password", token=token, newPassword=NEW_PASSWORD))


async def change_the_password_elsewhere(held: Held) -> None:
    await held.from_elsewhere("me.change-password", currentPassword=PASSWORD, newPassword=NEW_PASSWORD)


async def undo_a_change_of_address(held: Held) -> None:
    new = new_email()
    await held.call("me.change-email", newEmail=new, password=PASSWORD)
    confirm = await held.mailed_token("/confirm-email-change?", to=new)
    cancel = await held.mailed_token("/cancel-email-change?")
    await held.call("me.confirm-email-change", token=confirm)
    await held.remembered_by_all()
    await accepted(held.client.call("auth.cancel-email-change", token=cancel))


async def delete_the_account(held: Held) -> None:
    await held.call("me.delete", password=PASSWORD)


async def suspend(held: Held) -> None:
    await held.by_admin("admin.users.update-status", status="suspended", reason="spam")


async def delete_as_admin(held: Held) -> None:
    await held.by_admin("admin.users.delete", reason="asked for")


async def require_a_reset(held: Held) -> None:
    await held.by_admin("admin.users.require-password-reset", reason="leaked")


async def revoke_as_admin(held: Held) -> None:
    assert (await held.by_admin("admin.users.revoke-sessions", reason="stolen")).data == {"revoked": 1}


ENDS: dict[str, tuple[Callable[[Held], Awaitable[None]], str]] = {
    "logout": (log_out, "UserLoggedOut"),
    "logout, by the refresh token": (log_out_by_the_refresh_token, "UserLoggedOut"),
    "revoked by its bearer": (revoke_it, "revoked"),
    "revoked from another session": (revoke_it_from_elsewhere, "revoked"),
    "all revoked": (revoke_all, "revoked"),
    "the others revoked": (revoke_the_others, "revoked"),
    "a spent refresh token": (use_a_spent_token, "refresh_token_reused"),
    "more sessions than the cap": (sign_in_past_the_cap, "session_cap"),
    "disowned by mail": (disown_it, "not_me"),
    "the password reset": (reset_the_password, "password_reset"),
    "the password changed elsewhere": (change_the_password_elsewhere, "password_changed"),
    "a change of address undone": (undo_a_change_of_address, "email_change_undone"),
    "the account deleted": (delete_the_account, "account_deleted"),
    "the account deleted by an admin": (delete_as_admin, "account_deleted"),
    "suspended": (suspend, "suspended"),
    "a reset required": (require_a_reset, "password_reset_required"),
    "revoked by an admin": (revoke_as_admin, "revoked_by_admin"),
}
"""How a session ends, and what is told of it: `SessionRevoked` with this reason, or an event of its own."""


@pytest.mark.parametrize("path", ENDS)
async def test_what_ends_a_session_is_told_and_its_tokens_are_refused_everywhere(
    house: House, client: Gateway, path: str
) -> None:
    found = await client.signed_in()
    held = Held(client, found["user"], found["tokens"])
    end, told = ENDS[path]
    await held.remembered_by_all()
    await end(held)
    await eventually(held.refused_by_all, within_s=3, what="its access token to be refused everywhere")
    assert await held.codes_of("me.get") == {"INVALID_TOKEN"}
    assert (await client.call("auth.refresh", refreshToken=held.tokens["refreshToken"])).code == "INVALID_TOKEN"
    await eventually(lambda: _told(house, held), within_s=10, what="the event")
    assert await _told(house, held) == [told]


def session_of(tokens: dict[str, Any]) -> str:
    return str(jwt.decode(tokens["accessToken"], options={"verify_signature": False})["sid"])


async def _told(house: House, held: Held) -> list[str]:
    """What the stream says of the session's end: the reason, or the type that needs none."""
    session_id = session_of(held.tokens)
    return [
        event["data"].get("reason", event["type"])
        for event in await stored_events(house.ready, f"users.events.v1.*.{held.user['id']}")
        if event["type"] in {"SessionRevoked", "UserLoggedOut"} and event["data"]["sessionId"] == session_id
    ]
