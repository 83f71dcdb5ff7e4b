"""Sessions on one token: logged in once, pooled, and made anew when they go stale."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections.abc import Callable
from functools import cached_property
from typing import Any, Final, Literal, TypeVar

from attrs import define, field, frozen

from kms_core import AccessDenied, KeyNotFound, Unavailable
from kms_pkcs11.errors import PIN_REFUSED, is_stale
from kms_pkcs11.module import Module, shared
from kms_pkcs11.settings import Pkcs11Settings
from kms_pkcs11.uri import KeyName

T = TypeVar("T")
ObjectKind = Literal["SECRET_KEY", "PRIVATE_KEY", "PUBLIC_KEY"]

_WAIT: Final = 30.0  # seconds for a free session; whoever called has given up by then
#: Seconds for which a key that was missing under a new login is not looked for under another.
_ABSENT_FOR: Final = 30.0


class KeyGone(Exception):
    """A key is not to be found, and it may be the token that is lost, or the login."""

    def __init__(self, name: KeyName, kind: ObjectKind) -> None:
        super().__init__(f"{name.uri} is not to be found")
        self.name: Final = name
        self.kind: Final = kind


@frozen
class Sightings:
    """Which keys have been there, and which are known to be missing.

    A module that has lost its token says of every key that there is none, so a missing key is a
    reason to look again under a new login; but each new login disturbs everybody, so it is one
    for keys that were there, and for others only now and then.
    """

    clock: Callable[[], float]
    _seen: set[tuple[KeyName, ObjectKind]] = field(factory=set)
    _absent: dict[tuple[KeyName, ObjectKind], float] = field(factory=dict)

    def found(self, name: KeyName, kind: ObjectKind) -> None:
        """It is there."""
        self._seen.add((name, kind))

    def missing(self, name: KeyName, kind: ObjectKind) -> None:
        """It is not, and that was asked of a module as new as can be."""
        self._seen.discard((name, kind))
        self._absent[name, kind] = self.clock()

    def was_there(self, name: KeyName, kind: ObjectKind) -> bool:
        """Whether it was there when last looked for."""
        return (name, kind) in self._seen

    def is_missing(self, name: KeyName, kind: ObjectKind) -> bool:
        """Whether it is no use to look for it under another login."""
        since = self._absent.get((name, kind), float("-inf"))
        return not self.was_there(name, kind) and self.clock() - since < _ABSENT_FOR


@define(eq=False)
class Session:
    """A session, and the keys that were found through it."""

    raw: Any
    mechanisms: frozenset[Any]
    _sightings: Sightings
    _keys: dict[tuple[KeyName, ObjectKind], Any] = field(factory=dict)

    def key(self, name: KeyName, kind: ObjectKind) -> Any:
        """The key object; raises ``KeyGone``, ``KeyNotFound`` or ``MultipleObjectsReturned``."""
        found = self._find(name, kind)
        if found is not None:
            return found
        if self._sightings.is_missing(name, kind):
            raise not_found(name)
        raise KeyGone(name, kind)

    def kind_of(self, name: KeyName) -> Literal["a key pair", "an AES key", "a secret key"]:
        """What there is under this name; raises as ``key`` does if there is nothing."""
        from pkcs11 import KeyType

        if self._find(name, "PRIVATE_KEY") is not None:
            return "a key pair"
        if self._sightings.was_there(name, "PRIVATE_KEY"):
            raise KeyGone(name, "PRIVATE_KEY")
        secret = self.key(name, "SECRET_KEY")
        return "an AES key" if secret.key_type == KeyType.AES else "a secret key"

    def close(self) -> None:
        """As far as it can still be closed."""
        from pkcs11 import PKCS11Error

        with contextlib.suppress(PKCS11Error):
            self.raw.close()

    def _find(self, name: KeyName, kind: ObjectKind) -> Any | None:
        from pkcs11 import NoSuchKey, ObjectClass

        found = self._keys.get((name, kind))
        if found is not None:
            return found
        try:
            found = self.raw.get_key(
                object_class=ObjectClass[kind], label=name.label or None, id=name.id or None
            )
        except NoSuchKey:
            return None
        self._keys[name, kind] = found
        self._sightings.found(name, kind)
        return found


@define(eq=False)
class _Pool:
    """What belongs to one login."""

    epoch: int
    token: Any
    mechanisms: frozenset[Any]
    login: Session  # kept open: closing it logs every other session out
    idle: list[Session] = field(factory=list)
    closed: bool = False

    def take(self) -> Session | None:
        """An idle session, if there is one."""
        try:
            return self.idle.pop()
        except IndexError:
            return None

    def close(self) -> None:
        """Close what can still be closed, the login last."""
        while (session := self.take()) is not None:
            session.close()
        self.login.close()


class Sessions:
    """The sessions of one provider instance; every use of the token goes through ``run``."""

    def __init__(
        self, settings: Pkcs11Settings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._name = settings.name
        self._sightings = Sightings(clock)
        self._pin_refused = False
        self.forked()
        _everybodys.add(self)

    def forked(self) -> None:
        """Start clean: in a new child locks may be held and sessions are the parent's."""
        self._pool: _Pool | None = None
        self._changing = threading.RLock()
        self._free = threading.Semaphore(self._settings.max_sessions)

    def load(self) -> None:
        """Load the module; asks no token."""
        self._module.lib()

    def run(self, work: Callable[[Session], T], *, unwrapping: bool = False) -> T:
        """``work`` with a session; if that has gone stale, with a new one once more.

        ``unwrapping``: an unspecific error is not taken for a lost token.

        Raises what python-pkcs11 raises, and errors of the core for what is known better here:
        ``AccessDenied`` for a PIN that was refused before, ``KeyNotFound``.
        """
        pool, epoch = None, self._module.epoch
        try:
            with self._module.use():
                pool = self._current()
                return self._with_session(pool, work, unwrapping=unwrapping)
        except Exception as exc:
            if not _may_be_mended(exc, unwrapping=unwrapping and pool is not None):
                raise
        renewed = self._module.renew(epoch if pool is None else pool.epoch)
        with self._module.use():
            self._forget(pool)
            try:
                return self._with_session(self._current(), work, unwrapping=unwrapping)
            except KeyGone as exc:
                raise self._verdict(exc, renewed=renewed) from None

    def close(self) -> None:
        """Log out and let go of every session."""
        if self._pool is not None:
            with self._module.use():
                self._forget(self._pool)

    @cached_property
    def _module(self) -> Module:
        return shared(self._settings.module, self._settings.locking)

    def _verdict(self, exc: KeyGone, *, renewed: bool) -> KeyNotFound | Unavailable:
        """What it means that a key is missing under a new login, too."""
        if renewed:
            self._sightings.missing(exc.name, exc.kind)
        elif self._sightings.was_there(exc.name, exc.kind):
            return Unavailable(f"{exc.name.uri} was there, and the token shows it no more; wait")
        return not_found(exc.name)

    def _with_session(self, pool: _Pool, work: Callable[[Session], T], *, unwrapping: bool) -> T:
        if not self._free.acquire(timeout=_WAIT):
            raise Unavailable(f"all {self._settings.max_sessions} sessions hang; see max_sessions")
        try:
            session = pool.take() or self._opened(pool)
            try:
                result = work(session)
            except BaseException as exc:
                if isinstance(exc, Exception) and not _may_be_mended(exc, unwrapping=unwrapping):
                    self._give_back(pool, session)
                else:  # it may be in any state, and open it would count for ever
                    session.close()
                raise
            self._give_back(pool, session)
            return result
        finally:
            self._free.release()

    def _opened(self, pool: _Pool) -> Session:
        raw = pool.token.open(rw=self._settings.rw_sessions)
        return Session(raw, pool.mechanisms, self._sightings)

    def _give_back(self, pool: _Pool, session: Session) -> None:
        with self._changing:
            if not pool.closed:
                pool.idle.append(session)
                return
        session.close()

    def _current(self) -> _Pool:
        with self._changing:
            lib = self._module.lib()
            pool = self._pool
            if pool is None or pool.epoch != self._module.epoch:
                token = self._find_token(lib)
                mechanisms = frozenset(token.slot.get_mechanisms())
                login = Session(self._log_in(token), mechanisms, self._sightings)
                pool = self._pool = _Pool(self._module.epoch, token, mechanisms, login)
            return pool

    def _forget(self, pool: _Pool | None) -> None:
        """Let go of this pool, unless somebody has done so: there may be a better one by now."""
        with self._changing:
            if pool is None or pool is not self._pool:
                return
            self._pool = None
            pool.closed = True
            if pool.epoch == self._module.epoch:  # otherwise the handles may be others' by now
                pool.close()

    def _find_token(self, lib: Any) -> Any:
        wanted: dict[str, Any] = {}
        if self._name.token:
            wanted["token_label"] = self._name.token
        if self._name.serial:
            wanted["token_serial"] = self._name.serial.encode()
        return lib.get_token(**wanted)

    def _log_in(self, token: Any) -> Any:
        from pkcs11 import PKCS11Error, UserAlreadyLoggedIn

        pin, rw = self._settings.pin, self._settings.rw_sessions
        if pin is None:
            return token.open(rw=rw)
        if self._pin_refused:
            raise AccessDenied(
                "the token refused the PIN, and it is not tried again lest it locks: correct pin "
                "and open a new client"
            )
        try:
            return token.open(rw=rw, user_pin=pin.reveal())
        except UserAlreadyLoggedIn:  # per token and process: somebody else's login is ours
            return token.open(rw=rw)
        except PKCS11Error as exc:
            self._pin_refused = type(exc).__name__ in PIN_REFUSED
            raise


def not_found(name: KeyName) -> KeyNotFound:
    """The error of a key that is not there."""
    return KeyNotFound(
        f"the token has no key {name.uri}, or does not show it without a login: check key, key_id, "
        "token and pin"
    )


def _may_be_mended(exc: Exception, *, unwrapping: bool) -> bool:
    """Whether new sessions and handles may help."""
    return isinstance(exc, KeyGone) or is_stale(exc, unwrapping=unwrapping)


_everybodys: weakref.WeakSet[Sessions] = weakref.WeakSet()


def _forked() -> None:
    for sessions in _everybodys:
        sessions.forked()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_forked)
