"""``kms health`` and ``kms plugins``."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kms_core.cli import main
from kms_core.cli.exits import ExitCode
from kms_core.plugins import KNOWN_DISTRIBUTIONS

if TYPE_CHECKING:
    from tests.cli.conftest import Install, Run


# --- health --------------------------------------------------------------------------------------


def test_healthy_is_a_table(kms: Run, papers: Path) -> None:
    """With what each instance says of itself, made harmless."""
    done = kms("health")
    assert (done.code, done.err) == (0, "")
    for text in ("status: healthy", "east", "west", "closed", " ms", "on \\x1b[31mpaper"):
        assert text in done.text
    assert "\x1b" not in done.text


def test_health_as_json(kms: Run, papers: Path) -> None:
    """The keys that programs rely on."""
    report = json.loads(kms("health", "--json").out)
    assert list(report) == ["status", "reason", "instances"]
    assert (report["status"], report["reason"]) == ("healthy", "")
    east = report["instances"]["east"]
    assert list(east) == ["state", "breaker", "latency", "reason", "proven", "stuck"]
    assert (east["state"], east["breaker"]) == ("healthy", "closed")
    assert 0 <= east["latency"] < 10


def test_degraded_exits_with_0_and_says_so(kms: Run, papers: Path) -> None:
    """It works, and somebody should look."""
    (papers / "west.health").write_text("Unavailable")
    done = kms("health", "--json")
    assert done.code == ExitCode.OK
    assert done.complaint.startswith("degraded: west ")
    west = json.loads(done.out)["instances"]["west"]
    assert (west["state"], west["latency"]) == ("unhealthy", None)
    assert "unavailable" in west["reason"]
    assert "health is\\nscripted" in kms("health").text


def test_unhealthy_exits_with_3(kms: Run, papers: Path) -> None:
    """Sealing would fail."""
    for name in ("east", "west"):
        (papers / f"{name}.health").write_text("AccessDenied")
    done = kms("health")
    assert done.code == ExitCode.UNAVAILABLE
    assert done.complaint.startswith("unhealthy: ")
    assert "status: unhealthy" in done.text


def test_watching_asks_until_interrupted(
    kms: Run, papers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One JSON object a line, each asked for anew, with the pause that was wished for."""
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            raise KeyboardInterrupt
        (papers / "west.health").write_text("Unavailable")

    monkeypatch.setattr("kms_core.cli.status.sleep", pause)
    done = kms("health", "--watch", "--json", "--interval", "500ms")
    assert (done.code, done.err, pauses) == (ExitCode.INTERRUPTED, "", [0.5, 0.5])
    reports = [json.loads(line) for line in done.out.splitlines()]
    assert [report["status"] for report in reports] == ["healthy", "degraded"]


def test_watching_without_a_terminal_writes_table_after_table(
    kms: Run, papers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is nothing to redraw."""

    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kms_core.cli.status.sleep", interrupt)
    done = kms("health", "--watch")
    assert (done.code, done.text.count("status: healthy")) == (ExitCode.INTERRUPTED, 1)


class _Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_watching_on_a_terminal_redraws(papers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each report takes the place of the one before, and the screen is left in order."""
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            raise KeyboardInterrupt

    screen = _Screen()
    monkeypatch.setattr("kms_core.cli.status.sleep", pause)
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    with pytest.raises(SystemExit) as exited:
        main(["health", "--watch"])
    assert (exited.value.code, pauses) == (ExitCode.INTERRUPTED, [2.0, 2.0])
    assert screen.getvalue().count("status: healthy") >= 2
    assert "\x1b[?25h" in screen.getvalue()  # the cursor is back


@pytest.mark.parametrize("interval", ["often", "0s", "-1s"])
def test_interval_is_a_duration(kms: Run, papers: Path, interval: str) -> None:
    """Written as in the configuration, and not so short that it harms the services."""
    done = kms("health", "--watch", "--interval", interval)
    assert (done.code, done.out) == (ExitCode.USAGE, b"")
    assert "interval" in done.complaint


# --- plugins -------------------------------------------------------------------------------------


def _rows(kms: Run, *arguments: str) -> dict[str, Any]:
    done = kms("plugins", "--json", *arguments)
    assert done.code == 0
    return {row["name"]: row for row in json.loads(done.out)}


def test_plugins_are_checked_and_needed_ones_marked(
    kms: Run, papers: Path, install: Install
) -> None:
    """Broken ones are listed with their reason and stop nobody."""
    install("broken", "broken_plugin")
    done = kms("plugins")
    assert (done.code, done.err) == (0, "")
    rows = _rows(kms)
    assert rows["paper"] == {
        "name": "paper",
        "state": "loaded",
        "needed": True,
        "distribution": "paper-plugin",
        "version": "1.0",
        "hooks": ["kms_register_commands", "decrypt", "encrypt", "health"],
        "reason": "",
    }
    assert (rows["broken"]["state"], rows["broken"]["needed"]) == ("failed", False)
    assert "out of order" in rows["broken"]["reason"]
    for text in ("paper-plugin 1.0", "loaded", "yes", "failed", "out of order"):
        assert text in done.text


@pytest.mark.parametrize("check", ["--check", "--no-check"])
def test_needed_and_missing_is_listed(
    kms: Run, papers: Path, monkeypatch: pytest.MonkeyPatch, check: str
) -> None:
    """With what to install, whether or not anything is imported."""
    monkeypatch.setitem(KNOWN_DISTRIBUTIONS, "unheard-of", "kms-unheard-of")
    text = (papers / "kms.toml").read_text()
    Path("kms.toml").write_text('plugins = ["audited"]\n' + text.replace("paper", "unheard-of", 1))
    rows = _rows(kms, check)
    assert (rows["unheard-of"]["state"], rows["unheard-of"]["needed"]) == ("missing", True)
    assert rows["unheard-of"]["reason"] == "pip install kms-unheard-of"
    assert rows["audited"]["state"] == "missing"


def test_without_check_nothing_is_imported(kms: Run, papers: Path, install: Install) -> None:
    """What is broken is not noticed then."""
    install("broken", "broken_plugin")
    rows = _rows(kms, "--no-check")
    assert (rows["broken"]["state"], rows["broken"]["hooks"]) == ("available", [])
    assert (rows["paper"]["state"], rows["paper"]["needed"]) == ("available", True)


@pytest.mark.parametrize("configuration", [None, "[broken", "[instances]\n"])
def test_plugins_are_listed_without_a_usable_configuration(
    kms: Run, folder: Path, configuration: str | None
) -> None:
    """Which ones are needed is then unknown, and said so in one line."""
    if configuration is not None:
        (folder / "kms.toml").write_text(configuration)
        (folder / "kms.toml").chmod(0o600)
    done = kms("plugins", "--json")
    assert done.code == 0
    assert done.complaint.startswith("which plugins are needed is not known: ")
    assert {row["needed"] for row in json.loads(done.out)} == {None}
