"""Connections: tokens, challenges, TLS, limits, forks, and what the environment may not change."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import urllib3.util.connection
from attrs import evolve
from azure.core.exceptions import ServiceRequestError
from azure.keyvault.keys._shared import http_challenge_cache

from kms_azure import credentials
from kms_azure.connection import Connection
from kms_azure.errors import translate
from kms_azure.settings import AzureKeyVaultSettings, Credential
from kms_core import (
    AccessDenied,
    ConfigError,
    Context,
    DeadlineExceeded,
    Duration,
    KMSError,
    Secret,
    Unavailable,
)
from kms_core.testing.servers import Failure
from kms_core.testing.servers.authority import Authority
from kms_core.testing.servers.azure import TENANT
from kms_core.testing.servers.http import HttpService, Request, Response

if TYPE_CHECKING:
    from kms_azure.provider import AzureKeyVaultProvider
    from kms_core.testing.servers import AzureServer
    from tests.conftest import Providers

CONTEXT = Context({"tenant": "42"})
PATIENCE = 15.0  # seconds within which what takes a fraction of one has to be over
PUBLIC = "https://app.vault.azure.net"


# Time and place


@pytest.mark.parametrize("failure", [Failure.HANG, Failure.SLOW])
def test_attempt_timeout_ends_the_wait(
    vault: AzureServer, make: Providers, failure: Failure
) -> None:
    """A service that hangs costs what the configuration allows, not the SDK's five minutes."""
    vault.create_key("kek")
    vault.panel.fail(failure)
    provider = make(vault, attempt_timeout=Duration(0.2))
    provider.prepare()
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="attempt_timeout"):
        provider.health("kek")
    assert time.monotonic() - began < PATIENCE


def test_connect_timeout_ends_the_wait(vault: AzureServer, make: Providers) -> None:
    """A host that does not take the connection is given up as well."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        port = listening.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):  # the backlog of one is full now
            provider = make(
                vault,
                vault_url=f"https://127.0.0.1:{port}",
                connect_timeout=Duration(0.2),
                attempt_timeout=Duration(0.2),
            )
            with pytest.raises(DeadlineExceeded):
                provider.health("kek")


def test_refused_connection_is_an_outage(vault: AzureServer, make: Providers) -> None:
    """Nobody listens."""
    vault.panel.fail(Failure.REFUSE)
    with pytest.raises(Unavailable) as caught:
        make(vault).health("kek")
    assert type(caught.value) is Unavailable
    assert caught.value.__cause__ is not None


def test_unknown_host_is_an_outage(vault: AzureServer, make: Providers) -> None:
    """As long as nobody knows the name."""
    with pytest.raises(Unavailable):
        make(vault, vault_url="https://no-such-host.invalid").health("kek")


def test_loopback_goes_around_proxies(
    vault: AzureServer, make: Providers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy cannot reach our loopback, and has no business with it."""
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    vault.create_key("kek")
    assert make(vault).health("kek").ok


