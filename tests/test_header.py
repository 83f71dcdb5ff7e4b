"""Capsules and message headers: one encoding per value, hard limits, everything else refused."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from attrs import evolve
from hypothesis import example, given
from hypothesis import strategies as st

from kms_core.context import MAX_CONTEXT_BYTES, Context
from kms_core.errors import FormatError, InvalidRequest, KMSError, UnsupportedVersion
from kms_core.header import (
    BODY_KINDS,
    KIND_CAPSULE,
    MAX_CAPSULE_BYTES,
    MAX_PLAINTEXT_BYTES,
    Capsule,
    MessageHeader,
    Recipient,
    capsule_length,
    check_prefix,
    check_scope,
    parse_capsule,
    parse_message_header,
)

COMMITMENT = bytes(range(32))
MAC = b"\xaa" * 32
KNOWN_EXTENSIONS = {0x0000, 0x0001, 0x0003, 0x4002}


# --- a second writer, which also writes what is wrong --------------------------------------------


def u16(data: bytes) -> bytes:
    """``data`` with its length in front."""
    return len(data).to_bytes(2, "big") + data


def recipient(
    key_uri: bytes = b"local://a", blob: bytes = b"blob", share_index: int = 0, alg: int = 0x0501
) -> bytes:
    """One recipient's bytes."""
    return alg.to_bytes(2, "big") + bytes((share_index,)) + u16(key_uri) + u16(blob)


def extension(number: int, value: bytes = b"") -> bytes:
    """One extension's bytes."""
    return number.to_bytes(2, "big") + u16(value)


def capsule(
    recipients: Sequence[bytes] = (recipient(),),
    extensions: Sequence[bytes] = (),
    *,
    head: bytes = b"\xc1\x11\x01",
    threshold: int = 1,
    total: int | None = None,
    scope: bytes = b"\x00\x00",
    counts: tuple[int, int] | None = None,
    stray: bytes = b"",
) -> bytes:
    """A capsule of these parts, whether or not they make one; its MAC is made up."""
    n, e = counts or (len(recipients), len(extensions))
    body = b"".join(
        (bytes(4), COMMITMENT, u16(scope), bytes((n,)), *recipients, bytes((e,)), *extensions)
    )
    body += stray
    size = 8 + len(body) + len(MAC) if total is None else total
    return head + bytes((threshold,)) + size.to_bytes(4, "big") + body + MAC


def with_length(data: bytes) -> bytes:
    """The same bytes, with a length field that tells the truth."""
    return data[:4] + len(data).to_bytes(4, "big") + data[8:] if len(data) >= 8 else data


# --- capsules of every shape ---------------------------------------------------------------------

VISIBLE = st.characters(min_codepoint=0x21, max_codepoint=0x7E)
KEY_URI = st.text(VISIBLE, min_size=4, max_size=24)
U16 = st.integers(0, 0xFFFF)
SCOPES = st.dictionaries(
    st.text(min_size=1, max_size=8), st.text(min_size=1, max_size=8), max_size=4
).map(Context)
UNKNOWN = st.dictionaries(
    st.integers(0, 0x7FFF).filter(lambda number: number not in KNOWN_EXTENSIONS),
    st.binary(max_size=12),
    max_size=4,
)


@st.composite
def capsules(draw: st.DrawFn) -> Capsule:
    """Any capsule, its recipients, missing ones and extensions in the order of the format."""
    uris = sorted(draw(st.lists(KEY_URI, min_size=1, max_size=6, unique=True)))
    count = len(uris)
    threshold = draw(st.integers(1, count))
    indexes = [0] * count
    if threshold > 1:
        one_each = st.lists(st.integers(1, 255), min_size=count, max_size=count, unique=True)
        indexes = draw(one_each)
    share_check = st.binary(min_size=16, max_size=16)
    return Capsule(
        suite=1,
        threshold=threshold,
        generation=draw(st.integers(0, 2**32 - 1)),
        commitment=draw(st.binary(min_size=32, max_size=32)),
        scope=draw(SCOPES),
        recipients=tuple(
            Recipient(
                uri,
                draw(U16),
                draw(st.binary(min_size=1, max_size=40)),
                index,
                draw(share_check) if threshold > 1 else b"",
            )
            for uri, index in zip(uris, indexes, strict=True)
        ),
        missing=tuple(sorted(draw(st.sets(KEY_URI, max_size=4)))),
        created=draw(st.none() | st.integers(0, 2**64 - 1)),
        padding=draw(st.none() | st.integers(0, 60)),
        unknown=tuple(sorted(draw(UNKNOWN).items())),
    )


