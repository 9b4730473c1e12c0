"""The web package is built, and answers in Chromium, on a page and in a worker, as the Python library does."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _material import ask_bundle
from _random_model import QUESTIONS, TEXTS, tokenizer, write_artifact

from edgekd import outcome, pipeline, recipe, registry
from edgekd.artifact import sha256_file
from edgekd.bench.transports.browser import BROWSERS
from edgekd.bundle import stage
from edgekd.bundle._contract import App
from edgekd.data.stage import read_split
from edgekd.errors import BadInput

WEB = registry.folder("runtimes") / "web"
MODULES = WEB / "node_modules"
PAGE = Path(__file__).with_name("web_page.mjs")
KINDS = {
    "text-classification": ("EdgeClassifier", "classify"),
    "token-classification": ("EdgeTagger", "tag"),
    "question-answering": ("EdgeAnswerer", "answer"),
    "sentence-similarity": ("EdgeEmbedder", "embed"),
}
Told = dict[str, Any]
Ask = Callable[..., Told]


def missing() -> str:
    """Why the package cannot be built and run here; empty where it can."""
    needed = {"@huggingface/tokenizers", "onnxruntime-web", "@litertjs/core", "esbuild", "typescript"}
    lacking = sorted(name for name in needed if not (MODULES / name / "package.json").is_file())
    if lacking:
        return f"no {lacking[0]}: run `npm ci` in runtimes/web"
    if not shutil.which("node"):
        return "no node on PATH"
    if not any(map(shutil.which, BROWSERS)):
        return "no Chromium or Chrome on PATH"
    try:
        import playwright  # noqa: F401
    except ImportError:
        return "playwright is not installed"
    return ""


needs_browser = pytest.mark.skipif(bool(missing()), reason=missing() or "-")


def run(bundle: Path, *command: str | Path) -> str:
    """A command in a bundle's folder that must succeed; what it printed."""
    done = subprocess.run([str(one) for one in command], cwd=bundle, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(bundle: Path) -> None:
    """`npm run build` without npm, on the packages that are installed in the project."""
    if not (bundle / "node_modules").exists():
        (bundle / "node_modules").symlink_to(MODULES)
    assert run(bundle, "node", "build.mjs") == ""


@dataclasses.dataclass(frozen=True)
class Site:
    """A folder of bundles, served by a bundle's own `serve.mjs`."""

    folder: Path
    url: str
    apps: dict[str, App]

    def copy(self, name: str, source: str = "text-classification") -> Path:
        """A bundle that a test may break."""
        made = self.folder / name
        skipped = shutil.ignore_patterns("node_modules", "dist")
        shutil.copytree(self.folder / source, made, ignore=skipped)
        return made


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A bundle per task; the library is built in the first and opens all."""
    folder = tmp_path_factory.mktemp("site")
    apps = {task: write_artifact(folder / "artifacts" / task, task) for task in KINDS}
    for task, app in apps.items():
        stage.make(app, "web", folder / task)
        stage.make(app, "linux", folder / "python" / task)
    build(folder / "text-classification")
    shutil.copyfile(PAGE, folder / "page.mjs")
    (folder / "index.html").write_text("<!doctype html><title>tests</title><link rel=icon href=data:,>")
    with Served(folder, folder / "text-classification") as url:
        yield Site(folder, url, apps)


class Served:
    """The folder on a port of this machine."""

    def __init__(self, folder: Path, bundle: Path, *options: str) -> None:
        script = folder / "serve.mjs"
        shutil.copyfile(bundle / "serve.mjs", script)
        self.process = subprocess.Popen(["node", str(script), "0", *options], stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip().removesuffix("/demo/")

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.communicate(timeout=30)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One Chromium for all tests."""
    from playwright.sync_api import sync_playwright

    program = next(found for one in BROWSERS if (found := shutil.which(one)))
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=["--disable-gpu"])
        yield started
        started.close()


