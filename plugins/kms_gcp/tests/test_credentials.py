"""Credentials: which are used, when a token is renewed, and what happens if there is none."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from kms_core import AccessDenied, Context, Duration, KMSError, Secret, Unavailable
from kms_core.testing.servers.http import HttpService, Request, Response

if TYPE_CHECKING:
    from tests.conftest import Providers, Scripted

CONTEXT = Context({"tenant": "42"})
KEY = "projects/demo/locations/europe-west1/keyRings/ring/cryptoKeys/app"
JSON = {"Content-Type": "application/json"}


class Tokens:
    """Gives out numbered tokens, as Google's token endpoint and metadata server do."""

    def __init__(self) -> None:
        self.asked: list[Request] = []
        self.lifetime = 3600
        self.refusal: Response | None = None
        self._http = HttpService(self._answer)

    @property
    def host(self) -> str:
        return "{}:{}".format(*self._http.address)

    @property
    def given(self) -> int:
        return sum("token" in request.path for request in self.asked)

    def _answer(self, request: Request) -> Response:
        self.asked.append(request)
        if self.refusal is not None:
            return self.refusal
        if "token" in request.path:
            return self._json(
                {
                    "access_token": f"token-{self.given}",
                    "expires_in": self.lifetime,
                    "token_type": "Bearer",
                }
            )
        if "universe" in request.path:
            return Response(404, b"", {"Metadata-Flavor": "Google"})
        if "service-accounts" in request.path:
            return self._json({"email": "app@demo.example", "scopes": ["s"]})
        return Response(200, b"demo", {"Metadata-Flavor": "Google", "Content-Type": "text/plain"})

    def _json(self, values: Mapping[str, Any]) -> Response:
        return Response(200, json.dumps(values).encode(), {**JSON, "Metadata-Flavor": "Google"})

    def close(self) -> None:
        self._http.close()


@pytest.fixture
def tokens() -> Iterator[Tokens]:
    """Whoever gives out tokens."""
    server = Tokens()
    yield server
    server.close()


@pytest.fixture(scope="module")
def account() -> dict[str, str]:
    """A service account's key file."""
    key = rsa.generate_private_key(65537, 2048)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return {
        "type": "service_account",
        "client_email": "app@demo.example",
        "private_key_id": "1",
        "private_key": pem.decode(),
        "token_uri": "http://127.0.0.1:1/token",
        "project_id": "demo",
    }


def written(tmp_path: Path, values: object) -> Path:
    """A credentials file."""
    file = tmp_path / "credentials.json"
    file.write_text(json.dumps(values))
    return file


def federated(tmp_path: Path, host: str, **more: str) -> Path:
    """An identity of somebody else's, exchanged for a token by whoever listens on ``host``."""
    subject = tmp_path / "subject-token"
    subject.write_text("hush-hush")
    values = {
        "type": "external_account",
        "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/x",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": f"http://{host}/token",
        "credential_source": {"file": str(subject)},
        **more,
    }
    return written(tmp_path, values)


def ask(provider: Any) -> KMSError:
    """Ask for something; the scripted server answers with nothing, which is an outage."""
    with pytest.raises(KMSError) as caught:
        provider.health(KEY)
    return caught.value


def sent(server: Scripted) -> list[str]:
    """The tokens that arrived."""
    return [asked.headers.get("authorization", "") for asked in server.requests]


@pytest.fixture
def tls(scripted_tls: Scripted) -> dict[str, Any]:
    """Settings by which an instance trusts the scripted server."""
    return {"ca_file": scripted_tls.authority.ca_file, "attempt_timeout": Duration(5.0)}


@pytest.fixture
def federation(tls: dict[str, Any], tokens: Tokens, tmp_path: Path) -> dict[str, Any]:
    """The same, with an identity that is exchanged for tokens."""
    return {**tls, "credentials_file": federated(tmp_path, tokens.host)}


def test_token_is_sent_as_it_is(
    scripted_tls: Scripted, make: Providers, tls: dict[str, Any]
) -> None:
    """With the project to be charged."""
    provider = make(scripted_tls, **tls, token=Secret("abc"), quota_project="payer-project")
    ask(provider)
    assert sent(scripted_tls) == ["Bearer abc"]
    assert scripted_tls.requests[0].headers["x-goog-user-project"] == "payer-project"


def test_token_that_is_refused_is_sent_again(
    scripted_tls: Scripted, make: Providers, tls: dict[str, Any]
) -> None:
    """There is no other; whoever renews it configures it anew."""
    scripted_tls.refusal = (grpc.StatusCode.UNAUTHENTICATED, "", ())
    provider = make(scripted_tls, **tls, token=Secret("abc"))
    for _ in range(2):
        assert type(ask(provider)) is AccessDenied
    assert sent(scripted_tls) == ["Bearer abc"] * 2


