"""What a run came to: the verdicts, the exit code, the report, and an artefact as a bundle takes it.

All of it is read from the facts and files of finished steps; nothing here runs one.
"""

from __future__ import annotations

import os
import time
from functools import cache, partial
from pathlib import Path
from typing import Any

from edgekd import artifact, processes, registry, variants
from edgekd.bundle._contract import App
from edgekd.errors import EXIT_ENVIRONMENT, EXIT_GATE, EXIT_OK, BadInput, Environment, closest
from edgekd.pipeline import Result, version
from edgekd.verify import gate


def artifacts_of(result: Result) -> list[tuple[str, str, str]]:
    """``(name, target, scheme)`` of every artefact the recipe asks for, in its order.

    A part stands with the target, whose artefacts are compared among themselves: ``("onnx-image-fp32", "onnx-image",
    "fp32")``.
    """
    wanted = variants.artifacts(result.recipe)
    return [(variants.label(one), variants.label(one, "target", "part"), one["scheme"]) for one in wanted]


def verdicts(result: Result) -> dict[str, dict[str, Any]]:
    """The gate's verdict on every artefact, by name (``onnx-w8a8``)."""
    headline = registry.load("tasks", result.recipe.task).HEADLINE
    bench, schemes = result.facts("bench") or {}, set(result.recipe.quantize.schemes) - {"fp32"}
    found: dict[str, dict[str, Any]] = {}
    for name, target, scheme in artifacts_of(result):
        lost = result.failures.get(f"export-{name}") or result.failures.get(f"verify-{name}")
        export, verify = result.facts(f"export-{name}"), result.facts(f"verify-{name}")
        if lost or export is None or verify is None:
            found[name] = gate.failed(lost.line() if lost else "not made yet")
            continue
        mine = [row for row in bench.get("summaries", []) if (row["target"], row["scheme"]) == (target, scheme)]
        pairs = [row for row in bench.get("comparisons", []) if (row["target"], row["scheme"]) == (target, scheme)]
        sibling, reference = result.facts(f"export-{target}-fp32"), scheme == "fp32" and bool(schemes)
        found[name] = gate.judge(
            result.recipe.gate, headline, verify, export, sibling, mine, pairs, reference=reference
        )
    return found


def app(result: Result, name: str, artefact: str, tokenizer: str = "") -> App:
    """One artefact of a finished run as a bundle takes it; raises BadInput for an unknown or unmade one."""
    found = [one for one, _, _ in artifacts_of(result)]
    export = result.steps.get(f"export-{artefact}")
    if artefact not in found or export is None:
        made = [one for one in found if f"export-{one}" in result.steps]
        todo = f"Known: {', '.join(made) or 'none'}.{closest(artefact, made)}"
        raise BadInput(f"the run has no artefact '{artefact}'", where=str(result.folder), todo=todo)
    verify, data = result.facts(f"verify-{artefact}"), result.facts("data") or {}
    from edgekd import __version__

    recipe = result.recipe
    return App(
        name=name,
        task=recipe.task,
        target=export.facts["target"],
        scheme=export.facts["scheme"],
        artifact=export.path,
        export=dict(export.facts),
        labels=tuple(data.get("labels", [])),
        pad_id=(result.facts("quantize-fp32") or {}).get("pad_token_id", 0),
        bound=verify["golden"]["bound"] if verify else 0.0,
        verdict=verdicts(result)[artefact],
        measured=verify or {},
        provenance={
            "edgekd": __version__,
            "recipe": artifact.sha256_json(recipe.model_dump(mode="json")),
            "teacher": Path(recipe.teacher.model).name if recipe.teacher.model else None,
            "license": recipe.card.license,
            "data": {"digest": result.steps["data"].digest, "rows": dict(data.get("rows", {}))},
            "artifact": export.digest,
            "tools": artifact.read_json(export.path / artifact.MANIFEST)["tools"],
        },
        extra=_app_settings(result),
        tokenizer=tokenizer,
        student=result.steps["distill-student"].path / "model",
        artifacts={one: result.steps[f"export-{one}"].path for one in found if f"export-{one}" in result.steps},
        report=cache(partial(document, result)),
    )


def _app_settings(result: Result) -> dict[str, Any]:
    """What an app must know of the task beside its labels; most tasks have nothing to say."""
    told = getattr(registry.load("tasks", result.recipe.task), "app_settings", None)
    if told is None:
        return {}
    from edgekd.data.stage import read_split

    found: dict[str, Any] = told(read_split(result.steps["data"].path, "test"))
    return found


