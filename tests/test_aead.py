"""The key schedule against known answers and a second implementation, and the context binding."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from hypothesis import given
from hypothesis import strategies as st

from kms_core import aead
from kms_core.aead import Keys, OneShot, bind_context, unbind_context, wipe
from kms_core.context import Context
from kms_core.errors import IntegrityError, InvalidCiphertext

DEK = bytes(range(32))
SCOPE = Context({"tenant": "t1"})
CONTEXT = Context({"col": "ssn", "row": "7"})
SALT = bytes(range(0x40, 0x4C))
IV = bytes(range(0x50, 0x5C))
KIND = 0x12

COMMITMENT = bytes.fromhex("bde015ec90084ed872512847ad2df8e550418bd15a0cbfc990c2ff3f27b903a9")
CAPSULE_KEY = bytes.fromhex("618d676c79d3621214dce24206250e32fc8da9499dd368827d39ed5eb8201114")
MESSAGE_KEY = bytes.fromhex("06e9a38b36e881237271f1375c665b7e4401259e14adfc553427aaf415c6e773")
SUBKEY = bytes.fromhex("e1e799b118c92e8a80b9ac061cf196774d4196018501a9ec2db17fe407a67d62")
STREAM_COMMITMENT = bytes.fromhex(
    "80e29158cd1b3068b6f070ff511603310ad78ef47083c673c637803ff4ce96ce"
)

KEY = st.binary(min_size=32, max_size=32)
CONTEXTS = st.dictionaries(st.text(min_size=1, max_size=8), st.text(max_size=8), max_size=4).map(
    Context
)


def expand(key: bytes, label: bytes, info: bytes, size: int = 64) -> bytes:
    """HKDF-Expand-SHA-512 by a second implementation, with the format's labels."""
    labelled = b"kms_core/v1/" + label + b"\x00" + info
    return HKDFExpand(SHA512(), size, labelled).derive(key)


# --- known answers -------------------------------------------------------------------------------


def test_the_known_commitment_and_key_id() -> None:
    """A DEK of known bytes has the commitment and the name that the format states."""
    keys = Keys(DEK, SCOPE)

    assert keys.commitment == COMMITMENT
    assert keys.key_id == COMMITMENT[:16]
    assert keys.suite == 1
    assert keys.scope == SCOPE


@pytest.mark.parametrize("data", [b"", b"capsule", bytes(65536)])
def test_the_known_capsule_key(data: bytes) -> None:
    """The capsule MAC is HMAC-SHA-512 under the stated key, cut to 32 bytes."""
    expected = hmac.digest(CAPSULE_KEY, data, "sha512")[:32]

    assert Keys(DEK, SCOPE).capsule_mac(data) == expected


def test_the_known_message_key_and_subkey() -> None:
    """A one-shot message is plain AES-256-GCM under the stated subkey."""
    one_shot = Keys(DEK, SCOPE).one_shot(KIND, SALT)

    assert expand(MESSAGE_KEY, b"oneshot", bytes((KIND,)) + SALT, 32) == SUBKEY
    sealed = one_shot.encrypt(IV, b"hello, envelope", CONTEXT.encoded)
    assert sealed.hex() == "6be21e3a62e392701967f589c52bb037b86ba3de97b5eb43d2abb7ecb05a0b"
    assert AESGCM(SUBKEY).decrypt(IV, sealed, CONTEXT.encoded) == b"hello, envelope"


def test_the_known_stream_commitment() -> None:
    """The expansion gives the stated commitment of a stream's header as its second half."""
    header = bytes.fromhex("c113010c") + COMMITMENT[:16] + bytes(range(0x60, 0x78))
    keys = Keys(DEK, SCOPE)

    derived = aead._expand(keys._message, b"stream", header + CONTEXT.encoded)

    assert derived[32:] == STREAM_COMMITMENT


# --- against a second implementation -------------------------------------------------------------


