"""The strict AWS server speaks the real protocol, computes for real, and refuses what AWS does."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from email.message import Message as Headers
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit
from xml.etree import ElementTree as ET

import boto3
import pytest
from attrs import evolve, frozen
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    EndpointConnectionError,
    ReadTimeoutError,
    ResponseStreamingError,
    SSLError,
)
from botocore.parsers import ResponseParserError
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.serialization import load_der_public_key
from hypothesis import assume, settings
from hypothesis import given as given_any
from hypothesis import strategies as st

from kms_core.testing.servers import Failure, StrictAwsServer
from kms_core.testing.servers.aws_keys import (
    ALGORITHMS,
    AUTHENTICATES,
    ENCRYPTS,
    MAX_ROTATIONS,
    SIGNS,
    STATES,
)
from kms_core.testing.servers.aws_signature import MAX_SKEW, Signature, _signed
from kms_core.testing.servers.aws_wire import FAILURES, Refusal
from kms_core.testing.servers.http import Request
from kms_core.testing.servers.panel import OF_THE_LINE

PATIENCE = 20
SECRET = bytes(range(32))
CONTEXT = {"tenant": "42", "purpose": "test"}
ROLE = "arn:aws:iam::111122223333:role/team/app"
HASHES: Mapping[str, hashes.HashAlgorithm] = {
    "256": hashes.SHA256(),
    "384": hashes.SHA384(),
    "512": hashes.SHA512(),
}
#: One key for each way of signing.
SIGNING = [("RSA_2048", algorithm) for algorithm in ALGORITHMS["RSA_2048", SIGNS]] + [
    (spec, algorithms[0])
    for (spec, usage), algorithms in ALGORITHMS.items()
    if usage == SIGNS and not spec.startswith("RSA_")
]
HASHED = [(spec, name) for spec, name in SIGNING if name.startswith(("RSASSA", "ECDSA"))]
#: All but longer RSA keys, which are the same and slow to make.
KINDS = [(spec, usage) for spec, usage in ALGORITHMS if spec not in {"RSA_3072", "RSA_4096"}]
ML_DSA = ["ML_DSA_44", "ML_DSA_65", "ML_DSA_87"]
MACS = [("HMAC_256", "HMAC_SHA_256"), ("HMAC_384", "HMAC_SHA_384"), ("HMAC_512", "HMAC_SHA_512")]


# --- two ways to talk to a server ----------------------------------------------------------------


def client_of(server: StrictAwsServer, region: str = "us-east-1", **options: Any) -> Any:
    """A client of the SDK without retries; ``options`` go to its making, or to its ``Config``."""
    config = {
        "retries": {"total_max_attempts": 1},
        "read_timeout": options.pop("read_timeout", PATIENCE),
        "proxies": {},
    }
    given = {
        "endpoint_url": server.endpoint_url,
        "aws_access_key_id": server.access_key_id,
        "aws_secret_access_key": server.secret_access_key,
        "service_name": "kms",
        "verify": None if server.ca_file is None else str(server.ca_file),
        **options,
    }
    return boto3.session.Session().client(region_name=region, config=Config(**config), **given)


Connect = Callable[..., Any]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Makes clients, and closes them."""
    made: list[Any] = []

    def make(server: StrictAwsServer, region: str = "us-east-1", **options: Any) -> Any:
        made.append(client_of(server, region, **options))
        return made[-1]

    yield make
    for client in made:
        client.close()


def code_of(call: Callable[..., Any], **given: Any) -> str:
    """The code of the error that the call raises."""
    with pytest.raises(ClientError) as caught:
        call(**given)
    assert caught.value.response["Error"]["Message"]
    return str(caught.value.response["Error"]["Code"])


def answered(call: Callable[..., Any], field: str, **given: Any) -> bool:
    """Whether there is an answer with this field; half of one may pass for an empty one."""
    try:
        return field in call(**given)
    except (ConnectionClosedError, ResponseParserError, ResponseStreamingError):
        return False


@frozen
class Answer:
    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.content)

    @property
    def error(self) -> tuple[int, str]:
        assert self.body["message"]
        return self.status, self.body["__type"]

    @property
    def xml_error(self) -> tuple[int, str | None]:
        return self.status, ET.fromstring(self.content).findtext(".//{*}Error/{*}Code")  # noqa: S314


@frozen
class Signed:
    """A request with its signature, which tests may spoil afterwards."""

    headers: Mapping[str, str]
    body: bytes
    method: str = "POST"
    path: str = "/"

    def but(self, **headers: str | None) -> Signed:
        """With other headers, or without those that are None; underscores stand for hyphens."""
        new = {name.replace("_", "-"): value for name, value in headers.items()}
        merged = {**self.headers, **new}
        return evolve(self, headers={n: v for n, v in merged.items() if v is not None})


def sign(
    server: StrictAwsServer,
    operation: str = "GenerateRandom",
    members: Any = None,
    *,
    service: str = "kms",
    region: str = "us-east-1",
    secret: str | None = None,
    key_id: str | None = None,
    token: str | None = None,
    method: str = "POST",
    path: str = "/",
    content_type: str = "application/x-amz-json-1.1",
) -> Signed:
    """Signed by the SDK, with the server's own credentials unless told otherwise."""
    members = {"NumberOfBytes": 4} if members is None else members
    body = members if isinstance(members, bytes) else json.dumps(members).encode()
    headers = {
        "Host": urlsplit(server.endpoint_url).netloc,
        "Content-Type": content_type,
        "X-Amz-Target": f"TrentService.{operation}",
    }
    request = AWSRequest(method, server.endpoint_url + path, headers, body)
    credentials = Credentials(
        key_id or server.access_key_id, secret or server.secret_access_key, token
    )
    SigV4Auth(credentials, service, region).add_auth(request)
    return Signed({k: str(v) for k, v in request.headers.items()}, body, method, path)


def sign_form(
    server: StrictAwsServer,
    form: Mapping[str, str],
    *,
    service: str = "sts",
    secret: str | None = None,
) -> Signed:
    """A signed request to STS."""
    headers = {
        "Host": urlsplit(server.endpoint_url).netloc,
        "Content-Type": "application/x-www-form-urlencoded; charset=utf-8",
    }
    body = urlencode(form).encode()
    request = AWSRequest("POST", f"{server.endpoint_url}/", headers, body)
    credentials = Credentials(server.access_key_id, secret or server.secret_access_key)
    SigV4Auth(credentials, service, "us-east-1").add_auth(request)
    return Signed({k: str(v) for k, v in request.headers.items()}, body)


def send(server: StrictAwsServer, request: Signed) -> Answer:
    """One request on a connection of its own."""
    url = urlsplit(server.endpoint_url)
    connection = http.client.HTTPConnection(str(url.hostname), url.port, timeout=PATIENCE)
    try:
        connection.request(request.method, request.path, request.body, dict(request.headers))
        answer = connection.getresponse()
        return Answer(answer.status, dict(answer.headers), answer.read())
    finally:
        connection.close()


# --- servers -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def running() -> Iterator[StrictAwsServer]:
    """One server for all tests, which make their own keys."""
    with StrictAwsServer() as server:
        yield server


@pytest.fixture(scope="module")
def keys(running: StrictAwsServer) -> Callable[[str, str], str]:
    """Keys that tests do not change: one for each spec and usage, made when first needed."""
    made: dict[tuple[str, str], str] = {}

    def key(spec: str, usage: str) -> str:
        if (spec, usage) not in made:
            made[spec, usage] = running.create_key(spec=spec, usage=usage)
        return made[spec, usage]

    return key


Keys = Callable[[str, str], str]


@pytest.fixture
def server(running: StrictAwsServer) -> Iterator[StrictAwsServer]:
    """The server, well again after each test."""
    yield running
    running.panel.heal()
    assert not running.errors


@pytest.fixture
def kms(server: StrictAwsServer, connect: Connect) -> Any:
    """A client of us-east-1."""
    return connect(server)


# --- signatures of requests ----------------------------------------------------------------------


def test_published_examples_have_the_published_signatures() -> None:
    """The examples of AWS's own test suite for Signature Version 4."""
    headers = Headers()
    headers["Host"] = "example.amazonaws.com"
    headers["X-Amz-Date"] = "20150830T123600Z"
    signed = ("host", "x-amz-date")
    signature = Signature("AKIDEXAMPLE", "20150830", "us-east-1", "service", signed, "")
    secret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
    for path, expected in {
        "/": "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
        "/?Param2=value2&Param1=value1": (
            "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500"
        ),
    }.items():
        assert _signed(Request("GET", path, headers, b""), signature, secret) == expected


def test_signed_request_is_answered(server: StrictAwsServer) -> None:
    """By whoever has the credentials, for any region, and on any path that exists."""
    answer = send(server, sign(server, region="eu-west-1"))
    assert answer.status == 200
    assert len(base64.b64decode(answer.body["Plaintext"])) == 4
    assert server.requests[-1] == ("GenerateRandom", "eu-west-1", {"NumberOfBytes": 4})


