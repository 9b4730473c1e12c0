"""ExecuTorch ``.pte`` for its LLM runner: XNNPACK's products, ExecuTorch's own attention over a cache that stays.

XNNPACK takes the Program's integers and scales as they are: int8 rows, int4 groups of 32 whose scales (bfloat16 in the
file) have the eight bits of the Program's. Attention and cache are the operators that ExecuTorch's Llama uses
(``custom_sdpa`` reads no further than the text reaches, ``update_cache`` writes in place), so a longer cache costs
memory and no time. What lies between them is one delegate call: XNNPACK cuts no tensor of dynamic length and takes no
mean over channels, so half a head is moved by a product with a matrix of 0, 1 and -1, which is exact, and a mean is a
product with a row of 1 / E. A word table is int8 in plain operators. ``forward(tokens [1, S], position [1])`` gives the
logits after the last token: a prompt of any length costs one row of the head.

The runner finds end tokens and sizes in constant methods. XNNPACK knows no names of matrices, so one more says them, in
the order of its products.
"""

from __future__ import annotations

import shutil
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.artifact import Facts, write_atomic
from edgekd.errors import StepFailed
from edgekd.generators import _contract
from edgekd.generators._contract import MODEL, Numbers
from edgekd.registry import require
from edgekd.targets import executorch as target

if TYPE_CHECKING:
    import numpy as np
    import torch

suffix = ".pte"
extra = "executorch"
tasks = frozenset({"text-generation"})
distributions = ("executorch", "torch")
accepts = frozenset({"fp32", "w8", "w4", "w8a8-dynamic"})
refuses: Mapping[str, str] = {}
runs = True
block = 1

FILE, TOKENIZER = f"model{suffix}", "tokenizer.json"
MATRICES, GROUPS = "edgekd_matrices", "edgekd_groups"  # methods: names of matrices, whether there are int4 groups
TABLE = "model.embed_tokens"
TOKENS = "activations of int4 weights in int8 by token"


def check(config: Any) -> None:
    """Llama, Qwen2 and Qwen3. Raises BadInput for others."""
    from edgekd.generators import _decoder

    _decoder.check(config, "ExecuTorch")


def export(program: Path, out: Path, *, max_length: int) -> Facts:
    """Write ``out/model.pte`` and the tokenizer. ``max_length`` tokens fill the cache.

    Facts: ``delegates`` (XNNPACK calls) and ``portable_ops`` (operators left outside, counted).
    """
    require("executorch", extra)
    import torch
    from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge_transform_and_lower
    from executorch.exir.passes import MemoryPlanningPass

    from edgekd.generators import _decoder

    config = _contract.read_config(program)
    check(config)
    small = any(scale.shape[1] > 1 for _, scale in _contract.read_numbers(program).values())
    model, names = _decoder.load(program, dynamic=True if small else None)
    ids, position = torch.zeros(1, 4, dtype=torch.long), torch.zeros(1, dtype=torch.long)
    length = torch.export.Dim("length", min=1, max=max_length)
    with torch.no_grad():
        exported = torch.export.export(
            _cached(model, max_length), (ids, position), dynamic_shapes=({1: length}, None), strict=True
        )
    target.split_bias(exported.graph_module)
    target.infer_sizes(exported.graph)
    edge = to_edge_transform_and_lower(
        exported,
        partitioner=[target.partitioner()],
        compile_config=EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True),
        constant_methods={
            "get_bos_id": config.bos_token_id if config.bos_token_id is not None else -1,
            "get_eos_ids": _contract.end_tokens(program),
            "get_max_seq_len": max_length,
            "get_max_context_len": max_length,
            "get_vocab_size": config.vocab_size,
            "use_kv_cache": True,
            "use_sdpa_with_kv_cache": True,
            "enable_dynamic_shape": True,
            "get_n_layers": config.num_hidden_layers,
            MATRICES: " ".join(names) or " ",
            GROUPS: small,
        },
    )
    delegates, portable = target.outside(edge)
    made = edge.to_executorch(ExecutorchBackendConfig(memory_planning_pass=MemoryPlanningPass(alloc_graph_input=False)))
    write_atomic(out / FILE, made.buffer)
    shutil.copyfile(program / MODEL / TOKENIZER, out / TOKENIZER)
    return {
        "file": FILE,
        "architecture": config.model_type,
        "context": max_length,
        "max_length": max_length,
        "delegates": delegates,
        "portable_ops": portable,
    }


