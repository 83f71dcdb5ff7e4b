"""``import kms_core`` offers exactly the promised names, and costs next to nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import kms_core

#: Loaded when first needed, never by ``import kms_core``.
HEAVY = {
    "azure",
    "boto3",
    "botocore",
    "click",
    "cryptography",
    "google",
    "hypothesis",
    "pkcs11",
    "pytest",
    "rich",
    "tenacity",
}


def exported_for_type_checkers() -> dict[str, set[str]]:
    """The ``from kms_core.x import Name as Name`` lines of the package, by module."""
    tree = ast.parse(Path(kms_core.__file__).read_text(encoding="utf-8"))
    found: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kms_core."):
            for alias in node.names:
                assert alias.asname == alias.name, f"{alias.name} is not re-exported"
                module = str(node.module).removeprefix("kms_core.")
                found.setdefault(module, set()).add(alias.name)
    return found


def imported_by(code: str) -> set[str]:
    """The top-level packages that running ``code`` in a fresh interpreter imports."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


def test_all_is_sorted_and_has_no_repeats() -> None:
    """The list of names reads in order, each name once."""
    assert kms_core.__all__ == sorted(set(kms_core.__all__))


def test_dir_lists_the_public_names() -> None:
    """Completion in a shell shows names before they are loaded."""
    assert set(kms_core.__all__) <= set(dir(kms_core))


@pytest.mark.parametrize("name", kms_core.__all__)
def test_every_public_name_can_be_imported(name: str) -> None:
    """No name is promised that its module does not have."""
    assert getattr(kms_core, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    """Lazy loading answers a misspelt name as any module would."""
    with pytest.raises(AttributeError, match="'kms_core' has no attribute 'Knirps'"):
        _ = kms_core.Knirps


def test_type_checkers_and_the_lazy_table_see_the_same_names() -> None:
    """What mypy believes to be exported is what is exported, from the same modules."""
    table = {module: set(names) for module, names in kms_core._HOME.items()}
    assert exported_for_type_checkers() == table


def test_importing_the_package_loads_no_sdk_and_nothing_heavy() -> None:
    """An application that does not seal yet pays for no SDK, CLI or cryptography."""
    loaded = imported_by("import kms_core")
    assert "kms_core" in loaded
    assert not loaded & HEAVY
