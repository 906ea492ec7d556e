"""Two models at one time: what tuning changed is turned up or down, or made visible, without training.

Guidance (RLG): base + w (tuned - base). w = 0 is the base, 1 the tuned model, more extrapolates: if tuning with a KL
penalty gave p_base exp(r / beta), then the guided model is p_base exp(w r / beta), a KL penalty divided by w. It holds
for logits exactly, for scores and velocities of the true marginals to the order of the steps, and for means of
Gaussians and Laplace heads of equal scale.

Contrast (CGE): log p_tuned - log p_base among tokens that the tuned model finds likely; samples of it show what the
tuning data held that the base did not know.

Sources: "Inference-time alignment control for diffusion models with reinforcement learning guidance", 2025 (RLG);
"What's new in my data? Novelty exploration via contrastive generation", 2024 (CGE).
"""

import math

from torch import Tensor

from agents.objectives.reduce import require_shape


def guide(base: Tensor, tuned: Tensor, weight: float) -> Tensor:
    """Base + weight * (tuned - base), any shape: logits, velocities, noise predictions, scores or means of actions.

    Where a model has a guidance of its own (classifier-free), that comes first. Binary axes of actions are snapped
    after it.
    """
    require_shape(base, tuned=tuned)
    return base.lerp(tuned, weight)


def contrast_scores(tuned_logits: Tensor, base_logits: Tensor, plausible: float = 0.1) -> Tensor:
    """The gain log p_tuned - log p_base of each token, -inf where p_tuned < plausible * max p_tuned.

    softmax(scores / temperature) is what contrastive decoding draws from.

    Args:
        tuned_logits: (..., V).
        base_logits: (..., V).
        plausible: in (0, 1]; without the limit, tokens that both find absurd would win.
    """
    require_shape(tuned_logits, base_logits=base_logits)
    if not 0 < plausible <= 1:
        raise ValueError(f"plausible is {plausible}, expected more than 0 and at most 1")
    tuned = tuned_logits.float().log_softmax(dim=-1)
    head = tuned >= tuned.amax(dim=-1, keepdim=True) + math.log(plausible)
    return (tuned - base_logits.float().log_softmax(dim=-1)).where(head, -math.inf)


def novelty(tuned_logp_BN: Tensor, base_logp_BN: Tensor, mask_BN: Tensor) -> Tensor:
    """(B,) mean over a sequence's tokens of log p_tuned - log p_base [nat]: how new it was to the base."""
    require_shape(tuned_logp_BN, base_logp=base_logp_BN, mask=mask_BN)
    mask_BN = mask_BN.bool()
    gain_BN = (tuned_logp_BN - base_logp_BN).where(mask_BN, 0.0)
    return gain_BN.sum(dim=1) / mask_BN.sum(dim=1).clamp(min=1)
