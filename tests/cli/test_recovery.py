"""``kms recovery``: making keys for the emergency, and using them in one."""

from __future__ import annotations

import os
import stat
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest
from attrs import frozen
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import mlkem

from kms_core.cli import recovery
from kms_core.cli.exits import ExitCode
from kms_core.offline import KINDS, KeyFile
from kms_core.types import Secret

if TYPE_CHECKING:
    from tests.cli.conftest import Outcome, Run

posix = pytest.mark.skipif(os.name != "posix", reason="modes are POSIX")
PHRASE = "correct horse battery staple"
PRIVATE, PUBLIC = Path("r.key"), Path("r.pub")


def _has_ml_kem() -> bool:
    try:
        mlkem.MLKEM768PrivateKey.generate()
    except UnsupportedAlgorithm:
        return False
    return True


needs_ml_kem = pytest.mark.skipif(
    not _has_ml_kem(), reason="this build of cryptography has no ML-KEM"
)


def _keygen(kms: Run, *options: str, kind: str = "p256") -> Outcome:
    where = ("--private", PRIVATE, "--public", PUBLIC)
    return kms("recovery", "keygen", *where, "--kind", kind, *options)


def _uncommented(table: str) -> str:
    """The table with what it offers for the machine that opens."""
    return table.replace("# private_key", "private_key").replace("# passphrase", "passphrase")


