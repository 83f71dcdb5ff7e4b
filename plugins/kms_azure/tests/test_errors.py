"""Errors: every row of the tables, from answers of a host, and from the SDK's own exceptions."""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from azure.core import exceptions
from azure.identity import AuthenticationRequiredError, CredentialUnavailableError
from msal.exceptions import MsalServiceError  # type: ignore[import-untyped]

from kms_azure.answer import Reply
from kms_azure.errors import BY_CLASS, BY_CODE, BY_STATUS, refused, translate
from kms_core import (
    AccessDenied,
    Ciphertext,
    ConfigError,
    Context,
    DeadlineExceeded,
    InvalidCiphertext,
    InvalidRequest,
    KeyDisabled,
    KeyNotFound,
    KMSError,
    ServiceError,
    Throttled,
    Unavailable,
)
from kms_core.testing.servers import Failure

if TYPE_CHECKING:
    from kms_core.testing.servers import AzureServer
    from tests.conftest import Providers, Puppet

KEY = "https://app.vault.azure.net/keys/kek"
CONTEXT = Context({"tenant": "42"})
VERSION = "0" * 32
LEAK = "eyJhbGciOiJSUzI1NiJ9-s3cr3t"


def error(code: str, *inner: str, message: str = LEAK) -> dict[str, Any]:
    """An error as the service words it."""
    content: dict[str, Any] = {"code": code, "message": message}
    if inner:
        content["innererror"] = error(inner[0], *inner[1:])["error"]
    return {"error": content}


def reply(status: int, content: object, headers: dict[str, str] | None = None) -> Reply:
    """An answer that did not come from anywhere."""
    return Reply(status, headers or {}, json.dumps(content).encode())


# Answers


@pytest.mark.parametrize("code", BY_CODE)
@pytest.mark.parametrize("where", ["inner", "outer", "innermost"])
def test_codes_decide(make: Providers, puppet: Puppet, code: str, where: str) -> None:
    """The code that means something does, wherever in the error it stands."""
    content = {
        "inner": error("Forbidden", code),
        "outer": error(code, "SomethingNew"),
        "innermost": error("Forbidden", "SomethingNew", code),
    }[where]
    puppet.say(418, content)
    with pytest.raises(KMSError) as caught:
        puppet.provider(make).health("kek")
    assert type(caught.value) is BY_CODE[code]
    assert code in str(caught.value)
    assert len(puppet.requests) == 1


@pytest.mark.parametrize("status", BY_STATUS)
@pytest.mark.parametrize("body", [b"", b"<html>no</html>", b'{"error": {"code": "New"}}'])
def test_statuses_decide_about_other_codes(
    make: Providers, puppet: Puppet, status: str, body: bytes
) -> None:
    """Proxies and firewalls answer without codes, or with their own."""
    puppet.say(int(status), body, kind="text/html" if body.startswith(b"<") else "")
    with pytest.raises(KMSError) as caught:
        puppet.provider(make).health("kek")
    assert type(caught.value) is BY_STATUS[status]
    assert len(puppet.requests) == 1


@pytest.mark.parametrize(
    ("status", "kind"), [(302, ServiceError), (418, ServiceError), (599, Unavailable)]
)
def test_unknown_statuses_blame_nobody_but_the_service(
    make: Providers, puppet: Puppet, status: int, kind: type[KMSError]
) -> None:
    """Another instance may do better; a redirection is not followed."""
    puppet.say(status, {}, {"Location": f"{puppet.url}/keys/other"})
    with pytest.raises(KMSError) as caught:
        puppet.provider(make).health("kek")
    assert type(caught.value) is kind
    assert len(puppet.requests) == 1


@pytest.mark.parametrize("operation", ["unwrapkey", "decrypt", "verify"])
def test_bad_parameter_of_an_opening_is_the_ciphertext(operation: str) -> None:
    """The service has one code for all that can be wrong."""
    fault = refused(reply(400, error("BadParameter")), operation, KEY)
    assert type(fault.error) is InvalidCiphertext


@pytest.mark.parametrize("operation", ["wrapkey", "encrypt", "sign", "get", "rotate"])
def test_bad_parameter_of_anything_else_is_the_request(operation: str) -> None:
    """Nothing there came from anybody else."""
    assert type(refused(reply(400, error("BadParameter")), operation, KEY).error) is InvalidRequest


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7.0),
        ({"x-ms-retry-after-ms": "250"}, 0.25),
        ({"Retry-After-Ms": "1500", "Retry-After": "9"}, 1.5),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, None),
        ({"Retry-After": "-1"}, None),
    ],
)
def test_throttling_tells_how_long(
    make: Providers, puppet: Puppet, headers: dict[str, str], seconds: float | None
) -> None:
    """If the service says so in numbers."""
    puppet.say(429, error("Throttled"), headers)
    with pytest.raises(Throttled) as caught:
        puppet.provider(make).health("kek")
    assert caught.value.retry_after == seconds
    assert len(puppet.requests) == 1


