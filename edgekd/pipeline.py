"""The stage table, ``plan()`` and ``run()``: a table, not an engine.

A step's key is a digest of everything that could change its result: the stage and its version, the variant,
the part of the recipe it reads, the digests of its parents and sources, and the versions of the tools it
imports. A step whose directory is finished under that key is a hit. Nothing slow is imported here: stage
functions are named, and imported by whoever runs them.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from edgekd import artifact, isolate, processes, refusals, registry, variants
from edgekd import recipe as recipes
from edgekd.artifact import Artifact, Facts
from edgekd.errors import BadInput, EdgekdError, Environment, StepFailed
from edgekd.recipe import Recipe
from edgekd.teach import endpoint

ORDER = ("data", "teach", "distill", "quantize", "export", "verify", "bench", "report")


@dataclass(frozen=True)
class Stage:
    """One row of the table. ``reads`` are the recipe paths its function may see and its key covers.

    ``means`` are paths that it may see as well, and that change how a result is come by, never what it is.
    """

    run: str
    version: int
    reads: tuple[str, ...]
    distributions: tuple[str, ...] = ()
    isolated: bool = False
    means: tuple[str, ...] = ()
    shared: bool = False  # all processes of `accelerate launch` work on it


TRAINING = ("torch", "transformers", "numpy")
SWITCHES = ("baseline", "on_policy")  # what they ask for are steps and rows of their own
TRAINED = tuple(f"distill.{name}" for name in recipes.Distill.model_fields if name not in SWITCHES)
QUANTIZED = tuple(f"quantize.{name}" for name in recipes.Quantize.model_fields if name != "schemes")  # the steps
TEACHER = tuple(f"teacher.{name}" for name in recipes.Teacher.model_fields if name != "endpoint")
DATA = Stage("edgekd.data.stage:run", 2, ("task", "seed", "data", *TEACHER), ("pandas", "transformers", "tokenizers"))
TEACH = Stage(
    "edgekd.teach.stage:run",
    2,
    ("task", "seed", "data.max_length", *TEACHER, "teach", "needs"),
    (*TRAINING, "accelerate"),
    shared=True,
)
ASK = Stage("edgekd.teach.endpoint:run", 1, endpoint.READS, means=endpoint.MEANS)  # a teacher behind an address
DISTILL = Stage(
    "edgekd.distill.stage:run",
    2,
    ("task", "seed", "data.max_length", *TEACHER, "teach.online", "teach.tokens", *TRAINED),
    (*TRAINING, "accelerate"),
    shared=True,
)
ON_POLICY = replace(
    DISTILL,
    run="edgekd.distill.on_policy:run",
    version=1,
    reads=(*DISTILL.reads, "distill.on_policy"),
    distributions=(*DISTILL.distributions, "trl"),
    shared=False,
)
FLOAT = Stage("edgekd.quantize.stage:run", 2, ("task", "seed", "data.max_length"), TRAINING)
QUANTIZE = Stage(
    "edgekd.quantize.stage:run",
    11,
    (
        "task",
        "seed",
        "data.max_length",
        *TEACHER,
        "teach.online",
        "distill.temperature",
        "gate.max_accuracy_drop",
        *QUANTIZED,
    ),
    TRAINING,
)
EXPORT = Stage("edgekd.targets.stage:run", 3, ("task", "data.max_length", "export.max_length"), TRAINING, isolated=True)
BUCKETED = replace(EXPORT, reads=(*EXPORT.reads, "export.buckets"))
VERIFY = Stage(
    "edgekd.verify.stage:run",
    4,
    ("task", "data.max_length", "verify.samples", "verify.slow_samples"),
    isolated=True,
)
BENCH = Stage("edgekd.bench.stage:run", 3, ("bench", "task", "data.max_length", *TEACHER))
# What a language model goes through instead, by the row that it replaces.
GENERATIVE = {
    FLOAT: replace(FLOAT, run="edgekd.quantize.tokens:run", version=1),
    QUANTIZE: replace(
        QUANTIZE,
        run="edgekd.quantize.tokens:run",
        version=4,
        reads=(*QUANTIZE.reads, "teach.tokens", "distill.packing", "gate.max_perplexity_rise"),
        shared=True,
    ),
    EXPORT: replace(EXPORT, run="edgekd.generators.stage:run", version=3),
    VERIFY: replace(VERIFY, run="edgekd.verify.tokens:run", version=2, reads=("task", "data.max_length", "verify")),
    BENCH: replace(BENCH, run="edgekd.bench.tokens:run", version=2),
}


@dataclass(frozen=True)
class Step:
    """A stage with a variant, and the steps it takes its inputs from (by the name the stage knows them under)."""

    stage: str
    row: Stage
    parents: Mapping[str, str] = field(default_factory=dict)
    variant: Mapping[str, str] = field(default_factory=dict)
    distributions: tuple[str, ...] = ()
    sources: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return variants.label(self.variant)

    @property
    def id(self) -> str:
        return f"{self.stage}-{self.label}" if self.label else self.stage


@dataclass(frozen=True)
class Planned:
    """What would happen to a step: ``hit``, ``run`` or ``refused``, and why."""

    step: Step
    status: str
    why: str = ""


@dataclass(frozen=True)
class Event:
    """Something to show. ``kind``: start, progress, evaluated, hit, made, failed."""

    kind: str
    step: str
    done: int = 0
    total: int = 0
    unit: str = ""
    text: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)


Listener = Callable[[Event], None]


@dataclass
class Result:
    """What a run left: finished steps by id, and the error of each step that did not come out."""

    folder: Path
    recipe: Recipe
    steps: dict[str, Artifact] = field(default_factory=dict)
    failures: dict[str, EdgekdError] = field(default_factory=dict)
    made: list[str] = field(default_factory=list)

    def facts(self, step: str) -> Facts | None:
        """Facts of a finished step, or None."""
        found = self.steps.get(step)
        return dict(found.facts) if found else None


def steps(recipe: Recipe) -> list[Step]:
    """All cached steps of a recipe, in an order in which parents come first.

    Raises BadInput for an unknown task, loss, target or scheme, and for a scheme that a target cannot carry.
    """
    refusals.check(recipe)
    data, group = recipe.data, variants.group(recipe)
    speaks = group == "generators"

    def row_of(row: Stage) -> Stage:
        return GENERATIVE[row] if speaks else row

    sources = {"teacher": recipe.teacher.model, "tokenizer": recipe.teacher.tokenizer}
    sources |= {f"data.{name}": getattr(data, name) for name in ("train", "validation", "test", "unlabelled")}
    sources |= {
        f"data.replay {one.name} {part}": getattr(one, part) for one in data.replay for part in ("train", "test")
    }
    base = {"data": "data", "teach": "teach"}
    student = {"student": recipe.distill.student.model}
    members = {f"member {i}": member.model for i, member in enumerate(recipe.teach.members)}
    if recipe.teacher.model:
        first = Step("data", DATA, sources=sources)
    else:  # an endpoint's tokenizer is nobody's business: the student's own counts
        first = Step("data", replace(DATA, reads=(*DATA.reads, "distill.student.model")), sources=sources | student)
    table = [first, Step("teach", ASK if recipe.teacher.endpoint else TEACH, {"data": "data"}, sources=members)]
    for kind in ("student", "baseline") if recipe.distill.baseline and recipe.distill.max_steps != 0 else ("student",):
        adapts = ("peft",) if recipe.distill.lora else ()
        row = ON_POLICY if recipe.distill.on_policy and kind == "student" else DISTILL
        table.append(Step("distill", row, base, {"kind": kind}, adapts, sources=student))
    distilled = {"distill": "distill-student"}
    for program in variants.programs(recipe):
        row, parents = (FLOAT, {"data": "data"}) if program["scheme"] == "fp32" else (QUANTIZE, base)
        table.append(Step("quantize", row_of(row), parents | distilled, program))
    for variant in variants.artifacts(recipe):
        module = registry.load(group, variant["target"])
        parents = {"quantize": f"quantize-{variants.label(variant, 'part', 'scheme')}"}
        row = row_of(EXPORT)
        if not speaks and module.fixed_length:
            parents["data"] = "data"  # whose texts tell which lengths
            row = BUCKETED
        table.append(Step("export", row, parents, variant, tuple(module.distributions)))
    for variant in variants.artifacts(recipe):
        tools = tuple(registry.load(group, variant["target"]).distributions)
        parents = {
            "export": f"export-{variants.label(variant)}",
            "quantize": f"quantize-{variants.label(variant, 'part', 'scheme')}",
            **base,
            **distilled,
        }
        table.append(Step("verify", row_of(VERIFY), parents, variant, tools))
    return table


def plan(recipe: Recipe, folder: Path) -> list[Planned]:
    """What ``run`` would do, without doing it."""
    planned: list[Planned] = []
    done: dict[str, Artifact] = {}
    digests = _Digests(folder)
    for step in steps(recipe):
        missing = [parent for parent in step.parents.values() if parent not in done]
        if missing:
            planned.append(Planned(step, "run", f"after {', '.join(missing)}"))
            continue
        path = _path(folder, step, _key(recipe, step, done, digests))
        if (path / artifact.MANIFEST).is_file():
            done[step.id] = artifact.load(path)
            planned.append(Planned(step, "hit", _lengths(done[step.id].facts)))
        else:
            resumes = artifact.partial_of(path).is_dir()
            planned.append(Planned(step, "run", "resumes what was interrupted" if resumes else "not made yet"))
    for pair in variants.pairs(recipe):
        if why := variants.refusal(recipe, pair["target"], pair["scheme"]):
            planned.append(Planned(Step("export", EXPORT, variant=pair), "refused", why))
    return planned


def _lengths(facts: Mapping[str, Any]) -> str:
    """The fixed lengths of an exported file and what they pad, in words; empty for every other step."""
    padding = facts.get("padding")
    if not padding:
        return ""
    lengths = ", ".join(map(str, facts["lengths"]))
    return f"{lengths} tokens: {padding['share']:.2f} padded tokens for each real one"


def run(
    recipe: Recipe,
    folder: Path,
    *,
    until: str = "verify",
    listen: Listener = lambda event: None,
) -> Result:
    """Make every cached step up to stage ``until`` that is not made yet; converters that fail do not stop the others.

    Raises BadInput or Environment as soon as a step says so, Environment when the run is in use.
    """
    table = [step for step in steps(recipe) if ORDER.index(step.stage) <= ORDER.index(until)]
    result = Result(folder, recipe)
    first = processes.rank() == 0
    with locked(folder) if first else nullcontext():
        if first:
            artifact.write_atomic(folder / "recipe.yaml", recipes.dump(recipe))
        processes.begin()
        digests = _Digests(folder)
        for stage in ORDER:
            wave = [step for step in table if step.stage == stage]
            ready = [step for step in wave if all(parent in result.steps for parent in step.parents.values())]
            for step in wave:
                if step not in ready:
                    lost = next(parent for parent in step.parents.values() if parent not in result.steps)
                    result.failures[step.id] = StepFailed(f"{lost} did not come out", where=step.id)
            made = [partial(_make, recipe, folder, step, result, digests, listen) for step in ready]
            if processes.count() > 1 or not (
                ready and ready[0].row.isolated
            ):  # in this thread, so that an interrupt reaches the training
                for step, outcome in zip(ready, made, strict=True):
                    _collect(step, outcome, result, listen)
                continue
            with ThreadPoolExecutor(recipe.export.jobs) as pool:
                futures = [pool.submit(outcome) for outcome in made]
                try:
                    for step, future in zip(ready, futures, strict=True):
                        _collect(step, future.result, result, listen)
                except BaseException:
                    for future in futures:
                        future.cancel()
                    isolate.stop_all()
                    raise
        if first:
            _publish(result)
    return result


def _collect(step: Step, outcome: Callable[[], tuple[Artifact, bool]], result: Result, listen: Listener) -> None:
    try:
        made, fresh = outcome()
    except (StepFailed, Environment) as error:
        if not step.row.isolated:
            raise
        result.failures[step.id] = error
        listen(Event("failed", step.id, text=str(error)))
        return
    result.steps[step.id] = made
    if fresh:
        result.made.append(step.id)


def _make(
    recipe: Recipe, folder: Path, step: Step, result: Result, digests: _Digests, listen: Listener
) -> tuple[Artifact, bool]:
    key = _key(recipe, step, result.steps, digests)
    path = _path(folder, step, key)
    made = (path / artifact.MANIFEST).is_file()
    processes.wait()  # all have looked before one of them makes it
    if made:
        listen(Event("hit", step.id))
        return artifact.load(path), False
    if processes.rank() > 0 and not step.row.shared:
        processes.wait()
        if not (path / artifact.MANIFEST).is_file():
            raise StepFailed("it did not come out in the first process", where=step.id)
        return artifact.load(path), True
    listen(Event("start", step.id))
    began = time.monotonic()
    out = artifact.partial_of(path)
    out.mkdir(parents=True, exist_ok=True)
    job = isolate.Job(
        run=step.row.run,
        recipe=recipes.dump(recipe),
        reads=[*step.row.reads, *step.row.means],
        parents={name: str(result.steps[parent].path) for name, parent in step.parents.items()},
        variant=dict(step.variant),
        out=str(out),
    )
    if step.row.isolated:
        log = folder / "logs" / f"{step.id}.log"
        timeout = recipe.export.timeout_seconds if step.stage == "export" else recipe.verify.timeout_seconds
        try:
            facts = isolate.call_isolated(job, log=log, timeout=timeout, threads=1, memory_gb=recipe.export.memory_gb)
        except (StepFailed, Environment):
            processes.wait()  # the others look, and go on without it as the first one does
            raise
    else:

        def progress(done: int, total: int, unit: str) -> None:
            listen(Event("progress", step.id, done, total, unit))

        def evaluated(done: int, total: int, metrics: Mapping[str, float]) -> None:
            listen(Event("evaluated", step.id, done, total, metrics=metrics))

        earlier = _earlier(folder, step, path)
        facts = isolate.call(job, progress=progress, evaluated=evaluated, earlier=earlier)
    if processes.rank() > 0:
        processes.wait()
        processes.wait()
        return artifact.load(path), True
    if step.row.shared:
        processes.wait()  # nobody writes any more
    sealed = artifact.seal(
        path,
        stage=step.stage,
        label=step.label,
        key=key,
        facts=facts,
        parents={name: result.steps[parent].digest for name, parent in step.parents.items()},
        tools=_versions(step),
    )
    processes.wait()
    listen(Event("made", step.id, text=f"{time.monotonic() - began:.1f} s"))
    return sealed, True


def _earlier(folder: Path, step: Step, path: Path) -> list[str]:
    others = [p for p in (folder / "steps").glob(f"{step.id}-*") if p != path and (p / artifact.MANIFEST).is_file()]
    return [str(p) for p in sorted(others, key=lambda p: p.stat().st_mtime, reverse=True)]


def bench(result: Result, *, listen: Listener = lambda event: None) -> Artifact:
    """Measure every artefact of the run, its teacher and its student, never served from a cache."""
    recipe, folder = result.recipe, result.folder
    path = folder / "bench"
    if processes.rank() > 0:
        processes.wait()
        result.steps["bench"] = artifact.load(path)
        return result.steps["bench"]
    out = artifact.partial_of(path)
    with locked(folder):
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        exports = {
            step.removeprefix("export-"): made for step, made in result.steps.items() if step.startswith("export-")
        }
        programs = {
            step.replace("quantize-", "program-", 1): made
            for step, made in result.steps.items()
            if step.startswith("quantize-")
        }
        whole = result.steps.get("quantize-fp32")  # none where the student is exported in parts
        student = {"student": whole} if whole else {}
        parents = {"data": result.steps["data"], **student, **programs, **exports}
        inputs = artifact.Inputs(
            parents=parents,
            progress=lambda done, total, unit: listen(Event("progress", "bench", done, total, unit)),
        )
        listen(Event("start", "bench"))
        row = GENERATIVE[BENCH] if variants.group(recipe) == "generators" else BENCH
        view: Any = recipes.View(recipe, row.reads)
        facts = isolate.function(row.run)(view, inputs, out)
        made = artifact.seal(
            path,
            stage="bench",
            label="",
            key=artifact.sha256_json({"time": time.time()}),
            facts=facts,
            parents={name: parent.digest for name, parent in parents.items()},
            tools={},
        )
        listen(Event("made", "bench"))
    processes.wait()
    result.steps["bench"] = made
    return made


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run's lock; raises Environment when another process holds it."""
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise BadInput("is a file, not a run folder", where=str(folder), todo="Choose another --run-dir.") from None
    lock = FileLock(folder / "run.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise Environment(
            "another edgekd works on this run",
            where=str(folder),
            todo="Wait for it, or choose another --run-dir.",
        ) from None
    try:
        yield
    finally:
        lock.release()


