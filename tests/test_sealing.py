"""Data keys for sealing: how long and how much they seal, and how they are replaced.

Time, services and background work are the test's: nothing here runs on another thread unless the
test is about threads.
"""

from __future__ import annotations

import gc
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import FunctionType, ModuleType
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kms_core import CachePolicy, Context, Duration
from kms_core import sealing as sealing_module
from kms_core import sessions as sessions_module
from kms_core.aead import IV_BYTES, KEY_ID_BYTES, Keys, random_key
from kms_core.cache import CacheCounts
from kms_core.errors import (
    AccessDenied,
    AllInstancesFailed,
    BreakerOpen,
    DeadlineExceeded,
    InvalidRequest,
    KeyDisabled,
    KMSError,
    PolicyDenied,
    ProviderBug,
    Throttled,
    Unavailable,
)
from kms_core.sealing import NewKey, SealingKeys
from kms_core.sessions import SMALL, Session
from kms_core.types import Attempt
from tests.support import Clock

NOBODY = Context()
CAPSULE = b"capsule"
KEY_ID = slice(len(CAPSULE) + 3, len(CAPSULE) + 3 + KEY_ID_BYTES)


class Rig:
    """Sealing keys whose services, clock and background belong to the test."""

    def __init__(self, *, jitter: float = 0.0, **policy: Any) -> None:
        for name in policy.keys() & {"max_age", "stale_if_error", "degraded_max_age"}:
            policy[name] = Duration(policy[name])
        self.policy = CachePolicy(**policy)
        self.clock = Clock()
        self.made: list[Keys] = []
        self.scopes: list[Context] = []
        self.error: BaseException | None = None
        self.missing: tuple[str, ...] = ()
        self.away: set[str] = set()
        self.jobs: list[Callable[[], None]] = []
        self.told: list[tuple[str, str]] = []
        self.meanwhile: Callable[[], object] = lambda: None
        self.keys = SealingKeys(
            self.policy,
            self._make,
            clock=self.clock,
            submit=self.jobs.append,
            are_back=self._are_back,
            tell=lambda operation, outcome, missing: self.told.append(
                (operation, ",".join((outcome, *missing)))
            ),
            draw=lambda: jitter,
        )

    def _make(self, scope: Context) -> NewKey:
        self.scopes.append(scope)
        self.meanwhile()
        if self.error is not None:
            raise self.error
        self.made.append(Keys(random_key(), scope))
        return NewKey(self.made[-1], CAPSULE, self.missing)

    def _are_back(self, names: tuple[str, ...]) -> bool:
        return self.away.isdisjoint(names)

    @property
    def asked(self) -> int:
        """How often services were asked for a key."""
        return len(self.scopes)

    @property
    def latest(self) -> bytes:
        """The id of the key made last."""
        return self.made[-1].key_id

    def seal(self, scope: Context = NOBODY, size: int = 1) -> bytes:
        """Seal a message as a client does; the id of the key it was sealed under."""
        session = self.keys.sessions.get(tuple(scope.values()))
        if session is not None and self.clock() < session.expires:
            try:
                return self.seal_in(session, size)
            except (StopIteration, TypeError):
                pass
        key = self.keys.key(scope, 1, size)
        self.keys.keep_session(key)
        return key.keys.key_id

    def seal_in(self, session: Session, size: int = 1) -> bytes:
        """Seal a message in this session; the id of its key."""
        if size > SMALL:
            return session.seal_large(session.inline, bytes(size), b"")[KEY_ID]
        iv = next(session.ivs)
        return (session.inline + iv + session.encrypt(iv, bytes(size), b""))[KEY_ID]

    def work(self) -> None:
        """Do all that is to be done in the background."""
        while self.jobs:
            self.jobs.pop(0)()

    @property
    def counts(self) -> CacheCounts:
        """Those of the keys."""
        return self.keys.counts


def outage(*errors: KMSError) -> AllInstancesFailed:
    """What a wrap raises for which too few recipients could be reached."""
    return AllInstancesFailed(
        "nobody could be reached",
        [Attempt(str(each), each, 0.1) for each in errors or (Unavailable("no route"),)],
    )


