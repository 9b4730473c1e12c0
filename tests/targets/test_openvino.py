"""OpenVINO: the file holds the Program's numbers, and the CPU plugin runs quantized layers in integers."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from _programs import (
    LINEAR_LAYERS,
    MAX_LENGTH,
    VOCABULARY,
    activation_scales,
    golden_of,
    machine_words,
    weights,
)

from edgekd.errors import BadInput, Environment
from edgekd.targets import openvino as target
from edgekd.targets._contract import load_program

pytest.importorskip("openvino")
vendor = target._openvino()
SCHEMES = ("fp32", "fp16", "w8", "w4", "w8a8")


@pytest.fixture(scope="module")
def exported(make_program, tmp_path_factory):  # type: ignore[no-untyped-def]
    """``exported(scheme)`` -> (Program, folder of its artefact, facts), made once."""
    made: dict[str, Any] = {}

    def make(scheme: str) -> Any:
        if scheme not in made:
            out, program = tmp_path_factory.mktemp(f"openvino-{scheme}"), make_program(scheme)
            made[scheme] = (program, out, target.export(program.path, out, max_length=MAX_LENGTH))
        return made[scheme]

    return make


def compiled(path: Path, **settings: Any) -> Any:
    """A plain OpenVINO session with the settings that the artefact's caveats name."""
    return vendor.Core().compile_model(str(path), "CPU", {**target.PLAIN, "INFERENCE_NUM_THREADS": 1, **settings})


def layers(model: Any) -> list[tuple[str, list[str], str]]:
    """Type, precisions of the inputs, and name of every layer that really runs."""
    found = []
    for node in model.get_runtime_model().get_ordered_ops():
        facts = node.get_rt_info()
        sources = [value.get_source_output().get_node().get_rt_info() for value in node.inputs()]
        inputs = [source["outputPrecisions"].astype(str) for source in sources]
        found.append((facts["layerType"].astype(str), inputs, node.get_friendly_name()))
    return found


def constants(path: Path) -> dict[str, list[np.ndarray]]:
    """Every constant of the file by its element type, read from XML and .bin without the runtime."""
    content, found = (path / "model.bin").read_bytes(), {}
    types = {"i8": np.int8, "f32": np.float32, "f16": np.float16, "i4": np.uint8}
    for layer in ElementTree.parse(path / "model.xml").iter("layer"):
        data = layer.find("data")
        if layer.get("type") != "Const" or data is None or data.get("element_type") not in types:
            continue
        kind, offset, size = data.get("element_type"), int(data.get("offset")), int(data.get("size"))
        raw = np.frombuffer(content[offset : offset + size], types[kind])
        shape = [int(n) for n in data.get("shape").split(",") if n.strip()]
        found.setdefault(kind, []).append(raw if kind == "i4" else raw.reshape(shape))
    return found


QUICK = ("w8a8", "w4")
ALL = [pytest.param(scheme, marks=[] if scheme in QUICK else pytest.mark.slow) for scheme in SCHEMES]


@pytest.mark.parametrize("scheme", ALL)
def test_golden_logits_in_plain_openvino_and_in_the_session(exported, scheme: str) -> None:  # type: ignore[no-untyped-def]
    program, out, facts = exported(scheme)
    inputs, expected = golden_of(program)
    integers = {} if not target.int8_products_saturate() else {target.INTEGERS: "NO"}
    plain = compiled(out / "model.xml", **integers)
    found = np.concatenate([plain(one)["logits"] for one in inputs])
    deltas = np.abs(found - expected).max(1)
    assert deltas.max() <= target.golden_bound(scheme, float(np.ptp(expected)))
    assert (deltas < 1e-5 * np.ptp(expected)).mean() >= (0.5 if scheme == "w8a8" else 1.0)  # ties are rare
    session = target.open_session(out)
    np.testing.assert_array_equal(np.concatenate([session.run(one) for one in inputs]), found)
    assert session.observed["threads"] == 1 and session.observed["inference_precision"] == "f32"
    assert session.observed["integer_layers"] == (scheme == "w8a8" and not target.int8_products_saturate())
    assert facts["size_bytes"] == sum(path.stat().st_size for path in out.iterdir())
    assert sorted(path.name for path in out.iterdir()) == ["model.bin", "model.xml"]
    session.close()


