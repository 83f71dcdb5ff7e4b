"""What was sealed during an outage is repaired after it, and nobody is bothered meanwhile."""

from __future__ import annotations

import os
import random
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field

from kms_core import (
    AccessDenied,
    AllInstancesFailed,
    FormatError,
    InvalidCiphertext,
    InvalidRequest,
    Kms,
    MemoryCapsules,
    RewrapConflict,
    Throttled,
    Unavailable,
)
from kms_core.header import parse_capsule
from kms_core.repair import (
    CLAIM,
    MAX_WAIT,
    CallbackSource,
    CapsuleSource,
    FileSource,
    RepairQueue,
    RepairReport,
)
from kms_core.rewrap import CONFLICT_RETRIES
from kms_core.testing import Faulty, MemoryStore, raising, returning
from kms_core.testing.processes import in_child
from tests.support import Clock, client_for, service

CONTEXT = {"tenant": "42"}
SECRET = b"attack at dawn"
DOWN = raising(Unavailable, "down")
ROOT = Path(__file__).parents[1]


# --- a world to repair ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stores() -> dict[str, MemoryStore]:
    """Three services, which forked children know as well."""
    return {name: MemoryStore(name) for name in "abc"}


def on(stores: Mapping[str, MemoryStore], names: str = "abc") -> dict[str, Faulty]:
    """New instances on these stores."""
    return {name: service(name, store=stores[name]) for name in names}


@pytest.fixture
def services(stores: dict[str, MemoryStore]) -> dict[str, Faulty]:
    """One instance on each."""
    return on(stores)


@pytest.fixture
def kms(services: dict[str, Faulty]) -> Iterator[Kms]:
    """Seals to all three."""
    with client_for(services) as made:
        yield made


@define
class Shelf:
    """A source in memory that counts, and lets others in between; also where tests keep things."""

    blobs: dict[str, bytes] = field(factory=dict)
    loads: list[str] = field(factory=list)
    stores: list[str] = field(factory=list)
    #: Called before each store, the first first.
    meanwhile: list[Callable[[], object]] = field(factory=list)

    def load(self, reference: str) -> bytes:
        self.loads.append(reference)
        return self.blobs[reference]

    def store(self, reference: str, old: bytes, new: bytes) -> None:
        if self.meanwhile:
            self.meanwhile.pop(0)()
        if self.blobs.get(reference) != old:
            raise RewrapConflict(f"{reference} is another one now")
        self.stores.append(reference)
        self.blobs[reference] = new

    def missing(self, reference: str) -> tuple[str, ...]:
        return Kms.inspect(self.blobs[reference]).missing


@pytest.fixture
def shelf() -> Shelf:
    """Empty."""
    return Shelf()


@pytest.fixture
def clock() -> Clock:
    """Of the queues: what they wait for passes at once."""
    return Clock()


Open = Callable[..., RepairQueue]


