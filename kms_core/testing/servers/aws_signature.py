"""Signature Version 4: whether a request was signed by whom it says, for this service, just now.

https://docs.aws.amazon.com/IAM/latest/UserGuide/create-signed-request.html
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

from attrs import field, frozen

from kms_core.testing.servers.aws_wire import Refusal
from kms_core.testing.servers.http import Request

MAX_SKEW: Final = timedelta(minutes=5)

_ALGORITHM: Final = "AWS4-HMAC-SHA256"
_AUTHORIZATION: Final = re.compile(
    rf"{_ALGORITHM} Credential=(?P<access_key_id>\w+)/(?P<date>\d{{8}})/(?P<region>[a-z0-9-]+)/"
    r"(?P<service>[a-z0-9-]+)/aws4_request, *SignedHeaders=(?P<signed>[a-z0-9;-]+), *"
    r"Signature=(?P<signature>[0-9a-f]{64})"
)
_MOMENT: Final = "%Y%m%dT%H%M%SZ"


@frozen
class Credentials:
    """What signs requests; those of a session have a token and an end."""

    access_key_id: str
    secret_access_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)
    expires: float | None = None


@frozen
class Signature:
    """The ``Authorization`` of a request."""

    access_key_id: str
    date: str
    region: str
    service: str
    signed_headers: tuple[str, ...]
    signature: str

    @classmethod
    def of(cls, request: Request) -> Signature | None:
        """What the request carries, or None if it is not signed in this way."""
        match = _AUTHORIZATION.fullmatch(request.headers.get("Authorization", ""))
        if match is None:
            return None
        parts = match.groupdict()
        signed = tuple(parts.pop("signed").split(";"))
        return cls(**parts, signed_headers=signed)

    @property
    def scope(self) -> str:
        """Day, region and service the signature is good for."""
        return f"{self.date}/{self.region}/{self.service}/aws4_request"


def check_signature(
    request: Request, service: str, known: Callable[[str], Credentials | None]
) -> None:
    """Raises ``Refusal`` unless the request is signed for ``service`` by credentials it knows."""
    if "Authorization" not in request.headers:
        message = "The request has no signature."
        raise Refusal("MissingAuthenticationTokenException", message)
    signature = Signature.of(request)
    if signature is None:
        message = "The Authorization header is not one of Signature Version 4."
        raise Refusal("IncompleteSignatureException", message)
    credentials = known(signature.access_key_id)
    if credentials is None or not _has_token(request, credentials):
        message = "The security token included in the request is invalid."
        raise Refusal("UnrecognizedClientException", message)
    _check_scope(request, signature, service)
    _check_headers(request, signature)
    expected = _signed(request, signature, credentials.secret_access_key)
    if not hmac.compare_digest(expected, signature.signature):
        raise _invalid("The signature does not match the request.")
    if credentials.expires is not None and credentials.expires <= time.time():
        message = "The security token included in the request is expired."
        raise Refusal("ExpiredTokenException", message)


def _has_token(request: Request, credentials: Credentials) -> bool:
    shown = request.headers.get("X-Amz-Security-Token", "")
    return hmac.compare_digest(shown.encode(), (credentials.session_token or "").encode())


def _check_scope(request: Request, signature: Signature, service: str) -> None:
    if signature.service != service:
        raise _invalid(f"Credential should be scoped to correct service: '{service}'.")
    text = request.headers.get("X-Amz-Date", "")
    try:
        moment = datetime.strptime(text, _MOMENT).replace(tzinfo=UTC)
    except ValueError:
        message = "The request has no proper X-Amz-Date."
        raise Refusal("IncompleteSignatureException", message) from None
    if not text.startswith(signature.date):
        raise _invalid("Date in Credential scope does not match the one of X-Amz-Date.")
    if abs(datetime.now(UTC) - moment) > MAX_SKEW:
        raise _invalid(f"Signature expired or not yet current: {text}.")


def _check_headers(request: Request, signature: Signature) -> None:
    """What decides about the request has to be signed."""
    own = {name for name in map(str.lower, request.headers) if name.startswith("x-amz-")}
    if missing := ({"host"} | own) - set(signature.signed_headers):
        raise _invalid(f"These headers must be signed: {', '.join(sorted(missing))}.")


def _signed(request: Request, signature: Signature, secret: str) -> str:
    """The signature that the holder of the secret would have made."""
    digest = hashlib.sha256(_canonical(request, signature).encode()).hexdigest()
    to_sign = "\n".join(
        (_ALGORITHM, request.headers["X-Amz-Date"], signature.scope, digest)
    ).encode()
    key = f"AWS4{secret}".encode()
    for part in signature.scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    return hmac.digest(key, to_sign, "sha256").hex()


def _canonical(request: Request, signature: Signature) -> str:
    path, _, query = request.path.partition("?")
    headers = (
        f"{name}:{','.join(' '.join(value.split()) for value in request.headers.get_all(name, ()))}"
        for name in signature.signed_headers
    )
    return "\n".join(
        (
            request.method,
            path,
            "&".join(sorted(query.split("&"))),
            *headers,
            "",
            ";".join(signature.signed_headers),
            hashlib.sha256(request.body).hexdigest(),
        )
    )


def _invalid(message: str) -> Refusal:
    return Refusal("InvalidSignatureException", message)
