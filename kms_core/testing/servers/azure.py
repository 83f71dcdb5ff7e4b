"""Azure Key Vault and Managed HSM on loopback: their protocol over TLS, with real cryptography.

Strict rather than complete: it has what the client library and a provider of keys ask for, and it
refuses what the service refuses.  Where the service's own leniency is not documented, it refuses.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import secrets
import threading
import time
import uuid
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Protocol, TypeAlias
from urllib.parse import parse_qs, urlencode, urlsplit

from attrs import define, evolve, field, frozen
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes, hmac, keywrap
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import (
    Prehashed,
    decode_dss_signature,
    encode_dss_signature,
)
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kms_core.testing.servers.authority import Authority
from kms_core.testing.servers.closing import Closed
from kms_core.testing.servers.gate import Gate
from kms_core.testing.servers.http import HttpService, Request, Response
from kms_core.testing.servers.panel import Failure, Order, Panel

TENANT: Final = "72f988bf-0000-4000-8000-2d7cd011db47"
API_VERSIONS: Final = frozenset(
    {"2016-10-01", "7.0", "7.1", "7.2", "7.3", "7.4", "7.5", "7.6", "2025-07-01"}
)
PAGE: Final = 25  # versions in one answer, as the service has it
MAX_RANDOM_BYTES: Final = 128
RETENTION_DAYS: Final = 90

_RSA_SIZES: Final = (2048, 3072, 4096)
_OCT_BITS: Final = 256
_TAG_SIZE: Final = 16
_IV_SIZE: Final = 12
_NAME: Final = re.compile(r"[0-9a-zA-Z-]{1,127}")
_BASE64URL: Final = re.compile(r"[A-Za-z0-9_-]*")

Moment: TypeAlias = datetime | float
Json: TypeAlias = dict[str, Any]

#: What a path calls an operation, and what ``key_ops`` call it.
_KEY_OPS: Final = {
    "encrypt": "encrypt",
    "decrypt": "decrypt",
    "sign": "sign",
    "verify": "verify",
    "wrapkey": "wrapKey",
    "unwrapkey": "unwrapKey",
}
#: What an expired key, and one that is not valid yet, still does.
_AT_ANY_TIME: Final = frozenset({"decrypt", "unwrapkey", "verify"})

_ROUTES: Final = tuple(
    (method, re.compile(path), operation)
    for method, path, operation in (
        ("GET", r"/keys/(?P<name>[^/]+)/versions", "versions"),
        ("GET", r"/keys/(?P<name>[^/]+)(?:/(?P<version>[^/]*))?", "get"),
        ("GET", r"/deletedkeys/(?P<name>[^/]+)", "deleted"),
        ("POST", r"/keys/(?P<name>[^/]+)/create", "create"),
        ("POST", r"/keys/(?P<name>[^/]+)/rotate", "rotate"),
        ("PATCH", r"/keys/(?P<name>[^/]+)(?:/(?P<version>[^/]*))?", "update"),
        ("DELETE", r"/keys/(?P<name>[^/]+)", "delete"),
        ("POST", r"/rng", "rng"),
        *(
            ("POST", rf"/keys/(?P<name>[^/]+)/(?P<version>[^/]*)/{operation}", operation)
            for operation in _KEY_OPS
        ),
    )
)

_HASH_OF: Final[Mapping[str, hashes.HashAlgorithm]] = {
    **dict.fromkeys(("RS256", "PS256", "ES256", "ES256K", "HS256"), hashes.SHA256()),
    **dict.fromkeys(("RS384", "PS384", "ES384", "HS384"), hashes.SHA384()),
    **dict.fromkeys(("RS512", "PS512", "ES512", "HS512"), hashes.SHA512()),
}
_RSA_SIGNATURES: Final = frozenset(name for name in _HASH_OF if name[:2] in {"RS", "PS"})
_MACS: Final = frozenset(name for name in _HASH_OF if name.startswith("HS"))
_CURVES: Final[Mapping[str, ec.EllipticCurve]] = {
    "P-256": ec.SECP256R1(),
    "P-256K": ec.SECP256K1(),
    "P-384": ec.SECP384R1(),
    "P-521": ec.SECP521R1(),
}
_SIGNATURE_OF_CURVE: Final = {
    "P-256": "ES256",
    "P-256K": "ES256K",
    "P-384": "ES384",
    "P-521": "ES512",
}
_OAEP: Final = {
    name: padding.OAEP(padding.MGF1(algorithm), algorithm, label=None)
    for name, algorithm in (
        ("RSA-OAEP", hashes.SHA1()),  # noqa: S303  the service has it, and so do old keys
        ("RSA-OAEP-256", hashes.SHA256()),
    )
}


class Refusal(Exception):
    """What the service answers instead of a result."""

    def __init__(self, status: int, code: str, message: str, inner: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.inner = inner


def _bad(message: str) -> Refusal:
    return Refusal(400, "BadParameter", message)


def _forbidden(message: str, inner: str | None = None) -> Refusal:
    return Refusal(403, "Forbidden", message, inner)


def _key_not_found(name: str) -> Refusal:
    return Refusal(404, "KeyNotFound", f"A key with (name/id) {name} was not found in this vault.")


def _key_disabled(operation: str) -> Refusal:
    return _forbidden(f"Operation {operation} is not allowed on a disabled key.", "KeyDisabled")


@frozen
class _Parameters:
    """The JSON object a request carries."""

    members: Mapping[str, Any] = field(repr=False)

    @classmethod
    def of(cls, body: bytes) -> _Parameters:
        try:
            members = json.loads(body)
        except ValueError:
            raise _bad("The request body is not JSON.") from None
        if not isinstance(members, dict):
            raise _bad("The request body is not a JSON object.")
        return cls(members)

    def optional(self, name: str, kind: type) -> Any:
        """The member, or None.  Its type is checked: JSON decides what it is, not the caller."""
        value = self.members.get(name)
        if value is not None and type(value) is not kind:
            raise _bad(f"Property '{name}' has the wrong type.")
        return value

    def text(self, name: str) -> str:
        value: str | None = self.optional(name, str)
        if not value:
            raise _bad(f"Property '{name}' is required.")
        return value

    def octets(self, name: str) -> bytes:
        return _decoded(name, self.text(name))

    def optional_octets(self, name: str) -> bytes | None:
        value: str | None = self.optional(name, str)
        return None if value is None else _decoded(name, value)

    def only(self, *names: str) -> None:
        """Refuse what belongs to other algorithms."""
        for name in ("iv", "aad", "tag"):
            if name not in names and self.members.get(name) is not None:
                raise _bad(f"Property '{name}' is not allowed with this algorithm.")


_NOTHING_ASKED: Final = _Parameters({})


# --- key material --------------------------------------------------------------------------------

_Deed: TypeAlias = Callable[[str, _Parameters], Json]


class _Material(Protocol):
    """The secret of one version.  ``does`` has everything such a key can do."""

    @property
    def jwk(self) -> Json: ...

    @property
    def does(self) -> Mapping[str, _Deed]: ...


@frozen
class _Rsa:
    private: rsa.RSAPrivateKey = field(repr=False)

    @property
    def jwk(self) -> Json:
        numbers = self.private.public_key().public_numbers()
        return {"n": _encoded_number(numbers.n), "e": _encoded_number(numbers.e)}

    @property
    def does(self) -> Mapping[str, _Deed]:
        return {
            "encrypt": self._encrypt,
            "decrypt": self._decrypt,
            "sign": self._sign,
            "verify": self._verify,
            "wrapkey": self._encrypt,
            "unwrapkey": self._decrypt,
        }

    def _encrypt(self, algorithm: str, asked: _Parameters) -> Json:
        _require(algorithm, _OAEP)
        asked.only()
        try:
            block = self.private.public_key().encrypt(asked.octets("value"), _OAEP[algorithm])
        except ValueError:
            raise _bad("The value is too long for this key and algorithm.") from None
        return {"value": _encoded(block)}

    def _decrypt(self, algorithm: str, asked: _Parameters) -> Json:
        _require(algorithm, _OAEP)
        asked.only()
        try:
            value = self.private.decrypt(asked.octets("value"), _OAEP[algorithm])
        except ValueError:
            raise _bad("Decryption failed: error occurred while decoding OAEP padding.") from None
        return {"value": _encoded(value)}

    def _sign(self, algorithm: str, asked: _Parameters) -> Json:
        pad, hashed = self._scheme(algorithm)
        digest = _digest(algorithm, asked, "value")
        return {"value": _encoded(self.private.sign(digest, pad, hashed))}

    def _verify(self, algorithm: str, asked: _Parameters) -> Json:
        pad, hashed = self._scheme(algorithm)
        digest = _digest(algorithm, asked, "digest")
        try:
            self.private.public_key().verify(asked.octets("value"), digest, pad, hashed)
        except InvalidSignature:
            return {"value": False}
        return {"value": True}

    def _scheme(self, algorithm: str) -> tuple[padding.AsymmetricPadding, Prehashed]:
        _require(algorithm, _RSA_SIGNATURES)
        hashed = _HASH_OF[algorithm]
        pss = padding.PSS(padding.MGF1(hashed), padding.PSS.DIGEST_LENGTH)
        pad = pss if algorithm.startswith("PS") else padding.PKCS1v15()
        return pad, Prehashed(hashed)


@frozen
class _Ec:
    curve: str
    private: ec.EllipticCurvePrivateKey = field(repr=False)

    @property
    def jwk(self) -> Json:
        numbers = self.private.public_key().public_numbers()
        return {
            "crv": self.curve,
            "x": _encoded(numbers.x.to_bytes(self._width)),
            "y": _encoded(numbers.y.to_bytes(self._width)),
        }

    @property
    def does(self) -> Mapping[str, _Deed]:
        return {"sign": self._sign, "verify": self._verify}

    @property
    def _width(self) -> int:
        return (self.private.key_size + 7) // 8

    def _sign(self, algorithm: str, asked: _Parameters) -> Json:
        scheme = self._scheme(algorithm)
        halves = decode_dss_signature(self.private.sign(_digest(algorithm, asked, "value"), scheme))
        return {"value": _encoded(b"".join(n.to_bytes(self._width) for n in halves))}

    def _verify(self, algorithm: str, asked: _Parameters) -> Json:
        scheme = self._scheme(algorithm)
        digest = _digest(algorithm, asked, "digest")
        signature = asked.octets("value")
        if len(signature) != 2 * self._width:
            return {"value": False}
        r, s = signature[: self._width], signature[self._width :]
        der = encode_dss_signature(int.from_bytes(r), int.from_bytes(s))
        try:
            self.private.public_key().verify(der, digest, scheme)
        except InvalidSignature:
            return {"value": False}
        return {"value": True}

    def _scheme(self, algorithm: str) -> ec.ECDSA:
        _require(algorithm, {_SIGNATURE_OF_CURVE[self.curve]})
        return ec.ECDSA(Prehashed(_HASH_OF[algorithm]))


@frozen
class _Oct:
    secret: bytes = field(repr=False)

    @property
    def jwk(self) -> Json:
        """Nothing: a Managed HSM does not show its symmetric keys."""
        return {}

    @property
    def does(self) -> Mapping[str, _Deed]:
        return {
            "encrypt": self._encrypt,
            "decrypt": self._decrypt,
            "sign": self._sign,
            "verify": self._verify,
            "wrapkey": self._wrap,
            "unwrapkey": self._unwrap,
        }

    def _encrypt(self, algorithm: str, asked: _Parameters) -> Json:
        _require(algorithm, {"A256GCM"})
        asked.only("aad")  # the service makes the nonce, so that none is ever used twice
        iv, aad = os.urandom(_IV_SIZE), asked.optional_octets("aad")
        sealed = AESGCM(self.secret).encrypt(iv, asked.octets("value"), aad)
        answer = {
            "value": _encoded(sealed[:-_TAG_SIZE]),
            "iv": _encoded(iv),
            "tag": _encoded(sealed[-_TAG_SIZE:]),
        }
        return answer if aad is None else {**answer, "aad": _encoded(aad)}

    def _decrypt(self, algorithm: str, asked: _Parameters) -> Json:
        _require(algorithm, {"A256GCM"})
        iv, tag = asked.octets("iv"), asked.octets("tag")
        if (len(iv), len(tag)) != (_IV_SIZE, _TAG_SIZE):
            raise _bad(f"{algorithm} requires {_IV_SIZE} bytes of iv and {_TAG_SIZE} of tag.")
        sealed, aad = asked.octets("value") + tag, asked.optional_octets("aad")
        try:
            value = AESGCM(self.secret).decrypt(iv, sealed, aad)
        except InvalidTag:
            raise _bad("Decryption failed: the tag does not match.") from None
        return {"value": _encoded(value)}

    def _wrap(self, algorithm: str, asked: _Parameters) -> Json:
        _require(algorithm, {"A256KW"})
        asked.only()
        try:
            wrapped = keywrap.aes_key_wrap(self.secret, asked.octets("value"))
        except ValueError:
            raise _bad("A256KW requires at least 16 bytes, and a multiple of 8.") from None
        return {"value": _encoded(wrapped)}

    def _unwrap(self, algorithm: str, asked: _Parameters) -> Json:
        _require(algorithm, {"A256KW"})
        asked.only()
        try:
            value = keywrap.aes_key_unwrap(self.secret, asked.octets("value"))
        except (keywrap.InvalidUnwrap, ValueError):
            raise _bad("Unwrapping failed: the integrity check does not match.") from None
        return {"value": _encoded(value)}

    def _sign(self, algorithm: str, asked: _Parameters) -> Json:
        return {"value": _encoded(self._mac(algorithm, asked, "value").finalize())}

    def _verify(self, algorithm: str, asked: _Parameters) -> Json:
        mac = self._mac(algorithm, asked, "digest")
        try:
            mac.verify(asked.octets("value"))
        except InvalidSignature:
            return {"value": False}
        return {"value": True}

    def _mac(self, algorithm: str, asked: _Parameters, name: str) -> hmac.HMAC:
        _require(algorithm, _MACS)
        mac = hmac.HMAC(self.secret, _HASH_OF[algorithm])
        mac.update(_digest(algorithm, asked, name))
        return mac


def _require(algorithm: str, supported: Container[str]) -> None:
    if algorithm not in supported:
        raise _bad(f"Algorithm {algorithm} is not supported by this key and operation.")


def _digest(algorithm: str, asked: _Parameters, name: str) -> bytes:
    """What is to be signed: always a digest, never a message, also for MACs."""
    asked.only()
    digest, size = asked.octets(name), _HASH_OF[algorithm].digest_size
    if len(digest) != size:
        raise _bad(
            f"Invalid length of '{name}': {len(digest)} bytes. "
            f"{algorithm} requires {size} bytes, encoded with base64url."
        )
    return digest


# --- keys and their versions ---------------------------------------------------------------------


@frozen
class _Kind:
    """What decides how a key is made, and how the next version of it is."""

    kty: str
    size: int
    curve: str

    @property
    def in_hsm(self) -> bool:
        return self.kty.endswith("-HSM")

    def make(self) -> _Material:
        family = self.kty.removesuffix("-HSM")
        if family == "RSA":
            if self.size not in _RSA_SIZES:
                raise _bad(f"RSA keys have {', '.join(map(str, _RSA_SIZES))} bits.")
            return _Rsa(rsa.generate_private_key(65537, self.size))
        if family == "EC":
            if self.curve not in _CURVES:
                raise _bad(f"EC keys have one of the curves {', '.join(_CURVES)}.")
            return _Ec(self.curve, ec.generate_private_key(_CURVES[self.curve]))
        return _Oct(os.urandom(_OCT_BITS // 8))


@define(eq=False)
class _Version:
    """One version of a key; what can change of it changes under the vault's lock."""

    name: str
    kind: _Kind
    material: _Material
    operations: Sequence[str]
    enabled: bool = True
    expires: int | None = None
    not_before: int | None = None
    tags: Mapping[str, str] | None = None
    id: str = field(factory=lambda: uuid.uuid4().hex)
    created: int = field(factory=lambda: int(time.time()))
    updated: int = field(factory=lambda: int(time.time()))

    @property
    def path(self) -> str:
        return f"/keys/{self.name}/{self.id}"

    def bundle(self, vault_url: str) -> Json:
        """What GET answers."""
        return {
            "key": {
                "kid": vault_url + self.path,
                "kty": self.kind.kty,
                "key_ops": list(self.operations),
                **self.material.jwk,
            },
            **self._properties(),
        }

    def item(self, vault_url: str) -> Json:
        """What a list of versions has of this one."""
        return {"kid": vault_url + self.path, **self._properties()}

    def _properties(self) -> Json:
        attributes = {
            "enabled": self.enabled,
            "nbf": self.not_before,
            "exp": self.expires,
            "created": self.created,
            "updated": self.updated,
            "recoveryLevel": "Recoverable+Purgeable",
            "recoverableDays": RETENTION_DAYS,
            "exportable": False,
            "hsmPlatform": "2" if self.kind.in_hsm else "0",
        }
        shown = {name: value for name, value in attributes.items() if value is not None}
        return {"attributes": shown} | ({"tags": dict(self.tags)} if self.tags else {})

    def perform(self, operation: str, asked: _Parameters) -> Json:
        """Encrypt, sign and so on; refused if the key's state or purpose forbids it."""
        self._check(operation)
        return self.material.does[operation](asked.text("alg"), asked)

    def _check(self, operation: str) -> None:
        if not self.enabled:
            raise _key_disabled(operation)
        if _KEY_OPS[operation] not in self.operations:
            raise _forbidden(f"Operation {operation} is not permitted on this key.")
        if operation in _AT_ANY_TIME:
            return
        now = time.time()
        if self.not_before is not None and now < self.not_before:
            raise _forbidden(f"Operation {operation}: key is not yet valid.", "KeyNotYetValid")
        if self.expires is not None and now >= self.expires:
            raise _forbidden(f"Operation {operation}: key has expired.", "KeyExpired")

    def change(self, asked: _Parameters) -> None:
        """Everything that PATCH may change; what is not mentioned stays."""
        operations = asked.optional("key_ops", list)
        attributes = _Parameters(asked.optional("attributes", dict) or {})
        enabled = attributes.optional("enabled", bool)
        expires, not_before = attributes.optional("exp", int), attributes.optional("nbf", int)
        tags = asked.optional("tags", dict)
        if operations is not None:
            self.operations = _permitted(self.material, operations)
        self.enabled = self.enabled if enabled is None else enabled
        self.expires = self.expires if expires is None else expires
        self.not_before = self.not_before if not_before is None else not_before
        self.tags = self.tags if tags is None else tags
        self.updated = int(time.time())