def tenant(name: object) -> Context:
    """A scope of its own."""
    return Context({"tenant": str(name)})


# --- how long ------------------------------------------------------------------------------------


def test_one_key_seals_until_its_age() -> None:
    """And the first message at that age has another."""
    rig = Rig(max_age=100, refresh_ahead=0)
    first = rig.seal()
    rig.clock.advance(99.9)
    assert rig.seal() == first
    rig.clock.advance(0.1)
    assert rig.seal() != first
    assert rig.asked == 2
    assert not rig.jobs


def test_nothing_is_kept_without_an_age() -> None:
    """Every message asks services, and no key stays behind."""
    rig = Rig(max_age=0)
    assert len({rig.seal() for _ in range(5)}) == 5
    assert rig.keys.sessions == {}
    assert rig.counts == CacheCounts(misses=5)


def test_each_scope_has_a_key_of_its_own() -> None:
    """Bound to that scope."""
    rig = Rig()
    ids = {name: rig.seal(tenant(name)) for name in "abc"}
    assert len(set(ids.values())) == 3
    assert {name: rig.seal(tenant(name)) for name in "abc"} == ids
    assert rig.scopes == [tenant(name) for name in "abc"]


def test_a_key_that_is_kept_can_make_no_capsule() -> None:
    """What stays in memory is good for messages only."""
    rig = Rig()
    rig.seal()
    with pytest.raises(InvalidRequest):
        rig.made[0].capsule_mac(b"")


def test_expired_keys_are_dropped_though_nobody_asks() -> None:
    """The next moment to look is that of the key that ends first."""
    rig = Rig(max_age=100, stale_if_error=50)
    rig.seal(tenant("a"))
    rig.clock.advance(10)
    rig.seal(tenant("b"))
    assert rig.keys.drop_expired() == 1150
    rig.clock.advance(140)
    assert rig.keys.drop_expired() == 1160
    assert list(rig.keys.sessions) == [("b",)]
    rig.clock.advance(10)
    assert rig.keys.drop_expired() == float("inf")
    assert rig.counts.keys == 0


# --- how much ------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 9, 10, 11, 100, 1000])
@pytest.mark.parametrize("ahead", [0.0, 0.2, 0.9])
def test_message_after_the_last_has_a_new_key(limit: int, ahead: float) -> None:
    """A key seals exactly as many messages as it may, if its successor takes that long."""
    rig = Rig(max_messages=limit, refresh_ahead=ahead)
    sealed = Counter(rig.seal() for _ in range(3 * limit))
    assert list(sealed.values()) == [limit] * 3
    assert rig.asked == 3


def test_last_messages_are_sealed_in_sessions_too() -> None:
    """Those kept for the time of a refresh cost no subkey each."""
    rig = Rig(max_messages=1000)
    salts = set()
    for _ in range(1000):
        rig.seal()
        salts.add(rig.keys.sessions[()].prefix)
    assert rig.asked == 1
    assert len(salts) <= 3


def test_small_messages_count_as_64_kib() -> None:
    """So that a byte limit bounds their number as well."""
    rig = Rig(max_bytes=10 * SMALL, refresh_ahead=0)
    assert list(Counter(rig.seal() for _ in range(20)).values()) == [10, 10]


def test_large_messages_count_as_they_are() -> None:
    """No key seals more bytes than it may."""
    rig = Rig(max_bytes=100 * SMALL, refresh_ahead=0)
    sizes = [SMALL * factor for factor in (1, 40, 40, 30, 99, 100, 1)]
    used: Counter[bytes] = Counter()
    for size in sizes:
        used[rig.seal(size=size)] += size
    assert max(used.values()) <= 100 * SMALL
    assert rig.asked <= 6


