"""When the breaker opens, probes and closes, and that threads cannot confuse it."""

from __future__ import annotations

import itertools
import random
import re
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from attrs import frozen

from kms_core.breaker import Breaker, BreakerPolicy, BreakerSnapshot, Permit
from kms_core.errors import BreakerOpen
from kms_core.types import BreakerState, Duration

THREADS = 8


class Clock:
    """Monotonic seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1200.0

    def __call__(self) -> float:
        """The time."""
        return self.now


class Instance:
    """A breaker, its clock and what it announced."""

    def __init__(self, **policy: Any) -> None:
        self.clock = Clock()
        self.announced: list[BreakerState] = []
        self.breaker = Breaker(BreakerPolicy(**policy), self.clock, self.announced.append)

    def after(self, seconds: float) -> Instance:
        """Let time pass."""
        self.clock.now += seconds
        return self

    def call(self, outcome: str) -> None:
        """Make a call that ends at once."""
        self.settle(self.breaker.acquire(), outcome)

    def settle(self, permit: Permit, outcome: str) -> None:
        """Report how a call ended, in the words of scripts."""
        match outcome:
            case "ok":
                self.breaker.succeed(permit)
            case "fail":
                self.breaker.fail(permit)
            case "timeout":
                self.breaker.fail(permit, timeout=True)
            case "skip":
                self.breaker.release(permit)
            case _:
                raise AssertionError(outcome)

    def play(self, script: str) -> Instance:
        """Words are outcomes of calls; numbers are seconds that pass; ``fail*4`` is four calls."""
        for step in script.split():
            word, _, times = step.partition("*")
            for _ in range(int(times or 1)):
                if word[0].isdigit():
                    self.after(float(word))
                else:
                    self.call(word)
        return self

    def refusal(self) -> BreakerOpen:
        """What a caller is told that may not call."""
        with pytest.raises(BreakerOpen) as caught:
            self.breaker.acquire()
        return caught.value


def opened(**policy: Any) -> Instance:
    """An instance whose breaker has just opened."""
    return Instance(**policy).play("fail*5")


@frozen
class Case:
    """A script and the state it leads to."""

    why: str
    script: str
    state: BreakerState


CASES = [
    Case("nothing happened", "", "closed"),
    Case("below the threshold", "fail*4", "closed"),
    Case("threshold reached", "fail*5", "open"),
    Case("just inside the window", "fail*4 59.5 fail", "open"),
    Case("the first failure leaves the window at its very end", "fail 1 fail*3 59 fail", "closed"),
    Case("the window slides", "fail 30 fail*3 30 fail 29.5 fail", "open"),
    Case(
        "successes between do not empty the window", "fail ok fail ok fail ok fail ok fail", "open"
    ),
    Case("ignored outcomes are no evidence", "skip*50 fail*4 skip*50", "closed"),
    Case("an ignored outcome does not end a run", "ok*90 fail*4 skip fail", "open"),
    Case(
        "noise at a high rate",
        "ok*20 fail ok*20 fail ok*20 fail ok*20 fail ok*20 fail ok",
        "closed",
    ),
    Case("a tenth of all outcomes", "ok*45 fail*4 ok fail", "closed"),
    Case("a tenth exactly", "ok*44 fail*4 ok fail", "open"),
    Case("a run of failures, whatever the ratio", "ok*1000 fail*5", "open"),
    Case("a success ends the run", "ok*1000 fail*4 ok fail*4", "closed"),
    Case("successes dilute for the window and a bit", "ok*99 62.5 fail*4 ok fail", "closed"),
    Case("older successes do not dilute", "ok*99 63 fail*4 ok fail", "open"),
    Case("nothing of a busy window is lost", "ok*99 " + "3 ok " * 20 + "fail*4 ok fail", "closed"),
    Case("two time-outs", "timeout*2", "closed"),
    Case("three time-outs far apart", "timeout 3000 timeout 3000 timeout", "open"),
    Case("a success between time-outs", "timeout*2 ok timeout*2", "closed"),
    Case(
        "a failure between time-outs is no sign of health", "timeout 90 fail 90 timeout*2", "open"
    ),
    Case("time-outs are failures too", "fail*3 timeout*2", "open"),
    Case("not recovered by time alone", "fail*5 6000", "open"),
    Case("one probe is not enough", "fail*5 60 ok", "half-open"),
    Case("two probes close", "fail*5 60 ok ok", "closed"),
    Case("probes may be far apart", "fail*5 60 ok 5000 ok", "closed"),
    Case("an ignored probe leaves the question open", "fail*5 60 skip*9", "half-open"),
    Case("an ignored probe takes nothing back", "fail*5 60 ok skip ok", "closed"),
    Case("a failed probe reopens", "fail*5 60 fail", "open"),
    Case("a failed probe after a good one reopens", "fail*5 60 ok fail", "open"),
    Case("good probes before a reopening are forgotten", "fail*5 60 ok fail 120 ok", "half-open"),
    Case("closing forgets old failures", "fail*5 60 ok ok fail*4", "closed"),
    Case("closing forgets old time-outs", "timeout*3 60 ok ok timeout*2", "closed"),
    Case("it opens again", "fail*5 60 ok ok fail*5", "open"),
]


@pytest.mark.parametrize("case", CASES, ids=[case.why.replace(" ", "-") for case in CASES])
def test_a_history_of_outcomes_leads_to_a_state(case: Case) -> None:
    """Each script ends in the state its case names."""
    assert Instance().play(case.script).breaker.state == case.state


def test_an_open_breaker_refuses_and_says_when_to_come_back() -> None:
    """The refusal carries the seconds that remain, and a message for people."""
    instance = opened().after(12.5)

    refusal = instance.refusal()

    assert refusal.retry_after == 47.5
    assert str(refusal) == "the breaker is open; retry in 47.5 s or use another instance"


def test_a_refused_call_changes_nothing() -> None:
    """Refusing neither prolongs the open period nor counts."""
    instance = opened().after(59)
    before = instance.breaker.snapshot()

    for _ in range(100):
        instance.refusal()

    assert instance.breaker.snapshot() == before


def test_the_first_call_after_the_recovery_time_is_a_probe_and_the_next_is_refused() -> None:
    """Half-open admits one call at a time and names the reason for refusing others."""
    instance = opened().after(60)

    instance.breaker.acquire()
    refusal = instance.after(10).refusal()

    assert instance.breaker.state == "half-open"
    assert refusal.retry_after == 50
    assert "its probe is under way" in str(refusal)


@pytest.mark.parametrize("outcome", ["ok", "skip"])
def test_a_reported_probe_makes_room_for_the_next_at_once(outcome: str) -> None:
    """No waiting between probes that did not fail."""
    instance = opened().after(60)
    instance.call(outcome)

    assert instance.breaker.retry_after == 0
    assert isinstance(instance.breaker.acquire(), Permit)


def test_a_probe_that_never_reports_is_given_up_after_the_recovery_time() -> None:
    """A lost probe holds the breaker half-open no longer than ``recovery_timeout``."""
    instance = opened(recovery_timeout=Duration(20)).after(20)
    lost = instance.breaker.acquire()

    instance.after(20).call("ok")
    instance.breaker.fail(lost)

    assert instance.breaker.snapshot().state == "half-open"
    assert instance.play("ok").breaker.snapshot().state == "closed"


def test_a_lost_probe_does_not_free_the_place_of_its_successor() -> None:
    """The late report of a probe that was given up admits nobody."""
    instance = opened().after(60)
    lost = instance.breaker.acquire()
    instance.after(60).breaker.acquire()

    instance.breaker.release(lost)

    assert instance.refusal().retry_after == 60


def test_each_failed_probe_doubles_the_open_time_up_to_the_maximum() -> None:
    """60, 120, 240, 480, 600, 600 seconds by default."""
    instance = opened()
    waits = [instance.breaker.retry_after]
    for _ in range(5):
        instance.after(waits[-1]).call("fail")
        waits.append(instance.breaker.retry_after)

    assert waits == [60, 120, 240, 480, 600, 600]


def test_closing_resets_the_open_time() -> None:
    """After a recovery the next outage starts with the first open time again."""
    instance = opened().play("60 fail 120 ok ok fail*5")

    assert instance.breaker.retry_after == 60


def test_a_maximum_below_the_recovery_time_does_not_shorten_it() -> None:
    """A long ``recovery_timeout`` stands, and then does not grow."""
    instance = opened(recovery_timeout=Duration(900))
    assert instance.breaker.retry_after == 900

    instance.after(900).call("fail")

    assert instance.breaker.retry_after == 900


@pytest.mark.parametrize("late", ["ok", "fail", "timeout", "skip"])
@pytest.mark.parametrize("meanwhile", ["fail*5", "fail*5 60 ok", "fail*5 60 ok ok fail*4"])
def test_an_outcome_of_an_earlier_period_is_ignored(late: str, meanwhile: str) -> None:
    """A call that was under way when the state changed is no evidence about the new state."""
    instance = Instance()
    permits = [instance.breaker.acquire() for _ in range(5)]
    before = instance.play(meanwhile).breaker.snapshot()

    for permit in permits:
        instance.settle(permit, late)

    assert instance.breaker.snapshot() == before


@pytest.mark.parametrize("first", ["ok", "fail", "skip"])
def test_a_permit_is_settled_once(first: str) -> None:
    """The first report stands; later ones of the same permit are ignored."""
    instance = Instance()
    permit = instance.breaker.acquire()
    instance.settle(permit, first)
    before = instance.breaker.snapshot()

    for later in ["fail", "timeout", "ok", "skip"] * 5:
        instance.settle(permit, later)

    assert instance.breaker.snapshot() == before


def test_a_probe_cannot_close_the_breaker_twice_over() -> None:
    """Two reports of one probe are one success."""
    instance = opened().after(60)
    probe = instance.breaker.acquire()

    instance.breaker.succeed(probe)
    instance.breaker.succeed(probe)

    assert instance.breaker.state == "half-open"


def test_reading_never_changes_the_state() -> None:
    """``open`` is reported until a probe was admitted; ``retry_after`` says that one would be."""
    instance = opened().after(10_000)

    readings = [
        (instance.breaker.state, instance.breaker.retry_after, instance.breaker.snapshot())
        for _ in range(2)
    ]

    assert readings[0] == readings[1]
    assert readings[0][:2] == ("open", 0)
    assert instance.announced == ["open"]


def test_a_snapshot_shows_state_and_counters() -> None:
    """Failures count up to the threshold and leave the window one by one."""
    instance = Instance().play("fail 30 fail*2 ok")
    assert instance.breaker.snapshot() == BreakerSnapshot(
        state="closed", failures_in_window=3, retry_after=0, opened_count=0, period=0
    )

    instance.after(30)
    assert instance.breaker.snapshot().failures_in_window == 2

    instance.play("fail*3 15")
    assert instance.breaker.snapshot() == BreakerSnapshot(
        state="open", failures_in_window=0, retry_after=45, opened_count=1, period=1
    )


def test_reopening_counts_as_opening() -> None:
    """``opened_count`` grows with every way into ``open``."""
    assert opened().play("60 fail 120 ok fail").breaker.snapshot().opened_count == 3


def test_every_change_of_state_is_announced_once() -> None:
    """``on_change`` hears each new state in order."""
    instance = opened().play("60 fail 120 ok ok ok fail")

    assert instance.announced == ["open", "half-open", "open", "half-open", "closed"]
    assert instance.breaker.snapshot().period == len(instance.announced)


def test_changes_are_announced_without_the_lock() -> None:
    """An observer may use the breaker it is told about."""
    clock = Clock()
    seen: list[BreakerSnapshot] = []
    breaker = Breaker(
        BreakerPolicy(failure_threshold=1), clock, lambda _: seen.append(breaker.snapshot())
    )

    breaker.fail(breaker.acquire())

    assert [snapshot.state for snapshot in seen] == ["open"]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("failure_threshold", 0, "failure_threshold must be at least 1, not 0"),
        ("success_threshold", -1, "success_threshold must be at least 1, not -1"),
        ("timeouts_in_a_row", 0, "timeouts_in_a_row must be at least 1, not 0"),
        ("window", 0.0, "window must be a positive time in seconds, not 0.0"),
        ("window", float("nan"), "window must be a positive time in seconds, not nan"),
        ("recovery_timeout", -1.0, "recovery_timeout must be a positive time in seconds, not -1.0"),
        (
            "max_recovery_timeout",
            float("inf"),
            "max_recovery_timeout must be a positive time in seconds, not inf",
        ),
        ("minimum_failure_ratio", 1.5, "minimum_failure_ratio must be between 0 and 1, not 1.5"),
        (
            "minimum_failure_ratio",
            float("nan"),
            "minimum_failure_ratio must be between 0 and 1, not nan",
        ),
    ],
)
def test_a_policy_names_the_value_it_rejects(field: str, value: float, message: str) -> None:
    """An impossible policy is a ``ValueError`` that says which field and what it takes."""
    options: dict[str, Any] = {field: value}
    with pytest.raises(ValueError, match=re.escape(message)):
        BreakerPolicy(**options)


@pytest.fixture
def _eager_switching() -> Iterator[None]:
    """Let threads interrupt each other as often as the interpreter can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("_eager_switching")
