"""The repeated layers of a network, and two ways in which they take less memory in training.

A transformer's layers are found by how they are kept: in a list called `layers` or `blocks` (Llama's, timm's, ours).
Large parts of a backbone are nothing else, so what is done to them is done to the policy.
"""

from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from vla.core.errors import GrasplineError

LISTS = ("layers", "blocks")


def transformer_layers(module: nn.Module) -> list[nn.Module]:
    """The layers in all lists called `layers` or `blocks`, outermost lists only, first to last.

    A residual block of the heads (norm, linear, activation) is too small to be worth it and is left out.
    """
    found: list[nn.Module] = []
    for name, child in module.named_children():
        if name in LISTS and isinstance(child, nn.ModuleList | nn.Sequential):
            found += [layer for layer in child if not isinstance(layer, nn.Sequential)]
        else:
            found += transformer_layers(child)
    return found


def checkpoint_activations(module: nn.Module) -> int:
    """Makes every transformer layer forget its insides after the forward pass and compute them again in the backward.

    Costs about a third more time; what stays in memory is one input per layer. Results are the same.
    Source: Chen et al. 2016, arXiv 1604.06174.

    Returns:
        The number of layers.

    Raises:
        GrasplineError: there are none.
    """
    layers = transformer_layers(module)
    if not layers:
        raise GrasplineError("gradient_checkpointing=true, but this policy has no transformer layers; set it to false")
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    return len(layers)


def frozen_in_bf16(module: nn.Module) -> None:
    """Turns weights that are not trained into bfloat16: two bytes each instead of four, and no copies to compute with.

    All of them, so that what flows between layers is in bfloat16 too: a float32 norm would turn it back.
    """
    for parameter in module.parameters():
        if not parameter.requires_grad and parameter.is_floating_point():
            parameter.data = parameter.data.to(torch.bfloat16)
