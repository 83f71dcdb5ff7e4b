"""Google Cloud KMS on loopback: gRPC with the service's own messages, and real cryptography.

Strict rather than complete: it has what the client library and a provider of keys ask for, and it
refuses what the service refuses, in its words where they are known.  Where the service's own
leniency is not documented, it refuses.  Other calls are answered UNIMPLEMENTED.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final, TypeAlias, TypeVar

import google_crc32c
import grpc
from attrs import define, field, frozen
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from google.cloud.kms_v1.types import resources, service
from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo, PreconditionFailure, RetryInfo
from google.rpc.status_pb2 import Status

from kms_core.testing.servers.authority import Authority
from kms_core.testing.servers.closing import Closed
from kms_core.testing.servers.gate import LOOPBACK, PATIENCE, Gate
from kms_core.testing.servers.panel import Failure, Order, Panel

SERVICE: Final = "google.cloud.kms.v1.KeyManagementService"
MAX_BYTES: Final = 64 << 10  # of a plaintext, of what is bound to it, and of a message to sign
MAX_HSM_BYTES: Final = 8 << 10  # of a plaintext and what is bound to it together
MAX_HSM_MESSAGE_BYTES: Final = 16 << 10
MAX_CIPHERTEXT_BYTES: Final = 640 << 10
MIN_RANDOM_BYTES: Final = 8
MAX_RANDOM_BYTES: Final = 1024
PAGE: Final = 100  # versions in one answer, unless the client asks for another number
MAX_PAGE: Final = 1000
RETENTION: Final = timedelta(days=30)

_THREADS: Final = 64  # more than any test has calls under way: those that are slow block nobody
_IV_SIZE: Final = 12
_TAG_SIZE: Final = 16
_MARK_SIZE: Final = 16

_PROJECT: Final = r"projects/[a-z0-9][a-z0-9.:-]*"
_LOCATION: Final = rf"{_PROJECT}/locations/[a-z0-9-]+"
_RING: Final = rf"{_LOCATION}/keyRings/[a-zA-Z0-9_-]{{1,63}}"
_KEY: Final = rf"{_RING}/cryptoKeys/[a-zA-Z0-9_-]{{1,63}}"
_VERSION: Final = rf"{_KEY}/cryptoKeyVersions/[1-9][0-9]*"
_FORMS: Final[Mapping[str, re.Pattern[str]]] = {
    "Location": re.compile(_LOCATION),
    "KeyRing": re.compile(_RING),
    "CryptoKey": re.compile(_KEY),
    "CryptoKeyVersion": re.compile(_VERSION),
}
_FILTER: Final = re.compile(r"\s*state\s*[=:]\s*([A-Z_]+)\s*")

#: A request or an answer: the generated classes have types, and what they are made of has none.
Message: TypeAlias = Any

# The generated enumerations, for the same reason.
_Purpose: Final[Any] = resources.CryptoKey.CryptoKeyPurpose
_Algorithm: Final[Any] = resources.CryptoKeyVersion.CryptoKeyVersionAlgorithm
_State: Final[Any] = resources.CryptoKeyVersion.CryptoKeyVersionState
_Protection: Final[Any] = resources.ProtectionLevel
_Format: Final[Any] = resources.PublicKey.PublicKeyFormat


class Refusal(Exception):
    """What the service answers instead of a result; ``details`` are messages of google.rpc."""

    def __init__(self, code: grpc.StatusCode, message: str, *details: Any) -> None:
        super().__init__(message)
        self.code = code
        self.details = details

    @property
    def metadata(self) -> tuple[tuple[str, bytes], ...]:
        """The trailing metadata that carries the details."""
        if not self.details:
            return ()
        status = Status(code=self.code.value[0], message=str(self))
        for detail in self.details:
            packed = Packed()
            packed.Pack(detail)
            status.details.append(packed)
        return (("grpc-status-details-bin", status.SerializeToString()),)


def _bad(message: str) -> Refusal:
    return Refusal(grpc.StatusCode.INVALID_ARGUMENT, message)


def _precondition(message: str, *details: Any) -> Refusal:
    return Refusal(grpc.StatusCode.FAILED_PRECONDITION, message, *details)


def _not_enabled(name: str, state: str) -> Refusal:
    violation = PreconditionFailure.Violation(type=f"KEY_{state}", subject=name)
    return _precondition(
        f"{name} is not enabled, current state is: {state}.",
        PreconditionFailure(violations=[violation]),
    )


def _not_found(name: str) -> Refusal:
    return Refusal(grpc.StatusCode.NOT_FOUND, f"{_kind(name)} {name} not found.")


def _denied(permission: str, name: str) -> Refusal:
    resource = name.partition("/cryptoKeyVersions/")[0]  # access is granted to keys, not versions
    return Refusal(
        grpc.StatusCode.PERMISSION_DENIED,
        f"Permission '{permission}' denied on resource '{resource}' (or it may not exist).",
        ErrorInfo(
            reason="IAM_PERMISSION_DENIED",
            domain="cloudkms.googleapis.com",
            metadata={"permission": permission, "resource": resource},
        ),
    )


def _over_quota(seconds: float | None) -> Refusal:
    details: list[Any] = [ErrorInfo(reason="RATE_LIMIT_EXCEEDED", domain="googleapis.com")]
    if seconds is not None:
        delay = Duration()
        delay.FromTimedelta(timedelta(seconds=seconds))
        details.append(RetryInfo(retry_delay=delay))
    return Refusal(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "Quota exceeded for quota metric 'Cryptographic requests' and limit 'Cryptographic "
        "requests per minute' of service 'cloudkms.googleapis.com'.",
        *details,
    )


# --- names ---------------------------------------------------------------------------------------


def _kind(name: str) -> str:
    """What sort of resource has a name like this one: ``CryptoKey``, ``KeyRing`` ..."""
    for kind, form in _FORMS.items():
        if form.fullmatch(name):
            return kind
    raise _bad(f"Resource name {name!r} is malformed.")


def _require_kind(name: str, *kinds: str) -> str:
    if (kind := _kind(name)) not in kinds:
        raise _bad(f"Resource name {name!r} is that of a {kind}, not of a {' or '.join(kinds)}.")
    return kind


# --- checksums and sizes -------------------------------------------------------------------------


def _crc32c(data: bytes) -> int:
    return int(google_crc32c.value(data))


def _summed(name: str, data: bytes) -> dict[str, Any]:
    """The field of an answer, with the field that has its checksum."""
    return {name: data, f"{name}_crc32c": _crc32c(data)}


def _is_verified(name: str, data: bytes, checksum: int | None) -> bool:
    """Whether there was a checksum to compare; one that is wrong is refused."""
    if checksum is None:
        return False
    if checksum != _crc32c(data):
        raise _bad(f"The checksum in field {name}_crc32c did not match the data in field {name}.")
    return True


def _verified(request: Message, *names: str) -> dict[str, bool]:
    """The fields of an answer that say which checksums of the request were compared."""
    return {
        f"verified_{name}_crc32c": _is_verified(
            name, getattr(request, name), getattr(request, f"{name}_crc32c")
        )
        for name in names
    }


def _require_size(name: str, data: bytes, limit: int) -> None:
    if len(data) > limit:
        raise _bad(f"The field {name} has {len(data)} bytes, and {limit} at most are allowed.")


def _require_sizes(version: _Version, request: Message, *names: str) -> None:
    """The sizes of what is encrypted or bound: the HSMs count all of it together."""
    for name in names:
        _require_size(name, getattr(request, name), MAX_BYTES)
    if version.key.in_hsm:
        together = b"".join(getattr(request, name) for name in names)
        _require_size(" and ".join(names), together, MAX_HSM_BYTES)


def _require_message(version: _Version, data: bytes) -> None:
    """A message to sign; none at all is what an empty one looks like."""
    if not data:
        raise _bad("The field data is empty.")
    _require_size("data", data, MAX_HSM_MESSAGE_BYTES if version.key.in_hsm else MAX_BYTES)


# --- key material --------------------------------------------------------------------------------


class _Material:
    """The secret of one version, of a class for each purpose; ``USE`` is what it is good for."""

    USE: ClassVar[str]


_M = TypeVar("_M", bound=_Material)


@frozen
class _AesKey(_Material):
    secret: bytes = field(repr=False)

    def seal(self, plaintext: bytes, bound: bytes) -> tuple[bytes, bytes]:
        """Initialization vector, and ciphertext with its tag."""
        iv = os.urandom(_IV_SIZE)
        return iv, AESGCM(self.secret).encrypt(iv, plaintext, bound)

    def open(self, iv: bytes, sealed: bytes, bound: bytes) -> bytes:
        try:
            return AESGCM(self.secret).decrypt(iv, sealed, bound)
        except InvalidTag:
            raise _bad("Decryption failed: the ciphertext is invalid.") from None


@frozen
class _Aes(_AesKey):
    USE = "encryption"


@frozen
class _RawAes(_AesKey):
    USE = "raw encryption"


@frozen
class _Mac(_Material):
    USE = "MACs"
    secret: bytes = field(repr=False)
    hashed: hashes.HashAlgorithm

    def sign(self, data: bytes) -> bytes:
        return self._over(data).finalize()

    def verify(self, data: bytes, mac: bytes) -> bool:
        try:
            self._over(data).verify(mac)
        except InvalidSignature:
            return False
        return True

    def _over(self, data: bytes) -> hmac.HMAC:
        mac = hmac.HMAC(self.secret, self.hashed)
        mac.update(data)
        return mac


@frozen
class _KeyPair(_Material):
    USE = "public keys"
    public: Any  # cryptography has no type for all of them

    def exported(self, form: Any) -> bytes:
        """The public key in one of the formats that the service has for it."""
        encoding = {_Format.PEM: Encoding.PEM, _Format.DER: Encoding.DER}.get(form)
        if encoding is None:
            raise _bad(f"The public key of this algorithm cannot be had as {form.name}.")
        data: bytes = self.public.public_bytes(encoding, PublicFormat.SubjectPublicKeyInfo)
        return data


@frozen
class _Decrypter(_KeyPair):
    USE = "asymmetric decryption"
    private: rsa.RSAPrivateKey = field(repr=False)
    hashed: hashes.HashAlgorithm

    def decrypt(self, ciphertext: bytes) -> bytes:
        oaep = padding.OAEP(padding.MGF1(self.hashed), self.hashed, label=None)
        try:
            return self.private.decrypt(ciphertext, oaep)
        except ValueError:
            raise _bad("Decryption failed: the ciphertext is invalid.") from None


@frozen
class _Signer(_KeyPair):
    """``sign`` takes a digest made with ``hashed``, or all of the message if that is ``None``."""

    USE = "signing"
    sign: Callable[[bytes], bytes] = field(repr=False)
    hashed: hashes.HashAlgorithm | None


@frozen
class _PostQuantumSigner(_Signer):
    def exported(self, form: Any) -> bytes:
        if form != _Format.NIST_PQC:
            raise _bad("The public key of this algorithm can only be had as NIST_PQC.")
        data: bytes = self.public.public_bytes_raw()
        return data


def _decrypter(bits: int, hashed: hashes.HashAlgorithm) -> _Decrypter:
    private = rsa.generate_private_key(65537, bits)
    return _Decrypter(private.public_key(), private, hashed)


def _rsa_signer(scheme: str, bits: int, hashed: hashes.HashAlgorithm) -> _Signer:
    private = rsa.generate_private_key(65537, bits)
    pss = padding.PSS(padding.MGF1(hashed), padding.PSS.DIGEST_LENGTH)
    pad: padding.AsymmetricPadding = pss if scheme == "PSS" else padding.PKCS1v15()
    sign = partial(private.sign, padding=pad, algorithm=Prehashed(hashed))
    return _Signer(private.public_key(), sign, hashed)


def _ec_signer(curve: ec.EllipticCurve, hashed: hashes.HashAlgorithm) -> _Signer:
    private = ec.generate_private_key(curve)
    sign = partial(private.sign, signature_algorithm=ec.ECDSA(Prehashed(hashed)))
    return _Signer(private.public_key(), sign, hashed)


def _ed25519_signer() -> _Signer:
    private = ed25519.Ed25519PrivateKey.generate()
    return _Signer(private.public_key(), private.sign, None)


def _ml_dsa_signer(size: int) -> _Signer:
    from cryptography.hazmat.primitives.asymmetric import mldsa  # not in every build of OpenSSL

    private = getattr(mldsa, f"MLDSA{size}PrivateKey").generate()
    return _PostQuantumSigner(private.public_key(), private.sign, None)


@frozen
class _KeyKind:
    """An algorithm: what its keys are for, and how one is made."""

    purpose: str
    make: Callable[[], _Material]
    only_in_hsm: bool = False


_HASHES: Final[Mapping[str, hashes.HashAlgorithm]] = {
    "SHA1": hashes.SHA1(),  # noqa: S303  the service has it, and so do old keys
    "SHA224": hashes.SHA224(),
    "SHA256": hashes.SHA256(),
    "SHA384": hashes.SHA384(),
    "SHA512": hashes.SHA512(),
}


def _oaep_kinds() -> dict[str, _KeyKind]:
    sizes = [(bits, name) for name in ("SHA256", "SHA1") for bits in (2048, 3072, 4096)]
    return {
        f"RSA_DECRYPT_OAEP_{bits}_{name}": _KeyKind(
            "ASYMMETRIC_DECRYPT", partial(_decrypter, bits, _HASHES[name])
        )
        for bits, name in (*sizes, (4096, "SHA512"))
    }


def _rsa_signing_kinds() -> dict[str, _KeyKind]:
    sizes = ((2048, "SHA256"), (3072, "SHA256"), (4096, "SHA256"), (4096, "SHA512"))
    return {
        f"RSA_SIGN_{scheme}_{bits}_{name}": _KeyKind(
            "ASYMMETRIC_SIGN", partial(_rsa_signer, scheme, bits, _HASHES[name])
        )
        for scheme in ("PSS", "PKCS1")
        for bits, name in sizes
    }


def _ec_signing_kinds() -> dict[str, _KeyKind]:
    p256 = partial(_ec_signer, ec.SECP256R1(), hashes.SHA256())
    p384 = partial(_ec_signer, ec.SECP384R1(), hashes.SHA384())
    k256 = partial(_ec_signer, ec.SECP256K1(), hashes.SHA256())
    return {
        "EC_SIGN_P256_SHA256": _KeyKind("ASYMMETRIC_SIGN", p256),
        "EC_SIGN_P384_SHA384": _KeyKind("ASYMMETRIC_SIGN", p384),
        "EC_SIGN_SECP256K1_SHA256": _KeyKind("ASYMMETRIC_SIGN", k256, only_in_hsm=True),
        "EC_SIGN_ED25519": _KeyKind("ASYMMETRIC_SIGN", _ed25519_signer),
    }


def _mac_kinds() -> dict[str, _KeyKind]:
    return {
        f"HMAC_{name}": _KeyKind("MAC", partial(_mac, _HASHES[name]))
        for name in ("SHA256", "SHA1", "SHA224", "SHA384", "SHA512")
    }


def _mac(hashed: hashes.HashAlgorithm) -> _Mac:
    return _Mac(os.urandom(hashed.digest_size), hashed)


#: The first of each purpose is what a key has that is made without an algorithm.
_KEY_KINDS: Final[Mapping[str, _KeyKind]] = {
    "GOOGLE_SYMMETRIC_ENCRYPTION": _KeyKind("ENCRYPT_DECRYPT", lambda: _Aes(os.urandom(32))),
    "AES_256_GCM": _KeyKind("RAW_ENCRYPT_DECRYPT", lambda: _RawAes(os.urandom(32))),
    "AES_128_GCM": _KeyKind("RAW_ENCRYPT_DECRYPT", lambda: _RawAes(os.urandom(16))),
    **_oaep_kinds(),
    **_ec_signing_kinds(),
    **_rsa_signing_kinds(),
    **{
        f"PQ_SIGN_ML_DSA_{size}": _KeyKind("ASYMMETRIC_SIGN", partial(_ml_dsa_signer, size))
        for size in (44, 65, 87)
    },
    **_mac_kinds(),
}


# --- keys and their versions ---------------------------------------------------------------------


@define(eq=False)
class _Version:
    """One version of a key; its state changes under the service's lock.

    ``mark`` is how a ciphertext names the version that made it.
    """

    key: _Key
    number: int
    material: _Material | None = field(repr=False)
    state: Any = _State.ENABLED
    mark: bytes = field(factory=lambda: os.urandom(_MARK_SIZE))
    created: datetime = field(factory=lambda: datetime.now(UTC))
    destroy_time: datetime | None = None
    destroyed_time: datetime | None = None

    @property
    def name(self) -> str:
        return f"{self.key.name}/cryptoKeyVersions/{self.number}"

    def use(self, kind: type[_M]) -> _M:
        """The material, for a purpose; refused if the state or the key's purpose forbids it."""
        if self.state != _State.ENABLED:
            raise _not_enabled(self.name, self.state.name)
        if not isinstance(self.material, kind):
            raise self.key.not_for(kind)
        return self.material

    def move(self, state: Any, *, only_from: frozenset[Any]) -> None:
        if self.state not in only_from:
            raise _precondition(
                f"{self.name} cannot become {state.name}, current state is: {self.state.name}."
            )
        self.become(state)

    def become(self, state: Any) -> None:
        """Any state from any other, except that what is destroyed stays so."""
        if self.state == _State.DESTROYED:
            raise ValueError(f"{self.name} is destroyed: it has no material to come back with")
        now = datetime.now(UTC)
        self.state = state
        self.destroy_time = now + RETENTION if state == _State.DESTROY_SCHEDULED else None
        if state == _State.DESTROYED:
            self.destroyed_time, self.material = now, None

    def message(self) -> Message:
        return resources.CryptoKeyVersion(
            name=self.name,
            state=self.state,
            protection_level=self.key.protection,
            algorithm=_Algorithm[self.key.algorithm],
            create_time=self.created,
            generate_time=self.created,
            destroy_time=self.destroy_time,
            destroy_event_time=self.destroyed_time,
        )


