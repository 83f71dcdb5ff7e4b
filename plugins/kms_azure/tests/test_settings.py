"""Settings: what is taken, and which mistake is told about which field."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from kms_azure.settings import AzureKeyVaultSettings, Credential
from kms_core import ConfigError, Duration, Kms, Secret

VAULT = "https://app.vault.azure.net"
HSM = "https://pool.managedhsm.azure.net"
VERSION = "0123456789abcdef0123456789abcdef"


def make(**changes: Any) -> AzureKeyVaultSettings:
    """Settings that are good but for the changes."""
    return AzureKeyVaultSettings(**{"key": "kek", "vault_url": VAULT, **changes})


def test_a_name_and_a_vault_are_enough() -> None:
    """Everything else has a default."""
    settings = make()
    assert settings.configured_key.uri == "azure-keyvault://app.vault.azure.net/keys/kek"
    assert settings.credential_kind == "default"
    assert settings.verify_challenge
    assert settings.attempt_timeout == 3.0
    assert settings.version_max_age == 300.0
    assert not settings.hsm


def test_an_identifier_is_enough() -> None:
    """It has the vault in it."""
    settings = AzureKeyVaultSettings(key=f"{VAULT}/keys/kek/{VERSION}")
    assert settings.configured_key.version == VERSION
    assert make(key=f"{VAULT}:443/keys/kek").configured_key == make().configured_key


def test_retired_keys_are_of_the_same_vault() -> None:
    """By name, with a version, or by identifier."""
    settings = make(also_open=("old", f"older/{VERSION}", f"{VAULT}/keys/oldest"))
    assert {key.key_id for key in settings.retired_keys} == {"old", f"older/{VERSION}", "oldest"}


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        (VAULT, "vault"),
        (HSM, "managed"),
        ("https://pool.managedhsm.azure.cn", "managed"),
        ("https://managedhsm.vault.azure.net", "vault"),
        ("https://127.0.0.1:8443", "vault"),
    ],
)
def test_a_managed_hsm_is_known_by_its_host(url: str, kind: str) -> None:
    """Whose keys are all held by an HSM."""
    assert make(vault_url=url).is_managed_hsm is (kind == "managed")


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("https://127.0.0.1:8443", "here"),
        ("https://[::1]:8443", "here"),
        ("https://localhost", "here"),
        ("https://localhost.example", "elsewhere"),
        ("https://10.0.0.1", "elsewhere"),
        (VAULT, "elsewhere"),
    ],
)
def test_loopback_is_recognised(url: str, place: str) -> None:
    """Whether a proxy may stand in between."""
    assert make(vault_url=url).is_loopback is (place == "here")


@pytest.mark.parametrize("credential", get_args(Credential))
def test_every_credential_is_taken(credential: Credential) -> None:
    """The ways of the Azure SDK to an identity."""
    assert make(credential=credential).credential_kind == credential


def test_token_and_secret_are_credentials_too() -> None:
    """They take the place of ``credential``."""
    assert make(token=Secret("t")).credential_kind == "token"
    client = make(client_secret=Secret("s"), client_id="app", tenant_id="tenant")
    assert client.credential_kind == "client-secret"


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("key", {"key": "k_k"}),
        ("key", {"key": ""}),
        ("key", {"key": f"{VAULT}/secrets/kek"}),
        ("key", {"key": "https://app.vault.azure.net/keys/kek/1", "vault_url": None}),
        ("vault_url", {"vault_url": None}),
        ("vault_url", {"vault_url": "http://app.vault.azure.net"}),
        ("vault_url", {"vault_url": "https://app.vault.azure.net/keys"}),
        ("vault_url", {"vault_url": "https://u:p@app.vault.azure.net"}),
        ("vault_url", {"key": "https://other.vault.azure.net/keys/kek"}),
        ("also_open", {"also_open": ("k_k",)}),
        ("also_open", {"also_open": ("https://other.vault.azure.net/keys/kek",)}),
        ("algorithm", {"algorithm": "RSA1_5"}),
        ("credential", {"credential": "browser"}),
        ("credential", {"credential": "cli", "token": Secret("t")}),
        (
            "credential",
            {
                "credential": "cli",
                "client_secret": Secret("s"),
                "client_id": "a",
                "tenant_id": "b",
            },
        ),
        ("client_secret", {"client_secret": Secret("s"), "token": Secret("t")}),
        ("client_secret", {"client_secret": Secret("s"), "client_id": "app"}),
        ("client_secret", {"client_secret": Secret("s"), "tenant_id": "tenant"}),
        ("client_id", {"client_id": "a b"}),
        ("client_id", {"client_id": "app", "credential": "cli"}),
        ("client_id", {"client_id": "app", "token": Secret("t")}),
        ("tenant_id", {"tenant_id": "x/../y"}),
        ("tenant_id", {"tenant_id": "t", "credential": "managed-identity"}),
        ("authority", {"authority": "login.microsoftonline.us"}),
        ("authority", {"authority": "http://login.microsoftonline.us"}),
        ("authority", {"authority": "https://login.example", "credential": "cli"}),
        ("api_version", {"api_version": "latest"}),
        ("api_version", {"api_version": "7.6&x=y"}),
        ("ca_file", {"ca_file": Path("/nowhere/ca.pem")}),
        ("connect_timeout", {"connect_timeout": Duration(0.0)}),
        ("attempt_timeout", {"attempt_timeout": Duration(601.0)}),
        ("version_max_age", {"version_max_age": Duration(0.0)}),
        ("max_connections", {"max_connections": 0}),
        ("max_connections", {"max_connections": 1001}),
    ],
)
def test_mistakes_name_their_field(field: str, changes: dict[str, Any]) -> None:
    """Whoever wrote the file has to find the line."""
    with pytest.raises(ValueError, match=field):
        make(**changes)


def test_secrets_do_not_show() -> None:
    """Settings end up in logs."""
    shown = repr(make(token=Secret("hush"))) + repr(
        make(client_secret=Secret("hush"), client_id="a", tenant_id="b")
    )
    assert "hush" not in shown


def test_the_core_builds_them_from_a_file(tmp_path: Path) -> None:
    """Every field has a type that configuration files know."""
    (tmp_path / "ca.pem").write_text("")
    (tmp_path / "secret").write_text("hush")
    file = tmp_path / "kms.toml"
    table = f"""
        [instances.azure]
        provider = "azure-keyvault"
        key = "kek"
        vault_url = "{VAULT}"
        also_open = ["old"]
        algorithm = "RSA-OAEP-256"
        hsm = true
        ca_file = "ca.pem"
        verify_challenge = false
        credential = "default"
        client_id = "app"
        tenant_id = "tenant"
        client_secret = {{ file = "{tmp_path / "secret"}" }}
        authority = "https://login.microsoftonline.us"
        api_version = "7.6"
        version_max_age = "1m"
        connect_timeout = "500ms"
        attempt_timeout = "2s"
        max_connections = 5
    """
    file.write_text(table)
    with Kms.from_config(file) as kms:
        assert [plugin.state for plugin in kms.plugins if plugin.name == "azure-keyvault"]
    file.write_text(table.replace('"RSA-OAEP-256"', '"ROT13"'))
    with pytest.raises(ConfigError, match="algorithm"):
        Kms.from_config(file)
