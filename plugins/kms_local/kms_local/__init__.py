"""Keys in one private file on this machine: the provider type ``local``.

The entry point names this module, so it only registers.  Everything else is imported when it is
first needed: whoever lists the installed plugins pays for no cryptography and no click.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from kms_core import hookimpl

if TYPE_CHECKING:
    from kms_local.provider import LocalProvider, LocalSettings
    from kms_local.store import KeyStore

__all__ = ["DEFAULT_FILE_NAME", "KeyStore", "LocalProvider", "LocalSettings"]

#: Where a key store lies unless somebody says otherwise, in the current directory.
DEFAULT_FILE_NAME: Final = "kms-local.keys"


@hookimpl
def kms_register_providers(register: Callable[[type[Any]], None]) -> None:
    """Register ``LocalProvider``."""
    from kms_local.provider import LocalProvider

    register(LocalProvider)


@hookimpl
def kms_register_commands(commands: Any) -> None:
    """Add the key store's commands to the group ``kms local``."""
    from kms_local.commands import COMMANDS

    for command in COMMANDS:
        commands.add_command(command)


def __getattr__(name: str) -> object:
    if name == "KeyStore":
        from kms_local.store import KeyStore

        return KeyStore
    if name in {"LocalProvider", "LocalSettings"}:
        from kms_local import provider

        return getattr(provider, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
