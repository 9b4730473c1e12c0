"""Verification of every kind of task: the runtime is a function whose numbers are known, all files are real."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from edgekd import artifact, outputs, pipeline, registry
from edgekd.recipe import Recipe, View
from edgekd.teach import cache
from edgekd.verify import stage

MAX_LENGTH = 24
WORDS = [f"w{number}" for number in range(60)]
CHANCE = np.random.default_rng(3)
TABLE_VH = CHANCE.normal(size=(len(WORDS) + 4, 6)).astype(np.float32)
TAGS = ["O", "B-x", "I-x"]
Inputs = Mapping[str, np.ndarray]


def sentence(count: int) -> str:
    return " ".join(CHANCE.choice(WORDS, count))


def picture() -> str:
    content = io.BytesIO()
    Image.fromarray(CHANCE.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()


@dataclass(frozen=True)
class Kind:
    """A task, its table rows, and a model of it as a function of the inputs of one row: [1, C] or [1, S, C]."""

    task: str
    table: Callable[[], dict[str, Any]]
    model: Callable[[Inputs], np.ndarray]
    shape: list[Any]
    labels: tuple[str, ...] = ()
    count: int = 10


def tagger(inputs: Inputs) -> np.ndarray:
    return TABLE_VH[inputs["input_ids"]][..., :3]


def reader(inputs: Inputs) -> np.ndarray:
    return (TABLE_VH[inputs["input_ids"]] * (1 + inputs["token_type_ids"][..., None]))[..., :2]


def embedder(inputs: Inputs) -> np.ndarray:
    mean_1H = TABLE_VH[inputs["input_ids"]].mean(1)
    return mean_1H / np.linalg.norm(mean_1H, axis=-1, keepdims=True)


def viewer(inputs: Inputs) -> np.ndarray:
    assert inputs["pixel_values"].dtype == np.float32
    return np.tanh(inputs["pixel_values"].sum((2, 3)))


def tagged() -> dict[str, Any]:
    tokens = sentence(int(CHANCE.integers(1, 9))).split()
    return {"tokens": tokens, "tags": [TAGS[int(CHANCE.integers(2))] for _ in tokens]}


def asked() -> dict[str, Any]:
    context = sentence(int(CHANCE.integers(4, 60)))  # up to several windows
    start = context.index(" ") + 1
    answer = context[start : context.index(" ", start)]
    return {"question": sentence(3), "context": context, "answers": {"text": [answer], "answer_start": [start]}}


def paired() -> dict[str, Any]:
    return {"sentence1": sentence(4), "sentence2": sentence(5), "score": str(CHANCE.uniform(0, 5))}


KINDS = {
    "tagger": Kind("token-classification", tagged, tagger, ["batch", "sequence", 3], tuple(TAGS)),
    "reader": Kind("question-answering", asked, reader, ["batch", "sequence", 2]),
    "embedder": Kind("sentence-similarity", paired, embedder, ["batch", 6]),
    "viewer": Kind(
        "image-classification",
        lambda: {"image": picture(), "label": str(CHANCE.integers(3))},
        viewer,
        ["batch", 3],
        ("a", "b", "c"),
    ),
}


def write_processor(kind: Kind, folder: Path) -> None:
    if kind.model is viewer:
        settings = {"image_processor_type": "ViTImageProcessor", "size": {"height": 4, "width": 4}}
        artifact.write_json(folder / "preprocessor_config.json", settings)
        return
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))


class World:
    """All that verify reads, made for one kind; student and teacher answer as the Program does, the teacher doubled."""

    def __init__(self, root: Path, kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.kind = root, kind
        self.task = registry.load("tasks", kind.task)
        export = artifact.partial_of(root / "export")
        write_processor(kind, export)
        processor = self.task.processor(export)
        examples = [self.task.example(kind.table(), list(kind.labels)) for _ in range(kind.count)]
        self.rows = self.task.expand(examples, processor, MAX_LENGTH)
        self.encoded = self.task.encode(processor, self.rows, MAX_LENGTH)
        self.raw = [kind.model(self.fed(one))[0] for one in self.encoded]
        self.program = [self.task.take(raw, one) for raw, one in zip(self.raw, self.encoded, strict=True)]
        self.parents = {
            "data": self.data(),
            "teach": self.teach(),
            "distill": self.sealed("distill", {"test_logits.safetensors": self.program}),
            "quantize": self.quantize(),
            "export": self.seal("export", self.exported()),
        }
        self.target = SimpleNamespace(
            slow=False, golden_bound=lambda scheme, reach: 0.01, open_session=lambda path: self
        )
        load = registry.load
        monkeypatch.setattr(
            registry, "load", lambda group, name: self.target if group == "targets" else load(group, name)
        )
        self.observed: dict[str, Any] = {}
        self.calls = 0
        self.change = lambda call, logits: logits

    def fed(self, encoded: Mapping[str, Any]) -> dict[str, np.ndarray]:
        return {name: np.asarray(encoded[name])[None] for name in self.task.INPUTS}

    def seal(self, name: str, facts: artifact.Facts | None = None) -> artifact.Artifact:
        return artifact.seal(self.root / name, stage=name, label=name, key="k", facts=facts or {}, parents={}, tools={})

    def sealed(self, name: str, files: Mapping[str, Any]) -> artifact.Artifact:
        part = artifact.partial_of(self.root / name)
        part.mkdir(exist_ok=True)
        for file, made in files.items():
            outputs.save_outputs(part / file, made)
        return self.seal(name)

    def data(self) -> artifact.Artifact:
        text = "".join(json.dumps(row) + "\n" for row in self.rows)
        artifact.write_atomic(artifact.partial_of(self.root / "data") / "test.jsonl", text)
        return self.seal("data")

    def teach(self) -> artifact.Artifact:
        part, identity = artifact.partial_of(self.root / "teach"), cache.identity(teacher="tiny")
        ids = [cache.sample_id(identity, self.task.sample_text(row)) for row in self.rows]
        doubled = {one: torch.from_numpy(2 * output) for one, output in zip(ids, self.program, strict=True)}
        values = list(doubled.values()) if self.task.PER_UNIT else torch.stack(list(doubled.values()))
        cache.write_shard(part / cache.FOLDER, 0, identity, list(doubled), {"logits": values})
        artifact.write_json(part / cache.SAMPLES, {"identity": identity, "splits": {"test": ids}})
        return self.seal("teach")

    def exported(self, max_length: int = MAX_LENGTH) -> artifact.Facts:
        """Facts of a file that takes any batch, and any length up to the largest."""
        facts = {"file": "model.stub", "inputs": [{"shape": ["batch"]}], "fixed_length": False}
        return facts | {"max_length": None if self.kind.model is viewer else max_length}

    def quantize(self) -> artifact.Artifact:
        dtype, shape = (
            ("float32", ["batch", 3, 4, 4]) if self.kind.model is viewer else ("int64", ["batch", "sequence"])
        )
        golden = {
            "signature": {
                "inputs": [{"name": name, "dtype": dtype, "shape": shape} for name in self.task.INPUTS],
                "outputs": [{"name": "logits", "dtype": "float32", "shape": self.kind.shape}],
            },
            "texts": ["", "", ""],
            "inputs": {name: [np.asarray(one[name]).tolist() for one in self.encoded[:3]] for name in self.task.INPUTS},
            "outputs": {"logits": [raw.tolist() for raw in self.raw[:3]]},
        }
        part = artifact.partial_of(self.root / "quantize")
        artifact.write_json(part / "golden.json", golden)
        torch.export.save(torch.export.export(torch.nn.Identity(), (torch.ones(1),)), part / "program.pt2")
        return self.sealed("quantize", {"reference.safetensors": self.program})

    def run(self, inputs: Inputs) -> np.ndarray:
        """What the session answers."""
        self.calls += 1
        return self.change(self.calls, self.kind.model(inputs).copy())

    def close(self) -> None: ...

    def verify(self, **settings: int) -> artifact.Facts:
        recipe = Recipe(task=self.kind.task, data={"max_length": MAX_LENGTH}, verify=settings)
        inputs = artifact.Inputs(parents=self.parents, variant={"target": "stub", "scheme": "fp32"})
        (self.root / "out").mkdir(exist_ok=True)
        return stage.run(View(recipe, pipeline.VERIFY.reads), inputs, self.root / "out")


@pytest.fixture(params=list(KINDS))
def world(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, KINDS[request.param], monkeypatch)


def test_a_faithful_artefact_of_every_kind(world: World) -> None:
    facts = world.verify()
    assert facts["samples"] == facts["of"] == len(world.rows)
    assert facts["parity"]["max_abs_delta"] == 0 and facts["parity"]["identical"] == 1
    assert facts["golden"] == {
        "examples": 3,
        "max_abs_delta": 0,
        "logit_range": pytest.approx(np.ptp(np.concatenate([raw.ravel() for raw in world.raw[:3]]))),
        "bound": 0.01,
        "passed": True,
    }
    assert facts["agreement"] == {"program": 1, "teacher": 1, "student": 1}  # twice the logits, the same answers
    moved, masked = facts["faithful"]["invariance"], world.kind.model is not embedder  # it averages padding, too
    assert moved["passed"] is masked and (moved["largest"] == 0) is masked and moved["neighbours"]["examples"] == 3
    tokens = [len(one.get("input_ids", [0] * MAX_LENGTH)) for one in world.encoded[:3]]
    assert (moved["padded"] or {"examples": 0})["examples"] == sum(count < MAX_LENGTH for count in tokens)
    assert facts["metrics"] == facts["program_metrics"] == facts["student_metrics"]
    assert facts["metrics"][world.task.HEADLINE] == pytest.approx(
        world.task.metrics(world.program, world.rows)[world.task.HEADLINE]
    )
    for one, other in zip(outputs.read_outputs(world.root / "out" / "logits.safetensors"), world.program, strict=True):
        np.testing.assert_array_equal(one, other)
    artifact.write_json(world.root / "facts.json", facts)  # raises if anything in it is not JSON


def test_one_row_that_is_wrong_is_counted(world: World) -> None:
    """The second row's outputs are negated: another answer in every unit, and a delta of twice the largest one."""
    world.change = lambda call, logits: -logits if call == 2 else logits
    facts = world.verify()
    rows = len(world.rows)
    assert facts["parity"]["identical"] == pytest.approx(1 - 1 / rows)
    assert facts["parity"]["max_abs_delta"] == pytest.approx(2 * np.abs(world.program[1]).max())
    assert facts["agreement"]["program"] == pytest.approx(1 - 1 / rows)
    assert facts["golden"]["passed"] is True
    if world.task.SOFT != "contrastive":
        assert facts["parity"]["disagreements"] >= 1 and facts["parity"]["largest_margin"] > 0
    else:
        assert "argmax_agreement" not in facts["parity"]  # an entry of an embedding is no answer


