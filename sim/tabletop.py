"""The built-in suite: twenty language-conditioned tabletop tasks for a Panda with OSC_POSE control at 20 Hz.

Physics is MuJoCo on robosuite's models; tasks and goals are data in `tabletop_tasks.py`. Initial states are numbered:
0-49 are the suite's fixed ones, of which 0-29 may be trained on and 30-49 are held out; numbers from 50 on are further
placements for training. Everything in an episode follows from (task, initial state, actions); nothing is drawn later.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from functools import cache

import mujoco
import numpy as np

from sim.osc import OperationalSpaceController
from sim.perturb_stage import Stage
from sim.render import Look, Renderer, fast_meshes
from sim.tabletop_scene import FIXTURES, build_xml, sample_layout
from sim.tabletop_tasks import TASKS, On, State, TabletopTask, Thing
from vla.core.errors import unknown_name
from vla.core.protocols import Task
from vla.core.se3 import axis_angle_of_quat
from vla.core.spec import Axis, Camera, Embodiment
from vla.core.types import Observation, Step

NUM_INIT_STATES, NUM_TRAIN_STATES, NUM_EXTRA_STATES = 50, 30, 1_000_000
CONTROL_HZ, PHYSICS_STEPS = 20.0, 25  # 2 ms each
SETTLE_STEPS = 5  # control steps of standing still in which things come to rest
GRIPPER_SPEED = 0.01  # share of the stroke per physics step, as robosuite's PandaGripper
POSTURE = (0.0, np.pi / 16, 0.0, -np.pi * 5 / 6, 0.0, np.pi - 0.2, np.pi / 4)  # [rad] robosuite's first posture
HAND_DOWN = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])  # the grip site when it points down
JOINTS = [f"robot0_joint{i}" for i in range(1, 8)]
FINGERS = ["gripper0_finger_joint1", "gripper0_finger_joint2"]
CAMERAS = {"agentview": "agentview", "wrist": "robot0_eye_in_hand"}


def panda_spec(name: str, image_size: int) -> Embodiment:
    """A Panda under OSC_POSE: LIBERO's dimensions of state and action.

    One difference: the hand's rotation vector (eef_rx..z) is counted from the hand pointing straight down, where
    LIBERO's is counted from the world's axes and so lies on the sphere of radius pi, where it jumps.
    """
    pose = [Axis(name=f"eef_{a}", unit="m") for a in "xyz"] + [Axis(name=f"eef_r{a}", unit="rad") for a in "xyz"]
    fingers = [Axis(name="finger_left", unit="m"), Axis(name="finger_right", unit="m")]
    deltas = [Axis(name=f"d{a}", unit="0.05 m", low=-1, high=1) for a in "xyz"]
    turns = [Axis(name=f"dr{a}", unit="0.5 rad", low=-1, high=1) for a in "xyz"]
    gripper = Axis(name="gripper_close", unit="1", low=-1, high=1, binary=True)
    cameras = tuple(Camera(name=camera, height=image_size, width=image_size) for camera in CAMERAS)
    return Embodiment(
        name=name,
        state=(*pose, *fingers),
        action=(*deltas, *turns, gripper),
        cameras=cameras,
        control_hz=CONTROL_HZ,
    )


@cache
def _compiled(things: tuple[Thing, ...], look: Look) -> mujoco.MjModel:
    xml = build_xml(things)
    return mujoco.MjModel.from_xml_string(fast_meshes(xml) if look is Look.FAST else xml)


class TabletopEnv:
    """Implements `vla.core.protocols.Env`."""

    def __init__(
        self,
        *,
        image_size: int = 128,
        look: str = "fast",
        train_states: int = NUM_TRAIN_STATES,
        extra_states: int = NUM_EXTRA_STATES,
    ) -> None:
        """Compiles nothing yet.

        Args:
            image_size: side of the pictures [px].
            look: "fast" or "full" (see sim/render.py).
            train_states: how many of the fixed initial states demonstrations may start from; the rest is held out.
            extra_states: further placements for demonstrations. 0: only those few, to see what coverage is worth.
        """
        self.spec = panda_spec("tabletop_panda", image_size)
        self.tasks: Mapping[str, Task] = {
            name: Task(
                name=name,
                instruction=task.instruction,
                horizon=task.horizon,
                num_init_states=NUM_INIT_STATES,
                num_train_states=train_states,
                num_extra_states=extra_states,
            )
            for name, task in TASKS.items()
        }
        self._size, self._look = image_size, Look(look)
        self._scene: tuple[Thing, ...] | None = None
        self._renderer: Renderer | None = None

    def reset(self, task: str, init_state: int, seed: int) -> None:
        """Starts `task` from a numbered initial state. `seed` is unused: the suite has no other randomness."""
        self.place(task, init_state, seed)
        self.settle()

    def place(self, task: str, init_state: int, seed: int) -> None:
        """The first half of `reset`: everything where it starts, nothing has come to rest."""
        if task not in TASKS:
            raise unknown_name("task", task, TASKS)
        if not 0 <= init_state < NUM_INIT_STATES + NUM_EXTRA_STATES:
            raise ValueError(f"init_state {init_state}: expected 0 to {NUM_INIT_STATES + NUM_EXTRA_STATES - 1}")
        self._name, self._task = task, TASKS[task]
        self._load(self._task)
        rng = np.random.default_rng([init_state, *task.encode()])
        mujoco.mj_resetData(self._model, self._data)
        self._lay_out(rng)
        self._data.qpos[self._arm] = np.array(POSTURE) + rng.uniform(-0.03, 0.03, 7)
        self._data.qpos[self._fingers] = [0.04, -0.04]
        self._gripper = -1.0
        self._stage = self._steps = 0

    def settle(self) -> None:
        """The second half of `reset`; positions written to `stage().data` in between are part of the start."""
        mujoco.mj_forward(self._model, self._data)
        self._controller.reset()
        for _ in range(SETTLE_STEPS):
            self._advance(np.zeros(6), -1.0)
        self._data.time = 0.0

    def stage(self) -> Stage:
        """What `sim.perturb` may touch of the running episode."""
        goals = self._task.goals
        return Stage(
            model=self._model,
            data=self._data,
            pictures=lambda: (self._model, self._open_renderer()._renderer),
            cameras=CAMERAS,
            movable={name: body for name, body in self._bodies.items() if name in self._free},
            fixtures={name: body for name, body in self._bodies.items() if name not in self._free},
            targets=tuple(dict.fromkeys(goal.thing for goal in goals if goal.thing in self._free)),
            containers=tuple(goal.support for goal in goals if isinstance(goal, On)),
            arm=self._arm,
            base_xy=self._model.body("robot0_base").pos[:2].copy(),
            hand=self._eef,
        )

    def step(self, action_A: np.ndarray) -> Step:
        action_A = self.spec.clip(action_A)
        self._advance(action_A[:6].astype(np.float64), float(action_A[6]))
        self._steps += 1
        goals = self._task.goals
        if self._stage < len(goals) and goals[self._stage](self._state()):
            self._stage += 1
        success = self._stage == len(goals)
        truncated = not success and self._steps >= self._task.horizon
        return Step(executed_A=action_A, terminated=success, truncated=truncated, success=success)

    def observe(self, cameras: Sequence[str] | None = None) -> Observation:
        names = self.spec.camera_names if cameras is None else tuple(cameras)
        for name in names:
            if name not in CAMERAS:
                raise unknown_name("camera", name, CAMERAS)
        return Observation(
            images={name: self._draw(name) for name in names},
            state_S=np.concatenate([self._eef_pos(), self._eef_rotation(), self._data.qpos[self._fingers]]).astype(
                np.float32
            ),
            instruction=self._task.instruction,
            time_s=float(self._data.time),
            privileged=self._privileged(),
        )

    def snapshot(self) -> bytes:
        physics = np.empty(mujoco.mj_stateSize(self._model, mujoco.mjtState.mjSTATE_INTEGRATION))
        mujoco.mj_getState(self._model, self._data, physics, mujoco.mjtState.mjSTATE_INTEGRATION)
        fixtures = self._model.body_pos[self._fixture_ids].ravel()
        parts = [physics, self._controller.state(), fixtures, [self._gripper]]
        header = {"task": self._name, "stage": self._stage, "steps": self._steps, "sizes": [len(p) for p in parts]}
        return json.dumps(header).encode() + b"\n" + np.concatenate(parts).tobytes()

    def restore(self, snapshot: bytes) -> None:
        line, _, raw = snapshot.partition(b"\n")
        header = json.loads(line)
        self._name, self._task = header["task"], TASKS[header["task"]]
        self._load(self._task)
        sizes = np.cumsum(header["sizes"])[:-1]
        physics, controller, fixtures, gripper = np.split(np.frombuffer(raw), sizes)
        self._model.body_pos[self._fixture_ids] = fixtures.reshape(-1, 3)
        mujoco.mj_setState(self._model, self._data, physics, mujoco.mjtState.mjSTATE_INTEGRATION)
        mujoco.mj_forward(self._model, self._data)
        # forward computes a new warm start; the saved one is what the next step must begin from
        mujoco.mj_setState(self._model, self._data, physics, mujoco.mjtState.mjSTATE_INTEGRATION)
        self._controller.set_state(controller)
        self._gripper, self._stage, self._steps = float(gripper[0]), header["stage"], header["steps"]

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _load(self, task: TabletopTask) -> None:
        """Compiles the scene of a task, unless it is the one at hand."""
        if task.things == self._scene:
            return
        self.close()
        self._scene = task.things
        # A copy, since fixtures are placed by writing to the model, and another env of this process may have it too.
        self._model = model = copy.copy(_compiled(task.things, self._look))
        self._data = mujoco.MjData(model)
        self._arm = np.array([model.joint(name).qposadr[0] for name in JOINTS])
        self._fingers = np.array([model.joint(name).qposadr[0] for name in FINGERS])
        self._finger_actuators = [
            int(np.flatnonzero(model.actuator_trnid[:, 0] == model.joint(name).id)[0]) for name in FINGERS
        ]
        self._controller = OperationalSpaceController(model, self._data, site="gripper0_grip_site", joints=JOINTS)
        self._eef = model.site("gripper0_grip_site").id
        fixtures = [thing for thing in task.things if thing.kind in FIXTURES]
        movable = [thing for thing in task.things if thing.kind not in FIXTURES]
        self._fixture_ids = np.array([model.body(thing.name).id for thing in fixtures])
        self._bodies = {thing.name: model.body(thing.name).id for thing in fixtures}
        self._bodies |= {thing.name: model.body(f"{thing.name}_main").id for thing in movable}
        self._free = {thing.name: model.joint(f"{thing.name}_joint0").qposadr[0] for thing in movable}
        self._slides = {
            name: model.joint(name).qposadr[0]
            for name in ("drawer", "button")
            if mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_JOINT, name) >= 0
        }
        owner = {self._bodies[thing.name]: thing.name for thing in movable}
        self._geom_owner = {
            geom: owner[model.body_rootid[body]]
            for geom, body in enumerate(model.geom_bodyid)
            if model.body_rootid[body] in owner
        }
        self._pads = {model.geom(f"gripper0_finger{i}_pad_collision").id: i for i in (1, 2)}
        self._hand_geoms = {i for i in range(model.ngeom) if (model.geom(i).name or "").startswith("gripper0_")}

    def _lay_out(self, rng: np.random.Generator) -> None:
        for name, (pos, quat) in sample_layout(self._task.things, rng).items():
            if name in self._free:
                start = self._free[name]
                self._data.qpos[start : start + 7] = [*pos, *quat]
            else:
                self._model.body_pos[self._bodies[name]] = pos

    def _advance(self, delta_6: np.ndarray, gripper_close: float) -> None:
        """One control step: a new goal, then `PHYSICS_STEPS` of physics under the controller."""
        model, data = self._model, self._data
        mujoco.mj_step1(
            model, data
        )  # positions and velocities of the present state, for the goal and the first torques
        self._controller.set_goal(delta_6)
        for _ in range(PHYSICS_STEPS):
            data.ctrl[self._controller.actuators] = self._controller.torques()
            self._gripper = float(np.clip(self._gripper + GRIPPER_SPEED * np.sign(gripper_close), -1.0, 1.0))
            opening = 0.02 * (1.0 - self._gripper)  # [m] each finger: 0.04 open, 0 closed
            data.ctrl[self._finger_actuators] = [opening, -opening]
            mujoco.mj_step2(model, data)
            mujoco.mj_step1(model, data)

    def _draw(self, camera: str) -> np.ndarray:
        return self._open_renderer().draw(self._data, CAMERAS[camera])

    def _open_renderer(self) -> Renderer:
        if self._renderer is None:
            self._renderer = Renderer(self._model, height=self._size, width=self._size, look=self._look)
        return self._renderer

    def _eef_pos(self) -> np.ndarray:
        return self._data.site_xpos[self._eef]

    def _eef_rotation(self) -> np.ndarray:
        """Rotation vector (3,) [rad], world frame, from the hand pointing straight down."""
        quat = np.zeros(4)
        mujoco.mju_mat2Quat(quat, (self._data.site_xmat[self._eef].reshape(3, 3) @ HAND_DOWN.T).ravel())
        return axis_angle_of_quat(quat if quat[0] >= 0 else -quat)

    def _touching(self) -> tuple[frozenset[str], frozenset[str]]:
        """Things that any part of the hand touches, and things held between both finger pads."""
        touched: set[str] = set()
        pads: dict[str, set[int]] = {}
        for contact in self._data.contact:
            for hand, other in (contact.geom, contact.geom[::-1]):
                if hand in self._hand_geoms and other in self._geom_owner:
                    name = self._geom_owner[other]
                    touched.add(name)
                    if hand in self._pads:
                        pads.setdefault(name, set()).add(self._pads[hand])
        return frozenset(touched), frozenset(name for name, sides in pads.items() if len(sides) == 2)

    def _slide(self, name: str) -> float:
        return float(self._data.qpos[self._slides[name]]) if name in self._slides else 0.0

    def _state(self) -> State:
        position = {name: self._data.xpos[body] for name, body in self._bodies.items()}
        touched, _ = self._touching()
        return State(position, touched, drawer_m=self._slide("drawer"), button_m=self._slide("button"))

    def _privileged(self) -> dict[str, np.ndarray]:
        """Simulator truth: poses by name, what is held, fixtures' travel [m], the number of goals reached."""
        _, held = self._touching()
        truth: dict[str, np.ndarray] = {
            "eef_pos": self._eef_pos().copy(),
            "eef_mat": self._data.site_xmat[self._eef].reshape(3, 3).copy(),
            "opening": np.array(self._data.qpos[self._fingers[0]] - self._data.qpos[self._fingers[1]]),
            "drawer_m": np.array(self._slide("drawer")),
            "button_m": np.array(self._slide("button")),
            "stage": np.array(self._stage),
        }
        for name, body in self._bodies.items():
            truth[f"{name}_pos"] = self._data.xpos[body].copy()
            truth[f"{name}_quat"] = self._data.xquat[body].copy()
            truth[f"{name}_held"] = np.array(name in held)
        return truth
