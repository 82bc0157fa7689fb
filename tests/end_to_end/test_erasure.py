"""Canaries in every personal field: once their user is erased, they are found nowhere but in mail that was sent."""

import asyncio
import base64
import json
import random
import string
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest_asyncio
from redis.asyncio import Redis

from adapters.mail_sink import token_of
from tests.gateway import PASSWORD, Gateway, database, gateway, stored_events
from tests.pictures import picture
from tests.program import Dev, command, eventually


@dataclass(frozen=True)
class Gone:
    """An erased user, and the words that they had put everywhere."""

    user_id: str
    email: str
    access: str
    key: str
    canaries: dict[str, str]

    def found_in(self, content: bytes) -> list[str]:
        """Which of the words stand there: as they are, in hex, or in base 64."""
        return [name for name, word in self.canaries.items() if any(form in content for form in forms(word.encode()))]


def forms(word: bytes) -> tuple[bytes, ...]:
    return word, word.hex().encode(), base64.b64encode(word)[:-4]


def a_word() -> str:
    """A name by the rules, and nothing like any other text."""
    return "Zq" + "".join(random.SystemRandom().choices(string.ascii_lowercase, k=18))


@pytest_asyncio.fixture(scope="module")
async def house(tmp_path_factory: object) -> AsyncIterator[Dev]:
    """A `dev` with a short grace; its limits are on, so that Valkey holds what it may hold."""
    base: Path = tmp_path_factory.mktemp("erasure")  # type: ignore[attr-defined]
    async with Dev(
        base / "data",
        USER_SERVICE_ERASE_AFTER_SECONDS="1",
        USER_SERVICE_RATE_LIMITS="on",
        USER_SERVICE_DUPLICATE_WINDOW_SECONDS="1",
    ) as running:
        yield running


@pytest_asyncio.fixture(scope="module")
async def gone(house: Dev) -> AsyncIterator[Gone]:
    async with gateway(house.ready) as client:
        user = await live_and_leave(house, client)
        await erased(house, user)
        yield user


async def live_and_leave(house: Dev, client: Gateway) -> Gone:
    names = ("email", "moved to", "asked for", "first name", "last name", "display name", "bio", "location", "agent",
             "device", "letter", "reason")  # fmt: skip
    words = {name: a_word() for name in names}
    canaries = words | {"ip": f"2001:db8:{uuid4().hex[:3]}e:7::51"}
    headers = {"User-Agent": words["agent"], "Device-Id": words["device"], "Client-Ip": canaries["ip"]}
    email, moved = f"{words['email']}@cage.example".lower(), f"{words['moved to']}@cage.example".lower()
    canaries |= {"address": email, "new address": moved}
    account: dict[str, Any] = {"email": email, "password": PASSWORD, "acceptTerms": True}
    registered = await client.call(
        "auth.register", headers=headers, firstName=words["first name"], lastName=words["last name"], **account
    )
    user_id = registered.data["user"]["id"]
    token = token_of(await client.mail_to(email, "verify-email"))
    await client.call("auth.verify-email", headers=headers, token=token)
    admin = await client.admin()
    for status in ("suspended", "active"):
        act: dict[str, Any] = {"userId": user_id, "status": status, "reason": f"{words['reason']} rang"}
        (await client.call("admin.users.update-status", access=admin, **act)).data  # noqa: B018
    await client.call("auth.login", headers=headers, email=email, password="not it")
    login = await client.call(
        "auth.login", headers=headers | {"Idempotency-Key": uuid4().hex}, email=email, password=PASSWORD
    )
    access, key = login.data["tokens"]["accessToken"], uuid4().hex
    profile: dict[str, Any] = {"displayName": words["display name"], "bio": words["bio"], "location": words["location"]}
    (await client.call("profile.update", access=access, headers=headers, **profile)).data  # noqa: B018
    image = base64.b64encode(picture()).decode()
    uploaded = await client.call("profile.avatar.upload", access=access, contentType="image/png", data=image)
    canaries["avatar"] = uploaded.data["avatar"]["sizes"]["256"].rpartition("/")[2].partition("-")[0]
    ask: dict[str, Any] = {"access": access, "headers": headers, "password": PASSWORD}
    await client.call("me.change-email", newEmail=moved, **ask)
    confirm = token_of(await client.mail_to(moved, "confirm-email-change"))
    (await client.call("me.confirm-email-change", access=access, token=confirm)).data  # noqa: B018
    await client.call("me.change-email", newEmail=f"{words['asked for']}@cage.example", **ask)
    await client.call("me.get", access=access)
    await a_letter_dies(house, user_id, words["letter"])
    assert await found_somewhere(house, Gone(user_id, moved, access, key, canaries))
    ask["headers"] = headers | {"Idempotency-Key": key}
    (await client.call("me.delete", **ask)).data  # noqa: B018
    return Gone(user_id, moved, access, key, canaries)