def test_messages_have_the_request_id_and_no_vendor_text(make: Providers, puppet: Puppet) -> None:
    """The text of an error may repeat tokens and parameters."""
    puppet.say(403, error("Forbidden", "ForbiddenByRbac"), {"x-ms-request-id": "11-22"})
    with pytest.raises(AccessDenied, match="request id 11-22") as caught:
        puppet.provider(make).health("kek")
    assert LEAK not in "".join(chain(caught.value))


@pytest.mark.parametrize("odd", ["x" * 200, "a b", "a\nb", 'a"b'])
def test_odd_codes_and_ids_are_not_repeated(odd: str) -> None:
    """A message is one line, whatever the service says."""
    shown = str(refused(reply(418, error(odd), {"x-ms-request-id": odd}), "get", KEY).error)
    assert odd not in shown
    assert "HTTP status 418" in shown


@pytest.mark.parametrize(
    "content", [None, [], "x", {"error": None}, {"error": []}, {"error": {"code": 7}}]
)
def test_errors_of_any_shape_are_understood(content: object) -> None:
    """As far as the status goes."""
    assert type(refused(reply(403, content), "get", KEY).error) is AccessDenied


def test_errors_of_any_depth_are_understood() -> None:
    """Nobody can make us dig for ever."""
    deep = b'{"error":' * 100_000
    assert type(refused(Reply(503, {}, deep), "get", KEY).error) is Unavailable
    nested = error("A", *("B" for _ in range(50)), "KeyDisabled")
    assert type(refused(reply(403, nested), "get", KEY).error) is AccessDenied


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", "application/json"),
        (b"", "text/html"),
        (b"{", "application/json"),
        (b"<html>", "text/html"),
        (b"<a>", "application/xml"),
        (b"\xff\xfe{", "application/json"),
        (b"[]", "application/json"),
        (b"{}", "application/json"),
        (b'{"key": {}}', "application/json"),
        (b'{"key": {"kty": "RSA"}}', "application/json"),
        (b'{"key": {"kty": "DSA"}}', "application/json"),
        (b"[" * 100_000, "text/plain"),
    ],
)
def test_a_success_that_is_none_is_an_outage(
    make: Providers, puppet: Puppet, body: bytes, kind: str
) -> None:
    """Something on the way answered for the service, or it is broken."""
    puppet.say(200, body, kind=kind)
    with pytest.raises(Unavailable) as caught:
        puppet.provider(make).health("kek")
    assert type(caught.value) is Unavailable
    assert len(puppet.requests) == 1


def test_a_broken_answer_with_a_plaintext_is_not_chained(make: Providers, puppet: Puppet) -> None:
    """The SDK's own exception would show it."""
    puppet.say(200, b'{"value": "' + LEAK.encode())
    sealed = Ciphertext(bytes(256), f"azure-keyvault://x/keys/kek/{VERSION}", VERSION, 0x0201)
    with pytest.raises(Unavailable) as caught:
        puppet.provider(make).decrypt(f"kek/{VERSION}", sealed, CONTEXT)
    assert LEAK not in "".join(chain(caught.value))
    assert caught.value.__cause__ is caught.value.__context__ is None


def chain(exc: BaseException | None) -> list[str]:
    """The texts of an exception and of everything behind it."""
    texts = []
    while exc is not None:
        texts += [str(exc), repr(exc)]
        exc = exc.__cause__ or exc.__context__
    return texts


# A real service's failures

PLAYED: dict[Failure, type[KMSError]] = {
    Failure.REFUSE: Unavailable,
    Failure.HANG: DeadlineExceeded,
    Failure.RESET: Unavailable,
    Failure.SLOW: DeadlineExceeded,
    Failure.THROTTLE: Throttled,
    Failure.SERVER_ERROR: Unavailable,
    Failure.MALFORMED: Unavailable,
    Failure.ACCESS_DENIED: AccessDenied,
    Failure.KEY_DISABLED: KeyDisabled,
    Failure.KEY_NOT_FOUND: KeyNotFound,
    Failure.WRONG_KEY: Unavailable,
}


@pytest.mark.parametrize("failure", PLAYED)
@pytest.mark.parametrize("hook", ["encrypt", "decrypt"])
def test_failures_of_the_service(
    vault: AzureServer, make: Providers, failure: Failure, hook: str
) -> None:
    """Each leaves as what the contract has for it, after one attempt."""
    vault.create_key("kek")
    provider = make(vault, attempt_timeout=0.5 if PLAYED[failure] is DeadlineExceeded else 20.0)
    sealed = provider.encrypt("kek", b"k" * 32, CONTEXT)
    matched = provider.match(sealed.key_uri)
    assert matched is not None
    before = vault.panel.count()
    vault.panel.fail(failure)
    asks: dict[str, Callable[[], object]] = {
        "encrypt": lambda: provider.encrypt("kek", b"k" * 32, CONTEXT),
        "decrypt": lambda: provider.decrypt(matched, sealed, CONTEXT),
    }
    with pytest.raises(KMSError) as caught:
        asks[hook]()
    assert type(caught.value) is PLAYED[failure]
    reached = vault.panel.count() - before
    assert reached == (0 if failure in {Failure.REFUSE, Failure.HANG} else 1)
    vault.panel.heal()
    assert provider.decrypt(matched, sealed, CONTEXT) == b"k" * 32


