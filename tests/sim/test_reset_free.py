"""Two tabletop tasks by turns: what is touched between attempts, true resets and their causes, success now."""

import numpy as np
import pytest

from sim.experts import expert_for
from sim.experts.tabletop import TabletopExpert
from sim.reset_free import HOME_M, ResetFreeEnv
from sim.tabletop_poses import TabletopPosesEnv
from sim.tabletop_tasks import TABLE_Z
from vla.core.errors import GrasplineError, UnknownNameError
from vla.core.protocols import Policy


@pytest.fixture
def env() -> ResetFreeEnv:
    return ResetFreeEnv(reset_every=10_000)


def physics(env: TabletopPosesEnv) -> np.ndarray:
    return np.frombuffer(env.snapshot().partition(b"\n")[2])


def attempt(env: TabletopPosesEnv, expert: Policy) -> tuple[bool, int]:
    """The expert plays to the end. Returns success and steps."""
    for steps in range(1, 1000):
        [chunk] = expert.act([env.observe(())], [0])
        step = env.step(chunk.actions_HA[0])
        if step.terminated or step.truncated:
            return step.success, steps
    raise AssertionError("no end")


def put(env: ResetFreeEnv, position: tuple[float, float, float]) -> None:
    """The red cube, upright and at rest, relative to the table's centre [m]."""
    stage = env.stage()
    start = stage.model.joint("red_cube_joint0").qposadr[0]
    stage.data.qpos[start : start + 7] = [position[0], position[1], TABLE_Z + position[2], 1, 0, 0, 0]
    first = stage.model.joint("red_cube_joint0").dofadr[0]
    stage.data.qvel[first : first + 6] = 0
    env.step(np.array([0, 0, 0, 0, 0, 0, -1], np.float32))


def test_switching_tasks_touches_no_physics_and_begins_a_new_attempt(env: ResetFreeEnv) -> None:
    env.reset("goal_push", 60, 0)
    for action_A in env.spec.random_chunk(np.random.default_rng(0), 12).actions_HA:
        env.step(action_A)
    before, seen = physics(env), env.observe(())
    env.switch("goal_place")
    np.testing.assert_array_equal(physics(env), before)
    after = env.observe(())
    assert "plate" in after.instruction and "square" in seen.instruction
    names = [axis.name for axis in env.spec.state]
    assert after.state_S[names.index("to_place_y")] != seen.state_S[names.index("to_place_y")]
    for steps in range(1, 151):
        step = env.step(np.array([0, 0, 0, 0, 0, 0, -1], np.float32))
        assert step.truncated == (steps == 150), "the clock starts anew"


def test_attempts_follow_each_other_with_the_arm_driven_home(env: ResetFreeEnv) -> None:
    expert = expert_for(env)
    assert env.go_on("goal_push", 61) == ("first", 0)
    home = env.observe(()).privileged["eef_pos"]
    assert attempt(env, expert)[0]
    truth, where = env.observe(()).privileged, env.where()
    cause, steps = env.go_on("goal_place", 62)
    now = env.observe(()).privileged
    assert cause == "" and 0 < steps <= 40
    assert np.linalg.norm(now["eef_pos"] - home) < 2 * HOME_M and now["opening"] > 0.075
    for thing in ("plate", "zone", "cabinet", "button"):
        np.testing.assert_array_equal(now[f"{thing}_pos"], truth[f"{thing}_pos"], err_msg=thing)
    assert np.linalg.norm(env.where() - where) < 0.02, "the cube lies where it was left"
    assert env.holds("goal_push") and not env.holds("goal_place")
    assert attempt(env, expert)[0]


def test_the_expert_carries_where_the_suites_own_pushes(env: ResetFreeEnv) -> None:
    """From the plate onto the square, in half the time that an attempt has."""
    highest = []
    for expert in (expert_for(env), TabletopExpert(env.spec)):
        env.reset("goal_push", 68, 0)
        heights: list[float] = []
        for _ in range(150):
            [chunk] = expert.act([env.observe(())], [0])
            step = env.step(chunk.actions_HA[0])
            heights.append(float(env.where()[2]))
            if step.terminated:
                break
        assert env.holds("goal_push")
        highest.append(max(heights))
    assert highest[0] > 0.05 > highest[1]


def test_resets_come_when_due(env: ResetFreeEnv) -> None:
    often = ResetFreeEnv(reset_every=60)
    often.go_on("goal_push", 61)
    for _ in range(50):
        often.step(np.array([0, 0, -0.5, 0, 0, 0, 1], np.float32))
    cause, home = often.go_on("goal_place", 62)
    assert cause == ("due" if 50 + home >= 60 else ""), "driving home counts"
    assert home > 10 and cause == "due"
    assert not often.holds("goal_push") and often.go_on("goal_push", 63)[0] == ""


@pytest.mark.parametrize("position", [(0.0, 0.6, -0.5), (0.35, 0.0, 0.022), (-0.33, 0.0, 0.022)])
def test_a_cube_that_nobody_can_reach_is_found_and_reset(
    env: ResetFreeEnv, position: tuple[float, float, float]
) -> None:
    env.go_on("goal_push", 61)
    assert not env.stuck()
    put(env, position)
    assert env.stuck()
    assert env.go_on("goal_place", 64)[0] == "stuck"
    assert not env.stuck() and abs(env.where()[2] - 0.022) < 0.01


def test_success_is_what_holds_now(env: ResetFreeEnv) -> None:
    """The suite remembers that a goal was reached; whoever is judged by pictures must not be helped by that."""
    for each, remembers in ((env, False), (TabletopPosesEnv(), True)):
        each.reset("goal_push", 65, 0)
        assert attempt(each, TabletopExpert(each.spec))[0]
        stage = each.stage()
        start = stage.model.joint("red_cube_joint0").qposadr[0]
        stage.data.qpos[start] -= 0.15
        step = each.step(np.array([0, 0, 1, 0, 0, 0, 1], np.float32))
        assert step.success == remembers
    assert not env.holds("goal_push")


def test_what_follows_a_reset_is_a_function_of_what_is_done(env: ResetFreeEnv) -> None:
    """Whatever was done before it."""
    ends = []
    for past in (0, 30):
        again = ResetFreeEnv(reset_every=10_000)
        again.go_on("goal_place", 70)
        for action_A in again.spec.random_chunk(np.random.default_rng(past), past).actions_HA:
            again.step(action_A)
        again.reset("goal_push", 66, 0)
        for action_A in again.spec.random_chunk(np.random.default_rng(1), 20).actions_HA:
            again.step(action_A)
        again.go_on("goal_place", 67)
        ends.append(physics(again))
    np.testing.assert_array_equal(*ends)


def test_pairs_that_do_not_undo_each_other_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="goal_push"):
        ResetFreeEnv(pair=("goal_pusch", "goal_place"))
    for pair in (("goal_push", "object_can"), ("goal_push",), ("goal_push", "goal_push")):
        with pytest.raises(GrasplineError, match="two tasks that move one thing"):
            ResetFreeEnv(pair=pair)
    with pytest.raises(UnknownNameError, match="object_can"):
        ResetFreeEnv().reset("object_can", 0, 0)
