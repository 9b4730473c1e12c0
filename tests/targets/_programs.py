"""Tiny Programs, made on the spot: two layers, seeded, in the canonical form that the quantize stage writes.

With ``exact`` every scale is a power of two. Then every product and sum of a quantized layer is a float32 number,
whatever the order, so a respelled graph must give the same bits.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from edgekd import artifact
from edgekd.quantize import program, qat, reference
from edgekd.quantize import scheme as schemes
from edgekd.tasks import text_classification as task

VOCABULARY, LABELS, MAX_LENGTH = 2000, 5, 24
LAYERS = 2
LINEAR_LAYERS = LAYERS * 6 + 2  # query, key, value, attention output, two feed-forward; pooler and head
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 40,
    "num_labels": LABELS,
    "pad_token_id": 0,
}
FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "bert": lambda: BertForSequenceClassification(BertConfig(**SIZES)),
    "roberta": lambda: RobertaForSequenceClassification(RobertaConfig(**SIZES)),
    "distilbert": lambda: DistilBertForSequenceClassification(
        DistilBertConfig(
            vocab_size=VOCABULARY,
            dim=64,
            n_layers=LAYERS,
            n_heads=2,
            hidden_dim=128,
            max_position_embeddings=40,
            num_labels=LABELS,
        )
    ),
}


def rows(count: int = 24, seed: int = 0) -> list[dict[str, list[int]]]:
    """Token ids of random texts of 3 to 20 tokens."""
    random = np.random.default_rng(seed)
    texts = [random.integers(2, VOCABULARY, size=random.integers(3, 21)).tolist() for _ in range(count)]
    return [{"input_ids": text, "attention_mask": [1] * len(text)} for text in texts]


def make(folder: Path, scheme: str, family: str = "bert", exact: bool = False) -> artifact.Artifact:
    """A finished Program in ``folder``."""
    torch.manual_seed(0)
    model = FAMILIES[family]().eval()
    for parameter in model.parameters():  # a random initialisation is too flat to quantize interestingly
        noise = 0.1 * torch.randn_like(parameter)
        parameter.data.mul_(4.0) if parameter.ndim > 1 else parameter.data.add_(noise)
    if scheme != "fp32":
        model = reference.prepare(model, schemes.get(scheme))
        qat.calibrate(model, rows(), 1.0)
        model = reference.convert(model)
        if exact:
            _round_scales(model)
    test = rows(12, seed=1)
    exported = program.export(model, task, test[0], MAX_LENGTH)
    part = artifact.partial_of(folder)
    part.mkdir(parents=True)
    program.save(exported, part)
    golden = program.golden(program.integer_module(exported), task, ["text"] * 12, test)
    artifact.write_json(part / program.GOLDEN, {"signature": program.signature(exported, task), **golden})
    artifact.write_json(part / "labels.json", [f"label {i}" for i in range(LABELS)])
    artifact.write_json(part / "tokenizer.json", {"version": "1.0"})  # opaque to targets
    artifact.write_json(part / "tokenizer_config.json", {})
    facts = {"scheme": scheme, "max_length": MAX_LENGTH}
    return artifact.seal(folder, stage="quantize", label=scheme, key="", facts=facts, parents={}, tools={})


def _round_scales(model: nn.Module) -> None:
    def power(scale: float) -> float:
        return 2.0 ** math.ceil(math.log2(scale))

    for layer in model.modules():
        if isinstance(layer, reference.ReferenceLinear):
            layer.in_scale = power(layer.in_scale)
            if layer.kind.output:
                layer.out_scale = power(layer.out_scale)
            layer.w_scale.copy_(torch.tensor([power(scale) for scale in layer.w_scale.tolist()]))
            grid_O = layer.in_scale * layer.w_scale
            layer.bias.copy_((layer.bias / grid_O).round() * grid_O)


def weights(made: artifact.Artifact) -> dict[str, dict[str, np.ndarray]]:
    """int8 weights of a Program by module name, each with its scales and float bias (embeddings have no bias)."""
    state = torch.export.load(made.file("program.pt2")).state_dict
    names = [name.removesuffix(".weight_q") for name in state if name.endswith(".weight_q")]
    parts = ("weight_q", "w_scale", "bias")
    return {
        name: {part: state[f"{name}.{part}"].numpy() for part in parts if f"{name}.{part}" in state} for name in names
    }


def activation_scales(made: artifact.Artifact) -> set[tuple[np.float32, int]]:
    """(scale, int8 zero point) of every activation quantizer of a Program."""
    graph = torch.export.load(made.file("program.pt2")).graph
    quantize = torch.ops.quantized_decomposed.quantize_per_tensor.default
    return {(np.float32(node.args[1]), int(node.args[2])) for node in graph.nodes if node.target is quantize}


def golden_of(made: artifact.Artifact) -> tuple[list[dict[str, np.ndarray]], np.ndarray]:
    """The golden inputs, int64 [1, S] each, and logits [G, C]."""
    golden = json.loads(made.file("golden.json").read_text())
    columns = golden["inputs"]
    inputs = [{name: np.array([columns[name][i]], np.int64) for name in columns} for i in range(len(golden["texts"]))]
    return inputs, np.array(golden["outputs"]["logits"], np.float32)


def machine_words(tmp_path: Path) -> list[bytes]:
    """What must not stand in a file that leaves this machine."""
    places = {str(Path.home()), str(Path.cwd()), str(tmp_path), str(Path(torch.__file__).parents[1])}
    return [place.encode() for place in sorted(places)] + [b"site-packages", b".py\x00", b"Traceback"]
