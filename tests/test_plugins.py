"""Plugins are found, judged before they are used, and fail alone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from attrs import frozen

from kms_core import (
    BreakerPolicy,
    Ciphertext,
    ConfigError,
    Context,
    Health,
    InstanceConfig,
    Kms,
    PluginError,
    PluginInfo,
    PolicyDenied,
    ProviderBug,
    Settings,
    hookimpl,
)
from kms_core.plugins import Plugins
from kms_core.testing import MemoryProvider
from tests.support import (
    Events,
    client_for,
    entry_points,
    found,
    module,
    providers_module,
    service,
    settings_for,
)


@frozen
class KeySettings:
    """The least a provider can ask for."""

    key: str


class Complete:
    """A provider that keeps the contract, from which each test takes one thing away."""

    type_name = "sample"
    settings = KeySettings
    wrap_algs = frozenset({0x7FFF})
    protection = "software"
    key_uri = "sample:key"

    def __init__(self, settings: KeySettings) -> None:
        self.key = settings.key

    def match(self, key_uri: str) -> str | None:
        return self.key if key_uri == self.key_uri else None

    @hookimpl
    def encrypt(self, key_id: str, plaintext: bytes, context: Context) -> Ciphertext:
        return Ciphertext(bytes(plaintext), self.key_uri)

    @hookimpl
    def decrypt(self, key_id: str, ciphertext: Ciphertext, context: Context) -> bytes:
        return ciphertext.data

    @hookimpl
    def health(self, key_id: str) -> Health:
        return Health(ok=True)


def variant(**changes: Any) -> type[Any]:
    """``Complete`` with these attributes of its own."""
    return type("Sample", (Complete,), changes)


def state_of(plugins: Plugins, name: str) -> PluginInfo:
    """What is known of one plugin."""
    return next(info for info in plugins if info.name == name)


def provider_of(plugins: Plugins) -> type[Any]:
    """The provider class of the plugin ``sample``."""
    return plugins.require_provider("sample", "a test")


def judged(plugin: object, name: str = "sample") -> PluginInfo:
    """The state of ``plugin`` once it was loaded."""
    plugins = Plugins([found(name, plugin)])
    plugins.check()
    return state_of(plugins, name)


def judged_provider(**changes: Any) -> PluginInfo:
    """The state of a module that registers such a provider."""
    return judged(providers_module(variant(**changes)))


def never_imported() -> object:
    """An entry point that must stay untouched."""
    raise AssertionError("imported although nobody asked for it")


# --- states --------------------------------------------------------------------------------------


def test_a_plugin_nobody_named_is_available_and_not_imported() -> None:
    """Installed is not used: its code does not run."""
    plugins = Plugins([found("sample", None, load=never_imported)])
    assert list(plugins) == [PluginInfo("sample", "available", "kms-sample", "1.0")]


def test_a_plugin_that_is_needed_is_loaded_with_its_hooks_listed() -> None:
    """What it can do is known from then on."""
    plugins = Plugins([found("sample", providers_module(Complete))])
    assert provider_of(plugins) is Complete
    info = state_of(plugins, "sample")
    assert (info.state, info.distribution, info.version) == ("loaded", "kms-sample", "1.0")
    assert set(info.hooks) == {"encrypt", "decrypt", "health"}


def test_checking_imports_everything_and_needs_nothing() -> None:
    """What was only looked at stays available, its capabilities known."""
    info = judged(providers_module(Complete))
    assert info.state == "available"
    assert "decrypt" in info.hooks


def test_a_missing_plugin_of_this_project_says_what_to_install() -> None:
    """The way out is in the message."""
    plugins = Plugins([])
    with pytest.raises(PluginError, match=r"kms\.toml needs .*'aws-kms'.* pip install kms-aws"):
        plugins.require("aws-kms", "kms.toml")
    assert state_of(plugins, "aws-kms").state == "missing"


def test_a_misspelt_plugin_is_missing_with_the_nearest_name() -> None:
    """Both installed and known names are candidates."""
    plugins = Plugins([found("sample", None, load=never_imported)])
    with pytest.raises(PluginError, match="did you mean 'sample'"):
        plugins.require("sampel", "a test")
    with pytest.raises(PluginError, match="did you mean 'pkcs11'"):
        plugins.require("pkcs-11", "a test")
    with pytest.raises(PluginError, match="is it installed"):
        plugins.require("quite-another", "a test")


def test_a_plugin_for_another_contract_is_incompatible_and_not_imported() -> None:
    """The reason names both versions."""
    plugins = Plugins([found("sample", None, api_version=2, load=never_imported)])
    with pytest.raises(PluginError, match=r"incompatible: .*kms_core\.v2.*kms_core\.v1"):
        plugins.require("sample", "a test")
    info = state_of(plugins, "sample")
    assert (info.distribution, info.version) == ("kms-sample", "1.0")


def test_a_plugin_for_two_contracts_is_used_with_ours() -> None:
    """A distribution may serve an old and a new core at once."""
    newer = found("sample", None, api_version=2, load=never_imported)
    plugins = Plugins([newer, found("sample", providers_module(Complete))])
    assert provider_of(plugins) is Complete


def test_a_name_claimed_twice_is_failed_and_neither_is_imported() -> None:
    """Which of two would answer must not depend on the order of installation."""
    claims = [
        found("sample", None, distribution=name, load=never_imported) for name in ("one", "two")
    ]
    plugins = Plugins(claims)
    with pytest.raises(PluginError, match=r"failed: claimed by one 1\.0 and two 1\.0: uninstall"):
        plugins.require("sample", "a test")


def test_a_needed_provider_from_a_plugin_without_one_is_an_error() -> None:
    """An instance cannot be served by an observer."""
    plugins = Plugins([found("watcher", Events().module)])
    with pytest.raises(PluginError, match="'watcher' brings none"):
        plugins.require_provider("watcher", "kms.toml: [instances.a]")


class ImportedTwice(Exception):
    """Told by an entry point that is loaded more than once."""


def test_a_failed_plugin_is_not_tried_again() -> None:
    """Half a module executed twice would be worse than once."""
    tries: list[int] = []

    def load() -> object:
        if tries:
            raise ImportedTwice
        tries.append(1)
        raise ImportError("no libhsm.so")

    plugins = Plugins([found("sample", None, load=load)])
    for _ in range(2):
        with pytest.raises(PluginError, match="ImportError: no libhsm"):
            plugins.require("sample", "a test")


# --- isolation -----------------------------------------------------------------------------------


def raises(error: BaseException) -> Callable[[], object]:
    """An entry point whose import ends with this."""

    def load() -> object:
        raise error

    return load


@pytest.mark.parametrize(
    "error",
    [ImportError("a\nb"), SyntaxError("odd"), SystemExit(3), AssertionError(), RecursionError()],
    ids=lambda error: type(error).__name__,
)
def test_whatever_an_import_raises_stays_with_the_plugin(error: BaseException) -> None:
    """Even ``sys.exit`` at import ends nothing but that plugin, and the reason is one line."""
    plugins = Plugins(
        [
            found("broken", None, load=raises(error)),
            found("sample", providers_module(Complete)),
        ]
    )
    plugins.check()
    broken = state_of(plugins, "broken")
    assert broken.state == "failed"
    assert type(error).__name__ in broken.reason
    assert "\n" not in broken.reason
    assert provider_of(plugins) is Complete


def test_an_interrupt_during_an_import_is_the_users() -> None:
    """Ctrl-C is no fault of the plugin."""
    plugins = Plugins([found("slow", None, load=raises(KeyboardInterrupt()))])
    with pytest.raises(KeyboardInterrupt):
        plugins.require("slow", "a test")


def test_a_broken_plugin_that_is_not_needed_stops_no_client() -> None:
    """A client with other plugins starts, and says which one is broken when asked to look."""
    broken = found("broken", None, load=raises(ImportError("gone")))
    services = {"a": service("a")}
    with Kms(settings_for(services), plugins=[*entry_points(), broken]) as kms:
        assert kms.open(kms.seal(b"x")) == b"x"
        states = {info.name: info.state for info in kms.plugins}
    assert states == {"memory": "loaded", "other": "available", "broken": "available"}


def test_a_needed_plugin_that_failed_is_an_error_that_names_the_instance() -> None:
    """At start, with the reason, not at the first call."""
    settings = settings_for({"a": service("a")})
    plugins = [found("memory", None, load=raises(ImportError("no libfoo")))]
    with pytest.raises(PluginError, match=r"\[instances\.a\] needs .*'memory'.*no libfoo"):
        Kms(settings, plugins=plugins)


def test_only_what_the_configuration_names_is_imported() -> None:
    """Instances name providers, ``plugins`` names modules; nothing else is touched."""
    spare = found("spare", None, load=never_imported)
    services = {"a": service("a")}
    with Kms(settings_for(services), plugins=[*entry_points(), spare]) as kms:
        assert {info.name: info.state for info in kms.plugins}["spare"] == "available"


# --- what is refused at load ---------------------------------------------------------------------


class AsyncHook(Complete):
    @hookimpl
    async def decrypt(  # type: ignore[override]
        self, key_id: str, ciphertext: Ciphertext, context: Context
    ) -> bytes:
        return b""


class AsyncGenerator(Complete):
    @hookimpl
    async def decrypt(  # type: ignore[override]
        self, key_id: str, ciphertext: Ciphertext, context: Context
    ) -> AsyncIterator[bytes]:
        yield b""


class Generator(Complete):
    @hookimpl
    def decrypt(  # type: ignore[override]
        self, key_id: str, ciphertext: Ciphertext, context: Context
    ) -> Iterator[bytes]:
        yield b""


class WithoutContext(Complete):
    @hookimpl
    def decrypt(self, key_id: str, ciphertext: Ciphertext) -> bytes:  # type: ignore[override]
        return b""


class WithDefault(Complete):
    @hookimpl
    def decrypt(self, key_id: str, ciphertext: Ciphertext, context: Context | None = None) -> bytes:
        return b""


class KeywordOnly(Complete):
    @hookimpl
    def decrypt(  # type: ignore[override]
        self, key_id: str, ciphertext: Ciphertext, *, context: Context
    ) -> bytes:
        return b""


class Star(Complete):
    @hookimpl
    def decrypt(self, *args: Any) -> bytes:
        return b""


class DoubleStar(Complete):
    @hookimpl
    def decrypt(self, key_id: str, ciphertext: Ciphertext, context: Context, **rest: Any) -> bytes:
        return b""


class UnknownArgument(Complete):
    @hookimpl
    def decrypt(self, key_id: str, ciphertext: Ciphertext, contxt: Context) -> bytes:
        return b""


class OldStyleWrapper(Complete):
    @hookimpl(hookwrapper=True)
    def decrypt(  # type: ignore[override]
        self, key_id: str, ciphertext: Ciphertext, context: Context
    ) -> Iterator[None]:
        yield


class Misspelt(Complete):
    @hookimpl
    def decript(self, key_id: str) -> bytes:
        return b""


class Unheard(Complete):
    @hookimpl
    def zzz(self) -> bytes:
        return b""


@pytest.mark.parametrize(
    ("provider", "reason"),
    [
        (AsyncHook, "decrypt is async"),
        (AsyncGenerator, "decrypt is async"),
        (Generator, "decrypt is a generator"),
        (WithoutContext, r"WithoutContext\.decrypt must take context"),
        (WithDefault, "'context' must not have a default"),
        (KeywordOnly, "'context' must be a plain parameter"),
        (Star, "'args' must be a plain parameter"),
        (DoubleStar, "'rest' must be a plain parameter"),
        (UnknownArgument, "contxt"),
        (OldStyleWrapper, "wrapper=True"),
        (Misspelt, "^unknown hook 'decript', did you mean 'decrypt'\\?$"),
        (Unheard, "^unknown hook 'zzz'$"),
    ],
)
def test_a_hook_that_would_be_called_wrongly_is_refused(provider: type[Any], reason: str) -> None:
    """A context that is silently not passed is worse than a plugin that does not load."""
    info = judged(providers_module(provider))
    assert info.state == "failed"
    assert re.search(reason, info.reason)


@pytest.mark.parametrize("hook", ["encrypt", "decrypt", "health"])
def test_a_required_hook_must_be_there_and_marked(hook: str) -> None:
    """An unmarked method would never be called."""

    def unmarked(self: Any, key_id: str) -> None:
        """Do nothing."""

    for absent in (None, unmarked):
        info = judged_provider(**{hook: absent})
        assert info.reason == f"Sample has no {hook} marked with @hookimpl"


class NoKey:
    """Not an attrs class."""


@frozen
class Keyless:
    """Settings that name no key."""

    region: str


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"type_name": "Sample"}, "type_name must be lower-case"),
        ({"type_name": None}, "type_name must be lower-case"),
        ({"type_name": "another"}, "registers another, and its entry point says sample"),
        ({"settings": NoKey}, "settings must be an attrs class"),
        ({"settings": KeySettings("k")}, "settings must be an attrs class"),
        ({"settings": Keyless}, "must have a field 'key'"),
        ({"wrap_algs": {0x7FFF}}, "wrap_algs must be a frozenset"),
        ({"wrap_algs": frozenset()}, "wrap_algs must be a frozenset"),
        ({"protection": "vault"}, "protection must be one of hsm, software, local"),
    ],
    ids=str,
)
def test_a_provider_class_with_a_wrong_attribute_is_refused(
    changes: Mapping[str, Any], reason: str
) -> None:
    """The core reads these without asking again."""
    assert reason in judged_provider(**changes).reason


def test_a_provider_that_cannot_recognise_its_keys_is_refused() -> None:
    """Without ``match`` no recipient would ever be found again."""
    members = {key: value for key, value in vars(Complete).items() if key != "match"}
    incomplete = type("Sample", (), members)
    assert judged(providers_module(incomplete)).reason == "Sample has no method match"


def test_a_provider_may_know_its_protection_only_per_instance() -> None:
    """A key's level can depend on the settings: then it is a property."""
    assert judged_provider(protection=property(lambda self: "hsm")).state == "available"


