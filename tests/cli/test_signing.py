"""``kms sign``, ``kms verify`` and ``kms public-key``."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kms_core.cli import objects, signing
from kms_core.cli.exits import ExitCode
from kms_core.errors import FormatError
from kms_core.types import MAX_SIGNED_BYTES

if TYPE_CHECKING:
    from tests.cli.conftest import Install, Run

MESSAGE = b"release 1.0\n"
GOOD: dict[str, Any] = {
    "instance": "one",
    "key_uri": "signer://one",
    "key_version": None,
    "algorithm": "Ed25519",
    "data": "AAAA",
}


@pytest.fixture
def signers(install: Install, folder: Path) -> Path:
    """Instances ``one`` and ``two`` that sign; the folder whose files make them fail."""
    install("signer", "signer_plugin")
    tables = [
        f'[instances.{name}]\nprovider = "signer"\nkey = "{name}"\npurpose = "sign"\n'
        for name in ("one", "two")
    ]
    (folder / "kms.toml").write_text("\n".join([*tables, "[calls]\nattempts = 1\n"]))
    (folder / "message").write_bytes(MESSAGE)
    return folder


@pytest.fixture
def signature(kms: Run, signers: Path) -> Path:
    """A signature of the file ``message``."""
    path = signers / "message.sig"
    assert kms("sign", "message", "-o", path).code == 0
    return path


def claim(path: Path, **changes: Any) -> Path:
    """A copy of a signature file with other fields."""
    fields = {**json.loads(path.read_text()), **changes}
    claimed = path.with_suffix(".claimed")
    claimed.write_text(json.dumps(fields))
    return claimed


# --- sign ----------------------------------------------------------------------------------------


def test_signature_is_one_object_that_names_its_key(kms: Run, signers: Path) -> None:
    """With the algorithm that the key prefers."""
    done = kms("sign", stdin=MESSAGE)
    fields = json.loads(done.out)
    assert (done.code, done.err) == (0, "")
    assert done.text.count("\n") == 1
    assert list(fields) == ["instance", "key_uri", "key_version", "algorithm", "data"]
    assert (fields["instance"], fields["key_uri"]) == ("one", "signer://one")
    assert fields["algorithm"] == "Ed25519"
    assert len(base64.b64decode(fields["data"], validate=True)) == 64


def test_file_is_signed_as_its_bytes_are(kms: Run, signature: Path) -> None:
    """From a file or from stdin, into a file or to stdout."""
    assert kms("sign", stdin=MESSAGE).out == signature.read_bytes()


def test_via_and_algorithm_are_passed_on(kms: Run, signers: Path) -> None:
    """Also for a MAC."""
    done = kms("sign", "--via", "two", "--algorithm", "HMAC-SHA256", "message")
    fields = json.loads(done.out)
    assert (fields["instance"], fields["algorithm"]) == ("two", "HMAC-SHA256")


def test_another_instance_signs_in_an_outage(kms: Run, signers: Path) -> None:
    """Unless one was named: then it is unavailable."""
    (signers / "one.sign").write_text("Unavailable")
    assert json.loads(kms("sign", "message").out)["instance"] == "two"
    done = kms("sign", "--via", "one", "message")
    assert (done.code, done.out) == (ExitCode.UNAVAILABLE, b"")
    assert "one.sign" in done.complaint


def test_failed_sign_leaves_the_output_as_it_was(kms: Run, signature: Path) -> None:
    """Whole or not at all."""
    before = signature.read_bytes()
    for name in ("one", "two"):
        (signature.parent / f"{name}.sign").write_text("Unavailable")
    assert kms("sign", "message", "-o", signature).code == ExitCode.UNAVAILABLE
    assert signature.read_bytes() == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("--algorithm", "RSA-PSS-SHA256"),  # not this key's
        ("--algorithm", "MD5"),
        ("--via", "three"),
    ],
    ids=["of another key", "unknown algorithm", "unknown instance"],
)
def test_what_cannot_be_signed_is_a_mistake_in_use(
    kms: Run, signers: Path, arguments: tuple[str, ...]
) -> None:
    """Exit code 2, one line, nothing written."""
    done = kms("sign", *arguments, "message", "-o", "out")
    assert (done.code, done.out) == (ExitCode.USAGE, b"")
    assert done.err.startswith("kms: ")
    assert not Path("out").exists()


def test_large_input_is_refused_with_a_hint(kms: Run, signature: Path) -> None:
    """Before any service is asked, for signing and for verifying."""
    large = bytes(MAX_SIGNED_BYTES + 1)
    for command in (("sign",), ("verify", "-s", signature)):
        done = kms(*command, stdin=large)
        assert done.code == ExitCode.USAGE
        assert "sign a digest" in done.complaint


# --- verify --------------------------------------------------------------------------------------


def test_valid_signature_is_said_to_be(kms: Run, signature: Path) -> None:
    """By whom, and how; of a file or of stdin."""
    for done in (
        kms("verify", "-s", signature, "message"),
        kms("verify", "-s", signature, stdin=MESSAGE),
    ):
        assert (done.code, done.err) == (0, "")
        assert done.text == "valid: Ed25519 by signer://one\n"


def test_mac_is_verified_by_the_service(kms: Run, signers: Path) -> None:
    """So an outage is an outage."""
    assert kms("sign", "--algorithm", "HMAC-SHA256", "message", "-o", "mac").code == 0
    assert kms("verify", "-s", "mac", "message").text == "valid: HMAC-SHA256 by signer://one\n"
    assert kms("verify", "-s", "mac", stdin=b"other").code == ExitCode.INTEGRITY
    for name in ("one", "two"):
        (signers / f"{name}.verify").write_text("Unavailable")
    done = kms("verify", "-s", "mac", "message")
    assert (done.code, done.out) == (ExitCode.UNAVAILABLE, b"")


def test_other_input_is_not_valid(kms: Run, signature: Path) -> None:
    """Exit code 4, and nothing on stdout for a script to mistake."""
    done = kms("verify", "-s", signature, stdin=MESSAGE + b"x")
    assert (done.code, done.out) == (ExitCode.INTEGRITY, b"")
    assert done.complaint == (
        "the signature is not valid: it is not one of this input by signer://one"
    )


@pytest.mark.parametrize(
    "changes",
    [{"data": ""}, {"data": "AAAA"}, {"key_uri": "signer://two"}],
    ids=["empty", "another", "another key"],
)
def test_altered_signature_is_not_valid(kms: Run, signature: Path, changes: dict[str, str]) -> None:
    """The instance that it names is no part of what counts: the key is."""
    done = kms("verify", "-s", claim(signature, **changes), "message")
    assert (done.code, done.out) == (ExitCode.INTEGRITY, b"")
    assert "not valid" in done.complaint


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"algorithm": "RSA-PSS-SHA256"}, ExitCode.USAGE),
        ({"algorithm": "none"}, ExitCode.USAGE),
        ({"key_uri": "aws-kms://arn"}, ExitCode.USAGE),
        ({"key_uri": ""}, ExitCode.USAGE),
        ({"key_uri": "signer://three"}, ExitCode.FAILED),
    ],
    ids=["algorithm of another key", "no algorithm", "foreign key", "no key", "unknown key"],
)
def test_signature_that_cannot_be_checked_is_not_valid_either(
    kms: Run, signature: Path, changes: dict[str, str], code: ExitCode
) -> None:
    """One line says why."""
    done = kms("verify", "-s", claim(signature, **changes), "message")
    assert (done.code, done.out) == (code, b"")
    assert done.complaint


def test_verify_asks_the_instance_that_is_named(kms: Run, signature: Path) -> None:
    """Which does not have the key of another."""
    assert kms("verify", "--via", "one", "-s", signature, "message").code == 0
    done = kms("verify", "--via", "two", "-s", signature, "message")
    assert (done.code, done.out) == (ExitCode.FAILED, b"")


def test_unreachable_public_key_is_an_outage(kms: Run, signature: Path) -> None:
    """Nobody knows whether the signature is valid."""
    (signature.parent / "one.public_key").write_text("Unavailable")
    done = kms("verify", "-s", signature, "message")
    assert (done.code, done.out) == (ExitCode.UNAVAILABLE, b"")
    assert "one.public_key" in done.complaint


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b"", "it is not JSON"),
        (b"\xff\xfe{}", "it is not JSON"),
        (b"[]", "it is no JSON object"),
        (b"{}", "instance is missing"),
        (json.dumps({**GOOD, "x": 1}).encode(), "it has an unknown field 'x'"),
        (json.dumps({**GOOD, "data": "*"}).encode(), "data is not base64"),
        (json.dumps({**GOOD, "algorithm": 1}).encode(), "algorithm is no string"),
        (b'{"data": "", "data": ""}', "a field is given twice"),
        (b"[" * 50_000, "it is not JSON"),
        (b" " * (objects.MAX_JSON_BYTES + 1), "it is larger than 65536 bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_file_that_is_no_signature_says_why(
    kms: Run, signers: Path, text: bytes, complaint: str
) -> None:
    """Exit code 4; no service is asked."""
    Path("junk").write_bytes(text)
    done = kms("verify", "-s", "junk", "message")
    assert (done.code, done.out) == (ExitCode.INTEGRITY, b"")
    assert done.complaint == f"the signature is not what `kms sign` writes: {complaint}"


def test_control_characters_of_a_signature_do_not_reach_the_terminal(
    kms: Run, signature: Path
) -> None:
    """The file is somebody else's."""
    for key_uri in ("signer://\x1b[2J", "evil\x1b[2J://x"):
        done = kms("verify", "-s", claim(signature, key_uri=key_uri), "message")
        assert done.code in {ExitCode.FAILED, ExitCode.USAGE}
        assert "\x1b" not in done.complaint


