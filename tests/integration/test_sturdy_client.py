"""What ends the client library's read loop for good must not end ours: a process that hears nothing looks healthy."""

import asyncio

import pytest
from nats.aio.client import Client

from adapters.embedded import EmbeddedServers
from adapters.nats import AnsweringClient, SturdyClient


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
