"""The teach stage: the teacher runs once over every text, and its outputs go into the cache.

The batches have a fixed composition (sorted by length over the whole set), so a run that was killed and
resumed writes the same bytes as one that was not. Rows that an earlier step of this run computed for the
same teacher are copied.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch

from edgekd import registry
from edgekd.artifact import Facts, Inputs, sha256_tree, write_json
from edgekd.data.stage import SPLITS, read_split
from edgekd.errors import BadInput
from edgekd.recipe import Recipe
from edgekd.teach import cache, transformers


def run(recipe: Recipe, inputs: Inputs, out: Path) -> Facts:
    """Write ``cache/`` and ``samples.json`` (sample ids of every split, in row order)."""
    task = registry.load("tasks", recipe.task)
    data = inputs["data"]
    splits = {name: read_split(data.path, name) for name in (*SPLITS, "unlabelled")}
    tokenizer = load_tokenizer(data.path)
    model = transformers.load_teacher(recipe.teacher, task.AUTO_TASK)
    identity = cache.identity(
        task=recipe.task,
        teacher=_revision(recipe, model),
        tokenizer=data.files["tokenizer/tokenizer.json"]["sha256"],
        max_length=recipe.data.max_length,
    )
    ids = {name: [cache.sample_id(identity, task.sample_text(e)) for e in rows] for name, rows in splits.items()}
    samples = {one: e for name, rows in splits.items() for one, e in zip(ids[name], rows, strict=True)}
    names = list(samples)
    encoded = task.encode(tokenizer, list(samples.values()), recipe.data.max_length)
    began = time.monotonic()
    made, reused = _fill(
        recipe, inputs, out / cache.FOLDER, identity, names, encoded, model, data.facts["pad_token_id"]
    )
    seconds = time.monotonic() - began
    store = cache.Cache(out / cache.FOLDER, identity)
    logits = {name: store.read("logits", ids[name]) for name in SPLITS}
    write_json(out / cache.SAMPLES, {"schema": cache.SCHEMA, "identity": identity, "splits": ids})
    metrics = {name: task.metrics(logits[name].numpy(), splits[name]) for name in ("validation", "test")}
    return {
        "teacher": {
            "name": recipe.teacher.model,
            "architecture": type(model).__name__,
            "parameters": sum(p.numel() for p in model.parameters()),
            "size_bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
        },
        "knowledge": ["logits"],
        "metrics": metrics,
        "samples": len(names),
        "reused": reused,
        "seconds": seconds,
        "samples_per_second": made / seconds if made else None,
        "warnings": _warnings(task, metrics, splits),
    }


def load_tokenizer(data: Path) -> object:
    """The teacher's tokenizer as a ``tokenizers.Tokenizer``, from the data artefact."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(data / "tokenizer" / "tokenizer.json"))


def _fill(
    recipe: Recipe,
    inputs: Inputs,
    folder: Path,
    identity: str,
    names: list[str],
    encoded: list[dict[str, list[int]]],
    model: torch.nn.Module,
    pad_token_id: int,
) -> tuple[int, int]:
    """Compute what is missing, shard by shard; returns how many rows were computed and how many copied."""
    size = recipe.teach.batch_size
    batches = list(transformers.length_batches([len(row["input_ids"]) for row in encoded], size))
    per_shard = max(1, recipe.teach.shard_samples // size)
    known = [store for earlier in inputs.earlier if (store := _open(earlier.path / cache.FOLDER, identity))]
    done = made = reused = 0
    for number, start in enumerate(range(0, len(batches), per_shard)):
        piece = batches[start : start + per_shard]
        rows = [i for batch in piece for i in batch]
        if not (folder / f"shard-{number:05d}.safetensors").is_file():
            logits = []
            for at, batch in enumerate(piece):
                inputs.progress(done + at * size, len(names), "samples")
                ids = [names[i] for i in batch]
                store = next((store for store in known if all(one in store for one in ids)), None)
                if store is not None:
                    logits.append(store.read("logits", ids))
                    reused += len(batch)
                    continue
                with torch.inference_mode():
                    logits.append(model(**transformers.pad([encoded[i] for i in batch], pad_token_id)).logits.float())
                made += len(batch)
            cache.write_shard(folder, number, identity, [names[i] for i in rows], {"logits": torch.cat(logits)})
        done += len(rows)
        inputs.progress(done, len(names), "samples")
    return made, reused


def _open(folder: Path, identity: str) -> cache.Cache | None:
    try:
        return cache.Cache(folder, identity)
    except BadInput:
        return None


def _revision(recipe: Recipe, model: torch.nn.Module) -> str:
    """What names the teacher's weights: the digest of its folder, or hub id and commit (a branch moves)."""
    folder = Path(str(recipe.teacher.model))
    if folder.is_dir():
        return sha256_tree(folder)
    commit = getattr(model.config, "_commit_hash", None) or recipe.teacher.revision
    return f"{recipe.teacher.model}@{commit}"


def _warnings(task: object, metrics: dict[str, dict[str, float]], splits: dict[str, list[dict[str, int]]]) -> list[str]:
    labels = [example["label"] for example in splits["test"]]
    majority = max(labels.count(label) for label in set(labels)) / len(labels)
    accuracy = metrics["test"].get("accuracy")
    if accuracy is not None and accuracy <= majority:
        return [
            f"the teacher's accuracy {accuracy:.3f} is not above the majority class ({majority:.3f}): wrong labels?"
        ]
    return []
