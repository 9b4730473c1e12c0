"""A step in a process of its own: what kills it is said with advice, and it cannot take the machine's memory."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from edgekd import isolate
from edgekd.errors import StepFailed
from edgekd.targets._known_issues import KNOWN, advice

HERE = "test_isolate"


def die(recipe: Any, inputs: Any, out: Path) -> dict[str, Any]:
    sys.stdout.write("error: failed to legalize operation 'torch.aten.fancy'")
    sys.stdout.flush()
    os._exit(3)


def eat(recipe: Any, inputs: Any, out: Path) -> dict[str, Any]:
    block = bytearray(3 * 10**9)
    return {"bytes": len(block)}


def sleep(recipe: Any, inputs: Any, out: Path) -> dict[str, Any]:
    time.sleep(60)
    return {}


def work(recipe: Any, inputs: Any, out: Path) -> dict[str, Any]:
    return {"bytes": len(bytearray(10**8))}


def call(name: str, folder: Path, target: str = "litert", **limits: float) -> dict[str, Any]:
    job = isolate.Job(f"{HERE}:{name}", "name: x\n", [], {}, {"target": target}, str(folder))
    limits = {"timeout": 60, **limits}
    return isolate.call_isolated(job, log=folder / "step.log", threads=1, **limits)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    root, here = Path(__file__).parents[1], Path(__file__).parent
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(root), str(here)]))


def test_a_known_message_comes_with_advice(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match=r"exited with 3.*legalize operation") as error:
        call("die", tmp_path)
    assert "no TFLite operator" in error.value.todo and "Log:" in error.value.todo
    with pytest.raises(StepFailed) as error:
        call("die", tmp_path, target="onnx")  # another converter's words mean nothing
    assert error.value.todo.startswith("Log:")


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux only")
def test_memory_is_limited_and_its_lack_is_explained(tmp_path: Path) -> None:
    assert call("work", tmp_path, memory_gb=2.0) == {"bytes": 10**8}
    with pytest.raises(StepFailed, match="MemoryError") as error:
        call("eat", tmp_path, memory_gb=2.0)
    assert "export.memory_gb" in error.value.todo


def test_time_is_limited(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match="took longer than 3 s"):
        call("sleep", tmp_path, timeout=3)


@pytest.mark.parametrize(
    ("target", "message", "word"),
    [
        ("coreml", "TypeError: only 0-dimensional arrays can be converted to Python scalars", "numpy"),
        ("coreml", "PyTorch convert function for op 'grid_sampler' not implemented.", "architecture"),
        ("executorch", "RuntimeError: Missing out variants: {'aten::fancy'}", "portable"),
        ("onnx", "OSError: [Errno 28] No space left on device", "disk"),
        ("openvino", "terminate called after throwing an instance of 'std::bad_alloc'", "memory"),
    ],
)
def test_messages_and_their_advice(target: str, message: str, word: str) -> None:
    assert word in (advice(target, message) or "")


def test_an_unknown_message_has_none() -> None:
    assert advice("onnx", "something else went wrong") is None
    assert len({pattern for pattern, _, _ in KNOWN}) == len(KNOWN)
