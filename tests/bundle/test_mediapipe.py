"""The bundle for MediaPipe: which tokenizers it takes, and that MediaPipe answers as the run's artefact did."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _clients import python_with
from test_ship_tasks import ship

from edgekd import outcome, pipeline, recipe
from edgekd.bundle import mediapipe, stage
from edgekd.data.stage import read_split
from edgekd.errors import BadInput
from edgekd.outputs import read_outputs

CLIENT = Path(__file__).with_name("clients") / "classify.py"
BANKING = """
name: banking77
teacher: {{model: {teacher}}}
data: {{train: {train}, test: {test}, max_length: 64, limit: 400}}
distill:
  student: {{layers: 2, vocabulary: 1.0}}
  max_steps: 150
  baseline: false
  learning_rate: 3.0e-4
quantize: {{steps: 8, evaluate_every: 4, batch_size: 16, calibration_samples: 128}}
export: {{targets: [litert], jobs: 1}}
"""


def tokenizer(**change: Any) -> dict[str, Any]:
    return {
        "normalizer": {"type": "BertNormalizer", "lowercase": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 2], "cls": ["[CLS]", 1]},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "word": 3},
        },
    } | change


def test_the_words_of_an_uncased_bert(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer()))
    assert mediapipe._words(tmp_path / "tokenizer.json") == ["[UNK]", "[CLS]", "[SEP]", "word"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model": {"type": "BPE", "vocab": {}, "merges": []}}, "a WordPiece model"),
        ({"normalizer": {"type": "BertNormalizer", "lowercase": False}}, "lower case"),
        ({"normalizer": None}, "lower case"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "BERT's splitting"),
        ({"model": {**tokenizer()["model"], "continuing_subword_prefix": "@@"}}, "pieces that start with ##"),
        ({"model": {**tokenizer()["model"], "unk_token": "<unk>"}}, r"the token \[UNK\]"),
        ({"post_processor": None}, r"texts between \[CLS\] and \[SEP\]"),
        ({"model": {**tokenizer()["model"], "vocab": {"[UNK]": 0, "word": 2}}}, "ids without gaps"),
    ],
)
def test_other_tokenizers_are_refused(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer(**change)))
    with pytest.raises(BadInput, match=f"MediaPipe wants {told}"):
        mediapipe._words(tmp_path / "tokenizer.json")


def asked(kind: str, model: Path, texts: list[str]) -> list[Any]:
    """MediaPipe's own answers, from a Python that has nothing of edgekd's."""
    job = json.dumps([kind, str(model), texts])
    done = subprocess.run(
        [str(python_with("mediapipe")), str(CLIENT)], input=job, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: list[Any] = json.loads(done.stdout)
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_text_classifier_answers_as_the_artefact_did(banking77: dict[str, Path], tmp_path: Path) -> None:
    result = pipeline.run(recipe.parse(BANKING.format(**banking77)), tmp_path / "run")
    examples = read_split(result.steps["data"].path, "test")
    for scheme in ("fp32", "w8a8"):
        app = outcome.app(result, "intents", f"litert-{scheme}")
        stage.make(app, "mediapipe", tmp_path / scheme, allow_unverified=True)
        assert stage.verify(tmp_path / scheme)["passed"]
        outputs = read_outputs(result.steps[f"verify-litert-{scheme}"].file("logits.safetensors"))
        texts = [one["text"] for one in examples]
        assert len(texts) == len(outputs) >= 200
        answers = asked("TextClassifier", tmp_path / scheme / "model.tflite", texts)
        for answer, logits in zip(answers, outputs, strict=True):
            best = np.flatnonzero(logits == logits.max())  # int8 logits may tie
            assert answer[0][0] in {app.labels[i] for i in best}
            shares = np.exp(logits.astype(np.float64) - logits.max())
            assert abs(answer[0][1] - (shares / shares.sum()).max()) < 1e-5


@pytest.mark.slow
def test_the_text_embedder_gives_the_artefacts_vectors(tiny: Any, tmp_path: Path) -> None:
    result = ship("sentence-similarity", tiny, tmp_path, "[litert]")
    stage.make(outcome.app(result, "tiny", "litert-fp32"), "mediapipe", tmp_path / "app", allow_unverified=True)
    texts = [one["text"] for one in read_split(result.steps["data"].path, "test")]
    found = asked("TextEmbedder", tmp_path / "app" / "model.tflite", texts)
    wanted = read_outputs(result.steps["verify-litert-fp32"].file("logits.safetensors"))
    np.testing.assert_allclose(np.array(found), np.stack(wanted), atol=1e-5)