@pytest.fixture(params=["memory", "database"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    """Where the queue is; ``None`` is in memory."""
    return tmp_path / "queue.sqlite" if request.param == "database" else None


@pytest.fixture
def queue(kms: Kms, shelf: Shelf, clock: Clock, path: Path | None) -> Iterator[RepairQueue]:
    """A queue of either kind over the shelf, in a hurry."""
    with queue_on(kms, shelf, clock, path=path) as made:
        yield made


def queue_on(kms: Kms, source: Any, clock: Clock, **options: Any) -> RepairQueue:
    """A queue whose every clock is this one."""
    options = {"per_second": 1000.0, **options}
    return RepairQueue(kms, source, clock=clock, wall_clock=clock, sleep=clock.sleep, **options)


def seal_without(kms: Kms, services: Mapping[str, Faulty], away: str, **options: Any) -> bytes:
    """Sealed while these services could not wrap; no breaker remembers it."""
    for name in away:
        services[name].always("encrypt", DOWN)
    blob: bytes = kms.seal(SECRET, CONTEXT, **options)
    for name in away:
        services[name].heal("encrypt")
        kms.force_breaker(name, None)
    assert len(Kms.inspect(blob).missing) == (len(away) if options.get("inline", True) else 0)
    return blob


def fill(
    shelf: Shelf,
    queue: RepairQueue,
    kms: Kms,
    services: dict[str, Faulty],
    *,
    names: str,
    away: str,
) -> None:
    """Put envelopes that lack these services on the shelf and into the queue."""
    for name in names:
        shelf.blobs[name] = seal_without(kms, services, away)
    queue.add(*names)


def asked(services: Mapping[str, Faulty]) -> dict[str, int]:
    """How many calls each service has had that a user would wait for."""
    return {name: each.count("encrypt") + each.count("decrypt") for name, each in services.items()}


def opens(stores: Mapping[str, MemoryStore], name: str, blob: bytes) -> bool:
    """Whether a reader that has nothing but this one service gets at the content."""
    with client_for(on(stores, name)) as reader:
        return reader.open(blob, CONTEXT) == SECRET


def references(report: RepairReport) -> list[str]:
    """Which ones failed."""
    return [reference for reference, _ in report.failed]


# --- outage and return ---------------------------------------------------------------------------


def test_after_the_outage_everything_is_repaired(
    queue: RepairQueue,
    shelf: Shelf,
    kms: Kms,
    services: dict[str, Faulty],
    stores: dict[str, MemoryStore],
) -> None:
    """Every envelope opens with the service that was away, and the queue is empty."""
    fill(shelf, queue, kms, services, names="123", away="b")
    bodies = {name: blob[Kms.inspect(blob).capsule_bytes :] for name, blob in shelf.blobs.items()}
    assert queue.run() == RepairReport(repaired=3)
    assert (queue.pending, list(queue)) == (0, [])
    for name, blob in shelf.blobs.items():
        assert opens(stores, "b", blob)
        assert blob[Kms.inspect(blob).capsule_bytes :] == bodies[name]
    assert queue.run() == RepairReport()


def test_during_the_outage_one_envelope_finds_out(
    queue: RepairQueue, shelf: Shelf, kms: Kms, services: dict[str, Faulty]
) -> None:
    """The instance is asked once, and all others wait without a call."""
    fill(shelf, queue, kms, services, names="12345", away="b")
    services["b"].always("encrypt", DOWN)
    before = asked(services)
    report = queue.run()
    assert references(report) == ["1"]
    assert isinstance(report.failed[0][1], AllInstancesFailed)
    assert report == RepairReport(waiting=4, failed=report.failed)
    after = asked(services)
    assert {name: after[name] - before[name] for name in "abc"} == {"a": 1, "b": 1, "c": 0}
    assert list(queue) == list("12345")
    assert shelf.stores == []


@pytest.mark.parametrize("error", [AccessDenied, Throttled])
def test_an_instance_that_refuses_is_asked_once_as_well(
    queue: RepairQueue,
    shelf: Shelf,
    kms: Kms,
    services: dict[str, Faulty],
    error: type[Exception],
) -> None:
    """No permission, or too many requests: the next envelope would hear the same."""
    fill(shelf, queue, kms, services, names="123", away="b")
    services["b"].always("encrypt", raising(error, "no"))
    before = asked(services)["b"]
    assert queue.run().waiting == 2
    assert asked(services)["b"] - before == 1


def test_with_an_open_breaker_no_service_is_asked(
    queue: RepairQueue, shelf: Shelf, kms: Kms, services: dict[str, Faulty]
) -> None:
    """Nor is any envelope loaded more than once to find that out."""
    fill(shelf, queue, kms, services, names="123", away="b")
    kms.force_breaker("b", "open")
    before = asked(services)
    assert queue.run() == RepairReport(waiting=3)
    assert queue.run() == RepairReport(waiting=3)
    assert asked(services) == before
    assert shelf.loads == ["1", "2", "3"]
    kms.force_breaker("b", None)
    assert queue.run() == RepairReport(repaired=3)


def test_what_nobody_can_unwrap_now_waits(
    queue: RepairQueue, shelf: Shelf, kms: Kms, services: dict[str, Faulty]
) -> None:
    """Whoever was missing is back, and all who were not are away: no call is worth it."""
    fill(shelf, queue, kms, services, names="12", away="b")
    for name in "ac":
        kms.force_breaker(name, "open")
    before = asked(services)
    assert queue.run() == RepairReport(waiting=2)
    assert asked(services) == before


def test_who_fails_to_unwrap_is_not_asked_again(
    queue: RepairQueue, shelf: Shelf, kms: Kms, services: dict[str, Faulty]
) -> None:
    """With only one of two shares to be had, the second envelope asks nobody."""
    with client_for(services, policy="2 of 3", min_recipients=2) as splitting:
        for name in "12":
            shelf.blobs[name] = seal_without(splitting, services, "c")
    queue.add("1", "2")
    services["b"].always("decrypt", DOWN)
    before = asked(services)
    assert references(queue.run()) == ["1"]
    after = asked(services)
    assert {name: after[name] - before[name] for name in "abc"} == {"a": 1, "b": 1, "c": 0}


def test_a_threshold_envelope_gets_its_share(
    queue: RepairQueue, shelf: Shelf, kms: Kms, services: dict[str, Faulty]
) -> None:
    """With the same threshold as before."""
    with client_for(services, policy="2 of 3", min_recipients=2) as splitting:
        shelf.blobs["1"] = seal_without(splitting, services, "c")
    queue.add("1")
    assert queue.run() == RepairReport(repaired=1)
    info = Kms.inspect(shelf.blobs["1"])
    assert (info.threshold, len(info.recipients), info.missing) == (2, 3, ())


def test_half_a_repair_is_kept(
    queue: RepairQueue,
    shelf: Shelf,
    kms: Kms,
    services: dict[str, Faulty],
    clock: Clock,
) -> None:
    """One is back and one is not: that one is asked once, the rest comes when it is back too."""
    fill(shelf, queue, kms, services, names="123", away="bc")
    services["c"].always("encrypt", DOWN)
    before = services["c"].count("encrypt")
    assert queue.run() == RepairReport(waiting=3)
    assert services["c"].count("encrypt") - before == 1
    assert {shelf.missing(name) for name in "123"} == {(services["c"].key_uri,)}
    services["c"].heal()
    assert queue.run() == RepairReport(waiting=3)
    clock.advance(5)
    assert queue.run() == RepairReport(repaired=3)
    assert {shelf.missing(name) for name in "123"} == {()}


def test_who_is_not_configured_here_is_waited_for(
    kms: Kms,
    services: dict[str, Faulty],
    stores: dict[str, MemoryStore],
    shelf: Shelf,
    clock: Clock,
) -> None:
    """Another configuration may know it; this one keeps the reference and asks nobody."""
    shelf.blobs["1"] = seal_without(kms, services, "c")
    fewer = on(stores, "ab")
    with client_for(fewer) as other, queue_on(other, shelf, clock) as queue:
        queue.add("1")
        assert queue.run() == RepairReport(waiting=1)
        assert asked(fewer) == {"a": 0, "b": 0}
        assert list(queue) == ["1"]


@pytest.mark.parametrize("away", ["", "c"])
def test_who_opens_with_anothers_wrap_is_not_missing(
    queue: RepairQueue, shelf: Shelf, kms: Kms, services: dict[str, Faulty], away: str
) -> None:
    """As a replica of the same key does: the record is corrected, whoever else is away."""
    fill(shelf, queue, kms, services, names="1", away="b")
    services["b"].always("match", returning("default"))
    if away:
        kms.force_breaker(away, "open")
    before = services["b"].count("encrypt")
    assert queue.run() == RepairReport(repaired=1)
    assert shelf.missing("1") == ()
    assert services["b"].count("encrypt") == before


def test_who_cannot_tell_its_keys_is_asked_once(
    queue: RepairQueue, shelf: Shelf, kms: Kms, services: dict[str, Faulty]
) -> None:
    """An alias, say, that the service does not resolve now."""
    fill(shelf, queue, kms, services, names="123", away="b")
    before = services["b"].count("match")
    services["b"].always("match", raising(Unavailable, "no"))
    assert queue.run() == RepairReport(waiting=3)
    assert services["b"].count("match") - before == 1
    services["b"].heal()
    assert queue.run() == RepairReport(repaired=3)


# --- one by one ----------------------------------------------------------------------------------


def test_what_cannot_be_repaired_stops_no_other(
    queue: RepairQueue, shelf: Shelf, kms: Kms, services: dict[str, Faulty]
) -> None:
    """Complete, gone, damaged, unreadable and degraded, in one run."""

    def load(reference: str) -> bytes:
        if reference == "locked":
            raise PermissionError("no")
        return Shelf.load(shelf, reference)

    queue._source = CallbackSource(load, shelf.store)
    degraded = seal_without(kms, services, "b")
    altered = bytearray(degraded)
    altered[11] ^= 1
    shelf.blobs = {
        "complete": kms.seal(SECRET, CONTEXT),
        "damaged": degraded[:50],
        "altered": bytes(altered),
        "degraded": degraded,
    }
    queue.add("gone", "complete", "locked", "damaged", "altered", "degraded")
    report = queue.run()
    assert (report.repaired, report.complete, report.gone, report.waiting) == (1, 1, 1, 0)
    kinds = {reference: type(error) for reference, error in report.failed}
    assert kinds["locked"] is PermissionError
    assert kinds["damaged"] is FormatError
    assert "altered" in kinds
    assert list(queue) == ["locked", "damaged", "altered"]
    assert all(error.__traceback__ is None for _, error in report.failed)


def test_a_wrap_that_does_not_prove_itself_is_that_envelopes_failure(
    queue: RepairQueue, shelf: Shelf, kms: Kms, services: dict[str, Faulty]
) -> None:
    """The others are tried nevertheless."""
    fill(shelf, queue, kms, services, names="12", away="b")
    services["b"].queue("decrypt", raising(InvalidCiphertext, "no"))
    report = queue.run()
    assert (report.repaired, references(report)) == (1, ["1"])


def test_what_was_not_registered_is_not_touched(
    queue: RepairQueue, shelf: Shelf, kms: Kms, services: dict[str, Faulty]
) -> None:
    """However degraded it is."""
    fill(shelf, queue, kms, services, names="1", away="b")
    shelf.blobs["2"] = other = seal_without(kms, services, "b")
    queue.run()
    assert shelf.blobs["2"] == other
    assert shelf.loads == ["1"]


def test_adding_twice_is_adding_once(queue: RepairQueue) -> None:
    """In the order of the first time."""
    queue.add("1", "2")
    queue.add("1")
    queue.add("3", "1")
    assert queue.pending == 3
    assert list(queue) == ["1", "2", "3"]


@pytest.mark.parametrize("wrong", [b"bytes", None, "\udc80"])
def test_a_reference_is_text(queue: RepairQueue, wrong: Any) -> None:
    """Nothing of a bad list is registered."""
    with pytest.raises(InvalidRequest, match="reference"):
        queue.add("1", wrong)
    assert queue.pending == 0


def test_a_compact_message_is_not_taken_for_complete(
    shelf: Shelf, services: dict[str, Faulty], clock: Clock
) -> None:
    """Its capsule is elsewhere, and so is what it lacks; the error says what to do."""
    with client_for(services, options={"capsules": MemoryCapsules()}) as kms:
        shelf.blobs["1"] = seal_without(kms, services, "b", inline=False)
        with queue_on(kms, shelf, clock) as queue:
            queue.add("1")
            ((_, error),) = queue.run().failed
            assert "CapsuleSource" in str(error)
            assert queue.pending == 1


# --- how fast ------------------------------------------------------------------------------------


def test_envelopes_come_at_the_rate(
    kms: Kms, services: dict[str, Faulty], shelf: Shelf, clock: Clock
) -> None:
    """Two a second: five take the time of four pauses."""
    with queue_on(kms, shelf, clock, per_second=2.0) as queue:
        fill(shelf, queue, kms, services, names="12345", away="b")
        started = clock.now
        assert queue.run().repaired == 5
    assert clock.now - started == pytest.approx(2.0)
    assert clock.slept == pytest.approx([0.5] * 4)


def test_a_run_ends_in_time(
    kms: Kms, services: dict[str, Faulty], shelf: Shelf, clock: Clock
) -> None:
    """It neither begins nor waits past its seconds, and the next run goes on."""
    with queue_on(kms, shelf, clock, per_second=1.0) as queue:
        fill(shelf, queue, kms, services, names="12345", away="b")
        started = clock.now
        assert queue.run(seconds=2.5) == RepairReport(repaired=3, waiting=2)
        assert clock.now - started <= 2.5
        assert queue.run(seconds=0) == RepairReport(waiting=2)
        assert queue.run() == RepairReport(repaired=2)


def test_a_run_does_no_more_than_it_may(
    queue: RepairQueue, shelf: Shelf, kms: Kms, services: dict[str, Faulty]
) -> None:
    """The next one goes on."""
    fill(shelf, queue, kms, services, names="12345", away="b")
    assert queue.run(limit=2) == RepairReport(repaired=2, waiting=3)
    assert list(queue) == ["3", "4", "5"]
    assert queue.run(limit=0) == RepairReport(waiting=3)
    assert queue.run(limit=9) == RepairReport(repaired=3)


def test_waiting_ones_in_front_do_not_use_up_a_run(
    queue: RepairQueue, shelf: Shelf, kms: Kms, services: dict[str, Faulty]
) -> None:
    """Known to wait for ``b``, they are passed over, and what waits for ``c`` has its turn."""
    fill(shelf, queue, kms, services, names="12", away="b")
    shelf.blobs["3"] = seal_without(kms, services, "c")
    kms.force_breaker("b", "open")
    assert queue.run() == RepairReport(waiting=2)
    queue.add("3")
    assert queue.run(limit=1) == RepairReport(repaired=1, waiting=2)


def test_what_failed_comes_back_later_and_later(
    queue: RepairQueue, shelf: Shelf, clock: Clock
) -> None:
    """After 5 seconds, then twice that, and so on up to an hour."""
    shelf.blobs["1"] = b"no envelope"
    queue.add("1")
    waits = []
    for _ in range(13):
        assert references(queue.run()) == ["1"]
        failed_at, tries = clock.now, len(shelf.loads)
        (entry,) = queue._ledger.entries()
        clock.now = entry.due - 0.01
        assert queue.run() == RepairReport(waiting=1)
        assert len(shelf.loads) == tries
        clock.now = entry.due
        waits.append(clock.now - failed_at)
    assert waits[:4] == pytest.approx([5, 10, 20, 40])
    assert waits[-3:] == pytest.approx([MAX_WAIT] * 3)
    (entry,) = queue._ledger.entries()
    assert entry.attempts == 13


def test_a_clock_that_is_set_back_holds_nothing_up(
    queue: RepairQueue, shelf: Shelf, clock: Clock
) -> None:
    """What is due in more than an hour was put off by another clock."""
    shelf.blobs["1"] = b"no envelope"
    queue.add("1")
    clock.advance(86_400)
    queue.run()
    clock.advance(-80_000)
    assert references(queue.run()) == ["1"]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("per_second", 0),
        ("per_second", -1.0),
        ("per_second", float("nan")),
        ("per_second", float("inf")),
        ("claim", 0),
        ("claim", MAX_WAIT + 1),
    ],
)
def test_impossible_limits_are_refused(kms: Kms, shelf: Shelf, option: str, value: float) -> None:
    """With the name of the argument."""
    with pytest.raises(InvalidRequest, match=option):
        RepairQueue(kms, shelf, **{option: value})  # type: ignore[arg-type]


