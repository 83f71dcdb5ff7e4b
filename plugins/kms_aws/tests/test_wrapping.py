"""RSA keys, and how a key turns out to be one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from attrs import evolve
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key

from kms_core import (
    AccessDenied,
    Ciphertext,
    Context,
    InvalidCiphertext,
    InvalidRequest,
    KeyDisabled,
    Unavailable,
    bind_context,
)

if TYPE_CHECKING:
    from kms_aws.provider import AwsKmsProvider
    from tests.conftest import Aws, Providers

CONTEXT = Context({"tenant": "42"})
SIZES = [("RSA_2048", 158), ("RSA_3072", 286), ("RSA_4096", 414)]


def locally(provider: AwsKmsProvider, key_id: str, plaintext: bytes) -> Ciphertext:
    """What anybody can make who has the public key."""
    public = provider.public_key(key_id)
    key = load_der_public_key(public.der)
    assert isinstance(key, rsa.RSAPublicKey)
    assert public.wrap_alg is not None
    oaep = padding.OAEP(padding.MGF1(SHA256()), SHA256(), None)
    return Ciphertext(key.encrypt(plaintext, oaep), public.key_uri, None, public.wrap_alg)


@pytest.mark.parametrize(("spec", "largest"), SIZES)
def test_rsa_key_wraps_up_to_its_size(aws: Aws, make: Providers, spec: str, largest: int) -> None:
    """As much as OAEP leaves beside the context's digest, and not a byte more."""
    arn = aws.add_key(spec=spec)
    provider = make(aws, arn)
    for size in (1, 32, largest):
        sealed = provider.encrypt(str(arn), b"x" * size, CONTEXT)
        assert (sealed.key_uri, sealed.wrap_alg) == (arn.uri, 0x0102)
        assert provider.decrypt(str(arn), sealed, CONTEXT) == b"x" * size
    aws.requests.clear()
    with pytest.raises(InvalidRequest, match=f"1 to {largest} bytes"):
        provider.encrypt(str(arn), bytes(largest + 1), CONTEXT)
    assert aws.requests == []


def test_symmetric_key_is_not_asked_what_it_is(aws: Aws, make: Providers) -> None:
    """The usual kind of key costs one request, and no permission but its own."""
    arn = aws.add_key()
    provider = make(aws, arn)
    provider.decrypt(str(arn), provider.encrypt(str(arn), b"k", CONTEXT), CONTEXT)
    provider.generate_data_key(str(arn), CONTEXT)
    assert aws.operations == ["Encrypt", "Decrypt", "GenerateDataKey"]


@pytest.mark.parametrize("hook", ["encrypt", "generate_data_key"])
@pytest.mark.parametrize("name", ["arn", "alias"])
def test_rsa_key_is_found_out_once(aws: Aws, make: Providers, name: str, hook: str) -> None:
    """The first wrap is refused and the key looked at; from then on it is known."""
    arn = aws.add_key(spec="RSA_2048", alias="alias/app")
    key = str(arn) if name == "arn" else "alias/app"
    provider = make(aws, key, region=arn.region)
    every: dict[str, Any] = {"encrypt": {"plaintext": b"k"}}
    for _ in range(2):
        getattr(provider, hook)(key_id=key, context=CONTEXT, **every.get(hook, {}))
    first = "Encrypt" if hook == "encrypt" else "GenerateDataKey"
    assert aws.operations == [first, "DescribeKey", "Encrypt", "Encrypt"]
    assert aws.requests[-1].body["KeyId"] == str(arn)


def test_known_rsa_key_is_not_tried_as_another(aws: Aws, make: Providers) -> None:
    """Any answer that tells the kind will do."""
    arn = aws.add_key(spec="RSA_2048")
    provider = make(aws, arn)
    provider.health(str(arn))
    provider.encrypt(str(arn), b"k", CONTEXT)
    assert aws.operations == ["DescribeKey", "Encrypt"]


