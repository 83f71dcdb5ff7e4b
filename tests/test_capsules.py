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
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

import pytest
from attrs import evolve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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
FORKS = 20
TURNS = 300
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
    """Fork again and again while threads rewrap; each child rewraps once.  Report the rewraps."""
    store = open_store(kind, folder)
    store.put(KEY, capsule(uris=("local:child", "local:0", "local:1")), replaces=None)
    done, enough = [0, 0], threading.Event()

    def work(number: int) -> None:
        while not enough.is_set():
            rewrap(store, f"local:{number}", f"local:{number}")
            done[number] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    outcomes = (in_child(lambda: rewrap(store, "local:child", "local:child")) for _ in range(FORKS))
    failure = next(filter(None, outcomes), "")
    enough.set()
    for thread in threads:
        thread.join(PATIENCE)
    say(failure)
    say(str(sum(done)))


def say(*words: str) -> None:
    """One line for the test that started this process."""
    sys.stdout.write(" ".join(words) + "\n")
    sys.stdout.flush()


@contextmanager
def process(work: Callable[..., None], *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that does ``work``; it does not outlive the block."""
    command = [sys.executable, __file__, work.__name__, *arguments]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def lines_of(child: subprocess.Popen[str]) -> list[list[str]]:
    """What a process had still to say; it must end well, and without complaint."""
    said, complaint = child.communicate("", timeout=2 * PATIENCE)  # it has patience, too
    assert (child.returncode, complaint) == (0, "")
    return [line.split() for line in said.splitlines()]


# --- what every store does -----------------------------------------------------------------------

KINDS = ("memory", "files", "sqlite")
ON_DISK = ("files", "sqlite")

if sys.platform == "win32":
    pytest.skip("stores are tested where all of them work", allow_module_level=True)


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[CapsuleStore]:
    """An empty store of each kind."""
    with closing(open_store(request.param, tmp_path)) as made:
        yield made


@pytest.fixture(params=ON_DISK)
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind of store that processes share."""
    return str(request.param)


def test_what_was_put_is_got(store: CapsuleStore) -> None:
    """A capsule comes back as the bytes that went in, and only for its own key."""
    store.put(KEY, capsule(), replaces=None)

    assert store.get(KEY) == capsule()
    assert store.get(OTHER) is None


def test_a_rewrap_takes_the_place_of_what_it_was_made_from(store: CapsuleStore) -> None:
    """The next generation replaces the bytes it names."""
    store.put(KEY, capsule(), replaces=None)

    store.put(KEY, capsule(KEY, 1), replaces=capsule())

    assert store.get(KEY) == capsule(KEY, 1)
    assert list(store.key_ids()) == [KEY]


def test_the_first_capsule_of_a_key_may_be_of_any_generation(store: CapsuleStore) -> None:
    """A capsule that was rewrapped elsewhere can be brought in."""
    store.put(KEY, capsule(KEY, 7), replaces=None)

    assert store.get(KEY) == capsule(KEY, 7)


def test_a_capsule_of_the_largest_size_is_stored(store: CapsuleStore) -> None:
    """What the format allows fits."""
    largest = signed(parse_capsule(capsule()).padded_to(MAX_CAPSULE_BYTES))
    assert len(largest) == MAX_CAPSULE_BYTES

    store.put(KEY, largest, replaces=None)

    assert store.get(KEY) == largest


def test_key_ids_are_those_that_have_a_capsule_in_order(store: CapsuleStore) -> None:
    """The list is a snapshot: what is put while it is read neither disturbs nor joins it."""
    assert list(store.key_ids()) == []
    store.put(OTHER, capsule(OTHER), replaces=None)
    store.put(KEY, capsule(), replaces=None)

    listed = store.key_ids()
    store.put(bytes(16), capsule(bytes(16)), replaces=None)

    assert list(listed) == [KEY, OTHER]


def test_a_closed_store_keeps_its_capsules(store: CapsuleStore) -> None:
    """Closing lets go of descriptors, not of capsules, and may be repeated."""
    store.put(KEY, capsule(), replaces=None)

    store.close()
    store.close()

    assert store.get(KEY) == capsule()


def told(value: object) -> str:
    """The name of a parameter in a test's name: capsules are too long for one."""
    return value if isinstance(value, str) else ""


@pytest.mark.parametrize(
    ("stored", "new", "replaces", "reason"),
    [
        (None, capsule(KEY, 1), capsule(), "none is stored that could be replaced"),
        (capsule(), capsule(), None, "generation 0 is stored already, with the same bytes"),
        (capsule(), capsule(uris=("b",)), None, "generation 0 is stored with other bytes; get it"),
        (capsule(KEY, 2), capsule(), None, "generation 2 is stored meanwhile; get it"),
        (
            capsule(KEY, 1, uris=("b",)),
            capsule(KEY, 1),
            capsule(),
            "generation 1 is stored with other bytes; get it",
        ),
        (capsule(KEY, 2), capsule(KEY, 1), capsule(), "generation 2 is stored meanwhile; get it"),
        (
            capsule(KEY, 1),
            capsule(KEY, 2, uris=("c",)),
            capsule(KEY, 1, uris=("b",)),
            "generation 1 is stored meanwhile; get it",
        ),
    ],
    ids=told,
)
def test_what_was_not_seen_is_not_replaced(
    store: CapsuleStore, stored: bytes | None, new: bytes, replaces: bytes | None, reason: str
) -> None:
    """Whatever else is stored stays, and the conflict says what that is."""
    if stored is not None:
        store.put(KEY, stored, replaces=None)

    with pytest.raises(RewrapConflict, match=f"^capsule {KEY.hex()}: {reason}"):
        store.put(KEY, new, replaces=replaces)

    assert store.get(KEY) == stored


def test_what_fails_the_check_is_not_stored(store: CapsuleStore) -> None:
    """Stores check before they write, first capsules and rewraps alike."""
    with pytest.raises(FormatError):
        store.put(KEY, b"no capsule", replaces=None)
    assert list(store.key_ids()) == []

    store.put(KEY, capsule(), replaces=None)
    with pytest.raises(RewrapConflict):
        store.put(KEY, capsule(KEY, 2), replaces=capsule())
    assert store.get(KEY) == capsule()


@pytest.mark.parametrize("key_id", [b"", KEY[:-1], KEY + b"x"])
def test_a_key_id_of_another_length_is_refused(store: CapsuleStore, key_id: bytes) -> None:
    """It can only be a mistake, and no file or row is looked for."""
    with pytest.raises(InvalidRequest, match="a key id has 16 bytes, not"):
        store.get(key_id)
    with pytest.raises(InvalidRequest, match="a key id has 16 bytes, not"):
        store.put(key_id, capsule(), replaces=None)


CHOICES = [
    capsule(KEY, generation, uris=(uri,)) for generation in range(3) for uri in ("a:", "b:")
] + [capsule(KEY, 1, rest=bytes(15) + b"x"), capsule(OTHER), b"no capsule"]
PUTS = st.lists(
    st.tuples(
        st.sampled_from([KEY, OTHER]),
        st.sampled_from(CHOICES),
        st.none() | st.sampled_from(CHOICES),
    ),
    max_size=12,
)


def outcome(store: CapsuleStore, key_id: bytes, new: bytes, replaces: bytes | None) -> str:
    """How a put ends, as text."""
    try:
        store.put(key_id, new, replaces=replaces)
    except KMSError as exc:
        return f"{exc.code}: {exc}"
    return "stored"


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(puts=PUTS)
def test_all_stores_answer_alike(
    tmp_path_factory: pytest.TempPathFactory, puts: list[tuple[bytes, bytes, bytes | None]]
) -> None:
    """Whatever is put, each store takes and refuses the same, in the same words, and keeps it."""
    folder = tmp_path_factory.mktemp("alike")
    stores = [open_store(kind, folder) for kind in KINDS]
    rule: dict[bytes, bytes] = {}

    for key_id, new, replaces in puts:
        outcomes = {outcome(store, key_id, new, replaces) for store in stores}

        assert len(outcomes) == 1
        if outcomes == {"stored"}:
            assert rule.get(key_id) == replaces
            rule[key_id] = new
        for store in stores:
            assert {found: store.get(found) for found in store.key_ids()} == rule


# --- the check -----------------------------------------------------------------------------------


def test_a_first_capsule_and_a_next_generation_pass() -> None:
    """The two things that may happen to a key."""
    check_put(KEY, capsule(), None)
    check_put(KEY, capsule(KEY, 6, uris=("b",)), capsule(KEY, 5))


@pytest.mark.parametrize(
    ("new", "old", "reason"),
    [
        (capsule(OTHER), None, f"what is to be stored belongs to key {OTHER.hex()}"),
        (
            capsule(KEY, 1),
            capsule(rest=bytes(15) + b"x"),
            "the one to be replaced commits to another data key",
        ),
        (capsule(KEY, 1), capsule(OTHER), "the one to be replaced commits to another data key"),
        (
            capsule(uris=("b",)),
            capsule(),
            "the one to be replaced has the same generation 0 and other bytes",
        ),
        (capsule(), capsule(), "the one to be replaced has the same generation 0 and the same byt"),
        (capsule(KEY, 2), capsule(), "generation 2 does not follow 0"),
        (capsule(KEY, 4), capsule(KEY, 5), "generation 4 does not follow 5"),
    ],
    ids=told,
)
def test_anything_else_is_a_conflict_that_says_which(
    new: bytes, old: bytes | None, reason: str
) -> None:
    """The message names the key and what does not fit."""
    with pytest.raises(RewrapConflict, match=f"^capsule {KEY.hex()}: {reason}") as caught:
        check_put(KEY, new, old)

    assert "\n" not in str(caught.value)


def test_what_is_no_capsule_is_a_format_error() -> None:
    """The message says whether the new one or the old one does not parse."""
    with pytest.raises(FormatError, match=f"^capsule {KEY.hex()}: the capsule is cut short"):
        check_put(KEY, capsule()[:-1], None)
    with pytest.raises(FormatError, match="the one to be replaced: too short for a capsule"):
        check_put(KEY, capsule(KEY, 1), b"")


# --- damage and trouble --------------------------------------------------------------------------


def damage(kind: str, folder: Path, data: bytes) -> None:
    """Put these bytes where the capsule of ``KEY`` is, behind the store's back."""
    if kind == "files":
        (folder / "capsules" / KEY.hex()).write_bytes(data)
        return
    with closing(sqlite3.connect(folder / "capsules.sqlite")) as connection, connection:
        connection.execute("UPDATE capsules SET capsule = ? WHERE key_id = ?", (data, KEY))


@pytest.mark.parametrize(
    ("data", "error", "reason"),
    [
        (b"", FormatError, "too short for a capsule"),
        (capsule()[:-1], FormatError, "the capsule is cut short"),
        (capsule() + b"x", FormatError, "the capsule is followed by stray bytes"),
        (bytes((*capsule()[:1], 0x21)) + capsule()[2:], UnsupportedVersion, "envelope version 2"),
        (capsule() + bytes(1 << 20), FormatError, "the capsule is followed by stray bytes"),
        (capsule(OTHER), FormatError, "what is stored belongs to another key"),
    ],
    ids=told,
)
def test_a_damaged_capsule_is_not_handed_out(
    kind: str, tmp_path: Path, data: bytes, error: type[FormatError], reason: str
) -> None:
    """What does not parse, or was never put for this key, is an error that names the key."""
    store = open_store(kind, tmp_path)
    store.put(KEY, capsule(), replaces=None)
    damage(kind, tmp_path, data)

    with pytest.raises(error, match=f"^capsule {KEY.hex()}: {reason}"):
        store.get(KEY)


def test_a_damaged_capsule_is_not_replaced(kind: str, tmp_path: Path) -> None:
    """Somebody has to look at it first."""
    store = open_store(kind, tmp_path)
    store.put(KEY, capsule(), replaces=None)
    damage(kind, tmp_path, b"damaged")

    with pytest.raises(RewrapConflict, match="the one that is stored is damaged; restore it"):
        store.put(KEY, capsule(KEY, 1), replaces=capsule())
    with pytest.raises(RewrapConflict, match="the one that is stored is damaged; restore it"):
        store.put(KEY, capsule(), replaces=None)


def refuses_everything(store: CapsuleStore, reason: str) -> None:
    """Assert that each call of a store is ``Unavailable`` with this reason, in one line."""
    calls: list[Callable[[], object]] = [
        lambda: store.get(KEY),
        lambda: store.put(KEY, capsule(), replaces=None),
        lambda: store.put(KEY, capsule(KEY, 1), replaces=capsule()),
        store.key_ids,
    ]
    for call in calls:
        with pytest.raises(Unavailable, match=reason) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_a_store_that_went_away_is_not_an_empty_one(kind: str, tmp_path: Path) -> None:
    """An unmounted folder must not look as if no capsule had ever been stored."""
    store = open_store(kind, tmp_path)

    for path in tmp_path.iterdir():
        path.rename(tmp_path.with_name(f"{path.name}-moved-{tmp_path.name}"))

    refuses_everything(store, r"^the capsule store .* failed: .*; check it, then try again$")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("make", [FileCapsules, SqliteCapsules])
def test_a_store_in_a_missing_folder_is_unavailable(
    make: Callable[[Path], CapsuleStore], tmp_path: Path
) -> None:
    """Parents are not made: the mistake is more likely in the path."""
    with pytest.raises(Unavailable, match=r"missing/capsules failed: .*; check it, then"):
        make(tmp_path / "missing" / "capsules")


def test_a_file_is_not_taken_for_a_folder(tmp_path: Path) -> None:
    """A store of files in a place that is a file says so, and leaves it alone."""
    (tmp_path / "capsules").write_bytes(b"mine")

    with pytest.raises(Unavailable, match="capsules failed: File exists"):
        FileCapsules(tmp_path / "capsules")

    assert (tmp_path / "capsules").read_bytes() == b"mine"


def test_another_kind_of_file_is_not_taken_for_a_database(tmp_path: Path) -> None:
    """It is refused when the store is made, and left as it is."""
    path = tmp_path / "capsules.sqlite"
    path.write_bytes(b"mine, and no database" * 100)

    with pytest.raises(Unavailable, match="sqlite failed: file is not a database; check it"):
        SqliteCapsules(path)

    assert path.read_bytes() == b"mine, and no database" * 100


def test_another_applications_database_is_not_used(tmp_path: Path) -> None:
    """No table is added to what is not ours."""
    path = tmp_path / "capsules.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE theirs (name TEXT)")

    with pytest.raises(Unavailable, match="sqlite failed: no such table: capsules; check it"):
        SqliteCapsules(path)


