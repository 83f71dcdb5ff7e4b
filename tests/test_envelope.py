"""Sealing and opening under attack, rewrapping, text form, and what can be told without a key."""

from __future__ import annotations

import base64
import hashlib
import hmac
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import pytest
from attrs import evolve
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from hypothesis import given
from hypothesis import strategies as st

from kms_core import envelope as core
from kms_core.aead import Keys, random_key
from kms_core.context import Context
from kms_core.envelope import (
    WRAP_ROOM,
    Accept,
    Shares,
    Unlocked,
    Unwrap,
    Wrapped,
    check_scope_matches,
    open_message,
    room_for,
    seal_message,
    sign_capsule,
    split,
    wrap_context,
)
from kms_core.errors import (
    EnvelopeError,
    FormatError,
    IntegrityError,
    InvalidCiphertext,
    InvalidRequest,
    KMSError,
    NoMatchingRecipient,
    UnsupportedVersion,
)
from kms_core.header import (
    MAX_GENERATION,
    MAX_PLAINTEXT_BYTES,
    Capsule,
    Recipient,
    parse_capsule,
    parse_message_header,
)
from kms_core.inspection import RecipientInfo, armor, inspect, is_sealed, unarmor
from kms_core.types import Ciphertext

DEK = bytes(range(32))
SCOPE = Context({"tenant": "t1"})
CONTEXT = Context({"tenant": "t1", "row": "7"})
ONE, TWO, THREE = "local://s/one/1", "local://s/two/1", "local://s/three/1"
WRAP_ALG = 0x0501
PLAINTEXT = b"hello, envelope"


def new_capsule(
    keys: Keys, wraps: Sequence[Ciphertext], missing: Sequence[str] = (), **options: Any
) -> bytes:
    """A capsule without a threshold, from wraps as providers return them."""
    return core.new_capsule(keys, [Wrapped(wrap) for wrap in wraps], missing, **options)


def rewrap_capsule(
    capsule: bytes, keys: Keys, *, added: Sequence[Ciphertext], **options: Any
) -> bytes:
    """The same for a rewrap."""
    return core.rewrap_capsule(capsule, keys, added=[Wrapped(wrap) for wrap in added], **options)


def open_envelope(sealed: bytes, context: Context, unwrap: Unwrap) -> bytes:
    """Open what carries its own capsule."""
    return core.open_envelope(sealed, context, unwrap, no_store)


def no_store(key_id: bytes) -> NoReturn:
    """A capsule store that must not be asked."""
    pytest.fail(f"the capsule of {key_id.hex()} was looked for elsewhere")


class Vault:
    """KEKs in memory that wrap and unwrap; counts what it is asked, as a bill would.

    With ``binds=False`` it ignores the context, like a service without associated data.
    """

    def __init__(self, *uris: str, binds: bool = True) -> None:
        self._keks = {uri: AESGCM(hashlib.sha256(uri.encode()).digest()) for uri in uris}
        self._binds = binds
        self.calls = 0

    def wrap(self, uri: str, dek: bytes, context: Context) -> Ciphertext:
        """The DEK under one KEK."""
        iv = hashlib.sha256(uri.encode() + dek).digest()[:12]
        return Ciphertext(
            iv + self._keks[uri].encrypt(iv, dek, self._aad(context)), uri, wrap_alg=WRAP_ALG
        )

    def wraps(self, dek: bytes, scope: Context) -> list[Ciphertext]:
        """The DEK under every KEK."""
        context = wrap_context(scope, Keys(dek, scope).key_id, 1)
        return [self.wrap(uri, dek, context) for uri in self._keks]

    def unwrap(
        self,
        wraps: Sequence[tuple[Ciphertext, Context]],
        accept: Accept,
        *,
        threshold: int,
        capsule: bytes,
    ) -> Keys:
        """Try the known recipients in order until ``threshold`` are accepted."""
        del threshold  # accept knows
        known = [
            (ciphertext, context)
            for ciphertext, context in wraps
            if ciphertext.key_uri in self._keks and ciphertext.wrap_alg == WRAP_ALG
        ]
        if not known:
            raise NoMatchingRecipient([ciphertext.key_uri for ciphertext, _ in wraps])
        for ciphertext, context in known:
            self.calls += 1
            iv, sealed = ciphertext.data[:12], ciphertext.data[12:]
            try:
                dek = self._keks[ciphertext.key_uri].decrypt(iv, sealed, self._aad(context))
                keys = accept(ciphertext, dek)
            except (InvalidTag, InvalidCiphertext, ValueError):
                continue
            if keys is not None:
                return keys
        raise IntegrityError

    def _aad(self, context: Context) -> bytes:
        return context.encoded if self._binds else b""


def never(
    wraps: Sequence[tuple[Ciphertext, Context]], accept: Accept, *, threshold: int, capsule: bytes
) -> NoReturn:
    """An unwrap that must not be called."""
    pytest.fail("a key service was asked")


def seal(
    vault: Vault,
    *,
    context: Context = CONTEXT,
    stored: Context | None = None,
    scope: Context = SCOPE,
    dek: bytes = DEK,
    plaintext: bytes = PLAINTEXT,
) -> bytes:
    """An inline envelope for every KEK of the vault."""
    keys = Keys(dek, scope)
    return new_capsule(keys, vault.wraps(dek, scope)) + seal_message(
        keys, plaintext, context, stored
    )


