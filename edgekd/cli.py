"""The command line: Typer, bodies of a few lines, every heavy import inside the body.

stdout carries the result (a table, or one JSON document with ``--json``) and nothing else; progress and
errors go to stderr. Exit codes: 0 fine, 1 gate failed, 2 bad input, 3 environment, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from edgekd import errors, processes

if TYPE_CHECKING:
    from edgekd.recipe import Recipe

# Set before any library reads them: no telemetry, bars of our own, and threads that sleep instead of spin.
for _name, _value in {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_WAIT_POLICY": "passive",
    "GOMP_SPINCOUNT": "0",
}.items():
    os.environ.setdefault(_name, _value)

app = typer.Typer(
    name="edgekd",
    help="From a large transformer to a small, quantized, verified and measured artefact on the edge.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class _FirstByDefault(typer.core.TyperGroup):
    """`edgekd bench X` is `edgekd bench run X`, `run` being the group's first command, unless X is another of them."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] != "--help":
            args = [next(iter(self.commands)), *args]
        return super().parse_args(ctx, args)


bench_app = typer.Typer(
    cls=_FirstByDefault,
    no_args_is_help=True,
    help="Measure on devices, and compare measurements.",
    epilog="Example: edgekd bench runs/banking77 --device local (the command `run` may be left out)",
)
devices_app = typer.Typer(
    no_args_is_help=True, help="Devices to measure on: list, probe, add.", epilog="Example: edgekd devices list"
)
bundle_app = typer.Typer(
    cls=_FirstByDefault,
    no_args_is_help=True,
    help="Make a library that an app drops in, and check one.",
    epilog="Example: edgekd bundle runs/banking77 --platform linux --target onnx --out intents",
)
app.add_typer(bench_app, name="bench")
app.add_typer(bundle_app, name="bundle")
app.add_typer(devices_app, name="devices")

