"""The Azure server speaks the real protocol, computes for real, and refuses what Azure does."""

from __future__ import annotations

import base64
import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from attrs import frozen
from azure.core.credentials import AccessToken
from azure.core.exceptions import (
    ClientAuthenticationError,
    HttpResponseError,
    IncompleteReadError,
    ResourceExistsError,
    ResourceNotFoundError,
    ServiceRequestError,
    ServiceResponseError,
)
from azure.core.pipeline.transport import RequestsTransport
from azure.core.rest import HttpRequest
from azure.keyvault.keys import ApiVersion, KeyClient
from azure.keyvault.keys.crypto import (
    EncryptionAlgorithm,
    KeyWrapAlgorithm,
    SignatureAlgorithm,
)
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature
from requests.adapters import HTTPAdapter

from kms_core.testing.servers import AzureServer, Failure
from kms_core.testing.servers.azure import API_VERSIONS, PAGE, Refusal
from kms_core.testing.servers.panel import OF_THE_LINE

SECRET = bytes(range(32))
HASHES: Mapping[str, hashes.HashAlgorithm] = {
    "256": hashes.SHA256(),
    "384": hashes.SHA384(),
    "512": hashes.SHA512(),
}
CURVES: Mapping[str, ec.EllipticCurve] = {
    "P-256": ec.SECP256R1(),
    "P-256K": ec.SECP256K1(),
    "P-384": ec.SECP384R1(),
    "P-521": ec.SECP521R1(),
}
OAEP_256 = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), label=None)


def hash_of(algorithm: str) -> hashes.HashAlgorithm:
    """The hash of a signature's algorithm."""
    return HASHES[algorithm[2:5]]


def digest(algorithm: str, message: bytes = b"message") -> bytes:
    """What is given to the service instead of the message."""
    hashed = hashes.Hash(hash_of(algorithm))
    hashed.update(message)
    return hashed.finalize()


def b64(octets: bytes) -> str:
    """Base64url without padding, as in the protocol."""
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()


def unb64(text: str) -> bytes:
    """The reverse."""
    return base64.urlsafe_b64decode(text + "==")


def number(text: str) -> int:
    """A number of a JSON Web Key."""
    return int.from_bytes(unb64(text))


def in_days(days: float) -> datetime:
    """So many days from now."""
    return datetime.now(UTC) + timedelta(days=days)


# --- two ways to talk to a server ----------------------------------------------------------------


@frozen
class Answer:
    status: int
    headers: Mapping[str, str]
    body: Any

    @property
    def value(self) -> bytes:
        assert self.status == 200, self.body
        return unb64(self.body["value"])

    @property
    def error(self) -> tuple[int, str, str | None]:
        """Status, code and inner code."""
        error = self.body["error"]
        assert error["message"]
        return self.status, error["code"], error.get("innererror", {}).get("code")


def ask(
    server: AzureServer,
    method: str,
    path: str,
    body: Any = None,
    *,
    version: str | None = "7.6",
    authorization: str | None = "",
    host: str | None = None,
) -> Answer:
    """One request on a connection of its own, with the server's token unless told otherwise."""
    trust = ssl.create_default_context(cafile=str(server.ca_file))
    url = urlsplit(server.vault_url)
    connection = http.client.HTTPSConnection(
        url.hostname or "", url.port, timeout=20, context=trust
    )
    query = "" if version is None else f"{'&' if '?' in path else '?'}api-version={version}"
    headers = {} if host is None else {"Host": host}
    if authorization is not None:
        headers["Authorization"] = authorization or f"Bearer {server.token}"
    content = body if isinstance(body, bytes) else json.dumps(body) if body is not None else None
    try:
        connection.request(method, path + query, content, headers)
        answer = connection.getresponse()
        return Answer(answer.status, dict(answer.headers), json.loads(answer.read()))
    finally:
        connection.close()


def perform(
    server: AzureServer, key: str, operation: str, algorithm: str, **octets: bytes
) -> Answer:
    """A cryptographic operation; ``key`` is a name with or without a version."""
    path = f"/keys/{key if '/' in key else key + '/'}/{operation}"
    return ask(server, "POST", path, {"alg": algorithm} | {n: b64(v) for n, v in octets.items()})


class Credential:
    """A fixed token, and how often it was asked for and in what scope."""

    def __init__(self, token: str) -> None:
        self._token = token
        self.scopes: list[tuple[str, ...]] = []
        self.tenants: list[str | None] = []

    def get_token(self, *scopes: str, tenant_id: str | None = None, **_options: Any) -> AccessToken:
        self.scopes.append(scopes)
        self.tenants.append(tenant_id)
        return AccessToken(self._token, int(time.time()) + 3600)


@pytest.fixture
def connect() -> Iterator[Callable[..., KeyClient]]:
    """Makes clients of the SDK as applications do, without retries, and closes them."""
    clients: list[KeyClient] = []

    def make(
        server: AzureServer, credential: Credential | None = None, **options: Any
    ) -> KeyClient:
        settings: dict[str, Any] = {
            "verify_challenge_resource": False,
            "connection_verify": str(server.ca_file),
            "retry_total": 0,
            "read_timeout": 20,
        }
        client = KeyClient(
            server.vault_url, credential or Credential(server.token), **(settings | options)
        )
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.close()


Connect = Callable[..., KeyClient]


# --- servers -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def running_vault() -> Iterator[AzureServer]:
    """One vault for all tests that do not change their server."""
    with AzureServer() as server:
        server.create_key("rsa")
        server.create_key("ec", "EC")
        yield server


@pytest.fixture(scope="module")
def running_hsm() -> Iterator[AzureServer]:
    """One Managed HSM for all tests that do not change their server."""
    with AzureServer(managed_hsm=True) as server:
        server.create_key("oct", "oct-HSM")
        yield server


@pytest.fixture
def vault(running_vault: AzureServer) -> Iterator[AzureServer]:
    """A vault with the keys ``rsa`` and ``ec``; tests that change keys make their own."""
    yield running_vault
    running_vault.panel.heal()
    assert not running_vault.errors


@pytest.fixture
def hsm(running_hsm: AzureServer) -> Iterator[AzureServer]:
    """A Managed HSM with the key ``oct``."""
    yield running_hsm
    running_hsm.panel.heal()
    assert not running_hsm.errors


def rsa_public_key(server: AzureServer, name: str) -> rsa.RSAPublicKey:
    """What the service shows of an RSA key."""
    key = ask(server, "GET", f"/keys/{name}").body["key"]
    return rsa.RSAPublicNumbers(number(key["e"]), number(key["n"])).public_key()


