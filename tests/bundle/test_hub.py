"""A hub bundle is a model repository: plain transformers, onnxruntime and the Hub's own reader of cards take it."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _clients import node_with, site_with
from _material import tiny_rows
from _run import Run
from test_ship_tasks import ship

from edgekd import outcome, pipeline, recipe
from edgekd.bench.transports.browser import BROWSERS
from edgekd.bundle import hub, stage
from edgekd.data.stage import read_split
from edgekd.errors import BadInput
from edgekd.outputs import read_outputs
from edgekd.targets import onnx

CARD = ["card.license=mit", "card.language=[en]", "card.datasets=[me/rivers]", "card.base_model=me/teacher"]


@pytest.fixture(scope="module")
def folder(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("hub") / "tiny"
    stage.make(run.app(), "hub", made)
    return made


def stated(run: Run) -> Run:
    """The same run by a recipe with a card."""
    text = (run.folder / "recipe.yaml").read_text()
    return Run(run.folder, pipeline.collect(recipe.parse(text, overrides=CARD), run.folder))


def texts(run: Run) -> list[str]:
    return [one["text"] for one in read_split(run.result.steps["data"].path, "test")]


def test_the_files_are_where_clients_look(folder: Path) -> None:
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {
        "README.md",
        "bom.cdx.json",
        "bundle.json",
        "config.json",
        "model.safetensors",
        "onnx/model.onnx",
        "onnx/model_quantized.onnx",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    config = json.loads((folder / "config.json").read_text())
    assert config["id2label"] == {"0": "fruit", "1": "metal", "2": "river"}
    assert json.loads((folder / "tokenizer_config.json").read_text())["model_max_length"] == 16
    assert stage.verify(folder)["passed"]
    parts = json.loads((folder / "bundle.json").read_text())["parts"]
    assert parts["code"] == 0 and parts["tokenizer"] > 1000
    assert parts["model"] == sum((folder / name).stat().st_size for name in (
        "config.json", "model.safetensors", "onnx/model.onnx", "onnx/model_quantized.onnx"
    ))  # fmt: skip


def test_transformers_loads_it_and_gives_the_students_logits(run: Run, folder: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        found = model(**tokenizer(texts(run), padding=True, truncation=True, return_tensors="pt")).logits.numpy()
    wanted = read_outputs(run.result.steps["distill-student"].file("test_logits.safetensors"))
    np.testing.assert_allclose(found, np.stack(wanted), atol=1e-5)
    [answer] = pipeline("text-classification", str(folder), device="cpu")(["an apple"])
    assert answer["label"] == "fruit"


@pytest.mark.parametrize(("file", "artefact"), [("model", "onnx-fp32"), ("model_quantized", "onnx-w8a8")])
def test_plain_onnxruntime_with_the_saved_tokenizer_gives_the_runs_logits(
    run: Run,
    folder: Path,
    file: str,
    artefact: str,
) -> None:
    import onnxruntime
    from tokenizers import Tokenizer

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(onnx.EXACT_INT8, "1" if onnx.int8_products_saturate() else "0")
    session = onnxruntime.InferenceSession(str(folder / "onnx" / f"{file}.onnx"), options)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(json.loads((folder / "tokenizer_config.json").read_text())["model_max_length"])
    wanted = read_outputs(run.result.steps[f"verify-{artefact}"].file("logits.safetensors"))
    for text, logits in zip(texts(run), wanted, strict=True):
        ids = np.array([tokenizer.encode(text).ids])
        [found] = session.run(["logits"], {"input_ids": ids, "attention_mask": np.ones_like(ids)})
        np.testing.assert_allclose(found[0], logits, atol=1e-5)


def test_the_card_is_one_and_says_what_was_measured(run: Run, folder: Path) -> None:
    from huggingface_hub import ModelCard

    card = ModelCard.load(folder / "README.md")
    data, document = card.data, run.app().report()
    assert (data.pipeline_tag, data.library_name, data.model_name) == ("text-classification", "transformers", "tiny")
    assert data.metrics == ["accuracy", "f1"] and "transformers.js" in data.tags
    assert [(one.metric_type, one.metric_name) for one in data.eval_results] == [
        ("accuracy", "accuracy"),
        ("f1", "macro_f1"),
    ]
    assert data.eval_results[0].metric_value == round(document["student"]["metrics"]["accuracy"], 4)
    assert data.eval_results[0].dataset_name == "test split of test.csv"
    assert (data.license, data.datasets, data.language, data.base_model) == (None, None, None, None)
    for told in ("Licence: not stated", "Data sets: not stated", "language of the data is not stated"):
        assert told in card.text
    for one in document["artifacts"]:
        [row] = [line for line in card.text.splitlines() if line.startswith(f"| {one['name']} |")]
        assert f" {one['metrics']['accuracy']:.4g} |" in row and f" {one['size_bytes'] / 1e6:.3g} |" in row
    assert "| onnx/model_quantized.onnx |" in card.text
    assert str(run.folder) not in str(card) and str(run.result.recipe.teacher.model) not in str(card)


def test_a_recipe_says_what_edgekd_cannot_know(run: Run, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    stage.make(stated(run).app(), "hub", tmp_path / "tiny")
    data = ModelCard.load(tmp_path / "tiny" / "README.md").data
    assert (data.license, data.datasets, data.language) == ("mit", ["me/rivers"], ["en"])
    assert data.base_model == "me/teacher" and data.eval_results[0].dataset_type == "me/rivers"


def test_the_command_line_takes_the_card_and_the_same_run_gives_the_same_bytes(
    run: Run,
    edgekd: Any,
    tmp_path: Path,
) -> None:
    sets = [word for one in CARD for word in ("--set", one)]
    made = edgekd("bundle", "make", str(run.folder), "--platform", "hub", "--out", str(tmp_path / "one"), *sets)
    assert made.code == 0, made.err
    stage.make(stated(run).app(), "hub", tmp_path / "two")
    names = [path.relative_to(tmp_path / "one") for path in sorted((tmp_path / "one").rglob("*")) if path.is_file()]
    assert [
        name for name in names if (tmp_path / "one" / name).read_bytes() != (tmp_path / "two" / name).read_bytes()
    ] == []


def test_what_did_not_pass_stays_out_and_the_eight_bit_name_is_the_chosen_schemes(run: Run, tmp_path: Path) -> None:
    document = run.app().report()
    failed = [{**one, "verdict": "fail"} for one in document["artifacts"]]
    verdict = {"verdict": "fail", "reasons": ["accuracy drop is 0.3"], "checks": []}
    app = run.app(report=lambda: {**document, "artifacts": failed}, verdict=verdict)
    stage.make(app, "hub", tmp_path / "tiny", allow_unverified=True)
    assert "**Not verified**: onnx-w8a8 did not pass its gate." in (tmp_path / "tiny" / "README.md").read_text()
    assert [path.name for path in (tmp_path / "tiny" / "onnx").iterdir()] == ["model_quantized.onnx"]
    schemes = ["w8", "fp16", "w8a8", "w4", "w8a8-dynamic"]
    many = [{**document["artifacts"][0], "name": f"onnx-{one}", "scheme": one} for one in schemes]
    one = run.app().artifacts["onnx-w8a8"]
    app = run.app(report=lambda: {**document, "artifacts": many}, artifacts={f"onnx-{name}": one for name in schemes})
    assert hub._onnx(app) == {
        "onnx/model_fp16.onnx": "onnx-fp16",
        "onnx/model_int8.onnx": "onnx-w8",
        "onnx/model_q4.onnx": "onnx-w4",
        "onnx/model_quantized.onnx": "onnx-w8a8",
    }
    app = run.app(report=lambda: {**document, "artifacts": many[1:2]}, artifacts={"onnx-fp16": one})
    assert json.loads(hub.files(app)["config.json"])["transformers.js_config"] == {"dtype": "fp16"}  # type: ignore[arg-type]


def test_images_are_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="hub has no library for the task image-classification"):
        stage.make(run.app(task="image-classification"), "hub", tmp_path / "tiny")


# The real clients.

CLIENTS = Path(__file__).with_name("clients")
EXACT = {"extra": {"session": {"x64quantprecision": "1"}}}  # Node's onnxruntime is the native one
Ask = Callable[..., list[Any]]


@pytest.fixture(scope="module")
def in_node() -> Ask:
    """transformers.js in Node, on a bundle's folder."""
    home = node_with("@huggingface/transformers")
    shutil.copy(CLIENTS / "answers.mjs", home)
    code = (
        'import { readFileSync } from "node:fs"; import { answers } from "./answers.mjs";'
        "console.log(JSON.stringify(await answers(JSON.parse(readFileSync(0)))));"
    )

    def ask(bundle: Path, kind: str, dtype: str | None, texts: list[str], **asked: Any) -> list[Any]:
        options = {"session_options": EXACT} | ({"dtype": dtype} if dtype else {})
        job = {"folder": str(bundle.parent), "name": bundle.name, "kind": kind, "options": options}
        done = subprocess.run(
            ["node", "--input-type=module", "-e", code],
            input=json.dumps({**job, "asked": asked, "texts": texts}),
            capture_output=True,
            text=True,
            timeout=300,
            cwd=home,
        )
        assert done.returncode == 0, done.stderr
        found: list[Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    return ask


@pytest.fixture
def in_chromium(tmp_path: Path) -> Iterator[Ask]:
    """The same in a page of a headless Chromium that reaches this machine alone."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip("no Chromium or Chrome on PATH")
    root = tmp_path / "site"
    shutil.copytree(CLIENTS, root)
    (root / "node_modules").symlink_to(node_with("@huggingface/transformers") / "node_modules")
    handler = partial(Quiet, directory=str(root))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, api.sync_playwright() as playwright:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        flags = ["--no-sandbox", "--disable-gpu", "--disable-quic"]
        browser = playwright.chromium.launch(executable_path=program, args=flags)
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{server.server_port}/answers.html")
        page.wait_for_function("window.answers !== undefined", timeout=120_000)

        def ask(bundle: Path, kind: str, dtype: str | None, texts: list[str], **asked: Any) -> list[Any]:
            shutil.copytree(bundle, root / "models" / bundle.name)
            options = {"dtype": dtype} if dtype else {}
            job = {"folder": "/models/", "name": bundle.name, "kind": kind, "options": options, "asked": asked}
            job |= {"texts": texts, "wasm": "/node_modules/onnxruntime-web/dist/"}
            found: list[Any] = page.evaluate("job => window.answers(job)", job)
            return found

        yield ask
        browser.close()
        server.shutdown()


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder without a word."""

    def log_message(self, *_: Any) -> None: ...


def check_classes(ask: Ask, run: Run, folder: Path, dtype: str | None, artefact: str) -> None:
    """The labels and shares of the run's own artefact, for every test text."""
    outputs = read_outputs(run.result.steps[f"verify-{artefact}"].file("logits.safetensors"))
    answers = ask(folder, "text-classification", dtype, texts(run), top_k=3)
    names = json.loads((folder / "config.json").read_text())["id2label"]
    for answer, logits in zip(answers, outputs, strict=True):
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
        assert [one["label"] for one in answer] == [names[str(i)] for i in np.argsort(-shares)]
        np.testing.assert_allclose([one["score"] for one in answer], np.sort(shares)[::-1], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "artefact"), [(None, "onnx-fp32"), ("fp32", "onnx-fp32"), ("q8", "onnx-w8a8")])
