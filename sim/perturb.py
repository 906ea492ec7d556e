"""One env, perturbed: the same tasks under another camera, light, table, layout, posture, wording or none of these.

Kinds and scales follow LIBERO-Plus (arXiv 2510.13626) where it has them. Special: `severity` in 0..1 is the size of
the change and the row's seed its direction, so success can be drawn against severity; at 0 nothing differs from the
plain env in a single bit. Everything follows from (task, initial state, seed, severity).
"""

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from sim.perturb_placement import Table, disturbed, draw_layout, move
from sim.perturb_scene import DRAWN, move_arm
from sim.perturb_senses import add_noise, blind_language, blind_vision, reword
from sim.perturb_stage import Changes, Stage, StagedEnv
from vla.core.errors import CorruptFileError, GrasplineError, unknown_name
from vla.core.protocols import Env, Task
from vla.core.spec import Embodiment
from vla.core.types import Observation, Step

KINDS = {
    "placement": "objects anywhere on the free table (severity 1: 1 m away at most, turned by up to 45 degrees)",
    "layout": "objects up to 6 cm from where they were, turned by up to 30 degrees",
    "robot": "the arm starts in another posture, 0.35 rad away",
    "camera": "the cameras in the room look from up to 25 degrees aside, 12 degrees higher and 15 % nearer or farther",
    "light": "brightness, colour and direction of the light",
    "texture": "table, floor and walls",
    "distractors": "up to six bright shapes on the table, drawn only",
    "noise": "pixels (sigma 50 of 255) and proprioception (1 cm, 0.05 rad)",
    "instruction": "other words for the same",
    "language_blind": "a control: no instruction; above severity 0.5 another task's",
    "vision_blind": "a control: pictures fade to grey",
}
MOVED = {"placement": (1.0, np.radians(45.0)), "layout": (0.06, np.radians(30.0))}  # [m], [rad] at severity 1
_TRIES = 20


