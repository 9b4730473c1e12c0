"""ONNX for onnxruntime-genai: the graph of its model builder, with the Program's numbers in place of its floats.

The builder writes the float graph (fused attention with a cache, rotations, norms) and what its clients read beside it
(genai_config.json, tokenizer, chat template). Here every matrix of the Program becomes a ``MatMulNBits``, whose blocks
hold our integers and scales as they are, and the word table a ``GatherBlockQuantized``; a tied head and the table read
one initializer. The builder joins query, key and value into one product: their rows are joined likewise.

``MatMulNBits`` holds unsigned integers around 8 or 128, float32 scales by block. int8 rows repeat their scale in each
block; blocks are as long as divides the inputs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.artifact import Facts, read_json
from edgekd.errors import BadInput, StepFailed
from edgekd.generators import _contract
from edgekd.generators._contract import BLOCK, MODEL, Numbers, check_type
from edgekd.registry import require

if TYPE_CHECKING:
    import numpy as np

suffix = ""
extra = "genai"
tasks = frozenset({"text-generation"})
distributions = ("onnxruntime-genai", "onnx")
accepts = frozenset({"fp32", "w8", "w4"})
refuses: Mapping[str, str] = {
    "w8a8-dynamic": "onnxruntime rounds activations by blocks here, not by token; w8 has the same weights",
}
runs = True
block = 16  # of int8 rows; those of int4 are 32, and layers that do not fill them stay int8

FILE, DATA, CONFIG = "model.onnx", "model.onnx.data", "genai_config.json"
TYPES = ("llama", "qwen2", "qwen3")
TABLE, HEAD, PACKED = "model.embed_tokens", "lm_head", "attn.qkv_proj"
WORDS = "word_table"  # initializer that table and tied head share
# Products of int8 activations (a scale for each block) and integers, as in the runtime's own exports. With float
# activations (level 1) a model of 88M numbers wrote 14 (w4) to 25 (w8) times slower.
ACCURACY_LEVEL = 4
BLOCKS = "activations of integer weights in int8 by blocks"
LARGEST_BLOCK = 128  # of int8 rows: a tenth smaller than blocks of 32 and not slower
NODES = 2**20  # bytes of a file in which its nodes are; weights stand behind them
CONTEXT = 4096  # tokens that a session's cache holds at most
MICROSOFT = "com.microsoft"


def check(config: Any) -> None:
    """Llama, Qwen2 and Qwen3. Raises BadInput for others."""
    check_type(config, TYPES, "ONNX")
    kind = config.rope_parameters.get("rope_type", "default")
    known = ("default", *(["llama3"] if config.model_type == "llama" else []))
    if kind not in known:
        raise BadInput(
            f"ONNX is not written for rope type '{kind}' of {config.model_type} yet",
            where="config.json",
            todo=f"Known: {', '.join(known)}.",
        )


def export(program: Path, out: Path, *, max_length: int) -> Facts:
    """Write ``model.onnx`` with its data, genai_config.json and the tokenizer. ``max_length`` changes nothing."""
    require("onnxruntime_genai", extra)
    import onnx

    config, numbers = _contract.read_config(program), _contract.read_numbers(program)
    check(config)
    with tempfile.TemporaryDirectory(dir=out, prefix=".float-") as folder:
        _build(program / MODEL, Path(folder))
        model = onnx.load(Path(folder) / FILE)
        for file in Path(folder).iterdir():
            if file.name not in (FILE, DATA):
                file.replace(out / file.name)
    _configure(out, program)
    kinds = rewritten(model, numbers, config) if numbers else {}
    _tell_width(model.graph, _contract.head_dim(config))
    (out / DATA).unlink(missing_ok=True)
    onnx.save(model, out / FILE, save_as_external_data=True, location=DATA, size_threshold=1024)
    return {
        "file": FILE,
        "architecture": config.model_type,
        "kernels": kinds,
        "context": config.max_position_embeddings,
        "max_length": max_length,
        "caveats": [],
    }


def _build(source: Path, out: Path) -> None:
    """Run the model builder, in a process of its own (it changes sys.path and prints)."""
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-m", str(source.resolve()), "-o", str(out)]
    done = subprocess.run(
        [*command, "-p", "fp32", "-e", "cpu"],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"},
    )
    if done.returncode or not (out / FILE).is_file():
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise StepFailed(f"onnxruntime-genai's model builder failed: {lines[-1]}", where=str(source))


def _configure(out: Path, program: Path) -> None:
    """All tokens that end a text, as the Program names them; greedy unless its clients ask otherwise."""
    config = read_json(out / CONFIG)
    ends = _contract.end_tokens(program)
    if ends:
        config["model"]["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    (out / CONFIG).write_text(json.dumps(config, indent=4) + "\n", encoding="utf-8")


# The graph.


def _tell_width(graph: Any, width: int) -> None:
    """Write the width of a head into the shapes of the cache: the builder names it, and a caller has to make one."""
    for one in (*graph.input, *graph.output):
        if one.name.startswith(("past_key_values.", "present.")):
            one.type.tensor_type.shape.dim[3].dim_value = width


def rewritten(model: Any, numbers: Numbers, config: Any) -> dict[str, int]:
    """Replace the float matrices of the builder's graph by our numbers, in place; returns the new nodes' count by kind.

    Raises StepFailed where a matrix of the Program found no place: the builder's graph is not the one known here.
    """
    made = _Rewritten(model.graph, numbers)
    tied = HEAD not in numbers and config.tie_word_embeddings
    for node in model.graph.node:
        name = _matrix(node)
        parts = _parts(name, tied) if name else []
        held = [part for part in parts if part in numbers]
        if node.op_type == "Gather" and node.name.endswith("embed_tokens/Gather") and TABLE in numbers:
            made.lookup(node)
        elif not held:
            made.nodes.append(node)
        elif held == parts and len({numbers[part][1].shape[1] for part in parts}) == 1:
            made.product(node, name, parts, node.output[0])
        else:
            made.apart(node, parts, _heads(config))
    lost = numbers.keys() - made.placed
    if lost:
        raise StepFailed(f"the builder's graph has no '{min(lost)}'", where="onnxruntime-genai")
    made.finish()
    return dict(made.kinds)


class _Rewritten:
    """The builder's graph while its floats give way: nodes so far, counted by kind, and the matrices they hold."""

    def __init__(self, graph: Any, numbers: Numbers) -> None:
        self.graph, self.numbers = graph, numbers
        self.nodes: list[Any] = []
        self.kinds: Counter[str] = Counter()
        self.placed: set[str] = set()
        self.floats = {one.name: one for one in graph.initializer}

    def hold(self, name: str, array: np.ndarray) -> str:
        """The name of an initializer, made where it is not there yet."""
        import numpy as np
        from onnx import numpy_helper

        if name not in self.floats:
            self.floats[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def add(self, kind: str, inputs: Sequence[str], output: str, name: str, **attributes: Any) -> None:
        """A node more; with a domain it is one of ours."""
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, [output], name=name, **attributes))
        if "domain" in attributes:
            self.kinds[f"{kind} {attributes['bits']}"] += 1

    def product(self, node: Any, name: str, parts: Sequence[str], target: str) -> None:
        """``target`` = the input of ``node`` times the matrices ``parts``, one above the other, called ``name``."""
        import numpy as np

        weight_q, scale_OG = (np.concatenate(both) for both in zip(*map(self.numbers.get, parts), strict=True))
        bits, block, blocks, scales = packed(weight_q, scale_OG)
        base = WORDS if list(parts) == [TABLE] else f"{name}.q{bits}"
        inputs = [node.input[0], self.hold(base, blocks), self.hold(f"{base}.scale", scales)]
        size = {"K": weight_q.shape[1], "N": len(weight_q), "bits": bits, "block_size": block}
        self.add("MatMulNBits", inputs, target, name, domain=MICROSOFT, accuracy_level=ACCURACY_LEVEL, **size)
        self.placed.update(parts)

    def lookup(self, node: Any) -> None:
        """Rows of the word table by block; a tied head reads the same initializer."""
        import numpy as np

        bits, block, blocks, scales = packed(*self.numbers[TABLE])
        rows = f"{node.output[0]}/blocks"
        inputs = [self.hold(WORDS, blocks), node.input[1], self.hold(f"{WORDS}.scale3", scales[..., None])]
        size = {"bits": bits, "block_size": block, "gather_axis": 0, "quantize_axis": 2}
        self.add("GatherBlockQuantized", inputs, rows, node.name, domain=MICROSOFT, **size)
        joined = self.hold("joined_blocks", np.array([0, 0, -1]))
        self.add("Reshape", [rows, joined], node.output[0], f"{node.name}/Reshape")
        self.placed.add(TABLE)

    def apart(self, node: Any, parts: Sequence[str], heights: Sequence[int]) -> None:
        """Query, key and value of several kinds: a product each, floats as the builder wrote them."""
        from onnx import numpy_helper

        whole, target = numpy_helper.to_array(self.floats[node.input[1]]), node.output[0]
        outputs, start = [f"{target}/{part}" for part in parts], 0
        for part, rows, output in zip(parts, heights, outputs, strict=True):
            if part in self.numbers:
                self.product(node, part.replace("self_attn", "attn"), [part], output)
            else:
                weight = self.hold(f"{part}.MatMul.weight", whole[:, start : start + rows])
                self.add("MatMul", [node.input[0], weight], output, part)
            start += rows
        self.add("Concat", outputs, target, f"{node.name}/Concat", axis=-1)

    def finish(self) -> None:
        """The graph with the new nodes, and only what leads to its outputs: a float table may be left over."""
        used = {one.name for one in self.graph.output}
        kept = []
        for node in reversed(self.nodes):
            if used.intersection(node.output):
                kept.append(node)
                used.update(node.input)
        del self.graph.node[:], self.graph.initializer[:]
        self.graph.node.extend(reversed(kept))
        self.graph.initializer.extend(one for name, one in self.floats.items() if name in used)


