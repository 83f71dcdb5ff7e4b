"""AWS KMS as moto plays it, behind a gate, with a panel that makes it answer badly."""

from __future__ import annotations

import json
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from attrs import evolve

from kms_core.testing.servers.aws_wire import FAILURES, Failures, JsonWire, misnamed
from kms_core.testing.servers.closing import Closed
from kms_core.testing.servers.gate import LOOPBACK, PATIENCE, Address, Gate
from kms_core.testing.servers.http import Response
from kms_core.testing.servers.panel import Failure, Order, Panel

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment
    from werkzeug.serving import BaseWSGIServer

_POLL: Final = 0.05  # seconds within which a server notices that it is to stop
# moto takes the region from here, as AWS does, and verifies nothing.
_AUTHORIZATION: Final = (
    "AWS4-HMAC-SHA256 Credential=demo/20250101/{region}/kms/aws4_request, "
    "SignedHeaders=host, Signature=0"
)


class _Faulty:
    """A WSGI application that does what its panel says, and otherwise what ``app`` does."""

    def __init__(self, app: WSGIApplication) -> None:
        self.app: Final = app
        self.arrived: Callable[[str], Order | None] = lambda _: None
        self._failures = Failures()
        self._wire = JsonWire()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        target = str(environ.get("HTTP_X_AMZ_TARGET", ""))
        order = self.arrived(target.rpartition(".")[2])
        if order is None:
            return self.app(environ, start_response)
        refusal = self._failures.refusal(order)
        if refusal is None:
            response = self._spoiled(_response(self.app, environ), order.failure)
        else:
            response = self._wire.refused(refusal)
        start_response(
            f"{response.status} {HTTPStatus(response.status).phrase}", _headers(response)
        )
        return _halved(response.body) if response.broken else [response.body]

    def _spoiled(self, response: Response, failure: Failure) -> Response:
        """A good answer made bad."""
        if failure is Failure.MALFORMED:
            return self._wire.result("", {})
        if failure is Failure.WRONG_KEY and response.status == HTTPStatus.OK and response.body:
            content = misnamed(json.loads(response.body))
            return evolve(response, body=json.dumps(content).encode())
        return evolve(response, broken=failure is Failure.RESET)


def _response(app: WSGIApplication, environ: WSGIEnvironment) -> Response:
    from werkzeug.test import run_wsgi_app

    body, status, headers = run_wsgi_app(app, environ)
    return Response(int(status.split()[0]), b"".join(body), dict(headers))


def _headers(response: Response) -> list[tuple[str, str]]:
    kept = {k: v for k, v in response.headers.items() if k.lower() != "content-length"}
    return [*kept.items(), ("Content-Length", str(len(response.body)))]


def _halved(body: bytes) -> Iterator[bytes]:
    """Half of what was announced; then the server takes the connection for lost."""
    yield body[: len(body) // 2]
    raise ConnectionResetError


class _Moto:
    """moto's KMS on a free port.  Its keys belong to the process: every one serves the same."""

    def __init__(self) -> None:
        from moto.moto_server.werkzeug_app import create_backend_app

        self._handlers: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
        self._app = _Faulty(create_backend_app("kms"))
        self._server = self._make_server()
        self.address: Final[Address] = (LOOPBACK, self._server.server_port)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_POLL,), name="kms-moto", daemon=True
        )

    def _make_server(self) -> BaseWSGIServer:
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            def log(self, type: str, message: str, *args: object) -> None:  # noqa: A002  werkzeug's
                """Requests are nobody's business: demonstrations and tests print their own."""

        def noting_threads(environ: Any, start_response: Any) -> Any:
            self._handlers.add(threading.current_thread())
            return self._app(environ, start_response)

        return make_server(LOOPBACK, 0, noting_threads, threaded=True, request_handler=Quiet)

    def start(self, panel: Panel) -> None:
        """Serve, as the panel says."""
        self._app.arrived = panel.arrived
        self._thread.start()

    def create_key(self, region: str) -> str:
        """A new key's ARN; asked without a connection, so that no failure is in the way."""
        from werkzeug.test import Client

        headers = {
            "Authorization": _AUTHORIZATION.format(region=region),
            "X-Amz-Target": "TrentService.CreateKey",
        }
        answer = Client(self._app.app).post(
            "/", data="{}", headers=headers, content_type="application/x-amz-json-1.1"
        )
        return str(json.loads(answer.data)["KeyMetadata"]["Arn"])

    def close(self) -> None:
        """Stop; connections must have been closed by the other side."""
        self._server.shutdown()
        for thread in (self._thread, *self._handlers):
            thread.join(PATIENCE)


class AwsServer(Closed):
    """AWS KMS on a free loopback port: running when made, and until ``close``.

    All servers of a process share one account and its keys, so that two of them can stand for two
    regions.  Any credentials will do.  What moto does differently from AWS is moto's to document;
    notably, disabled keys go on working.  The panel's operations are AWS's names of them.
    """

    def __init__(self) -> None:
        self._moto = _Moto()
        self.gate: Final = Gate(self._moto.address)
        self.panel: Final = Panel(FAILURES, self.gate)
        self._moto.start(self.panel)

    @property
    def endpoint_url(self) -> str:
        """What to configure as the instance's ``endpoint_url``; it stays the same."""
        return "http://{}:{}".format(*self.gate.address)

    @property
    def calls(self) -> int:
        """Requests that arrived so far, also while hanging; a refused connection brings none."""
        return self.gate.calls

    def create_key(self, region: str) -> str:
        """Make a symmetric key, also during an outage; returns its ARN."""
        return self._moto.create_key(region)

    def cut(self) -> None:
        """Cut the line: connections break and new ones are refused."""
        self.gate.cut()

    def hang(self) -> None:
        """Stop answering: connections are accepted, requests are swallowed."""
        self.gate.hang()

    def restore(self) -> None:
        """Work again, on the same port and with the same keys."""
        self.gate.restore()

    def close(self) -> None:
        """Stop, and leave no thread behind.  Idempotent."""
        self.gate.close()  # first: who is kept waiting gets no late answer
        self.panel.close()
        self._moto.close()
