"""The conformance suite notices what it says it does: broken providers fail where they should."""

from __future__ import annotations

import hashlib
import os
import pathlib
import signal
import threading
import uuid
import zlib
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
from attrs import evolve
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from kms_core import (
    MAC_ALGORITHMS,
    SIGNATURE_ALGORITHMS,
    AccessDenied,
    Ciphertext,
    Context,
    DataKey,
    Duration,
    Health,
    InvalidCiphertext,
    InvalidRequest,
    KeyDisabled,
    KeyInfo,
    KeyNotFound,
    KMSError,
    PublicKey,
    Signature,
    Throttled,
    Unavailable,
    UnsupportedOperation,
    hookimpl,
)
from kms_core.testing import (
    Failure,
    MemoryProvider,
    MemorySettings,
    MemoryStore,
    ProviderConformance,
)
from kms_core.testing.checks import CONTEXT
from kms_core.testing.store import Answer, StoreError
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


def failures(
    pytester: pytest.Pytester, kind: type[Any], source: str = TEST_FILE, *options: str
) -> set[str]:
    """The names of the suite's tests that ``kind`` fails."""
    pytester.makepyfile(source)
    run = pytester.inline_run(
        "-p", "no:cacheprovider", "--tb=no", *options, plugins=[Fixtures(kind)]
    )
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
VERSION_TESTS = (
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
    *(
        name
        for name in FAULT_TESTS
        if name
        not in {
            "service_errors_show_no_secret",
            "service_that_recovers_is_used_again",
            "slow_answer_is_right_or_late",
        }
    ),
)
class ReturnsPlaintext(MemoryProvider):
    @hookimpl
    def encrypt(self, key_id: str, plaintext: bytes | bytearray, context: Context) -> Ciphertext:
        return evolve(super().encrypt(key_id, plaintext, context), data=bytes(plaintext))

    @hookimpl
    def decrypt(self, key_id: str, ciphertext: Ciphertext, context: Context) -> Any:
        return ciphertext.data


@caught_by(*VERSION_TESTS)
class DropsVersion(MemoryProvider):
    def _ciphertext(self, answer: Answer) -> Ciphertext:
        return evolve(super()._ciphertext(answer), key_version=None)


@caught_by(*VERSION_TESTS)
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


@caught_by("optional_hooks_are_declared", *VERSION_TESTS)
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


@caught_by("threads_share_an_instance")
class OneThreadAtATime(MemoryProvider):
    def __init__(self, settings: MemorySettings) -> None:
        super().__init__(settings)
        self._users: set[threading.Thread] = set()

    @hookimpl
    def encrypt(self, key_id: str, plaintext: bytes | bytearray, context: Context) -> Ciphertext:
        if threading.current_thread() is not threading.main_thread():
            self._users = {user for user in self._users if user.is_alive()}
            self._users.add(threading.current_thread())
        if len(self._users) > 1:
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


# --- versions, buffers ---------------------------------------------------------------------------


@caught_by("every_version_opens_what_it_wrapped")
class KeepsTwoVersions(MemoryProvider):
    @hookimpl
    def decrypt(self, key_id: str, ciphertext: Ciphertext, context: Context) -> bytearray:
        if ciphertext.key_version == "1" and len(self.store.versions(self._key)) == 3:
            raise KeyNotFound("this version is no longer known")
        return super().decrypt(key_id, ciphertext, context)


@caught_by("memoryview_is_taken_or_refused")
class TakesViewsOfBytes(MemoryProvider):
    @hookimpl
    def encrypt(self, key_id: str, plaintext: Any, context: Context) -> Ciphertext:
        if isinstance(plaintext, memoryview) and isinstance(plaintext.obj, bytes):
            plaintext = bytes(plaintext)
        return super().encrypt(key_id, plaintext, context)


# --- signatures ----------------------------------------------------------------------------------


