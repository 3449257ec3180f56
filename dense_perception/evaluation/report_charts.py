"""
Charts of a report as SVG inside a page.

Their colours are the page's: classes `bar`, `dots`, `dot`, `line`, `axis`, `grid`, `soft`, `zero`,
`mark` and `label`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import math
from xml.etree import ElementTree

from dense_perception.metrics.calibration import ReliabilityBin
import numpy as np

_WIDTH, _HEIGHT = 440.0, 240.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 58.0, 12.0, 12.0, 38.0  # margins that hold the axes
_MOST_DOTS = 1500  # of more, the highest of each stretch is drawn

Point = tuple[float, float]
Range = tuple[float, float]


@dataclass(frozen=True)
class _Plot:
    """An SVG with axes; methods draw in the units of the axes."""

    root: ElementTree.Element
    x_range: Range
    y_range: Range
    height: float

    @classmethod
    def of(
        cls,
        titles: tuple[str, str, str],
        x_range: Range,
        y_range: Range,
        *,
        height: float = _HEIGHT,
        y_axis: bool = True,
    ) -> '_Plot':
        """Return a plot with axes; its titles are of the chart, the x axis and the y axis."""
        root = ElementTree.Element('svg', {'viewBox': f'0 0 {_WIDTH:g} {height:g}', 'role': 'img'})
        root.set('aria-label', titles[0])
        plot = cls(root, _opened(x_range), _opened(y_range), height)
        bottom = height - _BOTTOM
        for value, text in _ticks(plot.x_range):
            plot.element('line', 'grid', x1=plot.x(value), x2=plot.x(value), y1=_TOP, y2=bottom)
            plot.text(text, plot.x(value), bottom + 15, 'middle')
        for value, text in _ticks(plot.y_range) if y_axis else ():
            y = plot.y(value)
            plot.element('line', 'grid', x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y)
            plot.text(text, _LEFT - 6, y + 4, 'end')
        plot.element('line', 'axis', x1=_LEFT, x2=_WIDTH - _RIGHT, y1=bottom, y2=bottom)
        plot.text(titles[1], (_LEFT + _WIDTH - _RIGHT) / 2, height - 4, 'middle')
        middle = (_TOP + bottom) / 2
        plot.text(titles[2], 11, middle, 'middle', transform=f'rotate(-90 11 {middle:g})')
        return plot

    def x(self, value: float) -> float:
        low, high = self.x_range
        return _LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return (
            self.height - _BOTTOM - (value - low) / (high - low) * (self.height - _TOP - _BOTTOM)
        )

    def element(
        self, tag: str, style: str, hint: str = '', **attributes: float | str
    ) -> ElementTree.Element:
        """Add an element; a hint is shown where the pointer rests on it."""
        written = {
            name.replace('_', '-'): value if isinstance(value, str) else f'{value:.2f}'
            for name, value in attributes.items()
        }
        made = ElementTree.SubElement(self.root, tag, {'class': style, **written})
        if hint:
            ElementTree.SubElement(made, 'title').text = hint
        return made

    def text(self, content: str, x: float, y: float, anchor: str, **attributes: str) -> None:
        self.element('text', 'label', x=x, y=y, text_anchor=anchor, **attributes).text = content

    def bar(self, x: Range, top: float, style: str, hint: str) -> None:
        left, right, y = self.x(x[0]), self.x(x[1]), self.y(top)
        height = max(self.height - _BOTTOM - y, 0)
        width = max(right - left - 1, 0.5)
        self.element('rect', style, hint, x=left + 0.5, y=y, width=width, height=height)

    def markup(self) -> str:
        return ElementTree.tostring(self.root, encoding='unicode')


def reliability(bins: Sequence[ReliabilityBin]) -> str:
    """Draw accuracy over confidence, and faintly which share of the pixels each bin has."""
    plot = _Plot.of(
        ('reliability: accuracy over confidence', 'confidence', 'accuracy'), (0, 1), (0, 1)
    )
    pixels = sum(entry.pixels for entry in bins)
    for entry in bins:
        if entry.pixels:
            share = entry.pixels / pixels
            plot.bar((entry.low, entry.high), share, 'soft', f'{100 * share:.1f} % of the pixels')
    plot.element('line', 'zero', x1=plot.x(0), y1=plot.y(0), x2=plot.x(1), y2=plot.y(1))
    points = [(entry.confidence, entry.accuracy) for entry in bins if entry.pixels]
    corners = ' '.join(f'{plot.x(x):.2f},{plot.y(y):.2f}' for x, y in points)
    plot.element('polyline', 'line', points=corners)
    for confidence, accuracy in points:
        hint = f'confidence {confidence:.3f}, accuracy {accuracy:.3f}'
        plot.element('circle', 'dot', hint, cx=plot.x(confidence), cy=plot.y(accuracy), r=3)
    return plot.markup()


def histogram(values: Sequence[float], title: str, marks: Mapping[str, float]) -> str:
    """
    Draw how often values occur.

    :param values: one at least.
    :param title: of the axis, with its unit.
    :param marks: values that a line shows, by name.
    """
    counts, edges = np.histogram(values, bins=min(40, max(5, math.ceil(len(values) ** 0.5))))
    x_range = (float(edges[0]), float(edges[-1]))
    # Room above the bars for the names of the marks.
    y_range = (0, max(1.35 * int(counts.max()), 4))
    plot = _Plot.of((f'histogram of {title}', title, 'frames'), x_range, y_range)
    for count, low, high in zip(counts.tolist(), edges[:-1], edges[1:], strict=True):
        hint = f'{low:.1f} to {high:.1f}: {count} frames'
        plot.bar((float(low), float(high)), count, 'bar', hint)
    for row, (name, value) in enumerate(marks.items()):
        x = plot.x(value)
        plot.element(
            'line', 'mark', f'{name}: {value:.1f}', x1=x, x2=x, y1=_TOP, y2=_HEIGHT - _BOTTOM
        )
        # Names of marks that lie close together stand below each other.
        near_end = x > _WIDTH - 60
        plot.text(name, x + (-3 if near_end else 3), _TOP + 10 + 13 * row, _side(near_end))
    return plot.markup()


def timeline(points: Sequence[Point], x_title: str, y_title: str, top: float = 0.0) -> str:
    """
    Draw a value over time as dots.

    :param points: one at least; time, value.
    :param top: end of the value's axis; 0 for the largest value.
    """
    kept = _thinned(points)
    times = [x for x, _ in kept]
    highest = top or max(y for _, y in kept)
    plot = _Plot.of((f'{y_title} over time', x_title, y_title), _range(times), (0, highest))
    # One path of strokes without length, which round ends make dots: small even with many.
    strokes = ''.join(f'M{plot.x(x):.1f} {plot.y(y):.1f}h0' for x, y in kept)
    plot.element('path', 'dots', d=strokes)
    return plot.markup()


def intervals(rows: Sequence[tuple[str, float, float, float]], x_title: str) -> str:
    """
    Draw differences with their intervals, and 0.

    :param rows: name, value, low and high of each; low and high are nan where not known.
    """
    ends = [0.0, *(value for row in rows for value in row[1:] if math.isfinite(value))]
    low, high = _range(ends)
    room = 0.05 * (high - low)
    height = _TOP + _BOTTOM + 34 * len(rows)
    plot = _Plot.of(
        (f'intervals of {x_title}', x_title, ''),
        (low - room, high + room),
        (len(rows), 0),
        height=height,
        y_axis=False,
    )
    zero = plot.x(0)
    plot.element('line', 'zero', x1=zero, x2=zero, y1=_TOP, y2=height - _BOTTOM)
    for number, (name, value, low, high) in enumerate(rows):
        y = _TOP + 34 * number + 24
        plot.text(name, _LEFT, y - 10, 'start')
        if math.isfinite(low) and math.isfinite(high):
            plot.element('line', 'line', x1=plot.x(low), x2=plot.x(high), y1=y, y2=y)
        if math.isfinite(value):
            plot.element('circle', 'dot', cx=plot.x(value), cy=y, r=4)
    return plot.markup()


def _thinned(points: Sequence[Point]) -> list[Point]:
    """Keep the highest of each stretch of points, so that no peak is lost."""
    stretch = -(-len(points) // _MOST_DOTS)
    return [
        max(points[start : start + stretch], key=lambda point: point[1])
        for start in range(0, len(points), stretch)
    ]


def _range(values: Sequence[float]) -> Range:
    return min(values), max(values)


def _opened(ends: Range) -> Range:
    """Return a range in which something can be placed, should it have no length."""
    return ends if ends[0] != ends[1] else (ends[0], ends[0] + 1)


def _ticks(ends: Range) -> list[tuple[float, str]]:
    """Return round values within a range, three to ten, and how they are written."""
    low, high = min(ends), max(ends)
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [(number * step, f'{number * step:.{digits}f}') for number in range(first, last + 1)]


def _side(end: bool) -> str:
    return 'end' if end else 'start'
