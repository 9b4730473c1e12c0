"""Core ML: the package says what the Program says; off macOS it is evaluated, and says so."""

from __future__ import annotations

import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import _kinds
import _programs
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from targets import _tiny

from edgekd.artifact import sha256_tree, write_json
from edgekd.errors import BadInput, Environment, StepFailed
from edgekd.quantize import integer, program, qat, reference
from edgekd.quantize import scheme as schemes
from edgekd.targets import _mil, coreml
from edgekd.targets._contract import load_program
from edgekd.tasks import text_classification
from edgekd.verify import faithful

pytest.importorskip("coremltools")

TEST = _tiny.texts(40, seed=3)
reference_only = pytest.mark.skipif(sys.platform == "darwin", reason="checks the evaluation used off macOS")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path, dict[str, Any]]]:
    """Scheme -> (Program, artefact folder, export facts)."""
    return _tiny.export_both(coreml, tmp_path_factory.mktemp("coreml"), TEST)


EVERY_KIND = {
    "*query": "w8a8-dynamic",
    "*key": "w8",
    "*value": "w4",
    "*attention.output.dense": "w8a8-float-output",
    "*pooler.dense": "fp16",
    "classifier": "fp32",
}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    """A Program that holds every kind of layer (the feed-forward ones are ``w8a8``), its package, the facts."""
    folder = tmp_path_factory.mktemp("mixed")
    made = write_program(folder / "program", replace(schemes.get("w8a8"), overrides=EVERY_KIND, group=16))
    (folder / "artefact").mkdir()
    return made, folder / "artefact", coreml.export(made, folder / "artefact", max_length=_tiny.MAX_LENGTH)


def write_program(folder: Path, scheme: schemes.Scheme) -> Path:
    """program.pt2, golden.json, and the logits over TEST computed in integers."""
    model = reference.prepare(_tiny.model(), scheme)
    qat.calibrate(model, _tiny.encode(_tiny.texts(64, seed=1)), 1.0)
    encoded = _tiny.encode(TEST)
    exported = program.export(reference.convert(model), text_classification, encoded[0], _tiny.MAX_LENGTH)
    folder.mkdir()
    program.save(exported, folder)
    integers = program.integer_module(exported)
    logits = torch.stack(program.run(integers, text_classification, encoded))
    save_file({"logits": logits.numpy()}, folder / program.REFERENCE)
    golden = program.golden(integers, text_classification, TEST, encoded)
    signature = program.signature(exported, text_classification)
    write_json(folder / program.GOLDEN, {"signature": signature, **golden})
    return folder


def infer(artefact: Path, encoded: list[dict[str, list[int]]]) -> np.ndarray:
    return _tiny.infer(coreml, artefact, encoded)


@pytest.mark.parametrize("scheme", ["fp32", "w8a8"])
def test_logits_are_the_programs(made: Any, scheme: str) -> None:
    program, artefact, facts = made[scheme]
    expected = load_file(program / "reference.safetensors")["logits"]
    found = infer(artefact, _tiny.encode(TEST))
    assert found.dtype == np.float32 and found.shape == expected.shape
    delta = np.abs(found - expected).max(-1)
    if scheme == "fp32":
        assert delta.max() < 1e-5
    else:  # float arithmetic between the quantizers: most texts are identical, the others off by few steps
        assert (delta == 0).mean() >= 0.75
        assert delta.max() <= coreml.golden_bound(scheme, float(np.ptp(expected)))
    assert facts["fixed_length"] is True and facts["compute_precision"] == "float32"
    assert [one["dtype"] for one in facts["inputs"]] == ["int32", "int32"]
    content = sum(file.stat().st_size for file in (artefact / "model.mlpackage").rglob("*") if file.is_file())
    assert facts["size_bytes"] == content


@reference_only
@pytest.mark.parametrize("scheme", ["fp32", "w8a8"])
def test_float_evaluation_is_the_float_run_of_the_program(made: Any, scheme: str) -> None:
    """Oracle: torch runs the same dequantize, float linear, quantize graph; no integers on either side."""
    folder, artefact, _ = made[scheme]
    module, encoded = load_program(folder).module(), _tiny.encode(TEST)
    expected = torch.cat([module(*(torch.tensor([values]) for values in one.values())) for one in encoded])
    session = coreml._ReferenceSession(artefact / "model.mlpackage", integers=False)
    assert session.observed["integer_layers"] == 0
    found = np.concatenate([session.run({k: np.array([v]) for k, v in one.items()}) for one in encoded])
    delta = np.abs(found - expected.detach().numpy()).max(-1)
    assert (delta < 1e-5).mean() >= (1.0 if scheme == "fp32" else 0.75)


