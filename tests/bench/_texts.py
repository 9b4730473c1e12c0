"""Artefacts that write text, of students made on the spot, sealed as the export stage seals them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _pairs
import numpy as np
from _language import program, student

from edgekd import artifact, recipe, registry
from edgekd.bench import tokens

SETTINGS = ("blocks=2", "min_runs=4", "min_seconds=0", "max_seconds=1", "cold_loads=1", "timeout_seconds=60")
RANGE = 20.0  # of the logits, as a Program's facts have it


class Texts:
    """A student, its Program, and one artefact for each target."""

    def __init__(self, folder: Path, task: str = "text-generation", scheme: str = "w4", **sizes: Any) -> None:
        self.folder, self.task, self.scheme = folder, task, scheme
        if task == "text-generation":
            self.made = program(student(folder / "student", num_hidden_layers=1, **sizes), scheme, folder / "p.made")
        else:
            made = _pairs.folder(folder / "student", "t5", layers=1, **sizes)
            self.made = _pairs.program(made, scheme, folder / "p.made")
        self.golden: dict[str, Any] = artifact.read_json(self.made / "golden.json")
        self.program = self._sealed("program", {"scheme": scheme, "logit_range": RANGE}, self.made)

    def export(self, target: str, max_length: int = 48) -> artifact.Artifact:
        place = self.folder / f"{target}.made"
        place.mkdir()
        facts = registry.load("generators", target).export(self.made, place, max_length=max_length)
        shutil.copyfile(self.made / "golden.json", place / "golden.json")
        return self._sealed(f"{target}-{self.scheme}", {"target": target, "scheme": self.scheme, **facts}, place)

    def _sealed(self, name: str, facts: Any, made: Path) -> artifact.Artifact:
        part = artifact.partial_of(self.folder / name)
        shutil.copytree(made, part)
        return artifact.seal(self.folder / name, stage="export", label=name, key="k", facts=facts, parents={}, tools={})

    def bench(self, exports: Sequence[artifact.Artifact], out: Path, devices: str = "local", **change: Any) -> Any:
        """The facts of the bench stage; ``devices`` is what a recipe says."""
        sets = [f"bench.{one}" for one in (*SETTINGS, f"devices=[{devices}]")] + [f"task={self.task}"]
        view: Any = recipe.View(recipe.parse("name: x\n", overrides=sets), ("bench", "task", "data.max_length"))
        parents = {"student": self.program, f"program-{self.scheme}": self.program}
        parents |= {f"{one.facts['target']}-{one.facts['scheme']}": one for one in exports} | change
        out.mkdir(exist_ok=True)
        return tokens.run(view, artifact.Inputs(parents=parents), out)


def written(session: Any, prompt: Sequence[int], count: int) -> list[int]:
    """What a generator's own session writes after a prompt."""
    session.reset()
    found, logits = [], session.feed(prompt)
    for _ in range(count):
        found.append(int(np.argmax(logits)))
        logits = session.feed([found[-1]])
    return found
