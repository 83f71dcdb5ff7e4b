"""What the guide and the example show is true."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import attrs
import pytest

from kms_local.provider import LocalProvider

ROOT = Path(__file__).parents[3]
GUIDE = ROOT / "docs" / "providers" / "local.md"
EXAMPLE = ROOT / "examples" / "local_store.py"

pytestmark = pytest.mark.skipif(not GUIDE.is_file(), reason="not in a clone of the repository")


def test_every_setting_is_in_the_table() -> None:
    """A setting that nobody is told about does not exist."""
    table = GUIDE.read_text().partition("## Settings")[2].partition("##")[0]
    told = set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
    assert told == attrs.fields_dict(LocalProvider.settings).keys()


def test_example_runs() -> None:
    """By itself, to the end, and without a word on stderr."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLE)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("opened: 4111 1111 1111 1111\n") == 2
    assert done.stdout.endswith("keep a copy, or a second recipient\n")
