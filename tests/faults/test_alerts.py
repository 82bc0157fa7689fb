"""Whoever is paged is paged for what is so: the alert rules, evaluated on what a running service tells."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.alerts import NO_PROMTOOL, PROMTOOL, require_firing
from tests.faults.house import House
from tests.faults.ledger import Ledger, emails
from tests.faults.test_dead_letters import QUICK, Ward, ended, mail_server
from tests.gateway import database
from tests.program import eventually

OPEN = 'dead_letters_open{group="email",reason="attempts_exhausted"}'


def with_letters(look: Mapping[str, float], **alerts: int) -> dict[str, int]:
    """Others' letters may stand open in this house: of each group and reason one alert."""
    kinds = sum(1 for name, figure in look.items() if name.startswith("dead_letters_open") and figure)
    others = dict.fromkeys(("DatabaseUnreachable", "BusUnreachable", "MailServerUnreachable", "JobsNotRunning"), 0)
    return others | {"DeadLetters": kinds} | alerts


@pytest.mark.skipif(PROMTOOL is None, reason=NO_PROMTOOL)
async def test_mails_that_stop_page_somebody_until_they_are_sent(house: House) -> None:
    wanted, ledger, ward, began = emails(12), Ledger(), Ward(), datetime.now(UTC).isoformat()
    async with mail_server(ward) as server, house.run(SMTP_URL=server.url, **QUICK) as run, house.gateway() as client:

        async def when(letters: float) -> dict[str, float]:
            """The figures, once so many letters are told of, and somebody has asked for the mail server."""

            async def is_so() -> bool:
                found = await run.figures()
                return found.get(OPEN, 0) == letters and 'dependency_up{dependency="smtp"}' in found

            await eventually(is_so, within_s=15, what=f"{letters} letters to be told of")
            return await run.figures()

        async with database(house.ready) as rows:
            others: int = await rows.fetchval(
                "SELECT count(*) FROM dead_letters WHERE group_name = 'email' AND reason = 'attempts_exhausted' "
                "AND state = 'dead'"
            )
        well = await when(others)
        await ledger.register(client, wanted, at_once=4)
        stopped = await when(others + 12)
        ward.healed = True
        admin = await client.admin()
        since: dict[str, Any] = {"from": began, "type": "EmailVerificationRequested"}
        begun = await client.call("admin.dead-letters.replay", access=admin, rate=200, **since)
        assert (await ended(client, admin, begun.data["jobId"]))["done"] == 12
        healed = await when(others)
    await require_firing(
        [well, stopped, healed],
        [
            with_letters(well, MailsStopped=0),
            with_letters(stopped, MailsStopped=1),
            with_letters(healed, MailsStopped=0),
        ],
    )
    assert with_letters(stopped)["DeadLetters"] > 0
