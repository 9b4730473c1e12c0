"""What a mean hides, drawn: whole distributions, the cold start beside the steady state, devices by artefacts.

Pure functions of the bench's summaries (``facts["summaries"]``) to SVG, Markdown and plain cells. A distribution needs
``row["curve"]``: ``[[ms, share], ...]``. Times of an emulated processor are never drawn: they are no latency.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from edgekd.report import plots
from edgekd.report.build import input_length, number

Row = Mapping[str, Any]

SPREAD = 10  # times between the smallest and the largest value, beyond which an axis is logarithmic
DASHES = ("", "7 4", "2 3", "9 3 2 3")
COLOURS = 6
MARKED = (0.5, 0.9)
KEY = 19  # height of a line of the key
BAR, GAP = 15, 33  # height of a bar and of its place, in which its name stands above it
EMULATED = "numerics only, not latency"


def name(row: Row) -> str:
    """``onnx-w8a8``; teacher and student have no scheme worth a word."""
    return row["target"] if row["target"] in ("teacher", "student") else f"{row['target']}-{row['scheme']}"


def emulated(row: Row) -> bool:
    """Whether its times say nothing."""
    return bool(row.get("emulated")) or "emulated" in row.get("flags", ())


def place(row: Row) -> str:
    """``local, 1 thread, 14 tokens``."""
    return f"{row['device']}, {row['threads']} thread{'s' if row['threads'] != 1 else ''}, {input_length(row)}"


def places(summaries: Sequence[Row]) -> dict[str, list[Row]]:
    """What was timed without error and on a real processor, by ``place``."""
    found: dict[str, list[Row]] = {}
    for row in summaries:
        if row["error"] is None and row.get("p50_ms") is not None and not emulated(row):
            found.setdefault(place(row), []).append(row)
    return found


def ecdf(rows: Sequence[Row], *, where: str) -> str:
    """Share of inferences that took at most so long, a curve per artefact; empty where no row has a ``curve``.

    The axis of time is logarithmic where the slowest of all is more than ten times the fastest. Curves differ in colour
    dash and mark (at 50 and 90 %); their names are below.
    """
    drawn = [row for row in rows if row.get("curve")]
    if not drawn:
        return ""
    times = [max(point[0], 1e-6) for row in drawn for point in row["curve"]]
    wide = max(times) > SPREAD * min(times)
    ends = plots.LEFT, plots.WIDTH - plots.RIGHT
    x_axis = plots.log_axis(min(times), max(times), *ends) if wide else plots.linear_axis(times, *ends)
    bottom, top = plots.HEIGHT - plots.BOTTOM, plots.TOP + 4
    y_axis = plots.Axis(lambda share: bottom + (top - bottom) * share / 100, [0.0, 25.0, 50.0, 75.0, 90.0, 100.0])
    scale = "ms, logarithmic" if wide else "ms"
    body = [plots.frame(x_axis, y_axis, f"latency in {scale} (to the left is better)", "inferences in %")]
    marks, key = [], []
    for n, row in enumerate(drawn):
        points = [(x_axis.place(max(ms, 1e-6)), y_axis.place(100 * share)) for ms, share in row["curve"]]
        dash = f' stroke-dasharray="{DASHES[n % len(DASHES)]}"' if n % len(DASHES) else ""
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        tip = escape(f"{name(row)}: {_told(row)}")
        body.append(f'<g><title>{tip}</title><path class="line g{n % COLOURS}"{dash} d="M{path}"/></g>')
        for share in MARKED:
            x, y = x_axis.place(max(_at(row["curve"], share), 1e-6)), y_axis.place(100 * share)
            marks.append(plots.mark(n, n % COLOURS, x, y, size=4))
        left, line = 14 + n % 2 * (plots.WIDTH - 14) / 2, plots.HEIGHT + 12 + n // 2 * KEY
        key.append(f'<path class="line g{n % COLOURS}"{dash} d="M{left:.0f} {line}h32"/>')
        key.append(plots.mark(n, n % COLOURS, left + 16, line, size=4))
        key.append(f'<text class="label" x="{left + 40:.0f}" y="{line + 4}">{escape(name(row))}</text>')
    told = "; ".join(f"{name(row)}: {_told(row)}" for row in drawn)
    height = plots.HEIGHT + KEY * ((len(drawn) + 1) // 2) + 8
    return plots.svg(f"distribution of latency, {where}", told, [*body, *marks, *key], height=height)


def _told(row: Row) -> str:
    return ", ".join(f"{100 * share:.0f} % within {number(_at(row['curve'], share))} ms" for share in (0.5, 0.9, 0.99))


def _at(curve: Sequence[Sequence[float]], share: float) -> float:
    """The value below which ``share`` lie, linear between the curve's points."""
    before = curve[0]
    for point in curve:
        if point[1] >= share:
            width = point[1] - before[1]
            part = (share - before[1]) / width if width else 0.0
            return before[0] + part * (point[0] - before[0])
        before = point
    return float(before[0])