# --- others at work ------------------------------------------------------------------------------


def test_what_changed_meanwhile_is_loaded_anew(
    queue: RepairQueue,
    shelf: Shelf,
    kms: Kms,
    services: dict[str, Faulty],
    stores: dict[str, MemoryStore],
) -> None:
    """Sealed anew, and again degraded: that is what is repaired."""
    fill(shelf, queue, kms, services, names="1", away="b")
    newer = seal_without(kms, services, "b")
    shelf.meanwhile.append(lambda: shelf.blobs.update({"1": newer}))
    assert queue.run() == RepairReport(repaired=1)
    assert shelf.loads == ["1", "1"]
    assert Kms.inspect(shelf.blobs["1"]).key_id == Kms.inspect(newer).key_id
    assert opens(stores, "b", shelf.blobs["1"])


def test_what_others_repaired_or_removed_meanwhile_is_done(
    queue: RepairQueue, shelf: Shelf, kms: Kms, services: dict[str, Faulty]
) -> None:
    """There is nothing to do twice."""
    fill(shelf, queue, kms, services, names="12", away="b")
    repaired = kms.rewrap(shelf.blobs["1"])
    shelf.meanwhile += [
        lambda: shelf.blobs.update({"1": repaired}),
        lambda: shelf.blobs.pop("2"),
    ]
    assert queue.run() == RepairReport(complete=1, gone=1)
    assert shelf.blobs == {"1": repaired}


