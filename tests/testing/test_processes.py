"""Looking into other processes: what a forked child did is known, even if it cannot say so."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from kms_core.testing import processes
from kms_core.testing.processes import in_child, modules_after_importing

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="platform: no os.fork")


def _fail() -> None:
    raise ValueError("no such luck")


def _hang() -> None:
    threading.Event().wait()


def test_child_that_succeeds_has_nothing_to_say() -> None:
    """Success is silence."""
    assert in_child(lambda: None) == ""


def test_childs_error_is_reported() -> None:
    """The error's type and text cross over."""
    assert in_child(_fail) == "ValueError: no such luck"


def test_child_that_dies_is_reported() -> None:
    """A crash leaves only an exit code."""
    killed = in_child(lambda: os.kill(os.getpid(), signal.SIGKILL))
    assert killed == f"it ended with exit code {-signal.SIGKILL}"
    assert in_child(lambda: os._exit(3)) == "it ended with exit code 3"


def test_child_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A deadlock in the child fails the test instead of holding it up."""
    monkeypatch.setattr(processes, "PATIENCE", 0.1)
    assert in_child(_hang) == "it hung"


def test_import_is_looked_at_in_a_fresh_interpreter() -> None:
    """What this process has loaded does not count, and a failing import says why."""
    loaded = modules_after_importing("json")
    assert "json" in loaded
    assert "pytest" not in loaded
    with pytest.raises(pytest.fail.Exception, match="No module named 'absent_module'"):
        modules_after_importing("absent_module")
