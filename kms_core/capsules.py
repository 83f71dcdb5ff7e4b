"""Where capsules live that do not stand in front of their messages: maps from key id to capsule.

Every put is a compare-and-swap, checked for structure first, so that nobody undoes a rewrap that
they have not seen (docs/format.md, section 9).  Stores use no key: whoever opens a capsule
authenticates it.  Which data key is current or retired is not theirs to know either.
"""

from __future__ import annotations

import os
import re
import secrets
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from kms_core.errors import FormatError, InvalidRequest, RewrapConflict, Unavailable
from kms_core.files import sync_folder
from kms_core.header import KEY_ID_BYTES, MAX_CAPSULE_BYTES, Capsule, parse_capsule

if TYPE_CHECKING:
    import sqlite3

LOCK_TIMEOUT: Final = 5.0  # seconds; whoever holds a lock writes one capsule and lets go
_LOCK_POLL: Final = 0.005
_READ_LIMIT: Final = MAX_CAPSULE_BYTES + 1  # one more than a capsule takes: enough to refuse it
_FILE_NAME: Final = re.compile(f"[0-9a-f]{{{2 * KEY_ID_BYTES}}}")
_SCHEMA: Final = f"""
CREATE TABLE capsules (
    key_id BLOB PRIMARY KEY CHECK (typeof(key_id) = 'blob' AND length(key_id) = {KEY_ID_BYTES}),
    capsule BLOB NOT NULL CHECK (typeof(capsule) = 'blob')
)
"""


class CapsuleStore(Protocol):
    """A map from key id to capsule that threads share, and processes if it outlives them.

    What cannot be reached, locked, read or written is ``Unavailable``; a ``put`` that ended so may
    have happened nevertheless, as ``get`` will tell.  A key id that is not 16 bytes is an
    ``InvalidRequest``.
    """

    def get(self, key_id: bytes) -> bytes | None:
        """The capsule of this data key, if there is one; ``FormatError`` if it is damaged."""
        ...

    def put(self, key_id: bytes, capsule: bytes, *, replaces: bytes | None) -> None:
        """Store the key's first capsule (``replaces=None``), or one in place of these very bytes.

        Raises what ``check_put`` raises, and ``RewrapConflict`` if something else is stored: get
        that, and repeat the change on it.
        """
        ...

    def key_ids(self) -> Iterator[bytes]:
        """The keys that have a capsule now, in ascending order."""
        ...

    def close(self) -> None:
        """Let go of what is held open; closing twice is once."""
        ...


# --- what may be stored --------------------------------------------------------------------------


def check_put(key_id: bytes, capsule: bytes, old: bytes | None) -> None:
    """Raise unless ``capsule`` may become the capsule of ``key_id`` in place of ``old``.

    ``FormatError`` if either is not a capsule, ``RewrapConflict`` if the new one belongs to
    another data key or is not the generation that follows the old one.
    """
    _check_key_id(key_id)
    name = _name(key_id)
    new = _parse(capsule, name)
    if new.key_id != key_id:
        raise RewrapConflict(f"{name}: what is to be stored belongs to key {new.key_id.hex()}")
    if old is None:
        return
    previous = _parse(old, f"{name}, the one to be replaced")
    if new.commitment != previous.commitment:
        raise RewrapConflict(f"{name}: the one to be replaced commits to another data key")
    if new.generation == previous.generation:
        bytes_ = "the same" if capsule == old else "other"
        raise RewrapConflict(
            f"{name}: the one to be replaced has the same generation {new.generation} "
            f"and {bytes_} bytes; a rewrap makes the next generation"
        )
    if new.generation != previous.generation + 1:
        raise RewrapConflict(
            f"{name}: generation {new.generation} does not follow {previous.generation}; "
            "rewrap the one that is stored"
        )


def _check_key_id(key_id: bytes) -> None:
    if len(key_id) != KEY_ID_BYTES:
        raise InvalidRequest(f"a key id has {KEY_ID_BYTES} bytes, not {len(key_id)}")


