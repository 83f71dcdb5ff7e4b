"""The figures that a run is held to: what was measured, the limit, and whether it is met.

Missing a limit is a finding, not an error.  What was not measured is said to be so.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from attrs import frozen

from benchmarks import plan, startup
from benchmarks.plan import COMPACT, INLINE, PLAIN_DICT, delay_name, size_name
from benchmarks.results import Results

_FACE_VALUE: Final = 1.0


@frozen
class Verdict:
    """One limit; ``met`` is ``None`` where nothing was measured or nothing is judged."""

    name: str
    measured: float | None
    limit: float
    at_most: bool
    unit: str = "x"
    note: str = ""
    judged: bool = True

    @property
    def met(self) -> bool | None:
        """Whether the figure is on the right side of its limit."""
        if self.measured is None or not self.judged:
            return None
        return self.measured <= self.limit if self.at_most else self.measured >= self.limit


@frozen
class Peer:
    """What a variant of another library is compared as."""

    name: str
    envelope: bool


def verdicts(results: Results, peers: Iterable[Peer]) -> list[Verdict]:
    """Every limit there is."""
    return [
        *_beside_the_cipher(results),
        *_beside_peers(results, list(peers)),
        *_many_values(results),
        *_streams_and_files(results),
        *_cold(results),
        *_herd(results),
        *_starting(results),
    ]


def _figure(find: Callable[[], float]) -> float | None:
    try:
        return find()
    except KeyError:
        return None


def _worst(find: Callable[[str], float], cases: Iterable[str]) -> tuple[float | None, str]:
    """The largest of what was measured, and in which case."""
    figures = [(figure, case) for case in cases if (figure := _found(find, case)) is not None]
    return max(figures, default=(None, ""))


def _found(find: Callable[[str], float], case: str) -> float | None:
    return _figure(lambda: find(case))


# --- cached --------------------------------------------------------------------------------------

_CACHED: Final = (
    ("compact seal, 256 B", "seal, 256 B", COMPACT, 2.6),
    ("compact open, 256 B", "open, 256 B", COMPACT, 2.0),
    ("inline seal, 256 B", "seal, 256 B", INLINE, 2.8),
    ("inline open, 256 B", "open, 256 B", INLINE, 4.0),
    ("seal, 256 B, context as a dict", "seal, 256 B", PLAIN_DICT, 6.0),
    ("open, 256 B, context as a dict", "open, 256 B", PLAIN_DICT, 6.0),
    ("compact seal, 16 KiB", "seal, 16 KiB", COMPACT, 1.8),
    ("compact open, 16 KiB", "open, 16 KiB", COMPACT, 1.8),
    ("inline seal, 16 KiB", "seal, 16 KiB", INLINE, 1.8),
    ("inline open, 16 KiB", "open, 16 KiB", INLINE, 1.8),
    ("compact seal, 1 MiB", "seal, 1 MiB", COMPACT, 1.2),
    ("compact open, 1 MiB", "open, 1 MiB", COMPACT, 1.2),
    ("inline seal, 1 MiB", "seal, 1 MiB", INLINE, 1.2),
    ("inline open, 1 MiB", "open, 1 MiB", INLINE, 1.2),
)


def _beside_the_cipher(results: Results) -> Iterator[Verdict]:
    for name, case, subject, limit in _CACHED:
        measured = _ratio(results, "cached", case, subject)
        yield Verdict(f"{name}: time / bare AESGCM", measured, limit, at_most=True)


def _ratio(results: Results, suite: str, case: str, subject: str) -> float | None:
    return _figure(lambda: results.ratio(suite, case, subject))


# --- peers ---------------------------------------------------------------------------------------


def _beside_peers(results: Results, peers: list[Peer]) -> Iterator[Verdict]:
    """Both sides as ratios to the bare cipher in their own process: times drift, ratios do not."""
    for peer in sorted(peers, key=lambda peer: not peer.envelope):
        for operation in ("seal", "open"):
            measured, where = _worst(
                _against(results, peer.name), [f"{operation}, {size_name(n)}" for n in plan.SIZES]
            )
            note = f"worst at {where.partition(', ')[2]}" if where else ""
            if not peer.envelope:
                note = f"{note}; not judged: it makes no envelope".removeprefix("; ")
            yield Verdict(
                f"inline {operation}, every size: time / {peer.name}",
                measured,
                _FACE_VALUE,
                at_most=True,
                note=note,
                judged=peer.envelope,
            )
    for name, limit in (("ESDK caching, unsigned", 40.0), ("ESDK caching, default", 150.0)):
        for operation in ("seal", "open"):
            times = _found(_against(results, name), f"{operation}, 1 KiB")
            measured = None if times is None else 1 / times
            yield Verdict(
                f"inline {operation}, 1 KiB: times faster than {name}",
                measured,
                limit,
                at_most=False,
            )


def _against(results: Results, peer: str) -> Callable[[str], float]:
    return lambda case: results.ratio("cached", case, INLINE) / results.ratio("cached", case, peer)


# --- the rest ------------------------------------------------------------------------------------


def _many_values(results: Results) -> Iterator[Verdict]:
    cases = [row.case for row in results if row.suite == "many" and "seal" in row.case]
    for case in cases or ["seal many"]:
        measured = _ratio(results, "many", case, "kms_core, seal_many")
        yield Verdict(f"{case}: time / bare AESGCM", measured, 2.2, at_most=True)


def _streams_and_files(results: Results) -> Iterator[Verdict]:
    for operation in ("seal", "open"):
        measured = _speed(results, "streams", f"stream {operation}", INLINE)
        yield Verdict(
            f"stream {operation} in memory, one thread: speed / bare cipher",
            measured,
            0.9,
            at_most=False,
        )
    for subject in ("sealing, one thread", "opening, one thread"):
        measured = _speed(results, "files", "file, beside a copy", subject)
        yield Verdict(f"file to file, {subject}: speed / a copy loop", measured, 0.6, at_most=False)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    enough = (cores or 1) > 1
    for subject in ("seal_file", "open_file"):
        measured = _speed(results, "files", "file, beside one thread", subject)
        yield Verdict(
            f"file to file, {subject} on two threads: speed / one thread",
            measured,
            1.4,
            at_most=False,
            note="" if enough else "not judged: one core",
            judged=enough,
        )


def _speed(results: Results, suite: str, case: str, subject: str) -> float | None:
    ratio = _ratio(results, suite, case, subject)
    return None if ratio is None else 1 / ratio


def _cold(results: Results) -> Iterator[Verdict]:
    for recipients, limit in (("1 recipient", 1.1), ("3 recipients", 1.2)):
        for delay in plan.DELAYS:
            measured = _ratio(results, "cold", f"seal, {recipients}, {delay_name(delay)}", INLINE)
            yield Verdict(
                f"cold seal, {recipients}, {delay_name(delay)}: time / one boto3 Encrypt",
                measured,
                limit,
                at_most=True,
            )


def _herd(results: Results) -> Iterator[Verdict]:
    recipients = 2
    for crowd, limit in zip(plan.CROWDS, (recipients, recipients, 1), strict=True):
        case = f"{crowd}, {plan.HERD} threads, requests"
        measured = _figure(lambda case=case: results.value("herd", case, INLINE))  # type: ignore[misc]
        yield Verdict(
            f"{crowd} key, {plan.HERD} threads, {recipients} recipients: requests to services",
            measured,
            limit,
            at_most=True,
            unit="",
        )


def _starting(results: Results) -> Iterator[Verdict]:
    for source in ("import kms_core", "from kms_core import Kms"):
        time = _figure(lambda source=source: results.value(startup.SUITE, startup.TIME, source))  # type: ignore[misc]
        yield Verdict(f"{source}: time", time, 60.0, at_most=True, unit="ms")
        yield Verdict(
            f"{source}: memory over cryptography",
            _more_memory(results, source),
            12.0,
            at_most=True,
            unit="MiB",
        )
    for provider in ("local", "pkcs11"):
        name = startup.with_keys(provider, startup.CACHED_KEYS)
        peak = _figure(lambda name=name: results.value(startup.SUITE, startup.MEMORY, name))  # type: ignore[misc]
        yield Verdict(f"{name}: memory", peak, 50.0, at_most=True, unit="MiB")


def _more_memory(results: Results, name: str) -> float | None:
    def more() -> float:
        bare = results.value(startup.SUITE, startup.MEMORY, startup.CRYPTOGRAPHY)
        return results.value(startup.SUITE, startup.MEMORY, name) - bare

    return _figure(more)
