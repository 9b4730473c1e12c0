"""What of a teacher matters: scores of its hidden units, attention heads and feed-forward neurons.

A student that is cut out of its teacher keeps the best-scored parts (``student.make``). Parts are found by the names
that model families give them; a family that is not in the table is refused, never guessed.

Language models share keys and values among groups of query heads. A head's group goes or stays as a whole, or every
group loses as many queries (``grouped``): attention is then built from the configuration alone.

Sources: Molchanov et al. 2019 (arXiv:1906.10771) for first-order Taylor scores, Michel et al. 2019
(arXiv:1905.10650) for heads, Muralidharan et al. 2024 (arXiv:2407.14679) for what is cut of a language model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from edgekd.errors import BadInput


@dataclass(frozen=True)
class Roles:
    """Where the parts of a transformer layer are: module names inside the layer, and the attribute with the heads.

    ``gate``: the second matrix into a gated feed-forward part, whose neurons are those of ``up``. ``types``: the model
    types (transformers' names) that are meant, where the names of the modules do not tell; their norms are root mean
    squares whose weight is a factor.
    """

    attention: str
    query: str
    key: str
    value: str
    out: str
    up: str
    down: str
    heads: str = "num_attention_heads"
    gate: str | None = None
    types: tuple[str, ...] = ()

    @property
    def modules(self) -> set[str]:
        """The names that a layer of this family has."""
        named = {self.attention, self.query, self.key, self.value, self.out, self.up, self.down}
        return named | ({self.gate} if self.gate else set())

    def axes(self, tensor: str) -> tuple[str, str]:
        """What the first and second axis of a layer's tensor count: "hidden", "heads" and "shared" (heads of queries,
        and of keys and values, times their size), "neurons", or "same" (what belongs to every head alike)."""
        module = tensor.rpartition(".")[0]
        into = {self.query: "heads", self.key: "shared", self.value: "shared", self.up: "neurons", self.gate: "neurons"}
        out_of = {self.out: "heads", self.down: "neurons"}
        inside = module.startswith(f"{self.attention}.") and module not in self.modules
        rest = "same" if inside else "hidden"
        return into.get(module, rest), out_of.get(module, rest)


# Llama has SmolLM and TinyLlama among it.
DECODERS = ("llama", "mistral", "qwen2", "qwen3")
FAMILIES = (
    Roles(  # BERT, RoBERTa, XLM-RoBERTa, CamemBERT, ELECTRA
        "attention.self",
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    ),
    Roles(  # DistilBERT
        "attention",
        "attention.q_lin",
        "attention.k_lin",
        "attention.v_lin",
        "attention.out_lin",
        "ffn.lin1",
        "ffn.lin2",
        "n_heads",
    ),
    Roles(  # ViT
        "attention",
        "attention.q_proj",
        "attention.k_proj",
        "attention.v_proj",
        "attention.o_proj",
        "mlp.fc1",
        "mlp.fc2",
    ),
    Roles(
        "self_attn",
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.up_proj",
        "mlp.down_proj",
        gate="mlp.gate_proj",
        types=DECODERS,
    ),
)


@dataclass(frozen=True)
class Importance:
    """Scores, higher matters more: of the hidden units [H], and per layer of the heads [h] and the neurons [I].

    ``energy``: by the name of a root-mean-square norm, the mean square of each hidden unit [H] before it.
    """

    hidden: torch.Tensor
    heads: tuple[torch.Tensor, ...]
    neurons: tuple[torch.Tensor, ...]
    energy: Mapping[str, torch.Tensor] = field(default_factory=dict)


def encoder(model: nn.Module) -> tuple[nn.ModuleList, Roles]:
    """The model's layers and the names of their parts; raises BadInput for a family that is not in the table."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module):
            names = {name for name, _ in module[0].named_modules()}
            for roles in FAMILIES:
                if roles.modules <= names and (not roles.types or _type(model) in roles.types):
                    return module, roles
    raise BadInput(
        f"heads, neurons and units of a {type(model).__name__} cannot be told apart, so it cannot be pruned",
        where="distill.student",
        todo="Leave out its heads, intermediate_size and prune (layers can be left out of any model), or use BERT, "
        "RoBERTa, DistilBERT, ELECTRA, ViT, Llama, Mistral, Qwen2 or Qwen3.",
    )


