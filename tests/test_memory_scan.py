"""What another process finds in the memory of one that seals and opens: no key that is not in use.

The keys are derived here from what the token or the key store unwraps, in a third process.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kms_core.testing.servers import SoftHsm
from kms_core.testing.servers.softhsm import HOW_TO_INSTALL
from kms_local import KeyStore
from tests.memory_scan import POLICIES, cannot_scan, child, count, in_base64, stages

LOCAL = """
[instances.local]
provider = "local"
path = "{path}"
"""
PKCS11 = """
[instances.token]
provider = "pkcs11"
module = "{module}"
token = "{token}"
pin = {{ file = "{pin}" }}
protection = "software"
key = "{key}"
mechanism = "{mechanism}"
"""
KINDS = {"aes-gcm": "AES", "aes-kwp": "AES", "rsa-oaep-sha1": "RSA"}  # what SoftHSM can
#: The key is split between two stores, and put together again.
THRESHOLD = """
[envelope]
policy = "2 of 2"
[instances.first]
provider = "local"
path = "{path}/first"
domain = "one"
[instances.second]
provider = "local"
path = "{path}/second"
domain = "two"
"""


@pytest.fixture(scope="module", autouse=True)
def _memory_can_be_read() -> None:
    """Linux, and a process may read those that it started."""
    reason = cannot_scan()
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoftHsm]:
    """A token with a key of each kind, used by other processes only."""
    if SoftHsm.find() is None:
        pytest.skip(HOW_TO_INSTALL)
    with SoftHsm(tmp_path_factory.mktemp("token")) as made:
        made.create_key("AES", "AES")
        made.create_key("RSA", "RSA")
        yield made


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """A configuration with one key store."""
    KeyStore.create(tmp_path / "keys")
    return written(tmp_path, LOCAL.format(path=(tmp_path / "keys").as_posix()))


@pytest.fixture(params=KINDS)
def pkcs11(request: pytest.FixtureRequest, tmp_path: Path, token: SoftHsm) -> Path:
    """A configuration with that token, for each way to wrap."""
    pin = tmp_path / "pin"
    pin.write_text(token.pin)
    pin.chmod(0o600)
    table = PKCS11.format(
        module=token.module.as_posix(),
        token=token.token,
        pin=pin.as_posix(),
        key=KINDS[request.param],
        mechanism=request.param,
    )
    return written(tmp_path, table)


def written(folder: Path, table: str) -> Path:
    """The configuration file with this instance."""
    config = folder / "kms.toml"
    config.write_text(POLICIES + table, encoding="utf-8")
    return config


def test_a_key_that_lies_open_is_found() -> None:
    """The scan sees what is there, and as often as it is there."""
    key, other = os.urandom(32), os.urandom(32)
    with child() as process:
        process.does("hold", key=key.hex())

        assert count(process.pid, {"key": [key], "other": [other]}) == {"key": 1, "other": 0}


@pytest.mark.parametrize("before", range(4))
def test_a_key_is_known_in_base64(before: int) -> None:
    """Wherever it begins, every character that depends on nothing else."""
    key = bytes(range(200, 232))
    text = base64.urlsafe_b64encode(os.urandom(before) + key)

    assert any(spelling in text for spelling in in_base64(key))
    assert all(len(spelling) >= 41 for spelling in in_base64(key))


def expect_no_keys(config: Path) -> None:
    """Nothing but the subkeys that a cipher in use holds, and nothing after forgetting."""
    found = dict(stages(config))
    in_use = {name: found["working"].pop(name) for name in ("sealed K_sub", "opened K_sub")}

    assert set(found) == {"working", "forget", "close"}
    assert {stage: {k: v for k, v in each.items() if v} for stage, each in found.items()} == {
        "working": {},
        "forget": {},
        "close": {},
    }
    assert all(copies <= 2 for copies in in_use.values())  # one cipher: two key schedules


def test_a_local_key_store_leaves_no_keys(local: Path) -> None:
    """Neither data keys nor what is derived from them."""
    expect_no_keys(local)


def test_a_threshold_leaves_no_keys(tmp_path: Path) -> None:
    """Nor does putting shares together."""
    for name in ("first", "second"):
        KeyStore.create(tmp_path / name)
    expect_no_keys(written(tmp_path, THRESHOLD.format(path=tmp_path.as_posix())))


def test_a_token_leaves_no_keys(pkcs11: Path) -> None:
    """Whatever python-pkcs11 returns is erased, in every way to wrap."""
    expect_no_keys(pkcs11)