def ec_public_key(server: AzureServer, name: str) -> ec.EllipticCurvePublicKey:
    """What the service shows of an EC key."""
    key = ask(server, "GET", f"/keys/{name}").body["key"]
    point = number(key["x"]), number(key["y"])
    return ec.EllipticCurvePublicNumbers(*point, CURVES[key["crv"]]).public_key()


# --- authorisation -------------------------------------------------------------------------------


@pytest.mark.parametrize("domain", ["vault", "managedhsm"])
def test_a_request_without_a_token_is_told_where_to_get_one(
    vault: AzureServer, hsm: AzureServer, domain: str
) -> None:
    """The challenge names the tenant's login and the service as the resource."""
    answer = ask(vault if domain == "vault" else hsm, "GET", "/keys/rsa", authorization=None)
    assert answer.error == (401, "Unauthorized", None)
    challenge = answer.headers["WWW-Authenticate"]
    assert challenge.startswith('Bearer authorization="https://login.microsoftonline.com/')
    assert challenge.endswith(f'resource="https://{domain}.azure.net"')


@pytest.mark.parametrize("authorization", ["Bearer wrong", "Basic {}", "bearer", "Bearer {} "])
def test_every_other_token_is_refused(vault: AzureServer, authorization: str) -> None:
    """A wrong token gets the challenge again, and nothing is counted as an operation."""
    before = vault.panel.count()
    shown = authorization.format(vault.token[:-1])
    answer = ask(vault, "GET", "/keys/rsa", authorization=shown)
    assert answer.error == (401, "Unauthorized", None)
    assert "WWW-Authenticate" in answer.headers
    assert vault.panel.count() == before


def test_the_challenge_round_is_seen_in_requests_and_not_counted(connect: Connect) -> None:
    """The SDK's first call is two requests of which one is an operation; its second is one."""
    with AzureServer() as server:
        server.create_key("app")
        credential = Credential(server.token)
        client = connect(server, credential)
        client.get_key("app")
        assert [method for method, _ in server.requests] == ["GET", "GET"]
        assert server.panel.count("get") == server.panel.count() == 1
        client.get_key("app")
        assert len(server.requests) == 3
        assert set(credential.scopes) == {("https://vault.azure.net/.default",)}
        assert credential.tenants == ["72f988bf-0000-4000-8000-2d7cd011db47"]


def test_the_sdk_reports_a_refused_token(vault: AzureServer, connect: Connect) -> None:
    """A credential whose token the service does not take is an authentication error."""
    with pytest.raises(ClientAuthenticationError) as caught:
        connect(vault, Credential("stale")).get_key("rsa")
    assert caught.value.status_code == 401


class ToLoopback(HTTPAdapter):
    """Sends what is for the vault's public name to the server, as a private DNS zone would."""

    def __init__(self, server: AzureServer) -> None:
        super().__init__()
        self._netloc = urlsplit(server.vault_url).netloc

    def send(
        self, request: requests.PreparedRequest, *args: Any, **kwargs: Any
    ) -> requests.Response:
        url = urlsplit(request.url or "")
        request.headers["Host"] = str(url.netloc)
        request.url = url._replace(netloc=self._netloc).geturl()
        return super().send(request, *args, **kwargs)


def test_a_client_that_verifies_the_challenge_is_satisfied(vault: AzureServer) -> None:
    """Under its public name the vault passes the SDK's check, and keys are identified by it."""
    with requests.Session() as session:
        session.mount("https://", ToLoopback(vault))
        transport = RequestsTransport(
            session=session, session_owner=False, connection_verify=str(vault.ca_file)
        )
        with KeyClient(
            "https://demo.vault.azure.net", Credential(vault.token), transport=transport
        ) as client:
            assert client.get_key("rsa").id == (
                f"https://demo.vault.azure.net/keys/rsa/{vault.versions('rsa')[0]}"
            )


def test_the_certificate_is_only_trusted_with_its_authority(
    vault: AzureServer, connect: Connect
) -> None:
    """A client that was not given the authority does not talk to the server."""
    with pytest.raises(ServiceRequestError, match="CERTIFICATE_VERIFY_FAILED"):
        connect(vault, connection_verify=True).get_key("rsa")


@pytest.mark.parametrize("name", ["localhost", "demo.vault.azure.net"])
def test_the_certificate_is_good_for_the_names_of_the_service(
    vault: AzureServer, name: str
) -> None:
    """Whoever reaches the server under such a name can check that it is the right one."""
    trust = ssl.create_default_context(cafile=str(vault.ca_file))
    with (
        line_to(vault) as connection,
        trust.wrap_socket(connection, server_hostname=name) as tls,
    ):
        assert tls.version() in {"TLSv1.2", "TLSv1.3"}


def line_to(server: AzureServer) -> socket.socket:
    """A connection on which nothing was said yet."""
    url = urlsplit(server.vault_url)
    return socket.create_connection((url.hostname, url.port), timeout=20)


@pytest.mark.parametrize("version", [None, "", "1.0", "7"])
def test_a_request_needs_an_api_version_of_the_service(
    vault: AzureServer, version: str | None
) -> None:
    """Without a known api-version nothing is done."""
    before = vault.panel.count()
    answer = ask(vault, "GET", "/keys/rsa", version=version)
    assert answer.error == (400, "BadParameter", None)
    assert vault.panel.count() == before


def test_every_api_version_of_the_sdk_is_accepted() -> None:
    """Applications may have to say an older one."""
    assert {version.value for version in ApiVersion} == API_VERSIONS


# --- reading keys --------------------------------------------------------------------------------


def test_a_key_is_described_in_full(vault: AzureServer, connect: Connect) -> None:
    """The SDK finds the version, the public key, what it is for and all its attributes."""
    version = vault.create_key("full", expires=in_days(2), not_before=in_days(-1).timestamp())
    key = connect(vault).get_key("full")
    material: Any = key.key  # its members depend on its type
    assert (key.id, key.key_type) == (f"{vault.vault_url}/keys/full/{version}", "RSA")
    assert set(key.key_operations) == {
        "encrypt", "decrypt", "sign", "verify", "wrapKey", "unwrapKey"
    }  # fmt: skip
    properties = key.properties
    assert (properties.version, properties.enabled) == (version, True)
    assert properties.expires_on is not None
    assert properties.not_before is not None
    assert properties.not_before < datetime.now(UTC) < properties.expires_on
    assert properties.created_on is not None
    assert properties.updated_on is not None
    assert (properties.recovery_level, properties.recoverable_days) == ("Recoverable+Purgeable", 90)
    assert properties.hsm_platform == "0"
    assert int.from_bytes(material.n) == rsa_public_key(vault, "full").public_numbers().n


