"""An environment of its own for every peer, made by the run and kept for the next one.

The project's environment never sees a peer: their dependencies exclude each other, and ours.
"""

from __future__ import annotations

import hashlib
import importlib
import pkgutil
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Final

from attrs import frozen

from benchmarks import peers
from benchmarks.peer import CRYPTOGRAPHY

_PATIENCE: Final = 300.0  # seconds for an installation
_DONE: Final = "installed"


class NotInstalled(Exception):
    """A peer that cannot be had here."""


@frozen
class Peer:
    """A module of ``benchmarks.peers``, and what it needs installed."""

    module: str
    name: str
    requirements: tuple[str, ...]
    #: What an application that uses it starts with.
    statement: str

    @property
    def all_requirements(self) -> tuple[str, ...]:
        """With the cipher that we use ourselves, so that raw figures mean the same everywhere."""
        own = [each for each in self.requirements if not each.startswith(f"{CRYPTOGRAPHY}==")]
        return (*own, f"{CRYPTOGRAPHY}=={metadata.version(CRYPTOGRAPHY)}")


def find_peers() -> Iterator[Peer]:
    """Every module in ``benchmarks/peers``."""
    for found in pkgutil.iter_modules(peers.__path__):
        module = importlib.import_module(f"{peers.__name__}.{found.name}")
        yield Peer(module.__name__, module.NAME, tuple(module.REQUIREMENTS), module.STATEMENT)


def python_of(peer: Peer, folder: Path) -> Path:
    """The interpreter of a peer's environment, made if need be; raises ``NotInstalled``."""
    wanted = "\n".join((sys.version, *peer.all_requirements))
    target = folder / f"{peer.name}-{hashlib.sha256(wanted.encode()).hexdigest()[:12]}"
    python = target / "bin" / "python"
    if not (target / _DONE).exists():
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        for command in _commands(target, python, peer.all_requirements):
            _run(command)
        (target / _DONE).touch()
    return python


def _commands(target: Path, python: Path, requirements: tuple[str, ...]) -> list[list[str]]:
    uv = shutil.which("uv")
    if uv is None:
        pip = [str(python), "-m", "pip", "install", "--quiet", *requirements]
        return [[sys.executable, "-m", "venv", str(target)], pip]
    make = [uv, "venv", "--quiet", "--python", sys.executable, str(target)]
    return [make, [uv, "pip", "install", "--quiet", "--python", str(python), *requirements]]


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(  # noqa: S603  our own commands
            command, capture_output=True, text=True, timeout=_PATIENCE, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise NotInstalled(f"{command[0]}: {exc}") from exc
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise NotInstalled(lines[-1] if lines else f"{command[0]} ended with {done.returncode}")
