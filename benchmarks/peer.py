"""What a library brings to be measured: how it seals, opens, streams and meets a crowd.

Peers run in environments of their own, so this module needs nothing beyond Python.  A peer is one
module in ``benchmarks/peers`` with ``NAME``, ``REQUIREMENTS`` (pinned), ``STATEMENT`` (what an
application starts with) and ``VARIANTS``; it imports its SDK inside functions, because the parent
reads those names without having it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, Final

#: What every message is bound to, and what the raw cipher gets as associated data.
CONTEXT: Final = {"tenant": "42", "table": "users"}
AAD: Final = b"\x00\x02\x00\x05table\x00\x05users\x00\x06tenant\x00\x0242"
CRYPTOGRAPHY: Final = "cryptography"  # every environment has it, for the raw figure beside a peer's

#: A call that is ready to be timed: no argument, nothing between it and the library.
Call = Callable[[], Any]


@dataclass(frozen=True)
class Vault:
    """Makes ready calls that seal these bytes, or open what such a call returned."""

    sealing: Callable[[bytes], Call]
    opening: Callable[[Any], Call]


@dataclass(frozen=True)
class Streams:
    """Seals a buffer into a sink, and reads a sealed source to its end."""

    seal: Callable[[memoryview, IO[bytes]], object]
    open: Callable[[IO[bytes]], object]
    mebibytes: int | None = None  # for the slow ones: less than what is asked for


class Tally:
    """Counts requests from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0

    def add(self) -> None:
        """One more."""
        with self._lock:
            self._count += 1

    def __call__(self) -> int:
        """How many so far."""
        return self._count


@dataclass(frozen=True)
class Herd:
    """Calls whose data key is in no cache yet, and how often the key services were asked."""

    call: Call
    asked: Callable[[], int]


@dataclass(frozen=True)
class Service:
    """A key of AWS KMS in one region, on the server of this run."""

    url: str
    region: str
    key: str
    access_key_id: str
    secret_access_key: str


@dataclass(frozen=True)
class Variant:
    """One way to use a library; what it cannot do is left out.

    ``envelope``: every message carries a data key that a key service wrapped, as ours do.
    ``cold``: a ready call that seals 256 bytes for all of these services, with no key cached.
    ``herd``: by what is crowded upon; gets the seconds that its key service takes.
    """

    name: str
    what: str
    envelope: bool
    cached: Callable[[], Vault] | None = None
    cold: Callable[[Sequence[Service]], Call] | None = None
    streams: Callable[[], Streams] | None = None
    herd: Mapping[str, Callable[[float], Herd]] | None = None
    most_services: int = 3


@dataclass(frozen=True)
class Duel:
    """Two ready calls that are timed in turn; ``units`` of work are in one call of either.

    ``before`` is run ahead of every call that is timed, and not timed itself.
    """

    base: Call
    subject: Call
    units: int = 1
    before: Call | None = None


#: What makes a duel of the parameters of a case.
MakeDuel = Callable[[Mapping[str, Any]], Duel]
