"""`edgekd explain`: a cut Program computes what the whole one does on the way, and bisection names the layer."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from edgekd import explain
from edgekd.quantize import cut

sys.path.insert(0, str(Path(__file__).parent / "targets"))
import _programs


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return _programs.make(tmp_path_factory.mktemp("explain") / "program", "w8a8")


class Watch(torch.fx.Interpreter):
    """Runs a graph and keeps one value of it."""

    def __init__(self, module: torch.nn.Module, name: str) -> None:
        super().__init__(module)
        self.name = name

    def run_node(self, node: torch.fx.Node) -> Any:
        value = super().run_node(node)
        if node.name == self.name:
            self.seen = value
        return value


def test_a_cut_program_gives_what_the_whole_one_computes_there(program: Any, tmp_path: Path) -> None:
    names, rows = cut.layers(program.path), explain._golden(program.path)[:2]
    assert len(names) == _programs.LINEAR_LAYERS and names[-1] == "classifier"
    assert names[0] == "bert.encoder.layer.0.attention.self.query"
    whole = torch.export.load(program.file("program.pt2")).module()
    for index in (0, 3, 5, len(names) - 1):
        out = tmp_path / str(index)
        out.mkdir()
        found, described = cut.save(program.path, index, rows, out)
        linear = [node for node in whole.graph.nodes if node.target is cut.LINEAR][index]
        wanted = cut._end(linear).name

        for row, one in zip(rows, found, strict=True):
            watch = Watch(whole, wanted)
            with torch.inference_mode():
                watch.run(*map(torch.from_numpy, row.values()))
            step = np.unique(np.diff(np.unique(watch.seen.numpy().round(6)))).min()
            assert one.shape == watch.seen.shape
            assert (np.abs(one - watch.seen.numpy()) > 0.5 * step).mean() < 0.05  # rounding ties of the float run
        assert described["shape"][-1] == found[0].shape[-1] and len(described["shape"]) == found[0].ndim


def broken(at: str | None, names: list[str]) -> Any:
    """A target that runs the cut Program in PyTorch, and is wrong from one layer on."""

    def export(part: Path, out: Path, *, max_length: int) -> dict[str, Any]:
        (out / "where").write_text(str(part))
        (out / "program.pt2").write_bytes((part / "program.pt2").read_bytes())
        return {}

    def open_session(out: Path) -> Any:
        module = torch.export.load(out / "program.pt2").module()
        wrong = at in [cut._name(node) for node in cut._linears(module.graph)]

        def run(row: dict[str, np.ndarray]) -> np.ndarray:
            with torch.inference_mode():
                found: np.ndarray = module(*map(torch.from_numpy, row.values())).numpy()
            return found * 1.2 + 0.1 * np.ptp(found) if wrong else found

        return SimpleNamespace(run=run, close=lambda: None)

    return SimpleNamespace(export=export, open_session=open_session)


@pytest.mark.parametrize("at", [0, pytest.param(4, marks=pytest.mark.slow), None])
def test_bisection_names_the_first_layer_that_diverges(program: Any, at: int | None) -> None:
    names = cut.layers(program.path)
    name = None if at is None else names[at]
    said: list[str] = []
    found = explain._diverging(broken(name, names), program, 24, said.append)
    assert found.what == "first diverging layer" and len(said) <= 8
    if name is None:
        assert found.value.startswith("none") and not found.advice
    else:
        assert found.value.startswith(f"{name} ({names.index(name) + 1} of") and found.advice


def test_findings_put_advice_where_something_is_wrong() -> None:
    facts = {
        "runtime": {"runtime": "onnxruntime", "version": "1", "provider": "CPU", "caveats": ["slow here"]},
        "parity": {
            "identical": 0.5, "max_abs_delta": 3.0, "argmax_agreement": 0.9, "disagreements": 9,
            "largest_margin": 5.0, "median_margin": 5.5,
        },
        "agreement": {"program": 0.9},
        "faithful": {
            "numbers": {"numbers": 10, "missing": ["a.weight_q"]},
            "kernels": {"integer": 3, "wanted": 8, "how": "optimised graph", "accelerated": False,
                        "names": {"QGemm": 3, "DequantizeLinear": 12}},
        },
    }  # fmt: skip
    found = {finding.what: finding for finding in explain._verified(facts)}
    assert (
        found["numbers of the Program in the file"].advice
        and "1 missing" in found["numbers of the Program in the file"].value
    )
    assert "3 of 8" in found["integer layers run in integers"].value and found["integer layers run in integers"].advice
    assert "12 DequantizeLinear" in found["quantize and dequantize around layers"].value
    assert "--bisect" in found["answers that differ"].advice
    facts["parity"] |= {"largest_margin": 0.1}
    assert not {f.what: f for f in explain._verified(facts)}["answers that differ"].advice
