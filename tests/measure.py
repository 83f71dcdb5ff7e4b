"""What trouble costs: figures that are too slow, or too dependent on the machine, to be tests.

    python -m tests.measure CASE

``abuse``: a minute of crafted envelopes, a thousand a second.  ``black-hole``: the first calls of a
client, with default settings, while a service accepts everything and answers nothing.
``neighbour``: 64 threads that open while one of three services hangs.  ``health``: five instances,
two of which hang.
"""

from __future__ import annotations

import itertools
import random
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from attrs import Factory, define, evolve, frozen

from kms_core import (
    AllInstancesFailed,
    BreakerPolicy,
    CachePolicy,
    CallPolicy,
    Duration,
    EnvelopePolicy,
    Event,
    IntegrityError,
    KeyNotFound,
    Kms,
    KMSError,
    MonitorPolicy,
    Settings,
)
from kms_core.calls import BURST_SECONDS, CANARIES_PER_SECOND
from kms_core.testing import Faulty
from tests.fenced import Service, services
from tests.support import entry_points, service
from tests.support import settings_for as in_memory
from tests.test_abuse import EVIL, GOOD, calling_it, forged

CONTEXT: Final = {"tenant": "42"}
SECRET: Final = b"attack at dawn"
PATIENCE: Final = 60.0
KEEPING_NOTHING: Final = CachePolicy(max_age=Duration(0.0))


def show(text: str) -> None:
    """A line of the report."""
    print(text, flush=True)  # noqa: T201  scripts print


def timed(call: Callable[[], object]) -> float:
    """Seconds that it takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def milliseconds(seconds: Sequence[float]) -> str:
    """Median, what one in a hundred exceeds, and maximum."""
    ordered = sorted(seconds)
    picked = (ordered[int(len(ordered) * part)] for part in (0.5, 0.99))
    median, rare, longest = (f"{value * 1e3:.1f}" for value in (*picked, ordered[-1]))
    return f"{median} ms (1 %: {rare}, at most {longest})"


def settings_for(running: Mapping[str, Service], **policies: object) -> Settings:
    """All of these, as preferred in this order; policies as given, or else the defaults.

    No key is kept, so that every call asks.
    """
    policies = {"cache": KEEPING_NOTHING, **policies}
    instances = {name: service.instance for name, service in running.items()}
    return Settings(instances=instances, **policies)  # type: ignore[arg-type]


def sealed_by_all(running: Mapping[str, Service]) -> bytes:
    """An envelope in the hands of all."""
    patient = EnvelopePolicy(straggler_wait=Duration(PATIENCE))
    with Kms(settings_for(running, envelope=patient)) as kms:
        return kms.seal(SECRET, CONTEXT)


# --- abuse ---------------------------------------------------------------------------------------

ATTACKERS: Final = 4
PER_SECOND: Final = 1000
SECONDS: Final = 60
VICTIM_PAUSE: Final = 0.02


@define
class Attack:
    """Crafted envelopes of all kinds, each another one."""

    kms: Kms
    theirs: bytes
    ours: bytes
    uris: list[str]
    outcomes: Counter[str] = Factory(Counter)

    def crafted(self, rng: random.Random, number: int) -> bytes:
        """Bad wraps for every recipient; altered capsules; somebody else's envelope."""
        kind = number % 4
        if kind == 0:
            return self.ours
        if kind == 1:
            altered = bytearray(self.theirs)
            altered[-len(b"data") - 59 - 1 - rng.randrange(32)] ^= rng.randrange(1, 256)
            return bytes(altered)
        return forged(self.theirs, rng, self.uris)

    def run(self, seed: int, until: float) -> None:
        """Send a share of them, evenly."""
        rng, pause = random.Random(seed), threading.Event()  # noqa: S311  reproducible
        begin = time.monotonic()
        for number in itertools.count():
            due = begin + number * ATTACKERS / PER_SECOND
            if due > until:
                return
            pause.wait(max(0.0, due - time.monotonic()))
            try:
                self.kms.open(self.crafted(rng, number), EVIL)
            except (IntegrityError, AllInstancesFailed) as exc:
                self.outcomes[exc.code] += 1
            else:
                self.outcomes["opened"] += 1


