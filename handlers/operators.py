"""What an operator does from the command line, directly on the servers; each act is an audit row that names them."""

import getpass
import socket
from dataclasses import dataclass
from uuid import uuid4

import uuid_utils.compat as uuid_utils
from pydantic import ValidationError

from adapters.audit_log import AuditRow
from adapters.event_log import Trail
from adapters.hashing import Hasher
from adapters.password_rules import PasswordRules
from adapters.personal_data import PersonalData
from adapters.postgres import Database
from adapters.settings import Settings
from adapters.unit_of_work import unit_of_work
from contracts.auth import Register
from contracts.wire import Empty
from domain.password import own_words
from domain.refusals import WeakPassword
from domain.user import User, UserId
from handlers.clock import now


@dataclass(frozen=True, slots=True)
class NewAdmin:
    """The first account of a system; its address counts as verified."""

    email: str
    password: str
    first_name: str = "Admin"
    last_name: str = "Admin"


class Unacceptable(Exception):
    """What an operator typed breaks a rule; the message says which."""


async def create_admin(database: Database, personal: PersonalData, hasher: Hasher, admin: NewAdmin) -> bool:
    """Make an account with the role `admin`; False when its address is taken."""
    at = now()
    user = User.register(
        UserId(uuid_utils.uuid7()),
        email=admin.email,
        first_name=admin.first_name,
        last_name=admin.last_name,
        password_hash=await hasher.hash(admin.password),
        at=at,
        origin="admin",
    )
    user.verify_email(reason="operator", at=at)
    user.change_role("admin", reason="made by an operator", at=at)
    trail = Trail(request_id=f"cli-{uuid4()}")
    async with unit_of_work(database, personal, trail, announce=lambda _: None) as work:
        if not await work.users.add(user):
            return False
        await work.audit(
            AuditRow(
                action="admin_created",
                success=True,
                at=at,
                user_id=user.id,
                resource_id=str(user.id),
                details={"operator": operator()},
            )
        )
        await work.commit(Empty())
    return True


def checked(settings: Settings, admin: NewAdmin) -> NewAdmin:
    """The same rules as for everybody; raises `Unacceptable` with what is wrong in one line."""
    try:
        wanted = Register.model_validate(
            {
                "email": admin.email,
                "password": admin.password,
                "first_name": admin.first_name,
                "last_name": admin.last_name,
                "accept_terms": True,
            }
        )
        words = own_words(wanted.email, wanted.first_name, wanted.last_name)
        PasswordRules(settings).require(wanted.password.get_secret_value(), words)
    except ValidationError as error:
        faults = ", ".join(str(item["loc"][0]) for item in error.errors(include_input=False, include_url=False))
        raise Unacceptable(f"not valid: {faults}") from None
    except WeakPassword as error:
        raise Unacceptable(" ".join(fault.message for fault in error.faults)) from None
    return NewAdmin(wanted.email, admin.password, wanted.first_name, wanted.last_name)


def operator() -> str:
    """Who types, as the audit log names them."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a container's user has no name
        name = "unknown"
    return f"operator:{name}@{socket.gethostname()}"
