"""Reading what a request carries and writing what a reply says: bytes and headers on one side, models on the other."""

import asyncio
import ipaddress
import json
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Literal
from uuid import uuid4

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from contracts.operations import Operation
from contracts.wire import Broken, Detail, Error, ErrorCode, Meta, Page, Wire
from domain.refusals import (
    AccountLocked,
    DeadlineExceeded,
    Fault,
    InvalidInput,
    NotReady,
    Overloaded,
    PayloadTooLarge,
    RateLimited,
    ReauthenticationRequired,
    Refusal,
    Unavailable,
    WeakPassword,
)
from handlers.context import Call

DEPTH_MAX = 32
_QUOTE, _BACKSLASH = b'"\\'
DEADLINE_AHEAD_MAX = timedelta(minutes=5)
LANGUAGES: tuple[Literal["en", "es", "fr", "de"], ...] = ("en", "es", "fr", "de")
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_TRACEPARENT = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{16,128}")
_FAULT_CODES: dict[str, tuple[str, str]] = {
    "missing": ("required", "This field is required."),
    "json_invalid": ("not_json", "The body is not valid JSON."),
    "model_type": ("not_an_object", "The body must be a JSON object."),
    "string_too_short": ("too_short", "This value is too short."),
    "string_too_long": ("too_long", "This value is too long."),
    "too_long": ("too_long", "This value is too long."),
    "greater_than_equal": ("too_small", "This number is too small."),
    "less_than_equal": ("too_large", "This number is too large."),
    "string_pattern_mismatch": ("malformed", "This value is malformed."),
}
_WRONG_TYPE = re.compile(r"(string|int|bool|float|dict|list|model|uuid|datetime|date|url|timezone)_.*|.*_type")


def request_id_of(headers: Mapping[str, str]) -> str:
    """The caller's id for this request where it is usable, else a new one."""
    said = header(headers, "Request-Id")
    return said if said and _REQUEST_ID.fullmatch(said) else str(uuid4())


def read_call(headers: Mapping[str, str], *, subject: str, reply: str, ms_max: int, now: datetime) -> Call:
    """Parse and bound every header; raises `InvalidInput` with all that are wrong, or `DeadlineExceeded`."""
    faults: list[Fault] = []
    client_ip = _address(headers, faults)
    left_s = _seconds_left(headers, faults, ms_max=ms_max, now=now)
    if faults:
        raise InvalidInput(faults)
    if left_s <= 0:
        raise DeadlineExceeded
    traceparent = header(headers, "traceparent")
    return Call(
        request_id=request_id_of(headers),
        subject=subject,
        client_ip=client_ip,
        source=_source(client_ip, reply),
        user_agent=_printable(header(headers, "User-Agent"), 512),
        device_id=_printable(header(headers, "Device-Id"), 128),
        device_token=_printable(header(headers, "Device-Token"), 128),
        locale=_locale(header(headers, "Accept-Language")),
        traceparent=traceparent if traceparent and _TRACEPARENT.fullmatch(traceparent) else None,
        deadline=asyncio.get_running_loop().time() + left_s,
    )


def idempotency_key_of(headers: Mapping[str, str]) -> str | None:
    """The key a caller made up; raises `InvalidInput` for one that could be guessed or is malformed."""
    key = header(headers, "Idempotency-Key")
    if key is not None and not _IDEMPOTENCY_KEY.fullmatch(key):
        raise InvalidInput([Fault("Idempotency-Key", "malformed", "Use 16 to 128 visible ASCII characters.")])
    return key


def header(headers: Mapping[str, str], name: str) -> str | None:
    """By any case: gateways differ, NATS does not fold."""
    value = headers.get(name)
    if value is None:
        wanted = name.lower()
        value = next((value for key, value in headers.items() if key.lower() == wanted), None)
    return value or None


