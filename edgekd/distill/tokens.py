"""Teaching a language model: every learned token's distribution against the teacher's, a few tokens at a time.

The student gives hidden states, ``losses/_tokens.py`` makes of them the loss and its gradients without ever holding
two matrices of tokens by vocabulary. The teacher's distributions come from the cache as they were kept (the top K, or
draws), or whole from the teacher beside it. Terms on hidden states and relations are those of any other student.

    loss = alpha * cross entropy + (1 - alpha) * sum of weight * term
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from edgekd.distill import sources
from edgekd.distill.trainer import Learner, Lesson, Rows, _moved
from edgekd.errors import BadInput
from edgekd.losses import _tokens
from edgekd.teach import sparse
from edgekd.teach.knowledge import capture
from edgekd.teach.transformers import Encoded, inputs_of

DROPPED = "dropped"  # in the history: what the teacher gives to tokens that the student lacks
WHOLE = "whole"  # the knowledge of a teacher that is at hand: a `_tokens.Dense`


def head(model: Any) -> _tokens.Head:
    """What makes logits of a language model's last hidden states; raises BadInput where that is more."""
    found, config = model.get_output_embeddings(), model.config
    if not isinstance(found, nn.Linear):
        raise BadInput(f"a {type(model).__name__} has no linear head", where="distill", todo="Use another student.")
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    if getattr(config, "scale_decoder_outputs", False):  # T5 with a tied head
        scale = config.d_model**-0.5
    cap = float(getattr(config, "final_logit_softcapping", None) or 0.0)
    bias = getattr(model, "final_logits_bias", None)  # Marian's and BART's, [1, V]
    return _tokens.Head(found.weight, found.bias if bias is None else bias[0], scale, cap)