def test_a_corrupt_database_is_unavailable(tmp_path: Path) -> None:
    """SQLite's own complaint is passed on."""
    store = open_store("sqlite", tmp_path)
    path = tmp_path / "capsules.sqlite"
    damaged = bytearray(path.read_bytes())
    damaged[100:] = bytes(len(damaged) - 100)
    path.write_bytes(damaged)

    refuses_everything(store, "sqlite failed: database disk image is malformed; check it")


@pytest.mark.parametrize("replaces", [None, capsule()], ids=["insert", "replace"])
def test_a_full_disk_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaces: bytes | None
) -> None:
    """What could not be written is not stored, and no half of it stays behind."""
    store = open_store("files", tmp_path)
    if replaces is not None:
        store.put(KEY, replaces, replaces=None)
    before = sorted((tmp_path / "capsules").iterdir())

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(Unavailable, match="capsules failed: No space left on device; check"):
            store.put(KEY, capsule(KEY, 1), replaces=replaces)

    assert store.get(KEY) == replaces
    assert sorted((tmp_path / "capsules").iterdir()) == before


def test_relative_paths_stay_where_they_were(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Changing the working directory does not move a store."""
    monkeypatch.chdir(tmp_path)
    store = open_store(kind, Path())
    store.put(KEY, capsule(), replaces=None)

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")

    assert store.get(KEY) == capsule()


def test_odd_paths_are_no_parameters(tmp_path: Path) -> None:
    """A path is a path, also where SQLite would read it as a URI's query."""
    path = tmp_path / "a ?mode=memory&x#é%20.sqlite"

    SqliteCapsules(path).put(KEY, capsule(), replaces=None)

    assert SqliteCapsules(path).get(KEY) == capsule()
    assert path.is_file()


# --- files ---------------------------------------------------------------------------------------


def test_files_are_named_by_key_id_and_hold_the_bare_capsule(tmp_path: Path) -> None:
    """An operator finds, copies and inspects them with ordinary tools; nothing else stays."""
    store = FileCapsules(tmp_path)

    store.put(KEY, capsule(), replaces=None)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {KEY.hex(): capsule()}

    store.put(KEY, capsule(KEY, 1), replaces=capsule())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        KEY.hex(): capsule(KEY, 1),
        ".lock": b"",
    }


