"""The same command under ``torchrun``: two processes, one run."""

from __future__ import annotations

from pathlib import Path

from _material import in_two_processes

from edgekd import artifact, pipeline, recipe
from edgekd.teach.cache import FOLDER, SAMPLES, Cache


def test_two_processes_share_teacher_and_training(tiny, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    text = tiny.recipe.replace("epochs: 3", "epochs: 4")
    (tmp_path / "recipe.yaml").write_text(text)
    told = in_two_processes("distill", tmp_path / "recipe.yaml", tmp_path / "two", 300)
    alone = pipeline.run(recipe.parse(text), tmp_path / "one", until="distill")
    one, two = alone.facts("distill-student"), told["steps"]["distill-student"]
    assert one and two["steps"] == one["steps"]
    assert (one["processes"], two["processes"]) == (1, 2)
    assert abs(one["metrics"]["test"]["accuracy"] - two["metrics"]["test"]["accuracy"]) < 0.1
    teach = next((tmp_path / "two" / "steps").glob("teach-*"))
    assert artifact.load(teach).facts["processes"] == 2
    samples = artifact.read_json(teach / SAMPLES)
    store = Cache(teach / FOLDER, samples["identity"])  # refuses a sample that two shards hold
    assert len(store) == len({one for ids in samples["splits"].values() for one in ids})
    assert not list((tmp_path / "two" / "steps").glob("*.partial"))
