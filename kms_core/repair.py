"""Repair after an outage: what was sealed without a recipient gets its wrap once that one is back.

A ``RepairQueue`` knows nothing but what the application registers with it, and touches nothing
else.  It asks a service only where there is hope: an instance whose breaker is open, or that failed
in the same run, is left alone, and so is whatever needs it.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Literal, Protocol, Self

from attrs import define, evolve, field, frozen

from kms_core.capsules import LOCK_TIMEOUT, CapsuleStore, _Gate
from kms_core.client import Kms
from kms_core.envelope import read_capsule
from kms_core.errors import (
    AllInstancesFailed,
    BreakerOpen,
    FormatError,
    InvalidRequest,
    KMSError,
    RewrapConflict,
    ServiceError,
    Throttled,
    Unavailable,
)
from kms_core.files import sync_folder
from kms_core.header import (
    BODY_KINDS,
    KIND_CAPSULE,
    KIND_MESSAGE,
    MAGIC,
    capsule_length,
    check_prefix,
)
from kms_core.inspection import EnvelopeInfo, inspect
from kms_core.limits import TokenBucket
from kms_core.relay import Relay
from kms_core.rewrap import CONFLICT_RETRIES, Intent, rewrap_file
from kms_core.routing import Router
from kms_core.uri import provider_type

if TYPE_CHECKING:
    import sqlite3

MAX_WAIT: Final = 3600.0  # seconds; neither back-off nor claim keeps a reference back for longer
CLAIM: Final = 300.0  # seconds; long enough to copy a large file
_FIRST_WAIT: Final = 5.0
_DOUBLINGS: Final = 10  # of the first wait: by then it is MAX_WAIT
_SHORTEST_SLEEP: Final = 0.001  # less than this a clock may not notice
_PAGE: Final = 256  # entries read at once
_SCHEMA: Final = """
CREATE TABLE repairs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    reference TEXT NOT NULL UNIQUE,
    version INTEGER NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0,
    due REAL NOT NULL DEFAULT 0,
    claimed_until REAL NOT NULL DEFAULT 0,
    missing TEXT NOT NULL DEFAULT '[]'
)
"""
_SELECT: Final = """
SELECT number, reference, version, attempts, due, claimed_until, missing
FROM repairs WHERE number > ? AND number <= ? ORDER BY number LIMIT ?
"""
_ADD: Final = """
INSERT INTO repairs (reference) VALUES (?)
ON CONFLICT (reference) DO UPDATE
SET version = version + 1, claimed_until = 0, missing = '[]'
"""
_UPDATE: Final = """
UPDATE repairs SET version = version + 1, attempts = ?, due = ?, claimed_until = ?, missing = ?
WHERE number = ? AND version = ?
"""
_DELETE: Final = "DELETE FROM repairs WHERE number = ? AND version = ?"


# --- where the envelopes are ---------------------------------------------------------------------


class RepairSource(Protocol):
    """How the queue gets at what a reference stands for.

    Whatever else than said here either method raises counts as this reference's failure.
    """

    def load(self, reference: str) -> bytes:
        """The envelope, or as much from its start as holds its capsule.

        Raises ``KeyError`` or ``FileNotFoundError`` if it is gone: the reference is forgotten.
        """
        ...

    def store(self, reference: str, old: bytes, new: bytes) -> None:
        """Put ``new`` where ``old`` was loaded; they differ in their capsules only.

        Raises ``RewrapConflict``, and changes nothing, if something else is there by now.
        """
        ...


class FileSource:
    """Sealed files; references are their paths, absolute where processes share the queue.

    A file is replaced whole, under the lock that ``Kms.rewrap_file`` respects, and its body copied
    unread.
    """

    def load(self, reference: str) -> bytes:
        """The file's capsule."""
        with open(reference, "rb", buffering=0) as file:  # noqa: PTH123
            capsule, lead = read_capsule(file)
        if not capsule:
            raise _compact(reference)
        check_prefix(lead, BODY_KINDS)
        return capsule

    def store(self, reference: str, old: bytes, new: bytes) -> None:
        """Another capsule in front of the same body."""

        def swap(found: bytes, _: Intent) -> bytes:
            if found != old:
                raise RewrapConflict(f"{reference} was rewritten by somebody else meanwhile")
            return new

        try:
            rewrap_file(reference, swap, Intent(recipients=()))
        except FileNotFoundError:
            raise RewrapConflict(f"{reference} was removed by somebody else meanwhile") from None


