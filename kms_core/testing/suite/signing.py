"""Signatures and MACs, each algorithm of ``signs`` in turn."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final

import attrs
import pytest
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)

from kms_core.errors import InvalidRequest
from kms_core.testing.checks import (
    MARKER,
    expect,
    expect_key_uri,
    expect_secretive,
    expect_version,
    kind_of,
    refused,
    sign,
    verify,
)
from kms_core.testing.suite.declared import Declared, needs
from kms_core.testing.suite.strangers import stranger_signature
from kms_core.types import (
    MAC_ALGORITHMS,
    MAX_SIGNED_BYTES,
    SIGNATURE_ALGORITHMS,
    Signature,
)

Signer = tuple[Any, str]

_ALL: Final = sorted(SIGNATURE_ALGORITHMS | MAC_ALGORITHMS)
_UNKNOWN: Final = (
    "",
    "ROT13",
    "SHA256",
    "ecdsa-sha256",
    "ECDSA-SHA1",
    "ED25519",
    "RSA-OAEP-SHA256",
)
_MAX_SIGNATURE_BYTES: Final = 8192


@needs("has_sign")
class Signing(Declared):
    """What is signed is the message, whatever the service wants to be given."""

    def test_signature_says_who_made_it(self, signer: Signer, algorithm: str) -> None:
        """A signature carries all that finding its key and checking it needs."""
        provider, key_id = signer
        signature = sign(provider, key_id, self.message(algorithm), algorithm)
        expect(type(signature.data) is bytes, f"data is {kind_of(signature.data)}; make it bytes")
        size = len(signature.data)
        expect(1 <= size <= _MAX_SIGNATURE_BYTES, f"the signature has {size} bytes")
        expect(signature.algorithm == algorithm, f"algorithm is {signature.algorithm!r}")
        expect(signature.instance is None, "instance is for the core to fill in")
        expect_key_uri(provider, signature.key_uri)
        expect_version(signature.key_uri, signature.key_version)
        matched = provider.match(signature.key_uri)
        expect(
            isinstance(matched, str) and bool(matched),
            f"match({signature.key_uri!r}) is {matched!r} for the instance's own signature",
        )

    @needs("has_verify")
    @pytest.mark.parametrize("size", ["min", "1", "4096", "max"])
    def test_signature_is_accepted(self, signer: Signer, algorithm: str, size: str) -> None:
        """The service accepts what it signed, at every size of message that it takes."""
        message = self.message(algorithm, size)
        signature = sign(*signer, message, algorithm)
        good = verify(signer[0], signature, message, algorithm)
        expect(good, f"verify refuses the signature of a message of {len(message)} bytes")

    def test_ecdsa_signature_is_der(self, signer: Signer, algorithm: str) -> None:
        """Whatever the service speaks, an ECDSA signature leaves a provider in DER."""
        if not algorithm.startswith("ECDSA-"):
            pytest.skip(f"not so: {algorithm} has one encoding only")
        data = sign(*signer, self.message(algorithm), algorithm).data
        expect(_is_der(data), "the ECDSA signature is not DER; convert r and s")

    @needs("has_verify")
    def test_every_altered_byte_of_a_signature_is_noticed(
        self, signer: Signer, algorithm: str
    ) -> None:
        """One flipped bit anywhere in the signature, and it is one no more."""
        message = self.message(algorithm)
        signature = sign(*signer, message, algorithm)
        for position in self.positions(len(signature.data)):
            altered = bytearray(signature.data)
            altered[position] ^= 1 << position % 8
            changed = attrs.evolve(signature, data=bytes(altered))
            accepted = verify(signer[0], changed, message, algorithm)
            expect(not accepted, f"a signature altered at byte {position} was accepted")

    @needs("has_verify")
    @pytest.mark.parametrize("damage", ["empty", "cut", "longer", "junk", "zeros"])
    def test_damaged_signature_is_false(self, signer: Signer, algorithm: str, damage: str) -> None:
        """A signature that is wrong in whatever way is ``False``, not an error."""
        message = self.message(algorithm)
        signature = sign(*signer, message, algorithm)
        data = signature.data
        damaged = {
            "empty": b"",
            "cut": data[:-1],
            "longer": data + b"\x00",
            "junk": os.urandom(len(data)),
            "zeros": bytes(len(data)),
        }[damage]
        changed = attrs.evolve(signature, data=damaged)
        accepted = verify(signer[0], changed, message, algorithm)
        expect(not accepted, f"a damaged signature ({damage}) was accepted")

    @needs("has_verify")
    def test_signature_of_another_message_is_false(self, signer: Signer, algorithm: str) -> None:
        """A signature holds for its message only, not for one that begins or hashes alike."""
        message = self.message(algorithm)
        signature = sign(*signer, message, algorithm)
        for other in (message[:-1], message + b"\x00", bytes(len(message)), message.swapcase()):
            accepted = verify(signer[0], signature, other, algorithm)
            expect(not accepted, "a signature was accepted for another message")

    @needs("has_verify")
    def test_signature_by_another_key_is_false(self, signer: Signer, algorithm: str) -> None:
        """A good signature by a stranger's key of the same kind is not one by ours."""
        message = self.message(algorithm)
        signature = sign(*signer, message, algorithm)
        data = stranger_signature(algorithm, message, len(signature.data))
        if data is None:
            pytest.skip(f"not here: this host's cryptography has no {algorithm}")
        accepted = verify(signer[0], attrs.evolve(signature, data=data), message, algorithm)
        expect(not accepted, "a signature by another key was accepted")

    @needs("has_verify")
    def test_signature_under_another_algorithm_is_refused(
        self, signer: Signer, algorithm: str
    ) -> None:
        """A signature does not become one of another algorithm by being called so."""
        message = self.message(algorithm)
        signature = sign(*signer, message, algorithm)
        for other in (name for name in (*_ALL, *_UNKNOWN) if name != algorithm):
            renamed = attrs.evolve(signature, algorithm=other)
            accepted = _accepts(signer[0], renamed, message)
            expect(not accepted, f"a signature by {algorithm} was accepted as {other!r}")

    def test_unknown_algorithm_is_refused(self, signer: Signer, algorithm: str) -> None:
        """Only the contract's names are known, in the contract's spelling."""
        for unknown in _UNKNOWN:
            with refused(f"signing with {unknown!r}", InvalidRequest):
                sign(*signer, self.message(algorithm), unknown)

    def test_algorithm_of_another_kind_of_key_is_refused(
        self, signer: Signer, algorithm: str
    ) -> None:
        """The caller is told that this key does not do it, and no other algorithm is used."""
        other = "HMAC-SHA256" if algorithm in SIGNATURE_ALGORITHMS else "Ed25519"
        with refused(f"signing with {other}", InvalidRequest):
            sign(*signer, self.message(algorithm), other)

    @pytest.mark.parametrize("message", ["text", None], ids=["str", "None"])
    def test_message_that_is_not_bytes_is_refused(
        self, signer: Signer, algorithm: str, message: object
    ) -> None:
        """Some SDKs take text and encode it in ways of their own."""
        with refused(f"a message of type {kind_of(message)}", InvalidRequest):
            sign(*signer, message, algorithm)

    @needs("has_verify")
    def test_verified_message_that_is_not_bytes_is_refused(
        self, signer: Signer, algorithm: str
    ) -> None:
        """The same goes for verifying."""
        signature = sign(*signer, b"text", algorithm)
        with refused("a message of type str", InvalidRequest):
            verify(signer[0], signature, "text", algorithm)

    @pytest.mark.parametrize("excess", ["short", "long"])
    def test_message_out_of_bounds_is_refused(
        self, signer: Signer, algorithm: str, excess: str
    ) -> None:
        """One byte fewer or more than the service takes is the caller's mistake."""
        fewest, most = self.message_bounds(algorithm)
        length = fewest - 1 if excess == "short" else most + 1
        if not 0 <= length <= MAX_SIGNED_BYTES:
            pytest.skip(f"declared: signed_bytes has no {excess} bound for {algorithm}")
        with refused(f"a message of {length} bytes", InvalidRequest):
            sign(*signer, bytes(length), algorithm)

    def test_signing_errors_show_no_message(self, signer: Signer, algorithm: str) -> None:
        """A refusal to sign does not repeat what it refuses."""
        errors = []
        for message, name in ((MARKER, algorithm), (MARKER.encode(), "ROT13")):
            with refused("a wrong request", InvalidRequest) as raised:
                sign(*signer, message, name)
            errors += raised
        expect_secretive(errors)

    @needs("has_verify")
    def test_old_signatures_hold_after_rotation(
        self,
        signer: Signer,
        algorithm: str,
        rotate_signing_key: Callable[[], None] | None,
    ) -> None:
        """A signature is checked with exactly the version that it names."""
        if rotate_signing_key is None:
            pytest.skip("declared: the fixture rotate_signing_key returns None")
        message = self.message(algorithm)
        old = sign(*signer, message, algorithm)
        rotate_signing_key()
        new = sign(*signer, message, algorithm)
        for signature in (old, new):
            held = verify(signer[0], signature, message, algorithm)
            expect(held, f"a signature by {signature.key_uri} is refused after rotation")
        if old.key_uri == new.key_uri:
            return  # the instance is pinned to a version, or has not looked for a new one yet
        swapped = attrs.evolve(old, key_uri=new.key_uri, key_version=new.key_version)
        accepted = verify(signer[0], swapped, message, algorithm)
        expect(not accepted, f"{new.key_uri} accepts a signature by {old.key_uri}")


def _is_der(data: bytes) -> bool:
    try:
        r, s = decode_dss_signature(data)
    except ValueError:
        return False
    return encode_dss_signature(r, s) == data


def _accepts(provider: Any, signature: Signature, message: bytes) -> bool:
    """What ``verify`` says; to refuse the request is to refuse the signature."""
    try:
        return verify(provider, signature, message, signature.algorithm)
    except InvalidRequest:
        return False