@pytest.fixture
def phrase(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a variable that holds the passphrase."""
    monkeypatch.setenv("PAPER_PHRASE", PHRASE)
    return "PAPER_PHRASE"


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(name, marks=[needs_ml_kem] if name.startswith("mlkem") else [])
        for name in KINDS
    ],
)
def test_keygen_prints_a_table_that_works(kms: Run, phrase: str, kind: str) -> None:
    """As it stands it seals; with its comment signs gone it opens."""
    done = _keygen(kms, "--passphrase-env", phrase, kind=kind)
    assert done.code == 0
    uri = KeyFile.read(PUBLIC).public().key_uri
    assert tomllib.loads(done.text) == {
        "instances": {
            "recovery": {"provider": "hpke", "key": uri, "public_key": str(PUBLIC.absolute())}
        }
    }
    assert done.text.startswith(f"# {kind}\n")
    Path("kms.toml").write_text(done.text)
    sealed = kms("seal", stdin=b"hello")
    assert sealed.code == 0, sealed.err
    refused = kms("open", stdin=sealed.out)
    assert (refused.code, refused.out) == (ExitCode.FAILED, b"")
    assert "set private_key" in refused.complaint
    Path("kms.toml").write_text(_uncommented(done.text))
    PUBLIC.unlink()
    assert kms("open", stdin=sealed.out).out == b"hello"


@needs_ml_kem
def test_the_default_is_the_strongest_kind(kms: Run) -> None:
    """Without ``--kind``, a hybrid that a quantum computer does not break."""
    where = ("--private", PRIVATE, "--public", PUBLIC)
    assert kms("recovery", "keygen", *where, "--no-passphrase").code == 0
    assert KeyFile.read(PUBLIC).public().kind.name == "mlkem1024-p384"


def test_what_was_written_is_said_beside_the_table(kms: Run) -> None:
    """On stderr, so that stdout can be appended to the configuration."""
    done = _keygen(kms, "--no-passphrase")
    assert [line.split(":")[0] for line in done.err.splitlines()] == ["wrote r.key", "wrote r.pub"]
    assert "wrote" not in done.text


@posix
def test_without_a_passphrase_the_file_mode_is_all(kms: Run) -> None:
    """It has to be asked for, and the table then offers no passphrase."""
    done = _keygen(kms, "--no-passphrase")
    assert done.code == 0
    assert "# passphrase" not in done.text
    assert stat.S_IMODE(PRIVATE.stat().st_mode) == 0o600
    assert not KeyFile.read(PRIVATE).is_encrypted


def test_names_that_need_quotes_are_quoted(kms: Run, folder: Path) -> None:
    """Whatever a path holds, the table means that path."""
    name = 'a "b" \\ c\td\x7fé.pub'
    done = kms(
        *("recovery", "keygen", "--private", "x.key", "--public", name),
        *("--kind", "p256", "--no-passphrase"),
    )
    assert done.code == 0
    table = tomllib.loads(done.text)["instances"]["recovery"]
    assert table["public_key"] == str(folder.resolve() / name)
    assert "\x7f" not in done.err


def test_a_name_that_is_not_text_is_refused(kms: Run, folder: Path) -> None:
    """No configuration could name the file."""
    done = kms(
        *("recovery", "keygen", "--private", "x\udcff", "--public", "x.pub", "--no-passphrase")
    )
    assert done.code == ExitCode.USAGE
    assert "--private" in done.complaint
    assert not list(folder.iterdir())


@pytest.mark.parametrize("existing", [PRIVATE, PUBLIC])
def test_nothing_is_overwritten(kms: Run, folder: Path, existing: Path) -> None:
    """One of the two is enough to stop."""
    existing.write_text("precious")
    done = _keygen(kms, "--no-passphrase")
    assert (done.code, done.out) == (ExitCode.USAGE, b"")
    assert f"{existing} exists already" in done.complaint
    assert [(path.name, path.read_text()) for path in folder.iterdir()] == [
        (existing.name, "precious")
    ]


def test_a_folder_that_is_not_there_is_named(kms: Run, folder: Path) -> None:
    """As a failure of this machine, not of a key service."""
    done = kms(
        *("recovery", "keygen", "--private", "absent/x", "--public", "x.pub"),
        *("--kind", "p256", "--no-passphrase"),
    )
    assert done.code == ExitCode.FAILED
    assert "cannot create absent/x" in done.complaint
    assert not list(folder.iterdir())


# --- the passphrase ------------------------------------------------------------------------------


def test_nobody_to_ask_is_a_usage_error(kms: Run, folder: Path) -> None:
    """A script has to decide; it never gets an unprotected key by leaving something out."""
    done = _keygen(kms)
    assert done.code == ExitCode.USAGE
    for option in ("--passphrase-env", "--no-passphrase"):
        assert option in done.complaint
    assert not list(folder.iterdir())


def test_contradictions_are_refused(kms: Run, folder: Path, phrase: str) -> None:
    """With and without a passphrase is neither."""
    done = _keygen(kms, "--passphrase-env", phrase, "--no-passphrase")
    assert done.code == ExitCode.USAGE
    assert "exclude each other" in done.complaint
    assert not list(folder.iterdir())


def test_an_unset_variable_is_named(kms: Run, folder: Path) -> None:
    """Empty is as good as unset."""
    done = _keygen(kms, "--passphrase-env", "PAPER_PHRASE")
    assert done.code == ExitCode.USAGE
    assert "PAPER_PHRASE is not set" in done.complaint
    assert not list(folder.iterdir())


@frozen
class Terminal:
    """Somebody who types; ``asked`` is what they were asked."""

    typed: list[str]
    asked: list[str]

    def answer(self, prompt: str) -> str:
        self.asked.append(prompt)
        return self.typed.pop(0)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal at which the test says what is typed."""
    terminal = Terminal([], [])
    monkeypatch.setattr(recovery, "_at_a_terminal", lambda: True)
    monkeypatch.setattr(click.termui, "hidden_prompt_func", terminal.answer)
    return terminal


def test_a_typed_passphrase_is_asked_for_twice(kms: Run, terminal: Terminal) -> None:
    """Until both are the same; the table then proposes a variable for it."""
    terminal.typed[:] = [PHRASE, "a slip", PHRASE, PHRASE]
    done = _keygen(kms)
    assert done.code == 0
    assert len(terminal.asked) == 4
    assert KeyFile.read(PRIVATE).pair(Secret(PHRASE))
    assert 'passphrase = { env = "RECOVERY_PASSPHRASE" }' in done.text
    assert PHRASE not in done.text + done.err


def test_show_asks_once_and_only_where_needed(kms: Run, terminal: Terminal, phrase: str) -> None:
    """A public key's file, or a plain one, needs no passphrase."""
    _keygen(kms, "--passphrase-env", phrase)
    assert kms("recovery", "show", PUBLIC).code == 0
    assert not terminal.asked
    terminal.typed[:] = [PHRASE]
    assert kms("recovery", "show", PRIVATE).code == 0
    assert len(terminal.asked) == 1


# --- show ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("protected", [True, False])
def test_show_prints_the_same_for_both_files(kms: Run, phrase: str, *, protected: bool) -> None:
    """So that one can be told to belong to the other."""
    protection = ("--passphrase-env", phrase) if protected else ("--no-passphrase",)
    table = tomllib.loads(_keygen(kms, *protection).text)
    expected = f"{table['instances']['recovery']['key']}  p256\n"
    assert kms("recovery", "show", PUBLIC).text == expected
    options = ("--passphrase-env", phrase) if protected else ()
    assert kms("recovery", "show", PRIVATE, *options).text == expected


def test_show_refuses_what_it_cannot_read(
    kms: Run, phrase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody to ask, a wrong passphrase, another file, none."""
    _keygen(kms, "--passphrase-env", phrase)
    assert kms("recovery", "show", PRIVATE).code == ExitCode.USAGE
    monkeypatch.setenv(phrase, "x-marks-it")
    denied = kms("recovery", "show", PRIVATE, "--passphrase-env", phrase)
    assert denied.code == ExitCode.FAILED
    assert "the passphrase does not open" in denied.complaint
    assert "x-marks-it" not in denied.complaint
    Path("other").write_text("something else")
    assert "is not a key file" in kms("recovery", "show", "other").complaint
    assert "No such file" in kms("recovery", "show", "absent").complaint


def test_the_group_explains_itself(kms: Run) -> None:
    """As all groups of ``kms`` do, when no command is given."""
    done = kms("recovery")
    assert (done.code, done.out) == (ExitCode.USAGE, b"")
    assert all(command in done.err for command in ("keygen", "show"))
