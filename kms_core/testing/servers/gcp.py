"""Google Cloud KMS on loopback: its gRPC protocol from the generated types, real cryptography.

Strict rather than complete: it has what a provider of keys asks for, checks every CRC32C it is sent
and refuses what the service refuses, in its words.  Other RPCs are answered UNIMPLEMENTED.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from types import TracebackType
from typing import Any, Final, NoReturn, Self

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
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration as ProtoDuration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from kms_core.testing.servers.authority import Authority
from kms_core.testing.servers.gate import LOOPBACK, PATIENCE, Gate
from kms_core.testing.servers.panel import Failure, Order, Panel

SERVICE: Final = "google.cloud.kms.v1.KeyManagementService"
MAX_BYTES: Final = 64 << 10  # of a plaintext, and of its associated data
MAX_HSM_BYTES: Final = 8 << 10  # of both together
MAX_CIPHERTEXT_BYTES: Final = 640 << 10
MAX_SIGNED_BYTES: Final = 64 << 10
PAGE: Final = 100

_THREADS: Final = 32
_MAGIC: Final = b"\x0a\x24\x00"
_NAME: Final = re.compile(
    r"(projects/[^/]+/locations/[^/]+/keyRings/[\w-]{1,63}/cryptoKeys/[\w-]{1,63})"
    r"(?:/cryptoKeyVersions/([1-9][0-9]*))?"
)
_RING: Final = re.compile(r"projects/[^/]+/locations/[^/]+/keyRings/[\w-]{1,63}")
_DECRYPTION_FAILED: Final = "Decryption failed: verify that 'name' refers to the correct CryptoKey."
_HASHES: Final[Mapping[str, hashes.HashAlgorithm]] = {
    "SHA1": hashes.SHA1(),  # noqa: S303  a key algorithm that the service has
    "SHA256": hashes.SHA256(),
    "SHA384": hashes.SHA384(),
    "SHA512": hashes.SHA512(),
}
_CURVES: Final[Mapping[str, ec.EllipticCurve]] = {
    "P256": ec.SECP256R1(),
    "P384": ec.SECP384R1(),
    "SECP256K1": ec.SECP256K1(),
}
_DEFAULT_ALGORITHMS: Final = {
    "ENCRYPT_DECRYPT": "GOOGLE_SYMMETRIC_ENCRYPTION",
    "ASYMMETRIC_DECRYPT": "RSA_DECRYPT_OAEP_2048_SHA256",
    "ASYMMETRIC_SIGN": "EC_SIGN_P256_SHA256",
    "MAC": "HMAC_SHA256",
    "RAW_ENCRYPT_DECRYPT": "AES_256_GCM",
}
_FAILURES: Final = frozenset(Failure)

# The generated enumerations, whose members mypy cannot see.
Purpose: Final[Any] = resources.CryptoKey.CryptoKeyPurpose
Algorithm: Final[Any] = resources.CryptoKeyVersion.CryptoKeyVersionAlgorithm
State: Final[Any] = resources.CryptoKeyVersion.CryptoKeyVersionState
Protection: Final[Any] = resources.ProtectionLevel


class _Refusal(Exception):
    """The answer is an error."""

    def __init__(
        self, code: grpc.StatusCode, message: str, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after = retry_after


@define(eq=False)
class _Version:
    number: int
    secret: Any = field(repr=False)  # bytes, or a private key
    state: str = "ENABLED"


@define(eq=False)
class _Key:
    name: str
    purpose: str
    algorithm: str
    protection: str
    versions: list[_Version] = field(factory=list)
    primary: int | None = None

    def version_name(self, version: _Version) -> str:
        return f"{self.name}/cryptoKeyVersions/{version.number}"

    def find(self, number: int) -> _Version:
        if not 1 <= number <= len(self.versions):
            raise _missing(f"CryptoKeyVersion {self.name}/cryptoKeyVersions/{number}")
        return self.versions[number - 1]


@frozen
class _Used:
    """A version that a request may use, and how it is called."""

    key: _Key
    version: _Version

    @property
    def name(self) -> str:
        return self.key.version_name(self.version)

    @property
    def hash(self) -> hashes.HashAlgorithm:
        return _HASHES[self.key.algorithm.rpartition("_")[2]]

    @property
    def protection(self) -> Any:
        return Protection[self.key.protection]


class GcpServer:
    """Google Cloud KMS on a free loopback port: running when made, and until ``close``.

    Any credentials will do.  With ``tls`` its certificate is one that ``ca_file`` vouches for.
    """

    def __init__(self, *, tls: bool = False) -> None:
        self._lock = threading.RLock()
        self._keys: dict[str, _Key] = {}
        self._authority = Authority() if tls else None
        self._threads = futures.ThreadPoolExecutor(_THREADS, thread_name_prefix="kms-gcp")
        self._server = grpc.server(self._threads, options=[("grpc.so_reuseport", 0)])
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, self._handlers()),)
        )
        port = self._listen()
        self._server.start()
        self.gate: Final = Gate((LOOPBACK, port))
        self.panel: Final = Panel(_FAILURES, self.gate)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def endpoint(self) -> str:
        """``HOST:PORT``, what to configure as the instance's ``endpoint``; it stays the same."""
        return "{}:{}".format(*self.gate.address)

    @property
    def ca_file(self) -> Any:
        """Who vouches for the server's certificate; ``None`` without TLS."""
        return None if self._authority is None else self._authority.ca_file

    def close(self) -> None:
        """Stop, end every connection and leave no thread behind.  Idempotent."""
        self.panel.close()
        self.gate.close()
        self._server.stop(0).wait(PATIENCE)
        self._threads.shutdown()
        if self._authority is not None:
            self._authority.close()

    # --- what tests prepare ----------------------------------------------------------------------

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
        """A key with one enabled version; its CryptoKey name."""
        name = f"projects/{project}/locations/{location}/keyRings/{ring}/cryptoKeys/{key_id}"
        if _NAME.fullmatch(name) is None:
            raise ValueError(f"{name!r} is not the name of a CryptoKey")
        key = _Key(name, purpose, algorithm or _DEFAULT_ALGORITHMS[purpose], protection)
        with self._lock:
            if name in self._keys:
                raise ValueError(f"there is a key {name} already")
            self._keys[name] = key
        self.add_version(name)
        return name

    def add_version(self, key_name: str) -> str:
        """A new enabled version; of symmetric keys it becomes the primary one."""
        with self._lock:
            key = self._keys[key_name]
            version = _Version(len(key.versions) + 1, _material(key.algorithm))
            key.versions.append(version)
            if key.purpose == "ENCRYPT_DECRYPT":
                key.primary = version.number
            return key.version_name(version)

    def set_state(self, version_name: str, state: str) -> None:
        """Move a version to ``ENABLED``, ``DISABLED``, ``DESTROY_SCHEDULED`` or another state."""
        self._find_version(version_name).state = State[state].name

    def versions(self, key_name: str) -> list[str]:
        """The names of all versions, oldest first."""
        key = self._keys[key_name]
        return [key.version_name(version) for version in key.versions]

    # --- transport -------------------------------------------------------------------------------

    def _listen(self) -> int:
        address = f"{LOOPBACK}:0"
        if self._authority is None:
            return int(self._server.add_insecure_port(address))
        leaf = self._authority.issue()
        chain = b"".join(pem.bytes() for pem in leaf.cert_chain_pems)
        pair = (leaf.private_key_pem.bytes(), chain)
        return int(self._server.add_secure_port(address, grpc.ssl_server_credentials((pair,))))

    def _handlers(self) -> dict[str, Any]:
        return {
            rpc: grpc.unary_unary_rpc_method_handler(
                self._served(rpc, answer),
                request_deserializer=request.deserialize,
                response_serializer=lambda response: type(response).serialize(response),
            )
            for rpc, request, answer in self._rpcs()
        }

    def _served(
        self, rpc: str, answer: Callable[[Any], Any]
    ) -> Callable[[Any, grpc.ServicerContext], Any]:
        def serve(request: Any, context: grpc.ServicerContext) -> Any:
            order = self.panel.arrived(rpc)
            try:
                if order is not None:
                    self._refuse(order, request)
                response = answer(request)
            except _Refusal as refusal:
                _abort(context, refusal)
            return response if order is None else _spoilt(response, order)

        return serve

    def _refuse(self, order: Order, request: Any) -> None:
        """Raise the error that is ordered, if it is one."""
        name = getattr(request, "name", "") or getattr(request, "parent", "")
        code = grpc.StatusCode
        match order.failure:
            case Failure.RESET:
                self.gate.cut()
                self.gate.restore()
                raise _Refusal(code.UNAVAILABLE, "nobody reads this")
            case Failure.THROTTLE:
                message = "Quota exceeded for quota metric 'Cryptographic requests'."
                raise _Refusal(code.RESOURCE_EXHAUSTED, message, order.seconds)
            case Failure.SERVER_ERROR:
                raise _Refusal(code.UNAVAILABLE, "The service is currently unavailable.")
            case Failure.ACCESS_DENIED:
                message = (
                    f"Permission 'cloudkms.cryptoKeyVersions.use' denied on resource '{name}' "
                    "(or it may not exist)."
                )
                raise _Refusal(code.PERMISSION_DENIED, message)
            case Failure.KEY_DISABLED:
                raise _not_enabled(name, "DISABLED")
            case Failure.KEY_NOT_FOUND:
                raise _missing(f"CryptoKey {name}")

    # --- requests --------------------------------------------------------------------------------

    def _rpcs(self) -> Iterator[tuple[str, Any, Callable[[Any], Any]]]:
        yield "Encrypt", service.EncryptRequest, self._encrypt
        yield "Decrypt", service.DecryptRequest, self._decrypt
        yield "RawEncrypt", service.RawEncryptRequest, self._raw_encrypt
        yield "RawDecrypt", service.RawDecryptRequest, self._raw_decrypt
        yield "AsymmetricDecrypt", service.AsymmetricDecryptRequest, self._asymmetric_decrypt
        yield "AsymmetricSign", service.AsymmetricSignRequest, self._asymmetric_sign
        yield "GetPublicKey", service.GetPublicKeyRequest, self._get_public_key
        yield "MacSign", service.MacSignRequest, self._mac_sign
        yield "MacVerify", service.MacVerifyRequest, self._mac_verify
        yield "GenerateRandomBytes", service.GenerateRandomBytesRequest, self._random
        yield "GetKeyRing", service.GetKeyRingRequest, self._get_key_ring
        yield "GetCryptoKey", service.GetCryptoKeyRequest, self._get_key
        yield "GetCryptoKeyVersion", service.GetCryptoKeyVersionRequest, self._get_version
        yield "ListCryptoKeyVersions", service.ListCryptoKeyVersionsRequest, self._list_versions
        yield "CreateCryptoKeyVersion", service.CreateCryptoKeyVersionRequest, self._create_version
        yield (
            "UpdateCryptoKeyPrimaryVersion",
            service.UpdateCryptoKeyPrimaryVersionRequest,
            self._update_primary,
        )
        yield "UpdateCryptoKeyVersion", service.UpdateCryptoKeyVersionRequest, self._update_version
        yield (
            "DestroyCryptoKeyVersion",
            service.DestroyCryptoKeyVersionRequest,
            lambda request: self._move(request, "DESTROY_SCHEDULED"),
        )
        yield (
            "RestoreCryptoKeyVersion",
            service.RestoreCryptoKeyVersionRequest,
            lambda request: self._move(request, "DISABLED"),
        )

    def _encrypt(self, request: Any) -> Any:
        used = self._primary_or_named(request.name)
        plaintext = _checked(request, "plaintext")
        aad = _checked(request, "additional_authenticated_data")
        _check_sizes(used.key, plaintext, aad)
        iv = os.urandom(12)
        bound = _bound(used, aad)
        blob = _MAGIC + used.version.number.to_bytes(4, "big") + iv
        blob += AESGCM(used.version.secret).encrypt(iv, plaintext, bound)
        return service.EncryptResponse(
            name=used.name,
            ciphertext=blob,
            ciphertext_crc32c=_crc(blob),
            verified_plaintext_crc32c=request.plaintext_crc32c is not None,
            verified_additional_authenticated_data_crc32c=(
                request.additional_authenticated_data_crc32c is not None
            ),
            protection_level=used.protection,
        )

    def _decrypt(self, request: Any) -> Any:
        key, number = self._find(request.name)
        if number is not None:
            raise _wrong(f"Resource name {request.name} is not the name of a CryptoKey.")
        _check_purpose(key, "ENCRYPT_DECRYPT")
        blob = _checked(request, "ciphertext")
        aad = _checked(request, "additional_authenticated_data")
        if not blob.startswith(_MAGIC) or len(blob) > MAX_CIPHERTEXT_BYTES or len(blob) < 35:
            raise _wrong(_DECRYPTION_FAILED)
        number = int.from_bytes(blob[3:7], "big")
        if not 1 <= number <= len(key.versions):
            raise _wrong(_DECRYPTION_FAILED)
        used = _Used(key, key.find(number))
        try:
            plaintext = AESGCM(used.version.secret).decrypt(
                blob[7:19], blob[19:], _bound(used, aad)
            )
        except InvalidTag:
            raise _wrong(_DECRYPTION_FAILED) from None
        _check_enabled(used)
        return service.DecryptResponse(
            plaintext=plaintext,
            plaintext_crc32c=_crc(plaintext),
            used_primary=number == key.primary,
            protection_level=used.protection,
        )

    def _raw_encrypt(self, request: Any) -> Any:
        used = self._named(request.name, "RAW_ENCRYPT_DECRYPT")
        plaintext = _checked(request, "plaintext")
        aad = _checked(request, "additional_authenticated_data")
        _check_sizes(used.key, plaintext, aad)
        if request.initialization_vector:
            raise _wrong("An initialization vector may not be given for this algorithm.")
        iv = os.urandom(12)
        blob = AESGCM(used.version.secret).encrypt(iv, plaintext, aad)
        return service.RawEncryptResponse(
            name=used.name,
            ciphertext=blob,
            ciphertext_crc32c=_crc(blob),
            initialization_vector=iv,
            initialization_vector_crc32c=_crc(iv),
            tag_length=16,
            verified_plaintext_crc32c=request.plaintext_crc32c is not None,
            verified_additional_authenticated_data_crc32c=(
                request.additional_authenticated_data_crc32c is not None
            ),
            protection_level=used.protection,
        )

    def _raw_decrypt(self, request: Any) -> Any:
        used = self._named(request.name, "RAW_ENCRYPT_DECRYPT")
        blob, iv = _checked(request, "ciphertext"), _checked(request, "initialization_vector")
        aad = _checked(request, "additional_authenticated_data")
        try:
            plaintext = AESGCM(used.version.secret).decrypt(iv, blob, aad)
        except (InvalidTag, ValueError):
            raise _wrong("Decryption failed: the ciphertext is invalid.") from None
        return service.RawDecryptResponse(
            plaintext=plaintext,
            plaintext_crc32c=_crc(plaintext),
            verified_ciphertext_crc32c=request.ciphertext_crc32c is not None,
            verified_initialization_vector_crc32c=(
                request.initialization_vector_crc32c is not None
            ),
            verified_additional_authenticated_data_crc32c=(
                request.additional_authenticated_data_crc32c is not None
            ),
            protection_level=used.protection,
        )

    def _asymmetric_decrypt(self, request: Any) -> Any:
        used = self._named(request.name, "ASYMMETRIC_DECRYPT")
        blob = _checked(request, "ciphertext")
        oaep = padding.OAEP(padding.MGF1(used.hash), used.hash, label=None)
        try:
            plaintext = used.version.secret.decrypt(blob, oaep)
        except ValueError:
            raise _wrong("Decryption failed: the ciphertext is invalid.") from None
        return service.AsymmetricDecryptResponse(
            plaintext=plaintext,
            plaintext_crc32c=_crc(plaintext),
            verified_ciphertext_crc32c=request.ciphertext_crc32c is not None,
            protection_level=used.protection,
        )

    def _asymmetric_sign(self, request: Any) -> Any:
        used = self._named(request.name, "ASYMMETRIC_SIGN")
        kind = request.digest._pb.WhichOneof("digest")  # noqa: SLF001  proto-plus has no public way
        data = _checked(request, "data")
        digest = b"" if kind is None else bytes(getattr(request.digest, kind))
        expected = request.digest_crc32c
        if expected is not None and expected != _crc(digest):
            raise _wrong("The checksum in field digest_crc32c did not match the data in digest.")
        if (kind is None) == (not request.data and request.data_crc32c is None):
            raise _wrong("Exactly one of digest and data must be given.")
        signature = _signature(used, data, kind, digest)
        return service.AsymmetricSignResponse(
            name=used.name,
            signature=signature,
            signature_crc32c=_crc(signature),
            verified_digest_crc32c=request.digest_crc32c is not None,
            verified_data_crc32c=request.data_crc32c is not None,
            protection_level=used.protection,
        )

    def _get_public_key(self, request: Any) -> Any:
        key, number = self._find(request.name)
        if number is None:
            raise _wrong(f"Resource name {request.name} is not the name of a CryptoKeyVersion.")
        used = _Used(key, key.find(number))
        if key.purpose not in {"ASYMMETRIC_SIGN", "ASYMMETRIC_DECRYPT"}:
            raise _wrong(f"{used.name} has no public key.")
        _check_enabled(used)
        answer = resources.PublicKey(
            name=used.name,
            algorithm=Algorithm[key.algorithm],
            protection_level=used.protection,
            public_key_format=request.public_key_format,
        )
        _add_public_key(answer, used, request.public_key_format.name)
        return answer

    def _mac_sign(self, request: Any) -> Any:
        used = self._named(request.name, "MAC")
        data = _checked(request, "data")
        _check_signed(data)
        mac = hmac.HMAC(used.version.secret, used.hash)
        mac.update(data)
        made = mac.finalize()
        return service.MacSignResponse(
            name=used.name,
            mac=made,
            mac_crc32c=_crc(made),
            verified_data_crc32c=request.data_crc32c is not None,
            protection_level=used.protection,
        )

    def _mac_verify(self, request: Any) -> Any:
        used = self._named(request.name, "MAC")
        data, claimed = _checked(request, "data"), _checked(request, "mac")
        _check_signed(data)
        mac = hmac.HMAC(used.version.secret, used.hash)
        mac.update(data)
        good = True
        try:
            mac.verify(claimed)
        except InvalidSignature:
            good = False
        return service.MacVerifyResponse(
            name=used.name,
            success=good,
            verified_data_crc32c=request.data_crc32c is not None,
            verified_mac_crc32c=request.mac_crc32c is not None,
            verified_success_integrity=good,
            protection_level=used.protection,
        )

    def _random(self, request: Any) -> Any:
        if not 8 <= request.length_bytes <= 1024:
            raise _wrong("length_bytes must be between 8 and 1024.")
        if request.protection_level != Protection.HSM:
            raise _wrong("protection_level must be HSM.")
        data = os.urandom(request.length_bytes)
        return service.GenerateRandomBytesResponse(data=data, data_crc32c=_crc(data))

    def _get_key_ring(self, request: Any) -> Any:
        if not any(name.startswith(f"{request.name}/") for name in self._keys):
            raise _missing(f"KeyRing {request.name}")
        return resources.KeyRing(name=request.name)

    def _get_key(self, request: Any) -> Any:
        key, number = self._find(request.name)
        if number is not None:
            raise _wrong(f"Resource name {request.name} is not the name of a CryptoKey.")
        return self._described(key)

    def _described(self, key: _Key) -> Any:
        primary = None if key.primary is None else key.find(key.primary)
        return resources.CryptoKey(
            name=key.name,
            purpose=Purpose[key.purpose],
            primary=None if primary is None else _version_message(key, primary),
            version_template=resources.CryptoKeyVersionTemplate(
                algorithm=Algorithm[key.algorithm], protection_level=Protection[key.protection]
            ),
        )

    def _get_version(self, request: Any) -> Any:
        key, number = self._find(request.name)
        if number is None:
            raise _wrong(f"Resource name {request.name} is not the name of a CryptoKeyVersion.")
        return _version_message(key, key.find(number))

    def _list_versions(self, request: Any) -> Any:
        key, _ = self._find(request.parent)
        shown = key.versions
        if request.filter:
            wanted = re.fullmatch(r"\s*state\s*=\s*(\w+)\s*", request.filter)
            if wanted is None:
                raise _wrong(f"Invalid filter {request.filter!r}.")
            shown = [version for version in shown if version.state == wanted[1]]
        begin = int(request.page_token or 0)
        size = min(request.page_size or PAGE, PAGE)
        end = begin + size
        return service.ListCryptoKeyVersionsResponse(
            crypto_key_versions=[_version_message(key, each) for each in shown[begin:end]],
            next_page_token=str(end) if end < len(shown) else "",
            total_size=len(shown),
        )

    def _create_version(self, request: Any) -> Any:
        key, _ = self._find(request.parent)
        with self._lock:
            version = _Version(len(key.versions) + 1, _material(key.algorithm))
            key.versions.append(version)
        return _version_message(key, version)

    def _update_primary(self, request: Any) -> Any:
        key, _ = self._find(request.name)
        if key.purpose != "ENCRYPT_DECRYPT":
            raise _wrong(f"{key.name} has no primary version.")
        if not request.crypto_key_version_id.isdecimal():
            raise _wrong("crypto_key_version_id is not a number.")
        version = key.find(int(request.crypto_key_version_id))
        _check_enabled(_Used(key, version))
        key.primary = version.number
        return self._described(key)

    def _update_version(self, request: Any) -> Any:
        wanted = request.crypto_key_version
        if list(request.update_mask.paths) != ["state"] or wanted.state.name not in {
            "ENABLED",
            "DISABLED",
        }:
            raise _wrong("Only the state can be updated, to ENABLED or DISABLED.")
        version = self._find_version(wanted.name)
        if version.state not in {"ENABLED", "DISABLED"}:
            raise _not_enabled(wanted.name, version.state)
        version.state = wanted.state.name
        return _version_message(self._find(wanted.name)[0], version)

    def _move(self, request: Any, state: str) -> Any:
        version = self._find_version(request.name)
        expected = {"ENABLED", "DISABLED"} if state != "DISABLED" else {"DESTROY_SCHEDULED"}
        if version.state not in expected:
            raise _not_enabled(request.name, version.state)
        version.state = state
        return _version_message(self._find(request.name)[0], version)

    # --- names -----------------------------------------------------------------------------------

    def _find(self, name: str) -> tuple[_Key, int | None]:
        match = _NAME.fullmatch(name)
        if match is None:
            raise _wrong(f"Resource name {name!r} is malformed.")
        key = self._keys.get(match[1])
        if key is None:
            raise _missing(f"CryptoKey {match[1]}")
        return key, None if match[2] is None else int(match[2])

    def _find_version(self, name: str) -> _Version:
        key, number = self._find(name)
        if number is None:
            raise _wrong(f"Resource name {name} is not the name of a CryptoKeyVersion.")
        return key.find(number)

    def _primary_or_named(self, name: str) -> _Used:
        key, number = self._find(name)
        _check_purpose(key, "ENCRYPT_DECRYPT")
        used = _Used(key, key.find(number or key.primary or 0))
        _check_enabled(used)
        return used

    def _named(self, name: str, purpose: str) -> _Used:
        key, number = self._find(name)
        if number is None:
            raise _wrong(f"Resource name {name} is not the name of a CryptoKeyVersion.")
        _check_purpose(key, purpose)
        used = _Used(key, key.find(number))
        _check_enabled(used)
        return used


