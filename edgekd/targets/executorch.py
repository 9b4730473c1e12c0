"""ExecuTorch ``.pte`` for the XNNPACK CPU delegate, and its session through ``executorch.runtime``.

XNNPACK takes the Program's quantize/dequantize patterns as they are, static and dynamic ones side by side; a dynamic
layer gives the bits of ``integer.int8_linear_tokens``. What is respelled keeps its numbers: attention (the library's
decomposition guards every softmax against rows that are masked whole, in slow portable operators; a row of a text is
never masked whole, since the mask covers padding only), its mask, made once for all layers, and the sizes of views,
whose one dynamic size is inferred so that XNNPACK takes them: 2 x layers + 2 delegate calls instead of 6 x layers + 2.
Layer norms stay outside: spelled in XNNPACK's operators they are no faster, and cost w8a8 5 identical answers of 100.
``w8`` is for size: its products stay in XNNPACK (float activations, int8 weights), at twice the time of fp32 on x86.

The sequence length stays dynamic (2 to ``max_length``), so a short text costs what it is, not what the longest
could be. A ``.pte`` has no names for its inputs, so a constant method ``input_names`` tells them. Refuses to write
a file in which a matrix product, a convolution or a quantize operator is left outside the delegate: it would run in
slow float code and still look like a quantized artefact.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.artifact import Facts, write_atomic
from edgekd.errors import BadInput, StepFailed
from edgekd.targets._anchors import anchor_ranges
from edgekd.targets._contract import Session, example, float_bound, has_sequence, load_program, read_signature, require

if TYPE_CHECKING:
    import numpy as np
    import torch

suffix = ".pte"
extra = "executorch"
distributions = ("executorch", "torch")
accepts = frozenset({"fp32", "w8", "w8a8", "w8a8-float-output", "w8a8-dynamic"})
refuses = {
    "fp16": "XNNPACK gets weights of the activations' type only: products with halves stay in slow portable operators",
    "w4": "XNNPACK multiplies groups of int4 with int8 activations only, which is another scheme",
}
slow = False
benchable = True
fixed_length = False

PASSES = [
    anchor_ranges.__name__,
    "attention without the guard for rows masked whole",
    "bias of layers with int8 weights alone added apart",
    "one float mask for all layers",
    "the dynamic size of a view inferred",
    "XNNPACK partition",
]
NAMES = "input_names"  # the method that returns them, with spaces between
DELEGATED = (
    "convolution",
    "linear",
    "addmm",
    "mm",
    "bmm",
    "matmul",
    "choose_qparams_per",
    "quantize_per",
    "dequantize_per",
)  # never outside XNNPACK


def golden_bound(scheme: str, logit_range: float) -> float:
    """Largest accepted |logit - golden logit| on a golden example.

    ``fp32`` and ``w8``: the same float graph; sums run in another order, which costs a few 1e-6 of the logits' range.
    ``w8a8`` and ``w8a8-dynamic``: the delegate's layers compute what the integer Program computes, bit for bit, but
    softmax, layer norm and GELU between them are float kernels that differ in the last bit. Now and then a value lies
    on a rounding tie, one int8 step flips, and later layers amplify it. Measured on 300 texts and 6 layers: static,
    91 % identical, the others off by up to 0.075 of the logits' range; with float outputs of contracting layers (3,080
    texts) 92 % identical, up to 0.028; dynamic, where a last bit also moves scales, off by up to 0.006. The bounds are
    about three times that; a wrong scale or a lost layer moves logits by the range itself.
    """
    share = {"w8a8": 0.2, "w8a8-float-output": 0.2, "w8a8-dynamic": 0.02}
    return share[scheme] * logit_range if scheme in share else float_bound(logit_range)


def export(program: Path, out: Path, *, max_length: int) -> Facts:
    """Write ``out/model.pte`` for batch 1 and any length from 2 to ``max_length`` (images have none).

    Facts beyond the contract's: ``delegates`` (XNNPACK calls) and ``portable_ops`` (operators left outside, counted).
    """
    require("executorch", extra)
    from executorch.exir import to_edge_transform_and_lower

    inputs, outputs = read_signature(program)
    edge = to_edge_transform_and_lower(
        legalise(load_program(program), inputs, max_length),
        partitioner=[partitioner()],
        constant_methods={NAMES: " ".join(one["name"] for one in inputs)},
    )
    delegates, portable = outside(edge)
    file = out / f"model{suffix}"
    write_atomic(file, edge.to_executorch().buffer)
    return {
        "file": file.name,
        "size_bytes": file.stat().st_size,
        "inputs": [_for_one(value) for value in inputs],
        "outputs": [_for_one(value) for value in outputs],
        "max_length": max_length if any(map(has_sequence, inputs)) else None,
        "fixed_length": False,
        "passes": PASSES,
        "delegates": delegates,
        "portable_ops": portable,
    }


def outside(edge: Any) -> tuple[int, dict[str, int]]:
    """How many XNNPACK calls a lowered program makes, and its other operators, counted.

    Raises StepFailed where an operator is among these that belongs into XNNPACK.
    """
    found = Counter(
        getattr(node.target, "__name__", str(node.target))
        for node in edge.exported_program().graph.nodes
        if node.op == "call_function"
    )
    delegates = found.pop("executorch_call_delegate", 0)
    found.pop("getitem", None)
    left = sorted(name for name in found if any(_operator(name).startswith(kind) for kind in DELEGATED))
    if left:
        raise StepFailed(
            f"XNNPACK did not take {', '.join(left)}",
            where="executorch export",
            todo="The Program is not in canonical form, or this ExecuTorch version partitions it otherwise.",
        )
    return delegates, dict(sorted(found.items()))


def _for_one(value: Facts) -> Facts:
    return value | {"shape": [1 if size == "batch" else size for size in value["shape"]]}


def legalise(
    program: torch.export.ExportedProgram, inputs: Sequence[Facts], max_length: int
) -> torch.export.ExportedProgram:
    """The Program for batch 1 and dynamic length, its attention spelled for XNNPACK."""
    import torch

    module: Any = program.module()
    anchor_ranges(module)
    split_bias(module)
    share_masks(module)
    length = torch.export.Dim("length", min=2, max=max_length)
    dynamic = tuple({1: length} if has_sequence(one) else {} for one in inputs)
    one = torch.export.export(module, example(inputs, max_length - 1), dynamic_shapes=dynamic)
    one = one.run_decompositions({torch.ops.aten.scaled_dot_product_attention.default: _attention})
    infer_sizes(one.graph)
    return one


def split_bias(module: torch.fx.GraphModule) -> int:
    """Add the bias behind every layer whose weights alone are int8, in place; how many there were.

    The partitioner writes a bias beside int8 weights as int32 only, on a grid that float activations do not have.
    """
    import torch

    aten = torch.ops.aten
    found = [node for node in module.graph.nodes if node.target is aten.linear.default and _weights_alone(node)]
    for node in found:
        if len(node.args) < 3:
            continue
        layer, bias = node.args[:2], node.args[2]
        with module.graph.inserting_before(node):
            product = module.graph.call_function(aten.linear.default, layer)
        product.meta = dict(node.meta)
        node.target, node.args = aten.add.Tensor, (product, bias)
    module.recompile()
    return len(found)


def share_masks(module: torch.fx.GraphModule) -> int:
    """Turn each bool mask [1, 1, S, S] into zeros and -inf [1, S, S], once for all layers, in place; how many.

    Left to the attention of each layer, it would be made anew there, outside XNNPACK.
    """
    import torch

    aten, graph = torch.ops.aten, module.graph
    made: dict[torch.fx.Node, torch.fx.Node] = {}
    for node in [node for node in graph.nodes if node.target is aten.scaled_dot_product_attention.default]:
        mask = node.args[3] if len(node.args) > 3 else None
        if not isinstance(mask, torch.fx.Node) or mask.meta["val"].dtype != torch.bool or mask.meta["val"].dim() != 4:
            continue
        if mask not in made:
            with graph.inserting_after(mask):
                one = graph.call_function(aten.select.int, (mask, 0, 0))
            with graph.inserting_after(one):
                made[mask] = graph.call_function(aten.where.Scalar, (one, 0.0, -math.inf))
        node.update_arg(3, made[mask])
    module.recompile()
    return len(made)


def infer_sizes(graph: torch.fx.Graph) -> int:
    """Write -1 for the one size of a view that is not a number, in place; how many there were.

    XNNPACK takes only such views, and every one that it does not take ends a delegate call.
    """
    import torch

    aten = torch.ops.aten
    found = 0
    for node in graph.nodes:
        if node.target not in (aten.view.default, aten.reshape.default, aten._unsafe_view.default):
            continue
        sizes = [size if isinstance(size, int) else -1 for size in node.meta["val"].shape]
        if sizes.count(-1) == 1 and sizes != list(node.args[1]):
            node.args = (node.args[0], sizes)
            found += 1
    graph.eliminate_dead_code()
    return found


def _weights_alone(linear: torch.fx.Node) -> bool:
    """Whether a linear node has quantized weights and float activations."""
    data, weight = (getattr(node.target, "__name__", "") for node in linear.args[:2])
    return "dequantize_per" in weight and "dequantize_per" not in data


def partitioner() -> Any:
    """XNNPACK's, which also takes layers of float activations and int8 weights: the kernel (f32-qc8w) is there,
    ExecuTorch's own rule for linear layers wants both quantized or neither."""
    from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS
    from executorch.backends.xnnpack.partition.config.gemm_configs import LinearConfig
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.utils.quant_utils import tag_as_implicit_q_dq

    class WeightsAlone(LinearConfig):  # type: ignore[misc]
        def get_deps(self, node: torch.fx.Node, ep: torch.export.ExportedProgram) -> tuple[bool, list[torch.fx.Node]]:
            if not _weights_alone(node):
                found: tuple[bool, list[torch.fx.Node]] = super().get_deps(node, ep)
                return found
            weight = node.all_input_nodes[1]
            tag_as_implicit_q_dq(weight)
            return True, [weight, *weight.all_input_nodes]

    configs = [WeightsAlone if config is LinearConfig else config for config in ALL_PARTITIONER_CONFIGS]
    return XnnpackPartitioner(configs=configs)


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """softmax(q k^T * scale + mask) v for one text, q ``[1, heads, S, size]``, k and v alike or with fewer heads;
    scales q and k by its root as torch's own decomposition does, so that the products round alike."""
    import torch

    if is_causal or query.dim() != 4:
        raise StepFailed("attention that is causal without a mask or not 4-D is not handled", where="executorch export")
    if enable_gqa:
        group = query.size(1) // key.size(1)
        key, value = (tensor.repeat_interleave(group, 1) for tensor in (key, value))
    root = math.sqrt(scale if scale is not None else 1 / math.sqrt(query.size(-1)))
    query, key, value = (tensor.flatten(0, 1) for tensor in (query, key, value))
    scores = torch.bmm(query * root, (key * root).transpose(-2, -1))
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            attn_mask = torch.where(attn_mask, query.new_zeros(()), query.new_full((), -math.inf))
        scores = scores + (attn_mask.flatten(0, 1) if attn_mask.dim() == 4 else attn_mask)
    return torch.bmm(torch.softmax(scores, -1), value).unflatten(0, (1, -1))


