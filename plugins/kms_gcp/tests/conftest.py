"""The servers the tests talk to, and instances of the provider that are closed afterwards.

``GcpServer`` is strict and does real cryptography.  ``Scripted`` answers whatever it is told to, in
the service's protocol, and notes what it was asked and by whom.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from attrs import frozen
from google.cloud.kms_v1 import types
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc.status_pb2 import Status

from kms_core import Context
from kms_core.testing.servers import GcpServer
from kms_core.testing.servers.authority import Authority
from kms_gcp.provider import GcpKmsProvider
from kms_gcp.settings import GcpKmsSettings

CONTEXT = Context({"tenant": "42"})
KEY = "projects/demo/locations/europe-west1/keyRings/ring/cryptoKeys/app"

_OF_THE_SDK = ("GOOGLE_", "GCLOUD_", "CLOUDSDK_", "GCE_", "NO_GCE", "GRPC_")
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@frozen
class Asked:
    """One request as it arrived: the RPC's name, its headers and its bytes."""

    rpc: str
    headers: dict[str, Any]
    body: bytes

    def parsed(self) -> Any:
        """The request as a protobuf message."""
        return getattr(types, f"{self.rpc}Request").pb().FromString(self.body)


class Scripted(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    """A gRPC server that answers as it is told and notes what it was asked."""

    def __init__(self, *, tls: bool = False) -> None:
        self.answer: Callable[[Asked], bytes] = lambda _asked: b""
        self.refusal: tuple[grpc.StatusCode, str, Sequence[Any]] | None = None
        self.requests: list[Asked] = []
        self.authority = Authority()
        self._threads = futures.ThreadPoolExecutor(4)
        self._server = grpc.server(
            self._threads, handlers=(self,), options=[("grpc.so_reuseport", 0)]
        )
        self.endpoint = f"127.0.0.1:{self._listen('127.0.0.1:0', tls=tls)}"
        self._server.start()

    def _listen(self, address: str, *, tls: bool) -> int:
        if not tls:
            return int(self._server.add_insecure_port(address))
        leaf = self.authority.issue()
        chain = b"".join(pem.bytes() for pem in leaf.cert_chain_pems)
        pair = (leaf.private_key_pem.bytes(), chain)
        return int(self._server.add_secure_port(address, grpc.ssl_server_credentials((pair,))))

    def service(self, handler_call_details: Any) -> Any:
        rpc = handler_call_details.method.rpartition("/")[2]
        headers = dict(handler_call_details.invocation_metadata)

        def serve(body: bytes, context: grpc.ServicerContext) -> bytes:
            asked = Asked(rpc, headers, body)
            self.requests.append(asked)
            if self.refusal is not None:
                self._refuse(context, *self.refusal)
            return self.answer(asked)

        return grpc.unary_unary_rpc_method_handler(serve)

    def _refuse(
        self, context: grpc.ServicerContext, code: Any, text: str, details: Sequence[Any]
    ) -> None:
        status = Status(code=code.value[0], message=text)
        for detail in details:
            packed = AnyMessage()
            packed.Pack(detail)
            status.details.append(packed)
        if details:
            told = (("grpc-status-details-bin", status.SerializeToString()),)
            context.set_trailing_metadata(told)
        context.abort(code, text)

    def close(self) -> None:
        self._server.stop(0).wait()
        self._threads.shutdown()
        self.authority.close()


class Providers:
    """Builds instances for a server, and closes them when the test is over."""

    def __init__(self) -> None:
        self._made: list[GcpKmsProvider] = []

    def __call__(self, server: Any, key: str = KEY, **settings: Any) -> GcpKmsProvider:
        table = {
            "key": key,
            "endpoint": getattr(server, "endpoint", server),
            "insecure": "ca_file" not in settings,
            **settings,
        }
        provider = GcpKmsProvider(GcpKmsSettings(**table))
        self._made.append(provider)
        return provider

    def close(self) -> None:
        for provider in self._made:
            provider.close()


@pytest.fixture(autouse=True)
def _no_configuration_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith(_OF_THE_SDK) or name.upper() in _PROXIES:
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path / "gcloud"))
    monkeypatch.setenv("NO_GCE_CHECK", "true")


@pytest.fixture
def gcp() -> Iterator[GcpServer]:
    """The strict server."""
    with GcpServer() as server:
        yield server


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    """The server that does as it is told."""
    server = Scripted()
    yield server
    server.close()


@pytest.fixture
def scripted_tls() -> Iterator[Scripted]:
    """The same with TLS, as whoever sends credentials needs it."""
    server = Scripted(tls=True)
    yield server
    server.close()


@pytest.fixture
def make() -> Iterator[Providers]:
    """Makes instances: ``make(server, key, **settings)``."""
    providers = Providers()
    yield providers
    providers.close()