def test_a_provider_that_is_no_class_is_refused() -> None:
    """The core makes the instances."""
    instance: Any = Complete(KeySettings("k"))
    assert "not a class" in judged(providers_module(instance)).reason


def test_two_providers_of_one_type_in_a_module_are_refused() -> None:
    """One of them would silently win."""
    plugin = providers_module(Complete, variant())
    assert "two of its provider classes" in judged(plugin).reason


def test_an_entry_point_that_is_no_module_is_refused() -> None:
    """A class or function behind the entry point is a misunderstanding worth naming."""
    assert judged(Complete).reason == "the entry point is a type, not a module"


def test_a_module_level_provider_hook_must_be_a_wrapper() -> None:
    """A second implementation beside the provider would see its plaintexts."""

    @hookimpl
    def decrypt(key_id: str) -> bytes:
        return b""

    assert "must be a wrapper" in judged(module("greedy", decrypt=decrypt)).reason


def test_a_wrapper_without_a_yield_is_refused() -> None:
    """It could not wrap anything."""

    @hookimpl(wrapper=True)
    def decrypt(key_id: str) -> bytes:
        return b""

    assert judged(module("short", decrypt=decrypt)).state == "failed"


def test_an_observer_cannot_be_a_wrapper() -> None:
    """Events are told, not passed through."""

    @hookimpl(wrapper=True)
    def kms_event(event: object) -> Iterator[None]:
        return (yield)

    assert "only watches" in judged(module("odd", kms_event=kms_event)).reason


