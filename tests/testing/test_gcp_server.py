"""The Google server speaks the real protocol, computes for real, and refuses what Google does."""

from __future__ import annotations

import hashlib
import hmac
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import google_crc32c
import grpc
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from google.api_core import exceptions
from google.cloud import kms_v1
from google.cloud.kms_v1 import gapic_version
from google.cloud.kms_v1.services.key_management_service.transports import (
    KeyManagementServiceGrpcTransport,
)
from google.rpc.error_details_pb2 import ErrorInfo, PreconditionFailure, RetryInfo
from hypothesis import given, settings
from hypothesis import strategies as st

from kms_core.testing.servers import Failure, GcpServer
from kms_core.testing.servers import gcp as gcp_server
from kms_core.testing.servers.panel import OF_THE_LINE

KEY = "projects/demo/locations/europe-west1/keyRings/ring/cryptoKeys/app"
SECRET = bytes(range(32))
AAD = b"tenant=42"
MESSAGE = b"pay 100 to Alice"
HASHES: Mapping[str, hashes.HashAlgorithm] = {
    "SHA1": hashes.SHA1(),
    "SHA256": hashes.SHA256(),
    "SHA384": hashes.SHA384(),
    "SHA512": hashes.SHA512(),
}
DIGEST_SIGNERS = (
    "EC_SIGN_P256_SHA256",
    "EC_SIGN_P384_SHA384",
    "EC_SIGN_SECP256K1_SHA256",
    "RSA_SIGN_PSS_2048_SHA256",
    "RSA_SIGN_PSS_4096_SHA512",
    "RSA_SIGN_PKCS1_2048_SHA256",
)
ML_DSA = ("PQ_SIGN_ML_DSA_44", "PQ_SIGN_ML_DSA_65", "PQ_SIGN_ML_DSA_87")
DATA_SIGNERS = ("EC_SIGN_ED25519", *ML_DSA)
Client = kms_v1.KeyManagementServiceClient
Connect = Callable[..., Client]


def crc(data: bytes) -> int:
    """The checksum that the protocol has beside every secret."""
    return int(google_crc32c.value(data))


def ask(client: Client, method: str, *, timeout: float = 20.0, **request: Any) -> Any:
    """One attempt at one call, with all that the request has."""
    return getattr(client, method)(request=request, retry=None, timeout=timeout)


@contextmanager
def refused(code: str, message: str = "") -> Iterator[pytest.ExceptionInfo[Any]]:
    """The call in the block is answered with this status and words."""
    with pytest.raises(exceptions.GoogleAPICallError, match=message) as caught:
        yield caught
    assert caught.value.grpc_status_code is grpc.StatusCode[code], caught.value


# --- servers, keys and clients -------------------------------------------------------------------


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Makes clients that have a connection of their own, and closes them."""
    clients: list[Client] = []

    def make(server: GcpServer, *, credentials: Any = None) -> Client:
        options = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0))
        if credentials is None:
            channel = grpc.insecure_channel(server.endpoint, options=options)
        else:
            channel = grpc.secure_channel(server.endpoint, credentials, options=options)
        client = Client(transport=KeyManagementServiceGrpcTransport(channel=channel))
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.transport.close()


@pytest.fixture(scope="module")
def running() -> Iterator[GcpServer]:
    """One server for all tests that do not change it."""
    with GcpServer() as server:
        server.create_key("app")
        server.create_key("hsm", protection="HSM")
        yield server


@pytest.fixture
def server(running: GcpServer) -> Iterator[GcpServer]:
    """A server with the keys ``app`` and ``hsm``; tests that change keys make their own."""
    yield running
    running.panel.heal()
    assert not running.errors


@pytest.fixture
def client(server: GcpServer, connect: Connect) -> Client:
    """A client of ``server``."""
    return connect(server)


@pytest.fixture
def own(connect: Connect) -> Iterator[tuple[GcpServer, Client]]:
    """A server of the test's own with the key ``app``, and a client of it."""
    with GcpServer() as server:
        server.create_key()
        yield server, connect(server)
        assert not server.errors


Own = tuple[GcpServer, Client]


@pytest.fixture(scope="module")
def version_of(running: GcpServer) -> Callable[[str], str]:
    """The name of a version with the algorithm; each is made once, for keys take their time."""
    made: dict[str, str] = {}

    def find(algorithm: str) -> str:
        if algorithm not in made:
            key = running.create_key(
                algorithm.lower(),
                purpose=purpose_of(algorithm),
                algorithm=algorithm,
                protection="HSM" if "SECP256K1" in algorithm else "SOFTWARE",
            )
            made[algorithm] = running.versions(key)[0]
        return made[algorithm]

    return find


VersionOf = Callable[[str], str]