def test_whoever_loses_again_and_again_gives_up_for_now(
    queue: RepairQueue, shelf: Shelf, kms: Kms, services: dict[str, Faulty]
) -> None:
    """The conflict is reported, and the reference stays."""
    fill(shelf, queue, kms, services, names="1", away="b")
    others = [seal_without(kms, services, "b") for _ in range(2)]

    def interfere() -> None:
        shelf.blobs["1"] = others[shelf.blobs["1"] == others[0]]

    shelf.meanwhile += [interfere] * 100
    ((_, error),) = queue.run().failed
    assert isinstance(error, RewrapConflict)
    assert len(shelf.loads) == CONFLICT_RETRIES
    assert list(queue) == ["1"]


def test_what_is_added_again_while_it_is_repaired_stays(
    queue: RepairQueue, shelf: Shelf, kms: Kms, services: dict[str, Faulty]
) -> None:
    """Who adds it may have stored something newer: it is looked at once more."""
    fill(shelf, queue, kms, services, names="1", away="b")
    newer = seal_without(kms, services, "b")
    store = shelf.store

    def store_and_be_overwritten(reference: str, old: bytes, new: bytes) -> None:
        store(reference, old, new)
        shelf.blobs["1"] = newer
        queue.add("1")

    queue._source = CallbackSource(shelf.load, store_and_be_overwritten)
    assert queue.run() == RepairReport(repaired=1, waiting=1)
    queue._source = shelf
    assert queue.run() == RepairReport(repaired=1)
    assert shelf.missing("1") == ()


