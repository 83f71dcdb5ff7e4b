"""The services the tests talk to: a strict one behind a front that can alter its answers, and moto.

``StrictAwsServer`` follows AWS KMS where moto does not.  ``Aws`` stands before one of them and
notes what was asked; a test can have it change answers, or give its own.
"""

from __future__ import annotations

import http.client
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import parse_qs, urlsplit

import pytest
from attrs import frozen

from kms_aws.names import KeyArn
from kms_aws.provider import AwsKmsProvider
from kms_aws.settings import AwsKmsSettings
from kms_core import Secret
from kms_core.testing.servers import AwsServer, StrictAwsServer
from kms_core.testing.servers.gate import PATIENCE
from kms_core.testing.servers.http import HttpService, Request, Response

Server: TypeAlias = "Aws | StrictAwsServer | str"

_SCOPE = re.compile(
    r"AWS4-HMAC-SHA256 Credential=[^/]+/\d{8}/([a-z0-9-]+)/(?:kms|sts)/aws4_request,"
)
_OF_THE_CONNECTION = {"connection", "content-length", "transfer-encoding", "server", "date"}
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@frozen
class Asked:
    """What arrived: the operation's name, the region it was signed for, and its parameters."""

    operation: str
    region: str
    body: Mapping[str, Any]

    @classmethod
    def of(cls, request: Request) -> Asked:
        scope = _SCOPE.match(request.headers.get("Authorization", ""))
        region = scope[1] if scope else ""
        target = request.headers.get("X-Amz-Target", "").removeprefix("TrentService.")
        if target:
            return cls(target, region, json.loads(request.body))
        form = {name: values[0] for name, values in parse_qs(request.body.decode()).items()}
        return cls(form.get("Action", ""), region, form)


class Aws:
    """A strict AWS KMS with STS, whose every request is noted and whose answers can be changed."""

    def __init__(self) -> None:
        self.strict = StrictAwsServer()
        self.requests: list[Asked] = []
        self.fault: Response | None = None
        self.faulty: str | None = None  # the one operation that fails; None: all of them
        self.alter: Callable[[dict[str, Any]], Any] = lambda answer: answer
        self._front = HttpService(self._answer)

    @property
    def endpoint_url(self) -> str:
        return "http://{}:{}".format(*self._front.address)

    @property
    def gate(self) -> Any:
        return self._front.gate

    @property
    def operations(self) -> list[str]:
        """What was asked, in order."""
        return [request.operation for request in self.requests]

    def add_key(self, *regions: str, **options: Any) -> KeyArn:
        """A new key, with replicas in all but the first of ``regions``; the first one's ARN."""
        arn = KeyArn.parse(self.strict.create_key(*regions, **options))
        assert arn is not None
        return arn

    def set_state(self, arn: KeyArn, state: str) -> None:
        self.strict.set_state(str(arn), state)

    def answer_with(
        self, body: bytes, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        """Every request gets this answer."""
        self.faulty = None
        self.fault = Response(status, body, {"x-amzn-RequestId": "request-1", **(headers or {})})

    def fail_with(
        self,
        code: str,
        status: int = 400,
        headers: Mapping[str, str] | None = None,
        *,
        operation: str | None = None,
    ) -> None:
        """Every request, or every one for ``operation``, gets this error."""
        body = json.dumps({"__type": f"com.amazonaws.kms#{code}", "message": "vendor text"})
        self.answer_with(body.encode(), status, headers)
        self.faulty = operation

    def refuse_role(self, code: str, status: int = 400) -> None:
        """STS answers with this error, in the form it has there."""
        error = (
            f"<Error><Type>Sender</Type><Code>{code}</Code><Message>vendor text</Message></Error>"
        )
        body = (
            '<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">'
            f"{error}<RequestId>request-1</RequestId></ErrorResponse>"
        )
        self.answer_with(body.encode(), status, {"Content-Type": "text/xml"})
        self.faulty = "AssumeRole"

    def close(self) -> None:
        self._front.close()
        self.strict.close()
        assert self._front.errors == []

    def _answer(self, request: Request) -> Response:
        asked = Asked.of(request)
        self.requests.append(asked)
        if self.fault is not None and self.faulty in {None, asked.operation}:
            return self.fault
        response = self._forwarded(request)
        if response.status != 200 or asked.operation == "AssumeRole":
            return response
        altered = self.alter(json.loads(response.body))
        return Response(200, json.dumps(altered).encode(), response.headers)

    def _forwarded(self, request: Request) -> Response:
        """As it came, ``Host`` included: it is signed."""
        connection = http.client.HTTPConnection(
            urlsplit(self.strict.endpoint_url).netloc, timeout=PATIENCE
        )
        try:
            connection.putrequest(request.method, request.path, skip_host=True)
            for name, value in request.headers.items():
                connection.putheader(name, value)
            connection.endheaders(request.body)
            answer = connection.getresponse()
            headers = {
                name: value
                for name, value in answer.getheaders()
                if name.lower() not in _OF_THE_CONNECTION
            }
            return Response(answer.status, answer.read(), headers)
        finally:
            connection.close()


class Providers:
    """Builds instances for a server, and closes them when the test is over."""

    def __init__(self) -> None:
        self._made: list[AwsKmsProvider] = []

    def __call__(self, server: Server, key: object, **settings: Any) -> AwsKmsProvider:
        table = {
            "key": str(key),
            "endpoint_url": server if isinstance(server, str) else server.endpoint_url,
            "insecure": True,
            "max_connections": 10,
            **({} if "profile" in settings else credentials(server)),
            **settings,
        }
        provider = AwsKmsProvider(AwsKmsSettings(**table))
        self._made.append(provider)
        return provider

    def close(self) -> None:
        for provider in self._made:
            provider.close()


def credentials(server: Server) -> dict[str, Any]:
    """What the server takes; moto takes anything."""
    strict = server.strict if isinstance(server, Aws) else server
    if isinstance(strict, str):
        return {"access_key_id": Secret("AKIDX"), "secret_access_key": Secret("example")}
    return {
        "access_key_id": Secret(strict.access_key_id),
        "secret_access_key": Secret(strict.secret_access_key),
    }


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
def aws() -> Iterator[Aws]:
    """The strict server, and what stands before it."""
    server = Aws()
    yield server
    server.close()


@pytest.fixture
def make() -> Iterator[Providers]:
    """Makes instances: ``make(server, key, **settings)``."""
    providers = Providers()
    yield providers
    providers.close()


@pytest.fixture(scope="session")
def moto() -> Iterator[AwsServer]:
    """The emulator that demonstrations use."""
    with AwsServer() as server:
        yield server