def purpose_of(algorithm: str) -> str:
    """The purpose of the keys that have the algorithm."""
    purposes = {
        "GOOGLE_": "ENCRYPT_DECRYPT",
        "AES_": "RAW_ENCRYPT_DECRYPT",
        "HMAC_": "MAC",
        "RSA_DECRYPT_": "ASYMMETRIC_DECRYPT",
    }
    return next((p for start, p in purposes.items() if algorithm.startswith(start)), "") or (
        "ASYMMETRIC_SIGN"
    )


def encrypt(client: Client, name: str = KEY, plaintext: bytes = SECRET, aad: bytes = AAD) -> Any:
    """A complete answer to Encrypt."""
    return ask(
        client, "encrypt", name=name, plaintext=plaintext, additional_authenticated_data=aad
    )


def decrypt(client: Client, ciphertext: bytes, name: str = KEY, aad: bytes = AAD) -> Any:
    """A complete answer to Decrypt."""
    return ask(
        client, "decrypt", name=name, ciphertext=ciphertext, additional_authenticated_data=aad
    )


# --- encryption ----------------------------------------------------------------------------------


def test_what_is_encrypted_can_be_decrypted(client: Client) -> None:
    """Both answers name what was used, and carry checksums that are right."""
    sealed = encrypt(client)
    assert sealed.name == f"{KEY}/cryptoKeyVersions/1"
    assert sealed.protection_level == kms_v1.ProtectionLevel.SOFTWARE
    assert SECRET not in sealed.ciphertext
    assert sealed.ciphertext_crc32c == crc(sealed.ciphertext)
    opened = decrypt(client, sealed.ciphertext)
    assert opened.plaintext == SECRET
    assert opened.plaintext_crc32c == crc(SECRET)
    assert opened.used_primary
    assert opened.protection_level == kms_v1.ProtectionLevel.SOFTWARE


@given(plaintext=st.binary(max_size=300), aad=st.binary(max_size=300))
@settings(max_examples=25)
def test_every_plaintext_comes_back(plaintext: bytes, aad: bytes) -> None:
    """Of any size, none included; no two ciphertexts are alike."""
    with GcpServer() as server, grpc.insecure_channel(server.endpoint) as channel:
        server.create_key()
        client = Client(transport=KeyManagementServiceGrpcTransport(channel=channel))
        first, second = (encrypt(client, KEY, plaintext, aad).ciphertext for _ in range(2))
        assert first != second
        assert decrypt(client, first, KEY, aad).plaintext == plaintext


def test_every_altered_byte_of_a_ciphertext_is_noticed(client: Client) -> None:
    """One flipped bit anywhere, and the ciphertext is refused."""
    good = encrypt(client).ciphertext
    for position in range(len(good)):
        altered = bytearray(good)
        altered[position] ^= 1 << position % 8
        with refused("INVALID_ARGUMENT", "Decryption failed: "):
            decrypt(client, bytes(altered))


@pytest.mark.parametrize("ciphertext", [b"", b"\x00", bytes(64), b"x" * 640 * 1024])
def test_what_is_no_ciphertext_is_refused(client: Client, ciphertext: bytes) -> None:
    """In the words of the service, which blame the key."""
    with refused("INVALID_ARGUMENT", "verify that 'name' refers to the correct CryptoKey"):
        decrypt(client, ciphertext)


def test_a_cut_ciphertext_is_refused(client: Client) -> None:
    """Whatever is left of it."""
    good = encrypt(client).ciphertext
    for size in range(len(good)):
        with refused("INVALID_ARGUMENT", "Decryption failed: "):
            decrypt(client, good[:size])


@pytest.mark.parametrize("aad", [b"", b"tenant=4", b"tenant=42 ", b"TENANT=42"])
def test_other_associated_data_is_refused(client: Client, aad: bytes) -> None:
    """What was bound to the ciphertext is needed to decrypt it."""
    with refused("INVALID_ARGUMENT", "Decryption failed: the ciphertext is invalid."):
        decrypt(client, encrypt(client).ciphertext, aad=aad)


def test_the_ciphertext_of_another_key_is_refused(server: GcpServer, client: Client) -> None:
    """Two keys of one key ring know nothing of each other."""
    other = server.create_key("other")
    with refused("INVALID_ARGUMENT", "verify that 'name' refers to the correct CryptoKey"):
        decrypt(client, encrypt(client, other).ciphertext)


def test_decrypting_takes_the_name_of_a_key(client: Client) -> None:
    """The ciphertext says which version it needs; naming one is an error."""
    sealed = encrypt(client)
    with refused("INVALID_ARGUMENT"):
        decrypt(client, sealed.ciphertext, sealed.name)


