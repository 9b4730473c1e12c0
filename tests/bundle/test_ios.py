"""The Swift package: what is in it, that it parses, and, with a toolchain, that it answers as the reference does."""

from __future__ import annotations

import importlib
import json
import plistlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _material import ROOT
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from edgekd.bundle import ios, stage
from edgekd.bundle._contract import App
from edgekd.errors import BadInput
from edgekd.targets import coreml
from edgekd.targets._contract import graphs

sys.path.append(str(ROOT / "tests" / "runtimes"))
from _swift import HELPERS, PACKAGE, Swift, toolchain

WORDS = (
    "which one is the red green blue house that my card was lost in new york caf ##e s t ##s ##er , . ? ! - 1 2 un "
    "##known"
).split()
TEXTS = [
    "which card was lost?",
    "my house is green, the card blue.",
    "New York cafes",
    "Caf\u00e9 cafe\u0301 caf\u00e9s",
    "",
    " \n ",
    "lost " * 60,
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 is my card\r\nin the house",
    "one-two unknown xyz [MASK] 12!",
]
LABELS = ("O", "B-thing", "I-thing", "B-place", "I-place")
LENGTHS = (8, 16, 32)
EXTRA = {"question-answering": {"may_be_none": True, "longest_answer": 4, "overlap": 3}}


def tokenizer() -> Tokenizer:
    vocabulary = {token: number for number, token in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS))}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    made.add_special_tokens(["[MASK]"])
    return made


def width(task: str) -> int:
    return {"question-answering": 2, "sentence-similarity": 6}.get(task, len(LABELS))


def formula(ids: list[int], task: str) -> np.ndarray:
    """What the stubs of Core ML and ExecuTorch compute."""
    places, classes = np.arange(len(ids))[:, None], np.arange(width(task))[None]
    tokens = ((31 * np.array(ids)[:, None] + 17 * places + 7 * classes) % 101 / 8).astype(np.float32)
    if task in ("token-classification", "question-answering"):
        return tokens
    whole = np.zeros(width(task), np.float32)
    for row in tokens:
        whole += row
    return whole / np.float32(len(ids))


def an_app(folder: Path, task: str = "text-classification", target: str = "coreml", name: str = "my-intents") -> App:
    """An artefact whose model is the formula."""
    folder.mkdir(parents=True)
    made = tokenizer()
    made.save(str(folder / "tokenizer.json"))
    made.enable_truncation(LENGTHS[-1])
    pairs = task == "question-answering"
    texts = ["is it red?\nThe house is red, the card is blue."] if pairs else TEXTS[:4]
    encodings = [made.encode(*text.split("\n")) if pairs else made.encode(text) for text in texts]
    inputs = {"input_ids": [one.ids for one in encodings], "attention_mask": [one.attention_mask for one in encodings]}
    if pairs:
        inputs["token_type_ids"] = [one.type_ids for one in encodings]
    outputs = {"logits": [formula(one.ids, task).tolist() for one in encodings]}
    golden = {"texts": texts, "inputs": inputs, "outputs": outputs}
    (folder / "golden.json").write_text(json.dumps(golden))
    (folder / "labels.json").write_text(json.dumps(LABELS))
    file = {"coreml": "model.mlpackage", "executorch": "model.pte"}.get(target, "model.onnx")
    if target == "coreml":
        (folder / file).mkdir()
        (folder / file / "Manifest.json").write_text("{}")
    else:
        (folder / file).write_text(str(width(task)))
    dtype = "int32" if target == "coreml" else "int64"
    return App(
        name=name,
        task=task,
        target=target,
        scheme="fp32",
        artifact=folder,
        export={
            "file": file,
            "inputs": [{"name": one, "dtype": dtype} for one in inputs],
            "lengths": list(LENGTHS) if target == "coreml" else [],
            "max_length": LENGTHS[-1],
            "minimum_deployment": "iOS 18, macOS 15" if target == "coreml" else None,
        },
        labels=LABELS,
        pad_id=0,
        bound=1e-5,
        verdict={"verdict": "pass", "reasons": []},
        measured={"metrics": {}},
        provenance={"edgekd": "0", "teacher": "t", "license": None, "tools": {"executorch": "1.9.2+cpu"}},
        extra=EXTRA.get(task, {}),
    )


# --- the package ---


