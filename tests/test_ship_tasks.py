"""Every task goes the whole way from YAML to verified files: rows, knowledge, quantization, a runtime, its own metric.

Tiny teachers with an untrained head: a student can learn those answers as well as any others. The default suite ships
to ONNX; all targets are in ``make test-all``.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _material import FILLER, ask_bundle, tiny_rows

from edgekd import outcome, pipeline, recipe, registry
from edgekd.bundle import stage as bundle
from edgekd.bundle._contract import App
from edgekd.data.stage import read_split
from edgekd.errors import BadInput
from edgekd.outputs import read_outputs

RECIPE = """
name: {task}
task: {task}
teacher: {{model: {folder}/teacher}}
data: {{train: {folder}/train.jsonl, test: {folder}/test.jsonl, max_length: 24}}
distill:
  student: {{layers: 1}}
  losses: [{losses}]
  epochs: 2
  batch_size: 16
  learning_rate: 2.0e-3
quantize: {{steps: 4, evaluate_every: 2, batch_size: 8, calibration_samples: 32}}
export: {{targets: {targets}, jobs: 1}}
verify: {{slow_samples: 24}}
"""
LOSSES = {
    "token-classification": "{loss: forward-kl}, {loss: hidden-mse, pool: none}",
    "question-answering": "{loss: forward-kl}, {loss: minilm, heads: 4}",
    "sentence-similarity": "{loss: contrastive, pool: output}, {loss: hidden-cosine, pool: mean}",
    "image-classification": "{loss: forward-kl}, {loss: attention-mse}",
}


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def from_tiny(tiny, folder: Path, kind: str, **options: Any) -> None:  # type: ignore[no-untyped-def]
    """The tiny teacher's body under another, untrained head, with its tokenizer."""
    import transformers

    torch.manual_seed(0)
    source = tiny.folder / "teacher"
    model = getattr(transformers, kind).from_pretrained(source, ignore_mismatched_sizes=True, **options)
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(source).save_pretrained(folder)


def tokens(tiny, folder: Path) -> None:  # type: ignore[no-untyped-def]
    names = ["O", "B-thing", "I-thing"]
    from_tiny(
        tiny,
        folder / "teacher",
        "AutoModelForTokenClassification",
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
    )
    for split, count, seed in (("train", 64, 1), ("test", 32, 2)):
        texts = [text.split() for text, _ in tiny_rows(count, seed)]
        rows = [{"tokens": words, "tags": ["O" if word in FILLER else "B-thing" for word in words]} for words in texts]
        write(folder / f"{split}.jsonl", rows)


def questions(tiny, folder: Path) -> None:  # type: ignore[no-untyped-def]
    from_tiny(tiny, folder / "teacher", "AutoModelForQuestionAnswering", num_labels=2)
    for split, count, seed in (("train", 48, 1), ("test", 20, 2)):
        rows = []
        for number, (text, label) in enumerate(tiny_rows(count, seed)):
            context = f"{text} and {' '.join(text.split() * 3)}"
            answer = text.split()[0]
            answers = {"text": [answer], "answer_start": [context.index(answer)]}
            rows.append(
                {"id": f"{split}{number}", "question": f"which {label}", "context": context, "answers": answers}
            )
        write(folder / f"{split}.jsonl", rows)


def pairs(tiny, folder: Path) -> None:  # type: ignore[no-untyped-def]
    from_tiny(tiny, folder / "teacher", "AutoModel")
    for split, count, seed in (("train", 60, 1), ("test", 40, 2)):
        texts = tiny_rows(count, seed)
        made = zip(texts[::2], texts[1::2], strict=True)
        rows = [
            {"sentence1": a, "sentence2": b, "score": float(len({x, y}) + i % 3)}
            for i, ((a, x), (b, y)) in enumerate(made)
        ]
        write(folder / f"{split}.jsonl", rows)


def images(tiny, folder: Path) -> None:  # type: ignore[no-untyped-def]
    from PIL import Image
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    names = {0: "dark", 1: "light"}
    config = ViTConfig(**sizes, image_size=12, patch_size=4, id2label=names, label2id={v: k for k, v in names.items()})
    ViTForImageClassification(config).save_pretrained(folder / "teacher")
    ViTImageProcessor(size={"height": 12, "width": 12}).save_pretrained(folder / "teacher")
    random = np.random.default_rng(0)
    for split, count in (("train", 48), ("test", 24)):
        rows = []
        for number in range(count):
            pixels = random.integers(0, 128, (12, 12, 3)) + 127 * (number % 2)
            stream = io.BytesIO()
            Image.fromarray(pixels.astype(np.uint8)).save(stream, "PNG")
            name = f"{split}{number}.png"
            (folder / name).write_bytes(stream.getvalue())
            rows.append({"image": name, "label": names[number % 2]})
        write(folder / f"{split}.jsonl", rows)


MAKERS: dict[str, Callable[..., None]] = {
    "token-classification": tokens,
    "question-answering": questions,
    "sentence-similarity": pairs,
    "image-classification": images,
}


