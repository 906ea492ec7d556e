"""A function of the user's as a Policy."""

from pathlib import Path

import numpy as np
import pytest

from scripts.entry import entry
from scripts.evaluate import main
from sim.fake import FAKE, FakeEnv, FakeExpert
from vla.core.errors import GrasplineError, NonFiniteError, SpecMismatchError, UnknownNameError
from vla.core.types import Observation
from vla.rollout.executor import RecedingHorizon
from vla.rollout.function import FunctionPolicy, function_named
from vla.rollout.runner import EpisodePlan, run_episode

SOURCE = """
import numpy as np
LENGTH = 3
def still(observation, seed):
    return np.full((LENGTH, 7), seed % 5 / 10)
"""


def test_a_function_solves_a_task_and_is_not_shown_the_truth() -> None:
    env = FakeEnv()

    def solve(observation: Observation, seed: int) -> np.ndarray:
        """The fake suite's expert. It needs the truth, and has to look for it behind the scenes."""
        assert not observation.privileged
        [chunk] = FakeExpert().act([env.observe(())], [seed])
        return chunk.actions_HA

    policy = FunctionPolicy(solve, spec=FAKE, cameras=(), horizon=1)
    assert run_episode(env, policy, EpisodePlan("reach_red", 40, 0), RecedingHorizon(1)).success


def test_each_observation_with_its_seed() -> None:
    asked = []

    def act(observation: Observation, seed: int) -> np.ndarray:
        asked.append((observation.instruction, seed))
        return np.full((4, 7), 3.0) if seed else np.zeros((2, 7))

    policy = FunctionPolicy(act, spec=FAKE)
    first, second = policy.act([FAKE.zeros("one"), FAKE.zeros("other")], [7, 8])
    assert asked[1:] == [("one", 7), ("other", 8)] and policy.horizon == 2
    np.testing.assert_array_equal(first.actions_HA, np.ones((2, 7)))  # clipped, and no longer than the others
    assert second.actions_HA.dtype == np.float32 and second.dt_s == FAKE.dt_s


@pytest.mark.parametrize("shape", [(7,), (0, 7), (2, 6), (1, 2, 7)])
def test_wrong_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(SpecMismatchError, match="expected"):
        FunctionPolicy(lambda observation, seed: np.zeros(shape), spec=FAKE)


def test_a_shorter_chunk_and_nan_later_on() -> None:
    policy = FunctionPolicy(lambda observation, seed: np.full((2 - seed % 2, 7), np.nan if seed else 0), spec=FAKE)
    with pytest.raises(SpecMismatchError, match="at least 2"):
        policy.act([FAKE.zeros()], [1])
    with pytest.raises(NonFiniteError):
        policy.act([FAKE.zeros()], [2])


def test_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "of_a_user.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    policy = FunctionPolicy(function_named("of_a_user:still"), spec=FAKE)
    assert policy.horizon == 3
    with pytest.raises(UnknownNameError, match="Did you mean 'still'"):
        function_named("of_a_user:stil")
    with pytest.raises(UnknownNameError, match="Valid: still"):
        function_named("of_a_user:LENGTH")
    with pytest.raises(GrasplineError, match="No module named 'of_nobody'"):
        function_named("of_nobody:still")
    entry(
        "evaluate",
        main,
        ["env=fake", "policy=of_a_user:still", "episodes=3", "workers=0", "videos=0", f"out={tmp_path / 'out'}"],
    )
    assert (tmp_path / "out" / "results.json").exists()
