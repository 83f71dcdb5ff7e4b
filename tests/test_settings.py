"""What a client is built from: defaults, what is refused, and whose breaker is whose."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve, frozen

from kms_core import (
    BreakerPolicy,
    CachePolicy,
    CallPolicy,
    ConfigError,
    Duration,
    EnvelopePolicy,
    InstanceConfig,
    InvalidRequest,
    Kms,
    Settings,
    Unavailable,
)
from kms_core.config import Raw
from kms_core.testing import MemoryProvider, raising
from tests.support import (
    PATIENT,
    client_for,
    entry_points,
    found,
    providers_module,
    service,
    settings_for,
)

A = '[instances.a]\nprovider = "memory"\n'
B = '[instances.b]\nprovider = "memory"\n'
TWO = A + B


def settings_from(text: str) -> Settings:
    """Settings of a file with this text."""
    return Settings.from_raw(Raw(tomllib.loads(text), "kms.toml", Path("/base"), {}))


# --- what a file says ----------------------------------------------------------------------------


def test_one_instance_is_a_configuration() -> None:
    """Everything else has a default."""
    settings = settings_from(A)
    assert settings.recipients == ("a",)
    assert settings.required == frozenset()
    assert settings.envelope == EnvelopePolicy()
    assert settings.calls == CallPolicy()
    assert settings.cache == CachePolicy()
    assert settings.plugins == ()
    assert settings.instances["a"] == InstanceConfig("memory", {}, breaker=BreakerPolicy())


def test_every_table_of_the_documentation_is_read() -> None:
    """The reference lists these keys and no others."""
    settings = settings_from("""
        plugins = ["policy", "metrics"]
        [instances.a]
        provider = "memory"
        key = "app"
        domain = "here"
        required = true
        [instances.s]
        provider = "memory"
        purpose = "sign"
        [envelope]
        recipients = ["a"]
        min_recipients = 1
        key_context = ["tenant"]
        straggler_wait = "250ms"
        allow_weaker = true
        [calls]
        deadline = "20s"
        attempt_timeout = 5
        attempts = 3
        hedge_after = "2s"
        max_concurrency = 8
        health_timeout = "1s"
        [breaker]
        failure_threshold = 4
        window = "30s"
        minimum_failure_ratio = 0.2
        timeouts_in_a_row = 2
        recovery_timeout = "10s"
        max_recovery_timeout = "1m"
        success_threshold = 1
        [cache]
        max_age = "1m"
        max_messages = 1000
        max_bytes = 1_000_000
        max_entries = 10
        refresh_ahead = 0.5
        stale_if_error = "1h"
        degraded_max_age = "10s"
    """)
    assert settings.plugins == ("policy", "metrics")
    assert settings.envelope == EnvelopePolicy(
        recipients=("a",),
        min_recipients=1,
        key_context=("tenant",),
        straggler_wait=Duration(0.25),
        allow_weaker=True,
    )
    assert settings.calls == CallPolicy(
        Duration(20.0), Duration(5.0), 3, Duration(2.0), 8, Duration(1.0)
    )
    assert settings.breaker == BreakerPolicy(
        4, Duration(30.0), Duration(10.0), Duration(60.0), 1, 0.2, 2
    )
    assert settings.cache == CachePolicy(
        Duration(60.0), 1000, 1_000_000, 10, 0.5, Duration(3600.0), Duration(10.0)
    )
    assert settings.instances["a"].options == {"key": "app"}
    assert settings.instances["a"].domain == "here"
    assert settings.required == {"a"}


def test_all_that_encrypt_are_recipients_in_the_order_of_the_file() -> None:
    """Signing keys are not; the order is the preference."""
    sign = '[instances.c]\nprovider = "memory"\npurpose = "sign"\n'
    assert settings_from(B + sign + A).recipients == ("b", "a")


def test_recipients_may_be_chosen() -> None:
    """The others may still open."""
    settings = settings_from(TWO + '[envelope]\nrecipients = ["b"]\n')
    assert settings.recipients == ("b",)
    assert list(settings.instances) == ["a", "b"]


def test_required_counts_among_the_recipients_only() -> None:
    """An instance that is not sealed to cannot be missing."""
    text = A + "required = true\n" + B + '[envelope]\nrecipients = ["b"]\n'
    assert settings_from(text).required == frozenset()


def test_an_instance_may_have_a_breaker_of_its_own() -> None:
    """What it does not set comes from ``[breaker]``."""
    settings = settings_from(
        "[breaker]\nfailure_threshold = 9\nwindow = 30\n"
        + TWO
        + "[instances.b.breaker]\nfailure_threshold = 2\n"
    )
    shared = BreakerPolicy(failure_threshold=9, window=Duration(30.0))
    assert settings.instances["a"].breaker == shared
    assert settings.instances["b"].breaker == evolve(shared, failure_threshold=2)


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "kms.toml: no instance is configured; add a table [instances.NAME]"),
        ("instances = 3", "kms.toml: [instances]: must be a table, not a number"),
        ("instances = [1]", "kms.toml: [instances]: must be a table, not a list"),
        ("[instances]\na = 1", "kms.toml: [instances.a]: must be a table, not a number"),
        ("[instances.a]\nkey = 'x'", "kms.toml: [instances.a]: provider is missing"),
        ("[instances.a]\nprovider = 3", "kms.toml: [instances.a]: provider: must be a string"),
        (A + "required = 1", "kms.toml: [instances.a]: required: must be true or false"),
        (A + 'purpose = "seal"', "kms.toml: [instances.a]: purpose: must be one of 'encrypt', "),
        (A + "domain = 1", "kms.toml: [instances.a]: domain: must be a string"),
        (A + "breaker = 1", "kms.toml: [instances.a.breaker]: must be a table"),
        (
            A + "[instances.a.breaker]\nwindw = 1",
            "kms.toml: [instances.a.breaker]: unknown key 'windw'; did you mean 'window'?",
        ),
        (
            A + "[instances.a.breaker]\nwindow = 0",
            "kms.toml: [instances.a.breaker]: window must be a positive time",
        ),
        (A + "[breaker]\nfailure_treshold = 1", "kms.toml: [breaker]: unknown key 'failure_tresh"),
        (A + "[breaker]\nsuccess_threshold = 0", "kms.toml: [breaker]: success_threshold must be"),
        (A + "[breaker]\nminimum_failure_ratio = 2", "[breaker]: minimum_failure_ratio must be"),
        (A + "[calls]\ndeadlin = 1", "kms.toml: [calls]: unknown key 'deadlin'; did you mean 'dea"),
        (A + "[calls]\ndeadline = 0", "kms.toml: [calls]: deadline must be a positive time"),
        (A + "[calls]\ndeadline = inf", "kms.toml: [calls]: deadline: must be seconds or a dur"),
        (A + "[calls]\nattempts = '2'", "kms.toml: [calls]: attempts: must be a number, not a st"),
        (A + "[calls]\nattempts = 0", "kms.toml: [calls]: attempts must be at least 1"),
        (A + "[envelope]\nrecipents = []", "[envelope]: unknown key 'recipents'; did you mean 'r"),
        (
            A + "[envelope]\nrecipients = ['b']",
            "kms.toml: [envelope] recipients: unknown key 'b'; known are a",
        ),
        (
            "[instances.aws-east]\nprovider = 'memory'\n[envelope]\nrecipients = ['aws-est']",
            "[envelope] recipients: unknown key 'aws-est'; did you mean 'aws-east'?",
        ),
        (
            A + "[envelope]\nrecipients = ['a', 'a']",
            "kms.toml: [envelope] recipients: an instance is named twice",
        ),
        (A + "[envelope]\nrecipients = []", "[envelope] recipients: nobody is left to seal to"),
        (A + "[envelope]\nmin_recipients = 0", "kms.toml: [envelope]: 'min_recipients' must be"),
        (A + "[envelope]\nmin_recipients = 33", "kms.toml: [envelope]: 'min_recipients' must be"),
        (A + "[envelope]\nstraggler_wait = -1", "kms.toml: [envelope]: 'straggler_wait' must be"),
        (A + "[envelope]\nstraggler_wait = nan", "[envelope]: straggler_wait: must be seconds"),
        (A + "[envelope]\nkey_context = 'tenant'", "[envelope]: key_context: must be a list of st"),
        ("plugins = 'x'\n" + A, "kms.toml: plugins: must be a list of strings"),
        ("plugins = [1]\n" + A, "kms.toml: plugins: must be a list of strings"),
        (A + "[cache]\nmax_ages = 1", "[cache]: unknown key 'max_ages'; did you mean 'max_age'?"),
        (A + "[cache]\nmax_age = '91d'", "[cache]: max_age must be between 0 and 90 days"),
        (A + "[cache]\nmax_messages = 0", "kms.toml: [cache]: 'max_messages' must be >= 1"),
        (A + "[cache]\nmax_messages = 1099511627777", "'max_messages' must be <= 1099511627776"),
        (A + "[cache]\nmax_entries = 0", "kms.toml: [cache]: 'max_entries' must be >= 1"),
        (A + "[cache]\nrefresh_ahead = 1", "kms.toml: [cache]: 'refresh_ahead' must be < 1.0"),
        (A + "[audit]\npath = 'x'", "kms.toml: [audit] path: not supported by this version"),
        ("cache = 1\n" + A, "kms.toml: [cache]: must be a table, not a number"),
        ("[instances.'a b']\nprovider = 'memory'", "kms.toml: instance name 'a b' is not letters"),
        ("[instances.'']\nprovider = 'memory'", "kms.toml: instance name '' is not letters"),
        (f"[instances.{'a' * 65}]\nprovider = 'memory'", "is not letters, digits, - or _"),
    ],
)
def test_every_mistake_is_named_by_file_table_and_key(text: str, complaint: str) -> None:
    """And, where one is near, with the valid name."""
    with pytest.raises(ConfigError) as caught:
        settings_from(text)
    assert complaint in str(caught.value)
    assert str(caught.value).startswith("kms.toml: ")
    assert "\n" not in str(caught.value)


def test_more_recipients_than_fit_into_an_envelope_are_refused() -> None:
    """At start, not at the first seal."""
    many = {f"i{number}": InstanceConfig("memory") for number in range(33)}
    with pytest.raises(ConfigError, match="at most 32 fit into an envelope"):
        Settings(many)
    thirty_two = tuple(list(many)[:32])
    assert Settings(many, EnvelopePolicy(recipients=thirty_two)).recipients == thirty_two


def test_an_empty_table_of_what_is_not_supported_is_no_error() -> None:
    """It asks for nothing."""
    assert settings_from(A + "[cache]\n[audit]\n").recipients == ("a",)


@pytest.mark.parametrize(
    "names",
    [["kms_core:kid"], [""], [f"n{number}" for number in range(17)]],
    ids=["reserved", "empty", "too many"],
)
def test_key_context_that_no_context_could_satisfy_is_refused(names: list[str]) -> None:
    """Otherwise nothing could ever be sealed."""
    with pytest.raises(ConfigError, match="key_context"):
        settings_from(f"{A}[envelope]\nkey_context = {names}\n")


def test_settings_made_by_hand_are_checked_as_well() -> None:
    """Objects are as good a source as a file."""
    with pytest.raises(ConfigError, match="settings: no instance is configured"):
        Settings({})
    with pytest.raises(ConfigError, match=r"recipients: unknown key 'c'"):
        Settings({"a": InstanceConfig("memory")}, EnvelopePolicy(recipients=("c",)))


def test_the_options_of_an_instance_are_not_shown() -> None:
    """A provider's own settings may hold what must not be logged."""
    assert "canary" not in repr(Settings({"a": InstanceConfig("memory", {"pin": "canary"})}))


