"""``python -m edgekd`` under FSDP on CPUs: accelerate shards over accelerators alone, though PyTorch's gloo can.

Run by torchrun with the variables that ``accelerate launch`` makes of its config file. What is taught to accelerate
here is one condition; all else is its own.
"""

from __future__ import annotations

from typing import Any

from accelerate import state
from accelerate.utils import DistributedType

from edgekd.cli import main

plain = state.AcceleratorState.__init__


def sharding(self: Any, *rest: Any, fsdp_plugin: Any = None, **named: Any) -> None:
    """As on accelerators: the first plugin stays."""
    plain(self, *rest, fsdp_plugin=fsdp_plugin, **named)
    if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
        if self._mixed_precision != "no":
            fsdp_plugin.set_mixed_precision(self._mixed_precision)
        self.fsdp_plugin, self.distributed_type = fsdp_plugin, DistributedType.FSDP
        state.PartialState._shared_state["distributed_type"] = DistributedType.FSDP


if __name__ == "__main__":
    state.AcceleratorState.__init__ = sharding
    main()