def test_a_misspelt_module_hook_is_refused() -> None:
    """Modules are held to the same rules as classes."""

    @hookimpl
    def kms_evnet(event: object) -> None:
        """Never called."""

    assert "did you mean 'kms_event'?" in judged(module("odd", kms_evnet=kms_evnet)).reason


def test_registering_that_crashes_fails_the_plugin() -> None:
    """The hook runs under the same isolation as the import."""

    @hookimpl
    def kms_register_providers(register: object) -> None:
        raise RuntimeError("no licence")

    info = judged(module("odd", kms_register_providers=kms_register_providers))
    assert info.state == "failed"
    assert "no licence" in info.reason


class OnlyWraps(Complete):
    @hookimpl(wrapper=True)
    def decrypt(  # type: ignore[override]
        self, key_id: str, ciphertext: Ciphertext, context: Context
    ) -> Iterator[None]:
        return (yield)


def test_a_provider_hook_that_only_wraps_is_refused() -> None:
    """There would be nothing inside the wrapper to answer."""
    assert judged(providers_module(OnlyWraps)).state == "failed"


def test_a_module_cannot_answer_for_providers_under_another_name() -> None:
    """``specname`` would put a second implementation in front of every provider."""

    @hookimpl(specname="decrypt")
    def innocent(key_id: str) -> bytes:
        return b""

    assert judged(module("greedy", innocent=innocent)).state == "failed"