class CapsuleSource:
    """The capsules of compact messages; references are key ids in hex.

    ``Kms.inspect(message).key_id`` is the one to register.
    """

    def __init__(self, capsules: CapsuleStore) -> None:
        self._capsules = capsules

    def load(self, reference: str) -> bytes:
        """The key's capsule."""
        capsule = self._capsules.get(_key_id(reference))
        if capsule is None:
            raise KeyError(reference)
        return capsule

    def store(self, reference: str, old: bytes, new: bytes) -> None:
        """The generation after ``old``."""
        self._capsules.put(_key_id(reference), new, replaces=old)


@frozen
class CallbackSource:
    """Two functions of the application, say a query and a conditional update of a database."""

    load: Callable[[str], bytes]
    store: Callable[[str, bytes, bytes], None]


def _key_id(reference: str) -> bytes:
    try:
        return bytes.fromhex(reference)
    except ValueError:
        raise InvalidRequest(f"{reference!r} is no key id in hex") from None


def _compact(reference: str) -> FormatError:
    return FormatError(
        f"{reference} is a compact message, whose capsule is elsewhere: register its key id in a "
        "queue over a CapsuleSource"
    )


# --- the queue -----------------------------------------------------------------------------------


@frozen
class RepairReport:
    """What one run did.

    ``repaired`` references got what was missing, ``complete`` ones had it already and ``gone`` ones
    are no more; all of these have left the queue.  ``failed`` ones were tried in vain and are due
    again later; ``waiting`` is how many are in the queue besides: the instances they need cannot be
    asked, their time has not come, another process has them, or the run ended before.
    """

    repaired: int = 0
    complete: int = 0
    waiting: int = 0
    gone: int = 0
    failed: tuple[tuple[str, Exception], ...] = ()


