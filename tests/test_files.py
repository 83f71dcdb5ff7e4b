"""Files that appear whole or not at all, whatever happens in between."""

from __future__ import annotations

import errno
import io
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kms_core.files import NewFile, is_regular

OLD, NEW = b"old content", b"new content"
PATIENCE = 60.0

pytestmark = pytest.mark.skipif(os.name != "posix", reason="modes, links and signals of POSIX")


@pytest.fixture(params=["unnamed", "named"])
def _both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With unnamed files where the system has them, and as on one that has none."""
    if request.param == "named":
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)


both_ways = pytest.mark.usefixtures("_both_ways")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A file with the old content, alone in its folder."""
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "file"
    path.write_bytes(OLD)
    return path


@pytest.fixture
def umask() -> Iterator[None]:
    """The usual one, so that modes can be told."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def write(path: Path, **options: Any) -> None:
    """Put the new content there."""
    with NewFile(path, **options) as new:
        new.stream.write(NEW)


def mode(path: Path) -> int:
    """The permission bits."""
    return stat.S_IMODE(path.stat().st_mode)


def untouched(path: Path) -> bool:
    """Whether the old content is there, and nothing beside it."""
    return path.read_bytes() == OLD and list(path.parent.iterdir()) == [path]


@contextmanager
def open_files_stay_as_they_are() -> Iterator[None]:
    """Every descriptor that is opened is closed again."""
    folder = Path("/proc/self/fd")
    before = sorted(os.listdir(folder)) if folder.exists() else []  # noqa: PTH208
    yield
    after = sorted(os.listdir(folder)) if folder.exists() else []  # noqa: PTH208
    assert after == before


# --- whole ---------------------------------------------------------------------------------------


@both_ways
def test_it_appears_when_it_is_whole(target: Path) -> None:
    """Until then the old content is there; afterwards nothing else is in the folder."""
    with open_files_stay_as_they_are():
        with NewFile(target) as new:
            new.stream.write(NEW)
            assert target.read_bytes() == OLD
        assert target.read_bytes() == NEW
    assert list(target.parent.iterdir()) == [target]


@both_ways
@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("wanted", [0o600, 0o640, 0o666])
def test_a_new_file_has_the_mode_less_the_umask(tmp_path: Path, wanted: int) -> None:
    """As ``open`` does it."""
    write(tmp_path / "new", mode=wanted)

    assert (tmp_path / "new").read_bytes() == NEW
    assert mode(tmp_path / "new") == wanted & ~0o022


@both_ways
@pytest.mark.parametrize("kept", [0o400, 0o600, 0o644, 0o666, 0o755])
def test_an_old_file_keeps_its_mode(target: Path, kept: int) -> None:
    """Whatever mode was asked for, and whatever the umask is."""
    target.chmod(kept)

    write(target, mode=0o600)

    assert target.read_bytes() == NEW
    assert mode(target) == kept


@both_ways
@pytest.mark.skipif(os.name == "posix" and os.geteuid() != 0, reason="only root gives files away")
def test_an_old_file_keeps_its_owner(target: Path) -> None:
    """And its group; set-user-id, which a change of owner clears, as well."""
    os.chown(target, 12345, 23456)
    target.chmod(0o4750)

    write(target)

    assert (target.stat().st_uid, target.stat().st_gid) == (12345, 23456)
    assert mode(target) == 0o4750


def test_who_may_not_give_it_away_writes_it_all_the_same(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The content matters more than the owner."""
    asked = []

    def refuse(*arguments: int) -> None:
        asked.append(arguments)
        raise PermissionError(errno.EPERM, "not permitted")

    monkeypatch.setattr(os, "fchown", refuse)
    write(target)

    assert len(asked) == 1
    assert target.read_bytes() == NEW


