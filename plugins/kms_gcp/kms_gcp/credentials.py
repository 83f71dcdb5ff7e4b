"""Access tokens: where they come from, and when a new one is asked for.

They are fetched here rather than by gRPC, which turns every failure to get one into the same
UNAVAILABLE, so that a revoked identity would look like an outage of the service.
"""

from __future__ import annotations

import importlib
import json
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

from attrs import frozen

from kms_core import Secret
from kms_gcp.errors import NoToken, OutOfReach
from kms_gcp.settings import GcpKmsSettings

SCOPES: Final = (
    "https://www.googleapis.com/auth/cloud-platform",
    "https://www.googleapis.com/auth/cloudkms",
)

_AWS_TOKEN: Final = "urn:ietf:params:aws:"  # begins the subject_token_type  # noqa: S105


@frozen
class _Form:
    """How the SDK reads credentials of one type."""

    module: str
    method: str
    options: Mapping[str, Any] = {"scopes": SCOPES}


_FORMS: Final[Mapping[str, _Form]] = {
    "service_account": _Form("google.oauth2.service_account", "from_service_account_info"),
    # Users have chosen the scopes when they logged in; asking for others is refused.
    "authorized_user": _Form("google.oauth2.credentials", "from_authorized_user_info", {}),
    "impersonated_service_account": _Form(
        "google.auth.impersonated_credentials", "from_impersonated_service_account_info"
    ),
    "external_account": _Form("google.auth.identity_pool", "from_info"),
    "external_account on AWS": _Form("google.auth.aws", "from_info"),
}

#: What whoever gives out tokens answers when it is not the credentials' fault.
_UNWELL: Final = frozenset({408, 429, *range(500, 600)})

Headers = tuple[tuple[str, str], ...]


class Identity(Protocol):
    """Who the requests are from."""

    def headers(self) -> Headers:
        """What to send with a request; raises ``NoToken``."""

    def forget(self) -> None:
        """What was sent was refused: find it anew."""

    def close(self) -> None:
        """Close the connections."""


def identity_of(settings: GcpKmsSettings) -> Identity:
    """Who the configuration says; looks for nothing yet."""
    quota = {} if settings.quota_project is None else {"quota_project": settings.quota_project}
    if settings.insecure:
        return Fixed()
    if settings.token is not None:
        return Fixed(settings.token, **quota)
    path = settings.credentials_file
    find = _default if path is None else partial(_read, path)
    return Renewed(find, timeout=settings.attempt_timeout, **quota)


@frozen
class Fixed:
    """Nobody, or the bearer of a token that somebody else renews."""

    token: Secret | None = None
    quota_project: str | None = None

    def headers(self) -> Headers:
        """The token as it was given."""
        if self.token is None:
            return ()
        return _headers(self.token.reveal(), self.quota_project)

    def forget(self) -> None:
        """There is no other."""

    def close(self) -> None:
        """There is nothing to close."""


class Renewed:
    """Credentials of Google's SDK, found when first needed, and renewed before they expire."""

    def __init__(
        self,
        find: Callable[[Any], Any],
        *,
        timeout: float,
        quota_project: str | None = None,
    ) -> None:
        self._find = find
        self._timeout = timeout
        self._quota_project = quota_project
        self._lock = threading.Lock()
        self._session: Any = None
        self._credentials: Any = None  # of a class that the SDK chooses

    def headers(self) -> Headers:
        """A token that is still good; asks for a new one if it is not, which takes a request."""
        if not self._lock.acquire(timeout=self._timeout):  # those who come together ask once
            raise NoToken(OutOfReach())
        try:
            credentials = self._current()
        except Exception as exc:  # each kind of credentials has errors of its own
            raise NoToken(exc) from exc
        finally:
            self._lock.release()
        quota = self._quota_project or getattr(credentials, "quota_project_id", None)
        return _headers(credentials.token, quota)

    def forget(self) -> None:
        """Find the credentials anew: their file or the environment may have changed."""
        with self._lock:
            self._credentials = None

    def close(self) -> None:
        """Close the connections to whoever gives out tokens."""
        with self._lock:
            session, self._session = self._session, None
            if session is not None:
                session.close()

    def _current(self) -> Any:
        from google.auth.credentials import TokenState

        if self._credentials is None:
            self._credentials = self._find(self._request())
        credentials = self._credentials
        if not credentials.valid:
            try:
                credentials.refresh(self._request())
            except Exception:
                # A token is renewed minutes before it expires: until then the old one serves.
                if credentials.token_state is TokenState.INVALID:
                    raise
        return credentials

    def _request(self) -> Any:
        import requests

        if self._session is None:
            self._session = requests.Session()
        return _Once(self._session, self._timeout)


class _Once:
    """What the SDK sends its requests for tokens with: bounded, and never a second time.

    The SDK would go on trying for half a minute, which is for the core to decide.
    """

    def __init__(self, session: Any, timeout: float) -> None:
        self.session = session  # the SDK looks for it
        self._timeout = timeout

    def __call__(self, **request: Any) -> Any:
        from google.auth.exceptions import TransportError
        from google.auth.transport.requests import Request

        try:
            response = Request(self.session)(**{**request, "timeout": self._timeout})
        except TransportError as exc:
            raise OutOfReach from exc
        if response.status in _UNWELL:
            raise OutOfReach
        return response


def _headers(token: str, quota_project: str | None) -> Headers:
    bearer = ("authorization", f"Bearer {token}")
    return (bearer, ("x-goog-user-project", quota_project)) if quota_project else (bearer,)


def _default(request: Any) -> Any:
    """Application Default Credentials; may ask the metadata server, which not every host has."""
    import google.auth
    from google.auth.exceptions import DefaultCredentialsError

    try:
        credentials, _ = google.auth.default(scopes=SCOPES, request=request)
    except OutOfReach:
        pass
    else:
        return _signing_its_own_tokens(credentials)
    raise DefaultCredentialsError  # not in the handler: its cause would make it an outage


def _read(path: Path, _request: Any) -> Any:
    """The credentials in a file; none of a kind that runs a program."""
    info = json.loads(path.read_bytes())
    form = _FORMS.get(_kind(info))
    if form is None:
        raise ValueError("the file is of no kind that can be used")
    load = getattr(importlib.import_module(form.module).Credentials, form.method)
    return _signing_its_own_tokens(load(info, **form.options))


def _kind(info: Any) -> str:
    if not isinstance(info, dict):
        return ""
    kind = str(info.get("type"))
    on_aws = str(info.get("subject_token_type")).startswith(_AWS_TOKEN)
    return f"{kind} on AWS" if kind == "external_account" and on_aws else kind


def _signing_its_own_tokens(credentials: Any) -> Any:
    """A service account's key makes tokens without asking anybody."""
    ask_nobody = getattr(credentials, "with_always_use_jwt_access", None)
    return credentials if ask_nobody is None else ask_nobody(always_use_jwt_access=True)
