"""CLIP as edgekd runs it: rows of one tower or of both, and each tower as a model of its own.

An embedding's length is the square root of the model's logit scale: the dot product of an image's and a text's is the
logit of transformers' CLIPModel. The text tower's pooling, the state of the first end of text, is written as a sum over
a mask with one entry: the same number, in operators that every exporter knows.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import transformers
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

LEGACY_END = 2  # older configurations say so of every tokenizer, and mean the highest id of the text


class Whole(nn.Embedding):
    """A table whose rows are all read for every input: stored as parameters are, not as a table of words."""


class Tower(nn.Module):
    """One part of a dual encoder: ``forward(**inputs)`` gives its states and, as ``pooler_output``, [B, D] embeddings.

    Its ``config`` is the tower's own.
    """

    def __init__(self, model: Any, part: str) -> None:
        super().__init__()
        self.body, self.projection = _of(model, part)
        self.config = self.body.config
        self.register_buffer("length", _length(model))

    def forward(self, **inputs: Any) -> Any:
        return _run(self.body, self.projection, self.length, inputs)


class CLIPModel(transformers.CLIPModel):
    """transformers' model, with a forward pass over images, texts, or pairs of both (rows in turn, the image first)."""

    @classmethod
    def from_config(cls, config: Any) -> nn.Module:
        """A model with fresh weights."""
        return cls._from_config(config)

    def forward(self, pixel_values: Any = None, input_ids: Any = None, attention_mask: Any = None) -> Any:
        inputs = {
            "image": {"pixel_values": pixel_values},
            "text": {"input_ids": input_ids, "attention_mask": attention_mask},
        }
        given = [part for part, some in inputs.items() if any(one is not None for one in some.values())]
        found = [_run(*_of(self, part), _length(self), inputs[part]).pooler_output for part in given]
        return BaseModelOutputWithPooling(pooler_output=torch.stack(found, 1).flatten(0, 1))


def configs(config: Any) -> dict[str, Any]:
    """The configurations of the towers by part; none where it is no dual encoder's."""
    return {"image": config.vision_config, "text": config.text_config} if config.model_type == "clip" else {}


def tower(model: Any, part: str) -> nn.Module:
    """A part of the model, sharing no tensor with it."""
    made = copy.deepcopy(Tower(model, part))
    if part == "image":
        made.body.embeddings.position_embedding.__class__ = Whole
    return made


def _of(model: Any, part: str) -> tuple[nn.Module, nn.Module]:
    return {
        "image": (model.vision_model, model.visual_projection),
        "text": (model.text_model, model.text_projection),
    }[part]


def _length(model: Any) -> torch.Tensor:
    return (model.logit_scale.detach() / 2).exp()


def _run(body: nn.Module, projection: nn.Module, length: torch.Tensor, inputs: dict[str, Any]) -> Any:
    found = body(**inputs)
    pooled_BH = found.pooler_output
    if "input_ids" in inputs:
        pooled_BH = _ends(found.last_hidden_state, inputs["input_ids"], body.config)
    made_BD = projection(pooled_BH)
    found["pooler_output"] = made_BD / (made_BD * made_BD).sum(-1, keepdim=True).clamp(min=1e-12).sqrt() * length
    return found


def _ends(states_BSH: torch.Tensor, ids_BS: torch.Tensor, config: Any) -> torch.Tensor:
    """The state at the first end of text, [B, H]."""
    end = ids_BS.amax(-1, keepdim=True) if config.eos_token_id == LEGACY_END else config.eos_token_id
    ends_BS = (ids_BS == end).to(states_BSH.dtype)
    first_BS = ends_BS * (ends_BS.cumsum(-1) == 1).to(states_BSH.dtype)
    return (states_BSH * first_BS[..., None]).sum(1)