@caught_by("signature_says_who_made_it")
class ClaimsAnInstance(MemoryProvider):
    @hookimpl
    def sign(self, key_id: str, data: bytes, algorithm: str) -> Signature:
        return evolve(super().sign(key_id, data, algorithm), instance="mine")


@caught_by("signature_verifies_here", "public_key_is_that_of_the_version")
class SignsDigestOfDigest(MemoryProvider):
    @hookimpl
    def sign(self, key_id: str, data: bytes, algorithm: str) -> Signature:
        return super().sign(key_id, _digest(data), algorithm)

    @hookimpl
    def verify(self, key_id: str, data: bytes, signature: Signature, algorithm: str) -> bool:
        return super().verify(key_id, _digest(data), signature, algorithm)


def _digest(data: Any) -> Any:
    return hashlib.sha256(data).digest() if isinstance(data, bytes) else data


@caught_by("ecdsa_signature_is_der", "signature_verifies_here", "public_key_is_that_of_the_version")
class SpeaksRawEcdsa(MemoryProvider):
    @hookimpl
    def sign(self, key_id: str, data: bytes, algorithm: str) -> Signature:
        signature = super().sign(key_id, data, algorithm)
        if not algorithm.startswith("ECDSA"):
            return signature
        raw = b"".join(number.to_bytes(32) for number in decode_dss_signature(signature.data))
        return evolve(signature, data=raw)

    @hookimpl
    def verify(self, key_id: str, data: bytes, signature: Signature, algorithm: str) -> bool:
        raw = signature.data
        if algorithm.startswith("ECDSA"):
            if len(raw) != 64:
                return False
            r, s = int.from_bytes(raw[:32]), int.from_bytes(raw[32:])
            signature = evolve(signature, data=encode_dss_signature(r, s))
        return super().verify(key_id, data, signature, algorithm)


@caught_by(
    "every_altered_byte_of_a_signature_is_noticed",
    "damaged_signature_is_false",
    "signature_of_another_message_is_false",
    "signature_by_another_key_is_false",
    "signature_under_another_algorithm_is_refused",
    "verified_message_that_is_not_bytes_is_refused",
    "old_signatures_hold_after_rotation",
)
class AcceptsEverySignature(MemoryProvider):
    @hookimpl
    def verify(self, key_id: str, data: bytes, signature: Signature, algorithm: str) -> bool:
        self._ask(self.store.verify, self._key, "1", b"", b"", self._key)
        return True


@caught_by("every_altered_byte_of_a_signature_is_noticed")
class ChecksFrontOfMac(MemoryProvider):
    @hookimpl
    def verify(self, key_id: str, data: bytes, signature: Signature, algorithm: str) -> bool:
        if super().verify(key_id, data, signature, algorithm):
            return True
        if not algorithm.startswith("HMAC") or len(signature.data) != 32:
            return False
        return self.sign(key_id, data, algorithm).data[:31] == signature.data[:31]


@caught_by("damaged_signature_is_false")
class RaisesForCutSignatures(MemoryProvider):
    @hookimpl
    def verify(self, key_id: str, data: bytes, signature: Signature, algorithm: str) -> bool:
        if not signature.data:
            raise InvalidRequest("a signature is not empty")
        return super().verify(key_id, data, signature, algorithm)


@caught_by("signature_by_another_key_is_false")
class TrustsStrangers(MemoryProvider):
    """Accepts any ECDSA signature that is well-formed and unlike all of its own."""

    def __init__(self, settings: MemorySettings) -> None:
        super().__init__(settings)
        self._made: list[int] = []

    @hookimpl
    def sign(self, key_id: str, data: bytes, algorithm: str) -> Signature:
        signature = super().sign(key_id, data, algorithm)
        if algorithm.startswith("ECDSA"):
            self._made.append(decode_dss_signature(signature.data)[0])
        return signature

    @hookimpl
    def verify(self, key_id: str, data: bytes, signature: Signature, algorithm: str) -> bool:
        if super().verify(key_id, data, signature, algorithm):
            return True
        try:
            r, _ = decode_dss_signature(signature.data)
        except ValueError:
            return False
        return all((r ^ made).bit_count() > 32 for made in self._made)


