"""Second factors and the challenges of a sign-in in two steps. Whoever changes one holds its user's row lock."""

import hashlib
from datetime import datetime
from uuid import UUID

import asyncpg

from adapters.keys import CannotOpen, Keys
from adapters.postgres import Connection, execute_each
from domain.two_factor import CHALLENGES_MAX, Challenge, CodeSet, Factor

_OF_OTHER_KEYS = """
SELECT user_id, secret FROM second_factors
WHERE split_part(secret, '.', 2) < $1 OR split_part(secret, '.', 2) > $1 LIMIT $2"""


class TwoFactorSecrets:
    """Seals and opens TOTP secrets; each is bound to its user."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    def seal(self, user_id: UUID, secret: str) -> str:
        return self._keys.seal("two-factor", secret.encode(), place=_place(user_id))

    def open(self, user_id: UUID, sealed: str) -> str:
        return self._keys.open("two-factor", sealed, place=_place(user_id)).decode()

    async def seal_anew(self, connection: Connection, rows_max: int) -> int:
        """Seal under the key that is in force now what was sealed under another; how many there were.

        One that does not open stays as it is: it may open again once its key is back. So does one that was replaced
        meanwhile.
        """
        rows = await connection.fetch(_OF_OTHER_KEYS, self._keys.ring("two-factor").in_force, rows_max)
        tried = [(row["user_id"], row["secret"], self._sealed_anew(row["user_id"], row["secret"])) for row in rows]
        fresh = [row for row in tried if row[2]]
        await execute_each(
            connection, "UPDATE second_factors SET secret = $3 WHERE user_id = $1 AND secret = $2", fresh
        )
        return len(fresh)

    def _sealed_anew(self, user_id: UUID, sealed: str) -> str | None:
        try:
            return self.seal(user_id, self.open(user_id, sealed))
        except CannotOpen:
            return None


def _place(user_id: UUID) -> str:
    return f"two_factor.secret:{user_id}"


_FACTOR = """
SELECT f.id, f.user_id, f.secret, f.enabled_at IS NOT NULL AS is_on, f.last_step, f.codes_salt, f.codes_cost, f.codes,
    f.codes_made_at, f.wrong_codes, f.last_wrong_at,
    EXISTS (SELECT FROM device_tokens d WHERE d.hash = $2 AND d.user_id = f.user_id AND d.expires_at > $3)
        AS device_known
