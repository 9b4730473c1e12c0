"""The native runners, built where they are not yet, and asked."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgekd import registry
from edgekd.bench import runners

BUILD = registry.folder("runtimes") / "linux" / "build.py"
OWN = platform.machine().lower().replace("amd64", "x86_64")
QEMU = os.environ.get("EDGEKD_QEMU") or shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
SYSROOT = Path("/usr/aarch64-linux-gnu")  # of Debian's cross compiler
Runner = Callable[..., tuple[int, list[dict[str, Any]]]]


def build(runtime: str, arch: str) -> Path:
    """The folder of a runner; skips where it cannot be built on this machine."""
    command = [sys.executable, str(BUILD), "--arch", arch, "--runtime", runtime]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    if done.returncode != 0:
        if any(
            told in done.stderr for told in ("cannot be downloaded", "not on the PATH", "install", "is not built on")
        ):
            pytest.skip(done.stderr.strip())
        raise AssertionError(done.stderr)
    return runners.build_folder() / arch / runtime


def caller(*command: str, sysfs: Path | None = None) -> Runner:
    """Gives lines to a runner's stdin: its exit code, and the documents on its stdout."""

    def call(*lines: Any) -> tuple[int, list[dict[str, Any]]]:
        text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
        environment = os.environ | ({"EDGEKD_SYSFS": str(sysfs)} if sysfs else {})
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=300, env=environment)
        return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]

    return call


def runner_of(runtime: str) -> Runner:
    """The runner for this machine."""
    return caller(str(build(runtime, OWN) / "runner"))


def emulated_runner_of(runtime: str) -> Runner:
    """The runner for 64-bit ARM under an emulator; skips where there is none."""
    if OWN == "aarch64":
        pytest.skip("this machine is aarch64 itself")
    if QEMU is None:
        pytest.skip("no qemu-aarch64 on the PATH and no EDGEKD_QEMU (10 or later; 7.2 crashes in ONNX Runtime)")
    if not SYSROOT.is_dir():
        pytest.skip(f"no {SYSROOT}: apt-get install g++-aarch64-linux-gnu")
    folder = build(runtime, "aarch64")
    emulated = caller(QEMU, "-cpu", "cortex-a76", "-L", str(SYSROOT), str(folder / "runner"))

    def call(*lines: Any) -> tuple[int, list[dict[str, Any]]]:
        code, found = emulated(*lines)
        if code < 0:
            pytest.skip(f"{QEMU} ended with signal {-code}: qemu 10 or later is needed")
        return code, found

    return call