@caught_by("signature_is_accepted")
class RefusesEmptyMessages(MemoryProvider):
    @hookimpl
    def verify(self, key_id: str, data: bytes, signature: Signature, algorithm: str) -> bool:
        return super().verify(key_id, data, signature, algorithm) and bool(data)


class Preparing(MemoryProvider):
    """Changes the message before it is signed or verified; a base for mutants."""

    def prepared(self, data: Any) -> Any:
        raise AssertionError

    @hookimpl
    def sign(self, key_id: str, data: bytes, algorithm: str) -> Signature:
        return super().sign(key_id, self.prepared(data), algorithm)

    @hookimpl
    def verify(self, key_id: str, data: bytes, signature: Signature, algorithm: str) -> bool:
        return super().verify(key_id, self.prepared(data), signature, algorithm)


@caught_by("signature_of_another_message_is_false")
class StripsZeros(Preparing):
    def prepared(self, data: Any) -> Any:
        return data.rstrip(b"\0") if isinstance(data, bytes) else data


@caught_by(
    "message_that_is_not_bytes_is_refused",
    "verified_message_that_is_not_bytes_is_refused",
    "signing_errors_show_no_message",
)
class EncodesMessages(Preparing):
    def prepared(self, data: Any) -> Any:
        return data.encode() if isinstance(data, str) else data


@caught_by("signature_under_another_algorithm_is_refused")
class VerifiesAsItSigns(MemoryProvider):
    """The test names each key for the algorithm that it has."""

    @hookimpl
    def verify(self, key_id: str, data: bytes, signature: Signature, algorithm: str) -> bool:
        return super().verify(key_id, data, signature, self._key)


@caught_by("unknown_algorithm_is_refused", "signing_errors_show_no_message")
class SignsSomehow(MemoryProvider):
    @hookimpl
    def sign(self, key_id: str, data: bytes, algorithm: str) -> Signature:
        known = algorithm in SIGNATURE_ALGORITHMS | MAC_ALGORITHMS
        return super().sign(key_id, data, algorithm if known else self._key)


@caught_by("algorithm_of_another_kind_of_key_is_refused")
class SignsAsItCan(MemoryProvider):
    @hookimpl
    def sign(self, key_id: str, data: bytes, algorithm: str) -> Signature:
        known = algorithm in SIGNATURE_ALGORITHMS | MAC_ALGORITHMS
        return super().sign(key_id, data, self._key if known else algorithm)


@caught_by("signing_errors_show_no_message")
class RepeatsMessage(MemoryProvider):
    @hookimpl
    def sign(self, key_id: str, data: bytes, algorithm: str) -> Signature:
        try:
            return super().sign(key_id, data, algorithm)
        except InvalidRequest:
            raise InvalidRequest(f"cannot sign {data!r}") from None


@caught_by("old_signatures_hold_after_rotation")
class VerifiesWithNewestVersion(MemoryProvider):
    @hookimpl
    def verify(self, key_id: str, data: bytes, signature: Signature, algorithm: str) -> bool:
        newest = self.store.versions(self._key)[-1]
        renamed = evolve(signature, key_uri=f"{self.key_uri}/{newest}")
        return super().verify(self._key, data, renamed, algorithm)


# --- public keys ---------------------------------------------------------------------------------


@caught_by("public_key_is_that_of_the_version")
class TellsNewestPublicKey(MemoryProvider):
    @hookimpl
    def public_key(self, key_id: str) -> PublicKey:
        return super().public_key(self._key)


