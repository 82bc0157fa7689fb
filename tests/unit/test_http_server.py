"""The pages' server: whoever connects asks soon."""

import asyncio

import httpx
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
        ask.write(ASK)
        assert (await asking.readuntil(b"here")).startswith(b"HTTP/1.1 200")
        for writer in (ask, silence):
            writer.close()


@pytest.mark.parametrize("more", [b"", b"G"], ids=["nothing more", "half a request"])
async def test_a_connection_that_was_answered_keeps_no_place(monkeypatch: pytest.MonkeyPatch, more: bytes) -> None:
    monkeypatch.setattr(vitals, "SILENT_S", 0.2)
    async with http_server([Route("/", _page)], host="127.0.0.1", port=0) as port, asyncio.timeout(5):
        asking, ask = await asyncio.open_connection("127.0.0.1", port)
        ask.write(ASK)
        assert (await asking.readuntil(b"here")).startswith(b"HTTP/1.1 200")
        ask.write(more)
        await ended(asking)
        ask.close()


async def test_an_answer_that_nobody_takes_keeps_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vitals, "SILENT_S", 0.1)
    told: list[str] = []

    async def long_page(_: Request) -> PlainTextResponse:
        told.append("asked")
        return PlainTextResponse("x" * 50_000_000)

    async with http_server([Route("/", long_page)], host="127.0.0.1", port=0) as port, asyncio.timeout(10):
        asking, ask = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        ask.write(ASK)
        while not told:
            await asyncio.sleep(0.05)
        await asyncio.sleep(2)
        await ended(asking)
        ask.close()


async def ended(reader: asyncio.StreamReader) -> None:
    """Less came than was to come, and then the end."""
    try:
        assert len(await reader.read(-1)) < 50_000_000
    except ConnectionResetError:
        return


@pytest.mark.parametrize(("behind_proxy", "seen"), [(True, "203.0.113.9"), (False, "127.0.0.1")])
async def test_an_address_is_taken_from_a_proxy_only_where_there_is_one(behind_proxy: bool, seen: str) -> None:
    async def who(request: Request) -> PlainTextResponse:
        assert request.client
        return PlainTextResponse(request.client.host)

    async with http_server([Route("/", who)], host="127.0.0.1", port=0, behind_proxy=behind_proxy) as port:
        async with httpx.AsyncClient() as client:
            reply = await client.get(f"http://127.0.0.1:{port}/", headers={"X-Forwarded-For": "203.0.113.9"})
        assert reply.text == seen
