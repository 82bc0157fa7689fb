"""How many rows a list has: counted where they are few, else estimated by the planner, which costs no walk."""

import json
from collections.abc import Sequence

from adapters.cursors import COUNTED_MAX, Asked, offset_of
from adapters.postgres import Connection


async def total_of(
    connection: Connection,
    query: Asked,
    matching: str,
    values: Sequence[object],
    *,
    rows_read: int,
    expected: int | None = None,
) -> int:
    """The count of `FROM … WHERE …`; above `COUNTED_MAX` an estimate, which then lies above it too.

    `rows_read` is how many a page came to, with one more where there is a next: the last page tells the count itself.
    """
    before = offset_of(query)
    if query.cursor is None and rows_read <= query.limit and (rows_read > 0 or before == 0):
        return before + rows_read
    if expected is None:
        expected = await expected_rows(connection, matching, values)
    if expected > COUNTED_MAX:
        return max(expected, before + rows_read)
    statement = await connection.prepare(
        f"SELECT count(*) FROM (SELECT {matching} LIMIT {COUNTED_MAX + 1}) AS counted", name=""
    )
    found: int = await statement.fetchval(*values)
    return found


async def expected_rows(connection: Connection, matching: str, values: Sequence[object]) -> int:
    """How many rows the planner expects of `FROM … WHERE …`, by its statistics alone."""
    statement = await connection.prepare(f"EXPLAIN (FORMAT JSON) SELECT {matching}", name="")
    expected: int = json.loads(await statement.fetchval(*values))[0]["Plan"]["Plan Rows"]
    return expected
