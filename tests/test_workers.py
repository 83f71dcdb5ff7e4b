"""Workers run calls side by side, within bounds, and let go of what hangs."""

from __future__ import annotations

import concurrent.futures
import gc
import os
import random
import subprocess
import sys
import textwrap
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextvars import ContextVar
from functools import partial
from itertools import count

import pytest

from kms_core.errors import InvalidRequest, ServiceError
from kms_core.workers import Workers, WorkerStats, _Job

PATIENCE = 30.0  # seconds until a test gives up; nothing waits that long unless it is broken

Open = Callable[..., Workers]


@pytest.fixture
def unlock() -> Iterator[threading.Event]:
    """What calls of ``Hanging`` wait for; set at the end whatever happens."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def workers_of(unlock: threading.Event) -> Iterator[Open]:
    """Make workers that are closed, and whose threads are gone, when the test ends."""
    made: list[Workers] = []
    numbers = count()

    def make(limit: int = 4, *, idle_timeout: float = 30.0) -> Workers:
        name = f"test{os.getpid()}-{next(numbers)}"
        made.append(Workers(name, limit, idle_timeout=idle_timeout))
        return made[-1]

    yield make
    unlock.set()
    for workers in made:
        workers.close()
        for thread in threads_of(workers):
            thread.join(PATIENCE)
        assert not threads_of(workers)


def threads_of(workers: Workers) -> list[threading.Thread]:
    """The living threads of these workers."""
    return [
        thread
        for thread in threading.enumerate()
        if thread.name.startswith(f"kms-{workers._name}-")
    ]


class Hanging:
    """Calls that start, say so, and wait for an event."""

    def __init__(self, workers: Workers, unlock: threading.Event, calls: int) -> None:
        self._started = threading.Semaphore(0)
        self._unlock = unlock
        self.futures = [workers.submit(self._hang) for _ in range(calls)]

    def _hang(self) -> str:
        self._started.release()
        assert self._unlock.wait(PATIENCE)
        return "woken"

    def wait_until_started(self, calls: int) -> None:
        """Return once that many are running."""
        for _ in range(calls):
            assert self._started.acquire(timeout=PATIENCE)


def test_a_call_runs_in_a_named_daemon_thread_and_its_result_is_delivered(workers_of: Open) -> None:
    """The thread says in a stack dump which instance it works for."""
    workers = workers_of()

    thread = workers.submit(threading.current_thread).result(PATIENCE)

    assert thread is not threading.current_thread()
    assert thread.daemon
    assert thread.name == f"kms-{workers._name}-1"


@pytest.mark.parametrize("kind", [ValueError, ServiceError, KeyboardInterrupt, SystemExit])
def test_whatever_a_call_raises_goes_to_its_future(
    workers_of: Open, kind: type[BaseException]
) -> None:
    """Not even ``SystemExit`` ends the thread."""
    workers = workers_of(1)
    error = kind("no")

    def fail() -> None:
        raise error

    assert workers.submit(fail).exception(PATIENCE) is error
    assert workers.submit(lambda: "next").result(PATIENCE) == "next"
    assert [thread.name for thread in threads_of(workers)] == [f"kms-{workers._name}-1"]


def test_a_call_sees_a_copy_of_the_callers_context_variables(workers_of: Open) -> None:
    """Values at the time of ``submit`` are seen; what the call sets stays with the call."""
    variable: ContextVar[str] = ContextVar("variable", default="unset")
    workers = workers_of(1)

    def read_and_set() -> str:
        seen = variable.get()
        variable.set("set by the call")
        return seen

    token = variable.set("caller")
    first = workers.submit(read_and_set)
    variable.reset(token)
    second = workers.submit(read_and_set)

    assert (first.result(PATIENCE), second.result(PATIENCE)) == ("caller", "unset")
    assert variable.get() == "unset"


def test_no_more_than_the_limit_run_and_the_others_queue(
    workers_of: Open, unlock: threading.Event
) -> None:
    """A burst is worked off by ``limit`` threads; none of it is refused."""
    workers = workers_of(3)

    calls = Hanging(workers, unlock, 12)
    calls.wait_until_started(3)

    assert workers.stats == WorkerStats(busy=3, idle=0, queued=9, limit=3)
    unlock.set()
    assert [future.result(PATIENCE) for future in calls.futures] == ["woken"] * 12
    assert workers.stats == WorkerStats(busy=0, idle=3, queued=0, limit=3)


def test_queued_calls_run_in_order_of_arrival(workers_of: Open, unlock: threading.Event) -> None:
    """First come, first served."""
    workers = workers_of(1)
    Hanging(workers, unlock, 1).wait_until_started(1)
    order: list[int] = []
    futures = [workers.submit(partial(order.append, number)) for number in range(20)]

    unlock.set()
    concurrent.futures.wait(futures, PATIENCE)

    assert order == list(range(20))


def test_threads_start_on_demand_and_are_reused(workers_of: Open) -> None:
    """Calls one after another need one thread, however many there may be."""
    workers = workers_of(8)
    assert workers.stats == WorkerStats(busy=0, idle=0, queued=0, limit=8)

    used = {workers.submit(threading.current_thread).result(PATIENCE) for _ in range(50)}

    assert len(used) == 1
    assert workers.stats == WorkerStats(busy=0, idle=1, queued=0, limit=8)


def test_hung_calls_hold_up_nobody_while_threads_remain(
    workers_of: Open, unlock: threading.Event
) -> None:
    """With all but one thread hung, calls are still answered."""
    workers = workers_of(4)
    Hanging(workers, unlock, 3).wait_until_started(3)

    assert [workers.submit(lambda: "ok").result(PATIENCE) for _ in range(10)] == ["ok"] * 10


def test_a_cancelled_call_leaves_the_queue_and_never_runs(
    workers_of: Open, unlock: threading.Event
) -> None:
    """Callers that gave up on a hung service do not pile up behind it."""
    workers = workers_of(1)
    Hanging(workers, unlock, 1).wait_until_started(1)
    ran: list[int] = []
    futures = [workers.submit(lambda: ran.append(1)) for _ in range(100)]

    assert all(future.cancel() for future in futures)

    assert workers.stats.queued == 0
    unlock.set()
    assert workers.submit(lambda: "next").result(PATIENCE) == "next"
    assert ran == []


def test_a_call_cancelled_just_after_it_left_the_queue_does_not_run(workers_of: Open) -> None:
    """The last moment to cancel is when the call itself begins."""
    workers = workers_of(1)
    ran: list[int] = []
    job = _Job(partial(ran.append, 1))
    job.future.cancel()

    workers._run(job)

    assert concurrent.futures.wait([job.future], PATIENCE).done == {job.future}
    assert ran == []
    assert workers.stats.busy == 0


def test_waiting_for_a_call_that_somebody_else_cancels_ends(
    workers_of: Open, unlock: threading.Event
) -> None:
    """``concurrent.futures.wait`` sees a cancelled call as done at once."""
    workers = workers_of(1)
    Hanging(workers, unlock, 1).wait_until_started(1)
    future = workers.submit(lambda: None)
    canceller = threading.Thread(target=future.cancel)

    canceller.start()
    done, _ = concurrent.futures.wait([future], PATIENCE)
    canceller.join(PATIENCE)

    assert done == {future}


def test_a_call_that_has_started_cannot_be_cancelled(
    workers_of: Open, unlock: threading.Event
) -> None:
    """``cancel`` tells a caller that gave up whether the service had been asked."""
    workers = workers_of(1)
    calls = Hanging(workers, unlock, 2)
    calls.wait_until_started(1)

    assert [future.cancel() for future in calls.futures] == [False, True]


def test_an_idle_thread_ends_after_the_idle_timeout_and_a_new_one_is_started(
    workers_of: Open,
) -> None:
    """An instance that is not used costs no threads."""
    workers = workers_of(1, idle_timeout=0.01)
    first = workers.submit(threading.current_thread).result(PATIENCE)

    first.join(PATIENCE)

    assert not first.is_alive()
    assert workers.stats == WorkerStats(busy=0, idle=0, queued=0, limit=1)
    assert workers.submit(threading.current_thread).result(PATIENCE) is not first


def test_no_call_is_lost_to_a_thread_that_is_just_leaving(workers_of: Open) -> None:
    """Threads that give up waiting at once still take every call."""
    workers = workers_of(2, idle_timeout=0.0)

    assert [workers.submit(lambda: "ok").result(PATIENCE) for _ in range(500)] == ["ok"] * 500


def test_closing_ends_idle_threads_before_it_returns(workers_of: Open) -> None:
    """No thread is left behind, and closing again does nothing."""
    workers = workers_of(4)
    together = threading.Barrier(4)
    futures = [workers.submit(lambda: together.wait(PATIENCE)) for _ in range(4)]
    concurrent.futures.wait(futures, PATIENCE)
    assert len(threads_of(workers)) == 4

    workers.close()
    workers.close()

    assert threads_of(workers) == []
    assert workers.stats == WorkerStats(busy=0, idle=0, queued=0, limit=4)


def test_closing_cancels_queued_calls_and_leaves_running_ones_to_finish(
    workers_of: Open, unlock: threading.Event
) -> None:
    """Close does not wait for a hung call; if it ends after all, its thread ends too."""
    workers = workers_of(1)
    calls = Hanging(workers, unlock, 3)
    calls.wait_until_started(1)
    (thread,) = threads_of(workers)

    workers.close()

    running, *queued = calls.futures
    assert concurrent.futures.wait(queued, PATIENCE).done == set(queued)
    assert all(future.cancelled() for future in queued)
    assert running.running()
    unlock.set()
    assert running.result(PATIENCE) == "woken"
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_once_closing_has_begun_no_queued_call_starts(
    workers_of: Open, unlock: threading.Event
) -> None:
    """Not even if a thread becomes free while queued calls are being cancelled."""
    workers = workers_of(1)
    Hanging(workers, unlock, 1).wait_until_started(1)
    (thread,) = threads_of(workers)
    ran: list[int] = []
    first, second = (workers.submit(partial(ran.append, number)) for number in range(2))

    def free_the_thread(_: Future[None]) -> None:
        unlock.set()
        thread.join(PATIENCE)

    first.add_done_callback(free_the_thread)
    workers.close()

    assert ran == []
    assert second.cancelled()


def test_a_call_may_close_its_own_workers(workers_of: Open) -> None:
    """Closing from within does not wait for itself."""
    workers = workers_of(1)

    workers.submit(workers.close).result(PATIENCE)

    with pytest.raises(InvalidRequest, match=r"are closed; open a new client"):
        workers.submit(lambda: None)


def test_a_done_callback_may_close_the_workers_it_runs_in(
    workers_of: Open, unlock: threading.Event
) -> None:
    """A callback runs in an idle thread, which closing must not join from within."""
    workers = workers_of(1)
    calls = Hanging(workers, unlock, 1)
    calls.wait_until_started(1)
    closed = threading.Event()

    def close(_: Future[str]) -> None:
        workers.close()
        closed.set()

    calls.futures[0].add_done_callback(close)

    unlock.set()

    assert closed.wait(PATIENCE)


def test_closed_workers_refuse_calls(workers_of: Open) -> None:
    """Using a closed client is the caller's mistake, not evidence against the service."""
    workers = workers_of()
    workers.close()

    with pytest.raises(InvalidRequest, match=f"the workers of {workers._name} are closed"):
        workers.submit(lambda: None)
    assert threads_of(workers) == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_done_callback_that_ends_its_thread_does_not_use_up_the_limit(
    workers_of: Open, unlock: threading.Event
) -> None:
    """The thread it took with it is replaced."""
    workers = workers_of(1)
    calls = Hanging(workers, unlock, 1)
    calls.wait_until_started(1)
    (thread,) = threads_of(workers)
    calls.futures[0].add_done_callback(lambda _: sys.exit())

    unlock.set()
    thread.join(PATIENCE)

    assert workers.submit(lambda: "ok").result(PATIENCE) == "ok"