def flips(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Every single-bit change, with the byte it is in."""
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        yield bit // 8, bytes(flipped)


def alter(capsule_bytes: bytes, change: Callable[[Capsule], Capsule]) -> bytes:
    """A capsule edited by somebody who has no DEK: well-formed, under the old MAC."""
    return change(parse_capsule(capsule_bytes)).unsigned() + capsule_bytes[-32:]


def expand(key: bytes, label: bytes, info: bytes, size: int = 32) -> bytes:
    """HKDF-Expand-SHA-512 by a second implementation, with the format's labels."""
    labelled = b"kms_core/v1/" + label + b"\x00" + info
    return HKDFExpand(SHA512(), size, labelled).derive(key)


# --- known answers and second implementations ----------------------------------------------------


def test_the_known_message() -> None:
    """Known key, salt and IV give the bytes that the format states."""
    drawn = iter((bytes(range(0x40, 0x4C)), bytes(range(0x50, 0x5C))))
    sizes = []

    def random(size: int) -> bytes:
        sizes.append(size)
        return next(drawn)

    context = Context({"col": "ssn", "row": "7"})
    sealed = seal_message(Keys(DEK, SCOPE), b"hello, envelope", context, random=random)

    assert sealed.hex() == (
        "c11201bde015ec90084ed872512847ad2df8e5404142434445464748494a4b505152535455565758595a5b"
        "6be21e3a62e392701967f589c52bb037b86ba3de97b5eb43d2abb7ecb05a0b"
    )
    assert sizes == [12, 12]


def test_an_envelope_by_another_writer_opens() -> None:
    """One that knows only the format, AES-GCM, HMAC and HKDF."""
    bind = b"\x01" + SCOPE.encoded
    commitment = expand(DEK, b"commit", bind)
    wrap_aad = Context(
        {
            "tenant": "t1",
            "kms_core:kid": commitment[:16].hex(),
            "kms_core:share": "0/1",
            "kms_core:suite": "1",
        }
    ).encoded
    kek = AESGCM(hashlib.sha256(ONE.encode()).digest())
    blob = bytes(12) + kek.encrypt(bytes(12), DEK, wrap_aad)
    body = b"".join(
        (
            bytes(4),
            commitment,
            len(SCOPE.encoded).to_bytes(2, "big") + SCOPE.encoded,
            b"\x01",
            b"\x05\x01\x00" + bytes((0, len(ONE))) + ONE.encode() + bytes((0, len(blob))) + blob,
            b"\x00",
        )
    )
    unsigned = b"\xc1\x11\x01\x01" + (8 + len(body) + 32).to_bytes(4, "big") + body
    mac = hmac.digest(expand(DEK, b"capsule", bind), unsigned, "sha512")[:32]
    stored = Context({"col": "ssn"}).encoded
    block = len(stored).to_bytes(2, "big") + stored
    salt, iv = b"s" * 12, b"i" * 12
    subkey = expand(expand(DEK, b"message", bind), b"oneshot", b"\x1a" + salt)
    head = b"\xc1\x1a\x01" + commitment[:16] + salt + iv + block
    message = head + AESGCM(subkey).encrypt(iv, PLAINTEXT, block + CONTEXT.encoded)

    assert open_envelope(unsigned + mac + message, CONTEXT, Vault(ONE).unwrap) == PLAINTEXT
    assert new_capsule(Keys(DEK, SCOPE), [Ciphertext(blob, ONE, wrap_alg=0x0501)]) == unsigned + mac


def test_the_wrap_context_says_which_key_is_wrapped() -> None:
    """The scope, and three entries of the core's own."""
    context = wrap_context(SCOPE, bytes(range(16)), 1)

    assert context == {
        "tenant": "t1",
        "kms_core:kid": "000102030405060708090a0b0c0d0e0f",
        "kms_core:share": "0/1",
        "kms_core:suite": "1",
    }
    assert wrap_context(SCOPE, bytes(16), 1, 2, 3)["kms_core:share"] == "2/3"


# --- round trips ---------------------------------------------------------------------------------

TEXT = st.text(min_size=1, max_size=8).filter(lambda text: not text.startswith("kms_core:"))
PAIRS = st.dictionaries(TEXT, TEXT, max_size=4)


@given(
    st.binary(max_size=200),
    PAIRS,
    st.none() | PAIRS.map(Context),
    st.binary(min_size=32).map(bytes),
)
def test_what_is_sealed_opens(
    plaintext: bytes, pairs: dict[str, str], stored: Context | None, seed: bytes
) -> None:
    """Any plaintext, any context, any scope taken from it, with any recipient alone."""
    dek = hashlib.sha256(seed).digest()
    supplied = {key: value for key, value in pairs.items() if key not in (stored or {})}
    effective = {**supplied, **(stored or {})}
    scope = Context(dict(itertools.islice(effective.items(), 2)))
    context = Context(supplied)
    sealed = seal(
        Vault(ONE, TWO), context=context, stored=stored, scope=scope, dek=dek, plaintext=plaintext
    )

    for uri in (ONE, TWO):
        vault = Vault(uri)
        assert open_envelope(sealed, context, vault.unwrap) == plaintext
        assert vault.calls == 1


def test_no_two_messages_are_alike() -> None:
    """Salt and IV are drawn for each message."""
    keys = Keys(DEK, SCOPE)
    headers = [parse_message_header(seal_message(keys, b"", CONTEXT)) for _ in range(20)]

    assert len({header.salt for header in headers}) == 20
    assert len({header.iv for header in headers}) == 20


def test_a_new_data_key_is_random_and_can_be_wiped() -> None:
    """32 bytes in a bytearray, never the same."""
    drawn = [random_key() for _ in range(20)]
    assert {len(key) for key in drawn} == {32}
    assert {type(key) for key in drawn} == {bytearray}
    assert len(set(map(bytes, drawn))) == 20


# --- flipped, cut, appended, swapped -------------------------------------------------------------


@pytest.mark.parametrize("binds", [True, False], ids=["aad", "no-aad"])
@pytest.mark.parametrize("stored", [None, Context({"col": "ssn"})], ids=["supplied", "stored"])
def test_every_flipped_bit_is_noticed(stored: Context | None, *, binds: bool) -> None:
    """Exhaustively, also where the key service does not bind the context."""
    vault = Vault(ONE, TWO, binds=binds)
    sealed = seal(vault, stored=stored)
    body_starts = len(split(sealed)[0])
    assert open_envelope(sealed, CONTEXT, vault.unwrap) == PLAINTEXT

    for position, flipped in flips(sealed):
        vault.calls = 0
        with pytest.raises((FormatError, IntegrityError)) as caught:
            open_envelope(flipped, CONTEXT, vault.unwrap)
        in_key_id = body_starts + 3 <= position < body_starts + 19
        if isinstance(caught.value, FormatError) or in_key_id:
            assert vault.calls == 0
        elif position >= body_starts:
            assert vault.calls == 1
        else:
            assert vault.calls <= 2


@pytest.mark.parametrize("stored", [None, Context({"col": "ssn"})], ids=["supplied", "stored"])
def test_no_truncated_envelope_opens(stored: Context | None) -> None:
    """Cut anywhere; nothing is asked unless the rest still looks like an envelope."""
    vault = Vault(ONE)
    sealed = seal(vault, stored=stored)
    shortest = len(sealed) - len(PLAINTEXT)

    for size in range(len(sealed)):
        with pytest.raises(FormatError if size < shortest else IntegrityError):
            open_envelope(sealed[:size], CONTEXT, vault.unwrap)
    assert vault.calls == len(PLAINTEXT)


@pytest.mark.parametrize("extra", [b"\x00", b"\xc1\x11\x01", bytes(16), bytes(64)])
def test_no_appended_byte_goes_unnoticed(extra: bytes) -> None:
    """Behind the message, and between capsule and message."""
    vault = Vault(ONE)
    sealed = seal(vault)
    capsule, message = split(sealed)

    with pytest.raises(IntegrityError):
        open_envelope(sealed + extra, CONTEXT, vault.unwrap)
    with pytest.raises(FormatError):
        open_envelope(capsule + extra + message, CONTEXT, never)


def test_parts_of_two_messages_do_not_mix() -> None:
    """Salt, IV and body of two messages under one DEK open only as they were sealed."""
    vault = Vault(ONE)
    keys = Keys(DEK, SCOPE)
    capsule = new_capsule(keys, vault.wraps(DEK, SCOPE))
    messages = [seal_message(keys, plaintext, CONTEXT) for plaintext in (b"one", b"two")]
    cuts = (slice(19, 31), slice(31, 43), slice(43, None))

    for salt, iv, body in itertools.product(messages, repeat=3):
        mixed = b"".join(
            (
                messages[0][:19],
                *(part[cut] for part, cut in zip((salt, iv, body), cuts, strict=True)),
            )
        )
        if salt is iv is body:
            assert open_envelope(capsule + mixed, CONTEXT, vault.unwrap) in {b"one", b"two"}
            continue
        with pytest.raises(IntegrityError):
            open_envelope(capsule + mixed, CONTEXT, vault.unwrap)


def test_objects_are_not_taken_for_one_another() -> None:
    """Capsules, messages and streams are refused by each other's readers, unasked."""
    capsule, message = split(seal(Vault(ONE)))
    stream = b"\xc1\x13\x01\x12" + capsule[12:28] + bytes(24 + 32 + 28)
    refused = [
        capsule,
        capsule + capsule,
        capsule + capsule + message,
        b"hello, this is no envelope" * 9,
        b"",
    ]

    for data in refused:
        with pytest.raises(FormatError):
            open_envelope(data, CONTEXT, never)
    for data in (message, message + bytes(100), stream):
        with pytest.raises(FormatError):
            parse_capsule(data)
    for data in (capsule, stream):
        with pytest.raises(FormatError):
            parse_message_header(data)


@pytest.mark.parametrize(
    ("capsule_bytes", "head"),
    [
        pytest.param(b"\xc1\x21\x01", b"", id="capsule-version"),
        pytest.param(b"\xc1\x11\x02", b"", id="capsule-suite"),
        pytest.param(b"", b"\xc1\x22\x01", id="message-version"),
        pytest.param(b"", b"\xc1\x14\x01", id="message-kind"),
        pytest.param(b"", b"\xc1\x12\x02", id="message-suite"),
    ],
)
def test_unknown_versions_kinds_and_suites_are_told_apart(
    capsule_bytes: bytes, head: bytes
) -> None:
    """They are unsupported rather than damaged, and no service is asked."""
    capsule, message = split(seal(Vault(ONE)))
    sealed = capsule_bytes + capsule[len(capsule_bytes) :] + head + message[len(head) :]

    with pytest.raises(UnsupportedVersion):
        open_envelope(sealed, CONTEXT, never)


# --- context and scope ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "context",
    [
        {"tenant": "t1"},
        {"tenant": "t1", "row": "8"},
        {"tenant": "t1", "row": ""},
        {"tenant": "t1", "row": "7", "extra": "x"},
        {"tenant": "t1", "ro": "w7"},
        {"tenant": "t1", "row7": ""},
        {"tenant": "t1", "Row": "7"},
        {"tenant": "t1", "row": "7", "col": "ssn"},
    ],
)
def test_another_context_does_not_open(context: dict[str, str]) -> None:
    """Missing, extra, differing or split elsewhere: the scope fits, the message does not open."""
    vault = Vault(ONE)
    sealed = seal(vault, stored=Context({"col": "ssn"}))

    with pytest.raises(IntegrityError):
        open_envelope(sealed, Context(context), vault.unwrap)
    assert vault.calls == 1