def test_only_so_much_is_encrypted(client: Client) -> None:
    """64 KiB of each are allowed, and no byte more."""
    limit = 64 * 1024
    opened = decrypt(client, encrypt(client, KEY, bytes(limit), bytes(limit)).ciphertext, KEY,
                     bytes(limit))
    assert opened.plaintext == bytes(limit)
    with refused("INVALID_ARGUMENT", "plaintext"):
        encrypt(client, KEY, bytes(limit + 1), b"")
    with refused("INVALID_ARGUMENT", "additional_authenticated_data"):
        encrypt(client, KEY, b"", bytes(limit + 1))


def test_hsms_count_plaintext_and_associated_data_together(client: Client) -> None:
    """8 KiB of both, and no byte more; the answer says that an HSM gave it."""
    hsm = f"{KEY.removesuffix('app')}hsm"
    sealed = encrypt(client, hsm, bytes(8000), bytes(192))
    assert sealed.protection_level == kms_v1.ProtectionLevel.HSM
    assert decrypt(client, sealed.ciphertext, hsm, bytes(192)).plaintext == bytes(8000)
    with refused("INVALID_ARGUMENT", "plaintext and additional_authenticated_data"):
        encrypt(client, hsm, bytes(8000), bytes(193))


def test_a_ciphertext_that_is_too_big_is_refused_before_it_is_read(client: Client) -> None:
    """640 KiB, whoever made it."""
    with refused("INVALID_ARGUMENT", "ciphertext has 655361 bytes"):
        decrypt(client, bytes(640 * 1024 + 1))


# --- versions ------------------------------------------------------------------------------------


def test_a_new_version_encrypts_and_the_old_one_still_decrypts(own: Own) -> None:
    """The ciphertext names its version; the answer says whether it is the primary one."""
    server, client = own
    old = encrypt(client)
    new_version = server.add_version(KEY)
    new = encrypt(client)
    assert new.name == new_version == f"{KEY}/cryptoKeyVersions/2"
    assert server.versions(KEY) == [old.name, new.name]
    assert decrypt(client, old.ciphertext).plaintext == SECRET
    assert not decrypt(client, old.ciphertext).used_primary
    assert decrypt(client, new.ciphertext).used_primary


def test_encrypting_with_a_version_does_not_use_the_primary_one(own: Own) -> None:
    """A version that is named is the one that is used."""
    server, client = own
    server.add_version(KEY)
    assert encrypt(client, f"{KEY}/cryptoKeyVersions/1").name == f"{KEY}/cryptoKeyVersions/1"


def test_a_version_is_made_and_then_made_primary(own: Own) -> None:
    """Rotating is two calls; after the first nothing has changed for those who encrypt."""
    _, client = own
    made = ask(client, "create_crypto_key_version", parent=KEY, crypto_key_version={})
    assert made.name == f"{KEY}/cryptoKeyVersions/2"
    assert made.state.name == "ENABLED"
    assert encrypt(client).name.endswith("/1")
    key = ask(
        client, "update_crypto_key_primary_version", name=KEY, crypto_key_version_id="2"
    )
    assert key.primary.name == made.name
    assert encrypt(client).name == made.name


@pytest.mark.parametrize("state", ["DISABLED", "DESTROY_SCHEDULED", "DESTROYED"])
def test_a_version_that_is_not_enabled_does_nothing(own: Own, state: str) -> None:
    """The refusal names the version and its state; other versions go on."""
    server, client = own
    old = encrypt(client)
    new = server.add_version(KEY)
    server.set_state(old.name, state)
    words = f"{old.name} is not enabled, current state is: {state}."
    with refused("FAILED_PRECONDITION", words) as caught:
        decrypt(client, old.ciphertext)
    (failure,) = caught.value.details
    assert isinstance(failure, PreconditionFailure)
    assert [(v.type, v.subject) for v in failure.violations] == [(f"KEY_{state}", old.name)]
    with refused("FAILED_PRECONDITION", words):
        encrypt(client, old.name)
    assert encrypt(client).name == new


def test_a_key_whose_primary_version_is_disabled_does_not_encrypt(own: Own) -> None:
    """No other version takes over."""
    server, client = own
    old = encrypt(client)
    new = server.add_version(KEY)
    server.set_state(new, "DISABLED")
    with refused("FAILED_PRECONDITION", f"{new} is not enabled"):
        encrypt(client)
    assert decrypt(client, old.ciphertext).plaintext == SECRET
    server.set_state(new, "ENABLED")
    assert encrypt(client).name == new


def test_what_is_destroyed_stays_so(own: Own) -> None:
    """Its material is gone, so a test cannot enable it again either."""
    server, client = own
    version = server.versions(KEY)[0]
    server.set_state(version, "DESTROYED")
    shown = ask(client, "get_crypto_key_version", name=version)
    assert shown.state.name == "DESTROYED"
    assert shown.destroy_event_time
    with pytest.raises(ValueError, match="is destroyed"):
        server.set_state(version, "ENABLED")


