"""A model of three operators, made on the spot, whose logits numpy knows."""

from __future__ import annotations

from pathlib import Path

import numpy as np

TABLE_VC = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)


def logits_of(ids: list[int]) -> np.ndarray:
    """What the tiny model computes: the sum of its embeddings where the mask is 1."""
    return TABLE_VC[ids].sum(0)


def write_onnx(path: Path) -> None:
    """logits[1, C] = sum over S of mask[1, S] * table[ids[1, S]]; a pad id counts only if its mask is not 0."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    shape = ["batch", "length"]
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "input_ids"], ["embedded"], axis=0),
            helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["mask", "last"], ["mask_3d"]),
            helper.make_node("Mul", ["embedded", "mask_3d"], ["kept"]),
            helper.make_node("ReduceSum", ["kept", "one"], ["logits"], keepdims=0),
        ],
        "tiny",
        [helper.make_tensor_value_info(n, TensorProto.INT64, shape) for n in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [
            numpy_helper.from_array(TABLE_VC, "table"),
            numpy_helper.from_array(np.array([2]), "last"),
            numpy_helper.from_array(np.array([1]), "one"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    onnx.checker.check_model(model)


def row(*ids: int) -> dict[str, list[int]]:
    """One row of a job: real ids, all of them attended to."""
    return {"input_ids": list(ids), "attention_mask": [1] * len(ids)}
