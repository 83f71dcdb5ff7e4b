"""Wrapping and unwrapping: rotation, integrity, kinds of keys, and who is asked how often."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import google_crc32c
import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key
from google.cloud.kms_v1 import types

from kms_core import (
    AccessDenied,
    Ciphertext,
    Context,
    InvalidCiphertext,
    InvalidRequest,
    KeyDisabled,
    KeyNotFound,
    ServiceError,
    Unavailable,
    bind_context,
)
from kms_core.testing.servers import Failure, GcpServer
from kms_gcp.keys import MAX_AGE
from kms_gcp.names import KeyName

if TYPE_CHECKING:
    from tests.conftest import Asked, Providers, Scripted

CONTEXT = Context({"tenant": "42"})
KEY = "projects/demo/locations/europe-west1/keyRings/ring/cryptoKeys/app"
VERSION = f"{KEY}/cryptoKeyVersions/1"
SECRET = bytes(range(32))
RSA = "ASYMMETRIC_DECRYPT"
Kind: Any = types.CryptoKeyVersion.CryptoKeyVersionAlgorithm


class Clock:
    """Stands still until it is moved."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def with_clock(provider: Any) -> Clock:
    """A clock that the provider goes by from now on."""
    clock = Clock()
    provider._keys._clock = provider._wrapping._public_keys._clock = clock
    return clock


def unwrap(provider: Any, ciphertext: Ciphertext) -> Any:
    """As the core does it: with the key id that ``match`` gives."""
    return provider.decrypt(provider.match(ciphertext.key_uri), ciphertext, CONTEXT)


# Symmetric keys


def test_symmetric_wrap_costs_one_request_each_way(gcp: GcpServer, make: Providers) -> None:
    """Nobody asks what the key is as long as it is of the usual kind."""
    provider = make(gcp, gcp.create_key())
    assert unwrap(provider, provider.encrypt(KEY, SECRET, CONTEXT)) == SECRET
    assert gcp.panel.count() == 2


def test_version_that_wrapped_is_recorded(gcp: GcpServer, make: Providers) -> None:
    """In URI and version, and all versions are opened."""
    provider = make(gcp, gcp.create_key())
    old = provider.encrypt(KEY, SECRET, CONTEXT)
    second = gcp.add_version(KEY)
    new = provider.encrypt(KEY, SECRET, CONTEXT)
    assert (old.key_uri, old.key_version) == (f"gcp-kms://{VERSION}", "1")
    assert (new.key_uri, new.key_version) == (f"gcp-kms://{second}", "2")
    assert unwrap(provider, old) == unwrap(provider, new) == SECRET


def test_disabled_version_opens_nothing(gcp: GcpServer, make: Providers) -> None:
    """Although others of the same key do."""
    provider = make(gcp, gcp.create_key())
    old = provider.encrypt(KEY, SECRET, CONTEXT)
    gcp.add_version(KEY)
    gcp.set_state(VERSION, "DISABLED")
    with pytest.raises(KeyDisabled, match="DISABLED"):
        unwrap(provider, old)
    assert provider.encrypt(KEY, SECRET, CONTEXT).key_version == "2"


def test_pinned_version_wraps_although_another_is_primary(gcp: GcpServer, make: Providers) -> None:
    """And the service is asked to decrypt with the key: with a version it would not."""
    gcp.create_key()
    gcp.add_version(KEY)
    provider = make(gcp, VERSION)
    wrapped = provider.encrypt(VERSION, SECRET, CONTEXT)
    assert wrapped.key_version == "1"
    assert unwrap(provider, wrapped) == SECRET
    assert provider.match(f"gcp-kms://{KEY}/cryptoKeyVersions/2") is None


def test_retired_key_opens_and_is_no_stranger(gcp: GcpServer, make: Providers) -> None:
    """What it wrapped before is opened by the instance that replaced it."""
    old_key, new_key = gcp.create_key("old"), gcp.create_key("new")
    wrapped = make(gcp, old_key).encrypt(old_key, SECRET, CONTEXT)
    provider = make(gcp, new_key, also_open=(old_key,))
    assert unwrap(provider, wrapped) == SECRET
    assert provider.encrypt(new_key, SECRET, CONTEXT).key_uri.startswith(f"gcp-kms://{new_key}/")


