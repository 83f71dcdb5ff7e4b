"""Commands that plugins bring: ``kms PLUGIN …``."""

from __future__ import annotations

from collections.abc import Mapping

import click
import pluggy

from kms_core.cli.helpful import HelpfulGroup
from kms_core.errors import PluginError
from kms_core.hookspecs import PROJECT, PluginSpec
from kms_core.plugins import KNOWN_DISTRIBUTIONS, Plugins, discover


def installed() -> Mapping[str, str]:
    """The names of the installed plugins, with distribution and version; imports none."""
    found = sorted(discover(), key=lambda plugin: plugin.name)
    return {plugin.name: f"{plugin.distribution} {plugin.version}" for plugin in found}


def is_plugin(name: str) -> bool:
    """Whether ``name`` is a plugin that is installed or could be."""
    return name in KNOWN_DISTRIBUTIONS or name in installed()


def commands_of(name: str) -> click.Group:
    """A group with the plugin's commands; raises ``PluginError`` if it is missing or broken."""
    module = Plugins().require(name, f"kms {name}").module
    group = HelpfulGroup(name, help=f"Commands of the plugin {name}.")
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(PluginSpec)
    manager.register(module, name)
    try:
        manager.hook.kms_register_commands(commands=group)
    except Exception as exc:
        raise PluginError(
            f"plugin {name!r} could not add its commands: {type(exc).__name__}: {exc}"
        ) from exc
    if not group.commands:
        raise PluginError(f"plugin {name!r} has no commands")
    return group