@reference_only
@pytest.mark.parametrize("quantized", [True, False])
def test_integer_layers_are_the_programs(quantized: bool) -> None:
    """Oracle: ``integer.py``, on inputs and weights whose sums fall on rounding ties again and again."""
    random = np.random.default_rng(0)
    x_q, weight_q = random.integers(-128, 128, (1, 50, 48)), random.integers(-127, 128, (40, 48)).astype(np.int8)
    w_scale, bias = np.full(40, 0.5, np.float32), (random.integers(-999, 999, 40) * 0.125).astype(np.float32)
    source = operation(op_type="dequantize", input=x_q.astype(np.int8), scale=np.float32(0.25), zero_point=np.int8(7))
    source.scale.rank = 0
    output = operation(op_type="quantize", scale=np.float32(64.0), zero_point=np.int8(-3)) if quantized else None
    linear = operation(bias=bias)
    linear.x = SimpleNamespace(op=source)
    found = _mil._IntegerLayer(linear, weight_q, w_scale, output)(linear)
    numbers = (torch.tensor(x_q), 0.25, 7, *map(torch.from_numpy, (weight_q, w_scale, bias)))
    if quantized:
        expected = integer.int8_linear(*numbers, 64.0, -3)
        found = np.clip(np.round(found / np.float32(64.0)) - 3, -128, 127)
        assert len(np.unique(found)) > 20
    else:
        expected = integer.int8_linear_float(*numbers)
    np.testing.assert_array_equal(found, expected.numpy())


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["w8a8", "w4"])
def test_several_lengths_are_functions_of_the_same_weights(scheme: str, tmp_path: Path) -> None:
    program, encoded = write_program(tmp_path / "program", schemes.get(scheme)), _tiny.encode(TEST)
    one, several, again = (tmp_path / name for name in ("one", "several", "again"))
    for folder, shorter in ((one, []), (several, [6]), (again, [6])):
        folder.mkdir()
        facts = coreml.export(program, folder, max_length=_tiny.MAX_LENGTH, shorter=shorter)
    assert facts["lengths"] == [6, 16] and facts["minimum_deployment"] == "iOS 18, macOS 15"
    assert sha256_tree(several) == sha256_tree(again) != sha256_tree(one)
    weights = [(folder / "model.mlpackage" / _mil.WEIGHTS / "weight.bin").stat().st_size for folder in (one, several)]
    assert weights[1] < 1.1 * weights[0]
    session = coreml.open_session(several)
    assert session.observed["lengths"] == [6, 16] and session.observed["max_length"] == 16
    found = infer(several, encoded)
    expected = load_file(program / "reference.safetensors")["logits"]
    assert np.abs(found - expected).max() <= coreml.golden_bound(scheme, float(np.ptp(expected)))
    short = [row for row in encoded if len(row["input_ids"]) <= 6]
    assert short and len(short) < len(encoded)
    for row in short:
        alone = session.run({name: np.array([values]) for name, values in row.items()})
        padded = {name: np.array([values + [0] * (7 - len(values))]) for name, values in row.items()}
        np.testing.assert_allclose(session.run(padded), alone, atol=1e-5 * np.ptp(expected))
    state = load_program(program)
    proof = faithful.faithful(state, several / facts["file"], lengths=facts["lengths"])
    assert proof["missing"] == []
    size = faithful.stored_size(state, several / facts["file"], lengths=facts["lengths"])
    assert size["bytes"] <= size["limit"]
    with pytest.raises(BadInput, match="17 tokens; the artefact takes at most 16"):
        session.run({name: np.ones((1, 17), np.int64) for name in ("input_ids", "attention_mask")})
    session.close()


def operation(op_type: str = "tested", **constants: Any) -> Any:
    """What the evaluation reads of a MIL operator."""
    return SimpleNamespace(op_type=op_type, **{name: SimpleNamespace(val=value) for name, value in constants.items()})