def _matrix(node: Any) -> str:
    """The builder's name of the matrix that a product multiplies by, "" for other nodes."""
    found = node.input[1] if node.op_type == "MatMul" else ""
    return found.removesuffix(".MatMul.weight") if found.endswith(".MatMul.weight") else ""


def _parts(name: str, tied: bool) -> list[str]:
    """The Program's matrices in one of the builder's."""
    if name == HEAD:
        return [TABLE if tied else HEAD]
    ours = name.replace(".attn.", ".self_attn.")
    if name.endswith(PACKED):
        return [ours.replace("qkv_proj", f"{one}_proj") for one in "qkv"]
    return [ours]


def _heads(config: Any) -> tuple[int, int, int]:
    """Rows of query, key and value in their joined matrix."""
    size = _contract.head_dim(config)
    shared = config.num_key_value_heads * size
    return config.num_attention_heads * size, shared, shared


def packed(weight_q: np.ndarray, scale_OG: np.ndarray) -> tuple[int, int, np.ndarray, np.ndarray]:
    """Bits, block, unsigned blocks uint8 [O, blocks, bytes] and scales float32 [O, blocks] as the operators take them.

    Raises BadInput where no block fills a row.
    """
    import numpy as np

    outputs, inputs = weight_q.shape
    rows = scale_OG.shape[1] == 1
    block = next((size for size in (LARGEST_BLOCK, 64, 32, 16) if inputs % size == 0), 0) if rows else BLOCK
    if not block:
        raise BadInput(
            f"a matrix has {inputs} inputs; blocks of onnxruntime hold 16 or more",
            where="distill.student",
            todo="Make hidden_size and intermediate_size multiples of 16.",
        )
    blocks = weight_q.reshape(outputs, -1, block)
    scales = np.ascontiguousarray(np.broadcast_to(scale_OG, blocks.shape[:2]))
    if rows:
        return 8, block, blocks.view(np.uint8) ^ 128, scales
    nibbles: np.ndarray = (blocks + 8).astype(np.uint8)
    return 4, block, nibbles[..., ::2] | nibbles[..., 1::2] << 4, scales


