"""Core ML: the package says what the Program says; off macOS it is evaluated, and says so."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import _programs
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from targets import _tiny

from edgekd.errors import BadInput, Environment, StepFailed
from edgekd.targets import coreml
from edgekd.targets._contract import load_program

pytest.importorskip("coremltools")

TEST = _tiny.texts(40, seed=3)
reference_only = pytest.mark.skipif(sys.platform == "darwin", reason="checks the evaluation used off macOS")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path, dict[str, Any]]]:
    """Scheme -> (Program, artefact folder, export facts)."""
    return _tiny.export_both(coreml, tmp_path_factory.mktemp("coreml"), TEST)


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
def test_evaluation_is_the_float_run_of_the_program(made: Any, scheme: str) -> None:
    """Oracle: torch runs the same dequantize, float linear, quantize graph; no integers on either side."""
    program, artefact, _ = made[scheme]
    module, encoded = load_program(program).module(), _tiny.encode(TEST)
    expected = torch.cat([module(*(torch.tensor([values]) for values in one.values())) for one in encoded])
    delta = np.abs(infer(artefact, encoded) - expected.detach().numpy()).max(-1)
    assert (delta < 1e-5).mean() >= (1.0 if scheme == "fp32" else 0.75)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["roberta", "distilbert"])
def test_other_encoders(make_program: Any, tmp_path: Path, family: str) -> None:
    program = make_program("w8a8", family)
    coreml.export(program.path, tmp_path, max_length=int(program.facts["max_length"]))
    inputs, expected = _programs.golden_of(program)
    session = coreml.open_session(tmp_path)
    found = np.concatenate([session.run(one) for one in inputs])
    assert np.abs(found - expected).max() <= coreml.golden_bound("w8a8", float(np.ptp(expected)))
    assert ((found == expected).all(-1)).mean() >= 0.75


@reference_only
def test_observed_says_what_it_is(made: Any) -> None:
    observed = coreml.open_session(made["w8a8"][1]).observed
    assert observed["runtime"] == "MIL reference evaluation (not Apple's runtime)"
    assert observed["threads"] is None and observed["caveats"]
    assert coreml.slow is True and coreml.benchable is False


def test_trained_numbers_reach_the_package_unchanged(made: Any) -> None:
    """Per layer, from the package: int8 weight, its scales, and scale and zero point of input and output."""
    program, artefact, _ = made["w8a8"]
    expected = program_layers(program)
    operations = coreml.load_mil(artefact / "model.mlpackage").functions["main"].operations
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
            *numbers(layer.outputs[0].child_ops[0]),
        )
        assert found in expected, f"{layer.name} is none of the Program's layers"
        expected.remove(found)


def test_embedding_stays_int8(made: Any) -> None:
    program, artefact, _ = made["w8a8"]
    state = load_program(program).state_dict
    name = next(name for name in state if name.endswith("word_embeddings.weight_q"))
    weights = (artefact / "model.mlpackage" / coreml.WEIGHTS / "weight.bin").read_bytes()
    assert state[name].numpy().tobytes() in weights
    assert state[name.replace("weight_q", "w_scale")].numpy().tobytes() in weights


def test_same_program_same_bytes(made: Any, tmp_path: Path) -> None:
    program, artefact, _ = made["w8a8"]
    coreml.export(program, tmp_path, max_length=_tiny.MAX_LENGTH)
    assert contents(tmp_path) == contents(artefact)


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
            f"model.mlpackage/{coreml.SPECIFICATION}",
            f"model.mlpackage/{coreml.WEIGHTS}/weight.bin",
        }
        for secret in (str(Path.home()), sys.prefix, str(Path(__file__).parents[2]), "site-packages"):
            assert not [name for name, content in found.items() if secret.encode() in content]
        assert not re.search(rb"20\d\d-\d\d-\d\d", found[f"model.mlpackage/{coreml.SPECIFICATION}"])


def test_specification(made: Any) -> None:
    import coremltools as ct

    specification = coreml.load_specification(made["w8a8"][1] / "model.mlpackage")
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


def program_layers(program: Path) -> list[tuple[bytes, bytes, bytes, int, bytes, int]]:
    """The numbers of every quantized linear layer of a Program, read from its graph."""
    exported = load_program(program)
    names = {**exported.graph_signature.inputs_to_parameters, **exported.graph_signature.inputs_to_buffers}
    state = {**exported.state_dict, **exported.constants}
    layers = []
    for node in exported.graph.nodes:
        if node.target is torch.ops.aten.linear.default:
            data, weight, _ = node.args
            output = next(iter(node.users))
            stored = [state[names[one.name]].numpy().tobytes() for one in weight.args[:2]]
            sides = [(np.float32(one.args[1]).tobytes(), one.args[2]) for one in (data, output)]
            layers.append((*stored, *sides[0], *sides[1]))
    return layers