@pytest.mark.parametrize("inputs", [48, 1536])
def test_dynamic_layers_are_the_programs(inputs: int) -> None:
    """Bit for bit without a bias; with one, the product is rounded once more. Zero, one-sided and tied tokens."""
    torch.manual_seed(0)
    x = torch.randn(2, 7, inputs) * torch.logspace(-3, 3, 7)[:, None]
    x[0, 0], x[0, 1], x[0, 2] = 0.0, x[0, 1].abs(), -x[0, 2].abs()
    x[1, 3] = torch.arange(inputs) % 256 / 2  # ties
    weight_q = torch.randint(-127, 128, (40, inputs), dtype=torch.int8)
    w_scale, bias = torch.rand(40) + 0.01, torch.randn(40)
    found = coreml.linear_of_tokens(x, weight_q.float(), w_scale, None)
    expected = integer.int8_linear_tokens(x, weight_q, w_scale, None)
    assert torch.equal(found, expected)
    biased = coreml.linear_of_tokens(x, weight_q.float(), w_scale, bias)
    expected = integer.int8_linear_tokens(x, weight_q, w_scale, bias)
    assert ((biased - expected).abs() <= 2.0**-23 * (found.abs() + bias.abs())).all()


def test_sums_beyond_24_bits_round() -> None:
    """The worst case: every product as large as it can be, so that the sum needs 26 bits."""
    x, weight_q = torch.ones(1, 1536), torch.full((1, 1536), 127, dtype=torch.int8)
    weight_q[0, ::5] = 126
    found = coreml.linear_of_tokens(x, weight_q.float(), torch.ones(1), None)
    expected = integer.int8_linear_tokens(x, weight_q, torch.ones(1), None)
    assert expected.item() > 2**24 / 255
    assert abs(found.item() / expected.item() - 1) < 1e-6


@pytest.mark.parametrize("kind", ["token", "embedding", "decoder", "image"])
@pytest.mark.parametrize("scheme", ["w4", "fp16"])
def test_respelled_weights_keep_every_bit(tmp_path: Path, kind: str, scheme: str) -> None:
    module = load_program(_kinds.make(tmp_path / "program", kind, scheme)).module()
    row = {k: torch.tensor(np.array([v])) for k, v in _kinds.rows(kind)[0].items()}
    before = module(*(row[name] for name in _kinds.KINDS[kind].task.INPUTS))
    coreml._register()
    assert len(coreml.respell(module)) == 1
    names = {str(node.target) for node in module.graph.nodes}
    assert any(name.startswith("edgekd_coreml") for name in names)
    assert not any("channel_group" in name for name in names)
    assert torch.equal(module(*(row[name] for name in _kinds.KINDS[kind].task.INPUTS)), before)


def test_every_kind_of_layer_in_one_file(mixed: Any) -> None:
    folder, artefact, facts = mixed
    expected = load_file(folder / "reference.safetensors")["logits"]
    delta = np.abs(infer(artefact, _tiny.encode(TEST)) - expected).max(-1) / np.ptp(expected)
    assert (delta < 1e-5).mean() >= 0.75 and delta.max() <= coreml.golden_bound("w8a8", 1.0)
    assert len(facts["passes"]) == 3 + len(coreml.PASSES) and facts["minimum_deployment"] == "iOS 18, macOS 15"
    if coreml.slow:
        assert coreml.open_session(artefact).observed["integer_layers"] == 3  # two feed-forward, attention output


def test_every_weight_is_stored_as_the_program_has_it(mixed: Any) -> None:
    """Per kind of layer, from the package: the integers or halves, their scales, and the bits they take."""
    import coremltools as ct

    folder, artefact, _ = mixed
    state = load_program(folder).state_dict
    expected = set()
    for name in (name for name in state if name.endswith("weight_q") and "embeddings" not in name):
        scale = state.get(name.replace("weight_q", "w_scale"), torch.empty(0))
        if "query" in name:  # multiplied behind the sum, with the token's
            scale = torch.ones_like(scale)
        expected.add((state[name].numpy().tobytes(), scale.numpy().tobytes()))
    found = {}
    for one in _mil.load_mil(artefact / "model.mlpackage").functions["main"].operations:
        if one.op_type == "constexpr_cast":
            found[one.source_val.val.tobytes(), b""] = 16
        elif one.op_type.startswith("constexpr_"):
            assert one.op_type == "constexpr_blockwise_shift_scale" and one.offset is None
            bits = ct.converters.mil.mil.types.type_mapping.builtin_to_string(one.data.dtype)
            key = (one.data.val.astype(np.int8).tobytes(), one.scale.val.astype(np.float32).tobytes())
            found[key] = int(bits.removeprefix("int"))
    assert sorted(found.values()) == [4, 8, 8, 8, 8, 8, 16]
    assert set(found) == expected


