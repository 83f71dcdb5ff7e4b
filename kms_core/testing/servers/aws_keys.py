"""The keys of an AWS KMS: what they are made of, what they can do, and in which state they do it.

Real cryptography throughout, so that whatever is made here can be checked elsewhere.
"""

from __future__ import annotations

import os
import re
import secrets
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Final, TypeAlias, cast

from attrs import define, field, frozen
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from kms_core.testing.servers.aws_wire import Json, Refusal, invalid

ACCOUNT: Final = "111122223333"

MAX_PLAINTEXT_BYTES: Final = 4096
MAX_MESSAGE_BYTES: Final = 4096
MAX_CIPHERTEXT_BYTES: Final = 6144
MAX_ROTATIONS: Final = 25  # on demand, of one key
DELETION_DAYS: Final = 30
MIN_DELETION_DAYS: Final = 7

SYMMETRIC_DEFAULT: Final = "SYMMETRIC_DEFAULT"
ENCRYPTS: Final = "ENCRYPT_DECRYPT"
SIGNS: Final = "SIGN_VERIFY"
AUTHENTICATES: Final = "GENERATE_VERIFY_MAC"

ORIGINS: Final = frozenset({"AWS_KMS", "EXTERNAL", "AWS_CLOUDHSM", "EXTERNAL_KEY_STORE"})
STATES: Final = frozenset(
    {
        *("Creating", "Enabled", "Disabled", "PendingDeletion", "PendingImport"),
        *("PendingReplicaDeletion", "Unavailable", "Updating"),
    }
)

_ML_DSA: Final = "ML_DSA_SHAKE_256"
_ED25519: Final = "ED25519_SHA_512"
_MU_BYTES: Final = 64
_RSA_SIGNATURES: Final = tuple(
    f"RSASSA_{scheme}_SHA_{bits}" for scheme in ("PSS", "PKCS1_V1_5") for bits in (256, 384, 512)
)
_RSA_BITS: Final = (2048, 3072, 4096)
_MAC_BITS: Final = (256, 384, 512)

_CURVES: Final[Mapping[str, ec.EllipticCurve]] = {
    "ECC_NIST_P256": ec.SECP256R1(),
    "ECC_NIST_P384": ec.SECP384R1(),
    "ECC_NIST_P521": ec.SECP521R1(),
    "ECC_SECG_P256K1": ec.SECP256K1(),
}
_MlDsaKey: TypeAlias = mldsa.MLDSA44PrivateKey | mldsa.MLDSA65PrivateKey | mldsa.MLDSA87PrivateKey
_PARAMETER_SETS: Final[Mapping[str, Callable[[], _MlDsaKey]]] = {
    "ML_DSA_44": mldsa.MLDSA44PrivateKey.generate,
    "ML_DSA_65": mldsa.MLDSA65PrivateKey.generate,
    "ML_DSA_87": mldsa.MLDSA87PrivateKey.generate,
}

#: What a key of this spec and usage can do.  What is not here, this server has no keys for.
ALGORITHMS: Final[Mapping[tuple[str, str], tuple[str, ...]]] = {
    (SYMMETRIC_DEFAULT, ENCRYPTS): (SYMMETRIC_DEFAULT,),
    **{(f"RSA_{bits}", ENCRYPTS): ("RSAES_OAEP_SHA_1", "RSAES_OAEP_SHA_256") for bits in _RSA_BITS},
    **{(f"RSA_{bits}", SIGNS): _RSA_SIGNATURES for bits in _RSA_BITS},
    ("ECC_NIST_P256", SIGNS): ("ECDSA_SHA_256",),
    ("ECC_NIST_P384", SIGNS): ("ECDSA_SHA_384",),
    ("ECC_NIST_P521", SIGNS): ("ECDSA_SHA_512",),
    ("ECC_SECG_P256K1", SIGNS): ("ECDSA_SHA_256",),
    ("ECC_NIST_EDWARDS25519", SIGNS): (_ED25519,),
    **{(spec, SIGNS): (_ML_DSA,) for spec in _PARAMETER_SETS},
    **{(f"HMAC_{bits}", AUTHENTICATES): (f"HMAC_SHA_{bits}",) for bits in _MAC_BITS},
}
SPECS: Final = frozenset(spec for spec, _ in ALGORITHMS)
USAGES: Final = frozenset(usage for _, usage in ALGORITHMS)
ENCRYPTION_ALGORITHMS: Final = frozenset(
    {SYMMETRIC_DEFAULT, *ALGORITHMS["RSA_2048", ENCRYPTS], "SM2PKE"}
)
SIGNING_ALGORITHMS: Final = frozenset(
    {
        *(name for (_, usage), names in ALGORITHMS.items() if usage == SIGNS for name in names),
        *("ED25519_PH_SHA_512", "SM2DSA"),
    }
)
MAC_ALGORITHMS: Final = frozenset({f"HMAC_SHA_{bits}" for bits in (224, *_MAC_BITS)})

