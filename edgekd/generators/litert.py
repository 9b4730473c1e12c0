"""LiteRT-LM ``.litertlm``: a LiteRT model with prefill and decode graphs, tokenizer and chat template in one file.

Each graph is converted in floats, its matrices as inputs that the converter cannot see through; then they become the
Program's constants (``targets/_litert_passes.py``), one copy for all graphs. XNNPACK multiplies int8 rows and int4
blocks of 32 (scales in halves, which hold the Program's eight bits) with activations in int8 by token. A word table is
int8 in plain operators.

Names and shapes are those that LiteRT-LM asks for: ``decode`` takes one token and gives logits, ``prefill_<n>`` takes n
and fills the cache only. Keys are [1, G, T, D], values [1, G, D, T], so that both products of attention run along rows.
The cache belongs to the caller, who passes it from call to call.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.artifact import Facts
from edgekd.errors import StepFailed
from edgekd.generators import _contract
from edgekd.generators._contract import MODEL, Numbers
from edgekd.registry import require
from edgekd.targets import litert as target
from edgekd.targets._litert_passes import lift_weights, merge, parsed, store_weights

if TYPE_CHECKING:
    import numpy as np
    import torch

suffix = ".litertlm"
extra = "litert"
tasks = frozenset({"text-generation"})
distributions = ("ai-edge-litert", "litert-converter", "litert-lm-builder", "litert-torch", "torch")
accepts = frozenset({"fp32", "w8", "w4", "w8a8-dynamic"})
refuses: Mapping[str, str] = {}
runs = True
block = 1

FILE, TOKENIZER = f"model{suffix}", "tokenizer.json"
DECODE, PREFILL = "decode", "prefill_"
TOLD = ("tokens", "input_pos", "mask")  # inputs of a graph beside the cache
PREFILLS = (16, 128)  # tokens that a graph takes at once
TABLE = "model.embed_tokens"
MASKED = -0.7 * 3.4028235e38  # as LiteRT-LM writes it: two of them are still a number
TOKENS = "activations of integer weights in int8 by token"


def check(config: Any) -> None:
    """Llama, Qwen2 and Qwen3. Raises BadInput for others."""
    from edgekd.generators import _decoder

    _decoder.check(config, "LiteRT-LM")


def export(program: Path, out: Path, *, max_length: int) -> Facts:
    """Write ``out/model.litertlm``. ``max_length`` tokens fill the cache."""
    require("litert_torch", extra)
    require("litert_lm_builder", extra)
    from edgekd.generators import _decoder

    config = _contract.read_config(program)
    check(config)
    model, names = _decoder.load(program, dynamic=False)
    sizes = [size for size in PREFILLS if size <= max_length] or [max_length]
    graphs = {DECODE: _graph(model, names, 1, max_length)}
    graphs |= {f"{PREFILL}{size}": _graph(model, names, size, max_length) for size in sizes}
    content = merge(graphs)
    _bundle(content, program, out, max_length)
    return {
        "file": FILE,
        "architecture": config.model_type,
        "context": max_length,
        "max_length": max_length,
        "prefill": sizes,
        "model_bytes": len(content),
    }


def _graph(model: Any, names: Sequence[str], tokens: int, size: int) -> bytes:
    """The LiteRT file of one graph, which takes ``tokens`` at once, with the Program's numbers in it."""
    import litert_torch
    import torch

    cached = _cached(model, size, logits=tokens == 1)
    caches = {
        f"kv_cache_{part}_{index}": torch.zeros(1, cached.shared_heads, *shape)
        for index in range(cached.layers_count)
        for part, shape in (("k", (size, cached.head_dim)), ("v", (cached.head_dim, size)))
    }
    inputs = {
        "tokens": torch.zeros(1, tokens, dtype=torch.int32),
        "input_pos": torch.arange(tokens, dtype=torch.int32),
        "mask": torch.zeros(1, 1, tokens, size),
        **caches,
    }
    with torch.no_grad():
        module: Any = torch.export.export(cached, tuple(inputs.values()), strict=False).module()
    for check in module.graph.find_nodes(op="call_function", target=torch.ops.aten._assert_tensor_metadata.default):
        module.graph.erase_node(check)  # it would keep alive what a graph without logits does not need
    module.graph.eliminate_dead_code()
    called = _matrices(module, head=names[-1] if names else "")
    lifted = lift_weights(module)
    buffers = dict(module.named_buffers())
    outputs = [*(["logits"] if tokens == 1 else []), *caches]

    class Named(torch.nn.Module):
        """The module with names for inputs and outputs, and its matrices among the inputs."""

        def __init__(self) -> None:
            super().__init__()
            self.program = module
            self.training = False

        def forward(self, **given: torch.Tensor) -> dict[str, torch.Tensor]:
            matrices = {one.name: given[one.name] for one in lifted}
            found = torch.func.functional_call(self.program, matrices, tuple(given[name] for name in inputs))
            return dict(zip(outputs, found, strict=True))

    sample = inputs | {one.name: buffers[one.name] for one in lifted}
    converted = litert_torch.convert(Named(), sample_kwargs=sample).model_content()
    stored = [replace(one, form="blocks" if one.form == "int4" else "dynamic") for one in lifted]
    return _named(store_weights(converted, stored), dict(zip((one.name for one in lifted), called, strict=True)))


