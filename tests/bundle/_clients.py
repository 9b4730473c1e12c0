"""The programs of others that open what edgekd makes, each in a folder of its own, installed when first asked for.

The folder is EDGEKD_TOOLS, by default ~/.cache/edgekd/tools. A test whose client cannot be had is skipped and says why.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(os.environ.get("EDGEKD_TOOLS", Path.home() / ".cache" / "edgekd" / "tools"))


def python_with(package: str) -> Path:
    """A Python that has the package; it shares nothing with edgekd's, whose versions it may contradict."""
    home = TOOLS / f"python-{package}"
    python = home / "bin" / "python"
    if not (home / "ready").is_file():
        _call(package, sys.executable, "-m", "venv", "--clear", home)
        _call(package, python, "-m", "pip", "install", "--quiet", package)
        (home / "ready").touch()
    return python


def site_with(package: str) -> Path:
    """A folder for ``sys.path`` with the package alone: what it needs is installed beside edgekd."""
    home = TOOLS / f"site-{package}"
    if not (home / "ready").is_file():
        options = ["--quiet", "--no-deps", "--target", home]
        _call(package, sys.executable, "-m", "pip", "install", *options, package)
        (home / "ready").touch()
    return home


def node_with(*packages: str) -> Path:
    """A folder with the packages in ``node_modules``."""
    if not shutil.which("npm"):
        pytest.skip("npm is not installed")
    home = TOOLS / ("node-" + "-".join(one.replace("/", "-").lstrip("@") for one in packages))
    if not (home / "ready").is_file():
        home.mkdir(parents=True, exist_ok=True)
        (home / "package.json").write_text("{}")
        options = ["--prefix", home, "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        _call(packages[0], "npm", "install", *options, *packages)
        (home / "ready").touch()
    return home


def _call(package: str, *command: str | Path) -> None:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=900)
    if done.returncode:
        pytest.skip(f"{package} cannot be installed: {done.stderr.strip()[-200:]}")
