"""The services the tests talk to: moto, and a strict server that can be made to fail.

``StrictKms`` follows AWS KMS where moto does not: key states, IncorrectKeyException, multi-Region
keys, unambiguous contexts, echoed algorithms, and requests that must be signed for a region.  One
server stands for every region, told apart by the signature's scope.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import socket
import ssl
import struct
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from attrs import define, field, frozen
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from moto.server import ThreadedMotoServer

from kms_aws.names import KeyArn
from kms_aws.provider import AwsKmsProvider
from kms_aws.settings import AwsKmsSettings
from kms_core import Secret

ACCOUNT = "111122223333"
REGION = "us-east-1"

_SCOPE = re.compile(r"AWS4-HMAC-SHA256 Credential=[^/]+/\d{8}/([a-z0-9-]+)/kms/aws4_request, .+")
_UNUSABLE = {"Disabled": "DisabledException"}
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@frozen
class Request:
    """What arrived: the operation's name, the region it was signed for, and its parameters."""

    operation: str
    region: str
    body: Mapping[str, Any]


@define
class Key:
    """One key in one region; replicas share ``material``."""

    arn: KeyArn
    material: bytes = field(factory=lambda: os.urandom(32), repr=False)
    state: str = "Enabled"
    spec: str = "SYMMETRIC_DEFAULT"
    origin: str = "AWS_KMS"

    @property
    def material_id(self) -> str:
        return hashlib.sha256(self.material).hexdigest()


class Refusal(Exception):
    """The service's answer is an error."""

    def __init__(self, code: str, status: int = 400) -> None:
        super().__init__(code)
        self.code = code
        self.status = status


Fault = Callable[["Handler"], None]


