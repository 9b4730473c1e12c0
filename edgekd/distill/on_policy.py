"""On-policy distillation: the student writes, and the teacher says of every token what it would have written there.

A second phase behind the first (``stage``), for students that write text: generalized knowledge distillation (Agarwal
et al. 2024, arXiv:2306.13649) through TRL's GKD trainer, which mixes batches that the student writes with the data's
own. It goes on from the first phase's best student, and is kept only where it is better. The two are compared over
the whole vocabulary by ``losses/_tokens.py``; the teacher is at hand.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model
from torch import nn

from edgekd import registry
from edgekd.artifact import SCRATCH, Facts, Inputs
from edgekd.data.stage import TRANSFER, read_split
from edgekd.distill import stage, student, tokens, trainer
from edgekd.errors import BadInput, Environment
from edgekd.losses import _tokens
from edgekd.outputs import save_outputs
from edgekd.recipe import Recipe
from edgekd.tasks._contract import Example
from edgekd.teach import transformers
from edgekd.teach.cache import read_logits
from edgekd.teach.transformers import Encoded

UNIT = "on-policy steps"
SPLITS = ("train", "validation", "test")


def run(recipe: Recipe, inputs: Inputs, out: Path) -> Facts:
    """As ``stage.run``, and then the second phase: facts ``on_policy``, and all others of whoever won.

    Raises Environment without TRL, and BadInput where no prompt leaves room to write.
    """
    gkd = _library()
    task, data, settings = registry.load("tasks", recipe.task), inputs["data"], recipe.distill
    rows = {name: read_split(data.path, name) for name in (*SPLITS, *TRANSFER)}
    wanted, seed = settings.on_policy, recipe.seed if settings.seed is None else settings.seed

    def asked(processor: Any) -> dict[str, list[list[int]]]:
        return {name: prompts(task, processor, some, recipe) for name, some in rows.items()}

    _refuse_silence(asked(task.processor(data.path / "tokenizer")), recipe)  # before the first phase takes its hours
    facts = stage.run(recipe, inputs, out)
    processor, pad_token_id = task.processor(out / "model"), facts["pad_token_id"]
    encoded = {name: task.encode(processor, some, recipe.data.max_length) for name, some in rows.items()}
    goals = {name: read_logits(inputs["teach"], name) for name in ("validation", "test")}
    begins = asked(processor)
    used = [name for name in ("train", *TRANSFER) if rows[name]]
    pairs = [pair for name in used for pair in zip(encoded[name], begins[name], strict=True) if pair[1]]
    lines = Lines([one for one, _ in pairs], [prompt for _, prompt in pairs], pad_token_id)
    model_class, device = transformers.model_class(task.AUTO_TASK), transformers.device()
    model = student.load(out / "model", model_class)
    size = transformers.at_once(model, recipe.data.max_length)

    def judge(model: nn.Module, name: str = "validation") -> dict[str, float]:
        found = transformers.predict(model, task, encoded[name], pad_token_id, size=size)
        metrics = task.metrics(transformers.arrays(found), rows[name], transformers.arrays(goals[name]))
        some = [prompt for prompt in begins[name] if prompt]
        held = Lines([], some[:: -(-len(some) // wanted.samples)], pad_token_id)
        reverse_kl = taught.reverse_kl(model, held, size, seed)
        return {**metrics, "distance": stage.distance(task, found, goals[name]), "reverse_kl": reverse_kl}

    def better(entry: Mapping[str, float]) -> tuple[float, ...]:
        headline = entry[f"eval_{task.HEADLINE}"]
        return ({"reverse-kl": -entry["eval_reverse_kl"], "metric": headline, "last": entry["step"]}[wanted.choose],)

    scratch, began = out / SCRATCH / "on-policy", time.monotonic()
    keeper = trainer.Keeper(
        scratch, better, settings.patience, lambda done, total, _: inputs.progress(done, total, UNIT), inputs.evaluated
    )
    taught: Any = type("OnPolicy", (OnPolicy, gkd.GKDTrainer), {})(
        model,
        transformers.load_teacher(recipe.teacher, task.AUTO_TASK),
        lines,
        processor,
        _arguments(gkd, settings, scratch, seed),
        keeper,
        judge,
        wanted.divergence,
        data.facts["vocabulary"],
    )
    history = trainer.fit(taught, scratch, better, settings.patience)
    seen = trainer.evaluations(history)
    before, after, best = seen[0], trainer.best_of(seen[1:], better), trainer.best_of(seen, better)
    seconds = time.monotonic() - began
    told: dict[str, dict[str, Any]] = {
        "before": {"validation": stage.metrics_of(before), "test": {}},
        "after": {"step": after["step"], "validation": stage.metrics_of(after), "test": {}},
    }
    kept = student.load(out / "model", model_class).to(device)
    told["before"]["test"] = judge(kept, "test")
    if best is after:
        load_model(kept, str(scratch / trainer.BEST))
        told["after"]["test"] = judge(kept, "test")
        facts["metrics"] = {name: told["after"][name] for name in ("validation", "test")}
        outputs = transformers.predict(kept, task, encoded["test"], pad_token_id, size=size)
        kept.cpu().save_pretrained(out / "model")
        save_outputs(out / stage.TEST_LOGITS, transformers.arrays(outputs))
    return facts | {
        "on_policy": {
            **told,
            "kept": "after" if best is after else "before",
            "steps": max(entry["step"] for entry in history),
            "seconds": seconds,
            "rows": len(pairs),
            "without_room": sum(len(rows[name]) for name in used) - len(pairs),
            "history": history,
        }
    }


def prompts(task: Any, processor: Any, rows: Sequence[Example], recipe: Recipe) -> list[list[int]]:
    """What the student goes on from, by row: the prompt, or the first half of a text.

    None of more tokens than leave room for what is written: a text's beginning is cut, a longer prompt is empty here.
    """
    assert recipe.distill.on_policy is not None
    room = recipe.data.max_length - recipe.distill.on_policy.max_new_tokens
    found = [(row, task.prompt(processor, row, recipe.data.max_length)) for row in rows]
    return [ids[:room] if "text" in row else ids if len(ids) <= room else [] for row, ids in found]


def _refuse_silence(asked: Mapping[str, Sequence[Sequence[int]]], recipe: Recipe) -> None:
    for name in SPLITS:
        if not any(asked[name]):
            assert recipe.distill.on_policy is not None
            more = recipe.distill.on_policy.max_new_tokens
            raise BadInput(
                f"no prompt of {name} leaves room for {more} of the {recipe.data.max_length} tokens of data.max_length",
                where="distill.on_policy.max_new_tokens",
                todo="Lower it, or raise data.max_length.",
            )


@dataclass(frozen=True)
class Lines:
    """Rows to learn from and, in the same order, what the student goes on from, token ids."""

    encoded: Sequence[Encoded]
    prompts: Sequence[Sequence[int]]
    pad_token_id: int

    def collate(self, some: Sequence[Mapping[str, int]]) -> dict[str, torch.Tensor]:
        """A batch as TRL's trainer takes it: rows padded on the right, labels of what is learned, and ``asked``."""
        rows = [one["row"] for one in some]
        encoded = [self.encoded[row] for row in rows]
        batch = transformers.pad(encoded, self.pad_token_id)
        unlearned_BS = transformers.pad(encoded, 0, ("learn",))["learn"] == 0
        return {**batch, "labels": batch["input_ids"].masked_fill(unlearned_BS, _tokens.IGNORED), **self.asked(rows)}

    def asked(self, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        """``prompts`` and their mask [B, S], padded on the left."""
        ids = [self.prompts[row][::-1] for row in rows]
        backwards = [{"input_ids": one, "attention_mask": [1] * len(one)} for one in ids]
        padded = transformers.pad(backwards, self.pad_token_id)
        return {"prompts": padded["input_ids"].flip(1), "prompt_attention_mask": padded["attention_mask"].flip(1)}


def divergence(
    model: Any, teacher: Any, batch: Mapping[str, torch.Tensor], kind: str, vocabulary: int
) -> tuple[torch.Tensor, int]:
    """The mean divergence of student and teacher (nats) over the labelled tokens of a batch, and how many these are.

    ``batch``: ``input_ids``, ``attention_mask`` and ``labels`` [B, S]; padding may be on both sides of a text.
    """
    order_BS = (1 - batch["attention_mask"]).argsort(dim=1, stable=True)  # texts begin at position 0, for every model
    ids_BS, mask_BS, labels_BS = (batch[name].gather(1, order_BS) for name in ("input_ids", "attention_mask", "labels"))
    counted_BT, right_N = labels_BS[:, 1:] != _tokens.IGNORED, labels_BS[:, 1:][labels_BS[:, 1:] != _tokens.IGNORED]

    def hidden(net: Any) -> torch.Tensor:
        found_BSD = net.base_model(input_ids=ids_BS, attention_mask=mask_BS, use_cache=False).last_hidden_state
        return found_BSD[:, :-1][counted_BT]

    mine_ND = hidden(model)
    if not len(right_N):
        return mine_ND.sum(), 0
    with torch.no_grad():
        theirs = _tokens.Dense(hidden(teacher), tokens.head(teacher))
    how = _tokens.Settings(divergence=kind, vocabulary=vocabulary)
    return _tokens.loss(mine_ND, tokens.head(model), theirs, right_N, how)[0], len(right_N)


class OnPolicy(trainer.Judged):
    """What edgekd has of its own in TRL's ``GKDTrainer``, to be mixed into it: loss, judge, and silence."""

    def __init__(
        self,
        model: Any,
        teacher: Any,
        lines: Lines,
        processor: Any,
        arguments: Any,
        keeper: trainer.Keeper,
        judge: Callable[[nn.Module], dict[str, float]],
        kind: str,
        vocabulary: int,
    ) -> None:
        from datasets import Dataset

        self.judge, self.kind, self.vocabulary = judge, kind, vocabulary
        teacher.resize_token_embeddings(model.config.vocab_size, mean_resizing=False)  # such rows never count
        if model.generation_config.eos_token_id is None:
            model.generation_config.eos_token_id = processor.eos_token_id
        if processor.pad_token_id is None:
            processor.pad_token = processor.eos_token
        rows = Dataset.from_dict({"row": range(len(lines.prompts))})
        super().__init__(
            model,
            teacher,
            arguments,
            data_collator=lines.collate,
            train_dataset=rows,
            eval_dataset=rows,  # not read: `judge` evaluates
            processing_class=processor,
            callbacks=[keeper],
        )
        if unknown := list(range(vocabulary, model.config.vocab_size)):
            self.generation_config.suppress_tokens = unknown

    def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> torch.Tensor:
        # Not GKD's own: that holds both [tokens, vocabulary] matrices, and divides what the student wrote by the
        # number of the data's tokens.
        with self.accelerator.autocast():
            bare = self.accelerator.unwrap_model(model)
            loss, _ = divergence(bare, self.teacher_model, inputs, self.kind, self.vocabulary)
        if not torch.isfinite(loss):
            raise BadInput(
                f"the training diverged: its loss is {loss.item()} in step {self.state.global_step + 1}",
                where="distill.on_policy",
                todo=f"Lower distill.on_policy.learning_rate (it is {self.args.learning_rate:g}).",
            )
        return loss

    @torch.no_grad()
    def reverse_kl(self, model: Any, lines: Lines, size: int, seed: int) -> float:
        """KL(student || teacher) of a token that the student writes after these prompts, nats; drawn by ``seed``."""
        training, total, count = model.training, 0.0, 0
        model.eval()
        place = next(model.parameters()).device
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for rows in transformers.length_batches([len(one) for one in lines.prompts], size):
                asked = {name: one.to(place) for name, one in lines.asked(rows).items()}
                made = self.generate_on_policy_outputs(model, asked, self.generation_config)
                batch = dict(zip(("input_ids", "attention_mask", "labels"), made, strict=True))
                value, some = divergence(model, self.teacher_model, batch, "reverse-kl", self.vocabulary)
                total, count = total + float(value) * some, count + some
        model.train(training)
        return total / max(1, count)

    def _send_telemetry(self) -> None:
        """Nothing is sent."""

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Nobody reads the card of a checkpoint."""


def _arguments(gkd: Any, settings: Any, scratch: Path, seed: int) -> Any:
    wanted = settings.on_policy
    common = trainer.common(
        settings, max_steps=wanted.steps, evaluate_every=wanted.evaluate_every, seed=seed, scratch=scratch
    )
    return gkd.GKDConfig(
        **common
        | {
            "learning_rate": wanted.learning_rate,
            "activation_checkpointing": settings.gradient_checkpointing,
            "eval_on_start": True,  # the first phase's student takes part
            "lmbda": wanted.share,
            "temperature": wanted.temperature,
            "max_new_tokens": wanted.max_new_tokens,
        }
    )


def _library() -> Any:
    """TRL's module of generalized knowledge distillation; raises Environment where it cannot run."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    logging.getLogger("trl").setLevel(logging.ERROR)  # it recommends another trainer, which mixes no batches
    found = registry.require("trl.experimental.gkd", "llm")
    if torch.cuda.device_count() > 1:
        raise Environment(
            f"this phase runs on one GPU, {torch.cuda.device_count()} are visible",
            where="distill.on_policy",
            todo="Show it one: CUDA_VISIBLE_DEVICES=0.",
        )
    return found
