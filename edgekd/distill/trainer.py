"""Training on transformers.Trainer, with the teacher's knowledge as one or several terms of the loss.

loss = alpha * hard + (1 - alpha) * sum of weight * term. Terms compare outputs, hidden states, attention maps,
query/key/value relations, or the relations between the samples of a batch; hard labels count where there are
any, terms everywhere. Projections between widths belong to the training and never to the student. Interrupted
training resumes from the last complete checkpoint to the same bytes (CPU): batches follow from (seed, epoch),
every decision from the logged history. It runs under ``accelerate launch`` as it is; under FSDP a copy of the student
is sharded and evaluated as it lies, and gathered where it is saved.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_model, save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.utils import SAFE_WEIGHTS_NAME

from edgekd import processes
from edgekd.artifact import Evaluated, Progress, not_told
from edgekd.distill.sources import Knowledge, Source
from edgekd.errors import BadInput, Environment
from edgekd.losses import find
from edgekd.losses.features import project
from edgekd.recipe import Distill, Term
from edgekd.teach.knowledge import capture
from edgekd.teach.transformers import Encoded, length, pad, paired

COMPLETE, BEST = "COMPLETE", "best.safetensors"
BUCKET = 50  # batches that are sorted by length together
LOG_EVERY = 25
SHARES_EVERY = 8 * LOG_EVERY  # steps between measurements of each term's gradient


@dataclass(frozen=True)
class Rows:
    """Encoded training rows with their hard targets (None where there is none).

    ``source`` gives the teacher's knowledge by row; None for the baseline. ``aligned[i]`` says whether student and
    teacher cut row i into as many tokens; where not, token-level terms leave the row out.
    """

    task: Any
    encoded: Sequence[Encoded]
    targets: Sequence[Any]
    pad_token_id: int
    source: Source | None = None
    aligned: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, row: int) -> int:
        return row  # the collator looks rows up itself: one gather per batch

    def collate(self, rows: list[int]) -> dict[str, torch.Tensor]:
        """Padded model inputs and the row numbers (everything else is looked up by them)."""
        batch = pad([self.encoded[row] for row in rows], self.pad_token_id, self.task.INPUTS)
        return {**batch, "rows": torch.tensor(rows)}

    def sampler(self, batch_size: int, seed: int) -> Sampler[int]:
        """Their order, epoch by epoch."""
        return LengthGrouped([length(one) for one in self.encoded], batch_size, seed, self.task.GROUP)


@dataclass(frozen=True)
class Link:
    """One comparison of a term: what of the student with what of the teacher (knowledge names)."""

    student: str
    teacher: str


@dataclass(frozen=True)
class Lesson:
    """A term of the loss, ready to be computed: its function, what it compares, and with what."""

    name: str
    term: Term
    links: tuple[Link, ...]

    def value(
        self,
        task: Any,
        student: Knowledge,
        teacher: Knowledge,
        mask_BS: torch.Tensor | None,
        aligned_B: torch.Tensor,
        projections: nn.ModuleDict,
        temperature: float,
    ) -> torch.Tensor:
        """The term before its weight, a scalar: the mean over its links."""
        values = []
        for link in self.links:
            mine, theirs = student[link.student], teacher[link.teacher]
            if link.student == "logits":
                mine, theirs = paired(task, mine, theirs)
            if (key := _key(self.name, link)) in projections:
                mine = projections[key](mine.to(projections[key].weight.dtype))
            values.append(self._compare(mine, theirs, mask_BS, aligned_B, temperature))
        return torch.stack(values).mean()

    def _compare(
        self,
        mine: torch.Tensor,
        theirs: torch.Tensor,
        mask_BS: torch.Tensor | None,
        aligned_B: torch.Tensor,
        temperature: float,
    ) -> torch.Tensor:
        loss = find(self.term.loss)
        if loss.compares == "outputs":
            return loss.function(mine, theirs, temperature)
        if loss.compares == "samples":
            return loss.function(mine, theirs)
        if mine.dim() == 2:  # pooled
            return loss.function(mine[:, None], theirs[:, None], mine.new_ones(len(mine), 1))
        if not aligned_B.any():
            return mine.sum() * 0.0
        mine, theirs = mine[aligned_B], theirs[aligned_B]
        mask = mine.new_ones(mine.shape[0], mine.shape[-2]) if mask_BS is None else mask_BS[aligned_B]
        longest = int(mask.sum(1).max())
        arguments = (_cut(mine, longest), _cut(theirs, longest), mask[:, :longest])
        return loss.function(*arguments, *([self.term.heads] if loss.compares == "relations" else []))


def _cut(x: torch.Tensor, longest: int) -> torch.Tensor:
    """[B, S, H] or [B, heads, S, S] cut to the longest aligned row."""
    return x[:, :longest] if x.dim() == 3 else x[:, :, :longest, :longest]


def _key(name: str, link: Link) -> str:
    return f"{name}/{link.student}/{link.teacher}".replace(".", "_")


class Learner(nn.Module):
    """The student with the projections of its lessons: what is trained. Only ``student`` is kept."""

    def __init__(self, student: nn.Module, projections: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.student, self.projections = student, nn.ModuleDict(projections)

    def forward(self, *, work: Callable[[], Any] | None = None, **inputs: Any) -> Any:
        """What the student says of inputs; or what comes of ``work``, which asks this very function for that.

        What shares a training knows of nothing that a parameter does outside the forward pass, so losses are made
        in it: projections work for every process, and so does a second pass.
        """
        if work is None:
            return self.student(**inputs)
        with torch.autocast(next(self.parameters()).device.type, enabled=False):  # as behind a forward pass
            return work()

    def activation_checkpointing_enable(self, **settings: Any) -> None:
        """Passed on to the student."""
        self.student.activation_checkpointing_enable(**settings)

    @property
    def _keys_to_ignore_on_save(self) -> list[str]:
        """What a checkpoint lacks: a tied matrix's other name, what is frozen; the Trainer asks when it loads one."""
        return sorted(self.state_dict().keys() - kept(self))

    @property
    def _no_split_modules(self) -> list[str]:
        """Kinds of the layers that FSDP gathers one after the other."""
        there = {type(one).__name__ for one in self.student.modules()}
        return sorted(there.intersection(getattr(self.student, "_no_split_modules", None) or ()))

    def tie_weights(self) -> None:
        """Nothing to do: the two names are of one parameter."""


