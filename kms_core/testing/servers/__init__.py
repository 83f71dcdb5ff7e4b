"""Key services on loopback with real protocols and real cryptography, which fail on cue.

All of them are running when made and until ``close``; each has a ``gate`` that cuts its line and a
``panel`` that makes it answer badly.  They need the extra ``kms-core[demo]``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kms_core.testing.servers.aws import StrictAwsServer as StrictAwsServer
    from kms_core.testing.servers.azure import AzureServer as AzureServer
    from kms_core.testing.servers.gate import Gate as Gate
    from kms_core.testing.servers.gcp import GcpServer as GcpServer
    from kms_core.testing.servers.moto import AwsServer as AwsServer
    from kms_core.testing.servers.panel import Failure as Failure
    from kms_core.testing.servers.panel import Panel as Panel
    from kms_core.testing.servers.softhsm import SoftHsm as SoftHsm

_MODULE_OF = {
    "AwsServer": "moto",
    "AzureServer": "azure",
    "Failure": "panel",
    "Gate": "gate",
    "GcpServer": "gcp",
    "Panel": "panel",
    "SoftHsm": "softhsm",
    "StrictAwsServer": "aws",
}

__all__ = sorted(_MODULE_OF)  # noqa: PLE0605  derived, so that it cannot drift from _MODULE_OF


def __getattr__(name: str) -> object:
    try:
        module = _MODULE_OF[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    value = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
