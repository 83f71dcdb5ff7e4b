"""Finding and calling a provider's hooks the way the core does, without a plugin manager."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pluggy

from kms_core.hookspecs import PROJECT


def marked_hooks(provider: Any) -> dict[str, Callable[..., Any]]:
    """The methods of ``provider`` marked ``@hookimpl``, by name."""
    manager = pluggy.PluginManager(PROJECT)
    return {
        name: getattr(provider, name)
        for name in dir(provider)
        if manager.parse_hookimpl_opts(provider, name) is not None
    }


def call(provider: Any, hook: str, **arguments: Any) -> Any:
    """Call a hook by keyword with those of ``arguments`` that it names."""
    method = getattr(provider, hook)
    if inspect.iscoroutinefunction(method):
        raise TypeError(f"{type(provider).__name__}.{hook} is async; hooks are plain functions")
    named = inspect.signature(method).parameters
    return method(**{name: value for name, value in arguments.items() if name in named})
