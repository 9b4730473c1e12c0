"""Schemes: which numbers an artefact holds. A scheme is data; its reference module says what it means.

Light on purpose: the plan reads this to refuse what a target cannot carry, before torch is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Literal

from edgekd.errors import BadInput, closest
from edgekd.recipe import Quantize

GENERATIVE = ("fp32", "w8", "w4", "w8a8-dynamic")  # of students that write text: what their runtimes can hold
BLOCK = 32  # inputs that share a scale in all their block formats
CONTRACTING = "contracting"  # in place of a name pattern: the second half of every feed-forward block


@dataclass(frozen=True)
class Layer:
    """How a linear layer is stored and computed; weights are symmetric.

    ``weight_bits``: 32 and 16 are floats, 8 and 4 integers; ``group`` inputs share a scale (0: a whole output channel
    does). ``activations``: ``none`` computes in float; ``static`` has one int8 affine scale per tensor, ``dynamic`` one
    per token, chosen at run time. ``output``: whether a static layer's result is quantized too.
    """

    name: str
    weight_bits: int
    activations: Literal["none", "static", "dynamic"]
    group: int = 0
    output: bool = False


LAYERS = {
    layer.name: layer
    for layer in (
        Layer("fp32", 32, "none"),
        Layer("fp16", 16, "none"),
        Layer("w8", 8, "none"),
        Layer("w4", 4, "none", group=32),
        Layer("w8a8", 8, "static", output=True),
        Layer("w8a8-float-output", 8, "static"),
        Layer("w8a8-dynamic", 8, "dynamic"),
    )
}


@dataclass(frozen=True)
class Scheme:
    """The layer that all linear layers are, those that ``overrides`` (name pattern -> layer) names apart.

    Embedding tables are int8 by row (symmetric) or floats of ``embedding_bits``.
    """

    name: str
    embedding_bits: int
    summary: str
    overrides: Mapping[str, str] = field(default_factory=dict)
    group: int = 32
    upgrade: str = ""  # what sensitive layers are kept as, where the recipe looks for them
    smooth: float = 0.0  # SmoothQuant's alpha; 0: no smoothing

    @property
    def weight_bits(self) -> int:
        """Bits of most weights: what a size estimate needs."""
        return LAYERS[self.name].weight_bits

    @property
    def trained(self) -> bool:
        """Whether there is anything that training could repair: halves are as good as floats."""
        return self.weight_bits < 16

    def kinds(self) -> set[str]:
        """Names of the layers that it may hold: what a target has to carry."""
        return {self.name, *self.overrides.values()} | ({self.upgrade} if self.upgrade else set())

    def layer(self, name: str, inputs: int, outputs: int, width: int | None = None) -> Layer:
        """What the linear layer of this name and size becomes in a model of this width.

        The last pattern that fits wins. A layer whose inputs do not fill the groups of ``w4`` is kept as ``w8``.
        """
        kind = self.name
        for pattern, other in self.overrides.items():
            if inputs > outputs == width if pattern == CONTRACTING else fnmatchcase(name, pattern):
                kind = other
        found = LAYERS[kind]
        if not found.group:
            return found
        return replace(found, group=self.group) if inputs % self.group == 0 else LAYERS["w8"]


SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme("fp32", 32, "the float sibling"),
        Scheme("fp16", 16, "half-precision weights; arithmetic in float, half precision where the runtime says so"),
        Scheme(
            "w8a8",
            8,
            "int8 weights per channel, int8 activations per tensor, static; int8 embeddings",
            overrides={CONTRACTING: "w8a8-float-output"},
            smooth=0.75,
        ),
        Scheme("w8a8-dynamic", 8, "int8 weights per channel, int8 activations per token, chosen at run time"),
        Scheme("w8", 8, "int8 weights per channel, float arithmetic: size only"),
        Scheme("w4", 8, "int4 weights in groups of inputs, float arithmetic; int8 embeddings"),
    )
}


def get(name: str, settings: Quantize | None = None) -> Scheme:
    """The scheme of this name, with the recipe's overrides; raises BadInput that lists the known names."""
    found = SCHEMES[_known(name, SCHEMES, "scheme")]
    if settings is None or name == "fp32":
        return found
    for other, patterns in settings.overrides.items():
        _known(other, SCHEMES, "scheme")
        for kind in patterns.values():
            _known(kind, LAYERS, "layer")
    overrides = dict(settings.overrides.get(name, found.overrides)) | dict.fromkeys(settings.keep_float, "fp32")
    upgrade = settings.mixed.upgrade.get(name, "") if settings.mixed else ""
    if upgrade:
        _known(upgrade, LAYERS, "layer")
    smooth = found.smooth if settings.smooth is None else settings.smooth
    return replace(found, overrides=overrides, group=settings.group, upgrade=upgrade, smooth=smooth)


def generative(name: str, settings: Quantize | None = None) -> Scheme:
    """The scheme of this name for a student that writes text; raises BadInput for one that its runtimes do not hold."""
    found = get(name, settings)
    strange = sorted(found.kinds() - set(GENERATIVE))
    if strange:
        raise BadInput(
            f"{strange[0]} is no scheme of a student that writes text",
            where="quantize.schemes",
            todo=f"Choose among {', '.join(GENERATIVE)}.",
        )
    if found.smooth:
        raise BadInput(
            "activations of a student that writes text are not smoothed",
            where="quantize.smooth",
            todo="Leave it out.",
        )
    if found.group != BLOCK:
        raise BadInput(
            f"quantize.group is {found.group}; runtimes of text generation share int4 scales among {BLOCK} inputs",
            where="recipe",
            todo=f"Set it to {BLOCK}.",
        )
    return found


def of_task(generates: bool) -> list[Scheme]:
    """The schemes that a student of a task may have; ``generates``: one that writes text."""
    return [scheme for name, scheme in SCHEMES.items() if name in GENERATIVE or not generates]


def _known(name: str, table: Mapping[str, object], what: str) -> str:
    if name not in table:
        known = list(table)
        raise BadInput(f"unknown {what} '{name}'", todo=f"Known: {', '.join(known)}.{closest(name, known)}")
    return name
