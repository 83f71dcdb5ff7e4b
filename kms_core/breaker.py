"""Circuit breaker of one instance: a pure state machine with an injected clock.

It is told how calls ended and says whether the next one may be made.  It makes no call, starts no
timer and knows no error class: what counts as a failure is for the caller to decide.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Literal

from attrs import Attribute, define, field, frozen
from attrs.validators import optional

from kms_core.errors import BreakerOpen
from kms_core.types import Duration

if TYPE_CHECKING:
    from kms_core.types import BreakerState

SLOTS: Final = 20  # the failure ratio looks back one window, rounded up to the next 1/20 of it
_AT_ONCE: Final = -math.inf


def _at_least_one(_: object, attribute: Attribute[int], value: int) -> None:
    if value < 1:
        raise ValueError(f"{attribute.name} must be at least 1, not {value}")


def _positive(_: object, attribute: Attribute[Any], value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{attribute.name} must be a positive time in seconds, not {value}")


def _fraction(_: object, attribute: Attribute[float], value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{attribute.name} must be between 0 and 1, not {value}")


@frozen
class BreakerPolicy:
    """When a breaker opens, how long it stays open, and what closes it again.

    ``failure_threshold`` failures within ``window`` open it, provided that they follow each other
    without a success or make up ``minimum_failure_ratio`` of all outcomes: at a high rate a few
    stray failures are noise.  ``timeouts_in_a_row`` time-outs with no success among them open it
    however far apart they are.  It stays open for ``recovery_timeout``, doubled after each failed
    probe up to ``max_recovery_timeout`` (which never shortens ``recovery_timeout``);
    ``success_threshold`` successful probes close it.  A success that took ``slow_call`` or longer
    counts as a failure (``None``: however slow, it is a success).
    """

    failure_threshold: int = field(default=5, validator=_at_least_one)
    window: Duration = field(default=Duration(60.0), validator=_positive)
    recovery_timeout: Duration = field(default=Duration(60.0), validator=_positive)
    max_recovery_timeout: Duration = field(default=Duration(600.0), validator=_positive)
    success_threshold: int = field(default=2, validator=_at_least_one)
    minimum_failure_ratio: float = field(default=0.1, validator=_fraction)
    timeouts_in_a_row: int = field(default=3, validator=_at_least_one)
    slow_call: Duration | None = field(default=None, validator=optional(_positive))


@define(eq=False)
class Permit:
    """Leave to make one call; hand it back through ``succeed``, ``fail`` or ``release``.

    ``period`` numbers the state in which it was given: an outcome that arrives in a later one says
    nothing about it and is ignored.
    """

    period: int
    settled: bool = False


@frozen
class BreakerSnapshot:
    """A consistent reading of a breaker.

    ``failures_in_window`` counts towards the threshold and stops there.  ``opened_count`` includes
    reopening after a failed probe; ``period`` grows by one with every change of state.  ``forced``:
    what an operator holds it in, whatever it would do by itself.
    """

    state: BreakerState
    failures_in_window: int
    retry_after: float
    opened_count: int
    period: int
    forced: Literal["closed", "open"] | None = None


class Breaker:
    """Counts failures of one instance and refuses calls while it is down.  Thread-safe.

    ``clock`` is monotonic seconds.  ``on_change`` is told each new state after the lock is
    released; it must not raise, and when threads race it may hear of two changes in either order.
    """

    def __init__(
        self,
        policy: BreakerPolicy,
        clock: Callable[[], float],
        on_change: Callable[[BreakerState], None] | None = None,
    ) -> None:
        self._policy = policy
        self._clock = clock
        self._on_change = on_change
        self._lock = threading.Lock()
        self._state: BreakerState = "closed"
        self._period = 0
        self._opened_count = 0
        self._evidence = _Evidence(policy)
        self._recovery: float = policy.recovery_timeout
        self._retry_at = _AT_ONCE
        self._due = _AT_ONCE  # when the regular probe of the last open period was to be
        self._probe: Permit | None = None
        self._probe_successes = 0
        self._forced: Literal["closed", "open"] | None = None

    @property
    def state(self) -> BreakerState:
        """The state last entered: ``open`` turns into ``half-open`` when a probe is admitted."""
        return self._forced or self._state

    def force(self, state: Literal["closed", "open"] | None) -> None:
        """Hold it open (maintenance) or closed (a false alarm); ``None`` lets it work again.

        What calls bring meanwhile is ignored, and it starts afresh, closed, when let go.
        """
        with self._lock:
            before = self.state
            self._forced = state
            self._enter("closed")
            self._recovery = self._policy.recovery_timeout
            self._probe, self._retry_at = None, math.inf if state == "open" else _AT_ONCE
            after = self.state
        self._announce(before, after)

    @property
    def retry_after(self) -> float:
        """Seconds until ``acquire`` can admit a call; 0 exactly when it would admit one now."""
        with self._lock:
            return self._wait(self._clock())

    def snapshot(self) -> BreakerSnapshot:
        """State and counters at one moment; reading changes nothing."""
        with self._lock:
            now = self._clock()
            return BreakerSnapshot(
                state=self.state,
                failures_in_window=self._evidence.failures_in_window(now),
                retry_after=self._wait(now),
                opened_count=self._opened_count,
                period=self._period,
                forced=self._forced,
            )

    def acquire(self, *, early: bool = False) -> Permit:
        """Leave to make a call; raises ``BreakerOpen`` with the seconds until the next probe.

        Once open for long enough it admits one probe at a time.  A probe that has not reported
        within ``recovery_timeout`` is given up and the next one admitted in its place.  ``early``
        asks for a probe ahead of time: if there is none under way it is admitted.
        """
        with self._lock:
            before = self.state
            permit = self._admit(self._clock(), early=early)
            after = self.state
        self._announce(before, after)
        return permit

    def honours(self, permit: Permit) -> bool:
        """Whether the state in which ``permit`` was given still lasts."""
        return permit.period == self._period

    def succeed(self, permit: Permit, seconds: float = 0.0) -> None:
        """The service did what was asked, in so many ``seconds``."""
        slow = self._policy.slow_call is not None and seconds >= self._policy.slow_call
        self._settle(permit, self._record_failure if slow else self._record_success)

    def fail(self, permit: Permit, *, timeout: bool = False) -> None:
        """The service is unwell; ``timeout`` if that is because it did not answer in time."""
        self._settle(permit, self._record_timeout if timeout else self._record_failure)

    def release(self, permit: Permit) -> None:
        """The call says nothing about the service, or was never made."""
        self._settle(permit, self._record_nothing)

    def _admit(self, now: float, *, early: bool) -> Permit:
        wait = self._wait(now)
        early = early and wait > 0 and self._probe is None and self._forced is None
        if wait > 0 and not early:
            raise BreakerOpen(self._refusal(wait), retry_after=wait)
        if self._state == "open":
            self._due = self._retry_at
            self._enter("half-open")
            self._probe_successes = 0
        permit = Permit(self._period)
        if self._state == "half-open":
            self._replace_probe(permit, now)
        return permit

    def _wait(self, now: float) -> float:
        return max(0.0, self._retry_at - now)

    def _refusal(self, wait: float) -> str:
        if self._forced:
            return "the breaker is held open by the operator; use another instance"
        why = "is open" if self._state == "open" else "is half-open and its probe is under way"
        return f"the breaker {why}; retry in {wait:.1f} s or use another instance"

    def _replace_probe(self, permit: Permit, now: float) -> None:
        if self._probe is not None:
            self._probe.settled = True  # given up: should it report after all, it is too late
        self._probe = permit
        self._retry_at = now + self._policy.recovery_timeout

    def _settle(self, permit: Permit, record: Callable[[float], None]) -> None:
        with self._lock:
            if permit.settled or permit.period != self._period or self._forced:
                return
            permit.settled = True
            before = self.state
            self._probe = None  # a live permit of a half-open period is the probe
            self._retry_at = _AT_ONCE
            record(self._clock())
            after = self.state
        self._announce(before, after)

    def _record_success(self, now: float) -> None:
        if self._state == "closed":
            self._evidence.add_success(now)
            return
        self._probe_successes += 1
        if self._probe_successes >= self._policy.success_threshold:
            self._close()

    def _record_timeout(self, now: float) -> None:
        self._evidence.add_timeout()
        self._record_failure(now)

    def _record_failure(self, now: float) -> None:
        if self._state == "half-open":
            if now < self._due:  # a probe ahead of its time does not put off the regular one
                self._open(now)
                self._retry_at = self._due
                return
            longest = max(self._policy.recovery_timeout, self._policy.max_recovery_timeout)
            self._recovery = min(2 * self._recovery, longest)
            self._open(now)
            return
        self._evidence.add_failure(now)
        if self._evidence.convicts(now):
            self._open(now)

    def _record_nothing(self, now: float) -> None:
        """No evidence either way: the permit is settled and that is all."""

    def _open(self, now: float) -> None:
        self._enter("open")
        self._opened_count += 1
        self._retry_at = now + self._recovery

    def _close(self) -> None:
        self._enter("closed")
        self._recovery = self._policy.recovery_timeout

    def _enter(self, state: BreakerState) -> None:
        self._state = state
        self._period += 1
        self._evidence = _Evidence(self._policy)

    def _announce(self, before: BreakerState, after: BreakerState) -> None:
        if self._on_change is not None and after != before:
            self._on_change(after)


@define
class _Slot:
    index: int
    successes: int = 0
    failures: int = 0


class _Evidence:
    """What was seen during one closed period, in bounded memory whatever the rate of calls."""

    def __init__(self, policy: BreakerPolicy) -> None:
        self._policy = policy
        self._failure_times: deque[float] = deque(maxlen=policy.failure_threshold)
        self._slots: deque[_Slot] = deque(maxlen=SLOTS + 1)
        self._failures_in_a_row = 0
        self._timeouts_in_a_row = 0

    def add_success(self, now: float) -> None:
        self._slot(now).successes += 1
        self._failures_in_a_row = 0
        self._timeouts_in_a_row = 0

    def add_failure(self, now: float) -> None:
        self._slot(now).failures += 1
        self._failure_times.append(now)
        self._failures_in_a_row += 1

    def add_timeout(self) -> None:
        self._timeouts_in_a_row += 1

    def failures_in_window(self, now: float) -> int:
        return sum(now - time < self._policy.window for time in self._failure_times)

    def convicts(self, now: float) -> bool:
        """Whether this is enough to open the breaker."""
        policy = self._policy
        if self._timeouts_in_a_row >= policy.timeouts_in_a_row:
            return True
        if self.failures_in_window(now) < policy.failure_threshold:
            return False
        return (
            self._failures_in_a_row >= policy.failure_threshold
            or self._failure_ratio(now) >= policy.minimum_failure_ratio
        )

    def _slot(self, now: float) -> _Slot:
        index = self._slot_index(now)
        if not self._slots or self._slots[-1].index != index:
            self._slots.append(_Slot(index))
        return self._slots[-1]

    def _slot_index(self, now: float) -> int:
        return int(now * SLOTS // self._policy.window)

    def _failure_ratio(self, now: float) -> float:
        oldest = self._slot_index(now) - SLOTS
        recent = [slot for slot in self._slots if slot.index >= oldest]
        failures = sum(slot.failures for slot in recent)
        return failures / (failures + sum(slot.successes for slot in recent))
