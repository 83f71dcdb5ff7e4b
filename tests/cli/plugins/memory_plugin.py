"""The in-memory provider with a key of the kind that the configuration names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from attrs import frozen

from kms_core import hookimpl
from kms_core.testing import MemoryProvider, MemorySettings, MemoryStore
from kms_core.testing.material import KeyKind


@frozen
class KindSettings:
    key: str
    kind: str


class KindProvider(MemoryProvider):
    settings: ClassVar[type[Any]] = KindSettings

    def __init__(self, settings: KindSettings) -> None:
        store = MemoryStore("kinds", keys=())
        kind: KeyKind = settings.kind  # type: ignore[assignment]
        store.create(settings.key, kind)
        super().__init__(MemorySettings(settings.key, store))


@hookimpl
def kms_register_providers(register: Callable[[type[Any]], None]) -> None:
    """Register ``KindProvider``."""
    register(KindProvider)
