"""SmoothQuant: what is hard to quantize in activations moves into weights, before anything is quantized.

A channel whose values are far larger than its neighbours' spoils the one scale that a tensor has. Divided by
``s = max|X| ** alpha / max|W| ** (1 - alpha)`` where it is made, and its column of weights multiplied by ``s`` where it
is read, the model computes the same (Xiao et al. 2023, arXiv:2211.10438). Factors are folded into parameters that are
there wherever that is possible, and no layer changes its name. They are powers of two, so that nothing is rounded: the
student gives the same bits as before.

Where that is possible follows from the graph, whatever the family. The channels that a linear layer or the weights of a
norm make are numbered, and the numbers follow them through operators that are homogeneous channel by channel: views,
ReLU, a product with something else (a gate), the values of an attention. A channel that only linear layers read can be
scaled. So a norm can where no residual reads it, and values can through grouped-query attention: heads that share a
channel share its factor. GELU, a sum or a parameter that is used twice ends the way.

A norm that a residual reads too (post-norm models: BERT) cannot be scaled, and it is just there that channels differ
most. Its int8 readers of static scales divide by the factors themselves: one product, exact, in front of them
(``reference.Smoothed``), which those that read one tensor share in the Program.

(neural-compressor's SmoothQuant cannot be imported without intel-extension-for-pytorch.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from edgekd.artifact import Facts
from edgekd.quantize import program
from edgekd.quantize.qat import same_length_batches
from edgekd.quantize.reference import Smoothed
from edgekd.quantize.scheme import Scheme
from edgekd.teach.transformers import Encoded, length, pad

aten = torch.ops.aten
LINEAR, MULTIPLY, CONCATENATE = aten.linear.default, aten.mul.Tensor, aten.cat.default
NORMS = frozenset({aten.layer_norm.default, aten.rms_norm.default})
MIXES = {aten.scaled_dot_product_attention.default: 2, aten.matmul.default: 1}  # tokens, not channels, of this argument
MOVES = frozenset(
    {
        aten.view.default,
        aten.reshape.default,
        aten.flatten.using_ints,
        aten.transpose.int,
        aten.permute.default,
        aten.select.int,
        aten.slice.Tensor,
        aten.unsqueeze.default,
        aten.squeeze.dim,
        aten.expand.default,
    }
)
KEEPS = frozenset(
    {
        aten.relu.default,
        aten.dropout.default,
        aten.to.dtype,
        aten.to.device,
        aten.to.dtype_layout,
        aten.contiguous.default,
        aten.clone.default,
        aten.detach.default,
    }
)
LOOKS = frozenset({aten.sym_size.int, aten._assert_tensor_metadata.default})  # at shapes alone
ROWS = 128  # that factors are chosen by: with 512 the Program came no nearer (docs/log.md)
KINDS = {aten.relu.default: "relu", MULTIPLY: "gate"} | dict.fromkeys(MIXES, "attention")


@dataclass
class Source:
    """A norm or a linear layer that makes channels: ``parameters`` [O, ...], whose first axis scales them.

    ``free`` [O] are the channels that only linear layers read; ``readers`` maps the name of such a layer to the channel
    that each of its inputs is, [I]. ``kind`` says what lies between; ``norm``: nothing.
    """

    parameters: list[nn.Parameter]
    kind: str
    free: torch.Tensor
    readers: dict[str, torch.Tensor] = field(default_factory=dict)


def fold(
    student: nn.Module, scheme: Scheme, alpha: float, rows: Sequence[Encoded], task: Any, max_length: int
) -> Facts:
    """Smooth ``student`` in place where layers with int8 activations read what can be scaled, by the first of ``rows``.

    Facts: ``alpha``; ``pairs``, how many norms and layers were scaled, by what lies between them and their readers, and
    how many norms have readers that scale for themselves (``product``); ``left``, how many layers with int8 activations
    read what they read before.
    """
    width = getattr(getattr(student, "config", None), "hidden_size", None)
    linear = {name: layer for name, layer in student.named_modules() if type(layer) is nn.Linear}
    activations = {
        name: scheme.layer(name, layer.in_features, layer.out_features, width).activations
        for name, layer in linear.items()
    }
    int8 = {name for name, kind in activations.items() if kind != "none"}
    if not int8:
        return {"alpha": alpha, "pairs": {}, "left": 0}
    found = sources(student, task, max(rows, key=length), max_length)
    for source in (source for source in found if not source.free.any()):
        source.readers = {name: ids for name, ids in source.readers.items() if activations.get(name) == "static"}
    found = [source for source in found if int8 & source.readers.keys()]
    largest = _largest(student, [name for source in found for name in source.readers], rows[:ROWS], task)
    pairs: Counter[str] = Counter()
    for source in found:
        x_O, w_O = torch.zeros(2, len(source.free), dtype=torch.float64)
        for name, ids_I in source.readers.items():
            x_O.scatter_reduce_(0, ids_I, largest[name].double(), "amax")
            w_O.scatter_reduce_(0, ids_I, linear[name].weight.double().abs().amax(0), "amax")
        folded = bool(source.free.any())
        may_O = (x_O > 0) & (w_O > 0) & (source.free if folded else True)
        factor_O = torch.where(may_O, x_O**alpha / w_O ** (1 - alpha), 1.0).log2().round().exp2().float()
        with torch.no_grad():
            for parameter in source.parameters if folded else ():
                parameter.div_(factor_O.view(-1, *[1] * (parameter.ndim - 1)))
            for name, ids_I in source.readers.items():
                linear[name].weight.mul_(factor_O[ids_I])
        if not folded:
            for name, ids_I in source.readers.items():
                layer: Any = linear[name]
                layer.__class__ = Smoothed
                layer.register_buffer("smooth", 1 / factor_O[ids_I])
        pairs[source.kind if folded else "product"] += 1
    read = {name for source in found for name in source.readers}
    return {"alpha": alpha, "pairs": dict(sorted(pairs.items())), "left": len(int8 - read)}


def sources(student: nn.Module, task: Any, row: Encoded, max_length: int) -> list[Source]:
    """What can be scaled, and norms whose readers can be, in the order of the graph; ``row`` is any encoded row of two
    tokens or more."""
    module = program.export(student, task, row, max_length).module()
    channels = Channels(module, student)
    channels.run(*pad([row, row], 0, task.INPUTS).values())
    return [one for one in channels.sources if one.readers and (one.free.any() or one.kind == "norm")]


def _largest(student: nn.Module, names: Sequence[str], rows: Sequence[Encoded], task: Any) -> dict[str, torch.Tensor]:
    """max |x| of every input channel [I] of these layers, over all tokens of ``rows``."""
    found: dict[str, torch.Tensor] = {}

    def note(name: str, x: torch.Tensor) -> None:
        largest_I = x.reshape(-1, x.shape[-1]).abs().amax(0)
        found[name] = torch.maximum(found[name], largest_I) if name in found else largest_I

    hooks = [
        student.get_submodule(name).register_forward_pre_hook(lambda _, inputs, name=name: note(name, inputs[0]))
        for name in names
    ]
    with torch.no_grad():
        for some in same_length_batches(rows, 16):
            student(**pad([rows[i] for i in some], 0, task.INPUTS))
    for hook in hooks:
        hook.remove()
    return found


class Channels(fx.Interpreter):
    """Runs the exported graph of ``student`` once and follows, beside every tensor, the channel of each of its values.

    A tensor carries the channels of one source at most. A parameter that is used twice makes none and reads none: it
    could not be scaled for one use alone.
    """

    def __init__(self, module: fx.GraphModule, student: nn.Module) -> None:
        super().__init__(module)
        self.sources: list[Source] = []
        self._carried: dict[fx.Node, tuple[Source, torch.Tensor]] = {}  # the channel of every value, as the tensor lies
        named = {f"model.{name}": one for name, one in student.named_parameters(remove_duplicate=False)}
        nodes = {node: named[node.target] for node in module.graph.find_nodes(op="get_attr") if node.target in named}
        uses: Counter[nn.Parameter] = Counter()
        for node, parameter in nodes.items():
            uses[parameter] += len(node.users)
        self._parameters = {node: parameter for node, parameter in nodes.items() if uses[parameter] == 1}
        linear = {layer.weight: name for name, layer in student.named_modules() if type(layer) is nn.Linear}
        self._layers = {node: linear[one] for node, one in self._parameters.items() if one in linear}

    def run_node(self, node: fx.Node) -> Any:
        result = super().run_node(node)
        if node.target in LOOKS:
            return result
        arguments: list[fx.Node] = []
        fx.map_arg((node.args, node.kwargs), arguments.append)
        through = self._through(node, [one for one in arguments if one in self._carried])
        carried = self._moved(node, through, result) if through else None
        for one in arguments:
            if one in self._carried and (one is not through or carried is None):
                source, ids = self._carried[one]
                source.free[ids.reshape(-1)] = False
        # A parameter that multiplies channels which somebody made makes none of its own: they are carried on.
        made = self._made(node, result) if carried is None or node.target is LINEAR else []
        if made:
            size = result.shape[-1]
            source = Source(made, "linear" if node.target is LINEAR else "norm", torch.ones(size, dtype=torch.bool))
            self.sources.append(source)
            self._carried[node] = source, torch.arange(size).expand(result.shape)
        elif carried is not None and node.target is not LINEAR:
            self._carried[node] = carried
        return result

    def _through(self, node: fx.Node, carrying: Sequence[fx.Node]) -> fx.Node | None:
        """The argument in which the operator is homogeneous, channel by channel, if it carries channels."""
        if node.target is MULTIPLY or node.target is CONCATENATE:
            return carrying[0] if len(carrying) == 1 else None
        if node.target is LINEAR and node.args[1] not in self._layers:
            return None
        if node.target is LINEAR or node.target in MIXES or node.target in MOVES or node.target in KEEPS:
            one = node.args[MIXES.get(node.target, 0)]
            return one if carrying.count(one) == 1 else None
        return None

    def _moved(self, node: fx.Node, through: fx.Node, result: torch.Tensor) -> tuple[Source, torch.Tensor] | None:
        """Where the channels that ``through`` carries lie in the result; None where they are not kept apart."""
        source, ids = self._carried[through]
        if not result.is_floating_point():
            return None
        if node.target is LINEAR:
            rows = ids.reshape(-1, ids.shape[-1])
            if not rows.eq(rows[0]).all():
                return None
            source.readers[self._layers[node.args[1]]] = rows[0]
            return source, ids
        if node.target in MOVES:
            move = aten.reshape.default if node.target is aten.view.default else node.target
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda one: ids if one is through else self.env[one])
            ids = move(*args, **kwargs)
        elif node.target in MIXES:
            first = ids[..., :1, :] if ids.ndim == 4 else None
            if first is None or not ids.eq(first).all():
                return None
            # In grouped-query attention several heads in a row read the same values.
            ids = first.repeat_interleave(result.shape[1] // first.shape[1], 1).expand(result.shape)
        elif node.target is CONCATENATE and ids.shape != result.shape:  # an empty cache before the values is fine
            return None
        if source.kind != "norm":
            source.kind = KINDS.get(node.target, source.kind)
        return source, ids.expand(result.shape)

    def _made(self, node: fx.Node, result: Any) -> list[nn.Parameter]:
        """The parameters that scale the channels which this operator makes; none if it makes none."""
        if node.target is LINEAR:
            nodes = node.args[1:]
        elif node.target in NORMS:
            nodes = node.args[2:4]
        elif node.target is MULTIPLY:  # the last step of RMSNorm, as transformers writes it
            nodes = [one for one in node.args if one in self._parameters]
            if len(nodes) != 1:
                return []
        else:
            return []
        nodes = [one for one in nodes if one is not None]
        if not nodes or not all(one in self._parameters for one in nodes):
            return []
        found = [self._parameters[one] for one in nodes]
        fit = all(len(one) == result.shape[-1] and (one.ndim == 1 or node.target is LINEAR) for one in found)
        return found if fit else []
