"""Recovery keys: what is wrapped for a public key opens with its private key, and with no other."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from attrs import evolve
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mlkem, x25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from kms_core import (
    AccessDenied,
    AllInstancesFailed,
    Ciphertext,
    ConfigError,
    Context,
    EnvelopePolicy,
    InstanceConfig,
    InvalidCiphertext,
    InvalidRequest,
    KeyNotFound,
    Kms,
    KMSError,
    Secret,
    ServiceError,
    Settings,
    Unavailable,
    offline,
)
from kms_core.offline import (
    KINDS,
    KeyFile,
    KeyPair,
    OfflineProvider,
    OfflineSettings,
    WrappingKey,
    generate,
    write_key_pair,
)
from kms_core.testing import ProviderConformance
from tests.support import PATIENT, found

CONTEXT = Context({"tenant": "42"})
DEK = bytes(range(32))
PHRASE = Secret("correct horse battery staple")
FOREIGN = "hpke:AAAAAAAAAAAAAAAAAAAAAA"
posix = pytest.mark.skipif(os.name != "posix", reason="modes are POSIX")


def _has_ml_kem() -> bool:
    try:
        mlkem.MLKEM768PrivateKey.generate()
    except UnsupportedAlgorithm:
        return False
    return True


needs_ml_kem = pytest.mark.skipif(
    not _has_ml_kem(), reason="this build of cryptography has no ML-KEM"
)
EVERY_KIND = [
    pytest.param(name, marks=[needs_ml_kem] if name.startswith("mlkem") else []) for name in KINDS
]
every_kind = pytest.mark.parametrize("kind", EVERY_KIND)

Make = Callable[..., OfflineProvider]


class Files:
    """A folder with a key pair, ``recovery.key`` and ``recovery.pub``."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.private = folder / "recovery.key"
        self.public = folder / "recovery.pub"

    def make(self, kind: str = "p256", passphrase: Secret | None = None) -> WrappingKey:
        """Write the pair."""
        return write_key_pair(
            private_path=self.private, public_path=self.public, passphrase=passphrase, kind=kind
        )

    def provider(self, *, opens: bool = True, **settings: Any) -> OfflineProvider:
        """An instance on the files; one that does not open has the public one only."""
        private = self.private if opens else None
        return OfflineProvider(
            OfflineSettings(**{"public_key": self.public, "private_key": private, **settings})
        )


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Where the test's key pair goes; nothing is there yet."""
    return Files(tmp_path / "keys")


@pytest.fixture
def other(tmp_path: Path) -> Files:
    """Another key pair of kind p256."""
    files = Files(tmp_path / "other")
    files.make()
    return files


def _wrap(provider: OfflineProvider) -> Ciphertext:
    return provider.encrypt("", DEK, CONTEXT)


def _unwrap(
    provider: OfflineProvider, sealed: Ciphertext, context: Context = CONTEXT
) -> bytes | bytearray:
    return provider.decrypt(sealed.key_uri, sealed, context)


# --- wrapping ------------------------------------------------------------------------------------


@every_kind
def test_what_the_public_key_wraps_the_private_key_unwraps(files: Files, kind: str) -> None:
    """Two instances that share nothing but the key: one seals, the other opens."""
    key = files.make(kind)
    sealed = _wrap(files.provider(opens=False))
    assert (sealed.key_uri, sealed.wrap_alg) == (key.key_uri, KINDS[kind].wrap_alg)
    assert _unwrap(files.provider(), sealed) == DEK


@pytest.mark.parametrize(
    ("kind", "number", "suite", "enc_bytes"),
    [
        ("p256", 0x0601, (hpke.KEM.P256, hpke.KDF.HKDF_SHA256), 65),
        pytest.param(
            "mlkem1024-p384",
            0x0602,
            (hpke.KEM.MLKEM1024_P384, hpke.KDF.HKDF_SHA384),
            1568 + 97,
            marks=needs_ml_kem,
        ),
        pytest.param(
            "mlkem768-x25519",
            0x0603,
            (hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256),
            1088 + 32,
            marks=needs_ml_kem,
        ),
    ],
)
def test_a_blob_is_plain_hpke(
    kind: str, number: int, suite: tuple[hpke.KEM, hpke.KDF], enc_bytes: int
) -> None:
    """Anybody's HPKE opens it: the suite of the number, base mode, the context as info."""
    pair = generate(kind)
    blob = pair.wrapping.wrap(DEK, CONTEXT)
    assert pair.wrapping.kind.wrap_alg == number
    assert len(blob) == enc_bytes + len(DEK) + 16
    joins: dict[str, Callable[..., Any]] = {
        "p256": lambda part: part,
        "mlkem1024-p384": hpke.MLKEM1024P384PrivateKey,
        "mlkem768-x25519": hpke.MLKEM768X25519PrivateKey,
    }
    private = joins[kind](*pair.parts)
    opened = hpke.Suite(*suite, hpke.AEAD.AES_256_GCM).decrypt(blob, private, info=CONTEXT.encoded)
    assert opened == DEK


