"""Unwrapping by the first good answers: candidates asked one by one, on error or on delay."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Final, TypeVar

from kms_core.aead import wipe
from kms_core.calls import POLL, Call, Caller, Deadline, result_of, wait_for_one
from kms_core.context import Context
from kms_core.errors import (
    AllInstancesFailed,
    BreakerOpen,
    DeadlineExceeded,
    IntegrityError,
    InvalidCiphertext,
    InvalidRequest,
    KMSError,
    NoMatchingRecipient,
    ProviderBug,
    ServiceError,
    Throttled,
    UnsupportedOperation,
)
from kms_core.limits import TokenBucket
from kms_core.relay import Relay
from kms_core.types import Attempt, Ciphertext

R = TypeVar("R")
#: What an instance may be asked to unwrap, and the context it was bound to.
Bound = tuple[Ciphertext, Context]
_Answer = tuple[Ciphertext, bytes | bytearray]

MAX_BAD_UNWRAPS: Final = 4  # proven-bad answers per open: bounds what a forged capsule can cost


class Race:
    """Candidates started one by one, on error or on delay, until enough answers are accepted."""

    def __init__(self, caller: Caller, deadline: Deadline, threshold: int) -> None:
        self._caller = caller
        self._deadline = deadline
        self._needed = threshold
        self._max_bad = max(MAX_BAD_UNWRAPS, threshold)
        self._waiting: list[tuple[Relay, Bound]] = []
        self._running: dict[Future[_Answer | None], Call[_Answer | None]] = {}
        self._leaves: dict[Future[_Answer | None], TokenBucket] = {}
        self._failures: list[Attempt] = []
        self._put_off: list[tuple[Relay, Bound]] = []  # throttled, and others were there
        self._refused: list[tuple[Relay, Bound]] = []  # by their breakers
        self._used: set[str] = set()  # key URIs of the answers that were accepted
        self._bad = 0
        self._hedge_at = 0.0
        self._hedges = False  # whether the last wait ended because it was time to
        self._insists = False  # whether this is the last resort: breakers are asked for a probe

    def run(
        self,
        candidates: list[tuple[Relay, Bound]],
        accept: Callable[[Ciphertext, bytes | bytearray], R | None],
    ) -> R | None:
        """What ``accept`` made of enough answers, or ``None``; then ``verdict`` says why."""
        self._waiting = candidates
        self._caller.hedges.earn()
        self._fill()
        while self._running or self._start_throttled() or self._start_last_resort():
            over = self._wait()
            if not over and self._hedges:
                self._hedge()
            for call in over:
                del self._running[call.future]
                won = self._judge(call, accept)
                if won is not None:
                    return won
                self._fill()
        return None

    def _hedge(self) -> None:
        """Nobody has answered for a while: ask one more, if that can be afforded.

        It costs nothing while all that were started still wait for a worker.
        """
        free = all(call.began is None for call in self._running.values())
        if not ((free or self._caller.hedges.spend()) and self._start_next()):
            self._hedge_at = math.inf

    def _judge(
        self,
        call: Call[_Answer | None],
        accept: Callable[[Ciphertext, bytes | bytearray], R | None],
    ) -> R | None:
        """What a call that is over brings; one that brings nothing makes room for the next."""
        leave = self._leaves.pop(call.future)
        bad = True
        try:
            answer = self._answer(call)
            won = None if answer is None else _accepted(*answer, accept)
            bad = False
            if answer is not None:
                self._count(answer[0])
                return won
        except InvalidCiphertext as exc:
            self._bad += 1
            self._record(call, exc)
        except (ServiceError, InvalidRequest, UnsupportedOperation) as exc:
            # what one instance cannot do with its wrap, another may with its own
            bad = _may_be_the_wrap(exc)
            self._record(call, exc)
            self._skip(call.relay, exc)
        finally:
            if not bad:
                leave.put_back()
        self._start_next()
        return None

    def _count(self, ciphertext: Ciphertext) -> None:
        """One wrap serves once, however many instances can unwrap it."""
        if ciphertext.key_uri not in self._used:
            self._used.add(ciphertext.key_uri)
            self._needed -= 1
        self._waiting = [item for item in self._waiting if item[1][0].key_uri not in self._used]

    def stop(self) -> None:
        """Drop the losers; what they still bring is wiped."""
        for call in self._running.values():
            self._caller.drop(call)
            self._leaves.pop(call.future).put_back()
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
            if self._start(relay, bound, alone=not (self._waiting or self._running)):
                return True
        return False

    def _start(self, relay: Relay, bound: Bound, *, alone: bool) -> bool:
        """Start a candidate; ``alone``: there is nobody else to turn to."""
        leave: TokenBucket | None = None
        try:
            leave = self._caller.unwraps.take(relay, bound[1])
            call = self._caller.start(
                relay,
                "decrypt",
                _unwrapping(bound),
                self._deadline,
                self._caller.policy.attempts if alone and not self._insists else 1,
                key=bound[0].key_uri,
                early=self._insists,
                insist=alone,
            )
        except ServiceError as exc:
            if leave is not None:
                leave.put_back()
            if isinstance(exc, Throttled) and leave is not None and not alone:
                self._put_off.append((relay, bound))
                return False
            if isinstance(exc, BreakerOpen):
                if self._insists:
                    return False  # it is on record already
                mine = [item for item in self._waiting if item[0] is relay]
                self._refused += [(relay, bound), *mine]  # any of them may be its own
            self._failures.append(Attempt(relay.name, exc, 0.0))
            self._skip(relay, exc)
            return False
        self._running[call.future] = call
        self._leaves[call.future] = leave
        self._hedge_at = self._caller.clock() + self._caller.policy.hedge_after
        return True

    def _start_throttled(self) -> bool:
        """Nobody else is left: ask one that wanted to be left alone, and wait if it must be."""
        while self._put_off and self._deadline.remaining():
            relay, bound = self._put_off.pop(0)
            if self._start(relay, bound, alone=True):
                return True
        return False

    def _start_last_resort(self) -> bool:
        """Where breakers stand in the way, ask all that they refused, now and then.

        Not where a wrap may be at fault: whoever makes bad ones would use this up for everybody.
        """
        if (
            self._insists
            or not self._refused
            or any(_may_be_the_wrap(attempt.error) for attempt in self._failures)
            or not self._caller.last_resort.take()
        ):
            return False
        self._insists = True
        self._waiting, self._refused = self._refused, []
        self._fill()
        return bool(self._running)

    def _wait(self) -> list[Call[_Answer | None]]:
        """Until an answer, a time-out, or the moment to hedge; the calls that are over."""
        now = self._caller.clock()
        ends = [self._deadline.at]
        ends += [end for call in self._running.values() if (end := self._caller.expires(call))]
        if self._waiting:
            ends.append(self._hedge_at)
        timeout = min(ends) - now
        look = timeout > POLL and any(call.began is None for call in self._running.values())
        wait_for_one(self._running, POLL if look else max(0.0, timeout))
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
            return result_of(call.future)
        raise self._caller.abandon(call, counts=self._caller.had_its_time(call, self._deadline))

    def _record(self, call: Call[_Answer | None], error: KMSError) -> None:
        if error.instance is None:
            call.relay.annotated(error, call.operation)
        self._failures.append(call.attempt(error, self._caller.clock()))

    def _skip(self, relay: Relay, error: KMSError) -> None:
        """Do not ask an instance again that is down, throttled or refused by its breaker."""
        if _may_pass(error):
            self._waiting = [item for item in self._waiting if item[0] is not relay]

    def verdict(self, key_uris: Iterable[str]) -> KMSError:
        """Why there were too few good answers."""
        if self._bad and not any(_may_pass(attempt.error) for attempt in self._failures):
            return IntegrityError()
        verb = "is" if self._needed == 1 else "are"
        partial = self._used or self._needed > 1
        more = f" (at least {self._needed} more {verb} needed)" if partial else ""
        if self._failures:
            return AllInstancesFailed(f"no recipient could be unwrapped{more}", self._failures)
        if not self._deadline.remaining():
            return DeadlineExceeded("the deadline passed before any instance could be asked")
        return NoMatchingRecipient(sorted(set(key_uris)), more_needed=more)


def _may_pass(error: KMSError) -> bool:
    """Whether it is the instance's state, and no matter of one wrap, that failed the call."""
    return error.counts or isinstance(error, Throttled | BreakerOpen)


def _may_be_the_wrap(error: KMSError) -> bool:
    """Whether whoever made the wrap may have caused it, say by naming a key that does not exist."""
    return isinstance(error, ProviderBug) or not _may_pass(error)


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
