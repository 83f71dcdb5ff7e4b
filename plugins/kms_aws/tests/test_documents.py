"""What the documents show is true: examples run, configurations load, tables are complete."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from kms_aws.algorithms import MAC_SCHEMES, SCHEMES
from kms_aws.settings import AwsKmsSettings
from kms_core import Kms

ROOT = Path(__file__).parents[3]
GUIDE = ROOT / "docs" / "providers" / "aws-kms.md"
EXAMPLE = ROOT / "examples" / "aws_kms.py"
README = ROOT / "plugins" / "kms_aws" / "README.md"

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
    assert told == attrs.fields_dict(AwsKmsSettings).keys()


def test_every_algorithm_is_in_the_table() -> None:
    """By the contract's name, in full or as one of a row of sizes."""
    text = GUIDE.read_text()
    for algorithm in [*SCHEMES, *MAC_SCHEMES]:
        family, _, bits = algorithm.partition("-SHA")
        assert f"`{algorithm}`" in text or (family in text and f"`-{bits}`" in text), algorithm


@pytest.mark.parametrize("file", [GUIDE, README], ids=lambda file: file.name)
def test_configurations_load(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every configuration is one that the core accepts."""
    monkeypatch.setenv("EMULATOR_KEY", "id")
    monkeypatch.setenv("EMULATOR_SECRET", "secret")
    first, *others = blocks(file, "toml")
    for number, block in enumerate([first, *others]):
        signs = 'purpose = "sign"' in block
        configuration = tmp_path / f"{number}.toml"
        configuration.write_text(block + first if signs else block)  # there is something to seal to
        with Kms.from_config(configuration) as kms:
            assert kms.plugins


def test_policies_are_policies() -> None:
    """IAM would take them."""
    policies = [json.loads(block) for block in blocks(GUIDE, "json")]
    assert policies
    for policy in policies:
        assert policy["Version"] == "2012-10-17"
        for statement in policy["Statement"]:
            assert statement.keys() == {"Sid", "Effect", "Action", "Resource"}


def test_example_runs() -> None:
    """As its first lines say, without credentials or anything else around."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLE)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("opened: it is what was sealed") == 2


def test_example_takes_a_configuration(tmp_path: Path) -> None:
    """What is wrong with it is said by the core."""
    (tmp_path / "kms.toml").write_text('[instances.aws]\nprovider = "aws-kms"\nkey = "alias/app"\n')
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), str(tmp_path / "kms.toml")],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1
    assert "region: is missing" in done.stderr
