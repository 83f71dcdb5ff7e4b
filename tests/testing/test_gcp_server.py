"""The Google server speaks the real protocol, computes for real, and refuses what Google does."""

from __future__ import annotations

import hashlib
import hmac
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import google_crc32c
import grpc
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from google.api_core import exceptions
from google.cloud import kms_v1
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
    "SHA1": hashes.SHA1(),  # noqa: S303  old keys have it
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


def ask(client: Client, method: str, **request: Any) -> Any:
    """One attempt at one call, with all that the request has."""
    return getattr(client, method)(request=request, retry=None, timeout=20.0)


def ask_in_haste(client: Client) -> None:
    """Encrypt, and do not wait for the answer if it takes its time."""
    client.encrypt(request={"name": KEY, "plaintext": SECRET}, retry=None, timeout=0.2)


def wait_for(server: GcpServer, operation: str, calls: int) -> None:
    """Until so many calls have reached the server."""
    end = time.monotonic() + 20
    while server.panel.count(operation) < calls:
        assert time.monotonic() < end, f"{operation} did not arrive"
        threading.Event().wait(0.005)


@contextmanager
def refused(code: str, message: str = ".") -> Iterator[pytest.ExceptionInfo[Any]]:
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
        close(client)


def close(client: Client) -> None:
    """End the client's connection."""
    transport: Any = client.transport  # has no types
    transport.close()


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


def key_of(version: str) -> str:
    """The key that a version is one of."""
    return version.partition("/cryptoKeyVersions/")[0]


def encrypt(client: Client, name: str = KEY, plaintext: bytes = SECRET, aad: bytes = AAD) -> Any:
    """A complete answer to Encrypt."""
    return ask(client, "encrypt", name=name, plaintext=plaintext, additional_authenticated_data=aad)


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
    opened = decrypt(
        client, encrypt(client, KEY, bytes(limit), bytes(limit)).ciphertext, KEY, bytes(limit)
    )
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
    key = ask(client, "update_crypto_key_primary_version", name=KEY, crypto_key_version_id="2")
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
    """A hundred versions unless a number is asked for; the answer says how many there are."""
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
    ("field", "value"),
    [
        ("filter", "state"),
        ("filter", "state=WELL"),
        ("filter", "name:1"),
        ("order_by", "name"),
        ("page_size", -1),
        ("page_token", "made up"),
        ("page_token", "9"),
    ],
)
def test_a_list_that_makes_no_sense_is_refused(client: Client, field: str, value: object) -> None:
    """What cannot be done is not left out in silence."""
    with refused("INVALID_ARGUMENT", f"The field {field} is "):
        listed(client, **{field: value})


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
    assert server.add_version(signing) == f"{signing}/cryptoKeyVersions/2"
    assert "primary" not in ask(client, "get_crypto_key", name=signing)
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


def test_post_quantum_public_keys_must_be_asked_for(client: Client, version_of: VersionOf) -> None:
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
def test_raw_encryption_comes_back(client: Client, version_of: VersionOf, algorithm: str) -> None:
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
        request: dict[str, Any] = {"name": version}
        if method == "mac_verify":
            request["mac"] = ask(client, "mac_sign", name=version, data=MESSAGE).mac
        if method in {"asymmetric_sign", "mac_sign", "mac_verify"}:
            return {**request, "data": MESSAGE}
        if method != "asymmetric_decrypt":
            request["additional_authenticated_data"] = AAD
        if method in {"encrypt", "raw_encrypt"}:
            return {**request, "plaintext": SECRET}
        if method == "decrypt":
            sealed = encrypt(client, version)
            return {**request, "name": key_of(version), "ciphertext": sealed.ciphertext}
        if method == "raw_decrypt":
            raw = ask(client, "raw_encrypt", **request, plaintext=SECRET)
            iv = raw.initialization_vector
            return {**request, "ciphertext": raw.ciphertext, "initialization_vector": iv}
        hashed = hashes.SHA256()
        oaep = padding.OAEP(padding.MGF1(hashed), hashed, label=None)
        return {**request, "ciphertext": public_key(client, version).encrypt(SECRET, oaep)}

    return make


GoodRequest = Callable[[str, str], dict[str, Any]]