@caught_by("public_key_is_that_of_the_version")
class MislabelsNewestPublicKey(MemoryProvider):
    @hookimpl
    def public_key(self, key_id: str) -> PublicKey:
        newest = super().public_key(self._key)
        _, _, version = key_id.partition("/")
        if not version:
            return newest
        return evolve(newest, key_uri=f"{self.key_uri}/{version}", key_version=version)


@caught_by("public_key_says_what_it_is")
class OffersWrapping(MemoryProvider):
    @hookimpl
    def public_key(self, key_id: str) -> PublicKey:
        return evolve(super().public_key(key_id), wrap_alg=0x7FFF)


@caught_by("mac_key_has_no_public_key")
class InventsPublicKeys(MemoryProvider):
    @hookimpl
    def public_key(self, key_id: str) -> PublicKey:
        if self._key.startswith("HMAC"):
            return PublicKey(b"der", self.key_uri)
        return super().public_key(key_id)


@caught_by("key_that_only_wraps_there_has_no_public_key")
class LacksPublicKeysAltogether(MemoryProvider):
    @hookimpl
    def public_key(self, key_id: str) -> PublicKey:
        if key_id == "default":
            raise UnsupportedOperation("there are no public keys here")
        return super().public_key(key_id)


# --- a service that fails ------------------------------------------------------------------------


class Translating(MemoryProvider):
    """Has another table; a base for mutants that map an error wrongly."""

    table: ClassVar[dict[str, Any]] = {}

    def _translated(self, error: StoreError) -> KMSError:
        kind = self.table.get(error.code)
        translated: KMSError = super()._translated(error) if kind is None else kind(str(error))
        return translated


@caught_by("refused_connection_is_unavailable")
class LetsConnectionErrorOut(Translating):
    table: ClassVar[dict[str, Any]] = {"NoConnection": ConnectionRefusedError}


@caught_by("hanging_service_is_given_up_in_time")
class TakesSilenceForAnyOutage(Translating):
    table: ClassVar[dict[str, Any]] = {"NoAnswer": Unavailable}


@caught_by("broken_connection_is_unavailable")
class TakesBreakForDenial(Translating):
    table: ClassVar[dict[str, Any]] = {"Broken": AccessDenied}


@caught_by("throttling_is_told", "throttling_says_how_long_to_wait")
class TakesThrottlingForOutage(Translating):
    table: ClassVar[dict[str, Any]] = {"TooManyRequests": Unavailable}


@caught_by("throttling_says_how_long_to_wait")
class ForgetsHowLong(Translating):
    table: ClassVar[dict[str, Any]] = {"TooManyRequests": Throttled}


@caught_by("throttling_is_told", "throttling_says_how_long_to_wait")
class WaitsBackwards(Translating):
    table: ClassVar[dict[str, Any]] = {
        "TooManyRequests": lambda text: Throttled(text, retry_after=-1.0)
    }


@caught_by("unwell_service_is_unavailable")
class TakesOutageForThrottling(Translating):
    table: ClassVar[dict[str, Any]] = {"Unwell": Throttled}


class HarmlesslyUnwell(Unavailable):
    counts = False


@caught_by("unwell_service_is_unavailable")
class HasErrorsOfItsOwn(Translating):
    table: ClassVar[dict[str, Any]] = {"Unwell": HarmlesslyUnwell}


@caught_by("denied_access_is_told")
class TakesDenialForAbsence(Translating):
    table: ClassVar[dict[str, Any]] = {"Forbidden": KeyNotFound}


@caught_by("disabled_key_is_told")
class TakesDisabledKeyForOutage(Translating):
    table: ClassVar[dict[str, Any]] = {"KeyDisabled": Unavailable}


@caught_by("absent_key_is_told")
class TakesAbsenceForForgery(Translating):
    table: ClassVar[dict[str, Any]] = {"NoSuchKey": InvalidCiphertext}


@caught_by("disabled_key_is_told")
class HealthyInAnyState(MemoryProvider):
    @hookimpl
    def health(self, key_id: str) -> Health:
        try:
            return super().health(key_id)
        except KeyDisabled:
            return Health(ok=True)