STORED = Context({"row": "7"})


def _drop_block(message: bytes) -> bytes:
    header = parse_message_header(message)
    return b"\xc1\x12" + message[2:43] + message[header.size :]


def _keep_block_as_body(message: bytes) -> bytes:
    return b"\xc1\x12" + message[2:]


def _replace_block(message: bytes) -> bytes:
    header = parse_message_header(message)
    return evolve(header, stored_context=Context({"row": "8"})).encode() + message[header.size :]


def _empty_block(message: bytes) -> bytes:
    header = parse_message_header(message)
    return evolve(header, stored_context=Context()).encode() + message[header.size :]


@pytest.mark.parametrize("change", [_drop_block, _keep_block_as_body, _replace_block, _empty_block])
def test_a_stored_context_is_authenticated(change: Callable[[bytes], bytes]) -> None:
    """It can neither be altered nor turned into one that the reader supplies."""
    vault = Vault(ONE)
    capsule, message = split(seal(vault, context=SCOPE, stored=STORED))
    assert open_envelope(capsule + message, SCOPE, vault.unwrap) == PLAINTEXT

    for context in (SCOPE, STORED, CONTEXT, Context({**SCOPE, "row": "8"})):
        with pytest.raises(IntegrityError):
            open_envelope(capsule + change(message), context, vault.unwrap)


def test_a_supplied_context_cannot_be_stored_afterwards() -> None:
    """A message for which the reader must know the context stays one."""
    vault = Vault(ONE)
    capsule, message = split(seal(vault, context=CONTEXT))
    header = parse_message_header(message)

    for stored in (CONTEXT, STORED, Context()):
        moved = evolve(header, kind=0x1A, stored_context=stored).encode() + message[header.size :]
        for context in (CONTEXT, SCOPE, Context()):
            with pytest.raises(IntegrityError):
                open_envelope(capsule + moved, context, vault.unwrap)


@pytest.mark.parametrize(
    ("supplied", "stored"),
    [
        ({}, None),
        ({"tenant": "t2"}, None),
        ({"tenant": ""}, None),
        ({"Tenant": "t1"}, None),
        ({"tenant": "t1 "}, None),
        ({"row": "7"}, {"col": "ssn"}),
        ({}, {"tenant": "t2"}),
        ({"tenant": "t2"}, {"tenant": "t1"}),
        ({"tenant": "t1"}, {"tenant": "t2"}),
    ],
)
def test_another_scope_is_refused_before_any_key_service(
    supplied: dict[str, str], stored: dict[str, str] | None
) -> None:
    """No request of one tenant unwraps under another's, not even with a stored context's help."""
    sealed = seal(
        Vault(ONE), context=Context(supplied), stored=None if stored is None else Context(stored)
    )

    with pytest.raises(IntegrityError):
        open_envelope(sealed, Context(supplied), never)


