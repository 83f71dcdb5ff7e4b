"""Timing of ready calls: batches long enough for the clock, two calls in turn, threads at once.

Needs nothing beyond Python: it runs in the peers' environments too.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from itertools import repeat
from typing import Final

from benchmarks.peer import Call, Duel

LONG_ENOUGH: Final = 2_000_000  # nanoseconds: the clock's own grain and cost vanish in it
_MOST: Final = 1 << 20
_NO_HICCUP: Final = 50  # times what was asked for: such a call really takes that long

Clock = Callable[[], int]


def batch(call: Call, count: int, clock: Clock = time.perf_counter_ns) -> float:
    """Nanoseconds per call, over ``count`` calls."""
    turns = repeat(None, count)
    began = clock()
    for _ in turns:
        call()
    return (clock() - began) / count


def calibrated(call: Call, at_least: int = LONG_ENOUGH, clock: Clock = time.perf_counter_ns) -> int:
    """How many calls take so many nanoseconds; the call has warmed up when this returns."""
    call()
    count = 1
    while count < _MOST:
        taken = batch(call, count, clock) * count
        if at_least <= taken < _NO_HICCUP * at_least:
            # The scheduler may have been in the way: what counts is the better of two.
            taken = min(taken, batch(call, count, clock) * count)
        if taken >= at_least:
            return count
        count = min(_MOST, max(count * 2, round(count * 1.2 * at_least / max(taken, 1.0))))
    return count


class Timer:
    """Times the two sides of a duel in turn, on one thread or on several at once."""

    def __init__(self, duel: Duel, threads: int = 1, at_least: int = LONG_ENOUGH) -> None:
        self._duel = duel
        self._threads = threads
        single = duel.before is not None
        self._base = 1 if single else calibrated(duel.base, at_least)
        self._subject = 1 if single else calibrated(duel.subject, at_least)

    def sample(self, *, subject_first: bool) -> tuple[float, float]:
        """Nanoseconds per unit: of the base, and of the subject."""
        sides = [(self._duel.base, self._base), (self._duel.subject, self._subject)]
        order = (1, 0) if subject_first else (0, 1)
        taken = {side: self._timed(*sides[side]) / self._duel.units for side in order}
        return taken[0], taken[1]

    def _timed(self, call: Call, count: int) -> float:
        if self._duel.before is not None:
            self._duel.before()
        if self._threads == 1:
            return batch(call, count)
        return crowded(call, max(1, count // self._threads), self._threads)


def crowded(call: Call, count: int, threads: int) -> float:
    """Nanoseconds per call while so many threads make ``count`` calls each, all at once."""
    began, ended = together(lambda: batch(call, count), threads)
    return (ended - began) / (count * threads)


def together(work: Call, threads: int) -> tuple[int, int]:
    """Run ``work`` in so many threads; when they were let go, and when the last had done.

    Raises the first error of any of them.
    """
    released: list[int] = []
    barrier = threading.Barrier(threads, action=lambda: released.append(time.perf_counter_ns()))
    ends: list[int] = []
    errors: list[Exception] = []

    def run() -> None:
        barrier.wait()
        try:
            work()
        except Exception as exc:  # noqa: BLE001  raised again by the caller
            errors.append(exc)
        ends.append(time.perf_counter_ns())

    crowd = [threading.Thread(target=run) for _ in range(threads)]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join()
    if errors:
        raise errors[0]
    return released[0], max(ends)
