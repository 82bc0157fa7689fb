"""The whole API as one table."""

from contracts import (
    account,
    admin,
    admin_users,
    auth,
    avatar,
    dead_letters,
    health,
    me,
    passwords,
    profile,
    sessions,
    timeline,
    two_factor,
)
from contracts.operations import join

OPERATIONS = join(
    auth.OPERATIONS,
    passwords.OPERATIONS,
    me.OPERATIONS,
    sessions.OPERATIONS,
    account.OPERATIONS,
    profile.OPERATIONS,
    avatar.OPERATIONS,
    two_factor.OPERATIONS,
    admin.OPERATIONS,
    admin_users.OPERATIONS,
    timeline.OPERATIONS,
    dead_letters.OPERATIONS,
    health.OPERATIONS,
)
BY_SUBJECT = {operation.subject: operation for operation in OPERATIONS}
