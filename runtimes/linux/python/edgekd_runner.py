"""The edgekd runner for any machine with Python: opens one model on one runtime, and times it.

A single file that imports nothing from edgekd, so that it can be copied to a device: it needs the standard
library, numpy and the runtime. It reads ONE job as a line of JSON on stdin and writes ONE JSON document as
the last line of stdout; both carry ``"schema": "edgekd/runner/1"``. Whatever else a vendor prints to stdout
is sent to stderr. Exit code 0 and a document without ``error``, or exit code 1 and a document with
``{"error": {"kind", "message"}}``, kind being ``job`` (the job is wrong), ``unavailable`` (no such runtime
here) or ``failed`` (it did not run).

Job:      schema, phase, runtime (onnx, litert, executorch, openvino, torch), model (file or folder), threads,
          rows [{input name: values}, ..] without the batch dimension: real token ids and their mask, unpadded, or the
          pixels of an image as nested lists; and optionally
          signature [{"name", "dtype"}, ..] (order of the model's inputs; dtype int64, int32 or float32),
          fixed_lengths (of token inputs, ascending: a row is padded to the first that holds it; none: any length),
          pad_id, cpu_affinity, runs (memory phase).
Phases:   load     load, first inference, exit. One cold sample per process (files may be in the page cache)
          memory   the same with ``runs`` inferences, and peak resident memory above the state before the load
          outputs  logits of every row (of a padded row: without the padding's)
          time     as load, then stays: answers one request per line until stdin ends
Requests: {"schema", "request": "block", "rows", "warmup_runs", "warmup_seconds", "min_runs", "min_seconds",
          "max_seconds"} -> raw samples in ns; {"schema", "request": "outputs", "rows"} -> logits

The timed loop calls the runtime and nothing else: inputs are prepared before it, garbage collection is off.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, list[Any]]  # one row of a job: token ids, or pixels as nested lists

SCHEMA = "edgekd/runner/1"
VERSION = "1"
PHASES = ("load", "memory", "outputs", "time")
DTYPES = {"int64", "int32", "float32"}


class RunnerError(Exception):
    """An error the host is told about. ``kind``: job, unavailable or failed."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Model:
    """A loaded model. ``prepare`` turns a row into the runtime's inputs, ``call`` is what is timed."""

    prepare: Callable[[Row], Any]
    call: Callable[[Any], Any]
    logits: Callable[[Any], list[Any]]
    observed: dict[str, Any]


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


def _onnx(job: dict[str, Any]) -> Callable[[], Model]:
    runtime = _require("onnxruntime", "onnxruntime")
    np = _require("numpy", "numpy")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = job["threads"]
    options.inter_op_num_threads = 1
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    exact = "1" if int8_products_saturate() else "0"
    options.add_session_config_entry("session.x64quantprecision", exact)

    def load() -> Model:
        session = runtime.InferenceSession(job["model"], options, providers=["CPUExecutionProvider"])
        names = [one.name for one in session.get_inputs()]
        known = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(float)": np.float32}
        kinds = {one.name: known[one.type] for one in session.get_inputs()}

        def prepare(row: Row) -> Any:
            return {name: np.asarray([_of(row, name)], dtype=kinds[name]) for name in names}

        return Model(
            prepare=prepare,
            call=lambda inputs: session.run(None, inputs),
            logits=lambda outputs: np.asarray(outputs[0], dtype=np.float32)[0].tolist(),
            observed={
                "backend": session.get_providers()[0],
                "threads": session.get_session_options().intra_op_num_threads,
                "inter_op_threads": 1,
                "graph_optimization": "all",
                "x64quantprecision": exact,
            },
        )

    return load


