"""Students that write text on the native runners: the tokens of the generators' own sessions, and what is refused."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _language import program, student
from _native import emulated_runner_of, runner_of

from edgekd import registry

SCHEMA = "edgekd/runner/1"
CONTEXT = 64  # tokens that the students' caches hold
PROMPT = list(range(40, 65))
SLOW = pytest.mark.slow
RUNTIMES = ["onnx", pytest.param("litert", marks=SLOW), pytest.param("executorch", marks=SLOW)]
NEEDS = {"onnx": "onnxruntime_genai", "litert": "litert_torch", "executorch": "executorch"}


@dataclass(frozen=True)
class Written:
    """A student's artefact, and the job that opens it."""

    runtime: str
    artifact: Path
    job: dict[str, Any]

    def greedy(self, ids: list[int], count: int) -> list[int]:
        """Tokens by the generator's session."""
        session: Any = registry.load("generators", self.runtime).open_session(self.artifact)
        logits, tokens = session.feed(ids), []
        for _ in range(count):
            tokens.append(int(np.argmax(logits)))
            logits = session.feed(tokens[-1:])
        session.close()
        return tokens


@pytest.fixture(scope="module", params=RUNTIMES)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    runtime = request.param
    pytest.importorskip(NEEDS[runtime], reason="its generator is not installed")
    folder = tmp_path_factory.mktemp(runtime)
    generator: Any = registry.load("generators", runtime)
    made = program(student(folder / "s", num_hidden_layers=1, max_position_embeddings=CONTEXT), "w4", folder / "p")
    artifact = folder / "a"
    artifact.mkdir()
    file = artifact / generator.export(made, artifact, max_length=CONTEXT)["file"]
    if runtime == "litert":
        file = folder / "model.tflite"
        file.write_bytes(generator.model_of(artifact))
    job = {"schema": SCHEMA, "phase": "write", "runtime": runtime, "model": str(file), "threads": 1}
    return Written(runtime, artifact, job)


def asked(request: str, **fields: Any) -> dict[str, Any]:
    return {"schema": SCHEMA, "request": request, **fields}


def test_tokens_are_the_generators(written: Written) -> None:
    """Whatever was written before, and with prompts that a graph takes in one piece, in several, and alone."""
    requests = [asked("write", ids=ids, count=16) for ids in (PROMPT, PROMPT[:1], PROMPT)]
    code, [opened, *answers] = runner_of(written.runtime)(written.job, *requests, asked("read", ids=PROMPT))
    assert code == 0 and opened["phase"] == "write" and min(opened["import_ns"], opened["load_ns"]) > 0
    observed = opened["observed"]
    assert observed["context"] == CONTEXT and observed["threads"] == 1 and observed["backend"]
    assert observed["runtime"] == written.runtime and observed["versions"] and observed["runner"] == "native"
    *writes, read = answers
    for request, found in zip(requests, writes, strict=True):
        assert found["tokens"] == written.greedy(request["ids"], 16)
        assert found["answer"] == "write" and len(found["samples_ns"]) == 16
        assert min(found["first_ns"], *found["samples_ns"]) > 0
        assert found["first_ns"] + sum(found["samples_ns"]) <= found["wall_ns"]
        assert found["cpu_ns"] > 0 and found["cpus"] > 0 and "machine_busy_ns" in found and "token" not in found
    assert read["answer"] == "read" and read["token"] == writes[0]["tokens"][0]
    assert len(read["samples_ns"]) == 1 and 0 < read["samples_ns"][0] <= read["wall_ns"] and "first_ns" not in read


def test_memory_is_above_the_state_before_the_load(written: Written) -> None:
    memory = asked("memory")
    code, [_, loaded, _, read] = runner_of(written.runtime)(written.job, memory, asked("read", ids=PROMPT), memory)
    assert code == 0 and loaded["answer"] == "memory" and set(loaded) == {"schema", "version", "answer", "memory"}
    for found in (loaded["memory"], read["memory"]):
        assert found["peak_bytes"] - found["baseline_bytes"] == found["peak_above_bytes"] > 0
        assert {"anonymous_above_bytes", "file_above_bytes", "peak_reset"} <= set(found) and "runs" not in found
    assert read["memory"]["peak_bytes"] >= loaded["memory"]["peak_bytes"]


def test_the_cache_is_filled_to_its_end_and_no_further(written: Written) -> None:
    call, long = runner_of(written.runtime), PROMPT * 3
    full = [asked("read", ids=long[:CONTEXT]), asked("write", ids=long[: CONTEXT - 3], count=3)]
    code, [_, read, write] = call(written.job, *full)
    assert code == 0 and read["answer"] == "read" and write["tokens"] == written.greedy(long[: CONTEXT - 3], 3)
    for job, held in ((written.job, CONTEXT), ({**written.job, "context": 24}, 24)):
        for request in (asked("read", ids=long[: held + 1]), asked("write", ids=long[:held], count=1)):
            code, [opened, found] = call(job, request)
            assert opened["observed"]["context"] == held
            assert code == 1 and found["error"] == {
                "kind": "job",
                "message": f"{held + 1} tokens; the model's cache holds {held}",
            }


WRONG: list[tuple[Any, str]] = [
    (asked("sing"), "known: read, write, memory"),
    (asked("read"), "missing: ids"),
    (asked("read", ids=[1], count=1), "unknown: count"),
    (asked("write", ids=[1]), "missing: count"),
    (asked("write", ids=[1], count=0), "count is not a positive"),
    (asked("read", ids=[]), "ids is not a list"),
    (asked("read", ids=[-1]), "ids is not a list"),
    (asked("read", ids=[1.5]), "ids is not a list"),
    (asked("read", ids=[10**9]), "there is no token 1000000000"),
    ({**asked("read", ids=[1]), "schema": "x"}, "schema"),
    ("{", "JSON"),
]


def test_wrong_requests_and_jobs_are_refused(written: Written) -> None:
    call = runner_of(written.runtime)
    for request, told in WRONG if written.runtime == "onnx" else WRONG[8:9]:
        code, [_, found] = call(written.job, request)
        assert code == 1 and found["error"]["kind"] == "job" and told in found["error"]["message"], (request, found)
    for change, told in (({"rows": []}, "unknown: rows"), ({"context": 0}, "context"), ({"runs": 3}, "unknown: runs")):
        code, [found] = call({**written.job, **change})
        assert code == 1 and found["error"]["kind"] == "job" and told in found["error"]["message"], (change, found)


def test_a_bad_model_is_an_error(written: Written, tiny_onnx: Path, tmp_path: Path) -> None:
    """Of no kind, cut off, and (ONNX) one that has no cache."""
    file = Path(written.job["model"])
    models = [tmp_path / "garbage", tmp_path / file.name, *([tiny_onnx] if written.runtime == "onnx" else [])]
    models[0].write_bytes(b"not a model")
    shutil.copytree(file.parent, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("[sp]"))
    models[1].write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    for model in models:
        code, [found] = runner_of(written.runtime)({**written.job, "model": str(model)}, asked("read", ids=[1]))
        assert code == 1 and found["error"]["kind"] == "failed", (model, found)


@pytest.mark.slow
def test_an_emulated_board_writes_the_same(written: Written) -> None:
    """Of floats the last bits may differ between processors: the first tokens are compared."""
    request = asked("write", ids=PROMPT, count=4)
    code, [_, found] = emulated_runner_of(written.runtime)(written.job, request)
    assert code == 0 and found["tokens"] == written.greedy(PROMPT, 4) and len(found["samples_ns"]) == 4