SPOILT: list[tuple[str, Callable[[StrictAwsServer], Signed], str]] = [
    (
        "none",
        lambda server: sign(server).but(Authorization=None),
        "MissingAuthenticationTokenException",
    ),
    (
        "another scheme",
        lambda server: sign(server).but(Authorization="Bearer token"),
        "IncompleteSignatureException",
    ),
    (
        "no date",
        lambda server: sign(server).but(X_Amz_Date=None),
        "IncompleteSignatureException",
    ),
    (
        "unknown credentials",
        lambda server: sign(server, key_id="AKIDOTHER"),
        "UnrecognizedClientException",
    ),
    (
        "a token nobody was given",
        lambda server: sign(server, token="token"),
        "UnrecognizedClientException",
    ),
    (
        "another secret",
        lambda server: sign(server, secret="secret"),
        "InvalidSignatureException",
    ),
    (
        "another service",
        lambda server: sign(server, service="sts"),
        "InvalidSignatureException",
    ),
    (
        "another body",
        lambda server: evolve(sign(server), body=b'{"NumberOfBytes": 5}'),
        "InvalidSignatureException",
    ),
    (
        "another operation",
        lambda server: sign(server).but(X_Amz_Target="TrentService.ListKeys"),
        "InvalidSignatureException",
    ),
    (
        "another method",
        lambda server: evolve(sign(server), method="PUT"),
        "InvalidSignatureException",
    ),
    (
        "another path",
        lambda server: evolve(sign(server), path="/?a=b"),
        "InvalidSignatureException",
    ),
    (
        "an unsigned header",
        lambda server: sign(server).but(X_Amz_Meta="unsigned"),
        "InvalidSignatureException",
    ),
    (
        "another day",
        lambda server: sign(server).but(X_Amz_Date="20150830T123600Z"),
        "InvalidSignatureException",
    ),
]


@pytest.mark.parametrize(
    ("spoilt", "code"), [row[1:] for row in SPOILT], ids=[row[0] for row in SPOILT]
)
def test_request_with_a_wrong_signature_is_refused(
    server: StrictAwsServer, spoilt: Callable[[StrictAwsServer], Signed], code: str
) -> None:
    """It is noted and not counted."""
    counted, noted = server.panel.count(), len(server.requests)
    answer = send(server, spoilt(server))
    assert answer.error == (400, code)
    assert (server.panel.count(), len(server.requests)) == (counted, noted + 1)


@pytest.mark.parametrize("way", [-1, 1])
def test_signature_is_good_for_minutes(
    server: StrictAwsServer, monkeypatch: pytest.MonkeyPatch, way: int
) -> None:
    """Clocks may differ a little, in both directions."""
    for skew, status in ((MAX_SKEW / 2, 200), (MAX_SKEW + timedelta(minutes=1), 400)):
        moment = datetime.now(UTC) + way * skew
        monkeypatch.setattr("botocore.auth.get_current_datetime", lambda *_, at=moment: at)
        assert send(server, sign(server)).status == status


def test_regions_are_told_apart_by_the_signature(server: StrictAwsServer, connect: Connect) -> None:
    """A key lives in one region, whoever asks."""
    arn = server.create_key("eu-west-1")
    assert connect(server, "eu-west-1").describe_key(KeyId=arn)["KeyMetadata"]["Arn"] == arn
    for name in (arn, arn.rpartition("/")[2]):
        assert code_of(connect(server).describe_key, KeyId=name) == "NotFoundException"


# --- the protocol --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_of", "status", "code"),
    [
        (lambda server: sign(server, "Dance"), 400, "UnknownOperationException"),
        (lambda server: sign(server, path="/key"), 404, "UnknownOperationException"),
        (lambda server: sign(server, method="GET"), 404, "UnknownOperationException"),
        (
            lambda server: sign(server, content_type="application/json"),
            400,
            "UnknownOperationException",
        ),
        (lambda server: sign(server, members=b"{"), 400, "SerializationException"),
        (lambda server: sign(server, members=b"[]"), 400, "SerializationException"),
        (lambda server: sign(server, members=b"\xff"), 400, "SerializationException"),
    ],
)
def test_what_is_no_operation_is_refused(
    server: StrictAwsServer,
    request_of: Callable[[StrictAwsServer], Signed],
    status: int,
    code: str,
) -> None:
    """In the form of any other error."""
    answer = send(server, request_of(server))
    assert answer.error == (status, code)
    assert answer.headers["x-amzn-RequestId"]


@pytest.mark.parametrize(
    ("operation", "members", "code"),
    [
        ("Encrypt", {"Plaintext": "AAAA"}, "ValidationException"),
        ("Encrypt", {"KeyId": "KEY"}, "ValidationException"),
        ("Encrypt", {"KeyId": "KEY", "Plaintext": ""}, "ValidationException"),
        ("Encrypt", {"KeyId": "", "Plaintext": "AAAA"}, "ValidationException"),
        ("Encrypt", {"KeyId": "KEY", "Plaintext": 5}, "SerializationException"),
        ("Encrypt", {"KeyId": "KEY", "Plaintext": "A"}, "SerializationException"),
        ("Encrypt", {"KeyId": 5, "Plaintext": "AAAA"}, "SerializationException"),
        (
            "Encrypt",
            {"KeyId": "KEY", "Plaintext": "AAAA", "EncryptionAlgorithm": "ROT13"},
            "ValidationException",
        ),
        (
            "Encrypt",
            {"KeyId": "KEY", "Plaintext": "AAAA", "EncryptionContext": {"a": 1}},
            "SerializationException",
        ),
        (
            "Encrypt",
            {"KeyId": "KEY", "Plaintext": "AAAA", "EncryptionContext": {"a": "b" * 8192}},
            "ValidationException",
        ),
        (
            "Encrypt",
            {"KeyId": "KEY", "Plaintext": "AAAA", "GrantTokens": ["token"]},
            "InvalidGrantTokenException",
        ),
        (
            "Encrypt",
            {"KeyId": "KEY", "Plaintext": "AAAA", "GrantTokens": [5]},
            "SerializationException",
        ),
        (
            "Encrypt",
            {"KeyId": "KEY", "Plaintext": "AAAA", "DryRun": "yes"},
            "SerializationException",
        ),
        ("GenerateDataKey", {"KeyId": "KEY"}, "ValidationException"),
        (
            "GenerateDataKey",
            {"KeyId": "KEY", "KeySpec": "AES_256", "NumberOfBytes": 32},
            "ValidationException",
        ),
        ("GenerateDataKey", {"KeyId": "KEY", "KeySpec": "AES_512"}, "ValidationException"),
        ("GenerateDataKey", {"KeyId": "KEY", "NumberOfBytes": 1025}, "ValidationException"),
        (
            "GenerateDataKey",
            {"KeyId": "KEY", "KeySpec": "AES_256", "Recipient": {}},
            "ValidationException",
        ),
        ("GenerateRandom", {}, "ValidationException"),
        ("GenerateRandom", {"NumberOfBytes": True}, "SerializationException"),
        ("GenerateRandom", {"NumberOfBytes": 0}, "ValidationException"),
        ("Sign", {"KeyId": "KEY", "Message": "AAAA"}, "ValidationException"),
        ("CreateKey", {"KeySpec": "AES_128"}, "ValidationException"),
    ],
)
def test_parameters_outside_their_limits_are_refused(
    server: StrictAwsServer, keys: Keys, operation: str, members: dict[str, Any], code: str
) -> None:
    """Also those that the SDK would not let through."""
    if members.get("KeyId") == "KEY":
        members = {**members, "KeyId": keys("SYMMETRIC_DEFAULT", ENCRYPTS)}
    assert send(server, sign(server, operation, members)).error == (400, code)


# --- TLS and names of keys -----------------------------------------------------------------------


def test_tls_is_trusted_with_the_authority_only(connect: Connect) -> None:
    """``ca_file`` lets a client verify the server, and goes away with it."""
    with StrictAwsServer(tls=True) as private:
        assert private.endpoint_url.startswith("https://")
        arn = private.create_key()
        assert connect(private).describe_key(KeyId=arn)["KeyMetadata"]["Enabled"]
        with pytest.raises(SSLError):
            connect(private, verify=True).describe_key(KeyId=arn)
        ca_file = private.ca_file
        assert ca_file is not None
        ssl.create_default_context(cafile=str(ca_file))
    assert not Path(ca_file).exists()


def test_every_name_of_a_key_finds_it(server: StrictAwsServer, kms: Any) -> None:
    """Id, ARN, alias and alias ARN; the answer has the ARN."""
    arn = server.create_key(alias="alias/named")
    place, _, key_id = arn.rpartition(":key/")
    for name in (arn, key_id, "alias/named", f"{place}:alias/named"):
        answer = kms.encrypt(KeyId=name, Plaintext=SECRET)
        assert answer["KeyId"] == arn


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("1234abcd-12ab-34cd-56ef-1234567890ab", "NotFoundException"),
        ("alias/none", "NotFoundException"),
        ("nonsense", "NotFoundException"),
        ("arn:aws:kms:eu-west-1:111122223333:alias/app", "NotFoundException"),
        ("arn:aws:kms:us-east-1:111122223333:key/none", "NotFoundException"),
        ("arn:aws:kms:us-east-1:999999999999:key/none", "AccessDeniedException"),
    ],
)
def test_names_of_no_key_are_refused(kms: Any, name: str, code: str) -> None:
    """What belongs to others is not told from what does not exist."""
    assert code_of(kms.describe_key, KeyId=name) == code


def test_key_is_not_managed_by_its_alias(server: StrictAwsServer, kms: Any) -> None:
    """An alias that is repointed would have another key deleted."""
    server.create_key(alias="alias/managed")
    for manage in (kms.disable_key, kms.schedule_key_deletion, kms.rotate_key_on_demand):
        assert code_of(manage, KeyId="alias/managed") == "NotFoundException"


def test_alias_of_a_new_key_means_that_one(server: StrictAwsServer, kms: Any) -> None:
    """Keys that tests make take their alias over."""
    for _ in range(2):
        arn = server.create_key(alias="alias/moves")
        assert kms.encrypt(KeyId="alias/moves", Plaintext=b"k")["KeyId"] == arn


