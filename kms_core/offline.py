"""Recipients that are public keys: the provider type ``hpke``, which asks no service.

Whoever has the public key's file can wrap for the recipient; unwrapping takes the private key's
file, which may lie in a safe until everything else is lost.  Wrapping is HPKE in base mode
(RFC 9180) with the canonical context as ``info``; a blob is ``enc || ct``.

A key has one part or, where it is a hybrid, two: ML-KEM first, then the elliptic curve.  Its kind
is the names of its parts, joined in that order.

- The public file is PEM with one SubjectPublicKeyInfo (``PUBLIC KEY``) for each part, in order.
- The private file is PEM with one PKCS #8 structure for each part in the same order, all of them
  plain (``PRIVATE KEY``) or all under one passphrase (``ENCRYPTED PRIVATE KEY``).

Nothing else may stand in either file.  The key URI is ``hpke:`` and the unpadded base64url of the
first 16 bytes of SHA-256 over the parts' raw public keys, concatenated in order: see ``raw``.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import re
import shlex
import stat
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, Self
from urllib.parse import quote

from attrs import Attribute, field, frozen
from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric import ec, mlkem, x25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from kms_core.aead import erase
from kms_core.context import Context
from kms_core.errors import (
    AccessDenied,
    InvalidCiphertext,
    InvalidRequest,
    KeyNotFound,
    ServiceError,
    Unavailable,
)
from kms_core.files import sync_folder
from kms_core.hookspecs import hookimpl
from kms_core.types import POST_QUANTUM_WRAPS, Ciphertext, Health, KeyInfo, Secret

MAX_PLAINTEXT_BYTES: Final = 4096  # what every provider takes, so that instances can stand in
MAX_FILE_BYTES: Final = 1 << 14  # four times the largest key; bounds what a planted file can cost
MAX_PASSPHRASE_BYTES: Final = 1023  # what OpenSSL takes for PKCS #8

#: The algorithms here that a quantum computer does not break.
PQ_SAFE: Final = POST_QUANTUM_WRAPS & {0x0601, 0x0602, 0x0603}

_URI: Final = re.compile(r"hpke:[A-Za-z0-9_-]{21}[AQgw]")  # 16 bytes leave four bits of zero
_URI_BYTES: Final = 16
_MAX_PARTS: Final = 2
_BLOCK: Final = re.compile(
    rb"-----BEGIN ((?:ENCRYPTED )?PRIVATE KEY|PUBLIC KEY)-----\r?\n"
    rb"(?:[A-Za-z0-9+/]+={0,2}\r?\n)+"
    rb"-----END \1-----(?:\r?\n|\Z)"
)
_POSIX: Final = os.name == "posix"  # elsewhere mode bits say nothing
_OTHERS_MAY_READ_OR_WRITE: Final = 0o066
#: Opening a pipe must not wait for its other end; it is refused once it is open.
_WITHOUT_WAITING: Final = getattr(os, "O_NONBLOCK", 0)
_BINARY: Final = getattr(os, "O_BINARY", 0)


@hookimpl
def kms_register_providers(register: Callable[[type[Any]], None]) -> None:
    """Register ``OfflineProvider``."""
    register(OfflineProvider)


# --- kinds of keys -------------------------------------------------------------------------------
# A part is a key object of ``cryptography``.  Those have no common class, hence Any.


def algorithm(part: object) -> str:
    """The name of a public part's algorithm; ``""`` for one that no kind has."""
    match part:
        case mlkem.MLKEM1024PublicKey():
            return "mlkem1024"
        case mlkem.MLKEM768PublicKey():
            return "mlkem768"
        case x25519.X25519PublicKey():
            return "x25519"
        case ec.EllipticCurvePublicKey(curve=ec.SECP384R1()):
            return "p384"
        case ec.EllipticCurvePublicKey(curve=ec.SECP256R1()):
            return "p256"
    return ""


