"""All four platforms from a real intent classifier and a real span tagger: generated, checked, built from twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from _material import SHARED, ask_bundle

from edgekd import artifact, registry

TARGETS = {"linux": "onnx", "web": "onnx", "android": "onnx", "ios": "coreml"}
RECIPE = """
name: real
task: {task}
teacher: {{model: {teachers}/{teacher}}}
data: {{train: {data}/{folder}/train.{suffix}, test: {data}/{folder}/test.{suffix}, max_length: 64, limit: 400}}
distill: {{student: {{layers: 6}}, max_steps: 0, baseline: false}}
quantize: {{schemes: [w8a8], method: ptq, calibration_samples: 128}}
export: {{targets: [onnx, coreml]}}
verify: {{slow_samples: 8}}
gate: {{not_slower: false, min_teacher_ratio: 0.9}}
bench: {{enabled: false}}
card: {{license: apache-2.0}}
"""
REAL = {
    "banking77": ("text-classification", "banking77-minilm-l6", "csv"),
    "restaurant8k": ("token-classification", "restaurant8k-minilm-l6-tokcls", "jsonl"),
}


@pytest.fixture(scope="module", params=list(REAL))
def shipped(request: pytest.FixtureRequest, edgekd: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder, (task, teacher, suffix) = request.param, REAL[request.param]
    if not (SHARED / "teachers" / teacher).is_dir():
        pytest.skip(f"no {teacher} in {SHARED / 'teachers'}: set EDGEKD_SHARED")
    pytest.importorskip("coremltools", reason="Core ML's converter is not installed")
    work = tmp_path_factory.mktemp(folder)
    places = {"teachers": SHARED / "teachers", "data": SHARED / "data", "folder": folder}
    recipe = work / "recipe.yaml"
    recipe.write_text(RECIPE.format(task=task, teacher=teacher, suffix=suffix, **places), encoding="utf-8")
    said = edgekd("ship", recipe, "--run-dir", work / "run", "--quiet", timeout=3000)
    assert said.code == 0, said.err[-3000:]
    return folder, work


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("platform", list(TARGETS))
def test_every_platform_is_generated_and_says_the_same_twice(
    shipped: tuple[str, Path], platform: str, edgekd: Any
) -> None:
    folder, work = shipped
    made = []
    for number in (1, 2):
        out = work / f"{platform}-{number}"
        options = ("--platform", platform, "--target", TARGETS[platform], "--scheme", "w8a8", "--out", out)
        said = edgekd("bundle", work / "run", *options, "--name", "real", timeout=600)
        assert said.code == 0, said.err[-2000:]
        assert edgekd("bundle", "verify", out, timeout=300).code == 0
        made.append(artifact.sha256_tree(out))
    assert made[0] == made[1]
    told = artifact.read_json(work / f"{platform}-1" / "bundle.json")
    assert told["task"] == REAL[folder][0]
    assert registry.load("platforms", platform).TARGETS
    if platform == "linux":
        text = "my card was stolen in town" if folder == "banking77" else "a table for four people at 7 pm please"
        (answer,) = ask_bundle(work / "linux-1", text)
        assert answer
