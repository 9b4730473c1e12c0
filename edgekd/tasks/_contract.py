"""What a task is: one module that turns examples into model inputs, and logits into metrics and answers.

A task module defines the names below at module level (a module is the simplest object there is). It imports
neither torch nor transformers at module level; numpy it may. ``registry.load("tasks", name)`` finds it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

Example = Mapping[str, Any]  # one row of train.jsonl: {"text": str, "label": int} for text classification
Encoded = dict[str, list[int]]  # {"input_ids": [...], "attention_mask": [...]}, unpadded, cut to max_length


class Task(Protocol):
    """The module contract of ``edgekd/tasks/<name>.py``."""

    AUTO_TASK: str  # the name under which optimum's TasksManager knows the task's model class
    HEADLINE: str  # the metric that gates and tables use, a key of what `metrics` returns, in [0, 1], higher is better
    COLUMNS: tuple[str, ...]  # the columns a labelled table must have (recipe `data.columns` renames)
    TEXT_COLUMNS: tuple[str, ...]  # those of them that unlabelled rows have too

    def example(self, row: Mapping[str, str], labels: Sequence[str]) -> Example:
        """One validated row; raises BadInput for an unknown label (the caller adds file and row number)."""
        ...

    def sample_text(self, example: Example) -> str:
        """The text whose hash names the sample in the teacher's cache."""
        ...

    def encode(self, tokenizer: Any, examples: Sequence[Example], max_length: int) -> list[Encoded]:
        """Model inputs of each example. ``tokenizer``: a ``tokenizers.Tokenizer`` without padding."""
        ...

    def hard_loss(self, logits_BC: Any, batch: Mapping[str, Any]) -> Any:
        """Loss against the labels in ``batch["label"]`` (-100 where unlabelled), a scalar torch tensor."""
        ...

    def metrics(self, logits_NC: Any, examples: Sequence[Example], teacher_NC: Any = None) -> dict[str, float]:
        """Metrics from numpy logits; with the teacher's logits also ``teacher_agreement``."""
        ...

    def correct(self, logits_NC: Any, examples: Sequence[Example]) -> Any:
        """Which examples are answered rightly, bool [N]; None for a task that is only scored as a whole."""
        ...

    def answer(self, logits_C: Any, labels: Sequence[str], top_k: int = 3) -> list[dict[str, Any]]:
        """What an app shows: ``[{"label": .., "score": ..}, ...]``, best first."""
        ...