@define(eq=False)
class _Key:
    """A CryptoKey; versions are added under the service's lock."""

    name: str
    algorithm: str
    protection: Any
    versions: list[_Version] = field(factory=list, repr=False)
    primary: _Version | None = field(default=None, repr=False)
    created: datetime = field(factory=lambda: datetime.now(UTC))

    @property
    def purpose(self) -> str:
        return _KEY_KINDS[self.algorithm].purpose

    @property
    def in_hsm(self) -> bool:
        return bool(self.protection == _Protection.HSM)

    @property
    def is_asymmetric(self) -> bool:
        return self.purpose.startswith("ASYMMETRIC_")

    def find(self, number: str) -> _Version:
        for version in self.versions:
            if str(version.number) == number:
                return version
        raise _not_found(f"{self.name}/cryptoKeyVersions/{number}")

    def required_primary(self) -> _Version:
        """Only keys that encrypt have a primary version, and all of those do."""
        if self.primary is None:
            raise self.not_for(_Aes)
        return self.primary

    def not_for(self, kind: type[_Material]) -> Refusal:
        return _precondition(
            f"{self.name} has purpose {self.purpose}: "
            f"keys with algorithm {self.algorithm} may not be used for {kind.USE}."
        )

    def message(self) -> Message:
        return resources.CryptoKey(
            name=self.name,
            primary=self.primary.message() if self.primary else None,
            purpose=_Purpose[self.purpose],
            create_time=self.created,
            version_template=resources.CryptoKeyVersionTemplate(
                protection_level=self.protection, algorithm=_Algorithm[self.algorithm]
            ),
            destroy_scheduled_duration=RETENTION,
        )