def raw(part: Any) -> bytes:
    """A public part's bytes as they are hashed into the key URI.

    ML-KEM: the encapsulation key of FIPS 203 (1568 or 1184 bytes).  X25519: the 32 bytes of
    RFC 7748.  P-384 and P-256: the uncompressed point of X9.62 (97 or 65 bytes, first 0x04).
    """
    if isinstance(part, ec.EllipticCurvePublicKey):
        return part.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    encoded: bytes = part.public_bytes_raw()
    return encoded


def _only(part: Any) -> Any:
    """The key of a kind with one part is that part."""
    return part


@frozen
class Kind:
    """One HPKE suite: how its key pairs are made, and put together from their parts."""

    name: str
    wrap_alg: int
    suite: hpke.Suite
    generators: tuple[Callable[[], Any], ...]
    public: Callable[..., Any]
    private: Callable[..., Any]


_BY_PREFERENCE: Final = (
    Kind(
        "mlkem1024-p384",
        0x0602,
        hpke.Suite(hpke.KEM.MLKEM1024_P384, hpke.KDF.HKDF_SHA384, hpke.AEAD.AES_256_GCM),
        (mlkem.MLKEM1024PrivateKey.generate, partial(ec.generate_private_key, ec.SECP384R1())),
        hpke.MLKEM1024P384PublicKey,
        hpke.MLKEM1024P384PrivateKey,
    ),
    Kind(
        "mlkem768-x25519",
        0x0603,
        hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM),
        (mlkem.MLKEM768PrivateKey.generate, x25519.X25519PrivateKey.generate),
        hpke.MLKEM768X25519PublicKey,
        hpke.MLKEM768X25519PrivateKey,
    ),
    Kind(
        "p256",
        0x0601,
        hpke.Suite(hpke.KEM.P256, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM),
        (partial(ec.generate_private_key, ec.SECP256R1()),),
        _only,
        _only,
    ),
)
KINDS: Final[Mapping[str, Kind]] = {kind.name: kind for kind in _BY_PREFERENCE}
DEFAULT_KIND: Final = _BY_PREFERENCE[0].name


@frozen
class WrappingKey:
    """A public key: wraps, and has a name."""

    kind: Kind
    parts: tuple[Any, ...] = field(repr=False)

    @classmethod
    def of(cls, parts: tuple[Any, ...]) -> Self:
        """The key that has these public parts; raises ``ValueError`` if there is no such kind."""
        kind = KINDS.get("-".join(map(algorithm, parts)))
        if kind is None:
            raise ValueError("these keys together are of no known kind")
        return cls(kind, parts)

    @property
    def key_uri(self) -> str:
        """``hpke:`` and 22 characters that depend on nothing but the public key."""
        digest = hashlib.sha256(b"".join(map(raw, self.parts))).digest()[:_URI_BYTES]
        return "hpke:" + base64.urlsafe_b64encode(digest).rstrip(b"=").decode("ascii")

    def wrap(self, plaintext: bytes | bytearray, context: Context) -> bytes:
        """``enc || ct``, bound to the context."""
        key = self.kind.public(*self.parts)
        return self.kind.suite.encrypt(plaintext, key, info=context.encoded)

    def pem(self) -> bytes:
        """The content of a public file."""
        return b"".join(
            part.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
            for part in self.parts
        )


@frozen
class KeyPair:
    """A private key with its public one."""

    wrapping: WrappingKey
    parts: tuple[Any, ...] = field(repr=False)

    @classmethod
    def of(cls, parts: tuple[Any, ...]) -> Self:
        """The pair that has these private parts; raises ``ValueError`` as ``WrappingKey.of``."""
        return cls(WrappingKey.of(tuple(part.public_key() for part in parts)), parts)

    def unwrap(self, blob: bytes | bytearray, context: Context) -> bytearray:
        """Undo ``wrap``; raises ``InvalidCiphertext``."""
        kind = self.wrapping.kind
        try:
            key = kind.private(*self.parts)
            opened = kind.suite.decrypt(blob, key, info=context.encoded)
        except (InvalidTag, ValueError):
            raise InvalidCiphertext("authentication failed") from None
        plaintext = bytearray(opened)
        erase(opened)
        return plaintext

    def private_pem(self, passphrase: Secret | None) -> bytes:
        """The content of a private file; raises ``InvalidRequest`` for an unusable passphrase."""
        protection = _protection(passphrase)
        return b"".join(
            part.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection) for part in self.parts
        )