def test_message_larger_than_any_key_may_seal_is_refused() -> None:
    """Without asking services, and without costing the key there is."""
    rig = Rig(max_bytes=10 * SMALL)
    with pytest.raises(InvalidRequest, match="max_bytes"):
        rig.seal(size=10 * SMALL + 1)
    assert rig.asked == 0
    first = rig.seal()
    with pytest.raises(InvalidRequest, match="max_bytes"):
        rig.seal(size=10 * SMALL + 1)
    assert rig.seal() == first
    assert rig.asked == 1


def test_batch_larger_than_any_key_may_seal_is_refused() -> None:
    """Likewise."""
    rig = Rig(max_messages=10)
    with pytest.raises(InvalidRequest, match="max_messages"):
        rig.keys.key(NOBODY, 11)
    assert rig.asked == 0
    assert rig.keys.key(NOBODY, 10).sealed == 10


def test_batch_beyond_what_is_left_has_a_new_key() -> None:
    """Which seals all of it."""
    rig = Rig(max_messages=100, refresh_ahead=0)
    first = rig.keys.key(NOBODY, 60)
    second = rig.keys.key(NOBODY, 60)
    assert first is not second
    assert rig.asked == 2


def test_every_caller_is_served_however_few_messages_a_key_may_seal() -> None:
    """Many threads share keys that serve three messages each."""
    rig = Rig(max_messages=3)
    barrier = threading.Barrier(32)

    def seal(_: int) -> bytes:
        barrier.wait(30)
        return rig.keys.key(NOBODY).keys.key_id

    with ThreadPoolExecutor(32) as threads:
        used = Counter(threads.map(seal, range(32)))
    assert used.total() == 32
    assert max(used.values()) <= 3


def test_subkey_is_replaced_before_it_has_sealed_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """One data key goes on with another salt, in messages and in bytes."""
    monkeypatch.setattr(sealing_module, "SESSION_MESSAGES", 50)
    monkeypatch.setattr(sessions_module, "SESSION_BYTES", 10 * SMALL)
    rig = Rig()
    per_salt = Counter[bytes]()
    for _ in range(500):
        rig.seal()
        per_salt[rig.keys.sessions[()].prefix] += 1
    assert max(per_salt.values()) <= 51
    assert len(per_salt) >= 9
    large = Counter[bytes]()
    for _ in range(50):
        rig.seal(size=2 * SMALL)
        large[rig.keys.sessions[()].prefix] += 1
    assert max(large.values()) <= 6
    assert rig.asked == 1


# --- ahead of time -------------------------------------------------------------------------------


def test_successor_is_made_in_the_background() -> None:
    """Its time begins at four fifths of the age; until it is there, the key goes on."""
    rig = Rig(max_age=100)
    first = rig.seal()
    rig.clock.advance(79)
    rig.seal()
    assert not rig.jobs
    rig.clock.advance(1)
    assert rig.seal() == first
    assert len(rig.jobs) == 1
    assert rig.seal() == first
    assert len(rig.jobs) == 1
    rig.work()
    assert rig.seal() == rig.latest != first
    assert (rig.counts.misses, rig.keys.refreshes) == (1, (1, 0))
    assert rig.told == [("refresh", "ok")]


def test_jitter_spreads_refreshes_over_half_of_their_time() -> None:
    """At most: never earlier, and at the latest in the middle."""
    due = []
    for jitter in (0.0, 0.5, 1.0):
        rig = Rig(max_age=100, jitter=jitter)
        rig.seal()
        while not rig.jobs:
            rig.clock.advance(0.5)
            rig.seal()
        due.append(rig.clock() - 1000)
    assert due == [80, 85, 90]


def test_successor_is_due_when_few_messages_are_left() -> None:
    """Nobody waits for it if it is there by then."""
    rig = Rig(max_messages=1000)
    used = set()
    for _ in range(10_000):
        used.add(rig.seal())
        rig.work()
    assert rig.counts.misses == 1
    assert 10 <= len(used) <= 13
    assert rig.asked == len(rig.made) <= 13


