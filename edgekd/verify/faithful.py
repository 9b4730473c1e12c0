"""Faithfulness of an artefact: the Program's numbers in its file, integer kernels behind them, answers of their own.

Four questions, asked of every artefact after every export. ``faithful``: is every trained scale and integer weight in
the file, bit for bit? ``invariance``: does the answer for a row depend on padding or neighbours? ``accelerated``: does
the runtime multiply integers wherever the Program does? ``stored_size``: is the file as small as its bits promise?
None of them knows a format: arrays are searched as bytes, in the spellings that formats use; a target tells its
runtime's kernels itself (``kernels`` in ``targets/_contract.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgekd.artifact import Facts
from edgekd.errors import StepFailed
from edgekd.quantize.integer import DEQUANTIZE, DEQUANTIZE_GROUPS, DEQUANTIZE_TOKENS, LINEAR, QUANTIZE
from edgekd.quantize.reference import QMAX, QMIN
from edgekd.targets._anchors import ENDS

EMBEDDING = torch.ops.aten.embedding.default
LEAST_BYTES = 8  # fewer are found in any larger file by chance
TEXT = (".json", ".xml")  # files of a package that describe the graph and hold no weights

# Beside its weights a file holds a graph. Measured over the four formats (1 to 4 layers, 32 to 384 wide): 200 to 340
# bytes a node of the Program's graph, alignment included; and 9 to 19 bytes an output channel for what formats store
# beside the scale (zero points, as int64 in LiteRT; scale and zero point of an int32 bias in ONNX).
NODE_BYTES, CHANNEL_BYTES = 512, 24

NOISE = 1e-4  # of the range of the logits: sums in another order; 5e-8 measured (ExecuTorch, fp32, padded)
MASK, IDS = "attention_mask", "input_ids"
MORE_TOKENS = 16  # of padding, where the file takes any length


@dataclass(frozen=True)
class Stored:
    """A tensor of the Program that its graph reads: values, and what kind of number a file has to store."""

    name: str
    values: np.ndarray
    kind: str  # "int8", "int4", "float16", "scale" of integers (or of activations, ``smooth``), or "other"


def tensors(program: torch.export.ExportedProgram) -> list[Stored]:
    """Every stored tensor that the graph reads, once; zero points are left out (they are zeros by definition)."""
    signature = program.graph_signature
    sources = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    sources |= signature.inputs_to_lifted_tensor_constants
    found: dict[tuple[Any, ...], Stored] = {}
    for node in program.graph.find_nodes(op="placeholder"):
        name = sources.get(node.name)
        if name is None or not node.users or name.endswith(".w_zero"):
            continue
        tensor = program.state_dict.get(name, program.constants.get(name))
        kind = "other"
        if name.endswith(".weight_q"):
            grouped = any(user.target is DEQUANTIZE_GROUPS for user in node.users)
            kind = "int4" if grouped else str(tensor.dtype).removeprefix("torch.")
        elif name.endswith((".w_scale", ".smooth")):
            kind = "scale"
        found.setdefault((tensor.data_ptr(), *tensor.shape), Stored(name, tensor.detach().numpy(), kind))
    return list(found.values())


def integer_layers(program: torch.export.ExportedProgram) -> int:
    """Linear layers whose activations are integers: what the runtime has to multiply in integers."""
    sources = [node.args[0].target for node in program.graph.find_nodes(op="call_function", target=LINEAR)]
    return sum(source in (DEQUANTIZE, DEQUANTIZE_TOKENS) for source in sources)


def _folded(
    program: torch.export.ExportedProgram, stored: Sequence[Stored], length: int
) -> dict[str, list[np.ndarray]]:
    """By tensor, the rows of each quantized table that is read at places known in advance (positions).

    A converter to one ``length`` cuts them out, as they are, or computes them too: integers times scale, one rounding,
    or halves as floats.
    """
    named = {one.name: one.values for one in stored}
    sources = program.graph_signature.inputs_to_buffers
    given = set(program.graph_signature.user_inputs)

    @cache
    def depends(node: torch.fx.Node) -> bool:
        """Whether it is computed from the values of an input; a size is known in advance."""
        if node.op == "placeholder" or "sym_size" in str(node.target):
            return node.name in given
        return any(depends(one) for one in node.all_input_nodes)

    found: dict[str, list[np.ndarray]] = {}
    for node in program.graph.find_nodes(op="call_function", target=EMBEDDING):
        name = sources.get(node.args[0].name, "")
        if name.endswith(".weight_q") and name in named and not depends(node.args[1]):
            scale = name.removesuffix("weight_q") + "w_scale"
            rows = named[name][:length]
            if scale not in named:
                found[name] = [rows, rows.astype(np.float32)]
                continue
            scales = named[scale][:length]
            floats = rows.astype(np.float32) * scales
            found |= {name: [rows, floats], scale: [scales, floats]}
    return found


# The numbers.


def faithful(program: torch.export.ExportedProgram, model: Path, *, lengths: Sequence[int] = ()) -> Facts:
    """Whether the artefact holds the Program's integer (and half) weights, their scales and the activation scales.

    ``model`` is the artefact's file or package; files beside it that differ in the suffix alone belong to it.
    ``lengths`` are those of a fixed-length artefact: its position table may lie there as the rows that each reads,
    in float32 or as they are, and is found so (``_folded``).
    ``numbers`` counts single weights and scales that were looked for, ``arrays`` the arrays that they lie in, and
    ``missing`` names what was not found: a weight's or scale's tensor, or ``<layer>.activation_scale=<value>``.

    An array is found when its bytes stand in the file in one piece, in one of the spellings of ``_spellings``. Arrays
    under 8 bytes, and arrays of one repeated value, prove nothing: they are ``unproven`` and not counted (a head of
    one class, say). An activation scale may stand as the two ends of its range (``FakeQuantize``). It has four bytes,
    so it is searched only outside the arrays that were found: in the remaining megabyte or so it turns up by chance
    once in 4,000 times. Zero points (one byte) prove nothing at all, and of several copies (Core ML repeats a scale at
    each use) one suffices: the golden outputs judge what is computed with them. Of a float Program nothing is looked
    for: a format may fold its floats.
    """
    wanted = [one for one in tensors(program) if one.kind != "other"]
    scales = _activation_scales(program)
    proving = [one for one in wanted if one.values.nbytes >= LEAST_BYTES and np.ptp(one.values.astype(np.float32))]
    missing: list[str] = []
    contents = [file.read_bytes() for file in files(model)] if wanted or scales else []
    spans: list[list[tuple[int, int]]] = [[] for _ in contents]
    folded = [_folded(program, wanted, length) for length in lengths]
    for one in proving:
        places = [_find(contents, _spellings(one))]
        if None in places:
            cut = [some[one.name] for some in folded if one.name in some]
            places = [_find(contents, (rows.tobytes() for rows in forms)) for forms in cut]
        found = [place for place in places if place is not None]
        if not found or len(found) < len(places):
            missing.append(one.name)
        for file, begin, end in found:
            spans[file].append((begin, end))
    rest = [_without(content, taken) for content, taken in zip(contents, spans, strict=True)]
    for (scale, zero), layer in scales.items():
        ends = (np.float32(end - zero) * np.float32(scale) for end in (QMIN, QMAX))
        if not _stands(rest, np.float32(scale)) and not all(_stands(rest, end) for end in ends):
            missing.append(f"{layer}.activation_scale={scale:.9g}")
    return {
        "numbers": sum(one.values.size for one in proving) + len(scales),
        "arrays": len(proving),
        "activation_scales": len(scales),
        "unproven": len(wanted) - len(proving),
        "missing": missing,
    }


def files(model: Path) -> list[Path]:
    """The files of an artefact's model: all of a package, and those beside a file that share its stem."""
    found = [file for one in model.parent.glob(f"{model.stem}.*") for file in (one, *one.rglob("*"))]
    return sorted(file for file in found if file.is_file())