@caught_by("disabled_key_is_told")
class DescribesAnyStateAsEnabled(MemoryProvider):
    @hookimpl
    def describe_key(self, key_id: str) -> KeyInfo:
        try:
            return super().describe_key(key_id)
        except KeyDisabled:
            return KeyInfo(self.key_uri, "enabled", "software")


class Amending(MemoryProvider):
    """Changes an answer before it is checked; a base for mutants that check too little."""

    def amend(self, key: str, answer: Answer) -> Answer:
        raise AssertionError

    def _ask(self, request: Callable[..., Answer], key: str, *arguments: Any) -> Answer:
        def amended(*args: Any, **options: Any) -> Answer:
            return self.amend(key, request(*args, **options))

        return super()._ask(amended, key, *arguments)


@caught_by("malformed_answer_is_no_answer")
class AcceptsMalformedAnswers(Amending):
    def amend(self, key: str, answer: Answer) -> Answer:
        if answer.value is not None:
            return answer
        plaintext = bytearray(32)
        return Answer(key, "1", b"", 0, plaintext, algorithms=("Ed25519",))


@caught_by("malformed_answer_is_no_answer")
class StumblesOverMalformedAnswers(Amending):
    def amend(self, key: str, answer: Answer) -> Answer:
        if answer.value is None:
            raise AttributeError("NoneType has no attribute value")
        return answer


@caught_by("answer_of_another_key_is_refused")
class AcceptsOtherKeys(Amending):
    def amend(self, key: str, answer: Answer) -> Answer:
        return evolve(answer, key=answer.key and key)


@caught_by("wrong_checksum_is_noticed")
class IgnoresChecksums(Amending):
    def amend(self, key: str, answer: Answer) -> Answer:
        return evolve(answer, checksum=zlib.crc32(answer.value or b""))


@caught_by("slow_answer_is_right_or_late")
class TakesSlownessForOutage(Amending):
    def amend(self, key: str, answer: Answer) -> Answer:
        if any(each.order.failure is Failure.SLOW for each in self.store.panel._standing):
            raise Unavailable("that took too long")
        return answer


@caught_by("failing_call_is_one_request")
class RetriesByItself(MemoryProvider):
    def _ask(self, request: Callable[..., Answer], key: str, *arguments: Any) -> Answer:
        try:
            return super()._ask(request, key, *arguments)
        except Unavailable:
            return super()._ask(request, key, *arguments)


@caught_by("service_that_recovers_is_used_again")
class GivesUpForGood(MemoryProvider):
    """Each request is given up by itself, once it has met an outage."""

    def __init__(self, settings: MemorySettings) -> None:
        super().__init__(settings)
        self._given_up: set[str] = set()

    def _ask(self, request: Callable[..., Answer], key: str, *arguments: Any) -> Answer:
        if request.__name__ in self._given_up:
            raise Unavailable("that did not work the last time")
        try:
            return super()._ask(request, key, *arguments)
        except Unavailable:
            if request.__name__ != "describe":  # which two hooks ask
                self._given_up.add(request.__name__)
            raise


class Telling(MemoryProvider):
    """Raises something else when an outage spoils a wrap; a base for mutants that say too much."""

    def tell(self, error: KMSError, plaintext: bytes | bytearray, context: Context) -> KMSError:
        raise AssertionError

    @hookimpl
    def encrypt(self, key_id: str, plaintext: bytes | bytearray, context: Context) -> Ciphertext:
        try:
            return super().encrypt(key_id, plaintext, context)
        except Unavailable as exc:
            raise self.tell(exc, plaintext, context) from exc


@caught_by("service_errors_show_no_secret")
class TellsPlaintext(Telling):
    def tell(self, error: KMSError, plaintext: bytes | bytearray, context: Context) -> KMSError:
        return type(error)(f"could not wrap {plaintext!r}")


