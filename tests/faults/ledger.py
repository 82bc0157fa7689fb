"""What was acknowledged to a caller, and afterwards: does all of it stand, once, everywhere it should?"""

import asyncio
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from nats.errors import Error as NatsError

from adapters.mail_sink import stored_mails
from adapters.tokens import hash_of
from tests.gateway import Gateway, Reply, address_of, database, new_email, stored_events

GROUPS = ("email", "audit", "cache")
_MESSAGE_ID = re.compile(rb"^Message-ID:\s*<(\S+)>", re.MULTILINE)

_TOKENS = """
SELECT t.hash, t.successor_hash, s.refresh_token_hash AS live, s.ended_at, s.end_reason
FROM refresh_tokens t JOIN user_sessions s ON s.id = t.session_id WHERE t.hash = ANY($1)"""
_UNFINISHED = """
SELECT count(*) FROM events e CROSS JOIN unnest($2::text[]) AS g (name)
WHERE e.aggregate_id = ANY($1) AND NOT EXISTS (SELECT FROM inbox i WHERE i.event_id = e.id AND i.group_name = g.name)"""


@dataclass
class Ledger:
    """Registrations by address: the replies, and the key that each was sent with."""

    accepted: dict[str, Reply] = field(default_factory=dict)
    refused: dict[str, Reply] = field(default_factory=dict)
    unanswered: set[str] = field(default_factory=set)

    @property
    def user_ids(self) -> dict[str, UUID]:
        return {email: UUID(reply.data["user"]["id"]) for email, reply in self.accepted.items()}

    async def register(self, client: Gateway, emails: Iterable[str], *, at_once: int) -> None:
        """Register these addresses, so many at once, each under a key of its own; write down what came back."""
        waiting = list(emails)

        async def work() -> None:
            while waiting:
                email = waiting.pop()
                self.unanswered.add(email)
                try:
                    reply = await client.register(email, headers={"Idempotency-Key": key_of(email)})
                except (NatsError, TimeoutError, OSError):
                    continue
                self.unanswered.discard(email)
                (self.accepted if reply.ok else self.refused)[email] = reply

        await asyncio.gather(*(work() for _ in range(at_once)))


@dataclass
class Changes:
    """One caller's profile changes: each has a bio of its own, and is written down in the order of replies."""

    user_id: UUID
    acknowledged: list[str] = field(default_factory=list)
    unanswered: set[str] = field(default_factory=set)


@dataclass
class Family:
    """One session's refresh tokens, in the order in which they were given; the last may have been spent unanswered."""

    tokens: list[str]
    is_unanswered: bool = False


def emails(count: int) -> list[str]:
    return [new_email() for _ in range(count)]


def key_of(email: str) -> str:
    return f"key-of-{email}"


async def until_finished(ready: Mapping[str, Any], user_ids: Iterable[UUID], *, within_s: float) -> None:
    """Wait until every group has dealt with every event of these users."""
    wanted = list(user_ids)
    async with database(ready) as rows:
        try:
            async with asyncio.timeout(within_s):
                while await rows.fetchval(_UNFINISHED, wanted, list(GROUPS)):
                    await asyncio.sleep(0.05)
        except TimeoutError:
            left = await rows.fetchval(_UNFINISHED, wanted, list(GROUPS))
            waiting = await rows.fetchval("SELECT count(*) FROM outbox WHERE user_id = ANY($1)", wanted)
            raise AssertionError(f"{left} deliveries not done, {waiting} events not announced") from None


async def require_rows(ready: Mapping[str, Any], user_ids: Mapping[str, UUID]) -> dict[UUID, int]:
    """One account for each address, with the id that its owner was told; the versions of the rows."""
    async with database(ready) as rows:
        found = await rows.fetch("SELECT email, id, version FROM users WHERE email = ANY($1)", list(user_ids))
    assert Counter(row["email"] for row in found) == Counter(dict.fromkeys(user_ids, 1))
    assert {row["email"]: row["id"] for row in found} == user_ids
    return {row["id"]: row["version"] for row in found}