def kept(model: nn.Module) -> set[str]:
    """Names of what a checkpoint has of a state dict: a tied matrix once, and nothing frozen."""
    buffers = {name for name, _ in model.named_buffers()}
    trained = {name for name, one in model.named_parameters() if one.requires_grad}
    return model.state_dict().keys() & (buffers | trained)


def gathered(model: nn.Module) -> dict[str, torch.Tensor]:
    """What is ``kept`` of a model, whole; of a sharded one all processes ask, and the first is given it."""
    whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    names = kept(model)
    return {name: value.contiguous() for name, value in whole.items() if name in names}


def learner(
    student: nn.Module, lessons: Sequence[Lesson], rows: Rows, seed: int, kind: type[Learner] = Learner
) -> Learner:
    """The student with a projection for every hidden state, or embedding, whose width differs from the teacher's."""
    embeds = find(rows.task.SOFT).compares == "samples"  # the task's outputs have no width of their own
    compared = {"hidden", "outputs"} if embeds else {"hidden"}
    wanted = [
        (lesson, link) for lesson in lessons if find(lesson.term.loss).compares in compared for link in lesson.links
    ]
    if not wanted or rows.source is None:
        return kind(student, {})
    training = student.training
    student.eval()
    inputs = pad([rows.encoded[0]], rows.pad_token_id, rows.task.INPUTS)
    names = sorted({link.student for _, link in wanted} - {"logits"})
    with torch.no_grad(), capture(student, names) as found:
        mine = {"logits": rows.task.logits(student(**inputs), inputs)}
    mine |= found
    student.train(training)
    theirs = rows.source([0])
    torch.manual_seed(seed)
    projections = {
        _key(lesson.name, link): project(mine[link.student].shape[-1], theirs[link.teacher].shape[-1])
        for lesson, link in wanted
        if mine[link.student].shape[-1] != theirs[link.teacher].shape[-1]
    }
    return kind(student, projections)


