"""The key under test itself: recognised, well, described and rotated."""

from __future__ import annotations

import os
from typing import Any, get_args

import pytest

from kms_core.testing.checks import (
    KEY_BYTES,
    encrypt,
    expect,
    expect_ciphertext,
    expect_key_uri,
    expect_no_match,
    expect_opens,
    kind_of,
)
from kms_core.testing.hooks import call
from kms_core.testing.suite.declared import Declared, needs
from kms_core.types import Health, KeyInfo, Protection


class Keeping(Declared):
    """What is asked about keys of any kind."""

    def test_configured_key_matches(self, provider: Any) -> None:
        """The instance recognises the configured key under the name it gives it."""
        matched = provider.match(provider.key_uri)
        expect(isinstance(matched, str) and bool(matched), f"match(key_uri) is {matched!r}")

    def test_foreign_key_does_not_match(self, provider: Any) -> None:
        """Another key of the same provider type is not ours."""
        if self.foreign_key_uri is None:
            pytest.skip("declared: foreign_key_uri = None")
        expect_no_match(provider, self.foreign_key_uri)

    def test_health_is_ok(self, provider: Any, key_id: str) -> None:
        """An instance in working order says so."""
        health = call(provider, "health", key_id=key_id)
        expect(isinstance(health, Health), f"health returned {kind_of(health)}")
        expect(health.ok is True, f"health of a working instance is {health.ok!r}")

    @needs("describes")
    def test_key_is_described(self, provider: Any, key_id: str) -> None:
        """The description names the key by a URI that the instance recognises."""
        info = call(provider, "describe_key", key_id=key_id)
        expect(isinstance(info, KeyInfo), f"describe_key returned {kind_of(info)}")
        expect_key_uri(provider, info.key_uri)
        expect(provider.match(info.key_uri) is not None, "match refuses the described key_uri")
        expect(info.state == "enabled", f"the state of a working key is {info.state!r}")
        expect(info.protection in get_args(Protection), f"protection is {info.protection!r}")
        expect(
            not info.versions or info.primary_version in info.versions,
            f"primary_version {info.primary_version!r} is not among versions",
        )

    @needs("encrypts", "rotates", "may_rotate")
    def test_rotation_is_recorded_and_old_wraps_open(self, provider: Any, key_id: str) -> None:
        """A rotated key wraps under a new version and unwraps under the old one."""
        plaintext = os.urandom(KEY_BYTES)
        old = encrypt(provider, key_id, plaintext)
        info = call(provider, "rotate_key", key_id=key_id)
        expect(isinstance(info, KeyInfo), f"rotate_key returned {kind_of(info)}")
        new = encrypt(provider, key_id, plaintext)
        expect_ciphertext(provider, new)
        expect(
            new.key_version is not None and new.key_version != old.key_version,
            f"key_version was {old.key_version!r} and is {new.key_version!r} after rotation",
        )
        expect(
            info.primary_version == new.key_version,
            f"rotate_key names {info.primary_version!r} primary, encrypt used {new.key_version!r}",
        )
        for sealed in (old, new):
            expect_opens(provider, sealed, plaintext)

    @needs("encrypts", "rotates", "may_rotate")
    def test_every_version_opens_what_it_wrapped(self, provider: Any, key_id: str) -> None:
        """After two rotations there are three versions, each recorded and each in use."""
        wraps = []
        for _ in range(3):
            plaintext = os.urandom(KEY_BYTES)
            wraps.append((plaintext, encrypt(provider, key_id, plaintext)))
            if len(wraps) < 3:
                call(provider, "rotate_key", key_id=key_id)
        versions = {sealed.key_version for _, sealed in wraps}
        expect(None not in versions, "key_version is not recorded")
        expect(len(versions) == 3, f"three versions wrapped, and key_version says {versions}")
        for plaintext, sealed in wraps:
            expect_opens(provider, sealed, plaintext)