def _litert(job: dict[str, Any]) -> Callable[[], Model]:
    runtime = _require("ai_edge_litert.interpreter", "ai-edge-litert")
    np = _require("numpy", "numpy")

    def load() -> Model:
        interpreter = runtime.Interpreter(model_path=job["model"], num_threads=job["threads"])
        interpreter.allocate_tensors()
        observed = {"threads": job["threads"], **_delegated(interpreter)}
        if len(interpreter.get_signature_list()) > 1:
            return _litert_lengths(interpreter, observed)
        wanted = _in_order(job, interpreter.get_input_details())
        output = interpreter.get_output_details()[0]
        scale, zero = output["quantization"]

        def prepare(row: Row) -> Any:
            return [(detail["index"], np.asarray([_of(row, name)], dtype=detail["dtype"])) for name, detail in wanted]

        def call(inputs: Any) -> Any:
            for index, value in inputs:
                interpreter.set_tensor(index, value)
            interpreter.invoke()
            return interpreter.get_tensor(output["index"])

        def logits(value: Any) -> list[Any]:
            if np.issubdtype(value.dtype, np.integer):
                value = (value.astype(np.float32) - zero) * np.float32(scale)
            return value.astype(np.float32)[0].tolist()

        return Model(prepare, call, logits, observed)

    return load


def _litert_lengths(interpreter: Any, observed: dict[str, Any]) -> Model:
    """A file of several fixed lengths: a signature each, whose inputs have the row's names; a row runs in its own."""
    np = _require("numpy", "numpy")
    runners = [interpreter.get_signature_runner(name) for name in interpreter.get_signature_list()]
    details = [one.get_input_details() for one in runners]
    lengths = [next(int(one["shape"][1]) for one in some.values() if len(one["shape"]) == 2) for some in details]
    (output,) = runners[0].get_output_details().values()
    scale, zero = output["quantization"]

    def prepare(row: Row) -> Any:
        at = lengths.index(_tokens(row))
        kinds = {name: one["dtype"] for name, one in details[at].items()}
        return runners[at], {name: np.asarray([_of(row, name)], dtype=kind) for name, kind in kinds.items()}

    def call(prepared: Any) -> Any:
        runner, inputs = prepared
        (value,) = runner(**inputs).values()
        return value

    def logits(value: Any) -> list[Any]:
        if np.issubdtype(value.dtype, np.integer):
            value = (value.astype(np.float32) - zero) * np.float32(scale)
        return value.astype(np.float32)[0].tolist()

    return Model(prepare, call, logits, observed)


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
    torch = _require("torch", "torch")
    runtime = _require("executorch.runtime", "executorch").Runtime.get()
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

        def prepare(row: Row) -> Any:
            return [torch.tensor([_of(row, name)], dtype=kind) for name, kind in dtypes.items()]

        return Model(
            prepare=prepare,
            call=method.execute,
            logits=lambda outputs: outputs[0][0].float().tolist(),
            observed={
                "threads": portable_lib._threadpool_get_thread_count(),
                "backend": _backends(job["model"]),
            },
        )

    return load


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
    runtime = _require("openvino", "openvino")
    np = _require("numpy", "numpy")
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

        def prepare(row: Row) -> Any:
            return {name: np.asarray([_of(row, name)], dtype=kind) for name, kind in kinds.items()}

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
        )

    return load


