"""Connections: one attempt, time-outs, TLS, forks, and what is sent beside the request."""

from __future__ import annotations

import logging
import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest

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
from kms_core.testing.processes import in_child
from kms_core.testing.servers import Failure, GcpServer
from kms_core.testing.servers.authority import Authority
from kms_gcp.connection import Connection
from kms_gcp.settings import GcpKmsSettings

if TYPE_CHECKING:
    from tests.conftest import Providers, Scripted

CONTEXT = Context({"tenant": "42"})
KEY = "projects/demo/locations/europe-west1/keyRings/ring/cryptoKeys/app"
PATIENCE = 15.0  # seconds within which what takes a fraction of one has to be over
MARKER = "x-marks-the-secret"


def failure_of(provider: Any) -> KMSError:
    """What wrapping something comes to."""
    with pytest.raises(KMSError) as caught:
        provider.encrypt(KEY, MARKER.encode(), CONTEXT)
    return caught.value


# How a call ends


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED])
def test_failed_call_is_one_attempt(scripted: Scripted, make: Providers, code: Any) -> None:
    """Retries are for the core to decide."""
    scripted.refusal = (code, "", ())
    failure_of(make(scripted))
    assert len(scripted.requests) == 1


def test_attempt_timeout_ends_the_wait(gcp: GcpServer, make: Providers) -> None:
    """A service that hangs costs what the configuration allows."""
    gcp.create_key()
    provider = make(gcp, attempt_timeout=Duration(0.2))
    gcp.panel.fail(Failure.HANG)
    began = time.monotonic()
    error = failure_of(provider)
    assert type(error) is DeadlineExceeded
    assert "attempt_timeout" in str(error)
    assert time.monotonic() - began < PATIENCE


def test_host_that_takes_no_connection_is_given_up(make: Providers) -> None:
    """That is no answer in time, and takes no longer than any other."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        port = listening.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):  # the backlog of one is full now
            provider = make(f"127.0.0.1:{port}", attempt_timeout=Duration(0.2))
            assert type(failure_of(provider)) is DeadlineExceeded


def test_broken_connection_is_an_outage(gcp: GcpServer, make: Providers) -> None:
    """It breaks while the call is under way, and nobody asks again."""
    gcp.create_key()
    gcp.panel.fail(Failure.RESET, times=1)
    assert type(failure_of(make(gcp))) is Unavailable
    assert gcp.panel.count("Encrypt") == 1


@pytest.mark.parametrize("failure", [Failure.REFUSE, Failure.HANG])
def test_next_call_connects_anew(gcp: GcpServer, make: Providers, failure: Failure) -> None:
    """Neither a silent connection is used again, nor is a back-off waited for."""
    gcp.create_key()
    provider = make(gcp, attempt_timeout=Duration(1.0))
    for _ in range(3):
        gcp.panel.fail(failure)
        failure_of(provider)
        gcp.panel.heal()
        assert provider.encrypt(KEY, b"k", CONTEXT).key_version == "1"


def test_service_that_answers_keeps_its_connection(scripted: Scripted, make: Providers) -> None:
    """An unwell service is not asked to shake hands again, too."""
    scripted.refusal = (grpc.StatusCode.UNAVAILABLE, "The service is unavailable.", ())
    provider = make(scripted)
    failure_of(provider)
    line = _connection(provider)._held.line
    failure_of(provider)
    assert _connection(provider)._held.line is line


# What is sent


def test_request_finds_the_region_of_its_key(scripted: Scripted, make: Providers) -> None:
    """By a header that names the key."""
    failure_of(make(scripted))
    (asked,) = scripted.requests
    expected = "name=" + KEY.replace("/", "%2F")
    assert asked.headers["x-goog-request-params"] == expected
    assert asked.parsed().name == KEY


def test_nothing_secret_is_logged(
    gcp: GcpServer, make: Providers, caplog: pytest.LogCaptureFixture
) -> None:
    """The SDK's client would write plaintexts to its log, which this plugin therefore leaves be."""
    gcp.create_key()
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, logger="google")
    make(gcp).encrypt(KEY, MARKER.encode(), CONTEXT)
    assert MARKER not in caplog.text
    assert not any(MARKER in str(vars(record)) for record in caplog.records)