def set_state(client: Client, version: str, state: str, *paths: str) -> Any:
    """Update a version; only its state unless other paths are given."""
    return ask(
        client,
        "update_crypto_key_version",
        crypto_key_version={"name": version, "state": state},
        update_mask={"paths": paths or ("state",)},
    )


def test_versions_are_disabled_destroyed_and_restored_by_clients(own: Own) -> None:
    """Every step shows in the answer; what was scheduled to go comes back disabled."""
    server, client = own
    version = server.versions(KEY)[0]
    assert set_state(client, version, "DISABLED").state.name == "DISABLED"
    assert set_state(client, version, "ENABLED").state.name == "ENABLED"
    scheduled = ask(client, "destroy_crypto_key_version", name=version)
    assert scheduled.state.name == "DESTROY_SCHEDULED"
    assert (scheduled.destroy_time - scheduled.create_time).days == 30
    restored = ask(client, "restore_crypto_key_version", name=version)
    assert restored.state.name == "DISABLED"
    assert not restored.destroy_time
    assert ask(client, "get_crypto_key", name=KEY).primary.state.name == "DISABLED"


def test_impossible_changes_of_state_are_refused(own: Own) -> None:
    """What is scheduled to go is not enabled or scheduled again; what is not is not restored."""
    server, client = own
    version = server.versions(KEY)[0]
    with refused("FAILED_PRECONDITION"):
        ask(client, "restore_crypto_key_version", name=version)
    ask(client, "destroy_crypto_key_version", name=version)
    with refused("FAILED_PRECONDITION", "current state is: DESTROY_SCHEDULED"):
        ask(client, "destroy_crypto_key_version", name=version)
    with refused("FAILED_PRECONDITION", "current state is: DESTROY_SCHEDULED"):
        set_state(client, version, "ENABLED")


def test_only_the_state_of_a_version_is_updated_and_only_so_far(client: Client) -> None:
    """The mask says what to update; other ways to other states are calls of their own."""
    version = f"{KEY}/cryptoKeyVersions/1"
    with refused("INVALID_ARGUMENT", "update_mask"):
        set_state(client, version, "DISABLED", "name")
    with refused("INVALID_ARGUMENT", "update_mask"):
        set_state(client, version, "DISABLED", "state", "algorithm")
    with refused("INVALID_ARGUMENT", "not DESTROYED"):
        set_state(client, version, "DESTROYED")


def test_the_primary_version_is_one_that_can_be_used(own: Own) -> None:
    """It exists, is enabled and named by its number; only symmetric keys have one."""
    server, client = own
    second = server.add_version(KEY)
    server.add_version(KEY)
    server.set_state(second, "DISABLED")
    method = "update_crypto_key_primary_version"
    with refused("FAILED_PRECONDITION", "is not enabled"):
        ask(client, method, name=KEY, crypto_key_version_id="2")
    with refused("NOT_FOUND", "CryptoKeyVersion .*/9 not found"):
        ask(client, method, name=KEY, crypto_key_version_id="9")
    for wrong in ("", "two", "01", second):
        with refused("INVALID_ARGUMENT", "crypto_key_version_id"):
            ask(client, method, name=KEY, crypto_key_version_id=wrong)
    signing = server.create_key("signing", purpose="ASYMMETRIC_SIGN")
    with refused("FAILED_PRECONDITION", "ASYMMETRIC_SIGN"):
        ask(client, method, name=signing, crypto_key_version_id="1")


def test_a_new_asymmetric_version_is_pending_first(own: Own) -> None:
    """The answer says so, and whoever asks again finds it enabled."""
    server, client = own
    key = server.create_key("signing", purpose="ASYMMETRIC_SIGN")
    made = ask(client, "create_crypto_key_version", parent=key, crypto_key_version={})
    assert made.state.name == "PENDING_GENERATION"
    assert not made.generate_time
    assert ask(client, "get_crypto_key_version", name=made.name).state.name == "ENABLED"


def listed(client: Client, **request: Any) -> list[str]:
    """The numbers of the versions in a list, all pages of it."""
    answer = ask(client, "list_crypto_key_versions", parent=KEY, **request)
    return [version.name.rpartition("/")[2] for version in answer]


