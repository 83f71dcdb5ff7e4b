"""Every way in which the service fails on cue: what each hook makes of it, after one request."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from attrs import frozen

from kms_core import (
    AccessDenied,
    Context,
    DeadlineExceeded,
    Duration,
    KeyDisabled,
    KeyNotFound,
    KMSError,
    Throttled,
    Unavailable,
)
from kms_core.testing.servers import Failure, StrictAwsServer

if TYPE_CHECKING:
    from kms_aws.provider import AwsKmsProvider
    from tests.conftest import Providers

CONTEXT = Context({"tenant": "42"})
SIGNING = {"spec": "ECC_NIST_P256", "usage": "SIGN_VERIFY"}
HOOKS = {
    "encrypt": "Encrypt",
    "decrypt": "Decrypt",
    "generate_data_key": "GenerateDataKey",
    "sign": "Sign",
    "verify": "Verify",
    "public_key": "GetPublicKey",
    "health": "DescribeKey",
    "describe_key": "DescribeKey",
}
KINDS: dict[Failure, type[KMSError]] = {
    Failure.REFUSE: Unavailable,
    Failure.HANG: DeadlineExceeded,
    Failure.SLOW: DeadlineExceeded,
    Failure.RESET: Unavailable,
    Failure.THROTTLE: Throttled,
    Failure.SERVER_ERROR: Unavailable,
    Failure.MALFORMED: Unavailable,
    Failure.ACCESS_DENIED: AccessDenied,
    Failure.KEY_DISABLED: KeyDisabled,
    Failure.KEY_NOT_FOUND: KeyNotFound,
    Failure.WRONG_KEY: Unavailable,
}


@pytest.fixture
def server() -> Iterator[StrictAwsServer]:
    """The strict server itself, with nothing in between."""
    with StrictAwsServer() as server:
        yield server


@frozen
class Call:
    """One hook with what it is called with."""

    provider: AwsKmsProvider
    hook: str
    given: dict[str, Any]

    def __call__(self) -> Any:
        return getattr(self.provider, self.hook)(**self.given)


def prepared(server: StrictAwsServer, make: Providers, hook: str, **settings: Any) -> Call:
    """A call that works, as it has been tried once."""
    signing = hook in {"sign", "verify", "public_key"}
    options: dict[str, Any] = SIGNING if signing else {}
    arn = server.create_key(**options)
    provider = make(server, arn, **settings)
    given: dict[str, Any] = {"key_id": arn}
    match hook:
        case "encrypt":
            given |= {"plaintext": b"k", "context": CONTEXT}
        case "decrypt":
            given |= {"ciphertext": provider.encrypt(arn, b"k", CONTEXT), "context": CONTEXT}
        case "generate_data_key":
            given |= {"context": CONTEXT}
        case "sign":
            given |= {"data": b"m", "algorithm": "ECDSA-SHA256"}
        case "verify":
            signature = provider.sign(arn, b"m", "ECDSA-SHA256")
            given |= {"data": b"m", "signature": signature, "algorithm": "ECDSA-SHA256"}
    call = Call(provider, hook, given)
    call()
    return call


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("failure", KINDS)
def test_failure_becomes_its_class_after_one_request(
    server: StrictAwsServer, make: Providers, failure: Failure, hook: str
) -> None:
    """Whatever is asked, the same fault means the same, and afterwards all is well again."""
    waits = failure in {Failure.HANG, Failure.SLOW}
    call = prepared(server, make, hook, attempt_timeout=Duration(0.3 if waits else 20.0))
    before = server.panel.count(HOOKS[hook])
    server.panel.fail(failure)
    with pytest.raises(KMSError) as caught:
        call()
    assert type(caught.value) is KINDS[failure]
    arrived = failure not in {Failure.REFUSE, Failure.HANG}
    assert server.panel.count(HOOKS[hook]) == before + arrived
    server.panel.heal()
    assert call()


def test_every_failure_is_covered(server: StrictAwsServer) -> None:
    """All that this service can do wrong has a row."""
    assert server.panel.failures == KINDS.keys()


def test_throttling_tells_how_long(server: StrictAwsServer, make: Providers) -> None:
    """If the service says so."""
    call = prepared(server, make, "encrypt")
    server.panel.fail(Failure.THROTTLE, seconds=3.0)
    with pytest.raises(Throttled) as caught:
        call()
    assert caught.value.retry_after == pytest.approx(3.0)