def generate(kind: str = DEFAULT_KIND) -> KeyPair:
    """A new key pair; raises ``ServiceError`` where ``cryptography`` lacks the algorithm."""
    if kind not in KINDS:
        raise InvalidRequest(f"no kind of key is called {kind!r}; known are {', '.join(KINDS)}")
    try:
        return KeyPair.of(tuple(generator() for generator in KINDS[kind].generators))
    except UnsupportedAlgorithm as exc:
        raise _not_supported(f"cannot make a key of kind {kind}") from exc


def _protection(passphrase: Secret | None) -> KeySerializationEncryption:
    if passphrase is None:
        return NoEncryption()
    password = _utf8(passphrase)
    if password is None or not 1 <= len(password) <= MAX_PASSPHRASE_BYTES:
        raise InvalidRequest(f"a passphrase is Unicode text of 1 to {MAX_PASSPHRASE_BYTES} bytes")
    return BestAvailableEncryption(password)


def _utf8(passphrase: Secret) -> bytes | None:
    """``None`` for what is not Unicode: the codec's own error would carry the passphrase along."""
    try:
        return passphrase.reveal().encode()
    except UnicodeEncodeError:
        return None


def _not_supported(what: str) -> ServiceError:
    return ServiceError(
        f"{what}: this build of cryptography does not have the algorithm; "
        "ML-KEM needs version 48 or newer, on OpenSSL 3.5 or newer"
    )


# --- key files -----------------------------------------------------------------------------------

#: Why a file cannot be read, and what to do next.  All of it is ``Unavailable``.
_READING: Final[Mapping[type[OSError], str]] = {
    FileNotFoundError: "bring it here, correct the path, or make a new key: `kms recovery keygen`",
    PermissionError: "run as a user who may read it",
    OSError: "name a readable file",
}


