"""Segmented streams: bounded memory, random access, nothing released before it is authentic.

A stream is cut into segments of 2^n bytes that authenticate one by one; each binds its index and
whether it is the last, which is always short.  So a reader needs no look-ahead, sees at once where
the stream was cut, and can start anywhere (docs/format.md, section 7).
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from functools import partial
from typing import IO, Any, Final, Self

from attrs import frozen

from kms_core.aead import IV_BYTES, TAG_BYTES, StreamKey, wipe
from kms_core.errors import IntegrityError, InvalidRequest
from kms_core.files import is_regular

MAX_SEGMENTS: Final = 1 << 30  # keeps random IVs under one key below a collision chance of 2^-37
SEGMENT_OVERHEAD: Final = IV_BYTES + TAG_BYTES

Random = Callable[[int], bytes]


class SegmentSealer:
    """Turns chunks into segments, in one reused buffer."""

    def __init__(self, key: StreamKey, segment_bytes: int, random: Random = os.urandom) -> None:
        self._key = key
        self._random = random
        self._out = memoryview(bytearray(segment_bytes + SEGMENT_OVERHEAD))

    def seal(self, index: int, chunk: memoryview, *, final: bool) -> memoryview:
        """The segment; valid until the next call."""
        if index >= MAX_SEGMENTS:
            raise InvalidRequest(f"a stream has at most {MAX_SEGMENTS} segments: use larger ones")
        end = len(chunk) + SEGMENT_OVERHEAD
        iv = self._random(IV_BYTES)
        self._out[:IV_BYTES] = iv
        self._key.encrypt_into(iv, chunk, segment_aad(index, final=final), self._out[IV_BYTES:end])
        return self._out[:end]


def segment_aad(index: int, *, final: bool) -> bytes:
    """What a segment is bound to besides its key: where it belongs."""
    return index.to_bytes(8, "big") + (b"\x01" if final else b"\x00")


def open_segment(
    key: StreamKey, index: int, segment: memoryview, into: memoryview, *, final: bool
) -> int:
    """Decrypt one segment into a buffer; the number of bytes.  ``into`` is zeroed on failure."""
    size = len(segment) - SEGMENT_OVERHEAD
    if size < 0 or index >= MAX_SEGMENTS:
        raise IntegrityError
    target = into[:size]
    try:
        key.decrypt_into(
            segment[:IV_BYTES], segment[IV_BYTES:], segment_aad(index, final=final), target
        )
    except IntegrityError:
        target[:] = bytes(size)
        raise
    return size


def plaintext_length(body_bytes: int, segment_bytes: int) -> int:
    """The length of the plaintext of this many bytes of segments; ``IntegrityError`` if none."""
    segments, last = divmod(body_bytes, segment_bytes + SEGMENT_OVERHEAD)
    if last < SEGMENT_OVERHEAD or not 0 <= segments < MAX_SEGMENTS:
        raise IntegrityError
    return segments * segment_bytes + last - SEGMENT_OVERHEAD


def sealed_length(plaintext_bytes: int, segment_bytes: int) -> int:
    """How many bytes of segments this much plaintext becomes."""
    return plaintext_bytes + (plaintext_bytes // segment_bytes + 1) * SEGMENT_OVERHEAD


class StreamWriter(io.RawIOBase):
    """Encrypts what is written to it.  Only ``close``, or leaving ``with`` normally, ends it.

    Left through an exception, forgotten, or after a write that failed, it writes no end: the stream
    then does not open.  The destination is not closed.
    """

    def __init__(
        self,
        destination: IO[bytes],
        key: StreamKey,
        segment_bytes: int,
        random: Random = os.urandom,
    ) -> None:
        super().__init__()
        self._destination = destination
        self._sealer = SegmentSealer(key, segment_bytes, random)
        self._segment_bytes = segment_bytes
        self._chunk = bytearray(segment_bytes)
        self._filled = 0
        self._index = 0
        self._done = False

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, data: Any, /) -> int:
        """Encrypt ``data``; all of it is taken."""
        if self._done:
            raise ValueError("the sealing stream is closed")
        view = memoryview(data).cast("B")
        position = 0
        if self._filled:
            position = self._fill(view)
            if self._filled == self._segment_bytes:
                self._emit(memoryview(self._chunk), final=False)
                self._filled = 0
        while len(view) - position >= self._segment_bytes:  # whole segments are not copied
            self._emit(view[position : position + self._segment_bytes], final=False)
            position += self._segment_bytes
        self._fill(view[position:])
        return len(view)

    def close(self) -> None:
        """Write the last segment, without which the stream does not open."""
        try:
            if not self._done:
                self._emit(memoryview(self._chunk)[: self._filled], final=True)
        finally:
            self.abort()

    def abort(self) -> None:
        """Stop without ending the stream: what was written so far will not open."""
        self._done = True
        wipe(self._chunk)
        super().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def __del__(self) -> None:
        self.abort()  # io's own would end the stream as if it were complete

    def _fill(self, view: memoryview) -> int:
        taken = min(len(view), self._segment_bytes - self._filled)
        self._chunk[self._filled : self._filled + taken] = view[:taken]
        self._filled += taken
        return taken

    def _emit(self, chunk: memoryview, *, final: bool) -> None:
        self._done = True  # unless all goes well: what is lost here must not be missing in silence
        write_all(self._destination, self._sealer.seal(self._index, chunk, final=final))
        self._done = final
        self._index += 1


def write_all(destination: IO[bytes] | io.RawIOBase, data: memoryview) -> None:
    """Write everything, also to raw files, which may take less at a time."""
    while data:
        written = destination.write(data)
        if written is None:
            raise BlockingIOError("the destination does not block, and cannot take more now")
        data = data[written:]


@frozen
class Layout:
    """Where the segments of a stream lie in a file."""

    descriptor: int
    base: int
    length: int
    segment_bytes: int
    key: StreamKey


class StreamReader(io.BufferedIOBase):
    """Decrypts as it is read; seekable where the source is.

    Raises ``IntegrityError`` for anything altered, reordered or cut short, before a byte of the
    segment in question is returned.  The first seek authenticates the length.  The source is not
    closed.
    """

    def __init__(self, source: IO[bytes], key: StreamKey, segment_bytes: int) -> None:
        """``source`` stands where the segments start."""
        super().__init__()
        self._source = source
        self._key = key
        self._segment_bytes = segment_bytes
        self._stride = segment_bytes + SEGMENT_OVERHEAD
        self._base = source.tell() if source.seekable() else None
        self._cipher = memoryview(bytearray(self._stride))
        self._plain = bytearray(segment_bytes)
        self._loaded: int | None = None  # the segment whose plaintext is at hand
        self._size = 0  # of that plaintext
        self._next = 0  # the segment that the source stands at
        self._position = 0
        self._length: int | None = None

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """Whether the source is."""
        return self._base is not None

    def tell(self) -> int:
        """The position in the plaintext."""
        self._check_open()
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Go to a position in the plaintext, after the length was authenticated."""
        if self._base is None:
            raise io.UnsupportedOperation("the source cannot seek")
        starts = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.length()}
        if whence not in starts:
            raise ValueError(f"whence is 0, 1 or 2, not {whence}")
        position = starts[whence] + offset
        if position < 0:
            raise ValueError(f"a position is not negative: {position}")
        self._position = position
        return position

    def layout(self) -> Layout | None:
        """Where the segments lie, for work at offsets; ``None`` if the source is no regular file.

        Authenticates the length.
        """
        if self._base is None or not is_regular(self._source):
            return None
        return Layout(
            self._source.fileno(), self._base, self.length(), self._segment_bytes, self._key
        )

    def length(self) -> int:
        """The length of the plaintext, proved by its last segment."""
        self._check_open()
        if self._base is None:
            raise io.UnsupportedOperation("the length of a source that cannot seek is not known")
        if self._length is None:
            self._next = -1  # wherever it was, the source is elsewhere now
            body = self._source.seek(0, io.SEEK_END) - self._base
            stated = plaintext_length(body, self._segment_bytes)
            self._load(stated // self._segment_bytes)
            if self._length != stated:  # what was there did not end there
                raise IntegrityError
        return self._length

    def read(self, size: int | None = -1, /) -> bytes:
        """Up to ``size`` bytes, all that is left by default; ``b""`` at the authenticated end."""
        if size is None or size < 0:
            return b"".join(iter(lambda: self.read(self._segment_bytes), b""))
        parts = []
        while size and (part := self._available()):
            parts.append(bytes(part[:size]))
            self._position += len(parts[-1])
            size -= len(parts[-1])
        return b"".join(parts)

    def read1(self, size: int = -1, /) -> bytes:
        """What one segment has, at most ``size`` bytes."""
        part = self._available()
        data = bytes(part if size < 0 else part[:size])
        self._position += len(data)
        return data

    def readinto(self, buffer: Any, /) -> int:
        """Fill ``buffer``; whole segments are decrypted straight into it."""
        self._check_open()
        target = memoryview(buffer).cast("B")
        filled = 0
        while filled < len(target):
            size = self._direct(target, filled)
            if size is None:
                part = self._available()[: len(target) - filled]
                size = len(part)
                target[filled : filled + size] = part
            if not size:
                break
            self._position += size
            filled += size
        return filled

    def close(self) -> None:
        """Forget the plaintext at hand."""
        wipe(self._plain)
        self._loaded = None
        super().close()

    def _available(self) -> memoryview:
        """The plaintext at the position, as far as its segment goes; empty at the end."""
        self._check_open()
        if self._at_end():
            return memoryview(b"")
        index, offset = divmod(self._position, self._segment_bytes)
        if index != self._loaded:
            self._load(index)
        return memoryview(self._plain)[offset : self._size]

    def _direct(self, target: memoryview, start: int) -> int | None:
        """Decrypt the segment at the position straight into ``target`` if all of it fits there."""
        size = self._segment_bytes
        index, offset = divmod(self._position, size)
        if offset or len(target) - start < size or index == self._loaded or self._at_end():
            return None
        return self._open(index, target[start : start + size])

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("the opening stream is closed")

    def _at_end(self) -> bool:
        return self._length is not None and self._position >= self._length

    def _load(self, index: int) -> None:
        self._loaded = None
        self._size = self._open(index, memoryview(self._plain))
        self._loaded = index

    def _open(self, index: int, target: memoryview) -> int:
        """Decrypt one segment; a short one is the last, or the stream was cut there."""
        with self._fetch(index) as segment:
            final = len(segment) < self._stride
            size = open_segment(self._key, index, segment, target, final=final)
        if final:
            self._length = index * self._segment_bytes + size
        return size

    def _fetch(self, index: int) -> memoryview:
        """One segment's bytes, to be released after use."""
        if isinstance(self._source, io.BytesIO) and self._base is not None:
            start = self._base + index * self._stride
            return self._source.getbuffer()[start : start + self._stride]  # nothing is copied
        if index != self._next:
            if self._base is None:
                raise io.UnsupportedOperation("an earlier read failed, and the source cannot seek")
            self._source.seek(self._base + index * self._stride)
        self._next = -1  # a read that fails leaves the source somewhere in between
        size = read_full(self._source, self._cipher)
        self._next = index + 1
        return self._cipher[:size]


def read_full(source: IO[bytes] | io.BufferedIOBase, buffer: memoryview) -> int:
    """Fill ``buffer`` as far as the source goes; the number of bytes."""
    readinto = getattr(source, "readinto", None) or partial(_readinto, source)
    filled = 0
    while filled < len(buffer):
        size = readinto(buffer[filled:])
        if size is None:
            raise BlockingIOError("the source does not block, and has nothing now")
        if not size:
            break
        filled += size
    return filled


def _readinto(source: IO[bytes] | io.BufferedIOBase, buffer: memoryview) -> int | None:
    """What ``readinto`` does, for sources that only have ``read``."""
    data = source.read(len(buffer))
    if data is None:
        return None
    buffer[: len(data)] = data
    return len(data)
