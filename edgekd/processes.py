"""The processes of one run: one, or as many as ``torchrun`` or ``accelerate launch`` started.

Teach and distill share their work among them; everything else is done by the first one while the others wait.
No launcher of our own: rank and count come from the environment that accelerate (or torchrun) sets, and so does
whether what is trained is sharded: each process then holds a part of every parameter (FSDP2).
"""

from __future__ import annotations

import os
from datetime import timedelta

from edgekd.errors import BadInput

PATIENCE = timedelta(days=7)  # the others wait while the first one works alone


def rank() -> int:
    """This process's number; 0 is the one that writes, locks and speaks."""
    return int(os.environ.get("RANK", "0"))


def count() -> int:
    """How many processes work on this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def sharded() -> bool:
    """Whether each of them is to hold a part of what is trained: accelerate's FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def begin() -> None:
    """Wait for all of them; raises BadInput for a way to shard that edgekd does not know."""
    if sharded():
        if os.environ.get("FSDP_VERSION", "1") != "2":
            raise BadInput("this is FSDP 1", where="accelerate's config file", todo="Set fsdp_version: 2.")
        # accelerate's default leaves empty what the first process has; but teachers run whole, on each of them.
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    wait()


def wait() -> None:
    """Until all processes are here."""
    if count() > 1:
        import torch
        from accelerate import PartialState

        PartialState(cpu=not torch.accelerator.is_available(), timeout=PATIENCE).wait_for_everyone()
