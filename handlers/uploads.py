"""Acknowledges what is put into the bucket of uploads, in JetStream's place and only to an inbox.

A stream's own acknowledgement goes to whatever subject a message names, past every rule of the bus; a gateway could
have one written to `users.events.>`. So that stream acknowledges nothing, and a message's stay there is looked up.
"""

import asyncio
import json

from nats.aio.client import Client
from nats.aio.msg import Msg

from adapters.nats import send
from adapters.object_bucket import Bucket
from contracts.avatar import UPLOADS_BUCKET
from domain.refusals import Unavailable

_LOOKS_MAX = 10
_PAUSE_S = 0.02
"""The stream gets a message when we do, and may take a moment longer."""


class Acknowledger:
    """`client` answers, and can reach nothing but inboxes; `bucket` looks."""

    def __init__(self, client: Client, bus: Client, queue: str) -> None:
        self._client = client
        self._bucket = Bucket(bus, UPLOADS_BUCKET)
        self._queue = queue

    async def start(self) -> None:
        await self._client.subscribe(f"$O.{UPLOADS_BUCKET}.>", queue=self._queue, cb=self._on_put)

    async def _on_put(self, message: Msg) -> None:
        """One after the other: a flood waits here, and reaches nothing else."""
        if not message.reply:
            return
        for _ in range(_LOOKS_MAX):
            try:
                found = await self._bucket.last(message.subject)
            except Unavailable:
                return  # whoever waits for it asks again
            if found is not None and found.data == message.data:
                said = json.dumps({"stream": self._bucket.stream, "seq": found.seq}).encode()
                await send(self._client, message.reply, said)
                return
            await asyncio.sleep(_PAUSE_S)
