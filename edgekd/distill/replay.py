"""What a student knew before: rows that keep it in mind, and the table of what is forgotten.

A student that goes on learning (a new task, a new text, one user's words) has two teachers: the recipe's on the new
rows, and on rows of ``data.replay`` itself, as it was at its start (Li & Hoiem 2016, arXiv:1606.09282; with stored
rows Buzzega et al. 2020, arXiv:2004.07211). What it said of them is computed once and kept in a cache of the teach
step's format, where later students of this run (other users of one model) find it by sample id.

    loss = (that of any distillation, on the new rows) + weight * task's loss between outputs then and now, on the old

The table has the metrics of the new test rows and of those of every earlier data set, before training and after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Sampler
from transformers import AutoConfig

from edgekd import processes
from edgekd.artifact import Artifact, Facts
from edgekd.data.stage import REPLAY, REPLAY_TEST, read_split
from edgekd.distill import sources, tokens
from edgekd.distill.trainer import Learner, Lesson, Link, Rows, values
from edgekd.errors import BadInput
from edgekd.recipe import Recipe, Term
from edgekd.tasks._contract import Example, generates
from edgekd.teach import cache, transformers
from edgekd.teach.stage import knowledge, opened, revision

FOLDER = "replay"  # of the cache
TERM = "replay"  # in the history
NEW = "new"  # the name of the new data in the table


class Remembered(sources.Cached):
    """What the student said at its start."""

    def __init__(self, store: cache.Cache, ids: Sequence[str], names: Sequence[str]) -> None:
        self.kept = {name: store.read(name, ids) for name in names}


class Beside(Sampler[int]):
    """Batches of new rows as ``fresh`` has them, each followed by rows from before, numbered from ``first`` on."""

    def __init__(self, fresh: Any, first: int, count: int, each: int) -> None:
        self.fresh, self.first, self.count, self.each = fresh, first, count, each
        self.batches = -(-len(fresh) // (fresh.batch_size * fresh.group))

    def set_epoch(self, epoch: int) -> None:
        self.fresh.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.fresh) + self.batches * self.each

    def __iter__(self) -> Iterator[int]:
        group, new = self.fresh.group, list(self.fresh)
        random = np.random.default_rng([self.fresh.seed, self.fresh.epoch, 1])
        order = random.permutation(self.count // group)
        old = [self.first + int(row) * group + k for row in order for k in range(group)]
        size = self.fresh.batch_size * group
        for batch in range(self.batches):
            yield from new[batch * size : (batch + 1) * size]
            yield from (old[i % len(old)] for i in range(batch * self.each, (batch + 1) * self.each))


@dataclass(frozen=True)
class Both(Rows):
    """New rows (all inherited fields are theirs) and, in every batch beside them, ``each`` of the ``old`` ones."""

    new: Rows = field(kw_only=True)
    old: Rows = field(kw_only=True)
    each: Callable[[int], int] = field(kw_only=True)

    def __len__(self) -> int:
        return len(self.new) + len(self.old)

    def sampler(self, batch_size: int, seed: int) -> Sampler[int]:
        each = self.each(batch_size)
        return Beside(self.new.sampler(batch_size - each, seed), len(self.new), len(self.old), each)

    def collate(self, rows: list[int]) -> dict[str, Any]:
        """The batch of the new rows, and as its ``replayed`` that of the old ones."""
        first = len(self.new)
        batch: dict[str, Any] = dict(self.new.collate([row for row in rows if row < first]))
        old = [row - first for row in rows if row >= first]
        return batch | ({"replayed": self.old.collate(old)} if old else {})


@dataclass(frozen=True)
class Past:
    """What the student of a recipe knew: its earlier data, and its metrics before it is trained."""

    recipe: Recipe
    task: Any
    data: Artifact
    start: Any  # distill.stage.Start
    tests: dict[str, tuple[list[Example], Sequence[Any]]]  # by data set: rows, and the same encoded
    before: dict[str, dict[str, float]]
    together: int  # rows at once

    @classmethod
    def of(cls, recipe: Recipe, task: Any, data: Artifact, start: Any, test: list[Example], together: int) -> Past:
        """Nothing where the data step has no earlier data; raises BadInput for a student that knows other labels."""
        found: dict[str, list[Example]] = {}
        if (data.path / f"{REPLAY_TEST}.jsonl").is_file():
            _same_labels(str(recipe.distill.student.model), data.facts["labels"])
            found[NEW] = test
            for row in read_split(data.path, REPLAY_TEST):
                found.setdefault(row["set"], []).append(row)
        encoded = {n: task.encode(start.processor, rows, recipe.data.max_length) for n, rows in found.items()}
        tests = {name: (rows, encoded[name]) for name, rows in found.items()}
        made = cls(recipe, task, data, start, tests, {}, together)
        return replace(made, before={name: made.metrics(start.model, name) for name in tests})

    def each(self, batch_size: int) -> int:
        """How many rows of a batch of ``batch_size`` are replayed: at least one group of rows, and as many are new."""
        share, group = self.recipe.distill.replay.share, self.task.GROUP
        if not share:
            return 0
        if batch_size < 2 * group:
            raise BadInput(
                f"a batch of {batch_size} has no room for rows from before",
                where="distill.batch_size",
                todo=f"Set it to {2 * group} or more for each process, or distill.replay.share to 0.",
            )
        return min(max(1, round(share * batch_size / group)), batch_size // group - 1) * group

    @property
    def replays(self) -> int:
        """How many rows of a step are replayed, over all processes."""
        count = processes.count()
        return self.each(max(1, self.recipe.distill.batch_size // count)) * count if self.tests else 0

    def metrics(self, model: nn.Module, name: str) -> dict[str, float]:
        rows, encoded = self.tests[name]
        model.to(transformers.device())
        found = transformers.predict(model, self.task, encoded, self.start.pad_token_id, size=self.together)
        model.cpu()  # where training expects it, and export
        return dict(self.task.metrics(transformers.arrays(found), rows))

    def table(self, model: nn.Module, outputs: Any) -> list[Facts]:
        """``data``, ``rows``, ``before`` and ``after``, the new data first; ``outputs`` are those of its test rows."""
        return [
            {
                "data": name,
                "rows": len(rows),
                "before": self.before[name],
                "after": dict(self.task.metrics(outputs, rows)) if name == NEW else self.metrics(model, name),
            }
            for name, (rows, _) in self.tests.items()
        ]

    def join(
        self, rows: Rows, ways: Mapping[str, Any], steps: int, earlier: Sequence[Artifact], out: Path
    ) -> tuple[Rows, dict[str, Any]]:
        """The rows with those beside them that ``steps`` steps replay, and how both are trained (``trainer.train``)."""
        task, recipe = self.task, self.recipe
        name = recipe.teach.tokens if generates(task) else "logits"
        lesson = Lesson(TERM, Term(loss=task.SOFT, pool="output"), (Link("logits", "logits"),))
        if generates(task):
            told = {"packing": recipe.distill.packing, "temperature": recipe.distill.temperature}
            tokens.check([lesson], {"online": False, "kept": name, **told})
        pool, group = read_split(self.data.path, REPLAY), task.GROUP
        order = np.random.default_rng(recipe.seed).permutation(len(pool) // group)[: steps * self.replays // group]
        some = [pool[one * group + k] for one in sorted(order.tolist()) for k in range(group)]
        if not some:
            raise BadInput("no row is left to replay", where="data.replay", todo="Its train and test must differ.")
        encoded = task.encode(self.start.processor, some, recipe.data.max_length)
        # In its own tokens, be they the teacher's or not.
        own: dict[str, Any] = {"ids": None, "vocabulary": rows.words} if generates(task) else {}
        said = Remembered(*self._remember(some, encoded, name, own.get("vocabulary"), earlier, out), [name])
        old = replace(rows, encoded=encoded, targets=[None] * len(some), source=said, aligned=None, **own)
        both = Both(**{one.name: getattr(rows, one.name) for one in fields(Rows)}, new=rows, old=old, each=self.each)
        inner = ways.get("measure", values)
        return both, {**ways, "measure": measuring(inner, lesson, recipe.distill.replay.weight)}

    def _remember(
        self,
        rows: Sequence[Example],
        encoded: Sequence[Any],
        name: str,
        vocabulary: int | None,
        earlier: Sequence[Artifact],
        out: Path,
    ) -> tuple[cache.Cache, list[str]]:
        """Where it is kept what the student says of these rows before it is trained, and under which ids."""
        recipe, task, model = self.recipe, self.task, self.start.model
        source = SimpleNamespace(model=recipe.distill.student.model, revision=None)
        identity = cache.identity(
            task=recipe.task, student=revision(source, model), seed=recipe.seed, max_length=recipe.data.max_length
        )
        ids = [cache.sample_id(identity, task.sample_text(row)) for row in rows]
        for step in earlier:
            store = opened(step.path / FOLDER, identity)
            if store is not None and store.holds([name], ids):
                return store, ids
        if processes.rank() == 0 and not cache.has_shard(out / FOLDER, 0):
            once = dict(zip(ids, encoded, strict=True))
            found = self._ask(list(once.values()), name, vocabulary)
            cache.write_shard(out / FOLDER, 0, identity, list(once), {name: found})
        processes.wait()
        return cache.Cache(out / FOLDER, identity), ids

    def _ask(self, encoded: Sequence[Any], name: str, vocabulary: int | None) -> Any:
        model, kinds = self.start.model.to(transformers.device()).eval(), [] if name == "logits" else [name]
        found: list[Any] = [None] * len(encoded)
        for picked in transformers.length_batches([transformers.length(one) for one in encoded], self.together):
            some = [encoded[i] for i in picked]
            said = knowledge(model, self.task, some, self.start.pad_token_id, kinds, vocabulary)
            for i, one in zip(picked, said[name], strict=True):
                found[i] = one
        model.cpu()
        return transformers.gather(self.task, found)


def _same_labels(student: str, labels: Sequence[str]) -> None:
    config = AutoConfig.from_pretrained(student)
    own = [str(config.id2label[i]) for i in range(config.num_labels)] if labels else []
    nameless = len(own) == len(labels) and own[:1] == ["LABEL_0"]
    if own != list(labels) and not nameless:
        raise BadInput(
            f"it knows {len(own)} labels, the teacher {len(labels)} or others: its head would start anew",
            where=student,
            todo="Let the earlier student, too, learn from a teacher with all labels, those without a row included.",
        )


def measuring(inner: Callable[..., Any], lesson: Lesson, weight: float) -> Callable[..., Any]:
    """``inner`` (see ``trainer.values``) on the new rows, and on the replayed ones with what was said of them."""

    def measure(
        bare: Learner,
        rows: Both,
        lessons: Sequence[Lesson],
        inputs: dict[str, Any],
        numbers: Sequence[int],
        alpha: float,
        temperature: float,
    ) -> tuple[Any, dict[str, tuple[float, torch.Tensor]]]:
        replayed = inputs.pop("replayed", None)
        outputs, found = inner(bare, rows.new, lessons, inputs, numbers, alpha, temperature)
        if replayed is not None:
            old = replayed.pop("rows").tolist()
            _, parts = inner(bare, rows.old, [lesson], replayed, old, 0.0, temperature)
            found[TERM] = (weight, torch.stack([share * value for share, value in parts.values()]).sum())
        return outputs, found

    return measure
