"""The file on disk: private from the first instant, and either old or new, never in between."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kms_core import InvalidRequest, KMSError, Unavailable
from kms_local import private_file
from kms_local.errors import Doing, translated

posix = pytest.mark.skipif(not private_file.POSIX, reason="platform: no POSIX modes")


def _mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.fixture
def open_umask() -> Iterator[None]:
    """A user who lets everybody write everything."""
    before = os.umask(0)
    yield
    os.umask(before)


@posix
def test_a_new_file_is_private_before_it_has_content(
    path: Path, open_umask: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the umask, the mode is 0600 when the file appears, not some time after."""
    seen = []
    opened = os.open

    def watched(name: Path, flags: int, mode: int = 0o777) -> int:
        descriptor = opened(name, flags, mode)
        seen.append((os.fstat(descriptor).st_mode & 0o777, os.fstat(descriptor).st_size))
        return descriptor

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", watched)
        private_file.create(path, b"secret")
    assert seen[0] == (0o600, 0)
    assert _mode(path) == 0o600


def test_creating_never_overwrites(path: Path) -> None:
    """An existing file, even an empty one, stays what it is."""
    path.write_bytes(b"")
    with pytest.raises(FileExistsError):
        private_file.create(path, b"new")
    assert path.read_bytes() == b""


@posix
def test_creating_does_not_follow_a_link(path: Path, tmp_path: Path) -> None:
    """A planted link does not decide where the keys go."""
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        private_file.create(path, b"new")
    assert not (tmp_path / "elsewhere").exists()


def test_a_failed_creation_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a full disk the next attempt finds no half-written store to stumble over."""
    monkeypatch.setattr(os, "fsync", _fail)
    with pytest.raises(OSError, match="disk full"):
        private_file.create(path, b"secret")
    assert list(path.parent.iterdir()) == []


def _fail(*_args: object) -> None:
    raise OSError(28, "disk full")


def test_replacing_leaves_only_the_new_file(path: Path) -> None:
    """The new content is there, private, and nothing lies beside it."""
    private_file.create(path, b"old")
    private_file.replace(path, b"new")
    assert private_file.read(path)[1] == b"new"
    assert _mode(path) == 0o600
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("step", ["fsync", "rename"])
def test_a_failed_replacement_keeps_the_old_file(
    path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Wherever it fails, the old content stands and no copy of the keys is left behind."""
    private_file.create(path, b"old")
    if step == "fsync":
        monkeypatch.setattr(os, "fsync", _fail)
    else:
        monkeypatch.setattr(Path, "replace", _fail)
    with pytest.raises(OSError, match="disk full"):
        private_file.replace(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


def test_the_content_is_on_disk_before_the_name(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut after the rename cannot find an empty file: sync, rename, sync the directory."""
    private_file.create(path, b"old")
    steps: list[str] = []
    renamed = Path.replace

    def sync(descriptor: int) -> None:
        is_directory = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        steps.append("sync directory" if is_directory else "sync file")

    def rename(old: Path, new: Path) -> None:
        steps.append("rename")
        renamed(old, new)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", rename)
    private_file.replace(path, b"new")
    assert steps[0] == "sync file"
    assert steps[-2:] == ["rename", "sync directory"]


@posix
def test_replacing_goes_through_a_link(path: Path, tmp_path: Path) -> None:
    """A link goes on pointing to the file, which is replaced where it lies."""
    target = tmp_path / "elsewhere" / "keys"
    target.parent.mkdir()
    private_file.create(target, b"old")
    path.symlink_to(target)
    private_file.replace(path, b"new")
    assert path.is_symlink()
    assert target.read_bytes() == b"new"
    assert list(target.parent.iterdir()) == [target]


@posix
def test_the_owner_stays_the_owner(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An administrator who rotates a service's keys does not lock the service out."""
    private_file.create(path, b"old")
    given = []
    monkeypatch.setattr(os, "fchown", lambda _fd, *owner: given.append(owner))
    status = path.stat()
    other = os.stat_result((*status[:4], status.st_uid + 1, *status[5:]))
    fresh = path.with_name("fresh")
    private_file.create(fresh, b"new", owner=other)
    private_file.create(path.with_name("own"), b"new", owner=status)
    assert given == [(status.st_uid + 1, status.st_gid)]


@posix
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o666, 0o444])
def test_a_file_open_to_others_is_refused(path: Path, mode: int) -> None:
    """The message holds the command that helps, with the path quoted for a shell."""
    odd = path.with_name("my keys")
    private_file.create(odd, b"secret")
    odd.chmod(mode)
    with pytest.raises(Unavailable) as caught:
        private_file.read(odd)
    assert f"run: chmod 600 '{odd}'" in str(caught.value)


