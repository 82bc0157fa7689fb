"""Does the time of an answer tell a known address from an unknown one? Alternating tries, and what sets them apart."""

import math
import random
import time
from bisect import bisect_left, bisect_right
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from statistics import median

from tests.gateway import Gateway, Reply, new_email, registration

Ask = Callable[[Gateway, str, int], Awaitable[Reply]]
WRONG = "Wrong-Password-1"
MEASURED = {
    # Limits are counted, and let everything through; hashes cost what they cost; answers take their time.
    "USER_SERVICE_RATE_LIMITS": "on",
    "USER_SERVICE_ARGON2": "m=19456,t=2,p=1",
    "USER_SERVICE_ANSWER_MS_STEP": "100",
    "USER_SERVICE_HIDE_REGISTERED_EMAILS": "true",
    "USER_SERVICE_LOG_LEVEL": "warning",
} | {
    f"USER_SERVICE_LIMIT_{name}": "1000000/900"
    for name in ("LOGIN", "LOGIN_SOURCE", "LOGIN_ACCOUNT", "REGISTER", "MAIL_ADDRESS", "MAIL_SOURCE")
}


def _headers(number: int) -> dict[str, str]:
    return {"Client-Ip": f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}", "User-Agent": "probe"}


async def login(client: Gateway, email: str, number: int) -> Reply:
    return await client.call("auth.login", headers=_headers(number), email=email, password=WRONG)


async def forgot(client: Gateway, email: str, number: int) -> Reply:
    return await client.call("auth.forgot-password", headers=_headers(number), email=email)


async def resend(client: Gateway, email: str, number: int) -> Reply:
    return await client.call("auth.resend-verification", headers=_headers(number), email=email)


async def register(client: Gateway, email: str, number: int) -> Reply:
    return await client.call("auth.register", headers=_headers(number), **registration(email))


OPERATIONS: dict[str, Ask] = {"login": login, "forgot": forgot, "resend": resend, "register": register}


@dataclass(frozen=True)
class Verdict:
    """What sets the times of two kinds of tries apart; `auc` is the chance that a known one takes longer."""

    known_ms: float
    unknown_ms: float
    auc: float
    tries: int
    answers: int
    """How many different answers were seen, the request's own id and time apart."""

    @property
    def medians_agree(self) -> bool:
        apart = abs(self.known_ms - self.unknown_ms)
        return apart < 1 or apart < 0.05 * min(self.known_ms, self.unknown_ms)

    def auc_within(self, bound: float) -> bool:
        return abs(self.auc - 0.5) <= bound

    def __str__(self) -> str:
        return (
            f"known {self.known_ms:.2f} ms, unknown {self.unknown_ms:.2f} ms, AUC {self.auc:.4f} over {self.tries} "
            f"tries each, {self.answers} different answers"
        )


def auc_of(known: Sequence[float], unknown: Sequence[float]) -> float:
    """The rank statistic of Mann and Whitney: 0.5 where nothing tells the two apart."""
    ordered = sorted(unknown)
    wins = sum(bisect_left(ordered, one) + bisect_right(ordered, one) for one in known) / 2
    return wins / (len(known) * len(unknown))


def deviation_of_auc(tries: int) -> float:
    """The standard deviation of the statistic where there is nothing to tell."""
    return math.sqrt((2 * tries + 1) / (12 * tries * tries))


async def known_addresses(client: Gateway, wanted: int, *, verified: bool) -> list[str]:
    """Addresses of accounts; those that are not verified may ask for another mail."""
    if verified:
        return [await client.verified() for _ in range(wanted)]
    emails = [new_email() for _ in range(wanted)]
    for email in emails:
        await client.register(email)
    return emails


async def compare(client: Gateway, ask: Ask, known: Sequence[str], *, tries: int, seed: int) -> Verdict:
    """Known and unknown in turns, which of a pair comes first by chance."""
    chance = random.Random(seed)
    times: dict[bool, list[float]] = {True: [], False: []}
    seen: set[str] = set()
    for number in range(tries):
        for is_known in chance.sample((True, False), 2):
            email = known[number % len(known)] if is_known else new_email()
            began = time.perf_counter()
            reply = await ask(client, email, number)
            times[is_known].append((time.perf_counter() - began) * 1000)
            seen.add(_told(reply))
    return Verdict(median(times[True]), median(times[False]), auc_of(times[True], times[False]), tries, len(seen))


def _told(reply: Reply) -> str:
    """The whole answer but for what is the request's own: its id, its time, and how much its source has left."""
    own = {"Request-Id", "RateLimit-Remaining", "RateLimit-Reset"}
    headers = sorted((name, value) for name, value in reply.headers.items() if name not in own)
    return str(({name: value for name, value in reply.body.items() if name != "meta"}, headers))