@pytest.mark.parametrize("key_id", ["other", f"{KEY}x", f"{KEY}/cryptoKeyVersions/0", ""])
def test_key_that_is_not_ours_is_refused(gcp: GcpServer, make: Providers, key_id: str) -> None:
    """The service is not asked."""
    provider = make(gcp, gcp.create_key())
    with pytest.raises(InvalidRequest, match=r"no key of this instance"):
        provider.encrypt(key_id, SECRET, CONTEXT)
    assert gcp.panel.count() == 0


@pytest.mark.parametrize("failure", [Failure.WRONG_KEY, Failure.CORRUPT_CRC, Failure.MALFORMED])
def test_wrap_that_is_not_beyond_doubt_is_none(
    gcp: GcpServer, make: Providers, failure: Failure
) -> None:
    """A wrap that nobody can open would lose the key."""
    provider = make(gcp, gcp.create_key())
    gcp.panel.fail(failure)
    with pytest.raises(Unavailable):
        provider.encrypt(KEY, SECRET, CONTEXT)


def encrypted(**fields: Any) -> bytes:
    """An answer of Encrypt that is as it should be, but for ``fields``."""
    blob = b"c" * 64
    good: dict[str, Any] = {
        "name": VERSION,
        "ciphertext": blob,
        "ciphertext_crc32c": google_crc32c.value(blob),
        "verified_plaintext_crc32c": True,
        "verified_additional_authenticated_data_crc32c": True,
    }
    return bytes(types.EncryptResponse.serialize(types.EncryptResponse(**{**good, **fields})))


def test_good_answer_is_taken(scripted: Scripted, make: Providers) -> None:
    """So that those below are refused for what they lack."""
    scripted.answer = lambda _asked: encrypted()
    assert make(scripted).encrypt(KEY, SECRET, CONTEXT).data == b"c" * 64


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"verified_plaintext_crc32c": False}, "verified_plaintext_crc32c"),
        (
            {"verified_additional_authenticated_data_crc32c": False},
            "verified_additional_authenticated_data_crc32c",
        ),
        ({"ciphertext_crc32c": 0}, "checksum of ciphertext"),
        ({"ciphertext_crc32c": None}, "checksum of ciphertext"),
        ({"ciphertext": b"", "ciphertext_crc32c": 0}, "proper ciphertext"),
        (
            {"ciphertext": bytes(9000), "ciphertext_crc32c": google_crc32c.value(bytes(9000))},
            "proper ciphertext",
        ),
        ({"name": ""}, "proper name"),
        ({"name": KEY}, "proper name"),
        ({"name": f"{VERSION}/x"}, "proper name"),
        ({"name": VERSION.replace("app", "other")}, "answered for"),
    ],
)
def test_answer_that_lacks_something_is_an_outage(
    scripted: Scripted, make: Providers, fields: dict[str, Any], named: str
) -> None:
    """And the message says what."""
    scripted.answer = lambda _asked: encrypted(**fields)
    with pytest.raises(Unavailable, match=named):
        make(scripted).encrypt(KEY, SECRET, CONTEXT)


def test_everything_is_sent_with_its_checksum(scripted: Scripted, make: Providers) -> None:
    """Plaintext, ciphertext and context."""
    provider = make(scripted)
    wrapped = Ciphertext(b"c" * 64, f"gcp-kms://{VERSION}", "1", 0x0301)
    with pytest.raises(Unavailable):
        provider.encrypt(KEY, bytearray(SECRET), CONTEXT)
    with pytest.raises(Unavailable):
        unwrap(provider, wrapped)
    encrypting, decrypting = (asked.parsed() for asked in scripted.requests)
    assert encrypting.plaintext_crc32c.value == google_crc32c.value(SECRET)
    assert decrypting.ciphertext_crc32c.value == google_crc32c.value(wrapped.data)
    assert decrypting.name == KEY
    for request in (encrypting, decrypting):
        assert request.additional_authenticated_data == CONTEXT.encoded
        checksum = request.additional_authenticated_data_crc32c.value
        assert checksum == google_crc32c.value(CONTEXT.encoded)


def test_wrap_of_nothing_is_refused(scripted: Scripted, make: Providers) -> None:
    """The service makes such wraps, this plugin never did."""
    answer = types.DecryptResponse(plaintext=b"", plaintext_crc32c=0)
    scripted.answer = lambda _asked: bytes(types.DecryptResponse.serialize(answer))
    with pytest.raises(InvalidCiphertext):
        unwrap(make(scripted), Ciphertext(b"c" * 64, f"gcp-kms://{VERSION}", "1", 0x0301))


