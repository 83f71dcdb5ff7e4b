"""Many threads seal and open while five key services come and go.

    python -m tests.soak [--operations N] [--threads N] [--seed N] [--blackouts] [--schedule]

Prints what was done and what went wrong; exits with 1 if anything did.  Wrong would be: a
plaintext that is not the one sealed, an error that no outage explains, an envelope that does not
open once everybody is well, threads that stay, and memory that grows with the number of calls.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import threading
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, Final

from attrs import define, field, frozen

from kms_core import (
    AllInstancesFailed,
    BreakerPolicy,
    CachePolicy,
    CallPolicy,
    Duration,
    EnvelopePolicy,
    Event,
    Kms,
    KMSError,
    Settings,
)
from kms_core.uri import provider_type
from tests.chaos import LOCAL, SETTLED, Chaos, World, plan
from tests.fenced import Service, services

TENANTS: Final = 8
OF_SEALS: Final = 0.4  # of all operations
OF_OLD: Final = 0.05  # of opens: an envelope from any time of the run
OF_ASKING: Final = 0.3  # of opens, and a third as much of seals: by a client that keeps no key
RECENT: Final = 64
REMEMBERED: Final = 5000  # events that are no success
MAX_GROWTH: Final = 64 << 20  # bytes of memory, from a fifth of the run on
SPARE_THREADS: Final = 8
PATIENCE: Final = 60.0
SHOWN: Final = 20  # violations; the first tell most
LATE: Final = 5.0  # seconds beyond its deadline that a busy machine may need to end a call

CALLS: Final = CallPolicy(
    deadline=Duration(6.0),
    attempt_timeout=Duration(1.0),
    hedge_after=Duration(0.3),
    cooldown=Duration(0.2),
)
CACHE: Final = CachePolicy(
    max_age=Duration(0.5), degraded_max_age=Duration(0.3), max_entries=TENANTS // 2
)
NO_CACHE: Final = CachePolicy(max_age=Duration(0.0))
BREAKER: Final = BreakerPolicy(
    recovery_timeout=Duration(0.5), max_recovery_timeout=Duration(1.0), success_threshold=1
)


# --- what is sealed ------------------------------------------------------------------------------


@frozen
class Item:
    """An envelope; its number says what is in it."""

    number: int
    sealed: bytes


def plaintext_of(number: int) -> bytes:
    """What is sealed under this number: of any size up to a kilobyte."""
    digest = sha256(number.to_bytes(8, "big")).digest()
    return digest * (digest[0] % 32 + 1)


def context_of(number: int) -> dict[str, str]:
    """Its tenant has data keys of its own; the rest differs with every message."""
    return {"tenant": str(number % TENANTS), "row": str(number)}


class Ledger:
    """Every envelope that was ever returned, in a file.  Thread-safe."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._places = array("Q")
        self._end = 0
        self._next = 0
        self._recent: deque[Item] = deque(maxlen=RECENT)

    def __len__(self) -> int:
        return len(self._places)

    def new_number(self) -> int:
        """A number that no other envelope has."""
        with self._lock:
            self._next += 1
            return self._next

    def add(self, item: Item) -> None:
        """Keep it."""
        record = b"%d %d\n" % (item.number, len(item.sealed)) + item.sealed
        with self._lock:
            self._file.write(record)
            self._places.append(self._end)
            self._end += len(record)
            self._recent.append(item)

    def recent(self, rng: random.Random) -> Item | None:
        """One of the last few; ``None`` while there is none."""
        with self._lock:
            return rng.choice(self._recent) if self._recent else None

    def any(self, rng: random.Random) -> Item | None:
        """One of all; ``None`` while there is none."""
        return self[rng.randrange(len(self._places))] if self._places else None

    def __iter__(self) -> Iterator[Item]:
        return (self[index] for index in range(len(self._places)))

    def __getitem__(self, index: int) -> Item:
        with self._lock:
            place, end = self._places[index], self._end
            if index + 1 < len(self._places):
                end = self._places[index + 1]
            self._file.flush()
        head, _, sealed = os.pread(self._file.fileno(), end - place, place).partition(b"\n")
        return Item(int(head.split()[0]), sealed)


