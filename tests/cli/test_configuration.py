"""Which configuration is used, and which is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kms_core.cli import configuration
from kms_core.errors import ConfigError

if TYPE_CHECKING:
    from tests.cli.conftest import Run

posix = pytest.mark.skipif(os.name != "posix", reason="owners and modes are POSIX")


def _source(named: Path | None = None) -> str:
    return configuration.find(named).source


def test_order_is_option_folder_user_environment(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is used only if nothing in front of it exists."""
    home = tmp_path / "home"
    (home / "kms").mkdir(parents=True)
    named, users = tmp_path / "named.toml", home / "kms" / "kms.toml"
    for path in (named, users, folder / "kms.toml"):
        path.write_text("")
        path.chmod(0o600)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home))
    monkeypatch.setenv("KMS_AWS_KEY", "alias/app")
    assert _source(named) == str(named)
    assert _source() == "kms.toml"
    (folder / "kms.toml").unlink()
    assert _source() == str(users)
    users.unlink()
    assert _source() == "the environment"


def test_variable_names_a_configuration(
    kms: Run, initialised: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``$KMS_CONFIG`` comes before ``./kms.toml`` and after ``--config``."""
    monkeypatch.setenv("KMS_CONFIG", str(tmp_path / "absent.toml"))
    done = kms("health")
    assert done.code == 2
    assert "absent.toml" in done.complaint
    assert kms("--config", initialised / "kms.toml", "health").code == 0


def test_verbose_says_which_configuration_was_used(kms: Run, initialised: Path) -> None:
    """On stderr, once, and only if asked."""
    assert kms("-v", "seal", stdin=b"x").complaint == "configuration: kms.toml"
    assert kms("seal", stdin=b"x").err == ""


@posix
@pytest.mark.parametrize(
    ("mode", "which", "who"),
    [
        (0o620, "kms.toml", "its group"),
        (0o602, "kms.toml", "everybody"),
        (0o770, ".", "its group"),
        (0o707, ".", "everybody"),
    ],
)
def test_file_that_others_can_write_is_refused(
    kms: Run, initialised: Path, mode: int, which: str, who: str
) -> None:
    """They could choose our key services; the message has the command that mends it."""
    (initialised / which).chmod(mode)
    done = kms("seal", stdin=b"x")
    assert (done.code, done.out) == (2, b"")
    assert f"writable by {who}: run `chmod go-w " in done.complaint
    assert kms("--config", "kms.toml", "seal", stdin=b"x").code == 0


@posix
def test_file_of_somebody_else_is_refused(
    initialised: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever owns it can make it writable."""
    owner = initialised.stat().st_uid
    monkeypatch.setattr("os.geteuid", lambda: owner + 1)
    with pytest.raises(ConfigError, match=r"belongs to \w+, not to you.* --config"):
        configuration.find(None)


@posix
def test_owner_without_a_name_is_named_by_number(
    initialised: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in containers, where not every user is in the password file."""

    def unknown(_uid: int) -> None:
        raise KeyError

    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.setattr("os.geteuid", lambda: 0xFFFE)
    with pytest.raises(ConfigError, match=r"belongs to user \d+"):
        configuration.find(None)


@posix
def test_both_ends_of_a_link_must_be_private(initialised: Path, tmp_path: Path) -> None:
    """A link into a folder that others can write is as good as a file that they can."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (initialised / "kms.toml").rename(elsewhere / "kms.toml")
    (initialised / "kms.toml").symlink_to(elsewhere / "kms.toml")
    elsewhere.chmod(0o755)
    assert _source() == "kms.toml"
    elsewhere.chmod(0o777)
    with pytest.raises(ConfigError, match="elsewhere is writable by everybody"):
        configuration.find(None)


@posix
def test_dangling_link_is_reported(folder: Path) -> None:
    """It is not the same as no configuration."""
    (folder / "kms.toml").symlink_to("absent")
    with pytest.raises(ConfigError, match=r"cannot read configuration kms\.toml: No such file"):
        configuration.find(None)


def test_elsewhere_than_posix_files_are_not_judged(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mode bits say nothing there."""
    (folder / "kms.toml").write_text("")
    (folder / "kms.toml").chmod(0o666)
    monkeypatch.setattr(configuration, "_JUDGES_MODES", value=False)
    assert _source() == "kms.toml"


def test_broken_configuration_is_one_line_and_two(kms: Run, folder: Path) -> None:
    """The core's message names the file."""
    (folder / "kms.toml").write_text("[instances")
    (folder / "kms.toml").chmod(0o600)
    done = kms("seal", stdin=b"x")
    assert done.code == 2
    assert done.complaint.startswith("kms.toml is not valid TOML")


def test_no_configuration_says_how_to_begin(kms: Run) -> None:
    """``kms init`` is the shortest way."""
    done = kms("open", stdin=b"\xc1")
    assert done.code == 2
    assert "`kms init`" in done.complaint