def test_only_the_hybrids_are_safe_from_quantum_computers() -> None:
    """The numbers that a policy may rely on."""
    assert {
        kind.wrap_alg for kind in KINDS.values() if kind.name.startswith("mlkem")
    } == offline.PQ_SAFE
    assert offline.PQ_SAFE < OfflineProvider.wrap_algs == {0x0601, 0x0602, 0x0603}
    assert KINDS[offline.DEFAULT_KIND].wrap_alg == 0x0602


@every_kind
def test_the_context_is_bound(kind: str) -> None:
    """Another context, or none, opens nothing."""
    pair = generate(kind)
    blob = pair.wrapping.wrap(DEK, CONTEXT)
    for context in (Context(), Context({"tenant": "43"}), Context({**CONTEXT, "more": ""})):
        with pytest.raises(InvalidCiphertext):
            pair.unwrap(blob, context)
    assert pair.unwrap(blob, CONTEXT) == DEK


@every_kind
def test_altered_blobs_open_nothing(kind: str) -> None:
    """Every byte of a small blob; of a large one every 13th and all near a seam or an end."""
    pair = generate(kind)
    blob = pair.wrapping.wrap(DEK, CONTEXT)
    seams = (0, 1088, 1120, 1568, 1665, len(blob))
    positions = [
        position
        for position in range(len(blob))
        if len(blob) < 200 or position % 13 == 0 or any(abs(position - seam) < 4 for seam in seams)
    ]
    for position in positions:
        altered = bytearray(blob)
        altered[position] ^= 1 << position % 8
        with pytest.raises(InvalidCiphertext, match=r"^authentication failed$"):
            pair.unwrap(altered, CONTEXT)


@every_kind
def test_another_key_opens_nothing(kind: str) -> None:
    """Not even one of the same kind."""
    blob = generate(kind).wrapping.wrap(DEK, CONTEXT)
    with pytest.raises(InvalidCiphertext):
        generate(kind).unwrap(blob, CONTEXT)


@needs_ml_kem
@pytest.mark.parametrize("kind", ["mlkem1024-p384", "mlkem768-x25519"])
@pytest.mark.parametrize("shared", [0, 1])
def test_one_half_of_a_hybrid_opens_nothing(kind: str, shared: int) -> None:
    """Whoever breaks one of the two algorithms has not broken the key."""
    pair = generate(kind)
    parts = list(generate(kind).parts)
    parts[shared] = pair.parts[shared]
    with pytest.raises(InvalidCiphertext):
        KeyPair.of(tuple(parts)).unwrap(pair.wrapping.wrap(DEK, CONTEXT), CONTEXT)


# --- the name ------------------------------------------------------------------------------------


@every_kind
def test_both_files_give_the_same_uri(files: Files, kind: str) -> None:
    """The name comes from the public key, wherever that is found, and does not change."""
    key = files.make(kind, PHRASE)
    assert KeyFile.read(files.public).public().key_uri == key.key_uri
    assert KeyFile.read(files.private).pair(PHRASE).wrapping.key_uri == key.key_uri


@every_kind
def test_the_uri_is_a_hash_of_the_raw_public_keys(kind: str) -> None:
    """ML-KEM first, then the curve: an uncompressed point, or X25519's 32 bytes."""
    parts = generate(kind).wrapping.parts
    hashed = b""
    for part in parts:
        if isinstance(part, ec.EllipticCurvePublicKey):
            hashed += part.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        else:
            hashed += part.public_bytes(Encoding.Raw, PublicFormat.Raw)
    sizes = {"p256": 65, "mlkem1024-p384": 1568 + 97, "mlkem768-x25519": 1184 + 32}
    assert len(hashed) == sizes[kind]
    expected = base64.urlsafe_b64encode(hashlib.sha256(hashed).digest()[:16]).decode().rstrip("=")
    assert WrappingKey.of(parts).key_uri == f"hpke:{expected}"