def checked(request: dict[str, Any], field: str) -> tuple[dict[str, Any], bytes]:
    """The request, with a digest in place of the message if that is the field; and its bytes."""
    if field != "digest":
        return request, request[field]
    by_digest = {"name": request["name"], "digest": digest("_SHA256")}
    return by_digest, by_digest["digest"]["sha256"]


@pytest.mark.parametrize(
    ("method", "algorithm", "field"),
    [(method, algorithm, field) for method, algorithm, fields in CHECKED for field in fields],
)
def test_checksums_of_requests_are_compared(
    client: Client, good_request: GoodRequest, method: str, algorithm: str, field: str
) -> None:
    """A right one is confirmed, a wrong one refused, and none is none."""
    request, data = checked(good_request(method, algorithm), field)
    right = ask(client, method, **request, **{f"{field}_crc32c": crc(data)})
    without = ask(client, method, **request)
    if method != "decrypt":  # which confirms nothing
        assert getattr(right, f"verified_{field}_crc32c") is True
        assert getattr(without, f"verified_{field}_crc32c") is False
    for wrong in (crc(data) ^ 1, 0, -1):
        with refused("INVALID_ARGUMENT", f"{field}_crc32c did not match the data in field {field}"):
            ask(client, method, **request, **{f"{field}_crc32c": wrong})


def test_the_checksum_of_nothing_is_compared_too(client: Client) -> None:
    """A field that is empty has the checksum 0, and confirms it."""
    request = {"name": KEY, "plaintext": b"", "additional_authenticated_data": b""}
    answer = ask(client, "encrypt", **request, plaintext_crc32c=0)
    assert answer.verified_plaintext_crc32c
    assert not answer.verified_additional_authenticated_data_crc32c
    with refused("INVALID_ARGUMENT", "plaintext_crc32c did not match"):
        ask(client, "encrypt", **request, plaintext_crc32c=1)


# --- names and purposes --------------------------------------------------------------------------

OF_VERSIONS = (
    "asymmetric_decrypt",
    "asymmetric_sign",
    "get_public_key",
    "mac_sign",
    "mac_verify",
    "raw_encrypt",
    "raw_decrypt",
    "get_crypto_key_version",
    "destroy_crypto_key_version",
    "restore_crypto_key_version",
)
OF_KEYS = ("decrypt", "get_crypto_key", "update_crypto_key_primary_version")
OF_PARENTS = ("list_crypto_key_versions", "create_crypto_key_version")


def by_name(client: Client, method: str, name: str) -> Any:
    """A call about a resource, with nothing else in it."""
    if method == "update_crypto_key_version":
        return set_state(client, name, "ENABLED")
    return ask(client, method, **{"parent" if method in OF_PARENTS else "name": name})


@pytest.mark.parametrize(
    "name",
    [
        "",
        "app",
        "malformed name",
        f"{KEY}\n",
        f"{KEY}/",
        f"/{KEY}",
        f"//cloudkms.googleapis.com/{KEY}",
        f"gcp-kms://{KEY}",
        f"{KEY}/cryptoKeyVersions",
        f"{KEY}/cryptoKeyVersions/",
        f"{KEY}/cryptoKeyVersions/0",
        f"{KEY}/cryptoKeyVersions/01",
        f"{KEY}/cryptoKeyVersions/1/",
        f"{KEY}/cryptoKeyVersions/latest",
        f"{KEY}{'a' * 64}",
        KEY.replace("app", "a.b"),
        KEY.replace("cryptoKeys", "cryptokeys"),
    ],
)
@pytest.mark.parametrize(
    "method",
    ["encrypt", "get_key_ring", "update_crypto_key_version", *OF_VERSIONS, *OF_KEYS, *OF_PARENTS],
)
def test_a_malformed_name_is_refused(client: Client, method: str, name: str) -> None:
    """By every call, and before anything else is looked at."""
    with refused("INVALID_ARGUMENT", "is malformed"):
        by_name(client, method, name)


@pytest.mark.parametrize("method", ["update_crypto_key_version", *OF_VERSIONS])
def test_calls_about_versions_do_not_take_keys(client: Client, method: str) -> None:
    """There is no version that stands for the key."""
    with refused("INVALID_ARGUMENT", "that of a CryptoKey, not of a CryptoKeyVersion"):
        by_name(client, method, KEY)


