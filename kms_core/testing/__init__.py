"""What plugin authors and applications test with: it ships, and nothing at run time needs it.

``ProviderConformance`` is the suite every provider passes, ``MemoryProvider`` a complete provider
without a service, ``Faulty`` a wrapper that makes any provider fail on cue, ``Panel`` the switches
of a service that fails on cue.  Names are imported when first used; only ``ProviderConformance``
needs pytest and hypothesis (``kms-core[testing]``).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kms_core.testing.conformance import ProviderConformance as ProviderConformance
    from kms_core.testing.faults import Call as Call
    from kms_core.testing.faults import Fault as Fault
    from kms_core.testing.faults import Faulty as Faulty
    from kms_core.testing.faults import blocking as blocking
    from kms_core.testing.faults import corrupting as corrupting
    from kms_core.testing.faults import echoing as echoing
    from kms_core.testing.faults import raising as raising
    from kms_core.testing.faults import returning as returning
    from kms_core.testing.hooks import call as call
    from kms_core.testing.hooks import marked_hooks as marked_hooks
    from kms_core.testing.memory import MemoryProvider as MemoryProvider
    from kms_core.testing.memory import MemorySettings as MemorySettings
    from kms_core.testing.servers.gate import Gate as Gate
    from kms_core.testing.servers.moto import AwsServer as AwsServer
    from kms_core.testing.servers.panel import Failure as Failure
    from kms_core.testing.servers.panel import Panel as Panel
    from kms_core.testing.store import MemoryStore as MemoryStore

_HOME = {
    "conformance": ("ProviderConformance",),
    "faults": (
        "Call",
        "Fault",
        "Faulty",
        "blocking",
        "corrupting",
        "echoing",
        "raising",
        "returning",
    ),
    "hooks": ("call", "marked_hooks"),
    "memory": ("MemoryProvider", "MemorySettings"),
    "servers.gate": ("Gate",),
    "servers.moto": ("AwsServer",),
    "servers.panel": ("Failure", "Panel"),
    "store": ("MemoryStore",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted(_MODULE_OF)  # noqa: PLE0605  derived, so that it cannot drift from _HOME


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