class _Service:
    """The calls, without the line they come over: a message in, a message out, or a Refusal."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._keys: dict[str, _Key] = {}
        self._rings: dict[str, datetime] = {}

    # --- what tests arrange ----------------------------------------------------------------------

    def create_key(self, name: str, algorithm: str, protection: Any) -> None:
        """A key with one version."""
        key = _Key(name, algorithm, protection)
        version = self.add_version(key)
        if key.purpose == "ENCRYPT_DECRYPT":
            self.make_primary(version)
        with self._lock:
            if name in self._keys:
                raise ValueError(f"there is a key {name} already")
            self._keys[name] = key
            self._rings.setdefault(name.partition("/cryptoKeys/")[0], key.created)

    def add_version(self, key: _Key) -> _Version:
        material = _KEY_KINDS[key.algorithm].make()  # may take a second: not under the lock
        with self._lock:
            version = _Version(key, len(key.versions) + 1, material)
            key.versions.append(version)
        return version

    def make_primary(self, version: _Version) -> None:
        with self._lock:
            version.key.primary = version

    def set_state(self, name: str, state: Any) -> None:
        with self._lock:
            self.version(name).become(state)

    def key(self, name: str) -> _Key:
        _require_kind(name, "CryptoKey")
        with self._lock:
            try:
                return self._keys[name]
            except KeyError:
                raise _not_found(name) from None

    def version(self, name: str) -> _Version:
        _require_kind(name, "CryptoKeyVersion")
        key_name, _, number = name.partition("/cryptoKeyVersions/")
        with self._lock:
            if key_name not in self._keys:
                raise _not_found(name)
            return self._keys[key_name].find(number)

    # --- symmetric -------------------------------------------------------------------------------

    def encrypt(self, request: Message) -> Message:
        version = self._to_encrypt_with(request.name)
        aes = version.use(_Aes)
        fields = ("plaintext", "additional_authenticated_data")
        _require_sizes(version, request, *fields)
        verified = _verified(request, *fields)
        iv, sealed = aes.seal(request.plaintext, request.additional_authenticated_data)
        return service.EncryptResponse(
            name=version.name,
            protection_level=version.key.protection,
            **_summed("ciphertext", version.mark + iv + sealed),
            **verified,
        )

    def _to_encrypt_with(self, name: str) -> _Version:
        if _require_kind(name, "CryptoKey", "CryptoKeyVersion") == "CryptoKeyVersion":
            return self.version(name)
        return self.key(name).required_primary()

    def decrypt(self, request: Message) -> Message:
        key = self.key(request.name)
        primary = key.required_primary()
        _require_size("ciphertext", request.ciphertext, MAX_CIPHERTEXT_BYTES)
        bound = request.additional_authenticated_data
        _require_size("additional_authenticated_data", bound, MAX_BYTES)
        _verified(request, "ciphertext", "additional_authenticated_data")
        version, iv, sealed = _parsed(key, request.ciphertext)
        plaintext = version.use(_Aes).open(iv, sealed, bound)
        return service.DecryptResponse(
            used_primary=version is primary,
            protection_level=key.protection,
            **_summed("plaintext", plaintext),
        )

    def raw_encrypt(self, request: Message) -> Message:
        version = self.version(request.name)
        aes = version.use(_RawAes)
        if request.initialization_vector or request.initialization_vector_crc32c is not None:
            raise _bad("The field initialization_vector is not allowed with this algorithm.")
        fields = ("plaintext", "additional_authenticated_data")
        _require_sizes(version, request, *fields)
        verified = _verified(request, *fields)
        iv, sealed = aes.seal(request.plaintext, request.additional_authenticated_data)
        return service.RawEncryptResponse(
            name=version.name,
            protection_level=version.key.protection,
            tag_length=_TAG_SIZE,
            **_summed("initialization_vector", iv),
            **_summed("ciphertext", sealed),
            **verified,
        )

    def raw_decrypt(self, request: Message) -> Message:
        version = self.version(request.name)
        aes = version.use(_RawAes)
        if request.tag_length not in {0, _TAG_SIZE}:
            raise _bad(f"The field tag_length is {request.tag_length}, not {_TAG_SIZE}.")
        iv, bound = request.initialization_vector, request.additional_authenticated_data
        if len(iv) != _IV_SIZE:
            raise _bad(f"The field initialization_vector has {len(iv)} bytes, not {_IV_SIZE}.")
        _require_size("ciphertext", request.ciphertext, MAX_CIPHERTEXT_BYTES)
        _require_size("additional_authenticated_data", bound, MAX_BYTES)
        verified = _verified(
            request, "ciphertext", "additional_authenticated_data", "initialization_vector"
        )
        return service.RawDecryptResponse(
            protection_level=version.key.protection,
            **_summed("plaintext", aes.open(iv, request.ciphertext, bound)),
            **verified,
        )

    # --- asymmetric ------------------------------------------------------------------------------

    def asymmetric_decrypt(self, request: Message) -> Message:
        version = self.version(request.name)
        decrypter = version.use(_Decrypter)
        _require_size("ciphertext", request.ciphertext, MAX_CIPHERTEXT_BYTES)
        verified = _verified(request, "ciphertext")
        return service.AsymmetricDecryptResponse(
            protection_level=version.key.protection,
            **_summed("plaintext", decrypter.decrypt(request.ciphertext)),
            **verified,
        )

    def asymmetric_sign(self, request: Message) -> Message:
        version = self.version(request.name)
        signer = version.use(_Signer)
        name, digest = _digest(request)
        verified = _verified_to_sign(request, digest)
        if name:
            to_sign = _checked_digest(signer, name, digest)
        else:
            _require_message(version, request.data)
            to_sign = _represented(signer, request.data)
        return service.AsymmetricSignResponse(
            name=version.name,
            protection_level=version.key.protection,
            **_summed("signature", signer.sign(to_sign)),
            **verified,
        )

    def get_public_key(self, request: Message) -> Message:
        version = self.version(request.name)
        pair = version.use(_KeyPair)
        form = _Format(request.public_key_format)
        facts = {
            "name": version.name,
            "algorithm": _Algorithm[version.key.algorithm],
            "protection_level": version.key.protection,
        }
        if form == _Format.PUBLIC_KEY_FORMAT_UNSPECIFIED:
            pem = pair.exported(_Format.PEM)
            return resources.PublicKey(pem=pem.decode(), pem_crc32c=_crc32c(pem), **facts)
        data = pair.exported(form)
        summed = resources.ChecksummedData(data=data, crc32c_checksum=_crc32c(data))
        return resources.PublicKey(public_key_format=form, public_key=summed, **facts)

    # --- MACs and randomness ---------------------------------------------------------------------

    def mac_sign(self, request: Message) -> Message:
        version = self.version(request.name)
        mac = version.use(_Mac)
        _require_message(version, request.data)
        verified = _verified(request, "data")
        return service.MacSignResponse(
            name=version.name,
            protection_level=version.key.protection,
            **_summed("mac", mac.sign(request.data)),
            **verified,
        )

    def mac_verify(self, request: Message) -> Message:
        version = self.version(request.name)
        mac = version.use(_Mac)
        _require_message(version, request.data)
        if len(request.mac) != mac.hashed.digest_size:
            raise _bad(f"The field mac has {len(request.mac)} bytes, not {mac.hashed.digest_size}.")
        verified = _verified(request, "data", "mac")
        success = mac.verify(request.data, request.mac)
        return service.MacVerifyResponse(
            name=version.name,
            protection_level=version.key.protection,
            success=success,
            verified_success_integrity=success,
            **verified,
        )

    def generate_random_bytes(self, request: Message) -> Message:
        _require_kind(request.location, "Location")
        if not MIN_RANDOM_BYTES <= request.length_bytes <= MAX_RANDOM_BYTES:
            raise _bad(f"The field length_bytes is {MIN_RANDOM_BYTES} to {MAX_RANDOM_BYTES}.")
        if request.protection_level != _Protection.HSM:
            raise _bad("The field protection_level is HSM: nothing else gives random bytes.")
        data = os.urandom(request.length_bytes)
        return service.GenerateRandomBytesResponse(**_summed("data", data))

    # --- management ------------------------------------------------------------------------------

    def get_key_ring(self, request: Message) -> Message:
        _require_kind(request.name, "KeyRing")
        with self._lock:
            if request.name not in self._rings:
                raise _not_found(request.name)
            return resources.KeyRing(name=request.name, create_time=self._rings[request.name])

    def get_crypto_key(self, request: Message) -> Message:
        return self.key(request.name).message()

    def get_crypto_key_version(self, request: Message) -> Message:
        return self.version(request.name).message()

    def list_crypto_key_versions(self, request: Message) -> Message:
        key = self.key(request.parent)
        size, matching = _page_size(request), _matching(key, request)
        if request.page_token:
            last = _last_listed(key, request.page_token)
            matching = [version for version in matching if version.name > last]
        page = matching[:size]
        return service.ListCryptoKeyVersionsResponse(
            crypto_key_versions=[version.message() for version in page],
            next_page_token=str(page[-1].number) if len(matching) > size else "",
            total_size=0 if request.filter else len(key.versions),
        )

    def create_crypto_key_version(self, request: Message) -> Message:
        key = self.key(request.parent)
        answer = self.add_version(key).message()
        if key.is_asymmetric:  # the service takes its time, and says so
            answer.state, answer.generate_time = _State.PENDING_GENERATION, None
        return answer

    def update_crypto_key_primary_version(self, request: Message) -> Message:
        key = self.key(request.name)
        if not re.fullmatch(r"[1-9][0-9]*", request.crypto_key_version_id):
            raise _bad("The field crypto_key_version_id is not the number of a version.")
        version = key.find(request.crypto_key_version_id)
        version.use(_Aes)
        self.make_primary(version)
        return key.message()

    def update_crypto_key_version(self, request: Message) -> Message:
        version = self.version(request.crypto_key_version.name)
        state = request.crypto_key_version.state
        if list(request.update_mask.paths) != ["state"]:
            raise _bad("The field update_mask is not 'state': nothing else can be updated.")
        if state not in _SWITCHABLE:
            raise _bad(f"The field state is ENABLED or DISABLED, not {_State(state).name}.")
        return self._move(version, state, _SWITCHABLE)

    def destroy_crypto_key_version(self, request: Message) -> Message:
        version = self.version(request.name)
        return self._move(version, _State.DESTROY_SCHEDULED, _SWITCHABLE)

    def restore_crypto_key_version(self, request: Message) -> Message:
        version = self.version(request.name)
        return self._move(version, _State.DISABLED, frozenset({_State.DESTROY_SCHEDULED}))

    def _move(self, version: _Version, state: Any, only_from: frozenset[Any]) -> Message:
        with self._lock:
            version.move(state, only_from=only_from)
            return version.message()


_SWITCHABLE: Final = frozenset({_State.ENABLED, _State.DISABLED})


def _parsed(key: _Key, ciphertext: bytes) -> tuple[_Version, bytes, bytes]:
    """The version that a ciphertext names, initialization vector, and the rest of it."""
    mark, rest = ciphertext[:_MARK_SIZE], ciphertext[_MARK_SIZE:]
    for version in key.versions:
        if version.mark == mark and len(rest) >= _IV_SIZE + _TAG_SIZE:
            return version, rest[:_IV_SIZE], rest[_IV_SIZE:]
    raise _bad("Decryption failed: verify that 'name' refers to the correct CryptoKey.")


def _digest(request: Message) -> tuple[str, bytes]:
    """The digest to sign and the name of its hash; both are empty if there is none."""
    sent = service.AsymmetricSignRequest.pb(request).digest
    name: str = sent.WhichOneof("digest") or ""
    return name, getattr(sent, name) if name else b""


def _verified_to_sign(request: Message, digest: bytes) -> dict[str, bool]:
    """As ``_verified``; there is a message or a digest, and no checksum of the other."""
    message_sent = bool(request.data) or request.data_crc32c is not None
    digest_sent = "digest" in request or request.digest_crc32c is not None
    if message_sent == digest_sent:
        raise _bad("Exactly one of the fields data and digest is to be set.")
    return {
        **_verified(request, "data"),
        "verified_digest_crc32c": _is_verified("digest", digest, request.digest_crc32c),
    }


def _checked_digest(signer: _Signer, name: str, digest: bytes) -> bytes:
    if signer.hashed is None:
        raise _bad("Keys of this algorithm sign data, not a digest.")
    if name != signer.hashed.name:
        raise _bad(f"Keys of this algorithm sign a digest by {signer.hashed.name}, not by {name}.")
    if len(digest) != signer.hashed.digest_size:
        raise _bad(f"The digest has {len(digest)} bytes, not {signer.hashed.digest_size}.")
    return digest


def _represented(signer: _Signer, message: bytes) -> bytes:
    """What is signed of a message: its digest, or all of it."""
    if signer.hashed is None:
        return message
    digest = hashes.Hash(signer.hashed)
    digest.update(message)
    return digest.finalize()


def _page_size(request: Message) -> int:
    if request.page_size < 0:
        raise _bad("The field page_size is negative.")
    return min(request.page_size or PAGE, MAX_PAGE)


def _last_listed(key: _Key, token: str) -> str:
    """The name of the version that the previous page ended with."""
    for version in key.versions:
        if str(version.number) == token:
            return version.name
    raise _bad("The field page_token is not one that was given.")


def _matching(key: _Key, request: Message) -> list[_Version]:
    """The versions that a list is asked for, in no order that means anything: 1, 10, 2."""
    if request.order_by:
        raise _bad("The field order_by is not supported.")
    versions = sorted(key.versions, key=lambda version: version.name)
    if not request.filter:
        return versions
    match = _FILTER.fullmatch(request.filter)
    if match is None or match[1] not in _State.__members__:
        raise _bad("The field filter is not of the form state=ENABLED.")
    return [version for version in versions if version.state.name == match[1]]


# --- failures on cue -----------------------------------------------------------------------------


@frozen
class _Call:
    """What clients can call, and what they must be permitted for it."""

    answer: Callable[[_Service, Message], Message]
    permission: str

    @property
    def uses_key(self) -> bool:
        """Whether a disabled key does not do it."""
        return self.permission.startswith(
            ("cryptoKeyVersions.useTo", "cryptoKeyVersions.viewPublicKey")
        )


_CALLS: Final[Mapping[str, _Call]] = {
    "Encrypt": _Call(_Service.encrypt, "cryptoKeyVersions.useToEncrypt"),
    "Decrypt": _Call(_Service.decrypt, "cryptoKeyVersions.useToDecrypt"),
    "RawEncrypt": _Call(_Service.raw_encrypt, "cryptoKeyVersions.useToEncrypt"),
    "RawDecrypt": _Call(_Service.raw_decrypt, "cryptoKeyVersions.useToDecrypt"),
    "AsymmetricDecrypt": _Call(_Service.asymmetric_decrypt, "cryptoKeyVersions.useToDecrypt"),
    "AsymmetricSign": _Call(_Service.asymmetric_sign, "cryptoKeyVersions.useToSign"),
    "GetPublicKey": _Call(_Service.get_public_key, "cryptoKeyVersions.viewPublicKey"),
    "MacSign": _Call(_Service.mac_sign, "cryptoKeyVersions.useToSign"),
    "MacVerify": _Call(_Service.mac_verify, "cryptoKeyVersions.useToVerify"),
    "GenerateRandomBytes": _Call(_Service.generate_random_bytes, "locations.generateRandomBytes"),
    "GetKeyRing": _Call(_Service.get_key_ring, "keyRings.get"),
    "GetCryptoKey": _Call(_Service.get_crypto_key, "cryptoKeys.get"),
    "GetCryptoKeyVersion": _Call(_Service.get_crypto_key_version, "cryptoKeyVersions.get"),
    "ListCryptoKeyVersions": _Call(_Service.list_crypto_key_versions, "cryptoKeyVersions.list"),
    "CreateCryptoKeyVersion": _Call(_Service.create_crypto_key_version, "cryptoKeyVersions.create"),
    "UpdateCryptoKeyPrimaryVersion": _Call(
        _Service.update_crypto_key_primary_version, "cryptoKeys.update"
    ),
    "UpdateCryptoKeyVersion": _Call(_Service.update_crypto_key_version, "cryptoKeyVersions.update"),
    "DestroyCryptoKeyVersion": _Call(
        _Service.destroy_crypto_key_version, "cryptoKeyVersions.destroy"
    ),
    "RestoreCryptoKeyVersion": _Call(
        _Service.restore_crypto_key_version, "cryptoKeyVersions.restore"
    ),
}


def _subject(request: Message) -> str:
    """The name of the resource that a request is about."""
    for name in ("name", "parent", "location"):
        if name in type(request).meta.fields:
            return str(getattr(request, name))
    return str(request.crypto_key_version.name)


def _used_version(name: str) -> str:
    """A version is what is disabled, also where the key was named."""
    return f"{name}/cryptoKeyVersions/1" if _kind(name) == "CryptoKey" else name


def _refusal(order: Order, call: _Call, request: Message) -> Refusal | None:
    """The answer that takes the place of a result, if this failure is of that sort."""
    match order.failure:
        case Failure.THROTTLE:
            return _over_quota(order.seconds)
        case Failure.SERVER_ERROR:
            message = "The service is currently unavailable."
            return Refusal(grpc.StatusCode.UNAVAILABLE, message)
        case Failure.ACCESS_DENIED:
            return _denied(f"cloudkms.{call.permission}", _subject(request))
        case Failure.KEY_NOT_FOUND:
            return _not_found(_subject(request))
        case Failure.KEY_DISABLED if call.uses_key:
            return _not_enabled(_used_version(_subject(request)), "DISABLED")
        case _:
            return None


def _spoiled(order: Order, request: Message, answer: Message) -> Message:
    """A good answer made bad."""
    match order.failure:
        case Failure.MALFORMED:
            return type(answer)()
        case Failure.WRONG_KEY:
            _name_another_key(answer)
        case Failure.CORRUPT_CRC:
            _corrupt(answer)
        case Failure.KEY_DISABLED:
            _show_as_disabled(request, answer)
    return answer


def _parts(answer: Message) -> list[Message]:
    """The answer, and what it says of other resources."""
    parts = [answer]
    if isinstance(answer, resources.CryptoKey) and "primary" in answer:
        parts.append(answer.primary)
    if isinstance(answer, service.ListCryptoKeyVersionsResponse):
        parts.extend(answer.crypto_key_versions)
    return parts


def _name_another_key(answer: Message) -> None:
    """One of the same key ring that nobody asked for."""
    for part in _parts(answer):
        if "name" in type(part).meta.fields:
            part.name = re.sub(r"(?<=/cryptoKeys/)[^/]+", "another-key", part.name)


def _corrupt(answer: Message) -> None:
    """Make every checksum wrong, and what stands for one in the answer to MacVerify."""
    for name in type(answer).meta.fields:
        value = getattr(answer, name)
        if name.endswith("_crc32c") and not name.startswith("verified_") and value is not None:
            setattr(answer, name, value ^ 1)
    if isinstance(answer, resources.PublicKey) and "public_key" in answer:
        answer.public_key.crc32c_checksum ^= 1
    if isinstance(answer, service.MacVerifyResponse):
        answer.verified_success_integrity = not answer.success


def _show_as_disabled(request: Message, answer: Message) -> None:
    for part in _parts(answer):
        if isinstance(part, resources.CryptoKeyVersion):
            part.state = _State.DISABLED
    if isinstance(answer, service.ListCryptoKeyVersionsResponse) and "ENABLED" in request.filter:
        answer.crypto_key_versions.clear()


# --- the line ------------------------------------------------------------------------------------


class GcpServer(Closed):
    """Google Cloud KMS on a free loopback port: running when made, until closed.

    It takes any credentials and none.  With ``tls`` its certificate is signed by ``ca_file``.  The
    panel's operations are the calls (``Encrypt``, ``GetPublicKey``).  Under ``KEY_DISABLED``
    reading a key goes on, and shows its versions as disabled; ``WRONG_KEY`` changes answers that
    name a key, which those to the three ways to decrypt do not.
    """

    def __init__(self, *, tls: bool = False) -> None:
        self.errors: Final[list[Exception]] = []
        self._service = _Service()
        self._authority = Authority() if tls else None
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="kms-gcp")
        # Shared ports would let two servers be given the same one.
        self._server = grpc.server(self._threads, options=(("grpc.so_reuseport", 0),))
        self._server.add_generic_rpc_handlers((self._handlers(),))
        port = self._listen()
        self._server.start()
        self.gate: Final = Gate((LOOPBACK, port))
        self.panel: Final = Panel(frozenset(Failure), self.gate)
        self._line = threading.Lock()  # held while the gate is moved from here
        self._closed = False

    @property
    def endpoint(self) -> str:
        """``HOST:PORT``, what clients are to be configured with; it stays the same."""
        return "{}:{}".format(*self.gate.address)

    @property
    def ca_file(self) -> Path | None:
        """Who vouches for the server's certificate; ``None`` without TLS."""
        return self._authority.ca_file if self._authority else None

    def create_key(
        self,
        key_id: str = "app",
        *,
        purpose: str = "ENCRYPT_DECRYPT",
        algorithm: str | None = None,
        protection: str = "SOFTWARE",
        project: str = "demo",
        location: str = "europe-west1",
        ring: str = "ring",
    ) -> str:
        """Make a key with one enabled version; returns the name of the CryptoKey.

        ``algorithm`` defaults to a common one for the purpose.
        """
        name = f"projects/{project}/locations/{location}/keyRings/{ring}/cryptoKeys/{key_id}"
        if not _FORMS["CryptoKey"].fullmatch(name):
            raise ValueError(f"{name!r} is not the name of a CryptoKey")
        chosen = _chosen_algorithm(purpose, algorithm, protection)
        self._service.create_key(name, chosen, _Protection[protection])
        return name

    def add_version(self, key_name: str) -> str:
        """Add an enabled version, which a symmetric key encrypts with; returns its name."""
        key = self._service.key(key_name)
        version = self._service.add_version(key)
        if key.primary:
            self._service.make_primary(version)
        return version.name

    def set_state(self, version_name: str, state: str) -> None:
        """Move a version to ``DISABLED``, ``ENABLED``, ``DESTROY_SCHEDULED`` or ``DESTROYED``."""
        self._service.set_state(version_name, _State[state])

    def versions(self, key_name: str) -> list[str]:
        """The names of the key's versions, oldest first."""
        return [version.name for version in self._service.key(key_name).versions]

    def close(self) -> None:
        """Stop, end every connection, and leave no thread and no file behind.  Idempotent."""
        with self._line:
            self._closed = True
            self.gate.close()  # first: who is kept waiting gets no late answer
        self.panel.close()
        self._server.stop(None).wait(PATIENCE)
        self._threads.shutdown()
        if self._authority:
            self._authority.close()

    def _listen(self) -> int:
        address = f"{LOOPBACK}:0"
        if self._authority is None:
            return int(self._server.add_insecure_port(address))
        leaf = self._authority.issue()
        chain = b"".join(pem.bytes() for pem in leaf.cert_chain_pems)
        credentials = grpc.ssl_server_credentials([(leaf.private_key_pem.bytes(), chain)])
        return int(self._server.add_secure_port(address, credentials))

    def _handlers(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                operation: grpc.unary_unary_rpc_method_handler(
                    partial(self._handle, operation),
                    request_deserializer=getattr(service, f"{operation}Request").deserialize,
                    response_serializer=lambda answer: type(answer).serialize(answer),
                )
                for operation in _CALLS
            },
        )

    def _handle(self, operation: str, request: Message, context: grpc.ServicerContext) -> Message:
        try:
            return self._answer(operation, request)
        except Refusal as exc:
            refusal = exc
        except Exception as exc:  # noqa: BLE001  a bug of the server must not look like a fault
            self.errors.append(exc)
            refusal = Refusal(grpc.StatusCode.INTERNAL, "This server has a bug: see its errors.")
        context.set_trailing_metadata(refusal.metadata)
        return context.abort(refusal.code, str(refusal))  # which raises

    def _answer(self, operation: str, request: Message) -> Message:
        call = _CALLS[operation]
        order = self.panel.arrived(operation)
        if order is None:
            return call.answer(self._service, request)
        refusal = _refusal(order, call, request)
        if refusal is not None:
            raise refusal
        answer = call.answer(self._service, request)
        if order.failure is Failure.RESET:
            self._break_connections()
        return _spoiled(order, request, answer)

    def _break_connections(self) -> None:
        """All of them: gRPC has one for all calls of a client, and no way to break it.

        The port is not shut for it, else clients that are quick find it so and back off.
        """
        with self._line:
            if not self._closed:
                self.gate.reset()


def _chosen_algorithm(purpose: str, algorithm: str | None, protection: str) -> str:
    """The algorithm of a new key; raises ``ValueError`` if the service has no such keys."""
    fitting = [name for name, kind in _KEY_KINDS.items() if kind.purpose == purpose]
    if not fitting or algorithm not in {None, *fitting}:
        raise ValueError(f"there are no keys of purpose {purpose} and algorithm {algorithm} here")
    chosen = algorithm or fitting[0]
    if protection not in {"SOFTWARE", "HSM"}:
        raise ValueError(f"protection is SOFTWARE or HSM, not {protection}")
    if _KEY_KINDS[chosen].only_in_hsm and protection != "HSM":
        raise ValueError(f"keys of algorithm {chosen} are held in HSMs only")
    return chosen
