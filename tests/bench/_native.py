"""The native runners, built where they are not yet, and asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from _emulated import OWN, emulator

from edgekd import registry
from edgekd.bench import runners

BUILD = registry.folder("runtimes") / "linux" / "build.py"
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
    before = emulator()
    emulated = caller(*before, str(build(runtime, "aarch64") / "runner"))

    def call(*lines: Any) -> tuple[int, list[dict[str, Any]]]:
        code, found = emulated(*lines)
        if code < 0:
            pytest.skip(f"{before[0]} ended with signal {-code}: qemu 10 or later is needed")
        return code, found

    return call