RecipeArg = Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe file, or the folder of a run made before.")]
RunDir = Annotated[Path | None, typer.Option("--run-dir", help="Folder of the run; default runs/<name>.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=VALUE", help="Override a field; repeatable.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]
Write = Annotated[
    list[str] | None,
    typer.Option("--write", metavar="FORMAT=FILE", help="Also as google-benchmark, csv or markdown; repeatable."),
]
JUnit = Annotated[Path | None, typer.Option("--junit", help="Also write the verdicts as JUnit XML, for CI.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]


def _load(recipe: Path, run_dir: Path | None, sets: list[str] | None) -> tuple[Recipe, Path]:
    from edgekd import recipe as recipes

    if recipe.is_dir():
        run_dir, recipe = run_dir or recipe, recipe / "recipe.yaml"
    loaded = recipes.load(recipe, sets or [])
    return loaded, run_dir or Path("runs") / loaded.name


def _print(text: str) -> None:
    sys.stdout.write(text if text.endswith("\n") else text + "\n")
    sys.stdout.flush()


def _json(value: Any) -> None:
    import json

    _print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def _table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=number == 0, overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))  # "edgekd[onnx]" is no markup
    width = None if sys.stdout.isatty() else 120  # a pipe or a log has no width of its own
    Console(file=sys.stdout, highlight=False, width=width).print(table)


def _until(stage: str, recipe: Path, run_dir: Path | None, sets: list[str] | None, as_json: bool, quiet: bool) -> None:
    """Run the steps up to a stage and show the facts of that stage's steps."""
    from edgekd import outcome, pipeline, progress

    loaded, folder = _load(recipe, run_dir, sets)
    with progress.show(quiet=quiet) as listen:
        result = pipeline.run(loaded, folder, until=stage, listen=listen)
    found = {step: dict(made.facts) for step, made in result.steps.items() if made.stage == stage}
    failures = {step: error.line() for step, error in result.failures.items()}
    if as_json:
        _json({"schema": "edgekd/steps/1", "run": str(folder), "steps": found, "failures": failures})
    else:
        rows = [[step, "made" if step in result.made else "hit", str(result.steps[step].path)] for step in found]
        rows += [[step, "failed", line] for step, line in failures.items()]
        _table(f"{stage}: {folder}", ["step", "state", "where"], rows)
        _kept(loaded, found)
    raise typer.Exit(outcome.exit_code(result))


def _kept(recipe: Recipe, steps: dict[str, Any]) -> None:
    """The table of what a student that learned on has kept, where there is one."""
    from edgekd import registry
    from edgekd.report import build, render

    kept = build.retention(steps.get("distill-student", {}), steps.get("distill-baseline"))
    if kept:
        headline = registry.load("tasks", recipe.task).HEADLINE
        _table("what was kept", *render.retention({"headline": headline, "retention": kept}))


@app.command(epilog="Example: edgekd ship examples/banking77.yaml --set teacher.model=my-teacher --run-dir runs/b77")
def ship(
    recipe: RecipeArg,
    run_dir: RunDir = None,
    sets: Set = None,
    bench: Annotated[bool, typer.Option("--bench/--no-bench", help="Measure latency and memory.")] = True,
    junit: JUnit = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Teacher to verified, measured artefacts and a report. Exits with 1 when the gate fails."""
    from edgekd import outcome, pipeline, progress

    loaded, folder = _load(recipe, run_dir, sets)
    with progress.show(quiet=quiet) as listen:
        result = pipeline.run(loaded, folder, listen=listen)
        if bench and loaded.bench.enabled:
            pipeline.bench(result, listen=listen)
        document = outcome.report(result)
    if junit and processes.rank() == 0:
        from edgekd.bench import formats

        _overwrite(junit, formats.junit(outcome.verdicts(result), suite=loaded.name))
    _show_report(document, folder, as_json)
    raise typer.Exit(outcome.exit_code(result))


@app.command(epilog="Example: edgekd plan examples/banking77.yaml --set quantize.steps=0")
def plan(recipe: RecipeArg, run_dir: RunDir = None, sets: Set = None, as_json: Json = False) -> None:
    """What `ship` would do: hit (made already), run, or refused because."""
    from edgekd import pipeline

    loaded, folder = _load(recipe, run_dir, sets)
    planned = pipeline.plan(loaded, folder)
    if as_json:
        steps = [{"step": p.step.id, "status": p.status, "why": p.why} for p in planned]
        _json({"schema": "edgekd/plan/1", "run": str(folder), "steps": steps})
    else:
        _table(f"plan: {folder}", ["step", "status", "why"], [[p.step.id, p.status, p.why] for p in planned])


@app.command(epilog="Example: edgekd teach recipe.yaml")
def teach(
    recipe: RecipeArg, run_dir: RunDir = None, sets: Set = None, as_json: Json = False, quiet: Quiet = False
) -> None:
    """Read the data and run the teacher over it, into the cache."""
    _until("teach", recipe, run_dir, sets, as_json, quiet)


@app.command(epilog="Example: edgekd distill recipe.yaml --set distill.student.layers=3 --dry-run")
def distill(
    recipe: RecipeArg,
    run_dir: RunDir = None,
    sets: Set = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say how large the student would be.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train the student, and the baseline without a teacher. Runs under `torchrun` and `accelerate launch` too."""
    if not dry_run:
        return _until("distill", recipe, run_dir, sets, as_json, quiet)
    from edgekd import pipeline, progress

    loaded, folder = _load(recipe, run_dir, sets)
    with progress.show(quiet=quiet) as listen:
        data = pipeline.run(loaded, folder, until="data", listen=listen).steps["data"]
    from edgekd import registry
    from edgekd.distill import stage
    from edgekd.quantize import scheme
    from edgekd.tasks._contract import generates

    found = stage.preview(loaded, data, scheme.of_task(generates(registry.load("tasks", loaded.task))))
    if as_json:
        return _json({"schema": "edgekd/student/1", **found})
    rows = [["parameters", f"{found['parameters']:,}"], ["of them word table", f"{found['embedding_parameters']:,}"]]
    rows += [[f"file, {scheme} (estimate)", f"{size / 1e6:.2f} MB"] for scheme, size in found["size_bytes"].items()]
    rows.append([f"FLOPs for {found['tokens']} tokens", f"{found['flops'] / 1e6:,.1f} M"])
    rows += [[name, str(value)] for name, value in found["shape"].items()]
    _table("student", ["what", "value"], rows)


@app.command(epilog="Example: edgekd quantize recipe.yaml --set quantize.steps=0")
def quantize(
    recipe: RecipeArg, run_dir: RunDir = None, sets: Set = None, as_json: Json = False, quiet: Quiet = False
) -> None:
    """Make the Program of every scheme."""
    _until("quantize", recipe, run_dir, sets, as_json, quiet)


@app.command(epilog="Example: edgekd export recipe.yaml --set 'export.targets=[onnx]'")
def export(
    recipe: RecipeArg, run_dir: RunDir = None, sets: Set = None, as_json: Json = False, quiet: Quiet = False
) -> None:
    """Write the artefacts of every target and scheme."""
    _until("export", recipe, run_dir, sets, as_json, quiet)


@app.command(epilog="Example: edgekd verify recipe.yaml --set verify.samples=500")
def verify(
    recipe: RecipeArg, run_dir: RunDir = None, sets: Set = None, as_json: Json = False, quiet: Quiet = False
) -> None:
    """Run every artefact on its own runtime against the real metric, and judge it."""
    from edgekd import outcome, pipeline, progress

    loaded, folder = _load(recipe, run_dir, sets)
    with progress.show(quiet=quiet) as listen:
        result = pipeline.run(loaded, folder, listen=listen)
    verdicts = outcome.verdicts(result)
    if as_json:
        _json({"schema": "edgekd/verdicts/1", "run": str(folder), "artifacts": verdicts})
    else:
        rows = [[name, entry["verdict"], "; ".join(entry["reasons"])] for name, entry in verdicts.items()]
        _table(f"verify: {folder}", ["artefact", "verdict", "why"], rows)
    raise typer.Exit(outcome.exit_code(result))


@bench_app.command("run", epilog="Example: edgekd bench runs/banking77 --device local --set 'bench.threads=[1, 2]'")
def bench_run(
    subject: Annotated[Path, typer.Argument(metavar="WHAT", help="Recipe, folder of a run, or a model file.")],
    device: Annotated[list[str] | None, typer.Option("--device", help="Profile's name or file; repeatable.")] = None,
    shape: Annotated[list[str] | None, typer.Option("--shape", metavar="INPUT=1x32", help="Of a model file.")] = None,
    inputs: Annotated[Path | None, typer.Option("--inputs", help="Sample inputs of a model file, JSON.")] = None,
    run_dir: RunDir = None,
    sets: Set = None,
    write: Write = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Latency and memory of every artefact of a run, or of one model file, interleaved, with raw samples.

    Measurements go to bench/measurements.jsonl in the run's folder.
    """
    from edgekd.bench import compare, formats, subjects

    outputs = formats.asked(write or [], formats.TEXTS)
    sets = [*(sets or []), *([f"bench.devices=[{', '.join(device)}]"] if device else [])]
    is_file = subject.suffix in subjects.RUNTIMES
    if not is_file and (shape or inputs):
        raise errors.BadInput("--shape and --inputs are for a model file", where=str(subject))
    measure = _bench_file if is_file else _bench_run
    folder, facts, code = measure(subject, run_dir, sets, shape or [], inputs, quiet)
    for kind, file in outputs:
        _overwrite(file, formats.TEXTS[kind](compare.read(folder)))
    if as_json:
        _json({"schema": "edgekd/bench/1", "run": str(folder), **facts})
    else:
        from edgekd.report.build import bench_rows

        _table(f"bench: {folder}", *bench_rows(facts))
    raise typer.Exit(code)


def _bench_run(
    recipe: Path, run_dir: Path | None, sets: list[str], shapes: list[str], inputs: Path | None, quiet: bool
) -> tuple[Path, dict[str, Any], int]:
    from edgekd import outcome, pipeline, progress

    loaded, folder = _load(recipe, run_dir, sets)
    with progress.show(quiet=quiet) as listen:
        result = pipeline.run(loaded, folder, until="export", listen=listen)
        facts = dict(pipeline.bench(result, listen=listen).facts)
    return folder, facts, outcome.exit_code(result)


def _bench_file(
    model: Path, run_dir: Path | None, sets: list[str], shapes: list[str], inputs: Path | None, quiet: bool
) -> tuple[Path, dict[str, Any], int]:
    from edgekd import recipe as recipes
    from edgekd.bench import stage

    settings = recipes.parse("name: bench\n", overrides=sets).bench
    folder = run_dir or Path("runs") / f"bench-{model.stem}"
    facts = stage.bare(model, settings.devices, settings, folder / "bench", shapes=shapes, samples=inputs)
    return folder, dict(facts), errors.EXIT_ENVIRONMENT if facts["failed"] else errors.EXIT_OK


@bench_app.command("compare", epilog="Example: edgekd bench compare baselines/pixel8.json runs/banking77")
def bench_compare(
    before: Annotated[Path, typer.Argument(metavar="A", help="Run, measurements.jsonl or baseline.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="The same kind of thing, newer or elsewhere.")],
    threshold: Annotated[float, typer.Option("--threshold", help="Share that counts as a regression.")] = 0.05,
    devices: Annotated[bool, typer.Option("--across-devices", help="A and B come from different devices.")] = False,
    as_json: Json = False,
) -> None:
    """Is B slower, larger in memory or slower to load than A? Exits with 1 where it is, 2 where they do not compare."""
    from edgekd.bench import compare

    old, new = compare.read(before), compare.read(after)
    rows = compare.compare(old, new, threshold, devices=devices, where=f"{before}, {after}")
    found = compare.document(rows, compare.missing(old, new))
    if as_json:
        _json(found)
    else:
        _table(f"{before} -> {after}", *compare.table(rows))
        for place in found["missing"]:
            _print(f"missing in {after}: {place}")
    raise typer.Exit(errors.EXIT_GATE if found["regression"] else errors.EXIT_OK)


@bench_app.command("baseline", epilog="Example: edgekd bench baseline runs/banking77 > baselines/pixel8.json")
def bench_baseline(run: Annotated[Path, typer.Argument(metavar="RUN", help="Run or measurements.jsonl.")]) -> None:
    """Print a run's measurements as a small file, fit for git, that `bench compare` reads."""
    from edgekd.bench import compare

    measured = compare.read(run)
    _json(compare.baseline(measured, created=str(measured[0].environment.get("time", ""))))


@bundle_app.command("make", epilog="Example: edgekd bundle runs/banking77 --platform linux --target onnx --out intents")
def bundle_make(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    platform: Annotated[str, typer.Option("--platform", help="android, ios, web, linux, hub or mediapipe.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to make; never overwrites.")],
    target: Annotated[str | None, typer.Option("--target", help="Runtime; default: the run's first.")] = None,
    scheme: Annotated[str | None, typer.Option("--scheme", help="Scheme; default: the run's first.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="Package name; default: the recipe's.")] = None,
    tokenizer: Annotated[str, typer.Option("--tokenizer", help="native or library; default: the platform's.")] = "",
    key: Annotated[Path | None, typer.Option("--key", help="Private key (PEM) to sign with.")] = None,
    sets: Set = None,
    allow_unverified: Annotated[bool, typer.Option("--allow-unverified", help="Also what failed; it says so.")] = False,
    as_json: Json = False,
) -> None:
    """An artefact that passed, with its library, tokenizer, golden texts and provenance, as a folder for an app."""
    from edgekd import outcome, pipeline
    from edgekd.bundle import stage

    loaded, folder = _load(run, None, sets)
    result = pipeline.collect(loaded, folder)
    wanted = [target or loaded.export.targets[0], scheme or next(iter(loaded.quantize.schemes), "fp32")]
    made = outcome.app(result, name or loaded.name.lower().replace("_", "-"), "-".join(wanted), tokenizer)
    found = stage.make(made, platform, out, allow_unverified=allow_unverified, key=key)
    if as_json:
        return _json(found)
    rows = [[part, f"{size / 1e6:.3f} MB"] for part, size in found["parts"].items()]
    package, sizes = found["runtime"]["package"], found["runtime"]["bytes"]
    rows += [[f"{package}, {abi}", f"{size / 1e6:.3f} MB"] for abi, size in sizes.items()] or [
        [package, "not measured"]
    ]
    _table(f"bundle: {out}", ["adds to an app", "size"], rows)


@bundle_app.command("verify", epilog="Example: edgekd bundle verify intents --key public.pem")
def bundle_verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A bundle.")],
    key: Annotated[Path | None, typer.Option("--key", help="Public key (PEM) of its signature.")] = None,
    as_json: Json = False,
) -> None:
    """Whether every file of a bundle is as it was made. Exits with 1 where it is not."""
    from edgekd.bundle import stage

    found = stage.verify(folder, key)
    if as_json:
        _json({"schema": "edgekd/bundle-check/1", **found})
    else:
        words = {name: ", ".join(value) or "-" for name, value in found.items() if isinstance(value, list)}
        rows = [*words.items(), ("signature", found["signature"]), ("whole", str(found["passed"]))]
        _table(f"bundle: {folder}", ["what", "is"], [list(row) for row in rows])
    raise typer.Exit(errors.EXIT_OK if found["passed"] else errors.EXIT_GATE)


@devices_app.command("list", epilog="Example: edgekd devices list --json")
def devices_list(as_json: Json = False) -> None:
    """The device profiles that come with edgekd."""
    from edgekd.bench import devices

    found = [devices.load(name) for name in devices.known()]
    if as_json:
        return _json({"schema": "edgekd/devices/1", "devices": [one.model_dump(mode="json") for one in found]})
    rows = [[one.name, one.transport, one.soc or "", one.os or "", one.description] for one in found]
    _table("devices", ["name", "transport", "processor", "system", "what"], rows)


@devices_app.command("probe", epilog="Example: edgekd devices probe local")
def devices_probe(name: Annotated[str, typer.Argument(help="Profile's name or file.")], as_json: Json = False) -> None:
    """Reach a device and say what it is, and its state now."""
    from edgekd.bench import devices, stage

    found = stage.probe(devices.load(name))
    if as_json:
        return _json({"schema": "edgekd/probe/1", "device": name, "found": found})
    _table(f"device: {name}", ["what", "value"], [[key, str(value)] for key, value in found.items()])


@devices_app.command("add", epilog="Example: edgekd devices add my-phone --transport adb --out my-phone.yaml")
def devices_add(
    name: Annotated[str, typer.Argument(help="What to call it.")],
    transport: Annotated[str, typer.Option("--transport", help="How it is reached: adb, ssh, ...")],
    option: Annotated[list[str] | None, typer.Option("--option", metavar="KEY=VALUE", help="Of the transport.")] = None,
    runner: Annotated[str, typer.Option("--runner", help="native, browser, or a file of runtimes/.")] = "native",
    out: Annotated[Path | None, typer.Option("--out", help="Write here instead of stdout; never overwrites.")] = None,
) -> None:
    """Reach a device, look at it, and write its profile."""
    import yaml

    from edgekd.bench import devices, stage

    device = devices.new(name, transport, runner, option or [])
    text = yaml.safe_dump(devices.written(device, stage.probe(device)), sort_keys=False, allow_unicode=True)
    _write_new(text, out)


@app.command(epilog="Example: edgekd report runs/banking77")
def report(recipe: RecipeArg, run_dir: RunDir = None, sets: Set = None, as_json: Json = False) -> None:
    """Make the report anew from what the run has; runs nothing."""
    from edgekd import outcome, pipeline

    loaded, folder = _load(recipe, run_dir, sets)
    result = pipeline.collect(loaded, folder)
    document = outcome.report(result)
    _show_report(document, folder, as_json)
    raise typer.Exit(outcome.exit_code(result))


@app.command(epilog="Example: edgekd init --task text-classification > recipe.yaml")
def init(
    task: Annotated[str, typer.Option("--task", help="Task of the recipe.")] = "text-classification",
    out: Annotated[Path | None, typer.Option("--out", help="Write here instead of stdout; never overwrites.")] = None,
) -> None:
    """Write a commented starter recipe."""
    from edgekd import recipe as recipes
    from edgekd import registry

    registry.load("tasks", task)
    text = recipes.starter(task)
    _write_new(text, out)


def _overwrite(file: Path, text: str) -> None:
    from edgekd.artifact import write_atomic

    try:
        write_atomic(file, text)
    except OSError as error:
        raise errors.BadInput(f"cannot be written ({error.strerror})", where=str(file)) from None


def _write_new(text: str, out: Path | None) -> None:
    """To a file that does not exist yet, or to stdout."""
    if out is None:
        _print(text)
        return
    try:
        with out.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise errors.BadInput("exists already", where=str(out), todo="Choose another name.") from None


@app.command(epilog="Example: edgekd schema > recipe.schema.json")
def schema() -> None:
    """Print the JSON Schema of a recipe, for editors."""
    from edgekd import recipe as recipes

    _json(recipes.json_schema())


@app.command(epilog="Example: edgekd tune recipe.yaml --set tune.trials=8 --set tune.max_steps=500 --jobs 2")
def tune(
    recipe: RecipeArg,
    run_dir: RunDir = None,
    sets: Set = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Students trained at the same time.")] = 1,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Search for a better student on the cached teacher: accuracy against size or latency. Goes on where it was."""
    from edgekd import progress
    from edgekd import tune as search

    loaded, folder = _load(recipe, run_dir, sets)
    with progress.show(quiet=quiet) as listen:
        document = search.run(loaded, folder, jobs=jobs, listen=listen)
    if as_json:
        return _json(document)
    rows = [
        [
            f"#{one['number']}",
            f"{one['metric']:.4f}",
            f"{one['cost']:,.6g}",
            "front" if one["front"] else "",
            str(one["values"]),
        ]
        for one in document["trials"]
    ]
    _table(f"tune: {folder}", ["trial", document["metric"], document["cost"], "", "values"], rows)
    _print(f"best: {folder / 'tune' / 'best.yaml'} (trial #{document['best']}), plot: {folder / 'tune' / 'front.svg'}")


@app.command(epilog="Example: edgekd explain runs/banking77 onnx-w8a8 --bisect")
def explain(
    recipe: RecipeArg,
    names: Annotated[list[str] | None, typer.Argument(help="Artefacts, e.g. onnx-w8a8; default: all.")] = None,
    run_dir: RunDir = None,
    sets: Set = None,
    bisect: Annotated[bool, typer.Option("--bisect", help="Find the first layer that diverges (minutes).")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Why is it slow or wrong? Kernels, fallbacks, time per operator, and where an artefact leaves its Program."""
    from edgekd import explain as explaining

    loaded, folder = _load(recipe, run_dir, sets)
    tell = (lambda text: None) if quiet else (lambda text: typer.echo(text, err=True))
    found = {
        name: explaining.explain(loaded, folder, name, bisect=bisect, progress=tell)
        for name in explaining.artefacts(loaded, folder, names or [])
    }
    if as_json:
        rows = {name: [vars(finding) for finding in findings] for name, findings in found.items()}
        return _json({"schema": "edgekd/explain/1", "run": str(folder), "artefacts": rows})
    for name, findings in found.items():
        _table(f"explain: {name}", ["what", "is", "what to do"], [[f.what, f.value, f.advice] for f in findings])


@app.command(epilog="Example: edgekd doctor examples/banking77.yaml")
def doctor(
    recipe: Annotated[Path | None, typer.Argument(help="Recipe to check too: names, data, plan.")] = None,
    run_dir: RunDir = None,
    sets: Set = None,
    as_json: Json = False,
) -> None:
    """Check this machine, and a recipe's names and data, before anything long is run."""
    from edgekd import doctor as checks

    loaded = _load(recipe, run_dir, sets) if recipe else None
    rows = checks.examine(loaded)
    if as_json:
        _json({"schema": "edgekd/doctor/1", "checks": rows})
    else:
        _table("doctor", ["what", "state", "detail"], [[r["what"], r["state"], r["detail"]] for r in rows])
    if any(row["state"] == "missing" for row in rows):
        raise typer.Exit(errors.EXIT_ENVIRONMENT)


@app.command(epilog="Example: edgekd targets --json")
def targets(as_json: Json = False) -> None:
    """List tasks, losses, schemes and targets, and whether each target's packages are installed."""
    from edgekd import doctor as checks
    from edgekd.quantize.scheme import GENERATIVE, LAYERS, SCHEMES

    found = checks.inventory()
    if as_json:
        _json({"schema": "edgekd/targets/1", **found})
        return
    kinds = list(SCHEMES) + sorted(set(LAYERS) - set(SCHEMES))
    for group, title, columns in (
        ("targets", "schemes, and kinds of layer that they may mix in", kinds),
        ("generators", "schemes of students that write text", list(GENERATIVE)),
    ):
        rows = [[t["name"], *("yes" if kind in t["accepts"] else "-" for kind in columns)] for t in found[group]]
        _table(title, ["target", *columns], rows)
        why = [[t["name"], kind, reason] for t in found[group] for kind, reason in t["refuses"].items()]
        _table("refused", ["target", "scheme or layer", "because"], why)
        _table(
            "packages",
            ["target", "packages", "to install"],
            [[t["name"], t["installed"], t["hint"]] for t in found[group]],
        )
    _print(f"tasks: {', '.join(found['tasks'])}")


@app.command(epilog="Example: edgekd quickstart --run-dir runs/quickstart")
def quickstart(run_dir: RunDir = None, sets: Set = None, as_json: Json = False, quiet: Quiet = False) -> None:
    """The whole way on this machine alone, offline: data, a teacher made on the spot, all targets, a report."""
    from edgekd import outcome, pipeline, progress
    from edgekd import quickstart as start

    folder = run_dir or Path("runs") / "quickstart"
    with progress.show(quiet=quiet) as listen:
        loaded = start.prepare(folder, sets or [], listen)
        result = pipeline.run(loaded, folder, listen=listen)
        if loaded.bench.enabled:
            pipeline.bench(result, listen=listen)
        document = outcome.report(result)
    _show_report(document, folder, as_json)
    raise typer.Exit(outcome.exit_code(result))


def _show_report(document: dict[str, Any], folder: Path, as_json: bool) -> None:
    if as_json:
        _json(document)
        return
    from edgekd.report.render import console

    _table(f"{document['name']}: {document['verdict']}", *console(document))
    for reason in document["reasons"]:
        _print(f"- {reason}")
    for name, why in document["refused"].items():
        _print(f"{name} was not made: {why}.")
    _print(f"report: {folder / 'report.html'}")


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        from edgekd import __version__

        _print(__version__)
        raise typer.Exit


def _fail(error: errors.EdgekdError, as_json: bool) -> int:
    sys.stderr.write(f"error: {error.line()}\n")
    if as_json:
        told = {"what": error.what, "where": error.where, "todo": error.todo, "exit_code": error.exit_code}
        _json({"schema": "edgekd/error/1", "error": told})
    return error.exit_code


def main() -> None:
    """Run the command line and exit with the documented code; a traceback only with EDGEKD_DEBUG=1."""
    import errno
    import logging
    import warnings

    if not os.environ.get("EDGEKD_DEBUG"):  # libraries' warnings are for us; what users should know is in the facts
        logging.disable(logging.WARNING)
        warnings.simplefilter("ignore")
    if processes.rank() > 0:  # of several processes the first one speaks
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    as_json = "--json" in sys.argv
    code = 0
    try:
        with _StdoutIsOurs():
            code = app(standalone_mode=False) or 0
    except errors.EdgekdError as error:
        code = _fail(error, as_json)
    except (KeyboardInterrupt, typer.Abort):
        code = errors.EXIT_INTERRUPTED
    except OSError as error:
        if os.environ.get("EDGEKD_DEBUG"):
            raise
        todo = "Free some space; the same command goes on from here." if error.errno == errno.ENOSPC else ""
        code = _fail(
            errors.Environment(error.strerror or str(error), where=str(error.filename or ""), todo=todo),
            as_json,
        )
    except Exception as error:
        usage = getattr(error, "format_message", None)  # typer's own copy of click has no public exceptions
        if usage is None and os.environ.get("EDGEKD_DEBUG"):
            raise
        if usage is not None:
            sys.exit(_fail(errors.BadInput(usage(), todo="`edgekd --help` shows how."), as_json))
        what = f"a defect in edgekd: {type(error).__name__}: {error}"
        code = _fail(errors.StepFailed(what, todo="EDGEKD_DEBUG=1 shows where; please report it."), as_json)
    if code == errors.EXIT_INTERRUPTED:  # typer turns an interrupt into this code, without a word
        sys.stderr.write("interrupted; the same command goes on from here\n")
    sys.exit(code)


class _StdoutIsOurs:
    """While a command runs, file descriptor 1 is stderr: libraries that print cannot spoil the result."""

    def __enter__(self) -> None:
        sys.stdout.flush()
        self.real = os.dup(1)
        os.dup2(2, 1)
        self.old, sys.stdout = sys.stdout, os.fdopen(os.dup(self.real), "w", encoding="utf-8")

    def __exit__(self, *_: object) -> None:
        sys.stdout.flush()
        os.dup2(self.real, 1)
        os.close(self.real)
        sys.stdout = self.old
