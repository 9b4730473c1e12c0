"""Kotlin compiled here and run on a JVM: the library's core, and the programs of ``runtimes/android/jvm``."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from _material import ROOT
from _rows import InOneGo
from test_cpp_tokenizer import Row

ANDROID = ROOT / "runtimes" / "android"
sys.path.insert(0, str(ANDROID))

import android_tools  # noqa: E402
import build_aar  # noqa: E402


def tool(fetch: Any) -> Path:
    """A tool, or the test is skipped with the reason."""
    try:
        return Path(fetch())
    except android_tools.ToolsError as error:
        pytest.skip(str(error))


def compiled(sources: Sequence[Path], classes: Sequence[Path]) -> Path:
    """Kotlin sources as a .jar for a JVM, once for the same sources; what does not compile is no reason to skip."""
    tool(android_tools.kotlin)
    files = sorted(path for source in sources for path in ([source] if source.is_file() else source.rglob("*.*")))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]
    place = android_tools.CACHE / "compiled" / f"{digest}.jar"
    if not place.is_file():
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as folder:
            part = Path(folder) / "part.jar"
            build_aar.compile_kotlin(sources, part, classes, android=False)
            part.rename(place)
    return place


def core(engine: str, encoder: str) -> list[Path]:
    """The sources of the core with one engine and one tokenizer."""
    return [ANDROID / "core", ANDROID / "engines" / f"{engine}.kt", ANDROID / "encoders" / f"{encoder}.kt"]


def java(jars: Sequence[Path], main: str) -> list[str]:
    """A command."""
    kotlin = tool(android_tools.kotlin) / "lib"
    path = [*jars, kotlin / "kotlin-stdlib.jar", kotlin / "kotlinx-coroutines-core-jvm.jar"]
    return ["java", "-XX:+UseSerialGC", "-DDJL_OFFLINE=true", "-cp", os.pathsep.join(map(str, path)), main]


def asked(command: Sequence[str], lines: Iterable[Any]) -> list[Any]:
    """JSON lines in, JSON lines out."""
    done = subprocess.run(
        list(command),
        input="".join(json.dumps(line) + "\n" for line in lines),
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "DJL_OFFLINE": "true"},
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def utf16(text: str) -> list[int]:
    """Where each character begins, and the last ends, as Kotlin counts."""
    places = [0]
    for c in text:
        places.append(places[-1] + (2 if ord(c) > 0xFFFF else 1))
    return places


class KotlinAndPython(InOneGo):
    """One tokenizer, as Kotlin and as Python runs it; offsets count in UTF-16."""

    def __init__(self, command: Sequence[str], tokenizer: Any, folder: Path) -> None:
        program = folder / "tokenize"
        program.write_text("#!/bin/sh\nexec " + " ".join(command) + ' "$@"\n', encoding="utf-8")
        program.chmod(0o755)
        super().__init__(program, tokenizer, folder)

    def python_answer(self, row: Row) -> dict[str, Any]:
        """In the same form."""
        if row.max_length is None:
            self.python.no_truncation()
        else:
            self.python.enable_truncation(row.max_length, strategy=row.truncation)
        found = self.python.encode(row.text, row.pair, add_special_tokens=not row.bare)
        places = [utf16(row.text), utf16(row.pair or "")]
        offsets = zip(found.sequence_ids, found.offsets, strict=True)
        return {
            "ids": found.ids,
            "offsets": [[places[of or 0][one] for one in span] for of, span in offsets],
            "special_mask": found.special_tokens_mask,
            "type_ids": found.type_ids,
            "texts": [-1 if of is None else of for of in found.sequence_ids],
        }
