"""A TCP proxy in the test's process, between the service and one server: it delays, falls silent, cuts and heals."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress

_CHUNK_BYTES = 65_536
Chunks = asyncio.Queue[tuple[float, bytes]]


class Proxy:
    """Links to one port of this machine, open until somebody closes or cuts them."""

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._passes = asyncio.Event()
        self._passes.set()
        self._listener: asyncio.Server | None = None
        self._links: set[asyncio.Task[None]] = set()
        self.port = 0
        self.delay_s = 0.0
        """How much later each chunk arrives, on its way there and on its way back."""

    def url(self, url: str) -> str:
        """The address of the server, as the proxy stands before it."""
        assert f":{self._server_port}" in url
        return url.replace(f":{self._server_port}", f":{self.port}")

    async def cut(self, *, refuse: bool = False) -> None:
        """Close every link; new ones are refused until `heal` if so asked."""
        if refuse and self._listener is not None:
            self._listener.close()
            self._listener = None
        links = set(self._links)
        for link in links:
            link.cancel()
        if links:
            await asyncio.wait(links)

    def half_open(self) -> None:
        """Links stay, new ones are taken, and nothing arrives any more: neither what is sent nor that one has left."""
        self._passes.clear()

    async def heal(self) -> None:
        """Pass on at once again. What was held back arrives now: TCP has kept sending it."""
        self.delay_s = 0.0
        self._passes.set()
        if self._listener is None:
            self._listener = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
            self.port = self._listener.sockets[0].getsockname()[1]

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = asyncio.create_task(self._link(reader, writer))
        self._links.add(link)
        link.add_done_callback(self._links.discard)

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Both ways until one side has left."""
        writers = [writer]
        try:
            with suppress(OSError):
                there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._server_port)
                writers.append(there_writer)
                await _first_of(self._way(reader, there_writer), self._way(there_reader, writer))
        finally:
            for open_writer in writers:
                open_writer.transport.abort()

    async def _way(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        chunks: Chunks = asyncio.Queue()
        taking = asyncio.create_task(self._take(reader, chunks))
        try:
            await self._pass_on(chunks, writer)
        finally:
            taking.cancel()
            await asyncio.wait([taking])

    async def _take(self, reader: asyncio.StreamReader, chunks: Chunks) -> None:
        loop = asyncio.get_running_loop()
        data = b"-"
        while data:
            try:
                data = await reader.read(_CHUNK_BYTES)
            except OSError:
                data = b""
            chunks.put_nowait((loop.time() + self.delay_s, data))

    async def _pass_on(self, chunks: Chunks, writer: asyncio.StreamWriter) -> None:
        """Until nobody is there to take it, or the end of what was taken, which is an empty chunk."""
        while True:
            due, data = await chunks.get()
            await asyncio.sleep(due - asyncio.get_running_loop().time())
            await self._passes.wait()
            if not data:
                return
            writer.write(data)
            try:
                await writer.drain()
            except OSError:
                return


async def _first_of(*ways: Coroutine[None, None, None]) -> None:
    """Until one has ended; the other is ended with it."""
    tasks = [asyncio.create_task(way) for way in ways]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


@asynccontextmanager
async def proxy_to(server_port: int) -> AsyncIterator[Proxy]:
    """A proxy while the block lasts."""
    proxy = Proxy(server_port)
    await proxy.heal()
    try:
        yield proxy
    finally:
        await proxy.cut(refuse=True)
