"""Text: a process that was started by a large one does not have that one's memory."""

from __future__ import annotations

import multiprocessing
import sys
from typing import Any

import pytest

from edgekd.bench import tokens


def tell(pipe: Any) -> None:
    pipe.send(tokens._runner()._memory()["peak"])


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not hand a peak on")
def test_a_workers_peak_is_its_own() -> None:
    held = bytearray(b"x") * 400_000_000  # touched, so resident
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    worker = context.Process(target=tell, args=(theirs,))
    worker.start()
    assert mine.poll(60)
    assert mine.recv() < 0.5 * len(held)
    worker.join(30)
