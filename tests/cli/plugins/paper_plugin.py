"""A third party's plugin whose services are folders: a file in one makes its hook fail.

``<state>/<key>.<hook>`` holds the name of the error that the hook raises for that key.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import click
from attrs import frozen
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

import kms_core
from kms_core import Ciphertext, Context, Health, InvalidCiphertext, hookimpl
from kms_core.types import Protection


@frozen
class PaperSettings:
    key: str
    state: Path = Path()


class PaperProvider:
    """AES-256-GCM under a digest of the key's name, so that every process has the same keys."""

    type_name: ClassVar[str] = "paper"
    settings: ClassVar[type[Any]] = PaperSettings
    wrap_algs: ClassVar[frozenset[int]] = frozenset({0x7FFF})
    protection: Protection = "software"

    def __init__(self, settings: PaperSettings) -> None:
        self._settings = settings
        self._aead = AESGCM(hashlib.sha256(settings.key.encode()).digest())

    @property
    def key_uri(self) -> str:
        return f"paper://{self._settings.key}"

    def match(self, key_uri: str) -> str | None:
        return self._settings.key if key_uri == self.key_uri else None

    def domain(self, key_uri: str) -> str:
        return key_uri

    @hookimpl
    def encrypt(self, key_id: str, plaintext: bytes | bytearray, context: Context) -> Ciphertext:
        self._may("encrypt")
        iv = os.urandom(12)
        data = iv + self._aead.encrypt(iv, plaintext, context.encoded)
        return Ciphertext(data, self.key_uri, wrap_alg=0x7FFF)

    @hookimpl
    def decrypt(self, key_id: str, ciphertext: Ciphertext, context: Context) -> bytes:
        self._may("decrypt")
        try:
            return self._aead.decrypt(ciphertext.data[:12], ciphertext.data[12:], context.encoded)
        except (InvalidTag, ValueError):
            raise InvalidCiphertext("authentication failed") from None

    @hookimpl
    def health(self, key_id: str) -> Health:
        self._may("health")
        return Health(ok=True, reason="on \x1b[31mpaper")

    def _may(self, hook: str) -> None:
        script = self._settings.state / f"{self._settings.key}.{hook}"
        if script.exists():
            raise getattr(kms_core, script.read_text())(f"{hook} is\nscripted")


@click.command()
@click.argument("name")
def greet(name: str) -> int:
    """Greet NAME."""
    click.echo(f"hello {name}")
    return 7  # which is no exit code


@click.command()
@click.argument("error")
def fail(error: str) -> None:
    """Raise ERROR."""
    kinds = {kind.__name__: kind for kind in (KeyboardInterrupt, BrokenPipeError, ValueError)}
    raise kinds.get(error) or getattr(kms_core, error)("a secret\nis here")


@hookimpl
def kms_register_providers(register: Callable[[type[Any]], None]) -> None:
    """Register ``PaperProvider``."""
    register(PaperProvider)


@hookimpl
def kms_register_commands(commands: click.Group) -> None:
    """Add ``greet`` and ``fail``."""
    commands.add_command(greet)
    commands.add_command(fail)