def test_proxies_of_the_environment_are_used(
    vault: AzureServer, make: Providers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For hosts elsewhere they may be the only way."""
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    with pytest.raises(Unavailable) as caught:
        make(vault, vault_url=PUBLIC).health("kek")
    assert "127.0.0.1" in str(caught.value.__cause__)


def test_limits_reach_the_client() -> None:
    """The client has the time-outs and the pool of the configuration, and no retries."""
    settings = AzureKeyVaultSettings(
        key="kek",
        vault_url=PUBLIC,
        token=Secret("t"),
        api_version="7.6",
        connect_timeout=Duration(0.5),
        attempt_timeout=Duration(2.5),
        max_connections=7,
    )
    connection = Connection(settings)
    line = connection._line()
    config = line.client._client._config
    transport = line.client._client._client._pipeline._transport
    assert config.retry_policy.total_retries == 0
    assert not config.redirect_policy.allow
    assert line.client.api_version == "7.6"
    assert transport.connection_config.timeout == 0.5
    assert transport.connection_config.read_timeout == 2.5
    assert transport.connection_config.verify is True
    adapter = line.session.get_adapter(PUBLIC)
    assert adapter._pool_maxsize == 7
    assert adapter.max_retries.total == 0
    connection.close()


# Tokens and challenges


@pytest.fixture
def routed(vault: AzureServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[AzureServer]:
    """The vault, which the names of ``PUBLIC`` and others lead to: its own kind of host."""
    address = (vault.vault_url.removeprefix("https://").partition(":")[0], port_of(vault))

    def connect(_: Any, *arguments: Any, **options: Any) -> socket.socket:
        options.pop("socket_options", None)
        return socket.create_connection(address, *arguments[:1])

    monkeypatch.setattr(urllib3.util.connection, "create_connection", connect)
    vault.create_key("kek")
    yield vault
    http_challenge_cache.clear()


def port_of(server: AzureServer) -> int:
    """Where it listens."""
    return int(server.vault_url.rpartition(":")[2])


def test_a_challenge_of_the_right_domain_is_answered(routed: AzureServer, make: Providers) -> None:
    """With verification on, as it is unless somebody turns it off."""
    provider = make(routed, vault_url=PUBLIC, verify_challenge=True)
    sealed = provider.encrypt("kek", b"k" * 32, CONTEXT)
    assert sealed.key_uri.startswith("azure-keyvault://app.vault.azure.net/keys/kek/")
    matched = provider.match(sealed.key_uri)
    assert matched is not None
    assert provider.decrypt(matched, sealed, CONTEXT) == b"k" * 32


def test_a_challenge_of_another_domain_gets_no_token(vault: AzureServer, make: Providers) -> None:
    """Whoever answers for the vault does not get a token that is good for vaults."""
    vault.create_key("kek")
    with pytest.raises(AccessDenied, match="verify_challenge"):
        make(vault, verify_challenge=True).health("kek")
    assert vault.panel.count() == 0


def test_credentials_of_netrc_do_not_replace_the_token(
    routed: AzureServer, make: Providers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of another tool is no business of ours."""
    netrc = tmp_path / "netrc"
    netrc.write_text("default login somebody password else\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    assert make(routed, vault_url=PUBLIC).health("kek").ok


def test_one_challenge_does_for_all(vault: AzureServer, make: Providers) -> None:
    """The first request is preceded by one without a token; the others are not."""
    vault.create_key("kek")
    provider = make(vault)
    for _ in range(3):
        provider.health("kek")
    assert vault.panel.count() == 3
    assert len(vault.requests) == 4


def test_threads_that_all_come_first_get_through(vault: AzureServer, make: Providers) -> None:
    """One of them is challenged, and the others wait for its token."""
    vault.create_key("kek")
    provider = make(vault, attempt_timeout=Duration(30.0))
    start, healthy = threading.Barrier(8), []

    def work() -> None:
        start.wait(30)
        healthy.append(provider.health("kek").ok)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert healthy == [True] * 8
    assert len(vault.requests) == 9


def test_nobody_waits_for_the_first_for_ever(vault: AzureServer, make: Providers) -> None:
    """What the first request waits for, the others need not."""
    vault.create_key("kek")
    provider = make(vault, attempt_timeout=Duration(0.2))
    line = provider._service._connection._line()
    with line.entry, pytest.raises(DeadlineExceeded, match="TimeoutError"):
        provider.health("kek")
    assert vault.requests == []
    assert provider.health("kek").ok


def test_a_refused_token_is_an_access_problem_and_forgotten(
    vault: AzureServer, make: Providers
) -> None:
    """The client is built anew for the next call, which may have another token."""
    vault.create_key("kek")
    provider = make(vault, token=Secret("wrong"))
    connection = provider._service._connection
    before = connection._line()
    with pytest.raises(AccessDenied, match=r"(?i)credential|identity"):
        provider.health("kek")
    assert vault.panel.count() == 0
    assert connection._line() is not before


def test_other_denials_keep_the_client(vault: AzureServer, make: Providers) -> None:
    """A role that is missing says nothing against the token."""
    vault.create_key("kek")
    provider = make(vault)
    connection = provider._service._connection
    before = connection._line()
    vault.panel.fail(Failure.ACCESS_DENIED, times=1)
    with pytest.raises(AccessDenied):
        provider.health("kek")
    assert connection._line() is before


# The identities of the SDK


class Entra:
    """Whoever gives out tokens: it answers with the token it has."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.status = 200
        self.given = 0
        self._authority = Authority()
        self._http = HttpService(self._answer, tls=self._authority.server_context())
        self.ca_file = self._authority.ca_file

    @property
    def url(self) -> str:
        return "https://{}:{}".format(*self._http.address)

    def close(self) -> None:
        self._http.close()
        self._authority.close()

    def _answer(self, request: Request) -> Response:
        if self.status != 200:
            return self._json(self.status, {"error": "invalid_client", "error_description": "no"})
        if "openid-configuration" in request.path:
            base = f"{self.url}/{TENANT}"
            return self._json(
                200,
                {
                    "issuer": f"{base}/v2.0",
                    "authorization_endpoint": f"{base}/oauth2/v2.0/authorize",
                    "token_endpoint": f"{base}/oauth2/v2.0/token",
                },
            )
        self.given += 1
        return self._json(
            200, {"token_type": "Bearer", "expires_in": 3600, "access_token": self.token}
        )

    def _json(self, status: int, content: dict[str, Any]) -> Response:
        return Response(status, json.dumps(content).encode(), {"Content-Type": "application/json"})


@pytest.fixture
def entra(vault: AzureServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Entra]:
    """It gives out the token that the vault takes."""
    service = Entra(vault.token)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(service.ca_file))
    yield service
    service.close()


def with_secret(vault: AzureServer, make: Providers, authority: str) -> AzureKeyVaultProvider:
    """A provider that has to get its token first."""
    return make(
        vault,
        token=None,
        client_id="app",
        tenant_id=TENANT,
        client_secret=Secret("hush"),
        authority=authority,
    )


def test_a_client_secret_gets_a_token(vault: AzureServer, make: Providers, entra: Entra) -> None:
    """Which is kept for the requests that follow."""
    vault.create_key("kek")
    provider = with_secret(vault, make, entra.url)
    for _ in range(3):
        assert provider.health("kek").ok
    assert entra.given == 1


def test_a_token_that_is_refused_is_replaced(
    vault: AzureServer, make: Providers, entra: Entra
) -> None:
    """One call is refused; the next has a new token."""
    vault.create_key("kek")
    entra.token = "stale"
    provider = with_secret(vault, make, entra.url)
    with pytest.raises(AccessDenied):
        provider.health("kek")
    entra.token = vault.token
    assert provider.health("kek").ok


def test_a_refused_secret_is_an_access_problem(
    vault: AzureServer, make: Providers, entra: Entra
) -> None:
    """The message does not repeat what was said about it."""
    entra.status = 401
    with pytest.raises(AccessDenied, match="credential settings") as caught:
        with_secret(vault, make, entra.url).health("kek")
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("status", [500, 503])
def test_an_unwell_giver_of_tokens_is_an_outage(
    vault: AzureServer, make: Providers, entra: Entra, status: int
) -> None:
    """It may recover: that is no denial."""
    entra.status = status
    with pytest.raises(Unavailable, match="access tokens"):
        with_secret(vault, make, entra.url).health("kek")


def test_an_unreachable_giver_of_tokens_is_an_outage(vault: AzureServer, make: Providers) -> None:
    """And it is asked once."""
    began = time.monotonic()
    with pytest.raises(Unavailable, match="access tokens"):
        with_secret(vault, make, "https://127.0.0.1:1").health("kek")
    assert time.monotonic() - began < PATIENCE


def test_an_unreachable_metadata_service_is_an_outage(
    vault: AzureServer, make: Providers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A managed identity gets its tokens on the machine it is on."""
    monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", "http://127.0.0.1:1")
    provider = make(vault, token=None, credential="managed-identity")
    with pytest.raises(Unavailable, match="access tokens"):
        provider.health("kek")


def test_an_environment_without_credentials_is_an_access_problem(
    vault: AzureServer,
    make: Providers,
    entra: Entra,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those that turn up later are found by the next call."""
    vault.create_key("kek")
    provider = make(vault, token=None, credential="environment", authority=entra.url)
    with pytest.raises(AccessDenied, match="credential settings"):
        provider.health("kek")
    monkeypatch.setenv("AZURE_TENANT_ID", TENANT)
    monkeypatch.setenv("AZURE_CLIENT_ID", "app")
    monkeypatch.setenv("AZURE_CLIENT_SECRET", "hush")
    assert provider.health("kek").ok


def test_a_workload_without_an_identity_is_told_when_preparing(
    vault: AzureServer, make: Providers
) -> None:
    """There is nothing to ask with."""
    provider = make(vault, token=None, credential="workload-identity")
    with pytest.raises(AccessDenied, match="credential"):
        provider.prepare()


IDENTITIES: dict[Credential, tuple[str, dict[str, Any]]] = {
    "default": ("DefaultAzureCredential", {"client_id": "app", "tenant_id": TENANT}),
    "managed-identity": ("ManagedIdentityCredential", {"client_id": "app"}),
    "workload-identity": ("WorkloadIdentityCredential", {"client_id": "a", "tenant_id": TENANT}),
    "environment": ("EnvironmentCredential", {}),
    "cli": ("AzureCliCredential", {"tenant_id": TENANT}),
}


@pytest.mark.parametrize("kind", IDENTITIES)
def test_each_credential_is_the_sdks(
    kind: Credential, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With the limits of the configuration where it takes any."""
    monkeypatch.setenv("AZURE_FEDERATED_TOKEN_FILE", str(tmp_path / "token"))
    name, options = IDENTITIES[kind]
    settings = AzureKeyVaultSettings(key="kek", vault_url=PUBLIC, credential=kind, **options)
    credential = credentials.build(settings)
    assert type(credential).__name__ == name
    credential.close()


def test_a_variable_does_not_decide_who_sees_the_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """An authority is a setting, like every other address."""
    monkeypatch.setenv("AZURE_AUTHORITY_HOST", "https://127.0.0.1:1")
    settings = AzureKeyVaultSettings(
        key="kek",
        vault_url=PUBLIC,
        client_id="app",
        tenant_id=TENANT,
        client_secret=Secret("hush"),
    )
    credential = credentials.build(settings)
    assert credential._authority == "https://login.microsoftonline.com"
    credential.close()


def test_a_version_the_sdk_does_not_know_is_a_mistake_of_the_configuration(
    vault: AzureServer, make: Providers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the SDK makes of it."""

    def refuse(*arguments: Any, **options: Any) -> None:
        raise NotImplementedError

    monkeypatch.setattr("azure.keyvault.keys.KeyClient", refuse)
    with pytest.raises(ConfigError, match="api_version"):
        make(vault).prepare()


# TLS


def test_a_certificate_that_is_not_trusted_is_no_outage(
    vault: AzureServer, make: Providers
) -> None:
    """It will not be trusted at the next attempt either."""
    vault.create_key("kek")
    with pytest.raises(AccessDenied, match="ca_file"):
        make(vault, ca_file=None).health("kek")
    assert vault.requests == []


def test_tls_spoken_to_a_plain_server_is_an_outage(vault: AzureServer, make: Providers) -> None:
    """Any other trouble of a handshake is the network's."""
    plain = HttpService(lambda _: Response(200))
    try:
        host, port = plain.address
        with pytest.raises(KMSError) as caught:
            make(vault, vault_url=f"https://{host}:{port}").health("kek")
    finally:
        plain.close()
    assert type(caught.value) is Unavailable


def test_the_sdk_itself_refuses_plain_http(vault: AzureServer, make: Providers) -> None:
    """And does so before it sends anything; settings do not get that far."""
    connection = make(vault)._service._connection
    url = vault.vault_url.replace("https:", "http:")
    with pytest.raises(ServiceRequestError) as caught:
        connection.send("GET", f"{url}/keys/kek")
    assert type(translate(caught.value, "get", url).error) is ConfigError
    assert vault.requests == []


# One client, many threads and processes


def test_threads_share_one_client() -> None:
    """Whoever comes first builds it."""
    connection = Connection(AzureKeyVaultSettings("kek", PUBLIC, token=Secret("t")))
    start, lines = threading.Barrier(8), []

    def work() -> None:
        start.wait(30)
        lines.append(connection._line())

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(lines) == 8
    assert len(set(map(id, lines))) == 1
    connection.close()


def test_connections_are_reused(vault: AzureServer, make: Providers) -> None:
    """Calls in a row share a connection."""
    vault.create_key("kek")
    provider = make(vault)
    for _ in range(5):
        provider.health("kek")
    session = provider._service._connection._line().session
    pools = session.get_adapter(vault.vault_url).poolmanager.pools
    (host,) = pools.keys()
    assert pools[host].num_connections == 1


def test_child_builds_its_own_client_even_if_the_locks_were_held(vault: AzureServer) -> None:
    """A fork in the middle of a build leaves the child neither locks nor client."""
    connection = Connection(AzureKeyVaultSettings("kek", PUBLIC, token=Secret("t")))
    before = connection._line()
    with connection._held.lock, before.entry:
        child = os.fork()
        if child == 0:
            os._exit(0 if connection._line() is not before else 1)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert connection._line() is before
    connection.close()


def test_close_ends_the_connections(vault: AzureServer, make: Providers) -> None:
    """The sockets are closed, closing again changes nothing, and a late call still works."""
    vault.create_key("kek")
    provider = make(vault)
    provider.health("kek")
    provider.close()
    provider.close()
    assert provider.health("kek").ok


def test_close_before_use_builds_nothing() -> None:
    """An instance that never worked has nothing to close."""
    connection = Connection(AzureKeyVaultSettings("kek", PUBLIC))
    connection.close()
    assert connection._held.line is None


def test_settings_may_be_changed_by_copying(vault: AzureServer) -> None:
    """Checks run again."""
    settings = AzureKeyVaultSettings("kek", PUBLIC)
    with pytest.raises(ValueError, match="vault_url"):
        evolve(settings, vault_url="http://app.vault.azure.net")