def test_transformers_js_in_node(in_node: Ask, run: Run, folder: Path, dtype: str | None, artefact: str) -> None:
    check_classes(in_node, run, folder, dtype, artefact)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "artefact"), [(None, "onnx-w8a8"), ("fp32", "onnx-fp32")])
def test_transformers_js_in_chromium(
    in_chromium: Ask,
    run: Run,
    folder: Path,
    dtype: str | None,
    artefact: str,
) -> None:
    check_classes(in_chromium, run, folder, dtype, artefact)


@pytest.fixture(scope="module")
def other(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[pipeline.Result, Path]]:
    """A run of another task and its hub folder."""

    def make(task: str) -> tuple[pipeline.Result, Path]:
        home = tmp_path_factory.mktemp(task)
        result = ship(task, tiny, home, "[onnx]")
        stage.make(outcome.app(result, "tiny", "onnx-fp32"), "hub", home / "tiny", allow_unverified=True)
        return result, home / "tiny"

    return make


@pytest.mark.slow
def test_embeddings_in_sentence_transformers_and_transformers_js(
    other: Any,
    in_node: Ask,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(site_with("sentence-transformers"))
    from sentence_transformers import SentenceTransformer

    result, folder = other("sentence-similarity")
    rows = [one["text"] for one in read_split(result.steps["data"].path, "test")]
    model = SentenceTransformer(str(folder), device="cpu")
    wanted = np.stack(read_outputs(result.steps["distill-student"].file("test_logits.safetensors")))
    np.testing.assert_allclose(model.encode(rows), wanted, atol=1e-5)
    assert model.max_seq_length == 24
    assert model.similarity_fn_name == "cosine"
    found = in_node(folder, "feature-extraction", None, rows)
    wanted = np.stack(read_outputs(result.steps["verify-onnx-fp32"].file("logits.safetensors")))
    np.testing.assert_allclose(np.array(found)[:, 0], wanted, atol=1e-5)


@pytest.mark.slow
def test_tokens_in_transformers_and_transformers_js(other: Any, in_node: Ask) -> None:
    import torch
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    result, folder = other("token-classification")
    rows = [one["text"] for one in read_split(result.steps["data"].path, "test")]
    model, tokenizer = AutoModelForTokenClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    for text, found in zip(rows, in_node(folder, "token-classification", None, rows, ignore_labels=[]), strict=True):
        with torch.no_grad():
            shares = model(**tokenizer(text, return_tensors="pt")).logits[0].softmax(-1).max(-1)
        labels = [model.config.id2label[int(i)] for i in shares.indices[1:-1]]
        assert [one["entity"] for one in found] == labels
        np.testing.assert_allclose([one["score"] for one in found], shares.values[1:-1], atol=1e-4)


@pytest.mark.slow
def test_questions_in_transformers_and_transformers_js(other: Any, in_node: Ask) -> None:
    """Short contexts: transformers.js reads one window."""
    import torch
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer

    _, folder = other("question-answering")
    model, info = AutoModelForQuestionAnswering.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    asked = [[f"which {label}", text] for text, label in tiny_rows(12, 3)]
    for (question, context), found in zip(asked, in_node(folder, "question-answering", None, asked), strict=True):
        encoded = tokenizer(question, context, return_tensors="pt")
        kept = torch.tensor([part == 1 for part in encoded.sequence_ids()])
        kept[0] = True  # [CLS] takes its share, and is no answer
        with torch.no_grad():
            outputs = model(**encoded)
        start, end = (
            one[0].masked_fill(~kept, -torch.inf).softmax(0).index_fill(0, torch.tensor([0]), 0.0)
            for one in (outputs.start_logits, outputs.end_logits)
        )
        shares = torch.outer(start, end).triu()
        first, last = divmod(int(shares.argmax()), len(start))
        assert found["answer"] == tokenizer.decode(encoded.input_ids[0, first : last + 1])
        assert abs(found["score"] - float(shares.max())) < 1e-4
