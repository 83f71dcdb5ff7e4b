"""Key URIs: what a recipient may be called, and which provider type a name belongs to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kms_core.errors import FormatError
from kms_core.uri import MAX_KEY_URI_BYTES, check_key_uri, encode_key_uri, provider_type

VISIBLE = st.characters(min_codepoint=0x21, max_codepoint=0x7E)


@given(st.text(VISIBLE, min_size=1, max_size=MAX_KEY_URI_BYTES))
def test_visible_ascii_survives_both_ways(key_uri: str) -> None:
    """A URI's bytes are its characters, and read back they are the same URI."""
    data = encode_key_uri(key_uri)

    assert data == key_uri.encode("ascii")
    assert check_key_uri(data) == key_uri


@given(st.binary(max_size=40))
def test_accepted_bytes_are_visible_ascii(data: bytes) -> None:
    """Every other byte is refused, wherever it stands."""
    acceptable = bool(data) and all(0x21 <= byte <= 0x7E for byte in data)
    try:
        assert check_key_uri(data).encode() == data
    except FormatError:
        assert not acceptable
    else:
        assert acceptable


def test_1_to_1024_bytes() -> None:
    """Both ends of the range are taken, and nothing beyond them."""
    longest = b"u" * 1024

    assert check_key_uri(b"u") == "u"
    assert check_key_uri(longest) == longest.decode()
    for data in (b"", longest + b"u"):
        with pytest.raises(FormatError, match="empty, too long or not visible ASCII"):
            check_key_uri(data)


@pytest.mark.parametrize(
    "key_uri",
    ["", "local://a b", "local://a\n", "\tlocal://a", "local://\x7f", "local://é", "a:\ud800"],
)
def test_a_name_that_cannot_be_stored_is_refused(key_uri: str) -> None:
    """Blanks, controls, line ends and anything but ASCII are refused before they are written."""
    with pytest.raises(FormatError):
        encode_key_uri(key_uri)


def test_the_message_does_not_repeat_the_name() -> None:
    """The bytes are unauthenticated: they may hold terminal controls."""
    with pytest.raises(FormatError) as caught:
        check_key_uri(b"local://\x1b[2J")

    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    ("key_uri", "expected"),
    [
        ("aws-kms://arn:aws:kms:eu-west-1:111122223333:key/1234", "aws-kms"),
        ("azure-keyvault://prod.vault.azure.net/keys/app/1", "azure-keyvault"),
        ("gcp-kms://projects/p/locations/l/keyRings/r/cryptoKeys/k", "gcp-kms"),
        ("pkcs11:token=prod;object=app-kek", "pkcs11"),
        ("local://0011/default/1", "local"),
        ("x:", "x"),
        ("local", ""),
        ("", ""),
        (":local", ""),
        ("://local", ""),
        ("Local://0011/default/1", ""),
        ("1local://0011", ""),
        ("-local://0011", ""),
        ("lo_cal://0011", ""),
        (" local://0011", ""),
        ("local ://0011", ""),
        ("lócal://0011", ""),
    ],
)
def test_the_provider_type_stands_before_the_first_colon(key_uri: str, expected: str) -> None:
    """Anything that no provider may be called has no type, rather than a similar one."""
    assert provider_type(key_uri) == expected