def test_unwrapping_needs_no_description(aws: Aws, make: Providers) -> None:
    """How it was wrapped stands beside the ciphertext."""
    arn = aws.add_key(spec="RSA_2048")
    sealed = make(aws, arn).encrypt(str(arn), b"k", CONTEXT)
    provider = make(aws, arn)
    aws.requests.clear()
    assert provider.decrypt(str(arn), sealed, CONTEXT) == b"k"
    assert aws.operations == ["Decrypt"]


def test_data_key_of_an_rsa_key_is_drawn_here(aws: Aws, make: Providers) -> None:
    """GenerateDataKey is for symmetric keys."""
    arn = aws.add_key(spec="RSA_2048")
    provider = make(aws, arn)
    data_key = provider.generate_data_key(str(arn), CONTEXT)
    assert len(data_key.plaintext) == 32
    assert isinstance(data_key.plaintext, bytearray)
    assert provider.decrypt(str(arn), data_key.ciphertext, CONTEXT) == data_key.plaintext


def test_context_stays_here_and_is_bound(aws: Aws, make: Providers) -> None:
    """RSA knows no context, so its digest is wrapped with the data key."""
    arn = aws.add_key(spec="RSA_2048")
    provider = make(aws, arn)
    provider.health(str(arn))
    sealed = provider.encrypt(str(arn), b"k", CONTEXT)
    assert "EncryptionContext" not in aws.requests[-1].body
    for other in (Context({"tenant": "43"}), Context()):
        with pytest.raises(InvalidCiphertext) as caught:
            provider.decrypt(str(arn), sealed, other)
        assert caught.value.__cause__ is None
    assert "EncryptionContext" not in aws.requests[-1].body


def test_what_was_wrapped_with_the_public_key_opens(aws: Aws, make: Providers) -> None:
    """Wraps made without the service are as good as its own."""
    arn = aws.add_key(spec="RSA_2048")
    provider = make(aws, arn)
    sealed = locally(provider, str(arn), bytes(bind_context(b"data key", CONTEXT)))
    assert sealed.wrap_alg == 0x0102
    assert provider.decrypt(str(arn), sealed, CONTEXT) == b"data key"


@pytest.mark.parametrize("bound", [b"", b"short", bytes(32), bytes(40)])
def test_what_was_not_bound_does_not_open(aws: Aws, make: Providers, bound: bytes) -> None:
    """Anybody can encrypt anything to a public key."""
    arn = aws.add_key(spec="RSA_2048")
    provider = make(aws, arn)
    with pytest.raises(InvalidCiphertext):
        provider.decrypt(str(arn), locally(provider, str(arn), bound), CONTEXT)


def test_nothing_bound_to_the_context_does_not_open(aws: Aws, make: Providers) -> None:
    """A wrap of no bytes is none of ours."""
    arn = aws.add_key(spec="RSA_2048")
    provider = make(aws, arn)
    empty = locally(provider, str(arn), bytes(bind_context(b"", CONTEXT)))
    with pytest.raises(InvalidCiphertext):
        provider.decrypt(str(arn), empty, CONTEXT)


@pytest.mark.parametrize("size", [0, 1, 255, 257, 513])
def test_blob_of_no_rsa_keys_size_is_not_sent(aws: Aws, make: Providers, size: int) -> None:
    """A ciphertext is as long as the modulus."""
    arn = aws.add_key(spec="RSA_2048")
    with pytest.raises(InvalidCiphertext):
        make(aws, arn).decrypt(str(arn), Ciphertext(bytes(size), arn.uri, wrap_alg=0x0102), CONTEXT)
    assert aws.requests == []


@pytest.mark.parametrize("size", [256, 384, 512])
def test_junk_does_not_open(aws: Aws, make: Providers, size: int) -> None:
    """Of this key's size or of another's."""
    arn = aws.add_key(spec="RSA_2048")
    junk = Ciphertext(b"\x01" * size, arn.uri, wrap_alg=0x0102)
    with pytest.raises(InvalidCiphertext):
        make(aws, arn).decrypt(str(arn), junk, CONTEXT)


