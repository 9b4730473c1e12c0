"""edgekd's int8 artefacts against what a user would pick instead: same student, same texts, same run.

    python benchmarks/peers.py --student FOLDER --train train.csv --test test.csv [--texts 1000] [--threads 1]
                               [--runtimes onnx,litert,openvino,executorch] [--work FOLDER] [--markdown] [--out FILE]

The student is any transformers sequence classifier. Everything starts from its float weights: edgekd's ``w8a8`` and
``w8a8-dynamic`` (calibrated only, by edgekd's own modules), and for each runtime the tools that its users reach for,
as their documentation says. The same training texts calibrate all of them.

Printed for each: accuracy on the test texts; agreement with the float student in PyTorch, and the mean difference of
logits to it; the size of the file; its time as a ratio to the fp32 artefact of the same runtime, at 32 and at 128
tokens of real text. Timed blocks are interleaved in an order that is shuffled each time; the ratio is taken within
each, its median over the blocks is told, and a 95 % bootstrap interval. With one thread it is CPU time, which
neighbours on the machine disturb less; with more it is wall time.

LiteRT's files have one length, so there are two of each, and a test text goes to the shortest that holds it.

A tool that is missing or fails is a row that says why; `pip install nncf ai-edge-quantizer` for all that can run. None
of them is needed by edgekd. With ``--work`` what was made is kept and not made again (give it for one student and one
number of calibration texts only).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd import artifact, pipeline, recipe, registry
from edgekd.bench import statistics
from edgekd.targets import onnx
from edgekd.targets._contract import Session

if TYPE_CHECKING:
    import torch

LENGTHS = (32, 128)
SCHEMES = ("fp32", "w8a8", "w8a8-dynamic")
FIXED = ("litert",)  # runtimes whose files have one length
SAMPLES, SECONDS = 5, 0.2  # a timed block: at least so many runs, and so long
AI_EDGE, NNCF = "pip install ai-edge-quantizer", "pip install nncf"
VERSIONS = """ai-edge-litert ai-edge-quantizer executorch nncf onnxruntime openvino optimum-onnx torch torchao
transformers""".split()

Row = Mapping[str, Sequence[int]]
Inputs = dict[str, np.ndarray]


@dataclass(frozen=True)
class Setting:
    """What all are given."""

    student: Path
    work: Path
    calibration: list[Row]
    rows: list[Row]  # the test texts
    labels: list[int]
    timed: dict[int, list[Row]]  # by length
    threads: int
    blocks: int

    def program(self, scheme: str) -> Path:
        """The folder of edgekd's Program."""
        return self.work / f"program-{scheme}"


@dataclass(frozen=True)
class Job:
    """One file to make: ``model<suffix>`` in ``out``, from the float artefact in ``fp32``, for ``length`` tokens."""

    setting: Setting
    fp32: Path
    length: int
    out: Path

    def calibration(self) -> Iterator[Inputs]:
        """The calibration rows, one text each; what is longer than the file is left out."""
        return (batch(row) for row in self.setting.calibration if len(row["input_ids"]) <= self.length)


@dataclass(frozen=True)
class Contender:
    """Who made a file of a runtime, and how it is opened (``open``: folder, threads; default: edgekd's session).

    Those with one ``file`` share what ``make`` makes. ``needs`` says how to get the tool.
    """

    who: str
    make: Callable[[Job], None]
    open: Callable[..., Any] | None = None
    file: str = ""
    needs: str = ""


@dataclass
class Result:
    """A row of the table."""

    runtime: str
    who: str
    accuracy: float | None = None
    agreement: float | None = None
    mean_abs_delta: float | None = None
    mb: float | None = None
    time: dict[int, Any] = field(default_factory=dict)  # by length: {"ratio", "low", "high"}
    error: str | None = None