SMALL = Capsule(1, 1, 0, COMMITMENT, Context(), (Recipient("local://a", 0x0501, b"blob"),))


@given(capsules(), st.binary(min_size=32, max_size=32))
def test_what_is_written_reads_the_same(value: Capsule, mac: bytes) -> None:
    """A capsule survives the way to bytes and back, whatever its MAC is."""
    data = value.unsigned() + mac

    assert parse_capsule(data) == value
    assert capsule_length(data + b"a body") == len(data)


@given(capsules())
def test_the_order_of_recipients_given_makes_no_difference(value: Capsule) -> None:
    """The writer sorts recipients and missing ones, and names a missing one once."""
    recipients = tuple(
        evolve(recipient, share_index=0, share_check=b"") for recipient in value.recipients
    )
    value = evolve(value, threshold=1, recipients=recipients)
    shuffled = evolve(
        value,
        recipients=tuple(reversed(recipients)),
        missing=(*reversed(value.missing), *value.missing),
        unknown=tuple(reversed(value.unknown)),
    )

    assert shuffled.unsigned() == value.unsigned()


def test_share_checks_follow_their_recipients_into_order() -> None:
    """Each recipient keeps its own check when the writer sorts them."""
    value = evolve(
        SMALL,
        threshold=2,
        recipients=(
            Recipient("local://b", 1, b"B", 1, b"B" * 16),
            Recipient("local://a", 1, b"A", 2, b"A" * 16),
        ),
    )

    parsed = parse_capsule(value.unsigned() + MAC)
    assert [recipient.share_check for recipient in parsed.recipients] == [b"A" * 16, b"B" * 16]


def test_two_writers_agree() -> None:
    """Every field stands where the format puts it."""
    value = Capsule(
        suite=1,
        threshold=2,
        generation=0,
        commitment=COMMITMENT,
        scope=Context({"tenant": "t1"}),
        recipients=(
            Recipient("a:1", 0x0101, b"A", 7, b"1" * 16),
            Recipient("b:1", 0x7FFF, b"B", 255, b"2" * 16),
        ),
        missing=("c:1", "d:1"),
        created=0x0102030405060708,
        padding=3,
        unknown=((0x0002, b"two"), (0x4001, b"")),
    )

    assert value.unsigned() + MAC == capsule(
        [recipient(b"a:1", b"A", 7, 0x0101), recipient(b"b:1", b"B", 255, 0x7FFF)],
        [
            extension(0x0000, bytes(3)),
            extension(0x0001, b"1" * 16 + b"2" * 16),
            extension(0x0002, b"two"),
            extension(0x0003, bytes(range(1, 9))),
            extension(0x4001),
            extension(0x4002, u16(b"c:1") + u16(b"d:1")),
        ],
        threshold=2,
        scope=Context({"tenant": "t1"}).encoded,
    )


def test_the_key_id_is_half_the_commitment_and_blobs_are_not_shown() -> None:
    """What names the DEK is public; what wraps it stays out of logs."""
    assert SMALL.key_id == COMMITMENT[:16]
    assert "blob" not in repr(SMALL)


# --- anything else is refused --------------------------------------------------------------------


@given(capsules())
def test_every_truncation_is_refused(value: Capsule) -> None:
    """Cut anywhere, with the old length or a matching one, it is no capsule."""
    data = value.unsigned() + MAC

    for size in range(len(data)):
        for cut in (data[:size], with_length(data[:size])):
            with pytest.raises(FormatError):
                parse_capsule(cut)


