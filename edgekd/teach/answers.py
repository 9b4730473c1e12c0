"""The store of a black-box teacher's answers: one file of JSON lines that only grows, read by key.

An answer costs money, so what has come is written and flushed to the disk before anything else is done: a kill, or a
power cut, loses what is in flight and nothing else. A torn line is cut off when the file is opened to write, and
passed over when it is opened to read. One process writes to a folder at a time. A key is a hash of everything that
decides the answer (``endpoint.py``), so a folder may hold the answers of many runs, prompts and models.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from edgekd.errors import BadInput, Environment

SCHEMA = "edgekd/answers-cache/1"
FOLDER = "cache"  # in a teach step
RECORDS = "records.jsonl"
ANSWERS = "answers.jsonl"  # the step's rows to train on

Record = dict[str, Any]  # see docs/formats.md
FAILED = -1


class Answers:
    """An opened folder. Raises BadInput for a file that is broken, Environment when another process writes to it."""

    def __init__(self, folder: Path, *, write: bool = False) -> None:
        self.path = folder / RECORDS
        self._places: dict[str, tuple[int, int]] = {}  # key -> where its line begins, top log-probabilities per token
        self._lock: Any = None
        self._out: BinaryIO | None = None
        if write:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(folder)
        try:
            end = self._scan()
            if write:
                self._begin(end)
            self._in = self.path.open("rb") if self.path.is_file() else None
        except BaseException:
            self._unlock()
            raise

    def __enter__(self) -> Answers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for stream in (self._in, self._out):
            if stream is not None:
                stream.close()
        self._unlock()

    def __len__(self) -> int:
        return len(self._places)

    def get(self, key: str, logprobs: int = 0, *, failures: bool = False) -> Record | None:
        """The answer with at least so many top log-probabilities; where asked for, what failed as well."""
        start, has = self._places.get(key, (0, FAILED - 1))
        if self._in is None or (has < logprobs and not (failures and has == FAILED)):
            return None
        self._in.seek(start)
        found: Record = json.loads(self._in.readline())
        return found

    def append(self, *records: Record) -> None:
        """Write these records through to the disk."""
        assert self._out is not None, "opened to read"
        for record in records:
            self._note(record, self._out.tell())
            self._out.write(json.dumps(record, allow_nan=False).encode() + b"\n")
        self._flush()

    def _note(self, record: Record, start: int) -> None:
        """Later lines win, but a failure never hides an answer."""
        has = FAILED if "error" in record else record["logprobs"]
        if has >= self._places.get(record["key"], (0, FAILED))[1]:
            self._places[record["key"]] = start, has

    def _scan(self) -> int:
        """Note all records; returns where the last whole line ends."""
        end = 0
        if not self.path.is_file():
            return end
        size = self.path.stat().st_size
        with self.path.open("rb") as stream:
            for line in stream:
                start, end = end, end + len(line)
                try:
                    value = json.loads(line) if line.endswith(b"\n") else None
                    if start == 0 and value is not None:
                        self._refuse_other(value)
                    elif value is not None:
                        self._note(value, start)
                except (ValueError, KeyError, TypeError):
                    value = None
                if value is None and end < size:
                    raise BadInput(
                        f"the line at byte {start} is no record", where=str(self.path), todo="Delete that line."
                    )
                if value is None:
                    return start
        return end

    def _refuse_other(self, head: Any) -> None:
        found = head.get("schema") if isinstance(head, dict) else None
        if found != SCHEMA:
            raise BadInput(f"its schema {found!r} is not {SCHEMA!r}", where=str(self.path))

    def _begin(self, end: int) -> None:
        self._out = self.path.open("ab")
        self._out.truncate(end)
        self._out.seek(end)
        if end == 0:
            self._out.write(json.dumps({"schema": SCHEMA}).encode() + b"\n")
            self._flush()

    def _flush(self) -> None:
        assert self._out is not None
        self._out.flush()
        os.fsync(self._out.fileno())

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.release()


def _locked(folder: Path) -> Any:
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise Environment(
            "another edgekd writes answers to it", where=str(folder), todo="Wait for it, or choose another folder."
        ) from None
    return lock


def has_answers(teach: Path) -> bool:
    """Whether a teach step asked an endpoint: it holds answers then, and no outputs of a teacher."""
    return (teach / ANSWERS).is_file()


def read_answers(teach: Path) -> list[dict[str, Any]]:
    """A teach step's rows to train on: ``prompt`` or ``messages``, ``response``, ``truncated``, ``source``."""
    text = (teach / ANSWERS).read_text(encoding="utf-8").removesuffix("\n")
    return [json.loads(line) for line in text.split("\n")] if text else []
