"""From settings to instances that can be called: loads plugins, builds providers, asks nobody."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import attrs

from kms_core import config, envelope, header
from kms_core.breaker import Breaker
from kms_core.errors import ConfigError, KMSError
from kms_core.observe import Observers
from kms_core.plugins import Plugins
from kms_core.relay import Emit, Relay, domain_of
from kms_core.routing import Quorum, Router
from kms_core.settings import Settings
from kms_core.types import POST_QUANTUM_WRAPS, BreakerState, Event, InstanceInfo, Provider
from kms_core.workers import Workers

Clock = Callable[[], float]


class Assembly:
    """The instances of one client, what is asked of them, and who is told."""

    def __init__(
        self,
        settings: Settings,
        plugins: Plugins,
        watchers: Sequence[Callable[[Event], None]] = (),
        *,
        clock: Clock = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Raises ``ConfigError`` or ``PluginError`` for what could never work."""
        self._settings = settings
        self._plugins = plugins
        self._clock = clock
        self.emit: Emit
        relays = self._build_relays(watchers)
        self.router: Final = Router(relays, settings.calls, clock=clock, sleep=sleep)
        policy = settings.envelope
        self.quorum: Final = Quorum(
            settings.min_recipients, policy.straggler_wait, policy.allow_weaker, settings.required
        )
        self._check_recipients()

    def close(self) -> None:
        """Let go of every provider and thread."""
        for relay in self.router.relays.values():
            relay.close()

    def _build_relays(self, watchers: Sequence[Callable[[Event], None]]) -> dict[str, Relay]:
        settings = self._settings
        providers = {
            name: build_provider(settings, self._plugins, name) for name in settings.instances
        }
        for name in settings.plugins:
            self._plugins.require(name, f"{settings.raw.source}: plugins")
        modules = self._plugins.modules(first=settings.plugins)
        self.emit = Observers(modules, *watchers).emit
        relays = {}
        for name, (provider, key) in providers.items():
            instance = settings.instances[name]
            relays[name] = Relay(
                InstanceInfo(name, instance.provider, provider.protection),
                provider,
                key,
                modules,
                breaker=Breaker(
                    instance.breaker or settings.breaker,
                    self._clock,
                    on_change=self._breaker_reporter(name),
                ),
                workers=Workers(name, settings.calls.max_concurrency),
                emit=self.emit,
                clock=self._clock,
                domain=instance.domain,
                offline_wrap=instance.offline_wrap,
            )
            if instance.offline_wrap != "never" and not relays[name].supports("public_key"):
                raise ConfigError(
                    f"{settings.raw.source}: [instances.{name}] offline_wrap: provider "
                    f"{instance.provider} tells no public key: remove it"
                )
        return relays

    def _breaker_reporter(self, name: str) -> Callable[[BreakerState], None]:
        return lambda state: self.emit(Event("breaker", state, instance=name))

    def _check_recipients(self) -> None:
        """Refuse at start what could never be sealed."""
        if not self._settings.recipients:
            return  # there are signing instances only
        source, relays = self._settings.raw.source, self.router.relays
        uris = {name: relays[name].key_uri for name in self._settings.recipients}
        if not self.router.would_do(uris, self._settings.recipients, self.quorum):
            raise ConfigError(
                f"{source}: [envelope] min_recipients = {self.quorum.domains}: the recipients are "
                "in too few distinct domains (two regions of one account are one, local counts "
                "only alone); lower it, or set domain on the instances that are independent"
            )
        self._check_domains(uris)
        self._check_require_pq()
        worst = sum(map(envelope.worst_case, uris.values())) + header.MAX_SCOPE_BYTES
        if worst > header.MAX_CAPSULE_BYTES:
            raise ConfigError(f"{source}: [envelope] recipients: so many do not fit into a capsule")

    def _check_domains(self, uris: Mapping[str, str]) -> None:
        """No single domain may hold enough shares to open alone."""
        threshold = self._settings.threshold
        held = Counter(self.router.relays[name].domain(uri) for name, uri in uris.items())
        for domain, count in held.items():
            if count >= threshold > 1:
                raise ConfigError(
                    f"{self._settings.raw.source}: [envelope] policy: domain {domain} holds "
                    f"{count} shares and could open alone; at most {threshold - 1} may be there"
                )

    def _check_require_pq(self) -> None:
        if not self._settings.envelope.require_pq:
            return
        for name in self._settings.recipients:
            if self.router.relays[name].provider.wrap_algs.isdisjoint(POST_QUANTUM_WRAPS):
                raise ConfigError(
                    f"{self._settings.raw.source}: [envelope] require_pq: {name} has no wrap that "
                    "withstands a quantum computer, and the weakest recipient decides: remove it"
                )


def build_provider(settings: Settings, plugins: Plugins, name: str) -> tuple[Provider, str]:
    """One configured instance's provider, which has done no I/O yet, and its key.

    Raises ``ConfigError`` or ``PluginError``.
    """
    raw, instance = settings.raw, settings.instances[name]
    where = f"{raw.source}: [instances.{name}]"
    cls = plugins.require_provider(instance.provider, where)
    options = dict(instance.options)
    if "attempt_timeout" in attrs.fields_dict(cls.settings):
        options.setdefault("attempt_timeout", settings.calls.attempt_timeout)
    provider_settings = config.structure(cls.settings, options, where, raw)
    try:
        provider = cls(provider_settings)
        domain_of(provider, provider.key_uri)
    except ConfigError:
        raise
    except Exception as exc:
        said = f": {exc}" if isinstance(exc, ValueError | KMSError) else ""
        raise ConfigError(
            f"{where}: the provider cannot be built: {type(exc).__name__}{said}"
        ) from exc
    return provider, str(provider_settings.key)
