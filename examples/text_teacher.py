"""A small language model to distil from: trained from nothing on a text file, in minutes.

    python examples/text_teacher.py FILE OUT [--steps 1500] [--vocabulary 2048] [--layers 8] [--width 256]

The text is cut into train, validation and test (90, 5 and 5 per cent, one after another), written to ``OUT/data/``. A
byte-level BPE tokenizer and a Qwen3 model learn from train; the weights with the best validation loss are kept. It
teaches ``examples/text-generation.yaml``; a real teacher is any causal language model of a folder or the hub.
"""

from __future__ import annotations

import argparse
import copy
import math
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

END = "<|endoftext|>"


def tokenizer(text: str, vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE, as GPT-2's."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    learns = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(text.splitlines(keepends=True), learns)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=END, pad_token=END)


def model(vocabulary: int, layers: int, width: int) -> Qwen3ForCausalLM:
    """A Qwen3 model with tied embeddings and heads of 32."""
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=layers,
            num_attention_heads=width // 32,
            num_key_value_heads=max(1, width // 64),
            head_dim=32,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            eos_token_id=0,
            pad_token_id=0,
            bos_token_id=None,
        )
    )


@torch.no_grad()
def loss_of(net: torch.nn.Module, ids: torch.Tensor, size: int) -> float:
    """Nats per token over the whole text, in windows."""
    net.eval()
    rows = ids[: len(ids) // size * size].reshape(-1, size)
    losses = [float(net(input_ids=some, labels=some).loss) * len(some) for some in rows.split(32)]
    net.train()
    return sum(losses) / len(rows)


def main() -> None:
    """Train, keep the best, write the folder."""
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("file", type=Path)
    parse.add_argument("out", type=Path)
    for name, value in {
        "steps": 1500,
        "vocabulary": 2048,
        "layers": 8,
        "width": 256,
        "batch": 32,
        "window": 128,
    }.items():
        parse.add_argument(f"--{name}", type=int, default=value)
    parse.add_argument("--rate", type=float, default=2e-3)
    asked = parse.parse_args()
    text = asked.file.read_text(encoding="utf-8")
    cuts = [text.index("\n", int(len(text) * share)) + 1 for share in (0.9, 0.95)]
    parts = {"train": text[: cuts[0]], "validation": text[cuts[0] : cuts[1]], "test": text[cuts[1] :]}
    (asked.out / "data").mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        (asked.out / "data" / f"{name}.txt").write_text(part, encoding="utf-8")

    torch.manual_seed(0)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    words = tokenizer(parts["train"], asked.vocabulary)
    words.save_pretrained(asked.out)
    ids = {name: torch.tensor(words(part)["input_ids"], device=device) for name, part in parts.items()}
    net = model(asked.vocabulary, asked.layers, asked.width).to(device)
    decays = [p for p in net.parameters() if p.dim() > 1]
    others = [p for p in net.parameters() if p.dim() < 2]
    groups = [{"params": decays, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, asked.rate, betas=(0.9, 0.95))
    warm = max(1, asked.steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda i: min((i + 1) / warm, 0.05 + 0.475 * (1 + math.cos(math.pi * min(1.0, i / asked.steps)))),
    )
    best, kept = math.inf, None
    for step in range(1, asked.steps + 1):
        starts = torch.randint(0, len(ids["train"]) - asked.window, (asked.batch,))
        rows = torch.stack([ids["train"][start : start + asked.window] for start in starts.tolist()])
        loss = net(input_ids=rows, labels=rows).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 0 or step == asked.steps:
            found = loss_of(net, ids["validation"], asked.window)
            print(f"step {step}: train {float(loss):.3f}, validation {found:.3f}", flush=True)  # noqa: T201
            if found < best:
                best, kept = found, copy.deepcopy(net.state_dict())
    assert kept is not None
    net.load_state_dict(kept)
    net.cpu().save_pretrained(asked.out)
    perplexity = math.exp(loss_of(net.to(device), ids["test"], asked.window))
    parameters = sum(p.numel() for p in net.parameters())
    print(f"{parameters:,} parameters, validation {best:.3f}, test perplexity {perplexity:.2f}")  # noqa: T201


if __name__ == "__main__":
    main()