@both_ways
def test_links_are_followed(target: Path, tmp_path: Path) -> None:
    """Relative ones, chains, and one to a file that is not there yet."""
    (tmp_path / "one").symlink_to("folder/file")
    (tmp_path / "two").symlink_to(tmp_path / "one")
    (tmp_path / "dangling").symlink_to("folder/new")

    write(tmp_path / "two")
    write(tmp_path / "dangling")

    assert target.read_bytes() == (target.parent / "new").read_bytes() == NEW
    assert all((tmp_path / name).is_symlink() for name in ("one", "two", "dangling"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "folder", "one", "two"]


def test_a_path_without_a_folder_is_one_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if that changes meanwhile."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    with NewFile("name") as new:
        new.stream.write(NEW)
        os.chdir("elsewhere")

    assert (tmp_path / "name").read_bytes() == NEW


@both_ways
def test_it_can_be_written_and_read_at_offsets(target: Path) -> None:
    """Its descriptor is a regular file's."""
    with NewFile(target) as new:
        assert is_regular(new.stream)
        assert new.fileno() == new.stream.fileno()
        os.pwrite(new.fileno(), b"content", 4)
        os.pwrite(new.fileno(), b"new ", 0)
        assert os.pread(new.fileno(), 100, 0) == NEW

    assert target.read_bytes() == NEW


@both_ways
def test_two_at_once_do_not_disturb_each_other(target: Path) -> None:
    """The one that ends last is what stays."""
    with NewFile(target) as first, NewFile(target) as second:
        first.stream.write(b"first")
        second.stream.write(b"second")
    assert target.read_bytes() == b"first"
    assert list(target.parent.iterdir()) == [target]


# --- or not at all -------------------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_left_through_an_exception_it_leaves_nothing(
    target: Path, error: type[BaseException]
) -> None:
    """The old content stays, and no descriptor and no temporary file."""
    with open_files_stay_as_they_are():
        with pytest.raises(error), NewFile(target) as new:  # noqa: PT012
            new.stream.write(NEW)
            raise error
        assert new.stream.closed
    assert untouched(target)


def failing(error: BaseException) -> Callable[..., Any]:
    """A system call that fails."""

    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


@both_ways
@pytest.mark.parametrize("error", [OSError(errno.EIO, "input/output error"), KeyboardInterrupt()])
@pytest.mark.parametrize(
    ("where", "name"), [(os, "fsync"), (Path, "replace")], ids=["fsync", "rename"]
)
def test_a_failing_end_leaves_nothing(
    target: Path, monkeypatch: pytest.MonkeyPatch, where: Any, name: str, error: BaseException
) -> None:
    """Neither a file that may not be on disk nor one that was not renamed."""
    monkeypatch.setattr(where, name, failing(error))

    with open_files_stay_as_they_are(), pytest.raises(type(error)):
        write(target)

    assert untouched(target)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_failing_link_leaves_nothing(
    target: Path,
    monkeypatch: pytest.MonkeyPatch,
    after: bool,  # noqa: FBT001
) -> None:
    """Interrupted just before or just after the unnamed file got its name."""
    link = os.link

    def interrupted(*arguments: Any, **options: Any) -> None:
        if after:
            link(*arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "link", interrupted)
    skip_without_unnamed_files(target.parent)

    with open_files_stay_as_they_are(), pytest.raises(KeyboardInterrupt):
        write(target)

    assert untouched(target)


def skip_without_unnamed_files(folder: Path) -> None:
    """For what is promised only where the system has them."""
    try:
        os.close(os.open(folder, os.O_TMPFILE | os.O_RDWR))
    except (AttributeError, OSError):
        pytest.skip("no unnamed files here")


