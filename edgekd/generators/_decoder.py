"""Llama, Qwen2 and Qwen3 with the Program's numbers, in operators that exporters know, around a cache of the caller's.

transformers' own forward makes masks and positions for any use; a runtime wants one spelling. Weights and norms are
transformers' modules, so what is spelled here is their order alone: a test compares both, bit by bit of a float.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed
import torch.nn.functional as F
from safetensors import safe_open
from torch import nn

from edgekd.generators import _contract
from edgekd.generators._contract import BLOCK, head_dim

TYPES = ("llama", "qwen2", "qwen3")
ROTATIONS = ("default", "linear", "llama3", "yarn")  # those whose angles do not depend on a text's length
TABLE, HEAD = "model.embed_tokens", "lm_head"
# The index of a layer, queries [1, S, H, D], keys and values [1, S, G, D] of new tokens -> answers [1, S, H, D]
Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

qd = torch.ops.quantized_decomposed


class Table(nn.Module):
    """Rows gathered, cast, multiplied by their scale."""

    def __init__(self, weight_q: torch.Tensor, scale_V1: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("weight_q", weight_q)
        self.register_buffer("w_scale", scale_V1)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return F.embedding(ids, self.weight_q).to(torch.float32) * F.embedding(ids, self.w_scale)  # type: ignore[arg-type]


class Linear(nn.Module):
    """A linear layer of int8 rows (one scale each) or of int4 groups; ``dynamic``: of inputs in int8 by token."""

    def __init__(
        self, weight_q: torch.Tensor, scale_OG: torch.Tensor, bias: torch.Tensor | None, dynamic: bool
    ) -> None:
        super().__init__()
        rows = scale_OG.shape[1] == 1
        self.group, self.dynamic = 0 if rows else BLOCK, dynamic
        self.register_buffer("weight_q", weight_q)
        self.register_buffer("w_scale", scale_OG[:, 0].clone() if rows else scale_OG)
        self.register_buffer("w_zero", torch.zeros(self.w_scale.shape, dtype=torch.int64))
        self.register_buffer("bias", None if bias is None else bias.detach())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.dynamic:
            scale, zero = qd.choose_qparams_per_token_asymmetric(x, torch.int8)
            q = qd.quantize_per_token(x, scale, zero, -128, 127, torch.int8)
            x = qd.dequantize_per_token(q, scale, zero, -128, 127, torch.int8, torch.float32)
        if self.group:
            numbers = (self.weight_q, self.w_scale, self.w_zero, -8, 7, torch.int8, self.group, torch.float32)
            return F.linear(x, qd.dequantize_per_channel_group(*numbers), self.bias)  # type: ignore[arg-type]
        numbers = (self.weight_q, self.w_scale, self.w_zero, 0, -127, 127, torch.int8)
        return F.linear(x, qd.dequantize_per_channel(*numbers), self.bias)  # type: ignore[arg-type]


class Decoder(nn.Module):
    """The model without a cache. ``size`` is how many positions it knows."""

    def __init__(self, model: Any, size: int) -> None:
        super().__init__()
        config = model.config
        self.layers_count, self.head_dim = config.num_hidden_layers, head_dim(config)
        self.heads, self.shared_heads = config.num_attention_heads, config.num_key_value_heads
        self.scaling = model.model.layers[0].self_attn.scaling
        self.table, self.layers, self.norm, self.head = (
            model.model.embed_tokens,
            model.model.layers,
            model.model.norm,
            model.lm_head,
        )
        cos, sin = model.model.rotary_emb(torch.zeros(1, 1, config.hidden_size), torch.arange(size)[None])
        self.register_buffer("cos", cos[0].clone())
        self.register_buffer("sin", sin[0].clone())

    def hidden(self, ids: torch.Tensor, cos_SD: torch.Tensor, sin_SD: torch.Tensor, attend: Attend) -> torch.Tensor:
        """Normed states [1, S, E] of ids [1, S] whose rotations are ``cos`` and ``sin``."""
        cos, sin = cos_SD[:, None], sin_SD[:, None]  # the same for all heads
        h = self.table(ids)
        for index, layer in enumerate(self.layers):
            x, own = layer.input_layernorm(h), layer.self_attn
            q, k, v = (
                part(x).view(1, -1, heads, self.head_dim)
                for part, heads in (
                    (own.q_proj, self.heads),
                    (own.k_proj, self.shared_heads),
                    (own.v_proj, self.shared_heads),
                )
            )
            if hasattr(own, "q_norm"):
                q, k = own.q_norm(q), own.k_norm(k)
            answer = attend(index, self.rotated(q, cos, sin), self.rotated(k, cos, sin), v)
            h = h + own.o_proj(answer.reshape(1, -1, self.heads * self.head_dim))
            h = h + layer.mlp(layer.post_attention_layernorm(h))
        found: torch.Tensor = self.norm(h)
        return found

    def rotated(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """``x`` [..., D] with channels half a head apart turned together."""
        half = self.head_dim // 2
        return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin


def check(config: Any, runtime: str) -> None:
    """Llama, Qwen2 and Qwen3 whose rotations are known beforehand. Raises BadInput for others."""
    _contract.check_type(config, TYPES, runtime)
    _contract.check_rotations(config, ROTATIONS, runtime)


def load(program: Path, *, dynamic: bool | None = None) -> tuple[Any, list[str]]:
    """The transformers model with ``Linear`` and ``Table`` in place of its quantized layers, and the names of the
    matrices with integers that it multiplies by, in their order (a tied head is the table).

    ``dynamic`` says whether layers take int8 inputs; None leaves that to the scheme.
    """
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(program / _contract.MODEL, dtype=torch.float32)
    model.eval().requires_grad_(False)
    held = {name: tuple(map(torch.from_numpy, both)) for name, both in _contract.read_numbers(program).items()}
    with safe_open(program / _contract.NUMBERS, "pt") as file:
        layers = json.loads((file.metadata() or {}).get("layers", "[]"))
    for layer in layers:
        name = layer["name"]
        module = model.get_submodule(name)
        weight_q, scale_OG = held[layer.get("tied", name)]
        if isinstance(module, nn.Embedding):
            made: nn.Module = Table(weight_q, scale_OG)
        else:
            inputs = layer["kind"].endswith("dynamic") if dynamic is None else dynamic
            made = Linear(weight_q, scale_OG, module.bias, inputs)
        model.set_submodule(name, made)
    tied = {layer["name"]: layer["tied"] for layer in layers if "tied" in layer}
    return model, [tied.get(name, name) for name, one in model.named_modules() if isinstance(one, Linear)]
