"""The data stage: sources in, canonical splits out, everything doubtful said once and early.

It reads the teacher's configuration and tokenizer (no weights), because labels and lengths are the teacher's
matter. Later stages read only what is written here.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from edgekd import registry
from edgekd.artifact import Facts, Inputs, write_atomic, write_json
from edgekd.data import load, split
from edgekd.errors import BadInput
from edgekd.recipe import Recipe

SPLITS = ("train", "validation", "test")
PADDING_OFFSET = ("roberta", "xlm-roberta", "camembert", "mpnet")  # their positions start behind the padding's id


def run(recipe: Recipe, inputs: Inputs, out: Path) -> Facts:
    """Write ``train|validation|test|unlabelled.jsonl``, ``labels.json`` and ``tokenizer/``."""
    task = registry.load("tasks", recipe.task)
    config, tokenizer = _teacher(recipe)
    warnings: list[str] = []
    labels = _labels(recipe, config, warnings)
    splits = _splits(recipe, task, labels, warnings)
    splits["unlabelled"] = _unlabelled(recipe, task, splits)
    for name, examples in splits.items():
        # Escaped: a raw U+2028 or U+0085 is legal in JSON and yet ends a line for whoever reads by lines.
        write_atomic(out / f"{name}.jsonl", "".join(json.dumps(e) + "\n" for e in examples))
    write_json(out / "labels.json", labels)
    tokenizer.save_pretrained(out / "tokenizer")
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    backend.save(str(out / "tokenizer" / "tokenizer.json"))
    return {
        "labels": labels,
        "rows": {name: len(examples) for name, examples in splits.items()},
        **_lengths(task, backend, splits, recipe.data.max_length, warnings),
        "duplicates_train_test": _duplicates(task, splits, warnings),
        "pad_token_id": tokenizer.pad_token_id or 0,
        "warnings": warnings,
    }


def read_split(data: Path, name: str) -> list[dict[str, Any]]:
    """Examples of a split, in row order; ``data`` is the data artefact's folder."""
    text = (data / f"{name}.jsonl").read_text(encoding="utf-8").removesuffix("\n")
    return [json.loads(line) for line in text.split("\n")] if text else []  # texts may hold U+2028: no splitlines


def _teacher(recipe: Recipe) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoTokenizer

    teacher = recipe.teacher
    assert teacher.model is not None
    name, options = (
        teacher.model,
        {"revision": teacher.revision, "trust_remote_code": teacher.trust_remote_code},
    )
    folder = Path(name)
    if folder.exists() and not (folder / "config.json").is_file():
        raise BadInput("has no config.json, so it is no model folder", where=name, todo="Give a transformers folder.")
    try:
        config = AutoConfig.from_pretrained(name, **options)
    except (OSError, ValueError) as error:
        raise BadInput(
            f"the teacher cannot be loaded ({_first(error)})", where=name, todo="Check teacher.model."
        ) from None
    try:
        tokenizer = AutoTokenizer.from_pretrained(teacher.tokenizer or name, **options)
    except Exception as error:
        raise BadInput(
            f"its tokenizer cannot be loaded ({_first(error)})", where=name, todo="Set teacher.tokenizer."
        ) from None
    if len(tokenizer) < config.vocab_size // 2:
        raise BadInput(
            f"its tokenizer knows {len(tokenizer)} tokens, the model {config.vocab_size}",
            where=name,
            todo="Put tokenizer.json beside the model, or set teacher.tokenizer.",
        )
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise BadInput("its tokenizer has no tokenizer.json", where=name, todo="Convert it to a fast tokenizer first.")
    positions = getattr(config, "max_position_embeddings", None) or recipe.data.max_length
    if config.model_type in PADDING_OFFSET:
        positions -= config.pad_token_id + 1
    if recipe.data.max_length > positions:
        raise BadInput(
            f"data.max_length is {recipe.data.max_length}, the teacher reads at most {positions} tokens",
            where=name,
            todo=f"Set data.max_length to {positions} or less.",
        )
    return config, tokenizer


def _first(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]


