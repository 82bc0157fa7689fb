"""What is published of each seal over the audit log, on stream `USER_AUDIT_SEALS`."""

from typing import Annotated

from pydantic import Field, StringConstraints

from contracts.wire import Moment, Wire

Hash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class AuditHead(Wire):
    """A head of the chain: which rows it seals, by their positions, and the seal that it hangs on. SHA-256 in hex."""

    number: Annotated[int, Field(ge=1)]
    from_position: int
    to_position: int
    rows: int
    content: Hash
    previous: Hash
    sealed_at: Moment
    hash: Hash
    signature: str
