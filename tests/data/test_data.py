"""Data: every format gives the same rows, splits do not depend on order, and what is doubtful is reported."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pandas
import pytest

from edgekd import artifact, recipe
from edgekd.data import load, split, stage

ROWS = [
    {"text": 'naïve, quoted "words"', "label": "007"},
    {"text": "NA", "label": "null"},
    {"text": "two\nlines", "label": "x"},
]


def write(folder: Path, kind: str) -> str:
    frame, path = pandas.DataFrame(ROWS), folder / f"rows.{kind}"
    if kind == "csv":
        frame.to_csv(path, index=False)
    elif kind == "tsv":
        frame.to_csv(path, index=False, sep="\t")
    elif kind == "parquet":
        frame.to_parquet(path)
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_every_format_gives_the_same_text(kind: str, tmp_path: Path) -> None:
    assert load.read_table(write(tmp_path, kind), ("text", "label"), {}) == ROWS


def test_columns_are_renamed_and_others_dropped(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"utterance": "hello", "intent": 3, "id": 9}\n')
    found = load.read_table(str(path), ("text", "label"), {"text": "utterance", "label": "intent"})
    assert found == [{"text": "hello", "label": "3"}]


def test_plain_text_is_unlabelled_text(tmp_path: Path) -> None:
    path = tmp_path / "more.txt"
    path.write_text("one\n\n two \n")
    assert load.read_table(str(path), ("text",), {}) == [{"text": "one"}, {"text": " two "}]


def test_a_hub_data_set_is_read_through_datasets(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    table = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    (tmp_path / "set").mkdir()
    table.to_parquet(tmp_path / "set" / "train-00000.parquet")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    found = load.read_table(f"{tmp_path / 'set'}:train", ("text", "label"), {})
    assert found == [{"text": "a", "label": "yes"}, {"text": "b", "label": "no"}]


def test_held_out_rows_depend_on_texts_and_seed_alone() -> None:
    examples = [{"text": f"text {n}", "label": n % 3} for n in range(300)]
    kept, held = split.hold_out(examples, 0.1, 0, lambda e: e["text"])
    assert len(held) == 30 and len(kept) == 270
    assert sorted(e["label"] for e in held) == [0] * 10 + [1] * 10 + [2] * 10
    shuffled = random.Random(1).sample(examples, 300)
    again = split.hold_out(shuffled, 0.1, 0, lambda e: e["text"])[1]
    assert {e["text"] for e in again} == {e["text"] for e in held}
    other = split.hold_out(examples, 0.1, 1, lambda e: e["text"])[1]
    assert {e["text"] for e in other} != {e["text"] for e in held}
    doubled = split.hold_out(examples * 2, 0.1, 0, lambda e: e["text"])
    assert not {e["text"] for e in doubled[0]} & {e["text"] for e in doubled[1]}


def run(tiny, out: Path, *sets: str) -> dict:  # type: ignore[no-untyped-def]
    out.mkdir()
    return stage.run(recipe.parse(tiny.recipe, overrides=sets), artifact.Inputs(), out)


def test_missing_splits_are_made_and_test_is_left_alone(tiny, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    facts = run(tiny, tmp_path / "a")
    assert facts["rows"]["test"] == 90 and facts["rows"]["unlabelled"] == 0
    assert facts["rows"]["train"] + facts["rows"]["validation"] == 240
    facts = run(tiny, tmp_path / "b", "data.test=null", "data.test_fraction=0.2")
    texts = {name: {e["text"] for e in stage.read_split(tmp_path / "b", name)} for name in stage.SPLITS}
    assert not texts["train"] & texts["test"] and not texts["train"] & texts["validation"]
    assert 40 <= facts["rows"]["test"] <= 56


def test_cut_texts_and_shared_rows_are_reported(tiny, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    test = tmp_path / "test.csv"
    first = (tiny.folder / "train.csv").read_text().splitlines()[1]
    test.write_text("text,label\n" + f"{first}\n" + f"{'apple ' * 40},fruit\n")
    facts = run(tiny, tmp_path / "a", f"data.test={test}")
    assert facts["duplicates_train_test"] == 1
    assert facts["truncation_rate"]["test"] == 0.5
    assert facts["lengths"]["max"] == 16
    assert any("cut" in warning for warning in facts["warnings"])


def test_unlabelled_text_never_holds_test_or_validation_text(tiny, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    test = [line.rsplit(",", 1)[0] for line in (tiny.folder / "test.csv").read_text().splitlines()[1:]]
    more = tmp_path / "more.txt"
    more.write_text("\n".join(test[:20] + [f"something new {n}" for n in range(30)] * 2))
    facts = run(tiny, tmp_path / "a", f"data.unlabelled={more}", "data.max_unlabelled=25")
    found = stage.read_split(tmp_path / "a", "unlabelled")
    assert facts["rows"]["unlabelled"] == len(found) == 25
    assert not {e["text"] for e in found} & set(test)


def test_a_teacher_without_label_names_takes_the_recipes(tiny, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    import shutil

    shutil.copytree(tiny.folder / "teacher", tmp_path / "teacher")
    path = tmp_path / "teacher" / "config.json"
    config = json.loads(path.read_text())
    config["id2label"] = {str(i): f"LABEL_{i}" for i in range(3)}
    config["label2id"] = {f"LABEL_{i}": i for i in range(3)}
    path.write_text(json.dumps(config))
    facts = run(tiny, tmp_path / "a", f"teacher.model={tmp_path / 'teacher'}", "data.labels=[fruit, metal, river]")
    assert facts["labels"] == ["fruit", "metal", "river"]


def test_line_separators_inside_a_text_do_not_break_a_row(tmp_path: Path) -> None:
    rows = [{"text": "one\u2028two\u0085three", "label": 0}, {"text": "four", "label": 1}]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "test.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "none.jsonl").write_text("")
    assert stage.read_split(tmp_path, "test") == rows
    assert stage.read_split(tmp_path, "none") == []
