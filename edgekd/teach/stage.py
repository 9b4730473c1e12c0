"""The teach stage: the teacher runs once over every row, and what it knows goes into the cache.

Training and transfer rows get all kinds of knowledge that the recipe's losses need, held-out rows the outputs
alone. The batches have a fixed composition (sorted by length over the whole set), so a run that was killed and
resumed writes the same bytes as one that was not. Rows that an earlier step of this run computed for the same
teacher are copied. Under ``accelerate launch`` each process fills every n-th shard.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from edgekd import processes, registry
from edgekd.artifact import Artifact, Facts, Inputs, sha256_tree, write_json
from edgekd.data.stage import SPLITS, TRANSFER, read_split
from edgekd.errors import BadInput
from edgekd.recipe import Recipe, Term
from edgekd.tasks._contract import generates
from edgekd.teach import cache, ensemble, sparse, transformers, writing
from edgekd.teach.knowledge import capture, depth, links


def run(recipe: Recipe, inputs: Inputs, out: Path) -> Facts:
    """Write ``cache/`` and ``samples.json`` (sample ids of every split, in row order)."""
    task = registry.load("tasks", recipe.task)
    data, settings = inputs["data"], recipe.teach
    splits = {name: read_split(data.path, name) for name in (*SPLITS, *TRANSFER)}
    model = transformers.load_teacher(recipe.teacher, task.AUTO_TASK).to(transformers.device())
    splits |= _rewritten(recipe, task, inputs, model, splits, out)
    members = ensemble.members(settings.members, task, data.facts["labels"], recipe.data.max_length)
    identity = cache.identity(
        task=recipe.task,
        teacher=revision(recipe.teacher, model),
        tokenizer=[file["sha256"] for name, file in sorted(data.files.items()) if name.startswith("tokenizer/")],
        max_length=recipe.data.max_length,
        members=[[member.digest, member.weight] for member in members],
        combine=settings.combine if members else None,
    )
    ids = {name: [cache.sample_id(identity, task.sample_text(e)) for e in rows] for name, rows in splits.items()}
    names = _kinds(recipe, task, model)
    parts = _parts(recipe, ids, splits, names)
    estimate = sum(_estimate(task, recipe, data, model, part, kinds) for part, kinds in parts)
    cache.refuse(estimate, settings.max_cache_gb)
    began, made, reused, first = time.monotonic(), 0, 0, 0
    samples = sum(len(part) for part, _ in parts)

    def progress(done: int, total: int, unit: str) -> None:
        inputs.progress(done if first == 0 else samples - total + done, samples, unit)

    told = replace(inputs, progress=progress)
    for part, kinds in parts:
        fresh, copied, first = _fill(recipe, told, out / cache.FOLDER, identity, part, kinds, model, members, first)
        made, reused = made + fresh, reused + copied
    processes.wait()
    seconds = time.monotonic() - began
    store = cache.Cache(out / cache.FOLDER, identity)
    cached = SPLITS[1:] if settings.online else (*SPLITS, *TRANSFER)
    if processes.rank() == 0:
        write_json(
            out / cache.SAMPLES,
            {"schema": cache.SCHEMA, "identity": identity, "splits": {name: ids[name] for name in cached}},
        )
    outputs = {name: transformers.arrays(store.read("logits", ids[name])) for name in ("validation", "test")}
    metrics = {name: task.metrics(outputs[name], splits[name]) for name in outputs}
    processor, pad_token_id = task.processor(data.path / "tokenizer"), data.facts["pad_token_id"]
    metrics["test"] |= writing.judged(task, model, processor, splits["test"], pad_token_id, recipe.data.max_length)
    return {
        "teacher": {
            "name": recipe.teacher.model,
            "architecture": type(model).__name__,
            "parameters": sum(p.numel() for p in model.parameters()),
            "size_bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
            "members": [{"name": member.name, "weight": member.weight} for member in members],
        },
        "knowledge": ["logits", *names],
        "online": settings.online,
        "estimate_bytes": estimate,
        "cache_bytes": sum(file.stat().st_size for file in (out / cache.FOLDER).iterdir()),
        "metrics": metrics,
        "samples": samples,
        "reused": reused,
        "seconds": seconds,
        "samples_per_second": made / seconds if made else None,
        "processes": processes.count(),
        "warnings": _warnings(metrics, splits["test"]),
    }


def _rewritten(
    recipe: Recipe, task: Any, inputs: Inputs, model: torch.nn.Module, splits: dict[str, list[Any]], out: Path
) -> dict[str, list[Any]]:
    """The rows to learn from with the teacher's own answers as targets, where the recipe asks for them."""
    learned = {name: splits[name] for name in ("train", *TRANSFER) if splits[name]}
    if recipe.teach.answers is None:
        silent = next((name for name in TRANSFER if splits[name] and hasattr(task, "written")), None)
        if silent:
            raise BadInput(
                f"the rows of data.{silent} have no target, and nobody writes one",
                where="recipe",
                todo="Set teach.answers: greedy (or beam:4), or leave them out.",
            )
        return {}
    processor, pad_token_id = task.processor(inputs["data"].path / "tokenizer"), inputs["data"].facts["pad_token_id"]
    told = (recipe.data.max_length, recipe.teach.answers, recipe.teach.batch_size, out, inputs.progress)
    if processes.rank() == 0:
        writing.rewritten(learned, model, task, processor, pad_token_id, *told)
    processes.wait()
    return {name: writing.taught(out, inputs["data"].path, name) for name in learned}