def test_an_interrupted_run_gives_its_reference_back(
    queue: RepairQueue, shelf: Shelf, kms: Kms, services: dict[str, Faulty]
) -> None:
    """It is due at once, and does not count as a failure."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    fill(shelf, queue, kms, services, names="12", away="b")
    shelf.meanwhile.append(interrupt)
    with pytest.raises(KeyboardInterrupt):
        queue.run()
    assert [entry.attempts for entry in queue._ledger.entries()] == [0, 0]
    assert queue.run() == RepairReport(repaired=2)


def test_threads_share_the_work(
    queue: RepairQueue, shelf: Shelf, kms: Kms, services: dict[str, Faulty]
) -> None:
    """Four runs and four that add at once: everything is repaired, nothing of it twice."""
    names = [str(number) for number in range(40)]
    blob = seal_without(kms, services, "b")
    shelf.blobs = dict.fromkeys(names, blob)
    before = services["b"].count("encrypt")

    def work(part: int) -> int:
        queue.add(*names[part::4])
        return queue.run().repaired

    with ThreadPoolExecutor(4) as pool:
        repaired = sum(pool.map(work, range(4)))
    repaired += queue.run().repaired
    assert repaired == len(names)
    assert services["b"].count("encrypt") - before == len(names)
    assert queue.pending == 0


# --- the end -------------------------------------------------------------------------------------


def test_a_closed_queue_refuses(queue: RepairQueue) -> None:
    """Closing twice is once, and what is in it can still be seen."""
    queue.add("1")
    queue.close()
    queue.close()
    with pytest.raises(InvalidRequest, match="closed"):
        queue.add("2")
    with pytest.raises(InvalidRequest, match="closed"):
        queue.run()
    assert list(queue) == ["1"]


def test_closing_ends_a_run_after_the_reference_at_hand(
    queue: RepairQueue, shelf: Shelf, kms: Kms, services: dict[str, Faulty]
) -> None:
    """What was begun is finished, and the rest stays."""
    fill(shelf, queue, kms, services, names="123", away="b")
    shelf.meanwhile.append(queue.close)
    assert queue.run() == RepairReport(repaired=1, waiting=2)


def test_closing_wakes_a_run_that_waits_for_its_turn(
    kms: Kms, services: dict[str, Faulty], shelf: Shelf
) -> None:
    """At one an hour nobody waits for the second."""
    queue = RepairQueue(kms, shelf, per_second=1 / 3600)
    fill(shelf, queue, kms, services, names="12", away="b")
    begun = threading.Event()
    shelf.meanwhile.append(begun.set)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(queue.run)
        assert begun.wait(30)
        queue.close()
        assert running.result(30) == RepairReport(repaired=1, waiting=1)


def test_a_closed_client_ends_a_run(
    shelf: Shelf, services: dict[str, Faulty], clock: Clock, path: Path | None
) -> None:
    """Nothing else is tried, let alone put off."""
    kms = client_for(services)
    queue = queue_on(kms, shelf, clock, path=path)
    fill(shelf, queue, kms, services, names="123", away="b")
    shelf.meanwhile.append(kms.close)
    assert queue.run() == RepairReport(repaired=1, waiting=2)
    assert [entry.attempts for entry in queue._ledger.entries()] == [0, 0]
    with pytest.raises(InvalidRequest, match="closed"):
        queue.run()


# --- files ---------------------------------------------------------------------------------------


@pytest.fixture
def files(kms: Kms, services: dict[str, Faulty], tmp_path: Path) -> list[Path]:
    """Three degraded files, alone in their folder."""
    folder = tmp_path / "files"
    folder.mkdir()
    paths = [folder / str(number) for number in range(3)]
    for path in paths:
        path.write_bytes(seal_without(kms, services, "b"))
    return paths


def test_files_are_repaired_where_they_are(
    kms: Kms, files: list[Path], clock: Clock, stores: dict[str, MemoryStore]
) -> None:
    """With their mode, and nothing left beside them."""
    files[0].chmod(0o640)
    with queue_on(kms, FileSource(), clock) as queue:
        queue.add(*map(str, files))
        assert queue.run() == RepairReport(repaired=3)
    assert all(opens(stores, "b", path.read_bytes()) for path in files)
    assert files[0].stat().st_mode & 0o777 == 0o640
    assert sorted(files[0].parent.iterdir()) == files


def test_no_more_of_a_file_is_loaded_than_its_capsule(files: list[Path]) -> None:
    """However large it is."""
    os.truncate(files[0], 1 << 30)
    loaded = FileSource().load(str(files[0]))
    assert len(loaded) == Kms.inspect(loaded).capsule_bytes


@pytest.mark.parametrize("change", ["removed", "replaced", "rewrapped"])
def test_a_file_that_changed_is_a_conflict(kms: Kms, files: list[Path], change: str) -> None:
    """It stays as the other one left it."""
    path, source = files[0], FileSource()
    old = source.load(str(path))
    new = kms.rewrap(path.read_bytes())[: len(old)]
    if change == "removed":
        path.unlink()
    elif change == "replaced":
        files[1].replace(path)
    else:
        assert kms.rewrap_file(path)
    found = path.read_bytes() if path.exists() else None
    with pytest.raises(RewrapConflict, match="somebody else"):
        source.store(str(path), old, new)
    assert (path.read_bytes() if path.exists() else None) == found


def test_files_that_are_gone_or_no_envelopes(kms: Kms, files: list[Path], clock: Clock) -> None:
    """The first are forgotten; the others are reported, with what to do about a compact one."""
    compact, cut = files[1], files[2]
    blob = compact.read_bytes()
    compact.write_bytes(blob[Kms.inspect(blob).capsule_bytes :])
    cut.write_bytes(cut.read_bytes()[:100])
    files[0].unlink()
    with queue_on(kms, FileSource(), clock) as queue:
        queue.add(*map(str, files))
        report = queue.run()
        assert (report.gone, report.waiting) == (1, 0)
        errors = dict(report.failed)
        assert "CapsuleSource" in str(errors[str(compact)])
        assert isinstance(errors[str(cut)], FormatError)
        assert list(queue) == [str(compact), str(cut)]


# --- capsules of compact messages ----------------------------------------------------------------


def test_capsules_are_repaired_in_their_store(
    services: dict[str, Faulty], stores: dict[str, MemoryStore], clock: Clock
) -> None:
    """As ``Kms.rewrap`` of the message would do; the message stays as it is."""
    capsules = MemoryCapsules()
    with client_for(services, options={"capsules": capsules}) as kms:
        message = seal_without(kms, services, "b", inline=False)
        key_id = Kms.inspect(message).key_id
        with queue_on(kms, CapsuleSource(capsules), clock) as queue:
            queue.add(key_id, "00" * 16, "not hex", "00")
            report = queue.run()
        assert (report.repaired, report.gone) == (1, 1)
        assert references(report) == ["not hex", "00"]
        assert all(isinstance(error, InvalidRequest) for _, error in report.failed)
        stored = capsules.get(bytes.fromhex(key_id))
        assert stored is not None
        capsule = parse_capsule(stored)
        assert (capsule.generation, capsule.missing) == (1, ())
    with client_for(on(stores, "b"), options={"capsules": capsules}) as reader:
        assert reader.open(message, CONTEXT) == SECRET


def test_a_capsule_rewrapped_meanwhile_is_loaded_anew(
    services: dict[str, Faulty], clock: Clock
) -> None:
    """The store refuses what does not follow, and the queue begins again."""
    capsules = MemoryCapsules()
    with client_for(services, options={"capsules": capsules}) as kms:
        message = seal_without(kms, services, "bc", inline=False)
        key_id = Kms.inspect(message).key_id
        source = CapsuleSource(capsules)
        others = [lambda: kms.rewrap(message, add="b", repair=False)]

        def store(reference: str, old: bytes, new: bytes) -> None:
            if others:
                others.pop()()
            source.store(reference, old, new)

        with queue_on(kms, CallbackSource(source.load, store), clock) as queue:
            queue.add(key_id)
            assert queue.run() == RepairReport(repaired=1)
        stored = capsules.get(bytes.fromhex(key_id))
        assert stored is not None
        assert parse_capsule(stored).generation == 2


# --- the database --------------------------------------------------------------------------------


def test_a_queue_outlives_its_process(
    kms: Kms, services: dict[str, Faulty], shelf: Shelf, clock: Clock, tmp_path: Path
) -> None:
    """With its order, its attempts, and what it waits for."""
    path = tmp_path / "queue.sqlite"
    with queue_on(kms, shelf, clock, path=path) as queue:
        fill(shelf, queue, kms, services, names="12", away="b")
        queue.add("3")
        shelf.blobs["3"] = b"no envelope"
        kms.force_breaker("b", "open")
        assert queue.run().waiting == 2
        before = list(queue._ledger.entries())
    with queue_on(kms, shelf, clock, path=path) as queue:
        assert list(queue._ledger.entries()) == before
        kms.force_breaker("b", None)
        assert queue.run() == RepairReport(repaired=2, waiting=1)
        assert [entry.attempts for entry in queue._ledger.entries()] == [1]


def test_a_long_queue_is_gone_through_in_order(
    kms: Kms, shelf: Shelf, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many pages it takes; what was added meanwhile is for the next run."""
    monkeypatch.setattr("kms_core.repair._PAGE", 8)
    names = [f"{number:02}" for number in range(20)]
    with queue_on(kms, shelf, clock, path=tmp_path / "queue") as queue:
        queue.add(*names)

        def load(reference: str) -> bytes:
            queue.add(f"{reference} again")
            raise KeyError(reference)

        queue._source = CallbackSource(load, shelf.store)
        assert queue.run() == RepairReport(gone=20, waiting=20)
        assert list(queue) == [f"{name} again" for name in names]