def _name(key_id: bytes) -> str:
    return f"capsule {key_id.hex()}"


def _parse(data: bytes, name: str) -> Capsule:
    try:
        return parse_capsule(data)
    except FormatError as exc:
        raise type(exc)(f"{name}: {exc}") from exc


def _checked(key_id: bytes, stored: bytes | None) -> bytes | None:
    """What was stored for this key, or ``FormatError`` if it is nothing that was ever put there."""
    if stored is not None and _parse(stored, _name(key_id)).key_id != key_id:
        raise FormatError(f"{_name(key_id)}: what is stored belongs to another key; restore it")
    return stored


def _conflict(key_id: bytes, capsule: bytes, stored: bytes | None) -> RewrapConflict:
    """Why ``capsule`` could not be swapped in when ``stored`` was found."""
    return RewrapConflict(
        f"{_name(key_id)}: {_difference(parse_capsule(capsule), capsule, stored)}"
    )


def _difference(new: Capsule, capsule: bytes, stored: bytes | None) -> str:
    if stored is None:
        return "none is stored that could be replaced"
    if stored == capsule:
        return f"generation {new.generation} is stored already, with the same bytes"
    try:
        found = parse_capsule(stored).generation
    except FormatError:
        return "the one that is stored is damaged; restore it from a backup"
    if found == new.generation:
        return f"generation {found} is stored with other bytes; get it and repeat the change on it"
    return f"generation {found} is stored meanwhile; get it and repeat the change on it"


# --- forks ---------------------------------------------------------------------------------------


class _Gate:
    """A lock that forking waits for, so that no child starts in the middle of a call.

    A child would inherit what its other threads held: a locked lock, a share of a file lock, or
    SQLite's belief that a lock is held which is its parent's alone.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # reentrant, as a signal handler may fork during a call
        if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
            this = weakref.ref(self)
            os.register_at_fork(
                before=partial(_if_alive, this, _Gate._before_fork),
                after_in_parent=partial(_if_alive, this, _Gate._after_fork),
                after_in_child=partial(_if_alive, this, _Gate._in_child),
            )

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other threads out, and forks back."""
        with self._lock:
            yield

    def _before_fork(self) -> None:
        self._lock.acquire()

    def _after_fork(self) -> None:
        with suppress(RuntimeError):  # another thread made this gate while the fork was prepared
            self._lock.release()

    def _in_child(self) -> None:
        self._lock = threading.RLock()  # a fork from C code asked nobody before


def _if_alive(reference: weakref.ref[_Gate], action: Callable[[_Gate], None]) -> None:
    gate = reference()
    if gate is not None:
        action(gate)


# --- stores --------------------------------------------------------------------------------------


class MemoryCapsules:
    """The capsules of one process, which end with it: for tests, and for short-lived messages."""

    def __init__(self) -> None:
        self._capsules: dict[bytes, bytes] = {}
        self._gate = _Gate()

    def get(self, key_id: bytes) -> bytes | None:
        """As ``CapsuleStore`` says; what is found was checked when it was put."""
        _check_key_id(key_id)
        return self._capsules.get(key_id)

    def put(self, key_id: bytes, capsule: bytes, *, replaces: bytes | None) -> None:
        """As ``CapsuleStore`` says."""
        check_put(key_id, capsule, replaces)
        with self._gate.held():
            stored = self._capsules.get(key_id)
            if stored != replaces:
                raise _conflict(key_id, capsule, stored)
            self._capsules[key_id] = capsule

    def key_ids(self) -> Iterator[bytes]:
        """As ``CapsuleStore`` says."""
        return iter(sorted(self._capsules.copy()))

    def close(self) -> None:
        """Nothing is held open: the capsules stay for whoever else uses the store."""


