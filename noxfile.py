"""Every check of the project, each in an environment of its own.

``uv run nox`` runs what a change has to pass, ``uv run nox -s tests -- -k breaker`` a part of it.
Tests run on each supported Python that this machine has; NOX_REQUIRE_PYTHONS=3.11,3.12 makes the
absence of one an error.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import nox

nox.needs_version = ">=2026.4.10"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.download_python = "never"
nox.options.error_on_missing_interpreters = True
ROOT = Path(__file__).parent
PYPROJECT = nox.project.load_toml(ROOT / "pyproject.toml")
PLUGINS = sorted(path.parent.name for path in ROOT.glob("plugins/*/pyproject.toml"))
WORKERS = "2"  # servers and forks of their own make more test processes slower, not faster
#: What the long suites show depends on neither Python's nor an SDK's version: the newest only.
LONG = tuple(
    f"--ignore-glob={pattern}"
    for pattern in (
        "plugins/*/tests/test_conformance.py",
        "tests/testing/test_conformance.py",
        "tests/testing/test_*_server.py",
        *(f"tests/test_{name}.py" for name in ("benchmarks", "demo", "soak")),
    )
)
PACKAGED = (
    "tests/cli",
    "tests/testing/test_conformance_docs.py",
    *(f"tests/test_{name}.py" for name in ("client", "docs", "five_services", "plugins")),
    "tests/test_public_api.py",
)
COVERAGE = "95"  # per cent of lines and branches, for the core and for each plugin


def find_python(version: str) -> str | None:
    """The newest working CPython ``version``: from PATH, else one that pyenv keeps."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    kept = sorted(pyenv.glob(f"{version}.*/bin/python{version}"), key=_patch, reverse=True)
    on_path = shutil.which(f"python{version}")
    candidates = [on_path, *map(str, kept)]
    return next((path for path in candidates if path and _runs(path, version)), None)


