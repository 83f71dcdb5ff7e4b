"""Every exception of the SDK has one meaning."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import pkcs11.exceptions
import pytest

from kms_core import (
    AccessDenied,
    Context,
    InvalidCiphertext,
    InvalidRequest,
    KeyDisabled,
    KeyNotFound,
    KMSError,
    Unavailable,
)
from kms_pkcs11.errors import (
    BY_CLASS,
    DOUBTFUL,
    PIN_REFUSED,
    STALE,
    is_doubtful,
    is_stale,
    translate,
)
from kms_pkcs11.sessions import Session

if TYPE_CHECKING:
    from tests.conftest import Providers

CONTEXT = Context({"tenant": "42"})
EVERY: dict[str, type[Exception]] = {
    name: kind
    for name, kind in vars(pkcs11.exceptions).items()
    if inspect.isclass(kind) and issubclass(kind, pkcs11.exceptions.PKCS11Error)
}
#: What this version of the SDK does not have yet or no longer.
KNOWN = sorted(BY_CLASS.keys() & EVERY.keys())


@pytest.mark.parametrize("name", KNOWN)
def test_sdk_exception_leaves_as_the_table_says(make: Providers, name: str) -> None:
    """Raised in the middle of a call, and without its text."""
    provider = make()
    blow_up(provider, EVERY[name]("very secret text"))
    with pytest.raises(KMSError) as caught:
        provider.encrypt("aes", b"key", CONTEXT)
    assert type(caught.value) is BY_CLASS[name]
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(EVERY.keys() - BY_CLASS.keys()))
def test_unlisted_exception_is_an_outage(name: str) -> None:
    """Nothing is lost by trying another instance."""
    assert isinstance(translate(EVERY[name]("x"), "encrypt", "key"), Unavailable)


def test_tables_name_what_exists() -> None:
    """A misspelt name would never match."""
    assert (STALE | DOUBTFUL | PIN_REFUSED | BY_CLASS.keys()) <= EVERY.keys()


@pytest.mark.parametrize("name", sorted(DOUBTFUL))
def test_doubtful_error_while_unwrapping_is_the_ciphertexts_if_a_canary_survives(
    make: Providers, name: str
) -> None:
    """The token is well, so it was the blob."""
    provider = make()
    wrapped = provider.encrypt("aes", b"key", CONTEXT)
    blow_up(provider, EVERY[name]("x"), times=1)
    with pytest.raises(InvalidCiphertext):
        provider.decrypt("aes", wrapped, CONTEXT)


@pytest.mark.parametrize("name", ["GeneralError", "DeviceError", "FunctionFailed"])
def test_doubtful_error_is_an_outage_if_no_canary_survives(make: Providers, name: str) -> None:
    """Nobody's ciphertext can be blamed for a token that is down."""
    provider = make()
    wrapped = provider.encrypt("aes", b"key", CONTEXT)
    blow_up(provider, EVERY[name]("x"))
    with pytest.raises(Unavailable):
        provider.decrypt("aes", wrapped, CONTEXT)


@pytest.mark.parametrize("name", sorted(STALE - {"NoSuchToken"}))
def test_stale_state_is_mended_and_the_call_repeated_once(make: Providers, name: str) -> None:
    """The caller does not notice; the second failure is final."""
    provider = make()
    provider.encrypt("aes", b"key", CONTEXT)
    blow_up(provider, EVERY[name]("x"), times=1)
    assert provider.decrypt("aes", provider.encrypt("aes", b"key", CONTEXT), CONTEXT) == b"key"


def test_classification_is_by_class() -> None:
    """Messages are a vendor's own."""
    assert is_stale(EVERY["SessionClosed"]("x"))
    assert is_stale(EVERY["GeneralError"]("x"))
    assert not is_stale(EVERY["GeneralError"]("SessionClosed"), unwrapping=True)
    assert is_doubtful(EVERY["GeneralError"]("x"))
    assert not is_doubtful(EVERY["PinIncorrect"]("x"))


@pytest.mark.parametrize(
    ("kind", "setting"),
    [
        (KeyNotFound, {"key": "nobody"}),
        (KeyNotFound, {"key": "aes", "key_id": "ff"}),
        (AccessDenied, {"pin": None}),
        (Unavailable, {"token": "nowhere"}),
    ],
)
def test_wrong_settings_are_told_apart_by_the_token(
    make: Providers, kind: type[KMSError], setting: dict[str, Any]
) -> None:
    """No key, no login, no token."""
    key = setting.pop("key", "aes")
    provider = make(key, **setting)
    if kind is AccessDenied:  # without a login private keys are invisible to this token
        kind = KeyNotFound
        make("aes").close()
    with pytest.raises(kind):
        provider.encrypt(key, b"key", CONTEXT)


def test_mechanism_that_the_token_lacks_is_the_callers(make: Providers) -> None:
    """One clear error instead of a vendor's."""
    with pytest.raises(InvalidRequest):
        make("rsa", mechanism="rsa-oaep-sha256").encrypt("rsa", b"key", CONTEXT)
    with pytest.raises(KMSError) as caught:
        make("ec", mechanism="aes-gcm").encrypt("ec", b"key", CONTEXT)
    assert isinstance(caught.value, KeyNotFound | KeyDisabled)


def blow_up(provider: Any, exc: Exception, *, times: int = 1000) -> None:
    """Whoever looks for a key gets this exception, so many times."""
    sessions = provider._sessions
    honest = sessions._with_session
    left = [times]

    def with_session(pool: Any, work: Any) -> Any:
        def failing(session: Session) -> Any:
            if left[0] > 0:
                left[0] -= 1
                raise exc
            return work(session)

        return honest(pool, failing)

    sessions._with_session = with_session
