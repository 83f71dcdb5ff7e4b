"""The encryption context and its one canonical encoding (docs/format.md, section 3).

A context is a map of strings that is authenticated but not secret.  Equal maps have equal bytes,
whatever their order; those bytes are the associated data of every wrap and of the body.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from typing import Any, Final, Self

from kms_core.errors import FormatError, InvalidRequest

MAX_CONTEXT_PAIRS: Final = 64  # bounds what an unauthenticated header can make a reader parse
MAX_CONTEXT_BYTES: Final = 8192  # what AWS takes as EncryptionContext, and most HSMs as AAD
RESERVED_PREFIX: Final = "kms_core:"  # the core's own entries in a wrap context

RESERVED_BYTES: Final = RESERVED_PREFIX.encode()
#: Lengths as they are encoded, for all that are usual: a look-up is half the cost of to_bytes.
_LENGTHS: Final = tuple(length.to_bytes(2, "big") for length in range(256))


class Context(Mapping[str, str]):
    """An immutable encryption context, encoded once; take it wherever a context is accepted.

    Raises ``InvalidRequest`` for keys or values that are not strings, empty keys, text that is not
    valid Unicode, more than 64 pairs or more than 8192 encoded bytes.  No Unicode normalisation
    is applied: equal means equal code points.
    """

    __slots__ = ("_encoded", "_pairs", "proved", "session")

    #: For clients only.  The session that the last message with this context was sealed in, so that
    #: the next one needs no search; whoever finds it checks whose it is and whether it still lives.
    session: Any
    #: The last scope that was found to be part of this context, by identity.
    proved: Context | None

    def __init__(self, pairs: Mapping[str, str] | None = None, /) -> None:
        self._pairs: dict[str, str] = dict(pairs) if pairs else {}
        self._encoded = _encode(self._pairs)
        self.session = self.proved = None

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Parse canonical bytes; raises ``FormatError`` unless they are the one valid encoding."""
        context = cls.__new__(cls)
        context._pairs = _decode(data)
        context._encoded = bytes(data)
        context.session = context.proved = None
        return context

    @property
    def encoded(self) -> bytes:
        """The canonical bytes."""
        return self._encoded

    @property
    def reserved(self) -> bool:
        """Whether it uses a name that only the core may use."""
        return RESERVED_BYTES in self._encoded and any(
            key.startswith(RESERVED_PREFIX) for key in self._pairs
        )

    def includes(self, scope: Context) -> bool:
        """Whether it has every pair of ``scope``."""
        return scope._pairs.items() <= self._pairs.items()

    def proves(self, scope: Context) -> bool:
        """The same, and remembers it."""
        if not self.includes(scope):
            return False
        self.proved = scope
        return True

    def __getitem__(self, key: str) -> str:
        return self._pairs[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    # What Mapping offers as well, without its detours.

    def get(self, key: str, default: Any = None) -> Any:
        """The value of ``key``, or ``default``."""
        return self._pairs.get(key, default)

    def keys(self) -> KeysView[str]:
        """The names."""
        return self._pairs.keys()

    def values(self) -> ValuesView[str]:
        """The values, in the order of the names."""
        return self._pairs.values()

    def items(self) -> ItemsView[str, str]:
        """The pairs."""
        return self._pairs.items()

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Context):
            return self._encoded == other._encoded
        return self._pairs == other

    def __hash__(self) -> int:
        return hash(self._encoded)

    def __repr__(self) -> str:
        return f"Context({', '.join(self._pairs)})"  # names only: values may be personal data

    def __reduce__(self) -> tuple[type[Self], tuple[dict[str, str]]]:
        return type(self), (self._pairs,)


def _encode(pairs: dict[str, str]) -> bytes:
    try:
        parts = [_LENGTHS[len(pairs)]]
        for name in sorted(pairs):  # code point order is UTF-8 byte order
            key, value = name.encode(), pairs[name].encode()
            parts += (_LENGTHS[len(key)], key, _LENGTHS[len(value)], value)
        encoded = b"".join(parts)
    except (AttributeError, IndexError, TypeError, UnicodeEncodeError):
        return _encode_carefully(pairs)
    usual = len(parts) <= 4 * MAX_CONTEXT_PAIRS and len(encoded) <= MAX_CONTEXT_BYTES
    return encoded if usual and "" not in pairs else _encode_carefully(pairs)


def _encode_carefully(pairs: Mapping[str, str]) -> bytes:
    """The same for long texts, and what says what is wrong with others."""
    if len(pairs) > MAX_CONTEXT_PAIRS:
        raise InvalidRequest(f"a context has at most {MAX_CONTEXT_PAIRS} pairs, not {len(pairs)}")
    for key, value in pairs.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise InvalidRequest("context keys and values are str; convert numbers with str()")
        if not key:
            raise InvalidRequest("a context key is empty")
    parts = [len(pairs).to_bytes(2, "big")]
    size = 2
    for key in sorted(pairs):
        for text in (key, pairs[key]):
            data = _utf8(text)
            size += 2 + len(data)
            if size > MAX_CONTEXT_BYTES:
                raise InvalidRequest(f"a context takes at most {MAX_CONTEXT_BYTES} encoded bytes")
            parts += (len(data).to_bytes(2, "big"), data)
    return b"".join(parts)


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise InvalidRequest("context text has a lone surrogate: it is not Unicode") from None


def _decode(data: bytes) -> dict[str, str]:
    if not 2 <= len(data) <= MAX_CONTEXT_BYTES:
        raise FormatError("a map's length is out of bounds")
    count = int.from_bytes(data[:2], "big")
    if count > MAX_CONTEXT_PAIRS:
        raise FormatError("a map has too many pairs")
    pairs: dict[str, str] = {}
    offset, previous = 2, b""
    for _ in range(count):
        key, offset = _text(data, offset)
        value, offset = _text(data, offset)
        if key <= previous:
            raise FormatError("a map's keys are empty, repeated or out of order")
        previous = key
        try:
            pairs[key.decode()] = value.decode()
        except UnicodeDecodeError:
            raise FormatError("a map holds bytes that are not UTF-8") from None
    if offset != len(data):
        raise FormatError("a map is followed by stray bytes")
    return pairs


def _text(data: bytes, offset: int) -> tuple[bytes, int]:
    start = offset + 2
    end = start + int.from_bytes(data[offset:start], "big")
    if end > len(data) or start > len(data):
        raise FormatError("a map is cut short")
    return data[start:end], end
