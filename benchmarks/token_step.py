"""A training step of a language model's student: from the cache, and with the teacher, against plain and TRL's.

    python benchmarks/token_step.py TEACHER TEXT.txt [--layers 2] [--batch 16] [--length 128] [--rounds 15]

The student is the teacher's first and last layers. Plain is transformers' own loss on the same rows (next-token cross
entropy over all logits). Cached reads the top 64 tokens of each place as the trainer does, decoding them included;
online asks the teacher in every step; trl is the loss of TRL's GKD trainer with lmbda = 0 and beta = 0: the teacher
online, forward KL, nothing written (left out where TRL is missing). All end with AdamW. Interleaved, shuffled in each
round; processor time of one thread, medians, and ratios within a round. Prints one JSON document. Goals: cached at most
1.10 of plain, trl at least 1.5 of cached.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from edgekd.distill import student, tokens, trainer, writers
from edgekd.recipe import Student, Term
from edgekd.tasks import text_generation as task
from edgekd.teach.stage import knowledge

KIND = "top:64"


class Kept:
    """The cache of these rows, in memory as the trainer maps it."""

    def __init__(self, records: list[torch.Tensor]) -> None:
        self.records = records

    def __call__(self, rows: Any) -> dict[str, Any]:
        return {KIND: [self.records[row] for row in rows]}


def trls(net: Any, teacher: Any, processor: Any, encoded: Any) -> Any:
    """The loss of TRL's trainer on these rows."""
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    lines = writers.Lines(encoded, [[0]] * len(encoded), 0)
    batch = lines.collate([{"row": row} for row in range(len(encoded))])
    quiet = type("Quiet", (GKDTrainer,), {"_send_telemetry": lambda self: None})
    peer = quiet(
        net,
        teacher,
        GKDConfig(
            output_dir=tempfile.mkdtemp(),
            lmbda=0.0,
            beta=0.0,
            temperature=1.0,
            use_cpu=True,
            bf16=False,
            activation_checkpointing=False,
            report_to=[],
        ),
        data_collator=lines.collate,
        train_dataset=Dataset.from_dict({"row": range(len(encoded))}),
        processing_class=processor,
    )
    return lambda net: peer.compute_loss(net, batch)


def main() -> None:
    """Measure and print."""
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("teacher", type=Path)
    parse.add_argument("text", type=Path)
    for name, value in {"layers": 2, "batch": 16, "length": 128, "rounds": 15}.items():
        parse.add_argument(f"--{name}", type=int, default=value)
    asked = parse.parse_args()
    torch.set_num_threads(1)
    teacher = AutoModelForCausalLM.from_pretrained(asked.teacher, dtype=torch.float32).eval().requires_grad_(False)
    processor = task.processor(asked.teacher)
    pieces = task.expand(task.blocks(asked.text.read_text(encoding="utf-8"))[:40], processor, asked.length)
    encoded = [one for one in task.encode(processor, pieces, asked.length) if len(one["input_ids"]) == asked.length - 1]
    encoded = (encoded or task.encode(processor, pieces, asked.length))[: asked.batch]
    vocabulary, numbers = len(processor), list(range(len(encoded)))
    kept = Kept(knowledge(teacher, task, encoded, 0, [KIND], vocabulary)[KIND])
    online = tokens.OnlineTokens(teacher, task, encoded, 0, ["logits"])
    lessons = trainer.lessons_of([Term(loss="forward-kl", pool="output")], lambda term: [("logits", "logits")])

    def made() -> tuple[Any, Any]:
        net = student.make(Student(layers=asked.layers), teacher, AutoModelForCausalLM, 0).train()
        return net, torch.optim.AdamW(net.parameters(), 1e-4)

    def plain(net: Any) -> torch.Tensor:
        ids = torch.tensor([one["input_ids"] for one in encoded])
        loss: torch.Tensor = net(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids, use_cache=False).loss
        return loss

    def taught(net: Any, source: Any) -> torch.Tensor:
        rows = tokens.TokenRows(task, encoded, numbers, 0, source, kept=KIND, vocabulary=vocabulary)
        inputs = rows.collate(numbers)
        inputs.pop("rows")
        learner = tokens.TokenLearner(net, {})
        _, found = tokens.values(learner, rows, lessons, inputs, numbers, 0.1, 1.0)
        return torch.stack([weight * value for weight, value in found.values()]).sum()

    ways = {"plain": plain, "cached": lambda net: taught(net, kept), "online": lambda net: taught(net, online)}
    nets = {name: made() for name in ways}
    if find_spec("trl"):
        nets["trl"] = made()
        ways["trl"] = trls(nets["trl"][0], teacher, processor, encoded)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    chance = random.Random(0)
    for turn in range(asked.rounds + 2):  # two untimed
        for name in chance.sample(list(ways), len(ways)):
            net, optimizer = nets[name]
            began = time.process_time()
            ways[name](net).backward()
            optimizer.step()
            optimizer.zero_grad()
            if turn > 1:
                seconds[name].append(time.process_time() - began)
    ratios = {name: [a / b for a, b in zip(seconds[name], seconds["plain"], strict=True)] for name in ways}
    if "trl" in ways:
        ratios["trl to cached"] = [a / b for a, b in zip(seconds["trl"], seconds["cached"], strict=True)]
    told = {
        "tokens": sum(len(task.places(one)) for one in encoded),
        "vocabulary": vocabulary,
        "parameters": {"teacher": teacher.num_parameters(), "student": nets["plain"][0].num_parameters()},
        "milliseconds": {name: round(1e3 * median(some), 1) for name, some in seconds.items()},
        "ratios": {name: round(median(some), 3) for name, some in ratios.items()},
        "quartiles": {
            name: [round(sorted(some)[len(some) // 4], 3), round(sorted(some)[-1 - len(some) // 4], 3)]
            for name, some in ratios.items()
        },
    }
    json.dump(told, sys.stdout, indent=2)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