def test_of_many_threads_exactly_one_gets_the_probe() -> None:
    """However many callers wait for recovery, one call is made."""
    instance = opened()
    together = threading.Barrier(THREADS)

    def admitted(_: int) -> bool:
        together.wait(timeout=30)
        try:
            instance.breaker.acquire()
        except BreakerOpen:
            return False
        return True

    with ThreadPoolExecutor(THREADS) as pool:
        for _ in range(100):
            instance.after(60)
            assert sum(pool.map(admitted, range(THREADS))) == 1


@pytest.mark.usefixtures("_eager_switching")
def test_a_permit_settled_by_many_threads_counts_once() -> None:
    """Settling is atomic: a hedged call may be reported from several places."""
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in range(100):
            instance = Instance()
            permit = instance.breaker.acquire()
            list(pool.map(instance.breaker.fail, [permit] * THREADS))
            assert instance.breaker.snapshot().failures_in_window == 1


@pytest.mark.usefixtures("_eager_switching")
def test_threads_at_random_leave_counters_and_announcements_consistent() -> None:
    """Every opening and every change is counted and announced exactly once."""
    ticks = itertools.count()
    announced: list[BreakerState] = []
    breaker = Breaker(
        BreakerPolicy(recovery_timeout=Duration(5)), lambda: float(next(ticks)), announced.append
    )

    def hammer(seed: int) -> None:
        choose = random.Random(seed)  # noqa: S311  reproducible, not secret
        for _ in range(2000):
            try:
                permit = breaker.acquire()
            except BreakerOpen:
                continue
            if choose.random() < 0.5:
                breaker.succeed(permit)
            else:
                breaker.fail(permit, timeout=choose.random() < 0.3)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(hammer, range(THREADS)))

    snapshot = breaker.snapshot()
    entered = Counter(announced)
    assert snapshot.period == len(announced)
    assert snapshot.opened_count == entered["open"] > 10
    # Half-open is entered from open only, and closed from half-open only.
    assert entered["open"] - entered["half-open"] in (0, 1)
    assert entered["closed"] <= entered["half-open"]


