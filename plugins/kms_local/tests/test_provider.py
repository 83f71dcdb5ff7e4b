"""The provider beyond the conformance suite: URIs, versions, outages, and what stays readable."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kms_core import (
    AccessDenied,
    Ciphertext,
    Context,
    InvalidCiphertext,
    InvalidRequest,
    KeyDisabled,
    KeyNotFound,
    KMSError,
    Secret,
    Unavailable,
)
from kms_local import KeyStore, LocalProvider, LocalSettings, private_file

CONTEXT = Context({"tenant": "42", "purpose": "test"})
PLAINTEXT = os.urandom(32)
ABSENT = "local://0123456789abcdef/default/1"


def _wrap(provider: LocalProvider) -> Ciphertext:
    return provider.encrypt("default", PLAINTEXT, CONTEXT)


def _unwrap(provider: LocalProvider, sealed: Ciphertext, context: Context = CONTEXT) -> bytearray:
    key_id = provider.match(sealed.key_uri)
    assert key_id is not None
    return provider.decrypt(key_id, sealed, context)


# What a wrap is


def test_a_wrap_names_store_key_and_version(provider: LocalProvider, store: KeyStore) -> None:
    """A reader finds everything in the ciphertext: URI, version and algorithm."""
    sealed = _wrap(provider)
    store_id = store.read().store_id
    assert sealed.key_uri == f"local://{store_id}/default/1"
    assert (sealed.key_version, sealed.wrap_alg) == ("1", 0x0501)
    assert provider.match(sealed.key_uri) == "default/1"
    assert provider.domain(sealed.key_uri) == "local"


def test_a_wrap_is_aes_gcm_over_the_context(provider: LocalProvider, store: KeyStore) -> None:
    """IV, ciphertext, tag; the associated data is the canonical context and nothing more."""
    data = _wrap(provider).data
    assert len(data) == 12 + len(PLAINTEXT) + 16
    opened = store.version("default", 1).decrypt(data[:12], data[12:], CONTEXT.encoded)
    assert opened == PLAINTEXT


def test_every_altered_byte_is_noticed(provider: LocalProvider) -> None:
    """Any change to any byte of a blob is refused, and always in the same words."""
    sealed = _wrap(provider)
    messages = set()
    for position in range(len(sealed.data)):
        for bit in range(8):
            altered = bytearray(sealed.data)
            altered[position] ^= 1 << bit
            with pytest.raises(InvalidCiphertext) as caught:
                _unwrap(provider, evolve(sealed, data=bytes(altered)))
            messages.add(str(caught.value))
    assert messages == {"authentication failed"}


@pytest.mark.parametrize(
    "other",
    [
        {},
        {"tenant": "42"},
        {"tenant": "42", "purpose": "test", "more": ""},
        {"tenant": "43", "purpose": "test"},
        {"tenant": "42", "purposes": "test"},
        {"tenan": "t42", "purpose": "test"},
    ],
    ids=["none", "missing", "extra", "changed value", "changed key", "split elsewhere"],
)
def test_another_context_opens_nothing(provider: LocalProvider, other: dict[str, str]) -> None:
    """The context is authenticated with the key."""
    with pytest.raises(InvalidCiphertext):
        _unwrap(provider, _wrap(provider), Context(other))


@pytest.mark.parametrize("size", [0, 1, 28, 28 + 4097])
def test_blobs_of_impossible_length_are_refused(provider: LocalProvider, size: int) -> None:
    """Too short to hold a byte, or longer than anything that was ever wrapped."""
    sealed = evolve(_wrap(provider), data=bytes(size))
    with pytest.raises(InvalidCiphertext):
        _unwrap(provider, sealed)


@pytest.mark.parametrize("plaintext", [b"", bytes(4097), "text", None, 7, [1]])
def test_what_cannot_be_wrapped_is_the_callers_mistake(
    provider: LocalProvider, plaintext: Any
) -> None:
    """1 to 4096 bytes, and bytes only."""
    with pytest.raises(InvalidRequest):
        provider.encrypt("default", plaintext, CONTEXT)


def test_an_unwrapped_key_can_be_wiped(provider: LocalProvider) -> None:
    """Plaintext comes as a bytearray, from unwrapping and from drawing a data key alike."""
    assert type(_unwrap(provider, _wrap(provider))) is bytearray
    key = provider.generate_data_key("default", CONTEXT)
    assert type(key.plaintext) is bytearray
    assert len(key.plaintext) == 32
    assert _unwrap(provider, key.ciphertext) == key.plaintext


def test_a_ciphertext_in_a_bytearray_opens(provider: LocalProvider) -> None:
    """Callers that read into buffers need no copy."""
    sealed = _wrap(provider)
    data: Any = bytearray(sealed.data)
    assert _unwrap(provider, evolve(sealed, data=data)) == PLAINTEXT


# Which keys are ours


def test_the_key_has_a_name_before_the_file_is_read(path: Path, open_provider: Any) -> None:
    """The file's name stands in for the store's id, and is recognised later as well."""
    odd = path.with_name("clé 1%.keys")
    provider = open_provider(path=odd)
    before = provider.key_uri
    assert before == "local://file:cl%C3%A9%201%25.keys/default"
    assert provider.match(before) == "default"
    KeyStore.create(odd).close()
    sealed = _wrap(provider)
    assert provider.key_uri == sealed.key_uri.removesuffix("/1")
    assert provider.match(before) == provider.match(provider.key_uri) == "default"


def test_reading_the_uri_reads_no_file(provider: LocalProvider, path: Path) -> None:
    """The name is known without the file, also when the file has gone since."""
    _wrap(provider)
    known = provider.key_uri
    path.unlink()
    assert provider.key_uri == known


def test_other_spellings_and_other_keys_do_not_match(
    provider: LocalProvider, store: KeyStore
) -> None:
    """One spelling, this store, this key, an existing version: anything else is not ours."""
    store.add_key("other")
    store_id = store.read().store_id
    assert provider.match(f"local://{store_id}/default/1") == "default/1"
    for foreign in (
        f"local://{store_id}/default/2",
        f"local://{store_id}/default/01",
        f"local://{store_id}/default/+1",
        f"local://{store_id}/default/1/",
        f"local://{store_id}/default//1",
        f"local://{store_id}/default/\u0661",
        f"local://{store_id}/other/1",
        f"local://{store_id}/none/1",
        f"local://{store_id.upper()}/default/1",
        f"local://{store_id}/",
        f"LOCAL://{store_id}/default/1",
        "local://file:other.keys/default",
        "local://file:kms-local.keys/default/1",
        ABSENT,
        ABSENT.removesuffix("/1"),
        "aws-kms://arn:aws:kms:eu-west-1:111122223333:key/1",
        "",
    ):
        if foreign != f"local://{store_id}/default/1":
            assert provider.match(foreign) is None, foreign


def test_further_keys_open_and_do_not_wrap(store: KeyStore, open_provider: Any) -> None:
    """``also_open`` names keys of the store whose wraps are still to be read."""
    store.add_key("retired")
    sealed = open_provider(key="retired").encrypt("retired", PLAINTEXT, CONTEXT)
    assert open_provider().match(sealed.key_uri) is None
    provider = open_provider(also_open=("retired", "never-made"))
    assert provider.match(sealed.key_uri) == "retired/1"
    assert _unwrap(provider, sealed) == PLAINTEXT
    assert provider.match(sealed.key_uri.replace("retired", "never-made")) is None
    with pytest.raises(KeyNotFound):
        provider.encrypt("retired", PLAINTEXT, CONTEXT)


def test_a_ciphertext_of_another_key_is_not_opened_by_name(
    store: KeyStore, open_provider: Any
) -> None:
    """Key id and key URI have to agree, and a URI has to name a version."""
    store.add_key("other")
    provider = open_provider(also_open=("other",))
    sealed = _wrap(provider)
    assert provider.decrypt("default", sealed, CONTEXT) == PLAINTEXT
    for key_id, key_uri in (
        ("other", sealed.key_uri),
        ("other/1", sealed.key_uri),
        ("default/2", sealed.key_uri),
        ("default", provider.key_uri),
        ("default", ABSENT),
        ("default/1", sealed.key_uri.replace("default", "other")),
        ("default/1", sealed.key_uri.replace("/1", "/2")),
        ("default/1", ""),
    ):
        with pytest.raises(InvalidCiphertext):
            provider.decrypt(key_id, evolve(sealed, key_uri=key_uri), CONTEXT)


def test_another_instances_key_id_is_not_found(provider: LocalProvider) -> None:
    """Every hook that takes the configured key takes no other."""
    for use in (
        lambda: provider.encrypt("other", PLAINTEXT, CONTEXT),
        lambda: provider.generate_data_key("other", CONTEXT),
        lambda: provider.health("other"),
        lambda: provider.describe_key("other"),
        lambda: provider.rotate_key("other"),
    ):
        with pytest.raises(KeyNotFound, match="'default'"):
            use()


def test_a_key_missing_from_the_store_is_not_found(store: KeyStore, open_provider: Any) -> None:
    """A configured name that the store does not have is reported at the first call."""
    provider: LocalProvider = open_provider(key="absent")
    for use in (
        lambda: provider.encrypt("absent", PLAINTEXT, CONTEXT),
        lambda: provider.health("absent"),
        lambda: provider.rotate_key("absent"),
    ):
        with pytest.raises(KeyNotFound, match="kms local keys"):
            use()
    assert provider.match(f"local://{store.read().store_id}/absent") is None


# Versions


def test_rotation_wraps_anew_and_opens_the_old(provider: LocalProvider) -> None:
    """New wraps name the new version; old ones open; they are not interchangeable."""
    old = _wrap(provider)
    info = provider.rotate_key("default")
    new = _wrap(provider)
    assert (info.primary_version, info.versions, info.rotation) == ("2", ("1", "2"), False)
    assert (old.key_version, new.key_version) == ("1", "2")
    assert _unwrap(provider, old) == _unwrap(provider, new) == PLAINTEXT
    with pytest.raises(InvalidCiphertext, match="authentication failed"):
        _unwrap(provider, evolve(old, key_uri=new.key_uri))


def test_a_rotation_elsewhere_is_used_at_once(provider: LocalProvider, path: Path) -> None:
    """No restart is needed after ``kms local rotate``."""
    _wrap(provider)
    KeyStore(path).rotate("default")
    assert _wrap(provider).key_version == "2"


def test_versions_are_listed_oldest_first(provider: LocalProvider, store: KeyStore) -> None:
    """Ten comes after nine."""
    for _ in range(9):
        store.rotate("default")
    assert provider.describe_key("default").versions == tuple(str(n) for n in range(1, 11))


def test_a_disabled_version_is_ours_and_refuses(provider: LocalProvider, store: KeyStore) -> None:
    """It matches, so that the answer is "disabled" and not "foreign"."""
    sealed = _wrap(provider)
    store.disable("default", 1)
    assert provider.match(sealed.key_uri) == "default/1"
    with pytest.raises(KeyDisabled):
        _unwrap(provider, sealed)
    with pytest.raises(KeyDisabled):
        _wrap(provider)
    assert provider.describe_key("default").state == "disabled"
    health = provider.health("default")
    assert (health.ok, health.reason) == (False, "version 1 of key default is disabled")
    store.enable("default", 1)
    assert _unwrap(provider, sealed) == PLAINTEXT
    assert provider.health("default").ok


# Outages


@pytest.mark.parametrize("damage", ["missing", "damaged", "open to others", "directory"])
def test_an_unreadable_store_is_an_outage_and_not_foreign(
    provider: LocalProvider, path: Path, open_provider: Any, damage: str
) -> None:
    """What may be ours raises ``Unavailable``; what cannot be is still simply not ours."""
    sealed = _wrap(provider)
    never_read = open_provider()
    if damage == "open to others":
        KeyStore(path).rotate("default")
        path.chmod(0o644)
    else:
        path.unlink()
    if damage == "damaged":
        private_file.create(path, b"{}")
    elif damage == "directory":
        path.mkdir()
    for ours in (sealed.key_uri, provider.key_uri):
        with pytest.raises(Unavailable):
            provider.match(ours)
    assert provider.match(ABSENT) is None
    with pytest.raises(Unavailable):
        never_read.match(ABSENT)
    for foreign in ("", "aws-kms://x", f"{sealed.key_uri}x/y", sealed.key_uri + "\n"):
        assert provider.match(foreign) is None
        assert never_read.match(foreign) is None
    assert never_read.match(ABSENT.replace("default", "other")) is None
    for use in (
        lambda: _wrap(provider),
        lambda: provider.decrypt("default/1", sealed, CONTEXT),
        lambda: provider.health("default"),
        lambda: provider.rotate_key("default"),
    ):
        with pytest.raises(Unavailable, match=r"kms-local\.keys"):
            use()


def test_preparing_leaves_faults_to_the_call(path: Path, open_provider: Any) -> None:
    """An instance whose store is missing does not fail before it is known to matter."""
    provider = open_provider(passphrase=Secret("x"))
    provider.prepare()
    assert provider.match("local://file:kms-local.keys/default") == "default"
    KeyStore.create(path).close()
    provider.prepare()
    with pytest.raises(AccessDenied):
        _wrap(provider)


def test_preparing_pays_for_the_passphrase(
    path: Path, open_provider: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After ``prepare`` no call waits for scrypt."""
    KeyStore.create(path, passphrase=Secret("x")).close()
    provider = open_provider(passphrase=Secret("x"))
    provider.prepare()
    monkeypatch.setattr("kms_local.material.derive", None)
    assert _unwrap(provider, _wrap(provider)) == PLAINTEXT


