"""Token buckets, budgets and what is remembered for a while."""

from __future__ import annotations

import threading

from hypothesis import given
from hypothesis import strategies as st

from kms_core.limits import Budget, Limiter, Remembered, TokenBucket
from tests.support import Clock


@given(
    rate=st.floats(0.1, 100),
    burst=st.floats(1, 50),
    steps=st.lists(st.floats(0, 10), max_size=60),
)
def test_bucket_never_gives_more_than_burst_and_rate_allow(
    rate: float, burst: float, steps: list[float]
) -> None:
    """Whatever the times at which it is asked."""
    clock = Clock()
    bucket = TokenBucket(rate, burst, clock)
    began, given_out = clock.now, 0
    for step in steps:
        clock.advance(step)
        given_out += bucket.take()
        assert given_out <= burst + (clock.now - began) * rate + 1e-6


def test_bucket_tells_when_to_come_again() -> None:
    """To the moment."""
    clock = Clock()
    bucket = TokenBucket(0.5, 1, clock)
    assert bucket.take()
    assert not bucket.take()
    assert bucket.wait() == 2.0
    clock.advance(2.0)
    assert bucket.wait() == 0
    assert bucket.take()


def test_token_that_is_put_back_can_be_taken_again() -> None:
    """And never makes more of them than the burst."""
    bucket = TokenBucket(1, 1, Clock())
    assert bucket.take()
    bucket.put_back()
    bucket.put_back()
    assert [bucket.take(), bucket.take()] == [True, False]


def test_limiter_keeps_keys_apart_and_forgets_the_least_recent() -> None:
    """One that was forgotten starts full again."""
    limiter: Limiter[str] = Limiter(1, 1, Clock(), most=2)
    assert limiter.bucket("a").take()
    assert limiter.bucket("b").take()
    assert not limiter.bucket("a").take()
    assert limiter.bucket("c").take()  # forgets b
    assert not limiter.bucket("a").take()
    assert limiter.bucket("b").take()


def test_budget_is_a_share_of_ordinary_calls() -> None:
    """After the initial burst, one in ten."""
    budget = Budget(0.1, 2)
    assert [budget.spend() for _ in range(3)] == [True, True, False]
    spent = 0
    for _ in range(1000):
        budget.earn()
        spent += budget.spend()
    assert 99 <= spent <= 100


def test_remembered_key_is_forgotten_in_time() -> None:
    """Or when it is told to be, or when there are too many."""
    clock = Clock()
    remembered: Remembered[str] = Remembered(10, 2, clock)
    assert remembered.left("a") == 0
    remembered.note("a")
    remembered.note("b", 3)
    assert (remembered.left("a"), remembered.left("b")) == (10, 3)
    clock.advance(3)
    assert (remembered.left("a"), remembered.left("b")) == (7, 0)
    remembered.forget("a")
    assert remembered.left("a") == 0
    for key in "cde":
        remembered.note(key)
    assert [remembered.left(key) > 0 for key in "cde"] == [False, True, True]


def test_bucket_is_exact_between_threads() -> None:
    """No token is given out twice."""
    bucket = TokenBucket(1e-9, 1000, Clock())
    taken: list[int] = []

    def work() -> None:
        taken.append(sum(bucket.take() for _ in range(500)))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(taken) == 1000
