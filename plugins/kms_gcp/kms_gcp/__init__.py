"""Google Cloud KMS as a provider of ``kms_core``: this module registers it, and loads no SDK."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kms_core import hookimpl


@hookimpl
def kms_register_providers(register: Callable[[type[Any]], None]) -> None:
    """Register the provider type ``gcp-kms``."""
    from kms_gcp.provider import GcpKmsProvider

    register(GcpKmsProvider)
