"""The distill stage: knowledge in, student out; as ``baseline`` the same student without a teacher.

Both train for the same number of steps, the baseline on the labelled rows alone (it is the teacher that labels the
others). The validation split chooses the checkpoint; the test split is only ever reported.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from edgekd import processes, registry
from edgekd.artifact import SCRATCH, Artifact, Facts, Inputs, write_json
from edgekd.data.stage import TRANSFER, read_split
from edgekd.distill import lora, pruning, replay, sources, student, tokens, trainer, vocabulary
from edgekd.errors import BadInput
from edgekd.losses import find
from edgekd.outputs import save_outputs
from edgekd.recipe import Recipe, Term
from edgekd.tasks import _parts, _text
from edgekd.tasks._contract import generates
from edgekd.teach import knowledge, transformers, writing
from edgekd.teach.answers import has_answers, read_answers
from edgekd.teach.cache import read_logits

TEST_LOGITS = "test_logits.safetensors"
UNCUT = 2**31  # tokens: no text is longer
IMPORTANCE_ROWS = 512  # training rows that say which heads, neurons and units matter


def run(recipe: Recipe, inputs: Inputs, out: Path, *, alone: bool = False) -> Facts:
    """Write ``model/``, ``history.json`` and ``test_logits.safetensors``. Variant: kind = student | baseline.

    ``alone``: a student with other tokens than the teacher's learns from the data alone, instead of being refused.
    """
    task = registry.load("tasks", recipe.task)
    data, teach, kind = inputs["data"], inputs["teach"], inputs.variant["kind"]
    settings, taught = recipe.distill, kind == "student"
    seed = recipe.seed if settings.seed is None else settings.seed
    answered = has_answers(teach.path)  # by an endpoint: what it wrote is learned as the labels of any text are
    teacher = _teacher(recipe, task)
    start = begin(recipe, task, data, teacher, out / SCRATCH / f"process-{processes.rank()}")
    both = (data.path / "tokenizer", start.tokenizer)
    foreign = generates(task) and (alone or not taught) and not answered and vocabulary.are_others(*both)
    apart = answered or foreign  # the teacher says nothing of a student's token
    compared = taught and not apart
    model, pad_token_id = start.model, start.pad_token_id
    splits = {name: read_split(data.path, name) for name in ("train", "validation", "test", *TRANSFER)}
    if compared:
        splits |= {name: writing.taught(teach.path, data.path, name) for name in ("train", *TRANSFER)}
    if apart:
        splits |= {name: [] for name in TRANSFER}
    if answered and taught:
        splits["train"] = read_answers(teach.path)
    encoded = {
        name: task.encode(start.processor, rows, recipe.data.max_length) for name, rows in splits.items() if rows
    }
    ids = vocabulary.new_ids(*both) if generates(task) and not apart else None
    teacher_outputs = {} if apart else {name: read_logits(teach, name) for name in ("validation", "test")}
    if ids is not None:
        teacher_outputs = {name: tokens.renumbered(task, found, ids) for name, found in teacher_outputs.items()}
    together = transformers.at_once(model, recipe.data.max_length) if generates(task) else 64

    names = ["train", *(name for name in TRANSFER if splits[name])]
    used = names if taught else ["train"]
    lessons = lessons_of(recipe, task, model, teacher) if compared else []
    parts: dict[str, Any] = {
        "task": task,
        "encoded": [one for name in used for one in encoded[name]],
        "targets": [one for name in used for one in task.targets(splits[name])],
        "pad_token_id": pad_token_id,
        "source": source_of(recipe, task, data, teach, used, teacher, lessons) if compared else None,
    }
    if compared:
        cut = {name: splits[name] for name in used}
        parts["aligned"] = _aligned(recipe, task, data, cut, encoded, start, ids)
    if generates(task):
        _refuse_silence(task, encoded)
        if settings.packing and model.config.is_encoder_decoder:
            raise BadInput("sources are read one by one", where="distill.packing", todo="Set it false.")
        rows, ways = token_rows(recipe, data, lessons, parts, ids)
        if foreign:
            rows = replace(rows, vocabulary=min(len(start.processor), model.config.vocab_size))
    else:
        rows, ways = trainer.Rows(**parts), {}
    if not recipe.teach.online:
        del teacher
    past = replay.Past.of(recipe, task, data, start, splits["test"], together)
    if settings.lora:
        lora.inject(model, settings.lora, seed)

    def judge(model: torch.nn.Module) -> dict[str, float]:
        found = transformers.predict(model, task, encoded["validation"], pad_token_id, size=together)
        if apart:
            return dict(task.metrics(transformers.arrays(found), splits["validation"]))
        goal = teacher_outputs["validation"]
        metrics = task.metrics(transformers.arrays(found), splits["validation"], transformers.arrays(goal))
        return {**metrics, "distance": distance(task, found, goal)}

    def better(entry: dict[str, float]) -> tuple[float, ...]:
        if not compared:
            return (entry[f"eval_{task.HEADLINE}"],)
        if settings.choose == "last":
            return (entry["step"],)
        order = (entry[f"eval_{task.HEADLINE}"], -entry["eval_distance"])
        return order if settings.choose == "metric" else order[::-1]

    per_epoch = -(-sum(len(splits[name]) for name in names) // (settings.batch_size - past.replays))
    planned = max(1, round(settings.epochs * per_epoch))
    max_steps = planned if settings.max_steps is None else settings.max_steps
    parameters = float(sum(p.numel() for p in model.parameters()))
    began = time.monotonic()
    if max_steps:
        if taught and past.replays:
            rows, ways = past.join(rows, ways, max_steps, inputs.earlier, out)
        history = trainer.train(
            model,
            rows,
            settings,
            lessons,
            max_steps=max_steps,
            evaluate_every=min(max(1, round(settings.evaluate_every * per_epoch)), max_steps),
            seed=seed,
            scratch=out / SCRATCH,
            judge=judge,
            better=better,
            progress=inputs.progress,
            evaluated=lambda step, steps, metrics: inputs.evaluated(step, steps, {**metrics, "parameters": parameters}),
            **ways,
        )
    else:
        history = [{"step": 0, **{f"eval_{name}": value for name, value in judge(model).items()}}]
    seconds = time.monotonic() - began
    model = model.cpu().eval()
    adapter = lora.merge(model, str(settings.student.model), out / lora.ADAPTER) if settings.lora else None
    outputs = transformers.predict(model, task, encoded["test"], pad_token_id, size=together)
    written = writing.judged(task, model, start.processor, splits["test"], pad_token_id, recipe.data.max_length)
    if processes.rank() == 0:
        student.save(model, start.tokenizer, out / "model")
        save_outputs(out / TEST_LOGITS, transformers.arrays(outputs))
        write_json(out / "history.json", history)
    best = trainer.best_of(trainer.evaluations(history), better)
    steps = max(entry["step"] for entry in history)
    goal = None if apart else transformers.arrays(teacher_outputs["test"])
    return {
        "kind": kind,
        "parameters": sum(p.numel() for p in model.parameters()),
        "shape": student.shape_of(model.config),
        "vocabulary": start.vocabulary,
        **({} if ids is None else {"tokenization": _tokenization(recipe, task, data, rows, start, history)}),
        "rows": {name: len(splits[name]) for name in used},
        "terms": terms(history, settings.losses or [default_term(task)], settings.replay.weight) if compared else [],
        "metrics": {
            "validation": metrics_of(best),
            "test": task.metrics(transformers.arrays(outputs), splits["test"], goal) | written,
        },
        "history": history,
        "best": {"step": best["step"], "epoch": best.get("epoch")},
        "steps": steps,
        "max_steps": max_steps,
        "seconds": seconds,
        "processes": processes.count(),
        **({"sharded": True} if processes.sharded() and max_steps else {}),
        "seconds_per_step": seconds / max(1, steps),
        "pad_token_id": pad_token_id,
        "adapter": adapter,
        "retention": past.table(model, transformers.arrays(outputs)),
        **({"own_tokens": True} if foreign else {}),
    }


def _teacher(recipe: Recipe, task: Any) -> torch.nn.Module | None:
    """The teacher at hand; an endpoint alone is none."""
    return transformers.load_teacher(recipe.teacher, task.AUTO_TASK) if recipe.teacher.model else None


def token_rows(
    recipe: Recipe, data: Artifact, lessons: Sequence[trainer.Lesson], parts: dict[str, Any], ids: list[int] | None
) -> tuple[trainer.Rows, dict[str, Any]]:
    """The rows of a language model's student, and how it is trained."""
    settings = recipe.distill
    if parts["source"] is not None:
        told = {"online": recipe.teach.online, "kept": recipe.teach.tokens}
        tokens.check(lessons, {**told, "packing": settings.packing, "temperature": settings.temperature})
    rows = tokens.TokenRows(
        **parts,
        kept=recipe.teach.tokens,
        vocabulary=data.facts["vocabulary"],
        packing=recipe.data.max_length if settings.packing else 0,
        ids=None if ids is None else torch.tensor(ids),
    )
    return rows, {"measure": tokens.values, "kind": tokens.TokenLearner}