@posix
@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_private_file_is_read(path: Path, mode: int) -> None:
    """Read-only is private enough."""
    private_file.create(path, b"secret")
    path.chmod(mode)
    assert private_file.read(path)[1] == b"secret"


def test_a_huge_file_is_refused(path: Path) -> None:
    """One byte over the limit is refused, without reading the rest."""
    private_file.create(path, bytes(private_file.MAX_BYTES))
    assert len(private_file.read(path)[1]) == private_file.MAX_BYTES
    private_file.replace(path, bytes(private_file.MAX_BYTES + 1))
    with pytest.raises(Unavailable, match="larger than"):
        private_file.read(path)


@posix
def test_a_pipe_is_refused_without_waiting(path: Path) -> None:
    """A pipe that nobody writes to does not hang its reader."""
    os.mkfifo(path, 0o600)
    with pytest.raises(Unavailable, match="not a regular file"):
        private_file.read(path)


@posix
def test_a_writer_waits_for_the_one_before_and_sees_its_file(path: Path) -> None:
    """Whoever gets the lock holds it on the file that the path names by then."""
    private_file.create(path, b"0")
    locked, seen = threading.Event(), []

    def second() -> None:
        locked.wait(30)
        with private_file.locked(path):
            seen.append(path.read_bytes())

    thread = threading.Thread(target=second, daemon=True)
    thread.start()
    with private_file.locked(path):
        locked.set()
        private_file.replace(path, b"1")
        assert seen == []
    thread.join(30)
    assert seen == [b"1"]


@posix
def test_a_replaced_file_is_locked_anew(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock of a file that was replaced while we waited protects nothing: take the new one's."""
    private_file.create(path, b"old")
    inodes: list[int] = []
    lock = private_file._flock

    def overtaken(descriptor: int) -> None:
        lock(descriptor)
        if not inodes:
            private_file.replace(path, b"new")
        inodes.append(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(private_file, "_flock", overtaken)
    with private_file.locked(path):
        assert inodes[-1] == path.stat().st_ino
    assert len(inodes) == 2


@posix
def test_a_failed_lock_leaves_no_descriptor(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without locks is an error, not a leak."""
    private_file.create(path, b"old")
    closed: list[int] = []
    close = os.close

    def counted(descriptor: int) -> None:
        closed.append(descriptor)
        close(descriptor)

    monkeypatch.setattr(private_file, "_flock", _fail)
    with monkeypatch.context() as patch:
        patch.setattr(os, "close", counted)
        with pytest.raises(OSError, match="disk full"), private_file.locked(path):
            pytest.fail("it was locked")
    assert len(closed) == 1


def test_other_platforms_do_without_locks_and_modes(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where POSIX is missing the file is still replaced whole."""
    monkeypatch.setattr(private_file, "POSIX", False)
    private_file.create(path, b"old")
    path.chmod(0o644)
    with private_file.locked(path):
        private_file.replace(path, b"new")
    assert private_file.read(path)[1] == b"new"


@pytest.mark.parametrize(
    ("doing", "error", "kind", "advice"),
    [
        ("read", FileNotFoundError(2, "No such file"), Unavailable, "kms init"),
        ("read", PermissionError(13, "Permission denied"), Unavailable, "user who owns"),
        ("read", IsADirectoryError(21, "Is a directory"), Unavailable, "readable file"),
        ("read", OSError(5, "I/O error"), Unavailable, "readable file"),
        ("create", FileExistsError(17, "File exists"), InvalidRequest, "never overwritten"),
        ("create", FileNotFoundError(2, "No such file"), InvalidRequest, "directory first"),
        ("create", OSError(28, "No space left"), Unavailable, "written to"),
        ("change", PermissionError(13, "Permission denied"), Unavailable, "old content"),
        ("change", OSError("bare"), Unavailable, "old content"),
    ],
)
def test_every_row_of_the_error_table(
    doing: Doing, error: OSError, kind: type[KMSError], advice: str
) -> None:
    """The message says what failed, where, why, and what to do next, in one line."""
    with pytest.raises(kind, match=advice) as caught, translated(Path("keys"), doing):
        raise error
    assert caught.value.__cause__ is error
    assert f"cannot {doing} key store keys: {error.strerror or 'OSError'}" in str(caught.value)
