"""The conformance suite notices what it says it does: broken providers fail where they should."""

from __future__ import annotations

import os
import pathlib
import signal
import threading
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from attrs import evolve

from kms_core import (
    Ciphertext,
    Context,
    DataKey,
    Duration,
    Health,
    InvalidCiphertext,
    InvalidRequest,
    KeyInfo,
    KeyNotFound,
    KMSError,
    Unavailable,
    hookimpl,
)
from kms_core.testing import MemoryProvider, MemorySettings, MemoryStore, ProviderConformance
from kms_core.testing.store import Answer
from kms_core.testing.suite.failing import Failing
from kms_core.testing.suite.wrapping import OTHER_CONTEXTS

pytest_plugins = ["pytester"]

TIMEOUT = Duration(0.02)  # of the in-memory store, which answers at once or not at all

TEST_FILE = """
import pytest
from kms_core.testing import ProviderConformance

class TestMutant(ProviderConformance):
    rotates = has_sign = has_verify = has_public_key = True
    fuzz_examples = 20
    thread_round_trips = 5
    foreign_key_uri = "memory://elsewhere/default/1"
    signs = ("ECDSA-SHA256", "HMAC-SHA256")
    attempt_timeout, patience = 0.02, 5.0
    says_retry_after = decrypt_names_key = True
    operations = {"encrypt": "wrap", "decrypt": "unwrap"}

    @pytest.fixture
    def other_key(self, make):
        return make("other"), "other"

    @pytest.fixture
    def signing_key(self, make, algorithm):
        return make(algorithm), algorithm

    @pytest.fixture
    def rotate_signing_key(self, store, algorithm):
        return lambda: store.rotate(algorithm)

    @pytest.fixture
    def panel(self, store):
        return store.panel
"""


class Fixtures:
    """Hands the provider class under test to the inner run."""

    def __init__(self, kind: type[Any]) -> None:
        self._kind = kind

    @pytest.fixture
    def store(self) -> MemoryStore:
        store = MemoryStore("mutant", keys=("default", "other"))
        store.create("ECDSA-SHA256", "ECDSA-P256")
        store.create("HMAC-SHA256", "HMAC-SHA256")
        return store

    @pytest.fixture
    def make(self, store: MemoryStore) -> Callable[[str], Any]:
        return lambda key: self._kind(MemorySettings(key, store, TIMEOUT))

    @pytest.fixture
    def provider(self, make: Callable[[str], Any]) -> Any:
        return make("default")

    @pytest.fixture
    def key_id(self) -> str:
        return "default"


def failures(pytester: pytest.Pytester, kind: type[Any], source: str = TEST_FILE) -> set[str]:
    """The names of the suite's tests that ``kind`` fails."""
    pytester.makepyfile(source)
    run = pytester.inline_run("-p", "no:cacheprovider", "--tb=no", plugins=[Fixtures(kind)])
    passed, _, failed = run.listoutcomes()
    assert passed, "the inner run did not get as far as the tests"
    return {report.nodeid.rpartition("::")[2].partition("[")[0] for report in failed}


MUTANTS: dict[type[Any], set[str]] = {}


def caught_by(*tests: str) -> Callable[[type[Any]], type[Any]]:
    """Register a broken provider with exactly those tests that must fail for it."""

    def register(kind: type[Any]) -> type[Any]:
        MUTANTS[kind] = {f"test_{name}" for name in tests}
        return kind

    return register


BLOB_TESTS = (
    "every_altered_byte_is_noticed",
    "damaged_blob_is_refused",
    "another_keys_blob_is_refused",
)
CONTEXT_TESTS = (
    "context_is_bound",
    "empty_context_is_bound",
    "context_is_split_unambiguously",
    "data_key_is_bound_to_its_context",
    "errors_show_no_context_values",
)


#: All that a provider fails whose hook is not what it should be, or stays in its thread.
FAULT_TESTS = tuple(
    name.removeprefix("test_") for name in vars(Failing) if name.startswith("test_")
)
NOT_WHAT_WAS_WRAPPED = (
    "rotation_is_recorded_and_old_wraps_open",
    "every_version_opens_what_it_wrapped",
)


