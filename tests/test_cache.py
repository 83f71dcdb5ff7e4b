"""What the cache of data keys is made of: flights, keys for opening, and the sweep of old ones."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from math import inf
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kms_core import CachePolicy, Context, Duration
from kms_core.aead import KEY_ID_BYTES, Keys, random_key
from kms_core.cache import (
    LONGEST_PAUSE,
    MAX_AGE,
    MAX_MESSAGES,
    NAP,
    SHORTEST_PAUSE,
    CacheCounts,
    CacheInfo,
    Flights,
    Sweeper,
    since_boot,
)
from kms_core.envelope import seal_message
from kms_core.errors import IntegrityError, Unavailable
from kms_core.header import SUBKEY_PREFIX_BYTES, parse_message_header
from kms_core.opening import MAX_CAPSULES, MAX_OPENERS, OpenedKeys
from kms_core.sessions import SMALL, Opener
from kms_core.workers import Workers
from tests.support import PATIENCE, Clock

NOBODY = Context()


def tenant(name: object) -> Context:
    """A scope of its own."""
    return Context({"tenant": str(name)})


def wait_until(holds: Callable[[], bool]) -> None:
    """Let other threads run until something holds that no event tells of."""
    give_up = threading.Event()
    for _ in range(3000):
        if holds():
            return
        give_up.wait(0.01)
    raise AssertionError("it never came to hold")


# --- the policy ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_age": Duration(-1.0)},
        {"max_age": Duration(MAX_AGE + 1)},
        {"max_age": Duration(float("nan"))},
        {"stale_if_error": Duration(-1.0)},
        {"degraded_max_age": Duration(MAX_AGE + 1)},
        {"max_messages": 0},
        {"max_messages": MAX_MESSAGES + 1},
        {"max_bytes": SMALL - 1},
        {"max_entries": 0},
        {"refresh_ahead": -0.1},
        {"refresh_ahead": 1.0},
    ],
    ids=str,
)
def test_policy_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    """By name: a key that may seal not even one message is none."""
    (name,) = wrong
    with pytest.raises(ValueError, match=name):
        CachePolicy(**wrong)


def test_policy_may_go_to_its_limits() -> None:
    """Those of the format."""
    longest = Duration(MAX_AGE)
    policy = CachePolicy(max_age=longest, stale_if_error=longest, max_messages=MAX_MESSAGES)
    assert policy.max_age == longest
    assert CachePolicy(max_bytes=SMALL, refresh_ahead=0.0, max_entries=1).max_bytes == SMALL


def test_sums_are_those_of_both_sides() -> None:
    """Sealing and opening."""
    info = CacheInfo(CacheCounts(1, 2, 3, 4, 5), CacheCounts(10, 20, 30, 40, 50))
    assert (info.hits, info.misses, info.coalesced, info.evicted) == (11, 22, 33, 44)


def test_clock_goes_on() -> None:
    """Never backwards."""
    before = since_boot()
    assert since_boot() >= before


# --- flights -------------------------------------------------------------------------------------


def fly_together(
    flights: Flights[str, object], work: Callable[[], object], count: int
) -> list[Any]:
    """What this many threads get that want the same at once, errors included."""

    def run(_: int) -> object:
        try:
            return flights.run("key", work)
        except BaseException as exc:  # noqa: BLE001  all of them are results here
            return exc

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(run, range(count)))


def test_sixty_four_threads_cost_one_run() -> None:
    """All get its result, and those who joined are counted."""
    flights: Flights[str, object] = Flights()
    runs: list[object] = []

    def work() -> object:
        wait_until(lambda: flights.joined == 63)
        runs.append(object())
        return runs[0]

    results = fly_together(flights, work, 64)
    assert len(runs) == 1
    assert all(result is runs[0] for result in results)
    assert flights.joined == 63


def test_error_is_everybodys() -> None:
    """Nobody repeats what has just failed; whoever comes later does."""
    flights: Flights[str, object] = Flights()
    runs: list[int] = []

    def fail() -> object:
        wait_until(lambda: flights.joined == 7)
        runs.append(1)
        raise Unavailable("no route")

    results = fly_together(flights, fail, 8)
    assert len(runs) == 1
    assert all(isinstance(result, Unavailable) for result in results)
    assert flights.run("key", lambda: "well") == "well"


def test_interrupted_leader_fails_nobody_else() -> None:
    """One of those who waited takes over."""
    flights: Flights[str, object] = Flights()
    runs: list[int] = []

    def work() -> object:
        runs.append(1)
        if len(runs) == 1:
            wait_until(lambda: flights.joined == 7)
            raise KeyboardInterrupt
        return "done"

    results = fly_together(flights, work, 8)
    assert sum(isinstance(result, KeyboardInterrupt) for result in results) == 1
    assert results.count("done") == 7


def test_different_things_are_done_side_by_side() -> None:
    """One hangs, another goes on."""
    flights: Flights[str, object] = Flights()
    assert flights.run("a", lambda: flights.run("b", lambda: 1)) == 1


def test_work_that_wants_the_same_again_does_not_wait_for_itself() -> None:
    """Nor on another thread that belongs to it."""
    flights: Flights[str, int] = Flights()
    workers = Workers("test", 1)

    def work() -> int:
        return workers.submit(lambda: flights.run("key", lambda: 1)).result(PATIENCE) + 1

    assert flights.run("key", lambda: flights.run("key", work)) == 2
    assert flights.joined == 0
    assert flights._under_way == {}
    workers.close()


def test_what_comes_after_landing_is_not_part_of_the_flight() -> None:
    """A callback that sees the result of one flight begins another."""
    flights: Flights[str, object] = Flights()
    state = ["old"]
    entered, leave = threading.Event(), threading.Event()

    def slow() -> str:
        seen = state[0]
        entered.set()
        assert leave.wait(PATIENCE)
        return seen

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(flights.run, "key", slow)
        assert entered.wait(PATIENCE)
        joined = threads.submit(flights.run, "key", lambda: state[0])
        wait_until(lambda: flights.joined == 1)
        state[0] = "new"
        leave.set()
        assert joined.result(PATIENCE) == first.result(PATIENCE) == "old"
        assert flights.run("key", lambda: state[0]) == "new"
    assert flights._under_way == {}


# --- opened keys ---------------------------------------------------------------------------------


class Rig:
    """Opened keys, whose clock and services are the test's."""

    def __init__(self, max_age: float = 100.0, max_entries: int = 4) -> None:
        self.clock = Clock()
        self.asked = 0
        self.kept = 0
        policy = CachePolicy(max_age=Duration(max_age), max_entries=max_entries)
        self.keys = OpenedKeys(policy, self.clock, self._note_kept)

    def _note_kept(self) -> None:
        self.kept += 1

    def open(self, keys: Keys, message: bytes, capsule: bytes = b"") -> bytes:
        """Open a message, on the short way if there is one."""
        body = message[len(capsule) :]
        header = parse_message_header(body)
        opener = self.keys.openers.get(body[:SUBKEY_PREFIX_BYTES])
        if opener is None or self.clock() >= opener.expires:
            opener = Opener(keys, body[:SUBKEY_PREFIX_BYTES], capsule)
            plaintext = opener.open(header.iv, body[header.size :], NOBODY.encoded)
            self.keys.keep_opener(keys, opener)
            return plaintext
        opener.hits += 1
        opener.used = self.clock()
        return opener.open(header.iv, body[header.size :], NOBODY.encoded)


