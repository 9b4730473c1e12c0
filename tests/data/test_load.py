"""Tables and sources that look right and are not: each is refused with its file and row, none is read askew."""

from __future__ import annotations

import base64
import io
import json
import shutil
from pathlib import Path

import numpy
import pandas
import pytest
from PIL import Image
from transformers import AutoTokenizer, RobertaConfig

from edgekd import artifact, recipe
from edgekd.data import load, stage
from edgekd.errors import BadInput

COLUMNS = ("text", "label")
REFUSED = {
    "a row that is too short": ("t.csv", "label,text\nfruit,an apple\nmetal\n", r"t\.csv:3: not valid CSV \(1 fields"),
    "an index that no header names": ("t.csv", "text,label\n0,tin,metal\n1,plum,fruit\n", r"t\.csv:2: .*3 fields"),
    "a quote that never closes": ("t.csv", 'text,label\n"an apple,fruit\n', r"t\.csv:2: not valid CSV"),
    "a later row without a column": (
        "t.jsonl", '{"text": "a", "label": "x"}\n{"text": "b"}\n', r"t\.jsonl row 2: no 'label' here"
    ),
    "half a character": ("t.jsonl", '{"text": "a\\ud800", "label": "x"}\n', r"t\.jsonl row 1: .*surrogate"),
    "a list": ("t.jsonl", '["a", "x"]\n', r"t\.jsonl:1: not a JSON object"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_table_that_would_be_read_askew_is_refused(case: str, tmp_path: Path) -> None:
    name, content, message = REFUSED[case]
    (tmp_path / name).write_text(content)
    with pytest.raises(BadInput, match=message):
        load.read_table(str(tmp_path / name), COLUMNS, {})


def test_csv_is_read_as_pandas_reads_it(banking77) -> None:  # type: ignore[no-untyped-def]
    for name in ("train", "test"):
        frame = pandas.read_csv(banking77[name], dtype=str, keep_default_na=False)
        assert load.read_table(str(banking77[name]), COLUMNS, {}) == frame[["text", "label"]].to_dict("records")


def test_csv_with_a_mark_empty_lines_windows_ends_and_very_long_fields(tmp_path: Path) -> None:
    long = "word " * 50_000  # above the csv module's own limit of 131072 characters
    content = f'\ufefftext,label\r\n\r\n"a, ""b""\r\nc",x\r\n{long},\r\n\r\n'
    (tmp_path / "t.csv").write_bytes(content.encode())
    found = load.read_table(str(tmp_path / "t.csv"), COLUMNS, {})
    assert found == [{"text": 'a, "b"\nc', "label": "x"}, {"text": long, "label": ""}]


def test_missing_values_are_empty_and_whole_numbers_stay_whole(tmp_path: Path) -> None:
    frame = pandas.DataFrame({"text": ["a", None], "label": pandas.array([1, None], dtype="Int64")})
    frame.to_parquet(tmp_path / "t.parquet")
    (tmp_path / "t.jsonl").write_text('{"text": "a", "label": 1}\n{"text": null, "label": null}\n')
    for name in ("t.parquet", "t.jsonl"):
        rows = load.read_table(str(tmp_path / name), COLUMNS, {})
        assert rows == [{"text": "a", "label": "1"}, {"text": "", "label": ""}]


def test_a_withheld_label_is_not_the_last_class(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    table = datasets.Dataset.from_dict({"text": ["a"], "label": [-1]}, features=features)
    (tmp_path / "set").mkdir()
    table.to_parquet(tmp_path / "set" / "test-00000.parquet")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    assert load.read_table(f"{tmp_path / 'set'}:test", COLUMNS, {}) == [{"text": "a", "label": "-1"}]


NER = ("tokens", "tags")


def test_lists_stay_lists_in_the_columns_that_a_task_names(tmp_path: Path) -> None:
    rows = [{"tokens": ["New", "York"], "tags": ["B-x", "I-x"], "n": [1]}, {"tokens": ["a"], "tags": ["O"], "n": []}]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pandas.DataFrame(rows).to_parquet(tmp_path / "t.parquet")
    for name in ("t.jsonl", "t.parquet"):
        found = load.read_table(str(tmp_path / name), (), {}, optional=(*NER, "absent"), lists=NER)
        assert found == [{key: row[key] for key in NER} for row in rows]
        renamed = load.read_table(str(tmp_path / name), ("words",), {"words": "tokens"}, lists=("words",))
        assert renamed == [{"words": row["tokens"]} for row in rows]


def test_objects_in_parquet_are_those_of_jsonl(tmp_path: Path) -> None:
    rows = [{"answers": {"text": ["a b"], "answer_start": [3]}}, {"answers": {"text": [], "answer_start": []}}]
    pandas.DataFrame(rows).to_parquet(tmp_path / "t.parquet")
    assert load.read_table(str(tmp_path / "t.parquet"), ("answers",), {}, lists=("answers",)) == rows


def test_text_where_a_list_belongs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("tokens,tags\na b,O O\n")
    with pytest.raises(BadInput, match=r"t\.csv row 1: 'tokens' holds no list.*CSV cannot"):
        load.read_table(str(tmp_path / "t.csv"), NER, {}, lists=NER)


def test_files_are_read_beside_the_table(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.bin").write_bytes(b"\x00\xff")
    (tmp_path / "t.csv").write_text("image,label\nimages/a.bin,x\n")
    found = load.read_table(str(tmp_path / "t.csv"), ("image", "label"), {}, files=("image",))
    assert [(base64.b64decode(row["image"]), row["label"]) for row in found] == [(b"\x00\xff", "x")]
    (tmp_path / "t.csv").write_text("image,label\nimages/a.bin,x\nimages/b.bin,x\n")
    with pytest.raises(BadInput, match=r"t\.csv row 2: .*b\.bin cannot be read"):
        load.read_table(str(tmp_path / "t.csv"), ("image", "label"), {}, files=("image",))


def test_arrays_are_read_as_images(tmp_path: Path) -> None:
    numbers = numpy.random.default_rng(0)
    grey, colour = (numbers.integers(0, 256, (3, 4, 5, *more), dtype=numpy.uint8) for more in ((), (3,)))
    numpy.savez(tmp_path / "a.npz", x_train=grey, y_train=numpy.array([7, 0, 1]), x_new=colour)
    train = load.read_table(f"{tmp_path}/a.npz:train", ("image", "label"), {}, files=("image",))
    new = load.read_table(f"{tmp_path}/a.npz:new", ("image",), {}, files=("image",))
    assert [row["label"] for row in train] == ["7", "0", "1"]
    for images, rows in ((grey, train), (colour, new)):
        for image, row in zip(images, rows, strict=True):
            assert numpy.array_equal(Image.open(io.BytesIO(base64.b64decode(row["image"]))), image)


ARRAYS = {
    "no split": ("a.npz:test", {"x_train": [[[1]]]}, "no split 'test'.*it has train"),
    "no name of a split": ("a.npz", {"x_train": [[[1]]]}, r"Write a\.npz:split"),
    "one image": ("a.npz:train", {"x_train": [[1]]}, r"x_train is uint8 \[1, 1\]"),
    "labels of other images": (
        "a.npz:train",
        {"x_train": [[[1]]], "y_train": [1, 2]},
        r"y_train is \[2\] for 1 images",
    ),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_arrays_that_are_no_labelled_images_are_refused(case: str, tmp_path: Path) -> None:
    name, arrays, message = ARRAYS[case]
    numpy.savez(tmp_path / "a.npz", **{key: numpy.array(value, numpy.uint8) for key, value in arrays.items()})
    with pytest.raises(BadInput, match=message):
        load.read_table(f"{tmp_path}/{name}", ("image", "label"), {}, files=("image",))


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    numpy.savez(tmp_path / "a.npz", x_train=numpy.array([{"an": "object"}], dtype=object))
    with pytest.raises(BadInput, match="not a NumPy archive of plain arrays"):
        load.read_table(f"{tmp_path}/a.npz:train", ("image", "label"), {})


def test_hub_columns_of_classes_and_images(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    import datasets

    tags = datasets.Sequence(datasets.ClassLabel(names=["O", "B-x"]))
    features = datasets.Features({"image": datasets.Image(), "tags": tags})
    image = Image.fromarray(numpy.full((2, 2), 9, numpy.uint8))
    (tmp_path / "set").mkdir()
    table = datasets.Dataset.from_dict({"image": [image], "tags": [[1, 0]]}, features=features)
    table.to_parquet(tmp_path / "set" / "test-00000.parquet")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (row,) = load.read_table(f"{tmp_path / 'set'}:test", ("image", "tags"), {}, lists=("tags",), files=("image",))
    assert row["tags"] == ["B-x", "O"]
    assert Image.open(io.BytesIO(base64.b64decode(row["image"]))).getpixel((0, 0)) == 9


def run(tiny, out: Path, *sets: str) -> dict:  # type: ignore[no-untyped-def]
    out.mkdir()
    return stage.run(recipe.parse(tiny.recipe, overrides=sets), artifact.Inputs(), out)


def test_text_with_unusual_line_ends_survives_the_stage(tiny, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    odd = ["one\u2028two", "three\u0085four", "five\x0bsix", "seven\x1ceight"]
    rows = [{"text": f"{text} {n}", "label": label} for n, text in enumerate(odd * 5) for label in tiny.labels]
    (tmp_path / "train.jsonl").write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    facts = run(tiny, tmp_path / "out", f"data.train={tmp_path}/train.jsonl")
    found = [e["text"] for name in ("train", "validation") for e in stage.read_split(tmp_path / "out", name)]
    assert sorted(found) == sorted(row["text"] for row in rows)
    lines = (tmp_path / "out" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == facts["rows"]["train"]  # for readers that split where Python's str.splitlines does


def test_a_length_beyond_the_teachers_positions_is_refused_before_anything_runs(tiny, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert run(tiny, tmp_path / "fits", "data.max_length=64")["rows"]
    with pytest.raises(BadInput, match="at most 64 tokens"):
        run(tiny, tmp_path / "long", "data.max_length=65")


def test_roberta_keeps_positions_for_its_padding(tiny, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path / "roberta"
    tokenizer = AutoTokenizer.from_pretrained(tiny.folder / "teacher")
    tokenizer.save_pretrained(folder)
    RobertaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=34, pad_token_id=1, id2label=dict(enumerate(tiny.labels))
    ).save_pretrained(folder)
    assert run(tiny, tmp_path / "fits", f"teacher.model={folder}", "data.max_length=32")["rows"]
    with pytest.raises(BadInput, match="at most 32 tokens"):
        run(tiny, tmp_path / "long", f"teacher.model={folder}", "data.max_length=33")


@pytest.fixture
def nameless(tiny, tmp_path: Path) -> Path:  # type: ignore[no-untyped-def]
    """The tiny teacher without label names."""
    folder = tmp_path / "nameless"
    shutil.copytree(tiny.folder / "teacher", folder)
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {str(i): f"LABEL_{i}" for i in range(3)}
    config["label2id"] = {f"LABEL_{i}": i for i in range(3)}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_names_in_the_data_of_a_teacher_without_names_are_asked_for(tiny, nameless: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(BadInput, match=r"unknown label 'fruit'.*set data\.labels"):
        run(tiny, tmp_path / "a", f"teacher.model={nameless}")
    with pytest.raises(BadInput, match="one label twice"):
        run(tiny, tmp_path / "b", f"teacher.model={nameless}", "data.labels=[fruit, fruit, river]")


def test_class_ids_in_the_data_need_no_names(tiny, nameless: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for name in ("train", "test"):
        rows = (tiny.folder / f"{name}.csv").read_text().splitlines()[1:]
        ids = [f"{row.rsplit(',', 1)[0]},{tiny.labels.index(row.rsplit(',', 1)[1])}" for row in rows]
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,label", *ids]))
    sets = (f"data.train={tmp_path}/train.csv", f"data.test={tmp_path}/test.csv")
    facts = run(tiny, tmp_path / "a", f"teacher.model={nameless}", *sets)
    assert facts["labels"] == ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert any("set data.labels" in warning for warning in facts["warnings"])
