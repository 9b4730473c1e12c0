"""The ways to print a report: a self-contained page, Markdown for a pull request, rows for a terminal.

Pure functions of ``build.document``. The page needs no network and no script; every text in it that came from
data or from an error message is escaped (Jinja2's autoescape), because a label name may be anything.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekd.measurement import FLAGS
from edgekd.report import latency, plots
from edgekd.report.build import input_length, number

Document = Mapping[str, Any]

WORDS = {"pass": "passes", "fail": "fails the gate", "failed": "did not come out"}
NBSP = "\u00a0"  # keeps number and unit on one line
WORTH_A_WORD = 0.5  # padded tokens for each real one that more lengths would save
KEPT = "The baseline learned the labels of the new data alone: no teacher, and nothing from before replayed."
WROTE = "The student wrote, the teacher scored: the reverse KL is of what the student writes, in nats."
DASH = "–"  # not measured, not known


def html(document: Document) -> str:
    """The report as one HTML page."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        percent=percent, count=count, points=points, num=number, mb=megabytes, shown=shown, pretty=pretty
    )
    environment.filters.update(words=words, share=share, faithful=faithful, padding=padding, written=written)
    environment.globals.update(
        WORDS=WORDS, FLAGS=FLAGS, KEPT=KEPT, WROTE=WROTE, told=told, apart=apart, unit=unit, gained=gained
    )
    markup = {name: Markup(svg) for name, svg in _plots(document).items()}
    keys = {name: Markup(svg) for name, svg in _keys(document).items()}
    page = environment.get_template("template.html.j2")
    text: str = page.render(
        document=document,
        plots=markup,
        keys=keys,
        cards=cards(document),
        others=other_metrics(document),
        retention=retention(document),
        on_policy=on_policy(document),
        agreements={scheme: matrix(pairs) for scheme, pairs in document["agreement"].items() if pairs},
        timing=_timing(document, Markup),
    )
    return text


def _timing(document: Document, safe: Callable[[str], str]) -> dict[str, list[str]]:
    """Plots of distributions and cold starts, a pair per place where there are any; tables of devices by artefacts."""
    summaries = (document["measurements"] or {}).get("summaries", [])
    drawn = [
        plot
        for where, rows in latency.places(summaries).items()
        for plot in (latency.ecdf(rows, where=where), latency.cold_start(rows, where=where))
        if plot
    ]
    tables = [latency.matrix_html(one) for one in latency.matrices(summaries)]
    return {"plots": [safe(plot) for plot in drawn], "tables": [safe(table) for table in tables]}


def pretty(value: Any) -> str:
    """JSON for people."""
    return json.dumps(value, indent=2, ensure_ascii=False)


def percent(value: float | None, digits: int = 1) -> str:
    """``0.9312`` -> ``93.1 %``, with a space that does not break."""
    return DASH if value is None else f"{100 * value:.{digits}f}{NBSP}%"


def share(name: str, value: float | None) -> str:
    """A metric other than the headline: calibration error, perplexity and BLEU as they are, all others in percent."""
    digits = {"ece": 3, "perplexity": 2, "bleu": 1}.get(name)
    return percent(value) if digits is None or value is None else f"{value:.{digits}f}"


def count(value: int | None) -> str:
    """``1234567`` -> ``1,234,567``."""
    return DASH if value is None else f"{value:,}"


WRITTEN = ("bleu", "rouge_l")  # what is said of texts beside the tokens' likelihood
METRICS = {"ece": "calibration error", "macro_f1": "macro F1", "span_f1": "span F1", "f1": "F1"}
METRICS |= {"bleu": "BLEU", "rouge_l": "ROUGE-L"}
INVERTED = {"likelihood": "perplexity"}  # headlines that people read as one over them
METRICS |= INVERTED


def told(name: str, value: float | None) -> str:
    """A headline metric for people: a share in percent, a likelihood as perplexity."""
    return f"{1 / value:.2f}" if name in INVERTED and value else percent(value)