class Rebinding(MemoryProvider):
    """Changes the context on the way in; a base for mutants that bind it wrongly."""

    def bind(self, context: Context) -> Context:
        raise AssertionError

    @hookimpl
    def encrypt(self, key_id: str, plaintext: bytes | bytearray, context: Context) -> Ciphertext:
        return super().encrypt(key_id, plaintext, self.bind(context))

    @hookimpl
    def decrypt(self, key_id: str, ciphertext: Ciphertext, context: Context) -> bytearray:
        return super().decrypt(key_id, ciphertext, self.bind(context))

    @hookimpl
    def generate_data_key(self, key_id: str, context: Context) -> DataKey:
        return super().generate_data_key(key_id, self.bind(context))


@caught_by(*CONTEXT_TESTS)
class IgnoresContext(Rebinding):
    def bind(self, context: Context) -> Context:
        return Context()


@caught_by("context_is_bound")
class IgnoresExtraPairs(Rebinding):
    def bind(self, context: Context) -> Context:
        return Context({"tenant": context["tenant"]} if "tenant" in context else context)


@caught_by("context_is_split_unambiguously")
class ConcatenatesContext(Rebinding):
    def bind(self, context: Context) -> Context:
        return Context({"all": "".join(f"{k}{context[k]}" for k in sorted(context))})


@caught_by("context_order_does_not_matter")
class BindsOrderOfContext(Rebinding):
    def bind(self, context: Context) -> Context:
        return Context({"all": repr(list(context.items()))})


@caught_by("data_key_unwraps_to_itself")
class DataKeyWithoutContext(MemoryProvider):
    @hookimpl
    def generate_data_key(self, key_id: str, context: Context) -> DataKey:
        return super().generate_data_key(key_id, Context())


@caught_by("same_input_wraps_differently")
class ConstantIv(MemoryProvider):
    """Remembers what it wrapped."""

    def __init__(self, settings: MemorySettings) -> None:
        super().__init__(settings)
        self._known: dict[tuple[bytes, bytes], Ciphertext] = {}

    @hookimpl
    def encrypt(self, key_id: str, plaintext: bytes | bytearray, context: Context) -> Ciphertext:
        sealed = super().encrypt(key_id, plaintext, context)
        known = self._known.setdefault((bytes(plaintext), context.encoded), sealed)
        return known if known.key_version == sealed.key_version else sealed


@caught_by("blob_hides_the_plaintext")
class ShowsPlaintext(MemoryProvider):
    """Appends the plaintext, and insists on getting it back."""

    @hookimpl
    def encrypt(self, key_id: str, plaintext: bytes | bytearray, context: Context) -> Ciphertext:
        sealed = super().encrypt(key_id, plaintext, context)
        return evolve(sealed, data=sealed.data + bytes(plaintext) + len(plaintext).to_bytes(2))

    @hookimpl
    def decrypt(self, key_id: str, ciphertext: Ciphertext, context: Context) -> bytearray:
        data = ciphertext.data
        if not isinstance(data, bytes):
            raise InvalidRequest("not bytes")
        end = len(data) - 2 - int.from_bytes(data[-2:])
        opened = super().decrypt(key_id, evolve(ciphertext, data=data[: max(end, 0)]), context)
        if data[end:-2] != opened:
            raise InvalidCiphertext("authentication failed")
        return opened

    @hookimpl
    def generate_data_key(self, key_id: str, context: Context) -> DataKey:
        plaintext = os.urandom(32)
        return DataKey(plaintext, self.encrypt(key_id, plaintext, context))


@caught_by(
    "same_input_wraps_differently",
    "blob_hides_the_plaintext",
    "data_key_unwraps_to_itself",
    "junk_raises_only_our_errors",
    "blob_that_is_not_bytes_is_refused",
    *BLOB_TESTS,
    *CONTEXT_TESTS,
    *FAULT_TESTS,
)
class ReturnsPlaintext(MemoryProvider):
    @hookimpl
    def encrypt(self, key_id: str, plaintext: bytes | bytearray, context: Context) -> Ciphertext:
        return evolve(super().encrypt(key_id, plaintext, context), data=bytes(plaintext))

    @hookimpl
    def decrypt(self, key_id: str, ciphertext: Ciphertext, context: Context) -> Any:
        return ciphertext.data


