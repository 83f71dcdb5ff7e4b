"""Settings: what is refused, and that the message names the field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kms_core import Duration, Secret
from kms_gcp.settings import DEFAULT_ENDPOINT, GcpKmsSettings, is_loopback

KEY = "projects/demo/locations/europe-west1/keyRings/ring/cryptoKeys/app"


def settings(**table: Any) -> GcpKmsSettings:
    """Those of a good key, and ``table``."""
    return GcpKmsSettings(**{"key": KEY, **table})


def test_key_is_all_that_is_needed() -> None:
    """The rest has defaults: Google's endpoint over TLS."""
    made = settings()
    assert made.address == DEFAULT_ENDPOINT
    assert str(made.configured_key) == KEY
    assert made.retired_keys == frozenset()
    assert not made.insecure


def test_retired_keys_are_taken_apart() -> None:
    """Keys, and single versions."""
    version = f"{KEY}/cryptoKeyVersions/1"
    assert {str(name) for name in settings(also_open=(KEY, version)).retired_keys} == {KEY, version}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"key": "app"}, "key: 'app'"),
        ({"key": "europe-west1/ring/app"}, "project: is missing"),
        ({"project": "other"}, "project: 'other'"),
        ({"also_open": ("europe-west1/ring/app",)}, "also_open: 'europe-west1/ring/app'"),
        ({"endpoint": "https://kms.example"}, "endpoint: must be HOST:PORT"),
        ({"endpoint": "kms.example"}, "endpoint: must be HOST:PORT"),
        ({"endpoint": "kms.example:0"}, "endpoint: must be HOST:PORT"),
        ({"endpoint": "kms.example:65536"}, "endpoint: must be HOST:PORT"),
        ({"endpoint": "unix:/tmp/socket:1"}, "endpoint: must be HOST:PORT"),
        ({"endpoint": "user@kms.example:443"}, "endpoint: must be HOST:PORT"),
        ({"insecure": True}, "insecure: goes together with endpoint"),
        ({"insecure": True, "endpoint": "kms.example:443"}, "insecure: only goes to a loopback"),
        ({"insecure": True, "endpoint": "10.0.0.1:443"}, "insecure: only goes to a loopback"),
        ({"quota_project": "123"}, "quota_project: '123'"),
        ({"ca_file": Path("absent.pem")}, "ca_file: absent.pem is not a file"),
        ({"credentials_file": Path("absent.json")}, "credentials_file: absent.json is not a file"),
        ({"attempt_timeout": Duration(0)}, "attempt_timeout: must be more than 0"),
        ({"attempt_timeout": Duration(601)}, "attempt_timeout: must be more than 0 and at most"),
    ],
)
def test_wrong_settings_name_the_field(table: dict[str, Any], message: str) -> None:
    """Each begins with the field that is to be changed."""
    with pytest.raises(ValueError, match=f"^{message}"):
        settings(**table)


@pytest.mark.parametrize("name", ["ca_file", "credentials_file", "token", "quota_project"])
def test_insecure_has_no_use_for_credentials(tmp_path: Path, name: str) -> None:
    """Nothing secret is ever sent in the clear, so it is not taken either."""
    file = tmp_path / "file"
    file.touch()
    values = {"token": Secret("t"), "quota_project": "demo-project"}
    with pytest.raises(ValueError, match=f"^{name}: contradicts insecure"):
        settings(insecure=True, endpoint="127.0.0.1:1", **{name: values.get(name, file)})


def test_token_and_file_exclude_each_other(tmp_path: Path) -> None:
    """One identity is enough."""
    file = tmp_path / "credentials.json"
    file.touch()
    with pytest.raises(ValueError, match=r"^token: contradicts credentials_file"):
        settings(token=Secret("t"), credentials_file=file)


@pytest.mark.parametrize("token", ["", "two words", "line\nbreak", "umläut"])
def test_token_that_fits_no_header_is_refused_unseen(token: str) -> None:
    """It would be logged by gRPC."""
    with pytest.raises(ValueError, match=r"^token: must be visible ASCII") as caught:
        settings(token=Secret(token))
    assert not token or token not in str(caught.value)


@pytest.mark.parametrize(
    ("endpoint", "local"),
    [
        ("127.0.0.1:1", True),
        ("localhost:1", True),
        ("[::1]:1", True),
        ("10.0.0.1:1", False),
        ("localhost.example:1", False),
        (DEFAULT_ENDPOINT, False),
    ],
)
def test_loopback_is_this_machine_only(endpoint: str, local: bool) -> None:  # noqa: FBT001
    """Names and addresses that never leave it."""
    assert is_loopback(endpoint) is local


def test_settings_do_not_show_the_token() -> None:
    """Neither in a log nor in a traceback."""
    assert "hush" not in repr(settings(token=Secret("hush")))
