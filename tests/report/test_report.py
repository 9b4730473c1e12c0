"""The report: its document against its schema and hand-made numbers, and what the page may and may not hold."""

from __future__ import annotations

import copy
import dataclasses
import html
import json
import re
from html.parser import HTMLParser
from typing import Any

import jsonschema
import pytest
from scipy import stats

from edgekd.report import build, plots, render
from edgekd.report.build import RunFacts


@pytest.fixture
def document(run: RunFacts) -> dict[str, Any]:
    return build.document(run)


def by_name(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {entry["name"]: entry for entry in document["artifacts"]}


def bare(run: RunFacts) -> RunFacts:
    """The run where nothing could be exported, bench was off and little is known of the data."""
    lost = {name: {"verdict": "failed", "checks": [], "reasons": ["not made yet"]} for name, _, _ in run.artifacts}
    return dataclasses.replace(
        run, baseline=None, bench=None, exports={}, verifications={}, verdicts=lost, failures={}, quantize={}, data={}
    )


def test_the_document_follows_its_published_schema(run: RunFacts) -> None:
    schema = build.schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    for one in (run, bare(run)):
        found = build.document(one)
        json.dumps(found, allow_nan=False)
        jsonschema.validate(found, schema)


def test_the_schema_refuses_what_it_should(document: dict[str, Any]) -> None:
    for path, value in (
        (("verdict",), "fine"),
        (("schema_version",), 2),
        (("artifacts", 0, "verdict"), "ok"),
        (("artifacts", 0, "latency", "p50_ms"), "fast"),
        (("student", "parameters"), None),
        (("surprise",), 1),
    ):
        broken = copy.deepcopy(document)
        at: Any = broken
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, build.schema())


def test_building_changes_nothing_and_is_repeatable(run: RunFacts) -> None:
    before = copy.deepcopy(run)
    first = build.document(run)
    assert run == before
    assert build.document(run) == first
    assert render.html(first) == render.html(copy.deepcopy(first))


def test_what_the_document_says(document: dict[str, Any]) -> None:
    found = by_name(document)
    assert document["verdict"] == "fail"
    assert document["summary"] == "5 of 8 artefacts pass."
    assert [reason.split()[0] for reason in document["reasons"]] == ["litert-w8a8", "executorch-w8a8", "coreml-w8a8"]
    assert found["onnx-w8a8"]["verdict"] == "pass"
    assert found["onnx-w8a8"]["path"] == "artifacts/onnx-w8a8/model.onnx"
    assert found["onnx-w8a8"]["latency"]["tokens"] == 14  # the median text, not the longest
    assert [row["tokens"] for row in found["onnx-w8a8"]["latencies"]] == [14, 60]
    assert found["onnx-w8a8"]["latency"]["relation_to_float"]["verdict"] == "faster"
    assert found["onnx-fp32"]["latency"]["relation_to_float"] is None
    assert found["executorch-w8a8"]["verdict"] == "failed"
    assert found["executorch-w8a8"]["not_measured"] == "there is no file"
    assert "signal 11" in found["executorch-w8a8"]["error"] and found["executorch-w8a8"]["metrics"] is None
    assert found["coreml-fp32"]["verdict"] == "pass" and found["coreml-fp32"]["latency"] is None
    assert found["coreml-fp32"]["not_measured"].startswith("not measured")
    assert document["teacher"]["latency"]["p50_ms"] == 8.1
    assert document["student"]["size_bytes"] == 4 * document["student"]["parameters"]


def test_a_failed_step_that_is_no_artefacts_is_a_reason_too(run: RunFacts) -> None:
    passing = {name: {"verdict": "pass", "checks": [], "reasons": []} for name, _, _ in run.artifacts}
    assert build.document(dataclasses.replace(run, verdicts=passing, failures={}))["verdict"] == "pass"
    found = build.document(dataclasses.replace(run, verdicts=passing, failures={"bench": "bench: no device."}))
    assert found["verdict"] == "fail" and found["reasons"] == ["bench: bench: no device."]


