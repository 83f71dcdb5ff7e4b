"""Shamir's secret sharing over GF(2^8) with the polynomial 0x11B, byte by byte.

f(0) is the secret, share i is f(i).  A secret is one big integer here, so that all its bytes are
multiplied at once and neither a branch nor a table index depends on them; only share indexes, which
are public, steer the arithmetic.  (CPython's integers still normalise their length: that the top
bytes are zero can be seen in the time taken.)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from typing import Final

Random = Callable[[int], bytes]

MAX_INDEX: Final = 255  # the non-zero elements of the field
_POLYNOMIAL: Final = 0x1B


def split(
    secret: bytes | bytearray | memoryview,
    threshold: int,
    indexes: Sequence[int],
    random: Random = os.urandom,
) -> dict[int, bytearray]:
    """Shares by index: any ``threshold`` of them give the secret, fewer say nothing about it.

    Indexes are distinct and 1 to 255, or ``ValueError``; the caller wipes the shares.
    """
    if len(set(indexes)) < len(indexes) or not all(0 < index <= MAX_INDEX for index in indexes):
        raise ValueError("share indexes are distinct and 1 to 255: at 0 lies the secret itself")
    size = len(secret)
    coefficients = [int.from_bytes(random(size), "big") for _ in range(threshold - 1)]
    constant = int.from_bytes(secret, "big")
    shares = {}
    for index in indexes:
        value = 0
        for coefficient in coefficients:  # Horner's rule, highest power first
            value = _times(value ^ coefficient, index, size)
        shares[index] = _to_bytes(value ^ constant, size)
    return shares


def interpolate(shares: Mapping[int, bytes | bytearray], at: int = 0) -> bytearray:
    """The polynomial's value at ``at``: the secret at 0, a lost or new share elsewhere.

    Takes exactly as many shares as the threshold; from wrong ones it makes a wrong value, which
    only the secret's own commitment can tell.
    """
    size = len(next(iter(shares.values())))
    value = 0
    for index, share in shares.items():
        others = [other for other in shares if other != index]
        above = _product(at ^ other for other in others)
        below = _product(index ^ other for other in others)
        value ^= _times(int.from_bytes(share, "big"), _times(above, _inverse(below), 1), size)
    return _to_bytes(value, size)


def _to_bytes(value: int, size: int) -> bytearray:
    """Big-endian, straight into what the caller can wipe; ``int.to_bytes`` would leave a copy."""
    made = bytearray(size)
    for position in reversed(range(size)):
        made[position] = value & 0xFF
        value >>= 8
    return made


def _product(factors: Iterable[int]) -> int:
    return reduce(lambda left, right: _times(left, right, 1), factors, 1)


def _inverse(element: int) -> int:
    """x^254, the inverse of a public element."""
    return _product([element] * 254)


def _times(value: int, factor: int, size: int) -> int:
    """Every byte of ``value`` times the public ``factor``."""
    low = int.from_bytes(b"\x7f" * size, "big")
    ones = int.from_bytes(b"\x01" * size, "big")
    product = 0
    while factor:
        if factor & 1:
            product ^= value
        value = ((value & low) << 1) ^ (((value >> 7) & ones) * _POLYNOMIAL)
        factor >>= 1
    return product
