"""``kms`` as a process: what shells and scripts see."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kms_core.cli.exits import ExitCode

if TYPE_CHECKING:
    from tests.cli.conftest import Run

KMS = [sys.executable, "-m", "kms_core"]
PATIENCE = 60.0  # seconds until a process counts as hung
posix = pytest.mark.skipif(os.name != "posix", reason="signals and modes are POSIX")


def test_from_nothing_to_a_secret_and_back(process: Run) -> None:
    """Init, seal, open; another tenant, a flipped byte or a missing one get nothing."""
    assert process("init").code == 0
    sealed = process("seal", "--context", "tenant=42", "-o", "s.kms", stdin=b"secret")
    assert (sealed.code, sealed.out, sealed.err) == (0, b"", "")
    opened = process("open", "--context", "tenant=42", "s.kms")
    assert (opened.code, opened.out, opened.err) == (0, b"secret", "")
    good = Path("s.kms").read_bytes()
    flipped = good[:-1] + bytes((good[-1] ^ 1,))
    for tenant, data in (("43", good), ("42", flipped), ("42", good[:-1])):
        done = process("open", "--context", f"tenant={tenant}", stdin=data)
        assert (done.code, done.out) == (ExitCode.INTEGRITY, b"")
        assert done.complaint


def test_errors_have_no_traceback(process: Run) -> None:
    """Usage, configuration and system alike."""
    for arguments, code in (
        (["open", "absent"], ExitCode.FAILED),
        (["sael"], ExitCode.USAGE),
        (["--config", "absent.toml", "health"], ExitCode.USAGE),
    ):
        done = process(*arguments)
        assert (done.code, done.out) == (code, b"")
        assert done.complaint


@posix
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_reader_that_goes_away_is_no_error(
    initialised: Path, monkeypatch: pytest.MonkeyPatch, unbuffered: str
) -> None:
    """``kms open big | head -c 1`` is quiet on stderr, and does not pretend to have written all."""
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    Path("big").write_bytes(bytes(4 << 20))
    subprocess.run([*KMS, "seal", "big", "-o", "s.kms"], check=True, timeout=PATIENCE)
    with subprocess.Popen(
        [*KMS, "open", "s.kms"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as opening:
        assert opening.stdout is not None
        assert opening.stderr is not None
        assert opening.stdout.read(1) == b"\0"
        opening.stdout.close()
        said = opening.stderr.read()
        assert opening.wait(PATIENCE) == ExitCode.BROKEN_PIPE
    assert said == b""


def _like_in_a_terminal() -> None:
    """Whoever runs the tests in the background has had them ignore the signal."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@posix
def test_ctrl_c_ends_a_watch_with_130(initialised: Path) -> None:
    """After the first report, by the signal that a terminal sends."""
    with subprocess.Popen(
        [*KMS, "health", "--watch", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=_like_in_a_terminal,  # noqa: PLW1509
    ) as watching:
        assert watching.stdout is not None
        assert watching.stderr is not None
        assert b"healthy" in watching.stdout.readline()
        watching.send_signal(signal.SIGINT)
        said = watching.stderr.read()
        assert watching.wait(PATIENCE) == ExitCode.INTERRUPTED
    assert said == b""


def test_core_without_click_has_an_importable_command_line() -> None:
    """It says what to install, in one line."""
    code = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"click", "rich"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Block())
import kms_core.cli
kms_core.cli.main(["--help"])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, timeout=PATIENCE, check=False
    )
    assert (done.returncode, done.stdout) == (ExitCode.USAGE, b"")
    assert done.stderr.startswith(b"kms: the command line needs its extra: pip install")
    assert done.stderr.count(b"\n") == 1


def test_what_is_not_needed_is_not_imported() -> None:
    """Help and version start fast: no cryptography, no tables, no plugin."""
    code = """
import sys
from kms_core.cli import main
try:
    main(["--help"])
except SystemExit:
    heavy = {"cryptography", "rich", "kms_local", "kms_aws", "boto3", "tenacity"}
    sys.exit(", ".join(heavy & set(sys.modules)) or 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, timeout=PATIENCE, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")


@posix
def test_standard_streams_may_be_closed(initialised: Path) -> None:
    """As ``<&-`` and ``>&-`` do."""
    done = subprocess.run(
        ["/bin/sh", "-c", f"exec {sys.executable} -m kms_core seal <&- -o x"],
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == ExitCode.FAILED
    assert done.stderr.count(b"\n") == 1
    assert b"Traceback" not in done.stderr
