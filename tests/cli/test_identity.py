"""``kms open --identity``: one private key, and nothing else left."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kms_core.cli.exits import ExitCode

if TYPE_CHECKING:
    from tests.cli.conftest import Run

SECRET = b"secret"
BODY = bytes(range(256)) * (12 << 10)  # 3 MiB, which is a stream
TENANT = ("--context", "tenant=42")
PHRASE = "correct horse battery staple"


@pytest.fixture
def phrase(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a variable that holds the passphrase."""
    monkeypatch.setenv("PAPER_PHRASE", PHRASE)
    return "PAPER_PHRASE"


def _sealed_for(kms: Run, name: str, *options: str, plaintext: bytes = SECRET) -> bytes:
    """Something sealed to a new recovery key, whose private half alone is left."""
    files = ("--private", f"{name}.key", "--public", f"{name}.pub")
    made = kms("recovery", "keygen", *files, "--kind", "p256", *options)
    assert made.code == 0
    Path("kms.toml").write_bytes(made.out)
    sealed = kms("seal", *TENANT, stdin=plaintext)
    assert sealed.code == 0
    Path("kms.toml").unlink()
    Path(f"{name}.pub").unlink()
    return sealed.out


@pytest.mark.parametrize("plaintext", [SECRET, BODY], ids=["message", "stream"])
def test_private_key_alone_opens(kms: Run, plaintext: bytes) -> None:
    """Without configuration, public key or service; by file and by pipe, also as text."""
    sealed = _sealed_for(kms, "r", "--no-passphrase", plaintext=plaintext)
    Path("s.kms").write_bytes(sealed)
    opened = kms("open", "--identity", "r.key", *TENANT, stdin=sealed)
    assert (opened.code, opened.out == plaintext, opened.err) == (0, True, "")
    assert kms("open", "--identity", "r.key", *TENANT, "s.kms", "-o", "plain").code == 0
    assert (Path("plain").read_bytes() == plaintext) is True


def test_broken_configuration_does_not_matter(kms: Run) -> None:
    """In an emergency nothing else may be in the way."""
    sealed = _sealed_for(kms, "r", "--no-passphrase")
    Path("kms.toml").write_text("[broken")
    assert kms("open", "--identity", "r.key", *TENANT, stdin=sealed).out == SECRET


def test_passphrase_comes_from_a_variable(kms: Run, phrase: str) -> None:
    """Another one, or none, is a failure before anything is asked of the envelope."""
    sealed = _sealed_for(kms, "r", "--passphrase-env", phrase)
    identity = ("--identity", "r.key", "--passphrase-env", phrase)
    assert kms("open", *identity, *TENANT, stdin=sealed).out == SECRET
    os.environ[phrase] = "another"
    done = kms("open", *identity, *TENANT, stdin=sealed)
    assert (done.code, done.out) == (ExitCode.FAILED, b"")
    assert "another" not in done.err
    del os.environ[phrase]
    done = kms("open", *identity, *TENANT, stdin=sealed)
    assert (done.code, done.out) == (ExitCode.USAGE, b"")
    assert "PAPER_PHRASE is not set" in done.complaint


def test_passphrase_is_asked_for_at_a_terminal_only(
    kms: Run, phrase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where stdin is the envelope, the line tells which option to give."""
    sealed = _sealed_for(kms, "r", "--passphrase-env", phrase)
    done = kms("open", "--identity", "r.key", *TENANT, stdin=sealed)
    assert (done.code, done.out) == (ExitCode.USAGE, b"")
    assert "--passphrase-env" in done.complaint
    Path("s.kms").write_bytes(sealed)
    monkeypatch.setattr("kms_core.cli.passphrases.at_a_terminal", lambda: True)
    monkeypatch.setattr("click.prompt", lambda *_args, **_options: PHRASE)
    assert kms("open", "--identity", "r.key", *TENANT, "s.kms").out == SECRET


def test_passphrase_that_is_not_needed_is_refused(kms: Run, phrase: str) -> None:
    """Somebody replaced the file, or the option is left over."""
    sealed = _sealed_for(kms, "r", "--no-passphrase")
    identity = ("--identity", "r.key", "--passphrase-env", phrase)
    done = kms("open", *identity, *TENANT, stdin=sealed)
    assert (done.code, done.out) == (ExitCode.FAILED, b"")
    assert "has no passphrase" in done.complaint


def test_passphrase_without_identity_is_a_usage_error(kms: Run, initialised: Path) -> None:
    """A configuration says itself where its passphrases come from."""
    done = kms("open", "--passphrase-env", "X", stdin=b"x")
    assert done.code == ExitCode.USAGE
    assert "--identity" in done.complaint


def test_foreign_key_opens_nothing(kms: Run) -> None:
    """It is not among the recipients, which the line lists."""
    sealed = _sealed_for(kms, "r", "--no-passphrase")
    _sealed_for(kms, "other", "--no-passphrase")
    done = kms("open", "--identity", "other.key", *TENANT, stdin=sealed)
    assert (done.code, done.out) == (ExitCode.INTEGRITY, b"")
    assert "hpke:" in done.complaint


def test_what_is_no_private_key_is_named(kms: Run) -> None:
    """A missing file, and the wrong half of a pair."""
    assert "absent" in kms("open", "--identity", "absent", stdin=b"x").complaint
    files = ("--private", "r.key", "--public", "r.pub")
    assert kms("recovery", "keygen", *files, "--kind", "p256", "--no-passphrase").code == 0
    done = kms("open", "--identity", "r.pub", stdin=b"x")
    assert "holds a public key" in done.complaint


def test_compact_envelope_needs_its_store(kms: Run) -> None:
    """A key alone does not help where the capsule is elsewhere."""
    sealed = _sealed_for(kms, "r", "--no-passphrase")
    body = sealed[int.from_bytes(sealed[4:8], "big") :]
    done = kms("open", "--identity", "r.key", *TENANT, stdin=body)
    assert (done.code, done.out) == (ExitCode.USAGE, b"")
    assert "capsule" in done.complaint
