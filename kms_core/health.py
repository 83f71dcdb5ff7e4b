"""What the instances' answers add up to: healthy, degraded or unhealthy."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping

from attrs import evolve

from kms_core.calls import Caller, Standing
from kms_core.errors import KMSError
from kms_core.relay import Relay
from kms_core.types import Health, HealthReport, HealthStatus, InstanceHealth

Answer = tuple[Health | KMSError, float]


def report(
    relays: Mapping[str, Relay],
    answers: Mapping[str, Answer],
    calls: Caller,
    *,
    recipients: Collection[str],
    can_seal: bool,
) -> HealthReport:
    """One report from all answers; ``can_seal``: whether the well ones are enough to seal."""
    instances = {
        name: _with_standing(_instance(relays[name], answer), calls.standing(relays[name]))
        for name, answer in answers.items()
    }
    unwell = [name for name, health in instances.items() if health.state != "healthy"]
    status: HealthStatus = "healthy"
    reason = ""
    if unwell:
        status = "degraded"
        names = ", ".join(unwell)
        reason = (
            f"{names} cannot be used; sealing goes on without, and so does opening, except of what "
            f"was sealed to {names} alone"
        )
    if not can_seal:
        status = "unhealthy"
        reason = f"too few of {', '.join(recipients)} can be used: sealing would fail"
    return HealthReport(status, instances, reason)


def is_well(answer: Answer) -> bool:
    """Whether an instance said that its key can be used."""
    return isinstance(answer[0], Health) and answer[0].ok


def _instance(relay: Relay, answer: Answer) -> InstanceHealth:
    said, seconds = answer
    breaker = relay.breaker.state
    if isinstance(said, KMSError):
        return InstanceHealth("unhealthy", breaker, None, f"{said.code}: {said}")
    if said.ok and breaker == "open":
        reason = f"well again, but its breaker is open for {relay.breaker.retry_after:.1f} s more"
        return InstanceHealth("degraded", breaker, seconds, reason)
    return InstanceHealth("healthy" if said.ok else "unhealthy", breaker, seconds, said.reason)


def _with_standing(health: InstanceHealth, standing: Standing) -> InstanceHealth:
    return evolve(health, proven=standing.proven, stuck=standing.stuck)


class Gaps:
    """Since when each recipient has been missing from what is sealed.  Thread-safe."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._since: dict[str, float] = {}

    def note(self, missing: Collection[str], recipients: Iterable[str]) -> None:
        """Something was sealed without ``missing``."""
        if not missing and not self._since:  # the usual case takes no lock
            return
        with self._lock:
            now = self._clock()
            for name in recipients:
                if name in missing:
                    self._since.setdefault(name, now)
                else:
                    self._since.pop(name, None)

    def longer_than(self, seconds: float | None) -> list[str]:
        """Who has been missing for longer; nobody if ``seconds`` is ``None``."""
        if seconds is None or not self._since:
            return []
        with self._lock:
            now = self._clock()
            return [name for name, since in self._since.items() if now - since > seconds]


def with_gaps(report: HealthReport, names: Collection[str]) -> HealthReport:
    """The report, unhealthy if anybody has been missing for too long."""
    if not names:
        return report
    reason = f"{', '.join(names)}: missing for longer than envelope.max_degraded_for"
    return evolve(report, status="unhealthy", reason=f"{report.reason}; {reason}".lstrip("; "))