def test_insecure_sends_no_credentials(
    scripted: Scripted, make: Providers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whatever the environment offers."""
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "absent.json"))
    failure_of(make(scripted))
    assert "authorization" not in scripted.requests[0].headers


def test_proxy_does_not_stand_before_this_machine(
    gcp: GcpServer, make: Providers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loopback endpoint is reached directly."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    gcp.create_key()
    assert make(gcp).health(KEY).ok


# TLS


def test_trusted_certificate_is_accepted(make: Providers) -> None:
    """With ``ca_file``, over TLS and with a token."""
    with GcpServer(tls=True) as server:
        server.create_key()
        provider = make(server, ca_file=server.ca_file, token=Secret("token"))
        wrapped = provider.encrypt(KEY, b"k", CONTEXT)
        assert provider.decrypt(KEY, wrapped, CONTEXT) == b"k"


def test_untrusted_certificate_is_told_from_an_outage(make: Providers) -> None:
    """Trying again would not help."""
    with GcpServer(tls=True) as server, Authority() as stranger:
        provider = make(server, ca_file=stranger.ca_file, token=Secret("hush-token"))
        error = failure_of(provider)
    assert type(error) is AccessDenied
    assert "ca_file" in str(error)
    assert "hush-token" not in str(error)


def test_plaintext_server_is_no_service(gcp: GcpServer, make: Providers, tmp_path: Path) -> None:
    """Whoever expects TLS does not go on without it."""
    with Authority() as authority:
        provider = make(gcp, ca_file=authority.ca_file, token=Secret("token"))
        assert type(failure_of(provider)) is Unavailable
    assert gcp.panel.count() == 0


@pytest.mark.parametrize("content", [b"", b"no certificate", b"\xff\xfe"])
def test_file_without_certificates_is_a_wrong_configuration(
    make: Providers, tmp_path: Path, content: bytes
) -> None:
    """Left alone, gRPC would only say that it cannot connect."""
    file = tmp_path / "ca.pem"
    file.write_bytes(content)
    provider = make("kms.example:443", ca_file=file, token=Secret("token"))
    with pytest.raises(ConfigError, match=r"ca_file: .*ca\.pem"):
        provider.prepare()


def test_google_is_trusted_without_a_file() -> None:
    """A channel to its endpoint is built with gRPC's own certificates; nothing is sent."""
    connection = Connection(GcpKmsSettings(key=KEY, token=Secret("token")))
    connection.prepare()
    assert connection._held.line is not None
    connection.close()


# Life in a process


def test_preparing_asks_nobody(scripted: Scripted, make: Providers) -> None:
    """It loads the SDK and no more."""
    provider = make(scripted)
    provider.prepare()
    provider.prepare()
    assert scripted.requests == []


def test_child_leaves_the_parents_channel_alone(gcp: GcpServer, make: Providers) -> None:
    """It has one of its own, and the parent goes on with the old one."""
    gcp.create_key()
    provider = make(gcp)
    assert provider.health(KEY).ok
    connection = _connection(provider)
    parents = connection._held

    def work() -> None:
        assert provider.health(KEY).ok
        assert connection._held is not parents
        assert connection._held.pid == os.getpid()
        assert connection._held.inherited is parents
        provider.close()

    assert in_child(work) == ""
    assert connection._held is parents
    assert provider.health(KEY).ok


def test_close_ends_the_channel(gcp: GcpServer, make: Providers) -> None:
    """Closing again changes nothing, and a late call still works."""
    gcp.create_key()
    provider = make(gcp)
    assert provider.health(KEY).ok
    provider.close()
    assert _connection(provider)._held.line is None
    provider.close()
    assert provider.health(KEY).ok


def test_close_before_use_builds_nothing() -> None:
    """An instance that never worked has nothing to close."""
    connection = Connection(GcpKmsSettings(key=KEY))
    connection.close()
    assert connection._held.line is None


def test_threads_that_come_first_share_a_channel(gcp: GcpServer, make: Providers) -> None:
    """However many they are, one of them builds it."""
    from concurrent.futures import ThreadPoolExecutor

    gcp.create_key()
    connection = _connection(make(gcp))
    with ThreadPoolExecutor(8) as threads:
        lines = list(threads.map(lambda _: connection._line(connection._held), range(8)))
    assert len({id(line) for line in lines}) == 1


def _connection(provider: Any) -> Connection:
    connection: Connection = provider._service._connection
    return connection