def _type(model: nn.Module) -> str:
    return str(getattr(getattr(model, "config", None), "model_type", ""))


def head_shape(layer: nn.Module, roles: Roles) -> tuple[int, int]:
    """Number of heads (of queries) of a layer, and the width of each."""
    attention = layer.get_submodule(roles.attention)
    heads = int(getattr(attention if hasattr(attention, roles.heads) else attention.config, roles.heads))
    return heads, layer.get_submodule(roles.out).in_features // heads


def grouped(heads: int, own: int, shared: int) -> int:
    """How many of its ``shared`` heads of keys and values a layer keeps with ``heads`` of its ``own`` of queries.

    Keys and values go with all their queries where that comes out even; else each of them keeps fewer queries. Raises
    BadInput where neither does.
    """
    each = own // shared
    if heads % each == 0:
        return heads // each
    if heads % shared == 0:
        return shared
    raise BadInput(
        f"distill.student.heads is {heads}, and its source has {shared} heads of keys and values for {own} of queries",
        todo=f"Choose a multiple of {each} (keys and values go with their queries) or of {shared} (each has fewer).",
    )


def best_heads(scores: torch.Tensor, count: int, shared: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Which heads of queries, and of keys and values, a layer keeps; ``scores`` [h] are of its queries.

    Those of keys and values count as the sum of their queries.
    """
    groups = scores.unflatten(0, (shared, -1))
    kept = grouped(count, len(scores), shared)
    keys = best(groups.sum(1), kept)
    queries = torch.stack([best(groups[key], count // kept) + key * groups.shape[1] for key in keys])
    return queries.flatten(), keys


def importance(
    teacher: nn.Module, batches: Iterable[Any], loss: Callable[[nn.Module, Any], torch.Tensor]
) -> Importance:
    """First-order Taylor scores of the teacher's parts on data: how much the loss would move without them.

    ``loss(teacher, batch)`` is the mean loss of a batch, a scalar. A part's score is |activation * gradient| (for a
    head summed over its dimensions first), added up over tokens and averaged over the batches. Hidden units
    are seen at the input of every layer and at the output of the last, heads before the attention's output
    projection, neurons before the second feed-forward layer. No gradient reaches the teacher's parameters.
    Energies are means over the tokens on which the loss depends.
    """
    layers, roles = encoder(teacher)
    shapes = [head_shape(layer, roles) for layer in layers]
    seen: dict[tuple[str, int], torch.Tensor] = {}
    scores: dict[tuple[str, int], torch.Tensor] = {}
    normed: dict[str, torch.Tensor] = {}
    energy: dict[str, torch.Tensor] = {}

    def note(kind: str, place: int) -> Callable[..., Any]:
        def hook(module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            first = arguments[0] if seen else arguments[0].detach().requires_grad_()  # a frozen teacher has no graph
            seen[kind, place] = first
            return (first, *arguments[1:])

        return hook

    def last(module: nn.Module, arguments: Any, output: Any) -> None:
        seen["hidden", len(layers)] = output[0] if isinstance(output, tuple) else output

    def before(name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
            normed[name] = arguments[0].detach()

        return hook

    hooks = [layers[-1].register_forward_hook(last)]
    hooks += [module.register_forward_pre_hook(before(name)) for name, module in _norms(teacher, roles)]
    for place, layer in enumerate(layers):
        hooks.append(layer.register_forward_pre_hook(note("hidden", place)))
        hooks.append(layer.get_submodule(roles.out).register_forward_pre_hook(note("heads", place)))
        hooks.append(layer.get_submodule(roles.down).register_forward_pre_hook(note("neurons", place)))
    training, batch_count = teacher.training, 0
    teacher.eval()
    try:
        for batch in batches:
            seen.clear()
            with torch.enable_grad():
                gradients = torch.autograd.grad(loss(teacher, batch), list(seen.values()))
            for (kind, place), gradient in zip(seen, gradients, strict=True):
                moved = (seen[kind, place].detach() * gradient).flatten(0, -2)
                if kind == "heads":
                    moved = moved.unflatten(-1, shapes[place]).sum(-1)
                scores[kind, place] = scores.get((kind, place), 0) + moved.abs().sum(0)
            for name, states in normed.items():
                counts = gradients[0].flatten(0, -2).any(-1)
                energy[name] = energy.get(name, 0) + states.flatten(0, -2)[counts].square().mean(0)
            batch_count += 1
    finally:
        teacher.train(training)
        for hook in hooks:
            hook.remove()
    if not batch_count:
        raise BadInput("importance needs at least one row", where="distill.student.prune")
    mean = {key: score / batch_count for key, score in scores.items()}
    places = range(len(layers))
    return Importance(
        hidden=torch.stack([score for (kind, _), score in mean.items() if kind == "hidden"]).sum(0),
        heads=tuple(mean["heads", place] for place in places),
        neurons=tuple(mean["neurons", place] for place in places),
        energy={name: value / batch_count for name, value in energy.items()},
    )


def _norms(model: nn.Module, roles: Roles) -> list[tuple[str, nn.Module]]:
    """Root-mean-square norms of the hidden units, by name; attention's own are not among them."""
    if not roles.types:
        return []
    own = f".{roles.attention}."
    return [
        (name, one) for name, one in model.named_modules() if type(one).__name__.endswith("RMSNorm") and own not in name
    ]


