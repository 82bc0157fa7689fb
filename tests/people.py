"""Accounts of every role, made for a test."""

from dataclasses import dataclass
from uuid import UUID

from tests.gateway import PASSWORD, Gateway, database, new_email, registration


@dataclass(frozen=True, slots=True)
class Person:
    """An account, its address verified, and what it signs in with."""

    id: str
    email: str
    role: str
    access: str = ""
    refresh: str = ""

    @property
    def uuid(self) -> UUID:
        return UUID(self.id)


async def account(client: Gateway, role: str = "user") -> Person:
    """An account of a role, written into its row: nobody is signed in."""
    email = new_email()
    user = (await client.call("auth.register", **registration(email))).data["user"]
    async with database(client.ready) as rows:
        await rows.execute("UPDATE users SET role = $2, email_verified = true WHERE id = $1", UUID(user["id"]), role)
    return Person(user["id"], email, role)


async def signed_in(client: Gateway, role: str = "user") -> Person:
    """An account of a role with a session."""
    return await sign_in(client, await account(client, role))


async def sign_in(client: Gateway, person: Person) -> Person:
    """The same account with one session more."""
    tokens = (await client.call("auth.login", email=person.email, password=PASSWORD)).data["tokens"]
    return Person(person.id, person.email, person.role, tokens["accessToken"], tokens["refreshToken"])


async def grown_old(client: Gateway, person: Person) -> Person:
    """The same session, whose proof of identity is twenty minutes old."""
    async with database(client.ready) as rows:
        await rows.execute(
            "UPDATE user_sessions SET auth_time = auth_time - interval '20 min' WHERE user_id = $1", person.uuid
        )
    tokens = (await client.call("auth.refresh", refreshToken=person.refresh)).data["tokens"]
    return Person(person.id, person.email, person.role, tokens["accessToken"], tokens["refreshToken"])
