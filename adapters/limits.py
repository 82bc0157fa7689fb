"""Rate limits: sliding windows, exact under concurrency, all of a request's limits in one round trip.

A sliding log (one sorted-set entry a try): exact where a counter of fixed windows would let twice the limit through at
a boundary. A lock is such a log that keeps its entries until it opens again. When Redis is away or hung, the same
windows are kept in the process: stricter for nobody, blind to the other processes, and bounded.
"""

import hashlib
import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from uuid import uuid4

from adapters.bounded import BoundedDict
from adapters.redis import Redis, RedisAway
from domain.refusals import RateLimited

_WINDOWS_KEPT_MAX = 50_000

# KEYS: one for each limit, then that of `clear` where there is one. ARGV: entry id, number of limits, then for each
# tries_max, window_ms, locks, refuses, clears. Nothing is written unless all allow; an entry that is there counts once.
_RESERVE = """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local entry, limits = ARGV[1], tonumber(ARGV[2])
local cleared = KEYS[limits + 1] and tonumber(redis.call('GET', KEYS[limits + 1]) or '-1')
local result, is_full = {}, {}
local refused, known = 0, false
for i = 1, limits do
  local key, at = KEYS[i], i * 5 - 2
  local max, window, locks = tonumber(ARGV[at]), tonumber(ARGV[at + 1]), ARGV[at + 2] == '1'
  if cleared and ARGV[at + 4] == '1' then redis.call('ZREMRANGEBYSCORE', key, '-inf', cleared) end
  local count = redis.call('ZCARD', key)
  local last = tonumber(redis.call('ZREVRANGE', key, 0, 0, 'WITHSCORES')[2] or '0')
  local locked = locks and count >= max and last > now - window
  if not locked then
    redis.call('ZREMRANGEBYSCORE', key, '-inf', now - window)
    count = redis.call('ZCARD', key)
  end
  local from = locked and last or tonumber(redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')[2] or now)
  is_full[i] = count >= max
  if is_full[i] and refused == 0 and ARGV[at + 3] == '1' then refused = i end
  known = known or redis.call('ZSCORE', key, entry) ~= false
  result[#result + 1] = max - count
  result[#result + 1] = from + window - now
end
if known then refused = 0 end
if refused == 0 and not known then
  for i = 1, limits do
    if not is_full[i] then
      redis.call('ZADD', KEYS[i], now, entry)
      redis.call('PEXPIRE', KEYS[i], tonumber(ARGV[i * 5 - 1]))
    end
  end
end
table.insert(result, 1, refused)
return result
"""
_GIVE_BACK = """
for i, key in ipairs(KEYS) do
  if ARGV[i + 1] == '1' then redis.call('DEL', key) else redis.call('ZREM', key, ARGV[1]) end
end
return {}
"""
_CLEAR = """
local t = redis.call('TIME')
redis.call('SET', KEYS[1], t[1] * 1000 + math.floor(t[2] / 1000), 'PX', ARGV[1])
return {}
"""


@dataclass(frozen=True, slots=True)
class Window:
    """One limit: `tries_max` in any `window_s` for this identifier. `name` is told to a caller who is refused.

    One that `locks` stays shut for `window_s` from the try that filled it. One that does not refuse only counts, until
    it is full. `cleared_with` names what `Limits.clear` empties it with.
    """

    name: str
    identifier: str
    tries_max: int
    window_s: int
    locks: bool = False
    refuses: bool = True
    cleared_with: str | None = None

    @property
    def key(self) -> str:
        return f"rate_limit:{self.name}:{_unnamed(self.identifier)}"

    @property
    def figures(self) -> tuple[int, ...]:
        """What the script is told of it."""
        return (self.tries_max, self.window_s * 1000, self.locks, self.refuses, self.cleared_with is not None)


