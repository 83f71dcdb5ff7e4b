"""What the instances' answers add up to: healthy, degraded or unhealthy."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from kms_core.errors import KMSError
from kms_core.relay import Relay
from kms_core.types import Health, HealthReport, HealthStatus, InstanceHealth

Answer = tuple[Health | KMSError, float]


def report(
    relays: Mapping[str, Relay],
    answers: Mapping[str, Answer],
    *,
    recipients: Collection[str],
    can_seal: bool,
) -> HealthReport:
    """One report from all answers; ``can_seal``: whether the well ones are enough to seal."""
    instances = {name: _instance(relays[name], answer) for name, answer in answers.items()}
    unwell = [name for name, health in instances.items() if health.state != "healthy"]
    status: HealthStatus = "healthy"
    reason = ""
    if unwell:
        status = "degraded"
        reason = f"{', '.join(unwell)} cannot be used; sealing and opening go on without"
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
