"""``kms encrypt`` and ``kms decrypt``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kms_core.cli import direct
from kms_core.cli.exits import ExitCode
from kms_core.errors import FormatError

if TYPE_CHECKING:
    from tests.cli.conftest import Run

GOOD: dict[str, Any] = {
    "instance": "east",
    "key_uri": "paper://east",
    "key_version": None,
    "wrap_alg": 0x7FFF,
    "data": "AAAA",
}


def test_one_service_encrypts_and_decrypts(kms: Run, initialised: Path) -> None:
    """The JSON object names who did it."""
    done = kms("encrypt", "-c", "tenant=42", stdin=b"small\n")
    fields = json.loads(done.out)
    assert (done.code, done.err) == (0, "")
    assert list(fields) == ["instance", "key_uri", "key_version", "wrap_alg", "data"]
    assert (fields["instance"], fields["key_version"]) == ("local", "1")
    again = kms("decrypt", "-c", "tenant=42", stdin=done.out)
    assert (again.code, again.out, again.err) == (0, b"small\n", "")


def test_files_in_files_out(kms: Run, initialised: Path) -> None:
    """As with envelopes."""
    Path("plain").write_bytes(b"small")
    assert kms("encrypt", "plain", "-o", "c.json").code == 0
    assert kms("decrypt", "c.json", "-o", "again").code == 0
    assert Path("again").read_bytes() == b"small"


def test_wrong_context_is_an_integrity_error(kms: Run, initialised: Path) -> None:
    """Exit code 4, and nothing is written."""
    data = kms("encrypt", "-c", "tenant=42", stdin=b"small").out
    done = kms("decrypt", "-c", "tenant=43", stdin=data)
    assert (done.code, done.out) == (ExitCode.INTEGRITY, b"")
    assert "--context" in done.complaint


def test_via_asks_one_instance_only(kms: Run, papers: Path) -> None:
    """Without it a write falls back, and the object names who did it."""
    assert json.loads(kms("encrypt", "--via", "west", stdin=b"x").out)["instance"] == "west"
    (papers / "east.encrypt").write_text("Unavailable")
    assert json.loads(kms("encrypt", stdin=b"x").out)["instance"] == "west"
    done = kms("encrypt", "--via", "east", stdin=b"x")
    assert (done.code, done.out) == (ExitCode.UNAVAILABLE, b"")
    assert kms("encrypt", "--via", "nobody", stdin=b"x").code == ExitCode.USAGE


@pytest.mark.parametrize("size", [0, 4097])
def test_size_has_bounds(kms: Run, initialised: Path, size: int) -> None:
    """What every service takes: 1 to 4096 bytes."""
    done = kms("encrypt", stdin=bytes(size))
    assert (done.code, done.out) == (ExitCode.USAGE, b"")
    assert "1 to 4096 bytes" in done.complaint
    assert kms("encrypt", stdin=bytes(4096)).code == 0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 60_000, "not JSON"),
        (b"[]", "no JSON object"),
        (b'{"data": "", "data": ""}', "given twice"),
        (json.dumps(GOOD | {"extra": 1}).encode(), "unknown field 'extra'"),
        *(
            (json.dumps({k: v for k, v in GOOD.items() if k != name}).encode(), f"{name} is miss")
            for name in GOOD
        ),
        (json.dumps(GOOD | {"key_uri": 1}).encode(), "key_uri is no string"),
        (json.dumps(GOOD | {"instance": 1}).encode(), "instance is no string"),
        (json.dumps(GOOD | {"wrap_alg": True}).encode(), "wrap_alg is no number"),
        (json.dumps(GOOD | {"wrap_alg": 65536}).encode(), "wrap_alg is no number"),
        (json.dumps(GOOD | {"data": "A"}).encode(), "data is not base64"),
        (json.dumps(GOOD | {"data": "\u00e9"}).encode(), "data is not base64"),
        (b" " * 65537, "larger than 65536"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_encrypt_did_not_write_is_refused(
    kms: Run, initialised: Path, text: bytes, reason: str
) -> None:
    """Exit code 4, and the line says what is wrong with it."""
    done = kms("decrypt", stdin=text)
    assert (done.code, done.out) == (ExitCode.INTEGRITY, b"")
    assert "what `kms encrypt` writes" in done.complaint
    assert reason in done.complaint


def test_foreign_key_is_an_integrity_error(kms: Run, initialised: Path) -> None:
    """The key of another configuration."""
    done = kms("decrypt", stdin=json.dumps(GOOD).encode())
    assert (done.code, done.out) == (ExitCode.INTEGRITY, b"")
    assert "paper://east" in done.complaint


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from([*GOOD, "x"]), inner),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary() | _JSON.map(lambda value: json.dumps(value).encode()))
def test_any_input_is_a_ciphertext_or_a_format_error(text: bytes) -> None:
    """Nothing else comes out of the parser."""
    try:
        ciphertext = direct._load(text)
    except FormatError:
        return
    assert direct._load(direct._dump(ciphertext)) == ciphertext


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.fixed_dictionaries({name: st.just(value) | _JSON for name, value in GOOD.items()}))
def test_any_object_of_the_right_shape_is_checked_field_by_field(fields: dict[str, Any]) -> None:
    """What passes is typed as it says."""
    try:
        ciphertext = direct._load(json.dumps(fields).encode())
    except FormatError:
        return
    assert isinstance(ciphertext.key_uri, str)
    assert isinstance(ciphertext.data, bytes)
    assert type(ciphertext.wrap_alg) is int
