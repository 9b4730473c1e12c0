"""A Program small enough to export in seconds: a seeded one-layer BERT, in any scheme, with all its files.

Its weights are drawn wide, so that the logits of different texts differ by whole units and a broken export
cannot hide in rounding.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification

from edgekd import artifact
from edgekd.quantize import program, qat, reference
from edgekd.quantize import scheme as schemes
from edgekd.tasks import text_classification as task

MAX_LENGTH = 16
LABELS = ["north", "east", "south", "west", "here"]
WORDS = [f"w{number}" for number in range(300)]


def texts(count: int, seed: int = 0) -> list[str]:
    """Sentences of 1 to ``MAX_LENGTH`` + 2 words, so that some are cut."""
    chance = random.Random(seed)
    return [" ".join(chance.choices(WORDS, k=chance.randint(1, MAX_LENGTH + 2))) for _ in range(count)]


def tokenizer() -> Tokenizer:
    """One token a word, between [CLS] and [SEP]."""
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return made


def encode(rows: list[str]) -> list[dict[str, list[int]]]:
    """Model inputs of each text, unpadded."""
    cutter = tokenizer()
    cutter.enable_truncation(MAX_LENGTH)
    return [{"input_ids": one.ids, "attention_mask": one.attention_mask} for one in cutter.encode_batch(rows)]


def model(seed: int = 0) -> BertForSequenceClassification:
    """The float model, the same for every call with one seed."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(WORDS) + 4,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=MAX_LENGTH,
        num_labels=len(LABELS),
        initializer_range=0.3,
    )
    return BertForSequenceClassification(config).eval()


def make_program(
    path: Path, scheme: str, *, test: list[str], float_model: torch.nn.Module | None = None
) -> artifact.Artifact:
    """Write the Program of one scheme as a finished quantize artefact, its reference over the texts of ``test``."""
    float_model = float_model or model()
    if scheme != "fp32":
        float_model = reference.prepare(float_model, schemes.get(scheme))
        qat.calibrate(float_model, encode(texts(64, seed=1)), 1.0)
        float_model = reference.convert(float_model)
    out = artifact.partial_of(path)
    out.mkdir(parents=True)
    encoded = encode(test)
    exported = program.export(float_model, task, encoded[0], MAX_LENGTH)
    program.save(exported, out)
    integers = program.integer_module(exported)
    save_file({"logits": torch.stack(program.run(integers, task, encoded))}, out / program.REFERENCE)
    golden = {"signature": program.signature(exported, task), **program.golden(integers, task, test, encoded)}
    artifact.write_json(out / program.GOLDEN, golden)
    tokenizer().save(str(out / "tokenizer.json"))
    artifact.write_json(out / "labels.json", LABELS)
    facts = {"scheme": scheme, "max_length": MAX_LENGTH}
    return artifact.seal(path, stage="quantize", label=scheme, key="tiny", facts=facts, parents={}, tools={})


def export_both(target: Any, folder: Path, test: list[str]) -> dict[str, tuple[Path, Path, dict[str, Any]]]:
    """Scheme -> (Program, artefact folder, export facts)."""
    found = {}
    for scheme in ("fp32", "w8a8"):
        made = make_program(folder / scheme / "program", scheme, test=test).path
        (folder / scheme / "artefact").mkdir()
        facts = target.export(made, folder / scheme / "artefact", max_length=MAX_LENGTH)
        found[scheme] = (made, folder / scheme / "artefact", facts)
    return found


def infer(target: Any, artefact: Path, encoded: list[dict[str, list[int]]]) -> np.ndarray:
    """The artefact's logits [N, C]."""
    session = target.open_session(artefact)
    try:
        return np.concatenate([session.run({k: np.array([v]) for k, v in one.items()}) for one in encoded])
    finally:
        session.close()
