"""PKCS#11 modules as this process has them: loaded, initialised, and entered with care.

Cryptoki keeps its state per process and not per client, so there is one ``Module`` per path in a
process, whoever uses it: two instances on one module share its lock.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

from kms_core import ConfigError, Unavailable

Locking = Literal["global", "os", "module"]

#: Seconds between two re-initialisations: each costs everybody in the process their sessions.
PAUSE: Final = 0.2
PATIENCE: Final = 5.0  # seconds to wait for those who are inside
_OS_LOCKING_OK: Final = 2  # CKF_OS_LOCKING_OK
_CANNOT_LOCK: Final = (0x07, 0x0A)  # CKR_ARGUMENTS_BAD, CKR_CANT_LOCK

_registry: dict[Path, Module] = {}
_registering = threading.Lock()


class Module:
    """One module.  Get it from ``shared``, and do whatever is done with it inside ``use``."""

    def __init__(
        self, path: Path, locking: Locking, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.path: Final = path
        self.locking: Final = locking
        #: Grows whenever sessions and handles made before are void.
        self.epoch = 0
        self._clock = clock
        self._lib: Any = None
        self._void = False  # to be initialised again before it is used
        self._renewed_at = float("-inf")
        self._start_clean()

    def _start_clean(self) -> None:
        self._lock = threading.RLock()
        self._changed = threading.Condition()
        self._users = 0
        self._renewing = False

    @contextmanager
    def use(self) -> Iterator[None]:
        """One thread at a time, or any number where the module locks for itself."""
        if self.locking == "global":
            with self._lock:
                yield
            return
        with self._changed:
            self._changed.wait_for(lambda: not self._renewing)
            self._users += 1
        try:
            yield
        finally:
            with self._changed:
                self._users -= 1
                self._changed.notify_all()

    def lib(self) -> Any:
        """The loaded and initialised module; raises what python-pkcs11 raises."""
        if self._lib is not None and not self._void:
            return self._lib
        with self._lock:
            if self._void:
                self._initialize_again()
            elif self._lib is None:
                self._lib = self._load()
            return self._lib

    def renew(self, epoch: int) -> bool:
        """Initialise again, because ``epoch`` has gone bad; whether there is a newer one now.

        To be called outside ``use``: it waits until nobody is inside.
        """
        with self._alone() as alone, self._lock:
            if self.epoch != epoch:
                return True
            paused = self._clock() - self._renewed_at < PAUSE
            if not alone or paused or self._lib is None:
                return False
            self._renewed_at = self._clock()
            self._initialize_again()
            return True

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """Whether nobody uses the module, and nobody will before the block ends."""
        if self.locking == "global":
            yield True  # the lock that follows sees to it
            return
        with self._changed:
            self._changed.wait_for(lambda: not self._renewing)
            self._renewing = True
            alone = self._changed.wait_for(lambda: not self._users, PATIENCE)
        try:
            yield alone
        finally:
            with self._changed:
                self._renewing = False
                self._changed.notify_all()

    def forked(self) -> None:
        """In a new child: locks may be held and everything else is the parent's."""
        self._start_clean()
        self._void = self._lib is not None
        self.epoch += 1

    def _load(self) -> Any:
        import pkcs11

        if not self.path.is_file():
            raise ConfigError(f"there is no PKCS#11 module {self.path}; check module")
        try:
            lib = pkcs11.lib(str(self.path))
        except pkcs11.PKCS11Error as exc:
            if type(exc) is not pkcs11.PKCS11Error:  # the module's own, such as a service away
                raise
            raise ConfigError(
                f"{self.path} cannot be loaded as a PKCS#11 module: check module, and that "
                "nothing else in this process has initialised it"
            ) from exc
        if self.locking == "os":
            self._initialize_with_locking()
        return lib

    def _initialize_again(self) -> None:
        from pkcs11 import PKCS11Error

        self.epoch += 1
        self._void = True  # and it stays so if anything fails from here on
        with contextlib.suppress(PKCS11Error):  # a child may not finalise what it inherited
            self._lib.finalize()
        self._lib.initialize()
        if self.locking == "os":
            self._initialize_with_locking()
        self._void = False

    def _initialize_with_locking(self) -> None:
        """As python-pkcs11 does, but telling the module that it will see many threads."""

        class Arguments(ctypes.Structure):
            _fields_ = (
                *((name, ctypes.c_void_p) for name in ("create", "destroy", "lock", "unlock")),
                ("flags", ctypes.c_ulong),
                ("reserved", ctypes.c_void_p),
            )

        module = ctypes.CDLL(str(self.path))
        module.C_Finalize.argtypes = module.C_Initialize.argtypes = [ctypes.c_void_p]
        arguments = Arguments(None, None, None, None, _OS_LOCKING_OK, None)
        code = module.C_Finalize(None) or module.C_Initialize(ctypes.byref(arguments))
        if code in _CANNOT_LOCK:
            raise ConfigError(f'{self.path} cannot do locking = "os"; use "global"')
        if code:
            raise Unavailable(f"{self.path} does not initialise (0x{code:X}); see its own log")


def shared(path: Path, locking: Locking) -> Module:
    """The process's one ``Module`` at ``path``; raises ``ConfigError`` if locked otherwise."""
    with _registering:
        # Loaded by the name that was configured: python-pkcs11 goes by names, and with another one
        # for the same file it could not share the module with the rest of the process.
        module = _registry.setdefault(path.resolve(), Module(path, locking))
    if module.locking != locking:
        raise ConfigError(
            f"{path} is used with locking = {module.locking!r} and {locking!r}: choose one"
        )
    return module


def _forked() -> None:
    global _registering  # noqa: PLW0603  the parent's may be held
    _registering = threading.Lock()
    for module in _registry.values():
        module.forked()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_forked)
