"""Secret sharing, against the field's arithmetic done the long way, bit by bit."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kms_core.shamir import MAX_INDEX, interpolate, split

INDEXES = st.lists(st.integers(1, MAX_INDEX), min_size=1, max_size=8, unique=True)


def times(left: int, right: int) -> int:
    """The product in GF(2^8): shift, add, and reduce by 0x11B from the top."""
    product = 0
    for bit in range(8):
        if right >> bit & 1:
            product ^= left << bit
    for bit in range(14, 7, -1):
        if product >> bit & 1:
            product ^= 0x11B << (bit - 8)
    return product


def inverse(element: int) -> int:
    """Found by trying all."""
    return next(other for other in range(256) if times(element, other) == 1)


INVERSES = [0, *map(inverse, range(1, 256))]


def evaluate(coefficients: Sequence[int], at: int) -> int:
    """The polynomial with these coefficients, highest power first."""
    value, power = 0, 1
    for coefficient in reversed(coefficients):
        value ^= times(coefficient, power)
        power = times(power, at)
    return value


def lagrange(points: Mapping[int, int], at: int) -> int:
    """The value at ``at`` of the polynomial through these points."""
    value = 0
    for here, height in points.items():
        term = height
        for there in points:
            if there != here:
                term = times(term, times(at ^ there, INVERSES[here ^ there]))
        value ^= term
    return value


def scripted(*draws: bytes) -> Callable[[int], bytes]:
    """These bytes, one after the other, in place of randomness."""
    rest = list(draws)
    return lambda _: rest.pop(0)


def test_the_field_is_that_of_aes() -> None:
    """Known products of FIPS 197, section 4.2, and inverses for all but zero."""
    assert times(0x57, 0x83) == 0xC1
    assert times(0x57, 0x13) == 0xFE
    assert all(times(element, INVERSES[element]) == 1 for element in range(1, 256))


@given(st.data(), st.binary(min_size=1, max_size=40), INDEXES)
def test_shares_are_values_of_a_polynomial(
    data: st.DataObject, secret: bytes, indexes: list[int]
) -> None:
    """Each byte of a share is that byte's polynomial at the share's index."""
    threshold = data.draw(st.integers(1, len(indexes)))
    draws = [
        data.draw(st.binary(min_size=len(secret), max_size=len(secret)))
        for _ in range(threshold - 1)
    ]

    shares = split(secret, threshold, indexes, scripted(*draws))

    assert list(shares) == indexes
    for index, share in shares.items():
        polynomials = zip(*draws, secret, strict=True)
        assert share == bytes(evaluate(polynomial, index) for polynomial in polynomials)


@given(st.data(), st.binary(min_size=1, max_size=40), INDEXES)
def test_any_value_is_the_polynomial_through_the_shares(
    data: st.DataObject, secret: bytes, indexes: list[int]
) -> None:
    """At 0, at an index, and anywhere else, byte by byte."""
    shares = split(secret, len(indexes), indexes)
    at = data.draw(st.one_of(st.just(0), st.sampled_from(indexes), st.integers(0, MAX_INDEX)))

    value = interpolate(shares, at)

    points = [{index: share[byte] for index, share in shares.items()} for byte in range(len(value))]
    assert value == bytes(lagrange(point, at) for point in points)


@pytest.mark.parametrize(
    ("threshold", "count"), [(k, n) for n in range(1, 6) for k in range(1, n + 1)]
)
def test_as_many_as_the_threshold_give_the_secret_whichever_they_are(
    threshold: int, count: int
) -> None:
    """Every subset of that size, in any order."""
    secret = bytes(range(32))
    shares = split(secret, threshold, range(1, count + 1))

    for chosen in itertools.permutations(shares, threshold):
        assert interpolate({index: shares[index] for index in chosen}) == secret


@given(st.binary(min_size=1, max_size=40), INDEXES, st.integers(1, MAX_INDEX))
def test_a_lost_share_comes_back_and_a_new_one_fits(
    secret: bytes, indexes: list[int], new: int
) -> None:
    """What is interpolated at an index is the share of that index."""
    threshold = max(1, len(indexes) - 1)
    shares = split(secret, threshold, indexes)
    enough = dict(list(shares.items())[:threshold])

    for index, share in shares.items():
        assert interpolate(enough, index) == share
    added = {**dict(list(enough.items())[1:]), new: interpolate(enough, new)}
    if len(added) == threshold:
        assert interpolate(added) == secret


@pytest.mark.parametrize("secret", [0, 1, 0x80, 0xFF])
@pytest.mark.parametrize("index", [1, 2, 255])
def test_one_share_of_two_says_nothing(secret: int, index: int) -> None:
    """Over all draws, each value of the share turns up once, whatever the secret is."""
    shares = Counter(
        split(bytes((secret,)), 2, [index], scripted(bytes((draw,))))[index][0]
        for draw in range(256)
    )

    assert shares == Counter(range(256))


@pytest.mark.parametrize("secret", [0, 0x53])
def test_two_shares_of_three_say_nothing(secret: int) -> None:
    """Over all draws, each pair of values turns up once."""
    # one wide secret holds every second draw at once
    low = bytes(range(256))
    pairs: Counter[tuple[int, int]] = Counter()
    for high in range(256):
        made = split(bytes((secret,)) * 256, 3, [1, 200], scripted(bytes((high,)) * 256, low))
        pairs.update(zip(made[1], made[200], strict=True))

    assert len(pairs) == 1 << 16
    assert set(pairs.values()) == {1}


@given(st.binary(min_size=8, max_size=8), st.binary(min_size=8, max_size=8), st.integers(2, 5))
def test_too_few_shares_fit_every_secret(secret: bytes, other: bytes, threshold: int) -> None:
    """One share less than needed, and any secret at all is on a polynomial through them."""
    shares = split(secret, threshold, range(1, threshold + 1))
    few = dict(list(shares.items())[1:])
    missing = interpolate({**few, 0: other}, 1)

    assert interpolate({**few, 1: missing}) == other


@given(st.binary(min_size=1, max_size=40), st.data())
def test_a_wrong_share_makes_a_wrong_secret(secret: bytes, data: st.DataObject) -> None:
    """Whichever bit of it is wrong: shares alone do not tell, commitments do."""
    shares = split(secret, 3, [1, 2, 3])
    share = shares[data.draw(st.sampled_from([1, 2, 3]))]
    share[data.draw(st.integers(0, len(secret) - 1))] ^= 1 << data.draw(st.integers(0, 7))

    assert interpolate(shares) != secret


def test_each_split_is_a_fresh_one() -> None:
    """The same secret twice has no share in common."""
    first, second = (split(bytes(32), 2, range(1, 6)) for _ in range(2))

    assert not {bytes(share) for share in first.values()} & {bytes(s) for s in second.values()}
    assert all(any(share) for share in first.values())


def test_a_threshold_of_one_hands_out_the_secret() -> None:
    """Each share is a copy that its owner can wipe alone."""
    secret = bytearray(b"secret")
    shares = split(secret, 1, [1, 255])
    shares[1][:] = bytes(6)

    assert shares[255] == secret == b"secret"


@pytest.mark.parametrize("indexes", [[0], [1, 0], [256], [-1], [1, 1], [3, 2, 3]])
def test_indexes_outside_the_field_or_repeated_are_refused(indexes: list[int]) -> None:
    """A share at 0 would be the secret, two at one place would be one."""
    with pytest.raises(ValueError, match="distinct and 1 to 255"):
        split(bytes(32), 2, indexes)


def test_the_whole_field_can_hold_shares() -> None:
    """255 of them, and any two open."""
    secret = bytes(range(32))
    shares = split(secret, 2, range(1, MAX_INDEX + 1))

    assert len(shares) == 255
    assert all(
        interpolate({1: shares[1], index: shares[index]}) == secret for index in range(2, 256)
    )
