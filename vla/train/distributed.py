"""One process or several, through accelerate. Alone, nothing has to be launched and nothing is wrapped.

Every process draws the same batch and works on its own rows of it, so a run on several GPUs sees the same data in the
same order as a run on one. Start several with `accelerate launch --num_processes N -m scripts.train ...`.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vla.data.batch import Batch


class Processes:
    """The present process among those of the run."""

    def __init__(self) -> None:
        """Joins the others when accelerate or torchrun launched this process; a CUDA device is used if there is one."""
        self._accelerator = Accelerator()
        self.device: torch.device = self._accelerator.device
        self.rank: int = self._accelerator.process_index
        self.count: int = self._accelerator.num_processes
        self.is_main: bool = self._accelerator.is_main_process

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module, its gradients averaged over processes if there are several."""
        return self._accelerator.prepare_model(module) if self.count > 1 else module

    def share(self, batch: Batch) -> Batch:
        """The rows of this process: rank, rank + count, rank + 2 count, ..."""
        if self.count == 1:
            return batch
        rows = slice(self.rank, None, self.count)
        return replace(
            batch,
            images_BKHWC=batch.images_BKHWC[rows],
            state_BS=batch.state_BS[rows],
            instructions=batch.instructions[rows],
            actions_BHA=batch.actions_BHA[rows],
            mask_BH=batch.mask_BH[rows],
        )

    def sum(self, value: Tensor) -> Tensor:
        """The sum over processes, which all of them get."""
        if self.count == 1:
            return value
        total = self._accelerator.reduce(value, reduction="sum")
        assert isinstance(total, Tensor)
        return total

    def wait(self) -> None:
        """Until all processes are here."""
        self._accelerator.wait_for_everyone()

    def close(self) -> None:
        """Leaves the group."""
        self._accelerator.end_training()


def describe(processes: Processes) -> Mapping[str, str | int]:
    """What a run was computed on, for its provenance."""
    kind = torch.cuda.get_device_name() if processes.device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    return {
        "device": f"{processes.device.type} {kind}",
        "processes": processes.count,
        "threads": torch.get_num_threads(),
    }