class Perturbed:
    """The env it wraps under one kind of perturbation.

    Args:
        make_env: builds the wrapped env; picklable.
        kind: one of KINDS. Those of scene and start need a suite in MuJoCo, the others work with any env.
        severity: 0 (nothing) to 1.
        seed: another perturbation of the same rows.

    Raises:
        UnknownNameError: no such kind.
        GrasplineError: severity out of range, or the suite cannot be changed so.
    """

    def __init__(self, *, make_env: Callable[[], Env], kind: str, severity: float, seed: int = 0) -> None:
        if kind not in KINDS:
            raise unknown_name("perturbation", kind, KINDS)
        if not 0 <= severity <= 1:
            raise GrasplineError(f"perturbation severity is {severity}, expected 0 to 1")
        self.inner = make_env()
        if kind in (*MOVED, *DRAWN, "robot") and not isinstance(self.inner, StagedEnv):
            free = [name for name in KINDS if name not in (*MOVED, *DRAWN, "robot")]
            raise GrasplineError(
                f"perturbation '{kind}' needs a suite in MuJoCo (tabletop, libero_...); "
                f"{type(self.inner).__name__} has only {', '.join(free)}"
            )
        self.kind, self.severity, self._seed = kind, float(severity), seed
        self._row = ("", 0, 0)
        self._changes = Changes()

    @property
    def spec(self) -> Embodiment:
        return self.inner.spec

    @property
    def tasks(self) -> Mapping[str, Task]:
        return self.inner.tasks

    def reset(self, task: str, init_state: int, seed: int) -> None:
        """Starts an episode of the perturbed task; errors as the wrapped env's.

        Raises:
            GrasplineError: the change does not fit this task, such as no room for objects elsewhere.
        """
        self._changes.undo()
        self._row = (task, init_state, seed)
        if self.severity == 0:
            self.inner.reset(task, init_state, seed)
        elif self.kind in MOVED:
            self._start_elsewhere()
        elif self.kind in DRAWN or self.kind == "robot":
            env = self._staged()
            env.place(*self._row)
            self._change(env.stage())
            env.settle()
        else:
            self.inner.reset(task, init_state, seed)

    def step(self, action_A: np.ndarray) -> Step:
        return self.inner.step(action_A)

    def observe(self, cameras: Sequence[str] | None = None) -> Observation:
        """What the policy senses; `privileged` stays the truth."""
        observation = self.inner.observe(cameras)
        if self.severity == 0:
            return observation
        if self.kind == "noise":
            key = [*self._key(), round(1000 * observation.time_s)]
            return add_noise(observation, self.spec, self.severity, key)
        if self.kind == "vision_blind":
            images = {name: blind_vision(image, self.severity) for name, image in observation.images.items()}
            return replace(observation, images=images)
        if self.kind == "instruction":
            words = reword(observation.instruction, self.severity, self._rng())
            return replace(observation, instruction=words)
        if self.kind == "language_blind":
            others = [task.instruction for task in self.tasks.values()]
            words = blind_language(observation.instruction, others, self.severity, self._rng())
            return replace(observation, instruction=words)
        return observation

    def snapshot(self) -> bytes:
        return json.dumps([self.kind, self.severity, self._seed, *self._row]).encode() + b"\n" + self.inner.snapshot()

    def restore(self, snapshot: bytes) -> None:
        """Goes back to a snapshot of an env perturbed alike. Raises CorruptFileError for another."""
        line, _, inner = snapshot.partition(b"\n")
        try:
            kind, severity, seed, *row = json.loads(line)
            task, init_state, row_seed = row
        except (ValueError, TypeError) as error:
            raise CorruptFileError(f"snapshot: not of a perturbed env ({error})") from error
        if (kind, severity, seed) != (self.kind, self.severity, self._seed):
            raise CorruptFileError(f"snapshot is of {kind} {severity}, this env has {self.kind} {self.severity}")
        if (task, init_state, row_seed) != self._row:
            self._changes.undo()
            self._row = (task, init_state, row_seed)
            if self.severity > 0 and self.kind in DRAWN:
                env = self._staged()
                env.place(*self._row)
                self._change(env.stage())
        self.inner.restore(inner)

    def stage(self) -> Stage:
        """The wrapped env's, of an episode as it runs."""
        return self._staged().stage()

    def close(self) -> None:
        self._changes.forget()
        self._row = ("", 0, 0)
        self.inner.close()

    def _staged(self) -> StagedEnv:
        if not isinstance(self.inner, StagedEnv):
            raise GrasplineError(f"{type(self.inner).__name__} shows no scene")
        return self.inner

    def _key(self) -> list[int]:
        """What every draw is seeded with. Not the severity: it sizes a draw."""
        task, init_state, seed = self._row
        return [zlib.crc32(text.encode()) for text in (self.kind, task)] + [init_state, seed, self._seed]

    def _rng(self) -> np.random.Generator:
        return np.random.default_rng(self._key())

    def _change(self, stage: Stage) -> None:
        if self.kind == "robot":
            move_arm(stage, self.severity, self._rng())
        else:
            DRAWN[self.kind](stage, self.severity, self._rng(), self._changes)

    def _start_elsewhere(self) -> None:
        """Draws layouts until one stays as it was put and does not already solve the task.

        Groups and room are judged at rest, and objects are put down from rest: LIBERO's stored states begin in the air
        or inside the table, and some objects may still fly when the official settling ends.
        """
        env, rng, instruction = self._staged(), self._rng(), self.tasks[self._row[0]].instruction
        reach_m, yaw_rad = MOVED[self.kind]
        env.reset(*self._row)
        at_rest = _come_to_rest(env)
        table = Table(env.stage())
        fallen: list[str] = []
        for _ in range(_TRIES):
            motions = draw_layout(table, self.severity * reach_m, self.severity * yaw_rad, instruction, rng)
            expected = {name: pose.copy() for name, pose in at_rest.items()}
            move(expected, motions)
            env.place(*self._row)
            for name, pose in env.stage().poses().items():
                pose[:] = expected[name]
            env.settle()
            solved = bool(env.observe(()).privileged.get("success", False))
            fallen = disturbed(env.stage().poses(), expected)
            if not fallen and not solved:
                return
        trouble = f"{', '.join(fallen)} fell" if fallen else "each solves the task"
        raise GrasplineError(f"task '{self._row[0]}': none of {_TRIES} layouts will do, {trouble}")


def _come_to_rest(env: StagedEnv) -> dict[str, np.ndarray]:
    """Settles until nothing moves by a millimetre any more, or long enough; poses (7,) by name."""
    poses = {name: pose.copy() for name, pose in env.stage().poses().items()}
    for _ in range(6):
        env.settle()
        before, poses = poses, {name: pose.copy() for name, pose in env.stage().poses().items()}
        if all(np.abs(poses[name] - before[name]).max() < 1e-3 for name in poses):
            break
    return poses
