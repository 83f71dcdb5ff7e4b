"""Health that proves what it says, the background monitor, and gaps that last too long."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from attrs import evolve

from kms_core import (
    AccessDenied,
    BreakerPolicy,
    CallPolicy,
    Duration,
    Health,
    Kms,
    MonitorPolicy,
    PolicyDenied,
    Unavailable,
)
from kms_core.monitor import Monitor
from kms_core.testing import Faulty, raising
from tests.support import (
    PATIENCE,
    Clock,
    Events,
    client_for,
    entry_points,
    hanging,
    service,
    settings_for,
)

DOWN = raising(Unavailable, "down")


@pytest.fixture
def services() -> dict[str, Faulty]:
    """Two services."""
    return {name: service(name) for name in "ab"}


@pytest.fixture
def clock() -> Clock:
    """Time that stands still."""
    return Clock()


@pytest.fixture
def events() -> Events:
    """What observers are told."""
    return Events()


@pytest.fixture
def kms(services: dict[str, Faulty], clock: Clock, events: Events) -> Iterator[Kms]:
    """A client whose breakers open at the first failure."""
    with client_for(
        services,
        modules={"recorder": events.module},
        options={"clock": clock},
        breaker=BreakerPolicy(failure_threshold=1),
        min_recipients=1,
    ) as kms:
        yield kms


def monitor(kms: Kms, *, deep: bool = False) -> Monitor:
    """The client's monitor as if it were on, its thread not started."""
    policy = MonitorPolicy(interval=Duration(1.0), deep=deep)
    relays = kms._router.relays
    check = lambda: kms.health(deep=deep)  # noqa: E731
    return Monitor(
        policy, relays, check, kms._check_deeply, kms._emit, patience=PATIENCE, draw=lambda: 0.5
    )


# --- deep checks ---------------------------------------------------------------------------------


def test_deep_check_finds_what_a_shallow_one_cannot(kms: Kms, services: dict[str, Faulty]) -> None:
    """The service is reachable and the key is fine, but these credentials may not unwrap."""
    services["a"].always("decrypt", raising(AccessDenied, "no"))
    assert kms.health().status == "healthy"
    report = kms.health(deep=True)
    assert report.status == "degraded"
    assert "access_denied" in report.instances["a"].reason
    assert report.instances["b"].state == "healthy"


def test_proof_is_as_old_as_the_last_good_unwrap(kms: Kms, clock: Clock) -> None:
    """By whoever needed it."""
    sealed = kms.seal(b"data")
    assert kms.health().instances["a"].proven is None
    kms.open(sealed)
    clock.advance(7)
    assert kms.health().instances["a"].proven == 7


def test_checks_of_a_hanging_instance_take_one_thread(services: dict[str, Faulty]) -> None:
    """However often it is asked, the others answer."""
    with hanging() as hang:
        services["a"].always("health", hang.fault)
        hurried = CallPolicy(health_timeout=Duration(0.05))
        with client_for(services, calls=hurried) as kms:
            for _ in range(20):
                report = kms.health()
                assert report.instances["a"].reason.startswith("deadline_exceeded")
                assert report.instances["b"].state == "healthy"
            assert services["a"].count("health") == 1
            assert kms._router.relays["a"].workers.stats.busy == 1
            hang.release.set()


def test_warm_up_proves_every_recipient(kms: Kms, services: dict[str, Faulty]) -> None:
    """One wrap and one unwrap each."""
    assert kms.warm_up().status == "healthy"
    assert [made.count("decrypt") for made in services.values()] == [1, 1]


# --- the monitor ---------------------------------------------------------------------------------


def test_monitor_tells_changes_only(kms: Kms, services: dict[str, Faulty], events: Events) -> None:
    """Down, still down, back."""
    watcher = monitor(kms)
    watcher.look()
    services["a"].always("health", DOWN)
    watcher.look()
    watcher.look()
    services["a"].heal()
    watcher.look()
    told = [
        (event.instance, event.outcome)
        for event in events.of("health")
        if event.outcome in {"healthy", "degraded", "unhealthy"}
    ]
    assert told == [(None, "degraded"), ("a", "unhealthy"), (None, "healthy"), ("a", "healthy")]