class AheadOfItsTime(Complete):
    @hookimpl(optionalhook=True)
    def attest_key(self, key_id: str) -> bytes:
        return b""


def test_a_hook_of_a_newer_contract_may_be_marked_optional() -> None:
    """The way of pluggy for a new plugin to run on an old core."""
    assert judged(providers_module(AheadOfItsTime)).state == "available"


def test_a_provider_may_set_its_key_uri_in_its_constructor() -> None:
    """The contract asks for an attribute, and this is the usual way to have one."""

    def construct(self: Any, settings: KeySettings) -> None:
        self.key_uri = f"sample:{settings.key}"

    members = {name: value for name, value in vars(Complete).items() if name != "key_uri"}
    late = type("Sample", (), {**members, "__init__": construct})
    assert judged(providers_module(late)).state == "available"


# --- wrappers ------------------------------------------------------------------------------------


def tracing_wrapper(name: str, trace: list[str]) -> ModuleType:
    """A wrapper that notes when it is entered and left."""

    @hookimpl(wrapper=True)
    def encrypt(instance: object) -> Iterator[None]:
        trace.append(f"enter {name}")
        try:
            return (yield)
        finally:
            trace.append(f"leave {name}")

    return module(name, encrypt=encrypt)


def test_wrappers_run_in_the_order_of_the_configuration_first_is_outermost() -> None:
    """Not in that of their names or of their installation."""
    trace: list[str] = []
    modules = {name: tracing_wrapper(name, trace) for name in ("zebra", "ant", "mule")}
    with client_for({"a": service("a")}, modules=modules) as kms:
        kms.seal(b"x")
    order = ["zebra", "ant", "mule"]
    assert trace == [
        *(f"enter {name}" for name in order),
        *(f"leave {name}" for name in reversed(order)),
    ]


