"""What a perturbation sees of a suite in MuJoCo: the model, where things lie, what may be moved, and how to undo it.

A suite offers it by having `place`, `settle` (the two halves of its `reset`) and `stage`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import mujoco
import numpy as np

from vla.core.protocols import Env


@dataclass(frozen=True, kw_only=True, eq=False)
class Stage:
    """A running episode's physics and pictures.

    model, data  the physics
    pictures     () -> the model that is drawn (it may be `model`) and its renderer, which is made when first asked for
    cameras      {camera: MuJoCo's name of it}
    movable      {object: body} of what lies loose
    fixtures     {fixture: body} of what is screwed to the table
    targets      objects that the task's goal is about;  containers  objects and fixtures that something is brought to
    arm          (7,) addresses of the arm's joints in qpos;  base_xy  (2,) [m] where the robot stands
    hand         site between the fingers
    """

    model: mujoco.MjModel
    data: mujoco.MjData
    pictures: Callable[[], tuple[mujoco.MjModel, mujoco.Renderer]]
    cameras: Mapping[str, str]
    movable: Mapping[str, int]
    fixtures: Mapping[str, int]
    targets: tuple[str, ...]
    containers: tuple[str, ...]
    arm: np.ndarray
    base_xy: np.ndarray
    hand: int

    def still(self) -> mujoco.MjData:
        """A copy of `data` with poses and contacts computed; computing them in place could change what follows."""
        copy = mujoco.MjData(self.model)
        copy.qpos[:], copy.mocap_pos[:], copy.mocap_quat[:] = self.data.qpos, self.data.mocap_pos, self.data.mocap_quat
        mujoco.mj_forward(self.model, copy)
        return copy

    def poses(self) -> dict[str, np.ndarray]:
        """Position [m] and orientation (w first) of each loose object, as writable views (7,) of qpos."""
        starts = {name: self.model.jnt_qposadr[self.model.body_jntadr[body]] for name, body in self.movable.items()}
        return {name: self.data.qpos[start : start + 7] for name, start in starts.items()}


class SceneEnv(Env, Protocol):
    """An Env in MuJoCo that shows its scene."""

    def stage(self) -> Stage: ...


@runtime_checkable
class StagedEnv(SceneEnv, Protocol):
    """An Env in MuJoCo whose episodes can be changed before they begin."""

    def place(self, task: str, init_state: int, seed: int) -> None:
        """The first half of `reset`: everything where it starts, nothing has come to rest."""
        ...

    def settle(self) -> None:
        """The second half of `reset`; what was written to `stage().data.qpos` in between is part of the start."""
        ...


class Changes:
    """Writes to models, and takes all of it back."""

    def __init__(self) -> None:
        self._kept: list[tuple[np.ndarray, np.ndarray]] = []
        self._undo: list[Callable[[], None]] = []

    def of(self, view: np.ndarray) -> np.ndarray:
        """The same view of a model's field, of which a copy is kept from now on."""
        self._kept.append((view, view.copy()))
        return view

    def texture(self, model: mujoco.MjModel, renderer: mujoco.Renderer, texture: int) -> np.ndarray:
        """The pixels (h, w, channels) uint8 of a texture; call `upload` when they are written."""
        height, width = int(model.tex_height[texture]), int(model.tex_width[texture])
        channels, start = int(model.tex_nchannel[texture]), int(model.tex_adr[texture])
        pixels = model.tex_data[start : start + height * width * channels]
        self._undo.append(lambda: upload(model, renderer, texture))
        return self.of(pixels).reshape(height, width, channels)

    def decorate(self, renderer: mujoco.Renderer, geoms: list[dict[str, Any]]) -> None:
        """Draws further shapes, each the keywords of `mujoco.mjv_initGeom`; physics knows nothing of them."""

        def update_scene(*arguments: Any, **keywords: Any) -> None:
            type(renderer).update_scene(renderer, *arguments, **keywords)
            scene = renderer.scene
            for geom in geoms:
                mujoco.mjv_initGeom(scene.geoms[scene.ngeom], **geom)
                scene.ngeom += 1

        renderer.update_scene = update_scene
        self._undo.append(lambda: delattr(renderer, "update_scene"))

    def undo(self) -> None:
        """Puts everything back, last change first."""
        for view, before in reversed(self._kept):
            view[...] = before
        for action in reversed(self._undo):
            action()
        self.forget()

    def forget(self) -> None:
        """Takes nothing back: the models are gone."""
        self._kept, self._undo = [], []


def upload(model: mujoco.MjModel, renderer: mujoco.Renderer, texture: int) -> None:
    """Sends a texture's pixels to the renderer, which has a copy of its own; leaves one that is closed alone."""
    if renderer._mjr_context is None:
        return
    if renderer._gl_context is not None:
        renderer._gl_context.make_current()
    mujoco.mjr_uploadTexture(model, renderer._mjr_context, texture)


def bodies_under(model: mujoco.MjModel, root: int) -> list[int]:
    """A body and everything that hangs on it."""
    under = [root]
    for body in range(root + 1, model.nbody):
        if int(model.body_parentid[body]) in under:
            under.append(body)
    return under


def boxes(model: mujoco.MjModel, data: mujoco.MjData, root: int, *, seen: bool = False) -> np.ndarray:
    """World boxes (N, 2, 3) [m], low and high corners, of the geoms of a body and what hangs on it.

    Only of those that collide, unless `seen`.
    """
    bodies = bodies_under(model, root)
    found = []
    for geom in np.flatnonzero(np.isin(model.geom_bodyid, bodies)):
        if seen or model.geom_contype[geom] or model.geom_conaffinity[geom]:
            rotation = data.geom_xmat[geom].reshape(3, 3)
            centre = data.geom_xpos[geom] + rotation @ model.geom_aabb[geom, :3]
            half = np.abs(rotation) @ model.geom_aabb[geom, 3:]
            found.append((centre - half, centre + half))
    return np.array(found).reshape(-1, 2, 3)