@pytest.fixture
def page(browser: Any, site: Site) -> Iterator[Any]:
    """A page of its own, with empty caches."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(site.url + "/index.html")
    yield page
    context.close()


@pytest.fixture
def ask(page: Any) -> Ask:
    """Load, call and close on the page: see web_page.mjs."""

    def call(url: str, task: str = "text-classification", **rest: Any) -> Told:
        given = {"library": "/text-classification/dist/index.js", "kind": KINDS[task][0], "url": url, **rest}
        asked = "async (given) => (await import('/page.mjs')).ask(given)"
        found: Told = page.evaluate(asked, given)
        return found

    return call


# --- what is made ---


def test_the_bundle_has_the_sources_and_its_name(tmp_path: Path) -> None:
    app = write_artifact(tmp_path / "artifact", "text-classification")
    made = stage.make(app, "web", tmp_path / "one")
    stage.make(app, "web", tmp_path / "two")
    package = json.loads((tmp_path / "one" / "package.json").read_text())
    assert package["name"] == "random" and package["exports"]["."] == "./dist/index.js"
    assert made["place"] == "" and made["parts"]["code"] > 50_000
    sources = sorted(path.relative_to(WEB / "app") for path in (WEB / "app" / "src").rglob("*.ts"))
    assert len(sources) > 15 and all((tmp_path / "one" / path).is_file() for path in sources)
    files = sorted(path for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert all(
        path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes() for path in files
    )
    assert not (tmp_path / "one" / "dist").exists()
    assert 'import { EdgeClassifier } from "random";' in (tmp_path / "one" / "README.md").read_text()


def test_a_tokenizer_that_the_library_does_not_run_is_told(tmp_path: Path) -> None:
    app = write_artifact(tmp_path / "artifact", "text-classification")
    file = app.artifact / "tokenizer.json"
    known = json.loads(file.read_text())
    cases = [
        ({**known, "model": {**known["model"], "byte_fallback": True}}, "byte_fallback"),
        ({**known, "normalizer": {"type": "Precompiled"}}, "normalizer Precompiled"),
    ]
    for changed, told in cases:
        file.write_text(json.dumps(changed))
        with pytest.raises(BadInput, match=told):
            stage.make(app, "web", tmp_path / "app")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artifact"]


def test_package_and_project_pin_the_same_versions() -> None:
    package = json.loads((WEB / "app" / "package.json").read_text())
    project = json.loads((WEB / "package.json").read_text())
    pins = package["devDependencies"]
    assert pins == project["dependencies"] | project["devDependencies"] and "dependencies" not in package
    assert all(re.fullmatch(r"[0-9.]+", version) for version in pins.values())


# --- what it does ---


@needs_browser
def test_it_type_checks(site: Site) -> None:
    bundle = site.folder / "text-classification"
    assert run(bundle, "node", "node_modules/typescript/bin/tsc", "--noEmit") == ""


def units(text: str, place: int) -> int:
    """Characters as JavaScript counts them."""
    return len(text[:place].encode("utf-16-le")) // 2


def same(task: str, text: str, web: Any, python: Any) -> None:
    """The answers say the same, each in its own form."""
    if task == "text-classification":
        assert [one["label"] for one in web] == [label for label, _ in python]
        np.testing.assert_allclose([one["score"] for one in web], [score for _, score in python], atol=1e-5)
    elif task == "sentence-similarity":
        np.testing.assert_allclose(web, python, atol=1e-5)
    elif task == "question-answering":
        context = text.split("\n", 1)[1]
        found, start, end, score = python
        assert [web["text"], web["start"], web["end"]] == [found, units(context, start), units(context, end)]
        assert web["score"] == pytest.approx(score, abs=1e-5)
    else:
        expected = [[label, units(text, start), units(text, end), found] for label, start, end, found, _ in python]
        assert [[one["label"], one["start"], one["end"], one["text"]] for one in web] == expected
        np.testing.assert_allclose([one["score"] for one in web], [one[4] for one in python], atol=1e-5)


@needs_browser
@pytest.mark.parametrize("task", list(KINDS))
def test_it_answers_as_the_python_library_does(task: str, site: Site, ask: Ask) -> None:
    texts = QUESTIONS if task == "question-answering" else TEXTS
    given = [text.split("\n", 1) if task == "question-answering" else [text] for text in texts]
    calls = [["selfTest"], *([KINDS[task][1], *one] for one in given)]
    python = site.folder / "python" / task
    expected = ask_bundle(python, *texts)
    [reference] = ask_bundle(python)
    for where in ("page", "worker"):
        told = ask(f"/{task}/", task, calls=calls, options={"worker": where == "worker"})
        assert "error" not in told, told
        report, *answers = told["values"]
        for text, answer, wanted in zip(texts, answers, expected, strict=True):
            same(task, text, answer, wanted)
        assert report["passed"] and report["wrong"] == []
        assert report["texts"] == reference["texts"] == len(report["rows"])
        assert report["largestDifference"] <= report["bound"] == reference["bound"] and report["milliseconds"] >= 0
        for row, wanted in zip(report["rows"], reference["rows"], strict=True):
            assert row["text"] == wanted["text"] and row["idsEqual"] and wanted["ids_equal"]
            same(task, row["text"], row["answer"], wanted["answer"])
        runtime = report["runtime"]
        assert runtime == told["about"]["runtime"] and runtime["where"] == where
        assert (runtime["accelerator"], runtime["fallback"], runtime["digestsChecked"]) == ("wasm", None, True)
        assert told["about"]["name"] == "random" and told["about"]["labels"] == list(site.apps[task].labels)


@needs_browser
def test_the_self_test_finds_another_model_and_another_tokenizer(site: Site, ask: Ask) -> None:
    for change in ("logits", "ids"):
        bundle = site.copy(f"golden-{change}")
        golden = json.loads((bundle / "model" / "golden.json").read_text())
        if change == "logits":
            golden["outputs"]["logits"][2][0] += 3.0
        else:
            golden["inputs"]["input_ids"][2][1] += 1
        (bundle / "model" / "golden.json").write_text(json.dumps(golden))
        restate(bundle)
        [report] = ask(f"/golden-{change}/", calls=[["selfTest"]])["values"]
        assert not report["passed"]
        assert report["wrong"] == ["text 3: " + {"logits": "an output is off by 3", "ids": "token ids differ"}[change]]


def restate(bundle: Path) -> None:
    """Digests of the files as they are now."""
    stated = json.loads((bundle / "bundle.json").read_text())
    stated["files"] = {name: sha256_file(bundle / name) for name in stated["files"] if (bundle / name).is_file()}
    (bundle / "bundle.json").write_text(json.dumps(stated))


@needs_browser
def test_a_second_load_asks_for_bundle_json_alone_and_a_new_model_is_fetched(site: Site, page: Any, ask: Ask) -> None:
    bundle = site.copy("cached")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url.removeprefix(site.url)))
    first = ask("/cached/", calls=[["classify", "a river"]])
    files = {"app.json", "model/tokenizer.json", "model/model.onnx"}
    assert files <= {url.removeprefix("/cached/") for url in asked}
    assert {one["file"] for one in first["progress"]} == files and not any(one["cached"] for one in first["progress"])
    last = [one for one in first["progress"] if one["file"] == "model/model.onnx"][-1]
    assert last["loaded"] == last["total"] == (bundle / "model" / "model.onnx").stat().st_size
    for options in ({}, {"worker": True}):
        asked.clear()
        second = ask("/cached/", calls=[["classify", "a river"]], options=options)
        assert {url for url in asked if url.startswith("/cached/")} == {"/cached/bundle.json"}
        assert second["values"] == first["values"] and all(one["cached"] for one in second["progress"])
    asked.clear()
    ask("/cached/", options={"cache": False})
    assert files <= {url.removeprefix("/cached/") for url in asked}

    other = write_artifact(site.folder / "artifacts" / "other", "text-classification", seed=1)
    shutil.copyfile(other.artifact / "model.onnx", bundle / "model" / "model.onnx")
    restate(bundle)
    asked.clear()
    third = ask("/cached/", calls=[["classify", "a river"]])
    assert {url for url in asked if url.startswith("/cached/")} == {"/cached/bundle.json", "/cached/model/model.onnx"}
    assert third["values"] != first["values"]
    kept = page.evaluate("async () => (await import('/page.mjs')).kept()")
    models = [one for one in kept if one.startswith("/cached/model/model.onnx")]
    assert models == [f"/cached/model/model.onnx?sha256={sha256_file(bundle / 'model' / 'model.onnx')}"]

    page.route("**/cached/**", lambda route: route.abort())  # the network is gone
    offline = ask("/cached/", calls=[["classify", "a river"]])
    assert offline.get("values") == third["values"], offline


@needs_browser
@pytest.mark.parametrize("worker", [False, True], ids=["page", "worker"])
def test_a_download_that_is_not_the_stated_file_is_refused_and_not_kept(
    worker: bool, site: Site, page: Any, ask: Ask
) -> None:
    bundle = site.copy(f"broken-{worker}")
    model = bundle / "model" / "model.onnx"
    whole = model.read_bytes()
    model.write_bytes(whole[:500] + bytes([whole[500] ^ 1]) + whole[501:])
    told = ask(f"/{bundle.name}/", options={"worker": worker})
    assert told["error"]["bundle"] and re.search(
        r"model\.onnx is not the file.*SHA-256 differs", told["error"]["message"]
    )
    kept = page.evaluate("async () => (await import('/page.mjs')).kept()")
    assert not [one for one in kept if "model.onnx" in one]
    model.write_bytes(whole)
    assert "error" not in ask(f"/{bundle.name}/", options={"worker": worker})


@needs_browser
@pytest.mark.parametrize("worker", [False, True], ids=["page", "worker"])
def test_what_cannot_work_is_told(worker: bool, site: Site, ask: Ask) -> None:
    if not (site.folder / "gone").exists():
        gone, older, torn, other = (site.copy(name) for name in ("gone", "older", "torn", "other-target"))
        (gone / "model" / "model.onnx").unlink()
        change(older, schema="edgekd/app/0")
        change(other, target="coreml")
        (torn / "model" / "model.onnx").write_bytes(b"torn")
        restate(torn)
    options = {"worker": worker}
    cases: list[tuple[Told, str]] = [
        (ask("/token-classification/", options=options), "is for token-classification, not text-classification"),
        (ask("/nothing/", options=options), r"no bundle \(bundle.json: status 404\)"),
        (ask("http://127.0.0.1:1/", options=options), "bundle.json cannot be fetched"),
        (ask("/gone/", options=options), r"model\.onnx cannot be fetched \(status 404\)"),
        (ask("/older/", options=options), "app.json is not of edgekd/app/1"),
        (ask("/other-target/", options=options), "no browser runs the target coreml"),
        (ask("/torn/", options=options), "the model does not open"),
        (ask("/text-classification/", options=options, after=[["classify", "x"]]), "random was closed"),
    ]
    for told, expected in cases:
        assert told.get("error", {}).get("bundle") and re.search(expected, told["error"]["message"]), (expected, told)
    ended = ask("/text-classification/", options=options | {"cache": False}, abortAt="app.json")
    assert ended["error"] == {"bundle": False, "message": "no longer wanted"}


@needs_browser
@pytest.mark.parametrize("worker", [False, True], ids=["page", "worker"])
def test_missing_files_of_the_runtime_are_told(worker: bool, ask: Ask) -> None:
    options = {"worker": worker, "runtimeFiles": "/nowhere"}
    found = ask("/text-classification/", options=options)["error"]
    assert found["bundle"] and re.search(r"does not open \(.*looked for in http://.*/nowhere/$", found["message"])


def change(bundle: Path, **fields: Any) -> None:
    """Another app.json, as bundle.json states it."""
    file = bundle / "app.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))
    restate(bundle)


@needs_browser
def test_lengths_threads_and_pages_that_are_not_isolated(site: Site, browser: Any, ask: Ask) -> None:
    """A model of fixed lengths is fed at the shortest that holds the text, and its padding's outputs are dropped."""
    fixed = site.copy("fixed", "token-classification")
    change(fixed, lengths=[8, 24])
    python = site.folder / "python" / "token-classification"
    calls = [["tag", text] for text in TEXTS]
    told = ask("/fixed/", "token-classification", calls=calls, options={"threads": 2, "accelerator": "webgpu"})
    assert told["about"]["runtime"]["threads"] == 2
    assert re.search("WebGPU", told["about"]["runtime"]["fallback"])  # there is no adapter here
    for text, answer, expected in zip(TEXTS, told["values"], ask_bundle(python, *TEXTS), strict=True):
        same("token-classification", text, answer, expected)
    with Served(site.folder, fixed, "--plain") as url:
        context = browser.new_context()
        plain = context.new_page()
        plain.goto(f"{url}/index.html")
        script = """async (worker) => {
          const { EdgeTagger } = await import("/text-classification/dist/index.js");
          const model = await EdgeTagger.load("/fixed/", { threads: 2, worker });
          const { passed } = await model.selfTest();
          return [passed, crossOriginIsolated, model.runtime.threads, model.runtime.fallback];
        }"""
        for worker in (False, True):
            assert plain.evaluate(script, worker) == [True, False, 1, "threads need a cross-origin isolated page"]
        context.close()


