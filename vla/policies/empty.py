"""Networks built without memory for their weights, to be filled from files: a 7B model must not be in memory twice."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def empty_weights() -> Iterator[None]:
    """Modules that are built within have parameters of the right shape without memory, and true buffers.

    `torch.device("meta")` would empty the buffers too, and those that a state dict does not hold (the angles of rotary
    positions, a mean colour) could never be filled.
    """
    register = nn.Module.register_parameter

    def register_empty(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None:
            param = nn.Parameter(param.detach().to("meta"), requires_grad=param.requires_grad)
        register(self, name, param)

    nn.Module.register_parameter = register_empty
    try:
        yield
    finally:
        nn.Module.register_parameter = register