def test_successor_is_due_when_few_bytes_are_left() -> None:
    """Likewise, small messages and large ones."""
    rig = Rig(max_bytes=100 * SMALL)
    used = Counter[bytes]()
    for number in range(300):
        size = 1 + number % 3 * SMALL
        used[rig.seal(size=size)] += max(size, SMALL)
        rig.work()
    assert rig.counts.misses == 1
    assert max(used.values()) <= 100 * SMALL


def test_refresh_ahead_can_be_turned_off() -> None:
    """Then nothing happens in the background, by age nor by messages."""
    rig = Rig(max_age=100, max_messages=10, refresh_ahead=0)
    for _ in range(100):
        rig.seal()
        rig.clock.advance(7)
    assert not rig.jobs
    assert rig.counts.misses == rig.asked


def test_failed_refresh_fails_nobody_while_the_key_is_valid() -> None:
    """It is tried again, so often that there are ten chances, and not more than once a second."""
    rig = Rig(max_age=1000)
    first = rig.seal()
    rig.error = outage()
    attempts = []
    while rig.clock() < 1999:
        assert rig.seal() == first
        if rig.jobs:
            attempts.append(rig.clock())
            rig.work()
        rig.clock.advance(1)
    assert 9 <= len(attempts) <= 11
    assert rig.keys.refreshes == (0, len(attempts))
    assert set(rig.told) == {("refresh", "all_instances_failed")}
    rig.error = None
    rig.clock.advance(1)
    assert rig.seal() == rig.latest != first


def test_failed_refresh_is_not_tried_again_within_a_second() -> None:
    """However short the time is."""
    rig = Rig(max_age=5)
    rig.seal()
    rig.clock.advance(4)
    rig.error = outage()
    rig.seal()
    rig.work()
    rig.clock.advance(0.5)
    rig.seal()
    assert not rig.jobs


def test_refresh_that_cannot_begin_fails_nobody() -> None:
    """Say because the background takes no work."""
    rig = Rig(max_age=100)

    def refuse(_: Callable[[], None]) -> None:
        raise InvalidRequest("closed")

    rig.keys._submit = refuse
    first = rig.seal()
    rig.clock.advance(90)
    assert rig.seal() == first
    assert rig.keys.refreshes == (0, 1)


def test_late_refresh_replaces_no_successor() -> None:
    """If a caller could not wait for it, the key that caller got stays."""
    rig = Rig(max_age=100)
    rig.seal()
    rig.clock.advance(90)
    rig.seal()
    rig.clock.advance(10)
    second = rig.seal()
    rig.work()
    assert rig.seal() == second
    assert rig.asked == 2


def test_refresh_of_a_forgotten_key_makes_none() -> None:
    """Nobody wants its successor."""
    rig = Rig(max_age=100)
    rig.seal()
    rig.clock.advance(90)
    rig.seal()
    rig.keys.forget()
    rig.work()
    assert rig.asked == 1
    assert rig.counts.keys == 0


# --- outages -------------------------------------------------------------------------------------


def expired(error: KMSError, **policy: Any) -> tuple[Rig, bytes]:
    """A key whose time is over just when services fail."""
    rig = Rig(max_age=100, refresh_ahead=0, **policy)
    first = rig.seal()
    rig.clock.advance(100)
    rig.error = error
    return rig, first


@pytest.mark.parametrize(
    "error",
    [
        Unavailable("no route"),
        DeadlineExceeded("no answer"),
        Throttled("slow down"),
        BreakerOpen("open"),
        outage(Unavailable("no route"), BreakerOpen("open")),
    ],
    ids=lambda error: error.code,
)
def test_stale_key_bridges_an_outage(error: KMSError) -> None:
    """For as long as the policy says and no longer; what it seals then is told once and counted."""
    rig, first = expired(error, stale_if_error=50)
    assert rig.seal() == first
    for _ in range(49):
        rig.clock.advance(1)
        assert rig.seal() == first
        rig.work()
    assert rig.told.count(("seal", "stale")) == 1
    assert rig.keys.sealed_stale == 50
    rig.clock.advance(1)
    with pytest.raises(type(error)):
        rig.seal()
    assert rig.keys.drop_expired() == float("inf")
    assert rig.keys.sealed_stale == 50