# --- what only a client can tell -----------------------------------------------------------------


def memory_client(text: str, folder: Path) -> Kms:
    """A client of a file, with the plugin of the test kit."""
    path = folder / "kms.toml"
    path.write_text(text)
    return Kms.from_config(path, plugins=[found("memory", providers_module(MemoryProvider))])


def test_a_client_reads_a_file(tmp_path: Path) -> None:
    """From text to an envelope."""
    with memory_client(TWO, tmp_path) as kms:
        assert kms.open(kms.seal(b"x")) == b"x"


def test_unknown_settings_of_a_provider_are_refused_by_its_instance(tmp_path: Path) -> None:
    """Its settings class is the list of what it knows."""
    with pytest.raises(
        ConfigError, match=r"\[instances\.a\]: unknown key 'kye'; did you mean 'key'\?"
    ):
        memory_client(A + 'kye = "x"', tmp_path)


def test_a_plugin_that_is_not_there_is_named_with_the_file(tmp_path: Path) -> None:
    """For a provider and for a module of the list."""
    with pytest.raises(ConfigError, match=r"kms\.toml: \[instances\.a\] needs plugin 'azure-keyv"):
        memory_client('[instances.a]\nprovider = "azure-keyvault"\n', tmp_path)
    with pytest.raises(ConfigError, match=r"kms\.toml: plugins needs plugin 'memry', .*'memory'"):
        memory_client('plugins = ["memry"]\n' + A, tmp_path)