@given(capsules(), st.binary(min_size=1, max_size=64))
def test_appended_bytes_are_refused(value: Capsule, extra: bytes) -> None:
    """Behind the MAC, before it, with the old length or a matching one."""
    data = value.unsigned() + MAC

    for longer in (data + extra, with_length(data + extra)):
        with pytest.raises(FormatError):
            parse_capsule(longer)
    with pytest.raises(FormatError, match="stray bytes"):
        parse_capsule(with_length(value.unsigned() + extra + MAC))


EDITS = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 3), st.binary(max_size=4)),
    max_size=4,
)


@given(value=capsules(), edits=EDITS, honest=st.booleans())
def test_edited_capsules_are_refused_or_read_as_they_are(
    *, value: Capsule, edits: list[tuple[float, int, bytes]], honest: bool
) -> None:
    """Whatever parses serialises to the same bytes: no two spellings mean the same."""
    data = value.unsigned() + MAC
    for where, drop, insert in edits:
        at = int(where * len(data))
        data = data[:at] + insert + data[at + drop :]
    if honest:
        data = with_length(data)
    try:
        parsed = parse_capsule(data)
    except FormatError:
        return

    assert parsed.unsigned() + data[-32:] == data


@given(data=st.binary(max_size=300), prefixed=st.booleans())
def test_any_bytes_give_a_capsule_or_a_format_error(*, data: bytes, prefixed: bool) -> None:
    """No input leads to another exception."""
    if prefixed:
        data = with_length(b"\xc1\x11\x01\x01" + bytes(40) + data)
    try:
        parsed = parse_capsule(data)
    except FormatError:
        return

    assert parsed.unsigned() + data[-32:] == data


def test_single_bit_flips_are_refused_or_read_as_they_are() -> None:
    """Exhaustively for a capsule with every extension."""
    value = evolve(SMALL, missing=("b:1",), created=1, padding=2, unknown=((5, b"x"),))
    data = value.unsigned() + MAC
    read = 0
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            parsed = parse_capsule(bytes(flipped))
        except FormatError:
            continue
        read += 1
        assert parsed.unsigned() + flipped[-32:] == flipped

    assert 8 * (32 + 32 + 4) <= read < 8 * len(data)  # MAC, commitment and generation are free


@pytest.mark.parametrize("position", [0, 1, 2])
def test_only_one_value_of_each_of_the_first_bytes_is_a_capsule(position: int) -> None:
    """All 256 values of magic, kind and suite are tried."""
    data = bytearray(capsule())
    accepted = []
    for byte in range(256):
        data[position] = byte
        try:
            parse_capsule(bytes(data))
        except UnsupportedVersion:
            assert position > 0
        except FormatError:
            assert position == 0
        else:
            accepted.append(byte)

    assert accepted == [b"\xc1\x11\x01"[position]]


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (b"\xc1\x21\x01", "version 2"),
        (b"\xc1\x01\x01", "version 0"),
        (b"\xc1\x12\x01", "kind 0x2"),
        (b"\xc1\x19\x01", "kind 0x9"),
        (b"\xc1\x11\x00", "suite 0x00"),
        (b"\xc1\x11\x02", "suite 0x02"),
        (b"\xc1\x11\x80", "suite 0x80"),
    ],
)
def test_the_message_says_what_is_not_supported(head: bytes, message: str) -> None:
    """A reader that is too old is told apart from damage."""
    with pytest.raises(UnsupportedVersion, match=message):
        parse_capsule(capsule(head=head))


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\xc1\x11", b"-----BEGIN", b"\x01\x02\x03"])
def test_other_data_is_no_envelope(data: bytes) -> None:
    """It is not called an unsupported version of one."""
    with pytest.raises(FormatError, match="not a kms_core envelope") as caught:
        check_prefix(data, BODY_KINDS | {KIND_CAPSULE})

    assert not isinstance(caught.value, UnsupportedVersion)


def test_total_length_is_92_to_65536() -> None:
    """Both ends are taken, and nothing beyond them even where the data would be there."""
    smallest = capsule([recipient(b"a:", b"b")])
    filling = MAX_CAPSULE_BYTES - len(capsule(extensions=[extension(0)]))
    largest = capsule(extensions=[extension(0, bytes(filling))])

    assert len(smallest) == 92
    assert len(largest) == 65536
    assert parse_capsule(smallest).recipients[0].blob == b"b"
    assert parse_capsule(largest).padding == filling
    for data in (
        capsule([recipient(b"a", b"b")]),
        capsule(total=91),
        capsule(total=65537) + bytes(65536),
        capsule(extensions=[extension(0, bytes(filling + 1))]),
        capsule(total=2**32 - 1),
    ):
        with pytest.raises(FormatError):
            parse_capsule(data)


