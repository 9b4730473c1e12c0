"""A Core ML package that writes text, evaluated where there is no Core ML: whole, on some rows, broken on purpose."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from _damaged import broken
from _language import LINES, program, student

from edgekd import artifact, errors, pipeline
from edgekd.generators import _contract, coreml
from edgekd.generators import stage as export_stage
from edgekd.outputs import read_outputs, read_rows, save_outputs
from edgekd.quantize import tokens as programs
from edgekd.recipe import Gate, Recipe, View
from edgekd.tasks import text_generation as task
from edgekd.verify import gate, tokens

pytest.importorskip("coremltools", reason="pip install 'edgekd[coreml]'")

ROWS, LENGTH = 12, 48


@pytest.fixture(autouse=True)
def no_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coreml, "runs", False)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> artifact.Inputs:
    """Of the verify step of a ``w8`` package; the float student answers as the Program does."""
    root = tmp_path_factory.mktemp("world")

    def partial(name: str) -> Path:
        made = artifact.partial_of(root / name)
        made.mkdir()
        return made

    def sealed(name: str, **facts: object) -> artifact.Artifact:
        return artifact.seal(root / name, stage=name, label=name, key="k", facts=facts, parents={}, tools={})

    rows = [{"text": line * 3} for line in LINES[:ROWS]]
    (partial("data") / "test.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    partial("teach")
    made = program(student(root / "student"), "w8", partial("quantize"))
    model = programs.load(made)
    encoded = task.encode(task.processor(made / "model"), rows, LENGTH)
    with torch.no_grad():
        logits = [model(input_ids=torch.tensor([one["input_ids"]])).logits[0].numpy() for one in encoded]
    answers = [task.take(one, row) for one, row in zip(logits, encoded, strict=True)]
    save_outputs(made / "reference.safetensors", answers)
    save_outputs(partial("distill") / "test_logits.safetensors", answers)
    out = partial("export")
    facts = coreml.export(made, out, max_length=LENGTH)
    faithful = export_stage.compared(_contract.read_numbers(made), coreml.numbers(out))
    parents = {name: sealed(name) for name in ("data", "teach")}
    parents["distill"] = sealed("distill", own_tokens=True)  # no teacher to compare with
    parents["quantize"] = sealed("quantize", logit_range=float(np.ptp(np.concatenate(logits))), layers=[])
    parents["export"] = sealed("export", scheme="w8", size_bytes=1, faithful=faithful, **facts)
    return artifact.Inputs(parents=parents, variant={"target": "coreml", "scheme": "w8"})


def verify(inputs: artifact.Inputs, out: Path, **settings: int) -> artifact.Facts:
    recipe = Recipe(task="text-generation", data={"max_length": LENGTH}, verify=settings)
    return tokens.run(View(recipe, pipeline.GENERATIVE[pipeline.VERIFY].reads), inputs, out)


def judged(inputs: artifact.Inputs, facts: artifact.Facts) -> artifact.Facts:
    settings = Gate(min_teacher_ratio=None, not_larger=False, not_slower=False)
    return gate.judge(settings, task.HEADLINE, facts, inputs["export"].facts, None)


def test_a_whole_package_passes(inputs: artifact.Inputs, tmp_path: Path) -> None:
    facts = verify(inputs, tmp_path)
    assert judged(inputs, facts)["reasons"] == []
    assert facts["samples"] == facts["of"] == ROWS and facts["rows"] == "every row"
    assert facts["metrics"]["perplexity"] == pytest.approx(facts["program_metrics"]["perplexity"], rel=1e-3)
    assert facts["written"]["tokens"] == 4 * 16 and facts["written"]["differ"] == 0
    assert "not Apple's runtime" in facts["runtime"]["runtime"]
    assert "on the saved file" in facts["runtime"]["caveats"][0]  # the one that the report shows


def test_some_rows_are_evaluated_and_compared_on_the_same(inputs: artifact.Inputs, tmp_path: Path) -> None:
    facts = verify(inputs, tmp_path, slow_samples=5)
    assert facts["rows"] == f"5 of {ROWS} rows, evenly spread"
    rows = read_rows(tmp_path / tokens.OUTPUTS)
    assert rows is not None and list(rows) == [0, 2, 4, 7, 9]
    student = read_outputs(inputs["distill"].file("test_logits.safetensors"))
    wanted = task.metrics([student[row] for row in rows], [])
    assert facts["student_metrics"]["perplexity"] == wanted["perplexity"]
    assert judged(inputs, facts)["verdict"] == "pass"


def test_a_wrong_scale_fails_the_gate(inputs: artifact.Inputs, tmp_path: Path) -> None:
    _, scale_V1 = _contract.read_numbers(inputs["quantize"].path)[coreml.TABLE]

    def double(content: bytearray) -> None:
        begin = content.index(scale_V1.tobytes())
        content[begin : begin + scale_V1.nbytes] = (2 * scale_V1).tobytes()

    bad = broken(inputs, tmp_path, double)
    facts = verify(bad, tmp_path)
    reasons = " ".join(judged(bad, facts)["reasons"])
    assert "golden outputs" in reasons and "perplexity rise" in reasons and "agreement with the Program" in reasons


def test_a_package_without_its_weights_is_said_to_be_broken(inputs: artifact.Inputs, tmp_path: Path) -> None:
    with pytest.raises(errors.StepFailed, match="cannot be opened"):
        verify(broken(inputs, tmp_path, lambda content: content.clear()), tmp_path)
