"""``Kms.sign``, ``verify`` and ``public_key``: who signs, who checks, and who is believed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from attrs import evolve
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key

from kms_core import (
    AccessDenied,
    AllInstancesFailed,
    AsyncKms,
    BreakerPolicy,
    Duration,
    InvalidRequest,
    KeyNotFound,
    Kms,
    MonitorPolicy,
    ProviderBug,
    PublicKey,
    Signature,
    Unavailable,
    UnsupportedOperation,
)
from kms_core.monitor import Monitor
from kms_core.relay import MAX_PUBLIC_KEYS
from kms_core.testing import (
    Call,
    Fault,
    Faulty,
    MemoryProvider,
    MemoryStore,
    echoing,
    raising,
    returning,
)
from kms_core.testing.material import KeyKind
from kms_core.testing.servers import Failure
from kms_core.types import MAX_SIGNED_BYTES, Protection
from tests.support import PATIENCE, Clock, Events, OtherProvider, client_for, service

DOWN = raising(Unavailable, "down")
SIGNS = {"purpose": "sign"}
TOKEN = b"release 1.0"


def store_of(made: Faulty) -> MemoryStore:
    """The service behind a provider."""
    store: MemoryStore = made.store
    return store


def signer(
    name: str,
    kind: KeyKind = "ECDSA-P256",
    *,
    protection: Protection = "software",
    provider: type[MemoryProvider] = MemoryProvider,
) -> Faulty:
    """A service whose one key is of this kind."""
    store = MemoryStore(name, keys=(), protection=protection)
    store.create("default", kind)
    return service(name, store=store, kind=provider)


def client(services: dict[str, Faulty], **settings: Any) -> Kms:
    """A client whose instances all sign; its time stands still."""
    settings.setdefault("options", {"clock": Clock()})
    return client_for(services, instances=dict.fromkeys(services, SIGNS), **settings)


def changing(**fields: Any) -> Fault:
    """Answer honestly, but for these fields."""

    def fault(_call: Call, proceed: Any) -> Any:
        return evolve(proceed(), **fields)

    return fault


@pytest.fixture
def services() -> dict[str, Faulty]:
    """Two services with a P-256 key each."""
    return {name: signer(name) for name in "ab"}


@pytest.fixture
def kms(services: dict[str, Faulty]) -> Iterator[Kms]:
    """A client of both."""
    with client(services) as kms:
        yield kms


# --- signing -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "algorithm"),
    [
        ("RSA", "RSA-PSS-SHA256"),
        ("ECDSA-P256", "ECDSA-SHA256"),
        ("ECDSA-P384", "ECDSA-SHA384"),
        ("ECDSA-P521", "ECDSA-SHA512"),
        ("Ed25519", "Ed25519"),
    ],
)
def test_key_signs_with_the_algorithm_it_prefers(kind: KeyKind, algorithm: str) -> None:
    """The result says which, by which version of which key, and who asked for it."""
    with client({"signs": signer("store", kind)}) as kms:
        signature = kms.sign(TOKEN)
        assert signature.algorithm == algorithm
        assert (signature.key_uri, signature.key_version) == ("memory://store/default/1", "1")
        assert signature.instance == "signs"
        assert kms.verify(TOKEN, signature)
        assert not kms.verify(TOKEN + b"1", signature)


def test_preferred_algorithm_is_asked_for_once(kms: Kms, services: dict[str, Faulty]) -> None:
    """Later signatures are one request each."""
    for _ in range(3):
        kms.sign(TOKEN)
    assert services["a"].count("public_key") == 1
    assert services["a"].count("sign") == 3


def test_algorithm_may_be_chosen() -> None:
    """Of those that the key has; nothing is asked for to find out."""
    signs = signer("rsa", "RSA")
    with client({"rsa": signs}) as kms:
        signature = kms.sign(TOKEN, algorithm="RSA-PKCS1-SHA512")
        assert signs.count("public_key") == 0
        assert signature.algorithm == "RSA-PKCS1-SHA512"
        assert kms.verify(TOKEN, signature)


def test_algorithm_that_the_key_does_not_have_is_the_callers_mistake(
    kms: Kms, services: dict[str, Faulty]
) -> None:
    """No other instance is asked: it would be another kind of signature."""
    with pytest.raises(InvalidRequest, match=r"a\.sign: .*RSA-PSS-SHA256"):
        kms.sign(TOKEN, algorithm="RSA-PSS-SHA256")
    assert services["b"].count("sign") == 0


@pytest.mark.parametrize("algorithm", ["ECDSA", "ecdsa-sha256", "RSA-OAEP-SHA256", ""])
def test_unknown_algorithm_reaches_no_service(
    kms: Kms, services: dict[str, Faulty], algorithm: str
) -> None:
    """The known ones are listed."""
    with pytest.raises(InvalidRequest, match=r"no algorithm .*known are ECDSA-SHA256, "):
        kms.sign(TOKEN, algorithm=algorithm)
    signature = evolve(kms.sign(TOKEN), algorithm=algorithm)
    with pytest.raises(InvalidRequest, match="no algorithm"):
        kms.verify(TOKEN, signature)
    assert services["a"].count("sign") == 1


def test_via_asks_that_instance_alone(kms: Kms, services: dict[str, Faulty]) -> None:
    """Also if it is down and another is not."""
    assert kms.sign(TOKEN, via="b").instance == "b"
    assert services["a"].count("sign") == 0
    services["b"].always("sign", DOWN)
    with pytest.raises(AllInstancesFailed) as raised:
        kms.sign(TOKEN, via="b")
    assert [attempt.instance for attempt in raised.value.attempts] == ["b"]
    assert services["a"].count("sign") == 0


def test_via_names_an_instance(kms: Kms) -> None:
    """Whoever mistypes it is told the names there are."""
    for call in (lambda: kms.sign(TOKEN, via="c"), lambda: kms.public_key(via="c")):
        with pytest.raises(InvalidRequest, match="no instance 'c'; known are a, b"):
            call()


def test_instance_that_encrypts_signs_only_if_named() -> None:
    """Purpose is about defaults."""
    with client_for({"a": service("a"), "b": signer("b")}) as kms:
        with pytest.raises(InvalidRequest, match='no instance has purpose = "sign"'):
            kms.sign(TOKEN)
        assert kms.verify(TOKEN, kms.sign(TOKEN, via="b"))


def test_another_key_signs_while_the_first_is_away(kms: Kms, services: dict[str, Faulty]) -> None:
    """The signature says so, and verifies as well."""
    services["a"].always("sign", DOWN)
    signature = kms.sign(TOKEN)
    assert signature.instance == "b"
    assert signature.key_uri == "memory://b/default/1"
    assert kms.verify(TOKEN, signature)


@pytest.mark.parametrize("allow_weaker", [False, True])
def test_weaker_key_signs_only_with_permission(allow_weaker: bool) -> None:  # noqa: FBT001
    """A signature by software is not what an HSM's signer asked for."""
    services = {
        "strong": signer("strong", protection="hsm"),
        "weak": signer("weak"),
        "as-strong": signer("as-strong", protection="hsm"),
    }
    services["strong"].always("sign", DOWN)
    with client(services, allow_weaker=allow_weaker) as kms:
        assert kms.sign(TOKEN).instance == ("weak" if allow_weaker else "as-strong")
        services["as-strong"].always("sign", DOWN)
        if not allow_weaker:
            with pytest.raises(AllInstancesFailed):
                kms.sign(TOKEN)
            assert services["weak"].count("sign") == 0


