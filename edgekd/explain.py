"""Why is it slow or wrong? One table for an artefact: what runs it, what fell back, where time goes, where it diverges.

Everything but the time and the first diverging layer was measured by verify and export and is only brought together
here. Time per operator comes from the runtime's own profile, where the target has one (``profile``). The first
diverging layer is found by bisection: the Program is cut behind a layer, sent through the same target, run on the
golden inputs and compared with the cut Program computed in integers. So it finds what a converter or a runtime does
wrong; it does not read the artefact's own inner tensors, which most formats do not keep.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekd import pipeline, registry, variants
from edgekd.artifact import Artifact, Facts, read_json, write_json
from edgekd.errors import BadInput, EdgekdError
from edgekd.recipe import Recipe
from edgekd.tasks._contract import generates

DIVERGES = (
    0.005  # mean |difference| as a share of a tensor's range: a judgement, above rounding ties, below a lost scale
)
SLOW_SHARE = 0.02  # operators below this share of the time are summed up
ROWS = 3  # golden examples that judge a layer


@dataclass(frozen=True)
class Finding:
    """One row: what was looked at, what it is, and what to do where something is to be done."""

    what: str
    value: str
    advice: str = ""


def artefacts(recipe: Recipe, folder: Path, names: list[str]) -> dict[str, Artifact]:
    """The run's exported artefacts by name (``onnx-w8a8``); raises BadInput where there are none, or not these."""
    steps = pipeline.finished(recipe, folder).steps
    found = {name.removeprefix("export-"): made for name, made in steps.items() if name.startswith("export-")}
    unknown = [name for name in names if name not in found]
    if unknown or not found:
        what = f"no artefact '{unknown[0]}'" if unknown else "no artefact yet"
        todo = f"There are: {', '.join(sorted(found))}." if found else "`edgekd export` makes them."
        raise BadInput(what, where=str(folder), todo=todo)
    return {name: made for name, made in found.items() if not names or name in names}


def explain(
    recipe: Recipe, folder: Path, name: str, *, bisect: bool, progress: Callable[[str], None] = lambda text: None
) -> list[Finding]:
    """Findings about one artefact of a run, the most telling first."""
    writes = generates(registry.load("tasks", recipe.task))
    if writes and bisect:
        raise BadInput(
            "the layers of a student that writes text cannot be cut apart", where=name, todo="Leave out --bisect."
        )
    steps = pipeline.finished(recipe, folder).steps
    export, verify = steps[f"export-{name}"], steps.get(f"verify-{name}")
    target = export.facts["target"]
    module = registry.load(variants.group(recipe), target)
    findings = [Finding("file", f"{export.facts['size_bytes']:,} bytes")]
    if verify is None:
        findings.append(Finding("verified", "no", "`edgekd verify` opens it on its own runtime."))
    else:
        findings += _verified(verify.facts)
    findings += _outside(export.facts)
    program = steps[f"quantize-{name.removeprefix(f'{target}-')}"]
    findings += _time(module, export, program)
    if bisect:
        findings.append(_diverging(module, program, export.facts.get("max_length"), progress))
    return findings


def _verified(facts: Facts) -> list[Finding]:
    """What verify measured, in words."""
    runtime, parity = facts["runtime"], facts["parity"]
    found = [
        Finding("runtime", " ".join(str(runtime.get(key, "")) for key in ("runtime", "version", "provider")).strip())
    ]
    faithful = facts.get("faithful")
    if faithful:
        missing, kernels = faithful["numbers"]["missing"], faithful["kernels"]
        advice = "The converter changed or re-quantized them: this is a defect of the export." if missing else ""
        found.append(
            Finding("numbers of the Program in the file", f"{len(missing)} missing" if missing else "all", advice)
        )
        if kernels["wanted"]:
            ran = "cannot be told" if kernels["integer"] is None else f"{kernels['integer']} of {kernels['wanted']}"
            advice = ""
            if kernels["accelerated"] is False:
                advice = (
                    "Layers fell back to float: look below for operators outside the delegate, or update the runtime."
                )
            found.append(Finding("integer layers run in integers", f"{ran} ({kernels['how']})", advice))
        spread = {k: n for k, n in (kernels.get("names") or {}).items() if "uantize" in k}
        if spread:
            value = ", ".join(f"{count} {kind}" for kind, count in sorted(spread.items()))
            found.append(Finding("quantize and dequantize around layers", value))
    found.append(
        Finding(
            "answers against the Program",
            f"{100 * parity.get('argmax_agreement', facts['agreement'].get('program', 1.0)):.2f} % the same, "
            f"{100 * parity['identical']:.1f} % bit for bit, largest difference {parity['max_abs_delta']:.3g}",
        )
    )
    if parity.get("disagreements"):
        near = parity["largest_margin"] < 0.5 * parity["median_margin"]
        advice = "" if near else "Not only near-ties differ: `--bisect` names the first layer that does."
        value = f"lead of at most {parity['largest_margin']:.3g} (median of all answers {parity['median_margin']:.3g})"
        found.append(Finding("answers that differ", value, advice))
    if written := facts.get("written"):
        value = f"{written['differ']} of {written['tokens']} differ, {written['ties']} are ties"
        found.append(Finding("tokens written after the golden prompts", value))
    found += [Finding("caveat", str(caveat)) for caveat in runtime.get("caveats", [])]
    return found