def _path(folder: Path, step: Step, key: str) -> Path:
    return folder / "steps" / f"{step.id}-{key[:16]}"


def _key(recipe: Recipe, step: Step, done: Mapping[str, Artifact], digests: _Digests) -> str:
    return artifact.sha256_json(
        {
            "stage": step.stage,
            "version": step.row.version,
            "variant": dict(step.variant),
            "recipe": recipe.part(step.row.reads),
            "parents": {name: done[parent].digest for name, parent in step.parents.items()},
            "sources": {name: digests.of(source) for name, source in step.sources.items()},
            "tools": _versions(step),
        }
    )


def _versions(step: Step) -> dict[str, str]:
    from edgekd import __version__

    return {"edgekd": __version__} | {name: version(name) for name in (*step.row.distributions, *step.distributions)}


def version(distribution: str) -> str:
    """Installed version of a PyPI distribution, or ``missing``."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "missing"


class _Digests:
    """Digests of source files and folders, remembered by size and time so that large ones are read once."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "digests.json"
        self._known: dict[str, str] = artifact.read_json(self._file) if self._file.is_file() else {}

    def of(self, source: str | None) -> str | None:
        if source is None:
            return None
        path = Path(source)
        if not path.exists():  # `digits.npz:train` names a part of a file
            path = Path(source.rpartition(":")[0])
        if not path.name or not path.exists():
            return f"id:{source}"
        files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file())
        stamps = [(str(f.resolve()), (s := f.stat()).st_size, s.st_mtime_ns) for f in files]
        stamp = artifact.sha256_json(stamps)
        if stamp not in self._known:
            self._known[stamp] = artifact.sha256_tree(path)
            if self._file.parent.is_dir():
                artifact.write_json(self._file, self._known)
        return self._known[stamp]


