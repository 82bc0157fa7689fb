"""People at work while something fails: each answer is right or a typed refusal, in time, and what was told stands."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from nats.errors import Error as NatsError

from tests.faults.house import House
from tests.faults.ledger import Ledger, require_audit, require_rows, require_stream, until_finished
from tests.gateway import PASSWORD, Gateway, Reply, database, new_email, registration

AWAY = {"SERVICE_UNAVAILABLE", "OVERLOADED", "DEADLINE_EXCEEDED"}
UNVERIFIED = {"USER_SERVICE_REQUIRE_VERIFIED_EMAIL": "false"}
BACK_S_MAX = 9.0  # 3 s are promised; this machine is shared
LATE_S_MAX = 5.0
"""How long after its deadline an answer is still waited for: the wire and two busy cores may take so long."""
UNSURE_S_MAX = 4.0
_HALVES = """
SELECT u.email, u.id, u.version,
    EXISTS (SELECT FROM user_profiles p WHERE p.user_id = u.id)
        AND EXISTS (SELECT FROM user_keys k WHERE k.user_id = u.id)
        AND EXISTS (SELECT FROM links l WHERE l.user_id = u.id) AS is_whole
FROM users u WHERE u.email = ANY($1)"""

_BIOS = "SELECT user_id, bio FROM user_profiles WHERE user_id = ANY($1)"


@dataclass(frozen=True)
class Outcome:
    """What became of one request, and after how long."""

    operation: str
    code: str
    seconds: float


@dataclass
class Person:
    """A user that knows what it was told, and what may have come about without an answer."""

    email: str
    user_id: UUID
    tokens: dict[str, Any]
    renewal_unsure_since: float | None = None
    """When a refresh was first not answered well: its token may be spent, and past the grace would end the session."""
    bio: str | None = None
    perhaps: set[str] = field(default_factory=set)

    def may_show(self, bio: str | None) -> bool:
        return bio == self.bio or bio in self.perhaps


class People:
    """So many users, each doing one thing after the other until told to stop."""

    def __init__(self, client: Gateway, *, deadline_s: float) -> None:
        self._client = client
        self._deadline_s = deadline_s
        self._stop = asyncio.Event()
        self.people: list[Person] = []
        self.ledger = Ledger()
        self.outcomes: list[Outcome] = []

    def count(self, code: str = "OK") -> int:
        return sum(outcome.code == code for outcome in self.outcomes)

    @property
    def codes(self) -> set[str]:
        return {outcome.code for outcome in self.outcomes}

    @property
    def longest_s(self) -> float:
        """The longest that anybody waited, whatever for."""
        return max(outcome.seconds for outcome in self.outcomes)

    @property
    def longest_refusal_s(self) -> float:
        """The longest that anybody waited for a refusal."""
        return max((outcome.seconds for outcome in self.outcomes if outcome.code in AWAY), default=0.0)

    @asynccontextmanager
    async def at_work(self, number: int) -> AsyncIterator[None]:
        """So many new ones and those of before work while the block lasts."""
        self.people += await asyncio.gather(*(self._join() for _ in range(number)))
        self._stop.clear()
        async with asyncio.TaskGroup() as group:
            for person in self.people:
                group.create_task(self._work(person))
            yield
            self._stop.set()

    async def until_answered(self, number: int, *, within_s: float) -> float:
        """Wait for so many more good answers; the seconds until the first of them."""
        began, before = time.monotonic(), self.count()
        first_s = None
        async with asyncio.timeout(within_s):
            while (answered := self.count() - before) < number:
                if answered and first_s is None:
                    first_s = time.monotonic() - began
                await asyncio.sleep(0.01)
        return time.monotonic() - began if first_s is None else first_s

    async def _join(self) -> Person:
        email = new_email()
        reply = await self._client.register(email)
        self.ledger.accepted[email] = reply
        found = (await self._client.call("auth.login", email=email, password=PASSWORD)).data
        return Person(email, UUID(reply.data["user"]["id"]), found["tokens"])

    async def _work(self, person: Person) -> None:
        number = 0
        while not self._stop.is_set():
            number += 1
            await self._register()
            await self._write(person, f"bio {number}")
            await self._read(person)
            await self._renew(person, sign_in=number % 2 == 0)
            await asyncio.sleep(0.02)

    async def _register(self) -> None:
        email = new_email()
        self.ledger.unanswered.add(email)
        reply = await self.ask("auth.register", **registration(email))
        if reply is not None:
            self.ledger.unanswered.discard(email)
            (self.ledger.accepted if reply.ok else self.ledger.refused)[email] = reply

    async def _write(self, person: Person, bio: str) -> None:
        person.perhaps.add(bio)
        reply = await self.ask("profile.update", access=person.tokens["accessToken"], bio=bio)
        if reply is not None and reply.ok:
            assert reply.data["profile"]["bio"] == bio
            person.bio, person.perhaps = bio, set()

    async def _read(self, person: Person) -> None:
        reply = await self.ask("me.get", access=person.tokens["accessToken"])
        if reply is not None and reply.ok:
            assert reply.data["user"]["id"] == str(person.user_id)
            assert person.may_show(reply.data["profile"]["bio"]), (reply.data, person)

    async def _renew(self, person: Person, *, sign_in: bool) -> None:
        unsure_since = person.renewal_unsure_since
        if sign_in or (unsure_since is not None and time.monotonic() - unsure_since > UNSURE_S_MAX):
            reply = await self.ask("auth.login", email=person.email, password=PASSWORD)
        else:
            began = time.monotonic()
            reply = await self.ask("auth.refresh", refreshToken=person.tokens["refreshToken"])
            person.renewal_unsure_since = unsure_since or began
        if reply is not None and reply.ok:
            person.tokens, person.renewal_unsure_since = reply.data["tokens"], None

    async def ask(self, operation: str, *, access: str | None = None, **body: object) -> Reply | None:
        """One request with a deadline: its answer, right or a typed refusal; None when nobody answered in time."""
        until = datetime.now(UTC) + timedelta(seconds=self._deadline_s)
        began = time.monotonic()
        try:
            reply = await self._client.call(
                operation, access=access, headers={"Deadline": until.isoformat()},
                timeout=self._deadline_s + LATE_S_MAX, **body,
            )  # fmt: skip
        except (NatsError, TimeoutError, OSError):
            self.outcomes.append(Outcome(operation, "SILENCE", time.monotonic() - began))
            return None
        assert reply.ok or reply.code in AWAY, (operation, reply.body)
        self.outcomes.append(Outcome(operation, reply.code, time.monotonic() - began))
        return reply

    async def require_kept(self, house: House, *, within_s: float = 45) -> Counter[str]:
        """All that was told stands, what was not stands whole or not at all, and the stream has all of it in order."""
        await until_finished(house.ready, self.ledger.user_ids.values(), within_s=within_s)
        versions = await require_rows(house.ready, self.ledger.user_ids)
        untold = [*self.ledger.refused, *self.ledger.unanswered]
        async with database(house.ready) as rows:
            found = await rows.fetch(_HALVES, untold)
            bios = await rows.fetch(_BIOS, [person.user_id for person in self.people])
        assert all(row["is_whole"] for row in found)
        await until_finished(house.ready, [row["id"] for row in found], within_s=within_s)
        shown = {row["user_id"]: row["bio"] for row in bios}
        assert all(person.may_show(shown[person.user_id]) for person in self.people)
        events = await require_stream(house.ready, versions | {row["id"]: row["version"] for row in found})
        await require_audit(house.ready, (event for of_user in events.values() for event in of_user))
        return Counter(outcome.code for outcome in self.outcomes)


async def answering_after_s(house: House) -> float:
    """Seconds until somebody who asks anew is answered."""
    began = time.monotonic()
    async with asyncio.timeout(30):
        while True:
            try:
                async with house.gateway() as client:
                    if (await client.call("auth.jwks", timeout=0.3)).ok:
                        return time.monotonic() - began
            except (NatsError, OSError, TimeoutError):
                await asyncio.sleep(0.02)