@pytest.mark.parametrize("size", [2048, 3072, 4096])
def test_rsa_keys_have_the_size_they_were_asked_to_have(vault: AzureServer, size: int) -> None:
    """The modulus tells."""
    vault.create_key(f"rsa-{size}", size=size)
    assert rsa_public_key(vault, f"rsa-{size}").key_size == size


@pytest.mark.parametrize("kind", ["RSA-HSM", "EC-HSM"])
def test_keys_of_the_hsm_say_so(vault: AzureServer, kind: str) -> None:
    """Their type and platform differ, and their public half is shown all the same."""
    vault.create_key(f"is-{kind}", kind)
    bundle = ask(vault, "GET", f"/keys/is-{kind}").body
    assert bundle["key"]["kty"] == kind
    assert bundle["attributes"]["hsmPlatform"] == "2"
    assert {"n", "x"} & set(bundle["key"])


def test_a_symmetric_key_is_not_shown(hsm: AzureServer, connect: Connect) -> None:
    """The key of an HSM's symmetric key has no ``k``."""
    key = connect(hsm).get_key("oct")
    assert key.key_type == "oct-HSM"
    assert getattr(key.key, "k", None) is None
    assert set(ask(hsm, "GET", "/keys/oct").body["key"]) == {"kid", "kty", "key_ops"}


def test_a_managed_hsm_has_only_keys_of_the_hsm(hsm: AzureServer) -> None:
    """A kind without the suffix makes the same key."""
    hsm.create_key("plain", "EC")
    assert ask(hsm, "GET", "/keys/plain").body["key"]["kty"] == "EC-HSM"


@pytest.mark.parametrize("kind", ["oct", "oct-HSM", "RSA-TPM", ""])
def test_a_vault_has_no_other_kinds_of_keys(vault: AzureServer, kind: str) -> None:
    """Symmetric keys are a Managed HSM's; whatever else is asked for exists nowhere."""
    answer = ask(vault, "POST", "/keys/sym/create", {"kty": kind})
    assert answer.error == (400, "BadParameter", None)
    with pytest.raises(Refusal, match="not supported"):
        vault.create_key("sym", kind)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/keys/none"),
        ("GET", "/keys/rsa/" + "0" * 32),
        ("GET", "/keys/none/versions"),
        ("POST", "/keys/none/rotate"),
        ("DELETE", "/keys/none"),
        ("GET", "/deletedkeys/rsa"),
        ("PATCH", "/keys/none"),
        ("POST", "/keys/none//sign"),
    ],
)
def test_what_is_not_there_is_not_found(vault: AzureServer, method: str, path: str) -> None:
    """Unknown keys and unknown versions of known keys are told alike."""
    assert ask(vault, method, path, {}).error == (404, "KeyNotFound", None)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/keys/rsa"),
        ("POST", "/keys/rsa"),
        ("GET", "/"),
        ("GET", "/secrets/rsa"),
        ("POST", "/keys/rsa//release"),
        ("GET", "/keys/rsa//wrapkey"),
    ],
)
def test_what_the_server_does_not_have_is_not_allowed(
    vault: AzureServer, method: str, path: str
) -> None:
    """No request is answered as if it were another."""
    assert ask(vault, method, path).error == (405, "MethodNotAllowed", None)


# --- encryption ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("operation", "back"), [("wrapkey", "unwrapkey"), ("encrypt", "decrypt")])
@pytest.mark.parametrize("algorithm", ["RSA-OAEP-256", "RSA-OAEP"])
def test_rsa_keys_encrypt_and_wrap(
    vault: AzureServer, operation: str, back: str, algorithm: str
) -> None:
    """What was encrypted comes back, the version is named, and each time the block is another."""
    first = perform(vault, "rsa", operation, algorithm, value=SECRET)
    second = perform(vault, "rsa", operation, algorithm, value=SECRET)
    assert first.value != second.value
    assert len(first.value) == 256
    kid = f"{vault.vault_url}/keys/rsa/{vault.versions('rsa')[0]}"
    assert first.body["kid"] == kid
    opened = perform(vault, "rsa", back, algorithm, value=first.value)
    assert opened.value == SECRET
    assert opened.body["kid"] == kid


def test_what_was_encrypted_elsewhere_to_the_public_key_is_unwrapped(vault: AzureServer) -> None:
    """RSA-OAEP-256 is OAEP with SHA-256 in both places."""
    block = rsa_public_key(vault, "rsa").encrypt(SECRET, OAEP_256)
    assert perform(vault, "rsa", "unwrapkey", "RSA-OAEP-256", value=block).value == SECRET


def test_the_sdk_wraps_here_and_unwraps_there(vault: AzureServer, connect: Connect) -> None:
    """Its local wrap reaches no server, and its remote unwrap undoes it."""
    client = connect(vault)
    crypto = client.get_cryptography_client("rsa", key_version=vault.versions("rsa")[0])
    wraps = vault.panel.count("wrapkey")
    wrapped = crypto.wrap_key(KeyWrapAlgorithm.rsa_oaep_256, SECRET)
    before = vault.panel.count()
    assert crypto.unwrap_key(wrapped.algorithm, wrapped.encrypted_key).key == SECRET
    assert vault.panel.count("wrapkey") == wraps
    assert vault.panel.count() == before + 1


def test_a_request_of_ones_own_goes_through_the_sdk(hsm: AzureServer, connect: Connect) -> None:
    """Wrapping by the key's identifier is one operation, done by the service."""
    client = connect(hsm)
    kid = client.get_key("oct").id
    before = hsm.panel.count("wrapkey")
    answer = client.send_request(
        HttpRequest("POST", f"{kid}/wrapkey", json={"alg": "A256KW", "value": b64(SECRET)})
    )
    answer.raise_for_status()
    assert hsm.panel.count("wrapkey") == before + 1
    assert answer.json()["kid"] == kid
    wrapped = unb64(answer.json()["value"])
    assert len(wrapped) == len(SECRET) + 8
    assert perform(hsm, "oct", "unwrapkey", "A256KW", value=wrapped).value == SECRET


@pytest.mark.parametrize("value", [b"", b"short", bytes(17), bytes(191)])
def test_values_of_the_wrong_length_are_not_wrapped(hsm: AzureServer, value: bytes) -> None:
    """AES key wrap takes multiples of eight from sixteen on."""
    assert perform(hsm, "oct", "wrapkey", "A256KW", value=value).error[:2] == (400, "BadParameter")