def _torch(job: dict[str, Any]) -> Callable[[], Model]:
    torch = _require("torch", "torch")
    torch.set_num_threads(job["threads"])
    torch.set_grad_enabled(False)
    exported = job["model"].endswith(".pt2")
    dtypes = {one["name"]: getattr(torch, one["dtype"]) for one in job["signature"]}
    if exported:
        with contextlib.suppress(ImportError):
            import torch.ao.quantization.fx._decomposed  # registers quantize and dequantize
    else:
        transformers = _require("transformers", "transformers")
        config = transformers.AutoConfig.from_pretrained(job["model"])
        if not config.architectures or not hasattr(transformers, config.architectures[0]):
            raise RunnerError("unavailable", f"transformers has no class for {config.architectures} of {job['model']}")
        kind = getattr(transformers, config.architectures[0])  # read here: it imports the model's module

    def load() -> Model:
        if exported:
            model = torch.export.load(job["model"]).module()
            call = lambda inputs: model(*inputs.values())  # noqa: E731
        else:
            model = kind.from_pretrained(job["model"]).eval()
            call = lambda inputs: model(**inputs)[0]  # noqa: E731 - of several outputs the first

        def prepare(row: Row) -> Any:
            return {name: torch.tensor([_of(row, name)], dtype=dtype) for name, dtype in dtypes.items()}

        return Model(
            prepare=prepare,
            call=call,
            logits=lambda value: value[0].float().tolist(),
            observed={"threads": torch.get_num_threads(), "backend": "eager"},
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


def _require(module: str, distribution: str) -> Any:
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        raise RunnerError("unavailable", f"package '{distribution}' is not installed on the device")
    return importlib.import_module(module)


def _of(row: Row, name: str) -> list[Any]:
    if name not in row:
        raise RunnerError("job", f"the model wants an input '{name}' that the rows do not have ({', '.join(row)})")
    return row[name]


# --- phases ---


def check(job: Any) -> dict[str, Any]:
    """The job with defaults filled in; raises RunnerError of kind job."""
    if not isinstance(job, dict) or job.get("schema") != SCHEMA:
        raise RunnerError("job", f"not a job of schema {SCHEMA}")
    defaults = {
        "signature": [{"name": "input_ids", "dtype": "int64"}, {"name": "attention_mask", "dtype": "int64"}],
        "fixed_lengths": [],
        "pad_id": 0,
        "cpu_affinity": None,
        "runs": 20,
    }
    required = {"schema", "phase", "runtime", "model", "threads", "rows"}
    if missing := sorted(required - set(job)):
        raise RunnerError("job", f"missing: {', '.join(missing)}")
    if unknown := sorted(set(job) - required - set(defaults)):
        raise RunnerError("job", f"unknown: {', '.join(unknown)}")
    job = {**defaults, **job}
    if job["phase"] not in PHASES:
        raise RunnerError("job", f"unknown phase {job['phase']!r} (known: {', '.join(PHASES)})")
    if job["runtime"] not in RUNTIMES:
        raise RunnerError("unavailable", f"no runtime '{job['runtime']}' here (known: {', '.join(sorted(RUNTIMES))})")
    if not isinstance(job["threads"], int) or job["threads"] < 1:
        raise RunnerError("job", f"threads is not a positive whole number: {job['threads']!r}")
    if unknown := sorted({str(one.get("dtype")) for one in job["signature"]} - DTYPES):
        raise RunnerError("job", f"unknown dtype: {', '.join(unknown)} (known: {', '.join(sorted(DTYPES))})")
    _check_rows(job["rows"])
    return job


def _check_rows(rows: Any) -> None:
    whole = isinstance(rows, list) and rows and all(isinstance(row, dict) and row for row in rows)
    if not whole or not all(isinstance(values, list) and values for row in rows for values in row.values()):
        raise RunnerError("job", "rows is not a list of {input name: list of token ids, or of an image's channels}")


def _tokens(row: Row) -> int:
    """Length of a row; 1 for an image."""
    return next((len(values) for values in row.values() if not isinstance(values[0], list)), 1)


def _padded(job: dict[str, Any], row: Row) -> Row:
    """The row at the shortest fixed length that holds it (mask 0, pad id) or, where there is none, as it is."""
    lengths = job["fixed_lengths"]
    if not lengths or any(isinstance(values[0], list) for values in row.values()):
        return row
    fills = {"input_ids": job["pad_id"]}
    longest = max(len(ids) for ids in row.values())
    length = next((one for one in lengths if one >= longest), None)
    if length is None:
        raise RunnerError("job", f"a row is longer than the model's fixed length {lengths[-1]}")
    return {name: ids + [fills.get(name, 0)] * (length - len(ids)) for name, ids in row.items()}


def _prepared(job: dict[str, Any], model: Model, rows: Any) -> tuple[list[Any], list[int]]:
    _check_rows(rows)
    padded = [_padded(job, row) for row in rows]
    return [model.prepare(row) for row in padded], [_tokens(row) for row in padded]


def _answers(job: dict[str, Any], model: Model, rows: Any) -> list[Any]:
    """Logits of every row; where there is one set per token, those of the padding are cut off."""
    inputs, _ = _prepared(job, model, rows)
    answers = [model.logits(model.call(one)) for one in inputs]
    return [
        logits[: _tokens(row)] if isinstance(logits[0], list) else logits
        for row, logits in zip(rows, answers, strict=True)
    ]


def run(job: dict[str, Any]) -> tuple[Model, dict[str, Any]]:
    """Load, first inference and what else the phase asks for: the model and the answer."""
    if job["cpu_affinity"] is not None:
        os.sched_setaffinity(0, job["cpu_affinity"])
    began = time.perf_counter_ns()
    load = RUNTIMES[job["runtime"]](job)
    imported = time.perf_counter_ns()
    if not job["model"].endswith(".pt2") and job["runtime"] != "torch" and not Path(job["model"]).is_file():
        raise RunnerError("job", f"no such model file: {job['model']}")
    reset = _reset_peak()
    before = _memory()
    start = time.perf_counter_ns()
    model = load()
    loaded = time.perf_counter_ns()
    inputs, tokens = _prepared(job, model, job["rows"])
    first = time.perf_counter_ns()
    model.call(inputs[0])
    answered = time.perf_counter_ns()
    answer: dict[str, Any] = {
        "import_ns": imported - began,
        "load_ns": loaded - start,
        "first_inference_ns": answered - first,
        "observed": {
            "runtime": job["runtime"],
            "versions": {name: _version(name) for name in DISTRIBUTIONS[job["runtime"]]},
            "python": sys.version.split()[0],
            "cpu_affinity": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
            "tokens": sorted(set(tokens)),
            **model.observed,
        },
    }
    if job["phase"] == "memory":
        for number in range(job["runs"]):
            model.call(inputs[number % len(inputs)])
        answer["memory"] = _above(before, _memory(), reset) | {"runs": job["runs"]}
    if job["phase"] == "outputs":
        answer["logits"] = _answers(job, model, job["rows"])
    return model, answer


def answer_request(job: dict[str, Any], model: Model, request: Any) -> dict[str, Any]:
    """Answer one line of a persistent worker."""
    if not isinstance(request, dict) or request.get("schema") != SCHEMA:
        raise RunnerError("job", f"not a request of schema {SCHEMA}")
    if request.get("request") == "outputs":
        return {"answer": "outputs", "logits": _answers(job, model, request.get("rows"))}
    if request.get("request") != "block":
        raise RunnerError("job", f"unknown request {request.get('request')!r} (known: block, outputs)")
    numbers = ("warmup_runs", "warmup_seconds", "min_runs", "min_seconds", "max_seconds")
    if not all(isinstance(request.get(name), int | float) for name in numbers):
        raise RunnerError("job", f"a block needs the numbers {', '.join(numbers)}")
    inputs, tokens = _prepared(job, model, request.get("rows"))
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
    busy, cpu, start = _machine_busy_ns(), time.process_time_ns(), clock()
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
    wall, cpu = clock() - start, time.process_time_ns() - cpu
    after_busy = _machine_busy_ns()
    return {
        "samples_ns": samples,
        "warmup": {"runs": warm, "seconds": warmed / 1e9},
        "wall_ns": wall,
        "cpu_ns": cpu,
        "machine_busy_ns": None if busy is None or after_busy is None else after_busy - busy,
        "cpus": os.cpu_count(),
    }


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
    """Read the job, answer it and, in the time phase, every request until stdin ends."""
    wire = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # vendors print to stdout; only documents may go there

    def send(document: dict[str, Any]) -> None:
        wire.write(json.dumps({"schema": SCHEMA, "version": VERSION, **document}, allow_nan=False) + "\n")
        wire.flush()

    try:
        job = check(_parsed(sys.stdin.readline()))
        model, answer = run(job)
        send({"phase": job["phase"], **answer})
        if job["phase"] == "time":
            for line in sys.stdin:
                send(answer_request(job, model, _parsed(line)))
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
