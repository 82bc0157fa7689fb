"""The console as a browser sees it: pages, the forms on them, and what they lead to."""

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from html import unescape
from urllib.parse import urljoin

import httpx


@dataclass(frozen=True, slots=True)
class Page:
    """What came back, after redirects."""

    status: int
    text: str
    path: str
    headers: Mapping[str, str]

    @property
    def heading(self) -> str:
        found = re.search(r"<h1>(.*?)</h1>", self.text, re.DOTALL)
        return _plain(found[1]) if found else ""

    @property
    def said(self) -> str:
        """What the page says of the act before it, or of what is wrong."""
        return " ".join(_plain(text) for text in re.findall(r'<p class="note[^>]*>(.*?)</p>', self.text, re.DOTALL))

    @property
    def links(self) -> list[str]:
        return [unescape(link) for link in re.findall(r'<a [^>]*?href="([^"]*)"', self.text)]

    def form(self, action: str) -> tuple[str, dict[str, str]]:
        """The form that leads somewhere: its address, and the fields that it holds already."""
        for found in re.finditer(r"<form\b([^>]*)>(.*?)</form>", self.text, re.DOTALL):
            target = re.search(r'action="([^"]*)"', found[1])
            if target and action in unescape(target[1]):
                fields = re.findall(r'<input[^>]*?name="([^"]*)"[^>]*?value="([^"]*)"', found[2])
                return unescape(target[1]), {name: unescape(value) for name, value in fields}
        raise AssertionError(f"no form leads to {action} in:\n{self.text}")


class Browser:
    """Cookies and pages of one visitor."""

    def __init__(self, client: httpx.AsyncClient, base: str) -> None:
        self.client = client
        self.base = base

    async def get(self, path: str, **headers: str) -> Page:
        return _page(await self.client.get(urljoin(self.base, path), headers=headers))

    async def post(self, path: str, fields: Mapping[str, str], *, origin: str | None = None) -> Page:
        """A form as a page of this console sends it, or of another origin."""
        headers = {"Origin": origin or self.base}
        return _page(await self.client.post(urljoin(self.base, path), data=dict(fields), headers=headers))

    async def send(self, page: Page, action: str, **fields: str) -> Page:
        """Fill in a form of a page, and send it."""
        address, held = page.form(action)
        return await self.post(address, held | fields)

    async def sign_in(self, email: str, password: str) -> Page:
        return await self.send(await self.get("/login"), "/login", email=email, password=password)


@asynccontextmanager
async def browser(base: str) -> AsyncIterator[Browser]:
    async with httpx.AsyncClient(follow_redirects=True, timeout=20, trust_env=False) as client:
        yield Browser(client, base)


def _page(reply: httpx.Response) -> Page:
    url = reply.url
    query = url.query.decode()
    return Page(reply.status_code, reply.text, f"{url.path}?{query}" if query else url.path, reply.headers)


def _plain(markup: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", markup)).split())
