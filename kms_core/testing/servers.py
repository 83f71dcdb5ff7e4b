"""Key services on loopback that can be cut off, made to hang and brought back.

``AwsServer`` answers as AWS KMS does (moto, from the extra ``kms-core[demo]``); ``Gate`` stands in
front of any server and is what fails on cue.  A key service that is restarted would have lost its
keys; one behind a gate only becomes unreachable, as in a real outage.
"""

from __future__ import annotations

import http.client
import json
import os
import queue
import selectors
import socket
import threading
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeAlias, cast

from attrs import define

if TYPE_CHECKING:
    from werkzeug.serving import BaseWSGIServer

LOOPBACK: Final = "127.0.0.1"
PATIENCE: Final = 30.0  # seconds for what takes milliseconds on any machine that works
_CHUNK: Final = 65536
_POLL: Final = 0.05  # seconds within which a server notices that it is to stop
# moto takes the region from here, as AWS does, and verifies nothing.
_AUTHORIZATION: Final = (
    "AWS4-HMAC-SHA256 Credential=demo/20250101/{region}/kms/aws4_request, "
    "SignedHeaders=host, Signature=0"
)

Address: TypeAlias = tuple[str, int]


@define(eq=False)
class _Link:
    """A visitor's connection and the one to the service behind, if the gate was open for it."""

    visitor: socket.socket
    service: socket.socket | None
    asking: bool = False  # said something and has had no answer yet


class Gate:
    """A port on loopback that leads to a server until it is cut or made to hang.

    It is open when made.  ``cut``, ``hang``, ``restore`` and ``close`` have taken effect when they
    return.  One thread of its own does everything else.
    """

    def __init__(self, upstream: Address) -> None:
        self._upstream = upstream
        self._state: Literal["open", "hanging", "cut", "closed"] = "open"
        self._calls = 0
        self._links: set[_Link] = set()
        self._orders: queue.SimpleQueue[tuple[Callable[[], None], Future[None]]] = (
            queue.SimpleQueue()
        )
        self._selector = selectors.DefaultSelector()
        self._bell, self._bell_rope = socket.socketpair()
        self._selector.register(self._bell, selectors.EVENT_READ, self._obey)
        self._door = _bound((LOOPBACK, 0))
        self.address: Final[Address] = self._door.getsockname()
        self._open_door()
        self._thread = threading.Thread(target=self._run, name="kms-gate", daemon=True)
        self._thread.start()

    @property
    def calls(self) -> int:
        """Requests that arrived so far, answered or not.

        Counted by turns: whatever a client says before it is answered is one request.
        """
        return self._calls

    def cut(self) -> None:
        """Break every connection and refuse new ones; the port stays reserved."""
        self._order(self._cut)

    def hang(self) -> None:
        """Go on accepting connections and requests, and answer nothing."""
        self._order(self._hang)

    def restore(self) -> None:
        """Work again, on the same port.  Connections that hung are broken."""
        self._order(self._restore)

    def close(self) -> None:
        """Break every connection and give up the port.  Idempotent."""
        if self._state == "closed":
            return
        self._order(self._close)
        self._thread.join(PATIENCE)
        self._selector.close()
        self._bell.close()
        self._bell_rope.close()

    # --- orders, carried out by the gate's own thread ---------------------------------------------

    def _order(self, action: Callable[[], None]) -> None:
        if self._state == "closed":
            raise ValueError("this gate is closed")
        done: Future[None] = Future()
        self._orders.put((action, done))
        self._bell_rope.send(b"\0")
        done.result(PATIENCE)

    def _obey(self) -> None:
        self._bell.recv(1)
        action, done = self._orders.get()
        try:
            action()
        except OSError as exc:
            done.set_exception(exc)
        else:
            done.set_result(None)

    def _cut(self) -> None:
        if self._state != "cut":
            self._shut_door()
            # Bound and not listening: it refuses, and nobody else is given this port meanwhile.
            self._door = _bound(self.address)
            self._state = "cut"

    def _hang(self) -> None:
        if self._state == "cut":
            self._open_door()
        self._state = "hanging"

    def _restore(self) -> None:
        self._drop(list(self._links))  # an answer from before the outage must not arrive now
        if self._state == "cut":
            self._open_door()
        self._state = "open"

    def _close(self) -> None:
        self._shut_door()
        self._state = "closed"

    def _open_door(self) -> None:
        self._door.listen()
        self._door.settimeout(0)
        self._selector.register(self._door, selectors.EVENT_READ, self._accept)

    def _shut_door(self) -> None:
        if self._state != "cut":
            self._selector.unregister(self._door)
        self._door.close()
        self._drop(list(self._links))

    # --- traffic ---------------------------------------------------------------------------------

    def _run(self) -> None:
        while self._state != "closed":
            for key, _ in self._selector.select():
                if cast("socket.socket", key.fileobj).fileno() >= 0:  # not closed by an earlier one
                    key.data()

    def _accept(self) -> None:
        try:
            visitor, _ = self._door.accept()
        except OSError:
            return  # it left before it was let in
        visitor.settimeout(PATIENCE)
        try:
            service = None if self._state == "hanging" else self._connect()
        except OSError:
            visitor.close()
            return
        link = _Link(visitor, service)
        self._links.add(link)
        self._selector.register(visitor, selectors.EVENT_READ, partial(self._from_visitor, link))
        if service is not None:
            answer = partial(self._from_service, link, service)
            self._selector.register(service, selectors.EVENT_READ, answer)

    def _connect(self) -> socket.socket:
        service = socket.create_connection(self._upstream, timeout=PATIENCE)
        service.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return service

    def _from_visitor(self, link: _Link) -> None:
        said = _received(link.visitor)
        if said and not link.asking:
            link.asking = True
            self._calls += 1
        self._pass_on(said, link, link.service)

    def _from_service(self, link: _Link, service: socket.socket) -> None:
        answered = _received(service)
        if self._state != "hanging":
            link.asking = False
        self._pass_on(answered, link, link.visitor)

    def _pass_on(self, data: bytes, link: _Link, to: socket.socket | None) -> None:
        over = not data
        if data and to is not None and self._state != "hanging":
            over = not _sent(to, data)
        if over:
            self._drop([link])

    def _drop(self, links: Iterable[_Link]) -> None:
        for link in links:
            self._links.remove(link)
            for end in (link.visitor, link.service):
                if end is not None:
                    self._selector.unregister(end)
                    end.close()


def _bound(address: Address) -> socket.socket:
    """A socket that owns ``address`` and does not listen yet."""
    door = socket.socket()
    try:
        if os.name == "posix":  # where it means: although old connections linger on this port
            door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind(address)
    except OSError:
        door.close()
        raise
    return door


def _received(end: socket.socket) -> bytes:
    """What has arrived; nothing if the connection is over, in whatever way."""
    try:
        return end.recv(_CHUNK)
    except OSError:
        return b""


def _sent(end: socket.socket, data: bytes) -> bool:
    try:
        end.sendall(data)
    except OSError:
        return False
    return True


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