def apart(name: str, value: float, reference: float) -> str:
    """How far a headline is from another: percentage points of a share, the rise of a perplexity in percent."""
    if name not in INVERTED:
        return points(value - reference)
    return f"{points(reference / value - 1)}{NBSP}%" if value else DASH


def height(name: str, value: float) -> float:
    """Where a headline stands in a plot."""
    return 1 / value if name in INVERTED else 100 * value


def axis(name: str) -> str:
    """What a plot's axis says of a headline."""
    return f"{words(name)} (lower is better)" if name in INVERTED else f"{words(name)} in % (higher is better)"


def unit(name: str) -> str:
    """What ``apart`` counts in, as a table's head says it."""
    return "rise over" if name in INVERTED else "points to"


def words(name: str) -> str:
    """A metric's name for people: ``span_f1`` -> ``span F1``, ``exact_match`` -> ``exact match``."""
    return METRICS.get(name, name.replace("_", " "))


def other_metrics(document: Document) -> list[str]:
    """Metrics of teacher and student beside the headline, in the task's order."""
    known = [name for kind in ("teacher", "student") for name in document[kind]["metrics"]]
    skipped = {document["headline"], INVERTED.get(document["headline"]), "teacher_agreement"}
    return [name for name in dict.fromkeys(known) if name not in skipped and not name.endswith("_ci")]


def matrix(pairs: Sequence[Document]) -> dict[str, Any]:
    """Pairs as the lower triangle of a table: ``columns``, and ``rows`` of a name and as many cells (or None)."""
    names = list(dict.fromkeys(pair[side] for pair in pairs for side in ("one", "other")))
    found = {(pair["other"], pair["one"]): pair for pair in pairs}
    columns, rows = names[:-1], names[1:]
    return {"columns": columns, "rows": [(name, [found.get((name, column)) for column in columns]) for name in rows]}


def retention(document: Document) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the table of what is kept, by data set; no rows where nothing was to be kept."""
    name = document["headline"]
    columns = ["data", "rows", f"{words(name)} before", "after", "change", "after, baseline", "change"]

    def cells(row: Document, which: str) -> list[str]:
        value, before = (row[which] or {}).get(name), row["before"][name]
        return [told(name, value), DASH if value is None else apart(name, value, before)]

    rows = [
        [
            row["data"],
            count(row["rows"]),
            told(name, row["before"][name]),
            *cells(row, "after"),
            *cells(row, "baseline"),
        ]
        for row in document["retention"]
    ]
    return columns, rows


def on_policy(document: Document) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of what the phase on the student's own text changed; no rows where there was none."""
    phase, name = document["on_policy"], document["headline"]
    columns = ["on what it writes", "before", "after"]
    if not phase:
        return columns, []
    columns[2] = f"after {count(phase['steps'])} steps ({'kept' if phase['kept'] == 'after' else 'not kept'})"
    rows = []
    for split in ("validation", "test"):
        before, after = (phase[when][split] for when in ("before", "after"))
        kl = [number(one.get("reverse_kl")) for one in (before, after)]
        rows.append([f"reverse KL a {phase['unit']}, {split}", *kl])
        rows.append([f"{words(name)}, {split}", *(told(name, one.get(name)) for one in (before, after))])
    return columns, rows


def points(value: float | None) -> str:
    """A difference of two shares in percentage points, signed: ``-0.005`` -> ``-0.5``."""
    return DASH if value is None else f"{100 * value:+.1f}".replace("+0.0", "0.0").replace("-0.0", "0.0")


def megabytes(size_bytes: float | None) -> str:
    """Bytes as 10^6 bytes."""
    return DASH if size_bytes is None else f"{size_bytes / 1e6:.1f}"


