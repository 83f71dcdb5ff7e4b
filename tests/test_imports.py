"""What a process loads for the library: no more than what it uses."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

#: Large or slow to load, and of no use to a client that seals and opens while all goes well.
UNNEEDED = {
    "asyncio": "asynchronous applications",
    "click": "the command line",
    "ctypes": "erasing, once there is something to erase",
    "cryptography.hazmat.primitives.asymmetric.rsa": "public keys",
    "cryptography.hazmat.primitives.hpke": "recipients that are public keys",
    "cryptography.hazmat.primitives.serialization": "public keys",
    "difflib": "misspelt names",
    "email": "the metadata of distributions",
    "importlib.metadata": "looking for plugins",
    "json": "repair queues and key stores",
    "kms_core.async_client": "asynchronous applications",
    "kms_core.offline": "recipients that are public keys",
    "kms_core.testing": "tests",
    "rich": "the command line",
    "socket": "the plugins' own affair",
    "sqlite3": "capsule stores and repair queues",
    "ssl": "the plugins' own affair",
    "tempfile": "nothing here",
    "tenacity": "calls that failed",
    "tomllib": "configuration files",
    "zipfile": "looking for plugins",
}


def run(code: str, *path: Path) -> list[str]:
    """The lines that ``code`` prints in a fresh interpreter that also looks into ``path``."""
    inherited = os.environ.get("PYTHONPATH")
    folders = [*map(str, path), *([inherited] if inherited else [])]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def loaded() -> set[str]:
    """The modules that importing the client brings, beyond those of a bare interpreter."""
    lines = run(
        """
        import sys
        before = set(sys.modules)
        from kms_core import Kms
        print(*sorted(set(sys.modules) - before), sep="\\n")
        """
    )
    return set(lines)


@pytest.mark.parametrize("name", UNNEEDED)
def test_the_client_is_imported_without(name: str, loaded: set[str]) -> None:
    """What only some applications need is loaded by those that need it, when they do."""
    assert "kms_core.client" in loaded
    assert name not in loaded, f"{name} is for {UNNEEDED[name]}"


def test_what_retries_is_loaded_by_the_first_call_that_fails() -> None:
    """A process whose services answer never pays for it."""
    assert run(
        """
        import sys
        from kms_core import CallPolicy, InstanceConfig, Kms, Settings
        from kms_core.plugins import Found
        from kms_core.testing import memory
        from kms_core.testing.servers.panel import Failure
        from kms_core.testing.store import MemoryStore

        store = MemoryStore(keys=("key",))
        instance = InstanceConfig("memory", {"store": store, "key": "key"})
        settings = Settings({"one": instance}, calls=CallPolicy(attempts=2))
        plugins = [Found("memory", "kms-core", "0", 1, lambda: memory)]
        with Kms(settings, plugins=plugins, sleep=lambda seconds: None) as kms:
            kms.decrypt(kms.encrypt(b"text"))
            print("tenacity" in sys.modules)
            store.panel.fail(Failure.SERVER_ERROR, times=1)
            kms.encrypt(b"text")
            print("tenacity" in sys.modules)
        """
    ) == ["False", "True"]


def install(site: Path, name: str, version: str, entry_points: str | None) -> None:
    """The metadata of a distribution in a folder of ``sys.path``."""
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    if entry_points is not None:
        (info / "entry_points.txt").write_text(entry_points)


LOOK = """
    from importlib.metadata import PathDistribution

    asked = []
    metadata = PathDistribution.metadata.fget

    def ask(distribution):
        found = metadata(distribution)
        asked.append(found["Name"])
        return found

    PathDistribution.metadata = property(ask)
    from kms_core.plugins import discover

    names = [found.name for found in discover()]
    print("mine" in names, *sorted({"kms-mine", "stranger"} & set(asked)))
"""


def test_the_metadata_of_strangers_is_not_read(tmp_path: Path) -> None:
    """Looking for plugins takes little longer in an environment with much else in it."""
    install(tmp_path, "kms-mine", "1", "[kms_core.v1]\nmine = kms_mine\n")
    install(tmp_path, "stranger", "1", "[console_scripts]\nmine = stranger:main\n")
    assert run(LOOK, tmp_path) == ["True kms-mine"]


def test_a_distribution_without_plugins_hides_another_version_with_them(tmp_path: Path) -> None:
    """What counts is the version that would be imported."""
    install(tmp_path / "first", "kms-mine", "2", None)
    install(tmp_path / "second", "kms-mine", "1", "[kms_core.v1]\nmine = kms_mine\n")
    assert run(LOOK, tmp_path / "second") == ["True kms-mine"]
    assert run(LOOK, tmp_path / "first", tmp_path / "second") == ["False kms-mine"]
