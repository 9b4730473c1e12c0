"""Plots of distributions and cold starts, and the matrix of devices: what they show, and that they can be read."""

from __future__ import annotations

import copy
import re
import xml.etree.ElementTree as ElementTree
from typing import Any

import numpy as np
import pytest

from edgekd.bench import statistics
from edgekd.report import build, latency, plots, render
from edgekd.report.build import RunFacts

CHANCE = np.random.default_rng(1)
SVG = ElementTree.Element


def row(target: str = "onnx", scheme: str = "w8a8", ms: float = 1.0, **change: Any) -> dict[str, Any]:
    samples = CHANCE.lognormal(np.log(ms), 0.05, 300)
    return {
        "target": target,
        "scheme": scheme,
        "device": "local",
        "threads": 1,
        "tokens": 14,
        "length": "p50",
        "p50_ms": ms,
        "p50_ci_ms": [0.98 * ms, 1.02 * ms],
        "load_ms": 20.0,
        "first_ms": 3.0,
        "curve": statistics.curve(samples.tolist()),
        "golden": {"agreement": 1.0},
        "flags": [],
        "error": None,
        **change,
    }


def parsed(svg: str) -> SVG:
    return ElementTree.fromstring(svg)


def ticks(svg: SVG) -> list[str]:
    return [one.text or "" for one in svg.iter("text") if one.get("class") == "tick"]


def test_a_curve_is_the_distribution() -> None:
    samples = CHANCE.lognormal(0, 0.3, 1000)
    curve = statistics.curve(samples.tolist())
    values, shares = np.array(curve).T
    assert (
        (values == np.sort(values)).all()
        and shares[0] == 0
        and shares[-1] == 1
        and {0.5, 0.9, 0.95, 0.99} <= set(shares)
    )
    np.testing.assert_allclose(values, np.quantile(samples, shares))
    for share in (0.5, 0.9, 0.33):
        assert latency._at(curve, share) == pytest.approx(np.quantile(samples, share), rel=0.02)


def test_the_distribution_has_a_curve_for_every_artefact() -> None:
    rows = [row("onnx", ms=1.0), row("litert", ms=1.6), row("executorch", "fp32", ms=2.5), row("student", "fp32", ms=4)]
    text = latency.ecdf(rows, where="local, 1 thread")
    svg = parsed(text)
    lines = [one for one in svg.iter("path") if (one.get("class") or "").startswith("line ")]
    lines, key = (
        [one for one in lines if "h32" not in (one.get("d") or "")],
        [one for one in lines if "h32" in one.attrib["d"]],
    )
    assert [(one.get("class"), one.get("stroke-dasharray")) for one in key] == [
        (one.get("class"), one.get("stroke-dasharray")) for one in lines
    ]
    assert len(lines) == 4 and len({one.get("class") for one in lines}) == 4
    assert len({one.get("stroke-dasharray") for one in lines}) == 4  # not by colour alone
    labels = [one for one in svg.iter("text") if one.get("class") == "label"]
    assert {one.text for one in labels} == {"onnx-w8a8", "litert-w8a8", "executorch-fp32", "student"}
    for line in lines:
        points = [tuple(map(float, pair.split())) for pair in (line.get("d") or "")[1:].split("L")]
        assert points == sorted(points, key=lambda p: (p[0], -p[1]))  # rises to the right
        assert all(plots.LEFT <= x <= plots.WIDTH for x, _ in points)


def test_it_tells_a_screen_reader() -> None:
    svg = parsed(latency.ecdf([row()], where="local"))
    identities = (svg.get("aria-labelledby") or "").split()
    title, described = (next(one for one in svg.iter() if one.get("id") == identity) for identity in identities)
    assert svg.get("role") == "img" and title.text == "distribution of latency, local"
    assert re.fullmatch(
        r"onnx-w8a8: 50 % within [\d.]+ ms, 90 % within [\d.]+ ms, 99 % within [\d.]+ ms", described.text or ""
    )


def test_a_wide_spread_is_logarithmic() -> None:
    near, far = (latency.ecdf([row(ms=1.0), row("litert", ms=ms)], where="x") for ms in (2.0, 50.0))
    assert "logarithmic" not in near and "ms, logarithmic" in far
    assert {"1", "10", "50"} <= set(ticks(parsed(far)))


def test_nothing_to_draw_is_nothing() -> None:
    assert latency.ecdf([row(curve=None)], where="x") == "" == latency.cold_start([row(load_ms=None)], where="x")
    assert latency.ecdf([], where="x") == "" == latency.cold_start([], where="x")
    assert latency.ecdf([row(curve=[[1.0, 0.0], [1.0, 1.0]])], where="x")  # all samples equal