@caught_by("service_errors_show_no_secret")
class TellsPlaintextInHex(Telling):
    def tell(self, error: KMSError, plaintext: bytes | bytearray, context: Context) -> KMSError:
        return type(error)(f"could not wrap {plaintext.hex()}")


@caught_by("service_errors_show_no_secret")
class TellsContextInItsCause(Telling):
    def tell(self, error: KMSError, plaintext: bytes | bytearray, context: Context) -> KMSError:
        error.__cause__ = ValueError(f"POST /wrap {dict(context)}")
        return type(error)("could not wrap")


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda kind: kind.__name__)
def test_broken_provider_fails_where_it_is_broken(
    pytester: pytest.Pytester, mutant: type[Any]
) -> None:
    """A broken provider fails the tests that name its defect, and no others."""
    assert failures(pytester, mutant) == MUTANTS[mutant]


class IgnoresTimeouts(MemoryProvider):
    """Waits until the service is healed, however long that takes."""

    def __init__(self, settings: MemorySettings) -> None:
        super().__init__(evolve(settings, attempt_timeout=Duration(60.0)))


def test_call_that_ignores_its_timeout_ends_the_test(pytester: pytest.Pytester) -> None:
    """The suite does not hang with the provider."""
    source = TEST_FILE.replace("patience = 0.02, 5.0", "patience = 0.02, 0.3")
    assert failures(pytester, IgnoresTimeouts, source) == {
        "test_hanging_service_is_given_up_in_time",
        "test_service_that_recovers_is_used_again",
    }


# --- wrapping to a public key --------------------------------------------------------------------

OFFLINE_TEST_FILE = """
import pytest
from kms_core.testing import ProviderConformance

class TestMutant(ProviderConformance):
    has_public_key = wraps_offline = True

    @pytest.fixture
    def provider(self, store, make):
        store.create("default-rsa", "RSA-OAEP")
        return make("default-rsa")

    @pytest.fixture
    def key_id(self):
        return "default-rsa"
"""


class OffersNoAlgorithm(MemoryProvider):
    @hookimpl
    def public_key(self, key_id: str) -> PublicKey:
        return evolve(super().public_key(key_id), algorithms=("Ed25519",))


class TellsAnotherPublicKey(MemoryProvider):
    other = rsa.generate_private_key(65537, 2048).public_key()

    @hookimpl
    def public_key(self, key_id: str) -> PublicKey:
        der = self.other.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return evolve(super().public_key(key_id), der=der)


class IgnoresBoundContext(MemoryProvider):
    @hookimpl
    def decrypt(self, key_id: str, ciphertext: Ciphertext, context: Context) -> bytearray:
        try:
            return super().decrypt(key_id, ciphertext, context)
        except InvalidCiphertext:
            return super().decrypt(key_id, ciphertext, CONTEXT)


class OpensForeignWraps(MemoryProvider):
    """To zeros, and only under the context they were made with."""

    @hookimpl
    def decrypt(self, key_id: str, ciphertext: Ciphertext, context: Context) -> bytearray:
        try:
            return super().decrypt(key_id, ciphertext, context)
        except InvalidCiphertext:
            if context == CONTEXT:
                return bytearray(32)
            raise


@pytest.mark.parametrize(
    ("mutant", "expected"),
    [
        (MemoryProvider, set()),
        (
            OffersNoAlgorithm,
            {
                "test_public_key_for_wrapping_says_what_it_is",
                "test_wrap_made_here_opens_there",
                "test_wrap_made_here_is_bound_to_its_context",
                "test_wrap_made_for_a_stranger_is_refused",
            },
        ),
        (TellsAnotherPublicKey, {"test_wrap_made_here_opens_there"}),
        (IgnoresBoundContext, {"test_wrap_made_here_is_bound_to_its_context"}),
        (OpensForeignWraps, {"test_wrap_made_for_a_stranger_is_refused"}),
    ],
)
def test_broken_offline_wrapping_fails(
    pytester: pytest.Pytester, mutant: type[Any], expected: set[str]
) -> None:
    """What the core wraps with a public key is tried as the core does it."""
    chosen = ("-k", "wrap_made or public_key")
    assert failures(pytester, mutant, OFFLINE_TEST_FILE, *chosen) == expected


