"""Can the critic tell a good chunk from a bad one, in the same state? To be asked before any gain is claimed for it.

A critic may be calibrated on average and yet be of no use to choose with: what differs between states drowns what
differs between candidates. So simulator states are saved, in each N candidate chunks are played, each followed by the
policy to the end, and what really came of them is compared with what the critic said. The gate: the mean over states of
Spearman's correlation has a 95 % interval above 0, and the critic's favourite does at least as well as a random one.
Only a simulator allows it: the same state has to be begun N times.

Letters: S states, N candidates, M repeats, H horizon, A action.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from vla.core.protocols import Env
from vla.core.types import Float
from vla.rl.features import Features
from vla.rl.gather import Propose, Row, noisy_chunk, physical

RESAMPLES = 4000

type Judge = Callable[[Float, Float], NDArray]  # features (D,) and chunks (N, H, A) to values (N,)


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How the test is done.

    candidates  N; the policy's own chunk under coloured noise of standard deviation `noise`, normalised units
    execute     actions played of every chunk
    repeats     M, of each candidate with other seeds of the policy; 1 where policy and simulator are deterministic
    discount    of the return, per step: reward 1 at success
    """

    candidates: int = 16
    noise: float = 0.3
    execute: int
    repeats: int = 1
    discount: float
    seed: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """One state: what the critic said of the candidates, and what came of them. Arrays (N,), means over repeats."""

    row: Row
    after_steps: int
    values_N: NDArray
    returns_N: NDArray
    success_N: NDArray


def judge_row(
    env: Env, row: Row, features: Features, propose: Propose, judge: Judge, protocol: Protocol
) -> Judged | None:
    """Plays the row up to a random chunk under the candidates' noise, then tries all candidates from there.

    None if the episode ended before there was a choice to make.
    """
    rng = np.random.default_rng([row.seed, protocol.seed, 11])
    points = list(_played(env, row, features, propose, protocol, rng))
    if not points:
        return None
    snapshot, steps, features_D = points[rng.integers(len(points))]
    chunk_HA = propose(features_D, int(rng.integers(2**63)))
    chunks_NHA = np.stack(
        [noisy_chunk(chunk_HA, rng, protocol.noise, features.spec) for _ in range(protocol.candidates)]
    )
    seeds = [int(seed) for seed in rng.integers(2**63, size=protocol.repeats)]  # the same for every candidate
    outcomes_NM2 = np.zeros((protocol.candidates, protocol.repeats, 2))
    for i, first_HA in enumerate(chunks_NHA):
        for j, seed in enumerate(seeds):
            env.restore(snapshot)
            outcomes_NM2[i, j] = _finish(env, first_HA, features, propose, protocol, seed)
    returns_N, success_N = outcomes_NM2.mean(axis=1).T
    return Judged(
        row=row,
        after_steps=steps,
        values_N=judge(features_D, chunks_NHA),
        returns_N=returns_N,
        success_N=success_N,
    )


def _played(
    env: Env, row: Row, features: Features, propose: Propose, protocol: Protocol, rng: np.random.Generator
) -> Iterable[tuple[bytes, int, Float]]:
    """Plays an episode; snapshot, steps so far and features before each chunk."""
    env.reset(row.task, row.init_state, row.seed)
    steps = 0
    while True:
        features_D = features(env.observe(features.cameras))
        yield env.snapshot(), steps, features_D
        chunk_HA = propose(features_D, int(rng.integers(2**63)))
        chunk_HA = noisy_chunk(chunk_HA, rng, protocol.noise, features.spec)
        for action_A in physical(chunk_HA[: protocol.execute], features):
            step = env.step(action_A)
            steps += 1
            if step.terminated or step.truncated:
                return