def report(result: Result) -> dict[str, Any]:
    """Write ``report.json``, ``report.html`` and ``report.md`` from what the run has; returns the document."""
    from edgekd.report import render

    made = document(result)
    if processes.rank() > 0:
        return made
    artifact.write_json(result.folder / "report.json", made)
    artifact.write_atomic(result.folder / "report.html", render.html(made))
    artifact.write_atomic(result.folder / "report.md", render.markdown(made))
    return made


def document(result: Result) -> dict[str, Any]:
    """The report's document, from what the run has; writes nothing."""
    from edgekd import __version__
    from edgekd.report import build

    names = artifacts_of(result)
    return build.document(
        build.RunFacts(
            name=result.recipe.name,
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            version=__version__,
            recipe=result.recipe.model_dump(mode="json"),
            environment=environment(),
            data=result.facts("data") or {},
            teach=result.facts("teach") or {},
            student=result.facts("distill-student") or {},
            baseline=result.facts("distill-baseline"),
            quantize={
                name: facts
                for name in map(variants.label, variants.programs(result.recipe))
                if (facts := result.facts(f"quantize-{name}"))
            },
            artifacts=names,
            exports={name: facts for name, _, _ in names if (facts := result.facts(f"export-{name}"))},
            verifications={name: facts for name, _, _ in names if (facts := result.facts(f"verify-{name}"))},
            verdicts=verdicts(result),
            bench=result.facts("bench"),
            failures={step: error.line() for step, error in result.failures.items()},
            headline=registry.load("tasks", result.recipe.task).HEADLINE,
            discordant=_discordant(result),
            agreement=_agreement(result),
            refused=variants.refused(result.recipe),
        )
    )


def environment() -> dict[str, Any]:
    """This host in a few facts, for the report."""
    import platform

    packages = (
        "torch",
        "transformers",
        "onnxruntime",
        "ai-edge-litert",
        "litert-torch",
        "coremltools",
        "executorch",
        "openvino",
    )
    return {
        "os": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
    }


def _discordant(result: Result) -> tuple[int, int] | None:
    """Test rows that only the student, and only the baseline, answers rightly."""
    if not {"distill-student", "distill-baseline", "data"} <= set(result.steps):
        return None
    from edgekd.data.stage import read_split
    from edgekd.outputs import read_outputs

    task = registry.load("tasks", result.recipe.task)
    examples = read_split(result.steps["data"].path, "test")
    files = [result.steps[f"distill-{kind}"].file("test_logits.safetensors") for kind in ("student", "baseline")]
    student, baseline = (task.correct(read_outputs(file), examples) for file in files)
    if student is None or baseline is None:
        return None
    return int((student & ~baseline).sum()), int((baseline & ~student).sum())


def _agreement(result: Result) -> dict[str, list[dict[str, Any]]]:
    """By scheme (and part), how far every two artefacts, the Program and the float student agree on the test rows."""
    from edgekd.outputs import read_outputs, read_rows
    from edgekd.report.agreement import Answers, pairs

    def answers(name: str, step: str, file: str) -> dict[str, Answers]:
        if step not in result.steps:
            return {}
        path = result.steps[step].file(file)
        outputs = read_outputs(path)
        return {name: Answers(read_rows(path) or range(len(outputs)), outputs)}

    task, found = registry.load("tasks", result.recipe.task), {}
    student = answers("student", "distill-student", "test_logits.safetensors")
    for name in map(variants.label, variants.programs(result.recipe)):
        program = answers("program", f"quantize-{name}", "reference.safetensors")
        artifacts: dict[str, Answers] = {}
        for target in result.recipe.export.targets:
            artifacts |= answers(target, f"verify-{target}-{name}", "logits.safetensors")
        if artifacts:
            found[name] = pairs(student | program | artifacts, task.agree)
    return found


def exit_code(result: Result) -> int:
    """0 when every artefact passes, 1 when the gate failed one, 3 when all that failed lacks a package or a device."""
    if result.failures and all(
        isinstance(error, Environment) or "did not come out" in error.what for error in result.failures.values()
    ):
        return EXIT_ENVIRONMENT
    if result.failures:
        return EXIT_GATE
    judged = any(step.startswith("verify-") for step in result.steps)
    failed = judged and any(entry["verdict"] != "pass" for entry in verdicts(result).values())
    return EXIT_GATE if failed else EXIT_OK
