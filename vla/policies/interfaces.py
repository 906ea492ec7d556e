"""What the two halves of a network ask of each other. A backbone looks; a head turns what it saw into actions.

Modules that satisfy these can be swapped. The observation is encoded once; features are asked for once by a head that
regresses, and once per step, with the noisy actions and their time, by a head that denoises.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor


class Backbone(Protocol):
    """An nn.Module that reads observations.

    `width` is D of its features. Its context is its own affair: tensors or tuples of them, whose first axis is B.
    """

    width: int

    def encode(self, images_BKHWC: Tensor, state_BS: Tensor, instructions: Sequence[str]) -> Any:
        """The context: whatever depends on the observation (uint8 images, normalised state, B texts) alone."""
        ...

    def __call__(self, context: Any, noisy_BHA: Tensor | None = None, time_B: Tensor | None = None) -> Tensor:
        """Features (B, H, D), one vector for each action of the chunk.

        Args:
            context: what `encode` returned.
            noisy_BHA: normalised actions under noise, for a backbone that was built for a denoising head.
            time_B: how far the noise has gone, in [0, 1]: 0 is data, 1 is noise.
        """
        ...


class Augments(Protocol):
    """What training does to observations. augment.py's `Augmentation` is one."""

    def images(self, images_BKHWC: Tensor) -> Tensor: ...

    def state(self, state_BS: Tensor) -> Tensor: ...


class Features(Protocol):
    """A backbone that has encoded its observation already."""

    def __call__(self, noisy_BHA: Tensor | None = None, time_B: Tensor | None = None) -> Tensor: ...


class Head(Protocol):
    """An nn.Module that makes normalised actions (B, H, A) out of features. l1.py is the plainest.

    `denoises` says whether it gives `features` noisy actions, so that the backbone is built to take them.
    """

    denoises: bool

    def loss_BH(self, features: Features, actions_BHA: Tensor) -> Tensor:
        """One loss per action of the chunk: not reduced, so that masks, weights and advantages need no second way."""
        ...

    def sample(self, features: Features, generators: Sequence[torch.Generator]) -> Tensor:
        """Normalised actions (B, H, A), float32, binary axes at -1 or +1. Row i draws from generator i alone."""
        ...
