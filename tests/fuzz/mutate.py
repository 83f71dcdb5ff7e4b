"""Inputs made from good ones: reproducible from a seed, and aware of lengths, counts and items.

Random bytes never get past the first check of a strict parser.  So edits keep the lengths around
them right most of the time, and break them on purpose the rest of the time.
"""

from __future__ import annotations

import base64
import random
from collections.abc import Callable, Sequence
from typing import Final

from attrs import frozen

from tests.fuzz import shape
from tests.fuzz.shape import Shape, put_number

MAX_INPUT: Final = 80_000  # more than a capsule may have
MAX_TEXT: Final = 4_000  # tomllib takes quadratic time for a key of thousands of parts
_BYTES: Final = (0x00, 0x01, 0x7F, 0x80, 0xC1, 0xFF)
_WORDS: Final = (0, 1, 2, 32, 33, 64, 65, 255, 256, 1024, 1025, 8192, 8193, 0x4002, 0x8000, 0xFFFF)
_SIZES: Final = (0, 1, 16, 255, 256, 1025, 2049, 8193, 65_536)
_TABLE_LINES: Final = (b"[instances.x]", b"[envelope]", b"[breaker]", b"[calls]", b"[audit]")
_VALUES: Final = (
    b"true",
    b"0",
    b"-1",
    b"1e400",
    b"nan",
    b"-inf",
    b"1" + b"0" * 400,
    b"-1" + b"0" * 400,
    b"1979-05-27T07:32:00Z",
    b"[]",
    b'["a", "a"]',
    b"[" * 40 + b"]" * 40,
    b"{}",
    b'{ env = "PIN" }',
    b'{ env = "" }',
    b'{ file = "pin" }',
    b'{ file = "\\u0000" }',
    b'""',
    b'"any"',
    b'"2 of 3"',
    b'"99 of 99"',
    b'"3s"',
    b'"999999999999d"',
    '"\N{ARABIC-INDIC DIGIT THREE}s"'.encode(),
    b'"~"',
    b'"~nobody-by-that-name/x"',
    b'"a\\nb"',
    b'"\\u0000"',
    b'"\\U0010FFFF"',
    b'"""\n"""',
)


class Mutator:
    """An endless, reproducible supply of inputs from these seeds."""

    def __init__(self, seeds: Sequence[bytes], grammar: Grammar, seed: int) -> None:
        self._seeds = list(seeds)
        self._grammar = grammar
        self._random = random.Random(seed)  # noqa: S311  # must repeat, guards nothing

    def __next__(self) -> bytes:
        return self.mutate(self._random.choice(self._seeds))

    def __iter__(self) -> Mutator:
        return self

    def mutate(self, data: bytes) -> bytes:
        """One to a few edits of ``data``."""
        dice = self._random
        for _ in range(1 + min(int(dice.expovariate(0.8)), 6)):
            data = dice.choice(self._grammar.edits)(dice, data, self)
        return data[: self._grammar.limit]

    def other(self) -> bytes:
        """Another seed, to take something from."""
        return self._random.choice(self._seeds)

    def shape(self, data: bytes) -> Shape:
        """Where the lengths, counts and items of ``data`` are."""
        return self._grammar.shape(data)


Edit = Callable[[random.Random, bytes, Mutator], bytes]


@frozen
class Grammar:
    """What a kind of input is made of."""

    edits: Sequence[Edit]
    shape: Callable[[bytes], Shape] = shape.of_nothing
    limit: int = MAX_INPUT


# --- any bytes -----------------------------------------------------------------------------------


def flip_bit(dice: random.Random, data: bytes, source: Mutator) -> bytes:
    """One bit."""
    if not data:
        return b"\x00"
    out = bytearray(data)
    out[dice.randrange(len(out))] ^= 1 << dice.randrange(8)
    return bytes(out)


def set_byte(dice: random.Random, data: bytes, source: Mutator) -> bytes:
    """One byte, to a value at some edge or to any."""
    out = bytearray(data or b"\x00")
    out[dice.randrange(len(out))] = dice.choice((*_BYTES, dice.randrange(256)))
    return bytes(out)


def set_word(dice: random.Random, data: bytes, source: Mutator) -> bytes:
    """Two or four bytes anywhere, to a number that some limit is made of."""
    out = bytearray(data)
    width = dice.choice((2, 4))
    if len(out) >= width:
        put_number(out, dice.randrange(len(out) - width + 1), width, dice.choice(_WORDS))
    return bytes(out)


def truncate(dice: random.Random, data: bytes, source: Mutator) -> bytes:
    """Only a beginning."""
    return data[: dice.randrange(len(data) + 1)]


def behead(dice: random.Random, data: bytes, source: Mutator) -> bytes:
    """Only an end."""
    return data[dice.randrange(len(data) + 1) :]


def extend(dice: random.Random, data: bytes, source: Mutator) -> bytes:
    """Stray bytes behind it; seldom very many."""
    size = dice.choice(_SIZES) if dice.random() < 0.1 else dice.randrange(1, 40)
    return data + (bytes(size) if dice.random() < 0.5 else dice.randbytes(size))