def _stands(contents: Sequence[bytes], number: np.float32) -> bool:
    return any(number.tobytes() in content for content in contents)


def _activation_scales(program: torch.export.ExportedProgram) -> dict[tuple[float, int], str]:
    """Every scale and zero point of an activation once, with the name of a layer that they belong to."""
    found: dict[tuple[float, int], str] = {}
    for node in program.graph.find_nodes(op="call_function", target=QUANTIZE):
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        found.setdefault((node.args[1], node.args[2]), stack[-1][0] if stack else node.name)
    return found


def _spellings(one: Stored) -> Iterator[bytes]:
    """The bytes of an array as formats spell it: never another number.

    As it is, or transposed; int8 also with two columns of zeros (``targets/_anchors.py``), or as uint8 with 128 added.
    int4: two in a byte, either first, as two's complement or with 8 added (``MatMulNBits``, whose blocks
    [O, I / block, block / 2] are these rows), or one in a byte. A scale
    also as a narrower float, where that holds the same value.
    """
    values = one.values
    for array in (values, values.T) if values.ndim == 2 and min(values.shape) > 1 else (values,):
        if one.kind == "int4":
            for shift in (0, 8):
                nibbles = ((array.ravel() + shift) & 15).astype(np.uint8)
                nibbles = np.append(nibbles, np.zeros(nibbles.size % 2, np.uint8)).reshape(-1, 2)
                for first, second in ((0, 1), (1, 0)):
                    yield (nibbles[:, first] | nibbles[:, second] << 4).astype(np.uint8).tobytes()
        yield array.tobytes()
        if one.kind == "int8" and array is values and values.ndim == 2:
            yield np.pad(array, ((0, 0), (0, ENDS))).tobytes()
        if one.kind == "int8":
            yield (np.ascontiguousarray(array).view(np.uint8) ^ 128).tobytes()
        if one.kind == "scale":
            half = array.astype(np.float16)
            if np.array_equal(half.astype(np.float32), array):
                yield half.tobytes()
            bits = np.ascontiguousarray(array).view(np.uint32)
            if not (bits & 0xFFFF).any():  # bfloat16 is the upper half of a float32
                yield (bits >> 16).astype(np.uint16).tobytes()