def _printable(value: str | None, chars_max: int) -> str | None:
    if value is None:
        return None
    kept = "".join(char for char in value[:chars_max] if char.isprintable() and not "\ud800" <= char <= "\udfff")
    return kept.strip() or None


def _address(headers: Mapping[str, str], faults: list[Fault]) -> str | None:
    said = header(headers, "Client-Ip")
    if said is None:
        return None
    try:
        address = ipaddress.ip_address(said.strip())
    except ValueError:
        faults.append(Fault("Client-Ip", "not_an_address", "This is no IP address."))
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).compressed.partition("%")[0]


def _source(client_ip: str | None, reply: str) -> str:
    """An IPv6 household owns a /64. Without an address it is the role on the bus, known by its inbox's prefix: what
    stands behind that a client makes up for each request."""
    if client_ip is None:
        return "bus:" + ".".join(reply.split(".")[:2])[:80]
    if ":" in client_ip:
        return str(ipaddress.ip_network(f"{client_ip}/64", strict=False))
    return client_ip


def _seconds_left(headers: Mapping[str, str], faults: list[Fault], *, ms_max: int, now: datetime) -> float:
    """The earliest of `Timeout-Ms`, `Deadline` and our own longest time."""
    left_s = ms_max / 1000
    timeout = header(headers, "Timeout-Ms")
    if timeout is not None:
        if re.fullmatch(r"[0-9]{1,9}", timeout):
            left_s = min(left_s, int(timeout) / 1000)
        else:
            faults.append(Fault("Timeout-Ms", "not_a_number", "This is no number of milliseconds."))
    deadline = header(headers, "Deadline")
    if deadline is not None:
        try:
            at = datetime.fromisoformat(deadline)
            left_s = min(left_s, (min(at.astimezone(UTC), now + DEADLINE_AHEAD_MAX) - now).total_seconds())
            if at.tzinfo is None:
                raise ValueError("no offset")
        except (ValueError, OverflowError):
            faults.append(Fault("Deadline", "not_a_time", "This is no RFC 3339 time."))
    return left_s


def _locale(accepted: str | None) -> str:
    """The best of our languages that the header names (RFC 9110, 12.5.4); quality values order it."""
    best, best_quality = "en", 0.0
    for part in (accepted or "")[:256].split(","):
        tag, _, parameter = part.partition(";")
        language = tag.strip().lower().split("-")[0]
        weight = re.fullmatch(r"\s*q=([01](?:\.\d{0,3})?)\s*", parameter)
        quality = 1.0 if not parameter.strip() else float(weight[1]) if weight else 0.0
        if language in LANGUAGES and quality > best_quality:
            best, best_quality = language, quality
    return best


def read_body(operation: Operation, body: bytes) -> Wire:
    """The request's model; raises `InvalidInput` with every fault at once, or `PayloadTooLarge`."""
    if len(body) > operation.body_bytes_max:
        raise PayloadTooLarge
    if _nests_too_deep(body):
        raise InvalidInput([Fault("", "too_deep", f"The body nests deeper than {DEPTH_MAX} levels.")])
    try:
        return operation.request.model_validate_json(body or b"{}", strict=True)
    except ValidationError as error:
        faults = faults_of(error)
    raise InvalidInput(faults)


def _nests_too_deep(body: bytes) -> bool:
    """One pass, whatever the body is: a pattern over strings would start anew at every quote of one never closed."""
    if body.count(b"{") + body.count(b"[") <= DEPTH_MAX:
        return False
    depth, in_text, escaped = 0, False, False
    for byte in body:
        if in_text:
            in_text = escaped or byte != _QUOTE
            escaped = not escaped and byte == _BACKSLASH
        elif byte == _QUOTE:
            in_text = True
        else:
            depth += (byte in b"{[") - (byte in b"}]")
            if depth > DEPTH_MAX:
                return True
    return False


def faults_of(error: ValidationError) -> list[Fault]:
    """Every fault of an input, by field; what was sent is never repeated."""
    found = error.errors(include_url=False, include_context=True, include_input=False)
    return sorted(_faults(found), key=lambda fault: fault.field)