@pytest.mark.parametrize(
    ("supplied", "stored"),
    [
        ({"tenant": "t1"}, None),
        ({"tenant": "t1"}, {}),
        ({}, {"tenant": "t1"}),
        ({"tenant": "t1"}, {"tenant": "t1"}),
        ({"tenant": "t1", "row": "7"}, {"col": "ssn"}),
    ],
)
def test_the_scope_may_stand_in_either_context(
    supplied: dict[str, str], stored: dict[str, str] | None
) -> None:
    """The effective context is the supplied and the stored one together."""
    vault = Vault(ONE)
    context = Context(supplied)
    sealed = seal(vault, context=context, stored=None if stored is None else Context(stored))

    assert open_envelope(sealed, context, vault.unwrap) == PLAINTEXT


def test_every_pair_of_the_scope_counts() -> None:
    """An empty scope asks for nothing; of several pairs none may be missing."""
    scope = Context({"a": "1", "b": "2"})

    check_scope_matches(Context(), ())
    check_scope_matches(scope, ({"a": "1"}, {"b": "2", "c": "3"}))
    for contexts in (
        (),
        ({"a": "1"},),
        ({"a": "1"}, {"b": "3"}),
        ({"a": "1", "b": "2"}, {"b": "3"}),
    ):
        with pytest.raises(IntegrityError):
            check_scope_matches(scope, contexts)


def test_scope_is_checked_after_the_format_and_before_the_service() -> None:
    """A damaged message is reported as such even to those with another context."""
    capsule, message = split(seal(Vault(ONE)))

    with pytest.raises(FormatError):
        open_envelope(capsule + message[:50], Context(), never)
    with pytest.raises(FormatError):
        open_envelope(capsule[:-1] + message, Context(), never)


# --- capsules in the wrong hands -----------------------------------------------------------------


def test_a_message_belongs_to_one_data_key() -> None:
    """In front of it, the capsule of another DEK, scope or suite is refused unasked."""
    vault = Vault(ONE)
    _, message = split(seal(vault))
    other_dek, _ = split(seal(vault, dek=bytes(32)))
    other_scope, _ = split(seal(vault, scope=Context({"row": "7"})))

    for capsule in (other_dek, other_scope):
        with pytest.raises(IntegrityError):
            open_envelope(capsule + message, CONTEXT, never)


def test_a_foreign_key_id_in_the_message_is_refused() -> None:
    """Every bit of it, unasked: it is not covered by the message's own tag."""
    capsule, message = split(seal(Vault(ONE)))

    for _, key_id in flips(message[3:19]):
        with pytest.raises(IntegrityError):
            open_envelope(capsule + message[:3] + key_id + message[19:], CONTEXT, never)


def test_a_message_is_opened_only_by_the_key_it_names() -> None:
    """The key id is in no tag, so that whoever has keys at hand must compare it."""
    keys = Keys(DEK, SCOPE)
    message = seal_message(keys, PLAINTEXT, CONTEXT)
    renamed = message[:3] + bytes(16) + message[19:]

    with pytest.raises(IntegrityError):
        open_message(keys, parse_message_header(renamed), renamed, CONTEXT)


def test_another_dek_under_the_same_kek_is_noticed() -> None:
    """The commitment tells it, the next recipient is tried, and then the MAC tells the edit."""
    vault = Vault(ONE, TWO, THREE)
    capsule, message = split(seal(vault))
    context = wrap_context(SCOPE, Keys(DEK, SCOPE).key_id, 1)
    foreign = vault.wrap(ONE, bytes(32), context)

    def replace(value: Capsule) -> Capsule:
        first = value.recipients[0]
        assert first.key_uri == ONE
        return evolve(value, recipients=(evolve(first, blob=foreign.data), *value.recipients[1:]))

    with pytest.raises(IntegrityError):
        open_envelope(alter(capsule, replace) + message, CONTEXT, vault.unwrap)
    assert vault.calls == 2


def test_the_mac_stops_at_once() -> None:
    """With the right DEK at hand, an edited capsule costs one call, however many recipients."""
    vault = Vault(ONE, TWO, THREE)
    capsule, message = split(seal(vault))
    altered = capsule[:-1] + bytes((capsule[-1] ^ 1,))

    with pytest.raises(IntegrityError) as caught:
        open_envelope(altered + message, CONTEXT, vault.unwrap)

    assert vault.calls == 1
    assert str(caught.value) == str(IntegrityError())


EDITS: dict[str, Callable[[Capsule], Capsule]] = {
    "generation": lambda value: evolve(value, generation=1),
    "recipient stripped": lambda value: evolve(value, recipients=value.recipients[:1]),
    "recipient added": lambda value: evolve(
        value, recipients=(*value.recipients, Recipient("local://s/zzz/1", WRAP_ALG, b"blob"))
    ),
    "recipient renamed": lambda value: evolve(
        value, recipients=(value.recipients[0], evolve(value.recipients[1], key_uri="x:1"))
    ),
    "blobs swapped": lambda value: evolve(
        value,
        recipients=(
            evolve(value.recipients[0], blob=value.recipients[1].blob),
            evolve(value.recipients[1], blob=value.recipients[0].blob),
        ),
    ),
    "wrap_alg": lambda value: evolve(
        value, recipients=(value.recipients[0], evolve(value.recipients[1], wrap_alg=0x0502))
    ),
    "missing": lambda value: evolve(value, missing=("x:1",)),
    "created": lambda value: evolve(value, created=0),
    "padding": lambda value: evolve(value, padding=0),
    "extension": lambda value: evolve(value, unknown=((0x0004, b""),)),
    "scope dropped": lambda value: evolve(value, scope=Context()),
    "scope of the same reader": lambda value: evolve(value, scope=Context({"row": "7"})),
    "threshold": lambda value: evolve(
        value,
        threshold=2,
        recipients=tuple(
            evolve(r, share_index=i, share_check=bytes(16))
            for i, r in enumerate(value.recipients, 1)
        ),
    ),
}


@pytest.mark.parametrize("binds", [True, False], ids=["aad", "no-aad"])
@pytest.mark.parametrize("edit", EDITS.values(), ids=[*EDITS])
def test_every_edit_of_a_capsule_is_noticed(
    edit: Callable[[Capsule], Capsule], *, binds: bool
) -> None:
    """What no key service would notice, commitment and MAC do."""
    vault = Vault(ONE, TWO, binds=binds)
    capsule, message = split(seal(vault))

    with pytest.raises((IntegrityError, UnsupportedVersion)):
        open_envelope(alter(capsule, edit) + message, CONTEXT, vault.unwrap)


def test_recipients_of_another_capsule_do_not_fit() -> None:
    """Spliced in, they unwrap to another DEK or not at all."""
    for binds in (True, False):
        vault = Vault(ONE, TWO, binds=binds)
        capsule, message = split(seal(vault))
        foreign, _ = split(seal(vault, dek=bytes(32)))
        recipients = parse_capsule(foreign).recipients
        spliced = alter(capsule, lambda value, r=recipients: evolve(value, recipients=r))  # type: ignore[misc]

        with pytest.raises(IntegrityError):
            open_envelope(spliced + message, CONTEXT, vault.unwrap)
        assert vault.calls == 2


