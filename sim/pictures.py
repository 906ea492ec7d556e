"""Pictures of other people's MuJoCo scenes as their authors show them: MuJoCo's default options, markers included."""

import mujoco

from sim.render import GL_HINT
from vla.core.errors import MissingAssetError
from vla.core.types import Image


class Pictures:
    """Draws named cameras of one model at one size. OpenGL starts with the first picture.

    Args:
        shown: what is drawn (geom groups, sites); None: MuJoCo's default options.
    """

    def __init__(
        self, model: mujoco.MjModel, *, height: int, width: int, shown: mujoco.MjvOption | None = None
    ) -> None:
        self._model, self._height, self._width = model, height, width
        self._shown = mujoco.MjvOption() if shown is None else shown
        self._renderer: mujoco.Renderer | None = None

    def draw(self, data: mujoco.MjData, camera: str) -> Image:
        """One camera's picture (h, w, 3) uint8 as MuJoCo draws it. Raises MissingAssetError without OpenGL."""
        if self._renderer is None:
            self._renderer = self._open()
        self._renderer.update_scene(data, camera, self._shown)
        return self._renderer.render().copy()

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _open(self) -> mujoco.Renderer:
        screen = self._model.vis.global_
        screen.offheight = max(screen.offheight, self._height)
        screen.offwidth = max(screen.offwidth, self._width)
        try:
            return mujoco.Renderer(self._model, self._height, self._width)
        except (RuntimeError, AttributeError, ImportError, mujoco.FatalError) as error:
            raise MissingAssetError(f"no OpenGL back end renders here ({error}). Install one: {GL_HINT}") from error
