"""The table of all operations: data that the dispatcher, the documents and the tests are driven from."""

from dataclasses import dataclass
from enum import Enum

from contracts.wire import Wire


class Caller(Enum):
    """Who may call an operation that needs no particular permission."""

    ANYONE = "anyone"
    IF_SIGNED_IN = "anyone, and who they are where a token says so"
    SIGNED_IN = "signed in"


class Permission(Enum):
    """What a role may allow; the wire knows them by value."""

    USERS_READ = "users:read"
    USERS_WRITE = "users:write"
    ROLES_WRITE = "roles:write"
    AUDIT_READ = "audit:read"
    DEAD_LETTERS_READ = "dead-letters:read"
    DEAD_LETTERS_REPLAY = "dead-letters:replay"
    DEAD_LETTERS_DISCARD = "dead-letters:discard"


class Limit(Enum):
    """The rate-limit category of an operation; figures are settings."""

    NONE = "none"
    GENERAL = "api:general"
    LOGIN = "auth:login"
    REGISTER = "auth:register"
    MAIL = "auth:mail"
    CODE = "auth:code"
    UPLOAD = "api:upload"


class Even(Enum):
    """Which replies come at multiples of `USER_SERVICE_ANSWER_MS_STEP`, so that their time tells nothing."""

    NEVER = "none"
    REFUSALS = "refusals"
    ALWAYS = "all"
    WHERE_HIDDEN = "all, where registered emails are hidden"


FRESH_S = 900
"""How old a caller's proof of identity may be where an act weighs."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One subject of the service: what comes in, what goes out, who may call, how often.

    `request` is a class of its own for each operation: it is the key of the handler table.
    `fresh` asks for a caller whose proof of identity is at most `FRESH_S` old. `writes` says that the operation
    honours an `Idempotency-Key`; `holds_secrets` that its reply is given again for a minute only. `emits` names every
    event that it may leave, `audits` every action that it writes to the audit log without an event.
    """

    subject: str
    request: type[Wire]
    reply: type[Wire]
    route: str
    caller: Caller | Permission = Caller.ANYONE
    fresh: bool = False
    limit: Limit = Limit.GENERAL
    even: Even = Even.NEVER
    writes: bool = False
    holds_secrets: bool = False
    emits: tuple[str, ...] = ()
    audits: tuple[str, ...] = ()
    body_bytes_max: int = 64 * 1024

    @property
    def name(self) -> str:
        """The subject without its prefix, as a micro endpoint's name: `auth-verify-email`."""
        return self.subject.removeprefix("users.v1.").replace(".", "-")

    @property
    def schema_urn(self) -> str:
        return f"urn:user-service:operations:v1:{self.name}"


class DuplicateOperation(ValueError):
    """Two rows of the table share a subject or a request model."""


def join(*groups: tuple[Operation, ...]) -> tuple[Operation, ...]:
    """All rows as one table; refuses two of one subject or of one request model."""
    table = tuple(operation for group in groups for operation in group)
    for kind, keys in (
        ("subject", [operation.subject for operation in table]),
        ("request model", [operation.request.__name__ for operation in table]),
    ):
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise DuplicateOperation(f"two operations share the {kind} {', '.join(twice)}")
    return table
