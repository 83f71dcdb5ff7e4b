"""The suite every provider passes, bare and under a passphrase."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest

from kms_core import Secret
from kms_core.testing import ProviderConformance
from kms_local import KeyStore, LocalProvider, LocalSettings


class TestLocal(ProviderConformance):
    """A store without a passphrase."""

    rotates = True
    foreign_key_uri = "local://0123456789abcdef/default/1"
    plugin_module = "kms_local"
    sdk_modules = ("cryptography", "click")

    passphrase: ClassVar[Secret | None] = None

    @pytest.fixture
    def provider(self, path: Path, open_provider: Any) -> LocalProvider:
        """An instance on a new store."""
        KeyStore.create(path, passphrase=self.passphrase).close()
        instance: LocalProvider = open_provider(passphrase=self.passphrase)
        return instance

    @pytest.fixture
    def key_id(self) -> str:
        """The configured key."""
        return "default"

    @pytest.fixture
    def other_key(self, provider: LocalProvider, path: Path) -> tuple[LocalProvider, str]:
        """Another key of the same store."""
        KeyStore(path, passphrase=self.passphrase).add_key("other")
        settings = LocalSettings(path=path, key="other", passphrase=self.passphrase)
        return LocalProvider(settings), "other"


class TestLocalWithPassphrase(TestLocal):
    """The same promises hold for a sealed store."""

    passphrase = Secret("correct horse battery staple")