def test_what_is_signed_is_bytes_of_bounded_size(kms: Kms, services: dict[str, Faulty]) -> None:
    """Up to 1 MiB, nothing included; text and more than that reach no service."""
    for data in (b"", bytearray(b"data"), memoryview(b"data"), bytes(MAX_SIGNED_BYTES)):
        assert kms.verify(data, kms.sign(data))
    asked = services["a"].count("sign")
    with pytest.raises(InvalidRequest, match="sign a digest"):
        kms.sign(bytes(MAX_SIGNED_BYTES + 1))
    with pytest.raises(InvalidRequest, match="expected bytes, got str"):
        kms.sign("text")  # type: ignore[arg-type]
    assert services["a"].count("sign") == asked


# --- verifying -----------------------------------------------------------------------------------


def test_verification_is_local(kms: Kms, services: dict[str, Faulty]) -> None:
    """The key is asked for once per version; afterwards the service may be away."""
    signature = kms.sign(TOKEN, algorithm="ECDSA-SHA256")
    assert kms.verify(TOKEN, signature)
    store_of(services["a"]).panel.fail(Failure.REFUSE)
    for _ in range(3):
        assert kms.verify(TOKEN, signature)
    assert not kms.verify(b"another", signature)
    assert services["a"].count("public_key") == 1
    assert services["a"].count("verify") == 0


