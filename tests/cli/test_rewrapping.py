"""``kms rewrap``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kms_core import envelope
from kms_core.cli.exits import ExitCode

if TYPE_CHECKING:
    from tests.cli.conftest import Inspect, Run

SECRET = b"secret"
BODY = bytes(range(256)) * (12 << 10)  # 3 MiB, which is a stream
TENANT = ("--context", "tenant=42")


@pytest.fixture
def degraded(kms: Run, papers: Path) -> Path:
    """An envelope that lacks ``west``, which is up again."""
    (papers / "west.encrypt").write_text("Unavailable")
    assert kms("seal", *TENANT, "-o", "s.kms", stdin=SECRET).code == 0
    (papers / "west.encrypt").unlink()
    return papers / "s.kms"


def test_rewrap_repairs_in_place(kms: Run, papers: Path, degraded: Path) -> None:
    """The file is replaced, keeps its mode and opens with the added recipient alone."""
    degraded.chmod(0o640)
    done = kms("rewrap", degraded)
    assert (done.code, done.out) == (0, b"")
    assert done.complaint == "added west; 2 recipients, none missing"
    assert degraded.stat().st_mode & 0o777 == 0o640
    (papers / "east.decrypt").write_text("Unavailable")
    assert kms("open", *TENANT, degraded).out == SECRET


def test_nothing_to_do_leaves_the_file_alone(kms: Run, sealed: Path) -> None:
    """Not even its time stamp changes."""
    before = sealed.stat()
    assert kms("rewrap", sealed).complaint == "nothing to do; 1 recipient, none missing"
    assert sealed.stat() == before


def test_rewrap_of_stdin_goes_to_stdout_in_the_same_form(
    kms: Run, papers: Path, degraded: Path
) -> None:
    """Bytes stay bytes, text stays text."""
    done = kms("rewrap", stdin=degraded.read_bytes())
    assert kms("open", *TENANT, stdin=done.out).out == SECRET
    text = kms("seal", "--armor", stdin=SECRET).out
    again = kms("rewrap", "--remove", "west", "--no-repair", stdin=text)
    assert again.out.isascii()
    assert kms("open", stdin=again.out).out == SECRET


def test_rewrap_to_another_file_keeps_the_first(kms: Run, degraded: Path) -> None:
    """``-o`` writes even if there was nothing to do."""
    before = degraded.read_bytes()
    done = kms("rewrap", "--no-repair", degraded, "-o", "t.kms")
    assert "nothing to do; 1 recipient, missing paper://west" in done.complaint
    assert done.complaint.startswith("degraded: ")
    assert degraded.read_bytes() == Path("t.kms").read_bytes() == before


def test_rewrap_adds_and_removes_by_name_and_uri(
    kms: Run, inspect: Inspect, papers: Path, degraded: Path
) -> None:
    """The line names who came and which keys went."""
    done = kms("rewrap", "--no-repair", "--add", "west", "--remove", "paper://east", degraded)
    assert done.complaint == "added west; removed paper://east; 1 recipient, none missing"
    assert [r["key_uri"] for r in inspect(degraded)["recipients"]] == ["paper://west"]


def test_rewrap_that_is_not_enough_says_who_is_still_missing(
    kms: Run, papers: Path, degraded: Path
) -> None:
    """A removal goes on although the repair fails; that is degraded."""
    text = (papers / "kms.toml").read_text()
    third = '[instances.third]\nprovider = "paper"\nkey = "third"\nstate = "."\n'
    (papers / "kms.toml").write_text(third + text)
    (papers / "west.encrypt").write_text("Unavailable")
    done = kms("rewrap", degraded)
    assert done.complaint == "degraded: added third; 2 recipients, missing west"
    done = kms("rewrap", "--remove", "east", degraded)
    assert done.complaint.startswith("degraded: removed paper://east; ")


def test_rewrap_that_fails_changes_nothing(kms: Run, papers: Path, degraded: Path) -> None:
    """An outage during a repair is an outage."""
    before = degraded.read_bytes()
    (papers / "west.encrypt").write_text("Unavailable")
    done = kms("rewrap", degraded)
    assert done.code == ExitCode.UNAVAILABLE
    assert "nothing was changed" in done.complaint
    assert degraded.read_bytes() == before


def test_rewrap_notes_who_turned_out_to_be_missing(kms: Run, papers: Path) -> None:
    """A recipient that is missing without a record is recorded when somebody else is removed."""
    assert kms("seal", "-o", "s.kms", stdin=SECRET).code == 0
    assert kms("rewrap", "--no-repair", "--remove", "west", "s.kms").code == 0
    (papers / "west.encrypt").write_text("Throttled")
    done = kms("rewrap", "--add", "east", "s.kms")
    assert done.complaint == "degraded: added east; 1 recipient, missing west"


def test_a_gap_stays_on_record_without_repair(kms: Run, inspect: Inspect, degraded: Path) -> None:
    """Who did not ask for a repair still hears what is missing."""
    done = kms("rewrap", "--no-repair", degraded)
    assert done.complaint.startswith("degraded: nothing to do; 1 recipient, missing ")
    assert inspect(degraded)["missing"] == ["paper://west"]


def test_unverified_wrap_is_reported(kms: Run, papers: Path, degraded: Path) -> None:
    """These credentials may wrap under that key, and may not unwrap."""
    (papers / "west.decrypt").write_text("AccessDenied")
    done = kms("rewrap", degraded)
    assert done.code == 0
    assert done.complaint.startswith(
        "added west; not verified for lack of permission to unwrap: west; 2 recipients"
    )


def test_unknown_names_are_usage_errors(kms: Run, degraded: Path) -> None:
    """To add takes an instance, to remove an instance or a recipient."""
    for option in ("--add", "--remove"):
        done = kms("rewrap", option, "nobody", degraded)
        assert done.code == ExitCode.USAGE
        assert "'nobody'" in done.complaint


def test_file_that_becomes_another_meanwhile_is_left_to_the_other(
    kms: Run, papers: Path, degraded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What somebody else wrote is looked at again, and is no envelope here."""
    honest = envelope.rewrap_capsule

    def slow(*args: Any, **kwargs: Any) -> bytes:
        degraded.write_bytes(b"somebody else's")
        return honest(*args, **kwargs)

    monkeypatch.setattr("kms_core.rewrap.rewrap_capsule", slow)
    done = kms("rewrap", degraded)
    assert (done.code, done.out) == (ExitCode.INTEGRITY, b"")
    assert degraded.read_bytes() == b"somebody else's"
    assert not list(papers.glob(".kms-*"))