# --- rules ---------------------------------------------------------------------------------------

A, B = recipient(b"a:1"), recipient(b"b:1")
CHECKS = extension(0x0001, bytes(32))

MALFORMED_RECIPIENTS = {
    "none": capsule([], stray=bytes(40)),
    "33": capsule([recipient(b"a:%02d" % number) for number in range(33)]),
    "255": capsule([recipient(b"a:%03d" % number) for number in range(255)]),
    "fewer than said": capsule([A], counts=(2, 0), stray=bytes(3)),
    "more than said": capsule([A, B], counts=(1, 0)),
    "repeated": capsule([A, A]),
    "one key, two blobs": capsule([recipient(b"a:1", b"1"), recipient(b"a:1", b"2")]),
    "out of order": capsule([B, A]),
    "prefix behind": capsule([recipient(b"a:11"), A]),
    "no key URI": capsule([recipient(b"", bytes(20))]),
    "key URI of 1025": capsule([recipient(b"a" * 1025)]),
    "blank in key URI": capsule([recipient(b"local://a b")]),
    "line end in key URI": capsule([recipient(b"local://a\n")]),
    "key URI not ASCII": capsule([recipient("local://é".encode())]),
    "no blob": capsule([recipient(b"local://a", b"")]),
    "blob of 8193": capsule([recipient(blob=bytes(8193))]),
    "threshold 0": capsule([A], threshold=0),
    "threshold beyond n": capsule([A], threshold=2),
    "index with threshold 1": capsule([recipient(share_index=1)]),
    "no index with threshold 2": capsule([A, B], [CHECKS], threshold=2),
    "one index missing": capsule([recipient(b"a:1", b"x", 1), B], [CHECKS], threshold=2),
    "index repeated": capsule(
        [recipient(b"a:1", b"x", 9), recipient(b"b:1", b"x", 9)], [CHECKS], threshold=2
    ),
    "key URI longer than the rest": capsule([b"\x05\x01\x00\xff\xff" + bytes(40)]),
    "blob longer than the rest": capsule([b"\x05\x01\x00" + u16(b"a:1") + b"\x20\x00" + bytes(40)]),
}


@pytest.mark.parametrize("data", MALFORMED_RECIPIENTS.values(), ids=[*MALFORMED_RECIPIENTS])
def test_malformed_recipients_are_refused(data: bytes) -> None:
    """Each of them breaks one rule about recipients or shares."""
    with pytest.raises(FormatError):
        parse_capsule(data)


def test_the_largest_recipients_are_read() -> None:
    """32 of them, a URI of 1024 bytes and a blob of 8192 are within the limits."""
    many = capsule([recipient(b"a:%02d" % number) for number in range(32)])
    big = capsule([recipient(b"a" * 1024, bytes(8192), alg=0xFFFF)])

    assert len(parse_capsule(many).recipients) == 32
    assert parse_capsule(big).recipients == (Recipient("a" * 1024, 0xFFFF, bytes(8192)),)


SHARES = [recipient(b"a:1", b"x", 1), recipient(b"b:1", b"x", 2)]

MALFORMED_EXTENSIONS = {
    "repeated": [extension(4, b"1"), extension(4, b"1")],
    "out of order": [extension(5), extension(4)],
    "padding not zero": [extension(0, b"\x00\x01\x00")],
    "padding out of order": [extension(4), extension(0, bytes(4))],
    "share checks with threshold 1": [extension(1, bytes(16))],
    "empty share checks": [extension(1)],
    "creation time of 7 bytes": [extension(3, bytes(7))],
    "creation time of 9 bytes": [extension(3, bytes(9))],
    "empty missing list": [extension(0x4002)],
    "missing list cut in a length": [extension(0x4002, u16(b"a:1") + b"\x00")],
    "missing list cut in a URI": [extension(0x4002, b"\x00\x09a:1")],
    "empty missing URI": [extension(0x4002, u16(b"") + u16(b"a:1"))],
    "missing repeated": [extension(0x4002, u16(b"a:1") * 2)],
    "missing out of order": [extension(0x4002, u16(b"b:1") + u16(b"a:1"))],
    "missing not visible": [extension(0x4002, u16(b"a 1"))],
    "missing of 1025": [extension(0x4002, u16(b"a" * 1025))],
    "longer than the rest": [b"\x00\x04\xff\xff"],
}