def main() -> None:
    """Make, compare, and print one JSON document."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--student", required=True, type=Path)
    arguments.add_argument("--train", required=True, help="for calibration")
    arguments.add_argument("--test", required=True)
    arguments.add_argument("--texts", type=int, help="so many test texts, drawn by seed; default: all")
    arguments.add_argument("--calibration", type=int, default=512, help="training texts to calibrate with")
    arguments.add_argument("--runtimes", default=",".join(RUNTIMES))
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--blocks", type=int, default=15)
    arguments.add_argument("--work", type=Path, help="keep what is made here")
    arguments.add_argument("--markdown", action="store_true", help="print a table behind the document")
    arguments.add_argument("--out", type=Path, help="also write the document here")
    asked = arguments.parse_args()
    setting = apart(prepare, asked, asked.work or Path(tempfile.mkdtemp()))
    goal = apart(float_logits, setting)
    load_before, found = os.getloadavg()[0], []
    for runtime in asked.runtimes.split(","):
        found += contest(setting, runtime, goal)
    versions = {name: _version(name) for name in VERSIONS}
    document = {
        "rows": [asdict(one) for one in found],
        "texts": len(setting.rows),
        "calibration_texts": len(setting.calibration),
        "float_accuracy": _accuracy(goal, setting.labels),
        "threads": setting.threads,
        "clock": "cpu" if setting.threads == 1 else "wall",
        "blocks": setting.blocks,
        "int8_products_saturate": apart(onnx.int8_products_saturate),
        "load_average": [load_before, os.getloadavg()[0]],
        "versions": versions,
    }
    text = json.dumps(document, indent=2) + "\n"
    if asked.out:
        asked.out.write_text(text)
    sys.stdout.write(text + (table(found) if asked.markdown else ""))


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Its result, from a process of its own: vendors' libraries crash, and disturb each other."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=os.dup2, initargs=(2, 1)) as pool:  # stdout is ours
        return pool.submit(function, *arguments).result()


def prepare(asked: argparse.Namespace, work: Path) -> Setting:
    """Read the data, and make edgekd's Programs."""
    from edgekd.data.stage import read_split

    longest = max(LENGTHS)
    sets = [f"teacher.model={asked.student}", f"data.train={asked.train}", f"data.test={asked.test}"]
    made = recipe.parse("{}", overrides=[*sets, f"data.max_length={longest}", "data.augment.copies=0"])
    task = registry.load("tasks", made.task)
    data = pipeline.run(made, work / "run", until="data").steps["data"].path
    processor = task.processor(data / "tokenizer")
    train, test = read_split(data, "train"), read_split(data, "test")
    if asked.texts:
        test = random.Random(0).sample(test, min(asked.texts, len(test)))
    some = random.Random(0).sample(train, min(asked.calibration, len(train)))

    def encoded(texts: Sequence[Mapping[str, Any]], length: int) -> list[Row]:
        return [dict(row) for row in task.encode(processor, texts, length)]

    def joined(seed: int) -> dict[str, str]:
        return {"text": " ".join(one["text"] for one in random.Random(seed).sample(test, min(len(test), 60)))}

    setting = Setting(
        student=asked.student.resolve(),
        work=work.resolve(),
        calibration=encoded(some, longest),
        rows=encoded(test, longest),
        labels=task.targets(test),
        timed={length: encoded([joined(seed) for seed in range(8)], length) for length in LENGTHS},
        threads=asked.threads,
        blocks=asked.blocks,
    )
    for scheme in SCHEMES:
        if not (setting.program(scheme) / "program.pt2").is_file():
            quantize(setting, task, scheme)
    return setting


def quantize(setting: Setting, task: Any, scheme: str) -> None:
    """Write edgekd's Program as the quantize stage does with ``method: ptq``."""
    from edgekd.quantize import program, qat, reference, smooth
    from edgekd.quantize import scheme as schemes

    settings = recipe.parse("{teacher: {model: x}, data: {train: x}}").quantize
    model, wanted = load_student(setting), schemes.get(scheme)
    if scheme != "fp32":
        if wanted.smooth:
            smooth.fold(model, wanted, wanted.smooth, setting.calibration, task, max(LENGTHS))
        model = reference.prepare(model, wanted)
        qat.calibrate(model, setting.calibration, settings.percentile, task.INPUTS)
        model = reference.convert(model)
    exported = program.export(model, task, setting.rows[0], max(LENGTHS))
    out = setting.program(scheme)
    out.mkdir(parents=True, exist_ok=True)
    artifact.write_json(out / program.GOLDEN, {"signature": program.signature(exported, task)})
    program.save(exported, out)


