"""Which role may do what."""

from typing import get_args

from contracts import users
from contracts.operations import Permission
from domain.permissions import PERMISSIONS, Role


def test_the_table_is_what_was_promised() -> None:
    assert PERMISSIONS["user"] == frozenset()
    assert PERMISSIONS["moderator"] == {"users:read", "users:write", "audit:read"}
    assert PERMISSIONS["admin"] == {permission.value for permission in Permission}


def test_every_role_of_the_wire_has_its_row() -> None:
    assert set(get_args(Role)) == set(get_args(users.Role)) == set(PERMISSIONS)


def test_a_higher_role_may_all_that_a_lower_may() -> None:
    assert PERMISSIONS["user"] < PERMISSIONS["moderator"] < PERMISSIONS["admin"]
