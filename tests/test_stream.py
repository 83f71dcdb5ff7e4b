"""Segmented streams: their bytes against a second implementation, then under attack."""

from __future__ import annotations

import array
import gc
import io
import itertools
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from hypothesis import given, settings
from hypothesis import strategies as st

from kms_core import envelope, stream
from kms_core.aead import Keys, StreamKey
from kms_core.context import Context
from kms_core.envelope import Accept, Wrapped, new_capsule, stream_head
from kms_core.errors import EnvelopeError, FormatError, IntegrityError, InvalidRequest
from kms_core.header import KIND_STREAM, STORES_CONTEXT
from kms_core.stream import (
    SEGMENT_OVERHEAD,
    SegmentSealer,
    StreamReader,
    StreamWriter,
    open_segment,
    plaintext_length,
    read_full,
    sealed_length,
    segment_aad,
    write_all,
)
from kms_core.types import Ciphertext

DEK = bytes(range(32))
SCOPE = Context({"tenant": "t1"})
CONTEXT = Context({"tenant": "t1", "row": "7"})
KEYS = Keys(DEK, SCOPE)
CAPSULE = new_capsule(KEYS, [Wrapped(Ciphertext(b"wrap", "memory://s/k/1", wrap_alg=0x7FFF))])

P = 4096
STRIDE = P + SEGMENT_OVERHEAD
HEAD = 44 + 32
KEY = KEYS.stream(b"some header", CONTEXT)[0]
#: Lengths around every edge of the segmentation.
EDGES = (0, 1, P - 1, P, P + 1, 2 * P - 1, 2 * P, 2 * P + 1, 3 * P)

Random = Callable[[int], bytes]


def counting(start: int = 1) -> Random:
    """Distinct bytes that are the same in every run, in place of randomness."""
    numbers = itertools.count(start)
    return lambda size: next(numbers).to_bytes(size, "big")


