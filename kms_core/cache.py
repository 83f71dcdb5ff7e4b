"""What the data-key cache is told and tells, and what its two sides have in common.

``sealing`` keeps the keys that seal now, ``opening`` those that opened something lately.  Hits
happen elsewhere, on the plain objects of ``sessions`` that those make; here is what sees to it
that a missing key is asked for once, with no lock held meanwhile, and that old ones go in time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from math import inf
from typing import Any, Final, Generic, TypeVar

from attrs import Attribute, field, frozen, validators

from kms_core.aead import Keys
from kms_core.context import Context
from kms_core.sessions import SMALL
from kms_core.types import Duration

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
Clock = Callable[[], float]

MAX_AGE: Final = 90 * 86400.0  # seconds; docs/format.md, section 8
MAX_MESSAGES: Final = 1 << 40  # the same
SHORTEST_PAUSE: Final = 0.05  # seconds between two sweeps
LONGEST_PAUSE: Final = 5.0  # so soon after waking up it is noticed that the machine slept
NAP: Final = 1.0  # seconds of sleep that are none

#: Seconds that also pass while the machine sleeps, where the system has such a clock.  Reading it
#: takes longer than the other one, which hits can feel.
since_boot: Final[Clock] = (
    partial(time.clock_gettime, time.CLOCK_BOOTTIME)
    if hasattr(time, "CLOCK_BOOTTIME")
    else time.monotonic
)


def _age(_: object, attribute: Attribute[Any], value: float) -> None:
    if not 0 <= value <= MAX_AGE:
        raise ValueError(f"{attribute.name} must be between 0 and 90 days, not {value} s")


@frozen
class CachePolicy:
    """How long data keys are kept; durations in seconds.

    ``max_age``: a data key seals, and opens, for so long; 0 keeps none: every call asks a service.
    ``max_messages`` and ``max_bytes`` bound what one data key seals; a message counts as 64 KiB at
    least.  ``max_entries`` bounds the keys kept for sealing, and likewise those for opening.
    ``refresh_ahead``: the last part of a sealing key's age, messages and bytes, during which its
    successor is made in the background.  ``stale_if_error``: so much longer it goes on sealing if
    no successor could be made.  ``degraded_max_age`` bounds the age of a data key that recipients
    are missing from.
    """

    max_age: Duration = field(default=Duration(300.0), validator=_age)
    max_messages: int = field(
        default=1 << 32, validator=(validators.ge(1), validators.le(MAX_MESSAGES))
    )
    max_bytes: int = field(default=1 << 48, validator=validators.ge(SMALL))
    max_entries: int = field(default=1000, validator=validators.ge(1))
    refresh_ahead: float = field(default=0.2, validator=(validators.ge(0.0), validators.lt(1.0)))
    stale_if_error: Duration = field(default=Duration(0.0), validator=_age)
    degraded_max_age: Duration = field(default=Duration(30.0), validator=_age)


@frozen
class CacheCounts:
    """What one side of the cache did.

    ``hits``: messages that cost no service call; ``misses``: keys that were asked for while a
    caller waited; ``coalesced``: callers who waited for a key that another had asked for;
    ``evicted``: keys dropped before their time to make room; ``keys``: those held now.
    """

    hits: int = 0
    misses: int = 0
    coalesced: int = 0
    evicted: int = 0
    keys: int = 0


@frozen
class CacheInfo:
    """What the cache did since the client was made; see ``CacheCounts`` for the sums.

    ``refreshed``: sealing keys replaced in the background, ``refresh_failed`` the attempts that
    failed; ``stale_served``: messages sealed beyond a key's age (``[cache] stale_if_error``).
    ``locked_bytes``: memory for data keys that the system keeps out of swap; ``lock_refused`` says
    why there is none.
    """

    sealing: CacheCounts
    opening: CacheCounts
    refreshed: int = 0
    refresh_failed: int = 0
    stale_served: int = 0
    locked_bytes: int = 0
    lock_refused: str = ""

    @property
    def hits(self) -> int:
        """Messages sealed and opened without asking a service."""
        return self.sealing.hits + self.opening.hits

    @property
    def misses(self) -> int:
        """Keys that were asked for while a caller waited."""
        return self.sealing.misses + self.opening.misses

    @property
    def coalesced(self) -> int:
        """Callers who waited for a key that another had asked for."""
        return self.sealing.coalesced + self.opening.coalesced

    @property
    def evicted(self) -> int:
        """Keys dropped before their time to make room."""
        return self.sealing.evicted + self.opening.evicted


def is_meant(keys: Keys, context: Context | None, key_id: bytes | None) -> bool:
    """Whether to forget these: their scope is in ``context`` and their id is this, where given."""
    return (context is None or context.includes(keys.scope)) and key_id in {None, keys.key_id}


#: The flights that whatever runs now is part of, on whichever thread.
_aboard: Final[ContextVar[tuple[Future[Any], ...]]] = ContextVar("kms_core_flights", default=())


class Flights(Generic[K, V]):
    """Has work done once for everybody who wants the same at the same time.

    Work that comes to want the same again, as an observer may that seals what it is told, is done
    at once: it would wait for itself.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way: dict[K, Future[V]] = {}
        self.joined = 0

    def run(self, key: K, work: Callable[[], V]) -> V:
        """What ``work`` returns or raises, be it this caller's or one that is under way."""
        aboard = _aboard.get()
        while True:
            with self._lock:
                mine: Future[V] = Future()
                flight = self._under_way.setdefault(key, mine)
                joins = flight is not mine and flight not in aboard
                self.joined += joins
            if flight is mine:
                return self._fly(key, mine, work)
            if not joins:
                return work()
            error = flight.exception()
            if error is None:
                return flight.result()
            if isinstance(error, Exception):
                raise error
            # That caller was interrupted, which is no reason for this one to give up.

    def _fly(self, key: K, flight: Future[V], work: Callable[[], V]) -> V:
        aboard = _aboard.set((*_aboard.get(), flight))
        try:
            result = work()
        except BaseException as exc:
            self._land(key)
            flight.set_exception(exc)
            raise
        finally:
            _aboard.reset(aboard)
        self._land(key)  # first: whoever comes now must see what was done, not what was under way
        flight.set_result(result)
        return result

    def _land(self, key: K) -> None:
        with self._lock:
            del self._under_way[key]