def test_more_domains_than_there_are_are_refused_at_start() -> None:
    """Such a configuration could never seal anything."""
    shared = service("a")
    with pytest.raises(ConfigError, match=r"min_recipients = 2: .* too few distinct domains"):
        client_for({"a": shared, "b": service("", store=shared.store)}, min_recipients=2)
    with pytest.raises(ConfigError, match="min_recipients = 2"):
        client_for(
            {"a": shared, "b": service("b")},
            instances={name: {"domain": "one"} for name in "ab"},
            min_recipients=2,
        )


def test_domains_that_are_said_to_differ_count_as_two() -> None:
    """Who configures it may know better than the provider."""
    shared = service("a")
    services = {"a": shared, "b": service("", store=shared.store)}
    instances = {name: {"domain": name} for name in "ab"}
    with client_for(services, instances=instances, min_recipients=2) as kms:
        assert kms.open(kms.seal(b"x")) == b"x"


def test_a_local_copy_does_not_count_towards_the_domains() -> None:
    """Unless it may, or is all there is."""
    services = {"a": service("a"), "disk": service("disk", protection="local")}
    with pytest.raises(ConfigError, match="local counts only alone"):
        client_for(services, min_recipients=2)
    with client_for(services, min_recipients=2, allow_weaker=True) as kms:
        assert kms.open(kms.seal(b"x")) == b"x"


