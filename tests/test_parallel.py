"""Whole files on two threads: the same bytes as in order, and the same refusals."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kms_core import parallel, stream
from kms_core.aead import Keys, StreamKey
from kms_core.context import Context
from kms_core.errors import IntegrityError
from kms_core.files import NewFile
from kms_core.stream import (
    SEGMENT_OVERHEAD,
    SegmentSealer,
    StreamReader,
    StreamWriter,
    read_full,
)

KEY = Keys(bytes(range(32)), Context()).stream(b"some header", Context())[0]
P = 4096
STRIDE = P + SEGMENT_OVERHEAD
HEAD = b"what comes before"
#: From one segment to more than each thread takes in one go.
SIZES = (0, 1, P - 1, P, P + 1, 2 * P, 3 * P + 5, 130 * P, 300 * P + 1)
PATIENCE = 30.0

pytestmark = pytest.mark.skipif(not hasattr(os, "preadv"), reason="files without offsets")


@pytest.fixture(autouse=True)
def _always_on_two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """However small the file and the machine; none of them is left behind."""
    before = set(threading.enumerate())
    monkeypatch.setattr(parallel, "PARALLEL_BYTES", 0)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    yield
    assert set(threading.enumerate()) <= before


@pytest.fixture
def _in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file counts as too small."""
    monkeypatch.setattr(parallel, "PARALLEL_BYTES", 1 << 60)


