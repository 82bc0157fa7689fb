"""A worker that dies under one event each time: that event becomes a letter, and the others go on."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from uuid import UUID

import pytest
from aiosmtpd.smtp import Envelope

from tests.faults.house import House, Run
from tests.faults.ledger import Ledger, emails, require_audit, require_rows, require_stream
from tests.faults.test_mail_outage import ASKED, letters_of
from tests.gateway import database
from tests.integration.mail_server import MailServer
from tests.program import eventually, until

PAUSES = "0.2"
DELIVERIES = 3  # two attempts, and the one that finds that both have ended without an answer
_NOT_DONE = """
SELECT e.aggregate_id, g.name FROM events e CROSS JOIN unnest($2::text[]) AS g (name)
WHERE e.aggregate_id = ANY($1) AND NOT EXISTS (SELECT FROM inbox i WHERE i.event_id = e.id AND i.group_name = g.name)"""


class Mortal:
    """The email group and its mail server: it is killed when the server hears of one address, and starts again."""

    def __init__(self, house: House) -> None:
        self.deadly = ""
        self.deaths = 0
        self.server = MailServer(on_rcpt=self._on_rcpt)
        self._house = house
        self._run: Run | None = None

    async def _on_rcpt(self, envelope: Envelope) -> str:
        if self.deadly in envelope.rcpt_tos and self._run is not None:
            self.deaths += 1
            await self._run.kill()
        return "250 OK"

    async def _live(self) -> None:
        while True:
            self._run = self._house.run("email", SMTP_URL=self.server.url, USER_SERVICE_DELIVERY_PAUSES=PAUSES)
            try:
                await self._run.launch()
                await self._run.process.wait()
            finally:
                await self._run.stop()

    @asynccontextmanager
    async def living(self) -> AsyncIterator[None]:
        """It lives, and lives again, while the block lasts."""
        await self.server.start()
        lives = asyncio.create_task(self._live())
        try:
            yield
            assert not lives.done()
        finally:
            lives.cancel()
            await asyncio.wait([lives])
            await self.server.stop()

    @property
    def mails(self) -> Counter[str]:
        return Counter(address for to, _ in self.server.received for address in to)


async def not_done(house: House, user_ids: list[UUID], *groups: str) -> Counter[UUID]:
    """How many deliveries these groups have not dealt with, by user."""
    async with database(house.ready) as rows:
        return Counter(row["aggregate_id"] for row in await rows.fetch(_NOT_DONE, user_ids, list(groups)))


@pytest.mark.timeout(240)  # each death costs the time after which a delivery is given to another
async def test_an_event_under_which_its_worker_dies_each_time_becomes_a_letter_and_the_others_go_on(
    house: House, record_testsuite_property: Callable[[str, object], None]
) -> None:
    wanted, later, ledger = emails(12), emails(6), Ledger()
    mortal = Mortal(house)
    mortal.deadly = wanted[5]
    async with (
        house.run("requests", "relay", "audit", "cache", USER_SERVICE_DELIVERY_PAUSES=PAUSES),
        house.gateway() as client,
    ):
        await ledger.register(client, wanted, at_once=6)
        async with mortal.living():
            await until(lambda: mortal.deaths, within_s=45, what="the first death")
            await ledger.register(client, later, at_once=6)
            began = time.monotonic()
            await until(lambda: set(later) <= mortal.mails.keys(), within_s=30, what="mail of those that came later")
            others_s = time.monotonic() - began
            everyone = list(ledger.user_ids.values())

            async def other_groups_are_done() -> bool:
                return not await not_done(house, everyone, "audit", "cache")

            await eventually(other_groups_are_done, within_s=20, what="the groups in which nobody dies")
            await letters_of(house, everyone, 1, within_s=70)
            dead = ledger.user_ids[mortal.deadly]

            async def all_but_the_dead() -> bool:
                return await not_done(house, everyone, "email") == {dead: 1}

            await eventually(all_but_the_dead, within_s=20, what="every other mail to be done with")
            [letter] = await letters_of(house, everyone, 1)
    events = await require_stream(house.ready, await require_rows(house.ready, ledger.user_ids))
    await require_audit(house.ready, (event for of_user in events.values() for event in of_user))

    record_testsuite_property("worker death: deaths", mortal.deaths)
    record_testsuite_property("worker death: mails twice", sum(n - 1 for n in mortal.mails.values()))
    record_testsuite_property("worker death: mail of later users, seconds", others_s)
    assert (letter["reason"], letter["group_name"], letter["event_type"]) == ("worker_died", "email", ASKED)
    assert (letter["user_id"], letter["deliveries"]) == (dead, DELIVERIES)
    assert mortal.deaths == DELIVERIES - 1
    assert [attempt["error"] for attempt in json.loads(letter["attempts"])] == ["WorkerDied"]
    assert mortal.mails.keys() == {*wanted, *later} - {mortal.deadly}
    assert max(mortal.mails.values()) <= 2
    assert sum(n - 1 for n in mortal.mails.values()) <= 3 * mortal.deaths
