"""What every message on the wire shares: base model, envelope, error codes, common scalars."""

import re
import unicodedata
from datetime import UTC, datetime
from enum import Enum
from typing import Annotated, Generic, TypeVar

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SecretStr,
    StringConstraints,
)
from pydantic.alias_generators import to_camel

API_VERSION = "1"


class Wire(BaseModel):
    """A camelCase JSON object; unknown fields are ignored, inputs never appear in errors."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True, hide_input_in_errors=True
    )


class ErrorCode(Enum):
    """The codes a caller can act on; the value is the number in `Nats-Service-Error-Code`."""

    VALIDATION_ERROR = (400, "The request is not valid; see details.")
    INVALID_CREDENTIALS = (401, "Email or password is wrong.")
    AUTHENTICATION_REQUIRED = (401, "This operation needs an access token.")
    REAUTHENTICATION_REQUIRED = (401, "This operation needs a fresh proof of identity.")
    INVALID_TOKEN = (401, "The token is not valid.")
    TOKEN_EXPIRED = (401, "The token has expired.")
    INVALID_TWO_FACTOR_CODE = (401, "The code is not valid.")
    FORBIDDEN = (403, "The caller may not do this.")
    TWO_FACTOR_REQUIRED = (403, "This role needs a session with a second factor.")
    EMAIL_NOT_VERIFIED = (403, "The email address is not verified yet.")
    ACCOUNT_SUSPENDED = (403, "The account is suspended.")
    PASSWORD_EXPIRED = (403, "The password is too old and must be reset.")
    PASSWORD_RESET_REQUIRED = (403, "The password must be reset.")
    NOT_FOUND = (404, "There is no such thing.")
    EMAIL_ALREADY_REGISTERED = (409, "The email address is already registered.")
    IDEMPOTENCY_KEY_REUSED = (409, "The idempotency key was used with another request.")
    CONFLICT = (409, "The current state does not allow this.")
    PAYLOAD_TOO_LARGE = (413, "The message is too large.")
    PASSWORD_POLICY_VIOLATION = (422, "The password breaks the policy; see details.")
    ACCOUNT_LOCKED = (423, "The account is locked.")
    RATE_LIMITED = (429, "Too many requests; wait and try again.")
    INTERNAL_ERROR = (500, "Something went wrong inside.")
    OVERLOADED = (503, "The service is busy; try again.")
    SERVICE_UNAVAILABLE = (503, "A dependency is not available; try again.")
    DEADLINE_EXCEEDED = (504, "There was not enough time left to answer.")

    def __init__(self, number: int, message: str) -> None:
        self.number = number
        self.message = message


class Broken(ValueError):
    """A field breaks a rule: a stable code to rely on, and our own words, which never repeat what was sent."""

    def __init__(self, code: str, words: str) -> None:
        super().__init__(words)
        self.code = code


def _rfc3339(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


Timestamp = Annotated[datetime, PlainSerializer(_rfc3339, return_type=str)]
"""An aware time, written as RFC 3339 in UTC."""


def _of_our_times(at: datetime) -> datetime:
    if not 1970 <= at.year < 9000:
        raise Broken("out_of_range", "This time lies out of range.")
    return at


Moment = Annotated[AwareDatetime, AfterValidator(_of_our_times)]
"""A time as a caller gives it: with its offset, within what a database can compare."""


class Detail(Wire):
    """One fault of a request: a dotted path, a stable code, our own words; never what was sent."""

    field: str
    code: str
    message: str


class Error(Wire):
    """Why a request was refused, and what the caller may do about it."""

    code: str
    message: str
    details: list[Detail] | None = None
    retry_after: int | None = None
    limit: str | None = None
    locked_until: Timestamp | None = None
    max_age: int | None = None


class Meta(Wire):
    """The service's clock and the request's id, so that clients can measure and correlate."""

    timestamp: Timestamp
    request_id: str
    version: str = API_VERSION


class Pagination(Wire):
    """Where a page stands; `total` may be an estimate above a bound and then says so."""

    page: int | None
    limit: int
    total: int
    total_is_estimate: bool = False
    total_pages: int
    has_next: bool
    has_prev: bool
    next_cursor: str | None = None


Item = TypeVar("Item", bound=Wire)


class Page(Wire, Generic[Item]):
    """A reply of many: `data` holds the items, `pagination` stands beside it."""

    items: list[Item]
    pagination: Pagination


class Empty(Wire):
    """`{}`."""


def _storable(text: str) -> str:
    """Refuse what PostgreSQL and UTF-8 cannot hold, here instead of deep inside."""
    if "\x00" in text:
        raise Broken("malformed_text", "This text holds a NUL character.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Broken("malformed_text", "This text is not well-formed Unicode.") from error
    return text


Text = Annotated[str, AfterValidator(_storable)]

# RFC 5321 dot-atom, opened to letters of any script (RFC 6531); quoted local parts are refused on purpose.
_LOCAL = re.compile(r"[\w!#$%&'*+/=?^`{|}~-]+(\.[\w!#$%&'*+/=?^`{|}~-]+)*")
_LABEL = re.compile(r"[^\W_](?:[\w-]*[^\W_])?")


def _one_address(text: str) -> str:
    address = unicodedata.normalize("NFC", text.strip())
    local, at, domain = address.rpartition("@")
    labels = domain.split(".")
    good = (
        at
        and len(address.encode()) <= 254
        and len(local.encode()) <= 64
        and _LOCAL.fullmatch(local)
        and len(labels) >= 2
        and all(len(label) <= 63 and "_" not in label and _LABEL.fullmatch(label) for label in labels)
    )
    if not good:
        raise Broken("not_an_address", "This is not exactly one mail address.")
    return address


Email = Annotated[Text, AfterValidator(_one_address)]
"""Exactly one mail address (never a list, a display name or a comment), at most 254 bytes."""

_NAME_EXTRAS = frozenset(" '’-.,")
# A dot between letters, but in titles such as `M.Sc.`: mail programs make a link of it wherever it stands.
_LOOKS_LIKE_ADDRESS = re.compile(r"(?i)(https?:|www\.|[\w-]+\.[^\W\d_]{2,}(?![\w.])|@)")


def _person_name(text: str) -> str:
    """Letters of any script with marks, digits and ' - . , : what a mail may print without carrying a message."""
    name = re.sub(" +", " ", unicodedata.normalize("NFC", text)).strip()
    if not any(char.isalpha() for char in name):
        raise Broken("not_a_name", "A name holds at least one letter.")
    if not all(unicodedata.category(char)[0] in "LM" or char.isdecimal() or char in _NAME_EXTRAS for char in name):
        raise Broken("not_a_name", "A name holds letters, digits, spaces and ' - . , only.")
    if _LOOKS_LIKE_ADDRESS.search(name):
        raise Broken("not_a_name", "A name must not look like an address.")
    return name