@pytest.mark.parametrize(
    "error",
    [
        AccessDenied("no"),
        KeyDisabled("no"),
        PolicyDenied("no"),
        ProviderBug("odd"),
        outage(Unavailable("no route"), AccessDenied("no")),
    ],
    ids=lambda error: error.code,
)
def test_stale_key_is_not_used_when_somebody_said_no(error: KMSError) -> None:
    """Somebody may have taken a permission away."""
    rig, _ = expired(error, stale_if_error=50)
    with pytest.raises(type(error)):
        rig.seal()
    assert rig.told == []
    assert rig.keys.sealed_stale == 0


def test_stale_key_is_off_by_default() -> None:
    """A key does not outlive its age unless somebody decided so."""
    rig, _ = expired(outage())
    with pytest.raises(AllInstancesFailed):
        rig.seal()


def test_stale_key_is_given_up_as_soon_as_somebody_says_no() -> None:
    """The next message fails, though the outage was bridged before."""
    rig, first = expired(outage(), stale_if_error=50)
    assert rig.seal() == first
    rig.error = outage(AccessDenied("no"))
    rig.clock.advance(5)
    assert rig.seal() == first
    rig.work()
    with pytest.raises(AllInstancesFailed):
        rig.seal()


def test_stale_key_is_replaced_when_services_are_back() -> None:
    """By the attempts that go on in the background."""
    rig, first = expired(outage(), stale_if_error=50)
    assert rig.seal() == first
    rig.error = None
    rig.clock.advance(5)
    assert rig.seal() == first
    rig.work()
    assert rig.seal() == rig.latest != first


def test_caller_who_waits_for_a_failing_refresh_gets_the_stale_key() -> None:
    """As one does who asks for himself."""
    rig = Rig(max_age=100, stale_if_error=50)
    first = rig.seal()
    rig.clock.advance(90)
    rig.seal()
    rig.clock.advance(10)
    began, go_on = threading.Event(), threading.Event()

    def hang() -> None:
        began.set()
        assert go_on.wait(30)

    rig.meanwhile, rig.error = hang, outage()
    with ThreadPoolExecutor(2) as threads:
        refresh = threads.submit(rig.work)
        assert began.wait(30)
        caller = threads.submit(rig.seal)
        wait_until(lambda: rig.counts.coalesced == 1)
        go_on.set()
        assert caller.result(30) == first
        refresh.result(30)
    assert rig.asked == 2


def wait_until(holds: Callable[[], bool]) -> None:
    """Let other threads run until something holds that no event tells of."""
    give_up = threading.Event()
    for _ in range(3000):
        if holds():
            return
        give_up.wait(0.01)
    raise AssertionError("it never came to hold")


# --- missing recipients --------------------------------------------------------------------------


def test_degraded_key_is_replaced_sooner() -> None:
    """So that little is sealed without a recipient that is back."""
    rig = Rig(max_age=300, degraded_max_age=30, refresh_ahead=0)
    rig.missing = ("b",)
    first = rig.seal()
    rig.clock.advance(29)
    assert rig.seal() == first
    rig.clock.advance(1)
    rig.missing = ()
    second = rig.seal()
    assert second != first
    rig.clock.advance(299)
    assert rig.seal() == second


def test_degraded_key_lives_no_longer_than_others() -> None:
    """Whatever its own limit says."""
    rig = Rig(max_age=10, degraded_max_age=30, refresh_ahead=0)
    rig.missing = ("b",)
    first = rig.seal()
    rig.clock.advance(10)
    assert rig.seal() != first


def test_degraded_key_is_replaced_once_its_missing_recipients_are_back() -> None:
    """Not before, which would cost requests for nothing."""
    rig = Rig(degraded_max_age=100)
    rig.missing, rig.away = ("b",), {"b"}
    first = rig.seal()
    for _ in range(10):
        rig.clock.advance(1)
        assert rig.seal() == first
    assert not rig.jobs
    rig.away, rig.missing = set(), ()
    rig.clock.advance(1)
    rig.seal()
    rig.work()
    assert rig.seal() == rig.latest != first