@caught_by(*NOT_WHAT_WAS_WRAPPED)
class DropsVersion(MemoryProvider):
    def _ciphertext(self, answer: Answer) -> Ciphertext:
        return evolve(super()._ciphertext(answer), key_version=None)


@caught_by("rotation_is_recorded_and_old_wraps_open")
class OpensWithNewestVersion(MemoryProvider):
    @hookimpl
    def decrypt(self, key_id: str, ciphertext: Ciphertext, context: Context) -> bytearray:
        newest = f"{self.key_uri}/{self.store.versions(key_id)[-1]}"
        return super().decrypt(key_id, evolve(ciphertext, key_uri=newest), context)


class Refusing(MemoryProvider):
    """Does something else when a blob does not open; a base for mutants that do it wrongly."""

    def refuse(self, error: KMSError) -> bytearray:
        raise AssertionError

    @hookimpl
    def decrypt(self, key_id: str, ciphertext: Ciphertext, context: Context) -> bytearray:
        try:
            return super().decrypt(key_id, ciphertext, context)
        except InvalidCiphertext as exc:
            return self.refuse(exc)


@caught_by("junk_raises_only_our_errors", *BLOB_TESTS, *CONTEXT_TESTS)
class LetsOthersErrorsOut(Refusing):
    def refuse(self, error: KMSError) -> bytearray:
        raise ValueError("tag mismatch") from error


@caught_by(*BLOB_TESTS, *CONTEXT_TESTS)
class TakesForgeryForOutage(Refusing):
    def refuse(self, error: KMSError) -> bytearray:
        raise Unavailable("the service refused") from error


@caught_by("junk_raises_only_our_errors", *BLOB_TESTS, *CONTEXT_TESTS)
class AcceptsJunk(Refusing):
    def refuse(self, error: KMSError) -> bytearray:
        return bytearray(32)


@caught_by("damaged_blob_is_refused")
class AcceptsTrailingBytes(MemoryProvider):
    @hookimpl
    def decrypt(self, key_id: str, ciphertext: Ciphertext, context: Context) -> bytearray:
        try:
            return super().decrypt(key_id, ciphertext, context)
        except InvalidCiphertext:
            cut = evolve(ciphertext, data=ciphertext.data[:60])
            return super().decrypt(key_id, cut, context)


@caught_by("every_altered_byte_is_noticed", "failing_call_is_one_request")
class ChecksShortTag(MemoryProvider):
    """Accepts any last byte."""

    @hookimpl
    def decrypt(self, key_id: str, ciphertext: Ciphertext, context: Context) -> bytearray:
        data = ciphertext.data
        if isinstance(data, bytes) and len(data) == 60:
            for last in range(256):
                trial = evolve(ciphertext, data=data[:-1] + bytes((last,)))
                try:
                    return super().decrypt(key_id, trial, context)
                except InvalidCiphertext:
                    continue
        return super().decrypt(key_id, ciphertext, context)


@caught_by("every_altered_byte_is_noticed")
class CarriesIdleBytes(MemoryProvider):
    """Blobs so long that the suite alters both ends only; it is the front that nobody checks."""

    def _ciphertext(self, answer: Answer) -> Ciphertext:
        sealed = super()._ciphertext(answer)
        return evolve(sealed, data=bytes(700) + sealed.data)

    @hookimpl
    def decrypt(self, key_id: str, ciphertext: Ciphertext, context: Context) -> bytearray:
        if not isinstance(ciphertext.data, bytes):
            raise InvalidRequest("not bytes")
        return super().decrypt(key_id, evolve(ciphertext, data=ciphertext.data[700:]), context)


@caught_by("another_keys_blob_is_refused")
class OneKeyForAll(MemoryProvider):
    """Tries every key that it can find."""

    @hookimpl
    def decrypt(self, key_id: str, ciphertext: Ciphertext, context: Context) -> bytearray:
        try:
            return super().decrypt(key_id, ciphertext, context)
        except InvalidCiphertext:
            other = evolve(ciphertext, key_uri="memory://mutant/other/1")
            return super().decrypt("other", other, context)


