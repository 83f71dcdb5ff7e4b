"""One configured instance: its provider behind its own PluginManager.

Exactly one implementation answers each hook, inside the wrappers of every loaded plugin.  Whatever
comes back is checked; whatever is raised leaves as a ``KMSError`` naming instance and operation.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Mapping
from functools import partial
from types import ModuleType
from typing import Any, Final, TypeVar

import pluggy
from attrs import evolve
from cryptography.exceptions import UnsupportedAlgorithm

from kms_core import asymmetric
from kms_core.asymmetric import OfflineWrap, OfflineWrapper
from kms_core.breaker import Breaker
from kms_core.context import RESERVED_PREFIX, Context
from kms_core.errors import (
    FormatError,
    KMSError,
    ProviderBug,
    UnsupportedOperation,
)
from kms_core.hookspecs import PROJECT, PluginSpec, ProviderSpec
from kms_core.types import (
    MAC_ALGORITHMS,
    MAX_WRAPPED_BYTES,
    Ciphertext,
    DataKey,
    Event,
    Health,
    InstanceInfo,
    KeyInfo,
    Provider,
    PublicKey,
    Signature,
)
from kms_core.uri import encode_key_uri, provider_type
from kms_core.workers import Workers

T = TypeVar("T")
Emit = Callable[[Event], None]
DATA_KEY_BYTES: Final = 32
MAX_SIGNATURE_BYTES: Final = 8192  # the largest, ML-DSA-87's, has 4627
MAX_PUBLIC_KEYS: Final = 64  # kept per instance for verifying; a key has few versions in use
MAX_DOMAINS: Final = 64  # remembered per instance, likewise
_CANARY: Final = Context({f"{RESERVED_PREFIX}canary": "1"})
_NO_REQUEST: Final = frozenset(
    {"close", "domain", "learn", "match", "prepare"}
)  # told only if they fail


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
        offline_wrap: OfflineWrap = "never",
    ) -> None:
        self.info = info
        #: The instance's name in the configuration.
        self.name: Final = info.name
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
        #: Wraps to this instance's public key, without asking its service.
        self.offline = OfflineWrapper(offline_wrap, clock)
        self._public_keys: dict[str, PublicKey] = {}  # by the key URI that signatures name
        self._domains: dict[str, str] = {}  # by key URI
        self._operations = _operations(provider, self._manager)

    @property
    def key_uri(self) -> str:
        """The URI of the key it wraps with, as configured."""
        return self.provider.key_uri

    def supports(self, operation: str) -> bool:
        """Whether the provider implements this hook."""
        return operation in self._operations

    def domain(self, key_uri: str) -> str:
        """The failure and trust domain that a wrap under ``key_uri`` belongs to."""
        if self._domain is not None:
            return self._domain
        known = self._domains.get(key_uri)
        if known is None:
            known = self._guard("domain", lambda: domain_of(self.provider, key_uri), key_uri)
            _remember(self._domains, key_uri, known, MAX_DOMAINS)
        return known

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

        def match() -> str | None:
            key_id = self.provider.match(key_uri)
            return None if key_id is None else _is_a(str)(self, key_id)

        return self._guard("match", match, key_uri)

    def encrypt(self, plaintext: bytes | bytearray, context: Context) -> Ciphertext:
        """Wrap under the configured key."""
        return self._invoke(
            "encrypt",
            _check_ciphertext,
            key_id=self._key,
            plaintext=plaintext,
            context=context,
        )

    def decrypt(self, key_id: str, ciphertext: Ciphertext, context: Context) -> bytes | bytearray:
        """Unwrap with a key id that ``match`` returned."""
        return self._invoke(
            "decrypt", _check_plaintext, key_id=key_id, ciphertext=ciphertext, context=context
        )

    def generate_data_key(self, context: Context) -> DataKey:
        """A data key made by the provider itself."""
        return self._invoke("generate_data_key", _check_data_key, key_id=self._key, context=context)

    def health(self) -> Health:
        """The provider's own answer about the configured key."""
        return self._invoke("health", _is_a(Health), key_id=self._key)

    def canary(self) -> Health:
        """Wrap and unwrap something of no worth: proves reach, permission and key at once."""
        secret = os.urandom(DATA_KEY_BYTES)
        wrap = self.encrypt(secret, _CANARY)
        key_id = self.match(wrap.key_uri)
        if key_id is None:
            return Health(ok=False, reason=f"it does not recognise {wrap.key_uri}, its own wrap")
        if self.decrypt(key_id, wrap, _CANARY) != secret:
            return Health(ok=False, reason=f"{wrap.key_uri} unwrapped something else")
        return Health(ok=True, reason=f"{wrap.key_uri} wrapped and unwrapped")

    def describe_key(self) -> KeyInfo:
        """What the service tells about the configured key."""
        return self._invoke("describe_key", _is_a(KeyInfo), key_id=self._key)

    def rotate_key(self) -> KeyInfo:
        """Make a new version of the configured key primary."""
        return self._invoke("rotate_key", _is_a(KeyInfo), key_id=self._key)

    # --- asymmetric keys -------------------------------------------------------------------------

    def sign(self, data: bytes, algorithm: str | None) -> Signature:
        """Sign with the configured key; without ``algorithm``, with the one the key prefers."""
        if algorithm is None:
            algorithm = self._preferred_algorithm()
        check = partial(_check_signature, algorithm)
        return self._invoke("sign", check, key_id=self._key, data=data, algorithm=algorithm)

    def verify(self, data: bytes, signature: Signature) -> bool | None:
        """Whether the key that ``signature`` names made it; ``None`` if it is not ours.

        Where the key is public it is asked for once and kept, and the rest is done here.
        """
        known = self.verify_here(data, signature)
        if known is not None:
            return known
        key_id = self.match(signature.key_uri)
        if key_id is None:
            return None
        if signature.algorithm not in MAC_ALGORITHMS and self.supports("public_key"):
            self._keep(signature.key_uri, self.public_key(key_id))
            known = self.verify_here(data, signature)
        if known is not None:
            return known
        return self._invoke(
            "verify",
            _is_a(bool),
            key_id=key_id,
            data=data,
            signature=signature,
            algorithm=signature.algorithm,
        )

    def verify_here(self, data: bytes, signature: Signature) -> bool | None:
        """As ``verify``, if it can be done without asking anybody; else ``None``."""
        public_key = self._public_keys.get(signature.key_uri)
        if public_key is None:
            return None
        try:
            return asymmetric.verify_signature(
                public_key, data, signature.data, signature.algorithm
            )
        except UnsupportedAlgorithm:
            return None

    def public_key(self, key_id: str | None = None) -> PublicKey:
        """The public key of the configured key, or of one that ``match`` returned."""
        return self._invoke("public_key", _check_public_key, key_id=key_id or self._key)

    def wrap(self, plaintext: bytes | bytearray, context: Context) -> Ciphertext:
        """Wrap a data key for an envelope: as ``encrypt``, unless this is to be done offline."""
        if self.offline.policy != "always":
            return self.encrypt(plaintext, context)
        self.learn_public_key()
        return self.wrap_offline(plaintext, context)

    def wrap_offline(self, plaintext: bytes | bytearray, context: Context) -> Ciphertext:
        """Wrap to the public key; told to observers as what it is."""
        wrap = partial(self.offline.wrap, plaintext, context)
        return self._guard("wrap_offline", lambda: _check_ciphertext(self, wrap()), self.key_uri)

    def learn_public_key(self) -> bool:
        """Ask for the public key to wrap to; true, or the error is raised."""
        try:
            key = self.public_key()
            self._guard("learn", partial(self.offline.learn, key), key.key_uri)
        except BaseException:
            self.offline.give_up_learning()
            raise
        return True

    def _preferred_algorithm(self) -> str:
        public_key = self._public_keys.get(self.key_uri)
        if public_key is None:
            public_key = self.public_key()
            self._keep(self.key_uri, public_key)
        if not public_key.algorithms:
            raise self._annotate(ProviderBug("named no algorithm"), "public_key", self.key_uri)
        return public_key.algorithms[0]

    def _keep(self, key_uri: str, public_key: PublicKey) -> None:
        _remember(self._public_keys, key_uri, public_key, MAX_PUBLIC_KEYS)

    def annotated(self, error: KMSError, operation: str) -> KMSError:
        """The error, saying whose and which call it is."""
        return self._annotate(error, operation, error.key)

    def close(self) -> None:
        """Let the provider go.  What it raises then is of no use to anybody."""
        self.workers.close()
        close = getattr(self.provider, "close", None)
        if close is not None:
            with contextlib.suppress(KMSError):  # reported; the others must close as well
                self._guard("close", close)

    def _invoke(self, operation: str, check: Callable[[Relay, object], T], **arguments: Any) -> T:
        """Call a hook of the provider, inside its wrappers, and check what comes back."""
        ciphertext = arguments.get("ciphertext")
        key = ciphertext.key_uri if ciphertext else self.key_uri
        if not self.supports(operation):
            raise self._annotate(
                UnsupportedOperation(f"provider {self.info.provider} has no {operation}"),
                operation,
                key,
            )
        hook = getattr(self._manager.hook, operation)
        return self._guard(
            operation, lambda: check(self, hook(instance=self.info, **arguments)), key
        )

    def _guard(self, operation: str, call: Callable[[], T], key: str | None = None) -> T:
        """Run provider code: time it, tell observers, let nothing but a ``KMSError`` out."""
        started = self._clock()
        try:
            result = call()
        except KMSError as exc:
            self._failed(operation, exc, started, key)
            raise
        except (Exception, SystemExit) as exc:
            bug = ProviderBug(f"raised {type(exc).__name__}")
            self._failed(operation, bug, started, key)
            raise bug from exc
        if operation not in _NO_REQUEST:
            self._report(operation, "ok", started, key)
        return result

    def _failed(self, operation: str, error: KMSError, started: float, key: str | None) -> None:
        self._report(operation, self._annotate(error, operation, key).code, started, key)

    def _report(self, operation: str, outcome: str, started: float, key: str | None) -> None:
        seconds = self._clock() - started
        self._emit(Event(operation, outcome, instance=self.name, seconds=seconds, key_uri=key))

    def _annotate(self, error: KMSError, operation: str, key: str | None) -> KMSError:
        error.instance, error.operation, error.key = self.name, operation, key
        return error


