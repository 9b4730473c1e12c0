"""LiteRT: one .tflite file for Android, iOS and small Linux boards, batch 1, one fixed length or several.

litert_torch folds the Program's own quantize/dequantize ops into int8 FULLY_CONNECTED layers, which XNNPACK
runs in integers with the Program's scales. It recognises a weight only as quantize -> dequantize of a
*float* constant, so each stored int8 weight is unfolded first, exactly. It would also round a float constant that
is concatenated with a layer's output (a vision transformer's class token) to the output's scale, so such a constant
is added instead. Weights of all other layers it does not get to see (``_litert_passes``), nor half word tables.
Nothing here chooses a scale.

What runs: XNNPACK, in int8 with static scales (``w8a8``), in int8 with a scale for each token (``w8a8-dynamic``: the
bits of ``integer.int8_linear_tokens``), or in float32 behind a DEQUANTIZE (``fp16``, ``w8``, ``w4``). These three save
size, and need the memory of the float weights when they run. XNNPACK takes the DEQUANTIZE of halves and int8 into its
own part of the graph; that of int4 stays outside, and ``w4`` took 2.9 times as long as ``fp32`` (128 tokens, 6 layers).

The file takes int32 ids and masks of exactly ``max_length`` tokens (shorter text is padded, mask 0), or float32
pixels, because the runtime plans kernels and memory for one shape. Shorter lengths (``export.buckets``) are graphs of
the same weights with a signature of their own. Its logits are int8 when the Program's are; the scale stands in the
file and in the facts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.artifact import Facts, read_json
from edgekd.errors import BadInput, Environment
from edgekd.targets import _mediapipe
from edgekd.targets._anchors import anchor_ranges
from edgekd.targets._contract import (
    example,
    float_bound,
    graphs,
    has_sequence,
    load_program,
    padded,
    read_signature,
    require,
    specialise,
    tokens,
    unpadded,
)
from edgekd.targets._litert_passes import Stored, constant, lift_weights, merge, separate, store_weights

if TYPE_CHECKING:
    import numpy as np
    import torch

suffix = ".tflite"
extra = "litert"
distributions = ("ai-edge-litert", "litert-converter", "litert-torch", "torch")
accepts = frozenset({"fp32", "fp16", "w8", "w4", "w8a8", "w8a8-float-output", "w8a8-dynamic"})
refuses: dict[str, str] = {}
slow = False
benchable = True
fixed_length = True

OUTPUT, DEFAULT = "logits", "serving_default"
FLOATS = {"fp32", "fp16", "w8", "w4"}  # schemes whose arithmetic is float
SIZE_LIMIT_BYTES = 2**31 - 1  # of a flatbuffer


def golden_bound(scheme: str, logit_range: float) -> float:
    """Largest allowed |logit difference| to the Program's golden logits; ``logit_range`` = max - min of those.

    ``fp32``, ``fp16``, ``w8``, ``w4``: float arithmetic on the Program's weights in another order of summation; 6e-7 of
    the range measured (300 texts, 6 layers, the largest of the four).

    ``w8a8``: FULLY_CONNECTED and the Program compute the same integers with the same float multiplier, but
    LayerNorm and softmax between them run in float in another order, and GELU and TANH as int8 tables. Where
    that moves a value across a rounding tie, one activation differs by one step of 255 and the layers behind
    spread it. Most answers stay identical, and the largest difference is an outlier (300 texts: 3 layers,
    95 % identical, 2.8 % of the range; 6 layers, two Programs, 90 and 91 % identical, 4 and 13 %; with float
    outputs of the contracting layers, 3,080 texts, 90 % identical, 2.8 %). So this bound finds gross errors;
    agreement over the test split is the finer judge.

    ``w8a8-dynamic``: every layer computes the Program's very bits from the same inputs, but ties fall otherwise as
    above, and nothing rounds the differences away again: 6 layers, 47 % of 300 texts identical to 1e-5 of the range,
    half within 0.06 %, the largest 0.5 %, no answer changed. The bound leaves four times that to deeper models.
    """
    if scheme in FLOATS:
        return float_bound(logit_range)
    return (0.02 if scheme == "w8a8-dynamic" else 0.2) * logit_range


def export(program: Path, out: Path, *, max_length: int, shorter: Sequence[int] = ()) -> Facts:
    """Write ``out/model.tflite``: the Program's inputs for batch 1 and ``max_length`` tokens -> ``logits``.

    Each of the ``shorter`` lengths is a signature ``tokens_<length>`` beside ``serving_default``. Same Program, same
    bytes. Raises Environment when litert_torch is missing.
    """
    require("litert_torch", extra)
    (inputs, _), exported = read_signature(program), load_program(program)
    names = [one["name"] for one in inputs]
    size_bytes = sum(tensor.nbytes for tensor in exported.state_dict.values())
    if size_bytes > SIZE_LIMIT_BYTES:
        raise BadInput(f"{size_bytes / 1e9:.1f} GB of weights do not fit one .tflite file (2 GB)", where="litert")
    sizes = graphs(DEFAULT, max_length, shorter)
    converted = {name: _converted(exported, inputs, length) for name, length in sizes.items()}
    path = out / f"model{suffix}"
    path.write_bytes(merge({name: content for name, (content, _) in converted.items()}))
    signature = _interpreter(path).get_signature_runner(DEFAULT)
    details, sequence = signature.get_input_details(), any(map(has_sequence, inputs))
    return {
        "file": path.name,
        "size_bytes": path.stat().st_size,
        "inputs": [_described(name, details[name]) for name in names],
        "outputs": [_described(OUTPUT, signature.get_output_details()[OUTPUT])],
        "max_length": max_length if sequence else None,
        "fixed_length": sequence,
        "lengths": sorted(sizes.values()) if sequence else [],
        "passes": converted[DEFAULT][1],
    }


def _converted(exported: torch.export.ExportedProgram, inputs: Sequence[Facts], length: int) -> tuple[bytes, list[str]]:
    """The file of one length, and the names of the passes that acted."""
    import litert_torch

    names = [one["name"] for one in inputs]
    module = specialise(exported, inputs, length).module()
    passes, lifted = legalise(module)
    buffers = dict(module.named_buffers())
    model = litert_torch.convert(
        _named(module, names, [weight.name for weight in lifted]),
        sample_kwargs=dict(zip(names, example(inputs, length), strict=True))
        | {weight.name: buffers[weight.name] for weight in lifted},
        quant_config=_static_quantization() if unfold_weights.__name__ in passes else None,
    )
    return store_weights(model.model_content(), lifted), passes


def _named(module: torch.nn.Module, names: Sequence[str], lifted: Sequence[str]) -> torch.nn.Module:
    """The module with named inputs and output: those become the names in the file's signature.

    The buffers named in ``lifted`` are inputs too.
    """
    import torch

    class Named(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.program = module
            self.training = False  # the exported graph is in evaluation mode and refuses .eval()

        def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
            buffers = {name: inputs[name] for name in lifted}
            arguments = tuple(inputs[name] for name in names)
            return {OUTPUT: torch.func.functional_call(self.program, buffers, arguments)}

    return Named()


def _static_quantization() -> Any:
    """Tells the converter to fold quantize/dequantize ops into integer kernels; it quantizes nothing itself."""
    from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
    from litert_torch.quantize.quant_config import QuantConfig

    return QuantConfig(PT2EQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True)))


def legalise(module: torch.fx.GraphModule) -> tuple[list[str], list[Stored]]:
    """Respell ``module`` in place for the converter; returns the names of the passes that acted, and the weights that
    ``store_weights`` has to put into the file.

    A float module is left alone.
    """
    passes = [anchor_ranges.__name__] if anchor_ranges(module) else []
    lifted = lift_weights(module)
    passes += [lift_weights.__name__] if lifted else []
    if unfold_weights(module):
        steps = (keep_rounding, add_constants, keep_inputs)
        passes += [unfold_weights.__name__, *(step.__name__ for step in steps if step(module))]
    return passes, lifted


def unfold_weights(module: torch.fx.GraphModule) -> int:
    """``dequantize(W_int8)`` becomes ``dequantize(quantize(W_float))`` with W_float = W_int8 * scale.

    Exact: |W_int8| <= 127 and one float32 product and quotient are off by less than 2^-15 steps, so the
    rounding returns W_int8. Returns the number of weights.
    """
    import torch

    ops = torch.ops.quantized_decomposed
    changed = 0
    for node in list(module.graph.nodes):
        if node.target is not ops.dequantize_per_channel.default:
            continue
        stored, scale, zero, axis, low, high, dtype = node.args
        weight, scale_O, zero_O = (constant(module, part) for part in (stored, scale, zero))
        floats = ops.dequantize_per_channel(weight, scale_O, zero_O, axis, low, high, dtype)
        if not torch.equal(ops.quantize_per_channel(floats, scale_O, zero_O, axis, low, high, dtype), weight):
            raise BadInput(f"the scales of '{stored.target}' are too small for float32", where="litert")
        name = f"unfolded_weight_{changed}"
        module.register_buffer(name, floats)
        with module.graph.inserting_before(node):
            inner = (module.graph.get_attr(name), scale, zero, axis, low, high, dtype)
            node.update_arg(0, module.graph.call_function(ops.quantize_per_channel.default, inner))
        changed += 1
    module.graph.eliminate_dead_code()
    module.recompile()
    return changed


def keep_rounding(module: torch.fx.GraphModule) -> int:
    """A quantized tensor passes two negations before a ReLU, so that it is rounded before.

    The converter would fuse the ReLU into the layer before it, and drop that layer's own rounding. Exact. Returns the
    number of them.
    """
    import torch

    relu, dequantize = torch.ops.aten.relu.default, torch.ops.quantized_decomposed.dequantize_per_tensor.default
    relus = module.graph.find_nodes(op="call_function", target=relu)
    found = [node for node in relus if node.args[0].target is dequantize]
    for node in found:
        node.update_arg(0, _negated_twice(module.graph, node.args[0]))
    module.recompile()
    return len(found)


def add_constants(module: torch.fx.GraphModule) -> int:
    """``cat([c, x])`` with a stored float ``c`` becomes ``pad(x) + pad(c)``, zeros where the other one stands.

    Exact: a sum with zero. Returns the number of concatenations.
    """
    import torch

    aten, changed = torch.ops.aten, 0
    for node in list(module.graph.nodes):
        if node.target is not aten.cat.default:
            continue
        parts, axis = node.args[0], node.args[1] if len(node.args) > 1 else 0
        stored = [_stored(module, part) for part in parts]
        if stored.count(None) != 1 or len(parts) == 1:
            continue
        place = next(index for index, value in enumerate(stored) if value is None)
        computed = parts[place]
        blank = torch.zeros(computed.meta["val"].shape)
        whole = torch.cat([blank if value is None else value for value in stored], axis)
        before, after = (sum(v.shape[axis] for v in side) for side in (stored[:place], stored[place + 1 :]))
        padding = [0, 0] * (blank.ndim - 1 - axis % blank.ndim) + [before, after]
        name = f"added_constant_{changed}"
        module.register_buffer(name, whole)
        with module.graph.inserting_before(node):
            wide = module.graph.call_function(aten.constant_pad_nd.default, (computed, padding, 0.0))
            total = module.graph.call_function(aten.add.Tensor, (wide, module.graph.get_attr(name)))
        node.replace_all_uses_with(total)
        changed += 1
    module.graph.eliminate_dead_code()
    module.recompile()
    return changed


def keep_inputs(module: torch.fx.GraphModule) -> int:
    """Pixels pass two negations, so that the file takes them as float32.

    Where the first thing that happens to an input is its quantization, the converter would leave that to the app.
    Exact; what the converter can see through (a sum with zero, a maximum) does not help. Returns the number of inputs.
    """
    changed = 0
    for node in module.graph.find_nodes(op="placeholder"):
        if not node.meta["val"].is_floating_point():
            continue
        users = list(node.users)
        twice = _negated_twice(module.graph, node)
        for user in users:
            user.replace_input_with(node, twice)
        changed += 1
    module.recompile()
    return changed


def _negated_twice(graph: torch.fx.Graph, node: torch.fx.Node) -> torch.fx.Node:
    import torch

    with graph.inserting_after(node):
        once = graph.call_function(torch.ops.aten.neg.default, (node,))
    with graph.inserting_after(once):
        return graph.call_function(torch.ops.aten.neg.default, (once,))


def _stored(module: torch.fx.GraphModule, node: torch.fx.Node) -> torch.Tensor | None:
    """The value of a stored tensor, expanded or not; None for what is computed from inputs."""
    import torch

    if node.op == "get_attr":
        return constant(module, node)
    if node.target is torch.ops.aten.expand.default:
        value = _stored(module, node.args[0])
        return None if value is None else value.expand(node.args[1])
    return None


def _described(name: str, details: Mapping[str, Any]) -> Facts:
    import numpy as np

    facts = {
        "name": name,
        "dtype": np.dtype(details["dtype"]).name,
        "shape": [int(n) for n in details["shape"]],
    }
    scale, zero_point = details["quantization"]
    return facts | ({"scale": float(scale), "zero_point": int(zero_point)} if scale else {})


def for_mediapipe(artifact: Path, *, task: str, name: str, words: Sequence[str], labels: Sequence[str]) -> bytes:
    """The artefact's longest graph as MediaPipe's text tasks take it (``_mediapipe.py``), ``words`` by token id.

    Raises BadInput where it answers a golden text otherwise than that graph does.
    """
    import numpy as np

    graph = next(separate((artifact / f"model{suffix}").read_bytes()))
    content = _mediapipe.spell(graph, task=task, name=name, words=words, labels=labels)
    ours, theirs = _Graph(_runner(graph)), _runner(content)
    details = theirs.get_input_details()
    shapes = {one: found["shape"].tolist() for one, found in details.items()}
    golden = read_json(artifact / "golden.json")["inputs"]
    for rows in zip(*golden.values(), strict=True):
        inputs = {one: np.array([row], np.int64) for one, row in zip(golden, rows, strict=True)}
        wanted = _mediapipe.expected(ours.run(inputs), task)
        fed = padded({**inputs, _mediapipe.SEGMENTS: np.zeros_like(inputs["input_ids"])}, shapes, "litert")
        (found,) = theirs(**{one: array.astype(details[one]["dtype"]) for one, array in fed.items()}).values()
        if np.abs(found - wanted).max() > _mediapipe.BOUND:
            raise BadInput("MediaPipe's form of it answers otherwise", where=str(artifact))
    return content


def _runner(content: bytes) -> Any:
    module = require("ai_edge_litert.interpreter", extra)
    return module.Interpreter(model_content=content, num_threads=1).get_signature_runner()


# Running it.


def _interpreter(path: Path, threads: int = 1) -> Any:
    module = require("ai_edge_litert.interpreter", extra)
    try:
        return module.Interpreter(model_path=str(path), num_threads=threads)
    except (RuntimeError, ValueError) as error:
        raise Environment(f"LiteRT does not open it ({error})", where=str(path)) from None


def _delegated(interpreter: Any) -> bool:
    """Whether a delegate took operators of the first graph. XNNPACK is asked for its part of all graphs at once."""
    interpreter.allocate_tensors()
    return any(operation["op_name"] == "DELEGATE" for operation in interpreter._get_ops_details())


class _Graph:
    """A signature: its tensors are allocated when it is run first. ``length`` is 0 for images."""

    def __init__(self, runner: Any) -> None:
        self._runner, self._inputs = runner, runner.get_input_details()
        self._scale, self._zero_point = runner.get_output_details()[OUTPUT]["quantization"]
        self._shapes = {name: details["shape"].tolist() for name, details in self._inputs.items()}
        self.length: int = max((shape[1] for shape in self._shapes.values() if len(shape) == 2), default=0)

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Float logits, those of the padding among them; raises BadInput where the inputs do not fit."""
        import numpy as np

        fed = padded(inputs, self._shapes, "litert")
        raw: np.ndarray = self._runner(**{k: v.astype(self._inputs[k]["dtype"]) for k, v in fed.items()})[OUTPUT]
        if self._scale:
            raw = (raw.astype(np.float32) - np.float32(self._zero_point)) * np.float32(self._scale)
        return raw