def refuse_to_start(_: threading.Thread) -> None:
    """Stands for a system that is out of threads."""
    raise RuntimeError("can't start new thread")


def test_without_any_thread_a_call_is_refused_and_not_queued(
    workers_of: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Running out of threads is an error at once, and says nothing against the service."""
    workers = workers_of()
    monkeypatch.setattr(threading.Thread, "start", refuse_to_start)

    with pytest.raises(ServiceError, match=r"no thread can be started") as caught:
        workers.submit(lambda: None)

    assert not caught.value.counts
    assert workers.stats == WorkerStats(busy=0, idle=0, queued=0, limit=4)
    monkeypatch.undo()
    assert workers.submit(lambda: "ok").result(PATIENCE) == "ok"


def test_when_no_further_thread_starts_the_others_take_the_call(
    workers_of: Open, unlock: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer threads than wanted are slower, not wrong."""
    workers = workers_of(4)
    Hanging(workers, unlock, 1).wait_until_started(1)
    monkeypatch.setattr(threading.Thread, "start", refuse_to_start)

    future = workers.submit(lambda: "ok")
    unlock.set()

    assert future.result(PATIENCE) == "ok"


def test_a_limit_below_one_is_refused() -> None:
    """Nothing could ever run."""
    with pytest.raises(ValueError, match="limit must be at least 1, not 0"):
        Workers("none", 0)


class Plaintext:
    """Something that must not be reachable for longer than needed."""


def identity(secret: Plaintext) -> Plaintext:
    """Return what it is given, as a service that unwraps does."""
    return secret


def test_an_idle_thread_keeps_neither_call_nor_result(workers_of: Open) -> None:
    """A waiting thread's frames hold no secret of the last call."""
    workers = workers_of(1, idle_timeout=10 * PATIENCE)
    secret = Plaintext()
    gone = threading.Event()
    weakref.finalize(secret, gone.set)

    future = workers.submit(partial(identity, secret))
    concurrent.futures.wait([future], PATIENCE)
    del secret, future

    assert gone.wait(PATIENCE)


def test_a_failed_call_leaves_no_reference_cycle(workers_of: Open) -> None:
    """Error, future and call go when the caller lets go, without the garbage collector."""
    workers = workers_of(1)
    secret = Plaintext()
    seen = weakref.ref(secret)

    def fail(kept: Plaintext) -> None:
        raise ValueError(type(kept).__name__)

    gc.disable()
    try:
        future = workers.submit(partial(fail, secret))
        concurrent.futures.wait([future], PATIENCE)
        workers.submit(lambda: None).result(PATIENCE)
        del secret, future
        assert seen() is None
    finally:
        gc.enable()


def test_many_callers_cancelling_at_random_lose_and_repeat_nothing(workers_of: Open) -> None:
    """Every call runs exactly once or is cancelled, and never more than ``limit`` at a time."""
    workers = workers_of(3)
    inside = threading.Semaphore(3)
    overfull = threading.Event()

    def call(ran: list[int]) -> None:
        if not inside.acquire(blocking=False):
            overfull.set()
            return
        ran.append(1)
        inside.release()

    def submit_and_cancel(seed: int, results: list[tuple[Future[None], list[int]]]) -> None:
        choose = random.Random(seed)  # noqa: S311  reproducible, not secret
        for _ in range(300):
            ran: list[int] = []
            results.append((workers.submit(partial(call, ran)), ran))
            if choose.random() < 0.4:
                results[choose.randrange(len(results))][0].cancel()

    collected: list[list[tuple[Future[None], list[int]]]] = [[] for _ in range(8)]
    callers = [
        threading.Thread(target=submit_and_cancel, args=pair) for pair in enumerate(collected)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(PATIENCE)

    calls = [pair for results in collected for pair in results]
    assert len(calls) == 2400
    done, pending = concurrent.futures.wait([future for future, _ in calls], PATIENCE)
    assert not pending
    assert len(done) == 2400
    assert not overfull.is_set()
    assert all(len(ran) == (0 if future.cancelled() else 1) for future, ran in calls)
    assert workers.stats.queued == workers.stats.busy == 0


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    """Run a program of its own; it has ``PATIENCE`` seconds to exit."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def test_a_hung_call_does_not_hold_the_process_at_exit() -> None:
    """The interpreter exits, cleanly and silently, with calls hung and others queued."""
    finished = run_python("""
        import threading
        from kms_core.workers import Workers

        started = threading.Event()
        workers = Workers("hung", 1)
        workers.submit(lambda: (started.set(), threading.Event().wait()))
        workers.submit(lambda: None)
        started.wait()
        print("exiting")
    """)

    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "exiting\n", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_starts_clean() -> None:
    """With every thread hung and the lock held by one of them, the child still gets answers."""
    finished = run_python("""
        import gc, os, threading, warnings, weakref
        from kms_core.workers import Workers

        warnings.simplefilter("ignore", DeprecationWarning)
        gone = Workers("gone", 1)
        gone.close()
        reference = weakref.ref(gone)
        del gone
        gc.collect()
        assert reference() is None

        workers = Workers("forked", 2)
        started = threading.Semaphore(0)
        for _ in range(2):
            workers.submit(lambda: (started.release(), threading.Event().wait()))
            started.acquire()
        queued = workers.submit(lambda: print("the parent's call ran in the child"))
        held = threading.Event()
        threading.Thread(
            target=lambda: (workers._changed.acquire(), held.set(), threading.Event().wait()),
            daemon=True,
        ).start()
        held.wait()

        child = os.fork()
        if child == 0:
            print("child", workers.stats, flush=True)
            print("child", workers.submit(lambda: "answered").result(10), flush=True)
            workers.close()
            os._exit(threading.active_count() - 1)
        print("parent", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), queued.done())
    """)

    assert finished.stderr == ""
    assert finished.stdout.splitlines() == [
        "child WorkerStats(busy=0, idle=0, queued=0, limit=2)",
        "child answered",
        "parent 0 False",
    ]
