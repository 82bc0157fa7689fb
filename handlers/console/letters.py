"""Dead letters: by cause, as a list, one whole; and what an operator does about them. The filter is in the address."""

from typing import Any

from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from adapters.streams import EVENT_GROUPS
from contracts.operations import Permission
from handlers.console.filters import LETTERS, page_asked, read_filters
from handlers.console.looks import address
from handlers.console.visit import Means, Refused, Visit, signed_in
from handlers.timeline_command import around

STATES = ("dead", "held", "discarded", "replayed", "failed_again")
RATE = "50"


def letter_routes(means: Means) -> list[BaseRoute]:
    """Pages of letters. What changes something is a page that says what will happen, and a form on it."""
    both = ["GET", "POST"]
    return [
        Route("/letters", signed_in(means, causes)),
        Route("/letters/list", signed_in(means, listed)),
        Route("/letters/replay", signed_in(means, replay), methods=both),
        Route("/letters/discard", signed_in(means, discard), methods=both),
        Route("/letters/restore", signed_in(means, restore), methods=both),
        Route("/letters/{letter_id:uuid}", signed_in(means, shown)),
    ]


async def causes(visit: Visit) -> Response:
    """What letters have died of, the most frequent first."""
    filters, state = read_filters(visit.address, LETTERS), _state(visit)
    found = (await visit.call("admin.dead-letters.groups", state=state, limit=100, **filters))["data"]
    return visit.page("causes.html", found=found, **_asked(visit, filters, state))


async def listed(visit: Visit) -> Response:
    """Letters, newest first."""
    filters, state = read_filters(visit.address, LETTERS), _state(visit)
    reply = await visit.call("admin.dead-letters.list", state=state, **filters, **page_asked(visit.address, limit=50))
    return visit.page(
        "letters.html", letters=reply["data"], pagination=reply["pagination"], **_asked(visit, filters, state)
    )


async def shown(visit: Visit) -> Response:
    """One letter with its exact bytes, every attempt, what was replayed before, and its user's timeline around it."""
    letter_id = str(visit.request.path_params["letter_id"])
    letter = (await visit.call("admin.dead-letters.get", letterId=letter_id))["data"]["letter"]
    steps: list[dict[str, Any]] = []
    if letter["userId"] and visit.session.may(Permission.AUDIT_READ.value):
        steps = (await visit.call("admin.timeline.get", **around(letter)))["data"]
    return visit.page("letter.html", letter=letter, steps=steps)


async def replay(visit: Visit) -> Response:
    """A dry run of what the address names, and the form that begins it."""
    named, where = _named(visit)
    limit = visit.address.get("limit") or visit.sent("limit")
    bounded: dict[str, object] = {"limit": _number(limit)} if limit else {}
    if visit.request.method == "POST":
        begun = await visit.call(
            "admin.dead-letters.replay", **named, **bounded,
            rate=_number(visit.sent("rate") or RATE), atOnce=visit.sent("at_once") == "yes",
            why=visit.sent("why") or None,
        )  # fmt: skip
        job_id = begun["data"]["jobId"]
        if job_id is None:
            return visit.to(where, said="Nothing matched any more, so no replay was begun.")
        return visit.to(f"/jobs/{job_id}", said=f"A replay of {begun['data']['matched']:,} letters has begun.")
    plan = (await visit.call("admin.dead-letters.replay", **named, **bounded, dryRun=True))["data"]
    return visit.page(
        "replay.html", plan=plan, named=named, where=where, rate=visit.address.get("rate", RATE), limit=limit
    )


async def discard(visit: Visit) -> Response:
    """Close letters without a replay."""
    return await _close_or_open(visit, "discard", "dead")


async def restore(visit: Visit) -> Response:
    """Open discarded letters again."""
    return await _close_or_open(visit, "restore", "discarded")


async def _close_or_open(visit: Visit, act: str, state: str) -> Response:
    named, where = _named(visit)
    if visit.request.method == "POST":
        reply = await visit.call(f"admin.dead-letters.{act}", **named, why=visit.sent("why"))
        done = {"discard": "discarded", "restore": "restored"}[act]
        return visit.to(where, said=f"{reply['data']['count']:,} letters were {done}.")
    count, is_estimate = await _count(visit, named, state)
    return visit.page(
        "discard.html", act=act, count=count, is_estimate=is_estimate, named=named, where=where,
        why=visit.address.get("why", ""),
    )  # fmt: skip


async def _count(visit: Visit, named: dict[str, object], state: str) -> tuple[int, bool]:
    """How many letters an act would touch, and whether that is an estimate."""
    ids = named.get("ids")
    if isinstance(ids, list):
        return len(ids), False
    filters = {name: value for name, value in named.items() if name != "all"}
    found = (await visit.call("admin.dead-letters.list", state=state, limit=1, **filters))["pagination"]
    return found["total"], found["totalIsEstimate"]


def _named(visit: Visit) -> tuple[dict[str, object], str]:
    """The letters that the address names, by ids, by filters, or all of them; and the page to go back to."""
    ids = [value for value in visit.request.query_params.getlist("id") if value]
    if ids:
        return {"ids": ids}, "/letters"
    filters = read_filters(visit.address, LETTERS)
    if filters:
        return filters, address("/letters/list", filters)
    if visit.address.get("all") == "yes":
        return {"all": True}, "/letters"
    raise Refused({"code": "VALIDATION_ERROR", "message": "Choose letters, or name them by a filter."})


def _asked(visit: Visit, filters: dict[str, object], state: str) -> dict[str, Any]:
    """What was asked for, as the form and the links of a page repeat it."""
    typed = {name: visit.address.get(name, "") for name in LETTERS}
    return {"typed": typed, "is_filtered": bool(filters), "state": state, "states": STATES, "groups": EVENT_GROUPS}


def _state(visit: Visit) -> str:
    return visit.address.get("state", "dead")


def _number(written: str) -> float | str:
    """What is no number goes on as it is: the service says so."""
    try:
        return float(written) if "." in written else int(written)
    except ValueError:
        return written