def test_the_database_is_private(kms: Kms, shelf: Shelf, tmp_path: Path) -> None:
    """Whatever the umask; it stands alone where nobody uses it."""
    path = tmp_path / "queue"
    before = os.umask(0)
    try:
        with RepairQueue(kms, shelf, path=path) as queue:
            queue.add("1")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_a_queue_is_said_at_once(kms: Kms, shelf: Shelf, tmp_path: Path) -> None:
    """Neither overwritten nor made into one."""
    other = tmp_path / "letter"
    other.write_bytes(b"Dear all, this is no database. " * 100)
    for path in (other, tmp_path / "nowhere" / "queue", tmp_path):
        with pytest.raises(Unavailable, match=path.name):
            RepairQueue(kms, shelf, path=path)
    assert other.read_bytes().startswith(b"Dear all")


def test_a_claim_holds_for_its_time_and_no_longer(
    kms: Kms, services: dict[str, Faulty], shelf: Shelf, clock: Clock, tmp_path: Path
) -> None:
    """Whoever was killed keeps its reference from the others for a while, and loses nothing."""
    path = tmp_path / "queue"

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with queue_on(kms, shelf, clock, path=path) as queue:
        fill(shelf, queue, kms, services, names="12", away="b")

        def work() -> None:
            shelf.meanwhile.append(die)
            queue.run()

        assert in_child(work) == f"it ended with exit code {-signal.SIGKILL}"
        assert queue.run() == RepairReport(repaired=1, waiting=1)
        assert list(queue) == ["1"]
        clock.advance(CLAIM)
        assert queue.run() == RepairReport(repaired=1)


