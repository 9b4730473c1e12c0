"""Names to modules: a file's name is its key.

``edgekd/targets/onnx.py`` is the target ``onnx``; ``edgekd/tasks/text_classification.py`` is the task
``text-classification``. Third parties add names through the entry-point groups ``edgekd.tasks``,
``edgekd.losses``, ``edgekd.targets``, ``edgekd.generators``, ``edgekd.transports`` and ``edgekd.platforms``. A name is
looked up before anything is imported, so an ImportError inside a plug-in is never mistaken for an unknown name.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import Any

from edgekd.errors import BadInput, Environment, closest

GROUPS = {
    "tasks": "edgekd.tasks",
    "losses": "edgekd.losses",
    "targets": "edgekd.targets",
    "generators": "edgekd.generators",
    "transports": "edgekd.bench.transports",
    "platforms": "edgekd.bundle",
}


def _built_in(group: str) -> dict[str, str]:
    package = GROUPS[group]
    folder = Path(__file__).parent.joinpath(*package.split(".")[1:])
    return {
        module.name.replace("_", "-"): f"{package}.{module.name}"
        for module in pkgutil.iter_modules([str(folder)])
        if not module.name.startswith("_") and module.name != "stage"  # stage.py runs plug-ins, it is none
    }


def _third_party(group: str) -> dict[str, Any]:
    from importlib.metadata import entry_points

    return {entry.name: entry for entry in entry_points(group=f"edgekd.{group}")}


def names(group: str) -> list[str]:
    """All known names of a group, built-in and third-party, sorted. Imports none of them."""
    return sorted({*_built_in(group), *_third_party(group)})


def load(group: str, name: str) -> Any:
    """The module (or object) registered as ``name``; raises BadInput that lists the known names."""
    module = _built_in(group).get(name)
    if module is not None:
        return importlib.import_module(module)
    entry = _third_party(group).get(name)
    if entry is not None:
        return entry.load()
    known = names(group)
    raise BadInput(
        f"unknown {group.removesuffix('s')} '{name}'",
        todo=f"Known: {', '.join(known) or 'none'}.{closest(name, known)}",
    )


def require(module: str, extra: str) -> Any:
    """Import a vendor package, or say in one line how to install it. A broken package tells its own error."""
    import importlib.util

    if importlib.util.find_spec(module.partition(".")[0]) is None:
        raise Environment(f"package '{module}' is not installed", todo=f"pip install 'edgekd[{extra}]'")
    return importlib.import_module(module)


def folder(name: str) -> Path:
    """``devices`` or ``runtimes``, which are no modules: in the checkout, or in the installed package."""
    package = Path(__file__).resolve().parent
    for found in (package / "_data" / name, package.parent / name):
        if found.is_dir():
            return found
    raise Environment(f"the folder '{name}' is missing from this installation", todo="Install edgekd again.")
