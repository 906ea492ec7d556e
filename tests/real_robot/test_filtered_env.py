"""The hardware's filter in simulation: executed is filtered, snapshots exact, what cannot be filtered refused."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from real_robot.core.types import Verdict
from real_robot.filtered_env import FilteredEnv
from sim.fake import FakeEnv
from vla.core.errors import CorruptFileError, NonFiniteError, SpecMismatchError
from vla.core.protocols import Env, Task
from vla.core.spec import Axis, Embodiment
from vla.core.types import Observation, Step

JOINTS = ("waist", "elbow")
TWO_JOINTS = Embodiment(
    name="two_joints",
    state=(*(Axis(name=name, unit="rad") for name in JOINTS), Axis(name="gripper", unit="1")),
    action=(
        Axis(name="gripper", unit="1", low=0.0, high=1.0),
        *(Axis(name=name, unit="rad", low=-1.5, high=1.5) for name in JOINTS),
    ),
    cameras=(),
    control_hz=50.0,
)


class TwoJoints:
    """An arm that takes any commanded posture at once: whoever wants limits has to bring them."""

    spec, tasks = (
        TWO_JOINTS,
        {"move": Task(name="move", instruction="", horizon=99, num_init_states=1, num_train_states=1)},
    )

    def reset(self, task: str, init_state: int, seed: int) -> None:
        self.q = np.array([0.3, -0.2, 0.0], np.float32)

    def step(self, action_A: np.ndarray) -> Step:
        executed_A = TWO_JOINTS.clip(action_A)
        self.q = executed_A[[1, 2, 0]]
        return Step(executed_A=executed_A, terminated=False, truncated=False, success=False)

    def observe(self, cameras: Sequence[str] | None = None) -> Observation:
        return Observation(images={}, state_S=self.q, instruction="", time_s=0.0)

    def snapshot(self) -> bytes:
        return self.q.tobytes()

    def restore(self, snapshot: bytes) -> None:
        self.q = np.frombuffer(snapshot, np.float32)

    def close(self) -> None:
        pass


@pytest.fixture
def env() -> FilteredEnv:
    env = FilteredEnv(TwoJoints(), max_velocity=2.0, max_acceleration=10.0, max_jerk=200.0)
    env.reset("move", 0, 0)
    return env


def play(env: Env, actions_TA: np.ndarray) -> np.ndarray:
    return np.array([env.step(action_A).executed_A for action_A in actions_TA])


def test_executed_is_filtered_and_keeps_the_bounds(env: FilteredEnv) -> None:
    wanted_TA = np.random.default_rng(0).uniform(-3, 3, (400, 3)).repeat(5, axis=0)
    wanted_TA[:, 0] = np.clip(wanted_TA[:, 0], 0, 1)
    executed_TA = play(env, wanted_TA)
    start_A = np.array([[0.3, -0.2]] * 3)
    v_TA = np.diff(np.vstack([start_A, executed_TA[:, 1:]]).astype(np.float64), axis=0) * 50
    rounding = 2e-7 * 50  # executed actions are float32
    assert np.abs(v_TA).max() <= 2.0 + rounding
    assert np.abs(np.diff(v_TA, axis=0)).max() * 50 <= 10.0 + 4 * rounding * 50
    assert np.abs(executed_TA[:, 1:]).max() <= 1.5
    np.testing.assert_allclose(executed_TA[:, 0], wanted_TA[:, 0], atol=1e-7)  # the gripper passes
    np.testing.assert_array_equal(env.observe().state_S[:2], executed_TA[-1, 1:])
    assert env.filtered_axes == JOINTS


def test_without_the_filter_the_bounds_are_broken() -> None:
    bare = TwoJoints()
    bare.reset("move", 0, 0)
    executed_TA = play(bare, np.random.default_rng(0).uniform(-1, 1, (50, 3)))
    assert np.abs(np.diff(executed_TA, axis=0)).max() * 50 > 10.0


def test_gentle_motions_pass_unchanged(env: FilteredEnv) -> None:
    t_T = np.arange(200) / 50
    wanted_TA = np.stack([np.full(200, 0.5), 0.3 + 0.2 * (1 - np.cos(t_T)), -0.2 - 0.1 * (1 - np.cos(t_T))], axis=1)
    np.testing.assert_allclose(play(env, wanted_TA), wanted_TA, atol=1e-6)
    assert env.verdict == Verdict.NONE
    env.step(np.array([0.5, 9.0, 0.0]))
    assert env.verdict & Verdict.POSITION and env.verdict & Verdict.VELOCITY


def test_restore_continues_bit_for_bit(env: FilteredEnv) -> None:
    actions_TA = np.random.default_rng(1).uniform(-1, 1, (60, 3)).astype(np.float32)
    play(env, actions_TA[:20])
    kept = env.snapshot()
    first = play(env, actions_TA[20:])
    env.restore(kept)
    assert play(env, actions_TA[20:]).tobytes() == first.tobytes()
    for broken in (b"", kept[:-3], b"\x01", b"\x92\x91\xc0\xc0"):
        with pytest.raises(CorruptFileError):
            env.restore(broken)


def test_an_episode_starts_at_rest_where_the_arm_is(env: FilteredEnv) -> None:
    play(env, np.full((30, 3), 1.0))
    env.reset("move", 0, 0)
    executed_A = env.step(np.array([0.0, 0.3, -0.2])).executed_A
    np.testing.assert_allclose(executed_A, [0.0, 0.3, -0.2], atol=1e-6)


def test_nothing_moves_on_nan_and_shapes_are_checked(env: FilteredEnv) -> None:
    with pytest.raises(NonFiniteError):
        env.step(np.array([0.0, np.nan, 0.0]))
    with pytest.raises(SpecMismatchError, match="expected"):
        env.step(np.zeros(4))
    with pytest.raises(ValueError, match="reset"):
        FilteredEnv(TwoJoints()).step(np.zeros(3))


def test_actions_that_are_no_joint_positions_are_refused() -> None:
    with pytest.raises(SpecMismatchError, match="no action axis is an absolute joint position"):
        FilteredEnv(FakeEnv())


def test_aloha_at_the_speed_of_its_servos() -> None:
    """Both arms of `sim/aloha.py`: what physics was given is what the filter let through."""
    pytest.importorskip("gym_aloha")
    from sim.aloha import AlohaEnv

    env = FilteredEnv(AlohaEnv(image_height=8, image_width=8), max_velocity=3.0)
    assert len(env.filtered_axes) == 12 and not any("gripper" in name for name in env.filtered_axes)
    env.reset("transfer_cube", 0, 0)
    before_A = env.observe(()).state_S
    wanted_A = before_A + 0.5
    executed_TA = play(env, np.tile(wanted_A, (40, 1)))
    joints = [i for i, axis in enumerate(env.spec.action) if axis.unit == "rad"]
    v_TA = np.diff(np.vstack([before_A, executed_TA])[:, joints], axis=0) * 50
    assert 1.5 < np.abs(v_TA).max() <= 3.0 + 1e-4
    reachable_A = env.spec.clip(wanted_A)
    np.testing.assert_allclose(executed_TA[-1][joints], reachable_A[joints], atol=1e-3)
    env.close()


def _is_env(env: Env) -> Mapping[str, Task]:
    """The type checker's conformance test."""
    return FilteredEnv(env).tasks
