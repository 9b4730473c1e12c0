"""The edgekd runner for any machine with Python: opens one model on one runtime, and times it.

A single file that imports nothing from edgekd, so that it can be copied to a device: it needs the standard
library, numpy and the runtime; to write text, ``edgekd_writers.py`` beside it. It reads ONE job as a line of JSON on
stdin and writes ONE JSON document as the last line of stdout (in the phases ``time`` and ``write`` one more for each
request); both carry ``"schema": "edgekd/runner/1"``.
Whatever else a vendor prints to stdout is sent to stderr. Exit code 0 and a document without ``error``, or exit
code 1 and a document with ``{"error": {"kind", "message"}}``, kind being ``job`` (the job is wrong),
``unavailable`` (no such runtime here) or ``failed`` (it did not run).

``runtimes/README.md`` describes the wire (in a copy on a device: edgekd's repository has it).

The timed loop calls the runtime and nothing else: inputs are prepared before it, garbage collection is off.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, list[Any]]  # one row of a job: token ids, pixels as nested lists, or flat values of a given shape
Whole = dict[str, list[Any]]  # the same as the model takes it: padded, with the batch dimension

SCHEMA = "edgekd/runner/1"
VERSION = "1"
PHASES = ("describe", "load", "memory", "outputs", "time", "write")
SYSFS = Path(os.environ.get("EDGEKD_SYSFS", "/sys"))  # a test gives another folder
DTYPES = {"int64", "int32", "float32"}


class RunnerError(Exception):
    """An error the host is told about. ``kind``: job, unavailable or failed."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Model:
    """A loaded model. ``prepare`` turns a row into the runtime's inputs, ``call`` is what is timed.

    ``describe`` tells the inputs as the file has them; ``profile`` times the operators of some prepared inputs.
    """

    prepare: Callable[[Whole], Any]
    call: Callable[[Any], Any]
    logits: Callable[[Any], list[Any]]
    observed: dict[str, Any]
    describe: Callable[[], list[dict[str, Any]]]
    profile: Callable[[list[Any], int], list[dict[str, Any]]] | None = None


# --- runtimes: each imports its packages (not timed), and returns what loads the model (timed) ---


