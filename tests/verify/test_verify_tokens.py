"""An artefact that writes text is judged by what it writes: token by token, ties told from differences."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgekd.recipe import Gate
from edgekd.verify import gate, tokens


class Script:
    """A session with fixed logits for each token fed last; ``noise`` is added where a prompt came in one piece."""

    def __init__(self, table: np.ndarray, noise: float = 0.0) -> None:
        self.table, self.noise = table, noise

    def reset(self) -> None: ...

    def feed(self, ids: Sequence[int]) -> np.ndarray:
        return self.table[ids[-1]] + self.noise * (len(ids) > 1)


def table(*pairs: tuple[int, int, float]) -> np.ndarray:
    """After token a comes b, by a lead."""
    made = np.zeros((5, 5), np.float32)
    for a, b, lead in pairs:
        made[a, b] = lead
    return made


GOLDEN = {
    "prompts": [[0, 1]],
    "tokens": [[2, 3, 4, 1]],
    "margins": [[5.0, 0.1, 5.0, 5.0]],
    "logits": [[0.0, 0.0, 5.0, 0.0, 0.0]],
}
PROGRAM = table((1, 2, 5), (2, 3, 0.1), (3, 4, 5), (4, 1, 5))


def test_equal_ties_and_differences_are_told_apart() -> None:
    assert tokens.greedy(Script(PROGRAM), GOLDEN, 0.2) == {
        "prompts": 1, "tokens": 4, "equal": 4, "ties": 0, "differ": 0, "exact": 1, "largest_lead": 0.0
    }  # fmt: skip
    other = PROGRAM.copy()
    other[2] = [0.5, 0, 0, 0.1, 0]  # overturns a lead of 0.1
    tie = tokens.greedy(Script(other), GOLDEN, 0.2)
    assert (tie["ties"], tie["differ"], tie["equal"], tie["exact"]) == (1, 0, 3, 0) and tie["largest_lead"] == 0.1
    assert tokens.greedy(Script(other), GOLDEN, 0.05)["differ"] == 1


def test_pieces_must_give_what_the_whole_gives() -> None:
    assert tokens._pieces(Script(PROGRAM), [[0, 1, 2]], 5.0)["passed"] is True
    moved = tokens._pieces(Script(PROGRAM, noise=1.0), [[0, 1, 2]], 5.0)
    assert moved["passed"] is False and moved["largest"] == pytest.approx(0.2)


class Pairs(Script):
    """A session whose first tokens are a source; ``shift`` is what a neighbour changes."""

    def __init__(self, table: np.ndarray, shift: float = 0.0) -> None:
        super().__init__(table)
        self.shift = shift

    def together(self, sources: Sequence[Sequence[int]]) -> np.ndarray:
        return np.stack([self.table[ids[-1]] + self.shift for ids in sources])

    def score(self, ids: Sequence[int], begins: Sequence[int]) -> np.ndarray:
        return self.table[list(begins)]


def test_a_source_is_read_the_same_beside_others() -> None:
    assert tokens._beside(Pairs(PROGRAM), GOLDEN, 0, 5.0)["passed"] is True
    moved = tokens._beside(Pairs(PROGRAM, shift=1.0), GOLDEN, 0, 5.0)
    assert moved["passed"] is False and moved["largest"] == pytest.approx(0.2)
    other = Pairs(PROGRAM)
    other.score = lambda ids, begins: PROGRAM[list(begins)] + 1.0  # type: ignore[method-assign]
    assert tokens._beside(other, GOLDEN, 0, 5.0)["passed"] is False


@pytest.mark.parametrize(("bleu", "verdict"), [(19.5, "pass"), (18.5, "fail")])
def test_bleu_may_fall_by_what_the_recipe_allows(bleu: float, verdict: str) -> None:
    settings = Gate(min_teacher_ratio=None, max_accuracy_drop=None, not_larger=False, not_slower=False)
    made = facts(10.0)
    made["metrics"]["bleu"], made["student_metrics"]["bleu"] = bleu, 20.0
    for limit, wanted in ((1.0, verdict), (None, "pass")):
        asked = settings.model_copy(update={"max_bleu_drop": limit})
        assert gate.judge(asked, "likelihood", made, {"scheme": "w4", "size_bytes": 1}, None)["verdict"] == wanted


def facts(perplexity: float, scheme: str = "w4", differ: int = 0) -> dict[str, Any]:
    metrics = {"likelihood": 1 / perplexity, "perplexity": perplexity}
    return {
        "scheme": scheme, "samples": 9, "of": 9, "metrics": metrics,
        "student_metrics": {"likelihood": 0.1, "perplexity": 10.0}, "teacher_metrics": {"likelihood": 0.1},
        "golden": {"max_abs_delta": 0.1, "bound": 0.2, "passed": True}, "agreement": {"program": 1 - differ / 100},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("perplexity", "scheme", "verdict"),
    [(10.19, "w4", "pass"), (10.21, "w4", "fail"), (10.04, "w8", "pass"), (10.06, "w8", "fail"), (12.0, "own", "pass")],
)
def test_perplexity_may_rise_by_a_share_that_the_scheme_allows(perplexity: float, scheme: str, verdict: str) -> None:
    settings = Gate(min_teacher_ratio=None, max_accuracy_drop=None, not_larger=False, not_slower=False)
    export = {"scheme": scheme, "size_bytes": 1}
    found = gate.judge(settings, "likelihood", facts(perplexity, scheme), export, None)
    assert found["verdict"] == verdict, found["reasons"]


def test_a_token_that_differs_without_a_tie_counts_against_the_artefact() -> None:
    settings = Gate(min_teacher_ratio=None, max_accuracy_drop=None, not_larger=False, not_slower=False)
    found = gate.judge(settings, "likelihood", facts(10.0, differ=2), {"scheme": "w4", "size_bytes": 1}, None)
    assert found["verdict"] == "fail" and "agreement with the Program" in found["reasons"][0]


def test_weights_stored_wider_than_promised_are_too_large(tmp_path: Any) -> None:
    from safetensors.numpy import save_file

    (tmp_path / "model").mkdir()
    weights = {"a.weight": np.zeros((2048, 2048), np.float32), "norm.weight": np.zeros(64, np.float32)}
    save_file(weights, tmp_path / "model" / "model.safetensors")
    program = SimpleNamespace(path=tmp_path, facts={"layers": [{"name": "a", "bits": 4}]})
    found = tokens.stored_size(program, 2048 * 2048 // 2 + 600_000)
    assert found["expected"] == 2048 * 2048 // 2 + 2048 * 2048 // 32 * 4 + 256 and found["small"]
    assert not tokens.stored_size(program, 2048 * 2048 * 2)["small"]
