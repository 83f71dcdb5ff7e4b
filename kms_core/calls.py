"""One call to one instance: breaker, worker, retries and time-out.

Every call to a service runs on a worker of its instance, behind that instance's breaker, so that
the caller can walk away when time is up.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Collection
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from contextlib import suppress
from typing import Any, Final, Generic, TypeVar

from attrs import Attribute, define, field, frozen, validators

from kms_core.aead import wipe
from kms_core.breaker import Permit
from kms_core.context import RESERVED_PREFIX, Context
from kms_core.errors import (
    AccessDenied,
    BreakerOpen,
    ConfigError,
    DeadlineExceeded,
    InvalidRequest,
    KeyDisabled,
    KeyNotFound,
    KMSError,
    PolicyDenied,
    ProviderBug,
    Throttled,
    Unavailable,
    UnsupportedOperation,
)
from kms_core.limits import Budget, Limiter, TokenBucket
from kms_core.relay import Relay
from kms_core.types import Attempt, Duration

T = TypeVar("T")
Clock = Callable[[], float]

MAX_EXTRA_CALLS: Final = 10.0  # retries or hedges in a burst, beyond their share of the calls
LAST_RESORTS_PER_SECOND: Final = 1.0
CANARIES_PER_SECOND: Final = 1.0  # per instance, beyond a burst
BURST_SECONDS: Final = 5.0
MAX_THROTTLE: Final = 60.0  # seconds; nobody is kept from asking for longer
MAX_REFUSALS: Final = 1000  # remembered per instance
_SMOOTHING: Final = 0.2
_THROTTLED: Final = ("", "")
#: What is not asked again for a while; the nearest of these stands for the error itself.
_REFUSALS: Final = (AccessDenied, KeyNotFound, KeyDisabled)
POLL: Final = 0.05  # how soon a call that is still loading its SDK is looked at again
#: Outcomes that say nothing about the service: it was not asked, it asked for patience, or it is
#: not known who is at fault.
_NO_EVIDENCE: Final = (
    Throttled,
    BreakerOpen,
    PolicyDenied,
    InvalidRequest,
    UnsupportedOperation,
    ConfigError,
    ProviderBug,
)


def _positive(_: object, attribute: Attribute[Any], value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{attribute.name} must be a positive time in seconds, not {value}")


def _at_least_one(_: object, attribute: Attribute[int], value: int) -> None:
    if value < 1:
        raise ValueError(f"{attribute.name} must be at least 1, not {value}")


def _not_negative(_: object, attribute: Attribute[Any], value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{attribute.name} must be a time in seconds or 0, not {value}")


def _fraction(_: object, attribute: Attribute[float], value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{attribute.name} must be between 0 and 1, not {value}")


@frozen
class CallPolicy:
    """Times and numbers for calls to services; durations in seconds.

    ``deadline`` bounds one public call across retries and fallback; ``attempt_timeout`` one call
    to one service; ``attempts`` how often one instance is tried for one write; ``hedge_after`` when
    an unanswered open also asks the next recipient; ``health_timeout`` a whole health report.
    ``max_concurrency`` bounds the calls under way on one instance, hanging ones included.
    ``retry_budget`` and ``hedge_budget`` bound retries and hedges to a share of all calls, so that
    an outage is not amplified; ``cooldown`` is how long an instance that refused for want of
    permission or because of its key's state is not asked the same again.  ``bad_unwraps``: how many
    refused or wrong unwraps a second one instance does for one partition, beyond a burst of five
    seconds' worth; ``unwraps`` bounds all of them likewise (``None``: no bound).  A partition is
    what the entries of ``envelope.key_context`` say.
    """

    deadline: Duration = field(default=Duration(10.0), validator=_positive)
    attempt_timeout: Duration = field(default=Duration(3.0), validator=_positive)
    attempts: int = field(default=2, validator=_at_least_one)
    hedge_after: Duration = field(default=Duration(1.0), validator=_positive)
    max_concurrency: int = field(default=32, validator=_at_least_one)
    health_timeout: Duration = field(default=Duration(2.0), validator=_positive)
    retry_budget: float = field(default=0.1, validator=_fraction)
    hedge_budget: float = field(default=0.05, validator=_fraction)
    cooldown: Duration = field(default=Duration(1.0), validator=_not_negative)
    bad_unwraps: float = field(default=10.0, validator=_positive)
    unwraps: float | None = field(default=None, validator=validators.optional(_positive))


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
    key: str = ""
    future: Future[T] = field(init=False)
    permit: Permit | None = None
    #: When the service was asked: ``None`` while waiting for a worker or for the SDK to load.
    began: float | None = None
    #: Nobody waits for it any more: it is not tried again.
    abandoned: bool = False

    def attempt(self, error: KMSError, now: float) -> Attempt:
        """The record of its failure."""
        return Attempt(self.relay.name, error, now - (self.began or self.submitted))


class Standing:
    """What calls have shown of one instance, besides what its breaker knows."""

    def __init__(self, policy: CallPolicy, clock: Clock) -> None:
        self.retries = Budget(policy.retry_budget, MAX_EXTRA_CALLS)
        #: Trials that tell a service's fault from that of what it was given.
        self.canaries = TokenBucket(CANARIES_PER_SECOND, CANARIES_PER_SECOND * BURST_SECONDS, clock)
        #: Smoothed seconds of a good unwrap; 0 before the first.
        self.latency = 0.0
        self._clock = clock
        self._lock = threading.Lock()
        self._proven_at: float | None = None
        self._refusals: dict[tuple[str, str], tuple[KMSError, float]] = {}
        self._stuck = 0

    @property
    def stuck(self) -> int:
        """Calls that nobody waits for any more and that still hold a worker."""
        return self._stuck

    @property
    def proven(self) -> float | None:
        """Seconds since it last unwrapped something; ``None`` if it has not yet."""
        return None if self._proven_at is None else self._clock() - self._proven_at

    def took(self, seconds: float) -> None:
        """A good unwrap took so long."""
        self._proven_at = self._clock()
        self.latency += (seconds - self.latency) * (_SMOOTHING if self.latency else 1.0)

    def hangs(self, future: Future[Any]) -> None:
        """Whoever waited for ``future`` has gone; it counts as stuck until it is done."""
        with self._lock:
            self._stuck += 1
        future.add_done_callback(self._came_back)

    def refused(self, what: tuple[str, str], error: KMSError, seconds: float) -> None:
        """Do not ask the same again for so long."""
        with self._lock:
            while len(self._refusals) >= MAX_REFUSALS:
                self._refusals.pop(next(iter(self._refusals)))
            self._refusals[what] = (error, self._clock() + seconds)

    def accepted(self, what: tuple[str, str]) -> None:
        """It works again."""
        if self._refusals:
            with self._lock:
                self._refusals.pop(what, None)

    def refusal(self, what: tuple[str, str]) -> KMSError | None:
        """The error to raise instead of asking, if there is reason to."""
        error, until = self._refusals.get(what, (None, 0.0))
        left = until - self._clock()
        if error is None or left <= 0:
            return None
        message = f"{error.args[0]} (not asked again for {left:.1f} s)"
        if isinstance(error, Throttled):
            return Throttled(message, retry_after=left)
        return next(kind for kind in _REFUSALS if isinstance(error, kind))(message)

    def _came_back(self, _: Future[Any]) -> None:
        with self._lock:
            self._stuck -= 1


class UnwrapLimits:
    """How often instances may be driven to unwrap for one partition, and above all in vain."""

    def __init__(self, policy: CallPolicy, clock: Clock) -> None:
        self._bad = _limiter(policy.bad_unwraps, clock)
        self._all = None if policy.unwraps is None else _limiter(policy.unwraps, clock)

    def take(self, relay: Relay, context: Context) -> TokenBucket:
        """Leave to unwrap once; put it back unless the answer turns out bad.

        Raises ``Throttled`` when there is none left.
        """
        partition = tuple(
            pair for pair in context.items() if not pair[0].startswith(RESERVED_PREFIX)
        )
        whose = (relay.name, partition)
        bad = self._bad.bucket(whose)
        buckets = (bad,) if self._all is None else (self._all.bucket(whose), bad)
        for bucket in buckets:
            if not bucket.take():
                refusal = Throttled(
                    "too many unwraps for this partition of the context, or too many bad ones; "
                    "see [calls] bad_unwraps and unwraps",
                    retry_after=bucket.wait(),
                )
                raise relay.annotated(refusal, "decrypt")
        return bad


def _limiter(rate: float, clock: Clock) -> Limiter[tuple[str, tuple[tuple[str, str], ...]]]:
    return Limiter(rate, max(1.0, rate * BURST_SECONDS), clock)


class Caller:
    """Runs calls on instances: breaker, worker, retry and time-out of each."""

    def __init__(self, policy: CallPolicy, clock: Clock, sleep: Callable[[float], None]) -> None:
        self.policy = policy
        self.clock = clock
        self.hedges = Budget(policy.hedge_budget, MAX_EXTRA_CALLS)
        self.unwraps = UnwrapLimits(policy, clock)
        #: What one may try although every breaker is open.
        self.last_resort = TokenBucket(LAST_RESORTS_PER_SECOND, 1, clock)
        self._sleep = sleep
        self._lock = threading.Lock()
        self._dropped: list[Call[Any]] = []
        self._standing: dict[str, Standing] = {}

    def standing(self, relay: Relay) -> Standing:
        """What is known of this instance."""
        known = self._standing.get(relay.name)
        if known is None:
            known = self._standing.setdefault(relay.name, Standing(self.policy, self.clock))
        return known

    def start(
        self,
        relay: Relay,
        operation: str,
        work: Callable[[Relay], T],
        deadline: Deadline,
        attempts: int = 1,
        *,
        key: str = "",
        early: bool = False,
        insist: bool = True,
    ) -> Call[T]:
        """Put a call on its way; raises at once if it should not be made.

        That is when the breaker refuses (``early`` asks it for a probe ahead of time), when the
        instance has just refused the same operation on this ``key``, is throttled (unless one is to
        ``insist``, there being nobody else), or has all its workers hanging.
        """
        self._count_overdue()
        call: Call[T] = Call(relay, operation, self.clock(), key=key)
        self._check_standing(call, insist=insist)
        call.permit = self._acquire(call, early=early)

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
        if not call.future.cancel():
            self.standing(call.relay).hangs(call.future)
        call.future.add_done_callback(discard)
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
        call.future.add_done_callback(discard)
        if call.future.cancel():
            if call.permit is not None:
                call.relay.breaker.release(call.permit)
        else:
            self.standing(call.relay).hangs(call.future)
            with self._lock:
                self._dropped.append(call)

    def leave(self, call: Call[Any]) -> None:
        """Let a call run on that nobody waits for and that is wanted; it keeps its verdict."""
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

    def _check_standing(self, call: Call[T], *, insist: bool) -> None:
        relay, standing = call.relay, self.standing(call.relay)
        refusal = standing.refusal((call.operation, call.key))
        if refusal is None and not insist:
            refusal = standing.refusal(_THROTTLED)
        if refusal is None and standing.stuck >= self.policy.max_concurrency:
            refusal = Unavailable(
                f"all {standing.stuck} calls that may be under way have not come back; "
                "the process has to be restarted if they never do"
            )
        if refusal is not None:
            raise relay.annotated(refusal, call.operation)

    def _learn(self, call: Call[Any], error: KMSError) -> None:
        """What ``error`` means for the next calls of the same kind."""
        standing = self.standing(call.relay)
        if isinstance(error, Throttled):
            asked = self.policy.cooldown if error.retry_after is None else error.retry_after
            standing.refused(_THROTTLED, error, min(asked, MAX_THROTTLE))
        elif isinstance(error, _REFUSALS) and self.policy.cooldown:
            standing.refused((call.operation, call.key), error, self.policy.cooldown)

    def _acquire(self, call: Call[T], *, early: bool = False) -> Permit:
        try:
            return call.relay.breaker.acquire(early=early)
        except BreakerOpen as exc:
            call.relay.annotated(exc, call.operation)
            raise

    def _once(self, call: Call[T], work: Callable[[Relay], T]) -> T:
        """One attempt, and its verdict for the breaker."""
        breaker, permit = call.relay.breaker, call.permit
        if permit is None or not breaker.honours(permit):  # it may have waited for a worker
            permit = call.permit = self._acquire(call)
        try:
            call.relay.prepare()
            call.began = self.clock()
            result = work(call.relay)
        except KMSError as exc:
            self._learn(call, exc)
            if self._is_evidence(call, exc):
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
            seconds = self.clock() - call.began
            breaker.succeed(permit, seconds)
            standing = self.standing(call.relay)
            standing.accepted((call.operation, call.key))
            if call.operation == "decrypt":
                standing.took(seconds)
        return result

    def _is_evidence(self, call: Call[Any], error: KMSError) -> bool:
        """Whether ``error`` speaks against the service.

        What a plugin could not classify while unwrapping may be due to the wrap, and anybody can
        send one.  Then a canary of our own decides; where that is too much, nothing is concluded.
        """
        if call.operation != "decrypt" or not isinstance(error, ProviderBug):
            return error.counts
        return self.standing(call.relay).canaries.take() and not _sings(call.relay)

    def _retrying(
        self, call: Call[T], work: Callable[[Relay], T], deadline: Deadline, attempts: int
    ) -> T:
        """One attempt, and further ones if it fails in a way that permits them."""
        self.standing(call.relay).retries.earn()

        def attempt() -> T:
            try:
                return self._once(call, work)
            finally:
                call.permit = call.began = None  # settled; the next attempt asks for its own

        try:
            return attempt()
        except KMSError as exc:
            if not exc.retryable:
                raise
            failed = [exc]
        return self._retry(call, attempt, failed, deadline, attempts)

    def _retry(
        self,
        call: Call[T],
        attempt: Callable[[], T],
        failed: list[KMSError],
        deadline: Deadline,
        attempts: int,
    ) -> T:
        """Further attempts within time and budget; ``failed`` is how the first did, and emptied.

        Apart from that one because most calls succeed, and loading and building what retries costs
        more than all else that is done for them here.
        """
        import tenacity

        budget = self.standing(call.relay).retries
        jitter = tenacity.wait_random_exponential(multiplier=0.1, max=2.0)

        def again() -> T:
            if failed:
                raise failed.pop()  # the attempt that was made already counts
            return attempt()

        def pause(state: tenacity.RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            asked = error.retry_after if isinstance(error, Throttled) else None
            return jitter(state) if asked is None else max(0.0, asked)

        def stop(state: tenacity.RetryCallState) -> bool:
            late = pause(state) >= deadline.remaining()
            over = call.abandoned or late or state.attempt_number >= attempts
            return over or not budget.spend()

        return tenacity.Retrying(
            sleep=self._sleep,
            stop=stop,
            wait=pause,
            retry=tenacity.retry_if_exception(lambda exc: getattr(exc, "retryable", False)),
            reraise=True,
        )(again)


def _sings(relay: Relay) -> bool:
    """Whether the instance does with our own canary what it failed to do with a caller's wrap."""
    try:
        return relay.canary().ok
    except KMSError as exc:
        return not exc.counts


def wait_for_one(futures: Collection[Future[Any]], seconds: float) -> None:
    """Until one of them is done, or so many ``seconds`` have passed."""
    if len(futures) > 1:
        wait(futures, seconds, FIRST_COMPLETED)
        return
    for future in futures:
        with suppress(CancelledError, TimeoutError):
            future.exception(seconds)


def result_of(future: Future[T]) -> T:
    """The future's result, or its error."""
    try:
        return future.result()
    except CancelledError:
        raise InvalidRequest("this Kms was closed while the call was waiting") from None


def discard(future: Future[Any]) -> None:
    """Nobody waits for this result any more; it may hold a key."""
    try:
        result = future.result()
    except (CancelledError, Exception):  # noqa: BLE001  the caller has its own error already
        return
    for secret in (result, getattr(result, "plaintext", None), *_members(result)):
        wipe(secret)


def _members(result: object) -> tuple[object, ...]:
    return result if isinstance(result, tuple) else ()
