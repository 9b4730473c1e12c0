"""Artefacts for bundles without a training: a tokenizer of a few hundred tokens and a graph of random numbers.

What such a model says is of no use, but it says something else to every text, so a library that answers alike counts,
cuts and pads alike.
"""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from edgekd.bundle._contract import App

SENTENCES = [
    "The old bridge over the river was closed in spring, and the ferry ran again.",
    "Na\u00efve caf\u00e9 owners in \u00c5ngstr\u00f6m paid 12,345.67 for two tables (on Friday).",
    unicodedata.normalize("NFD", "Vi\u1ec7t Nam \u00e9t\u00e9 \u00dcbergr\u00f6\u00dfe"),
    "\u4e2d\u6587\u5206\u8bcd abc\u4e2d \U00020000\u3042 \ud55c\uad6d\uc5b4",
    "\U0001f600 two people at 7pm \U0001f469\u200d\U0001f467 under Smith \u2764\ufe0f",
    "a\x00b e\x85f g\u200bh i\u2028j \u00a0n\u3000o",
    "STRASSE Stra\u00dfe \u0130stanbul \u03a3\u038f\u03a6\u039f\u03a3 \u01c5",
    "x" * 120 + " " + "word " * 40,
    "[CLS] a [SEP]b[MASK]c",
]
TEXTS = ["", " ", "?", *SENTENCES]
QUESTIONS = [
    f"{question}\n{context}"
    for question in ("", "Who paid for the tables?", "\U0001f600  what\tis \u03a3\u038f\u03a6\u039f\u03a3 " * 4)
    for context in ("", *SENTENCES[:6], " ".join(SENTENCES[:5]))
]
LABELS = {
    "text-classification": ["fruit", "metal", "river"],
    "token-classification": ["O", "B-thing", "I-thing", "B-place", "I-place"],
    "question-answering": [],
    "sentence-similarity": [],
}
WIDTH = {task: len(labels) or 2 for task, labels in LABELS.items()} | {"sentence-similarity": 6}
EXTRA = {"may_be_none": True, "longest_answer": 6, "overlap": 3}
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def tokenizer() -> Tokenizer:
    """BERT's: the sentences' words in part, and all their characters."""
    words = [word for text in SENTENCES for word in text.lower().split()][::2]
    characters = sorted(set(unicodedata.normalize("NFD", "".join(SENTENCES).lower())))
    tokens = [*SPECIAL, *words, *characters, *(f"##{one}" for one in characters)]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=50))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    made.add_special_tokens(list(SPECIAL))
    return made


def write_artifact(folder: Path, task: str, seed: int = 0) -> App:
    """The folder of an ONNX artefact, and what a bundle says about it."""
    folder.mkdir(parents=True)
    made = tokenizer()
    made.save(str(folder / "tokenizer.json"))
    pair = task == "question-answering"
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if pair else [])]
    onnx.save(_graph(task, made.get_vocab_size(), names, seed), folder / "model.onnx")
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    made.enable_truncation(24)
    texts = QUESTIONS[3:9] if pair else TEXTS[3:9]
    inputs: dict[str, list[Any]] = {name: [] for name in names}
    logits = []
    for text in texts:
        found = made.encode(*text.split("\n", 1)) if pair else made.encode(text)
        columns = {"input_ids": found.ids, "attention_mask": found.attention_mask, "token_type_ids": found.type_ids}
        for name in names:
            inputs[name].append(columns[name])
        logits.append(session.run(None, {name: np.array([columns[name]]) for name in names})[0][0].tolist())
    golden = {"texts": texts, "inputs": inputs, "outputs": {"logits": logits}}
    (folder / "golden.json").write_text(json.dumps(golden))
    (folder / "labels.json").write_text(json.dumps(LABELS[task]))
    return App(
        name="random",
        task=task,
        target="onnx",
        scheme="fp32",
        artifact=folder,
        export={
            "file": "model.onnx",
            "inputs": [{"name": name, "dtype": "int64"} for name in names],
            "max_length": 24,
        },
        labels=tuple(LABELS[task]),
        pad_id=0,
        bound=1e-4,
        verdict={"verdict": "pass", "reasons": []},
        measured={},
        provenance={"edgekd": "0.0.0", "teacher": "none", "license": None, "tools": {}},
        extra=EXTRA if pair else {},
    )


def _graph(task: str, vocabulary: int, names: list[str], seed: int) -> onnx.ModelProto:
    """Each token's row of a table, and the mean of all that are not masked, through a matrix."""
    chance = np.random.default_rng(seed)
    per_token = task in ("token-classification", "question-answering")
    tables = {
        "words": chance.normal(size=(vocabulary, 8)),
        "types": chance.normal(size=(2, 8)),
        "matrix": 2 * chance.normal(size=(8, WIDTH[task])),
    }
    weights = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in tables.items()]
    weights += [numpy_helper.from_array(np.array([axis]), name) for name, axis in (("tokens", 1), ("last", 2))]
    nodes = [
        helper.make_node("Gather", ["words", "input_ids"], ["embedded"]),
        helper.make_node("Gather", ["types", names[-1]], ["typed"]),
        helper.make_node("Add", ["embedded", "typed"], ["summed"]),
        helper.make_node("Cast", ["attention_mask"], ["kept"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["kept", "last"], ["weight"]),
        helper.make_node("Mul", ["summed", "weight"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "tokens"], ["sum"], keepdims=int(per_token)),
        helper.make_node("ReduceSum", ["weight", "tokens"], ["count"], keepdims=int(per_token)),
        helper.make_node("Div", ["sum", "count"], ["mean"]),
        *([helper.make_node("Add", ["masked", "mean"], ["read"])] if per_token else []),
        helper.make_node("MatMul", ["read" if per_token else "mean", "matrix"], ["logits"]),
    ]
    shape = ["batch", "tokens", WIDTH[task]] if per_token else ["batch", WIDTH[task]]
    graph = helper.make_graph(
        nodes,
        "random",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"]) for name in names],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
