"""Builds the native runners: ``python runtimes/linux/build.py --arch x86_64 aarch64 [--runtime onnx litert]``.

Nothing of a runtime is compiled here: its libraries come out of the package that its maker publishes for Python
(``packages.py``), for whichever architecture is asked for; only the runner itself is compiled. A finished runner is a
folder that can be copied to a device: ``build/<arch>/<runtime>/`` holds ``runner``, ``runtime.so``, the vendor's
libraries, and ``manifest.json`` with what went in. A runner none of whose inputs changed is not built again.

Needs a C++ compiler, CMake >= 3.20, ninja or make, and pip; for the other architecture its cross compiler. It imports
the standard library only, and ``packages.py`` beside it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packages import ARCHITECTURES, JSON, RUNTIMES, BuildError, Unpacked, fetch, own_arch, sha256

HERE = Path(__file__).resolve().parent
SOURCES = HERE / "native"
SCHEMA = "edgekd/native-runner/1"


def main(arguments: Sequence[str] | None = None) -> int:
    """Build what is asked for; 1 and a message on stderr where that cannot be done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", choices=ARCHITECTURES, default=[own_arch()])
    parser.add_argument("--runtime", nargs="+", choices=sorted(RUNTIMES), default=sorted(RUNTIMES))
    parser.add_argument("--out", type=Path, default=HERE / "build", help="folder of the runners (default: build/)")
    parser.add_argument("--packages", type=Path, help="cache of the packages (default: packages/ in the folder --out)")
    parser.add_argument("--force", action="store_true", help="build again although nothing changed")
    asked = parser.parse_args(arguments)
    packages = asked.packages or asked.out / "packages"
    try:
        for arch in asked.arch:
            for runtime in asked.runtime:
                done = build(runtime, arch, asked.out.resolve(), packages.resolve(), force=asked.force)
                sys.stdout.write(f"{arch} {runtime}: {done}\n")
                sys.stdout.flush()
    except BuildError as error:
        sys.stderr.write(f"build.py: {error}\n")
        return 1
    return 0


def build(runtime: str, arch: str, out: Path, packages: Path, *, force: bool = False) -> str:
    """Make ``out/<arch>/<runtime>/``; "built" or "unchanged"."""
    tools = _tools(arch)
    json_package = fetch(JSON, arch, packages)
    package = fetch(RUNTIMES[runtime], arch, packages)
    ours = ("core.*", "engine.*", "machine.*", "writer.*", "CMakeLists.txt", "aarch64.cmake")
    sources = [path for one in (*ours, f"{runtime}*.*", f"write_{runtime}*.cc") for path in sorted(SOURCES.glob(one))]
    inputs = {
        "runtime": runtime,
        "arch": arch,
        "sources": {path.name: sha256(path) for path in sources},
        "packages": {
            one.package.name: {
                "version": one.package.version,
                "wheel": one.wheel.name,
                "sha256": sha256(one.wheel),
                "libraries": sorted(one.package.libraries.values()),
            }
            for one in (json_package, package)
        },
        "compiler": tools.compiler_version,
    }
    folder = out / arch / runtime
    if not force and _is_made(folder, inputs):
        return "unchanged"
    work = out / "work" / f"{arch}-{runtime}"
    shutil.rmtree(work, ignore_errors=True)
    _compile(runtime, package, json_package, tools, work)
    _collect(folder, [work / "runner", work / "runtime.so", *package.libraries], inputs)
    return "built"


def _is_made(folder: Path, inputs: dict[str, Any]) -> bool:
    """Whether the folder holds what these inputs make, file by file."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    files = manifest.get("files", {})
    return manifest.get("inputs") == inputs and all(
        (folder / name).is_file() and sha256(folder / name) == digest for name, digest in files.items()
    )


def _collect(folder: Path, files: Iterable[Path], inputs: dict[str, Any]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in files:
        shutil.copy(path, folder / path.name)
    made = {path.name: sha256(path) for path in sorted(folder.iterdir())}
    manifest = {"schema": SCHEMA, "inputs": inputs, "files": made}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


# --- compiling ---


@dataclass(frozen=True)
class Tools:
    """The programs that a build runs, and CMake's arguments for them."""

    cmake: str
    arguments: tuple[str, ...]
    compiler_version: str


def _tools(arch: str) -> Tools:
    """Find them; raises BuildError with what to install."""
    cmake = _found("cmake", "cmake", "or: pip install cmake")
    if shutil.which("ninja"):
        generator = "Ninja"
    elif shutil.which("make"):
        generator = "Unix Makefiles"
    else:
        raise BuildError("neither ninja nor make is here; install one: apt-get install ninja-build")
    arguments = [f"-G{generator}"]
    if arch == own_arch():
        compiler = shutil.which("c++") or _found("g++", "g++")
    elif arch == "aarch64":
        compiler = _found("aarch64-linux-gnu-g++", "g++-aarch64-linux-gnu")
        arguments.append(f"-DCMAKE_TOOLCHAIN_FILE={SOURCES / 'aarch64.cmake'}")
    else:
        raise BuildError(f"{arch} is not built on a machine of {own_arch()}: build it on a machine of its own kind")
    said = subprocess.run([compiler, "--version"], capture_output=True, text=True)
    return Tools(cmake, tuple(arguments), said.stdout.splitlines()[0] if said.stdout else "unknown")


def _found(program: str, debian: str, otherwise: str = "") -> str:
    path = shutil.which(program)
    if path is None:
        hint = f" ({otherwise})" if otherwise else ""
        raise BuildError(f"{program} is not on the PATH; install it: apt-get install {debian}{hint}")
    return path


def _compile(runtime: str, package: Unpacked, json_package: Unpacked, tools: Tools, work: Path) -> None:
    includes = [*json_package.headers, *package.headers]
    configure = [tools.cmake, "-S", str(SOURCES), "-B", str(work), *tools.arguments]
    configure += [
        f"-DEDGEKD_RUNTIME={runtime}",
        f"-DEDGEKD_RUNTIME_VERSION={package.package.version}",
        f"-DEDGEKD_INCLUDE={';'.join(map(str, includes))}",
        f"-DEDGEKD_LIBRARIES={';'.join(map(str, package.libraries))}",
    ]
    for command in (configure, [tools.cmake, "--build", str(work)]):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            said = (done.stdout + done.stderr).strip()
            raise BuildError(f"{runtime} cannot be built ({' '.join(command[:2])} ..):\n{said[-4000:]}")


if __name__ == "__main__":
    sys.exit(main())