def test_files_that_are_no_capsules_are_not_listed(tmp_path: Path) -> None:
    """Leftovers of killed writers and an operator's notes are nobody's capsule."""
    store = FileCapsules(tmp_path)
    store.put(KEY, capsule(), replaces=None)
    for name in ("README", f".{KEY.hex()}.tmp", KEY.hex().upper() + "0", f"{OTHER.hex()}.bak"):
        (tmp_path / name).write_bytes(capsule())

    assert list(store.key_ids()) == [KEY]


@contextmanager
def lock_of(folder: Path) -> Iterator[Callable[[], None]]:
    """Hold the lock of a folder of capsules; yields how to let go."""
    with (folder / ".lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield lambda: fcntl.flock(file, fcntl.LOCK_UN)


def test_a_rewrap_waits_for_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process that holds it for a moment is no error."""
    store = FileCapsules(tmp_path)
    store.put(KEY, capsule(), replaces=None)

    with lock_of(tmp_path) as let_go:
        monkeypatch.setattr(time, "sleep", lambda seconds: let_go())
        store.put(KEY, capsule(KEY, 1), replaces=capsule())

    assert store.get(KEY) == capsule(KEY, 1)


def test_a_folder_locked_for_too_long_is_unavailable(tmp_path: Path) -> None:
    """Rewraps fail in time; readers and first capsules need no lock."""
    store = FileCapsules(tmp_path, lock_timeout=0.0)
    store.put(KEY, capsule(), replaces=None)

    with lock_of(tmp_path):
        with pytest.raises(Unavailable, match="is locked by another process for longer"):
            store.put(KEY, capsule(KEY, 1), replaces=capsule())
        store.put(OTHER, capsule(OTHER), replaces=None)
        assert store.get(KEY) == capsule()

    store.put(KEY, capsule(KEY, 1), replaces=capsule())


def test_the_lock_is_let_go_while_a_copy_of_it_is_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is being started just then has one for a moment."""
    store = FileCapsules(tmp_path, lock_timeout=0.0)
    store.put(KEY, capsule(), replaces=None)
    flock = fcntl.flock

    with ExitStack() as copies:

        def copy_and_lock(file: BinaryIO, operation: int) -> None:
            copies.callback(os.close, os.dup(file.fileno()))
            flock(file, operation)

        monkeypatch.setattr(fcntl, "flock", copy_and_lock)
        store.put(KEY, capsule(KEY, 1), replaces=capsule())
        store.put(KEY, capsule(KEY, 2), replaces=capsule(KEY, 1))

    assert store.get(KEY) == capsule(KEY, 2)


# --- SQLite --------------------------------------------------------------------------------------


def test_a_locked_database_is_unavailable(tmp_path: Path) -> None:
    """Writers fail in time; readers are not kept out."""
    path = tmp_path / "capsules.sqlite"
    store = SqliteCapsules(path, lock_timeout=0.0)
    store.put(KEY, capsule(), replaces=None)

    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable, match="sqlite failed: database is locked; check it"):
            store.put(KEY, capsule(KEY, 1), replaces=capsule())
        assert store.get(KEY) == capsule()

    store.put(KEY, capsule(KEY, 1), replaces=capsule())


