"""What callers hand in, checked and in the form that the core works with.

Every function raises ``InvalidRequest`` saying what was expected, and never shows what was given.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kms_core import envelope, inspection
from kms_core.context import RESERVED_PREFIX, Context
from kms_core.errors import InvalidRequest
from kms_core.sessions import SMALL
from kms_core.types import MAC_ALGORITHMS, MAX_SIGNED_BYTES, SIGNATURE_ALGORITHMS

Data = bytes | bytearray | memoryview
ContextLike = Mapping[str, str] | None


def data(given: Data) -> bytes:
    """The bytes, which nobody can change any more."""
    if not isinstance(given, bytes | bytearray | memoryview):
        raise InvalidRequest(
            f"expected bytes, got {type(given).__name__}; encode text first, say with .encode()"
        )
    return bytes(given)


def batch(values: Iterable[Data]) -> list[bytes]:
    """Many values, none larger than a message."""
    given: list[Any] = list(values)  # whatever callers pass
    if set(map(type, given)) <= {bytes} and max(map(len, given), default=0) <= SMALL:
        return given
    copies: list[bytes] = []
    for number, value in enumerate(given):
        try:
            copies.append(data(value))
            envelope.check_size(copies[-1])
        except InvalidRequest as exc:
            raise InvalidRequest(f"value {number}: {exc}") from None
    return copies


def context(pairs: ContextLike) -> Context:
    """A context without names that only the core may use."""
    if pairs is not None and not isinstance(pairs, Mapping):
        raise InvalidRequest(f"a context is a mapping of strings, not {type(pairs).__name__}")
    made = pairs if isinstance(pairs, Context) else Context(pairs)
    if made.reserved:
        raise InvalidRequest(f"context names starting with {RESERVED_PREFIX!r} are reserved")
    return made


def optional_context(pairs: ContextLike) -> Context | None:
    """The same, where none is different from an empty one."""
    return None if pairs is None else context(pairs)


def contexts(given: ContextLike | list[ContextLike], count: int) -> list[Context]:
    """One context for each of ``count`` values; nothing where one context is for all of them."""
    if not isinstance(given, list):
        return []
    if len(given) != count:
        raise InvalidRequest(f"{len(given)} contexts for {count} values: give one for each")
    return [context(each) for each in given]


def common_context(given: ContextLike | list[ContextLike]) -> Context:
    """The context for all values; an empty list of contexts is for no values."""
    return Context() if isinstance(given, list) else context(given)


def sealed_bytes(sealed: Data | str) -> bytes:
    """An envelope's bytes, out of their armor if it is text."""
    return inspection.unarmor(sealed) if isinstance(sealed, str) else data(sealed)


def key_id(given: str | bytes | None) -> bytes | None:
    """A data key's id, as bytes or as ``inspect`` shows it."""
    if not isinstance(given, str):
        return given
    try:
        return bytes.fromhex(given)
    except ValueError:
        raise InvalidRequest("a key id is 32 hexadecimal digits, as inspect() shows it") from None


def segment_log2(segment_bytes: int) -> int:
    """The logarithm of a segment size that streams can have."""
    if segment_bytes < 1 or segment_bytes & (segment_bytes - 1):
        raise InvalidRequest(f"segment_bytes is a power of two, not {segment_bytes}")
    log2 = segment_bytes.bit_length() - 1
    envelope.check_segment(log2)
    return log2


def message_to_sign(given: Data) -> bytes:
    """The bytes, no more than are signed at once."""
    message = data(given)
    if len(message) > MAX_SIGNED_BYTES:
        raise InvalidRequest(
            f"up to {MAX_SIGNED_BYTES} bytes are signed, not {len(message)}: sign a digest of them"
        )
    return message


def check_algorithm(algorithm: str) -> None:
    """Only algorithms that ``sign`` and ``verify`` know."""
    known = SIGNATURE_ALGORITHMS | MAC_ALGORITHMS
    if algorithm not in known:
        raise InvalidRequest(f"no algorithm {algorithm!r}; known are {', '.join(sorted(known))}")


def names(given: str | Sequence[str]) -> tuple[str, ...]:
    """One name or several."""
    return (given,) if isinstance(given, str) else tuple(given)
