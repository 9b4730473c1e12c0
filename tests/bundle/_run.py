"""A finished run of the tiny task, and what its artefacts answered."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from edgekd import outcome, pipeline, registry
from edgekd.bundle._contract import App
from edgekd.data.stage import read_split
from edgekd.outputs import read_outputs


@dataclasses.dataclass(frozen=True)
class Run:
    folder: Path
    result: pipeline.Result

    def app(self, **change: Any) -> App:
        return dataclasses.replace(outcome.app(self.result, "tiny", "onnx-w8a8"), **change)

    def expected(self) -> list[Any]:
        """What the run's own artefact answered to the test split, as an app shows it."""
        task = registry.load("tasks", self.result.recipe.task)
        examples = read_split(self.result.steps["data"].path, "test")
        outputs = read_outputs(self.result.steps["verify-onnx-w8a8"].file("logits.safetensors"))
        labels = self.result.facts("data")["labels"]  # type: ignore[index]
        return [
            (example["text"], task.answer(output, example, labels))
            for example, output in zip(examples, outputs, strict=True)
        ]