def _matrices(module: Any, head: str) -> list[str]:
    """The Program's names of the matrices in a graph, in its order; a graph that only fills the cache has no head."""
    import torch

    held = [node.args[1] for node in module.graph.nodes if node.target is torch.ops.aten.linear.default]
    names = [str(node.args[0].target).removesuffix(".weight_q") for node in held if node.op == "call_function"]
    return [head if name == "head" else f"model.{name}" for name in names]


def _cached(model: Any, size: int, *, logits: bool) -> Any:
    """``forward(tokens, input_pos, mask, *caches)`` -> logits [1, 1, V] where asked for, and the caches."""
    import torch
    import torch.nn.functional as F
    from litert_torch.generative.custom_ops.bmm_4d import bmm_4d
    from litert_torch.generative.custom_ops.dynamic_update_slice import dynamic_update_slice

    from edgekd.generators._decoder import Decoder

    class Cached(Decoder):
        def forward(
            self, tokens: torch.Tensor, input_pos: torch.Tensor, mask: torch.Tensor, *caches: torch.Tensor
        ) -> tuple[torch.Tensor, ...]:
            start, zero = input_pos[0].clone().reshape(1), torch.zeros(1, dtype=torch.int32)
            count, filled = tokens.shape[1], []
            repeats = self.heads // self.shared_heads
            mask = mask.repeat(1, 1, repeats, 1)

            def attend(index: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
                places = torch.cat([zero, zero, start, zero]), torch.cat([zero, zero, zero, start])
                keys = dynamic_update_slice(caches[2 * index], k.transpose(1, 2), list(places[0]))
                values = dynamic_update_slice(caches[2 * index + 1], v.permute(0, 2, 3, 1), list(places[1]))
                filled.extend([keys, values])
                q = q.transpose(1, 2).reshape(1, self.shared_heads, repeats * count, self.head_dim)
                shares = torch.softmax(bmm_4d(q * self.scaling, keys) + mask, -1)
                found = bmm_4d(shares, values).reshape(1, self.heads, count, self.head_dim)
                return found.transpose(1, 2)

            cos, sin = F.embedding(input_pos, self.cos), F.embedding(input_pos, self.sin)  # type: ignore[arg-type]
            h = self.hidden(tokens, cos, sin, attend)
            return (self.head(h), *filled) if logits else tuple(filled)

    return Cached(model, size).eval()


def _named(content: bytes, names: Mapping[str, str]) -> bytes:
    """The file whose tensors have the names of the Program's matrices."""
    from edgekd.targets._litert_passes import written

    model = parsed(content)
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            name = tensor.name.decode()
            if name in names:
                tensor.name = names[name].encode()
    return written(model)


def _bundle(content: bytes, program: Path, out: Path, size: int) -> None:
    """Write ``model.litertlm``: the model, the tokenizer, the chat template and the tokens that end a text."""
    import litert_lm_builder as lm
    from litert_lm_builder.runtime.proto import llm_metadata_pb2, llm_model_type_pb2

    told = llm_metadata_pb2.LlmMetadata()
    told.max_num_tokens = size
    told.llm_model_type.CopyFrom(llm_model_type_pb2.LlmModelType(generic_model=llm_model_type_pb2.GenericModel()))
    for one in _contract.end_tokens(program):
        told.stop_tokens.add().token_ids.ids.append(one)
    template = program / MODEL / "chat_template.jinja"
    if template.is_file():
        told.jinja_prompt_template = template.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory(dir=out, prefix=".parts-") as folder:
        model, metadata = Path(folder) / "model.tflite", Path(folder) / "metadata.pb"
        model.write_bytes(content)
        metadata.write_bytes(told.SerializeToString())
        builder = lm.LitertLmFileBuilder()
        builder.add_system_metadata(lm.Metadata(key="Authors", value="edgekd", dtype=lm.DType.STRING))
        builder.add_llm_metadata(str(metadata))
        builder.add_hf_tokenizer(str(program / MODEL / TOKENIZER))
        builder.add_tflite_model(str(model), lm.TfLiteModelType.PREFILL_DECODE)
        with (out / FILE).open("wb") as stream:
            builder.build(stream)


# What the file holds.


def model_of(artifact: Path) -> bytes:
    """The LiteRT model inside the ``.litertlm`` file."""
    import io

    require("litert_lm_builder", extra)
    from litert_lm_builder import litertlm_header_schema_py_generated as schema
    from litert_lm_builder import litertlm_peek

    file = artifact / FILE
    try:
        sections = litertlm_peek.read_litertlm_header(str(file), io.StringIO()).SectionMetadata()
    except (ValueError, OSError) as error:
        raise StepFailed(f"no LiteRT-LM file ({error})", where=str(file)) from None
    for one in (sections.Objects(index) for index in range(sections.ObjectsLength())):
        if one.DataType() == schema.AnySectionDataType.TFLiteModel:
            with file.open("rb") as stream:
                stream.seek(one.BeginOffset())
                return stream.read(one.EndOffset() - one.BeginOffset())
    raise StepFailed("it holds no LiteRT model", where=str(file))


def numbers(artifact: Path) -> Numbers:
    """Integers and scales of the file's products and of its word table; those of all its graphs are the same."""
    import numpy as np
    from ai_edge_litert import schema_py_generated as schema

    kinds = schema.TensorType
    model = parsed(model_of(artifact))
    found: Numbers = {}

    def data(tensor: Any, kind: Any) -> np.ndarray:
        return np.frombuffer(np.asarray(model.buffers[tensor.buffer].data, np.uint8).tobytes(), kind)

    def held(tensor: Any) -> bool:
        stored = model.buffers[tensor.buffer].data
        return stored is not None and len(stored) > 0 and len(tensor.shape) == 2

    def place(name: str, *arrays: np.ndarray) -> None:
        if name in found and not all(np.array_equal(*both) for both in zip(found[name], arrays, strict=True)):
            raise StepFailed(f"'{name}' differs between graphs, or from a tied head", where=str(artifact / FILE))
        found[name] = arrays  # type: ignore[assignment]

    for graph in model.subgraphs:
        for tensor in filter(held, graph.tensors):
            name, shape, quantization = tensor.name.decode(), tuple(tensor.shape), tensor.quantization
            if tensor.type == kinds.INT4:
                pairs = data(tensor, np.uint8)
                nibbles = np.stack([pairs & 15, pairs >> 4], -1).reshape(shape)
                scale = data(graph.tensors[quantization.details.scales], "<f2").astype(np.float32)
                place(name, ((nibbles ^ 8) - np.uint8(8)).view(np.int8), scale.reshape(shape[0], -1))
            elif tensor.type == kinds.INT8 and quantization is not None and quantization.scale is not None:
                scale = np.asarray(quantization.scale, np.float32)
                place(name, data(tensor, np.int8).reshape(shape), scale.reshape(-1, 1))
        table: dict[int, np.ndarray] = {}
        for one in graph.operators:
            code = model.operatorCodes[one.opcodeIndex]
            if max(code.builtinCode, code.deprecatedBuiltinCode) != schema.BuiltinOperator.EMBEDDING_LOOKUP:
                continue
            tensor = graph.tensors[one.inputs[1]]  # integers, or their scales; cosines of positions too
            if tensor.type == kinds.INT8:
                table[0] = data(tensor, np.int8).reshape(tensor.shape)
            elif tensor.shape[1] == 1:
                table[1] = data(tensor, "<f4").reshape(tensor.shape)
        if table:
            place(TABLE, table[0], table[1])
    return found


# The runtime.


def kernels(artifact: Path) -> Facts:
    """See ``targets/litert.py``; of the graph that writes one token."""
    return target.kernels_of(model_of(artifact))


def golden_bound(scheme: str, logit_range: float) -> float:
    """Floats: 0.01 % of the range, sums in another order.

    ``w8a8-dynamic``: the layers compute what the Program computes, but floats between them differ in the last bit, and
    a value at a tie is rounded otherwise. ``w8``, ``w4``: the Program's activations are floats, here int8 by token;
    see ``executorch.golden_bound``.
    """
    return {"fp32": 1e-4, "w8a8-dynamic": 0.02}.get(scheme, 0.06) * logit_range


class Session(_contract.Cached):
    """LiteRT's compiled model (XNNPACK), one cache for all its graphs, as LiteRT-LM has it.

    The cache that a graph reads is the one that it writes: LiteRT then copies nothing but the new keys and values.
    """

    def __init__(self, artifact: Path, threads: int) -> None:
        from importlib.metadata import version

        require("ai_edge_litert", extra)
        import numpy as np
        from ai_edge_litert.compiled_model import CompiledModel
        from ai_edge_litert.hardware_accelerator import HardwareAccelerator
        from ai_edge_litert.options import CpuOptions, Options

        content = model_of(artifact)
        options = Options(HardwareAccelerator.CPU, cpu_options=CpuOptions(num_threads=threads))
        self._model: Any = CompiledModel.from_buffer(content, options=options)
        names = self._model.get_signature_list()
        self._prefills = sorted(int(name.removeprefix(PREFILL)) for name in names if name.startswith(PREFILL))
        details = self._model.get_input_tensor_details(DECODE)
        super().__init__(int(details["mask"]["shape"][-1]))
        self._cache = {}
        for name in (name for name in details if name.startswith("kv_cache_")):
            self._cache[name] = self._model.create_input_buffer_by_name(DECODE, name)
            self._cache[name].write(np.zeros(details[name]["shape"], np.float32))
        self._inputs = {
            graph: {name: self._model.create_input_buffer_by_name(graph, name) for name in TOLD} for graph in names
        }
        self._logits = self._model.create_output_buffer_by_name(DECODE, "logits")
        self._width = int(self._model.get_output_tensor_details(DECODE)["logits"]["shape"][-1])
        self.observed: Facts = {
            "runtime": "LiteRT",
            "version": version("ai-edge-litert"),
            "provider": "XNNPACK",
            "threads": threads,
            "max_length": self._size,
            "caveats": [TOKENS] if _integers(content) else [],
        }

    def feed(self, ids: Sequence[int]) -> np.ndarray:
        """Logits after the last of these tokens, float32 [V]."""
        import numpy as np

        self._room(len(ids))
        ahead = list(ids[:-1])
        while ahead:
            fitting = [size for size in self._prefills if self._fed + size <= self._size]  # padding fills the cache too
            size = min([size for size in fitting if size >= len(ahead)], default=max(fitting, default=1))
            some, ahead = ahead[:size], ahead[size:]
            self._run(f"{PREFILL}{size}" if fitting else DECODE, some, size)
        self._run(DECODE, [ids[-1]], 1)
        logits: np.ndarray = self._logits.read(self._width, np.float32)
        return logits

    def _run(self, graph: str, ids: Sequence[int], size: int) -> None:
        import numpy as np

        tokens = np.zeros((1, size), np.int32)
        tokens[0, : len(ids)] = ids
        places = np.arange(self._fed, self._fed + size, dtype=np.int32)
        seen = np.arange(self._size) <= places[:, None]
        mask = np.where(seen, 0, MASKED).astype(np.float32)[None, None]
        for name, value in zip(TOLD, (tokens, places, mask), strict=True):
            self._inputs[graph][name].write(value)
        outputs = {**self._cache, "logits": self._logits} if graph == DECODE else self._cache
        self._model.run_by_name(graph, {**self._inputs[graph], **self._cache}, outputs)
        self._fed += len(ids)

    def close(self) -> None:
        """Free model and cache."""
        self._cache, self._inputs, self._logits = {}, {}, None
        self._model.close()


def _integers(content: bytes) -> bool:
    """Whether a model's matrices are integers. Reads kinds alone: a session is opened while it is timed."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(content, 0)
    graphs = map(model.Subgraphs, range(model.SubgraphsLength()))
    tensors = (graph.Tensors(index) for graph in graphs for index in range(graph.TensorsLength()))
    return any(tensor.Type() == schema.TensorType.INT8 for tensor in tensors)


def open_session(artifact: Path, *, threads: int = 1) -> Session:
    """Open the model inside ``artifact/model.litertlm``."""
    return Session(artifact, threads)
