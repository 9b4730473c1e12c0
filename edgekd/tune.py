"""Search for a better recipe: each trial trains one student from the cached teacher, on Optuna.

Accuracy on the validation split stands against the student's size or its measured latency; what no other trial
beats on both is the front. The first trial is the recipe as it was written, so the best one found is never worse by
the measure used. Trials live in a journal: a killed search goes on where it was, an interrupted training too. The
test split is never looked at. Optuna prunes only single objectives, so a trial that falls behind is stopped by a
rule of our own: several trials that are no larger were ahead of it at the same share of the training.
"""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from edgekd import artifact, pipeline, registry
from edgekd import recipe as recipes
from edgekd.bench import devices
from edgekd.errors import BadInput, Environment, StepFailed
from edgekd.quantize import scheme
from edgekd.recipe import Range, Recipe
from edgekd.report import plots

FOLDER, JOURNAL, STUDY = "tune", "journal.log", "edgekd"
SCHEMA = "edgekd/tune/1"
SHORT_BENCH = {
    "references": False,
    "min_runs": 50,
    "min_seconds": 0.5,
    "blocks": 2,
    "cold_loads": 0,
    "warmup_seconds": 0.2,
}


@dataclass(frozen=True)
class Trial:
    """A finished trial: what it set, what it reached on validation, and what it costs (bytes or milliseconds)."""

    number: int
    values: Mapping[str, Any]
    metric: float
    cost: float


def search_space(recipe: Recipe) -> dict[str, Range | list[Any]]:
    """What is searched: the recipe's own ``tune.search``, or temperature, alpha and learning rate around it."""
    if recipe.tune.search:
        return dict(recipe.tune.search)
    rate = recipe.distill.learning_rate
    return {
        "distill.temperature": Range(low=1, high=8, log=True),
        "distill.alpha": Range(low=0.0, high=0.5),
        "distill.learning_rate": Range(low=rate / 3, high=rate * 3, log=True),
    }


def run(
    recipe: Recipe, folder: Path, *, jobs: int = 1, listen: pipeline.Listener = lambda event: None
) -> dict[str, Any]:
    """Train until ``recipe.tune.trials`` are finished in the journal; write front, plot and best recipe.

    Returns the document of ``tune/front.json``. With ``jobs`` > 1 that many processes share the journal; the
    teacher's cache is made once, before.
    """
    optuna = _optuna()
    _check(recipe)
    out = folder / FOLDER
    pipeline.run(_of(recipe, {}), folder, until="teach", listen=listen)
    study = _study(recipe, out)
    _adopt(study, optuna)
    if not study.trials:
        study.enqueue_trial(_own(recipe))
    if jobs == 1:
        work(recipe, folder, worker=0, listen=listen)
    else:
        _spawn(recipe, folder, jobs)
    return write(recipe, folder)


def work(recipe: Recipe, folder: Path, *, worker: int, listen: pipeline.Listener) -> None:
    """Take trials from the journal until enough are finished."""
    optuna = _optuna()
    study = _study(recipe, folder / FOLDER)
    mine = folder / FOLDER / f"worker-{worker}"
    _share(folder, mine)
    finished = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)

    def enough() -> bool:
        running = [t for t in study.get_trials(deepcopy=False) if not t.state.is_finished()]
        done = [t for t in study.get_trials(deepcopy=False) if t.state in finished]
        waiting = [t for t in running if t.state == optuna.trial.TrialState.WAITING]
        return len(done) + len(running) - len(waiting) >= recipe.tune.trials

    while not enough():
        trial = study.ask()
        try:
            values = {path: _suggest(trial, path, space) for path, space in search_space(recipe).items()}
            metric, cost = _train(_of(recipe, values), mine, study, trial, listen)
        except optuna.TrialPruned:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            continue
        except (BadInput, StepFailed) as error:  # this combination cannot be; the search goes on
            trial.set_user_attr("error", error.line())
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            continue
        study.tell(trial, [metric, cost])