class _Session:
    """LiteRT's interpreter with its default delegate, XNNPACK: a text runs at the shortest length that holds it."""

    def __init__(self, path: Path, threads: int) -> None:
        self._interpreter = _interpreter(path, threads)
        delegated = _delegated(self._interpreter)  # first: with runners it may not be asked
        names = self._interpreter.get_signature_list()
        found = [_Graph(self._interpreter.get_signature_runner(name)) for name in names]
        self._graphs = sorted(found, key=lambda graph: graph.length)
        self.observed: Facts = {
            "runtime": "LiteRT",
            "version": require("ai_edge_litert", extra).__version__,
            "provider": "XNNPACK" if delegated else "CPU",
            "threads": threads,
            "lengths": [graph.length for graph in self._graphs if graph.length],
            "caveats": [],
        }

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        size = tokens(inputs)
        graph = next((one for one in self._graphs if one.length >= size), self._graphs[-1])
        return unpadded(graph.run(inputs), inputs)

    def close(self) -> None:
        del self._graphs, self._interpreter


def open_session(artifact: Path, *, threads: int = 1) -> _Session:
    """Open ``artifact/model.tflite`` in LiteRT's interpreter; raises Environment when it cannot."""
    return _Session(artifact / f"model{suffix}", threads)


# What it runs.

