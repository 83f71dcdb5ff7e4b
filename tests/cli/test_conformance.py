"""``kms conformance``: the suite against a configured instance, whose key stays as it is."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kms_core.cli.exits import ExitCode

if TYPE_CHECKING:
    from tests.cli.conftest import Install, Outcome, Run

MEMORY = '[instances.{name}]\nprovider = "memory"\nkey = "{key}"\nkind = "{kind}"\n'


def of(done: Outcome) -> Any:
    """The report that ``--json`` wrote."""
    return json.loads(done.out)


def outcomes(report: Any) -> dict[str, str]:
    """Each check's outcome, by name."""
    return {check["name"]: check["outcome"] for check in report["checks"]}


@pytest.fixture
def memory(install: Install, folder: Path) -> Path:
    """Instances with keys of several kinds, in services of their own."""
    install("memory", "memory_plugin")
    kinds = {
        "wraps": "AES-256-GCM",
        "public": "RSA-OAEP",
        "signs": "ECDSA-P256",
        "macs": "HMAC-SHA384",
    }
    tables = [MEMORY.format(name=name, key=name, kind=kind) for name, kind in kinds.items()]
    (folder / "kms.toml").write_text("".join(tables) + '[envelope]\nrecipients = ["wraps"]\n')
    return folder


def test_instance_that_keeps_the_contract_passes(kms: Run, initialised: Path) -> None:
    """Exit code 0, why checks were left out, and how many there were."""
    before = (initialised / "kms-local.keys").read_bytes()
    done = kms("conformance", "local")
    assert (done.code, done.err) == (ExitCode.OK, "")
    *skips, summary = done.text.splitlines()
    assert all(line.startswith("skipped ") for line in skips)
    assert any(line.endswith(": this service is not to be made to fail") for line in skips)
    assert "skipped 2: the key is changed only with --rotate" in skips
    assert " passed, 0 failed, " in summary
    assert (initialised / "kms-local.keys").read_bytes() == before


def test_key_is_rotated_only_if_asked(kms: Run, initialised: Path) -> None:
    """``--rotate`` makes new versions."""
    before = (initialised / "kms-local.keys").read_bytes()
    report = of(kms("conformance", "local", "--json", "--rotate", "-k", "rotation and old_wraps"))
    assert outcomes(report) == {"rotation_is_recorded_and_old_wraps_open": "passed"}
    assert (initialised / "kms-local.keys").read_bytes() != before


def test_broken_instance_fails(kms: Run, papers: Path) -> None:
    """One line for each check that fails, and exit code 1."""
    done = kms("conformance", "east")
    assert (done.code, done.err) == (ExitCode.FAILED, "")
    failed = [line for line in done.text.splitlines() if line.startswith("failed: ")]
    assert "failed: plaintext_that_is_not_bytes_is_refused[str]: " in "".join(failed)
    assert all("\x1b" not in line for line in failed)
    assert f", {len(failed)} failed, " in done.text.splitlines()[-1]


def test_json_has_every_check(kms: Run, papers: Path) -> None:
    """With its outcome and the reason; counts are those of the list."""
    done = kms("conformance", "east", "--json", "-k", "empty_plaintext or round_trip")
    report = of(done)
    assert (done.code, report["instance"], report["failed"]) == (ExitCode.FAILED, "east", 1)
    assert len(report["checks"]) == sum(report[name] for name in ("passed", "failed", "skipped"))
    (empty,) = [check for check in report["checks"] if check["name"].startswith("empty")]
    assert empty == {
        "name": "empty_plaintext_is_refused",
        "outcome": "failed",
        "reason": "an empty plaintext was accepted; raise InvalidRequest",
    }


def test_what_a_key_can_do_is_found_out(kms: Run, memory: Path) -> None:
    """Keys that wrap to the public and keys that sign are checked as what they are."""
    public = outcomes(of(kms("conformance", "public", "--json")))
    assert public["wrap_made_here_opens_there"] == "passed"
    assert public["round_trip[max]"] == "passed"
    signs = outcomes(of(kms("conformance", "signs", "--json")))
    assert signs["signature_verifies_here[ECDSA-SHA256-max]"] == "passed"
    assert signs["round_trip[32]"] == "skipped"
    macs = outcomes(of(kms("conformance", "macs", "--json")))
    assert macs["signature_is_accepted[HMAC-SHA384-4096]"] == "passed"
    for found in (public, signs, macs):
        assert "failed" not in found.values()


def test_instance_out_of_reach_is_told_as_such(kms: Run, papers: Path) -> None:
    """An outage is no breach of the contract."""
    (papers / "east.encrypt").write_text("Unavailable")
    done = kms("conformance", "east")
    assert (done.code, done.out) == (ExitCode.UNAVAILABLE, b"")
    assert "scripted" in done.complaint


def test_instance_that_crashes_is_checked_nevertheless(kms: Run, papers: Path) -> None:
    """Of an error that is not ours only the kind is shown: its message may quote anything."""
    (papers / "east.encrypt").write_text("NoSuchError")  # the plugin stumbles over that
    done = kms("conformance", "east", "-k", "round_trip and 32")
    assert (done.code, done.err) == (ExitCode.FAILED, "")
    assert done.text.splitlines()[0] == "failed: round_trip[32]: it raised AttributeError"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nobody"], "no instance 'nobody'; there are: east, west"),
        (["east", "-k", "nothing"], "no check matches 'nothing'"),
        (["east", "-k", "("], "no check matches '('"),
        ([], "Missing argument 'INSTANCE'"),
    ],
    ids=["unknown instance", "no match", "bad expression", "no instance"],
)
def test_usage_errors_are_one_line(
    kms: Run, papers: Path, arguments: list[str], expected: str
) -> None:
    """Exit code 2."""
    done = kms("conformance", *arguments)
    assert (done.code, done.out) == (ExitCode.USAGE, b"")
    assert expected in done.complaint


@pytest.mark.parametrize("absent", ["pytest", "hypothesis"])
def test_without_the_extra_it_says_what_to_install(
    kms: Run, papers: Path, monkeypatch: pytest.MonkeyPatch, absent: str
) -> None:
    """Who uses the command line need not have a test framework."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "kms_core.cli.conformance.find_spec",
        lambda name: None if name == absent else find_spec(name),
    )
    done = kms("conformance", "east")
    assert done.code == ExitCode.USAGE
    assert "pip install 'kms-core[testing]'" in done.complaint


def test_a_developers_own_pytest_settings_change_nothing(
    kms: Run, papers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither variables nor files that are meant for other tests."""
    monkeypatch.setenv("PYTEST_ADDOPTS", "--no-such-option")
    (papers / "conftest.py").write_text("raise RuntimeError")
    (papers / "pytest.ini").write_text("[pytest]\naddopts = --no-such-option\n")
    done = kms("conformance", "east", "-k", "round_trip[32]")
    assert (done.code, done.text) == (ExitCode.OK, "1 passed, 0 failed, 0 skipped\n")