def _refuse_silence(task: Any, encoded: Mapping[str, Sequence[Any]]) -> None:
    """Refuse splits in which no token is learned: prompts without a response."""
    for name in ("train", "validation", "test"):
        if not any(task.places(row) for row in encoded.get(name, ())):
            raise BadInput(
                f"no token of {name} is learned: its prompts have no response",
                where="data",
                todo="Add a response column"
                + (
                    ", or set distill.baseline: false (an endpoint answers the student's alone)."
                    if name == "train"
                    else "."
                ),
            )


def preview(recipe: Recipe, data: Artifact, schemes: Iterable[student.Precision]) -> Facts:
    """Size in each scheme, shape and cost of the student before training (``edgekd distill --dry-run``)."""
    task = registry.load("tasks", recipe.task)
    with tempfile.TemporaryDirectory() as work:
        start = begin(recipe, task, data, _teacher(recipe, task), Path(work))
    length = data.facts["lengths"].get("p50", 1)
    return {
        **student.summary(start.model, schemes, length),
        "tokens": length,
        "shape": student.shape_of(start.model.config),
        "vocabulary": start.vocabulary,
    }


@dataclass(frozen=True)
class Start:
    """A student before training, with its own processor (tokenizer) and where that one's files are."""

    model: torch.nn.Module
    processor: Any
    tokenizer: Path
    pad_token_id: int
    vocabulary: Facts | None