@frozen
class KeyFile:
    """The blocks of a public or private file, not decoded yet."""

    path: Path
    label: Literal["PUBLIC KEY", "PRIVATE KEY", "ENCRYPTED PRIVATE KEY"]
    blocks: tuple[bytes, ...] = field(repr=False)
    mode: int

    @classmethod
    def read(cls, path: Path) -> Self:
        """What a file holds; raises ``Unavailable`` if it is missing, unreadable or no key file."""
        with _reading(path):
            mode, data = _contents(path)
        labels, blocks = zip(*_split(path, data), strict=True)
        if len(set(labels)) > 1 or len(blocks) > _MAX_PARTS:
            raise _damaged(path)
        return cls(path, labels[0], blocks, mode)

    @property
    def is_private(self) -> bool:
        """Whether it holds a private key."""
        return self.label != "PUBLIC KEY"

    @property
    def is_encrypted(self) -> bool:
        """Whether a passphrase is needed."""
        return self.label == "ENCRYPTED PRIVATE KEY"

    def public(self) -> WrappingKey:
        """The key in a public file; raises ``Unavailable`` if there is none."""
        if self.is_private:
            raise Unavailable(f"{self.path} holds a private key; name the public key's file here")
        try:
            return WrappingKey.of(tuple(map(load_pem_public_key, self.blocks)))
        except UnsupportedAlgorithm as exc:
            raise _not_supported(f"cannot use key file {self.path}") from exc
        except ValueError as exc:
            raise _damaged(self.path) from exc

    def pair(self, passphrase: Secret | None) -> KeyPair:
        """The key in a private file; raises ``AccessDenied`` unless the passphrase fits.

        ``Unavailable`` means that there is no private key in it, or that others may read it.
        """
        if not self.is_private:
            raise Unavailable(f"{self.path} holds a public key; name the private key's file here")
        self._check_mode()
        parts = self._private_parts(self._password(passphrase))
        try:
            return KeyPair.of(parts)
        except ValueError:
            raise _damaged(self.path) from None

    def _private_parts(self, password: bytes | None) -> tuple[Any, ...]:
        try:
            return tuple(load_pem_private_key(block, password) for block in self.blocks)
        except UnsupportedAlgorithm:
            raise _not_supported(f"cannot use key file {self.path}") from None
        except ValueError:  # cryptography does not tell a wrong passphrase from damage
            raise self._refused() if self.is_encrypted else _damaged(self.path) from None

    def _password(self, passphrase: Secret | None) -> bytes | None:
        if passphrase is None and self.is_encrypted:
            raise AccessDenied(f"private key {self.path} needs its passphrase; none was given")
        if passphrase is None:
            return None
        if not self.is_encrypted:
            raise AccessDenied(
                f"private key {self.path} has no passphrase, and one was given: somebody replaced "
                "the file, or the passphrase is left over"
            )
        password = _utf8(passphrase)
        if not password:
            raise self._refused()
        return password

    def _refused(self) -> AccessDenied:
        return AccessDenied(
            f"the passphrase does not open private key {self.path}; check it, or restore the file "
            "from a backup if it is damaged"
        )

    def _check_mode(self) -> None:
        if _POSIX and self.mode & _OTHERS_MAY_READ_OR_WRITE:
            raise Unavailable(
                f"private key {self.path} is open to other users (mode {self.mode:04o}); "
                f"run: chmod 600 {shlex.quote(str(self.path))}"
            )


def write_key_pair(
    *, private_path: Path, public_path: Path, passphrase: Secret | None, kind: str = DEFAULT_KIND
) -> WrappingKey:
    """Make a key pair in two new files, both of them read back, or neither is left.

    Raises ``InvalidRequest`` if one exists: files are never overwritten.  The private one is
    written first, so that nobody finds a public key that nothing opens.
    """
    pair = generate(kind)
    private_pem = pair.private_pem(passphrase)
    with contextlib.ExitStack() as written:
        _create(private_path, private_pem, 0o600, written)
        _create(public_path, pair.wrapping.pem(), 0o644, written)
        _read_back(pair.wrapping.key_uri, private_path, public_path, passphrase)
        written.pop_all()
    return pair.wrapping


def _read_back(
    key_uri: str, private_path: Path, public_path: Path, passphrase: Secret | None
) -> None:
    """What a medium did not keep is noticed now, not in the emergency."""
    private = KeyFile.read(private_path).pair(passphrase).wrapping
    public = KeyFile.read(public_path).public()
    if not private.key_uri == public.key_uri == key_uri:
        raise ServiceError(f"{private_path} and {public_path} were not stored as they were written")


