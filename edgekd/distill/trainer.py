"""Training on transformers.Trainer with the teacher's logits from the cache.

loss = alpha * CE(labels) + (1 - alpha) * T^2 * KL(teacher || student), the KL also on unlabelled rows. The
teacher is not in memory: its logits are gathered by row. Interrupted training resumes from the last complete
checkpoint to the same bytes (CPU): batches follow from (seed, epoch), every decision from the logged history.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_model, save_model
from torch import nn
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments

from edgekd.artifact import Progress
from edgekd.errors import BadInput
from edgekd.losses.logits import forward_kl
from edgekd.recipe import Distill
from edgekd.teach.transformers import length_batches, pad

COMPLETE = "COMPLETE"
BUCKET = 50  # batches that are sorted by length together
LOG_EVERY = 25


@dataclass(frozen=True)
class Rows:
    """Encoded examples of one split; ``label`` is -100 where there is none; ``teacher_NC`` None for the baseline."""

    encoded: Sequence[dict[str, list[int]]]
    labels: Sequence[int]
    teacher_NC: torch.Tensor | None
    pad_token_id: int

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, row: int) -> int:
        return row  # the collator looks rows up itself: one gather per batch

    def collate(self, rows: list[int]) -> dict[str, torch.Tensor]:
        """Padded model inputs, ``label`` [B], and ``teacher_logits`` [B, C] where there are any."""
        batch = pad([self.encoded[row] for row in rows], self.pad_token_id)
        batch["label"] = torch.tensor([self.labels[row] for row in rows])
        if self.teacher_NC is not None:
            batch["teacher_logits"] = self.teacher_NC[rows]
        return batch


class LengthGrouped(Sampler[int]):
    """Rows shuffled by (seed, epoch), then sorted by length within buckets, the batches shuffled again."""

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        random = np.random.default_rng([self.seed, self.epoch])
        order = random.permutation(len(self.lengths))
        size = self.batch_size * BUCKET
        batches = []
        for start in range(0, len(order), size):
            bucket = sorted(order[start : start + size], key=lambda row: self.lengths[row])
            batches += [bucket[i : i + self.batch_size] for i in range(0, len(bucket), self.batch_size)]
        full = [batch for batch in batches if len(batch) == self.batch_size]
        rest = [row for batch in batches if len(batch) < self.batch_size for row in batch]
        for i in random.permutation(len(full)):
            yield from map(int, full[i])
        yield from map(int, rest)


def predict(model: nn.Module, encoded: Sequence[dict[str, list[int]]], pad_token_id: int) -> torch.Tensor:
    """Logits [N, C] float32 in row order, in eval mode, in length-sorted batches of fixed composition."""
    training, device = model.training, next(model.parameters()).device
    model.eval()
    out: torch.Tensor | None = None
    with torch.inference_mode():
        for rows in length_batches([len(one["input_ids"]) for one in encoded], 64):
            batch = {k: v.to(device) for k, v in pad([encoded[row] for row in rows], pad_token_id).items()}
            logits_BC = model(**batch).logits.float().cpu()
            out = logits_BC.new_empty((len(encoded), logits_BC.shape[1])) if out is None else out
            out[rows] = logits_BC
    model.train(training)
    assert out is not None
    return out.clone()


class Distiller(Trainer):
    """transformers.Trainer with the distillation loss; evaluates by ``judge`` and keeps the best weights."""

    def __init__(
        self,
        *,
        hard_loss: Callable[..., Any],
        alpha: float,
        temperature: float,
        judge: Callable[[nn.Module], dict[str, float]],
        **rest: Any,
    ) -> None:
        super().__init__(**rest)
        self.hard_loss, self.alpha, self.temperature, self.judge = hard_loss, alpha, temperature, judge
        self.terms: dict[str, list[torch.Tensor]] = {}
        self.model_accepts_loss_kwargs = False

    def _get_train_sampler(self, *_: Any) -> LengthGrouped:
        rows = self.train_dataset
        lengths = [len(one["input_ids"]) for one in rows.encoded]
        return LengthGrouped(lengths, self.args.per_device_train_batch_size, self.args.seed)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **_: Any) -> Any:
        labels, teacher_BC = inputs.pop("label"), inputs.pop("teacher_logits", None)
        outputs = model(**inputs)
        loss = outputs.logits.new_zeros(())
        if self.alpha > 0:
            ce = self.hard_loss(outputs.logits, {"label": labels}) / len(labels)
            self.terms.setdefault("ce", []).append(ce.detach())
            loss = loss + self.alpha * ce
        if teacher_BC is not None and self.alpha < 1:
            kl = forward_kl(outputs.logits, teacher_BC, self.temperature)
            self.terms.setdefault("kl", []).append(kl.detach())
            loss = loss + (1 - self.alpha) * kl
        if not torch.isfinite(loss):
            raise BadInput(
                f"the training diverged: its loss is {loss.item()} in step {self.state.global_step + 1}",
                where="distill",
                todo=f"Lower distill.learning_rate (it is {self.args.learning_rate:g}).",
            )
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        found = {f"eval_{name}": value for name, value in self.judge(self.model).items()}
        self.log(found)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found

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
    ) -> None:
        self.scratch, self.better, self.patience, self.progress = scratch, better, patience, progress

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.progress(state.global_step, state.max_steps, "steps")

    def on_evaluate(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> Any:
        seen = evaluations(state.log_history)
        if best_of(seen, self.better) is seen[-1]:
            save_best(model, self.scratch)
        if stalled(seen, self.better, self.patience):
            control.should_training_stop = True
        return control

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
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


def save_best(model: nn.Module, scratch: Path) -> None:
    temporary = scratch / "best.tmp"
    save_model(model, str(temporary))
    temporary.replace(scratch / "best.safetensors")


def train(
    model: nn.Module,
    rows: Rows,
    settings: Distill,
    *,
    alpha: float,
    max_steps: int,
    evaluate_every: int,
    seed: int,
    scratch: Path,
    hard_loss: Callable[..., Any],
    judge: Callable[[nn.Module], dict[str, float]],
    better: Callable[[dict[str, float]], tuple[float, ...]],
    progress: Progress,
) -> list[dict[str, Any]]:
    """Train ``model`` in place to its best evaluated weights; returns the logged history.

    Found checkpoints under ``scratch`` are resumed from (complete ones only).
    """
    scratch.mkdir(parents=True, exist_ok=True)
    log_every = min(LOG_EVERY, settings.checkpoint_every)
    arguments = TrainingArguments(
        output_dir=str(scratch),
        max_steps=max_steps,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        warmup_steps=round(settings.warmup * max_steps),
        lr_scheduler_type="linear",
        logging_steps=log_every,
        save_steps=max(1, settings.checkpoint_every // log_every) * log_every,
        save_total_limit=2,
        eval_strategy="steps",
        eval_steps=evaluate_every,
        seed=seed,
        data_seed=seed,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        logging_nan_inf_filter=False,
    )
    trainer = Distiller(
        model=model,
        args=arguments,
        train_dataset=rows,
        eval_dataset=rows,  # not read: `judge` evaluates
        data_collator=rows.collate,
        callbacks=[Keeper(scratch, better, settings.patience, progress)],
        hard_loss=hard_loss,
        alpha=alpha,
        temperature=settings.temperature,
        judge=judge,
    )
    trainer.remove_callback(_printer())
    checkpoint = _last_complete(scratch)
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json")) if checkpoint else TrainerState()
    seen = evaluations(state.log_history)
    if state.global_step >= max_steps or stalled(seen, better, settings.patience):
        # The Trainer asks whether it is done only after a step, and would take one too many.
        trainer.state = state
        trainer._load_from_checkpoint(str(checkpoint))
    else:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    seen = evaluations(trainer.state.log_history)
    if not seen or seen[-1]["step"] != trainer.state.global_step:
        trainer.evaluate()
    load_model(model, str(scratch / "best.safetensors"))
    return [_without_clock(entry) for entry in trainer.state.log_history if "train_runtime" not in entry]


def _printer() -> Any:
    from transformers.trainer_callback import PrinterCallback

    return PrinterCallback


def _last_complete(scratch: Path) -> Path | None:
    found = sorted(scratch.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    for path in list(found):
        if not (path / COMPLETE).is_file():
            shutil.rmtree(path)
            found.remove(path)
    return found[-1] if found else None


def _without_clock(entry: dict[str, Any]) -> dict[str, Any]:
    """History is an output: its bytes depend neither on the machine's speed nor on having been interrupted."""
    clock = ("runtime", "per_second", "flos", "train_loss")
    return {key: entry[key] for key in sorted(entry) if not any(word in key for word in clock)}
