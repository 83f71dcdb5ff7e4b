"""What the conformance suite expects, said in words that help a plugin's author."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterator
from typing import Any, Final

import pytest

from kms_core.context import Context
from kms_core.errors import FormatError, KMSError
from kms_core.testing.hooks import call
from kms_core.types import MAX_WRAPPED_BYTES, Ciphertext, PublicKey, Signature
from kms_core.uri import encode_key_uri, provider_type

CONTEXT: Final = Context({"tenant": "42", "purpose": "conformance"})
KEY_BYTES: Final = 32
MARKER: Final = "x-marks-the-secret"
_MARKED: Final = (
    MARKER,
    MARKER.encode().hex(),
    base64.b64encode(MARKER.encode()).decode(),  # of a number of bytes that base64 does not pad
)


def expect(holds: bool, message: str) -> None:  # noqa: FBT001  reads like assert
    """Fail the test with ``message`` unless ``holds``."""
    __tracebackhide__ = True
    if not holds:
        pytest.fail(message)


@contextlib.contextmanager
def refused(what: str, *kinds: type[KMSError]) -> Iterator[list[KMSError]]:
    """The block must raise one of ``kinds``; the list given out receives the error."""
    __tracebackhide__ = True
    errors: list[KMSError] = []
    names = " or ".join(kind.__name__ for kind in kinds)
    try:
        yield errors
    except kinds as exc:
        errors.append(exc)
        return
    except Exception as exc:  # noqa: BLE001  any other error is the finding
        pytest.fail(f"{what} raised {type(exc).__name__}; raise {names}")
    pytest.fail(f"{what} was accepted; raise {names}")


def encrypt(
    provider: Any,
    key_id: str,
    plaintext: Any = bytes(KEY_BYTES),
    context: Context = CONTEXT,
) -> Ciphertext:
    """What the hook returns, if it is of the right type."""
    sealed = call(provider, "encrypt", key_id=key_id, plaintext=plaintext, context=context)
    if not isinstance(sealed, Ciphertext):
        pytest.fail(f"encrypt returned {kind_of(sealed)}; return a Ciphertext")
    return sealed


def decrypt(provider: Any, sealed: Ciphertext, context: Context = CONTEXT) -> Any:
    """As the core does it: with the key id that ``match`` gives."""
    key_id = provider.match(sealed.key_uri)
    expect(isinstance(key_id, str), f"match({sealed.key_uri!r}) is {key_id!r}")
    return call(provider, "decrypt", key_id=key_id, ciphertext=sealed, context=context)


def expect_opens(
    provider: Any, sealed: Ciphertext, plaintext: bytes, context: Context = CONTEXT
) -> None:
    """``sealed`` unwraps to ``plaintext``."""
    __tracebackhide__ = True
    opened = decrypt(provider, sealed, context)
    expect(isinstance(opened, bytes | bytearray), f"decrypt returned {kind_of(opened)}")
    expect(opened == plaintext, "what was unwrapped is not what was wrapped")


def expect_ciphertext(provider: Any, sealed: Ciphertext) -> None:
    """Every field of ``sealed`` is fit for an envelope."""
    __tracebackhide__ = True
    expect(type(sealed.data) is bytes, f"data is {kind_of(sealed.data)}; make it bytes")
    size = len(sealed.data)
    expect(1 <= size <= MAX_WRAPPED_BYTES, f"the blob has {size} bytes, not 1..{MAX_WRAPPED_BYTES}")
    expect_key_uri(provider, sealed.key_uri)
    version = sealed.key_version
    expect(
        version is None or (isinstance(version, str) and bool(version)),
        f"key_version is {version!r}; make it text or None",
    )
    declared = type(provider).wrap_algs
    expect(sealed.wrap_alg in declared, f"wrap_alg {sealed.wrap_alg!r} is not in wrap_algs")


def expect_key_uri(provider: Any, key_uri: Any) -> None:
    """``key_uri`` can be stored in an envelope and names this provider type."""
    __tracebackhide__ = True
    expect(isinstance(key_uri, str), f"a key URI is str, not {kind_of(key_uri)}")
    try:
        encode_key_uri(key_uri)
    except FormatError as exc:
        pytest.fail(f"{key_uri!r}: {exc}")
    name = type(provider).type_name
    expect(provider_type(key_uri) == name, f"{key_uri!r} does not begin with {name}:")


def expect_no_match(provider: Any, key_uri: str) -> None:
    """``match`` answers ``None``, and does not raise."""
    __tracebackhide__ = True
    try:
        matched = provider.match(key_uri)
    except Exception as exc:  # noqa: BLE001  any error is the finding
        pytest.fail(f"match({key_uri!r}) raised {type(exc).__name__}; return None")
    expect(matched is None, f"match({key_uri!r}) is {matched!r}; it is not this instance's")


def expect_secretive(errors: list[KMSError]) -> None:
    """Nothing that a traceback of these errors prints shows ``MARKER`` in any usual form."""
    __tracebackhide__ = True
    for error in errors:
        for shown in _printed(error):
            text = f"{shown} {shown!r}"
            expect(
                not any(marked in text for marked in _MARKED),
                f"{type(error).__name__} repeats what it was given (in {kind_of(shown)})",
            )


def _printed(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those before it, as far as Python prints them."""
    while error is not None:
        yield error
        shown = None if error.__suppress_context__ else error.__context__
        error = error.__cause__ or shown


# --- signatures and public keys ------------------------------------------------------------------


def sign(provider: Any, key_id: str, data: Any, algorithm: str) -> Signature:
    """What the hook returns, if it is of the right type."""
    signature = call(provider, "sign", key_id=key_id, data=data, algorithm=algorithm)
    if not isinstance(signature, Signature):
        pytest.fail(f"sign returned {kind_of(signature)}; return a Signature")
    return signature


def verify(provider: Any, signature: Signature, data: Any, algorithm: str) -> bool:
    """As the core does it: with the key id that ``match`` gives."""
    key_id = provider.match(signature.key_uri)
    expect(isinstance(key_id, str), f"match({signature.key_uri!r}) is {key_id!r}")
    verdict = call(
        provider, "verify", key_id=key_id, data=data, signature=signature, algorithm=algorithm
    )
    if not isinstance(verdict, bool):
        pytest.fail(f"verify returned {kind_of(verdict)}; return a bool")
    return verdict


def public_key(provider: Any, key_id: str) -> PublicKey:
    """What the hook returns, if it is of the right type."""
    key = call(provider, "public_key", key_id=key_id)
    if not isinstance(key, PublicKey):
        pytest.fail(f"public_key returned {kind_of(key)}; return a PublicKey")
    return key


def expect_version(key_uri: str, key_version: object) -> None:
    """``key_version`` is ``None``, or the version that ``key_uri`` names."""
    __tracebackhide__ = True
    expect(
        key_version is None
        or (isinstance(key_version, str) and bool(key_version) and key_version in key_uri),
        f"key_version is {key_version!r}, which {key_uri!r} does not name",
    )


def kind_of(value: object) -> str:
    """The name of a value's type, which is all that a message may show of it."""
    return type(value).__name__
