"""The command line, run in this process or in one of its own, in an empty folder."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, cast

import pytest
from attrs import frozen

from kms_core.cli import main

PLUGIN_MODULES = Path(__file__).parent / "plugins"
SECRET = b"secret"
TENANT = ("--context", "tenant=42")
PATIENCE = 60.0  # seconds until a process counts as hung


@frozen
class Outcome:
    """What a command wrote, and its exit code."""

    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()

    @property
    def complaint(self) -> str:
        """The one line on stderr."""
        assert self.err.startswith("kms: ")
        assert self.err.endswith("\n")
        assert self.err.count("\n") == 1, self.err
        return self.err.removeprefix("kms: ").removesuffix("\n")


class Run(Protocol):
    """``kms`` with arguments and stdin."""

    def __call__(self, *arguments: str | Path, stdin: bytes = b"") -> Outcome: ...


Install = Callable[[str, str], None]
Inspect = Callable[[str | Path], Any]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory: empty, and nobody else's."""
    path = tmp_path / "folder"
    path.mkdir(mode=0o700)
    monkeypatch.chdir(path)
    return path


@pytest.fixture
def kms(monkeypatch: pytest.MonkeyPatch) -> Run:
    """``kms`` in this process."""

    def run(*arguments: str | Path, stdin: bytes = b"") -> Outcome:
        out, err = io.BytesIO(), io.BytesIO()
        with monkeypatch.context() as patch:
            reader = io.BufferedReader(cast("io.RawIOBase", io.BytesIO(stdin)))
            patch.setattr(sys, "stdin", io.TextIOWrapper(reader))
            patch.setattr(sys, "stdout", io.TextIOWrapper(out, "utf-8", write_through=True))
            patch.setattr(sys, "stderr", io.TextIOWrapper(err, "utf-8", write_through=True))
            with pytest.raises(SystemExit) as exited:
                main([str(argument) for argument in arguments])
            code = exited.value.code
            written, said = out.getvalue(), err.getvalue().decode()
        assert isinstance(code, int)
        return Outcome(code, written, said)

    return run


@pytest.fixture
def process() -> Run:
    """``python -m kms_core`` as a process of its own."""

    def run(*arguments: str | Path, stdin: bytes = b"") -> Outcome:
        done = subprocess.run(
            [sys.executable, "-m", "kms_core", *map(str, arguments)],
            input=stdin,
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
        return Outcome(done.returncode, done.stdout, done.stderr.decode())

    return run


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a module of ``plugins/`` under an entry point, for this process and its children."""
    site = tmp_path / "site"
    site.mkdir()
    for path in (PLUGIN_MODULES, site):
        monkeypatch.syspath_prepend(path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (site, PLUGIN_MODULES))))

    def run(name: str, module: str) -> None:
        info = site / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[kms_core.v1]\n{name} = {module}\n")

    return run


@pytest.fixture
def initialised(kms: Run, folder: Path) -> Path:
    """The folder after ``kms init``."""
    assert kms("init").code == 0
    return folder


@pytest.fixture
def papers(install: Install, folder: Path) -> Path:
    """Two independent services, ``east`` and ``west``; the folder whose files make them fail."""
    install("paper", "paper_plugin")
    tables = [
        f'[instances.{name}]\nprovider = "paper"\nkey = "{name}"\nstate = "."\n'
        for name in ("east", "west")
    ]
    tables.append('[calls]\nattempts = 1\n[envelope]\nstraggler_wait = "30s"\n')
    (folder / "kms.toml").write_text("\n".join(tables))
    return folder


@pytest.fixture
def sealed(kms: Run, initialised: Path) -> Path:
    """An envelope with ``SECRET`` for tenant 42."""
    assert kms("seal", *TENANT, "-o", "s.kms", stdin=SECRET).code == 0
    return initialised / "s.kms"


@pytest.fixture
def inspect(kms: Run) -> Inspect:
    """What ``kms inspect --json`` says of a file."""

    def run(path: str | Path) -> Any:
        done = kms("inspect", "--json", path)
        assert (done.code, done.err) == (0, "")
        return json.loads(done.out)

    return run


@pytest.fixture
def compact(papers: Path) -> Path:
    """As ``papers``, with a place for the capsules of compact envelopes."""
    with (papers / "kms.toml").open("a") as settings:
        settings.write('capsules = "capsules"\n')
    return papers