@given(KEY, st.binary(max_size=12), st.binary(max_size=300), st.integers(1, 64))
def test_expansion_is_hkdf_expand(key: bytes, label: bytes, info: bytes, size: int) -> None:
    """One HMAC block is HKDF-Expand of up to 64 bytes, and shorter outputs are its prefixes."""
    block = aead._expand(aead._midstate(key), label, info)

    assert len(block) == 64
    assert block[:size] == expand(key, label, info, size)


@given(KEY, CONTEXTS, st.integers(1, 255), st.binary(min_size=12, max_size=12))
def test_the_key_schedule_derives_every_key_from_suite_and_scope(
    dek: bytes, scope: Context, suite: int, salt: bytes
) -> None:
    """Commitment, MAC key and message key are three expansions of the DEK for one binding."""
    keys = Keys(dek, scope, suite)
    bind = bytes((suite,)) + scope.encoded

    assert keys.commitment == expand(dek, b"commit", bind, 32)
    mac_key = expand(dek, b"capsule", bind, 32)
    assert keys.capsule_mac(b"data") == hmac.digest(mac_key, b"data", "sha512")[:32]
    message_key = expand(dek, b"message", bind, 32)
    subkey = expand(message_key, b"oneshot", bytes((KIND,)) + salt, 32)
    assert keys.one_shot(KIND, salt).encrypt(IV, b"x", b"") == AESGCM(subkey).encrypt(IV, b"x", b"")


def test_suite_and_scope_make_other_keys() -> None:
    """A DEK used for another suite or scope has nothing in common with itself."""
    variants = [Keys(DEK, SCOPE), Keys(DEK, SCOPE, 2), Keys(DEK, Context()), Keys(DEK, CONTEXT)]

    assert len({keys.commitment for keys in variants}) == 4
    assert len({keys.capsule_mac(b"") for keys in variants}) == 4
    assert len({keys.one_shot(KIND, SALT).encrypt(IV, b"", b"") for keys in variants}) == 4


def test_kind_and_salt_make_other_subkeys() -> None:
    """A stored and a supplied context cannot be exchanged: their subkeys differ."""
    keys = Keys(DEK, SCOPE)
    subkeys = [keys.one_shot(0x12, SALT), keys.one_shot(0x1A, SALT), keys.one_shot(0x12, IV)]

    assert len({subkey.encrypt(IV, b"", b"") for subkey in subkeys}) == 3


def test_derivation_leaves_no_trace_between_calls() -> None:
    """Keys are midstates that are copied, never advanced."""
    keys = Keys(DEK, SCOPE)
    first = keys.capsule_mac(b"one"), keys.one_shot(KIND, SALT).encrypt(IV, b"", b"")
    keys.capsule_mac(b"two")
    keys.one_shot(KIND, IV)

    assert first == (keys.capsule_mac(b"one"), keys.one_shot(KIND, SALT).encrypt(IV, b"", b""))


# --- keys ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 16, 31, 33, 64])
def test_a_dek_has_32_bytes(size: int) -> None:
    """A key of another length fails like every other bad key."""
    with pytest.raises(IntegrityError):
        Keys(bytes(size), SCOPE)


def test_keys_outlive_the_wiped_dek() -> None:
    """They hold what was derived, so that the DEK can go at once."""
    dek = bytearray(DEK)
    keys = Keys(dek, SCOPE)
    wipe(dek)

    assert keys.capsule_mac(b"") == Keys(DEK, SCOPE).capsule_mac(b"")
    assert not hasattr(keys, "__dict__")


@pytest.mark.parametrize("bit", range(0, 256, 7))
def test_another_commitment_is_noticed(bit: int) -> None:
    """Every bit of a commitment counts."""
    keys = Keys(DEK, SCOPE)
    altered = (int.from_bytes(COMMITMENT, "big") ^ (1 << bit)).to_bytes(32, "big")

    assert keys.commits_to(COMMITMENT)
    assert not keys.commits_to(altered)


