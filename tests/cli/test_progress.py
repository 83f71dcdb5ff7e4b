"""The bar for whoever watches a long copy."""

from __future__ import annotations

import io
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kms_core.cli import progress
from kms_core.cli.progress import Meter

if TYPE_CHECKING:
    from tests.cli.conftest import Run


class _Terminal(io.StringIO):
    """A screen as stderr; pytest puts its own there before each test, hence so late."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self._monkeypatch = monkeypatch

    def isatty(self) -> bool:
        return True

    def meter(self, total: int | None, *, quiet: bool = False) -> Meter:
        """A meter that sees this screen."""
        self._monkeypatch.setattr(sys, "stderr", self)
        return Meter(total, quiet=quiet)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> _Terminal:
    """A screen that can move its cursor, and a bar from the fourth byte on."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(progress, "FROM_BYTES", 3)
    return _Terminal(monkeypatch)


def test_bar_is_drawn_where_much_is_known_to_come(terminal: _Terminal) -> None:
    """From the first byte on, and it is gone at the end."""
    with terminal.meter(10) as meter:
        meter(1)
        meter(9)
    assert meter.done == 10
    assert "10/10 bytes" in terminal.getvalue()
    assert terminal.getvalue().endswith("\x1b[2K")


def test_bar_is_drawn_once_much_has_come(terminal: _Terminal) -> None:
    """Where only the end will tell how much it is."""
    with terminal.meter(None) as meter:
        meter(3)
        assert terminal.getvalue() == ""
        meter(1)
    assert terminal.getvalue() != ""


def test_little_is_done_in_silence(terminal: _Terminal) -> None:
    """There would be no time to read a bar."""
    with terminal.meter(3) as meter:
        meter(3)
    assert terminal.getvalue() == ""


def test_output_on_the_same_screen_is_not_disturbed(terminal: _Terminal) -> None:
    """Nor is there a bar if nobody watches."""
    with terminal.meter(10, quiet=True) as meter:
        meter(10)
    assert terminal.getvalue() == ""


@pytest.mark.parametrize("stderr", [io.StringIO(), None])
def test_no_terminal_means_no_bar(
    monkeypatch: pytest.MonkeyPatch, stderr: io.StringIO | None
) -> None:
    """A log file gets no control characters, and a closed stderr is no reason to fail."""
    monkeypatch.setattr(progress, "FROM_BYTES", 3)
    monkeypatch.setattr(sys, "stderr", stderr)
    with Meter(10) as meter:
        meter(10)
    assert meter.done == 10
    assert stderr is None or stderr.getvalue() == ""


def test_bar_is_gone_after_an_error(terminal: _Terminal) -> None:
    """The line that explains it starts on an empty one."""
    with suppress(ValueError), terminal.meter(10) as meter:
        meter(5)
        raise ValueError("fault")
    assert terminal.getvalue().endswith("\x1b[2K")


def test_stdout_stays_what_it_is(terminal: _Terminal) -> None:
    """It carries the output while the bar is drawn."""
    with terminal.meter(10) as meter:
        before = sys.stdout
        meter(10)
        assert sys.stdout is before


def test_commands_that_are_not_watched_say_nothing(
    kms: Run, initialised: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much there is to do."""
    monkeypatch.setattr(progress, "FROM_BYTES", 3)
    Path("plain").write_bytes(bytes(3 << 20))
    for arguments in (["seal", "plain", "-o", "s"], ["open", "s", "-o", "again"], ["open", "s"]):
        done = kms(*arguments)
        assert (done.code, done.err) == (0, "")
