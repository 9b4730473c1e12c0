"""From a verified artefact to a folder that an app team drops in: library, model, tokenizer, golden texts, provenance.

Refuses what cannot work (platform, target and task that do not go together, a missing tokenizer), what is not proven
(an artefact whose verdict is not "pass", unless asked for, and then it says so), and to write over anything. A bundle
is written beside its place and moved there whole.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path
from typing import Any

from edgekd import registry
from edgekd.artifact import Facts, sha256_file
from edgekd.bundle import _native, _provenance
from edgekd.bundle._contract import App
from edgekd.errors import BadInput

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
LEFT_OUT = frozenset({"manifest.json"})  # of the artefact's folder: it names this machine's steps


def make(app: App, platform: str, out: Path, *, allow_unverified: bool = False, key: Path | None = None) -> Facts:
    """Write the bundle to ``out``; facts: ``bundle.json`` without the digests. BadInput comes before any writing."""
    module = registry.load("platforms", platform)
    app = dataclasses.replace(app, tokenizer=app.tokenizer or module.TOKENIZERS[0])
    _check(app, platform, module, out, allow_unverified)
    part, place = out.with_name(out.name + ".partial"), module.place(app)
    shutil.rmtree(part, ignore_errors=True)
    try:
        for name, content in {**_model(app, place), **module.files(app)}.items():
            _put(part / name, content)
        readme = module.readme(app) if hasattr(module, "readme") else _readme(app, platform, module)
        _put(part / "README.md", readme.encode())
        digests = _digests(part)
        _put(part / _provenance.BOM, _provenance.text(_provenance.bom(app, digests, module.RUNTIMES[app.target])))
        digests = _digests(part)
        sizes = {name: (part / name).stat().st_size for name in digests}
        unverified = app.verdict["verdict"] != "pass"
        runtime = {"package": module.RUNTIMES[app.target], "bytes": _runtime_bytes(module, app.target)}
        parts = _provenance.parts(sizes, place, getattr(module, "BESIDE", ()))
        stated = _provenance.manifest(app, platform, place, digests, parts, runtime, unverified)
        _put(part / _provenance.MANIFEST, _provenance.text(stated))
        if key is not None:
            _provenance.sign(part, key)
        part.rename(out)
    except OSError as error:
        raise BadInput(f"the bundle cannot be written ({error})", where=str(out)) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return {name: value for name, value in stated.items() if name != "files"}


def _check(app: App, platform: str, module: Any, out: Path, allow_unverified: bool) -> None:
    if not NAME.fullmatch(app.name):
        todo = "Lower-case letters, digits and single hyphens, a letter first: --name my-intents."
        raise BadInput(f"'{app.name}' is no package name", where="--name", todo=todo)
    known = {"target": module.TARGETS, "task": module.TASKS, "tokenizer": module.TOKENIZERS}
    for what, mine in (("target", app.target), ("task", app.task), ("tokenizer", app.tokenizer)):
        if mine not in known[what]:
            todo = f"It takes {', '.join(sorted(known[what]))}."
            raise BadInput(f"{platform} has no library for the {what} {mine}", where="bundle", todo=todo)
    if not (app.artifact / "tokenizer.json").is_file():
        raise BadInput("there is no tokenizer.json, so no text can be read", where=str(app.artifact))
    if app.tokenizer == "native":
        _native.check(app.artifact / "tokenizer.json", platform)
    if app.verdict["verdict"] != "pass" and not allow_unverified:
        reasons = "; ".join(app.verdict["reasons"][:3]) or "it was not verified"
        todo = "Mend the run, or give --allow-unverified: the bundle will say so."
        raise BadInput(f"{app.target}-{app.scheme} did not pass the gate: {reasons}", where="bundle", todo=todo)
    if out.exists():
        raise BadInput("exists already", where=str(out), todo="Choose another folder.")


def _model(app: App, place: str | None) -> dict[str, bytes | Path]:
    """``app.json`` and ``model/``, where the platform wants them."""
    if place is None:
        return {}
    found: dict[str, bytes | Path] = {
        f"model/{path.relative_to(app.artifact)}": path
        for path in sorted(app.artifact.rglob("*"))
        if path.is_file() and path.name not in LEFT_OUT
    }
    found["app.json"] = _provenance.text(app.settings)
    inside = f"{place}/" if place else ""
    return {f"{inside}{name}": content for name, content in found.items()}


def _put(place: Path, content: bytes | Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        place.write_bytes(content)
    else:
        shutil.copyfile(content, place)


def _runtime_bytes(module: Any, target: str) -> dict[str, int]:
    """What the runtime adds for each ABI; nothing where nobody measured it."""
    return dict(getattr(module, "BYTES", {}).get(target, {}))


def _digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): sha256_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in _provenance.UNSEALED
    }


def _readme(app: App, platform: str, module: Any) -> str:
    """What a person who opens the folder needs."""
    metrics = app.measured.get("metrics", {})
    rows = [f"| {name} | {value:.4g} |" for name, value in metrics.items() if isinstance(value, int | float)]
    doubt = "" if app.verdict["verdict"] == "pass" else "\n**Not verified**: this artefact did not pass its gate.\n"
    usage = module.USAGE[app.task].format(name=app.name)
    return (
        f"# {app.name}\n\n{app.task} on {platform}, {app.target} {app.scheme}, made by edgekd "
        f"{app.provenance['edgekd']} from {app.provenance['teacher']}.\n{doubt}\n{usage}\n\n"
        f"Measured on the test split, by this file on its own runtime:\n\n| | |\n|---|---|\n" + "\n".join(rows) + "\n\n"
        "`edgekd bundle verify .` checks every file against `bundle.json`.\n"
    )


def verify(folder: Path, public_key: Path | None = None) -> Facts:
    """Whether a bundle is whole: see ``_provenance.check``."""
    return _provenance.check(folder, public_key)