class LengthGrouped(Sampler[int]):
    """Rows shuffled by (seed, epoch), then sorted by length within buckets, the batches shuffled again.

    ``group`` consecutive rows (a sentence pair) stay together in one batch.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, group: int = 1) -> None:
        self.lengths, self.seed, self.epoch, self.group = lengths, seed, 0, group
        self.batch_size = max(1, batch_size // group)  # in groups

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        random = np.random.default_rng([self.seed, self.epoch])
        lengths = [max(self.lengths[i : i + self.group]) for i in range(0, len(self.lengths), self.group)]
        order = random.permutation(len(lengths))
        size = self.batch_size * BUCKET
        batches = []
        for start in range(0, len(order), size):
            bucket = sorted(order[start : start + size], key=lambda row: lengths[row])
            batches += [bucket[i : i + self.batch_size] for i in range(0, len(bucket), self.batch_size)]
        full = [batch for batch in batches if len(batch) == self.batch_size]
        rest = [row for batch in batches if len(batch) < self.batch_size for row in batch]
        for one in [*(full[i] for i in random.permutation(len(full))), rest]:
            yield from (int(row) * self.group + k for row in one for k in range(self.group))


def values(
    bare: Learner,
    rows: Rows,
    lessons: Sequence[Lesson],
    inputs: dict[str, torch.Tensor],
    numbers: Sequence[int],
    alpha: float,
    temperature: float,
) -> tuple[Any, dict[str, tuple[float, torch.Tensor]]]:
    """The learner's outputs for these rows, and of every part of the loss its weight and its value.

    The loss is the sum of weight * value. It is made in the forward pass of what accelerate wrapped ``bare`` in.
    """
    lessons = [lesson for lesson in lessons if lesson.term.weight] if rows.source is not None and alpha < 1 else []
    names = sorted({link.student for lesson in lessons for link in lesson.links} - {"logits"})
    with capture(bare.student, names) if names else nullcontext({}) as captured:
        outputs = bare.forward(**inputs)
    logits = rows.task.logits(outputs, inputs).float()
    made = logits
    if rows.task.PER_UNIT:
        made = [rows.task.take(one, rows.encoded[row]) for one, row in zip(logits, numbers, strict=True)]
    found: dict[str, tuple[float, torch.Tensor]] = {}
    if alpha > 0:
        targets = [rows.targets[row] for row in numbers]
        found["hard"] = (alpha, rows.task.hard_loss(rows.task.stack(made), targets))
    if lessons:
        assert rows.source is not None
        teacher = _moved(rows.source(numbers), logits.device)
        student = {"logits": made, **captured}
        mask_BS = inputs.get("attention_mask")
        aligned_B = torch.ones(len(numbers), dtype=torch.bool) if rows.aligned is None else rows.aligned[list(numbers)]
        aligned_B = aligned_B.to(logits.device)
        for lesson in lessons:
            value = lesson.value(rows.task, student, teacher, mask_BS, aligned_B, bare.projections, temperature)
            found[lesson.name] = ((1 - alpha) * lesson.term.weight, value)
    return outputs, found


class Judged:
    """A trainer that evaluates the student by ``judge``, whatever its data sets are."""

    judge: Callable[[nn.Module], dict[str, float]]

    def evaluate(self: Any, *_: Any, **__: Any) -> dict[str, float]:
        # A sharded student gathers itself only as a part of all that is trained, which rounds as training does.
        model = self.accelerator.unwrap_model(self.model)
        judged = model if processes.sharded() else student_in(model)
        found = {f"eval_{name}": value for name, value in self.judge(judged).items()}
        # What is best, and when to stop, is decided by each process: a last bit must not part them.
        (found,) = broadcast_object_list([found])
        self.log(found)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found


def student_in(model: Any) -> nn.Module:
    """The student in what training has wrapped around it."""
    inside = getattr(model, "module", model)
    return inside.student if isinstance(inside, Learner) else inside


class Distiller(Judged, Trainer):
    """transformers.Trainer with the distillation loss; evaluates by ``judge`` and keeps the best weights."""

    def __init__(
        self,
        *,
        lessons: Sequence[Lesson],
        settings: Distill,
        alpha: Callable[[float], float],
        judge: Callable[[nn.Module], dict[str, float]],
        measure: Callable[..., Any],
        section: str,
        **rest: Any,
    ) -> None:
        super().__init__(**rest)
        self.lessons, self.settings, self.alpha, self.judge = lessons, settings, alpha, judge
        self.measure, self.section = measure, section
        self.terms: dict[str, list[torch.Tensor]] = {}
        self.model_accepts_loss_kwargs = False

    def _get_train_sampler(self, *_: Any) -> Sampler[int]:
        return self.train_dataset.sampler(self.args.per_device_train_batch_size, self.args.seed)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **_: Any) -> Any:
        numbers = inputs.pop("rows").tolist()
        share = self.state.global_step / max(1, self.state.max_steps)
        temperature = _between(self.settings.temperature, self.settings.temperature_end, share)
        bare = self.accelerator.unwrap_model(model)
        told = (self.train_dataset, self.lessons, inputs, numbers, self.alpha(share), temperature)
        outputs, found = model(work=partial(self.measure, bare, *told))
        for name, (_, value) in found.items():
            self._note(name, value)
        parts = {name: weight * value for name, (weight, value) in found.items()}
        measured = self.state.global_step % SHARES_EVERY == 0 and not processes.sharded()  # a gradient of each part
        if measured and sum(one.requires_grad for one in parts.values()) > 1:
            self._shares(bare.student, parts)
        loss = torch.stack(list(parts.values())).sum()
        if not torch.isfinite(loss):
            raise BadInput(
                f"the training diverged: its loss is {loss.item()} in step {self.state.global_step + 1}",
                where=self.section,
                todo=f"Lower {self.section}.learning_rate (it is {self.args.learning_rate:g}).",
            )
        return (loss, outputs) if return_outputs else loss

    def _note(self, name: str, value: torch.Tensor) -> None:
        self.terms.setdefault(name, []).append(value.detach())

    def _shares(self, student: nn.Module, parts: dict[str, torch.Tensor]) -> None:
        """Each term's share of the summed gradient norms, over all of the student's parameters."""
        trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
        norms = {}
        for name, part in parts.items():
            if not part.requires_grad:
                continue
            gradients = torch.autograd.grad(part, trained, retain_graph=True, allow_unused=True)
            norms[name] = torch.stack([g.float().norm() for g in gradients if g is not None]).norm()
        total = sum(norms.values(), start=torch.zeros(()))
        for name, norm in norms.items():
            self._note(f"{name}_gradient_share", norm / total if total > 0 else torch.zeros(()))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """As the Trainer saves a model that is not transformers' own, but a tied matrix once, and nothing frozen.

        Nothing of a sharded one, whose ``state_dict`` is given: accelerate saves that beside the optimizer.
        """
        if state_dict is not None or not self.args.should_save:
            return
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_file(gathered(self.model), str(folder / SAFE_WEIGHTS_NAME), metadata={"format": "pt"})

    def log(self, logs: dict[str, float], *_: Any, **__: Any) -> None:
        if "loss" in logs:
            logs |= {name: torch.stack(values).mean().item() for name, values in self.terms.items()}
            self.terms = {}
        super().log(logs)


class Keeper(TrainerCallback):
    """Keeps the best weights, stops early, marks complete checkpoints, reports progress. It has no state of its own."""

    def __init__(
        self,
        scratch: Path,
        better: Callable[[dict[str, float]], tuple[float, ...]],
        patience: int,
        progress: Progress,
        evaluated: Evaluated,
    ) -> None:
        self.scratch, self.better, self.patience = scratch, better, patience
        self.progress, self.evaluated = progress, evaluated

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if processes.sharded() and not all(isinstance(one, DTensor) for one in model.parameters()):
            raise Environment(
                "accelerate was asked to shard the student, and has not",
                where="FSDP",
                todo="It does so on accelerators alone: start processes on CPUs without it (torchrun).",
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.progress(state.global_step, state.max_steps, "steps")

    def on_evaluate(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> Any:
        seen = evaluations(state.log_history)
        if best_of(seen, self.better) is seen[-1]:
            save_best(student_in(model), self.scratch)
        if stalled(seen, self.better, self.patience):
            control.should_training_stop = True
        told = {key.removeprefix("eval_"): value for key, value in seen[-1].items() if key.startswith("eval_")}
        self.evaluated(state.global_step, state.max_steps, told)
        return control

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        processes.wait()  # all have written
        if state.is_world_process_zero:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE).touch()


def evaluations(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The logged evaluations, in order."""
    return [entry for entry in history if any(key.startswith("eval_") for key in entry)]