def test_key_that_was_never_seen_cannot_be_verified_in_an_outage(
    kms: Kms, services: dict[str, Faulty]
) -> None:
    """An error, not "invalid": nobody knows."""
    signature = kms.sign(TOKEN, algorithm="ECDSA-SHA256")
    store_of(services["a"]).panel.fail(Failure.REFUSE)
    with pytest.raises(AllInstancesFailed):
        kms.verify(TOKEN, signature)


def test_anything_altered_does_not_verify(kms: Kms) -> None:
    """Data, signature, its length or its encoding."""
    signature = kms.sign(TOKEN)
    good = signature.data
    spoilt = [
        good[:-1] + bytes([good[-1] ^ 1]),
        good[:-1],
        good + b"\0",
        b"",
        b"\x30\x06\x02\x01\x01\x02\x01\x01",  # well-formed DER of r = s = 1
        bytes(64),  # r || s as some services write it
    ]
    for data in spoilt:
        assert kms.verify(TOKEN, evolve(signature, data=data)) is False


def test_signature_of_one_key_is_none_of_another(kms: Kms) -> None:
    """Whatever the signature claims."""
    signature = kms.sign(TOKEN, via="a")
    other = kms.sign(TOKEN, via="b")
    assert not kms.verify(TOKEN, evolve(signature, key_uri=other.key_uri))


def test_signature_does_not_choose_how_it_is_judged() -> None:
    """An algorithm that is not this key's is an error, before and after the key is known."""
    with client({"a": signer("a")}) as kms:
        claimed = evolve(kms.sign(TOKEN, algorithm="ECDSA-SHA256"), algorithm="RSA-PSS-SHA256")
        for _ in range(2):
            with pytest.raises(InvalidRequest, match="has ECDSA-SHA256, not RSA-PSS-SHA256"):
                kms.verify(TOKEN, claimed)


def test_mac_is_not_accepted_under_a_key_that_signs(kms: Kms) -> None:
    """A public key is no secret to make MACs with."""
    claimed = evolve(kms.sign(TOKEN), algorithm="HMAC-SHA256")
    with pytest.raises(InvalidRequest):
        kms.verify(TOKEN, claimed)


def test_only_signatures_are_verified(kms: Kms) -> None:
    """Bare bytes do not say whose they are."""
    with pytest.raises(InvalidRequest, match="the Signature that sign"):
        kms.verify(TOKEN, kms.sign(TOKEN).data)  # type: ignore[arg-type]


def test_rotation_leaves_old_signatures_valid(kms: Kms, services: dict[str, Faulty]) -> None:
    """Each is judged by the version it names."""
    old = kms.sign(TOKEN)
    store_of(services["a"]).rotate("default")
    new = kms.sign(TOKEN)
    assert (old.key_version, new.key_version) == ("1", "2")
    assert kms.verify(TOKEN, old)
    assert kms.verify(TOKEN, new)
    assert not kms.verify(TOKEN, evolve(old, key_uri=new.key_uri))
    assert kms.public_key().key_version == "2"