# --- symmetric encryption ------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 32, 4096])
def test_ciphertext_opens(kms: Any, keys: Keys, size: int) -> None:
    """With or without the key's name; the answers tell key, algorithm and material."""
    arn = keys("SYMMETRIC_DEFAULT", ENCRYPTS)
    sealed = kms.encrypt(KeyId=arn, Plaintext=bytes(size), EncryptionContext=CONTEXT)
    assert (sealed["KeyId"], sealed["EncryptionAlgorithm"]) == (arn, "SYMMETRIC_DEFAULT")
    assert len(sealed["CiphertextBlob"]) <= 6144
    for named in ({}, {"KeyId": arn}):
        opened = kms.decrypt(
            CiphertextBlob=sealed["CiphertextBlob"], EncryptionContext=CONTEXT, **named
        )
        assert opened["Plaintext"] == bytes(size)
        assert (opened["KeyId"], opened["EncryptionAlgorithm"]) == (arn, "SYMMETRIC_DEFAULT")
        assert len(opened["KeyMaterialId"]) == 64


def test_data_key_is_drawn_and_sealed(kms: Any, keys: Keys) -> None:
    """In the size that was asked for."""
    arn = keys("SYMMETRIC_DEFAULT", ENCRYPTS)
    for asked, size in (({"KeySpec": "AES_256"}, 32), ({"KeySpec": "AES_128"}, 16)):
        answer = kms.generate_data_key(KeyId=arn, EncryptionContext=CONTEXT, **asked)
        assert (len(answer["Plaintext"]), answer["KeyId"]) == (size, arn)
        opened = kms.decrypt(
            CiphertextBlob=answer["CiphertextBlob"], EncryptionContext=CONTEXT, KeyId=arn
        )
        assert opened["Plaintext"] == answer["Plaintext"]
        assert opened["KeyMaterialId"] == answer["KeyMaterialId"]
    assert len(kms.generate_data_key(KeyId=arn, NumberOfBytes=1024)["Plaintext"]) == 1024


PAIRS = st.dictionaries(
    st.text("ab", min_size=1, max_size=3), st.text("ab", max_size=3), max_size=3
)


@given_any(PAIRS, PAIRS)
@settings(max_examples=30)
def test_no_context_opens_what_another_sealed(
    running: StrictAwsServer, one: dict[str, str], other: dict[str, str]
) -> None:
    """However their names and values run into each other; an empty one is none."""
    assume(one != other)
    client = client_of(running)
    try:
        arn = running.create_key()
        sealed = client.encrypt(KeyId=arn, Plaintext=b"k", EncryptionContext=one)
        blob = sealed["CiphertextBlob"]
        shuffled = dict(reversed(one.items()))
        assert client.decrypt(CiphertextBlob=blob, EncryptionContext=shuffled)["Plaintext"] == b"k"
        code = code_of(client.decrypt, CiphertextBlob=blob, EncryptionContext=other)
        assert code == "InvalidCiphertextException"
    finally:
        client.close()


def test_altered_ciphertext_does_not_open(server: StrictAwsServer, kms: Any) -> None:
    """Any byte of it, its beginning included, and whatever is cut off or added."""
    arn = server.create_key()
    blob = kms.encrypt(KeyId=arn, Plaintext=SECRET)["CiphertextBlob"]
    altered = [
        blob[:place] + bytes([blob[place] ^ 1]) + blob[place + 1 :]
        for place in [*range(0, len(blob), 7), len(blob) - 1]
    ]
    for spoilt in [*altered, blob[:-1], blob + b"\0", blob[:70], blob[:10], b"x"]:
        for named in ({}, {"KeyId": arn}):
            code = code_of(kms.decrypt, CiphertextBlob=spoilt, **named)
            assert code == "InvalidCiphertextException"


def test_ciphertext_of_another_key_is_the_wrong_key(server: StrictAwsServer, kms: Any) -> None:
    """Not a denial, as emulators have it; also when re-encrypting."""
    ours, theirs = server.create_key(), server.create_key()
    blob = kms.encrypt(KeyId=theirs, Plaintext=SECRET)["CiphertextBlob"]
    assert code_of(kms.decrypt, KeyId=ours, CiphertextBlob=blob) == "IncorrectKeyException"
    code = code_of(kms.re_encrypt, SourceKeyId=ours, DestinationKeyId=ours, CiphertextBlob=blob)
    assert code == "IncorrectKeyException"


def test_ciphertext_that_is_too_long_is_not_looked_at(kms: Any, keys: Keys) -> None:
    """There are limits to both sides of encryption."""
    arn = keys("SYMMETRIC_DEFAULT", ENCRYPTS)
    assert code_of(kms.encrypt, KeyId=arn, Plaintext=bytes(4097)) == "ValidationException"
    assert code_of(kms.decrypt, KeyId=arn, CiphertextBlob=bytes(6145)) == "ValidationException"


def test_ciphertext_moves_to_another_key_and_context(
    server: StrictAwsServer, kms: Any, keys: Keys
) -> None:
    """ReEncrypt undoes the old binding and makes the new one, between any kinds of keys."""
    old, new = server.create_key(), server.create_key()
    blob = kms.encrypt(KeyId=old, Plaintext=SECRET, EncryptionContext=CONTEXT)["CiphertextBlob"]
    moved = kms.re_encrypt(
        CiphertextBlob=blob,
        SourceEncryptionContext=CONTEXT,
        DestinationKeyId=new,
        DestinationEncryptionContext={"tenant": "43"},
    )
    assert (moved["SourceKeyId"], moved["KeyId"]) == (old, new)
    assert moved["SourceKeyMaterialId"] != moved["DestinationKeyMaterialId"]
    opened = kms.decrypt(
        KeyId=new, CiphertextBlob=moved["CiphertextBlob"], EncryptionContext={"tenant": "43"}
    )
    assert opened["Plaintext"] == SECRET
    code = code_of(kms.re_encrypt, CiphertextBlob=blob, DestinationKeyId=new)
    assert code == "InvalidCiphertextException"
    to_rsa = kms.re_encrypt(
        CiphertextBlob=blob,
        SourceEncryptionContext=CONTEXT,
        DestinationKeyId=keys("RSA_2048", ENCRYPTS),
        DestinationEncryptionAlgorithm="RSAES_OAEP_SHA_256",
    )
    assert len(to_rsa["CiphertextBlob"]) == 256
    assert "DestinationKeyMaterialId" not in to_rsa


# --- RSA encryption ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("algorithm", "hashed", "most"),
    [("RSAES_OAEP_SHA_256", hashes.SHA256(), 190), ("RSAES_OAEP_SHA_1", hashes.SHA1(), 214)],  # noqa: S303
)
def test_rsa_is_oaep(
    kms: Any, keys: Keys, algorithm: str, hashed: hashes.HashAlgorithm, most: int
) -> None:
    """What is encrypted elsewhere to the public key opens here, and there is a limit."""
    arn = keys("RSA_2048", ENCRYPTS)
    public: Any = load_der_public_key(kms.get_public_key(KeyId=arn)["PublicKey"])
    elsewhere = public.encrypt(SECRET, padding.OAEP(padding.MGF1(hashed), hashed, None))
    asked = {"KeyId": arn, "EncryptionAlgorithm": algorithm}
    here = kms.encrypt(Plaintext=SECRET, **asked)["CiphertextBlob"]
    for blob in (elsewhere, here):
        assert len(blob) == 256
        opened = kms.decrypt(CiphertextBlob=blob, **asked)
        assert (opened["Plaintext"], opened["KeyId"]) == (SECRET, arn)
        assert "KeyMaterialId" not in opened
    kms.encrypt(Plaintext=bytes(most), **asked)
    assert code_of(kms.encrypt, Plaintext=bytes(most + 1), **asked) == "ValidationException"
    altered = bytes([here[0] ^ 1]) + here[1:]
    code = code_of(kms.decrypt, CiphertextBlob=altered, **asked)
    assert code == "InvalidCiphertextException"


def test_rsa_binds_no_context_and_tells_no_key(kms: Any, keys: Keys) -> None:
    """Both would be promises that RSA does not keep."""
    asked = {"KeyId": keys("RSA_2048", ENCRYPTS), "EncryptionAlgorithm": "RSAES_OAEP_SHA_256"}
    blob = kms.encrypt(Plaintext=b"k", **asked)["CiphertextBlob"]
    code = code_of(kms.encrypt, Plaintext=b"k", EncryptionContext=CONTEXT, **asked)
    assert code == "ValidationException"
    code = code_of(
        kms.decrypt, CiphertextBlob=blob, EncryptionAlgorithm=asked["EncryptionAlgorithm"]
    )
    assert code == "ValidationException"


@pytest.mark.parametrize("bits", [3072, 4096])
def test_rsa_keys_have_their_size(server: StrictAwsServer, kms: Any, bits: int) -> None:
    """As the spec says."""
    arn = server.create_key(spec=f"RSA_{bits}")
    public: Any = load_der_public_key(kms.get_public_key(KeyId=arn)["PublicKey"])
    assert public.key_size == bits


# --- signatures ----------------------------------------------------------------------------------


def check_elsewhere(der: bytes, algorithm: str, message: bytes, signature: bytes) -> None:
    """Raises ``InvalidSignature`` unless the public key says that it is one."""
    public: Any = load_der_public_key(der)
    if algorithm.startswith("ECDSA"):
        public.verify(signature, message, ec.ECDSA(HASHES[algorithm[-3:]]))
    elif algorithm.startswith("RSASSA"):
        hashed = HASHES[algorithm[-3:]]
        pss = padding.PSS(padding.MGF1(hashed), hashed.digest_size)
        public.verify(signature, message, pss if "PSS" in algorithm else padding.PKCS1v15(), hashed)
    else:
        public.verify(signature, message)


