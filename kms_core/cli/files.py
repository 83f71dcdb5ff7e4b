"""Reading input and writing output: bytes exactly, and files whole or not at all."""

from __future__ import annotations

import errno
import io
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO, Final, TextIO, cast

from kms_core.errors import KMSError
from kms_core.files import NewFile, is_regular

COPY_BYTES: Final = 1 << 18  # one segment of a stream, so that each is passed on when it is there
_O_BINARY: Final[int] = getattr(os, "O_BINARY", 0)
#: What only the output can run into, although the system names no file with it.
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)})
_STAND_INS: Final = (".kms-", "/proc/self/fd/")  # what the output is called while it is written


# --- input ---------------------------------------------------------------------------------------


@contextmanager
def reading(source: Path | None) -> Iterator[io.BufferedReader]:
    """An open file, or stdin for ``None``."""
    if source is None:
        yield _buffered(_bytes_of(sys.stdin))
    else:
        with source.open("rb") as stream:
            yield stream


def take(stream: IO[bytes], *, limit: int, too_large: KMSError) -> bytes:
    """All that is left; raises ``too_large`` for more than ``limit`` bytes."""
    data = stream.read(limit + 1)
    if len(data) > limit:
        raise too_large
    return data


def read(source: Path | None, *, limit: int, too_large: KMSError) -> bytes:
    """All of a file or of stdin; raises ``too_large`` for more than ``limit`` bytes."""
    with reading(source) as stream:
        return take(stream, limit=limit, too_large=too_large)


def remaining(stream: IO[bytes]) -> int | None:
    """How many bytes are still to come; ``None`` where only reading them can tell."""
    if not is_regular(stream):
        return None
    return max(0, os.fstat(stream.fileno()).st_size - stream.tell())


def skip(stream: IO[bytes]) -> int:
    """Read to the end; how many bytes that were."""
    return sum(map(len, iter(lambda: stream.read(COPY_BYTES), b"")))


# --- output --------------------------------------------------------------------------------------


@contextmanager
def writing(target: Path | None, *, private: bool = False) -> Iterator[IO[bytes]]:
    """The next content of a file, or stdout for ``None``.

    A file gets it when the block is left normally, whole; until then it keeps what it had.  An
    existing one keeps its mode, a new one gets 0600 if ``private``.  What is no regular file, such
    as a device or a pipe, is written to, as stdout is.
    """
    if target is None:
        stdout = _bytes_of(sys.stdout)
        yield stdout
        stdout.flush()
        return
    with naming(target):
        if _is_special(target):
            with target.open("wb", buffering=0) as stream:
                yield stream
        else:
            with NewFile(target, mode=0o600 if private else 0o666) as new:
                yield new.stream


def write(target: Path | None, data: bytes, *, private: bool = False) -> None:
    """Write all of ``data`` as ``writing`` does."""
    with writing(target, private=private) as stream:
        put(stream, data)


def put(target: IO[bytes] | io.RawIOBase, data: bytes) -> None:
    """Write all of ``data``, also where less is taken at a time, as by stdout unbuffered."""
    from kms_core.stream import write_all

    write_all(target, memoryview(data))


def write_new(path: Path, data: bytes, mode: int) -> None:
    """Create a file with ``mode`` less the umask; raises ``FileExistsError`` if there is one."""
    with naming(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _O_BINARY, mode)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(descriptor)
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def copy(
    source: IO[bytes] | io.BufferedIOBase,
    target: IO[bytes] | io.RawIOBase,
    progress: Callable[[int], object],
) -> None:
    """Pass on what is left of ``source``, in one small buffer that is wiped."""
    from kms_core.stream import read_full, write_all

    buffer = memoryview(bytearray(COPY_BYTES))
    try:
        while size := read_full(source, buffer):
            write_all(target, buffer[:size])
            progress(size)
    finally:
        buffer[:] = bytes(COPY_BYTES)


def is_terminal(target: Path | None) -> bool:
    """Whether output would go to a person's screen."""
    return target is None and sys.stdout is not None and sys.stdout.isatty()


def appears_whole(target: Path | None) -> bool:
    """Whether ``writing`` there shows nothing until all is written."""
    return target is not None and not _is_special(target)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let errors name the output as the user did, not the nameless file that becomes it."""
    try:
        yield
    except OSError as exc:
        if exc.errno in _NO_ROOM or _is_stand_in(exc.filename):
            raise OSError(exc.errno, exc.strerror, str(path)) from exc
        raise


def _is_stand_in(name: object) -> bool:
    if not isinstance(name, str):
        return False
    temporary, descriptor = _STAND_INS
    return Path(name).name.startswith(temporary) or name.startswith(descriptor)


def _is_special(path: Path) -> bool:
    """Whether there is something that cannot be replaced by a regular file."""
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        return False


def _buffered(stream: BinaryIO) -> io.BufferedReader:
    """Stdin as it is, unless somebody has put something simpler in its place."""
    if isinstance(stream, io.BufferedReader):
        return stream
    return io.BufferedReader(cast("io.RawIOBase", stream))


def _bytes_of(stream: TextIO | None) -> BinaryIO:
    if stream is None:  # closed by whoever started us
        raise OSError(errno.EBADF, os.strerror(errno.EBADF), "standard input or output")
    return stream.buffer
