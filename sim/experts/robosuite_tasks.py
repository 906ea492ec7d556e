"""Scripted experts for those of robosuite's tasks that are done by grasping from above: lift, stack, some bins.

A function of the present state alone, no phases: the next action is right for whatever state is there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sim.robosuite_tasks import TASKS, RobosuiteEnv
from vla.core.errors import GrasplineError
from vla.core.se3 import rotate, wrap_angle
from vla.core.spec import Embodiment
from vla.core.types import ActionChunk, Float, Observation

GAIN = 2.5 / 0.05  # action per metre of error
TURN_GAIN = 1.5 / 0.5  # action per radian of error
OPEN, CLOSE = -1.0, 1.0
NEAR_M = 0.012  # horizontally: there
CLEAR_M = 0.1  # above whatever stands around, on the way


@dataclass(frozen=True)
class _Move:
    """What is grasped, how far above its middle, and where it goes.

    goal      name of the thing whose place it is; None: straight up
    height_m  of the object's middle over the goal's when it is let go
    near_m    how far off, horizontally, it may be let go
    """

    thing: str
    grasp_m: float = 0.0
    goal: str | None = None
    height_m: float = 0.0
    near_m: float = NEAR_M


MOVES = {
    "lift": _Move("cube"),
    "stack": _Move("cubeA", goal="cubeB", height_m=0.048),
    "pick_place_milk": _Move("Milk", grasp_m=0.045, goal="VisualMilk", height_m=0.08, near_m=0.05),
    "pick_place_bread": _Move("Bread", goal="VisualBread", height_m=0.08, near_m=0.05),
    "pick_place_can": _Move("Can", grasp_m=0.02, goal="VisualCan", height_m=0.08, near_m=0.05),
}


class RobosuiteExpert:
    """Implements `vla.core.protocols.Policy` on privileged state. Horizon 1, no cameras."""

    cameras: tuple[str, ...] = ()
    horizon = 1

    def __init__(self, spec: Embodiment) -> None:
        self.spec = spec
        self._moves = {TASKS[task].instruction: move for task, move in MOVES.items()}

    def act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[ActionChunk]:
        """One action each. Raises GrasplineError for a task that has no expert."""
        return [
            ActionChunk(actions_HA=self._action(o)[None], start_s=o.time_s, dt_s=self.spec.dt_s) for o in observations
        ]

    def _action(self, observation: Observation) -> Float:
        move = self._moves.get(observation.instruction)
        if move is None:
            raise GrasplineError(f"no expert for '{observation.instruction}'. Tasks with one: {', '.join(MOVES)}")
        target, gripper = _next(observation.privileged, move)
        action_A = np.zeros(self.spec.action_dim, np.float32)
        action_A[:3] = GAIN * (target - observation.privileged["eef_pos"])
        action_A[5] = TURN_GAIN * _turn(observation.privileged, move)
        action_A[-1] = gripper
        return self.spec.clip(action_A)


def expert(env: RobosuiteEnv) -> RobosuiteExpert:
    """The expert for an environment of this suite."""
    return RobosuiteExpert(env.spec)


def _next(truth: Mapping[str, np.ndarray], move: _Move) -> tuple[np.ndarray, float]:
    """Where the hand should be [m], and the gripper's command."""
    hand, thing = truth["eef_pos"], truth[f"{move.thing}_pos"]
    grip = thing + [0.0, 0.0, move.grasp_m]
    held = bool(truth[f"grasp_{move.thing}"])
    if move.goal is None:
        return (grip + [0.0, 0.0, CLEAR_M], CLOSE) if held else _reach(hand, grip)
    goal = truth[f"{move.goal}_pos"] + [0.0, 0.0, move.height_m]
    arrived = np.hypot(*(goal - thing)[:2]) < move.near_m
    if arrived and thing[2] - goal[2] < 0.004:
        return (goal + (hand - thing) if held else hand + [0.0, 0.0, 0.05]), OPEN
    if not held:
        return _reach(hand, grip)
    return _over(hand, goal + (hand - thing), arrived), CLOSE


def _turn(truth: Mapping[str, np.ndarray], move: _Move) -> float:
    """Yaw [rad] by which the fingers miss the nearest side of the thing, whose outline is a square; 0 once held."""
    if truth[f"grasp_{move.thing}"]:
        return 0.0
    ahead = np.array([1.0, 0.0, 0.0])
    thing, hand = rotate(truth[f"{move.thing}_quat"], ahead), rotate(truth["eef_quat"], ahead)
    error = np.arctan2(thing[1], thing[0]) - np.arctan2(hand[1], hand[0])
    return float(wrap_angle(4 * error)) / 4


def _reach(hand: np.ndarray, grip: np.ndarray) -> tuple[np.ndarray, float]:
    """Over the thing, down to it, and close."""
    above = np.hypot(*(grip - hand)[:2]) < NEAR_M
    there = above and abs(grip[2] - hand[2]) < 0.01
    return _over(hand, grip, above), CLOSE if there else OPEN


def _over(hand: np.ndarray, goal: np.ndarray, above: bool) -> np.ndarray:
    """The way to `goal` in an arch: up where the hand is, across, and down when `above` it."""
    if above:
        return goal
    high = goal[2] + CLEAR_M
    if hand[2] < high - 0.03:
        return np.array([*hand[:2], high])
    return np.array([*goal[:2], high])