def test_the_package_is_complete_and_named_after_the_bundle(tmp_path: Path) -> None:
    bundle = tmp_path / "app"
    stated = stage.make(an_app(tmp_path / "artefact"), "ios", bundle)
    assert stage.verify(bundle)["passed"]
    resources = bundle / "Sources" / "MyIntents" / "Resources"
    assert (resources / "model" / "model.mlpackage" / "Manifest.json").is_file() and (resources / "app.json").is_file()
    core, copied = PACKAGE / "Sources" / "EdgeApp", bundle / "Sources" / "MyIntents"
    names = [sorted(path.relative_to(place) for path in place.rglob("*.swift")) for place in (core, copied)]
    assert names[0] == names[1] and len(names[0]) > 15
    assert "import MyIntents" in (bundle / "Tests" / "MyIntentsTests" / "GoldenTests.swift").read_text()
    assert "import MyIntents" in (bundle / "Sample" / "SampleView.swift").read_text()
    manifest = (bundle / "Package.swift").read_text()
    assert 'let name = "MyIntents"' in manifest and '.iOS("18.0"), .macOS("15.0")' in manifest
    assert not any("EdgeApp" in path.read_text(errors="replace") for path in bundle.rglob("*.swift"))
    assert "EdgeClassifier.load()" in (bundle / "README.md").read_text()
    code = [path for path in (bundle / "Sources").rglob("*") if path.is_file() and "/model/" not in str(path)]
    assert stated["parts"]["code"] == sum(path.stat().st_size for path in code)  # neither tests nor the sample


def test_the_manifest_of_executorch_takes_the_version_that_wrote_the_file(tmp_path: Path) -> None:
    stage.make(an_app(tmp_path / "artefact", target="executorch", name="tags"), "ios", tmp_path / "app")
    manifest = (tmp_path / "app" / "Package.swift").read_text()
    assert 'let runtime = "executorch"' in manifest and '"swiftpm-1.9.2"' in manifest
    assert 'let name = "Tags"' in manifest and '.iOS("17.0"), .macOS("14.0")' in manifest


def test_the_privacy_manifest_says_what_the_code_does(tmp_path: Path) -> None:
    """Nothing is collected, no domain is spoken to, and no interface is called that Apple wants a reason for."""
    told = plistlib.loads((PACKAGE / "Sources" / "EdgeApp" / "Resources" / "PrivacyInfo.xcprivacy").read_bytes())
    assert told == {
        "NSPrivacyTracking": False,
        "NSPrivacyTrackingDomains": [],
        "NSPrivacyCollectedDataTypes": [],
        "NSPrivacyAccessedAPITypes": [],
    }
    code = "".join(path.read_text() for path in (PACKAGE / "Sources").rglob("*.swift"))
    wanting = "systemUptime mach_absolute_time UserDefaults modificationDate creationDate attributesOfItem volumeAvail"
    assert not [one for one in (*wanting.split(), "URLSession", "activeInputModes") if one in code]


@pytest.mark.parametrize(
    ("name", "told"), [("foundation", "Foundation"), ("intents", "Intents"), ("edge-classifier", "EdgeClassifier")]
)
def test_a_name_of_the_systems_is_refused(name: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=f"the Swift module {told}, a name that is taken"):
        stage.make(an_app(tmp_path / "artefact", name=name), "ios", tmp_path / "app")
    assert not (tmp_path / "app").exists()


def test_the_engine_knows_the_functions_of_a_file() -> None:
    """As the exporter names them."""
    assert graphs(coreml.DEFAULT, 32, [8, 16]) == {"main": 32, "tokens_8": 8, "tokens_16": 16}
    code = (PACKAGE / "Sources" / "EdgeApp" / "Model" / "CoreMLEngine.swift").read_text()
    assert r'functionName = length == lengths.max() ? "main" : "tokens_\(length)"' in code


def test_names_of_modules() -> None:
    assert [ios.module(one) for one in ("my-intents", "tags", "a1-b2-c")] == ["MyIntents", "Tags", "A1B2C"]


