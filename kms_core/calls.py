"""One call to one instance: breaker, worker, retries and time-out.

Every call to a service runs on a worker of its instance, behind that instance's breaker, so that
the caller can walk away when time is up.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Any, Final, Generic, TypeVar

from attrs import Attribute, define, field, frozen

from kms_core.aead import wipe
from kms_core.breaker import Permit
from kms_core.errors import (
    BreakerOpen,
    ConfigError,
    DeadlineExceeded,
    InvalidRequest,
    KMSError,
    PolicyDenied,
    Throttled,
    UnsupportedOperation,
)
from kms_core.relay import Relay
from kms_core.types import Attempt, Duration

T = TypeVar("T")
Clock = Callable[[], float]

POLL: Final = 0.05  # how soon a call that is still loading its SDK is looked at again
#: Outcomes that say nothing about the service: it was not asked, or it asked for patience.
_NO_EVIDENCE: Final = (
    Throttled,
    BreakerOpen,
    PolicyDenied,
    InvalidRequest,
    UnsupportedOperation,
    ConfigError,
)


def _positive(_: object, attribute: Attribute[Any], value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{attribute.name} must be a positive time in seconds, not {value}")


def _at_least_one(_: object, attribute: Attribute[int], value: int) -> None:
    if value < 1:
        raise ValueError(f"{attribute.name} must be at least 1, not {value}")


@frozen
class CallPolicy:
    """Times and numbers for calls to services; durations in seconds.

    ``deadline`` bounds one public call across retries and fallback; ``attempt_timeout`` one call
    to one service; ``attempts`` how often one instance is tried for one write; ``hedge_after`` when
    an unanswered open also asks the next recipient; ``health_timeout`` a whole health report.
    """

    deadline: Duration = field(default=Duration(10.0), validator=_positive)
    attempt_timeout: Duration = field(default=Duration(3.0), validator=_positive)
    attempts: int = field(default=2, validator=_at_least_one)
    hedge_after: Duration = field(default=Duration(1.0), validator=_positive)
    max_concurrency: int = field(default=32, validator=_at_least_one)
    health_timeout: Duration = field(default=Duration(2.0), validator=_positive)


class Deadline:
    """A point in time that every step of one public call shares."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock = clock
        #: The moment itself, by the same clock.
        self.at = clock() + seconds

    def remaining(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self.at - self._clock())


@define(eq=False)
class Call(Generic[T]):
    """One call under way on a worker of one instance."""

    relay: Relay
    operation: str
    submitted: float
    future: Future[T] = field(init=False)
    permit: Permit | None = None
    #: When the service was asked: ``None`` while waiting for a worker or for the SDK to load.
    began: float | None = None
    #: Nobody waits for it any more: it is not tried again.
    abandoned: bool = False

    def attempt(self, error: KMSError, now: float) -> Attempt:
        """The record of its failure."""
        return Attempt(self.relay.name, error, now - (self.began or self.submitted))


