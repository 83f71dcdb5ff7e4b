"""Encrypt with keys that several key services hold at once.

Names are imported when first used, so that ``import kms_core`` loads no SDK and little else.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kms_core.aead import bind_context as bind_context
    from kms_core.aead import erase as erase
    from kms_core.aead import unbind_context as unbind_context
    from kms_core.aead import wipe as wipe
    from kms_core.asymmetric import verify_signature as verify_signature
    from kms_core.async_client import AsyncKms as AsyncKms
    from kms_core.breaker import BreakerPolicy as BreakerPolicy
    from kms_core.cache import CacheCounts as CacheCounts
    from kms_core.cache import CacheInfo as CacheInfo
    from kms_core.cache import CachePolicy as CachePolicy
    from kms_core.calls import CallPolicy as CallPolicy
    from kms_core.capsules import CapsuleStore as CapsuleStore
    from kms_core.capsules import FileCapsules as FileCapsules
    from kms_core.capsules import MemoryCapsules as MemoryCapsules
    from kms_core.capsules import SqliteCapsules as SqliteCapsules
    from kms_core.client import Kms as Kms
    from kms_core.context import Context as Context
    from kms_core.errors import AccessDenied as AccessDenied
    from kms_core.errors import AllInstancesFailed as AllInstancesFailed
    from kms_core.errors import BreakerOpen as BreakerOpen
    from kms_core.errors import ConfigError as ConfigError
    from kms_core.errors import DeadlineExceeded as DeadlineExceeded
    from kms_core.errors import EnvelopeError as EnvelopeError
    from kms_core.errors import FormatError as FormatError
    from kms_core.errors import IntegrityError as IntegrityError
    from kms_core.errors import InvalidCiphertext as InvalidCiphertext
    from kms_core.errors import InvalidRequest as InvalidRequest
    from kms_core.errors import KeyDisabled as KeyDisabled
    from kms_core.errors import KeyNotFound as KeyNotFound
    from kms_core.errors import KMSError as KMSError
    from kms_core.errors import NoMatchingRecipient as NoMatchingRecipient
    from kms_core.errors import PluginError as PluginError
    from kms_core.errors import PolicyDenied as PolicyDenied
    from kms_core.errors import ProviderBug as ProviderBug
    from kms_core.errors import RewrapConflict as RewrapConflict
    from kms_core.errors import ServiceError as ServiceError
    from kms_core.errors import Throttled as Throttled
    from kms_core.errors import Unavailable as Unavailable
    from kms_core.errors import UnsupportedOperation as UnsupportedOperation
    from kms_core.errors import UnsupportedVersion as UnsupportedVersion
    from kms_core.errors import correlation_id as correlation_id
    from kms_core.hookspecs import hookimpl as hookimpl
    from kms_core.inspection import EnvelopeInfo as EnvelopeInfo
    from kms_core.inspection import RecipientInfo as RecipientInfo
    from kms_core.inspection import inspect as inspect
    from kms_core.inspection import is_sealed as is_sealed
    from kms_core.memory import Arena as Arena
    from kms_core.memory import Hardening as Hardening
    from kms_core.memory import SecretBytes as SecretBytes
    from kms_core.memory import harden_process as harden_process
    from kms_core.repair import CallbackSource as CallbackSource
    from kms_core.repair import CapsuleSource as CapsuleSource
    from kms_core.repair import FileSource as FileSource
    from kms_core.repair import RepairQueue as RepairQueue
    from kms_core.repair import RepairReport as RepairReport
    from kms_core.repair import RepairSource as RepairSource
    from kms_core.sessions import SealedMany as SealedMany
    from kms_core.settings import EnvelopePolicy as EnvelopePolicy
    from kms_core.settings import InstanceConfig as InstanceConfig
    from kms_core.settings import MonitorPolicy as MonitorPolicy
    from kms_core.settings import Settings as Settings
    from kms_core.types import MAC_ALGORITHMS as MAC_ALGORITHMS
    from kms_core.types import SIGNATURE_ALGORITHMS as SIGNATURE_ALGORITHMS
    from kms_core.types import Attempt as Attempt
    from kms_core.types import Ciphertext as Ciphertext
    from kms_core.types import DataKey as DataKey
    from kms_core.types import Duration as Duration
    from kms_core.types import Event as Event
    from kms_core.types import Health as Health
    from kms_core.types import HealthReport as HealthReport
    from kms_core.types import InstanceHealth as InstanceHealth
    from kms_core.types import InstanceInfo as InstanceInfo
    from kms_core.types import KeyInfo as KeyInfo
    from kms_core.types import KeyState as KeyState
    from kms_core.types import PluginInfo as PluginInfo
    from kms_core.types import Protection as Protection
    from kms_core.types import Provider as Provider
    from kms_core.types import PublicKey as PublicKey
    from kms_core.types import Secret as Secret
    from kms_core.types import Signature as Signature

_HOME = {
    "aead": ("bind_context", "erase", "unbind_context", "wipe"),
    "async_client": ("AsyncKms",),
    "asymmetric": ("verify_signature",),
    "breaker": ("BreakerPolicy",),
    "cache": ("CacheCounts", "CacheInfo", "CachePolicy"),
    "client": ("Kms",),
    "calls": ("CallPolicy",),
    "capsules": ("CapsuleStore", "FileCapsules", "MemoryCapsules", "SqliteCapsules"),
    "context": ("Context",),
    "errors": (
        "AccessDenied",
        "AllInstancesFailed",
        "BreakerOpen",
        "ConfigError",
        "DeadlineExceeded",
        "EnvelopeError",
        "FormatError",
        "IntegrityError",
        "InvalidCiphertext",
        "InvalidRequest",
        "KMSError",
        "KeyDisabled",
        "KeyNotFound",
        "NoMatchingRecipient",
        "PluginError",
        "PolicyDenied",
        "ProviderBug",
        "RewrapConflict",
        "ServiceError",
        "Throttled",
        "Unavailable",
        "UnsupportedOperation",
        "UnsupportedVersion",
        "correlation_id",
    ),
    "hookspecs": ("hookimpl",),
    "inspection": ("EnvelopeInfo", "RecipientInfo", "inspect", "is_sealed"),
    "memory": ("Arena", "Hardening", "SecretBytes", "harden_process"),
    "repair": (
        "CallbackSource",
        "CapsuleSource",
        "FileSource",
        "RepairQueue",
        "RepairReport",
        "RepairSource",
    ),
    "sessions": ("SealedMany",),
    "settings": ("EnvelopePolicy", "InstanceConfig", "MonitorPolicy", "Settings"),
    "types": (
        "MAC_ALGORITHMS",
        "SIGNATURE_ALGORITHMS",
        "Attempt",
        "Ciphertext",
        "DataKey",
        "Duration",
        "Event",
        "Health",
        "HealthReport",
        "InstanceHealth",
        "InstanceInfo",
        "KeyInfo",
        "KeyState",
        "PluginInfo",
        "Protection",
        "Provider",
        "PublicKey",
        "Secret",
        "Signature",
    ),
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