def open_session(artifact: Path, *, threads: int = 1) -> Session:
    """Open ``artifact/model.pte``. The thread pool is one per process: opening sets it for every open session."""
    require("executorch", extra)
    return _Session(artifact / f"model{suffix}", threads)


class _Session:
    def __init__(self, file: Path, threads: int) -> None:
        from importlib.metadata import version

        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime, Verification

        portable_lib._unsafe_reset_threadpool(threads)  # the only way to set it from Python; nothing runs yet
        try:
            self._program = Runtime.get().load_program(file, verification=Verification.InternalConsistency)
            self._method = self._program.load_method("forward")
            self._names = self._program.load_method(NAMES).execute([])[0].split()
        except (RuntimeError, ValueError) as error:
            raise StepFailed(f"ExecuTorch cannot open it ({error})", where=str(file)) from None
        largest = [self._method.metadata.input_tensor_meta(index).sizes() for index in range(len(self._names))]
        self._largest = dict(zip(self._names, map(tuple, largest), strict=True))
        lengths = [shape[1] for shape in largest if len(shape) == 2]
        self.observed: Facts = {
            "runtime": "ExecuTorch",
            "version": version("executorch"),
            "provider": "XNNPACK",
            "threads": portable_lib._threadpool_get_thread_count(),
            "max_length": lengths[0] if lengths else None,
            "fixed_length": False,
            "caveats": [],
        }

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        import numpy as np
        import torch

        for name, largest in self._largest.items():
            shape = inputs[name].shape
            if len(largest) == 2 and not 1 <= shape[1] <= largest[1]:
                raise BadInput(f"{shape[1]} tokens; the artefact takes 1 to {largest[1]}", where="executorch")
            if len(largest) != 2 and shape != largest:
                raise BadInput(f"{name} of shape {shape}; the artefact takes {largest}", where="executorch")
        given = [torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in self._names]
        logits: np.ndarray = self._method.execute(given)[0].numpy()
        return logits.astype(np.float32, copy=True)  # the runtime reuses its output memory

    def close(self) -> None:
        self._method = self._program = None


