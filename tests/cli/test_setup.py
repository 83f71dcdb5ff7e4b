"""``kms init``."""

from __future__ import annotations

import errno
import os
import stat
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kms_core.cli.exits import ExitCode

if TYPE_CHECKING:
    from tests.cli.conftest import Run

posix = pytest.mark.skipif(os.name != "posix", reason="modes are POSIX")


def test_init_writes_a_configuration_that_works(kms: Run, folder: Path) -> None:
    """It says what it wrote and what to try next."""
    done = kms("init")
    assert (done.code, done.err) == (0, "")
    assert sorted(path.name for path in folder.iterdir()) == ["kms-local.keys", "kms.toml"]
    for text in ("kms.toml", "kms-local.keys", "kms seal"):
        assert text in done.text
    assert kms("open", stdin=kms("seal", stdin=b"hello").out).out == b"hello"


def test_configuration_is_commented(kms: Run, initialised: Path) -> None:
    """One instance, and examples that parse once their comment signs are gone."""
    text = Path("kms.toml").read_text()
    assert tomllib.loads(text) == {
        "instances": {"local": {"provider": "local", "path": "kms-local.keys"}}
    }
    examples = [
        line.removeprefix("# ")
        if line.startswith(("# [", "# ")) and ("=" in line or "[" in line)
        else line
        for line in text.splitlines()
    ]
    tables = tomllib.loads("\n".join(examples))
    assert list(tables["instances"]) == ["local", "aws-east", "aws-west"]
    assert tables["envelope"]["recipients"] == ["aws-east", "aws-west", "local"]


@posix
def test_keys_are_private_and_the_configuration_is_not_secret(kms: Run, folder: Path) -> None:
    """Whatever the umask."""
    old = os.umask(0)
    try:
        kms("init")
    finally:
        os.umask(old)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == {"kms-local.keys": 0o600, "kms.toml": 0o644}


@pytest.mark.parametrize("name", ["kms.toml", "kms-local.keys"])
def test_nothing_is_overwritten(kms: Run, folder: Path, name: str) -> None:
    """One of the two is enough to stop."""
    (folder / name).write_text("precious")
    done = kms("init")
    assert (done.code, done.complaint) == (2, f"{name} exists already; nothing was written")
    assert [(path.name, path.read_text()) for path in folder.iterdir()] == [(name, "precious")]


@posix
def test_dangling_link_counts_as_existing(kms: Run, folder: Path) -> None:
    """Otherwise the keys would go where it leads."""
    (folder / "kms-local.keys").symlink_to("elsewhere")
    assert kms("init").code == ExitCode.USAGE
    assert not (folder / "elsewhere").exists()


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_both_files_or_neither(
    kms: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """A key store without configuration would stop the next attempt."""

    def fail(*_args: Any) -> None:
        raise error

    monkeypatch.setattr("kms_core.cli.files.write_new", fail)
    assert kms("init").code in {ExitCode.FAILED, ExitCode.INTERRUPTED}
    assert list(folder.iterdir()) == []


def test_another_folder(kms: Run, folder: Path) -> None:
    """It must exist; the next step begins there."""
    (folder / "sub").mkdir(mode=0o700)
    done = kms("init", "--path", "sub")
    assert "try: cd sub && " in done.text
    assert kms("--config", "sub/kms.toml", "health").code == 0
    assert kms("init", "--path", "absent").code == ExitCode.USAGE


def test_passphrase_comes_from_the_environment(
    kms: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The configuration names the variable; without it nothing opens."""
    assert kms("init", "--passphrase-env", "PAPER_PHRASE").code == ExitCode.USAGE
    assert list(folder.iterdir()) == []
    monkeypatch.setenv("PAPER_PHRASE", "correct horse")
    assert kms("init", "--passphrase-env", "PAPER_PHRASE").code == 0
    assert "correct horse" not in "".join(path.read_text() for path in folder.iterdir())
    sealed = kms("seal", stdin=b"x").out
    assert kms("open", stdin=sealed).out == b"x"
    monkeypatch.setenv("PAPER_PHRASE", "wrong")
    done = kms("open", stdin=sealed)
    assert (done.code, done.out) == (ExitCode.FAILED, b"")


@posix
def test_folder_that_others_can_write_is_warned_of(kms: Run, folder: Path) -> None:
    """The files are written, but the next command would refuse them."""
    folder.chmod(0o777)
    done = kms("init")
    assert done.code == 0
    assert done.complaint.startswith("warning: ")
    assert "chmod go-w" in done.complaint


def test_missing_plugin_is_named(kms: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The local key store is a plugin like any other."""
    monkeypatch.setitem(sys.modules, "kms_local", None)
    done = kms("init")
    assert done.code == ExitCode.USAGE
    assert "pip install kms-local" in done.complaint
    assert list(folder.iterdir()) == []
