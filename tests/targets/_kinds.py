"""A tiny model for every kind of Program: what goes in, and what shape comes out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForTokenClassification,
    BertModel,
    LlamaConfig,
    LlamaModel,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from edgekd import artifact
from edgekd.quantize import program, qat, reference, smooth
from edgekd.quantize import scheme as schemes
from edgekd.tasks import image_classification, question_answering, sentence_similarity, token_classification

MAX_LENGTH, VOCABULARY, SIDE = 16, 300, 12
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "num_labels": 5,
}
WORDS = {**SIZES, "vocab_size": VOCABULARY, "max_position_embeddings": MAX_LENGTH}
LLAMA = {**WORDS, "num_attention_heads": 4, "num_key_value_heads": 2}
PATCHES = {**SIZES, "image_size": SIDE, "patch_size": 4}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic", "num_labels": 5}


@dataclass(frozen=True)
class Kind:
    """A model, its task, and the shape of an output for ``S`` tokens (batch left out)."""

    model: Callable[[], nn.Module]
    task: ModuleType
    shape: tuple[int | str, ...]
    schemes: tuple[str, ...] = tuple(schemes.SCHEMES)


KINDS = {
    "token": Kind(lambda: BertForTokenClassification(BertConfig(**WORDS)), token_classification, ("sequence", 5)),
    "question": Kind(
        lambda: BertForQuestionAnswering(BertConfig(**{**WORDS, "num_labels": 2})), question_answering, ("sequence", 2)
    ),
    "embedding": Kind(lambda: BertModel(BertConfig(**WORDS)), sentence_similarity, (32,)),
    "decoder": Kind(lambda: LlamaModel(LlamaConfig(**LLAMA)), sentence_similarity, (32,)),
    "image": Kind(lambda: ViTForImageClassification(ViTConfig(**PATCHES)), image_classification, (5,)),
    "convolution": Kind(
        lambda: ResNetForImageClassification(ResNetConfig(**RESNET)), image_classification, (5,), ("fp32",)
    ),
}


def rows(kind: str, count: int = 12, seed: int = 0) -> list[dict[str, Any]]:
    """Encoded rows of 3 to ``MAX_LENGTH`` tokens, or images."""
    random = np.random.default_rng(seed)
    made: list[dict[str, Any]] = []
    for _ in range(count):
        tokens = int(random.integers(3, MAX_LENGTH + 1))
        row: dict[str, Any] = {
            "input_ids": random.integers(2, VOCABULARY, tokens).tolist(),
            "attention_mask": [1] * tokens,
            "token_type_ids": [0] * (tokens // 2) + [1] * (tokens - tokens // 2),
            "pixel_values": random.normal(size=(3, SIDE, SIDE)).astype(np.float32),
        }
        made.append({name: row[name] for name in KINDS[kind].task.INPUTS})
    return made


def float_model(kind: str) -> nn.Module:
    """The seeded model, its weights drawn wide: a random initialisation is so flat that errors hide."""
    torch.manual_seed(0)
    model = KINDS[kind].model().eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and "embeddings" not in name:
            parameter.data.mul_(4.0)
    return model


def make(folder: Path, kind: str, scheme: str) -> Path:
    """The folder of a Program with its golden examples, and nothing else."""
    model, task = float_model(kind), KINDS[kind].task
    if scheme != "fp32":
        found = schemes.get(scheme)
        if found.smooth:
            smooth.fold(model, found, found.smooth, rows(kind, 24), task, MAX_LENGTH)
        model = reference.prepare(model, found)
        qat.calibrate(model, rows(kind, 24), 1.0, task.INPUTS)
        model = reference.convert(model)
    test = rows(kind, seed=1)
    exported = program.export(model, task, test[0], MAX_LENGTH)
    integers = program.integer_module(exported)
    folder.mkdir(parents=True)
    program.save(exported, folder)
    golden = program.golden(integers, task, [f"row {row}" for row in range(len(test))], test)
    artifact.write_json(folder / program.GOLDEN, {"signature": program.signature(exported, task), **golden})
    return folder
