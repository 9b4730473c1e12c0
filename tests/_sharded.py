"""``python -m edgekd`` under FSDP on CPUs: accelerate shards over accelerators alone, though PyTorch's gloo can.

Started by ``accelerate launch``, or by torchrun with the variables that this makes of its config file. What accelerate
is taught here is one condition; all else is its own. Each training leaves ``held-<step>-<rank>.json`` in the run's
folder: how many numbers of the parameters there are, how many this process holds, and in how many groups they lie.
``EDGEKD_TEST_KILLED=<step>`` kills the first process between that step's checkpoint and the word that it is complete.
"""

from __future__ import annotations

import json
import os
import signal
from typing import Any

from accelerate import state
from accelerate.utils import DistributedType
from torch.distributed.fsdp import FSDPModule

from edgekd import processes
from edgekd.cli import main
from edgekd.distill.trainer import Keeper

plain, begun, saved = state.AcceleratorState.__init__, Keeper.on_train_begin, Keeper.on_save


def sharding(self: Any, *rest: Any, fsdp_plugin: Any = None, **named: Any) -> None:
    """As on accelerators: the first plugin stays."""
    plain(self, *rest, fsdp_plugin=fsdp_plugin, **named)
    if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
        if self._mixed_precision != "no":
            fsdp_plugin.set_mixed_precision(self._mixed_precision)
        self.fsdp_plugin, self.distributed_type = fsdp_plugin, DistributedType.FSDP
        state.PartialState._shared_state["distributed_type"] = DistributedType.FSDP


def counting(self: Keeper, args: Any, told: Any, control: Any, model: Any = None, **rest: Any) -> None:
    begun(self, args, told, control, model=model, **rest)
    found = {
        "numbers": sum(one.numel() for one in model.parameters()),
        "held": sum(one.to_local().numel() for one in model.parameters()),
        "groups": sum(isinstance(one, FSDPModule) for one in model.modules()),
    }
    step = self.scratch.parent
    name = f"held-{step.name.rpartition('-')[0]}-{processes.rank()}.json"
    (step.parents[1] / name).write_text(json.dumps(found))


def dying(self: Keeper, args: Any, told: Any, control: Any, **rest: Any) -> None:
    if processes.rank() == 0 and told.global_step == int(os.environ["EDGEKD_TEST_KILLED"]):
        os.kill(os.getpid(), signal.SIGKILL)
    saved(self, args, told, control, **rest)


if __name__ == "__main__":
    state.AcceleratorState.__init__ = sharding
    Keeper.on_train_begin = counting  # type: ignore[method-assign]
    if "EDGEKD_TEST_KILLED" in os.environ:
        Keeper.on_save = dying  # type: ignore[method-assign]
    main()