def test_cold_start_is_stacked() -> None:
    rows = [row(ms=2.0), row("litert", ms=4.0, load_ms=8.0, first_ms=8.0), row("coreml", load_ms=None)]
    rows.append(row("teacher", "fp32", load_ms=3000.0))  # would make the others a dot
    svg = parsed(latency.cold_start(rows, where="local"))
    bars = [one for one in svg.iter("rect") if one.get("height") == str(latency.BAR)]
    assert len(bars) == 6  # the third has no load time, the teacher does not ship
    widths = [float(one.get("width") or 0) for one in bars]
    assert widths[0] / widths[2] == pytest.approx(10, rel=0.02) and widths[3] == pytest.approx(widths[4], rel=0.02)
    for start in (0, 3):
        for left, right in ((start, start + 1), (start + 1, start + 2)):
            edge = float(bars[left].get("x") or 0) + widths[left]
            assert float(bars[right].get("x") or 0) == pytest.approx(edge, abs=0.11)
    assert "teacher" in latency.cold_start(rows[-1:], where="local")
    texts = [one.text for one in svg.iter("text")]
    assert "onnx-w8a8: 20.0 + 3.00 + 2.00 ms" in texts and {"load", "first inference", "steady (median)"} <= set(texts)
    assert "load 20.0, first inference 3.00, steady 2.00 ms" in "".join(svg.itertext())


def test_places_leave_out_what_has_no_latency() -> None:
    rows = [row(), row("litert"), row(tokens=60, length="max"), row(error="crashed", p50_ms=None), row(threads=2)]
    rows += [row(device="pixel", emulated=True), row(device="pixel", flags=["emulated"])]
    found = latency.places(rows)
    assert {where: len(some) for where, some in found.items()} == {
        "local, 1 thread, 14 tokens": 2,
        "local, 1 thread, 60 tokens": 1,
        "local, 2 threads, 14 tokens": 1,
    }


def matrix_rows() -> list[dict[str, Any]]:
    return [
        row(),
        row("litert", flags=["unstable"]),
        row(device="phone", ms=9.0),
        row("litert", device="phone", error="killed by <b> | signal 11", p50_ms=None),
        row(device="emulated-pixel", ms=99.0, flags=["emulated"]),
        row("litert", device="emulated-pixel", emulated=True, golden={}),
        row("coreml", error="not measured: no runtime 'coreml' here", p50_ms=None),
    ]


def test_the_matrix() -> None:
    [matrix] = latency.matrices(matrix_rows())
    assert matrix.title == "1 thread, 14 tokens" and matrix.columns == ["local", "phone", "emulated-pixel"]
    cells = {name: [(cell.kind, cell.text) for cell in some] for name, some in matrix.rows}
    assert cells["onnx-w8a8"] == [("timed", "1.00 ms"), ("timed", "9.00 ms"), ("emulated", latency.EMULATED)]
    assert cells["litert-w8a8"][0][0] == "doubtful" and cells["litert-w8a8"][1] == ("failed", "failed")
    assert cells["coreml-w8a8"] == [("failed", "–"), ("none", "–"), ("none", "–")]
    assert latency.matrices([row(), row("litert")]) == []  # one device needs no matrix
    assert len(latency.matrices([row(), row(device="b"), row(threads=2), row(threads=2, device="b")])) == 2


def test_an_emulated_time_is_nowhere() -> None:
    [matrix] = latency.matrices(matrix_rows())
    for text in (latency.matrix_markdown(matrix), latency.matrix_html(matrix)):
        assert text.count("numerics only, not latency") == 2 and "99" not in text
    assert "golden answers: 100 % the same" in latency.matrix_html(matrix)


def test_tables_are_well_formed_and_escaped() -> None:
    [matrix] = latency.matrices(matrix_rows())
    table = parsed(latency.matrix_html(matrix))
    assert len(table.findall("thead/tr/th")) == 4
    assert [len(tr) for tr in table.findall("tbody/tr")] == [4, 4, 4]
    assert "killed by <b> | signal 11" in "".join(table.itertext())
    lines = latency.matrix_markdown(matrix).splitlines()
    assert {line.count("|") for line in lines} == {5} and "1.00 ms *" in lines[3]


def test_names_are_escaped() -> None:
    for svg in (latency.ecdf([row("<a&b>")], where='"x"'), latency.cold_start([row("<a&b>")], where='"x"')):
        assert "<a&b>-w8a8" in "".join(parsed(svg).itertext())


def test_the_report_shows_them(run: RunFacts) -> None:
    document = build.document(run)
    before = render.html(document)
    assert "Distributions and cold starts" in before and "cold start, local, 1 thread, 14 tokens" in before
    assert "distribution of latency" not in before  # bench facts of old runs have no curves
    richer = copy.deepcopy(document)
    summaries = richer["measurements"]["summaries"]
    for one in summaries:
        if one["p50_ms"]:
            one["curve"] = [[one["p50_ms"] * 0.9, 0.0], [one["p50_ms"], 0.5], [one["p50_ms"] * 1.5, 1.0]]
    summaries += [{**one, "device": "emulated-pixel", "flags": ["emulated"]} for one in summaries]
    page = render.html(richer)
    assert "distribution of latency, local, 1 thread, 60 tokens" in page and latency.EMULATED in page
    assert "distribution of latency, emulated-pixel" not in page
    assert latency.EMULATED in render.markdown(richer) and "emulated" not in render.markdown(document)
    none = {**document, "measurements": None}
    assert "Distributions and cold starts" not in render.html(none) and render.markdown(none)
