"""The house itself: what may be imported when, that examples and README are true, that no machine leaks in."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edgekd import recipe, registry

ROOT = Path(__file__).resolve().parents[1]
LIGHT = (
    "cli", "outcome", "pipeline", "refusals", "variants", "isolate", "recipe", "artifact", "measurement", "registry",
    "errors", "progress", "doctor",
    "teach.answers", "teach.endpoint",
    "bench.stage", "bench.statistics", "bench.devices", "bench.compare", "bench.formats",
    "report.build", "report.render", "report.plots", "report.latency",
    "bench.transports.ssh", "bench.transports.adb", "bundle.stage", "bundle.linux",
    "verify.gate", "quantize.scheme",
    "targets.onnx", "targets.litert", "targets.coreml", "targets.executorch", "targets.openvino",
    "generators.onnx", "generators.gguf", "generators.executorch", "generators.litert", "generators.coreml",
    "generators.onnxruntime",
    "generators._contract",
)  # fmt: skip
HEAVY = (
    "torch", "numpy", "transformers", "onnx", "onnxruntime", "coremltools", "executorch", "litert_torch", "openvino",
    "pandas", "asyncssh",
)  # fmt: skip


@pytest.mark.parametrize("module", LIGHT)
def test_the_light_half_imports_nothing_heavy(module: str) -> None:
    script = f"import sys, json, edgekd.{module}; print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    found = json.loads(done.stdout)
    if module.startswith(
        ("targets.", "generators.")
    ):  # the modules may use numpy; the vendors come only when a function is called
        found = [name for name in found if name != "numpy"]
    assert found == []


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda p: p.name)
def test_examples_are_valid_recipes(path: Path) -> None:
    made = recipe.load(path)
    registry.load("tasks", made.task)


def test_the_project_names_no_machine() -> None:
    """No absolute path of a developer's machine and no registry host in any file that git holds."""
    files = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT).stdout.split()
    if not files:
        pytest.skip("not a git checkout")
    hosts = tuple(f"://{name}." for name in ("pypi", "files", "registry", "deb", "download"))
    homes = tuple(f"/{name}/" for name in ("work", "root"))
    for name in files:
        path = ROOT / name
        if path.suffix in (".png", ".npz") or not path.is_file():
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        if name != "tests/test_house.py":
            found = [word for word in (*hosts, *homes) if word in text.replace("net" + "work/", "")]
            assert not found, f"{name}: {found}"


def test_every_command_has_an_example_in_its_help(edgekd) -> None:  # type: ignore[no-untyped-def]
    said = edgekd("--help")
    assert said.code == 0
    commands = "ship plan teach distill quantize export verify bench report init schema doctor quickstart".split()
    commands += ["targets", "devices"]
    groups = ["bench run", "bench compare", "bench baseline", "devices list", "devices probe", "devices add"]
    for command in [*commands, *groups]:
        assert command.split()[0] in said.out
        shown = edgekd(*command.split(), "--help")
        assert shown.code == 0 and "Example:" in shown.out, command


def test_unknown_names_list_the_known_ones() -> None:
    from edgekd.errors import BadInput

    with pytest.raises(BadInput, match="Known: coreml, executorch, litert, onnx, openvino"):
        registry.load("targets", "tensorflow")
    assert "text-classification" in registry.names("tasks")


def test_targets_and_schema_speak_json(edgekd) -> None:  # type: ignore[no-untyped-def]
    assert {t["name"] for t in edgekd("targets", "--json").json["targets"]} >= {
        "onnx",
        "litert",
        "coreml",
        "executorch",
        "openvino",
    }
    assert edgekd("schema").json["title"] == "Recipe"
    assert edgekd("doctor", "--json").json["checks"]
