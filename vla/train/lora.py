"""LoRA through peft: train two thin matrices beside each large frozen one, and fold them in when done.

Which parts: all linear layers of the backbone get adapters; what reads proprioception, noise or the instruction into
the network (proprio and noisy-action projectors, FiLM's scale and shift, a reader) and the head are trained in full;
the rest is frozen. That is OpenVLA-OFT's recipe (rank 32, alpha 16, gaussian start, no dropout), but for its vision
stems: old peft matched them by name, the adapters of those few convolutions are left out here.
Sources: Hu et al. 2021, arXiv 2106.09685; Kim et al. 2025, arXiv 2502.19645.
"""

import re

import torch
from torch import nn

from vla.core.errors import GrasplineError
from vla.policies.vla import VLAPolicy

# A module of the backbone with one of these in its path is small and new to the task: trained in full. So is what a
# backbone calls its `new_parts`.
IN_FULL = ("proprio_projector", "noisy_action_projector", "scale", "shift", "reader")


def add_lora(policy: VLAPolicy, *, rank: int = 32, alpha: int = 16) -> None:
    """Freezes the backbone but for the parts trained in full, and gives its linear layers adapters, in float32.

    The policy computes what it did before: one of the two matrices starts at zero. The other is drawn from torch's
    global generator. Weights must be loaded before, since a wrapped layer's are called `<layer>.base_layer.weight`.

    Args:
        policy: changed in place.
        rank: width r of the thin matrices, at least 1.
        alpha: the change is alpha / rank * B @ A.

    Raises:
        GrasplineError: a rank below 1, or adapters are there already.
    """
    if rank < 1:
        raise GrasplineError(f"lora.rank is {rank}, expected a whole number of at least 1 (null: no LoRA)")
    if _adapted(policy.backbone):
        raise GrasplineError("lora: this policy has adapters already; merge them first")
    from peft import LoraConfig, inject_adapter_in_model  # here, because it costs seconds that other runs need not pay

    backbone: nn.Module = policy.backbone
    targets = "|".join(re.escape(name) for name in adapted_layers(backbone))
    inject_adapter_in_model(
        LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, init_lora_weights="gaussian", target_modules=targets),
        backbone,
    )
    for name, parameter in backbone.named_parameters():
        if _in_full(name, backbone):
            parameter.requires_grad_(True)
        elif "lora_" in name:
            parameter.data = parameter.data.float()


def merge_lora(policy: VLAPolicy) -> None:
    """Folds all adapters into the layers they belong to: every parameter has its old name, and all can be trained.

    The sum is made in float32 and rounded once to the weight's own type.
    """
    for name, layer in _adapted(policy.backbone).items():
        layer.merge()  # pyright: ignore[reportCallIssue]
        parent, _, attribute = name.rpartition(".")
        setattr(policy.backbone.get_submodule(parent), attribute, layer.base_layer)
    policy.requires_grad_(True)


def adapted_layers(backbone: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers by name that `add_lora` gives adapters."""
    return {
        name: module
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Linear) and not _in_full(name, backbone)
    }


def full_parameters(policy: VLAPolicy) -> int:
    """The number of weights that a LoRA run trains in full."""
    backbone: nn.Module = policy.backbone
    inside = (parameter.numel() for name, parameter in backbone.named_parameters() if _in_full(name, backbone))
    return sum(inside) + sum(parameter.numel() for parameter in policy.head.parameters())


def _in_full(name: str, backbone: nn.Module) -> bool:
    parts = {*IN_FULL, *getattr(backbone, "new_parts", ())}
    return not parts.isdisjoint(name.split("."))


def _adapted(backbone: nn.Module) -> dict[str, torch.nn.Module]:
    """Layers that peft wrapped, without importing it to ask."""
    return {name: module for name, module in backbone.named_modules() if hasattr(module, "base_layer")}