def shown(value: Any) -> str:
    """A check's value or limit."""
    if value is None:
        return DASH
    if isinstance(value, bool) or not isinstance(value, float | int):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def faithful(facts: Document | None) -> str:
    """The faithfulness of an artefact in one line; empty where it was not verified."""
    if not facts:
        return ""
    numbers, moved, kernels, size = (facts[name] for name in ("numbers", "invariance", "kernels", "size"))
    told = []
    if numbers["numbers"]:
        missing = len(numbers["missing"])
        told.append(f"{missing} arrays not found" if missing else f"{numbers['numbers']:,} numbers found bit for bit")
    if kernels["wanted"]:
        count = "cannot tell how many" if kernels["integer"] is None else kernels["integer"]
        told.append(f"{count} of {kernels['wanted']} integer layers run in integers")
        if kernels["accelerated"] is False:
            told.append("not accelerated")
    if moved["largest"] is not None:
        told.append(f"padding and neighbours move outputs by {percent(moved['largest'], 3)} of their range")
    return "; ".join([*told, f"{size['bytes']:,} of at most {size['limit']:,} bytes"])


def written(entry: Document) -> str:
    """How good the texts are that an artefact writes, and the student's beside them; empty where none were judged."""
    mine, student = entry["metrics"] or {}, entry["student_metrics"] or {}
    return "; ".join(
        f"{words(name)} {share(name, mine[name])}, the student's {share(name, student[name])}"
        for name in WRITTEN
        if name in mine and name in student
    )


def padding(entry: Document) -> str:
    """What fixed lengths cost in padding, and what more of them would, in one line; empty where the length is free."""
    facts, lengths = entry["padding"], entry["lengths"]
    if not facts or not lengths:
        return ""
    told = f"{'length' if len(lengths) == 1 else 'lengths'} {', '.join(map(str, lengths))}: {_padded(facts['share'])}"
    if len(lengths) > 1:
        return f"{told}; {_padded(facts['planned']['1']['share'])} with one length"
    best = max(facts["planned"].values(), key=lambda one: len(one["lengths"]))
    if facts["share"] - best["share"] < WORTH_A_WORD:
        return told
    return f"{told}; {_padded(best['share'])} with {', '.join(map(str, best['lengths']))} (export.buckets)"


def _padded(share: float) -> str:
    return f"{share:.2f} padded tokens for each real one"


def drop(document: Document, entry: Document) -> float | None:
    """Headline metric of an artefact minus that of the float student on the same rows."""
    if not entry["metrics"]:
        return None
    name = document["headline"]
    return float(entry["metrics"][name] - entry["student_metrics"][name])


def gained(document: Document) -> str:
    """What the teacher added over the same student without it, in words."""
    name, gain = document["headline"], document["gain"]
    if name not in INVERTED:
        return f"{points(gain['value'])} points of {words(name)}"
    student = document["student"]["metrics"][name]
    return f"{apart(name, student, student - gain['value'])} of {words(name)}"


def cards(document: Document) -> list[dict[str, str]]:
    """The few numbers on top: ``{"label", "value", "note"}``."""
    name = document["headline"]
    teacher, student = document["teacher"], document["student"]
    goal = teacher["metrics"].get(name)  # an endpoint has none
    kept = student["metrics"][name] / goal if goal else None
    likelihood = f" {name}" if name in INVERTED else ""
    found = [
        {
            "label": f"{words(name)}, teacher to student",
            "value": f"{told(name, goal)} → {told(name, student['metrics'][name])}",
            "note": f"{percent(kept)} of the teacher's{likelihood} kept" if kept is not None else "",
        }
    ]
    gain = document["gain"]
    if gain:
        interval = f"95 % interval {points(gain['ci'][0])} to {points(gain['ci'][1])}" if gain["ci"] else ""
        found.append({"label": "what the teacher added", "value": gained(document), "note": interval})
    good = [entry for entry in document["artifacts"] if entry["verdict"] == "pass"]
    if good and teacher["size_bytes"]:
        small = min(good, key=lambda entry: entry["size_bytes"])
        times = teacher["size_bytes"] / small["size_bytes"]
        found.append(
            {
                "label": "smallest that passes",
                "value": f"{megabytes(small['size_bytes'])} MB",
                "note": f"{small['name']}, {times:.1f} times smaller than the teacher",
            }
        )
    timed = [entry for entry in good if entry["latency"]]
    if timed:
        fast = min(timed, key=lambda entry: entry["latency"]["p50_ms"])
        row, versus = fast["latency"], teacher["latency"]
        times = f", {versus['p50_ms'] / row['p50_ms']:.1f} times faster than the teacher" if versus else ""
        found.append(
            {
                "label": f"fastest that passes, {input_length(row)}",
                "value": f"{number(row['p50_ms'])} ms",
                "note": fast["name"] + times,
            }
        )
    return found


