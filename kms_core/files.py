"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

_O_BINARY: Final[int] = getattr(os, "O_BINARY", 0)


class NewFile:
    """The next content of ``path``: leaving ``with`` normally puts it there, at once.

    Left through an exception, interrupted or killed, it leaves ``path`` as it was; and nothing else
    behind, where the system has unnamed files, but for a kill in the instant of the change.  An
    existing file keeps its mode and owner; a new one gets ``mode`` less the umask.  Links are
    followed.  ``before_rename`` may still refuse by raising.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        mode: int = 0o666,
        before_rename: Callable[[], None] | None = None,
    ) -> None:
        self._target = Path(os.path.realpath(path))
        self._before_rename = before_rename
        self._temporary = self._target.with_name(f".kms-{secrets.token_hex(8)}.tmp")
        self._named = False
        old = self._existing()
        self._descriptor = self._open(mode)
        try:
            if old is not None:
                self._take_after(old)
            self.stream: IO[bytes] = os.fdopen(self._descriptor, "w+b", buffering=0)
        except BaseException:
            os.close(self._descriptor)
            self._forget()
            raise

    def fileno(self) -> int:
        """The descriptor, for writing at offsets."""
        return self._descriptor

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        with self.stream:
            try:
                if kind is None:
                    self._commit()
            finally:
                self._forget()

    def _open(self, mode: int) -> int:
        unnamed: int | None = getattr(os, "O_TMPFILE", None)
        if unnamed is not None:
            try:
                return os.open(self._target.parent, unnamed | os.O_RDWR, mode)
            except OSError:  # not on this file system, or no such folder: the next line tells
                pass
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _O_BINARY
        descriptor = os.open(self._temporary, flags, mode)
        self._named = True
        return descriptor

    def _existing(self) -> os.stat_result | None:
        """What is there now; raises ``FileExistsError`` for anything but a regular file."""
        try:
            old = self._target.stat()
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(old.st_mode):
            raise FileExistsError(errno.EEXIST, "is not a regular file", str(self._target))
        return old

    def _take_after(self, old: os.stat_result) -> None:
        if os.name == "posix":
            with contextlib.suppress(PermissionError):  # only root may give a file away
                os.fchown(self._descriptor, old.st_uid, old.st_gid)
            os.fchmod(self._descriptor, stat.S_IMODE(old.st_mode))

    def _commit(self) -> None:
        self.stream.flush()
        os.fsync(self._descriptor)
        if self._before_rename is not None:
            self._before_rename()
        if not self._named:
            self._give_name()
        self._temporary.replace(self._target)
        self._named = False
        sync_folder(self._target.parent)

    def _give_name(self) -> None:
        folder = os.open(self._target.parent, os.O_RDONLY)
        try:
            # given a folder, Python calls linkat(), which alone follows the link in /proc
            unnamed = f"/proc/self/fd/{self._descriptor}"
            self._named = True  # before it is true, so that no interruption comes in between
            os.link(unnamed, self._temporary, src_dir_fd=folder, follow_symlinks=True)
        finally:
            os.close(folder)

    def _forget(self) -> None:
        if self._named:
            self._temporary.unlink(missing_ok=True)
            self._named = False


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on disk, where a system keeps them apart from the files."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_regular(stream: IO[Any]) -> bool:
    """Whether a stream is a file whose parts can be read at offsets."""
    try:
        return stat.S_ISREG(os.fstat(stream.fileno()).st_mode) and hasattr(os, "preadv")
    except (OSError, AttributeError, ValueError):
        return False