# --- slow calls, early probes, the operator ------------------------------------------------------


def tripped(clock: Clock, **policy: Any) -> Breaker:
    """A breaker that two failures opened just now."""
    breaker = Breaker(BreakerPolicy(failure_threshold=2, **policy), clock)
    for _ in range(2):
        breaker.fail(breaker.acquire())
    assert breaker.state == "open"
    return breaker


def test_slow_success_counts_as_a_failure_where_configured() -> None:
    """A service that answers too late is as good as down."""
    clock = Clock()
    breaker = Breaker(BreakerPolicy(failure_threshold=2, slow_call=Duration(1.0)), clock)
    breaker.succeed(breaker.acquire(), 0.99)
    for _ in range(2):
        breaker.succeed(breaker.acquire(), 1.0)
    assert breaker.state == "open"


def test_success_is_a_success_however_slow_by_default() -> None:
    """Time-outs are for the caller."""
    breaker = Breaker(BreakerPolicy(failure_threshold=1), Clock())
    breaker.succeed(breaker.acquire(), 1e6)
    assert breaker.state == "closed"


def test_early_probe_closes_before_the_time_is_up() -> None:
    """Whoever asks on purpose finds out before a user pays for it."""
    breaker = tripped(Clock())
    for _ in range(2):
        breaker.succeed(breaker.acquire(early=True))
    assert breaker.state == "closed"


