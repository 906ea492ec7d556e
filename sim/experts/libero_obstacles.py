"""What stands in LIBERO's scenes, as boxes with rounded corners seen from above: for finding room and clear heights."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from sim.experts.libero_hand import HAND, SPARE, Truth
from vla.core.se3 import yaw_of_quat


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Part of an object in its own frame: `centre` and `half` extents (2,) [m] before rounding, `top` above its origin.

    `slide` names the joint that moves this part along the object's y axis, `hinge` the one that turns it about `pivot`.
    """

    top: float
    radius: float = 0.0
    half: tuple[float, float] = (0.0, 0.0)
    centre: tuple[float, float] = (0.0, 0.0)
    slide: str | None = None
    hinge: str | None = None
    pivot: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class Obstacle:
    """A part of an object where it is now."""

    name: str
    centre: np.ndarray
    yaw: float
    half: np.ndarray
    radius: float
    top: float

    def distance(self, points_N2: np.ndarray) -> np.ndarray:
        """From points (N, 2) to this part [m], negative inside."""
        c, s = np.cos(self.yaw), np.sin(self.yaw)
        outside_N2 = np.abs((points_N2 - self.centre) @ np.array([[c, -s], [s, c]])) - self.half
        inside_N = np.minimum(outside_N2.max(axis=1), 0.0)
        return np.linalg.norm(np.maximum(outside_N2, 0.0), axis=1) + inside_N - self.radius


_HEIGHTS = {"top": 0.184, "middle": 0.110, "bottom": 0.041}  # of the handles of a cabinet's drawers
_CABINET = (
    Footprint(centre=(0.004, 0.016), half=(0.127, 0.096), top=0.223),
    *(
        Footprint(centre=centre, half=half, top=height + 0.034, slide=f"{level}_level")
        for level, height in _HEIGHTS.items()
        for centre, half in (
            ((0.003, -0.072), (0.11, 0.006)),
            ((-0.104, 0.006), (0.003, 0.084)),
            ((0.11, 0.006), (0.003, 0.084)),
        )
    ),
    *(
        Footprint(centre=(-0.003, -0.102), half=(0.044, 0.008), top=height + 0.008, slide=f"{level}_level")
        for level, height in _HEIGHTS.items()
    ),
)
FOOTPRINTS: dict[str, tuple[Footprint, ...]] = {
    "akita_black_bowl": (Footprint(radius=0.053, top=0.052),),
    "plate": (Footprint(radius=0.070, top=0.016),),
    "glazed_rim_porcelain_ramekin": (Footprint(radius=0.045, top=0.043),),
    "cookies": (Footprint(half=(0.031, 0.041), top=0.009),),
    "cream_cheese": (Footprint(half=(0.041, 0.021), top=0.009),),
    "chocolate_pudding": (Footprint(half=(0.041, 0.023), top=0.014),),
    "wine_bottle": (Footprint(radius=0.022, top=0.158),),
    "moka_pot": (Footprint(half=(0.0, 0.035), centre=(0.0, 0.022), radius=0.038, top=0.086),),
    "porcelain_mug": (Footprint(centre=(0.0, 0.0), half=(0.015, 0.0), radius=0.050, top=0.108),),
    "white_yellow_mug": (Footprint(centre=(0.0, 0.0), half=(0.015, 0.0), radius=0.054, top=0.103),),
    "red_coffee_mug": (Footprint(centre=(0.0, 0.0), half=(0.015, 0.0), radius=0.048, top=0.131),),
    "chefmate_8_frypan": (Footprint(radius=0.102, top=0.059),),
    "black_book": (Footprint(centre=(0.0, -0.012), half=(0.014, 0.055), top=0.137),),
    "desk_caddy": (Footprint(half=(0.076, 0.217), top=0.168),),
    "basket": (Footprint(radius=0.08, top=0.146),),
    "flat_stove": (
        Footprint(centre=(0.15, 0.0), half=(0.095, 0.095), top=0.026),
        Footprint(centre=(-0.005, 0.0), radius=0.05, top=0.05),
    ),
    "wooden_cabinet": _CABINET,
    "white_cabinet": _CABINET,
    "wine_rack": (Footprint(half=(0.134, 0.127), top=0.328),),
    "microwave": (
        Footprint(centre=(0.0, 0.012), half=(0.173, 0.1), top=0.19),
        Footprint(centre=(-0.044, -0.112), half=(0.13, 0.03), top=0.19, hinge="microjoint", pivot=(-0.173, -0.088)),
    ),
}


def kind_of(name: str) -> str:
    """LIBERO numbers its objects: plate_2 is a plate."""
    return name.rpartition("_")[0]


def obstacles(truth: Truth, ignored: Collection[str]) -> list[Obstacle]:
    """Everything that stands in the scene but the objects `ignored` by name."""
    found = []
    for key in truth:
        name = key.removesuffix("_quat")
        if name == key or kind_of(name) not in FOOTPRINTS or name in ignored:
            continue
        place = truth[f"{name}_pos"]
        for part in FOOTPRINTS[kind_of(name)]:
            yaw = yaw_of_quat(truth[key])
            centre = place[:2] + _turned(part.pivot, yaw)
            if part.hinge:
                yaw += float(truth[f"{name}_{part.hinge}"])
            slide = float(truth[f"{name}_{part.slide}"]) if part.slide else 0.0
            centre = centre + _turned((part.centre[0] - part.pivot[0], part.centre[1] - part.pivot[1] + slide), yaw)
            found.append(
                Obstacle(
                    name=name,
                    centre=centre,
                    yaw=yaw,
                    half=np.array(part.half),
                    radius=part.radius,
                    top=float(place[2]) + part.top,
                )
            )
    return found


def _turned(vector: tuple[float, float], yaw: float) -> np.ndarray:
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([c * vector[0] - s * vector[1], s * vector[0] + c * vector[1]])


def clear_height(present: list[Obstacle], start: np.ndarray, end: np.ndarray, margin: float) -> float:
    """The highest top within `margin` [m] of the way from `start` to `end` (2,); 0 if the way is clear."""
    way_N2 = start + np.linspace(0.0, 1.0, 9)[:, None] * (end - start)
    return max((o.top for o in present if o.distance(way_N2).min() < margin), default=0.0)


_GRID_N2 = np.array([[i, j] for i in np.linspace(-1, 1, 5) for j in np.linspace(-1, 1, 9)]) * HAND


def hand_outline(xy: np.ndarray, yaw: float) -> np.ndarray:
    """Points (N, 2) all over the hand seen from above, turned by `yaw` [rad]; dense enough to feel a thin wall."""
    c, s = np.cos(yaw), np.sin(yaw)
    return xy + _GRID_N2 @ np.array([[c, s], [-s, c]])


def crowding(present: list[Obstacle], points_BN2: np.ndarray, height: float, room: float = SPARE) -> np.ndarray:
    """How much of the `room` [m] is lacking around points (B, N, 2), summed over what is taller than `height` [m]."""
    lacking_B = np.zeros(len(points_BN2))
    for obstacle in present:
        if obstacle.top > height:
            away_BN = obstacle.distance(points_BN2.reshape(-1, 2)).reshape(points_BN2.shape[:2])
            lacking_B += np.maximum(0.0, room - away_BN.min(axis=1))
    return lacking_B