def pattern(size: int) -> bytes:
    """Plaintext in which no two segments are alike."""
    return b"".join(number.to_bytes(4, "big") for number in range(size // 4 + 1))[:size]


def seal(
    plain: Path, sealed: Path, progress: Callable[[int], None] | None = None, key: StreamKey = KEY
) -> bytes:
    """Seal a file behind some other bytes; what was written."""
    with plain.open("rb", buffering=0) as source, NewFile(sealed) as new:
        new.stream.write(HEAD)
        parallel.seal(source, new.stream, key, P, progress)
    return sealed.read_bytes()


def open_(sealed: Path, plain: Path, progress: Callable[[int], None] | None = None) -> bytes:
    """Open what ``seal`` wrote."""
    with sealed.open("rb", buffering=0) as source, NewFile(plain) as new:
        source.seek(len(HEAD))
        with StreamReader(source, KEY, P) as reader:
            parallel.open_(reader, new.stream, progress)
    return plain.read_bytes()


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Plaintext of 40 and a half segments, where to seal it, and where to open that."""
    (tmp_path / "plain").write_bytes(pattern(40 * P + P // 2))
    return tmp_path / "plain", tmp_path / "sealed", tmp_path / "opened"


class Threads:
    """Which threads reported progress, and how much."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.total = 0

    def __call__(self, size: int) -> None:
        self.names.add(threading.current_thread().name)
        self.total += size


# --- the same bytes ------------------------------------------------------------------------------


class IndexedSealer(SegmentSealer):
    """Draws its IVs from the index, so that two ways to seal can be compared."""

    def seal(self, index: int, chunk: memoryview, *, final: bool) -> memoryview:
        self._random = lambda size: index.to_bytes(size, "big")
        return super().seal(index, chunk, final=final)


@pytest.mark.parametrize("size", SIZES)
def test_two_threads_write_what_one_writes(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Byte by byte, given the same IVs."""
    for module in (parallel, stream):
        monkeypatch.setattr(module, "SegmentSealer", IndexedSealer)
    (tmp_path / "plain").write_bytes(pattern(size))
    in_order = io.BytesIO()
    with StreamWriter(in_order, KEY, P) as writer:
        writer.write(pattern(size))

    assert seal(tmp_path / "plain", tmp_path / "sealed") == HEAD + in_order.getvalue()


@pytest.mark.parametrize("size", SIZES)
def test_what_two_threads_sealed_opens_and_progress_sums_up(tmp_path: Path, size: int) -> None:
    """On two threads again, and in order."""
    (tmp_path / "plain").write_bytes(pattern(size))
    sealing, opening = Threads(), Threads()

    sealed = seal(tmp_path / "plain", tmp_path / "sealed", sealing)

    assert open_(tmp_path / "sealed", tmp_path / "opened", opening) == pattern(size)
    assert StreamReader(io.BytesIO(sealed[len(HEAD) :]), KEY, P).read() == pattern(size)
    assert sealing.total == opening.total == size
    both = {"kms-stream", threading.current_thread().name}
    assert sealing.names == opening.names == (both if size >= P else both - {"kms-stream"})


@pytest.mark.usefixtures("_in_order")
@pytest.mark.parametrize("size", SIZES)
def test_small_files_are_done_in_order(tmp_path: Path, size: int) -> None:
    """On the caller's thread, with the same result and the same progress."""
    (tmp_path / "plain").write_bytes(pattern(size))
    sealing, opening = Threads(), Threads()

    seal(tmp_path / "plain", tmp_path / "sealed", sealing)

    assert open_(tmp_path / "sealed", tmp_path / "opened", opening) == pattern(size)
    assert sealing.total == opening.total == size
    assert (sealing.names | opening.names) <= {threading.current_thread().name}


@pytest.mark.parametrize("cores", [1, None])
def test_one_core_does_it_in_order(
    files: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch, cores: int | None
) -> None:
    """Or one whose number is not known."""
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    plain, sealed, opened = files
    sealing, opening = Threads(), Threads()

    seal(plain, sealed, sealing)

    assert open_(sealed, opened, opening) == plain.read_bytes()
    assert sealing.names | opening.names == {threading.current_thread().name}


def test_what_has_no_offsets_is_done_in_order(files: tuple[Path, Path, Path]) -> None:
    """Memory on either side."""
    plain, _, opened = files
    sealed = io.BytesIO()
    progress = Threads()
    with plain.open("rb") as source:
        parallel.seal(source, sealed, KEY, P, progress)
    from_memory = io.BytesIO()
    parallel.seal(io.BytesIO(plain.read_bytes()), from_memory, KEY, P)
    for one in (sealed, from_memory):
        one.seek(0)
        with NewFile(opened) as new:
            parallel.open_(StreamReader(one, KEY, P), new.stream, progress)
        assert opened.read_bytes() == plain.read_bytes()
    assert progress.names == {threading.current_thread().name}


def test_a_reader_that_is_no_stream_is_copied(tmp_path: Path) -> None:
    """A message that was opened at once, say."""
    with NewFile(tmp_path / "opened") as new:
        parallel.open_(io.BytesIO(b"message"), new.stream)

    assert (tmp_path / "opened").read_bytes() == b"message"


def test_every_segment_has_an_iv_of_its_own(files: tuple[Path, Path, Path]) -> None:
    """Across both threads."""
    plain, sealed, _ = files
    body = seal(plain, sealed)[len(HEAD) :]

    assert len({body[start : start + 12] for start in range(0, len(body), STRIDE)}) == 41


# --- the same refusals ---------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, P, 20 * P, 40 * P, 41 * P, 50 * P])
def test_a_file_that_changes_its_size_meanwhile_is_not_sealed(
    files: tuple[Path, Path, Path], size: int
) -> None:
    """Cut short or grown, at a boundary or not: an error, and nothing is left."""
    plain, sealed, _ = files

    with pytest.raises(OSError, match="changed while it was being sealed"):
        seal(plain, sealed, lambda _: os.truncate(plain, size))

    assert list(plain.parent.iterdir()) == [plain]


def test_a_file_that_grows_by_a_byte_is_not_sealed(files: tuple[Path, Path, Path]) -> None:
    """Nor is one that ended at a boundary."""
    plain, sealed, _ = files
    for size in (40 * P, 40 * P + 1, 41 * P - 1):
        plain.write_bytes(pattern(size))
        with pytest.raises(OSError, match="changed"):
            seal(plain, sealed, lambda _, longer=size + 1: os.truncate(plain, longer))  # type: ignore[misc]

    assert list(plain.parent.iterdir()) == [plain]


@pytest.mark.parametrize("segment", [0, 1, 19, 20, 21, 39, 40])
@pytest.mark.parametrize("offset", [0, 11, 12, 13, -1])
def test_a_flipped_bit_in_either_half_is_refused(
    files: tuple[Path, Path, Path], segment: int, offset: int
) -> None:
    """Whichever thread meets it, no file appears."""
    plain, sealed, opened = files
    altered = bytearray(seal(plain, sealed))
    end = len(HEAD) + (segment + 1) * STRIDE
    altered[min(end, len(altered)) - 1 if offset < 0 else end - STRIDE + offset] ^= 1
    sealed.write_bytes(altered)

    with pytest.raises(IntegrityError):
        open_(sealed, opened)

    assert set(plain.parent.iterdir()) == {plain, sealed}


@pytest.mark.parametrize("cut", [0, 27, 28, STRIDE, 20 * STRIDE, 40 * STRIDE, 40 * STRIDE + 28])
def test_a_file_cut_short_is_refused(files: tuple[Path, Path, Path], cut: int) -> None:
    """At a boundary or not."""
    plain, sealed, opened = files
    seal(plain, sealed)
    os.truncate(sealed, len(HEAD) + cut)

    with pytest.raises(IntegrityError):
        open_(sealed, opened)

    assert set(plain.parent.iterdir()) == {plain, sealed}


@pytest.mark.parametrize("left", [20, 21])
def test_halves_cannot_be_exchanged(files: tuple[Path, Path, Path], left: int) -> None:
    """Segments are bound to their place, also for whoever starts in the middle."""
    plain, sealed, opened = files
    whole = seal(plain, sealed)
    body = whole[len(HEAD) :]
    segments = [body[start : start + STRIDE] for start in range(0, len(body), STRIDE)]
    sealed.write_bytes(
        HEAD + b"".join(segments[left:-1] + segments[:left]) + segments[-1],
    )

    with pytest.raises(IntegrityError):
        open_(sealed, opened)

    assert not opened.exists()


@pytest.mark.parametrize("by", [-STRIDE, -1, 1, STRIDE])
def test_a_file_that_changes_its_size_meanwhile_is_not_opened(
    files: tuple[Path, Path, Path], by: int
) -> None:
    """After its length was authenticated."""
    plain, sealed, opened = files
    size = len(seal(plain, sealed))

    with pytest.raises(IntegrityError):
        open_(sealed, opened, lambda _: os.truncate(sealed, size + by))

    assert not opened.exists()


# --- how it ends ---------------------------------------------------------------------------------


class Held:
    """Keeps back the first write of one thread until the other has told it to stop."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, helper: bool) -> None:
        self._helper = helper
        self._signals: list[threading.Event] = []
        self._write_at = parallel._write_at
        self.told: list[bool] = []
        make = threading.Event

        def recorded() -> threading.Event:
            self._signals.append(make())
            return self._signals[-1]

        monkeypatch.setattr(threading, "Event", recorded)
        monkeypatch.setattr(parallel, "_write_at", self._write)

    def _write(self, *arguments: Any) -> None:
        if (threading.current_thread().name == "kms-stream") == self._helper:
            self.told.append(self._signals[0].wait(PATIENCE))
            assert self.told[-1]
        self._write_at(*arguments)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("helper", [True, False])
def test_an_error_of_either_thread_is_raised_and_ends_the_other(
    tmp_path: Path,
    helper: bool,  # noqa: FBT001
    error: type[BaseException],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Here the progress report fails: that error comes out, the other half stops early."""
    (tmp_path / "plain").write_bytes(bytes(1000 * P))
    held = Held(monkeypatch, helper=not helper)

    def progress(_: int) -> None:
        if (threading.current_thread().name == "kms-stream") == helper:
            raise error("stop")

    with pytest.raises(error, match="stop"):
        seal(tmp_path / "plain", tmp_path / "sealed", progress)

    assert all(held.told)
    assert len(held.told) <= 64  # it looks up now and then, not at every segment
    assert [path.name for path in tmp_path.iterdir()] == ["plain"]


def test_interrupted_while_it_waits_it_ends_the_other_thread_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files are closed next, and nobody may write to what then has their descriptors."""
    (tmp_path / "plain").write_bytes(bytes(1000 * P))
    held = Held(monkeypatch, helper=True)
    helpers: list[threading.Thread] = []
    join = threading.Thread.join

    def interrupted_once(thread: threading.Thread, timeout: float | None = None) -> None:
        helpers.append(thread)
        if len(helpers) == 1:
            raise KeyboardInterrupt
        join(thread, timeout)

    monkeypatch.setattr(threading.Thread, "join", interrupted_once)
    with (tmp_path / "plain").open("rb", buffering=0) as source, NewFile(tmp_path / "s") as new:
        with pytest.raises(KeyboardInterrupt):
            parallel.seal(source, new.stream, KEY, P)
        assert [helper.is_alive() for helper in helpers] == [False, False]

    assert all(held.told)
    assert 1 <= len(held.told) <= 64


def test_plaintext_buffers_are_wiped(
    files: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On both threads and in order, also after an error."""
    buffers: list[memoryview] = []
    read_at = parallel._read_at

    def noting_at(descriptor: int, buffer: memoryview, offset: int) -> int:
        buffers.append(buffer)
        return read_at(descriptor, buffer, offset)

    def divide(size: int) -> None:
        _ = size // 0

    def noting_full(source: Any, buffer: memoryview) -> int:
        buffers.append(buffer)
        return read_full(source, buffer)

    monkeypatch.setattr(parallel, "_read_at", noting_at)
    monkeypatch.setattr(parallel, "read_full", noting_full)
    plain, sealed, _ = files
    seal(plain, sealed)
    with pytest.raises(ZeroDivisionError):
        seal(plain, sealed, divide)
    monkeypatch.setattr(parallel, "PARALLEL_BYTES", 1 << 60)
    seal(plain, sealed)

    assert len({id(buffer.obj) for buffer in buffers}) >= 4
    assert not any(any(buffer) for buffer in buffers)
