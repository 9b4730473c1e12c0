"""Several lengths in one .tflite file: each gives the Program's logits, and the weights are stored once."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import _programs
import _tiny
import numpy as np
import pytest
import torch
from _programs import MAX_LENGTH, golden_of, rows

from edgekd.artifact import Artifact
from edgekd.errors import BadInput
from edgekd.quantize.program import integer_module
from edgekd.targets import _litert_passes as passes
from edgekd.targets import litert as target
from edgekd.targets._contract import load_program
from edgekd.verify import faithful

interpreters = pytest.importorskip("ai_edge_litert.interpreter")
pytest.importorskip("litert_torch")

SHORTER = [8, 14]
NO_TIES = 1e-5  # of the range of the logits: what sums in another order may differ by


def lengths_of(content: bytes) -> dict[str, int]:
    """Tokens by signature."""
    interpreter = interpreters.Interpreter(model_content=content, num_threads=1)
    signatures = interpreter.get_signature_list()
    runners = {name: interpreter.get_signature_runner(name) for name in signatures}
    return {name: int(one.get_input_details()["input_ids"]["shape"][1]) for name, one in runners.items()}


def padded(row: dict[str, np.ndarray], size: int) -> dict[str, np.ndarray]:
    return {name: np.pad(value, ((0, 0), (0, size - value.shape[1]))) for name, value in row.items()}


def test_merged_graphs_share_their_constants_and_give_the_same_bits() -> None:
    litert_torch, random = pytest.importorskip("litert_torch"), np.random.default_rng(0)
    weight = passes.Stored("lifted_0", random.integers(-127, 128, (96, 64)).astype(np.int8), np.ones(96), "dynamic")

    class Layer(torch.nn.Module):
        def forward(self, x: torch.Tensor, lifted_0: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.linear(x, lifted_0)

    rows = {name: random.normal(size=(1, size, 64)).astype(np.float32) for name, size in (("long", 9), ("short", 4))}
    contents = {}
    for name, x in rows.items():
        sample = {"x": torch.from_numpy(x), "lifted_0": torch.zeros(96, 64)}
        plain = litert_torch.convert(Layer().eval(), sample_kwargs=sample).model_content()
        contents[name] = passes.store_weights(plain, [weight])
    merged = passes.merge(contents)
    held = [bytes(one.data) for one in passes.parsed(merged).buffers if one.data is not None]
    assert held.count(weight.values.tobytes()) == 1 and len(held) == len(set(held))
    interpreter = interpreters.Interpreter(model_content=merged, num_threads=1)
    for part, (name, x) in zip(passes.separate(merged), rows.items(), strict=True):
        runners = [interpreters.Interpreter(model_content=one).get_signature_runner() for one in (contents[name], part)]
        expected, alone = (next(iter(one(x=x).values())) for one in runners)
        (found,) = interpreter.get_signature_runner(name)(x=x).values()
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(alone, expected)
        assert np.ptp(found) > 0 and found.shape == (1, x.shape[1], 96)
    assert list(passes.separate(contents["long"])) == [contents["long"]]
    assert passes.merge({"any": merged}) == merged


@pytest.mark.slow
def test_two_lengths_of_a_tiny_program(tmp_path: Path) -> None:
    program = _tiny.make_program(tmp_path / "program", "w8a8", test=_tiny.texts(12))
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir(), two.mkdir()
    facts = target.export(program.path, two, max_length=_tiny.MAX_LENGTH, shorter=[6])
    content = (two / "model.tflite").read_bytes()
    assert facts["lengths"] == [6, _tiny.MAX_LENGTH] and facts["max_length"] == _tiny.MAX_LENGTH
    assert facts["inputs"][0]["shape"] == [1, _tiny.MAX_LENGTH]
    assert lengths_of(content) == {"serving_default": _tiny.MAX_LENGTH, "tokens_6": 6}
    alone = {length: part for length, part in zip((16, 6), passes.separate(content), strict=True)}
    assert [lengths_of(part) for part in alone.values()] == [{"serving_default": 16}, {"tokens_6": 6}]

    session = target.open_session(two)
    assert session.observed["lengths"] == [6, _tiny.MAX_LENGTH] and session.observed["provider"] == "XNNPACK"
    inputs, expected = golden_of(program)
    short = [row for row in inputs if row["input_ids"].shape[1] <= 6]
    assert short and len(short) < len(inputs)
    found = np.concatenate([session.run(row) for row in inputs])
    assert (np.abs(found - expected).max(1) < NO_TIES * np.ptp(expected)).mean() >= 0.9
    for row in short:  # the same bits in the next length
        np.testing.assert_array_equal(session.run(row), session.run(padded(row, 7)))
    with pytest.raises(BadInput, match="17 tokens; the artefact takes at most 16"):
        session.run(padded(inputs[0], 17))
    session.close()

    state = load_program(program.path)
    proof = faithful.faithful(state, two / "model.tflite", lengths=facts["lengths"])
    assert proof["missing"] == [] and proof["arrays"] > 10
    kernels = faithful.accelerated(state, target, two)
    assert kernels["accelerated"] is True and kernels["integer"] == kernels["wanted"]
    (one / "model.tflite").write_bytes(alone[16])
    shutil.copy(program.path / "golden.json", two)
    whole = target.for_mediapipe(two, task="text-classification", name="tiny", words=["a"], labels=["b"])
    assert lengths_of(whole) == {"serving_default": 16} and len(passes.parsed(whole).subgraphs) == 1
    size = faithful.stored_size(state, two / "model.tflite", lengths=facts["lengths"])
    single = faithful.stored_size(state, one / "model.tflite", lengths=[16])
    assert single["bytes"] < size["bytes"] <= size["limit"] and single["bytes"] <= single["limit"]


@pytest.fixture(scope="module")
def exported(make_program: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    def made(scheme: str) -> tuple[Artifact, Path, dict[str, Any]]:
        program, out = make_program(scheme), tmp_path_factory.mktemp(f"buckets-{scheme}")
        return program, out, target.export(program.path, out, max_length=MAX_LENGTH, shorter=SHORTER)

    return made


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["fp32", "w8a8", "w8a8-dynamic", "w4"])
def test_every_length_gives_the_programs_logits(exported: Any, scheme: str) -> None:
    program, out, facts = exported(scheme)
    state = load_program(program.path)
    module, session = integer_module(state), target.open_session(out)
    texts = [{k: np.array([v], np.int64) for k, v in row.items()} for row in rows(30, seed=2)]
    expected = np.concatenate([_programs_logits(module, row) for row in texts])
    reach = float(np.ptp(expected))
    same = []
    for size in facts["lengths"]:
        fitting = [index for index, row in enumerate(texts) if row["input_ids"].shape[1] <= size]
        found = np.concatenate([session.run(padded(texts[index], size)) for index in fitting])
        delta = np.abs(found - expected[fitting])
        assert delta.max() <= target.golden_bound(scheme, reach)
        same += list(delta.max(1) < NO_TIES * reach)
    assert np.mean(same) >= (1.0 if scheme in target.FLOATS else 0.4 if scheme == "w8a8-dynamic" else 0.8)
    signature = [{"name": name, "dtype": "int64", "shape": ["batch", "sequence"]} for name in texts[0]]
    plain = [{name: value[0] for name, value in row.items()} for row in texts]
    alone = [session.run(row)[0] for row in texts]
    moved = faithful.invariance(
        session, signature, plain, alone, reach=reach, length=MAX_LENGTH, lengths=facts["lengths"], batched=False
    )
    golden = {"bound": target.golden_bound(scheme, reach), "logit_range": reach}
    assert faithful.judged(moved, golden, faithful.integer_layers(state))["passed"] is True
    session.close()
    assert faithful.faithful(state, out / "model.tflite", lengths=facts["lengths"])["missing"] == []
    size = faithful.stored_size(state, out / "model.tflite", lengths=facts["lengths"])
    assert size["bytes"] <= size["limit"]
    kernels = faithful.accelerated(state, target, out)
    assert kernels["accelerated"] is (True if "a8" in scheme else None)


def _programs_logits(module: Any, row: dict[str, np.ndarray]) -> np.ndarray:
    with torch.inference_mode():
        logits: np.ndarray = module(*(torch.from_numpy(value) for value in row.values())).numpy()
    return logits


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["w8a8", "w4"])
def test_weights_are_stored_once_and_the_bytes_are_the_same_again(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, size in {"hidden_size": 256, "intermediate_size": 1024, "vocab_size": 8000}.items():
        monkeypatch.setitem(_programs.SIZES, name, size)
    program = _programs.make(tmp_path / "program", scheme)
    contents = []
    for shorter in ([], SHORTER, SHORTER):
        target.export(program.path, tmp_path, max_length=MAX_LENGTH, shorter=shorter)
        contents.append((tmp_path / "model.tflite").read_bytes())
    assert len(contents[1]) < 1.1 * len(contents[0])
    twice = passes.parsed(contents[1])
    twice.buffers += [buffer for buffer in twice.buffers if buffer.data is not None]
    state, lengths = load_program(program.path), [*SHORTER, MAX_LENGTH]
    size = faithful.stored_size(state, tmp_path / "model.tflite", lengths=lengths)
    assert size["bytes"] <= size["limit"]
    (tmp_path / "model.tflite").write_bytes(passes.written(twice))
    size = faithful.stored_size(state, tmp_path / "model.tflite", lengths=lengths)
    assert size["bytes"] > size["limit"]
    digests = [hashlib.sha256(content).hexdigest() for content in contents]
    assert digests[1] == digests[2] != digests[0]