def test_values_too_long_for_the_key_are_refused(vault: AzureServer) -> None:
    """A 2048-bit key takes 190 bytes under OAEP with SHA-256."""
    assert perform(vault, "rsa", "wrapkey", "RSA-OAEP-256", value=bytes(190)).status == 200
    refused = perform(vault, "rsa", "wrapkey", "RSA-OAEP-256", value=bytes(191))
    assert refused.error == (400, "BadParameter", None)


@pytest.mark.parametrize("aad", [None, b"", b"context"])
def test_a_symmetric_key_encrypts_with_additional_data(hsm: AzureServer, aad: bytes | None) -> None:
    """The service makes the nonce; nonce, tag and additional data come back with the ciphertext."""
    extra = {} if aad is None else {"aad": aad}
    sealed = perform(hsm, "oct", "encrypt", "A256GCM", value=SECRET, **extra)
    parts = {name: unb64(sealed.body[name]) for name in ("value", "iv", "tag")}
    assert {name: len(part) for name, part in parts.items()} == {"value": 32, "iv": 12, "tag": 16}
    assert ("aad" in sealed.body) == (aad is not None)
    opened = perform(hsm, "oct", "decrypt", "A256GCM", **parts, **extra)
    assert opened.value == SECRET
    again = perform(hsm, "oct", "encrypt", "A256GCM", value=SECRET, **extra)
    assert again.body["iv"] != sealed.body["iv"]


def test_the_sdk_encrypts_with_a_symmetric_key(hsm: AzureServer, connect: Connect) -> None:
    """AES-GCM of the SDK goes to the service and comes back."""
    crypto = connect(hsm).get_cryptography_client("oct")
    sealed = crypto.encrypt(
        EncryptionAlgorithm.a256_gcm, SECRET, additional_authenticated_data=b"context"
    )
    opened = crypto.decrypt(
        EncryptionAlgorithm.a256_gcm,
        sealed.ciphertext,
        iv=sealed.iv,
        authentication_tag=sealed.tag,
        additional_authenticated_data=b"context",
    )
    assert opened.plaintext == SECRET


@pytest.mark.parametrize("changed", ["value", "iv", "tag", "aad"])
def test_nothing_changed_is_decrypted(hsm: AzureServer, changed: str) -> None:
    """One bit in any part of a message of AES-GCM is a bad parameter."""
    sealed = perform(hsm, "oct", "encrypt", "A256GCM", value=SECRET, aad=b"context")
    parts = {name: unb64(sealed.body[name]) for name in ("value", "iv", "tag", "aad")}
    parts[changed] = bytes([parts[changed][0] ^ 1]) + parts[changed][1:]
    assert perform(hsm, "oct", "decrypt", "A256GCM", **parts).error == (400, "BadParameter", None)


@pytest.mark.parametrize("left_out", ["value", "iv", "tag"])
def test_all_parts_are_needed_to_decrypt(hsm: AzureServer, left_out: str) -> None:
    """A message without its nonce or tag is refused."""
    sealed = perform(hsm, "oct", "encrypt", "A256GCM", value=SECRET)
    parts = {n: unb64(sealed.body[n]) for n in ("value", "iv", "tag") if n != left_out}
    assert perform(hsm, "oct", "decrypt", "A256GCM", **parts).error == (400, "BadParameter", None)


@pytest.mark.parametrize(("iv", "tag"), [(bytes(16), bytes(16)), (bytes(12), bytes(12))])
def test_nonces_and_tags_have_one_length(hsm: AzureServer, iv: bytes, tag: bytes) -> None:
    """Shorter tags would be easier to forge."""
    answer = perform(hsm, "oct", "decrypt", "A256GCM", value=SECRET, iv=iv, tag=tag)
    assert answer.error == (400, "BadParameter", None)


def test_callers_choose_no_nonce(hsm: AzureServer) -> None:
    """AES-GCM with a nonce in the request is refused."""
    answer = perform(hsm, "oct", "encrypt", "A256GCM", value=SECRET, iv=bytes(12))
    assert answer.error == (400, "BadParameter", None)


def test_a_block_for_another_version_is_a_bad_parameter(vault: AzureServer) -> None:
    """Nothing but the version that wrapped it unwraps a block; the message is about padding."""
    old = vault.create_key("padding")
    new = vault.create_key("padding")
    block = perform(vault, f"padding/{old}", "wrapkey", "RSA-OAEP-256", value=SECRET).value
    answer = perform(vault, f"padding/{new}", "unwrapkey", "RSA-OAEP-256", value=block)
    assert answer.error == (400, "BadParameter", None)
    assert "OAEP" in answer.body["error"]["message"]
    short = perform(vault, f"padding/{old}", "unwrapkey", "RSA-OAEP-256", value=block[1:])
    assert short.error == (400, "BadParameter", None)


def test_a_changed_wrapped_key_is_a_bad_parameter(hsm: AzureServer) -> None:
    """AES key wrap notices changes and lengths."""
    wrapped = perform(hsm, "oct", "wrapkey", "A256KW", value=SECRET).value
    for bad in (bytes([wrapped[0] ^ 1]) + wrapped[1:], wrapped[:-8], wrapped[:-1], wrapped[:8]):
        answer = perform(hsm, "oct", "unwrapkey", "A256KW", value=bad)
        assert answer.error == (400, "BadParameter", None)


# --- signatures ----------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"])
def test_rsa_signatures_are_good(vault: AzureServer, algorithm: str) -> None:
    """They verify with the public key; PSS has a salt as long as the hash."""
    signed = digest(algorithm)
    answer = perform(vault, "rsa", "sign", algorithm, value=signed)
    hashed = hash_of(algorithm)
    pss = padding.PSS(padding.MGF1(hashed), hashed.digest_size)
    rsa_public_key(vault, "rsa").verify(
        answer.value,
        signed,
        pss if algorithm.startswith("PS") else padding.PKCS1v15(),
        Prehashed(hashed),
    )
    assert answer.body["kid"].endswith(vault.versions("rsa")[0])
    assert verifies(vault, "rsa", algorithm, answer.value)