def test_the_database_is_left_as_one_file(tmp_path: Path) -> None:
    """No connection stays open between calls, so that it can be copied; it logs ahead."""
    path = tmp_path / "capsules.sqlite"

    SqliteCapsules(path).put(KEY, capsule(), replaces=None)

    assert list(tmp_path.iterdir()) == [path]
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_database_made_meanwhile_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who loses the race to create it takes the winner's, with what is in it."""
    path = tmp_path / "capsules.sqlite"
    SqliteCapsules(path).put(KEY, capsule(), replaces=None)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "exists", lambda self: False)
        late = SqliteCapsules(path)

    assert late.get(KEY) == capsule()
    assert list(tmp_path.iterdir()) == [path]


# --- threads, processes, forks, kills ------------------------------------------------------------


def nothing_was_lost(store: CapsuleStore, won: dict[str, list[str]]) -> None:
    """Assert that each key has its winner's capsule, and ``KEY`` every rewrap of every worker."""
    keys = [key_id for keys in won.values() for key_id in keys]
    assert sorted(keys) == [key_number(number).hex() for number in range(INSERTS)]
    for worker, its_keys in won.items():
        for key_id in map(bytes.fromhex, its_keys):
            assert store.get(key_id) == capsule(key_id, uris=(f"local:{worker}",))
    result = parse_capsule(store.get(KEY) or b"")
    left = {
        recipient_of(worker, number)
        for worker in won
        for number in range(REWRAPS - STANDING, REWRAPS)
    }
    assert {recipient.key_uri for recipient in result.recipients} == {"local:a", *left}
    assert result.generation == len(won) * REWRAPS