def _groups(document: Document) -> tuple[dict[str, int], dict[str, int]]:
    """Colour by target, shape by scheme."""
    targets = list(dict.fromkeys(entry["target"] for entry in document["artifacts"]))
    schemes = list(dict.fromkeys(entry["scheme"] for entry in document["artifacts"]))
    return {name: n for n, name in enumerate(targets)}, {name: n for n, name in enumerate(schemes)}


def _keys(document: Document) -> dict[str, str]:
    colours, shapes = _groups(document)
    return {
        entry["name"]: plots.key(shapes[entry["scheme"]], colours[entry["target"]]) for entry in document["artifacts"]
    }


def _plots(document: Document) -> dict[str, str]:
    name, label = document["headline"], words(document["headline"])
    colours, shapes = _groups(document)
    verified = [entry for entry in document["artifacts"] if entry["metrics"]]

    def point(entry: Document, x: float, unit: str) -> plots.Point:
        low, high = entry["metrics"].get("accuracy_ci", (None, None)) if name == "accuracy" else (None, None)
        return plots.Point(
            x=x,
            y=height(name, entry["metrics"][name]),
            name=entry["name"],
            group=colours[entry["target"]],
            shape=shapes[entry["scheme"]],
            low=None if low is None else 100 * low,
            high=None if high is None else 100 * high,
            detail=f"{told(name, entry['metrics'][name])} at {number(x)} {unit}",
        )

    timed = [point(entry, entry["latency"]["p50_ms"], "ms") for entry in verified if entry["latency"]]
    sized = [point(entry, entry["size_bytes"] / 1e6, "MB") for entry in verified]
    curves = document["curves"]
    kinds = [(kind, n) for n, kind in enumerate(("student", "baseline")) if kind in curves]
    return {
        "latency": plots.scatter(
            timed,
            title=f"{label} against latency",
            x_label="median latency in ms (lower is better)",
            y_label=axis(name),
            least=2,
        ),
        "size": plots.scatter(
            sized,
            title=f"{label} against size",
            x_label="file size in MB (lower is better)",
            y_label=axis(name),
            least=2,
        ),
        "validation": plots.lines(
            [plots.Line([[s, height(name, v)] for s, v in curves[kind]["validation"]], kind, n) for kind, n in kinds],
            title=f"validation {label} while training",
            x_label="step",
            y_label=f"validation {axis(name)}",
        ),
        "loss": plots.lines(
            [plots.Line(curves[kind]["loss"], kind, n) for kind, n in kinds],
            title="training loss",
            x_label="step",
            y_label="training loss (each its own)",
        ),
        "mixed": plots.lines(
            [
                plots.Line([[row["upgraded"], 100 * row["drop"]] for row in facts["mixed"]["trace"]], scheme, n)
                for n, (scheme, facts) in enumerate(sorted(document["quantization"].items()))
                if facts.get("mixed")
            ],
            title="answers lost against layers kept in another way",
            x_label="layers kept in another way",
            y_label="validation answers that differ in %",
        ),
    }


def _table(document: Document) -> tuple[list[str], list[list[str]]]:
    name = document["headline"]
    columns = ["", "verdict", words(name), "to teacher", "agrees", "MB", "p50 ms", "p90 ms", "to float", "peak MB"]
    goal = document["teacher"]["metrics"].get(name)
    models = [{**document[kind], "name": kind} for kind in ("teacher", "student", "baseline") if document[kind]]
    rows = []
    for entry in [*models, *document["artifacts"]]:
        metrics, timed = entry["metrics"] or {}, entry.get("latency") or {}
        relation = timed.get("relation_to_float")
        subset = entry.get("samples") and entry["samples"]["verified"] != entry["samples"]["of"]
        goal_here = entry["teacher_metrics"].get(name) if subset else goal  # a subset is compared on its own rows
        judged = name in metrics and goal_here is not None and entry["name"] != "teacher"
        rows.append(
            [
                entry["name"],
                WORDS[entry["verdict"]] if "verdict" in entry else "",
                _with_margin(metrics, name),
                apart(name, metrics[name], goal_here) if judged else "",
                percent(metrics.get("teacher_agreement")) if "teacher_agreement" in metrics else "",
                megabytes(entry["size_bytes"]),
                number(timed.get("p50_ms")).replace("-", DASH),
                number(timed.get("p90_ms")).replace("-", DASH),
                f"{relation['verdict']} {relation['ratio']:.2f}x" if relation else "",
                number(timed.get("peak_mb")).replace("-", DASH),
            ]
        )
    return columns, rows