@pytest.mark.parametrize(("spec", "other"), [("RSA_2048", 0x0101), ("SYMMETRIC_DEFAULT", 0x0102)])
def test_wrap_under_another_number_does_not_open(
    aws: Aws, make: Providers, spec: str, other: int
) -> None:
    """The number is part of what authenticates, for the envelope to try its next recipient."""
    arn = aws.add_key(spec=spec)
    provider = make(aws, arn)
    sealed = provider.encrypt(str(arn), b"k", CONTEXT)
    blob = sealed.data.ljust(256, b"\0")
    with pytest.raises(InvalidCiphertext):
        provider.decrypt(str(arn), evolve(sealed, data=blob, wrap_alg=other), CONTEXT)


@pytest.mark.parametrize("hook", ["encrypt", "generate_data_key"])
@pytest.mark.parametrize(
    ("spec", "usage"),
    [
        ("RSA_2048", "SIGN_VERIFY"),
        ("ECC_NIST_P256", "SIGN_VERIFY"),
        ("HMAC_256", "GENERATE_VERIFY_MAC"),
    ],
)
def test_key_that_wraps_nothing_says_what_it_is(
    aws: Aws, make: Providers, spec: str, usage: str, hook: str
) -> None:
    """Configured for the wrong purpose."""
    arn = aws.add_key(spec=spec, usage=usage)
    every: dict[str, Any] = {"encrypt": {"plaintext": b"k"}}
    with pytest.raises(InvalidRequest, match=f"{spec} for {usage}"):
        getattr(make(aws, arn), hook)(key_id=str(arn), context=CONTEXT, **every.get(hook, {}))


def test_refusal_stands_if_the_key_may_not_be_looked_at(aws: Aws, make: Providers) -> None:
    """The service's first word says more than that describing is not permitted."""
    arn = aws.add_key(spec="RSA_2048")
    aws.fail_with("AccessDeniedException", operation="DescribeKey")
    with pytest.raises(InvalidRequest, match="InvalidKeyUsageException") as caught:
        make(aws, arn).encrypt(str(arn), b"k", CONTEXT)
    assert caught.value.__context__ is None


def test_refusal_of_a_symmetric_key_is_not_about_its_kind(aws: Aws, make: Providers) -> None:
    """If the key is what it was taken for, the refusal is passed on."""
    arn = aws.add_key()
    aws.fail_with("ValidationException", operation="Encrypt")
    provider = make(aws, arn)
    for _ in range(2):
        with pytest.raises(InvalidRequest, match="ValidationException"):
            provider.encrypt(str(arn), b"k", CONTEXT)
    assert aws.operations == ["Encrypt", "DescribeKey", "Encrypt"]


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("DisabledException", KeyDisabled),
        ("AccessDeniedException", AccessDenied),
        ("KMSInternalException", Unavailable),
    ],
)
def test_faults_of_an_rsa_key_are_those_of_any(
    aws: Aws, make: Providers, code: str, kind: type[Exception]
) -> None:
    """One table, one request."""
    arn = aws.add_key(spec="RSA_2048")
    provider = make(aws, arn)
    sealed = provider.encrypt(str(arn), b"k", CONTEXT)
    aws.requests.clear()
    aws.fail_with(code)
    with pytest.raises(kind):
        provider.encrypt(str(arn), b"k", CONTEXT)
    with pytest.raises(kind):
        provider.decrypt(str(arn), sealed, CONTEXT)
    assert aws.operations == ["Encrypt", "Decrypt"]


def test_replica_of_an_rsa_key_opens(aws: Aws, make: Providers) -> None:
    """Asymmetric keys have replicas too."""
    arn = aws.add_key("us-east-1", "eu-west-1", multi_region=True, spec="RSA_2048")
    sealed = make(aws, arn).encrypt(str(arn), b"k", CONTEXT)
    provider = make(aws, arn.seen_from("eu-west-1"), replica_regions=("us-east-1",))
    key_id = provider.match(sealed.key_uri)
    assert key_id == str(arn.seen_from("eu-west-1"))
    assert provider.decrypt(key_id, sealed, CONTEXT) == b"k"
