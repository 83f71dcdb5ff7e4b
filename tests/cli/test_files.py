"""Reading and writing: whole or not at all."""

from __future__ import annotations

import errno
import io
import os
import re
import stat
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from kms_core.cli import files
from kms_core.errors import InvalidRequest

TOO_LARGE = InvalidRequest("too large")
posix = pytest.mark.skipif(os.name != "posix", reason="modes are POSIX")


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_reading_stops_at_the_limit(folder: Path) -> None:
    """The limit itself is fine, one byte more is not."""
    path = folder / "x"
    path.write_bytes(b"123")
    assert files.read(path, limit=3, too_large=TOO_LARGE) == b"123"
    with pytest.raises(InvalidRequest, match="too large"):
        files.read(path, limit=2, too_large=TOO_LARGE)


def test_closed_standard_streams_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """``kms seal <&-`` is an error of the system like any other."""
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(OSError, match="standard input") as raised:
        files.read(None, limit=1, too_large=TOO_LARGE)
    assert raised.value.errno == errno.EBADF


class _Trickle(io.BytesIO):
    """An unbuffered stream: takes three bytes at a time, and after six nothing for now."""

    def write(self, data: Any) -> int:
        part = bytes(data)[: min(3, 6 - self.tell())]
        return super().write(part) if part else cast("int", None)


def test_stdout_that_takes_a_part_gets_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under ``python -u`` a short write is no error, and must not cut the output."""
    trickle = _Trickle()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(trickle))
    files.write(None, b"12345")
    assert trickle.getvalue() == b"12345"
    with pytest.raises(BlockingIOError):
        files.write(None, b"67")


@posix
def test_new_file_has_the_usual_mode_unless_private(folder: Path) -> None:
    """Envelopes may be read by whom the umask allows, plaintext by its owner only."""
    old = os.umask(0o022)
    try:
        files.write(folder / "envelope", b"x")
        files.write(folder / "plaintext", b"x", private=True)
    finally:
        os.umask(old)
    assert (_mode(folder / "envelope"), _mode(folder / "plaintext")) == (0o644, 0o600)


@posix
def test_existing_file_keeps_its_mode(folder: Path) -> None:
    """Its owner has decided who may read it."""
    path = folder / "x"
    path.write_bytes(b"old")
    path.chmod(0o640)
    files.write(path, b"new", private=True)
    assert (path.read_bytes(), _mode(path)) == (b"new", 0o640)


@posix
def test_links_are_followed(folder: Path) -> None:
    """A link stays one, and what it leads to is replaced."""
    (folder / "real").write_bytes(b"old")
    (folder / "link").symlink_to("real")
    files.write(folder / "link", b"new")
    assert (folder / "link").is_symlink()
    assert (folder / "real").read_bytes() == b"new"


@posix
def test_pipes_and_devices_are_written_to(folder: Path) -> None:
    """Renaming a file over a device would be the end of the device."""
    fifo = folder / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)  # so that no side waits for the other
    try:
        files.write(fifo, b"new")
        assert os.read(reader, 10) == b"new"
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(fifo.stat().st_mode)


@pytest.mark.parametrize("step", ["os.fsync", "pathlib.Path.replace"])
def test_failure_leaves_the_old_content_and_nothing_else(
    folder: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """A full disk or a failed rename is as if nothing had been tried; the error names the file."""
    path = folder / "x"
    path.write_bytes(b"old")

    def fail(*_args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(step, fail)
    with pytest.raises(OSError, match="No space left") as raised:
        files.write(path, b"new")
    assert raised.value.filename == str(path)
    assert [entry.name for entry in folder.iterdir()] == ["x"]
    assert path.read_bytes() == b"old"


def test_only_what_the_output_ran_into_is_blamed_on_it(folder: Path) -> None:
    """An error that names another file, or no file, is passed on as it is."""
    for error in (FileNotFoundError(errno.ENOENT, "gone", "input"), OSError("changed")):
        with (
            pytest.raises(OSError, match=re.escape(str(error))) as raised,
            files.naming(folder / "output"),
        ):
            raise error
        assert raised.value is error
    with pytest.raises(OSError, match="output"), files.naming(folder / "output"):
        raise PermissionError(errno.EACCES, "denied", str(folder / ".kms-0123.tmp"))
    with pytest.raises(OSError, match="output"), files.naming(folder / "output"):
        raise PermissionError(errno.EACCES, "denied", "/proc/self/fd/7")


@posix
def test_link_that_leads_to_itself_is_reported(folder: Path) -> None:
    """As an error of the system, with the name that was given."""
    (folder / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="loop"):
        files.write(folder / "loop", b"x")


def test_length_is_known_of_regular_files_only(folder: Path) -> None:
    """Counted from where the reader stands; a pipe tells at its end."""
    path = folder / "x"
    path.write_bytes(b"12345")
    with files.reading(path) as stream:
        stream.read(2)
        assert files.remaining(stream) == 3
        assert files.skip(stream) == 3
    assert files.remaining(io.BytesIO(b"12345")) is None


def test_stdin_of_any_kind_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where somebody has put something simpler in its place."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"123")))
    with files.reading(None) as stream:
        assert stream.peek(1) == b"123"


def test_copying_counts_what_it_passes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces, in order, to the end."""
    monkeypatch.setattr(files, "COPY_BYTES", 4)
    target, sizes = io.BytesIO(), list[int]()
    files.copy(io.BytesIO(b"0123456789"), target, sizes.append)
    assert (target.getvalue(), sizes) == (b"0123456789", [4, 4, 2])


def test_interrupt_while_writing_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C is a failure like any other."""

    def interrupt(*_args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.write(folder / "x", b"new")
    with pytest.raises(KeyboardInterrupt):
        files.write_new(folder / "y", b"new", 0o644)
    assert list(folder.iterdir()) == []


def test_new_file_overwrites_nothing(folder: Path) -> None:
    """Not even what appeared a moment ago."""
    path = folder / "x"
    path.write_bytes(b"old")
    with pytest.raises(FileExistsError):
        files.write_new(path, b"new", 0o644)
    assert path.read_bytes() == b"old"


@posix
def test_owner_is_kept_where_that_is_permitted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root rewraps a user's file without taking it; others cannot, and go on."""
    path, asked = folder / "x", []
    path.write_bytes(b"old")

    def give_away(_descriptor: int, uid: int, gid: int) -> None:
        asked.append((uid, gid))
        raise PermissionError

    monkeypatch.setattr("os.fchown", give_away)
    files.write(path, b"new")
    assert asked == [(path.stat().st_uid, path.stat().st_gid)]
    assert path.read_bytes() == b"new"
