"""What the documents show is true: the example runs, configurations load, tables are complete."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import get_args

import attrs
import pytest

from kms_core import Secret
from kms_pkcs11.settings import Mechanism, Pkcs11Settings
from kms_pkcs11.wrapping import GCM, KWP, OAEP_SHA1, OAEP_SHA256

ROOT = Path(__file__).parents[3]
GUIDE = ROOT / "docs" / "providers" / "pkcs11.md"
EXAMPLE = ROOT / "examples" / "pkcs11_hsm.py"
README = ROOT / "plugins" / "kms_pkcs11" / "README.md"

pytestmark = pytest.mark.skipif(not GUIDE.is_file(), reason="not in a clone of the repository")


def test_every_setting_is_in_the_table() -> None:
    """A setting that nobody is told about does not exist."""
    table = GUIDE.read_text().partition("## Settings")[2].partition("###")[0]
    told = set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
    assert told == attrs.fields_dict(Pkcs11Settings).keys()


def test_every_mechanism_has_its_number() -> None:
    """As envelopes hold it."""
    text = GUIDE.read_text()
    numbers = (GCM, KWP, OAEP_SHA256, OAEP_SHA1)
    for mechanism, number in zip(get_args(Mechanism), numbers, strict=True):
        assert f"| `{mechanism}` | 0x{number:04x} |" in text


@pytest.mark.parametrize("file", [GUIDE, README], ids=lambda file: file.name)
def test_configurations_are_valid(file: Path) -> None:
    """As far as can be told without the token."""
    (block,) = re.findall(r"^```toml\n(.*?)^```$", file.read_text(), re.MULTILINE | re.DOTALL)
    table = tomllib.loads(block)["instances"]["hsm"]
    assert table.pop("provider") == "pkcs11"
    table["pin"] = Secret("1234")
    table["module"] = Path(table["module"])
    assert Pkcs11Settings(**table).name.uri == "pkcs11:token=prod;object=app-kek"


def test_example_runs(softhsm: Path) -> None:
    """By itself, to the end, and without a word on stderr."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLE)], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "valid: True, altered: False" in done.stdout
    assert "the token is back, and the envelope opens" in done.stdout


def test_example_says_what_is_missing(tmp_path: Path) -> None:
    """One line and exit code 2."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLE)],
        env={"SOFTHSM2_MODULE": str(tmp_path / "none.so"), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "apt-get install softhsm2" in done.stderr