@pytest.mark.parametrize("commitment", [b"", COMMITMENT[:16], COMMITMENT + b"\x00"])
def test_a_part_of_a_commitment_does_not_do(commitment: bytes) -> None:
    """A prefix, however long, names no key."""
    assert not Keys(DEK, SCOPE).commits_to(commitment)


# --- messages ------------------------------------------------------------------------------------


@given(KEY, st.binary(max_size=100), st.binary(max_size=100))
def test_what_is_encrypted_decrypts(key: bytes, plaintext: bytes, aad: bytes) -> None:
    """The ciphertext is as long as the plaintext, with a tag of 16 bytes."""
    one_shot = OneShot(key)
    sealed = one_shot.encrypt(IV, plaintext, aad)

    assert len(sealed) == len(plaintext) + 16
    assert one_shot.decrypt(IV, sealed, aad) == plaintext


@pytest.mark.parametrize(
    ("iv", "aad", "change"),
    [
        pytest.param(SALT, b"aad", bytes, id="another-iv"),
        pytest.param(IV, b"aae", bytes, id="another-context"),
        pytest.param(IV, b"aad", lambda sealed: sealed[:-1], id="cut"),
        pytest.param(IV, b"aad", lambda sealed: sealed[:15], id="shorter-than-a-tag"),
        pytest.param(IV, b"aad", lambda sealed: sealed + b"\x00", id="appended"),
        pytest.param(IV, b"aad", lambda sealed: b"\x00" + sealed[1:], id="altered"),
    ],
)
def test_every_failure_is_one_opaque_error(
    iv: bytes, aad: bytes, change: Callable[[bytes], bytes]
) -> None:
    """Neither the message nor the cause says what was wrong."""
    one_shot = OneShot(DEK)
    sealed = one_shot.encrypt(IV, b"plaintext", b"aad")

    with pytest.raises(IntegrityError) as caught:
        one_shot.decrypt(iv, change(sealed), aad)

    assert str(caught.value) == str(IntegrityError())
    assert caught.value.__cause__ is None
    assert isinstance(caught.value.__context__, InvalidTag)
    assert caught.value.__suppress_context__


# --- binding a context where a service cannot ----------------------------------------------------


@given(st.binary(max_size=64), CONTEXTS)
def test_bound_plaintext_comes_back_with_the_same_context(
    plaintext: bytes, context: Context
) -> None:
    """SHA-256 of the canonical context stands in front of what a service wraps."""
    bound = bind_context(plaintext, context)

    assert bound == hashlib.sha256(context.encoded).digest() + plaintext
    assert unbind_context(bytes(bound), context) == plaintext


@given(CONTEXTS, CONTEXTS)
def test_bound_plaintext_is_refused_under_another_context(one: Context, other: Context) -> None:
    """Only an equal context releases it."""
    bound = bind_context(DEK, one)
    if one == other:
        assert unbind_context(bound, other) == DEK
        return

    with pytest.raises(InvalidCiphertext, match="authentication failed"):
        unbind_context(bound, other)


@pytest.mark.parametrize("size", [0, 1, 31])
def test_what_is_too_short_was_never_bound(size: int) -> None:
    """Half a digest is no digest."""
    bound = bytes(bind_context(DEK, CONTEXT))[:size]

    with pytest.raises(InvalidCiphertext):
        unbind_context(bound, CONTEXT)


def test_binding_works_on_buffers_that_can_be_wiped() -> None:
    """Both directions give out bytearrays of their own."""
    dek = bytearray(DEK)
    bound = bind_context(dek, CONTEXT)
    unbound = unbind_context(bound, CONTEXT)
    wipe(dek)
    wipe(bound)

    assert type(bound) is type(unbound) is bytearray
    assert unbound == DEK


def test_wiping_zeroes_a_bytearray_in_place() -> None:
    """The length stays, and every other object is left alone."""
    secret = bytearray(DEK)
    view = memoryview(secret)
    wipe(secret)
    wipe(DEK)
    wipe(None)

    assert bytes(view) == bytes(32)
    assert bytes(range(32)) == DEK