def test_two_processes_do_nothing_twice(
    kms: Kms,
    services: dict[str, Faulty],
    stores: dict[str, MemoryStore],
    tmp_path: Path,
) -> None:
    """They start together, both do some of the work, and every file is rewrapped once."""
    files = [tmp_path / f"sealed{number}" for number in range(40)]
    blob = seal_without(kms, services, "b")
    for file in files:
        file.write_bytes(blob)
    path = tmp_path / "queue"
    with RepairQueue(kms, FileSource(), path=path) as queue:
        queue.add(*map(str, files))
    pipes = os.pipe(), os.pipe()

    def repairing(mine: int, other: int) -> Callable[[], None]:
        def work() -> None:
            here = on(stores)
            with client_for(here) as client:
                source = FileSource()
                met: list[bytes] = []

                def store(reference: str, old: bytes, new: bytes) -> None:
                    if not met:  # each has one in hand when either goes on
                        os.write(pipes[other][1], b".")
                        met.append(os.read(pipes[mine][0], 1))
                    source.store(reference, old, new)

                with RepairQueue(
                    client, CallbackSource(source.load, store), path=path, per_second=1e6
                ) as queue:
                    report = queue.run()
                counts = report.repaired, here["b"].count("encrypt")
                (tmp_path / f"counts{mine}").write_text(" ".join(map(str, counts)))

        return work

    try:
        with ThreadPoolExecutor(2) as pool:
            said = [pool.submit(in_child, repairing(*pair)) for pair in ((0, 1), (1, 0))]
            assert [each.result() for each in said] == ["", ""]
    finally:
        for pipe in pipes:
            for end in pipe:
                os.close(end)
    counts = [(tmp_path / f"counts{number}").read_text().split() for number in (0, 1)]
    repaired, wrapped = (sum(map(int, each)) for each in zip(*counts, strict=True))
    assert (repaired, wrapped) == (len(files), len(files))
    assert all(int(count) > 0 for count, _ in counts)
    for file in files:
        blob = file.read_bytes()
        assert parse_capsule(blob[: Kms.inspect(blob).capsule_bytes]).generation == 1
    with RepairQueue(kms, FileSource(), path=path) as queue:
        assert queue.pending == 0


