"""ONNX for plain onnxruntime: a model with an encoder as two graphs around the Program's numbers.

The folder is laid out as transformers.js and optimum name it: ``onnx/encoder_model.onnx`` makes states of the source,
``onnx/decoder_model_merged.onnx`` writes with a cache. Its first call (``use_cache_branch`` false) makes keys and
values of the encoder's states, later calls take them as they were; those of what was written grow with every call.
Both graphs are spelled here node by node, so that every matrix is ours from the start: ``MatMulNBits`` and
``GatherBlockQuantized`` with the Program's integers and scales (``onnx.packed``). A table that both halves read stands
in both files.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.artifact import Facts, read_json, write_json
from edgekd.errors import BadInput, StepFailed
from edgekd.generators import _contract
from edgekd.generators import onnx as genai
from edgekd.generators._contract import MODEL, Numbers, check_type
from edgekd.registry import require

if TYPE_CHECKING:
    import numpy as np

suffix = ""
extra = "onnx"
tasks = frozenset({"text2text-generation"})
distributions = ("onnxruntime", "onnx")
accepts, refuses, block = genai.accepts, genai.refuses, genai.block
runs = True

ENCODER, DECODER = "onnx/encoder_model.onnx", "onnx/decoder_model_merged.onnx"
TYPES = ("bart", "marian", "t5")
OPSET = 21
CONTEXT = 512  # tokens of a text, for models whose positions have no end (T5)
LARGEST = 2**31  # bytes of a file that holds its own weights (protobuf's limit)
LOWEST = -3.4028234663852886e38  # float32's lowest: what hides a key
HALVES = ("decoder", "encoder")  # whose keys and values: of what was written, of the source
GENERATION = "generation_config.json"


def check(config: Any) -> None:
    """BART, Marian and T5. Raises BadInput for others."""
    check_type(config, TYPES, "ONNX")
    function = config.dense_act_fn if config.model_type == "t5" else config.activation_function
    if function not in ACTIVATIONS:
        raise BadInput(f"ONNX is not written for '{function}' yet", where="config.json")


def export(program: Path, out: Path, *, max_length: int) -> Facts:
    """Write both graphs, config.json and generation_config.json. ``max_length`` changes nothing."""
    import onnx

    from edgekd.quantize.tokens import load_student

    model: Any = load_student(program / MODEL)
    check(model.config)
    weights, first = _weights(model)
    family: type[_Family] = _T5 if model.config.model_type == "t5" else _Bart
    numbers, kinds = _contract.read_numbers(program), Counter[str]()
    placed: set[str] = set()
    sizes: list[dict[str, int]] = []
    for file, spell in ((ENCODER, _encoder), (DECODER, _decoder)):
        graph = _Graph(weights, first, numbers)
        spell(family(graph, model.config))
        sizes.append({name: len(one.raw_data) for name, one in graph.floats.items()})
        if sum(sizes[-1].values()) > 0.99 * LARGEST:
            raise BadInput("half of the model is larger than a file of ONNX may be", where="distill.student")
        (out / file).parent.mkdir(exist_ok=True)
        onnx.save(graph.model(), out / file)
        kinds += graph.kinds
        placed |= graph.placed
    if lost := numbers.keys() - placed:
        raise StepFailed(f"the graphs have no '{min(lost)}'", where="onnxruntime")
    _configure(program, out, model)
    return {
        "file": DECODER,
        "architecture": model.config.model_type,
        "kernels": dict(kinds),
        "context": _context(model.config),
        "max_length": max_length,
        "twice_bytes": sum(sizes[0][name] for name in sizes[0].keys() & sizes[1].keys()),
        "caveats": [],
    }


def _context(config: Any) -> int:
    return int(getattr(config, "max_position_embeddings", None) or CONTEXT)


def _weights(model: Any) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """All tensors by name, and the first name of each: that of a shared table, under which its numbers are known."""
    held, seen, first = model.state_dict(), {}, {}
    for name, tensor in held.items():
        first[name] = seen.setdefault((tensor.data_ptr(), tensor.shape), name)
    return {name: tensor.numpy() for name, tensor in held.items()}, first


def _configure(program: Path, out: Path, model: Any) -> None:
    """What clients read beside the graphs; greedy unless they ask otherwise."""
    shutil.copyfile(program / MODEL / "config.json", out / "config.json")
    held = program / MODEL / GENERATION
    told = read_json(held) if held.is_file() else {}
    told |= {name: getattr(model.config, name) for name in ("decoder_start_token_id", "pad_token_id")}
    told["eos_token_id"] = _contract.end_tokens(program) or None
    if told["eos_token_id"] and len(told["eos_token_id"]) == 1:
        told["eos_token_id"] = told["eos_token_id"][0]
    write_json(out / GENERATION, told)


# The graphs.


class _Graph:
    """A graph in the making: nodes, the initializers they read, and the Program's matrices among them."""

    def __init__(self, weights: Mapping[str, np.ndarray], first: Mapping[str, str], numbers: Numbers) -> None:
        self.weights, self.first, self.numbers = weights, first, numbers
        self.nodes: list[Any] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.floats: dict[str, Any] = {}
        self.kinds: Counter[str] = Counter()
        self.placed: set[str] = set()
        self.made = 0

    def op(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """The output of a node more."""
        from onnx import helper

        self.made += 1
        output = name or f"{kind}_{self.made}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=f"{kind}/{output}", **attributes))
        return output

    def hold(self, array: Any, name: str = "") -> str:
        """An initializer: a weight under its name, or a constant."""
        import numpy as np
        from onnx import numpy_helper

        array = np.asarray(array, order="C")  # which keeps an array without axes one
        name = name or f"{array.dtype}_{'x'.join(map(str, array.shape))}_{array.tobytes().hex()[:64]}"
        if name not in self.floats:
            self.floats[name] = numpy_helper.from_array(array, name)
        return name

    def number(self, value: float) -> str:
        """A float32 constant without axes."""
        import numpy as np

        return self.hold(np.float32(value))

    def ints(self, *values: int) -> str:
        """An int64 constant with one axis."""
        import numpy as np

        return self.hold(np.array(values, np.int64))

    def weight(self, name: str) -> str:
        """A tensor of the model, in floats."""
        return self.hold(self.weights[name], self.first[name])

    def linear(self, x: str, name: str) -> str:
        """``x`` [.., I] times the matrix [O, I] of a linear layer, plus its bias, if any."""
        matrix = self.first[f"{name}.weight"].removesuffix(".weight")
        if matrix in self.numbers:
            weight_q, scale_OG = self.numbers[matrix]
            bits, block, blocks, scales = genai.packed(weight_q, scale_OG)
            base = f"{matrix}.q{bits}"
            parts = (self.hold(blocks, base), self.hold(scales, f"{base}.scale"))
            size = {"K": weight_q.shape[1], "N": len(weight_q), "bits": bits, "block_size": block}
            y = self._ours("MatMulNBits", x, *parts, accuracy_level=genai.ACCURACY_LEVEL, **size)
            self.placed.add(matrix)
        else:
            y = self.op("MatMul", x, self.hold(self.weights[f"{name}.weight"].T, f"{matrix}.weight.T"))
        bias = f"{name}.bias"
        return self.op("Add", y, self.weight(bias)) if bias in self.weights else y

    def rows(self, ids: str, name: str) -> str:
        """Rows of a word table, [B, S, D]."""
        matrix = self.first[f"{name}.weight"].removesuffix(".weight")
        if matrix not in self.numbers:
            return self.op("Gather", self.weight(f"{name}.weight"), ids)
        bits, block, blocks, scales = genai.packed(*self.numbers[matrix])
        base = f"{matrix}.q{bits}"
        parts = (self.hold(blocks, base), ids, self.hold(scales[..., None], f"{base}.scale3"))
        found = self._ours("GatherBlockQuantized", *parts, bits=bits, block_size=block, gather_axis=0, quantize_axis=2)
        self.placed.add(matrix)
        return self.op("Reshape", found, self.ints(0, 0, -1))

    def _ours(self, kind: str, *inputs: str, **attributes: Any) -> str:
        self.kinds[f"{kind} {attributes['bits']}"] += 1
        return self.op(kind, *inputs, domain=genai.MICROSOFT, **attributes)

    def input(self, name: str, kind: type, *axes: Any) -> str:
        """An input of the graph; axes by name are free."""
        self.inputs.append(_value(name, kind, axes))
        return name

    def output(self, value: str, name: str, kind: type, *axes: Any) -> None:
        """An output of the graph."""
        self.op("Identity", value, name=name)
        self.outputs.append(_value(name, kind, axes))

    @contextmanager
    def branch(self) -> Iterator[list[Any]]:
        """Nodes made inside belong to a branch; what the graph holds is theirs to read."""
        whole, self.nodes = self.nodes, []
        try:
            yield self.nodes
        finally:
            self.nodes = whole

    def model(self) -> Any:
        """The finished ONNX model."""
        from onnx import helper

        graph = helper.make_graph(self.nodes, "edgekd", self.inputs, self.outputs, list(self.floats.values()))
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(genai.MICROSOFT, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10, producer_name="edgekd")


def _value(name: str, kind: type, axes: Sequence[Any] | None) -> Any:
    from onnx import TensorProto, helper

    kinds = {float: TensorProto.FLOAT, int: TensorProto.INT64, bool: TensorProto.BOOL}
    return helper.make_tensor_value_info(name, kinds[kind], axes)


ACTIVATIONS: dict[str, Any] = {
    "relu": lambda g, x: g.op("Relu", x),
    "gelu": lambda g, x: g.op("Gelu", x),
    "gelu_new": lambda g, x: g.op("Gelu", x, approximate="tanh"),
    "silu": lambda g, x: g.op("Mul", x, g.op("Sigmoid", x)),
    "swish": lambda g, x: g.op("Mul", x, g.op("Sigmoid", x)),
}


class _Family:
    """How a family of models spells its parts; states are [B, S, D], keys and values [B, heads, S, width]."""

    root = ""  # what comes before ``encoder`` in names
    own = cross = ""  # the attentions of a layer: over the text itself, over the source

    def __init__(self, graph: _Graph, config: Any) -> None:
        self.g, self.config = graph, config
        self.heads, self.width = config.num_attention_heads, config.d_model // config.num_attention_heads
        self.scaling = self.width**-0.5

    def depth(self, half: str) -> int:
        """Layers of ``encoder`` or ``decoder``."""
        raise NotImplementedError

    def layer(self, half: str, index: int) -> str:
        """The name of a layer."""
        raise NotImplementedError

    def begin(self, half: str, ids: str, positions: str) -> str:
        """States before the first layer."""
        raise NotImplementedError

    def bias(self, half: str, queries: str, keys: str) -> str:
        """What positions add to the scores of a text's tokens among themselves, [1, heads, Q, K]; "" for nothing."""
        return ""

    def block(self, layer: str, h: str, asks: Mapping[str, Any]) -> str:
        """A layer: its attentions (by name, functions of states), then its feed-forward part."""
        raise NotImplementedError

    def end(self, half: str, h: str) -> str:
        """States behind the last layer."""
        return h

    def logits(self, h: str) -> str:
        """[B, S, V]."""
        raise NotImplementedError

    def projections(self, attention: str) -> tuple[str, str, str, str]:
        """Names of query, key, value and output."""
        raise NotImplementedError

    def split(self, x: str, name: str) -> str:
        """A projection, by head."""
        parts = self.g.op("Reshape", self.g.linear(x, name), self.g.ints(0, 0, self.heads, self.width))
        return self.g.op("Transpose", parts, perm=[0, 2, 1, 3])

    def attend(self, x: str, attention: str, keys: str, values: str, bias: str) -> str:
        """Answers of an attention to ``x``."""
        g, (query, _, _, output) = self.g, self.projections(attention)
        scores = g.op("MatMul", self.split(x, query), g.op("Transpose", keys, perm=[0, 1, 3, 2]))
        if self.scaling != 1.0:
            scores = g.op("Mul", scores, g.number(self.scaling))
        if bias:
            scores = g.op("Add", scores, bias)
        found = g.op("MatMul", g.op("Softmax", scores, axis=-1), values)
        joined = g.op("Reshape", g.op("Transpose", found, perm=[0, 2, 1, 3]), g.ints(0, 0, -1))
        return g.linear(joined, output)


class _Bart(_Family):
    """BART and Marian: norms behind each part, positions in a table."""

    root, own, cross = "model.", "self_attn", "encoder_attn"

    def depth(self, half: str) -> int:
        return int(getattr(self.config, f"{half}_layers"))

    def layer(self, half: str, index: int) -> str:
        return f"{self.root}{half}.layers.{index}"

    def projections(self, attention: str) -> tuple[str, str, str, str]:
        q, k, v, out = (f"{attention}.{part}_proj" for part in ("q", "k", "v", "out"))
        return q, k, v, out

    def begin(self, half: str, ids: str, positions: str) -> str:
        g, name = self.g, f"{self.root}{half}"
        h = g.rows(ids, f"{name}.embed_tokens")
        if self.config.scale_embedding:
            h = g.op("Mul", h, g.number(self.config.d_model**0.5))
        table = g.weights[f"{name}.embed_positions.weight"]
        table = table[
            len(table) - self.config.max_position_embeddings :
        ]  # BART's begins with two rows that nobody reads
        h = g.op("Add", h, g.op("Gather", g.hold(table, f"{name}.embed_positions"), positions))
        norm = f"{name}.layernorm_embedding"
        return self.norm(h, norm) if f"{norm}.weight" in g.weights else h

    def norm(self, x: str, name: str) -> str:
        weights = (self.g.weight(f"{name}.weight"), self.g.weight(f"{name}.bias"))
        return self.g.op("LayerNormalization", x, *weights, axis=-1, epsilon=1e-5)

    def block(self, layer: str, h: str, asks: Mapping[str, Any]) -> str:
        g = self.g
        for name, ask in asks.items():
            h = self.norm(g.op("Add", h, ask(h)), f"{layer}.{name}_layer_norm")
        inner = ACTIVATIONS[self.config.activation_function](g, g.linear(h, f"{layer}.fc1"))
        return self.norm(g.op("Add", h, g.linear(inner, f"{layer}.fc2")), f"{layer}.final_layer_norm")

    def logits(self, h: str) -> str:
        found, bias = self.g.linear(h, "lm_head"), self.g.weights["final_logits_bias"]
        return self.g.op("Add", found, self.g.weight("final_logits_bias")) if bias.any() else found


class _T5(_Family):
    """T5: root mean squares before each part, positions as a bias of scores that the first layer holds."""

    own, cross = "layer.0.SelfAttention", "layer.1.EncDecAttention"

    def __init__(self, graph: _Graph, config: Any) -> None:
        super().__init__(graph, config)
        self.width, self.scaling = config.d_kv, 1.0

    def depth(self, half: str) -> int:
        return int(self.config.num_layers if half == "encoder" else self.config.num_decoder_layers)

    def layer(self, half: str, index: int) -> str:
        return f"{half}.block.{index}"

    def projections(self, attention: str) -> tuple[str, str, str, str]:
        q, k, v, out = (f"{attention}.{part}" for part in "qkvo")
        return q, k, v, out

    def begin(self, half: str, ids: str, positions: str) -> str:
        return self.g.rows(ids, f"{half}.embed_tokens")

    def bias(self, half: str, queries: str, keys: str) -> str:
        """Distances beyond the largest share its bucket, so that a table of distances is all there is."""
        import torch
        from transformers.models.t5.modeling_t5 import T5Attention

        g, far = self.g, self.config.relative_attention_max_distance
        buckets = T5Attention._relative_position_bucket(
            torch.arange(-far, far + 1), half == "encoder", self.config.relative_attention_num_buckets, far
        )
        rows = g.weights[f"{self.layer(half, 0)}.{self.own}.relative_attention_bias.weight"][buckets.numpy()]
        apart = g.op("Sub", g.op("Unsqueeze", keys, g.ints(0)), g.op("Unsqueeze", queries, g.ints(1)))
        near = g.op("Min", g.op("Max", apart, g.ints(-far)), g.ints(far))
        found = g.op("Gather", g.hold(rows, f"{half}.distances"), g.op("Add", near, g.ints(far)))
        return g.op("Unsqueeze", g.op("Transpose", found, perm=[2, 0, 1]), g.ints(0))

    def norm(self, x: str, name: str) -> str:
        g = self.g
        mean = g.op("ReduceMean", g.op("Mul", x, x), g.ints(-1))
        root = g.op("Sqrt", g.op("Add", mean, g.number(self.config.layer_norm_epsilon)))
        return g.op("Mul", g.op("Div", x, root), g.weight(f"{name}.weight"))

    def block(self, layer: str, h: str, asks: Mapping[str, Any]) -> str:
        g = self.g
        for part, ask in enumerate(asks.values()):
            h = g.op("Add", h, ask(self.norm(h, f"{layer}.layer.{part}.layer_norm")))
        last = f"{layer}.layer.{len(asks)}"
        x, dense, active = (
            self.norm(h, f"{last}.layer_norm"),
            f"{last}.DenseReluDense",
            ACTIVATIONS[self.config.dense_act_fn],
        )
        if self.config.is_gated_act:
            inner = g.op("Mul", active(g, g.linear(x, f"{dense}.wi_0")), g.linear(x, f"{dense}.wi_1"))
        else:
            inner = active(g, g.linear(x, f"{dense}.wi"))
        return g.op("Add", h, g.linear(inner, f"{dense}.wo"))

    def end(self, half: str, h: str) -> str:
        return self.norm(h, f"{half}.final_layer_norm")

    def logits(self, h: str) -> str:
        if self.config.scale_decoder_outputs:
            h = self.g.op("Mul", h, self.g.number(self.config.d_model**-0.5))
        return self.g.linear(h, "lm_head")


def _encoder(family: _Family) -> None:
    """ids and mask [B, E] -> ``last_hidden_state`` [B, E, D]."""
    g = family.g
    axes = ("batch_size", "encoder_sequence_length")
    ids, mask = g.input("input_ids", int, *axes), g.input("attention_mask", int, *axes)
    positions = _range(g, g.hold(_int(0)), _size(g, ids, 1))
    bias = _joined(g, family.bias("encoder", positions, positions), _hidden(g, mask))
    h = family.begin("encoder", ids, positions)
    for index in range(family.depth("encoder")):
        layer = family.layer("encoder", index)
        name = f"{layer}.{family.own}"

        def own(x: str, name: str = name) -> str:
            _, key, value, _ = family.projections(name)
            return family.attend(x, name, family.split(x, key), family.split(x, value), bias)

        h = family.block(layer, h, {family.own: own})
    g.output(family.end("encoder", h), "last_hidden_state", float, *axes, family.config.d_model)


def _decoder(family: _Family) -> None:
    """ids [B, S], the encoder's states and mask, and the cache -> ``logits`` [B, S, V] and the cache that follows."""
    g, heads = family.g, (family.heads, family.width)
    mask = g.input("encoder_attention_mask", int, "batch_size", "encoder_sequence_length")
    ids = g.input("input_ids", int, "batch_size", "decoder_sequence_length")
    source = g.input("encoder_hidden_states", float, "batch_size", "encoder_sequence_length", family.config.d_model)
    past: dict[tuple[int, str, str], str] = {}
    for index in range(family.depth("decoder")):
        for half in HALVES:
            for part in ("key", "value"):
                axes = ("batch_size", heads[0], f"past_{half}_sequence_length", heads[1])
                past[index, half, part] = g.input(f"past_key_values.{index}.{half}.{part}", float, *axes)
    cached = g.input("use_cache_branch", bool, 1)
    before = _size(g, past[0, "decoder", "key"], 2)
    whole = g.op("Add", before, _size(g, ids, 1))
    queries, keys = _range(g, before, whole), _range(g, g.hold(_int(0)), whole)
    known = g.op("LessOrEqual", g.op("Unsqueeze", keys, g.ints(0)), g.op("Unsqueeze", queries, g.ints(1)))
    causal = g.op("Where", known, g.number(0.0), g.number(LOWEST))
    bias = _joined(g, family.bias("decoder", queries, keys), causal)
    hidden = _hidden(g, mask)
    h = family.begin("decoder", ids, queries)
    present: dict[tuple[int, str, str], str] = {}
    for index in range(family.depth("decoder")):
        layer = family.layer("decoder", index)

        def own(x: str, index: int = index, layer: str = layer) -> str:
            name = f"{layer}.{family.own}"
            for part, projection in zip(("key", "value"), family.projections(name)[1:3], strict=True):
                pair = (past[index, "decoder", part], family.split(x, projection))
                present[index, "decoder", part] = g.op("Concat", *pair, axis=2)
            return family.attend(x, name, *(present[index, "decoder", part] for part in ("key", "value")), bias)

        def cross(x: str, index: int = index, layer: str = layer) -> str:
            name = f"{layer}.{family.cross}"
            for part, projection in zip(("key", "value"), family.projections(name)[1:3], strict=True):
                found = _chosen(g, cached, past[index, "encoder", part], family, source, projection)
                present[index, "encoder", part] = found
            return family.attend(x, name, *(present[index, "encoder", part] for part in ("key", "value")), hidden)

        h = family.block(layer, h, {family.own: own, family.cross: cross})
    logits = family.logits(family.end("decoder", h))
    g.output(logits, "logits", float, "batch_size", "decoder_sequence_length", family.config.vocab_size)
    for (index, half, part), value in present.items():
        axes = ("batch_size", heads[0], f"{half}_sequence_length_out", heads[1])
        g.output(value, f"present.{index}.{half}.{part}", float, *axes)


def _chosen(g: _Graph, cached: str, past: str, family: _Family, source: str, projection: str) -> str:
    """Keys (or values) of the source: those given, or made of its states."""
    from onnx import helper

    branches = {}
    for name in ("then_branch", "else_branch"):
        with g.branch() as nodes:
            out = g.op("Identity", past) if name == "then_branch" else family.split(source, projection)
        branches[name] = helper.make_graph(nodes, f"{projection}/{name}", [], [_value(out, float, None)])
    return g.op("If", cached, **branches)


def _int(value: int) -> Any:
    import numpy as np

    return np.int64(value)


def _size(g: _Graph, x: str, axis: int) -> str:
    """The length of an axis, an int64 without axes."""
    return g.op("Squeeze", g.op("Shape", x, start=axis, end=axis + 1))


def _range(g: _Graph, start: str, stop: str) -> str:
    return g.op("Range", start, stop, g.hold(_int(1)))


def _hidden(g: _Graph, mask: str) -> str:
    """A mask [B, E] as what is added to scores, [B, 1, 1, E]."""
    from onnx import TensorProto

    absent = g.op("Sub", g.number(1.0), g.op("Cast", mask, to=TensorProto.FLOAT))
    return g.op("Unsqueeze", g.op("Mul", absent, g.number(LOWEST)), g.ints(1, 2))


def _joined(g: _Graph, bias: str, mask: str) -> str:
    return g.op("Add", bias, mask) if bias else mask


def numbers(artifact: Path) -> Numbers:
    """Integers and scales of both files; raises StepFailed where they hold a shared table with different numbers."""
    import numpy as np
    import onnx

    found: Numbers = {}
    for file in (ENCODER, DECODER):
        for name, weight_q, scale_OG in genai.held(onnx.load(artifact / file).graph):
            matrix = name.rpartition(".q")[0]
            other = found.setdefault(matrix, (weight_q, scale_OG))
            if not all(np.array_equal(a, b) for a, b in zip(other, (weight_q, scale_OG), strict=True)):
                raise StepFailed(f"the two files hold '{matrix}' with different numbers", where=str(artifact))
    return found


# The runtime.


def golden_bound(scheme: str, logit_range: float) -> float:
    """As ``onnx.golden_bound``: the same operators of the same runtime."""
    return genai.golden_bound(scheme, logit_range)


class Session(_contract.Cached):
    """Both graphs. The first tokens fed are the source; what follows is what the decoder has written."""

    holder = "model"

    def __init__(self, artifact: Path, threads: int) -> None:
        ort = require("onnxruntime", extra)
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        self._encoder, self._decoder = (
            ort.InferenceSession(str(artifact / file), options, providers=["CPUExecutionProvider"])
            for file in (ENCODER, DECODER)
        )
        config = read_json(artifact / GENERATION)
        super().__init__(_context_of(artifact))
        self._start, self._ends = config["decoder_start_token_id"], config["eos_token_id"]
        self._outputs = [one.name for one in self._decoder.get_outputs()]
        self._empty = {
            one.name: [one.shape[1], one.shape[3]] for one in self._decoder.get_inputs() if one.name.startswith("past")
        }
        self._read: dict[str, Any] | None = None
        self._cache: dict[str, Any] = {}
        self.observed: Facts = {
            "runtime": "onnxruntime",
            "version": ort.__version__,
            "threads": threads,
            "caveats": genai.caveats(artifact / DECODER),
        }

    def reset(self) -> None:
        """Forget source and tokens."""
        super().reset()
        self._read, self._cache = None, {}

    def feed(self, ids: Sequence[int]) -> np.ndarray:
        """Logits after the last of these tokens, float32 [V]; of a source those of the first token to write."""
        if self._read is None:
            self._encode([ids])
            ids = [self._start]
        return self._decode([ids])[0, -1].copy()  # type: ignore[no-any-return]

    def score(self, ids: Sequence[int], begins: Sequence[int] = ()) -> np.ndarray:
        """Logits after each of the decoder's tokens ``begins``, float32 [T, V], of the source ``ids``."""
        self.reset()
        self._encode([ids])
        return self._decode([begins or [self._start]])[0].copy()  # type: ignore[no-any-return]

    def together(self, sources: Sequence[Sequence[int]]) -> np.ndarray:
        """Logits of the first token to write for several sources in one padded batch, float32 [B, V]."""
        self.reset()
        self._encode(sources)
        found = self._decode([[self._start]] * len(sources))[:, -1].copy()
        self.reset()
        return found  # type: ignore[no-any-return]

    def write(self, ids: Sequence[int], count: int) -> list[int]:
        """At most ``count`` greedy tokens after a source, without the one that ends them."""
        ends = self._ends if isinstance(self._ends, list) else [self._ends]
        written: list[int] = []
        self.reset()
        logits_V = self.feed(ids)
        while (token := int(logits_V.argmax())) not in ends and len(written) < count:
            written.append(token)
            logits_V = self.feed([token])
        return written

    def close(self) -> None:
        """Free both graphs."""
        self.reset()
        self._encoder = self._decoder = None

    def _encode(self, sources: Sequence[Sequence[int]]) -> None:
        import numpy as np

        longest = max(map(len, sources))
        if longest > self._size:
            raise BadInput(f"a source of {longest} tokens; the {self.holder} reads {self._size}")
        ids, mask = np.zeros((2, len(sources), longest), np.int64)
        for row, one in enumerate(sources):
            ids[row, : len(one)], mask[row, : len(one)] = one, 1
        (states,) = self._encoder.run(None, {"input_ids": ids, "attention_mask": mask})
        self._read = {"encoder_hidden_states": states, "encoder_attention_mask": mask}

    def _decode(self, ids: Sequence[Sequence[int]]) -> np.ndarray:
        import numpy as np

        self._room(len(ids[0]))
        assert self._read is not None
        later = bool(self._cache)
        if not later:
            rows = len(ids)
            self._cache = {
                name: np.zeros((rows, heads, 0, width), np.float32) for name, (heads, width) in self._empty.items()
            }
        feeds = {"input_ids": np.asarray(ids, np.int64), "use_cache_branch": np.array([later])}
        wanted = [
            name for name in self._outputs if not later or ".encoder." not in name
        ]  # the source's stay as they are
        logits, *present = self._decoder.run(wanted, {**feeds, **self._read, **self._cache})
        self._cache |= {
            name.replace("present", "past_key_values"): one for name, one in zip(wanted[1:], present, strict=True)
        }
        self._fed += len(ids[0])
        return logits  # type: ignore[no-any-return]


def _context_of(artifact: Path) -> int:
    return int(read_json(artifact / "config.json").get("max_position_embeddings") or CONTEXT)


def open_session(artifact: Path, *, threads: int = 1) -> Session:
    """Open the folder that ``export`` wrote."""
    return Session(artifact, threads)