def _labels(recipe: Recipe, config: Any, warnings: list[str]) -> list[str]:
    where = str(recipe.teacher.model)
    architectures = config.architectures or []
    if architectures and not any("SequenceClassification" in name for name in architectures):
        raise BadInput(
            f"is a {architectures[0]}, not a sequence classifier",
            where=where,
            todo="Fine-tune it on the task first.",
        )
    names = [str(config.id2label[i]) for i in sorted(config.id2label, key=int)]
    asked = recipe.data.labels
    if len(names) < 2:
        raise BadInput(f"has {len(names)} label", where=where, todo="A classifier needs at least two.")
    if all(name == f"LABEL_{i}" for i, name in enumerate(names)):
        if asked is None:
            warnings.append("the teacher names its labels LABEL_0, LABEL_1, ...; set data.labels to their real names")
            return names
        if len(asked) != len(names):
            raise BadInput(f"data.labels names {len(asked)}, the teacher has {len(names)}", where="recipe")
        if len(set(asked)) != len(asked):
            raise BadInput("data.labels names one label twice", where="recipe")
        return list(asked)
    if asked is not None and list(asked) != names:
        if sorted(asked) == sorted(names):
            first = next(i for i, (a, b) in enumerate(zip(asked, names, strict=True)) if a != b)
            raise BadInput(
                f"data.labels has another order than the teacher's (label {first} is '{names[first]}' there)",
                where="recipe",
                todo="Use the teacher's order, or leave data.labels out.",
            )
        lost = sorted(set(asked) ^ set(names))[0]
        raise BadInput(f"data.labels and the teacher's labels differ (e.g. '{lost}')", where="recipe")
    return names


def _examples(recipe: Recipe, task: Any, source: str, labels: list[str]) -> list[dict[str, Any]]:
    rows = load.read_table(source, task.COLUMNS, recipe.data.columns)
    if recipe.data.limit:
        rows = rows[: recipe.data.limit]
    examples = []
    for number, row in enumerate(rows, start=1):
        try:
            example = task.example(row, labels)
        except BadInput as error:
            todo = error.todo
            if labels[0] == "LABEL_0":
                todo = "The teacher's labels have no names: set data.labels to them, in its order."
            raise BadInput(error.what, where=f"{source} row {number}", todo=todo) from None
        examples.append(dict(example))
    return examples


def _splits(recipe: Recipe, task: Any, labels: list[str], warnings: list[str]) -> dict[str, list[dict[str, Any]]]:
    data = recipe.data
    assert data.train is not None
    splits = {"train": _examples(recipe, task, data.train, labels)}
    seen = {example["label"] for example in splits["train"]}
    if len(seen) < 2:
        only = labels[seen.pop()]
        raise BadInput(f"every row has the label '{only}'", where=data.train, todo="A classifier needs two classes.")
    if len(seen) < len(labels):
        warnings.append(f"{len(labels) - len(seen)} of {len(labels)} labels do not occur in train")
    for name, fraction in (("test", data.test_fraction), ("validation", data.validation_fraction)):
        source = getattr(data, name)
        if source:
            splits[name] = _examples(recipe, task, source, labels)
        else:
            kept, held = split.hold_out(splits["train"], fraction, recipe.seed, task.sample_text)
            splits["train"], splits[name] = kept, held
    for name in SPLITS:
        empty = sum(not task.sample_text(example) for example in splits[name])
        if empty:
            warnings.append(f"{empty} {name} rows have no text")
        if not splits[name]:
            raise BadInput(f"the {name} split has no rows", where="recipe", todo=f"Give data.{name}, or more data.")
    return splits


def _unlabelled(recipe: Recipe, task: Any, splits: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    if not recipe.data.unlabelled:
        return []
    rows = load.read_table(recipe.data.unlabelled, task.TEXT_COLUMNS, recipe.data.columns)
    held = {task.sample_text(e) for name in ("validation", "test") for e in splits[name]}
    texts: dict[str, dict[str, Any]] = {}
    for row in rows:
        example = dict(task.example(row, []))
        text = task.sample_text(example)
        if text and text not in held:
            texts.setdefault(text, example)
    examples = list(texts.values())
    if len(examples) > recipe.data.max_unlabelled:
        examples = random.Random(recipe.seed).sample(examples, recipe.data.max_unlabelled)
    return examples


def _lengths(task: Any, tokenizer: Any, splits: dict[str, Any], limit: int, warnings: list[str]) -> Facts:
    cut, tokens = {}, []
    for name in SPLITS:
        full = [len(one["input_ids"]) for one in task.encode(tokenizer, splits[name], 1_000_000)]
        cut[name] = round(sum(n > limit for n in full) / len(full), 6)
        if cut[name] > 0.01:
            warnings.append(f"{cut[name]:.1%} of the {name} texts are longer than {limit} tokens and are cut")
        if name == "test":
            tokens = sorted(min(n, limit) for n in full)
    shares = {
        name: tokens[min(len(tokens) - 1, round(q * (len(tokens) - 1)))] for name, q in (("p50", 0.5), ("p90", 0.9))
    }
    return {"truncation_rate": cut, "lengths": {**shares, "max": tokens[-1]}}


def _duplicates(task: Any, splits: dict[str, Any], warnings: list[str]) -> int:
    train = {task.sample_text(example) for example in splits["train"]}
    count = sum(task.sample_text(example) in train for example in splits["test"])
    if count:
        warnings.append(f"{count} test rows have a text that occurs in train")
    return count