def test_threads_lose_no_add_and_bring_back_no_removed(store: CapsuleStore) -> None:
    """Each first capsule has one winner, and each rewrap builds on all before it."""
    store.put(KEY, capsule(), replaces=None)

    nothing_was_lost(store, hammer(store, ["one", "two", "three"]))


def test_threads_take_turns_in_memory() -> None:
    """Looking and storing is one step, also when threads are switched at every chance."""
    store = MemoryCapsules()
    names = [f"local:{number}" for number in range(4)]
    store.put(KEY, capsule(uris=tuple(names)), replaces=None)

    def work(name: str) -> None:
        for _ in range(TURNS):
            rewrap(store, name, name)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    finally:
        sys.setswitchinterval(interval)

    assert parse_capsule(store.get(KEY) or b"").generation == len(names) * TURNS


def test_processes_lose_no_add_and_bring_back_no_removed(kind: str, tmp_path: Path) -> None:
    """Two processes with two threads each, from the creation of the store on."""
    with ExitStack() as stack:
        children = [
            stack.enter_context(process(hammer_when_told, kind, str(tmp_path), *workers))
            for workers in (("one", "two"), ("three", "four"))
        ]
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        said = [line for child in children for line in lines_of(child)]

    store = open_store(kind, tmp_path)
    nothing_was_lost(store, {worker: keys for worker, *keys in said})


