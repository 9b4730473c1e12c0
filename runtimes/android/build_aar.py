"""Builds a bundle's library as an .aar without Gradle: kotlinc, and what an .aar is made of.

    python runtimes/android/build_aar.py BUNDLE OUT.aar --runtime RUNTIME.jar

An .aar is a zip of the manifest, the compiled classes, R8's rules and the assets. It names no dependencies: an app that
takes the file adds the runtime and kotlinx-coroutines-android itself (``gradle/libs.versions.toml`` in the bundle).
``android_tools.py`` fetches the compiler and android.jar where they are not given. Same bundle, same bytes.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import android_tools as tools

PACKAGE, MIN_SDK = "dev.edgekd", 24
MANIFEST = f"""<?xml version="1.0" encoding="utf-8"?>
<manifest xmlns:android="http://schemas.android.com/apk/res/android" package="{PACKAGE}">

    <uses-sdk android:minSdkVersion="{MIN_SDK}" />

</manifest>
"""
METADATA = "aarFormatVersion=1.0\naarMetadataVersion=1.0\nminCompileSdk=1\nminCompileSdkExtension=0\n"
STORED = (".onnx", ".tflite", ".pte")  # as the app's build has to keep them
DATE = (1980, 1, 1, 0, 0, 0)


class BuildError(Exception):
    """The bundle cannot be built; the message says why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Build it; what fails is said in a line."""
    parser = argparse.ArgumentParser(description="A bundle's library as an .aar.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--runtime", type=Path, action="append", required=True, help="classes of the model's runtime")
    given = parser.parse_args(arguments)
    try:
        build(given.bundle, given.out, given.runtime)
    except (tools.ToolsError, BuildError) as error:
        sys.stderr.write(f"build_aar: {error}\n")
        return 1
    sys.stdout.write(f"{given.out}: {given.out.stat().st_size} bytes\n")
    return 0


def build(bundle: Path, out: Path, runtime: Sequence[Path]) -> None:
    """Write the .aar; raises ToolsError or BuildError."""
    library = bundle / "library"
    if not (library / "src/main/kotlin").is_dir():
        raise BuildError(f"{bundle} is no bundle for Android")
    with tempfile.TemporaryDirectory() as folder:
        compile_kotlin([library / "src/main/kotlin"], Path(folder), runtime)
        classes = zipped(below(Path(folder)))
    content: dict[str, bytes] = {
        "AndroidManifest.xml": MANIFEST.encode(),
        "META-INF/com/android/build/gradle/aar-metadata.properties": METADATA.encode(),
        "R.txt": b"",  # the library has no resources
        "classes.jar": classes,
        "proguard.txt": (library / "consumer-rules.pro").read_bytes(),
    }
    assets = library / "src/main/assets"
    out.write_bytes(zipped(content | {f"assets/{name}": file for name, file in below(assets).items()}))


def compile_kotlin(sources: Sequence[Path], out: Path, classes: Sequence[Path], *, android: bool = True) -> None:
    """Kotlin sources as class files in a folder, or as a .jar; warnings are errors."""
    kotlin = tools.kotlin()
    known = [*classes, *(kotlin / "lib" / f"{name}.jar" for name in ("kotlin-stdlib", "kotlinx-coroutines-core-jvm"))]
    platform = ["-no-jdk"] if android else []
    if android:
        known.append(tools.android_jar())
    path = os.pathsep.join(map(str, known))
    flags = ["-no-stdlib", "-no-reflect", "-Werror", "-jvm-target", "11", "-module-name", "edgekd", *platform]
    command = [str(kotlin / "bin" / "kotlinc"), *flags, "-classpath", path, *map(str, sources), "-d", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500)
    if done.returncode:
        raise BuildError(f"kotlinc failed:\n{done.stderr}")


def below(folder: Path) -> dict[str, bytes]:
    """The files of a folder by their places in it."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def zipped(files: Mapping[str, bytes]) -> bytes:
    """A zip that depends on nothing but the files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        for name, content in sorted(files.items()):
            entry = zipfile.ZipInfo(name, DATE)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_STORED if name.endswith(STORED) else zipfile.ZIP_DEFLATED
            packed.writestr(entry, content)
    return buffer.getvalue()


if __name__ == "__main__":
    sys.exit(main())