def test_a_wrapper_sees_which_instance_key_and_context_a_call_is_for() -> None:
    """Enough to decide by; ``context`` is what the service will see."""
    seen: list[tuple[str, str, Context]] = []

    @hookimpl(wrapper=True)
    def decrypt(instance: Any, key_id: str, context: Context) -> Iterator[None]:
        seen.append((instance.name, key_id, context))
        return (yield)

    with client_for({"a": service("a")}, modules={"look": module("look", decrypt=decrypt)}) as kms:
        kms.decrypt(kms.encrypt(b"x", {"tenant": "42"}), {"tenant": "42"})
    assert seen == [("a", "default", Context({"tenant": "42"}))]


def refusing(hook: str) -> ModuleType:
    """A policy that refuses every call of a hook."""

    def refuse(key_id: str) -> Iterator[None]:
        raise PolicyDenied("not on a Sunday")
        yield  # pragma: no cover

    refuse.__name__ = hook
    return module("refusing", **{hook: hookimpl(wrapper=True)(refuse)})


def test_a_refusal_neither_counts_nor_asks_anybody_else() -> None:
    """What policy forbids here must not be got elsewhere, and is no fault of the service."""
    services = {"a": service("a"), "b": service("b")}
    breaker = BreakerPolicy(failure_threshold=1)
    modules = {"refusing": refusing("encrypt")}
    with client_for(services, modules=modules, breaker=breaker) as kms:
        for refused in (kms.seal, kms.encrypt):
            with pytest.raises(PolicyDenied, match="not on a Sunday"):
                refused(b"x")
        assert {name: made.count("encrypt") for name, made in services.items()} == {"a": 0, "b": 0}
        assert {state.state for state in kms.breakers.values()} == {"closed"}
        assert {state.failures_in_window for state in kms.breakers.values()} == {0}