@pytest.mark.parametrize(
    ("curve", "algorithm", "width"),
    [
        ("P-256", "ES256", 32),
        ("P-256K", "ES256K", 32),
        ("P-384", "ES384", 48),
        ("P-521", "ES512", 66),
    ],
)
def test_ecdsa_signatures_are_good_and_raw(
    vault: AzureServer, curve: str, algorithm: str, width: int
) -> None:
    """They are r and s of full width, one after the other."""
    name = f"ec-{curve}"
    vault.create_key(name, "EC", curve=curve)
    signed = digest(algorithm)
    signature = perform(vault, name, "sign", algorithm, value=signed).value
    assert len(signature) == 2 * width
    r, s = int.from_bytes(signature[:width]), int.from_bytes(signature[width:])
    ec_public_key(vault, name).verify(
        encode_dss_signature(r, s), signed, ec.ECDSA(Prehashed(hash_of(algorithm)))
    )
    assert verifies(vault, name, algorithm, signature)
    assert not verifies(vault, name, algorithm, encode_dss_signature(r, s))


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
def test_macs_are_verified_by_the_service(hsm: AzureServer, algorithm: str) -> None:
    """A MAC is as long as its hash, always the same, and nobody else's."""
    mac = perform(hsm, "oct", "sign", algorithm, value=digest(algorithm)).value
    assert len(mac) == hash_of(algorithm).digest_size
    assert mac == perform(hsm, "oct", "sign", algorithm, value=digest(algorithm)).value
    assert verifies(hsm, "oct", algorithm, mac)
    hsm.create_key("other-oct", "oct-HSM")
    assert not verifies(hsm, "other-oct", algorithm, mac)


def verifies(server: AzureServer, key: str, algorithm: str, signature: bytes) -> bool:
    """The service's verdict on this signature; a changed one, or another digest, must fail."""
    signed = digest(algorithm)
    forged = bytes([signature[0] ^ 1]) + signature[1:]
    other = digest(algorithm, b"another message")
    for bad_digest, bad_signature in ((signed, forged), (other, signature), (signed, b"short")):
        answer = perform(server, key, "verify", algorithm, digest=bad_digest, value=bad_signature)
        assert (answer.status, answer.body) == (200, {"value": False})
    answer = perform(server, key, "verify", algorithm, digest=signed, value=signature)
    assert set(answer.body) == {"value"}
    return bool(answer.body["value"])


def test_the_sdk_signs_there_and_verifies_here(vault: AzureServer, connect: Connect) -> None:
    """Its remote signature passes its local verification."""
    crypto = connect(vault).get_cryptography_client("ec")
    signed = digest("ES256")
    signature = crypto.sign(SignatureAlgorithm.es256, signed).signature
    assert crypto.verify(SignatureAlgorithm.es256, signed, signature).is_valid
    assert not crypto.verify(SignatureAlgorithm.es256, digest("ES256", b""), signature).is_valid


@pytest.mark.parametrize(
    ("key", "algorithm"), [("rsa", "PS256"), ("rsa", "RS512"), ("ec", "ES256"), ("oct", "HS256")]
)
def test_only_digests_are_signed(
    vault: AzureServer, hsm: AzureServer, key: str, algorithm: str
) -> None:
    """A message is refused, in signing and in verifying, and so is a digest of another hash."""
    server = hsm if key == "oct" else vault
    for message in (b"a message", digest("RS384")):
        signing = perform(server, key, "sign", algorithm, value=message)
        verifying = perform(server, key, "verify", algorithm, digest=message, value=SECRET)
        assert signing.error == verifying.error == (400, "BadParameter", None)
        assert f"{len(message)} bytes" in signing.body["error"]["message"]


# --- what a key is not for -----------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["encrypt", "decrypt", "wrapkey", "unwrapkey"])
def test_ec_keys_only_sign(vault: AzureServer, operation: str) -> None:
    """They refuse to wrap, whatever the algorithm."""
    answer = perform(vault, "ec", operation, "RSA-OAEP-256", value=SECRET)
    assert answer.error == (403, "Forbidden", None)
    assert "is not permitted on this key" in answer.body["error"]["message"]


def test_a_key_does_only_what_it_was_made_for(vault: AzureServer) -> None:
    """Operations that were left out of ``key_ops`` are forbidden until they are added."""
    version = vault.create_key("only-unwraps", operations=["unwrapKey"])
    assert perform(vault, "only-unwraps", "wrapkey", "RSA-OAEP-256", value=SECRET).error == (
        403, "Forbidden", None
    )  # fmt: skip
    block = rsa_public_key(vault, "only-unwraps").encrypt(SECRET, OAEP_256)
    key = f"only-unwraps/{version}"
    assert perform(vault, key, "unwrapkey", "RSA-OAEP-256", value=block).value == SECRET
    ask(vault, "PATCH", f"/keys/{key}", {"key_ops": ["wrapKey"]})
    assert perform(vault, key, "wrapkey", "RSA-OAEP-256", value=SECRET).status == 200
    assert perform(vault, key, "unwrapkey", "RSA-OAEP-256", value=block).status == 403


@pytest.mark.parametrize("operations", [["wrapKey"], ["sign", "dance"], [7], "sign"])
def test_a_key_is_not_made_for_what_it_cannot_do(vault: AzureServer, operations: Any) -> None:
    """An EC key is not made for wrapping, nor changed to."""
    body = {"kty": "EC", "key_ops": operations}
    assert ask(vault, "POST", "/keys/odd/create", body).error == (400, "BadParameter", None)
    assert ask(vault, "PATCH", "/keys/ec", body).error == (400, "BadParameter", None)


@pytest.mark.parametrize(
    ("key", "operation", "algorithm"),
    [
        ("rsa", "wrapkey", "A256KW"),
        ("rsa", "encrypt", "rsa-oaep-256"),
        ("rsa", "sign", "ES256"),
        ("rsa", "sign", "RS1"),
        ("ec", "sign", "ES256K"),
        ("ec", "verify", "ES384"),
        ("oct", "wrapkey", "A256GCM"),
        ("oct", "wrapkey", "A128KW"),
        ("oct", "encrypt", "A256KW"),
        ("oct", "sign", "RS256"),
        ("oct", "verify", "HS257"),
    ],
)
def test_algorithms_of_other_keys_are_refused(
    vault: AzureServer, hsm: AzureServer, key: str, operation: str, algorithm: str
) -> None:
    """Each kind of key has its algorithms, spelt exactly."""
    answer = perform(
        hsm if key == "oct" else vault, key, operation, algorithm, value=SECRET, digest=SECRET
    )
    assert answer.error == (400, "BadParameter", None)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        {},
        {"alg": "RSA-OAEP-256"},
        {"alg": "RSA-OAEP-256", "value": ""},
        {"alg": "RSA-OAEP-256", "value": 7},
        {"alg": 7, "value": "AAAA"},
        {"value": "AAAA"},
        {"alg": "RSA-OAEP-256", "value": "A+/="},
        {"alg": "RSA-OAEP-256", "value": "AAA="},
        {"alg": "RSA-OAEP-256", "value": "AAAAA"},
        {"alg": "RSA-OAEP-256", "value": "AAAA", "aad": "AAAA"},
        {"alg": "RSA-OAEP-256", "value": "AAAA", "iv": "AAAA"},
    ],
)
def test_bodies_that_make_no_sense_are_refused(vault: AzureServer, body: Any) -> None:
    """What is missing, mistyped, not base64url or another algorithm's is a bad parameter."""
    answer = ask(vault, "POST", "/keys/rsa//wrapkey", body)
    assert answer.error == (400, "BadParameter", None)