@pytest.mark.parametrize(
    "key_uri",
    ["memory://elsewhere/default/1", "memory://a/other/1", "memory://a/default/7"],
    ids=["another store", "another key", "a version that is not there"],
)
def test_key_that_no_instance_has_is_an_error(kms: Kms, key_uri: str) -> None:
    """It is not looked for elsewhere, and the answer is not "invalid"."""
    claimed = evolve(kms.sign(TOKEN), key_uri=key_uri)
    with pytest.raises(AllInstancesFailed) as raised:
        kms.verify(TOKEN, claimed)
    assert {type(error) for error in raised.value.exceptions} == {KeyNotFound}
    assert key_uri in str(raised.value)


def test_key_of_a_provider_that_is_not_configured_reaches_nobody(
    kms: Kms, services: dict[str, Faulty]
) -> None:
    """Nobody can have it."""
    claimed = evolve(kms.sign(TOKEN), key_uri="aws-kms://arn:aws:kms:us-east-1:111122223333:key/x")
    before = services["a"].calls
    with pytest.raises(InvalidRequest, match="no instance can have the key aws-kms://"):
        kms.verify(TOKEN, claimed)
    assert services["a"].calls == before


def test_verify_via_another_instance_does_not_find_the_key(kms: Kms) -> None:
    """That is what was asked."""
    signature = kms.sign(TOKEN, algorithm="ECDSA-SHA256", via="a")
    with pytest.raises(AllInstancesFailed):
        kms.verify(TOKEN, signature, via="b")


def test_verify_via_names_an_instance(kms: Kms) -> None:
    """As everywhere else."""
    with pytest.raises(InvalidRequest, match="no instance 'c'; known are a, b"):
        kms.verify(TOKEN, kms.sign(TOKEN), via="c")


def test_foreign_signature_does_not_keep_others_from_being_verified(
    kms: Kms, services: dict[str, Faulty]
) -> None:
    """Whoever sends signatures by unknown keys does not shut the known ones out."""
    signature = kms.sign(TOKEN, algorithm="ECDSA-SHA256")
    with pytest.raises(AllInstancesFailed):
        kms.verify(TOKEN, evolve(signature, key_uri="memory://elsewhere/default/1"))
    assert kms.verify(TOKEN, signature)


def test_weaker_instance_verifies_for_a_stronger_one() -> None:
    """Checking takes no secret, so protection does not matter."""
    services = {"strong": signer("strong", protection="hsm"), "weak": signer("weak")}
    with client(services) as kms:
        assert kms.verify(TOKEN, kms.sign(TOKEN, via="weak"))


def test_public_keys_that_are_kept_are_bounded() -> None:
    """The one that was learnt first is asked for again, and no others are lost."""
    signs = signer("a")
    store = store_of(signs)
    with client({"a": signs}) as kms:
        signatures = []
        for _ in range(MAX_PUBLIC_KEYS + 1):
            signatures.append(kms.sign(TOKEN, algorithm="ECDSA-SHA256"))
            assert kms.verify(TOKEN, signatures[-1])
            store.rotate("default")
        asked = signs.count("public_key")
        assert asked == len(signatures)
        assert kms.verify(TOKEN, signatures[-1])
        assert signs.count("public_key") == asked
        assert kms.verify(TOKEN, signatures[0])
        assert signs.count("public_key") == asked + 1
        assert len(kms._router.relays["a"]._public_keys) == MAX_PUBLIC_KEYS


# --- MACs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["HMAC-SHA256", "HMAC-SHA384", "HMAC-SHA512"])
def test_macs_are_checked_by_the_service(algorithm: KeyKind) -> None:
    """Each time: there is no public key."""
    macs = signer("a", algorithm)
    with client({"a": macs}) as kms:
        mac = kms.sign(TOKEN, algorithm=algorithm)
        assert mac.algorithm == algorithm
        assert kms.verify(TOKEN, mac)
        assert not kms.verify(b"other", mac)
        assert not kms.verify(TOKEN, evolve(mac, data=mac.data[:-1]))
        assert macs.count("verify") == 3
        store_of(macs).rotate("default")
        assert kms.verify(TOKEN, mac)
        macs.always("verify", DOWN)
        with pytest.raises(AllInstancesFailed):
            kms.verify(TOKEN, mac)