@pytest.mark.parametrize("size", [0, 1, 2, 5, 11, 12, 1000])
def test_versions_are_listed_in_pages(own: Own, size: int) -> None:
    """All of them once, in an order that is not that of their age."""
    server, client = own
    for _ in range(11):
        server.add_version(KEY)
    in_order_of_names = ["1", "10", "11", "12", *map(str, range(2, 10))]
    assert listed(client, page_size=size) == in_order_of_names
    assert server.panel.count("ListCryptoKeyVersions") == -(-12 // (size or 100))


def test_a_page_has_no_more_than_it_may(own: Own) -> None:
    """A list that asks for nothing has a hundred versions at a time, and says how many there are."""
    server, client = own
    for _ in range(100):
        server.add_version(KEY)
    first = next(ask(client, "list_crypto_key_versions", parent=KEY).pages)
    assert len(first.crypto_key_versions) == 100
    assert first.total_size == 101
    assert first.next_page_token


def test_lists_are_filtered_by_state(own: Own) -> None:
    """Every state can be asked for; how many match is not told."""
    server, client = own
    server.set_state(server.add_version(KEY), "DISABLED")
    server.add_version(KEY)
    assert listed(client, filter="state=ENABLED") == ["1", "3"]
    assert listed(client, filter=" state = ENABLED ", page_size=1) == ["1", "3"]
    assert listed(client, filter="state:DISABLED") == ["2"]
    assert listed(client, filter="state=DESTROYED") == []
    page = ask(client, "list_crypto_key_versions", parent=KEY, filter="state=ENABLED")
    assert page.total_size == 0


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        ({"filter": "state"}, "INVALID_ARGUMENT"),
        ({"filter": "state=WELL"}, "INVALID_ARGUMENT"),
        ({"filter": "name:1"}, "INVALID_ARGUMENT"),
        ({"order_by": "name"}, "INVALID_ARGUMENT"),
        ({"page_size": -1}, "INVALID_ARGUMENT"),
        ({"page_token": "made up"}, "INVALID_ARGUMENT"),
        ({"page_token": "9"}, "INVALID_ARGUMENT"),
    ],
)
def test_a_list_that_makes_no_sense_is_refused(
    client: Client, request_: dict[str, Any], code: str
) -> None:
    """What cannot be done is not left out in silence."""
    with refused(code):
        listed(client, **request_)


def test_a_key_shows_what_it_is(server: GcpServer, client: Client) -> None:
    """Its purpose, primary version, and what new versions of it will be."""
    key = ask(client, "get_crypto_key", name=KEY)
    assert (key.name, key.purpose.name) == (KEY, "ENCRYPT_DECRYPT")
    assert key.primary.name == f"{KEY}/cryptoKeyVersions/1"
    assert key.primary.algorithm.name == "GOOGLE_SYMMETRIC_ENCRYPTION"
    assert key.version_template.protection_level.name == "SOFTWARE"
    assert key.destroy_scheduled_duration.days == 30
    signing = server.create_key("shown", purpose="ASYMMETRIC_SIGN", protection="HSM")
    shown = ask(client, "get_crypto_key", name=signing)
    assert "primary" not in shown
    assert shown.version_template.algorithm.name == "EC_SIGN_P256_SHA256"
    assert shown.version_template.protection_level.name == "HSM"


def test_key_rings_exist_once_they_have_a_key(client: Client) -> None:
    """Others are not found."""
    ring = KEY.removesuffix("/cryptoKeys/app")
    assert ask(client, "get_key_ring", name=ring).name == ring
    with refused("NOT_FOUND", f"KeyRing {ring}s not found."):
        ask(client, "get_key_ring", name=f"{ring}s")


# --- signatures ----------------------------------------------------------------------------------


def public_key(client: Client, version: str) -> Any:
    """What the service shows, as ``cryptography`` has it."""
    pem = ask(client, "get_public_key", name=version).pem
    return serialization.load_pem_public_key(pem.encode())


def ml_dsa_public_key(client: Client, version: str) -> Any:
    """The same for ML-DSA."""
    mldsa = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.mldsa")
    shown = ask(client, "get_public_key", name=version, public_key_format="NIST_PQC")
    size = shown.algorithm.name.rpartition("_")[2]
    return getattr(mldsa, f"MLDSA{size}PublicKey").from_public_bytes(shown.public_key.data)


def verify(key: Any, algorithm: str, signature: bytes) -> None:
    """Raises unless it is a signature of the message."""
    if algorithm in DATA_SIGNERS:
        key.verify(signature, MESSAGE)
        return
    hashed = HASHES[algorithm.rpartition("_")[2]]
    if isinstance(key, ec.EllipticCurvePublicKey):
        key.verify(signature, MESSAGE, ec.ECDSA(hashed))
    elif "_PSS_" in algorithm:
        pss = padding.PSS(padding.MGF1(hashed), hashed.digest_size)
        key.verify(signature, MESSAGE, pss, hashed)
    else:
        key.verify(signature, MESSAGE, padding.PKCS1v15(), hashed)


def digest(algorithm: str, message: bytes = MESSAGE) -> dict[str, bytes]:
    """What is given to the service instead of the message."""
    name = algorithm.rpartition("_")[2].lower()
    return {name: hashlib.new(name, message).digest()}


