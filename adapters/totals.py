"""How many rows a list has: counted where they are few, else estimated by the planner, which costs no walk."""

import json
from collections.abc import Sequence

from adapters.cursors import COUNTED_MAX, Asked, offset_of
from adapters.postgres import Connection


async def total_of(
    connection: Connection, query: Asked, matching: str, values: Sequence[object], *, rows_read: int
) -> int:
    """The count of `FROM … WHERE …`; above `COUNTED_MAX` an estimate, which then lies above it too.

    `rows_read` is how many a page came to, with one more where there is a next: the last page tells the count itself.
    """
    before = offset_of(query)
    if query.cursor is None and rows_read <= query.limit and (rows_read > 0 or before == 0):
        return before + rows_read
    plan = await connection.fetchval(f"EXPLAIN (FORMAT JSON) SELECT {matching}", *values)
    estimate: int = json.loads(plan)[0]["Plan"]["Plan Rows"]
    if estimate > COUNTED_MAX:
        return estimate
    statement = await connection.prepare(f"SELECT count(*) FROM (SELECT {matching} LIMIT {COUNTED_MAX + 1}) AS counted")
    found: int = await statement.fetchval(*values)
    return found
