"""Programs for 64-bit ARM on another machine, under qemu."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path

import pytest

OWN = platform.machine().lower().replace("amd64", "x86_64")
QEMU = os.environ.get("EDGEKD_QEMU") or shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
SYSROOT = Path("/usr/aarch64-linux-gnu")  # of Debian's cross compiler


def emulator() -> tuple[str, ...]:
    """What stands before such a program's command; skips where there is none, or no need of one."""
    if OWN == "aarch64":
        pytest.skip("this machine is aarch64 itself")
    if QEMU is None:
        pytest.skip("no qemu-aarch64 on the PATH and no EDGEKD_QEMU (10 or later; 7.2 crashes in ONNX Runtime)")
    if not SYSROOT.is_dir():
        pytest.skip(f"no {SYSROOT}: apt-get install g++-aarch64-linux-gnu")
    return (QEMU, "-cpu", "cortex-a76", "-L", str(SYSROOT))
