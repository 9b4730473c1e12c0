"""The KD doctor: each of the things that go wrong silently is said in plain words, before any training."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

from edgekd import doctor, pipeline, recipe
from edgekd.quantize import scheme


def say(text: str, folder: Path, *sets: str) -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {}
    for row in doctor.examine((recipe.parse(text, overrides=sets), folder)):
        found.setdefault(row["what"], []).append((row["state"], row["detail"]))
    return found


def test_a_healthy_recipe(tiny, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    found = say(tiny.recipe, tmp_path)
    assert found["teacher"][0][0] == "ok"
    assert "42 steps" in found["time"][0][1]  # 3 epochs of 14
    assert "forward-kl" in found["loss at step 0"][0][1] and "hard" in found["loss at step 0"][0][1]
    assert "MB" in found["student"][0][1]


def test_a_device_that_cannot_be_used_is_told_before_the_training(tiny, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    bare = "transport: local\nrunner: native\nabi: android-arm64\nruntimes: [onnx, litert]\n"
    (tmp_path / "phone.yaml").write_text(f"name: phone\n{bare}")
    (tmp_path / "gone.yaml").write_text(
        "name: gone\ntransport: ssh\nrunner: linux/python/edgekd_runner.py\n"
        "options: {host: 127.0.0.1, port: 1, connect_timeout_seconds: 3}\n"
    )
    names = f"bench.devices=[local, {tmp_path / 'phone.yaml'}, {tmp_path / 'gone.yaml'}]"
    found = say(tiny.recipe, tmp_path / "run", names)
    assert found["device local"][0][0] == "ok"
    state, detail = found["device phone"][0]
    assert state == "missing" and "is not built" in detail and "build.py --arch android-arm64" in detail
    assert found["device gone"][0][0] == "missing" and "gone" in found["device gone"][0][1]


def test_shuffled_labels_look_like_a_teacher_that_knows_nothing(tiny, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    teacher = tmp_path / "teacher"
    shutil.copytree(tiny.folder / "teacher", teacher)
    config = json.loads((teacher / "config.json").read_text())
    config["id2label"] = {"0": "metal", "1": "river", "2": "fruit"}
    config["label2id"] = {"metal": 0, "river": 1, "fruit": 2}
    (teacher / "config.json").write_text(json.dumps(config))
    state, detail = say(tiny.recipe, tmp_path / "run", f"teacher.model={teacher}")["teacher"][0]
    assert state == "note" and "another order" in detail


def test_a_teacher_that_fits_its_text_asks_for_more_text(tiny, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    test = tmp_path / "test.csv"
    with (tiny.folder / "test.csv").open() as source, test.open("w", newline="") as out:
        rows = list(csv.DictReader(source))
        for row in rows[::4]:  # a quarter of the labels is wrong: the teacher is better on what it has learned
            row["label"] = {"fruit": "metal", "metal": "river", "river": "fruit"}[row["label"]]
        writer = csv.DictWriter(out, ["text", "label"])
        writer.writeheader()
        writer.writerows(rows)
    found = say(tiny.recipe, tmp_path / "run", f"data.test={test}")
    assert "say little beyond the hard ones" in found["transfer text"][0][1]
    found = say(tiny.recipe, tmp_path / "run", f"data.test={test}", "data.augment.copies=2")
    assert found["transfer text"][0][0] == "ok"


def test_a_cache_that_is_not_the_teachers_is_found(tiny, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    from safetensors.torch import load_file, save_file

    loaded = recipe.parse(tiny.recipe)
    teach = pipeline.run(loaded, tmp_path, until="teach").steps["teach"]
    assert say(tiny.recipe, tmp_path)["cache"][0][0] == "ok"
    for shard in sorted((teach.path / "cache").iterdir()):
        from safetensors import safe_open

        with safe_open(shard, framework="pt") as opened:
            metadata = opened.metadata()
        tensors = load_file(shard)
        tensors["logits"] = tensors["logits"].flip(0)
        save_file(tensors, shard, metadata)
    state, detail = say(tiny.recipe, tmp_path)["cache"][0]
    assert state == "note" and "delete the teach step" in detail


def test_the_cache_is_sized_before_it_is_made(tiny, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    state, detail = say(tiny.recipe, tmp_path)["disk"][0]
    facts = pipeline.run(recipe.parse(tiny.recipe), tmp_path, until="teach").facts("teach") or {}
    assert state == "ok" and f"{facts['estimate_bytes'] / 1e9:.2g} GB" in detail
    state, detail = say(tiny.recipe, tmp_path, "teach.max_cache_gb=1.0e-9")["disk"][0]
    assert state == "note" and "teach.online" in detail


def test_words_that_a_trimmed_vocabulary_lacks_are_said(tiny, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    found = say(tiny.recipe, tmp_path, "distill.student.vocabulary=0.5")
    assert any("must spell in pieces" in detail for _, detail in found["vocabulary"])
    found = say(tiny.recipe, tmp_path, "distill.student.vocabulary=1.0")
    assert not any("must spell in pieces" in detail for _, detail in found.get("vocabulary", []))


def test_a_loud_term_and_a_long_limit_are_said(tiny, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    text = tiny.recipe.replace("max_length: 16", "max_length: 64").replace(
        "distill:\n", "distill:\n  losses: [{loss: forward-kl}, {loss: hidden-mse, weight: 1000}]\n", 1
    )
    found = say(text, tmp_path)
    assert any("lower its weight" in detail for _, detail in found["loss at step 0"])
    assert "for nothing" in found["length"][0][1]


def test_every_layer_is_carried_or_refused_with_a_reason(edgekd) -> None:  # type: ignore[no-untyped-def]
    found = edgekd("targets", "--json").json
    for target in found["targets"]:
        assert not set(target["accepts"]) & set(target["refuses"])
        assert set(target["accepts"]) | set(target["refuses"]) == set(scheme.LAYERS)
        assert all(len(reason) > 20 for reason in target["refuses"].values()), target["name"]


def test_a_scheme_or_a_layer_that_a_target_cannot_carry_is_refused_at_plan_time(tiny, edgekd, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for target in edgekd("targets", "--json").json["targets"]:
        for kind, reason in target["refuses"].items():
            mixed = f"quantize.overrides={{w8a8: {{classifier: {kind}}}}}"
            sets = ("--set", f"export.targets=[{target['name']}]", "--set", mixed)
            said = edgekd("plan", tiny.folder / "recipe.yaml", "--run-dir", tmp_path / "run", *sets)
            assert said.code == 2 and "Traceback" not in said.err
            assert reason.split()[0] in said.err and f"{target['name']} does not accept {kind}" in said.err


def test_a_pair_that_is_refused_is_left_out_and_its_reason_told(tiny, edgekd, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    def plan(*schemes: str) -> Any:
        sets = ("--set", "export.targets=[onnx, executorch]", "--set", f"quantize.schemes=[{', '.join(schemes)}]")
        return edgekd("plan", tiny.folder / "recipe.yaml", "--run-dir", tmp_path / "run", "--json", *sets)

    steps = {row["step"]: row for row in plan("w8a8", "w4").json["steps"]}
    made = {f"{stage}-{name}" for stage in ("export", "verify") for name in ("onnx-w8a8", "onnx-w4", "executorch-w8a8")}
    assert made < steps.keys() and "verify-executorch-w4" not in steps
    assert (
        steps["export-executorch-w4"]["status"] == "refused"
        and "groups of int4" in steps["export-executorch-w4"]["why"]
    )
    assert all(steps[name]["status"] == "run" for name in made)
    said = plan("w4", "fp16")  # nothing is left of one target
    assert said.code == 2 and "executorch does not accept w4" in said.err
