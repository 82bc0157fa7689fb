"""The audit log: who did what to whom, from where, and whether it came about."""

from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from handlers.console.filters import AUDIT, page_asked, read_filters
from handlers.console.visit import Means, Visit, signed_in


def audit_routes(means: Means) -> list[BaseRoute]:
    """One page, filtered by its address."""
    return [Route("/audit", signed_in(means, listed))]


async def listed(visit: Visit) -> Response:
    """Rows, newest first."""
    filters = read_filters(visit.address, AUDIT)
    asked = filters | page_asked(visit.address, limit=50)
    if success := filters.get("success"):
        asked["success"] = {"true": True, "false": False}.get(str(success), success)
    reply = await visit.call("admin.audit-logs.list", **asked)
    typed = {name: visit.address.get(name, "") for name in AUDIT}
    return visit.page("audit.html", rows=reply["data"], pagination=reply["pagination"], typed=typed)