class Caller:
    """Runs calls on instances: breaker, worker, retry and time-out of each."""

    def __init__(self, policy: CallPolicy, clock: Clock, sleep: Callable[[float], None]) -> None:
        self.policy = policy
        self.clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._dropped: list[Call[Any]] = []

    def start(
        self,
        relay: Relay,
        operation: str,
        work: Callable[[Relay], T],
        deadline: Deadline,
        attempts: int = 1,
    ) -> Call[T]:
        """Put a call on its way; raises ``BreakerOpen`` at once if the breaker refuses."""
        self._count_overdue()
        call: Call[T] = Call(relay, operation, self.clock())
        call.permit = self._acquire(call)

        def run() -> T:
            if attempts == 1:
                return self._once(call, work)
            return self._retrying(call, work, deadline, attempts)

        try:
            call.future = relay.workers.submit(run)
        except BaseException:
            relay.breaker.release(call.permit)
            raise
        return call

    def expires(self, call: Call[T]) -> float | None:
        """When the attempt has had its time; ``None`` while it has not reached the service."""
        return None if call.began is None else call.began + self.policy.attempt_timeout

    def had_its_time(self, call: Call[T], deadline: Deadline) -> bool:
        """Whether this call is slow, rather than cut short by the deadline."""
        expires = self.expires(call)
        return bool(deadline.remaining()) or (expires is not None and expires <= self.clock())

    def abandon(self, call: Call[T], *, counts: bool) -> KMSError:
        """Stop waiting for a call; whatever it still brings is wiped and ignored.

        ``counts``: it had its full time, so this is evidence against the instance.
        """
        began, permit = call.began, call.permit
        waited = self.clock() - (call.submitted if began is None else began)
        call.abandoned = True
        call.future.cancel()
        call.future.add_done_callback(_discard)
        if permit is not None:
            if counts and began is not None:
                call.relay.breaker.fail(permit, timeout=True)
            else:
                call.relay.breaker.release(permit)
        return call.relay.annotated(
            DeadlineExceeded(f"no answer within {waited:.1f} s"), call.operation
        )

    def drop(self, call: Call[T]) -> None:
        """Let a call that is no longer needed run on, wipe what it brings, and keep its verdict.

        A service that never answers must count as such even when a faster one always wins.
        """
        call.abandoned = True
        call.future.add_done_callback(_discard)
        if call.future.cancel():
            if call.permit is not None:
                call.relay.breaker.release(call.permit)
        else:
            with self._lock:
                self._dropped.append(call)

    def _count_overdue(self) -> None:
        """Dropped calls that have had their full time by now are time-outs."""
        if not self._dropped:
            return
        now = self.clock()
        with self._lock:
            running = [call for call in self._dropped if not call.future.done()]
            overdue = [call for call in running if (self.expires(call) or now) < now]
            self._dropped = [call for call in running if call not in overdue]
        for call in overdue:
            if call.permit is not None:
                call.relay.breaker.fail(call.permit, timeout=True)

    def _acquire(self, call: Call[T]) -> Permit:
        try:
            return call.relay.breaker.acquire()
        except BreakerOpen as exc:
            call.relay.annotated(exc, call.operation)
            raise

    def _once(self, call: Call[T], work: Callable[[Relay], T]) -> T:
        """One attempt, and its verdict for the breaker."""
        permit = call.permit
        if permit is None:
            permit = call.permit = self._acquire(call)
        breaker = call.relay.breaker
        try:
            call.relay.prepare()
            call.began = self.clock()
            result = work(call.relay)
        except KMSError as exc:
            if exc.counts:
                breaker.fail(permit, timeout=isinstance(exc, DeadlineExceeded))
            elif isinstance(exc, _NO_EVIDENCE):
                breaker.release(permit)
            else:
                breaker.succeed(permit)  # the service answered: it is the key or the caller
            raise
        except BaseException:
            breaker.release(permit)
            raise
        if result is None:  # "not mine": no service was asked
            breaker.release(permit)
        else:
            breaker.succeed(permit)
        return result

    def _retrying(
        self, call: Call[T], work: Callable[[Relay], T], deadline: Deadline, attempts: int
    ) -> T:
        import tenacity

        jitter = tenacity.wait_random_exponential(multiplier=0.1, max=2.0)

        def again() -> T:
            try:
                return self._once(call, work)
            finally:
                call.permit = call.began = None  # settled; the next attempt asks for its own

        def pause(state: tenacity.RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            asked = error.retry_after if isinstance(error, Throttled) else None
            return jitter(state) if asked is None else max(0.0, asked)

        def stop(state: tenacity.RetryCallState) -> bool:
            late = pause(state) >= deadline.remaining()
            return call.abandoned or late or state.attempt_number >= attempts

        return tenacity.Retrying(
            sleep=self._sleep,
            stop=stop,
            wait=pause,
            retry=tenacity.retry_if_exception(lambda exc: getattr(exc, "retryable", False)),
            reraise=True,
        )(again)


def result_of(future: Future[T]) -> T:
    """The future's result, or its error."""
    try:
        return future.result()
    except CancelledError:
        raise InvalidRequest("this Kms was closed while the call was waiting") from None


def _discard(future: Future[Any]) -> None:
    """Nobody waits for this result any more; it may hold a key."""
    try:
        result = future.result()
    except (CancelledError, Exception):  # noqa: BLE001  the caller has its own error already
        return
    for secret in (result, getattr(result, "plaintext", None), *_members(result)):
        wipe(secret)


def _members(result: object) -> tuple[object, ...]:
    return result if isinstance(result, tuple) else ()