@pytest.mark.parametrize(("right", "rows"), [(0, 10), (10, 10), (912, 1000), (1, 3)])
def test_wilson_is_scipys(right: int, rows: int) -> None:
    expected = stats.binomtest(right, rows).proportion_ci(0.95, method="wilson")
    assert build.wilson(right / rows, rows) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_the_gain_and_its_interval(run: RunFacts) -> None:
    unpaired = build.document(run)["gain"]
    paired = build.document(dataclasses.replace(run, discordant=(60, 22)))["gain"]  # 60 - 22 = 38 of 1000 rows
    assert unpaired["value"] == paired["value"] == pytest.approx(0.038)
    deviation = ((0.060 + 0.022 - 0.038**2) / 1000) ** 0.5
    low, high = stats.norm.interval(0.95, 0.038, deviation)
    assert paired["ci"] == pytest.approx([low, high])
    assert "unpaired" in unpaired["method"] and unpaired["ci"][0] < low and unpaired["ci"][1] > high
    assert build.document(dataclasses.replace(run, baseline=None))["gain"] is None


def test_curves_read_both_spellings_of_a_history() -> None:
    history = [
        {"step": 5, "loss": 2.0},
        {"step": 10, "eval_accuracy": 0.5},
        {"step": 20, "loss": 1.0, "validation": {"accuracy": 0.6}},
        {"step": 20, "train_loss": 1.5},
    ]
    assert build.curves(history, "accuracy") == {"loss": [[5, 2.0], [20, 1.0]], "validation": [[10, 0.5], [20, 0.6]]}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0, "0"),
        (0.00123456, "0.00123"),
        (1.005, "1.00"),
        (12.34, "12.3"),
        (1234.5, "1234"),
        (0.96, "0.960"),
    ],
)
def test_numbers_for_people(value: float | None, text: str) -> None:
    assert build.number(value) == text


def test_terms_in_a_history_do_not_move_the_curves() -> None:
    history = [
        {"step": 5, "loss": 2.0, "hard": 0.5, "forward-kl": 1.5, "forward-kl_gradient_share": 0.9},
        {"step": 10, "eval_span_f1": 0.5, "eval_token_accuracy": 0.9, "eval_distance": 0.3},
    ]
    assert build.curves(history, "span_f1") == {"loss": [[5, 2.0]], "validation": [[10, 0.5]]}