@dataclass(frozen=True, slots=True)
class Reservation:
    """Tries that were counted, to be given back if they should not have been; `remaining` is of the tightest."""

    id: str
    windows: tuple[Window, ...]
    tightest: Window | None
    remaining: int
    reset_s: int
    filled: frozenset[str] = frozenset()
    """Names of the windows that this very try has filled."""
    asked_s: float = field(default_factory=time.monotonic)
    """A moment before the try was counted, by the monotonic clock."""

    @property
    def age_s(self) -> float:
        return time.monotonic() - self.asked_s

    @property
    def headers(self) -> dict[str, str]:
        if self.tightest is None:
            return {}
        return limit_headers(self.tightest, self.remaining, self.reset_s)

    def given_back(self) -> "Reservation":
        """As it stands once its tries no longer count."""
        return replace(self, remaining=self.remaining + 1, filled=frozenset())


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
        self._local = LocalWindows()

    @property
    def redis_is_away(self) -> bool:
        """Are tries being counted in this process alone?"""
        return self._redis.is_away

    async def reserve(self, windows: Sequence[Window], *, entry: str | None = None) -> Reservation:
        """Count a try in every window or in none; raises `LimitReached` for the first that is full.

        A try whose `entry` was counted before is let through, and counts no second time.
        """
        if not self._enabled or not windows:
            return Reservation("", (), None, 0, 0)
        entry = entry or uuid4().hex
        cleared_with = next((window.cleared_with for window in windows if window.cleared_with is not None), None)
        keys = [window.key for window in windows] + ([] if cleared_with is None else [_cleared_key(cleared_with)])
        figures = [int(figure) for window in windows for figure in window.figures]
        asked_s = time.monotonic()
        try:
            answer = [int(number) for number in await self._redis.run(_RESERVE, keys, [entry, len(windows), *figures])]
        except RedisAway:
            answer = self._local.reserve(entry, windows)
        return replace(_judge(entry, tuple(windows), answer), asked_s=asked_s)

    async def give_back(self, reservation: Reservation, *, emptied: Sequence[Window] = ()) -> None:
        """The tries should not count after all; nor what came before them in the windows that are emptied."""
        windows = list(dict.fromkeys([*reservation.windows, *emptied])) if self._enabled else []
        if not windows:
            return
        self._local.give_back(reservation.id, windows, emptied)
        flags = [int(window in emptied) for window in windows]
        try:
            await self._redis.run(_GIVE_BACK, [window.key for window in windows], [reservation.id, *flags])
        except RedisAway:
            return  # the entries age out by themselves

    async def clear(self, cleared_with: str, *, within_s: int) -> None:
        """Forget every try so far in the windows that are cleared with this; none of them is longer than `within_s`."""
        if not self._enabled:
            return
        self._local.clear(cleared_with)
        try:
            await self._redis.run(_CLEAR, [_cleared_key(cleared_with)], [within_s * 1000])
        except RedisAway:
            return  # what other processes have counted ages out by itself


class LocalWindows:
    """The same windows in the process' memory, for as long as Redis is away."""

    def __init__(self) -> None:
        self._tries: BoundedDict[str, deque[tuple[float, str]]] = BoundedDict(_WINDOWS_KEPT_MAX)
        self._cleared: BoundedDict[str, float] = BoundedDict(_WINDOWS_KEPT_MAX)

    def reserve(self, entry: str, windows: Sequence[Window]) -> list[int]:
        """What the script does, and what it answers."""
        now = time.monotonic()
        refused, answer = 0, []
        for number, window in enumerate(windows, 1):
            tries = self._tries.get(window.key, deque())
            self._forget_old(window, tries, now)
            is_full = len(tries) >= window.tries_max
            if is_full and window.refuses and not refused:
                refused = number
                self._tries.move_to_end(window.key)  # it must outlast the windows of those who try elsewhere
            since = now if not tries else tries[-1 if is_full and window.locks else 0][0]
            answer += [window.tries_max - len(tries), round((since + window.window_s - now) * 1000)]
        known = any(entry == id for window in windows for _, id in self._tries.get(window.key, ()))
        if not refused and not known:
            for window in windows:
                tries = self._tries.get(window.key, deque())
                if len(tries) < window.tries_max:
                    tries.append((now, entry))
                    self._tries[window.key] = tries
        return [0 if known else refused, *answer]

    def _forget_old(self, window: Window, tries: deque[tuple[float, str]], now: float) -> None:
        cleared = -math.inf if window.cleared_with is None else self._cleared.get(window.cleared_with, -math.inf)
        while tries and tries[0][0] <= cleared:
            tries.popleft()
        locked = window.locks and len(tries) >= window.tries_max and tries[-1][0] > now - window.window_s
        while not locked and tries and tries[0][0] <= now - window.window_s:
            tries.popleft()

    def give_back(self, entry: str, windows: Sequence[Window], emptied: Sequence[Window] = ()) -> None:
        for window in windows:
            tries = self._tries.get(window.key)
            if tries is not None:
                left = () if window in emptied else (kept for kept in tries if kept[1] != entry)
                self._tries[window.key] = deque(left)

    def clear(self, cleared_with: str) -> None:
        self._cleared[cleared_with] = time.monotonic()


def _cleared_key(cleared_with: str) -> str:
    return f"rate_limit:cleared:{_unnamed(cleared_with)}"


def _unnamed(who: str) -> str:
    """A mail address is counted under its hash: Redis holds nobody's address, also not for an hour."""
    return hashlib.sha256(who.encode()).hexdigest()[:32] if "@" in who else who


def _judge(entry: str, windows: tuple[Window, ...], answer: list[int]) -> Reservation:
    refused, figures = answer[0], answer[1:]
    left = [(figures[i * 2], math.ceil(max(figures[i * 2 + 1], 1) / 1000)) for i in range(len(windows))]
    if refused:
        window, (_, wait_s) = windows[refused - 1], left[refused - 1]
        raise LimitReached(window.name, wait_s, limit_headers(window, 0, wait_s))
    filled = frozenset(window.name for window, (remaining, _) in zip(windows, left, strict=True) if remaining == 1)
    tightest = min((i for i, window in enumerate(windows) if window.refuses), key=lambda i: left[i][0])
    return Reservation(entry, windows, windows[tightest], left[tightest][0] - 1, left[tightest][1], filled)
