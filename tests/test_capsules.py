"""Capsule stores: one rule for what may replace what, kept by threads, processes and forks alike.

Run as a script, this file is one of the processes that the tests set on a store.
"""

from __future__ import annotations

import gc
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Final

import pytest
from attrs import evolve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kms_core import capsules
from kms_core.capsules import (
    CapsuleStore,
    FileCapsules,
    MemoryCapsules,
    SqliteCapsules,
    check_put,
)
from kms_core.context import Context
from kms_core.errors import (
    FormatError,
    InvalidRequest,
    KMSError,
    RewrapConflict,
    Unavailable,
    UnsupportedVersion,
)
from kms_core.header import MAC_BYTES, MAX_CAPSULE_BYTES, Capsule, Recipient, parse_capsule
from kms_core.testing.processes import in_child

if sys.platform != "win32":
    import fcntl

PATIENCE = 60.0  # seconds until a test gives up; nothing waits that long unless it is broken
KEY: Final = bytes(range(16))
OTHER: Final = bytes(range(1, 17))


def capsule(
    key_id: bytes = KEY,
    generation: int = 0,
    *,
    uris: tuple[str, ...] = ("local:a",),
    rest: bytes = bytes(16),
) -> bytes:
    """A capsule that parses; ``rest`` is the part of the commitment that is not the key id."""
    return signed(
        Capsule(
            suite=1,
            threshold=1,
            generation=generation,
            commitment=key_id + rest,
            scope=Context(),
            recipients=tuple(Recipient(uri, 1, b"wrapped") for uri in uris),
        )
    )


def signed(unsigned: Capsule) -> bytes:
    """The capsule's bytes with a MAC that only a holder of the key could tell from a good one."""
    return unsigned.unsigned() + bytes(MAC_BYTES)


# --- a process of its own ------------------------------------------------------------------------

INSERTS = 12
REWRAPS = 10
STANDING = 3  # how many of its recipients a worker leaves in the capsule


def open_store(kind: str, folder: Path) -> CapsuleStore:
    """The store of this kind in a folder, or a new one."""
    if kind == "files":
        return FileCapsules(folder / "capsules")
    if kind == "sqlite":
        return SqliteCapsules(folder / "capsules.sqlite")
    return MemoryCapsules()


def key_number(number: int) -> bytes:
    """The key ids that workers race for."""
    return b"insert" + number.to_bytes(10, "big")


def insert_all(store: CapsuleStore, worker: str) -> list[str]:
    """Try to be the first to store each key; the keys that were won."""
    won = []
    for number in range(INSERTS):
        key_id = key_number(number)
        with suppress(RewrapConflict):
            store.put(key_id, capsule(key_id, uris=(f"local:{worker}",)), replaces=None)
            won.append(key_id.hex())
    return won


def rewrap(store: CapsuleStore, add: str, remove: str | None = None) -> None:
    """Add a recipient to the capsule of ``KEY`` and remove another, again after each conflict."""
    while True:
        old = store.get(KEY)
        assert old is not None
        parsed = parse_capsule(old)
        kept = tuple(item for item in parsed.recipients if item.key_uri != remove)
        assert remove is None or len(kept) == len(parsed.recipients) - 1
        recipients = (*kept, Recipient(add, 1, b"wrapped"))
        new = signed(evolve(parsed, generation=parsed.generation + 1, recipients=recipients))
        try:
            return store.put(KEY, new, replaces=old)
        except RewrapConflict:
            continue


def recipient_of(worker: str, number: int) -> str:
    """The recipient that a worker adds with its rewrap of this number."""
    return f"local:{worker}-{number}"


def rewrap_all(store: CapsuleStore, worker: str) -> None:
    """Add one recipient after the other, and remove them later."""
    for number in range(REWRAPS):
        old = number - STANDING
        remove = recipient_of(worker, old) if old >= 0 else None
        rewrap(store, recipient_of(worker, number), remove)


def hammer(store: CapsuleStore, workers: list[str]) -> dict[str, list[str]]:
    """One thread for each worker, all at once; which keys each of them won."""
    won: dict[str, list[str]] = {}

    def work(worker: str) -> None:
        keys = insert_all(store, worker)
        rewrap_all(store, worker)
        won[worker] = keys

    threads = [threading.Thread(target=work, args=(worker,)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert won.keys() == set(workers), "a worker failed or hangs"
    return won


def hammer_when_told(kind: str, folder: Path, workers: list[str]) -> None:
    """Say when ready, go when told, and report which keys were won."""
    say("ready")
    sys.stdin.readline()
    store = open_store(kind, folder)
    with suppress(RewrapConflict):
        store.put(KEY, capsule(), replaces=None)
    for worker, keys in hammer(store, workers).items():
        say(worker, *keys)


def rewrap_until_killed(kind: str, folder: Path) -> None:
    """Store generation after generation and another key with each, and say what is stored."""
    store = open_store(kind, folder)
    stored = store.get(KEY)
    if stored is None:
        store.put(KEY, stored := capsule(), replaces=None)
    generation = parse_capsule(stored).generation
    while True:
        new = capsule(KEY, generation + 1)
        store.put(KEY, new, replaces=stored)
        stored, generation = new, generation + 1
        key_id = key_number(generation)
        store.put(key_id, capsule(key_id), replaces=None)
        say(str(generation))


def fork_among_threads(kind: str, folder: Path) -> None:
    """Fork again and again while threads rewrap; each child rewraps too, and reads."""
    store = open_store(kind, folder)
    store.put(KEY, capsule(), replaces=None)
    hammering = threading.Thread(target=hammer, args=(store, ["one", "two"]))
    hammering.start()
    forks = 0
    while hammering.is_alive():
        forks += 1
        failure = in_child(lambda: rewrap(store, recipient_of("child", os.getpid() % 8 + 100)))
        failure and say(failure)
    say(str(forks))


def say(*words: str) -> None:
    """One line for the test that started this process."""
    sys.stdout.write(" ".join(words) + "\n")
    sys.stdout.flush()