@pytest.mark.parametrize("which", ["mixed", "fp32", "w8a8"])
def test_size_is_what_the_bits_promise(made: Any, mixed: Any, which: str) -> None:
    """Weights at stored size, each with at most 192 bytes of header and padding; nothing is stored unpacked."""
    folder, artefact, _ = mixed if which == "mixed" else made[which]
    exported = load_program(folder)
    state, four = exported.state_dict, 0
    if which == "mixed":
        four = sum(state[name].numel() for name in state if name.endswith("value.weight_q"))
    tensors = [value for value in state.values() if value.numel() > 1]
    promised = sum(value.numel() * value.element_size() for value in tensors) - four / 2
    stored = (artefact / "model.mlpackage" / _mil.WEIGHTS / "weight.bin").stat().st_size
    zeros = sum(value.numel() * 4 for name, value in state.items() if name.endswith("w_zero"))
    assert promised - 2 * zeros - 2048 <= stored <= promised + 192 * len(tensors) + 2048


@pytest.mark.slow
@pytest.mark.parametrize("family", ["roberta", "distilbert"])
@pytest.mark.parametrize("scheme", ["w8a8", "w8a8-dynamic", "w8", "w4", "fp16"])
def test_other_encoders(make_program: Any, tmp_path: Path, family: str, scheme: str) -> None:
    made = make_program(scheme, family)
    coreml.export(made.path, tmp_path, max_length=int(made.facts["max_length"]))
    inputs, expected = _programs.golden_of(made)
    session = coreml.open_session(tmp_path)
    found = np.concatenate([session.run(one) for one in inputs])
    spread = float(np.ptp(expected))
    assert np.abs(found - expected).max() <= coreml.golden_bound(scheme, spread)
    assert (np.abs(found - expected).max(-1) < 1e-5 * spread).mean() >= (0.75 if "a8" in scheme else 1.0)


@reference_only
def test_observed_says_what_it_is(made: Any) -> None:
    observed = coreml.open_session(made["w8a8"][1]).observed
    assert observed["runtime"] == "MIL reference evaluation (not Apple's runtime)"
    assert observed["threads"] is None and observed["caveats"] == [coreml.REFERENCE, coreml.INTEGERS]
    assert observed["integer_layers"] == 8 and coreml.open_session(made["fp32"][1]).observed["integer_layers"] == 0
    assert coreml.slow is True and coreml.benchable is False


def test_trained_numbers_reach_the_package_unchanged(made: Any) -> None:
    """Per layer, from the package: int8 weight, its scales, and scale and zero point of input and quantized output."""
    program, artefact, _ = made["w8a8"]
    expected = program_layers(program)
    operations = _mil.load_mil(artefact / "model.mlpackage").functions["main"].operations
    layers = [operation for operation in operations if operation.op_type == "linear"]
    assert len(layers) == len(expected) == 8  # 6 of a BERT layer, pooler, classifier
    for layer in layers:
        weight = layer.weight.op
        assert weight.op_type == "constexpr_affine_dequantize"
        assert weight.quantized_data.val.dtype == np.int8 and not np.any(weight.zero_point.val)
        found = (
            weight.quantized_data.val.tobytes(),
            weight.scale.val.astype(np.float32).tobytes(),
            *numbers(layer.x.op),
            *(one for user in layer.outputs[0].child_ops if user.op_type == "quantize" for one in numbers(user)),
        )
        assert found in expected, f"{layer.name} is none of the Program's layers"
        expected.remove(found)


def test_embedding_stays_int8(made: Any) -> None:
    program, artefact, _ = made["w8a8"]
    state = load_program(program).state_dict
    name = next(name for name in state if name.endswith("word_embeddings.weight_q"))
    weights = (artefact / "model.mlpackage" / _mil.WEIGHTS / "weight.bin").read_bytes()
    assert state[name].numpy().tobytes() in weights
    assert state[name.replace("weight_q", "w_scale")].numpy().tobytes() in weights


@pytest.mark.parametrize("which", ["mixed", "w8a8"])
def test_same_program_same_bytes(made: Any, mixed: Any, tmp_path: Path, which: str) -> None:
    folder, artefact, _ = mixed if which == "mixed" else made[which]
    coreml.export(folder, tmp_path, max_length=_tiny.MAX_LENGTH)
    assert contents(tmp_path) == contents(artefact)