def _permitted(material: _Material, operations: Iterable[Any] | None) -> Sequence[str]:
    """The ``key_ops`` of a key: those it was asked to have, or all it can do."""
    able = [_KEY_OPS[operation] for operation in material.does]
    if operations is None:
        return able
    chosen = list(operations)
    for operation in chosen:
        if operation not in able:
            raise _bad(f"Operation {operation} is not supported by keys of this type.")
    return chosen


class _Vault:
    """The keys of one vault or Managed HSM, by name.  Thread-safe."""

    def __init__(self, *, managed_hsm: bool) -> None:
        self.managed_hsm = managed_hsm
        self._lock = threading.RLock()
        self._keys: dict[str, list[_Version]] = {}
        self._deleted: dict[str, tuple[_Version, int]] = {}

    def kind(self, kty: str, size: int, curve: str) -> _Kind:
        families = {"RSA", "EC", "oct"} if self.managed_hsm else {"RSA", "EC"}
        if kty.removesuffix("-HSM") not in families:
            raise _bad(f"Keys of type {kty} are not supported here.")
        # A Managed HSM has no other keys: it makes an HSM's key whichever way it is asked.
        hsm = "-HSM" if self.managed_hsm and not kty.endswith("-HSM") else ""
        return _Kind(kty + hsm, size, curve)

    def create(
        self,
        name: str,
        kind: _Kind,
        operations: Iterable[Any] | None,
        asked: _Parameters = _NOTHING_ASKED,
    ) -> _Version:
        """A new version of the key, which is made if there is none of this name."""
        if not _NAME.fullmatch(name):
            raise _bad("A key's name has 1 to 127 letters, digits and hyphens.")
        material = kind.make()
        version = _Version(name, kind, material, _permitted(material, operations))
        version.change(asked)
        with self._lock:
            if name in self._deleted:
                raise Refusal(
                    409,
                    "Conflict",
                    f"Key {name} is deleted and can be recovered: its name cannot be reused.",
                    "ObjectIsDeletedButRecoverable",
                )
            self._keys.setdefault(name, []).append(version)
        return version

    def rotate(self, name: str) -> _Version:
        current = self.find(name)
        return self.create(name, current.kind, current.operations)

    def change(self, name: str, version: str | None, asked: _Parameters) -> _Version:
        with self._lock:
            found = self.find(name, version)
            found.change(asked)
        return found

    def versions(self, name: str) -> list[_Version]:
        """Oldest first."""
        with self._lock:
            try:
                return list(self._keys[name])
            except KeyError:
                raise _key_not_found(name) from None

    def find(self, name: str, version: str | None = None) -> _Version:
        """The version, or the latest."""
        known = self.versions(name)
        if not version:
            return known[-1]
        for candidate in known:
            if candidate.id == version:
                return candidate
        raise _key_not_found(f"{name}/{version}")

    def delete(self, name: str) -> None:
        with self._lock:
            latest = self.find(name)
            del self._keys[name]
            self._deleted[name] = (latest, int(time.time()))

    def deleted(self, name: str) -> tuple[_Version, int]:
        """The latest version there was, and when the key was deleted."""
        with self._lock:
            try:
                return self._deleted[name]
            except KeyError:
                raise _key_not_found(name) from None