@pytest.mark.parametrize("extensions", MALFORMED_EXTENSIONS.values(), ids=[*MALFORMED_EXTENSIONS])
def test_malformed_extensions_are_refused(extensions: list[bytes]) -> None:
    """Each of them breaks one rule about extensions."""
    with pytest.raises(FormatError):
        parse_capsule(capsule(extensions=extensions))


@pytest.mark.parametrize("counts", [(1, 0), (1, 2), (1, 255)])
def test_the_number_of_extensions_is_exact(counts: tuple[int, int]) -> None:
    """One more or fewer than there are is refused."""
    with pytest.raises(FormatError):
        parse_capsule(capsule(extensions=[extension(4, b"x")], counts=counts))


@pytest.mark.parametrize("checks", [0, 1, 31, 33, 48])
def test_there_is_one_share_check_for_each_recipient(checks: int) -> None:
    """16 bytes each; a capsule with a threshold cannot do without them."""
    shares = parse_capsule(capsule(SHARES, [CHECKS], threshold=2)).recipients
    assert [len(recipient.share_check) for recipient in shares] == [16, 16]
    with pytest.raises(FormatError, match="share check"):
        parse_capsule(capsule(SHARES, [extension(1, bytes(checks))], threshold=2))
    with pytest.raises(FormatError, match="share checks contradict"):
        parse_capsule(capsule(SHARES, threshold=2))


@pytest.mark.parametrize("number", [0x8000, 0x8001, 0x8002, 0x8003, 0xC000, 0xC002, 0xFFFF])
def test_unknown_critical_extensions_are_refused(number: int) -> None:
    """They may change the meaning of everything else; the reserved ones count as unknown."""
    with pytest.raises(UnsupportedVersion, match=f"{number:#06x}"):
        parse_capsule(capsule(extensions=[extension(number)]))


@pytest.mark.parametrize("number", [0x0002, 0x0004, 0x3FFF, 0x4000, 0x4001, 0x4003, 0x7FFF])
def test_unknown_extensions_are_kept(number: int) -> None:
    """A reader passes over what does not concern it, and keeps its bytes."""
    data = capsule(extensions=[extension(number, b"later")])

    assert parse_capsule(data).unknown == ((number, b"later"),)
    assert parse_capsule(data).unsigned() + MAC == data


def test_informative_extensions_are_never_a_reason_to_refuse() -> None:
    """A missing recipient that is there, and a time of long ago or far ahead, are only said."""
    for created in (0, 2**64 - 1):
        value = parse_capsule(
            capsule(
                extensions=[
                    extension(3, created.to_bytes(8, "big")),
                    extension(0x4002, u16(b"local://a")),
                ]
            )
        )

        assert value.created == created
        assert value.missing == ("local://a",)


# --- scope ---------------------------------------------------------------------------------------


def _scope(size: int) -> Context:
    return Context({"a": "v" * (size - len(Context({"a": ""}).encoded))})


GOOD_SCOPES = {
    "nothing": Context(),
    "16 pairs": Context({f"{number:02}": "v" for number in range(16)}),
    "2048 bytes": _scope(2048),
    "almost reserved": Context({"kms_core": "v", "kms-core:a": "v", "KMS_CORE:a": "v"}),
}
BAD_SCOPES = {
    "17 pairs": Context({f"{number:02}": "v" for number in range(17)}),
    "2049 bytes": _scope(2049),
    "an empty value": Context({"a": ""}),
    "a reserved name": Context({"kms_core:kid": "v"}),
    "the prefix alone": Context({"kms_core:": "v"}),
}


