"""The HTTP half of a key service: connections, threads and the ways in which a line fails."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Mapping
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar, Final

from attrs import field, frozen

from kms_core.testing.servers.gate import LOOPBACK, PATIENCE, Address, Gate

_POLL: Final = 0.02  # seconds within which a server notices that it is to stop
MAX_BODY_BYTES: Final = 1 << 20  # more than any request of a key service


@frozen
class Request:
    """One request as it arrived; ``path`` keeps its query."""

    method: str
    path: str
    headers: Message
    body: bytes = field(repr=False)


@frozen
class Response:
    """What to answer.  ``broken``: send half of it and reset the connection."""

    status: int
    body: bytes = field(default=b"", repr=False)
    headers: Mapping[str, str] = field(factory=dict)
    broken: bool = False


class HttpService:
    """HTTP/1.1 on a free loopback port, behind a gate; ``answer`` runs in a thread per connection.

    An ``answer`` that raises is a bug of the server: it answers 500 and the error is kept in
    ``errors``, for a test to look at.
    """

    def __init__(
        self, answer: Callable[[Request], Response], *, tls: ssl.SSLContext | None = None
    ) -> None:
        self.errors: list[Exception] = []
        self._server = _Server(answer, tls, self.errors)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_POLL,), name="kms-http", daemon=True
        )
        self._thread.start()
        self.gate: Final = Gate(self._server.server_address)

    @property
    def address(self) -> Address:
        """Where clients connect; it stays the same."""
        return self.gate.address

    def close(self) -> None:
        """Stop, end every connection and leave no thread behind.  Idempotent."""
        self.gate.close()
        self._server.shutdown()
        self._server.server_close()  # waits for the threads, whose connections have ended
        self._thread.join(PATIENCE)


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # threads of a test connect all at once
    daemon_threads = False  # so that closing waits for them
    server_address: Address

    def __init__(
        self,
        answer: Callable[[Request], Response],
        tls: ssl.SSLContext | None,
        errors: list[Exception],
    ) -> None:
        super().__init__((LOOPBACK, 0), _Handler)
        self.answer = answer
        self.tls = tls
        self.errors = errors

    def finish_request(self, request: Any, client_address: Any) -> None:
        """In the connection's own thread: a slow handshake holds up nobody else."""
        if self.tls is not None:
            request = self.tls.wrap_socket(request, server_side=True)
        try:
            super().finish_request(request, client_address)
        finally:
            if self.tls is not None:
                request.close()  # the wrapped one; the server closes only what it accepted

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up or distrusts our certificate is part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every answer waits 40 ms for an acknowledgement
    wbufsize: ClassVar[int] = -1
    timeout = PATIENCE
    server: _Server

    def do_GET(self) -> None:
        self._serve()

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815

    def _serve(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        if size > MAX_BODY_BYTES:
            self.close_connection = True
            self._send(Response(413))
            return
        request = Request(self.command, self.path, self.headers, self.rfile.read(size))
        try:
            response = self.server.answer(request)
        except Exception as exc:  # noqa: BLE001  a bug of the server must not look like a fault
            self.server.errors.append(exc)
            response = Response(500)
        self._send(response)

    def _send(self, response: Response) -> None:
        self.send_response(response.status)
        for name, value in response.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(response.body)))
        self.end_headers()
        if response.broken:
            self.wfile.write(response.body[: len(response.body) // 2])
            self._reset()
        else:
            self.wfile.write(response.body)
            self.wfile.flush()

    def _reset(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.wfile.flush()
            linger = struct.pack("ii", 1, 0)  # closing sends a reset
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the base class's name
        """Requests are nobody's business: demonstrations and tests print their own."""