DEKS: dict[bytes, tuple[bytearray, Context]] = {}


def new_keys(scope: Context = NOBODY) -> Keys:
    """Those of a fresh data key."""
    dek = random_key()
    keys = Keys(dek, scope)
    DEKS[keys.key_id] = (dek, scope)
    return keys


def copy_of(keys: Keys) -> Keys:
    """What another unwrap of the same data key yields."""
    return Keys(*DEKS[keys.key_id])


def capsule_of(keys: Keys, form: int = 0) -> bytes:
    """Bytes that stand for one form of its capsule."""
    return b"capsule %d of " % form + keys.key_id


def opened(rig: Rig, keys: Keys, form: int = 0) -> Keys:
    """The keys as kept, asked for if need be."""
    capsule = capsule_of(keys, form)
    known = rig.keys.find(keys.key_id, capsule)
    if known is not None:
        return known

    def ask() -> Keys:
        rig.asked += 1
        return copy_of(keys)

    return rig.keys.unlocked(keys.key_id, capsule, ask)


def test_key_is_asked_for_once() -> None:
    """Until its time is over, which no use extends."""
    rig, keys = Rig(), new_keys()
    first = opened(rig, keys)
    rig.clock.advance(99)
    assert opened(rig, keys) is first
    rig.clock.advance(1)
    assert opened(rig, keys) is not first
    assert (rig.asked, rig.kept) == (2, 2)
    assert rig.keys.counts == CacheCounts(hits=1, misses=2, keys=1)