@pytest.mark.parametrize(("spec", "algorithm"), SIGNING)
@pytest.mark.parametrize("size", [1, 4096])
def test_signature_is_good_here_and_elsewhere(
    kms: Any, keys: Keys, spec: str, algorithm: str, size: int
) -> None:
    """By the public key that the service shows."""
    arn, message = keys(spec, SIGNS), b"m" * size
    asked = {"KeyId": arn, "SigningAlgorithm": algorithm}
    made = kms.sign(Message=message, **asked)
    assert (made["KeyId"], made["SigningAlgorithm"]) == (arn, algorithm)
    der = kms.get_public_key(KeyId=arn)["PublicKey"]
    check_elsewhere(der, algorithm, message, made["Signature"])
    with pytest.raises(InvalidSignature):
        check_elsewhere(der, algorithm, message + b"x", made["Signature"])
    verdict = kms.verify(Message=message, Signature=made["Signature"], **asked)
    assert (verdict["SignatureValid"], verdict["KeyId"]) == (True, arn)


@pytest.mark.parametrize(("spec", "algorithm"), SIGNING)
def test_wrong_signature_is_an_error(kms: Any, keys: Keys, spec: str, algorithm: str) -> None:
    """Of another message, altered, shortened or lengthened: AWS says no by an exception."""
    asked = {"KeyId": keys(spec, SIGNS), "SigningAlgorithm": algorithm}
    good = kms.sign(Message=b"message", **asked)["Signature"]
    altered = bytes([good[0] ^ 1]) + good[1:]
    wrong = [(b"massage", good)] + [
        (b"message", signature) for signature in (altered, good[:-1], good + b"\0", b"x")
    ]
    for message, signature in wrong:
        code = code_of(kms.verify, Message=message, Signature=signature, **asked)
        assert code == "KMSInvalidSignatureException"


@pytest.mark.parametrize(("spec", "algorithm"), HASHED)
def test_digest_stands_for_its_message(kms: Any, keys: Keys, spec: str, algorithm: str) -> None:
    """It is signed as it is, not hashed again, and has the length of the hash."""
    arn, message = keys(spec, SIGNS), b"m" * 5000
    digest = hashlib.new(f"sha{algorithm[-3:]}", message).digest()
    asked = {"KeyId": arn, "SigningAlgorithm": algorithm, "MessageType": "DIGEST"}
    signature = kms.sign(Message=digest, **asked)["Signature"]
    check_elsewhere(kms.get_public_key(KeyId=arn)["PublicKey"], algorithm, message, signature)
    assert kms.verify(Message=digest, Signature=signature, **asked)["SignatureValid"]
    assert code_of(kms.sign, Message=digest[:-1], **asked) == "ValidationException"


@pytest.mark.parametrize("spec", ML_DSA)
def test_representative_stands_for_its_message(kms: Any, keys: Keys, spec: str) -> None:
    """ML-DSA's own way of signing long messages, computed here from the public key."""
    arn, message = keys(spec, SIGNS), b"m" * 5000
    der = kms.get_public_key(KeyId=arn)["PublicKey"]
    public: Any = load_der_public_key(der)
    tr = hashlib.shake_256(public.public_bytes_raw()).digest(64)
    mu = hashlib.shake_256(tr + b"\0\0" + message).digest(64)
    asked = {
        "KeyId": arn,
        "SigningAlgorithm": "ML_DSA_SHAKE_256",
        "MessageType": "EXTERNAL_MU",
    }
    signature = kms.sign(Message=mu, **asked)["Signature"]
    public.verify(signature, message)
    assert kms.verify(Message=mu, Signature=signature, **asked)["SignatureValid"]
    other = bytes([mu[0] ^ 1]) + mu[1:]
    code = code_of(kms.verify, Message=other, Signature=signature, **asked)
    assert code == "KMSInvalidSignatureException"
    assert code_of(kms.sign, Message=mu[:-1], **asked) == "ValidationException"


@pytest.mark.parametrize(
    ("spec", "algorithm", "kind"),
    [
        ("ECC_NIST_EDWARDS25519", "ED25519_SHA_512", "DIGEST"),
        ("ECC_NIST_EDWARDS25519", "ED25519_SHA_512", "EXTERNAL_MU"),
        ("ML_DSA_44", "ML_DSA_SHAKE_256", "DIGEST"),
        ("ECC_NIST_P256", "ECDSA_SHA_256", "EXTERNAL_MU"),
        ("ECC_NIST_P256", "ECDSA_SHA_256", "PREHASHED"),
    ],
)
def test_nothing_else_stands_for_a_message(
    kms: Any, keys: Keys, spec: str, algorithm: str, kind: str
) -> None:
    """Each algorithm takes what it can sign."""
    asked = {"KeyId": keys(spec, SIGNS), "SigningAlgorithm": algorithm, "MessageType": kind}
    assert code_of(kms.sign, Message=bytes(64), **asked) == "ValidationException"
    code = code_of(kms.verify, Message=bytes(64), Signature=bytes(64), **asked)
    assert code == "ValidationException"


def test_messages_have_a_length(kms: Any, keys: Keys) -> None:
    """Longer ones are refused, whatever is to be done with them."""
    ec_key, mac_key = keys("ECC_NIST_P256", SIGNS), keys("HMAC_256", AUTHENTICATES)
    for message in (b"", bytes(4097)):
        code = code_of(kms.sign, KeyId=ec_key, Message=message, SigningAlgorithm="ECDSA_SHA_256")
        assert code == "ValidationException"
        code = code_of(
            kms.generate_mac, KeyId=mac_key, Message=message, MacAlgorithm="HMAC_SHA_256"
        )
        assert code == "ValidationException"


# --- MACs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("spec", "algorithm"), MACS)
def test_mac_is_checked_by_the_service(kms: Any, keys: Keys, spec: str, algorithm: str) -> None:
    """A wrong one is an error."""
    arn = keys(spec, AUTHENTICATES)
    asked = {"KeyId": arn, "MacAlgorithm": algorithm}
    made = kms.generate_mac(Message=b"message", **asked)
    mac = made["Mac"]
    assert (made["KeyId"], made["MacAlgorithm"], len(mac)) == (arn, algorithm, int(spec[5:]) // 8)
    verdict = kms.verify_mac(Message=b"message", Mac=mac, **asked)
    assert (verdict["MacValid"], verdict["KeyId"]) == (True, arn)
    for message, wrong in ((b"massage", mac), (b"message", mac[:-1]), (b"message", mac + b"\0")):
        code = code_of(kms.verify_mac, Message=message, Mac=wrong, **asked)
        assert code == "KMSInvalidMacException"


def test_mac_is_an_hmac(server: StrictAwsServer, kms: Any, keys: Keys) -> None:
    """Computed with the key itself, which only the server has."""
    arn = keys("HMAC_384", AUTHENTICATES)
    mac = kms.generate_mac(KeyId=arn, Message=b"m", MacAlgorithm="HMAC_SHA_384")["Mac"]
    secret: Any = server._keys.find("us-east-1", arn).secret
    assert mac == hmac.digest(secret.secret, b"m", "sha384")


# --- what a key is for ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "operation", "given"),
    [
        (("RSA_2048", SIGNS), "encrypt", {"EncryptionAlgorithm": "RSAES_OAEP_SHA_256"}),
        (("RSA_2048", ENCRYPTS), "encrypt", {}),
        (("RSA_2048", ENCRYPTS), "generate_data_key", {"KeySpec": "AES_256"}),
        (("RSA_2048", ENCRYPTS), "sign", {"SigningAlgorithm": "RSASSA_PSS_SHA_256"}),
        (
            ("SYMMETRIC_DEFAULT", ENCRYPTS),
            "encrypt",
            {"EncryptionAlgorithm": "RSAES_OAEP_SHA_256"},
        ),
        (("SYMMETRIC_DEFAULT", ENCRYPTS), "sign", {"SigningAlgorithm": "ECDSA_SHA_256"}),
        (("SYMMETRIC_DEFAULT", ENCRYPTS), "generate_mac", {"MacAlgorithm": "HMAC_SHA_256"}),
        (("ECC_NIST_P256", SIGNS), "sign", {"SigningAlgorithm": "ECDSA_SHA_384"}),
        (("ECC_NIST_P256", SIGNS), "sign", {"SigningAlgorithm": "ED25519_PH_SHA_512"}),
        (("HMAC_256", AUTHENTICATES), "generate_mac", {"MacAlgorithm": "HMAC_SHA_512"}),
        (("HMAC_256", AUTHENTICATES), "encrypt", {}),
    ],
)
def test_key_does_only_what_it_is_for(
    kms: Any, keys: Keys, key: tuple[str, str], operation: str, given: dict[str, str]
) -> None:
    """Neither another usage nor an algorithm of other keys."""
    what = {"encrypt": "Plaintext", "sign": "Message", "generate_mac": "Message"}
    data = {what[operation]: b"data"} if operation in what else {}
    code = code_of(getattr(kms, operation), KeyId=keys(*key), **data, **given)
    assert code == "InvalidKeyUsageException"


