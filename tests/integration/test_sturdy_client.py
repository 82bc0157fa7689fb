"""What ends the client library's read loop for good must not end ours: a process that hears nothing looks healthy."""

import asyncio

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from adapters.embedded import EmbeddedServers
from adapters.nats import AnsweringClient, SturdyClient
from handlers import delivery


@pytest.mark.parametrize("kind", [SturdyClient, AnsweringClient])
async def test_a_flush_that_was_given_up_leaves_the_link_alive(servers: EmbeddedServers, kind: type[Client]) -> None:
    client = kind()
    await client.connect(servers.addresses.nats_worker_url, inbox_prefix="_INBOX.worker", allow_reconnect=False)
    try:
        for _ in range(5):
            waiting = asyncio.create_task(client.flush())
            await asyncio.sleep(0)  # its PING is on the way, and its PONG will come
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        heard = await client.subscribe("users.relay.test")
        await client.flush()
        await client.flush()
        sender = SturdyClient()
        await sender.connect(servers.addresses.nats_worker_url, inbox_prefix="_INBOX.worker")
        await sender.publish("users.relay.test", b"still there")
        assert (await heard.next_msg(timeout=5)).data == b"still there"
        await sender.close()
    finally:
        await client.close()


async def a_client_that_waits_to_publish(servers: EmbeddedServers) -> SturdyClient:
    """More is pending than it may keep, and nobody sends it."""
    client = SturdyClient()
    await client.connect(servers.addresses.nats_worker_url, inbox_prefix="_INBOX.worker", allow_reconnect=False)
    await client.flush()  # whoever sends waits at the queue of before, from now on
    client._max_pending_size, client._flush_queue = 1, asyncio.Queue()
    return client


async def test_who_is_cancelled_while_it_publishes_ends(servers: EmbeddedServers) -> None:
    client = await a_client_that_waits_to_publish(servers)
    publishing = asyncio.create_task(client.publish("users.relay.test", b"never sent"))
    await asyncio.sleep(0.1)
    assert not publishing.done()
    publishing.cancel()
    await asyncio.wait([publishing], timeout=5)
    assert publishing.cancelled()
    await client.close()


async def test_a_delivery_is_not_kept_alive_by_a_beat_that_goes_on(
    servers: EmbeddedServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "ACK_WAIT_S", 0.03)
    client = await a_client_that_waits_to_publish(servers)
    beating = asyncio.create_task(delivery._beat(Msg(client, "users.events.v1", "users.relay.test")))
    await asyncio.sleep(0.3)
    beating.cancel()
    await asyncio.wait([beating], timeout=5)
    assert beating.done()
    await client.close()


async def test_a_reply_subject_that_is_no_text_leaves_the_link_alive(servers: EmbeddedServers) -> None:
    client, sender = SturdyClient(), SturdyClient()
    for one in (client, sender):
        await one.connect(servers.addresses.nats_worker_url, inbox_prefix="_INBOX.worker", allow_reconnect=False)
    try:
        heard = await client.subscribe("users.relay.test")
        await client.flush()
        await client.flush()
        await sender._send_command(b"PUB users.relay.test _INBOX.worker.\xff\xfe 2\r\n{}\r\n")
        await sender.publish("users.relay.test", b"still there")
        assert (await heard.next_msg(timeout=5)).data == b"still there"
    finally:
        await sender.close()
        await client.close()
