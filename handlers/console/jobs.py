"""Replays: how far each has come, with which letter what, and how it is cancelled or resumed."""

from functools import partial

from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Route

from handlers.console.filters import page_asked
from handlers.console.visit import Means, Visit, signed_in

OUTCOMES = ("waiting", "done", "failed_again", "already_handled", "discarded")


def job_routes(means: Means) -> list[BaseRoute]:
    """The list, one replay, the piece of it that is asked for while it runs, and its two acts."""
    one = "/jobs/{job_id:uuid}"
    return [
        Route("/jobs", signed_in(means, listed)),
        Route(one, signed_in(means, shown)),
        Route(f"{one}/now", signed_in(means, progress, by_itself=True)),
        Route(f"{one}/cancel", signed_in(means, partial(change, act="cancel")), methods=["POST"]),
        Route(f"{one}/resume", signed_in(means, partial(change, act="resume")), methods=["POST"]),
    ]


async def listed(visit: Visit) -> Response:
    """The latest replays."""
    reply = await visit.call("admin.dead-letters.jobs.list", **page_asked(visit.address, limit=25))
    return visit.page("jobs.html", jobs=reply["data"], pagination=reply["pagination"])


async def shown(visit: Visit) -> Response:
    """A replay with what has become of its letters."""
    asked: dict[str, object] = {"jobId": _job_id(visit), "limit": 50}
    outcome = visit.address.get("outcome", "")
    if outcome:
        asked["outcome"] = outcome
    if (after := visit.address.get("after", "")).isdecimal():
        asked["after"] = int(after)
    found = (await visit.call("admin.dead-letters.jobs.get", **asked))["data"]
    return visit.page(
        "job.html", job=found["job"], items=found["items"], more=found["more"], outcome=outcome, outcomes=OUTCOMES
    )


async def progress(visit: Visit) -> Response:
    """How far it has come; the page leaves off asking when it has ended."""
    found = (await visit.call("admin.dead-letters.jobs.get", jobId=_job_id(visit), limit=1))["data"]
    if found["job"]["state"] != "running":
        return visit.to(f"/jobs/{_job_id(visit)}")
    return HTMLResponse(visit.part("job_now.html", job=found["job"]))


async def change(visit: Visit, *, act: str) -> Response:
    """Send no more of it, or go on with what is left."""
    await visit.call(f"admin.dead-letters.jobs.{act}", jobId=_job_id(visit))
    said = {"cancel": "The replay was cancelled; what was sent comes to its end.", "resume": "The replay goes on."}
    return visit.to(f"/jobs/{_job_id(visit)}", said=said[act])


def _job_id(visit: Visit) -> str:
    return str(visit.request.path_params["job_id"])
