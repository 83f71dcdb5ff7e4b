"""``kms new-plugin``: what it writes is found, keeps the contract and passes its own tests."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kms_core.cli.exits import ExitCode

if TYPE_CHECKING:
    from tests.cli.conftest import Run

LONGEST = "acme-vault-of-a-very-long-name-x"
Install = Callable[[Path, Path], None]


@pytest.fixture
def plugin(kms: Run, folder: Path) -> Path:
    """The folder of the plugin ``acme-vault``."""
    assert kms("new-plugin", "acme-vault").code == ExitCode.OK
    return folder / "kms-acme-vault"


def build(project: Path, site: Path) -> None:
    """Install as a wheel, without network and without dependencies."""
    uv = shutil.which("uv")
    if uv is None or importlib.util.find_spec("hatchling") is None:
        pytest.skip("building a wheel offline needs uv and hatchling here")
    offline = ("--offline", "--no-deps", "--no-build-isolation", "--python", sys.executable)
    command = [uv, "pip", "install", "-q", *offline, "--target", str(site), str(project)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def lay_out(project: Path, site: Path) -> None:
    """Do by hand what an installer does."""
    metadata = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    shutil.copytree(project / "kms_acme_vault", site / "kms_acme_vault")
    info = site / "kms_acme_vault-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {metadata['name']}\nVersion: {metadata['version']}\n"
    )
    ((group, entries),) = metadata["entry-points"].items()
    lines = [f"{name} = {value}" for name, value in entries.items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines]))


def run(command: list[str], folder: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """Run in ``folder`` with ``site`` to import from."""
    environment = {**os.environ, "PYTHONPATH": str(site)}
    environment.pop("PYTEST_ADDOPTS", None)
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("install", [build, lay_out])
def test_new_plugin_is_found_and_passes_its_tests(
    plugin: Path, folder: Path, tmp_path: Path, install: Install
) -> None:
    """Installed as it was written, it is a provider like any other."""
    site = tmp_path / "installed"
    install(plugin, site)
    tested = run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"], plugin, site)
    assert tested.returncode == 0, tested.stdout
    (folder / "kms.toml").write_text('[instances.mine]\nprovider = "acme-vault"\nkey = "default"\n')
    kms = [sys.executable, "-m", "kms_core"]
    listed = run([*kms, "plugins", "--json"], folder, site)
    (row,) = [row for row in json.loads(listed.stdout) if row["name"] == "acme-vault"]
    assert (row["state"], row["distribution"], row["needed"]) == ("loaded", "kms-acme-vault", True)
    checked = run([*kms, "conformance", "mine"], folder, site)
    assert (checked.returncode, checked.stderr) == (0, ""), checked.stdout


@pytest.mark.parametrize("name", ["a", LONGEST])
def test_new_plugin_is_clean(kms: Run, folder: Path, name: str) -> None:
    """Its own configuration of linter and type checker finds nothing, however long its name."""
    ruff, mypy = shutil.which("ruff"), shutil.which("mypy")
    if ruff is None or mypy is None:
        pytest.skip("ruff and mypy are not installed here")
    assert kms("new-plugin", name).code == ExitCode.OK
    project = folder / f"kms-{name}"
    for command in (
        [ruff, "check", "--no-cache"],
        [ruff, "format", "--no-cache", "--check"],
        [mypy, "--cache-dir", os.devnull, "."],
    ):
        done = run(command, project, project)
        assert done.returncode == 0, f"{done.stdout}{done.stderr}"


def test_new_plugin_says_what_to_do_next(kms: Run, folder: Path) -> None:
    """Where it was written, what to replace, and how to try it."""
    (folder / "my plugins").mkdir()
    done = kms("new-plugin", "acme", "--directory", "my plugins")
    assert done.code == ExitCode.OK
    first, second = done.text.splitlines()
    assert first == "wrote my plugins/kms-acme: kms_acme/service.py is what to replace first"
    assert second.startswith("try: pip install -e 'my plugins/kms-acme[test]' && pytest ")
    assert (folder / "my plugins" / "kms-acme" / "kms_acme" / "py.typed").is_file()


def test_new_plugin_overwrites_nothing(kms: Run, plugin: Path) -> None:
    """What was written before stays as it is."""
    settings = plugin / "kms_acme_vault" / "settings.py"
    settings.write_text("mine")
    done = kms("new-plugin", "acme-vault")
    assert done.code == ExitCode.USAGE
    assert "kms-acme-vault is there already" in done.complaint
    assert settings.read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Acme", "lower-case letters, digits and hyphens"),
        ("acme_vault", "lower-case letters"),
        ("7acme", "a letter first"),
        ("acme-", "lower-case letters"),
        ("../acme", "lower-case letters"),
        ("", "lower-case letters"),
        (f"{LONGEST}y", "up to 32"),
        ("kms-acme", "leave out kms-"),
        ("aws-kms", "taken by kms itself"),
        ("seal", "taken by kms itself"),
    ],
)
def test_name_that_cannot_be_is_refused(kms: Run, folder: Path, name: str, reason: str) -> None:
    """In one line, with nothing written."""
    done = kms("new-plugin", name)
    assert done.code == ExitCode.USAGE
    assert reason in done.complaint
    assert list(folder.iterdir()) == []


def test_directory_that_is_not_there_is_refused(kms: Run) -> None:
    """It is not made: it may be misspelt."""
    done = kms("new-plugin", "acme", "--directory", "absent")
    assert done.code == ExitCode.USAGE
    assert "absent" in done.complaint