def test_a_wrong_passphrase_is_access_denied_everywhere(path: Path, open_provider: Any) -> None:
    """Wrapping, unwrapping and health all say so; matching needs no passphrase."""
    KeyStore.create(path, passphrase=Secret("hunter2")).close()
    sealed = _wrap(open_provider(passphrase=Secret("hunter2")))
    provider = open_provider(passphrase=Secret("hunter3"))
    assert provider.match(sealed.key_uri) == "default/1"
    for use in (
        lambda: _wrap(provider),
        lambda: _unwrap(provider, sealed),
        lambda: provider.health("default"),
        lambda: provider.rotate_key("default"),
    ):
        with pytest.raises(AccessDenied) as caught:
            use()
        assert "hunter" not in str(caught.value)


# Many at once, and junk


def test_threads_and_rotations_mix(provider: LocalProvider, path: Path) -> None:
    """While keys rotate, every thread opens what it wrapped, under whatever version."""
    failures: list[BaseException] = []
    start = threading.Barrier(5)

    def work() -> None:
        try:
            start.wait(30)
            for _ in range(30):
                assert _unwrap(provider, _wrap(provider)) == PLAINTEXT
        except BaseException as exc:  # noqa: BLE001  carried to the test's own thread
            failures.append(exc)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    start.wait(30)
    for _ in range(10):
        KeyStore(path).rotate("default")
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert _wrap(provider).key_version == "11"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200), context=st.dictionaries(st.text(min_size=1), st.text()))
def test_junk_never_opens(provider: LocalProvider, data: bytes, context: dict[str, str]) -> None:
    """No bytes and no context that were not wrapped give anything but a refusal."""
    sealed = evolve(_wrap(provider), data=data)
    try:
        bound = Context(context)
    except KMSError:
        return
    with pytest.raises(InvalidCiphertext):
        _unwrap(provider, sealed, bound)


def test_closing_may_be_repeated(path: Path) -> None:
    """Closing wipes, and closing again changes nothing."""
    KeyStore.create(path, passphrase=Secret("x")).close()
    provider = LocalProvider(LocalSettings(path=path, passphrase=Secret("x")))
    _wrap(provider)
    provider.close()
    provider.close()