def test_a_key_uri_is_only_matched() -> None:
    """A capsule that names other keys, or known ones with another algorithm, costs no call."""
    capsule, message = split(seal(Vault(ONE)))
    vault = Vault(TWO)
    with pytest.raises(NoMatchingRecipient) as caught:
        open_envelope(capsule + message, CONTEXT, vault.unwrap)
    assert caught.value.key_uris == (ONE,)

    def relabel(value: Capsule) -> Capsule:
        return evolve(value, recipients=(evolve(value.recipients[0], wrap_alg=0x0101),))

    vault = Vault(ONE)
    with pytest.raises(NoMatchingRecipient):
        open_envelope(alter(capsule, relabel) + message, CONTEXT, vault.unwrap)
    assert vault.calls == 0


@pytest.mark.parametrize("size", [0, 1, 31, 33, 64])
def test_an_unwrapped_key_of_another_length_is_a_bad_one(size: int) -> None:
    """The next recipient is tried."""
    capsule, _ = split(seal(Vault(ONE)))

    def unwrap(
        wraps: Sequence[tuple[Ciphertext, Context]],
        accept: Accept,
        *,
        threshold: int,
        capsule: bytes,
    ) -> Keys:
        assert threshold == 1
        ((ciphertext, _),) = wraps
        with pytest.raises(InvalidCiphertext, match="wrong length"):
            accept(ciphertext, (DEK + DEK)[:size])
        return accept(ciphertext, DEK) or pytest.fail("the DEK was not enough")

    assert core.unlock(capsule, unwrap).key_id == parse_capsule(capsule).key_id


def test_unlock_asks_with_the_wrap_context_and_every_recipient() -> None:
    """What the services see is what was there when they wrapped."""
    vault = Vault(ONE, TWO)
    capsule, _ = split(seal(vault))
    asked: list[tuple[Ciphertext, Context]] = []

    def unwrap(
        wraps: Sequence[tuple[Ciphertext, Context]],
        accept: Accept,
        *,
        threshold: int,
        capsule: bytes,
    ) -> Keys:
        assert threshold == 1
        asked.extend(wraps)
        return accept(wraps[0][0], DEK) or pytest.fail("the DEK was not enough")

    core.unlock(capsule, unwrap)

    context = wrap_context(SCOPE, Keys(DEK, SCOPE).key_id, 1)
    assert asked == [(wrap, context) for wrap in vault.wraps(DEK, SCOPE)]


def test_the_dek_is_kept_for_those_who_ask() -> None:
    """A rewrap receives it, and what fails raises before anybody could use it."""
    vault = Vault(ONE)
    capsule, _ = split(seal(vault))
    altered = capsule[:-1] + bytes((capsule[-1] ^ 1,))
    kept = Unlocked()

    core.unlock(capsule, vault.unwrap, keep=kept)
    assert kept.dek == DEK
    with pytest.raises(IntegrityError):
        core.unlock(altered, vault.unwrap)
    kept.wipe()
    assert kept.dek == bytes(32)


# --- thresholds ----------------------------------------------------------------------------------


def split_dek(vault: Vault, indexes: Sequence[int], threshold: int = 2) -> bytes:
    """A capsule whose recipients hold shares."""
    keys = Keys(DEK, SCOPE)
    shares = Shares.of(DEK, threshold, indexes)
    uris = [ONE, TWO, THREE][: len(indexes)]
    wraps = []
    for uri, index in zip(uris, indexes, strict=True):
        share, context = shares.bound(keys, index)
        wraps.append(shares.wrapped(vault.wrap(uri, bytes(share), context), index))
    return core.new_capsule(keys, wraps, threshold=threshold)


def test_as_many_shares_as_the_threshold_open_and_fewer_do_not() -> None:
    """Any two of three, whichever they are; one says nothing."""
    sealed = split_dek(Vault(ONE, TWO, THREE), [7, 200, 3]) + seal_message(
        Keys(DEK, SCOPE), PLAINTEXT, CONTEXT
    )
    for pair in ((ONE, TWO), (TWO, THREE), (ONE, THREE)):
        assert open_envelope(sealed, CONTEXT, Vault(*pair).unwrap) == PLAINTEXT
    for uri in (ONE, TWO, THREE):
        with pytest.raises(IntegrityError):
            open_envelope(sealed, CONTEXT, Vault(uri).unwrap)


def test_a_bad_share_is_told_by_its_check_and_another_one_is_asked() -> None:
    """One recipient that returns something else does not spoil the others."""
    vault = Vault(ONE, TWO, THREE)
    capsule = split_dek(vault, [1, 2, 3])
    value = parse_capsule(capsule)
    context = wrap_context(SCOPE, value.key_id, 1, value.recipients[0].share_index, 2)
    bad = vault.wrap(value.recipients[0].key_uri, bytes(32), context)
    first = evolve(value.recipients[0], blob=bad.data)
    spoiled = sign_capsule(
        evolve(value, recipients=(first, *value.recipients[1:])), Keys(DEK, SCOPE)
    )
    message = seal_message(Keys(DEK, SCOPE), PLAINTEXT, CONTEXT)

    assert open_envelope(spoiled + message, CONTEXT, vault.unwrap) == PLAINTEXT
    assert vault.calls == 3


def test_good_shares_of_something_else_end_the_search() -> None:
    """Every share fits its check, and together they are another DEK: altered."""
    vault = Vault(ONE, TWO)
    value = parse_capsule(split_dek(vault, [1, 2]))
    altered = sign_capsule(evolve(value, commitment=bytes(32)), Keys(DEK, SCOPE))
    with pytest.raises(IntegrityError):
        core.unlock(altered, vault.unwrap)


# --- one body, two keys --------------------------------------------------------------------------


def _times(x: int, y: int) -> int:
    """The product in the field of GHASH (NIST SP 800-38D, section 6.3)."""
    product = 0
    for bit in range(127, -1, -1):
        if x >> bit & 1:
            product ^= y
        y = y >> 1 ^ (0xE1 << 120 if y & 1 else 0)
    return product


def _power(x: int, exponent: int) -> int:
    result = 1 << 127
    while exponent:
        if exponent & 1:
            result = _times(result, x)
        x, exponent = _times(x, x), exponent >> 1
    return result


def _ecb(key: bytes, block: bytes) -> int:
    encryptor = Cipher(AES(key), ECB()).encryptor()  # noqa: S305  one block, to build an attack
    return int.from_bytes(encryptor.update(block), "big")


