"""Reading tables: local CSV, TSV, JSONL, Parquet, NPZ or text files, or a hub data set; rows of strings come out.

Everything a user can get wrong here is told with the file and the row. Values are kept as text, so that a
label ``007`` or ``NA`` stays what it is; only columns that a task names as lists keep their lists and objects.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekd.errors import BadInput, Environment, closest

Row = dict[str, Any]  # text, or a list or object as it was read
SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".txt")
ARRAYS = ".npz"


def read_table(
    source: str,
    columns: Sequence[str],
    rename: Mapping[str, str],
    *,
    optional: Sequence[str] = (),
    lists: Sequence[str] = (),
    files: Sequence[str] = (),
) -> list[Row]:
    """Rows with ``columns``, and with those of ``optional`` that the table has.

    ``source`` is a local file; ``file.npz:split`` with arrays ``x_<split>`` (uint8 images) and ``y_<split>``; or a
    hub data set as ``name:split`` or ``name/config:split``. ``rename`` maps a column's name here to its name in the
    source. Cells are text; those of ``lists`` are lists or objects, those of ``files`` name a file beside the table
    and become its bytes in base64. Raises BadInput.
    """
    path = Path(source)
    unknown = sorted(set(rename) - {"text", "label", *columns, *optional})
    if unknown:
        raise BadInput(
            f"data.columns names '{unknown[0]}'",
            where="recipe",
            todo=f"This task reads {', '.join([*columns, *optional])}.",
        )
    if path.suffix.lower() == ".txt" and len(columns) == 1:
        return [{columns[0]: line} for line in read_text(path).split("\n") if line.strip()]
    arrays, _, split = source.rpartition(":")
    if arrays.lower().endswith(ARRAYS) or path.suffix.lower() == ARRAYS:
        rows, files = _read_arrays(Path(arrays or source), split if arrays else ""), ()
    elif path.suffix.lower() in SUFFIXES or path.is_file():
        rows = _read_file(path)
    else:
        rows, files = _read_hub(source), ()
    if not rows:
        raise BadInput("has no rows", where=source)
    known = list(rows[0])
    names = {column: rename.get(column, column) for column in columns}
    names |= {column: name for column in optional if (name := rename.get(column, column)) in known}
    for column, name in names.items():
        if name not in known:
            raise BadInput(
                f"no column '{name}'",
                where=source,
                todo=f"It has {', '.join(known)}; map names with data.columns.{column}.{closest(name, known)}",
            )
    found = [
        {
            column: _cell(row, name, column in lists, f"{source} row {number}")
            for column, name in names.items()
            if column not in optional or name in row
        }
        for number, row in enumerate(rows, start=1)
    ]
    for column in set(files) & set(names):
        for number, row in enumerate(found, start=1):
            row[column] = _file(path.parent / row[column], f"{source} row {number}")
    return found


def _cell(row: Row, name: str, is_list: bool, where: str) -> Any:
    if name not in row:
        raise BadInput(f"no '{name}' here, unlike in the first row", where=where)
    value = row[name]
    if value is None:
        return ""
    if is_list:
        if not isinstance(value, list | dict):
            raise BadInput(
                f"'{name}' holds no list or object", where=where, todo="Use JSONL or Parquet: CSV cannot hold lists."
            )
        _whole(json.dumps(value, ensure_ascii=False), name, where)
        return value
    return _whole(str(value), name, where)


def _whole(text: str, name: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadInput(f"'{name}' holds half a surrogate pair, which is no character", where=where) from None
    return text


def _file(path: Path, where: str) -> str:
    try:
        return base64.b64encode(path.read_bytes()).decode()
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({type(error).__name__})", where=where) from None


def _read_arrays(path: Path, split: str) -> list[Row]:
    """Rows with ``image`` (PNG in base64) and, where the file has them, ``label``."""
    import numpy as np

    try:
        from PIL import Image
    except ImportError:
        raise Environment("Pillow is not installed", todo="pip install 'edgekd[images]'") from None
    if not path.is_file():
        raise BadInput("no such file", where=str(path), todo="Check the path in the recipe's data section.")
    try:
        with np.load(path, allow_pickle=False) as kept:
            arrays = dict(kept)
    except Exception as error:
        raise BadInput(f"not a NumPy archive of plain arrays ({type(error).__name__})", where=str(path)) from None
    splits = sorted(name[2:] for name in arrays if name.startswith("x_"))
    if split not in splits:
        raise BadInput(
            f"no split '{split}'",
            where=str(path),
            todo=f"Write {path.name}:split; it has {', '.join(splits) or 'none'}.",
        )
    images = arrays[f"x_{split}"]
    if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[-1] == 3)):
        found = f"x_{split} is {images.dtype} {list(images.shape)}"
        raise BadInput(found, where=str(path), todo="Images are uint8 NxHxW or NxHxWx3.")
    rows: list[Row] = []
    for image in images:
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "PNG")
        rows.append({"image": base64.b64encode(stream.getvalue()).decode()})
    labels = arrays.get(f"y_{split}")
    if labels is None:
        return rows
    if labels.shape != (len(images),):
        raise BadInput(f"y_{split} is {list(labels.shape)} for {len(images)} images", where=str(path))
    return [{**row, "label": label} for row, label in zip(rows, labels.tolist(), strict=True)]


def read_text(path: Path) -> str:
    """A UTF-8 file, as it is; raises BadInput."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise BadInput("no such file", where=str(path), todo="Check the path in the recipe's data section.") from None
    except IsADirectoryError:
        raise BadInput("is a folder, not a file", where=str(path)) from None
    except UnicodeDecodeError as error:
        raise BadInput(f"not UTF-8 (byte {error.start})", where=str(path), todo="Save it as UTF-8.") from None