def hidden(model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """What the head reads, [B, S, D]: the last hidden states, of the decoder where there is an encoder too."""
    found: torch.Tensor = body(model, inputs).last_hidden_state
    return found


def body(model: Any, inputs: Mapping[str, torch.Tensor], **asked: bool) -> Any:
    """What a language model gives below its head: of the decoder, where there is an encoder too.

    ``asked`` of it, as transformers names it (``output_hidden_states``).
    """
    # Without a cache: with one, positions that start anew would not keep packed texts apart.
    if not model.config.is_encoder_decoder:
        return model.base_model(**inputs, **asked, use_cache=False)
    mask_BS = inputs["attention_mask"]
    read = model.get_encoder()(input_ids=inputs["input_ids"], attention_mask=mask_BS).last_hidden_state
    heard = {"encoder_hidden_states": read, "encoder_attention_mask": mask_BS}
    return model.get_decoder()(input_ids=inputs["decoder_input_ids"], **heard, **asked, use_cache=False)


class TokenLearner(Learner):
    """A language model with its lessons, and the loss over tokens."""

    def forward(self, *, tokens: Tokens | None = None, **inputs: Any) -> Any:
        if tokens is None:
            return super().forward(**inputs)
        hidden_BSD = hidden(self.student, inputs)
        hidden_ND = hidden_BSD[tokens.at_2N[0], tokens.at_2N[1]]
        return _tokens.loss(hidden_ND, head(self.student), tokens.teacher, tokens.right_N, tokens.how)


@dataclass(frozen=True)
class Tokens:
    """The learned tokens of a batch: where their hidden states are [2, N], which they are [N], and the goal."""

    at_2N: torch.Tensor
    right_N: torch.Tensor
    teacher: _tokens.Dense | _tokens.Sparse | None
    how: _tokens.Settings


@dataclass(frozen=True)
class TokenRows(Rows):
    """Rows of a language model. ``kept`` names what the cache holds; ``vocabulary`` are the tokenizer's tokens.

    ``packing`` puts several rows into one: positions start anew with each, so that attention keeps them apart.
    ``ids`` [V] is the student's id of each of the teacher's tokens, -1 for one that it lacks; None where they are the
    same. Rows that the two cut differently are not compared.
    """

    kept: str = ""
    vocabulary: int = 0
    packing: int = 0  # tokens of a packed row; 0 packs nothing
    ids: torch.Tensor | None = None

    @property
    def words(self) -> int:
        """The student's tokens; ``vocabulary`` are the teacher's."""
        return self.vocabulary if self.ids is None else int(self.ids.max()) + 1

    def shared(self, numbers: Sequence[int]) -> list[int]:
        """Places in a batch of rows that student and teacher cut alike."""
        return [i for i, row in enumerate(numbers) if self.aligned is None or self.aligned[row]]

    def collate(self, rows: list[int]) -> dict[str, torch.Tensor]:
        if not self.packing:
            batch = super().collate(rows)
            at = [(i, place) for i, row in enumerate(rows) for place in self.task.places(self.encoded[row])]
        else:
            batch, at = self._pack(rows)
        right = [token for row in rows for token in self.task.right(self.encoded[row])]
        return {**batch, "at": torch.tensor(at).reshape(-1, 2).T, "right": torch.tensor(right, dtype=torch.int64)}

    def _pack(self, rows: list[int]) -> tuple[dict[str, torch.Tensor], list[tuple[int, int]]]:
        """Each row into the first line with room; no mask is given: positions that start anew are one."""
        lines: list[list[int]] = []
        used: list[int] = []
        place_of: dict[int, tuple[int, int]] = {}
        for index in sorted(range(len(rows)), key=lambda i: -len(self.encoded[rows[i]]["input_ids"])):
            size = len(self.encoded[rows[index]]["input_ids"])
            line = next((i for i, n in enumerate(used) if n + size <= self.packing), len(lines))
            if line == len(lines):
                lines.append([])
                used.append(0)
            place_of[index] = (line, used[line])
            lines[line].append(index)
            used[line] += size
        ids = torch.full((len(lines), max(used)), self.pad_token_id)
        positions = torch.zeros_like(ids)
        for line, some in enumerate(lines):
            for index in some:
                start, text = place_of[index][1], self.encoded[rows[index]]["input_ids"]
                ids[line, start : start + len(text)] = torch.tensor(text)
                positions[line, start : start + len(text)] = torch.arange(len(text))
        at = [
            (place_of[i][0], place_of[i][1] + place)
            for i, row in enumerate(rows)
            for place in self.task.places(self.encoded[row])
        ]
        return {"input_ids": ids, "position_ids": positions, "rows": torch.tensor(rows)}, at

    def told(self, numbers: Sequence[int]) -> sources.Knowledge:
        """What the teacher knows of those of these rows that it cuts alike; nothing without a teacher or such rows."""
        shared = self.shared(numbers)
        return self.source([numbers[i] for i in shared]) if self.source is not None and shared else {}

    def goal(
        self, knowledge: sources.Knowledge, numbers: Sequence[int], device: torch.device
    ) -> _tokens.Dense | _tokens.Sparse | None:
        """The teacher's distributions of the learned tokens, in the order of ``right``, over the student's tokens.

        ``knowledge`` is of the ``shared`` ones of these rows; None where there are none.
        """
        if not knowledge:
            return None
        counts = self._compared(numbers, device)
        if WHOLE in knowledge:
            dense: _tokens.Dense = knowledge[WHOLE]
            theirs = dense.head if self.ids is None else _rows(dense.head, self.ids)
            return _tokens.Dense(_spread(dense.hidden, counts), theirs, counts)
        how = sparse.kind(self.kept, self.vocabulary)
        ids, log_p = sparse.decode(torch.cat(knowledge[self.kept]), how)
        tail = how.name == "top"
        if self.ids is None:
            places, values = (_spread(one.to(device), counts) for one in (ids, log_p))
            return _tokens.Sparse(places, values, tail, counts)
        places, values, lost = (_spread(one.to(device), counts) for one in sparse.among(ids, log_p, self.ids))
        left = lost < 1 - sparse.LEAST
        return _tokens.Sparse(places, values, tail, left if counts is None else left & counts, lost)

    def _compared(self, numbers: Sequence[int], device: torch.device) -> torch.Tensor | None:
        """Which learned tokens are in rows that both cut alike, [N]; None for all."""
        if self.aligned is None:
            return None
        sizes = [len(self.task.places(self.encoded[row])) for row in numbers]
        return self.aligned[list(numbers)].repeat_interleave(torch.tensor(sizes)).to(device)


def _spread(some: torch.Tensor, counts_N: torch.Tensor | None) -> torch.Tensor:
    """Rows at the places that count, [N, ...]; zeros elsewhere."""
    if counts_N is None:
        return some
    found = some.new_zeros(len(counts_N), *some.shape[1:])
    found[counts_N] = some
    return found


def _rows(whole: _tokens.Head, ids_V: torch.Tensor) -> _tokens.Head:
    """The part of a teacher's head that the student has, in its order."""
    held = (ids_V >= 0).nonzero()[:, 0]
    olds = held[ids_V[held].argsort()].to(whole.weight.device)
    return replace(whole, weight=whole.weight[olds], bias=None if whole.bias is None else whole.bias[olds])


def renumbered(task: Any, outputs: Sequence[torch.Tensor], ids: Sequence[int]) -> list[torch.Tensor]:
    """The teacher's outputs by row, with the student's ids of its tokens."""
    return [torch.from_numpy(task.renumbered(one.numpy(), ids)) for one in outputs]


def alike(mine: Sequence[Encoded], theirs: Sequence[Encoded], ids: Sequence[int] | None) -> list[bool]:
    """Which rows student and teacher cut into the same tokens, of which they learn the same."""

    def same(one: Encoded, other: Encoded) -> bool:
        told = other["input_ids"] if ids is None else [ids[id] for id in other["input_ids"]]
        return bool(one["input_ids"] == told and all(one.get(key) == other.get(key) for key in ("learn", "labels")))

    return [same(one, other) for one, other in zip(mine, theirs, strict=True)]


class OnlineTokens(sources.Online):
    """A language model that teaches whole distributions, asked in every step."""

    @torch.no_grad()
    def __call__(self, rows: Sequence[int]) -> sources.Knowledge:
        encoded = [self.encoded[row] for row in rows]
        inputs = inputs_of(self.teacher, encoded, self.pad_token_id, self.task.INPUTS)
        with capture(self.teacher.base_model, self.names) as captured:
            hidden_BSD = hidden(self.teacher, inputs)
        found = torch.cat([hidden_BSD[i, self.task.places(one)] for i, one in enumerate(encoded)])
        return {
            WHOLE: _tokens.Dense(found, head(self.teacher)),
            **{name: captured[name].float() for name in self.names},
        }


def values(
    bare: Learner,
    rows: TokenRows,
    lessons: Sequence[Lesson],
    inputs: dict[str, torch.Tensor],
    numbers: Sequence[int],
    alpha: float,
    temperature: float,
) -> tuple[Any, dict[str, tuple[float, torch.Tensor]]]:
    """As ``trainer.values``: ``tokens`` is the loss over tokens; its two parts are told with weight 0."""
    at_2N, right_N = inputs.pop("at"), inputs.pop("right")
    taught = rows.source is not None and alpha < 1
    outputs = [one for one in lessons if taught and one.term.weight and one.links[0].student == "logits"]
    others = [one for one in lessons if taught and one.term.weight and one.links[0].student != "logits"]
    if len(outputs) > 1:
        raise BadInput(
            f"{len(outputs)} losses compare the tokens' distributions", where="distill.losses", todo="Keep one of them."
        )
    term = outputs[0].term if outputs else None
    how = _tokens.Settings(
        divergence=term.loss if term else "forward-kl",
        soft=(1 - alpha) * term.weight if term else 0.0,
        hard=alpha,
        temperature=temperature,
        vocabulary=rows.words,
    )
    teacher = rows.told(numbers) if outputs or others else {}
    goal = rows.goal(teacher, numbers, right_N.device) if term else None
    names = sorted({link.student for one in others for link in one.links})
    with capture(bare.student.base_model, names) as captured:
        loss, parts = bare.forward(tokens=Tokens(at_2N, right_N, goal, how), **inputs)
    found = {"tokens": (1.0, loss)}
    if alpha > 0:
        found["hard"] = (0.0, loss.new_tensor(parts["hard"]))
    if term:
        found[outputs[0].name] = (0.0, loss.new_tensor(parts["soft"]))
        if rows.ids is not None:
            found[DROPPED] = (0.0, loss.new_tensor(parts["dropped"]))
    if others and (shared := rows.shared(numbers)):
        theirs = _moved({link.teacher: teacher[link.teacher] for one in others for link in one.links}, loss.device)
        everyone = torch.ones(len(shared), dtype=torch.bool, device=loss.device)
        mine, mask_BS = {name: value[shared] for name, value in captured.items()}, inputs["attention_mask"][shared]
        for one in others:
            value = one.value(rows.task, mine, theirs, mask_BS, everyone, bare.projections, temperature)
            found[one.name] = ((1 - alpha) * one.term.weight, value)
    return loss, found


def check(lessons: Sequence[Lesson], settings: Mapping[str, Any]) -> None:
    """Refuse, before training, what a cache of K tokens cannot give."""
    for one in lessons:
        if one.links[0].student != "logits":
            if settings["packing"]:
                raise BadInput(
                    f"'{one.name}' compares layers row by row", where="distill.packing", todo="Set it false."
                )
            continue
        if one.term.loss not in _tokens.DIVERGENCES:
            known = ", ".join(_tokens.DIVERGENCES)
            raise BadInput(f"'{one.term.loss}' is not for tokens", where="distill.losses", todo=f"Known: {known}.")
        if not settings["online"] and one.term.loss != "forward-kl":
            raise BadInput(
                f"'{one.term.loss}' needs the teacher's whole distribution; the cache holds {settings['kept']}",
                where="distill.losses",
                todo="Use forward-kl, or set teach.online.",
            )
        if not settings["online"] and settings["kept"].startswith("sampled") and settings["temperature"] != 1.0:
            raise BadInput(
                f"draws are of the distribution at temperature 1, distill.temperature is {settings['temperature']:g}",
                where="recipe",
                todo="Set distill.temperature to 1, or teach.tokens to top:64.",
            )