LAYERS = frozenset(("BATCH_MATMUL", "CONV_2D", "FULLY_CONNECTED"))


def kernels(artifact: Path) -> Facts:
    """Layers with stored weights in the file as the interpreter planned it; integer where the weight operand is.

    XNNPACK and LiteRT's own kernels quantize a float input of such a layer by token, so both forms multiply integers.
    ``names`` say who runs a layer. Of several lengths, the one with the fewest integer layers.
    """
    content = (artifact / f"model{suffix}").read_bytes()
    return min((kernels_of(one) for one in separate(content)), key=lambda facts: facts["integer"])


def kernels_of(content: bytes) -> Facts:
    """``kernels`` of one file's content: the interpreter lists the operators of no graph but the first.

    It lists those that a delegate took beside the delegate, whose partition is what lies between its inputs and
    outputs.
    """
    interpreter = require("ai_edge_litert.interpreter", extra).Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    operations = interpreter._get_ops_details()
    tensors = {one["index"]: one for one in interpreter.get_tensor_details()}
    plain = [one for one in operations if one["op_name"] != "DELEGATE"]
    maker = {int(index): one for one in plain for index in one["outputs"]}
    delegated: set[int] = set()
    for one in operations:
        if one["op_name"] == "DELEGATE":
            todo, outside = [int(i) for i in one["outputs"]], {int(i) for i in one["inputs"]}
            while todo:
                made = maker.get(todo.pop())
                if made is not None and made["index"] not in delegated:
                    delegated.add(made["index"])
                    todo += [int(i) for i in made["inputs"] if int(i) not in outside]
    stored = set(tensors) - set(maker) - {one["index"] for one in interpreter.get_input_details()}
    for one in plain:  # in the order of execution
        if stored.issuperset(int(i) for i in one["inputs"] if i >= 0):
            stored.update(int(i) for i in one["outputs"])
    counts = {"integer": 0, "float": 0}
    names: dict[str, int] = {}
    for one in plain:
        if one["op_name"] in LAYERS and int(one["inputs"][1]) in stored:
            integer = tensors[int(one["inputs"][1])]["dtype"].__name__.startswith("int")
            kind = "integer" if integer else "float"
            counts[kind] += 1
            name = f"{one['op_name']} {kind}, {'XNNPACK' if one['index'] in delegated else 'LiteRT'}"
            names[name] = names.get(name, 0) + 1
    return {**counts, "how": "interpreter's operators and XNNPACK's partitions", "names": names}
