"""``kms seal`` and ``kms open``: messages, contexts, errors and outages."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kms_core.cli import forms
from kms_core.cli.exits import ExitCode
from kms_core.context import MAX_CONTEXT_BYTES
from kms_core.header import (
    COMMITMENT_BYTES,
    MAX_CAPSULE_BYTES,
    MAX_PLAINTEXT_BYTES,
    STREAM_HEADER_BYTES,
)

if TYPE_CHECKING:
    from tests.cli.conftest import Inspect, Run

SECRET = b"secret"
TENANT = ("--context", "tenant=42")


def test_what_was_sealed_opens_byte_for_byte(kms: Run, sealed: Path) -> None:
    """No newline is added, none is lost, and nothing is said."""
    done = kms("open", *TENANT, sealed)
    assert (done.code, done.out, done.err) == (0, SECRET, "")


@pytest.mark.parametrize("plaintext", [b"", b"\n", b"\r\n\x00\xff", bytes(range(256)) * 300])
def test_any_bytes_pass_through_pipes(kms: Run, initialised: Path, plaintext: bytes) -> None:
    """From stdin to stdout and back."""
    done = kms("seal", stdin=plaintext)
    assert (done.code, done.err) == (0, "")
    assert kms("open", stdin=done.out).out == plaintext


def test_files_are_written_whole(kms: Run, sealed: Path) -> None:
    """``-o`` writes a file, ``-`` means a standard stream, plaintext is for its owner only."""
    done = kms("open", *TENANT, "s.kms", "-o", "plain")
    assert (done.code, done.out) == (0, b"")
    plain = Path("plain")
    assert plain.read_bytes() == SECRET
    assert os.name != "posix" or plain.stat().st_mode & 0o077 == 0
    assert kms("open", *TENANT, "-", "-o", "-", stdin=sealed.read_bytes()).out == SECRET


@pytest.mark.parametrize(
    "context", [[], ["-c", "tenant=43"], ["-c", "Tenant=42"], [*TENANT, "-c", "more=1"]]
)
def test_wrong_context_writes_nothing(kms: Run, sealed: Path, context: list[str]) -> None:
    """Exit code 4 and one line that suggests the context, without its values."""
    done = kms("open", *context, sealed)
    assert (done.code, done.out) == (ExitCode.INTEGRITY, b"")
    assert "--context" in done.complaint
    assert "42" not in done.err
    assert "43" not in done.err


def test_no_flipped_byte_is_overlooked(kms: Run, sealed: Path) -> None:
    """Every byte of the file is authenticated, or the file is no envelope any more."""
    good = sealed.read_bytes()
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 0x01
        done = kms("open", *TENANT, "-o", "plain", stdin=bytes(bad))
        assert (position, done.code, done.out) == (position, ExitCode.INTEGRITY, b"")
        assert done.complaint
    assert not Path("plain").exists()


def test_no_truncation_is_overlooked(kms: Run, sealed: Path) -> None:
    """Nor bytes that follow."""
    good = sealed.read_bytes()
    lengths = {*range(0, len(good), 7), len(good) - 1}
    for bad in (*(good[:length] for length in lengths), good + b"\x00"):
        done = kms("open", *TENANT, stdin=bad)
        assert (len(bad), done.code, done.out) == (len(bad), ExitCode.INTEGRITY, b"")
        assert done.complaint


@pytest.mark.parametrize("junk", [b"", b"hello\n", b"\x00\xff\xfe", b"wREB\n\n!", b"\xc1"])
def test_what_is_no_envelope_is_a_format_error(kms: Run, initialised: Path, junk: bytes) -> None:
    """Whatever it is, exit code 4 and one line."""
    done = kms("open", stdin=junk)
    assert (done.code, done.out) == (ExitCode.INTEGRITY, b"")
    assert done.complaint


def test_text_form_survives_its_line_end(kms: Run, initialised: Path) -> None:
    """``--armor`` writes one line of base64url, which opens with and without the line end."""
    done = kms("seal", "--armor", stdin=SECRET)
    assert done.text.endswith("\n")
    assert done.text.strip().replace("-", "").replace("_", "").isalnum()
    for ending in (b"", b"\n", b"\r\n"):
        assert kms("open", stdin=done.out.rstrip() + ending).out == SECRET


def test_stored_context_is_shown_and_need_not_be_given(
    kms: Run, inspect: Inspect, initialised: Path
) -> None:
    """It travels inside, authenticated."""
    assert kms("seal", "--stored-context", "file=a\x1b[2J", "-o", "x", stdin=SECRET).code == 0
    assert kms("open", "x").out == SECRET
    assert inspect("x")["stored_context"] == {"file": "a\x1b[2J"}
    assert "file=a\\x1b[2J" in kms("inspect", "x").text


def test_envelope_is_not_written_to_a_terminal(
    kms: Run, initialised: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is binary; the check comes before any input is asked for."""
    monkeypatch.setattr("kms_core.cli.files.is_terminal", lambda target: target is None)
    for command in ("seal", "rewrap"):
        done = kms(command, stdin=b"\xc1")
        assert (done.code, done.out) == (ExitCode.USAGE, b"")
        assert "-o FILE" in done.complaint
        assert "--armor" in done.complaint
    assert kms("seal", "--armor", stdin=b"x").code == 0
    assert kms("seal", "-o", "x", stdin=b"x").code == 0


