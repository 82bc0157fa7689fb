"""Rate limits: sliding windows, exact under concurrency, all of a request's limits in one round trip.

A sliding log (one sorted-set entry a try): exact where a counter of fixed windows would let twice the limit through at
a boundary. When Redis is away or hung, the same windows are kept in the process: stricter for nobody, blind to the
other processes, and bounded.
"""

import hashlib
import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from uuid import uuid4

from adapters.bounded import BoundedDict
from adapters.redis import Redis, RedisAway
from domain.refusals import RateLimited

_WINDOWS_KEPT_MAX = 50_000

# KEYS: one for each limit. ARGV: entry id, then (tries_max, window_ms) for each. Nothing is written unless all allow.
_RESERVE = """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local result = {}
local refused = 0
for i, key in ipairs(KEYS) do
  local max, window = tonumber(ARGV[i * 2]), tonumber(ARGV[i * 2 + 1])
  redis.call('ZREMRANGEBYSCORE', key, '-inf', now - window)
  local count = redis.call('ZCARD', key)
  local wait = window
  if count > 0 then
    local oldest = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')
    wait = tonumber(oldest[2]) + window - now
  end
  if count >= max and refused == 0 then refused = i end
  result[#result + 1] = max - count
  result[#result + 1] = wait
end
if refused == 0 then
  for i, key in ipairs(KEYS) do
    redis.call('ZADD', key, now, ARGV[1])
    redis.call('PEXPIRE', key, tonumber(ARGV[i * 2 + 1]))
  end
end
table.insert(result, 1, refused)
return result
"""
_GIVE_BACK = "for _, key in ipairs(KEYS) do redis.call('ZREM', key, ARGV[1]) end return {}"


@dataclass(frozen=True, slots=True)
class Window:
    """One limit: `tries_max` in any `window_s` for this identifier. `name` is told to a caller who is refused."""

    name: str
    identifier: str
    tries_max: int
    window_s: int

    @property
    def key(self) -> str:
        """A mail address is counted under its hash: Redis holds nobody's address, also not for an hour."""
        who = self.identifier
        if "@" in who:
            who = hashlib.sha256(who.encode()).hexdigest()[:32]
        return f"rate_limit:{self.name}:{who}"


@dataclass(frozen=True, slots=True)
class Reservation:
    """Tries that were counted, to be given back if they should not have been; `remaining` is of the tightest."""

    id: str
    windows: tuple[Window, ...]
    tightest: Window | None
    remaining: int
    reset_s: int

    @property
    def headers(self) -> dict[str, str]:
        if self.tightest is None:
            return {}
        return limit_headers(self.tightest, self.remaining, self.reset_s)

    def given_back(self) -> "Reservation":
        """As it stands once its tries no longer count."""
        return replace(self, remaining=self.remaining + 1)


def limit_headers(window: Window, remaining: int, reset_s: int) -> dict[str, str]:
    """What every reply of a limited operation says of its tightest limit."""
    return {
        "RateLimit-Limit": str(window.tries_max),
        "RateLimit-Remaining": str(remaining),
        "RateLimit-Reset": str(reset_s),
    }


@dataclass(eq=False)
class LimitReached(RateLimited):
    """A refusal that knows the headers of its reply."""

    headers: dict[str, str]


class Limits:
    """Counts tries in Redis, or in the process while Redis is away; `enabled=False` counts nothing."""

    def __init__(self, redis: Redis, *, enabled: bool) -> None:
        self._redis = redis
        self._enabled = enabled
        self._local: BoundedDict[str, deque[tuple[float, str]]] = BoundedDict(_WINDOWS_KEPT_MAX)

    @property
    def redis_is_away(self) -> bool:
        """Are tries being counted in this process alone?"""
        return self._redis.is_away

    async def reserve(self, windows: Sequence[Window]) -> Reservation:
        """Count a try in every window or in none; raises `LimitReached` for the first that is full."""
        if not self._enabled or not windows:
            return Reservation("", (), None, 0, 0)
        entry = uuid4().hex
        try:
            figures = [part for w in windows for part in (w.tries_max, w.window_s * 1000)]
            raw = await self._redis.run(_RESERVE, [window.key for window in windows], [entry, *figures])
            answer = [int(number) for number in raw]
        except RedisAway:
            answer = self._reserve_locally(entry, windows)
        return _judge(entry, tuple(windows), answer)

    async def give_back(self, reservation: Reservation) -> None:
        """The tries should not count after all (a login that succeeded)."""
        if not reservation.windows:
            return
        for window in reservation.windows:
            tries = self._local.get(window.key)
            if tries is not None:
                self._local[window.key] = deque(entry for entry in tries if entry[1] != reservation.id)
        try:
            await self._redis.run(_GIVE_BACK, [window.key for window in reservation.windows], [reservation.id])
        except RedisAway:
            return  # the entry ages out by itself

    def _reserve_locally(self, entry: str, windows: Sequence[Window]) -> list[int]:
        now = time.monotonic()
        refused, answer = 0, []
        for number, window in enumerate(windows, 1):
            tries = self._local.get(window.key, deque())
            while tries and tries[0][0] <= now - window.window_s:
                tries.popleft()
            wait_s = tries[0][0] + window.window_s - now if tries else window.window_s
            if len(tries) >= window.tries_max and not refused:
                refused = number
                self._local.move_to_end(window.key)  # it must outlast the windows of those who try elsewhere
            answer += [window.tries_max - len(tries), round(wait_s * 1000)]
        if not refused:
            for window in windows:
                tries = self._local.get(window.key, deque())
                tries.append((now, entry))
                self._local[window.key] = tries
        return [refused, *answer]


def _judge(entry: str, windows: tuple[Window, ...], answer: list[int]) -> Reservation:
    refused, figures = answer[0], answer[1:]
    left = [(figures[i * 2], math.ceil(max(figures[i * 2 + 1], 1) / 1000)) for i in range(len(windows))]
    if refused:
        window, (_, wait_s) = windows[refused - 1], left[refused - 1]
        raise LimitReached(window.name, wait_s, limit_headers(window, 0, wait_s))
    tightest = min(range(len(windows)), key=lambda i: left[i][0])
    return Reservation(entry, windows, windows[tightest], left[tightest][0] - 1, left[tightest][1])