@caught_by("bytearray_is_taken_and_left_alone")
class WipesCallersBuffer(MemoryProvider):
    @hookimpl
    def encrypt(self, key_id: str, plaintext: bytes | bytearray, context: Context) -> Ciphertext:
        sealed = super().encrypt(key_id, plaintext, context)
        if isinstance(plaintext, bytearray):
            plaintext[:] = bytes(len(plaintext))
        return sealed


@caught_by("bytearray_is_taken_and_left_alone")
class TakesBytesOnly(MemoryProvider):
    @hookimpl
    def encrypt(self, key_id: str, plaintext: bytes | bytearray, context: Context) -> Ciphertext:
        if not isinstance(plaintext, bytes):
            raise InvalidRequest("a plaintext is bytes")
        return super().encrypt(key_id, plaintext, context)


@caught_by("plaintext_that_is_not_bytes_is_refused", "errors_show_no_plaintext")
class EncodesText(MemoryProvider):
    @hookimpl
    def encrypt(self, key_id: str, plaintext: Any, context: Context) -> Ciphertext:
        encoded = plaintext.encode() if isinstance(plaintext, str) else plaintext
        return super().encrypt(key_id, encoded, context)


@caught_by("errors_show_no_plaintext")
class RepeatsPlaintext(MemoryProvider):
    @hookimpl
    def encrypt(self, key_id: str, plaintext: Any, context: Context) -> Ciphertext:
        try:
            return super().encrypt(key_id, plaintext, context)
        except InvalidRequest:
            raise InvalidRequest(f"cannot wrap {plaintext!r}") from None


@caught_by("errors_show_no_context_values")
class RepeatsContext(MemoryProvider):
    @hookimpl
    def decrypt(self, key_id: str, ciphertext: Ciphertext, context: Context) -> bytearray:
        try:
            return super().decrypt(key_id, ciphertext, context)
        except InvalidCiphertext:
            raise InvalidCiphertext(f"does not open with {dict(context)}") from None


@caught_by("empty_plaintext_is_refused", "too_long_plaintext_is_refused")
class HasNoBounds(MemoryProvider):
    @hookimpl
    def encrypt(self, key_id: str, plaintext: bytes | bytearray, context: Context) -> Ciphertext:
        if isinstance(plaintext, bytes) and len(plaintext) in {0, 4097}:
            return super().encrypt(key_id, b"x", context)
        return super().encrypt(key_id, plaintext, context)


@caught_by("round_trip")
class LosesLeadingZeros(MemoryProvider):
    @hookimpl
    def encrypt(self, key_id: str, plaintext: bytes | bytearray, context: Context) -> Ciphertext:
        if isinstance(plaintext, bytes) and len(plaintext) == 64:
            return super().encrypt(key_id, plaintext[1:], context)
        return super().encrypt(key_id, plaintext, context)


@caught_by(
    "ciphertext_says_who_made_it",
    "data_key_unwraps_to_itself",
    "rotation_is_recorded_and_old_wraps_open",
)
class UndeclaredAlgorithm(MemoryProvider):
    wrap_algs = frozenset({0x0501})


@caught_by("rotation_is_recorded_and_old_wraps_open", "ciphertext_says_who_made_it")
class NumericVersion(MemoryProvider):
    @hookimpl
    def encrypt(self, key_id: str, plaintext: bytes | bytearray, context: Context) -> Any:
        sealed: Any = super().encrypt(key_id, plaintext, context)
        return evolve(sealed, key_version=int(sealed.key_version))


@caught_by(
    "key_uri_is_read_without_io",
    "ciphertext_says_who_made_it",
    "data_key_unwraps_to_itself",
    "key_is_described",
    "rotation_is_recorded_and_old_wraps_open",
    "signature_says_who_made_it",
    "public_key_says_what_it_is",
)
class PutsSpaceIntoUris(MemoryProvider):
    def _uri(self, *path: str) -> str:
        return super()._uri(*path).replace("//", "// ")