@pytest.mark.parametrize("place", ["memory", "database"])
def test_a_forked_child_can_go_on(
    kms: Kms, services: dict[str, Faulty], clock: Clock, tmp_path: Path, place: str
) -> None:
    """Even where another thread was using the queue at the moment of the fork."""
    path = tmp_path / "queue" if place == "database" else None
    file = tmp_path / "sealed"
    file.write_bytes(seal_without(kms, services, "b"))
    stop = threading.Event()
    with queue_on(kms, FileSource(), clock, path=path) as queue:
        queue.add(str(file))

        def keep_busy() -> None:
            while not stop.is_set():
                queue.add(str(file))

        def work() -> None:
            queue.add("nowhere")
            assert list(queue) == [str(file), "nowhere"]
            assert queue.run().gone == 1  # the other one is being added all the time

        with ThreadPoolExecutor(1) as pool:
            busy = pool.submit(keep_busy)
            try:
                for _ in range(5):
                    assert in_child(work) == ""
            finally:
                stop.set()
            assert busy.exception() is None


def test_a_closed_queue_stays_closed_in_a_forked_child(queue: RepairQueue) -> None:
    """Though the child builds its locks anew."""
    queue.close()

    def work() -> None:
        with pytest.raises(InvalidRequest, match="closed"):
            queue.run()

    assert in_child(work) == ""


# --- killed --------------------------------------------------------------------------------------

FILES = 1000
KILLS = 50
TOGETHER = 2  # processes at a time
STEPS = 2500  # of each: some eighteen files' worth


def test_killed_at_any_moment_it_leaves_whole_files_and_the_rest_of_the_queue(
    tmp_path: Path,
) -> None:
    """Fifty times, two at once: each file is the old or the new one and opens; the next go on."""
    pytest.importorskip("kms_local", reason="the services of this test are local key stores")
    from tests.kill_repair import SWITCH, Place

    place = Place(tmp_path)
    place.prepare()
    (tmp_path / SWITCH).touch()
    degraded = {}
    folder = tmp_path / "files"
    folder.mkdir()
    with place.client() as kms, place.queue(kms) as queue:
        for number in range(FILES):
            blob = degraded[folder / str(number)] = kms.seal(b"%d" % number, CONTEXT)
            (folder / str(number)).write_bytes(blob)
        queue.add(*map(str, degraded))
    (tmp_path / SWITCH).unlink()
    moments = random.Random(50)  # noqa: S311  that they can be repeated is the point
    left = dict(degraded)
    with (
        place.client("second") as reader,
        place.queue(reader) as queue,
        ThreadPoolExecutor(TOGETHER) as pool,
    ):
        for _ in range(KILLS // TOGETHER):
            steps = [moments.randrange(1, STEPS) for _ in range(TOGETHER)]
            list(pool.map(partial(kill_after, tmp_path), steps))
            for file in [file for file, old in left.items() if file.read_bytes() != old]:
                check_repaired(reader, file, left.pop(file))
            assert set(map(str, left)) <= set(queue)
    assert FILES // 10 < len(left) < FILES, "the kills were not in the middle of the work"
    with (
        place.client() as kms,
        place.queue(kms, wall_clock=lambda: 2 * CLAIM + folder.stat().st_mtime) as queue,
        place.client("second") as reader,
    ):
        report = queue.run()
        assert (report.waiting, report.failed, queue.pending) == (0, (), 0)
        for file, old in left.items():
            check_repaired(reader, file, old)
    remains = [file for file in folder.iterdir() if not file.name.isdigit()]
    assert len(remains) <= KILLS


def kill_after(folder: Path, steps: int) -> None:
    """Let a process repair for so many steps, and kill it where it stands."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.kill_repair", str(folder)], cwd=ROOT, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        try:
            assert len(child.stdout.read(steps)) == steps
        finally:
            child.kill()


def check_repaired(reader: Kms, file: Path, old: bytes) -> None:
    """Whole, with the body it had, and open to who was missing."""
    new = file.read_bytes()
    before, after = Kms.inspect(old), Kms.inspect(new)
    assert after.missing == ()
    assert new[after.capsule_bytes :] == old[before.capsule_bytes :]
    assert reader.open(new, CONTEXT) == file.name.encode()
