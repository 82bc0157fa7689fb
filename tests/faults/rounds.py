"""One round: callers write all the while, the schedule of a seed strikes, and then the ledger must balance."""

import asyncio
import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

from nats.errors import Error as NatsError

from tests.faults.house import House
from tests.faults.ledger import (
    Changes,
    Family,
    Ledger,
    emails,
    key_of,
    require_audit,
    require_changes,
    require_families,
    require_last_states,
    require_mail,
    require_rows,
    require_stream,
    until_finished,
)
from tests.faults.people import AWAY, UNVERIFIED
from tests.faults.schedule import Fault, Stage
from tests.gateway import PASSWORD, Gateway, Reply, gateway, registration

ANSWER_S = 3.0
FORGOTTEN = 0.2  # so many of those who had no answer do not ask again
GRACE_S = 6.0  # a refresh token is shown again no later: well within the ten seconds in which that is no theft
MAILS_AT_ONCE = 4
WRITERS, REFRESHERS, REGISTRARS = 8, 4, 4


class Callers:
    """All callers of a round, over one connection that is made again whenever it is lost."""

    def __init__(self, house: House, seed: int) -> None:
        self._house = house
        self._chance = random.Random(seed)
        self._stack: Any = None
        self._client: Gateway | None = None
        self._connecting = asyncio.Lock()
        self.stop = asyncio.Event()
        self.ledger = Ledger()
        self.changes: list[Changes] = []
        self.families: list[Family] = []
        self.unanswered = 0

    async def sign_up(self) -> list[dict[str, Any]]:
        """Those who write and refresh: registered and signed in before anything happens."""
        found = []
        for email in emails(WRITERS + REFRESHERS):
            await self.registered(email)
            found.append((await self._until_answered("auth.login", {}, email=email, password=PASSWORD)).data)
        return found

    async def write(self, user: dict[str, Any]) -> None:
        """One profile change after the other; one without an answer is asked for again under its key, or forgotten."""
        changes = Changes(UUID(user["user"]["id"]))
        access = {"Authorization": f"Bearer {user['tokens']['accessToken']}"}
        self.changes.append(changes)
        while not self.stop.is_set():
            bio = f"change-{uuid4()}"
            changes.unanswered.add(bio)
            while not self.stop.is_set():
                if await self._ask("profile.update", access | {"Idempotency-Key": f"key-of-{bio}"}, bio=bio):
                    changes.acknowledged.append(bio)
                    changes.unanswered.discard(bio)
                    break
                if self._chance.random() < FORGOTTEN:
                    break
            await self._pause()

    async def refresh(self, user: dict[str, Any]) -> None:
        """One refresh after the other; a token that had no answer is shown again, but not when that would be theft."""
        family = Family([user["tokens"]["refreshToken"]])
        self.families.append(family)
        while not self.stop.is_set() and not family.is_unanswered:
            first = time.monotonic()
            while not (reply := await self._ask("auth.refresh", {}, refreshToken=family.tokens[-1])):
                family.is_unanswered = True
                if time.monotonic() - first > GRACE_S or self.stop.is_set():
                    return
            family.is_unanswered = False
            family.tokens.append(reply.data["tokens"]["refreshToken"])
            await self._pause()

    async def register(self) -> None:
        """One address after the other, each asked for until it is registered."""
        while not self.stop.is_set():
            [email] = emails(1)
            await self.registered(email)
            await self._pause()

    async def registered(self, email: str) -> UUID:
        """Ask until the address is registered; the new user's id."""
        self.ledger.accepted[email] = await self._until_answered(
            "auth.register", {"Idempotency-Key": key_of(email)}, **registration(email)
        )
        return self.ledger.user_ids[email]

    async def _until_answered(self, operation: str, who: Mapping[str, str], **body: object) -> Reply:
        while not (reply := await self._ask(operation, who, **body)):
            await asyncio.sleep(0.1)
        return reply

    async def _ask(self, operation: str, who: Mapping[str, str], **body: object) -> Reply | None:
        """The acknowledgement, or None when there was no answer or the service said that it is away."""
        headers = {"Timeout-Ms": str(int(ANSWER_S * 800)), **who}
        try:
            client = await self._connected()
            reply = await client.send(
                f"users.v1.{operation}", json.dumps(body).encode(), headers=headers, timeout=ANSWER_S
            )
        except (NatsError, OSError, TimeoutError):
            self.unanswered += 1
            await asyncio.sleep(0.1)
            return None
        if reply.ok:
            return reply
        assert reply.code in AWAY, (operation, reply.body)
        self.unanswered += 1
        await asyncio.sleep(0.1)
        return None

    async def _connected(self) -> Gateway:
        async with self._connecting:
            if self._client is None or self._client.nc.is_closed:
                self._stack = gateway(self._house.ready)
                self._client = await self._stack.__aenter__()
            return self._client

    async def close(self) -> None:
        if self._client is not None:
            await self._stack.__aexit__(None, None, None)

    async def _pause(self) -> None:
        await asyncio.sleep(self._chance.uniform(0.02, 0.1))