def test_a_refusal_to_unwrap_does_not_go_on_to_the_next_recipient() -> None:
    """The second recipient is never asked."""
    services = {"a": service("a"), "b": service("b")}
    with client_for(services) as kms:
        sealed = kms.seal(b"x")
    with client_for(services, modules={"refusing": refusing("decrypt")}) as kms:
        with pytest.raises(PolicyDenied) as caught:
            kms.open(sealed)
        assert caught.value.instance == "a"
    assert [made.count("decrypt") for made in services.values()] == [0, 0]


def test_a_wrapper_that_answers_with_the_wrong_type_is_a_bug_of_the_instance() -> None:
    """What leaves the wrappers is checked, not what enters them."""

    @hookimpl(wrapper=True)
    def encrypt(key_id: str) -> Iterator[None]:
        yield
        return "done"  # type: ignore[return-value]

    with client_for({"a": service("a")}, modules={"odd": module("odd", encrypt=encrypt)}) as kms:
        with pytest.raises(ExceptionGroup) as caught:
            kms.encrypt(b"x")
        assert isinstance(caught.value.exceptions[0], ProviderBug)
        assert "returned str" in str(caught.value)


def test_a_wrapper_that_crashes_is_a_bug_of_the_instance() -> None:
    """Nothing but errors of the library leaves a call."""

    @hookimpl(wrapper=True)
    def encrypt(key_id: str) -> Iterator[None]:
        raise KeyError(key_id)
        yield  # pragma: no cover

    with client_for({"a": service("a")}, modules={"odd": module("odd", encrypt=encrypt)}) as kms:
        with pytest.raises(ExceptionGroup) as caught:
            kms.encrypt(b"x")
        assert "raised KeyError" in str(caught.value)


def test_a_wrapper_may_replace_an_error_by_an_answer() -> None:
    """A wrapper is trusted: it may also mend."""
    broken = service("a")
    broken.store.disable("default")

    @hookimpl(wrapper=True)
    def health(instance: object) -> Iterator[None]:
        yield
        return Health(ok=True, reason="overruled")  # type: ignore[return-value]

    with client_for({"a": broken}, modules={"mends": module("mends", health=health)}) as kms:
        assert kms.health().instances["a"].reason == "overruled"


def test_a_wrapper_of_a_providers_own_module_runs_as_well() -> None:
    """A module that an instance names is named by the configuration."""
    trace: list[str] = []
    wrapper = tracing_wrapper("own", trace)
    plugin = providers_module(Complete, encrypt=vars(wrapper)["encrypt"])
    plugins = Plugins([found("sample", plugin)])
    plugins.require_provider("sample", "a test")
    assert list(plugins.modules()) == ["sample"]
    assert set(state_of(plugins, "sample").hooks) == {"encrypt", "decrypt", "health"}


