"""Telling observers what happened: plugins one by one, then the standard log.

An observer can neither fail nor change a call.  The log is silent unless the application configures
the logger ``kms_core``; what is routine is DEBUG, what somebody should look at is WARNING.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from types import ModuleType
from typing import Final

import pluggy
from attrs import evolve

from kms_core.errors import correlation_id
from kms_core.hookspecs import PROJECT, PluginSpec
from kms_core.types import Event

_log = logging.getLogger("kms_core")
_log.addHandler(logging.NullHandler())
_ROUTINE: Final = frozenset({"ok", "closed"})


class Observers:
    """The observers of one client."""

    def __init__(
        self, modules: Mapping[str, ModuleType], *watchers: Callable[[Event], None]
    ) -> None:
        self._watchers = watchers
        # one manager each: a broadcast would stop at the first observer that raises
        self._managers = {
            name: _manager(name, module)
            for name, module in modules.items()
            if hasattr(module, "kms_event")
        }

    def emit(self, event: Event) -> None:
        """Tell everybody; never raises."""
        current = correlation_id.get()
        if current and not event.correlation_id:
            event = evolve(event, correlation_id=current)
        for name, manager in self._managers.items():
            _tell(name, partial(manager.hook.kms_event, event=event))
        for watcher in self._watchers:
            _tell(type(watcher).__name__, partial(watcher, event))
        level = logging.DEBUG if event.outcome in _ROUTINE else logging.WARNING
        if _log.isEnabledFor(level):
            _log.log(level, "%s", _sentence(event), extra={"kms_event": event})


def _tell(name: str, tell: Callable[[], object]) -> None:
    try:
        tell()
    except Exception as exc:  # noqa: BLE001  isolation is the job
        _log.warning("observer %s raised %s", name, type(exc).__name__)


def _manager(name: str, module: ModuleType) -> pluggy.PluginManager:
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(PluginSpec)
    manager.register(module, name)
    return manager


def _sentence(event: Event) -> str:
    parts = [event.operation, event.outcome]
    if event.instance:
        parts.append(f"instance={event.instance}")
    if event.missing:
        parts.append(f"missing={','.join(event.missing)}")
    if event.unverified:
        parts.append(f"unverified={','.join(event.unverified)}")
    if event.seconds:
        parts.append(f"{event.seconds * 1000:.1f} ms")
    return " ".join(parts)