def _outside(facts: Facts) -> list[Finding]:
    """Operators that a delegate left to slower code."""
    outside = facts.get("portable_ops")
    if not outside:
        return []
    worst = sorted(outside.items(), key=lambda pair: -pair[1])
    value = ", ".join(f"{count} {name}" for name, count in worst[:8]) + (", ..." if len(worst) > 8 else "")
    advice = "" if facts.get("delegates", 1) == 1 else f"The graph is cut into {facts['delegates']} delegated parts."
    return [Finding("operators outside the delegate", value, advice)]


def _time(module: Any, export: Artifact, program: Artifact) -> list[Finding]:
    """Time per operator of the median golden example."""
    if not hasattr(module, "profile"):
        return [Finding("time per operator", "the runtime has no profile that can be read here")]
    golden = _golden(program.path)
    try:
        rows = module.profile(export.path, golden[len(golden) // 2])
    except EdgekdError as error:
        return [Finding("time per operator", f"not measured ({error.what})")]
    total = sum(row["ms"] for row in rows) or 1.0
    found, rest = [], 0.0
    for row in sorted(rows, key=lambda row: -row["ms"]):
        if row["ms"] / total < SLOW_SHARE:
            rest += row["ms"]
            continue
        value = f"{row['ms']:.3f} ms, {100 * row['ms'] / total:.0f} %, {row['count']} times"
        found.append(Finding(f"time in {row['operator']}", value))
    return [*found, Finding("time in all others", f"{rest:.3f} ms")] if rest else found


def _golden(program: Path) -> list[dict[str, Any]]:
    """Golden inputs with a batch axis, by name, short to long."""
    import numpy as np

    golden = read_json(program / "golden.json")
    types = {one["name"]: one["dtype"] for one in golden["signature"]["inputs"]}
    columns: Mapping[str, list[Any]] = golden["inputs"]
    return [{k: np.array([v[i]], types[k]) for k, v in columns.items()} for i in range(len(golden["texts"]))]


def _diverging(module: Any, program: Artifact, max_length: int | None, progress: Callable[[str], None]) -> Finding:
    """The first layer whose output on the target is not the Program's."""
    from edgekd.quantize import cut

    names = cut.layers(program.path)
    rows = _golden(program.path)[:ROWS]
    signature = read_json(program.file("golden.json"))["signature"]

    def distance(index: int) -> float:
        progress(f"layer {index + 1} of {len(names)}: {names[index]}")
        with tempfile.TemporaryDirectory() as scratch:
            part, out = Path(scratch) / "program", Path(scratch) / "artefact"
            part.mkdir()
            out.mkdir()
            expected, described = cut.save(program.path, index, rows, part)
            inputs = {name: [row[name][0].tolist() for row in rows] for name in rows[0]}
            write_json(
                part / "golden.json",
                {
                    "signature": {**signature, "outputs": [described]},
                    "texts": [""] * len(rows),
                    "inputs": inputs,
                    "outputs": {"logits": [one[0].tolist() for one in expected]},
                },
            )
            facts = module.export(part, out, max_length=max_length or 0)
            write_json(out / "manifest.json", {"facts": facts})
            session = module.open_session(out)
            try:
                return max(_apart(session.run(row), wanted) for row, wanted in zip(rows, expected, strict=True))
            finally:
                session.close()

    worst, sources = len(names) - 1, cut.sources(program.path)
    whole = distance(worst)
    if whole <= DIVERGES:
        return Finding("first diverging layer", f"none: the last one is {100 * whole:.3f} % of its range apart")
    open_ = sorted(sources[worst])  # layers before it that may diverge too; a sound one clears all that it is made from
    while open_:
        middle = open_[len(open_) // 2]
        if distance(middle) > DIVERGES:
            worst, open_ = middle, [index for index in open_ if index in sources[middle]]
        else:
            open_ = [index for index in open_ if index != middle and index not in sources[middle]]
    advice = "Compare this layer in the file with the Program; meanwhile keep it float (quantize.keep_float)."
    return Finding("first diverging layer", f"{names[worst]} ({worst + 1} of {len(names)})", advice)


def _apart(found: Any, expected: Any) -> float:
    """Mean |difference| as a share of the range."""
    import numpy as np

    spread = float(np.ptp(expected)) or 1.0
    return float(np.abs(np.asarray(found, np.float64) - expected).mean()) / spread
