"""What a recipe asks for, as the variants of its steps: schemes, parts and targets, and the words that name them."""

from __future__ import annotations

from collections.abc import Mapping

from edgekd import registry
from edgekd.quantize import scheme as known
from edgekd.recipe import Recipe
from edgekd.tasks import _parts
from edgekd.tasks._contract import generates


def group(recipe: Recipe) -> str:
    """The group of the modules that export: what a language model becomes keeps a cache."""
    return "generators" if generates(registry.load("tasks", recipe.task)) else "targets"


def schemes(recipe: Recipe) -> list[str]:
    """The recipe's schemes behind the float sibling, which is always made."""
    return ["fp32", *(scheme for scheme in recipe.quantize.schemes if scheme != "fp32")]


def programs(recipe: Recipe) -> list[dict[str, str]]:
    """Variants of the quantize stage: each scheme, of each part of a student that becomes several artefacts."""
    parts = [{"part": part} for part in _parts.names(registry.load("tasks", recipe.task))] or [{}]
    return [{**part, "scheme": scheme} for part in parts for scheme in schemes(recipe)]


def pairs(recipe: Recipe) -> list[dict[str, str]]:
    """Each Program with each target, those that are refused among them."""
    return [{"target": target, **program} for target in recipe.export.targets for program in programs(recipe)]


def artifacts(recipe: Recipe) -> list[dict[str, str]]:
    """Variants of the export stage: each Program, for each target that carries it."""
    return [pair for pair in pairs(recipe) if refusal(recipe, pair["target"], pair["scheme"]) is None]


def refused(recipe: Recipe) -> dict[str, str]:
    """Artefacts that are not made, by name (``onnx-w8a8``), with the reason."""
    found = {label(pair): refusal(recipe, pair["target"], pair["scheme"]) for pair in pairs(recipe)}
    return {name: reason for name, reason in found.items() if reason is not None}


def refusal(recipe: Recipe, target: str, scheme: str) -> str | None:
    """Why a target cannot carry a scheme, or one of the layers that it mixes in; None where it can."""
    module, wanted = registry.load(group(recipe), target), known.get(scheme, recipe.quantize)
    for kind in sorted(wanted.kinds() - module.accepts):
        what = scheme if kind == scheme else f"{kind} layers, which {scheme} mixes in here"
        return f"{target} does not accept {what}: {module.refuses.get(kind, 'not written yet')}"
    return None


def label(variant: Mapping[str, str], *names: str) -> str:
    """The values of a variant, or those of some names that it has, in one word: ``onnx-w8a8``, ``onnx-image-w8a8``."""
    return "-".join(variant[name] for name in names or variant if name in variant)
