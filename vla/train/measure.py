"""What a forward pass keeps for the backward one, measured: autograd tells of every tensor it saves.

One and two samples are run, so that what grows with the batch is told apart from what does not (such as copies of
weights in another precision).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from vla.data.batch import Batch
from vla.policies.vla import VLAPolicy
from vla.train.layers import transformer_layers


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Bytes kept for the backward pass; all but `fixed` for each sample.

    fixed    whatever the batch
    outside  by what is not a transformer layer
    inputs   of all transformer layers
    inside   by all transformer layers
    largest  by the layer that keeps most
    """

    fixed: float
    outside: float
    inputs: float
    inside: float
    largest: float

    def bytes(self, rows: int, checkpointing: bool) -> float:
        """For `rows` samples at once; checkpointing keeps the layers' inputs, and one layer's insides at a time."""
        return self.fixed + rows * (self.outside + (self.inputs + self.largest if checkpointing else self.inside))


def kept_by_one_sample(policy: VLAPolicy, bf16: bool) -> Kept:
    """Runs the policy in training mode on random observations, where its weights are, and counts.

    The gradient is not computed, and torch's random state is left as it was.
    """
    training = policy.training
    policy.train()
    with torch.random.fork_rng(devices=[]):
        one, two = (_count(policy, rows, bf16) for rows in (1, 2))
    policy.train(training)
    each = {name: max(0.0, two[name] - one[name]) for name in one}
    layers = [value for name, value in each.items() if name.startswith("layer")]
    return Kept(
        fixed=sum(one[name] - each[name] for name in one if name != "inputs"),
        outside=each["outside"],
        inputs=each["inputs"],
        inside=sum(layers),
        largest=max(layers, default=0.0),
    )


def _count(policy: VLAPolicy, rows: int, bf16: bool) -> dict[str, float]:
    """Bytes by place: "outside", "inputs" of all layers, "layer 0", "layer 1", ..."""
    layers = transformer_layers(policy)
    counts = {"outside": 0.0, "inputs": 0.0, **{f"layer {i}": 0.0 for i in range(len(layers))}}
    place = ["outside"]
    given: set[int] = set()
    seen = {parameter.untyped_storage().data_ptr() for parameter in policy.parameters()}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            counts[place[-1]] += storage.nbytes()
        return tensor

    def enter(name: str) -> Callable:
        def hook(module: nn.Module, arguments: tuple) -> None:
            place.append(name)
            for each in arguments:
                if isinstance(each, Tensor) and each.data_ptr() not in given:
                    given.add(each.data_ptr())
                    counts["inputs"] += each.nbytes

        return hook

    def leave(module: nn.Module, arguments: tuple, output: object) -> None:
        place.pop()

    hooks = [layer.register_forward_pre_hook(enter(f"layer {i}")) for i, layer in enumerate(layers)]
    hooks += [layer.register_forward_hook(leave) for layer in layers]
    batch = _random_batch(policy, rows).to(policy.device)
    saved = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
    with saved, torch.autocast(policy.device.type, torch.bfloat16, enabled=bf16):
        loss_BH = policy(batch)  # held until here, so that no storage is given away and counted as another
    for hook in hooks:
        hook.remove()
    del loss_BH
    return counts


def _random_batch(policy: VLAPolicy, rows: int) -> Batch:
    rng = np.random.default_rng(0)
    observations = [policy.spec.random(rng) for _ in range(rows)]
    images_BKHWC = np.stack([[each.images[camera] for camera in policy.cameras] for each in observations])
    chunks = np.stack([policy.spec.random_chunk(rng, policy.horizon).actions_HA for _ in range(rows)])
    return Batch(
        images_BKHWC=torch.from_numpy(images_BKHWC),
        state_BS=torch.from_numpy(np.stack([each.state_S for each in observations])),
        instructions=[each.instruction for each in observations],
        actions_BHA=torch.from_numpy(policy.transforms.actions(chunks)),
        mask_BH=torch.ones(rows, policy.horizon, dtype=torch.bool),
    )
