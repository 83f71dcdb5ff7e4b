"""What was measured: rows with medians and spread, and how to find one again."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self

from attrs import asdict, frozen


@frozen
class Spread:
    """The median of some samples, and where the middle four fifths of them lie."""

    median: float
    low: float
    high: float
    samples: int

    @classmethod
    def of(cls, samples: Iterable[float]) -> Self:
        """Raises ``ValueError`` without samples."""
        ordered = sorted(samples)
        if not ordered:
            raise ValueError("there are no samples")
        last = len(ordered) - 1
        low, high = ordered[round(last * 0.1)], ordered[round(last * 0.9)]
        return cls(statistics.median(ordered), low, high, len(ordered))

    def times(self, factor: float) -> Spread:
        """In another unit."""
        return Spread(self.median * factor, self.low * factor, self.high * factor, self.samples)


@frozen
class Row:
    """One case for one subject.

    ``ratio`` is that of its time to the base's, both taken in one sample; a count or a size has
    none.
    """

    suite: str
    case: str
    subject: str
    value: Spread
    unit: str
    ratio: Spread | None = None
    base: str = ""


class Results:
    """All rows of a run, in order."""

    def __init__(self, rows: Sequence[Row] = ()) -> None:
        self._rows = {(row.suite, row.case, row.subject): row for row in rows}

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows.values())

    def add(self, row: Row) -> None:
        """A row takes the place of one with the same names."""
        self._rows[row.suite, row.case, row.subject] = row

    def value(self, suite: str, case: str, subject: str) -> float:
        """The median; raises ``KeyError`` if this was not measured."""
        return self._rows[suite, case, subject].value.median

    def ratio(self, suite: str, case: str, subject: str) -> float:
        """The median ratio to the base; raises ``KeyError`` if this was not measured."""
        ratio = self._rows[suite, case, subject].ratio
        if ratio is None:
            raise KeyError((suite, case, subject))
        return ratio.median

    def as_json(self) -> list[dict[str, Any]]:
        """For the results file."""
        return [asdict(row) for row in self]


def row_of(
    named: tuple[str, str, str],
    samples: Sequence[tuple[float, float]],
    *,
    factor: float,
    unit: str,
    base: str,
) -> Row:
    """A row of samples of base and subject in nanoseconds.

    ``unit`` per second (``MiB/s``) turns times into speeds; the ratio stays one of times.
    """
    per_second = unit.endswith("/s")
    values = [factor * 1e9 / own if per_second else factor * own for _, own in samples]
    ratio = Spread.of(own / other for other, own in samples)
    return Row(*named, Spread.of(values), unit, ratio, base)


def figure(value: float) -> str:
    """Three digits that mean something."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
