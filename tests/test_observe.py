"""Observers learn what happened, can change nothing, and the log is quiet unless asked."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from types import ModuleType

import pytest

from kms_core import (
    AllInstancesFailed,
    BreakerPolicy,
    Event,
    FormatError,
    IntegrityError,
    Unavailable,
    correlation_id,
    hookimpl,
)
from kms_core.observe import Observers
from kms_core.testing import raising
from tests.support import Events, client_for, module, service

DOWN = raising(Unavailable, "down")


def crashing(name: str) -> ModuleType:
    """An observer that never survives an event."""

    @hookimpl
    def kms_event(event: Event) -> None:
        raise RuntimeError("no space left")

    return module(name, kms_event=kms_event)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """All that the library logs."""
    caplog.set_level(logging.DEBUG, logger="kms_core")
    return caplog


# --- isolation -----------------------------------------------------------------------------------


def test_an_observer_that_raises_changes_nothing_and_hides_nothing(
    log: pytest.LogCaptureFixture,
) -> None:
    """The call succeeds, the observers before and after it are told, and its name is logged."""
    before, after = Events(), Events()
    modules = {"before": before.module, "broken": crashing("broken"), "after": after.module}
    with client_for({"a": service("a")}, modules=modules) as kms:
        assert kms.open(kms.seal(b"x")) == b"x"
    assert before.seen == after.seen
    assert [event.operation for event in after.seen] == ["encrypt", "seal", "decrypt", "open"]
    assert "observer broken raised RuntimeError" in log.messages
    assert "no space left" not in log.text


def test_a_watching_function_is_told_what_observers_are_told() -> None:
    """For applications that want no plugin; what it raises stays with it, too."""
    events, seen = Events(), list[Event]()

    def watch(event: Event) -> None:
        seen.append(event)
        raise RuntimeError("full")

    modules = {"recorder": events.module}
    with client_for({"a": service("a")}, modules=modules, options={"observe": watch}) as kms:
        kms.seal(b"x")
    assert seen == events.seen != []


def test_an_observer_that_forgot_its_marker_is_not_called() -> None:
    """A function that happens to have the name is no hook."""

    def kms_event(event: Event) -> None:
        raise AssertionError("called without being marked")

    Observers({"plain": module("plain", kms_event=kms_event)}).emit(Event("seal", "ok"))


def test_a_wrapper_module_need_not_observe() -> None:
    """Nothing is called on modules without the hook."""

    @hookimpl(wrapper=True)
    def encrypt(key_id: str) -> Iterator[None]:
        return (yield)

    Observers({"policy": module("policy", encrypt=encrypt)}).emit(Event("seal", "ok"))


# --- what is told --------------------------------------------------------------------------------


def test_a_seal_that_left_somebody_out_is_told_as_degraded() -> None:
    """With the names of those who are missing; every time, as no data key is kept."""
    services, events = {"a": service("a"), "b": service("b")}, Events()
    services["b"].always("encrypt", DOWN)
    with client_for(services, modules={"recorder": events.module}) as kms:
        kms.seal(b"x")
    assert events.last("seal").outcome == "degraded"
    assert events.last("seal").missing == ("b",)
    assert {(event.instance, event.outcome) for event in events.of("encrypt")} == {
        ("a", "ok"),
        ("b", "unavailable"),
    }


def test_an_open_that_failed_is_told_with_the_code_of_its_error() -> None:
    """A rise of these is an attack or a mistake; both are worth an alarm."""
    events = Events()
    with client_for({"a": service("a")}, modules={"recorder": events.module}) as kms:
        sealed = kms.seal(b"x", {"tenant": "42"})
        with pytest.raises(IntegrityError):
            kms.open(sealed, {"tenant": "43"})
        with pytest.raises(FormatError):
            kms.open(b"not an envelope")
    assert [event.outcome for event in events.of("open")] == ["integrity_error", "format_error"]


@pytest.mark.parametrize("operation", ["seal", "rewrap"])
def test_a_call_that_failed_is_told_whatever_it_was(operation: str) -> None:
    """An outage shows first where data is written."""
    services, events = {"a": service("a"), "b": service("b")}, Events()
    with client_for(services, modules={"recorder": events.module}) as kms:
        services["b"].always("encrypt", DOWN)
        sealed = kms.seal(b"x")
        events.seen.clear()
        services["a"].always("encrypt", DOWN)
        with pytest.raises(AllInstancesFailed):
            _ = kms.seal(b"x") if operation == "seal" else kms.rewrap(sealed)
    assert events.last(operation).outcome == "all_instances_failed"


def test_a_breaker_tells_every_state_it_enters() -> None:
    """With the instance it guards."""
    services, events = {"a": service("a"), "b": service("b")}, Events()
    services["a"].always("encrypt", DOWN)
    with client_for(
        services,
        modules={"recorder": events.module},
        breaker=BreakerPolicy(failure_threshold=1),
    ) as kms:
        kms.seal(b"x")
    assert [(event.instance, event.outcome) for event in events.of("breaker")] == [("a", "open")]


def test_every_event_of_a_request_carries_its_correlation_id() -> None:
    """Also those that happen on the threads of an instance."""
    events = Events()
    token = correlation_id.set("request-7")
    try:
        with client_for({"a": service("a")}, modules={"recorder": events.module}) as kms:
            kms.open(kms.seal(b"x"))
    finally:
        correlation_id.reset(token)
    assert [event.correlation_id for event in events.seen] == ["request-7"] * 4


def test_an_id_that_an_event_has_already_is_kept() -> None:
    """Whoever made the event knew better."""
    events = Events()
    observers = Observers({"recorder": events.module})
    observers.emit(Event("seal", "ok", correlation_id="own"))
    observers.emit(Event("seal", "ok"))
    assert [event.correlation_id for event in events.seen] == ["own", None]


# --- the log -------------------------------------------------------------------------------------


def test_what_is_routine_is_for_debugging_the_rest_is_a_warning(
    log: pytest.LogCaptureFixture,
) -> None:
    """An operator who looks at warnings sees what needs looking at."""
    observers = Observers({})
    for outcome in ("ok", "closed", "degraded", "unavailable", "open", "half-open"):
        observers.emit(Event("x", outcome))
    assert [record.levelname for record in log.records] == ["DEBUG"] * 2 + ["WARNING"] * 4


def test_a_line_says_who_what_and_how_long(log: pytest.LogCaptureFixture) -> None:
    """The event itself goes along for structured logs."""
    event = Event(
        "rewrap", "degraded", instance="a", seconds=0.0125, missing=("b", "c"), unverified=("d",)
    )
    Observers({}).emit(event)
    assert log.messages == ["rewrap degraded instance=a missing=b,c unverified=d 12.5 ms"]
    assert log.records[0].__dict__["kms_event"] == event


def test_nothing_is_written_unless_the_application_sets_up_logging(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A library does not write to standard error on its own."""
    logger = logging.getLogger("kms_core")
    assert any(isinstance(handler, logging.NullHandler) for handler in logger.handlers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logger, "propagate", False)
        Observers({}).emit(Event("seal", "unavailable"))
    assert capfd.readouterr() == ("", "")
