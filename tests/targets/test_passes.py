"""Every respelling of the graph on every type of model: the module gives what it gave, before any converter sees it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import _kinds
import _programs
import numpy as np
import pytest
import torch

from edgekd.targets import executorch, litert, openvino
from edgekd.targets._contract import load_program, read_signature, specialise

TEXTS = [kind for kind in _kinds.KINDS if kind not in ("image", "convolution")]
SCHEMES = ["w8a8", "w8a8-dynamic", "w8", "w4", "fp16"]
CASES = [
    pytest.param(model, scheme, marks=[] if scheme == "w8a8" and model in ("decoder", "image") else pytest.mark.slow)
    for model in (*TEXTS, "image", *_programs.FAMILIES)
    for scheme in SCHEMES
]
Examples = list[tuple[torch.Tensor, ...]]


@pytest.fixture
def made(make_program: Callable[..., object], tmp_path: Path) -> Callable[[str, str], tuple[Path, int, Examples]]:
    """``made(model, scheme)`` -> Program, its longest text, and examples of one length."""

    def make(model: str, scheme: str) -> tuple[Path, int, Examples]:
        if model in _programs.FAMILIES:
            path, length = make_program(scheme, model).path, _programs.MAX_LENGTH  # type: ignore[attr-defined]
        else:
            path, length = _kinds.make(tmp_path / "program", model, scheme), _kinds.MAX_LENGTH
        random, examples = np.random.default_rng(3), []
        for _ in range(3):
            values = {
                "input_ids": random.integers(2, 300, (1, length)),
                "attention_mask": np.arange(length)[None] < random.integers(3, length),
                "token_type_ids": np.arange(length)[None] > length // 2,
                "pixel_values": random.normal(size=(1, 3, _kinds.SIDE, _kinds.SIDE)),
            }
            names = [(one["name"], getattr(torch, one["dtype"])) for one in read_signature(path)[0]]
            examples.append(tuple(torch.tensor(values[name]).to(dtype) for name, dtype in names))
        return path, length, examples

    return make


def check(before: list[torch.Tensor], after: list[torch.Tensor]) -> None:
    """Equal but for sums in another order."""
    reach = torch.cat([one.flatten() for one in before]).max() - torch.cat([one.flatten() for one in before]).min()
    assert reach > 0
    for one, other in zip(before, after, strict=True):
        assert one.shape == other.shape and (one - other).abs().max() <= 2e-6 * reach


@pytest.mark.parametrize(("model", "scheme"), CASES)
def test_litert(made: Callable[[str, str], tuple[Path, int, Examples]], model: str, scheme: str) -> None:
    path, length, examples = made(model, scheme)
    module = specialise(load_program(path), read_signature(path)[0], length).module()
    with torch.no_grad():
        before = [module(*one) for one in examples]
        passes, lifted = litert.legalise(module)
        if scheme == "w8a8-dynamic":  # what is left to the kernels: the rounding of their inputs
            assert lifted and passes == ["lift_weights"]
            return
        check(before, [module(*one) for one in examples])
    assert passes


RESPELLED: dict[ModuleType, Callable[[Path, int], torch.export.ExportedProgram]] = {
    executorch: lambda path, length: executorch.legalise(load_program(path), read_signature(path)[0], length),
    openvino: lambda path, length: openvino.legalise(load_program(path))[0],
}


@pytest.mark.parametrize("target", RESPELLED, ids=lambda target: target.__name__.rpartition(".")[2])
@pytest.mark.parametrize(("model", "scheme"), CASES)
def test_executorch_and_openvino(
    made: Callable[[str, str], tuple[Path, int, Examples]], model: str, scheme: str, target: ModuleType
) -> None:
    path, length, examples = made(model, scheme)
    if scheme not in target.accepts:
        pytest.skip(target.refuses[scheme])
    module, respelled = load_program(path).module(), RESPELLED[target](path, length).module()
    with torch.no_grad():
        check([module(*one) for one in examples], [respelled(*one) for one in examples])