# --- what is done --------------------------------------------------------------------------------


@define
class Tally:
    """What happened so far.  Thread-safe."""

    counts: Counter[str] = field(factory=Counter)
    violations: list[str] = field(factory=list)
    troubles: deque[tuple[float, Event]] = field(factory=lambda: deque(maxlen=REMEMBERED))
    longest: dict[str, float] = field(factory=dict)
    _lock: threading.Lock = field(factory=threading.Lock)

    def count(self, what: str) -> None:
        """One more."""
        with self._lock:
            self.counts[what] += 1

    def took(self, operation: str, seconds: float) -> None:
        """An operation is over."""
        with self._lock:
            self.longest[operation] = max(seconds, self.longest.get(operation, 0.0))

    def violation(self, text: str) -> None:
        """Something that must never happen."""
        with self._lock:
            self.violations.append(text)

    def observe(self, event: Event) -> None:
        """Told of every event of the clients."""
        if event.operation in {"encrypt", "decrypt"} and event.outcome == "ok":
            self.count(f"{event.operation} by {event.instance}")
        elif (event.operation, event.outcome) == ("seal", "degraded"):
            self.count("degraded seals")
        elif event.instance is not None and event.outcome != "ok":
            self.troubles.append((time.monotonic(), event))

    def troubles_of(self, names: list[str], since: float) -> str:
        """What was told about these instances since then, at which second of the call or before."""
        return ", ".join(
            f"{event.instance} {event.operation} {event.outcome} {at - since - SETTLED:+.2f} s"
            for at, event in tuple(self.troubles)
            if at >= since and event.instance in names
        )


@define
class Soak:
    """One run: two clients, the world, and what is to be done."""

    caching: Kms
    asking: Kms
    providers: Mapping[str, str]
    world: World
    tally: Tally
    ledger: Ledger
    operations: int
    done: int = 0
    _turn: threading.Lock = field(factory=threading.Lock)

    def work(self, seed: int) -> None:
        """Seal and open until all operations are done."""
        rng = random.Random(seed)  # noqa: S311  reproducible
        while self._take():
            try:
                self._operation(rng)
            except Exception as exc:  # noqa: BLE001  what the soak is there to find
                self.tally.violation(f"unexpected {type(exc).__name__}: {exc}")

    def _take(self) -> bool:
        with self._turn:
            if self.done >= self.operations:
                return False
            self.done += 1
            return True

    def _operation(self, rng: random.Random) -> None:
        if rng.random() < OF_SEALS or not len(self.ledger):
            self._seal(self.asking if rng.random() < OF_ASKING / 3 else self.caching)
            return
        item = self.ledger.any(rng) if rng.random() < OF_OLD else self.ledger.recent(rng)
        if item is not None:
            self._open(self.asking if rng.random() < OF_ASKING else self.caching, item)

    def _seal(self, kms: Kms) -> None:
        number = self.ledger.new_number()
        holders = [name for name in self.providers if name != LOCAL]

        def seal() -> bytes:
            return kms.seal(plaintext_of(number), context_of(number))

        sealed = self._judged("seal", seal, lambda: holders)
        if sealed is not None:
            self.ledger.add(Item(number, sealed))

    def _open(self, kms: Kms, item: Item) -> None:
        def opened() -> bytes:
            return kms.open(item.sealed, context_of(item.number))

        plaintext = self._judged("open", opened, lambda: self._holders(item.sealed))
        if plaintext is not None and plaintext != plaintext_of(item.number):
            self.tally.violation(f"envelope {item.number} opened to something else")

    def _judged(
        self, operation: str, call: Callable[[], bytes], holders: Callable[[], list[str]]
    ) -> bytes | None:
        """What ``call`` returns; ``None`` if it failed, which only the world may have caused."""
        began = time.monotonic()
        try:
            result = call()
        except AllInstancesFailed as exc:
            self._check_excuse(operation, exc, began, holders())
            return None
        finally:
            self._check_time(operation, time.monotonic() - began)
        self.tally.count(operation)
        return result

    def _holders(self, sealed: bytes) -> list[str]:
        held = {provider_type(one.key_uri) for one in self.caching.inspect(sealed).recipients}
        return [name for name, provider in self.providers.items() if provider in held]

    def _check_excuse(
        self, operation: str, error: KMSError, began: float, holders: list[str]
    ) -> None:
        well = self.world.settled(began, holders)
        if well:
            before = self.tally.troubles_of(well, began - SETTLED)
            self.tally.violation(
                f"{operation} failed while {', '.join(well)} was well: {error}; before: {before}"
            )
        self.tally.count(f"{operation} failed in an outage")

    def _check_time(self, operation: str, seconds: float) -> None:
        self.tally.took(operation, seconds)
        if seconds > CALLS.deadline + LATE:
            self.tally.violation(f"{operation} took {seconds:.1f} s")

    def open_all(self) -> None:
        """With everybody well: every envelope opens."""
        for item in self.ledger:
            try:
                plaintext = self.caching.open(item.sealed, context_of(item.number))
            except KMSError as exc:
                self.tally.violation(f"envelope {item.number} is lost: {exc}")
            else:
                if plaintext != plaintext_of(item.number):
                    self.tally.violation(f"envelope {item.number} opened to something else")