@pytest.mark.parametrize("algorithm", DIGEST_SIGNERS)
@pytest.mark.parametrize("whole", [False, True], ids=["digest", "message"])
def test_rsa_and_ec_keys_sign_digests_and_messages(
    client: Client, version_of: VersionOf, algorithm: str, *, whole: bool
) -> None:
    """Either way the signature is one of the message."""
    version = version_of(algorithm)
    sent = {"data": MESSAGE} if whole else {"digest": digest(algorithm)}
    answer = ask(client, "asymmetric_sign", name=version, **sent)
    verify(public_key(client, version), algorithm, answer.signature)
    assert answer.name == version
    assert answer.signature_crc32c == crc(answer.signature)
    level = "HSM" if "SECP256K1" in algorithm else "SOFTWARE"
    assert answer.protection_level.name == level


@pytest.mark.parametrize("algorithm", DATA_SIGNERS)
def test_other_keys_sign_messages_only(
    client: Client, version_of: VersionOf, algorithm: str
) -> None:
    """Ed25519 and ML-DSA hash for themselves."""
    version = version_of(algorithm)
    signature = ask(client, "asymmetric_sign", name=version, data=MESSAGE).signature
    shown = ml_dsa_public_key if algorithm in ML_DSA else public_key
    verify(shown(client, version), algorithm, signature)
    with refused("INVALID_ARGUMENT", "sign data, not a digest"):
        ask(client, "asymmetric_sign", name=version, digest=digest("SHA_SHA256"))


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ({}, "Exactly one"),
        ({"data": b""}, "Exactly one"),
        ({"data": MESSAGE, "digest": digest("_SHA384")}, "Exactly one"),
        ({"digest": digest("_SHA384"), "data_crc32c": 0}, "Exactly one"),
        ({"data": MESSAGE, "digest_crc32c": 0}, "Exactly one"),
        ({"digest": {}}, "data is empty"),
        ({"data_crc32c": 0}, "data is empty"),
        ({"digest": digest("_SHA256")}, "not by sha256"),
        ({"digest": digest("_SHA512")}, "not by sha512"),
        ({"digest": {"sha384": bytes(32)}}, "32 bytes, not 48"),
        ({"digest": {"external_mu": bytes(64)}}, "not by external_mu"),
        ({"data": bytes(64 * 1024 + 1)}, "data has 65537 bytes"),
    ],
)
def test_what_cannot_be_signed_is_refused(
    client: Client, version_of: VersionOf, sent: dict[str, Any], message: str
) -> None:
    """One message or one digest, of the right hash and size."""
    with refused("INVALID_ARGUMENT", message):
        ask(client, "asymmetric_sign", name=version_of("EC_SIGN_P384_SHA384"), **sent)


def test_public_keys_come_in_the_format_asked_for(client: Client, version_of: VersionOf) -> None:
    """PEM in a field of its own if none is asked for; all with checksums, all the same key."""
    version = version_of("EC_SIGN_P256_SHA256")
    plain = ask(client, "get_public_key", name=version)
    assert plain.name == version
    assert plain.algorithm.name == "EC_SIGN_P256_SHA256"
    assert plain.pem_crc32c == crc(plain.pem.encode())
    assert "public_key" not in plain
    pem = ask(client, "get_public_key", name=version, public_key_format="PEM")
    der = ask(client, "get_public_key", name=version, public_key_format="DER")
    for shown, form in ((pem, "PEM"), (der, "DER")):
        assert shown.public_key_format.name == form
        assert shown.public_key.crc32c_checksum == crc(shown.public_key.data)
        assert not shown.pem
    assert pem.public_key.data == plain.pem.encode()
    loaded = serialization.load_der_public_key(der.public_key.data)
    assert loaded == serialization.load_pem_public_key(plain.pem.encode())
    with refused("INVALID_ARGUMENT", "NIST_PQC"):
        ask(client, "get_public_key", name=version, public_key_format="NIST_PQC")


def test_post_quantum_public_keys_must_be_asked_for(
    client: Client, version_of: VersionOf
) -> None:
    """They have no default, and no PEM or DER."""
    version = version_of("PQ_SIGN_ML_DSA_65")
    shown = ask(client, "get_public_key", name=version, public_key_format="NIST_PQC")
    assert len(shown.public_key.data) == 1952
    assert shown.public_key.crc32c_checksum == crc(shown.public_key.data)
    for form in ("PUBLIC_KEY_FORMAT_UNSPECIFIED", "PEM", "DER"):
        with refused("INVALID_ARGUMENT", "NIST_PQC"):
            ask(client, "get_public_key", name=version, public_key_format=form)


def test_a_disabled_version_shows_no_public_key(own: Own) -> None:
    """Although it is no secret."""
    server, client = own
    version = server.versions(server.create_key("signing", purpose="ASYMMETRIC_SIGN"))[0]
    server.set_state(version, "DISABLED")
    with refused("FAILED_PRECONDITION", "is not enabled, current state is: DISABLED."):
        ask(client, "get_public_key", name=version)


# --- asymmetric encryption, MACs, raw encryption, randomness -------------------------------------