@pytest.mark.parametrize("wrap_alg", [0, 0x0101, 0x0303, 0x7FFF])
def test_other_kinds_of_wrap_are_refused(gcp: GcpServer, make: Providers, wrap_alg: int) -> None:
    """Before anybody is asked."""
    provider = make(gcp, gcp.create_key())
    with pytest.raises(InvalidCiphertext):
        unwrap(provider, Ciphertext(b"c" * 64, f"gcp-kms://{VERSION}", "1", wrap_alg))
    assert gcp.panel.count() == 0


@pytest.mark.parametrize("size", [0, 8193])
def test_ciphertext_of_impossible_size_is_refused(
    gcp: GcpServer, make: Providers, size: int
) -> None:
    """Before anybody is asked."""
    provider = make(gcp, gcp.create_key())
    with pytest.raises(InvalidCiphertext):
        unwrap(provider, Ciphertext(bytes(size), f"gcp-kms://{VERSION}", "1", 0x0301))
    assert gcp.panel.count() == 0


# RSA keys


def test_rsa_wrap_is_made_here_and_opened_there(gcp: GcpServer, make: Providers) -> None:
    """Anybody with the public key could have made it."""
    provider = make(gcp, gcp.create_key(purpose=RSA))
    wrapped = provider.encrypt(KEY, SECRET, CONTEXT)
    assert (wrapped.wrap_alg, wrapped.key_uri) == (0x0302, f"gcp-kms://{VERSION}")
    assert unwrap(provider, wrapped) == SECRET
    public = load_der_public_key(provider.public_key(KEY).der)
    assert isinstance(public, rsa.RSAPublicKey)
    oaep = padding.OAEP(padding.MGF1(SHA256()), SHA256(), label=None)
    foreign = public.encrypt(bytes(bind_context(SECRET, CONTEXT)), oaep)
    assert unwrap(provider, attrs.evolve(wrapped, data=foreign)) == SECRET


def test_rsa_wrap_asks_once_an_hour(gcp: GcpServer, make: Providers) -> None:
    """For the version in use and its public key; a rotation is noticed by then."""
    provider = make(gcp, gcp.create_key(purpose=RSA))
    clock = with_clock(provider)
    provider.encrypt(KEY, SECRET, CONTEXT)
    before = gcp.panel.count()
    gcp.add_version(KEY)
    clock.now = MAX_AGE - 1
    assert provider.encrypt(KEY, SECRET, CONTEXT).key_version == "1"
    assert gcp.panel.count() == before
    clock.now = MAX_AGE
    assert provider.encrypt(KEY, SECRET, CONTEXT).key_version == "2"
    assert gcp.panel.count() == before + 2
    assert gcp.panel.count("Encrypt") == 1  # that the key is not symmetric is known for good


def test_own_rotation_is_noticed_at_once(gcp: GcpServer, make: Providers) -> None:
    """And wraps of the old version go on opening."""
    provider = make(gcp, gcp.create_key(purpose=RSA))
    old = provider.encrypt(KEY, SECRET, CONTEXT)
    assert provider.rotate_key(KEY).primary_version == "2"
    new = provider.encrypt(KEY, SECRET, CONTEXT)
    assert new.key_version == "2"
    assert unwrap(provider, old) == unwrap(provider, new) == SECRET


def test_newest_enabled_version_is_used(gcp: GcpServer, make: Providers) -> None:
    """By number, not by the order in which they are told."""
    gcp.create_key(purpose=RSA)
    for _ in range(2):
        gcp.add_version(KEY)
    gcp.set_state(f"{KEY}/cryptoKeyVersions/3", "DISABLED")
    assert make(gcp).encrypt(KEY, SECRET, CONTEXT).key_version == "2"


def test_key_without_enabled_version_is_disabled(gcp: GcpServer, make: Providers) -> None:
    """There is nothing to wrap with."""
    gcp.create_key(purpose=RSA)
    gcp.set_state(VERSION, "DISABLED")
    with pytest.raises(KeyDisabled, match="no enabled version"):
        make(gcp).encrypt(KEY, SECRET, CONTEXT)