@pytest.mark.parametrize(("spec", "usage"), KINDS)
def test_key_tells_what_it_is_for(kms: Any, keys: Keys, spec: str, usage: str) -> None:
    """The description and the public key agree; keys without public key say so."""
    arn = keys(spec, usage)
    metadata = kms.describe_key(KeyId=arn)["KeyMetadata"]
    assert metadata["Arn"] == arn == f"arn:aws:kms:us-east-1:111122223333:key/{metadata['KeyId']}"
    assert (metadata["KeySpec"], metadata["KeyUsage"]) == (spec, usage)
    assert (metadata["KeyState"], metadata["Enabled"]) == ("Enabled", True)
    assert metadata["AWSAccountId"] == "111122223333"
    assert datetime.now(UTC) - metadata["CreationDate"] < timedelta(hours=1)
    assert ("CurrentKeyMaterialId" in metadata) == (spec == "SYMMETRIC_DEFAULT")
    lists = {n: v for n, v in metadata.items() if n.endswith("Algorithms")}
    assert list(lists.values()) == [list(ALGORITHMS[spec, usage])]
    if spec == "SYMMETRIC_DEFAULT" or usage == AUTHENTICATES:
        assert code_of(kms.get_public_key, KeyId=arn) == "UnsupportedOperationException"
        return
    public = kms.get_public_key(KeyId=arn)
    assert (public["KeyId"], public["KeySpec"], public["KeyUsage"]) == (arn, spec, usage)
    assert {n: v for n, v in public.items() if n.endswith("Algorithms")} == lists
    load_der_public_key(public["PublicKey"])


# --- states --------------------------------------------------------------------------------------

CRYPTOGRAPHY = {
    "Encrypt": {"Plaintext": "AAAA"},
    "Decrypt": {"CiphertextBlob": "AAAA"},
    "GenerateDataKey": {"KeySpec": "AES_256"},
    "ReEncrypt": {"CiphertextBlob": "AAAA"},
    "Sign": {"Message": "AAAA", "SigningAlgorithm": "ECDSA_SHA_256"},
    "Verify": {"Message": "AAAA", "SigningAlgorithm": "ECDSA_SHA_256", "Signature": "AAAA"},
    "GenerateMac": {"Message": "AAAA", "MacAlgorithm": "HMAC_SHA_256"},
    "VerifyMac": {"Message": "AAAA", "MacAlgorithm": "HMAC_SHA_256", "Mac": "AAAA"},
    "GetPublicKey": {},
}
OFF = "DisabledException"
WRONG = "KMSInvalidStateException"


@pytest.mark.parametrize("state", sorted(STATES - {"Enabled", "Updating"}))
@pytest.mark.parametrize("operation", CRYPTOGRAPHY)
def test_unusable_key_does_nothing(server: StrictAwsServer, operation: str, state: str) -> None:
    """Whatever is asked of it, before anything else is looked at."""
    arn = server.create_key()
    server.set_state(arn, state)
    members = {"KeyId": arn, "SourceKeyId": arn, **CRYPTOGRAPHY[operation]}
    answer = send(server, sign(server, operation, members))
    assert answer.error == (400, OFF if state == "Disabled" else WRONG)


def test_nothing_is_moved_to_an_unusable_key(server: StrictAwsServer, kms: Any) -> None:
    """Re-encrypting needs both keys."""
    good, disabled = server.create_key(), server.create_key()
    blob = kms.encrypt(KeyId=good, Plaintext=SECRET)["CiphertextBlob"]
    server.set_state(disabled, "Disabled")
    assert code_of(kms.re_encrypt, CiphertextBlob=blob, DestinationKeyId=disabled) == OFF


def test_key_works_while_its_primary_moves(server: StrictAwsServer, kms: Any) -> None:
    """``Updating`` only keeps it from being managed."""
    arn = server.create_key()
    server.set_state(arn, "Updating")
    assert kms.encrypt(KeyId=arn, Plaintext=b"k")["KeyId"] == arn
    assert code_of(kms.disable_key, KeyId=arn) == WRONG


def test_disabled_key_comes_back(server: StrictAwsServer, kms: Any) -> None:
    """By its ARN or its id; what was sealed opens again, without naming the key too."""
    arn = server.create_key()
    blob = kms.encrypt(KeyId=arn, Plaintext=SECRET)["CiphertextBlob"]
    kms.disable_key(KeyId=arn)
    assert kms.describe_key(KeyId=arn)["KeyMetadata"]["Enabled"] is False
    for named in ({}, {"KeyId": arn}):
        assert code_of(kms.decrypt, CiphertextBlob=blob, **named) == OFF
    kms.enable_key(KeyId=arn.rpartition("/")[2])
    assert kms.decrypt(CiphertextBlob=blob)["Plaintext"] == SECRET


def test_deletion_can_be_called_off(server: StrictAwsServer, kms: Any) -> None:
    """It leaves the key disabled; meanwhile nothing else can be done with it."""
    arn = server.create_key()
    assert code_of(kms.cancel_key_deletion, KeyId=arn) == WRONG
    answer = kms.schedule_key_deletion(KeyId=arn, PendingWindowInDays=7)
    assert (answer["KeyId"], answer["KeyState"]) == (arn, "PendingDeletion")
    metadata = kms.describe_key(KeyId=arn)["KeyMetadata"]
    assert metadata["DeletionDate"] == answer["DeletionDate"]
    days = metadata["DeletionDate"] - datetime.now(UTC)
    assert timedelta(days=6.9) < days <= timedelta(days=7)
    for manage in (
        kms.enable_key,
        kms.disable_key,
        kms.schedule_key_deletion,
        kms.rotate_key_on_demand,
    ):
        assert code_of(manage, KeyId=arn) == WRONG
    code = code_of(kms.create_alias, AliasName="alias/dying", TargetKeyId=arn)
    assert code == WRONG
    assert kms.cancel_key_deletion(KeyId=arn)["KeyId"] == arn
    metadata = kms.describe_key(KeyId=arn)["KeyMetadata"]
    assert metadata["KeyState"] == "Disabled"
    assert "DeletionDate" not in metadata


@pytest.mark.parametrize("days", [1, 6, 31])
def test_deletion_has_its_time(server: StrictAwsServer, kms: Any, days: int) -> None:
    """Neither sooner nor later than the service allows."""
    arn = server.create_key()
    code = code_of(kms.schedule_key_deletion, KeyId=arn, PendingWindowInDays=days)
    assert code == "ValidationException"
    assert kms.describe_key(KeyId=arn)["KeyMetadata"]["KeyState"] == "Enabled"


def test_unknown_state_is_a_mistake_of_the_test(server: StrictAwsServer) -> None:
    """It would not be one of the service."""
    with pytest.raises(ValueError, match="Sleeping"):
        server.set_state(server.create_key(), "Sleeping")


def test_imported_key_waits_for_its_material(server: StrictAwsServer, kms: Any) -> None:
    """Until a test says that it has arrived."""
    arn = server.create_key(origin="EXTERNAL")
    metadata = kms.describe_key(KeyId=arn)["KeyMetadata"]
    assert (metadata["Origin"], metadata["KeyState"]) == ("EXTERNAL", "PendingImport")
    assert code_of(kms.encrypt, KeyId=arn, Plaintext=b"k") == WRONG
    server.set_state(arn, "Enabled")
    kms.encrypt(KeyId=arn, Plaintext=b"k")
    assert code_of(kms.rotate_key_on_demand, KeyId=arn) == "UnsupportedOperationException"


# --- dry runs ------------------------------------------------------------------------------------


def test_dry_run_tells_success_by_an_error(kms: Any, keys: Keys) -> None:
    """And a failure by the error that it would have been."""
    arn = keys("SYMMETRIC_DEFAULT", ENCRYPTS)
    blob = kms.encrypt(KeyId=arn, Plaintext=b"k")["CiphertextBlob"]
    ecdsa = {"KeyId": keys("ECC_NIST_P256", SIGNS), "SigningAlgorithm": "ECDSA_SHA_256"}
    mac = {"KeyId": keys("HMAC_256", AUTHENTICATES), "MacAlgorithm": "HMAC_SHA_256"}
    signature = kms.sign(Message=b"m", **ecdsa)["Signature"]
    tag = kms.generate_mac(Message=b"m", **mac)["Mac"]
    for call, given in (
        (kms.encrypt, {"KeyId": arn, "Plaintext": b"k"}),
        (kms.decrypt, {"KeyId": arn, "CiphertextBlob": blob}),
        (kms.decrypt, {"KeyId": arn, "DryRunModifiers": ["IGNORE_CIPHERTEXT"]}),
        (kms.generate_data_key, {"KeyId": arn, "KeySpec": "AES_256"}),
        (kms.re_encrypt, {"CiphertextBlob": blob, "DestinationKeyId": arn}),
        (kms.sign, {"Message": b"m", **ecdsa}),
        (kms.verify, {"Message": b"m", "Signature": signature, **ecdsa}),
        (kms.generate_mac, {"Message": b"m", **mac}),
        (kms.verify_mac, {"Message": b"m", "Mac": tag, **mac}),
    ):
        assert code_of(call, DryRun=True, **given) == "DryRunOperationException"
    code = code_of(kms.decrypt, KeyId=arn, CiphertextBlob=b"x", DryRun=True)
    assert code == "InvalidCiphertextException"


# --- rotation ------------------------------------------------------------------------------------


def test_rotated_key_opens_what_it_sealed_before(server: StrictAwsServer, kms: Any) -> None:
    """New material seals; both are told by their ids."""
    arn = server.create_key()
    old = kms.generate_data_key(KeyId=arn, KeySpec="AES_256")
    assert kms.rotate_key_on_demand(KeyId=arn)["KeyId"]
    new = kms.generate_data_key(KeyId=arn, KeySpec="AES_256")
    assert old["KeyMaterialId"] != new["KeyMaterialId"]
    current = kms.describe_key(KeyId=arn)["KeyMetadata"]["CurrentKeyMaterialId"]
    assert current == new["KeyMaterialId"]
    for made in (old, new):
        opened = kms.decrypt(KeyId=arn, CiphertextBlob=made["CiphertextBlob"])
        assert opened["Plaintext"] == made["Plaintext"]
        assert opened["KeyMaterialId"] == made["KeyMaterialId"]


