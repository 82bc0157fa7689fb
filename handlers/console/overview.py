"""The first page: how everything is, what waits where, and how that went in the last quarter of an hour."""

import time
from functools import partial
from typing import Any

from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route

from adapters.bus_client import BusFailure
from adapters.streams import EVENT_GROUPS
from contracts.operations import Permission
from handlers.console.figures import Figures, events_announced, waiting_of
from handlers.console.visit import Means, Refused, Visit, signed_in


def overview_routes(means: Means, figures: Figures) -> list[BaseRoute]:
    """The page, the pieces of it that it asks for, and the figures that charts are drawn from."""
    return [
        Route("/", signed_in(means, partial(overview, figures=figures))),
        Route("/overview/letters", signed_in(means, letters)),
        Route("/overview/now", signed_in(means, partial(now, figures=figures), by_itself=True)),
        Route("/overview/history", signed_in(means, partial(history, figures=figures), by_itself=True)),
    ]


async def overview(visit: Visit, *, figures: Figures) -> Response:
    """The whole page; it asks for the letters by itself, so that it is there also when they cannot be read."""
    await _require_operator(visit)
    return visit.page("overview.html", **_now(figures))


async def letters(visit: Visit) -> Response:
    """How many letters wait, and what most have died of."""
    try:
        found = (await visit.call("admin.dead-letters.groups", limit=5))["data"]
    except BusFailure as failure:
        return HTMLResponse(visit.part("overview_letters.html", found=None, failure=str(failure)))
    return HTMLResponse(visit.part("overview_letters.html", found=found, failure=None))


async def now(visit: Visit, *, figures: Figures) -> Response:
    """Health and groups as they were seen last."""
    await _require_operator(visit)
    return HTMLResponse(visit.part("overview_now.html", **_now(figures)))


async def history(visit: Visit, *, figures: Figures) -> Response:
    """What charts draw: columns of one length, the oldest point first."""
    await _require_operator(visit)
    _, points = figures.read()
    names = ("at", "requests_s", "errors_s", "deliveries_s", "redelivered", "letters")
    columns: dict[str, object] = {name: [getattr(point, name) for point in points] for name in names}
    columns["waiting"] = {group: [point.waiting[group] for point in points] for group in EVENT_GROUPS}
    return JSONResponse(columns)


async def _require_operator(visit: Visit) -> None:
    """No operation stands behind these figures that would ask; raises `Refused`."""
    await visit.look(now=time.monotonic())
    if not visit.session.may(Permission.USERS_READ.value):
        raise Refused({"code": "FORBIDDEN", "message": "Your role has no rights here any more."})


def _now(figures: Figures) -> dict[str, Any]:
    sample, _ = figures.read()
    if sample is None:
        return {"sample": None, "groups": [], "announced": None}
    groups = [
        {
            "name": group,
            "waiting": waiting_of(group, sample.consumers),
            "durables": [one for one in sample.consumers or () if one.group == group],
        }
        for group in EVENT_GROUPS
    ]
    return {"sample": sample, "groups": groups, "announced": events_announced(sample)}