def int8_products_saturate() -> bool:
    """Whether onnxruntime's default uint8 x int8 product overflows 16 bits here: an x86 processor without VNNI."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    try:
        flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return True  # not known: rather slow than wrong
    return not flags & {"avx512_vnni", "avx_vnni"}


def onnx_options(job: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """onnxruntime's SessionOptions for a job, and what is worth telling of them."""
    runtime = require("onnxruntime", "onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = job["threads"]
    options.inter_op_num_threads = 1
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    exact = "1" if int8_products_saturate() else "0"
    options.add_session_config_entry("session.x64quantprecision", exact)
    return options, {"inter_op_threads": 1, "graph_optimization": "all", "x64quantprecision": exact}


def _onnx(job: dict[str, Any]) -> Callable[[], Model]:
    runtime = require("onnxruntime", "onnxruntime")
    np = require("numpy", "numpy")
    options, told = onnx_options(job)

    def load() -> Model:
        session = runtime.InferenceSession(job["model"], options, providers=["CPUExecutionProvider"])
        inputs_of_file = session.get_inputs()
        names = [one.name for one in inputs_of_file]
        known = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(float)": np.float32}
        if unknown := [f"{one.name} {one.type}" for one in inputs_of_file if one.type not in known]:
            raise RunnerError("failed", f"inputs of a type that no job can give: {', '.join(unknown)}")
        kinds = {one.name: known[one.type] for one in inputs_of_file}

        def prepare(row: Whole) -> Any:
            return {name: np.asarray(_of(row, name), dtype=kinds[name]) for name in names}

        return Model(
            prepare=prepare,
            call=lambda inputs: session.run(None, inputs),
            logits=lambda outputs: np.asarray(outputs[0], dtype=np.float32)[0].tolist(),
            observed={
                "backend": session.get_providers()[0],
                "threads": session.get_session_options().intra_op_num_threads,
                **told,
            },
            describe=lambda: [
                _described(one.name, np.dtype(kinds[one.name]).name, one.shape) for one in inputs_of_file
            ],
            profile=profile,
        )

    def profile(inputs: list[Any], runs: int) -> list[dict[str, Any]]:
        with tempfile.TemporaryDirectory() as folder:
            options.enable_profiling, options.profile_file_prefix = True, f"{folder}/profile"
            timed = runtime.InferenceSession(job["model"], options, providers=["CPUExecutionProvider"])
            for number in range(runs):
                timed.run(None, inputs[number % len(inputs)])
            events = json.loads(Path(timed.end_profiling()).read_text(encoding="utf-8"))
            options.enable_profiling = False
        return _operators(events, runs)

    return load


def _operators(events: list[dict[str, Any]], runs: int) -> list[dict[str, Any]]:
    """onnxruntime's profile as means of a run, by node; it counts in microseconds."""
    found: dict[str, dict[str, Any]] = {}
    for event in events:
        name, _, kind = event.get("name", "").rpartition("_kernel_")
        if event.get("cat") == "Node" and kind == "time":
            row = found.setdefault(name, {"name": name, "type": event["args"]["op_name"], "ns": 0.0, "calls": 0.0})
            row["ns"] += event["dur"] * 1000 / runs
            row["calls"] += 1 / runs
    return [{**row, "calls": round(row["calls"], 6)} for row in found.values()]


def _described(name: str, dtype: str, shape: Any) -> dict[str, Any]:
    """An input as the wire has it: a dynamic axis, whatever a runtime calls it, is -1."""
    return {"name": name, "dtype": dtype, "shape": [one if type(one) is int and one >= 0 else -1 for one in shape]}


def _litert(job: dict[str, Any]) -> Callable[[], Model]:
    runtime = require("ai_edge_litert.interpreter", "ai-edge-litert")
    np = require("numpy", "numpy")

    def load() -> Model:
        interpreter = runtime.Interpreter(model_path=job["model"], num_threads=job["threads"])
        interpreter.allocate_tensors()
        observed = {"threads": job["threads"], **_delegated(interpreter)}
        if len(interpreter.get_signature_list()) > 1:
            return _litert_lengths(interpreter, observed)
        details = interpreter.get_input_details()
        fits = len(job["signature"]) == len(details)
        wanted = [] if job["phase"] == "describe" and not fits else _in_order(job, details)
        output = interpreter.get_output_details()[0]
        scale, zero = output["quantization"]

        def prepare(row: Whole) -> Any:
            return [(detail["index"], np.asarray(_of(row, name), dtype=detail["dtype"])) for name, detail in wanted]

        def call(inputs: Any) -> Any:
            for index, value in inputs:
                interpreter.set_tensor(index, value)
            interpreter.invoke()
            return interpreter.get_tensor(output["index"])

        def logits(value: Any) -> list[Any]:
            if np.issubdtype(value.dtype, np.integer):
                value = (value.astype(np.float32) - zero) * np.float32(scale)
            return value.astype(np.float32)[0].tolist()

        def describe() -> list[dict[str, Any]]:
            return [
                _described(name, np.dtype(one["dtype"]).name, one.get("shape_signature", one["shape"]).tolist())
                for name, one in (wanted if fits else [(one["name"], one) for one in details])
            ]

        return Model(prepare, call, logits, observed, describe)

    return load


def _litert_lengths(interpreter: Any, observed: dict[str, Any]) -> Model:
    """A file of several fixed lengths: a signature each, whose inputs have the row's names; a row runs in its own."""
    np = require("numpy", "numpy")
    runners = [interpreter.get_signature_runner(name) for name in interpreter.get_signature_list()]
    details = [one.get_input_details() for one in runners]
    lengths = [next(int(one["shape"][1]) for one in some.values() if len(one["shape"]) == 2) for some in details]
    (output,) = runners[0].get_output_details().values()
    scale, zero = output["quantization"]

    def prepare(row: Whole) -> Any:
        length = next((len(values[0]) for values in row.values() if not isinstance(values[0][0], list)), 1)
        if length not in lengths:
            raise RunnerError("job", f"the file has no signature of length {length} (it has {sorted(lengths)})")
        at = lengths.index(length)
        kinds = {name: one["dtype"] for name, one in details[at].items()}
        return runners[at], {name: np.asarray(_of(row, name), dtype=kind) for name, kind in kinds.items()}

    def call(prepared: Any) -> Any:
        runner, inputs = prepared
        (value,) = runner(**inputs).values()
        return value

    def logits(value: Any) -> list[Any]:
        if np.issubdtype(value.dtype, np.integer):
            value = (value.astype(np.float32) - zero) * np.float32(scale)
        return value.astype(np.float32)[0].tolist()

    def describe() -> list[dict[str, Any]]:
        return [
            _described(name, np.dtype(one["dtype"]).name, _common([some[name]["shape"].tolist() for some in details]))
            for name, one in sorted(details[0].items())
        ]

    return Model(prepare, call, logits, observed, describe)


def _common(shapes: list[list[int]]) -> list[int]:
    """The axes that all have, -1 where they differ."""
    return [axis[0] if len(set(axis)) == 1 else -1 for axis in zip(*shapes, strict=True)]


def _delegated(interpreter: Any) -> dict[str, Any]:
    """Whether a delegate took operators (XNNPACK is LiteRT's default); empty where it cannot be told."""
    try:
        operators = [op["op_name"] for op in interpreter._get_ops_details()]
    except Exception:  # a private method: only ever a bonus
        return {}
    delegates = operators.count("DELEGATE")
    # The list keeps the operators that a delegate replaced, so only its presence can be told.
    return {"backend": "XNNPACK" if delegates else "reference kernels", "delegates": delegates}


def _in_order(job: dict[str, Any], details: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """LiteRT's inputs with the row's name of each: by name where the file kept names, else by position."""
    names = [one["name"] for one in job["signature"]]
    details = sorted(details, key=lambda detail: detail["name"])
    found = {name: [d for d in details if name in d["name"]] for name in names}
    if all(len(matches) == 1 for matches in found.values()):
        return [(name, found[name][0]) for name in names]
    if len(details) != len(names):
        raise RunnerError("job", f"the model has {len(details)} inputs, the job's signature {len(names)}")
    return list(zip(names, details, strict=True))


def _executorch(job: dict[str, Any]) -> Callable[[], Model]:
    torch = require("torch", "torch")
    runtime = require("executorch.runtime", "executorch").Runtime.get()
    from executorch.extension.pybindings import portable_lib

    with contextlib.suppress(ImportError):
        import executorch.kernels.quantized  # noqa: F401 - registers kernels that some programs need
    torch.set_num_threads(job["threads"])
    portable_lib._unsafe_reset_threadpool(job["threads"])
    dtypes = {one["name"]: getattr(torch, one["dtype"]) for one in job["signature"]}

    def load() -> Model:
        method = runtime.load_program(job["model"]).load_method("forward")
        if method is None:
            raise RunnerError("failed", "the program has no method 'forward'")

        def describe() -> list[dict[str, Any]]:
            meta = method.metadata
            ones = [meta.input_tensor_meta(index) for index in range(meta.num_inputs())]
            names = [one["name"] for one in job["signature"]]
            names = names if len(names) == len(ones) else [f"input_{index}" for index in range(len(ones))]
            return [
                _described(name, _SCALARS.get(int(one.dtype()), "unknown"), one.sizes())
                for name, one in zip(names, ones, strict=True)
            ]

        def prepare(row: Whole) -> Any:
            return [torch.tensor(_of(row, name), dtype=kind) for name, kind in dtypes.items()]

        return Model(
            prepare=prepare,
            call=method.execute,
            logits=lambda outputs: outputs[0][0].float().tolist(),
            observed={
                "threads": portable_lib._threadpool_get_thread_count(),
                "backend": _backends(job["model"]),
            },
            describe=describe,
        )

    return load


_SCALARS = {3: "int32", 4: "int64", 6: "float32"}  # c10's numbers of the types that a job can give


def _backends(path: str) -> str:
    """The delegates a .pte names; the file holds their ids as plain text."""
    content = Path(path).read_bytes()
    known = (
        "XnnpackBackend",
        "QnnBackend",
        "VulkanBackend",
        "CoreMLBackend",
        "OpenvinoBackend",
        "VgfBackend",
    )
    return ", ".join(name for name in known if name.encode() in content) or "portable kernels"


def _openvino(job: dict[str, Any]) -> Callable[[], Model]:
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # its maker is told nothing
    runtime = require("openvino", "openvino")
    np = require("numpy", "numpy")
    settings = {
        "INFERENCE_NUM_THREADS": job["threads"],
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # the job's affinity counts
        "INFERENCE_PRECISION_HINT": "f32",  # not bfloat16 where the processor has AMX
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,  # the file's numbers, no others
    }

    def load() -> Model:
        core = runtime.Core()
        model = core.read_model(job["model"])
        quantized = any(node.get_type_name() == "FakeQuantize" for node in model.get_ordered_ops())
        integers = not (quantized and int8_products_saturate())
        compiled = core.compile_model(model, "CPU", settings if integers else settings | {"LP_TRANSFORMS_MODE": "NO"})
        request = compiled.create_infer_request()
        kinds = {one.get_any_name(): one.get_element_type().to_dtype() for one in compiled.inputs}

        def prepare(row: Whole) -> Any:
            return {name: np.asarray(_of(row, name), dtype=kind) for name, kind in kinds.items()}

        return Model(
            prepare=prepare,
            call=request.infer,
            logits=lambda outputs: np.asarray(outputs[0], dtype=np.float32)[0].tolist(),
            observed={
                "backend": "CPU",
                "threads": compiled.get_property("INFERENCE_NUM_THREADS"),
                "inference_precision": compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name(),
                "integer_layers": quantized and integers,
            },
            describe=lambda: [
                _described(
                    one.get_any_name(),
                    str(kinds[one.get_any_name()]),
                    [axis.get_length() if axis.is_static else -1 for axis in one.get_partial_shape()],
                )
                for one in compiled.inputs
            ],
        )

    return load


def _torch(job: dict[str, Any]) -> Callable[[], Model]:
    torch = require("torch", "torch")
    torch.set_num_threads(job["threads"])
    torch.set_grad_enabled(False)
    exported = job["model"].endswith(".pt2")
    dtypes = {one["name"]: getattr(torch, one["dtype"]) for one in job["signature"]}
    if exported:
        with contextlib.suppress(ImportError):
            import torch.ao.quantization.fx._decomposed  # registers quantize and dequantize
    else:
        transformers = require("transformers", "transformers")
        config = transformers.AutoConfig.from_pretrained(job["model"])
        if not config.architectures or not hasattr(transformers, config.architectures[0]):
            raise RunnerError("unavailable", f"transformers has no class for {config.architectures} of {job['model']}")
        kind = getattr(transformers, config.architectures[0])  # read here: it imports the model's module

    def load() -> Model:
        if exported:
            program = torch.export.load(job["model"])
            inputs_of_file = [node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs]
            described = [
                _described(node.name, str(node.meta["val"].dtype).partition(".")[2], node.meta["val"].shape)
                for node in inputs_of_file
            ]
            model = program.module()
            call = lambda inputs: model(*inputs.values())  # noqa: E731
        else:
            model = kind.from_pretrained(job["model"]).eval()
            described = [_described(one["name"], one["dtype"], [-1, -1]) for one in job["signature"]]
            call = lambda inputs: model(**inputs)[0]  # noqa: E731 - of several outputs the first

        def prepare(row: Whole) -> Any:
            return {name: torch.tensor(_of(row, name), dtype=dtype) for name, dtype in dtypes.items()}

        return Model(
            prepare=prepare,
            call=call,
            logits=lambda value: value[0].float().tolist(),
            observed={"threads": torch.get_num_threads(), "backend": "eager"},
            describe=lambda: described,
        )

    return load


RUNTIMES = {"onnx": _onnx, "litert": _litert, "executorch": _executorch, "openvino": _openvino, "torch": _torch}
DISTRIBUTIONS = {
    "onnx": ("onnxruntime",),
    "litert": ("ai-edge-litert",),
    "executorch": ("executorch", "torch"),
    "openvino": ("openvino",),
    "torch": ("torch", "transformers"),
}


def require(module: str, distribution: str) -> Any:
    """The module; raises RunnerError where its distribution is not installed."""
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        raise RunnerError("unavailable", f"package '{distribution}' is not installed on the device")
    return importlib.import_module(module)


def _of(row: Row, name: str) -> list[Any]:
    if name not in row:
        raise RunnerError("job", f"the model wants an input '{name}' that the rows do not have ({', '.join(row)})")
    return row[name]


# --- phases ---


OPTIONAL: dict[str, Any] = {
    "signature": [{"name": "input_ids", "dtype": "int64"}, {"name": "attention_mask", "dtype": "int64"}],
    "fixed_lengths": [],
    "pad_id": 0,
    "cpu_affinity": None,
    "runs": 20,
}


def check(job: Any) -> dict[str, Any]:
    """The job with defaults filled in; raises RunnerError of kind job."""
    if not isinstance(job, dict) or job.get("schema") != SCHEMA:
        raise RunnerError("job", f"not a job of schema {SCHEMA}")
    writes = job.get("phase") == "write"
    required = {"schema", "phase", "runtime", "model", "threads"}
    if job.get("phase") not in ("describe", "write"):
        required |= {"rows"}
    _check_fields(job, required, {"context", "cpu_affinity"} if writes else set(OPTIONAL))
    job = {**OPTIONAL, **({"context": CONTEXT} if writes else {}), **job}
    if job["phase"] not in PHASES:
        raise RunnerError("job", f"unknown phase {job['phase']!r} (known: {', '.join(PHASES)})")
    known = _writers().WRITERS if writes else RUNTIMES
    if not isinstance(job["runtime"], str) or job["runtime"] not in known:
        doing = "writes text here" if writes else "here"
        raise RunnerError("unavailable", f"no runtime '{job['runtime']}' {doing} (known: {', '.join(sorted(known))})")
    if not isinstance(job["model"], str) or not job["model"]:
        raise RunnerError("job", f"model is not the name of a file: {job['model']!r}")
    for name in ("threads", "runs", *(["context"] if writes else [])):
        if not _whole(job[name], 1):
            raise RunnerError("job", f"{name} is not a positive whole number: {job[name]!r}")
    if not _whole(job["pad_id"]):
        raise RunnerError("job", f"pad_id is not a whole number: {job['pad_id']!r}")
    lengths, processors = job["fixed_lengths"], job["cpu_affinity"]
    if not _whole_list(lengths, 1) or lengths != sorted(set(lengths)):
        raise RunnerError("job", f"fixed_lengths is not a list of ascending positive whole numbers: {lengths!r}")
    if processors is not None and not (processors and _whole_list(processors, 0)):
        raise RunnerError("job", f"cpu_affinity is neither null nor a list of processors: {processors!r}")
    _check_signature(job["signature"])
    if "rows" in required:
        _check_rows(job["rows"], job["signature"])
    return job


def _check_fields(document: dict[str, Any], required: set[str], optional: set[str]) -> None:
    if missing := sorted(required - set(document)):
        raise RunnerError("job", f"missing: {', '.join(missing)}")
    if unknown := sorted(set(document) - required - optional):
        raise RunnerError("job", f"unknown: {', '.join(unknown)}")


def _whole(value: Any, least: int | None = None) -> bool:
    return type(value) is int and (least is None or value >= least)


def _whole_list(values: Any, least: int) -> bool:
    return isinstance(values, list) and all(_whole(one, least) for one in values)


def _check_signature(signature: Any) -> None:
    if not isinstance(signature, list) or not signature or not all(isinstance(one, dict) for one in signature):
        raise RunnerError("job", "signature is not a list of {name, dtype, shape?}")
    for one in signature:
        _check_fields(one, {"name", "dtype"}, {"shape"})
        if not isinstance(one["name"], str):
            raise RunnerError("job", f"a name of the signature is not a text: {one['name']!r}")
        if one["dtype"] not in DTYPES:
            raise RunnerError("job", f"unknown dtype: {one['dtype']} (known: {', '.join(sorted(DTYPES))})")
        if "shape" in one and not (one["shape"] and _whole_list(one["shape"], 1)):
            raise RunnerError("job", f"the shape of '{one['name']}' is not a list of positive whole numbers")


def _check_rows(rows: Any, signature: list[dict[str, Any]]) -> None:
    whole = isinstance(rows, list) and rows and all(isinstance(row, dict) and row for row in rows)
    if not whole or not all(isinstance(values, list) and values for row in rows for values in row.values()):
        raise RunnerError("job", "rows is not a list of {input name: list of token ids, or of an image's channels}")
    shapes = {one["name"]: one["shape"] for one in signature if "shape" in one}
    whole_numbers = {one["name"] for one in signature if one["dtype"] != "float32"}
    for row in rows:
        for name, values in row.items():
            found = _shape_of(name, values, {int} if name in whole_numbers else {int, float})
            if name in shapes and found != (math.prod(shapes[name]),):
                raise RunnerError("job", f"'{name}' is not one flat list of the values of shape {shapes[name]}")


def _shape_of(name: str, values: list[Any], types: set[type]) -> tuple[int, ...]:
    """The lengths of nested lists; raises RunnerError where they are ragged or hold anything but such numbers."""
    if isinstance(values[0], list):
        if not all(isinstance(one, list) and one for one in values):
            raise RunnerError("job", f"the nested lists of '{name}' differ in length")
        inner = {_shape_of(name, one, types) for one in values}
        if len(inner) != 1:
            raise RunnerError("job", f"the nested lists of '{name}' differ in length")
        return (len(values), *inner.pop())
    if not set(map(type, values)) <= types:
        kind = "number" if float in types else "whole number"
        raise RunnerError("job", f"a value of '{name}' is not a {kind}")
    return (len(values),)


def _tokens(job: dict[str, Any], row: Row) -> int:
    """Length of a row; 1 for an image."""
    shapes = _shapes(job)
    loose = [len(values) for name, values in row.items() if name not in shapes and not isinstance(values[0], list)]
    given = [shapes[name][1] for name in row if len(shapes.get(name, ())) == 2]
    return next(iter([*loose, *given]), 1)


def _shapes(job: dict[str, Any]) -> dict[str, list[int]]:
    return {one["name"]: one["shape"] for one in job["signature"] if "shape" in one}


def _padded(job: dict[str, Any], row: Row) -> Row:
    """The row at the shortest fixed length that holds it (mask 0, pad id) or, where there is none, as it is.

    An input whose shape the job gives is whole already.
    """
    lengths, shapes = job["fixed_lengths"], _shapes(job)
    loose = {name: values for name, values in row.items() if name not in shapes}
    if not lengths or not loose or any(isinstance(values[0], list) for values in loose.values()):
        return row
    fills = {"input_ids": job["pad_id"]}
    longest = max(len(ids) for ids in loose.values())
    length = next((one for one in lengths if one >= longest), None)
    if length is None:
        raise RunnerError("job", f"a row is longer than the model's fixed length {lengths[-1]}")
    return row | {name: ids + [fills.get(name, 0)] * (length - len(ids)) for name, ids in loose.items()}


def _whole_row(job: dict[str, Any], row: Row) -> Whole:
    """The row with the batch dimension: a leading 1, or the shape that the job gives."""
    shapes = _shapes(job)
    return {name: _nested(values, shapes[name]) if name in shapes else [values] for name, values in row.items()}


def _nested(values: list[Any], shape: list[int]) -> list[Any]:
    """A flat list, row-major, as nested lists."""
    for size in reversed(shape[1:]):
        values = [values[at : at + size] for at in range(0, len(values), size)]
    return values


def _prepared(job: dict[str, Any], model: Model, rows: list[Row]) -> tuple[list[Any], list[int]]:
    padded = [_padded(job, row) for row in rows]
    return [model.prepare(_whole_row(job, row)) for row in padded], [_tokens(job, row) for row in padded]


def answers(job: dict[str, Any], model: Model, rows: list[Row]) -> list[Any]:
    """Logits of every row; where a padded row has one set per token, those of the padding are cut off."""
    inputs, lengths = _prepared(job, model, rows)
    answers = [model.logits(model.call(one)) for one in inputs]
    sizes = [_tokens(job, row) for row in rows]
    return [
        logits[:size] if size < length and isinstance(logits, list) and isinstance(logits[0], list) else logits
        for size, length, logits in zip(sizes, lengths, answers, strict=True)
    ]


def _opened(job: dict[str, Any], runtimes: dict[str, Any], packages: dict[str, Any]) -> tuple[Any, dict[str, Any], Any]:
    """What the job's runtime loads, the answer so far, and what tells the memory that it took since then."""
    if job["cpu_affinity"] is not None:
        os.sched_setaffinity(0, job["cpu_affinity"])
    began = time.perf_counter_ns()
    load = runtimes[job["runtime"]](job)
    imported = time.perf_counter_ns()
    folders = ("torch", "onnxruntime")  # whose model may be one, or a name
    if not job["model"].endswith(".pt2") and job["runtime"] not in folders and not Path(job["model"]).is_file():
        raise RunnerError("job", f"no such model file: {job['model']}")
    reset = _reset_peak()
    before = _memory()
    start = time.perf_counter_ns()
    model = load()
    loaded = time.perf_counter_ns()
    observed = {
        "runtime": job["runtime"],
        "versions": {name: _version(name) for name in packages[job["runtime"]]},
        "python": sys.version.split()[0],
        "cpu_affinity": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        **model.observed,
    }
    answer = {"import_ns": imported - began, "load_ns": loaded - start, "observed": observed}
    return model, answer, lambda: _above(before, _memory(), reset)


def run(job: dict[str, Any]) -> tuple[Model, dict[str, Any]]:
    """Load, first inference and what else the phase asks for: the model and the answer."""
    model, answer, memory = _opened(job, RUNTIMES, DISTRIBUTIONS)
    answer["observed"].setdefault("tokens", [])
    if job["phase"] == "describe":
        return model, answer | {"inputs": model.describe()}
    inputs, tokens = _prepared(job, model, job["rows"])
    answer["observed"]["tokens"] = sorted(set(tokens))
    first = time.perf_counter_ns()
    model.call(inputs[0])
    answer["first_inference_ns"] = time.perf_counter_ns() - first
    if job["phase"] == "memory":
        for number in range(job["runs"]):
            model.call(inputs[number % len(inputs)])
        answer["memory"] = memory() | {"runs": job["runs"]}
    if job["phase"] == "outputs":
        answer["logits"] = answers(job, model, job["rows"])
    return model, answer


REQUESTS: dict[str, tuple[str, ...]] = {  # and what they need beside their rows
    "block": ("warmup_runs", "warmup_seconds", "min_runs", "min_seconds", "max_seconds"),
    "outputs": (),
    "profile": ("runs",),
}


def _kind(request: Any, known: Any) -> str:
    """Which of the ``known`` requests it is."""
    if not isinstance(request, dict) or request.get("schema") != SCHEMA:
        raise RunnerError("job", f"not a request of schema {SCHEMA}")
    kind = request.get("request")
    if not isinstance(kind, str) or kind not in known:
        raise RunnerError("job", f"unknown request {kind!r} (known: {', '.join(known)})")
    return kind


def answer_request(job: dict[str, Any], model: Model, request: Any) -> dict[str, Any]:
    """Answer one line of a persistent worker."""
    kind = _kind(request, REQUESTS)
    _check_fields(request, {"schema", "request", "rows", *REQUESTS[kind]}, set())
    _check_rows(request["rows"], job["signature"])
    if kind == "outputs":
        return {"answer": "outputs", "logits": answers(job, model, request["rows"])}
    if kind == "profile":
        if not _whole(request["runs"], 1):
            raise RunnerError("job", f"runs is not a positive whole number: {request['runs']!r}")
        if model.profile is None:
            raise RunnerError("unavailable", f"this runner has no profiler for {job['runtime']}")
        inputs, _ = _prepared(job, model, request["rows"])
        return {"answer": "profile", "operators": model.profile(inputs, request["runs"])}
    numbers = [request[name] for name in REQUESTS["block"]]
    if not all(type(one) in (int, float) and 0 <= one < math.inf for one in numbers):
        raise RunnerError("job", f"a block needs the numbers {', '.join(REQUESTS['block'])}, none negative")
    inputs, tokens = _prepared(job, model, request["rows"])
    return {"answer": "block", "tokens": sorted(set(tokens)), **_block(model.call, inputs, request)}


def _block(call: Callable[[Any], Any], inputs: list[Any], request: dict[str, Any]) -> dict[str, Any]:
    """Warm up until both minima are met, then sample until both are met or time is up (LiteRT's loop)."""
    clock, count = time.perf_counter_ns, len(inputs)
    began = clock()
    warm = 0
    limit = request["max_seconds"] * 1e9
    while warm < request["warmup_runs"] or clock() - began < request["warmup_seconds"] * 1e9:
        call(inputs[warm % count])
        warm += 1
        if clock() - began > limit:
            break
    samples: list[int] = []
    gc.collect()
    gc.disable()
    energy = _energy()
    spent = _spending()
    start = clock()
    warmed = start - began
    needed = request["min_seconds"] * 1e9
    try:
        while True:
            one = inputs[len(samples) % count]
            before = clock()
            call(one)
            after = clock()
            samples.append(after - before)
            elapsed = after - start
            if (len(samples) >= request["min_runs"] and elapsed >= needed) or elapsed > limit:
                break
    finally:
        gc.enable()
    took = spent()
    return {
        "samples_ns": samples,
        "warmup": {"runs": warm, "seconds": warmed / 1e9},
        **took,
        "energy": _spent(energy, _energy(), took["wall_ns"]),
    }


def _spending() -> Callable[[], dict[str, Any]]:
    """What tells the time that passed since now, and the processors' own, of this process and of all."""
    busy, cpu, start = _machine_busy_ns(), time.process_time_ns(), time.perf_counter_ns()

    def spent() -> dict[str, Any]:
        wall, own, after = time.perf_counter_ns() - start, time.process_time_ns() - cpu, _machine_busy_ns()
        all_of_them = None if busy is None or after is None else after - busy
        return {"wall_ns": wall, "cpu_ns": own, "machine_busy_ns": all_of_them, "cpus": os.cpu_count()}

    return spent


# --- writing text ---


CONTEXT = 1024  # tokens that a cache holds, where the job does not say
WRITING = {"read": {"ids"}, "write": {"ids", "count"}, "memory": set()}  # requests, and what they need


def _writers() -> Any:
    """The writers of the file beside this one."""
    folder = Path(__file__).absolute().parent  # where this file may be a link
    if not (folder / "edgekd_writers.py").is_file():
        raise RunnerError("unavailable", "edgekd_writers.py does not lie beside the runner")
    sys.modules.setdefault("edgekd_runner", sys.modules[__name__])  # that is what they know it as
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    return importlib.import_module("edgekd_writers")


def open_writer(job: dict[str, Any]) -> tuple[Callable[[Any], dict[str, Any]], dict[str, Any]]:
    """What answers requests to write, and the answer to the job."""
    known = _writers()
    writer, answer, memory = _opened(job, known.WRITERS, known.DISTRIBUTIONS)
    answer["observed"]["context"] = writer.context
    gc.collect()
    gc.disable()  # for good: to collect before each sample would empty the processor's caches
    return lambda request: _written(writer, memory, request), answer


def _written(writer: Any, memory: Callable[[], dict[str, Any]], request: Any) -> dict[str, Any]:
    """Answer one request of the phase ``write``."""
    kind = _kind(request, WRITING)
    _check_fields(request, {"schema", "request", *WRITING[kind]}, set())
    if kind == "memory":
        return {"answer": "memory", "memory": memory()}
    ids, count = request["ids"], request.get("count", 0)
    if not ids or not _whole_list(ids, 0):
        raise RunnerError("job", "ids is not a list of token ids")
    if kind == "write" and not _whole(count, 1):
        raise RunnerError("job", f"count is not a positive whole number: {count!r}")
    if len(ids) + count > writer.context:
        raise RunnerError("job", f"{len(ids) + count} tokens; the cache holds {writer.context}")
    clock, samples, tokens = time.perf_counter_ns, [], []
    spent = _spending()
    writer.reset()
    before = clock()
    token = writer.feed(ids)
    first = clock() - before
    for _ in range(count):
        tokens.append(token)
        before = clock()
        token = writer.feed([token])
        samples.append(clock() - before)
    took = spent()
    if kind == "read":
        return {"answer": "read", "samples_ns": [first], "token": token, **took}
    return {"answer": "write", "first_ns": first, "samples_ns": samples, "tokens": tokens, **took}


@dataclass(frozen=True)
class _Energy:
    """A reading: of RAPL's counters in microjoules with the value each wraps at, or of a battery's power in watts."""

    source: str
    counters: dict[str, tuple[int, int]]
    watts: float


def _energy() -> _Energy | None:
    """RAPL's packages (readable by root on most kernels), or a battery that discharges, or None."""
    counters = {}
    for zone in sorted((SYSFS / "class" / "powercap").glob("*/energy_uj")):
        try:
            if (zone.parent / "name").read_text(encoding="utf-8").startswith("package"):  # its parts are counted in it
                wraps = int((zone.parent / "max_energy_range_uj").read_text(encoding="utf-8"))
                counters[zone.parent.name] = (int(zone.read_text(encoding="utf-8")), wraps)
        except (OSError, ValueError):
            continue
    if counters:
        return _Energy("rapl", counters, 0)
    for battery in sorted((SYSFS / "class" / "power_supply").glob("*/current_now")):
        try:
            if (battery.parent / "status").read_text(encoding="utf-8").strip() != "Discharging":
                continue
            microamperes = abs(int(battery.read_text(encoding="utf-8")))
            microvolts = int((battery.parent / "voltage_now").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return _Energy("battery", {}, microamperes * microvolts / 1e12)
    return None


def _spent(before: _Energy | None, after: _Energy | None, wall_ns: int) -> dict[str, Any] | None:
    """Microjoules between two readings; of a battery, the mean of the two powers times the time."""
    if (
        before is None
        or after is None
        or before.source != after.source
        or before.counters.keys() != after.counters.keys()
    ):
        return None
    if before.source == "battery":
        return {"source": "battery", "uj": round((before.watts + after.watts) / 2 * wall_ns / 1e3)}
    spent = 0
    for name, (end, wraps) in after.counters.items():
        start, _ = before.counters[name]
        spent += end - start if end >= start else end - start + wraps
    return {"source": "rapl", "uj": spent}


def _machine_busy_ns() -> int | None:
    """Processor time of all processes (and time stolen by other guests) since boot; None off Linux."""
    try:
        fields = [int(x) for x in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields
    return (user + nice + system + irq + softirq + steal) * (1_000_000_000 // os.sysconf("SC_CLK_TCK"))


def _reset_peak() -> bool:
    """Reset VmHWM to the present resident size (Linux, proc(5): writing 5 to clear_refs)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _memory() -> dict[str, int]:
    """Resident bytes now, their anonymous and file-backed parts, and the peak."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    except OSError:
        import resource

        scale = 1 if sys.platform == "darwin" else 1024
        return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale}
    names = {"resident": "VmRSS", "anonymous": "RssAnon", "file": "RssFile", "peak": "VmHWM"}
    return {name: int(lines[key].split()[0]) * 1024 for name, key in names.items() if key in lines}


def _above(before: dict[str, int], after: dict[str, int], reset: bool) -> dict[str, Any]:
    baseline = before.get("resident", before["peak"])
    found = {
        "baseline_bytes": baseline,
        "peak_bytes": after["peak"],
        "peak_above_bytes": max(0, after["peak"] - baseline),
        "peak_reset": reset,
    }
    for part in ("anonymous", "file"):
        if part in after:
            found[f"{part}_above_bytes"] = after[part] - before[part]
    return found


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


# --- the wire ---


def main() -> int:
    """Read the job, answer it and, in the phases that stay, every request until stdin ends."""
    wire = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # vendors print to stdout; only documents may go there

    def send(document: dict[str, Any]) -> None:
        wire.write(json.dumps({"schema": SCHEMA, "version": VERSION, **document}, allow_nan=False) + "\n")
        wire.flush()

    try:
        job = check(_parsed(sys.stdin.readline()))
        if job["phase"] == "write":
            respond, answer = open_writer(job)
        else:
            model, answer = run(job)
            respond = lambda request: answer_request(job, model, request)  # noqa: E731
        send({"phase": job["phase"], **answer})
        if job["phase"] in ("time", "write"):
            for line in sys.stdin:
                send(respond(_parsed(line)))
    except RunnerError as error:
        send({"error": {"kind": error.kind, "message": str(error)}})
        return 1
    except Exception as error:
        message = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        send({"error": {"kind": "failed", "message": message}})
        return 1
    return 0


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise RunnerError("job", f"not one line of JSON ({error})") from None


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # vendor runtimes may crash in their own exit handlers; the answer is out