class RepairQueue:
    """References to envelopes that lack a recipient, repaired one by one.  Thread-safe.

    A client does not know where its application keeps what it seals, so the application registers
    that, once it is stored::

        blob = kms.seal(data, context)
        save(name, blob)
        if kms.inspect(blob).missing:
            queue.add(name)

    and calls ``run`` now and then, from a timer or a thread of its own.  Registering what is
    complete does no harm.  With ``path`` the queue is a SQLite database on a local file system that
    processes share and that outlives them; without, it ends with this object.  ``per_second`` is
    how many envelopes this object looks at, at most.

    ``claim``: seconds for which a reference belongs to whoever works on it; a process that is
    killed keeps its last one from others that long.  ``clock`` (monotonic), ``wall_clock`` (what
    processes share) and ``sleep`` are for tests.
    """

    def __init__(
        self,
        kms: Kms,
        source: RepairSource,
        *,
        path: str | os.PathLike[str] | None = None,
        per_second: float = 10.0,
        claim: float = CLAIM,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        """Open the queue, or make it; raises ``Unavailable`` if ``path`` cannot be used."""
        if not (math.isfinite(per_second) and per_second > 0):
            raise InvalidRequest(f"per_second is a positive number, not {per_second}")
        if not 0 < claim <= MAX_WAIT:
            raise InvalidRequest(f"claim is more than 0 and at most {MAX_WAIT:g} s, not {claim}")
        self._kms = kms
        self._source = source
        self._claim = claim
        self._clock = clock
        self._wall_clock = wall_clock
        self._sleep = sleep
        self._per_second = per_second
        self._closed = threading.Event()
        self._start()
        self._ledger: _Ledger = _MemoryLedger() if path is None else _SqliteLedger(Path(path))
        if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
            os.register_at_fork(after_in_child=partial(_start_in_child, weakref.ref(self)))

    def _start(self) -> None:
        """Build everything that holds locks, as a forked child must once more."""
        was_closed = self._closed.is_set()
        self._closed = threading.Event()
        if was_closed:
            self._closed.set()
        self._bucket = TokenBucket(self._per_second, 1.0, self._clock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End a run after the reference at hand, and start no other.  Idempotent.

        Close the queue before its ``Kms``.  What is in a database stays there.
        """
        self._closed.set()

    @property
    def pending(self) -> int:
        """How many references are in the queue."""
        return self._ledger.count()

    def __iter__(self) -> Iterator[str]:
        """The references in the queue, in the order in which they were first added."""
        return (entry.reference for entry in self._ledger.entries())

    def add(self, *references: str) -> None:
        """Register references, all or none; one that is there already stays where it is.

        What is added again while it is being repaired is looked at once more.
        """
        if self._closed.is_set():
            raise InvalidRequest("this RepairQueue is closed")
        for reference in references:
            _check_reference(reference)
        self._ledger.add(references)

    def run(self, limit: int | None = None, seconds: float | None = None) -> RepairReport:
        """Go through the queue once, looking at no more than ``limit`` envelopes.

        No envelope is begun after ``seconds``.  Raises only if the queue itself cannot be used;
        what is wrong with a reference is in the report.
        """
        if self._is_over():
            raise InvalidRequest("this RepairQueue or its Kms is closed")
        until = math.inf if seconds is None else self._clock() + seconds
        tally = _Tally()
        reach = _Reach(self._kms._router)  # noqa: SLF001  breakers and key URIs cost no call
        for entry in self._promising(reach):
            if (limit is not None and tally.seen >= limit) or not self._wait_for_turn(until):
                break
            claimed = self._claimed(entry)
            if claimed is None:
                self._bucket.put_back()
            else:
                tally.seen += 1
                self._work_on(claimed, reach, tally)
        return tally.report(self._ledger.count())

    def _promising(self, reach: _Reach) -> Iterator[_Entry]:
        """The entries whose time has come, and which need nobody of whom it is known to be away."""
        for entry in self._ledger.entries():
            free = entry.is_free(self._wall_clock())
            if free and (not entry.missing or reach.may_hold(entry.missing)):
                yield entry

    def _is_over(self) -> bool:
        return self._closed.is_set() or self._kms._closed  # noqa: SLF001  nobody else asks it

    def _wait_for_turn(self, until: float) -> bool:
        """Whether one more envelope may be looked at, now that it is its turn."""
        while not self._is_over() and self._clock() < until:
            if self._bucket.take():
                return True
            pause = max(self._bucket.wait(), _SHORTEST_SLEEP)
            if self._clock() + pause >= until:
                return False
            (self._sleep or self._closed.wait)(pause)
        return False

    def _claimed(self, entry: _Entry) -> _Entry | None:
        """The entry, reserved for us; ``None`` if somebody else was faster."""
        until = self._wall_clock() + self._claim
        return self._ledger.swap(entry, evolve(entry, claimed_until=until))

    def _work_on(self, entry: _Entry, reach: _Reach, tally: _Tally) -> None:
        try:
            seen = self._repair(entry.reference, reach)
        except Exception as exc:  # noqa: BLE001  one failure never stops the others
            reach.learn(exc)
            # kept in a report, the frames would keep the envelopes that they hold
            tally.failed.append((entry.reference, exc.with_traceback(None)))
            self._put_off(entry)
        except BaseException:
            self._ledger.swap(entry, evolve(entry, claimed_until=0.0))
            raise
        else:
            tally.verdicts[seen.verdict] += 1
            if seen.verdict != "waiting":
                self._ledger.swap(entry, None)
            elif seen.tried:
                self._put_off(entry, seen.missing)
            else:
                self._ledger.swap(entry, evolve(entry, claimed_until=0.0, missing=seen.missing))

    def _put_off(self, entry: _Entry, missing: tuple[str, ...] = ()) -> None:
        wait = min(MAX_WAIT, _FIRST_WAIT * 2 ** min(entry.attempts, _DOUBLINGS))
        due = self._wall_clock() + wait
        later = evolve(
            entry, attempts=entry.attempts + 1, due=due, claimed_until=0.0, missing=missing
        )
        self._ledger.swap(entry, later)

    def _repair(self, reference: str, reach: _Reach) -> _Seen:
        """Look at one envelope and do what can be done, again if others write meanwhile."""
        for _ in range(CONFLICT_RETRIES - 1):
            try:
                return self._repair_once(reference, reach)
            except RewrapConflict:
                if not self._wait_for_turn(math.inf):
                    raise
        return self._repair_once(reference, reach)

    def _repair_once(self, reference: str, reach: _Reach) -> _Seen:
        try:
            old = self._source.load(reference)
        except (KeyError, FileNotFoundError):
            return _Seen("gone")
        capsule, body = _split(reference, old)
        info = inspect(capsule)
        if not info.missing:
            return _Seen("complete")
        step = reach.next_step(info)
        if step is None:
            return _Seen("waiting", info.missing)
        new = _rewrapped(self._kms, capsule, step)
        if new != capsule:
            self._source.store(reference, old, new + body)
        missing = inspect(new).missing
        if not missing:
            return _Seen("repaired")
        reach.stayed_missing(missing)
        return _Seen("waiting", missing, tried=True)


def _start_in_child(reference: weakref.ref[RepairQueue]) -> None:
    queue = reference()
    if queue is not None:
        queue._start()  # noqa: SLF001


@frozen
class _Seen:
    """What became of a reference; ``missing`` are key URIs, ``tried`` whether anybody was asked."""

    verdict: Literal["repaired", "complete", "gone", "waiting"]
    missing: tuple[str, ...] = ()
    tried: bool = False


@define
class _Tally:
    """What a run has done so far."""

    seen: int = 0
    verdicts: Counter[str] = field(factory=Counter)
    failed: list[tuple[str, Exception]] = field(factory=list)

    def report(self, pending: int) -> RepairReport:
        """All of it, with ``pending`` references in the queue at the end."""
        return RepairReport(
            repaired=self.verdicts["repaired"],
            complete=self.verdicts["complete"],
            waiting=max(0, pending - len(self.failed)),
            gone=self.verdicts["gone"],
            failed=tuple(self.failed),
        )


def _check_reference(reference: str) -> None:
    if not isinstance(reference, str):
        raise InvalidRequest(f"a reference is a string, not {type(reference).__name__}")
    try:
        reference.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(
            f"a reference must be encodable as UTF-8, unlike {reference!a}"
        ) from None


def _split(reference: str, blob: bytes) -> tuple[bytes, bytes]:
    """The capsule, and what there is of a body."""
    check_prefix(blob, BODY_KINDS | {KIND_CAPSULE})
    if blob[1] != KIND_CAPSULE:
        raise _compact(reference)
    length = capsule_length(blob)
    body = blob[length:]
    if body:
        check_prefix(body, BODY_KINDS)
    return blob[:length], body


def _rewrapped(kms: Kms, capsule: bytes, step: _Step) -> bytes:
    """The capsule with what could be added."""
    body = bytes((MAGIC, KIND_MESSAGE, capsule[2]))  # rewrap() asks that one follows, and no more
    return kms.rewrap(capsule + body, add=step.add, repair=step.repair)[: -len(body)]


# --- who can be asked ----------------------------------------------------------------------------


@frozen
class _Step:
    """What to ask of ``Kms.rewrap``: everything that is missing, or these instances alone."""

    add: tuple[str, ...] = ()
    repair: bool = True


class _Reach:
    """Which instances it makes sense to ask, as far as one run knows."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._failed: set[str] = set()

    def may_hold(self, key_uris: Iterable[str]) -> bool:
        """Whether one of these keys may be that of an instance that can be asked; costs nothing."""
        return any(self._can_be_asked(relay) for uri in key_uris for relay in self._candidates(uri))

    def next_step(self, info: EnvelopeInfo) -> _Step | None:
        """What can be done for an envelope with those who can be asked; ``None``: nothing."""
        present = [recipient.key_uri for recipient in info.recipients]
        held = self._held([*present, *info.missing])
        openers = set(present).intersection(set().union(*held.values()))
        missing = [
            name
            for name, uris in held.items()
            if not {self._router.relays[name].key_uri, *uris}.isdisjoint(info.missing)
        ]
        if len(openers) < (info.threshold or 1) or not missing:
            return None
        if held.keys() == self._router.relays.keys():
            return _Step()
        # a replica may hold a present key as well: then there is but the record to correct
        return _Step(
            tuple(name for name in missing if held[name].isdisjoint(present)), repair=False
        )

    def learn(self, error: Exception) -> None:
        """Do not ask again whoever could not do it and will not for the next envelope either."""
        if isinstance(error, AllInstancesFailed):
            self._failed.update(
                attempt.instance for attempt in error.attempts if _is_the_instance(attempt.error)
            )

    def stayed_missing(self, key_uris: Collection[str]) -> None:
        """Whose keys these are has been asked, and has not wrapped."""
        self._failed.update(
            name for name, relay in self._router.relays.items() if relay.key_uri in key_uris
        )

    def _held(self, key_uris: Sequence[str]) -> dict[str, set[str]]:
        """Which of these keys each instance holds that can be asked."""
        names = [name for name, relay in self._router.relays.items() if self._can_be_asked(relay)]
        held = self._router.holders(key_uris, names, self._router.deadline())
        self._failed.update(set(names) - held.keys())  # who cannot even tell is not well
        return held

    def _candidates(self, key_uri: str) -> list[Relay]:
        """Whose key it is; without asking, that may be all instances of a provider."""
        relays = self._router.relays.values()
        return [relay for relay in relays if relay.key_uri == key_uri] or [
            relay for relay in relays if relay.info.provider == provider_type(key_uri)
        ]

    def _can_be_asked(self, relay: Relay) -> bool:
        return relay.name not in self._failed and not relay.breaker.retry_after


def _is_the_instance(error: KMSError) -> bool:
    """Whether it is the instance that failed, and no matter of one envelope."""
    return error.counts or (
        isinstance(error, ServiceError)
        and (isinstance(error, Throttled | BreakerOpen) or error.operation == "encrypt")
    )


# --- what is in the queue ------------------------------------------------------------------------


@frozen
class _Entry:
    """A reference and what is known of it; times are those of the wall clock.

    ``version`` counts changes.  ``missing``: the key URIs that were missing when it was last looked
    at, empty if that is not known.
    """

    number: int
    reference: str
    version: int = 0
    attempts: int = 0
    due: float = 0.0
    claimed_until: float = 0.0
    missing: tuple[str, ...] = ()

    def is_free(self, now: float) -> bool:
        """Whether it may be claimed."""
        return not (_lies_ahead(self.due, now) or _lies_ahead(self.claimed_until, now))


def _lies_ahead(moment: float, now: float) -> bool:
    """Further ahead than anything is put off, it is from before the clock was set back."""
    return now < moment <= now + MAX_WAIT


class _Ledger(Protocol):
    """The entries of a queue."""

    def add(self, references: Iterable[str]) -> None:
        """A new entry for each; one that exists is freed, and what is known of it forgotten."""
        ...

    def entries(self) -> Iterator[_Entry]:
        """Those that exist now, in order; some may have changed when their turn comes."""
        ...

    def swap(self, old: _Entry, new: _Entry | None) -> _Entry | None:
        """Put ``new`` in place of ``old``, or nothing; what is there then.

        Does nothing, and returns ``None``, if ``old`` is not what is there.
        """
        ...

    def count(self) -> int:
        """How many there are."""
        ...


class _MemoryLedger:
    """Entries that end with this object."""

    def __init__(self) -> None:
        self._gate = _Gate()
        self._entries: dict[str, _Entry] = {}
        self._last = 0

    def add(self, references: Iterable[str]) -> None:
        with self._gate.held():
            for reference in references:
                known = self._entries.get(reference)
                if known is None:
                    self._last += 1
                    self._entries[reference] = _Entry(self._last, reference)
                else:
                    self._entries[reference] = evolve(
                        known, version=known.version + 1, claimed_until=0.0, missing=()
                    )

    def entries(self) -> Iterator[_Entry]:
        with self._gate.held():
            references = list(self._entries)
        for reference in references:
            entry = self._entries.get(reference)
            if entry is not None:
                yield entry

    def swap(self, old: _Entry, new: _Entry | None) -> _Entry | None:
        with self._gate.held():
            if self._entries.get(old.reference) != old:
                return None
            if new is None:
                del self._entries[old.reference]
                return None
            changed = self._entries[old.reference] = evolve(new, version=old.version + 1)
            return changed

    def count(self) -> int:
        return len(self._entries)


class _SqliteLedger:
    """Entries in a database, which each call opens and closes, as ``SqliteCapsules`` does."""

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()
        self._gate = _Gate()
        try:
            if not self._path.exists():
                self._create()
        except OSError as exc:
            raise self._failed(exc.strerror or str(exc)) from exc
        self._page(0, 0)  # or say now that this is another kind of file

    def add(self, references: Iterable[str]) -> None:
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(_ADD, [(reference,) for reference in references])
            connection.execute("COMMIT")

    def entries(self) -> Iterator[_Entry]:
        with self._connection() as connection:
            (last,) = connection.execute("SELECT max(number) FROM repairs").fetchone()
        after = 0
        while page := self._page(after, last or 0):
            yield from page
            after = page[-1].number

    def swap(self, old: _Entry, new: _Entry | None) -> _Entry | None:
        found = (old.number, old.version)
        with self._connection() as connection:
            if new is None:
                connection.execute(_DELETE, found)
                return None
            values = (new.attempts, new.due, new.claimed_until, json.dumps(new.missing))
            done = connection.execute(_UPDATE, (*values, *found))
        return evolve(new, version=old.version + 1) if done.rowcount else None

    def count(self) -> int:
        with self._connection() as connection:
            (count,) = connection.execute("SELECT count(*) FROM repairs").fetchone()
        return int(count)

    def _page(self, after: int, last: int) -> list[_Entry]:
        with self._connection() as connection:
            rows = connection.execute(_SELECT, (after, last, _PAGE)).fetchall()
        return [evolve(_Entry(*known), missing=tuple(json.loads(uris))) for *known, uris in rows]

    def _create(self) -> None:
        """Make the database beside its place and link it there: it appears whole, and once."""
        temporary = self._path.with_name(f".{secrets.token_hex(8)}.tmp")
        try:
            os.close(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            with self._connection(temporary) as connection:
                connection.execute(_SCHEMA)
                connection.execute("PRAGMA journal_mode = WAL")  # last: the log stays empty
            with suppress(FileExistsError):  # another process made it meanwhile
                self._path.hardlink_to(temporary)
            sync_folder(self._path.parent)
        finally:
            temporary.unlink(missing_ok=True)

    @contextmanager
    def _connection(self, path: Path | None = None) -> Iterator[sqlite3.Connection]:
        import sqlite3  # not every Python has it, and few need it

        uri = f"{(path or self._path).as_uri()}?mode=rw"
        try:
            with (
                self._gate.held(),
                closing(
                    sqlite3.connect(uri, uri=True, timeout=LOCK_TIMEOUT, isolation_level=None)
                ) as connection,
            ):
                connection.execute("PRAGMA synchronous = FULL")
                yield connection
        except sqlite3.Error as exc:
            raise self._failed(str(exc)) from exc

    def _failed(self, reason: str) -> Unavailable:
        return Unavailable(
            f"the repair queue {self._path} failed: {reason}; check it, then try again"
        )