def test_service_account_signs_its_own_tokens(
    scripted_tls: Scripted,
    make: Providers,
    tls: dict[str, Any],
    account: dict[str, str],
    tmp_path: Path,
) -> None:
    """Nobody is asked for one, so nobody can be down."""
    provider = make(scripted_tls, **tls, credentials_file=written(tmp_path, account))
    ask(provider)
    ask(provider)
    first, second = sent(scripted_tls)
    assert first == second
    assert first.removeprefix("Bearer ").count(".") == 2  # header, claims, signature


def test_token_is_fetched_once_and_kept(
    scripted_tls: Scripted, make: Providers, federation: dict[str, Any], tokens: Tokens
) -> None:
    """Also by threads that come together."""
    provider = make(scripted_tls, **federation)
    threads = [threading.Thread(target=ask, args=(provider,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sent(scripted_tls) == ["Bearer token-1"] * 4
    assert parse_qs(tokens.asked[0].body.decode())["subject_token"] == ["hush-hush"]


def test_token_about_to_expire_is_renewed(
    scripted_tls: Scripted, make: Providers, federation: dict[str, Any], tokens: Tokens
) -> None:
    """Minutes before it does."""
    tokens.lifetime = 60
    provider = make(scripted_tls, **federation)
    ask(provider)
    ask(provider)
    assert sent(scripted_tls) == ["Bearer token-1", "Bearer token-2"]


def test_token_serves_until_it_expires(
    scripted_tls: Scripted, make: Providers, federation: dict[str, Any], tokens: Tokens
) -> None:
    """That nobody gives out a new one yet is no reason to fail."""
    tokens.lifetime = 60
    provider = make(scripted_tls, **federation)
    ask(provider)
    tokens.refusal = Response(400, b'{"error": "invalid_grant"}', JSON)
    ask(provider)
    assert sent(scripted_tls) == ["Bearer token-1"] * 2


@pytest.mark.parametrize(
    "refusal",
    [
        (
            Response(400, b'{"error": "invalid_grant", "error_description": "hush"}', JSON),
            AccessDenied,
        ),
        (Response(401, b'{"error": "unauthorized_client"}', JSON), AccessDenied),
        (Response(429, b"", JSON), Unavailable),
        (Response(503, b"<html>hush</html>", {}), Unavailable),
    ],
)
def test_revoked_identity_is_no_outage(
    scripted_tls: Scripted,
    make: Providers,
    federation: dict[str, Any],
    tokens: Tokens,
    refusal: tuple[Response, type[KMSError]],
) -> None:
    """Another instance may help in either case, but only one of them opens the breaker."""
    tokens.refusal, kind = refusal
    provider = make(scripted_tls, **federation)
    error = ask(provider)
    assert type(error) is kind
    assert "hush" not in f"{error} {error.__cause__}"
    assert scripted_tls.requests == []


def test_unreachable_token_endpoint_is_an_outage(
    scripted_tls: Scripted, make: Providers, tls: dict[str, Any], tokens: Tokens, tmp_path: Path
) -> None:
    """Nobody listens where tokens come from."""
    provider = make(scripted_tls, **tls, credentials_file=federated(tmp_path, "127.0.0.1:1"))
    assert type(ask(provider)) is Unavailable


def test_refused_credentials_are_read_anew(
    scripted_tls: Scripted, make: Providers, tls: dict[str, Any], tokens: Tokens, tmp_path: Path
) -> None:
    """The file may have been replaced meanwhile."""
    file = federated(tmp_path, tokens.host)
    provider = make(scripted_tls, **tls, credentials_file=file)
    scripted_tls.refusal = (grpc.StatusCode.UNAUTHENTICATED, "", ())
    error = ask(provider)
    assert type(error) is AccessDenied
    assert "access token" in str(error)
    federated(tmp_path, tokens.host, quota_project_id="payer-project")
    ask(provider)
    assert sent(scripted_tls) == ["Bearer token-1", "Bearer token-2"]
    assert scripted_tls.requests[1].headers["x-goog-user-project"] == "payer-project"


@pytest.mark.parametrize(
    "values",
    [
        {"type": "service_account"},
        {"type": "authorized_user"},
        {"type": "impersonated_service_account"},
        {"type": "external_account"},
        {"type": "external_account", "subject_token_type": "urn:ietf:params:aws:token-type:x"},
        {"type": "gdch_service_account"},
        {"type": ["service_account"]},
        {},
        [],
        "text",
    ],
)
def test_file_that_makes_no_sense_is_refused(
    scripted_tls: Scripted, make: Providers, tls: dict[str, Any], tmp_path: Path, values: object
) -> None:
    """Whatever is missing in it."""
    provider = make(scripted_tls, **tls, credentials_file=written(tmp_path, values))
    assert type(ask(provider)) is AccessDenied
    assert scripted_tls.requests == []


def test_file_that_is_no_json_is_refused(
    scripted_tls: Scripted, make: Providers, tls: dict[str, Any], tmp_path: Path
) -> None:
    """Its text stays out of the error."""
    file = tmp_path / "credentials.json"
    file.write_text("hush: this is no JSON")
    error = ask(make(scripted_tls, **tls, credentials_file=file))
    assert type(error) is AccessDenied
    assert "hush" not in f"{error} {error.__cause__} {error.__context__}"


@pytest.mark.parametrize("kind", ["subject token", "AWS", "impersonation"])
def test_other_kinds_of_file_are_read(tmp_path: Path, account: dict[str, str], kind: str) -> None:
    """Federated identities, and those of a service account that another one acts for."""
    from kms_gcp.credentials import _read

    exchange = {
        "type": "external_account",
        "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/x",
        "token_url": "https://sts.googleapis.com/v1/token",
    }
    values: Mapping[str, Mapping[str, Any]] = {
        "subject token": {
            **exchange,
            "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
            "credential_source": {"file": "/token"},
        },
        "AWS": {
            **exchange,
            "subject_token_type": "urn:ietf:params:aws:token-type:aws4_request",
            "credential_source": {
                "environment_id": "aws1",
                "regional_cred_verification_url": "https://sts.{region}.amazonaws.com",
            },
        },
        "impersonation": {
            "type": "impersonated_service_account",
            "service_account_impersonation_url": (
                "https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/"
                "app@demo.example:generateAccessToken"
            ),
            "source_credentials": account,
        },
    }
    credentials = _read(written(tmp_path, values[kind]), None)
    assert not credentials.valid


# Application Default Credentials


def test_default_credentials_come_from_the_environment(
    scripted_tls: Scripted,
    make: Providers,
    federation: dict[str, Any],
    tokens: Tokens,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The file that a variable names, looked up by the first call and not before."""
    file = federation.pop("credentials_file")
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "demo")  # or it would be asked for
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
    provider = make(scripted_tls, **federation, quota_project="payer-project")
    provider.prepare()
    assert tokens.asked == []
    ask(provider)
    assert sent(scripted_tls) == ["Bearer token-1"]
    assert scripted_tls.requests[0].headers["x-goog-user-project"] == "payer-project"


def test_default_credentials_come_from_the_metadata_server(
    scripted_tls: Scripted,
    make: Providers,
    tls: dict[str, Any],
    tokens: Tokens,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On Google's machines."""
    use_metadata_server(monkeypatch, tokens.host)
    provider = make(scripted_tls, **tls)
    ask(provider)
    assert sent(scripted_tls) == [f"Bearer token-{tokens.given}"]


def use_metadata_server(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    """The SDK reads most of its variables when it is imported."""
    from google.auth.compute_engine import _metadata

    monkeypatch.setattr(_metadata, "_NO_GCE_CHECK", False)
    monkeypatch.setattr(_metadata, "_GCE_METADATA_HOST", host)
    monkeypatch.setenv("GCE_METADATA_IP", host)


def test_host_without_metadata_server_has_no_credentials(
    scripted_tls: Scripted,
    make: Providers,
    tls: dict[str, Any],
    tokens: Tokens,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """That is not an outage: most hosts have none.  It is asked once per call."""
    use_metadata_server(monkeypatch, tokens.host)
    tokens.refusal = Response(503)
    assert type(ask(make(scripted_tls, **tls))) is AccessDenied
    assert len(tokens.asked) == 1


def test_metadata_server_that_fails_later_is_an_outage(
    scripted_tls: Scripted,
    make: Providers,
    tls: dict[str, Any],
    tokens: Tokens,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was there before, and is asked once per call."""
    use_metadata_server(monkeypatch, tokens.host)
    tokens.lifetime = -1
    provider = make(scripted_tls, **tls)
    ask(provider)
    before = len(tokens.asked)
    tokens.refusal = Response(503)
    assert type(ask(provider)) is Unavailable
    assert len(tokens.asked) == before + 1


def test_callers_do_not_queue_for_a_token_forever(
    scripted_tls: Scripted, make: Providers, tls: dict[str, Any], tokens: Tokens, tmp_path: Path
) -> None:
    """Whoever waits for one that another thread asks for gives up after as long as a call takes."""
    settings = {**tls, "attempt_timeout": Duration(0.2)}
    provider = make(scripted_tls, **settings, credentials_file=federated(tmp_path, tokens.host))
    identity: Any = provider._service._connection._held.identity
    with identity._lock:
        assert type(ask(provider)) is Unavailable
    assert tokens.asked == []


def test_no_credentials_at_all_is_a_refusal(
    scripted_tls: Scripted, make: Providers, tls: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service is not asked, and is not to blame."""
    from google.auth.compute_engine import _metadata

    monkeypatch.setattr(_metadata, "_NO_GCE_CHECK", True)
    error = ask(make(scripted_tls, **tls))
    assert type(error) is AccessDenied
    assert "DefaultCredentialsError" in str(error)
    assert scripted_tls.requests == []
