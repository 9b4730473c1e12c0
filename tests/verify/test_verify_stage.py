"""Verification on a real artefact of a tiny Program, whole and then broken on purpose: the facts must tell."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _damaged import broken
from safetensors.numpy import load_file
from safetensors.torch import save_file
from sklearn.metrics import accuracy_score
from targets import _tiny

from edgekd import artifact, errors, pipeline, registry
from edgekd.recipe import Recipe, View
from edgekd.targets import coreml
from edgekd.targets._contract import load_program
from edgekd.teach import cache
from edgekd.verify import stage

pytest.importorskip("coremltools")

ROWS = 40


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], artifact.Inputs]:
    """Scheme -> the inputs of its verify step. Teacher and student answer by the float Program, the teacher halved."""
    root = tmp_path_factory.mktemp("world")
    test = _tiny.texts(ROWS, seed=5)
    programs = {scheme: _tiny.make_program(root / scheme, scheme, test=test) for scheme in ("fp32", "w8a8")}
    student_NC = torch.from_numpy(load_file(programs["fp32"].file("reference.safetensors"))["logits"])
    predicted_N = student_NC.argmax(-1).tolist()
    labels_N = [(label + (row % 4 == 0)) % len(_tiny.LABELS) for row, label in enumerate(predicted_N)]  # 1 in 4 wrong

    def sealed(name: str, facts: artifact.Facts | None = None) -> artifact.Artifact:
        return artifact.seal(root / name, stage=name, label=name, key="k", facts=facts or {}, parents={}, tools={})

    data = artifact.partial_of(root / "data")
    lines = [json.dumps({"text": text, "label": label}) for text, label in zip(test, labels_N, strict=True)]
    artifact.write_atomic(data / "test.jsonl", "\n".join(lines) + "\n")

    teach, identity = artifact.partial_of(root / "teach"), cache.identity(teacher="tiny")
    ids = [cache.sample_id(identity, text) for text in test]
    cache.write_shard(teach / cache.FOLDER, 0, identity, ids, {"logits": student_NC / 2})
    artifact.write_json(teach / cache.SAMPLES, {"identity": identity, "splits": {"test": ids}})

    distill = artifact.partial_of(root / "distill")
    distill.mkdir()
    save_file({"logits": student_NC}, distill / "test_logits.safetensors")
    parents = {name: sealed(name) for name in ("data", "teach", "distill")}

    for scheme, program in programs.items():
        export = artifact.partial_of(root / f"export-{scheme}")
        export.mkdir()
        facts = coreml.export(program.path, export, max_length=_tiny.MAX_LENGTH)
        shutil.copy2(program.file("tokenizer.json"), export / "tokenizer.json")
        parents[f"export-{scheme}"] = sealed(f"export-{scheme}", facts)

    def inputs(scheme: str) -> artifact.Inputs:
        return artifact.Inputs(
            parents={**parents, "quantize": programs[scheme], "export": parents[f"export-{scheme}"]},
            variant={"target": "coreml", "scheme": scheme},
        )

    return inputs


def verify(inputs: artifact.Inputs, out: Path, **settings: int) -> artifact.Facts:
    recipe = Recipe(data={"max_length": _tiny.MAX_LENGTH}, verify=settings)
    return stage.run(View(recipe, pipeline.VERIFY.reads), inputs, out)


@pytest.mark.parametrize("scheme", ["fp32", "w8a8"])
def test_a_whole_artefact(world: Any, tmp_path: Path, scheme: str) -> None:
    inputs, seen = world(scheme), []
    inputs = artifact.Inputs(inputs.parents, inputs.variant, progress=lambda *told: seen.append(told))
    facts = verify(inputs, tmp_path)
    saved = load_file(tmp_path / "logits.safetensors")
    reference_NC = load_file(inputs["quantize"].file("reference.safetensors"))["logits"]
    student_NC = load_file(inputs["distill"].file("test_logits.safetensors"))["logits"]
    labels_N = [row["label"] for row in artifact_rows(inputs)]

    assert saved["rows"].tolist() == list(range(ROWS)) and saved["logits"].shape == reference_NC.shape
    assert facts["samples"] == facts["of"] == ROWS and facts["rows"] == "every row"
    assert seen[-1] == (ROWS, ROWS, "samples")
    for name, logits_NC in (
        ("metrics", saved["logits"]),
        ("program_metrics", reference_NC),
        ("student_metrics", student_NC),
        ("teacher_metrics", student_NC),
    ):
        assert facts[name]["accuracy"] == accuracy_score(labels_N, logits_NC.argmax(-1))
    same = saved["logits"].argmax(-1) == student_NC.argmax(-1)
    assert facts["agreement"]["student"] == facts["agreement"]["teacher"] == same.mean()
    assert facts["metrics"]["teacher_agreement"] == same.mean()
    assert facts["parity"]["argmax_agreement"] >= 0.95
    assert facts["parity"]["max_abs_delta"] == pytest.approx(np.abs(saved["logits"] - reference_NC).max())
    assert facts["golden"]["passed"] is True and facts["golden"]["examples"] == 8
    assert "caveats" in facts["runtime"]
    artifact.write_json(tmp_path / "facts.json", facts)  # raises if anything in it is not JSON


def test_one_flipped_bit_fails_the_golden_check(world: Any, tmp_path: Path) -> None:
    inputs = world("fp32")
    weight = state(inputs, "classifier.weight").numpy().tobytes()

    def flip(content: bytearray) -> None:
        content[content.index(weight) + 3] ^= 0x80  # the sign of one weight of the classifier

    facts = verify(broken(inputs, tmp_path, flip), tmp_path)
    assert facts["golden"]["passed"] is False
    assert facts["golden"]["max_abs_delta"] > facts["golden"]["bound"] == 1e-3
    assert facts["parity"]["max_abs_delta"] > 1e-3


def test_permuted_classes_fail_the_golden_check(world: Any, tmp_path: Path) -> None:
    inputs = world("w8a8")
    weight_CI = state(inputs, "classifier.weight_q").numpy()

    def rotate(content: bytearray) -> None:
        begin = content.index(weight_CI.tobytes())
        content[begin : begin + weight_CI.nbytes] = np.roll(weight_CI, 1, axis=0).tobytes()

    facts = verify(broken(inputs, tmp_path, rotate), tmp_path)
    assert facts["golden"]["passed"] is False
    assert facts["parity"]["argmax_agreement"] < 0.5
    assert facts["parity"]["largest_margin"] > facts["parity"]["median_margin"]  # no near-tie explains this
    assert facts["metrics"]["accuracy"] < facts["program_metrics"]["accuracy"]


def test_a_slow_runtime_takes_a_stated_subset(world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coreml, "slow", True)
    facts = verify(world("fp32"), tmp_path, slow_samples=16)
    rows = load_file(tmp_path / "logits.safetensors")["rows"].tolist()
    assert facts["samples"] == len(rows) == 16 and facts["of"] == ROWS
    assert facts["rows"] == "16 of 40 rows, evenly spread"
    examples = [artifact_rows(world("fp32"))[row] for row in rows]
    student_NC = load_file(world("fp32")["distill"].file("test_logits.safetensors"))["logits"][rows]
    right = accuracy_score([one["label"] for one in examples], student_NC.argmax(-1))
    assert facts["student_metrics"]["accuracy"] == right


def test_spread_is_even_and_ascending() -> None:
    assert stage.spread(5, None) == stage.spread(5, 5) == stage.spread(5, 9) == [0, 1, 2, 3, 4]
    assert stage.spread(10, 3) == [0, 3, 6]
    for total, limit in ((3080, 300), (7, 6), (1000, 999)):
        steps = np.diff(stage.spread(total, limit))
        assert len(steps) == limit - 1 and steps.min() >= 1 and steps.max() - steps.min() <= 1


def test_parity_by_hand() -> None:
    program_NC = np.array([[1, 3, 0], [2, 2.25, 0], [5, 1, 0], [0, 4, 1]], np.float32)
    found_NC = program_NC.copy()
    found_NC[1, 0] += 0.5  # overtakes a class that led by 0.25
    found_NC[3, 2] -= 1  # moves, but changes nothing
    assert stage.parity(registry.load("tasks", "text-classification"), found_NC, program_NC) == {
        "max_abs_delta": 1.0,
        "mean_abs_delta": 1.5 / 12,
        "argmax_agreement": 0.75,
        "identical": 0.5,
        "disagreements": 1,
        "largest_margin": 0.25,
        "median_margin": 2.5,
    }


def test_a_subset_takes_whole_groups() -> None:
    sizes = [1, 3, 1, 1, 5, 1, 2, 1, 1, 4]  # windows per text
    rows = [{"of": str(text)} for text, size in enumerate(sizes) for _ in range(size)]
    for limit in range(1, len(rows) + 1):
        taken = stage.subset(rows, lambda row: row["of"], limit)
        assert taken == sorted(set(taken)) and taken
        groups = {rows[row]["of"] for row in taken}
        assert len(taken) == sum(sizes[int(text)] for text in groups)
        assert len(taken) <= limit
    assert stage.subset(rows[1:4], lambda row: row["of"], 1) == [0, 1, 2]  # one group is the least there is
    alone = [{"of": str(row)} for row in range(40)]
    assert stage.subset(alone, lambda row: row["of"], 16) == stage.spread(40, 16)


class Stub:
    """A target whose session answers with one fixed array."""

    slow = False

    def __init__(self, answers: Callable[[int], np.ndarray]) -> None:
        self.answers, self.calls, self.closed, self.observed = answers, 0, False, {}

    def open_session(self, path: Path, *, threads: int = 1) -> Stub:
        return self

    def run(self, inputs: Any) -> np.ndarray:
        self.calls += 1
        return self.answers(self.calls)

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (lambda call: np.full((1, 5), np.nan if call == 3 else 0, np.float32), r"test row 3: .*not finite"),
        (lambda call: np.zeros((1, 4), np.float32), r"test row 1: .*shape \(1, 4\), expected \(1, 5\)"),
    ],
)
def test_logits_that_are_none(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: Any, message: str
) -> None:
    stub, load = Stub(answers), registry.load
    monkeypatch.setattr(registry, "load", lambda group, name: stub if group == "targets" else load(group, name))
    with pytest.raises(errors.StepFailed, match=message):
        verify(world("fp32"), tmp_path)
    assert stub.closed and not (tmp_path / "logits.safetensors").exists()


def artifact_rows(inputs: artifact.Inputs) -> list[dict[str, Any]]:
    return [json.loads(line) for line in inputs["data"].file("test.jsonl").read_text().splitlines()]


def state(inputs: artifact.Inputs, name: str) -> torch.Tensor:
    """A tensor of the Program by the end of its name."""
    return next(value for key, value in load_program(inputs["quantize"].path).state_dict.items() if key.endswith(name))
