"""A token in another process: it dies, comes back and hangs, and nobody's data is blamed."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from kms_core import Ciphertext, Context, InvalidCiphertext, Unavailable
from kms_pkcs11 import module as modules
from kms_pkcs11.provider import Pkcs11Provider

if TYPE_CHECKING:
    from kms_core.testing.servers.softhsm import RemoteToken
    from tests.conftest import Providers

#: python-pkcs11 ends searches in finalisers, which cannot say that there is nobody to end them.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

CONTEXT = Context({"tenant": "42"})
DATA_KEY = bytes(range(32))


@pytest.fixture
def provider(
    remote: RemoteToken, make: Providers, monkeypatch: pytest.MonkeyPatch
) -> Pkcs11Provider:
    """On that token, and with a module that may be renewed as often as it takes."""
    monkeypatch.setattr(modules, "PAUSE", 0.0)
    return make("rsa", module=remote.module, mechanism="rsa-oaep-sha1")


def test_restart_costs_nobody_a_call(provider: Pkcs11Provider, remote: RemoteToken) -> None:
    """Above all a good ciphertext does not pass for an altered one."""
    wrapped = provider.encrypt("rsa", DATA_KEY, CONTEXT)
    remote.restart()
    assert provider.decrypt("rsa", wrapped, CONTEXT) == DATA_KEY
    remote.restart()
    assert provider.encrypt("rsa", DATA_KEY, CONTEXT)
    remote.restart()
    assert provider.sign("rsa", b"message", "RSA-PKCS1-SHA256").data


def test_token_that_is_down_is_an_outage(provider: Pkcs11Provider, remote: RemoteToken) -> None:
    """For every hook, and for as long as it is down."""
    wrapped = provider.encrypt("rsa", DATA_KEY, CONTEXT)
    remote.kill()
    for _ in range(2):
        with pytest.raises(Unavailable):
            provider.decrypt("rsa", wrapped, CONTEXT)
        with pytest.raises(Unavailable):
            provider.encrypt("rsa", DATA_KEY, CONTEXT)
        with pytest.raises(Unavailable):
            provider.sign("rsa", b"message", "RSA-PKCS1-SHA256")
        with pytest.raises(Unavailable):
            provider.health("rsa")
    remote.restart()
    assert provider.decrypt("rsa", wrapped, CONTEXT) == DATA_KEY


def test_token_that_is_down_at_first_is_an_outage(
    provider: Pkcs11Provider, remote: RemoteToken
) -> None:
    """Starting before it does no harm."""
    remote.kill()
    with pytest.raises(Unavailable):
        provider.encrypt("rsa", DATA_KEY, CONTEXT)
    remote.restart()
    assert provider.encrypt("rsa", DATA_KEY, CONTEXT)


def test_altered_ciphertext_is_still_told(provider: Pkcs11Provider, remote: RemoteToken) -> None:
    """Also right after a restart."""
    wrapped = provider.encrypt("rsa", DATA_KEY, CONTEXT)
    altered = bytes([0]) + wrapped.data[1:-1] + bytes([wrapped.data[-1] ^ 1])
    remote.restart()
    with pytest.raises(InvalidCiphertext):
        provider.decrypt(
            "rsa", Ciphertext(altered, wrapped.key_uri, wrap_alg=wrapped.wrap_alg), CONTEXT
        )


def test_token_that_hangs_holds_up_no_other_module(
    provider: Pkcs11Provider, remote: RemoteToken, make: Providers
) -> None:
    """Locks are one per module; the call that hangs is answered when it goes on."""
    other = make("aes")
    wrapped = provider.encrypt("rsa", DATA_KEY, CONTEXT)
    remote.stop()
    answers: list[Any] = []
    caller = threading.Thread(
        target=lambda: answers.append(provider.decrypt("rsa", wrapped, CONTEXT))
    )
    caller.start()
    try:
        assert other.encrypt("aes", DATA_KEY, CONTEXT)
        assert caller.is_alive()
    finally:
        remote.cont()
        caller.join(30)
    assert answers == [DATA_KEY]