def best_of(seen: list[dict[str, Any]], better: Callable[[dict[str, float]], tuple[float, ...]]) -> dict[str, Any]:
    """The first evaluation that no other beats."""
    return max(seen, key=lambda entry: (better(entry), -entry["step"]))


def stalled(seen: list[dict[str, Any]], better: Callable[[dict[str, float]], tuple[float, ...]], patience: int) -> bool:
    """Whether the last ``patience`` evaluations brought no improvement."""
    return bool(seen) and len(seen) - 1 - seen.index(best_of(seen, better)) >= patience


def frozen(model: nn.Module) -> set[str]:
    """Names of the parameters that are not trained."""
    return {name for name, one in model.named_parameters(remove_duplicate=False) if not one.requires_grad}


def save_best(model: nn.Module, scratch: Path) -> None:
    """All processes take part, the first one writes."""
    whole = gathered(model)
    if processes.rank() == 0:
        temporary = scratch / "best.tmp"
        save_file(whole, str(temporary), metadata={"format": "pt"})
        temporary.replace(scratch / BEST)


def lessons_of(terms: Sequence[Term], links: Callable[[Term], Sequence[tuple[str, str]]]) -> list[Lesson]:
    """Terms with their links (student name, teacher name); a loss that occurs twice is numbered."""
    seen: dict[str, int] = {}
    made = []
    for term in terms:
        seen[term.loss] = seen.get(term.loss, 0) + 1
        name = term.loss if seen[term.loss] == 1 else f"{term.loss}-{seen[term.loss]}"
        made.append(Lesson(name, term, tuple(Link(*pair) for pair in links(term))))
    return made