def begin(recipe: Recipe, task: Any, data: Artifact, teacher: torch.nn.Module | None, work: Path) -> Start:
    """The student that ``recipe.distill.student`` describes; a trimmed tokenizer is written under ``work``."""
    seed = recipe.seed if recipe.distill.seed is None else recipe.distill.seed
    shape, model_class = recipe.distill.student, transformers.model_class(task.AUTO_TASK)
    if shape.model is not None:
        folder = work / "tokenizer"
        model = student.make(shape, teacher, model_class, seed)
        student.copy_tokenizer(shape.model, folder)
        if hasattr(task, "settle"):
            task.settle(model.config, folder)
        config = getattr(model.config, "text_config", model.config)
        return Start(model, task.processor(folder), folder, int(getattr(config, "pad_token_id", None) or 0), None)
    tokenizer, kept, facts = data.path / "tokenizer", None, None
    train = read_split(data.path, "train")
    if shape.vocabulary is not None:
        tokenizer, kept, facts = _trim(recipe, task, data, teacher, work / "tokenizer")
    importance = None
    if shape.prune == "importance":
        importance = _importance(recipe, task, data, train[:: max(1, len(train) // IMPORTANCE_ROWS)], teacher)
    positions = recipe.data.max_length if "input_ids" in task.INPUTS else None
    model = student.make(shape, teacher, model_class, seed, kept=kept, importance=importance, max_positions=positions)
    pad_token_id = data.facts["pad_token_id"] if kept is None else kept.index(data.facts["pad_token_id"])
    return Start(model, task.processor(tokenizer), tokenizer, pad_token_id, facts)


def _trim(
    recipe: Recipe, task: Any, data: Artifact, teacher: torch.nn.Module, out: Path
) -> tuple[Path, list[int], Facts]:
    """The teacher's tokenizer with the tokens of the training and unlabelled text, and the commonest of made text.

    Held-out text is not counted. Made text only fills up to ``vocabulary_size``: what it borrows beyond that stands
    for the words that the student will not know.
    """
    old, shape = data.path / "tokenizer", recipe.distill.student
    if "text" in _parts.names(task):
        task = _parts.Part(task, "text")
    processor, source = task.processor(old), vocabulary.read(old)

    def counts(*names: str) -> Mapping[int, int]:
        rows = [row for name in names for row in _parts.mine(task, read_split(data.path, name))]
        return vocabulary.count(one["input_ids"] for one in task.encode(processor, rows, recipe.data.max_length))

    assert shape.vocabulary is not None
    others = counts("augmented") if shape.vocabulary_size else {}
    size = shape.vocabulary_size or 0
    named = {data.facts["pad_token_id"], *student.token_ids(teacher)} if generates(task) else ()
    text = counts("train", "unlabelled")
    trimmed = vocabulary.trim(source, text, shape.vocabulary, others=others, size=size, always=named)
    vocabulary.write(old, trimmed, out)
    texts = [task.sample_text(row) for row in _parts.mine(task, read_split(data.path, "validation"))]
    before, after = (_text.processor(folder) for folder in (old, out))
    outside = vocabulary.outside(before, after, trimmed.kept, texts)
    return out, trimmed.kept, {"kept": len(trimmed.kept), "of": before.get_vocab_size(), **outside}


def _importance(recipe: Recipe, task: Any, data: Artifact, rows: Sequence[Any], teacher: torch.nn.Module) -> Any:
    encoded = task.encode(task.processor(data.path / "tokenizer"), rows, recipe.data.max_length)
    targets = task.targets(rows)
    batches = []
    size = transformers.at_once(teacher, recipe.data.max_length, 32) if generates(task) else 32
    for picked in transformers.length_batches([transformers.length(one) for one in encoded], size):
        inputs = transformers.pad([encoded[i] for i in picked], data.facts["pad_token_id"], task.INPUTS)
        batches.append((inputs, picked))

    def loss(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        inputs, picked = batch
        logits = task.logits(model(**inputs), inputs)
        taken = [task.take(one, encoded[i]) for one, i in zip(logits, picked, strict=True)]
        return task.hard_loss(task.stack(taken), [targets[i] for i in picked])

    return pruning.importance(teacher, batches, loss)


def lessons_of(recipe: Recipe, task: Any, model: torch.nn.Module, teacher: torch.nn.Module) -> list[trainer.Lesson]:
    """The recipe's terms, each with what it compares."""
    depth = (knowledge.depth(model.config), knowledge.depth(teacher.config))
    terms = recipe.distill.losses or [default_term(task)]
    return trainer.lessons_of(terms, lambda term: knowledge.links(term, *depth))


def default_term(task: Any) -> Term:
    """What is compared where the recipe names nothing: the task's own loss on the outputs."""
    return Term(loss=task.SOFT, pool="output")


def distance(task: Any, mine: transformers.Outputs, theirs: transformers.Outputs) -> float:
    """The task's own loss between two sets of outputs, at temperature 1, or its own distance."""
    if hasattr(task, "distance"):
        return float(task.distance(transformers.arrays(mine), transformers.arrays(theirs)))
    loss, pair = find(task.SOFT), transformers.paired(task, mine, theirs)
    return float(loss.function(*pair, 1.0) if loss.compares == "outputs" else loss.function(*pair))


def terms(history: list[dict[str, Any]], losses: Sequence[Term], weight: float = 1.0) -> list[Facts]:
    """Each term's weight, last logged value and last measured share of the gradient."""

    def last(key: str) -> float | None:
        return next((entry[key] for entry in reversed(history) if key in entry), None)

    named = trainer.lessons_of(losses, lambda term: [])
    rows = [("hard", None), *((lesson.name, lesson.term.weight) for lesson in named), (replay.TERM, weight)]
    found = [
        {"name": name, "weight": weight, "value": last(name), "gradient_share": last(f"{name}_gradient_share")}
        for name, weight in rows
    ]
    return [row for row in found if row["value"] is not None]


def source_of(
    recipe: Recipe,
    task: Any,
    data: Artifact,
    teach: Artifact,
    used: Sequence[str],
    teacher: torch.nn.Module,
    lessons: Sequence[trainer.Lesson],
) -> sources.Source:
    """The teacher's outputs, and what the lessons compare beside them, for the rows of the splits ``used``."""
    names = sorted({"logits", *(link.teacher for lesson in lessons for link in lesson.links)})
    if not recipe.teach.online:
        kept = {"logits": recipe.teach.tokens} if generates(task) else {}
        return sources.Cached(teach, used, [kept.get(name, name) for name in names])
    rows = [row for name in used for row in writing.taught(teach.path, data.path, name)]
    encoded = task.encode(task.processor(data.path / "tokenizer"), rows, recipe.data.max_length)
    kind = tokens.OnlineTokens if generates(task) else sources.Online
    return kind(teacher.to(transformers.device()), task, encoded, data.facts["pad_token_id"], names)


def _aligned(
    recipe: Recipe,
    task: Any,
    data: Artifact,
    splits: dict[str, Any],
    encoded: dict[str, Any],
    start: Start,
    ids: list[int] | None,
) -> torch.Tensor | None:
    """Which rows student and teacher cut into as many tokens (a language model's: the same ones); None for all."""
    if start.tokenizer == data.path / "tokenizer" or "input_ids" not in task.INPUTS:
        return None
    processor, same = task.processor(data.path / "tokenizer"), []
    for name, rows in splits.items():
        theirs = task.encode(processor, rows, recipe.data.max_length)
        if generates(task):
            same += tokens.alike(encoded[name], theirs, ids)
        else:
            pairs = zip(encoded[name], theirs, strict=True)
            same += [transformers.length(a) == transformers.length(b) for a, b in pairs]
    if generates(task) and not any(same):
        raise BadInput(
            "the student cuts no training row as its teacher does, so there is nothing to compare",
            where="distill.student",
            todo="Raise distill.student.vocabulary (1.0 keeps all tokens of the text), or check the chat templates.",
        )
    return torch.tensor(same)


def _tokenization(recipe: Recipe, task: Any, data: Artifact, rows: Any, start: Start, history: Any) -> Facts:
    """What a trimmed vocabulary does to a language model's texts.

    ``aligned``: share of the training rows that teacher and student cut alike, which are those they are compared on;
    ``dropped``: the teacher's mean probability on tokens that the student lacks; ``test``: share of test rows cut
    alike, and the student's tokens for each of the teacher's: perplexity to that power is by the teacher's token.
    """
    held = read_split(data.path, "test")
    mine, theirs = (task.encode(task.processor(one), held, UNCUT) for one in (start.tokenizer, data.path / "tokenizer"))
    same = tokens.alike(mine, theirs, rows.ids.tolist())
    sizes = [sum(sum(one["learn"]) for one in some) for some in (mine, theirs)]
    told: Facts = {"test": {"same": sum(same) / len(same), "tokens": sizes[0] / sizes[1]}}
    if rows.aligned is not None:
        told["aligned"] = float(rows.aligned.float().mean())
    lost = [entry[tokens.DROPPED] for entry in history if tokens.DROPPED in entry]
    return told | ({"dropped": sum(lost) / len(lost)} if lost else {})


def metrics_of(entry: dict[str, Any]) -> dict[str, float]:
    return {key.removeprefix("eval_"): value for key, value in entry.items() if key.startswith("eval_")}
