"""Signatures, MACs and public keys: whoever made them, `cryptography` has to agree."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import pytest
from attrs import evolve
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import load_der_public_key

from kms_azure.answer import encoded
from kms_azure.provider import AzureKeyVaultProvider
from kms_core import (
    MAC_ALGORITHMS,
    SIGNATURE_ALGORITHMS,
    InvalidRequest,
    KeyDisabled,
    KMSError,
    PublicKey,
    Signature,
    Throttled,
    Unavailable,
)
from kms_core.testing.servers import Failure

if TYPE_CHECKING:
    from kms_core.testing.servers import AzureServer
    from tests.conftest import Providers

MESSAGE = b"a message that is longer than its digest, which is all that Azure gets to see of it"
RSA_ALGORITHMS = tuple(
    f"RSA-{scheme}-SHA{bits}" for scheme in ("PSS", "PKCS1") for bits in (256, 384, 512)
)
CURVES = {
    "P-256": "ECDSA-SHA256",
    "P-256K": "ECDSA-SHA256",
    "P-384": "ECDSA-SHA384",
    "P-521": "ECDSA-SHA512",
}


def check(public: PublicKey, signature: Signature) -> None:
    """Raise unless `cryptography` accepts the signature."""
    key = load_der_public_key(public.der)
    hashed: Any = getattr(hashes, signature.algorithm.rpartition("-")[2])()
    if isinstance(key, ec.EllipticCurvePublicKey):
        key.verify(signature.data, MESSAGE, ec.ECDSA(hashed))
        return
    assert isinstance(key, rsa.RSAPublicKey)
    pss = padding.PSS(padding.MGF1(hashed), hashed.digest_size)
    scheme = pss if "PSS" in signature.algorithm else padding.PKCS1v15()
    key.verify(signature.data, MESSAGE, scheme, hashed)


def made(provider: AzureKeyVaultProvider, algorithm: str) -> Signature:
    """A signature, checked for what every one has."""
    signature = provider.sign("kek", MESSAGE, algorithm)
    assert signature.algorithm == algorithm
    assert signature.key_uri.endswith(f"/keys/kek/{signature.key_version}")
    assert signature.instance is None
    return signature


def verified(
    provider: AzureKeyVaultProvider, signature: Signature, message: bytes = MESSAGE
) -> bool:
    """Whether the service accepts it from the key that it names."""
    matched = provider.match(signature.key_uri)
    assert matched is not None
    return provider.verify(matched, message, signature, signature.algorithm)


@pytest.mark.parametrize("algorithm", RSA_ALGORITHMS)
def test_rsa_signs(vault: AzureServer, make: Providers, algorithm: str) -> None:
    """What the service signs, anybody can verify."""
    vault.create_key("kek", "RSA")
    provider = make(vault)
    signature = made(provider, algorithm)
    check(provider.public_key("kek"), signature)
    assert verified(provider, signature)
    assert not verified(provider, signature, b"another message")


@pytest.mark.parametrize("curve", CURVES)
def test_elliptic_curves_sign(vault: AzureServer, make: Providers, curve: str) -> None:
    """In DER, although the service speaks raw halves."""
    vault.create_key("kek", "EC", curve=curve)
    provider = make(vault)
    for _ in range(4):  # halves with leading zeros come up now and then
        signature = made(provider, CURVES[curve])
        check(provider.public_key("kek"), signature)
        assert verified(provider, signature)
        assert not verified(provider, signature, b"another message")


@pytest.mark.parametrize("algorithm", sorted(MAC_ALGORITHMS))
def test_symmetric_keys_make_macs(hsm: AzureServer, make: Providers, algorithm: str) -> None:
    """Which only the service can check."""
    hsm.create_key("kek", "oct-HSM")
    provider = make(hsm)
    mac = made(provider, algorithm)
    assert len(mac.data) == int(algorithm[-3:]) // 8
    assert verified(provider, mac)
    assert not verified(provider, mac, b"another message")
    assert not verified(provider, evolve(mac, data=bytes(len(mac.data))))


def test_the_service_gets_a_digest(
    vault: AzureServer, make: Providers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message itself stays here."""
    vault.create_key("kek", "EC")
    provider = make(vault)
    sent: list[dict[str, str]] = []
    perform = provider._service.perform

    def spy(operation: str, key: Any, **parameters: str) -> Any:
        sent.append(parameters)
        return perform(operation, key, **parameters)

    monkeypatch.setattr(provider._service, "perform", spy)
    made(provider, "ECDSA-SHA256")
    assert sent == [{"alg": "ES256", "value": encoded(hashlib.sha256(MESSAGE).digest())}]


