"""CO-RFT: chunked offline reinforcement fine-tuning, a critic of all prefixes and the floor of Cal-QL.

    critic:  mean_i (Q_i - G_i)^2  +  alpha * mean_i ( max(Q_i(s, other chunks), V^mu(s)) - Q_i(s, data) )
    actor:   -q_weight * mean_i Q_i(s, pi(s)) / mean |Q|  +  bc_weight * imitation

G_i bootstraps with pi's chunk at the state after i steps (targets.py); V^mu is the Monte-Carlo return of the recording.
As transcribed from the paper, the other chunks are the policy's alone and the actor has no imitation term:
`perturbed=0, bc_weight=0` is that, our defaults are not. Repeating or oversampling success frames is a matter of the
data and happens where the replay is made or drawn from. Layers, alpha and rates were not found in print: they are ours.
Source: Huang et al. 2025, arXiv 2508.02219, equations 5 to 9, from a public transcription.
"""

import torch
from torch import Tensor

from vla.rl.backup import candidate_values, chunk_values, td_loss
from vla.rl.conservatism import conservative_gap, floored, perturbed_chunks
from vla.rl.critics import polyak
from vla.rl.extraction import imitation, play, policy_value
from vla.rl.interfaces import ChunkBatch
from vla.rl.learner import ActorLearner, adam, minimise
from vla.rl.presets import AnyActor, make_actor, make_critic, target_of
from vla.rl.problem import Problem
from vla.rl.targets import PrefixBootstrap


class CoRFT(ActorLearner[AnyActor]):
    """Deterministic actor (l1 or residual), critic of prefixes, conservative term with a floor."""

    def __init__(
        self,
        *,
        problem: Problem,
        actor: str = "l1",
        actor_width: int = 256,
        actor_layers: int = 3,
        actor_rate: float = 1e-4,
        actor_every: int = 2,
        critic: str = "prefix",
        critic_width: int = 256,
        critic_layers: int = 2,
        critic_rate: float = 3e-4,
        ensemble: int = 2,
        value_law: str = "squared",
        tau: float = 0.005,
        alpha: float = 0.1,
        floor: bool = True,
        perturbed: int = 4,
        q_weight: float = 1.0,
        bc_weight: float = 1.0,
        prefix_bootstrap: PrefixBootstrap = "own",
    ) -> None:
        """Builds actor and critic by name and size.

        `alpha` weighs the conservative term, `floor` holds it at the return, `perturbed` data chunks join the policy's.
        """
        super().__init__()
        if actor not in ("l1", "residual"):
            raise ValueError(
                f"actor is '{actor}', expected l1 or residual: the critic's gradient needs a deterministic one"
            )
        self.problem, self.tau, self.actor_every, self.alpha, self.floor = problem, tau, actor_every, alpha, floor
        self.perturbed, self.q_weight, self.bc_weight = perturbed, q_weight, bc_weight
        self.prefix_bootstrap: PrefixBootstrap = prefix_bootstrap
        self.actor = make_actor(actor, problem, width=actor_width, layers=actor_layers)
        self.critic = make_critic(
            critic, problem, width=critic_width, layers=critic_layers, ensemble=ensemble, law=value_law
        )
        self.target_actor, self.target_critic = target_of(self.actor), target_of(self.critic)
        self.actor_optimizer = adam(self.actor, actor_rate)
        self.critic_optimizer = adam(self.critic, critic_rate)

    def learn(self, batch: ChunkBatch, generator: torch.Generator) -> dict[str, Tensor]:
        def value_of(states_ND: Tensor) -> Tensor:
            chunks_NHA = play(self.target_actor, states_ND, generator)
            return chunk_values(self.target_critic, states_ND, chunks_NHA).amin(0)

        loss, values_EBP, usable_BP, metrics = td_loss(
            self.critic, batch, value_of, self.problem, self.prefix_bootstrap
        )
        if self.alpha > 0:
            gap = self.conservative(batch, values_EBP, usable_BP, generator)
            loss = loss + self.alpha * gap
            metrics["conservative_gap"] = gap.detach()
        minimise(self.critic_optimizer, loss)
        if self.steps % self.actor_every:
            return metrics
        actor_loss, actor_metrics = self.actor_loss(batch)
        minimise(self.actor_optimizer, actor_loss)
        polyak(self.target_critic, self.critic, self.tau)
        polyak(self.target_actor, self.actor, self.tau)
        return {**metrics, **actor_metrics}

    def conservative(
        self, batch: ChunkBatch, values_EBP: Tensor, usable_BP: Tensor, generator: torch.Generator
    ) -> Tensor:
        features_BD = batch.features_BGD[:, 0]
        with torch.no_grad():
            others_MBHA = play(self.actor, features_BD, generator)[None]
            if self.perturbed:
                near_MBHA = perturbed_chunks(batch.actions_BHA, self.perturbed, generator, self.actor.binary_A)
                others_MBHA = torch.cat([others_MBHA, near_MBHA])
        others_EMBP = candidate_values(self.critic, features_BD, others_MBHA)
        if self.floor:
            others_EMBP = floored(others_EMBP, batch.return_mc_B)
        return conservative_gap(others_EMBP, values_EBP, usable_BP)

    def actor_loss(self, batch: ChunkBatch) -> tuple[Tensor, dict[str, Tensor]]:
        features_BD = batch.features_BGD[:, 0]
        value, q_policy = policy_value(self.critic, features_BD, self.actor.mean(features_BD))
        bc_loss = imitation(self.actor, batch)
        loss = self.bc_weight * bc_loss - self.q_weight * value
        return loss, {"actor_loss": loss.detach(), "imitation_loss": bc_loss.detach(), "q_policy": q_policy}