def test_mac_has_to_be_asked_for_by_name() -> None:
    """A key without a public half does not say what it prefers."""
    with (
        client({"a": signer("a", "HMAC-SHA256")}) as kms,
        pytest.raises(InvalidRequest, match="has no public key"),
    ):
        kms.sign(TOKEN)


# --- public keys ---------------------------------------------------------------------------------


def test_public_key_verifies_without_this_library(kms: Kms) -> None:
    """It is SubjectPublicKeyInfo, and the signature what everybody expects."""
    told = kms.public_key()
    assert (told.key_uri, told.key_version) == ("memory://a/default/1", "1")
    assert told.algorithms == ("ECDSA-SHA256",)
    assert told.wrap_alg is None
    key = load_der_public_key(told.der)
    assert isinstance(key, ec.EllipticCurvePublicKey)
    key.verify(kms.sign(TOKEN).data, TOKEN, ec.ECDSA(SHA256()))


def test_public_key_is_told_by_the_service_each_time(kms: Kms, services: dict[str, Faulty]) -> None:
    """Whoever asks wants to know; the first that can be asked answers, or the one that is named."""
    assert kms.public_key(via="b").key_uri == "memory://b/default/1"
    kms.public_key()
    kms.public_key()
    assert services["a"].count("public_key") == 2
    services["a"].always("public_key", DOWN)
    assert kms.public_key().key_uri == "memory://b/default/1"


# --- providers that answer wrongly ---------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        returning(b"bytes"),
        returning(None),
        changing(algorithm="ECDSA-SHA384"),
        changing(data=b""),
        changing(data="text"),
        changing(data=bytes(8193)),
        changing(key_uri=None),
        changing(key_uri="memory://with a space/1"),
        echoing("other://a/default/1"),
        raising(ValueError, "secret"),
    ],
    ids=[
        "bytes",
        "nothing",
        "another algorithm",
        "an empty signature",
        "a signature of text",
        "a huge signature",
        "no key",
        "a malformed key URI",
        "another provider's key",
        "a crash",
    ],
)
def test_wrong_answer_to_sign_is_a_bug_of_the_provider(
    kms: Kms, services: dict[str, Faulty], wrong: Fault
) -> None:
    """It says whose, never shows what, and another instance signs."""
    services["a"].always("sign", wrong)
    with pytest.raises(AllInstancesFailed) as raised:
        kms.sign(TOKEN, algorithm="ECDSA-SHA256", via="a")
    (error,) = raised.value.exceptions
    assert isinstance(error, ProviderBug)
    assert str(error).startswith("a.sign: ")
    assert "secret" not in str(error)
    assert kms.sign(TOKEN, algorithm="ECDSA-SHA256").instance == "b"


@pytest.mark.parametrize(
    "wrong",
    [
        returning(b"bytes"),
        changing(der=b"junk"),
        changing(der="text"),
        changing(wrap_alg=0x0201),
        echoing("other://a/default/1"),
    ],
    ids=["bytes", "junk", "text", "a foreign wrap_alg", "another provider's key"],
)
def test_wrong_public_key_is_a_bug_of_the_provider(
    kms: Kms, services: dict[str, Faulty], wrong: Fault
) -> None:
    """Nothing is judged by it, and it is not kept."""
    signature = kms.sign(TOKEN, algorithm="ECDSA-SHA256", via="a")
    services["a"].always("public_key", wrong)
    for ask in (lambda: kms.public_key(via="a"), lambda: kms.verify(TOKEN, signature, via="a")):
        with pytest.raises(AllInstancesFailed) as raised:
            ask()
        (error,) = raised.value.exceptions
        assert isinstance(error, ProviderBug)
        assert str(error).startswith("a.public_key: ")
    services["a"].heal()
    assert kms.verify(TOKEN, signature)


