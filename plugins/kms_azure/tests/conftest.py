"""The services the tests talk to: a vault, a Managed HSM, and a host that says what it is told."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field

from kms_azure.provider import AzureKeyVaultProvider
from kms_azure.settings import AzureKeyVaultSettings
from kms_core import Secret
from kms_core.testing.servers import AzureServer
from kms_core.testing.servers.authority import Authority
from kms_core.testing.servers.http import HttpService, Request, Response

KEY = "kek"


@define(eq=False)
class Clock:
    """Seconds that pass when a test says so."""

    seconds: float = 1000.0

    def __call__(self) -> float:
        return self.seconds


@define(eq=False)
class Providers:
    """Makes providers of a vault, and closes them afterwards."""

    made: list[AzureKeyVaultProvider] = field(factory=list)

    def __call__(
        self, server: AzureServer, key: str = KEY, *, clock: Clock | None = None, **changes: Any
    ) -> AzureKeyVaultProvider:
        clocks = {} if clock is None else {"monotonic": clock}
        provider = AzureKeyVaultProvider(settings_of(server, key, **changes), **clocks)
        self.made.append(provider)
        return provider

    def close(self) -> None:
        for provider in self.made:
            provider.close()


def settings_of(server: AzureServer, key: str = KEY, **changes: Any) -> AzureKeyVaultSettings:
    """What leads to a server."""
    given = {
        "vault_url": server.vault_url,
        "ca_file": server.ca_file,
        "verify_challenge": False,
        "token": Secret(server.token),
    }
    return AzureKeyVaultSettings(key=key, **{**given, **changes})


class Puppet:
    """A host with TLS that answers whatever it is told to, without asking for a token."""

    def __init__(self) -> None:
        self.answer: Callable[[Request], Response] = lambda _: Response(200, b"{}")
        self.requests: list[Request] = []
        self._authority = Authority()
        self._http = HttpService(self._respond, tls=self._authority.server_context())
        self.ca_file: Path = self._authority.ca_file

    @property
    def url(self) -> str:
        return "https://{}:{}".format(*self._http.address)

    def say(
        self, status: int, content: object, headers: dict[str, str] | None = None, kind: str = ""
    ) -> None:
        """Give this answer to everything: JSON, unless the content is bytes."""
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        shown = {"Content-Type": kind or "application/json", **(headers or {})}
        self.answer = lambda _: Response(status, body, shown)

    def provider(self, make: Providers, **changes: Any) -> AzureKeyVaultProvider:
        """A provider whose vault this is."""
        settings = AzureKeyVaultSettings(
            key=KEY,
            vault_url=self.url,
            ca_file=self.ca_file,
            **{"token": Secret("t0ken"), "verify_challenge": False, **changes},
        )
        provider = AzureKeyVaultProvider(settings)
        make.made.append(provider)
        return provider

    def close(self) -> None:
        self._http.close()
        self._authority.close()

    def _respond(self, request: Request) -> Response:
        self.requests.append(request)
        return self.answer(request)


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of this machine's identity or network comes in."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name in (
        *("AZURE_TENANT_ID", "AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET", "AZURE_AUTHORITY_HOST"),
        *(
            "AZURE_FEDERATED_TOKEN_FILE",
            "AZURE_TOKEN_CREDENTIALS",
            "AZURE_POD_IDENTITY_AUTHORITY_HOST",
        ),
        *("IDENTITY_ENDPOINT", "IDENTITY_HEADER", "MSI_ENDPOINT", "MSI_SECRET", "IMDS_ENDPOINT"),
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def clock() -> Clock:
    """It stands still."""
    return Clock()


@pytest.fixture
def make() -> Iterator[Providers]:
    """Makes providers; they are closed after the test."""
    providers = Providers()
    yield providers
    providers.close()


@pytest.fixture
def vault() -> Iterator[AzureServer]:
    """A vault with nothing in it."""
    with AzureServer() as server:
        yield server
        assert server.errors == []


@pytest.fixture
def hsm() -> Iterator[AzureServer]:
    """A Managed HSM with nothing in it."""
    with AzureServer(managed_hsm=True) as server:
        yield server
        assert server.errors == []


@pytest.fixture
def puppet() -> Iterator[Puppet]:
    """A host that says what it is told."""
    host = Puppet()
    yield host
    host.close()
