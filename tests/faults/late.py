"""A registration whose caller has given up before the service sees it."""

import json
from datetime import UTC, datetime, timedelta
from uuid import uuid4

from tests.faults.house import House, Run
from tests.gateway import database, registration
from tests.program import until


def late_registration(email: str) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a registration whose caller waits for half a second."""
    deadline = datetime.now(UTC) + timedelta(seconds=0.5)
    return json.dumps(registration(email)).encode(), {"Deadline": deadline.isoformat(), "Request-Id": str(uuid4())}


async def require_dropped(house: House, run: Run, email: str, request_id: str) -> None:
    """The service has had this request, and has made no account of it."""

    def answers() -> list[str]:
        return [line["code"] for line in run.lines("request") if line["requestId"] == request_id]

    await until(answers, within_s=15, what="the request to arrive")
    assert answers() == ["DEADLINE_EXCEEDED"]
    async with database(house.ready) as rows:
        assert await rows.fetchval("SELECT count(*) FROM users WHERE email = $1", email) == 0
