"""Where lengths, counts and items lie in an input, read leniently, so that edits can respect them.

This is a second reading of docs/format.md that shares nothing with the library: it checks nothing,
and stops without complaint where the bytes do.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from attrs import field, frozen


@frozen
class Counted:
    """A length at ``at``, ``width`` bytes wide, and the content it ends.

    ``base`` is where it starts counting: at the content, or at an earlier byte.
    """

    at: int
    width: int
    start: int
    end: int
    base: int


@frozen
class Group:
    """A count at ``at``, ``width`` bytes wide, and the spans of the items that follow it.

    With a ``width`` of 0 they are not counted.
    """

    at: int
    width: int
    items: list[tuple[int, int]]


@frozen
class Shape:
    """All that was found in one input."""

    lengths: list[Counted] = field(factory=list)
    groups: list[Group] = field(factory=list)

    def edited(self, data: bytes, start: int, end: int, replacement: bytes) -> bytes:
        """``data`` with one span replaced, and every length around it set right again."""
        grown = len(replacement) - (end - start)
        out = bytearray(data)
        for length in self.lengths:
            if length.start <= start and end <= length.end:
                put_number(out, length.at, length.width, length.end - length.base + grown)
        out[start:end] = replacement
        return bytes(out)


def put_number(data: bytearray, at: int, width: int, value: int) -> None:
    """Overwrite a number in place, cut to its width."""
    data[at : at + width] = (value % (1 << 8 * width)).to_bytes(width, "big")


class _CutShortError(Exception):
    """The bytes end here."""


class _Walk:
    """Reads on from an offset, and notes what it comes across."""

    def __init__(self, data: bytes, offset: int = 0) -> None:
        self.data = data
        self.offset = offset
        self.shape = Shape()

    def number(self, width: int) -> int:
        start = self.offset
        self.skip(width)
        return int.from_bytes(self.data[start : self.offset], "big")

    def skip(self, size: int) -> None:
        if self.offset + size > len(self.data):
            raise _CutShortError
        self.offset += size

    def counted(self, width: int = 2, inside: Callable[[], None] | None = None) -> None:
        at = self.offset
        size = self.number(width)
        start = self.offset
        end = min(start + size, len(self.data))
        self.shape.lengths.append(Counted(at, width, start, end, start))
        if inside is not None:
            inside()
            self.offset = start
        self.skip(size)

    def group(self, width: int, item: Callable[[], None]) -> None:
        at = self.offset
        group = Group(at, width, [])
        self.shape.groups.append(group)
        for _ in range(min(self.number(width), 256)):
            start = self.offset
            item()
            group.items.append((start, self.offset))

    def map(self) -> None:
        self.group(2, self._pair)

    def _pair(self) -> None:
        self.counted()
        self.counted()

    def capsule(self) -> None:
        start = self.offset
        self.skip(4)
        at = self.offset
        end = min(start + self.number(4), len(self.data))
        self.shape.lengths.append(Counted(at, 4, self.offset, end, start))
        self.skip(4 + 32)
        self.counted(inside=self.map)
        self.group(1, self._recipient)
        self.group(1, self._extension)
        self.offset = end

    def _recipient(self) -> None:
        self.skip(3)
        self.counted()
        self.counted()

    def _extension(self) -> None:
        missing = self.number(2) == 0x4002
        self.counted(inside=self._uris if missing else None)

    def _uris(self) -> None:
        """As far as the length around them says; there is no count."""
        end = self.shape.lengths[-1].end
        group = Group(self.offset, 0, [])
        self.shape.groups.append(group)
        while self.offset < end:
            start = self.offset
            self.counted()
            group.items.append((start, self.offset))

    def body(self) -> None:
        start = self.offset
        self.skip(3)
        kind = self.data[start + 1]
        self.offset = start + (44 if kind & 0x07 == 0x03 else 43)
        if kind & 0x08:
            self.counted(inside=self.map)

    def envelope(self) -> None:
        if self.data[1:2] == b"\x11":
            self.capsule()
        self.body()

    def store_put(self) -> None:
        self.skip(16)
        self.counted(4, inside=self.capsule)
        self.capsule()


def _shape(data: bytes, walk: Callable[[_Walk], None]) -> Shape:
    walker = _Walk(data)
    with suppress(_CutShortError):
        walk(walker)
    return walker.shape


def of_envelope(data: bytes) -> Shape:
    """Of K, M, S, or K in front of one of the others."""
    return _shape(data, _Walk.envelope)


def of_map(data: bytes) -> Shape:
    """Of a canonical map."""
    return _shape(data, _Walk.map)


def of_put(data: bytes) -> Shape:
    """Of what ``fuzz_check_put`` takes: key id, capsule behind its length, older capsule."""
    return _shape(data, _Walk.store_put)


def of_nothing(data: bytes) -> Shape:
    """Of bytes without lengths or counts."""
    del data
    return Shape()
