"""Actors and critics by name, sized for one problem; and the slow copies that targets are computed with."""

from copy import deepcopy

from torch import nn

from vla.core.errors import unknown_name
from vla.rl.actors.flow import FlowActor
from vla.rl.actors.l1 import L1Actor
from vla.rl.actors.laplace import LaplaceActor
from vla.rl.actors.residual import ResidualActor
from vla.rl.actors.tokens import TokenActor
from vla.rl.critics import EnsembleCritic, FlatCritic, PrefixCritic
from vla.rl.problem import Problem
from vla.rl.value_laws import Bernoulli, HLGauss, Squared, ValueLaw

ACTORS = {"flow": FlowActor, "l1": L1Actor, "laplace": LaplaceActor, "residual": ResidualActor, "tokens": TokenActor}
CRITICS = ("flat", "prefix")
LAWS = ("bernoulli", "hl_gauss", "squared")

type AnyActor = FlowActor | L1Actor | LaplaceActor | ResidualActor | TokenActor


def make_actor(name: str, problem: Problem, *, width: int, layers: int) -> AnyActor:
    if name not in ACTORS:
        raise unknown_name("actor", name, ACTORS)
    return ACTORS[name](problem=problem, width=width, layers=layers)


def make_critic(name: str, problem: Problem, *, width: int, layers: int, ensemble: int, law: str) -> EnsembleCritic:
    if name not in CRITICS:
        raise unknown_name("critic", name, CRITICS)
    kind = {"flat": FlatCritic, "prefix": PrefixCritic}[name]
    return kind(
        problem.features,
        problem.action_dim,
        problem.horizon,
        width=width,
        layers=layers,
        ensemble=ensemble,
        law=make_law(law, problem),
    )


def make_law(name: str, problem: Problem) -> ValueLaw:
    if name not in LAWS:
        raise unknown_name("value_law", name, LAWS)
    if name == "squared":
        return Squared()
    return {"bernoulli": Bernoulli, "hl_gauss": HLGauss}[name](low=problem.low, high=problem.high)


def target_of[N: nn.Module](network: N) -> N:
    """A copy that does not learn; `critics.polyak` lets it follow."""
    return deepcopy(network).requires_grad_(False)
