"""The worker of replays: hands the letters of a job to their group again, at its rate, as far as that goes well.

Any process with the group `jobs` may do it; one at a time works on a job, and goes on where another died.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import accumulate
from uuid import UUID

import structlog
from nats.aio.client import Client
from nats.errors import Error as NatsError

from adapters.bounded import BoundedDict
from adapters.event_log import StoredEvent, events_by_id
from adapters.nats import MessageTooLarge, carriable, require_fits
from adapters.personal_data import PersonalData
from adapters.postgres import Connection, Database
from adapters.replays import (
    Overdue,
    Progress,
    Sendable,
    Turn,
    end_job,
    give_back_job,
    give_up,
    lease_job,
    mark_sent,
    next_letters,
    note_looked_for,
    overdue_letters,
    release_held,
    renew_lease,
    settle,
)
from adapters.streams import REPLAYS_STREAM, message_at
from domain.refusals import Overloaded, Stale, Unavailable
from handlers.relay import headers_of

log = structlog.get_logger()

POLL_S = 1.0
TURN_S = 3.0
"""So long a job is worked on before another has its turn."""
KNOWN_JOBS_MAX = 100
HELD_MAX = 1000
"""Held letters that go on with one job."""
BURST_S = 0.5
"""So much of its rate a replay may save up."""
STEP_S = 0.1
PUBLISH_S = 2.0
IN_FLIGHT_MAX = 256
SETTLED_MAX = 1000
STAGES = (1, 10)
LOOKED_AT = 20
FAILED_MAX = 10
"""So many of the last `LOOKED_AT` outcomes may fail; with more of them the group is not well, and the replay stops."""


class Replayer:
    """Works on replays for ever, one at a time."""

    def __init__(
        self, database: Database, client: Client, personal: PersonalData, *, now: Callable[[], datetime]
    ) -> None:
        self._database = database
        self._client = client
        self._personal = personal
        self._now = now
        self._latest: BoundedDict[UUID, deque[str]] = BoundedDict(KNOWN_JOBS_MAX)

    async def run(self) -> None:
        while True:
            try:
                async with self._database.transaction() as connection:
                    await release_held(connection, letters_max=HELD_MAX, at=self._now())
                    turn = await lease_job(connection)
                if turn is not None:
                    latest = self._latest.setdefault(turn.job_id, deque(maxlen=LOOKED_AT))
                    await _Round(self._database, self._client, self._personal, turn, latest).run()
                    continue
            except (Unavailable, Overloaded, Stale, NatsError, TimeoutError, OSError) as error:
                log.warning("replays wait", error=type(error).__name__)
            await asyncio.sleep(POLL_S)


class _Round:
    """One process' work on one job: what it sends, and what it sees come of it."""

    def __init__(
        self, database: Database, client: Client, personal: PersonalData, turn: Turn, latest: deque[str]
    ) -> None:
        self._database = database
        self._client = client
        self._personal = personal
        self._js = client.jetstream()
        self._turn = turn
        self._latest = latest
        self._burst_s = max(BURST_S, 1.01 / turn.rate)
        self._paid_until = time.monotonic()

    async def run(self) -> None:
        """Until there is nothing left to do for it, or it is another's turn."""
        over_at = time.monotonic() + max(TURN_S, 2 / self._turn.rate)
        while await self._step():
            if time.monotonic() > over_at:
                async with self._database.connection() as connection:
                    await give_back_job(connection, self._turn.job_id)
                return
            await asyncio.sleep(STEP_S)

    async def _step(self) -> bool:
        """Note what has come of what was sent, and send what may be sent now; False when there is no more to do."""
        job_id = self._turn.job_id
        await self._look_for_overdue()
        async with self._database.transaction() as connection:
            self._latest.extend(await settle(connection, job_id, unsent_max=SETTLED_MAX))
            progress = await renew_lease(connection, job_id)
            if progress is None:
                return False
            if not progress.runs:
                return progress.in_flight > 0
            ending = self._ending(progress)
            if ending is not None:
                await end_job(connection, job_id, *ending)
                log.info("replay ended", jobId=str(job_id), state=ending[0], why=ending[1])
                return False
            letters = await self._whole(connection, await next_letters(connection, job_id, self._room(progress)))
        if letters:
            await self._send(letters)
        return True

    async def _look_for_overdue(self) -> None:
        """What has no answer for long is sent again where the stream has lost it, and only there: where its group is
        slow, or nobody runs it, a copy would only be one more."""
        async with self._database.connection() as connection:
            overdue = await overdue_letters(connection, self._turn.job_id, letters_max=IN_FLIGHT_MAX)
        if not overdue:
            return
        lost = [letter.place for letter in overdue if not await self._is_on_the_stream(letter)]
        async with self._database.connection() as connection:
            await note_looked_for(connection, self._turn.job_id, [letter.place for letter in overdue], lost=lost)

    async def _is_on_the_stream(self, letter: Overdue) -> bool:
        found = None if letter.sequence is None else await message_at(self._js, REPLAYS_STREAM, letter.sequence)
        message_id = (found.headers or {}).get("Nats-Msg-Id", "") if found else ""
        return message_id.startswith(f"{letter.event_id}:r")

    async def _whole(self, connection: Connection, turns: Sequence[Sendable]) -> list[Sendable]:
        """Those that can be sent: an event without a letter as the relay would announce it."""
        events = [turn.event_id for turn in turns if turn.letter_id is None]
        found = await events_by_id(connection, self._personal, events) if events else {}
        whole: list[Sendable] = []
        unreadable: list[int] = []
        for turn in turns:
            stored = found.get(turn.event_id)
            if turn.letter_id is not None:
                whole.append(turn)
            elif isinstance(stored, StoredEvent):
                whole.append(replace(turn, body=stored.body, headers=headers_of(stored)))
            else:
                unreadable.append(turn.place)
        if unreadable:
            log.error(
                "events cannot be read, and are not replayed", jobId=str(self._turn.job_id), count=len(unreadable)
            )
            await give_up(connection, self._turn.job_id, unreadable)
        return whole

    def _ending(self, progress: Progress) -> tuple[str, str | None] | None:
        """The state in which the job ends now, and why; None while it goes on."""
        if progress.left == 0:
            return "done", None
        failed = self._latest.count("failed_again")
        if self._turn.careful and progress.failed and progress.settled <= sum(STAGES):
            return "stopped", f"{progress.failed} of the first {progress.settled} failed again"
        if failed > FAILED_MAX:
            return "stopped", f"{failed} of the last {len(self._latest)} failed again"
        return None

    def _room(self, progress: Progress) -> int:
        """How many may be sent now: by the stage, by what is on its way, and by the rate."""
        open_max = IN_FLIGHT_MAX
        if self._turn.careful:
            reached = next((ends for ends in accumulate(STAGES) if progress.settled < ends), None)
            open_max = IN_FLIGHT_MAX if reached is None else reached - progress.settled
        now = time.monotonic()
        self._paid_until = max(self._paid_until, now - self._burst_s)
        return max(0, min(open_max - progress.in_flight, int((now - self._paid_until) * self._turn.rate)))

    async def _send(self, letters: Sequence[Sendable]) -> None:
        """All at once: before the one whose turn it is, nothing of its user's is open."""
        self._paid_until += len(letters) / self._turn.rate
        sent = await asyncio.gather(*(self._publish(letter) for letter in letters))
        async with self._database.connection() as connection:
            await mark_sent(connection, self._turn.job_id, dict(one for one in sent if one is not None))

    async def _publish(self, letter: Sendable) -> tuple[int, int] | None:
        """To its group alone; the letter's place, and its message's on the stream."""
        subject = f"users.replay.{letter.group}.{letter.event_type}.{letter.user_id or 'unknown'}"
        original = carriable(letter.headers)
        kept = {name: value for name, value in original.items() if not name.lower().startswith("nats-")}
        headers = kept | self._named(letter)
        try:
            require_fits(self._client, letter.body, headers)
            ack = await self._js.publish(subject, letter.body, timeout=PUBLISH_S, headers=headers)
        except (NatsError, MessageTooLarge, TimeoutError, OSError) as error:
            log.warning("a letter waits to be replayed", eventId=str(letter.event_id), error=type(error).__name__)
            return None
        return letter.place, int(ack.seq)

    def _named(self, letter: Sendable) -> dict[str, str]:
        """A second copy within the server's window counts as the first: each replay has an id of its own."""
        if letter.letter_id is None:
            return {"Nats-Msg-Id": f"{letter.event_id}:r0.{self._turn.job_id}"}
        return {"Nats-Msg-Id": f"{letter.event_id}:r{letter.n}", "Dead-Letter-Id": str(letter.letter_id)}
