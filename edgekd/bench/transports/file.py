"""A device that cannot be plugged in: a folder to carry there and back, and the same command again.

Nothing is sent anywhere. Every question is written into the folder as the input of one process, with the runner and
the models beside it; ``run.sh`` answers all of them in order, on any device with a POSIX shell. When the folder is back
where it was, the same `edgekd bench` reads the answers. A question is known by its content: answers to other questions
are not used, and missing ones are asked for again. In a folder every block of timed runs is a process of its own.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from edgekd.artifact import Facts
from edgekd.bench import devices
from edgekd.bench.devices import Device
from edgekd.bench.transports import _linux
from edgekd.bench.transports._contract import Completed, Waiting
from edgekd.errors import DeviceError
from edgekd.recipe import Section

SCRIPT = """#!/bin/sh
# Answers the questions of jobs/ in order, one process each, into answers/. What is answered already is left alone.
cd "$(dirname "$0")" || exit 1
mkdir -p answers
sh ./probe.sh > answers/probe.txt 2> /dev/null
for job in jobs/*.sh; do
  name=$(basename "$job" .sh)
  [ -s "answers/$name.code" ] && continue
  echo "$name"
  sh "./$job" < "jobs/$name.jsonl" > "answers/$name.jsonl" 2> "answers/$name.txt"
  echo $? > "answers/$name.code"
done
"""


class Options(Section):
    """``options`` of a profile with this transport."""

    folder: Path = Field(description="Where the questions go, and where the answers are looked for.")


def connect(device: Device) -> ByHand:
    """The folder; it is made where it does not exist."""
    return ByHand(device.name, devices.options(device, Options).folder)


class ByHand:
    """The Transport of a folder; see ``_contract.py``."""

    def __init__(self, name: str, folder: Path) -> None:
        self._name, self._folder = name, folder
        self._asked: Counter[str] = Counter()
        try:
            for part in (folder, folder / "jobs"):
                part.mkdir(parents=True, exist_ok=True)
            (folder / "run.sh").write_text(SCRIPT, encoding="utf-8")
            (folder / "probe.sh").write_text(_linux.PROBE, encoding="utf-8")
        except OSError as error:
            raise DeviceError(f"the folder cannot be written ({error.strerror})", where=str(folder)) from None

    def probe(self) -> Facts:
        """What ``run.sh`` saw of the device; nothing before it ran."""
        try:
            return _linux.parse((self._folder / "answers" / "probe.txt").read_text(encoding="utf-8", errors="replace"))
        except FileNotFoundError:
            return {}

    def push(self, src: Path, dst: str) -> None:
        """Copy into the folder."""
        if not src.exists():
            raise DeviceError(f"there is no {src} to push", where=self._name)
        target = self._folder / dst
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if src.is_dir():
                shutil.copytree(src, target, dirs_exist_ok=True)
            else:
                shutil.copy(src, target)
        except OSError as error:
            raise DeviceError(f"cannot copy {src.name} ({error.strerror})", where=str(self._folder)) from None

    def exec(self, argv: Sequence[str], *, stdin: bytes, timeout: float) -> Completed:
        """The answer that was brought back; raises Waiting after writing the question down."""
        digest = hashlib.sha256(b"\0".join([json.dumps(list(argv)).encode(), stdin])).hexdigest()[:12]
        self._asked[digest] += 1
        number = sum(self._asked.values())
        name = f"{digest}-{self._asked[digest]}"
        done = next(self._folder.glob(f"answers/*-{name}.code"), None)
        if done is not None:
            answer = done.with_suffix(".jsonl")
            said = done.with_suffix(".txt")
            code = int(done.read_text().strip() or 1)
            return Completed(code, answer.read_bytes(), said.read_bytes() if said.exists() else b"")
        if next(self._folder.glob(f"jobs/*-{name}.sh"), None) is None:
            place = self._folder / "jobs" / f"{number:04d}-{name}"
            place.with_suffix(".jsonl").write_bytes(stdin)
            place.with_suffix(".sh").write_text(f"exec {shlex.join(argv)}\n", encoding="utf-8")
        raise Waiting(
            "waits for its answers",
            where=self._name,
            todo=f"Take {self._folder} to the device, run `sh run.sh` in it, bring it back, and bench again.",
        )

    def open(self, argv: Sequence[str]) -> Question:
        """A worker whose every question is a process of its own."""
        return Question(self, argv)

    def pull(self, src: str, dst: Path) -> None:
        """Copy a file out of the folder."""
        try:
            shutil.copyfile(self._folder / src, dst)
        except FileNotFoundError:
            raise DeviceError(f"there is no '{src}' to pull", where=self._name) from None

    def close(self) -> None:
        """The folder stays: it is the point."""


class Question:
    """A worker on paper: its first line is the job, and every further one is asked of a fresh process."""

    def __init__(self, folder: ByHand, argv: Sequence[str]) -> None:
        self._folder, self._argv, self._job = folder, argv, b""

    def ask(self, line: bytes, *, timeout: float) -> bytes:
        """The last line of the answer; raises Waiting where there is none yet, DeviceError where it broke."""
        line = line.rstrip(b"\n") + b"\n"
        if not self._job:
            self._job = line
            line = b""
        done = self._folder.exec(self._argv, stdin=self._job + line, timeout=timeout)
        lines = done.stdout.strip().splitlines()
        if not lines:
            said = " | ".join(done.stderr.decode(errors="replace").strip().splitlines())[-400:] or "(it said nothing)"
            raise DeviceError(f"the runner exited with {done.code} without an answer: {said}", where="by hand")
        return lines[-1] + b"\n"

    def close(self) -> None:
        """Nothing stays open."""
