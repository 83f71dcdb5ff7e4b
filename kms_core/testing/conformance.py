"""The suite every provider passes.

A provider's test file is a subclass with two fixtures; what its service cannot do is declared as a
class attribute, and every skip names the declaration it rests on::

    class TestAcme(ProviderConformance):
        rotates = True
        plugin_module = "kms_acme"
        sdk_modules = ("acme_sdk",)

        @pytest.fixture
        def provider(self): ...  # a ready instance, closed afterwards

        @pytest.fixture
        def key_id(self): ...  # the key id its hooks are called with

The checks report through ``pytest.fail`` rather than ``assert``, so that they also hold under
``python -O`` and say what is wrong in words that help a plugin's author.
"""

from __future__ import annotations

import builtins
import importlib
import inspect
import io
import os
import re
import socket
import threading
from collections.abc import Mapping
from typing import Any, ClassVar, Final, get_args

import attrs
import pluggy
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from kms_core.context import Context
from kms_core.errors import InvalidCiphertext, InvalidRequest, KMSError
from kms_core.hookspecs import PROJECT, ProviderSpec
from kms_core.testing.checks import (
    CONTEXT,
    KEY_BYTES,
    MARKER,
    decrypt,
    encrypt,
    expect,
    expect_ciphertext,
    expect_key_uri,
    expect_no_match,
    expect_opens,
    expect_secretive,
    kind_of,
    refused,
)
from kms_core.testing.hooks import call, marked_hooks
from kms_core.testing.processes import PATIENCE, in_child, modules_after_importing
from kms_core.types import Ciphertext, DataKey, Health, KeyInfo, Protection

OTHER_CONTEXTS: Final[Mapping[str, Context]] = {
    "missing": Context({"tenant": "42"}),
    "extra": Context({**CONTEXT, "more": "x"}),
    "changed value": Context({**CONTEXT, "tenant": "43"}),
    "changed key": Context({"tenants": "42", "purpose": "conformance"}),
    "empty": Context(),
}

_REQUIRED_HOOKS: Final = frozenset({"encrypt", "decrypt", "health"})
_HOOK_OF: Final[Mapping[str, str]] = {
    "has_data_key": "generate_data_key",
    "describes": "describe_key",
    "rotates": "rotate_key",
}
_IO: Final = (
    (builtins, "open"),
    (io, "open"),
    (os, "open"),
    (socket.socket, "connect"),
    (socket, "getaddrinfo"),
)
_MAX_ALTERED: Final = 600  # altered blobs tried: each is one call to the service
_THREADS: Final = 8
_ROUND_TRIPS: Final = 25