@pytest.mark.parametrize(
    "algorithm",
    [
        "RSA_DECRYPT_OAEP_2048_SHA256",
        "RSA_DECRYPT_OAEP_3072_SHA256",
        "RSA_DECRYPT_OAEP_2048_SHA1",
        "RSA_DECRYPT_OAEP_4096_SHA512",
    ],
)
def test_what_is_encrypted_to_a_public_key_is_decrypted(
    client: Client, version_of: VersionOf, algorithm: str
) -> None:
    """With OAEP and the hash of the algorithm, for both of its uses."""
    version = version_of(algorithm)
    key = public_key(client, version)
    assert isinstance(key, rsa.RSAPublicKey)
    assert str(key.key_size) in algorithm
    hashed = HASHES[algorithm.rpartition("_")[2]]
    ciphertext = key.encrypt(SECRET, padding.OAEP(padding.MGF1(hashed), hashed, label=None))
    answer = ask(client, "asymmetric_decrypt", name=version, ciphertext=ciphertext)
    assert answer.plaintext == SECRET
    assert answer.plaintext_crc32c == crc(SECRET)
    assert not answer.verified_ciphertext_crc32c


@pytest.mark.parametrize("ciphertext", [b"", bytes(255), bytes(256), bytes(257)])
def test_what_was_not_encrypted_to_the_key_is_refused(
    client: Client, version_of: VersionOf, ciphertext: bytes
) -> None:
    """Of the right size or not."""
    with refused("INVALID_ARGUMENT", "Decryption failed: the ciphertext is invalid."):
        ask(
            client,
            "asymmetric_decrypt",
            name=version_of("RSA_DECRYPT_OAEP_2048_SHA256"),
            ciphertext=ciphertext,
        )


@pytest.mark.parametrize("bits", [1, 224, 256, 384, 512])
def test_macs_are_made_and_verified(client: Client, version_of: VersionOf, bits: int) -> None:
    """A MAC holds for its message; the answer says so twice, for it is one bit only."""
    version = version_of(f"HMAC_SHA{bits}")
    made = ask(client, "mac_sign", name=version, data=MESSAGE)
    assert made.name == version
    assert made.mac_crc32c == crc(made.mac)
    assert len(made.mac) == hashlib.new(f"sha{bits}").digest_size
    for message in (MESSAGE, MESSAGE + b"0"):
        answer = ask(client, "mac_verify", name=version, data=message, mac=made.mac)
        assert answer.name == version
        assert answer.success is answer.verified_success_integrity is (message == MESSAGE)


def test_macs_are_those_of_the_standard(own: Own) -> None:
    """Seen from inside: the key never leaves the server."""
    server, client = own
    version = server.versions(server.create_key("mac", purpose="MAC"))[0]
    secret = server._service.version(version).material.secret  # type: ignore[union-attr]
    made = ask(client, "mac_sign", name=version, data=MESSAGE).mac
    assert made == hmac.digest(secret, MESSAGE, "sha256")


def test_a_mac_of_another_size_is_an_error(client: Client, version_of: VersionOf) -> None:
    """Not merely a wrong one; and there is no MAC of nothing."""
    version = version_of("HMAC_SHA256")
    with refused("INVALID_ARGUMENT", "mac has 31 bytes, not 32"):
        ask(client, "mac_verify", name=version, data=MESSAGE, mac=bytes(31))
    with refused("INVALID_ARGUMENT", "data is empty"):
        ask(client, "mac_sign", name=version, data=b"")


def test_hsms_take_shorter_messages(server: GcpServer, client: Client) -> None:
    """16 KiB instead of 64."""
    for level, limit in (("SOFTWARE", 64 * 1024), ("HSM", 16 * 1024)):
        key = server.create_key(f"mac-{level}", purpose="MAC", protection=level)
        version = server.versions(key)[0]
        assert ask(client, "mac_sign", name=version, data=bytes(limit)).mac
        with refused("INVALID_ARGUMENT", f"data has {limit + 1} bytes"):
            ask(client, "mac_sign", name=version, data=bytes(limit + 1))


@pytest.mark.parametrize("algorithm", ["AES_128_GCM", "AES_256_GCM"])
def test_raw_encryption_comes_back(
    client: Client, version_of: VersionOf, algorithm: str
) -> None:
    """The service makes the initialization vector, and the tag is the ciphertext's end."""
    version = version_of(algorithm)
    bound = {"additional_authenticated_data": AAD}
    sealed = ask(client, "raw_encrypt", name=version, plaintext=SECRET, **bound)
    assert sealed.name == version
    assert (len(sealed.ciphertext), sealed.tag_length) == (len(SECRET) + 16, 16)
    assert sealed.ciphertext_crc32c == crc(sealed.ciphertext)
    assert sealed.initialization_vector_crc32c == crc(sealed.initialization_vector)
    request = {
        "name": version,
        "ciphertext": sealed.ciphertext,
        "initialization_vector": sealed.initialization_vector,
    }
    opened = ask(client, "raw_decrypt", **request, **bound)
    assert opened.plaintext == SECRET
    assert opened.plaintext_crc32c == crc(SECRET)
    with refused("INVALID_ARGUMENT", "the ciphertext is invalid"):
        ask(client, "raw_decrypt", **request)


