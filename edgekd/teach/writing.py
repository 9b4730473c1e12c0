"""What a model with an encoder writes from sources: answers to learn from, and texts to judge.

Learning the teacher's own translations instead of the data's is sequence-level distillation (Kim & Rush 2016,
arXiv:1606.07947): they are more regular than what people write, and a small model fits them better.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from edgekd.artifact import SCRATCH, Progress, no_progress, write_atomic
from edgekd.data.stage import read_split
from edgekd.teach.transformers import Encoded, inputs_of, length, length_batches

JUDGED = 200  # rows of a split whose written texts are compared with their targets
BATCH = 64
READ = ("input_ids", "attention_mask")


def beams(answers: str) -> int:
    """Beams of ``teach.answers``: ``greedy`` is 1, ``beam:4`` is 4."""
    return int(answers.partition(":")[2] or 1)


def write(
    model: Any,
    processor: Any,
    encoded: Sequence[Encoded],
    pad_token_id: int,
    max_length: int,
    beams: int = 1,
    size: int = BATCH,
) -> list[str]:
    """The texts that the model finds likeliest (by ``beams``) after each source, at most ``max_length`` tokens each.

    What its generation_config.json forces or forbids holds. Special tokens and outer blanks are left out.
    """
    found = [""] * len(encoded)
    for picked in length_batches([length(one) for one in encoded], size):
        inputs = inputs_of(model, [encoded[i] for i in picked], pad_token_id, READ)
        with torch.inference_mode():
            ids = model.generate(**inputs, num_beams=beams, do_sample=False, max_new_tokens=max_length)
        for i, text in zip(picked, processor.batch_decode(ids.cpu(), skip_special_tokens=True), strict=True):
            found[i] = text.strip()
    return found


def judged(
    task: Any, model: Any, processor: Any, rows: Sequence[Any], pad_token_id: int, max_length: int
) -> dict[str, float]:
    """Metrics of what the model writes greedily for some of these rows; none for a task that judges no texts."""
    if not hasattr(task, "written"):
        return {}
    training = model.training
    some = [rows[i] for i in sample(len(rows))]
    texts = write(model.eval(), processor, task.encode(processor, some, max_length), pad_token_id, max_length)
    model.train(training)
    found: dict[str, float] = task.written(texts, some)
    return found


def sample(total: int) -> list[int]:
    """At most ``JUDGED`` row numbers at equal distances, ascending."""
    return [i * total // JUDGED for i in range(JUDGED)] if total > JUDGED else list(range(total))


def rewritten(
    splits: Mapping[str, Sequence[Any]],
    model: Any,
    task: Any,
    processor: Any,
    pad_token_id: int,
    max_length: int,
    answers: str,
    size: int,
    out: Path,
    progress: Progress = no_progress,
) -> dict[str, list[Any]]:
    """These splits with what the model writes as targets; also written to ``out`` as the data stage writes rows.

    Batches of ``size`` have a fixed composition and are kept under ``out/scratch`` as they come: a kill loses one.
    """
    scratch, made, total = out / SCRATCH, {}, sum(map(len, splits.values()))
    scratch.mkdir(parents=True, exist_ok=True)
    done = 0
    for name, rows in splits.items():
        encoded = task.encode(processor, rows, max_length)
        texts: list[str] = [""] * len(rows)
        kept = scratch / f"{name}-answers.jsonl"
        known = _batches(kept)
        with kept.open("a", encoding="utf-8") as store:
            for at, picked in enumerate(length_batches([length(one) for one in encoded], size)):
                if at < len(known):
                    some = known[at]
                else:
                    asked = [encoded[i] for i in picked]
                    some = write(model, processor, asked, pad_token_id, max_length, beams(answers), size)
                    store.write(json.dumps(some) + "\n")  # escaped: no text holds a line end
                    store.flush()
                for i, text in zip(picked, some, strict=True):
                    texts[i] = text
                done += len(picked)
                progress(done, total, "answers")
        made[name] = [{**row, "target": text} for row, text in zip(rows, texts, strict=True)]
        write_atomic(out / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in made[name]))
    return made


def _batches(file: Path) -> list[list[str]]:
    """What an interrupted step wrote; a torn last line is cut off."""
    whole = file.read_text(encoding="utf-8").rpartition("\n")[0] if file.is_file() else ""
    if file.is_file():
        write_atomic(file, whole + "\n" if whole else "")
    return [json.loads(line) for line in whole.split("\n")] if whole else []


def taught(teach: Path, data: Path, name: str) -> list[Any]:
    """The rows of a split as the teacher taught them: with its own answers, where it wrote some."""
    return read_split(teach if (teach / f"{name}.jsonl").is_file() else data, name)
