"""The SDK's client of one vault: how it is built, with which limits, and when it is thrown away.

One attempt per request, bounded waiting, no redirects, and no address from the environment:
retries, time-outs and fail-over are decided by the core.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from attrs import define, field

from kms_azure import credentials
from kms_azure.answer import Reply
from kms_azure.settings import AzureKeyVaultSettings

_HOSTS: Final = 1  # that connections are kept for


@define(eq=False)
class _Line:
    """A client with what belongs to it.

    ``open`` once a request was authorised.  Until then requests go one by one: the SDK has no lock
    around its token, and threads that all fetch the first one may take it from each other.
    """

    client: Any
    session: Any
    credential: Any
    open: bool = False
    entry: threading.Lock = field(factory=threading.Lock)

    def close(self) -> None:
        self.client.close()
        self.session.close()
        self.credential.close()


@define(eq=False)
class _Held:
    """What belongs to one process: after a fork, locks and sockets are the parent's."""

    pid: int = field(factory=os.getpid)
    lock: threading.Lock = field(factory=threading.Lock)
    line: _Line | None = None


class Connection:
    """One client of Azure Key Vault, shared by all threads of a process and built on first use."""

    def __init__(self, settings: AzureKeyVaultSettings) -> None:
        self._settings = settings
        self._held = _Held()

    def prepare(self) -> None:
        """Build the client; raises what the SDK raises, and asks nobody."""
        self._line()

    def send(self, method: str, path: str, content: dict[str, Any] | None = None) -> Reply:
        """One request; raises what the SDK raises.

        The first one is preceded by the vault's challenge and the fetching of a token.
        """
        from azure.core.rest import HttpRequest

        request = HttpRequest(method, path, json=content, headers={"Accept": "application/json"})
        line = self._line()
        with self._admitted(line):
            response = line.client.send_request(request)
            line.open = line.open or response.status_code != 401
        headers = {name.lower(): value for name, value in response.headers.items()}
        return Reply(response.status_code, headers, response.content)

    def discard(self) -> None:
        """Forget the client and its token; calls under way finish with them."""
        self._of_this_process().line = None

    def close(self) -> None:
        """Close the sockets."""
        held = self._of_this_process()
        line, held.line = held.line, None
        if line is not None:
            line.close()

    @contextmanager
    def _admitted(self, line: _Line) -> Iterator[None]:
        if line.open:
            yield
            return
        if not line.entry.acquire(timeout=self._settings.attempt_timeout):
            raise TimeoutError("another request is still waiting for a token")
        try:
            yield
        finally:
            line.entry.release()

    def _line(self) -> _Line:
        held = self._of_this_process()
        if (line := held.line) is not None:
            return line
        with held.lock:
            if held.line is None:
                held.line = _build(self._settings)
            return held.line

    def _of_this_process(self) -> _Held:
        # Threads of a new child may both get here: then one of them builds a client for itself.
        if self._held.pid != os.getpid():
            self._held = _Held()
        return self._held


def _build(settings: AzureKeyVaultSettings) -> _Line:
    from azure.core.pipeline.transport import RequestsTransport
    from azure.keyvault.keys import KeyClient

    credential = credentials.build(settings)
    session = _session(settings)
    transport = RequestsTransport(
        session=session,
        session_owner=False,  # its owner would drop it under the requests of other threads
        connection_timeout=settings.connect_timeout,
        read_timeout=settings.attempt_timeout,
        connection_verify=True if settings.ca_file is None else str(settings.ca_file),
    )
    client = KeyClient(
        f"https://{settings.configured_key.vault}",
        credential,
        transport=transport,
        retry_total=0,
        permit_redirects=False,  # what is sent is for this host alone
        verify_challenge_resource=settings.verify_challenge,
        **({} if settings.api_version is None else {"api_version": settings.api_version}),
    )
    return _Line(client, session, credential)


def _session(settings: AzureKeyVaultSettings) -> Any:
    import requests
    from requests.adapters import HTTPAdapter

    session = requests.Session()
    session.trust_env = not settings.is_loopback  # proxies cannot reach our loopback
    session.auth = _as_it_is
    adapter = HTTPAdapter(
        pool_connections=_HOSTS, pool_maxsize=settings.max_connections, max_retries=0
    )
    session.mount("https://", adapter)
    return session


def _as_it_is(request: Any) -> Any:
    """Instead of the credentials of ~/.netrc, which would take the place of the token."""
    return request