def test_rsa_wrap_under_another_context_is_refused(gcp: GcpServer, make: Providers) -> None:
    """The service does not see the context, so it is checked here."""
    provider = make(gcp, gcp.create_key(purpose=RSA))
    wrapped = provider.encrypt(KEY, SECRET, Context({"tenant": "43"}))
    with pytest.raises(InvalidCiphertext):
        unwrap(provider, wrapped)


@pytest.mark.parametrize("plaintext", [b"", bind_context(b"", CONTEXT), bytes(40)])
def test_anybodys_wrap_of_nothing_is_refused(
    gcp: GcpServer, make: Providers, plaintext: bytes | bytearray
) -> None:
    """A public key encrypts whatever it is given."""
    provider = make(gcp, gcp.create_key(purpose=RSA))
    wrapped = provider.encrypt(KEY, SECRET, CONTEXT)
    public = load_der_public_key(provider.public_key(KEY).der)
    assert isinstance(public, rsa.RSAPublicKey)
    oaep = padding.OAEP(padding.MGF1(SHA256()), SHA256(), label=None)
    foreign = public.encrypt(bytes(plaintext), oaep)
    with pytest.raises(InvalidCiphertext):
        unwrap(provider, attrs.evolve(wrapped, data=foreign))


def test_rsa_wrap_without_a_version_is_refused(gcp: GcpServer, make: Providers) -> None:
    """The service does not say which version opens it, so the envelope has to."""
    provider = make(gcp, gcp.create_key(purpose=RSA))
    wrapped = provider.encrypt(KEY, SECRET, CONTEXT)
    with pytest.raises(InvalidCiphertext):
        unwrap(provider, attrs.evolve(wrapped, key_uri=f"gcp-kms://{KEY}"))


def test_version_that_does_not_exist_is_not_found(gcp: GcpServer, make: Providers) -> None:
    """Another recipient of the envelope may do."""
    provider = make(gcp, gcp.create_key(purpose=RSA))
    wrapped = provider.encrypt(KEY, SECRET, CONTEXT)
    with pytest.raises(KeyNotFound):
        unwrap(provider, attrs.evolve(wrapped, key_uri=f"gcp-kms://{KEY}/cryptoKeyVersions/9"))


def test_too_much_for_the_key_is_the_callers_mistake(gcp: GcpServer, make: Providers) -> None:
    """The message says how much it takes."""
    with pytest.raises(InvalidRequest, match="1 to 158 bytes, not 159"):
        make(gcp, gcp.create_key(purpose=RSA)).encrypt(KEY, bytes(159), CONTEXT)


@pytest.mark.parametrize(
    ("purpose", "algorithm"),
    [
        ("ASYMMETRIC_SIGN", "EC_SIGN_P256_SHA256"),
        ("MAC", "HMAC_SHA256"),
        ("RAW_ENCRYPT_DECRYPT", "AES_256_GCM"),
        (RSA, "RSA_DECRYPT_OAEP_2048_SHA1"),
    ],
)
def test_key_that_wraps_nothing_is_the_callers_mistake(
    gcp: GcpServer, make: Providers, purpose: str, algorithm: str
) -> None:
    """The message says what it is."""
    key = gcp.create_key(purpose=purpose, algorithm=algorithm)
    with pytest.raises(InvalidRequest, match=f"{algorithm} and wraps nothing"):
        make(gcp, key).encrypt(key, SECRET, CONTEXT)


# Envelopes that lie about how they were made


def test_rsa_wrap_called_symmetric_is_refused(gcp: GcpServer, make: Providers) -> None:
    """Whoever altered the envelope altered that."""
    provider = make(gcp, gcp.create_key(purpose=RSA))
    wrapped = attrs.evolve(provider.encrypt(KEY, SECRET, CONTEXT), wrap_alg=0x0301)
    for instance in (provider, make(gcp)):  # one that knows the key, and one that does not
        with pytest.raises(InvalidCiphertext):
            unwrap(instance, wrapped)


def test_symmetric_wrap_called_rsa_is_refused(gcp: GcpServer, make: Providers) -> None:
    """The same the other way round."""
    gcp.create_key()
    wrapped = Ciphertext(bytes(256), f"gcp-kms://{VERSION}", "1", 0x0302)
    with pytest.raises(InvalidCiphertext):
        unwrap(make(gcp), wrapped)


# Asking what a key is


