"""Whole files through the segment cipher: in order, or on two threads that each own half.

Threads pay from some 256 KiB a call on, where the cipher releases the interpreter's lock; two
long-lived ones with a buffer each win, a task per segment loses.  They need files that can be read
and written at offsets.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Final

from kms_core.aead import StreamKey, wipe
from kms_core.errors import IntegrityError
from kms_core.files import is_regular
from kms_core.stream import (
    SEGMENT_OVERHEAD,
    SegmentSealer,
    StreamReader,
    StreamWriter,
    open_segment,
    read_full,
    write_all,
)

Progress = Callable[[int], None]

PARALLEL_BYTES: Final = 32 << 20  # below that, starting a second thread gains nothing
THREADS: Final = 2
_COPY_BYTES: Final = 1 << 20


def seal(
    plain: IO[bytes],
    sealed: IO[bytes],
    key: StreamKey,
    segment_bytes: int,
    progress: Progress | None = None,
) -> None:
    """Encrypt everything in ``plain`` to where ``sealed`` stands, last segment included."""
    size = os.fstat(plain.fileno()).st_size if is_regular(plain) else 0
    if size < PARALLEL_BYTES or not is_regular(sealed) or (os.cpu_count() or 1) < THREADS:
        writer = StreamWriter(sealed, key, segment_bytes)
        with writer:
            _copy(plain, writer, progress)
        return
    base, stride = sealed.tell(), segment_bytes + SEGMENT_OVERHEAD
    lock = threading.Lock()

    def work(first: int, end: int) -> None:
        sealer = SegmentSealer(key, segment_bytes)
        with _plaintext(segment_bytes) as chunk:
            for index in range(first, end):
                got = _read_at(plain.fileno(), chunk, index * segment_bytes)
                final = index == size // segment_bytes
                if got != (size % segment_bytes if final else segment_bytes):
                    raise OSError("the file changed while it was being sealed")
                segment = sealer.seal(index, chunk[:got], final=final)
                _write_at(sealed.fileno(), segment, base + index * stride)
                _tell(progress, got, lock)

    _on_threads(work, size // segment_bytes + 1)


def open_(reader: io.BufferedIOBase, plain: IO[bytes], progress: Progress | None = None) -> None:
    """Decrypt all of an opened envelope; raises ``IntegrityError`` unless all of it is good."""
    layout = reader.layout() if isinstance(reader, StreamReader) else None
    if layout is None or layout.length < PARALLEL_BYTES or (os.cpu_count() or 1) < THREADS:
        _copy(reader, plain, progress)
        return
    segments = layout.length // layout.segment_bytes + 1
    stride = layout.segment_bytes + SEGMENT_OVERHEAD
    lock = threading.Lock()

    def work(first: int, end: int) -> None:
        segment = memoryview(bytearray(stride))
        with _plaintext(layout.segment_bytes) as chunk:
            for index in range(first, end):
                got = _read_at(layout.descriptor, segment, layout.base + index * stride)
                final = index == segments - 1
                if (got < stride) != final:
                    raise IntegrityError
                size = open_segment(layout.key, index, segment[:got], chunk, final=final)
                _write_at(plain.fileno(), chunk[:size], index * layout.segment_bytes)
                _tell(progress, size, lock)

    _on_threads(work, segments)


def _on_threads(work: Callable[[int, int], None], segments: int) -> None:
    """Split the segments into halves; the first error of any of them is raised."""
    errors: list[BaseException] = []
    stop = threading.Event()

    def run(first: int, end: int) -> None:
        try:
            for start in range(first, end, 64):  # so that one half's failure soon ends the other
                if stop.is_set():
                    return
                work(start, min(start + 64, end))
        except BaseException as exc:  # noqa: BLE001  raised again by the caller
            errors.append(exc)
            stop.set()

    middle = segments // THREADS
    helper = threading.Thread(target=run, args=(0, middle), name="kms-stream", daemon=True)
    helper.start()
    try:
        run(middle, segments)
    finally:
        while helper.is_alive():
            try:
                helper.join()
            except BaseException as exc:  # noqa: BLE001  it must end before its files are closed
                errors.append(exc)
                stop.set()
    if errors:
        raise errors[0]


def _copy(
    source: IO[bytes] | io.BufferedIOBase,
    destination: IO[bytes] | io.RawIOBase,
    progress: Progress | None,
) -> None:
    with _plaintext(_COPY_BYTES) as buffer:
        while size := read_full(source, buffer):
            write_all(destination, buffer[:size])
            _tell(progress, size)


@contextmanager
def _plaintext(size: int) -> Iterator[memoryview]:
    """A buffer that is zeroed after use."""
    buffer = bytearray(size)
    try:
        yield memoryview(buffer)
    finally:
        wipe(buffer)


def _tell(progress: Progress | None, size: int, lock: threading.Lock | None = None) -> None:
    if progress is None:
        return
    if lock is None:
        progress(size)
        return
    with lock:
        progress(size)


def _read_at(descriptor: int, buffer: memoryview, offset: int) -> int:
    filled = 0
    while filled < len(buffer):
        size = os.preadv(descriptor, [buffer[filled:]], offset + filled)
        if not size:
            break
        filled += size
    return filled


def _write_at(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written
