"""Modules import downwards only, and plugins see nothing but what ``kms_core`` exports.

The table below is the architecture.  A new module has to find its place in it.
"""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from attrs import frozen

import kms_core

CORE = Path(kms_core.__file__).parent
PLUGINS = Path(__file__).parents[1] / "plugins"

LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "context", "types", "uri", "breaker", "limits"),
    ("hookspecs", "aead", "config", "files", "header", "memory", "shamir", "workers"),
    ("asymmetric", "plugins", "stream", "capsules", "inspection", "offline", "sessions"),
    ("relay", "cache", "envelope", "opening", "parallel", "sealing"),
    ("arguments", "calls", "race", "routing", "stored"),
    ("observe", "rewrap", "health", "unwrapping"),
    (
        *("settings", "assembly", "direct", "monitor", "wrapping"),
        *("repair", "client", "async_client"),
    ),
    ("cli", "server", "integrations", "__main__"),
)
LAYER_OF = {part: layer for layer, parts in enumerate(LAYERS) for part in parts}


def below(layer: int) -> set[str]:
    """The parts of all layers under ``layer``."""
    return {part for parts in LAYERS[:layer] for part in parts}


#: Parts that see less than all layers below their own, or something of their own layer.
EXCEPTIONS: dict[str, set[str]] = {
    "context": {"errors"},
    "types": {"context", "errors"},
    "uri": {"errors"},
    "breaker": {"errors", "types"},
    "limits": set(),
    "opening": below(3) | {"cache"},
    "sealing": below(3) | {"cache"},
    "race": below(4) | {"calls"},
    "routing": below(4) | {"calls", "race"},
    "observe": below(2),
    "assembly": below(6) | {"settings"},
    "direct": below(6) | {"settings"},
    "wrapping": below(6) | {"settings"},
    "monitor": below(6) | {"settings"},
    "repair": below(6) | {"settings", "client"},
    "client": below(6) | {"settings", "assembly", "direct", "monitor", "wrapping"},
    "async_client": below(6) | {"settings", "client"},
    # it shows plugins, envelopes and events, and lets plugins bring commands
    "cli": {
        *("assembly", "client", "config", "errors", "hookspecs", "inspection", "plugins"),
        *("settings", "types"),
        *("envelope", "files", "offline", "rewrap", "stream", "testing"),
    },
    "server": {"async_client", "client", "config", "errors", "settings"},
    "integrations": {"async_client", "client", "config", "errors", "settings"},
    "__main__": {"cli"},
    "testing": below(4),
}
#: Where annotations may name what lies above: these two describe everybody.
UPWARD_ANNOTATIONS = ("errors", "types")


@frozen
class Import:
    """One name that a file imports: ``from module import name``; ``import a.b`` has no name."""

    module: str
    name: str
    line: int
    annotation: bool


def allowed(part: str) -> set[str]:
    """The parts of the core that ``part`` may import."""
    return EXCEPTIONS.get(part, below(LAYER_OF.get(part, 0))) | {part}


def imports(source: str, package: str) -> Iterator[Import]:
    """Every import of ``source``, wherever it stands; ``package`` is what a leading dot means."""
    yield from _imports(ast.parse(source), package, annotation=False)


def _imports(node: ast.AST, package: str, *, annotation: bool) -> Iterator[Import]:
    match node:
        case ast.Import(names=names):
            for alias in names:
                yield Import(alias.name, "", node.lineno, annotation)
        case ast.ImportFrom(module=module, names=names, level=level):
            base = package.split(".")[: len(package.split(".")) - level + 1] if level else []
            path = ".".join([*base, *([module] if module else [])])
            for alias in names:
                yield Import(path, alias.name, node.lineno, annotation)
        case ast.If(test=ast.Name(id="TYPE_CHECKING"), body=body, orelse=orelse):
            for statement in body:
                yield from _imports(statement, package, annotation=True)
            for statement in orelse:
                yield from _imports(statement, package, annotation=annotation)
        case _:
            for child in ast.iter_child_nodes(node):
                yield from _imports(child, package, annotation=annotation)