#: What lists of algorithms are called in answers, by the usage of the key.
LIST_OF: Final = {
    ENCRYPTS: "EncryptionAlgorithms",
    SIGNS: "SigningAlgorithms",
    AUTHENTICATES: "MacAlgorithms",
}


def _hash_of(algorithm: str) -> hashes.HashAlgorithm:
    """The hash that an algorithm's name ends with."""
    by_bits: Mapping[str, hashes.HashAlgorithm] = {
        "1": hashes.SHA1(),  # noqa: S303  OAEP with it is still on offer
        "256": hashes.SHA256(),
        "384": hashes.SHA384(),
        "512": hashes.SHA512(),
    }
    return by_bits[algorithm.rpartition("_")[2]]


# --- encryption ----------------------------------------------------------------------------------


@frozen
class Binding:
    """What belongs to a ciphertext besides the plaintext."""

    key_id: str
    algorithm: str
    context: bytes


@frozen
class Material:
    """One generation of a symmetric key."""

    secret: bytes = field(factory=lambda: os.urandom(32), repr=False)
    id: str = field(factory=lambda: secrets.token_hex(32))
    rotated: float | None = None

    @property
    def tag(self) -> bytes:
        """The id as ciphertexts carry it."""
        return bytes.fromhex(self.id)


@frozen
class Sealed:
    """A ciphertext, and which material of a symmetric key made it."""

    blob: bytes = field(repr=False)
    material_id: str | None = None


@frozen
class Opened:
    """A plaintext, and which material of a symmetric key its ciphertext was made with."""

    plaintext: bytes = field(repr=False)
    material_id: str | None = None


_KEY_ID_SIZE: Final = 36
_MATERIAL_SIZE: Final = 32
_IV_SIZE: Final = 12
_HEAD: Final = slice(0, _KEY_ID_SIZE + _MATERIAL_SIZE)
_IV: Final = slice(_HEAD.stop, _HEAD.stop + _IV_SIZE)


def owner_of(blob: bytes) -> str:
    """The key id that a symmetric ciphertext begins with, if it is one."""
    return blob[:_KEY_ID_SIZE].decode("ascii", "replace")


@define(eq=False)
class Symmetric:
    """AES-256-GCM.  A ciphertext tells key and material; both are authenticated with the context.

    ``materials`` are all there have been, oldest first; the last one encrypts.
    """

    materials: tuple[Material, ...] = field(factory=lambda: (Material(),))

    def seal(self, plaintext: bytes, bound: Binding) -> Sealed:
        """Encrypt with the current material."""
        material, iv = self.materials[-1], os.urandom(_IV_SIZE)
        head = bound.key_id.encode() + material.tag
        sealed = AESGCM(material.secret).encrypt(iv, plaintext, head + bound.context)
        return Sealed(head + iv + sealed, material.id)

    def open(self, blob: bytes, bound: Binding) -> Opened:
        """Decrypt with the material that the ciphertext names."""
        head, iv, sealed = blob[_HEAD], blob[_IV], blob[_IV.stop :]
        for material in self.materials:
            if head == bound.key_id.encode() + material.tag and len(iv) == _IV_SIZE:
                try:
                    plaintext = AESGCM(material.secret).decrypt(iv, sealed, head + bound.context)
                except InvalidTag:
                    break
                return Opened(plaintext, material.id)
        raise invalid_ciphertext()

    def rotate(self) -> None:
        """Go on with new material."""
        self.materials += (Material(rotated=time.time()),)