def domain_of(provider: Provider, key_uri: str) -> str:
    """What the provider says, or its type where it does not say."""
    tell = getattr(provider, "domain", None)
    return provider.type_name if tell is None else str(tell(key_uri))


def _operations(provider: Provider, manager: pluggy.PluginManager) -> frozenset[str]:
    """The hooks that the provider itself implements."""
    callers = manager.get_hookcallers(provider) or ()
    return frozenset(caller.name for caller in callers)


def _remember(known: dict[str, T], key: str, value: T, most: int) -> None:
    """Keep ``value``, and of the older ones as many as may be kept beside it."""
    while len(known) >= most:
        known.pop(next(iter(known)), None)
    known[key] = value


def _is_a(kind: type[T]) -> Callable[[Relay, object], T]:
    def check(_: Relay, result: object) -> T:
        if not isinstance(result, kind):
            raise ProviderBug(f"returned {type(result).__name__}")
        return result

    return check


def _check_plaintext(_: Relay, result: object) -> bytes | bytearray:
    if not isinstance(result, bytes | bytearray):
        raise ProviderBug(f"returned {type(result).__name__}")
    return result


def _check_data_key(relay: Relay, result: object) -> DataKey:
    data_key = _is_a(DataKey)(relay, result)
    if len(_check_plaintext(relay, data_key.plaintext)) != DATA_KEY_BYTES:
        raise ProviderBug("returned a key of another length than 32 bytes")
    return evolve(data_key, ciphertext=_check_ciphertext(relay, data_key.ciphertext))


