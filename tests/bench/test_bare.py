"""Model files that edgekd did not make: what their inputs are is asked of the runtime, what they are fed is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgekd import measurement, recipe
from edgekd.bench import stage
from edgekd.errors import BadInput

SHORT = ("bench.min_runs=20", "bench.min_seconds=0", "bench.warmup_seconds=0", "bench.blocks=2", "bench.cold_loads=2")


def settings(*sets: str) -> Any:
    return recipe.parse("name: x\n", overrides=[*SHORT, *sets]).bench


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """``y = x w`` with a dynamic batch, float inputs of rank 3: nothing that edgekd exports looks like it."""
    weight = helper.make_tensor("w", TensorProto.FLOAT, [4, 2], np.arange(8, dtype=np.float32).tolist())
    shape = ["batch", "steps", 4]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [weight],
    )
    path = tmp_path / "theirs.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def test_a_model_with_dynamic_axes_is_measured_by_shape(model: Path, tmp_path: Path) -> None:
    facts = stage.bare(model, ["local"], settings(), tmp_path / "out", shapes=["x=1x5x4"])
    [row] = facts["summaries"]
    assert (row["target"], row["scheme"], row["error"], row["runs"]) == ("onnx", "theirs", None, 20)
    assert "synthetic_inputs" in row["flags"]
    [one] = measurement.read(tmp_path / "out" / "measurements.jsonl")
    assert one.requested["synthetic"] and len(one.load_ns) == 2 and one.memory["peak_above_bytes"] > 0


def test_sample_inputs_give_the_shape_and_are_no_zeros(model: Path, tmp_path: Path) -> None:
    (tmp_path / "in.json").write_text(json.dumps([{"x": [[[0.5] * 4] * 3]}]))
    facts = stage.bare(model, ["local"], settings(), tmp_path / "out", samples=tmp_path / "in.json")
    [row] = facts["summaries"]
    assert row["error"] is None and "synthetic_inputs" not in row["flags"]


@pytest.mark.parametrize(
    ("shapes", "told"),
    [
        ([], r"'x' is \?x\?x4: some of its axes are dynamic.*--shape x=1x1x4"),
        (["x=1x5x3"], r"'x' is \[-1, -1, 4\], not \[1, 5, 3\]"),
        (["x=5"], "not"),
        (["z=1"], "no input 'z'.*It has: x"),
        (["x=1xq"], "no shape"),
    ],
)
def test_shapes_that_cannot_be_are_told(model: Path, tmp_path: Path, shapes: list[str], told: str) -> None:
    with pytest.raises(BadInput, match=told):
        stage.bare(model, ["local"], settings(), tmp_path / "out", shapes=shapes)


def test_files_that_are_no_models_are_told(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no model file that can be run.*Known: \.onnx"):
        stage.bare(tmp_path / "x.pt", ["local"], settings(), tmp_path / "out")
    with pytest.raises(BadInput, match="no such model file"):
        stage.bare(tmp_path / "x.onnx", ["local"], settings(), tmp_path / "out")
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    facts = stage.bare(tmp_path / "bad.onnx", ["local"], settings(), tmp_path / "out")
    assert "the runner failed" in facts["summaries"][0]["error"]


def test_the_command_line(edgekd, model: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    sets = [text for one in SHORT for text in ("--set", one)]
    table = tmp_path / "table.csv"
    said = edgekd(
        "bench", str(model), "--device", "local", "--shape", "x=1x5x4", "--run-dir", str(tmp_path / "run"),
        "--write", f"csv={table}", "--json", *sets,
    )  # fmt: skip
    assert said.code == 0, said.err
    document = json.loads(said.out)
    assert document["summaries"][0]["p50_ms"] > 0
    assert table.read_text().startswith("target,scheme,device")
    old, new = tmp_path / "run", tmp_path / "base.json"
    new.write_text(edgekd("bench", "baseline", str(old)).out)
    same = edgekd("bench", "compare", str(new), str(old), "--json")
    assert same.code == 0 and json.loads(same.out)["rows"][0]["verdict"] == "cannot tell"
    assert edgekd("bench", "compare", str(new), str(tmp_path / "nothing")).code == 2
    assert edgekd("bench", str(model), "--write", "xml=x").code == 2
