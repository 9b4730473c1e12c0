"""A small translation model to distil from: trained from nothing on pairs of sentences.

    python examples/translation_teacher.py DATA OUT [--source en] [--target de] [--steps 2000] [--layers 2]

``DATA`` holds train.jsonl and validation.jsonl, a pair a line. A byte-level BPE tokenizer for both languages and a
Marian model learn from train; the weights with the best validation loss are kept. It teaches
``examples/translation.yaml``; a real teacher is any BART, Marian or T5 with a tokenizer.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import MarianConfig, MarianMTModel, PreTrainedTokenizerFast

PAD, END = "<pad>", "</s>"
LONGEST, BUCKET = 64, 50
Pair = tuple[list[int], list[int]]


def tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE; every text ends with ``</s>``."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    made.decoder = decoders.ByteLevel()
    learns = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts, learns)
    made.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, 1)])
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token=PAD, eos_token=END)


def model(vocabulary: int, layers: int, width: int, dropout: float) -> MarianMTModel:
    """One table for both languages and the head; heads of 32."""
    halves = {"layers": layers, "ffn_dim": 4 * width, "attention_heads": width // 32}
    return MarianMTModel(
        MarianConfig(
            vocab_size=vocabulary,
            d_model=width,
            **{f"{half}_{name}": value for half in ("encoder", "decoder") for name, value in halves.items()},
            max_position_embeddings=256,
            scale_embedding=True,
            activation_function="relu",
            dropout=dropout,
            init_std=width**-0.5,
            pad_token_id=0,
            eos_token_id=1,
            forced_eos_token_id=None,
            decoder_start_token_id=0,
        )
    )


def batches(pairs: list[Pair], size: int, chance: random.Random | None = None) -> list[list[Pair]]:
    """Pairs of like lengths together; in an order of their own where ``chance`` is given."""
    order = list(pairs)
    if chance:
        chance.shuffle(order)
    made = []
    for start in range(0, len(order), size * BUCKET):
        some = sorted(order[start : start + size * BUCKET], key=lambda pair: len(pair[1]))
        made += [some[i : i + size] for i in range(0, len(some), size)]
    if chance:
        chance.shuffle(made)
    return made


def loss_of(net: MarianMTModel, batch: list[Pair], device: torch.device, smoothing: float = 0.0) -> torch.Tensor:
    """Sum of nats over the target's tokens."""

    def padded(rows: list[list[int]], fill: int) -> torch.Tensor:
        longest = max(map(len, rows))
        return torch.tensor([row + [fill] * (longest - len(row)) for row in rows], device=device)

    ids, labels = padded([a for a, _ in batch], 0), padded([b for _, b in batch], -100)
    begins = padded([[0, *b[:-1]] for _, b in batch], 0)
    logits = net(input_ids=ids, attention_mask=(ids != 0).long(), decoder_input_ids=begins, use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum", label_smoothing=smoothing)


@torch.no_grad()
def validated(net: MarianMTModel, pairs: list[Pair], device: torch.device) -> float:
    """Nats per token."""
    net.eval()
    nats = sum(float(loss_of(net, batch, device)) for batch in batches(pairs, 256))
    net.train()
    return nats / sum(len(target) for _, target in pairs)


def main() -> None:
    """Train, keep the best, write the folder."""
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("data", type=Path)
    parse.add_argument("out", type=Path)
    parse.add_argument("--source", default="en")
    parse.add_argument("--target", default="de")
    for name, value in {
        "steps": 2000,
        "vocabulary": 3000,
        "layers": 2,
        "width": 128,
        "batch": 48,
        "every": 250,
    }.items():
        parse.add_argument(f"--{name}", type=int, default=value)
    parse.add_argument("--rate", type=float, default=2e-3)
    parse.add_argument("--dropout", type=float, default=0.1)
    asked = parse.parse_args()
    torch.manual_seed(0)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    rows = {
        name: [json.loads(line) for line in (asked.data / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        for name in ("train", "validation")
    }
    words = tokenizer([row[side] for row in rows["train"] for side in (asked.source, asked.target)], asked.vocabulary)
    words.save_pretrained(asked.out)
    ids = {
        (name, side): words([row[side] for row in some], truncation=True, max_length=LONGEST)["input_ids"]
        for name, some in rows.items()
        for side in (asked.source, asked.target)
    }
    pairs = {name: list(zip(ids[name, asked.source], ids[name, asked.target], strict=True)) for name in rows}
    net = model(len(words), asked.layers, asked.width, asked.dropout).to(device).train()
    optimizer = torch.optim.AdamW(net.parameters(), asked.rate, betas=(0.9, 0.98), weight_decay=0.01)
    warm = max(1, asked.steps // 12)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda i: min((i + 1) / warm, 0.02 + 0.49 * (1 + math.cos(math.pi * min(1.0, i / asked.steps)))),
    )
    best, kept, step, chance = math.inf, None, 0, random.Random(0)
    while step < asked.steps:
        for batch in batches(pairs["train"], asked.batch, chance):
            loss = loss_of(net, batch, device, smoothing=0.1) / sum(len(target) for _, target in batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            step += 1
            if step % asked.every == 0 or step == asked.steps:
                found = validated(net, pairs["validation"], device)
                print(f"step {step}: train {float(loss):.3f}, validation {found:.3f}", flush=True)  # noqa: T201
                if found < best:
                    best, kept = found, copy.deepcopy(net.state_dict())
            if step == asked.steps:
                break
    assert kept is not None
    net.load_state_dict(kept)
    net.cpu().save_pretrained(asked.out)
    count = sum(p.numel() for p in net.parameters())
    print(f"{count:,} parameters, validation perplexity {math.exp(best):.2f}")  # noqa: T201


if __name__ == "__main__":
    main()