# --- the protocol --------------------------------------------------------------------------------


@frozen
class _Call:
    """A request that may be answered: authorised, and of a known operation."""

    operation: str
    name: str
    version: str | None
    query: Mapping[str, str]
    body: bytes = field(repr=False)
    vault_url: str

    @property
    def parameters(self) -> _Parameters:
        return _Parameters.of(self.body)


class AzureServer(Closed):
    """Azure Key Vault, or a Managed HSM, on a free loopback port: running when made, until closed.

    Its certificate is signed by ``ca_file``; clients show ``token``, and whoever does not is sent
    to fetch one.  It also answers for names below ``vault.azure.net`` (``managedhsm.azure.net``):
    key identifiers have the host that the request was for.  The panel's operations are what paths
    call them (``wrapkey``), and ``get``, ``versions``, ``create``, ``update``, ``delete`` and
    ``deleted``.  Under ``KEY_DISABLED`` reading a key goes on, and shows it as disabled;
    ``WRONG_KEY`` changes answers that name a key, which those to ``verify`` and ``rng`` do not.
    """

    def __init__(self, *, managed_hsm: bool = False) -> None:
        self.token: Final = secrets.token_urlsafe(24)
        self.requests: Final[list[tuple[str, str]]] = []
        self._domain = "managedhsm.azure.net" if managed_hsm else "vault.azure.net"
        self._vault = _Vault(managed_hsm=managed_hsm)
        self._authority = Authority()
        tls = self._authority.server_context(f"*.{self._domain}")
        self._http = HttpService(self._answer, tls=tls)
        self.panel: Final = Panel(frozenset(Failure) - {Failure.CORRUPT_CRC}, self._http.gate)
        self.ca_file: Final = self._authority.ca_file
        self._operations: Mapping[str, Callable[[_Call], Json]] = {
            "get": self._get,
            "versions": self._versions,
            "deleted": self._get_deleted,
            "create": self._create,
            "rotate": self._rotate,
            "update": self._update,
            "delete": self._delete,
            "rng": self._rng,
            **dict.fromkeys(_KEY_OPS, self._perform),
        }

    @property
    def vault_url(self) -> str:
        """What clients are to be configured with; it stays the same."""
        return "https://{}:{}".format(*self._http.address)

    @property
    def gate(self) -> Gate:
        """The line to this server."""
        return self._http.gate

    @property
    def errors(self) -> Sequence[Exception]:
        """Bugs of this server that a request ran into."""
        return self._http.errors

    def create_key(
        self,
        name: str,
        kind: str = "RSA",
        *,
        size: int = 2048,
        curve: str = "P-256",
        enabled: bool = True,
        operations: Iterable[str] | None = None,
        expires: Moment | None = None,
        not_before: Moment | None = None,
    ) -> str:
        """Make a key, or a new version of the one there is; returns the version.

        ``operations`` are ``key_ops`` (``wrapKey``); without them the key may do all it can.
        Moments are seconds since 1970 or datetimes.
        """
        attributes = {"enabled": enabled, "exp": _seconds(expires), "nbf": _seconds(not_before)}
        asked = _Parameters({"attributes": attributes})
        of_kind = self._vault.kind(kind, size, curve)
        return self._vault.create(name, of_kind, operations, asked).id

    def set_enabled(self, name: str, version: str | None = None, *, enabled: bool) -> None:
        """Enable or disable one version: the latest, unless another is given."""
        asked = _Parameters({"attributes": {"enabled": enabled}})
        self._vault.change(name, version, asked)

    def delete(self, name: str) -> None:
        """Delete the key with all versions, as far as the service ever does: it may come back."""
        self._vault.delete(name)

    def versions(self, name: str) -> list[str]:
        """The versions of the key, oldest first."""
        return [version.id for version in self._vault.versions(name)]

    def close(self) -> None:
        """Stop, and leave no thread and no file behind.  Idempotent."""
        self.gate.close()  # first: who is kept waiting gets no late answer
        self.panel.close()
        self._http.close()
        self._authority.close()

    # --- answers ---------------------------------------------------------------------------------

    def _answer(self, request: Request) -> Response:
        url = urlsplit(request.path)
        self.requests.append((request.method, url.path))
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            return self._challenge(offered="Authorization" in request.headers)
        try:
            call = self._call(request)
        except Refusal as refusal:
            return _refused(refusal)
        order = self.panel.arrived(call.operation)
        failed = None if order is None else _failed(order, call)
        if failed is not None:
            return failed
        answer = self._result(call)
        return answer if order is None else _spoiled(order, answer)

    def _challenge(self, *, offered: bool) -> Response:
        message = "The token is not accepted." if offered else "The request has no bearer token."
        answer = _refused(Refusal(401, "Unauthorized", message))
        where = f"https://login.microsoftonline.com/{TENANT}"
        bearer = f'Bearer authorization="{where}", resource="https://{self._domain}"'
        return evolve(answer, headers={**answer.headers, "WWW-Authenticate": bearer})

    def _call(self, request: Request) -> _Call:
        url = urlsplit(request.path)
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        if query.get("api-version") not in API_VERSIONS:
            raise _bad("The parameter api-version is missing or not recognized.")
        own_host = urlsplit(self.vault_url).netloc
        for method, pattern, operation in _ROUTES:
            match = pattern.fullmatch(url.path)
            if match and method == request.method:
                parts = match.groupdict()
                return _Call(
                    operation=operation,
                    name=parts.get("name") or "",
                    version=parts.get("version"),
                    query=query,
                    body=request.body,
                    vault_url=f"https://{request.headers.get('Host', own_host)}",
                )
        raise Refusal(405, "MethodNotAllowed", f"No {request.method} for this resource.")

    def _result(self, call: _Call) -> Response:
        try:
            return _json(200, self._operations[call.operation](call))
        except Refusal as refusal:
            return _refused(refusal)

    # --- operations ------------------------------------------------------------------------------

    def _perform(self, call: _Call) -> Json:
        version = self._vault.find(call.name, call.version)
        result = version.perform(call.operation, call.parameters)
        if call.operation == "verify":
            return result
        return {"kid": call.vault_url + version.path, **result}

    def _get(self, call: _Call) -> Json:
        return self._vault.find(call.name, call.version).bundle(call.vault_url)

    def _versions(self, call: _Call) -> Json:
        size = _page_size(call.query)
        after = call.query.get("$skiptoken", "")
        # In no order that means anything, as the service has it.
        known = sorted(self._vault.versions(call.name), key=lambda version: version.id)
        later = [version for version in known if version.id > after]
        page = later[:size]
        return {
            "value": [version.item(call.vault_url) for version in page],
            "nextLink": _next_link(call, page[-1].id) if len(later) > size else None,
        }

    def _create(self, call: _Call) -> Json:
        asked = call.parameters
        size, curve = asked.optional("key_size", int), asked.optional("crv", str)
        kind = self._vault.kind(asked.text("kty"), size or _RSA_SIZES[0], curve or "P-256")
        if kind.kty == "oct-HSM" and size not in {None, _OCT_BITS}:
            raise _bad(f"Symmetric keys have {_OCT_BITS} bits here.")
        version = self._vault.create(call.name, kind, asked.optional("key_ops", list), asked)
        return version.bundle(call.vault_url)

    def _rotate(self, call: _Call) -> Json:
        return self._vault.rotate(call.name).bundle(call.vault_url)

    def _update(self, call: _Call) -> Json:
        version = self._vault.change(call.name, call.version, call.parameters)
        return version.bundle(call.vault_url)

    def _delete(self, call: _Call) -> Json:
        self._vault.delete(call.name)
        return self._get_deleted(call)

    def _get_deleted(self, call: _Call) -> Json:
        version, when = self._vault.deleted(call.name)
        return {
            "recoveryId": f"{call.vault_url}/deletedkeys/{call.name}",
            "deletedDate": when,
            "scheduledPurgeDate": when + RETENTION_DAYS * 24 * 3600,
            **version.bundle(call.vault_url),
        }

    def _rng(self, call: _Call) -> Json:
        if not self._vault.managed_hsm:
            raise _bad("Only a Managed HSM gives random bytes.")
        count = call.parameters.optional("count", int)
        if count is None or not 1 <= count <= MAX_RANDOM_BYTES:
            raise _bad(f"The count of random bytes is 1 to {MAX_RANDOM_BYTES}.")
        return {"value": _encoded(os.urandom(count))}


