"""A wrapper that makes any provider fail on cue, call by call, and counts what it was asked.

A *fault* is a function ``(call, proceed) -> result``: it may raise, wait, answer by itself or
change what ``proceed()``, the honest call, returns.  The factories below make the usual ones.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, Final, ParamSpec, Self, cast

from attrs import evolve, frozen

from kms_core.context import Context
from kms_core.errors import DeadlineExceeded
from kms_core.hookspecs import ProviderSpec, hookimpl
from kms_core.testing.hooks import call, marked_hooks
from kms_core.types import (
    Ciphertext,
    DataKey,
    InstanceInfo,
    KeyInfo,
    Protection,
    PublicKey,
    Signature,
)

P = ParamSpec("P")

MAX_BLOCK_SECONDS: Final = 30.0  # a test that forgot to release ends nevertheless

_HOOKS: Final = tuple(name for name in vars(ProviderSpec) if not name.startswith("_"))
_CLASS_FACTS: Final = ("type_name", "settings", "wrap_algs", "protection")


@frozen
class Call:
    """What was asked: ``number`` counts from 1 per hook; sizes are kept, values are not."""

    hook: str
    number: int
    sizes: Mapping[str, int]


Fault = Callable[[Call, Callable[[], Any]], Any]


def raising(kind: Callable[P, BaseException], *args: P.args, **kwargs: P.kwargs) -> Fault:
    """Raise ``kind(*args, **kwargs)``, a new one each time, without calling the provider."""

    def fault(_call: Call, _proceed: Callable[[], Any]) -> Any:
        raise kind(*args, **kwargs)

    return fault


def blocking(release: threading.Event, *, entered: threading.Event | None = None) -> Fault:
    """Hang until ``release`` is set, then behave; ``entered`` is set once the call hangs.

    Raises ``DeadlineExceeded`` after ``MAX_BLOCK_SECONDS`` without a release.
    """

    def fault(blocked: Call, proceed: Callable[[], Any]) -> Any:
        if entered is not None:
            entered.set()
        if not release.wait(MAX_BLOCK_SECONDS):
            raise DeadlineExceeded(f"nothing released the blocked {blocked.hook}; set the event")
        return proceed()

    return fault


def returning(value: Any) -> Fault:
    """Answer ``value``, of whatever type, without calling the provider."""

    def fault(_call: Call, _proceed: Callable[[], Any]) -> Any:
        return value

    return fault


def corrupting(*, position: int = -1, mask: int = 0x01) -> Fault:
    """Flip the bits of ``mask`` in one byte of what the provider returned (a wrap's blob)."""

    def fault(_call: Call, proceed: Callable[[], Any]) -> Any:
        return _corrupted(proceed(), position, mask)

    return fault


def echoing(key_uri: str) -> Fault:
    """Do as asked, but claim that the key ``key_uri`` did it."""

    def fault(_call: Call, proceed: Callable[[], Any]) -> Any:
        return _renamed(proceed(), key_uri)

    return fault


class Faulty:
    """Wraps ``provider``; every hook it has can be scripted, and so can ``match``.

    Still a provider: it registers with pluggy, has the wrapped one's class facts and exactly its
    hooks, and passes ``prepare``, ``close`` and ``domain`` on.  Safe to use from many threads.
    Its hooks leave ``instance`` out; a wrapped hook that names it gets the one given here.  They
    return whatever the script says, hence ``Any``.
    """

    type_name: ClassVar[str]
    settings: ClassVar[type[Any]]
    wrap_algs: ClassVar[frozenset[int]]
    protection: Protection

    def __new__(cls, provider: Any, instance: InstanceInfo | None = None) -> Self:  # noqa: ARG004
        """An instance of a class of its own: class facts are read from the class."""
        facts = {name: getattr(provider, name) for name in _CLASS_FACTS}
        absent = dict.fromkeys(set(_HOOKS) - marked_hooks(provider).keys())
        # The class body holds every hook with the contract's exact signature, because pluggy reads
        # it from the code; those the wrapped provider lacks are masked with None, as __hash__ is.
        return cast("Self", object.__new__(type(cls.__name__, (cls,), {**facts, **absent})))

    def __init__(self, provider: Any, instance: InstanceInfo | None = None) -> None:
        self._provider = provider
        self._instance = instance or InstanceInfo(self.type_name, self.type_name, self.protection)
        self._lock = threading.Lock()
        self._calls: list[Call] = []
        self._counts: Counter[str] = Counter()
        self._queues: dict[str, deque[Fault | None]] = {}
        self._scripts: dict[str, Callable[[Call], Fault | None]] = {}

    @property
    def calls(self) -> tuple[Call, ...]:
        """Every call so far, in the order of arrival."""
        with self._lock:
            return tuple(self._calls)

    def count(self, hook: str) -> int:
        """How often ``hook`` was called, honest and faulty calls alike."""
        with self._lock:
            return self._counts[hook]

    def queue(self, hook: str, *faults: Fault | None) -> None:
        """Play these on the next calls of ``hook``, one each; ``None`` behaves."""
        self._check(hook)
        with self._lock:
            self._queues.setdefault(hook, deque()).extend(faults)

    def script(self, hook: str, decide: Callable[[Call], Fault | None]) -> None:
        """Ask ``decide`` at every call of ``hook`` that the queue does not cover."""
        self._check(hook)
        with self._lock:
            self._scripts[hook] = decide

    def always(self, hook: str, fault: Fault) -> None:
        """Play ``fault`` on every call of ``hook`` that the queue does not cover."""
        self.script(hook, lambda _call: fault)

    def heal(self, *hooks: str) -> None:
        """Forget the faults of these hooks, or of all; counts stay."""
        with self._lock:
            for hook in hooks or (*self._queues, *self._scripts):
                self._queues.pop(hook, None)
                self._scripts.pop(hook, None)

    @property
    def key_uri(self) -> str:
        """That of the wrapped provider."""
        key_uri: str = self._provider.key_uri
        return key_uri

    def match(self, key_uri: str) -> Any:
        """As the wrapped provider answers, unless scripted."""
        proceed = partial(self._provider.match, key_uri)
        return self._play("match", {"key_uri": key_uri}, proceed)

    @hookimpl
    def encrypt(self, key_id: str, plaintext: bytes | bytearray, context: Context) -> Any:
        """Scripted."""
        return self._hook("encrypt", key_id=key_id, plaintext=plaintext, context=context)

    @hookimpl
    def decrypt(self, key_id: str, ciphertext: Ciphertext, context: Context) -> Any:
        """Scripted."""
        return self._hook("decrypt", key_id=key_id, ciphertext=ciphertext, context=context)

    @hookimpl
    def generate_data_key(self, key_id: str, context: Context) -> Any:
        """Scripted."""
        return self._hook("generate_data_key", key_id=key_id, context=context)

    @hookimpl
    def health(self, key_id: str) -> Any:
        """Scripted."""
        return self._hook("health", key_id=key_id)

    @hookimpl
    def sign(self, key_id: str, data: bytes, algorithm: str) -> Any:
        """Scripted."""
        return self._hook("sign", key_id=key_id, data=data, algorithm=algorithm)

    @hookimpl
    def verify(self, key_id: str, data: bytes, signature: Signature, algorithm: str) -> Any:
        """Scripted."""
        return self._hook(
            "verify", key_id=key_id, data=data, signature=signature, algorithm=algorithm
        )

    @hookimpl
    def public_key(self, key_id: str) -> Any:
        """Scripted."""
        return self._hook("public_key", key_id=key_id)

    @hookimpl
    def describe_key(self, key_id: str) -> Any:
        """Scripted."""
        return self._hook("describe_key", key_id=key_id)

    @hookimpl
    def rotate_key(self, key_id: str) -> Any:
        """Scripted."""
        return self._hook("rotate_key", key_id=key_id)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # ours and Python's own are never the wrapped provider's
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return getattr(self._provider, name)

    def _check(self, hook: str) -> None:
        """A misspelt hook would script nothing and let the test pass."""
        if hook != "match" and hook not in marked_hooks(self._provider):
            raise ValueError(f"{type(self._provider).__name__} has no hook {hook!r} to script")

    def _hook(self, hook: str, **arguments: Any) -> Any:
        proceed = partial(call, self._provider, hook, instance=self._instance, **arguments)
        return self._play(hook, arguments, proceed)

    def _play(self, hook: str, arguments: Mapping[str, Any], proceed: Callable[[], Any]) -> Any:
        received, fault = self._receive(hook, arguments)
        return proceed() if fault is None else fault(received, proceed)

    def _receive(self, hook: str, arguments: Mapping[str, Any]) -> tuple[Call, Fault | None]:
        sizes = {name: _size(value) for name, value in arguments.items()}
        with self._lock:
            self._counts[hook] += 1
            received = Call(hook, self._counts[hook], sizes)
            self._calls.append(received)
            queue = self._queues.get(hook)
            if queue:
                return received, queue.popleft()
            decide = self._scripts.get(hook)
        return received, decide(received) if decide else None


def _size(value: Any) -> int:
    match value:
        case Ciphertext() | Signature():
            return _size(value.data)
        case Context():
            return len(value.encoded)
        case str() | bytes() | bytearray():
            return len(value)
    return 0  # what a caller passed by mistake has no size worth recording


def _corrupted(value: Any, position: int, mask: int) -> Any:
    match value:
        case bytes() | bytearray():
            changed = bytearray(value)
            changed[position] ^= mask
            return type(value)(changed)
        case Ciphertext() | Signature():
            return evolve(value, data=_corrupted(value.data, position, mask))
        case PublicKey():
            return evolve(value, der=_corrupted(value.der, position, mask))
        case DataKey():
            return evolve(value, ciphertext=_corrupted(value.ciphertext, position, mask))
    raise TypeError(f"a {type(value).__name__} has no bytes to corrupt")


def _renamed(value: Any, key_uri: str) -> Any:
    match value:
        case Ciphertext() | Signature() | KeyInfo() | PublicKey():
            return evolve(value, key_uri=key_uri)
        case DataKey():
            return evolve(value, ciphertext=_renamed(value.ciphertext, key_uri))
    raise TypeError(f"a {type(value).__name__} names no key")
