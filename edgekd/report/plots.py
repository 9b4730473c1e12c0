"""Plots as inline SVG, from numbers to text: no library, no script, no colour that means something alone.

Every series differs in shape as well as colour, points carry their names, and colours are CSS variables of
the page, so that a plot follows dark mode. A plot without points is an empty string.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 480, 330  # small, so that text stays readable on a phone
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 14, 48
SHAPES = ("circle", "square", "diamond", "triangle")
CHARACTER = 6.8  # width of a label's character at 13 px, a little generous
LINE = 14


@dataclass(frozen=True)
class Point:
    """A named point: ``group`` chooses the colour, ``shape`` the mark, ``low`` and ``high`` bound y."""

    x: float
    y: float
    name: str
    group: int
    shape: int
    low: float | None = None
    high: float | None = None
    detail: str = ""


@dataclass(frozen=True)
class Line:
    """A named line through points in the order given."""

    points: Sequence[Sequence[float]]
    name: str
    group: int


@dataclass(frozen=True)
class Axis:
    """Where values lie, and which are written down."""

    place: Callable[[float], float]
    ticks: list[float]


def scatter(points: Sequence[Point], *, title: str, x_label: str, y_label: str, least: float = 1e-6) -> str:
    """Named points. x is logarithmic where values differ over four times; y spans ``least`` or more."""
    points = [point for point in points if point.x > 0]
    if not points:
        return ""
    xs = [point.x for point in points]
    ys = [bound for point in points for bound in (point.y, point.low, point.high) if bound is not None]
    x_axis = (
        log_axis(min(xs), max(xs), LEFT, WIDTH - RIGHT)
        if max(xs) > 4 * min(xs)
        else linear_axis(xs, LEFT, WIDTH - RIGHT)
    )
    y_axis = linear_axis(ys, HEIGHT - BOTTOM, TOP, least=least)
    body = [frame(x_axis, y_axis, x_label, y_label)]
    placed = [(x_axis.place(p.x), y_axis.place(p.y)) for p in points]
    boxes = [(x - 8, y - 8, x + 8, y + 8) for x, y in placed]
    for point, (x, _) in zip(points, placed, strict=True):
        if point.low is not None and point.high is not None:
            top, bottom = y_axis.place(point.high), y_axis.place(point.low)
            body.append(f'<path class="whisker g{point.group}" d="M{x:.1f} {top:.1f}V{bottom:.1f}"/>')
    for point, (x, y) in zip(points, placed, strict=True):
        tip = escape(f"{point.name}: {point.detail}" if point.detail else point.name)
        body.append(f"<g><title>{tip}</title>{mark(point.shape, point.group, x, y)}</g>")
    for point, (x, y) in sorted(zip(points, placed, strict=True), key=lambda pair: pair[1][0]):
        body.append(label(point.name, x, y, boxes))
    told = "; ".join(f"{point.name}: {point.detail or f'{point.x:g}, {point.y:g}'}" for point in points)
    return svg(title, told, body)


def lines(series: Sequence[Line], *, title: str, x_label: str, y_label: str) -> str:
    """Lines with a mark at every point; each is named at its end."""
    series = [line for line in series if line.points]
    if not series:
        return ""
    xs = [point[0] for line in series for point in line.points]
    ys = [point[1] for line in series for point in line.points]
    x_axis = linear_axis([0, *xs], LEFT, WIDTH - RIGHT - 70)
    y_axis = linear_axis(ys, HEIGHT - BOTTOM, TOP, least=1e-6)
    body = [frame(x_axis, y_axis, x_label, y_label)]
    boxes: list[tuple[float, float, float, float]] = []
    for number, line in enumerate(series):
        placed = [(x_axis.place(point[0]), y_axis.place(point[1])) for point in line.points]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in placed)
        dash = ' stroke-dasharray="6 4"' if number % 2 else ""
        body.append(f'<path class="line g{line.group}"{dash} d="M{path}"/>')
        if len(placed) <= 40:
            body += [mark(number, line.group, x, y, size=3.5) for x, y in placed]
        body.append(label(line.name, *placed[-1], boxes))
    told = "; ".join(f"{line.name}: {len(line.points)} points, last {line.points[-1][1]:.4g}" for line in series)
    return svg(title, told, body)


STYLE = """.plot{font:13px system-ui,sans-serif;background:#fff}text{fill:#333}.g0{fill:#8a8a8a;stroke:#8a8a8a}
.g1{fill:#0b6e99;stroke:#0b6e99}.axis,.grid,.line,.leader,.whisker{fill:none;stroke:#bbb}.axis{stroke:#333}"""


def alone(plot: str) -> str:
    """The plot as a file of its own, with the colours that a page would give it."""
    head, tail = plot.split(">", 1)
    return f'{head} xmlns="http://www.w3.org/2000/svg"><style>{STYLE}</style>{tail}\n'


def mark(shape: int, group: int, x: float, y: float, size: float = 6) -> str:
    """One mark of a series."""
    kind = SHAPES[shape % len(SHAPES)]
    attributes = f'class="mark g{group}"'
    if kind == "circle":
        return f'<circle {attributes} cx="{x:.1f}" cy="{y:.1f}" r="{size}"/>'
    if kind == "square":
        half = 0.9 * size
        place = f'x="{x - half:.1f}" y="{y - half:.1f}" width="{2 * half:.1f}" height="{2 * half:.1f}"'
        return f"<rect {attributes} {place}/>"
    far = size * 1.25
    corners = {
        "diamond": [(x, y - far), (x + far, y), (x, y + far), (x - far, y)],
        "triangle": [(x, y - far), (x + far, y + far * 0.8), (x - far, y + far * 0.8)],
    }[kind]
    return f'<path {attributes} d="M{"L".join(f"{a:.1f} {b:.1f}" for a, b in corners)}Z"/>'


def key(shape: int, group: int) -> str:
    """A mark alone, for a legend in HTML."""
    return f'<svg class="key" viewBox="0 0 18 18" aria-hidden="true">{mark(shape, group, 9, 9)}</svg>'


def linear_axis(values: Sequence[float], start: float, end: float, least: float = 1e-9) -> Axis:
    """A linear axis over the values, padded; at least ``least`` wide."""
    low, high = min(values), max(values)
    pad = max((high - low) * 0.08, (least - (high - low)) / 2)
    low, high = low - pad if low != 0 else low, high + pad
    step = _nice((high - low) / 5)
    first = math.ceil(low / step - 1e-9)
    ticks = [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]
    return Axis(lambda value: start + (value - low) / (high - low) * (end - start), ticks)


def log_axis(low: float, high: float, start: float, end: float) -> Axis:
    """A logarithmic axis with ticks at 1, 2 and 5 times powers of ten."""
    a, b = math.log10(low) - 0.08, math.log10(high) + 0.22  # room for labels at the right
    powers = range(math.floor(a), math.ceil(b) + 1)
    ticks = [m * 10.0**p for p in powers for m in (1, 2, 5) if a <= math.log10(m * 10.0**p) <= b]
    return Axis(lambda value: start + (math.log10(value) - a) / (b - a) * (end - start), ticks)


def _nice(step: float) -> float:
    """The next of 1, 2, 2.5, 5 times a power of ten that is not below ``step``."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= step * (1 - 1e-9))


def frame(x_axis: Axis, y_axis: Axis, x_label: str, y_label: str) -> str:
    """Axes, grid and names."""
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = []
    for tick in y_axis.ticks:
        y = y_axis.place(tick)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{right}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:.4g}</text>')
    for tick in x_axis.ticks:
        x = x_axis.place(tick)
        parts.append(f'<path class="grid" d="M{x:.1f} {TOP}V{bottom}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {TOP}V{bottom}H{right}"/>')
    middle = (LEFT + right) / 2
    centred = 'class="name" text-anchor="middle"'
    parts.append(f'<text {centred} x="{middle}" y="{HEIGHT - 8}">{escape(x_label)}</text>')
    height = (TOP + bottom) / 2
    turn = f'transform="rotate(-90 14 {height})"'
    parts.append(f'<text {centred} x="14" y="{height}" {turn}>{escape(y_label)}</text>')
    return "".join(parts)


def label(name: str, x: float, y: float, boxes: list[tuple[float, float, float, float]]) -> str:
    """The name beside its point where it covers nothing yet; with a thin line to it when it is not near."""
    width = CHARACTER * len(name)
    spots = [
        (x + side * 12 - (width if side < 0 else 0), y + 4 + shift)
        for shift in (0, -LINE, LINE, -2 * LINE, 2 * LINE, -3 * LINE, 3 * LINE, -4 * LINE, 4 * LINE)
        for side in (1, -1)
    ]
    inside = [
        (left, base)
        for left, base in spots
        if left >= LEFT + 2 and left + width <= WIDTH - 2 and TOP + 8 <= base <= HEIGHT - BOTTOM - 2
    ]
    free = [(left, base) for left, base in inside if not _covers((left, base - 10, left + width, base + 3), boxes)]
    left, base = (free or inside or spots)[0]
    boxes.append((left, base - 10, left + width, base + 3))
    text = f'<text class="label" x="{left:.1f}" y="{base:.1f}">{escape(name)}</text>'
    if abs(base - 4 - y) < LINE:
        return text
    end = left - 2 if left > x else left + width + 2
    return f'<path class="leader" d="M{x:.1f} {y:.1f}L{end:.1f} {base - 4:.1f}"/>{text}'


def _covers(box: tuple[float, float, float, float], others: Sequence[tuple[float, float, float, float]]) -> bool:
    return any(box[0] < o[2] and o[0] < box[2] and box[1] < o[3] and o[1] < box[3] for o in others)


def svg(title: str, told: str, body: Sequence[str], *, height: int = HEIGHT) -> str:
    """The whole plot; ``told`` is what a screen reader says beside the title."""
    name = "".join(c if c.isalnum() else "-" for c in title.lower())
    labels = f'role="img" aria-labelledby="{name}-t {name}-d"'
    return "".join(
        [
            f'<svg class="plot" viewBox="0 0 {WIDTH} {height}" {labels}>',
            f'<title id="{name}-t">{escape(title)}</title><desc id="{name}-d">{escape(told)}</desc>',
            *body,
            "</svg>",
        ]
    )
