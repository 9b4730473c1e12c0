"""What is refused when a recipe is planned: all that can be told before data are read or a step is run.

A task, a target, an endpoint tells its own conditions in its own module; here they are asked, and what lies between
two of them is looked at: a target and a scheme, a student and its targets.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgekd import processes, registry, variants
from edgekd.bench import devices, tokens
from edgekd.errors import BadInput
from edgekd.recipe import Recipe
from edgekd.tasks import _parts
from edgekd.tasks._contract import generates
from edgekd.teach import endpoint

NARROWING = ("hidden_size", "heads", "intermediate_size", "embedding_size", "vocabulary", "vocabulary_size")


def check(recipe: Recipe) -> None:
    """Raise BadInput for a recipe that asks for what is not known, does not fit together, or cannot be carried."""
    if recipe.teacher.endpoint:
        endpoint.check(recipe, generates=generates(registry.load("tasks", recipe.task)))
    elif not recipe.teacher.model:
        raise BadInput("teacher.model is not set", where="recipe", todo="Give a local folder or a hub id.")
    if not recipe.data.train:
        raise BadInput("data.train is not set", where="recipe", todo="Give a CSV, JSONL or Parquet file.")
    task, group = registry.load("tasks", recipe.task), variants.group(recipe)
    _check_task(recipe, task)
    _parts.check(recipe, task)
    if recipe.distill.on_policy:
        _check_on_policy(recipe)
    if recipe.distill.losses:
        from edgekd.losses import find

        for term in recipe.distill.losses:
            find(term.loss)
    for name, values in (
        ("export.targets", recipe.export.targets),
        ("quantize.schemes", recipe.quantize.schemes),
    ):
        if len(set(values)) != len(values):
            raise BadInput(f"{name} names one twice: {values}", where="recipe")
    if not recipe.export.targets:
        raise BadInput("export.targets is empty", where="recipe", todo=f"Known: {', '.join(registry.names(group))}.")
    buckets, longest = recipe.export.buckets, recipe.export.max_length or recipe.data.max_length
    if isinstance(buckets, list) and max(buckets) > longest:
        raise BadInput(
            f"export.buckets has a length of {max(buckets)} tokens, max_length is {longest}",
            where="recipe",
            todo="The longest bucket is max_length: drop the longer ones, or raise it.",
        )
    for name in recipe.bench.devices if recipe.bench.enabled else ():
        registry.load("transports", devices.load(name).transport)
    for target in recipe.export.targets:
        if group == "generators" and recipe.task not in registry.load(group, target).tasks:
            able = [name for name in registry.names(group) if recipe.task in registry.load(group, name).tasks]
            raise BadInput(
                f"{target} is for {', '.join(sorted(registry.load(group, target).tasks))}, not for {recipe.task}",
                where="export.targets",
                todo=f"Take {', '.join(able)}.",
            )
    if group == "generators":
        _check_student(recipe)
        if recipe.bench.enabled:
            tokens.reach(recipe.bench)
    for target in recipe.export.targets:
        registry.load(group, target)
    _check_pairs(recipe)


def _check_task(recipe: Recipe, task: Any) -> None:
    """Refuse what a task that reads one text and writes another cannot do yet, and what no other task knows."""
    writes, student = hasattr(task, "written"), recipe.distill.student
    if recipe.teach.answers and not writes:
        raise BadInput(f"{recipe.task} has no source to answer", where="teach.answers", todo="Leave it out.")
    if not writes:
        return
    if recipe.teacher.endpoint:
        raise BadInput(f"an endpoint does not teach {recipe.task} yet", where="teacher.endpoint")
    if recipe.teach.members:
        raise BadInput(f"several teachers of {recipe.task} are not joined yet", where="teach.members")
    narrow = [name for name in NARROWING if getattr(student, name)] + ["prune"] * (student.prune != "none")
    if narrow:
        raise BadInput(
            f"students of {recipe.task} are cut by layers alone",
            where=f"distill.student.{narrow[0]}",
            todo="Set layers and decoder_layers, or model.",
        )


def _check_on_policy(recipe: Recipe) -> None:
    """Refuse what the student cannot write, or nobody can score."""
    task, wanted, where = registry.load("tasks", recipe.task), recipe.distill.on_policy, "distill.on_policy"
    if not generates(task) or task.AUTO_TASK != "text-generation":
        raise BadInput(f"{recipe.task} trains no causal language model", where=where, todo="Drop it.")
    if recipe.teacher.endpoint:
        raise BadInput(
            "an endpoint does not score what the student writes",
            where=where,
            todo="Set teacher.model in its place, or drop distill.on_policy.",
        )
    if recipe.distill.student.vocabulary is not None:
        raise BadInput("a student with fewer tokens than its teacher has other ids", where=where, todo="Drop the one.")
    if wanted and wanted.max_new_tokens >= recipe.data.max_length:
        raise BadInput(
            f"max_new_tokens ({wanted.max_new_tokens}) of max_length ({recipe.data.max_length}) leave a prompt no room",
            where=where,
            todo="Lower the one or raise the other.",
        )
    if processes.count() > 1:
        raise BadInput(f"runs in one process, not in {processes.count()}", where=where, todo="Run `edgekd distill`.")


def _check_student(recipe: Recipe) -> None:
    """Refuse a student that its targets could not hold, as far as the recipe and a teacher at hand tell.

    A width that is asked for is looked at in the configuration that it makes of the teacher's, where that is a folder
    here: before the hours of teaching and training. Everything else is said by the export.
    """
    shape = recipe.distill.student
    if shape.embedding_size is not None:
        raise BadInput(
            "a student that writes text has no low-rank word table: its runtimes have no form for one",
            where="distill.student.embedding_size",
            todo="Leave it out; vocabulary and hidden_size make the table smaller.",
        )
    narrower = (shape.hidden_size, shape.heads, shape.intermediate_size)
    folder = Path(recipe.teacher.model) if recipe.teacher.model else None
    if shape.model or not any(narrower) or folder is None or not (folder / "config.json").is_file():
        return
    from transformers import AutoConfig

    from edgekd.distill import student
    from edgekd.generators import _contract as generators

    made, _ = student.configured(shape, AutoConfig.from_pretrained(folder), cut=shape.prune == "importance")
    for target in recipe.export.targets:
        writer = registry.load("generators", target)
        writer.check(made)
        if variants.schemes(recipe) != ["fp32"]:
            generators.check_widths(made, writer.block, target)


def _check_pairs(recipe: Recipe) -> None:
    """Refuse a scheme that no target carries, and a target that carries none of the quantized schemes.

    Other pairs that are refused are left out of the plan, which tells the reason: see ``variants.refused``.
    """
    quantized = [scheme for scheme in variants.schemes(recipe) if scheme != "fp32"]
    rows = [[variants.refusal(recipe, target, scheme) for target in recipe.export.targets] for scheme in quantized]
    for reasons in (*rows, *zip(*rows, strict=True)):
        if all(reasons):
            accepts = "; ".join(
                f"{target} accepts {', '.join(sorted(registry.load(variants.group(recipe), target).accepts))}"
                for target in recipe.export.targets
            )
            raise BadInput(str(reasons[0]), where="recipe", todo=f"Choose another scheme or target: {accepts}.")