def test_text_form_has_a_limit(
    kms: Run, initialised: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One byte over it is a usage error, and nothing is written."""
    monkeypatch.setattr("kms_core.cli.forms.MAX_MESSAGE_BYTES", 3)
    assert kms("seal", "--armor", "-o", "x", stdin=b"123").code == 0
    done = kms("seal", "--armor", "-o", "y", stdin=b"1234")
    assert done.code == ExitCode.USAGE
    assert "64 MiB" in done.complaint
    assert not Path("y").exists()
    assert kms("seal", "-o", "y", stdin=b"1234").code == 0


def test_too_much_text_is_no_envelope(
    kms: Run, initialised: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text is bounded before anything is known of it."""
    monkeypatch.setattr("kms_core.cli.forms.MAX_TEXT_BYTES", 3)
    done = kms("open", stdin=b"wREB")
    assert done.code == ExitCode.INTEGRITY
    assert "too large" in done.complaint


def test_limits_fit_what_the_core_takes() -> None:
    """Whatever is a message has a text form that can be read, and every head fits."""
    assert forms.MAX_MESSAGE_BYTES == MAX_PLAINTEXT_BYTES
    assert (MAX_PLAINTEXT_BYTES + 2 * MAX_CAPSULE_BYTES) * 4 // 3 < forms.MAX_TEXT_BYTES
    header = STREAM_HEADER_BYTES + 2 + MAX_CONTEXT_BYTES + COMMITMENT_BYTES
    assert MAX_CAPSULE_BYTES + header <= forms.HEAD_BYTES


def test_output_that_cannot_be_written_is_a_failure(kms: Run, initialised: Path) -> None:
    """The line names the file as the user did."""
    done = kms("seal", "-o", "absent/x", stdin=SECRET)
    assert (done.code, done.complaint) == (1, "absent/x: No such file or directory")


def test_lost_key_store_is_an_outage(kms: Run, sealed: Path) -> None:
    """Nobody can be asked: exit code 3, and what shows more."""
    Path("kms-local.keys").unlink()
    done = kms("open", *TENANT, sealed)
    assert (done.code, done.out) == (ExitCode.UNAVAILABLE, b"")
    assert "kms-local.keys" in done.complaint


# --- degraded ------------------------------------------------------------------------------------


def test_degraded_seal_succeeds_and_says_so(kms: Run, inspect: Inspect, papers: Path) -> None:
    """One line: who is missing, why, and what adds it; and the envelope says the same."""
    (papers / "west.encrypt").write_text("Unavailable")
    done = kms("seal", "-o", "s.kms", stdin=SECRET)
    assert (done.code, done.complaint) == (
        0,
        "degraded: sealed without west (unavailable); `kms rewrap --repair s.kms` adds it",
    )
    info = inspect("s.kms")
    assert (info["missing"], info["degraded"]) == (["paper://west"], True)
    drawn = kms("inspect", "s.kms").text
    assert "missing" in drawn
    assert "paper://west" in drawn
    assert kms("open", "s.kms").out == SECRET


def test_degraded_seal_to_stdout_names_no_file(kms: Run, papers: Path) -> None:
    """The envelope is on stdout, the notice on stderr."""
    (papers / "west.encrypt").write_text("AccessDenied")
    done = kms("seal", stdin=SECRET)
    assert "west (access denied); `kms rewrap --repair FILE`" in done.complaint
    assert kms("open", stdin=done.out).out == SECRET


def test_outage_of_one_service_is_not_noticed_when_opening(kms: Run, papers: Path) -> None:
    """Nobody has to do anything about it."""
    sealed = kms("seal", stdin=SECRET).out
    (papers / "east.decrypt").write_text("Unavailable")
    done = kms("open", stdin=sealed)
    assert (done.code, done.out, done.err) == (0, SECRET, "")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ("Unavailable", ExitCode.UNAVAILABLE),
        ("Throttled", ExitCode.UNAVAILABLE),
        ("AccessDenied", ExitCode.FAILED),
        ("KeyDisabled", ExitCode.FAILED),
    ],
)
def test_failure_of_all_services_is_one_line(
    kms: Run, papers: Path, error: str, code: ExitCode
) -> None:
    """Each with its reason, however many lines the services used."""
    sealed = kms("seal", stdin=SECRET).out
    for name in ("east", "west"):
        for hook in ("encrypt", "decrypt"):
            (papers / f"{name}.{hook}").write_text(error)
    for command, hook, data in (("seal", "encrypt", SECRET), ("open", "decrypt", sealed)):
        done = kms(command, stdin=data)
        assert (done.code, done.out) == (code, b"")
        assert f"east.{hook}: {hook} is scripted" in done.complaint
        assert f"west.{hook}: {hook} is scripted" in done.complaint
