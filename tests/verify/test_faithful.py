"""Faithfulness, on real exported files, whole and then broken on purpose: each break must be seen, and by its name."""

from __future__ import annotations

import importlib
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from targets import _kinds, _tiny

from edgekd import errors
from edgekd.quantize import qat, reference
from edgekd.quantize import scheme as schemes
from edgekd.recipe import Quantize
from edgekd.targets import _contract
from edgekd.verify import faithful, gate

VENDORS = {"onnx": "onnxruntime", "coreml": "coremltools", "executorch": "executorch", "litert": "litert_torch"}
TEXTS = _tiny.texts(12, seed=5)
load_program = cache(_contract.load_program)  # reading one takes longer than checking it
WORDS, CLASSIFIER = "model.bert.embeddings.word_embeddings", "model.classifier"


@dataclass(frozen=True)
class Made:
    """A Program, and what a target made of it."""

    target: ModuleType
    program: Path
    artefact: Path
    facts: Mapping[str, Any]

    @property
    def file(self) -> Path:
        return self.artefact / self.facts["file"]

    @property
    def lengths(self) -> list[int]:
        return self.facts.get("lengths", [])

    def found(self) -> dict[str, Any]:
        return faithful.faithful(load_program(self.program), self.file, lengths=self.lengths)

    def changed(self, folder: Path, at: bytes, offset: int = 0) -> Made:
        """The same with one bit flipped, ``offset`` bytes behind where ``at`` stands (Core ML repeats scales)."""
        shutil.copytree(self.artefact, folder)
        wrong = bytearray(at)
        wrong[offset] ^= 1
        for file in faithful.files(folder / self.facts["file"]):
            file.write_bytes(file.read_bytes().replace(at, wrong))
        return Made(self.target, self.program, folder, self.facts)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("programs")
    return {scheme: _tiny.make_program(root / scheme, scheme, test=TEXTS).path for scheme in schemes.SCHEMES}


