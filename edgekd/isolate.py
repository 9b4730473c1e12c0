"""Run one step in a process of its own, because converters and runtimes crash, hang and leak.

``python -m edgekd.isolate JOB.json`` runs the stage function and leaves ``facts.json`` or ``error.json``
beside the job. Its output goes to a log file, whose last lines become the error message when it dies. The
child ends itself when its parent dies (end of file on stdin), so nothing writes into a run that nobody
holds the lock of.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgekd import artifact, errors
from edgekd import recipe as recipes
from edgekd.targets import _known_issues

LAST_LINES = 12
MEMORY = "EDGEKD_MEMORY_BYTES"  # tells the child what it may allocate
_live: set[subprocess.Popen[bytes]] = set()


def stop_all() -> None:
    """Kill every child that is still running (an interrupted run must leave nobody writing)."""
    for child in list(_live):
        child.kill()


@dataclass(frozen=True)
class Job:
    """What the child needs to run one step; everything is JSON-able."""

    run: str  # "package.module:function"
    recipe: str  # YAML text
    reads: list[str]
    parents: dict[str, str]  # name -> directory
    variant: dict[str, str]
    out: str


def function(name: str) -> Callable[[Any, artifact.Inputs, Path], artifact.Facts]:
    """Import the stage function named ``package.module:function``."""
    module, _, attribute = name.partition(":")
    found: Callable[[Any, artifact.Inputs, Path], artifact.Facts] = getattr(importlib.import_module(module), attribute)
    return found


def call(
    job: Job,
    *,
    progress: artifact.Progress = artifact.no_progress,
    evaluated: artifact.Evaluated = artifact.not_told,
    earlier: list[str] | None = None,
) -> artifact.Facts:
    """Run the job's stage function in this process and return its facts."""
    inputs = artifact.Inputs(
        parents={name: artifact.load(Path(path)) for name, path in job.parents.items()},
        variant=job.variant,
        earlier=[artifact.load(Path(path)) for path in earlier or []],
        progress=progress,
        evaluated=evaluated,
    )
    view: Any = recipes.View(recipes.parse(job.recipe), job.reads)
    return function(job.run)(view, inputs, Path(job.out))


def call_isolated(
    job: Job, *, log: Path, timeout: float, threads: int, memory_gb: float | None = None
) -> artifact.Facts:
    """The same in a child process of limited time and memory (the machine's where ``memory_gb`` is None).

    Raises what the child raised, or StepFailed with the log's last lines and, where the message is known, advice.
    """
    work = Path(job.out) / artifact.SCRATCH
    work.mkdir(parents=True, exist_ok=True)
    for name in ("facts.json", "error.json"):
        (work / name).unlink(missing_ok=True)
    artifact.write_json(work / "job.json", asdict(job))
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    environment[MEMORY] = str(int((memory_gb or _machine_gb()) * 1e9))
    target = job.variant.get("target")
    with log.open("wb") as stream:
        child = subprocess.Popen(
            [sys.executable, "-m", "edgekd.isolate", str(work / "job.json")],
            stdin=subprocess.PIPE,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        _live.add(child)
        try:
            code = child.wait(timeout=timeout)
        except subprocess.TimeoutExpired:
            raise errors.StepFailed(
                f"took longer than {timeout:.0f} s and was stopped", where=log.stem, todo=f"Log: {log}"
            ) from None
        finally:
            child.kill()
            child.wait()
            _live.discard(child)
    if (work / "facts.json").is_file() and code == 0:
        facts: artifact.Facts = artifact.read_json(work / "facts.json")
        return facts
    if (work / "error.json").is_file():
        told = artifact.read_json(work / "error.json")
        kind = getattr(errors, told.pop("kind"))
        todo = told["todo"] or _known_issues.advice(target, told["what"]) or ""
        raise kind(told["what"], where=told["where"], todo=todo)
    how = f"was killed by signal {-code}" if code < 0 else f"exited with {code}"
    known = _known_issues.advice(target, f"{how} {log.read_text(errors='replace')}")
    todo = f"{known} Log: {log}" if known else f"Log: {log}"
    raise errors.StepFailed(f"{how}; last lines: {tail(log)}", where=log.stem, todo=todo)


def _machine_gb() -> float:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    except (AttributeError, ValueError):  # Windows
        return 0.0


def _limit_memory() -> None:
    """Allocating more than the limit fails in this process, before the machine is short of memory."""
    limit = int(os.environ.get(MEMORY, "0"))
    if limit and sys.platform == "linux":  # elsewhere the system does not count what a process has written to
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def tail(log: Path) -> str:
    """The last lines of a log, on one line."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return " | ".join(lines[-LAST_LINES:])[-2000:] or "(empty log)"


def _end_with_parent() -> None:
    sys.stdin.buffer.read()  # returns when the parent closes the pipe, which it does only by dying
    os._exit(1)


def main() -> None:
    """Entry point of the child."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _limit_memory()
    path = Path(sys.argv[1])
    job = Job(**artifact.read_json(path))
    try:
        facts = call(job)
    except errors.EdgekdError as error:
        told = {"kind": type(error).__name__, "what": error.what, "where": error.where, "todo": error.todo}
        artifact.write_json(path.with_name("error.json"), told)
        sys.exit(error.exit_code)
    artifact.write_json(path.with_name("facts.json"), facts)
    sys.stdout.flush()
    os._exit(0)  # vendor runtimes may crash in their own exit handlers; the work is on disk


if __name__ == "__main__":
    main()