def test_signature_file_has_to_be_there(kms: Run, signers: Path) -> None:
    """Named or not."""
    assert kms("verify", "message").code == ExitCode.USAGE
    assert kms("verify", "-s", "nowhere", "message").code == ExitCode.USAGE


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary()
    | st.fixed_dictionaries(
        {
            name: st.just(value) | st.none() | st.integers() | st.text()
            for name, value in GOOD.items()
        }
    ).map(lambda fields: json.dumps(fields).encode())
)
def test_any_file_is_a_signature_or_a_format_error(text: bytes) -> None:
    """And what is one is written again as it was read."""
    try:
        fields = objects.load(text, signing._FIELDS, "it")
    except FormatError:
        return
    assert objects.load(objects.dump(fields), signing._FIELDS, "it") == fields


# --- public-key ----------------------------------------------------------------------------------


def test_public_key_is_pem_that_verifies(kms: Run, signature: Path) -> None:
    """Without this program."""
    done = kms("public-key")
    assert (done.code, done.err) == (0, "")
    assert done.text.startswith("-----BEGIN PUBLIC KEY-----\n")
    key = load_pem_public_key(done.out)
    assert isinstance(key, Ed25519PublicKey)
    key.verify(base64.b64decode(json.loads(signature.read_text())["data"]), MESSAGE)


