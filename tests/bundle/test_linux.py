"""A bundle for a board: its C++ library, compiled from the bundle, answers as its Python library does."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from _emulated import OWN, emulator
from _material import SHARED, ask_bundle
from _run import Run

from edgekd import outcome, pipeline, recipe, registry
from edgekd.bundle import stage

LINUX = registry.folder("runtimes") / "linux"
BUILD = LINUX / "build"  # git ignores it; what is in it is not compiled again
WATCHED = "-g1 -fsanitize=address,undefined -fno-sanitize-recover=all -D_GLIBCXX_ASSERTIONS"
TEXTS = [
    "",
    "tell me about the nile, please",
    "  Iron\tand\u2003SILVER!  \n ",
    "na\u00efve cafe\u0301 \U0001f469\u200d\U0001f467 \u4e2d\u6587 a\x00b",
    "mango " * 60,
    "[CLS] [MASK] apple[SEP]",
]


@dataclass(frozen=True)
class Program:
    """The compiled library and its program, on whatever machine."""

    folder: Path
    prefix: tuple[str, ...] = ()

    def run(self, *arguments: str | bytes | Path) -> subprocess.CompletedProcess[str]:
        """edgekd-app with these arguments."""
        command = [*self.prefix, self.folder / "build" / "edgekd-app", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=300)

    def ask(self, bundle: Path, *texts: str) -> list[Any]:
        """The same question as ``ask_bundle``; a text with a zero byte cannot be an argument."""
        done = self.run(bundle, *texts)
        assert done.returncode in (0, 1), done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]


def compiled(bundle: Path, arch: str = OWN, kind: str = "Quick") -> Program:
    """From the bundle's sources, once for all bundles that have the same; skips where that cannot be done.

    ``Quick`` is no type of CMake's: nothing is optimized, which compiles in half the time. ``Watched`` ends at the
    first access or sum that is not defined.
    """
    if arch != OWN and shutil.which("aarch64-linux-gnu-g++") is None:
        pytest.skip("no cross compiler: apt-get install g++-aarch64-linux-gnu")
    for tool, package in (("cmake", "cmake"), ("c++", "g++"), ("make", "make")):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool}: apt-get install {package}")
    target = json.loads((bundle / "app.json").read_text())["target"]
    sources = sorted(path for path in (bundle / "cpp").rglob("*") if path.is_file())
    said = subprocess.run(["c++", "--version"], capture_output=True).stdout
    made_of = [arch, kind, target, said, *(f"{one.name}\n".encode() + one.read_bytes() for one in sources)]
    key = hashlib.sha256(b"\n".join(one if isinstance(one, bytes) else one.encode() for one in made_of)).hexdigest()
    folder = BUILD / "app" / f"{arch}-{target}-{kind}-{key[:16]}"
    if (folder / "done").is_file():
        return Program(folder)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(bundle / "cpp", folder / "cpp")
    fetch = [sys.executable, folder / "cpp" / "packages.py", target, "--arch", arch, "--packages", BUILD / "packages"]
    done = subprocess.run(fetch, capture_output=True, text=True, timeout=500)
    if done.returncode != 0:
        assert "cannot be downloaded" in done.stderr or "pip is missing" in done.stderr, done.stderr
        pytest.skip(done.stderr.strip())
    cross = [f"-DCMAKE_TOOLCHAIN_FILE={folder / 'cpp' / 'native' / 'aarch64.cmake'}"] if arch != OWN else []
    configure = ["cmake", "-S", folder / "cpp", "-B", folder / "build", f"-DCMAKE_BUILD_TYPE={kind}", *cross]
    configure += [f"-DCMAKE_CXX_FLAGS_WATCHED={WATCHED}"]
    for command in (configure, ["cmake", "--build", folder / "build", "--parallel", "2"]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "warning" not in done.stderr, done.stderr
    (folder / "done").touch()
    return Program(folder)


def same(program: Program, bundle: Path, texts: Sequence[str], tolerance: float = 1e-6) -> None:
    """C++ and Python: the self-test row by row, and the answers."""
    [cpp], [python] = program.ask(bundle), ask_bundle(bundle)
    assert cpp["passed"] and python["passed"], (cpp["wrong"], python["wrong"])
    assert cpp.keys() == python.keys() and cpp["texts"] == python["texts"] and cpp["bound"] == python["bound"]
    assert cpp["milliseconds"] > 0 and cpp["runtime"]["threads"] == 1
    for one, other in zip(cpp["rows"], python["rows"], strict=True):
        assert one.keys() == other.keys() and one["text"] == other["text"] and one["ids_equal"]
        assert abs(one["difference"] - other["difference"]) <= tolerance
        alike(one["answer"], other["answer"], tolerance)
    texts = [text for text in texts if "\0" not in text]
    for one, other in zip(program.ask(bundle, *texts), ask_bundle(bundle, *texts), strict=True):
        alike(one, other, tolerance)


def alike(found: Any, expected: Any, tolerance: float) -> None:
    """Equal but for the last digits of numbers that are not whole."""
    if isinstance(expected, list):
        assert len(found) == len(expected), (found, expected)
        for one, other in zip(found, expected, strict=True):
            alike(one, other, tolerance)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=tolerance, rel=tolerance)
    else:
        assert found == expected


# --- the tiny run, on this machine, with ONNX Runtime ---


@pytest.fixture(scope="module")
def bundle(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("linux")
    stage.make(run.app(), "linux", folder / "app")
    return folder / "app"


@pytest.fixture(scope="module")
def program(bundle: Path) -> Program:
    return compiled(bundle)


def copy_of(bundle: Path, folder: Path) -> Path:
    return Path(shutil.copytree(bundle, folder / "app"))


@pytest.mark.slow  # compiles the library
def test_cpp_answers_as_python(program: Program, bundle: Path) -> None:
    same(program, bundle, TEXTS)


@pytest.mark.slow  # compiles the library
def test_the_cpp_self_test_finds_another_model_and_another_tokenizer(
    program: Program, bundle: Path, tmp_path: Path
) -> None:
    changed = copy_of(bundle, tmp_path)
    golden = json.loads((changed / "model" / "golden.json").read_text())
    golden["outputs"]["logits"][2][0] += 3.0
    golden["inputs"]["input_ids"][3][1] += 1
    (changed / "model" / "golden.json").write_text(json.dumps(golden))
    [cpp], [python] = program.ask(changed), ask_bundle(changed)
    assert not cpp["passed"] and cpp["wrong"] == python["wrong"] and len(cpp["wrong"]) == 2
    assert cpp["rows"][3]["difference"] is None and cpp["rows"][3]["answer"]
    assert program.run(changed).returncode == 1


@pytest.mark.slow  # compiles the library
def test_what_is_wrong_is_told(program: Program, bundle: Path, tmp_path: Path) -> None:
    def change(**settings: Any) -> None:
        (changed / "app.json").write_text(json.dumps({**whole, **settings}))

    changed = copy_of(bundle, tmp_path)
    whole = json.loads((changed / "app.json").read_text())
    cases: list[tuple[dict[str, Any], str]] = [
        ({"schema": "edgekd/app/0"}, "app.json is not of edgekd/app/1"),
        ({"task": "image-classification"}, "which this library has no class for"),
        ({"target": "litert"}, "is for litert, and this program was built with onnx"),
        ({"inputs": [{"name": "pixels", "dtype": "float32"}]}, "the model has an input 'pixels', which no text gives"),
        ({"inputs": 3}, "app: "),
        ({"file": "none.onnx"}, "none.onnx: cannot be opened"),
        ({"file": "tokenizer.json"}, "tokenizer.json failed"),
        ({"max_length": 1}, "max_length 1 does not hold the 2 special tokens"),
    ]
    for settings, told in cases:
        change(**settings)
        done = program.run(changed, "a text")
        assert done.returncode == 2 and told in done.stderr and not done.stdout, (settings, done.stderr)
    change(labels=["only one"])
    assert "the model gives 1 x 3 numbers and not 1 x 1" in program.run(changed, "a text").stderr
    change()
    assert "the text is not UTF-8 at byte 1" in program.run(changed, b"a\xff").stderr
    (changed / "model" / "golden.json").write_text("{}")
    assert "golden.json" in program.run(changed).stderr
    (changed / "model" / "tokenizer.json").write_text('{"model": {"type": "WordLevel"}}')
    assert "model WordLevel is not written" in program.run(changed, "a text").stderr
    for content in ("[1]", "{", ""):
        (changed / "app.json").write_text(content)
        assert program.run(changed, "a text").returncode == 2
    assert "no bundle" in program.run(tmp_path / "nowhere").stderr


@pytest.mark.slow  # compiles the library
def test_the_library_in_an_app(program: Program, bundle: Path, tmp_path: Path) -> None:
    """A program of somebody else's: the header, the library, and what its types promise."""
    source = Path(__file__).with_name("app_of_somebody.cc")
    folder = program.folder
    [library] = (folder / "cpp" / "vendor" / OWN / "lib").iterdir()
    command = ["c++", "-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{folder / 'cpp'}", source]
    command += [folder / "build" / "libedgekd_app.a", library, f"-Wl,-rpath,{library.parent}", "-o", tmp_path / "app"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    done = subprocess.run([tmp_path / "app", bundle], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow  # compiles the library
def test_installed_it_can_be_copied_to_a_board(program: Program, bundle: Path, tmp_path: Path) -> None:
    command = ["cmake", "--install", program.folder / "build", "--prefix", tmp_path / "first"]
    assert subprocess.run(command, capture_output=True, timeout=100).returncode == 0
    (tmp_path / "first").rename(tmp_path / "board")
    done = subprocess.run([tmp_path / "board" / "bin" / "edgekd-app", bundle], capture_output=True, timeout=100)
    assert done.returncode == 0
    assert sorted(path.name for path in (tmp_path / "board" / "lib").iterdir()) == ["libonnxruntime.so.1"]


def test_without_the_runtime_cmake_says_what_to_do(bundle: Path, tmp_path: Path) -> None:
    if shutil.which("cmake") is None or shutil.which("c++") is None:
        pytest.skip("no cmake or no C++ compiler")
    command = ["cmake", "-S", bundle / "cpp", "-B", tmp_path / "build"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode != 0 and "python packages.py --arch" in " ".join(done.stderr.split())


def test_the_python_half_is_there_without_a_native_tokenizer(run: Run, tmp_path: Path) -> None:
    stage.make(run.app(tokenizer="library"), "linux", tmp_path / "app")
    assert (tmp_path / "app" / "python").is_dir() and not (tmp_path / "app" / "cpp").exists()
    module = registry.load("platforms", "linux")
    app = run.app(tokenizer="native")
    assert {name.partition("/")[0] for name in module.files(app)} == {"python", "cpp"}
    assert {name.partition("/")[0] for name in module.files(run.app(target="openvino"))} == {"python"}


# --- all tasks on all runtimes, the other architecture, real texts ---


TASKS = ("text-classification", "token-classification", "question-answering", "sentence-similarity")
TARGETS = ("onnx", "litert", "executorch")  # of the C++ library


@pytest.fixture(scope="module")
def result_of(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], pipeline.Result]:
    """A tiny run of a task for all targets, made once."""
    from test_ship_tasks import LOSSES, MAKERS, RECIPE

    @functools.cache
    def made(task: str) -> pipeline.Result:
        folder = tmp_path_factory.mktemp("tasks")
        targets = f"export.targets=[{', '.join(TARGETS)}]"
        if task == "text-classification":
            return pipeline.run(recipe.parse(tiny.recipe, overrides=[targets]), folder / "run")
        MAKERS[task](tiny, folder)
        text = RECIPE.format(task=task, folder=folder, losses=LOSSES[task], targets="[onnx]")
        return pipeline.run(recipe.parse(text, overrides=[targets]), folder / "run")

    return made


def asked_of(task: str) -> list[str]:
    if task != "question-answering":
        return TEXTS
    long = "iron is old and new, the nile is long and old; please tell more about mango and plum. "
    contexts = ["", " ", TEXTS[3], long, long * 6, "x" * 200 + " " + long]
    questions = ["", "which metal", "which " * 30, "Na\u00efve\u2003caf\u00e9?"]
    return ["which metal", *(f"{question}\n{context}" for question in questions for context in contexts)]


def emulated(bundle: Path) -> Program:
    before = emulator()
    return Program(compiled(bundle, "aarch64").folder, before)


@pytest.fixture(scope="module", params=itertools.product(TASKS, TARGETS), ids="-".join)
def task_bundle(
    request: pytest.FixtureRequest,
    result_of: Callable[[str], pipeline.Result],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Of every task for every target; skips where the converter refuses it."""
    task, target = request.param
    result = result_of(task)
    if failed := {name: error.line() for name, error in result.failures.items() if target in name}:
        pytest.skip(f"no artefact: {failed}")
    folder = tmp_path_factory.mktemp("bundle") / "app"
    stage.make(outcome.app(result, "tiny", f"{target}-w8a8"), "linux", folder, allow_unverified=True)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_task_on_every_runtime(task_bundle: Path) -> None:
    task = json.loads((task_bundle / "app.json").read_text())["task"]
    same(compiled(task_bundle), task_bundle, asked_of(task), 1e-5)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_task_on_every_runtime_on_aarch64(task_bundle: Path) -> None:
    """Under an emulator. Integer layers give the same; what is float between them may differ in its last bits."""
    board = emulated(task_bundle)
    [report] = board.ask(task_bundle)
    assert report["passed"] and all(row["ids_equal"] for row in report["rows"]), report["wrong"]
    task = json.loads((task_bundle / "app.json").read_text())["task"]
    texts = [text for text in asked_of(task) if "\0" not in text][:8]
    for found, expected in zip(board.ask(task_bundle, *texts), ask_bundle(task_bundle, *texts), strict=True):
        alike(found, expected, 1e-4)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_sanitizers_find_nothing(bundle: Path, tmp_path: Path) -> None:
    """In good texts, in bytes that are no text, and in a bundle's files with a few bytes changed or cut off."""
    watched, chance = compiled(bundle, kind="Watched"), random.Random(0)
    same(watched, bundle, TEXTS)
    alphabet = "a b\u0301\u00e9\u4e2d\U0001f600\t'#[]<>\u200d\u0600 iron NILE mango "
    texts = ["".join(chance.choices(alphabet, k=chance.randrange(60))) for _ in range(300)]
    assert len(watched.ask(bundle, *texts)) == 300
    for _ in range(10):
        done = watched.run(bundle, bytes(chance.randrange(1, 256) for _ in range(20)))
        assert done.returncode in (0, 2) and (done.returncode == 0 or "not UTF-8" in done.stderr), done.stderr
    ends: dict[int, int] = {}
    for number in range(120):
        changed = copy_of(bundle, tmp_path / str(number))
        file = changed / ("app.json", "model/tokenizer.json", "model/golden.json")[number % 3]
        content = bytearray(file.read_bytes())
        for _ in range(chance.randrange(1, 4)):
            content[chance.randrange(len(content))] = chance.choice(b'0123456789-e"{}[],:truefalsnull')
        file.write_bytes(content[: chance.choice([len(content), len(content), chance.randrange(len(content))])])
        done = watched.run(changed, *chance.choice([[], ["the nile", ""]]))
        assert done.returncode in (0, 1, 2) and "Sanitizer" not in done.stderr, (number, done.stderr)
        ends[done.returncode] = ends.get(done.returncode, 0) + 1
        shutil.rmtree(changed)
    assert ends[2] > 20, ends


REAL = """
name: real
task: {task}
teacher: {{model: {teacher}}}
data: {{train: {folder}/train{suffix}, test: {folder}/test{suffix}, max_length: 64}}
distill:
  student: {{layers: 1}}
  epochs: 1
  batch_size: 32
quantize: {{steps: 4, evaluate_every: 2, batch_size: 8, calibration_samples: 32}}
export: {{targets: [onnx], jobs: 1}}
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("data", "teacher", "task", "suffix"),
    [
        ("banking77", "banking77-minilm-l6", "text-classification", ".csv"),
        ("restaurant8k", "restaurant8k-minilm-l6-tokcls", "token-classification", ".jsonl"),
    ],
)
def test_real_texts(data: str, teacher: str, task: str, suffix: str, tmp_path: Path) -> None:
    """A real tokenizer and real texts; the student has hardly learned anything."""
    source = SHARED / "data" / data
    if not (SHARED / "teachers" / teacher / "model.safetensors").is_file() or not (source / f"test{suffix}").is_file():
        pytest.skip(f"no {data} and its teacher under {SHARED} (set EDGEKD_SHARED)")
    texts: list[str] = []
    for split, count in (("train", 400), ("test", 200)):
        lines = (source / f"{split}{suffix}").read_text(encoding="utf-8").splitlines(keepends=True)
        (tmp_path / f"{split}{suffix}").write_text("".join(lines[: count + 1]), encoding="utf-8")
    text = REAL.format(task=task, teacher=SHARED / "teachers" / teacher, folder=tmp_path, suffix=suffix)
    result = pipeline.run(recipe.parse(text), tmp_path / "run")
    stage.make(outcome.app(result, "real", "onnx-w8a8"), "linux", tmp_path / "app", allow_unverified=True)
    rows = [json.loads(line) for line in result.steps["data"].file("test.jsonl").read_text().splitlines()]
    texts = [row["text"] for row in rows]
    assert len(texts) >= 150
    same(compiled(tmp_path / "app", kind="Release"), tmp_path / "app", texts, 1e-5)
