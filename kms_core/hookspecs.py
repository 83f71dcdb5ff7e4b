# mypy: disable-error-code="empty-body"
# (a hook specification is a signature: it has no body)
"""The contract with plugins, version 1 (docs/contract.md).

A plugin is a module found through an entry point of group ``kms_core.v1``; the entry point's name
is the provider type, or the name by which the configuration's ``plugins`` list asks for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import pluggy

if TYPE_CHECKING:
    from kms_core.context import Context
    from kms_core.types import (
        Ciphertext,
        DataKey,
        Event,
        Health,
        InstanceInfo,
        KeyInfo,
        PublicKey,
        Signature,
    )

PROJECT: Final = "kms_core"
API_VERSION: Final = 1
GROUP: Final = f"kms_core.v{API_VERSION}"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class ProviderSpec:
    """Called on exactly one instance, inside every loaded wrapper.

    A provider marks its methods with ``@hookimpl``, names every argument (``instance`` may be left
    out) and gives none a default.  ``encrypt``, ``decrypt`` and ``health`` are required; every
    other hook is a capability that may be absent.  They raise the errors of ``kms_core`` only.
    """

    @hookspec(firstresult=True)
    def encrypt(
        self,
        instance: InstanceInfo,
        key_id: str,
        plaintext: bytes | bytearray,
        context: Context,
    ) -> Ciphertext:
        """Wrap 1 to 4096 bytes under ``key_id``, bound to ``context``."""

    @hookspec(firstresult=True)
    def decrypt(
        self,
        instance: InstanceInfo,
        key_id: str,
        ciphertext: Ciphertext,
        context: Context,
    ) -> bytes | bytearray:
        """Unwrap.  ``InvalidCiphertext`` unless ciphertext, key and context belong together."""

    @hookspec(firstresult=True)
    def generate_data_key(self, instance: InstanceInfo, key_id: str, context: Context) -> DataKey:
        """A fresh 32-byte key and its wrap.  Absent: the core draws it and calls ``encrypt``."""

    @hookspec(firstresult=True)
    def health(self, instance: InstanceInfo, key_id: str) -> Health:
        """Can this key be used now?  Cheap, and one round trip at most."""

    @hookspec(firstresult=True)
    def sign(self, instance: InstanceInfo, key_id: str, data: bytes, algorithm: str) -> Signature:
        """Sign ``data``: the message, up to 1 MiB, never its digest.

        ``algorithm`` is one of ``SIGNATURE_ALGORITHMS`` or ``MAC_ALGORITHMS`` (kms_core.types);
        ``InvalidRequest`` if the key does not do it.
        """

    @hookspec(firstresult=True)
    def verify(
        self,
        instance: InstanceInfo,
        key_id: str,
        data: bytes,
        signature: Signature,
        algorithm: str,
    ) -> bool:
        """Whether the service accepts the signature; ``key_id`` is what ``match`` gave.

        The core verifies with the public key where there is one, so this is for MACs.  A signature
        that is wrong in whatever way is ``False``, not an error.
        """

    @hookspec(firstresult=True)
    def public_key(self, instance: InstanceInfo, key_id: str) -> PublicKey:
        """The public key of an asymmetric key, in the version that ``key_id`` names.

        ``InvalidRequest`` if the key has none.
        """

    @hookspec(firstresult=True)
    def describe_key(self, instance: InstanceInfo, key_id: str) -> KeyInfo:
        """State, versions and protection level of a key."""

    @hookspec(firstresult=True)
    def rotate_key(self, instance: InstanceInfo, key_id: str) -> KeyInfo:
        """Make a new version primary; old versions go on decrypting."""


class PluginSpec:
    """Called on every loaded plugin module."""

    @hookspec
    def kms_register_providers(self, register: Callable[[type[Any]], None]) -> None:
        """Call ``register`` with each provider class."""

    @hookspec
    def kms_event(self, event: Event) -> None:
        """Watch.  Raising changes nothing but a log line."""

    @hookspec
    def kms_register_commands(self, commands: Any) -> None:
        """Add click commands to the group ``kms <plugin> …``."""
