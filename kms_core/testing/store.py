"""The service behind the in-memory provider: named keys with versions, which fails on cue.

It outlives the provider instances that use it, and answers them as a service would: with answers
to be checked, and with errors of its own.
"""

from __future__ import annotations

import os
import re
import secrets
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Literal, cast

from attrs import evolve, field, frozen

from kms_core.context import Context
from kms_core.errors import InvalidRequest
from kms_core.testing.material import (
    WRAPPING_KINDS,
    KeyKind,
    Material,
    NotAuthentic,
    Unsuited,
    fresh,
)
from kms_core.testing.servers.gate import Gate
from kms_core.testing.servers.panel import Failure, Order, Panel
from kms_core.types import Protection

DATA_KEY_BYTES: Final = 32

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")

StoreCode = Literal[
    "NoConnection",
    "NoAnswer",
    "Broken",
    "Unwell",
    "TooManyRequests",
    "Forbidden",
    "NoSuchKey",
    "KeyDisabled",
    "NotAuthentic",
    "BadRequest",
]


class StoreError(Exception):
    """What the service, or the line to it, has to say; ``retry_after`` in seconds."""

    def __init__(self, code: StoreCode, text: str, *, retry_after: float | None = None) -> None:
        super().__init__(text)
        self.code = code
        self.retry_after = retry_after


@frozen
class Answer:
    """What the service answers: fields are ``None`` only if it is told to answer nonsense.

    ``value`` is the blob, signature, key or state that was asked for, ``checksum`` its CRC-32.
    """

    key: str | None = None
    version: str | None = None
    value: bytes | bytearray | None = field(default=None, repr=False)
    checksum: int | None = None
    plaintext: bytearray | None = field(default=None, repr=False)
    versions: tuple[str, ...] = ()
    algorithms: tuple[str, ...] = ()


@frozen
class _Key:
    """Version ``n`` is ``versions[n - 1]`` and the last one is primary."""

    kind: KeyKind
    versions: tuple[Material, ...]
    enabled: bool = True