@needs_browser
def test_the_demo_answers(site: Site, page: Any) -> None:
    page.goto(f"{site.url}/text-classification/demo/")
    page.wait_for_selector("#ask:enabled")
    assert page.inner_text("h1") == "random" and "in a worker" in page.inner_text("#state")
    page.fill("#text", "a river")
    page.click("#ask")
    page.wait_for_function("document.getElementById('answer').textContent.includes('score')")
    assert len(json.loads(page.inner_text("#answer"))["answer"]) == 3
    page.click("#test")
    page.wait_for_function("document.getElementById('answer').textContent.includes('passed')")
    assert json.loads(page.inner_text("#answer"))["passed"]


def test_the_random_models_say_much(tmp_path: Path) -> None:
    """Else equal answers would prove little."""
    made = tokenizer()
    assert len({tuple(made.encode(text).ids) for text in TEXTS}) > 9
    app = write_artifact(tmp_path / "artifact", "question-answering")
    stage.make(app, "linux", tmp_path / "app")
    answers = ask_bundle(tmp_path / "app", *QUESTIONS)
    assert len({tuple(one) for one in answers}) > 12 and any(one[0] == "" for one in answers)


# --- from real runs (minutes) ---


@pytest.fixture(scope="module")
def shipped(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, pipeline.Result]:
    """The tiny run, and one that tags, both as ONNX and as LiteRT of two lengths."""
    from test_ship_tasks import LOSSES, MAKERS, RECIPE

    pytest.importorskip("litert_torch")
    folder, task = tmp_path_factory.mktemp("runs"), "token-classification"
    (folder / task).mkdir()
    MAKERS[task](tiny, folder / task)
    tagging = RECIPE.format(task=task, folder=folder / task, losses=LOSSES[task], targets="[onnx, litert]")
    texts = {"text-classification": tiny.recipe.replace("[onnx]", "[onnx, litert]"), task: tagging}
    asked = ["export.buckets=[8]"]
    return {
        name: pipeline.run(recipe.parse(text, overrides=asked), folder / name / "run") for name, text in texts.items()
    }