def _operator(name: str) -> str:
    """``quantized_decomposed.quantize_per_tensor.default`` -> ``quantize_per_tensor``."""
    return name.split(".")[1] if "." in name else name


def kernels(artifact: Path) -> Facts:
    """Layers with stored weights in the file's XNNPACK graphs, by the types of input and weight, and those outside.

    XNNPACK picks a kernel by these types alone: static int8 (``qint8``) or int8 by token (``qdint8``) times integers is
    an integer kernel. A matrix product outside the delegate is portable float code. The file is read by the ``flatc``
    and the schemas that the package brings: importing its exporter would take longer than all other checks.
    """
    return kernels_of((artifact / f"model{suffix}").read_bytes())


def kernels_of(content: bytes) -> Facts:
    """``kernels`` of the content of a ``.pte`` file."""
    import struct

    home = Path(require("executorch", extra).__path__[0])
    extended = content[8:12] == b"eh00"  # then sizes follow: of the graph, and where the segments begin
    program_size, segments_begin = struct.unpack_from("<QQ", content, 16) if extended else (len(content), 0)
    program = as_json(home, "exir/_serialize/program.fbs", content[:program_size])
    counts = {"integer": 0, "float": 0}
    names: Counter[str] = Counter()
    for plan in program["execution_plan"]:
        for delegate in plan["delegates"]:
            place = delegate["processed"]
            if place.get("location", "INLINE") == "SEGMENT":
                segment = program["segments"][place["index"]]
                begin = segments_begin + segment["offset"]
                data = content[begin : begin + segment["size"]]
            else:
                data = bytes(program["backend_delegate_data"][place["index"]]["data"])
            offset, size = struct.unpack_from("<II", data, 10)  # behind 4 zeros, "XH00" and the header's length
            graph = as_json(home, "backends/xnnpack/serialization/schema.fbs", data[offset : offset + size])
            for kind, name in _delegated(graph):
                counts[kind] += 1
                names[name] += 1
        for step in (step for chain in plan["chains"] for step in chain["instructions"]):
            if step["instr_args_type"] == "KernelCall":
                operator = plan["operators"][step["instr_args"]["op_index"]]["name"].partition("::")[2]
                if operator.startswith(tuple(DELEGATED)):
                    counts["float"] += 1
                    names[f"{operator}, portable"] += 1
    return {**counts, "how": "delegate's graph", "names": dict(sorted(names.items()))}


