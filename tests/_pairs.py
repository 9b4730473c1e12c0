"""Tiny models with an encoder and a decoder in transformers folders, each with a byte-level BPE tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from _language import LINES

PAD, END, START = "<pad>", "</s>", 0
PAIRS = [{"source": line, "target": " ".join(reversed(line.split()))} for line in LINES]
KINDS = ("marian", "t5", "bart")


def tokenizer(out: Path, vocabulary: int = 400) -> int:
    """Write a tokenizer whose texts end with ``</s>``; returns the number of tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        LINES,
        trainers.BpeTrainer(
            vocab_size=vocabulary, special_tokens=[PAD, END], initial_alphabet=alphabet, show_progress=False
        ),
    )
    made.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, 1)])
    PreTrainedTokenizerFast(tokenizer_object=made, pad_token=PAD, eos_token=END).save_pretrained(out)
    return int(made.get_vocab_size())


def model_of(kind: str, vocabulary: int, *, layers: int = 2, seed: int = 0, **sizes: Any) -> Any:
    """A random model of width 64, whose weights are large enough that logits differ by more than rounding."""
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    torch.manual_seed(seed)
    ends = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": START}
    if kind == "t5":
        shape = {
            "d_model": 64,
            "d_kv": 16,
            "d_ff": 96,
            "num_layers": layers,
            "num_decoder_layers": layers,
            "num_heads": 4,
        }
    else:
        halves = {"layers": layers, "ffn_dim": 96, "attention_heads": 4}
        shape = {f"{half}_{name}": value for half in ("encoder", "decoder") for name, value in halves.items()}
        shape |= {"d_model": 64, "max_position_embeddings": 128, "init_std": 0.15, "bos_token_id": None}
        shape |= {"forced_eos_token_id": None}
    config = AutoConfig.for_model(kind, vocab_size=vocabulary, **ends, **{**shape, **sizes})
    model = AutoModelForSeq2SeqLM.from_config(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(("norm.weight", "bias")):
            parameter.data.normal_(1.0 if name.endswith("norm.weight") else 0.0, 0.1)
    if kind != "t5":
        model.final_logits_bias.normal_(0.0, 0.5)
    return model


def folder(out: Path, kind: str = "marian", **sizes: Any) -> Path:
    """A transformers folder of ``model_of``, with ``tokenizer``, as a distilled student's."""
    from edgekd.tasks import text2text_generation as task

    model = model_of(kind, tokenizer(out), **sizes)
    model.save_pretrained(out)
    task.settle(model.config, out)
    return out


def table(out: Path, rows: Any = PAIRS) -> Path:
    """A JSONL file of pairs."""
    out.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return out


def program(folder: Path, scheme: str, out: Path, *, how: str = "mse") -> Path:
    """The generative Program of a student's folder."""
    from edgekd.artifact import write_json
    from edgekd.quantize import scheme as schemes
    from edgekd.quantize import tokens
    from edgekd.tasks import text2text_generation as task

    encoded = task.encode(task.processor(folder), PAIRS[:40], 64)
    made = tokens.quantized(tokens.load_student(folder), schemes.generative(scheme), how, encoded, task)
    out.mkdir(parents=True, exist_ok=True)
    tokens.save(*made, scheme, folder, out)
    write_json(out / tokens.GOLDEN, tokens.golden(made[0], tokens.sources(encoded, 4), 16))
    return out