def _publish(result: Result) -> None:
    """Make ``artifacts/`` show exactly the artefacts of this run's recipe."""
    shown = result.folder / "artifacts"
    wanted = {step.removeprefix("export-"): made for step, made in result.steps.items() if step.startswith("export-")}
    if not wanted:
        return
    for old in shown.iterdir() if shown.is_dir() else ():
        if old.name not in wanted:
            shutil.rmtree(old, ignore_errors=True)
    for name, made in wanted.items():
        artifact.publish(made, shown / name)


def finished(recipe: Recipe, folder: Path) -> Result:
    """What the run has already, without running anything; what is missing counts as a failure."""
    result = Result(folder, recipe)
    digests = _Digests(folder)
    for step in steps(recipe):
        if all(parent in result.steps for parent in step.parents.values()):
            path = _path(folder, step, _key(recipe, step, result.steps, digests))
            if (path / artifact.MANIFEST).is_file():
                result.steps[step.id] = artifact.load(path)
                continue
        result.failures[step.id] = StepFailed("not made yet", where=step.id, todo="`edgekd ship` makes it.")
    return result


def collect(recipe: Recipe, folder: Path) -> Result:
    """What the run has already, its last measurements too; raises BadInput when there is no student to report on."""
    result = finished(recipe, folder)
    if "distill-student" not in result.steps:
        raise BadInput("has no trained student to report on", where=str(folder), todo="Run `edgekd ship` first.")
    if (folder / "bench" / artifact.MANIFEST).is_file():
        result.steps["bench"] = artifact.load(folder / "bench")
    return result