@pytest.mark.parametrize(
    ("method", "sent", "message"),
    [
        ("raw_encrypt", {"initialization_vector": bytes(12)}, "is not allowed"),
        ("raw_encrypt", {"initialization_vector_crc32c": 0}, "is not allowed"),
        ("raw_encrypt", {"plaintext": bytes(65537)}, "plaintext has 65537 bytes"),
        ("raw_decrypt", {"initialization_vector": bytes(11)}, "11 bytes, not 12"),
        ("raw_decrypt", {"initialization_vector": bytes(12), "tag_length": 12}, "not 16"),
        ("raw_decrypt", {"initialization_vector": bytes(12), "tag_length": 16}, "invalid"),
    ],
)
def test_raw_encryption_is_strict(
    client: Client, version_of: VersionOf, method: str, sent: dict[str, Any], message: str
) -> None:
    """Nobody chooses an initialization vector, and tags are whole."""
    with refused("INVALID_ARGUMENT", message):
        ask(client, method, name=version_of("AES_256_GCM"), **sent)


def test_random_bytes_are_given(client: Client) -> None:
    """As many as were asked for, never the same ones, by HSMs only."""
    location = "projects/demo/locations/europe-west1"
    request = {"location": location, "protection_level": "HSM"}
    seen = set()
    for size in (8, 32, 1024, 1024):
        answer = ask(client, "generate_random_bytes", **request, length_bytes=size)
        assert len(answer.data) == size
        assert answer.data_crc32c == crc(answer.data)
        seen.add(answer.data)
    assert len(seen) == 4
    for size in (-1, 0, 7, 1025):
        with refused("INVALID_ARGUMENT", "8 to 1024"):
            ask(client, "generate_random_bytes", **request, length_bytes=size)
    with refused("INVALID_ARGUMENT", "HSM"):
        ask(client, "generate_random_bytes", location=location, length_bytes=8)


# --- checksums -----------------------------------------------------------------------------------

CHECKED = [
    ("encrypt", "GOOGLE_SYMMETRIC_ENCRYPTION", ("plaintext", "additional_authenticated_data")),
    ("decrypt", "GOOGLE_SYMMETRIC_ENCRYPTION", ("ciphertext", "additional_authenticated_data")),
    ("raw_encrypt", "AES_256_GCM", ("plaintext", "additional_authenticated_data")),
    (
        "raw_decrypt",
        "AES_256_GCM",
        ("ciphertext", "additional_authenticated_data", "initialization_vector"),
    ),
    ("asymmetric_decrypt", "RSA_DECRYPT_OAEP_2048_SHA256", ("ciphertext",)),
    ("asymmetric_sign", "EC_SIGN_P256_SHA256", ("data",)),
    ("asymmetric_sign", "EC_SIGN_P256_SHA256", ("digest",)),
    ("mac_sign", "HMAC_SHA256", ("data",)),
    ("mac_verify", "HMAC_SHA256", ("data", "mac")),
]


@pytest.fixture
def good_request(client: Client, version_of: VersionOf) -> Callable[[str, str], dict[str, Any]]:
    """A request that is answered with a result."""

    def make(method: str, algorithm: str) -> dict[str, Any]:
        version = version_of(algorithm)
        request: dict[str, Any] = {"name": version, "data": MESSAGE}
        if method == "mac_verify":
            request["mac"] = ask(client, "mac_sign", **request).mac
        if method in {"asymmetric_sign", "mac_sign", "mac_verify"}:
            return request
        request = {"name": version}
        if method != "asymmetric_decrypt":
            request["additional_authenticated_data"] = AAD
        if method in {"encrypt", "raw_encrypt"}:
            return {**request, "plaintext": SECRET}
        if method == "decrypt":
            sealed = encrypt(client, version)
            return {**request, "name": KEY_OF(version), "ciphertext": sealed.ciphertext}
        if method == "raw_decrypt":
            raw = ask(client, "raw_encrypt", **request, plaintext=SECRET)
            iv = raw.initialization_vector
            return {**request, "ciphertext": raw.ciphertext, "initialization_vector": iv}
        hashed = hashes.SHA256()
        oaep = padding.OAEP(padding.MGF1(hashed), hashed, label=None)
        return {**request, "ciphertext": public_key(client, version).encrypt(SECRET, oaep)}

    return make


GoodRequest = Callable[[str, str], dict[str, Any]]


def KEY_OF(version: str) -> str:  # noqa: N802
    """The key that a version is one of."""
    return version.partition("/cryptoKeyVersions/")[0]