def test_a_known_key_has_a_known_uri() -> None:
    """A name that is written in envelopes must never come out differently."""
    private = ec.derive_private_key(1, ec.SECP256R1())  # so that the public key is the base point
    assert KeyPair.of((private,)).wrapping.key_uri == "hpke:aYvqY9xEo0RmP_FCmuoQhA"


@needs_ml_kem
def test_known_hybrids_have_known_uris() -> None:
    """As for P-256, from seeds and scalars that anybody can repeat."""
    p384 = ec.derive_private_key(1, ec.SECP384R1())
    ml_kem_1024 = mlkem.MLKEM1024PrivateKey.from_seed_bytes(bytes(64))
    assert KeyPair.of((ml_kem_1024, p384)).wrapping.key_uri == "hpke:Lh0wv2JkGraK5ECGaIHi_g"
    curve = x25519.X25519PrivateKey.from_private_bytes(bytes(32))
    ml_kem_768 = mlkem.MLKEM768PrivateKey.from_seed_bytes(bytes(64))
    assert KeyPair.of((ml_kem_768, curve)).wrapping.key_uri == "hpke:ahJhR9qAiiuVsnlqhhe2Gg"


def test_a_files_name_stands_in_until_it_is_read(files: Files) -> None:
    """The stand-in is recognised as well, before and after, but names no ciphertext."""
    provider = files.provider()
    assert provider.key_uri == provider.match("hpke:file:recovery.pub") == "hpke:file:recovery.pub"
    provider.prepare()
    assert provider.key_uri == "hpke:file:recovery.pub"
    key = files.make()
    provider.prepare()
    assert provider.key_uri == key.key_uri
    assert provider.match("hpke:file:recovery.pub") == "hpke:file:recovery.pub"
    posing = evolve(_wrap(provider), key_uri="hpke:file:recovery.pub")
    with pytest.raises(InvalidCiphertext):
        _unwrap(provider, posing)


def test_each_key_is_a_domain_of_its_own(files: Files, other: Files) -> None:
    """Also while nothing is known but that their files are two, even if named alike."""
    providers = [files.provider(), other.provider()]
    assert len({provider.domain(provider.key_uri) for provider in providers}) == 2
    files.make()
    for provider in providers:
        provider.prepare()
        assert provider.domain(provider.key_uri) == provider.key_uri
    assert len({provider.key_uri for provider in providers}) == 2


def test_match_knows_its_own_uri_only(files: Files) -> None:
    """What cannot be its own is declined without a look at the file."""
    provider = files.provider()
    for foreign in ("", "hpke:", f"{FOREIGN}=", f"{FOREIGN[:-1]}B", "local://x", "hpke:file:other"):
        assert provider.match(foreign) is None
    with pytest.raises(Unavailable, match=r"recovery\.pub"):
        provider.match(FOREIGN)
    key = files.make()
    assert provider.match(FOREIGN) is None
    assert provider.match(key.key_uri) == key.key_uri


# --- the setting key -----------------------------------------------------------------------------


def test_a_pinned_uri_is_known_at_once(files: Files) -> None:
    """No file is needed to tell what is its own."""
    provider = files.provider(key=FOREIGN)
    assert provider.key_uri == FOREIGN
    assert provider.domain(FOREIGN) == FOREIGN
    assert provider.match(FOREIGN) == FOREIGN
    assert provider.match("hpke:file:recovery.pub") is None


def test_a_replaced_public_key_is_refused(files: Files, other: Files) -> None:
    """Otherwise whoever can write the file could have everything sealed to themselves."""
    key = files.make()
    pinned = files.provider(key=key.key_uri)
    assert pinned.encrypt(key.key_uri, DEK, CONTEXT).key_uri == key.key_uri
    swapped = files.provider(key=key.key_uri, public_key=other.public)
    for use in (
        lambda: swapped.encrypt(key.key_uri, DEK, CONTEXT),
        lambda: swapped.health(key.key_uri),
        lambda: swapped.describe_key(key.key_uri),
    ):
        with pytest.raises(AccessDenied, match="replaced the file"):
            use()


def test_a_pinned_key_opens_without_the_public_file(files: Files) -> None:
    """In the emergency the private key is enough."""
    key = files.make()
    sealed = _wrap(files.provider())
    files.public.unlink()
    assert _unwrap(files.provider(key=key.key_uri), sealed) == DEK


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("key", "default"),
        ("key", f"{FOREIGN}="),
        ("key", FOREIGN.replace("hpke", "local")),
        ("public_key", Path()),
        ("public_key", Path("a\0b")),
        ("private_key", Path("/")),
    ],
)
def test_unusable_settings_are_named(setting: str, value: object) -> None:
    """The message begins with the setting."""
    with pytest.raises(ValueError, match=rf"^{setting} must"):
        OfflineSettings(**{"public_key": Path("x"), setting: value})  # type: ignore[arg-type]