PersonName = Annotated[Text, StringConstraints(max_length=50), AfterValidator(_person_name)]
DisplayName = Annotated[Text, StringConstraints(max_length=100), AfterValidator(_person_name)]


def _bounded_secret(value: SecretStr) -> SecretStr:
    text = _storable(value.get_secret_value())
    if not 1 <= len(text.encode()) <= 1024:
        raise Broken("wrong_length", "Use 1 to 1024 bytes.")
    return value


def _only_text(value: object) -> object:
    """SecretStr would take numbers in lax mode; a password is a string or nothing."""
    if not isinstance(value, str | SecretStr):
        raise Broken("wrong_type", "This value has the wrong type or form.")
    return value


Secret = Annotated[SecretStr, BeforeValidator(_only_text), AfterValidator(_bounded_secret)]
"""A password as sent, 1 to 1,024 bytes; prints as `***`."""


def _bounded_token(value: SecretStr) -> SecretStr:
    text = value.get_secret_value()
    if not (1 <= len(text) <= 4096 and text.isascii() and text.isprintable()):
        raise Broken("malformed", "Use 1 to 4096 visible ASCII characters.")
    return value


Token = Annotated[SecretStr, BeforeValidator(_only_text), AfterValidator(_bounded_token)]
"""A token as sent: opaque here, at most 4,096 characters; prints as `***`."""


Code = Annotated[str, StringConstraints(min_length=1, max_length=32)]
"""A second-factor code as typed: from an app, or a backup code."""


def not_null(value: object) -> object:
    """For fields of an update that may be absent (unchanged) but have nothing to be cleared to."""
    if value is None:
        raise Broken("not_null", "This field cannot be cleared.")
    return value


Limit100 = Annotated[int, Field(ge=1, le=100)]
PageNumber = Annotated[int, Field(ge=1, le=10_000)]
Cursor = Annotated[str, StringConstraints(min_length=1, max_length=1000, pattern=r"^[A-Za-z0-9_=-]+$")]
