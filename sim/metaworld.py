"""Meta-World's fifty tasks (Yu et al. 2020, arXiv 1910.10897; version 3) behind our `Env`; the only door to metaworld.

A Sawyer arm of which position and gripper are commanded, at 80 Hz. Initial state n places objects and goal by
Meta-World's own sampler, drawn from (task, n). Cameras are LeRobot's corner view and the wrist; the state is the four
numbers that its datasets hold, and Meta-World's 39 (goal included) are privileged. Success ends an episode.

What is special: Meta-World's environments keep what earlier episodes wrote into them (fixture places, attributes,
views into MuJoCo's memory). Here each starts from what its constructor left, so that earlier episodes do not matter.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sim.pictures import Pictures
from sim.snapshots import pack, read_physics, unpack, write_physics
from vla.core.errors import CorruptFileError, MissingAssetError, unknown_name
from vla.core.protocols import Task
from vla.core.spec import Axis, Camera, Embodiment
from vla.core.types import Image, Observation, Step

INSTALL = "pip install 'graspline[suites]'"
NUM_INIT_STATES = 50
CONTROL_HZ = 80.0
MAX_HORIZON = 500  # as published
CAMERAS = {"corner": "corner2", "wrist": "gripperPOV"}  # our name -> Meta-World's
CORNER_POS_M = (0.75, 0.075, 0.7)  # where LeRobot's datasets have it: nearer than Meta-World's own
INSTRUCTIONS = {
    "assembly-v3": "pick up the nut and place it onto the peg",
    "basketball-v3": "dunk the basketball into the basket",
    "bin-picking-v3": "pick the cube out of one bin and place it into the other",
    "box-close-v3": "grasp the cover and close the box with it",
    "button-press-topdown-v3": "press the button from the top",
    "button-press-topdown-wall-v3": "press the button behind the wall from the top",
    "button-press-v3": "press the button",
    "button-press-wall-v3": "reach around the wall and press the button",
    "coffee-button-v3": "push the button of the coffee machine",
    "coffee-pull-v3": "pull the mug away from the coffee machine",
    "coffee-push-v3": "push the mug under the coffee machine",
    "dial-turn-v3": "turn the dial by 180 degrees",
    "disassemble-v3": "take the nut off the peg",
    "door-close-v3": "close the door",
    "door-lock-v3": "lock the door by turning the lock clockwise",
    "door-open-v3": "open the door",
    "door-unlock-v3": "unlock the door by turning the lock counter-clockwise",
    "hand-insert-v3": "insert the gripper into the hole",
    "drawer-close-v3": "push the drawer closed",
    "drawer-open-v3": "open the drawer",
    "faucet-open-v3": "turn the faucet counter-clockwise",
    "faucet-close-v3": "turn the faucet clockwise",
    "hammer-v3": "hammer the screw into the wall",
    "handle-press-side-v3": "press the handle down from the side",
    "handle-press-v3": "press the handle down",
    "handle-pull-side-v3": "pull the handle up from the side",
    "handle-pull-v3": "pull the handle up",
    "lever-pull-v3": "pull the lever up by 90 degrees",
    "peg-insert-side-v3": "insert the peg into the hole from the side",
    "pick-place-wall-v3": "pick up the puck, carry it over the wall and place it at the goal",
    "pick-out-of-hole-v3": "pick the puck out of the hole",
    "reach-v3": "reach the goal",
    "push-back-v3": "push the puck back to the goal",
    "push-v3": "push the puck to the goal",
    "pick-place-v3": "pick up the puck and place it at the goal",
    "plate-slide-v3": "slide the plate into the cabinet",
    "plate-slide-side-v3": "slide the plate sideways into the cabinet",
    "plate-slide-back-v3": "take the plate out of the cabinet",
    "plate-slide-back-side-v3": "take the plate out of the cabinet sideways",
    "peg-unplug-side-v3": "unplug the peg sideways",
    "soccer-v3": "kick the ball into the goal",
    "stick-push-v3": "grasp the stick and push the box with it",
    "stick-pull-v3": "grasp the stick and pull the box with it",
    "push-wall-v3": "push the puck around the wall to the goal",
    "reach-wall-v3": "reach around the wall to the goal",
    "shelf-place-v3": "pick up the puck and place it onto the shelf",
    "sweep-into-v3": "sweep the puck into the hole",
    "sweep-v3": "sweep the puck off the table",
    "window-open-v3": "push the window open",
    "window-close-v3": "push the window closed",
}
_PLAIN = (bool, int, float, str, np.ndarray, np.generic, type(None), dict, list, tuple)


def sawyer_spec(image_size: int) -> Embodiment:
    """The Sawyer of Meta-World: hand position and gripper opening; a position change and the gripper's effort."""
    opening = Axis(name="gripper_opening", unit="0.1 m", low=0.0, high=1.0)
    moves = tuple(Axis(name=f"d{axis}", unit="0.01 m", low=-1.0, high=1.0) for axis in "xyz")
    return Embodiment(
        name="metaworld_sawyer",
        state=(*(Axis(name=f"hand_{axis}", unit="m") for axis in "xyz"), opening),
        action=(*moves, Axis(name="gripper_close", unit="1", low=-1.0, high=1.0)),
        cameras=tuple(Camera(name=name, height=image_size, width=image_size) for name in CAMERAS),
        control_hz=CONTROL_HZ,
    )


