"""What stands before every page: which host is asked for, where a form comes from, what a browser may do with it."""

from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapters.server_urls import LOOPBACK

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; frame-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}


class Door:
    """An ASGI application before another: refuses what was meant for elsewhere or comes from there.

    A form must come from a page of this very origin, and a name that somebody made resolve to this address is no name
    of ours. A page may name its own policy; every other header of the list is the same everywhere.
    """

    def __init__(self, app: ASGIApp, console_url: str | None) -> None:
        self._app = app
        self._url = console_url
        is_secure = console_url is not None and console_url.startswith("https:")
        self._headers = _HEADERS | ({"Strict-Transport-Security": "max-age=31536000"} if is_secure else {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers.setdefault(name, value)
            await send(message)

        refusal = self._refusal(scope, Headers(scope=scope))
        await (refusal or self._app)(scope, receive, send_guarded)

    def _refusal(self, scope: Scope, headers: Headers) -> PlainTextResponse | None:
        origins = origins_of(self._url, scope["server"][1])
        if headers.get("host", "").lower() not in {urlsplit(origin).netloc for origin in origins}:
            return PlainTextResponse("This host is not served here: set USER_SERVICE_CONSOLE_URL.\n", 421)
        if scope["method"] not in {"GET", "HEAD"} and not _is_from_here(headers, origins):
            return PlainTextResponse("This form was not sent by a page of this console.\n", 403)
        return None


def _is_from_here(headers: Headers, origins: Sequence[str]) -> bool:
    """A page whose policy is to send no referrer sends `null` for its origin; the browser says of it by itself, in a
    header that no page can write, whether it is ours."""
    origin = headers.get("origin", "null").lower()
    return origin in origins or (origin == "null" and headers.get("sec-fetch-site") == "same-origin")


def origins_of(console_url: str | None, port: int) -> list[str]:
    """Where the console is reached: at its public address, else on loopback under any of its names."""
    if console_url is not None:
        parts = urlsplit(console_url)
        return [f"{parts.scheme}://{parts.netloc}".lower()]
    return [f"http://{f'[{host}]' if ':' in host else host}:{port}" for host in sorted(LOOPBACK)]
