"""Observations to the vectors that critics and actors see. Frozen: a number stored today is the number met tomorrow.

Two kinds. `StateFeatures`: the embodiment's state, scaled by its bounds, for suites whose state says all there is to
know. `PolicyFeatures`: what a trained policy makes of pictures, words and state, beside the chunk that it would play
itself, whose place a residual actor has to know.

Special: features are computed one observation at a time on one thread, as VLAPolicy.act does, so that neither a batch
nor the number of processes can change one.

Letters: D features, S state, A action, H horizon of the policy's own chunk.
"""

from collections.abc import Sequence
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from vla.core.errors import GrasplineError, SpecMismatchError, unknown_name
from vla.core.spec import Axis, Embodiment
from vla.core.types import Float, Observation
from vla.data.normalize import Normalize, Statistics
from vla.data.transforms import STATE_CLIP, Transforms
from vla.policies.threads import single_thread
from vla.policies.vla import VLAPolicy


class Features(Protocol):
    """A frozen function of an observation."""

    @property
    def spec(self) -> Embodiment: ...

    @property
    def transforms(self) -> Transforms:
        """Its `action` half normalises the actions that go with these features."""
        ...

    @property
    def cameras(self) -> tuple[str, ...]:
        """What it looks at."""
        ...

    @property
    def width(self) -> int:
        """D."""
        ...

    @property
    def base_horizon(self) -> int | None:
        """H of the policy's own chunk, which is the last H * A numbers; None where there is none."""
        ...

    def __call__(self, observation: Observation) -> Float:
        """(D,) float32. Raises SpecMismatchError, NonFiniteError."""
        ...


class StateFeatures:
    """The state within [-1, 1] by its axes' bounds, then, for several instructions, which one it is (one of them 1)."""

    cameras: tuple[str, ...] = ()
    base_horizon = None

    def __init__(self, *, spec: Embodiment, instructions: Sequence[str]) -> None:
        """For the tasks with these instructions. Raises GrasplineError for a state without bounds."""
        self.spec, self.instructions = spec, tuple(instructions)
        self.transforms = bounded_transforms(spec)
        self.width = spec.state_dim + (len(self.instructions) if len(self.instructions) > 1 else 0)

    def __call__(self, observation: Observation) -> Float:
        self.spec.validate(observation, self.cameras)
        if observation.instruction not in self.instructions:
            raise unknown_name("instruction", observation.instruction, self.instructions)
        told = np.array([each == observation.instruction for each in self.instructions], np.float32)
        state_S = self.transforms.observation(observation.state_S)
        return np.concatenate([state_S, told[: self.width - len(state_S)]])


class PolicyFeatures:
    """A trained policy's view: mean of the backbone's context tokens, normalised state, the policy's own chunk."""

    def __init__(self, policy: VLAPolicy) -> None:
        """The policy is frozen and put into evaluation mode."""
        self.policy = policy.eval().requires_grad_(False)
        self.spec, self.transforms, self.cameras = policy.spec, policy.transforms, tuple(policy.cameras)
        self.base_horizon: int = policy.horizon
        self.width = len(self(policy.spec.zeros("do the task")))

    @torch.no_grad()
    def __call__(self, observation: Observation) -> Float:
        self.spec.validate(observation, self.cameras)
        policy = self.policy
        images_1KHWC = torch.from_numpy(np.stack([observation.images[name] for name in self.cameras])[None])
        state_1S = torch.from_numpy(self.transforms.observation(observation.state_S[None]))
        with single_thread():
            context = policy.backbone.encode(  # pyright: ignore[reportCallIssue]
                images_1KHWC.to(policy.device), state_1S.to(policy.device), [observation.instruction]
            )
            # The same noise for every observation: a function of what is seen, whatever head the policy has.
            generators = [torch.Generator().manual_seed(0)]
            chunk_1HA = policy.head.sample(partial(policy.backbone, context), generators)  # pyright: ignore[reportCallIssue]
        parts = (_pooled(context)[0], state_1S[0], chunk_1HA[0].flatten())
        return torch.cat([part.float().cpu() for part in parts]).numpy()

    def own_chunk(self, features_D: Float) -> Float:
        """The policy's own chunk (H, A), normalised, out of its features."""
        return features_D[-self.base_horizon * self.spec.action_dim :].reshape(self.base_horizon, -1)


def bounded_transforms(spec: Embodiment) -> Transforms:
    """States and actions by their bounds alone, so that slow demonstrations do not forbid fast actions.

    Raises:
        GrasplineError: an axis without bounds.
    """
    return Transforms(
        state=_bounded(spec, "state", spec.state, STATE_CLIP), action=_bounded(spec, "action", spec.action, 1.0)
    )


def _bounded(spec: Embodiment, kind: str, axes: Sequence[Axis], clip: float) -> Normalize:
    low, high = np.array([axis.low for axis in axes]), np.array([axis.high for axis in axes])
    if endless := [axis.name for axis in axes if not np.isfinite([axis.low, axis.high]).all()]:
        raise GrasplineError(
            f"{spec.name}: {kind} axes {endless} have no bounds to scale by; give policy=<run directory>, whose "
            "features are a trained policy's"
        )
    seen = Statistics(q01=low, q99=high, min=low, max=high, mean=(low + high) / 2, std=(high - low) / 4, count=0)
    return Normalize(statistics=seen, binary_D=np.array([axis.binary for axis in axes], bool), clip=clip)


def _pooled(context: object) -> Tensor:
    """Tokens (1, N, D) to (1, D)."""
    if not (isinstance(context, Tensor) and context.ndim == 3):
        raise SpecMismatchError(
            f"the policy's backbone encodes into {type(context).__name__}; features need tokens (1, N, D), "
            "as the backbones of policy=tiny give"
        )
    return context.mean(dim=1)