@pytest.mark.parametrize("method", [*OF_KEYS, *OF_PARENTS])
def test_calls_about_keys_do_not_take_versions(client: Client, method: str) -> None:
    """Nor the other way round."""
    with refused("INVALID_ARGUMENT", "that of a CryptoKeyVersion, not of a CryptoKey"):
        by_name(client, method, f"{KEY}/cryptoKeyVersions/1")


@pytest.mark.parametrize("missing", ["app2", "app/cryptoKeyVersions/2", "no/cryptoKeyVersions/1"])
def test_what_is_not_there_is_not_found(client: Client, missing: str) -> None:
    """Said before anything else is looked at, and with its name."""
    name = KEY.replace("app", missing)
    kind = "CryptoKeyVersion" if "Versions" in missing else "CryptoKey"
    methods = ("update_crypto_key_version", *OF_VERSIONS)
    for method in ("encrypt", *(methods if kind != "CryptoKey" else (*OF_KEYS, *OF_PARENTS))):
        with refused("NOT_FOUND", f"^404 {kind} {name} not found.$"):
            by_name(client, method, name)


USES = {
    "encrypt": "GOOGLE_SYMMETRIC_ENCRYPTION",
    "decrypt": "GOOGLE_SYMMETRIC_ENCRYPTION",
    "raw_encrypt": "AES_256_GCM",
    "raw_decrypt": "AES_256_GCM",
    "asymmetric_decrypt": "RSA_DECRYPT_OAEP_2048_SHA256",
    "asymmetric_sign": "EC_SIGN_P256_SHA256",
    "mac_sign": "HMAC_SHA256",
    "mac_verify": "HMAC_SHA256",
}


@pytest.mark.parametrize("method", [*USES, "get_public_key"])
def test_keys_of_another_purpose_are_refused(
    client: Client, version_of: VersionOf, method: str
) -> None:
    """A key is good for one thing, whatever else the request says."""
    own = USES.get(method)
    pairs = {"RSA_DECRYPT_OAEP_2048_SHA256", "EC_SIGN_P256_SHA256"}
    for algorithm in set(USES.values()) - ({own} if own else pairs):
        version = version_of(algorithm)
        with refused("FAILED_PRECONDITION", f"keys with algorithm {algorithm} may not be used"):
            by_name(client, method, key_of(version) if method == "decrypt" else version)


@pytest.mark.parametrize("method", USES)
def test_no_use_of_a_version_that_is_disabled(connect: Connect, method: str) -> None:
    """Said before anything else is looked at."""
    with GcpServer() as server:
        algorithm = USES[method]
        key = server.create_key(purpose=purpose_of(algorithm), algorithm=algorithm)
        version = server.versions(key)[0]
        client = connect(server)
        request: dict[str, Any] = {"name": version}
        if method == "decrypt":
            request = {"name": key, "ciphertext": encrypt(client).ciphertext}
        server.set_state(version, "DISABLED")
        with refused("FAILED_PRECONDITION", f"{version} is not enabled"):
            ask(client, method, **request)


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("list_crypto_keys", {"parent": KEY.removesuffix("/cryptoKeys/app")}),
        ("create_key_ring", {"parent": "projects/demo/locations/global", "key_ring_id": "r"}),
        ("update_crypto_key", {"crypto_key": {"name": KEY}}),
        ("decapsulate", {"name": f"{KEY}/cryptoKeyVersions/1"}),
    ],
)
def test_other_calls_are_not_implemented(
    server: GcpServer, client: Client, method: str, request_: dict[str, Any]
) -> None:
    """They are not counted either."""
    before = server.panel.count()
    with refused("UNIMPLEMENTED"):
        ask(client, method, **request_)
    assert server.panel.count() == before


# --- failures on cue -----------------------------------------------------------------------------


def test_calls_are_counted_by_their_names(own: Own) -> None:
    """Refused ones too."""
    server, client = own
    encrypt(client)
    with refused("INVALID_ARGUMENT"):
        decrypt(client, b"")
    encrypt(client)
    assert server.panel.count("Encrypt") == 2
    assert server.panel.count("Decrypt") == 1
    assert server.panel.count() == 3