class Sweeper:
    """Drops keys when their time is over, though nobody asks for them: one thread while any are.

    Drops them all once the machine has slept, which the clock that ages them does not notice.
    """

    def __init__(
        self,
        sweep: Callable[[], float],
        forget: Callable[[], object],
        clock: Clock,
        since_boot: Clock = since_boot,
    ) -> None:
        """``sweep`` drops what is over and says when the next will be (``inf``: none is left)."""
        self._sweep = sweep
        self._forget = forget
        self._clock = clock
        self._since_boot = since_boot
        self._asleep = 0.0
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    def begin(self) -> None:
        """There is something to be dropped in time."""
        with self._lock:  # a sweep that finds nothing left must not end its thread meanwhile
            if self._thread is None and not self._stop.is_set():
                self._asleep = self._since_boot() - self._clock()
                thread = threading.Thread(target=self._run, name="kms-cache", daemon=True)
                with suppress(RuntimeError):  # too many threads, or the process ends
                    thread.start()
                    self._thread = thread

    def stop(self) -> None:
        """Sweep no more; idempotent."""
        self._stop.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        while (pause := self._pause()) is not None:
            self._stop.wait(pause)

    def _pause(self) -> float | None:
        asleep = self._since_boot() - self._clock()
        if asleep > self._asleep + NAP:
            self._forget()
        self._asleep = asleep
        with self._lock:
            soonest = inf if self._stop.is_set() else self._sweep()
            if soonest == inf:
                self._thread = None
                return None
        return min(max(soonest - self._clock(), SHORTEST_PAUSE), LONGEST_PAUSE)
