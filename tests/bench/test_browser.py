"""A browser as a device: a real Chromium, its page as the runner, and how both say no.

Skipped where there is no browser, no Playwright, or no runtimes (``npm ci`` in ``runtimes/web``).
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _embedding_sum import BLOCK, TABLE_VC, logits_of, row, write_small

from edgekd import registry
from edgekd.bench import devices, runners
from edgekd.bench.transports import browser
from edgekd.bench.transports.browser import Browser
from edgekd.errors import BadInput, DeviceError

WEB = registry.folder("runtimes") / "web"
SCHEMA = "edgekd/runner/1"
Ask = Callable[..., tuple[int, list[dict[str, Any]]]]


def profile(**options: Any) -> devices.Device:
    return devices.load("chromium").model_copy(update={"options": options})


def missing() -> str:
    """Why there is no browser to test with; empty where there is one."""
    if not (WEB / "node_modules").is_dir():
        return "no runtimes: run `npm ci` in runtimes/web"
    if not any(map(shutil.which, browser.BROWSERS)):
        return "no Chromium or Chrome on PATH"
    try:
        import playwright  # noqa: F401
    except ImportError:
        return "playwright is not installed"
    return ""


needs_browser = pytest.mark.skipif(bool(missing()), reason=missing() or "-")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    transport = registry.load("transports", "browser").connect(profile())
    yield transport
    transport.close()


def asked(transport: Browser, job: Any, *requests: Any) -> tuple[int, list[dict[str, Any]]]:
    """Run a job whose model is a local file; the exit code and the documents."""
    if isinstance(job, dict) and Path(str(job.get("model"))).is_file():
        place = f"models/{Path(job['model']).name}"
        transport.push(Path(job["model"]), place)
        job = {**job, "model": place}
    lines = [line if isinstance(line, str) else json.dumps(line) for line in (job, *requests)]
    runtime = job.get("runtime", "onnx") if isinstance(job, dict) else "onnx"
    done = transport.exec(["runner", str(runtime)], stdin="\n".join(lines).encode(), timeout=120)
    return done.code, [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def ask(chromium: Browser) -> Ask:
    return lambda job, *requests: asked(chromium, job, *requests)


def children() -> set[int]:
    """Browser processes of this machine that still run."""
    found = set()
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = place.read_text().partition("(")[2].rpartition(")")
        except OSError:
            continue
        if name.startswith("chrom") and rest.split()[0] != "Z":
            found.add(int(place.parent.name))
    return found


def family(pid: int) -> set[int]:
    """Processes of the group that ``pid`` leads."""
    found = set()
    for one in children():
        try:
            if os.getpgid(one) == pid:
                found.add(one)
        except OSError:
            continue
    return found


def gone(pid: int, seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while family(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not family(pid)


# --- the runner ---


@needs_browser
def test_outputs_are_the_python_runners(ask: Ask, runner, job) -> None:  # type: ignore[no-untyped-def]
    code, [found] = ask(job)
    assert code == 0, found
    _, [expected] = runner(job)
    np.testing.assert_allclose(found["logits"], expected["logits"], rtol=1e-6)
    np.testing.assert_allclose(found["logits"], [logits_of([1, 2, 3]), logits_of([4, 5])], rtol=1e-6)
    assert (found["schema"], found["version"], found["phase"]) == (SCHEMA, "1", "outputs")
    seen = found["observed"]
    assert seen["tokens"] == [2, 3] and seen["threads"] == 1 and seen["cross_origin_isolated"] is True
    assert seen["versions"] == {"onnxruntime-web": installed("onnxruntime-web")}
    assert seen["backend"] == "CPUExecutionProvider, wasm-simd" and "Chrome" in seen["user_agent"]
    assert 0 < seen["clock_resolution_ns"] < 1_000_000
    assert found["import_ns"] > 0 and found["load_ns"] > 0 and found["first_inference_ns"] >= 0


def installed(package: str) -> str:
    version: str = json.loads((WEB / "node_modules" / package / "package.json").read_text())["version"]
    return version


@needs_browser
def test_a_fixed_length_pads_without_changing_the_answer(ask: Ask, job) -> None:  # type: ignore[no-untyped-def]
    _, [found] = ask({**job, "fixed_lengths": [2, 8], "pad_id": 49})
    np.testing.assert_allclose(found["logits"], [logits_of([1, 2, 3]), logits_of([4, 5])], rtol=1e-6)
    assert found["observed"]["tokens"] == [2, 8]
    code, [found] = ask({**job, "fixed_lengths": [2]})
    assert code == 1 and "longer" in found["error"]["message"]


@needs_browser
def test_padded_tokens_get_no_logits(ask: Ask, job, tmp_path) -> None:  # type: ignore[no-untyped-def]
    write_small(tmp_path / "tokens.onnx", "tokens")
    code, [found] = ask({**job, "model": str(tmp_path / "tokens.onnx"), "fixed_lengths": [8]})
    assert code == 0, found
    for logits, ids in zip(found["logits"], ([1, 2, 3], [4, 5]), strict=True):
        np.testing.assert_allclose(logits, TABLE_VC[ids], rtol=1e-6)


@needs_browser
def test_images_come_nested_or_flat_with_their_shape(ask: Ask, job, tmp_path) -> None:  # type: ignore[no-untyped-def]
    write_small(tmp_path / "image.onnx", "image")
    pixels_NCHW = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    job = {**job, "model": str(tmp_path / "image.onnx")}
    nested = {
        "signature": [{"name": "pixel_values", "dtype": "float32"}],
        "rows": [{"pixel_values": one.tolist()} for one in pixels_NCHW],
    }
    flat = {
        "signature": [{"name": "pixel_values", "dtype": "float32", "shape": [1, 3, 4, 5]}],
        "rows": [{"pixel_values": one.ravel().tolist()} for one in pixels_NCHW],
    }
    for spelling in (nested, flat):
        code, [found] = ask({**job, **spelling})
        assert code == 0, found
        np.testing.assert_allclose(found["logits"], pixels_NCHW.mean((2, 3)), rtol=1e-5)
        assert found["observed"]["tokens"] == [1]
    code, [found] = ask({**job, **flat, "rows": [{"pixel_values": [1.0, 2.0]}]})
    assert code == 1 and found["error"]["kind"] == "job" and "fill" in found["error"]["message"]


@needs_browser
def test_describe_load_and_memory(ask: Ask, job) -> None:  # type: ignore[no-untyped-def]
    without = {name: value for name, value in job.items() if name != "rows"}
    code, [found] = ask({**without, "phase": "describe"})
    assert code == 0 and "first_inference_ns" not in found
    assert found["inputs"] == [
        {"name": n, "dtype": "int64", "shape": [-1, -1]} for n in ("input_ids", "attention_mask")
    ]
    code, [found] = ask({**job, "phase": "load"})
    assert code == 0 and not {"memory", "logits", "inputs"} & set(found)
    code, [found] = ask({**job, "phase": "memory", "runs": 5})
    memory = found["memory"]
    assert memory["runs"] == 5 and memory["peak_reset"] is False
    assert memory["peak_bytes"] - memory["baseline_bytes"] == memory["peak_above_bytes"] >= 0
    assert 0 < memory["peak_bytes"] <= found["observed"]["wasm_memory_bytes"]


@needs_browser
def test_memory_counts_the_model_and_not_the_library(ask: Ask, job, tmp_path) -> None:  # type: ignore[no-untyped-def]
    import onnx
    from onnx import numpy_helper

    model = onnx.load(job["model"])
    large = np.random.default_rng(0).normal(size=(400_000, 3)).astype(np.float32)  # less than the memory's first size
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(large, "table"))
    onnx.save(model, tmp_path / "large.onnx")
    _, [small] = ask({**job, "phase": "memory"})
    _, [found] = ask({**job, "phase": "memory", "model": str(tmp_path / "large.onnx")})
    grown = found["memory"]["peak_above_bytes"] - small["memory"]["peak_above_bytes"]
    assert 0.9 * large.nbytes < grown < 3.5 * large.nbytes


@needs_browser
def test_a_worker_answers_blocks_and_outputs(chromium: Browser, job, tiny_onnx: Path) -> None:  # type: ignore[no-untyped-def]
    chromium.push(tiny_onnx, "models/tiny.onnx")
    worker = chromium.open(runners.command(profile(), "onnx"))
    ready = json.loads(
        worker.ask(json.dumps({**job, "model": "models/tiny.onnx", "phase": "time"}).encode(), timeout=60)
    )
    assert ready["phase"] == "time", ready
    for _ in range(2):
        line = worker.ask(json.dumps(BLOCK).encode(), timeout=60)
        assert line.endswith(b"\n") and line.count(b"\n") == 1
        block = json.loads(line)
        assert block["answer"] == "block" and len(block["samples_ns"]) == 25 and block["tokens"] == [2, 3]
        assert block["warmup"]["runs"] == 3 and sum(block["samples_ns"]) <= block["wall_ns"]
        assert (block["cpu_ns"], block["machine_busy_ns"], block["energy"]) == (None, None, None)
        assert block["cpus"] == os.cpu_count()
    asked = {"schema": SCHEMA, "request": "outputs", "rows": [row(7)]}
    golden = json.loads(worker.ask(json.dumps(asked).encode(), timeout=60))
    np.testing.assert_allclose(golden["logits"], [logits_of([7])], rtol=1e-6)
    worker.close()
    worker.close()
    with pytest.raises(DeviceError, match="was closed"):
        worker.ask(b"{}", timeout=5)


@needs_browser
def test_a_block_lasts_its_time_and_no_longer(ask: Ask, job) -> None:  # type: ignore[no-untyped-def]
    long = {**BLOCK, "min_runs": 1, "min_seconds": 0.2, "warmup_seconds": 0.1}
    endless = {**BLOCK, "min_runs": 10**9, "max_seconds": 0.2}
    _, [_, timed, cut] = ask({**job, "phase": "time"}, long, endless)
    assert timed["wall_ns"] >= 2e8 and timed["warmup"]["seconds"] >= 0.1 and len(timed["samples_ns"]) > 1
    assert 2e8 <= cut["wall_ns"] < 2e9


@needs_browser
@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"schema": "edgekd/runner/2"}, "job", "schema"),
        ({"phase": "race"}, "job", "race"),
        ({"phase": "describe"}, "job", "rows"),
        ({"runtime": "coreml"}, "unavailable", "coreml"),
        ({"runtime": "executorch"}, "unavailable", "executorch"),
        ({"threads": 0}, "job", "threads"),
        ({"threads": True}, "job", "threads"),
        ({"rows": []}, "job", "rows"),
        ({"rows": [{"input_ids": []}]}, "job", "rows"),
        ({"rows": [{"input_ids": [1]}]}, "job", "attention_mask"),
        ({"rows": [{"input_ids": [1.5], "attention_mask": [1]}]}, "job", "whole numbers"),
        ({"rows": [{"input_ids": ["1"], "attention_mask": [1]}]}, "job", "rows"),
        ({"model": "nowhere.onnx"}, "job", "nowhere"),
        ({"model": "../README.md"}, "job", "README"),
        ({"speed": 11}, "job", "speed"),
        ({"fixed_lengths": [8, 2]}, "job", "fixed_lengths"),
        ({"cpu_affinity": [0]}, "unavailable", "processors"),
        ({"signature": [{"name": "input_ids", "dtype": "complex64"}]}, "job", "complex64"),
        ({"signature": [{"name": "input_ids", "dtype": "int64", "colour": "red"}]}, "job", "signature"),
    ],
)
def test_a_wrong_job_is_refused(ask: Ask, job, change: dict[str, Any], kind: str, message: str) -> None:  # type: ignore[no-untyped-def]
    code, [found] = ask({**job, **change})
    assert code == 1 and set(found) == {"schema", "version", "error"}
    assert found["error"]["kind"] == kind and message in found["error"]["message"]


@needs_browser
def test_broken_lines_files_and_requests_are_told(ask: Ask, job, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for text in ("", "{", "[]"):
        code, [found] = ask(text)
        assert code == 1 and found["error"]["kind"] == "job"
    for runtime in ("onnx", "litert"):
        (tmp_path / "bad").write_bytes(b"not a model, whatever one calls it")
        code, [found] = ask({**job, "runtime": runtime, "model": str(tmp_path / "bad")})
        assert code == 1 and found["error"]["kind"] == "failed" and "\n" not in found["error"]["message"]
    code, [found] = ask({name: value for name, value in job.items() if name != "threads"})
    assert code == 1 and found["error"] == {"kind": "job", "message": "missing: threads"}
    code, [_, found] = ask({**job, "phase": "time"}, {"schema": SCHEMA, "request": "sing"})
    assert code == 1 and "sing" in found["error"]["message"]
    code, [_, found] = ask({**job, "phase": "time"}, {**BLOCK, "min_runs": "many"})
    assert code == 1 and "min_runs" in found["error"]["message"]
    code, [_, found] = ask(
        {**job, "phase": "time"}, {"schema": SCHEMA, "request": "profile", "rows": [row(1)], "runs": 1}
    )
    assert code == 1 and found["error"]["kind"] == "unavailable"


@needs_browser
def test_after_an_error_the_runner_is_over(chromium: Browser) -> None:
    worker = chromium.open(["runner", "onnx"])
    assert json.loads(worker.ask(b"{", timeout=60))["error"]["kind"] == "job"
    with pytest.raises(DeviceError, match="exited with 1"):
        worker.ask(b"{", timeout=60)
    worker.close()


@needs_browser
def test_threads_need_isolation(ask: Ask, job) -> None:  # type: ignore[no-untyped-def]
    cores = os.cpu_count() or 1
    _, [found] = ask({**job, "threads": 2})
    assert found["observed"]["threads"] == 2 and found["observed"]["backend"].endswith("wasm-simd-threaded")
    np.testing.assert_allclose(found["logits"], [logits_of([1, 2, 3]), logits_of([4, 5])], rtol=1e-6)
    transport = browser.connect(profile(isolated=False))
    try:
        assert transport.probe()["cross_origin_isolated"] is False
        code, [alone] = asked(transport, {**job, "threads": 2})
        assert code == 0, alone
    finally:
        transport.close()
    assert alone["observed"]["threads"] == 1 and alone["observed"]["cross_origin_isolated"] is False
    assert alone["observed"]["clock_resolution_ns"] > found["observed"]["clock_resolution_ns"]
    assert alone["observed"]["hardware_concurrency"] == cores
    np.testing.assert_allclose(alone["logits"], [logits_of([1, 2, 3]), logits_of([4, 5])], rtol=1e-6)


@needs_browser
def test_the_model_that_opens_the_library_is_one() -> None:
    import onnx

    text = re.search(r'IDENTITY =\s*"([^"]+)"', (WEB / "onnx.mjs").read_text())
    assert text is not None
    onnx.checker.check_model(onnx.load_from_string(base64.b64decode(text[1])))


# --- LiteRT ---

CONVERT = """
import sys, numpy as np, torch, litert_torch