@pytest.mark.parametrize(
    ("failure", "code", "message"),
    [
        (Failure.THROTTLE, "RESOURCE_EXHAUSTED", "Quota exceeded for quota metric"),
        (Failure.SERVER_ERROR, "UNAVAILABLE", "The service is currently unavailable."),
        (
            Failure.ACCESS_DENIED,
            "PERMISSION_DENIED",
            rf"useToEncrypt' denied on resource '{KEY}' \(or it may not exist\)",
        ),
        (
            Failure.KEY_DISABLED,
            "FAILED_PRECONDITION",
            f"{KEY}/cryptoKeyVersions/1 is not enabled, current state is: DISABLED.",
        ),
        (Failure.KEY_NOT_FOUND, "NOT_FOUND", f"CryptoKey {KEY} not found."),
    ],
)
def test_refusals_on_cue(own: Own, failure: Failure, code: str, message: str) -> None:
    """As many as were ordered, of the call that was meant, in the words of the service."""
    server, client = own
    server.panel.fail(failure, operation="Encrypt", times=2)
    for _ in range(2):
        with refused(code, message):
            encrypt(client)
        assert ask(client, "get_crypto_key", name=KEY).name == KEY
    assert encrypt(client).ciphertext


def test_every_call_fails_on_cue(server: GcpServer, client: Client) -> None:
    """An order without an operation is for all that the service does."""
    methods = {
        **dict.fromkeys((*OF_VERSIONS, "encrypt"), f"{KEY}/cryptoKeyVersions/1"),
        **dict.fromkeys((*OF_KEYS, *OF_PARENTS), KEY),
        "get_key_ring": KEY.removesuffix("/cryptoKeys/app"),
        "update_crypto_key_version": f"{KEY}/cryptoKeyVersions/1",
    }
    server.panel.fail(Failure.ACCESS_DENIED)
    for method, name in methods.items():
        with refused("PERMISSION_DENIED", f"denied on resource '{key_of(name)}'") as caught:
            by_name(client, method, name)
        assert caught.value.reason == "IAM_PERMISSION_DENIED"
        assert caught.value.metadata["permission"].startswith("cloudkms.")
    with refused("PERMISSION_DENIED", "cloudkms.locations.generateRandomBytes"):
        ask(client, "generate_random_bytes", location="projects/demo/locations/global")


def test_throttling_says_how_long_to_wait(own: Own) -> None:
    """In the details of the status, if it was told how long."""
    server, client = own
    server.panel.fail(Failure.THROTTLE, seconds=2.5, times=1)
    server.panel.fail(Failure.THROTTLE, times=1)
    with refused("RESOURCE_EXHAUSTED") as with_delay:
        encrypt(client)
    quota, retry = with_delay.value.details
    assert isinstance(quota, ErrorInfo)
    assert quota.reason == "RATE_LIMIT_EXCEEDED"
    assert isinstance(retry, RetryInfo)
    assert retry.retry_delay.ToTimedelta().total_seconds() == 2.5
    with refused("RESOURCE_EXHAUSTED") as without:
        encrypt(client)
    assert not any(isinstance(detail, RetryInfo) for detail in without.value.details)


def test_a_malformed_answer_is_an_empty_message(
    server: GcpServer, client: Client, good_request: GoodRequest
) -> None:
    """Of the right type, and a success."""
    for method, algorithm in USES.items():
        request = good_request(method, algorithm)
        server.panel.fail(Failure.MALFORMED, times=1)
        answer = ask(client, method, **request)
        assert type(answer).__name__ == f"{method.title().replace('_', '')}Response"
        assert answer == type(answer)()


def test_a_wrong_key_is_named_wherever_one_is(
    server: GcpServer, client: Client, good_request: GoodRequest
) -> None:
    """All else is as it should be."""
    server.panel.fail(Failure.WRONG_KEY)
    for method in ("encrypt", "raw_encrypt", "asymmetric_sign", "mac_sign", "mac_verify"):
        request = good_request(method, USES[method])
        answer = ask(client, method, **request)
        assert answer.name == f"{KEY.replace('app', 'another-key')}/cryptoKeyVersions/1"
    another = KEY.replace("app", "another-key")
    key = ask(client, "get_crypto_key", name=KEY)
    assert (key.name, key.primary.name) == (another, f"{another}/cryptoKeyVersions/1")
    (shown,) = ask(client, "list_crypto_key_versions", parent=KEY)
    assert shown.name == f"{another}/cryptoKeyVersions/1"
    ring = KEY.removesuffix("/cryptoKeys/app")
    assert ask(client, "get_key_ring", name=ring).name == ring