def test_failed_early_probe_puts_nothing_off() -> None:
    """The regular probe comes when it would have come, and the time-out is not doubled."""
    clock = Clock()
    breaker = tripped(clock)
    clock.now += 20
    breaker.fail(breaker.acquire(early=True))
    assert breaker.state == "open"
    assert breaker.retry_after == 40
    clock.now += 40
    breaker.fail(breaker.acquire())
    assert breaker.retry_after == 120


def test_one_early_probe_at_a_time() -> None:
    """A second one is refused while the first is under way."""
    breaker = tripped(Clock())
    breaker.acquire(early=True)
    with pytest.raises(BreakerOpen):
        breaker.acquire(early=True)


@pytest.mark.parametrize("forced", ["open", "closed"])
def test_forced_breaker_ignores_what_calls_bring(forced: Any) -> None:
    """The operator knows better; let go, it starts afresh."""
    clock = Clock()
    changes: list[str] = []
    breaker = Breaker(BreakerPolicy(failure_threshold=1), clock, changes.append)
    permit = breaker.acquire()
    breaker.force(forced)
    breaker.fail(permit)
    clock.now += 1e6
    if forced == "open":
        for early in (False, True):
            with pytest.raises(BreakerOpen, match="held open by the operator"):
                breaker.acquire(early=early)
    else:
        for _ in range(9):
            breaker.fail(breaker.acquire(), timeout=True)
    snapshot = breaker.snapshot()
    assert (snapshot.state, snapshot.forced) == (forced, forced)
    breaker.force(None)
    assert breaker.snapshot().forced is None
    breaker.fail(breaker.acquire())
    assert breaker.state == "open"
    assert changes == (["open", "closed", "open"] if forced == "open" else ["open"])
