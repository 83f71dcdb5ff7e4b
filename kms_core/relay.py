"""One configured instance: its provider behind its own PluginManager.

Exactly one implementation answers each hook, inside the wrappers of every loaded plugin.  Whatever
comes back is checked; whatever is raised leaves as a ``KMSError`` naming instance and operation.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, TypeVar

import pluggy
from attrs import evolve

from kms_core.breaker import Breaker
from kms_core.context import Context
from kms_core.errors import FormatError, KMSError, ProviderBug, UnsupportedOperation
from kms_core.hookspecs import PROJECT, PluginSpec, ProviderSpec
from kms_core.types import (
    MAX_WRAPPED_BYTES,
    Ciphertext,
    DataKey,
    Event,
    Health,
    InstanceInfo,
    KeyInfo,
    Provider,
    correlation_id,
)
from kms_core.uri import encode_key_uri, provider_type
from kms_core.workers import Workers

T = TypeVar("T")
Emit = Callable[[Event], None]
DATA_KEY_BYTES = 32


class Relay:
    """Calls one provider instance; its methods block, and belong on ``workers``."""

    def __init__(
        self,
        info: InstanceInfo,
        provider: Provider,
        key: str,
        modules: Mapping[str, ModuleType],
        *,
        breaker: Breaker,
        workers: Workers,
        emit: Emit,
        clock: Callable[[], float],
        domain: str | None = None,
    ) -> None:
        self.info = info
        self.provider = provider
        self.breaker = breaker
        self.workers = workers
        self._key = key
        self._emit = emit
        self._clock = clock
        self._domain = domain
        self._prepared = False
        self._prepare_lock = threading.Lock()
        self._manager = _manager(info.name, provider, modules)

    @property
    def name(self) -> str:
        """The instance's name in the configuration."""
        return self.info.name

    @property
    def key_uri(self) -> str:
        """The URI of the key it wraps with, as configured."""
        return self.provider.key_uri

    def supports(self, operation: str) -> bool:
        """Whether the provider implements this hook."""
        return any(
            implementation.plugin is self.provider
            for implementation in getattr(self._manager.hook, operation).get_hookimpls()
        )

    def domain(self, key_uri: str) -> str:
        """The failure and trust domain that a wrap under ``key_uri`` belongs to."""
        if self._domain is not None:
            return self._domain
        tell = getattr(self.provider, "domain", None)
        return self.info.provider if tell is None else str(tell(key_uri))

    def may_hold(self, key_uri: str, wrap_alg: int) -> bool:
        """Whether asking ``match`` makes sense; costs nothing."""
        provider = self.provider
        return provider_type(key_uri) == self.info.provider and wrap_alg in provider.wrap_algs

    @property
    def prepared(self) -> bool:
        """Whether the SDK is loaded and the next call goes straight to the service."""
        return self._prepared

    def prepare(self) -> None:
        """Load the SDK and build the client, once; what it takes is not charged to a call."""
        if self._prepared:
            return
        with self._prepare_lock:
            if not self._prepared:
                prepare = getattr(self.provider, "prepare", None)
                if prepare is not None:
                    self._guard("prepare", prepare)
                self._prepared = True

    def match(self, key_uri: str) -> str | None:
        """The key id to decrypt with, or ``None`` if the URI names no key of this instance."""
        key_id = self._guard("match", lambda: self.provider.match(key_uri), key_uri)
        if key_id is not None and not isinstance(key_id, str):
            raise self._bug("match", f"returned {type(key_id).__name__}")
        return key_id

    def encrypt(self, plaintext: bytes | bytearray, context: Context) -> Ciphertext:
        """Wrap under the configured key."""
        ciphertext = self._invoke(
            "encrypt", Ciphertext, key_id=self._key, plaintext=plaintext, context=context
        )
        return self._checked("encrypt", ciphertext)

    def decrypt(self, key_id: str, ciphertext: Ciphertext, context: Context) -> bytes | bytearray:
        """Unwrap with a key id that ``match`` returned."""
        kinds: tuple[type[bytes | bytearray], ...] = (bytes, bytearray)
        return self._invoke(
            "decrypt", *kinds, key_id=key_id, ciphertext=ciphertext, context=context
        )

    def generate_data_key(self, context: Context) -> DataKey:
        """A data key made by the provider itself."""
        data_key = self._invoke("generate_data_key", DataKey, key_id=self._key, context=context)
        if len(data_key.plaintext) != DATA_KEY_BYTES:
            raise self._bug("generate_data_key", "returned a key of another length than 32 bytes")
        ciphertext = self._checked("generate_data_key", data_key.ciphertext)
        return evolve(data_key, ciphertext=ciphertext)

    def health(self) -> Health:
        """The provider's own answer about the configured key."""
        return self._invoke("health", Health, key_id=self._key)

    def describe_key(self) -> KeyInfo:
        """What the service tells about the configured key."""
        return self._invoke("describe_key", KeyInfo, key_id=self._key)

    def rotate_key(self) -> KeyInfo:
        """Make a new version of the configured key primary."""
        return self._invoke("rotate_key", KeyInfo, key_id=self._key)

    def close(self) -> None:
        """Let the provider go.  What it raises then is of no use to anybody."""
        self.workers.close()
        close = getattr(self.provider, "close", None)
        if close is not None:
            try:
                close()
            except Exception as exc:  # noqa: BLE001  isolation: the others must close as well
                self._report("close", self._bug("close", f"raised {type(exc).__name__}"), 0.0)

    def _invoke(self, operation: str, *expected: type[T], **arguments: Any) -> T:
        """Call a hook of the provider, inside its wrappers, and check what comes back."""
        if not self.supports(operation):
            raise self._annotate(
                UnsupportedOperation(f"provider {self.info.provider} has no {operation}"), operation
            )
        hook = getattr(self._manager.hook, operation)

        def call() -> T:
            result = hook(instance=self.info, **arguments)
            if not isinstance(result, expected):
                raise self._bug(operation, f"returned {type(result).__name__}")
            return result

        ciphertext = arguments.get("ciphertext")
        return self._guard(operation, call, ciphertext.key_uri if ciphertext else self.key_uri)

    def _guard(self, operation: str, call: Callable[[], T], key: str | None = None) -> T:
        """Run provider code: time it, tell observers, let nothing but a ``KMSError`` out."""
        started = self._clock()
        error: KMSError | None = None
        try:
            return call()
        except KMSError as exc:
            error = self._annotate(exc, operation, key)
            raise
        except Exception as exc:
            error = self._bug(operation, f"raised {type(exc).__name__}")
            raise error from exc
        finally:
            if error is not None or operation not in {"match", "prepare"}:
                self._report(operation, error, self._clock() - started, key)

    def _report(
        self, operation: str, error: KMSError | None, seconds: float, key: str | None = None
    ) -> None:
        outcome = "ok" if error is None else error.code
        self._emit(Event(operation, outcome, instance=self.name, seconds=seconds, key_uri=key))

    def _annotate(self, error: KMSError, operation: str, key: str | None = None) -> KMSError:
        error.instance, error.operation, error.key = self.name, operation, key
        error.correlation_id = correlation_id.get()
        return error

    def _bug(self, operation: str, what: str) -> KMSError:
        return self._annotate(ProviderBug(what), operation)

    def _checked(self, operation: str, ciphertext: Ciphertext) -> Ciphertext:
        """What would be written into an envelope must be readable from one."""
        if not 1 <= len(ciphertext.data) <= MAX_WRAPPED_BYTES:
            raise self._bug(operation, f"returned {len(ciphertext.data)} bytes of ciphertext")
        try:
            encode_key_uri(ciphertext.key_uri)
        except FormatError as exc:
            raise self._bug(operation, f"returned a malformed key URI: {exc}") from exc
        if not self.may_hold(ciphertext.key_uri, ciphertext.wrap_alg):
            raise self._bug(operation, "returned a key URI or wrap_alg that is not its own")
        return evolve(ciphertext, data=bytes(ciphertext.data), instance=self.name)


def _manager(
    name: str, provider: Provider, modules: Mapping[str, ModuleType]
) -> pluggy.PluginManager:
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(ProviderSpec)
    manager.add_hookspecs(PluginSpec)
    manager.register(provider, f"instance {name}")
    for module_name, module in reversed(list(modules.items())):
        manager.register(module, module_name)  # pluggy: last registered is outermost
    return manager
