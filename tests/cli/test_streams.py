"""Data of any size: what becomes a stream, in which memory, and how a fault in one ends."""

from __future__ import annotations

import os
import random
import resource
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kms_core import inspection
from kms_core.cli.exits import ExitCode
from kms_core.stream import SEGMENT_OVERHEAD

if TYPE_CHECKING:
    from tests.cli.conftest import Inspect, Run

KMS = [sys.executable, "-m", "kms_core"]
MIB = 1 << 20
SEGMENT = 1 << 18
LARGE = random.Random(1).randbytes(40 * MIB)  # noqa: S311  any bytes; beyond one thread's share
BODY = LARGE[: 3 * MIB + 1]
TENANT = ("--context", "tenant=42")
PATIENCE = 120.0  # seconds until a process counts as hung
posix = pytest.mark.skipif(os.name != "posix", reason="modes, pipes and limits are POSIX")


def _same(actual: bytes, expected: bytes) -> bool:
    """Equality whose failure does not draw a difference of megabytes."""
    return actual == expected


@pytest.mark.parametrize(
    ("size", "form"),
    [(0, "message"), (MIB, "message"), (MIB + 1, "stream"), (3 * MIB, "stream")],
)
def test_size_decides_about_the_form(
    kms: Run, inspect: Inspect, initialised: Path, size: int, form: str
) -> None:
    """Up to 1 MiB is a message, wherever it comes from and goes to; both open alike."""
    Path("plain").write_bytes(LARGE[:size])
    for source in ("plain", "-"):
        piped = kms("seal", source, stdin=LARGE[:size])
        Path("piped.kms").write_bytes(piped.out)
        assert kms("seal", source, "-o", "file.kms", stdin=LARGE[:size]).code == 0
        for path in ("piped.kms", "file.kms"):
            assert inspect(path)["form"] == form
            assert _same(kms("open", path).out, LARGE[:size])


def _sealed(kms: Run, *options: str | Path, plaintext: bytes = BODY) -> bytes:
    done = kms("seal", *options, stdin=plaintext)
    assert (done.code, done.err) == (0, "")
    return done.out


def test_large_files_pass_through_files_and_pipes(kms: Run, initialised: Path) -> None:
    """On two threads from file to file, in order through pipes; the result is the same."""
    Path("plain").write_bytes(LARGE)
    assert kms("seal", *TENANT, "plain", "-o", "s.kms").code == 0
    assert kms("open", *TENANT, "s.kms", "-o", "again").code == 0
    assert _same(Path("again").read_bytes(), LARGE)
    sealed = _sealed(kms, *TENANT, plaintext=LARGE)
    assert _same(kms("open", *TENANT, stdin=sealed).out, LARGE)
    assert kms("open", *TENANT, "-", "-o", "piped", stdin=sealed).code == 0
    assert _same(Path("piped").read_bytes(), LARGE)


@posix
def test_new_plaintext_is_its_owners_only(kms: Run, initialised: Path) -> None:
    """From a file as from stdin; a file that was there keeps its mode."""
    Path("s.kms").write_bytes(_sealed(kms))
    Path("there").touch(mode=0o640)
    assert kms("open", "s.kms", "-o", "from-file").code == 0
    assert kms("open", "-", "-o", "from-stdin", stdin=Path("s.kms").read_bytes()).code == 0
    assert kms("open", "s.kms", "-o", "there").code == 0
    modes = [stat.S_IMODE(Path(n).stat().st_mode) for n in ("from-file", "from-stdin", "there")]
    assert modes == [0o600, 0o600, 0o640]


def test_a_file_can_be_sealed_and_opened_in_its_own_place(kms: Run, initialised: Path) -> None:
    """The old content is read while the new one is written beside it."""
    Path("x").write_bytes(BODY)
    assert kms("seal", "x", "-o", "x").code == 0
    assert not _same(Path("x").read_bytes(), BODY)
    assert kms("open", "x", "-o", "x").code == 0
    assert _same(Path("x").read_bytes(), BODY)


