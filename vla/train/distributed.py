"""One process or several, through accelerate. Alone, nothing has to be launched and nothing is wrapped.

Every process draws the same batch and works on its own rows of it, so a run on several GPUs sees the same data in the
same order as a run on one. Start several with `accelerate launch --num_processes N -m scripts.train ...`.

`ddp` keeps all of the policy in every process; `fsdp2` gives each a slice of every weight, gradient and moment, which
is what a policy that is too large for one GPU needs. A sliced tensor is torch's DTensor; `whole` and `sliced_like`
are the two ways between it and a plain one.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vla.core.errors import unknown_name
from vla.data.batch import Batch
from vla.train.layers import transformer_layers

PARALLEL = ("ddp", "fsdp2")
PRECISIONS = ("auto", "bf16", "fp32")


class Processes:
    """The present process among those of the run."""

    def __init__(self, *, parallel: str = "ddp", precision: str = "auto") -> None:
        """Joins the others when accelerate or torchrun launched this process; a CUDA device is used if there is one.

        Args:
            parallel: "ddp" or "fsdp2", see the module.
            precision: of matrix products in training: "bf16", "fp32", or "auto": bf16 on CUDA, fp32 elsewhere.

        Raises:
            UnknownNameError: another word for either.
        """
        if parallel not in PARALLEL:
            raise unknown_name("parallel", parallel, PARALLEL)
        if precision not in PRECISIONS:
            raise unknown_name("precision", precision, PRECISIONS)
        self._accelerator = Accelerator()
        self.device: torch.device = self._accelerator.device
        self.rank: int = self._accelerator.process_index
        self.count: int = self._accelerator.num_processes
        self.is_main: bool = self._accelerator.is_main_process
        self.sharded = parallel == "fsdp2" and self.count > 1
        self.bf16 = precision == "bf16" or (precision == "auto" and self.device.type == "cuda")

    def shard(self, module: nn.Module) -> None:
        """Under fsdp2, leaves this process its slice of each weight; before an optimiser or an average is made of them.

        Transformer layers are put together one at a time while they compute, everything else at once.
        """
        if not self.sharded:
            return
        # Here, because it costs seconds that other runs need not pay.
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        kind = torch.bfloat16 if self.bf16 else None
        policy = MixedPrecisionPolicy(param_dtype=kind, reduce_dtype=torch.float32, cast_forward_inputs=False)

        for parameter in module.parameters():
            parameter.data = parameter.data.contiguous()  # channels last cannot be sliced
        for layer in transformer_layers(module):
            fully_shard(layer, reshard_after_forward=True, mp_policy=policy)
        fully_shard(module, reshard_after_forward=True, mp_policy=policy)

    def unshard[Module: nn.Module](self, module: Module, make: Callable[[], Module]) -> Module:
        """What `make` makes, a module like `module` that was never sharded, with the latter's weights.

        Where nothing was sharded, `module` itself. All processes must call this.
        """
        if not self.sharded:
            return module
        into = make()
        targets = into.state_dict()
        with torch.no_grad():
            for name, tensor in module.state_dict().items():
                targets[name].copy_(whole(tensor))
        return into

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module to call: its gradients are averaged over processes if there are several."""
        return module if self.count == 1 or self.sharded else self._accelerator.prepare_model(module)

    def alone(self, network: nn.Module) -> AbstractContextManager:
        """While open, gradients stay in this process: for all but the last part of an accumulated step.

        Slices are summed at once instead, since whole gradients are what fsdp2 has no room for.
        """
        wrapped = isinstance(network, nn.parallel.DistributedDataParallel)
        return network.no_sync() if wrapped else nullcontext()

    def autocast(self) -> AbstractContextManager:
        """While open, matrix products are computed in this run's precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def share(self, batch: Batch) -> Batch:
        """The rows of this process: rank, rank + count, rank + 2 count, ..."""
        return batch if self.count == 1 else _rows(batch, self.rank, self.count)

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


def parts(batch: Batch, count: int) -> Iterator[Batch]:
    """The batch in `count` parts whose sizes differ by one row at most; itself when `count` is 1."""
    return iter([batch]) if count == 1 else (_rows(batch, part, count) for part in range(count))


def whole(tensor: Tensor) -> Tensor:
    """A sliced tensor put together, in all processes, which must all call this; a plain tensor as it is."""
    gather = getattr(tensor, "full_tensor", None)
    return gather() if gather else tensor


def mine(tensor: Tensor) -> Tensor:
    """The slice of this process, sharing memory with `tensor`; a plain tensor as it is."""
    slice_of = getattr(tensor, "to_local", None)
    return slice_of() if slice_of else tensor


def sliced_like(tensor: Tensor, like: Tensor) -> Tensor:
    """The slice of this process of a whole `tensor`, cut and placed as `like` is; itself where `like` is plain."""
    if not hasattr(like, "device_mesh"):
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor  # here, because it costs seconds

    assert isinstance(like, DTensor)
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def describe(processes: Processes) -> Mapping[str, str | int]:
    """What a run was computed on, for its provenance."""
    kind = torch.cuda.get_device_name() if processes.device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    return {
        "device": f"{processes.device.type} {kind}",
        "processes": processes.count,
        "threads": torch.get_num_threads(),
        "precision": "bf16" if processes.bf16 else "fp32",
    }


def _rows(batch: Batch, first: int, step: int) -> Batch:
    rows = slice(first, None, step)
    return replace(
        batch,
        images_BKHWC=batch.images_BKHWC[rows],
        state_BS=batch.state_BS[rows],
        instructions=batch.instructions[rows],
        actions_BHA=batch.actions_BHA[rows],
        mask_BH=batch.mask_BH[rows],
    )
