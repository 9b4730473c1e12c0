"""What a task is: one module that turns table rows into model inputs, and model outputs into metrics and answers.

A task module defines the names below at module level (a module is the simplest object there is). It imports
neither torch nor transformers at module level; numpy it may. ``registry.load("tasks", name)`` finds it.

A table row becomes an *example*, and ``expand`` turns examples into *rows*: one row is one forward pass of the
model (a text; a window of a long text; one half of a sentence pair; an image). Everything behind the data stage
is in row order. The *output* of a row is a vector [C] or, with ``PER_UNIT``, a matrix [W, C] over the row's units
(its words): units do not depend on a tokenizer, so outputs of models with different tokenizers can be compared.

A task with ``GENERATES = True`` is a language model's (text generation): its students are taught token by token, and
exported with a cache by ``edgekd.generators``. It also defines ``places``, ``right``, ``distance`` and ``renumbered``,
and its outputs are per token; see ``text_generation.py``. One whose answers are judged as texts has ``written`` (see
``text2text_generation.py``).

A task may define ``settle(config, folder)``: it writes into a tokenizer's folder what ``encode`` must know of the
model beside it.

A task with ``PARTS`` has a student of several artefacts (the towers of a dual encoder): see ``_parts.py``.

A task may also define ``app_settings(examples) -> dict``: what an app must know beside the labels to answer as
``metrics`` does, from the test examples; it stands in a bundle's ``app.json``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

Example = Mapping[str, Any]  # one line of train.jsonl: {"text": str, "label": int} for text classification
Encoded = dict[str, Any]  # {"input_ids": [...], ...}, unpadded; keys outside INPUTS are the task's own notes


class Task(Protocol):
    """The module contract of ``edgekd/tasks/<name>.py``."""

    AUTO_TASK: str  # the name under which optimum's TasksManager knows the task's model class
    HEADLINE: str  # the metric that gates and tables use, a key of what `metrics` returns, higher is better, at most 1
    COLUMNS: tuple[str, ...]  # the columns a labelled table must have (recipe `data.columns` renames)
    OPTIONAL_COLUMNS: tuple[str, ...]  # the columns that are read where they exist
    TEXT_COLUMNS: tuple[str, ...]  # the columns that an unlabelled table must have
    LIST_COLUMNS: tuple[str, ...]  # those whose cells are lists or objects, as JSONL and Parquet hold them
    FILE_COLUMNS: tuple[str, ...]  # those whose cells name files beside the table; read as base64
    INPUTS: tuple[str, ...]  # the model's inputs, in order: keys of an Encoded, arguments of the Program
    GROUP: int  # so many consecutive rows stay together in a batch (2 for the halves of a pair)
    PER_UNIT: bool  # False: logits [B, C], output [C].  True: logits [B, S, C], output [W, C]
    SOFT: str  # the loss between student's and teacher's outputs where the recipe names none

    def example(self, row: Mapping[str, Any], labels: Sequence[str]) -> Example:
        """One validated example; raises BadInput (the caller adds file and row number).

        ``labels`` is empty for unlabelled rows.
        """
        ...

    def expand(self, examples: Sequence[Example], processor: Any, max_length: int) -> list[Example]:
        """The rows of these examples, in their order. ``processor`` is the teacher's."""
        ...

    def sample_text(self, example: Example) -> str:
        """The text that names the row in the teacher's cache: rows with one text have one output."""
        ...

    def group_text(self, example: Example) -> str:
        """Examples (and rows) with one group text never lie on two sides of a split."""
        ...

    def labels(self, config: Any, asked: Sequence[str] | None) -> list[str]:
        """Label names in the order of the teacher's outputs, [] where the task has none.

        ``config``: the teacher's transformers configuration; ``asked``: the recipe's ``data.labels``. Raises
        BadInput for a model of another kind, and for names that contradict the teacher's.
        """
        ...

    def processor(self, folder: Path) -> Any:
        """What `encode` needs, from a folder with tokenizer.json (or preprocessor_config.json)."""
        ...

    def encode(self, processor: Any, examples: Sequence[Example], max_length: int) -> list[Encoded]:
        """Model inputs of each row, cut to ``max_length`` tokens, unpadded."""
        ...

    def logits(self, outputs: Any, inputs: Mapping[str, Any]) -> Any:
        """[B, C] or [B, S, C] from the output of the transformers model; ``torch.export`` traces through it."""
        ...

    def take(self, logits: Any, encoded: Encoded) -> Any:
        """The output of one row: [C] of [C], [W, C] of [S, C]. Torch or numpy; never a view of ``logits`` per unit."""
        ...

    def stack(self, outputs: Sequence[Any]) -> Any:
        """Row outputs (torch) as distributions to compare, [M, K]."""
        ...

    def targets(self, examples: Sequence[Example]) -> list[Any]:
        """The hard target of each row, as `hard_loss` takes it; None where there is none."""
        ...

    def hard_loss(self, stacked_MK: Any, targets: Sequence[Any]) -> Any:
        """Mean loss over the labelled entries, a scalar torch tensor; 0 (with a gradient) where none is labelled."""
        ...

    def metrics(self, outputs: Any, examples: Sequence[Example], teacher: Any = None) -> dict[str, float]:
        """Metrics of numpy outputs (a list, or [N, C]); with the teacher's outputs also ``teacher_agreement``."""
        ...

    def agree(self, outputs: Any, others: Any) -> Any:
        """How far two models agree, float64 [N] in [0, 1] per row; None where it has no meaning."""
        ...

    def correct(self, outputs: Any, examples: Sequence[Example]) -> Any:
        """Which rows are answered rightly, bool [N]; None for a task that is only scored as a whole."""
        ...

    def answer(self, output: Any, example: Example, labels: Sequence[str], top_k: int = 3) -> Any:
        """What an app shows for one row: a JSON-able value."""
        ...


def generates(task: Any) -> bool:
    """Whether a task is a language model's: taught token by token, exported with a cache."""
    return bool(getattr(task, "GENERATES", False))