class Verbose(MemoryProvider):
    """A provider with long names for its keys."""

    length = 300

    def _uri(self, *path: str) -> str:
        return super()._uri("x" * self.length, *path)


class Endless(Verbose):
    """A provider whose names fill a capsule."""

    length = 900


def many_of(kind: type[MemoryProvider], number: int) -> Kms:
    """A client with as many instances of this provider."""
    instances = {f"i{index}": InstanceConfig("memory") for index in range(number)}
    plugins = [found("memory", providers_module(kind))]
    return Kms(Settings(instances, calls=PATIENT), plugins=plugins)


def as_many_as_fit(kind: type[MemoryProvider]) -> Kms:
    """A client with the most instances of this provider that are accepted."""
    for number in range(32, 1, -1):
        try:
            return many_of(kind, number)
        except ConfigError:
            continue
    raise AssertionError("not even two fit")


def test_recipients_that_could_not_fit_into_a_capsule_are_refused() -> None:
    """Counted with the largest wraps there are."""
    with pytest.raises(ConfigError, match="so many do not fit into a capsule"):
        many_of(Endless, 32)


def test_what_was_found_to_fit_can_be_sealed_in_the_worst_case() -> None:
    """All recipients but one missing, their names listed and their room reserved."""
    with as_many_as_fit(Verbose) as kms:
        for relay in list(kms._router.relays.values())[1:]:
            relay.provider.store.disable("default")  # type: ignore[attr-defined]
        assert kms.open(kms.seal(b"x")) == b"x"


@frozen
class Timed:
    """Settings that take the core's time-out."""

    key: str = "default"
    attempt_timeout: Duration = Duration(99.0)  # noqa: RUF009
    store: Any = None


class Patient(MemoryProvider):
    """A provider that wants to know how long an attempt may take."""

    settings = Timed

    def __init__(self, settings: Timed) -> None:
        super().__init__(settings)  # type: ignore[arg-type]
        self.attempt_timeout = settings.attempt_timeout


def test_a_provider_gets_the_attempt_timeout_unless_its_table_says_otherwise() -> None:
    """One place decides; the exception is written where it is meant."""
    settings = Settings(
        {
            "a": InstanceConfig("memory"),
            "b": InstanceConfig("memory", {"attempt_timeout": "7s"}),
        },
        calls=CallPolicy(attempt_timeout=Duration(5.0)),
    )
    with Kms(settings, plugins=[found("memory", providers_module(Patient))]) as kms:
        providers: dict[str, Any] = {
            name: relay.provider for name, relay in kms._router.relays.items()
        }
    assert {name: made.attempt_timeout for name, made in providers.items()} == {"a": 5.0, "b": 7.0}


class Refusing(MemoryProvider):
    """A provider that does not like its settings."""

    def __init__(self, settings: Any) -> None:
        raise ValueError("key: must be an ARN")


def test_what_a_provider_refuses_is_named_by_its_instance() -> None:
    """The provider knows what, the core knows where."""
    settings = Settings({"mine": InstanceConfig("memory")})
    with pytest.raises(ConfigError, match=r"\[instances\.mine\].*key: must be an ARN"):
        Kms(settings, plugins=[found("memory", providers_module(Refusing))])


def test_each_instance_has_the_breaker_it_was_given() -> None:
    """One failure opens the nervous one."""
    services = {"calm": service("calm"), "nervous": service("nervous"), "well": service("well")}
    for name in ("calm", "nervous"):
        services[name].always("encrypt", raising(Unavailable, "down"))
    instances = {"nervous": {"breaker": BreakerPolicy(failure_threshold=1)}}
    with client_for(services, instances=instances) as kms:
        kms.seal(b"x")
        states = {name: state.state for name, state in kms.breakers.items()}
    assert states == {"calm": "closed", "nervous": "open", "well": "closed"}


def test_signing_alone_is_a_configuration() -> None:
    """Nobody has to be sealed to; whoever seals all the same is told why it cannot be."""
    made = settings_for({"signer": service("signer")}, instances={"signer": {"purpose": "sign"}})
    assert made.recipients == ()
    with Kms(made, plugins=entry_points()) as kms:
        assert kms.health().status == "healthy"
        for refused in (lambda: kms.seal(b"data"), lambda: kms.encrypt(b"data")):
            with pytest.raises(InvalidRequest, match="nobody to seal to"):
                refused()