def test_wrong_answer_to_verify_is_a_bug_of_the_provider() -> None:
    """Only ``True`` is true."""
    macs = signer("a", "HMAC-SHA256")
    with client({"a": macs}) as kms:
        mac = kms.sign(TOKEN, algorithm="HMAC-SHA256")
        macs.always("verify", returning(b"valid"))
        with pytest.raises(AllInstancesFailed) as raised:
            kms.verify(TOKEN, mac)
    (error,) = raised.value.exceptions
    assert isinstance(error, ProviderBug)
    assert str(error) == "a.verify: returned bytes"


def test_key_without_algorithms_cannot_prefer_one(kms: Kms, services: dict[str, Faulty]) -> None:
    """The provider has to tell."""
    services["a"].always("public_key", changing(algorithms=()))
    with pytest.raises(AllInstancesFailed) as raised:
        kms.sign(TOKEN, via="a")
    (error,) = raised.value.exceptions
    assert isinstance(error, ProviderBug)


class VerifyingProvider(MemoryProvider):
    """One that tells no public key."""

    public_key = None  # type: ignore[assignment]


class MuteProvider(VerifyingProvider):
    """One that cannot sign either."""

    sign = verify = None  # type: ignore[assignment]


def test_service_verifies_where_there_is_no_public_key() -> None:
    """Nothing is kept then."""
    signs = signer("a", provider=VerifyingProvider)
    with client({"a": signs}) as kms:
        signature = kms.sign(TOKEN, algorithm="ECDSA-SHA256")
        assert kms.verify(TOKEN, signature)
        assert not kms.verify(b"other", signature)
        assert signs.count("verify") == 2
        with pytest.raises(UnsupportedOperation, match="provider memory has no public_key"):
            kms.public_key()


def test_provider_that_does_not_sign_says_so() -> None:
    """By name, and for each operation."""
    with client({"a": signer("a", provider=MuteProvider)}) as kms:
        with pytest.raises(UnsupportedOperation, match="provider memory has no sign"):
            kms.sign(TOKEN, algorithm="ECDSA-SHA256")
        claimed = Signature(b"signature", "memory://a/default/1", "ECDSA-SHA256")
        with pytest.raises(UnsupportedOperation, match="provider memory has no verify"):
            kms.verify(TOKEN, claimed)


