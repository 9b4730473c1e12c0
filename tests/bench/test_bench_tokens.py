"""Text on devices: what a runner writes, what the bench makes of it, and what breaks."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import _texts
import pytest
import yaml
from _texts import Texts
from test_browser import needs_browser
from test_ssh import Server, server, started

from edgekd import artifact, measurement, recipe, refusals, registry
from edgekd.bench import devices, harness, tokens
from edgekd.bench.transports.local import Local
from edgekd.errors import BadInput, DeviceError
from edgekd.verify import gate

__all__ = ["server", "started"]  # fixtures

NEEDS = {"gguf": "llama_cpp", "onnx": "onnxruntime_genai", "litert": "litert_torch", "executorch": "executorch"}
SLOW = pytest.mark.slow  # converters that take their time
DECODERS = ["gguf", "onnx", "litert", pytest.param("executorch", marks=SLOW)]
Exported = Callable[[str], artifact.Artifact]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Texts:
    return Texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Texts:
    return Texts(tmp_path_factory.mktemp("pairs"), "text2text-generation", "w8")


@pytest.fixture(scope="module")
def exported(texts: Texts, pairs: Texts) -> Exported:
    """An artefact by its target, made once."""
    made: dict[str, artifact.Artifact] = {}

    def find(target: str) -> artifact.Artifact:
        if target in NEEDS:
            pytest.importorskip(NEEDS[target])
        if target not in made:
            made[target] = (pairs if target == "onnxruntime" else texts).export(target)
        return made[target]

    return find


def opened(transport: Any, device: Any, export: artifact.Artifact, folder: Path) -> tokens._Worker:
    """A worker with this artefact, as the bench opens it."""
    target, scheme = export.facts["target"], export.facts["scheme"]
    inputs = artifact.Inputs(parents={f"{target}-{scheme}": export})
    one = tokens._asked(inputs, f"{target}-{scheme}", folder)
    assert one.error is None
    tokens._push(transport, device, one)
    return tokens._Worker(transport, device, one, 1, 60)


@pytest.mark.parametrize("target", [*DECODERS, "onnxruntime"])
def test_a_runner_writes_what_the_generator_writes(target: str, exported: Exported, tmp_path: Path) -> None:
    """Token by token, whatever was asked before; and it says what the wire says."""
    export = exported(target)
    transport = Local("here")
    worker = opened(transport, devices.load("local"), export, tmp_path)
    session = registry.load("generators", target).open_session(export.path)
    prompts = artifact.read_json(export.path / "golden.json")["prompts"]
    assert worker.opened["observed"]["context"] == min(1024, export.facts["context"])
    assert worker.opened["observed"]["runtime"] == target and worker.opened["observed"]["threads"] == 1
    for prompt in [*prompts, [5], prompts[0]]:
        wanted = _texts.written(session, prompt, 12)
        answer = worker.ask("write", ids=prompt, count=12)
        assert answer["tokens"] == wanted and len(answer["samples_ns"]) == 12 and answer["first_ns"] > 0
        assert worker.ask("read", ids=prompt)["token"] == wanted[0]
        if target != "onnxruntime":  # its prompt is a source: another one for every token
            assert worker.ask("read", ids=[*prompt, *wanted[:5]])["token"] == wanted[5]
    assert worker.ask("memory")["memory"]["peak_above_bytes"] > 0
    with pytest.raises(DeviceError, match=rf"the cache holds {worker.opened['observed']['context']}"):
        worker.ask("write", ids=prompts[0], count=2000)
    worker.close()
    session.close()
    transport.close()


def test_what_a_runner_refuses(exported: Exported, runner: Any) -> None:
    file = str(exported("onnx").path / "model.onnx")
    job = {"schema": "edgekd/runner/1", "phase": "write", "runtime": "onnx", "model": file, "threads": 1}
    request = {"schema": "edgekd/runner/1", "request": "write", "ids": [5], "count": 2}
    for wrong, kind, match in (
        ({"runtime": "openvino"}, "unavailable", "no runtime 'openvino' writes text here"),
        ({"context": 0}, "job", "context is not a positive whole number"),
        ({"rows": []}, "job", "unknown: rows"),
        ({"model": "nowhere"}, "job", "no such model file"),
    ):
        code, (found,) = runner({**job, **wrong})
        assert code == 1 and found["error"]["kind"] == kind and match in found["error"]["message"]
    for wrong, match in (
        ({"count": 0}, "count is not"),
        ({"ids": []}, "ids is not"),
        ({"ids": [1.5]}, "ids is not"),
        ({"request": "block"}, "unknown request 'block'"),
        ({"more": 1}, "unknown: more"),
        ({"ids": [1] * 7, "count": 2}, "9 tokens; the cache holds 8"),
    ):
        code, (_, found) = runner({**job, "context": 8}, {**request, **wrong})
        assert code == 1 and found["error"]["kind"] == "job" and match in found["error"]["message"]
    code, (_, first, second) = runner({**job, "context": 8}, {**request, "count": 7}, request)
    assert code == 0 and len(first["tokens"]) == 7 and first["tokens"][:2] == second["tokens"]


@pytest.mark.parametrize("target", DECODERS)
def test_a_cache_is_no_longer_than_asked(target: str, exported: Exported, runner: Any, tmp_path: Path) -> None:
    export = exported(target)
    model, files = tokens._files(target, export.path, export.facts["file"], "m", tmp_path)
    job = {"schema": "edgekd/runner/1", "phase": "write", "runtime": target, "model": str(files[model]), "threads": 1}
    prompt = artifact.read_json(export.path / "golden.json")["prompts"][0][:8]
    request = {"schema": "edgekd/runner/1", "request": "write", "ids": prompt, "count": 4}
    for context in (12, 2048):
        held = context if target == "onnx" else min(context, export.facts["context"])  # its caller has to know
        _, (opened, answer) = runner({**job, "context": context}, request)
        assert opened["observed"]["context"] == held and len(answer["tokens"]) == 4
    code, (_, found) = runner({**job, "context": 12}, {**request, "count": 5})
    assert code == 1 and found["error"]["message"] == "13 tokens; the cache holds 12"


def test_the_bench_of_this_host(texts: Texts, exported: Exported, tmp_path: Path) -> None:
    exports = [exported("gguf"), exported("onnx"), exported("litert")]
    facts = texts.bench(exports, tmp_path)
    lengths = {"prompt of 16": 16, "prompt of 128": 128, "writing": 1}
    for one in exports:
        target, rows = one.facts["target"], {}
        for row in facts["summaries"]:
            if row["target"] == target:
                rows[row["length"]] = row
        assert rows.keys() == lengths.keys() - ({"prompt of 128"} if target == "litert" else set())  # its cache: 48
        for length, row in rows.items():
            assert row["error"] is None and row["runs"] >= 2 and row["load_ms"] > 0 and row["peak_mb"] > 0
            assert row["tokens_per_second"] == pytest.approx(1e3 * lengths[length] / row["p50_ms"], rel=1e-2)
            assert row["golden"]["differ"] == 0 and row["golden"]["agreement"] == 1 and row["golden"]["equal"] > 32
            assert "golden_differs" not in row["flags"] and "backend_differs" not in row["flags"]
    assert facts["failed"] == [] and facts["left_out"] == []
    lines = measurement.read(tmp_path / "measurements.jsonl")
    assert {one.observed["runtime"] for one in lines} == {"gguf", "onnx", "litert"}
    assert all(len(one.blocks) == len(one.latency_ns) and one.blocks[0]["wall_ns"] > 0 for one in lines)


@pytest.mark.parametrize("context", [10, 20])
def test_a_short_cache_is_written_to_as_well(
    context: int, texts: Texts, exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "CONTEXT", context)  # the longest that is asked for
    rows = texts.bench([exported("onnx")], tmp_path)["summaries"]
    assert [row["length"] for row in rows] == ["prompt of 16", "writing"][context < 16 :]
    assert all(row["error"] is None and row["runs"] >= 2 and row["load_ms"] > 0 for row in rows)
    assert rows[0]["golden"]["differ"] == 0


def test_the_bench_of_a_text_that_becomes_another(pairs: Texts, exported: Exported, tmp_path: Path) -> None:
    facts = pairs.bench([exported("onnxruntime")], tmp_path)
    assert {row["error"] for row in facts["summaries"]} == {None} and len(facts["summaries"]) == 4
    assert facts["summaries"][0]["golden"]["differ"] == 0 and facts["summaries"][0]["golden"]["equal"] > 32


def written_profile(folder: Path, name: str, **values: Any) -> str:
    plain = {"name": name, "transport": "local", "runner": "linux/python/edgekd_runner.py", **values}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(plain))
    return str(folder / f"{name}.yaml")


def test_the_bench_over_ssh(server: Server, texts: Texts, exported: Exported, tmp_path: Path) -> None:
    """The files cross, those of a litert artefact without LiteRT-LM's wrapping; nothing is left there but the cache."""
    there = server.profile().model_dump(mode="json", exclude_defaults=True) | {"runtimes": ["onnx", "litert"]}
    profile = written_profile(tmp_path, **there)
    facts = texts.bench([exported("onnx"), exported("litert"), exported("gguf")], tmp_path / "out", profile)
    assert {(row["target"], row["device"], row["error"]) for row in facts["summaries"]} == {
        ("onnx", "there", None),
        ("litert", "there", None),
    }
    assert {row["golden"]["agreement"] for row in facts["summaries"]} == {1}
    assert facts["left_out"] == ["gguf-w4"] and facts["environments"]["there"]["cores"] == os.cpu_count()
    assert not list((server.folder / "device").glob("run-*"))


