"""The objectives of `agents.objectives` over a batch of tokens, as `loop.update` calls them.

Each divides by the tokens of the whole optimiser step, which the loop gives as `total`.
"""

import torch
from torch import Tensor, nn

from agents.batch import TokenBatch
from agents.objectives.nll import chord_weights, dft_weights, nll
from agents.objectives.otr import one_token_rollout_mean_BN
from agents.objectives.policy_gradient import policy_gradient
from agents.objectives.reduce import aggregate
from agents.objectives.softq import soft_q_BN
from agents.policies.decoder import token_logp


def likelihood(policy: nn.Module, batch: TokenBatch, total: Tensor) -> Tensor:
    """Supervised fine-tuning, with the weights of the examples."""
    logp_BN = token_logp(policy, batch.inputs_BN, batch.targets_BN)
    return nll(logp_BN, batch.mask_BN, batch.weights_BN, total=total)


def dynamic_likelihood(policy: nn.Module, batch: TokenBatch, total: Tensor) -> Tensor:
    """DFT: each token weighed with its probability."""
    logp_BN = token_logp(policy, batch.inputs_BN, batch.targets_BN)
    return nll(logp_BN, batch.mask_BN, dft_weights(logp_BN), total=total)


def one_token_rollout(policy: nn.Module, batch: TokenBatch, total: Tensor, *, beta: float, kappa: float) -> Tensor:
    """OTR in the limit of many draws."""
    losses_BN = one_token_rollout_mean_BN(policy(batch.inputs_BN), batch.targets_BN, beta=beta, kappa=kappa)
    return aggregate(losses_BN, batch.mask_BN, total=total)


def inverse_soft_q(policy: nn.Module, batch: TokenBatch, total: Tensor, *, penalty: float) -> Tensor:
    """Imitation with a Bellman term on the logits."""
    losses_BN = soft_q_BN(policy(batch.inputs_BN), batch.targets_BN, batch.mask_BN, penalty=penalty)
    return aggregate(losses_BN, batch.mask_BN, total=total)


def reinforce(policy: nn.Module, batch: TokenBatch, total: Tensor) -> Tensor:
    """Policy gradient of attempts that the policy itself has just made: every ratio is one."""
    logp_BN = token_logp(policy, batch.inputs_BN, batch.targets_BN)
    return policy_gradient(logp_BN, batch.advantages_BN, batch.mask_BN, total=total)


def blend(policy: nn.Module, batch: TokenBatch, total: Tensor, *, share: float, weigh: bool) -> Tensor:
    """CHORD: (1 - share) policy gradient on own rows + share likelihood on expert rows, each over its own tokens."""
    logp_BN = token_logp(policy, batch.inputs_BN, batch.targets_BN)
    expert_BN = batch.mask_BN & batch.expert_B[:, None]
    own_BN = batch.mask_BN & ~batch.expert_B[:, None]
    weights_BN = chord_weights(logp_BN) if weigh else torch.ones_like(logp_BN)
    part = batch.mask_BN.sum() / total
    own = policy_gradient(logp_BN, batch.advantages_BN, own_BN)
    return part * ((1 - share) * own + share * nll(logp_BN, expert_BN, weights_BN))