def _page_size(query: Mapping[str, str]) -> int:
    asked = query.get("maxresults", str(PAGE))
    if not asked.isdecimal() or not 1 <= int(asked) <= PAGE:
        raise _bad(f"The parameter maxresults is 1 to {PAGE}.")
    return int(asked)


def _next_link(call: _Call, last: str) -> str:
    query = urlencode({**call.query, "$skiptoken": last}, safe="$")
    return f"{call.vault_url}/keys/{call.name}/versions?{query}"


def _seconds(moment: Moment | None) -> int | None:
    if moment is None:
        return None
    return int(moment.timestamp() if isinstance(moment, datetime) else moment)


# --- failures on cue -----------------------------------------------------------------------------

_READING: Final = frozenset({"get", "versions"})

_REFUSAL_OF: Final[Mapping[Failure, Callable[[_Call], Refusal]]] = {
    Failure.THROTTLE: lambda _: Refusal(429, "Throttled", "Too many requests: try again later."),
    Failure.SERVER_ERROR: lambda _: Refusal(503, "ServiceUnavailable", "The service is unwell."),
    Failure.ACCESS_DENIED: lambda _: _forbidden(
        "Caller is not authorized to perform action on resource.", "ForbiddenByRbac"
    ),
    Failure.KEY_DISABLED: lambda call: _key_disabled(call.operation),
    Failure.KEY_NOT_FOUND: lambda call: _key_not_found(call.name),
}