def test_successor_that_is_degraded_says_whom_it_lacks() -> None:
    """Nobody is left out silently, in the background neither."""
    rig = Rig(max_age=100, refresh_ahead=0.2)
    rig.seal()
    rig.missing = ("b", "c")
    rig.clock.advance(90)
    rig.seal()
    rig.work()
    assert rig.told == [("refresh", "degraded,b,c")]


def test_repair_is_tried_less_and_less_often_if_it_does_not_help() -> None:
    """One that is reachable but refuses costs ever fewer keys."""
    rig = Rig(degraded_max_age=1000)
    rig.missing = ("b",)
    rig.seal()
    when = []
    for _ in range(300):
        rig.clock.advance(0.5)
        rig.seal()
        if rig.jobs:
            when.append(rig.clock() - 1000)
            rig.work()
    assert when == [1, 3, 7, 15, 31, 63, 127]


# --- making room ---------------------------------------------------------------------------------


def test_no_more_keys_are_kept_than_permitted() -> None:
    """The oldest unused one makes room."""
    rig = Rig(max_entries=3)
    ids = [rig.seal(tenant(number)) for number in range(5)]
    assert rig.counts.keys == len(rig.keys.sessions) == 3
    assert rig.counts.evicted == 2
    assert [rig.seal(tenant(number)) for number in (2, 3, 4)] == ids[2:]
    assert rig.asked == 5


def test_keys_in_use_are_given_a_second_chance() -> None:
    """A tenant that seals all the time keeps its key among many that come once."""
    rig = Rig(max_entries=10)
    busy = rig.seal(tenant("busy"))
    for number in range(100):
        rig.seal(tenant(number))
        assert rig.seal(tenant("busy")) == busy


def test_expired_keys_make_room_first() -> None:
    """Which is no eviction."""
    rig = Rig(max_entries=2, max_age=100)
    rig.seal(tenant("a"))
    rig.clock.advance(60)
    rig.seal(tenant("b"))
    rig.clock.advance(40)
    rig.seal(tenant("c"))
    assert set(rig.keys.sessions) == {("b",), ("c",)}
    assert rig.counts.evicted == 0


# --- forgetting ----------------------------------------------------------------------------------


def test_forgetting_drops_what_belongs_to_a_context() -> None:
    """Other tenants' keys stay; entries that are part of no scope do not matter."""
    rig = Rig()
    kept, gone = rig.seal(tenant("a")), rig.seal(tenant("b"))
    assert rig.keys.forget(Context({"tenant": "b", "row": "7"})) == 1
    assert rig.seal(tenant("a")) == kept
    assert rig.seal(tenant("b")) != gone


def test_forgetting_drops_the_key_with_an_id() -> None:
    """And no other."""
    rig = Rig()
    rig.seal(tenant("a"))
    kept = rig.seal(tenant("b"))
    assert rig.keys.forget(key_id=rig.made[0].key_id) == 1
    assert rig.keys.forget(key_id=bytes(KEY_ID_BYTES)) == 0
    assert list(rig.keys.sessions) == [("b",)]
    assert rig.keys.forget(tenant("a"), kept) == 0


def test_key_asked_for_before_everything_was_forgotten_is_not_kept() -> None:
    """Whoever asked for it may still use it once."""
    rig = Rig()
    rig.meanwhile = rig.keys.forget
    first = rig.seal()
    assert rig.counts.keys == 0
    assert rig.keys.sessions == {}
    rig.meanwhile = lambda: None
    assert rig.seal() != first


def test_session_that_was_dropped_seals_nothing() -> None:
    """Whoever still holds it gets at neither its cipher nor its keys."""
    rig = Rig()
    rig.seal()
    session = rig.keys.sessions[()]
    assert {AESGCM, Keys} <= kinds_reachable_from(session)
    rig.keys.forget()
    rig.made.clear()
    assert session.expires == float("-inf")
    assert not session.left
    with pytest.raises(TypeError):
        session.encrypt(bytes(IV_BYTES), b"", b"")
    with pytest.raises(TypeError):
        rig.seal_in(session, SMALL + 1)
    assert kinds_reachable_from(session) & {AESGCM, Keys} == set()


