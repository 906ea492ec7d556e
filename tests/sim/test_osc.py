"""Our controller against robosuite's own, on the same robot in the same states."""

import mujoco
import numpy as np
import pytest
from robosuite.controllers.osc import OperationalSpaceController as RobosuiteController
from robosuite.utils.binding_utils import MjSim

from sim.osc import OperationalSpaceController
from sim.tabletop import JOINTS
from sim.tabletop_scene import build_xml
from sim.tabletop_tasks import TASKS


@pytest.fixture(scope="module")
def xml() -> str:
    return build_xml(TASKS["spatial_left"].things)


@pytest.mark.parametrize("seed", range(8))
def test_torques_equal_robosuites(xml: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    sim = MjSim.from_xml_string(xml)
    model, data = sim.model._model, sim.data._data
    qpos = [model.joint(name).qposadr[0] for name in JOINTS]
    dofs = [model.joint(name).dofadr[0] for name in JOINTS]
    data.qpos[qpos] = np.array([0, 0.2, 0, -2.6, 0, 2.9, 0.8]) + rng.uniform(-0.2, 0.2, 7)
    sim.forward()
    indexes = {"joints": list(range(7)), "qpos": qpos, "qvel": dofs}
    theirs = RobosuiteController(
        sim, "gripper0_grip_site", indexes, (np.full(7, -80.0), np.full(7, 80.0)), kp=150, damping_ratio=1
    )
    theirs.update_initial_joints(data.qpos[qpos].copy())
    ours = OperationalSpaceController(model, data, site="gripper0_grip_site", joints=JOINTS)
    ours.reset()
    for _ in range(3):
        action = rng.uniform(-1, 1, 6) if seed else np.zeros(6)  # seed 0: a zero rotation keeps the old goal
        theirs.set_goal(action)
        ours.set_goal(action)
        for _ in range(5):
            expected = np.clip(theirs.run_controller(), ours._low, ours._high)
            np.testing.assert_allclose(ours.torques(), expected, rtol=1e-5, atol=1e-4)
            data.ctrl[ours.actuators] = expected
            mujoco.mj_step(model, data)
            sim.forward()


def test_state_round_trip(xml: str) -> None:
    model = mujoco.MjModel.from_xml_string(xml)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    controller = OperationalSpaceController(model, data, site="gripper0_grip_site", joints=JOINTS)
    controller.reset()
    saved = controller.state()
    controller.set_goal(np.ones(6))
    assert not np.array_equal(controller.state(), saved)
    controller.set_state(saved)
    np.testing.assert_array_equal(controller.state(), saved)
