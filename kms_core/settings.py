"""What a client is built from: frozen objects, made by hand or from a configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from attrs import asdict, field, fields_dict, frozen, validators

from kms_core.asymmetric import OfflineWrap
from kms_core.breaker import BreakerPolicy
from kms_core.cache import CachePolicy
from kms_core.calls import CallPolicy
from kms_core.config import Raw, check_names, shown, structure, table
from kms_core.context import RESERVED_PREFIX
from kms_core.errors import ConfigError, InvalidRequest
from kms_core.header import MAX_RECIPIENTS, MAX_SCOPE_PAIRS
from kms_core.types import Duration

_THRESHOLD = re.compile(r"([1-9][0-9]?) of ([1-9][0-9]?)")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@frozen
class EnvelopePolicy:
    """How envelopes are sealed.

    ``recipients``: instances by name, in order of preference; ``None`` means all that encrypt.
    ``policy``: ``"any"`` one recipient opens, or ``"2 of 3"``: so many of so many are needed.
    ``min_recipients``: distinct domains that must hold a wrap before anything is written; ``None``
    is 1, and with a threshold one more than it where there are more recipients.
    ``key_context``: names of the context entries that go to the key services as well.
    ``straggler_wait``: seconds that slow recipients still have once there are enough.
    ``allow_weaker``: let a local copy count, and direct calls fall back to weaker protection.
    ``require_pq``: seal only under wraps that a quantum computer does not undo.
    ``min_threshold``: open nothing that fewer recipients can open.
    ``allow_public_key_wraps``: ``False`` opens nothing through a wrap that whoever knows the
    recipient's public key could have made.
    ``max_degraded_for``: how long a recipient may be missing from all that is sealed; after that
    ``on_degraded`` says whether health is ``"unhealthy"`` or sealing is to ``"refuse"`` as well.
    ``capsules``: where the capsules of compact messages are kept: a folder, or a ``.sqlite`` file.
    """

    recipients: tuple[str, ...] | None = None
    min_recipients: int | None = field(
        default=None, validator=validators.optional(validators.in_(range(1, MAX_RECIPIENTS + 1)))
    )
    key_context: tuple[str, ...] = ()
    straggler_wait: Duration = field(default=Duration(0.5), validator=validators.ge(Duration(0.0)))
    allow_weaker: bool = False
    policy: str = "any"
    require_pq: bool = False
    min_threshold: int = field(default=1, validator=validators.in_(range(1, MAX_RECIPIENTS + 1)))
    allow_public_key_wraps: bool = True
    max_degraded_for: Duration | None = field(
        default=None, validator=validators.optional(validators.ge(Duration(0.0)))
    )
    on_degraded: Literal["unhealthy", "refuse"] = "unhealthy"
    capsules: Path | None = None

    def __attrs_post_init__(self) -> None:
        if len(self.key_context) > MAX_SCOPE_PAIRS:
            raise ValueError(f"key_context: at most {MAX_SCOPE_PAIRS} entries go to the services")
        for name in self.key_context:
            if not name or name.startswith(RESERVED_PREFIX):
                raise ValueError(f"key_context: {name!r} can be the name of no context entry")
        if self.policy != "any" and not _THRESHOLD.fullmatch(self.policy):
            raise ValueError(f'policy: {self.policy!r} is neither "any" nor of the form "2 of 3"')

    @property
    def threshold(self) -> tuple[int, int | None]:
        """How many recipients are needed, and of how many (``None``: however many there are)."""
        match = _THRESHOLD.fullmatch(self.policy)
        return (int(match[1]), int(match[2])) if match else (1, None)


@frozen
class MonitorPolicy:
    """The background monitor, which is off unless ``interval`` is set (seconds).

    It checks every instance so often, give or take ``jitter`` of it; ``deep`` checks wrap and
    unwrap something, which proves that what is sealed can be opened and costs two requests.
    """

    interval: Duration | None = field(
        default=None, validator=validators.optional(validators.gt(Duration(0.0)))
    )
    jitter: float = field(default=0.2, validator=(validators.ge(0.0), validators.lt(1.0)))
    deep: bool = False


@frozen
class InstanceConfig:
    """One named instance: its provider type and the provider's own settings as a table.

    ``domain`` overrides the failure domain the provider derives; ``required`` makes sealing fail
    without it; ``purpose = "sign"`` keeps it out of the default recipients.  ``offline_wrap``: seal
    to its public key ``"never"``, as a ``"fallback"`` while its service is out of reach, or
    ``"always"``, without asking the service at all.
    """

    provider: str
    options: Mapping[str, Any] = field(factory=dict, repr=False)
    domain: str | None = None
    required: bool = False
    purpose: Literal["encrypt", "sign"] = "encrypt"
    breaker: BreakerPolicy | None = None
    offline_wrap: OfflineWrap = "never"


@frozen
class _InstanceKeys:
    """The keys of an instance's table that belong to the core, not to its provider."""

    provider: str
    domain: str | None = None
    required: bool = False
    purpose: Literal["encrypt", "sign"] = "encrypt"
    offline_wrap: OfflineWrap = "never"