class StrictKms(ThreadingHTTPServer):
    """AWS KMS as far as symmetric keys go, on a loopback port."""

    request_queue_size = 128  # threads connect all at once
    daemon_threads = False  # so that closing the server waits for its threads

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.scheme = "http"
        self.requests: list[Request] = []
        self.keys: dict[tuple[str, str], Key] = {}
        self.aliases: dict[tuple[str, str], str] = {}
        self.fault: Fault | None = None
        self.alter: Callable[[dict[str, Any]], Any] = lambda answer: answer
        self.released = threading.Event()
        self._open: set[socket.socket] = set()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,))

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_port}"

    def start(self, tls: ssl.SSLContext | None = None) -> None:
        if tls is not None:
            self.scheme = "https"
            self.socket = tls.wrap_socket(self.socket, server_side=True)
        self._thread.start()

    def close(self) -> None:
        """Stop, end every connection and wait for their threads."""
        self.shutdown()
        self.released.set()
        self._thread.join()
        for connection in list(self._open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # the other side was faster
        self.server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is part of the tests."""

    # What tests prepare

    def add_key(self, *regions: str, multi_region: bool = False, alias: str = "") -> KeyArn:
        """A new key, with replicas in all but the first of ``regions``; the first one's ARN."""
        key_id = f"mrk-{uuid.uuid4().hex}" if multi_region else str(uuid.uuid4())
        material = os.urandom(32)
        regions = regions or (REGION,)
        for region in regions:
            self.keys[region, key_id] = Key(KeyArn("aws", region, ACCOUNT, key_id), material)
            if alias:
                self.aliases[region, alias] = key_id
        return self.keys[regions[0], key_id].arn

    def key(self, arn: KeyArn) -> Key:
        return self.keys[arn.region, arn.key_id]

    def answer_with(
        self, body: bytes, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        """Every request gets this answer."""
        self.fault = lambda handler: handler.send(status, body, headers or {})

    def fail_with(
        self, code: str, status: int = 400, headers: Mapping[str, str] | None = None
    ) -> None:
        """Every request gets this error."""
        body = json.dumps({"__type": f"com.amazonaws.kms#{code}", "message": "vendor text"})
        self.answer_with(body.encode(), status, headers)

    def hang(self) -> None:
        """No request gets an answer before the server closes."""
        self.fault = lambda handler: handler.drop(self.released.wait(60))

    def reset(self) -> None:
        """Every connection is reset after its request was read."""
        self.fault = lambda handler: handler.drop(reset=True)

    def hang_up(self) -> None:
        """Every connection is closed after its request was read."""
        self.fault = lambda handler: handler.drop()

    def cut_off(self) -> None:
        """Every answer ends before its announced length."""
        self.fault = lambda handler: handler.send(200, b'{"KeyId"', {"Content-Length": "900"})

    # What the service does

    def answer(self, request: Request) -> dict[str, Any]:
        operation = getattr(self, f"do_{request.operation}", None)
        if operation is None:
            raise Refusal("UnknownOperationException")
        key = self._find(request)
        if request.operation != "DescribeKey" and key.state not in {"Enabled", "Updating"}:
            raise Refusal(_UNUSABLE.get(key.state, "KMSInvalidStateException"))
        answer: dict[str, Any] = operation(key, request.body)
        return answer

    def do_DescribeKey(self, key: Key, _body: Mapping[str, Any]) -> dict[str, Any]:  # noqa: N802
        return {
            "KeyMetadata": {
                "Arn": str(key.arn),
                "KeyId": key.arn.key_id,
                "KeyState": key.state,
                "KeySpec": key.spec,
                "Origin": key.origin,
                "CurrentKeyMaterialId": key.material_id,
            }
        }

    def do_Encrypt(self, key: Key, body: Mapping[str, Any]) -> dict[str, Any]:  # noqa: N802
        plaintext = base64.b64decode(body["Plaintext"], validate=True)
        if not 1 <= len(plaintext) <= 4096:
            raise Refusal("ValidationException")
        return {
            "CiphertextBlob": self._seal(key, plaintext, body),
            "KeyId": str(key.arn),
            "EncryptionAlgorithm": body["EncryptionAlgorithm"],
        }

    def do_Decrypt(self, key: Key, body: Mapping[str, Any]) -> dict[str, Any]:  # noqa: N802
        return {
            "Plaintext": _base64(self._open_blob(key, body)),
            "KeyId": str(key.arn),
            "EncryptionAlgorithm": body["EncryptionAlgorithm"],
            "KeyMaterialId": key.material_id,
        }

    def do_GenerateDataKey(self, key: Key, body: Mapping[str, Any]) -> dict[str, Any]:  # noqa: N802
        if body["KeySpec"] != "AES_256":
            raise Refusal("ValidationException")
        plaintext = os.urandom(32)
        return {
            "Plaintext": _base64(plaintext),
            "CiphertextBlob": self._seal(key, plaintext, body),
            "KeyId": str(key.arn),
            "KeyMaterialId": key.material_id,
        }

    def _find(self, request: Request) -> Key:
        name = str(request.body["KeyId"])
        arn = re.fullmatch(r"arn:aws:kms:([a-z0-9-]+):(\d{12}):(?:key/)?(.+)", name)
        if arn and (arn[1], arn[2]) != (request.region, ACCOUNT):
            raise Refusal("NotFoundException")
        name = arn[3] if arn else name
        key_id = self.aliases.get((request.region, name), name)
        try:
            return self.keys[request.region, key_id]
        except KeyError:
            raise Refusal("NotFoundException") from None

    def _seal(self, key: Key, plaintext: bytes, body: Mapping[str, Any]) -> str:
        iv = os.urandom(12)
        sealed = AESGCM(key.material).encrypt(iv, plaintext, _bound(body))
        return _base64(key.arn.key_id.encode().ljust(40) + iv + sealed)

    def _open_blob(self, key: Key, body: Mapping[str, Any]) -> bytes:
        blob = base64.b64decode(body["CiphertextBlob"], validate=True)
        if not 1 <= len(blob) <= 6144:
            raise Refusal("ValidationException")
        owner = blob[:40].decode("ascii", "replace").rstrip()
        if len(blob) < 69 or (key.arn.region, owner) not in self.keys:
            raise Refusal("InvalidCiphertextException")
        if owner != key.arn.key_id:
            raise Refusal("IncorrectKeyException")
        try:
            return AESGCM(key.material).decrypt(blob[40:52], blob[52:], _bound(body))
        except InvalidTag:
            raise Refusal("InvalidCiphertextException") from None


class Handler(BaseHTTPRequestHandler):
    """One connection; JSON 1.1 over keep-alive HTTP."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each answer would wait for the client to acknowledge
    server: StrictKms

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        scope = _SCOPE.fullmatch(self.headers.get("Authorization", ""))
        target = self.headers.get("X-Amz-Target", "").removeprefix("TrentService.")
        request = Request(target, scope[1] if scope else "", json.loads(data))
        self.server.requests.append(request)
        if self.server.fault is not None:
            self.server.fault(self)
        elif scope is None or self.headers["Content-Type"] != "application/x-amz-json-1.1":
            self._refuse(Refusal("MissingAuthenticationTokenException"))
        else:
            self._answer(request)

    def _answer(self, request: Request) -> None:
        try:
            answer = self.server.alter(self.server.answer(request))
        except Refusal as refusal:
            self._refuse(refusal)
        else:
            self.send(200, json.dumps(answer).encode(), {})

    def _refuse(self, refusal: Refusal) -> None:
        self.send(refusal.status, json.dumps({"__type": refusal.code}).encode(), {})

    def send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        merged = {"Content-Length": str(len(body)), "x-amzn-RequestId": "request-1", **headers}
        for name, value in merged.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = int(merged["Content-Length"]) != len(body)

    def drop(self, _released: object = None, *, reset: bool = False) -> None:
        """End the connection without an answer."""
        if reset:
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  as the base has it
        """Say nothing."""


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bound(body: Mapping[str, Any]) -> bytes:
    context: Mapping[str, str] = body.get("EncryptionContext", {})
    return json.dumps(sorted(context.items())).encode()


class Providers:
    """Builds instances for an endpoint, and closes them when the test is over."""

    CREDENTIALS: ClassVar[Mapping[str, Any]] = {
        "access_key_id": Secret("AKIDEXAMPLE"),
        "secret_access_key": Secret("wJalrXUtnFEMI-EXAMPLEKEY"),
    }

    def __init__(self) -> None:
        self._made: list[AwsKmsProvider] = []

    def __call__(self, endpoint_url: str, key: object, **settings: Any) -> AwsKmsProvider:
        table = {
            "key": str(key),
            "endpoint_url": endpoint_url,
            "insecure": True,
            "max_connections": 10,
            **({} if "profile" in settings else self.CREDENTIALS),
            **settings,
        }
        provider = AwsKmsProvider(AwsKmsSettings(**table))
        self._made.append(provider)
        return provider

    def close(self) -> None:
        for provider in self._made:
            provider.close()


@pytest.fixture(autouse=True)
def _no_configuration_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith(("AWS_", "BOTO_")) or name.upper() in _PROXIES:
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def aws() -> Iterator[StrictKms]:
    """The strict server."""
    server = StrictKms()
    server.start()
    yield server
    server.close()


@pytest.fixture
def unstarted() -> Iterator[StrictKms]:
    """A strict server that the test starts itself."""
    server = StrictKms()
    yield server
    server.close()


@pytest.fixture
def make() -> Iterator[Providers]:
    """Makes instances: ``make(url, key, **settings)``."""
    providers = Providers()
    yield providers
    providers.close()


@pytest.fixture(scope="session")
def moto_url() -> Iterator[str]:
    """The address of a moto server."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()
