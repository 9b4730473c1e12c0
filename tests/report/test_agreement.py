"""Every two artefacts of a scheme, on the rows that both answered."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgekd.report import agreement, render
from edgekd.report.agreement import Answers


def same(outputs: Any, others: Any) -> np.ndarray:
    return np.array([float(np.array_equal(a.argmax(-1), b.argmax(-1))) for a, b in zip(outputs, others, strict=True)])


def row(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_pairs_are_compared_on_their_common_rows() -> None:
    models = {
        "program": Answers(range(4), [row(0, 8), row(3, 1), row(1, 2), row(0, 1)]),
        "onnx": Answers(range(4), [row(0, 8), row(3, 1), row(1, 2), row(1, 0.5)]),
        "coreml": Answers([1, 2], [row(3, 1.00001), row(2, 1)]),
    }
    one, two, three = agreement.pairs(models, same)
    assert (one["one"], one["other"], one["rows"]) == ("program", "onnx", 4)
    assert one["agreement"] == 0.75 and one["identical"] == 0.75 and one["margin"] == 1.0
    assert one["largest"] == pytest.approx(1 / 8)  # the Program's outputs range from 0 to 8
    assert two["rows"] == 2 and two["identical"] == 0 and two["close"] == 0.5 and two["margin"] == 1.0
    assert (three["one"], three["other"], three["agreement"]) == ("onnx", "coreml", 0.5)


def test_outputs_by_unit_are_compared_as_far_as_both_go() -> None:
    long, cut = np.stack([row(0, 1), row(2, 1), row(9, 0)]), np.stack([row(0, 1), row(2, 1)])
    (pair,) = agreement.pairs({"program": Answers([0], [long]), "onnx": Answers([0], [cut])}, same)
    assert pair["identical"] == 1 and pair["agreement"] == 1 and pair["margin"] is None


def test_nothing_in_common_is_no_pair_and_no_meaning_is_none() -> None:
    models = {
        "program": Answers([0], [row(1, 2)]),
        "onnx": Answers([1], [row(1, 2)]),
        "litert": Answers([1], [row(1, 2)]),
    }
    (pair,) = agreement.pairs(models, lambda a, b: None)
    assert (pair["one"], pair["other"]) == ("onnx", "litert") and pair["agreement"] is None


def test_the_report_shows_the_lower_triangle() -> None:
    models = {name: Answers([0], [row(1, 2)]) for name in ("student", "program", "onnx")}
    table = render.matrix(agreement.pairs(models, same))
    assert table["columns"] == ["student", "program"]
    assert [(name, [cell is not None for cell in cells]) for name, cells in table["rows"]] == [
        ("program", [True, False]), ("onnx", [True, True]),
    ]  # fmt: skip
