"""Wrapping and unwrapping: what comes out, what is taken, and what is refused."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kms_core.context import Context
from kms_core.errors import InvalidCiphertext, InvalidRequest, KMSError
from kms_core.testing.checks import (
    CONTEXT,
    KEY_BYTES,
    MARKER,
    decrypt,
    encrypt,
    expect,
    expect_ciphertext,
    expect_no_match,
    expect_opens,
    expect_secretive,
    kind_of,
    refused,
)
from kms_core.testing.hooks import call
from kms_core.testing.suite.declared import Declared, needs
from kms_core.types import Ciphertext, DataKey

OTHER_CONTEXTS: Final[Mapping[str, Context]] = {
    "missing": Context({"tenant": "42"}),
    "extra": Context({**CONTEXT, "more": "x"}),
    "changed value": Context({**CONTEXT, "tenant": "43"}),
    "changed key": Context({"tenants": "42", "purpose": "conformance"}),
    "empty": Context(),
}


@needs("encrypts")
class Wrapping(Declared):
    """The key under test wraps; data keys are wraps, too."""

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

    def test_memoryview_is_taken_or_refused(self, provider: Any, key_id: str) -> None:
        """A view is wrapped as what it shows, whatever lies behind it, or always refused."""
        plaintext = os.urandom(KEY_BYTES)
        views = {kind.__name__: memoryview(kind(plaintext)) for kind in (bytes, bytearray)}
        taken = {name: _takes(provider, key_id, view) for name, view in views.items()}
        expect(len(set(taken.values())) == 1, f"a memoryview is taken of some buffers: {taken}")

    # Which keys are ours

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

    @needs("binds_context")
    @pytest.mark.parametrize("way", OTHER_CONTEXTS)
    def test_context_is_bound(self, provider: Any, key_id: str, way: str) -> None:
        """Another context opens nothing."""
        sealed = encrypt(provider, key_id)
        with refused(f"another context ({way})", InvalidCiphertext):
            decrypt(provider, sealed, OTHER_CONTEXTS[way])

    @needs("binds_context")
    def test_empty_context_is_bound(self, provider: Any, key_id: str) -> None:
        """A wrap made without a context opens without one, and not with one."""
        plaintext = os.urandom(KEY_BYTES)
        sealed = encrypt(provider, key_id, plaintext, Context())
        expect_opens(provider, sealed, plaintext, Context())
        with refused("a context where there was none", InvalidCiphertext):
            decrypt(provider, sealed)

    @needs("binds_context", "splits_context")
    def test_context_is_split_unambiguously(self, provider: Any, key_id: str) -> None:
        """Moving a character from a value to its key makes another context."""
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
        for position in self.positions(len(sealed.data)):
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

        @self.junk
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

        @self.junk
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

    @needs("binds_context")
    def test_errors_show_no_context_values(self, provider: Any, key_id: str) -> None:
        """Values of a context may be personal data."""
        sealed = encrypt(provider, key_id)
        with refused("another context", InvalidCiphertext) as errors:
            decrypt(provider, sealed, Context({"tenant": MARKER}))
        expect_secretive(errors)

    # Data keys

    @needs("has_data_key")
    def test_data_key_unwraps_to_itself(self, provider: Any, key_id: str) -> None:
        """A data key is 32 fresh bytes, and its wrap opens to them."""
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

    @needs("has_data_key", "binds_context")
    def test_data_key_is_bound_to_its_context(self, provider: Any, key_id: str) -> None:
        """A generated key's wrap binds its context as that of ``encrypt`` does."""
        key = call(provider, "generate_data_key", key_id=key_id, context=CONTEXT)
        with refused("another context for a data key", InvalidCiphertext):
            decrypt(provider, key.ciphertext, OTHER_CONTEXTS["changed value"])


def _takes(provider: Any, key_id: str, view: memoryview) -> bool:
    """Whether ``view`` is wrapped; it must then be wrapped right."""
    try:
        sealed = encrypt(provider, key_id, view)
    except InvalidRequest:
        return False
    expect_opens(provider, sealed, bytes(view))
    return True