@caught_by(
    "foreign_key_does_not_match",
    "mangled_key_uri_does_not_match",
    "match_never_raises",
    "public_key_is_that_of_the_version",
)
class ClaimsWholeScheme(MemoryProvider):
    def match(self, key_uri: str) -> str | None:
        ours = key_uri.startswith("memory:") and not key_uri.endswith("/other/1")
        return self._key if ours else None


@caught_by("another_keys_blob_is_refused", "foreign_key_does_not_match")
class ClaimsOtherKeys(MemoryProvider):
    def match(self, key_uri: str) -> str | None:
        known = key_uri in {"memory://mutant/other/1", "memory://elsewhere/default/1"}
        return self._key if known else super().match(key_uri)


@caught_by(
    "foreign_key_does_not_match",
    "other_scheme_does_not_match",
    "mangled_key_uri_does_not_match",
    "another_keys_blob_is_refused",
    "match_never_raises",
)
class RaisesForForeignKeys(MemoryProvider):
    def match(self, key_uri: str) -> str | None:
        matched = super().match(key_uri)
        if matched is None:
            raise KeyNotFound("not mine")
        return matched


@caught_by("other_scheme_does_not_match", "mangled_key_uri_does_not_match")
class MatchesPathOnly(MemoryProvider):
    def match(self, key_uri: str) -> str | None:
        return super().match("memory:" + key_uri.partition(":")[2])


@caught_by("configured_key_matches", "key_is_described")
class ForgetsConfiguredName(MemoryProvider):
    def match(self, key_uri: str) -> str | None:
        return None if key_uri == self.key_uri else super().match(key_uri)


@caught_by("hook_arguments_are_plain")
class DefaultContext(MemoryProvider):
    @hookimpl
    def decrypt(
        self, key_id: str, ciphertext: Ciphertext, context: Context = OTHER_CONTEXTS["empty"]
    ) -> bytearray:
        return super().decrypt(key_id, ciphertext, context)


@caught_by("hook_arguments_are_plain")
class KeywordOnlyContext(MemoryProvider):
    @hookimpl
    def decrypt(  # type: ignore[override]
        self, key_id: str, ciphertext: Ciphertext, *, context: Context
    ) -> bytearray:
        return super().decrypt(key_id, ciphertext, context)


@caught_by("hooks_name_every_argument")
class OmitsKey(MemoryProvider):
    @hookimpl
    def health(self) -> Health:  # type: ignore[override]
        return super().health(self._key)


@caught_by("hooks_are_those_of_the_contract")
class MisspeltHook(MemoryProvider):
    @hookimpl
    def encypt(self, key_id: str) -> None: ...


@caught_by("hooks_are_plain_functions", "health_is_ok", *FAULT_TESTS)
class AsyncHook(MemoryProvider):
    @hookimpl
    async def health(self, key_id: str) -> Health:  # type: ignore[override]
        return Health(ok=True)


@caught_by("required_hooks_are_there")
class UnmarkedHook(MemoryProvider):
    def health(self, key_id: str) -> Health:
        return super().health(key_id)


@caught_by("optional_hooks_are_declared", *NOT_WHAT_WAS_WRAPPED)
class CannotRotate(MemoryProvider):
    rotate_key = None  # type: ignore[assignment]


@caught_by(
    "type_name_is_a_lower_case_word",
    "key_uri_is_read_without_io",
    "ciphertext_says_who_made_it",
    "data_key_unwraps_to_itself",
    "key_is_described",
    "rotation_is_recorded_and_old_wraps_open",
    "signature_says_who_made_it",
    "public_key_says_what_it_is",
)
class NamedInCapitals(MemoryProvider):
    type_name = "Memory"


@caught_by("settings_is_an_attrs_class_with_a_key")
class SettingsWithoutKey(MemoryProvider):
    settings = MemoryStore


@caught_by("wrap_algs_are_declared_numbers")
class MutableAlgorithms(MemoryProvider):
    wrap_algs = {0x7FFF}  # type: ignore[assignment]  # noqa: RUF012


