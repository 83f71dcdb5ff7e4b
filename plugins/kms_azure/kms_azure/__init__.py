"""Azure Key Vault and Managed HSM for ``kms_core``: registers the provider, loads nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kms_core import hookimpl


@hookimpl
def kms_register_providers(register: Callable[[type[Any]], None]) -> None:
    """Register the provider type ``azure-keyvault``."""
    from kms_azure.provider import AzureKeyVaultProvider

    register(AzureKeyVaultProvider)