# --- states --------------------------------------------------------------------------------------


def attempts(server: AzureServer, key: str) -> dict[str, Answer]:
    """Every operation of an RSA key; what undoes something is given something to undo."""
    public = rsa_public_key(server, key)
    block = public.encrypt(SECRET, OAEP_256)
    answers = {
        operation: perform(server, key, operation, "RSA-OAEP-256", value=value)
        for operation, value in (
            ("encrypt", SECRET),
            ("wrapkey", SECRET),
            ("decrypt", block),
            ("unwrapkey", block),
        )
    }
    signed = digest("RS256")
    answers["sign"] = perform(server, key, "sign", "RS256", value=signed)
    answers["verify"] = perform(server, key, "verify", "RS256", digest=signed, value=SECRET)
    return answers


def test_a_disabled_key_does_nothing_and_can_be_read(vault: AzureServer) -> None:
    """Every operation says so; reading shows it; enabling brings all of them back."""
    vault.create_key("disabled", enabled=False)
    assert ask(vault, "GET", "/keys/disabled").body["attributes"]["enabled"] is False
    for answer in attempts(vault, "disabled").values():
        assert answer.error == (403, "Forbidden", "KeyDisabled")
    vault.set_enabled("disabled", enabled=True)
    assert {answer.status for answer in attempts(vault, "disabled").values()} == {200}


def test_versions_are_disabled_one_by_one(vault: AzureServer) -> None:
    """The latest is meant unless another is named."""
    first, second = vault.create_key("halves"), vault.create_key("halves")
    vault.set_enabled("halves", first, enabled=False)
    assert enabled(vault, "halves") == {first: False, second: True}
    vault.set_enabled("halves", first, enabled=True)
    vault.set_enabled("halves", enabled=False)
    assert enabled(vault, "halves") == {first: True, second: False}


def enabled(server: AzureServer, name: str) -> dict[str, bool]:
    """Which versions are enabled, as the list of them says."""
    items = ask(server, "GET", f"/keys/{name}/versions").body["value"]
    return {item["kid"].rpartition("/")[2]: item["attributes"]["enabled"] for item in items}


@pytest.mark.parametrize(
    ("name", "dates", "inner"),
    [
        ("expired", {"expires": in_days(-1)}, "KeyExpired"),
        ("early", {"not_before": in_days(1)}, "KeyNotYetValid"),
    ],
)
def test_outside_its_dates_a_key_only_undoes(
    vault: AzureServer, name: str, dates: dict[str, datetime], inner: str
) -> None:
    """Nothing new is encrypted or signed; what there is can be decrypted and verified."""
    vault.create_key(name, **dates)  # type: ignore[arg-type]
    answers = attempts(vault, name)
    for operation in ("encrypt", "wrapkey", "sign"):
        assert answers[operation].error == (403, "Forbidden", inner)
    for operation in ("decrypt", "unwrapkey", "verify"):
        assert answers[operation].status == 200


def test_the_sdk_shows_the_inner_code(vault: AzureServer, connect: Connect) -> None:
    """Programs tell the reason from the inner error's code."""
    vault.create_key("off", enabled=False)
    crypto = connect(vault).get_cryptography_client("off")
    with pytest.raises(HttpResponseError) as caught:
        crypto.unwrap_key(KeyWrapAlgorithm.rsa_oaep_256, bytes(256))
    assert caught.value.status_code == 403
    assert caught.value.error is not None
    assert caught.value.error.innererror == {"code": "KeyDisabled"}


# --- versions ------------------------------------------------------------------------------------


def test_rotation_makes_a_version_and_old_ones_go_on(vault: AzureServer, connect: Connect) -> None:
    """The new one is the latest, of the same make; what the old one wrapped it still unwraps."""
    old = vault.create_key("turn", size=3072, operations=["wrapKey", "unwrapKey"])
    block = perform(vault, "turn", "wrapkey", "RSA-OAEP-256", value=SECRET).value
    rotated = connect(vault).rotate_key("turn")
    assert vault.versions("turn") == [old, rotated.properties.version]
    assert rotated.key_operations == ["wrapKey", "unwrapKey"]
    assert rsa_public_key(vault, "turn").key_size == 3072
    latest = perform(vault, "turn", "wrapkey", "RSA-OAEP-256", value=SECRET)
    assert latest.body["kid"] == rotated.id
    assert perform(vault, f"turn/{old}", "unwrapkey", "RSA-OAEP-256", value=block).value == SECRET


def test_versions_come_in_pages(vault: AzureServer, connect: Connect) -> None:
    """Each version is listed exactly once, over as many pages as it takes, without its key."""
    made = {vault.create_key("many", "EC") for _ in range(PAGE + 3)}
    before = vault.panel.count("versions")
    listed = list(connect(vault).list_properties_of_key_versions("many"))
    assert {properties.version for properties in listed} == made
    assert len(listed) == len(made)
    assert vault.panel.count("versions") == before + 2
    small = list(connect(vault).list_properties_of_key_versions("many", max_page_size=10))
    assert {properties.version for properties in small} == made
    assert "key" not in ask(vault, "GET", "/keys/many/versions").body["value"][0]


@pytest.mark.parametrize("size", ["0", "26", "-1", "x"])
def test_pages_have_a_size_of_the_service(vault: AzureServer, size: str) -> None:
    """One to twenty-five."""
    answer = ask(vault, "GET", f"/keys/rsa/versions?maxresults={size}")
    assert answer.error == (400, "BadParameter", None)


# --- administration ------------------------------------------------------------------------------


def test_the_sdk_creates_keys(vault: AzureServer, connect: Connect) -> None:
    """All that it can say about a new key is kept; the name again makes a new version."""
    client = connect(vault)
    key = client.create_rsa_key(
        "made",
        size=3072,
        hardware_protected=True,
        key_operations=["unwrapKey"],
        enabled=False,
        expires_on=in_days(1),
        tags={"team": "payments"},
    )
    again = client.get_key("made")
    assert (again.id, again.key_type, again.key_operations) == (key.id, "RSA-HSM", ["unwrapKey"])
    assert (again.properties.enabled, again.properties.tags) == (False, {"team": "payments"})
    assert again.properties.expires_on is not None
    client.create_ec_key("made-ec", curve="P-384")
    assert ec_public_key(vault, "made-ec").curve.name == "secp384r1"
    second = client.create_rsa_key("made")
    assert vault.versions("made") == [key.properties.version, second.properties.version]