@pytest.mark.parametrize(
    ("method", "field"),
    [
        ("encrypt", "ciphertext"),
        ("decrypt", "plaintext"),
        ("raw_encrypt", "ciphertext"),
        ("raw_encrypt", "initialization_vector"),
        ("raw_decrypt", "plaintext"),
        ("asymmetric_decrypt", "plaintext"),
        ("asymmetric_sign", "signature"),
        ("mac_sign", "mac"),
    ],
)
def test_checksums_of_answers_are_corrupted_on_cue(
    server: GcpServer, client: Client, good_request: GoodRequest, method: str, field: str
) -> None:
    """Only they are: what they are of is good, and so is what is said of the request's."""
    request = good_request(method, USES[method])
    server.panel.fail(Failure.CORRUPT_CRC)
    answer = ask(client, method, **request)
    data, checksum = getattr(answer, field), getattr(answer, f"{field}_crc32c")
    assert data
    assert checksum not in {None, crc(data)}
    server.panel.heal()
    answer = ask(client, method, **request)
    assert getattr(answer, f"{field}_crc32c") == crc(getattr(answer, field))


def test_checksums_of_public_keys_are_corrupted_on_cue(
    server: GcpServer, client: Client, version_of: VersionOf
) -> None:
    """In whichever field they are."""
    version = version_of("EC_SIGN_P256_SHA256")
    server.panel.fail(Failure.CORRUPT_CRC)
    plain = ask(client, "get_public_key", name=version)
    assert plain.pem_crc32c not in {None, crc(plain.pem.encode())}
    der = ask(client, "get_public_key", name=version, public_key_format="DER").public_key
    assert der.crc32c_checksum not in {None, crc(der.data)}


def test_what_stands_for_a_checksum_is_corrupted_on_cue(
    server: GcpServer, client: Client, good_request: GoodRequest
) -> None:
    """MacVerify says its one bit twice, and then differently."""
    request = good_request("mac_verify", "HMAC_SHA256")
    server.panel.fail(Failure.CORRUPT_CRC)
    answer = ask(client, "mac_verify", **request, data_crc32c=crc(MESSAGE))
    assert answer.success
    assert answer.verified_data_crc32c
    assert not answer.verified_success_integrity


def test_a_key_that_is_disabled_on_cue_is_shown_so(own: Own) -> None:
    """Reading goes on, and says why nothing else does."""
    server, client = own
    server.panel.fail(Failure.KEY_DISABLED)
    version = f"{KEY}/cryptoKeyVersions/1"
    assert ask(client, "get_crypto_key", name=KEY).primary.state.name == "DISABLED"
    assert ask(client, "get_crypto_key_version", name=version).state.name == "DISABLED"
    (shown,) = ask(client, "list_crypto_key_versions", parent=KEY)
    assert shown.state.name == "DISABLED"
    assert listed(client, filter="state=ENABLED") == []
    with refused("FAILED_PRECONDITION", f"{version} is not enabled"):
        ask(client, "get_public_key", name=version)
    server.panel.heal()
    assert listed(client, filter="state=ENABLED") == ["1"]


def test_a_slow_answer_comes_when_it_is_healed(own: Own) -> None:
    """It is a good one."""
    server, client = own
    server.panel.fail(Failure.SLOW, seconds=60)
    with ThreadPoolExecutor(1) as thread:
        sealed = thread.submit(encrypt, client)
        wait_for(server, "Encrypt", 1)
        assert not sealed.done()
        server.panel.heal()
        assert sealed.result(20).ciphertext


def test_a_slow_answer_is_too_late_for_some(own: Own) -> None:
    """A client that does not wait for it can go on using its connection."""
    server, client = own
    server.panel.fail(Failure.SLOW, seconds=60, times=1)
    with refused("DEADLINE_EXCEEDED"):
        ask_in_haste(client)
    assert encrypt(client).ciphertext


