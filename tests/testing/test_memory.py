"""The in-memory provider: it passes the suite, and its store behaves like a service."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final

import pytest

from kms_core import (
    Context,
    DeadlineExceeded,
    Duration,
    InvalidCiphertext,
    InvalidRequest,
    KeyDisabled,
    KeyNotFound,
    Provider,
    Unavailable,
)
from kms_core.testing import (
    Failure,
    MemoryProvider,
    MemorySettings,
    MemoryStore,
    Panel,
    ProviderConformance,
)
from kms_core.testing.material import KeyKind
from kms_core.testing.store import StoreError

CONTEXT = Context({"tenant": "42"})
OPERATIONS: Final = {
    "encrypt": "wrap",
    "decrypt": "unwrap",
    "generate_data_key": "generate",
    "health": "describe",
    "sign": "sign",
    "verify": "verify",
    "public_key": "public",
}
KIND_OF: Final[Mapping[str, KeyKind]] = {
    "ECDSA-SHA256": "ECDSA-P256",
    "ECDSA-SHA384": "ECDSA-P384",
    "ECDSA-SHA512": "ECDSA-P521",
    "RSA-PSS-SHA256": "RSA",
    "RSA-PKCS1-SHA512": "RSA",
    "Ed25519": "Ed25519",
    "HMAC-SHA256": "HMAC-SHA256",
    "HMAC-SHA384": "HMAC-SHA384",
    "HMAC-SHA512": "HMAC-SHA512",
}
Make = Callable[[str, KeyKind], tuple[MemoryProvider, str]]


@pytest.fixture
def store() -> MemoryStore:
    """A store with two keys."""
    return MemoryStore("unit", keys=("default", "other"))


class _Memory(ProviderConformance):
    """What all kinds of keys have in common."""

    rotates = has_sign = has_verify = has_public_key = True
    foreign_key_uri = "memory://elsewhere/default/1"
    plugin_module = "kms_core.testing.memory"
    sdk_modules = ("boto3", "hypothesis", "pytest")
    attempt_timeout = 0.1
    says_retry_after = decrypt_names_key = True
    operations: ClassVar[Mapping[str, str]] = OPERATIONS

    @pytest.fixture
    def panel(self, store: MemoryStore) -> Panel:
        return store.panel

    @pytest.fixture
    def make(self, store: MemoryStore) -> Make:
        def make(key: str, kind: KeyKind) -> tuple[MemoryProvider, str]:
            store.create(key, kind)
            return _provider(store, key, self.attempt_timeout), key

        return make


class TestMemoryProvider(_Memory):
    """An AES key, beside one key for each algorithm of signatures and MACs."""

    signs = tuple(KIND_OF)

    @pytest.fixture
    def provider(self, store: MemoryStore) -> Provider:
        return _provider(store, timeout=self.attempt_timeout)

    @pytest.fixture
    def key_id(self) -> str:
        return "default"

    @pytest.fixture
    def other_key(self, store: MemoryStore) -> tuple[Any, str]:
        return _provider(store, "other"), "other"

    @pytest.fixture
    def signing_key(self, make: Make, algorithm: str) -> tuple[Any, str]:
        return make("signing", KIND_OF[algorithm])

    @pytest.fixture
    def rotate_signing_key(self, store: MemoryStore) -> Callable[[], None]:
        return lambda: store.rotate("signing")


class TestMemoryProviderWithRsaKey(_Memory):
    """A key to which anybody can wrap."""

    wraps_offline = True
    max_plaintext = 158

    @pytest.fixture
    def wrapping(self, make: Make) -> tuple[MemoryProvider, str]:
        return make("wrapping", "RSA-OAEP")

    @pytest.fixture
    def provider(self, wrapping: tuple[MemoryProvider, str]) -> Provider:
        return wrapping[0]

    @pytest.fixture
    def key_id(self) -> str:
        return "wrapping"

    @pytest.fixture
    def other_key(self, make: Make) -> tuple[Any, str]:
        return make("foreign", "RSA-OAEP")


class TestMemoryProviderThatSigns(_Memory):
    """A key that signs and does nothing else is under test itself."""

    encrypts = False
    signs = ("ECDSA-SHA256",)

    @pytest.fixture
    def provider(self, make: Make) -> Provider:
        return make("signing", "ECDSA-P256")[0]

    @pytest.fixture
    def key_id(self) -> str:
        return "signing"


def _provider(store: MemoryStore, key: str = "default", timeout: float = 3.0) -> MemoryProvider:
    return MemoryProvider(MemorySettings(key, store, Duration(timeout)))


def test_store_outlives_its_instances(store: MemoryStore) -> None:
    """What one instance wrapped, another one on the same store unwraps."""
    sealed = _provider(store).encrypt("default", b"x", CONTEXT)
    assert _provider(store).decrypt("default", sealed, CONTEXT) == b"x"


def test_instance_without_a_store_keeps_its_own() -> None:
    """Two instances that name no store share no key."""
    one, two = MemoryProvider(MemorySettings("mine")), MemoryProvider(MemorySettings("mine"))
    assert one.match(one.encrypt("mine", b"x", CONTEXT).key_uri) == "mine"
    assert two.match(one.key_uri) is None


def test_rotation_is_seen_by_every_instance(store: MemoryStore) -> None:
    """The store, not the instance, knows which version is primary."""
    first, second = _provider(store), _provider(store)
    first.rotate_key("default")
    sealed = second.encrypt("default", b"x", CONTEXT)
    assert (sealed.key_uri, sealed.key_version) == ("memory://unit/default/2", "2")
    assert second.describe_key("default").versions == ("1", "2")


@pytest.mark.parametrize("version", ["0", "2", "01", "+1", "\u0661", ""])
def test_version_that_does_not_exist_is_nobodys(store: MemoryStore, version: str) -> None:
    """An unknown or oddly spelt version does not match and does not open."""
    provider = _provider(store)
    sealed = provider.encrypt("default", b"x", CONTEXT)
    key_uri = f"memory://unit/default/{version}"
    assert provider.match(key_uri) is None
    with pytest.raises(InvalidCiphertext):
        provider.decrypt("default", _renamed(sealed, key_uri), CONTEXT)


@pytest.mark.parametrize("version", ["0", "2", "x"])
def test_store_has_no_other_versions(store: MemoryStore, version: str) -> None:
    """The store itself refuses versions that were never made."""
    blob = _provider(store).encrypt("default", b"x", CONTEXT).data
    with pytest.raises(StoreError, match="no such version of key default") as raised:
        store.unwrap("default", version, blob, CONTEXT, timeout=1.0)
    assert raised.value.code == "NoSuchKey"


def _renamed(sealed: Any, key_uri: str) -> Any:
    return type(sealed)(sealed.data, key_uri, sealed.key_version, sealed.wrap_alg)


def test_old_blob_under_new_version_is_refused(store: MemoryStore) -> None:
    """Every version has material of its own."""
    provider = _provider(store)
    sealed = provider.encrypt("default", b"x", CONTEXT)
    store.rotate("default")
    with pytest.raises(InvalidCiphertext, match="authentication failed"):
        provider.decrypt("default", _renamed(sealed, "memory://unit/default/2"), CONTEXT)


def test_disabled_key_is_used_for_nothing(store: MemoryStore) -> None:
    """A disabled key says so in health, description and every use, until it is enabled."""
    provider = _provider(store)
    sealed = provider.encrypt("default", b"x", CONTEXT)
    store.disable("default")
    assert provider.health("default").ok is False
    assert provider.describe_key("default").state == "disabled"
    assert provider.match(sealed.key_uri) == "default"
    with pytest.raises(KeyDisabled):
        provider.encrypt("default", b"x", CONTEXT)
    with pytest.raises(KeyDisabled):
        provider.decrypt("default", sealed, CONTEXT)
    store.enable("default")
    assert provider.decrypt("default", sealed, CONTEXT) == b"x"


def test_key_that_does_not_exist_is_not_found(store: MemoryStore) -> None:
    """A key must be created before anything can be done with it."""
    provider = _provider(store, "later")
    assert provider.match("memory://unit/later/1") is None
    for use in (provider.health, provider.describe_key, provider.rotate_key):
        with pytest.raises(KeyNotFound, match="later"):
            use("later")
    store.create("later")
    assert provider.health("later").ok is True


def test_store_refuses_what_it_has_and_what_is_no_name(store: MemoryStore) -> None:
    """Creating never overwrites, and names fit into a key URI."""
    with pytest.raises(InvalidRequest, match="already has key default"):
        store.create("default")
    for name in ("", "a/b", "\u00e9", "-x", "x" * 65):
        with pytest.raises(InvalidRequest, match="1 to 64 letters"):
            store.create(name)
    with pytest.raises(InvalidRequest, match="1 to 64 letters"):
        MemoryStore("not a name")


def test_slow_store_is_given_up_after_the_timeout(store: MemoryStore) -> None:
    """An answer that comes too late is none; one that is late and in time is good."""
    store.panel.fail(Failure.SLOW, seconds=0.2)
    with pytest.raises(DeadlineExceeded, match="too slow"):
        _provider(store, timeout=0.1).health("default")
    assert _provider(store, timeout=60.0).health("default").ok is True


def test_hanging_line_breaks_when_it_is_healed(store: MemoryStore) -> None:
    """Whoever waits is told at once, and what was asked is not done later."""
    store.panel.fail(Failure.HANG)
    raised: list[Exception] = []

    def ask() -> None:
        try:
            _provider(store, timeout=60.0).rotate_key("default")
        except Unavailable as exc:
            raised.append(exc)

    caller = threading.Thread(target=ask, daemon=True)
    caller.start()
    store.panel.heal()
    caller.join(30.0)
    assert not caller.is_alive()
    assert len(raised) + len(store.versions("default")) == 2


def test_store_decides_protection_and_domain() -> None:
    """Tests of routing need services that differ."""
    hsm = _provider(MemoryStore("vault", protection="hsm"))
    assert hsm.protection == "hsm"
    assert hsm.describe_key("default").protection == "hsm"
    assert hsm.domain("memory://vault/default/1") == "memory:vault"
    assert hsm.domain(hsm.key_uri) == "memory:vault"


def test_store_shows_no_material(store: MemoryStore) -> None:
    """What is printed of a store is its name and those of its keys."""
    assert repr(store) == "MemoryStore('unit', keys=['default', 'other'])"


def test_kit_loads_pytest_only_for_the_suite() -> None:
    """Applications use the provider and the faults without any test framework."""
    code = (
        "import sys, kms_core.testing as kit; kit.MemoryProvider, kit.Faulty;"
        "assert not {'pytest', 'hypothesis'} & set(sys.modules);"
        "kit.ProviderConformance; assert 'pytest' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_kit_names_what_it_offers() -> None:
    """The lazy module lists its names, imports each, and refuses others."""
    import kms_core.testing as kit

    assert dir(kit) == kit.__all__ == sorted(kit.__all__)
    assert all(getattr(kit, name) is not None for name in kit.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = kit.Nothing
