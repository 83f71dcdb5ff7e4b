"""A process that works with keys step by step, so that its memory can be looked at in between.

Every step is a line of JSON on stdin, and so is its answer on stdout.
"""

from __future__ import annotations

import base64
import gc
import json
import sys
from collections.abc import Callable
from typing import Any

from kms_core import Kms
from kms_core.envelope import Unlocked, split, unlock

CONTEXT = {"tenant": "42"}
SECRET = b"attack at dawn"


class Work:
    """The steps, by their names."""

    def __init__(self) -> None:
        self._kms: Kms | None = None
        self._held = bytearray()

    @property
    def kms(self) -> Kms:
        """The client that ``start`` made."""
        assert self._kms is not None
        return self._kms

    def start(self, config: str) -> None:
        """Make a client."""
        self._kms = Kms.from_config(config)

    def seal(self) -> str:
        """The last of some envelopes, in base64: the first may be sealed in another way."""
        sealed = [self.kms.seal(SECRET, CONTEXT) for _ in range(3)]
        return base64.b64encode(sealed[-1]).decode()

    def open(self, envelope: str) -> None:
        """Open what somebody sealed."""
        assert self.kms.open(base64.b64decode(envelope), CONTEXT) == SECRET

    def reveal(self, envelope: str) -> str:
        """The data key of an envelope: for the one who looks, never in the process looked at."""
        secrets = Unlocked()
        unlock(split(base64.b64decode(envelope))[0], self.kms._unwrap, secrets)
        return secrets.dek.hex()

    def hold(self, key: str) -> None:
        """Keep a key in the open."""
        self._held = bytearray.fromhex(key)

    def forget(self) -> None:
        """Drop what is kept for later."""
        forget: Callable[[], object] = getattr(self.kms, "forget", lambda: None)
        forget()
        gc.collect()

    def close(self) -> None:
        """End the client."""
        self.kms.close()
        self._kms = None
        gc.collect()


def main() -> None:
    """Do what is asked for until nobody asks any more."""
    work = Work()
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        answer = getattr(work, request.pop("step"))(**request)
        print(json.dumps({"answer": answer}), flush=True)  # noqa: T201  to whoever asked


if __name__ == "__main__":
    main()
