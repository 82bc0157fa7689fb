"""Which function serves which request: the tables of all groups as one."""

from handlers.context import Handlers
from handlers.requests import (
    account,
    admin,
    admin_users,
    avatar,
    dead_letters,
    email_change,
    health,
    me,
    passwords,
    profile,
    registration,
    second_step,
    sessions,
    sign_in,
    timeline,
    tokens,
    two_factor,
    unlock,
)

HANDLERS: Handlers = {
    **registration.HANDLERS,
    **sign_in.HANDLERS,
    **second_step.HANDLERS,
    **unlock.HANDLERS,
    **tokens.HANDLERS,
    **passwords.HANDLERS,
    **me.HANDLERS,
    **sessions.HANDLERS,
    **account.HANDLERS,
    **email_change.HANDLERS,
    **profile.HANDLERS,
    **avatar.HANDLERS,
    **two_factor.HANDLERS,
    **admin.HANDLERS,
    **admin_users.HANDLERS,
    **timeline.HANDLERS,
    **dead_letters.HANDLERS,
    **health.HANDLERS,
}
