"""AWS KMS on loopback in a process of its own, as slow as it is told to be.

    python -m benchmarks.service

Prints its keys as JSON, one in each of three regions.  Every line it then reads is the number of
seconds that an answer takes from now on; it ends with its input.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any, Final, Self

from attrs import define, field

from benchmarks.remote import ROOT
from kms_core.testing.servers.closing import Closed

REGIONS: Final = ("us-east-1", "eu-central-1", "ap-southeast-2")
_PATIENCE: Final = 30.0


@define(eq=False)
class ServiceProcess(Closed):
    """That process, from the outside."""

    _process: subprocess.Popen[str]
    #: What ``benchmarks.peer.Service`` takes, for each region.
    services: list[dict[str, Any]] = field(factory=list)

    @classmethod
    def start(cls) -> Self:
        """It answers when this returns."""
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.service"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        started = cls(process)
        started.services = json.loads(started._said())
        return started

    def take(self, seconds: float) -> None:
        """Let answers take so long from now on."""
        if self._process.stdin is not None:
            self._process.stdin.write(f"{seconds}\n")
            self._process.stdin.flush()
            self._said()

    def _said(self) -> str:
        return self._process.stdout.readline() if self._process.stdout else ""

    def close(self) -> None:
        """Stop it."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def main() -> None:
    """Serve."""
    from kms_core.testing import Failure
    from kms_core.testing.servers import StrictAwsServer

    with StrictAwsServer() as server:
        keys = [
            {
                "url": server.endpoint_url,
                "region": region,
                "key": str(server.create_key(region)),
                "access_key_id": server.access_key_id,
                "secret_access_key": server.secret_access_key,
            }
            for region in REGIONS
        ]
        print(json.dumps(keys), flush=True)
        for line in sys.stdin:
            server.panel.heal()
            if float(line):
                server.panel.fail(Failure.SLOW, seconds=float(line))
            print("ready", flush=True)


if __name__ == "__main__":
    main()
