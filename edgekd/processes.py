"""The processes of one run: one, or as many as ``torchrun`` or ``accelerate launch`` started.

Teach and distill share their work among them; everything else is done by the first one while the others wait.
No launcher of our own: rank and count come from the environment that accelerate (or torchrun) sets.
"""

from __future__ import annotations

import os
from datetime import timedelta

PATIENCE = timedelta(days=7)  # the others wait while the first one works alone


def rank() -> int:
    """This process's number; 0 is the one that writes, locks and speaks."""
    return int(os.environ.get("RANK", "0"))


def count() -> int:
    """How many processes work on this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def wait() -> None:
    """Until all processes are here."""
    if count() > 1:
        import torch
        from accelerate import PartialState

        PartialState(cpu=not torch.accelerator.is_available(), timeout=PATIENCE).wait_for_everyone()
