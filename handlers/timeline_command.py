"""`user-service timeline …`: what has become of a user, a mail or a request, for the one who was asked about it."""

import json
import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Annotated, Any
from uuid import UUID

import typer

from handlers.own_session import operator_on
from handlers.terminal import AsJson, ReadyFile, Token, nats_url_of, run_to_end

AROUND = timedelta(minutes=10)
"""So long after a letter's time its user's timeline is shown."""
STEPS_SHOWN = 20
_MESSAGE_ID = re.compile(r"<|[0-9a-f-]{36}\.")


def timeline(
    of: Annotated[
        str,
        typer.Argument(
            metavar="EMAIL|ID|REQUEST-ID", help="A user by address or id, or a request; also an event or a Message-ID."
        ),
    ],
    before: Annotated[str | None, typer.Option(help="Only what happened before that time (RFC 3339).")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="Of the latest so many events and acts.")] = 50,
    token: Token = None, as_json: AsJson = False, ready_file: ReadyFile = None,
) -> None:  # fmt: skip
    """Show request, event, and what each group made of it, in order of time; what still waits, and why, at the end."""

    async def work() -> None:
        async with operator_on(nats_url_of(ready_file), token) as operator:
            asked: dict[str, object] = {"limit": limit, "before": before}
            if "@" in of and not _MESSAGE_ID.match(of):
                reply = await operator.call("admin.timeline.get", asked | {"email": of})
            else:
                reply = await operator.call("admin.timeline.get", asked | _named(of))
                if not reply["data"] and "userId" in _named(of):  # ids of requests may look like those of users
                    reply = await operator.call("admin.timeline.get", asked | {"requestId": of})
        if as_json:
            typer.echo(json.dumps(reply, ensure_ascii=False))
            return
        for step in reply["data"]:
            typer.echo(line_of(step))
        if not reply["data"]:
            typer.echo(f"nothing is kept of {of}", err=True)
        if reply["pagination"]["hasNext"]:
            typer.echo(f"older: --before {reply['data'][0]['at']}")

    run_to_end(work())


def around(letter: Mapping[str, Any]) -> dict[str, object]:
    """What to ask for to see what else happened to a letter's user at its time."""
    until = datetime.fromisoformat(letter["createdAt"]) + AROUND
    return {"userId": letter["userId"], "before": until.isoformat(), "limit": STEPS_SHOWN}


def _named(of: str) -> dict[str, object]:
    try:
        return {"userId": str(UUID(of))}
    except ValueError:
        return {"requestId": of}


def line_of(step: dict[str, Any]) -> str:
    """A step as people read it."""
    what = f"v{step['version']} {step['type']}" if step["version"] else f"request {step['requestId']}"
    where = f" [{step['group']}]" if step["group"] else ""
    letter = f"  letter {step['letterId']}" if step["letterId"] else ""
    failed = "  (refused)" if step["success"] is False else ""
    by = f"  by {step['actorId']}" if step["actorId"] and step["actorId"] != step["userId"] else ""
    text = f"  request {step['requestId']}" if step["kind"] == "event" else f"  {step['text']}"
    return f"{step['at']}  {step['kind']:9}{where}  {what}{text}{failed}{by}{letter}"
