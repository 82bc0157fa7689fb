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
from tests.gateway import Gateway, Reply, database, new_email, stored_events

GROUPS = ("email", "audit", "cache")
_ADDRESS = re.compile(rb"^To: *(\S+)", re.MULTILINE)
_MESSAGE_ID = re.compile(rb"^Message-ID:\s*<(\S+)>", re.MULTILINE)

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


def mails_by_address(mail_dir: Path) -> dict[str, Counter[str]]:
    """How often each `Message-ID` has come to each address."""
    found: dict[str, Counter[str]] = {}
    for path in stored_mails(mail_dir):
        head = path.read_bytes()[:2000]
        to, message_id = _ADDRESS.search(head), _MESSAGE_ID.search(head)
        assert to
        assert message_id
        found.setdefault(to[1].decode(), Counter())[message_id[1].decode()] += 1
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