def test_monitor_closes_a_breaker_before_a_user_pays_for_it(
    kms: Kms, services: dict[str, Faulty]
) -> None:
    """With calls of its own, ahead of the recovery time-out."""
    services["a"].queue("encrypt", DOWN)
    assert kms.inspect(kms.seal(b"data")).missing
    assert str(kms.breakers["a"].state) == "open"
    monitor(kms).look()
    assert kms.breakers["a"].state == "closed"
    assert not kms.inspect(kms.seal(b"data")).missing


def test_monitor_leaves_a_breaker_open_whose_instance_only_looks_well(
    kms: Kms, services: dict[str, Faulty]
) -> None:
    """It answers health checks, and does not wrap."""
    services["a"].always("encrypt", DOWN)
    kms.seal(b"data")
    before = kms.breakers["a"].retry_after
    monitor(kms).look()
    assert kms.breakers["a"].state == "open"
    assert kms.breakers["a"].retry_after == before


def test_monitor_does_not_touch_what_the_operator_holds(kms: Kms) -> None:
    """Maintenance is not over because the service answers."""
    kms.force_breaker("a", "open")
    monitor(kms).look()
    assert kms.breakers["a"].forced == "open"
    assert kms.inspect(kms.seal(b"data")).missing
    kms.force_breaker("a", None)
    assert not kms.inspect(kms.seal(b"data")).missing


def test_monitor_thread_looks_and_ends_with_the_client(services: dict[str, Faulty]) -> None:
    """Off by default; with an interval it runs, and closing the client ends it."""
    looked = threading.Event()

    def health(key_id: str) -> Health:
        looked.set()
        return Health(ok=True)

    services["a"].always("health", lambda _call, _proceed: health(""))
    made = settings_for(services)
    watched = evolve(made, monitor=MonitorPolicy(interval=Duration(0.001)))
    kms = Kms(watched, plugins=entry_points())
    assert looked.wait(PATIENCE)
    thread = kms._monitor._thread
    kms.close()
    thread.join(PATIENCE)
    assert not thread.is_alive()


# --- gaps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_degraded", ["unhealthy", "refuse"])
def test_gap_that_lasts_too_long_is_not_accepted(
    services: dict[str, Faulty], clock: Clock, on_degraded: Any
) -> None:
    """Health says so, and sealing refuses where that is configured; back again, all is well."""
    with client_for(
        services,
        options={"clock": clock},
        min_recipients=1,
        max_degraded_for=Duration(60.0),
        on_degraded=on_degraded,
    ) as kms:
        services["b"].always("encrypt", DOWN)
        kms.seal(b"data")
        clock.advance(60)
        kms.seal(b"data")
        assert kms.health().status == "healthy"
        clock.advance(1)
        report = kms.health()
        assert report.status == "unhealthy"
        assert report.reason == "b: missing for longer than envelope.max_degraded_for"
        if on_degraded == "refuse":
            with pytest.raises(PolicyDenied, match="nothing was written: b missing"):
                kms.seal(b"data")
        else:
            kms.seal(b"data")
        services["b"].heal()
        clock.advance(60)
        assert not kms.inspect(kms.seal(b"data")).missing
        assert kms.health().status == "healthy"


# --- forks ---------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="platform: no os.fork")
def test_forked_child_builds_everything_anew(services: dict[str, Faulty]) -> None:
    """Also if the parent forked while a call held whatever lock there is."""
    with client_for(services) as kms:
        sealed = kms.seal(b"data")
        before = kms._assembly
        child = os.fork()
        if child == 0:
            try:
                ok = kms._assembly is not before and kms.open(sealed) == b"data"
                ok = ok and kms.open(kms.seal(b"more")) == b"more"
            except BaseException:  # noqa: BLE001  a child never returns
                ok = False
            os._exit(0 if ok else 1)
        _, status = os.waitpid(child, 0)
        assert status == 0
        assert kms._assembly is before
        assert kms.open(sealed) == b"data"