def load_student(setting: Setting) -> Any:
    """The float student as transformers makes it."""
    from edgekd.distill import student as students
    from edgekd.teach import transformers

    return students.load(setting.student, transformers.model_class("text-classification")).eval().requires_grad_(False)


def float_logits(setting: Setting) -> np.ndarray:
    """The float student's answers in PyTorch, each text alone."""
    import torch

    model = load_student(setting)
    with torch.inference_mode():
        logits: np.ndarray = np.concatenate([model(**tensors(row)).logits.numpy() for row in setting.rows])
    return logits


def batch(row: Row) -> Inputs:
    """One text as a batch of numpy arrays."""
    return {name: np.array([values], np.int64) for name, values in row.items()}


def tensors(row: Row) -> dict[str, torch.Tensor]:
    """One text as a batch of tensors."""
    import torch

    return {name: torch.tensor([list(values)]) for name, values in row.items()}


def contest(setting: Setting, runtime: str, goal: np.ndarray) -> list[Result]:
    """One runtime: make all files, then answers and times of those that could be made."""
    lengths = LENGTHS if runtime in FIXED else LENGTHS[-1:]
    found, ready = [], {}
    for one in (*ours(runtime), *RUNTIMES[runtime]):
        result = Result(runtime, one.who)
        found.append(result)
        try:
            folders = {length: _made(setting, runtime, one, length) for length in lengths}
            print(f"{runtime}: {one.who} is made", file=sys.stderr)  # noqa: T201
            logits = apart(answers, setting, runtime, one, folders)
            result.accuracy = _accuracy(logits, setting.labels)
            result.agreement = float((logits.argmax(-1) == goal.argmax(-1)).mean())
            result.mean_abs_delta = float(np.abs(logits - goal).mean())
            result.mb = sum(file.stat().st_size for file in folders[lengths[-1]].glob("model.*")) / 1e6
            ready[one.who] = (one, folders)
        except Exception as error:  # whatever a vendor raises
            advice = f" ({one.needs})" if isinstance(error, ImportError) and one.needs else ""
            result.error = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}{advice}"
            print(f"{runtime}: {one.who}: {result.error}", file=sys.stderr)  # noqa: T201
    for who, times in apart(race, setting, runtime, ready).items():
        next(one for one in found if one.who == who).time = times
    return found


def _made(setting: Setting, runtime: str, one: Contender, length: int) -> Path:
    """The folder with its file, made unless it is there."""
    place = setting.work / runtime / str(length)
    out = place / "".join(c if c.isalnum() else "-" for c in one.file or one.who)
    if not out.exists():
        partial_out = artifact.partial_of(out)
        partial_out.mkdir(parents=True, exist_ok=True)
        apart(one.make, Job(setting, place / "edgekd-fp32", length, partial_out))
        partial_out.rename(out)
    return out


def _accuracy(logits: np.ndarray, labels: Sequence[int]) -> float:
    return float((logits.argmax(-1) == np.array(labels)).mean())


def _open(setting: Setting, runtime: str, one: Contender, folder: Path) -> Session:
    opener = one.open or registry.load("targets", runtime).open_session
    session: Session = opener(folder, threads=setting.threads)
    return session


def answers(setting: Setting, runtime: str, one: Contender, folders: Mapping[int, Path]) -> np.ndarray:
    """Logits of the test texts, each run alone, by the file of the smallest length that holds it."""
    sessions = {length: _open(setting, runtime, one, folder) for length, folder in sorted(folders.items())}

    def fitting(row: Row) -> Session:
        return next(session for length, session in sessions.items() if len(row["input_ids"]) <= length)

    logits: np.ndarray = np.concatenate([fitting(row).run(batch(row)) for row in setting.rows])
    return logits