@pytest.mark.parametrize("kind", KINDS)
def test_forks_among_busy_threads_go_on(kind: str, tmp_path: Path) -> None:
    """No child finds a lock that nobody will release, or writes past one that it does not hold."""
    with process(fork_among_threads, kind, str(tmp_path)) as child:
        failure, (rewraps,) = lines_of(child)

    assert failure == []
    if kind != "memory":  # whose children have memories of their own
        stored = open_store(kind, tmp_path).get(KEY)
        assert parse_capsule(stored or b"").generation == int(rewraps) + FORKS


def test_a_forked_child_reads_and_rewraps(kind: str, tmp_path: Path) -> None:
    """A store made before a fork serves both processes."""
    store = open_store(kind, tmp_path)
    store.put(KEY, capsule(), replaces=None)

    def work() -> None:
        thread = threading.Thread(target=rewrap, args=(store, "local:child"))
        thread.start()
        thread.join(PATIENCE)
        assert not thread.is_alive(), "the child's threads are kept out"

    assert in_child(work) == ""

    rewrap(store, "local:parent")
    stored = parse_capsule(store.get(KEY) or b"")
    assert stored.generation == 2
    assert [recipient.key_uri for recipient in stored.recipients] == [
        "local:a",
        "local:child",
        "local:parent",
    ]


def test_a_fork_from_c_code_leaves_no_lock_held() -> None:
    """It asks nobody before; a child must come to its capsules even so."""
    store = MemoryCapsules()
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with store._gate.held():
            held.set()
            done.wait(PATIENCE)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(PATIENCE)
    store._gate._in_child()
    is_free = store._gate._lock.acquire(blocking=False)
    done.set()
    holder.join(PATIENCE)

    assert is_free


def test_a_store_made_while_another_thread_forks_is_let_be() -> None:
    """It was not there to be held before the fork, so there is nothing to let go of."""
    store = MemoryCapsules()

    store._gate._after_fork()

    store.put(KEY, capsule(), replaces=None)
    assert store.get(KEY) == capsule()


def test_a_store_that_is_gone_holds_up_no_fork() -> None:
    """What asks to be told of forks does not keep a store alive."""
    store = MemoryCapsules()
    gate = weakref.ref(store._gate)

    del store
    gc.collect()

    assert gate() is None
    assert in_child(lambda: None) == ""


def test_a_killed_writer_leaves_whole_capsules_and_no_lock(kind: str, tmp_path: Path) -> None:
    """What was said to be stored is, nothing is torn, and the next writer goes on."""
    reached, killed_at = 0, set()
    for _ in range(3):
        with process(rewrap_until_killed, kind, str(tmp_path)) as child:
            assert child.stdout is not None
            said = [child.stdout.readline() for _ in range(15)]
            child.kill()
            said += child.stdout.read().split("\n")[:-1]
        promised = int(said[-1])
        assert promised >= reached + 15

        store = open_store(kind, tmp_path)
        reached = parse_capsule(store.get(KEY) or b"").generation
        killed_at.add(reached)
        assert promised <= reached <= promised + 1
        keys = set(store.key_ids())
        assert all(store.get(key_id) for key_id in keys)
        due = {key_number(number) for number in range(1, promised + 1)}
        assert due - keys <= set(map(key_number, killed_at))


if __name__ == "__main__":
    _, name, kind_, folder_, *rest_ = sys.argv
    if name == hammer_when_told.__name__:
        hammer_when_told(kind_, Path(folder_), rest_)
    else:
        {work.__name__: work for work in (rewrap_until_killed, fork_among_threads)}[name](
            kind_, Path(folder_)
        )
