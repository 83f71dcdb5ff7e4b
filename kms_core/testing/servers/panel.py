"""What a server is told to do wrong, and how often it was asked.

One vocabulary for all services: a test says ``panel.fail(Failure.THROTTLE)`` and the server in
question says it in its own protocol.
"""

from __future__ import annotations

import threading
from collections import Counter
from enum import StrEnum
from typing import Final

from attrs import define, frozen

from kms_core.testing.servers.gate import Gate

SLOW_SECONDS: Final = 2.0


class Failure(StrEnum):
    """A way in which a service fails."""

    #: No connection: refused, and those that exist break.
    REFUSE = "refuse"
    #: Connections and requests are accepted, and nothing is answered.
    HANG = "hang"
    #: The connection breaks in the middle of an answer.
    RESET = "reset"
    #: A good answer, late: after ``seconds``.
    SLOW = "slow"
    #: Over quota; ``seconds`` is what the service says to wait, if it is given.
    THROTTLE = "throttle"
    #: The service is unwell: 503, UNAVAILABLE.
    SERVER_ERROR = "server-error"
    #: A success without the fields that make one.
    MALFORMED = "malformed"
    #: The caller may not do this.
    ACCESS_DENIED = "access-denied"
    #: The key exists and is disabled.
    KEY_DISABLED = "key-disabled"
    #: There is no such key.
    KEY_NOT_FOUND = "key-not-found"
    #: A good answer that names another key than the one that was asked for.
    WRONG_KEY = "wrong-key"
    #: A good answer whose checksum is wrong.
    CORRUPT_CRC = "corrupt-crc"


#: Those that the gate in front of a server plays; whatever is asked, they hit all of it.
OF_THE_LINE: Final = frozenset({Failure.REFUSE, Failure.HANG})


@frozen
class Order:
    """What to do wrong with one request."""

    failure: Failure
    seconds: float | None = None


@define(eq=False)
class _Standing:
    order: Order
    operation: str | None
    left: int | None


class Panel:
    """The switches of one server.  Thread-safe.

    ``failures`` are those that this service can have at all (only Google has checksums).
    Operations are called what the service calls them.
    """

    def __init__(self, failures: frozenset[Failure], gate: Gate | None = None) -> None:
        self.failures: Final = failures if gate else failures - OF_THE_LINE
        self._gate = gate
        self._lock = threading.Lock()
        self._standing: list[_Standing] = []
        self._counts: Counter[str] = Counter()
        self._healed = threading.Event()

    def fail(
        self,
        failure: Failure,
        *,
        operation: str | None = None,
        times: int | None = None,
        seconds: float | None = None,
    ) -> None:
        """Fail in this way until ``heal``; only in ``operation``, only ``times`` times if given.

        Earlier orders come first.  Failures of the line know neither operations nor numbers.
        """
        if failure not in self.failures:
            raise ValueError(f"this service has no failure {failure.value!r}")
        if failure not in OF_THE_LINE:
            with self._lock:
                self._healed.clear()
                self._standing.append(_Standing(Order(failure, seconds), operation, times))
            return
        if operation is not None or times is not None:
            raise ValueError(f"{failure.value} breaks the line: it cannot be limited")
        if self._gate is not None:
            (self._gate.cut if failure is Failure.REFUSE else self._gate.hang)()

    def heal(self) -> None:
        """Work again.  Slow answers are given at once; counts stay."""
        with self._lock:
            self._standing.clear()
            self._healed.set()
        if self._gate is not None:
            self._gate.restore()

    def count(self, operation: str | None = None) -> int:
        """Requests that reached the service so far: those of ``operation``, or all."""
        with self._lock:
            return self._counts.total() if operation is None else self._counts[operation]

    # --- the server's side -----------------------------------------------------------------------

    def arrived(self, operation: str) -> Order | None:
        """A request came in; what to do wrong with it.  ``SLOW`` has been slow on return."""
        with self._lock:
            self._counts[operation] += 1
            order = self._next(operation)
        if order is None or order.failure is not Failure.SLOW:
            return order
        self._healed.wait(SLOW_SECONDS if order.seconds is None else order.seconds)
        return None

    def close(self) -> None:
        """Let everybody go who is being kept waiting."""
        self._healed.set()

    def _next(self, operation: str) -> Order | None:
        for standing in self._standing:
            if standing.operation in {None, operation}:
                if standing.left is not None:
                    standing.left -= 1
                    if not standing.left:
                        self._standing.remove(standing)
                return standing.order
        return None