class MemoryStore:
    """The service; its keys are gone when the last reference is.

    Readers take no lock (a key is replaced whole), so a fork in mid-write leaves none held; once
    ``panel`` has been used, requests pass through its lock.  Requests are ``wrap``, ``unwrap``,
    ``generate``, ``sign``, ``verify``, ``public``, ``describe`` and ``rotate_key``, which are also
    the panel's operations; ``timeout`` is in seconds.  They raise ``StoreError``.
    """

    def __init__(
        self,
        store_id: str | None = None,
        *,
        keys: Iterable[str] = ("default",),
        protection: Protection = "software",
    ) -> None:
        self.store_id = _checked(store_id or secrets.token_hex(8))
        self.protection: Protection = protection
        self._keys: dict[str, _Key] = {}
        self._writing = threading.Lock()
        self._line = _Line()
        self._panel: _StorePanel | None = None
        for key in keys:
            self.create(key)

    @property
    def panel(self) -> Panel:
        """The switches that make it fail, and the counts of what it was asked since."""
        with self._writing:
            if self._panel is None:
                # A line is all of a gate that a panel uses.
                self._panel = _StorePanel(frozenset(Failure), cast("Gate", self._line))
            return self._panel

    # --- what its owner does ---------------------------------------------------------------------

    def create(self, key: str, kind: KeyKind = "AES-256-GCM") -> None:
        """Add a key with its version 1."""
        with self._writing:
            if key in self._keys:
                raise InvalidRequest(f"memory store {self.store_id} already has key {key}")
            self._keys[_checked(key)] = _Key(kind, (fresh(kind),))

    def rotate(self, key: str) -> None:
        """Give ``key`` a new primary version."""
        with self._writing:
            old = self._find(key)
            self._keys[key] = evolve(old, versions=(*old.versions, fresh(old.kind)))

    def disable(self, key: str) -> None:
        """Refuse every use of ``key``."""
        with self._writing:
            self._keys[key] = evolve(self._find(key), enabled=False)

    def enable(self, key: str) -> None:
        """Undo ``disable``."""
        with self._writing:
            self._keys[key] = evolve(self._find(key), enabled=True)

    def versions(self, key: str) -> tuple[str, ...]:
        """The versions of ``key``, oldest first; none if there is no such key."""
        found = self._keys.get(key)
        return tuple(str(number + 1) for number in range(len(found.versions))) if found else ()

    def signs(self, key: str) -> bool:
        """Whether ``key`` is one that signs rather than wraps."""
        return self._find(key).kind not in WRAPPING_KINDS

    # --- what it is asked ------------------------------------------------------------------------

    def wrap(
        self, key: str, plaintext: bytes | bytearray, context: Context, *, timeout: float
    ) -> Answer:
        """``plaintext`` under the primary version."""

        def work() -> Answer:
            version, material = self._use(key)
            _check_size(key, material, plaintext)
            return _answer(key, version, material.wrap(plaintext, context))

        return self._serve("wrap", timeout, work)

    def unwrap(
        self, key: str, version: str, blob: bytes, context: Context, *, timeout: float
    ) -> Answer:
        """The plaintext of a blob that this version wrapped."""

        def work() -> Answer:
            return _answer(key, version, self._use(key, version)[1].unwrap(blob, context))

        return self._serve("unwrap", timeout, work)

    def generate(self, key: str, context: Context, *, timeout: float) -> Answer:
        """A fresh data key, and as ``value`` its wrap."""

        def work() -> Answer:
            version, material = self._use(key)
            plaintext = bytearray(os.urandom(DATA_KEY_BYTES))
            answer = _answer(key, version, material.wrap(plaintext, context))
            return evolve(answer, plaintext=plaintext)

        return self._serve("generate", timeout, work)

    def sign(
        self, key: str, version: str | None, data: bytes, algorithm: str, *, timeout: float
    ) -> Answer:
        """A signature or MAC by this version, or by the primary one."""

        def work() -> Answer:
            used, material = self._use(key, version)
            return _answer(key, used, material.sign(data, algorithm))

        return self._serve("sign", timeout, work)

    def verify(
        self,
        key: str,
        version: str,
        data: bytes,
        signature: bytes,
        algorithm: str,
        *,
        timeout: float,
    ) -> Answer:
        """``b"valid"``, or empty."""

        def work() -> Answer:
            valid = self._use(key, version)[1].verify(data, signature, algorithm)
            return _answer(key, version, b"valid" if valid else b"")

        return self._serve("verify", timeout, work)

    def public(self, key: str, version: str | None, *, timeout: float) -> Answer:
        """The public key of this version, or of the primary one."""

        def work() -> Answer:
            used, material = self._use(key, version)
            return evolve(_answer(key, used, material.public()), algorithms=material.algorithms)

        return self._serve("public", timeout, work)

    def describe(self, key: str, *, timeout: float) -> Answer:
        """``b"enabled"`` or ``b"disabled"``, and the versions."""
        return self._serve("describe", timeout, lambda: self._described(key))

    def rotate_key(self, key: str, *, timeout: float) -> Answer:
        """``rotate``, asked for through a provider; the description after it."""

        def work() -> Answer:
            self.rotate(key)
            return self._described(key)

        return self._serve("rotate_key", timeout, work)

    def __repr__(self) -> str:
        return f"MemoryStore({self.store_id!r}, keys={sorted(self._keys)})"

    # --- how it answers --------------------------------------------------------------------------

    def _serve(self, operation: str, timeout: float, work: Callable[[], Answer]) -> Answer:
        order = None if self._panel is None else self._arrive(self._panel, operation, timeout)
        if order is not None and order.failure in _REFUSALS:
            code, text = _REFUSALS[order.failure]
            raise StoreError(code, text, retry_after=order.seconds)
        try:
            answer = work()
        except Unsuited as exc:
            raise StoreError("BadRequest", f"this key {exc}") from exc
        except NotAuthentic:
            raise StoreError("NotAuthentic", "authentication failed") from None
        return answer if order is None else _SPOILED[order.failure](answer)

    def _arrive(self, panel: _StorePanel, operation: str, timeout: float) -> Order | None:
        self._line.carry(timeout)
        slow, started = panel.slow, time.monotonic()
        order = panel.arrived(operation)
        if slow and time.monotonic() - started > timeout:
            raise StoreError("NoAnswer", "the store was too slow")
        return order

    def _described(self, key: str) -> Answer:
        versions, enabled = self.versions(key), self._find(key).enabled
        state = b"enabled" if enabled else b"disabled"
        return evolve(_answer(key, versions[-1], state), versions=versions)

    def _use(self, name: str, version: str | None = None) -> tuple[str, Material]:
        key = self._find(name)
        if not key.enabled:
            raise StoreError("KeyDisabled", f"key {name} is disabled; enable it")
        number = str(len(key.versions)) if version is None else version
        if not _VERSION.fullmatch(number) or int(number) > len(key.versions):
            raise StoreError("NoSuchKey", f"there is no such version of key {name}")
        return number, key.versions[int(number) - 1]

    def _find(self, name: str) -> _Key:
        try:
            return self._keys[name]
        except KeyError:
            raise StoreError("NoSuchKey", f"there is no key {name!r}; create it first") from None