# --- keys and signatures -------------------------------------------------------------------------


def _material(algorithm: str) -> Any:
    parts = algorithm.split("_")
    if algorithm.startswith(("RSA_DECRYPT_OAEP_", "RSA_SIGN_")):
        size = next(int(part) for part in parts if part.isdecimal())
        return rsa.generate_private_key(65537, size)
    if algorithm == "EC_SIGN_ED25519":
        return ed25519.Ed25519PrivateKey.generate()
    if algorithm.startswith("EC_SIGN_"):
        return ec.generate_private_key(_CURVES[parts[2]])
    if algorithm.startswith("PQ_SIGN_ML_DSA_"):
        return _ml_dsa(parts[4])
    if algorithm in {"GOOGLE_SYMMETRIC_ENCRYPTION", "AES_256_GCM"}:
        return os.urandom(32)
    if algorithm in {"HMAC_SHA256", "HMAC_SHA384", "HMAC_SHA512"}:
        return os.urandom(_HASHES[parts[1]].digest_size)
    raise ValueError(f"this server has no algorithm {algorithm}")


def _ml_dsa(size: str) -> Any:
    from cryptography.hazmat.primitives.asymmetric import mldsa

    return getattr(mldsa, f"MLDSA{size}PrivateKey").generate()


def _signature(used: _Used, data: bytes, kind: str | None, digest: bytes) -> bytes:
    key, algorithm = used.version.secret, used.key.algorithm
    if algorithm == "EC_SIGN_ED25519" or algorithm.startswith("PQ_SIGN_"):
        if kind is not None:
            raise _wrong(f"{used.name} signs data, not a digest.")
        _check_signed(data)
        return bytes(key.sign(data))
    if kind is None:
        _check_signed(data)
        hashed = hashes.Hash(used.hash)
        hashed.update(data)
        digest = hashed.finalize()
    elif kind != used.hash.name or len(digest) != used.hash.digest_size:
        raise _wrong(f"The digest does not fit {algorithm}.")
    prehashed = Prehashed(used.hash)
    if algorithm.startswith("EC_SIGN_"):
        return bytes(key.sign(digest, ec.ECDSA(prehashed)))
    if "_PSS_" in algorithm:
        pss = padding.PSS(padding.MGF1(used.hash), used.hash.digest_size)
        return bytes(key.sign(digest, pss, prehashed))
    return bytes(key.sign(digest, padding.PKCS1v15(), prehashed))