def cold_start(rows: Sequence[Row], *, where: str) -> str:
    """Stacked bars: load, first inference, and one steady inference; the numbers stand beside each name.

    Lengths are on one linear scale, because parts of a sum cannot be on another. A bar without a load time is left out;
    so are teacher and student where there are artefacts: what PyTorch takes to load would make all others a dot.
    """
    loaded = [row for row in rows if row.get("load_ms") is not None and row.get("first_ms") is not None]
    drawn = [row for row in loaded if row["target"] not in ("teacher", "student")] or loaded
    if not drawn:
        return ""
    top = plots.TOP + 20
    height = top + GAP * len(drawn) + plots.BOTTOM
    parts = [(row["load_ms"], row["first_ms"], row["p50_ms"]) for row in drawn]
    longest = max(sum(part) for part in parts)
    start, end = 14, plots.WIDTH - plots.RIGHT
    axis = plots.linear_axis([0, longest], start, end)
    bottom = height - plots.BOTTOM
    body = []
    for tick in axis.ticks:
        x = axis.place(tick)
        body.append(f'<path class="grid" d="M{x:.1f} {top}V{bottom}"/>')
        body.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{tick:g}</text>')
    body.append(f'<path class="axis" d="M{start} {bottom}H{end}"/>')
    middle = (start + end) / 2
    body.append(f'<text class="name" text-anchor="middle" x="{middle}" y="{height - 8}">ms until a first answer</text>')
    words = ("load", "first inference", "steady (median)")
    at = float(start)
    for n, word in enumerate(words):  # the key, in the order of the bars
        body.append(f'<rect class="mark g{n}" x="{at:.1f}" y="{plots.TOP - 8}" width="11" height="11"/>')
        body.append(f'<text class="label" x="{at + 15:.1f}" y="{plots.TOP + 2}">{word}</text>')
        at += 30 + plots.CHARACTER * len(word)
    for n, (row, part) in enumerate(zip(drawn, parts, strict=True)):
        y, from_ms = top + GAP * n + 14, 0.0
        shown = f"{name(row)}: {' + '.join(number(ms) for ms in part)} ms"
        body.append(f'<text class="label" x="{start + 2}" y="{y - 2}">{escape(shown)}</text>')
        for m, (word, ms) in enumerate(zip(words, part, strict=True)):
            left, right = axis.place(from_ms), axis.place(from_ms + ms)
            box = f'x="{left:.1f}" y="{y}" width="{max(right - left, 0.5):.1f}" height="{BAR}"'
            body.append(f"<g><title>{escape(f'{name(row)}, {word}: {number(ms)} ms')}</title>")
            body.append(f'<rect class="mark g{m}" {box}/></g>')
            from_ms += ms
    told = "; ".join(
        f"{name(row)}: load {number(a)}, first inference {number(b)}, steady {number(c)} ms"
        for row, (a, b, c) in zip(drawn, parts, strict=True)
    )
    return plots.svg(f"cold start, {where}", told, body, height=height)


@dataclass(frozen=True)
class Cell:
    """One artefact on one device. ``text`` for people; ``kind``: timed, doubtful, emulated, failed or none."""

    text: str
    kind: str
    note: str = ""


@dataclass(frozen=True)
class Matrix:
    """Devices by artefacts, at one thread count and length: ``title``, ``columns`` of devices, ``rows`` by artefact."""

    title: str
    columns: list[str]
    rows: list[tuple[str, list[Cell]]]


def matrices(summaries: Sequence[Row], *, least: int = 2) -> list[Matrix]:
    """One matrix per thread count and named length, where there are ``least`` devices or more."""
    groups: dict[tuple[int, str], list[Row]] = {}
    for row in summaries:
        groups.setdefault((row["threads"], str(row.get("length") or row["tokens"])), []).append(row)
    found = []
    for (threads, length), rows in groups.items():
        columns = list(dict.fromkeys(row["device"] for row in rows))
        if len(columns) < least:
            continue
        names = list(dict.fromkeys(name(row) for row in rows))
        by_place = {(name(row), row["device"]): row for row in rows}
        cells = [(one, [_cell(by_place.get((one, device))) for device in columns]) for one in names]
        tokens = sorted({row["tokens"] for row in rows})
        fed = (
            "one image"
            if length == "image"
            else f"{' to '.join(map(str, dict.fromkeys((tokens[0], tokens[-1]))))} tokens"
        )
        found.append(Matrix(f"{threads} thread{'s' if threads != 1 else ''}, {fed}", columns, cells))
    return found


def _cell(row: Row | None) -> Cell:
    if row is None:
        return Cell("–", "none", "not measured on this device")
    if row["error"] is not None:
        return Cell("failed" if "not measured" not in row["error"] else "–", "failed", row["error"])
    if emulated(row):
        agreement = (row.get("golden") or {}).get("agreement")
        same = "" if agreement is None else f"golden answers: {100 * agreement:.0f} % the same"
        return Cell(EMULATED, "emulated", same)
    flags = ", ".join(flag.replace("_", " ") for flag in row.get("flags", ()))
    bounds = row.get("p50_ci_ms")
    note = f"{number(bounds[0])} to {number(bounds[1])}" if bounds else ""
    return Cell(f"{number(row['p50_ms'])} ms", "doubtful" if flags else "timed", "; ".join(filter(None, (note, flags))))


def matrix_markdown(matrix: Matrix) -> str:
    """A table; a star marks what has a flag."""
    lines = [_line([matrix.title, *matrix.columns]), "|---|" + "---:|" * len(matrix.columns)]
    for one, cells in matrix.rows:
        lines.append(_line([one, *(cell.text + (" *" if cell.kind == "doubtful" else "") for cell in cells)]))
    return "\n".join([*lines, ""])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"


def matrix_html(matrix: Matrix) -> str:
    """``<table>`` with header cells that name rows and columns; everything escaped."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in matrix.columns)
    body = []
    for one, cells in matrix.rows:
        shown = "".join(f"<td{_class(c)}>{escape(c.text)}<small>{escape(c.note)}</small></td>" for c in cells)
        body.append(f'<tr><th scope="row">{escape(one)}</th>{shown}</tr>')
    title = f'<th scope="col">{escape(matrix.title)}</th>'
    return f"<table><thead><tr>{title}{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _class(cell: Cell) -> str:
    """An error is a long text: the page's ``wrap`` breaks it."""
    return ' class="wrap"' if cell.kind == "failed" else ""