def kinds_reachable_from(start: object) -> set[type]:
    """The types of all that can be got at from there, short of modules and what they define."""
    seen, waiting = {id(start): start}, [start]
    while waiting:
        for each in gc.get_referents(waiting.pop()):
            if id(each) not in seen and not isinstance(each, type | ModuleType | FunctionType):
                seen[id(each)] = each
                waiting.append(each)
    return {type(each) for each in seen.values()}


def test_spent_key_seals_nothing_more() -> None:
    """Nobody who still holds it gets a message out of it."""
    rig = Rig()
    rig.seal()
    key = rig.keys._keys[()]
    rig.keys.forget()
    assert not key.charge(1, 1)
    assert rig.keys.keep_session(key) is None


# --- initialisation vectors ----------------------------------------------------------------------


def test_no_iv_comes_twice() -> None:
    """Not in 100,000 messages, over two sessions."""
    rig = Rig()
    rig.seal()
    ivs = set()
    for _ in range(100_000):
        session = rig.keys.sessions[()]
        try:
            ivs.add(next(session.ivs))
        except StopIteration:
            rig.seal()
            ivs.add(next(rig.keys.sessions[()].ivs))
    assert len(ivs) == 100_000
    assert {len(iv) for iv in ivs} == {IV_BYTES}


def test_each_iv_is_drawn_when_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """None waits in a pool, where a fork or a look into memory would find it."""
    drawn: list[int] = []
    draw = sessions_module._random

    def counted(size: int) -> bytes:
        drawn.append(size)
        return draw(size)

    monkeypatch.setattr(sessions_module, "_random", counted)
    rig = Rig()
    rig.seal()
    del drawn[:]
    for number in range(1, 1001):
        rig.seal()
        assert drawn == [IV_BYTES] * number


def test_salts_differ() -> None:
    """Between sessions of one key and of several."""
    rig = Rig(max_messages=10)
    salts = set()
    for _ in range(100):
        rig.seal()
        salts.add(rig.keys.sessions[()].prefix)
    assert len({prefix[-12:] for prefix in salts}) == len(salts) >= 20


# --- counting ------------------------------------------------------------------------------------


def test_hits_are_messages_nobody_had_to_wait_for() -> None:
    """Failed attempts are misses and take no hits away."""
    rig = Rig()
    rig.error = outage()
    for _ in range(5):
        with pytest.raises(AllInstancesFailed):
            rig.seal()
    rig.error = None
    for _ in range(10):
        rig.seal()
    assert rig.counts == CacheCounts(hits=9, misses=6, keys=1)
    rig.keys.forget()
    assert rig.counts == CacheCounts(hits=9, misses=6)


def test_one_key_is_made_for_everybody_who_waits() -> None:
    """Sixty-four threads cost one request, and are counted."""
    rig = Rig()
    rig.meanwhile = lambda: wait_until(lambda: rig.counts.coalesced == 63)
    with ThreadPoolExecutor(64) as threads:
        ids = set(threads.map(lambda _: rig.seal(), range(64)))
    assert len(ids) == rig.asked == 1
    assert rig.counts == CacheCounts(misses=1, coalesced=63, keys=1)
    rig.seal()
    assert rig.counts.hits == 1


# --- everything at once --------------------------------------------------------------------------

AGE, STALE, DEGRADED, MESSAGES, ENTRIES = 60.0, 20.0, 15.0, 7, 2


