"""TRL's trainers in which a student writes, with edgekd's rows, judge and checkpoints.

``SameTokens`` is mixed into ``GKDTrainer`` (Agarwal et al. 2024, arXiv:2306.13649): student and teacher are compared
over the whole vocabulary, by ``losses/_tokens.py``. ``OtherTokens`` is mixed into ``GOLDTrainer``, for a teacher with
another tokenizer: the text is cut where both tokenizers cut it; what both vocabularies have is compared token by token,
and the rest by rank (Patino et al. 2025, "Unlocking on-policy distillation for any model family"; Boizard et al. 2024,
arXiv:2402.12030). The trainers come with the extra ``llm``, so the classes are put together where they are used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer

from edgekd import registry
from edgekd.distill import tokens, trainer
from edgekd.errors import BadInput
from edgekd.losses import _tokens
from edgekd.teach import transformers
from edgekd.teach.transformers import Encoded

BETAS = {"forward-kl": 0.0, "jensen-shannon": 0.5, "reverse-kl": 1.0}  # what GOLD knows
UNCUT = 10**9  # tokens
Batch = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Lines:
    """Rows to learn from and, in the same order, what the student goes on from, token ids.

    ``texts`` for a teacher with other tokens: of each row the prompt as the teacher reads it, and what follows.
    """

    encoded: Sequence[Encoded]
    prompts: Sequence[Sequence[int]]
    pad_token_id: int
    texts: Sequence[tuple[str, str]] = ()
    sizes: Sequence[Sequence[int]] = ()  # of each token, bytes

    def collate(self, some: Sequence[Mapping[str, int]]) -> dict[str, Any]:
        """A batch as TRL's trainers take it: rows padded on the right, labels of what is learned, and ``asked``."""
        rows = [one["row"] for one in some]
        encoded = [self.encoded[row] for row in rows]
        batch = transformers.pad(encoded, self.pad_token_id)
        unlearned_BS = transformers.pad(encoded, 0, ("learn",))["learn"] == 0
        labels_BS = batch["input_ids"].masked_fill(unlearned_BS, _tokens.IGNORED)
        return {**batch, "labels": labels_BS, **self.asked(rows), **(self._read(rows) if self.texts else {})}

    def asked(self, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        """``prompts`` and their mask [B, S], padded on the left."""
        ids = [self.prompts[row][::-1] for row in rows]
        backwards = [{"input_ids": one, "attention_mask": [1] * len(one)} for one in ids]
        padded = transformers.pad(backwards, self.pad_token_id)
        return {"prompts": padded["input_ids"].flip(1), "prompt_attention_mask": padded["attention_mask"].flip(1)}

    def _read(self, rows: Sequence[int]) -> dict[str, Any]:
        sizes_BS = transformers.pad([{"input_ids": self.sizes[row]} for row in rows], 0, ("input_ids",))["input_ids"]
        ends_BS = sizes_BS.cumsum(1)
        return {
            "original_prompt_text": [self.texts[row][0] for row in rows],
            "original_completion_text": [self.texts[row][1] for row in rows],
            "byte_offsets": torch.stack((ends_BS - sizes_BS, ends_BS), -1) * (sizes_BS > 0)[..., None],
        }


def lines(some: Sequence[tuple[Any, Encoded, list[int]]], task: Any, mine: Any, theirs: Any | None, pad: int) -> Lines:
    """Lines of rows with their encodings and prompts. ``theirs``: the teacher's tokenizer where it is another.

    Then only what follows the prompt is learned, up to where somebody else speaks.
    """
    prompts = [prompt for _, _, prompt in some]
    if theirs is None:
        return Lines([one for _, one, _ in some], prompts, pad)
    encoded, texts, sizes = [], [], []
    for row, one, prompt in some:
        ids, begin = one["input_ids"], len(prompt)
        end = next((i for i in range(begin, len(ids)) if not one["learn"][i]), len(ids))
        read = mine.decode(prompt) if "text" in row else theirs.decode(task.prompt(theirs, row, UNCUT))
        encoded.append(
            {"input_ids": ids[:end], "attention_mask": [1] * end, "learn": [0] * begin + [1] * (end - begin)}
        )
        texts.append((read.removeprefix(theirs.bos_token or ""), mine.decode(ids[begin:end])))
        pieces = mine.convert_ids_to_tokens(ids[begin:end])
        sizes.append([0] * begin + [len(piece) for piece in pieces])  # a character of a byte-level piece is a byte
    return Lines(encoded, prompts, pad, texts, sizes)


def learned(net: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The hidden states [N, D] that predict the labelled tokens of a batch, and these [N].

    ``batch``: ``input_ids``, ``attention_mask`` and ``labels`` [B, S]; padding may be on both sides of a text.
    """
    order_BS = (1 - batch["attention_mask"]).argsort(dim=1, stable=True)  # texts begin at position 0, for every model
    ids_BS, mask_BS, labels_BS = (batch[name].gather(1, order_BS) for name in ("input_ids", "attention_mask", "labels"))
    right_BT = labels_BS[:, 1:]
    hidden_BSD = net.base_model(input_ids=ids_BS, attention_mask=mask_BS, use_cache=False).last_hidden_state
    return hidden_BSD[:, :-1][right_BT != _tokens.IGNORED], right_BT[right_BT != _tokens.IGNORED]


def divergence(model: Any, teacher: Any, batch: Batch, kind: str, vocabulary: int) -> tuple[torch.Tensor, int]:
    """The mean divergence of student and teacher (nats) over the labelled tokens of a batch, and how many these are."""
    mine_ND, right_N = learned(model, batch)
    if not len(right_N):
        return mine_ND.sum(), 0
    with torch.no_grad():
        theirs = _tokens.Dense(learned(teacher, batch)[0], tokens.head(teacher))
    how = _tokens.Settings(divergence=kind, vocabulary=vocabulary)
    return _tokens.loss(mine_ND, tokens.head(model), theirs, right_N, how)[0], len(right_N)


@torch.no_grad()
def nats(net: Any, batch: Batch) -> float:
    """- log probability of all labelled tokens of a batch."""
    hidden_ND, right_N = learned(net, batch)
    how = _tokens.Settings(soft=0.0, hard=1.0)
    return (
        float(_tokens.loss(hidden_ND, tokens.head(net), None, right_N, how)[0]) * len(right_N) if len(right_N) else 0.0
    )


class Writer(trainer.Judged):
    """What both have in common; the class after it is TRL's."""

    def __init__(
        self,
        model: Any,
        teacher: Any,
        lines: Lines,
        processor: Any,
        arguments: Any,
        *,
        keeper: trainer.Keeper,
        judge: Callable[[nn.Module], dict[str, float]],
        divergence: str,
        vocabulary: int,
    ) -> None:
        from datasets import Dataset

        self.judge, self.divergence, self.vocabulary = judge, divergence, vocabulary
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

    def reverse_kl(self, model: Any, lines: Lines, size: int, seed: int) -> float:
        """How much likelier than the teacher the student finds what it writes after these prompts, nats a unit.

        It is drawn by ``seed``; ``compared`` says what the unit is.
        """
        training, total, count = model.training, 0.0, 0
        model.eval()
        place = next(model.parameters()).device
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
            for rows in transformers.length_batches([len(one) for one in lines.prompts], size):
                asked: dict[str, Any] = {name: one.to(place) for name, one in lines.asked(rows).items()}
                if lines.texts:
                    asked["original_prompt_text"] = [lines.texts[row][0] for row in rows]
                made = self.generate_on_policy_outputs(model, asked, self.generation_config)
                batch = dict(zip(("input_ids", "attention_mask", "labels", "prompt", "text"), made, strict=False))
                value, some = self.compared(model, batch)
                total, count = total + value, count + some
        model.train(training)
        return total / max(1, count)

    def finite(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss; raises BadInput where it is none."""
        if not torch.isfinite(loss):
            raise BadInput(
                f"the training diverged: its loss is {loss.item()} in step {self.state.global_step + 1}",
                where="distill.on_policy",
                todo=f"Lower distill.on_policy.learning_rate (it is {self.args.learning_rate:g}).",
            )
        return loss

    def _send_telemetry(self) -> None:
        """Nothing is sent."""

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Nobody reads the card of a checkpoint."""


class SameTokens(Writer):
    """In ``GKDTrainer``."""

    def __init__(self, model: Any, teacher: Any, *rest: Any, **named: Any) -> None:
        teacher.resize_token_embeddings(model.config.vocab_size, mean_resizing=False)  # such rows never count
        super().__init__(model, teacher, *rest, **named)

    def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> torch.Tensor:
        # Not GKD's own: that holds both [tokens, vocabulary] matrices, and divides what the student wrote by the
        # number of the data's tokens.
        with self.accelerator.autocast():
            bare = self.accelerator.unwrap_model(model)
            return self.finite(divergence(bare, self.teacher_model, inputs, self.divergence, self.vocabulary)[0])

    def compared(self, model: Any, batch: Mapping[str, Any]) -> tuple[float, int]:
        """KL(student || teacher), the sum over the tokens, and how many these are."""
        value, count = divergence(model, self.teacher_model, batch, "reverse-kl", self.vocabulary)
        return float(value) * count, count


class OtherTokens(Writer):
    """In ``GOLDTrainer``."""

    def _get_train_sampler(self, *some: Any) -> Any:
        return Trainer._get_train_sampler(self, *some)  # GOLD's own begins anew where a training goes on

    def compute_loss(self, *inputs: Any, **named: Any) -> torch.Tensor:
        return self.finite(super().compute_loss(*inputs, **named))

    def generate_on_policy_outputs(self, model: Any, inputs: Any, config: Any) -> tuple[Any, ...]:
        *made, _, text = super().generate_on_policy_outputs(model, inputs, config)
        return (
            *made,
            inputs["original_prompt_text"],
            text,
        )  # as the teacher reads it, and not by the student's template

    def compared(self, model: Any, batch: Mapping[str, Any]) -> tuple[float, int]:
        """log of the student's probability over the teacher's, the sum over the texts, and their bytes.

        An end that the student wrote is one byte, and the end of the teacher's kind. The expectation is KL(student ||
        teacher) of the texts, but for ways to cut a text into tokens that no tokenizer takes.
        """
        mine, theirs = self.processing_class, self.teacher_tokenizer
        encoded, count = [], 0
        for ids, labels, prompt in zip(batch["input_ids"], batch["labels"], batch["prompt"], strict=True):
            said = ids[labels != _tokens.IGNORED].tolist()
            ended = bool(said) and said[-1] == mine.eos_token_id
            text = mine.decode(said[: len(said) - ended])
            before, after = theirs(prompt)["input_ids"], theirs(text, add_special_tokens=False)["input_ids"]
            after += [theirs.eos_token_id] * ended
            learn = [0] * len(before) + [1] * len(after)
            encoded.append({"input_ids": before + after, "attention_mask": [1] * len(learn), "learn": learn})
            count += len(text.encode()) + ended
        read = Lines(encoded, [[0]] * len(encoded), int(theirs.pad_token_id or 0))
        whole = read.collate([{"row": row} for row in range(len(encoded))])
        other = {name: whole[name].to(batch["labels"].device) for name in ("input_ids", "attention_mask", "labels")}
        return nats(self.teacher_model, other) - nats(model, batch), count


def gkd(settings: Any, common: Mapping[str, Any]) -> tuple[type, Any]:
    """The trainer of a student with its teacher's tokens, and its arguments."""
    found, wanted = registry.require("trl.experimental.gkd", "llm"), settings.on_policy
    arguments = found.GKDConfig(**common, max_new_tokens=wanted.max_new_tokens)
    return type("Gkd", (SameTokens, found.GKDTrainer), {}), arguments


def gold(settings: Any, common: Mapping[str, Any], tokenizer: Path) -> tuple[type, Any]:
    """The trainer of a student with tokens of its own, and its arguments. ``tokenizer``: the teacher's folder."""
    found, wanted = registry.require("trl.experimental.gold", "llm"), settings.on_policy
    arguments = found.GOLDConfig(
        **common,
        max_completion_length=wanted.max_new_tokens,
        max_length=None,
        top_p=1.0,
        beta=BETAS[wanted.divergence],
        use_uld_loss=True,
        uld_use_hybrid_loss=True,
        uld_token_merge_strategy="bayesian",  # a merged token's probability is the product of its parts' (chain rule)
        teacher_tokenizer_name_or_path=str(tokenizer),
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    return type("Gold", (OtherTokens, found.GOLDTrainer), {}), arguments


def check_other_tokens(divergence: str, *tokenizers: Any) -> None:
    """Refuse, before training, what GOLD cannot do."""
    utils = registry.require("trl.experimental.utils", "llm")
    where = "distill.on_policy"
    if divergence not in BETAS:
        raise BadInput(
            f"'{divergence}' is not for a teacher with other tokens", where=where, todo=f"Known: {', '.join(BETAS)}."
        )
    if not all(utils.is_byte_level_tokenizer(one.backend_tokenizer) for one in tokenizers):
        raise BadInput(
            "the student's tokens are not the teacher's, and one of the tokenizers is not byte-level",
            where=where,
            todo="Learn from the teacher's answers (teacher.endpoint), or take a student of its family.",
        )
