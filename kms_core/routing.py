"""Who is asked, in which order, for how long: fallback, hedging, retries and deadlines.

Knows instances and calls, not envelopes.  Every call to a service runs on a worker of its instance,
behind that instance's breaker, so that the caller can walk away when time is up.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from typing import Any, Final, Generic, TypeVar

from attrs import Attribute, define, field, frozen

from kms_core.aead import wipe
from kms_core.breaker import Permit
from kms_core.context import Context
from kms_core.errors import (
    AllInstancesFailed,
    BreakerOpen,
    ConfigError,
    DeadlineExceeded,
    IntegrityError,
    InvalidCiphertext,
    InvalidRequest,
    KMSError,
    NoMatchingRecipient,
    PolicyDenied,
    ServiceError,
    Throttled,
    UnsupportedOperation,
)
from kms_core.relay import Relay
from kms_core.types import Attempt, Ciphertext, Duration
from kms_core.uri import provider_type

T = TypeVar("T")
R = TypeVar("R")
Clock = Callable[[], float]

MAX_BAD_UNWRAPS: Final = 4  # proven-bad answers per open: bounds what a forged capsule can cost
_POLL: Final = 0.05  # how soon a call that is still loading its SDK is looked at again
_RANK: Final = {"hsm": 2, "software": 1, "local": 0}
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


def _result(future: Future[T]) -> T:
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


_Answer = tuple[Ciphertext, bytes | bytearray]
#: What one instance is to wrap, and the context to bind it to.
Part = tuple[bytes | bytearray, Context]
#: What an instance may be asked to unwrap, and the context it was bound to.
Bound = tuple[Ciphertext, Context]


@frozen
class WrapResult:
    """The outcome of wrapping one DEK under several KEKs."""

    wraps: tuple[Ciphertext, ...]
    failures: tuple[Attempt, ...]


@frozen
class Quorum:
    """When a set of wraps is enough, and how long the rest may then still take (seconds)."""

    domains: int
    straggler_wait: float
    allow_weaker: bool = False
    required: frozenset[str] = frozenset()


class Router:
    """The instances of one client, in order of preference."""

    def __init__(
        self,
        relays: Mapping[str, Relay],
        policy: CallPolicy,
        *,
        clock: Clock = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.relays = relays
        self._caller = Caller(policy, clock, sleep)
        self._clock = clock
        self.policy = policy

    def deadline(self) -> Deadline:
        """The deadline of a public call that starts now."""
        return Deadline(self._clock, self.policy.deadline)

    # --- all at once: wrapping -------------------------------------------------------------------

    def wrap(self, parts: Mapping[str, Part], quorum: Quorum) -> WrapResult:
        """Let every named instance wrap its part, in parallel.

        Once the quorum is met the others have ``straggler_wait`` more and are then left out, on
        record.  Raises ``AllInstancesFailed`` if the quorum cannot be met.
        """
        names = list(parts)
        wraps, failures = self._gather_wraps(parts, self.deadline(), quorum)
        if not self._enough(wraps, names, quorum):
            shortfall = self._shortfall(wraps, names, quorum)
            if not failures:
                raise PolicyDenied(shortfall)
            raise AllInstancesFailed(shortfall, _in_order(names, failures))
        return _wrap_result(names, wraps, failures)

    def wrap_each(self, parts: Mapping[str, Part], deadline: Deadline) -> WrapResult:
        """Let as many of the named instances wrap their parts as will do it in time."""
        return _wrap_result(list(parts), *self._gather_wraps(parts, deadline, None))

    def _gather_wraps(
        self, parts: Mapping[str, Part], deadline: Deadline, quorum: Quorum | None
    ) -> tuple[dict[str, Ciphertext], dict[str, Attempt]]:
        names = list(parts)
        wraps: dict[str, Ciphertext] = {}
        failures: dict[str, Attempt] = {}
        enough_at: float | None = None
        pending = self._start_all(
            "encrypt", names, lambda relay: relay.encrypt(*parts[relay.name]), deadline, failures
        )
        while pending:
            for call in self._settle(pending, deadline, enough_at, quorum):
                pending.remove(call)
                self._collect(call, wraps, failures, deadline)
            if quorum and enough_at is None and self._enough(wraps, names, quorum):
                enough_at = self._clock()
        return wraps, failures

    def _start_all(
        self,
        operation: str,
        names: Iterable[str],
        work: Callable[[Relay], T],
        deadline: Deadline,
        failures: dict[str, Attempt],
    ) -> list[Call[T]]:
        calls = []
        for name in names:
            try:
                calls.append(
                    self._caller.start(
                        self.relays[name], operation, work, deadline, self.policy.attempts
                    )
                )
            except ServiceError as exc:
                failures[name] = Attempt(name, exc, 0.0)
        return calls

    def _settle(
        self,
        pending: list[Call[T]],
        deadline: Deadline,
        enough_at: float | None = None,
        quorum: Quorum | None = None,
    ) -> list[Call[T]]:
        """Wait until something happens; the calls that are done or out of time."""
        ends = [self._end(call, deadline, enough_at, quorum) for call in pending]
        timeout = max(0.0, min(ends) - self._clock())
        if any(call.began is None for call in pending):
            timeout = min(timeout, _POLL)
        wait([call.future for call in pending], timeout, FIRST_COMPLETED)
        now = self._clock()
        return [
            call
            for call in pending
            if call.future.done() or self._end(call, deadline, enough_at, quorum) <= now
        ]

    def _end(
        self,
        call: Call[T],
        deadline: Deadline,
        enough_at: float | None,
        quorum: Quorum | None,
    ) -> float:
        """The moment at which to stop waiting for this call."""
        ends = [deadline.at]
        expires = self._caller.expires(call)
        if expires is not None:
            ends.append(expires)
        began = call.submitted if call.relay.prepared else call.began
        if enough_at is not None and quorum is not None and began is not None:
            ends.append(max(enough_at, began) + quorum.straggler_wait)
        return min(ends)

    def _collect(
        self,
        call: Call[T],
        results: dict[str, T],
        failures: dict[str, Attempt],
        deadline: Deadline,
    ) -> None:
        name = call.relay.name
        try:
            results[name] = self._result(call, deadline)
        except ServiceError as exc:
            failures[name] = call.attempt(exc, self._clock())

    def _result(self, call: Call[T], deadline: Deadline) -> T:
        """The call's result, or its error; a call that is not done has run out of time."""
        if call.future.done():
            return _result(call.future)
        raise self._caller.abandon(call, counts=self._caller.had_its_time(call, deadline))

    def _enough(
        self, wraps: Mapping[str, Ciphertext], names: Sequence[str], quorum: Quorum
    ) -> bool:
        uris = {name: wrap.key_uri for name, wrap in wraps.items()}
        return self.would_do(uris, names, quorum)

    def would_do(self, key_uris: Mapping[str, str], names: Sequence[str], quorum: Quorum) -> bool:
        """Whether wraps by these instances, under these key URIs, would be enough of ``names``."""
        if not key_uris or not quorum.required <= key_uris.keys():
            return False
        return len(self._domains(key_uris, names, quorum)) >= quorum.domains

    def _domains(
        self, key_uris: Mapping[str, str], names: Sequence[str], quorum: Quorum
    ) -> set[str]:
        """The distinct domains that count: a local copy only where nothing better is configured."""
        local_counts = quorum.allow_weaker or all(self._is_local(name) for name in names)
        return {
            self.relays[name].domain(key_uri)
            for name, key_uri in key_uris.items()
            if local_counts or not self._is_local(name)
        }

    def _is_local(self, name: str) -> bool:
        return self.relays[name].info.protection == "local"

    def _shortfall(
        self, wraps: Mapping[str, Ciphertext], names: Sequence[str], quorum: Quorum
    ) -> str:
        lacking = sorted(quorum.required - wraps.keys())
        if lacking:
            return f"nothing was written: required recipient {', '.join(lacking)} is missing"
        uris = {name: wrap.key_uri for name, wrap in wraps.items()}
        have = len(self._domains(uris, names, quorum))
        message = f"nothing was written: {have} of {quorum.domains} domains could wrap the data key"
        if wraps and not quorum.allow_weaker and all(map(self._is_local, wraps)):
            message += " (a local copy alone needs envelope.allow_weaker = true)"
        return message

    # --- the first good one: unwrapping ----------------------------------------------------------

    def unwrap(
        self,
        wraps: Sequence[Bound],
        accept: Callable[[Ciphertext, bytes | bytearray], R | None],
        *,
        threshold: int = 1,
        only: str | None = None,
        deadline: Deadline | None = None,
    ) -> R:
        """Ask the instances that hold any of these keys until ``accept`` has enough.

        ``accept`` returns ``None`` while it needs more.  ``threshold`` instances are asked at once,
        the next after ``hedge_after`` or when one fails.  Answers that prove a bad ciphertext are
        bounded by ``max(4, threshold)``.  ``only`` asks one instance.  Raises
        ``NoMatchingRecipient``, ``IntegrityError`` (every answer was bad) or
        ``AllInstancesFailed``.
        """
        race = _Race(self._caller, deadline or self.deadline(), threshold)
        try:
            won = race.run(self._candidates(wraps, only), accept)
        finally:
            race.stop()
        if won is None:
            raise race.verdict(ciphertext.key_uri for ciphertext, _ in wraps)
        return won

    def _candidates(self, wraps: Sequence[Bound], only: str | None) -> list[tuple[Relay, Bound]]:
        return [
            (relay, (ciphertext, context))
            for relay in self._by_health()
            for ciphertext, context in wraps
            if only in {None, relay.name}
            and relay.may_hold(ciphertext.key_uri, ciphertext.wrap_alg)
        ]

    def _by_health(self) -> list[Relay]:
        rank = {"closed": 0, "half-open": 1, "open": 2}
        return sorted(self.relays.values(), key=lambda relay: rank[relay.breaker.state])

    def holders(
        self, key_uris: Sequence[str], names: Sequence[str], deadline: Deadline
    ) -> dict[str, set[str]]:
        """Which of these key URIs each named instance holds, as far as it can be told now.

        An instance that cannot be asked (an alias it could not resolve) is left out.
        """

        def held(relay: Relay) -> set[str]:
            ours = [uri for uri in key_uris if provider_type(uri) == relay.info.provider]
            return {uri for uri in ours if relay.match(uri) is not None}

        answers = self._ask(names, held, deadline.remaining())
        return {name: held for name, (held, _) in answers.items() if isinstance(held, set)}

    # --- one after the other: direct use ---------------------------------------------------------

    def first(
        self,
        operation: str,
        names: Sequence[str],
        work: Callable[[Relay], T],
        *,
        allow_weaker: bool = False,
    ) -> T:
        """The first success in order of preference; raises ``AllInstancesFailed`` otherwise.

        An instance whose protection level is below the preferred one's is not asked unless
        ``allow_weaker``.
        """
        deadline = self.deadline()
        failures: dict[str, Attempt] = {}
        for name in self._no_weaker(names, allow_weaker=allow_weaker):
            if not deadline.remaining():
                break
            results: dict[str, T] = {}
            pending = self._start_all(operation, [name], work, deadline, failures)
            while pending:
                for call in self._settle(pending, deadline):
                    pending.remove(call)
                    self._collect(call, results, failures, deadline)
            if results:
                return results[name]
        raise AllInstancesFailed(f"no instance could {operation}", _in_order(names, failures))

    def _no_weaker(self, names: Sequence[str], *, allow_weaker: bool) -> Iterator[str]:
        floor = _RANK[self.relays[names[0]].info.protection]
        for name in names:
            if allow_weaker or _RANK[self.relays[name].info.protection] >= floor:
                yield name

    # --- everybody: health -----------------------------------------------------------------------

    def ask_all(
        self, work: Callable[[Relay], T], seconds: float
    ) -> dict[str, tuple[T | KMSError, float]]:
        """Every instance's answer or error with its duration, within ``seconds`` in all.

        Goes past the breakers: it is asked by people who want to know, and costs no user a call.
        """
        return self._ask(list(self.relays), work, seconds)

    def _prepare(self, relays: Iterable[Relay]) -> None:
        """Load the SDKs that are not loaded yet, outside anybody's time.  Failures show later."""
        cold = [relay.workers.submit(relay.prepare) for relay in relays if not relay.prepared]
        wait(cold, self.policy.deadline)

    def _ask(
        self, names: Sequence[str], work: Callable[[Relay], T], seconds: float
    ) -> dict[str, tuple[T | KMSError, float]]:
        relays = [self.relays[name] for name in names]
        self._prepare(relays)
        deadline = Deadline(self._clock, seconds)
        started = self._clock()
        pending: dict[str, Future[T | KMSError]] = {
            relay.name: relay.workers.submit(_bind(relay, work)) for relay in relays
        }
        answers: dict[str, tuple[T | KMSError, float]] = {}
        while pending:
            wait(pending.values(), deadline.remaining(), FIRST_COMPLETED)
            over = not deadline.remaining()
            for name, future in list(pending.items()):
                if future.done() or over:
                    answers[name] = (_answer(future, seconds), self._clock() - started)
                    del pending[name]
        return {name: answers[name] for name in names}