class ProviderConformance:
    """Subclass it as ``Test…`` with the fixtures ``provider`` and ``key_id``."""

    #: Bounds of what ``encrypt`` takes, in bytes.
    min_plaintext: ClassVar[int] = 1
    max_plaintext: ClassVar[int] = 4096
    #: Whether another context is refused.  False only against a backend that ignores contexts.
    binds_context: ClassVar[bool] = True
    #: Whether ``{"a": "bc"}`` and ``{"ab": "c"}`` differ for the backend.
    splits_context: ClassVar[bool] = True
    #: Which of the optional hooks there are.
    has_data_key: ClassVar[bool] = True
    describes: ClassVar[bool] = True
    rotates: ClassVar[bool] = False
    #: What an altered, foreign or junk blob raises; some backends see another key's name in it.
    altered_raises: ClassVar[tuple[type[KMSError], ...]] = (InvalidCiphertext,)
    #: Whether an instance goes on working in a forked child.
    survives_fork: ClassVar[bool] = True
    #: How many junk ciphertexts to try: each is one call to the service.
    fuzz_examples: ClassVar[int] = 50
    #: A well-formed key URI of this provider type that the instance does not hold.
    foreign_key_uri: ClassVar[str | None] = None
    #: The module the entry point names, and the SDK's modules that importing it may not load.
    plugin_module: ClassVar[str | None] = None
    sdk_modules: ClassVar[tuple[str, ...]] = ()

    @pytest.fixture
    def other_key(self) -> tuple[Any, str] | None:
        """Override: an instance holding another key of the same service, and that key's id."""
        return None

    # The shape of the class and of its hooks

    def test_type_name_is_a_lower_case_word(self, provider: Any) -> None:
        """The type name is the scheme of key URIs, so it has a scheme's letters."""
        name = type(provider).type_name
        expect(
            isinstance(name, str) and re.fullmatch(r"[a-z][a-z0-9-]*", name) is not None,
            f"type_name {name!r} is not of the form [a-z][a-z0-9-]*",
        )

    def test_settings_is_an_attrs_class_with_a_key(self, provider: Any) -> None:
        """The core builds the settings from a configuration table; ``key`` is always there."""
        kind = type(provider).settings
        expect(inspect.isclass(kind) and attrs.has(kind), f"settings {kind!r} is no attrs class")
        expect("key" in attrs.fields_dict(kind), f"{kind.__name__} has no field key")

    def test_wrap_algs_are_declared_numbers(self, provider: Any) -> None:
        """What a reader may accept is a non-empty frozenset of 16-bit numbers."""
        algs = type(provider).wrap_algs
        expect(
            isinstance(algs, frozenset)
            and bool(algs)
            and all(type(alg) is int and 0 < alg <= 0xFFFF for alg in algs),
            f"wrap_algs {algs!r} is not a frozenset of numbers from 1 to 0xFFFF",
        )

    def test_protection_is_a_known_level(self, provider: Any) -> None:
        """The protection level is one that routing understands."""
        levels = get_args(Protection)
        expect(provider.protection in levels, f"protection is none of {', '.join(levels)}")

    def test_key_uri_is_read_without_io(
        self, provider: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The configured key's URI is known, or partly known, without file or network."""
        with monkeypatch.context() as patch:
            for owner, name in _IO:
                patch.setattr(owner, name, _no_io)
            key_uri = provider.key_uri
        expect_key_uri(provider, key_uri)

    def test_domain_is_a_pure_name(self, provider: Any) -> None:
        """The failure domain of a key URI is text, and the same each time."""
        domain = getattr(provider, "domain", None)
        if domain is None:
            pytest.skip("declared: no domain() method")
        name = domain(provider.key_uri)
        expect(isinstance(name, str) and bool(name), f"domain() returned {name!r}")
        expect(domain(provider.key_uri) == name, "domain() answers differently for equal URIs")

    def test_hooks_are_those_of_the_contract(self, provider: Any) -> None:
        """Every marked method is a hook that exists, with arguments that exist."""
        manager = pluggy.PluginManager(PROJECT)
        manager.add_hookspecs(ProviderSpec)
        try:
            manager.register(provider)
            manager.check_pending()
        except pluggy.PluginValidationError as exc:
            pytest.fail(f"a hook is not of the contract: {exc}")

    def test_required_hooks_are_there(self, provider: Any) -> None:
        """A provider can wrap, unwrap and tell its health."""
        absent = _REQUIRED_HOOKS - marked_hooks(provider).keys()
        expect(not absent, f"not marked @hookimpl: {', '.join(sorted(absent))}")

    @pytest.mark.parametrize("capability", _HOOK_OF)
    def test_optional_hooks_are_declared(self, provider: Any, capability: str) -> None:
        """The test class declares the optional hooks that the provider has."""
        hook = _HOOK_OF[capability]
        present = hook in marked_hooks(provider)
        expect(
            present == getattr(self, capability),
            f"set {capability} = {present}: the provider {'has' if present else 'lacks'} {hook}",
        )

    def test_hooks_name_every_argument(self, provider: Any) -> None:
        """An argument a hook leaves out is never passed: only ``instance`` may be."""
        for name, hook in marked_hooks(provider).items():
            missing = _spec_arguments(name) - inspect.signature(hook).parameters.keys()
            expect(not missing, f"{name} does not name {', '.join(sorted(missing))}")

    def test_hook_arguments_are_plain(self, provider: Any) -> None:
        """Some versions of pluggy never pass an argument that has a default."""
        for name, hook in marked_hooks(provider).items():
            for parameter in inspect.signature(hook).parameters.values():
                expect(
                    parameter.default is parameter.empty,
                    f"{name}: {parameter.name} has a default and may never be passed; remove it",
                )
                expect(
                    parameter.kind is parameter.POSITIONAL_OR_KEYWORD,
                    f"{name}: {parameter.name} is {parameter.kind.description}; make it plain",
                )

    def test_hooks_are_plain_functions(self, provider: Any) -> None:
        """A coroutine or generator would run after the wrappers have finished."""
        for name, hook in marked_hooks(provider).items():
            odd = (
                inspect.iscoroutinefunction(hook)
                or inspect.isgeneratorfunction(hook)
                or inspect.isasyncgenfunction(hook)
            )
            expect(not odd, f"{name} is async or a generator; make it an ordinary function")

    # What encrypt returns, and what it takes

    def test_ciphertext_says_who_made_it(self, provider: Any, key_id: str) -> None:
        """A wrap carries all that routing needs to find its way back."""
        sealed = encrypt(provider, key_id)
        expect_ciphertext(provider, sealed)
        expect(sealed.instance is None, "instance is for the core to fill in")

    def test_ciphertext_matches_its_maker(self, provider: Any, key_id: str) -> None:
        """An instance recognises what it wrapped."""
        sealed = encrypt(provider, key_id)
        matched = provider.match(sealed.key_uri)
        expect(
            isinstance(matched, str) and bool(matched),
            f"match({sealed.key_uri!r}) is {matched!r} for the instance's own ciphertext",
        )

    @pytest.mark.parametrize("size", ["min", "1", "32", "64", "max"])
    def test_round_trip(self, provider: Any, key_id: str, size: str) -> None:
        """What was wrapped comes back, at every size the provider takes."""
        bounds = {"min": self.min_plaintext, "max": self.max_plaintext}
        length = bounds[size] if size in bounds else int(size)
        if not self.min_plaintext <= length <= self.max_plaintext:
            pytest.skip(f"declared: min_plaintext and max_plaintext exclude {length} bytes")
        plaintext = os.urandom(length)
        expect_opens(provider, encrypt(provider, key_id, plaintext), plaintext)

    def test_data_keys_fit(self) -> None:
        """The core wraps 32 bytes; a provider with bounds that exclude them is of no use."""
        expect(
            self.min_plaintext <= KEY_BYTES <= self.max_plaintext,
            f"a provider takes {KEY_BYTES} bytes, whatever else it takes",
        )

    def test_empty_plaintext_is_refused(self, provider: Any, key_id: str) -> None:
        """Nothing to wrap is the caller's mistake."""
        if self.min_plaintext == 0:
            pytest.skip("declared: min_plaintext = 0")
        with refused("an empty plaintext", InvalidRequest):
            encrypt(provider, key_id, b"")

    def test_too_long_plaintext_is_refused(self, provider: Any, key_id: str) -> None:
        """One byte more than the maximum is the caller's mistake."""
        with refused(f"a plaintext of {self.max_plaintext + 1} bytes", InvalidRequest):
            encrypt(provider, key_id, bytes(self.max_plaintext + 1))

    def test_same_input_wraps_differently(self, provider: Any, key_id: str) -> None:
        """Wrapping is randomised: equal plaintexts cannot be told from their wraps."""
        plaintext = os.urandom(KEY_BYTES)
        first, second = (encrypt(provider, key_id, plaintext).data for _ in range(2))
        expect(first != second, "wrapping the same plaintext twice gave the same blob")

    def test_blob_hides_the_plaintext(self, provider: Any, key_id: str) -> None:
        """A wrap is a ciphertext."""
        plaintext = os.urandom(KEY_BYTES)
        blob = encrypt(provider, key_id, plaintext).data
        expect(plaintext not in blob, "the blob contains the plaintext")

    @pytest.mark.parametrize("plaintext", ["text", None], ids=["str", "None"])
    def test_plaintext_that_is_not_bytes_is_refused(
        self, provider: Any, key_id: str, plaintext: object
    ) -> None:
        """Some SDKs take text and decode it in ways of their own."""
        with refused(f"a plaintext of type {kind_of(plaintext)}", InvalidRequest):
            encrypt(provider, key_id, plaintext)

    @pytest.mark.parametrize("data", ["text", None], ids=["str", "None"])
    def test_blob_that_is_not_bytes_is_refused(self, provider: Any, key_id: str, data: Any) -> None:
        """The same goes for unwrapping."""
        sealed = encrypt(provider, key_id)
        with refused(f"a blob of type {kind_of(data)}", InvalidRequest, InvalidCiphertext):
            decrypt(provider, attrs.evolve(sealed, data=data))

    def test_bytearray_is_taken_and_left_alone(self, provider: Any, key_id: str) -> None:
        """The caller's buffer is the caller's: wrapping neither wipes nor changes it."""
        plaintext = bytearray(os.urandom(KEY_BYTES))
        before = bytes(plaintext)
        sealed = encrypt(provider, key_id, plaintext)
        expect(plaintext == before, "encrypt changed the bytearray it was given")
        expect_opens(provider, sealed, before)

    # Which keys are ours

    def test_configured_key_matches(self, provider: Any) -> None:
        """The instance recognises the configured key under the name it gives it."""
        matched = provider.match(provider.key_uri)
        expect(isinstance(matched, str) and bool(matched), f"match(key_uri) is {matched!r}")

    def test_foreign_key_does_not_match(self, provider: Any) -> None:
        """Another key of the same provider type is not ours."""
        if self.foreign_key_uri is None:
            pytest.skip("declared: foreign_key_uri = None")
        expect_no_match(provider, self.foreign_key_uri)

    def test_other_scheme_does_not_match(self, provider: Any, key_id: str) -> None:
        """The same name under another provider's scheme is not ours."""
        scheme = type(provider).type_name
        rest = encrypt(provider, key_id).key_uri.removeprefix(scheme)
        for other in ("other-kms", f"x{scheme}", f"{scheme}x", ""):
            expect_no_match(provider, other + rest)

    def test_mangled_key_uri_does_not_match(self, provider: Any, key_id: str) -> None:
        """Only the one canonical spelling is recognised, and no spelling makes ``match`` raise."""
        key_uri = encrypt(provider, key_id).key_uri
        scheme = type(provider).type_name
        for mangled in (
            "",
            scheme,
            f"{scheme}:",
            f"{scheme}://",
            f"{key_uri}x",
            f"{key_uri}/x",
            f"{key_uri}\n",
            f" {key_uri}",
            f"{key_uri[:-1]}\x00",
            f"{key_uri[:-1]}\u00e9",
            key_uri.replace(":", "", 1),
            key_uri.replace(scheme, scheme.upper(), 1),
        ):
            expect_no_match(provider, mangled)

    # The context

    @pytest.mark.parametrize("way", OTHER_CONTEXTS)
    def test_context_is_bound(self, provider: Any, key_id: str, way: str) -> None:
        """Another context opens nothing."""
        self._needs("binds_context")
        sealed = encrypt(provider, key_id)
        with refused(f"another context ({way})", InvalidCiphertext):
            decrypt(provider, sealed, OTHER_CONTEXTS[way])

    def test_empty_context_is_bound(self, provider: Any, key_id: str) -> None:
        """A wrap made without a context opens without one, and not with one."""
        self._needs("binds_context")
        plaintext = os.urandom(KEY_BYTES)
        sealed = encrypt(provider, key_id, plaintext, Context())
        expect_opens(provider, sealed, plaintext, Context())
        with refused("a context where there was none", InvalidCiphertext):
            decrypt(provider, sealed)

    def test_context_is_split_unambiguously(self, provider: Any, key_id: str) -> None:
        """Moving a character from a value to its key makes another context."""
        self._needs("binds_context")
        self._needs("splits_context")
        sealed = encrypt(provider, key_id, context=Context({"a": "bc"}))
        with refused("a context split at another place", InvalidCiphertext):
            decrypt(provider, sealed, Context({"ab": "c"}))

    def test_context_order_does_not_matter(self, provider: Any, key_id: str) -> None:
        """Equal contexts open each other's wraps, in whatever order they were written."""
        plaintext = os.urandom(KEY_BYTES)
        sealed = encrypt(provider, key_id, plaintext)
        reordered = Context(dict(reversed(list(CONTEXT.items()))))
        expect_opens(provider, sealed, plaintext, reordered)

    # Blobs that are not what they were

    def test_every_altered_byte_is_noticed(self, provider: Any, key_id: str) -> None:
        """One flipped bit anywhere in the blob, and it opens no more."""
        sealed = encrypt(provider, key_id)
        for position in _positions(len(sealed.data)):
            altered = bytearray(sealed.data)
            altered[position] ^= 1 << position % 8
            with refused(f"a blob altered at byte {position}", *self.altered_raises):
                decrypt(provider, attrs.evolve(sealed, data=bytes(altered)))

    @pytest.mark.parametrize("damage", ["empty", "cut", "half", "longer", "junk", "zeros"])
    def test_damaged_blob_is_refused(self, provider: Any, key_id: str, damage: str) -> None:
        """Blobs of another length or of no meaning open nothing."""
        sealed = encrypt(provider, key_id)
        blob = sealed.data
        damaged = {
            "empty": b"",
            "cut": blob[:-1],
            "half": blob[: len(blob) // 2],
            "longer": blob + b"\x00",
            "junk": os.urandom(len(blob)),
            "zeros": bytes(len(blob)),
        }[damage]
        with refused(f"a damaged blob ({damage})", *self.altered_raises):
            decrypt(provider, attrs.evolve(sealed, data=damaged))

    def test_another_keys_blob_is_refused(
        self, provider: Any, key_id: str, other_key: tuple[Any, str] | None
    ) -> None:
        """A wrap of another key is not ours, and does not open by being given our key's name."""
        if other_key is None:
            pytest.skip("declared: the fixture other_key returns None")
        ours, theirs = encrypt(provider, key_id), encrypt(*other_key)
        expect_no_match(provider, theirs.key_uri)
        with refused("another key's blob", *self.altered_raises):
            decrypt(provider, attrs.evolve(ours, data=theirs.data))

    def test_junk_raises_only_our_errors(self, provider: Any, key_id: str) -> None:
        """Whatever stands in a ciphertext, what comes out is a ``KMSError``."""
        ours = encrypt(provider, key_id)
        matched = provider.match(ours.key_uri)

        @self._junk
        @given(
            data=st.binary(max_size=2 * len(ours.data)),
            key_uri=st.just(ours.key_uri) | st.text(max_size=40),
            key_version=st.just(ours.key_version) | st.text(max_size=20),
            wrap_alg=st.just(ours.wrap_alg) | st.integers(0, 0xFFFF),
        )
        def refuses(data: bytes, key_uri: str, key_version: str | None, wrap_alg: int) -> None:
            junk = Ciphertext(data, key_uri, key_version, wrap_alg)
            with refused("junk", KMSError):
                call(provider, "decrypt", key_id=matched, ciphertext=junk, context=CONTEXT)

        refuses()

    def test_match_never_raises(self, provider: Any, key_id: str) -> None:
        """Text that is no key URI of ours is simply not ours."""
        ours = {provider.key_uri, encrypt(provider, key_id).key_uri}
        prefix = st.sampled_from(["", f"{type(provider).type_name}:", *sorted(ours)])

        @self._junk
        @given(
            st.tuples(prefix, st.text(max_size=60))
            .map("".join)
            .filter(lambda text: text not in ours)
        )
        def declines(text: str) -> None:
            expect_no_match(provider, text)

        declines()

    @pytest.mark.parametrize("mistake", ["too long", "text"])
    def test_errors_show_no_plaintext(self, provider: Any, key_id: str, mistake: str) -> None:
        """A refusal does not repeat what it refuses."""
        wrong = {"text": MARKER, "too long": MARKER.encode() * (self.max_plaintext + 1)}
        with refused(f"a plaintext that is {mistake}", InvalidRequest) as errors:
            encrypt(provider, key_id, wrong[mistake])
        expect_secretive(errors)

    def test_errors_show_no_context_values(self, provider: Any, key_id: str) -> None:
        """Values of a context may be personal data."""
        self._needs("binds_context")
        sealed = encrypt(provider, key_id)
        with refused("another context", InvalidCiphertext) as errors:
            decrypt(provider, sealed, Context({"tenant": MARKER}))
        expect_secretive(errors)

    # The other hooks

    def test_data_key_unwraps_to_itself(self, provider: Any, key_id: str) -> None:
        """A data key is 32 fresh bytes, and its wrap opens to them."""
        self._needs("has_data_key")
        first, second = (
            call(provider, "generate_data_key", key_id=key_id, context=CONTEXT) for _ in range(2)
        )
        expect(isinstance(first, DataKey), f"generate_data_key returned {kind_of(first)}")
        expect(
            isinstance(first.plaintext, bytes | bytearray) and len(first.plaintext) == KEY_BYTES,
            f"a data key is {KEY_BYTES} bytes",
        )
        expect(first.plaintext != second.plaintext, "two data keys are the same")
        expect_ciphertext(provider, first.ciphertext)
        expect_opens(provider, first.ciphertext, bytes(first.plaintext))

    def test_data_key_is_bound_to_its_context(self, provider: Any, key_id: str) -> None:
        """A generated key's wrap binds its context as that of ``encrypt`` does."""
        self._needs("has_data_key")
        self._needs("binds_context")
        key = call(provider, "generate_data_key", key_id=key_id, context=CONTEXT)
        with refused("another context for a data key", InvalidCiphertext):
            decrypt(provider, key.ciphertext, OTHER_CONTEXTS["changed value"])

    def test_health_is_ok(self, provider: Any, key_id: str) -> None:
        """An instance in working order says so."""
        health = call(provider, "health", key_id=key_id)
        expect(isinstance(health, Health), f"health returned {kind_of(health)}")
        expect(health.ok is True, f"health of a working instance is {health.ok!r}")

    def test_key_is_described(self, provider: Any, key_id: str) -> None:
        """The description names the key by a URI that the instance recognises."""
        self._needs("describes")
        info = call(provider, "describe_key", key_id=key_id)
        expect(isinstance(info, KeyInfo), f"describe_key returned {kind_of(info)}")
        expect_key_uri(provider, info.key_uri)
        expect(provider.match(info.key_uri) is not None, "match refuses the described key_uri")
        expect(info.state == "enabled", f"the state of a working key is {info.state!r}")
        expect(info.protection in get_args(Protection), f"protection is {info.protection!r}")
        expect(
            not info.versions or info.primary_version in info.versions,
            f"primary_version {info.primary_version!r} is not among versions",
        )

    def test_rotation_is_recorded_and_old_wraps_open(self, provider: Any, key_id: str) -> None:
        """A rotated key wraps under a new version and unwraps under the old one."""
        self._needs("rotates")
        plaintext = os.urandom(KEY_BYTES)
        old = encrypt(provider, key_id, plaintext)
        info = call(provider, "rotate_key", key_id=key_id)
        expect(isinstance(info, KeyInfo), f"rotate_key returned {kind_of(info)}")
        new = encrypt(provider, key_id, plaintext)
        expect_ciphertext(provider, new)
        expect(
            new.key_version is not None and new.key_version != old.key_version,
            f"key_version was {old.key_version!r} and is {new.key_version!r} after rotation",
        )
        expect(
            info.primary_version == new.key_version,
            f"rotate_key names {info.primary_version!r} primary, encrypt used {new.key_version!r}",
        )
        for sealed in (old, new):
            expect_opens(provider, sealed, plaintext)

    # Life in a process

    def test_threads_share_an_instance(self, provider: Any, key_id: str) -> None:
        """Eight threads wrap and unwrap at once, each getting back its own."""
        start = threading.Barrier(_THREADS)
        failures: list[BaseException] = []

        def work(number: int) -> None:
            context = Context({"thread": str(number)})
            try:
                start.wait(PATIENCE)
                for _ in range(_ROUND_TRIPS):
                    plaintext = os.urandom(KEY_BYTES)
                    sealed = encrypt(provider, key_id, plaintext, context)
                    expect_opens(provider, sealed, plaintext, context)
            except BaseException as exc:  # noqa: BLE001  carried to the test's own thread
                failures.append(exc)

        threads = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(_THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        expect(not any(thread.is_alive() for thread in threads), "threads block each other")
        if failures:
            raise failures[0]

    def test_forked_child_goes_on(self, provider: Any, key_id: str) -> None:
        """After a fork both processes unwrap what was wrapped before, and wrap anew."""
        self._needs("survives_fork")
        if not hasattr(os, "fork"):
            pytest.skip("platform: no os.fork")
        plaintext = os.urandom(KEY_BYTES)
        sealed = encrypt(provider, key_id, plaintext)

        def work() -> None:
            expect_opens(provider, sealed, plaintext)
            expect_opens(provider, encrypt(provider, key_id, plaintext), plaintext)

        work()
        failure = in_child(work)
        expect(not failure, f"in a forked child: {failure}")
        work()

    def test_close_may_be_repeated(self, provider: Any) -> None:
        """Closing twice is closing once."""
        close = getattr(provider, "close", None)
        if close is None:
            pytest.skip("declared: no close() method")
        close()
        close()

    def test_plugin_registers_the_class(self, provider: Any) -> None:
        """The plugin module hands over the class under test."""
        module = importlib.import_module(self._needs_plugin_module())
        registered: list[type[Any]] = []
        marked = "kms_register_providers" in marked_hooks(module)
        expect(marked, f"{module.__name__} has no @hookimpl kms_register_providers")
        call(module, "kms_register_providers", register=registered.append)
        expect(type(provider) in registered, f"{module.__name__} registers {registered}")

    def test_plugin_import_loads_no_sdk(self) -> None:
        """Importing the plugin costs nobody the SDK; the first call does."""
        module = self._needs_plugin_module()
        if not self.sdk_modules:
            pytest.skip("declared: sdk_modules = ()")
        loaded = modules_after_importing(module) & set(self.sdk_modules)
        expect(not loaded, f"import {module} imports {', '.join(sorted(loaded))}")

    @property
    def _junk(self) -> settings:
        """Junk of any size is as good as small junk: shrinking it would cost more calls."""
        return settings(
            max_examples=self.fuzz_examples,
            phases=(Phase.generate,),
            deadline=None,
            database=None,
            derandomize=True,
        )

    def _needs(self, capability: str) -> None:
        if not getattr(self, capability):
            pytest.skip(f"declared: {capability} = False")

    def _needs_plugin_module(self) -> str:
        if self.plugin_module is None:
            pytest.skip("declared: plugin_module = None")
        return self.plugin_module


def _no_io(*_args: object, **_kwargs: object) -> Any:
    pytest.fail("reading key_uri opened a file or a connection")


def _spec_arguments(hook: str) -> set[str]:
    spec = getattr(ProviderSpec, hook, None)
    named = set(inspect.signature(spec).parameters) if spec is not None else set()
    return named - {"self", "instance"}


def _positions(size: int) -> list[int]:
    """All of a blob's bytes, or as many from either end as are worth a call each."""
    if size <= _MAX_ALTERED:
        return list(range(size))
    half = _MAX_ALTERED // 2
    return [*range(half), *range(size - half, size)]