def train(
    student: nn.Module,
    rows: Rows,
    settings: Distill,
    lessons: Sequence[Lesson],
    *,
    max_steps: int,
    evaluate_every: int,
    seed: int,
    scratch: Path,
    judge: Callable[[nn.Module], dict[str, float]],
    better: Callable[[dict[str, float]], tuple[float, ...]],
    progress: Progress,
    evaluated: Evaluated = not_told,
    measure: Callable[..., Any] = values,
    kind: type[Learner] = Learner,
    section: str = "distill",
) -> list[dict[str, Any]]:
    """Train ``student`` in place to its best evaluated weights; returns the logged history.

    ``measure`` computes the parts of the loss (see ``values``) of what ``kind`` wraps the student in. Without a
    source (the baseline) only hard labels count. Found checkpoints under ``scratch`` are resumed from (complete ones
    only). ``section`` of the recipe is named where training diverges.
    """
    taught = rows.source is not None
    numbers = [name for name, one in student.named_parameters() if not one.dim()] if processes.sharded() else []
    if numbers:
        raise BadInput(
            f"the student's '{numbers[0]}' is a single number, which FSDP does not shard",
            where=section,
            todo="Start the processes without FSDP.",
        )
    arguments = TrainingArguments(
        **common(settings, max_steps=max_steps, evaluate_every=evaluate_every, seed=seed, scratch=scratch),
        ddp_find_unused_parameters=True,
        **({"activation_checkpointing": True} if settings.gradient_checkpointing else {}),
    )
    trained = copy.deepcopy(student) if processes.sharded() else student  # what is sharded never is whole again
    model = learner(trained, lessons if taught else [], rows, seed, kind)
    trainer = Distiller(
        model=model,
        args=arguments,
        train_dataset=rows,
        eval_dataset=rows,  # not read: `judge` evaluates
        data_collator=rows.collate,
        callbacks=[Keeper(scratch, better, settings.patience, progress, evaluated)],
        lessons=lessons if taught else [],
        settings=settings,
        alpha=(lambda share: _between(settings.alpha, settings.alpha_end, share)) if taught else (lambda share: 1.0),
        judge=judge,
        measure=measure,
        section=section,
    )
    history = fit(trainer, scratch, better, settings.patience)
    load_model(student, str(scratch / BEST), strict=not frozen(student))
    return history