def race(
    setting: Setting, runtime: str, ready: Mapping[str, tuple[Contender, Mapping[int, Path]]]
) -> dict[str, dict[int, Any]]:
    """Times by contender and length: the ratio to edgekd's fp32 artefact in each block, and what they say together."""
    clock = time.process_time_ns if setting.threads == 1 else time.perf_counter_ns
    chance, base = random.Random(0), next(iter(ready))
    found: dict[str, dict[int, Any]] = {who: {} for who in ready}

    def block(session: Session, fed: Sequence[Inputs]) -> float:
        session.run(fed[0])  # refills the caches
        taken: list[int] = []
        while len(taken) < SAMPLES or sum(taken) < SECONDS * 1e9:
            began = clock()
            session.run(fed[len(taken) % len(fed)])
            taken.append(clock() - began)
        return statistics.block_median([taken])

    for length in LENGTHS:
        fed = [batch(row) for row in setting.timed[length]]
        sessions = {
            who: _open(setting, runtime, one, folders[min(size for size in folders if size >= length)])
            for who, (one, folders) in ready.items()
        }
        medians: dict[str, list[float]] = {who: [] for who in ready}
        for _ in range(setting.blocks):
            for who in chance.sample(list(ready), len(ready)):
                medians[who].append(block(sessions[who], fed))
        for who in ready:
            ratios = [[a / b] for a, b in zip(medians[who], medians[base], strict=True)]
            low, high = statistics.median_interval(ratios)
            ms = statistics.block_median([[one] for one in medians[who]]) / 1e6
            found[who][length] = {"ratio": statistics.block_median(ratios), "low": low, "high": high, "ms": ms}
    return found


