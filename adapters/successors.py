"""The refresh token that comes after another, kept for moments so that it can be given again; the database alone cannot
give it."""

from adapters.keys import decrypt, derive, encrypt
from adapters.tokens import TokenMint

_PLACE = "refresh_tokens.successor"


def seal_successor(token: str, successor: str) -> str:
    """For whoever shows the token again: the key is derived from it, and only its hash is stored."""
    return encrypt(derive(token.encode(), _PLACE), successor.encode(), _PLACE)


def seal_unseen(mint: TokenMint, successor: str) -> str:
    """For a token that is not at hand, since it was replaced without being shown: under a key of the server."""
    return mint.seal(successor, place=_PLACE)


def open_successor(mint: TokenMint, token: str, sealed: str) -> str:
    """What stands sealed for this token."""
    if "." in sealed:  # it names a key of the server
        return mint.open(sealed, place=_PLACE)
    return decrypt(derive(token.encode(), _PLACE), sealed, _PLACE).decode()
