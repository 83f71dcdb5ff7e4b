"""Who asks: a token from the configuration, or an identity of the Azure SDK.

The SDK's identities have connections of their own, with more patience and retries than a call has
time for; those that take limits get the ones of the configuration.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from kms_azure.settings import AzureKeyVaultSettings, CredentialKind
from kms_core import Secret

_LIFETIME: Final = 86400  # seconds that a token of ours says it has; the service knows better


class StaticToken:
    """A bearer token from the configuration, for emulators."""

    def __init__(self, token: Secret) -> None:
        self._token = token

    def get_token(self, *_scopes: str, **_options: Any) -> Any:
        """The token, whatever it is asked for."""
        from azure.core.credentials import AccessToken

        return AccessToken(self._token.reveal(), int(time.time()) + _LIFETIME)

    def close(self) -> None:
        """Nothing is open."""


def build(settings: AzureKeyVaultSettings) -> Any:
    """The credential; raises what the SDK raises if the environment lacks something it needs."""
    if settings.token is not None:
        return StaticToken(settings.token)
    options: dict[str, Any] = {
        "retry_total": 0,
        "connection_timeout": settings.connect_timeout,
        "read_timeout": settings.attempt_timeout,
    }
    if settings.authority is not None:
        # Whoever writes down an authority trusts it: nobody else has to vouch for it.
        options |= {"authority": settings.authority, "disable_instance_discovery": True}
    return _BUILDERS[settings.credential_kind](settings, options)


def _default(settings: AzureKeyVaultSettings, options: dict[str, Any]) -> Any:
    from azure.identity import DefaultAzureCredential

    return DefaultAzureCredential(
        **_given(
            managed_identity_client_id=settings.client_id,
            workload_identity_tenant_id=settings.tenant_id,
        ),
        **options,
    )


def _managed_identity(settings: AzureKeyVaultSettings, options: dict[str, Any]) -> Any:
    from azure.identity import ManagedIdentityCredential

    return ManagedIdentityCredential(**_given(client_id=settings.client_id), **options)


def _workload_identity(settings: AzureKeyVaultSettings, options: dict[str, Any]) -> Any:
    from azure.identity import WorkloadIdentityCredential

    given = _given(client_id=settings.client_id, tenant_id=settings.tenant_id)
    return WorkloadIdentityCredential(**given, **options)


def _environment(_settings: AzureKeyVaultSettings, options: dict[str, Any]) -> Any:
    from azure.identity import EnvironmentCredential

    return EnvironmentCredential(**options)


def _cli(settings: AzureKeyVaultSettings, _options: dict[str, Any]) -> Any:
    from azure.identity import AzureCliCredential

    return AzureCliCredential(**_given(tenant_id=settings.tenant_id))


def _client_secret(settings: AzureKeyVaultSettings, options: dict[str, Any]) -> Any:
    from azure.identity import AzureAuthorityHosts, ClientSecretCredential

    # Not AZURE_AUTHORITY_HOST: a variable must not decide who is shown the secret.
    options.setdefault("authority", AzureAuthorityHosts.AZURE_PUBLIC_CLOUD)
    secret = settings.client_secret
    return ClientSecretCredential(
        tenant_id=settings.tenant_id or "",
        client_id=settings.client_id or "",
        client_secret="" if secret is None else secret.reveal(),
        **options,
    )


_BUILDERS: Final[
    Mapping[CredentialKind, Callable[[AzureKeyVaultSettings, dict[str, Any]], Any]]
] = {
    "default": _default,
    "managed-identity": _managed_identity,
    "workload-identity": _workload_identity,
    "environment": _environment,
    "cli": _cli,
    "client-secret": _client_secret,
}


def _given(**options: str | None) -> dict[str, Any]:
    """Only what is configured: for the SDK, None is a choice too."""
    return {name: value for name, value in options.items() if value is not None}
