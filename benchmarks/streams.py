"""Streams against raw AES-256-GCM over the same buffers, interleaved, in one run.

    python benchmarks/streams.py [--mebibytes 256] [--rounds 7]

Prints one Markdown row per case: the median throughput, and the median of its ratios to the raw
calls of the same round.  One thread; the key service is in memory, and asked once per stream.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import time
from collections.abc import Callable
from typing import IO, Any, cast

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kms_core import InstanceConfig, Kms, Settings
from kms_core.plugins import Found
from kms_core.testing import memory

SEGMENT = 1 << 18
AAD = bytes(9)
IV = bytes(12)


class Sink(io.RawIOBase):
    """Takes everything and keeps nothing."""

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, data: Any, /) -> int:
        """Only its length."""
        return len(data)


def raw_encrypt(aead: AESGCM, plain: memoryview, out: bytearray) -> None:
    """What cannot be avoided: one call a segment, into a reused buffer."""
    for start in range(0, len(plain), SEGMENT):
        chunk = plain[start : start + SEGMENT]
        aead.encrypt_into(IV, chunk, AAD, memoryview(out)[: len(chunk) + 16])


def raw_decrypt(aead: AESGCM, segments: list[memoryview], out: bytearray) -> None:
    """The same the other way round."""
    for segment in segments:
        aead.decrypt_into(IV, segment, AAD, memoryview(out)[: len(segment) - 16])


def timed(call: Callable[[], None]) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--mebibytes", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    plain = os.urandom(options.mebibytes << 20)
    view = memoryview(plain)
    aead = AESGCM(bytes(32))
    segments = [
        memoryview(bytearray(aead.encrypt(IV, view[start : start + SEGMENT], AAD)))
        for start in range(0, len(plain), SEGMENT)
    ]
    kms = Kms(
        Settings({"memory": InstanceConfig("memory")}),
        plugins=[Found("memory", "kms-core", "", 1, lambda: memory)],
    )
    sealed = io.BytesIO()
    with kms.sealing(sealed) as writer:
        writer.write(plain)
    out, buffer = bytearray(SEGMENT + 16), bytearray(1 << 20)

    def seal(piece: int) -> None:
        with kms.sealing(cast("IO[bytes]", Sink())) as writer:
            for start in range(0, len(view), piece):
                writer.write(view[start : start + piece])

    def open_() -> None:
        sealed.seek(0)
        with kms.opening(sealed) as reader:
            while reader.readinto(buffer):
                pass

    cases: dict[str, tuple[Callable[[], None], str]] = {
        "raw encrypt_into": (lambda: raw_encrypt(aead, view, out), "raw encrypt_into"),
        "sealing, 1 MiB writes": (lambda: seal(1 << 20), "raw encrypt_into"),
        "sealing, 64 KiB writes": (lambda: seal(1 << 16), "raw encrypt_into"),
        "raw decrypt_into": (lambda: raw_decrypt(aead, segments, out), "raw decrypt_into"),
        "opening, readinto 1 MiB": (open_, "raw decrypt_into"),
    }
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(options.rounds):
        for name, (call, _) in cases.items():
            times[name].append(timed(call))
    print("| case | MiB/s | ratio to raw |\n| --- | --- | --- |")
    for name, (_, base) in cases.items():
        ratios = [raw / own for raw, own in zip(times[base], times[name], strict=True)]
        speed = options.mebibytes / statistics.median(times[name])
        print(f"| {name} | {speed:.0f} | {statistics.median(ratios):.2f} |")
    kms.close()


if __name__ == "__main__":
    main()
