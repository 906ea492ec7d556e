"""Where objects go in LIBERO's tasks, and how they get there."""

import numpy as np

from sim.experts.libero_dishes import GRASPS, MUG_HANDLE, hold_dish
from sim.experts.libero_hand import CLOSE, HOVER, OPEN, Truth, gap, nearest_yaw, toward
from sim.experts.libero_motions import Rest, carry, take_past
from sim.experts.libero_obstacles import Obstacle, kind_of, obstacles
from sim.experts.libero_packages import SHAPES, hold_package, into_basket
from vla.core.se3 import rotate, yaw_of_quat
from vla.core.types import Float

# Below an object's origin down to its lowest point [m]; none for those whose origin is at the bottom.
BELOW = {"moka_pot": 0.066, **{kind: shape.size[2] for kind, shape in SHAPES.items()}}
# Where an origin comes to rest in or on a place, in the frame of that place's object [m], less `BELOW`.
ON = {"plate": (0.0, 0.0, 0.004), "akita_black_bowl": (0.0, 0.0, 0.045)}
IN_REGION = {
    "flat_stove_cook_region": (0.0, 0.0, 0.025),
    "wooden_cabinet_top_side": (0.0, 0.0, 0.0),
    "wooden_cabinet_top_region": (0.0, -0.024, -0.012),
    "white_cabinet_bottom_region": (0.0, -0.028, 0.005),
    "desk_caddy_back_contain_region": (0.0, 0.012, -0.02),
    "wine_rack_top_region": (0.0, -0.008, -0.012),
}
MUG_INSIDE = np.array([-0.037, -0.073, -0.071])  # [m] from the heating region to where a mug is let go
PLATE_FLOOR = 0.016  # [m] from a plate's origin up to the pads' middle, the fingers on the plate
ASIDE = 0.095  # [m] from a drawer's opening to the middle of a dish that was put aside
_STEPS, _ANGLES = np.linspace(0.0, 0.15, 16), np.linspace(0.0, 2 * np.pi, 16, endpoint=False)


def put(truth: Truth, thing: str, place: str, goal: tuple[tuple[str, ...], ...]) -> Float:
    """Takes `thing` to `place`, an object or a region that predicates may name."""
    held = bool(truth[f"grasp_{thing}"])
    if kind_of(thing) == "plate":
        return drag_plate(truth, thing, truth[f"{place}_pos"])
    if place.endswith("_contain_region") and place.startswith("basket"):
        return into_basket(truth, thing, held, 0.035 * _side(thing, place, goal))
    if place.endswith("heating_region"):
        return into_microwave(truth, thing, truth[f"{place}_pos"], held)
    owner = _owner(truth, place)
    rest = _rest(truth, thing, place, owner, goal)
    near = np.linalg.norm(rest.point[:2] - truth[f"{thing}_pos"][:2]) < rest.near
    if held or (near and truth[f"{thing}_pos"][2] < rest.point[2] + 0.008 and gap(truth) < 0.06):
        low = {owner} if owner and kind_of(owner) != "desk_caddy" else set()
        return carry(truth, thing, rest, low)
    if kind_of(thing) in SHAPES:
        return take_past(truth, thing, hold_package(truth, thing))
    return take_past(truth, thing, hold_dish(truth, thing, GRASPS[kind_of(thing)], rest.point - truth[f"{thing}_pos"]))


def in_the_way(truth: Truth, thing: str, cabinet: str) -> bool:
    """Whether a dish stands where a drawer opens, or too near to be taken beside the open drawer."""
    return bool(_from_opening(truth, cabinet, truth[f"{thing}_pos"][None, :2])[0] < ASIDE - 0.02)


def put_aside(truth: Truth, thing: str, cabinet: str) -> Float:
    """Sets a dish down at the nearest free place on the ground away from a drawer's opening."""
    if not truth[f"grasp_{thing}"]:
        return take_past(truth, thing, hold_dish(truth, thing, GRASPS[kind_of(thing)], np.zeros(3)))
    around_N2 = np.stack([r * np.array([np.cos(a), np.sin(a)]) for r in _STEPS for a in _ANGLES])
    places_N2 = truth[f"{thing}_pos"][:2] + around_N2
    cost_N = np.linalg.norm(around_N2, axis=1)
    cost_N += 20.0 * np.maximum(0.0, ASIDE - _from_opening(truth, cabinet, places_N2))
    for obstacle in obstacles(truth, {thing, cabinet}):
        cost_N += 20.0 * np.maximum(0.0, 0.06 - obstacle.distance(places_N2))
    rest = Rest(point=np.array([*places_N2[int(np.argmin(cost_N))], 0.002]), near=0.008)
    return carry(truth, thing, rest, set())


