"""Every kind of Program through every target: the file, in its own runtime, gives the golden logits."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import _kinds
import numpy as np
import pytest
import torch

from edgekd import registry
from edgekd.errors import BadInput
from edgekd.targets import _contract, _mil, litert

TARGETS = {
    "onnx": "onnxruntime",
    "litert": "litert_torch",
    "coreml": "coremltools",
    "executorch": "executorch",
    "openvino": "openvino",
}
ANY_LENGTH = ("onnx", "openvino")  # their files take more tokens than the student was made for
QUICK = {("image", "w8a8"), ("question", "w8a8")}  # pixels; three inputs and an output per token
CASES = [
    pytest.param(kind, scheme, target, marks=[] if (kind, scheme) in QUICK else pytest.mark.slow)
    for kind, made in _kinds.KINDS.items()
    for scheme in made.schemes
    for target in TARGETS
    if scheme in registry.load("targets", target).accepts
]
SAME = 0.5  # share of golden examples with equal logits: under w8a8 only ties may fall the other way


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """``make(kind, scheme)`` -> the folder of a Program, made once."""

    @cache
    def made(kind: str, scheme: str) -> Path:
        return _kinds.make(tmp_path_factory.mktemp("program") / kind, kind, scheme)

    return made


@pytest.mark.parametrize(("kind", "scheme", "name"), CASES)
def test_golden_logits(make: Callable[[str, str], Path], kind: str, scheme: str, name: str, tmp_path: Path) -> None:
    pytest.importorskip(TARGETS[name])
    program, target = make(kind, scheme), importlib.import_module(f"edgekd.targets.{name}")
    facts = target.export(program, tmp_path, max_length=_kinds.MAX_LENGTH)
    check_facts(kind, facts)
    inputs, expected = golden(program)
    session = target.open_session(tmp_path)
    found = [session.run(one) for one in inputs]
    for one, theirs in zip(found, expected, strict=True):
        assert one.dtype == np.float32 and one.shape == theirs.shape
    spread = float(np.ptp(np.concatenate([theirs.ravel() for theirs in expected])))
    deltas = np.array([np.abs(one - theirs).max() for one, theirs in zip(found, expected, strict=True)])
    assert deltas.max() <= target.golden_bound(scheme, spread)
    assert (deltas < 1e-5 * spread).mean() >= (1.0 if scheme == "fp32" else SAME)
    if name not in ANY_LENGTH:  # a size of image that no Program had is theirs to refuse
        with pytest.raises(BadInput, match=r"17 tokens; the artefact takes|pixel_values of shape"):
            session.run({k: wrong(v) for k, v in inputs[0].items()})
    session.close()


def wrong(values: np.ndarray) -> np.ndarray:
    """One token too many, or an image of another size."""
    return np.ones((1, _kinds.MAX_LENGTH + 1) if values.ndim == 2 else (1, 3, 8, 8), values.dtype)


def check_facts(kind: str, facts: dict[str, Any]) -> None:
    """What the export says of the file's inputs and outputs."""
    names = _kinds.KINDS[kind].task.INPUTS
    assert [one["name"] for one in facts["inputs"]] == list(names)
    if "pixel_values" in names:
        assert facts["max_length"] is None and facts["fixed_length"] is False
        assert [(one["dtype"], one["shape"][1:]) for one in facts["inputs"]] == [("float32", [3, 12, 12])]
    else:
        assert facts["max_length"] == _kinds.MAX_LENGTH
        assert {one["dtype"] for one in facts["inputs"]} <= {"int64", "int32"}
    (output,) = facts["outputs"]
    assert output["name"] == "logits" and len(output["shape"]) == 1 + len(_kinds.KINDS[kind].shape)


@pytest.mark.parametrize("kind", _kinds.KINDS)
def test_a_program_says_what_it_takes(make: Callable[[str, str], Path], kind: str) -> None:
    inputs, (output,) = _contract.read_signature(make(kind, _kinds.KINDS[kind].schemes[0]))
    names = _kinds.KINDS[kind].task.INPUTS
    pixels = ("float32", ["batch", 3, _kinds.SIDE, _kinds.SIDE])
    dtype, shape = pixels if names == ("pixel_values",) else ("int64", ["batch", "sequence"])
    assert inputs == [{"name": name, "dtype": dtype, "shape": shape} for name in names]
    assert output == {"name": "logits", "dtype": "float32", "shape": ["batch", *_kinds.KINDS[kind].shape]}


def test_litert_passes_for_images_keep_every_bit(make: Callable[[str, str], Path]) -> None:
    """The class token added instead of concatenated, the pixels negated twice."""
    program = make("image", "w8a8")
    inputs, _ = _contract.read_signature(program)
    module = _contract.specialise(_contract.load_program(program), inputs, 0).module()
    next(buffer for name, buffer in module.named_parameters() if "cls_token" in name).data.uniform_(-2, 2)
    pixels = [torch.from_numpy(one["pixel_values"]) for one in golden(program)[0]]
    with torch.no_grad():
        before = [module(one) for one in pixels]
        for step in (litert.add_constants, litert.keep_inputs):
            assert step(module) == 1
            for one, expected in zip(pixels, before, strict=True):
                assert torch.equal(module(one), expected)


@pytest.mark.parametrize(
    "how", [{}, {"stride": 2, "padding": 1}, {"groups": 2, "dilation": (2, 1)}, {"groups": 4, "stride": (1, 2)}]
)
def test_coreml_convolutions_are_evaluated_as_torch_does(how: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layer, x = torch.nn.Conv2d(4, 8, (3, 2), **how).double(), torch.randn(2, 4, 9, 8).double()
    top, left = layer.padding
    numbers = {"pad": (top, top, left, left), "strides": layer.stride, "dilations": layer.dilation}
    numbers |= {"groups": layer.groups, "weight": layer.weight.detach().numpy(), "bias": layer.bias.detach().numpy()}
    found = _mil._conv(operation(x, pad_type="custom", **numbers))
    np.testing.assert_allclose(found, layer(x).detach().numpy(), rtol=1e-12, atol=1e-12)


def test_coreml_pooling_is_evaluated_as_torch_does() -> None:
    x = torch.randn(2, 3, 9, 8, generator=torch.Generator().manual_seed(0)) - 5  # below zero: padding must not win
    numbers = {"kernel_sizes": (3, 2), "strides": (2, 1), "pad": (1, 1, 1, 1), "pad_type": "custom", "ceil_mode": False}
    expected = torch.nn.functional.max_pool2d(x, (3, 2), (2, 1), (1, 1))
    np.testing.assert_array_equal(_mil._max_pool(operation(x, **numbers)), expected.numpy())


def operation(x: torch.Tensor, **constants: Any) -> Any:
    """What the evaluation reads of a MIL operator."""
    values = {name: SimpleNamespace(val=value) for name, value in constants.items()}
    return SimpleNamespace(op_type="tested", x=SimpleNamespace(val=x.numpy(), rank=x.ndim), **values)


def golden(program: Path) -> tuple[list[dict[str, np.ndarray]], list[np.ndarray]]:
    """Golden inputs of each example with a batch axis, and its logits with one too."""
    found = json.loads((program / "golden.json").read_text())
    types = {one["name"]: one["dtype"] for one in found["signature"]["inputs"]}
    columns = found["inputs"]
    logits = [np.array([one], np.float32) for one in found["outputs"]["logits"]]
    return [{k: np.array([v[i]], types[k]) for k, v in columns.items()} for i in range(len(logits))], logits
