"""A Hugging Face model repository: the float student, its tokenizer, a model card, and ONNX files for transformers.js.

The names are those that the clients look for: transformers (``config.json``, ``model.safetensors``),
sentence-transformers (``modules.json``), transformers.js (``onnx/model<suffix of its dtype>.onnx``). Refused: a student
that plain transformers cannot load (``distill/plain.py``).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from edgekd import registry
from edgekd.artifact import Facts, read_json
from edgekd.bundle import _provenance
from edgekd.bundle._contract import App

TARGETS = frozenset({"coreml", "executorch", "litert", "onnx", "openvino"})  # its row is in the card; files are ONNX
TASKS = frozenset({"question-answering", "sentence-similarity", "text-classification", "token-classification"})
RUNTIMES = dict.fromkeys(TARGETS, "transformers")
TOKENIZERS = ("library",)

# What transformers.js asks for by dtype. Of several 8-bit schemes the bundle's own comes first.
SUFFIXES = {"fp32": "", "fp16": "_fp16", "w4": "_q4"}
EIGHT_BITS = ("_quantized", "_int8")
DTYPES = {"": "fp32", "_fp16": "fp16", "_q4": "q4", "_quantized": "q8", "_int8": "int8"}
METRICS = {  # ours -> the Hub's types
    "accuracy": "accuracy",
    "macro_f1": "f1",
    "span_f1": "f1",
    "span_precision": "precision",
    "span_recall": "recall",
    "token_accuracy": "accuracy",
    "f1": "f1",
    "exact_match": "exact_match",
    "spearman": "spearmanr",
    "pearson": "pearsonr",
}
POOLED = "sentence-transformers"


def place(app: App) -> None:
    """A layout of its own."""
    return None


def files(app: App) -> Mapping[str, bytes | Path]:
    """The repository without its card."""
    found = _student(app)
    tokenizer = json.loads((app.student / "tokenizer_config.json").read_text(encoding="utf-8"))
    tokenizer["model_max_length"] = _max_length(app)
    found["tokenizer_config.json"] = _provenance.text(tokenizer)
    onnx = _onnx(app)
    found |= {name: app.artifacts[artefact] / "model.onnx" for name, artefact in onnx.items()}
    config = json.loads(_read(found["config.json"]))
    if app.labels:
        config["id2label"] = {str(i): name for i, name in enumerate(app.labels)}
        config["label2id"] = {name: i for i, name in enumerate(app.labels)}
    dtypes = [_dtype(name) for name in onnx]
    if dtypes and not {"fp32", "q8"} <= set(dtypes):  # what Node and what a page ask for when nobody says
        config["transformers.js_config"] = {"dtype": dtypes[0]}
    found["config.json"] = _provenance.text(config)
    return found | (_sentence_transformers(app) if app.task == "sentence-similarity" else {})


def _student(app: App) -> dict[str, bytes | Path]:
    """The files of its folder, as they are or in modules that plain transformers knows."""
    found: dict[str, bytes | Path] = {path.name: path for path in sorted(app.student.iterdir()) if path.is_file()}
    if _changes(app):
        from edgekd.distill import plain
        from edgekd.teach import transformers

        task = registry.load("tasks", app.task)
        with tempfile.TemporaryDirectory() as folder:
            plain.save(app.student, Path(folder), transformers.model_class(task.AUTO_TASK))
            found |= {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
    return found


def _changes(app: App) -> list[str]:
    from edgekd.distill import plain

    found: list[str] = plain.changes(read_json(app.student / "config.json"))
    return found


def _read(content: bytes | Path) -> bytes:
    return content if isinstance(content, bytes) else content.read_bytes()


def _max_length(app: App) -> int:
    return int(app.export["max_length"])


def _onnx(app: App) -> dict[str, str]:
    """Place in the repository -> artefact, for the ONNX files that passed, and for the bundle's own.

    None for question answering: transformers.js wants ``start_logits`` and ``end_logits``, the artefact has one output.
    """
    if app.task == "question-answering":
        return {}
    mine = (app.target, app.scheme)
    passed = [
        (one["scheme"], one["name"])
        for one in sorted(app.report()["artifacts"], key=lambda one: (one["target"], one["scheme"]) != mine)
        if one["target"] == "onnx" and (one["verdict"] == "pass" or (one["target"], one["scheme"]) == mine)
    ]
    eight, found = list(EIGHT_BITS), {}
    for scheme, name in passed:
        suffix = SUFFIXES.get(scheme)
        if suffix is None and scheme.startswith("w8") and eight:
            suffix = eight.pop(0)
        if suffix is not None:
            found[f"onnx/model{suffix}.onnx"] = name
    return dict(sorted(found.items()))


def _dtype(name: str) -> str:
    """Of a file in the repository."""
    return DTYPES[Path(name).stem.removeprefix("model")]


def _sentence_transformers(app: App) -> dict[str, bytes]:
    """Mean over the mask, then length 1: what ``tasks/sentence_similarity.py`` computes."""
    width = app.export["outputs"][0]["shape"][-1]
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds.items())
    ]
    made: dict[str, Any] = {
        "modules.json": modules,
        "sentence_bert_config.json": {"max_seq_length": _max_length(app), "do_lower_case": False},
        "config_sentence_transformers.json": {
            "prompts": {},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
        "1_Pooling/config.json": {
            "word_embedding_dimension": width,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": True,
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
    }
    return {name: _provenance.text(value) for name, value in made.items()}


# The card.


def readme(app: App) -> str:
    """The model card: metadata in YAML, then what a person needs."""
    report = app.report()
    metadata = yaml.safe_dump(_metadata(app, report), sort_keys=False, allow_unicode=True)
    passed = app.verdict["verdict"] == "pass"
    doubt = [] if passed else [f"**Not verified**: {app.target}-{app.scheme} did not pass its gate."]
    parts = [
        f"---\n{metadata}---\n\n# {app.name}",
        f"A student for {app.task}, distilled from {app.provenance['teacher']} by edgekd {app.provenance['edgekd']}: "
        f"{report['student']['parameters']:,} parameters of the teacher's {report['teacher']['parameters']:,}.",
        *doubt,
        "## Use",
        USAGE[app.task].replace("{name}", app.name),
        *_dtypes(app),
        "## Measured",
        _measured(app, report),
        "## Limits",
        "\n".join(f"- {line}" for line in _limits(app, report)),
        "## Where it comes from",
        _origin(app, report),
    ]
    return "\n\n".join(parts) + "\n"


def _dtypes(app: App) -> list[str]:
    """What transformers.js may be asked for, and what its runtime needs to be told."""
    names = [_dtype(name) for name in _onnx(app)]
    if not names:
        return []
    words = f"transformers.js takes `dtype` {', '.join(f'`{name}`' for name in names)}."
    manifests = (read_json(app.artifacts[one] / "manifest.json")["facts"] for one in _onnx(app).values())
    if any(facts.get("caveats") for facts in manifests):
        words += (
            " In Node on an x86 processor without VNNI its int8 products overflow, unless it is given "
            '`session_options: { extra: { session: { x64quantprecision: "1" } } }`.'
        )
    return [words]


def _metadata(app: App, report: Facts) -> dict[str, Any]:
    card = report["recipe"]["card"]
    results = {
        METRICS[name]: {"type": METRICS[name], "value": round(value, 4), "name": name}
        for name, value in reversed(report["student"]["metrics"].items())
        if name in METRICS
    }
    measured = list(reversed(results.values()))
    base = card["base_model"] or _hub_id(report["recipe"]["teacher"]["model"])
    first = card["datasets"][0] if card["datasets"] else None
    rows = report["recipe"]["data"]
    test = {"name": f"test split of {first or Path(rows['test'] or rows['train']).name}", "type": first or "custom"}
    similar = app.task == "sentence-similarity"
    clients = [POOLED, "feature-extraction"] if similar else []
    named = {
        "license": card["license"],
        "language": card["language"],
        "datasets": card["datasets"],
        "base_model": base,
        "pipeline_tag": app.task,
        "library_name": POOLED if similar else "transformers",
        "tags": [*clients, "edgekd", "distillation", *(["onnx", "transformers.js"] if _onnx(app) else [])],
        "metrics": [one["type"] for one in measured],
        "model-index": [
            {"name": app.name, "results": [{"task": {"type": app.task}, "dataset": test, "metrics": measured}]}
        ],
    }
    return {name: value for name, value in named.items() if value}


def _hub_id(model: str | None) -> str | None:
    """The teacher's name where it was loaded from the Hub."""
    return model if model and model.count("/") == 1 and model[0] not in "./~" and not Path(model).exists() else None