def _failed(order: Order, call: _Call) -> Response | None:
    """The answer that takes the place of a result, if this failure is of that sort."""
    still_read = order.failure is Failure.KEY_DISABLED and call.operation in _READING
    if still_read or order.failure not in _REFUSAL_OF:
        return None
    answer = _refused(_REFUSAL_OF[order.failure](call))
    if order.failure is not Failure.THROTTLE or order.seconds is None:
        return answer
    return evolve(answer, headers={**answer.headers, "Retry-After": f"{order.seconds:g}"})


def _spoiled(order: Order, answer: Response) -> Response:
    """A good answer made bad."""
    if order.failure is Failure.RESET:
        return evolve(answer, broken=True)
    if order.failure is Failure.MALFORMED:
        return _json(200, {})
    if answer.status != 200:
        return answer
    content = json.loads(answer.body)
    parts = [content, content.get("key", {}), *_items(content)]
    for part in parts:
        if order.failure is Failure.WRONG_KEY and "kid" in part:
            part["kid"] = _other_key(part["kid"])
        if order.failure is Failure.KEY_DISABLED and "attributes" in part:
            part["attributes"]["enabled"] = False
    return _json(200, content)


def _items(content: Json) -> list[Json]:
    """The versions in a list of them."""
    items = content.get("value")
    return items if isinstance(items, list) else []


def _other_key(kid: str) -> str:
    """A key of the same vault that nobody asked for."""
    return f"https://{urlsplit(kid).netloc}/keys/another-key/{uuid.uuid4().hex}"


# --- encodings -----------------------------------------------------------------------------------


def _json(status: int, content: Json) -> Response:
    headers = {
        "Content-Type": "application/json; charset=utf-8",
        "x-ms-request-id": str(uuid.uuid4()),
    }
    return Response(status, json.dumps(content).encode(), headers)


def _refused(refusal: Refusal) -> Response:
    error: Json = {"code": refusal.code, "message": str(refusal)}
    if refusal.inner is not None:
        error["innererror"] = {"code": refusal.inner}
    return _json(refusal.status, {"error": error})


def _encoded(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()


def _encoded_number(number: int) -> str:
    return _encoded(number.to_bytes((number.bit_length() + 7) // 8))


def _decoded(name: str, text: str) -> bytes:
    try:
        if not _BASE64URL.fullmatch(text):
            raise ValueError
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (ValueError, binascii.Error):
        raise _bad(f"Property '{name}' is not base64url without padding.") from None