# --- calls that cannot be served -----------------------------------------------------------------


def test_a_public_key_alone_does_not_open(files: Files) -> None:
    """The message says what to set."""
    files.make()
    provider = files.provider(opens=False)
    with pytest.raises(AccessDenied, match=r"public key only.*set private_key"):
        _unwrap(provider, _wrap(provider))


def test_a_private_key_of_another_pair_is_refused(files: Files, other: Files) -> None:
    """It is named by its URI, before any decryption could fail for no visible reason."""
    files.make()
    provider = files.provider(private_key=other.private)
    theirs = KeyFile.read(other.public).public().key_uri
    with pytest.raises(AccessDenied, match=theirs):
        _unwrap(provider, _wrap(provider))


def test_a_ciphertext_of_another_algorithm_is_refused(files: Files) -> None:
    """The algorithm is the key's, not the ciphertext's choice."""
    files.make()
    provider = files.provider()
    sealed = _wrap(provider)
    for number in (0x0602, 0x0603, 0x0501, 0x7FFF):
        with pytest.raises(InvalidCiphertext):
            _unwrap(provider, evolve(sealed, wrap_alg=number))


def test_a_ciphertext_of_another_key_is_refused(files: Files, other: Files) -> None:
    """Whichever of key id and key URI it is that differs."""
    ours = files.make().key_uri
    provider = files.provider()
    sealed = _wrap(provider)
    theirs = _wrap(other.provider())
    for key_id, ciphertext in ((ours, theirs), (theirs.key_uri, sealed), (theirs.key_uri, theirs)):
        with pytest.raises(InvalidCiphertext):
            provider.decrypt(key_id, ciphertext, CONTEXT)


def test_another_key_id_is_not_found(files: Files) -> None:
    """An instance has one key, known by its URI and, unless it is pinned, as the empty name."""
    key = files.make()
    provider = files.provider()
    assert provider.encrypt(key.key_uri, DEK, CONTEXT).key_uri == key.key_uri
    for use in (
        lambda: provider.encrypt(FOREIGN, DEK, CONTEXT),
        lambda: provider.health(FOREIGN),
        lambda: provider.describe_key(FOREIGN),
    ):
        with pytest.raises(KeyNotFound, match=key.key_uri):
            use()


def test_a_missing_file_may_come_later(files: Files) -> None:
    """A stick that is not plugged in is an outage, and ends."""
    provider = files.provider()
    provider.prepare()
    with pytest.raises(Unavailable, match=r"cannot read key file .*recovery\.pub: No such file"):
        _wrap(provider)
    files.make()
    sealed = _wrap(provider)
    away = files.private.rename(files.private.with_name("away"))
    with pytest.raises(Unavailable, match=r"recovery\.key"):
        _unwrap(provider, sealed)
    away.rename(files.private)
    assert _unwrap(provider, sealed) == DEK


def test_closing_forgets_the_private_key(files: Files) -> None:
    """The next use reads it again."""
    files.make()
    provider = files.provider()
    sealed = _wrap(provider)
    assert _unwrap(provider, sealed) == DEK
    files.private.unlink()
    assert _unwrap(provider, sealed) == DEK
    provider.close()
    with pytest.raises(Unavailable):
        _unwrap(provider, sealed)


def test_health_tells_of_both_keys(files: Files) -> None:
    """Well is who can wrap; whether there is a private key is said."""
    with pytest.raises(Unavailable):
        files.provider().health("")
    files.make()
    for provider, said in (
        (files.provider(opens=False), "private_key is not set"),
        (files.provider(), "recovery.key is there"),
        (files.provider(private_key=files.public), "recovery.pub is missing or not readable"),
        (files.provider(private_key=files.public / "x"), "x is missing or not readable"),
    ):
        health = provider.health("")
        assert health.ok
        assert said in health.reason
        assert "kind p256" in health.reason


