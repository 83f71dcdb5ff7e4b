"""Clients and relays over in-memory services that fail on cue, for the tests of the core.

Nothing here replaces code of the core: providers encrypt for real, plugins are real modules, and
only where an entry point would have to be installed is one made by hand.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, ClassVar

from attrs import field, frozen

from kms_core import (
    BreakerPolicy,
    CachePolicy,
    CallPolicy,
    Duration,
    EnvelopePolicy,
    Event,
    InstanceConfig,
    InstanceInfo,
    Kms,
    Settings,
    hookimpl,
)
from kms_core.breaker import Breaker
from kms_core.hookspecs import API_VERSION
from kms_core.plugins import Found
from kms_core.relay import Relay
from kms_core.routing import Router
from kms_core.testing import Fault, Faulty, MemoryProvider, MemorySettings, MemoryStore, blocking
from kms_core.types import Protection
from kms_core.workers import Workers

PATIENCE = 30.0  # seconds until a test gives up; nothing waits that long unless it is broken

#: Long enough for any honest call, so that no test depends on how fast the machine is.
PATIENT = CallPolicy(
    deadline=Duration(PATIENCE),
    attempt_timeout=Duration(PATIENCE),
    attempts=1,
    hedge_after=Duration(PATIENCE),
    health_timeout=Duration(PATIENCE),
)

#: Every seal and every open asks services, as tests of calls, routes and outages need it.
NO_CACHE = CachePolicy(max_age=Duration(0.0))


class Clock:
    """Time that passes when told to; ``sleep`` tells it, and is on record."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds

    def sleep(self, seconds: float) -> None:
        """Pass the time at once."""
        self.slept.append(seconds)
        self.now += seconds


# --- services ------------------------------------------------------------------------------------


class OtherProvider(MemoryProvider):
    """The same service under another provider type."""

    type_name: ClassVar[str] = "other"


def service(
    name: str,
    *,
    protection: Protection = "software",
    kind: type[MemoryProvider] = MemoryProvider,
    store: MemoryStore | None = None,
) -> Faulty:
    """A provider on a store of its own (or on ``store``), whose every hook can be scripted."""
    store = store or MemoryStore(name, protection=protection)
    return Faulty(kind(MemorySettings(store=store)))


class Hang:
    """A fault that hangs until the test lets go."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.release = threading.Event()
        self.fault: Fault = blocking(self.release, entered=self.entered)

    def wait_until_entered(self) -> None:
        """Return once a call hangs."""
        assert self.entered.wait(PATIENCE)


@contextmanager
def hanging() -> Iterator[Hang]:
    """A ``Hang`` that lets go in the end, whatever happens."""
    hang = Hang()
    try:
        yield hang
    finally:
        hang.release.set()


# --- plugins -------------------------------------------------------------------------------------


def module(name: str, **attributes: Any) -> ModuleType:
    """A module with these attributes, as importing a plugin yields."""
    made = ModuleType(name)
    vars(made).update(attributes)
    return made


def providers_module(*providers: type[Any], **attributes: Any) -> ModuleType:
    """A plugin module that registers these provider classes."""

    @hookimpl
    def kms_register_providers(register: Callable[[type[Any]], None]) -> None:
        for provider in providers:
            register(provider)

    return module("brings_providers", kms_register_providers=kms_register_providers, **attributes)


def found(name: str, plugin: object, **changes: Any) -> Found:
    """An entry point that loads to ``plugin``, as if it were installed."""
    facts: dict[str, Any] = {
        "distribution": f"kms-{name}",
        "version": "1.0",
        "api_version": API_VERSION,
        "load": lambda: plugin,
    }
    return Found(name, **{**facts, **changes})


@frozen
class ReadyMadeSettings:
    """The settings of an instance whose provider exists already."""

    service: Faulty = field(eq=False)
    key: str = "default"


def _ready_made(kind: type[MemoryProvider]) -> type[MemoryProvider]:
    """A class of ``kind`` whose construction yields the provider that the settings hold."""

    class ReadyMade(kind):  # type: ignore[misc, valid-type]
        settings = ReadyMadeSettings

        def __new__(cls, settings: ReadyMadeSettings) -> Faulty:  # type: ignore[misc]
            return settings.service

    return ReadyMade


def entry_points(plugins: Mapping[str, ModuleType] | None = None) -> list[Found]:
    """The types ``memory`` and ``other`` with ready-made providers, and these plugin modules."""
    kinds = [_ready_made(MemoryProvider), _ready_made(OtherProvider)]
    modules = {kind.type_name: providers_module(kind) for kind in kinds}
    return [found(name, made) for name, made in {**modules, **(plugins or {})}.items()]


# --- clients -------------------------------------------------------------------------------------


def settings_for(
    services: Mapping[str, Faulty],
    *,
    instances: Mapping[str, Mapping[str, Any]] | None = None,
    plugins: Sequence[str] = (),
    calls: CallPolicy = PATIENT,
    breaker: BreakerPolicy | None = None,
    cache: CachePolicy = NO_CACHE,
    **envelope: Any,
) -> Settings:
    """One instance per service; ``instances`` changes single ones, the rest is the envelope's."""
    return Settings(
        instances={
            name: InstanceConfig(
                made.type_name, {"service": made}, **(instances or {}).get(name, {})
            )
            for name, made in services.items()
        },
        envelope=EnvelopePolicy(**envelope),
        breaker=breaker or BreakerPolicy(),
        calls=calls,
        cache=cache,
        plugins=tuple(plugins),
    )


def client_for(
    services: Mapping[str, Faulty],
    *,
    modules: Mapping[str, ModuleType] | None = None,
    options: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Kms:
    """A client of these services; ``modules`` are its plugins, in this order."""
    modules = modules or {}
    made = settings_for(services, plugins=tuple(modules), **settings)
    return Kms(made, plugins=entry_points(modules), **(options or {}))


class Events:
    """Every event so far; ``module`` is an observer that adds to them."""

    def __init__(self) -> None:
        self.seen: list[Event] = []

        @hookimpl
        def kms_event(event: Event) -> None:
            self.seen.append(event)

        self.module = module("recorder", kms_event=kms_event)

    def of(self, operation: str) -> list[Event]:
        """Those of one operation, oldest first."""
        return [event for event in self.seen if event.operation == operation]

    def last(self, operation: str) -> Event:
        """The newest of one operation."""
        return self.of(operation)[-1]


# --- below the client ----------------------------------------------------------------------------


def relay_for(
    name: str,
    provider: Any,
    *,
    modules: Mapping[str, ModuleType] | None = None,
    events: list[Event] | None = None,
    clock: Callable[[], float] | None = None,
    breaker: BreakerPolicy | None = None,
    limit: int = 8,
    domain: str | None = None,
) -> Relay:
    """A relay to this provider; whoever makes one closes it."""
    clock = clock or Clock()
    return Relay(
        InstanceInfo(name, provider.type_name, provider.protection),
        provider,
        "default",
        modules or {},
        breaker=Breaker(breaker or BreakerPolicy(), clock),
        workers=Workers(name, limit),
        emit=(events if events is not None else []).append,
        clock=clock,
        domain=domain,
    )


@contextmanager
def router_for(
    providers: Mapping[str, Any],
    *,
    policy: CallPolicy = PATIENT,
    options: Mapping[str, Any] | None = None,
    **relay_options: Any,
) -> Iterator[Router]:
    """A router over one relay per provider, closed in the end."""
    relays = {name: relay_for(name, made, **relay_options) for name, made in providers.items()}
    try:
        yield Router(relays, policy, **(options or {}))
    finally:
        for relay in relays.values():
            relay.close()