async def require_stream(ready: Mapping[str, Any], versions: Mapping[UUID, int]) -> dict[UUID, list[dict[str, Any]]]:
    """Every user's events stand on the stream by version, from 1 to the row's, each once; the events."""
    by_user: dict[UUID, list[dict[str, Any]]] = {user_id: [] for user_id in versions}
    for event in await stored_events(ready):
        by_user.get(UUID(event["aggregateId"]), []).append(event)
    for user_id, version in versions.items():
        assert [event["version"] for event in by_user[user_id]] == list(range(1, version + 1)), user_id
    return by_user


async def require_audit(ready: Mapping[str, Any], events: Iterable[dict[str, Any]]) -> None:
    """Each event has one audit row."""
    wanted = [UUID(event["id"]) for event in events]
    async with database(ready) as rows:
        found = await rows.fetch("SELECT event_id FROM audit_logs WHERE event_id = ANY($1)", wanted)
    assert Counter(row["event_id"] for row in found) == Counter(wanted)


def require_changes(events: Iterable[dict[str, Any]], changes: Changes) -> None:
    """Acknowledged changes are events in that order, each once; what had no answer came about once or never."""
    bios = [event["data"]["changed"]["bio"] for event in events if event["type"] == "ProfileUpdated"]
    known = set(changes.acknowledged)
    assert [bio for bio in bios if bio in known] == changes.acknowledged, changes.user_id
    assert max(Counter(bios).values(), default=0) <= 1, changes.user_id
    assert set(bios) <= known | changes.unanswered, changes.user_id


async def require_last_states(
    ready: Mapping[str, Any], events: Mapping[UUID, list[dict[str, Any]]], all_changes: Iterable[Changes]
) -> None:
    """A profile is what its last change made it: the last acknowledged one, or one that had no answer."""
    async with database(ready) as rows:
        for changes in all_changes:
            bio = await rows.fetchval("SELECT bio FROM user_profiles WHERE user_id = $1", changes.user_id)
            written = [
                event["data"]["changed"]["bio"] for event in events[changes.user_id] if "changed" in event["data"]
            ]
            assert [bio] == written[-1:] or (bio is None and not written), changes.user_id
            assert bio in {*changes.acknowledged[-1:], *changes.unanswered, None}, changes.user_id


async def require_families(ready: Mapping[str, Any], families: Iterable[Family]) -> None:
    """Each token that was given follows the one before; the last is the live one, or its unanswered successor is."""
    async with database(ready) as rows:
        for family in families:
            hashes = [hash_of(token) for token in family.tokens]
            found = {row["hash"]: row for row in await rows.fetch(_TOKENS, hashes)}
            assert found.keys() == set(hashes)
            assert [found[before]["successor_hash"] for before in hashes[:-1]] == hashes[1:]
            last = found[hashes[-1]]
            assert last["ended_at"] is None, last["end_reason"]
            assert last["live"] in ({hashes[-1], last["successor_hash"]} if family.is_unanswered else {hashes[-1]})


def mails_by_address(mail_dir: Path) -> dict[str, Counter[str]]:
    """How often each `Message-ID` has come to each address."""
    found: dict[str, Counter[str]] = {}
    for path in stored_mails(mail_dir):
        head = path.read_bytes()[:2000]
        message_id = _MESSAGE_ID.search(head)
        assert message_id
        found.setdefault(address_of(head), Counter())[message_id[1].decode()] += 1
    return found


def require_mail(mail_dir: Path, addresses: Iterable[str], *, twice_max: int) -> int:
    """One mail each, none thrice, at most so many twice; how many were."""
    found = mails_by_address(mail_dir)
    twice = 0
    for address in addresses:
        counts = found.get(address, Counter())
        assert len(counts) == 1, f"{address}: {counts}"
        times = next(iter(counts.values()))
        assert times <= 2, f"{address}: {counts}"
        twice += times == 2
    assert twice <= twice_max, twice
    return twice