def _add_public_key(answer: Any, used: _Used, wanted: str) -> None:
    public = used.version.secret.public_key()
    if used.key.algorithm.startswith("PQ_SIGN_"):
        if wanted != "NIST_PQC":
            raise _wrong("public_key_format must be NIST_PQC for this algorithm.")
        _add_data(answer, public.public_bytes_raw())
    elif wanted == "DER":
        _add_data(answer, public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
    elif wanted in {"PEM", "PUBLIC_KEY_FORMAT_UNSPECIFIED"}:
        pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        answer.pem, answer.pem_crc32c = pem.decode("ascii"), _crc(pem)
    else:
        raise _wrong(f"public_key_format {wanted} does not fit this algorithm.")


def _add_data(answer: Any, data: bytes) -> None:
    answer.public_key = resources.ChecksummedData(data=data, crc32c_checksum=_crc(data))


def _version_message(key: _Key, version: _Version) -> Any:
    return resources.CryptoKeyVersion(
        name=key.version_name(version),
        state=State[version.state],
        algorithm=Algorithm[key.algorithm],
        protection_level=Protection[key.protection],
    )


# --- checks and errors ---------------------------------------------------------------------------


def _crc(data: bytes) -> int:
    return int(google_crc32c.value(data))


def _checked(request: Any, name: str) -> bytes:
    """The field's bytes, which its checksum must fit if there is one."""
    data, expected = bytes(getattr(request, name)), getattr(request, f"{name}_crc32c")
    if expected is not None and expected != _crc(data):
        raise _wrong(f"The checksum in field {name}_crc32c did not match the data in {name}.")
    return data


def _bound(used: _Used, aad: bytes) -> bytes:
    return f"{used.name}\0".encode() + aad


def _check_sizes(key: _Key, plaintext: bytes, aad: bytes) -> None:
    if key.protection == "HSM":
        if len(plaintext) + len(aad) > MAX_HSM_BYTES:
            raise _wrong(f"plaintext and AAD together must be <= {MAX_HSM_BYTES} bytes.")
    elif len(plaintext) > MAX_BYTES or len(aad) > MAX_BYTES:
        raise _wrong(f"plaintext and AAD must be <= {MAX_BYTES} bytes.")


def _check_signed(data: bytes) -> None:
    if len(data) > MAX_SIGNED_BYTES:
        raise _wrong(f"data must be <= {MAX_SIGNED_BYTES} bytes.")


def _check_purpose(key: _Key, purpose: str) -> None:
    if key.purpose != purpose:
        message = f"{key.name} has purpose {key.purpose}, which may not be used for {purpose}."
        raise _Refusal(grpc.StatusCode.FAILED_PRECONDITION, message)


def _check_enabled(used: _Used) -> None:
    if used.version.state != "ENABLED":
        raise _not_enabled(used.name, used.version.state)


def _not_enabled(name: str, state: str) -> _Refusal:
    message = f"{name} is not enabled, current state is: {state}."
    return _Refusal(grpc.StatusCode.FAILED_PRECONDITION, message)


def _missing(what: str) -> _Refusal:
    return _Refusal(grpc.StatusCode.NOT_FOUND, f"{what} not found.")


def _wrong(message: str) -> _Refusal:
    return _Refusal(grpc.StatusCode.INVALID_ARGUMENT, message)


def _abort(context: grpc.ServicerContext, refusal: _Refusal) -> NoReturn:
    if refusal.retry_after is not None:
        delay = ProtoDuration()
        delay.FromMilliseconds(int(refusal.retry_after * 1000))
        detail = AnyMessage()
        detail.Pack(RetryInfo(retry_delay=delay))
        status = Status(code=refusal.code.value[0], message=refusal.message, details=[detail])
        context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.abort(refusal.code, refusal.message)
    raise refusal  # not reached: aborting raises


def _spoilt(response: Any, order: Order) -> Any:
    """A good answer made bad as ordered, where it can be."""
    match order.failure:
        case Failure.MALFORMED:
            return type(response)()
        case Failure.WRONG_KEY:
            with contextlib.suppress(AttributeError):  # some answers name no key
                response.name = response.name.replace("/cryptoKeys/", "/cryptoKeys/other-")
        case Failure.CORRUPT_CRC:
            _corrupt(response)
    return response


def _corrupt(response: Any) -> None:
    for name in type(response).meta.fields:
        value = getattr(response, name)
        if name.endswith("_crc32c") and not name.startswith("verified_") and value is not None:
            setattr(response, name, value ^ 1)
    if isinstance(response, resources.PublicKey) and response.public_key.data:
        response.public_key.crc32c_checksum ^= 1