# --- files ---------------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("passphrase", [None, PHRASE], ids=["plain", "passphrase"])
def test_files_hold_one_block_for_each_part(
    files: Files, kind: str, passphrase: Secret | None
) -> None:
    """Standard PEM, readable with other tools."""
    files.make(kind, passphrase)
    parts = len(kind.split("-"))
    private = "ENCRYPTED PRIVATE KEY" if passphrase else "PRIVATE KEY"
    for path, label in ((files.private, private), (files.public, "PUBLIC KEY")):
        lines = path.read_text().splitlines()
        marks = [line for line in lines if line.startswith("-")]
        assert marks == [f"-----BEGIN {label}-----", f"-----END {label}-----"] * parts


@posix
def test_the_private_file_is_private(files: Files) -> None:
    """Whatever the umask."""
    old = os.umask(0)
    try:
        files.make()
    finally:
        os.umask(old)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (files.private, files.public)]
    assert modes == [0o600, 0o644]


@posix
@pytest.mark.parametrize("mode", [0o604, 0o640, 0o620, 0o602, 0o666])
def test_a_private_file_open_to_others_is_refused(files: Files, mode: int) -> None:
    """The message says how to close it; the public file may be as open as it likes."""
    files.make()
    files.private.chmod(mode)
    files.public.chmod(mode)
    provider = files.provider()
    with pytest.raises(Unavailable, match=rf"mode {mode:04o}.*chmod 600"):
        _unwrap(provider, _wrap(provider))


@every_kind
def test_the_passphrase_must_fit(files: Files, kind: str) -> None:
    """A wrong one, none, or one too many is denied, and no message shows any."""
    files.make(kind, PHRASE)
    assert _unwrap(files.provider(passphrase=PHRASE), _wrap(files.provider())) == DEK
    sealed = _wrap(files.provider())
    for wrong in (None, Secret("x-marks-it"), Secret(""), Secret("x" * 5000), Secret("x\ud800")):
        with pytest.raises(AccessDenied, match=r"recovery\.key") as raised:
            _unwrap(files.provider(passphrase=wrong), sealed)
        assert "x-marks-it" not in f"{raised.value!r} {raised.value.__cause__!r}"
        assert raised.value.__cause__ is None


def test_a_passphrase_for_a_plain_file_is_refused(files: Files) -> None:
    """Somebody may have put a key of theirs there."""
    files.make()
    with pytest.raises(AccessDenied, match="has no passphrase"):
        _unwrap(files.provider(passphrase=PHRASE), _wrap(files.provider()))


@pytest.mark.parametrize("passphrase", ["", "x" * 1024, "\ud800"])
def test_an_unusable_passphrase_makes_no_files(files: Files, passphrase: str) -> None:
    """Empty, too long for OpenSSL, or not Unicode."""
    with pytest.raises(InvalidRequest, match="a passphrase is") as raised:
        files.make(passphrase=Secret(passphrase))
    assert not list(files.private.parent.iterdir())
    assert raised.value.__context__ is None


def test_the_longest_passphrase_works(files: Files) -> None:
    """The limit itself is fine."""
    longest = Secret("é" * 511 + "x")
    files.make(passphrase=longest)
    assert KeyFile.read(files.private).pair(longest)


@pytest.mark.parametrize("existing", ["private", "public"])
def test_nothing_is_overwritten(files: Files, existing: str) -> None:
    """One of the two is enough to stop, and the other is not left behind."""
    path: Path = getattr(files, existing)
    path.write_text("precious")
    with pytest.raises(InvalidRequest, match=rf"{path.name} exists already"):
        files.make()
    assert list(path.parent.iterdir()) == [path]
    assert path.read_text() == "precious"


def test_two_files_are_two(files: Files) -> None:
    """One path for both would lose the private key."""
    files.public = files.private
    with pytest.raises(InvalidRequest, match="exists already"):
        files.make()
    assert not files.private.exists()


@posix
def test_dangling_link_counts_as_existing(files: Files) -> None:
    """Otherwise the key would go where it leads."""
    files.public.symlink_to("elsewhere")
    with pytest.raises(InvalidRequest, match="exists already"):
        files.make()
    assert list(files.private.parent.iterdir()) == [files.public]


