"""Tokens per second of students that write text: our artefacts against llama.cpp's own files of the same student.

    python benchmarks/decode.py [--layers 12] [--width 768] [--vocabulary 16000] [--prompt 16] [--tokens 64]
                                [--context 512] [--rounds 9] [--schemes w4 w8] [--markdown FILE]

A random Qwen3 model (weights do not matter for speed) becomes a Program of each scheme, and an artefact of each
generator that this machine runs. The peer of ``w4`` is llama.cpp's Q4_0, of ``w8`` its Q8_0, quantized by it from
the float file. ``--context`` tokens fill the cache of those formats that fix it. All are opened in one process with one
thread; in each round every engine, in shuffled order, reads the prompt and then writes ``--tokens`` tokens, one at a
time. Seconds are the process's processor time: with one thread that is what a clock shows on an idle machine, and on a
busy one its neighbours do not count. The figure is the median of rounds, its interval that of the ratio to the peer
within a round (a bootstrap of the median, 95 %).

Prints one JSON document; the Markdown table goes to ``--markdown`` or stderr. The default takes five minutes.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from edgekd.errors import EdgekdError
from edgekd.generators import executorch, gguf, litert, onnx
from edgekd.quantize import scheme as schemes
from edgekd.quantize import tokens

PEERS = {"w4": "Q4_0", "w8": "Q8_0"}
WARMUP = 8  # tokens


def student(folder: Path, layers: int, width: int, vocabulary: int) -> None:
    """A random Qwen3 model with a tokenizer of bytes."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import Qwen3Config, Qwen3ForCausalLM

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {one: i for i, one in enumerate([*alphabet, "ab"])}
    made = Tokenizer(models.BPE(vocab=vocab, merges=[("a", "b")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=max(1, width // 192),
        head_dim=64,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        eos_token_id=0,
        bos_token_id=0,
        pad_token_id=0,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)


def programs(folder: Path, names: list[str]) -> dict[str, Path]:
    """A Program of each scheme (weights rounded, nothing chosen)."""
    made = {}
    for name in names:
        found = tokens.quantized(tokens.load_student(folder), schemes.generative(name), "absmax", [], None)
        made[name] = folder.parent / name
        tokens.save(*found, name, folder, made[name])
    return made


def peer(float_file: Path, out: Path, kind: str) -> Path:
    """llama.cpp's own file of this kind."""
    import llama_cpp

    out.mkdir()
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    options.nthread = 1
    if llama_cpp.llama_model_quantize(str(float_file).encode(), str(out / gguf.FILE).encode(), options):
        raise SystemExit(f"llama.cpp does not quantize to {kind}")
    return out


def timed(session: Any, prompt: int, count: int, vocabulary: int) -> tuple[float, float]:
    """Tokens per second of processor time, while reading the prompt, and while writing."""
    ids = np.random.default_rng(0).integers(1, vocabulary, prompt + count).tolist()
    session.reset()
    began = time.process_time()
    session.feed(ids[:prompt])
    read = time.process_time()
    for token in ids[prompt:]:
        session.feed([token])
    return prompt / (read - began), count / (time.process_time() - read)


def interval(values: list[float]) -> tuple[float, float]:
    """95 % of the medians of 2000 resamples."""
    chance = np.random.default_rng(0)
    medians = np.median(chance.choice(values, (2000, len(values))), 1)
    low, high = np.quantile(medians, (0.025, 0.975))
    return float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"layers": 12, "width": 768, "vocabulary": 16000, "prompt": 16, "tokens": 64, "context": 512}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--schemes", nargs="+", default=["w4", "w8"], choices=sorted(PEERS))
    parser.add_argument("--markdown", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        student(root / "student", asked.layers, asked.width, asked.vocabulary)
        made = programs(root / "student", [*asked.schemes, "fp32"])
        files: dict[str, tuple[str, Any, Path]] = {}
        plain = root / "float"
        plain.mkdir()
        gguf.export(made["fp32"], plain, max_length=asked.context)
        for scheme in asked.schemes:
            for module in (gguf, onnx, litert, executorch):
                target = module.__name__.rpartition(".")[2]
                out = root / f"{target}-{scheme}"
                out.mkdir()
                module.export(made[scheme], out, max_length=asked.context)
                files[f"edgekd {target} {scheme}"] = scheme, module, out
            kind = PEERS[scheme]
            files[f"llama.cpp {kind}"] = scheme, gguf, peer(plain / gguf.FILE, root / kind, kind)
        rows = measured(files, asked)
    table = markdown(rows)
    if asked.markdown:
        asked.markdown.write_text(table, encoding="utf-8")
    else:
        sys.stderr.write(table)
    sys.stdout.write(json.dumps({"asked": {**vars(asked), "markdown": None}, "rows": rows}, indent=2) + "\n")


def measured(files: dict[str, tuple[str, Any, Path]], asked: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per engine."""
    sessions = {name: module.open_session(out, threads=1) for name, (_, module, out) in files.items()}
    for session in sessions.values():
        timed(session, asked.prompt, WARMUP, asked.vocabulary)
    speeds: dict[str, list[tuple[float, float]]] = {name: [] for name in sessions}
    order, chance = list(sessions), random.Random(0)
    for _ in range(asked.rounds):
        chance.shuffle(order)
        for name in order:
            speeds[name].append(timed(sessions[name], asked.prompt, asked.tokens, asked.vocabulary))
    rows = []
    for name, (scheme, _, out) in files.items():
        against = speeds[f"llama.cpp {PEERS[scheme]}"]
        ratios = [mine / its for (_, mine), (_, its) in zip(speeds[name], against, strict=True)]
        rows.append(
            {
                "engine": name,
                "megabytes": sum(file.stat().st_size for file in out.rglob("*") if file.is_file()) / 1e6,
                "decode": median(one for _, one in speeds[name]),
                "prefill": median(one for one, _ in speeds[name]),
                "ratio": median(ratios),
                "interval": interval(ratios),
                "observed": sessions[name].observed,
            }
        )
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table."""
    lines = ["| engine | MB | decode tok/s | of llama.cpp | prefill tok/s |", "|---|---|---|---|---|"]
    for row in rows:
        low, high = row["interval"]
        figures = f"{row['decode']:.0f} | {row['ratio']:.2f} ({low:.2f} to {high:.2f}) | {row['prefill']:.0f}"
        lines.append(f"| {row['engine']} | {row['megabytes']:.1f} | {figures} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    try:
        main()
    except EdgekdError as error:
        raise SystemExit(str(error)) from None
