"""Durable consumers that somebody deletes."""

import asyncio

from nats.js.api import ConsumerInfo
from nats.js.errors import NotFoundError

from tests.faults.house import House
from tests.faults.ledger import Ledger, emails, mails_by_address, require_mail, until_finished


async def durable(house: House, group: str) -> ConsumerInfo | None:
    async with house.worker() as nc:
        try:
            found: ConsumerInfo = await nc.jetstream().consumer_info("USER_EVENTS", group)
        except NotFoundError:
            return None
        return found


async def test_a_deleted_durable_is_made_again_and_no_mail_is_sent_twice(house: House) -> None:
    wanted, later, ledger = emails(20), emails(5), Ledger()
    async with house.run() as run, house.gateway() as client:
        await ledger.register(client, wanted, at_once=5)
        await until_finished(house.ready, ledger.user_ids.values(), within_s=20)
        async with house.worker() as nc:
            assert await nc.jetstream().delete_consumer("USER_EVENTS", "email")
        async with asyncio.timeout(10):
            while await durable(house, "email") is None:
                await asyncio.sleep(0.05)
        await ledger.register(client, later, at_once=5)
        await until_finished(house.ready, ledger.user_ids.values(), within_s=20)
        async with asyncio.timeout(20):
            while not (found := await durable(house, "email")) or found.num_pending or found.num_ack_pending:
                await asyncio.sleep(0.05)
        assert found.delivered
        assert found.delivered.consumer_seq >= 2 * len(wanted) + 2 * len(later)
        assert not run.has_ended
    require_mail(house.mail_dir, [*wanted, *later], twice_max=0)
    assert all(sum(mails_by_address(house.mail_dir)[email].values()) == 1 for email in wanted)
