"""A policy's answers, of which some may be no good: a chunk, or what is wrong with it, for each observation.

Special: a batch that fails is asked again one by one, which changes nothing for the others: a chunk depends on its own
observation and seed alone.
"""

from collections.abc import Sequence

from vla.core.errors import GrasplineError, NonFiniteError, SpecMismatchError
from vla.core.protocols import Policy
from vla.core.types import ActionChunk, Observation


def answers(policy: Policy, observations: Sequence[Observation], seeds: Sequence[int]) -> list[ActionChunk | str]:
    """One chunk (horizon, A) for each observation, or the reason why there is none, in one line.

    Raises:
        GrasplineError: what concerns no single observation, such as a server that is gone.
    """
    try:
        chunks = policy.act(observations, seeds)
        if len(chunks) != len(observations):
            raise ValueError(f"{len(chunks)} chunks for {len(observations)} observations")
    except Exception as error:
        if isinstance(error, GrasplineError) and not isinstance(error, NonFiniteError | SpecMismatchError):
            raise
        if len(observations) > 1:
            return [
                answer
                for observation, seed in zip(observations, seeds, strict=True)
                for answer in answers(policy, [observation], [seed])
            ]
        return ["the policy failed: " + " ".join(f"{type(error).__name__}: {error}".split())]
    return [_checked(policy, chunk) for chunk in chunks]


def _checked(policy: Policy, chunk: ActionChunk) -> ActionChunk | str:
    """The chunk, if it has the shape that the policy promised. NaN is for the env to refuse, before anything moves."""
    expected = (policy.horizon, policy.spec.action_dim)
    if chunk.actions_HA.shape == expected:
        return chunk
    return f"the policy failed: a chunk of shape {chunk.actions_HA.shape}, expected {expected} (horizon, action)"
