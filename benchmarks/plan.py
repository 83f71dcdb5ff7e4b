"""What is measured: the cases of every suite, in full and in short.

A case names an operation; everybody who offers it is put to it, in turn, round by round.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from attrs import Factory, frozen

from benchmarks.timing import LONG_ENOUGH

#: Our variants, as the limits call them.
COMPACT: Final = "kms_core, compact"
INLINE: Final = "kms_core, inline"
PLAIN_DICT: Final = "kms_core, inline, context as a dict"

SIZES: Final = (16, 64, 256, 1 << 10, 1 << 14, 1 << 16, 1 << 20)
FEW_SIZES: Final = (256, 1 << 10, 1 << 14, 1 << 20)
THREADS: Final = (1, 2, 4, 8, 16)
DELAYS: Final = (0.0, 0.01, 0.03)  # seconds: an instant server, a near one, a usual one
HERD: Final = 64
HERD_DELAY: Final = 0.05
CROWDS: Final = ("seal, cold", "seal, expired", "open, cold")
STREAM_MEBIBYTES: Final = 1024
FILE_MEBIBYTES: Final = 1024

_CIPHER: Final = "bare AESGCM, constant nonce"
_SDK: Final = "bare boto3 Encrypt"


@frozen
class Case:
    """One thing to do, and how what it takes is told.

    ``factor`` turns nanoseconds per unit of work, or units per second, into ``unit``.
    """

    suite: str
    name: str
    operation: str
    base: str
    given: Mapping[str, Any] = Factory(dict)
    unit: str = "us"
    factor: float = 1e-3
    threads: int = 1
    samples: int = 1
    at_least: int = LONG_ENOUGH

    @property
    def request(self) -> dict[str, Any]:
        """What a runner is asked."""
        return {
            "do": "time",
            "operation": self.operation,
            "given": dict(self.given),
            "threads": self.threads,
            "samples": self.samples,
            "at_least": self.at_least,
        }


@frozen
class Suite:
    """Cases that take turns with each other, so many times."""

    name: str
    cases: tuple[Case, ...]
    rounds: int


def size_name(size: int) -> str:
    """256 B, 16 KiB, 1 MiB."""
    for exponent, unit in ((20, "MiB"), (10, "KiB")):
        if size >= 1 << exponent:
            return f"{size >> exponent} {unit}"
    return f"{size} B"


def delay_name(seconds: float) -> str:
    """How slow the service is."""
    return f"{seconds * 1e3:.0f} ms service" if seconds else "instant service"


def cached(*, quick: bool) -> Suite:
    """Sealing and opening with the data key at hand."""
    cases = [
        Case(
            "cached",
            f"{operation}, {size_name(size)}",
            operation,
            _CIPHER,
            {"bytes": size},
            samples=5,
        )
        for size in (FEW_SIZES if quick else SIZES)
        for operation in ("seal", "open")
    ]
    return Suite("cached", tuple(cases), 3 if quick else 9)


def threads(*, quick: bool) -> Suite:
    """Many threads that seal with one cached key."""
    cases = [
        Case(
            "threads",
            f"seal, {size_name(size)}, {count} thread{'s' if count > 1 else ''}",
            "seal",
            f"{_CIPHER}, as many threads",
            {"bytes": size},
            unit="calls/s",
            factor=1.0,
            threads=count,
            at_least=15 * LONG_ENOUGH,
        )
        for size in ((1 << 10,) if quick else (1 << 10, 1 << 20))
        for count in ((1, 16) if quick else THREADS)
    ]
    return Suite("threads", tuple(cases), 2 if quick else 3)


def layers(*, quick: bool) -> Suite:
    """What hooks, breakers and everything else add to a call of a provider."""
    cases = (
        Case(
            "layers",
            "around a provider in memory",
            "layer",
            "its method, called directly",
            samples=3,
        ),
        Case("layers", "circuit breaker", "breaker", "an empty function", samples=3),
        Case(
            "layers", "passing over", "passing over", "the same, one instance in reach", samples=3
        ),
    )
    return Suite("layers", cases, 3 if quick else 9)


def many(*, quick: bool) -> Suite:
    """A lot of small values under one data key."""
    values = 100_000 if quick else 1_000_000
    cases = tuple(
        Case(
            "many",
            f"{operation}, {values:,} values of 32 B",
            operation,
            f"{_CIPHER}, in a loop",
            {"values": values},
            unit="us/value",
        )
        for operation in ("seal many", "open many")
    )
    return Suite("many", cases, 3)


def streams(*, quick: bool) -> Suite:
    """Streams in memory, on one thread, to and from buffers."""
    mebibytes = 128 if quick else STREAM_MEBIBYTES
    cases = tuple(
        Case(
            "streams",
            operation,
            operation,
            f"bare {call} of 256 KiB into one buffer",
            {"mebibytes": mebibytes},
            unit="MiB/s",
            factor=1.0,
        )
        for operation, call in (("stream seal", "encrypt_into"), ("stream open", "decrypt_into"))
    )
    return Suite("streams", cases, 3 if quick else 7)


def files(folder: str, *, synced: bool, quick: bool) -> Suite:
    """From file to file; unless ``synced``, nobody waits for the disk."""
    given = {
        "folder": folder,
        "mebibytes": 128 if quick else FILE_MEBIBYTES,
        "synced": synced,
    }
    bases = {"file, beside a copy": "a plain copy loop"}
    if not synced:
        bases["file, beside one thread"] = "one thread"
    cases = tuple(
        Case(
            "files",
            f"{operation}{', on disk' if synced else ''}",
            operation,
            base,
            given,
            unit="MiB/s",
            factor=1.0,
        )
        for operation, base in bases.items()
    )
    return Suite("files", cases, 2 if quick or synced else 5)


def cold(services: list[dict[str, Any]], delay: float, *, quick: bool) -> Suite:
    """A fresh data key for every message, by services that take so long to answer."""
    recipients = {1: "1 recipient", 2: "2 recipients", 3: "3 recipients"}
    cases = tuple(
        Case(
            "cold",
            f"seal, {words}, {delay_name(delay)}",
            f"cold {count}",
            f"{_SDK}, one call",
            {"services": services, "delay": delay},
            unit="ms",
            factor=1e-6,
            samples=5,
        )
        for count, words in recipients.items()
        if not (quick and count == 2)
    )
    return Suite("cold", cases, 3 if quick else 7)
