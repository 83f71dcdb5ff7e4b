"""Message subkeys in use: all that is the same for many messages is worked out once.

A ``Session`` seals and an ``Opener`` opens one-shot messages (docs/format.md, section 6) that
share a data key and a salt.  The hot paths of ``client`` read their fields: plain objects with
slots, because a method call would cost as much as the checks it hides.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice, repeat
from math import inf
from typing import Any, Final, NoReturn, TypeVar

from attrs import field, frozen
from cryptography.exceptions import InvalidTag

from kms_core.aead import CPYTHON, Keys
from kms_core.context import Context
from kms_core.errors import IntegrityError
from kms_core.header import (
    IV_BYTES,
    KIND_MESSAGE,
    MAGIC,
    MAX_PLAINTEXT_BYTES,
    SALT_BYTES,
    SUBKEY_PREFIX_BYTES,
    TAG_BYTES,
    parse_message_header,
)

T = TypeVar("T")

#: Up to so many bytes a message is put together from parts; larger ones are written in place,
#: because a second large buffer costs more than their encryption.
SMALL: Final = 1 << 16
#: Up to so many bytes, copying a ciphertext out of its envelope costs less than a view of it.
SHORT: Final = 1 << 13
#: A subkey serves at most 2^20 messages and 2^36 bytes (docs/format.md, section 8).  So many small
#: messages stay below that.
SESSION_MESSAGES: Final = 1 << 16
SESSION_BYTES: Final = 1 << 35  # in messages that are not small
_BODY: Final = SUBKEY_PREFIX_BYTES + IV_BYTES  # where the ciphertext starts
_KEY_ID: Final = slice(3, SUBKEY_PREFIX_BYTES - SALT_BYTES)  # of a message
_DRAW: Final = 1024  # IVs drawn at once within one bulk call, never kept for another

#: Straight from the kernel and without giving up the interpreter's lock, as ``os.urandom`` does:
#: that costs threads more than the numbers themselves.  Up to 256 bytes it never draws less.
_random: Callable[[int], bytes] = getattr(os, "getrandom", os.urandom)


class Session:
    """Seals messages under one subkey until ``expires``, as many as were granted.

    ``next(ivs)`` draws one IV and counts one message; ``StopIteration``: none are left.
    ``inline`` and ``compact`` are what a message starts with: capsule, key id and salt, or without
    the capsule, which is ``None`` as long as that is in no store.
    """

    __slots__ = (
        *("_aead", "_charge_bytes", "_grant", "_large"),
        *("compact", "encrypt", "expires", "granted", "inline", "ivs", "owner"),
    )

    def __init__(
        self,
        owner: object,
        keys: Keys,
        capsule: bytes,
        grant: int,
        charge_bytes: Callable[[int], bool],
        *,
        stored: bool = False,
    ) -> None:
        """``owner`` tells one client's sessions from another's.

        ``charge_bytes`` counts what the grant, of small messages, does not cover.
        """
        salt = _random(SALT_BYTES)
        prefix = _prefix(keys, salt)
        self._aead: Any = keys.one_shot(KIND_MESSAGE, salt).aead
        self._grant = repeat(IV_BYTES, grant)
        self._charge_bytes = charge_bytes
        self._large = 0  # bytes in messages that are not small
        self.granted = grant
        self.owner = owner
        self.expires = -inf
        self.encrypt: Callable[[bytes, Any, bytes], bytes] = self._aead.encrypt
        self.ivs: Iterator[bytes] = map(_random, self._grant)
        self.inline = capsule + prefix
        self.compact: Any = prefix if stored else None

    @property
    def prefix(self) -> bytes:
        """What a message starts with whose capsule is elsewhere."""
        return self.inline[-SUBKEY_PREFIX_BYTES:]

    @property
    def left(self) -> int:
        """How many messages may still be sealed."""
        return operator.length_hint(self._grant) if self._large < SESSION_BYTES else 0

    @property
    def used(self) -> int:
        """How many messages were sealed."""
        return self.granted - operator.length_hint(self._grant)

    def seal_large(self, front: bytes, data: bytes | bytearray | memoryview, aad: bytes) -> bytes:
        """One message, its ciphertext written where it stays.

        Raises ``StopIteration`` as ``ivs`` does, and ``TypeError`` for what no message can hold.
        """
        plaintext = memoryview(data).cast("B")
        self._large += len(plaintext)
        if len(plaintext) > MAX_PLAINTEXT_BYTES:
            raise TypeError
        if self._large >= SESSION_BYTES or not self._charge_bytes(len(plaintext)):
            raise StopIteration
        head = front + next(self.ivs)
        if not CPYTHON:
            return head + self.encrypt(head[-IV_BYTES:], plaintext, aad)
        sealed, room = _new_bytes(len(head) + len(plaintext) + TAG_BYTES)
        room[: len(head)] = head
        self._aead.encrypt_into(head[-IV_BYTES:], plaintext, aad, room[len(head) :])
        return sealed

    def retire(self) -> int:
        """Seal nothing any more; how many messages were left.

        Lets go of the key wherever this session is still known.
        """
        self.expires = -inf
        left = len(list(self._grant))  # taken at once: nobody draws one of them meanwhile
        self.encrypt = self._charge_bytes = _gone
        self._aead = None
        return left


class Opener:
    """Opens messages under one subkey until ``expires``.

    ``scope`` must be part of a message's context (``None``: nothing must).  ``front`` is how a
    message starts whose capsule was verified, ``None`` if none was.  ``used`` and ``hits``: when
    last, and how often.
    """

    __slots__ = ("decrypt", "expires", "front", "hits", "prefix", "scope", "used")

    def __init__(self, keys: Keys, prefix: bytes, capsule: bytes) -> None:
        """``prefix`` is what names data key and subkey: the message up to its IV."""
        aead = keys.one_shot(prefix[1], prefix[-SALT_BYTES:]).aead
        self.decrypt: Callable[[Any, Any, bytes], bytes] = aead.decrypt
        self.prefix = prefix
        self.front = capsule + prefix if capsule else None
        self.scope: Context | None = keys.scope
        self.expires = self.used = -inf
        self.hits = 0

    @property
    def key_id(self) -> bytes:
        """The name of the data key."""
        return self.prefix[_KEY_ID]

    def open(self, iv: bytes, ciphertext: bytes | memoryview, aad: bytes) -> bytes:
        """The plaintext; raises ``IntegrityError`` unless everything authenticates."""
        try:
            return self.decrypt(iv, ciphertext, aad)
        except InvalidTag:
            raise IntegrityError from None

    def retire(self) -> None:
        """Open nothing any more, and let go of the key."""
        self.expires = -inf
        self.decrypt = _gone


@frozen
class SealedMany:
    """Many values sealed under one data key: its capsule once, and a message for each value.

    ``capsule + messages[i]`` is an envelope of its own.  ``capsule`` is empty where the client
    keeps it in its capsule store: then each message is an envelope by itself.
    """

    capsule: bytes = field(repr=False)
    messages: list[bytes] = field(repr=False)

    def __len__(self) -> int:
        return len(self.messages)


def seal_all(keys: Keys, values: Sequence[bytes], aads: Iterable[bytes]) -> Iterator[bytes]:
    """Messages without capsules, one for each value, their IVs drawn many at a time.

    The caller has counted them.
    """
    aads = iter(aads)
    small = max(map(len, values), default=0) <= SMALL
    per_salt = SESSION_MESSAGES if small else SESSION_BYTES // MAX_PLAINTEXT_BYTES
    for chunk in _batched(values, per_salt):
        salt = _random(SALT_BYTES)
        prefix = _prefix(keys, salt)
        encrypt = keys.one_shot(KIND_MESSAGE, salt).aead.encrypt
        for batch in _batched(chunk, _DRAW):
            ivs = os.urandom(IV_BYTES * len(batch))
            at = range(0, len(ivs), IV_BYTES)
            yield from [
                prefix + (iv := ivs[start : start + IV_BYTES]) + encrypt(iv, value, aad)
                for start, value, aad in zip(at, batch, aads)  # noqa: B905  aads may be endless
            ]


def open_all(keys: Keys, messages: Iterable[bytes], aads: Iterable[bytes]) -> Iterator[bytes]:
    """The plaintexts of messages without capsules.

    Raises ``FormatError`` or ``IntegrityError`` at the first that is none, or not of these keys.
    """
    prefix: bytes | tuple[()] = ()  # with which nothing starts
    decrypt: Callable[[bytes, bytes, bytes], bytes] = _gone
    for message, aad in zip(messages, aads):  # noqa: B905  aads may be endless
        if not message.startswith(prefix):
            prefix = message[:SUBKEY_PREFIX_BYTES]
            header = parse_message_header(message)
            if header.kind != KIND_MESSAGE or not message.startswith(_prefix(keys, b"")):
                raise IntegrityError
            decrypt = keys.one_shot(KIND_MESSAGE, header.salt).aead.decrypt
        try:
            yield decrypt(message[SUBKEY_PREFIX_BYTES:_BODY], message[_BODY:], aad)
        except (InvalidTag, ValueError):  # the latter for an IV that is cut short
            parse_message_header(message)
            raise IntegrityError from None


def _batched(values: Iterable[T], size: int) -> Iterator[tuple[T, ...]]:
    remaining = iter(values)  # itertools.batched is not in Python 3.11
    while batch := tuple(islice(remaining, size)):
        yield batch


def _prefix(keys: Keys, salt: bytes) -> bytes:
    """What a message starts with whose capsule is elsewhere."""
    return bytes((MAGIC, KIND_MESSAGE, keys.suite)) + keys.key_id + salt


def _gone(*_: object) -> NoReturn:
    """Stands for what a key could do before it was dropped."""
    raise TypeError


def flat(data: object) -> memoryview:
    """Data other than ``bytes``, as the bytes it is; ``TypeError`` unless it lies in one piece."""
    if not isinstance(data, bytes | bytearray | memoryview):
        raise TypeError
    return memoryview(data).cast("B")


def without_copy(sealed: bytes, start: int) -> memoryview:
    """The ciphertext that starts there; ``TypeError``: no message is so large."""
    if len(sealed) - start > MAX_PLAINTEXT_BYTES + TAG_BYTES:
        raise TypeError
    return memoryview(sealed)[start:]


def _new_bytes(size: int) -> tuple[bytes, memoryview]:
    """A new ``bytes`` object and, until it is shown to anybody, a view to write its contents to.

    The C API makes such objects to be filled in.  Zeroing one first, or joining parts, would cost
    another pass over memory and, through the allocator, hundreds of page faults.
    """
    import ctypes  # large messages only

    make = ctypes.pythonapi.PyBytes_FromStringAndSize
    make.restype, make.argtypes = ctypes.py_object, (ctypes.c_char_p, ctypes.c_ssize_t)
    made: bytes = make(None, size)
    array = ctypes.c_char * size
    return made, memoryview(array.from_address(id(made) + bytes.__basicsize__ - 1)).cast("B")
