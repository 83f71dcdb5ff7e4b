"""Every exception of the SDK has one meaning."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import pkcs11.exceptions
import pytest

from kms_core import (
    AccessDenied,
    Ciphertext,
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
from kms_pkcs11.wrapping import GCM

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
    provider._wrappings = {GCM: Picky(provider._chosen, wrapped.data, EVERY[name]("x"))}
    with pytest.raises(InvalidCiphertext):
        provider.decrypt("aes", wrapped, CONTEXT)


@pytest.mark.parametrize("name", sorted(DOUBTFUL))
def test_doubtful_error_that_goes_away_costs_nobody_a_ciphertext(
    make: Providers, name: str
) -> None:
    """A token that restarts in the middle of a call has altered nothing."""
    provider = make()
    wrapped = provider.encrypt("aes", b"key", CONTEXT)
    blow_up(provider, EVERY[name]("x"), times=1)
    assert provider.decrypt("aes", wrapped, CONTEXT) == b"key"


def test_token_that_unwraps_nothing_is_an_outage(make: Providers) -> None:
    """Not even what it has just wrapped: the ciphertext is not to blame."""
    provider = make()
    wrapped = provider.encrypt("aes", b"key", CONTEXT)
    provider._wrappings = {GCM: Picky(provider._chosen, None, EVERY["EncryptedDataInvalid"]("x"))}
    with pytest.raises(Unavailable):
        provider.decrypt("aes", wrapped, CONTEXT)
    provider._wrappings = {GCM: Babbling(provider._chosen, None)}
    with pytest.raises(Unavailable, match="something else"):
        provider.health("aes")


def test_other_error_after_the_canary_is_told_as_it_is(make: Providers) -> None:
    """Doubtful at first, clear at last."""
    provider = make()
    wrapped = provider.encrypt("aes", b"key", CONTEXT)
    errors = EVERY["GeneralError"]("x"), EVERY["FunctionRejected"]("x")
    provider._wrappings = {GCM: Picky(provider._chosen, wrapped.data, *errors)}
    with pytest.raises(AccessDenied):
        provider.decrypt("aes", wrapped, CONTEXT)
    errors = EVERY["GeneralError"]("x"), InvalidRequest("told by us")
    provider._wrappings = {GCM: Picky(provider._chosen, wrapped.data, *errors)}
    with pytest.raises(InvalidRequest, match="told by us"):
        provider.decrypt("aes", wrapped, CONTEXT)


def test_bad_ciphertexts_use_up_no_sessions(make: Providers) -> None:
    """Whoever can send them could shut everybody out otherwise."""
    provider = make()
    wrapped = provider.encrypt("aes", b"key", CONTEXT)
    opened: list[Any] = []
    sessions = provider._sessions
    honest = sessions._opened
    sessions._opened = lambda pool: opened.append(pool) or honest(pool)  # type: ignore[method-assign,func-returns-value]
    altered = Ciphertext(wrapped.data[::-1], wrapped.key_uri, wrap_alg=GCM)
    for _ in range(5):
        with pytest.raises(InvalidCiphertext):
            provider.decrypt("aes", altered, CONTEXT)
    assert opened == []


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
        (KeyNotFound, {"pin": None}),  # this token shows no private key without a login
        (Unavailable, {"token": "nowhere"}),
        (Unavailable, {"token_serial": "0123456789abcdef"}),
    ],
)
def test_wrong_settings_are_told_apart_by_the_token(
    make: Providers, kind: type[KMSError], setting: dict[str, Any]
) -> None:
    """No key, no login, no token."""
    settings = {"key": "aes", **setting}
    key = settings["key"]
    provider = make(**settings)
    with pytest.raises(kind):
        provider.encrypt(key, b"key", CONTEXT)


def test_mechanism_that_the_token_lacks_is_the_callers(make: Providers) -> None:
    """One clear error instead of a vendor's."""
    with pytest.raises(InvalidRequest):
        make("rsa", mechanism="rsa-oaep-sha256").encrypt("rsa", b"key", CONTEXT)
    with pytest.raises(KMSError) as caught:
        make("ec", mechanism="aes-gcm").encrypt("ec", b"key", CONTEXT)
    assert isinstance(caught.value, KeyNotFound | KeyDisabled)


class Picky:
    """A way to wrap that fails on one blob, or on all: with each error once, then the last."""

    def __init__(self, honest: Any, blob: bytes | None, *errors: Exception) -> None:
        self._honest = honest
        self._blob = blob
        self._errors = list(errors)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._honest, name)

    def unwrap(self, session: Session, name: Any, blob: bytes, context: Context) -> Any:
        if self._blob in {None, blob}:
            raise self._errors.pop(0) if len(self._errors) > 1 else self._errors[0]
        return self._honest.unwrap(session, name, blob, context)


class Babbling(Picky):
    """A way to wrap that gives back anything."""

    def unwrap(self, session: Session, name: Any, blob: bytes, context: Context) -> Any:
        return b"anything"


def blow_up(provider: Any, exc: Exception, *, times: int = 1000) -> None:
    """Whoever looks for a key gets this exception, so many times."""
    sessions = provider._sessions
    honest = sessions._with_session
    left = [times]

    def with_session(pool: Any, work: Any, **options: Any) -> Any:
        def failing(session: Session) -> Any:
            if left[0] > 0:
                left[0] -= 1
                raise exc
            return work(session)

        return honest(pool, failing, **options)

    sessions._with_session = with_session
