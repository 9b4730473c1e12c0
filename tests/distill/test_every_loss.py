"""Every loss that a recipe can name trains a student from YAML alone, from the cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekd import artifact, losses, pipeline, recipe
from edgekd.distill import stage

POOL = {"hidden": "cls", "samples": "mean", "outputs": "output", "attention": "none", "relations": "none"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:  # type: ignore[no-untyped-def]
    return tmp_path_factory.mktemp("run")  # one run folder: rows that one loss had cached serve the next


@pytest.mark.parametrize("name", sorted(losses.known()))
def test_it_trains_from_yaml(name, tiny, folder: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    pool = POOL[losses.find(name).compares]
    term = f"  losses: [{{loss: {name}, pool: {pool}, heads: 4}}]\n  alpha: 0.0\n"
    text = tiny.recipe.replace("distill:\n", "distill:\n" + term, 1)
    sets = ("distill.student.hidden_size=16", "distill.student.heads=4", "distill.epochs=1")
    made = recipe.parse(text, overrides=sets)
    taught = pipeline.run(made, folder, until="teach")
    parents = {"data": taught.steps["data"], "teach": taught.steps["teach"]}
    facts = stage.run(made, artifact.Inputs(parents, {"kind": "student"}), tmp_path)
    (told,) = facts["terms"]
    assert told["name"] == name
    first = next(entry[name] for entry in facts["history"] if name in entry)
    assert first > 0 and told["value"] < 10 * first
    assert facts["steps"] == 14
