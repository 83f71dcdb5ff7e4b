"""``kms inspect``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from kms_core import envelope
from kms_core.aead import Keys
from kms_core.cli.exits import ExitCode
from kms_core.context import Context
from kms_core.envelope import Wrapped
from kms_core.types import Ciphertext

if TYPE_CHECKING:
    from tests.cli.conftest import Inspect, Run

SECRET = b"secret"
TENANT = ("--context", "tenant=42")


def test_inspect_needs_no_configuration(kms: Run, inspect: Inspect, sealed: Path) -> None:
    """Nor a working one, nor a key."""
    Path("kms.toml").write_text("[broken")
    Path("kms-local.keys").unlink()
    info = inspect(sealed)
    assert list(info) == [
        "form",
        "inline",
        "suite",
        "key_id",
        "size",
        "segment_bytes",
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
    assert (info["segment_bytes"], info["threshold"]) == (None, 1)
    (recipient,) = info["recipients"]
    assert (recipient["provider"], recipient["wrap_alg"]) == ("local", 0x0501)
    assert set(recipient) == {"key_uri", "provider", "wrap_alg", "share_index", "blob_bytes"}


def test_inspect_draws_what_json_says(kms: Run, inspect: Inspect, sealed: Path) -> None:
    """For people: names beside numbers, nothing cut, however narrow a terminal would be."""
    drawn = kms("inspect", sealed)
    info = inspect(sealed)
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
    wraps = [Wrapped(Ciphertext(b"x", "paper://[bold]east", wrap_alg=0x0999))]
    capsule = envelope.new_capsule(keys, wraps, created=1 << 63)
    message = envelope.seal_message(keys, b"x", Context())
    drawn = kms("inspect", stdin=capsule).text
    for text in ("tenant=[red]42", "[bold]east", "unknown (0x0999)", "seconds after 1970"):
        assert text in drawn
    assert "form" in drawn
    assert "with its capsule" not in drawn
    assert "capsule without a message" in drawn
    alone = kms("inspect", stdin=message)
    assert alone.code == 0
    assert "compact message, its capsule is stored elsewhere" in alone.text
    assert "recipient" not in alone.text
    dated = envelope.new_capsule(keys, wraps, created=0)
    assert "1970-01-01T00:00:00Z" in kms("inspect", stdin=dated).text


def test_inspect_refuses_what_is_no_envelope(kms: Run) -> None:
    """As ``open`` does."""
    done = kms("inspect", stdin=b"hello")
    assert (done.code, done.out) == (ExitCode.INTEGRITY, b"")
    assert done.complaint


def test_inspect_tells_what_a_stream_is_cut_into(kms: Run, initialised: Path) -> None:
    """Form, segment size and the size of the whole, from a file as from a pipe."""
    assert kms("seal", "-o", "s.kms", stdin=bytes(3 << 20)).code == 0
    size = Path("s.kms").stat().st_size
    for done in (
        kms("inspect", "s.kms"),
        kms("inspect", stdin=Path("s.kms").read_bytes()),
    ):
        assert "stream with its capsule" in done.text
        assert "of 262144 bytes" in done.text
        assert f"{size} bytes" in done.text


def test_inspect_reads_the_head_of_a_file_only(
    kms: Run, inspect: Inspect, initialised: Path
) -> None:
    """The size of the largest file is that of its entry, and takes no time."""
    assert kms("seal", "-o", "s.kms", stdin=bytes(2 << 20)).code == 0
    os.truncate("s.kms", 1 << 40)
    info = inspect("s.kms")
    assert (info["size"], info["segment_bytes"]) == (1 << 40, 1 << 18)


def test_inspect_says_how_many_recipients_are_needed(
    kms: Run, inspect: Inspect, papers: Path
) -> None:
    """A threshold is what a reader has to plan for."""
    text = (papers / "kms.toml").read_text()
    third = '[instances.third]\nprovider = "paper"\nkey = "third"\nstate = "."\n'
    (papers / "kms.toml").write_text(f'{third}{text}policy = "2 of 3"\n')
    assert kms("seal", "-o", "s.kms", stdin=SECRET).code == 0
    assert "any 2 of 3 recipients are needed" in kms("inspect", "s.kms").text
    assert inspect("s.kms")["threshold"] == 2
