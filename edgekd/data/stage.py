"""The data stage: sources in, canonical rows out, everything doubtful said once and early.

A line of a split is one row: what the model sees in one forward pass (a text, a window of a long text, one half of
a pair, an image). Transfer rows (unlabelled and augmented) are never equal to a held-out text.

It reads the teacher's configuration and tokenizer (no weights), because labels and lengths are the teacher's
matter. Later stages read only what is written here.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekd import registry
from edgekd.artifact import Facts, Inputs, write_atomic, write_json
from edgekd.data import augment, load, split
from edgekd.errors import BadInput
from edgekd.recipe import Recipe
from edgekd.tasks._contract import generates

SPLITS = ("train", "validation", "test")
TRANSFER = ("unlabelled", "augmented")  # rows that only the teacher labels
REPLAY, REPLAY_TEST = "replay", "replay_test"  # rows from before, each with its data set's name as `set`
PADDING_OFFSET = ("roberta", "xlm-roberta", "camembert", "mpnet")  # their positions start behind the padding's id


def run(recipe: Recipe, inputs: Inputs, out: Path) -> Facts:
    """Write ``train|validation|test|unlabelled|augmented.jsonl``, ``labels.json`` and ``tokenizer/``."""
    task = registry.load("tasks", recipe.task)
    warnings: list[str] = []
    config = _config(recipe)
    folder = out / "tokenizer"
    processor, pad_token_id = _processor(recipe, task, config, folder)
    labels = _labels(recipe, task, config, warnings)
    examples = _splits(recipe, task, labels, warnings)
    length = recipe.data.max_length
    held_rows = task.expand([e for name in ("validation", "test") for e in examples[name]], processor, length)
    held = {task.sample_text(row) for row in held_rows}
    if hasattr(task, "written"):  # what is held out is not asked either
        held |= {task.sample_text({name: row[name] for name in task.TEXT_COLUMNS}) for row in held_rows}
    examples["unlabelled"] = _unlabelled(recipe, task, held)
    examples["augmented"], augmentation = _augmented(recipe, task, examples["train"], held, inputs, warnings)
    splits = {name: task.expand(some, processor, length) for name, some in examples.items()}
    if recipe.data.replay:
        splits |= _earlier(recipe, task, processor, labels, held_rows)
    for name, rows in splits.items():
        # Escaped: a raw U+2028 or U+0085 is legal in JSON and yet ends a line for whoever reads by lines.
        write_atomic(out / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    write_json(out / "labels.json", labels)
    text = "input_ids" in task.INPUTS
    return {
        "labels": labels,
        "rows": {name: len(rows) for name, rows in splits.items()},
        "augmentation": augmentation,
        **(_lengths(task, processor, splits, recipe.data.max_length, warnings) if text else NO_LENGTHS),
        "duplicates_train_test": _duplicates(task, splits, warnings),
        "pad_token_id": pad_token_id,
        **({"vocabulary": min(len(processor), config.vocab_size)} if generates(task) else {}),
        "warnings": warnings,
    }


NO_LENGTHS: Facts = {"truncation_rate": {}, "lengths": {}}  # an image has none


def read_split(data: Path, name: str) -> list[dict[str, Any]]:
    """Examples of a split, in row order; ``data`` is the data artefact's folder."""
    text = (data / f"{name}.jsonl").read_text(encoding="utf-8").removesuffix("\n")
    return [json.loads(line) for line in text.split("\n")] if text else []  # texts may hold U+2028: no splitlines


def _model(recipe: Recipe) -> str:
    """Whose configuration and tokenizer count: the teacher's, or those of the student that an endpoint teaches."""
    return str(recipe.teacher.model or recipe.distill.student.model)


def _config(recipe: Recipe) -> Any:
    from transformers import AutoConfig

    teacher, name = recipe.teacher, _model(recipe)
    folder = Path(name)
    if folder.exists() and not (folder / "config.json").is_file():
        raise BadInput("has no config.json, so it is no model folder", where=name, todo="Give a transformers folder.")
    try:
        return AutoConfig.from_pretrained(name, revision=teacher.revision, trust_remote_code=teacher.trust_remote_code)
    except (OSError, ValueError) as error:
        raise BadInput(
            f"the teacher cannot be loaded ({_first(error)})", where=name, todo="Check teacher.model."
        ) from None


def _processor(recipe: Recipe, task: Any, config: Any, out: Path) -> tuple[Any, int]:
    """The teacher's tokenizer, image processor or both, written to ``out``, and the id that pads."""
    if "pixel_values" in task.INPUTS:
        from transformers import AutoImageProcessor

        name, teacher = _model(recipe), recipe.teacher
        try:
            images = AutoImageProcessor.from_pretrained(teacher.tokenizer or name, revision=teacher.revision)
        except Exception as error:
            raise BadInput(
                f"its image processor cannot be loaded ({_first(error)})",
                where=name,
                todo="Put preprocessor_config.json beside the model.",
            ) from None
        images.save_pretrained(out)
    if "input_ids" not in task.INPUTS:
        return task.processor(out), 0
    tokenizer = _tokenizer(recipe, getattr(config, "text_config", config))
    tokenizer.save_pretrained(out)
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    backend.save(str(out / "tokenizer.json"))
    if hasattr(task, "settle"):
        task.settle(config, out)
    return task.processor(out), tokenizer.pad_token_id or 0


def _tokenizer(recipe: Recipe, config: Any) -> Any:
    from transformers import AutoTokenizer

    teacher, name = recipe.teacher, _model(recipe)
    options = {"revision": teacher.revision, "trust_remote_code": teacher.trust_remote_code}
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
    return tokenizer


def _first(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]


