"""The search: its front against brute force, and a small one that is interrupted and goes on."""

from __future__ import annotations

import json
import random
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from edgekd import pipeline, recipe, tune
from edgekd.errors import BadInput
from edgekd.tune import Trial

SEARCH = """
tune:
  trials: 3
  search:
    distill.temperature: {low: 1, high: 6, log: true}
    distill.student.intermediate_size: [16, 64]
"""


def test_the_front_is_what_nothing_beats() -> None:
    draw = random.Random(0)
    trials = [Trial(n, {}, round(draw.random(), 1), float(draw.randint(1, 6))) for n in range(60)]
    shown = tune.front(trials)
    for one in trials:
        beaten = [
            o
            for o in trials
            if (o.metric > one.metric and o.cost <= one.cost) or (o.metric >= one.metric and o.cost < one.cost)
        ]
        assert ((one.metric, one.cost) in {(s.metric, s.cost) for s in shown}) == (not beaten)
    assert [s.cost for s in shown] == sorted({s.cost for s in shown})


def test_an_interrupted_search_goes_on_and_the_best_recipe_comes_out(tiny, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    loaded = recipe.parse(tiny.recipe + SEARCH)
    seen: list[str] = []

    def dies(event: pipeline.Event) -> None:
        seen.append(event.kind)
        if seen.count("evaluated") == 4:  # in the second trial
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune.run(loaded, tmp_path / "run", listen=dies)
    document = tune.run(loaded, tmp_path / "run")
    finished = [one for one in document["trials"] if one["number"] == 0]
    assert len(document["trials"]) + document["stopped"] == 3
    assert finished[0]["values"]["distill.temperature"] == 4.0  # the recipe's own, as far as it lies in the space
    best = recipe.load(tmp_path / "run" / "tune" / "best.yaml")
    values = next(one["values"] for one in document["trials"] if one["number"] == document["best"])
    assert best.distill.temperature == values["distill.temperature"]
    assert max(one["metric"] for one in document["trials"]) >= finished[0]["metric"]
    drawn = ElementTree.parse(tmp_path / "run" / "tune" / "front.svg").getroot()
    assert drawn.tag.endswith("svg") and len(list(drawn.iter())) > 10
    kept = json.loads((tmp_path / "run" / "tune" / "front.json").read_text())
    assert kept == document
    again = tune.run(loaded, tmp_path / "run")  # nothing left to do
    assert again == document


@pytest.mark.parametrize(
    ("search", "told"),
    [
        ("{distill.temprature: {low: 1, high: 2}}", "unknown key 'distill.temprature'"),
        ("{distill.temperature: {low: 3, high: 2}}", "is no range"),
        ("{distill.alpha: []}", "has no choices"),
        ("{distill.losses.3.weight: [1]}", "distill.losses: input should be a valid list"),
    ],
)
def test_a_search_that_cannot_be_is_told_before_any_training(search, told, tiny, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    loaded = recipe.parse(tiny.recipe + f"tune: {{search: {search}}}\n")
    with pytest.raises(BadInput, match=told):
        tune.run(loaded, tmp_path / "run")
    assert not (tmp_path / "run" / "steps").exists()


@pytest.mark.slow
def test_a_search_against_latency_measures_and_keeps_to_the_devices_limit(tiny, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    device = "name: mine\ntransport: local\nrunner: linux/python/edgekd_runner.py\nlimits: {p50_ms: 0.000001}\n"
    (tmp_path / "mine.yaml").write_text(device)
    sets = [
        "tune.trials=1",
        "tune.against=latency",
        "export.targets=[onnx]",
        f"bench.devices=[{tmp_path / 'mine.yaml'}]",
    ]
    loaded = recipe.parse(tiny.recipe + SEARCH, overrides=sets)
    document = tune.run(loaded, tmp_path / "run")
    [one] = document["trials"]
    assert document["cost"] == "latency (ms)" and 0 < one["cost"] < 1000
    assert document["budget"] == 0.000001 and one["fits"]  # nothing fits: the best of all is better than none
    emulated = recipe.parse(tiny.recipe + SEARCH, overrides=[*sets[:3], "bench.devices=[far.yaml]"])
    with pytest.raises(BadInput, match=r"far\.yaml: no such device profile"):
        tune.run(emulated, tmp_path / "run")