def _finish(
    env: Env, first_HA: Float, features: Features, propose: Propose, protocol: Protocol, seed: int
) -> tuple[float, float]:
    """Plays a candidate, then the policy to the end: discounted return, success."""
    rng, chunk_HA, steps = np.random.default_rng(seed), first_HA, 0
    while True:
        for action_A in physical(chunk_HA[: protocol.execute], features):
            step = env.step(action_A)
            steps += 1
            if step.terminated or step.truncated:
                return (protocol.discount ** (steps - 1) if step.success else 0.0), float(step.success)
        features_D = features(env.observe(features.cameras))
        chunk_HA = propose(features_D, int(rng.integers(2**63)))


def verdict(judged: list[Judged], seed: int = 0) -> dict[str, Any]:
    """The numbers of the gate, over the states in which the candidates' outcomes differ at all.

    Returns:
        `states` judged and `decided` of them, those where outcomes differ; `spearman` with `low`, `high`; `gain`, the
        favourite's return minus the mean candidate's, with `gain_low`, `gain_high`; returns and success of `favourite`,
        `random` and `oracle`; `passes`, and `why` in words.
    """
    decided = [each for each in judged if np.ptp(each.returns_N) > 0]
    counts = {"states": len(judged), "decided": len(decided)}
    if len(decided) < 2:
        return {**counts, "passes": False, "why": "fewer than two states in which the candidates' outcomes differ"}
    rhos_S = np.array([spearman(each.values_N, each.returns_N) for each in decided])
    picked = [int(each.values_N.argmax()) for each in decided]
    favourite_S2 = np.array([(e.returns_N[i], e.success_N[i]) for e, i in zip(decided, picked, strict=True)])
    random_S2 = np.array([(e.returns_N.mean(), e.success_N.mean()) for e in decided])
    oracle_S2 = np.array([(e.returns_N.max(), e.success_N.max()) for e in decided])
    low, high = mean_interval(rhos_S, seed)
    gains_S = favourite_S2[:, 0] - random_S2[:, 0]
    gain_low, gain_high = mean_interval(gains_S, seed)
    reasons = [] if low > 0 else ["the interval of Spearman's correlation is not above 0"]
    reasons += [] if gains_S.mean() >= 0 else ["the critic's favourite does worse than a random candidate"]
    named = {"favourite": favourite_S2, "random": random_S2, "oracle": oracle_S2}
    return {
        **counts,
        "spearman": float(rhos_S.mean()),
        "low": low,
        "high": high,
        "gain": float(gains_S.mean()),
        "gain_low": gain_low,
        "gain_high": gain_high,
        **{name: {"return": float(x[:, 0].mean()), "success": float(x[:, 1].mean())} for name, x in named.items()},
        "passes": not reasons,
        "why": "; ".join(reasons) or "it ranks candidates within a state",
    }


def sentence(found: Mapping[str, Any]) -> str:
    """The verdict in one line."""
    if "spearman" not in found:
        return f"ranking gate FAILS: {found['why']} ({found['decided']} of {found['states']})"
    return (
        f"ranking gate {'passes' if found['passes'] else 'FAILS'}: Spearman {found['spearman']:+.2f} "
        f"[{found['low']:+.2f}, {found['high']:+.2f}] over {found['decided']} states; return of the favourite "
        f"{found['favourite']['return']:.3f}, of a random candidate {found['random']['return']:.3f}, of the best "
        f"{found['oracle']['return']:.3f}; {found['why']}"
    )


def spearman(a_N: NDArray, b_N: NDArray) -> float:
    """Rank correlation with ties at their mean rank; 0 where one side does not vary, for then it ranks nothing."""
    ranks_2N = np.stack([rankdata(a_N), rankdata(b_N)])
    ranks_2N -= ranks_2N.mean(axis=1, keepdims=True)
    norms_2 = np.linalg.norm(ranks_2N, axis=1)
    return float(ranks_2N[0] @ ranks_2N[1] / norms_2.prod()) if norms_2.all() else 0.0


def mean_interval(values_S: NDArray, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of a mean, drawing whole states."""
    rng = np.random.default_rng([seed, 13])
    means = values_S[rng.integers(len(values_S), size=(RESAMPLES, len(values_S)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
