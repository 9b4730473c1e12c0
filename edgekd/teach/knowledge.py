"""What a transformer knows beside its outputs: hidden states, attention maps, queries, keys and values.

The same code watches teacher and student, so both mean the same by a name:

    hidden:<l>:cls | mean     [B, H]        first token | mean over the real tokens
    hidden:<l>:tokens         [B, S, H]     layer 0: output of the embeddings; 1..L: output of that layer
    attention:<l>             [B, h, S, S]  attention probabilities, float32
    query:<l> key:<l> value:<l>  [B, S, H]  outputs of these projections, all heads side by side

Attention maps are computed again from query and key: the fused kernels do not give them, and the slow one gives
them after dropout, which is noise in a target. Refused: models without a stack of equal layers, fused
query/key/value projections, and attention maps where positions enter between projection and product (rotary,
relative), because they would be wrong.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from edgekd.errors import BadInput
from edgekd.losses import find, layer_map
from edgekd.recipe import Term

PROJECTIONS = {
    "query": ("query", "q_lin", "q_proj"),
    "key": ("key", "k_lin", "k_proj"),
    "value": ("value", "v_lin", "v_proj"),
}
POOLS = {"cls": "cls", "mean": "mean", "none": "tokens"}  # recipe word: last part of the knowledge name


@dataclass(frozen=True)
class Name:
    """A knowledge name taken apart."""

    kind: str  # hidden, attention, query, key, value
    layer: int
    pool: str = ""  # of hidden: cls, mean, tokens


def parse(name: str) -> Name:
    """Take a knowledge name apart; raises BadInput for one that is none."""
    kind, layer, *pool = name.split(":") if ":" in name else (name, "")
    known = kind == "hidden" if pool else kind in ("attention", *PROJECTIONS)
    if not known or not layer.isdecimal() or (pool and (len(pool) > 1 or pool[0] not in POOLS.values())):
        raise BadInput(
            f"'{name}' is no knowledge",
            where="recipe",
            todo="Known: hidden:<layer>:cls|mean|tokens, attention:<layer>, query:<layer>, key:<layer>, value:<layer>.",
        )
    if int(layer) < 1 and kind != "hidden":
        raise BadInput(f"'{name}': {kind} starts at layer 1", where="recipe", todo="Layer 0 has only a hidden state.")
    return Name(kind, int(layer), *pool)


def depth(config: Any) -> int:
    """Layers of a transformers encoder; 0 for a model that has none (a convolutional one)."""
    return int(getattr(config, "num_hidden_layers", 0))


def links(term: Term, student_layers: int, teacher_layers: int) -> list[tuple[str, str]]:
    """What one loss term of the recipe compares: pairs of knowledge names (student's, teacher's).

    Losses of outputs compare ``logits``; losses of samples too when ``pool`` is ``output``, else pooled hidden
    states. Raises BadInput for layers that do not exist and for a pool that the loss cannot use.
    """
    compares = find(term.loss).compares
    if compares == "outputs" or (compares == "samples" and term.pool == "output"):
        return [("logits", "logits")]
    if not student_layers or not teacher_layers:
        raise BadInput(
            f"'{term.loss}' compares layers, and a model here has no stack of equal ones",
            where="distill.losses",
            todo="Use losses of the outputs.",
        )
    pairs = layer_map(term.layers, student_layers, teacher_layers)
    if compares == "attention":
        made = [(f"attention:{s}", f"attention:{t}") for s, t in pairs]
    elif compares == "relations":
        made = [(f"{of}:{s}", f"{of}:{t}") for s, t in pairs for of in term.of]
    else:
        if term.pool not in POOLS or (compares == "samples" and term.pool == "none"):
            raise BadInput(
                f"'{term.loss}' cannot use pool: {term.pool}",
                where="distill.losses",
                todo=f"Use cls, mean or {'none' if compares == 'hidden' else 'output'}.",
            )
        made = [(f"hidden:{s}:{POOLS[term.pool]}", f"hidden:{t}:{POOLS[term.pool]}") for s, t in pairs]
    for one in made:
        parse(one[0]), parse(one[1])
    return made


@contextmanager
def capture(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, torch.Tensor]]:
    """Watch a transformers encoder: after each forward pass inside, the yielded dict holds every named tensor.

    Gradients flow through them. The hooks are gone on exit, the dict keeps the last pass. Padding is told by the
    model's ``attention_mask``; without one (images) every token is real. Works on BERT, RoBERTa, DistilBERT,
    ELECTRA, ViT and whatever is built like them; raises BadInput for a name or model that it cannot serve.
    """
    parsed = {name: parse(name) for name in names}
    layers = _layers(model, parsed)
    seen: dict[tuple[str, int], torch.Tensor] = {}
    found: dict[str, torch.Tensor] = {}

    def keep(kind: str, layer: int) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            seen[kind, layer] = output[0] if isinstance(output, tuple) else output

        return hook

    def keep_input(_: nn.Module, positional: tuple[Any, ...]) -> None:
        seen["hidden", 0] = positional[0]

    def finish(_: nn.Module, positional: tuple[Any, ...], named: Mapping[str, Any], __: Any) -> None:
        mask_BS = signature.bind(*positional, **named).arguments.get("attention_mask")
        found.update({name: _value(one, seen, mask_BS, layers) for name, one in parsed.items()})
        seen.clear()

    signature = inspect.signature(model.forward)
    handles = [model.register_forward_hook(finish, with_kwargs=True)]
    for kind, layer in {need for one in parsed.values() for need in _needs(one)}:
        if kind != "hidden":
            handles.append(_projection(layers[layer - 1], kind)[1].register_forward_hook(keep(kind, layer)))
        elif layer:
            handles.append(layers[layer - 1].register_forward_hook(keep(kind, layer)))
        else:
            handles.append(layers[0].register_forward_pre_hook(keep_input))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _needs(name: Name) -> list[tuple[str, int]]:
    kinds = ("query", "key") if name.kind == "attention" else (name.kind,)
    return [(kind, name.layer) for kind in kinds]


def _value(
    name: Name, seen: Mapping[tuple[str, int], torch.Tensor], mask_BS: torch.Tensor | None, layers: Sequence[nn.Module]
) -> torch.Tensor:
    if name.kind == "attention":
        attention = _projection(layers[name.layer - 1], "query")[0]
        return _attention(attention, seen["query", name.layer], seen["key", name.layer], mask_BS)
    value = seen[name.kind, name.layer]
    if name.pool == "cls":
        return value[:, 0]
    if name.pool == "mean":
        if mask_BS is None:
            return value.mean(1)
        mask_BS1 = mask_BS[..., None].to(value.dtype)
        return (value * mask_BS1).sum(1) / mask_BS1.sum(1)
    return value


def _attention(
    module: nn.Module, query_BSH: torch.Tensor, key_BSH: torch.Tensor, mask_BS: torch.Tensor | None
) -> torch.Tensor:
    """softmax(Q K^T * scale) per head [B, h, S, S] float32; keys of padding get 0 (arXiv:1706.03762, section 3.2.1)."""
    heads = query_BSH.shape[-1] // round(module.scaling**-2)  # scaling is 1 / sqrt(width of a head)
    query, key = (x.float().unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query_BSH, key_BSH))
    scores = query @ key.transpose(2, 3) * module.scaling
    if mask_BS is not None:
        scores = scores.masked_fill(mask_BS[:, None, None] == 0, torch.finfo(scores.dtype).min)
    return scores.softmax(-1)


def _layers(model: nn.Module, names: Mapping[str, Name]) -> Sequence[nn.Module]:
    """The model's stack of layers, after checking that it can serve the names."""
    if not names:
        return []
    count = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    stacks = (m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count)
    layers = next((stack for stack in stacks if len({type(layer) for layer in stack}) == 1), None)
    what = type(model).__name__
    if layers is None:
        raise BadInput(
            f"{next(iter(names))}: a {what} has no stack of equal layers to take it from",
            where="distill.losses",
            todo="Use losses of the outputs.",
        )
    for text, name in names.items():
        if name.layer > len(layers):
            raise BadInput(f"{text}: a {what} has {len(layers)} layers here", where="distill.losses")
        for kind, layer in _needs(name):
            if kind != "hidden" and _projection(layers[layer - 1], kind) is None:
                raise BadInput(
                    f"{text}: a {what} has no {kind} projection of its own",
                    where="distill.losses",
                    todo="Use hidden states, or losses of the outputs.",
                )
        if name.kind == "attention" and not _is_plain(model, layers[name.layer - 1]):
            raise BadInput(
                f"{text}: the attention of a {what} is not softmax(Q K^T) alone",
                where="distill.losses",
                todo="Use minilm, hidden states, or losses of the outputs.",
            )
    return layers


def _projection(layer: nn.Module, kind: str) -> Any:
    """(attention module, its projection) of a layer: the first one with such a name; None where there is none."""
    for module in layer.modules():
        for name, child in module.named_children():
            if name in PROJECTIONS[kind]:
                return module, child
    return None


def _is_plain(model: nn.Module, layer: nn.Module) -> bool:
    places = (*(name for name, _ in model.named_modules()), *(name for name, _ in model.named_parameters()))
    positions = any("rotary" in name or "relative" in name for name in places)
    return hasattr(_projection(layer, "query")[0], "scaling") and not positions
