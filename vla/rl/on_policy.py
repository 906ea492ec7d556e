"""Groups of attempts at one start, by the policy that learns: what GRPO, RLOO, PPO, DPO and RAFT learn from.

A simulator can begin the same state again, so an attempt is compared with others from that very state and no critic is
needed. Special here: the log-probability is taken where the chunk is drawn, of the same law, before clipping (clipping
belongs to the world, else the density would not be that of the draw); an attempt is a function of row, seed and its own
number alone; groups whose attempts all end alike teach nothing and are drawn again (dynamic sampling of DAPO,
arXiv 2503.14476, and of RIPT-VLA, arXiv 2505.17016).

Letters: E attempt, B chunk that was drawn, in any attempt; H horizon, A action, D features. Actions are normalised.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from agents.advantages import GroupAdvantages, group_advantages
from vla.core.protocols import Env
from vla.core.types import Float
from vla.policies.threads import single_thread
from vla.rl.actors.laplace import LaplaceActor
from vla.rl.actors.tokens import TokenActor
from vla.rl.actors.trunk import as_played
from vla.rl.features import Features
from vla.rl.gather import Row, physical

type DensityActor = LaplaceActor | TokenActor


@dataclass(frozen=True, kw_only=True, eq=False)
class Attempts:
    """Attempts and the chunks drawn in them.

    features_BD  (B, D) float32
    chunks_BHA   (B, H, A) float32   as drawn, not clipped
    played_BH    (B, H) bool         the step took place
    logp_BH      (B, H) float32      log-density [nat] of each action under the actor that drew it
    attempt_B    (B,) int64          which attempt: index into the (E,) arrays
    turn_B       (B,) int64          how many chunks the attempt had drawn before
    group_E      (E,) int64          equal where attempts have one start
    return_E     (E,) float32        discount ** (steps - 1) at success, else 0
    success_E    (E,) bool
    steps_E      (E,) int64          from the start to the end
    """

    features_BD: Tensor
    chunks_BHA: Tensor
    played_BH: Tensor
    logp_BH: Tensor
    attempt_B: Tensor
    turn_B: Tensor
    group_E: Tensor
    return_E: Tensor
    success_E: Tensor
    steps_E: Tensor

    def __len__(self) -> int:
        """How many attempts."""
        return len(self.return_E)

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Groups numbered anew, in order; each part is one group."""
        offsets = np.cumsum([0, *map(len, parts)])
        moved = [
            replace(part, attempt_B=part.attempt_B + int(offset), group_E=torch.full_like(part.group_E, number))
            for number, (part, offset) in enumerate(zip(parts, offsets, strict=False))
        ]
        return cls(**{each.name: torch.cat([getattr(part, each.name) for part in moved]) for each in fields(cls)})


def play_group(
    env: Env,
    row: Row,
    features: Features,
    actor: DensityActor,
    *,
    attempts: int,
    discount: float,
    seed: int,
    branch: bool = False,
) -> Attempts:
    """Attempts from one start, as one group.

    Args:
        env: that can be restored.
        row: the episode whose initial state is the start.
        features: of the observations.
        actor: draws; all H actions of a chunk are played before it looks again.
        attempts: G, how many.
        discount: of the return, per step.
        seed: of all draws, with the row's own.
        branch: start at a random chunk of the episode that the actor's mean plays, draw only the first chunk, and go on
            with the mean: what differs then is that chunk's doing alone, as preferences between chunks need it.
    """
    with single_thread(), torch.no_grad():
        env.reset(row.task, row.init_state, row.seed)
        start = env.snapshot()
        if branch:
            starts = _starts_of_mean(env, features, actor)
            start = starts[np.random.default_rng([row.seed, seed]).integers(len(starts))]
        parts = [
            _attempt(env, start, features, actor, _generator(row.seed, seed, number), discount, 1 if branch else None)
            for number in range(attempts)
        ]
    return replace(Attempts.join(parts), group_E=torch.zeros(attempts, dtype=torch.int64))


