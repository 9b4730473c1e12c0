"""The whole way on a tiny task: `edgekd ship` as a user calls it, and what it leaves, opened with plain runtimes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgekd import artifact

TARGETS = ("onnx", "litert", "coreml", "executorch")
ALL = ("--set", "export.targets=[onnx, litert, coreml, executorch]")
SUFFIXES = {"onnx": ".onnx", "litert": ".tflite", "coreml": ".mlpackage", "executorch": ".pte"}


pytestmark = pytest.mark.timeout(1800)  # eight conversions on two busy cores


@pytest.fixture(scope="module")
def shipped(tiny, edgekd, tmp_path_factory) -> tuple[Path, dict]:  # type: ignore[no-untyped-def]
    """One run of all targets and schemes, and its report."""
    run = tmp_path_factory.mktemp("shipped") / "run"
    said = edgekd("ship", tiny.folder / "recipe.yaml", "--run-dir", run, *ALL, "--json", timeout=1500)
    assert said.code == 0, said.err[-3000:]
    return run, said.json


def test_the_report_has_the_names_others_rely_on(shipped) -> None:  # type: ignore[no-untyped-def]
    run, report = shipped
    assert report["schema_version"] == 1
    assert report == json.loads((run / "report.json").read_text())
    for model in ("teacher", "student", "baseline"):
        assert 0.9 <= report[model]["metrics"]["accuracy"] <= 1.0
        assert "macro_f1" in report[model]["metrics"]
    names = {(one["target"], one["scheme"]) for one in report["artifacts"]}
    assert names == {(target, scheme) for target in TARGETS for scheme in ("fp32", "w8a8")}
    for entry in report["artifacts"]:
        assert entry["verdict"] == "pass", entry
        assert entry["metrics"]["accuracy"] >= 0.9
        assert entry["size_bytes"] > 0
        assert entry["agreement"]["program"] >= 0.95
        path = run / "artifacts" / f"{entry['target']}-{entry['scheme']}" / f"model{SUFFIXES[entry['target']]}"
        assert path.exists() and Path(entry["path"]).name == path.name
        if entry["target"] != "coreml":
            assert entry["latency"]["p50_ms"] > 0


def test_quantized_files_are_smaller(shipped) -> None:  # type: ignore[no-untyped-def]
    sizes = {(a["target"], a["scheme"]): a["size_bytes"] for a in shipped[1]["artifacts"]}
    for target in TARGETS:
        assert sizes[target, "w8a8"] < sizes[target, "fp32"]


def test_every_artifact_is_whole_and_carries_what_an_app_needs(shipped) -> None:  # type: ignore[no-untyped-def]
    run, _ = shipped
    for folder in sorted((run / "artifacts").iterdir()):
        made = artifact.load(folder)
        assert artifact.check(made) == []
        for name in ("tokenizer.json", "labels.json", "golden.json"):
            assert name in made.files
        assert made.facts["inputs"] and made.facts["outputs"]


def test_a_second_ship_runs_nothing_again(shipped, tiny, edgekd) -> None:  # type: ignore[no-untyped-def]
    run, first = shipped
    plan = edgekd("plan", tiny.folder / "recipe.yaml", "--run-dir", run, *ALL, "--json").json
    assert {step["status"] for step in plan["steps"]} == {"hit"}
    said = edgekd("ship", tiny.folder / "recipe.yaml", "--run-dir", run, *ALL, "--no-bench", "--json")
    assert said.code == 0
    assert "made" not in said.err and "start" not in said.err
    assert [a["metrics"] for a in said.json["artifacts"]] == [a["metrics"] for a in first["artifacts"]]
    other = ("--set", "quantize.steps=7", "--json")
    changed = edgekd("plan", tiny.folder / "recipe.yaml", "--run-dir", run, *ALL, *other).json
    runs = {step["step"] for step in changed["steps"] if step["status"] == "run"}
    assert runs == {
        "quantize-w8a8",
        *(f"{stage}-{target}-w8a8" for stage in ("export", "verify") for target in TARGETS),
    }
    without = ("--set", "distill.baseline=false", "--json")
    plan = edgekd("plan", tiny.folder / "recipe.yaml", "--run-dir", run, *ALL, *without).json
    assert {step["status"] for step in plan["steps"]} == {"hit"}, "leaving the baseline out keeps the student"


def test_every_artifact_can_be_explained(shipped, edgekd) -> None:  # type: ignore[no-untyped-def]
    run, _ = shipped
    found = edgekd("explain", run, "onnx-w8a8", "litert-w8a8", "--json", "--quiet")
    assert found.code == 0, found.err
    artefacts = found.json["artefacts"]
    assert set(artefacts) == {"onnx-w8a8", "litert-w8a8"}
    rows = {row["what"]: row for row in artefacts["onnx-w8a8"]}
    assert rows["numbers of the Program in the file"]["value"] == "all"
    assert "optimised graph" in rows["integer layers run in integers"]["value"]
    assert any(what.startswith("time in ") and "ms" in row["value"] for what, row in rows.items())
    wrong = edgekd("explain", run, "onnx-w9")
    assert wrong.code == 2 and "no artefact 'onnx-w9'" in wrong.err and "litert-w8a8" in wrong.err


def test_the_report_can_be_made_anew_and_is_one_file(shipped, edgekd) -> None:  # type: ignore[no-untyped-def]
    run, _ = shipped
    said = edgekd("report", run, "--json")
    assert said.code == 0 and said.json["artifacts"]
    page = (run / "report.html").read_text()
    assert "src=" not in page.replace('src="data:', "") and "<link" not in page
    assert "onnx" in (run / "report.md").read_text()


PLAIN = {
    "onnx": """
