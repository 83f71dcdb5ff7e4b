"""The values that cross the boundary between applications, core and providers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, NewType, Protocol

from attrs import field, frozen

from kms_core.context import Context

if TYPE_CHECKING:
    from kms_core.errors import KMSError

MAX_WRAPPED_BYTES: Final = 8192  # the largest wrapped key any service returns, with room
THIRD_PARTY_WRAP_ALG: Final = 0x7FFF  # "the provider named by the key URI decides"
#: Wraps that a quantum computer does not undo: symmetric ones and the post-quantum hybrids.
POST_QUANTUM_WRAPS: Final = frozenset(
    {0x0101, 0x0202, 0x0203, 0x0301, 0x0401, 0x0402, 0x0501, 0x0502, 0x0602, 0x0603}
)
#: Wraps that anybody can make who knows the recipient's public key.
PUBLIC_KEY_WRAPS: Final = frozenset(
    {0x0102, 0x0201, 0x0302, 0x0403, 0x0404, 0x0601, 0x0602, 0x0603}
)

#: What ``sign`` and ``verify`` take.  ECDSA on P-256, P-384, P-521 or secp256k1 as the key is
#: (FIPS 186-5), RSASSA-PSS with MGF1 of the same hash and a salt as long as it, and
#: RSASSA-PKCS1-v1_5 (RFC 8017), Ed25519 (RFC 8032), ML-DSA without a context string (FIPS 204).
SIGNATURE_ALGORITHMS: Final = frozenset(
    {
        *("ECDSA-SHA256", "ECDSA-SHA384", "ECDSA-SHA512"),
        *("RSA-PSS-SHA256", "RSA-PSS-SHA384", "RSA-PSS-SHA512"),
        *("RSA-PKCS1-SHA256", "RSA-PKCS1-SHA384", "RSA-PKCS1-SHA512"),
        *("Ed25519", "ML-DSA-44", "ML-DSA-65", "ML-DSA-87"),
    }
)
#: The same hooks make and check MACs (RFC 2104): only the service can do either.
MAC_ALGORITHMS: Final = frozenset({"HMAC-SHA256", "HMAC-SHA384", "HMAC-SHA512"})
#: The one encryption algorithm a ``PublicKey`` may name: OAEP, SHA-256, MGF1-SHA-256, no label.
RSA_OAEP: Final = "RSA-OAEP-SHA256"
MAX_SIGNED_BYTES: Final = 1 << 20  # of a message; sign a digest of anything larger

Protection = Literal["hsm", "software", "local"]

#: Seconds.  Configuration files write a number or "500ms", "3s", "5m", "1h", "2d".
Duration = NewType("Duration", float)


class Secret:
    """A secret setting, read from the environment or a file; it never shows itself."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The secret, at the one place that needs it."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(…)"

    def __reduce__(self) -> str:
        raise TypeError("a Secret is not pickled or copied")


def _size_only(data: bytes | bytearray) -> str:
    return f"<{len(data)} bytes>"


@frozen
class InstanceInfo:
    """Who a call is for: offered to providers and wrappers as ``instance``."""

    name: str
    provider: str
    protection: Protection


@frozen
class Ciphertext:
    """What ``encrypt`` returns, and all that ``decrypt`` needs beside the context.

    ``key_uri`` is the immutable canonical name of the KEK, with the version where the service
    tells it; ``wrap_alg`` one of the numbers of docs/format.md, section 5.  ``instance`` is
    filled in by the core: which instance did it.
    """

    data: bytes = field(repr=_size_only)
    key_uri: str
    key_version: str | None = None
    wrap_alg: int = THIRD_PARTY_WRAP_ALG
    instance: str | None = None


@frozen
class DataKey:
    """A fresh 256-bit data key and the same key wrapped under a KEK.

    ``plaintext`` is a bytearray where the SDK permits, so that the holder can wipe it.
    """

    plaintext: bytes | bytearray = field(repr=_size_only)
    ciphertext: Ciphertext


@frozen
class Health:
    """A provider's answer to "are you well?": ``reason`` says why not, or what was checked."""

    ok: bool
    reason: str = ""


KeyState = Literal["enabled", "disabled", "pending", "destroyed", "unknown"]


@frozen
class KeyInfo:
    """What a service tells about a KEK.  ``versions`` are ordered oldest first where known."""

    key_uri: str
    state: KeyState
    protection: Protection
    primary_version: str | None = None
    versions: tuple[str, ...] = ()
    region: str | None = None
    rotation: bool | None = None


