"""Charts of the report as inline SVG, colored by CSS variables that follow the light or dark color scheme."""

from collections import Counter
from collections.abc import Sequence
from html import escape
from math import floor, log10

from bali_ds.evaluation.page import LINES

WIDTH, HEIGHT = 640, 260
LEFT, RIGHT, TOP, BOTTOM = 68, 28, 12, 32
SQUARE = 460
_FARTHEST = 1e300
_HOVER_POINTS = 60
COLORS = len(LINES)

Points = Sequence[tuple[float, float]]


def line_chart(series: dict[str, Points], *, x_label: str, y_label: str, from_zero: bool = False) -> str:
    """Return an SVG line chart with one line per series (at most `COLORS`), and a legend if there are several.

    Args:
        series: (x, y) by name; points that are non-finite, or too far out for a scale, are dropped.
        x_label: label of the x axis.
        y_label: what the y axis shows, for the text alternative.
        from_zero: whether the y axis starts at 0.
    """
    drawn = {name: [(x, y) for x, y in points if abs(y) < _FARTHEST] for name, points in series.items()}
    drawn = {name: points for name, points in drawn.items() if points}
    if not drawn:
        return '<p class="quiet">no values</p>'
    xs = [x for points in drawn.values() for x, _ in points]
    ys = [y for points in drawn.values() for _, y in points]
    x_low, x_high = min(xs), max(xs)
    if x_low == x_high:  # center a single point
        x_low, x_high = x_low - 1, x_high + 1
    y_ticks = ticks(0.0 if from_zero else min(ys), max(ys))
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        down = (y_high - y) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)
        return LEFT + across, TOP + down

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(y_label)} by {escape(x_label)}: '
        f'{escape(", ".join(drawn))}">'
    ]
    for tick in y_ticks:
        _, y = place(x_low, tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{number(tick)}</text>')
    for tick in ticks(x_low, x_high, count=5):
        if x_low <= tick <= x_high and tick == round(tick):  # the x axis shows whole steps
            x, _ = place(tick, y_low)
            if x < LEFT + 30:  # keep room for the axis label
                continue
            parts.append(f'<text class="tick" x="{x:.1f}" y="{HEIGHT - 10}" text-anchor="middle">{number(tick)}</text>')
    parts.append(f'<text class="tick" x="{LEFT - 8}" y="{HEIGHT - 10}" text-anchor="end">{escape(x_label)}</text>')
    for color, (name, points) in enumerate(drawn.items()):
        parts.append(_line([place(x, y) for x, y in thinned(points)], color))
        for x, y in thinned(points, _HOVER_POINTS):
            across, down = place(x, y)
            told = f"{escape(name)}, {escape(x_label)} {number(x)}: {number(y)}"
            target = f'<circle class="hover" cx="{across:.1f}" cy="{down:.1f}" r="7"/>'
            parts.append(f"<g><title>{told}</title>{target}</g>")
    parts.append("</svg>")
    return "".join(parts) + _legend([f"{name} {number(points[-1][1])}" for name, points in drawn.items()])


def _line(places: list[tuple[float, float]], color: int) -> str:
    if len(places) == 1:
        x, y = places[0]
        return f'<circle class="dot c{color}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>'
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return f'<polyline class="line c{color}" points="{path}"/>'


def scatter_chart(points: Sequence[Sequence[float]], groups: Sequence[str], names: Sequence[str], *, label: str) -> str:
    """Return an SVG scatter chart of named points, colored by group, and a legend: the largest groups, then "others".

    Args:
        points: (x, y) in 0..1.
        groups: group of each point.
        names: name of each point, shown as its tooltip.
        label: caption.
    """
    largest = [group for group, _ in Counter(groups).most_common(COLORS)]
    shown = largest if len(set(groups)) <= COLORS else [*largest[: COLORS - 1], "others"]
    marks = []
    for (x, y), group, name in zip(points, groups, names, strict=True):
        color = shown.index(group) if group in shown else COLORS - 1
        at = f'cx="{6 + x * (SQUARE - 12):.1f}" cy="{6 + y * (SQUARE - 12):.1f}"'
        marks.append(f'<g><title>{escape(name)}</title><circle class="dot c{color}" {at} r="3.2"/></g>')
    picture = f'<svg class="map" viewBox="0 0 {SQUARE} {SQUARE}" role="img" aria-label="{escape(label)}">'
    return f'{picture}{"".join(marks)}</svg><p class="quiet">{escape(label)}</p>' + _legend(shown)


def _legend(names: list[str]) -> str:
    if len(names) < 2:
        return ""
    keys = "".join(f'<span class="key c{color}">{escape(name)}</span>' for color, name in enumerate(names))
    return f'<p class="legend">{keys}</p>'


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return about `count` axis ticks from `low` to `high`, spaced by 1, 2 or 5 times a power of ten."""
    span = max(high - low, abs(high) * 1e-6, 1e-9)
    rough = span / count
    power = 10.0 ** floor(log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first = floor(low / step + 1e-9)
    found = [first * step]
    while found[-1] < high - step * 1e-9:
        found.append((first + len(found)) * step)
    return found if len(found) > 1 else [found[0], found[0] + step]


def thinned(points: Points, most: int = 400) -> list[tuple[float, float]]:
    """Return a series of at most `most` points: the means of runs of consecutive points."""
    size = -(-len(points) // most)
    stretches = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in stretches]


def number(value: float) -> str:
    """Return a number as text: 12,000, 0.35, 2e-5."""
    if value and not 1e-3 <= abs(value) < 1e7:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:,.0f}" if abs(value) >= 100 or value == round(value) else f"{value:.3g}"


def forest_chart(rows: dict[str, dict[str, dict[str, float]]], *, label: str) -> str:
    """Return an SVG forest plot of values with their intervals, one line per series in each row, and a legend.

    Args:
        rows: {row: {series: {"value", "low", "high"}}}, in 0..1; shown in percent.
        label: caption.
    """
    names = list(next(iter(rows.values())))
    row_height, title = 16 * len(names) + 34, 20
    height = row_height * len(rows) + BOTTOM
    measures = [measure for series in rows.values() for measure in series.values()]
    marks = ticks(100 * min(each["low"] for each in measures), 100 * max(each["high"] for each in measures), count=5)

    def across(percent: float) -> float:
        return 20 + (percent - marks[0]) / (marks[-1] - marks[0]) * (WIDTH - 40)

    parts = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">']
    for mark in marks:
        x = across(mark)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{height - BOTTOM}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{height - 8}" text-anchor="middle">{number(mark)}</text>')
    for place, (row, series) in enumerate(rows.items()):
        top = place * row_height + title
        parts.append(f'<text class="name" x="2" y="{top}">{escape(row)}</text>')
        for color, name in enumerate(names):
            y = top + 16 * (color + 1)
            value, low, high = (across(100 * series[name][key]) for key in ("value", "low", "high"))
            parts.append(f'<line class="whisker c{color}" x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}"/>')
            parts.append(f'<circle class="dot c{color}" cx="{value:.1f}" cy="{y}" r="4.5"/>')
    parts.append("</svg>")
    return "".join(parts) + f'<p class="quiet">{escape(label)}</p>' + _legend(names)
