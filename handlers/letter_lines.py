"""Letters and replays as people read them on a terminal."""

from collections.abc import Iterator, Mapping
from typing import Any

Found = Mapping[str, Any]


def line_of_letter(letter: Found) -> str:
    """One of a list."""
    return f"{letter['createdAt']}  {letter['id']}  {letter['group']} {letter['type']}  {_cause(letter)}"


def lines_of_letter(letter: Found) -> Iterator[str]:
    """One whole: facts, attempts with their traces, replays, headers, and the exact bytes last."""
    version = f", version {letter['version']}" if letter["version"] else ""
    yield f"{letter['type']} for {letter['group']}, letter {letter['id']}"
    yield f"  died of     {_cause(letter)}"
    yield f"  state       {letter['state']} since {letter['stateAt']}{_who_and_why(letter)}"
    yield f"  user        {letter['userId'] or 'none'}{version}"
    yield f"  event       {letter['eventId']}, its letter {letter['n']} in this group"
    yield f"  written     {letter['createdAt']}, after {counted(letter['deliveries'], 'deliver', 'y', 'ies')}"
    yield f"  stream      {letter['stream']} {letter['streamSequence']}, {letter['subject']}"
    yield f"  cause       {letter['cause']}"
    yield f"  trace       {letter['traceId'] or 'none'}"
    for attempt in letter["attempts"]:
        yield f"attempt {attempt['attempt']}  {attempt['at']}  {attempt['error']}: {attempt['message']}"
        yield from (f"    {line}" for line in attempt["trace"].splitlines())
    for one in letter["replays"]:
        of = "" if one["letterId"] == letter["id"] else f", of letter {one['letterId']}"
        yield f"replay {one['jobId']}  {one['sentAt'] or 'not sent yet'}  {one['outcome'] or 'waiting'}{of}"
    for other in letter["others"]:
        yield f"also {other['createdAt']}  {other['id']}  {other['state']}  {_cause(other)}"
    yield from (f"{name}: {value}" for name, value in letter["headers"].items())
    yield ""
    if letter["bodyBase64"]:
        yield letter["bodyText"] if letter["bodyText"] is not None else f"base 64: {letter['bodyBase64']}"
    else:
        yield "no bytes are kept: its user was erased"
    yield ""


def line_of_job(job: Found) -> str:
    """How far a replay has come, and of what it is."""
    why = f" ({job['why']})" if job["why"] else ""
    asked = job["asked"]
    what = f" events of history for {asked['group']}, by {asked['operator']}" if "operator" in asked else ""
    left = job["waiting"] + job["sent"]
    return (
        f"{job['createdAt']}  {job['id']}  {job['state']}{why}: {job['done']} done, {job['failedAgain']} failed again, "
        f"{job['alreadyHandled']} already handled, {job['discarded']} discarded, {left} to come of {job['total']}{what}"
    )


def counted(number: int, word: str, one: str = "", many: str = "s") -> str:
    """A number of things."""
    return f"{number} {word}{one if number == 1 else many}"


def _cause(letter: Found) -> str:
    return f"{letter['reason']}: {letter['error']}: {letter['message']}"


def _who_and_why(letter: Found) -> str:
    by = f", by {letter['stateBy']}" if letter["stateBy"] else ""
    return f"{by}: {letter['stateWhy']}" if letter["stateWhy"] else by