def ship(task: str, tiny, folder: Path, targets: str) -> pipeline.Result:  # type: ignore[no-untyped-def]
    MAKERS[task](tiny, folder)
    text = RECIPE.format(task=task, folder=folder, losses=LOSSES[task], targets=targets)
    result = pipeline.run(recipe.parse(text), folder / "run")
    assert not result.failures, {name: error.line() for name, error in result.failures.items()}
    headline = registry.load("tasks", task).HEADLINE
    teacher = result.facts("teach") or {}
    assert headline in teacher["metrics"]["test"]
    checked = [step for step in result.steps if step.startswith("verify-")]
    assert len(checked) == 2 * len(result.recipe.export.targets)
    for step in checked:
        facts = result.facts(step) or {}
        assert facts["golden"]["passed"], step
        assert facts["agreement"]["program"] >= 0.9, step
        assert abs(facts["metrics"][headline] - facts["program_metrics"][headline]) < 0.1, step
    document = outcome.report(result)
    assert document["artifacts"][0]["metrics"][headline] == (result.facts(checked[0]) or {})["metrics"][headline]
    return result


SLOW = {
    "sentence-similarity",
    "question-answering",
    "image-classification",
}  # the way is text classification's; its own parts are tested where they are


@pytest.mark.parametrize(
    "task", [pytest.param(task, marks=pytest.mark.slow if task in SLOW else ()) for task in sorted(MAKERS)]
)
def test_a_task_ships_and_its_app_answers_as_the_run_did(task: str, tiny, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    result = ship(task, tiny, tmp_path, "[onnx]")
    app = outcome.app(result, "tiny", "onnx-w8a8")
    if task == "image-classification":
        with pytest.raises(BadInput, match="no library for the task image-classification"):
            bundle.make(app, "linux", tmp_path / "app", allow_unverified=True)
        return
    bundle.make(app, "linux", tmp_path / "app", allow_unverified=True)
    [report] = ask_bundle(tmp_path / "app")
    assert report["passed"], report["wrong"]
    ANSWERS[task](result, app, lambda *texts: ask_bundle(tmp_path / "app", *texts))


def wanted(result: pipeline.Result) -> list[tuple[str, Any]]:
    """What the run's own artefact answered to the first rows of the test split, as an app shows it."""
    task = registry.load("tasks", result.recipe.task)
    examples = read_split(result.steps["data"].path, "test")[:12]
    outputs = read_outputs(result.steps["verify-onnx-w8a8"].file("logits.safetensors"))[:12]
    labels = (result.facts("data") or {})["labels"]
    pairs = zip(outputs, examples, strict=True)
    return [(one["text"], task.answer(output, one, labels)) for output, one in pairs]


def tags_are_the_runs(result: pipeline.Result, app: App, ask: Callable[..., list[Any]]) -> None:
    expected = wanted(result)
    for answer, (_, spans) in zip(ask(*[text for text, _ in expected]), expected, strict=True):
        assert [one[:4] for one in answer] == [[w["label"], w["start"], w["end"], w["text"]] for w in spans]
        np.testing.assert_allclose([one[4] for one in answer], [w["score"] for w in spans], atol=1e-5)


def embeddings_are_the_runs(result: pipeline.Result, app: App, ask: Callable[..., list[Any]]) -> None:
    expected = wanted(result)
    for answer, (_, whole) in zip(ask(*[text for text, _ in expected]), expected, strict=True):
        np.testing.assert_allclose(answer, whole["embedding"], atol=1e-5)


def answers_are_the_runs(result: pipeline.Result, app: App, ask: Callable[..., list[Any]]) -> None:
    """Judged by the task's own code over the same file: contexts of one window, of many, of none, and odd questions."""
    from edgekd.targets import onnx
    from edgekd.tasks import question_answering as task

    examples = [json.loads(line) for line in Path(str(result.recipe.data.test)).read_text().splitlines()][:6]
    contexts = [one["context"] for one in examples]
    asked = [(one["question"], one["context"]) for one in examples]
    asked += [
        ("which one", " ".join(contexts)),
        ("which " * 30, ", ".join(contexts[:3])),
        ("Na\u00efve\u2003caf\u00e9?", "x" * 200 + " " + contexts[0] + "\n\U0001f600 \u4e2d\u6587. " + contexts[1]),
    ]
    session, processor = onnx.open_session(app.artifact), task.processor(app.artifact)
    found = ask(*[f"{question}\n{context}" for question, context in asked])
    windows = 0
    for (question, context), (text, start, end, score) in zip(asked, found, strict=True):
        whole = task.example({"question": question, "context": context}, [])
        rows = task.expand([whole], processor, app.export["max_length"])
        windows = max(windows, len(rows))
        outputs = []
        for encoded in task.encode(processor, rows, app.export["max_length"]):
            fed = {name: np.array([encoded[name]], np.int64) for name in task.INPUTS}
            outputs.append(task.take(session.run(fed)[0], encoded))
        assert text == task._answer(list(zip(outputs, rows, strict=True)), False)
        assert context[start:end] == text and 0 < score <= 1
    assert windows > 5
    [[text, start, end, score]] = ask("which one\n")
    assert (text, start, end) == ("", 0, 0) and 0 < score <= 1
    session.close()


ANSWERS = {
    "token-classification": tags_are_the_runs,
    "question-answering": answers_are_the_runs,
    "sentence-similarity": embeddings_are_the_runs,
}


@pytest.mark.slow
@pytest.mark.parametrize("task", sorted(MAKERS))
def test_a_task_ships_to_every_target(task: str, tiny, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    ship(task, tiny, tmp_path, "[onnx, litert, coreml, executorch]")