def test_the_sdk_creates_symmetric_keys_in_an_hsm(hsm: AzureServer, connect: Connect) -> None:
    """They have 256 bits; other sizes are refused."""
    client = connect(hsm)
    assert client.create_oct_key("made", size=256, hardware_protected=True).key_type == "oct-HSM"
    with pytest.raises(HttpResponseError, match="256 bits"):
        client.create_oct_key("made", size=128, hardware_protected=True)


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("new", {}),
        ("new", {"kty": "RSA", "key_size": 1024}),
        ("new", {"kty": "RSA", "key_size": "2048"}),
        ("new", {"kty": "EC", "crv": "P-999"}),
        ("new", {"kty": "EC", "attributes": {"enabled": "yes"}}),
        ("new", {"kty": "EC", "attributes": {"exp": True}}),
        ("new", {"kty": "EC", "attributes": []}),
        ("n_w", {"kty": "EC"}),
        ("n" * 128, {"kty": "EC"}),
    ],
)
def test_keys_that_cannot_be_are_not_made(vault: AzureServer, name: str, body: Any) -> None:
    """Nothing is left behind by a refused request."""
    answer = ask(vault, "POST", f"/keys/{name}/create", body)
    assert answer.error == (400, "BadParameter", None)
    with pytest.raises(Refusal):
        vault.versions(name)


def test_the_sdk_changes_keys(vault: AzureServer, connect: Connect) -> None:
    """One version is changed, in what was said, and nothing else of it."""
    first, second = vault.create_key("changing", "EC"), vault.create_key("changing", "EC")
    client = connect(vault)
    when = in_days(3).replace(microsecond=0)
    changed = client.update_key_properties("changing", first, enabled=False, expires_on=when)
    assert (changed.properties.enabled, changed.properties.expires_on) == (False, when)
    changed = client.update_key_properties("changing", first, tags={"a": "b"})
    assert (changed.properties.enabled, changed.properties.expires_on) == (False, when)
    assert client.get_key("changing", second).properties.enabled
    latest = client.update_key_properties("changing", enabled=False)
    assert latest.properties.version == second


def test_a_deleted_key_is_gone_and_its_name_is_taken(vault: AzureServer, connect: Connect) -> None:
    """Reading and using it finds nothing; a key of its name cannot be made."""
    version = vault.create_key("going", "EC")
    client = connect(vault)
    poller = client.begin_delete_key("going")
    poller.wait()
    deleted = poller.result()
    assert deleted.properties.version == version
    assert deleted.scheduled_purge_date is not None
    assert deleted.recovery_id == f"{vault.vault_url}/deletedkeys/going"
    with pytest.raises(ResourceNotFoundError):
        client.get_key("going")
    assert perform(vault, f"going/{version}", "sign", "ES256", value=SECRET).status == 404
    with pytest.raises(ResourceExistsError) as caught:
        client.create_ec_key("going")
    assert caught.value.error is not None
    assert caught.value.error.innererror == {"code": "ObjectIsDeletedButRecoverable"}


def test_deleting_without_the_protocol_is_the_same(vault: AzureServer) -> None:
    """The server's own method leaves the same key behind."""
    vault.create_key("gone", "EC")
    vault.delete("gone")
    assert ask(vault, "GET", "/keys/gone").status == 404
    assert ask(vault, "GET", "/deletedkeys/gone").status == 200


def test_a_managed_hsm_gives_random_bytes(hsm: AzureServer, connect: Connect) -> None:
    """As many as asked for, and never the same."""
    client = connect(hsm)
    drawn = {client.get_random_bytes(32) for _ in range(4)}
    assert len(drawn) == 4
    assert {len(octets) for octets in drawn} == {32}


@pytest.mark.parametrize("count", [0, 129, -1, "8", None])
def test_random_bytes_come_in_small_numbers(hsm: AzureServer, count: Any) -> None:
    """One to 128."""
    assert ask(hsm, "POST", "/rng", {"count": count}).error == (400, "BadParameter", None)


def test_a_vault_gives_no_random_bytes(vault: AzureServer) -> None:
    """Only a Managed HSM has that operation."""
    assert ask(vault, "POST", "/rng", {"count": 8}).error == (400, "BadParameter", None)


# --- failures on cue -----------------------------------------------------------------------------


def sign(server: AzureServer) -> Answer:
    """An operation that needs nothing prepared."""
    return perform(server, "ec", "sign", "ES256", value=digest("ES256"))


def test_the_panel_has_every_failure_of_this_service(vault: AzureServer) -> None:
    """Azure has no checksums to be wrong; everything else it has."""
    assert vault.panel.failures == frozenset(Failure) - {Failure.CORRUPT_CRC}
    with pytest.raises(ValueError, match="corrupt-crc"):
        vault.panel.fail(Failure.CORRUPT_CRC)


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (Failure.THROTTLE, (429, "Throttled", None)),
        (Failure.SERVER_ERROR, (503, "ServiceUnavailable", None)),
        (Failure.ACCESS_DENIED, (403, "Forbidden", "ForbiddenByRbac")),
        (Failure.KEY_DISABLED, (403, "Forbidden", "KeyDisabled")),
        (Failure.KEY_NOT_FOUND, (404, "KeyNotFound", None)),
    ],
)
def test_a_refusal_on_cue_is_the_services_own(
    vault: AzureServer, failure: Failure, error: tuple[int, str, str | None]
) -> None:
    """It comes as often as ordered, and then the service works."""
    before = vault.panel.count("sign")
    vault.panel.fail(failure, operation="sign", times=1)
    assert ask(vault, "GET", "/keys/ec").status == 200
    answer = sign(vault)
    assert answer.error == error
    assert "Retry-After" not in answer.headers
    assert sign(vault).status == 200
    assert vault.panel.count("sign") == before + 2


def test_throttling_says_how_long_to_wait_when_told_to(vault: AzureServer) -> None:
    """In the header that clients read."""
    vault.panel.fail(Failure.THROTTLE, seconds=7)
    assert sign(vault).headers["Retry-After"] == "7"