async def a_letter_dies(house: Dev, user_id: str, word: str) -> None:
    """A dead letter of the user, as a row and announced on its stream."""
    async with database(house.ready) as rows:
        event_id = await rows.fetchval("SELECT id FROM events WHERE aggregate_id = $1 LIMIT 1", UUID(user_id))
        await rows.execute(
            "INSERT INTO dead_letters (id, group_name, event_id, n, user_id, event_type, reason, error, message, "
            "subject, body, headers, attempts, deliveries, stream_sequence) "
            "VALUES (gen_random_uuid(), 'email', $1, 1, $2, 'UserRegistered', 'mail_refused', 'Permanent', $3, 'x', "
            "$4, $5, $5, 1, 1)",
            event_id, UUID(user_id), word, json.dumps({"email": word}).encode(), json.dumps({"x": word}),
        )  # fmt: skip

        async def is_announced() -> bool:
            return bool(await rows.fetchval("SELECT announced_at FROM dead_letters WHERE user_id = $1", UUID(user_id)))

        await eventually(is_announced, within_s=20, what="the letter to be announced")


async def erased(house: Dev, user: Gone) -> None:
    async with database(house.ready) as rows:

        async def is_swept() -> bool:
            return bool(await rows.fetchval("SELECT swept_at FROM users WHERE id = $1", UUID(user.user_id)))

        await eventually(is_swept, within_s=30, what="the user to be erased")


async def found_somewhere(house: Dev, user: Gone) -> bool:
    """Before: the search is one that finds what is there."""
    tables, files = await found_in_tables(house, user), await found_in_files(house, user, "nats")
    return len(tables) > 8 and len(files) > 5


async def found_in_tables(house: Dev, user: Gone) -> set[tuple[str, str]]:
    async with database(house.ready) as rows:
        tables = await rows.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        return {(table["tablename"], name) for table in tables for name in await found_in_table(rows, user, table[0])}


async def found_in_table(rows: asyncpg.Connection, user: Gone, table: str) -> list[str]:
    try:
        dump = "\n".join(row[0] for row in await rows.fetch(f'SELECT t::text FROM "{table}" t'))
    except asyncpg.InsufficientPrivilegeError:
        return []  # none that a user's data gets into
    return user.found_in(dump.encode())


async def found_in_files(house: Dev, user: Gone, part: str) -> set[tuple[str, str]]:
    def search() -> set[tuple[str, str]]:
        files = [path for path in house.data_dir.rglob("*") if path.is_file() and part in str(path)]
        assert files
        return {(str(path.relative_to(house.data_dir)), name) for path in files for name in user.found_in(read(path))}

    def read(path: Path) -> bytes:
        with suppress(FileNotFoundError):  # servers write to a file beside it, and rename that
            return path.read_bytes()
        return b""

    return await asyncio.to_thread(search)


async def test_no_table_holds_a_word_of_theirs(house: Dev, gone: Gone) -> None:
    assert await found_in_tables(house, gone) == set()


async def test_the_files_of_the_bus_hold_none(house: Dev, gone: Gone) -> None:
    assert await found_in_files(house, gone, "nats") == set()


async def test_the_files_of_postgresql_hold_none_once_they_are_written_anew(house: Dev, gone: Gone) -> None:
    """Rows that were deleted stand in the pages and in the log until then: this search finds them."""
    assert await found_in_files(house, gone, "postgres") != set()
    code, out, err = await command("scrub", "--json", "--ready-file", str(house.ready_file))
    assert (code, json.loads(out)) == (0, {"left": []}), err
    left = await found_in_files(house, gone, "")
    assert {path.partition("/")[0] for path, _ in left} <= {"mail"}, left


async def test_valkey_holds_none(house: Dev, gone: Gone) -> None:
    connection = Redis.from_url(house.ready["redisUrl"])
    try:
        keys = [key async for key in connection.scan_iter(count=1000)]
        held = b"\n".join([*keys, *[await connection.dump(key) or b"" for key in keys]])
    finally:
        await connection.aclose()
    assert any(key.startswith(b"rate_limit:") for key in keys)
    assert gone.found_in(held) == []


async def test_the_log_holds_none(house: Dev, gone: Gone) -> None:
    assert "me.delete" in house.log
    assert gone.found_in(house.log.encode()) == []