def test_nothing_is_kept_without_an_age() -> None:
    """Every message asks services."""
    rig, keys = Rig(max_age=0), new_keys()
    assert opened(rig, keys) is not opened(rig, keys)
    assert (rig.asked, rig.kept) == (2, 0)
    assert rig.keys.counts.keys == 0


def test_failure_is_not_kept() -> None:
    """Nor does it count as a key that was asked for."""
    rig, keys = Rig(), new_keys()

    def refuse() -> Keys:
        raise IntegrityError

    with pytest.raises(IntegrityError):
        rig.keys.unlocked(keys.key_id, b"capsule", refuse)
    assert rig.keys.counts == CacheCounts()
    opened(rig, keys)
    assert rig.keys.counts.keys == 1


def test_key_that_is_kept_can_make_no_capsule() -> None:
    """What stays in memory is good for messages only."""
    rig = Rig()
    assert opened(rig, new_keys())._capsule is None


def test_capsule_that_was_not_verified_is_no_hit() -> None:
    """However well the key is known: somebody may have altered it."""
    rig, keys = Rig(), new_keys()
    opened(rig, keys)
    assert rig.keys.find(keys.key_id, capsule_of(keys, 1)) is None
    assert rig.keys.find(keys.key_id, b"") is not None
    assert rig.keys.find(bytes(KEY_ID_BYTES), b"") is None


def test_forms_of_one_capsule_share_their_key() -> None:
    """Before and after a repair; only so many are remembered, and asking again helps."""
    rig, keys = Rig(), new_keys()
    first = opened(rig, keys)
    for form in range(1, MAX_CAPSULES + 1):
        assert opened(rig, keys, form) is first
    assert rig.asked == MAX_CAPSULES + 1
    assert rig.keys.find(keys.key_id, capsule_of(keys, 0)) is None
    assert rig.keys.find(keys.key_id, capsule_of(keys, MAX_CAPSULES)) is first
    assert rig.keys.counts.keys == 1


def test_expired_key_does_not_swallow_the_one_that_was_asked_for() -> None:
    """Not even if that came out of another form of its capsule."""
    rig, keys = Rig(), new_keys()
    old = opened(rig, keys)
    rig.clock.advance(100)
    new = opened(rig, keys, form=1)
    assert new is not old
    assert opened(rig, keys, form=1) is new
    assert rig.asked == 2


def test_one_unwrap_serves_everybody_who_waits() -> None:
    """Sixty-four threads with the same cold capsule."""
    rig, keys = Rig(), new_keys()

    def ask() -> Keys:
        wait_until(lambda: rig.keys.counts.coalesced == 63)
        rig.asked += 1
        return copy_of(keys)

    def open_(_: int) -> Keys:
        return rig.keys.unlocked(keys.key_id, capsule_of(keys), ask)

    with ThreadPoolExecutor(64) as threads:
        results = set(map(id, threads.map(open_, range(64))))
    assert len(results) == rig.asked == 1
    assert rig.keys.counts == CacheCounts(misses=1, coalesced=63, keys=1)


# --- openers -------------------------------------------------------------------------------------


def test_opener_is_kept_as_long_as_its_key() -> None:
    """And none for keys that are not kept."""
    rig, keys = Rig(), new_keys()
    kept = opened(rig, keys)
    message = seal_message(kept, b"data", NOBODY)
    rig.clock.advance(60)
    assert rig.open(kept, message) == b"data"
    (opener,) = rig.keys.openers.values()
    assert opener.expires == rig.clock() + 40
    assert opener.front is None
    other = new_keys()
    assert rig.open(other, seal_message(other, b"data", NOBODY)) == b"data"
    assert list(rig.keys.openers.values()) == [opener]


def test_opener_knows_the_scope_and_the_capsule_in_front() -> None:
    """A scope without entries needs no look."""
    rig, keys = Rig(), new_keys(tenant("a"))
    kept = opened(rig, keys)
    message = seal_message(kept, b"data", NOBODY)
    rig.open(kept, capsule_of(keys) + message, capsule_of(keys))
    (opener,) = rig.keys.openers.values()
    assert opener.scope == tenant("a")
    assert opener.front == capsule_of(keys) + message[:SUBKEY_PREFIX_BYTES]


