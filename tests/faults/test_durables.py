"""Durable consumers that somebody deletes or changes by hand."""

import asyncio
import json
from dataclasses import replace

from nats.js.api import ConsumerConfig, ConsumerInfo
from nats.js.errors import NotFoundError

from adapters.nats import ACK_WAIT_S
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


async def test_a_durable_changed_by_hand_is_named_by_doctor_and_put_right_at_the_next_start(house: House) -> None:
    async with house.run("audit"):
        found = await durable(house, "email")
    assert found
    assert isinstance(found.config, ConsumerConfig)
    async with house.worker() as nc:
        await nc.jetstream().add_consumer("USER_EVENTS", replace(found.config, ack_wait=7, max_deliver=3))

    code, said, _ = await house.command("doctor", "--json")
    faults = {finding["what"]: finding for finding in json.loads(said) if not finding["good"]}
    assert code == 1
    assert faults.keys() == {"consumer email: ack_wait", "consumer email: max_deliver"}
    assert "is 7" in faults["consumer email: ack_wait"]["says"]
    assert "is 3" in faults["consumer email: max_deliver"]["says"]
    assert all(finding["advice"] for finding in faults.values())

    async with house.run("audit"):
        mended = await durable(house, "email")
        code, said, err = await house.command("doctor")
    assert code == 0, said + err
    assert mended
    assert (mended.config.ack_wait, mended.config.max_deliver) == (ACK_WAIT_S, found.config.max_deliver)