@frozen
class PublicKey:
    """A public key as SubjectPublicKeyInfo DER (RFC 5280).

    ``key_uri`` names the exact version.  ``algorithms`` are those the service uses this key with,
    the preferred one first: of ``SIGNATURE_ALGORITHMS``, or ``RSA-OAEP-SHA256``.  ``wrap_alg`` is
    the number under which this instance unwraps what anybody encrypted to it with RSA-OAEP-SHA256,
    the context bound with ``bind_context``; ``None``: the key is not for that.
    """

    der: bytes = field(repr=_size_only)
    key_uri: str
    key_version: str | None = None
    algorithms: tuple[str, ...] = ()
    wrap_alg: int | None = None


@frozen
class Signature:
    """A signature (or MAC) and what made it.

    ``data`` of ECDSA is DER (RFC 3279).  ``key_uri`` names the exact version of the key.
    """

    data: bytes = field(repr=_size_only)
    key_uri: str
    algorithm: str
    key_version: str | None = None
    instance: str | None = None


@frozen
class Attempt:
    """One failed try on one instance; ``seconds`` is how long it took."""

    instance: str
    error: KMSError
    seconds: float


EVENT_SCHEMA: Final = 1


@frozen
class Event:
    """Something that happened to a key, told to observers.  No field can hold a secret.

    ``operation`` is ``seal``, ``open``, ``rewrap``, ``refresh`` (of a data key, in the background),
    ``breaker`` or a provider hook's name; ``outcome`` is ``ok``, ``degraded``, ``stale`` (a data
    key seals beyond its age), a ``KMSError.code``, or a breaker's new state.
    ``missing`` names the instances that should hold the data key and do not; ``unverified`` those
    whose new wrap could not be proved by unwrapping it.
    """

    operation: str
    outcome: str
    instance: str | None = None
    seconds: float = 0.0
    attempt: int = 1
    key_uri: str | None = None
    key_version: str | None = None
    missing: tuple[str, ...] = ()
    unverified: tuple[str, ...] = ()
    correlation_id: str | None = None
    schema: int = EVENT_SCHEMA


class Provider(Protocol):
    """What a provider class offers besides its hooks (see ``kms_core.hookspecs``).

    ``settings`` is an attrs class; the core builds it from the instance's configuration table and
    its field ``key`` names the key to wrap with.  ``__init__`` does no I/O and imports no SDK.
    """

    type_name: ClassVar[str]
    settings: ClassVar[type[Any]]
    wrap_algs: ClassVar[frozenset[int]]
    protection: Protection

    def __init__(self, settings: Any) -> None: ...

    @property
    def key_uri(self) -> str:
        """The URI of the configured key as far as it is known without asking the service."""

    def match(self, key_uri: str) -> str | None:
        """The key id to pass to ``decrypt`` if this instance can unwrap for ``key_uri``.

        ``None`` means "not mine".  May ask the service once to resolve an alias.
        """

    def encrypt(self, key_id: str, plaintext: bytes | bytearray, context: Context) -> Ciphertext:
        """Wrap ``plaintext`` under ``key_id``, bound to ``context``."""

    def decrypt(self, key_id: str, ciphertext: Ciphertext, context: Context) -> bytes | bytearray:
        """Unwrap; ``InvalidCiphertext`` unless ciphertext, key and context belong together."""

    def health(self, key_id: str) -> Health:
        """Ask the service whether this key can be used now."""


EntryState = Literal["available", "loaded", "missing", "incompatible", "failed"]


@frozen
class PluginInfo:
    """One plugin as found, whether or not it could be used."""

    name: str
    state: EntryState
    distribution: str | None = None
    version: str | None = None
    reason: str = ""
    hooks: tuple[str, ...] = ()


BreakerState = Literal["closed", "open", "half-open"]
HealthStatus = Literal["healthy", "degraded", "unhealthy"]


@frozen
class InstanceHealth:
    """One instance in a ``HealthReport``; ``latency`` in seconds, ``None`` if it did not answer.

    ``proven``: seconds since it last unwrapped something, ``None`` if it has not yet; ``stuck``:
    calls that nobody waits for any more and that still hold a thread.
    """

    state: HealthStatus
    breaker: BreakerState
    latency: float | None
    reason: str = ""
    proven: float | None = None
    stuck: int = 0


@frozen
class HealthReport:
    """``degraded``: works, something is down; ``unhealthy``: sealing would fail."""

    status: HealthStatus
    instances: Mapping[str, InstanceHealth]
    reason: str = ""