def _salamander(keys: Sequence[bytes], iv: bytes, aad: bytes) -> bytes:
    """Two blocks and a tag that authenticate under both AES-GCM keys, with different plaintexts."""
    padded = aad + bytes(-len(aad) % 16)
    blocks = [padded[start : start + 16] for start in range(0, len(padded), 16)]
    blocks += [b"an honest block!", bytes(16)]
    blocks.append((8 * len(aad)).to_bytes(8, "big") + (8 * 32).to_bytes(8, "big"))
    hashed = [int.from_bytes(block, "big") for block in blocks]
    subkeys = [_ecb(key, bytes(16)) for key in keys]
    masks = [_ecb(key, iv + b"\x00\x00\x00\x01") for key in keys]

    def ghash(subkey: int) -> int:
        count = len(hashed)
        terms = (_times(block, _power(subkey, count - i)) for i, block in enumerate(hashed))
        total = 0
        for term in terms:
            total ^= term
        return total

    gap = ghash(subkeys[0]) ^ ghash(subkeys[1]) ^ masks[0] ^ masks[1]
    weight = _power(subkeys[0], 2) ^ _power(subkeys[1], 2)
    hashed[-2] = _times(gap, _power(weight, 2**128 - 2))
    tag = ghash(subkeys[0]) ^ masks[0]
    return b"".join((blocks[-3], hashed[-2].to_bytes(16, "big"), tag.to_bytes(16, "big")))


def test_one_body_does_not_open_under_two_keys() -> None:
    """AES-GCM alone would allow it; the key id makes a message name its DEK."""
    salt, iv = b"s" * 12, b"i" * 12
    deks = (DEK, bytes(32))
    subkeys = [
        expand(expand(dek, b"message", b"\x01" + SCOPE.encoded), b"oneshot", b"\x12" + salt)
        for dek in deks
    ]
    body = _salamander(subkeys, iv, CONTEXT.encoded)
    plaintexts = [AESGCM(subkey).decrypt(iv, body, CONTEXT.encoded) for subkey in subkeys]
    assert plaintexts[0] != plaintexts[1]

    vault = Vault(ONE)
    first, second = (split(seal(vault, dek=dek))[0] for dek in deks)
    message = b"\xc1\x12\x01" + Keys(DEK, SCOPE).key_id + salt + iv + body

    assert open_envelope(first + message, CONTEXT, vault.unwrap) == plaintexts[0]
    with pytest.raises(IntegrityError):
        open_envelope(second + message, CONTEXT, never)


# --- what a writer refuses -----------------------------------------------------------------------


def test_a_message_is_at_most_64_mebibytes() -> None:
    """One byte more is refused, and the message says so."""
    with pytest.raises(InvalidRequest, match="at most 67108864 bytes, not 67108865"):
        seal_message(Keys(DEK, SCOPE), bytes(MAX_PLAINTEXT_BYTES + 1), CONTEXT)


def test_a_reserved_name_is_not_stored() -> None:
    """What no reader takes must not be written: the plaintext would be lost."""
    with pytest.raises(InvalidRequest):
        seal_message(Keys(DEK, SCOPE), b"", CONTEXT, Context({"kms_core:kid": "00"}))


@pytest.mark.parametrize(
    ("wraps", "scope"),
    [
        pytest.param([], SCOPE, id="no-recipient"),
        pytest.param([Ciphertext(b"", ONE)], SCOPE, id="empty-blob"),
        pytest.param([Ciphertext(bytes(8193), ONE)], SCOPE, id="long-blob"),
        pytest.param([Ciphertext(b"b", "local://a b")], SCOPE, id="blank"),
        pytest.param([Ciphertext(b"b", "x" * 1025)], SCOPE, id="long-uri"),
        pytest.param([Ciphertext(b"b", f"a:{n}") for n in range(33)], SCOPE, id="33-recipients"),
        pytest.param([Ciphertext(b"b", ONE)], Context({"a": ""}), id="empty-scope-value"),
        pytest.param([Ciphertext(b"b", ONE)], Context({"kms_core:a": "v"}), id="reserved-scope"),
    ],
)
def test_no_capsule_is_written_that_no_reader_takes(
    wraps: list[Ciphertext], scope: Context
) -> None:
    """What was built is parsed back before it is given out."""
    with pytest.raises(KMSError):
        new_capsule(Keys(DEK, scope), wraps)


# --- new capsules --------------------------------------------------------------------------------

KEYS = Keys(DEK, SCOPE)


def test_a_new_capsule_holds_what_was_wrapped() -> None:
    """Generation 0, sorted recipients, nothing missing and no padding."""
    value = parse_capsule(new_capsule(KEYS, Vault(TWO, ONE).wraps(DEK, SCOPE), created=17))

    assert value.generation == 0
    assert value.threshold == 1
    assert value.commitment == KEYS.commitment
    assert value.scope == SCOPE
    assert [recipient.key_uri for recipient in value.recipients] == [ONE, TWO]
    assert value.missing == ()
    assert value.padding is None
    assert value.created == 17


def test_two_wraps_under_one_key_are_one_recipient() -> None:
    """Two instances may reach one key by two endpoints."""
    value = parse_capsule(new_capsule(KEYS, [Ciphertext(b"1", ONE), Ciphertext(b"2", ONE)]))

    assert [recipient.blob for recipient in value.recipients] == [b"2"]


def test_missing_recipients_are_recorded_with_room_for_them() -> None:
    """A later wrap of the largest size replaces each one without changing the length."""
    missing = [TWO, THREE]
    capsule = new_capsule(KEYS, [Ciphertext(b"1", ONE)], missing)
    value = parse_capsule(capsule)
    assert value.missing == (THREE, TWO)
    assert value.padding == room_for(TWO) + room_for(THREE)

    for uri in missing:
        left = [other for other in value.missing if other != uri]
        added = [Ciphertext(bytes(WRAP_ROOM), uri)]
        repaired = rewrap_capsule(capsule, KEYS, added=added, removed=(), missing=left)
        assert len(repaired) == len(capsule)
        capsule, value = repaired, parse_capsule(repaired)

    assert value.missing == ()
    assert {recipient.key_uri for recipient in value.recipients} == {ONE, TWO, THREE}
    assert value.generation == 2


@pytest.mark.parametrize("length", [200, 1000])
def test_room_for_missing_recipients_never_prevents_a_capsule(length: int) -> None:
    """Room is a convenience of later repairs: where not all of it fits, there is less of it."""
    missing = [f"local://{number:0{length}}" for number in range(31)]
    value = parse_capsule(new_capsule(KEYS, [Ciphertext(b"1", ONE)], missing))

    assert len(value.missing) == 31


# --- rewrapping ----------------------------------------------------------------------------------

