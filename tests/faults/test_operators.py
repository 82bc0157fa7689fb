"""Operators act from two processes at once: no right outlives its end, and an admin is left, whatever they do."""

import asyncio
from typing import Any

import asyncpg
import pytest

from tests.faults.house import ADMIN_EMAIL, House
from tests.gateway import Gateway, database
from tests.people import Person, account, sign_in, signed_in
from tests.program import RACE_ROUNDS

ROUNDS, AT_ONCE = RACE_ROUNDS, 20
TOLD_WITHIN_S = 1.0


async def codes_of(client: Gateway, operation: str, person: Person, **body: Any) -> set[str]:  # noqa: ANN401 - JSON
    """What many requests at once are answered: each process serves some of them."""
    replies = await asyncio.gather(*(client.call(operation, access=person.access, **body) for _ in range(AT_ONCE)))
    return {reply.code for reply in replies}


@pytest.mark.parametrize("end", ["role", "status", "sessions"])
async def test_a_right_ends_in_every_process_within_a_second(house: House, end: str) -> None:
    async with house.run(), house.run("requests"), house.gateway() as client:
        root, moderator = await signed_in(client, "admin"), await signed_in(client, "moderator")
        target = await account(client)
        assert await codes_of(client, "admin.users.list", moderator) == {"OK"}  # both know the moderator from here on
        verb, wanted, refusal = {
            "role": ("update-role", {"role": "user"}, "FORBIDDEN"),
            "status": ("update-status", {"status": "suspended"}, "INVALID_TOKEN"),
            "sessions": ("revoke-sessions", {}, "INVALID_TOKEN"),
        }[end]
        body: dict[str, Any] = {"userId": moderator.id, "reason": "left us", **wanted}
        assert (await client.call(f"admin.users.{verb}", access=root.access, **body)).ok

        # No act comes after it, not even where the news has not arrived: rows are asked under their locks.
        act: dict[str, Any] = {"userId": target.id, "reason": "still here"}
        assert await codes_of(client, "admin.users.unlock", moderator, **act) == {refusal}

        await asyncio.sleep(TOLD_WITHIN_S)  # what was promised, and no longer
        if end != "role":
            assert await codes_of(client, "me.sessions.list", moderator) == {"INVALID_TOKEN"}
        assert await codes_of(client, "admin.users.list", moderator) == {refusal}


async def admins_left(rows: asyncpg.Connection, people: list[Person]) -> set[str]:
    found = await rows.fetch(
        "SELECT id FROM users WHERE id = ANY($1) AND role = 'admin' AND status = 'active'",
        [person.uuid for person in people],
    )
    return {str(row["id"]) for row in found}


async def suspended_of(rows: asyncpg.Connection, people: list[Person]) -> set[str]:
    found = await rows.fetch(
        "SELECT id FROM users WHERE id = ANY($1) AND status = 'suspended'", [person.uuid for person in people]
    )
    return {str(row["id"]) for row in found}


async def bring_back(client: Gateway, root: Person, person: Person, *, suspended: bool) -> Person:
    """An admin again, and signed in."""
    verb, wanted = ("update-status", {"status": "active"}) if suspended else ("update-role", {"role": "admin"})
    body: dict[str, Any] = {"userId": person.id, "reason": "back again", **wanted}
    assert (await client.call(f"admin.users.{verb}", access=root.access, **body)).ok
    return await sign_in(client, person) if suspended else person


@pytest.mark.timeout(400)
async def test_of_admins_who_end_each_other_at_once_one_stays(house: House) -> None:
    async with (
        house.run(),
        house.run("requests"),
        house.gateway() as client,
        database(client.ready) as rows,
    ):
        people = [await signed_in(client, "admin") for _ in range(AT_ONCE)]
        others = await rows.fetch(
            "UPDATE users SET role = 'moderator' WHERE role = 'admin' AND NOT id = ANY($1) RETURNING id",
            [person.uuid for person in people],
        )
        try:
            for _ in range(ROUNDS):
                acts = []
                for number, caller in enumerate(people):
                    verb, wanted = (
                        ("update-role", {"role": "user"}) if number % 5 else ("update-status", {"status": "suspended"})
                    )
                    body: dict[str, Any] = {"userId": people[number - 1].id, "reason": "a coup", **wanted}
                    acts.append(client.call(f"admin.users.{verb}", access=caller.access, **body))
                codes = {reply.code for reply in await asyncio.gather(*acts)}
                assert codes <= {"OK", "FORBIDDEN", "INVALID_TOKEN"}
                left = await admins_left(rows, people)
                assert 0 < len(left) < AT_ONCE
                root = next(person for person in people if person.id in left)
                stayed = [person for person in people if person.id in left]
                gone = [person for person in people if person.id not in left]
                out = await suspended_of(rows, gone)
                back = (bring_back(client, root, person, suspended=person.id in out) for person in gone)
                people = [*stayed, *await asyncio.gather(*back)]
        finally:
            await rows.execute(
                "UPDATE users SET role = 'admin' WHERE id = ANY($1) OR email = $2",
                [row["id"] for row in others],
                ADMIN_EMAIL,
            )