def cache_bytes(recipe: Recipe, task: Any, data: Artifact, model: torch.nn.Module) -> int:
    """How large the cache of this recipe would be, from a sample of its rows."""
    splits = {name: read_split(data.path, name) for name in (*SPLITS, *TRANSFER)}
    texts = {name: [task.sample_text(row) for row in rows] for name, rows in splits.items()}
    parts = _parts(recipe, texts, splits, _kinds(recipe, task, model))
    return sum(_estimate(task, recipe, data, model, part, kinds) for part, kinds in parts)


def load_tokenizer(data: Path) -> object:
    """The teacher's tokenizer as a ``tokenizers.Tokenizer``, from the data artefact."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(data / "tokenizer" / "tokenizer.json"))


def _kinds(recipe: Recipe, task: Any, model: torch.nn.Module) -> list[str]:
    """Names of the knowledge that the recipe's losses need beside the outputs."""
    layers = depth(model.config)
    kinds = {recipe.teach.tokens} if generates(task) else set()
    for need in recipe.needs:
        student = need.pop("student", {"layers": layers, "model": None})
        own = student["layers"] or max(1, layers // 2)
        if student["model"]:
            own = depth(AutoConfig.from_pretrained(student["model"]))
        kinds |= {theirs for _, theirs in links(Term(**need), own, layers)}
    if model.config.is_encoder_decoder and any(not sparse.is_kind(one) and one != "logits" for one in kinds):
        raise BadInput(
            "layers of an encoder and a decoder are not compared yet",
            where="distill.losses",
            todo="Use forward-kl with pool: output.",
        )
    return sorted(kinds - {"logits"})


def _parts(
    recipe: Recipe, ids: dict[str, list[str]], splits: dict[str, list[Any]], names: list[str]
) -> list[tuple[dict[str, Any], list[str]]]:
    """The different rows to ask the teacher about, and for what: held-out rows only for their outputs."""
    held = _unique(ids, splits, ("validation", "test"))
    taught = {} if recipe.teach.online else _unique(ids, splits, ("train", *TRANSFER))
    return [(taught, names), ({one: row for one, row in held.items() if one not in taught}, [])]


def _unique(ids: dict[str, list[str]], splits: dict[str, list[Any]], names: Sequence[str]) -> dict[str, Any]:
    return {one: row for name in names for one, row in zip(ids[name], splits[name], strict=True)}


def _estimate(
    task: Any, recipe: Recipe, data: Artifact, model: torch.nn.Module, rows: dict[str, Any], kinds: list[str]
) -> int:
    """Bytes of the cache for these rows, from a sample of their lengths."""
    if not rows:
        return 0
    processor = task.processor(data.path / "tokenizer")
    some = list(rows.values())[:: max(1, len(rows) // 1000)]
    lengths = [transformers.length(one) for one in task.encode(processor, some, recipe.data.max_length)]
    outputs = None
    if not data.facts["labels"]:  # at most: an embedding, or two numbers
        outputs = getattr(model.config, "projection_dim", None) or model.config.hidden_size
    if generates(task):
        outputs = 3
    return cache.estimate(["logits", *kinds], len(rows), lengths, model.config, outputs=outputs, per_unit=task.PER_UNIT)


def _fill(
    recipe: Recipe,
    inputs: Inputs,
    folder: Path,
    identity: str,
    samples: dict[str, Any],
    kinds: list[str],
    model: torch.nn.Module,
    members: Sequence[ensemble.Loaded],
    first: int,
) -> tuple[int, int, int]:
    """Compute what is missing, shard by shard from number ``first``; returns rows computed, copied, the next number."""
    task, data = registry.load("tasks", recipe.task), inputs["data"]
    names, rows = list(samples), list(samples.values())
    encoded = task.encode(task.processor(data.path / "tokenizer"), rows, recipe.data.max_length)
    size = recipe.teach.batch_size
    if generates(task):
        size = transformers.at_once(model, recipe.data.max_length, size)
    batches = list(transformers.length_batches([transformers.length(one) for one in encoded], size))
    per_shard = max(1, recipe.teach.shard_samples // size)
    known = [store for earlier in inputs.earlier if (store := opened(earlier.path / cache.FOLDER, identity))]
    rank, ranks = processes.rank(), processes.count()
    done = made = reused = 0
    number = first
    for number, start in enumerate(range(0, len(batches), per_shard), start=first):
        piece = batches[start : start + per_shard]
        count = sum(map(len, piece))
        if number % ranks == rank and not cache.has_shard(folder, number):
            found: list[dict[str, Any]] = []
            for at, batch in enumerate(piece):
                inputs.progress(done + at * size, len(names), "samples")
                ids = [names[i] for i in batch]
                store = next((one for one in known if one.holds(["logits", *kinds], ids)), None)
                if store is not None:
                    found.append({kind: store.read(kind, ids) for kind in ("logits", *kinds)})
                    reused += len(batch)
                    continue
                some = [encoded[i] for i in batch]
                found.append(
                    knowledge(model, task, some, data.facts["pad_token_id"], kinds, data.facts.get("vocabulary"))
                )
                if members:
                    found[-1]["logits"] = ensemble.combine(
                        found[-1]["logits"], members, [rows[i] for i in batch], task, recipe.teach.combine
                    )
                made += len(batch)
            whole = {kind: _joined([one[kind] for one in found]) for kind in ("logits", *kinds)}
            cache.write_shard(folder, number, identity, [names[i] for batch in piece for i in batch], whole)
        done += count
        inputs.progress(done, len(names), "samples")
    return made, reused, number + 1 if batches else first


def knowledge(
    model: torch.nn.Module,
    task: Any,
    encoded: Sequence[Any],
    pad_token_id: int,
    kinds: Sequence[str],
    vocabulary: int | None = None,
) -> dict[str, Any]:
    """One batch of what the teacher knows: outputs in float32, the rest in float16, per token without padding."""
    inputs = transformers.inputs_of(model, encoded, pad_token_id, task.INPUTS)
    states = [kind for kind in kinds if not sparse.is_kind(kind)]
    with torch.inference_mode(), capture(model, states) as captured:
        logits = task.logits(model(**inputs), inputs).float()
    found: dict[str, Any] = {
        "logits": transformers.gather(
            task, [task.take(one, row).cpu() for one, row in zip(logits, encoded, strict=True)]
        )
    }
    tokens = [transformers.length(row) for row in encoded]
    for kind in kinds:
        if sparse.is_kind(kind):
            how, draws = sparse.kind(kind, vocabulary or model.config.vocab_size), torch.Generator()
            found[kind] = []
            for one, row in zip(logits, encoded, strict=True):
                draws.manual_seed(hash(tuple(row["input_ids"])) % 2**63)  # of the row alone, whatever its batch
                found[kind].append(sparse.encode(one[task.places(row)], how, draws))
            continue
        value = captured[kind].half().cpu()
        if value.dim() == 2:
            found[kind] = value
        elif value.dim() == 4:  # attention maps [B, heads, S, S]
            found[kind] = [one[:, : n or None, : n or None].flatten(1).T for one, n in zip(value, tokens, strict=True)]
        else:
            found[kind] = [one[: n or None] for one, n in zip(value, tokens, strict=True)]
    return found


def _joined(parts: list[Any]) -> Any:
    if isinstance(parts[0], torch.Tensor):
        return torch.cat(parts)
    return [row for part in parts for row in part]


def opened(folder: Path, identity: str) -> cache.Cache | None:
    try:
        return cache.Cache(folder, identity)
    except BadInput:
        return None


def revision(teacher: Any, model: torch.nn.Module) -> str:
    """What names a teacher's weights: the digest of its folder, or hub id and commit (a branch moves)."""
    folder = Path(str(teacher.model))
    if folder.is_dir():
        return sha256_tree(folder)
    commit = getattr(model.config, "_commit_hash", None) or teacher.revision
    return f"{teacher.model}@{commit}"


def _warnings(metrics: dict[str, dict[str, float]], test: list[dict[str, Any]]) -> list[str]:
    labels = [example["label"] for example in test if "label" in example]
    accuracy = metrics["test"].get("accuracy")
    if accuracy is None or not labels:
        return []
    majority = max(labels.count(label) for label in set(labels)) / len(labels)
    if accuracy <= majority:
        return [
            f"the teacher's accuracy {accuracy:.3f} is not above the majority class ({majority:.3f}): wrong labels?"
        ]
    return []