def test_reciprocals_are_divisions() -> None:
    """coremltools adds 1e-4 to the divisor of a reciprocal."""

    class Reciprocal(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 1 / x

    names = [
        str(node.target) for node in coreml.legalise(torch.export.export(Reciprocal(), (torch.ones(3),))).graph.nodes
    ]
    assert "aten.div.Tensor" in names and "aten.reciprocal.default" not in names


def test_opening_changes_nothing(made: Any, tmp_path: Path) -> None:
    """coremltools rewrites the manifest of a package that it opens; the artefact's digest covers that file."""
    import coremltools as ct

    package = tmp_path / "model.mlpackage"
    shutil.copytree(made["w8a8"][1] / "model.mlpackage", package)
    before = contents(tmp_path)
    coreml.open_session(tmp_path).close()
    ct.models.MLModel(str(package), skip_model_load=True)
    assert contents(tmp_path) == before


def test_package_names_no_place_and_no_time(made: Any) -> None:
    for _, artefact, _ in made.values():
        found = contents(artefact)
        assert set(found) == {
            "model.mlpackage/Manifest.json",
            f"model.mlpackage/{_mil.SPECIFICATION}",
            f"model.mlpackage/{_mil.WEIGHTS}/weight.bin",
        }
        for secret in (str(Path.home()), sys.prefix, str(Path(__file__).parents[2]), "site-packages"):
            assert not [name for name, content in found.items() if secret.encode() in content]
        assert not re.search(rb"20\d\d-\d\d-\d\d", found[f"model.mlpackage/{_mil.SPECIFICATION}"])


def test_specification(made: Any) -> None:
    import coremltools as ct

    specification = _mil.load_specification(made["w8a8"][1] / "model.mlpackage")
    assert specification.specificationVersion == ct.target.iOS17
    inputs = {one.name: one.type.multiArrayType for one in specification.description.input}
    assert set(inputs) == {"input_ids", "attention_mask"}
    assert all(list(one.shape) == [1, _tiny.MAX_LENGTH] and one.dataType == one.INT32 for one in inputs.values())
    (output,) = specification.description.output
    assert output.name == "logits" and output.type.multiArrayType.dataType == output.type.multiArrayType.FLOAT32


def test_longer_than_the_file_takes(made: Any) -> None:
    with pytest.raises(BadInput, match=r"17 tokens; the artefact takes at most 16"):
        infer(made["fp32"][1], [{"input_ids": [2] * 17, "attention_mask": [1] * 17}])


def test_broken_package(tmp_path: Path) -> None:
    (tmp_path / "model.mlpackage").mkdir()
    with pytest.raises(StepFailed, match=r"cannot be opened"):
        coreml.open_session(tmp_path)


def test_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Environment, match=r"pip install 'edgekd\[coreml\]'"):
        coreml.export(tmp_path, tmp_path, max_length=16)
    with pytest.raises(Environment, match=r"pip install 'edgekd\[coreml\]'"):
        coreml.open_session(tmp_path)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def numbers(operation: Any) -> tuple[bytes, int]:
    """Scale (four bytes) and zero point of a quantize or dequantize operator."""
    assert operation.op_type in ("quantize", "dequantize") and operation.scale.val.dtype == np.float32
    zero = 0 if operation.zero_point is None else int(operation.zero_point.val)
    return operation.scale.val.tobytes(), zero


def program_layers(program: Path) -> list[tuple[bytes | int, ...]]:
    """The numbers of every quantized linear layer of a Program, read from its graph."""
    exported = load_program(program)
    names = {**exported.graph_signature.inputs_to_parameters, **exported.graph_signature.inputs_to_buffers}
    state = {**exported.state_dict, **exported.constants}
    layers = []
    for node in exported.graph.nodes:
        if node.target is torch.ops.aten.linear.default:
            data, weight, _ = node.args
            outputs = [
                one for one in node.users if one.target is torch.ops.quantized_decomposed.quantize_per_tensor.default
            ]
            stored = [state[names[one.name]].numpy().tobytes() for one in weight.args[:2]]
            sides = [side for one in (data, *outputs) for side in (np.float32(one.args[1]).tobytes(), one.args[2])]
            layers.append((*stored, *sides))
    return layers
