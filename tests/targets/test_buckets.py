"""Length buckets: planned exactly, whatever the histogram."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd import pipeline, recipe
from edgekd.targets import _buckets as buckets

HISTOGRAMS = st.dictionaries(st.integers(1, 34), st.integers(0, 50), max_size=9)


@settings(max_examples=200, deadline=None)
@given(histogram=HISTOGRAMS, longest=st.integers(4, 40), count=st.integers(1, 4))
def test_no_other_lengths_need_fewer_tokens(histogram: dict[int, int], longest: int, count: int) -> None:
    found = buckets.plan(histogram, longest, count)
    assert found == sorted(set(found)) and not any(length % buckets.TILE for length in found[:-1])
    assert found[-1] == longest and 1 <= len(found) <= count
    others = [
        [*some, longest] for k in range(count) for some in combinations(range(buckets.TILE, longest, buckets.TILE), k)
    ]
    waste = [buckets.padding(histogram, some) for some in others]
    assert buckets.padding(histogram, found) == pytest.approx(min(waste), abs=1e-12)
    fewest = min(len(some) for some, one in zip(others, waste, strict=True) if one <= min(waste) + 1e-12)
    assert len(found) == fewest  # a length that saves nothing is none


def test_padding_is_the_share_of_tokens_computed_for_nothing() -> None:
    histogram = {4: 3, 10: 1, 40: 1}
    assert buckets.padding(histogram, [32]) == pytest.approx(5 * 32 / (3 * 4 + 10 + 32) - 1)  # 40 is cut to 32
    assert buckets.padding(histogram, [4, 10, 32]) == 0.0
    assert buckets.padding({}, [8]) == 0.0
    assert buckets.plan({}, 8, 3) == [8]


def test_a_long_histogram_is_planned_at_once() -> None:
    histogram = {length: 1 + 4000 // length for length in range(3, 513)}
    found = buckets.plan(histogram, 512, 4)
    assert len(found) == 4 and buckets.padding(histogram, found) < 0.6 < buckets.padding(histogram, [512])


def test_only_files_of_fixed_length_depend_on_the_buckets() -> None:
    text = "teacher: {model: t}\ndata: {train: t.csv}\nexport: {targets: [onnx, executorch, openvino, litert, coreml]}"
    found = {step.id: step for step in pipeline.steps(recipe.parse(text)) if step.stage == "export"}
    fixed = {name for name, step in found.items() if "export.buckets" in step.row.reads}
    assert fixed == {name for name in found if "litert" in name or "coreml" in name}
    assert fixed == {name for name, step in found.items() if "data" in step.parents}
