"""The picture a user shows: what of it is a fact of the account; its bytes lie elsewhere."""

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

CONTENT_TYPE = "image/webp"


@dataclass(frozen=True, slots=True)
class Avatar:
    """One upload's result; `sizes` maps pixels to the name of the object that holds this size."""

    id: UUID
    content_type: str
    width: int
    height: int
    sizes: Mapping[str, str]

    @classmethod
    def of(cls, id: UUID, owner: UUID, hashes: Mapping[int, str]) -> "Avatar":
        """An avatar of squares with these content hashes, by their size."""
        largest = max(hashes)
        sizes = {str(size): f"{owner}/{digest}-{size}" for size, digest in hashes.items()}
        return cls(id, CONTENT_TYPE, largest, largest, sizes)