def cut_out(dice: random.Random, data: bytes, source: Mutator) -> bytes:
    """A piece is missing."""
    start, end = _span(dice, data)
    return data[:start] + data[end:]


def repeat(dice: random.Random, data: bytes, source: Mutator) -> bytes:
    """A piece stands there twice."""
    start, end = _span(dice, data)
    return data[:end] + data[start:end] + data[end:]


def splice(dice: random.Random, data: bytes, source: Mutator) -> bytes:
    """The beginning of one and the end of another."""
    other = source.other()
    return data[: dice.randrange(len(data) + 1)] + other[dice.randrange(len(other) + 1) :]


def cross(dice: random.Random, data: bytes, source: Mutator) -> bytes:
    """A piece of another at the same place, without changing the length."""
    other = source.other()
    start, end = _span(dice, data)
    return data[:start] + other[start:end] + data[start + len(other[start:end]) :]


def _span(dice: random.Random, data: bytes) -> tuple[int, int]:
    start = dice.randrange(len(data) + 1)
    return start, min(len(data), start + dice.randrange(1, 64))


# --- lengths, counts, items ----------------------------------------------------------------------


def change_length(dice: random.Random, data: bytes, source: Mutator) -> bytes:
    """A length that is wrong; its content stays."""
    lengths = source.shape(data).lengths
    if not lengths:
        return set_byte(dice, data, source)
    out, length = bytearray(data), dice.choice(lengths)
    actual = length.end - length.base
    value = dice.choice((actual - 1, actual + 1, 0, len(data), dice.choice(_WORDS)))
    put_number(out, length.at, length.width, value)
    return bytes(out)


def resize_content(dice: random.Random, data: bytes, source: Mutator) -> bytes:
    """A content that is longer or shorter, and every length right."""
    found = source.shape(data)
    if not found.lengths:
        return extend(dice, data, source)
    length = dice.choice(found.lengths)
    size = dice.choice(_SIZES) if dice.random() < 0.3 else dice.randrange(40)
    content = data[length.start : length.end]
    grown = (content + dice.choice((b"\x00", b"a", content or b"b")) * size)[:size]
    return found.edited(data, length.start, length.end, grown)


def change_content(dice: random.Random, data: bytes, source: Mutator) -> bytes:
    """Other bytes in a content of the same length."""
    found = source.shape(data)
    if not found.lengths:
        return flip_bit(dice, data, source)
    length = dice.choice(found.lengths)
    changed = flip_bit(dice, data[length.start : length.end], source)
    return found.edited(data, length.start, length.end, changed)


def replace_content(dice: random.Random, data: bytes, source: Mutator) -> bytes:
    """The content of a field of another input, and every length right."""
    found, other = source.shape(data), source.other()
    theirs = source.shape(other).lengths
    if not found.lengths or not theirs:
        return splice(dice, data, source)
    length, taken = dice.choice(found.lengths), dice.choice(theirs)
    return found.edited(data, length.start, length.end, other[taken.start : taken.end])


def change_count(dice: random.Random, data: bytes, source: Mutator) -> bytes:
    """A count that is wrong; the items stay."""
    groups = source.shape(data).groups
    if not groups:
        return set_byte(dice, data, source)
    out, group = bytearray(data), dice.choice(groups)
    actual = len(group.items)
    value = dice.choice((actual - 1, actual + 1, 0, dice.choice(_WORDS)))
    put_number(out, group.at, group.width, value)
    return bytes(out)


def repeat_item(dice: random.Random, data: bytes, source: Mutator) -> bytes:
    """An item once more (or many times), with count and lengths right."""
    found = source.shape(data)
    groups = [group for group in found.groups if group.items]
    if not groups:
        return repeat(dice, data, source)
    group = dice.choice(groups)
    start, end = dice.choice(group.items)
    times = dice.choice((1, 1, 1, 2, 31, 64))
    return _with_count(found.edited(data, end, end, data[start:end] * times), group, times)


def drop_item(dice: random.Random, data: bytes, source: Mutator) -> bytes:
    """An item less, with count and lengths right."""
    found = source.shape(data)
    groups = [group for group in found.groups if group.items]
    if not groups:
        return cut_out(dice, data, source)
    group = dice.choice(groups)
    return _with_count(found.edited(data, *dice.choice(group.items), b""), group, -1)


def swap_items(dice: random.Random, data: bytes, source: Mutator) -> bytes:
    """Two neighbours in the wrong order."""
    groups = [group for group in source.shape(data).groups if len(group.items) > 1]
    if not groups:
        return cross(dice, data, source)
    items = dice.choice(groups).items
    first = dice.randrange(len(items) - 1)
    (start, middle), (_, end) = items[first], items[first + 1]
    return data[:start] + data[middle:end] + data[start:middle] + data[end:]


def adopt_item(dice: random.Random, data: bytes, source: Mutator) -> bytes:
    """An item of another input, with count and lengths right."""
    found, other = source.shape(data), source.other()
    mine = dice.choice(found.groups) if found.groups else None
    theirs = [item for group in source.shape(other).groups for item in group.items]
    if mine is None or not theirs:
        return splice(dice, data, source)
    start, end = dice.choice(theirs)
    places = [mine.at + mine.width, *(end for _, end in mine.items)]
    place = min(dice.choice(places), len(data))
    return _with_count(found.edited(data, place, place, other[start:end]), mine, 1)