def test_every_file_parses(tmp_path: Path) -> None:
    tree_sitter = pytest.importorskip("tree_sitter", reason="pip install tree-sitter tree-sitter-swift")
    grammar = pytest.importorskip("tree_sitter_swift", reason="pip install tree-sitter tree-sitter-swift")
    parser = tree_sitter.Parser(tree_sitter.Language(grammar.language()))
    stage.make(an_app(tmp_path / "artefact"), "ios", tmp_path / "app")
    files = [*(tmp_path / "app").rglob("*.swift"), *HELPERS.glob("*.swift")]
    assert len(files) > 20
    broken = [str(path) for path in files if parser.parse(path.read_bytes()).root_node.has_error]
    assert not broken
    assert parser.parse(b"func f( { let").root_node.has_error


# --- with a toolchain ---


@pytest.fixture(scope="module")
def swift() -> Swift:
    return toolchain()


@pytest.fixture(scope="module")
def workshop(swift: Swift, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A package built with its tests, strictly, over stubs of Core ML and ExecuTorch."""
    with swift.folder() as folder:
        (folder / "stubs").mkdir()
        for name in ("CoreML", "ExecuTorch"):
            shutil.copy(HELPERS / f"{name}.swift", folder / "stubs")
            words = ["-emit-module", "-emit-library", "-swift-version", "5", "-module-name", name, f"{name}.swift"]
            done = swift.run(folder / "stubs", "swiftc", *words)
            assert done.returncode == 0, done.stdout
        stage.make(an_app(tmp_path_factory.mktemp("artefact") / "one"), "ios", folder / "package")
        tests = (HELPERS / "AnswersTests.swift").read_text().replace("EdgeApp", "MyIntents")
        (folder / "package" / "Tests" / "MyIntentsTests" / "AnswersTests.swift").write_text(tests)
        done = swift.run(folder / "package", "swift", "build", "--build-tests", *flags(swift, folder))
        assert done.returncode == 0, done.stdout
        assert "warning:" not in done.stdout, done.stdout
        yield folder


def flags(swift: Swift, folder: Path) -> list[str]:
    stubs = swift.path(folder / "stubs")
    linker = (f"-L{stubs}", "-lCoreML", "-lExecuTorch", f"-rpath={stubs}")
    compiler = ("-strict-concurrency=complete", f"-I{stubs}")
    pairs = [("-Xswiftc", one) for one in compiler] + [("-Xlinker", one) for one in linker]
    return [word for pair in pairs for word in pair]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_packages_own_tests_pass(swift: Swift, workshop: Path) -> None:
    done = swift.run(workshop / "package", "swift", "test", *flags(swift, workshop), "--skip-build")
    assert done.returncode == 0, done.stdout
    assert '"passed":true' in done.stdout and "Executed 7 tests, with 1 test skipped and 0 failures" in done.stdout


def answers(swift: Swift, workshop: Path, asked: list[dict[str, Any]]) -> Iterator[Any]:
    """Reports, errors and answers, in order."""
    told = [{**one, "folder": swift.path(one["folder"])} for one in asked]
    (workshop / "asked.json").write_text(json.dumps(told))
    names = [f"EDGEKD_{name}={swift.path(workshop / f'{name.lower()}.json')}" for name in ("ASKED", "ANSWERS")]
    words = ["swift", "test", "--skip-build", *flags(swift, workshop), "--filter", "AnswersTests"]
    done = swift.run(workshop / "package", "env", *names, *words)
    assert done.returncode == 0, done.stdout
    return iter([json.loads(line) for line in (workshop / "answers.json").read_text(encoding="utf-8").splitlines()])


def reference(app: App, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The Linux library over the same tokenizer and the formula in the model's place."""
    monkeypatch.syspath_prepend(str(ROOT / "runtimes" / "linux" / "app"))
    monkeypatch.syspath_prepend(str(ROOT / "runtimes" / "linux" / "python"))
    library = importlib.import_module("edgekd_app")
    model = object.__new__(library.CLASSES[app.task])
    model.settings, model.labels = app.settings, list(app.labels)
    model._tokenizer = Tokenizer.from_file(str(bundle / "model" / "tokenizer.json"))
    model._logits = lambda row: formula(row["input_ids"], app.task).astype(np.float64)
    return model


CONTEXTS = [
    ("is it red?", "The house is red, the card is blue."),
    ("which  one\tis\u2003it", "lost. " + "the card, my house - in new york! " * 12),
    ("which " * 40, "my card was lost in new york"),
    ("", ""),
    ("which", " "),
    ("Caf\u00e9?", "x" * 200 + " cafe\u0301 \U0001f600 \U0001f469\u200d\U0001f467 xyz,\r\nnew york. " * 3),
    ("is it", "\U0001f600 " * 50),
]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_task_answers_as_the_reference_does(
    swift: Swift, workshop: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of both engines; a text of each length of the file, cut texts, and no text."""
    kinds = ["text-classification", "token-classification", "question-answering", "sentence-similarity"]
    made = [(task, "coreml") for task in kinds] + [("token-classification", "executorch")]
    asked, apps = [], []
    for number, (task, target) in enumerate(made):
        app = an_app(tmp_path / f"{task}-{target}", task, target)
        stage.make(app, "ios", workshop / f"bundle{number}")
        place = workshop / f"bundle{number}" / ios.place(app)
        texts = [list(pair) for pair in CONTEXTS] if task == "question-answering" else [[text] for text in TEXTS]
        asked.append({"folder": place, "task": task, "texts": texts})
        apps.append(app)
    found = answers(swift, workshop, asked)
    for app, one in zip(apps, asked, strict=True):
        report = next(found)
        assert report["passed"] and report["texts"] == len(report["rows"]) > 0, report
        assert report["runtime"].startswith({"coreml": "Core ML", "executorch": "ExecuTorch"}[app.target])
        model = reference(app, one["folder"], monkeypatch)
        for texts in one["texts"]:
            mine, theirs = next(found), model._answer(*texts)
            if app.task == "sentence-similarity":
                np.testing.assert_allclose(mine, theirs, atol=1e-5)
                continue
            rows = [theirs] if app.task == "question-answering" else theirs
            mine = [mine] if app.task == "question-answering" else mine
            assert [row[:-1] for row in mine] == [[str(cell) for cell in row[:-1]] for row in rows], texts
            np.testing.assert_allclose([float(row[-1]) for row in mine], [row[-1] for row in rows], atol=1e-6)
    assert next(found, None) is None


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_self_test_finds_what_is_wrong(swift: Swift, workshop: Path, tmp_path: Path) -> None:
    """Other logits, other ids, another task, a file that is not there, a length that the system has no function for."""
    app = an_app(tmp_path / "artefact")
    places = {}
    for name in ("logits", "nan", "ids", "task", "schema", "model", "golden", "tokenizer"):
        stage.make(app, "ios", workshop / f"bad-{name}")
        places[name] = workshop / f"bad-{name}" / ios.place(app)
        shutil.copy(places[name] / "model" / "golden.json", places[name] / "model" / "model.mlpackage")

    def change(name: str, file: str, **fields: Any) -> None:
        path = places[name] / file
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    golden = json.loads((app.artifact / "golden.json").read_text())
    golden["outputs"]["logits"][2][0] += 3.0
    change("logits", "model/golden.json", outputs=golden["outputs"])
    golden["inputs"]["input_ids"][2][1] += 1
    change("ids", "model/golden.json", inputs=golden["inputs"])
    change("task", "app.json", task="token-classification")
    change("schema", "app.json", schema="edgekd/app/9")
    (places["model"] / "model" / "model.mlpackage" / "Manifest.json").unlink()
    (places["golden"] / "model" / "golden.json").write_text("{")
    change("tokenizer", "model/tokenizer.json", normalizer={"type": "Precompiled"})
    change("nan", "app.json", bound=-1.0)
    asked = [{"folder": place, "task": app.task, "texts": []} for place in places.values()]
    found = dict(zip(places, answers(swift, workshop, asked), strict=True))
    assert found["logits"]["wrong"] == ["text 3: an output is off by 3"] and not found["logits"]["passed"]
    assert found["logits"]["largestDifference"] == pytest.approx(3.0)
    assert found["ids"]["wrong"] == ["text 3: token ids differ"]
    assert len(found["nan"]["wrong"]) == 4  # no difference is within such a bound
    told = {name: one["error"] for name, one in found.items() if "error" in one}
    assert set(told) == {"task", "schema", "model", "golden", "tokenizer"}
    assert told["task"].endswith("is for token-classification, not text-classification")
    assert "app.json is not of edgekd/app/1: make the bundle with this library's edgekd" in told["schema"]
    assert "cannot be compiled (no package at" in told["model"]
    assert "golden.json: no golden texts" in told["golden"]
    assert "normalizer Precompiled is not written" in told["tokenizer"]