class SealingMachine(RuleBasedStateMachine):
    """Seals, waits, fails and forgets in any order, and keeps account of every key."""

    def __init__(self) -> None:
        super().__init__()
        self.rig = Rig(
            max_age=AGE,
            stale_if_error=STALE,
            degraded_max_age=DEGRADED,
            max_messages=MESSAGES,
            max_entries=ENTRIES,
        )
        self.born: dict[bytes, tuple[float, float]] = {}
        self.sealed: Counter[bytes] = Counter()
        self.scope_of: dict[bytes, Context] = {}
        self.forgotten: set[bytes] = set()
        self.sessions: list[Session] = []
        self.waited = 0

    @rule(who=st.sampled_from("abc"), size=st.sampled_from([0, 1, SMALL + 1]))
    def seal(self, who: str, size: int) -> None:
        """A message, which fails only if services do."""
        rig, scope, before = self.rig, tenant(who), self.rig.counts.misses
        made = len(rig.made)
        try:
            key_id = rig.seal(scope, size)
        except AllInstancesFailed:
            assert rig.error is not None
            return
        finally:
            self.note_new(made)
        self.waited += rig.counts.misses > before
        self.sealed[key_id] += 1
        born, age = self.born[key_id]
        assert rig.clock() < born + age + (STALE if rig.error else 0)
        assert key_id not in self.forgotten
        assert self.scope_of[key_id] == scope
        if session := rig.keys.sessions.get((who,)):
            self.sessions.append(session)

    @rule(seconds=st.sampled_from([0.5, 1.0, 5.0, 14.0, 40.0, 60.0]))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.rig.clock.advance(seconds)

    @rule()
    def finish_background(self) -> None:
        """What is due in the background is done, and never raises."""
        made = len(self.rig.made)
        self.rig.work()
        self.note_new(made)

    @rule()
    def fail(self) -> None:
        """Services go away."""
        self.rig.error = outage()

    @rule()
    def heal(self) -> None:
        """All services are there."""
        self.rig.error, self.rig.missing = None, ()

    @precondition(lambda self: self.rig.error is None)
    @rule()
    def degrade(self) -> None:
        """One is missing from now on."""
        self.rig.missing = ("b",)

    @rule(who=st.sampled_from([None, "a", "b"]))
    def forget(self, who: str | None) -> None:
        """Some keys, or all."""
        gone = [
            key_id for key_id, scope in self.scope_of.items() if who is None or scope == tenant(who)
        ]
        self.rig.keys.forget(None if who is None else tenant(who))
        self.forgotten.update(gone)

    @rule()
    def sweep(self) -> None:
        """Nothing stays that may not be used any more."""
        self.rig.keys.drop_expired()
        for key in self.rig.keys._keys.values():
            born, age = self.born[key.keys.key_id]
            assert self.rig.clock() < born + age + STALE

    def note_new(self, made: int) -> None:
        """Take down the keys that were made since."""
        for keys in self.rig.made[made:]:
            age = min(AGE, DEGRADED) if self.rig.missing else AGE
            self.born[keys.key_id] = (self.rig.clock(), age)
            self.scope_of[keys.key_id] = keys.scope

    @invariant()
    def no_key_seals_too_much(self) -> None:
        """Whatever happened."""
        assert all(count <= MESSAGES for count in self.sealed.values())

    @invariant()
    def few_keys_are_kept(self) -> None:
        """Each with at most one session, which is its own."""
        keys, sessions = self.rig.keys._keys, self.rig.keys.sessions
        assert len(keys) <= ENTRIES
        assert sessions.keys() <= keys.keys()

    @invariant()
    def no_session_outlives_its_key(self) -> None:
        """Nobody who holds a session can seal with a key that is over."""
        kept = {id(session) for session in self.rig.keys.sessions.values()}
        for session in self.sessions:
            key_id = session.inline[KEY_ID]
            born, age = self.born[key_id]
            assert session.expires <= born + age + STALE
            if id(session) not in kept:
                assert session.expires == float("-inf")

    @invariant()
    def counts_add_up(self) -> None:
        """Every message is a hit, or somebody waited for its key."""
        assert self.rig.counts.hits + self.waited == self.sealed.total()
        assert self.rig.counts.misses + self.rig.keys.refreshes[0] >= len(self.rig.made)


SealingMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestSealingKeys = SealingMachine.TestCase