def pattern(size: int) -> bytes:
    """Plaintext in which no two segments are alike."""
    return b"".join(number.to_bytes(4, "big") for number in range(size // 4 + 1))[:size]


def seal(
    plaintext: bytes,
    *chunks: int,
    context: Context = CONTEXT,
    stored: Context | None = None,
    keys: Keys = KEYS,
    random: Random | None = None,
) -> bytes:
    """A stream without its capsule, written in chunks of these sizes and the rest at once."""
    sealed = io.BytesIO()
    source = io.BytesIO(plaintext)
    with envelope.start_stream(
        sealed, keys, context, stored, segment_log2=12, random=random or counting()
    ) as writer:
        for chunk in chunks:
            writer.write(source.read(chunk))
        writer.write(source.read())
    return sealed.getvalue()


def unwrap(
    wraps: Sequence[tuple[Ciphertext, Context]], accept: Accept, *, threshold: int, capsule: bytes
) -> Keys:
    """Every wrap holds the DEK."""
    keys = accept(wraps[0][0], bytearray(DEK))
    assert keys is not None
    return keys


def open_source(source: IO[bytes], context: Context = CONTEXT) -> StreamReader:
    """A reader of a stream whose capsule is kept elsewhere."""
    reader = envelope.open_stream(source, context, unwrap, lambda _: CAPSULE)
    assert isinstance(reader, StreamReader)
    return reader


def unseal(sealed: bytes, context: Context = CONTEXT) -> bytes:
    """All of the plaintext, or an error."""
    with open_source(io.BytesIO(sealed), context) as reader:
        return reader.read()


def segments_of(sealed: bytes) -> list[bytes]:
    """The segments after the header."""
    body = sealed[HEAD:]
    return [body[start : start + STRIDE] for start in range(0, len(body), STRIDE)]


def released(source: IO[bytes]) -> bytes:
    """What comes out, one segment at a time, until the error that there must be."""
    got = b""
    with pytest.raises(EnvelopeError), open_source(source) as reader:  # noqa: PT012
        while part := reader.read1():
            got += part
        pytest.fail("the end was reached")
    return got


class Source(io.RawIOBase):
    """A raw file over bytes that gives at most ``most`` at a time, and may lie about its size."""

    def __init__(
        self, data: bytes, most: int = 1 << 30, *, seeks: bool = True, size: int | None = None
    ) -> None:
        self._data = io.BytesIO(data)
        self._most = most
        self._seeks = seeks
        self._size = size
        self.failures: list[OSError | None] = []

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._seeks

    def tell(self) -> int:
        return self._data.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        position = self._data.seek(offset, whence)
        return position if self._size is None or whence != io.SEEK_END else self._size

    def readinto(self, buffer: Any, /) -> int:
        failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            raise failure
        return self._data.readinto(memoryview(buffer)[: self._most])


def as_file(raw: io.RawIOBase) -> IO[bytes]:
    """A raw file, as ``open`` types them."""
    return cast("IO[bytes]", raw)


@contextmanager
def pipe_with(data: bytes) -> Iterator[IO[bytes]]:
    """The reading end of a pipe that holds ``data`` and then ends; it has to fit the pipe."""
    receiving, sending = os.pipe()
    with open(sending, "wb", buffering=0) as out:  # noqa: PTH123
        assert out.write(data) == len(data)
    with open(receiving, "rb", buffering=0) as source:  # noqa: PTH123
        yield source


@contextmanager
def file_with(path: Path, data: bytes) -> Iterator[IO[bytes]]:
    """A raw file that holds ``data``."""
    path.write_bytes(data)
    with path.open("rb", buffering=0) as source:
        yield source


# --- the bytes -----------------------------------------------------------------------------------


def test_the_known_header() -> None:
    """Fixed header and commitment are those that the format states."""
    salt = bytes(range(0x60, 0x78))

    context = Context({"col": "ssn", "row": "7"})
    head, _, parsed = stream_head(KEYS, context, None, 12, lambda _: salt)

    assert head.hex() == (
        "c113010cbde015ec90084ed872512847ad2df8e5"
        "606162636465666768696a6b6c6d6e6f7071727374757677"
        "80e29158cd1b3068b6f070ff511603310ad78ef47083c673c637803ff4ce96ce"
    )
    assert parsed.segment_bytes == P


def expand(key: bytes, label: bytes, info: bytes, size: int) -> bytes:
    """HKDF-Expand-SHA-512 with the format's labels."""
    return HKDFExpand(SHA512(), size, b"kms_core/v1/" + label + b"\x00" + info).derive(key)


def written_by_another(
    plaintext: bytes, context: Context, stored: Context | None, random: Random
) -> bytes:
    """The stream as sections 2 and 7 of the format have it, from the primitives up."""
    bind = b"\x01" + SCOPE.encoded
    header = bytes((0xC1, 0x13 if stored is None else 0x1B, 1, 12))
    header += expand(DEK, b"commit", bind, 16) + random(24)
    if stored is not None:
        header += len(stored.encoded).to_bytes(2, "big") + stored.encoded
    message_key = expand(DEK, b"message", bind, 32)
    block = expand(message_key, b"stream", header + context.encoded, 64)
    out = header + block[32:]
    for index in range(len(plaintext) // P + 1):
        chunk = plaintext[index * P : (index + 1) * P]
        iv = random(12)
        aad = index.to_bytes(8, "big") + bytes((len(chunk) < P,))
        out += iv + AESGCM(block[:32]).encrypt(iv, chunk, aad)
    return out


@pytest.mark.parametrize("stored", [None, Context(), Context({"file": "a"})])
@pytest.mark.parametrize("size", EDGES)
def test_a_second_implementation_writes_the_same_bytes(size: int, stored: Context | None) -> None:
    """Header, segments, associated data and the short last segment are those of the format."""
    plaintext = pattern(size)

    sealed = seal(plaintext, stored=stored)

    assert sealed == written_by_another(plaintext, CONTEXT, stored, counting())
    assert unseal(sealed) == plaintext


@given(st.integers(0, 4 * P), st.lists(st.integers(0, 2 * P + 1), max_size=8))
def test_how_it_was_written_does_not_show(size: int, chunks: list[int]) -> None:
    """Any chunking of the writes gives the bytes that one write gives."""
    plaintext = pattern(size)

    assert seal(plaintext, *chunks) == seal(plaintext)


@pytest.mark.parametrize("size", EDGES)
@pytest.mark.parametrize("chunk", [1, P - 1, P, P + 1, 2 * P])
def test_chunks_at_every_edge(size: int, chunk: int) -> None:
    """Chunks that end just before, at and after the end of a segment."""
    plaintext = pattern(size)
    chunks = [min(chunk, 97)] * 3 + [chunk] * (size // max(chunk, 1024) + 1)

    assert seal(plaintext, *chunks) == seal(plaintext)


@pytest.mark.parametrize("size", EDGES)
def test_an_envelope_read_at_once_reads_the_same(size: int) -> None:
    """``open`` of a stream gives what ``opening`` reads."""
    plaintext = pattern(size)
    sealed = seal(plaintext)

    whole = envelope.open_envelope(CAPSULE + sealed, CONTEXT, unwrap, lambda _: b"")

    assert whole == unseal(sealed) == plaintext


@given(st.integers(0, 1 << 40), st.integers(12, 22))
def test_lengths_are_each_others_inverse(size: int, log2: int) -> None:
    """What plaintext becomes tells how much it was."""
    assert plaintext_length(sealed_length(size, 1 << log2), 1 << log2) == size


@given(st.integers(0, 10 * STRIDE))
def test_every_length_is_that_of_one_plaintext_or_of_none(body: int) -> None:
    """A body's length is refused exactly where no plaintext has it."""
    try:
        size = plaintext_length(body, P)
    except IntegrityError:
        assert body % STRIDE < SEGMENT_OVERHEAD
    else:
        assert sealed_length(size, P) == body


@pytest.mark.parametrize("size", EDGES)
def test_the_predicted_length_is_the_length(size: int) -> None:
    """At every edge."""
    assert len(seal(pattern(size))) == HEAD + sealed_length(size, P)


def test_every_segment_has_an_iv_of_its_own() -> None:
    """Sealing the same twice repeats neither salt nor IV."""
    sealed = [seal(bytes(3 * P), random=os.urandom) for _ in range(2)]

    assert len({one[20:44] for one in sealed}) == 2
    assert len({segment[:12] for one in sealed for segment in segments_of(one)}) == 8


@pytest.mark.parametrize("log2", [11, 23, -1, 0])
def test_segments_outside_the_bounds_are_not_written(log2: int) -> None:
    """4 KiB to 4 MiB."""
    with pytest.raises(InvalidRequest, match=r"2\^12 to 2\^22"):
        envelope.start_stream(io.BytesIO(), KEYS, CONTEXT, segment_log2=log2)


# --- altered -------------------------------------------------------------------------------------


def test_any_flipped_bit_of_the_header_is_refused() -> None:
    """All 608 bits, commitment included; no byte comes out."""
    sealed = seal(pattern(100))

    for position in range(HEAD * 8):
        altered = bytearray(sealed)
        altered[position // 8] ^= 1 << position % 8
        with pytest.raises(EnvelopeError):
            unseal(bytes(altered))


def test_any_flipped_bit_of_a_header_with_context_is_refused() -> None:
    """The stored context in clear and its length included."""
    sealed = seal(pattern(100), stored=Context({"file": "a"}))
    size = len(sealed) - 100 - SEGMENT_OVERHEAD

    for position in range(size * 8):
        altered = bytearray(sealed)
        altered[position // 8] ^= 1 << position % 8
        with pytest.raises(EnvelopeError):
            unseal(bytes(altered))


def test_any_flipped_bit_of_a_segment_is_refused_and_nothing_of_it_released() -> None:
    """Every bit of the first and the last segment."""
    plaintext = pattern(P + 100)
    body = seal(plaintext)[HEAD:]
    key = stream_head(KEYS, CONTEXT, None, 12, counting())[1]
    into = bytearray(b"\xaa" * P)
    for position in range(len(body) * 8):
        altered = bytearray(body)
        altered[position // 8] ^= 1 << position % 8
        reader = StreamReader(io.BytesIO(altered), key, P)
        if position >= STRIDE * 8:
            assert reader.readinto(into) == P
            assert into == plaintext[:P]
        with pytest.raises(IntegrityError):
            reader.readinto(into)
        assert plaintext[P:] not in into
        assert not any(reader._plain)
        if position < STRIDE * 8:
            assert not any(into)
            into[:] = b"\xaa" * P


@given(st.data())
def test_a_flipped_bit_anywhere_stops_the_stream_there(data: st.DataObject) -> None:
    """In a longer stream: what came before comes out, nothing of the touched segment does."""
    plaintext = pattern(5 * P + 10)
    sealed = bytearray(seal(plaintext))
    at = data.draw(st.integers(HEAD, len(sealed) - 1))
    sealed[at] ^= 1 << data.draw(st.integers(0, 7))

    assert released(io.BytesIO(sealed)) == plaintext[: (at - HEAD) // STRIDE * P]


def test_a_touched_segment_is_refused_again_and_again() -> None:
    """A second try gives no more than the first, and seeking elsewhere still works."""
    plaintext = pattern(2 * P + 5)
    sealed = bytearray(seal(plaintext))
    sealed[HEAD + STRIDE + 20] ^= 1
    with open_source(io.BytesIO(sealed)) as reader:
        assert reader.read(P) == plaintext[:P]
        for _ in range(3):
            with pytest.raises(IntegrityError):
                reader.read(1)
            with pytest.raises(IntegrityError):
                reader.readinto(bytearray(P))
        assert reader.tell() == P
        reader.seek(2 * P)
        assert reader.read() == plaintext[2 * P :]
        reader.seek(P + 1)
        with pytest.raises(IntegrityError):
            reader.read1()


def cuts(size: int) -> list[int]:
    """Lengths at which to cut: the whole header, around every boundary, and samples between."""
    boundaries = [HEAD + index * STRIDE for index in range(4)]
    near = {at + offset for at in boundaries for offset in (-29, -28, -1, 0, 1, 12, 27, 28, 29)}
    return sorted({*range(HEAD), *range(HEAD, size, 61), *near} & set(range(size)))


def test_a_stream_cut_anywhere_does_not_reach_its_end(tmp_path: Path) -> None:
    """From memory, a file and a pipe; whole segments before the cut come out, then the error."""
    plaintext = pattern(2 * P + 100)
    sealed = seal(plaintext)
    path = tmp_path / "cut"

    for size in cuts(len(sealed)):
        cut = sealed[:size]
        whole = plaintext[: max(0, size - HEAD) // STRIDE * P]
        assert released(io.BytesIO(cut)) == whole
        with pipe_with(cut) as source:
            assert released(source) == whole
        with file_with(path, cut) as source:
            assert released(source) == whole


def test_a_stream_cut_anywhere_has_no_length(tmp_path: Path) -> None:
    """A seek finds out before anything is read, also where whole segments are left."""
    sealed = seal(pattern(2 * P + 100))
    path = tmp_path / "cut"

    for size in (size for size in cuts(len(sealed)) if size >= HEAD):
        for whence in (io.SEEK_SET, io.SEEK_CUR, io.SEEK_END):
            with open_source(io.BytesIO(sealed[:size])) as reader, pytest.raises(IntegrityError):
                reader.seek(0, whence)
        with (
            file_with(path, sealed[:size]) as source,
            open_source(source) as reader,
            pytest.raises(IntegrityError),
        ):
            reader.layout()


def rearranged(segments: list[bytes]) -> Iterator[tuple[str, list[bytes]]]:
    """Every way to swap, duplicate, drop or append segments of a stream of four."""
    indexes = range(len(segments))
    for left, right in itertools.combinations(indexes, 2):
        swapped = list(segments)
        swapped[left], swapped[right] = swapped[right], swapped[left]
        yield f"swap {left} {right}", swapped
    for index in indexes:
        yield f"drop {index}", segments[:index] + segments[index + 1 :]
        yield f"repeat {index}", segments[: index + 1] + segments[index:]
        yield f"append {index}", [*segments, segments[index]]
        yield f"put {index} first", [segments[index], *segments]
    yield "nothing", []
    yield "only the last", segments[-1:]
    yield "a byte more", [*segments, b"\x00"]
    yield "zeros more", [*segments, bytes(STRIDE)]


SEGMENTS = segments_of(seal(pattern(3 * P + 100)))


@pytest.mark.parametrize(("what", "segments"), [*rearranged(SEGMENTS)])
def test_segments_belong_where_they_were(what: str, segments: list[bytes]) -> None:
    """Out comes what stands at its place, then the error, read forward or from a seek on."""
    head = seal(pattern(3 * P + 100))[:HEAD]
    same = next(
        (i for i, pair in enumerate(zip(segments, SEGMENTS, strict=False)) if pair[0] != pair[1]),
        len(segments),
    )
    altered = head + b"".join(segments)

    got = released(io.BytesIO(altered))

    assert got == pattern(3 * P + 100)[: min(same, 3) * P]
    with open_source(io.BytesIO(altered)) as reader, pytest.raises(IntegrityError):  # noqa: PT012
        reader.seek(0)
        reader.read()


@pytest.mark.parametrize("index", range(4))
def test_segments_of_another_stream_under_the_same_key_are_foreign(index: int) -> None:
    """The salt makes another key of each stream, though plaintext, context and DEK are one."""
    one, other = (seal(pattern(3 * P + 100), random=counting(start)) for start in (1, 1000))
    segments = segments_of(one)
    segments[index] = segments_of(other)[index]

    assert released(io.BytesIO(one[:HEAD] + b"".join(segments))) == pattern(index * P)
    with pytest.raises(IntegrityError):
        unseal(other[:HEAD] + b"".join(segments_of(one)))


@pytest.mark.parametrize(
    "context",
    [
        Context({"tenant": "t1"}),
        Context({"tenant": "t1", "row": "8"}),
        Context({"tenant": "t1", "row": "7", "more": ""}),
        Context({"tenant": "t2", "row": "7"}),
        Context(),
    ],
)
def test_another_context_does_not_open(context: Context) -> None:
    """Refused when it is opened, before any segment is looked at."""
    sealed = seal(b"data")[:HEAD]

    with pytest.raises(IntegrityError):
        open_source(io.BytesIO(sealed), context)


def test_supplied_and_stored_context_cannot_be_exchanged() -> None:
    """Taking the block out, putting one in, or changing the kind alone is noticed."""
    pairs = Context({"row": "7"})
    block = len(pairs.encoded).to_bytes(2, "big") + pairs.encoded
    stored = seal(b"data", context=SCOPE, stored=pairs)
    assert stored[44 : 44 + len(block)] == block
    supplied = seal(b"data", context=CONTEXT)
    forged = [
        (b"\xc1\x13" + stored[2:44] + stored[44 + len(block) :], CONTEXT),
        (b"\xc1\x1b" + supplied[2:44] + block + supplied[44:], SCOPE),
        (b"\xc1\x13" + stored[2:], SCOPE),
        (b"\xc1\x1b" + supplied[2:], CONTEXT),
        (stored[:44] + b"\x00\x02\x00\x00" + stored[44 + len(block) :], CONTEXT),
    ]

    for altered, context in forged:
        with pytest.raises(EnvelopeError):
            unseal(altered, context)
    assert unseal(stored, SCOPE) == unseal(supplied, CONTEXT) == b"data"


def test_a_stream_is_no_message_and_a_message_no_stream() -> None:
    """Each read as the other kind is refused."""
    sealed, message = seal(bytes(200)), envelope.seal_message(KEYS, bytes(200), CONTEXT)
    for flag in (0, STORES_CONTEXT):
        for altered in (
            sealed[:1] + bytes((0x12 | flag,)) + sealed[2:],
            message[:1] + bytes((KIND_STREAM | flag,)) + message[2:],
        ):
            with pytest.raises(EnvelopeError):
                envelope.open_envelope(CAPSULE + altered, CONTEXT, unwrap, lambda _: b"")


@pytest.mark.parametrize(
    ("size", "final"), [(P, True), (P - 1, False), (0, False)], ids=["full", "short", "empty"]
)
def test_the_end_is_what_is_short_and_says_so(size: int, final: bool) -> None:  # noqa: FBT001
    """A full segment that says it is the last is not, nor a short one that says it is not."""
    segment = SegmentSealer(KEY, P).seal(0, memoryview(bytes(size)), final=final)

    with StreamReader(io.BytesIO(segment), KEY, P) as reader:
        with pytest.raises(IntegrityError):
            reader.read()
        with pytest.raises(IntegrityError):
            reader.seek(0)


def test_associated_data_is_index_and_end() -> None:
    """Nine bytes, all of them different for different places."""
    assert segment_aad(0x0102, final=False) == bytes.fromhex("000000000000010200")
    assert segment_aad(0x0102, final=True) == bytes.fromhex("000000000000010201")


@pytest.mark.parametrize("size", [0, 1, 12, 27])
def test_less_than_iv_and_tag_is_no_segment(size: int) -> None:
    """Refused, and nothing is written."""
    into = bytearray(b"\xaa" * P)

    with pytest.raises(IntegrityError):
        open_segment(KEY, 0, memoryview(bytes(size)), memoryview(into), final=True)
    assert into == b"\xaa" * P


# --- limits --------------------------------------------------------------------------------------


def test_a_stream_has_a_last_segment_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many segments as there may be are written and read; one more is not."""
    monkeypatch.setattr(stream, "MAX_SEGMENTS", 3)
    most = pattern(3 * P - 1)
    assert unseal(seal(most)) == most

    sealed = io.BytesIO()
    writer = envelope.start_stream(sealed, KEYS, CONTEXT, segment_log2=12)
    writer.write(most)
    writer.write(b"x")  # the third segment is full: only the end is missing
    with pytest.raises(InvalidRequest, match="at most 3 segments"):
        writer.close()
    assert writer.closed
    assert not any(writer._chunk)
    assert released(io.BytesIO(sealed.getvalue())) == most + b"x"


def test_a_write_over_the_limit_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It raises, and closing afterwards does not make a stream of what fitted."""
    monkeypatch.setattr(stream, "MAX_SEGMENTS", 2)
    sealed = io.BytesIO()
    writer = envelope.start_stream(sealed, KEYS, CONTEXT, segment_log2=12)
    with pytest.raises(InvalidRequest, match="use larger ones"):
        writer.write(pattern(3 * P))
    writer.close()

    assert released(io.BytesIO(sealed.getvalue())) == pattern(2 * P)


def test_a_reader_stops_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer streams, from whomever, are refused by length and by reading."""
    plaintext = pattern(3 * P)
    sealed = seal(plaintext)
    monkeypatch.setattr(stream, "MAX_SEGMENTS", 3)

    with open_source(io.BytesIO(sealed)) as reader:
        with pytest.raises(IntegrityError):
            reader.seek(0)
        assert reader.read(3 * P) == plaintext
        with pytest.raises(IntegrityError):
            reader.read(1)


# --- reading anywhere ----------------------------------------------------------------------------

POSITIONS = st.one_of(
    st.integers(-3, 4 * P), st.sampled_from([n * P + d for n in range(4) for d in (-1, 0, 1)])
)
SIZES = st.one_of(st.integers(0, 3 * P), st.sampled_from([0, 1, P - 1, P, P + 1, 2 * P, 3 * P]))
READS = st.one_of(
    st.tuples(st.sampled_from(["read", "read1", "readinto", "readinto1"]), SIZES),
    st.tuples(st.sampled_from(["read", "tell"]), st.none()),
)
SEEKS = st.tuples(st.sampled_from(["set", "cur", "end"]), POSITIONS)


def run(reader: io.BufferedIOBase, operation: str, argument: int | None) -> object:
    """Do one thing; the answer, or the class of the error."""
    whences = {"set": io.SEEK_SET, "cur": io.SEEK_CUR, "end": io.SEEK_END}
    if operation in whences:
        assert argument is not None
        offset = -argument if operation == "end" else argument
        if operation != "set":
            here = reader.tell() if operation == "cur" else reader.seek(0, io.SEEK_END)
            offset = max(offset, -here)  # where it ends up is negative for nobody
        try:
            return reader.seek(offset, whences[operation])
        except ValueError:
            return ValueError
    if operation in {"readinto", "readinto1"}:
        buffer = bytearray(argument or 0)
        size = getattr(reader, operation)(buffer)
        return bytes(buffer[:size])
    if operation == "tell":
        return reader.tell()
    return getattr(reader, operation)(*(() if argument is None else (argument,)))


def compare(reader: StreamReader, model: io.BytesIO, script: list[tuple[str, int | None]]) -> None:
    """Every step gives what the model gives; ``read1`` may give less of it, but something."""
    for operation, argument in script:
        position = model.tell()
        expected, got = run(model, operation, argument), run(reader, operation, argument)
        if operation in {"read1", "readinto1"}:
            assert isinstance(expected, bytes)
            assert isinstance(got, bytes)
            assert expected.startswith(got)
            assert bool(got) == bool(expected)
            model.seek(position + len(got))
        else:
            assert got == expected, (operation, argument)
        assert reader.tell() == model.tell()


@given(st.sampled_from(EDGES), st.lists(st.one_of(READS, SEEKS), max_size=12))
def test_reading_memory_anywhere_is_reading_the_plaintext(
    size: int, script: list[tuple[str, int | None]]
) -> None:
    """Any script of seeks and reads, over a source in memory that does not start at 0."""
    plaintext = pattern(size)
    source = io.BytesIO(b"before" + seal(plaintext))
    source.seek(6)

    with open_source(source) as reader:
        compare(reader, io.BytesIO(plaintext), script)


@settings(max_examples=50)
@given(
    st.sampled_from(EDGES), st.integers(1, 2 * P), st.lists(st.one_of(READS, SEEKS), max_size=12)
)
def test_reading_a_raw_file_anywhere_is_reading_the_plaintext(
    size: int, most: int, script: list[tuple[str, int | None]]
) -> None:
    """The same over a raw file that gives less than asked for."""
    plaintext = pattern(size)
    source = Source(b"before" + seal(plaintext), max(most, 64))
    source.seek(6)

    with open_source(as_file(source)) as reader:
        compare(reader, io.BytesIO(plaintext), script)


@pytest.mark.parametrize("buffering", [0, -1], ids=["raw", "buffered"])
@pytest.mark.parametrize("size", EDGES)
def test_reading_a_file_anywhere(tmp_path: Path, size: int, buffering: int) -> None:
    """A real file, at every edge from every edge."""
    plaintext = pattern(size)
    path = tmp_path / "sealed"
    path.write_bytes(seal(plaintext))
    script: list[tuple[str, int | None]] = [("read", 10)]
    for start, length in itertools.product((0, P - 1, P, 2 * P, size), (1, P, P + 1)):
        script += [("set", start), ("readinto", length), ("end", length), ("read", length)]

    with path.open("rb", buffering=buffering) as source, open_source(source) as reader:
        compare(reader, io.BytesIO(plaintext), script)


@settings(max_examples=50)
@given(st.sampled_from(EDGES), st.lists(READS, max_size=12))
def test_reading_a_pipe_is_reading_the_plaintext(
    size: int, script: list[tuple[str, int | None]]
) -> None:
    """Forward only."""
    plaintext = pattern(size)

    with pipe_with(seal(plaintext)) as source, open_source(source) as reader:
        compare(reader, io.BytesIO(plaintext), [*script, ("read", None), ("read", None)])


def test_a_pipe_cannot_seek_and_says_so() -> None:
    """Neither seek nor length; reading goes on."""
    with pipe_with(seal(b"data")) as source, open_source(source) as reader:
        assert reader.readable()
        assert not reader.seekable()
        assert not reader.writable()
        assert reader.layout() is None
        for impossible in (reader.length, lambda: reader.seek(0)):
            with pytest.raises(io.UnsupportedOperation):
                impossible()
        assert reader.read() == b"data"


def test_a_file_can_seek_and_says_so(tmp_path: Path) -> None:
    """With its authenticated length and its place on disk."""
    with file_with(tmp_path / "s", seal(pattern(P + 5))) as source, open_source(source) as reader:
        assert reader.seekable()
        assert reader.length() == P + 5
        layout = reader.layout()
        assert layout is not None
        assert (layout.descriptor, layout.base, layout.length) == (source.fileno(), HEAD, P + 5)
        assert layout.segment_bytes == P


def test_memory_has_no_place_on_disk() -> None:
    """So there is nothing to read at offsets."""
    with open_source(io.BytesIO(seal(b"data"))) as reader:
        assert reader.layout() is None
        assert reader.read() == b"data"


@pytest.mark.parametrize("whence", [-1, 3, 7])
def test_a_seek_from_nowhere_is_refused(whence: int) -> None:
    """As files refuse it."""
    with open_source(io.BytesIO(seal(b"data"))) as reader:
        with pytest.raises(ValueError, match="whence is 0, 1 or 2"):
            reader.seek(0, whence)
        with pytest.raises(ValueError, match="not negative"):
            reader.seek(-5, io.SEEK_END)
        assert reader.tell() == 0


@pytest.mark.parametrize("stated", [0, HEAD, HEAD + 28, HEAD + STRIDE, HEAD + STRIDE + 28, 10**9])
@pytest.mark.parametrize("size", [100, 2 * P, 2 * P + 100])
def test_a_source_that_lies_about_its_size_is_found_out(size: int, stated: int) -> None:
    """The length is what the last segment proves, or an error; never what the source says."""
    source = Source(seal(pattern(size)), size=stated)
    with open_source(as_file(source)) as reader:
        with pytest.raises(IntegrityError):
            reader.seek(0, io.SEEK_END)
        assert reader.read() == pattern(size)  # forward, the stream itself tells its end


def test_a_true_length_is_learnt_once() -> None:
    """After that, the source is not asked again."""
    source = Source(seal(pattern(P + 100)))
    with open_source(as_file(source)) as reader:
        assert reader.seek(0, io.SEEK_END) == P + 100
        source._size = 5
        assert reader.seek(-50, io.SEEK_END) == P + 50
        assert reader.read() == pattern(P + 100)[-50:]


def test_reading_past_the_end_gives_nothing() -> None:
    """A position beyond the end is one, with nothing there."""
    with open_source(io.BytesIO(seal(pattern(P)))) as reader:
        assert reader.seek(10 * P) == 10 * P
        assert reader.read() == reader.read(5) == reader.read1() == b""
        assert reader.readinto(bytearray(2 * P)) == 0
        assert reader.tell() == 10 * P


def test_other_readers_can_be_put_on_top() -> None:
    """Lines and text, through what the standard library has for that."""
    text = "".join(f"line {number} ü\n" for number in range(1000))
    sealed = seal(text.encode())

    reader = cast("IO[bytes]", open_source(io.BytesIO(sealed)))
    with io.TextIOWrapper(reader, encoding="utf-8") as lines:
        assert list(lines) == text.splitlines(keepends=True)
    with open_source(io.BytesIO(sealed)) as other:
        assert other.readline() == b"line 0 \xc3\xbc\n"


# --- writers that do not get to their end --------------------------------------------------------

STAGES = (0, 1, P - 1, P, P + 1, 2 * P, 2 * P + 100)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("size", STAGES)
def test_a_writer_left_through_an_exception_ends_nothing(
    size: int, error: type[BaseException]
) -> None:
    """However far it came, what it leaves does not open."""
    sealed = io.BytesIO()
    with pytest.raises(error):  # noqa: PT012, SIM117
        with envelope.start_stream(sealed, KEYS, CONTEXT, segment_log2=12) as writer:
            writer.write(pattern(size))
            raise error

    assert writer.closed
    assert released(io.BytesIO(sealed.getvalue())) == pattern(size // P * P)


@pytest.mark.parametrize("size", STAGES)
def test_a_forgotten_writer_ends_nothing(size: int) -> None:
    """Garbage collection closes files; this one it only stops, and wipes."""
    sealed = io.BytesIO()
    writer = envelope.start_stream(sealed, KEYS, CONTEXT, segment_log2=12)
    writer.write(pattern(size))
    chunk = writer._chunk
    del writer
    gc.collect()

    assert not any(chunk)
    assert released(io.BytesIO(sealed.getvalue())) == pattern(size // P * P)


def test_a_writer_forgotten_in_a_cycle_ends_nothing() -> None:
    """Nor where only the collector of cycles finds it."""
    sealed = io.BytesIO()
    writer = envelope.start_stream(sealed, KEYS, CONTEXT, segment_log2=12)
    writer.write(b"data")
    cycle: list[object] = [writer]
    cycle.append(cycle)
    del writer, cycle
    gc.collect()

    assert released(io.BytesIO(sealed.getvalue())) == b""


def test_an_aborted_writer_ends_nothing() -> None:
    """Not even if it is closed afterwards."""
    sealed = io.BytesIO()
    with envelope.start_stream(sealed, KEYS, CONTEXT, segment_log2=12) as writer:
        writer.write(b"data")
        writer.abort()
        writer.abort()

    assert released(io.BytesIO(sealed.getvalue())) == b""


def test_a_closed_writer_takes_no_more_and_ends_once() -> None:
    """The destination stays open, and gets the end one time."""
    sealed = io.BytesIO()
    writer = envelope.start_stream(sealed, KEYS, CONTEXT, segment_log2=12, random=counting())
    assert writer.writable()
    assert not writer.readable()
    assert not writer.seekable()
    writer.write(b"data")
    for _ in range(3):
        writer.close()
    with pytest.raises(ValueError, match="the sealing stream is closed"):
        writer.write(b"more")

    assert not sealed.closed
    assert sealed.getvalue() == seal(b"data")


@pytest.mark.parametrize("code", ["B", "H", "Q"])
def test_whatever_is_contiguous_can_be_written(code: str) -> None:
    """Items of any size count as their bytes."""
    items = array.array(code, range(200))
    sealed = io.BytesIO()
    with envelope.start_stream(sealed, KEYS, CONTEXT, segment_log2=12) as writer:
        assert writer.write(items) == 200 * items.itemsize
        assert writer.write(memoryview(items)[:0]) == 0
        for wrong in ("text", memoryview(bytes(9))[::2], 5):
            with pytest.raises(TypeError):
                writer.write(wrong)

    assert unseal(sealed.getvalue()) == items.tobytes()
    target = array.array(code, bytes(200 * items.itemsize))
    with open_source(io.BytesIO(sealed.getvalue())) as reader:
        assert reader.readinto(target) == 200 * items.itemsize
    assert target == items


class Destination(io.RawIOBase):
    """A raw file that takes at most ``most`` at a time, and fails once after ``room`` bytes."""

    def __init__(self, most: int = 1 << 30, room: int | None = None) -> None:
        self.data = bytearray()
        self._most = most
        self._room = room

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        most = self._most
        if self._room is not None:
            most = min(most, self._room - len(self.data))
            if not most:
                self._room = None
                raise OSError(28, "no space left on device")
        self.data += data[:most]
        return min(len(data), most)


@pytest.mark.parametrize("most", [1, 7, P, STRIDE + 1])
def test_destinations_may_take_less_at_a_time(most: int) -> None:
    """Raw files do; nothing is lost."""
    destination = Destination(most)
    with envelope.start_stream(
        as_file(destination), KEYS, CONTEXT, segment_log2=12, random=counting()
    ) as writer:
        writer.write(pattern(2 * P + 1))

    assert destination.data == seal(pattern(2 * P + 1))


@pytest.mark.parametrize("room", [HEAD, HEAD + 5, HEAD + STRIDE, HEAD + STRIDE + 5])
def test_after_a_write_that_failed_the_stream_has_no_end(room: int) -> None:
    """Who swallows the error does not get a stream that opens and lacks something."""
    destination = Destination(room=room)
    with envelope.start_stream(as_file(destination), KEYS, CONTEXT, segment_log2=12) as writer:
        with pytest.raises(OSError, match="no space"):
            writer.write(pattern(3 * P))
        with pytest.raises(ValueError, match="closed"):
            writer.write(b"more")

    assert len(destination.data) == room
    assert released(io.BytesIO(destination.data)) == pattern((room - HEAD) // STRIDE * P)


def test_an_end_that_cannot_be_written_is_raised() -> None:
    """The writer is closed and wiped all the same."""
    destination = Destination(room=HEAD + 10)
    writer = envelope.start_stream(as_file(destination), KEYS, CONTEXT, segment_log2=12)
    writer.write(b"data")
    with pytest.raises(OSError, match="no space"):
        writer.close()

    assert writer.closed
    assert not any(writer._chunk)
    writer.close()
    assert released(io.BytesIO(destination.data)) == b""


# --- sources -------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 13, STRIDE - 1, STRIDE + 1])
@pytest.mark.parametrize("seeks", [True, False])
def test_sources_may_give_less_at_a_time(most: int, seeks: bool) -> None:  # noqa: FBT001
    """A short read is no end."""
    plaintext = pattern(2 * P + 100)

    with open_source(as_file(Source(seal(plaintext), most, seeks=seeks))) as reader:
        assert reader.read() == plaintext


class OnlyReads:
    """The least that a source can be."""

    def __init__(self, data: bytes, most: int) -> None:
        self._data = io.BytesIO(data)
        self._most = most

    def seekable(self) -> bool:
        return False

    def read(self, size: int) -> bytes | None:
        return self._data.read(min(size, self._most))


def test_sources_may_have_no_readinto() -> None:
    """Reading is enough."""
    plaintext = pattern(2 * P + 100)
    source = cast("IO[bytes]", OnlyReads(seal(plaintext), 1000))

    with open_source(source) as reader:
        assert reader.read() == plaintext


def test_a_source_that_has_nothing_yet_is_an_error() -> None:
    """Pipes that do not block raise ``BlockingIOError``, with and without ``readinto``."""
    receiving, sending = os.pipe()
    os.set_blocking(receiving, False)
    with (
        open(sending, "wb", buffering=0) as out,  # noqa: PTH123
        open(receiving, "rb", buffering=0) as source,  # noqa: PTH123
    ):
        with pytest.raises(BlockingIOError):
            open_source(source)
        out.write(seal(b"data"))
        with open_source(source) as reader, pytest.raises(BlockingIOError):
            reader.read()

    silent = OnlyReads(b"", 1)
    silent.read = lambda size: None  # type: ignore[method-assign]
    with pytest.raises(BlockingIOError):
        read_full(cast("IO[bytes]", silent), memoryview(bytearray(1)))


def test_a_destination_that_takes_no_more_is_an_error() -> None:
    """A full pipe that does not block, and the stream in it has no end."""
    receiving, sending = os.pipe()
    os.set_blocking(sending, False)
    with (
        open(receiving, "rb", buffering=0) as source,  # noqa: PTH123
        open(sending, "wb", buffering=0) as out,  # noqa: PTH123
    ):
        writer = envelope.start_stream(out, KEYS, CONTEXT, segment_log2=12)
        with pytest.raises(BlockingIOError):
            writer.write(bytes(1 << 21))
        writer.close()
        out.close()
        assert set(released(source)) == {0}


def test_a_read_that_failed_can_be_repeated_where_the_source_seeks() -> None:
    """Wherever the failure left the source, reading goes on at the right place."""
    plaintext = pattern(2 * P + 100)
    source = Source(seal(plaintext), 1000)
    with open_source(as_file(source)) as reader:
        source.failures = [None, None, OSError(5, "input/output error")]
        with pytest.raises(OSError, match="input/output"):
            reader.read(10)
        assert reader.read() == plaintext


def test_a_read_that_failed_is_the_last_where_the_source_does_not_seek() -> None:
    """What was lost is not taken for an altered stream."""
    source = Source(seal(pattern(P)), 1000, seeks=False)
    with open_source(as_file(source)) as reader:
        source.failures = [None, OSError(5, "input/output error")]
        with pytest.raises(OSError, match="input/output"):
            reader.read(10)
        with pytest.raises(io.UnsupportedOperation, match="an earlier read failed"):
            reader.read(10)


def test_a_header_that_ends_early_is_no_envelope() -> None:
    """However little there is."""
    sealed = seal(b"data")
    for size in range(HEAD):
        with pytest.raises(FormatError, match="cut short"):
            open_source(io.BytesIO(sealed[:size]))


# --- what stays in memory ------------------------------------------------------------------------


def test_plaintext_is_wiped_when_the_writer_is_closed() -> None:
    """Its buffer is zero, however it was closed."""
    writers = [StreamWriter(io.BytesIO(), KEY, P) for _ in range(2)]
    for writer, close in zip(writers, (StreamWriter.close, StreamWriter.abort), strict=True):
        writer.write(b"secret")
        assert bytes(writer._chunk).startswith(b"secret")
        close(writer)
        assert not any(writer._chunk)


def test_plaintext_is_wiped_when_the_reader_is_closed_or_forgotten() -> None:
    """Its buffer is zero."""
    for close in (True, False):
        reader = open_source(io.BytesIO(seal(b"secret")))
        assert reader.read(3) == b"sec"
        plain = reader._plain
        assert bytes(plain).startswith(b"secret")
        if close:
            reader.close()
            reader.close()
        del reader
        gc.collect()
        assert not any(plain)


def test_a_closed_reader_gives_nothing_and_decrypts_nothing() -> None:
    """Every way to read raises, and its buffer stays zero."""
    source = io.BytesIO(seal(pattern(2 * P)))
    reader = open_source(source)
    reader.close()
    target = bytearray(2 * P)
    attempts: list[Callable[[], object]] = [
        reader.read,
        lambda: reader.read(1),
        reader.read1,
        lambda: reader.readinto(target),
        reader.length,
        reader.tell,
        lambda: reader.seek(0),
    ]
    for attempt in attempts:
        with pytest.raises(ValueError, match="closed"):
            attempt()

    assert not any(target)
    assert not any(reader._plain)
    assert not source.closed


def test_nothing_that_can_be_printed_shows_a_key(tmp_path: Path) -> None:
    """Reprs name no key material."""
    with file_with(tmp_path / "s", seal(b"data")) as source, open_source(source) as reader:
        block = expand(
            expand(DEK, b"message", b"\x01" + SCOPE.encoded, 32),
            b"stream",
            seal(b"data")[:44] + CONTEXT.encoded,
            32,
        )
        said = repr((reader, reader.layout(), reader._key))
        assert block.hex() not in said
        assert repr(block) not in said


# --- pieces --------------------------------------------------------------------------------------


@given(st.binary(max_size=300), st.integers(1, 50), st.integers(0, 300))
def test_reading_full_stops_at_the_end_only(data: bytes, most: int, size: int) -> None:
    """A buffer is filled as far as there is something."""
    buffer = bytearray(size)

    got = read_full(as_file(Source(data, most)), memoryview(buffer))

    assert got == min(size, len(data))
    assert bytes(buffer[:got]) == data[:got]


@given(st.binary(max_size=300), st.integers(1, 50))
def test_writing_all_writes_all(data: bytes, most: int) -> None:
    """In as many steps as it takes."""
    destination = Destination(most)

    write_all(destination, memoryview(data))

    assert destination.data == data


def test_copying_with_the_standard_library(tmp_path: Path) -> None:
    """Both ends are files to ``shutil``."""
    plaintext = pattern(3 * P + 7)
    sealed = io.BytesIO()
    with envelope.start_stream(sealed, KEYS, CONTEXT, segment_log2=12) as writer:
        shutil.copyfileobj(io.BytesIO(plaintext), writer, 1000)
    sealed.seek(0)
    out = io.BytesIO()
    with open_source(sealed) as reader:
        shutil.copyfileobj(reader, out, 1000)

    assert out.getvalue() == plaintext


def test_segments_are_sealed_in_one_buffer() -> None:
    """The next one takes the place of the last: memory does not grow with the stream."""
    sealer = SegmentSealer(StreamKey(bytes(32)), P)
    first = sealer.seal(0, memoryview(bytes(P)), final=False)
    before = bytes(first)
    second = sealer.seal(1, memoryview(bytes(10)), final=True)

    assert len(first) == STRIDE
    assert len(second) == 10 + SEGMENT_OVERHEAD
    assert bytes(first) != before
