"""A head that regresses actions by L1 is a Laplace policy: with this log-density every objective here serves chunks.

log p(chunk) = -sum |a - mu| / b - n log(2 b), n the number of valid action components; b [units of the action] is one
number, one for each action, or one for each step and action, and comes from the residuals of held-out data.
"""

import torch
from torch import Tensor

from agents.objectives.reduce import require_shape


def laplace_log_prob_BH(actions_BHA: Tensor, means_BHA: Tensor, scale: Tensor) -> Tensor:
    """(B, H) log-density [nat] of each action of a chunk; H stands where tokens stand in the other objectives.

    The density of a chunk is `reduce.sequence_sum` with the mask of valid steps.

    Args:
        actions_BHA: taken; may be padding where a step is not valid, but finite.
        means_BHA: predicted, with gradient.
        scale: b, of a shape that broadcasts against (B, H, A); more than 0.
    """
    require_shape(actions_BHA, means=means_BHA)
    scale = torch.as_tensor(scale, dtype=means_BHA.dtype, device=means_BHA.device)
    if not (scale > 0).all():
        raise ValueError(f"scale has {scale.min().item():.3g}, expected more than 0 everywhere")
    return -((actions_BHA - means_BHA).abs() / scale + (2 * scale).log()).sum(dim=-1)


def laplace_scale(residuals_BHA: Tensor, valid_BH: Tensor, floor: float = 1e-3) -> Tensor:
    """(A,) the b of highest likelihood, the mean |residual| of each action over valid steps; at least `floor`.

    The floor is for axes that a policy predicts exactly, as a gripper: their density would have no bound.
    """
    if valid_BH.shape != residuals_BHA.shape[:2]:
        raise ValueError(f"valid has shape {tuple(valid_BH.shape)}, expected {tuple(residuals_BHA.shape[:2])}")
    if not valid_BH.any():
        raise ValueError("valid has no step: a scale needs residuals")
    return residuals_BHA[valid_BH.bool()].abs().mean(dim=0).clamp(min=floor)