def _wrap_result(
    names: Sequence[str], wraps: Mapping[str, Ciphertext], failures: Mapping[str, Attempt]
) -> WrapResult:
    ordered = tuple(wraps[name] for name in names if name in wraps)
    return WrapResult(ordered, _in_order(names, failures))


def _bind(relay: Relay, work: Callable[[Relay], T]) -> Callable[[], T | KMSError]:
    def run() -> T | KMSError:
        try:
            relay.prepare()
            return work(relay)
        except KMSError as exc:
            return exc

    return run


def _answer(future: Future[T | KMSError], seconds: float) -> T | KMSError:
    if not future.done():
        future.cancel()
        return DeadlineExceeded(f"no answer within {seconds:g} s")
    return future.result()


def _in_order(names: Sequence[str], failures: Mapping[str, Attempt]) -> tuple[Attempt, ...]:
    return tuple(failures[name] for name in names if name in failures)


class _Race:
    """Candidates started one by one, on error or on delay, until enough answers are accepted."""

    def __init__(self, caller: Caller, deadline: Deadline, threshold: int) -> None:
        self._caller = caller
        self._deadline = deadline
        self._needed = threshold
        self._max_bad = max(MAX_BAD_UNWRAPS, threshold)
        self._waiting: list[tuple[Relay, Bound]] = []
        self._running: dict[Future[_Answer | None], Call[_Answer | None]] = {}
        self._failures: list[Attempt] = []
        self._bad = 0
        self._hedge_at = 0.0
        self._hedges = False  # whether the last wait ended because it was time to

    def run(
        self,
        candidates: list[tuple[Relay, Bound]],
        accept: Callable[[Ciphertext, bytes | bytearray], R | None],
    ) -> R | None:
        """What ``accept`` made of enough answers, or ``None``; then ``verdict`` says why."""
        self._waiting = candidates
        self._fill()
        while self._running:
            over = self._wait()
            if not over and self._hedges:
                self._start_next()  # nobody has answered for a while
            for call in over:
                del self._running[call.future]
                won = self._judge(call, accept)
                if won is not None:
                    return won
                self._fill()
        return None

    def _judge(
        self,
        call: Call[_Answer | None],
        accept: Callable[[Ciphertext, bytes | bytearray], R | None],
    ) -> R | None:
        """What a call that is over brings; one that brings nothing makes room for the next."""
        try:
            answer = self._answer(call)
            if answer is not None:
                won = _accepted(*answer, accept)
                self._needed -= 1
                return won
        except InvalidCiphertext as exc:
            self._bad += 1
            self._record(call, exc)
        except (ServiceError, InvalidRequest, UnsupportedOperation) as exc:
            # what one instance cannot do with its wrap, another may with its own
            self._record(call, exc)
            self._skip(call.relay, exc)
        self._start_next()
        return None

    def stop(self) -> None:
        """Drop the losers; what they still bring is wiped."""
        for call in self._running.values():
            self._caller.drop(call)
        self._running.clear()

    def _fill(self) -> None:
        """Have as many calls under way as answers are still needed."""
        while len(self._running) < self._needed and self._start_next():
            pass

    def _start_next(self) -> bool:
        """Start the next candidate if one may be started now; whether one was."""
        while self._waiting and self._bad + len(self._running) < self._max_bad:
            if not self._deadline.remaining():
                return False
            relay, bound = self._waiting.pop(0)
            attempts = 1 if self._waiting or self._running else self._caller.policy.attempts
            try:
                call = self._caller.start(
                    relay, "decrypt", _unwrapping(bound), self._deadline, attempts
                )
            except ServiceError as exc:
                self._failures.append(Attempt(relay.name, exc, 0.0))
                self._skip(relay, exc)
                continue
            self._running[call.future] = call
            self._hedge_at = self._caller.clock() + self._caller.policy.hedge_after
            return True
        return False

    def _wait(self) -> list[Call[_Answer | None]]:
        """Until an answer, a time-out, or the moment to hedge; the calls that are over."""
        now = self._caller.clock()
        ends = [self._deadline.at]
        ends += [end for call in self._running.values() if (end := self._caller.expires(call))]
        if self._waiting:
            ends.append(self._hedge_at)
        timeout = min(ends) - now
        look = timeout > _POLL and any(call.began is None for call in self._running.values())
        wait(self._running, _POLL if look else max(0.0, timeout), FIRST_COMPLETED)
        self._hedges = bool(self._waiting) and not look and self._hedge_at <= min(ends)
        now, remaining = self._caller.clock(), self._deadline.remaining()
        return [
            call
            for call in self._running.values()
            if call.future.done()
            or not remaining
            or ((end := self._caller.expires(call)) is not None and end <= now)
        ]

    def _answer(self, call: Call[_Answer | None]) -> _Answer | None:
        if call.future.done():
            return _result(call.future)
        raise self._caller.abandon(call, counts=self._caller.had_its_time(call, self._deadline))

    def _record(self, call: Call[_Answer | None], error: KMSError) -> None:
        if error.instance is None:
            call.relay.annotated(error, call.operation)
        self._failures.append(call.attempt(error, self._caller.clock()))

    def _skip(self, relay: Relay, error: KMSError) -> None:
        """Do not ask an instance again that is down, throttled or refused by its breaker."""
        if error.counts or isinstance(error, Throttled | BreakerOpen):
            self._waiting = [item for item in self._waiting if item[0] is not relay]

    def verdict(self, key_uris: Iterable[str]) -> KMSError:
        """Why nobody won."""
        if not self._failures:
            if self._deadline.remaining():
                return NoMatchingRecipient(sorted(set(key_uris)))
            return DeadlineExceeded("the deadline passed before any instance could be asked")
        if self._bad and not any(map(_may_pass, self._failures)):
            return IntegrityError()
        more = "" if self._needed == 1 else f" (at least {self._needed} more are needed)"
        return AllInstancesFailed(f"no recipient could be unwrapped{more}", self._failures)


def _may_pass(attempt: Attempt) -> bool:
    """Whether the same instance may yet open what was not opened now."""
    return attempt.error.counts or isinstance(attempt.error, Throttled | BreakerOpen)


def _unwrapping(bound: Bound) -> Callable[[Relay], _Answer | None]:
    ciphertext, context = bound

    def unwrap(relay: Relay) -> _Answer | None:
        key_id = relay.match(ciphertext.key_uri)
        if key_id is None:
            return None
        return ciphertext, relay.decrypt(key_id, ciphertext, context)

    return unwrap


def _accepted(
    ciphertext: Ciphertext,
    plaintext: bytes | bytearray,
    accept: Callable[[Ciphertext, bytes | bytearray], R | None],
) -> R | None:
    try:
        return accept(ciphertext, plaintext)
    finally:
        wipe(plaintext)
