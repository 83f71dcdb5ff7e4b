"""Sessions on one token: logged in once, pooled, and made anew when they go stale."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from typing import Any, Final, Literal, TypeVar

from attrs import define, field

from kms_core import AccessDenied, Unavailable
from kms_pkcs11.errors import PIN_REFUSED, is_stale
from kms_pkcs11.module import Module, shared
from kms_pkcs11.settings import Pkcs11Settings
from kms_pkcs11.uri import KeyName

T = TypeVar("T")
ObjectKind = Literal["SECRET_KEY", "PRIVATE_KEY", "PUBLIC_KEY"]

_WAIT: Final = 30.0  # seconds for a free session; whoever called has given up by then


@define(eq=False)
class Session:
    """A session, and the keys that were found through it."""

    raw: Any
    mechanisms: frozenset[Any]
    _keys: dict[tuple[KeyName, ObjectKind], Any] = field(factory=dict)

    def key(self, name: KeyName, kind: ObjectKind) -> Any:
        """The key object; raises ``NoSuchKey`` or ``MultipleObjectsReturned``."""
        from pkcs11 import ObjectClass

        found = self._keys.get((name, kind))
        if found is None:
            found = self.raw.get_key(
                object_class=ObjectClass[kind], label=name.label or None, id=name.id or None
            )
            self._keys[name, kind] = found
        return found

    def kind_of(self, name: KeyName) -> Literal["a key pair", "an AES key", "a secret key"]:
        """What there is under this name; raises ``NoSuchKey`` if there is nothing."""
        from pkcs11 import KeyType, NoSuchKey

        try:
            self.key(name, "PRIVATE_KEY")
        except NoSuchKey:
            secret = self.key(name, "SECRET_KEY")
            return "an AES key" if secret.key_type == KeyType.AES else "a secret key"
        return "a key pair"


@define(eq=False)
class _Pool:
    """What belongs to one process and one initialisation of the module."""

    epoch: int
    token: Any
    login: Any  # kept open: closing it logs every other session out
    mechanisms: frozenset[Any]
    idle: list[Session] = field(factory=list)
    pid: int = field(factory=os.getpid)
    proven: bool = False  # whether anything has worked yet

    def take(self) -> Session | None:
        """An idle session, if there is one."""
        try:
            return self.idle.pop()
        except IndexError:
            return None

    def close(self) -> None:
        """Close what can still be closed, the login last."""
        from pkcs11 import PKCS11Error

        for session in (*(each.raw for each in self.idle), self.login):
            with contextlib.suppress(PKCS11Error):
                session.close()


class Sessions:
    """The sessions of one provider instance; every use of the token goes through ``run``."""

    def __init__(self, settings: Pkcs11Settings) -> None:
        self._settings = settings
        self._name = settings.name
        self._pool: _Pool | None = None
        self._pin_refused = False
        self._start_clean()

    def _start_clean(self) -> None:
        self._pid = os.getpid()
        self._changing = threading.RLock()
        self._free = threading.Semaphore(self._settings.max_sessions)

    def load(self) -> None:
        """Load the module; asks no token."""
        self._module.lib()

    def run(self, work: Callable[[Session], T], *, unwrapping: bool = False) -> T:
        """``work`` with a session; if that has gone stale, with a new one once more.

        ``unwrapping``: an unspecific error is not taken for a lost token.

        Raises what python-pkcs11 raises, and ``AccessDenied`` for a PIN that was refused before.
        """
        if self._pid != os.getpid():
            self._start_clean()
        epoch = self._module.epoch
        try:
            with self._module.use():
                return self._with_session(self._current(), work)
        except Exception as exc:
            stale = is_stale(exc, unwrapping=unwrapping and self._pool is not None)
            if not stale or not self._may_be_mended(exc):
                raise
        self._forget()
        self._module.renew(epoch)
        with self._module.use():
            return self._with_session(self._current(), work)

    def _may_be_mended(self, exc: Exception) -> bool:
        """A key that is missing right after a login is not there; later, the login may be gone."""
        return type(exc).__name__ != "NoSuchKey" or self._pool is None or self._pool.proven

    def close(self) -> None:
        """Log out and let go of every session."""
        if self._pool is not None:
            with self._module.use():
                self._forget()

    @property
    def _module(self) -> Module:
        return shared(self._settings.module, self._settings.locking)

    def _with_session(self, pool: _Pool, work: Callable[[Session], T]) -> T:
        if not self._free.acquire(timeout=_WAIT):
            raise Unavailable(f"all {self._settings.max_sessions} sessions hang; see max_sessions")
        try:
            session = pool.take() or Session(self._opened(pool.token), pool.mechanisms)
            stale = False
            try:
                result = work(session)
            except Exception as exc:
                stale = is_stale(exc)
                raise
            finally:
                if not stale:
                    pool.idle.append(session)
            pool.proven = True
            return result
        finally:
            self._free.release()

    def _current(self) -> _Pool:
        with self._changing:
            lib = self._module.lib()
            pool = self._pool
            if pool is None or pool.pid != os.getpid() or pool.epoch != self._module.epoch:
                token = self._find_token(lib)
                login = self._log_in(token)
                mechanisms = frozenset(token.slot.get_mechanisms())
                pool = self._pool = _Pool(self._module.epoch, token, login, mechanisms)
            return pool

    def _forget(self) -> None:
        """Let go of sessions and handles, as far as they are this process's and still hold."""
        with self._changing:
            pool, self._pool = self._pool, None
        if pool is not None and pool.pid == os.getpid() and pool.epoch == self._module.epoch:
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

    def _opened(self, token: Any) -> Any:
        return token.open(rw=self._settings.rw_sessions)