def _from_opening(truth: Truth, cabinet: str, points_N2: np.ndarray) -> np.ndarray:
    """From points (N, 2) to what a drawer and its handle cover when it is open [m]."""
    yaw = yaw_of_quat(truth[f"{cabinet}_quat"])
    outward = np.array([np.sin(yaw), -np.cos(yaw)])
    parts = [
        Obstacle(
            name=cabinet, centre=truth[f"{cabinet}_pos"][:2] + out * outward, yaw=yaw, half=half, radius=0.0, top=0.0
        )
        for out, half in ((0.11, np.array([0.11, 0.11])), (0.235, np.array([0.044, 0.02])))
    ]
    return np.min([part.distance(points_N2) for part in parts], axis=0)


def _owner(truth: Truth, place: str) -> str | None:
    """The object that a place is or belongs to; None for regions of the ground."""
    owners = [key.removesuffix("_quat") for key in truth if key.endswith("_quat") and key != "eef_quat"]
    return next((owner for owner in owners if place.startswith(owner)), None)


def _rest(truth: Truth, thing: str, place: str, owner: str | None, goal: tuple[tuple[str, ...], ...]) -> Rest:
    below = BELOW.get(kind_of(thing), 0.0)
    if owner is None:
        point = np.array([*truth[f"{place}_pos"][:2], below + 0.002])
        return Rest(point=point, near=0.02, below=below)
    offset = ON[kind_of(place)] if owner == place else IN_REGION[kind_of(owner) + place.removeprefix(owner)]
    aside = 0.055 * _side(thing, place, goal)
    shift = rotate(truth[f"{owner}_quat"], np.array([offset[0] + aside, offset[1], 0.0]))
    point = truth[f"{place}_pos"] + shift + [0.0, 0.0, offset[2] + below]
    yaw = None
    if kind_of(thing) == "black_book":
        axis = rotate(truth[f"{owner}_quat"], np.array([1.0, 0.0, 0.0]))
        yaw = nearest_yaw(np.arctan2(axis[1], axis[0]) - np.pi / 2, truth)
    return Rest(point=point, near=0.012, below=below, yaw=yaw)


def _side(thing: str, place: str, goal: tuple[tuple[str, ...], ...]) -> int:
    """Of two things for the same place, one goes to side -1 and one to side 1; a single one to 0."""
    sharing = [names[1] for names in goal if names[0] in ("on", "in") and names[2] == place]
    return 2 * sharing.index(thing) - 1 if len(sharing) > 1 else 0


def drag_plate(truth: Truth, plate: str, goal: np.ndarray) -> Float:
    """Closed fingers into the plate, against the inside of its rim, and on towards a place on the ground (3,)."""
    eef, place = truth["eef_pos"], truth[f"{plate}_pos"]
    way = goal[:2] - place[:2]
    way = way / max(float(np.linalg.norm(way)), 1e-6)
    low = place[2] + PLATE_FLOOR
    off = float(np.linalg.norm(eef[:2] - place[:2]))
    closed = gap(truth) < 0.02
    if closed and off < 0.06 and eef[2] < low + 0.012:
        return toward(truth, np.array([*(goal[:2] + 0.05 * way), low - 0.002]), CLOSE)
    start = place[:2] + 0.02 * way
    away = float(np.linalg.norm(eef[:2] - start))
    hover = min(4.0 * max(0.0, away - 0.01) + (0.0 if closed else 0.04), 2 * HOVER)
    return toward(truth, np.array([*start, low - 0.004 + hover]), CLOSE)


def into_microwave(truth: Truth, mug: str, region: np.ndarray, held: bool) -> Float:
    """By its handle, to the front of the opening, then straight in."""
    thing, eef = truth[f"{mug}_pos"], truth["eef_pos"]
    inside = region + MUG_INSIDE
    if not held:
        return take_past(truth, mug, hold_dish(truth, mug, MUG_HANDLE, np.zeros(3)))
    if np.abs(thing - inside).max() < 0.015 and thing[1] > inside[1] - 0.006:
        return toward(truth, eef, OPEN, _across(truth))
    front = inside - [0.0, 0.13, -0.012]
    ready = abs(thing[0] - inside[0]) < 0.015 and abs(thing[2] - front[2]) < 0.012
    target = inside + [0.0, 0.002, 0.008] if ready or thing[1] > inside[1] - 0.10 else front
    share = float(np.clip(1.0 - (target[2] - thing[2]) / 0.03, 0.0, 1.0))
    target[:2] = thing[:2] + share * (target[:2] - thing[:2])
    return toward(truth, eef + target - thing, CLOSE, _across(truth))


def _across(truth: Truth) -> float:
    return nearest_yaw(np.pi / 2, truth)
