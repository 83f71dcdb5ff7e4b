"""What every test relies on: no configuration from outside, and property tests without a clock."""

from __future__ import annotations

import os
from collections.abc import Iterator

import hypothesis
import pytest

# A shared machine may stall any example; how long one takes says nothing about whether it is right.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")

#: Settings that the library or an SDK would pick up from the developer's own environment.
OUTSIDE = ("AWS_", "AZURE_", "BOTO_", "GCP_", "GOOGLE_", "KMS_", "PKCS11_")


@pytest.fixture(autouse=True, scope="session")
def _no_configuration_from_outside(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[None]:
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(OUTSIDE)]:
            patch.delenv(name)
        patch.setenv("HOME", str(home))
        patch.setenv("XDG_CONFIG_HOME", str(home / ".config"))
        yield