URIS = st.sampled_from([f"a:{letter}" for letter in "abcdef"])


def test_a_rewrap_leaves_body_key_and_scope_alone() -> None:
    """The new recipient opens the old body, the removed one does not, unknown ones stay."""
    old, new = Vault(ONE, TWO), Vault(THREE)
    sealed = seal(old)
    capsule, body = split(sealed)
    value = parse_capsule(capsule)
    kept = Unlocked()
    keys = core.unlock(capsule, Vault(ONE).unwrap, keep=kept)
    added = new.wraps(bytes(kept.dek), keys.scope)

    rewrapped = rewrap_capsule(capsule, keys, added=added, removed=[ONE], missing=())

    assert open_envelope(rewrapped + body, CONTEXT, new.unwrap) == PLAINTEXT
    assert open_envelope(rewrapped + body, CONTEXT, Vault(TWO).unwrap) == PLAINTEXT
    with pytest.raises(NoMatchingRecipient):
        open_envelope(rewrapped + body, CONTEXT, Vault(ONE).unwrap)
    after = parse_capsule(rewrapped)
    assert after.generation == value.generation + 1
    assert (after.suite, after.threshold, after.commitment, after.scope) == (
        value.suite,
        value.threshold,
        value.commitment,
        value.scope,
    )


def test_a_rewrap_keeps_what_it_does_not_know() -> None:
    """Unless the extension asks to be dropped by those; the creation time stays."""
    value = Capsule(
        1,
        1,
        5,
        KEYS.commitment,
        SCOPE,
        (Recipient(ONE, WRAP_ALG, b"one"),),
        created=17,
        unknown=((0x0004, b"keep"), (0x3FFF, b""), (0x4001, b"drop"), (0x7FFF, b"drop")),
    )
    capsule = sign_capsule(value, KEYS)

    after = parse_capsule(
        rewrap_capsule(
            capsule,
            KEYS,
            added=[Ciphertext(b"two", TWO)],
            removed=(),
            missing=[THREE],
        )
    )

    assert after.unknown == ((0x0004, b"keep"), (0x3FFF, b""))
    assert after.created == 17
    assert after.generation == 6
    assert after.missing == (THREE,)


@given(st.sets(URIS, min_size=1), st.sets(URIS), st.sets(URIS), st.sets(URIS), st.integers(1, 80))
def test_recipients_after_a_rewrap(
    present: set[str], added: set[str], removed: set[str], missing: set[str], size: int
) -> None:
    """Added ones replace, removed ones go, all others stay; none left is refused."""
    capsule = new_capsule(KEYS, [Ciphertext(b"old", uri) for uri in present], ["a:x"])
    expected = (present - removed) | added

    def rewrap() -> bytes:
        return rewrap_capsule(
            capsule,
            KEYS,
            added=[Ciphertext(bytes(size), uri) for uri in added],
            removed=removed,
            missing=missing,
        )

    if not expected:
        with pytest.raises(InvalidRequest, match="at least 1 recipient"):
            rewrap()
        return

    rewrapped = rewrap()
    after = parse_capsule(rewrapped)
    assert {recipient.key_uri for recipient in after.recipients} == expected
    assert all(
        recipient.blob == (bytes(size) if recipient.key_uri in added else b"old")
        for recipient in after.recipients
    )
    assert set(after.missing) == missing
    assert len(rewrapped) >= len(capsule) if missing else len(rewrapped) == len(capsule)
    assert hmac.compare_digest(rewrapped[-32:], KEYS.capsule_mac(rewrapped[:-32]))


def test_a_rewrap_leaves_somebody_who_can_open() -> None:
    """Removing every recipient would destroy the data."""
    capsule = new_capsule(KEYS, [Ciphertext(b"1", ONE), Ciphertext(b"2", TWO)])

    with pytest.raises(InvalidRequest, match="at least 1 recipient"):
        rewrap_capsule(capsule, KEYS, added=(), removed=[ONE, TWO], missing=[THREE])


def test_a_rewrapped_capsule_shrinks_only_in_content() -> None:
    """What a removed recipient took is padded, so that it can be written in place."""
    capsule = new_capsule(KEYS, [Ciphertext(b"1", ONE), Ciphertext(bytes(500), TWO)])
    after = rewrap_capsule(capsule, KEYS, added=(), removed=[TWO], missing=())

    assert len(after) == len(capsule)
    assert parse_capsule(after).padding == 7 + len(TWO) + 500 - 4


def test_a_rewrapped_capsule_grows_where_it_must() -> None:
    """Without enough padding it gets longer, and no new padding."""
    capsule = new_capsule(KEYS, [Ciphertext(b"1", ONE)])
    added = [Ciphertext(b"22", TWO)]
    after = rewrap_capsule(capsule, KEYS, added=added, removed=(), missing=())

    assert len(after) == len(capsule) + 7 + len(TWO) + 2
    assert parse_capsule(after).padding is None


def test_a_data_key_is_rewrapped_two_billion_times_at_most() -> None:
    """Then it is time for another one."""
    last = Capsule(
        1, 1, MAX_GENERATION - 1, KEYS.commitment, SCOPE, (Recipient(ONE, WRAP_ALG, b"one"),)
    )

    def rewrap(value: Capsule) -> bytes:
        return rewrap_capsule(sign_capsule(value, KEYS), KEYS, added=(), removed=(), missing=())

    assert parse_capsule(rewrap(last)).generation == 2**31
    for generation in (2**31, 2**32 - 1):
        with pytest.raises(InvalidRequest, match="re-encrypt"):
            rewrap(evolve(last, generation=generation))


def test_two_wraps_added_under_one_key_are_one_recipient() -> None:
    """As in a new capsule: two instances may reach one key by two endpoints."""
    capsule = new_capsule(KEYS, [Ciphertext(b"1", ONE)])
    added = [Ciphertext(b"2", TWO), Ciphertext(b"3", TWO)]
    after = parse_capsule(rewrap_capsule(capsule, KEYS, added=added, removed=(), missing=()))

    assert [recipient.key_uri for recipient in after.recipients] == [ONE, TWO]


def test_a_rewrap_leaves_as_many_recipients_as_the_threshold() -> None:
    """Fewer could never open anything."""
    capsule = split_dek(Vault(ONE, TWO), [1, 2])
    with pytest.raises(InvalidRequest, match="at least 2 recipients"):
        rewrap_capsule(capsule, KEYS, added=[], removed=[ONE], missing=())


# --- text form -----------------------------------------------------------------------------------


@given(st.binary(max_size=100))
def test_armor_is_base64url_without_padding(data: bytes) -> None:
    """It survives both ways, in an alphabet that URLs and file names leave alone."""
    text = armor(data)

    assert text == base64.urlsafe_b64encode(data).decode().rstrip("=")
    assert unarmor(text) == data