async def test_the_last_event_is_announced_and_alone_on_the_stream(house: Dev, gone: Gone) -> None:
    async def types() -> list[str]:
        return [event["type"] for event in await stored_events(house.ready, f"users.events.v1.*.{gone.user_id}")]

    async def is_there() -> bool:
        return await types() == ["UserErased"]

    await eventually(is_there, within_s=20, what="UserErased")


async def test_history_is_whole_and_sealed_for_good(house: Dev, gone: Gone) -> None:
    async with database(house.ready) as rows:
        versions = await rows.fetch(
            "SELECT version, type FROM events WHERE aggregate_id = $1 ORDER BY 1", UUID(gone.user_id)
        )
        keys = await rows.fetchval("SELECT count(*) FROM user_keys WHERE user_id = $1", UUID(gone.user_id))
        sealed = await rows.fetchval(
            "SELECT count(*) FROM audit_logs WHERE user_id = $1 AND personal IS NOT NULL", UUID(gone.user_id)
        )
    assert [row["version"] for row in versions] == list(range(1, len(versions) + 1))
    assert [row["type"] for row in versions][-2:] == ["UserDeleted", "UserErased"]
    assert keys == 0
    assert sealed > 0


async def test_the_owner_was_told_before_the_address_was_gone(house: Dev, gone: Gone) -> None:
    async with database(house.ready) as rows:
        outcome = await rows.fetchval(
            "SELECT i.outcome FROM inbox i JOIN events e ON e.id = i.event_id "
            "WHERE e.aggregate_id = $1 AND e.type = 'UserDeleted' AND i.group_name = 'email'",
            UUID(gone.user_id),
        )
    assert outcome == "sent"


async def test_the_token_opens_nothing_and_the_key_of_the_deletion_neither(house: Dev, gone: Gone) -> None:
    async with gateway(house.ready) as client:
        headers = {"Idempotency-Key": gone.key}
        again = await client.call("me.delete", access=gone.access, headers=headers, password=PASSWORD)
    assert again.code == "INVALID_TOKEN"


_AUDITED = "SELECT count(*) FROM audit_logs WHERE user_id = $1 AND action <> 'user_erased'"
_AGAIN = """
INSERT INTO outbox (position, user_id, version) SELECT position, aggregate_id, version FROM events
WHERE aggregate_id = $1 AND type <> 'UserErased'"""
_LEFT = """
SELECT count(*) FROM events e WHERE aggregate_id = $1 AND type <> 'UserErased' AND (
    SELECT count(*) FROM inbox i WHERE i.event_id = e.id AND i.group_name IN ('email', 'audit', 'cache')) < 3"""


async def test_old_events_that_come_again_bring_nothing_back(house: Dev) -> None:
    """As if no group had ever had them: there is nobody to write to, and no key."""
    async with gateway(house.ready) as client, database(house.ready) as rows:
        user = await live_and_leave(house, client)
        await erased(house, user)
        user_id = UUID(user.user_id)
        mails = len(client.mails_to(user.email))
        audited = await rows.fetchval(_AUDITED, user_id)
        async with rows.transaction():
            await rows.execute(
                "DELETE FROM inbox WHERE event_id IN (SELECT id FROM events WHERE aggregate_id = $1)", user_id
            )
            await rows.execute("UPDATE relay_heads SET version = 0 WHERE user_id = $1", user_id)
            await rows.execute(_AGAIN, user_id)

        async def all_had() -> bool:
            return not await rows.fetchval(_LEFT, user_id)

        await eventually(all_had, within_s=30, what="all groups to have had the events again")
        outcomes = await rows.fetch(
            "SELECT DISTINCT i.outcome FROM inbox i JOIN events e ON e.id = i.event_id "
            "WHERE e.aggregate_id = $1 AND i.group_name = 'email'", user_id,
        )  # fmt: skip
        letters = await rows.fetchval("SELECT count(*) FROM dead_letters WHERE user_id = $1", user_id)
        assert await rows.fetchval(_AUDITED, user_id) == audited
        assert {row["outcome"] for row in outcomes} <= {"user_gone", "no_mail"}
        assert (letters, len(client.mails_to(user.email))) == (1, mails)
        assert await found_in_tables(house, user) == set()
        assert await found_in_files(house, user, "nats") == set()


async def test_the_address_may_be_taken_again(house: Dev) -> None:
    async with gateway(house.ready) as client:
        user = await live_and_leave(house, client)
        await erased(house, user)
        again = await client.register(user.email, headers={"Client-Ip": "192.0.2.99"})
        assert again.data["user"]["id"] != user.user_id
