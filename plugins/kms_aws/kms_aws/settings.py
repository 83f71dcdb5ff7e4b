"""What an instance of type ``aws-kms`` is configured with, and which combinations make no sense."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

from attrs import Attribute, field, frozen, validators

from kms_aws.names import (
    ConfiguredKey,
    KeyArn,
    is_external_id,
    is_region,
    is_role,
    is_session_name,
)
from kms_core import Duration, Secret

MAX_TIMEOUT: Final = 600.0  # seconds; whoever waits longer has no use for another instance
MAX_CONNECTIONS: Final = 1000  # sockets kept open; far beyond what one process can use


def _check_timeout(_settings: object, field_: Attribute[Duration], seconds: Duration) -> None:
    if not 0 < seconds <= MAX_TIMEOUT:
        raise ValueError(f"{field_.name}: must be more than 0 and at most {MAX_TIMEOUT:g} seconds")


def _check_endpoint(_settings: object, field_: Attribute[Any], url: str | None) -> None:
    if url is None:
        return
    name, parts = field_.name, _split(url)
    if parts is None or parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(f"{name}: must be https://HOST[:PORT] (http:// for a loopback host)")
    if parts.username is not None or parts.password is not None:
        raise ValueError(f"{name}: must not hold a user or a password")
    if parts.path not in {"", "/"} or parts.query or parts.fragment:
        raise ValueError(f"{name}: must end after host and port")


def _check_form(is_well_formed: Callable[[str], bool], what: str) -> Callable[..., None]:
    def check(_settings: object, field_: Attribute[Any], text: str | None) -> None:
        if text is not None and not is_well_formed(text):
            raise ValueError(f"{field_.name}: {text!r} is not {what}")

    return check


def _check_regions(_settings: object, field_: Attribute[Any], regions: tuple[str, ...]) -> None:
    for region in regions:
        if not is_region(region):
            raise ValueError(f"{field_.name}: {region!r} is not the name of a region")


@frozen
class AwsKmsSettings:
    """One key of AWS KMS and the way to it.

    ``key``: key id, key ARN, ``alias/NAME`` or alias ARN; all but ARNs need ``region``.
    ``replica_regions``: where replicas of multi-Region keys wrap, whose wraps this instance opens.
    ``also_open``: ARNs of retired keys that go on unwrapping and never wrap.
    ``endpoint_url``: another address of the service; ``insecure`` permits plain http to loopback.
    ``fips``, ``dualstack``: AWS's FIPS endpoints, and those that also speak IPv6.
    ``profile``: of the AWS configuration files; without it and without ``access_key_id`` the SDK's
    own chain finds the credentials.
    ``role_arn``: a role to assume with those credentials; ``role_session_name`` is what CloudTrail
    shows, ``external_id`` what its trust policy may ask for, ``sts_endpoint_url`` where to ask.
    ``attempt_timeout``: how long the service may take to answer, in seconds.
    """

    key: str
    region: str | None = None
    replica_regions: tuple[str, ...] = field(default=(), validator=_check_regions)
    also_open: tuple[str, ...] = ()
    endpoint_url: str | None = field(default=None, validator=_check_endpoint)
    insecure: bool = False
    fips: bool = False
    dualstack: bool = False
    ca_file: Path | None = None
    profile: str | None = None
    access_key_id: Secret | None = None
    secret_access_key: Secret | None = None
    session_token: Secret | None = None
    role_arn: str | None = field(
        default=None, validator=_check_form(is_role, "the ARN of a role (arn:aws:iam::…:role/…)")
    )
    role_session_name: str | None = field(
        default=None, validator=_check_form(is_session_name, "2 to 64 letters, digits or _+=,.@-")
    )
    external_id: str | None = field(
        default=None,
        validator=_check_form(is_external_id, "2 to 1224 letters, digits or _+=,.@:/-"),
    )
    sts_endpoint_url: str | None = field(default=None, validator=_check_endpoint)
    connect_timeout: Duration = field(default=Duration(1.0), validator=_check_timeout)
    attempt_timeout: Duration = field(default=Duration(3.0), validator=_check_timeout)
    max_connections: int = field(
        default=50, validator=(validators.ge(1), validators.le(MAX_CONNECTIONS))
    )

    def __attrs_post_init__(self) -> None:
        self._check_key()
        self._check_also_open()
        self._check_transport()
        self._check_addresses()
        self._check_credentials()
        self._check_role()

    @property
    def configured_key(self) -> ConfiguredKey:
        """``key`` and ``region``, taken apart."""
        return ConfiguredKey.parse(self.key, self.region)

    @property
    def retired_keys(self) -> frozenset[KeyArn]:
        """``also_open`` as this instance's region sees it."""
        region = self.configured_key.region
        arns = (KeyArn.parse(name) for name in self.also_open)
        return frozenset(arn.seen_from(region) for arn in arns if arn is not None)

    def _check_key(self) -> None:
        key_id = self.configured_key.key_id
        regional = key_id is not None and not key_id.startswith("mrk-")
        if regional and self.replica_regions and not self.also_open:
            raise ValueError("replica_regions: key is not a multi-Region key (mrk-…): remove them")

    def _check_also_open(self) -> None:
        region = self.configured_key.region
        regions = {region, *self.replica_regions}
        for name in self.also_open:
            arn = KeyArn.parse(name)
            if arn is None:
                raise ValueError(f"also_open: {name!r} is not the ARN of a key")
            if arn.region != region and not (arn.multi_region and arn.region in regions):
                raise ValueError(
                    f"also_open: {name} is not in region {region}; give it an instance of its own"
                )

    def _check_transport(self) -> None:
        for name in ("endpoint_url", "sts_endpoint_url"):
            url = getattr(self, name) or ""
            if urlsplit(url).scheme == "http":
                if not is_loopback(url):
                    raise ValueError(f"{name}: plain http only goes to a loopback host; use https")
                if not self.insecure:
                    raise ValueError(f"{name}: plain http needs insecure = true; use https")
        if self.ca_file is not None and not self.ca_file.is_file():
            raise ValueError(f"ca_file: {self.ca_file} is not a file")

    def _check_addresses(self) -> None:
        for wish in ("fips", "dualstack"):
            for url in ("endpoint_url", "sts_endpoint_url"):
                if getattr(self, wish) and getattr(self, url) is not None:
                    raise ValueError(f"{wish}: contradicts {url}, which is an address of its own")

    def _check_credentials(self) -> None:
        if (self.access_key_id is None) != (self.secret_access_key is None):
            raise ValueError("access_key_id: goes together with secret_access_key; give both")
        if self.session_token is not None and self.access_key_id is None:
            raise ValueError("session_token: goes together with access_key_id; give both")
        if self.profile is not None and self.access_key_id is not None:
            raise ValueError("profile: contradicts access_key_id; give one of them")

    def _check_role(self) -> None:
        for name in ("role_session_name", "external_id", "sts_endpoint_url"):
            if getattr(self, name) is not None and self.role_arn is None:
                raise ValueError(f"{name}: goes together with role_arn; give both")
        emulated = urlsplit(self.endpoint_url or "").scheme == "http"
        if emulated and self.role_arn is not None and self.sts_endpoint_url is None:
            raise ValueError(
                "sts_endpoint_url: is missing: the credentials of an emulator are not sent to AWS"
            )


def is_loopback(url: str) -> bool:
    """Whether this address is on this machine."""
    parts = _split(url)
    return parts is not None and _is_loopback(parts.hostname or "")


def _split(url: str) -> SplitResult | None:
    if not url.isascii() or not url.isprintable() or " " in url:
        return None
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  raises unless it is a number in range
    except ValueError:
        return None
    return parts


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