def refitted(energy: torch.Tensor, kept: torch.Tensor) -> float:
    """The factor of a root-mean-square norm's weight that makes up for the units that are no longer in its mean.

    Where the others were zero, the student's states are then the teacher's; where all are alike, it is 1.
    """
    return float((energy[kept].mean() / energy.mean()).sqrt())


def head_norms(layer: nn.Module, roles: Roles) -> torch.Tensor:
    """Scores without data, [h]: norm of what a head takes in as values times norm of what it gives out."""
    heads, size = shape = head_shape(layer, roles)
    value = layer.get_submodule(roles.value).weight.detach().unflatten(0, (-1, size))
    out = layer.get_submodule(roles.out).weight.detach().unflatten(1, shape)
    return value.norm(dim=(1, 2)).repeat_interleave(heads // len(value)) * out.norm(dim=(0, 2))


def neuron_norms(layer: nn.Module, roles: Roles) -> torch.Tensor:
    """Scores without data, [I]: norm of a neuron's weights in (times that of its gate's) times norm of those out."""
    up, down = (layer.get_submodule(name).weight.detach() for name in (roles.up, roles.down))
    gate = layer.get_submodule(roles.gate).weight.detach().norm(dim=1) if roles.gate else 1.0
    return up.norm(dim=1) * gate * down.norm(dim=0)


def best(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Indices of the ``count`` highest scores, ascending; ties go to the lower index."""
    return scores.argsort(descending=True, stable=True)[:count].sort().values


def spread(heads: torch.Tensor, size: int) -> torch.Tensor:
    """The dimensions of some heads, each ``size`` wide."""
    return (heads[:, None] * size + torch.arange(size)).flatten()


def set_heads(layer: nn.Module, roles: Roles, count: int, size: int) -> None:
    """Give a layer's attention ``count`` heads of width ``size``, whatever the hidden size; their weights are fresh."""
    attention = layer.get_submodule(roles.attention)
    sizes: Mapping[str, Any] = {
        roles.heads: count,
        "attention_head_size": size,
        "all_head_size": count * size,
        "scaling": size**-0.5,
    }
    for name, value in sizes.items():
        if hasattr(attention, name):
            setattr(attention, name, value)
    for name in (roles.query, roles.key, roles.value):
        old = layer.get_submodule(name)
        layer.set_submodule(name, nn.Linear(old.in_features, count * size, bias=old.bias is not None))
    old = layer.get_submodule(roles.out)
    layer.set_submodule(roles.out, nn.Linear(count * size, old.out_features, bias=old.bias is not None))