@pytest.mark.parametrize("failure", PLAYED)
def test_failures_of_the_first_question(
    vault: AzureServer, make: Providers, failure: Failure
) -> None:
    """The same holds before anything is known about the key."""
    vault.create_key("kek")
    provider = make(vault, attempt_timeout=0.5 if PLAYED[failure] is DeadlineExceeded else 20.0)
    vault.panel.fail(failure)
    with pytest.raises(KMSError) as caught:
        provider.encrypt("kek", b"k" * 32, CONTEXT)
    assert type(caught.value) is PLAYED[failure]
    vault.panel.heal()
    assert provider.encrypt("kek", b"k" * 32, CONTEXT).data


# Exceptions of the SDK

SDK: list[tuple[Exception, type[KMSError]]] = [
    (exceptions.ServiceRequestTimeoutError("x", error=OSError()), DeadlineExceeded),
    (exceptions.ServiceResponseTimeoutError("x"), DeadlineExceeded),
    (TimeoutError("x"), DeadlineExceeded),
    (exceptions.ServiceRequestError("x", error=OSError()), Unavailable),
    (exceptions.ServiceResponseError("x"), Unavailable),
    (exceptions.IncompleteReadError("x"), Unavailable),
    (exceptions.DecodeError("x"), Unavailable),
    (UnicodeDecodeError("utf-8", b"", 0, 1, "x"), Unavailable),
    (MsalServiceError("x", error=None, error_description=None), Unavailable),
    (AttributeError("x"), Unavailable),
    (exceptions.ClientAuthenticationError("x"), AccessDenied),
    (CredentialUnavailableError("x"), AccessDenied),
    (AuthenticationRequiredError(["x"]), AccessDenied),
    (ValueError("x"), AccessDenied),
    (NotImplementedError("x"), ConfigError),
    (exceptions.ServiceRequestError("x"), ConfigError),
    (exceptions.AzureError("x"), ServiceError),
    (exceptions.TooManyRedirectsError([]), ServiceError),
]


@pytest.mark.parametrize(("exc", "kind"), SDK, ids=lambda value: type(value).__name__)
def test_exceptions_of_the_sdk(exc: Exception, kind: type[KMSError]) -> None:
    """By class; the name of the class is all that is told about it."""
    fault = translate(exc, "get", KEY)
    assert type(fault.error) is kind
    assert type(exc).__name__ in str(fault.error)
    assert fault.cause in {None, exc}


def test_every_class_of_the_table_is_tried() -> None:
    """No row is there for nothing."""
    tried = {cls.__name__ for exc, _ in SDK for cls in type(exc).__mro__}
    assert set(BY_CLASS) <= tried


def causing(exc: Exception, cause: BaseException) -> Exception:
    """An exception that was raised from another."""
    exc.__cause__ = cause
    return exc


@pytest.mark.parametrize(
    ("cause", "kind"),
    [
        (exceptions.ServiceRequestError("x", error=OSError()), Unavailable),
        (exceptions.ServiceResponseError("x"), Unavailable),
        (exceptions.ServiceResponseTimeoutError("x"), DeadlineExceeded),
        (ValueError("x"), AccessDenied),
    ],
)
def test_what_lies_beneath_a_missing_token_decides(cause: Exception, kind: type[KMSError]) -> None:
    """Whoever gives out tokens may be down: that is no refusal."""
    fault = translate(causing(exceptions.ClientAuthenticationError("x"), cause), "get", KEY)
    assert type(fault.error) is kind
    assert fault.stale is (kind is AccessDenied)
    assert fault.cause is None


@pytest.mark.parametrize(
    ("status", "kind"),
    [(503, Unavailable), (429, Unavailable), (410, Unavailable), (400, AccessDenied)],
)
def test_the_status_beneath_a_missing_token_decides(status: int, kind: type[KMSError]) -> None:
    """The same for answers."""
    exc = exceptions.ClientAuthenticationError("x")
    exc.status_code = status
    assert type(translate(exc, "get", KEY).error) is kind


def test_a_certificate_that_is_not_trusted_is_no_outage() -> None:
    """However deep the SDK and its libraries bury it."""
    beneath = causing(OSError("x"), ssl.SSLCertVerificationError("x"))
    exc = exceptions.ServiceRequestError("x", error=beneath)
    fault = translate(exc, "get", KEY)
    assert type(fault.error) is AccessDenied
    assert "ca_file" in str(fault.error)
