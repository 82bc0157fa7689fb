"""An operator's own list of breached passwords: sorted SHA-1 in hex, a line each, as Have I Been Pwned gives it out."""

import hashlib
import mmap
from pathlib import Path

from adapters.environment import BadSettings, variable_of

_HEX = 40
_LINE_MAX = 128
_VARIABLE = variable_of("breached_passwords_file")
_ADVICE = "it must be as docs/deploy.md tells, readable by the service's user"


class BadList(BadSettings):
    """The file cannot be searched; the message says why."""


class BreachedPasswords:
    """Looks a password up by binary search in a memory map: it touches some thirty pages of a file of any size."""

    def __init__(self, path: Path) -> None:
        """Raises `BadList` for a file that is not there, is empty, or is visibly not sorted hashes."""
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise BadList(f"{_VARIABLE}: {path} cannot be read ({_why(error)}); {_ADVICE}") from None
        size = len(self._map)
        places = sorted({self._start_of(size * part // 64) for part in range(64)})
        found = [self._hash_at(place) for place in places if place < size]
        if not found or not all(_is_hash(line) for line in found) or found != sorted(found):
            raise BadList(f"{_VARIABLE}: {path} holds no sorted lines that begin with a SHA-1 in hex; {_ADVICE}")

    def __contains__(self, password: str) -> bool:
        wanted = hashlib.sha1(password.encode(), usedforsecurity=False).hexdigest().upper().encode()
        low, high = 0, len(self._map)
        while low < high:  # the least place behind which the lines are not less than what is wanted
            middle = (low + high) // 2
            start = self._start_of(middle)
            if start == len(self._map) or self._hash_at(start) >= wanted:
                high = middle
            else:
                low = middle + 1
        return self._hash_at(self._start_of(low)) == wanted

    def _start_of(self, place: int) -> int:
        """Where the first line that begins at or behind a place begins."""
        if place == 0:
            return 0
        end = self._map.find(b"\n", place - 1, place + _LINE_MAX)
        return len(self._map) if end < 0 else end + 1

    def _hash_at(self, start: int) -> bytes:
        return self._map[start : start + _HEX].upper()

    def close(self) -> None:
        self._map.close()


def _why(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or "it is empty"


def _is_hash(line: bytes) -> bool:
    return len(line) == _HEX and all(byte in b"0123456789ABCDEF" for byte in line)
