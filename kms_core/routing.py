"""Who is asked, in which order: fallback, quorum and health.

Knows instances and calls, not envelopes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any, Final, TypeVar

from attrs import frozen

from kms_core.calls import (
    POLL,
    Call,
    Caller,
    CallPolicy,
    Clock,
    Deadline,
    result_of,
    wait_for_one,
)
from kms_core.context import Context
from kms_core.errors import (
    AllInstancesFailed,
    BreakerOpen,
    DeadlineExceeded,
    KeyNotFound,
    KMSError,
    PolicyDenied,
    ServiceError,
)
from kms_core.race import Bound, Race
from kms_core.relay import Relay
from kms_core.types import Attempt, Ciphertext
from kms_core.uri import provider_type

T = TypeVar("T")
R = TypeVar("R")
#: What one instance is to wrap, and the context to bind it to.
Part = tuple[bytes | bytearray, Context]

_RANK: Final = {"hsm": 2, "software": 1, "local": 0}


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
        self.calls = Caller(policy, clock, sleep)
        self._clock = clock
        self.policy = policy
        self._checks: dict[tuple[str, object], Future[Any]] = {}
        self._local = {name for name, relay in relays.items() if relay.info.protection == "local"}

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
        wraps = {
            name: wrap
            for name in names
            if self.relays[name].offline.instead() and (wrap := self._wrapped_here(name, parts))
        }
        failures: dict[str, Attempt] = {}
        enough_at: float | None = None
        pending = self._start_all(
            "encrypt",
            [name for name in names if name not in wraps],
            lambda relay: relay.wrap(*parts[relay.name]),
            deadline,
            failures,
        )
        refused = [
            name for name, attempt in failures.items() if isinstance(attempt.error, BreakerOpen)
        ]
        while pending or (refused and quorum and not self._enough(wraps, names, quorum)):
            if not pending:
                pending = self._start_last_resorts(refused, parts, deadline, failures)
                refused = []
                continue
            for call in self._settle(pending, deadline, enough_at, quorum):
                pending.remove(call)
                self._collect(call, wraps, failures, deadline)
            if quorum and enough_at is None and self._enough(wraps, names, quorum):
                enough_at = self._clock()
        self._fall_back_to_public_keys(parts, wraps, failures)
        return wraps, failures

    def _start_last_resorts(
        self,
        names: Sequence[str],
        parts: Mapping[str, Part],
        deadline: Deadline,
        failures: dict[str, Attempt],
    ) -> list[Call[Ciphertext]]:
        """Nobody else is left: now and then ask in spite of open breakers."""
        if not self.calls.last_resort.take():
            return []
        for name in names:
            del failures[name]
        return self._start_all(
            "encrypt",
            names,
            lambda relay: relay.wrap(*parts[relay.name]),
            deadline,
            failures,
            early=True,
        )

    def _fall_back_to_public_keys(
        self,
        parts: Mapping[str, Part],
        wraps: dict[str, Ciphertext],
        failures: dict[str, Attempt],
    ) -> None:
        """Wrap here for whoever is out of reach and permits it; prepare for the next outage."""
        for name, attempt in list(failures.items()):
            after = self.relays[name].offline.after(attempt.error)
            wrap = self._wrapped_here(name, parts) if after else None
            if wrap is not None:
                wraps[name] = wrap
                del failures[name]
        self.learn_public_keys(wraps)

    def _wrapped_here(self, name: str, parts: Mapping[str, Part]) -> Ciphertext | None:
        """A wrap to the public key; ``None`` if that cannot be made, which observers were told."""
        try:
            return self.relays[name].wrap_offline(*parts[name])
        except KMSError:
            return None

    def learn_public_keys(self, names: Iterable[str]) -> list[Future[bool]]:
        """Have the keys asked for that are needed for wrapping here and not fresh."""
        asked = []
        for relay in (self.relays[name] for name in names):
            if relay.offline.begin_learning():
                try:
                    call = self.calls.start(
                        relay, "public_key", lambda relay: relay.learn_public_key(), self.deadline()
                    )
                except KMSError:  # not now: its breaker is open, or there is no thread
                    relay.offline.give_up_learning()
                else:
                    self.calls.leave(call)
                    asked.append(call.future)
        return asked

    def _start_all(
        self,
        operation: str,
        names: Iterable[str],
        work: Callable[[Relay], T],
        deadline: Deadline,
        failures: dict[str, Attempt],
        *,
        early: bool = False,
        key: str = "",
    ) -> list[Call[T]]:
        calls = []
        attempts = 1 if early else self.policy.attempts
        for name in names:
            relay = self.relays[name]
            try:
                calls.append(
                    self.calls.start(
                        relay, operation, work, deadline, attempts, early=early, key=key
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
            timeout = min(timeout, POLL)
        wait_for_one([call.future for call in pending], timeout)
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
        expires = self.calls.expires(call)
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
            return result_of(call.future)
        raise self.calls.abandon(call, counts=self.calls.had_its_time(call, deadline))

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
        local_counts = quorum.allow_weaker or self._local.issuperset(names)
        return {
            self.relays[name].domain(key_uri)
            for name, key_uri in key_uris.items()
            if local_counts or name not in self._local
        }

    def _shortfall(
        self, wraps: Mapping[str, Ciphertext], names: Sequence[str], quorum: Quorum
    ) -> str:
        lacking = sorted(quorum.required - wraps.keys())
        if lacking:
            return f"nothing was written: required recipient {', '.join(lacking)} is missing"
        uris = {name: wrap.key_uri for name, wrap in wraps.items()}
        have = len(self._domains(uris, names, quorum))
        message = f"nothing was written: {have} of {quorum.domains} domains could wrap the data key"
        if wraps and not quorum.allow_weaker and self._local.issuperset(wraps):
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
        race = Race(self.calls, deadline or self.deadline(), threshold)
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
        """As configured; those that would make an open hedge come later, those that are down last.

        Among the slow ones the faster comes first.
        """
        rank = {"closed": 0, "half-open": 1, "open": 2}

        def order(relay: Relay) -> tuple[int, float]:
            latency = self.calls.standing(relay).latency
            return rank[relay.breaker.state], latency if latency > self.policy.hedge_after else 0.0

        return sorted(self.relays.values(), key=order)

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
        work: Callable[[Relay], T | None],
        *,
        allow_weaker: bool = False,
        key: str = "",
    ) -> T:
        """The first success in order of preference; raises ``AllInstancesFailed`` otherwise.

        An instance whose protection level is below the preferred one's is not asked unless
        ``allow_weaker``.  ``key``: which one it is about, if not the configured one; ``work``
        returns ``None`` for a key that is not that instance's.
        """
        deadline = self.deadline()
        failures: dict[str, Attempt] = {}
        for name in self._no_weaker(names, allow_weaker=allow_weaker):
            if not deadline.remaining():
                break
            results: dict[str, T | None] = {}
            pending = self._start_all(operation, [name], work, deadline, failures, key=key)
            while pending:
                for call in self._settle(pending, deadline):
                    pending.remove(call)
                    self._collect(call, results, failures, deadline)
            result = results.get(name)
            if result is not None:
                return result
            if name in results:
                error = KeyNotFound(f"{key} is no key of this instance")
                failures[name] = Attempt(name, self.relays[name].annotated(error, operation), 0.0)
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

        SDKs that are not loaded yet may take as long again before that.
        Goes past the breakers: it is asked by people who want to know, and costs no user a call.
        An instance that has not answered the last time is not asked again but waited for: checks
        of one that hangs never take more than a thread.
        """
        return self._ask(list(self.relays), work, seconds, check=True)

    def prepare(self) -> None:
        """Load every SDK."""
        self._prepare(self.relays.values(), self.policy.deadline)

    def _prepare(self, relays: Iterable[Relay], within: float) -> None:
        """Load the SDKs that are not loaded yet, outside anybody's time.  Failures show later."""
        cold = [relay.workers.submit(relay.prepare) for relay in relays if not relay.prepared]
        wait(cold, within)

    def _check(self, relay: Relay, work: Callable[[Relay], T]) -> Future[T | KMSError]:
        """The check that is under way, or else a new one."""
        running = self._checks.get((relay.name, work))
        if running is None or running.done():
            running = self._checks[relay.name, work] = _submit(relay, work)
        return running

    def _ask(
        self,
        names: Sequence[str],
        work: Callable[[Relay], T],
        seconds: float,
        *,
        check: bool = False,
    ) -> dict[str, tuple[T | KMSError, float]]:
        relays = [self.relays[name] for name in names]
        self._prepare(relays, seconds)
        deadline = Deadline(self._clock, seconds)
        started = self._clock()
        submit = self._check if check else _submit
        pending: dict[str, Future[T | KMSError]] = {
            relay.name: submit(relay, work) for relay in relays
        }
        answers: dict[str, tuple[T | KMSError, float]] = {}
        while pending:
            wait(pending.values(), deadline.remaining(), FIRST_COMPLETED)
            over = not deadline.remaining()
            for name, future in list(pending.items()):
                if future.done() or over:
                    if not (check or future.done()):
                        future.cancel()
                    answers[name] = (_answer(future, seconds), self._clock() - started)
                    del pending[name]
        return {name: answers[name] for name in names}


def _submit(relay: Relay, work: Callable[[Relay], T]) -> Future[T | KMSError]:
    return relay.workers.submit(_bind(relay, work))


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
        return DeadlineExceeded(f"no answer within {seconds:g} s")
    return future.result()


def _in_order(names: Sequence[str], failures: Mapping[str, Attempt]) -> tuple[Attempt, ...]:
    return tuple(failures[name] for name in names if name in failures)
