"""Tiny language models in transformers folders, each with a byte-level BPE tokenizer trained on the spot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from _material import tiny_rows

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
END, TURN, EXTRA = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINES = [text for text, _ in tiny_rows(200, seed=3)]
HARD = [
    *LINES[:12],
    "",
    " leading and trailing ",
    "tabs\tand\nnew\r\nlines\n\n\nmany",
    "It's we'll I'D THEY'RE 'tis",
    "numbers 1 12 123 1234 12345678 3.14",
    "  many    spaces     here  ",
    "naïve café Ünïcödé ßtraße",
    "日本語のテキストと中文",
    "emoji 😀👍🏽 and ‍ joiners",
    "code: def f(x):\n    return x**2 # squared!!",
    "mixed123abc_456-def",
    "...!?;:,(){}[]<>",
    "Привет мир",
    "x" * 70,
]


def tokenizer(out: Path, pre: str = "qwen2", vocabulary: int = 400) -> int:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja; returns the number of tokens."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = {"qwen2": QWEN2, "llama-bpe": LLAMA3}
    if pre in split:
        isolated = pre_tokenizers.Split(Regex(split[pre]), behavior="isolated")
        made.pre_tokenizer = pre_tokenizers.Sequence([isolated, bytes_only])
    elif pre == "smollm":
        digits, regex = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.pre_tokenizer = pre_tokenizers.Sequence([digits, regex])
    else:
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        [*LINES, *HARD],
        trainers.BpeTrainer(
            vocab_size=vocabulary, special_tokens=[END, TURN, EXTRA], initial_alphabet=alphabet, show_progress=False
        ),
    )
    out.mkdir(parents=True, exist_ok=True)
    made.save(str(out / "tokenizer.json"))
    if pre == "llama-bpe":
        kept = json.loads((out / "tokenizer.json").read_text())
        kept["model"]["ignore_merges"] = True
        (out / "tokenizer.json").write_text(json.dumps(kept))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": EXTRA,
        "pad_token": END,
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 256,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config))
    (out / "chat_template.jinja").write_text(TEMPLATE)
    return int(made.get_vocab_size())


def model_of(kind: str, vocabulary: int, *, tied: bool = True, seed: int = 0, **sizes: Any) -> Any:
    """A random model: qwen3, qwen2 or llama, two layers of 64 with two key and value heads for four of queries.

    Its weights are large enough that logits differ by more than rounding.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    shape = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 256,
        "initializer_range": 0.15,
    }
    if kind == "qwen2":
        del shape["head_dim"]
    config = AutoConfig.for_model(kind, vocab_size=vocabulary, tie_word_embeddings=tied, **{**shape, **sizes})
    config.eos_token_id = 2
    config.bos_token_id = None
    config.pad_token_id = 0
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(("norm.weight", "bias")):
            parameter.data.normal_(1.0 if name.endswith("norm.weight") else 0.0, 0.1)
    return model


def student(out: Path, kind: str = "qwen3", *, pre: str = "qwen2", tied: bool = True, **sizes: Any) -> Path:
    """A transformers folder of ``model_of``, with ``tokenizer``."""
    model = model_of(kind, tokenizer(out, pre), tied=tied, **sizes)
    model.save_pretrained(out)
    return out


class Task:
    """What the quantize stage asks of a task that writes text."""

    INPUTS = ("input_ids", "attention_mask")
    GENERATES = True

    @staticmethod
    def processor(folder: Path) -> Any:
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))

    @staticmethod
    def encode(processor: Any, rows: Any, max_length: int) -> list[dict[str, Any]]:
        ids = [processor.encode(row["text"]).ids[:max_length] for row in rows]
        return [{"input_ids": one, "attention_mask": [1] * len(one)} for one in ids]


def program(folder: Path, scheme: str, out: Path, *, how: str = "mse") -> Path:
    """The generative Program of a student's folder."""
    from edgekd.artifact import write_json
    from edgekd.quantize import scheme as schemes
    from edgekd.quantize import tokens

    encoded = Task.encode(Task.processor(folder), [{"text": " ".join(LINES[i : i + 3])} for i in range(40)], 64)
    made = tokens.quantized(tokens.load_student(folder), schemes.generative(scheme), how, encoded, Task)
    out.mkdir(parents=True, exist_ok=True)
    tokens.save(*made, scheme, folder, out)
    write_json(out / tokens.GOLDEN, tokens.golden(made[0], tokens.prompts(encoded, 4), 16))
    return out


def says_what_it_is(facts: Any, artifact: Path, *, max_length: int) -> None:
    """What report, bench and verify read of an export's facts, whoever the generator is."""
    assert (artifact / facts["file"]).exists()
    assert facts["max_length"] == max_length <= facts["context"] and facts["architecture"]