def test_every_quantized_layer_runs_in_integers(exported) -> None:  # type: ignore[no-untyped-def]
    """With the low-precision transformations on, whatever this CPU makes of the products."""
    _, out, _ = exported("w8a8")
    model = compiled(out / "model.xml")
    found = [inputs for kind, inputs, _ in layers(model) if kind == "FullyConnected"]
    assert len(found) == LINEAR_LAYERS
    assert {tuple(inputs[:2]) for inputs in found} <= {("u8", "i8"), ("i8", "i8")}
    in_float = compiled(out / "model.xml", **{target.INTEGERS: "NO"})
    assert {inputs[0] for kind, inputs, _ in layers(in_float) if kind == "FullyConnected"} == {"f32"}


def test_it_tells_which_layers_run_in_integers(exported, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    _, out, _ = exported("w8a8")
    monkeypatch.setattr(target, "int8_products_saturate", lambda: False)
    found = target.kernels(out)
    assert (found["integer"], found["float"], found["how"]) == (LINEAR_LAYERS, 0, "runtime graph")
    monkeypatch.setattr(target, "int8_products_saturate", lambda: True)
    assert target.kernels(out)["integer"] is None and "saturate" in target.kernels(out)["why"]
    _, floats, _ = exported("fp32")
    assert target.kernels(floats)["integer"] == 0 and target.kernels(floats)["float"] == LINEAR_LAYERS


@pytest.mark.parametrize("scheme", ["w8a8", "w8a8-float-output"])
def test_integer_kernels_give_the_programs_integers(scheme: str) -> None:
    """One layer whose weights fit seven bits, so that no kernel saturates, against integers in numpy."""
    random = np.random.default_rng(0)
    weight_q = random.integers(-63, 64, (96, 64)).astype(np.int8)
    w_scale = random.uniform(1e-3, 2e-3, 96).astype(np.float32)
    in_scale, in_zero, out_scale, out_zero = 0.0213, -7, 0.0437, 3
    bias_q = random.integers(-20000, 20000, 96)
    bias = (bias_q * (np.float64(np.float32(in_scale)) * w_scale)).astype(np.float32)
    ops = torch.ops.quantized_decomposed

    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, value in {"weight_q": weight_q, "w_scale": w_scale, "bias": bias}.items():
                self.register_buffer(name, torch.from_numpy(value))
            self.register_buffer("w_zero", torch.zeros(96, dtype=torch.int64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = through(x, in_scale, in_zero)
            weight = ops.dequantize_per_channel(self.weight_q, self.w_scale, self.w_zero, 0, -127, 127, torch.int8)
            y = torch.nn.functional.linear(x, weight, self.bias)
            return through(y, out_scale, out_zero) if scheme == "w8a8" else y

    def through(x: torch.Tensor, scale: float, zero: int) -> torch.Tensor:
        numbers = (scale, zero, -128, 127, torch.int8)
        return ops.dequantize_per_tensor(ops.quantize_per_tensor(x, *numbers), *numbers)

    exported, passes = target.legalise(torch.export.export(Layer(), (torch.zeros(200, 64),)))
    assert passes == ["spell_channels"]
    model = target._compiled(vendor.convert_model(exported), 1, True)
    x_q = random.integers(-128, 128, (200, 64))
    x = ((x_q - in_zero + random.uniform(-0.3, 0.3, x_q.shape)) * in_scale).astype(np.float32)  # far from ties
    total = (x_q - in_zero) @ weight_q.T.astype(np.int64) + bias_q
    assert ("FullyConnected", ["u8", "i8"]) in [(kind, inputs[:2]) for kind, inputs, _ in layers(model)]
    found = model(x)[0]
    if scheme == "w8a8-float-output":
        floats = total * (np.float64(np.float32(in_scale)) * w_scale)
        np.testing.assert_allclose(found, floats, rtol=1e-6, atol=1e-6 * np.ptp(floats))
        return
    steps = total.astype(np.float32) * (np.float32(in_scale) * w_scale / np.float32(out_scale))
    expected = np.clip(np.rint(steps) + out_zero, -128, 127) - out_zero
    assert expected.std() > 10
    np.testing.assert_array_equal(np.rint(found / np.float32(out_scale)), expected)


def test_trained_weights_and_scales_are_in_the_file_bit_for_bit(exported) -> None:  # type: ignore[no-untyped-def]
    program, out, _ = exported("w8a8")
    stored = constants(out)

    def holds(kind: str, expected: np.ndarray) -> bool:
        return any(one.size == expected.size and np.array_equal(one.ravel(), expected.ravel()) for one in stored[kind])

    for name, expected in weights(program).items():
        assert holds("i8", expected["weight_q"]), name
        assert holds("f32", expected["w_scale"]), name
        assert "bias" not in expected or holds("f32", expected["bias"]), name
    numbers = np.concatenate([one.ravel() for one in stored["f32"] if one.size == 1])
    for scale, zero in activation_scales(program):  # a range: 255 steps about the zero point
        for end in ((-128 - zero) * np.float64(scale), (127 - zero) * np.float64(scale)):
            assert np.abs(numbers - end).min() <= 2**-23 * abs(end), (scale, zero, end)


@pytest.mark.parametrize(
    ("scheme", "kind"),
    [
        ("w4", "i4"),
        pytest.param("w8", "i8", marks=pytest.mark.slow),
        pytest.param("fp16", "f16", marks=pytest.mark.slow),
    ],
)
def test_small_weights_are_small_in_the_file(exported, scheme: str, kind: str) -> None:  # type: ignore[no-untyped-def]
    program, out, _ = exported(scheme)
    found = sorted(one.tobytes() for one in constants(out)[kind])
    state = torch.export.load(program.file("program.pt2")).state_dict
    for name, weight in state.items():
        if name.endswith("weight_q"):
            expected = weight.numpy()
            if kind == "i4" and "embeddings" in name:
                continue
            if kind == "i4":
                low, high = expected.reshape(-1, 2).T & 15
                expected = (low | high << 4).astype(np.uint8)
            assert expected.tobytes() in found, name
    largest = max((one.size for one in constants(out)["f32"]), default=0)
    assert largest <= 40 * 64  # positions and scales: no weight was unfolded


def test_any_batch_and_length(exported) -> None:  # type: ignore[no-untyped-def]
    _, out, _ = exported("fp32")
    model, random = compiled(out / "model.xml"), np.random.default_rng(3)
    for size, length in ((1, 2), (3, 7), (4, MAX_LENGTH)):
        ids = random.integers(2, VOCABULARY, (size, length))
        mask = (np.arange(length) < random.integers(2, length + 1, size)[:, None]).astype(np.int64)
        together = model({"input_ids": ids, "attention_mask": mask})["logits"].copy()
        alone = [
            model({"input_ids": row[None, : kept.sum()], "attention_mask": kept[None, : kept.sum()]})["logits"].copy()
            for row, kept in zip(ids, mask, strict=True)
        ]
        np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-4 * np.ptp(together))


@pytest.mark.slow
def test_same_program_same_bytes_in_another_process(exported, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Nothing of this machine stands in them, and the reporting package is not even imported."""
    program, out, _ = exported("w8a8")
    code = (
        "import sys; from pathlib import Path; from edgekd.targets import openvino;"
        f"openvino.export(Path(sys.argv[1]), Path(sys.argv[2]), max_length={MAX_LENGTH});"
        "assert not [name for name in sys.modules if name.startswith('openvino_telemetry.')];"
        "assert sys.modules['openvino_telemetry'] is None"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(program.path), str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for name in ("model.xml", "model.bin"):
        content = (out / name).read_bytes()
        assert hashlib.sha256(content).digest() == hashlib.sha256((tmp_path / name).read_bytes()).digest(), name
        assert not [word for word in machine_words(tmp_path) if word in content]


def test_a_lost_quantizer_is_refused(make_program, tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(target, "_quantizers", lambda model: 0)
    with pytest.raises(BadInput, match="got lost"):
        target.export(make_program("w8a8").path, tmp_path, max_length=MAX_LENGTH)


def test_passes_keep_every_bit(make_program: Callable[..., Any]) -> None:
    """Weights in plain operators, in PyTorch on both sides."""
    for scheme in ("w8", "w4"):
        before = load_program(make_program(scheme).path)
        after, passes = target.legalise(before)
        assert passes
        ids = torch.randint(2, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            found, expected = (one.module()(ids, torch.ones_like(ids)) for one in (after, before))
        assert torch.equal(found, expected), scheme


def test_cpus_with_vnni_do_not_saturate() -> None:
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    if not flags:
        pytest.skip("this system does not tell its CPU's flags")
    assert target.int8_products_saturate() == ("vnni" not in flags and "avx" in flags)


def test_missing_packages_broken_files_and_wrong_shapes_say_so(exported, monkeypatch, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "model.xml").write_text("not a model")
    with pytest.raises(Environment, match="does not open it"):
        target.open_session(tmp_path)
    session = target.open_session(exported("fp32")[1])
    with pytest.raises(BadInput, match="input_ids of shape"):
        session.run({"input_ids": np.ones((2,), np.int64), "attention_mask": np.ones((1, 2), np.int64)})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Environment, match=r"pip install 'edgekd\[openvino\]'"):
        target.export(tmp_path, tmp_path, max_length=8)
