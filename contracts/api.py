"""The whole API as one table."""

from contracts import admin, auth, health, me, profile
from contracts.operations import join

OPERATIONS = join(auth.OPERATIONS, me.OPERATIONS, profile.OPERATIONS, admin.OPERATIONS, health.OPERATIONS)
BY_SUBJECT = {operation.subject: operation for operation in OPERATIONS}