def test_public_key_of_a_named_instance_goes_into_a_file(kms: Run, signers: Path) -> None:
    """Another than the first one's."""
    assert kms("public-key", "--via", "two", "-o", "two.pem").code == 0
    assert Path("two.pem").read_bytes() == kms("public-key", "--via", "two").out
    assert Path("two.pem").read_bytes() != kms("public-key").out


def test_public_key_in_an_outage(kms: Run, signers: Path) -> None:
    """Nothing is written."""
    for name in ("one", "two"):
        (signers / f"{name}.public_key").write_text("Unavailable")
    done = kms("public-key", "-o", "out.pem")
    assert (done.code, done.out) == (ExitCode.UNAVAILABLE, b"")
    assert "`kms health`" in done.complaint
    assert not Path("out.pem").exists()


@pytest.mark.parametrize("command", [("sign", "message"), ("public-key",)])
def test_without_an_instance_that_signs_one_has_to_be_named(
    kms: Run, papers: Path, command: tuple[str, ...]
) -> None:
    """The message says how."""
    Path("message").write_bytes(MESSAGE)
    done = kms(*command)
    assert (done.code, done.out) == (ExitCode.USAGE, b"")
    assert "purpose" in done.complaint
    assert "via" in done.complaint


@pytest.mark.parametrize("command", [("sign", "message"), ("public-key",)])
def test_provider_that_does_not_sign_is_named(
    kms: Run, papers: Path, command: tuple[str, ...]
) -> None:
    """As a mistake in use."""
    Path("message").write_bytes(MESSAGE)
    done = kms(*command, "--via", "east")
    assert (done.code, done.out) == (ExitCode.USAGE, b"")
    assert "provider paper has no" in done.complaint
