"""The parent's side of a subject's process: asks for measurements, and does not wait for ever."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from attrs import frozen

from kms_core.testing.servers.closing import Closed

ROOT: Final = Path(__file__).parents[1]
PATIENCE: Final = 120.0  # seconds for the longest single request, which takes ten


class SubjectFailed(Exception):
    """A measurement broke, or its process did."""


@frozen
class Introduction:
    """Who a subject is, and what can be measured of it."""

    versions: Mapping[str, str]
    variants: Mapping[str, Mapping[str, Any]]
    offers: Mapping[str, Sequence[str]]


class Remote(Closed):
    """One subject, started when made and stopped by ``close``."""

    def __init__(self, module: str, python: Path, log: Path, *, patience: float = PATIENCE) -> None:
        self.module: Final = module
        self._patience = patience
        self._log = log.open("wb")
        self._process = subprocess.Popen(  # noqa: S603  our own program
            [python, "-m", "benchmarks.runner", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=ROOT,
            env=_environment(),
        )
        try:
            self.introduction: Final = Introduction(**self.ask(do="hello"))
        except BaseException:
            self.close()
            raise

    def ask(self, **request: Any) -> dict[str, Any]:
        """The answer; raises ``SubjectFailed``, and names where the subject's own words are."""
        line = self._exchanged(json.dumps(request))
        answer: dict[str, Any] = json.loads(line) if line else {"error": "its process ended"}
        if "error" in answer:
            raise SubjectFailed(f"{self.module}: {answer['error']} (see {self._log.name})")
        return answer

    def _exchanged(self, line: str) -> str:
        if self._process.stdin is None or self._process.stdout is None:
            return ""
        watchdog = threading.Timer(self._patience, self._process.kill)
        watchdog.start()
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
            return self._process.stdout.readline()
        except BrokenPipeError:
            return ""
        finally:
            watchdog.cancel()

    def close(self) -> None:
        """Let it end, or end it.  Idempotent."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):  # of what it had not read yet
                    pipe.close()
        try:
            self._process.wait(self._patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


def _environment() -> dict[str, str]:
    """Nothing of the developer's own services, and no waiting for a cloud that is not there."""
    foreign = ("AWS_", "AZURE_", "BOTO_", "GOOGLE_", "KMS_", "PYTHON")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return kept | {"AWS_EC2_METADATA_DISABLED": "true", "PYTHONDONTWRITEBYTECODE": "1"}
