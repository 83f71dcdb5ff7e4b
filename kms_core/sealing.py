"""Data keys that seal: made once for everybody who waits, and replaced before anybody has to.

A key belongs to a partition: the values of the context entries that it is bound to.  Its session
(see ``sessions``) is used without asking here, until that expires or is used up; then the caller
comes by, and a successor is made in the background, or at once if there is no time left.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from math import inf
from typing import Final

from attrs import field, frozen

from kms_core.aead import Keys
from kms_core.cache import CacheCounts, CachePolicy, Clock, Flights, is_meant
from kms_core.context import Context
from kms_core.errors import (
    AllInstancesFailed,
    BreakerOpen,
    InvalidRequest,
    KMSError,
    Throttled,
    Unavailable,
)
from kms_core.header import SUBKEY_PREFIX_BYTES
from kms_core.sessions import SESSION_MESSAGES, SMALL, Session

#: The values of the context entries that a data key is bound to.
Partition = tuple[str, ...]

RETRIES: Final = 10  # how often a refresh is tried again before the key ends, but not
RETRY_SECONDS: Final = 1.0  # more often than so
REPAIR_SECONDS: Final = 1.0  # when it is first looked whether a missing recipient is back
#: What a stale key may be used for: nobody could be asked.  Not if somebody said no.
_OUTAGE: Final = (Unavailable, Throttled, BreakerOpen)


@frozen
class NewKey:
    """A data key in the hands of its recipients; ``missing`` names the instances without it."""

    keys: Keys
    capsule: bytes = field(repr=False)
    missing: tuple[str, ...] = ()


class SealingKey:
    """A data key while it seals: how long, and how much.  Thread-safe."""

    def __init__(
        self, new: NewKey, policy: CachePolicy, now: float, *, jitter: float, repair_wait: float
    ) -> None:
        """``jitter``, 0 to 1, spreads the refreshes of many processes over half of their time."""
        self.keys: Final = new.keys
        self.capsule: Final = new.capsule
        self.missing: Final = new.missing
        age = min(policy.max_age, policy.degraded_max_age) if new.missing else policy.max_age
        ahead = age * policy.refresh_ahead * (1 - jitter / 2)
        self.ends: Final = now + age
        self.refresh_at = self.ends - ahead
        self.repair_wait: Final = repair_wait
        self.repair_at = now + repair_wait if new.missing and ahead else inf
        self.retry_after: Final = max(RETRY_SECONDS, ahead / RETRIES)
        self.refreshing = False
        self.outage = False  # when somebody last tried to replace it
        self._messages, self._bytes = policy.max_messages, policy.max_bytes
        self._spare_messages = int(policy.max_messages * policy.refresh_ahead) or -1
        self._spare_bytes = int(policy.max_bytes * policy.refresh_ahead) or -1
        self._lock = threading.Lock()
        self._session: Session | None = None
        self._stored = False
        self._sealed = 0  # not counting the present session
        self.waited = 0  # callers who had to wait until it was there
        self._stale_from: int | None = None
        self.seen = 1  # what it had sealed when somebody last had to make room

    @property
    def sealed(self) -> int:
        """How many messages it has sealed."""
        return self._sealed + (self._session.used if self._session else 0)

    @property
    def sealed_stale(self) -> int:
        """How many of them after its time."""
        return 0 if self._stale_from is None else self.sealed - self._stale_from

    def charge(self, messages: int, size: int, *, waited: bool = False) -> bool:
        """Count messages that its session does not; false: it may not seal so much any more."""
        size = max(size, messages * SMALL)
        with self._lock:
            charged = self._take(messages, size)
            if not charged:
                self._end_session()  # perhaps it has enough left
                charged = self._take(messages, size)
            self._sealed += messages * charged
            self.waited += waited and charged
            return charged

    def charge_bytes(self, size: int) -> bool:
        """Count bytes of a message that its session counts, or was about to."""
        with self._lock:
            return self._take(0, size)

    def _take(self, messages: int, size: int) -> bool:
        if messages > self._messages or size > self._bytes:
            return False
        self._messages -= messages
        self._bytes -= size
        if self._messages <= self._spare_messages or self._bytes <= self._spare_bytes:
            self._spare_messages = self._spare_bytes = -1  # that was the last time it is said
            self.refresh_at = -inf
        return True

    def session(self, owner: object, until: float) -> Session | None:
        """What seals the next messages until the given time; ``None``: it may seal no more."""
        with self._lock:
            if self._session is None or not self._session.left:
                self._end_session()
                grant = self._grant()
                if grant < 1 or not self._take(grant, grant * SMALL):
                    return None
                self._session = Session(
                    owner, self.keys, self.capsule, grant, self.charge_bytes, stored=self._stored
                )
            self._session.expires = until
            return self._session

    def _grant(self) -> int:
        """As many small messages as may be, not reaching into what is spared for the very end."""
        ample = min(
            self._messages - self._spare_messages, (self._bytes - self._spare_bytes) // SMALL
        )
        rest = min(self._messages, self._bytes // SMALL)
        return min(SESSION_MESSAGES, rest if ample <= 0 else min(ample, rest))

    @property
    def stored(self) -> bool:
        """Whether its capsule is in the store, so that compact messages may name it."""
        return self._stored

    def note_stored(self) -> None:
        """Its capsule is in the store from now on."""
        with self._lock:
            self._stored = True
            if self._session is not None:
                self._session.compact = self._session.inline[-SUBKEY_PREFIX_BYTES:]

    def look_again_at(self, when: float) -> None:
        """Have the next message after that come by."""
        with self._lock:
            if self._session is not None:
                self._session.expires = when

    def turn_stale(self) -> bool:
        """It goes on beyond its time; whether that is news."""
        with self._lock:
            news = self._stale_from is None
            if news:
                self._stale_from = self.sealed
            return news

    def retire(self) -> None:
        """Seal nothing any more."""
        with self._lock:
            self._end_session()
            self._messages = 0

    def _end_session(self) -> None:
        if self._session is not None:
            left = self._session.retire()
            self._sealed += self._session.granted - left
            self._messages += left
            self._bytes += left * SMALL
            self._session = None


class SealingKeys:
    """The data key of each partition that is in use.

    ``sessions`` is what hits read, without any lock.
    """

    def __init__(
        self,
        policy: CachePolicy,
        make: Callable[[Context], NewKey],
        *,
        clock: Clock,
        submit: Callable[[Callable[[], None]], object],
        are_back: Callable[[tuple[str, ...]], bool],
        tell: Callable[[str, str, tuple[str, ...]], None],
        kept: Callable[[], object] = lambda: None,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """``make`` asks services, and ``submit`` has work done in the background.

        ``are_back`` says whether these instances can be asked again; ``tell`` is told an operation,
        its outcome and who is missing; ``kept`` is called after a key was kept, with no lock held.
        """
        self._policy = policy
        self._make = make
        self._clock = clock
        self._submit = submit
        self._are_back = are_back
        self._tell = tell
        self._kept = kept
        self._draw = draw
        self._lock = threading.Lock()
        self._keys: dict[Partition, SealingKey] = {}
        self._flights: Flights[Partition, SealingKey] = Flights()
        self._era = 0  # grows when keys are forgotten: what was begun before is not kept
        self._past_sealed = self._past_stale = self._past_waited = 0
        self._misses = self._refreshed = self._refresh_failed = self._evicted = 0
        self.sessions: Final[dict[Partition, Session]] = {}

    # --- for callers -----------------------------------------------------------------------------

    def key(self, scope: Context, messages: int = 1, size: int = 0) -> SealingKey:
        """A key that may seal so many messages of so many bytes together, which are counted.

        Asks services if there is none; raises what they raise, and ``InvalidRequest`` for more
        than one key may seal.
        """
        policy = self._policy
        if messages > policy.max_messages or max(size, messages * SMALL) > policy.max_bytes:
            raise InvalidRequest(
                f"{messages} messages of {size} bytes together are more than one data key may "
                "seal: raise max_messages or max_bytes in [cache], or seal them in parts"
            )
        while True:  # until it is one that others have not used up
            usable = self._usable(scope)
            key = usable or self._wait_for_key(scope)
            if key.charge(messages, size, waited=usable is None):
                return key
            self._drop(scope, key)

    def keep_session(self, key: SealingKey) -> Session | None:
        """What the next messages of its partition are sealed with, if the key is kept."""
        partition = _partition(key.keys.scope)
        with self._lock:
            if self._keys.get(partition) is not key:
                return None
            session = key.session(self, self._look_again_at(key, self._clock()))
            if session is not None:
                self.sessions[partition] = session
            return session

    def _usable(self, scope: Context) -> SealingKey | None:
        """The key there is, if it may still be used; has a successor made when one is due."""
        key = self._keys.get(_partition(scope))
        if key is None:
            return None
        now = self._clock()
        if now >= key.ends and not (key.outage and self._may_be_stale(key, now)):
            return None
        if self._begins_refresh(key, now):
            self._refresh_in_background(scope, key)
        return key

    def _wait_for_key(self, scope: Context) -> SealingKey:
        if self._policy.max_age <= 0:
            return self._ask(scope)
        try:
            return self._flights.run(
                _partition(scope), lambda: self._usable(scope) or self._ask(scope)
            )
        except KMSError as exc:  # perhaps of a refresh that was under way
            key = self._stale_after(scope, exc)
            if key is None:
                raise
            return key

    def _ask(self, scope: Context) -> SealingKey:
        self._misses += 1  # flights of one partition do not overlap; a statistic bears the rest
        try:
            return self._replace(scope)
        except KMSError as exc:
            key = self._stale_after(scope, exc)
            if key is None:
                raise
            self._note_failure(key, exc)
            return key

    def _stale_after(self, scope: Context, error: KMSError) -> SealingKey | None:
        """The key whose time is over, if it may seal nevertheless because nobody can be asked."""
        key = self._keys.get(_partition(scope))
        if key is None or not _is_outage(error) or not self._may_be_stale(key, self._clock()):
            return None
        return key

    def _replace(self, scope: Context) -> SealingKey:
        era = self._era
        new = self._make(scope)
        new.keys.drop_capsule_key()
        before = self._keys.get(_partition(scope))
        # The longer somebody is missing, the less often it is worth a new key to ask.
        wait = 2 * before.repair_wait if before is not None and before.missing else REPAIR_SECONDS
        key = SealingKey(new, self._policy, self._clock(), jitter=self._draw(), repair_wait=wait)
        if self._policy.max_age > 0:
            with self._lock:
                if era == self._era:
                    self._put(_partition(scope), key)
            self._kept()
        return key

    # --- refreshing ------------------------------------------------------------------------------

    def _begins_refresh(self, key: SealingKey, now: float) -> bool:
        with self._lock:
            due = now >= key.refresh_at
            if not due and now >= key.repair_at:
                due = self._are_back(key.missing)
                key.repair_at = now + key.repair_wait
            begins = due and not key.refreshing
            key.refreshing |= begins
            return begins

    def _refresh_in_background(self, scope: Context, key: SealingKey) -> None:
        try:
            self._submit(lambda: self._refresh(scope, key))
        except KMSError as exc:
            self._note_failure(key, exc)

    def _refresh(self, scope: Context, key: SealingKey) -> None:
        if self._keys.get(_partition(scope)) is not key:
            return  # replaced by somebody who could not wait, or not wanted any more
        try:
            successor = self._flights.run(_partition(scope), lambda: self._replace(scope))
        except KMSError as exc:
            self._note_failure(key, exc)
            self._tell("refresh", exc.code, ())
        else:
            self._refreshed += 1
            outcome = "degraded" if successor.missing else "ok"
            self._tell("refresh", outcome, successor.missing)

    def _note_failure(self, key: SealingKey, error: KMSError) -> None:
        now = self._clock()
        with self._lock:
            self._refresh_failed += 1
            key.refreshing = False
            key.outage = _is_outage(error)
            key.refresh_at = now + key.retry_after
            key.look_again_at(self._look_again_at(key, now))

    def _may_be_stale(self, key: SealingKey, now: float) -> bool:
        if not key.ends <= now < key.ends + self._policy.stale_if_error:
            return False
        if key.turn_stale():
            self._tell("seal", "stale", key.missing)
        return True

    def _look_again_at(self, key: SealingKey, now: float) -> float:
        """When the next message has to come by."""
        stale = self._policy.stale_if_error if now >= key.ends and key.outage else 0.0
        return min(key.ends + stale, key.repair_at, inf if key.refreshing else key.refresh_at)

    # --- keeping ---------------------------------------------------------------------------------

    def forget(self, context: Context | None = None, key_id: bytes | None = None) -> int:
        """Drop the keys whose scope is part of ``context``, or with this id; how many that were."""
        with self._lock:
            self._era += 1
            gone = [
                partition
                for partition, key in self._keys.items()
                if is_meant(key.keys, context, key_id)
            ]
            for partition in gone:
                self._remove(partition)
        return len(gone)

    def drop_expired(self) -> float:
        """Drop the keys whose time is over; when the next one's will be (``inf``: none is left)."""
        with self._lock:
            self._drop_expired(self._clock())
            return min((self._last_moment(key) for key in self._keys.values()), default=inf)

    def _last_moment(self, key: SealingKey) -> float:
        return key.ends + self._policy.stale_if_error

    def _drop_expired(self, now: float) -> None:
        over = [part for part, key in self._keys.items() if self._last_moment(key) <= now]
        for partition in over:
            self._remove(partition)

    def _drop(self, scope: Context, key: SealingKey) -> None:
        partition = _partition(scope)
        with self._lock:
            if self._keys.get(partition) is key:
                self._remove(partition)

    def _put(self, partition: Partition, key: SealingKey) -> None:
        if partition in self._keys:
            self._remove(partition)
        elif len(self._keys) >= self._policy.max_entries:
            self._drop_expired(self._clock())
            while len(self._keys) >= self._policy.max_entries:
                self._evict_one()
        self._keys[partition] = key

    def _evict_one(self) -> None:
        """The oldest one that sealed nothing since somebody last had to make room."""
        while True:
            partition, key = next(iter(self._keys.items()))
            if key.sealed == key.seen:
                self._evicted += 1
                self._remove(partition)
                return
            key.seen = key.sealed
            self._keys[partition] = self._keys.pop(partition)

    def _remove(self, partition: Partition) -> None:
        key = self._keys.pop(partition)
        self.sessions.pop(partition, None)
        key.retire()
        self._past_sealed += key.sealed
        self._past_waited += key.waited
        self._past_stale += key.sealed_stale

    # --- telling ---------------------------------------------------------------------------------

    @property
    def counts(self) -> CacheCounts:
        """What it did so far."""
        with self._lock:
            hits = self._past_sealed - self._past_waited
            hits += sum(key.sealed - key.waited for key in self._keys.values())
            return CacheCounts(
                hits=hits,
                misses=self._misses,
                coalesced=self._flights.joined,
                evicted=self._evicted,
                keys=len(self._keys),
            )

    @property
    def refreshes(self) -> tuple[int, int]:
        """How many keys were replaced in the background, and how often that failed."""
        return self._refreshed, self._refresh_failed

    @property
    def sealed_stale(self) -> int:
        """Messages sealed after their key's time."""
        with self._lock:
            return self._past_stale + sum(key.sealed_stale for key in self._keys.values())


def _partition(scope: Context) -> Partition:
    return tuple(scope.values())


def _is_outage(error: KMSError) -> bool:
    errors = error.exceptions if isinstance(error, AllInstancesFailed) else (error,)
    return all(isinstance(each, _OUTAGE) for each in errors)