def abuse() -> None:
    """Three services whose plugins take a bad wrap for three different things."""
    made = {name: service(name) for name in "abc"}
    made["b"].always("decrypt", calling_it(KeyNotFound))
    made["c"].always("decrypt", calling_it(KeyError))
    settings = evolve(
        in_memory(made, calls=CallPolicy(), key_context=("tenant",)), cache=KEEPING_NOTHING
    )
    with Kms(settings, plugins=entry_points()) as kms:
        ours, theirs = kms.seal(b"data", GOOD), kms.seal(b"data", EVIL)
        uris = [recipient.key_uri for recipient in kms.inspect(theirs).recipients]
        attack = Attack(kms, theirs, ours, uris)
        before, _ = opens_of_a_neighbour(kms, ours, time.monotonic() + 5)
        asked = {name: one.count("decrypt") for name, one in made.items()}
        until = time.monotonic() + SECONDS
        attackers = [
            threading.Thread(target=attack.run, args=(number, until)) for number in range(ATTACKERS)
        ]
        for attacker in attackers:
            attacker.start()
        during, failed = opens_of_a_neighbour(kms, ours, until)
        for attacker in attackers:
            attacker.join()
        report_abuse(attack, made, asked, len(during))
        opened = {name: breaker.opened_count for name, breaker in kms.breakers.items()}
        show(f"breakers opened: {opened}")
    show(f"opens of another partition: {len(during)}, {failed} of them failed")
    show(f"  before: {milliseconds(before)}; during: {milliseconds(during)}")


def opens_of_a_neighbour(kms: Kms, sealed: bytes, until: float) -> tuple[list[float], int]:
    """How long each took, and how many failed."""
    pause, seconds, failed = threading.Event(), [], 0
    while time.monotonic() < until:
        began = time.perf_counter()
        try:
            kms.open(sealed, GOOD)
        except KMSError:
            failed += 1
        seconds.append(time.perf_counter() - began)
        pause.wait(VICTIM_PAUSE)
    return seconds, failed


def report_abuse(
    attack: Attack, made: Mapping[str, Faulty], before: Mapping[str, int], neighbours: int
) -> None:
    """How much was sent, and how much of it reached each service."""
    policy = CallPolicy()
    bad = policy.bad_unwraps * (BURST_SECONDS + SECONDS) + 1
    canaries = CANARIES_PER_SECOND * (BURST_SECONDS + SECONDS) + 1
    sent = sum(attack.outcomes.values())
    show(f"sent: {sent} in {SECONDS} s, {dict(attack.outcomes)}")
    for name, one in made.items():
        asked = one.count("decrypt") - before[name]
        bound = bad + canaries + neighbours
        show(
            f"{name}: asked {asked} times; the bound is {bound:.0f} "
            f"({bad:.0f} bad, {canaries:.0f} canaries, {neighbours} of the neighbour)"
        )


# --- a service that accepts and never answers ----------------------------------------------------

TRIALS: Final = 5
PEERS: Final = """\
peers on the same trouble, default settings:
  AWS Encryption SDK, encrypt or decrypt: fails after 180 s
  AWS Encryption SDK with several keyrings, decrypt: fails after 180 s
  Tink's envelope encryption: fails after 180 s"""


def black_hole() -> None:
    """Whichever service it is, others answer; the first is the one that is preferred."""
    with services({name: name for name in ("aws", "azure", "google")}) as running:
        sealed = sealed_by_all(running)
        for name in running:
            ordered = {name: running[name], **running}
            for operation in ("open", "seal"):
                well, hung = first_calls(ordered, name, operation, sealed)
                added = statistics.median(hung) - statistics.median(well)
                show(
                    f"first {operation}, {name} preferred: all well {milliseconds(well)}; "
                    f"{name} hangs {milliseconds(hung)}; added {added * 1e3:.0f} ms"
                )
    show(f"hedge_after {CallPolicy().hedge_after} s (opens)")
    show(f"straggler_wait {EnvelopePolicy().straggler_wait} s (seals)")
    show(PEERS)


def first_calls(
    ordered: Mapping[str, Service], name: str, operation: str, sealed: bytes
) -> tuple[list[float], list[float]]:
    """The first call of a client, with everybody well and with one that hangs, in turn."""
    well, hung = [], []
    for _ in range(TRIALS):
        well.append(first_call(ordered, operation, sealed))
        ordered[name].do("hang")
        hung.append(first_call(ordered, operation, sealed))
        ordered[name].do("restore")
    return well, hung


def first_call(ordered: Mapping[str, Service], operation: str, sealed: bytes) -> float:
    """Seconds, with the loading of what it needs."""
    with Kms(settings_for(ordered)) as kms:
        if operation == "seal":
            return timed(lambda: kms.seal(SECRET, CONTEXT))
        return timed(lambda: kms.open(sealed, CONTEXT))


# --- a neighbour that hangs ----------------------------------------------------------------------

OPENERS: Final = 64
ROUNDS: Final = 7
ROUND_SECONDS: Final = 3.0