def test_a_runner_that_is_killed_loses_its_artefact_alone(
    texts: Texts, exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[int] = []
    block = tokens._Worker.block

    def kill(self: Any, size: int, prompt: Any) -> Any:
        if size == tokens.WRITE and self.opened["observed"]["runtime"] == "gguf" and not killed:
            killed.append(self._worker._process.pid)
            os.kill(killed[0], signal.SIGKILL)
        return block(self, size, prompt)

    monkeypatch.setattr(tokens._Worker, "block", kill)
    facts = texts.bench([exported("gguf"), exported("onnx")], tmp_path)
    assert {row["target"]: row["error"] for row in facts["summaries"]}["onnx"] is None
    assert len(facts["failed"]) == 1 and "gguf-w4: " in facts["failed"][0] and "signal 9" in facts["failed"][0]
    kept = [one for one in measurement.read(tmp_path / "measurements.jsonl") if one.target == "gguf"]
    assert any(one.samples_ns() for one in kept)  # what was known before


def test_what_has_no_runner_there_costs_nothing_else(texts: Texts, exported: Exported, tmp_path: Path) -> None:
    native = written_profile(tmp_path, "native-board", runner="native")
    broken = texts.bench([exported("gguf")], tmp_path / "out", f"{native}, local")
    errors = {row["device"]: row["error"] for row in broken["summaries"]}
    assert errors["local"] is None and "not measured: there is no native runner for gguf" in errors["native-board"]
    gone = written_profile(tmp_path, "gone", transport="ssh", options={"host": "127.0.0.1", "port": 9})
    facts = texts.bench([exported("gguf")], tmp_path / "out", f"{gone}, local")
    errors = {row["device"]: row["error"] for row in facts["summaries"]}
    assert errors["local"] is None and errors["gone"]
    other = texts._sealed("coreml-w4", {"target": "coreml", "scheme": "w4", "file": "golden.json"}, texts.made)
    facts = texts.bench([other, exported("gguf")], tmp_path / "out")
    assert {row["target"]: row["error"] is None for row in facts["summaries"]} == {"coreml": False, "gguf": True}
    assert "not measured: no runtime 'coreml' writes text here" in facts["failed"][0]


def test_by_hand_is_refused_when_the_plan_is_made(tmp_path: Path) -> None:
    profile = written_profile(tmp_path, "far", transport="file", options={"folder": str(tmp_path / "far")})
    plain = {
        "task": "text-generation", "teacher": {"model": "m"}, "data": {"train": "x.txt"},
        "export": {"targets": ["gguf"]}, "quantize": {"schemes": ["w4"]}, "bench": {"devices": [profile]},
    }  # fmt: skip
    with pytest.raises(BadInput, match="'far' answers by hand"):
        refusals.check(recipe.parse(json.dumps(plain)))


def test_another_models_text_is_noticed(texts: Texts, exported: Exported, tmp_path: Path) -> None:
    """The flag, and a gate that fails; a lead within two bounds is no difference."""
    export = exported("gguf")
    changed = artifact.read_json(export.path / "golden.json")
    changed["tokens"] = [[(token + 1) % 300 for token in some] for some in changed["tokens"]]
    facts: dict[str, Any] = {}
    for name, margin in (("tie", 0.1), ("differs", 5.0)):
        changed["margins"] = [[margin] * len(some) for some in changed["margins"]]
        other = texts._sealed(f"{name}-w4", dict(export.facts), export.path)
        (other.path / "golden.json").write_text(json.dumps(changed))
        facts[name] = texts.bench([other], tmp_path)["summaries"][0]
    assert facts["tie"]["golden"]["differ"] == 0 and facts["tie"]["golden"]["ties"] > 32
    assert facts["tie"]["flags"].count("golden_differs") == 0
    assert facts["differs"]["golden"]["agreement"] == 0 and "golden_differs" in facts["differs"]["flags"]
    made = recipe.parse("name: x\n").gate
    (check,) = gate._answers(made, "perplexity", {}, facts["differs"])
    assert check.name == "agreement with the Program on local" and check.passed is False
    (check,) = gate._answers(made, "perplexity", {}, facts["tie"])
    assert check.passed is True


def test_golden_prompts_are_continued_for_so_long_and_whole() -> None:
    golden = {"prompts": [[1], [2]], "tokens": [[5, 6], [7, 8]], "margins": [[9.0, 9.0], [9.0, 9.0]]}
    asked: Any = SimpleNamespace(tie=1.0, golden=golden, context=64, target="onnx")
    says: Any = SimpleNamespace(ask=lambda *_, ids, count: {"tokens": golden["tokens"][ids[0] - 1][-count:]})
    assert tokens._continued(asked, says, 60)["samples"] == 2
    assert tokens._continued(asked, says, -1) == {
        "samples": 0, "tokens": 0, "equal": 0, "ties": 0, "differ": 0, "agreement": 1.0
    }  # fmt: skip
    short: Any = SimpleNamespace(ask=lambda *_, **__: {"tokens": [5]})
    with pytest.raises(DeviceError, match="wrote 1 tokens of 2"):
        tokens._continued(asked, short, 60)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not hand a peak on")
def test_a_workers_peak_is_its_own(exported: Exported, tmp_path: Path) -> None:
    """A process that was started by a large one does not have that one's memory."""
    held = bytearray(b"x") * 400_000_000  # touched, so resident
    transport = Local("here")
    worker = opened(transport, devices.load("local"), exported("gguf"), tmp_path)
    assert worker.ask("memory")["memory"]["peak_bytes"] < 0.5 * len(held)
    worker.close()
    transport.close()


def test_answers_that_lack_something() -> None:
    for document, lacks in (
        ({"answer": "write", "tokens": [1]}, "first_ns"),
        ({"answer": "memory"}, "memory"),
        ({"phase": "write", "load_ns": 1}, "observed"),
    ):
        with pytest.raises(DeviceError, match=f"lacks {lacks}"):
            harness.parsed(json.dumps({"schema": "edgekd/runner/1", **document}).encode(), b"", 0)


@needs_browser
@pytest.mark.parametrize("target", ["onnx", pytest.param("onnxruntime", marks=SLOW)])
def test_the_bench_of_a_browser(target: str, texts: Texts, pairs: Texts, exported: Exported, tmp_path: Path) -> None:
    """The tokens of onnxruntime-web are the Program's, ties aside."""
    made = pairs if target == "onnxruntime" else texts
    facts = made.bench([exported(target)], tmp_path, "chromium")
    for row in facts["summaries"]:
        assert row["error"] is None and row["runs"] >= 2 and row["load_ms"] > 0 and row["peak_mb"] > 0
        assert row["golden"]["differ"] == 0 and row["golden"]["equal"] > 32
        assert not {"golden_differs", "backend_differs", "threads_differ"} & set(row["flags"])


@needs_browser
@SLOW
def test_what_a_page_refuses(exported: Exported, tmp_path: Path) -> None:
    device = devices.load("chromium")
    transport = registry.load("transports", "browser").connect(device)
    try:
        with pytest.raises(DeviceError, match="not measured: no runtime 'litert' writes text in a browser"):
            opened(transport, device, exported("litert"), tmp_path)
        worker = opened(transport, device, exported("onnx"), tmp_path)
        assert worker.opened["observed"]["context"] == 256
        with pytest.raises(DeviceError, match="257 tokens; the cache holds 256"):
            worker.ask("write", ids=[1] * 56, count=201)
        for request, given in (("read", {"ids": []}), ("write", {"ids": [1]}), ("block", {})):
            worker = opened(transport, device, exported("onnx"), tmp_path)
            with pytest.raises(DeviceError, match="the runner failed: "):
                worker.ask(request, **given)
    finally:
        transport.close()