class MetaworldEnv:
    """One Meta-World scene at a time.

    Args:
        image_size: height and width of both cameras [px].
        train_states: how many of the 50 initial states, counted from 0, may be used in training.
        extra_states: further placements for demonstrations, numbered from 50 on.
        horizon: control steps after which an episode is truncated.
    """

    def __init__(
        self,
        *,
        image_size: int = 256,
        train_states: int = 30,
        extra_states: int = 1_000_000,
        horizon: int = MAX_HORIZON,
    ) -> None:
        self._spec = sawyer_spec(image_size)
        self._tasks = {
            name: Task(
                name=name,
                instruction=instruction,
                horizon=horizon,
                num_init_states=NUM_INIT_STATES,
                num_train_states=train_states,
                num_extra_states=extra_states,
            )
            for name, instruction in INSTRUCTIONS.items()
        }
        self._built: str | None = None
        self._scene: Any = None
        self._pictures: Pictures | None = None
        self._start: tuple[str, int] | None = None

    @property
    def spec(self) -> Embodiment:
        return self._spec

    @property
    def tasks(self) -> Mapping[str, Task]:
        return self._tasks

    def reset(self, task: str, init_state: int, seed: int) -> None:
        """Starts an episode; `seed` is unused, as Meta-World draws nothing after the placement.

        Raises:
            UnknownNameError: no such task.
            ValueError: `init_state` out of range.
            MissingAssetError: metaworld is not installed.
        """
        if task not in self._tasks:
            raise unknown_name("task", task, self._tasks)
        last = NUM_INIT_STATES + self._tasks[task].num_extra_states - 1
        if not 0 <= init_state <= last:
            raise ValueError(f"init_state is {init_state}, expected 0 to {last}")
        self._load(task)
        scene = self._scene
        # Placements that its sampler rejects are drawn again, so the first reset finds one and the second, with
        # everything forgotten but the placement, is Meta-World's own for a given one.
        self._forget()
        scene._freeze_rand_vec, scene.seeded_rand_vec = False, True
        scene.np_random = np.random.default_rng([init_state, *task.encode()])
        scene.reset_model()
        placement = scene._last_rand_vec.copy()
        self._forget()
        scene._freeze_rand_vec, scene._last_rand_vec = True, placement
        self._sensed, _ = scene.reset()
        self._start, self._steps, self._success = (task, init_state), 0, False

    def step(self, action_A: np.ndarray) -> Step:
        task = self._running()
        executed_A = self._spec.clip(action_A)
        self._sensed, _, _, _, info = self._scene.step(executed_A)
        self._steps += 1
        self._success = bool(info["success"])
        truncated = not self._success and self._steps >= task.horizon
        return Step(executed_A=executed_A, terminated=self._success, truncated=truncated, success=self._success)

    def observe(self, cameras: Sequence[str] | None = None) -> Observation:
        """The present observation.

        privileged: `state` (39,) float64, what Meta-World's own observation is with the goal shown; `success` () bool.
        """
        task = self._running()
        names = self._spec.camera_names if cameras is None else cameras
        return Observation(
            images={name: self._draw(name) for name in names},
            state_S=self._sensed[:4].astype(np.float32),
            instruction=task.instruction,
            time_s=self._steps / CONTROL_HZ,
            privileged={"state": self._sensed.copy(), "success": np.array(self._success)},
        )

    def snapshot(self) -> bytes:
        self._running()
        scene = self._scene
        numbers = {
            name: np.asarray(value)
            for name, value in vars(scene).items()
            if isinstance(value, bool | int | float | np.ndarray | np.generic) and not self._is_view(value)
        }
        header = {"suite": "metaworld", "start": self._start, "steps": self._steps, "success": self._success}
        arrays = {f"attribute:{name}": value for name, value in numbers.items()}
        return pack(
            header, {"physics": read_physics(scene.model, scene.data), "sensed": np.asarray(self._sensed), **arrays}
        )

    def restore(self, snapshot: bytes) -> None:
        """Goes back to a snapshot, also one that another `MetaworldEnv` took.

        Raises:
            CorruptFileError: damaged, or a snapshot of another suite or of another version of Meta-World.
        """
        header, arrays = unpack(snapshot, "metaworld")
        task, init_state = header["start"]
        if task not in self._tasks or not {"physics", "sensed"} <= arrays.keys():
            raise CorruptFileError(f"snapshot of task '{task}' is not one of Meta-World's or is incomplete")
        if self._start != (task, init_state):
            self.reset(task, init_state, 0)
        scene = self._scene
        for name, value in arrays.items():
            attribute = name.removeprefix("attribute:")
            if attribute != name:
                setattr(scene, attribute, value.copy() if value.ndim else value.item())
        write_physics(scene.model, scene.data, arrays["physics"])
        self._sensed, self._steps, self._success = arrays["sensed"], header["steps"], header["success"]

    def close(self) -> None:
        if self._pictures is not None:
            self._pictures.close()
        self._built = self._scene = self._pictures = self._start = None

    def _running(self) -> Task:
        if self._start is None:
            raise ValueError("no episode is running: call reset first")
        return self._tasks[self._start[0]]

    def _draw(self, camera: str) -> Image:
        if camera not in CAMERAS:
            raise unknown_name("camera", camera, CAMERAS)
        assert self._pictures is not None
        picture = self._pictures.draw(self._scene.data, CAMERAS[camera])
        return np.ascontiguousarray(picture[::-1, ::-1]) if camera == "corner" else picture  # it hangs upside down

    def _load(self, task: str) -> None:
        """Compiles the scene of a task, unless it is the one at hand, and remembers how its constructor left it."""
        if self._built == task:
            return
        self.close()
        scene, self._built = _build(task), task
        scene.model.camera(CAMERAS["corner"]).pos = CORNER_POS_M
        self._scene = scene
        size = self._spec.cameras[0].width
        self._pictures = Pictures(scene.model, height=size, width=size)
        self._fresh = {name: copy.deepcopy(value) for name, value in self._own(scene).items()}
        self._fresh_model = {name: getattr(scene.model, name).copy() for name in ("body_pos", "body_quat", "site_pos")}

    def _forget(self) -> None:
        """The scene as its constructor left it."""
        scene = self._scene
        for name in self._own(scene).keys() - self._fresh.keys():
            delattr(scene, name)
        for name, value in self._fresh.items():
            setattr(scene, name, copy.deepcopy(value))
        for name, value in self._fresh_model.items():
            getattr(scene.model, name)[:] = value

    def _own(self, scene: Any) -> dict[str, Any]:
        """The attributes that hold plain values of their own."""
        return {name: v for name, v in vars(scene).items() if isinstance(v, _PLAIN) and not self._is_view(v)}

    def _is_view(self, value: Any) -> bool:
        """Whether an attribute shows MuJoCo's memory: it then follows the physics by itself."""
        model, data = self._scene.model, self._scene.data
        places = (data.xpos, data.xquat, data.site_xpos, data.geom_xpos, data.qpos, data.mocap_pos)
        places += (model.body_pos, model.site_pos)
        return isinstance(value, np.ndarray) and any(np.may_share_memory(value, place) for place in places)


def scripted_policy(task: str) -> Any:
    """Meta-World's own scripted policy for a task: `get_action(state_39) -> (4,)`. Raises MissingAssetError."""
    try:
        from metaworld.policies import ENV_POLICY_MAP
    except ImportError as error:
        raise MissingAssetError(f"Meta-World is not installed ({error}): {INSTALL}") from error
    return ENV_POLICY_MAP[task]()


def _build(task: str) -> Any:
    """Meta-World's environment of a task with the goal in its observation."""
    try:
        from metaworld.env_dict import ENV_CLS_MAP
    except ImportError as error:
        raise MissingAssetError(f"Meta-World is not installed ({error}): {INSTALL}") from error
    scene: Any = ENV_CLS_MAP[task]()
    scene._partially_observable, scene._set_task_called = False, True
    vars(scene).pop("sawyer_observation_space", None)  # cached for the observation without the goal
    scene.max_path_length = np.iinfo(np.int64).max  # `MetaworldEnv` counts the steps
    return scene