def _labels(recipe: Recipe, task: Any, config: Any, warnings: list[str]) -> list[str]:
    try:
        names: list[str] = task.labels(config, recipe.data.labels)
    except BadInput as error:
        raise BadInput(error.what, where=error.where or str(recipe.teacher.model), todo=error.todo) from None
    if names and all(name == f"LABEL_{i}" for i, name in enumerate(names)):
        warnings.append("the teacher names its labels LABEL_0, LABEL_1, ...; set data.labels to their real names")
    return names


def _examples(recipe: Recipe, task: Any, source: str, labels: list[str]) -> list[dict[str, Any]]:
    rows = _rows(recipe, task, source, task.COLUMNS, task.OPTIONAL_COLUMNS)
    if recipe.data.limit:
        rows = rows[: recipe.data.limit]
    examples = []
    for number, row in enumerate(rows, start=1):
        try:
            example = task.example(row, labels)
        except BadInput as error:
            todo = error.todo
            if labels and labels[0] == "LABEL_0":
                todo = "The teacher's labels have no names: set data.labels to them, in its order."
            raise BadInput(error.what, where=f"{source} row {number}", todo=todo) from None
        examples.append(dict(example))
    return examples


def _rows(
    recipe: Recipe, task: Any, source: str, columns: Sequence[str], optional: Sequence[str]
) -> list[dict[str, Any]]:
    """The table's rows; a text file is one a line, but one long text to a language model."""
    if source.lower().endswith(".txt") and hasattr(task, "blocks"):
        return list(task.blocks(load.read_text(Path(source))))
    renamed, lists = recipe.data.columns, [name for name in task.LIST_COLUMNS if name in (*columns, *optional)]
    return load.read_table(source, columns, renamed, optional=optional, lists=lists, files=task.FILE_COLUMNS)


def _splits(recipe: Recipe, task: Any, labels: list[str], warnings: list[str]) -> dict[str, list[dict[str, Any]]]:
    data = recipe.data
    assert data.train is not None
    splits = {"train": _examples(recipe, task, data.train, labels)}
    seen = {label for example in splits["train"] for label in _classes(example)}
    if labels and len(seen) < 2:
        only = labels[seen.pop()]
        raise BadInput(f"every row has the label '{only}'", where=data.train, todo="A classifier needs two classes.")
    if len(seen) < len(labels):
        warnings.append(f"{len(labels) - len(seen)} of {len(labels)} labels do not occur in train")
    for name, fraction in (("test", data.test_fraction), ("validation", data.validation_fraction)):
        source = getattr(data, name)
        if source:
            splits[name] = _examples(recipe, task, source, labels)
        else:
            kept, held = split.hold_out(splits["train"], fraction, recipe.seed, task.group_text)
            splits["train"], splits[name] = kept, held
    for name in SPLITS:
        empty = sum(not task.sample_text(example) for example in splits[name])
        if empty:
            warnings.append(f"{empty} {name} rows have no text")
        if not splits[name]:
            raise BadInput(f"the {name} split has no rows", where="recipe", todo=f"Give data.{name}, or more data.")
    return splits


def _classes(example: dict[str, Any]) -> list[int]:
    """The class ids that occur in an example: its label, or its units' tags."""
    return [example["label"]] if "label" in example else list(example.get("tags", []))


def _unlabelled(recipe: Recipe, task: Any, held: set[str]) -> list[dict[str, Any]]:
    if not recipe.data.unlabelled:
        return []
    optional = () if task.TEXT_COLUMNS else task.OPTIONAL_COLUMNS
    rows = _rows(recipe, task, recipe.data.unlabelled, task.TEXT_COLUMNS, optional)
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


def _earlier(recipe: Recipe, task: Any, processor: Any, labels: list[str], held: list[Any]) -> dict[str, Any]:
    """The rows of ``data.replay``; none that is replayed has a held-out text."""

    def rows(part: str) -> list[dict[str, Any]]:
        return [
            {**row, "set": one.name}
            for one in recipe.data.replay
            for row in task.expand(
                _examples(recipe, task, getattr(one, part), labels), processor, recipe.data.max_length
            )
        ]

    test = rows("test")
    known = {task.group_text(row) for row in [*held, *test]}
    return {REPLAY: [row for row in rows("train") if task.group_text(row) not in known], REPLAY_TEST: test}


def _augmented(
    recipe: Recipe, task: Any, train: list[dict[str, Any]], held: set[str], inputs: Inputs, warnings: list[str]
) -> tuple[list[dict[str, Any]], Facts | None]:
    """Changed copies of the training texts, each with its method and the row it came from."""
    settings = recipe.data.augment
    if not settings.copies:
        return [], None
    if task.TEXT_COLUMNS != ("text",):
        raise BadInput(
            f"{recipe.task} has no text to change",
            where="data.augment",
            todo="Set data.augment.copies to 0, or give data.unlabelled.",
        )
    made = augment.augment(
        [task.sample_text(example) for example in train],
        settings.copies,
        settings.methods,
        recipe.seed,
        exclude=held,
        teacher=str(recipe.teacher.model),
        revision=recipe.teacher.revision,
        progress=inputs.progress,
    )
    warnings += made.warnings
    rows = [{**task.example({"text": one.text}, []), "source": one.source, "method": one.method} for one in made.texts]
    return rows, made.facts


def _lengths(task: Any, processor: Any, splits: dict[str, Any], limit: int, warnings: list[str]) -> Facts:
    cut, tokens = {}, []
    for name in SPLITS:
        encoded = task.encode(processor, splits[name], 1_000_000)
        some = [[len(one[key]) for key in task.INPUTS if key.endswith("input_ids") and key in one] for one in encoded]
        full = [max(lengths) for lengths in some if lengths]
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