@frozen
class RsaCipher:
    """RSA-OAEP, which binds no context and tells no key."""

    private: rsa.RSAPrivateKey = field(repr=False)

    def seal(self, plaintext: bytes, bound: Binding) -> Sealed:
        """Encrypt as anybody could with the public key."""
        try:
            return Sealed(self.private.public_key().encrypt(plaintext, _oaep(bound)))
        except ValueError:
            raise invalid("Plaintext", "Member is too long for this key and algorithm") from None

    def open(self, blob: bytes, bound: Binding) -> Opened:
        """Decrypt what was encrypted to this key with this algorithm."""
        try:
            return Opened(self.private.decrypt(blob, _oaep(bound)))
        except ValueError:
            raise invalid_ciphertext() from None


Cipher: TypeAlias = Symmetric | RsaCipher


def _oaep(bound: Binding) -> padding.OAEP:
    if bound.context:
        raise invalid("EncryptionContext", "Asymmetric keys do not bind an encryption context")
    hashed = _hash_of(bound.algorithm)
    return padding.OAEP(padding.MGF1(hashed), hashed, label=None)


def invalid_ciphertext() -> Refusal:
    """Altered, or bound to something else: the service does not tell."""
    return Refusal("InvalidCiphertextException", "The ciphertext is not valid.")


# --- signatures and MACs -------------------------------------------------------------------------


@frozen
class Message:
    """What is to be signed, or what stands for it."""

    data: bytes = field(repr=False)
    kind: str

    def check(self, algorithm: str) -> None:
        """Raises ``Refusal`` if this algorithm does not take such a thing."""
        if self.kind == "RAW":
            return
        size = _digest_size(algorithm) if self.kind == "DIGEST" else _mu_size(algorithm)
        if size is None:
            raise invalid("MessageType", f"{self.kind} is not supported with {algorithm}")
        if len(self.data) != size:
            raise invalid("Message", f"{self.kind} for {algorithm} has a length of {size}")

    def hashed_with(self, algorithm: str) -> hashes.HashAlgorithm | Prehashed:
        """How its digest comes about."""
        hashed = _hash_of(algorithm)
        return Prehashed(hashed) if self.kind == "DIGEST" else hashed


def _digest_size(algorithm: str) -> int | None:
    if algorithm.startswith(("RSASSA_", "ECDSA_")):
        return _hash_of(algorithm).digest_size
    return None


def _mu_size(algorithm: str) -> int | None:
    return _MU_BYTES if algorithm == _ML_DSA else None


@frozen
class RsaSigner:
    """PSS, with a salt as long as the hash, and PKCS #1 v1.5."""

    private: rsa.RSAPrivateKey = field(repr=False)

    def sign(self, message: Message, algorithm: str) -> bytes:
        """A signature as long as the modulus."""
        return self.private.sign(message.data, _padding(algorithm), message.hashed_with(algorithm))

    def verify(self, message: Message, algorithm: str, signature: bytes) -> None:
        """Raises ``InvalidSignature`` if it is none."""
        self.private.public_key().verify(
            signature, message.data, _padding(algorithm), message.hashed_with(algorithm)
        )


def _padding(algorithm: str) -> padding.AsymmetricPadding:
    if "PKCS1" in algorithm:
        return padding.PKCS1v15()
    return padding.PSS(padding.MGF1(_hash_of(algorithm)), padding.PSS.DIGEST_LENGTH)


@frozen
class EcdsaSigner:
    """ECDSA; signatures in DER."""

    private: ec.EllipticCurvePrivateKey = field(repr=False)

    def sign(self, message: Message, algorithm: str) -> bytes:
        """Two numbers in DER."""
        return self.private.sign(message.data, ec.ECDSA(message.hashed_with(algorithm)))

    def verify(self, message: Message, algorithm: str, signature: bytes) -> None:
        """Raises ``InvalidSignature`` if it is none."""
        scheme = ec.ECDSA(message.hashed_with(algorithm))
        self.private.public_key().verify(signature, message.data, scheme)


@frozen
class Ed25519Signer:
    """Ed25519 of the message itself."""

    private: ed25519.Ed25519PrivateKey = field(repr=False)

    def sign(self, message: Message, _algorithm: str) -> bytes:
        """64 bytes."""
        return self.private.sign(message.data)

    def verify(self, message: Message, _algorithm: str, signature: bytes) -> None:
        """Raises ``InvalidSignature`` if it is none."""
        self.private.public_key().verify(signature, message.data)


