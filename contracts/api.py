"""The whole API as one table."""

from contracts import admin, auth, health, me, profile, two_factor
from contracts.operations import join

OPERATIONS = join(
    auth.OPERATIONS, me.OPERATIONS, profile.OPERATIONS, two_factor.OPERATIONS, admin.OPERATIONS, health.OPERATIONS
)  # fmt: skip
BY_SUBJECT = {operation.subject: operation for operation in OPERATIONS}
