"""``kms seal``, ``open``, ``inspect`` and ``rewrap``."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kms_core import envelope
from kms_core.aead import Keys
from kms_core.cli.exits import ExitCode
from kms_core.context import Context
from kms_core.types import Ciphertext

if TYPE_CHECKING:
    from tests.cli.conftest import Run

SECRET = b"secret"
TENANT = ("--context", "tenant=42")


@pytest.fixture
def sealed(kms: Run, initialised: Path) -> Path:
    """An envelope with ``SECRET`` for tenant 42."""
    assert kms("seal", *TENANT, "-o", "s.kms", stdin=SECRET).code == 0
    return initialised / "s.kms"


def _inspect(kms: Run, path: str | Path) -> Any:
    done = kms("inspect", "--json", path)
    assert (done.code, done.err) == (0, "")
    return json.loads(done.out)


# --- seal and open -------------------------------------------------------------------------------


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


def test_stored_context_is_shown_and_need_not_be_given(kms: Run, initialised: Path) -> None:
    """It travels inside, authenticated."""
    assert kms("seal", "--stored-context", "file=a\x1b[2J", "-o", "x", stdin=SECRET).code == 0
    assert kms("open", "x").out == SECRET
    assert _inspect(kms, "x")["stored_context"] == {"file": "a\x1b[2J"}
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


def test_too_much_to_seal_is_a_usage_error(
    kms: Run, initialised: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One byte over the limit, and nothing is written."""
    monkeypatch.setattr("kms_core.cli.files.MAX_PLAINTEXT_BYTES", 3)
    assert kms("seal", "-o", "x", stdin=b"123").code == 0
    done = kms("seal", "-o", "y", stdin=b"1234")
    assert done.code == ExitCode.USAGE
    assert "64 MiB" in done.complaint
    assert not Path("y").exists()


def test_too_much_to_open_is_no_envelope(
    kms: Run, initialised: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Input is bounded before anything is known of it."""
    monkeypatch.setattr("kms_core.cli.files.MAX_ENVELOPE_BYTES", 3)
    assert kms("open", stdin=b"\xc1\x11\x01\x01").code == ExitCode.INTEGRITY


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


def test_degraded_seal_succeeds_and_says_so(kms: Run, papers: Path) -> None:
    """One line: who is missing, why, and what adds it; and the envelope says the same."""
    (papers / "west.encrypt").write_text("Unavailable")
    done = kms("seal", "-o", "s.kms", stdin=SECRET)
    assert (done.code, done.complaint) == (
        0,
        "degraded: sealed without west (unavailable); `kms rewrap --repair s.kms` adds it",
    )
    info = _inspect(kms, "s.kms")
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


# --- inspect -------------------------------------------------------------------------------------


def test_inspect_needs_no_configuration(kms: Run, sealed: Path) -> None:
    """Nor a working one, nor a key."""
    Path("kms.toml").write_text("[broken")
    Path("kms-local.keys").unlink()
    info = _inspect(kms, sealed)
    assert list(info) == [
        "form",
        "inline",
        "suite",
        "key_id",
        "size",
        "generation",
        "threshold",
        "scope",
        "stored_context",
        "recipients",
        "missing",
        "degraded",
        "created",
    ]
    assert (info["form"], info["inline"], info["generation"]) == ("message", True, 0)
    assert (info["size"], info["missing"]) == (sealed.stat().st_size, [])
    (recipient,) = info["recipients"]
    assert (recipient["provider"], recipient["wrap_alg"]) == ("local", 0x0501)
    assert set(recipient) == {"key_uri", "provider", "wrap_alg", "share_index", "blob_bytes"}


def test_inspect_draws_what_json_says(kms: Run, sealed: Path) -> None:
    """For people: names beside numbers, nothing cut, however narrow a terminal would be."""
    drawn = kms("inspect", sealed)
    info = _inspect(kms, sealed)
    assert (drawn.code, drawn.err) == (0, "")
    for text in (
        "message with its capsule",
        "AES-256-GCM, HKDF-SHA-512",
        info["key_id"],
        f"{info['size']} bytes",
        info["recipients"][0]["key_uri"],
        "local AES-256-GCM (0x0501)",
        "1 of 1",
    ):
        assert text in drawn.text
    assert "tenant" not in drawn.text


def test_inspect_takes_every_form(kms: Run) -> None:
    """Capsule and message may be stored apart; numbers it does not know are shown as such."""
    keys = Keys(bytes(32), Context({"tenant": "[red]42"}))
    wraps = [Ciphertext(b"x", "paper://[bold]east", wrap_alg=0x0999)]
    capsule = envelope.new_capsule(keys, wraps, created=1 << 63)
    message = envelope.seal_message(keys, b"x", Context())
    drawn = kms("inspect", stdin=capsule).text
    for text in ("tenant=[red]42", "[bold]east", "unknown (0x0999)", "seconds after 1970"):
        assert text in drawn
    assert "form" in drawn
    assert "with its capsule" not in drawn
    alone = kms("inspect", stdin=message)
    assert alone.code == 0
    assert "recipient" not in alone.text
    dated = envelope.new_capsule(keys, wraps, created=0)
    assert "1970-01-01T00:00:00Z" in kms("inspect", stdin=dated).text


def test_inspect_refuses_what_is_no_envelope(kms: Run) -> None:
    """As ``open`` does."""
    done = kms("inspect", stdin=b"hello")
    assert (done.code, done.out) == (ExitCode.INTEGRITY, b"")
    assert done.complaint


# --- rewrap --------------------------------------------------------------------------------------


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


def test_rewrap_adds_and_removes_by_name_and_uri(kms: Run, papers: Path, degraded: Path) -> None:
    """The line names who came and which keys went."""
    done = kms("rewrap", "--no-repair", "--add", "west", "--remove", "paper://east", degraded)
    assert done.complaint == "added west; removed paper://east; 1 recipient, none missing"
    assert [r["key_uri"] for r in _inspect(kms, degraded)["recipients"]] == ["paper://west"]


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


def test_a_gap_stays_on_record_without_repair(kms: Run, degraded: Path) -> None:
    """Who did not ask for a repair still hears what is missing."""
    done = kms("rewrap", "--no-repair", degraded)
    assert done.complaint.startswith("degraded: nothing to do; 1 recipient, missing ")
    assert _inspect(kms, degraded)["missing"] == ["paper://west"]


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


def test_file_that_changed_meanwhile_is_a_conflict(
    kms: Run, papers: Path, degraded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other writer's content stays: exit code 1, try again."""
    honest = envelope.rewrap_capsule

    def slow(*args: Any, **kwargs: Any) -> bytes:
        degraded.write_bytes(b"somebody else's")
        return honest(*args, **kwargs)

    monkeypatch.setattr("kms_core.rewrap.rewrap_capsule", slow)
    done = kms("rewrap", degraded)
    assert (done.code, done.out) == (ExitCode.FAILED, b"")
    assert "run it again" in done.complaint
    assert degraded.read_bytes() == b"somebody else's"
    assert not list(papers.glob(".kms-*"))


@pytest.mark.skipif(sys.platform == "win32", reason="pipes are POSIX")
def test_pipe_cannot_be_rewritten_in_place(kms: Run, initialised: Path) -> None:
    """It is not even read."""
    os.mkfifo("fifo")
    done = kms("rewrap", "fifo")
    assert done.code == ExitCode.USAGE
    assert "-o" in done.complaint