def _patch(path: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", path.parts[-3])]


def _runs(python: str, version: str) -> bool:
    """Whether it is what it says: a pyenv shim on PATH may have nothing behind it."""
    show = "import sys; print(sys.implementation.name, '%d.%d' % sys.version_info[:2])"
    done = subprocess.run([python, "-c", show], capture_output=True, text=True, check=False)
    return done.stdout.split() == ["cpython", version]


def choose_pythons() -> list[str]:
    """The versions to test on, with their folders put where nox looks for interpreters."""
    supported = nox.project.python_versions(PYPROJECT)
    required = re.findall(r"[\d.]+", os.environ.get("NOX_REQUIRE_PYTHONS", ""))
    found = {version: path for version in supported if (path := find_python(version))}
    folders = [str(Path(path).parent) for path in found.values()]
    os.environ["PATH"] = os.pathsep.join([os.environ["PATH"], *folders])
    chosen = sorted({*found, *required}, key=lambda version: int(version.partition(".")[2]))
    return chosen or ["{}.{}".format(*sys.version_info)]


PYTHONS = choose_pythons()
OLDEST, NEWEST = PYTHONS[0], PYTHONS[-1]
#: On the oldest Python, `minimums` runs the same tests; `nox -s tests` does on all.
nox.options.sessions = [
    *("lint", "types", "plugins", "minimums", "wheels"),
    *(f"tests-{python}" for python in PYTHONS[1:] or PYTHONS),
]


def group(*names: str) -> tuple[str, ...]:
    """The requirements of dependency groups of pyproject.toml, each once."""
    return tuple(dict.fromkeys(nox.project.dependency_groups(PYPROJECT, *names)))


def needed_by_tests(plugins: Iterable[str] = PLUGINS) -> tuple[str, ...]:
    """What the tests of the core and of ``plugins`` need besides what they test."""
    own = [f"test-{plugin.replace('_', '-')}" for plugin in plugins]
    return group("test", *(name for name in own if name in PYPROJECT["dependency-groups"]))


def editable() -> list[str]:
    """Arguments that install the core and every plugin from the tree."""
    trees = [".[cli]", *(f"./plugins/{plugin}" for plugin in PLUGINS)]
    return [argument for tree in trees for argument in ("-e", tree)]


@nox.session
def lint(session: nox.Session) -> None:
    """Style: ruff's rules and its formatting."""
    session.install(*group("lint"))
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", "--check")


@nox.session(python=OLDEST)
def types(session: nox.Session) -> None:
    """Strict mypy over the core, its tests, the plugins and this file."""
    session.install(*editable(), *needed_by_tests(), *group("types"))
    session.run("mypy", *session.posargs)
    for plugin in PLUGINS:  # one at a time: each has a folder named tests
        session.run("mypy", f"plugins/{plugin}")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The core's tests on each Python present; coverage is measured on the newest.

    The plugins' own tests run on the newest (`plugins`) and on the oldest (`minimums`, which has
    the core's run there as well); with arguments, all tests are candidates here too.
    """
    missing = sorted(set(nox.project.python_versions(PYPROJECT)) - set(PYTHONS))
    session.log(f"testing on {', '.join(PYTHONS)}; not present: {', '.join(missing) or 'none'}")
    session.install(*editable(), *needed_by_tests())
    if session.posargs:
        session.run("pytest", "-n", WORKERS, *session.posargs)
    elif session.python == NEWEST:
        # Some hundred runs of pytest within pytest, which measuring would make take for ever.
        mutants = "tests/testing/test_conformance.py"
        measured(session, "kms_core", f"--ignore-glob={mutants}", "tests")
        session.run("pytest", "-n", WORKERS, mutants)
    else:
        session.run("pytest", "-n", WORKERS, *LONG, "tests")


def measured(session: nox.Session, package: str, *arguments: str) -> None:
    """Run these tests; fails if they leave too much of the package out."""
    session.env["COVERAGE_FILE"] = str(Path(session.create_tmp(), "coverage").resolve())
    session.run("pytest", "-n", WORKERS, f"--cov={package}", "--cov-report=", *arguments)
    session.run("coverage", "report", f"--include=*/{package}/*", f"--fail-under={COVERAGE}")


@nox.session(python=NEWEST, default=False)
def fuzz(session: nox.Session) -> None:
    """Every parser in turn against mutated inputs: `-- --seconds 60` for each; see tests/fuzz."""
    session.install(*editable(), *needed_by_tests([]))
    session.run("python", "-m", "tests.fuzz.run", *session.posargs)


@nox.session(python=NEWEST, default=False)
def bench(session: nox.Session) -> None:
    """Beside raw ciphers, SDKs and peers: `-- --quick`, `-- --only PATTERN`; docs/benchmarks.md."""
    session.install(*editable(), *needed_by_tests())
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session(python=NEWEST)
@nox.parametrize("plugin", PLUGINS)
def plugins(session: nox.Session, plugin: str) -> None:
    """Each plugin alone: wheels of the core and of it, nothing of any other, its own tests."""
    wheels = build(session, "kms-core", plugin.replace("_", "-"))
    session.install(*wheels)
    session.run("python", "-c", ALONE, plugin, *foreign_dependencies(plugin))
    session.install(*wheels, *needed_by_tests([plugin]))
    with tree_without_packages() as folder, session.chdir(folder):
        if session.posargs:
            session.run("pytest", "-n", WORKERS, f"plugins/{plugin}/tests", *session.posargs)
        else:
            measured(session, plugin, f"plugins/{plugin}/tests")


#: Run with a plugin's name and the distributions that must not have come along with it.
ALONE = """
import importlib, sys
from importlib.metadata import distributions
plugin, *foreign = sys.argv[1:]
installed = {d.metadata["Name"].lower() for d in distributions()}
assert not installed & set(foreign), f"{plugin} brings {installed & set(foreign)}"
offered = {e.value for d in distributions() for e in d.entry_points if e.group == "kms_core.v1"}
assert offered == {plugin, "kms_core.offline"}, f"entry points offer {offered}"
importlib.import_module(plugin)
"""


def foreign_dependencies(plugin: str) -> list[str]:
    """The distributions that other plugins require and neither ``plugin`` nor the core does."""
    required = {
        name: _required(nox.project.load_toml(ROOT / "plugins" / name / "pyproject.toml"))
        for name in PLUGINS
    }
    own = required.pop(plugin) | _required(PYPROJECT)
    return sorted(set[str]().union(*required.values()) - own)


def _required(project: dict[str, dict[str, list[str]]]) -> set[str]:
    names = (re.match(r"[\w.-]+", spec) for spec in project["project"]["dependencies"])
    return {name.group().lower() for name in names if name}


@nox.session(python=OLDEST)
def minimums(session: nox.Session) -> None:
    """All tests with the oldest release of every direct dependency that is said to do."""
    floors = ("--resolution=lowest-direct", *editable(), *needed_by_tests())
    session.run_install("uv", "pip", "install", *floors, external=True)
    session.run("uv", "pip", "list", "--exclude-editable", external=True)
    # Old releases warn of what newer ones have mended.
    options = session.posargs or LONG
    quiet = ("-W", "ignore::DeprecationWarning", "-W", "ignore::FutureWarning")
    session.run("pytest", "-n", WORKERS, *quiet, *options)


@nox.session(python=NEWEST)
def wheels(session: nox.Session) -> None:
    """Tests of what gets published: wheels, installed, far from the tree.

    Of the core's tests those that need what only packaging can lose: commands and their templates,
    plugins, the public names, what documents show.  `plugins` runs each plugin's with its wheel.
    """
    built = build(session, "--all-packages")
    for wheel in built:
        check_contents(session, Path(wheel))
    session.install(*(f"{wheel}[cli]" if "kms_core-" in wheel else wheel for wheel in built))
    session.install(*needed_by_tests())
    with tree_without_packages() as folder, session.chdir(folder):
        session.run("pytest", "-n", WORKERS, *(session.posargs or PACKAGED))


def build(session: nox.Session, *packages: str) -> list[str]:
    """Build sdists, and from them wheels; the wheels' paths."""
    target = Path(session.create_tmp()).resolve() / "dist"
    shutil.rmtree(target, ignore_errors=True)
    for package in packages:
        choice = [package] if package.startswith("-") else ["--package", package]
        session.run_install("uv", "build", "-q", "-o", str(target), *choice, external=True)
    return sorted(map(str, target.glob("*.whl")))


def check_contents(session: nox.Session, wheel: Path) -> None:
    """A wheel holds its one typed package and metadata: no tests, no neighbour."""
    package = wheel.name.partition("-")[0]
    names = zipfile.ZipFile(wheel).namelist()
    stray = [name for name in names if not name.startswith((f"{package}/", f"{package}-"))]
    if stray or f"{package}/py.typed" not in names:
        session.error(f"{wheel.name} holds {stray or 'no py.typed'}")


@contextlib.contextmanager
def tree_without_packages() -> Iterator[Path]:
    """A copy of the tree where only what is installed can be imported."""
    with tempfile.TemporaryDirectory(prefix="kms-") as folder:
        yield shutil.copytree(ROOT, Path(folder, "tree"), ignore=_packages_and_leftovers)


def _packages_and_leftovers(folder: str, names: list[str]) -> set[str]:
    leftovers = {"__pycache__", "build", "dist", "uv.lock"}
    return {
        name
        for name in names
        if name.startswith(".") or name in leftovers or Path(folder, name, "py.typed").exists()
    }


if __name__ == "__main__":
    nox.main()