class FileCapsules:
    """A folder with a file for each capsule, named by the key id in hex; POSIX only.

    The folder is made if its parent exists.  A file appears, and changes, whole and on disk,
    whatever is killed and when.  Beside capsules there are ``.lock``, which must stay, and what
    killed writers leave, ``.*.tmp``, which may be deleted.
    """

    def __init__(self, directory: Path, *, lock_timeout: float = LOCK_TIMEOUT) -> None:
        self._directory = directory.absolute()
        self._lock_timeout = lock_timeout
        self._gate = _Gate()
        with _storage_at(self._directory):
            _make_folder(self._directory)

    def get(self, key_id: bytes) -> bytes | None:
        """As ``CapsuleStore`` says."""
        _check_key_id(key_id)
        with _storage_at(self._directory):
            stored = self._read(key_id)
        return _checked(key_id, stored)

    def put(self, key_id: bytes, capsule: bytes, *, replaces: bytes | None) -> None:
        """As ``CapsuleStore`` says."""
        check_put(key_id, capsule, replaces)
        with _storage_at(self._directory), self._temporary(capsule) as temporary:
            if replaces is None:
                self._insert(key_id, capsule, temporary)
            else:
                self._replace(key_id, capsule, temporary, replaces)

    def key_ids(self) -> Iterator[bytes]:
        """As ``CapsuleStore`` says."""
        with _storage_at(self._directory):
            names = sorted(path.name for path in self._directory.iterdir())
        return iter([bytes.fromhex(name) for name in names if _FILE_NAME.fullmatch(name)])

    def close(self) -> None:
        """Nothing is held open between calls."""

    def _path(self, key_id: bytes) -> Path:
        return self._directory / key_id.hex()

    def _read(self, key_id: bytes) -> bytes | None:
        try:
            with self._path(key_id).open("rb") as file:
                return file.read(_READ_LIMIT)
        except FileNotFoundError:
            self._directory.stat()  # a folder that is gone is not one without capsules
            return None

    @contextmanager
    def _temporary(self, capsule: bytes) -> Iterator[Path]:
        """A file on disk with these bytes, under a name that is no capsule's."""
        path = _temporary_in(self._directory)
        try:
            with path.open("xb") as file:
                file.write(capsule)
                file.flush()
                os.fsync(file.fileno())
            yield path
        finally:
            path.unlink(missing_ok=True)

    def _insert(self, key_id: bytes, capsule: bytes, temporary: Path) -> None:
        try:
            self._path(key_id).hardlink_to(temporary)  # unlike a rename, it replaces nothing
        except FileExistsError:
            raise _conflict(key_id, capsule, self._read(key_id)) from None
        sync_folder(self._directory)

    def _replace(self, key_id: bytes, capsule: bytes, temporary: Path, replaces: bytes) -> None:
        with self._gate.held(), self._locked():
            stored = self._read(key_id)
            if stored != replaces:
                raise _conflict(key_id, capsule, stored)
            temporary.replace(self._path(key_id))
            sync_folder(self._directory)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the folder's lock against other stores and processes."""
        import fcntl  # POSIX only

        with (self._directory / ".lock").open("ab") as file:  # NFS locks only what may be written
            self._wait_for(partial(fcntl.flock, file, fcntl.LOCK_EX | fcntl.LOCK_NB))
            try:
                yield
            finally:  # closing would not do, while a process is being started with a copy of it
                fcntl.flock(file, fcntl.LOCK_UN)

    def _wait_for(self, lock: Callable[[], None]) -> None:
        deadline = time.monotonic() + self._lock_timeout
        while True:
            try:
                return lock()
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise Unavailable(
                        f"the capsule store {self._directory} is locked by another process "
                        f"for longer than {self._lock_timeout} s; try again"
                    ) from None
            time.sleep(_LOCK_POLL)


