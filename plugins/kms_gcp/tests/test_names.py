"""Names of keys and versions: the one canonical spelling, and what it covers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kms_gcp.names import KeyName

KEY = "projects/demo/locations/europe-west1/keyRings/ring/cryptoKeys/app"
VERSION = f"{KEY}/cryptoKeyVersions/3"

_ID = st.from_regex(r"[a-zA-Z0-9_-]{1,63}", fullmatch=True)


@given(_ID, _ID, st.none() | st.integers(1, 9_999_999_999).map(str))
def test_name_and_uri_are_read_back(ring: str, key: str, version: str | None) -> None:
    """What a name is written as is what it is read from."""
    name = KeyName("demo-project", "eur4", ring, key, version)
    assert KeyName.parse(str(name)) == name
    assert KeyName.of_uri(name.uri) == name


@given(st.text())
def test_other_text_is_no_name(text: str) -> None:
    """Nothing raises, and only the canonical spelling is a name."""
    name = KeyName.parse(text)
    assert name is None or str(name) == text


@pytest.mark.parametrize(
    "text",
    [
        f"{KEY}/",
        f"{KEY}\n",
        f"/{KEY}",
        f"{KEY}/cryptoKeyVersions",
        f"{KEY}/cryptoKeyVersions/0",
        f"{KEY}/cryptoKeyVersions/01",
        f"{KEY}/cryptoKeyVersions/1/",
        f"{KEY}/cryptoKeyVersions/x",
        f"{KEY}/cryptoKeyVersions/\u0661",  # a digit, elsewhere
        KEY.replace("demo", "123456789"),  # a project's number
        KEY.replace("demo", "Demo"),
        KEY.replace("ring/", "ri/ng/"),
        KEY.replace("app", "a" * 64),
        KEY.replace("cryptoKeys", "cryptokeys"),
    ],
)
def test_near_misses_are_no_names(text: str) -> None:
    """A slip in a name does not make it the name of something else."""
    assert KeyName.parse(text) is None
    assert KeyName.of_uri(f"gcp-kms://{text}") is None


def test_version_is_not_taken_for_a_key() -> None:
    """The name of a version names the version, and its key is the rest."""
    name = KeyName.parse(VERSION)
    assert name is not None
    assert (name.key, name.version) == ("app", "3")
    assert str(name.parent) == KEY


def test_project_of_a_domain_is_a_project() -> None:
    """Old projects have a domain before the colon."""
    name = KeyName.parse(KEY.replace("demo", "example.com:demo"))
    assert name is not None
    assert name.project == "example.com:demo"


@pytest.mark.parametrize(
    ("text", "project", "full"),
    [
        (KEY, None, KEY),
        (KEY, "demo", KEY),
        (VERSION, None, VERSION),
        ("europe-west1/ring/app", "demo", KEY),
        ("europe-west1/ring/app/3", "demo", VERSION),
    ],
)
def test_configured_forms_name_the_same(text: str, project: str | None, full: str) -> None:
    """In full, or short with a project."""
    assert str(KeyName.configured(text, project)) == full


@pytest.mark.parametrize(
    ("text", "project", "field"),
    [
        ("europe-west1/ring/app", None, "project: is missing"),
        ("ring/app", "demo", "key:"),
        ("", "demo", "key:"),
        ("europe-west1/ring/app/0", "demo", "key:"),
        (KEY, "other", "project: 'other' is not that of key"),
        (KEY, "12345", "project: '12345'"),
        ("europe-west1/ring/app", "", "project: ''"),
    ],
)
def test_wrong_configuration_names_its_field(text: str, project: str | None, field: str) -> None:
    """The message begins with what is to be changed."""
    with pytest.raises(ValueError, match=f"^{field}"):
        KeyName.configured(text, project)


def test_key_covers_its_versions_and_a_version_itself() -> None:
    """A key stands for all its versions, a version for no other."""
    key, third = KeyName.configured(KEY, None), KeyName.configured(VERSION, None)
    fourth = KeyName.configured(VERSION.replace("/3", "/4"), None)
    other = KeyName.configured(KEY.replace("app", "other"), None)
    assert key.covers(key)
    assert key.covers(third)
    assert third.covers(third)
    assert not third.covers(fourth)
    assert not third.covers(key)
    assert not key.covers(other)