import onnxruntime
options, flags = onnxruntime.SessionOptions(), open("/proc/cpuinfo").read()
if "flags" in flags and "vnni" not in flags:  # an x86 CPU: as the artefact's caveat says
    options.add_session_config_entry("session.x64quantprecision", "1")
session = onnxruntime.InferenceSession(path + "/model.onnx", options, providers=["CPUExecutionProvider"])
run = lambda ids, mask: session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
""",
    "litert": """
from ai_edge_litert.interpreter import Interpreter
it = Interpreter(path + "/model.tflite"); it.allocate_tensors()
inputs, output = it.get_input_details(), it.get_output_details()[0]
named = {name: next(d for d in inputs if name in d["name"]) for name in ("input_ids", "attention_mask")}
def run(ids, mask):
    for name, value in (("input_ids", ids), ("attention_mask", mask)):
        fixed = named[name]["shape"][1]
        padded = np.zeros((1, fixed), named[name]["dtype"]); padded[:, :value.shape[1]] = value
        it.set_tensor(named[name]["index"], padded)
    it.invoke()
    found = it.get_tensor(output["index"])
    scale, zero = output["quantization"]
    return (found.astype(np.float32) - zero) * scale if found.dtype == np.int8 else found
""",
    "executorch": """
import torch
from executorch.runtime import Runtime
method = Runtime.get().load_program(path + "/model.pte").load_method("forward")
run = lambda ids, mask: method.execute([torch.from_numpy(ids), torch.from_numpy(mask)])[0].numpy()
""",
}


@pytest.mark.parametrize("scheme", ["fp32", "w8a8"])
@pytest.mark.parametrize("target", list(PLAIN))
def test_artifacts_open_without_edgekd(shipped, target: str, scheme: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    shutil.copytree(shipped[0] / "artifacts" / f"{target}-{scheme}", tmp_path / "artifact")
    script = f"""
import json, sys
import numpy as np
path = sys.argv[1]
{PLAIN[target]}
golden = json.load(open(path + "/golden.json"))
worst, same = 0.0, True
inputs, outputs = golden["inputs"], golden["outputs"]
for ids, mask, logits in zip(inputs["input_ids"], inputs["attention_mask"], outputs["logits"]):
    found = run(np.array([ids], np.int64), np.array([mask], np.int64))[0]
    worst = max(worst, float(np.abs(found - np.array(logits, np.float32)).max()))
    same &= int(found.argmax()) == int(np.argmax(logits))
assert not [name for name in sys.modules if name.startswith("edgekd")]
print(json.dumps([worst, same]))
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", script, str(tmp_path / "artifact")], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-2000:]
    worst, same = json.loads(done.stdout.strip().splitlines()[-1])
    assert same
    assert worst <= (1e-3 if scheme == "fp32" else 0.5)


@pytest.mark.slow
def test_length_buckets_all_the_way(tiny, edgekd, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Planned, exported, verified, timed at the length of the text, told; other targets are not made again."""
    asked = ["--run-dir", tmp_path / "run", "--set", "export.targets=[onnx, litert]", "--json"]
    recipe = tiny.folder / "recipe.yaml"
    said = edgekd("ship", recipe, *asked, "--set", "export.buckets=2", timeout=1500)
    assert said.code == 0, said.err[-3000:]
    for entry in said.json["artifacts"]:
        if entry["target"] == "onnx":
            assert entry["lengths"] is None and entry["padding"] is None
            continue
        short, longest = entry["lengths"]
        assert short < longest == 16 and entry["padding"]["share"] < entry["padding"]["planned"]["1"]["share"]
        assert entry["golden"]["lengths"][str(short)] > 0
        fed = {row["tokens"]: row["fed_tokens"] for row in entry["latencies"]}
        assert all(sizes == [short if tokens <= short else longest] for tokens, sizes in fed.items())
    planned = edgekd("plan", recipe, *asked, "--set", "export.buckets=2").json["steps"]
    told = next(step["why"] for step in planned if step["step"] == "export-litert-w8a8")
    assert told.startswith(f"{short}, 16 tokens: ") and "padded tokens for each real one" in told
    planned = edgekd("plan", recipe, *asked, "--set", "export.buckets=3").json["steps"]
    runs = {step["step"] for step in planned if step["status"] == "run"}
    assert runs == {f"{stage}-litert-{scheme}" for stage in ("export", "verify") for scheme in ("fp32", "w8a8")}
