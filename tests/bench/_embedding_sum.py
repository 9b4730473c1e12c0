"""Models of a few operators, made on the spot, whose logits numpy knows."""

from __future__ import annotations

from pathlib import Path

import numpy as np

WORDS = [f"w{n}" for n in range(40)]
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


def write_small(path: Path, kind: str) -> None:
    """``tokens``: logits[1, S, C] = table[ids] * mask; ``image``: logits[1, C] = mean of each channel."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    if kind == "tokens":
        nodes = [
            helper.make_node("Gather", ["table", "input_ids"], ["embedded"], axis=0),
            helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["mask", "last"], ["mask_3d"]),
            helper.make_node("Mul", ["embedded", "mask_3d"], ["logits"]),
        ]
        inputs = [
            helper.make_tensor_value_info(n, TensorProto.INT64, ["batch", "length"])
            for n in ("input_ids", "attention_mask")
        ]
        output = ["batch", "length", 3]
        constants = [numpy_helper.from_array(TABLE_VC, "table"), numpy_helper.from_array(np.array([2]), "last")]
    else:
        nodes = [helper.make_node("ReduceMean", ["pixel_values"], ["logits"], axes=[2, 3], keepdims=0)]
        inputs = [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3, 4, 5])]
        output, constants = ["batch", 3], []
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, output)]
    graph = helper.make_graph(nodes, "small", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    onnx.checker.check_model(model)


def write_tokenizer(folder: Path, words: list[str] = WORDS) -> None:
    """One token a word; the ids follow the order of ``words``."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1} | {w: n + 2 for n, w in enumerate(words)}, "[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(folder / "tokenizer.json"))


def row(*ids: int) -> dict[str, list[int]]:
    """One row of a job: real ids, all of them attended to."""
    return {"input_ids": list(ids), "attention_mask": [1] * len(ids)}


BLOCK = {
    "schema": "edgekd/runner/1",
    "request": "block",
    "rows": [row(1, 2, 3), row(4, 5)],
    "warmup_runs": 3,
    "warmup_seconds": 0,
    "min_runs": 25,
    "min_seconds": 0,
    "max_seconds": 30,
}