@frozen
class MlDsaSigner:
    """ML-DSA with an empty context, of the message or of its representative mu."""

    private: _MlDsaKey = field(repr=False)

    def sign(self, message: Message, _algorithm: str) -> bytes:
        """Randomised, as FIPS 204 prefers it."""
        if message.kind == "EXTERNAL_MU":
            return self.private.sign_mu(message.data)
        return self.private.sign(message.data)

    def verify(self, message: Message, _algorithm: str, signature: bytes) -> None:
        """Raises ``InvalidSignature`` if it is none."""
        public = self.private.public_key()
        if message.kind == "EXTERNAL_MU":
            public.verify_mu(signature, message.data)
        else:
            public.verify(signature, message.data)


Signer: TypeAlias = RsaSigner | EcdsaSigner | Ed25519Signer | MlDsaSigner


@frozen
class Authenticator:
    """HMAC."""

    secret: bytes = field(repr=False)

    def mac(self, data: bytes, algorithm: str) -> bytes:
        """As long as the hash."""
        return self._over(data, algorithm).finalize()

    def verify(self, data: bytes, algorithm: str, mac: bytes) -> None:
        """Raises ``InvalidSignature`` if it is none."""
        self._over(data, algorithm).verify(mac)

    def _over(self, data: bytes, algorithm: str) -> hmac.HMAC:
        over = hmac.HMAC(self.secret, _hash_of(algorithm))
        over.update(data)
        return over


Secret: TypeAlias = Cipher | Signer | Authenticator
_PrivateKey: TypeAlias = (
    rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | _MlDsaKey
)


