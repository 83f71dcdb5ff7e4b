"""A bar chart in SVG, on a logarithmic scale, without any library."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final
from xml.sax.saxutils import escape

from attrs import frozen

from benchmarks.results import figure

_LABELS: Final = 270
_PLOT: Final = 560
_ROW: Final = 24
_HEAD: Final = 46
_BAR: Final = 15
_OURS: Final = "#1f6f8b"
_THEIRS: Final = "#b9bec4"
_INK: Final = "#24292f"
_RULE: Final = "#d9dde1"


@frozen
class Bar:
    """A figure of at least 1."""

    label: str
    value: float
    ours: bool


@frozen
class Panel:
    """Bars under one heading."""

    title: str
    bars: Sequence[Bar]

    @property
    def height(self) -> int:
        """With its heading."""
        return _HEAD + _ROW * len(self.bars)


def drawn(title: str, panels: Sequence[Panel]) -> str:
    """The picture; all panels share one scale, which starts at 1."""
    panels = [panel for panel in panels if panel.bars]
    most = max((bar.value for panel in panels for bar in panel.bars), default=10.0)
    decades = max(1, math.ceil(math.log10(most)))
    height, width = 56 + sum(panel.height for panel in panels), _LABELS + _PLOT + 80
    lines = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" font-family="system-ui, sans-serif" '
            f'font-size="13" fill="{_INK}" role="img" aria-label="{escape(title)}">'
        ),
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="16" y="28" font-size="16" font-weight="600">{escape(title)}</text>',
    ]
    top = 44
    for panel in panels:
        lines += _panel(panel, top, decades)
        top += panel.height
    return "\n".join([*lines, "</svg>", ""])


def _panel(panel: Panel, top: int, decades: int) -> Iterator[str]:
    yield f'<text x="16" y="{top + 18}" font-weight="600">{escape(panel.title)}</text>'
    bottom = top + panel.height - 12
    for decade in range(decades + 1):
        x = _LABELS + _PLOT * decade / decades
        yield f'<line x1="{x:.0f}" y1="{top + 26}" x2="{x:.0f}" y2="{bottom}" stroke="{_RULE}"/>'
        yield (
            f'<text x="{x:.0f}" y="{top + 20}" text-anchor="middle" font-size="11">'
            f"{10**decade:,}</text>"
        )
    for number, bar in enumerate(panel.bars):
        y = top + 32 + _ROW * number
        length = max(1.0, _PLOT * math.log10(max(bar.value, 1.0)) / decades)
        colour = _OURS if bar.ours else _THEIRS
        yield (
            f'<text x="{_LABELS - 8}" y="{y + 12}" text-anchor="end">{escape(bar.label)}</text>'
            f'<rect x="{_LABELS}" y="{y}" width="{length:.1f}" height="{_BAR}" fill="{colour}"/>'
            f'<text x="{_LABELS + length + 6:.0f}" y="{y + 12}">{figure(bar.value)}</text>'
        )