def test_nothing_is_answered_while_the_line_hangs(own: Own, connect: Connect) -> None:
    """Connections are accepted and requests are read."""
    server, client = own
    encrypt(client)
    server.panel.fail(Failure.HANG)
    for each in (client, connect(server)):
        with refused("DEADLINE_EXCEEDED"):
            ask_in_haste(each)
    server.panel.heal()
    assert encrypt(connect(server)).ciphertext


def test_connections_are_refused_until_it_is_healed(own: Own, connect: Connect) -> None:
    """Those that exist break; afterwards the keys are as they were."""
    server, client = own
    sealed = encrypt(client)
    server.panel.fail(Failure.REFUSE)
    for each in (client, connect(server)):
        with refused("UNAVAILABLE"):
            encrypt(each)
    server.panel.heal()
    assert decrypt(connect(server), sealed.ciphertext).plaintext == SECRET


def test_connections_break_while_a_call_is_under_way(own: Own, connect: Connect) -> None:
    """What was asked has been done, and nobody is told; the port stays open."""
    server, client = own
    server.panel.fail(Failure.RESET, operation="CreateCryptoKeyVersion", times=1)
    with refused("UNAVAILABLE"):
        ask(client, "create_crypto_key_version", parent=KEY, crypto_key_version={})
    assert len(server.versions(KEY)) == 2
    assert encrypt(connect(server)).ciphertext


def test_every_failure_can_be_ordered(server: GcpServer) -> None:
    """Google has all there are."""
    assert server.panel.failures == frozenset(Failure)
    assert server.panel.failures > OF_THE_LINE


# --- TLS -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def secure() -> Iterator[GcpServer]:
    """A server with TLS and the key ``app``."""
    with GcpServer(tls=True) as server:
        server.create_key()
        yield server


def test_a_client_that_trusts_the_authority_is_served(secure: GcpServer, connect: Connect) -> None:
    """Under the address that it was configured with."""
    assert secure.ca_file
    trust = grpc.ssl_channel_credentials(secure.ca_file.read_bytes())
    client = connect(secure, credentials=trust)
    assert decrypt(client, encrypt(client).ciphertext).plaintext == SECRET


def test_the_certificate_is_only_trusted_with_its_authority(
    secure: GcpServer, connect: Connect
) -> None:
    """Neither a client that was not given it talks to the server, nor one without TLS."""
    before = secure.panel.count()
    for credentials in (grpc.ssl_channel_credentials(), None):
        with refused("UNAVAILABLE"):
            encrypt(connect(secure, credentials=credentials))
    assert secure.panel.count() == before


def test_only_a_server_with_tls_has_an_authority(server: GcpServer) -> None:
    """Whose file is gone when the server is."""
    assert server.ca_file is None
    with GcpServer(tls=True) as other:
        file = other.ca_file
        assert file
        assert file.exists()
    assert not file.exists()


# --- the server itself ---------------------------------------------------------------------------


def test_keys_are_named_as_asked(server: GcpServer, client: Client) -> None:
    """In any project, location and ring."""
    name = server.create_key("k_1", project="p", location="global", ring="Other-Ring")
    assert name == "projects/p/locations/global/keyRings/Other-Ring/cryptoKeys/k_1"
    assert encrypt(client, name).name == f"{name}/cryptoKeyVersions/1"


@pytest.mark.parametrize(
    "wrong",
    [
        {"key_id": "a/b"},
        {"key_id": ""},
        {"location": "Europe"},
        {"purpose": "ENCRYPT"},
        {"algorithm": "AES_256_GCM"},
        {"algorithm": "ROT13"},
        {"purpose": "MAC", "algorithm": "GOOGLE_SYMMETRIC_ENCRYPTION"},
        {"protection": "EXTERNAL"},
        {"purpose": "ASYMMETRIC_SIGN", "algorithm": "EC_SIGN_SECP256K1_SHA256"},
        {"key_id": "app"},
    ],
)
def test_keys_that_there_are_not_cannot_be_made(server: GcpServer, wrong: dict[str, str]) -> None:
    """The test that asks for one is wrong; nothing is left of it."""
    with pytest.raises(ValueError, match=r"no keys|not the name|protection|in HSMs|already"):
        server.create_key(**{"key_id": "new", **wrong})
    with pytest.raises(gcp_server.Refusal, match="not found"):
        server.versions(KEY.replace("app", "new"))