async def require_seals(house: House) -> None:
    """The audit log was sealed all the while, and each row and seal is as it was written."""
    code, out, err = await house.command("audit", "verify", "--json")
    assert code == 0, out + err
    assert json.loads(out)["seals"] > 0


@dataclass(frozen=True)
class Kept:
    """How much of it there was."""

    events: int
    mails_twice: int


async def require_kept(house: House, callers: Callers, *, twice_max: int) -> Kept:
    """All that the callers were told stands, once, wherever it should."""
    everyone = callers.ledger.user_ids
    events = await require_stream(house.ready, await require_rows(house.ready, everyone))
    every = [event for of_user in events.values() for event in of_user]
    await require_audit(house.ready, every)
    for changes in callers.changes:
        require_changes(events[changes.user_id], changes)
    await require_last_states(house.ready, events, callers.changes)
    await require_families(house.ready, callers.families)
    return Kept(len(every), require_mail(house.mail_dir, everyone, twice_max=twice_max))


@dataclass
class Figures:
    """What a round was made of, and what came of it."""

    seed: int
    faults: int
    registered: int
    changed: int
    refreshed: int
    unanswered: int
    events: int
    mails_twice: int
    starts: dict[str, int] = field(default_factory=dict)
    settled_s: float = 0.0


async def play(house: House, seed: int, faults: Sequence[Fault]) -> Figures:
    """A round; it fails where anything acknowledged is lost, or anything stands twice that may not."""
    stage, callers = Stage(house, **UNVERIFIED), Callers(house, seed)
    try:
        async with stage.playing():
            users = await callers.sign_up()
            async with asyncio.TaskGroup() as calling:
                for user in users[:WRITERS]:
                    calling.create_task(callers.write(user))
                for user in users[WRITERS:]:
                    calling.create_task(callers.refresh(user))
                for _ in range(REGISTRARS):
                    calling.create_task(callers.register())
                await stage.suffer(faults)
                healed = time.monotonic()
                await stage.until_all_serve()
                callers.stop.set()
            everyone = callers.ledger.user_ids
            await until_finished(house.ready, everyone.values(), within_s=60)
            settled_s = time.monotonic() - healed
    finally:
        await callers.close()
    await require_seals(house)
    kept = await require_kept(house, callers, twice_max=MAILS_AT_ONCE * (stage.starts["groups"] - 1))
    return Figures(
        seed=seed,
        faults=len(faults),
        registered=len(everyone),
        changed=sum(len(changes.acknowledged) for changes in callers.changes),
        refreshed=sum(len(family.tokens) - 1 for family in callers.families),
        unanswered=callers.unanswered,
        events=kept.events,
        mails_twice=kept.mails_twice,
        starts=dict(stage.starts),
        settled_s=round(settled_s, 1),
    )