@frozen
class Settings:
    """Everything a client needs to know; validated when made."""

    instances: Mapping[str, InstanceConfig]
    envelope: EnvelopePolicy = field(factory=EnvelopePolicy)
    breaker: BreakerPolicy = field(factory=BreakerPolicy)
    calls: CallPolicy = field(factory=CallPolicy)
    monitor: MonitorPolicy = field(factory=MonitorPolicy)
    cache: CachePolicy = field(factory=CachePolicy)
    plugins: tuple[str, ...] = ()
    #: Where this came from, for error messages, relative paths and secrets.
    raw: Raw = field(factory=lambda: Raw({}, "settings", Path.cwd()), repr=False)

    def __attrs_post_init__(self) -> None:
        source = self.raw.source
        if not self.instances:
            raise ConfigError(f"{source}: no instance is configured; add a table [instances.NAME]")
        for name in self.instances:
            _check_name(name, source)
        where = f"{source}: [envelope] recipients"
        for name in self.envelope.recipients or ():
            check_names({name: None}, self.instances, where)
        if len(set(self.recipients)) != len(self.recipients):
            raise ConfigError(f"{where}: an instance is named twice")
        signs_only = all(instance.purpose == "sign" for instance in self.instances.values())
        if not self.recipients and not signs_only:
            raise ConfigError(f"{where}: nobody is left to seal to")
        if len(self.recipients) > MAX_RECIPIENTS:
            raise ConfigError(f"{where}: at most {MAX_RECIPIENTS} fit into an envelope")
        self._check_threshold()

    def _check_threshold(self) -> None:
        where = f"{self.raw.source}: [envelope] policy"
        count = len(self.recipients)
        threshold, of = self.envelope.threshold
        if of is not None and of != count:
            raise ConfigError(f"{where}: {self.envelope.policy!r} with {count} recipients")
        if threshold > max(count, 1):
            raise ConfigError(f"{where}: {threshold} of {count} recipients can never open anything")
        if threshold < self.envelope.min_threshold:
            raise ConfigError(f"{where}: min_threshold refuses to open what this policy seals")
        if self.min_recipients < threshold:
            raise ConfigError(f"{where}: min_recipients is below the threshold: nothing would open")

    @property
    def threshold(self) -> int:
        """How many recipients are needed to open."""
        return self.envelope.threshold[0]

    @property
    def min_recipients(self) -> int:
        """In how many domains there must be wraps before anything is written."""
        if self.envelope.min_recipients is not None:
            return self.envelope.min_recipients
        spare = self.threshold > 1 and len(self.recipients) > self.threshold
        return self.threshold + spare

    @property
    def recipients(self) -> tuple[str, ...]:
        """The instances that a new envelope is sealed to, in order of preference."""
        if self.envelope.recipients is not None:
            return self.envelope.recipients
        return tuple(
            name for name, instance in self.instances.items() if instance.purpose == "encrypt"
        )

    def encrypting(self) -> tuple[str, ...]:
        """The same; raises ``InvalidRequest`` if there is nobody, because all of them only sign."""
        if not self.recipients:
            raise InvalidRequest('every instance has purpose = "sign": there is nobody to seal to')
        return self.recipients

    @property
    def required(self) -> frozenset[str]:
        """Those of the recipients without which nothing is written."""
        return frozenset(name for name in self.recipients if self.instances[name].required)

    @classmethod
    def from_raw(cls, raw: Raw) -> Self:
        """Check and build; raises ``ConfigError``."""
        tables, source = raw.tables, raw.source
        for key in table(tables.get("audit", {}), f"{source}: [audit]"):
            raise ConfigError(f"{source}: [audit] {shown(key)}: not supported by this version")
        breaker = structure(
            BreakerPolicy,
            table(tables.get("breaker", {}), f"{source}: [breaker]"),
            f"{source}: [breaker]",
            raw,
        )
        instances = table(tables.get("instances", {}), f"{source}: [instances]")
        return cls(
            instances={
                name: _instance(name, values, breaker, raw) for name, values in instances.items()
            },
            envelope=_policy(EnvelopePolicy, "envelope", raw),
            breaker=breaker,
            calls=_policy(CallPolicy, "calls", raw),
            monitor=_policy(MonitorPolicy, "monitor", raw),
            cache=_policy(CachePolicy, "cache", raw),
            plugins=_plugins(tables.get("plugins", ()), source),
            raw=raw,
        )


def _policy(cls: type[Any], name: str, raw: Raw) -> Any:
    where = f"{raw.source}: [{name}]"
    return structure(cls, table(raw.tables.get(name, {}), where), where, raw)


def _plugins(value: Any, source: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise ConfigError(f"{source}: plugins: must be a list of strings")
    return tuple(value)


def _check_name(name: str, source: str) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{source}: instance name {name!r} is not letters, digits, - or _")


def _instance(name: str, value: Any, breaker: BreakerPolicy, raw: Raw) -> InstanceConfig:
    _check_name(name, raw.source)  # before it stands in the messages about its table
    where = f"{raw.source}: [instances.{name}]"
    values = dict(table(value, where))
    own: dict[str, Any] = {
        key: values.pop(key) for key in fields_dict(_InstanceKeys) if key in values
    }
    keys = structure(_InstanceKeys, own, where, raw)
    override = values.pop("breaker", None)
    policy = None
    if override is not None:
        where = f"{raw.source}: [instances.{name}.breaker]"
        merged = {**table(raw.tables.get("breaker", {}), where), **table(override, where)}
        policy = structure(BreakerPolicy, merged, where, raw)
    return InstanceConfig(options=values, breaker=policy or breaker, **asdict(keys))