def informative_groups(
    play: Callable[[Row], Attempts], rows: Iterable[Row], *, wanted: int, limit: int
) -> tuple[Attempts | None, int]:
    """Up to `wanted` groups whose returns differ, out of at most `limit`; and how many groups were played.

    None where there is no such group: all tasks are hopeless, or certain.
    """
    kept: list[Attempts] = []
    played = 0
    for _, row in zip(range(limit), rows, strict=False):
        group = play(row)
        played += 1
        if bool(group_advantages(group.return_E, group.group_E).informative_B.any()):
            kept.append(group)
        if len(kept) == wanted:
            break
    return (Attempts.join(kept) if kept else None), played


def by_attempt(attempts: Attempts, values_B: Tensor) -> Tensor:
    """(E, K) of what is known for each chunk, zero where an attempt had fewer than K."""
    table_EK = values_B.new_zeros(len(attempts), int(attempts.turn_B.max()) + 1)
    table_EK[attempts.attempt_B, attempts.turn_B] = values_B
    return table_EK


def of_chunks(attempts: Attempts, advantages: GroupAdvantages) -> Tensor:
    """(B,) for each chunk the advantage of its attempt."""
    return advantages.advantages_B[attempts.attempt_B]


def _attempt(
    env: Env,
    start: bytes,
    features: Features,
    actor: DensityActor,
    generator: torch.Generator,
    discount: float,
    draws: int | None,
) -> Attempts:
    """One attempt as a group of its own; after `draws` chunks it plays the mean."""
    env.restore(start)
    seen, chunks, played, logps = [], [], [], []
    steps, done, success = 0, False, False
    while not done:
        features_1D = torch.from_numpy(features(env.observe(features.cameras)))[None]
        drawn = draws is None or len(chunks) < draws
        chunk_1HA = actor.sample(features_1D, 1, generator)[0] if drawn else actor.mean(features_1D)
        taken, done, success = _play(env, as_played(chunk_1HA[0], actor.binary_A).numpy(), features)
        steps += taken
        if drawn:
            seen.append(features_1D)
            chunks.append(chunk_1HA)
            logps.append(actor.log_prob_BH(features_1D, chunk_1HA))
            played.append(torch.arange(chunk_1HA.shape[1])[None] < taken)
    return Attempts(
        features_BD=torch.cat(seen),
        chunks_BHA=torch.cat(chunks),
        played_BH=torch.cat(played),
        logp_BH=torch.cat(logps),
        attempt_B=torch.zeros(len(chunks), dtype=torch.int64),
        turn_B=torch.arange(len(chunks)),
        group_E=torch.zeros(1, dtype=torch.int64),
        return_E=torch.tensor([discount ** (steps - 1) if success else 0.0]),
        success_E=torch.tensor([success]),
        steps_E=torch.tensor([steps]),
    )


def _play(env: Env, chunk_HA: Float, features: Features) -> tuple[int, bool, bool]:
    """Steps taken, whether the episode ended, whether it succeeded."""
    for taken, action_A in enumerate(physical(chunk_HA, features), start=1):
        step = env.step(action_A)
        if step.terminated or step.truncated:
            return taken, True, step.success
    return len(chunk_HA), False, False


def _starts_of_mean(env: Env, features: Features, actor: DensityActor) -> list[bytes]:
    """Snapshots before each chunk of the episode that is running, played by the actor's mean."""
    found, done = [], False
    while not done:
        found.append(env.snapshot())
        features_1D = torch.from_numpy(features(env.observe(features.cameras)))[None]
        _, done, _ = _play(env, as_played(actor.mean(features_1D)[0], actor.binary_A).numpy(), features)
    return found


def _generator(*numbers: int) -> torch.Generator:
    """A stream of its own for these numbers."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1))