# --- really installed ----------------------------------------------------------------------------

THIRD_PARTY = """
import os
from pathlib import Path

from attrs import frozen
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kms_core import Ciphertext, Health, InvalidCiphertext, KeyNotFound, hookimpl


@frozen
class Settings:
    folder: Path
    key: str


class FolderProvider:
    type_name = "folder"
    settings = Settings
    wrap_algs = frozenset({0x7FFF})
    protection = "local"

    def __init__(self, settings):
        self._settings = settings

    @property
    def key_uri(self):
        return f"folder:{self._settings.key}"

    def match(self, key_uri):
        return self._settings.key if key_uri == self.key_uri else None

    @hookimpl
    def encrypt(self, key_id, plaintext, context):
        iv = os.urandom(12)
        data = self._cipher(key_id).encrypt(iv, bytes(plaintext), context.encoded)
        return Ciphertext(iv + data, self.key_uri)

    @hookimpl
    def decrypt(self, key_id, ciphertext, context):
        data = ciphertext.data
        try:
            return self._cipher(key_id).decrypt(data[:12], data[12:], context.encoded)
        except InvalidTag:
            raise InvalidCiphertext("authentication failed") from None

    @hookimpl
    def health(self, key_id):
        return Health(ok=(self._settings.folder / key_id).is_file())

    def _cipher(self, key_id):
        try:
            return AESGCM((self._settings.folder / key_id).read_bytes())
        except FileNotFoundError:
            raise KeyNotFound(f"no key {key_id}") from None


@hookimpl
def kms_register_providers(register):
    register(FolderProvider)
"""


def install(site: Path, name: str, source: str, entry_points: str) -> None:
    """Put a module and the metadata of a distribution into a folder of ``sys.path``."""
    site.mkdir(exist_ok=True)
    (site / f"{name.replace('-', '_')}.py").write_text(source)
    info = site / f"{name.replace('-', '_')}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(entry_points)


def run_python(code: str, site: Path) -> list[str]:
    """The lines that ``code`` prints in a fresh interpreter that also sees ``site``."""
    inherited = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(site), *([inherited] if inherited else [])])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": path},
        cwd=site,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_an_installed_third_party_provider_seals_and_opens(tmp_path: Path) -> None:
    """A provider of sixty lines that the core has never heard of is a configuration away."""
    assert len(THIRD_PARTY.strip().splitlines()) <= 60
    site = tmp_path / "site"
    install(site, "kms-folder", THIRD_PARTY, "[kms_core.v1]\nfolder = kms_folder\n")
    (tmp_path / "secret").write_bytes(bytes(range(32)))
    (tmp_path / "kms.toml").write_text(
        '[instances.mine]\nprovider = "folder"\nfolder = "."\nkey = "secret"\n'
    )
    code = f"""
        from kms_core import Kms
        with Kms.from_config({str(tmp_path / "kms.toml")!r}) as kms:
            sealed = kms.seal(b"hello", context={{"a": "b"}})
            print(kms.open(sealed, context={{"a": "b"}}).decode())
            print(kms.inspect(sealed).recipients[0].key_uri)
            print(kms.health().status)
            info = next(info for info in kms.plugins if info.name == "folder")
            print(info.state, info.distribution, info.version)
    """
    assert run_python(code, site) == [
        "hello",
        "folder:secret",
        "healthy",
        "loaded kms-folder 1.2",
    ]