class Page(HTMLParser):
    """What a page loads, links to and runs, and whether its tags close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.outside: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)
        self.outside += [f"{name}={value}" for name, value in attrs if name in ("src", "href", "srcset", "action")]
        self.outside += [f"{name}={value}" for name, value in attrs if name.startswith("on")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_whole_and_needs_no_network(document: dict[str, Any]) -> None:
    text = render.html(document)
    page = Page(text)
    assert page.open == []
    assert page.outside == []
    assert not re.search(r"(?:https?:)?//[a-z]|@import|url\(", text)
    assert not {"script", "link", "iframe", "img", "object"} & set(page.tags)
    assert page.tags.count("svg") >= 4 + len(document["artifacts"])
    for words in ("5 of 8 artefacts pass", "fails the gate", "did not come out", "not measured: no runtime", "+3.8"):
        assert words in page.text
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text


@pytest.mark.parametrize(("headline", "said"), [("span_f1", "span F1"), ("f1", "F1"), ("spearman", "spearman")])
def test_other_tasks_are_shown_by_their_own_metric(
    run: RunFacts, of_another_task: Any, headline: str, said: str
) -> None:
    found = build.document(of_another_task(run, headline, "p50"))
    jsonschema.validate(found, build.schema())
    assert found["gain"]["ci"] is None and "accuracy_ci" not in found["student"]["metrics"]
    page = Page(render.html(found))
    assert page.open == [] and f"{said}, teacher to student" in page.text
    assert page.text.count("token accuracy") == 1  # a column of its own, and the only accuracy there is
    assert "accuracy" not in page.text.replace("token accuracy", "")
    assert "93.3\u00a0%" in page.text and "98.0\u00a0%" in page.text
    markdown = render.markdown(found)
    assert f"| {said} |" in markdown and "accuracy" not in markdown
    assert page.tags.count("svg") >= 4  # the learning curves too


def test_a_likelihood_reads_as_perplexity(run: RunFacts, of_another_task: Any) -> None:
    found = build.document(of_another_task(run, "likelihood", "p50"))
    found["teacher"]["metrics"]["likelihood"], found["student"]["metrics"]["likelihood"] = 0.1, 0.08
    found["gain"]["value"] = 0.08 - 0.0625  # the student without a teacher: perplexity 16
    for entry in found["artifacts"]:
        if entry["metrics"]:
            entry["metrics"]["likelihood"], entry["student_metrics"]["likelihood"] = 0.0784, 0.08
    page = " ".join(html.unescape(re.sub("<[^>]+>", " ", render.html(found))).replace("\u00a0", " ").split())
    assert "80.0 % of the teacher's likelihood kept" in page
    assert "perplexity, teacher to student 10.00 → 12.50" in page and "rise over float student" in page
    assert "12.76 +2.0 %" in page and "The teacher added -21.9 % of perplexity" in page  # 12.5 / 16 - 1
    markdown = render.markdown(found).replace("\u00a0", " ")
    assert "| student | 12.50 |" in markdown and "added -21.9 % of perplexity" in markdown


def test_what_the_student_learned_from_is_told(run: RunFacts, of_another_task: Any) -> None:
    found = build.document(of_another_task(run, "span_f1", "p50"))
    html = render.html(found)
    page = Page(html)
    text = " ".join(page.text.split())
    assert "9,000 train, 18,000 augmented rows; only the teacher labels those beside train" in text
    assert "keeps 5,321 of 30,522 tokens. Of the held-out texts, 97.0 %" in text
    assert "<td>forward-kl</td><td>1</td><td>1.50</td><td>80.0\u00a0%</td>" in html
    assert "<td>hard</td><td>–</td><td>0.500</td><td>20.0\u00a0%</td>" in html
    assert "Further teachers: a second one (weight 0.5)" in text
    assert "by how they were made: delete 10,000, splice 7,993; 7 dropped" in text
    assert "| forward-kl | 1.00 | 1.50 | 80.0 % |" in render.markdown(found)
    plain = Page(render.html(build.document(run)))
    assert "learned from" not in plain.text and "Its tokenizer keeps" not in plain.text


def test_what_was_kept_is_told(run: RunFacts, document: dict[str, Any]) -> None:
    assert document["retention"] == [] and "What was kept" not in render.html(document)

    def facts(name: str, old: float, new: float) -> dict[str, Any]:
        first = {"data": "new", "rows": 50, "before": {name: 0.2}, "after": {name: new}}
        return {"retention": [first, {"data": "<old>", "rows": 1200, "before": {name: 0.9}, "after": {name: old}}]}

    made = dataclasses.replace(
        run,
        student={**run.student, **facts("accuracy", 0.88, 0.7)},
        baseline={**(run.baseline or {}), **facts("accuracy", 0.55, 0.75)},
    )
    found = build.document(made)
    jsonschema.validate(found, build.schema())
    assert [row["baseline"]["accuracy"] for row in found["retention"]] == [0.75, 0.55]
    line = ["<old>", "1,200", "90.0\xa0%", "88.0\xa0%", "-2.0", "55.0\xa0%", "-35.0"]
    assert render.retention(found)[1][1] == line
    assert "| \\<old\\> | 1,200 |" in render.markdown(found) and "&lt;old&gt;" in render.html(found)

    text = {"student": {**run.student, **facts("likelihood", 0.45, 0.25)}, "baseline": None, "headline": "likelihood"}
    text["student"]["metrics"] = {"test": {"likelihood": 0.25}}
    alone = render.retention(build.document(dataclasses.replace(made, **text)))
    assert alone[0][2] == "perplexity before"
    assert alone[1] == [
        ["new", "50", "5.00", "4.00", "-20.0\xa0%", "–", "–"],
        ["<old>", "1,200", "1.11", "2.22", "+100.0\xa0%", "–", "–"],
    ]


def test_the_phase_on_its_own_text_is_told(run: RunFacts, of_another_task: Any, document: dict[str, Any]) -> None:
    assert document["on_policy"] is None and "on what it writes" not in render.html(document)

    def facts(kl: float, likelihood: float) -> dict[str, Any]:
        return {"reverse_kl": kl, "likelihood": likelihood}

    phase = {
        "before": {"validation": facts(0.651, 0.25), "test": facts(0.645, 0.2)},
        "after": {"step": 40, "validation": facts(0.566, 0.2), "test": {}},
        "kept": "before",
        "unit": "token",
        "steps": 60,
        "seconds": 28.0,
        "rows": 9,
        "without_room": 0,
        "history": [{"step": 1}],
    }
    writes = of_another_task(run, "likelihood", "p50")
    found = build.document(dataclasses.replace(writes, student={**writes.student, "on_policy": phase}))
    jsonschema.validate(found, build.schema())
    assert "history" not in found["on_policy"]
    columns, rows = render.on_policy(found)
    assert columns[2] == "after 60 steps (not kept)"
    assert rows[0] == ["reverse KL a token, validation", "0.651", "0.566"]
    assert rows[3] == ["perplexity, test", "5.00", "–"]
    assert "reverse KL a token, validation" in render.markdown(found) and "after 60 steps" in render.html(found)


def test_how_it_was_quantized_is_told(run: RunFacts, document: dict[str, Any]) -> None:
    assert document["quantization"]["w8a8"]["kinds"] == {"w8a8": 2, "w8a8-dynamic": 1}
    page = render.html(document)
    assert "2 w8a8, 1 w8a8-dynamic" in page and "99.12" in page
    assert "1 of 2 layers are w8a8-dynamic" in page and "c (kept)" in page and "a (kept)" not in page
    assert "layers kept in another way" in page
    plain = {scheme: {**facts, "mixed": None} for scheme, facts in run.quantize.items()}
    without = render.html(build.document(dataclasses.replace(run, quantize=plain)))
    assert "2 w8a8, 1 w8a8-dynamic" in without and "layers kept in another way" not in without


def test_an_image_has_no_tokens(run: RunFacts, of_another_task: Any) -> None:
    found = build.document(of_another_task(run, "accuracy", "image"))
    text = " ".join(Page(render.html(found)).text.split())
    assert "fastest that passes, one image" in text and "1 thread, one image." in text
    assert "14 tokens" not in text and "14 tokens" not in render.markdown(found)
    _, rows = build.bench_rows(found["measurements"])
    assert {row[3] for row in rows} == {"image"}


HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(1)>&{{ 7 * 7 }}'


def test_hostile_names_stay_text(run: RunFacts) -> None:
    """Labels, titles, errors and file names come from outside; none may become markup or template."""
    nasty = dataclasses.replace(
        run,
        name=HOSTILE,
        recipe={"report": {"title": HOSTILE}},
        data={**run.data, "labels": [HOSTILE], "warnings": [HOSTILE]},
        environment={"os": HOSTILE},
        failures={"export-executorch-w8a8": HOSTILE},
        headline="accuracy",
    )
    found = build.document(nasty)
    for entry in found["artifacts"]:
        entry["checks"] = [{"name": HOSTILE, "value": HOSTILE, "limit": HOSTILE, "passed": False, "note": HOSTILE}]
    found["artifacts"][0]["name"] = HOSTILE  # a third-party target chooses its own name
    page = Page(render.html(found))
    assert not {"script", "img"} & set(page.tags)
    assert page.outside == []
    assert page.text.count("<script>alert(1)</script>") >= 10
    assert "{{ 7 * 7 }}" in page.text  # shown, not computed
    markdown = render.markdown(found)
    assert "<script>" not in markdown.replace("\\<script\\>", "")


def test_a_bare_run_still_renders(run: RunFacts) -> None:
    found = build.document(bare(run))
    page = Page(render.html(found))
    assert page.open == [] and "0 of 8 artefacts pass" in page.text
    assert "0 of 8" in render.markdown(found)
    columns, rows = render.console(found)
    assert [row[0] for row in rows[:2]] == ["teacher", "student"]
    assert len(rows) == 10 and all(len(row) == len(columns) for row in rows)


def test_what_fixed_lengths_pad_is_told(run: RunFacts) -> None:
    planned = {"1": {"lengths": [64], "share": 2.954}, "3": {"lengths": [16, 32, 64], "share": 0.409}}
    padding = {"texts": 10003, "planned": planned}
    run.exports["litert-fp32"].update(lengths=[64], padding={**padding, "share": 2.954})
    run.exports["litert-w8a8"].update(lengths=[16, 32, 64], padding={**padding, "share": 0.409})
    made = build.document(run)
    jsonschema.validate(made, build.schema())
    one = "length 64: 2.95 padded tokens for each real one; 0.41 padded tokens for each real one with 16, 32, 64"
    several = "lengths 16, 32, 64: 0.41 padded tokens for each real one; 2.95 padded tokens for each real one with one"
    page, text = render.html(made), render.markdown(made)
    assert one in page and one in text and several in page and several in text
    assert by_name(made)["onnx-fp32"]["padding"] is None and page.count("On the training text") == 2


def test_markdown_and_console_say_the_same(document: dict[str, Any]) -> None:
    columns, rows = render.console(document)
    lines = render.markdown(document).splitlines()
    table = [line for line in lines if line.startswith("| ")]
    assert table[0] == "| " + " | ".join(columns) + " |"
    assert [line.split(" | ")[0].removeprefix("| ") for line in table[2 : 2 + len(rows)]] == [row[0] for row in rows]
    assert lines[0].endswith(": fails")
    assert "faster 0.40x" in next(row for row in rows if row[0] == "onnx-w8a8")


def test_bench_rows(document: dict[str, Any]) -> None:
    columns, rows = build.bench_rows(document["measurements"])
    assert all(len(row) == len(columns) for row in rows)
    notes = {(row[0], row[3]): row[-1] for row in rows}
    assert notes["onnx-w8a8", "14"].startswith("faster (0.40 x fp32); stability score below 60")
    assert notes["coreml-fp32", "14"].startswith("not measured")
    assert ("teacher", "14") in notes


MARK = r'<circle [^>]*cx="([\d.]+)" cy="([\d.]+)"'


def _numbers(svg: str, pattern: str) -> list[tuple[float, ...]]:
    return [tuple(map(float, found)) for found in re.findall(pattern, svg)]


def test_a_scatter_places_its_points_in_order() -> None:
    points = [plots.Point(x, y, f"p{n}", 0, 0) for n, (x, y) in enumerate([(1, 90), (2, 92), (3, 91)])]
    svg = plots.scatter(points, title="t", x_label="x", y_label="y")
    marks = _numbers(svg, MARK)
    assert [x for x, _ in marks] == sorted(x for x, _ in marks)
    assert marks[1][1] < marks[2][1] < marks[0][1]  # up is more
    assert marks[1][0] - marks[0][0] == pytest.approx(marks[2][0] - marks[1][0], abs=0.2)


def test_wide_ranges_are_logarithmic() -> None:
    points = [plots.Point(x, 1, str(x), 0, 0) for x in (1, 10, 100)]
    marks = _numbers(plots.scatter(points, title="t", x_label="x", y_label="y"), MARK)
    a, b, c = (x for x, _ in marks)
    assert b - a == pytest.approx(c - b, abs=0.2)


def test_labels_do_not_cover_each_other_and_stay_inside() -> None:
    points = [plots.Point(17.8, 91.0 + 0.01 * n, f"runtime{n}-w8a8", n, n) for n in range(6)]
    svg = plots.scatter(points, title="t", x_label="x", y_label="y", least=2)
    placed = _numbers(svg, r'class="label" x="([\d.]+)" y="([\d.]+)"')
    width = plots.CHARACTER * len("runtime0-w8a8")
    assert len(placed) == 6
    for n, (x, y) in enumerate(placed):
        assert x >= plots.LEFT and x + width <= plots.WIDTH and 0 < y < plots.HEIGHT
        assert all(abs(y - other) >= 12 or abs(x - left) >= width for left, other in placed[:n])


def test_plots_of_nothing_and_of_one_value() -> None:
    assert plots.scatter([], title="t", x_label="x", y_label="y") == ""
    assert plots.lines([plots.Line([], "a", 0)], title="t", x_label="x", y_label="y") == ""
    one = plots.scatter([plots.Point(5, 91, "only", 0, 0)], title="t", x_label="x", y_label="y", least=2)
    flat = plots.lines([plots.Line([[1, 0.5], [2, 0.5]], "a", 0)], title="t", x_label="x", y_label="y")
    for svg in (one, flat):
        assert "nan" not in svg and "inf" not in svg and 'role="img"' in svg and "<desc" in svg


def test_series_differ_in_shape_as_well_as_colour() -> None:
    assert len({plots.mark(shape, 0, 5, 5).split()[0] + plots.mark(shape, 0, 5, 5)[-40:] for shape in range(4)}) == 4


def test_what_was_not_made_is_told_with_the_reason(run: RunFacts) -> None:
    made = build.document(dataclasses.replace(run, refused={"tape-w4": "tape does not accept w4: it has no bits"}))
    for page in (render.html(made), render.markdown(made)):
        assert "tape does not accept w4: it has no bits." in page
    assert "not accept" not in render.html(build.document(run))