def test_message_that_does_not_authenticate_leaves_no_opener() -> None:
    """Else whoever knows a key id could drive out the openers in use."""
    rig, keys = Rig(), new_keys()
    kept = opened(rig, keys)
    rig.open(kept, seal_message(kept, b"data", NOBODY))
    for _ in range(MAX_OPENERS):
        message = bytearray(seal_message(kept, b"data", NOBODY))
        message[-1] ^= 1
        with pytest.raises(IntegrityError):
            rig.open(kept, bytes(message))
    assert len(rig.keys.openers) == 1


def test_only_so_many_openers_are_kept_of_one_key() -> None:
    """The oldest goes."""
    rig, keys = Rig(), new_keys()
    kept = opened(rig, keys)
    messages = [seal_message(kept, b"data", NOBODY) for _ in range(MAX_OPENERS + 10)]
    for message in messages:
        rig.open(kept, message)
    prefixes = [message[:SUBKEY_PREFIX_BYTES] for message in messages]
    assert list(rig.keys.openers) == prefixes[10:]


def test_only_so_many_openers_are_kept_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest goes, whosesoever it is: memory is bounded whatever readers are sent."""
    monkeypatch.setattr("kms_core.opening.MAX_ALL_OPENERS", 4)
    rig, keys = Rig(max_entries=2), [new_keys(), new_keys()]
    kept = [opened(rig, each) for each in keys]
    messages = [seal_message(kept[number % 2], b"data", NOBODY) for number in range(6)]
    for number, message in enumerate(messages):
        rig.open(kept[number % 2], message)
    assert list(rig.keys.openers) == [message[:SUBKEY_PREFIX_BYTES] for message in messages[2:]]


def test_openers_go_with_their_key() -> None:
    """Whoever holds one opens nothing with it any more, and what it did stays counted."""
    rig, keys = Rig(), new_keys()
    kept = opened(rig, keys)
    message = seal_message(kept, b"data", NOBODY)
    for _ in range(5):
        rig.open(kept, message)
    (opener,) = rig.keys.openers.values()
    rig.keys.forget()
    assert rig.keys.openers == {}
    assert opener.expires == -inf
    with pytest.raises(TypeError):
        opener.decrypt(b"", b"", b"")
    assert rig.keys.counts == CacheCounts(hits=4, misses=1)


# --- making room ---------------------------------------------------------------------------------


def test_least_recently_used_key_makes_room() -> None:
    """Be it used by a look-up or on the short way."""
    rig = Rig(max_entries=3)
    a, b, c, d, e = (new_keys() for _ in range(5))
    for keys in (a, b, c):
        opened(rig, keys)
        rig.clock.advance(1)
    kept = opened(rig, a)
    message = seal_message(kept, b"data", NOBODY)
    rig.open(kept, message)
    rig.clock.advance(1)
    opened(rig, d)
    rig.clock.advance(1)
    rig.open(kept, message)
    rig.clock.advance(1)
    opened(rig, c)
    opened(rig, e)
    held = [keys for keys in (a, b, c, d, e) if rig.keys.find(keys.key_id, b"") is not None]
    assert held == [a, c, e]
    assert rig.keys.counts.evicted == 2


def test_tenant_with_many_keys_drives_out_its_own() -> None:
    """Not the only one of another, however long ago that was used."""
    rig = Rig(max_entries=4)
    quiet = new_keys(tenant("quiet"))
    opened(rig, quiet)
    for _ in range(20):
        rig.clock.advance(1)
        opened(rig, new_keys(tenant("loud")))
    assert rig.keys.find(quiet.key_id, b"") is not None
    assert rig.keys.counts.evicted == 17


def test_among_equals_the_least_recently_used_makes_room() -> None:
    """A tenant that opens all the time keeps its one key among many that come once."""
    rig = Rig(max_entries=4)
    busy = new_keys(tenant("busy"))
    opened(rig, busy)
    for number in range(20):
        rig.clock.advance(1)
        opened(rig, new_keys(tenant(number)))
        rig.clock.advance(1)
        opened(rig, busy)
    assert rig.asked == 21


def test_expired_keys_make_room_first() -> None:
    """Which is no eviction."""
    rig = Rig(max_entries=2)
    opened(rig, new_keys())
    rig.clock.advance(60)
    kept = new_keys()
    opened(rig, kept)
    rig.clock.advance(40)
    opened(rig, new_keys())
    assert rig.keys.find(kept.key_id, b"") is not None
    assert rig.keys.counts.evicted == 0


# --- forgetting ----------------------------------------------------------------------------------


def test_forgetting_drops_what_belongs_to_a_context_or_has_an_id() -> None:
    """Other tenants' keys stay."""
    rig = Rig()
    a, b, c = (new_keys(tenant(name)) for name in "abc")
    for keys in (a, b, c):
        opened(rig, keys)
    assert rig.keys.forget(Context({"tenant": "b", "row": "7"})) == 1
    assert rig.keys.forget(key_id=c.key_id) == 1
    assert rig.keys.forget(tenant("b"), a.key_id) == 0
    assert rig.keys.find(a.key_id, b"") is not None
    assert rig.keys.counts.keys == 1
    assert rig.keys.forget() == 1