def common(settings: Distill, *, max_steps: int, evaluate_every: int, seed: int, scratch: Path) -> dict[str, Any]:
    """The arguments that every training of a student has."""
    log_every = min(LOG_EVERY, settings.checkpoint_every)
    return {
        "output_dir": str(scratch),
        "max_steps": max_steps,
        "per_device_train_batch_size": max(1, settings.batch_size // processes.count()),
        "learning_rate": settings.learning_rate,
        "weight_decay": settings.weight_decay,
        "warmup_steps": round(settings.warmup * max_steps),
        "lr_scheduler_type": settings.schedule,
        "logging_steps": log_every,
        "save_steps": max(1, settings.checkpoint_every // log_every) * log_every,
        "save_total_limit": 2,
        "eval_strategy": "steps",
        "eval_steps": evaluate_every,
        "seed": seed,
        "data_seed": seed,
        "use_cpu": not torch.accelerator.is_available(),
        "bf16": settings.precision == "bf16",
        "fp16": settings.precision == "fp16",
        "report_to": [],
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "logging_nan_inf_filter": False,
    }


def fit(
    trainer: Trainer, scratch: Path, better: Callable[[dict[str, float]], tuple[float, ...]], patience: int
) -> list[dict[str, Any]]:
    """Train from the last complete checkpoint to the end; returns the logged history, and leaves ``BEST``."""
    scratch.mkdir(parents=True, exist_ok=True)
    trainer.remove_callback(_printer())
    checkpoint = _last_complete(scratch, trainer.args.process_index == 0)
    if checkpoint is not None and (checkpoint / SAFE_WEIGHTS_NAME).is_file() == processes.sharded():
        raise BadInput(
            f"training began {'without' if processes.sharded() else 'under'} FSDP, and can only go on so",
            where=str(checkpoint),
            todo="Start it as before, or remove this folder's parent to train anew.",
        )
    trainer.args.eval_on_start &= checkpoint is None  # what was evaluated stands in the history
    trainer.accelerator.wait_for_everyone()
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json")) if checkpoint else TrainerState()
    seen = evaluations(state.log_history)
    if state.global_step >= trainer.args.max_steps or stalled(seen, better, patience):
        # The Trainer asks whether it is done only after a step, and would take one too many.
        trainer.state = state
        trainer._load_from_checkpoint(str(checkpoint))
    else:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    seen = evaluations(trainer.state.log_history)
    if not seen or seen[-1]["step"] != trainer.state.global_step:
        trainer.evaluate()
    trainer.accelerator.wait_for_everyone()
    return [_without_clock(entry) for entry in trainer.state.log_history if "train_runtime" not in entry]


def _between(start: float, end: float | None, share: float) -> float:
    return start if end is None else start + (end - start) * share


def _moved(knowledge: Knowledge, device: torch.device) -> Knowledge:
    return {
        name: value.to(device) if isinstance(value, torch.Tensor) else [one.to(device) for one in value]
        for name, value in knowledge.items()
    }


def _printer() -> Any:
    from transformers.trainer_callback import PrinterCallback

    return PrinterCallback


def _last_complete(scratch: Path, tidies: bool) -> Path | None:
    found = sorted(scratch.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    complete = [path for path in found if (path / COMPLETE).is_file()]
    for path in set(found) - set(complete) if tidies else ():
        shutil.rmtree(path)
    return complete[-1] if complete else None


def _without_clock(entry: dict[str, Any]) -> dict[str, Any]:
    """History is an output: its bytes depend neither on the machine's speed nor on having been interrupted."""
    clock = ("runtime", "per_second", "flos", "train_loss")
    return {key: entry[key] for key in sorted(entry) if not any(word in key for word in clock)}
