"""What an instance of type ``gcp-kms`` is configured with, and which combinations make no sense."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from attrs import Attribute, field, frozen

from kms_core import Duration, Secret
from kms_gcp.names import KeyName, is_project

DEFAULT_ENDPOINT: Final = "cloudkms.googleapis.com:443"
MAX_TIMEOUT: Final = 600.0  # seconds; whoever waits longer has no use for another instance

_ENDPOINT: Final = re.compile(
    r"(?:[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?|\[[0-9a-f:.]{2,45}\]):([0-9]{1,5})", re.IGNORECASE
)
_TOKEN: Final = re.compile(r"[\x21-\x7e]{1,8192}")  # what may stand in a header
_PLAIN: Final = ("ca_file", "credentials_file", "token", "quota_project")


def _check_timeout(_settings: object, field_: Attribute[Duration], seconds: Duration) -> None:
    if not 0 < seconds <= MAX_TIMEOUT:
        raise ValueError(f"{field_.name}: must be more than 0 and at most {MAX_TIMEOUT:g} seconds")


def _check_endpoint(_settings: object, field_: Attribute[Any], endpoint: str | None) -> None:
    if endpoint is None:
        return
    match = _ENDPOINT.fullmatch(endpoint)
    if match is None or not 0 < int(match[1]) < 1 << 16:
        raise ValueError(f"{field_.name}: must be HOST:PORT, without a scheme")


def _check_file(_settings: object, field_: Attribute[Any], path: Path | None) -> None:
    if path is not None and not path.is_file():
        raise ValueError(f"{field_.name}: {path} is not a file")


def _check_token(_settings: object, field_: Attribute[Any], token: Secret | None) -> None:
    if token is not None and not _TOKEN.fullmatch(token.reveal()):
        raise ValueError(f"{field_.name}: must be visible ASCII without blanks or line breaks")


def _check_project(_settings: object, field_: Attribute[Any], project: str | None) -> None:
    if project is not None and not is_project(project):
        raise ValueError(f"{field_.name}: {project!r} is not the id of a project")


@frozen
class GcpKmsSettings:
    """One key of Google Cloud KMS and the way to it.

    ``key``: the name of a CryptoKey or of one of its versions, in full or, with ``project``, as
    ``LOCATION/KEYRING/KEY[/VERSION]``.
    ``also_open``: full names of retired keys or versions that go on unwrapping and never wrap.
    ``hsm``: the key is held by Cloud HSM, which routing may rely on; nobody checks it.
    ``endpoint``: another address of the service, ``HOST:PORT``; ``insecure`` goes there without TLS
    and without credentials, on this machine only.
    ``credentials_file``: a credentials file of Google's; ``token``: a ready access token.  Without
    either, Application Default Credentials are looked up by the first call.
    ``quota_project``: whose quota is charged, by id.
    ``attempt_timeout``: how long a call may take, connecting included, in seconds.
    """

    key: str
    project: str | None = None
    also_open: tuple[str, ...] = ()
    hsm: bool = False
    endpoint: str | None = field(default=None, validator=_check_endpoint)
    insecure: bool = False
    ca_file: Path | None = field(default=None, validator=_check_file)
    credentials_file: Path | None = field(default=None, validator=_check_file)
    token: Secret | None = field(default=None, validator=_check_token)
    quota_project: str | None = field(default=None, validator=_check_project)
    attempt_timeout: Duration = field(default=Duration(3.0), validator=_check_timeout)

    def __attrs_post_init__(self) -> None:
        KeyName.configured(self.key, self.project)
        self._check_also_open()
        self._check_insecure()
        if self.token is not None and self.credentials_file is not None:
            raise ValueError("token: contradicts credentials_file; give one of them")

    @property
    def configured_key(self) -> KeyName:
        """``key`` and ``project``, put together."""
        return KeyName.configured(self.key, self.project)

    @property
    def retired_keys(self) -> frozenset[KeyName]:
        """``also_open``, taken apart."""
        names = (KeyName.parse(name) for name in self.also_open)
        return frozenset(name for name in names if name is not None)

    @property
    def address(self) -> str:
        """Host and port of the service."""
        return self.endpoint or DEFAULT_ENDPOINT

    def _check_also_open(self) -> None:
        for name in self.also_open:
            if KeyName.parse(name) is None:
                raise ValueError(f"also_open: {name!r} is not the full name of a key or a version")

    def _check_insecure(self) -> None:
        if not self.insecure:
            return
        if self.endpoint is None:
            raise ValueError("insecure: goes together with endpoint; give both")
        if not is_loopback(self.endpoint):
            raise ValueError("insecure: only goes to a loopback host; use TLS")
        for name in _PLAIN:
            if getattr(self, name) is not None:
                raise ValueError(f"{name}: contradicts insecure, which uses none; remove one")


def is_loopback(endpoint: str) -> bool:
    """Whether this address is on this machine."""
    host = urlsplit(f"//{endpoint}").hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
