"""Values of chunks: of every prefix by a causal transformer, of whole chunks by an MLP, of both apart.

PrefixCritic reads [state, a_1 ... a_H] under a causal mask; the output at a_i cannot depend on a_{i+1}, so one pass
values all prefixes (CO-RFT's critic expert, sized as T-SAC's). FlatCritic is Q-chunking's: one number for the chunk.
DecoupledCritic is DQC's: a long chunk is valued, a short prefix is distilled from it. Departures: features go into a
linear layer without a LayerNorm of their own, which would lose two of the few numbers of a small state; LayerNorm
follows every hidden layer instead. An ensemble is separate networks: heads on one trunk would agree.
Letters as in interfaces.py; W width.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from agents.objectives.reduce import masked_mean
from vla.rl.value_laws import Squared, ValueLaw

_SQUARED = Squared()


class EnsembleCritic(nn.Module):
    """What critics share: E networks side by side, one law, and which columns they fill."""

    def __init__(self, networks: list[nn.Module], *, horizon: int, columns: slice, law: ValueLaw) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.ensemble, self.horizon, self.columns, self.law = len(networks), horizon, columns, law

    def forward(self, features_BD: Tensor, actions_BHA: Tensor) -> Tensor:
        """Outputs (E, B, H) or (E, B, H, bins); NaN in columns that are not valued."""
        if actions_BHA.shape[1] != self.horizon:
            raise ValueError(f"actions: chunks of {actions_BHA.shape[1]} steps, expected horizon {self.horizon}")
        return torch.stack([network(features_BD, actions_BHA) for network in self.networks])

    def value(self, outputs: Tensor) -> Tensor:
        """Values (E, B, H)."""
        return self.law.value(outputs)

    def loss(self, outputs: Tensor, targets_BH: Tensor, usable_BH: Tensor) -> Tensor:
        """Mean loss over critics and usable rows, of the columns that are valued."""
        losses = self.law.loss(outputs[:, :, self.columns], targets_BH[:, self.columns].expand(len(outputs), -1, -1))
        return masked_mean(losses, usable_BH[:, self.columns].expand_as(losses))


class PrefixCritic(EnsembleCritic):
    """Every prefix in one pass."""

    def __init__(
        self,
        features: int,
        action_dim: int,
        horizon: int,
        *,
        width: int = 256,
        layers: int = 2,
        heads: int = 4,
        ensemble: int = 2,
        law: ValueLaw = _SQUARED,
    ) -> None:
        """Features D, action dimension A, horizon H; width of the transformer, its layers and heads; E; the law."""
        networks: list[nn.Module] = [
            _PrefixNetwork(features, action_dim, horizon, width, layers, heads, law.outputs) for _ in range(ensemble)
        ]
        super().__init__(networks, horizon=horizon, columns=slice(0, horizon), law=law)


class FlatCritic(EnsembleCritic):
    """The whole chunk alone: cheap, but a chunk cut short by the clock teaches it nothing."""

    def __init__(
        self,
        features: int,
        action_dim: int,
        horizon: int,
        *,
        width: int = 512,
        layers: int = 3,
        ensemble: int = 2,
        law: ValueLaw = _SQUARED,
    ) -> None:
        """Features D, action dimension A, horizon H; width and number of hidden layers; E; the law."""
        networks: list[nn.Module] = [
            _FlatNetwork(features, action_dim, horizon, (horizon,), width, layers, law.outputs) for _ in range(ensemble)
        ]
        super().__init__(networks, horizon=horizon, columns=slice(horizon - 1, horizon), law=law)


class DecoupledCritic(EnsembleCritic):
    """The whole chunk of H steps learns by `loss`; the prefix of `short` steps that a policy plays, by `distil` alone.

    `columns` are the two that are valued, short - 1 and H - 1.
    """

    def __init__(
        self,
        features: int,
        action_dim: int,
        horizon: int,
        *,
        short: int,
        width: int = 512,
        layers: int = 3,
        ensemble: int = 2,
        law: ValueLaw = _SQUARED,
    ) -> None:
        """As FlatCritic; `short` in 1..horizon - 1."""
        if not 1 <= short < horizon:
            raise ValueError(f"short is {short}, expected 1..{horizon - 1}: a true prefix of the chunk")
        networks: list[nn.Module] = [
            _FlatNetwork(features, action_dim, horizon, (short, horizon), width, layers, law.outputs)
            for _ in range(ensemble)
        ]
        super().__init__(networks, horizon=horizon, columns=slice(short - 1, horizon, horizon - short), law=law)
        self.short = short

    def loss(self, outputs: Tensor, targets_BH: Tensor, usable_BH: Tensor) -> Tensor:
        """Mean loss of the whole chunk alone."""
        losses_EB = self.law.loss(outputs[:, :, -1], targets_BH[:, -1].expand(len(outputs), -1))
        return masked_mean(losses_EB, usable_BH[:, -1].expand_as(losses_EB))

    def distil(self, outputs: Tensor, values_EB: Tensor, usable_B: Tensor, expectile: float = 0.8) -> Tensor:
        """Expectile loss of the prefix towards values of whole chunks, usually a target network's; 0.5 is the mean.

        Above 0.5 it leans towards the best of the recorded continuations.
        """
        predicted = outputs[:, :, self.short - 1]
        weights = torch.where(values_EB > self.law.value(predicted), expectile, 1 - expectile).detach()
        losses_EB = weights * self.law.loss(predicted, values_EB.detach())
        return masked_mean(losses_EB, usable_B.expand_as(losses_EB))


class ValueNetwork(nn.Module):
    """V(state): outputs (B,), or (B, bins) where the law predicts a histogram; `value` gives (B,)."""

    def __init__(self, features: int, *, width: int = 256, layers: int = 2, law: ValueLaw = _SQUARED) -> None:
        super().__init__()
        self.law = law
        self.network = _mlp(features, width, layers, law.outputs or 1)

    def forward(self, features_BD: Tensor) -> Tensor:
        return _shaped(self.network(features_BD), self.law.outputs)

    def value(self, outputs: Tensor) -> Tensor:
        return self.law.value(outputs)


@torch.no_grad()
def polyak(target: nn.Module, source: nn.Module, tau: float) -> None:
    """Target <- (1 - tau) target + tau source, weight by weight; 1 copies."""
    for into, of in zip(target.parameters(), source.parameters(), strict=True):
        into.lerp_(of, tau)
    for into, of in zip(target.buffers(), source.buffers(), strict=True):
        into.copy_(of)


class _PrefixNetwork(nn.Module):
    def __init__(
        self, features: int, action_dim: int, horizon: int, width: int, layers: int, heads: int, outputs: int | None
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        self.outputs = outputs
        self.state = nn.Linear(features, width)
        self.action = nn.Linear(action_dim, width)
        self.position = nn.Parameter(torch.randn(horizon, width) / math.sqrt(width))
        self.blocks = nn.Sequential(*(_Block(width, heads) for _ in range(layers)))
        self.head = nn.Sequential(nn.LayerNorm(width), _mlp(width, width, 1, outputs or 1))

    def forward(self, features_BD: Tensor, actions_BHA: Tensor) -> Tensor:
        state_B1W = self.state(features_BD).unsqueeze(1)
        tokens_BGW = torch.cat([state_B1W, self.action(actions_BHA) + self.position], dim=1)
        return _shaped(self.head(self.blocks(tokens_BGW)[:, 1:]), self.outputs)


class _Block(nn.Module):
    """Causal attention and an MLP, each after a LayerNorm and added to what came in. No dropout."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, tokens_BGW: Tensor) -> Tensor:
        batch, count, width = tokens_BGW.shape
        mixed = self.queries_keys_values(self.norm(tokens_BGW)).view(batch, count, 3, self.heads, -1)
        queries, keys, values = mixed.permute(2, 0, 3, 1, 4)
        read = functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        tokens_BGW = tokens_BGW + self.out(read.transpose(1, 2).reshape(batch, count, width))
        return tokens_BGW + self.mlp(tokens_BGW)