@pytest.mark.parametrize(
    ("purpose", "algorithm"),
    [
        ("ENCRYPT_DECRYPT", "GOOGLE_SYMMETRIC_ENCRYPTION"),
        ("RAW_ENCRYPT_DECRYPT", "AES_256_GCM"),
        ("ASYMMETRIC_DECRYPT", "RSA_DECRYPT_OAEP_2048_SHA256"),
        ("ASYMMETRIC_SIGN", "EC_SIGN_P256_SHA256"),
        ("MAC", "HMAC_SHA256"),
    ],
)
def test_a_purpose_has_an_algorithm_of_its_own(own: Own, purpose: str, algorithm: str) -> None:
    """For those who do not care."""
    server, client = own
    key = server.create_key("some", purpose=purpose)
    shown = ask(client, "get_crypto_key_version", name=server.versions(key)[0])
    assert shown.algorithm.name == algorithm


def test_a_bug_of_the_server_does_not_look_like_a_fault(own: Own) -> None:
    """It is kept for the test to look at."""
    server, client = own
    server._service._rings = None  # type: ignore[assignment]
    with refused("INTERNAL", "This server has a bug"):
        ask(client, "get_key_ring", name=KEY.removesuffix("/cryptoKeys/app"))
    assert isinstance(server.errors.pop(), TypeError)


def test_many_callers_at_once(own: Own) -> None:
    """Every one gets its own answer, and every version has a number of its own."""
    server, client = own
    barrier = threading.Barrier(8)

    def work(number: int) -> None:
        plaintext = bytes([number])
        barrier.wait(20)
        for _ in range(20):
            sealed = encrypt(client, plaintext=plaintext)
            assert decrypt(client, sealed.ciphertext).plaintext == plaintext
        ask(client, "create_crypto_key_version", parent=KEY, crypto_key_version={})

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))
    assert sorted(server.versions(KEY)) == [f"{KEY}/cryptoKeyVersions/{n}" for n in range(1, 10)]


def test_servers_do_not_share_keys_or_ports() -> None:
    """As many as a test wants."""
    with GcpServer() as one, GcpServer() as other:
        one.create_key()
        assert one.endpoint != other.endpoint
        with pytest.raises(gcp_server.Refusal, match="not found"):
            other.versions(KEY)


@pytest.mark.parametrize("tls", [False, True])
def test_nothing_is_left_of_a_closed_server(connect: Connect, *, tls: bool) -> None:
    """No thread and no port, also if a call was under way; closing again does no harm."""
    before = set(threading.enumerate())
    server = GcpServer(tls=tls)
    server.create_key()
    trust = grpc.ssl_channel_credentials(server.ca_file.read_bytes()) if server.ca_file else None
    client = connect(server, credentials=trust)
    encrypt(client)
    server.panel.fail(Failure.SLOW, seconds=60)
    with ThreadPoolExecutor(1) as thread:
        late = thread.submit(encrypt, client)
        wait_for(server, "Encrypt", 2)
        server.close()
        with refused("UNAVAILABLE"):
            late.result(20)
    server.close()
    close(client)
    for left in set(threading.enumerate()) - before:
        left.join(10)  # gRPC's own end a moment after it says so
        assert not left.is_alive(), left
    with refused("UNAVAILABLE"):
        encrypt(connect(server, credentials=trust))


def test_a_reset_that_comes_too_late_does_no_harm() -> None:
    """A call may still be under way when the server is closed."""
    server = GcpServer()
    server.close()
    server._break_connections()
    assert not server.errors


def test_the_calls_are_those_of_the_service() -> None:
    """A misspelt one would be unimplemented, and no test would miss it."""
    transport = KeyManagementServiceGrpcTransport
    for operation in gcp_server._CALLS:
        snake = "".join(f"_{c.lower()}" if c.isupper() else c for c in operation).lstrip("_")
        assert hasattr(transport, snake)
