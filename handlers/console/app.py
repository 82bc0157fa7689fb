"""The console: pages for operators over the service's own operations, on a port of their own."""

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import BaseRoute, Mount, Route

from adapters.keys import Keys
from adapters.operator_bus import OperatorBus, operator_bus
from adapters.personal_data import PersonalData
from adapters.postgres import Database
from adapters.redis import Redis
from adapters.settings import Settings
from adapters.smtp import Mailer
from contracts.health import Health
from handlers.console.audit import audit_routes
from handlers.console.door import Door
from handlers.console.figures import Figures
from handlers.console.first_admin import FirstAdmin, KnownAdmin, OneTimeLink
from handlers.console.jobs import job_routes
from handlers.console.letters import letter_routes
from handlers.console.login import login_routes
from handlers.console.looks import STATIC, render
from handlers.console.overview import overview_routes
from handlers.console.proofs import proof_routes
from handlers.console.sessions import Sessions
from handlers.console.users import user_routes
from handlers.console.visit import Means
from handlers.vitals import Vitals, http_server

log = structlog.get_logger()

Inbox = Callable[[Means], Sequence[BaseRoute]]
"""Pages of `dev` besides."""


_PORT = "USER_SERVICE_CONSOLE_PORT"


@dataclass(frozen=True, slots=True)
class Served:
    """A console that listens."""

    url: str
    first_link: str | None
    """Lets the first admin in, once; a secret."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the command that serves a console wants of it besides."""

    say: Callable[[Served], None]
    links: bool = False
    """Is a link to be made where nobody is an admin yet?"""
    known: KnownAdmin | None = None
    """Whom a link lets in, whoever is an admin."""
    inbox: Inbox | None = None


Check = Callable[[], Awaitable[Health]]
Start = Callable[[Coroutine[None, None, None], str], None]
"""Keeps a loop running."""
OnClosed = Callable[[], Awaitable[None]]
"""Hears when the link to NATS is gone for good."""


@asynccontextmanager
async def console_beside(
    settings: Settings, database: Database, personal: PersonalData, check: Check, start: Start, wishes: Wishes | None,
    on_closed: OnClosed,
) -> AsyncIterator[None]:  # fmt: skip
    """Serve the console in a process that does other things, too, while the block lasts.

    Raises `Unavailable` where the operator's NATS does not answer, `PortTaken` where somebody else listens.
    """
    wishes = wishes or Wishes(lambda served: log.info("console", url=served.url))
    first = FirstAdmin(settings, database, personal)
    async with (
        operator_bus(_operators_url(settings), on_closed=on_closed) as bus,
        _console(settings, bus, first, check, start, wishes),
    ):
        yield


@asynccontextmanager
async def console_alone(
    settings: Settings, keys: Keys, start: Start, wishes: Wishes, on_closed: OnClosed
) -> AsyncIterator[None]:
    """The same in a process of its own, which holds no worker's rights on the bus."""
    async with AsyncExitStack() as stack:
        database = await Database.connect(settings.model_copy(update={"pool_min": 1, "pool_max": 2}), name="console")
        stack.push_async_callback(database.close)
        redis = Redis(settings.redis)
        stack.push_async_callback(redis.close)
        bus = await stack.enter_async_context(operator_bus(_operators_url(settings), on_closed=on_closed))
        first = FirstAdmin(settings, database, PersonalData(keys))
        vitals = Vitals(settings, database, bus.client, redis)
        await stack.enter_async_context(_console(settings, bus, first, vitals.check, start, wishes))
        yield


@asynccontextmanager
async def _console(
    settings: Settings, bus: OperatorBus, first: FirstAdmin, check: Check, start: Start, wishes: Wishes
) -> AsyncIterator[None]:
    link = await _link(wishes, first)
    mailer = Mailer.of(settings)
    figures = Figures(bus, check, mailer)
    url = settings.console_url
    means = Means(
        bus,
        Sessions(),
        secure=bool(url and url.startswith("https:")),
        has_inbox=bool(wishes.inbox),
        needs_second_factor=settings.admin_second_factor,
    )
    inner = Starlette(
        routes=_routes(means, figures, link, wishes.inbox),
        exception_handlers={HTTPException: _not_here, Exception: _broken},
    )
    served: list[BaseRoute] = [Mount("/", app=Door(inner, url))]
    async with AsyncExitStack() as stack:
        stack.push_async_callback(mailer.close)
        port = await stack.enter_async_context(
            http_server(
                served, host=settings.console_host, port=settings.console_port, variable=_PORT,
                behind_proxy=url is not None,
            )
        )  # fmt: skip
        start(figures.run(), "figures")
        start(figures.watch_mail(), "mail server, seen by the console")
        at = url or f"http://{settings.console_host}:{port}"
        wishes.say(Served(at, f"{at}/first?token={link.new()}" if link is not None else None))
        yield


def _operators_url(settings: Settings) -> str:
    """Where the console asks; whoever starts it has made sure that it is set."""
    if settings.console_nats_url is None:
        raise ValueError("USER_SERVICE_CONSOLE_NATS_URL is not set")
    return settings.console_nats_url.get_secret_value()


async def _link(wishes: Wishes, maker: FirstAdmin) -> OneTimeLink | None:
    if wishes.known is not None:
        return OneTimeLink(wishes.known)
    return OneTimeLink(maker) if wishes.links and await maker.is_missing() else None


def _routes(means: Means, figures: Figures, first: OneTimeLink | None, inbox: Inbox | None) -> list[BaseRoute]:
    return [
        Route("/static/{name:path}", _static),
        *login_routes(means, first),
        *proof_routes(means),
        *overview_routes(means, figures),
        *letter_routes(means),
        *job_routes(means),
        *user_routes(means),
        *audit_routes(means),
        *(inbox(means) if inbox is not None else ()),
    ]


_FILES = {
    path.relative_to(STATIC).as_posix(): path for path in STATIC.rglob("*.*") if path.suffix in {".css", ".js", ".svg"}
}


async def _static(request: Request) -> Response:
    """One of our own files; its address changes with its content."""
    path = _FILES.get(str(request.path_params["name"]))
    if path is None:
        raise HTTPException(404)
    return FileResponse(path, headers={"Cache-Control": "public, max-age=31536000, immutable"})


async def _not_here(_: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    return HTMLResponse(render("bare.html", title="Not found", says="There is no such page here."), status)


async def _broken(_: Request, __: Exception) -> Response:
    """Whoever serves us logs what it was."""
    says = "Something went wrong inside of the console. Its log says what."
    return HTMLResponse(render("bare.html", title="That went wrong", says=says), 500)