class _FlatNetwork(nn.Module):
    """An MLP of its own for each of the given prefix lengths; NaN in the other columns."""

    def __init__(
        self,
        features: int,
        action_dim: int,
        horizon: int,
        lengths: tuple[int, ...],
        width: int,
        layers: int,
        outputs: int | None,
    ) -> None:
        super().__init__()
        self.horizon, self.lengths, self.outputs = horizon, lengths, outputs
        self.mlps = nn.ModuleList(_mlp(features + n * action_dim, width, layers, outputs or 1) for n in lengths)

    def forward(self, features_BD: Tensor, actions_BHA: Tensor) -> Tensor:
        columns: list[Tensor] = [
            _shaped(mlp(torch.cat([features_BD, actions_BHA[:, :length].flatten(1)], dim=1)), self.outputs)
            for mlp, length in zip(self.mlps, self.lengths, strict=True)
        ]
        nothing = torch.full_like(columns[0], math.nan).detach()
        filled = dict(zip(self.lengths, columns, strict=True))
        return torch.stack([filled.get(i, nothing) for i in range(1, self.horizon + 1)], dim=1)


def _mlp(inputs: int, width: int, layers: int, outputs: int) -> nn.Sequential:
    """Linear, LayerNorm and GELU for each hidden layer; then the output."""
    hidden: list[nn.Module] = []
    for i in range(layers):
        hidden += [nn.Linear(inputs if i == 0 else width, width), nn.LayerNorm(width), nn.GELU()]
    return nn.Sequential(*hidden, nn.Linear(width, outputs))


def _shaped(raw: Tensor, outputs: int | None) -> Tensor:
    """Without the last axis where a prediction is one number."""
    return raw.squeeze(-1) if outputs is None else raw