def _check_ciphertext(relay: Relay, result: object) -> Ciphertext:
    """What would be written into an envelope must be readable from one."""
    ciphertext = _is_a(Ciphertext)(relay, result)
    data = _check_plaintext(relay, ciphertext.data)
    if not 1 <= len(data) <= MAX_WRAPPED_BYTES:
        raise ProviderBug(f"returned {len(data)} bytes of ciphertext")
    _check_own_uri(relay, ciphertext.key_uri)
    if ciphertext.wrap_alg not in relay.provider.wrap_algs:
        raise ProviderBug("returned a wrap_alg that is not its own")
    return Ciphertext(
        bytes(data),
        ciphertext.key_uri,
        ciphertext.key_version,
        ciphertext.wrap_alg,
        relay.name,
    )


def _check_signature(algorithm: str, relay: Relay, result: object) -> Signature:
    signature = _is_a(Signature)(relay, result)
    data = _check_plaintext(relay, signature.data)
    if not 1 <= len(data) <= MAX_SIGNATURE_BYTES:
        raise ProviderBug(f"returned a signature of {len(data)} bytes")
    if signature.algorithm != algorithm:
        raise ProviderBug(f"signed with another algorithm than {algorithm}")
    _check_own_uri(relay, signature.key_uri)
    return evolve(signature, data=bytes(data), instance=relay.name)


def _check_public_key(relay: Relay, result: object) -> PublicKey:
    public_key = _is_a(PublicKey)(relay, result)
    _check_own_uri(relay, public_key.key_uri)
    if not asymmetric.can_load(bytes(_check_plaintext(relay, public_key.der))):
        raise ProviderBug("returned a public key that is not SubjectPublicKeyInfo in DER")
    if public_key.wrap_alg not in {None, *relay.provider.wrap_algs}:
        raise ProviderBug("returned a public key with a wrap_alg that is not its own")
    return public_key


def _check_own_uri(relay: Relay, key_uri: object) -> None:
    """What names a key of this provider type, and fits into an envelope."""
    if not isinstance(key_uri, str):
        raise ProviderBug(f"returned a key URI of type {type(key_uri).__name__}")
    try:
        encode_key_uri(key_uri)
    except FormatError as exc:
        raise ProviderBug(f"returned a malformed key URI: {exc}") from exc
    if provider_type(key_uri) != relay.info.provider:
        raise ProviderBug("returned a key URI that is not its own")


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