@pytest.mark.parametrize("scope", GOOD_SCOPES.values(), ids=[*GOOD_SCOPES])
def test_scopes_within_the_limits_travel(scope: Context) -> None:
    """Writer and reader take them."""
    check_scope(scope)
    data = evolve(SMALL, scope=scope).unsigned() + MAC

    assert parse_capsule(data).scope == scope
    assert parse_capsule(data).scope.encoded == scope.encoded


@pytest.mark.parametrize("scope", BAD_SCOPES.values(), ids=[*BAD_SCOPES])
def test_other_scopes_are_refused_by_writer_and_reader(scope: Context) -> None:
    """They would not fit, or speak in the core's own name."""
    with pytest.raises(InvalidRequest):
        check_scope(scope)
    with pytest.raises(InvalidRequest):
        evolve(SMALL, scope=scope).unsigned()
    with pytest.raises(FormatError, match="scope"):
        parse_capsule(capsule(scope=scope.encoded))


@pytest.mark.parametrize(
    "scope", [b"", b"\x00", b"\x00\x01", b"\x00\x00\x00", b"\x00\x01\x00\x01a\x00\x02v"]
)
def test_a_scope_is_a_canonical_map(scope: bytes) -> None:
    """Its own length and that of the field agree."""
    with pytest.raises(FormatError):
        parse_capsule(capsule(scope=scope))


# --- writing -------------------------------------------------------------------------------------


def _recipients(count: int) -> tuple[Recipient, ...]:
    return tuple(Recipient(f"a:{number:03}", 1, b"x") for number in range(count))


@pytest.mark.parametrize(
    "value",
    [
        evolve(SMALL, recipients=_recipients(33)),
        evolve(SMALL, padding=65536 - 50),
        evolve(SMALL, recipients=tuple(evolve(r, blob=bytes(8192)) for r in _recipients(8))),
    ],
    ids=["33-recipients", "padding", "blobs"],
)
def test_a_writer_refuses_what_no_reader_takes(value: Capsule) -> None:
    """Too many recipients or bytes are the caller's mistake, and nothing is written."""
    with pytest.raises(InvalidRequest, match=r"1 to 32 recipients|at most 65536 bytes"):
        value.unsigned()


@pytest.mark.parametrize(
    "value",
    [
        evolve(SMALL, recipients=_recipients(256)),
        evolve(SMALL, recipients=(Recipient("a:1", 1, bytes(65536)),)),
        evolve(SMALL, missing=tuple(f"a:{number:01000}" for number in range(70))),
        evolve(SMALL, padding=65536),
        evolve(SMALL, unknown=tuple((number + 16, b"") for number in range(256))),
    ],
    ids=["256-recipients", "blob", "missing", "padding", "extensions"],
)
def test_what_no_field_can_hold_is_refused_like_any_excess(value: Capsule) -> None:
    """A writer raises one of the library's errors, whatever overflows."""
    with pytest.raises(KMSError):
        value.unsigned()


@given(capsules(), st.integers(0, 400))
@example(SMALL, 3)
@example(SMALL, 4)
def test_padding_fills_up_to_a_length(value: Capsule, more: int) -> None:
    """Exactly, once there is room for the extension; older padding does not count."""
    bare = evolve(value, padding=None)
    size = len(bare.unsigned()) + 32
    padded = value.padded_to(size + more)

    if more < 4:
        assert padded == bare
    else:
        assert padded == evolve(value, padding=more - 4)
        assert len(padded.unsigned()) + 32 == size + more
        assert parse_capsule(padded.unsigned() + MAC) == padded


def test_a_capsule_longer_than_asked_for_is_not_padded() -> None:
    """Padding cannot shorten."""
    assert evolve(SMALL, padding=5).padded_to(92) == SMALL


# --- message headers -----------------------------------------------------------------------------

KEY_ID, SALT, IV = bytes(range(16)), bytes(range(16, 28)), bytes(range(28, 40))
TAG = bytes(16)


def message(block: bytes | None = None, rest: bytes = TAG, head: bytes = b"") -> bytes:
    """A message whose context block may be wrong."""
    kind = 0x12 if block is None else 0x1A
    return (head or bytes((0xC1, kind, 1))) + KEY_ID + SALT + IV + (block or b"") + rest


