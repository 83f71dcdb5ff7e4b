"""AWS KMS as moto plays it, behind a gate."""

from __future__ import annotations

import http.client
import json
import threading
import weakref
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from kms_core.testing.servers.gate import LOOPBACK, PATIENCE, Address, Gate

if TYPE_CHECKING:
    from werkzeug.serving import BaseWSGIServer

_POLL: Final = 0.05  # seconds within which a server notices that it is to stop
# moto takes the region from here, as AWS does, and verifies nothing.
_AUTHORIZATION: Final = (
    "AWS4-HMAC-SHA256 Credential=demo/20250101/{region}/kms/aws4_request, "
    "SignedHeaders=host, Signature=0"
)


class _Moto:
    """moto's KMS on a free port.  Its keys belong to the process: every one serves the same."""

    def __init__(self) -> None:
        self._handlers: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
        self._server = self._make_server()
        self.address: Final[Address] = (LOOPBACK, self._server.server_port)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_POLL,), name="kms-moto", daemon=True
        )
        self._thread.start()

    def _make_server(self) -> BaseWSGIServer:
        from moto.moto_server.werkzeug_app import create_backend_app
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            def log(self, type: str, message: str, *args: object) -> None:  # noqa: A002  werkzeug's
                """Requests are nobody's business: demonstrations and tests print their own."""

        app = create_backend_app("kms")

        def noting_threads(environ: Any, start_response: Any) -> Any:
            self._handlers.add(threading.current_thread())
            return app(environ, start_response)

        return make_server(LOOPBACK, 0, noting_threads, threaded=True, request_handler=Quiet)

    def close(self) -> None:
        """Stop; connections must have been closed by the other side."""
        self._server.shutdown()
        for thread in (self._thread, *self._handlers):
            thread.join(PATIENCE)


class AwsServer:
    """AWS KMS on a free loopback port: running when made, and until ``close``.

    All servers of a process share one account and its keys, so that two of them can stand for two
    regions.  Any credentials will do.  What moto does differently from AWS is moto's to document;
    notably, disabled keys go on working.
    """

    def __init__(self) -> None:
        self._moto = _Moto()
        self._gate = Gate(self._moto.address)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def endpoint_url(self) -> str:
        """What to configure as the instance's ``endpoint_url``; it stays the same."""
        return "http://{}:{}".format(*self._gate.address)

    @property
    def calls(self) -> int:
        """Requests that arrived so far, also while hanging; a refused connection brings none."""
        return self._gate.calls

    def create_key(self, region: str) -> str:
        """Make a symmetric key, also during an outage; returns its ARN."""
        connection = http.client.HTTPConnection(*self._moto.address, timeout=PATIENCE)
        headers = {
            "Authorization": _AUTHORIZATION.format(region=region),
            "Connection": "close",
            "Content-Type": "application/x-amz-json-1.1",
            "X-Amz-Target": "TrentService.CreateKey",
        }
        try:
            connection.request("POST", "/", "{}", headers)
            answer = json.load(connection.getresponse())
        finally:
            connection.close()
        return str(answer["KeyMetadata"]["Arn"])

    def cut(self) -> None:
        """Cut the line: connections break and new ones are refused."""
        self._gate.cut()

    def hang(self) -> None:
        """Stop answering: connections are accepted, requests are swallowed."""
        self._gate.hang()

    def restore(self) -> None:
        """Work again, on the same port and with the same keys."""
        self._gate.restore()

    def close(self) -> None:
        """Stop, and leave no thread behind.  Idempotent."""
        self._gate.close()
        self._moto.close()
