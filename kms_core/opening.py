"""Data keys that opened something lately: what was unwrapped once opens all that it sealed.

They are kept by id, and message subkeys by what messages start with (see ``sessions``).  Getting at
a key that is not here is the caller's work; it is done once for all who want the same.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from math import inf
from typing import Final

from attrs import define, field

from kms_core.aead import Keys
from kms_core.cache import CacheCounts, CachePolicy, Clock, Flights, is_meant
from kms_core.context import Context
from kms_core.sessions import Opener

MAX_OPENERS: Final = 256  # message subkeys kept of one data key, 2.5 kB each,
MAX_ALL_OPENERS: Final = 10_000  # and of all, or twice as many as data keys if that is more
MAX_CAPSULES: Final = 8  # forms of one capsule (before and after a repair) known to be genuine


class OpenedKeys:
    """Data keys that were unwrapped lately; no scope can drive out another's beyond its share.

    ``openers`` is what hits read, without any lock: by the first 31 bytes of a message, which name
    its data key and subkey.
    """

    def __init__(
        self, policy: CachePolicy, clock: Clock, kept: Callable[[], object] = lambda: None
    ) -> None:
        """``kept`` is called after a key was kept, with no lock held."""
        self._policy = policy
        self._clock = clock
        self._kept = kept
        self._lock = threading.Lock()
        self._keys: dict[bytes, _OpenedKey] = {}
        self._scopes: dict[bytes, _Scope] = {}
        self._era = 0  # grows when keys are forgotten: what was begun before is not kept
        self._past_hits = self._misses = self._evicted = 0
        self._flights: Flights[bytes, Keys] = Flights()
        self.openers: Final[dict[bytes, Opener]] = {}

    def find(self, key_id: bytes, capsule: bytes) -> Keys | None:
        """The keys with this id, if they are kept.

        ``capsule`` is the one in front of the message, and must be one that was verified; ``b""``
        says that there is none.
        """
        with self._lock:
            known = self._keys.get(key_id)
            if known is None or (capsule and capsule not in known.capsules):
                return None
            known.used = self._clock()
            if known.used >= known.ends:
                self._drop(known)
                return None
            known.hits += 1
            return known.keys

    def unlocked(self, key_id: bytes, capsule: bytes, unlock: Callable[[], Keys]) -> Keys:
        """What ``unlock`` gets out of this capsule, asked for once and kept."""
        if self._policy.max_age <= 0:
            return unlock()

        def unlock_and_keep() -> Keys:
            found = self.find(key_id, capsule)
            if found is None:
                era = self._era
                found = self._keep(unlock(), capsule, era)
                self._kept()
            return found

        return self._flights.run(capsule, unlock_and_keep)

    def _keep(self, keys: Keys, capsule: bytes, era: int) -> Keys:
        keys.drop_capsule_key()
        now = self._clock()
        with self._lock:
            self._misses += 1
            if era != self._era:  # everything was to be forgotten meanwhile
                return keys
            known = self._keys.get(keys.key_id)
            if known is None or known.ends <= now:  # by another capsule, some time ago
                known = self._insert(keys, now)
            known.used = now
            if len(known.capsules) >= MAX_CAPSULES:
                del known.capsules[next(iter(known.capsules))]
            known.capsules[capsule] = None
            return known.keys

    def _insert(self, keys: Keys, now: float) -> _OpenedKey:
        self._drop_expired(now)
        while len(self._keys) >= self._policy.max_entries:
            self._evicted += 1
            share = max(len(scope.keys) for scope in self._scopes.values())
            largest = [scope for scope in self._scopes.values() if len(scope.keys) == share]
            candidates = [known for scope in largest for known in scope.keys.values()]
            self._drop(min(candidates, key=self._last_use))
        scope = self._scopes.setdefault(keys.scope.encoded, _Scope(keys.scope))
        known = _OpenedKey(keys, scope, ends=now + self._policy.max_age)
        self._keys[keys.key_id] = scope.keys[keys.key_id] = known
        return known

    def _last_use(self, known: _OpenedKey) -> float:
        return max(known.used, *(self.openers[prefix].used for prefix in known.prefixes), -inf)

    def keep_opener(self, keys: Keys, opener: Opener) -> None:
        """Use it for all messages of its subkey, if the keys are kept; it has opened one."""
        prefix = opener.prefix
        with self._lock:
            known = self._keys.get(keys.key_id)
            if known is not None and known.keys is keys:
                self._drop_opener(known, prefix)
                if len(known.prefixes) >= MAX_OPENERS:
                    self._drop_opener(known, next(iter(known.prefixes)))
                self._make_room_for_opener()
                known.prefixes[prefix] = None
                opener.expires = known.ends
                opener.scope = known.scope.context or None
                self.openers[prefix] = opener

    def _make_room_for_opener(self) -> None:
        if len(self.openers) >= max(MAX_ALL_OPENERS, 2 * self._policy.max_entries):
            oldest = next(iter(self.openers.values()))
            self._drop_opener(self._keys[oldest.key_id], oldest.prefix)

    def forget(self, context: Context | None = None, key_id: bytes | None = None) -> int:
        """Drop the keys whose scope is part of ``context``, or with this id; how many that were."""
        with self._lock:
            self._era += 1
            gone = [known for known in self._keys.values() if is_meant(known.keys, context, key_id)]
            for known in gone:
                self._drop(known)
        return len(gone)

    def drop_expired(self) -> float:
        """Drop the keys whose time is over; when the next one's will be (``inf``: none is left)."""
        with self._lock:
            self._drop_expired(self._clock())
            return min((known.ends for known in self._keys.values()), default=inf)

    def _drop_expired(self, now: float) -> None:
        for known in [known for known in self._keys.values() if known.ends <= now]:
            self._drop(known)

    def _drop(self, known: _OpenedKey) -> None:
        for prefix in list(known.prefixes):
            self._drop_opener(known, prefix)
        self._past_hits += known.hits
        key_id = known.keys.key_id
        del self._keys[key_id], known.scope.keys[key_id]
        if not known.scope.keys:
            del self._scopes[known.scope.context.encoded]

    def _drop_opener(self, known: _OpenedKey, prefix: bytes) -> None:
        if prefix in known.prefixes:
            del known.prefixes[prefix]
            opener = self.openers.pop(prefix)
            self._past_hits += opener.hits
            opener.retire()

    @property
    def counts(self) -> CacheCounts:
        """What it did so far."""
        with self._lock:
            hits = sum(known.hits for known in self._keys.values())
            hits += sum(opener.hits for opener in self.openers.values())
            return CacheCounts(
                hits=self._past_hits + hits,
                misses=self._misses,
                coalesced=self._flights.joined,
                evicted=self._evicted,
                keys=len(self._keys),
            )


@define(eq=False)
class _Scope:
    """The keys kept under one scope, whose one context object stands for it in comparisons."""

    context: Context
    keys: dict[bytes, _OpenedKey] = field(factory=dict)


@define(eq=False)
class _OpenedKey:
    keys: Keys
    scope: _Scope
    ends: float
    used: float = -inf
    hits: int = 0
    #: The capsules that proved genuine, oldest first.
    capsules: dict[bytes, None] = field(factory=dict)
    #: Of the messages it has openers for, oldest first.
    prefixes: dict[bytes, None] = field(factory=dict)