def neighbour() -> None:
    """Three services of one kind, so that it does not matter which of them answers."""
    rates: dict[str, list[float]] = {"all well": [], "first hangs": []}
    onsets = []
    with (
        services(dict.fromkeys(("first", "second", "third"), "aws")) as running,
        Kms(settings_for(running)) as kms,
    ):
        kms.warm_up()
        envelopes = [kms.seal(SECRET, CONTEXT) for _ in range(OPENERS)]
        for _ in range(ROUNDS):
            rates["all well"].append(opens_per_second(kms, envelopes)[0])
            running["first"].do("hang")
            onsets.append(opens_per_second(kms, envelopes, seconds=4.0))
            rates["first hangs"].append(opens_per_second(kms, envelopes)[0])
            running["first"].do("restore")
            kms.force_breaker("first", None)
            opens_per_second(kms, envelopes, seconds=1.0)
    medians = {name: statistics.median(found) for name, found in rates.items()}
    for name, found in rates.items():
        shown = ", ".join(f"{rate:.0f}" for rate in found)
        show(f"{name}: {medians[name]:.0f} opens/s ({shown})")
    show(f"ratio: {medians['first hangs'] / medians['all well']:.3f}")
    rate, longest = (statistics.median(column) for column in zip(*onsets, strict=True))
    show(
        f"the 4 s in which it begins to hang: {rate:.0f} opens/s, the longest took {longest:.2f} s"
    )


def opens_per_second(
    kms: Kms, envelopes: Sequence[bytes], seconds: float = ROUND_SECONDS
) -> tuple[float, float]:
    """By a thread for each envelope; and how long the longest took."""
    until = time.monotonic() + seconds
    counts, longest = Counter[bytes](), [0.0]

    def work(sealed: bytes) -> None:
        while time.monotonic() < until:
            took = timed(lambda: kms.open(sealed, CONTEXT))
            counts[sealed] += 1
            longest.append(took)

    threads = [threading.Thread(target=work, args=(sealed,)) for sealed in envelopes]
    took = timed(lambda: run_all(threads))
    return counts.total() / took, max(longest)


def run_all(threads: Sequence[threading.Thread]) -> None:
    """Start them and wait for them."""
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# --- health --------------------------------------------------------------------------------------

HUNG: Final = ("azure", "google")
IMPATIENT: Final = CallPolicy(health_timeout=Duration(0.1))
BUSY: Final = MonitorPolicy(interval=Duration(0.02))
NEVER_PROBED: Final = BreakerPolicy(recovery_timeout=Duration(600.0))


@frozen
class Checks:
    """Counts what the monitor learns; an observer."""

    answers: list[str | None] = Factory(list)

    def __call__(self, event: Event) -> None:
        if (event.operation, event.outcome) == ("health", "ok"):
            self.answers.append(event.instance)


def health() -> None:
    """One report with default settings; then a monitor that never rests, beside sealing."""
    with services() as running:
        for name in HUNG:
            running[name].do("hang")
        with Kms(settings_for(running)) as kms:
            reports = []
            seconds = [timed(lambda: reports.append(kms.health())) for _ in range(3)]
        named = sorted(
            name for name, one in reports[-1].instances.items() if one.state != "healthy"
        )
        show(f"health() with {len(running)} instances: {milliseconds(seconds)}")
        show(f"  {reports[-1].status}; not healthy: {', '.join(named)}")
        show(f"  health_timeout is {CallPolicy().health_timeout:g} s")
        seals: dict[str, list[float]] = {"without monitor": [], "with monitor": []}
        rates = []
        for _ in range(ROUNDS):
            seals["without monitor"] += seals_beside(running, MonitorPolicy())[0]
            taken, rate = seals_beside(running, BUSY)
            seals["with monitor"] += taken
            rates.append(rate)
    show(f"answers to the monitor: {statistics.median(rates):.0f} a second, hung ones not counted")
    for name, taken in seals.items():
        show(f"seal {name}: {milliseconds(taken)}, mean {statistics.mean(taken) * 1e3:.2f} ms")


def seals_beside(
    running: Mapping[str, Service], monitor: MonitorPolicy
) -> tuple[list[float], float]:
    """Seconds of each seal, and the monitor's answers a second, once those that hang are known."""
    checks = Checks()
    settings = settings_for(running, calls=IMPATIENT, monitor=monitor, breaker=NEVER_PROBED)
    with Kms(settings, observe=checks) as kms:
        for name in HUNG:
            kms.force_breaker(name, "open")
        kms.seal(SECRET, CONTEXT)
        began, known = time.monotonic(), len(checks.answers)
        taken = []
        while time.monotonic() < began + ROUND_SECONDS:
            taken.append(timed(lambda: kms.seal(SECRET, CONTEXT)))
        return taken, (len(checks.answers) - known) / (time.monotonic() - began)


CASES: Final[Mapping[str, Callable[[], None]]] = {
    "abuse": abuse,
    "black-hole": black_hole,
    "neighbour": neighbour,
    "health": health,
}


def main() -> int:
    """Run the cases that are named; the exit code."""
    chosen = sys.argv[1:]
    if not chosen or set(chosen) - CASES.keys():
        show(f"usage: python -m tests.measure {'|'.join(CASES)}")
        return 2
    for name in chosen:
        show(f"--- {name}")
        CASES[name]()
    return 0


if __name__ == "__main__":
    sys.exit(main())