def test_rotations_are_listed(server: StrictAwsServer, kms: Any) -> None:
    """The first material came of none, and is listed only if it is asked for."""
    arn = server.create_key()
    assert kms.list_key_rotations(KeyId=arn)["Rotations"] == []
    kms.rotate_key_on_demand(KeyId=arn)
    (rotation,) = kms.list_key_rotations(KeyId=arn)["Rotations"]
    assert (rotation["RotationType"], rotation["KeyMaterialState"]) == ("ON_DEMAND", "CURRENT")
    assert datetime.now(UTC) - rotation["RotationDate"] < timedelta(hours=1)
    every = kms.list_key_rotations(KeyId=arn, IncludeKeyMaterial="ALL_KEY_MATERIAL")["Rotations"]
    assert [entry["KeyMaterialState"] for entry in every] == ["NON_CURRENT", "CURRENT"]
    assert "RotationDate" not in every[0]
    assert kms.get_key_rotation_status(KeyId=arn)["KeyRotationEnabled"] is False


def test_rotations_come_to_an_end(server: StrictAwsServer, kms: Any) -> None:
    """A key can be rotated on demand so many times; the list comes in pages."""
    arn = server.create_key()
    for _ in range(MAX_ROTATIONS):
        kms.rotate_key_on_demand(KeyId=arn)
    assert code_of(kms.rotate_key_on_demand, KeyId=arn) == "LimitExceededException"
    pages = list(
        kms.get_paginator("list_key_rotations").paginate(
            KeyId=arn, IncludeKeyMaterial="ALL_KEY_MATERIAL", PaginationConfig={"PageSize": 10}
        )
    )
    assert [len(page["Rotations"]) for page in pages] == [10, 10, 6]
    ids = {entry["KeyMaterialId"] for page in pages for entry in page["Rotations"]}
    assert len(ids) == MAX_ROTATIONS + 1


@pytest.mark.parametrize(("spec", "usage"), [("ECC_NIST_P256", SIGNS), ("HMAC_256", AUTHENTICATES)])
def test_other_keys_do_not_rotate(kms: Any, keys: Keys, spec: str, usage: str) -> None:
    """Nor do they have rotations to tell of."""
    for ask in (kms.rotate_key_on_demand, kms.list_key_rotations, kms.get_key_rotation_status):
        assert code_of(ask, KeyId=keys(spec, usage)) == "UnsupportedOperationException"


def test_disabled_key_is_not_rotated(server: StrictAwsServer, kms: Any) -> None:
    """Its rotations can be looked at."""
    arn = server.create_key()
    server.set_state(arn, "Disabled")
    assert code_of(kms.rotate_key_on_demand, KeyId=arn) == OFF
    assert kms.list_key_rotations(KeyId=arn)["Rotations"] == []


# --- keys in several regions ---------------------------------------------------------------------


def test_every_replica_opens_what_one_sealed(server: StrictAwsServer, connect: Connect) -> None:
    """By its own ARN or none; a region without a replica has no such key."""
    arn = server.create_key("us-east-1", "eu-west-1", multi_region=True)
    replica = arn.replace("us-east-1", "eu-west-1")
    assert ":key/mrk-" in arn
    us, eu = connect(server), connect(server, "eu-west-1")
    sealed = us.encrypt(KeyId=arn, Plaintext=SECRET, EncryptionContext=CONTEXT)
    blob = sealed["CiphertextBlob"]
    for named in ({}, {"KeyId": replica}):
        opened = eu.decrypt(CiphertextBlob=blob, EncryptionContext=CONTEXT, **named)
        assert (opened["Plaintext"], opened["KeyId"]) == (SECRET, replica)
    elsewhere = connect(server, "eu-west-2")
    code = code_of(elsewhere.decrypt, CiphertextBlob=blob, EncryptionContext=CONTEXT)
    assert code == "AccessDeniedException"


def test_replicas_tell_of_each_other(server: StrictAwsServer, connect: Connect) -> None:
    """Which one is the primary does not depend on who was looked at last."""
    arn = server.create_key("us-east-1", "eu-west-1", "ap-south-1", multi_region=True)
    for _ in range(2):
        for region, kind in (("eu-west-1", "REPLICA"), ("us-east-1", "PRIMARY")):
            client = connect(server, region)
            named = arn.replace("us-east-1", region)
            metadata = client.describe_key(KeyId=named)["KeyMetadata"]
            configuration = metadata["MultiRegionConfiguration"]
            assert (metadata["MultiRegion"], metadata["Arn"]) == (True, named)
            assert configuration["MultiRegionKeyType"] == kind
            assert configuration["PrimaryKey"] == {"Arn": arn, "Region": "us-east-1"}
            regions = [replica["Region"] for replica in configuration["ReplicaKeys"]]
            assert regions == ["ap-south-1", "eu-west-1"]


def test_replicas_share_material_and_not_state(server: StrictAwsServer, connect: Connect) -> None:
    """Rotation is for all of them and asked of the primary; disabling is for one."""
    arn = server.create_key("us-east-1", "eu-west-1", multi_region=True)
    replica = arn.replace("us-east-1", "eu-west-1")
    us, eu = connect(server), connect(server, "eu-west-1")
    code = code_of(eu.rotate_key_on_demand, KeyId=replica)
    assert code == "UnsupportedOperationException"
    us.rotate_key_on_demand(KeyId=arn)
    sealed = us.generate_data_key(KeyId=arn, KeySpec="AES_256")
    opened = eu.decrypt(KeyId=replica, CiphertextBlob=sealed["CiphertextBlob"])
    assert opened["KeyMaterialId"] == sealed["KeyMaterialId"]
    us.disable_key(KeyId=arn)
    assert eu.encrypt(KeyId=replica, Plaintext=b"k")["KeyId"] == replica


def test_primary_stays_for_as_long_as_its_replicas(
    server: StrictAwsServer, connect: Connect
) -> None:
    """Its deletion waits for theirs, which does not wait."""
    arn = server.create_key("us-east-1", "eu-west-1", multi_region=True)
    us, eu = connect(server), connect(server, "eu-west-1")
    answer = us.schedule_key_deletion(KeyId=arn)
    assert answer["KeyState"] == "PendingReplicaDeletion"
    assert "DeletionDate" not in answer
    metadata = us.describe_key(KeyId=arn)["KeyMetadata"]
    assert metadata["PendingDeletionWindowInDays"] == 30
    assert code_of(us.encrypt, KeyId=arn, Plaintext=b"k") == WRONG
    us.cancel_key_deletion(KeyId=arn)
    answer = eu.schedule_key_deletion(KeyId=arn.replace("us-east-1", "eu-west-1"))
    assert answer["KeyState"] == "PendingDeletion"


def test_key_is_replicated_once_for_each_region(server: StrictAwsServer, connect: Connect) -> None:
    """From its primary; a key of one region stays there."""
    arn = server.create_key(multi_region=True)
    us, eu = connect(server), connect(server, "eu-west-1")
    answer = us.replicate_key(KeyId=arn, ReplicaRegion="eu-west-1", Description="a copy")
    metadata = answer["ReplicaKeyMetadata"]
    replica = arn.replace("us-east-1", "eu-west-1")
    assert (metadata["Arn"], metadata["Description"]) == (replica, "a copy")
    code = code_of(us.replicate_key, KeyId=arn, ReplicaRegion="eu-west-1")
    assert code == "AlreadyExistsException"
    code = code_of(eu.replicate_key, KeyId=replica, ReplicaRegion="eu-west-2")
    assert code == "UnsupportedOperationException"
    code = code_of(us.replicate_key, KeyId=server.create_key(), ReplicaRegion="eu-west-1")
    assert code == "UnsupportedOperationException"
    code = code_of(us.replicate_key, KeyId=arn, ReplicaRegion="nowhere")
    assert code == "ValidationException"
    with pytest.raises(Refusal, match="multi-Region"):
        server.create_key("us-east-1", "eu-west-1")


@pytest.mark.parametrize(
    ("spec", "usage", "algorithm"),
    [("ECC_NIST_P256", SIGNS, "ECDSA_SHA_256"), ("ML_DSA_65", SIGNS, "ML_DSA_SHAKE_256")],
)
def test_replica_verifies_what_the_primary_signed(
    server: StrictAwsServer, connect: Connect, spec: str, usage: str, algorithm: str
) -> None:
    """They have one key pair."""
    arn = server.create_key("us-east-1", "eu-west-1", spec=spec, usage=usage, multi_region=True)
    asked = {"Message": b"m", "SigningAlgorithm": algorithm}
    signature = connect(server).sign(KeyId=arn, **asked)["Signature"]
    replica = arn.replace("us-east-1", "eu-west-1")
    verdict = connect(server, "eu-west-1").verify(KeyId=replica, Signature=signature, **asked)
    assert verdict["SignatureValid"] is True


# --- making and listing keys ---------------------------------------------------------------------


def test_keys_are_made_by_the_protocol(kms: Any) -> None:
    """As with the real service, and they work."""
    metadata = kms.create_key(Description="for tests")["KeyMetadata"]
    assert (metadata["KeySpec"], metadata["Description"]) == ("SYMMETRIC_DEFAULT", "for tests")
    kms.encrypt(KeyId=metadata["Arn"], Plaintext=b"k")
    spec, usage = "ECC_NIST_P384", SIGNS
    metadata = kms.create_key(KeySpec=spec, KeyUsage=usage, MultiRegion=True)["KeyMetadata"]
    assert (metadata["KeySpec"], metadata["KeyUsage"]) == (spec, usage)
    assert metadata["KeyId"].startswith("mrk-")
    older = kms.create_key(CustomerMasterKeySpec="HMAC_256", KeyUsage=AUTHENTICATES)
    assert older["KeyMetadata"]["KeySpec"] == "HMAC_256"
    imported = kms.create_key(Origin="EXTERNAL")
    assert imported["KeyMetadata"]["KeyState"] == "PendingImport"