def test_key_asked_for_before_everything_was_forgotten_is_not_kept() -> None:
    """Whoever asked for it may still use it once."""
    rig, keys = Rig(), new_keys()

    def ask() -> Keys:
        rig.keys.forget()
        return copy_of(keys)

    got = rig.keys.unlocked(keys.key_id, capsule_of(keys), ask)
    assert got.key_id == keys.key_id
    assert rig.keys.counts.keys == 0
    rig.open(got, seal_message(got, b"data", NOBODY))
    assert rig.keys.openers == {}


def test_expired_keys_are_dropped_though_nobody_asks() -> None:
    """The next moment to look is that of the key that ends first."""
    rig = Rig()
    opened(rig, new_keys())
    rig.clock.advance(10)
    opened(rig, new_keys())
    assert rig.keys.drop_expired() == 1100
    rig.clock.advance(90)
    assert rig.keys.drop_expired() == 1110
    rig.clock.advance(10)
    assert rig.keys.drop_expired() == inf
    assert rig.keys.counts.keys == 0


class OpeningMachine(RuleBasedStateMachine):
    """Opens, waits and forgets in any order, beside a list of what may be known."""

    names = st.sampled_from([(who, number) for who in "abc" for number in range(3)])

    def __init__(self) -> None:
        super().__init__()
        self.rig = Rig(max_age=20, max_entries=4)
        self.all = {(who, n): new_keys(tenant(who)) for who in "abc" for n in range(3)}
        self.messages = {
            name: seal_message(keys, b"data", NOBODY) for name, keys in self.all.items()
        }
        self.asked_at: dict[tuple[str, int], float] = {}
        self.hits = 0

    @rule(name=names, form=st.sampled_from([0, 1]))
    def open(self, name: tuple[str, int], form: int) -> None:
        """On the short way, with a key at hand, or with one that is asked for."""
        rig, keys, before = self.rig, self.all[name], self.rig.asked
        prefix = self.messages[name][:SUBKEY_PREFIX_BYTES]
        opener = rig.keys.openers.get(prefix)
        if opener is not None and rig.clock() < opener.expires:
            assert rig.clock() < self.asked_at[name] + 20
            assert rig.open(keys, self.messages[name]) == b"data"
            self.hits += 1
            return
        kept = opened(rig, keys, form)
        if rig.asked == before:
            assert rig.clock() < self.asked_at[name] + 20
            self.hits += 1
        else:  # for the first time, or it was evicted, or that form of its capsule is new
            self.asked_at[name] = rig.clock()
        assert rig.open(kept, self.messages[name]) == b"data"

    @rule(seconds=st.sampled_from([1.0, 7.0, 20.0]))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.rig.clock.advance(seconds)

    @rule(who=st.sampled_from([None, "a", "b"]))
    def forget(self, who: str | None) -> None:
        """Some keys, or all."""
        self.rig.keys.forget(None if who is None else tenant(who))
        for keys in self.all.values():
            if who is None or keys.scope == tenant(who):
                assert self.rig.keys.find(keys.key_id, b"") is None

    @rule()
    def sweep(self) -> None:
        """What is over goes."""
        assert self.rig.keys.drop_expired() > self.rig.clock()

    @invariant()
    def what_is_kept_is_consistent(self) -> None:
        """Openers belong to keys, keys to scopes, and there are not too many."""
        keys = self.rig.keys
        assert len(keys._keys) <= 4
        prefixes = [prefix for known in keys._keys.values() for prefix in known.prefixes]
        assert sorted(prefixes) == sorted(keys.openers)
        by_scope = [known for scope in keys._scopes.values() for known in scope.keys.values()]
        assert {id(known) for known in by_scope} == {id(known) for known in keys._keys.values()}
        assert all(scope.keys for scope in keys._scopes.values())

    @invariant()
    def counts_add_up(self) -> None:
        """Every message is a hit or a miss."""
        assert self.rig.keys.counts.misses == self.rig.asked
        assert self.rig.keys.counts.hits == self.hits


OpeningMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestOpenedKeys = OpeningMachine.TestCase


# --- the sweep -----------------------------------------------------------------------------------


def sweeping() -> list[threading.Thread]:
    """The threads that sweep."""
    return [thread for thread in threading.enumerate() if thread.name == "kms-cache"]


def sweeper_for(sweep: Callable[[], float], clock: Clock) -> Sweeper:
    """A sweeper of a machine that never sleeps."""
    return Sweeper(sweep, lambda: None, clock, clock)


def test_all_keys_go_once_the_machine_has_slept() -> None:
    """The clock that ages them stood still meanwhile; a moment's difference is none."""
    clock, since_boot, forgotten = Clock(), Clock(), threading.Semaphore(0)
    swept = threading.Semaphore(0)

    def sweep() -> float:
        swept.release()
        return clock()

    sweeper = Sweeper(sweep, forgotten.release, clock, since_boot)
    sweeper.begin()
    assert swept.acquire(timeout=PATIENCE)
    since_boot.advance(NAP / 2)
    for _ in range(2):
        assert swept.acquire(timeout=PATIENCE)
    assert not forgotten.acquire(blocking=False)
    since_boot.advance(NAP * 2)
    assert forgotten.acquire(timeout=PATIENCE)
    for _ in range(2):
        assert swept.acquire(timeout=PATIENCE)
    sweeper.stop()
    assert not forgotten.acquire(blocking=False)  # once


def test_sweeper_ends_when_nothing_is_left_and_begins_again() -> None:
    """A client that keeps no keys has no thread."""
    swept = threading.Semaphore(0)

    def sweep() -> float:
        swept.release()
        return inf

    sweeper = sweeper_for(sweep, Clock())
    for _ in range(3):
        sweeper.begin()
        assert swept.acquire(timeout=PATIENCE)
        wait_until(lambda: sweeper._thread is None)
    sweeper.stop()


def test_sweeper_goes_on_while_something_is_left() -> None:
    """In one thread, however often it is told to begin."""
    swept = threading.Semaphore(0)
    clock = Clock()

    def sweep() -> float:
        swept.release()
        return clock()

    sweeper = sweeper_for(sweep, clock)
    for _ in range(10):
        sweeper.begin()
    thread = sweeper._thread
    for _ in range(3):
        assert swept.acquire(timeout=PATIENCE)
    assert sweeper._thread is thread
    sweeper.stop()
    assert thread is not None
    assert not thread.is_alive()


@pytest.mark.parametrize(
    ("seconds", "pause"), [(0.0, SHORTEST_PAUSE), (3.0, 3.0), (86400.0, LONGEST_PAUSE)]
)
def test_sweeper_waits_within_bounds(seconds: float, pause: float) -> None:
    """It neither spins nor sleeps through a jump of the clock."""
    clock = Clock()
    sweeper = sweeper_for(lambda: clock() + seconds, clock)
    assert sweeper._pause() == pause


def test_stopped_sweeper_stays_so() -> None:
    """It may be stopped twice, and by its own sweep."""
    sweeps: list[int] = []
    done = threading.Event()

    def sweep() -> float:
        sweeps.append(1)
        sweeper.stop()
        done.set()
        return 0.0

    sweeper = sweeper_for(sweep, Clock())
    sweeper.begin()
    assert done.wait(PATIENCE)
    sweeper.stop()
    sweeper.begin()
    sweeper.stop()
    assert len(sweeps) == 1


def test_sweep_that_cannot_have_a_thread_fails_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the process ends or has too many; it begins with the next key."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    swept = threading.Event()

    def sweep() -> float:
        swept.set()
        return inf

    sweeper = sweeper_for(sweep, Clock())
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        sweeper.begin()
    sweeper.begin()
    assert swept.wait(PATIENCE)
    sweeper.stop()