def _cached(model: Any, size: int) -> torch.nn.Module:
    """``forward(tokens int64 [1, S], position int64 [1]) -> logits [1, V]`` with a cache of ``size`` tokens."""
    import torch
    from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401  (registers torch.ops.llama)

    from edgekd.generators._decoder import Decoder

    class Norm(torch.nn.Module):
        def __init__(self, norm: Any) -> None:
            super().__init__()
            self.weight, self.eps = norm.weight, norm.variance_epsilon
            self.register_buffer("mean", torch.full((1, len(self.weight)), 1 / len(self.weight)))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            squares = torch.nn.functional.linear(x * x, self.mean)  # type: ignore[arg-type]
            found: torch.Tensor = x * torch.rsqrt(squares + self.eps) * self.weight
            return found

    for name, module in list(model.named_modules()):
        if type(module).__name__.endswith("RMSNorm"):
            model.set_submodule(name, Norm(module))

    class Cached(Decoder):
        def __init__(self) -> None:
            super().__init__(model, size)
            turn = torch.eye(self.head_dim).roll(self.head_dim // 2, 0)
            turn[: self.head_dim // 2] *= -1
            self.register_buffer("turn", turn)
            for index in range(self.layers_count):
                for name in ("keys", "values"):
                    self.register_buffer(f"{name}_{index}", torch.zeros(1, size, self.shared_heads, self.head_dim))

        def rotated(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
            return x * cos + torch.nn.functional.linear(x, self.turn) * sin  # type: ignore[arg-type]

        def forward(self, ids: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
            start = position[0].item()
            torch._check(start >= 0)
            torch._check(start + ids.shape[1] <= size)

            def attend(index: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
                keys, values = getattr(self, f"keys_{index}"), getattr(self, f"values_{index}")
                torch.ops.llama.update_cache(k, keys, start)
                torch.ops.llama.update_cache(v, values, start)
                found: torch.Tensor = torch.ops.llama.custom_sdpa(q, keys, values, start, None, 0.0, True, self.scaling)
                return found

            cos, sin = (table.narrow(0, start, ids.shape[1]) for table in (self.cos, self.sin))
            h = self.hidden(ids, cos, sin, attend)
            found: torch.Tensor = self.head(h[:, -1:])[:, 0]
            return found

    return Cached().eval()


# What the file holds.


def numbers(artifact: Path) -> Numbers:
    """Integers and scales of XNNPACK's products with stored integers, and of the word table."""
    file = _File(artifact / FILE)
    table = file.table()
    found: Numbers = {} if table is None else {TABLE: table}
    products = list(file.products())
    names = _open(artifact / FILE).load_method(MATRICES).execute([])[0].split()
    if len(names) != len(products):
        raise StepFailed(f"{len(products)} products with integers, {len(names)} names", where=str(artifact / FILE))
    for name, (weight_q, scale_OG) in zip(names, products, strict=True):
        held = found.get(name)  # a tied head multiplies by a copy of the table
        if held is not None and not (_same(held[0], weight_q) and _same(held[1], scale_OG)):
            raise StepFailed(f"table and head differ, which are one in the Program: '{name}'", where=str(artifact))
        found[name] = weight_q, scale_OG
    return found


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and bool((one == other).all())


class _File:
    """A ``.pte``: its program, the graphs of its delegates, and the bytes of its tensors."""

    def __init__(self, path: Path) -> None:
        self._content = path.read_bytes()
        self._home = Path(require("executorch", extra).__path__[0])
        extended = self._content[8:12] == b"eh00"  # then sizes follow: of the program, and where segments begin
        size, self._begin = struct.unpack_from("<QQ", self._content, 16) if extended else (len(self._content), 0)
        self._program = target.as_json(self._home, "exir/_serialize/program.fbs", self._content[:size])
        (self._plan,) = (plan for plan in self._program["execution_plan"] if plan["name"] == "forward")
        self._named = {one["key"]: self._segment(one["segment_index"]) for one in self._program["named_data"]}

    def _segment(self, index: int) -> bytes:
        place = self._program["segments"][index]
        begin = self._begin + place["offset"]
        return self._content[begin : begin + place["size"]]

    def products(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Integers [O, I] and scales [O, G] of XNNPACK's products, in the order in which they run."""
        import numpy as np

        steps = (step for chain in self._plan["chains"] for step in chain["instructions"])
        for step in (one for one in steps if one["instr_args_type"] == "DelegateCall"):
            place = self._plan["delegates"][step["instr_args"]["delegate_index"]]["processed"]
            if place.get("location", "INLINE") == "SEGMENT":
                data = self._segment(place["index"])
            else:
                data = bytes(self._program["backend_delegate_data"][place["index"]]["data"])
            offset, size = struct.unpack_from("<II", data, 10)  # behind 4 zeros, "XH00" and the header's length
            graph = target.as_json(
                self._home, "backends/xnnpack/serialization/schema.fbs", data[offset : offset + size]
            )
            values = {one["xvalue_union"].get("tensor_value", one["xvalue_union"])["id_out"]: one["xvalue_union"]
                      for one in graph["xvalues"]}  # fmt: skip
            for node in graph["xnodes"]:
                if node["xnode_union_type"] != "XNNFullyConnected":
                    continue
                weight = values[node["xnode_union"]["filter_id"]]
                if "quant_params" not in weight:
                    continue
                tensor, scales = weight["tensor_value"], weight["quant_params"]
                stored = self._named[graph["constant_data"][tensor["constant_buffer_idx"]]["named_key"]]
                scale = self._named[graph["constant_data"][scales["scale_buffer_idx"]]["named_key"]]
                outputs, inputs = tensor["dims"]
                if weight["quant_params_type"] == "PerChannelGroupQuant":
                    pairs = np.frombuffer(stored, np.uint8)
                    nibbles = np.stack([pairs & 15, pairs >> 4], -1)  # with 8 added
                    weight_q = (nibbles.reshape(outputs, inputs) - np.uint8(8)).view(np.int8)
                    halves = np.frombuffer(scale, "<u2").astype("<u4") << 16  # bfloat16
                    yield weight_q, halves.view("<f4").reshape(outputs, -1)
                else:
                    weight_q = np.frombuffer(stored, np.int8).reshape(outputs, inputs)
                    yield weight_q, np.frombuffer(scale, "<f4").reshape(outputs, 1)

    def table(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Integers [V, E] and scales [V, 1] of a word table; None where it holds floats."""
        import numpy as np

        found = []
        for step in (step for chain in self._plan["chains"] for step in chain["instructions"]):
            call = step["instr_args"]
            if step["instr_args_type"] != "KernelCall" or (
                self._plan["operators"][call["op_index"]]["name"] != "aten::embedding"
            ):
                continue
            tensor = self._plan["values"][call["args"][0]]["val"]
            held = self._program["constant_segment"]
            begin = held["offsets"][tensor["data_buffer_idx"]]
            count = int(np.prod(tensor["sizes"]))
            kind = np.int8 if tensor["scalar_type"] == "CHAR" else np.dtype("<f4")
            data = np.frombuffer(self._segment(held["segment_index"]), kind, count, begin)
            found.append(data.reshape(tensor["sizes"]))
        return (found[0], found[1]) if len(found) == 2 else None


# The runtime.


def kernels(artifact: Path) -> Facts:
    """See ``targets/executorch.py``: the file's XNNPACK graphs, by the types of input and weight."""
    return target.kernels_of((artifact / FILE).read_bytes())


def golden_bound(scheme: str, logit_range: float) -> float:
    """Floats, and ``w8`` whose activations are floats: 0.01 % of the range, sums in another order.

    ``w8a8-dynamic``: the layers compute what the Program computes, but floats between them differ in the last bit, and
    a value at a tie is rounded otherwise. ``w4``: the Program's activations are floats, XNNPACK's int8 by token: steps
    of 1/255 of what a token spans, some six deviations, an error of 0.7 % of one; see ``gguf.golden_bound`` for what
    becomes of it.
    """
    return {"fp32": 1e-4, "w8": 1e-4, "w8a8-dynamic": 0.02, "w4": 0.06}[scheme] * logit_range


def _open(file: Path) -> Any:
    """The program in a ``.pte``."""
    from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401  (brings the runtime its operators)
    from executorch.runtime import Runtime, Verification

    try:
        return Runtime.get().load_program(file, verification=Verification.InternalConsistency)
    except (RuntimeError, ValueError) as error:
        raise StepFailed(f"ExecuTorch cannot open it ({error})", where=str(file)) from None


class Session(_contract.Cached):
    """``executorch.runtime``, its thread pool one per process: opening sets it for every open session."""

    def __init__(self, artifact: Path, threads: int) -> None:
        from importlib.metadata import version

        from executorch.extension.pybindings import portable_lib

        portable_lib._unsafe_reset_threadpool(threads)  # the only way to set it from Python; nothing runs yet
        self._program = _open(artifact / FILE)
        self._method = self._program.load_method("forward")
        super().__init__(int(self._ask("get_max_context_len")))  # attention reads no further than it was fed
        self.observed: Facts = {
            "runtime": "ExecuTorch",
            "version": version("executorch"),
            "provider": "XNNPACK",
            "threads": portable_lib._threadpool_get_thread_count(),
            "max_length": self._size,
            "caveats": [TOKENS] if self._ask(GROUPS) else [],
        }

    def _ask(self, name: str) -> Any:
        return self._program.load_method(name).execute([])[0]

    def feed(self, ids: Sequence[int]) -> np.ndarray:
        """Logits after the last of these tokens, float32 [V]."""
        import torch

        self._room(len(ids))
        given = [torch.tensor([list(ids)]), torch.tensor([self._fed])]
        logits: np.ndarray = self._method.execute(given)[0].numpy()[0].copy()  # the runtime uses its memory again
        self._fed += len(ids)
        return logits

    def close(self) -> None:
        """Free model and cache."""
        self._method = self._program = None


def open_session(artifact: Path, *, threads: int = 1) -> Session:
    """Open ``artifact/model.pte``."""
    require("executorch", extra)
    return Session(artifact, threads)
