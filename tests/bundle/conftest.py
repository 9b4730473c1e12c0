"""One run for all tests of bundles."""

from __future__ import annotations

from typing import Any

import pytest
from _run import Run

from edgekd import pipeline, recipe


@pytest.fixture(scope="session")
def run(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The tiny task, shipped to ONNX; nobody changes its folder."""
    folder = tmp_path_factory.mktemp("run")
    return Run(folder, pipeline.run(recipe.parse(tiny.recipe), folder))
