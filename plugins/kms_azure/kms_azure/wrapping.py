"""Wrapping and unwrapping: what is sent to the service, and what its answers have to look like.

The SDK's own cryptography client is not used for this: it does part of the work in this process,
and for symmetric keys, of which it has not got the bytes, with bytes that it makes up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from kms_azure.algorithms import (
    A256GCM,
    A256KW,
    DIGEST_BYTES,
    IV_BYTES,
    KW_BLOCK,
    OAEP_OVERHEAD,
    RSA_BLOCKS,
    RSA_OAEP_256,
    TAG_BYTES,
    WRAPS,
    Wrap,
)
from kms_azure.answer import encoded
from kms_azure.errors import ciphertext_refused
from kms_azure.keys import KeyFacts
from kms_azure.names import VaultKey
from kms_azure.service import Service
from kms_core import (
    Ciphertext,
    Context,
    InvalidRequest,
    bind_context,
    unbind_context,
    wipe,
)

MAX_PLAINTEXT_BYTES: Final = 4096  # the contract's; the service's limit for AES is not documented


def check_plaintext(plaintext: object, facts: KeyFacts, wrap: Wrap) -> None:
    """Raise unless this key wraps a plaintext of this type and size."""
    if not isinstance(plaintext, bytes | bytearray):
        raise InvalidRequest(f"a plaintext is bytes, not {type(plaintext).__name__}; encode it")
    largest = MAX_PLAINTEXT_BYTES
    if wrap is RSA_OAEP_256:
        largest = facts.rsa_bytes - OAEP_OVERHEAD - DIGEST_BYTES
    if not 1 <= len(plaintext) <= largest:
        raise InvalidRequest(
            f"key {facts.key} wraps 1 to {largest} bytes, not {len(plaintext)}; seal() takes more"
        )
    if wrap is A256KW and len(plaintext) % KW_BLOCK:
        raise InvalidRequest(
            f"{wrap.name} wraps multiples of {KW_BLOCK} bytes, not {len(plaintext)}; "
            "configure A256GCM for anything else"
        )


def wrap_plaintext(
    service: Service, facts: KeyFacts, wrap: Wrap, plaintext: bytes | bytearray, context: Context
) -> bytes:
    """The blob: what the service answers, and for GCM with IV and tag around it."""
    if wrap is A256GCM:
        return _encrypt(service, facts.key, plaintext, context)
    bound = bind_context(plaintext, context)
    longer = KW_BLOCK if wrap is A256KW else facts.rsa_bytes - len(bound)
    try:
        answer = service.perform(wrap.wraps, facts.key, alg=wrap.name, value=encoded(bound))
    finally:
        wipe(bound)
    answer.kid()
    return answer.octets("value", len(plaintext) + DIGEST_BYTES + longer)


def _encrypt(
    service: Service, key: VaultKey, plaintext: bytes | bytearray, context: Context
) -> bytes:
    answer = service.perform(
        A256GCM.wraps,
        key,
        alg=A256GCM.name,
        value=encoded(plaintext),
        aad=encoded(context.encoded),
    )
    answer.kid()
    return (
        answer.octets("iv", IV_BYTES)
        + answer.octets("value", len(plaintext))
        + answer.octets("tag", TAG_BYTES)
    )


def unwrap_ciphertext(
    service: Service, key: VaultKey, ciphertext: Ciphertext, context: Context
) -> bytes | bytearray:
    """What was wrapped with exactly this version, if it belongs to this context."""
    blob, wrap = ciphertext.data, WRAPS.get(ciphertext.wrap_alg)
    if not isinstance(blob, bytes | bytearray):
        raise InvalidRequest(f"a ciphertext is bytes, not {type(blob).__name__}")
    if wrap is None or not _POSSIBLE[wrap](len(blob)):
        raise ciphertext_refused(str(key))
    if wrap is A256GCM:
        return _decrypt(service, key, blob, context)
    answer = service.perform(wrap.unwraps, key, alg=wrap.name, value=encoded(blob))
    answer.kid()
    bound = answer.octets("value", len(blob) - KW_BLOCK if wrap is A256KW else None)
    if len(bound) <= DIGEST_BYTES:
        raise ciphertext_refused(str(key))
    return unbind_context(bound, context)


def _decrypt(service: Service, key: VaultKey, blob: bytes | bytearray, context: Context) -> bytes:
    sealed = blob[IV_BYTES:-TAG_BYTES]
    answer = service.perform(
        A256GCM.unwraps,
        key,
        alg=A256GCM.name,
        iv=encoded(blob[:IV_BYTES]),
        value=encoded(sealed),
        tag=encoded(blob[-TAG_BYTES:]),
        aad=encoded(context.encoded),
    )
    answer.kid()
    return answer.octets("value", len(sealed))


def _possible_kw(size: int) -> bool:
    smallest = DIGEST_BYTES + 2 * KW_BLOCK
    return smallest <= size <= smallest + MAX_PLAINTEXT_BYTES and not size % KW_BLOCK


#: Whether a blob can have this many bytes.
_POSSIBLE: Final[Mapping[Wrap, Callable[[int], bool]]] = {
    RSA_OAEP_256: RSA_BLOCKS.__contains__,
    A256KW: _possible_kw,
    A256GCM: lambda size: 1 <= size - IV_BYTES - TAG_BYTES <= MAX_PLAINTEXT_BYTES,
}