def test_algorithm_unknown_to_this_host_is_left_to_the_service(
    kms: Kms, services: dict[str, Faulty], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ML-DSA is where OpenSSL is too old."""

    def refuse(*_: object) -> None:
        raise UnsupportedAlgorithm("not here")

    signature = kms.sign(TOKEN, algorithm="ECDSA-SHA256")
    services["a"].always("verify", returning(value=True))  # it runs on this host, too
    monkeypatch.setattr("kms_core.asymmetric._check", refuse)
    for asked in (1, 2):
        assert kms.verify(TOKEN, signature) is True
        assert services["a"].count("verify") == asked


# --- around it -----------------------------------------------------------------------------------


def test_signing_instance_is_no_recipient() -> None:
    """Unless it is named; nothing is sealed to a key that cannot unwrap."""
    services = {"a": service("a"), "b": signer("b")}
    with client_for(services, instances={"b": SIGNS}) as kms:
        assert len(kms.inspect(kms.seal(b"data")).recipients) == 1
        assert kms.verify(TOKEN, kms.sign(TOKEN))
        assert kms.health(deep=True).status == "healthy"
        assert services["b"].count("encrypt") == 0


def test_observers_are_told_of_requests_only(services: dict[str, Faulty]) -> None:
    """Not of what is done here; a failure is told by its code."""
    events = Events()
    services["a"].queue("sign", raising(AccessDenied, "no"))
    with client(services, modules={"recorder": events.module}) as kms:
        signature = kms.sign(TOKEN, algorithm="ECDSA-SHA256")
        for _ in range(2):
            kms.verify(TOKEN, signature)
    told = [(event.instance, event.outcome) for event in events.of("sign")]
    assert told == [("a", "access_denied"), ("b", "ok")]
    assert [event.instance for event in events.of("public_key")] == ["b"]
    assert not events.of("verify")


def test_signer_that_may_not_sign_is_not_asked_at_once_again(
    services: dict[str, Faulty],
) -> None:
    """The other one signs meanwhile; after the cool-down it is tried."""
    clock = Clock()
    services["a"].queue("sign", raising(AccessDenied, "no"))
    with client(services, options={"clock": clock}) as kms:
        for _ in range(3):
            assert kms.sign(TOKEN, algorithm="ECDSA-SHA256").instance == "b"
        assert services["a"].count("sign") == 1
        clock.advance(1.0)
        assert kms.sign(TOKEN, algorithm="ECDSA-SHA256").instance == "a"


def test_closed_client_does_nothing(services: dict[str, Faulty]) -> None:
    """Also of what it could do without asking."""
    kms = client(services)
    signature = kms.sign(TOKEN)
    assert kms.verify(TOKEN, signature)
    kms.close()
    calls: list[Callable[[], object]] = [
        lambda: kms.sign(TOKEN),
        lambda: kms.verify(TOKEN, signature),
        kms.public_key,
    ]
    for call in calls:
        with pytest.raises(InvalidRequest, match="closed"):
            call()


def test_other_provider_types_are_not_asked_for_the_key() -> None:
    """A key URI says whose it is."""
    services = {"a": signer("a", provider=OtherProvider), "b": signer("b")}
    with client(services) as kms:
        assert kms.verify(TOKEN, kms.sign(TOKEN, via="b"))
        assert services["a"].calls == ()


def test_async_client_signs_and_verifies(services: dict[str, Faulty]) -> None:
    """The same names, awaitable, with the same errors."""

    async def work() -> tuple[PublicKey, Signature]:
        async with AsyncKms(client(services)) as kms:
            signature = await kms.sign(TOKEN)
            assert await kms.verify(TOKEN, signature)
            assert not await kms.verify(b"other", signature)
            assert (await kms.sign(TOKEN, via="b")).instance == "b"
            with pytest.raises(InvalidRequest):
                await kms.sign(TOKEN, algorithm="RSA-PSS-SHA256")
            return await kms.public_key(), signature

    public_key, signature = asyncio.run(asyncio.wait_for(work(), PATIENCE))
    assert public_key.key_uri == signature.key_uri


# --- breakers ------------------------------------------------------------------------------------


def broken(services: dict[str, Faulty], kms: Kms) -> None:
    """Let one failure open the breaker of ``a``."""
    services["a"].queue("sign", DOWN)
    assert kms.sign(TOKEN, algorithm="ECDSA-SHA256").instance == "b"
    assert kms.breakers["a"].state == "open"


def test_signature_by_an_unknown_key_says_nothing_about_a_service(
    services: dict[str, Faulty],
) -> None:
    """Nobody was asked, so no breaker closes."""
    clock = Clock()
    policy = BreakerPolicy(failure_threshold=1)
    with client(services, options={"clock": clock}, breaker=policy) as kms:
        broken(services, kms)
        clock.advance(policy.recovery_timeout)
        for number in range(policy.success_threshold):
            claimed = Signature(b"x", f"memory://elsewhere/key/{number}", "ECDSA-SHA256")
            with pytest.raises(AllInstancesFailed):
                kms.verify(TOKEN, claimed)
        assert kms.breakers["a"].state != "closed"


def test_monitor_does_not_wrap_with_a_key_that_signs(services: dict[str, Faulty]) -> None:
    """It cannot prove anything, and the log of the service fills with refusals."""
    with client(services, breaker=BreakerPolicy(failure_threshold=1)) as kms:
        broken(services, kms)
        policy = MonitorPolicy(interval=Duration(1.0))
        monitor = Monitor(
            policy, kms._router.relays, kms.health, kms._check_deeply, kms._emit, patience=PATIENCE
        )
        monitor.look()
        assert services["a"].count("encrypt") == 0
