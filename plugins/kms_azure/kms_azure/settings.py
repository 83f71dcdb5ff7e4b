"""What an instance of type ``azure-keyvault`` is configured with, and what makes no sense."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Literal, get_args
from urllib.parse import urlsplit

from attrs import Attribute, field, frozen, validators

from kms_azure.names import VaultKey, vault_of
from kms_core import Duration, Secret

MAX_TIMEOUT: Final = 600.0  # seconds; whoever waits longer has no use for another instance
MAX_VERSION_AGE: Final = 86400.0  # seconds; a rotation that takes longer to be noticed is none
MAX_CONNECTIONS: Final = 1000  # sockets kept open; far beyond what one process can use

Algorithm = Literal["RSA-OAEP-256", "A256KW", "A256GCM"]
Credential = Literal["default", "managed-identity", "workload-identity", "environment", "cli"]
CredentialKind = Credential | Literal["token", "client-secret"]

#: Which settings each way to a token has a use for.
_IDENTITY_OF: Final[Mapping[CredentialKind, frozenset[str]]] = {
    "token": frozenset(),
    "client-secret": frozenset({"client_id", "tenant_id", "authority"}),
    "default": frozenset({"client_id", "tenant_id", "authority"}),
    "managed-identity": frozenset({"client_id"}),
    "workload-identity": frozenset({"client_id", "tenant_id", "authority"}),
    "environment": frozenset({"authority"}),
    "cli": frozenset({"tenant_id"}),
}
_API_VERSION: Final = re.compile(r"[0-9]\.[0-9]{1,2}|[0-9]{4}-[0-9]{2}-[0-9]{2}")
_IDENTIFIER: Final = re.compile(r"[0-9A-Za-z.-]{1,255}")


def _at_most(limit: float) -> Callable[..., None]:
    def check(_settings: object, field_: Attribute[Duration], seconds: Duration) -> None:
        if not 0 < seconds <= limit:
            raise ValueError(f"{field_.name}: must be more than 0 and at most {limit:g} seconds")

    return check


def _check_identifier(_settings: object, field_: Attribute[str | None], value: str | None) -> None:
    if value is not None and not _IDENTIFIER.fullmatch(value):
        raise ValueError(f"{field_.name}: has letters, digits, dots and hyphens only")


@frozen
class AzureKeyVaultSettings:
    """One key of Azure Key Vault or of a Managed HSM, and the way to it.

    ``key``: ``NAME``, ``NAME/VERSION`` or the key's identifier; only the last does without
    ``vault_url``.  Without a version it wraps with the current one and unwraps with all of them.
    ``also_open``: retired keys of the same vault that go on unwrapping and never wrap.
    ``algorithm``: how it wraps; by the type of the key unless it is set.
    ``hsm``: only an HSM's key will do; of a Managed HSM's host name that is known anyhow.
    ``verify_challenge``: tokens go only to hosts of the domain that they are for.
    ``version_max_age``: how long a rotation may go unnoticed, in seconds.
    ``attempt_timeout``: how long the service may take to answer, in seconds.
    """

    key: str
    vault_url: str | None = None
    also_open: tuple[str, ...] = ()
    algorithm: Algorithm | None = field(
        default=None, validator=validators.in_((None, *get_args(Algorithm)))
    )
    hsm: bool = False
    ca_file: Path | None = None
    verify_challenge: bool = True
    token: Secret | None = None
    credential: Credential = field(
        default="default", validator=validators.in_(get_args(Credential))
    )
    client_id: str | None = field(default=None, validator=_check_identifier)
    tenant_id: str | None = field(default=None, validator=_check_identifier)
    client_secret: Secret | None = None
    authority: str | None = None
    api_version: str | None = None
    version_max_age: Duration = field(default=Duration(300.0), validator=_at_most(MAX_VERSION_AGE))
    connect_timeout: Duration = field(default=Duration(1.0), validator=_at_most(MAX_TIMEOUT))
    attempt_timeout: Duration = field(default=Duration(3.0), validator=_at_most(MAX_TIMEOUT))
    max_connections: int = field(
        default=50, validator=(validators.ge(1), validators.le(MAX_CONNECTIONS))
    )

    def __attrs_post_init__(self) -> None:
        self._check_vault()
        self._check_keys()
        self._check_transport()
        self._check_credentials()

    @property
    def configured_key(self) -> VaultKey:
        """``key``, taken apart."""
        vault = None if self.vault_url is None else vault_of(self.vault_url)
        key = VaultKey.parse(self.key, vault)
        if key is None:
            raise ValueError(
                f"key: {self.key!r} is no NAME, NAME/VERSION or https://VAULT/keys/NAME[/VERSION]"
            )
        return key

    @property
    def retired_keys(self) -> frozenset[VaultKey]:
        """``also_open``, taken apart."""
        vault = self.configured_key.vault
        keys = (VaultKey.parse(name, vault) for name in self.also_open)
        return frozenset(key for key in keys if key is not None)

    @property
    def is_managed_hsm(self) -> bool:
        """Whether the host's name says so."""
        return ".managedhsm." in self.configured_key.vault

    @property
    def is_loopback(self) -> bool:
        """Whether the vault is on this machine: an emulator."""
        host = urlsplit(f"https://{self.configured_key.vault}").hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"

    @property
    def credential_kind(self) -> CredentialKind:
        """The way to a token."""
        if self.token is not None:
            return "token"
        return self.credential if self.client_secret is None else "client-secret"

    def _check_vault(self) -> None:
        if self.vault_url is None:
            if not self.key.startswith("https://"):
                raise ValueError("vault_url: is missing, and key is not an identifier that has it")
        elif (vault := vault_of(self.vault_url)) is None:
            raise ValueError("vault_url: must be https://HOST[:PORT] and nothing more")
        elif vault != self.configured_key.vault:
            raise ValueError("vault_url: contradicts key, which is in another vault")

    def _check_keys(self) -> None:
        configured = self.configured_key
        for name in self.also_open:
            key = VaultKey.parse(name, configured.vault)
            if key is None:
                raise ValueError(f"also_open: {name!r} is no NAME[/VERSION] or key identifier")
            if key.vault != configured.vault:
                raise ValueError(
                    f"also_open: {name} is in another vault; give it an instance of its own"
                )

    def _check_transport(self) -> None:
        if self.ca_file is not None and not self.ca_file.is_file():
            raise ValueError(f"ca_file: {self.ca_file} is not a file")
        if self.api_version is not None and not _API_VERSION.fullmatch(self.api_version):
            raise ValueError("api_version: is of the form 7.6 or 2025-07-01")

    def _check_credentials(self) -> None:
        kind = self.credential_kind
        if self.credential not in {kind, "default"}:
            raise ValueError("credential: contradicts token or client_secret; give one of them")
        if self.token is not None and self.client_secret is not None:
            raise ValueError("client_secret: contradicts token; give one of them")
        if kind == "client-secret" and (self.client_id is None or self.tenant_id is None):
            raise ValueError("client_secret: goes together with client_id and tenant_id")
        for name in ("client_id", "tenant_id", "authority"):
            if getattr(self, name) is not None and name not in _IDENTITY_OF[kind]:
                raise ValueError(f"{name}: has no use with credential {kind!r}; remove it")
        if self.authority is not None and vault_of(self.authority) is None:
            raise ValueError("authority: must be https://HOST[:PORT] and nothing more")