table = torch.from_numpy(np.array(eval(sys.argv[2]), np.float32))


class Tiny(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Parameter(table)

    def forward(self, input_ids, attention_mask):
        return (torch.nn.functional.embedding(input_ids, self.table) * attention_mask[..., None].float()).sum(1)


def example(size):
    return {name: torch.ones(1, size, dtype=torch.int64) for name in ("input_ids", "attention_mask")}


model = Tiny().eval()
litert_torch.convert(model, tuple(example(8).values())).export(sys.argv[1] + "/one.tflite")
two = litert_torch.signature("serving_default", model, sample_kwargs=example(8))
two.signature("tokens_2", model, sample_kwargs=example(2)).convert().export(sys.argv[1] + "/two.tflite")
"""


@pytest.fixture(scope="module")
def tflite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny model at length 8, and at 8 and 2; in a process of its own, converters are heavy."""
    pytest.importorskip("litert_torch")
    folder = tmp_path_factory.mktemp("tflite")
    command = [sys.executable, "-c", CONVERT, str(folder), repr(TABLE_VC.tolist())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("file", "lengths"), [("one", [8]), ("two", [2, 8])])
def test_litert_gives_what_python_litert_gives(ask: Ask, runner, job, tflite, file, lengths, threads) -> None:  # type: ignore[no-untyped-def]
    job |= {
        "runtime": "litert",
        "model": str(tflite / f"{file}.tflite"),
        "fixed_lengths": lengths,
        "pad_id": 49,
        "threads": threads,
    }
    code, [found] = ask(job)
    assert code == 0, found
    _, [expected] = runner(job)
    np.testing.assert_allclose(found["logits"], expected["logits"], rtol=1e-6)
    np.testing.assert_allclose(found["logits"], [logits_of([1, 2, 3]), logits_of([4, 5])], rtol=1e-5)
    seen = found["observed"]
    assert seen["tokens"] == lengths and seen["signatures"] == len(lengths)
    assert seen["threads"] == min(threads, os.cpu_count() or 1)
    assert seen["versions"] == {"@litertjs/core": installed("@litertjs/core")}
    code, [_, block] = ask({**job, "phase": "time"}, BLOCK)
    assert code == 0 and len(block["samples_ns"]) == 25


@pytest.mark.slow
@needs_browser
def test_an_int8_output_of_litert_is_dequantized(ask: Ask, runner, job, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Dense with int8 weights, activations and output: bit for bit what Python's LiteRT gives."""
    pytest.importorskip("litert_torch")
    pytest.importorskip("ai_edge_quantizer")
    done = subprocess.run([sys.executable, "-c", INT8, str(tmp_path)], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    pixels = np.random.default_rng(1).integers(-128, 128, size=(3, 16))
    job |= {
        "runtime": "litert",
        "model": str(tmp_path / "int8.tflite"),
        "signature": [{"name": "args_0", "dtype": "int32"}],
        "rows": [{"args_0": one.tolist()} for one in pixels],
    }
    code, [found] = ask(job)
    assert code == 0, found
    _, [expected] = runner(job)
    assert found["logits"] == expected["logits"] and np.ptp(found["logits"]) > 0


INT8 = """
import sys, numpy as np, torch, litert_torch
from ai_edge_quantizer import quantizer, qtyping, recipe

torch.manual_seed(0)
example = torch.randn(1, 16)
path = sys.argv[1] + "/float.tflite"
litert_torch.convert(torch.nn.Linear(16, 4).eval(), (example,)).export(path)
made = quantizer.Quantizer(path)
made.load_quantization_recipe(recipe.static_wi8_ai8())
rng = np.random.default_rng(0)
data = {"serving_default": [{"args_0": rng.normal(size=(1, 16)).astype(np.float32)} for _ in range(8)]}
made.quantize(made.calibrate(data)).export_model(sys.argv[1] + "/int8.tflite")
"""


# --- the transport ---


@needs_browser
def test_probe_tells_what_the_machine_and_the_browser_are(chromium: Browser) -> None:
    found = chromium.probe()
    assert {"os", "machine", "cpu", "cores", "memory_bytes", "governor", "load_average"} < set(found)
    assert found["browser"] == "chromium" and found["browser_version"][0].isdigit()
    assert "Chrome" in found["user_agent"] and found["cross_origin_isolated"] is True


@needs_browser
def test_what_a_browser_cannot_do_is_said(chromium: Browser, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="nothing"):
        chromium.push(tmp_path / "nothing", "x")
    with pytest.raises(DeviceError, match="keeps no files"):
        chromium.pull("x", tmp_path / "x")
    with pytest.raises(DeviceError, match="runs no programs"):
        chromium.exec(["ls"], stdin=b"", timeout=5)


@needs_browser
def test_the_server_hands_out_what_it_should_and_nothing_else(chromium: Browser, tmp_path: Path) -> None:
    def status(path: str, **headers: str) -> int:
        request = urllib.request.Request(chromium._server.url + path, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return int(error.code)

    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "given.bin").write_bytes(b"given")
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "folder" / "link").symlink_to(tmp_path / "secret")
    chromium.push(tmp_path / "folder", "some")
    assert status("/index.html") == status("/node_modules/@litertjs/core/package.json") == 200
    assert status("/files/some/given.bin") == 200
    for path in (
        "/",
        "/files/some",
        "/files/some/../secret",
        "/files/some/%2e%2e/secret",
        "/files/some/..%2fsecret",
        "/files/some/link",
        "/files/" + str(tmp_path / "secret"),
        "/node_modules/../index.html",
        "/node_modules/.package-lock.json",
        "/.npmrc",
        "//etc/passwd",
        "/../README.md",
    ):
        assert status(path) == 404, path
    assert status("/index.html", Host="elsewhere.example") == 404


@needs_browser
def test_a_page_that_crashes_tells_so_and_the_next_one_works(chromium: Browser, ask: Ask, job, tiny_onnx: Path) -> None:  # type: ignore[no-untyped-def]
    """Once by the browser's own means, before it is asked; once by killing its process, while it answers."""
    worker = chromium.open(["runner", "onnx"])

    async def crash() -> None:
        session = await worker._page.context.new_cdp_session(worker._page.page)
        asking = asyncio.ensure_future(session.send("Page.crash"))  # never answered
        await asyncio.wait_for(asyncio.shield(worker._page.ended), 30)
        asking.cancel()

    chromium._call(crash(), 40)
    with pytest.raises(DeviceError, match=r"chromium: the page crashed"):
        worker.ask(b"{}", timeout=30)
    with pytest.raises(DeviceError, match="was closed"):
        worker.ask(b"{}", timeout=5)

    chromium.push(tiny_onnx, "models/tiny.onnx")
    worker = chromium.open(["runner", "onnx"])
    worker.ask(json.dumps({**job, "model": "models/tiny.onnx", "phase": "time"}).encode(), timeout=60)
    assert chromium._pid is not None
    renderers = [
        one for one in family(chromium._pid) if b"--type=renderer" in Path(f"/proc/{one}/cmdline").read_bytes()
    ]
    killing = threading.Timer(1, lambda: [os.kill(one, signal.SIGKILL) for one in renderers])
    killing.start()
    with pytest.raises(DeviceError, match=r"chromium: the page crashed"):
        worker.ask(json.dumps({**BLOCK, "min_seconds": 20}).encode(), timeout=60)
    killing.join()
    assert ask({**job, "phase": "load"})[0] == 0


@needs_browser
def test_a_page_that_hangs_is_closed_in_time(chromium: Browser, ask: Ask, job, tiny_onnx: Path) -> None:  # type: ignore[no-untyped-def]
    chromium.push(tiny_onnx, "models/tiny.onnx")
    other = chromium.open(["runner", "onnx"])
    other.ask(json.dumps({**job, "model": "models/tiny.onnx", "phase": "time"}).encode(), timeout=60)
    worker = chromium.open(["runner", "onnx"])
    worker.ask(json.dumps({**job, "model": "models/tiny.onnx", "phase": "time"}).encode(), timeout=60)
    began = time.monotonic()
    with pytest.raises(DeviceError, match="no answer within 1 s"):
        worker.ask(json.dumps({**BLOCK, "min_seconds": 100, "max_seconds": 100}).encode(), timeout=1)
    assert time.monotonic() - began < 20
    assert json.loads(other.ask(json.dumps(BLOCK).encode(), timeout=60))["answer"] == "block"  # the others go on
    other.close()
    began = time.monotonic()
    endless = [{**job, "model": "models/tiny.onnx", "phase": "time"}, {**BLOCK, "min_seconds": 100, "max_seconds": 100}]
    with pytest.raises(DeviceError, match="no answer within"):
        chromium.exec(["runner", "onnx"], stdin="\n".join(map(json.dumps, endless)).encode(), timeout=6)
    assert time.monotonic() - began < 30
    assert ask({**job, "phase": "load"})[0] == 0


@needs_browser
def test_a_browser_that_dies_is_started_again(job, tiny_onnx: Path) -> None:  # type: ignore[no-untyped-def]
    transport = browser.connect(profile())
    try:
        worker = transport.open(["runner", "onnx"])
        first = transport._pid
        assert first is not None
        os.killpg(first, signal.SIGKILL)
        with pytest.raises(DeviceError, match="chromium: "):
            worker.ask(b"{}", timeout=30)
        code, [found] = asked(transport, {**job, "phase": "load"})
        assert code == 0 and found["load_ns"] > 0
        second = transport._pid
        assert second is not None and second != first
    finally:
        transport.close()
    assert gone(first) and gone(second)
    transport.close()  # twice does no harm


@needs_browser
def test_a_page_can_be_opened_in_the_moment_of_the_browsers_death(job, tiny_onnx: Path) -> None:  # type: ignore[no-untyped-def]
    """Nobody has heard of it yet: the call that finds out starts another one."""
    transport = browser.connect(profile())
    try:
        for _ in range(3):
            assert transport._pid is not None
            os.killpg(transport._pid, signal.SIGKILL)
            assert asked(transport, {**job, "phase": "load"})[0] == 0
    finally:
        transport.close()


@needs_browser
def test_closing_leaves_no_browser_even_with_a_page_that_hangs(job, tiny_onnx: Path) -> None:  # type: ignore[no-untyped-def]
    transport = browser.connect(profile())
    pid = transport._pid
    assert pid is not None and family(pid)
    worker = transport.open(["runner", "onnx"])
    script = "() => { setTimeout(() => { for (;;); }, 10); return 1 }"
    assert worker._page.evaluate(script, 10) == 1
    time.sleep(0.5)
    began = time.monotonic()
    transport.close()
    assert time.monotonic() - began < 30
    assert gone(pid)
    with pytest.raises(DeviceError):
        transport.open(["runner", "onnx"])


def test_missing_parts_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceError, match=r"chromium: the runtimes for browsers are not installed.*npm ci"):
        browser.connect(profile(modules=str(tmp_path / "nowhere")))
    with pytest.raises(DeviceError, match=r"no browser at .*options\.executable"):
        browser.connect(profile(modules=str(tmp_path), executable=str(tmp_path / "nothing")))
    with pytest.raises(BadInput, match=r"options\.colour"):
        browser.connect(profile(colour="red"))
    monkeypatch.setitem(sys.modules, "playwright.async_api", None)
    with pytest.raises(DeviceError, match=r"'playwright' is not installed\. pip install"):
        browser.connect(profile(modules=str(tmp_path)))


@needs_browser
def test_a_program_that_is_no_browser_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"/false did not start: .*options\.executable"):
        browser.connect(profile(executable=shutil.which("false")))