def _create(path: Path, data: bytes, mode: int, written: contextlib.ExitStack) -> None:
    """Write a new file, through to the disk; ``written`` removes it again."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, mode)
        written.callback(path.unlink, missing_ok=True)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        sync_folder(path.parent)
    except FileExistsError as exc:
        raise InvalidRequest(f"{path} exists already, and keys are never overwritten") from exc
    except OSError as exc:
        raise ServiceError(f"cannot create {path}: {exc.strerror}; choose another path") from exc


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        advice = next(_READING[kind] for kind in type(exc).__mro__ if kind in _READING)
        reason = exc.strerror or type(exc).__name__
        raise Unavailable(f"cannot read key file {path}: {reason}; {advice}") from exc


def _contents(path: Path) -> tuple[int, bytes]:
    """The file's mode and bytes, both of the file that was opened."""
    descriptor = os.open(path, os.O_RDONLY | _WITHOUT_WAITING | _BINARY)
    # Not closed by the file object: making one of a folder fails, with a worse message than ours.
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise Unavailable(f"{path} is not a regular file: it cannot be a key file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return stat.S_IMODE(status.st_mode), file.read(MAX_FILE_BYTES + 1)
    finally:
        os.close(descriptor)


def _split(path: Path, data: bytes) -> Iterator[tuple[Any, bytes]]:
    """Each block with its label; raises ``Unavailable`` unless blocks are all there is."""
    if not 0 < len(data) <= MAX_FILE_BYTES:
        raise _damaged(path)
    position = 0
    while position < len(data):
        block = _BLOCK.match(data, position)
        if block is None:
            raise _damaged(path)
        yield block[1].decode("ascii"), block[0]
        position = block.end()


def _damaged(path: Path) -> Unavailable:
    return Unavailable(
        f"{path} is not a key file, or damaged: it must hold the PEM blocks of one key of kind "
        f"{' or '.join(KINDS)} and nothing else"
    )


# --- the provider --------------------------------------------------------------------------------


def _names_a_file(_settings: Any, attribute: Attribute[Any], path: Path | None) -> None:
    if path is not None and (not path.name or "\0" in str(path)):
        raise ValueError(f"{attribute.name} must name a file")


def _is_key_uri(_settings: Any, attribute: Attribute[str], key: str) -> None:
    if key and not _URI.fullmatch(key):
        raise ValueError(
            f"{attribute.name} must be empty or the key URI that `kms recovery show` prints"
        )


@frozen
class OfflineSettings:
    """``key``, if given, is the URI that the files must have: another key's are refused then."""

    public_key: Path = field(validator=_names_a_file)
    key: str = field(default="", validator=_is_key_uri)
    private_key: Path | None = field(default=None, validator=_names_a_file)
    passphrase: Secret | None = None


class OfflineProvider:
    """One public key, and its private key where there is one.  Any thread may use it.

    Making one does no I/O.  A file is read when it is first needed and not again, the private one
    not before something is to be unwrapped; what could not be read is tried again.
    """

    type_name: ClassVar[str] = "hpke"
    settings: ClassVar[type[Any]] = OfflineSettings
    wrap_algs: ClassVar[frozenset[int]] = frozenset(kind.wrap_alg for kind in KINDS.values())
    protection: Literal["hsm", "software", "local"] = "software"

    def __init__(self, settings: OfflineSettings) -> None:
        self._settings = settings
        self._wrapping: WrappingKey | None = None
        self._pair: KeyPair | None = None
        # Unless the settings tell the URI, the file's name stands in for it until it is read,
        # behind a word with a colon, which no key URI of this type contains.
        name = quote(os.fsencode(settings.public_key.name), safe="")
        self._uri_before_reading = settings.key or f"hpke:file:{name}"

    @property
    def key_uri(self) -> str:
        """``hpke:<hash>``; ``hpke:file:<name>`` before the first read if ``key`` is not set."""
        return self._uri_before_reading if self._wrapping is None else self._wrapping.key_uri

    def match(self, key_uri: str) -> str | None:
        """The URI itself if it is this key's.

        Raises ``Unavailable`` only if the file cannot be read and the URI may be its own.
        """
        if key_uri == self._uri_before_reading:
            return key_uri
        return key_uri if _URI.fullmatch(key_uri) and key_uri == self._own_uri() else None

    def domain(self, key_uri: str) -> str:
        """Each key is a domain of its own, also while only the path of its file is known."""
        stands_in = key_uri == self._uri_before_reading != self._settings.key
        return str(self._settings.public_key) if stands_in else key_uri

    def prepare(self) -> None:
        """Read the public file, so that ``key_uri`` is known.

        What is wrong with it is for the next call to report, which knows whether it matters.
        """
        with contextlib.suppress(ServiceError):
            self._public()

    def close(self) -> None:
        """Forget the private key; the next use would read it again."""
        self._pair = None

    @hookimpl
    def encrypt(self, key_id: str, plaintext: bytes | bytearray, context: Context) -> Ciphertext:
        """Wrap 1 to 4096 bytes."""
        _check_plaintext(plaintext)
        self._check_key_id(key_id)
        key = self._public()
        return Ciphertext(
            data=key.wrap(plaintext, context),
            key_uri=key.key_uri,
            wrap_alg=key.kind.wrap_alg,
        )

    @hookimpl
    def decrypt(self, key_id: str, ciphertext: Ciphertext, context: Context) -> bytearray:
        """Unwrap; raises ``AccessDenied`` where there is no private key."""
        if not isinstance(ciphertext.data, bytes | bytearray):
            raise InvalidRequest(f"a ciphertext is bytes, not {type(ciphertext.data).__name__}")
        if not key_id == ciphertext.key_uri == self._own_uri():
            raise InvalidCiphertext("the ciphertext was made under a key that is not held here")
        pair = self._private()
        if ciphertext.wrap_alg != pair.wrapping.kind.wrap_alg:
            raise InvalidCiphertext("the ciphertext names another algorithm than the key's")
        return pair.unwrap(ciphertext.data, context)

    @hookimpl
    def health(self, key_id: str) -> Health:
        """Whether the public key can be used; the reason also tells of the private one."""
        self._check_key_id(key_id)
        kind = self._public().kind.name
        return Health(ok=True, reason=f"public key of kind {kind} is there, {self._private_file()}")

    @hookimpl
    def describe_key(self, key_id: str) -> KeyInfo:
        """What the public file says."""
        self._check_key_id(key_id)
        uri = self._public().key_uri
        return KeyInfo(key_uri=uri, state="enabled", protection=self.protection, rotation=False)

    def _own_uri(self) -> str:
        return self._settings.key or self._public().key_uri

    def _public(self) -> WrappingKey:
        # No lock, here and below: threads that come together read the same file twice.
        if self._wrapping is None:
            path = self._settings.public_key
            key = KeyFile.read(path).public()
            if self._settings.key and key.key_uri != self._settings.key:
                raise AccessDenied(
                    f"public key {path} is {key.key_uri}, and the setting key says "
                    f"{self._settings.key}: somebody replaced the file, or the setting is left over"
                )
            self._wrapping = key
        return self._wrapping

    def _private(self) -> KeyPair:
        pair = self._pair
        if pair is None:
            path = self._settings.private_key
            if path is None:
                raise AccessDenied(
                    "this instance has the public key only, which wraps and does not unwrap; "
                    "set private_key to the private key's file"
                )
            pair = KeyFile.read(path).pair(self._settings.passphrase)
            if pair.wrapping.key_uri != self._own_uri():
                raise AccessDenied(
                    f"private key {path} is that of {pair.wrapping.key_uri}, not of "
                    f"{self._own_uri()}; set private_key to the file that belongs to public_key"
                )
            self._pair = pair
        return pair

    def _private_file(self) -> str:
        path = self._settings.private_key
        if path is None:
            return "private_key is not set"
        try:
            there = KeyFile.read(path).is_private
        except ServiceError:
            there = False
        return f"private key {path} is {'there' if there else 'missing or not readable'}"

    def _check_key_id(self, key_id: str) -> None:
        own = self._own_uri()
        if key_id not in {self._settings.key, own}:
            raise KeyNotFound(f"this instance works with key {own}, not {key_id!r}")


def _check_plaintext(plaintext: object) -> None:
    if not isinstance(plaintext, bytes | bytearray):
        raise InvalidRequest(f"a plaintext is bytes, not {type(plaintext).__name__}; encode it")
    if not 1 <= len(plaintext) <= MAX_PLAINTEXT_BYTES:
        raise InvalidRequest(
            f"a recovery key wraps 1 to {MAX_PLAINTEXT_BYTES} bytes, not {len(plaintext)}; "
            "seal() takes more"
        )
