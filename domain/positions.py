"""Which places of a long row were seen: a bit for each, so that a hundred million take twelve megabytes."""

from collections.abc import Iterator


class Positions:
    """A set of numbers from 0 on."""

    def __init__(self) -> None:
        self._bits = bytearray()

    def add(self, position: int) -> bool:
        """False where it was in before."""
        byte, bit = position >> 3, 1 << (position & 7)
        if byte >= len(self._bits):
            self._bits.extend(bytes(max(byte + 1 - len(self._bits), 4096)))
        if self._bits[byte] & bit:
            return False
        self._bits[byte] |= bit
        return True

    def __contains__(self, position: int) -> bool:
        byte = position >> 3
        return byte < len(self._bits) and bool(self._bits[byte] & 1 << (position & 7))

    def __iter__(self) -> Iterator[int]:
        for byte, bits in enumerate(self._bits):
            if bits:
                yield from (byte << 3 | bit for bit in range(8) if bits & 1 << bit)