@needs_browser
def test_a_package_that_is_missing_is_unavailable(job, tiny_onnx: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    transport = browser.connect(profile(modules=str(tmp_path)))
    try:
        code, [found] = asked(transport, job)
    finally:
        transport.close()
    assert code == 1 and found["error"]["kind"] == "unavailable" and "onnxruntime-web" in found["error"]["message"]


def test_the_profile_and_its_runner() -> None:
    device = devices.load("chromium")
    assert (device.transport, device.runner, device.abi, device.runtimes) == (
        "browser",
        "browser",
        "wasm",
        ["onnx", "litert"],
    )
    assert runners.files(device, "onnx") == {} and runners.command(device, "litert") == ["runner", "litert"]
    assert (WEB / "index.html").is_file()


def test_the_runtimes_are_pinned_and_no_registry_is_named() -> None:
    pins = json.loads((WEB / "package.json").read_text())["dependencies"]
    assert all(re.fullmatch(r"[0-9.]+", version) for version in pins.values())
    lock = json.loads((WEB / "package-lock.json").read_text())
    assert not [name for name, one in lock["packages"].items() if "resolved" in one]
    assert all(one.get("integrity") for name, one in lock["packages"].items() if name)
    for name, version in pins.items():
        assert lock["packages"][f"node_modules/{name}"]["version"] == version