def unpacked(bits: int, blocks: np.ndarray, scales: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Integers int8 [O, I] and scales float32 [O, G] of what ``packed`` made; G is 1 where a row has one scale."""
    import numpy as np

    if bits == 8:
        weight_q = (blocks ^ 128).view(np.int8)
        if (scales == scales[:, :1]).all():
            scales = scales[:, :1]
    else:
        weight_q = (np.stack([blocks & 15, blocks >> 4], -1).reshape(*blocks.shape[:2], -1) - 8).view(np.int8)
    return weight_q.reshape(len(blocks), -1), np.ascontiguousarray(scales)


def numbers(artifact: Path) -> Numbers:
    """Integers and scales of the file's products and of its word table."""
    import onnx

    shape = read_json(artifact / CONFIG)["model"]["decoder"]
    size = shape["head_size"]
    shared = shape["num_key_value_heads"] * size
    found: Numbers = {}
    for name, weight_q, scale_OG in held(onnx.load(artifact / FILE).graph):
        if name == WORDS:
            found[TABLE] = weight_q, scale_OG
        else:
            parts = _parts(name.rpartition(".q")[0], tied=False)
            cuts = [shape["num_attention_heads"] * size, shape["num_attention_heads"] * size + shared]
            for part, rows in zip(parts, _split(len(weight_q), cuts if len(parts) == 3 else []), strict=True):
                found[part] = weight_q[rows], scale_OG[rows]
    return found


def held(graph: Any) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """The name, integers int8 [O, I] and scales float32 [O, G] of every product and table, those in branches too."""
    from onnx import helper, numpy_helper

    arrays = {one.name: one for one in graph.initializer}

    def read(nodes: Any) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        for node in nodes:
            told = {one.name: helper.get_attribute_value(one) for one in node.attribute}
            for branch in (told[name] for name in ("then_branch", "else_branch") if name in told):
                yield from read(branch.node)
            if node.op_type in ("MatMulNBits", "GatherBlockQuantized"):
                name = node.input[0 if node.op_type == "GatherBlockQuantized" else 1]
                blocks = numpy_helper.to_array(arrays[name])
                scales = numpy_helper.to_array(arrays[node.input[2]]).reshape(blocks.shape[:2])
                yield name, *unpacked(told["bits"], blocks, scales)

    yield from read(graph.node)


def _split(rows: int, cuts: Sequence[int]) -> Iterator[slice]:
    for start, stop in zip([0, *cuts], [*cuts, rows], strict=True):
        yield slice(start, stop)


# The runtime.


def golden_bound(scheme: str, logit_range: float) -> float:
    """Floats: 0.01 % of the range, sums in another order; 5e-7 was measured.

    Integers: 4 %, for the reason that ``gguf.golden_bound`` gives. Blocks of 128 have a largest value of 2.7
    deviations in place of two, so their step is a third longer; 2.3 % was measured.
    """
    return (1e-4 if scheme == "fp32" else 0.04) * logit_range


def caveats(file: Path) -> list[str]:
    """What a session says of the numbers of its file: one of floats has no products of integers."""
    with file.open("rb") as graph:
        return [BLOCKS] if b"MatMulNBits" in graph.read(NODES) else []


class Session(_contract.Cached):
    """onnxruntime-genai's own generator, fed token by token or in one piece."""

    holder = "session"

    def __init__(self, artifact: Path, threads: int) -> None:
        self._og = og = require("onnxruntime_genai", extra)
        config = og.Config(str(artifact))
        options = {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self._model = og.Model(config)
        super().__init__(min(CONTEXT, read_json(artifact / CONFIG)["model"]["context_length"]))
        self._generator: Any = None
        self.observed: Facts = {
            "runtime": "onnxruntime-genai",
            "version": og.__version__,
            "threads": threads,
            "caveats": caveats(artifact / FILE),
        }

    def reset(self) -> None:
        """Forget all tokens."""
        super().reset()
        self._generator = None

    def feed(self, ids: Sequence[int]) -> np.ndarray:
        """Logits after the last of these tokens, float32 [V]."""
        self._append(ids)
        return self._generator.get_logits()[0, -1].copy()  # type: ignore[no-any-return]

    def score(self, ids: Sequence[int]) -> np.ndarray:
        """Logits after each of these tokens, float32 [S, V]."""
        self.reset()
        self._append(ids)
        return self._generator.get_output("logits")[0].copy()  # type: ignore[no-any-return]

    def tokenize(self, text: str) -> list[int]:
        """Ids of a text by the runtime's own tokenizer."""
        return [int(one) for one in self._og.Tokenizer(self._model).encode(text)]

    def close(self) -> None:
        """Free model and cache."""
        self._generator = self._model = None

    def _append(self, ids: Sequence[int]) -> None:
        import numpy as np

        self._room(len(ids))
        if self._generator is None:
            options = self._og.GeneratorParams(self._model)
            options.set_search_options(max_length=self._size, do_sample=False)
            self._generator = self._og.Generator(self._model, options)
        self._generator.append_tokens(np.asarray(ids, np.int32))
        self._fed += len(ids)


def open_session(artifact: Path, *, threads: int = 1) -> Session:
    """Open the folder that ``export`` wrote."""
    return Session(artifact, threads)