def test_signatures_of_old_versions_verify(vault: AzureServer, make: Providers) -> None:
    """A signature names the version that made it."""
    vault.create_key("kek", "EC")
    provider = make(vault)
    old = made(provider, "ECDSA-SHA256")
    provider.rotate_key("kek")
    new = made(provider, "ECDSA-SHA256")
    assert old.key_version != new.key_version
    assert verified(provider, old)
    assert verified(provider, new)
    assert not verified(provider, evolve(old, key_uri=new.key_uri))


def test_a_retired_key_verifies_and_does_not_sign(vault: AzureServer, make: Providers) -> None:
    """As it unwraps and does not wrap."""
    vault.create_key("kek", "EC")
    signature = made(make(vault), "ECDSA-SHA256")
    vault.create_key("new", "EC")
    provider = make(vault, "new", also_open=("kek",))
    assert verified(provider, signature)
    with pytest.raises(InvalidRequest, match="retired"):
        provider.sign("kek", MESSAGE, "ECDSA-SHA256")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x",
        bytes(64),
        bytes(70),
        encode_dss_signature(0, 0),
        encode_dss_signature(1 << 300, 1),
        encode_dss_signature(1, 1) + b"\0",
        None,
        "text",
    ],
)
def test_signatures_of_no_form_are_false(vault: AzureServer, make: Providers, data: Any) -> None:
    """Wrong in whatever way is wrong."""
    vault.create_key("kek", "EC")
    provider = make(vault)
    signature = made(provider, "ECDSA-SHA256")
    assert verified(provider, evolve(signature, data=data)) is False


@pytest.mark.parametrize("size", [0, 255, 257, 256])
def test_rsa_signatures_of_another_length_are_not_sent(
    vault: AzureServer, make: Providers, size: int
) -> None:
    """And those of the right one are the service's to judge."""
    vault.create_key("kek", "RSA")
    provider = make(vault)
    signature = made(provider, "RSA-PSS-SHA256")
    assert not verified(provider, evolve(signature, data=bytes(size)))
    assert vault.panel.count("verify") == (1 if size == 256 else 0)


