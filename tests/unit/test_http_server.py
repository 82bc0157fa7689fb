"""The pages' server: whoever connects asks soon."""

import asyncio

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from handlers import vitals
from handlers.vitals import http_server

ASK = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def _page(_: Request) -> PlainTextResponse:
    return PlainTextResponse("here")


async def test_a_connection_that_stays_silent_is_closed_and_one_that_asks_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(vitals, "SILENT_S", 0.2)
    async with http_server([Route("/", _page)], host="127.0.0.1", port=0) as port, asyncio.timeout(10):
        asking, ask = await asyncio.open_connection("127.0.0.1", port)
        silent, silence = await asyncio.open_connection("127.0.0.1", port)
        ask.write(ASK)
        assert (await asking.readuntil(b"here")).startswith(b"HTTP/1.1 200")
        assert await silent.read() == b""
        await asyncio.sleep(0.2)
        ask.write(ASK)
        assert (await asking.readuntil(b"here")).startswith(b"HTTP/1.1 200")
        for writer in (ask, silence):
            writer.close()
