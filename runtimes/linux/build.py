"""Builds the native runners: ``python runtimes/linux/build.py --arch x86_64 aarch64 [--runtime onnx litert]``.

Nothing of a runtime is compiled here: its libraries come out of the package that its maker publishes for Python
(``pip download``), for whichever architecture is asked for; only the runner itself is compiled. A finished runner is a
folder that can be copied to a device: ``build/<arch>/<runtime>/`` holds ``runner``, ``runtime.so``, the vendor's
libraries, and ``manifest.json`` with what went in. A runner none of whose inputs changed is not built again.

Needs a C++ compiler, CMake >= 3.20, ninja or make, and pip; for the other architecture its cross compiler. The standard
library is all that this file imports.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SOURCES = HERE / "native"
ARCHITECTURES = ("x86_64", "aarch64")
SCHEMA = "edgekd/native-runner/1"

# Every tag is named: of a package without a wheel of one of these tags, pip silently takes an older version.
MANYLINUX = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_24", "manylinux_2_17", "manylinux2014")
PYTHON = "3.11"  # of the wheels; it does not matter to the libraries in them


@dataclass(frozen=True)
class Package:
    """A published package, and what of it is used: ``libraries`` by the names that they are opened by, ``headers``."""

    name: str
    version: str
    libraries: dict[str, str] = field(default_factory=dict)  # place in the wheel: name beside the runner
    headers: tuple[str, ...] = ()  # folders in the wheel, to be searched for headers
    any_arch: bool = False


# The versions that are built, in one place. ExecuTorch's package has C++ libraries from 1.5 on.
JSON = Package("nlohmann-json", "3.12.0", headers=("nlohmann_json/include",), any_arch=True)
RUNTIMES = {
    "onnx": Package("onnxruntime", "1.32.0", {"onnxruntime/capi/libonnxruntime.so.1.32.0": "libonnxruntime.so.1"}),
    "litert": Package("ai-edge-litert", "2.3.0", {"ai_edge_litert/libLiteRt.so": "libLiteRt.so"}),
    "executorch": Package(
        "executorch",
        "1.5.1",
        {
            f"executorch/lib/{name}": name
            for name in (
                "libexecutorch.so",
                "libexecutorch_kernels_optimized.so",
                "libexecutorch_kernels_quantized.so",
                "libexecutorch_backend_xnnpack.so",
                "libexecutorch_threadpool.so",
            )
        },
        headers=("executorch/include", "executorch/include/executorch/runtime/core/portable_type/c10"),
    ),
}


class BuildError(Exception):
    """What went wrong, and what to do."""


@dataclass(frozen=True)
class Unpacked:
    """A package on this machine: its wheel, and the part of it that is used."""

    package: Package
    wheel: Path
    folder: Path

    @property
    def libraries(self) -> list[Path]:
        """The libraries under the names that they are opened by."""
        return [self.folder / "lib" / name for name in self.package.libraries.values()]

    @property
    def headers(self) -> list[Path]:
        """Folders to be searched for headers."""
        return [self.folder / folder for folder in self.package.headers]


def main(arguments: Sequence[str] | None = None) -> int:
    """Build what is asked for; 1 and a message on stderr where that cannot be done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", choices=ARCHITECTURES, default=[_own_arch()])
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
    sources = [SOURCES / name for name in ("core.cc", "core.hpp", "CMakeLists.txt", f"{runtime}.cc")]
    sources += [path for path in (SOURCES / f"{runtime}_api.hpp", SOURCES / "aarch64.cmake") if path.is_file()]
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


# --- packages ---


def fetch(package: Package, arch: str, packages: Path) -> Unpacked:
    """The package's wheel for ``arch``, downloaded where it is not in the folder yet, and the used part of it."""
    place = packages / ("any" if package.any_arch else arch)
    wheel = _wheel(package, place) or _download(package, arch, place)
    folder = place / f"{package.name}-{package.version}"
    done = folder / "unpacked.json"
    used = {"wheel": sha256(wheel), "libraries": package.libraries, "headers": list(package.headers)}
    try:
        fresh = json.loads(done.read_text(encoding="utf-8")) == used
    except (OSError, ValueError):
        fresh = False
    if not fresh:
        shutil.rmtree(folder, ignore_errors=True)
        _unpack(package, wheel, folder)
        done.write_text(json.dumps(used), encoding="utf-8")
    return Unpacked(package, wheel, folder)


def _wheel(package: Package, place: Path) -> Path | None:
    stem = package.name.replace("-", "_")
    return next(iter(sorted(place.glob(f"{stem}-{package.version}-*.whl"))), None)


def _download(package: Package, arch: str, place: Path) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    asked = f"{package.name}=={package.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(place), asked]
    if not package.any_arch:
        command += [f"--platform={tag}_{arch}" for tag in MANYLINUX]
        command += ["--python-version", PYTHON, "--implementation", "cp", "--abi", f"cp{PYTHON.replace('.', '')}"]
    done = subprocess.run(command, capture_output=True, text=True)
    found = _wheel(package, place)
    if done.returncode == 0 and found is not None:
        return found
    if "No module named pip" in done.stderr:
        raise BuildError(f"pip is missing for {sys.executable}; install it: python -m ensurepip")
    said = " | ".join(line for line in done.stderr.splitlines() if line.startswith("ERROR"))
    raise BuildError(
        f"{asked} for {arch} cannot be downloaded ({said or 'pip said nothing'}); "
        f"check the network, or put its wheel into the folder {place.name}/ of --packages"
    )


def _unpack(package: Package, wheel: Path, folder: Path) -> None:
    (folder / "lib").mkdir(parents=True)
    with zipfile.ZipFile(wheel) as content:
        names = set(content.namelist())
        if missing := sorted(set(package.libraries) - names):
            raise BuildError(f"{wheel.name} does not hold {', '.join(missing)}; its table in build.py is out of date")
        for source, name in package.libraries.items():
            (folder / "lib" / name).write_bytes(content.read(source))
        for name in names:
            if any(name.startswith(f"{prefix}/") for prefix in package.headers) and not name.endswith("/"):
                content.extract(name, folder)


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
    if arch == _own_arch():
        compiler = shutil.which("c++") or _found("g++", "g++")
    elif arch == "aarch64":
        compiler = _found("aarch64-linux-gnu-g++", "g++-aarch64-linux-gnu")
        arguments.append(f"-DCMAKE_TOOLCHAIN_FILE={SOURCES / 'aarch64.cmake'}")
    else:
        raise BuildError(f"{arch} is not built on a machine of {_own_arch()}: build it on a machine of its own kind")
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


def sha256(path: Path) -> str:
    """Hexadecimal digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _own_arch() -> str:
    return platform.machine().lower().replace("amd64", "x86_64").replace("arm64", "aarch64")


if __name__ == "__main__":
    sys.exit(main())