def test_installed_entry_points_are_found_with_their_distribution(tmp_path: Path) -> None:
    """Of every contract version, and without importing anything."""
    site = tmp_path / "site"
    crash = "raise SystemExit('imported')"
    install(site, "kms-old", crash, "[kms_core.v1]\nold-one = kms_old\n")
    install(site, "kms-new", crash, "[kms_core.v2]\nnew-one = kms_new\n")
    install(site, "unrelated", crash, "[console_scripts]\nx = unrelated:main\n[kms_core]\ny = z\n")
    code = """
        from kms_core.plugins import Plugins
        for info in Plugins():
            if info.name in {"old-one", "new-one", "x", "y"}:
                print(info.name, info.state, info.distribution, info.version)
    """
    assert run_python(code, site) == [
        "new-one incompatible kms-new 1.2",
        "old-one available kms-old 1.2",
    ]


def test_an_installed_plugin_that_exits_at_import_fails_alone(tmp_path: Path) -> None:
    """Looking at all plugins survives the worst of them."""
    site = tmp_path / "site"
    install(site, "kms-exit", "raise SystemExit(7)", "[kms_core.v1]\nexits = kms_exit\n")
    install(site, "kms-folder", THIRD_PARTY, "[kms_core.v1]\nfolder = kms_folder\n")
    code = """
        from kms_core.plugins import Plugins
        plugins = Plugins()
        plugins.check()
        for info in plugins:
            if info.name in {"exits", "folder"}:
                print(info.name, info.state, info.reason)
    """
    assert run_python(code, site) == [
        "exits failed import failed: SystemExit: 7",
        "folder available ",
    ]


def test_a_distribution_seen_twice_counts_once(tmp_path: Path) -> None:
    """The one that imports would find hides the other, as for an editable install over a wheel."""
    first, second = tmp_path / "first", tmp_path / "second"
    for site in (first, second):
        install(site, "kms-folder", THIRD_PARTY, "[kms_core.v1]\nfolder = kms_folder\n")
    code = f"""
        import sys
        sys.path.append({str(second)!r})
        from kms_core.plugins import Plugins
        plugins = Plugins()
        plugins.require("folder", "a test")
        print(next(info.state for info in plugins if info.name == "folder"))
    """
    assert run_python(code, first) == ["loaded"]


def test_leftovers_of_an_uninstall_do_not_get_in_the_way(tmp_path: Path) -> None:
    """A metadata folder without metadata is no distribution."""
    site = tmp_path / "site"
    (site / "gone-1.0.dist-info").mkdir(parents=True)
    code = """
        from kms_core.plugins import Plugins
        print("gone" in [info.distribution for info in Plugins()])
    """
    assert run_python(code, site) == ["False"]


def test_malformed_entry_points_of_a_stranger_stop_nobody(tmp_path: Path) -> None:
    """What other software installs badly is no reason to lose one's own plugins."""
    site = tmp_path / "site"
    install(site, "kms-folder", THIRD_PARTY, "[kms_core.v1]\nfolder = kms_folder\n")
    install(site, "aaa-stranger", "", "[console_scripts]\nno equals sign here\n")
    code = """
        from kms_core.plugins import Plugins
        print(*[info.name for info in Plugins() if info.name == "folder"])
    """
    assert run_python(code, site) == ["folder"]


# --- what a provider does while a client is built ------------------------------------------------


class Broken(MemoryProvider):
    """A provider whose constructor fails in a way of its own."""

    def __init__(self, settings: Any) -> None:
        raise RuntimeError("this machine has no TPM")


class Uncertain(MemoryProvider):
    """A provider whose failure domain cannot be told."""

    def domain(self, key_uri: str) -> str:
        raise KeyError(key_uri)


class Unnamed(MemoryProvider):
    """A provider whose key has no name."""

    @property
    def key_uri(self) -> str:
        raise LookupError("no key")


@pytest.mark.parametrize("provider", [Broken, Uncertain, Unnamed], ids=lambda cls: cls.__name__)
def test_a_provider_that_fails_while_being_set_up_is_a_configuration_error(
    provider: type[Any],
) -> None:
    """Whoever starts the application learns which instance is to blame."""
    settings = Settings({"mine": InstanceConfig("memory")})
    with pytest.raises(ConfigError, match="mine"):
        Kms(settings, plugins=[found("memory", providers_module(provider))])