FROM second_factors f WHERE f.user_id = $1"""
# Whoever asks anew while the factor is off begins anew; only the count of wrong codes stays.
_BEGIN = """
INSERT INTO second_factors (user_id, id, secret, created_at) VALUES ($1, $2, $3, $4)
ON CONFLICT (user_id) DO UPDATE SET id = excluded.id, secret = excluded.secret, created_at = excluded.created_at,
    enabled_at = NULL, last_step = -1, codes = '{}', codes_made_at = NULL"""
_RIGHT = "wrong_codes = 0, last_wrong_at = NULL"
_ENABLE = f"""
UPDATE second_factors SET enabled_at = $4, last_step = $3, {_RIGHT}
WHERE user_id = $1 AND id = $2 AND enabled_at IS NULL AND last_step < $3 RETURNING true"""
_USE_STEP = f"""
UPDATE second_factors SET last_step = $3, {_RIGHT}
WHERE user_id = $1 AND id = $2 AND enabled_at IS NOT NULL AND wrong_codes <= $4 AND last_step < $3 RETURNING true"""
_USE_BACKUP_CODE = f"""
UPDATE second_factors SET codes = array_remove(codes, $3), {_RIGHT}
WHERE user_id = $1 AND id = $2 AND enabled_at IS NOT NULL AND wrong_codes <= $4 AND $3 = ANY(codes)
RETURNING cardinality(codes)"""
_CHALLENGE = "SELECT hash, user_id, password_mark, remember_me, expires_at, wrong_codes, spent_at FROM login_challenges"
_GIVE_WAY = """
DELETE FROM login_challenges WHERE hash IN (
    SELECT hash FROM login_challenges WHERE user_id = $1 ORDER BY created_at DESC, hash OFFSET $2)"""


class SecondFactors:
    """Second factors inside a transaction; the user's row lock is held."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def get(self, user_id: UUID, *, device_hash: bytes | None, at: datetime) -> Factor | None:
        return await factor_of(self._connection, user_id, device_hash=device_hash, at=at)

    async def begin(self, user_id: UUID, factor_id: UUID, sealed: str, *, at: datetime) -> None:
        """A pending secret, in the place of one that is pending already."""
        await self._connection.execute(_BEGIN, user_id, factor_id, sealed, at)

    async def enable(self, user_id: UUID, factor_id: UUID, *, step: int, at: datetime) -> bool:
        """Turn a pending factor on by its first code, which counts as used; False when it is pending no more."""
        return bool(await self._connection.fetchval(_ENABLE, user_id, factor_id, step, at))

    async def use_step(self, user_id: UUID, factor_id: UUID, step: int, *, wrong_max: int) -> bool:
        """Accept a TOTP code, after at most so many wrong ones; False when it or a later one was accepted before."""
        return bool(await self._connection.fetchval(_USE_STEP, user_id, factor_id, step, wrong_max))

    async def use_backup_code(self, user_id: UUID, factor_id: UUID, code_hash: bytes, *, wrong_max: int) -> int | None:
        """Use a backup code up; how many are left, or None when it is none of them any more."""
        left: int | None = await self._connection.fetchval(_USE_BACKUP_CODE, user_id, factor_id, code_hash, wrong_max)
        return left

    async def put_codes(self, user_id: UUID, codes: CodeSet) -> None:
        """A new set of backup codes, in the place of the old one."""
        await self._connection.execute(
            "UPDATE second_factors SET codes_salt = $2, codes_cost = $3, codes = $4, codes_made_at = $5 "
            "WHERE user_id = $1",
            user_id, codes.salt, list(codes.cost), list(codes.hashes), codes.made_at,
        )  # fmt: skip

    async def count_wrong(self, user_id: UUID, *, at: datetime) -> int:
        """One wrong code more; how many there were in a row."""
        counted: int | None = await self._connection.fetchval(
            "UPDATE second_factors SET wrong_codes = wrong_codes + 1, last_wrong_at = $2 WHERE user_id = $1 "
            "RETURNING wrong_codes",
            user_id, at,
        )  # fmt: skip
        return counted or 0

    async def wipe(self, user_id: UUID) -> None:
        """Forget secret, backup codes and open challenges; no session counts as opened by them any more."""
        await self._connection.execute("DELETE FROM second_factors WHERE user_id = $1", user_id)
        await self.void_challenges(user_id)
        await self._connection.execute(
            "UPDATE user_sessions SET amr = array_remove(amr, 'otp') "
            "WHERE user_id = $1 AND ended_at IS NULL AND 'otp' = ANY(amr)",
            user_id,
        )

    async def note_in_session(self, session_id: UUID) -> None:
        """A code was shown in this session: its tokens say so from the next refresh on."""
        await self._connection.execute(
            "UPDATE user_sessions SET amr = array_append(amr, 'otp') WHERE id = $1 AND NOT 'otp' = ANY(amr)",
            session_id,
        )

    async def open_challenge(self, challenge: Challenge, *, at: datetime) -> None:
        await self._connection.execute(_GIVE_WAY, challenge.user_id, CHALLENGES_MAX - 1)
        await self._connection.execute(
            "INSERT INTO login_challenges (hash, user_id, password_mark, remember_me, created_at, expires_at) "
            "VALUES ($1, $2, $3, $4, $5, $6)",
            challenge.hash, challenge.user_id, challenge.password_mark, challenge.remember_me, at, challenge.expires_at,
        )  # fmt: skip

    async def challenge(self, token_hash: bytes) -> Challenge | None:
        return await challenge_of(self._connection, token_hash)

    async def count_wrong_at(self, token_hash: bytes) -> None:
        """One wrong code more for this challenge."""
        await self._connection.execute(
            "UPDATE login_challenges SET wrong_codes = wrong_codes + 1 WHERE hash = $1", token_hash
        )

    async def spend_challenge(self, token_hash: bytes, *, at: datetime) -> None:
        await self._connection.execute("UPDATE login_challenges SET spent_at = $2 WHERE hash = $1", token_hash, at)

    async def void_challenges(self, user_id: UUID) -> None:
        """Whoever is half-way through a sign-in begins anew."""
        await self._connection.execute("DELETE FROM login_challenges WHERE user_id = $1", user_id)


def mark_of(password_hash: str) -> bytes:
    """By what a challenge knows the password that it was given for."""
    return hashlib.sha256(password_hash.encode()).digest()


async def factor_of(connection: Connection, user_id: UUID, *, device_hash: bytes | None, at: datetime) -> Factor | None:
    """A user's second factor, on or pending; `device_hash` is that of the call's device token."""
    row = await connection.fetchrow(_FACTOR, user_id, device_hash, at)
    return None if row is None else _factor(row)


async def challenge_of(connection: Connection, token_hash: bytes) -> Challenge | None:
    """A challenge by its token, open or not."""
    row = await connection.fetchrow(f"{_CHALLENGE} WHERE hash = $1", token_hash)
    return None if row is None else Challenge(**row)


async def challenge_is_open(connection: Connection, token_hash: bytes, *, at: datetime) -> bool:
    """May this challenge still be answered?"""
    challenge = await challenge_of(connection, token_hash)
    return challenge is not None and challenge.is_open(at)


def _factor(row: asyncpg.Record) -> Factor:
    codes = None
    if row["codes_made_at"] is not None:
        memory_kib, passes, lanes = row["codes_cost"]
        codes = CodeSet(row["codes_salt"], (memory_kib, passes, lanes), tuple(row["codes"]), row["codes_made_at"])
    return Factor(
        id=row["id"],
        user_id=row["user_id"],
        secret_sealed=row["secret"],
        is_on=row["is_on"],
        last_step=row["last_step"],
        codes=codes,
        wrong_codes=row["wrong_codes"],
        last_wrong_at=row["last_wrong_at"],
        device_known=row["device_known"],
    )
