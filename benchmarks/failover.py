"""What it costs to pass over an instance whose breaker is open.

    python benchmarks/failover.py [CALLS]

Opens and seals through in-memory services, interleaved: with one instance, with a second one in
front whose breaker is held open, and failing altogether (all breakers open, so that an exception
group is made).  Medians, in microseconds.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack

from kms_core import AllInstancesFailed, InstanceConfig, Kms, Settings
from kms_core.testing import MemoryStore


def client(*names: str, store: MemoryStore) -> Kms:
    """Instances on one store; ``kms_core.testing.memory`` is a plugin like any other."""
    from kms_core.plugins import Found
    from kms_core.testing import memory

    instance = InstanceConfig("memory", {"store": store})
    plugin = Found("memory", "kms-core", "0", 1, lambda: memory)
    return Kms(Settings(instances=dict.fromkeys(names, instance)), plugins=[plugin])


def refused(call: Callable[[], object]) -> None:
    """A call for which nobody is left."""
    try:
        call()
    except AllInstancesFailed:
        return
    raise AssertionError("somebody answered")


def main() -> None:
    """Print the table."""
    calls = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    store = MemoryStore()
    with ExitStack() as stack:
        alone = stack.enter_context(client("b", store=store))
        passed_over = stack.enter_context(client("a", "b", store=store))
        down = stack.enter_context(client("a", store=store))
        passed_over.force_breaker("a", "open")
        sealed = alone.seal(b"data")
        down.force_breaker("a", "open")
        cases: dict[str, Callable[[], object]] = {
            "open, one instance": lambda: alone.open(sealed),
            "open, another one's breaker open": lambda: passed_over.open(sealed),
            "seal, one instance": lambda: alone.seal(b"data"),
            "seal, another one's breaker open": lambda: passed_over.seal(b"data"),
            "open refused, all breakers open": lambda: refused(lambda: down.open(sealed)),
        }
        taken: dict[str, list[float]] = {name: [] for name in cases}
        for _ in range(calls):
            for name, call in cases.items():
                began = time.perf_counter()
                call()
                taken[name].append((time.perf_counter() - began) * 1e6)
    print("| case | median, us | added, us |\n| --- | --- | --- |")
    medians = {name: statistics.median(times) for name, times in taken.items()}
    for name, median in medians.items():
        base = medians[f"{name.partition(',')[0]}, one instance"] if "another" in name else None
        print(f"| {name} | {median:.0f} | {'' if base is None else f'{median - base:.0f}'} |")


if __name__ == "__main__":
    main()
