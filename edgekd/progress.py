"""What the user sees on stderr while steps run: bars on a terminal, one line per step elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from edgekd import processes

Listener = Callable[[Any], None]  # takes pipeline.Event


@contextmanager
def show(*, quiet: bool) -> Iterator[Listener]:
    """A listener for ``pipeline.run``; it never writes to stdout. Of several processes the first one shows."""
    if quiet or processes.rank() > 0:
        yield lambda event: None
    elif sys.stderr.isatty():
        with _bars() as listen:
            yield listen
    else:
        yield _Lines()


class _Lines:
    """One line when a step starts and ends, and at most one every 15 s in between."""

    def __init__(self) -> None:
        self.last: dict[str, float] = {}
        self.began: dict[str, tuple[float, int]] = {}  # time and count of the first report: a resumed step starts late

    def __call__(self, event: Any) -> None:
        now = time.monotonic()
        if event.kind == "progress":
            start, first = self.began.setdefault(event.step, (now, event.done))
            if now - self.last.setdefault(event.step, now) < 15:
                return
            self.last[event.step] = now
            rate = (event.done - first) / max(now - start, 1e-9)
            left = (event.total - event.done) / rate if rate else 0
            text = f"{event.done}/{event.total} {event.unit}, {rate:.1f}/s, {left:.0f} s left"
        else:
            text = " ".join(filter(None, (event.kind, event.text, _told(event))))
        sys.stderr.write(f"{event.step}: {text}\n")
        sys.stderr.flush()


def _told(event: Any) -> str:
    """The metrics of an evaluation, shortly."""
    return ", ".join(f"{name} {value:.4g}" for name, value in event.metrics.items() if name != "parameters")


@contextmanager
def _bars() -> Iterator[Listener]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    class Rate(TextColumn):
        def render(self, task: Any) -> Any:
            speed = task.finished_speed or task.speed
            task.fields["rate"] = f"{speed:.1f} {task.fields.get('unit', '')}/s" if speed else ""
            return super().render(task)

    bars = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
        console=Console(stderr=True),
    )
    tasks: dict[str, Any] = {}

    def listen(event: Any) -> None:
        if event.step not in tasks:
            tasks[event.step] = bars.add_task(event.step, total=None, unit="", rate="", text="")
        task = tasks[event.step]
        if event.kind == "progress":
            bars.update(task, completed=event.done, total=event.total, unit=event.unit)
        elif event.kind in ("made", "hit"):
            bars.update(task, completed=1, total=1, text=f"{event.kind} {event.text}".strip())
        elif event.kind == "evaluated":
            bars.update(task, text=_told(event))
        else:
            bars.update(task, text=f"{event.kind} {event.text}".strip() if event.kind != "start" else "")

    with bars:
        yield listen
