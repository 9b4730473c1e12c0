"""Reading tables: local CSV, TSV, JSONL, Parquet or text files, or a hub data set; rows of strings come out.

Everything a user can get wrong here is told with the file and the row. Values are kept as text, so that a
label ``007`` or ``NA`` stays what it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgekd.errors import BadInput, Environment, closest

Row = dict[str, str]
SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".txt")


def read_table(source: str, columns: Sequence[str], rename: Mapping[str, str]) -> list[Row]:
    """Rows with exactly ``columns``; ``rename`` maps a column's name here to its name in the source.

    ``source`` is a local file, or a hub data set as ``name:split`` or ``name/config:split``. Raises BadInput.
    """
    path = Path(source)
    unknown = sorted(set(rename) - {"text", "label", *columns})
    if unknown:
        raise BadInput(
            f"data.columns names '{unknown[0]}'",
            where="recipe",
            todo=f"This task reads {', '.join(columns)}.",
        )
    if path.suffix.lower() == ".txt" and len(columns) == 1:
        return [{columns[0]: line} for line in _text(path).split("\n") if line.strip()]
    if path.suffix.lower() in SUFFIXES or path.is_file():
        rows = _read_file(path)
    else:
        rows = _read_hub(source)
    if not rows:
        raise BadInput("has no rows", where=source)
    names = {column: rename.get(column, column) for column in columns}
    known = list(rows[0])
    for column, name in names.items():
        if name not in known:
            raise BadInput(
                f"no column '{name}'",
                where=source,
                todo=f"It has {', '.join(known)}; map names with data.columns.{column}.{closest(name, known)}",
            )
    return [
        {column: _cell(row, name, f"{source} row {number}") for column, name in names.items()}
        for number, row in enumerate(rows, start=1)
    ]


def _cell(row: Row, name: str, where: str) -> str:
    if name not in row:
        raise BadInput(f"no '{name}' here, unlike in the first row", where=where)
    try:
        row[name].encode()
    except UnicodeEncodeError:
        raise BadInput(f"'{name}' holds half a surrogate pair, which is no character", where=where) from None
    return row[name]


def _text(path: Path) -> str:
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
    text = _text(path)
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
        rows.append({str(k): "" if v is None else str(v) for k, v in row.items()})
    return rows


def _read_parquet(path: Path) -> list[Row]:
    import pandas

    if not path.is_file():
        raise BadInput("no such file", where=str(path), todo="Check the path in the recipe's data section.")
    try:
        frame = pandas.read_parquet(path, dtype_backend="numpy_nullable")  # whole numbers stay whole
    except Exception as error:
        raise BadInput(f"not a Parquet file ({type(error).__name__})", where=str(path)) from None
    return [
        {str(k): "" if v is None or v is pandas.NA else str(v) for k, v in row.items()}
        for row in frame.to_dict("records")
    ]


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
    names = {key: feature.names for key, feature in table.features.items() if hasattr(feature, "names")}

    def cell(key: str, value: object) -> str:
        if key in names and isinstance(value, int) and value >= 0:  # -1 marks a row whose label is withheld
            return str(names[key][value])
        return "" if value is None else str(value)

    return [{key: cell(key, value) for key, value in row.items()} for row in table]
