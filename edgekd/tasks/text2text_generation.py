"""Text to text: translation, summarisation; an encoder reads the source, a decoder writes the target.

An example is ``{"source", "target"}`` (unlabelled: the source alone; ``teach.answers`` lets the teacher write the
target). A prefix that a model wants (T5's "translate English to German: ") is a part of the source. What is learned
is the target with the token that ends it: the tokenizer's own, or added where its tokenizer.json has no such rule.

Outputs are those of text generation: a matrix [T, 3] over the target's tokens. ``written`` judges what a model writes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekd.errors import BadInput
from edgekd.tasks import _text, text_generation
from edgekd.tasks._contract import Encoded, Example

AUTO_TASK = "text2text-generation"
HEADLINE = text_generation.HEADLINE
COLUMNS = ("source", "target")
OPTIONAL_COLUMNS: tuple[str, ...] = ()
TEXT_COLUMNS = ("source",)
LIST_COLUMNS: tuple[str, ...] = ()
FILE_COLUMNS: tuple[str, ...] = ()
INPUTS = (*_text.INPUTS, "decoder_input_ids")
GROUP = 1
PER_UNIT = True
SOFT = text_generation.SOFT
GENERATES = True

START = "decoder_start_token_id"  # what a decoder reads first; in tokenizer_config.json, where `settle` writes it
KINDS = ("ForConditionalGeneration", "MTModel")

logits = text_generation.logits
summary = text_generation.summary
stack = text_generation.stack
targets = text_generation.targets
hard_loss = text_generation.hard_loss
metrics = text_generation.metrics
agree = text_generation.agree
distance = text_generation.distance
correct = text_generation.correct
answer = text_generation.answer
renumbered = text_generation.renumbered


def example(row: Mapping[str, Any], labels: Sequence[str]) -> Example:
    """``{"source"[, "target"]}``; raises BadInput for a source without words."""
    if not row["source"].strip():
        raise BadInput("has no source text", todo="Leave such rows out.")
    return {name: row[name] for name in COLUMNS if row.get(name)}


def expand(examples: Sequence[Example], processor: Any, max_length: int) -> list[Example]:
    """The examples themselves: what is longer than ``max_length`` tokens is cut."""
    return list(examples)


def sample_text(example: Example) -> str:
    """Source and target, kept apart."""
    return f"{example['source']}\x1f{example.get('target', '')}"


def group_text(example: Example) -> str:
    """The source: its translations never lie on two sides of a split."""
    return str(example["source"])


def labels(config: Any, asked: Sequence[str] | None) -> list[str]:
    """None; raises BadInput for a model that is no encoder with a decoder, or does not say how its decoder begins."""
    names = getattr(config, "architectures", None) or []
    if not config.is_encoder_decoder or not any(name.endswith(KINDS) for name in names):
        raise BadInput(f"is {', '.join(names) or 'of no kind'}, not a model that writes one text from another")
    if getattr(config, START, None) is None:
        raise BadInput(f"its config.json has no {START}", todo="Add it: for T5 and Marian it is the padding's id.")
    return []


def settle(config: Any, folder: Path) -> None:
    """Write into a tokenizer's folder how the decoder begins, which the model's configuration alone says."""
    file = folder / "tokenizer_config.json"
    told = json.loads(file.read_text(encoding="utf-8"))
    told[START] = getattr(config, START, None)
    file.write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def processor(folder: Path) -> Any:
    """The transformers tokenizer of a folder."""
    return text_generation.processor(folder)


def encode(processor: Any, examples: Sequence[Example], max_length: int) -> list[Encoded]:
    """Source and target cut to ``max_length`` tokens each; ``labels`` are the tokens to write.

    ``decoder_input_ids`` are the same, one place later.
    """
    found = []
    for one in examples:
        ids = processor(one["source"], truncation=True, max_length=max_length)["input_ids"]
        right = _target(processor, one["target"], max_length) if "target" in one else []
        begins = [processor.init_kwargs[START], *right[:-1]]
        found.append({"input_ids": ids, "attention_mask": [1] * len(ids), "decoder_input_ids": begins, "labels": right})
    return found


def _target(processor: Any, text: str, max_length: int) -> list[int]:
    ids = list(processor(text_target=text)["input_ids"])
    if processor.eos_token_id is not None and ids[-1:] != [processor.eos_token_id]:
        ids.append(processor.eos_token_id)
    return ids[:max_length]


def places(encoded: Encoded) -> list[int]:
    """Positions of the decoder whose next token is learned: all, [T]."""
    return list(range(len(encoded["labels"])))


def right(encoded: Encoded) -> list[int]:
    """The tokens that are learned, [T]."""
    return list(encoded["labels"])


def take(logits_SV: Any, encoded: Encoded) -> Any:
    """[T, 3] of one row, see ``text_generation.take``."""
    return summary(logits_SV[: len(encoded["labels"])], encoded["labels"])


def written(texts: Sequence[str], examples: Sequence[Example]) -> dict[str, float]:
    """What a model wrote against the targets, over all rows.

    ``bleu`` (0 to 100, sacrebleu's defaults: Post 2018, arXiv:1804.08771; where the package is installed),
    ``rouge_l`` (mean F1 of the longest common subsequence of lower-case words: Lin 2004), ``exact_match``.
    """
    wanted = [str(one["target"]) for one in examples]
    found = {
        "rouge_l": sum(map(_rouge_l, texts, wanted)) / len(texts),
        "exact_match": sum(a.strip() == b.strip() for a, b in zip(texts, wanted, strict=True)) / len(texts),
    }
    try:
        from sacrebleu.metrics import BLEU
    except ImportError:
        return found
    return {"bleu": float(BLEU().corpus_score(list(texts), [wanted]).score), **found}


def _rouge_l(text: str, wanted: str) -> float:
    mine, theirs = ([word.lower() for word in _words(one)] for one in (text, wanted))
    if not (Counter(mine) & Counter(theirs)):
        return 0.0
    row = [0] * (len(theirs) + 1)
    for word in mine:
        before = row
        row = [0]
        for at, other in enumerate(theirs):
            row.append(before[at] + 1 if word == other else max(before[at + 1], row[at]))
    return 2 * row[-1] / (len(mine) + len(theirs))


def _words(text: str) -> list[str]:
    return [text[start:stop] for start, stop in _text.words(text)]
