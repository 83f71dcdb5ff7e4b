"""A key store of one's own for every test, and property tests without a clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from kms_local import KeyStore, LocalProvider, LocalSettings

# A shared machine may stall any example; how long one takes says nothing about whether it is right.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")

Open = Callable[..., LocalProvider]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the test's key store lies; nothing is there yet."""
    return tmp_path / "kms-local.keys"


@pytest.fixture
def store(path: Path) -> Iterator[KeyStore]:
    """A new store without a passphrase, with the key ``default``."""
    store = KeyStore.create(path)
    yield store
    store.close()


@pytest.fixture
def open_provider(path: Path) -> Iterator[Open]:
    """Makes instances on the test's key store, with more settings if given; closes them."""
    opened: list[LocalProvider] = []

    def make(**settings: Any) -> LocalProvider:
        opened.append(LocalProvider(LocalSettings(**{"path": path, **settings})))
        return opened[-1]

    yield make
    for provider in opened:
        provider.close()


@pytest.fixture
def provider(store: KeyStore, open_provider: Open) -> LocalProvider:
    """An instance on a new store."""
    return open_provider()
