"""Key URIs: RFC 7512 in, one spelling out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kms_pkcs11.uri import KeyName

LABELS = st.text(
    st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=20
)


@given(token=LABELS, serial=st.just("") | LABELS, label=LABELS, id=st.binary(max_size=20))
def test_every_name_survives_its_uri(token: str, serial: str, label: str, id: bytes) -> None:  # noqa: A002
    """Whatever characters labels have."""
    name = KeyName(token, serial, label, id)
    assert KeyName.of_uri(name.uri) == name
    assert name.uri.isascii()
    assert name.uri.isprintable()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("pkcs11:token=t;object=k", KeyName("t", "", "k")),
        ("pkcs11:object=k;token=t", KeyName("t", "", "k")),
        ("pkcs11:token=my%20token;id=%0a%10", KeyName("my token", "", "", b"\x0a\x10")),
        ("pkcs11:id=%0A;serial=01ab;type=private", KeyName("", "01ab", "", b"\x0a")),
        ("pkcs11:token=t;object=a:b@c", KeyName("t", "", "a:b@c")),
        ("pkcs11:", KeyName()),
    ],
)
def test_spellings_of_the_rfc_are_understood(text: str, name: KeyName) -> None:
    """Order and encoding are free there; attributes that only locate are taken and not kept."""
    assert KeyName.parse(text) == name


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("aws-kms:token=t", "does not begin with pkcs11:"),
        ("pkcs11:token=t?pin-value=1234", "module and pin are settings"),
        ("pkcs11:token", "an attribute 'token' that names no key"),
        ("pkcs11:colour=red", "'colour' that names no key"),
        ("pkcs11:token=a;token=b", "the attribute token twice"),
        ("pkcs11:token=%zz", "a malformed value of token"),
        ("pkcs11:token=%ff", "a token that is not UTF-8"),
        ("pkcs11:token=%0a", "a token that is not printable"),
        ("pkcs11:object=" + "a" * 256, "an object of more than 255 bytes"),
    ],
)
def test_other_text_is_refused(text: str, complaint: str) -> None:
    """With what is wrong, and without the PIN that somebody put there."""
    with pytest.raises(ValueError, match=complaint.replace("an object", "a object")) as caught:
        KeyName.parse(text)
    assert "1234" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "pkcs11:object=k;token=t",
        "pkcs11:token=t;object=%6B",
        "pkcs11:token=t;object=k;id=%0a",
        "pkcs11:token=t;object=k;",
        "pkcs11:token=t;type=private;object=k",
        "PKCS11:token=t;object=k",
    ],
)
def test_only_the_canonical_spelling_is_a_recipients(text: str) -> None:
    """One key, one name."""
    assert KeyName.of_uri(text) is None


@given(st.text(max_size=60).map("pkcs11:".__add__))
def test_no_text_makes_parsing_fail_otherwise(text: str) -> None:
    """What is in an envelope is anybody's."""
    name = KeyName.of_uri(text)
    assert name is None or name.uri == text
