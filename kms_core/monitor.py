"""One thread that looks after the instances, so that users do not find out the hard way."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from kms_core.errors import BreakerOpen, KMSError
from kms_core.relay import Emit, Relay
from kms_core.settings import MonitorPolicy
from kms_core.types import Event, Health, HealthReport, HealthStatus

_STOP_WAIT: Final = 1.0  # seconds; a check under way may take longer, and its thread is a daemon


class Monitor:
    """Checks every instance now and then, from ``start`` to ``stop``.

    ``check`` is one report on all, ``prove`` a call that only a working instance survives.

    Tells observers of every change (operation ``health``), and lets a breaker that is open try
    again as soon as its instance is well, with calls of its own instead of a user's.
    """

    def __init__(
        self,
        policy: MonitorPolicy,
        relays: Mapping[str, Relay],
        check: Callable[[], HealthReport],
        prove: Callable[[Relay], Health],
        emit: Emit,
        *,
        patience: float,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._policy = policy
        self._relays = relays
        self._check = check
        self._prove = prove
        self._emit = emit
        self._patience = patience
        self._draw = draw
        self._known: dict[str | None, HealthStatus] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kms-monitor", daemon=True)

    def start(self) -> None:
        """Begin, if there is an interval."""
        if self._policy.interval is not None:
            self._thread.start()

    def stop(self) -> None:
        """End; a check under way is not waited for long.  Idempotent."""
        self._stopping.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(_STOP_WAIT)

    def look(self) -> None:
        """One round: what the thread does each time."""
        report = self._check()
        self._tell(None, report.status)
        for name, health in report.instances.items():
            self._tell(name, health.state)
            if health.latency is not None and health.breaker != "closed":
                self._revive(self._relays[name])

    def _run(self) -> None:
        while not self._stopping.wait(self._pause()):
            try:
                self.look()
            except KMSError as exc:  # closed meanwhile, or no thread to be had
                self._emit(Event("health", exc.code))

    def _pause(self) -> float:
        """The interval, spread so that many processes do not ask at once."""
        interval, jitter = self._policy.interval or 0.0, self._policy.jitter
        return interval * (1 + jitter * (2 * self._draw() - 1))

    def _tell(self, name: str | None, state: HealthStatus) -> None:
        if self._known.get(name, "healthy") != state:
            self._emit(Event("health", state, instance=name))
        self._known[name] = state

    def _revive(self, relay: Relay) -> None:
        """Probe an instance that answers, until its breaker is closed or it fails."""
        while relay.breaker.state != "closed" and self._probe(relay):
            pass

    def _probe(self, relay: Relay) -> bool:
        """Whether one more call of ours went well; the breaker is told either way."""
        breaker = relay.breaker
        try:
            permit = breaker.acquire(early=True)
        except BreakerOpen:
            return False  # a probe is under way, or the operator holds it open
        well = False
        try:
            well = relay.workers.submit(partial(self._prove, relay)).result(self._patience).ok
        except TimeoutError:
            breaker.fail(permit, timeout=True)
        except KMSError as exc:
            if exc.counts:
                breaker.fail(permit)
        if well:
            breaker.succeed(permit)
        breaker.release(permit)  # nothing, unless there was no verdict
        return well