def test_a_service_that_finds_more_wrong_says_no(
    vault: AzureServer, make: Providers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bad request because of a signature is a bad signature."""
    vault.create_key("kek", "RSA")
    provider = make(vault)
    signature = made(provider, "RSA-PSS-SHA256")
    facts = provider._known.facts(provider._configured)
    monkeypatch.setattr(type(facts), "signs_with", property(lambda _: {"RSA-PSS-SHA256": "ES256"}))
    assert not verified(provider, signature)
    assert vault.panel.count("verify") == 1


@pytest.mark.parametrize("failure", [Failure.THROTTLE, Failure.MALFORMED, Failure.SERVER_ERROR])
def test_failures_are_not_verdicts(vault: AzureServer, make: Providers, failure: Failure) -> None:
    """An outage says nothing about a signature."""
    vault.create_key("kek", "EC")
    provider = make(vault)
    signature = made(provider, "ECDSA-SHA256")
    vault.panel.fail(failure)
    with pytest.raises(Throttled if failure is Failure.THROTTLE else Unavailable):
        verified(provider, signature)


@pytest.mark.parametrize("failure", [Failure.MALFORMED, Failure.WRONG_KEY, Failure.RESET])
def test_signatures_that_are_none_are_an_outage(
    vault: AzureServer, make: Providers, failure: Failure
) -> None:
    """Whatever came back is not handed on."""
    vault.create_key("kek", "RSA")
    provider = make(vault)
    vault.panel.fail(failure, operation="sign")
    with pytest.raises(Unavailable):
        provider.sign("kek", MESSAGE, "RSA-PSS-SHA256")


def unfit(family: str) -> list[str]:
    """Algorithms that keys of this kind do not do."""
    every = SIGNATURE_ALGORITHMS | MAC_ALGORITHMS | {"RSA-OAEP-SHA256", "", "nonsense"}
    fit = {"RSA": set(RSA_ALGORITHMS), "EC": {"ECDSA-SHA256"}, "oct-HSM": set(MAC_ALGORITHMS)}
    return sorted(every - fit[family])


@pytest.mark.parametrize("kind", ["RSA", "EC", "oct-HSM"])
def test_algorithms_of_other_keys_are_refused(hsm: AzureServer, make: Providers, kind: str) -> None:
    """Before anything is sent; the message says what the key does."""
    hsm.create_key("kek", kind)
    provider = make(hsm)
    for algorithm in unfit(kind):
        with pytest.raises(InvalidRequest, match="it does"):
            provider.sign("kek", MESSAGE, algorithm)
        with pytest.raises(InvalidRequest, match="it does"):
            provider.verify("kek", MESSAGE, Signature(b"", "", algorithm), algorithm)
    assert hsm.panel.count("sign") == hsm.panel.count("verify") == 0


@pytest.mark.parametrize("data", ["text", None, bytes((1 << 20) + 1)], ids=["str", "None", "long"])
def test_messages_of_another_kind_are_refused(
    vault: AzureServer, make: Providers, data: Any
) -> None:
    """A message is up to a mebibyte of bytes."""
    vault.create_key("kek", "EC")
    with pytest.raises(InvalidRequest, match="message"):
        make(vault).sign("kek", data, "ECDSA-SHA256")


def test_messages_have_any_length_up_to_a_mebibyte(vault: AzureServer, make: Providers) -> None:
    """Also none."""
    vault.create_key("kek", "EC")
    provider = make(vault)
    for message in (b"", bytes(1 << 20)):
        signature = provider.sign("kek", message, "ECDSA-SHA256")
        assert verified(provider, signature, message)


def test_a_key_that_may_not_sign_is_not_asked_to(vault: AzureServer, make: Providers) -> None:
    """Its permitted operations or its state say so."""
    vault.create_key("kek", "EC", operations=["verify"])
    provider = make(vault)
    with pytest.raises(KeyDisabled, match="permit sign"):
        provider.sign("kek", MESSAGE, "ECDSA-SHA256")
    assert vault.panel.count("sign") == 0


# Public keys


@pytest.mark.parametrize(
    ("operations", "algorithms", "wrap_alg"),
    [
        (None, (*RSA_ALGORITHMS, "RSA-OAEP-SHA256"), 0x0201),
        (["wrapKey", "unwrapKey"], ("RSA-OAEP-SHA256",), 0x0201),
        (["sign", "verify"], RSA_ALGORITHMS, None),
        (["sign"], RSA_ALGORITHMS, None),
        (["decrypt"], (), None),
    ],
)
def test_public_keys_tell_what_they_are_for(
    vault: AzureServer,
    make: Providers,
    operations: list[str] | None,
    algorithms: tuple[str, ...],
    wrap_alg: int | None,
) -> None:
    """By type and permitted operations; the preferred one comes first."""
    version = vault.create_key("kek", "RSA", operations=operations)
    public = make(vault).public_key("kek")
    assert public.algorithms == algorithms
    assert public.wrap_alg == wrap_alg
    assert public.key_version == version
    assert public.key_uri.endswith(f"/keys/kek/{version}")


@pytest.mark.parametrize("curve", CURVES)
def test_public_keys_of_curves(vault: AzureServer, make: Providers, curve: str) -> None:
    """One algorithm each, and nothing to wrap with."""
    vault.create_key("kek", "EC", curve=curve)
    public = make(vault).public_key("kek")
    assert public.algorithms == (CURVES[curve],)
    assert public.wrap_alg is None


def test_public_keys_of_old_versions(vault: AzureServer, make: Providers) -> None:
    """Each version has its own."""
    first = vault.create_key("kek", "RSA")
    vault.create_key("kek", "RSA")
    provider = make(vault)
    assert provider.public_key(f"kek/{first}").key_version == first
    assert provider.public_key(f"kek/{first}").der != provider.public_key("kek").der


def test_nobody_wraps_to_a_key_that_is_out_of_use(vault: AzureServer, make: Providers) -> None:
    """Its signatures can still be verified."""
    vault.create_key("kek", "RSA", enabled=False)
    public = make(vault).public_key("kek")
    assert public.wrap_alg is None
    assert public.algorithms


def test_symmetric_keys_have_no_public_key(hsm: AzureServer, make: Providers) -> None:
    """And asking for it is a mistake."""
    hsm.create_key("kek", "oct-HSM")
    with pytest.raises(InvalidRequest, match="symmetric"):
        make(hsm).public_key("kek")


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("RSA", {"e": "AA"}),
        ("RSA", {"n": "AQ"}),
        ("RSA", {"n": None}),
        ("EC", {"x": "AQ"}),
        ("EC", {"y": None}),
        ("EC", {"crv": "P-257"}),
        ("EC", {"crv": None}),
    ],
)
def test_public_keys_that_are_none_are_an_outage(
    vault: AzureServer,
    make: Providers,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    changes: dict[str, str | None],
) -> None:
    """A point that is not on its curve is worse than no answer."""
    vault.create_key("kek", kind)
    provider = make(vault)
    answer = provider._service.get(provider._configured)
    spoiled = evolve(answer, fields={**answer.fields, "key": {**answer.fields["key"], **changes}})
    monkeypatch.setattr(provider._service, "get", lambda _: spoiled)
    with pytest.raises(KMSError) as caught:
        provider.public_key("kek")
    assert type(caught.value) is Unavailable