def _with_margin(metrics: Mapping[str, Any], name: str) -> str:
    if name not in metrics:
        return DASH
    bounds = metrics.get(f"{name}_ci")
    return told(name, metrics[name]) + (f" ±{(bounds[1] - bounds[0]) * 50:.1f}" if bounds else "")


def console(document: Document) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the table that a command prints."""
    return _table(document)


def markdown(document: Document) -> str:
    """The report for a pull request: verdict, reasons, one table, teacher and student."""
    name = document["headline"]
    columns, rows = _table(document)
    lines = [
        f"## {_md(document['title'])}: {'passes' if document['verdict'] == 'pass' else 'fails'}",
        "",
        document["summary"],
        "",
        *(f"- {_md(reason)}" for reason in document["reasons"]),
        *([""] if document["reasons"] else []),
        *_md_table(columns, rows),
        "",
        *_md_table(
            ["model", words(name), "parameters", "MB"],
            [
                [kind, told(name, one["metrics"].get(name)), count(one["parameters"]), megabytes(one["size_bytes"])]
                for kind in ("teacher", "student", "baseline")
                if (one := document[kind])
            ],
        ),
        "",
    ]
    lines += [f"{_md(name)} was not made: {_md(why)}." for name, why in document["refused"].items()]
    for entry in document["artifacts"]:
        lines += [f"{_md(entry['name'])}: {_md(caveat)}." for caveat in (entry["runtime"] or {}).get("caveats", [])[:1]]
        lines += [f"{_md(entry['name'])}: {faithful(entry['faithful'])}."] if entry["faithful"] else []
        lines += [f"{_md(entry['name'])}: {written(entry)}."] if written(entry) else []
        lines += [f"{_md(entry['name'])}: {padding(entry)}."] if padding(entry) else []
    lines += [""] if lines[-1] else []
    terms = document["student"]["terms"]
    if terms:
        rows = [
            [one["name"], number(one["weight"]), number(one["value"]), percent(one["gradient_share"])] for one in terms
        ]
        lines += [*_md_table(["learned from", "weight", "last value", "share of the gradient"], rows), ""]
    for (columns, rows), note in ((retention(document), KEPT), (on_policy(document), WROTE)):
        lines += [*_md_table(columns, rows), "", note, ""] if rows else []
    gain = document["gain"]
    if gain:
        interval = f" (95 % interval {points(gain['ci'][0])} to {points(gain['ci'][1])})" if gain["ci"] else ""
        lines += [f"The teacher added {gained(document)}{interval}.", ""]
    timed = next((entry["latency"] for entry in document["artifacts"] if entry["latency"]), None)
    if timed:
        threads = f"{timed['threads']} thread{'s' if timed['threads'] != 1 else ''}"
        lines += [f"Latency: median on {_md(timed['device'])}, {threads}, {input_length(timed)}.", ""]
    for one in latency.matrices((document["measurements"] or {}).get("summaries", [])):
        lines += [latency.matrix_markdown(one)]
    return "\n".join([*lines, f"edgekd {document['edgekd']}, {document['created']}", ""])


def _md(text: str) -> str:
    """Text that Markdown shows as it is."""
    for character in "\\`*_[]<>|#":
        text = text.replace(character, "\\" + character)
    return " ".join(text.split())


def _md_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *([_md(cell) for cell in row] for row in rows)]
    return ["| " + " | ".join(cells) + " |" for cells in lines]
