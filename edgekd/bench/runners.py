"""Which program runs an artefact on a device, and what has to be on the device for it.

A runner speaks one wire (``runtimes/README.md``): a job as a line of JSON on stdin, documents on stdout. ``native`` is
the C++ program of a runtime with its libraries beside it, built by ``runtimes/linux/build.py``; a Python runner is one
file, and what writes text beside it; in a browser the page is the runner, and there is nothing to push.
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path

from edgekd import registry
from edgekd.bench.devices import Device
from edgekd.errors import DeviceError

NATIVE = ("onnx", "litert", "executorch")  # runtimes that have a C++ runner


def family(runtime: str) -> str:
    """The runtime as profiles and native runners know it: a text that is read and written is ONNX Runtime's too."""
    return "onnx" if runtime == "onnxruntime" else runtime


def abi(device: Device) -> str:
    """What the device's binaries are built for."""
    return device.abi or platform.machine().lower().replace("amd64", "x86_64")


def build_folder() -> Path:
    """Where the native runners are: ``build/<abi>/<runtime>/`` holds one program and its libraries."""
    return registry.folder("runtimes") / "linux" / "build"


def files(device: Device, runtime: str) -> dict[str, Path]:
    """What to push, by its place on the device; raises DeviceError where there is no such runner."""
    if device.runner == "browser":
        return {}
    if device.runner != "native":
        runner = registry.folder("runtimes") / device.runner
        parts = [part for part in sorted(runner.parent.glob("edgekd_*.py")) if part != runner]
        return {"runner": runner, **{part.name: part for part in parts}}
    runtime = family(runtime)
    if runtime not in NATIVE:
        raise DeviceError(f"not measured: there is no native runner for {runtime}", where=device.name)
    folder = build_folder() / abi(device) / runtime
    if not (folder / "runner").is_file():
        raise DeviceError(
            f"the native runner of {runtime} for {abi(device)} is not built",
            where=device.name,
            todo=f"Build it: python runtimes/linux/build.py --arch {abi(device)}.",
        )
    return {f"{runtime}/{path.name}": path for path in sorted(folder.iterdir()) if path.is_file()}


def command(device: Device, runtime: str) -> list[str]:
    """How to start it, in the transport's folder."""
    if device.runner == "browser":
        return ["runner", runtime]
    if device.runner == "native":
        return [f"./{family(runtime)}/runner"]
    return [device.python or sys.executable, "runner"]