def test_stored_context_travels_in_a_stream(kms: Run, inspect: Inspect, initialised: Path) -> None:
    """From file to file and through pipes."""
    Path("plain").write_bytes(BODY)
    assert kms("seal", "--stored-context", "n=v", "plain", "-o", "file.kms").code == 0
    Path("piped.kms").write_bytes(_sealed(kms, "--stored-context", "n=v"))
    for path in ("file.kms", "piped.kms"):
        assert inspect(path)["stored_context"] == {"n": "v"}
        assert _same(kms("open", path).out, BODY)


def test_stream_has_no_text_form_and_its_text_opens_all_the_same(
    kms: Run, initialised: Path
) -> None:
    """What ``--armor`` writes is a message of whatever size; text of a stream is understood."""
    text = _sealed(kms, "--armor")
    assert _same(kms("open", stdin=text).out, BODY)
    assert inspection.inspect(text.decode().strip()).form == "message"
    streamed = inspection.armor(_sealed(kms)).encode()
    assert _same(kms("open", stdin=streamed).out, BODY)
    assert kms("open", "-", "-o", "plain", stdin=streamed).code == 0
    assert _same(Path("plain").read_bytes(), BODY)


# --- faults --------------------------------------------------------------------------------------


def _faulty(sealed: bytes) -> dict[str, tuple[bytes, int]]:
    """Damaged copies, each with the number of plaintext bytes before its fault."""
    start = len(sealed) - len(BODY) - (len(BODY) // SEGMENT + 1) * SEGMENT_OVERHEAD
    stride = SEGMENT + SEGMENT_OVERHEAD
    flipped = bytearray(sealed)
    flipped[start + 5 * stride + 1000] ^= 1
    last = len(BODY) // SEGMENT * SEGMENT
    return {
        "flipped in the sixth": (bytes(flipped), 5 * SEGMENT),
        "cut between segments": (sealed[: start + 3 * stride], 3 * SEGMENT),
        "cut in a segment": (sealed[: start + 3 * stride + 50], 3 * SEGMENT),
        "last byte gone": (sealed[:-1], last),
        "byte appended": (sealed + b"x", last),
        "first byte flipped": (
            sealed[:start] + bytes((sealed[start] ^ 1,)) + sealed[start + 1 :],
            0,
        ),
    }


def test_late_fault_ends_what_goes_to_stdout(kms: Run, initialised: Path) -> None:
    """What came before is authentic, nothing comes after, and one line says to discard it."""
    for fault, (bad, good) in _faulty(_sealed(kms)).items():
        done = kms("open", stdin=bad)
        assert (fault, done.code) == (fault, ExitCode.INTEGRITY)
        assert _same(done.out, BODY[:good])
        if good:
            assert f"after {good} bytes: discard what was written" in done.complaint
            assert "--context" not in done.complaint
        else:
            assert "--context" in done.complaint


def test_late_fault_leaves_no_file(kms: Run, initialised: Path) -> None:
    """From a file as from stdin, and an older file keeps its content."""
    Path("old").write_bytes(b"old")
    for fault, (bad, _) in _faulty(_sealed(kms)).items():
        Path("bad.kms").write_bytes(bad)
        for output in ("new", "old"):
            for done in (
                kms("open", "bad.kms", "-o", output),
                kms("open", "-o", output, stdin=bad),
            ):
                assert (fault, done.code, done.out) == (fault, ExitCode.INTEGRITY, b"")
                assert "discard" not in done.complaint
    assert not Path("new").exists()
    assert Path("old").read_bytes() == b"old"
    assert not list(initialised.glob(".kms-*"))


def test_wrong_context_of_a_stream_writes_nothing(kms: Run, initialised: Path) -> None:
    """It is noticed before the first segment."""
    done = kms("open", "-c", "tenant=43", stdin=_sealed(kms, *TENANT))
    assert (done.code, done.out) == (ExitCode.INTEGRITY, b"")
    assert "--context" in done.complaint


@posix
def test_full_device_is_named(kms: Run, initialised: Path) -> None:
    """A device is written to directly; exit code 1 and one line."""
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    Path("plain").write_bytes(BODY)
    for source in ("plain", "-"):
        done = kms("seal", source, "-o", "/dev/full", stdin=BODY)
        assert (done.code, done.complaint) == (1, "/dev/full: No space left on device")


def test_file_that_cannot_be_made_is_named_as_given(kms: Run, initialised: Path) -> None:
    """Not the nameless file that stands in for it; and the input is named where it is at fault."""
    Path("plain").write_bytes(BODY)
    Path("s.kms").write_bytes(_sealed(kms))
    for command, source in (("seal", "plain"), ("open", "s.kms"), ("rewrap", "s.kms")):
        done = kms(command, source, "-o", "absent/x")
        assert (done.code, done.complaint) == (1, "absent/x: No such file or directory")
        done = kms(command, "nothing", "-o", "x")
        assert (done.code, done.complaint) == (1, "nothing: No such file or directory")


def test_outage_leaves_no_stream(kms: Run, papers: Path) -> None:
    """Nobody to seal to: no file, no byte on stdout."""
    Path("plain").write_bytes(BODY)
    for name in ("east", "west"):
        (papers / f"{name}.encrypt").write_text("Unavailable")
    for arguments in (["plain", "-o", "x"], ["plain"], ["-", "-o", "x"], []):
        done = kms("seal", *arguments, stdin=BODY)
        assert (done.code, done.out) == (ExitCode.UNAVAILABLE, b"")
        assert done.complaint
    assert not Path("x").exists()


def test_degraded_stream_says_so(kms: Run, papers: Path) -> None:
    """As a message does, by every way."""
    Path("plain").write_bytes(BODY)
    (papers / "west.encrypt").write_text("Unavailable")
    for arguments in (["plain", "-o", "x"], ["-", "-o", "x"], ["plain"]):
        done = kms("seal", *arguments, stdin=BODY)
        assert "degraded: sealed without west (unavailable)" in done.complaint


# --- compact -------------------------------------------------------------------------------------


def test_compact_needs_a_store(kms: Run, papers: Path) -> None:
    """The line tells what to set, before any service is asked."""
    done = kms("seal", "--compact", "-o", "x", stdin=b"x")
    assert done.code == ExitCode.USAGE
    assert "kms.toml: --compact needs" in done.complaint
    assert "capsules" in done.complaint
    assert not Path("x").exists()


@pytest.mark.parametrize("plaintext", [b"secret", BODY], ids=["message", "stream"])
def test_compact_keeps_its_capsule_in_the_store(
    kms: Run, inspect: Inspect, compact: Path, plaintext: bytes
) -> None:
    """From file to file and through pipes; without the store it does not open."""
    Path("plain").write_bytes(plaintext)
    assert kms("seal", "--compact", "plain", "-o", "file.kms").code == 0
    Path("piped.kms").write_bytes(_sealed(kms, "--compact", plaintext=plaintext))
    for path in ("file.kms", "piped.kms"):
        info = inspect(path)
        assert (info["inline"], info["recipients"]) == (False, [])
        assert "compact" in kms("inspect", path).text
        assert _same(kms("open", path).out, plaintext)
        assert kms("open", path, "-o", "again").code == 0
        assert _same(Path("again").read_bytes(), plaintext)
    Path("capsules").rename("elsewhere")
    done = kms("open", "file.kms")
    assert (done.code, done.out) == (ExitCode.FAILED, b"")
    assert "capsule store" in done.complaint


# --- memory and processes ------------------------------------------------------------------------

#: A process counts as its own what the one that started it had: hence a small one in between.
_MEASURING = """
import resource, subprocess, sys
code = subprocess.run([sys.executable, "-m", "kms_core", *sys.argv[1:]]).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(code)
"""


def _peak(*arguments: str, stdin: Path | None = None, stdout: Path | None = None) -> int:
    """The most memory that ``kms`` had, in bytes."""
    with (
        (stdin or Path(os.devnull)).open("rb") as source,
        (stdout or Path(os.devnull)).open("wb") as target,
    ):
        done = subprocess.run(
            [sys.executable, "-c", _MEASURING, *arguments],
            stdin=source,
            stdout=target,
            stderr=subprocess.PIPE,
            timeout=PATIENCE,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    return int(done.stderr.split()[-1]) * (1 if sys.platform == "darwin" else 1024)


@posix
def test_memory_does_not_grow_with_the_data(initialised: Path, kms: Run) -> None:
    """200 MiB, by file and by pipe, within 64 MiB of what doing nothing takes."""
    allowed = _peak("--version") + 64 * MIB
    plain, sealed, again = Path("plain"), Path("s.kms"), Path("again")
    with plain.open("wb") as stream:
        stream.write(BODY)
        stream.truncate(200 * MIB)
    assert _peak("seal", "plain", "-o", "s.kms") < allowed
    assert _peak("inspect", "s.kms") < allowed
    assert _peak("rewrap", "s.kms", "-o", "t.kms") < allowed
    assert _peak("open", "t.kms", "-o", "again") < allowed
    assert _equal(again, plain)
    assert _peak("seal", stdin=plain, stdout=sealed) < allowed
    assert _peak("open", stdin=sealed, stdout=again) < allowed
    assert _equal(again, plain)
    assert _peak("open", "-o", "again", stdin=sealed) < allowed
    assert _equal(again, plain)


def _equal(one: Path, other: Path) -> bool:
    with one.open("rb") as left, other.open("rb") as right:
        if os.fstat(left.fileno()).st_size != os.fstat(right.fileno()).st_size:
            return False
        return all(part == right.read(MIB) for part in iter(lambda: left.read(MIB), b""))


@posix
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_pipes_of_processes(
    initialised: Path, process: Run, monkeypatch: pytest.MonkeyPatch, unbuffered: str
) -> None:
    """What a shell's pipeline does, also where stdout takes a part at a time."""
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    sealed = process("seal", stdin=BODY)
    assert (sealed.code, sealed.err) == (0, "")
    opened = process("open", stdin=sealed.out)
    assert (opened.code, opened.err) == (0, "")
    assert _same(opened.out, BODY)


@posix
def test_named_pipes_are_read_and_written(initialised: Path, kms: Run) -> None:
    """As ``<(...)`` and ``>(...)`` of a shell are."""
    os.mkfifo("in")
    feeding = threading.Thread(target=lambda: Path("in").write_bytes(BODY))
    feeding.start()
    done = kms("seal", "in", "-o", "s.kms")
    feeding.join(PATIENCE)
    assert (done.code, done.err) == (0, "")
    assert _same(kms("open", "s.kms").out, BODY)


@posix
def test_segments_come_out_as_they_come_in(initialised: Path, kms: Run) -> None:
    """A reader has the first part while the writer still holds back the last."""
    sealed, arrived = _sealed(kms), threading.Event()
    with subprocess.Popen([*KMS, "open"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as opening:
        feeding = threading.Thread(target=_feed, args=(opening, sealed, arrived), daemon=True)
        feeding.start()
        assert opening.stdout is not None
        assert _same(opening.stdout.read(SEGMENT), BODY[:SEGMENT])
        arrived.set()
        assert _same(opening.stdout.read(), BODY[SEGMENT:])
        feeding.join(PATIENCE)
        assert opening.wait(PATIENCE) == 0


def _feed(process: subprocess.Popen[bytes], data: bytes, arrived: threading.Event) -> None:
    """The second half is not sent before something of the first has arrived."""
    assert process.stdin is not None
    with process.stdin:
        process.stdin.write(data[: len(data) // 2])
        process.stdin.flush()
        if arrived.wait(PATIENCE):
            process.stdin.write(data[len(data) // 2 :])


@posix
def test_full_disk_leaves_nothing(initialised: Path) -> None:
    """A limit on the size of files stands for it: exit code 1, one line, the output's name."""
    Path("plain").write_bytes(LARGE)
    limit = 8 * MIB

    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    for source in ("plain", "-"):
        with Path("plain").open("rb") as stdin:
            done = subprocess.run(
                [*KMS, "seal", source, "-o", "s.kms"],
                stdin=stdin,
                capture_output=True,
                timeout=PATIENCE,
                check=False,
                preexec_fn=small,
            )
        assert done.returncode == ExitCode.FAILED
        assert done.stderr == b"kms: s.kms: File too large\n"
    assert not Path("s.kms").exists()
    assert not list(initialised.glob(".kms-*"))
