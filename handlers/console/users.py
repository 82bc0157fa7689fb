"""Users: the search, one account with all that helps its owner, and what can be done to it."""

from contextlib import suppress
from typing import Any
from uuid import UUID

from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from contracts.operations import Permission
from domain.permissions import REACH
from handlers.console.acts import ACTS, Act
from handlers.console.filters import page_asked, read_filters
from handlers.console.visit import Means, Refused, Visit, signed_in

SEARCH = ("search", "status", "role", "sort")
STEPS_MAX = 50


def user_routes(means: Means) -> list[BaseRoute]:
    """The list, one user, a page for each act, and the timeline of whatever is asked for."""
    return [
        Route("/users", signed_in(means, listed)),
        Route("/users/{user_id:uuid}", signed_in(means, shown)),
        Route("/users/{user_id:uuid}/{act}", signed_in(means, act_on), methods=["GET", "POST"]),
        Route("/timeline", signed_in(means, timeline)),
    ]


async def listed(visit: Visit) -> Response:
    """Accounts that match, a page of them."""
    filters = read_filters(visit.address, SEARCH)
    reply = await visit.call("admin.users.list", **filters, **page_asked(visit.address, limit=50))
    typed = {name: visit.address.get(name, "") for name in SEARCH}
    return visit.page("users.html", users=reply["data"], pagination=reply["pagination"], typed=typed)


async def shown(visit: Visit) -> Response:
    """One account on one page."""
    found = await _user(visit)
    steps: list[dict[str, Any]] = []
    if visit.session.may(Permission.AUDIT_READ.value):
        steps = (await visit.call("admin.timeline.get", userId=found["user"]["id"], limit=STEPS_MAX))["data"]
    acts = [act for act in ACTS.values() if act.is_open_to(visit.session, found["user"])]
    return visit.page("user.html", acts=acts, steps=steps[::-1], **found)


async def act_on(visit: Visit) -> Response:
    """Say what will happen, and do it when that is confirmed."""
    act = ACTS.get(str(visit.request.path_params["act"]))
    if act is None:
        raise Refused({"code": "NOT_FOUND", "message": "There is no such act."})
    user = (await _user(visit))["user"]
    back = f"/users/{user['id']}"
    if visit.request.method != "POST":
        return _ask(visit, act, user)
    try:
        await visit.call(act.operation, userId=user["id"], reason=visit.sent("why"), **_besides(visit, act))
    except Refused as refusal:
        if refusal.code not in {"VALIDATION_ERROR", "CONFLICT", "FORBIDDEN"}:
            raise
        return _ask(visit, act, user, says=refusal.says)
    return visit.to(back, said=act.done)


def _ask(visit: Visit, act: Act, user: dict[str, Any], *, says: str | None = None) -> Response:
    return visit.page(
        "act.html", act=act, user=user, says=says, roles=sorted(REACH[visit.session.role]),
        why=visit.sent("why") or visit.address.get("why", ""), role=visit.sent("role") or user["role"],
        status=200 if says is None else 409,
    )  # fmt: skip


def _besides(visit: Visit, act: Act) -> dict[str, object]:
    if act.gives_role:
        return {"role": visit.sent("role")}
    return {} if act.status is None else {"status": act.status}


async def _user(visit: Visit) -> dict[str, Any]:
    found: dict[str, Any] = (await visit.call("admin.users.get", userId=str(visit.request.path_params["user_id"])))[
        "data"
    ]
    return found


async def timeline(visit: Visit) -> Response:
    """What has become of a user, a mail or a request, whichever the words name."""
    words = visit.address.get("of", "").strip()
    if not words:
        return visit.page("timeline.html", words="", steps=None)
    asked: dict[str, object] = {"limit": STEPS_MAX, _kind(words): words}
    if before := read_filters(visit.address, ("to",)).get("to"):
        asked["before"] = before
    reply = await visit.call("admin.timeline.get", **asked)
    return visit.page("timeline.html", words=words, steps=reply["data"][::-1])


def _kind(words: str) -> str:
    """An address has an @; a user's id is a UUID; all else is a request's id."""
    if "@" in words:
        return "email"
    with suppress(ValueError):
        UUID(words)
        return "userId"
    return "requestId"
