"""``kms demo``: what a newcomer sees runs, is true, and leaves nothing behind."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import NoReturn

import pytest
from attrs import frozen
from click.testing import CliRunner

from kms_core.cli import demo as demonstration
from kms_core.testing.servers import AwsServer, SoftHsm

ACTS = (
    "1  The key services",
    "2  All is well",
    "3  aws goes down",
    "4  Its circuit breaker opens",
    "5  aws comes back",
    "6  Others fail in ways of their own",
    "7  What was sealed meanwhile is repaired",
    "8  One after the other goes",
    "9  Now only aws is left",
    "10  The end",
)
CLAIMS = (
    "it opens again, byte for byte",
    "aws was asked and is unavailable, so azure was asked and answered",
    "orders.csv is sealed without aws",
    "MISSING              aws-kms://arn:aws:kms:eu-west-1:",
    "the next seal does not even try aws",
    "health is degraded",
    "invoices.csv is sealed without azure and google, and says so",
    "to its callers azure is throttled",
    "to its callers google is unavailable",
    "rewrap added whoever was missing to orders.csv",
    "rewrap added whoever was missing to invoices.csv",
    "azure is gone: customers.csv opens through google",
    "orders.csv opens, though aws was down when it was sealed",
)
#: Whoever can run wherever the extra is installed.
ALWAYS = ("aws", "azure", "google", "local")
#: An environment in which anything that asks beyond this machine, or goes by the user's, fails.
HOSTILE = {
    "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
    "AWS_PROFILE": "not-there",
    "AZURE_AUTHORITY_HOST": "http://127.0.0.1:9",
    "GOOGLE_APPLICATION_CREDENTIALS": "not-there.json",
    "HTTPS_PROXY": "http://127.0.0.1:9",
    "HTTP_PROXY": "http://127.0.0.1:9",
    "KMS_CONFIG": "not-there.toml",
}


@frozen
class Run:
    """A finished run of the command, with the folders that it could have written to."""

    process: subprocess.CompletedProcess[str]
    group: int
    temporary: Path
    working: Path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The command as a newcomer starts it, once for all tests."""
    temporary, working = tmp_path_factory.mktemp("temporary"), tmp_path_factory.mktemp("working")
    command = [sys.executable, "-m", "kms_core", "demo"]
    environment = {**os.environ, **HOSTILE, "TMPDIR": str(temporary), "HOME": str(working)}
    process = subprocess.Popen(
        command,
        cwd=working,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=60)
    except BaseException:
        process.kill()
        process.communicate()
        raise
    finished = subprocess.CompletedProcess(command, process.returncode, out, err)
    return Run(finished, process.pid, temporary, working)


def test_it_succeeds_without_any_set_up(run: Run) -> None:
    """No configuration, no credentials, an environment full of traps: exit 0, nothing to say."""
    assert (run.process.returncode, run.process.stderr) == (0, "")


def test_every_act_is_played_in_order(run: Run) -> None:
    """The headings appear, each once and in order."""
    headings = [line for line in run.process.stdout.splitlines() if line in ACTS]
    assert headings == list(ACTS)


@pytest.mark.parametrize("claim", CLAIMS)
def test_it_shows_what_it_is_about(run: Run, claim: str) -> None:
    """Each promise of the product is on the screen."""
    assert claim in run.process.stdout


def test_the_configuration_is_shown_whole(run: Run) -> None:
    """What is printed can be copied into a file: it is the configuration that was used."""
    for line in (*(f"[instances.{name}]" for name in ALWAYS), 'recovery_timeout = "2s"'):
        assert line in run.process.stdout


def test_output_for_a_file_has_no_escape_sequences(run: Run) -> None:
    """Piped output is plain text."""
    assert "\x1b" not in run.process.stdout


def test_it_leaves_no_file(run: Run) -> None:
    """Temporary and working folder are as empty as before."""
    left = [*run.temporary.rglob("*"), *run.working.rglob("*")]
    assert left == []


@pytest.mark.skipif(os.name != "posix", reason="process groups are POSIX")
def test_it_leaves_no_process(run: Run) -> None:
    """Nobody of its process group is alive."""
    with pytest.raises(ProcessLookupError):
        os.killpg(run.group, 0)


def test_it_leaves_the_process_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Environment, threads and logging are as before when it has run."""
    monkeypatch.setenv("AWS_PROFILE", "not-there")
    log = logging.getLogger("kms_core")
    environment, threads = dict(os.environ), set(threading.enumerate())
    logging_as_it_was = (log.level, list(log.handlers))
    result = CliRunner().invoke(demonstration.demo)
    assert result.exit_code == 0, result.output
    assert dict(os.environ) == environment
    assert set(threading.enumerate()) <= threads
    assert (log.level, log.handlers) == logging_as_it_was


@pytest.mark.parametrize(("name", "missing"), [("aws", "moto"), ("softhsm", "kms_pkcs11")])
def test_a_missing_part_is_named_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, name: str, missing: str
) -> None:
    """The demonstration goes on without that service."""
    monkeypatch.setitem(sys.modules, missing, None)  # as if not installed
    result = CliRunner().invoke(demonstration.demo)
    assert result.exit_code == 0, result.output
    reason = f"{name} is left out: it needs {missing}: pip install 'kms-core[demo]'."
    assert f"     {reason}" in result.output.splitlines()
    assert f"[instances.{name}]" not in result.output


def test_without_softhsm_it_says_how_to_get_it_and_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is no Python package, so it is often not there."""
    monkeypatch.setattr(SoftHsm, "find", staticmethod(lambda: None))
    result = CliRunner().invoke(demonstration.demo)
    assert result.exit_code == 0, result.output
    assert "     softhsm is left out: SoftHSM 2 is not here: apt-get install" in result.output


def test_a_service_that_does_not_work_here_is_left_out_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A SoftHSM whose tools are missing is no reason to show nothing."""

    def fail(*_: object) -> NoReturn:
        raise OSError("no tools")

    monkeypatch.setattr(SoftHsm, "find", staticmethod(lambda: Path("module.so")))
    monkeypatch.setattr(SoftHsm, "__init__", fail)
    result = CliRunner().invoke(demonstration.demo)
    assert result.exit_code == 0, result.output
    assert "     softhsm is left out: it does not work here: no tools." in result.output


def test_with_too_few_services_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """One service and a local copy leave nobody to fail over to: exit 2, as any faulty set-up."""
    for missing in ("kms_aws", "kms_azure", "kms_pkcs11"):
        monkeypatch.setitem(sys.modules, missing, None)
    result = CliRunner().invoke(demonstration.demo)
    assert result.exit_code == 2
    assert result.stderr == (
        "kms: the demonstration needs more services than these: pip install 'kms-core[demo]'\n"
    )


def test_a_claim_that_does_not_hold_fails_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """If the service never came back, it would say so, exit 1 and still clean up."""
    monkeypatch.setattr(AwsServer, "restore", lambda _: None)
    monkeypatch.setattr(demonstration, "PATIENCE", 0.2)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = dict(os.environ)
    result = CliRunner().invoke(demonstration.demo, ["--no-color"])
    assert result.exit_code == 1
    assert result.output.splitlines()[-1].startswith("kms: this did not hold: two probes succeeded")
    assert list(tmp_path.iterdir()) == []
    assert dict(os.environ) == before
