"""A port that leads to a server until it is cut or made to hang.

A key service that is restarted would have lost its keys; one behind a gate only becomes
unreachable, as in a real outage.
"""

from __future__ import annotations

import os
import queue
import selectors
import socket
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from functools import partial
from typing import Final, Literal, TypeAlias, cast

from attrs import define

LOOPBACK: Final = "127.0.0.1"
PATIENCE: Final = 30.0  # seconds for what takes milliseconds on any machine that works
_CHUNK: Final = 65536

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

    def reset(self) -> None:
        """Break every connection, and go on as before."""
        self._order(lambda: self._drop(list(self._links)))

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
        if self._state == "open":
            return
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
        visitor.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
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