def test_rewrap_carries_on_with_what_somebody_else_rewrapped(
    kms: Run, papers: Path, degraded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line tells each of them who came, once."""
    honest, others = envelope.rewrap_capsule, list[int]()

    def overtaken(*args: Any, **kwargs: Any) -> bytes:
        if not others:
            others.append(0)
            others.append(kms("rewrap", degraded).code)
        return honest(*args, **kwargs)

    monkeypatch.setattr("kms_core.rewrap.rewrap_capsule", overtaken)
    done = kms("rewrap", degraded)
    assert (others, done.code) == ([0, 0], 0)
    assert done.complaint.endswith("2 recipients, none missing")
    assert kms("open", *TENANT, degraded).out == SECRET


def test_text_is_rewrapped_in_place(kms: Run, inspect: Inspect, papers: Path) -> None:
    """It stays text; and if somebody else changed it meanwhile, theirs is kept."""
    (papers / "west.encrypt").write_text("Unavailable")
    assert kms("seal", "--armor", "-o", "s.txt", stdin=SECRET).code == 0
    (papers / "west.encrypt").unlink()
    assert kms("rewrap", "--no-repair", "s.txt").complaint.startswith("degraded: nothing to do")
    assert kms("rewrap", "s.txt").complaint == "added west; 2 recipients, none missing"
    assert Path("s.txt").read_bytes().endswith(b"\n")
    assert inspect("s.txt")["missing"] == []
    assert kms("open", "s.txt").out == SECRET


def test_text_that_changed_meanwhile_is_a_conflict(
    kms: Run, papers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other writer's content stays: exit code 1, try again."""
    assert kms("seal", "--armor", "-o", "s.txt", stdin=SECRET).code == 0
    honest = envelope.rewrap_capsule

    def slow(*args: Any, **kwargs: Any) -> bytes:
        Path("s.txt").write_bytes(b"somebody else's")
        return honest(*args, **kwargs)

    monkeypatch.setattr("kms_core.rewrap.rewrap_capsule", slow)
    done = kms("rewrap", "--remove", "west", "--no-repair", "s.txt")
    assert (done.code, done.out) == (ExitCode.FAILED, b"")
    assert "run it again" in done.complaint
    assert Path("s.txt").read_bytes() == b"somebody else's"
    assert not list(papers.glob(".kms-*"))


@pytest.fixture
def stream(kms: Run, papers: Path) -> Path:
    """A stream of many segments that lacks ``west``, which is up again."""
    (papers / "west.encrypt").write_text("Unavailable")
    assert kms("seal", "-o", "s.kms", stdin=BODY).code == 0
    (papers / "west.encrypt").unlink()
    return papers / "s.kms"


def _body(path: Path) -> bytes:
    return envelope.split(path.read_bytes())[1]


def test_streams_are_rewrapped_everywhere(kms: Run, inspect: Inspect, stream: Path) -> None:
    """To a file, through a pipe and in place, and the body stays as it is."""
    old = _body(stream)
    done = kms("rewrap", stream, "-o", "t.kms")
    assert (done.code, done.complaint) == (0, "added west; 2 recipients, none missing")
    assert inspect(stream)["missing"] == ["paper://west"]
    piped = kms("rewrap", stdin=stream.read_bytes())
    Path("u.kms").write_bytes(piped.out)
    assert kms("rewrap", stream).complaint == "added west; 2 recipients, none missing"
    for path in (Path("t.kms"), Path("u.kms"), stream):
        assert inspect(path)["missing"] == []
        assert _body(path) == old
        assert (kms("open", path).out == BODY) is True


@pytest.mark.parametrize("plaintext", [SECRET, BODY], ids=["message", "stream"])
def test_compact_envelopes_are_rewrapped_in_their_store(
    kms: Run, compact: Path, plaintext: bytes
) -> None:
    """The file stays as it is, in place or copied; the line tells what is true of the store."""
    (compact / "west.encrypt").write_text("Unavailable")
    done = kms("seal", "--compact", "-o", "s.kms", stdin=plaintext)
    assert done.complaint.startswith("degraded: sealed without west (unavailable)")
    (compact / "west.encrypt").unlink()
    before = Path("s.kms").read_bytes()
    assert kms("rewrap", "s.kms").complaint == "added west; capsule store: none missing"
    assert kms("rewrap", "s.kms").complaint == "nothing to do; capsule store: none missing"
    done = kms("rewrap", "--no-repair", "--remove", "east", "-o", "t.kms", "s.kms")
    assert done.complaint == "removed east; capsule store: none missing"
    assert Path("s.kms").read_bytes() == Path("t.kms").read_bytes() == before
    assert (kms("open", "t.kms").out == plaintext) is True


@pytest.mark.skipif(sys.platform == "win32", reason="pipes are POSIX")
def test_pipe_cannot_be_rewritten_in_place(kms: Run, initialised: Path) -> None:
    """It is not even read."""
    os.mkfifo("fifo")
    done = kms("rewrap", "fifo")
    assert done.code == ExitCode.USAGE
    assert "-o" in done.complaint
