"""Daemon threads for the service calls of one instance, never more than a fixed number.

A call that hangs in a vendor's SDK cannot be killed.  Here it costs one thread of its own instance
and nothing else: the caller gives up on the future, and since the threads are daemons the process
still exits.  (``ThreadPoolExecutor`` joins its threads at exit and would wait for ever.)
"""

from __future__ import annotations

import contextvars
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from itertools import count
from typing import Any, Final, TypeVar

from attrs import Factory, frozen

from kms_core.errors import InvalidRequest, ServiceError

T = TypeVar("T")

IDLE_TIMEOUT: Final = 30.0  # seconds an unused thread is kept
_CLOSE_WAIT: Final = 1.0  # an idle thread leaves at once, unless a done callback holds it up


@frozen
class WorkerStats:
    """Threads at work, threads waiting for work, calls waiting for a thread."""

    busy: int
    idle: int
    queued: int
    limit: int


@frozen(eq=False)
class _Job:
    call: Callable[[], Any]  # any result: the types of call and future are tied by ``submit``
    future: Future[Any] = Factory(Future)
    context: contextvars.Context = Factory(contextvars.copy_context)


class Workers:
    """Runs calls in up to ``limit`` threads, started when needed and kept for reuse.

    Further calls queue in order of arrival.  Whoever gives up on a queued call cancels its future,
    which takes it out of the queue; ``cancel`` returning false says that it had been started.
    Callbacks added to a future run in the worker and must not wait for other calls of the same
    workers.  A forked child starts without threads and calls; futures of its parent never finish
    there.
    """

    def __init__(self, name: str, limit: int, *, idle_timeout: float = IDLE_TIMEOUT) -> None:
        if limit < 1:
            raise ValueError(f"limit must be at least 1, not {limit}")
        self._name = name
        self._limit = limit
        self._idle_timeout = idle_timeout
        self._closed = False
        self._start_clean()
        if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
            # Cannot be undone: what stays behind for good is one dead weak reference.
            os.register_at_fork(after_in_child=partial(_start_clean_in_child, weakref.ref(self)))

    def _start_clean(self) -> None:
        # Re-entrant, because a garbage collector's finaliser may cancel a future at any point.
        self._changed = threading.Condition(threading.RLock())
        self._queue: OrderedDict[Future[Any], _Job] = OrderedDict()
        self._threads: set[threading.Thread] = set()
        self._busy: set[threading.Thread] = set()
        self._numbers = count(1)

    @property
    def stats(self) -> WorkerStats:
        """A consistent count of threads and waiting calls."""
        with self._changed:
            return WorkerStats(
                busy=len(self._busy),
                idle=self._idle,
                queued=len(self._queue),
                limit=self._limit,
            )

    def submit(self, call: Callable[[], T]) -> Future[T]:
        """Run ``call`` in a worker, within a copy of the caller's ``contextvars`` context.

        Whatever it raises goes to the future.  Raises ``InvalidRequest`` once closed and
        ``ServiceError`` if there is no thread and the system refuses to start one.
        """
        job = _Job(call)
        job.future.add_done_callback(self._withdraw)
        with self._changed:
            if self._closed:
                raise InvalidRequest(f"the workers of {self._name} are closed; open a new client")
            if len(self._queue) >= self._idle and len(self._threads) < self._limit:
                self._start_thread()
            self._queue[job.future] = job
            self._changed.notify()
        return job.future

    def close(self) -> None:
        """Refuse further calls, cancel queued ones and end idle threads; may be repeated.

        Running calls are not waited for; each one's thread ends with it.
        """
        with self._changed:
            self._closed = True
            queued = list(self._queue)
            idle = self._threads - self._busy
            self._changed.notify_all()
        for future in queued:
            future.cancel()
        for thread in idle - {threading.current_thread()}:
            thread.join(_CLOSE_WAIT)

    @property
    def _idle(self) -> int:
        return len(self._threads) - len(self._busy)

    def _start_thread(self) -> None:
        thread = threading.Thread(
            target=self._work, name=f"kms-{self._name}-{next(self._numbers)}", daemon=True
        )
        try:
            thread.start()  # under the lock, so that nobody counts on a thread that cannot start
        except RuntimeError as exc:
            if not self._threads:
                raise ServiceError(
                    f"no thread can be started for calls to {self._name}: "
                    "raise the limit of threads or lower max_concurrency"
                ) from exc
        else:
            self._threads.add(thread)

    def _withdraw(self, future: Future[Any]) -> None:
        if not future.cancelled():
            return
        with self._changed:
            job = self._queue.pop(future, None)
        if job is not None:  # else a worker has just taken it and will say so
            future.set_running_or_notify_cancel()  # concurrent.futures.wait() wants to be told

    def _work(self) -> None:
        try:
            while (job := self._take()) is not None:
                self._run(job)
                del job  # an idle thread must not keep a call's secrets reachable
        finally:
            self._leave()  # also when a done callback raised SystemExit

    def _take(self) -> _Job | None:
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed, self._idle_timeout)
            if self._closed or not self._queue:
                self._leave()  # under the same lock, so that no call is left to this thread
                return None
            self._busy.add(threading.current_thread())
            return self._queue.popitem(last=False)[1]

    def _run(self, job: _Job) -> None:
        try:
            if not job.future.set_running_or_notify_cancel():
                self._rest()
                return
            try:
                result = job.context.run(job.call)
            except BaseException as exc:  # noqa: BLE001  the caller's to judge, whatever it is
                self._rest()
                job.future.set_exception(exc)
            else:
                self._rest()  # first, so that whoever sees the result can have the thread
                job.future.set_result(result)
        finally:
            del job  # the exception refers to this frame, and the job to the exception

    def _rest(self) -> None:
        with self._changed:
            self._busy.discard(threading.current_thread())

    def _leave(self) -> None:
        with self._changed:
            self._busy.discard(threading.current_thread())
            self._threads.discard(threading.current_thread())


def _start_clean_in_child(reference: weakref.ref[Workers]) -> None:
    workers = reference()
    if workers is not None:
        workers._start_clean()  # noqa: SLF001  the lock may have been held when the process forked