def test_a_malformed_answer_is_an_empty_success(vault: AzureServer, connect: Connect) -> None:
    """The SDK takes it for a key without anything; a refusal becomes one, too."""
    vault.panel.fail(Failure.MALFORMED)
    answer = sign(vault)
    assert (answer.status, answer.body) == (200, {})
    assert perform(vault, "none", "sign", "ES256").body == {}
    crypto = connect(vault).get_cryptography_client("rsa", key_version="0" * 32)
    vault.panel.heal()
    vault.panel.fail(Failure.MALFORMED, operation="unwrapkey")
    vault.panel.fail(Failure.ACCESS_DENIED, operation="get")
    assert crypto.unwrap_key(KeyWrapAlgorithm.rsa_oaep_256, bytes(256)).key is None


def test_a_wrong_key_is_named_in_an_answer_that_is_good_otherwise(vault: AzureServer) -> None:
    """The identifier is well-formed, of the same vault, and of a key nobody has."""
    vault.panel.fail(Failure.WRONG_KEY)
    answer = perform(vault, "rsa", "wrapkey", "RSA-OAEP-256", value=SECRET)
    read = ask(vault, "GET", "/keys/rsa").body["key"]
    item = ask(vault, "GET", "/keys/rsa/versions").body["value"][0]
    for kid in (answer.body["kid"], read["kid"], item["kid"]):
        vault_url, _, key = kid.partition("/keys/")
        assert vault_url == vault.vault_url
        assert key.startswith("another-key/")
        assert len(key) == len("another-key/") + 32
    vault.panel.heal()
    assert rsa_public_key(vault, "rsa").public_numbers().n == number(read["n"])
    opened = perform(vault, "rsa", "unwrapkey", "RSA-OAEP-256", value=answer.value)
    assert opened.value == SECRET


def test_refusals_stay_when_a_wrong_key_is_ordered(vault: AzureServer) -> None:
    """There is no key in them to be wrong."""
    vault.panel.fail(Failure.WRONG_KEY)
    assert ask(vault, "GET", "/keys/none").error == (404, "KeyNotFound", None)
    verdict = perform(vault, "ec", "verify", "ES256", digest=digest("ES256"), value=b"x")
    assert verdict.body == {"value": False}


def test_a_key_disabled_on_cue_can_be_read(vault: AzureServer) -> None:
    """As with a key that is really disabled, reading goes on and shows it."""
    vault.panel.fail(Failure.KEY_DISABLED)
    assert ask(vault, "GET", "/keys/ec").body["attributes"]["enabled"] is False
    assert set(enabled(vault, "ec").values()) == {False}
    vault.panel.heal()
    assert set(enabled(vault, "ec").values()) == {True}


def test_a_reset_breaks_the_answer(vault: AzureServer, connect: Connect) -> None:
    """The connection ends in the middle of it, and the next one works."""
    client = connect(vault)
    client.get_key("ec")
    vault.panel.fail(Failure.RESET, times=2)
    with pytest.raises((IncompleteReadError, ServiceResponseError)):
        client.get_key("ec")
    with pytest.raises((http.client.HTTPException, OSError)):
        sign(vault)
    assert client.get_key("ec").name == "ec"


def test_a_slow_answer_is_late_and_good(vault: AzureServer) -> None:
    """It is held back for its time; other operations are not."""
    vault.panel.fail(Failure.SLOW, operation="sign", seconds=0.3)
    start = time.monotonic()
    assert ask(vault, "GET", "/keys/ec").status == 200
    assert sign(vault).status == 200
    assert time.monotonic() - start >= 0.3


def test_a_refused_line_is_a_connection_error(vault: AzureServer, connect: Connect) -> None:
    """The SDK sees that nothing was sent; afterwards the same client works."""
    client = connect(vault)
    client.get_key("ec")
    vault.panel.fail(Failure.REFUSE)
    for _ in range(2):
        with pytest.raises((ServiceRequestError, ServiceResponseError)):
            client.get_key("ec")
    vault.panel.heal()
    assert client.get_key("ec").name == "ec"


def test_a_hanging_line_answers_nothing(vault: AzureServer, connect: Connect) -> None:
    """The SDK gives up by its own clock, and nothing was done meanwhile."""
    client = connect(vault, read_timeout=0.2, connection_timeout=5)
    client.get_key("ec")
    before = vault.panel.count()
    vault.panel.fail(Failure.HANG)
    with pytest.raises(ServiceResponseError):
        client.get_key("ec")
    assert vault.panel.count() == before
    vault.panel.heal()
    assert connect(vault).get_key("ec").name == "ec"


def test_failures_of_the_line_are_the_gates() -> None:
    """They need one, and this server has it."""
    with AzureServer() as server:
        assert server.panel.failures >= OF_THE_LINE
        assert urlsplit(server.vault_url).port == server.gate.address[1]


# --- the server itself ---------------------------------------------------------------------------


def test_many_clients_at_once_are_served(hsm: AzureServer) -> None:
    """Concurrent operations and new versions do not disturb one another."""
    hsm.create_key("busy", "oct-HSM")
    opened: list[bytes] = []

    def work() -> None:
        sealed = perform(hsm, "busy", "wrapkey", "A256KW", value=SECRET)
        hsm.create_key("busy", "oct-HSM")
        key = sealed.body["kid"].partition("/keys/")[2]
        opened.append(perform(hsm, key, "unwrapkey", "A256KW", value=sealed.value).value)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert opened == [SECRET] * 8
    assert len(hsm.versions("busy")) == 9


def test_closing_leaves_nothing_behind(connect: Connect) -> None:
    """No thread and no file, however the clients and the panel stand; twice is fine."""
    before = set(threading.enumerate())
    server = AzureServer()
    server.create_key("ec", "EC")
    ca_file: Path = server.ca_file
    client = connect(server)
    client.get_key("ec")
    server.panel.fail(Failure.SLOW, seconds=60)

    def wait() -> None:
        with pytest.raises(ServiceResponseError):
            client.get_key("ec")
        interrupted.set()

    interrupted = threading.Event()
    waiting = threading.Thread(target=wait)
    waiting.start()
    deadline = time.monotonic() + 20
    while server.panel.count() < 2 and time.monotonic() < deadline:
        waiting.join(0.01)
    server.close()
    server.close()
    waiting.join(20)
    assert interrupted.is_set()
    assert set(threading.enumerate()) <= before
    assert not ca_file.exists()


def test_nothing_secret_is_shown() -> None:
    """Neither the server nor what it keeps shows its token or keys in a repr."""
    with AzureServer(managed_hsm=True) as server:
        server.create_key("oct", "oct-HSM")
        version = server._vault.find("oct")
        assert server.token not in repr(server)
        assert "secret" not in repr(version)