def front(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that no other beats: none is at least as good on both sides and better on one. Cheapest first."""
    kept: list[Trial] = []
    for one in trials:
        beaten = any(
            other.metric >= one.metric
            and other.cost <= one.cost
            and (other.metric, -other.cost) != (one.metric, -one.cost)
            for other in trials
        )
        same = any((other.metric, other.cost) == (one.metric, one.cost) for other in kept)
        if not beaten and not same:
            kept.append(one)
    return sorted(kept, key=lambda one: (one.cost, one.number))


def write(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """``tune/front.json``, ``tune/front.svg`` and ``tune/best.yaml``.

    The best has the highest metric of those within the budget of gate and devices (of all, where none is), and is the
    cheapest on a tie.
    """
    study, out = _study(recipe, folder / FOLDER), folder / FOLDER
    trials = [Trial(t.number, t.user_attrs["values"], *t.values) for t in study.get_trials(deepcopy=False) if t.values]
    if not trials:
        lost = [t.user_attrs["error"] for t in study.get_trials(deepcopy=False) if "error" in t.user_attrs]
        raise StepFailed(f"no trial came out; the last one: {lost[-1] if lost else 'stopped early'}", where="tune")
    limit = _budget(recipe)
    fits = [one for one in trials if limit is None or one.cost <= limit] or trials
    best = min(fits, key=lambda one: (-one.metric, one.cost, one.number))
    shown = front(trials)
    headline = registry.load("tasks", recipe.task).HEADLINE
    unit = "bytes" if recipe.tune.against == "size" else "ms"
    document = {
        "schema": SCHEMA,
        "metric": f"validation {headline}",
        "cost": f"{recipe.tune.against} ({unit})",
        "budget": limit,
        "trials": [{**vars(one), "front": one in shown, "fits": one in fits} for one in trials],
        "stopped": sum(t.state.name == "PRUNED" for t in study.get_trials(deepcopy=False)),
        "best": best.number,
        "written": next((one.metric for one in trials if one.number == 0), None),
    }
    artifact.write_json(out / "front.json", document)
    artifact.write_atomic(out / "best.yaml", recipes.dump(_with(recipe, best.values)))
    scale = 1e6 if unit == "bytes" else 1.0
    points = [
        plots.Point(one.cost / scale, one.metric, f"#{one.number}", 1 if one in shown else 0, 0 if one in shown else 1)
        for one in trials
    ]
    label = "size, MB" if unit == "bytes" else "median latency, ms"
    picture = plots.scatter(points, title=f"{recipe.name}: search", x_label=label, y_label=f"validation {headline}")
    artifact.write_atomic(out / "front.svg", plots.alone(picture))
    return document


def _train(recipe: Recipe, folder: Path, study: Any, trial: Any, listen: pipeline.Listener) -> tuple[float, float]:
    """Validation metric and cost of one student; raises TrialPruned when it falls behind."""
    values = trial.user_attrs.get("values", {})
    seen: list[tuple[float, float]] = []
    headline = registry.load("tasks", recipe.task).HEADLINE

    def watch(event: pipeline.Event) -> None:
        listen(event)
        if event.kind != "evaluated" or not event.metrics:
            return
        seen.append((event.done / max(1, event.total), event.metrics[headline]))
        trial.set_user_attr("seen", seen)
        _prune(study, trial, recipe.tune.patience, seen[-1], event.metrics.get("parameters", 0.0))

    result = pipeline.run(recipe, folder, until="distill", listen=watch)
    facts = result.facts("distill-student") or {}
    trial.set_user_attr("values", values)
    trial.set_user_attr("parameters", facts["parameters"])
    metric = float(facts["metrics"]["validation"][headline])
    if recipe.tune.against == "size":
        return metric, _size_bytes(recipe, result.steps["distill-student"].path / "model")
    return metric, _latency(recipe, folder, listen)


def _prune(study: Any, trial: Any, patience: int, now: tuple[float, float], parameters: float) -> None:
    share, metric = now
    ahead = 0
    for other in study.get_trials(deepcopy=False):
        if not other.values or other.user_attrs.get("parameters", 0) > parameters:
            continue
        then = [value for at, value in other.user_attrs.get("seen", []) if at <= share + 1e-9]
        ahead += bool(then) and max(then) > metric and share >= 0.25
    if ahead >= patience:
        raise _optuna().TrialPruned


def _size_bytes(recipe: Recipe, model: Path) -> float:
    """Estimated bytes of the student in the recipe's first scheme."""
    from edgekd.distill import student
    from edgekd.teach.transformers import model_class

    wanted = scheme.get(recipe.quantize.schemes[0] if recipe.quantize.schemes else "fp32")
    loaded = student.load(model, model_class(registry.load("tasks", recipe.task).AUTO_TASK))
    return float(student.summary(loaded, [wanted], 1)["size_bytes"][wanted.name])


def _latency(recipe: Recipe, folder: Path, listen: pipeline.Listener) -> float:
    """Median milliseconds of the first target's quantized file, calibrated only: training moves no kernel."""
    schemes = recipe.quantize.schemes[:1]
    short = _with(
        recipe,
        {
            "export.targets": recipe.export.targets[:1],
            "quantize.schemes": schemes,
            "quantize.steps": 0,
            "bench.devices": [_timed(recipe)],
            **{f"bench.{name}": value for name, value in SHORT_BENCH.items()},
        },
    )
    result = pipeline.run(short, folder, until="export", listen=listen)
    if result.failures:
        raise next(iter(result.failures.values()))
    rows = pipeline.bench(result, listen=listen).facts["summaries"]
    wanted = (recipe.export.targets[0], schemes[0] if schemes else "fp32")
    mine = [row for row in rows if (row["target"], row["scheme"]) == wanted]
    lost = next((row["error"] for row in mine if row["error"]), None)
    if lost or not mine:
        raise StepFailed(f"the latency of {'-'.join(wanted)} was not measured: {lost}", where="tune")
    return float(mine[-1]["p50_ms"])  # of the longest texts


def _timed(recipe: Recipe) -> str:
    """The first device of the recipe whose times count."""
    names = [name for name in recipe.bench.devices if not devices.load(name).emulated]
    if not names:
        raise BadInput("no device whose times count", where="bench.devices", todo="Name one that is not emulated.")
    return names[0]


def _budget(recipe: Recipe) -> float | None:
    """The strictest limit on the cost, of the gate and of the devices, in its unit; None where there is none."""
    name, scale = ("size_mb", 1e6) if recipe.tune.against == "size" else ("p50_ms", 1.0)
    asked = recipe.bench.devices if recipe.tune.against == "size" else [_timed(recipe)]
    limits = [getattr(recipe.gate, name), *(getattr(devices.load(device).limits, name) for device in asked)]
    return min((limit * scale for limit in limits if limit is not None), default=None)


def _of(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """A trial's recipe: no baseline, no second phase, and the trial's number of steps."""
    fixed: dict[str, Any] = {"distill.baseline": False, "distill.on_policy": None}
    if recipe.tune.max_steps:
        fixed["distill.max_steps"] = recipe.tune.max_steps
    return _with(recipe, {**fixed, **values})


def _with(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    plain = copy.deepcopy(recipe.model_dump(mode="json"))
    for path, value in values.items():
        recipes.assign(plain, path, value)
    return recipes.parse(yaml.safe_dump(plain), where="tune")


def _own(recipe: Recipe) -> dict[str, Any]:
    """The recipe's own values, as far as they lie in the space."""
    plain, found = recipe.model_dump(mode="json"), {}
    for path, space in search_space(recipe).items():
        value: Any = plain
        for key in path.split("."):
            value = value[int(key)] if isinstance(value, list) else value.get(key)
        inside = space.low <= value <= space.high if isinstance(space, Range) and value is not None else value in space
        if inside:
            found[path] = value if isinstance(space, Range) else space.index(value)
    return found


def _suggest(trial: Any, path: str, space: Range | list[Any]) -> Any:
    if isinstance(space, list):  # by place: a choice may be a list or a mapping
        value = space[trial.suggest_categorical(path, list(range(len(space))))]
    elif space.whole:
        value = trial.suggest_int(path, int(space.low), int(space.high), log=space.log)
    else:
        value = float(f"{trial.suggest_float(path, space.low, space.high, log=space.log):.4g}")
    trial.set_user_attr("values", {**trial.user_attrs.get("values", {}), path: value})
    return value


def _check(recipe: Recipe) -> None:
    for path, space in search_space(recipe).items():
        first = space[0] if isinstance(space, list) and space else getattr(space, "low", None)
        if isinstance(space, list) and not space:
            raise BadInput("has no choices", where=f"tune.search.{path}")
        if isinstance(space, Range) and (space.low > space.high or (space.log and space.low <= 0)):
            raise BadInput(f"{space.low} to {space.high} is no range", where=f"tune.search.{path}")
        _with(recipe, {path: int(space.low) if isinstance(space, Range) and space.whole else first})
    if recipe.tune.against == "latency" and not recipe.export.targets:
        raise BadInput("latency needs a target to measure", where="export.targets")


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise Environment("package 'optuna' is not installed", todo="pip install 'edgekd[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _study(recipe: Recipe, out: Path) -> Any:
    optuna = _optuna()
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    out.mkdir(parents=True, exist_ok=True)
    storage = JournalStorage(JournalFileBackend(str(out / JOURNAL)))
    return optuna.create_study(
        study_name=STUDY,
        storage=storage,
        directions=["maximize", "minimize"],
        load_if_exists=True,
        sampler=optuna.samplers.TPESampler(seed=recipe.seed + len(_numbers(storage))),
    )


def _numbers(storage: Any) -> list[int]:
    studies = storage.get_all_studies()
    return [t.number for study in studies for t in storage.get_all_trials(study._study_id, deepcopy=False)]


def _adopt(study: Any, optuna: Any) -> None:
    """Trials that a killed search left running are asked for again, with the same values: their training resumes."""
    for trial in study.get_trials(deepcopy=False):
        if trial.state == optuna.trial.TrialState.RUNNING:
            study.enqueue_trial(trial.params)
            study._storage.set_trial_state_values(trial._trial_id, optuna.trial.TrialState.FAIL)


def _share(folder: Path, mine: Path) -> None:
    """Give a worker the finished data and teach steps of the run."""
    (mine / "steps").mkdir(parents=True, exist_ok=True)
    for step in (folder / "steps").glob("*"):
        link = mine / "steps" / step.name
        if step.name.startswith(("data-", "teach-")) and (step / artifact.MANIFEST).is_file() and not link.exists():
            link.symlink_to(step.resolve(), target_is_directory=True)


def _spawn(recipe: Recipe, folder: Path, jobs: int) -> None:
    settings = folder / FOLDER / "recipe.yaml"
    artifact.write_atomic(settings, recipes.dump(recipe))
    command = [sys.executable, "-m", "edgekd.tune", str(settings), str(folder)]
    workers = [subprocess.Popen([*command, str(number)], stdout=subprocess.DEVNULL) for number in range(jobs)]
    try:
        codes = [worker.wait() for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    if any(codes):
        raise StepFailed(f"a worker ended with exit code {max(codes)}", where="tune", todo="Run it with --jobs 1.")


def main() -> None:
    """A worker process: ``python -m edgekd.tune RECIPE FOLDER NUMBER``."""
    recipe, folder, number = recipes.load(Path(sys.argv[1])), Path(sys.argv[2]), int(sys.argv[3])
    work(recipe, folder, worker=number, listen=lambda event: None)


if __name__ == "__main__":
    main()