def as_json(home: Path, schema: str, content: bytes) -> Facts:
    """A FlatBuffer as JSON."""
    import json
    import re
    import subprocess
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source.bin"
        source.write_bytes(content)
        given = ["--json", "--raw-binary", "--strict-json", "--defaults-json", "-o", folder, str(home / schema)]
        try:
            subprocess.run([home / "data/bin/flatc", *given, "--", source], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise StepFailed(f"flatc cannot read it ({error})", where="executorch") from None
        text = (Path(folder) / "source.json").read_text()
    made: Facts = json.loads(re.sub(r"(?<=[\s:-])inf\b", "Infinity", re.sub(r"(?<=[\s:])-?nan\b", "NaN", text)))
    return made


def _delegated(graph: Facts) -> list[tuple[str, str]]:
    """(kind, name) of each layer of an XNNPACK graph whose weight is stored."""
    types, stored = {}, set()
    for value in graph["xvalues"]:
        tensor = value["xvalue_union"].get("tensor_value", value["xvalue_union"])
        types[tensor["id_out"]] = tensor["datatype"].removeprefix("xnn_datatype_")
        if tensor["constant_buffer_idx"]:
            stored.add(tensor["id_out"])
    found = []
    for node in graph["xnodes"]:
        name, layer = node["xnode_union_type"], node["xnode_union"]
        weight = layer.get("filter_id", layer.get("input2_id"))
        if name in ("XNNFullyConnected", "XNNConv2d", "XNNBatchMatrixMultiply") and weight in stored:
            left, right = types[layer.get("input1_id", layer.get("input_id"))], types[weight]
            integer = left in ("qint8", "qdint8", "qpint8", "quint8") and right.startswith("q")
            found.append(("integer" if integer else "float", f"{name.removeprefix('XNN')} {left} x {right}"))
    return found