@pytest.mark.parametrize(
    "given",
    [
        {"KeySpec": "ECC_NIST_P256"},
        {"KeySpec": "HMAC_256", "KeyUsage": SIGNS},
        {"KeyUsage": SIGNS},
        {"KeySpec": "SM2", "KeyUsage": SIGNS},
        {"KeySpec": "ECC_NIST_P256", "KeyUsage": "KEY_AGREEMENT"},
        {"Origin": "AWS_CLOUDHSM"},
    ],
)
def test_keys_that_cannot_be_are_not_made(kms: Any, given: dict[str, str]) -> None:
    """A key without a usage encrypts, which not every one can."""
    assert code_of(kms.create_key, **given) == "ValidationException"


@pytest.mark.parametrize("given", [{"spec": "DES"}, {"origin": "ATTIC"}, {"usage": SIGNS}])
def test_impossible_keys_of_a_test_are_its_mistake(
    server: StrictAwsServer, given: dict[str, Any]
) -> None:
    """The same rules without the protocol."""
    with pytest.raises(Refusal):
        server.create_key(**given)


def test_aliases_are_made_by_the_protocol(server: StrictAwsServer, kms: Any) -> None:
    """Each means one key; some names are nobody's to give."""
    arn = server.create_key()
    kms.create_alias(AliasName="alias/made", TargetKeyId=arn)
    assert kms.describe_key(KeyId="alias/made")["KeyMetadata"]["Arn"] == arn
    for name, code in (
        ("alias/made", "AlreadyExistsException"),
        ("alias/aws/kms", "NotAuthorizedException"),
        ("made", "InvalidAliasNameException"),
        ("alias/a:b", "InvalidAliasNameException"),
    ):
        assert code_of(kms.create_alias, AliasName=name, TargetKeyId=arn) == code


def test_keys_are_listed_in_pages(server: StrictAwsServer, connect: Connect) -> None:
    """All of a region, and none of another."""
    arns = {server.create_key("ca-central-1") for _ in range(5)}
    client = connect(server, "ca-central-1")
    paginator = client.get_paginator("list_keys")
    pages = list(paginator.paginate(PaginationConfig={"PageSize": 2}))
    assert [len(page["Keys"]) for page in pages] == [2, 2, 1]
    assert {key["KeyArn"] for page in pages for key in page["Keys"]} == arns
    assert {key["KeyId"] for page in pages for key in page["Keys"]} == {
        arn.rpartition("/")[2] for arn in arns
    }
    assert client.list_keys(Limit=5)["Truncated"] is False
    for marker in ("nonsense", "AAAA", "/w=="):
        assert code_of(client.list_keys, Marker=marker) == "InvalidMarkerException"
    assert code_of(client.list_keys, Limit=1001) == "ValidationException"


def test_random_bytes_are_given(kms: Any) -> None:
    """As many as were asked for."""
    for size in (1, 1024):
        assert len(kms.generate_random(NumberOfBytes=size)["Plaintext"]) == size
    assert code_of(kms.generate_random, NumberOfBytes=1025) == "ValidationException"


# --- roles ---------------------------------------------------------------------------------------


def assume_role(server: StrictAwsServer, connect: Connect, **given: Any) -> dict[str, str]:
    """What a client of the session is made with."""
    sts = connect(server, service_name="sts")
    asked = {"RoleArn": ROLE, "RoleSessionName": "tests", **given}
    credentials = sts.assume_role(**asked)["Credentials"]
    return {
        "aws_access_key_id": credentials["AccessKeyId"],
        "aws_secret_access_key": credentials["SecretAccessKey"],
        "aws_session_token": credentials["SessionToken"],
    }


def test_role_is_assumed(server: StrictAwsServer, connect: Connect) -> None:
    """The answer tells who one is now, and until when."""
    sts = connect(server, service_name="sts")
    before = server.panel.count("AssumeRole")
    answer = sts.assume_role(RoleArn=ROLE, RoleSessionName="a@b", ExternalId="tenant:42")
    who = answer["AssumedRoleUser"]
    assert who["Arn"] == "arn:aws:sts::111122223333:assumed-role/app/a@b"
    assert who["AssumedRoleId"].endswith(":a@b")
    left = answer["Credentials"]["Expiration"] - datetime.now(UTC)
    assert timedelta(minutes=55) < left <= timedelta(hours=1)
    operation, region, parameters = server.requests[-1]
    assert (operation, region, parameters["RoleArn"]) == ("AssumeRole", "us-east-1", ROLE)
    assert parameters["ExternalId"] == "tenant:42"
    assert server.panel.count("AssumeRole") == before + 1


def test_session_signs_requests(server: StrictAwsServer, connect: Connect) -> None:
    """Of KMS, and of STS for the next role."""
    arn = server.create_key()
    session = assume_role(server, connect)
    assert session["aws_access_key_id"].startswith("ASIA")
    assert connect(server, **session).encrypt(KeyId=arn, Plaintext=b"k")["KeyId"] == arn
    sts = connect(server, service_name="sts", **session)
    chained = sts.assume_role(RoleArn=ROLE, RoleSessionName="next", DurationSeconds=900)
    assert chained["Credentials"]["AccessKeyId"] != session["aws_access_key_id"]


def test_session_needs_its_own_token(server: StrictAwsServer, connect: Connect) -> None:
    """Neither none nor another one's will do, nor another one's secret."""
    one, other = assume_role(server, connect), assume_role(server, connect)
    for name, value, code in (
        ("aws_session_token", None, "UnrecognizedClientException"),
        ("aws_session_token", other["aws_session_token"], "UnrecognizedClientException"),
        ("aws_secret_access_key", other["aws_secret_access_key"], "InvalidSignatureException"),
    ):
        client = connect(server, **(one | {name: value}))
        assert code_of(client.list_keys) == code


def test_sessions_end(server: StrictAwsServer, connect: Connect) -> None:
    """All at once if a test says so; the user's own credentials stay, and so do new sessions."""
    old = assume_role(server, connect)
    server.expire_sessions()
    assert code_of(connect(server, **old).list_keys) == "ExpiredTokenException"
    sts = connect(server, service_name="sts", **old)
    asked = {"RoleArn": ROLE, "RoleSessionName": "tests"}
    assert code_of(sts.assume_role, **asked) == "ExpiredToken"
    connect(server).list_keys()
    connect(server, **assume_role(server, connect)).list_keys()


@pytest.mark.parametrize(
    "wrong",
    [
        {"RoleArn": "arn:aws:iam::111122223333:user/somebody"},
        {"RoleSessionName": "not a name"},
        {"DurationSeconds": 43201},
        {"ExternalId": "<>"},
    ],
)
def test_roles_that_cannot_be_are_not_assumed(
    server: StrictAwsServer, connect: Connect, wrong: dict[str, Any]
) -> None:
    """In the words of STS."""
    sts = connect(server, service_name="sts")
    given = {"RoleArn": ROLE, "RoleSessionName": "tests", **wrong}
    assert code_of(sts.assume_role, **given) == "ValidationError"


FORM = {
    "Action": "AssumeRole",
    "Version": "2011-06-15",
    "RoleArn": ROLE,
    "RoleSessionName": "tests",
}


@pytest.mark.parametrize(
    ("request_of", "error"),
    [
        (
            lambda server: sign_form(server, FORM | {"Action": "GetFederationToken"}),
            (400, "InvalidAction"),
        ),
        (lambda server: sign_form(server, FORM | {"Version": "2000"}), (400, "InvalidAction")),
        *(
            (
                lambda server, seconds=seconds: sign_form(
                    server, FORM | {"DurationSeconds": seconds}
                ),
                (400, "ValidationError"),
            )
            for seconds in ("x", "-900", "899", "9999999")
        ),
        (
            lambda server: sign_form(server, FORM).but(Authorization=None),
            (403, "MissingAuthenticationToken"),
        ),
        (
            lambda server: sign_form(server, FORM).but(Authorization="Basic x"),
            (400, "IncompleteSignature"),
        ),
        (
            lambda server: sign_form(server, FORM, secret="wrong"),
            (403, "SignatureDoesNotMatch"),
        ),
        (
            lambda server: sign_form(server, FORM, service="kms"),
            (403, "SignatureDoesNotMatch"),
        ),
    ],
)
def test_refusals_of_sts_are_in_xml(
    server: StrictAwsServer,
    request_of: Callable[[StrictAwsServer], Signed],
    error: tuple[int, str],
) -> None:
    """With its own codes and statuses."""
    answer = send(server, request_of(server))
    assert answer.xml_error == error
    assert answer.headers["Content-Type"] == "text/xml"


# --- failures on cue -----------------------------------------------------------------------------


def test_the_panel_has_every_failure_of_this_service(server: StrictAwsServer) -> None:
    """AWS has no checksums to be wrong; everything else it has, the line's too."""
    assert server.panel.failures == frozenset(Failure) - {Failure.CORRUPT_CRC}
    assert server.panel.failures == FAILURES > OF_THE_LINE
    assert urlsplit(server.endpoint_url).port == server.gate.address[1]


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (Failure.THROTTLE, "ThrottlingException"),
        (Failure.ACCESS_DENIED, "AccessDeniedException"),
        (Failure.KEY_DISABLED, "DisabledException"),
        (Failure.KEY_NOT_FOUND, "NotFoundException"),
    ],
)
def test_a_refusal_on_cue_is_the_services_own(
    server: StrictAwsServer, kms: Any, keys: Keys, failure: Failure, code: str
) -> None:
    """It comes as often as ordered, in the operation it was ordered for."""
    asked = {"KeyId": keys("SYMMETRIC_DEFAULT", ENCRYPTS), "Plaintext": b"k"}
    before = server.panel.count("Encrypt")
    server.panel.fail(failure, operation="Encrypt", times=1)
    kms.describe_key(KeyId=asked["KeyId"])
    with pytest.raises(ClientError) as caught:
        kms.encrypt(**asked)
    response: Any = caught.value.response
    assert response["Error"]["Code"] == code
    assert response["ResponseMetadata"]["HTTPStatusCode"] == 400
    assert "retry-after" not in response["ResponseMetadata"]["HTTPHeaders"]
    kms.encrypt(**asked)
    assert server.panel.count("Encrypt") == before + 2