# --- what it costs -------------------------------------------------------------------------------


@frozen
class Usage:
    """Memory in bytes and threads in use, the system's count; zeros where it does not tell."""

    memory: int = 0
    threads: int = 0

    @classmethod
    def now(cls) -> Usage:
        """Of this process, which the services are no part of."""
        try:
            status = Path("/proc/self/status").read_text()
        except OSError:
            return cls()
        facts = dict(line.split(":", 1) for line in status.splitlines())
        return cls(int(facts["VmRSS"].split()[0]) << 10, int(facts["Threads"]))

    def __str__(self) -> str:
        return f"{self.memory / (1 << 20):.0f} MiB, {self.threads} threads"


@define
class Watch:
    """Looks at the process from time to time."""

    start: Usage = field(factory=Usage.now)
    early: Usage | None = None
    peak_memory: int = 0
    peak_threads: int = 0
    peak_calls: int = 0
    end: Usage = field(factory=Usage)

    def look(self, progress: float) -> None:
        """One look; ``progress`` is the part of the run that is over."""
        self.end = Usage.now()
        self.peak_memory = max(self.peak_memory, self.end.memory)
        self.peak_threads = max(self.peak_threads, self.end.threads)
        self.peak_calls = max(self.peak_calls, len(threads_of_clients()))
        if self.early is None and progress >= 0.2:
            self.early = self.end

    @property
    def growth(self) -> int:
        """Bytes since a fifth of the run was over."""
        return 0 if self.early is None else self.end.memory - self.early.memory