ALPHABET = "ABCDabcd0189-_+/= \n"


@given(st.text(ALPHABET, max_size=12) | st.text(max_size=12))
def test_text_that_is_accepted_is_the_only_form_of_its_bytes(text: str) -> None:
    """Anything else is a format error, whatever was passed."""
    try:
        data = unarmor(text)
    except FormatError:
        return

    assert armor(data) == text


@pytest.mark.parametrize(
    "text",
    [
        "wRI=",
        "wQ==",
        "wR",
        "wRJ",
        "w",
        "wRIBw",
        " wRIB",
        "wRIB\n",
        "wR\nIB",
        "wRIB ",
        "wRI+",
        "wRI/",
        "wR*IB",
        "wRIB\0",
        "\uff37RIB",
        "wRI\ud800",
    ],
)
def test_other_spellings_are_refused(text: str) -> None:
    """Padding, stray bits, white space, the other alphabet, and what is no base64 at all."""
    with pytest.raises(FormatError, match="base64url"):
        unarmor(text)


@pytest.mark.parametrize(
    ("kind", "prefix"),
    [(0x11, "wREB"), (0x12, "wRIB"), (0x1A, "wRoB"), (0x13, "wRMB"), (0x1B, "wRsB")],
)
def test_the_first_characters_name_the_kind(kind: int, prefix: str) -> None:
    """Databases may check them."""
    assert armor(bytes((0xC1, kind, 0x01)) + bytes(60)).startswith(prefix)


def test_real_objects_have_these_first_characters() -> None:
    """A capsule in front, a bare message, and one with a stored context."""
    sealed = seal(Vault(ONE))

    assert armor(sealed).startswith("wREB")
    assert armor(seal_message(KEYS, b"", CONTEXT)).startswith("wRIB")
    assert armor(seal_message(KEYS, b"", CONTEXT, STORED)).startswith("wRoB")


# --- without a key -------------------------------------------------------------------------------


def test_is_sealed_knows_envelopes_by_their_first_bytes() -> None:
    """In any buffer and as text."""
    for data in (
        seal(Vault(ONE)),
        seal_message(KEYS, b"", CONTEXT),
        seal_message(KEYS, b"", CONTEXT, STORED),
        b"\xc1\x13\x01" + bytes(100),
    ):
        assert is_sealed(data)
        assert is_sealed(bytearray(data))
        assert is_sealed(memoryview(data))
        assert is_sealed(armor(data))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\xc1\x12",
        b"\xc1\x22\x01" + bytes(60),
        b"\xc1\x10\x01" + bytes(60),
        b"\xc1\x19\x01" + bytes(60),
        b"\xc2\x12\x01" + bytes(60),
        b"plain text",
        "",
        "w",
        "plain text, not sealed",
        "{}",
        "wRIB=",
        " wRIBAAAAAAAA",
        "gAAAAABh0000",
        "\ud800",
    ],
)
def test_is_sealed_tells_other_data_apart(data: bytes | str) -> None:
    """It answers for anything and never raises."""
    assert is_sealed(data) is False


@given(st.binary(max_size=40) | st.text(max_size=40))
def test_is_sealed_never_raises(data: bytes | str) -> None:
    """Applications ask it about whatever their database holds."""
    assert is_sealed(data) in {True, False}


def test_inspecting_a_message() -> None:
    """It names its key and shows its stored context."""
    bare = inspect(seal_message(KEYS, b"12345", CONTEXT))
    stored = inspect(seal_message(KEYS, b"12345", SCOPE, STORED))

    assert (bare.form, bare.inline, bare.suite, bare.size) == ("message", False, 1, 64)
    assert bare.key_id == stored.key_id == "bde015ec90084ed872512847ad2df8e5"
    assert bare.stored_context is None
    assert stored.stored_context == STORED
    assert bare.recipients == ()
    assert bare.generation is bare.threshold is None
    assert not bare.degraded


def test_inspecting_a_capsule() -> None:
    """It lists recipients and those that were missing."""
    capsule = new_capsule(KEYS, [Ciphertext(b"123", ONE, wrap_alg=WRAP_ALG)], [TWO], created=17)
    info = inspect(capsule)

    assert (info.form, info.inline, info.suite) == ("capsule", False, 1)
    assert info.key_id == "bde015ec90084ed872512847ad2df8e5"
    assert info.size == len(capsule)
    assert (info.generation, info.threshold, info.created) == (0, 1, 17)
    assert info.scope == SCOPE
    assert info.recipients == (RecipientInfo(ONE, "local", WRAP_ALG, 0, 3),)
    assert info.missing == (TWO,)
    assert info.degraded


@pytest.mark.parametrize("stored", [None, STORED], ids=["supplied", "stored"])
@pytest.mark.parametrize("form", [bytes, bytearray, memoryview, armor])
def test_inspecting_an_inline_envelope(
    form: Callable[[bytes], bytes | str], stored: Context | None
) -> None:
    """Capsule and message together, from any buffer or text."""
    sealed = seal(Vault(ONE, TWO), context=SCOPE, stored=stored)
    info = inspect(form(sealed))

    assert (info.form, info.inline) == ("message", True)
    assert info.size == len(sealed)
    assert info.stored_context == stored
    assert [recipient.key_uri for recipient in info.recipients] == [ONE, TWO]
    assert not info.degraded


def test_inspecting_anything_else_is_a_format_error() -> None:
    """Damage is reported, not described."""
    sealed = seal(Vault(ONE))
    capsule, message = split(sealed)

    for data in (
        b"",
        b"plain text",
        "plain text",
        capsule[:-1],
        message[:58],
        capsule + b"\x00",
        capsule + capsule,
        capsule + message[:58],
        message[:58],
        b"\xc1\x22" + message[2:],
    ):
        with pytest.raises(FormatError):
            inspect(data)


@given(st.floats(0, 1, exclude_max=True), st.integers(0, 3), st.binary(max_size=4), st.booleans())
def test_edited_envelopes_lead_to_no_other_exception(
    where: float, drop: int, insert: bytes, text: object
) -> None:
    """Opening and inspecting either work or raise an error of the envelope."""
    vault = Vault(ONE)
    sealed = seal(vault, stored=Context({"col": "ssn"}))
    at = int(where * len(sealed))
    edited = sealed[:at] + insert + sealed[at + drop :]
    try:
        opened = open_envelope(edited, CONTEXT, vault.unwrap)
    except EnvelopeError:
        assert edited != sealed
    else:
        assert edited == sealed
        assert opened == PLAINTEXT
    try:
        info = inspect(armor(edited) if text else edited)
    except FormatError:
        return
    assert info.size == len(edited)