def _measured(app: App, report: Facts) -> str:
    """One row for the teacher, the student and each artefact of the run."""
    headline, onnx = report["headline"], {artefact: name for name, artefact in _onnx(app).items()}
    head = ["", "texts", headline, "agrees with the teacher", "size, MB", "p50, ms", "gate", "file"]
    tested = str(report["data"].get("rows", {}).get("test"))
    rows = [
        [
            "teacher",
            tested,
            _number(report["teacher"]["metrics"].get(headline)),
            "",
            _mb(report["teacher"]),
            "",
            "",
            "",
        ],
        [
            "float student",
            tested,
            _number(report["student"]["metrics"].get(headline)),
            _number(report["student"]["metrics"].get("teacher_agreement")),
            _mb(report["student"]),
            "",
            "",
            "model.safetensors",
        ],
    ]
    for one in report["artifacts"]:
        metrics = one["metrics"] or {}
        rows.append(
            [
                one["name"],
                str(one["samples"]["verified"]) if one["samples"] else "-",
                _number(metrics.get(headline)),
                _number(metrics.get("teacher_agreement")),
                _mb(one),
                _number((one["latency"] or {}).get("p50_ms")),
                one["verdict"],
                onnx.get(one["name"], ""),
            ]
        )
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]
    devices = sorted({one["latency"]["device"] for one in report["artifacts"] if one["latency"]})
    where = f" p50 is the median of one text on {', '.join(devices)}." if devices else ""
    return f"On texts of the test split, each artefact on its own runtime.{where}\n\n" + "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _mb(one: Facts) -> str:
    return "-" if one["size_bytes"] is None else f"{one['size_bytes'] / 1e6:.3g}"


