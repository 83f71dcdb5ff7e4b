"""What the documents show is true: the example runs, configurations load, tables are complete."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from kms_core import Kms
from kms_gcp.algorithms import SIGNING
from kms_gcp.errors import BY_STATUS
from kms_gcp.settings import GcpKmsSettings

ROOT = Path(__file__).parents[3]
GUIDE = ROOT / "docs" / "providers" / "gcp-kms.md"
EXAMPLE = ROOT / "examples" / "gcp_kms.py"
README = ROOT / "plugins" / "kms_gcp" / "README.md"

pytestmark = pytest.mark.skipif(not GUIDE.is_file(), reason="not in a clone of the repository")


def blocks(file: Path, language: str) -> Iterator[str]:
    """The fenced blocks of one language."""
    fenced = re.compile(rf"^```{language}\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    for match in fenced.finditer(file.read_text()):
        yield match[1]


def test_every_setting_is_in_the_table() -> None:
    """A setting that nobody is told about does not exist."""
    table = GUIDE.read_text().partition("## Settings")[2].partition("###")[0]
    rows = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    told = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert told == attrs.fields_dict(GcpKmsSettings).keys()


def test_every_algorithm_and_status_is_told() -> None:
    """By the name that the contract, or gRPC, has for it."""
    text = GUIDE.read_text()
    missing = [name for name in (*SIGNING, *BY_STATUS) if f"`{name}`" not in text]
    assert missing == []


@pytest.mark.parametrize("file", [GUIDE, README], ids=lambda file: file.name)
def test_configurations_load(file: Path, tmp_path: Path) -> None:
    """Every configuration is one that the core accepts."""
    first, *others = blocks(file, "toml")
    for number, block in enumerate([first, *others]):
        signs = 'purpose = "sign"' in block
        configuration = tmp_path / f"{number}.toml"
        configuration.write_text(block + first if signs else block)  # there is something to seal to
        with Kms.from_config(configuration) as kms:
            assert kms.breakers


@pytest.mark.parametrize("configured", [False, True])
def test_example_runs(tmp_path: Path, configured: bool) -> None:  # noqa: FBT001
    """By itself, and with a configuration of one's own."""
    from kms_core.testing.servers import GcpServer

    with GcpServer() as server:
        arguments = [sys.executable, str(EXAMPLE)]
        if configured:
            file = tmp_path / "kms.toml"
            file.write_text(
                '[instances.gcp]\nprovider = "gcp-kms"\ninsecure = true\n'
                f'key = "{server.create_key()}"\nendpoint = "{server.endpoint}"\n'
            )
            arguments.append(str(file))
        run = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    assert "opened: it is what was sealed" in run.stdout