def test_outages_take_turns(connect: Connect) -> None:
    """The service is unwell, or what stands before it is."""
    with StrictAwsServer() as server:
        client = connect(server)
        server.panel.fail(Failure.SERVER_ERROR)
        answers = [send(server, sign(server)).error for _ in range(3)]
        assert answers == [
            (500, "KMSInternalException"),
            (503, "ServiceUnavailableException"),
            (500, "KMSInternalException"),
        ]
        server.panel.heal()
        client.list_keys()


def test_throttling_says_how_long_to_wait_when_told_to(server: StrictAwsServer) -> None:
    """In the headers that clients read."""
    server.panel.fail(Failure.THROTTLE, seconds=1.5)
    answer = send(server, sign(server))
    assert answer.error == (400, "ThrottlingException")
    assert (answer.headers["Retry-After"], answer.headers["x-amz-retry-after"]) == ("2", "1500")


def test_a_malformed_answer_is_an_empty_success(server: StrictAwsServer, kms: Any) -> None:
    """The SDK takes it for an answer without fields; a refusal becomes one, too."""
    server.panel.fail(Failure.MALFORMED)
    answer = send(server, sign(server))
    assert (answer.status, answer.body) == (200, {})
    assert "KeyMetadata" not in kms.describe_key(KeyId="alias/none")


def test_a_wrong_key_is_named_in_an_answer_that_is_good_otherwise(
    server: StrictAwsServer, kms: Any
) -> None:
    """In the same form, of the same region, and of a key nobody has."""
    arn = server.create_key(multi_region=True)
    server.panel.fail(Failure.WRONG_KEY)
    sealed = kms.encrypt(KeyId=arn, Plaintext=SECRET)
    moved = kms.re_encrypt(CiphertextBlob=sealed["CiphertextBlob"], DestinationKeyId=arn)
    metadata = kms.describe_key(KeyId=arn)["KeyMetadata"]
    listed = kms.list_keys()["Keys"][0]
    place = "arn:aws:kms:us-east-1:111122223333:key/"
    named = [
        *(sealed["KeyId"], moved["KeyId"], moved["SourceKeyId"]),
        *(metadata["Arn"], listed["KeyArn"]),
        metadata["MultiRegionConfiguration"]["PrimaryKey"]["Arn"],
    ]
    for other in named:
        assert other.startswith(place)
        assert other != arn
    assert metadata["Arn"] == place + metadata["KeyId"]
    server.panel.heal()
    opened = kms.decrypt(KeyId=arn, CiphertextBlob=sealed["CiphertextBlob"])
    assert opened["Plaintext"] == SECRET
    assert code_of(kms.describe_key, KeyId=named[0]) == "NotFoundException"


def test_refusals_stay_when_a_wrong_key_is_ordered(server: StrictAwsServer, kms: Any) -> None:
    """There is no key in them to be wrong."""
    server.panel.fail(Failure.WRONG_KEY)
    assert code_of(kms.describe_key, KeyId="alias/none") == "NotFoundException"


def test_a_reset_breaks_the_answer(server: StrictAwsServer, kms: Any, keys: Keys) -> None:
    """The connection ends in the middle of it, and the next one works."""
    arn = keys("SYMMETRIC_DEFAULT", ENCRYPTS)
    server.panel.fail(Failure.RESET, times=2)
    assert not answered(kms.describe_key, "KeyMetadata", KeyId=arn)
    with pytest.raises((http.client.HTTPException, OSError)):
        send(server, sign(server))
    assert kms.describe_key(KeyId=arn)["KeyMetadata"]["Arn"] == arn


def test_a_slow_answer_is_late_and_good(server: StrictAwsServer, kms: Any) -> None:
    """It is held back for its time."""
    server.panel.fail(Failure.SLOW, operation="GenerateRandom", seconds=0.3)
    start = time.monotonic()
    assert kms.generate_random(NumberOfBytes=4)["Plaintext"]
    assert time.monotonic() - start >= 0.3


def test_a_refused_line_is_a_connection_error(server: StrictAwsServer, kms: Any) -> None:
    """Afterwards the same client works."""
    kms.list_keys()
    server.panel.fail(Failure.REFUSE)
    for _ in range(2):
        with pytest.raises((ConnectionClosedError, EndpointConnectionError)):
            kms.list_keys()
    server.panel.heal()
    kms.list_keys()


def test_a_hanging_line_answers_nothing(server: StrictAwsServer, connect: Connect) -> None:
    """The SDK gives up by its own clock, and nothing was done meanwhile."""
    client = connect(server, read_timeout=0.2)
    before = server.panel.count()
    server.panel.fail(Failure.HANG)
    with pytest.raises(ReadTimeoutError):
        client.list_keys()
    assert server.panel.count() == before
    server.panel.heal()
    connect(server).list_keys()


@pytest.mark.parametrize(
    ("failure", "code", "status"),
    [
        (Failure.THROTTLE, "Throttling", 400),
        (Failure.ACCESS_DENIED, "AccessDenied", 403),
    ],
)
def test_sts_fails_in_its_own_words(
    server: StrictAwsServer, connect: Connect, failure: Failure, code: str, status: int
) -> None:
    """It has the same panel."""
    sts = connect(server, service_name="sts")
    asked = {"RoleArn": ROLE, "RoleSessionName": "tests"}
    server.panel.fail(failure, operation="AssumeRole")
    with pytest.raises(ClientError) as caught:
        sts.assume_role(**asked)
    response: Any = caught.value.response
    assert response["Error"]["Code"] == code
    assert response["ResponseMetadata"]["HTTPStatusCode"] == status


def test_outages_of_sts_take_turns() -> None:
    """As those of KMS."""
    with StrictAwsServer() as server:
        server.panel.fail(Failure.SERVER_ERROR)
        answers = [send(server, sign_form(server, FORM)).xml_error for _ in range(2)]
        assert answers == [(500, "InternalFailure"), (503, "ServiceUnavailable")]


def test_sts_answers_nothing_when_malformed(server: StrictAwsServer, connect: Connect) -> None:
    """A success without credentials, or half of one."""
    sts = connect(server, service_name="sts")
    asked = {"RoleArn": ROLE, "RoleSessionName": "tests"}
    server.panel.fail(Failure.MALFORMED, operation="AssumeRole")
    assert "Credentials" not in sts.assume_role(**asked)
    server.panel.heal()
    server.panel.fail(Failure.RESET, operation="AssumeRole")
    assert not answered(sts.assume_role, "Credentials", **asked)


@pytest.mark.parametrize(
    "failure", [Failure.KEY_DISABLED, Failure.KEY_NOT_FOUND, Failure.WRONG_KEY]
)
def test_roles_have_no_key_to_fail(
    server: StrictAwsServer, connect: Connect, failure: Failure
) -> None:
    """So that a test that breaks keys can go on assuming roles."""
    server.panel.fail(failure)
    assert assume_role(server, connect)["aws_session_token"]


# --- the server itself ---------------------------------------------------------------------------


def test_many_clients_at_once_are_served(server: StrictAwsServer, kms: Any) -> None:
    """Concurrent operations and rotations do not disturb one another."""
    arn = server.create_key()
    opened: list[bytes] = []

    def work() -> None:
        made = kms.generate_data_key(KeyId=arn, KeySpec="AES_256")
        kms.rotate_key_on_demand(KeyId=arn)
        blob = made["CiphertextBlob"]
        opened.append(kms.decrypt(KeyId=arn, CiphertextBlob=blob)["Plaintext"])

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(opened) == len(set(opened)) == 8
    assert len(kms.list_key_rotations(KeyId=arn)["Rotations"]) == 8


@pytest.mark.parametrize("tls", [False, True])
def test_closing_leaves_nothing_behind(connect: Connect, *, tls: bool) -> None:
    """No thread, however the clients and the panel stand; twice is fine."""
    before = set(threading.enumerate())
    server = StrictAwsServer(tls=tls)
    client = connect(server)
    client.list_keys()
    server.panel.fail(Failure.SLOW, seconds=60)
    interrupted = threading.Event()

    def wait() -> None:
        with pytest.raises((ConnectionClosedError, EndpointConnectionError)):
            client.list_keys()
        interrupted.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    deadline = time.monotonic() + PATIENCE
    while server.panel.count() < 2 and time.monotonic() < deadline:
        waiting.join(0.01)
    server.close()
    server.close()
    waiting.join(PATIENCE)
    assert interrupted.is_set()
    assert set(threading.enumerate()) <= before


def test_nothing_secret_is_shown(connect: Connect) -> None:
    """Neither the server nor what it keeps shows credentials or keys in a repr."""
    with StrictAwsServer() as server:
        session = assume_role(server, connect)
        arn = server.create_key()
        key = server._keys.find("us-east-1", arn)
        secret: Any = key.secret
        known: Any = server._sessions.find(session["aws_access_key_id"])
        shown = repr([server, key, secret, secret.materials, known])
        for hidden in (
            server.secret_access_key,
            session["aws_secret_access_key"],
            session["aws_session_token"],
            repr(secret.materials[0].secret),
        ):
            assert hidden not in shown