class _StorePanel(Panel):
    """Knows whether slowness was ordered: a busy host must not pass for a slow store."""

    slow = False

    def fail(
        self,
        failure: Failure,
        *,
        operation: str | None = None,
        times: int | None = None,
        seconds: float | None = None,
    ) -> None:
        super().fail(failure, operation=operation, times=times, seconds=seconds)
        self.slow = self.slow or failure is Failure.SLOW

    def heal(self) -> None:
        super().heal()
        self.slow = False


class _Line:
    """The way to the store: a ``Gate`` without sockets."""

    def __init__(self) -> None:
        self._state: Literal["open", "hanging", "cut"] = "open"
        self._restored = threading.Event()

    def cut(self) -> None:
        self._state = "cut"

    def hang(self) -> None:
        self._restored.clear()
        self._state = "hanging"

    def restore(self) -> None:
        self._state = "open"
        self._restored.set()

    def carry(self, timeout: float) -> None:
        """Return if a request gets through."""
        match self._state:
            case "cut":
                raise StoreError("NoConnection", "the store refuses connections")
            case "hanging" if self._restored.wait(timeout):
                raise StoreError("Broken", "the connection to the store broke")
            case "hanging":
                raise StoreError("NoAnswer", "the store did not answer in time")


_REFUSALS: Final[Mapping[Failure, tuple[StoreCode, str]]] = {
    Failure.RESET: ("Broken", "the connection to the store broke"),
    Failure.THROTTLE: ("TooManyRequests", "the store is asked too often"),
    Failure.SERVER_ERROR: ("Unwell", "the store is unwell"),
    Failure.ACCESS_DENIED: ("Forbidden", "the store denies access"),
    Failure.KEY_DISABLED: ("KeyDisabled", "the key is disabled; enable it"),
    Failure.KEY_NOT_FOUND: ("NoSuchKey", "there is no such key; create it first"),
}
_SPOILED: Final[Mapping[Failure, Callable[[Answer], Answer]]] = {
    Failure.MALFORMED: lambda _answer: Answer(),
    Failure.WRONG_KEY: lambda answer: evolve(answer, key=f"{answer.key}-2"),
    Failure.CORRUPT_CRC: lambda answer: evolve(answer, checksum=(answer.checksum or 0) ^ 1),
}


def _answer(key: str, version: str, value: bytes | bytearray) -> Answer:
    return Answer(key, version, value, zlib.crc32(value))


def _check_size(key: str, material: Material, plaintext: bytes | bytearray) -> None:
    if material.max_plaintext and not 1 <= len(plaintext) <= material.max_plaintext:
        raise StoreError(
            "BadRequest",
            f"key {key} wraps 1 to {material.max_plaintext} bytes, not {len(plaintext)}; "
            "seal() takes more",
        )


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise InvalidRequest(
            "names of memory stores and keys are 1 to 64 letters, digits, dots, hyphens and "
            "underscores, and begin with a letter or digit"
        )
    return name
