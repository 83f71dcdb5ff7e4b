"""Reading input and writing output: bytes exactly, and files whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final, TextIO

from kms_core.errors import KMSError

#: The most that one envelope takes; the core refuses more, but would have to be given it first.
MAX_PLAINTEXT_BYTES: Final = 64 << 20
#: An envelope that holds so much, as text, with room for the largest capsule and context.
MAX_ENVELOPE_BYTES: Final = 96 << 20
_O_BINARY: Final[int] = getattr(os, "O_BINARY", 0)


def read(source: Path | None, *, limit: int, too_large: KMSError) -> bytes:
    """All of a file, or of stdin for ``None``; raises ``too_large`` for more than ``limit``."""
    if source is None:
        data = _bytes_of(sys.stdin).read(limit + 1)
    else:
        with _blaming(source), source.open("rb") as stream:
            data = stream.read(limit + 1)
    if len(data) > limit:
        raise too_large
    return data


def write(target: Path | None, data: bytes, *, private: bool = False) -> None:
    """Write to a file as ``replace`` does, or to stdout for ``None``."""
    if target is None:
        _write_all(_bytes_of(sys.stdout), data)
    else:
        replace(target, data, private=private)


def is_terminal(target: Path | None) -> bool:
    """Whether output would go to a person's screen."""
    return target is None and sys.stdout is not None and sys.stdout.isatty()


def replace(
    path: Path,
    data: bytes,
    *,
    private: bool = False,
    before_rename: Callable[[], None] | None = None,
) -> None:
    """Give ``path`` this content at once; on any failure it keeps the content it had.

    An existing file keeps its mode, a new one gets 0600 if ``private``.  Links are followed;
    what is no regular file, such as a device or a pipe, is written to.  ``before_rename`` may
    still refuse by raising.
    """
    with _blaming(path):
        target = path.resolve()
        old = _status(path)
        if old is not None and not stat.S_ISREG(old.st_mode):
            path.write_bytes(data)
            return
        temporary = target.with_name(f".kms-{secrets.token_hex(8)}.tmp")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _O_BINARY
        descriptor = os.open(temporary, flags, 0o600 if private else 0o666)
        try:
            _fill(descriptor, data, old)
            if before_rename is not None:
                before_rename()
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(target.parent)


def write_new(path: Path, data: bytes, mode: int) -> None:
    """Create a file with ``mode`` less the umask; raises ``FileExistsError`` if there is one."""
    with _blaming(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _O_BINARY, mode)
        try:
            _fill(descriptor, data)
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def _fill(descriptor: int, data: bytes, like: os.stat_result | None = None) -> None:
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)
        if like is not None and os.name == "posix":
            with suppress(PermissionError):  # only root may give a file away
                os.fchown(descriptor, like.st_uid, like.st_gid)
            os.fchmod(descriptor, stat.S_IMODE(like.st_mode))
        stream.flush()
        os.fsync(descriptor)


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(stream: BinaryIO, data: bytes) -> None:
    """An unbuffered stdout (``python -u``) takes a part, and only says how much that was."""
    rest = memoryview(data)
    while rest:
        written = stream.write(rest)
        if not written:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN), "standard output")
        rest = rest[written:]
    stream.flush()


def _bytes_of(stream: TextIO | None) -> BinaryIO:
    if stream is None:  # closed by whoever started us
        raise OSError(errno.EBADF, os.strerror(errno.EBADF), "standard input or output")
    return stream.buffer


@contextmanager
def _blaming(path: Path) -> Iterator[None]:
    """Let errors name the file that the user knows, not one beside it."""
    try:
        yield
    except OSError as exc:
        raise OSError(exc.errno, exc.strerror, str(path)) from exc