def threads_of_clients() -> list[str]:
    """Those that a client started, and not the threads of this script."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("kms-")]


# --- a run ---------------------------------------------------------------------------------------


@frozen
class Options:
    """What is to be done."""

    operations: int = 200_000
    threads: int = 16
    seed: int = 1
    blackouts: bool = False


@frozen
class Report:
    """What came of it."""

    seconds: float
    envelopes: int
    tally: Tally
    world: World
    watch: Watch
    stayed: list[str]

    def __str__(self) -> str:
        watch = self.watch
        rows = {
            "operations in the chaos": sum(self.tally.counts[name] for name in OUTCOMES),
            **{name: self.tally.counts[name] for name in OUTCOMES},
            "degraded seals": self.tally.counts["degraded seals"],
            "envelopes opened at the end": self.envelopes,
            **{name: count for name, count in sorted(self.tally.counts.items()) if " by " in name},
            **{f"services: {name}": count for name, count in sorted(self.world.counts().items())},
            **{f"longest {name}": f"{took:.2f} s" for name, took in self.tally.longest.items()},
            "seconds": f"{self.seconds:.0f}",
            "at the start": watch.start,
            "after a fifth": watch.early,
            "at the end": watch.end,
            "peak": Usage(watch.peak_memory, watch.peak_threads),
            "peak of the clients' threads": watch.peak_calls,
            "threads that stayed": len(self.stayed),
            "violations": len(self.tally.violations),
        }
        return "\n".join(f"| {name:<30} | {value!s:>22} |" for name, value in rows.items())


OUTCOMES: Final = ("seal", "open", "seal failed in an outage", "open failed in an outage")


def settings_for(running: Mapping[str, Service], cache: CachePolicy) -> Settings:
    """All of them, for impatient users."""
    return Settings(
        instances={name: service.instance for name, service in running.items()},
        envelope=EnvelopePolicy(key_context=("tenant",)),
        cache=cache,
        calls=CALLS,
        breaker=BREAKER,
    )


def run(options: Options) -> Report:
    """Start everything, do everything, look at what is left."""
    began, tally, watch = time.monotonic(), Tally(), Watch()
    with ExitStack() as stack:
        running = stack.enter_context(services())
        ledger = Ledger(stack.enter_context(tempfile.TemporaryFile()))
        caching, asking = (
            stack.enter_context(Kms(settings_for(running, cache), observe=tally.observe))
            for cache in (CACHE, NO_CACHE)
        )
        for kms in (caching, asking):
            kms.warm_up()
        world = World(running)
        providers = {name: service.instance.provider for name, service in running.items()}
        soak = Soak(caching, asking, providers, world, tally, ledger, options.operations)
        actions = {name: service.actions for name, service in running.items()}
        chaos = Chaos(world, plan(actions, options.seed, blackouts=options.blackouts))
        chaos.start()
        try:
            work(soak, options, watch)
        finally:
            chaos.stop()
        if not eventually(lambda: is_complete(caching)):
            tally.violation(f"not well in the end: {caching.breakers}")
        soak.open_all()
        watch.look(1.0)
    if not eventually(lambda: not threads_of_clients()):
        tally.violation(f"threads stayed: {threads_of_clients()}")
    check_usage(tally, watch, clients=2, instances=len(running))
    return Report(
        time.monotonic() - began,
        len(ledger),
        tally,
        world,
        watch,
        threads_of_clients(),
    )


def is_complete(kms: Kms) -> bool:
    """Whether everybody holds what is sealed now; asking is what closes breakers."""
    try:
        return not kms.inspect(kms.seal(b"", context_of(0))).missing
    except AllInstancesFailed:
        return False


def work(soak: Soak, options: Options, watch: Watch) -> None:
    """Have all threads work, and look at the process meanwhile."""
    workers = [
        threading.Thread(target=soak.work, args=(options.seed + number,), daemon=True)
        for number in range(1, options.threads + 1)
    ]
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        workers[-1].join(0.2)
        watch.look(soak.done / soak.operations)


def check_usage(tally: Tally, watch: Watch, *, clients: int, instances: int) -> None:
    """Neither memory nor threads grow with the number of calls."""
    if watch.growth > MAX_GROWTH:
        tally.violation(f"memory grew by {watch.growth >> 20} MiB")
    most = clients * (instances * CALLS.max_concurrency + SPARE_THREADS)
    if watch.peak_calls > most:
        tally.violation(f"{watch.peak_calls} threads, and {most} are permitted")


def eventually(holds: Callable[[], object]) -> bool:
    """Whether it holds within reasonable time."""
    end = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > end:
            return False
        threading.Event().wait(0.05)
    return True


def main() -> int:
    """Run as the command line says; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--operations", type=int, default=Options().operations)
    parser.add_argument("--threads", type=int, default=Options().threads)
    parser.add_argument("--seed", type=int, default=Options().seed)
    parser.add_argument("--blackouts", action="store_true", help="everybody at once, now and then")
    parser.add_argument("--schedule", action="store_true", help="print what was done to services")
    given = vars(parser.parse_args())
    schedule = given.pop("schedule")
    report = run(Options(**given))
    lines = [*(report.world.schedule if schedule else ()), report, *report.tally.violations[:SHOWN]]
    print(*lines, sep="\n")  # noqa: T201  a script
    return bool(report.tally.violations)


if __name__ == "__main__":
    sys.exit(main())