def table(found: Sequence[Result]) -> str:
    """The rows in Markdown."""

    def ratio(one: Result, length: int) -> str:
        told = one.time.get(length)
        return f"{told['ratio']:.2f} ({told['low']:.2f}-{told['high']:.2f})" if told else ""

    heads = ["runtime", "who", "accuracy", "as float", "mean logit difference", "MB"]
    lines = ["| " + " | ".join([*heads, *(f"time at {length}" for length in LENGTHS)]) + " |", "|---" * 8 + "|"]
    for one in found:
        if one.error or None in (one.accuracy, one.agreement, one.mean_abs_delta, one.mb):
            lines.append(f"| {one.runtime} | {one.who} | {one.error} | | | | | |")
            continue
        numbers = [f"{one.accuracy:.4f}", f"{one.agreement:.4f}", f"{one.mean_abs_delta:.4f}", f"{one.mb:.1f}"]
        cells = [one.runtime, one.who, *numbers, *(ratio(one, length) for length in LENGTHS)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


# edgekd.


def ours(runtime: str) -> list[Contender]:
    """The float artefact, against which times are told, and the schemes that the target carries."""
    carried = [scheme for scheme in SCHEMES if scheme in registry.load("targets", runtime).accepts]
    return [Contender(f"edgekd {scheme}", partial(export, runtime, scheme)) for scheme in carried]


def export(runtime: str, scheme: str, job: Job) -> None:
    """edgekd's artefact."""
    registry.load("targets", runtime).export(job.setting.program(scheme), job.out, max_length=job.length)


# onnxruntime.


class Plain:
    """onnxruntime as it comes, with so many threads."""

    def __init__(self, folder: Path, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(folder / "model.onnx", options)
        self._names = [one.name for one in self._session.get_inputs()]

    def run(self, inputs: Inputs) -> np.ndarray:
        """Logits of one text."""
        logits: np.ndarray = self._session.run(["logits"], {name: inputs[name] for name in self._names})[0]
        return logits


def ort_dynamic(job: Job, **options: Any) -> None:
    """onnxruntime's quantize_dynamic, on edgekd's fp32 file after its own preprocessing."""
    from onnxruntime.quantization import quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    ready = job.out / "preprocessed.onnx"
    quant_pre_process(str(job.fp32 / "model.onnx"), str(ready), skip_symbolic_shape=True)
    quantize_dynamic(ready, job.out / "model.onnx", **options)


def ort_static(job: Job, **options: Any) -> None:
    """onnxruntime's quantize_static, likewise."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._rows = job.calibration()

        def get_next(self) -> Inputs | None:
            return next(self._rows, None)

    ready = job.out / "preprocessed.onnx"
    quant_pre_process(str(job.fp32 / "model.onnx"), str(ready), skip_symbolic_shape=True)
    quantize_static(ready, job.out / "model.onnx", Reader(), **options)


def optimum_dynamic(job: Job) -> None:
    """optimum's ORTQuantizer with its settings for AVX2."""
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig

    settings = AutoQuantizationConfig.avx2(is_static=False, per_channel=True)
    ORTQuantizer.from_pretrained(job.fp32, file_name="model.onnx").quantize(job.out, settings, file_suffix="")


def hf_onnx(job: Job, *, static: bool) -> None:
    """transformers' own exporter and its quantizer, onnxruntime's fusions switched on."""
    from transformers.exporters import OnnxConfig, OnnxRuntimeDynamicConfig, OnnxRuntimeQuantizer
    from transformers.exporters import OnnxRuntimeStaticConfig as Static
    from transformers.exporters.exporter_onnx import OnnxExporter

    rows = [tensors(row) for row in job.setting.calibration] if static else None
    settings = Static(per_channel=True) if static else OnnxRuntimeDynamicConfig(per_channel=True)
    config = OnnxConfig(dynamic=True, quantizer=OnnxRuntimeQuantizer(settings, calibration_dataset=rows))
    OnnxExporter().export(load_student(job.setting), _sample(job), config).save_pretrained(job.out)


def _sample(job: Job) -> dict[str, torch.Tensor]:
    """Two texts of one length, for an exporter to trace with."""
    import torch

    rows = job.setting.timed[LENGTHS[0]][:2]
    return {name: torch.tensor([list(row[name]) for row in rows]) for name in rows[0]}


# LiteRT.


def ai_edge(job: Job, recipe_name: str) -> None:
    """ai-edge-quantizer with one of its recipes, on edgekd's fp32 file."""
    from ai_edge_quantizer import quantizer, recipe
    from ai_edge_quantizer.utils import tfl_interpreter_utils

    one = quantizer.Quantizer(str(job.fp32 / "model.tflite"), getattr(recipe, recipe_name)())
    ranges = None
    if one.need_calibration:
        interpreter = tfl_interpreter_utils.create_tfl_interpreter(str(job.fp32 / "model.tflite"))
        (key,) = interpreter.get_signature_list()
        details = interpreter.get_signature_runner(key).get_input_details()

        def padded(row: Inputs) -> Inputs:
            width = job.length - row["input_ids"].shape[1]
            return {name: np.pad(row[name], ((0, 0), (0, width))).astype(one["dtype"]) for name, one in details.items()}

        ranges = one.calibrate({key: [padded(row) for row in job.calibration()]}, num_threads=1)
    one.quantize(ranges).export_model(str(job.out / "model.tflite"))


# OpenVINO.


class Compiled:
    """OpenVINO's CPU plugin as it comes, with so many threads and these settings."""

    def __init__(self, folder: Path, threads: int, **settings: Any) -> None:
        import openvino as vendor

        asked = {"INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False, **settings}
        self._model = vendor.Core().compile_model(str(folder / "model.xml"), "CPU", asked)
        self._request = self._model.create_infer_request()

    def run(self, inputs: Inputs) -> np.ndarray:
        """Logits of one text."""
        logits: np.ndarray = self._request.infer(inputs)[self._model.output(0)].copy()
        return logits


def nncf_quantized(job: Job, *, fix: bool = False) -> None:
    """NNCF's post-training quantization for transformers, on edgekd's fp32 file."""
    import nncf
    import openvino as vendor

    rows = list(job.calibration())
    advanced = nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE) if fix else None
    made = nncf.quantize(
        vendor.Core().read_model(str(job.fp32 / "model.xml")),
        nncf.Dataset(rows),
        subset_size=len(rows),
        model_type=nncf.ModelType.TRANSFORMER,
        advanced_parameters=advanced,
    )
    vendor.save_model(made, str(job.out / "model.xml"), compress_to_fp16=False)


# ExecuTorch.


def pt2e(job: Job, *, dynamic: bool, everywhere: bool = False) -> None:
    """PT2E with ExecuTorch's XNNPACKQuantizer, lowered as its tutorial does it; ``everywhere``: all it knows, else the
    linear layers."""
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from executorch.exir import to_edge_transform_and_lower
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    class Logits(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = load_student(job.setting)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            # The quantizer makes floats of whole numbers, also of those that transformers would build this mask from.
            mask = (1.0 - attention_mask[:, None, None, :].float()) * -1e4
            logits: torch.Tensor = self.model(input_ids=input_ids, attention_mask=mask).logits
            return logits

    length = torch.export.Dim("length", min=2, max=job.length)
    example = tuple(tensors(job.setting.timed[LENGTHS[0]][0]).values())
    shapes = ({1: length}, {1: length})
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=dynamic)
    exported = torch.export.export(Logits().eval(), example, dynamic_shapes=shapes)
    chosen = XNNPACKQuantizer()
    chosen = chosen.set_global(config) if everywhere else chosen.set_module_type(torch.nn.Linear, config)
    prepared = prepare_pt2e(exported.module(), chosen)
    with torch.no_grad():
        for row in job.setting.calibration:
            prepared(*tensors(row).values())
    again = torch.export.export(convert_pt2e(prepared), example, dynamic_shapes=shapes)
    names = {"input_names": "input_ids attention_mask"}  # for edgekd's session
    edge = to_edge_transform_and_lower(again, partitioner=[XnnpackPartitioner()], constant_methods=names)
    (job.out / "model.pte").write_bytes(edge.to_executorch().buffer)


RUNTIMES: dict[str, list[Contender]] = {
    "onnx": [
        Contender("quantize_dynamic", ort_dynamic, Plain),
        Contender("quantize_dynamic, per channel", partial(ort_dynamic, per_channel=True), Plain),
        Contender(
            "quantize_dynamic, per channel, 7 bits", partial(ort_dynamic, per_channel=True, reduce_range=True), Plain
        ),
        Contender("quantize_static, per channel", partial(ort_static, per_channel=True), Plain),
        Contender("transformers exporter, dynamic", partial(hf_onnx, static=False), Plain),
        Contender("transformers exporter, static", partial(hf_onnx, static=True), Plain),
        Contender(
            "optimum ORTQuantizer, dynamic",
            optimum_dynamic,
            Plain,
            needs="optimum-onnx 0.1 wants transformers < 4.58, and does not import beside a newer one",
        ),
    ],
    "litert": [
        Contender(
            "ai-edge-quantizer, dynamic_wi8_afp32", partial(ai_edge, recipe_name="dynamic_wi8_afp32"), needs=AI_EDGE
        ),
        Contender("ai-edge-quantizer, static_wi8_ai8", partial(ai_edge, recipe_name="static_wi8_ai8"), needs=AI_EDGE),
    ],
    "openvino": [
        Contender("nncf.quantize", nncf_quantized, Compiled, "nncf", NNCF),
        Contender(
            "nncf.quantize, layers in float", nncf_quantized, partial(Compiled, LP_TRANSFORMS_MODE="NO"), "nncf", NNCF
        ),
        Contender("nncf.quantize, overflow_fix", partial(nncf_quantized, fix=True), Compiled, needs=NNCF),
    ],
    "executorch": [
        Contender("XNNPACKQuantizer, static", partial(pt2e, dynamic=False, everywhere=True)),
        Contender("XNNPACKQuantizer, linear layers, static", partial(pt2e, dynamic=False)),
        Contender("XNNPACKQuantizer, linear layers, dynamic", partial(pt2e, dynamic=True)),
    ],
}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
