"""Settings: what is understood, and what is refused with one clear error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kms_core import Secret
from kms_pkcs11.settings import Pkcs11Settings
from kms_pkcs11.uri import KeyName

MODULE = Path("/usr/lib/some/module.so")


def made(**settings: Any) -> Pkcs11Settings:
    """Settings with these beside what is always needed."""
    return Pkcs11Settings(**{"module": MODULE, "token": "prod", "key": "kek", **settings})


@pytest.mark.parametrize(
    ("settings", "uri"),
    [
        ({}, "pkcs11:token=prod;object=kek"),
        ({"key_id": "0a10"}, "pkcs11:token=prod;object=kek;id=%0A%10"),
        ({"key": "", "key_id": "0a"}, "pkcs11:token=prod;id=%0A"),
        ({"token_serial": "77"}, "pkcs11:token=prod;serial=77;object=kek"),
        ({"token": "", "key": "pkcs11:token=t;object=k"}, "pkcs11:token=t;object=k"),
        ({"key": "pkcs11:object=k;id=%01", "key_id": "01"}, "pkcs11:token=prod;object=k;id=%01"),
    ],
)
def test_key_has_one_name_however_it_is_configured(settings: dict[str, str], uri: str) -> None:
    """By label, by id, by URI, or by several of these."""
    if not settings.get("key", "kek") and settings["key_id"] == "0a":
        assert made(**settings).name == KeyName("prod", "", "", b"\x0a")
        return
    assert made(**settings).name.uri == uri


def test_retired_keys_are_in_the_same_token() -> None:
    """By label or URI."""
    settings = made(also_open=("old", "pkcs11:object=older"))
    assert settings.retired == {KeyName("prod", "", "old"), KeyName("prod", "", "older")}


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"module": Path("module.so")}, "module: must be an absolute path"),
        ({"token": ""}, "token: name the token"),
        ({"key": ""}, "key: name the key"),
        ({"key_id": "xyz"}, "key_id: must be bytes in hexadecimal"),
        ({"key": "pkcs11:object=k;id=%01", "key_id": "02"}, "key_id: contradicts the id in key"),
        ({"key": "pkcs11:token=other;object=k"}, "token: contradicts the token in key"),
        ({"key": "pkcs11:object=k?pin-value=1"}, "key: has attributes after"),
        ({"also_open": ("pkcs11:token=other;object=k",)}, "also_open: .* in another token"),
        ({"also_open": ("pkcs11:colour=red",)}, "also_open: has an attribute 'colour'"),
        ({"mechanism": "aes-kwp", "gcm_iv": "module"}, "gcm_iv: is of no use"),
        ({"mechanism": "aes-kwp", "gcm_mechanism": 1}, "gcm_mechanism: is of no use"),
        ({"gcm_mechanism": 0}, "gcm_mechanism"),
        ({"max_sessions": 0}, "max_sessions"),
    ],
)
def test_what_makes_no_sense_is_refused(settings: dict[str, Any], complaint: str) -> None:
    """With the name of the setting."""
    with pytest.raises(ValueError, match=complaint):
        made(**settings)


def test_pin_is_never_shown() -> None:
    """Neither by the settings nor by what is made of them."""
    assert "1234567" not in repr(made(pin=Secret("1234567")))
