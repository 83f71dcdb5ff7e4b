"""A file for one user's eyes: read with suspicion, replaced whole, never wider than 0600.

POSIX gives all of it.  Elsewhere the file inherits its directory's access rules, which are not
checked, and concurrent writers are not kept apart.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from attrs import frozen

from kms_core import Unavailable

MAX_BYTES: Final = 1 << 20  # thousands of key versions; bounds what a planted file can cost
POSIX: Final = os.name == "posix"

_MODE: Final = 0o600
_OTHERS_MAY_READ_OR_WRITE: Final = 0o066
#: Opening a pipe must not wait for its other end; it is refused once it is open.
_WITHOUT_WAITING: Final = getattr(os, "O_NONBLOCK", 0)


@frozen
class Stamp:
    """Tells one state of a file from the next without reading it."""

    device: int
    inode: int
    modified: int
    size: int

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        """The stamp in what ``stat`` says."""
        return cls(status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)


def read(path: Path) -> tuple[Stamp, bytes]:
    """The file's bytes; ``Unavailable`` if others may touch it or it cannot be a key store."""
    # The checks are made on the open file: a path could name another one a moment later.
    with os.fdopen(os.open(path, os.O_RDONLY | _WITHOUT_WAITING), "rb") as file:
        status = os.fstat(file.fileno())
        _check(path, status)
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise Unavailable(f"{path} is larger than {MAX_BYTES} bytes: not a key store")
    return Stamp.of(status), data


def create(path: Path, data: bytes, *, owner: os.stat_result | None = None) -> None:
    """Write a new file, through to the disk; raises ``FileExistsError`` if there is one.

    It belongs to the user and group of ``owner``, or to whoever runs this.  A failure leaves
    nothing behind.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _MODE)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if owner is not None and _owner(owner) != _owner(os.fstat(descriptor)):
                os.fchown(descriptor, *_owner(owner))
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        _sync_directory(path.parent)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def replace(path: Path, data: bytes) -> None:
    """Put ``data`` in the place of an existing file: whole and on the disk, or not at all."""
    target = Path(os.path.realpath(path))  # a link goes on pointing where it points
    fresh = target.with_name(f".kms-local-{secrets.token_hex(8)}.tmp")
    create(fresh, data, owner=target.stat())
    try:
        fresh.replace(target)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    _sync_directory(target.parent)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other writers of an existing file out, in this process and in any other."""
    if not POSIX:
        yield
        return
    descriptor = _lock(path)
    try:
        yield
    finally:
        os.close(descriptor)


def _lock(path: Path) -> int:
    """An open file that is locked and still the one that ``path`` names.

    The file itself is the lock: a second one beside it would stay behind, owned by whoever ran
    first.  While we waited the holder has replaced the file, so the new one is tried again.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | _WITHOUT_WAITING)
        try:
            _flock(descriptor)
            current = os.path.samestat(os.fstat(descriptor), path.stat())
        except BaseException:
            os.close(descriptor)
            raise
        if current:
            return descriptor
        os.close(descriptor)


def _flock(descriptor: int) -> None:
    import fcntl  # POSIX only

    fcntl.flock(descriptor, fcntl.LOCK_EX)


def _owner(status: os.stat_result) -> tuple[int, int]:
    return status.st_uid, status.st_gid


def _check(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise Unavailable(f"{path} is not a regular file: it cannot be a key store")
    mode = stat.S_IMODE(status.st_mode)
    if POSIX and mode & _OTHERS_MAY_READ_OR_WRITE:
        raise Unavailable(
            f"key store {path} is open to other users (mode {mode:04o}); "
            f"run: chmod 600 {shlex.quote(str(path))}"
        )


def _sync_directory(directory: Path) -> None:
    """Make a new name last through a power cut."""
    if not POSIX:  # where a directory cannot be opened
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