class SqliteCapsules:
    """A SQLite database on a local file system, made if its folder exists.

    Each call opens and closes a connection (a tenth of a millisecond): what is never kept cannot
    cross a fork, and a stale descriptor cannot outlive a restored backup.
    """

    def __init__(self, path: Path, *, lock_timeout: float = LOCK_TIMEOUT) -> None:
        self._path = path.absolute()
        self._lock_timeout = lock_timeout
        self._gate = _Gate()
        with _storage_at(self._path):
            if not self._path.exists():
                self._create()
        with self._connection() as connection:  # or say now that this is another kind of file
            connection.execute("SELECT key_id, capsule FROM capsules LIMIT 1")

    def get(self, key_id: bytes) -> bytes | None:
        """As ``CapsuleStore`` says."""
        _check_key_id(key_id)
        with self._connection() as connection:
            stored = _select(connection, key_id)
        return _checked(key_id, stored)

    def put(self, key_id: bytes, capsule: bytes, *, replaces: bytes | None) -> None:
        """As ``CapsuleStore`` says."""
        check_put(key_id, capsule, replaces)
        with self._connection() as connection:
            if _swap(connection, key_id, capsule, replaces):
                return
            stored = _select(connection, key_id)
        raise _conflict(key_id, capsule, stored)

    def key_ids(self) -> Iterator[bytes]:
        """As ``CapsuleStore`` says."""
        with self._connection() as connection:
            rows = connection.execute("SELECT key_id FROM capsules ORDER BY key_id").fetchall()
        return iter([key_id for (key_id,) in rows])

    def close(self) -> None:
        """Nothing is held open between calls."""

    def _create(self) -> None:
        """Make the database beside its place and link it there: it appears whole, and once."""
        temporary = _temporary_in(self._path.parent)
        try:
            with self._connection(temporary, mode="rwc") as connection:
                connection.execute(_SCHEMA)
                connection.execute("PRAGMA journal_mode = WAL")  # last: the log stays empty
            with suppress(FileExistsError):  # another process made it meanwhile
                self._path.hardlink_to(temporary)
            sync_folder(self._path.parent)
        finally:
            temporary.unlink(missing_ok=True)

    @contextmanager
    def _connection(
        self, path: Path | None = None, *, mode: str = "rw"
    ) -> Iterator[sqlite3.Connection]:
        import sqlite3  # not every Python has it, and few need it

        uri = f"{(path or self._path).as_uri()}?mode={mode}"
        try:
            with (
                self._gate.held(),
                closing(
                    sqlite3.connect(uri, uri=True, timeout=self._lock_timeout, isolation_level=None)
                ) as connection,
            ):
                connection.execute("PRAGMA synchronous = FULL")
                yield connection
        except sqlite3.Error as exc:
            raise _failed(self._path, str(exc)) from exc


def _select(connection: sqlite3.Connection, key_id: bytes) -> bytes | None:
    row: tuple[bytes | None] | None = connection.execute(
        "SELECT CAST(substr(capsule, 1, ?) AS BLOB) FROM capsules WHERE key_id = ?",
        (_READ_LIMIT, key_id),
    ).fetchone()
    return None if row is None else row[0] or b""  # substr of nothing is NULL


def _swap(
    connection: sqlite3.Connection, key_id: bytes, capsule: bytes, replaces: bytes | None
) -> bool:
    """Insert or replace in one statement, which is one transaction; whether anything changed."""
    if replaces is None:
        done = connection.execute(
            "INSERT INTO capsules (key_id, capsule) VALUES (?, ?) ON CONFLICT DO NOTHING",
            (key_id, capsule),
        )
    else:
        done = connection.execute(
            "UPDATE capsules SET capsule = ? WHERE key_id = ? AND capsule = ?",
            (capsule, key_id, replaces),
        )
    return done.rowcount == 1


# --- files ---------------------------------------------------------------------------------------


@contextmanager
def _storage_at(place: Path) -> Iterator[None]:
    """Turn what the operating system says about a store into ``Unavailable``."""
    try:
        yield
    except OSError as exc:
        raise _failed(place, exc.strerror or str(exc)) from exc


def _failed(place: Path, reason: str) -> Unavailable:
    return Unavailable(f"the capsule store {place} failed: {reason}; check it, then try again")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir()
    except FileExistsError:
        if not folder.is_dir():
            raise
    else:
        sync_folder(folder.parent)


def _temporary_in(folder: Path) -> Path:
    return folder / f".{secrets.token_hex(8)}.tmp"