def _find(contents: Sequence[bytes], spellings: Iterable[bytes]) -> tuple[int, int, int] | None:
    """File number, first byte and end of the first spelling that is found."""
    for spelled in spellings:
        for index, content in enumerate(contents):
            begin = content.find(spelled)
            if begin >= 0:
                return index, begin, begin + len(spelled)
    return None


def _without(content: bytes, taken: Sequence[tuple[int, int]]) -> bytes:
    """What is left of a file beside the bytes that are taken; a space where something was cut out."""
    parts, end = [], 0
    for begin, stop in sorted(taken):
        parts.append(content[end : max(begin, end)])
        end = max(end, stop)
    return b" ".join([*parts, content[end:]])


# Its size.


def stored_size(program: torch.export.ExportedProgram, model: Path, *, lengths: Sequence[int] = ()) -> Facts:
    """``bytes`` of the artefact, ``expected`` of the Program's numbers as their scheme stores them, and the ``limit``.

    Expected are integer weights at their bits (int4 two in a byte), halves at two bytes and all else as it is. The
    limit adds what a file needs beside them: ``NODE_BYTES`` for each node of the graph, ``CHANNEL_BYTES`` for each
    output channel of an integer layer, a byte for each group of weights (zero points) and, for a file of fixed
    ``lengths``, a graph for each and what its converter computes in advance: two float32 constants of tokens x width
    (positions, token types), and one of tokens x tokens (a mask). Weights that are stored wider, or twice, go beyond
    it, unless the model is so small that its graph outweighs them.
    """
    stored = tensors(program)
    expected = sum((one.values.size + 1) // 2 if one.kind == "int4" else one.values.nbytes for one in stored)
    allowed = NODE_BYTES * sum(node.op == "call_function" for node in program.graph.nodes) * max(1, len(lengths))
    for one in stored:
        if one.kind in ("int8", "int4") and f"{one.name.removesuffix('weight_q')}w_zero" in program.state_dict:
            allowed += CHANNEL_BYTES * len(one.values)
        elif one.kind == "scale" and one.values.ndim == 2:
            allowed += one.values.size
    width = max((one.values.shape[-1] for one in stored if one.values.ndim == 2), default=0)
    allowed += sum(4 * length * (2 * width + length) for length in lengths)
    size = sum(file.stat().st_size for file in files(model) if file.suffix not in TEXT)
    return {"bytes": size, "expected": expected, "limit": expected + allowed}


# Its kernels.


def accelerated(program: torch.export.ExportedProgram, target: Any, artifact: Path) -> Facts:
    """What the target tells of its runtime's kernels, beside ``wanted``, the Program's layers of integer activations.

    ``accelerated`` is false where fewer layers than that run in integers: it would be a float artefact with the
    errors of an integer one. It is None where nothing has to (a float or weight-only Program), or nothing can be told.
    """
    return kernels_of(target, integer_layers(program), artifact)


def kernels_of(target: Any, wanted: int, artifact: Path) -> Facts:
    """``accelerated`` of a Program with so many layers of integer activations."""
    tell = getattr(target, "kernels", None)
    facts: Facts = {"integer": None, "float": None, "how": None, "names": {}, "why": "the target does not tell"}
    if tell is not None:
        facts = tell(artifact)
    told = facts["integer"] is not None and wanted > 0
    return {**facts, "wanted": wanted, "accelerated": facts["integer"] >= wanted if told else None}


# Its independence of padding and neighbours.


def invariance(
    session: Any,
    inputs: Sequence[Facts],
    rows: Sequence[Mapping[str, Any]],
    alone: Sequence[np.ndarray],
    *,
    reach: float,
    length: int | None,
    lengths: Sequence[int],
    batched: bool,
) -> Facts:
    """How far answers move when a row is padded, or runs beside another one, as a share of ``reach`` (logits' range).

    ``inputs`` is the Program's signature, ``rows`` encoded rows without batch axis, ``alone`` the session's answers
    for them ([C] or [S, C]). ``padded``: the row with random ids behind its end, mask 0 (up to each of the fixed
    ``lengths`` that holds it, else ``MORE_TOKENS`` within ``length``). ``neighbours``: the row in a batch of two
    beside the longest of the others, where the file is ``batched``. Each is ``{"examples", "largest", "quartile",
    "identical"}``, or None where it cannot be tried (images have no padding, and most formats no batch). Raises
    StepFailed where it does not run.
    """
    dtypes = {one["name"]: np.dtype(one["dtype"]) for one in inputs}
    sequences = [one["name"] for one in inputs if len(one["shape"]) == 2]
    tokens = [len(row[sequences[0]]) if sequences else 0 for row in rows]
    words = np.concatenate([row[IDS] for row in rows]) if IDS in dtypes else np.zeros(1)
    random = np.random.default_rng(0)

    def fed(index: int, size: int) -> dict[str, np.ndarray]:
        row = {name: np.asarray(rows[index][name], dtype) for name, dtype in dtypes.items()}
        for name in sequences:
            more = size - tokens[index]
            behind = random.choice(words, more) if name == IDS else np.zeros(more)
            row[name] = np.append(row[name], behind).astype(dtypes[name])
        return row

    def moved(index: int, size: int, *neighbours: int) -> float:
        batch = [fed(index, size), *(fed(other, size) for other in neighbours)]
        what = "beside another row" if neighbours else "padded"
        try:
            found = session.run({name: np.stack([row[name] for row in batch]) for name in dtypes})
        except Exception as error:  # runtimes raise anything
            raise StepFailed(f"a row that runs alone does not run {what} ({error})", where="invariance") from None
        answer = found[0][: tokens[index]] if alone[index].ndim == 2 else found[0]
        if len(found) != len(batch) or answer.shape != alone[index].shape or not np.isfinite(answer).all():
            raise StepFailed(f"a row {what} has no finite logits of shape {alone[index].shape}", where="invariance")
        return float(np.abs(answer - alone[index]).max()) / (reach or 1.0)

    padded, beside = [], []
    for index, count in enumerate(tokens):
        sizes = lengths or [min(length or max(tokens), count + MORE_TOKENS)]
        if MASK in dtypes:
            padded += [moved(index, size) for size in sizes if size > count]
        others = sorted((other for other in range(len(rows)) if other != index), key=lambda other: tokens[other])
        if batched and others:
            beside.append(moved(index, max(count, tokens[others[-1]]), others[-1]))
    return {"padded": _summary(padded), "neighbours": _summary(beside)}


def _summary(shares: Sequence[float]) -> Facts | None:
    if not shares:
        return None
    return {
        "examples": len(shares),
        "largest": max(shares),
        "quartile": float(np.quantile(shares, 0.25)),
        "identical": sum(share == 0 for share in shares) / len(shares),
    }


def judged(found: Facts, golden: Facts, integers: int) -> Facts:
    """``found`` of ``invariance``, with its bounds and whether they are met.

    The largest difference may be what the target allows on the golden inputs (``golden_bound``), for the same reason:
    the same integers between float sums in another order. That bound leaves room for rounding ties that fall the
    other way and spread. A row without a tie must not move at all, and ties are rare, most of all in short rows: so
    where activations are integers the lower quartile over the examples must stay below ``NOISE``. Measured (60 texts,
    2 to 4 layers): onnxruntime and LiteRT give equal bits, ExecuTorch moves by 5e-8; scales taken from the whole batch
    (onnxruntime's dynamic quantization) move 97 texts in 100, the quartile by 7e-4 to 1.5e-3, and none beyond 1e-2.
    """
    ways = [way for way in (found["padded"], found["neighbours"]) if way is not None]
    bound = golden["bound"] / (golden["logit_range"] or 1.0)
    largest = max((way["largest"] for way in ways), default=None)
    quartile = max((way["quartile"] for way in ways), default=None)
    met = largest is not None and largest <= bound and (not integers or quartile <= NOISE)
    passed = met if ways else None
    limits = {"bound": bound, "quartile_bound": NOISE if integers else None}
    return {**found, "largest": largest, "quartile": quartile, **limits, "passed": passed}