@pytest.mark.slow
@pytest.mark.timeout(3600)
@needs_browser
@pytest.mark.parametrize("target", ["onnx", "litert"])
@pytest.mark.parametrize("task", ["text-classification", "token-classification"])
def test_a_runs_artefact_answers_as_in_python(
    task: str, target: str, shipped: dict[str, pipeline.Result], site: Site, ask: Ask, tmp_path: Path
) -> None:
    app = outcome.app(shipped[task], "tiny", f"{target}-w8a8")
    bundle = site.folder / f"run-{task}-{target}"
    stage.make(app, "web", bundle, allow_unverified=True)
    stage.make(app, "linux", tmp_path / "linux", allow_unverified=True)
    assert bool(app.settings["lengths"]) == (target == "litert")
    build(bundle)
    split = read_split(shipped[task].steps["data"].path, "test")
    texts = ["", *TEXTS, *[example["text"] for example in split[:30]]]
    expected = ask_bundle(tmp_path / "linux", *texts)
    calls = [["selfTest"], *([KINDS[task][1], text] for text in texts)]
    library = f"/{bundle.name}/dist/index.js"
    for worker in (False, True):
        told = ask(f"/{bundle.name}/", task, library=library, calls=calls, options={"worker": worker})
        assert "error" not in told, told
        report, *answers = told["values"]
        assert report["passed"], report["wrong"]
        assert report["runtime"]["name"] == {"onnx": "onnxruntime-web", "litert": "@litertjs/core"}[target]
        for text, answer, wanted in zip(texts, answers, expected, strict=True):
            same(task, text, answer, wanted)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@needs_browser
def test_it_installs_and_builds_with_npm(site: Site) -> None:
    """As its README says, in a folder that knows nothing of the project."""
    if not shutil.which("npm"):
        pytest.skip("no npm on PATH")
    bundle = site.copy("installed")
    done = subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund"], cwd=bundle, capture_output=True, text=True, timeout=900
    )
    if done.returncode != 0 and re.search(r"ENOTFOUND|ECONNREFUSED|EAI_AGAIN|ETIMEDOUT", done.stderr):
        pytest.skip("npm has no registry here")
    assert done.returncode == 0, done.stderr
    run(bundle, "npm", "run", "build")
    assert (bundle / "dist" / "index.d.ts").is_file() and (bundle / "dist" / "worker.js").is_file()
    assert sorted(path.suffix for path in (bundle / "dist" / "runtime").iterdir()) == [".mjs", ".mjs", ".wasm", ".wasm"]