CONTEXTS = st.dictionaries(st.text(min_size=1, max_size=8), st.text(max_size=8), max_size=4).map(
    Context
)


@given(st.none() | CONTEXTS, st.binary(min_size=16, max_size=80))
def test_a_message_header_reads_as_it_was_written(stored: Context | None, rest: bytes) -> None:
    """Every field is found again, and where the ciphertext starts."""
    data = message(None if stored is None else u16(stored.encoded), rest)
    header = parse_message_header(data)

    assert header == MessageHeader(
        0x12 if stored is None else 0x1A, 1, KEY_ID, SALT, IV, stored, len(data) - len(rest)
    )
    assert header.encode() + rest == data


def test_a_message_without_context_has_43_bytes_in_front() -> None:
    """59 bytes more than the plaintext, as the format says."""
    assert parse_message_header(message()).size == 43
    assert len(message()) == 59


@pytest.mark.parametrize("block", [None, u16(Context({"a": "1"}).encoded)], ids=["bare", "stored"])
def test_every_truncation_of_a_bare_message_is_refused(block: bytes | None) -> None:
    """What has no room for a tag is no message."""
    data = message(block)

    for size in range(len(data)):
        with pytest.raises(FormatError):
            parse_message_header(data[:size])


MALFORMED_BLOCKS = {
    "absent": b"",
    "half a length": b"\x00",
    "length zero": b"\x00\x00",
    "length one": b"\x00\x01\x00",
    "longer than the rest": b"\x00\xff\x00\x00",
    "longer than any map": b"\x20\x01" + bytes(8193),
    "stray byte": u16(b"\x00\x00\x00"),
    "out of order": u16(b"\x00\x02\x00\x01b\x00\x00\x00\x01a\x00\x00"),
    "not UTF-8": u16(b"\x00\x01\x00\x01\xff\x00\x00"),
    "reserved name": u16(Context({"kms_core:kid": "00"}).encoded),
}


@pytest.mark.parametrize("block", MALFORMED_BLOCKS.values(), ids=[*MALFORMED_BLOCKS])
def test_malformed_context_blocks_are_refused(block: bytes) -> None:
    """The stored context is a canonical map without reserved names."""
    data = bytes((0xC1, 0x1A, 1)) + KEY_ID + SALT + IV + block + TAG
    with pytest.raises(FormatError):
        parse_message_header(data)


def test_a_stored_context_may_have_8192_bytes_and_empty_values() -> None:
    """It is a context, with a context's limits rather than a scope's."""
    empty = len(Context({"a": "", "b": ""}).encoded)
    stored = Context({"a": "", "b": "v" * (MAX_CONTEXT_BYTES - empty)})

    assert parse_message_header(message(u16(stored.encoded))).stored_context == stored


def test_at_most_64_mebibytes_of_plaintext() -> None:
    """One byte more is refused before any of it is looked at."""
    largest = message(rest=bytes(MAX_PLAINTEXT_BYTES + 16))

    assert MAX_PLAINTEXT_BYTES == 2**26
    assert parse_message_header(largest).size == 43
    with pytest.raises(FormatError, match="cut short or too long"):
        parse_message_header(largest + b"\x00")


@pytest.mark.parametrize("position", [1, 2])
def test_only_messages_are_read_as_messages(position: int) -> None:
    """All 256 values of kind and suite are tried: two kinds and one suite are taken."""
    accepted = []
    for byte in range(256):
        data = bytearray(message(u16(Context().encoded)))
        data[position] = byte
        try:
            parse_message_header(bytes(data))
        except UnsupportedVersion:
            continue
        accepted.append(byte)

    assert accepted == ([0x12, 0x1A] if position == 1 else [1])


@given(st.binary(max_size=120), st.sampled_from([b"", b"\xc1\x12\x01", b"\xc1\x1a\x01"]))
def test_any_bytes_give_a_header_or_a_format_error(data: bytes, head: bytes) -> None:
    """No input leads to another exception, and no header has a second encoding."""
    data = head + data
    try:
        header = parse_message_header(data)
    except FormatError:
        return

    assert header.encode() == data[: header.size]
