"""Fetches what a C++ program needs of a runtime: libraries and headers, out of the package that its maker publishes.

``python packages.py onnx --arch aarch64`` (by default: the runtime of the bundle that this file lies in, for this
machine) makes ``vendor/aarch64/``: the libraries, the headers, and ``vendor.cmake``, which tells CMake of both. Needs
pip, which fetches for either architecture; the standard library is all that this file imports.
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
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
ARCHITECTURES = ("x86_64", "aarch64")

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
    """Fetch what is asked for; 1 and a message on stderr where that cannot be done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runtime", nargs="?", choices=sorted(RUNTIMES), help="default: as app.json above says")
    parser.add_argument("--arch", choices=ARCHITECTURES, default=own_arch())
    parser.add_argument("--out", type=Path, default=HERE / "vendor", help="default: vendor/ beside this file")
    parser.add_argument("--packages", type=Path, help="their cache (default: packages/ in the folder --out)")
    asked = parser.parse_args(arguments)
    try:
        runtime = asked.runtime or _runtime_of_bundle()
        packages = (asked.packages or asked.out / "packages").resolve()
        parts = [fetch(one, asked.arch, packages) for one in (RUNTIMES[runtime], JSON)]
    except BuildError as error:
        sys.stderr.write(f"packages.py: {error}\n")
        return 1
    folder = asked.out.resolve() / asked.arch
    _lay_out(runtime, parts, folder)
    sys.stdout.write(f"{folder}\n")
    return 0


def _runtime_of_bundle() -> str:
    try:
        runtime = str(json.loads((HERE.parent / "app.json").read_text(encoding="utf-8"))["target"])
    except (OSError, ValueError, KeyError):
        raise BuildError(f"no bundle around {HERE}: say which runtime ({', '.join(sorted(RUNTIMES))})") from None
    if runtime not in RUNTIMES:
        raise BuildError(f"no C++ program of ours opens {runtime} (known: {', '.join(sorted(RUNTIMES))})")
    return runtime


def _lay_out(runtime: str, parts: Sequence[Unpacked], folder: Path) -> None:
    """One folder of libraries and headers, whole of one run."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "lib").mkdir(parents=True)
    headers = []
    for part in parts:
        for library in part.libraries:
            shutil.copy(library, folder / "lib" / library.name)
        for source in part.package.headers:
            shutil.copytree(part.folder / source, folder / "include" / source, dirs_exist_ok=True)
            headers.append(f"${{CMAKE_CURRENT_LIST_DIR}}/include/{source}")
    libraries = [f"${{CMAKE_CURRENT_LIST_DIR}}/lib/{one.name}" for part in parts for one in part.libraries]
    values = {
        "EDGEKD_RUNTIME": [runtime],
        "EDGEKD_RUNTIME_VERSION": [parts[0].package.version],
        "EDGEKD_INCLUDE": headers,
        "EDGEKD_LIBRARIES": libraries,
    }
    text = "".join(f'set({name} "{";".join(some)}")\n' for name, some in values.items())
    (folder / "vendor.cmake").write_text(text, encoding="utf-8")


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


def sha256(path: Path) -> str:
    """Hexadecimal digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def own_arch() -> str:
    """This machine's, as the table of packages names it."""
    return platform.machine().lower().replace("amd64", "x86_64").replace("arm64", "aarch64")


if __name__ == "__main__":
    sys.exit(main())
