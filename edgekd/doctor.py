"""What this machine can do, and whether a recipe would start and pay: checks before anything long is run."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from edgekd import pipeline, registry, variants
from edgekd.bench import devices, runners, stage
from edgekd.errors import Environment
from edgekd.quantize import scheme
from edgekd.recipe import Recipe
from edgekd.tasks._contract import generates


def inventory() -> dict[str, Any]:
    """Tasks, schemes and targets by name; for each target the packages it needs and their versions.

    ``generators`` are the targets of students that write text.
    """
    from edgekd import losses

    return {
        "tasks": registry.names("tasks"),
        "losses": sorted(losses.known()),
        "schemes": sorted(scheme.SCHEMES),
        "targets": _exporters("targets", list(scheme.LAYERS)),
        "generators": _exporters("generators", list(scheme.GENERATIVE)),
    }


def _exporters(group: str, kinds: list[str]) -> list[dict[str, Any]]:
    targets = []
    for name in registry.names(group):
        module = registry.load(group, name)
        versions = {package: pipeline.version(package) for package in module.distributions}
        missing = [package for package, version in versions.items() if version == "missing"]
        targets.append(
            {
                "name": name,
                "accepts": sorted(module.accepts),
                "refuses": {
                    kind: module.refuses.get(kind, "not written yet") for kind in kinds if kind not in module.accepts
                },
                "packages": versions,
                "installed": "missing: " + ", ".join(missing)
                if missing
                else ", ".join(map(" ".join, versions.items())),
                "hint": f"pip install 'edgekd[{module.extra}]'" if missing else "",
            }
        )
    return targets


def examine(loaded: tuple[Recipe, Path] | None) -> list[dict[str, str]]:
    """Rows of ``{"what", "state": "ok" | "missing" | "note", "detail"}``; errors in the recipe are raised."""
    rows = []
    wanted = loaded[0].export.targets if loaded else None
    for target in inventory()[variants.group(loaded[0]) if loaded else "targets"]:
        asked = wanted is None or target["name"] in wanted
        state = "ok" if not target["hint"] else ("missing" if asked and wanted is not None else "note")
        rows.append(
            _row(
                f"target {target['name']}",
                state,
                " ".join(filter(None, (target["installed"], target["hint"]))),
            )
        )
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    rows.append(_row("free disk", "ok" if free > 2 else "note", f"{free:.1f} GB"))
    rows.append(_row("processors", "ok", f"{os.cpu_count()}, load {os.getloadavg()[0]:.1f}"))
    if loaded is None:
        return rows
    recipe, folder = loaded
    rows += [_device(name, recipe) for name in recipe.bench.devices if recipe.bench.enabled]
    planned = pipeline.plan(recipe, folder)
    made, runs = (sum(p.status == status for p in planned) for status in ("hit", "run"))
    rows.append(_row("plan", "ok", f"{made} steps made, {runs} to run"))
    rows += [_row("plan", "note", p.why) for p in planned if p.status == "refused"]
    data = pipeline.run(recipe, folder, until="data").steps["data"]
    facts = data.facts
    rows.append(_row("data", "ok", ", ".join(f"{name} {count}" for name, count in facts["rows"].items())))
    cut = {name: rate for name, rate in facts["truncation_rate"].items() if rate}
    rows.append(_row("cut texts", "note" if cut else "ok", ", ".join(f"{k} {v:.1%}" for k, v in cut.items()) or "none"))
    rows += [_row("data", "note", warning) for warning in facts.get("warnings", [])]
    if recipe.teacher.endpoint:  # it shows nothing that could be examined without paying for it
        return rows
    from edgekd.distill import examine as distillation

    steps = pipeline.finished(recipe, folder).steps
    teach, baseline = steps.get("teach"), steps.get("distill-baseline")
    known = scheme.of_task(generates(registry.load("tasks", recipe.task)))
    rows += [_row(*finding) for finding in distillation.examine(recipe, data, teach, baseline, known)]
    return rows


def _device(name: str, recipe: Recipe) -> dict[str, str]:
    """Whether a device answers, and has the runners that the recipe's targets need."""
    device = devices.load(name)
    wanted = [target for target in recipe.export.targets if device.runtimes is None or target in device.runtimes]
    try:
        for target in wanted:
            runners.files(device, target)
        found = stage.probe(device)
    except Environment as error:
        return _row(f"device {device.name}", "missing", str(error))
    what = ", ".join(str(found[key]) for key in ("cpu", "machine") if found.get(key))
    left = sorted({*recipe.export.targets} - {*wanted})
    return _row(f"device {device.name}", "ok", what + (f"; not for {', '.join(left)}" if left else ""))


def _row(what: str, state: str, detail: str) -> dict[str, str]:
    return {"what": what, "state": state, "detail": detail}
