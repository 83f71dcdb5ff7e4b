"""The breaker against a model that keeps the whole history and recomputes everything from it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import takewhile
from math import floor, inf
from typing import Literal

import pytest
from attrs import define, field, frozen
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from kms_core.breaker import Breaker, BreakerPolicy, Permit
from kms_core.errors import BreakerOpen
from kms_core.types import BreakerState, Duration

SLOTS_PER_WINDOW = 20

# Eighths of a second and whole windows are exact in binary, so both sides see the same edges.
seconds = st.integers(1, 64).map(lambda eighths: Duration(eighths / 8))
policies = st.builds(
    BreakerPolicy,
    failure_threshold=st.integers(1, 4),
    window=st.integers(1, 10).map(lambda whole: Duration(float(whole))),
    recovery_timeout=seconds,
    max_recovery_timeout=seconds,
    success_threshold=st.integers(1, 3),
    minimum_failure_ratio=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    timeouts_in_a_row=st.integers(1, 4),
)
outcomes = st.sampled_from(["ok", "fail", "timeout", "release"])


@frozen
class Seen:
    """One outcome that counted."""

    time: float
    outcome: str

    @property
    def failed(self) -> bool:
        """Time-outs are failures."""
        return self.outcome in ("fail", "timeout")


def must_open(history: list[Seen], now: float, policy: BreakerPolicy) -> bool:
    """The rule for opening, read off the history of a closed period."""
    evidence = [seen for seen in history if seen.outcome != "release"]
    since_success = list(takewhile(lambda seen: seen.failed, reversed(evidence)))
    if [seen.outcome for seen in since_success].count("timeout") >= policy.timeouts_in_a_row:
        return True
    if failures_within(evidence, now, policy) < policy.failure_threshold:
        return False
    if len(since_success) >= policy.failure_threshold:
        return True

    def slot(time: float) -> int:
        return floor(time * SLOTS_PER_WINDOW / policy.window)

    recent = [seen.failed for seen in evidence if slot(now) - slot(seen.time) <= SLOTS_PER_WINDOW]
    return sum(recent) / len(recent) >= policy.minimum_failure_ratio


def failures_within(history: list[Seen], now: float, policy: BreakerPolicy) -> int:
    """How many failures are younger than the window."""
    return len([seen for seen in history if seen.failed and seen.time > now - policy.window])


@define
class Model:
    """One list per state entered; everything else is worked out when asked."""

    policy: BreakerPolicy
    #: (state, time of entering it, what was seen in it), oldest first
    periods: list[tuple[BreakerState, float, list[Seen]]] = field(
        factory=lambda: [("closed", 0.0, [])]
    )
    #: time of admission and permit number of the probe under way
    probe: tuple[float, int] | None = None
    #: when the regular probe of the last open period was to be
    due: float = 0.0
    #: by number of the period: open again because of a probe ahead of its time, until then
    untimely: dict[int, float] = field(factory=dict)
    forced: BreakerState | None = None

    @property
    def state(self) -> BreakerState:
        """The state entered last."""
        return self.periods[-1][0]

    @property
    def history(self) -> list[Seen]:
        """What was seen since."""
        return self.periods[-1][2]

    @property
    def shown(self) -> BreakerState:
        """What everybody sees."""
        return self.forced or self.state

    def enter(self, state: BreakerState, now: float) -> None:
        """Begin a period."""
        self.periods.append((state, now, []))
        self.probe = None

    def open_time(self) -> float:
        """The first open time, doubled for each opening since the breaker was last closed."""
        timely = [
            state
            for number, (state, _, _) in enumerate(self.periods)
            if number not in self.untimely
        ]
        since_closed = list(takewhile(lambda state: state != "closed", reversed(timely)))
        grown = self.policy.recovery_timeout * 2.0 ** (since_closed.count("open") - 1)
        longest = max(self.policy.recovery_timeout, self.policy.max_recovery_timeout)
        return min(grown, longest)

    def ready_at(self) -> float:
        """When a call is admitted next."""
        state, since, _ = self.periods[-1]
        if self.forced == "open":
            return inf
        if len(self.periods) - 1 in self.untimely:
            return self.untimely[len(self.periods) - 1]
        if state == "open":
            return since + self.open_time()
        if self.probe is not None:
            return self.probe[0] + self.policy.recovery_timeout
        return 0.0

    def admit(self, now: float, number: int, *, early: bool = False) -> bool:
        """Whether call ``number`` may be made now; a change of state follows."""
        ahead = early and self.probe is None and self.forced is None
        if now < self.ready_at() and not ahead:
            return False
        if self.state == "open":
            self.due = self.ready_at()
            self.enter("half-open", now)
        if self.state == "half-open":
            self.probe = (now, number)
        return True

    def hears(self, given: Given) -> bool:
        """Whether a report of this call would count."""
        if given.settled or given.period != len(self.periods) - 1 or self.forced:
            return False
        if self.state == "half-open":
            return self.probe is not None and self.probe[1] == given.number
        return True

    def settle(self, now: float, outcome: str) -> None:
        """Take in an outcome that counts."""
        self.probe = None
        self.history.append(Seen(now, outcome))
        if self.state == "closed":
            if outcome in ("fail", "timeout") and must_open(self.history, now, self.policy):
                self.enter("open", now)
        elif outcome in ("fail", "timeout"):
            self.enter("open", now)
            if now < self.due:
                self.untimely[len(self.periods) - 1] = self.due
        elif [seen.outcome for seen in self.history].count("ok") >= self.policy.success_threshold:
            self.enter("closed", now)


@define
class Given:
    """A permit, and what the model remembers of it."""

    permit: Permit
    number: int
    period: int
    settled: bool = False


class BreakerMachine(RuleBasedStateMachine):
    """Calls begin, overlap and end in any order while time passes in steps of an eighth second."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.given: list[Given] = []
        self.announced: list[BreakerState] = []
        self.expected: list[BreakerState] = []

    @initialize(policy=policies)
    def start(self, policy: BreakerPolicy) -> None:
        """Any policy."""
        self.policy = policy
        self.model = Model(policy)
        self.breaker = Breaker(policy, lambda: self.now, self.announced.append)

    @rule(eighths=st.integers(1, 40))
    def wait(self, eighths: int) -> None:
        """Let time pass."""
        self.now += eighths / 8

    @precondition(lambda self: self.model.forced != "open")
    @rule()
    def wait_until_ready(self) -> None:
        """Let just enough time pass for the next call."""
        self.now = max(self.now, self.model.ready_at())

    @precondition(lambda self: self.model.history)
    @rule()
    def wait_until_the_window_has_passed(self) -> None:
        """Let just enough time pass for the last outcome to become too old."""
        self.now = max(self.now, self.model.history[-1].time + self.policy.window)

    @rule(early=st.sampled_from([False, False, True]))
    def begin(self, early: bool) -> None:  # noqa: FBT001  drawn by hypothesis
        """A call asks for leave, perhaps ahead of time, and stays under way."""
        number = len(self.given)
        wait = self.model.ready_at() - self.now
        if not self.model.admit(self.now, number, early=early):
            with pytest.raises(BreakerOpen) as refused:
                self.breaker.acquire(early=early)
            assert refused.value.retry_after == wait
            return
        period = len(self.model.periods) - 1
        self.given.append(Given(self.breaker.acquire(early=early), number, period))
        self._expect()

    @rule(state=st.sampled_from(["open", "closed", None, None]))
    def force(self, state: Literal["open", "closed"] | None) -> None:
        """The operator steps in, or lets go; either way it starts afresh."""
        self.model.forced = state
        self.model.enter("closed", self.now)
        self.breaker.force(state)
        self._expect()

    @precondition(lambda self: self.given)
    @rule(outcome=outcomes, back=st.integers(0, 6))
    def end(self, outcome: str, back: int) -> None:
        """Report a recent call, which may have reported before or be out of date."""
        self._end(self.given[-1 - back % len(self.given)], outcome)

    @rule(ends=st.lists(outcomes, min_size=1, max_size=8))
    def call(self, ends: list[str]) -> None:
        """Calls that begin and end at once, as far as they are admitted."""
        for outcome in ends:
            before = len(self.given)
            self.begin(early=False)
            if len(self.given) > before:
                self._end(self.given[-1], outcome)

    @precondition(lambda self: self.model.state != "closed" and not self.model.forced)
    @rule()
    def recover(self) -> None:
        """The service is back, and probes find out."""
        while self.model.state != "closed":
            self.wait_until_ready()
            self.call(["ok"])

    def _end(self, given: Given, outcome: str) -> None:
        if self.model.hears(given):
            self.model.settle(self.now, outcome)
        given.settled = True
        self._report(outcome)(given.permit)
        self._expect()

    def _expect(self) -> None:
        """Whoever watches is told of every change of what is shown, and of nothing else."""
        if self.model.shown != (self.expected or ["closed"])[-1]:
            self.expected.append(self.model.shown)

    def _report(self, outcome: str) -> Callable[[Permit], None]:
        return {
            "ok": self.breaker.succeed,
            "fail": self.breaker.fail,
            "timeout": lambda permit: self.breaker.fail(permit, timeout=True),
            "release": self.breaker.release,
        }[outcome]

    @invariant()
    def agree(self) -> None:
        """Everything that can be read of the breaker is what the model works out."""
        if not hasattr(self, "breaker"):
            return
        states = [state for state, _, _ in self.model.periods]
        in_window = failures_within(self.model.history, self.now, self.policy)
        closed = self.model.state == "closed"
        snapshot = self.breaker.snapshot()
        assert snapshot.state == self.breaker.state == self.model.shown
        assert snapshot.forced == self.model.forced
        assert snapshot.retry_after == max(0.0, self.model.ready_at() - self.now)
        assert snapshot.retry_after == self.breaker.retry_after
        assert snapshot.opened_count == states.count("open")
        assert snapshot.period == len(states) - 1
        assert snapshot.failures_in_window == (
            min(in_window, self.policy.failure_threshold) if closed else 0
        )
        assert self.announced == self.expected


TestBreakerAgainstModel = BreakerMachine.TestCase
TestBreakerAgainstModel.settings = settings(max_examples=300, stateful_step_count=60, deadline=None)