def _faults(found: Iterable[ErrorDetails]) -> Iterable[Fault]:
    """Our own words for each: pydantic's may repeat what was sent, and that may be a password."""
    for item in found:
        field = ".".join(str(part) for part in item["loc"] if not _is_union_arm(part))
        kind = item["type"]
        said = item.get("ctx", {})
        if isinstance(said.get("error"), Broken):
            yield Fault(field, said["error"].code, str(said["error"]))
        elif kind == "too_long" and said.get("field_type") == "List":
            yield Fault(field, "too_many", "There are too many items.")
        elif kind == "literal_error":  # what is allowed is ours; what was sent is not repeated
            yield Fault(field, "not_allowed", f"This value is not one of those allowed: {said['expected']}.")
        elif kind in _FAULT_CODES:
            yield Fault(field, *_FAULT_CODES[kind])
        elif _WRONG_TYPE.fullmatch(kind):
            yield Fault(field, "wrong_type", "This value has the wrong type or form.")
        else:
            yield Fault(field, "invalid", "This value is not valid.")


def _is_union_arm(part: int | str) -> bool:
    return isinstance(part, str) and not re.fullmatch(r"[A-Za-z][A-Za-z0-9]*", part)


def canonical(body: bytes) -> bytes:
    """The same for two bodies that differ in spaces and order of keys alone."""
    return json.dumps(json.loads(body or b"{}"), sort_keys=True, separators=(",", ":")).encode()


def outcome_json(outcome: Wire | Refusal) -> tuple[bool, str]:
    """The part of a reply that is the outcome's own: the JSON of `data`, or of `error`."""
    if isinstance(outcome, Refusal):
        return False, error_of(outcome).model_dump_json(by_alias=True, exclude_none=True)
    return True, outcome.model_dump_json(by_alias=True)


def success(reply: Wire, meta: Meta) -> bytes:
    """A whole reply: `data`, and `pagination` where it is one page of many."""
    if isinstance(reply, Page):
        whole = reply.model_dump_json(by_alias=True)
        # A page is `{"items":[…],"pagination":{…}}`: the same bytes with its first key renamed.
        return b'{"success":true,"data"' + whole.removeprefix('{"items"')[:-1].encode() + _meta(meta)
    return replayed_success(reply.model_dump_json(by_alias=True), meta)


def replayed_success(data: str, meta: Meta) -> bytes:
    """A reply around the `data` that was kept of the first one."""
    return b'{"success":true,"data":' + data.encode() + _meta(meta)


def failure(error: str, meta: Meta) -> bytes:
    """A whole error reply around the JSON of `error`."""
    return b'{"success":false,"error":' + error.encode() + _meta(meta)


def _meta(meta: Meta) -> bytes:
    return b',"meta":' + meta.model_dump_json(by_alias=True).encode() + b"}"


def error_of(refusal: Refusal) -> Error:
    """What a caller is told of a refusal."""
    code = ErrorCode[refusal.code]
    error = Error(code=code.name, message=code.message)
    match refusal:
        case InvalidInput() | WeakPassword() | NotReady():
            details = [Detail(field=fault.field, code=fault.code, message=fault.message) for fault in refusal.faults]
            retry = refusal.retry_after_s if isinstance(refusal, NotReady) else None
            return error.model_copy(update={"details": details, "retry_after": retry})
        case RateLimited():
            return error.model_copy(update={"retry_after": refusal.retry_after_s, "limit": refusal.limit})
        case Overloaded() | Unavailable():
            return error.model_copy(update={"retry_after": refusal.retry_after_s})
        case ReauthenticationRequired():
            return error.model_copy(update={"max_age": refusal.age_s_max})
        case AccountLocked():
            return error.model_copy(update={"locked_until": refusal.locked_until})
        case _:
            return error