@both_ways
def test_the_folder_is_synchronised_after_the_rename(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """File first, then the folder; that the latter failed is told, and the file is whole."""
    synchronised: list[bool] = []

    def fsync(descriptor: int) -> None:
        synchronised.append(stat.S_ISDIR(os.fstat(descriptor).st_mode))
        if synchronised[-1]:
            assert target.read_bytes() == NEW
            raise OSError(errno.EIO, "input/output error")
        assert target.read_bytes() == OLD

    monkeypatch.setattr(os, "fsync", fsync)
    with open_files_stay_as_they_are(), pytest.raises(OSError, match="input/output"):
        write(target)

    assert synchronised == [False, True]
    assert target.read_bytes() == NEW
    assert list(target.parent.iterdir()) == [target]


@both_ways
def test_the_last_look_may_refuse(target: Path) -> None:
    """It sees the old content in place, everything written, and its exception ends it."""

    def look() -> None:
        assert target.read_bytes() == OLD
        raise RuntimeError("somebody was faster")

    with open_files_stay_as_they_are(), pytest.raises(RuntimeError, match="faster"):
        write(target, before_rename=look)

    assert untouched(target)


def test_the_last_look_is_not_taken_after_an_exception(target: Path) -> None:
    """There is nothing to look at."""
    look = failing(AssertionError("looked"))

    with pytest.raises(ValueError, match="stop"), NewFile(target, before_rename=look):
        raise ValueError("stop")

    assert untouched(target)


@pytest.mark.parametrize("kind", ["folder", "fifo", "socket", "link", "device"])
def test_what_is_no_file_is_not_replaced(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder, a pipe, a socket, a device, or a link to one."""
    place = tmp_path / "place"
    with socket.socket(socket.AF_UNIX) as listener:
        if kind in {"folder", "link"}:
            (tmp_path / "real").mkdir()
            place.symlink_to("real")
        if kind == "folder":
            place = tmp_path / "real"
        if kind == "fifo":
            os.mkfifo(place)
        if kind == "socket":
            monkeypatch.chdir(tmp_path)  # the path of a socket has to be short
            listener.bind("place")
        if kind == "device":
            place = Path(os.devnull)
        before = sorted(tmp_path.iterdir())

        with open_files_stay_as_they_are(), pytest.raises(FileExistsError, match="not a regular"):
            NewFile(place)

    assert sorted(tmp_path.iterdir()) == before


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    """It is not made."""
    with open_files_stay_as_they_are(), pytest.raises(FileNotFoundError):
        NewFile(tmp_path / "no" / "file")
    assert list(tmp_path.iterdir()) == []


def test_links_in_a_circle_are_an_error(tmp_path: Path) -> None:
    """One of the operating system's."""
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")

    with pytest.raises(OSError, match=r"[Ss]ymbolic"):
        NewFile(tmp_path / "one")


@both_ways
def test_a_failing_start_leaves_nothing(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before there is anything to write to."""
    monkeypatch.setattr(os, "fchmod", failing(OSError(errno.EIO, "input/output error")))

    with open_files_stay_as_they_are(), pytest.raises(OSError, match="input/output"):
        NewFile(target)

    assert untouched(target)


def test_unnamed_files_that_a_file_system_lacks_are_named(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system knows them, this folder's does not: hidden beside the target while it lasts."""
    unnamed = getattr(os, "O_TMPFILE", 0)
    opening = os.open

    def lacking(path: Any, flags: int, *more: Any, **options: Any) -> int:
        if unnamed and flags & unnamed == unnamed:
            raise OSError(errno.EOPNOTSUPP, "operation not supported")
        return opening(path, flags, *more, **options)

    monkeypatch.setattr(os, "open", lacking)
    with NewFile(target) as new:
        new.stream.write(NEW)
        (beside,) = set(target.parent.iterdir()) - {target}
        assert beside.name.startswith(".kms-")

    assert target.read_bytes() == NEW
    assert list(target.parent.iterdir()) == [target]


KILLED = """
import os, sys
from kms_core.files import NewFile
if sys.argv[2] == "named" and hasattr(os, "O_TMPFILE"):
    del os.O_TMPFILE
def wait():
    print("written", flush=True)
    sys.stdin.read()
with NewFile(sys.argv[1], before_rename=wait) as new:
    new.stream.write(b"new content")
    if sys.argv[3] == "writing":
        wait()
"""


@pytest.mark.parametrize("stage", ["writing", "committing"])
@pytest.mark.parametrize("way", ["unnamed", "named"])
@pytest.mark.parametrize("exists", [True, False])
def test_killed_it_leaves_what_was_there(
    target: Path,
    way: str,
    stage: str,
    exists: bool,  # noqa: FBT001
) -> None:
    """While it is written and just before the rename; unnamed files are gone with the process."""
    if way == "unnamed":
        skip_without_unnamed_files(target.parent)
    if not exists:
        target.unlink()
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(target), way, stage],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == b"written\n"
        finally:
            child.kill()
        assert child.wait(PATIENCE) == -signal.SIGKILL

    assert target.exists() == exists
    if exists:
        assert target.read_bytes() == OLD
    beside = set(target.parent.iterdir()) - {target}
    assert len(beside) == (0 if way == "unnamed" else 1)
    assert all(path.name.startswith(".kms-") for path in beside)


# --- what can be read at offsets -----------------------------------------------------------------


def test_only_regular_files_are_regular(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not pipes, memory, closed files, nor anything where reading at offsets is not to be had."""
    (tmp_path / "file").write_bytes(b"")
    receiving, sending = os.pipe()
    with (
        (tmp_path / "file").open("rb") as file,
        os.fdopen(receiving, "rb") as pipe,
        os.fdopen(sending, "wb") as other,
    ):
        assert is_regular(file)
        assert not is_regular(pipe)
        assert not is_regular(other)
        assert not is_regular(io.BytesIO())
        assert not is_regular(object())  # type: ignore[arg-type]
        monkeypatch.delattr(os, "preadv")
        assert not is_regular(file)
    assert not is_regular(file)