@caught_by("protection_is_a_known_level", "key_is_described")
class UnknownProtection(MemoryProvider):
    def __init__(self, settings: MemorySettings) -> None:
        super().__init__(settings)
        self.protection = "cloud"  # type: ignore[assignment]


@caught_by("key_uri_is_read_without_io")
class ReadsFileForItsName(MemoryProvider):
    @property
    def key_uri(self) -> str:
        with pathlib.Path(os.devnull).open():
            return super().key_uri


@caught_by("domain_is_a_pure_name")
class RandomDomain(MemoryProvider):
    def domain(self, key_uri: str) -> str:
        return str(uuid.uuid4())


@caught_by("data_key_unwraps_to_itself")
class ShortDataKey(MemoryProvider):
    @hookimpl
    def generate_data_key(self, key_id: str, context: Context) -> DataKey:
        plaintext = os.urandom(16)
        return DataKey(plaintext, self.encrypt(key_id, plaintext, context))


@caught_by("data_key_unwraps_to_itself")
class SameDataKey(MemoryProvider):
    @hookimpl
    def generate_data_key(self, key_id: str, context: Context) -> DataKey:
        return DataKey(bytes(32), self.encrypt(key_id, bytes(32), context))


@caught_by("health_is_ok")
class AlwaysUnwell(MemoryProvider):
    @hookimpl
    def health(self, key_id: str) -> Health:
        return evolve(super().health(key_id), ok=False)


@caught_by("key_is_described")
class DescribesAnother(MemoryProvider):
    @hookimpl
    def describe_key(self, key_id: str) -> KeyInfo:
        return evolve(super().describe_key(key_id), key_uri="memory://elsewhere/default")


@caught_by("threads_share_an_instance", *FAULT_TESTS)
class BoundToItsThread(MemoryProvider):
    def __init__(self, settings: MemorySettings) -> None:
        super().__init__(settings)
        self._owner = threading.get_ident()

    @hookimpl
    def encrypt(self, key_id: str, plaintext: bytes | bytearray, context: Context) -> Ciphertext:
        if threading.get_ident() != self._owner:
            raise Unavailable("this session belongs to another thread")
        return super().encrypt(key_id, plaintext, context)


@caught_by("forked_child_goes_on")
class BoundToItsProcess(MemoryProvider):
    def __init__(self, settings: MemorySettings) -> None:
        super().__init__(settings)
        self._owner = os.getpid()

    @hookimpl
    def decrypt(self, key_id: str, ciphertext: Ciphertext, context: Context) -> bytearray:
        if os.getpid() != self._owner:
            raise Unavailable("this connection belongs to another process")
        return super().decrypt(key_id, ciphertext, context)


@caught_by("forked_child_goes_on")
class DiesInItsChild(BoundToItsProcess):
    @hookimpl
    def decrypt(self, key_id: str, ciphertext: Ciphertext, context: Context) -> bytearray:
        if os.getpid() != self._owner:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().decrypt(key_id, ciphertext, context)


@caught_by("close_may_be_repeated")
class ClosesOnce(MemoryProvider):
    closed = False

    def close(self) -> None:
        if self.closed:
            raise Unavailable("already closed")
        self.closed = True


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda kind: kind.__name__)
def test_broken_provider_fails_where_it_is_broken(
    pytester: pytest.Pytester, mutant: type[Any]
) -> None:
    """A broken provider fails the tests that name its defect, and no others."""
    assert failures(pytester, mutant) == MUTANTS[mutant]


class DoesNotKnowItsOwn(MemoryProvider):
    """Wraps, and then takes none of its wraps for its own."""

    def match(self, key_uri: str) -> str | None:
        return self._key if key_uri == self.key_uri else None


def test_provider_that_does_not_know_its_own_wraps_fails(pytester: pytest.Pytester) -> None:
    """Without ``match`` nothing opens, and one test says why."""
    failed = failures(pytester, DoesNotKnowItsOwn)
    assert {"test_ciphertext_matches_its_maker", "test_round_trip"} <= failed


class ReturnsBareBlob(MemoryProvider):
    """Forgets that a wrap is more than its bytes."""

    @hookimpl
    def encrypt(self, key_id: str, plaintext: bytes | bytearray, context: Context) -> Any:
        return super().encrypt(key_id, plaintext, context).data


