"""What docs/testing.md shows is run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kms_core.testing import ProviderConformance
from kms_core.testing.servers.panel import Failure
from kms_core.testing.suite.declared import Declared

pytest_plugins = ["pytester"]

TEXT = (Path(__file__).parents[2] / "docs" / "testing.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
SUITE, *SNIPPETS = BLOCKS


def test_the_test_file_passes(pytester: pytest.Pytester) -> None:
    """As it stands, with signatures and failures among what is tried."""
    pytester.makepyfile(SUITE)
    run = pytester.inline_run("-p", "no:cacheprovider", "--tb=short")
    passed, _, failed = run.listoutcomes()
    names = {report.nodeid.rpartition("::")[2] for report in passed}
    assert failed == []
    assert "test_hanging_service_is_given_up_in_time" in names
    assert "test_signature_is_accepted[HMAC-SHA256-4096]" in names


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_the_snippets_run(snippet: str) -> None:
    """Each by itself."""
    exec(compile(snippet, "docs/testing.md", "exec"), {})  # noqa: S102  what readers will run


def test_everything_that_can_be_declared_is_named() -> None:
    """Attributes and fixtures of the suite, and every failure of a panel."""
    attributes = {name for name in Declared.__annotations__ if hasattr(ProviderConformance, name)}
    fixtures = {"other_key", "signing_key", "rotate_signing_key", "panel"}
    missing = {name for name in attributes | fixtures if f"`{name}" not in TEXT}
    missing |= {failure.name for failure in Failure if f"`{failure.name}`" not in TEXT}
    assert missing == set()