def _limits(app: App, report: Facts) -> list[str]:
    card = report["recipe"]["card"]
    lines = [
        f"A text is cut to {_max_length(app)} tokens.",
        "Nothing is known about texts that differ from the data it was trained and tested on.",
    ]
    if app.labels and app.task == "text-classification":
        lines.append(f"It answers with one of {len(app.labels)} labels, also where none of them fits.")
    if not card["language"]:
        lines.append("The language of the data is not stated.")
    lines += [f"In model.safetensors {change}; the artefacts have it as it was trained." for change in _changes(app)]
    if _onnx(app):
        lines.append("transformers.js cuts a longer text without its last special token, so such answers may differ.")
    if app.task == "question-answering":
        lines.append("There is no ONNX file for transformers.js: it wants two outputs, the run's artefacts have one.")
    return lines


def _origin(app: App, report: Facts) -> str:
    card, provenance = report["recipe"]["card"], app.provenance
    rows = ", ".join(f"{count} {split}" for split, count in provenance["data"]["rows"].items())
    stated = f"`{card['license']}`, as stated by whoever ran it." if card["license"] else "not stated."
    data = ", ".join(card["datasets"]) or "not stated"
    tools = ", ".join(f"{name} {version}" for name, version in sorted(provenance["tools"].items()))
    return "\n".join(
        [
            f"- Licence: {stated} The licences of teacher and data apply.",
            f"- Data sets: {data}; rows: {rows}; digest `{provenance['data']['digest']}`.",
            f"- Recipe digest `{provenance['recipe']}`; tools: {tools}.",
            "- `bundle.json` has the digest of every file, `bom.cdx.json` the bill of materials; "
            "`edgekd bundle verify .` checks them.",
        ]
    )


_TRANSFORMERS = """```python
from transformers import pipeline

pipeline("{task}", ".")({ask})
```"""
_JAVASCRIPT = """
```js
import {{ env, pipeline }} from "@huggingface/transformers";

env.localModelPath = "..";  // or leave it out, and name a repository of the Hub
const answer = await pipeline("{kind}", "{{name}}");
console.log(await answer("a text"));
```"""
_PYTHON = """```python
from sentence_transformers import SentenceTransformer

SentenceTransformer(".").encode(["a text", "another"])
```"""
USAGE = {
    "text-classification": _TRANSFORMERS.format(task="text-classification", ask='"a text"')
    + "\n"
    + _JAVASCRIPT.format(kind="text-classification"),
    "token-classification": _TRANSFORMERS.format(task="token-classification", ask='"a text"')
    + "\n"
    + _JAVASCRIPT.format(kind="token-classification"),
    "question-answering": _TRANSFORMERS.format(task="question-answering", ask='question="who?", context="It was me."'),
    "sentence-similarity": _PYTHON + "\n" + _JAVASCRIPT.format(kind="feature-extraction"),
}