# --- other declarations --------------------------------------------------------------------------


def test_bounds_of_messages_that_the_service_does_not_have_fail(
    pytester: pytest.Pytester,
) -> None:
    """A bound that is declared is one that is kept."""
    source = TEST_FILE + '\n    signed_bytes = {"HMAC-SHA256": (1, 5000)}\n'
    assert failures(pytester, MemoryProvider, source) == {"test_message_out_of_bounds_is_refused"}


class CachesDescription(MemoryProvider):
    """Asks once, so that no later failure reaches it."""

    known: Health | None = None

    @hookimpl
    def health(self, key_id: str) -> Health:
        self.known = self.known or super().health(key_id)
        return self.known


def test_hook_that_is_not_hit_is_left_out(pytester: pytest.Pytester) -> None:
    """A failure that does not reach a hook is declared, by hook."""
    assert "test_refused_connection_is_unavailable" in failures(pytester, CachesDescription)
    imported = "from kms_core.testing import Failure"
    source = f"{imported}\n{TEST_FILE}\n    not_hit_by = {{'health': tuple(Failure)}}\n"
    assert failures(pytester, CachesDescription, source) == set()


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
        "test_message_out_of_bounds_is_refused",
        "test_plugin_import_loads_no_sdk",
        "test_plugin_registers_the_class",
        "test_public_key_for_wrapping_says_what_it_is",
        "test_wrap_made_for_a_stranger_is_refused",
        "test_wrap_made_here_is_bound_to_its_context",
        "test_wrap_made_here_opens_there",
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
        TEST_FILE.partition("    @pytest.fixture")[0]
        + """
    signs, foreign_key_uri = (), None
    binds_context = splits_context = has_data_key = describes = survives_fork = False
    rotates = has_sign = has_verify = has_public_key = False
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
        "declared: has_public_key = False",
        "declared: min_plaintext and max_plaintext exclude 1 bytes",
        "declared: min_plaintext and max_plaintext exclude 64 bytes",
        "declared: no close() method",
        "declared: plugin_module = None",
        "declared: rotates = False",
        "declared: signs = ()",
        "declared: survives_fork = False",
        "declared: the fixture other_key returns None",
        "declared: the fixture panel returns None",
    }


def test_every_skip_of_a_signer_names_what_it_rests_on(pytester: pytest.Pytester) -> None:
    """What an algorithm has not is said of the algorithm."""
    head, _, _ = TEST_FILE.partition("    @pytest.fixture\n    def rotate_signing_key")
    pytester.makepyfile(f"{head}\n    may_rotate = encrypts = has_verify = False\n")
    run = pytester.inline_run(
        "-p", "no:cacheprovider", "--tb=no", plugins=[Fixtures(MemoryProvider)]
    )
    _, skipped, _ = run.listoutcomes()
    reasons = {reason_of(report) for report in skipped}
    assert reasons == {
        "declared: encrypts = False",
        "declared: has_verify = False",
        "declared: no close() method",
        "declared: plugin_module = None",
        "declared: signed_bytes has no long bound for ECDSA-SHA256",
        "declared: signed_bytes has no long bound for HMAC-SHA256",
        "declared: signed_bytes has no short bound for ECDSA-SHA256",
        "declared: signed_bytes has no short bound for HMAC-SHA256",
        "declared: the fixture panel returns None",
        "declared: the fixture rotate_signing_key returns None",
        "not so: ECDSA-SHA256 has a public key",
        "not so: HMAC-SHA256 has no public key",
        "not so: HMAC-SHA256 has one encoding only",
    }