def modules(root: Path) -> dict[str, Path]:
    """Dotted names of the modules in the package folder ``root``."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules(CORE)
PARTS = {name: name.split(".")[1] for name in MODULES if "." in name}


def core_imports(module: str) -> Iterator[tuple[str, Import]]:
    """What a core module imports of the core, as the module that it names."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for found in imports(path.read_text(encoding="utf-8"), package):
        if found.module.split(".")[0] != "kms_core":
            continue
        inner = f"{found.module}.{found.name}"
        yield (inner if inner in MODULES else found.module), found


@pytest.mark.parametrize("module", PARTS)
def test_every_module_has_its_place(module: str) -> None:
    """A file that the table does not know fails here, so that its layer is decided, not drifted."""
    assert PARTS[module] in {*LAYER_OF, "testing"}, f"{module} is in no layer"


@pytest.mark.parametrize("module", PARTS)
def test_modules_import_downwards_only(module: str) -> None:
    """A core module imports lower layers only, and never the package's public face."""
    part = PARTS[module]
    wrong = [
        f"line {found.line}: {target}"
        for target, found in core_imports(module)
        if PARTS.get(target) not in allowed(part)
        and not (found.annotation and part in UPWARD_ANNOTATIONS)
    ]
    assert not wrong, f"{module} may import {sorted(allowed(part))}, but has {wrong}"


def test_no_import_cycles() -> None:
    """Module by module, also within a part, there is an order in which all can be imported."""
    graph = {
        module: {
            target
            for target, found in core_imports(module)
            if not found.annotation and target not in {module, "kms_core"}
        }
        for module in PARTS
    }
    graphlib.TopologicalSorter(graph).prepare()


def test_importing_the_package_loads_no_other_module() -> None:
    """``kms_core/__init__`` names its modules for type checkers only."""
    eager = [target for target, found in core_imports("kms_core") if not found.annotation]
    assert eager == []


def _below_plugins(paths: Iterable[Path]) -> list[str]:
    return sorted(path.relative_to(PLUGINS).as_posix() for path in paths)


PLUGIN_FILES = _below_plugins(
    path
    for package in PLUGINS.glob("*/*/__init__.py")
    if package.with_name("py.typed").exists()
    for path in package.parent.rglob("*.py")
)
PLUGIN_TESTS = _below_plugins(PLUGINS.glob("*/tests/**/*.py"))


def _of_the_core(path: str) -> list[Import]:
    package = ".".join(path.split("/")[1:-1])
    return [
        found
        for found in imports((PLUGINS / path).read_text(encoding="utf-8"), package)
        if found.module.split(".")[0] == "kms_core"
    ]


def _is_public(found: Import) -> bool:
    return found.module == "kms_core" and found.name in {"", *kms_core.__all__}


def _is_the_test_kit(found: Import) -> bool:
    return f"{found.module}.{found.name}.".startswith("kms_core.testing.")


@pytest.mark.parametrize("path", PLUGIN_FILES)
def test_plugins_use_the_public_names_only(path: str) -> None:
    """What plugins may use is what the core keeps stable: the names that ``kms_core`` exports."""
    private = [found for found in _of_the_core(path) if not _is_public(found)]
    assert not private, f"{path} imports names that kms_core does not export"


@pytest.mark.parametrize("path", PLUGIN_TESTS)
def test_plugin_tests_use_the_public_names_and_the_test_kit(path: str) -> None:
    """A plugin is tested with ``kms_core.testing``, as a third party's would be."""
    private = [
        found
        for found in _of_the_core(path)
        if not _is_public(found) and not _is_the_test_kit(found)
    ]
    assert not private, f"{path} imports names that kms_core does not export"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import kms_core.types", Import("kms_core.types", "", 1, annotation=False)),
        ("from . import types", Import("kms_core", "types", 1, annotation=False)),
        ("from .types import Event", Import("kms_core.types", "Event", 1, annotation=False)),
        (
            "if TYPE_CHECKING:\n from kms_core.types import Event",
            Import("kms_core.types", "Event", 2, annotation=True),
        ),
        (
            "def late():\n import kms_core.client",
            Import("kms_core.client", "", 2, annotation=False),
        ),
    ],
)
def test_every_spelling_of_an_import_is_seen(source: str, expected: Import) -> None:
    """Relative, late and type-checking imports count like any other."""
    assert list(imports(source, "kms_core")) == [expected]
