"""Capsules of compact messages in their store: put there once, and never taken back in time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from kms_core.cache import Flights
from kms_core.capsules import CapsuleStore, FileCapsules, SqliteCapsules
from kms_core.envelope import FindCapsule
from kms_core.errors import IntegrityError, InvalidRequest, KeyNotFound
from kms_core.header import parse_capsule
from kms_core.sealing import SealingKey

MAX_GENERATIONS: Final = 10_000  # capsules whose generation is remembered
SQLITE_SUFFIXES: Final = frozenset({".db", ".sqlite", ".sqlite3"})


class StoredCapsules:
    """One client's use of a capsule store, if it has one."""

    def __init__(self, store: CapsuleStore | None) -> None:
        self._store = store
        self._generations: dict[bytes, int] = {}  # of capsules that were genuine, as last seen
        self.start_clean()

    def start_clean(self) -> None:
        """Begin, or begin anew in a forked child, where a lock may be held."""
        self._placing: Flights[bytes, None] = Flights()

    @classmethod
    def at(cls, path: Path | None) -> StoredCapsules:
        """In this folder or SQLite database."""
        if path is None:
            return cls(None)
        kind = SqliteCapsules if path.suffix in SQLITE_SUFFIXES else FileCapsules
        return cls(kind(path))

    @property
    def store(self) -> CapsuleStore:
        """Raises ``InvalidRequest`` if there is none."""
        if self._store is None:
            raise InvalidRequest(
                "compact messages need a capsule store: set envelope.capsules, or pass capsules="
            )
        return self._store

    def close(self) -> None:
        """Let go of files and connections."""
        if self._store is not None:
            self._store.close()

    def place(self, key: SealingKey) -> None:
        """Return once the capsule of ``key`` is in the store."""
        if not key.stored:
            self._placing.run(key.keys.key_id, lambda: self._put(key))

    def _put(self, key: SealingKey) -> None:
        if not key.stored:
            self.store.put(key.keys.key_id, key.capsule, replaces=None)
            key.note_stored()

    @contextmanager
    def looking_up(self) -> Iterator[FindCapsule]:
        """Look-ups; what was found is known to be genuine when the block succeeds.

        Refuses a capsule older than one that was genuine before.
        """
        found: dict[bytes, int] = {}

        def find(key_id: bytes) -> bytes:
            capsule = self.store.get(key_id)
            if capsule is None:
                raise KeyNotFound(f"the capsule store has no capsule for key id {key_id.hex()}")
            found[key_id] = parse_capsule(capsule).generation
            if found[key_id] < self._generations.get(key_id, 0):
                raise IntegrityError
            return capsule

        yield find
        self._generations.update(found)
        while len(self._generations) > MAX_GENERATIONS:
            self._generations.pop(next(iter(self._generations)), None)

    def change(self, key_id: bytes, work: Callable[[bytes], bytes]) -> None:
        """Replace a capsule by what ``work`` makes of it; ``RewrapConflict`` if it changed."""
        with self.looking_up() as find:
            old = find(key_id)
            new = work(old)
        if new != old:
            self.store.put(key_id, new, replaces=old)