def test_a_folder_that_is_not_there_leaves_nothing(files: Files, tmp_path: Path) -> None:
    """The second file decides about the first."""
    files.public = tmp_path / "absent" / "recovery.pub"
    with pytest.raises(ServiceError, match=r"cannot create .*No such file"):
        files.make()
    assert not files.private.exists()


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_both_files_or_neither(
    files: Files, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    """Whatever stops the second one."""
    synced = []

    def fail(descriptor: int) -> None:
        synced.append(descriptor)
        if len(list(files.private.parent.iterdir())) == 2:
            raise failure

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises((ServiceError, KeyboardInterrupt)):
        files.make()
    assert synced
    assert not list(files.private.parent.iterdir())


@posix
def test_a_medium_that_keeps_no_modes_is_noticed(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A private key that could not be used later is not left behind as if it could."""
    opening = os.open

    def widening(path: Any, flags: int, mode: int = 0o777) -> int:
        descriptor = opening(path, flags, mode)
        if flags & os.O_CREAT:
            os.fchmod(descriptor, 0o777)
        return descriptor

    monkeypatch.setattr(os, "open", widening)
    with pytest.raises(Unavailable, match="mode 0777"):
        files.make()
    assert not list(files.private.parent.iterdir())


def test_a_medium_that_mixes_files_up_is_noticed(
    files: Files, other: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read back must be the key that was written."""
    reading = KeyFile.read.__func__  # type: ignore[attr-defined]

    def read(cls: type[KeyFile], path: Path) -> KeyFile:
        swapped = other.public if path == files.public else path
        result: KeyFile = reading(cls, swapped)
        return result

    monkeypatch.setattr(KeyFile, "read", classmethod(read))
    with pytest.raises(ServiceError, match="not stored as they were written"):
        files.make()
    assert not list(files.private.parent.iterdir())


def test_an_unknown_kind_is_refused() -> None:
    """With those that are known."""
    with pytest.raises(InvalidRequest, match="'rsa'; known are mlkem1024-p384, "):
        generate("rsa")


def test_a_build_without_ml_kem_is_told_apart(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no outage and no damage: another build of cryptography is needed."""
    files.make()

    def unsupported(*_args: object) -> None:
        raise UnsupportedAlgorithm("no ML-KEM")

    with monkeypatch.context() as patch:
        patch.setattr(offline, "load_pem_public_key", unsupported)
        patch.setattr(offline, "load_pem_private_key", unsupported)
        for use in (
            KeyFile.read(files.public).public,
            lambda: KeyFile.read(files.private).pair(None),
        ):
            with pytest.raises(ServiceError, match="version 48 or newer") as raised:
                use()
            assert raised.type is ServiceError
    kind = evolve(KINDS["p256"], generators=(unsupported,))
    monkeypatch.setattr(offline, "KINDS", {"p256": kind})
    with pytest.raises(ServiceError, match="cannot make a key of kind p256"):
        generate("p256")


# --- what is no key file -------------------------------------------------------------------------


def _public_pem(*keys: Any) -> bytes:
    return b"".join(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        for key in keys
    )


def _private_pem(*keys: Any) -> bytes:
    return b"".join(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) for key in keys
    )


def _p256() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _foreign_keys() -> Iterator[tuple[str, tuple[Any, ...]]]:
    p384, curve = ec.generate_private_key(ec.SECP384R1()), x25519.X25519PrivateKey.generate()
    yield "half a hybrid (P-384)", (p384,)
    yield "half a hybrid (X25519)", (curve,)
    yield "two of p256", (_p256(), _p256())
    yield "an unknown algorithm", (ed25519.Ed25519PrivateKey.generate(),)
    yield "an unknown curve", (ec.generate_private_key(ec.SECP521R1()),)
    yield "three", (_p256(), _p256(), _p256())
    if _has_ml_kem():
        large, small = mlkem.MLKEM1024PrivateKey.generate(), mlkem.MLKEM768PrivateKey.generate()
        yield "half a hybrid (ML-KEM)", (large,)
        yield "the wrong order", (p384, large)
        yield "the wrong curve", (large, _p256())
        yield "halves of two kinds", (large, curve)
        yield "halves of two other kinds", (small, p384)
        yield "one too many", (small, curve, curve)


FOREIGN_KEYS = dict(_foreign_keys())


@pytest.mark.parametrize("what", FOREIGN_KEYS)
def test_other_keys_are_no_recovery_key(files: Files, what: str) -> None:
    """Exactly the parts of one kind, in its order."""
    keys = FOREIGN_KEYS[what]
    files.public.write_bytes(_public_pem(*keys))
    files.private.write_bytes(_private_pem(*keys))
    files.private.chmod(0o600)
    for use in (lambda: KeyFile.read(files.public).public(), lambda: _pair(files.private)):
        with pytest.raises(Unavailable, match="is not a key file, or damaged"):
            use()


def _pair(path: Path) -> KeyPair:
    return KeyFile.read(path).pair(None)


def _mangled(pem: bytes) -> dict[str, bytes]:
    return {
        "nothing": b"",
        "text in front": b"Subject: recovery\n" + pem,
        "text behind": pem + b"x",
        "a blank line": b"\n" + pem,
        "a space": b" " + pem,
        "no end": pem[:-30],
        "no begin": pem[30:],
        "another label": pem.replace(b"PUBLIC KEY", b"RSA PUBLIC KEY"),
        "labels that differ": pem.replace(b"END PUBLIC", b"END PRIVATE"),
        "a header": pem.replace(b"KEY-----\n", b"KEY-----\nProc-Type: 4,ENCRYPTED\n\n", 1),
        "no body": b"-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n",
        "another body": b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
        "no base64": b"-----BEGIN PUBLIC KEY-----\nA\n-----END PUBLIC KEY-----\n",
        "both keys": pem + _private_pem(_p256()),
        "too much": pem * 200,
        "zeros": bytes(1000),
    }


@pytest.mark.parametrize("what", _mangled(b""))
def test_anything_but_the_blocks_is_refused(files: Files, what: str) -> None:
    """A parser that skips what it does not know can be told things by others."""
    files.public.write_bytes(_mangled(_public_pem(_p256()))[what])
    with pytest.raises(Unavailable, match="is not a key file, or damaged"):
        KeyFile.read(files.public).public()


def test_line_ends_of_other_systems_are_fine(files: Files) -> None:
    """A file that came by mail is the same key."""
    key = files.make()
    files.public.write_bytes(files.public.read_bytes().replace(b"\n", b"\r\n"))
    assert KeyFile.read(files.public).public().key_uri == key.key_uri
    files.public.write_bytes(files.public.read_bytes().rstrip())
    assert KeyFile.read(files.public).public().key_uri == key.key_uri


def test_the_two_files_are_not_confused(files: Files) -> None:
    """Each says which one is wanted."""
    files.make()
    with pytest.raises(Unavailable, match="holds a private key"):
        KeyFile.read(files.private).public()
    with pytest.raises(Unavailable, match="holds a public key"):
        _pair(files.public)


@posix
def test_only_regular_files_are_read(files: Files) -> None:
    """A pipe does not block; a device and a folder are no key files."""
    pipe = files.public.with_name("pipe")
    os.mkfifo(pipe)
    for path in (pipe, Path(os.devnull), files.public.parent):
        with pytest.raises(Unavailable, match="is not a regular file"):
            KeyFile.read(path)


@posix
@pytest.mark.skipif(os.name == "posix" and os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_named(files: Files) -> None:
    """With what to do about it."""
    files.make()
    files.public.chmod(0)
    with pytest.raises(Unavailable, match="run as a user who may read it"):
        KeyFile.read(files.public)


def test_any_other_failure_to_read_has_its_reason(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the system puts it."""
    files.make()

    def fail(*_args: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(Unavailable, match=r"recovery\.pub: Input/output error; name a readable"):
        KeyFile.read(files.public)


@given(data=st.data())
@every_kind
@pytest.mark.parametrize("which", ["public", "plain", "encrypted"])
def test_damaged_files_raise_only_our_errors(
    tmp_path_factory: pytest.TempPathFactory, kind: str, which: str, data: st.DataObject
) -> None:
    """Whatever stands in a file, what comes out is a key or a ``ServiceError``."""
    pem = _SAMPLES.pem(kind, which)
    start = data.draw(st.integers(0, len(pem)))
    end = data.draw(st.integers(start, min(len(pem), start + 40)))
    junk = data.draw(st.binary(max_size=20) | st.text("ABCDwxyz0189+/=\n").map(str.encode))
    path = tmp_path_factory.mktemp("damaged") / "file"
    path.write_bytes(pem[:start] + junk + pem[end:])
    path.chmod(0o600)
    passphrase = PHRASE if which == "encrypted" else None
    key = None
    with contextlib.suppress(ServiceError):
        file = KeyFile.read(path)
        key = file.pair(passphrase).wrapping if file.is_private else file.public()
    assert key is None or key.kind.name == kind


class _Samples:
    """One key of each kind for all examples: making one takes longer than reading it."""

    def __init__(self) -> None:
        self._pairs: dict[str, KeyPair] = {}

    def pem(self, kind: str, which: str) -> bytes:
        pair = self._pairs.setdefault(kind, generate(kind))
        if which == "public":
            return pair.wrapping.pem()
        return pair.private_pem(PHRASE if which == "encrypted" else None)


_SAMPLES = _Samples()


@given(content=st.binary(max_size=300))
def test_junk_is_no_key_file(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """Not by accident, either."""
    path = tmp_path_factory.mktemp("junk") / "file"
    path.write_bytes(content)
    with pytest.raises(Unavailable):
        KeyFile.read(path)


def test_nothing_shows_a_private_key(files: Files) -> None:
    """No representation holds more than names."""
    files.make()
    file = KeyFile.read(files.private)
    body = files.private.read_text().splitlines()[1]
    provider = files.provider(passphrase=PHRASE)
    shown = f"{file!r} {file.pair(None)!r} {provider!r} {provider._settings!r}"
    assert body not in shown
    assert PHRASE.reveal() not in shown


# --- with a client -------------------------------------------------------------------------------


def _client(**instances: dict[str, Any]) -> Kms:
    settings = Settings(
        instances={name: InstanceConfig("hpke", table) for name, table in instances.items()},
        envelope=EnvelopePolicy(min_recipients=len(instances)),
        calls=PATIENT,
    )
    return Kms(settings, plugins=[found("hpke", offline)])


def _table(files: Files, **options: Any) -> dict[str, Any]:
    return {"public_key": str(files.public), **options}


@every_kind
def test_an_envelope_opens_with_the_private_key_alone(
    files: Files, other: Files, kind: str
) -> None:
    """Sealed where the public keys are, to two of them; opened elsewhere with one."""
    key = files.make(kind)
    with _client(first=_table(files), second=_table(other)) as sealing:
        envelope = sealing.seal(b"hello", context={"tenant": "42"})
        with pytest.raises(AllInstancesFailed) as raised:
            sealing.open(envelope, context={"tenant": "42"})
    assert "set private_key" in str(raised.value)
    files.public.unlink()
    table = _table(files, key=key.key_uri, private_key=str(files.private))
    with _client(recovery=table) as opening:
        assert opening.open(envelope, context={"tenant": "42"}) == b"hello"


def test_one_key_twice_is_one_recipient(files: Files) -> None:
    """Two instances of one key are not two chances to open."""
    key = files.make()
    with pytest.raises(ConfigError, match="min_recipients"):
        _client(first=_table(files, key=key.key_uri), second=_table(files, key=key.key_uri))


def test_a_wrong_setting_names_its_table(files: Files) -> None:
    """As for any provider."""
    with pytest.raises(ConfigError, match=r"\[instances\.recovery\].*key must be empty"):
        _client(recovery=_table(files, key="default"))


# --- conformance ---------------------------------------------------------------------------------


class _Conformance(ProviderConformance):
    """A key with its private key, as every provider is tested."""

    has_data_key = False
    foreign_key_uri = FOREIGN
    plugin_module = "kms_core.offline"
    sdk_modules = ("click",)

    kind: ClassVar[str]
    passphrase: ClassVar[Secret | None] = None
    pinned: ClassVar[bool] = False

    @pytest.fixture
    def provider(self, files: Files) -> Iterator[OfflineProvider]:
        """An instance on a new pair of files."""
        key = files.make(self.kind, self.passphrase)
        pin = key.key_uri if self.pinned else ""
        provider = files.provider(passphrase=self.passphrase, key=pin)
        yield provider
        provider.close()

    @pytest.fixture
    def key_id(self, provider: OfflineProvider) -> str:
        """What the core calls with: the setting ``key``."""
        key: str = provider._settings.key
        return key

    @pytest.fixture
    def other_key(self, other: Files) -> tuple[OfflineProvider, str]:
        """Another pair."""
        return other.provider(), ""


class TestP256(_Conformance):
    """The key whose file fits on a card."""

    kind = "p256"


@needs_ml_kem
class TestMlKem768X25519(_Conformance):
    """A hybrid under a passphrase."""

    kind = "mlkem768-x25519"
    passphrase = PHRASE


@needs_ml_kem
class TestMlKem1024P384(_Conformance):
    """The default, with its URI in the settings as `kms recovery keygen` writes it."""

    kind = "mlkem1024-p384"
    pinned = True


def test_errors_are_those_of_the_contract(files: Files) -> None:
    """Whatever is wrong with the files, it says that another instance may be asked."""
    for content in (b"", b"junk", _public_pem(_p256(), _p256())):
        files.public.write_bytes(content)
        with pytest.raises(KMSError) as raised:
            _wrap(files.provider())
        assert raised.value.try_next