def test_denied_wrap_is_denied_if_the_key_is_symmetric(gcp: GcpServer, make: Providers) -> None:
    """What the key is does not explain it, and is asked once only."""
    gcp.create_key()
    provider = make(gcp)
    gcp.panel.fail(Failure.ACCESS_DENIED, operation="Encrypt")
    for _ in range(2):
        with pytest.raises(AccessDenied):
            provider.encrypt(KEY, SECRET, CONTEXT)
    assert gcp.panel.count("Encrypt") == 2
    assert gcp.panel.count("ListCryptoKeyVersions") == 1


def test_denied_wrap_may_mean_that_the_key_is_rsa(gcp: GcpServer, make: Providers) -> None:
    """Nobody has the permission to encrypt with a key that only decrypts."""
    gcp.create_key(purpose=RSA)
    gcp.panel.fail(Failure.ACCESS_DENIED, operation="Encrypt")
    assert make(gcp).encrypt(KEY, SECRET, CONTEXT).wrap_alg == 0x0302


@pytest.mark.parametrize("failure", [Failure.ACCESS_DENIED, Failure.SERVER_ERROR])
def test_first_refusal_is_told_if_nobody_says_what_the_key_is(
    gcp: GcpServer, make: Providers, failure: Failure
) -> None:
    """It says more than the second."""
    gcp.create_key(purpose="MAC")
    gcp.panel.fail(failure, operation="ListCryptoKeyVersions")
    with pytest.raises(ServiceError, match="FAILED_PRECONDITION in Encrypt") as caught:
        make(gcp).encrypt(KEY, SECRET, CONTEXT)
    assert type(caught.value) is ServiceError


def test_trouble_behind_a_known_key_is_no_verdict(scripted: Scripted, make: Providers) -> None:
    """An external key manager that is down does not make a ciphertext a bad one."""
    provider = make(scripted)
    scripted.answer = lambda _asked: encrypted()
    wrapped = provider.encrypt(KEY, SECRET, CONTEXT)
    scripted.refusal = (grpc.StatusCode.FAILED_PRECONDITION, "EKM", ())
    with pytest.raises(ServiceError) as caught:
        unwrap(provider, wrapped)
    assert type(caught.value) is ServiceError


def test_versions_are_asked_for_page_by_page(scripted: Scripted, make: Providers) -> None:
    """The newest is not always on the first page."""
    algorithm = Kind["EC_SIGN_P256_SHA256"]

    def answer(asked: Asked) -> bytes:
        if asked.rpc != "ListCryptoKeyVersions":
            return b""
        first = not asked.parsed().page_token
        name = VERSION if first else f"{KEY}/cryptoKeyVersions/2"
        page = types.ListCryptoKeyVersionsResponse(
            crypto_key_versions=[types.CryptoKeyVersion(name=name, algorithm=algorithm, state=1)],
            next_page_token="second" if first else "",
        )
        return bytes(types.ListCryptoKeyVersionsResponse.serialize(page))

    scripted.answer = answer
    assert make(scripted)._keys.newest(KeyName.configured(KEY, None)).number == 2
    first, second = (asked.parsed() for asked in scripted.requests)
    assert (first.page_token, second.page_token) == ("", "second")
    assert first.filter == second.filter == "state=ENABLED"
    assert first.parent == second.parent == KEY


def test_endless_pages_are_given_up(scripted: Scripted, make: Providers) -> None:
    """A server that always has more is not believed for ever."""

    def answer(asked: Asked) -> bytes:
        if asked.rpc != "ListCryptoKeyVersions":
            return b""
        page = types.ListCryptoKeyVersionsResponse(next_page_token="more")
        return bytes(types.ListCryptoKeyVersionsResponse.serialize(page))

    scripted.answer = answer
    with pytest.raises(KeyDisabled):
        make(scripted).sign(KEY, b"message", "HMAC-SHA256")
    assert len(scripted.requests) == 20


def test_version_that_changes_its_algorithm_is_an_outage(
    scripted: Scripted, make: Providers
) -> None:
    """Versions never do."""
    algorithms = iter(("HMAC_SHA256", "HMAC_SHA512"))

    def answer(_asked: Asked) -> bytes:
        version = types.CryptoKeyVersion(
            name=VERSION,
            algorithm=Kind[next(algorithms)],
        )
        return bytes(types.CryptoKeyVersion.serialize(version))

    scripted.answer = answer
    provider = make(scripted, VERSION)
    provider.health(VERSION)
    with pytest.raises(Unavailable, match="proper algorithm"):
        provider.health(VERSION)
