"""Life in a process: threads, forks and the end."""

from __future__ import annotations

import os
import threading
from typing import Any, Final

import pytest

from kms_core.context import Context
from kms_core.testing.checks import KEY_BYTES, encrypt, expect, expect_opens
from kms_core.testing.processes import PATIENCE, in_child
from kms_core.testing.suite.declared import Declared, needs

_THREADS: Final = 8


class Living(Declared):
    """What an instance goes through while it lives."""

    @needs("encrypts")
    def test_threads_share_an_instance(self, provider: Any, key_id: str) -> None:
        """Eight threads wrap and unwrap at once, each getting back its own."""
        start = threading.Barrier(_THREADS)
        failures: list[BaseException] = []

        def work(number: int) -> None:
            context = Context({"thread": str(number)})
            try:
                start.wait(PATIENCE)
                for _ in range(self.thread_round_trips):
                    plaintext = os.urandom(KEY_BYTES)
                    sealed = encrypt(provider, key_id, plaintext, context)
                    expect_opens(provider, sealed, plaintext, context)
            except BaseException as exc:  # noqa: BLE001  carried to the test's own thread
                failures.append(exc)

        threads = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(_THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        expect(not any(thread.is_alive() for thread in threads), "threads block each other")
        if failures:
            raise failures[0]

    @needs("encrypts", "survives_fork")
    def test_forked_child_goes_on(self, provider: Any, key_id: str) -> None:
        """After a fork both processes unwrap what was wrapped before, and wrap anew."""
        if not hasattr(os, "fork"):
            pytest.skip("platform: no os.fork")
        plaintext = os.urandom(KEY_BYTES)
        sealed = encrypt(provider, key_id, plaintext)

        def work() -> None:
            expect_opens(provider, sealed, plaintext)
            expect_opens(provider, encrypt(provider, key_id, plaintext), plaintext)

        work()
        failure = in_child(work)
        expect(not failure, f"in a forked child: {failure}")
        work()

    def test_close_may_be_repeated(self, provider: Any) -> None:
        """Closing twice is closing once."""
        close = getattr(provider, "close", None)
        if close is None:
            pytest.skip("declared: no close() method")
        close()
        close()