def test_answer_of_the_wrong_type_fails(pytester: pytest.Pytester) -> None:
    """What is not a ``Ciphertext`` is told apart at the first look."""
    failed = failures(pytester, ReturnsBareBlob)
    assert {"test_ciphertext_says_who_made_it", "test_round_trip"} <= failed


def test_working_provider_fails_nothing(pytester: pytest.Pytester) -> None:
    """The mutants' common ancestor passes the same file."""
    assert failures(pytester, MemoryProvider) == set()


PLUGIN = """
import {sdk}
from kms_core import hookimpl

@hookimpl
def kms_register_providers(register):
    register({provider})
"""
PLUGIN_TEST_FILE = f"""{TEST_FILE}
    plugin_module = "acme_plugin"
    sdk_modules = ("acme_sdk",)
"""


@pytest.mark.parametrize(
    ("sdk", "provider", "expected"),
    [
        ("json", "type(None)", {"test_plugin_registers_the_class"}),
        ("acme_sdk", "mutant", {"test_plugin_import_loads_no_sdk"}),
    ],
    ids=["registers another class", "imports its SDK"],
)
def test_broken_plugin_module_fails(
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    sdk: str,
    provider: str,
    expected: set[str],
) -> None:
    """A plugin module registers the class under test, and leaves the SDK alone."""
    source = PLUGIN.format(sdk=sdk, provider=provider)
    source = source.replace(
        "register(mutant)",
        "from kms_core.testing import MemoryProvider; register(MemoryProvider)",
    )
    pytester.makepyfile(acme_plugin=source, acme_sdk="")
    pytester.syspathinsert()
    monkeypatch.setenv("PYTHONPATH", str(pytester.path))
    assert failures(pytester, MemoryProvider, PLUGIN_TEST_FILE) == expected


def test_bounds_that_exclude_data_keys_fail(pytester: pytest.Pytester) -> None:
    """A provider cannot be declared unfit for its purpose."""
    source = TEST_FILE + "\n    min_plaintext = 33\n"
    assert "test_data_keys_fit" in failures(pytester, MemoryProvider, source)


def test_every_test_of_the_suite_has_caught_something() -> None:
    """A test that no broken provider fails may be checking nothing."""
    elsewhere = {
        "test_ciphertext_matches_its_maker",
        "test_data_keys_fit",
        "test_plugin_import_loads_no_sdk",
        "test_plugin_registers_the_class",
    }
    suite = {name for name in dir(ProviderConformance) if name.startswith("test_")}
    assert elsewhere.union(*MUTANTS.values()) == suite


def reason_of(report: Any) -> str:
    """Why a test was skipped: pytest keeps it behind file and line."""
    _, _, reason = report.longrepr
    return str(reason).removeprefix("Skipped: ")


def test_every_skip_names_what_it_rests_on(pytester: pytest.Pytester) -> None:
    """With nothing declared but absences, each skip says which declaration made it."""
    source = (
        TEST_FILE.replace("rotates = True", "rotates = False").partition("    @pytest.fixture")[0]
        + """
    foreign_key_uri = None
    binds_context = splits_context = has_data_key = describes = survives_fork = False
    min_plaintext, max_plaintext = 2, 63
"""
    )
    pytester.makepyfile(source)
    run = pytester.inline_run(
        "-p", "no:cacheprovider", "--tb=no", plugins=[Fixtures(MemoryProvider)]
    )
    _, skipped, _ = run.listoutcomes()
    reasons = {reason_of(report) for report in skipped}
    assert reasons == {
        "declared: binds_context = False",
        "declared: describes = False",
        "declared: foreign_key_uri = None",
        "declared: has_data_key = False",
        "declared: min_plaintext and max_plaintext exclude 1 bytes",
        "declared: min_plaintext and max_plaintext exclude 64 bytes",
        "declared: no close() method",
        "declared: plugin_module = None",
        "declared: rotates = False",
        "declared: survives_fork = False",
        "declared: the fixture other_key returns None",
    }
