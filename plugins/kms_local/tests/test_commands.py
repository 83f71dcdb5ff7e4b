"""``kms local …`` as a user runs it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

import kms_local
from kms_core import AccessDenied, InvalidRequest, KeyNotFound, KMSError, Secret, Unavailable
from kms_local import KeyStore

Run = Callable[..., Result]


@pytest.fixture
def group() -> click.Group:
    """The group ``kms local`` as the plugin fills it."""
    group = click.Group("local")
    kms_local.kms_register_commands(group)
    return group


@pytest.fixture
def run(group: click.Group, path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command in the folder where the test's key store lies."""
    monkeypatch.chdir(path.parent)
    return lambda *arguments: CliRunner().invoke(group, arguments)


def _refused(result: Result, kind: type[KMSError]) -> str:
    """The message of the error that the command leaves to ``kms`` itself."""
    assert isinstance(result.exception, kind), result.exception
    return str(result.exception)


def test_keys_lists_versions_with_state_and_primary(run: Run, store: KeyStore) -> None:
    """One line per version; no material."""
    store.rotate("default")
    store.disable("default", 1)
    result = run("keys")
    assert result.exit_code == 0
    lines = [line.split() for line in result.stdout.splitlines()]
    assert [(*line[:3], *line[4:]) for line in lines] == [
        ("default", "1", "disabled"),
        ("default", "2", "enabled", "primary"),
    ]
    assert all(line[3].endswith("Z") for line in lines)


def test_a_key_is_added_rotated_disabled_and_enabled(run: Run, store: KeyStore) -> None:
    """Each command does to the file what it says."""
    assert "version 1" in run("add-key", "app").stdout
    assert "version 2" in run("rotate", "app").stdout
    key = store.key("app")
    assert (key.primary, list(key.versions)) == (2, [1, 2])
    result = run("disable", "app", "1")
    assert (result.exit_code, result.output) == (0, "disabled version 1 of key app\n")
    assert store.key("app").versions[1].state == "disabled"
    assert run("enable", "app", "1").exit_code == 0
    assert store.key("app").versions[1].state == "enabled"


def test_disabling_the_primary_warns(
    group: click.Group, path: Path, store: KeyStore, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is allowed, and its consequence is said on standard error."""
    group.main(["disable", "default", "1", "--path", str(path)], standalone_mode=False)
    said = capsys.readouterr()
    assert said.out == "disabled version 1 of key default\n"
    assert "cannot wrap until it is rotated or enabled" in said.err


def test_the_path_may_be_named(run: Run, tmp_path: Path) -> None:
    """``--path`` chooses another file than the default."""
    KeyStore.create(tmp_path / "elsewhere", key="there").close()
    assert run("keys", "--path", str(tmp_path / "elsewhere")).stdout.startswith("there  1")


def test_the_passphrase_comes_from_the_environment(
    run: Run, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The option names the variable; the passphrase itself never stands on a command line."""
    passphrase = Secret("a passphrase")
    KeyStore.create(path, passphrase=passphrase).close()
    monkeypatch.setenv("STORE_PASSPHRASE", passphrase.reveal())
    assert run("rotate", "default", "--passphrase-env", "STORE_PASSPHRASE").exit_code == 0
    assert KeyStore(path, passphrase=passphrase).primary("default")[0].version == 2
    monkeypatch.setenv("STORE_PASSPHRASE", "another")
    _refused(run("rotate", "default", "--passphrase-env", "STORE_PASSPHRASE"), AccessDenied)


def test_an_unset_variable_is_a_usage_error(run: Run, store: KeyStore) -> None:
    """The message names the option and the variable."""
    result = run("keys", "--passphrase-env", "STORE_PASSPHRASE")
    assert result.exit_code == 2
    assert "--passphrase-env" in result.output
    assert "STORE_PASSPHRASE is not set or empty" in result.output


def test_errors_are_left_to_the_command_line(run: Run) -> None:
    """What ``kms`` turns into one line and an exit code arrives unchanged."""
    assert "kms init" in _refused(run("keys"), Unavailable)
    assert "kms init" in _refused(run("rotate", "default"), Unavailable)


def test_mistakes_are_refused(run: Run, store: KeyStore) -> None:
    """Unknown keys, taken and impossible names, and versions that are no numbers."""
    _refused(run("rotate", "none"), KeyNotFound)
    _refused(run("disable", "default", "9"), KeyNotFound)
    _refused(run("add-key", "default"), InvalidRequest)
    _refused(run("add-key", "a b"), InvalidRequest)
    assert run("disable", "default", "0").exit_code == 2
    assert run("enable", "default", "one").exit_code == 2
