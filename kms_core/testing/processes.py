"""Other processes that the conformance suite looks into: a forked child and a fresh interpreter."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Final

from kms_core.testing.checks import expect

PATIENCE: Final = 60.0  # seconds until a thread or child counts as hung


def modules_after_importing(module: str) -> set[str]:
    """The top-level modules in a fresh interpreter that imported ``module``."""
    code = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    run = subprocess.run(  # noqa: S603  our own interpreter
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    expect(run.returncode == 0, f"import {module} failed: {run.stderr.strip()[-500:]}")
    return set(run.stdout.split())


def in_child(work: Callable[[], None]) -> str:
    """Run ``work`` in a forked child; what went wrong, or ``""``."""
    receiving, sending = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: forking beside threads
        child = os.fork()
    if child == 0:
        _report_and_exit(work, sending)
    os.close(sending)
    try:
        readable = _readable(receiving)
        if not readable:
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        said = os.read(receiving, 1000).decode(errors="replace") if readable else "it hung"
    finally:
        os.close(receiving)
    code = os.waitstatus_to_exitcode(status)
    return said or (f"it ended with exit code {code}" if code else "")


def _readable(descriptor: int) -> bool:
    """Whether something was said, or can no more be said, before patience ran out."""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        return bool(selector.select(PATIENCE))


def _report_and_exit(work: Callable[[], None], sending: int) -> None:
    """Never return into pytest: the child holds a copy of everything the parent must finish."""
    code, said = 1, "it failed"
    try:
        work()
        code, said = 0, ""
    except BaseException as exc:  # noqa: BLE001  reported by the parent
        said = f"{type(exc).__name__}: {exc}"[:1000]
    finally:
        os.write(sending, said.encode(errors="replace"))
        os._exit(code)