def _read_file(path: Path) -> list[Row]:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _read_parquet(path)
    text = read_text(path)
    if not text.strip():
        raise BadInput("is empty", where=str(path))
    if suffix in (".csv", ".tsv"):
        return _read_csv(path, text, "\t" if suffix == ".tsv" else ",")
    if suffix in (".jsonl", ".json"):
        return _read_jsonl(path, text)
    raise BadInput(f"unknown kind of file '{suffix}'", where=str(path), todo=f"Known: {', '.join(SUFFIXES)}.")


def _read_csv(path: Path, text: str, separator: str) -> list[Row]:
    # Not pandas: it fills short rows up, and takes a first column that the header does not name as an index.
    import csv
    import io

    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows: list[Row] = []
    try:
        lines = (fields for fields in reader if fields)
        header = next(lines)
        for fields in lines:
            if len(fields) != len(header):
                raise csv.Error(f"{len(fields)} fields, the header has {len(header)}")
            rows.append(dict(zip(header, fields, strict=True)))
    except csv.Error as error:
        raise BadInput(
            f"not valid CSV ({error})", where=f"{path}:{reader.line_num}", todo="Quote fields that hold commas."
        ) from None
    return rows


def _read_jsonl(path: Path, text: str) -> list[Row]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):  # JSON may hold U+2028
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise BadInput(
                f"not valid JSON ({error.msg})", where=f"{path}:{number}", todo="One object a line."
            ) from None
        if not isinstance(row, dict):
            raise BadInput("not a JSON object", where=f"{path}:{number}", todo="One object a line.")
        rows.append({str(k): v for k, v in row.items()})
    return rows


def _read_parquet(path: Path) -> list[Row]:
    import pandas

    if not path.is_file():
        raise BadInput("no such file", where=str(path), todo="Check the path in the recipe's data section.")
    try:
        frame = pandas.read_parquet(path, dtype_backend="numpy_nullable")  # whole numbers stay whole
    except Exception as error:
        raise BadInput(f"not a Parquet file ({type(error).__name__})", where=str(path)) from None
    return [{str(k): None if v is pandas.NA else _plain(v) for k, v in row.items()} for row in frame.to_dict("records")]


def _plain(value: Any) -> Any:
    """Arrays, as Parquet's lists come, as lists, at any depth."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    value = value.tolist() if hasattr(value, "tolist") else value
    return [_plain(one) for one in value] if isinstance(value, list) else value


def _read_hub(source: str) -> list[Row]:
    name, colon, split = source.partition(":")
    if not colon or not split:
        raise BadInput(
            "no such file, and not a hub data set either",
            where=source,
            todo="Give a file, or 'name:split' or 'name/config:split' of a hub data set.",
        )
    import datasets

    local = Path(name).is_dir()
    config = None
    if not local and name.count("/") == 2:
        name, _, config = name.rpartition("/")
    try:
        table = datasets.load_dataset(name, config, split=split)
    except ValueError as error:
        raise BadInput(" ".join(str(error).split())[:300], where=source) from None
    except (ConnectionError, FileNotFoundError, OSError) as error:
        raise Environment(
            f"the data set cannot be loaded ({type(error).__name__})",
            where=source,
            todo="Check its name and the network.",
        ) from None
    images = {key for key, feature in table.features.items() if isinstance(feature, datasets.Image)}
    for key in images:
        table = table.cast_column(key, datasets.Image(decode=False))
    names = {key: _names(feature) for key, feature in table.features.items()}
    return [
        {key: _encoded(value) if key in images else _named(value, names[key]) for key, value in row.items()}
        for row in table
    ]


def _encoded(image: Mapping[str, Any]) -> str:
    """An image's file in base64, from the data set itself or from the path that it names."""
    return base64.b64encode(image["bytes"] or Path(image["path"]).read_bytes()).decode()


def _names(feature: Any) -> list[str] | None:
    """The class names of a column of classes, or of lists of them."""
    return getattr(getattr(feature, "feature", feature), "names", None)


def _named(value: Any, names: list[str] | None) -> Any:
    if names and isinstance(value, list):
        return [_named(one, names) for one in value]
    if names and isinstance(value, int) and value >= 0:  # -1 marks a row whose label is withheld
        return names[value]
    return value
