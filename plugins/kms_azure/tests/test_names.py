"""Names of vaults and keys: what is recognised, and in which one spelling."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kms_azure.names import VaultKey, split_https, vault_of

VAULT = "app.vault.azure.net"
VERSION = "0123456789abcdef0123456789abcdef"
OTHER_VERSION = "f" * 32


@pytest.mark.parametrize(
    ("url", "vault"),
    [
        ("https://app.vault.azure.net", VAULT),
        ("https://APP.Vault.Azure.net/", VAULT),
        ("https://app.vault.azure.net:443", VAULT),
        ("https://app.vault.azure.net:8443", f"{VAULT}:8443"),
        ("https://127.0.0.1:9", "127.0.0.1:9"),
        ("https://[::1]:9", "[::1]:9"),
        ("HTTPS://localhost", "localhost"),
    ],
)
def test_vault_has_one_spelling(url: str, vault: str) -> None:
    """Case, the default port and a final slash make no difference."""
    assert vault_of(url) == vault


@pytest.mark.parametrize(
    "url",
    [
        "",
        "app.vault.azure.net",
        "http://app.vault.azure.net",
        "https://",
        "https:///keys",
        "https://user@app.vault.azure.net",
        "https://user:word@app.vault.azure.net",
        "https://@app.vault.azure.net",
        "https://app.vault.azure.net/keys",
        "https://app.vault.azure.net?x=y",
        "https://app.vault.azure.net#x",
        "https://app.vault.azure.net:x",
        "https://app.vault.azure.net:99999",
        "https://app.vault.azure.net\\evil",
        "https://app vault",
        "https://[::1",
        "https://\u00e4.vault.azure.net",
        "https://app.vault.azure.net\n",
    ],
)
def test_anything_else_is_no_vault(url: str) -> None:
    """Only https with a host, and nothing that another parser might read differently."""
    assert vault_of(url) is None


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("kek", VaultKey(VAULT, "kek")),
        (f"kek/{VERSION}", VaultKey(VAULT, "kek", VERSION)),
        ("https://APP.vault.azure.net/keys/kek", VaultKey(VAULT, "kek")),
        (f"https://{VAULT}:443/keys/kek/{VERSION}", VaultKey(VAULT, "kek", VERSION)),
        ("https://other.vault.azure.net/keys/kek", VaultKey("other.vault.azure.net", "kek")),
    ],
)
def test_keys_are_named_in_three_ways(text: str, key: VaultKey) -> None:
    """By name, by name and version, and by the identifier that the service shows."""
    assert VaultKey.parse(text, VAULT) == key


@pytest.mark.parametrize(
    "text",
    [
        "",
        "k_k",
        "k" * 128,
        "kek/",
        "kek/1",
        f"kek/{VERSION}/x",
        f"kek/{VERSION.upper()}x",
        f"https://{VAULT}/secrets/kek",
        f"https://{VAULT}/keys/",
        f"https://{VAULT}/keys/kek/{VERSION}/x",
        f"http://{VAULT}/keys/kek",
    ],
)
def test_anything_else_is_no_key(text: str) -> None:
    """Neither other objects of a vault nor names that the service would refuse."""
    assert VaultKey.parse(text, VAULT) is None


def test_a_name_needs_a_vault() -> None:
    """A name alone says nothing."""
    assert VaultKey.parse("kek", None) is None


def test_key_uri_is_in_lower_case() -> None:
    """The service takes no notice of case, and recipients are matched by bytes."""
    key = VaultKey(VAULT, "KeK", VERSION)
    assert key.uri == f"azure-keyvault://{VAULT}/keys/kek/{VERSION}"
    assert key.path == f"/keys/KeK/{VERSION}"
    assert str(key) == f"https://{VAULT}/keys/KeK/{VERSION}"
    assert VaultKey.of_uri(key.uri) == key
    assert hash(VaultKey.of_uri(key.uri)) == hash(key)


@pytest.mark.parametrize(
    "key_uri",
    [
        f"azure-keyvault://{VAULT}/keys/KEK/{VERSION}",
        f"azure-keyvault://{VAULT.upper()}/keys/kek/{VERSION}",
        f"azure-keyvault://{VAULT}:443/keys/kek/{VERSION}",
        f"azure-keyvault:{VAULT}/keys/kek",
        f"{VAULT}/keys/kek",
        f"azure-keyvault://{VAULT}/keys/kek/",
        f"azure-keyvault://{VAULT}/keys/kek/{VERSION}\n",
        f"azure-keyvault://{VAULT}/keys/kek?x",
        f"azure-keyvault://@{VAULT}/keys/kek",
        f"azure-keyvault://azure-keyvault://{VAULT}/keys/kek",
    ],
)
def test_other_spellings_are_no_key_uri(key_uri: str) -> None:
    """One key has one key URI."""
    assert VaultKey.of_uri(key_uri) is None


def test_a_name_covers_its_versions() -> None:
    """A version covers nothing but itself, and nothing covers a key of another vault."""
    name, version = VaultKey(VAULT, "kek"), VaultKey(VAULT, "KEK", VERSION)
    assert name.covers(version)
    assert name.covers(name)
    assert version.covers(version)
    assert not version.covers(name)
    assert not version.covers(VaultKey(VAULT, "kek", OTHER_VERSION))
    assert not name.covers(VaultKey(VAULT, "other", VERSION))
    assert not name.covers(VaultKey("other.vault.azure.net", "kek", VERSION))


@given(st.text(max_size=80))
def test_no_text_makes_a_parser_raise(text: str) -> None:
    """What is read may have come from anybody."""
    for parse in (vault_of, split_https, VaultKey.of_uri, VaultKey.of_identifier):
        parse(text)
        parse(f"https://{text}")
        parse(f"azure-keyvault://{text}")


@given(
    st.from_regex(r"[a-z][a-z0-9-]{0,20}\.vault\.azure\.net(:[1-9][0-9]{0,3})?", fullmatch=True),
    st.from_regex(r"[0-9a-z-]{1,127}", fullmatch=True),
    st.none() | st.from_regex(r"[0-9a-f]{32}", fullmatch=True),
)
def test_key_uris_name_what_they_were_made_from(host: str, name: str, version: str | None) -> None:
    """There and back."""
    vault = vault_of(f"https://{host}")
    assert vault is not None
    key = VaultKey(vault, name, version)
    assert VaultKey.of_uri(key.uri) == key
    assert VaultKey.of_identifier(str(key)) == key
    assert VaultKey.parse(key.key_id, vault) == key
