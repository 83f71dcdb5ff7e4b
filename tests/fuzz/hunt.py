"""Tries inputs on a target, and keeps count: outcomes, faults, the slowest and the hungriest."""

from __future__ import annotations

import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterable

from attrs import define, field, frozen

from tests.fuzz.mutate import Mutator
from tests.fuzz.targets import Target

MAX_SECONDS = 0.05
MAX_MEMORY = 8 << 20  # beside the input itself
_MEMORY_EVERY = 64  # inputs; measuring it takes several times as long as the input
_REPEATS = 3  # of what took long: the machine may have been busy


@frozen
class Fault:
    """An input that broke a promise, and how."""

    data: bytes = field(repr=False)
    reason: str


@define
class Report:
    """What came of all inputs so far."""

    tried: int = 0
    outcomes: Counter[str] = field(factory=Counter)
    faults: dict[str, Fault] = field(factory=dict)
    slowest: float = 0.0
    slowest_input: bytes = field(default=b"", repr=False)
    memory: int = 0

    def add(self, fault: Fault) -> None:
        """Keep the shortest input for each reason."""
        known = self.faults.get(fault.reason)
        if known is None or len(fault.data) < len(known.data):
            self.faults[fault.reason] = fault


def mutations(target: Target, seed: int) -> Mutator:
    """The endless inputs of this target that a seed stands for."""
    return Mutator(list(target.seeds().values()), target.grammar, seed)


def hunt(
    target: Target,
    inputs: Iterable[bytes],
    *,
    max_seconds: float = MAX_SECONDS,
    enough: Callable[[], bool] = lambda: False,
) -> Report:
    """Try inputs until there are no more, or it is enough."""
    report = Report()
    for data in inputs:
        if enough():
            break
        _try(target, data, report, max_seconds)
        if report.tried % _MEMORY_EVERY == 0:
            _weigh(target, data, report)
    return report


def _try(target: Target, data: bytes, report: Report, max_seconds: float) -> None:
    report.tried += 1
    seconds, outcome = _timed(target, data)
    for _ in range(_REPEATS if seconds > min(report.slowest, max_seconds) else 0):
        seconds = min(seconds, _timed(target, data)[0])
    if seconds > report.slowest:
        report.slowest, report.slowest_input = seconds, data
    if seconds > max_seconds:
        report.add(Fault(data, f"took longer than {max_seconds:g} s"))
    if isinstance(outcome, Fault):
        report.add(outcome)
    else:
        report.outcomes[outcome] += 1


def _timed(target: Target, data: bytes) -> tuple[float, str | Fault]:
    started = time.perf_counter()
    outcome = attempt(target, data)
    return time.perf_counter() - started, outcome


def attempt(target: Target, data: bytes) -> str | Fault:
    """How one input was met."""
    try:
        return target.check(data)
    except Exception as exc:  # noqa: BLE001  # this is what a fuzzer looks for
        return Fault(data, _reason(exc))


def _reason(error: BaseException) -> str:
    """The same for the same fault, whatever the input."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    code = trace.tb_frame.f_code.co_qualname if trace is not None else "?"
    said = f": {error}" if isinstance(error, AssertionError) else ""
    return f"{type(error).__name__} in {code}{said}"


def _weigh(target: Target, data: bytes, report: Report) -> None:
    tracemalloc.start()
    try:
        attempt(target, data)
        memory = tracemalloc.get_traced_memory()[1] - len(data)
    finally:
        tracemalloc.stop()
    report.memory = max(report.memory, memory)
    if memory > MAX_MEMORY:
        report.add(Fault(data, f"took more than {MAX_MEMORY >> 20} MiB of memory"))
