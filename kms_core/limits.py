"""Limits on what calls may cost: pure bookkeeping with an injected clock."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import partial
from typing import Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)

Clock = Callable[[], float]


class TokenBucket:
    """``rate`` tokens a second, saved up to ``burst``; full when made.  Thread-safe."""

    def __init__(self, rate: float, burst: float, clock: Clock) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._lock = threading.Lock()
        self._tokens = burst
        self._at = clock()

    def take(self) -> bool:
        """Spend a token; false if there is none."""
        with self._lock:
            self._refill()
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True

    def put_back(self) -> None:
        """Undo a ``take`` that was not to be counted."""
        with self._lock:
            self._tokens = min(self._burst, self._tokens + 1)

    def wait(self) -> float:
        """Seconds until there is a token."""
        with self._lock:
            self._refill()
            return max(0.0, (1 - self._tokens) / self._rate)

    def _refill(self) -> None:
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now


class Limiter(Generic[K]):
    """A token bucket for each of at most ``most`` keys; those unused for longest are forgotten."""

    def __init__(self, rate: float, burst: float, clock: Clock, most: int = 10_000) -> None:
        self._new = partial(TokenBucket, rate, burst, clock)
        self._most = most
        self._lock = threading.Lock()
        self._buckets: OrderedDict[K, TokenBucket] = OrderedDict()

    def bucket(self, key: K) -> TokenBucket:
        """The bucket of ``key``; full if there was none."""
        with self._lock:
            bucket = self._buckets.get(key)
            if bucket is None:
                bucket = self._buckets[key] = self._new()
                if len(self._buckets) > self._most:
                    self._buckets.popitem(last=False)
            else:
                self._buckets.move_to_end(key)
            return bucket


class Budget:
    """What may be spent on extra work: each ordinary call earns ``share`` of one more.

    Starts with ``most`` and never saves more than that, so an outage is not amplified: with a share
    of 0.1, a service that fails throughout is asked 1.1 times as often, and not twice.
    """

    def __init__(self, share: float, most: float) -> None:
        self._share = share
        self._most = most
        self._lock = threading.Lock()
        self._saved = most

    def earn(self) -> None:
        """An ordinary call was made."""
        with self._lock:
            self._saved = min(self._most, self._saved + self._share)

    def spend(self) -> bool:
        """Pay for one extra call; false if it cannot be afforded."""
        with self._lock:
            if self._saved < 1:
                return False
            self._saved -= 1
            return True


class Remembered(Generic[K]):
    """The keys noted within the last ``seconds``, at most ``most`` of them.  Thread-safe."""

    def __init__(self, seconds: float, most: int, clock: Clock) -> None:
        self._seconds = seconds
        self._most: Final = most
        self._clock = clock
        self._lock = threading.Lock()
        self._until: OrderedDict[K, float] = OrderedDict()

    def note(self, key: K, seconds: float | None = None) -> None:
        """Remember ``key`` from now on, for ``seconds`` if that differs from the usual."""
        with self._lock:
            self._until.pop(key, None)
            self._until[key] = self._clock() + (self._seconds if seconds is None else seconds)
            while len(self._until) > self._most:
                self._until.popitem(last=False)

    def left(self, key: K) -> float:
        """Seconds that ``key`` will still be remembered; 0 if it is not."""
        if not self._until:  # the usual case takes no lock
            return 0.0
        with self._lock:
            until = self._until.get(key)
            if until is None:
                return 0.0
            left = until - self._clock()
            if left <= 0:
                del self._until[key]
            return max(0.0, left)

    def forget(self, key: K) -> None:
        """It no longer holds."""
        if self._until:
            with self._lock:
                self._until.pop(key, None)