def _spki(private: _PrivateKey) -> bytes:
    return private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _secret(spec: str, usage: str) -> Secret:
    if spec == SYMMETRIC_DEFAULT:
        return Symmetric()
    if spec.startswith("HMAC_"):
        return Authenticator(os.urandom(int(spec.removeprefix("HMAC_")) // 8))
    if spec.startswith("RSA_"):
        private = rsa.generate_private_key(65537, int(spec.removeprefix("RSA_")))
        return RsaCipher(private) if usage == ENCRYPTS else RsaSigner(private)
    if spec in _CURVES:
        return EcdsaSigner(ec.generate_private_key(_CURVES[spec]))
    if spec in _PARAMETER_SETS:
        return MlDsaSigner(_PARAMETER_SETS[spec]())
    return Ed25519Signer(ed25519.Ed25519PrivateKey.generate())


# --- keys ----------------------------------------------------------------------------------------


@frozen
class Kind:
    """What a key is made as, and what its replicas share with it besides the secret."""

    spec: str = SYMMETRIC_DEFAULT
    usage: str = ENCRYPTS
    origin: str = "AWS_KMS"
    multi_region: bool = False

    def check(self) -> None:
        """Raises ``Refusal`` if there are no such keys."""
        if self.spec not in SPECS:
            raise invalid("KeySpec", f"Member must satisfy enum value set: {sorted(SPECS)}")
        if self.origin not in ORIGINS:
            raise invalid("Origin", f"Member must satisfy enum value set: {sorted(ORIGINS)}")
        if (self.spec, self.usage) not in ALGORITHMS:
            message = f"KeyUsage {self.usage} is not compatible with KeySpec {self.spec}"
            raise Refusal("ValidationException", message)

    @property
    def algorithms(self) -> tuple[str, ...]:
        """What such a key can do."""
        return ALGORITHMS[self.spec, self.usage]

    @property
    def initial_state(self) -> str:
        """The state in which the service makes such a key."""
        return "PendingImport" if self.origin == "EXTERNAL" else "Enabled"


@define(eq=False)
class Key:
    """A key in one region.  Replicas have the same id and share kind and secret."""

    id: str
    region: str
    primary_region: str
    kind: Kind
    secret: Secret = field(repr=False)
    state: str
    description: str = ""
    created: float = field(factory=time.time)
    deletion_days: int = DELETION_DAYS
    deletion: float | None = None

    @property
    def arn(self) -> str:
        """Its name everywhere."""
        return _arn(self.region, f"key/{self.id}")

    @property
    def is_primary(self) -> bool:
        """Whether it is the one of its replicas that is managed."""
        return self.region == self.primary_region

    def cipher(self, algorithm: str) -> Cipher:
        """What encrypts; raises ``Refusal`` if this key does not, or not in this way."""
        self._check_use(ENCRYPTS, algorithm)
        return cast("Cipher", self.secret)

    def signer(self, algorithm: str) -> Signer:
        """What signs; raises ``Refusal`` if this key does not, or not in this way."""
        self._check_use(SIGNS, algorithm)
        return cast("Signer", self.secret)

    def authenticator(self, algorithm: str) -> Authenticator:
        """What makes MACs; raises ``Refusal`` if this key does not, or not in this way."""
        self._check_use(AUTHENTICATES, algorithm)
        return cast("Authenticator", self.secret)

    def rotating(self) -> Symmetric:
        """What rotates; raises ``Refusal`` if this key does not."""
        if not isinstance(self.secret, Symmetric) or self.kind.origin != "AWS_KMS":
            raise _unsupported(f"{self.arn} is not a key that rotates.")
        return self.secret

    def public_key(self) -> bytes:
        """SubjectPublicKeyInfo in DER; raises ``Refusal`` if there is none."""
        if isinstance(self.secret, Symmetric | Authenticator):
            raise _unsupported(f"{self.arn} has no public key.")
        return _spki(self.secret.private)

    def rotate(self) -> None:
        """Make new material, for all replicas."""
        secret = self.rotating()
        if not self.is_primary:
            raise _unsupported(f"{self.arn} is a replica: rotate the primary key.")
        if len(secret.materials) > MAX_ROTATIONS:
            message = f"{self.arn} was rotated {MAX_ROTATIONS} times."
            raise Refusal("LimitExceededException", message)
        secret.rotate()

    def check_state(self, usable: frozenset[str], *, plainly: bool = True) -> None:
        """Raises ``Refusal`` unless the state is one of ``usable``.

        ``plainly``: the operation has an error of its own for keys that are disabled.
        """
        if self.state in usable:
            return
        if self.state == "Disabled" and plainly:
            raise Refusal("DisabledException", f"{self.arn} is disabled.")
        raise Refusal("KMSInvalidStateException", f"{self.arn} is {self.state}.")

    def _check_use(self, usage: str, algorithm: str) -> None:
        if self.kind.usage != usage or algorithm not in self.kind.algorithms:
            raise Refusal(
                "InvalidKeyUsageException",
                f"{self.arn} is {self.kind.spec} for {self.kind.usage}: it does not do {algorithm}",
            )


def _unsupported(message: str) -> Refusal:
    return Refusal("UnsupportedOperationException", message)


def _arn(region: str, resource: str) -> str:
    return f"arn:aws:kms:{region}:{ACCOUNT}:{resource}"


_ARN: Final = re.compile(
    r"arn:aws:kms:(?P<region>[a-z0-9-]+):(?P<account>\d{12}):"
    r"(?:key/(?P<id>[^/]+)|(?P<alias>alias/.+))"
)
_ALIAS: Final = re.compile(r"alias/[a-zA-Z0-9/_-]{1,250}")


class Keyring:
    """The keys and aliases of the account, by region.

    Keys can be found at any time; whoever makes or names one sees to it that nobody else does.
    """

    def __init__(self) -> None:
        self._keys: dict[tuple[str, str], Key] = {}
        self._aliases: dict[tuple[str, str], str] = {}

    def create(self, region: str, kind: Kind, description: str = "") -> Key:
        """A new key; the region is the primary one of replicas there may be."""
        kind.check()
        key_id = f"mrk-{uuid.uuid4().hex}" if kind.multi_region else str(uuid.uuid4())
        secret = _secret(kind.spec, kind.usage)
        key = Key(key_id, region, region, kind, secret, kind.initial_state, description)
        self._keys[region, key_id] = key
        return key

    def replicate(self, key: Key, region: str, description: str = "") -> Key:
        """The same key in another region."""
        if not (key.kind.multi_region and key.is_primary):
            raise _unsupported(f"{key.arn} is not the primary key of a multi-Region key.")
        if (region, key.id) in self._keys:
            raise Refusal("AlreadyExistsException", f"{key.id} already exists in {region}.")
        state = key.kind.initial_state
        replica = Key(key.id, region, key.region, key.kind, key.secret, state, description)
        self._keys[region, key.id] = replica
        return replica

    def name(self, alias: str, key: Key) -> None:
        """Have the alias mean this key, whatever it meant before."""
        self._aliases[key.region, alias] = key.id

    def add_alias(self, alias: str, key: Key) -> None:
        """The same for an alias that does not exist yet."""
        if alias.startswith("alias/aws/"):
            raise Refusal("NotAuthorizedException", "Aliases of AWS cannot be made.")
        if not _ALIAS.fullmatch(alias):
            raise Refusal("InvalidAliasNameException", f"{alias} is not the name of an alias.")
        if (key.region, alias) in self._aliases:
            raise Refusal("AlreadyExistsException", f"{alias} already exists.")
        self.name(alias, key)

    def find(self, region: str, name: str, *, by_alias: bool = True) -> Key:
        """The key of this name; raises ``Refusal`` if it cannot be reached from here."""
        arn = _ARN.fullmatch(name)
        if arn and arn["account"] != ACCOUNT:
            message = f"The caller is not authorized to use {name}, or it does not exist."
            raise Refusal("AccessDeniedException", message)
        if arn and arn["region"] != region:
            raise _not_found(name)
        key_id = (arn["id"] or arn["alias"]) if arn else name
        if by_alias:
            key_id = self._aliases.get((region, key_id), key_id)
        try:
            return self._keys[region, key_id]
        except KeyError:
            raise _not_found(name) from None

    def owner(self, blob: bytes) -> str:
        """The id of the key that made a symmetric ciphertext; raises ``Refusal`` if none did."""
        owner = owner_of(blob)
        if not any(key_id == owner for _, key_id in list(self._keys)):
            raise invalid_ciphertext()
        return owner

    def in_region(self, region: str) -> list[Key]:
        """All keys that can be reached there, in an order that stays."""
        keys = (key for (where, _), key in self._keys.items() if where == region)
        return sorted(keys, key=lambda key: key.id)

    def replicas(self, key: Key) -> list[Key]:
        """The other regions' keys of the same id."""
        return [other for other in self._keys.values() if other.id == key.id and other is not key]


def _not_found(name: str) -> Refusal:
    return Refusal("NotFoundException", f"Key '{name}' does not exist.")


# --- what is told about a key --------------------------------------------------------------------


def metadata(key: Key, replicas: list[Key]) -> Json:
    """``KeyMetadata``."""
    kind = key.kind
    told: Json = {
        "AWSAccountId": ACCOUNT,
        "Arn": key.arn,
        "CreationDate": key.created,
        "CustomerMasterKeySpec": kind.spec,
        "Description": key.description,
        "Enabled": key.state == "Enabled",
        "KeyId": key.id,
        "KeyManager": "CUSTOMER",
        "KeySpec": kind.spec,
        "KeyState": key.state,
        "KeyUsage": kind.usage,
        LIST_OF[kind.usage]: list(kind.algorithms),
        "MultiRegion": kind.multi_region,
        "Origin": kind.origin,
    }
    if isinstance(key.secret, Symmetric) and kind.origin in {"AWS_KMS", "EXTERNAL"}:
        told["CurrentKeyMaterialId"] = key.secret.materials[-1].id
    if kind.multi_region:
        told["MultiRegionConfiguration"] = _configuration(key, replicas)
    return told | _deletion(key)


def _deletion(key: Key) -> Json:
    if key.state == "PendingDeletion" and key.deletion is not None:
        return {"DeletionDate": key.deletion}
    if key.state == "PendingReplicaDeletion":
        return {"PendingDeletionWindowInDays": key.deletion_days}
    return {}


def _configuration(key: Key, replicas: list[Key]) -> Json:
    every = {one.region: {"Arn": one.arn, "Region": one.region} for one in (key, *replicas)}
    primary = every.pop(key.primary_region)
    return {
        "MultiRegionKeyType": "PRIMARY" if key.is_primary else "REPLICA",
        "PrimaryKey": primary,
        "ReplicaKeys": [every[region] for region in sorted(every)],
    }


def rotations(secret: Symmetric, key_id: str, *, with_first: bool) -> list[Json]:
    """The entries of ``ListKeyRotations``, oldest first; the first material came of none."""
    told = secret.materials if with_first else secret.materials[1:]
    return [_rotation(material, key_id, secret.materials[-1]) for material in told]


def _rotation(material: Material, key_id: str, current: Material) -> Json:
    entry = {
        "KeyId": key_id,
        "KeyMaterialId": material.id,
        "KeyMaterialState": "CURRENT" if material is current else "NON_CURRENT",
    }
    if material.rotated is None:
        return entry
    return entry | {"RotationDate": material.rotated, "RotationType": "ON_DEMAND"}
