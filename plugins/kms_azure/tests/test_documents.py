"""What the documents show is true: the example runs, configurations load, tables are complete."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import attrs
import pytest

from kms_azure.algorithms import WRAPS, signature_algorithms
from kms_azure.settings import Algorithm, AzureKeyVaultSettings, Credential
from kms_core import Kms

ROOT = Path(__file__).parents[3]
GUIDE = ROOT / "docs" / "providers" / "azure-keyvault.md"
EXAMPLE = ROOT / "examples" / "azure_keyvault.py"
README = ROOT / "plugins" / "kms_azure" / "README.md"

pytestmark = pytest.mark.skipif(not GUIDE.is_file(), reason="not in a clone of the repository")


def configurations(file: Path) -> Iterator[str]:
    """The fenced blocks of TOML."""
    fenced = re.compile(r"^```toml\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    for match in fenced.finditer(file.read_text()):
        yield match[1]


def test_every_setting_is_in_the_table() -> None:
    """A setting that nobody is told about does not exist."""
    table = GUIDE.read_text().partition("## Settings")[2].partition("###")[0]
    rows = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    told = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert told == attrs.fields_dict(AzureKeyVaultSettings).keys()


def test_every_choice_is_told() -> None:
    """Credentials and algorithms, by the names that settings take."""
    text = GUIDE.read_text()
    for choice in (*get_args(Credential), *get_args(Algorithm)):
        assert f"`{choice}`" in text or f'`"{choice}"`' in text, choice
    for wrap in WRAPS.values():
        assert f"0x{wrap.number:04x} ({wrap.name})" in text


@pytest.mark.parametrize(
    ("family", "curve"),
    [("RSA", None), ("oct", None), ("EC", "P-256"), ("EC", "P-384"), ("EC", "P-521")],
)
def test_every_signature_is_in_the_table(family: str, curve: str | None) -> None:
    """By the contract's name, in full or as one of a row of sizes."""
    text = GUIDE.read_text()
    for algorithm in signature_algorithms(family, curve):  # type: ignore[arg-type]
        kind, _, bits = algorithm.partition("-SHA")
        assert f"`{algorithm}`" in text or (kind in text and f"`-{bits}`" in text), algorithm


@pytest.mark.parametrize("file", [GUIDE, README], ids=lambda file: file.name)
def test_configurations_load(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every configuration is one that the core accepts."""
    monkeypatch.setenv("AZURE_SECRET", "secret")
    monkeypatch.setenv("EMULATOR_TOKEN", "token")
    (tmp_path / "ca.pem").write_text("")
    first, *others = configurations(file)
    for number, block in enumerate([first, *others]):
        signs = 'purpose = "sign"' in block
        configuration = tmp_path / f"{number}.toml"
        configuration.write_text(block + first if signs else block)  # there is something to seal to
        with Kms.from_config(configuration) as kms:
            assert kms.plugins


def test_example_runs() -> None:
    """As its first lines say, without credentials or anything else around."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLE)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("opened: it is what was sealed") == 3


def test_example_takes_a_configuration(tmp_path: Path) -> None:
    """What is wrong with it is said by the core."""
    (tmp_path / "kms.toml").write_text('[instances.a]\nprovider = "azure-keyvault"\nkey = "kek"\n')
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), str(tmp_path / "kms.toml")],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1
    assert "vault_url: is missing" in done.stderr
