"""A Swift toolchain for the tests: on the PATH, or in the root folder that EDGEKD_SWIFT_ROOT names (make_root.sh)."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from _material import ROOT

PACKAGE = ROOT / "runtimes" / "ios"
HELPERS = Path(__file__).parent / "swift"


@dataclass(frozen=True)
class Swift:
    """Where the compiler is; ``root`` is the folder in which it runs as in a machine of its own."""

    root: Path | None

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """A folder that the compiler sees, removed at the end."""
        inside = None if self.root is None else self.root / "tmp"
        with tempfile.TemporaryDirectory(prefix="edgekd-", dir=inside) as name:
            yield Path(name)

    def path(self, path: Path) -> str:
        """The path as the compiler sees it."""
        return str(path) if self.root is None else "/" + str(path.relative_to(self.root))

    def command(self, folder: Path, *words: str | Path) -> list[str]:
        """A command line that runs in ``folder``."""
        told = [self.path(word) if isinstance(word, Path) else word for word in words]
        inside = ["env", "-C", self.path(folder), *told]
        return inside if self.root is None else ["chroot", str(self.root), *inside]

    def run(self, folder: Path, *words: str | Path, timeout: int = 1500) -> subprocess.CompletedProcess[str]:
        """The command, with all that it said in ``stdout``."""
        return subprocess.run(
            self.command(folder, *words),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            timeout=timeout,
            env={**os.environ, **dict.fromkeys(("HOME", "TMPDIR"), self.path(folder))},
        )


def toolchain() -> Swift:
    """The one that is here; the test is skipped where there is none."""
    named = os.environ.get("EDGEKD_SWIFT_ROOT")
    if named:
        root = Path(named).resolve()
        if not (root / "usr" / "bin" / "swiftc").exists():
            pytest.skip(f"EDGEKD_SWIFT_ROOT: no usr/bin/swiftc in {root} ({HELPERS / 'make_root.sh'} makes one)")
        if not (root / "proc" / "self").exists():
            pytest.skip(f"swiftc needs /proc: mount -t proc proc {root / 'proc'}")
        return Swift(root)
    if shutil.which("swiftc") is None:
        pytest.skip(f"no swiftc on the PATH and no EDGEKD_SWIFT_ROOT ({HELPERS / 'make_root.sh'} makes a root)")
    return Swift(None)