def test_a_subset_keeps_together_what_is_scored_together(world: World) -> None:
    world.target.slow = True
    facts = world.verify(slow_samples=6)
    rows = load_file(world.root / "out" / "logits.safetensors")["rows"].tolist()
    assert facts["samples"] == len(rows) < facts["of"] == len(world.rows)
    taken = {world.task.group_text(world.rows[row]) for row in rows}
    assert rows == [row for row, one in enumerate(world.rows) if world.task.group_text(one) in taken]


def test_a_teacher_of_another_width_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, KINDS["embedder"], monkeypatch)
    wide = [np.concatenate([one, one]) / np.float32(np.sqrt(2)) for one in world.program]
    monkeypatch.setattr(stage, "read_logits", lambda teach, split: [torch.from_numpy(one) for one in wide])
    facts = world.verify()
    assert set(facts["agreement"]) == {"program", "student"}
    assert facts["teacher_metrics"]["spearman"] == pytest.approx(facts["metrics"]["spearman"])


def test_golden_examples_beyond_a_shorter_artefact_are_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, KINDS["tagger"], monkeypatch)
    lengths = [len(one["input_ids"]) for one in world.encoded[:3]]
    shorter = artifact.Artifact(**{**vars(world.parents["export"]), "facts": world.exported(min(lengths))})
    world.parents["export"] = shorter
    assert world.verify()["golden"]["examples"] == lengths.count(min(lengths))


def test_every_fixed_length_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A golden example runs in each length that holds it; a length that none fits is said to be unseen."""
    world = World(tmp_path, KINDS["tagger"], monkeypatch)
    tokens = [len(one["input_ids"]) for one in world.encoded[:3]]
    lengths = [min(tokens) - 1, max(tokens), MAX_LENGTH]
    facts = {**world.exported(), "fixed_length": True, "lengths": lengths}
    world.parents["export"] = artifact.Artifact(**{**vars(world.parents["export"]), "facts": facts})
    found = world.verify()
    assert list(found["golden"]["lengths"].values()) == [0, 3, 3]
    moves = sum(count < length for count in tokens for length in lengths)
    assert found["faithful"]["invariance"]["padded"]["examples"] == moves


def test_outputs_per_token_must_have_every_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgekd.errors import StepFailed

    world = World(tmp_path, KINDS["tagger"], monkeypatch)
    world.change = lambda call, logits: logits[:, :-1]
    with pytest.raises(StepFailed, match=r"test row 1: logits have shape"):
        world.verify()