@pytest.fixture(scope="module")
def made(programs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """``made(target, scheme)``, exported once."""
    done: dict[tuple[str, str], Made] = {}

    def make(name: str, scheme: str) -> Made:
        pytest.importorskip(VENDORS[name])
        if (name, scheme) not in done:
            target, out = importlib.import_module(f"edgekd.targets.{name}"), tmp_path_factory.mktemp(f"{name}-{scheme}")
            facts = target.export(programs[scheme], out, max_length=_tiny.MAX_LENGTH)
            done[name, scheme] = Made(target, programs[scheme], out, facts)
        return done[name, scheme]

    return make


def state(program: Path, name: str) -> np.ndarray:
    return load_program(program).state_dict[name].numpy()


def moved(made: Made) -> dict[str, Any]:
    """The invariance of golden texts, judged."""
    rows = [{name: np.array(value) for name, value in row.items()} for row in _tiny.encode(TEXTS[:4])]
    alone = list(_tiny.infer(made.target, made.artefact, _tiny.encode(TEXTS[:4])))
    reach = float(np.ptp(np.concatenate(alone)))
    session = made.target.open_session(made.artefact)
    inputs = [{"name": name, "dtype": "int64", "shape": ["batch", "sequence"]} for name in rows[0]]
    batched = made.facts["inputs"][0]["shape"][0] == "batch"
    settings = {"length": made.facts["max_length"], "lengths": made.lengths, "batched": batched}
    found = faithful.invariance(session, inputs, rows, alone, reach=reach, **settings)
    session.close()
    scheme = made.program.name
    golden = {"bound": made.target.golden_bound(scheme, reach), "logit_range": reach}
    return faithful.judged(found, golden, faithful.integer_layers(load_program(made.program)))


@pytest.mark.parametrize(
    "name", ["onnx", "coreml", *(pytest.param(name, marks=pytest.mark.slow) for name in ("executorch", "litert"))]
)
@pytest.mark.parametrize("scheme", ["fp32", "w8a8"])
def test_whole_artefacts_of_every_format(made: Any, name: str, scheme: str) -> None:
    one = made(name, scheme)
    program, state_dict = load_program(one.program), load_program(one.program).state_dict
    found = one.found()
    assert found["missing"] == []
    if scheme == "w8a8":
        sizes = [value.numel() for key, value in state_dict.items() if key.endswith((".weight_q", ".w_scale"))]
        assert found["arrays"] == len(sizes) == 18 and found["unproven"] == 0
        assert found["numbers"] == sum(sizes) + found["activation_scales"] and found["activation_scales"] >= 8
    else:
        assert found["numbers"] == 0
    size = faithful.stored_size(program, one.file, lengths=one.lengths)
    assert size["expected"] < size["bytes"] <= size["limit"]
    kernels = faithful.accelerated(program, one.target, one.artefact)
    if name == "coreml":
        assert kernels["integer"] is kernels["accelerated"] is None and kernels["why"]
    else:
        layers = {"integer": 8 if scheme == "w8a8" else 0, "float": 0 if scheme == "w8a8" else 8}
        assert {kind: kernels[kind] for kind in layers} == layers and sum(kernels["names"].values()) == 8
        assert kernels["accelerated"] is (True if scheme == "w8a8" else None)
    told = moved(one)
    assert told["passed"] is True and told["padded"]["examples"] >= 3
    assert (told["neighbours"] is not None) == (name == "onnx")


@pytest.mark.parametrize("name", ["onnx", "coreml", pytest.param("executorch", marks=pytest.mark.slow)])
def test_one_flipped_bit_of_a_weight_or_a_scale_is_named(made: Any, tmp_path: Path, name: str) -> None:
    one = made(name, "w8a8")
    words = state(one.program, f"{WORDS}.weight_q")
    assert one.changed(tmp_path / "words", words.tobytes(), words.size - 1).found()["missing"] == [f"{WORDS}.weight_q"]
    scales = state(one.program, f"{CLASSIFIER}.w_scale")
    assert one.changed(tmp_path / "w", scales.tobytes(), 4).found()["missing"] == [f"{CLASSIFIER}.w_scale"]
    nodes = load_program(one.program).graph.find_nodes(op="call_function", target=faithful.QUANTIZE)
    scale = np.float32(nodes[0].args[1])
    [missing] = one.changed(tmp_path / "scale", scale.tobytes(), 0).found()["missing"]
    assert missing.endswith(f"query.activation_scale={scale:.9g}")


def test_a_layer_that_was_left_in_float(made: Any, tmp_path: Path) -> None:
    """The same student with its classifier kept in float: its file is not that of the whole scheme."""
    one = made("onnx", "w8a8")
    scheme = schemes.get("w8a8", Quantize(keep_float=["classifier"]))
    mixed = _mixed(tmp_path / "program", scheme)
    (tmp_path / "out").mkdir()
    facts = one.target.export(mixed, tmp_path / "out", max_length=_tiny.MAX_LENGTH)
    own = Made(one.target, mixed, tmp_path / "out", facts)
    kernels = faithful.accelerated(load_program(mixed), own.target, own.artefact)
    assert own.found()["missing"] == [] and kernels["accelerated"] is True  # faithful to its own Program
    assert (kernels["integer"], kernels["float"], kernels["wanted"]) == (7, 1, 7)
    whole = Made(own.target, one.program, own.artefact, facts)
    assert {f"{CLASSIFIER}.weight_q", f"{CLASSIFIER}.w_scale"} <= set(whole.found()["missing"])
    kernels = faithful.accelerated(load_program(one.program), own.target, own.artefact)
    assert kernels["accelerated"] is False and (kernels["integer"], kernels["wanted"]) == (7, 8)


def _mixed(folder: Path, scheme: schemes.Scheme) -> Path:
    from edgekd import artifact
    from edgekd.quantize import program
    from edgekd.tasks import text_classification as task

    model = reference.prepare(_tiny.model(), scheme)
    qat.calibrate(model, _tiny.encode(_tiny.texts(64, seed=1)), 1.0)
    rows = _tiny.encode(TEXTS)
    exported = program.export(reference.convert(model), task, rows[0], _tiny.MAX_LENGTH)
    folder.mkdir()
    program.save(exported, folder)
    golden = program.golden(program.integer_module(exported), task, TEXTS, rows)
    artifact.write_json(folder / "golden.json", {"signature": program.signature(exported, task), **golden})
    return folder


def test_integers_that_are_stored_and_run_as_floats(made: Any, tmp_path: Path) -> None:
    """The file with every weight dequantized in advance: the same answers, four times the bytes, float kernels."""
    onnx = pytest.importorskip("onnx")
    one = made("onnx", "w8a8")
    model = onnx.load(one.file)
    stored = {value.name: onnx.numpy_helper.to_array(value) for value in model.graph.initializer}
    for node in [node for node in model.graph.node if node.op_type == "DequantizeLinear"]:
        if node.input[0] in stored and stored[node.input[0]].dtype == np.int8:
            floats = stored[node.input[0]].astype(np.float32) * stored[node.input[1]][:, None]
            model.graph.initializer.append(onnx.numpy_helper.from_array(floats, node.output[0]))
            model.graph.initializer.remove(next(v for v in model.graph.initializer if v.name == node.input[0]))
            model.graph.node.remove(node)
    onnx.save(model, tmp_path / "model.onnx")
    wide = Made(one.target, one.program, tmp_path, one.facts)
    np.testing.assert_allclose(*(_tiny.infer(m.target, m.artefact, _tiny.encode(TEXTS)) for m in (one, wide)), atol=0.5)
    missing = [name for name in wide.found()["missing"] if name.endswith(".weight_q")]
    assert len(missing) == 8 and f"{WORDS}.weight_q" not in missing
    kernels = faithful.accelerated(load_program(wide.program), wide.target, wide.artefact)
    assert kernels["accelerated"] is False and kernels["float"] > kernels["integer"]  # it quantizes two by itself again


@pytest.mark.parametrize(("kind", "scheme"), [("float32", "w8a8"), ("float16", "w8a8"), ("int8", "w4")])
def test_weights_wider_than_their_scheme_are_too_large(tmp_path: Path, kind: str, scheme: str) -> None:
    """A model of which the weights are most: its numbers as they should lie there, and then wider."""
    wide = torch.nn.Sequential(*(torch.nn.Linear(256, 256) for _ in range(3)))
    wide = reference.prepare(wide, schemes.get(scheme))
    for _, layer in reference.layers(wide):
        if scheme == "w8a8":
            layer.input_quantizer.set_range(-1, 1)
            layer.output_quantizer.set_range(-1, 1)
    program = torch.export.export(reference.convert(wide), (torch.ones(2, 256),))
    right, wrong = b"", b""
    for one in faithful.tensors(program):
        spelled = next(faithful._spellings(one)) if one.kind != "other" else one.values.tobytes()
        right += spelled
        wrong += one.values.astype(kind).tobytes() if one.name.endswith("weight_q") else spelled
    (tmp_path / "model.onnx").write_bytes(right + bytes(4096))
    size = faithful.stored_size(program, tmp_path / "model.onnx")
    assert size["expected"] == len(right) and size["bytes"] <= size["limit"]
    (tmp_path / "model.onnx").write_bytes(wrong + bytes(4096))
    size = faithful.stored_size(program, tmp_path / "model.onnx")
    assert size["bytes"] > size["limit"]
    (tmp_path / "model.json").write_bytes(bytes(10**6))  # a graph in words
    assert faithful.stored_size(program, tmp_path / "model.onnx") == size


@pytest.mark.parametrize("scheme", ["fp16", "w8", "w4", "w8a8-dynamic"])
def test_the_numbers_of_every_scheme_are_known(programs: dict[str, Path], tmp_path: Path, scheme: str) -> None:
    """Each array in each spelling, packed here by other means, and not found once one number is another."""
    program = load_program(programs[scheme])
    assert faithful.integer_layers(program) == (8 if scheme == "w8a8-dynamic" else 0)
    kinds = {one.name: one.kind for one in faithful.tensors(program)}
    weights = {name: kind for name, kind in kinds.items() if name.endswith("weight_q")}
    expected = {"fp16": "float16", "w4": "int4"}.get(scheme, "int8")
    assert len(weights) == 9 and weights[f"{CLASSIFIER}.weight_q"] == expected
    file = tmp_path / "model.bin"
    parts = {one.name: one.values for one in faithful.tensors(program) if one.kind != "other"}
    for spell in SPELLINGS:
        file.write_bytes(b"head" + b"|".join(spell(values, kinds[name]) for name, values in parts.items()))
        found = faithful.faithful(program, file)
        assert found["missing"] == [] and found["numbers"] == sum(values.size for values in parts.values())
        name = f"{CLASSIFIER}.weight_q"
        changed = {**parts, name: parts[name].copy()}
        changed[name][2, 3] = 1 if changed[name][2, 3] != 1 else 2
        file.write_bytes(b"|".join(spell(values, kinds[one]) for one, values in changed.items()))
        assert faithful.faithful(program, file)["missing"] == [name]


def packed(first: int, shift: int, transposed: bool = False) -> Any:
    """Two int4 in a byte, the number ``first`` of a pair in the low half."""

    def spell(values: np.ndarray, kind: str) -> bytes:
        values = values.T if transposed else values
        if kind != "int4":
            return values.tobytes()
        numbers = [(int(value) + shift) % 16 for value in values.ravel()]
        return bytes(pair[first] + 16 * pair[1 - first] for pair in zip(numbers[::2], numbers[1::2], strict=True))

    return spell


def as_uint8(values: np.ndarray, kind: str) -> bytes:
    return (values.astype(np.int16) + 128).astype(np.uint8).tobytes() if kind == "int8" else values.tobytes()


SPELLINGS = [as_uint8, *(packed(first, shift) for first in (0, 1) for shift in (0, 8)), packed(0, 8, transposed=True)]


def test_arrays_that_prove_nothing_are_not_counted(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"something else")
    layer = reference.prepare(torch.nn.Sequential(torch.nn.Linear(4, 1)), schemes.get("w8"))
    program = torch.export.export(reference.convert(layer), (torch.ones(2, 4),))
    found = faithful.faithful(program, tmp_path / "model.bin")
    assert found["missing"] == [] and found["numbers"] == 0 and found["unproven"] == 2


def test_a_position_table_may_be_folded_to_the_rows_that_are_read(tmp_path: Path) -> None:
    """At one length a converter gathers them in advance; the words, which the input chooses, must stay."""

    class Table(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.places = torch.nn.Embedding(40, 8), torch.nn.Embedding(32, 8)
            self.register_buffer("positions", torch.arange(32)[None])

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return self.words(input_ids) + self.places(self.positions[:, : input_ids.shape[1]])

    model = reference.convert(reference.prepare(Table(), schemes.get("w8")))
    dynamic = {"input_ids": {1: torch.export.Dim("sequence", min=2, max=32)}}
    program = torch.export.export(model, (torch.ones(1, 3, dtype=torch.long),), dynamic_shapes=dynamic)
    numbers = program.state_dict
    rows = [(numbers[f"{name}.weight_q"] * numbers[f"{name}.w_scale"]).numpy() for name in ("words", "places")]
    (tmp_path / "model.bin").write_bytes(rows[0].tobytes() + rows[1][:20].tobytes())
    words = ["words.weight_q", "words.w_scale"]
    assert set(faithful.faithful(program, tmp_path / "model.bin", lengths=[20])["missing"]) == set(words)
    assert len(faithful.faithful(program, tmp_path / "model.bin")["missing"]) == 4  # of any length, nothing is folded
    several = faithful.faithful(program, tmp_path / "model.bin", lengths=[8, 24])
    assert len(several["missing"]) == 4  # the rows of one length do not stand for those of the other
    both = rows[0].tobytes() + rows[1][:24].tobytes() + rows[1][:8].tobytes()
    (tmp_path / "model.bin").write_bytes(both)
    assert set(faithful.faithful(program, tmp_path / "model.bin", lengths=[8, 24])["missing"]) == set(words)
    cut = [numbers[f"{name}.{part}"].numpy() for name in ("words", "places") for part in ("weight_q", "w_scale")]
    (tmp_path / "model.bin").write_bytes(b"".join(part[:20].tobytes() for part in cut))
    assert set(faithful.faithful(program, tmp_path / "model.bin", lengths=[20])["missing"]) == set(words)


class Fake:
    """A session whose answers for a row are known: sums over its tokens, of ``leak`` x what it should not see."""

    def __init__(self, leak: float, step: float = 0.0, rare: int = 1, per_token: bool = False) -> None:
        self.leak, self.step, self.rare, self.per_token, self.calls = leak, step, rare, per_token, 0

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        self.calls += 1
        ids, mask = inputs["input_ids"].astype(np.float64), inputs["attention_mask"]
        seen = (ids * mask).sum(1) + self.leak * ((ids * (1 - mask)).sum(1) + ids.max(1).max())
        seen = seen + (self.step if self.calls % self.rare == 0 else 0)
        answers = np.stack([seen, -seen], 1).astype(np.float32)
        return np.repeat(answers[:, None], ids.shape[1], 1) if self.per_token else answers


def tried(session: Any, *, integers: int = 8, bound: float = 0.2, batched: bool = True) -> dict[str, Any]:
    rows = [{"input_ids": list(range(1, n + 1)), "attention_mask": [1] * n} for n in (3, 4, 5, 7, 9, 12, 14, 16)]
    quiet = Fake(0.0, per_token=getattr(session, "per_token", False))
    alone = [quiet.run({name: np.array(value)[None] for name, value in row.items()})[0] for row in rows]
    reach = float(max(one.max() for one in alone) - min(one.min() for one in alone))
    inputs = [{"name": name, "dtype": "int64", "shape": ["batch", "sequence"]} for name in rows[0]]
    found = faithful.invariance(session, inputs, rows, alone, reach=reach, length=20, lengths=[20], batched=batched)
    return faithful.judged(found, {"bound": bound * reach, "logit_range": reach}, integers)


@pytest.mark.parametrize("per_token", [False, True])
def test_an_answer_that_depends_on_padding_or_neighbours(per_token: bool) -> None:
    good = tried(Fake(0.0, per_token=per_token))
    assert good["passed"] is True and good["largest"] == 0
    assert good["padded"] == good["neighbours"] == {"examples": 8, "largest": 0.0, "quartile": 0.0, "identical": 1.0}
    leaky = tried(Fake(0.01, per_token=per_token))
    assert leaky["passed"] is False and 1e-4 < leaky["largest"] < 0.2  # below what rounding ties may do, yet seen
    assert leaky["padded"]["identical"] == leaky["neighbours"]["identical"] == 0
    assert tried(Fake(10.0, per_token=per_token))["largest"] > 0.2
    assert tried(Fake(0.01, per_token=per_token), batched=False)["neighbours"] is None


def test_rounding_ties_are_forgiven_and_large_or_float_changes_are_not() -> None:
    assert tried(Fake(0.0, step=5.0, rare=3))["passed"] is True  # one answer in three, by 2 % of the range
    assert tried(Fake(0.0, step=5.0, rare=1))["passed"] is False
    assert tried(Fake(0.0, step=500.0, rare=3))["passed"] is False
    assert tried(Fake(0.0, step=5.0, rare=3), integers=0, bound=1e-3)["passed"] is False  # no ties in float


def test_sessions_that_break_when_padded() -> None:
    def crash(inputs: Any) -> np.ndarray:
        raise RuntimeError("no such shape")

    with pytest.raises(errors.StepFailed, match=r"does not run padded \(no such shape\)"):
        tried(SimpleNamespace(run=crash))
    with pytest.raises(errors.StepFailed, match="has no finite logits"):
        tried(SimpleNamespace(run=lambda inputs: np.full((len(inputs["input_ids"]), 2), np.nan)))


@pytest.mark.parametrize("scheme", ["fp32", "w8a8"])
def test_images_beside_images(tmp_path: Path, scheme: str) -> None:
    pytest.importorskip("onnxruntime")
    from edgekd.targets import onnx

    program = _kinds.make(tmp_path / "program", "image", scheme)
    (tmp_path / "out").mkdir()
    facts = onnx.export(program, tmp_path / "out", max_length=_kinds.MAX_LENGTH)
    made = Made(onnx, program, tmp_path / "out", facts)
    kernels = faithful.accelerated(load_program(program), onnx, made.artefact)
    assert made.found()["missing"] == [] and kernels["accelerated"] is (True if scheme == "w8a8" else None)
    session, rows = onnx.open_session(made.artefact), _kinds.rows("image", 4)
    alone = [session.run({"pixel_values": row["pixel_values"][None]})[0] for row in rows]
    inputs = [{"name": "pixel_values", "dtype": "float32", "shape": ["batch", 3, _kinds.SIDE, _kinds.SIDE]}]
    reach = float(np.ptp(np.concatenate(alone)))
    found = faithful.invariance(session, inputs, rows, alone, reach=reach, length=None, lengths=[], batched=True)
    assert found["padded"] is None and found["neighbours"]["examples"] == 4
    golden = {"bound": onnx.golden_bound(scheme, reach), "logit_range": reach}
    assert faithful.judged(found, golden, kernels["wanted"])["passed"] is True


def test_a_target_that_does_not_tell(programs: dict[str, Path], tmp_path: Path) -> None:
    told = faithful.accelerated(load_program(programs["w8a8"]), SimpleNamespace(), tmp_path)
    assert told["accelerated"] is None and told["wanted"] == 8 and told["why"]


# The verdict.

WHOLE: dict[str, Any] = {
    "numbers": {"numbers": 19683, "arrays": 18, "activation_scales": 14, "unproven": 0, "missing": []},
    "invariance": {
        "padded": {"examples": 8, "largest": 0.01, "quartile": 0.0, "identical": 0.9},
        "neighbours": None,
        "largest": 0.01,
        "quartile": 0.0,
        "bound": 0.2,
        "quartile_bound": 1e-4,
        "passed": True,
    },
    "kernels": {"integer": 8, "float": 0, "how": "optimised graph", "names": {}, "wanted": 8, "accelerated": True},
    "size": {"bytes": 90, "expected": 80, "limit": 100},
}


@pytest.mark.parametrize(
    ("part", "change", "reason"),
    [
        ("numbers", {"missing": ["a", "b", "c", "d"]}, "arrays not in the file is 4, wanted 0 .*missing a, b, c and"),
        ("kernels", {"integer": 5, "accelerated": False}, "accelerated is 5, wanted 8 .*not accelerated"),
        ("invariance", {"largest": 0.3, "passed": False}, "invariance is 0.3, wanted 0.2"),
        ("invariance", {"quartile": 0.002, "passed": False}, "invariance is 0.002, wanted 0.0001"),
        (
            "size",
            {"bytes": 101},
            "stored bytes is 101, wanted 100 .the weights are stored wider than their scheme says",
        ),
    ],
)
def test_each_check_fails_the_artefact(part: str, change: dict[str, Any], reason: str) -> None:
    assert all(check.passed for check in gate._faithful(WHOLE))
    failed = [check for check in gate._faithful({**WHOLE, part: {**WHOLE[part], **change}}) if check.passed is False]
    assert len(failed) == 1
    assert re.search(reason, gate._reason(failed[0]))


def test_what_cannot_be_told_is_not_held_against_it() -> None:
    kernels = {"integer": None, "float": None, "how": None, "names": {}, "why": "there is no Core ML here"}
    untried = {"largest": None, "quartile": None, "passed": None, "padded": None}
    facts = {
        **WHOLE,
        "kernels": {**kernels, "wanted": 8, "accelerated": None},
        "invariance": {**WHOLE["invariance"], **untried},
    }
    checks = {check.name: check for check in gate._faithful(facts)}
    assert checks["accelerated"].passed is checks["invariance"].passed is None
    assert "there is no Core ML here" in checks["accelerated"].note
    float_one = {**WHOLE, "numbers": {**WHOLE["numbers"], "numbers": 0}, "kernels": {**WHOLE["kernels"], "wanted": 0}}
    assert {check.name for check in gate._faithful(float_one)} == {"invariance", "stored bytes"}
    assert gate._faithful(None) == []