def _with_count(data: bytes, group: shape.Group, more: int) -> bytes:
    out = bytearray(data)
    put_number(out, group.at, group.width, len(group.items) + more)
    return bytes(out)


# --- text ----------------------------------------------------------------------------------------


def below_base64(dice: random.Random, data: bytes, source: Mutator) -> bytes:
    """An edit of the bytes that base64url text stands for."""
    try:
        envelope = base64.urlsafe_b64decode(data + b"=" * (-len(data) % 4))
    except ValueError:
        return set_character(dice, data, source)
    edited = dice.choice(BINARY.edits)(dice, envelope, source)
    return base64.urlsafe_b64encode(edited).rstrip(b"=")


def set_character(dice: random.Random, data: bytes, source: Mutator) -> bytes:
    """One character, to one that text formats care about."""
    place = dice.randrange(len(data) + 1)
    character = dice.choice(
        (
            b"=",
            b"-",
            b"_",
            b"+",
            b"/",
            b" ",
            b"\n",
            b"\r",
            b'"',
            b"[",
            b".",
            b"#",
            b"\\",
            b"\xc3\xa9",
        )
    )
    return data[:place] + character + data[place + dice.randrange(2) :]


# --- configuration -------------------------------------------------------------------------------


def change_value(dice: random.Random, data: bytes, source: Mutator) -> bytes:
    """Another value behind a key."""
    lines = data.split(b"\n")
    assignments = [number for number, line in enumerate(lines) if b"=" in line]
    if not assignments:
        return add_table(dice, data, source)
    number = dice.choice(assignments)
    lines[number] = lines[number].partition(b"=")[0] + b"= " + dice.choice(_VALUES)
    return b"\n".join(lines)


def change_key(dice: random.Random, data: bytes, source: Mutator) -> bytes:
    """Another key in front of a value, or a dotted or quoted form of the same."""
    lines = data.split(b"\n")
    assignments = [number for number, line in enumerate(lines) if b"=" in line]
    if not assignments:
        return add_table(dice, data, source)
    number = dice.choice(assignments)
    key, _, value = lines[number].partition(b"=")
    others = [line.partition(b"=")[0] for line in source.other().split(b"\n") if b"=" in line]
    key = dice.choice(
        (dice.choice(others or [b"key "]), key.strip() + b".x ", b'"' + key + b'" ', b'"a\\nb" ')
    )
    lines[number] = key + b"=" + value
    return b"\n".join(lines)


def add_table(dice: random.Random, data: bytes, source: Mutator) -> bytes:
    """The header of a table in the middle."""
    lines = data.split(b"\n")
    lines.insert(dice.randrange(len(lines) + 1), dice.choice(_TABLE_LINES))
    return b"\n".join(lines)


def repeat_line(dice: random.Random, data: bytes, source: Mutator) -> bytes:
    """A line twice, at another place."""
    lines = data.split(b"\n")
    lines.insert(dice.randrange(len(lines) + 1), dice.choice(lines))
    return b"\n".join(lines)


def drop_line(dice: random.Random, data: bytes, source: Mutator) -> bytes:
    """A line less."""
    lines = data.split(b"\n")
    lines.pop(dice.randrange(len(lines)))
    return b"\n".join(lines)


def adopt_lines(dice: random.Random, data: bytes, source: Mutator) -> bytes:
    """The first lines of one and the last ones of another."""
    lines, others = data.split(b"\n"), source.other().split(b"\n")
    kept, taken = dice.randrange(len(lines) + 1), dice.randrange(len(others) + 1)
    return b"\n".join(lines[:kept] + others[taken:])


_ANYWHERE: Final[tuple[Edit, ...]] = (
    flip_bit,
    set_byte,
    truncate,
    extend,
    cut_out,
    repeat,
    splice,
    cross,
)
BINARY: Final = Grammar((*_ANYWHERE, set_word, behead))
_STRUCTURED: Final[tuple[Edit, ...]] = (
    *BINARY.edits,
    change_length,
    resize_content,
    change_content,
    replace_content,
    change_count,
    repeat_item,
    drop_item,
    swap_items,
    adopt_item,
)
ENVELOPE: Final = Grammar(_STRUCTURED, shape.of_envelope)
MAP: Final = Grammar(_STRUCTURED, shape.of_map)
PUT: Final = Grammar(_STRUCTURED, shape.of_put, 2 * MAX_INPUT)
TEXT: Final = Grammar((*_ANYWHERE, *[set_character] * 4, *[below_base64] * 6), limit=MAX_INPUT)
TOML: Final = Grammar(
    (
        *_ANYWHERE,
        set_character,
        *[change_value] * 6,
        *[change_key] * 3,
        add_table,
        repeat_line,
        drop_line,
        adopt_lines,
    ),
    limit=MAX_TEXT,
)
