"""Pixels on a CPU: software rendering costs vertices and passes, hardly pixels.

`Look.FAST` drops reflections, shadows and multisampling and draws decimated meshes (a factor of ten on robosuite's
Panda); `Look.ORIGINAL` draws what robosuite draws. Decimated meshes are made on first use in a cache folder. Collision
geometry is never touched, so physics does not depend on the look.
"""

import hashlib
import os
import xml.etree.ElementTree as ET
from enum import StrEnum
from pathlib import Path

import fast_simplification
import mujoco
import numpy as np

from vla.core.errors import MissingAssetError

MAX_FACES = 300  # per mesh; at 128 px the eye sees no difference
GL_HINT = "apt-get install -y libegl1 libgl1 libgles2 (and set MUJOCO_GL=egl)"


class Look(StrEnum):
    """How a scene is drawn."""

    FAST = "fast"
    ORIGINAL = "original"


class Renderer:
    """Draws named cameras of one model at one size."""

    def __init__(self, model: mujoco.MjModel, *, height: int, width: int, look: Look) -> None:
        if look is Look.FAST:
            model.vis.quality.offsamples = 0
        model.vis.global_.offheight = max(model.vis.global_.offheight, height)
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, width)
        try:
            self._renderer = mujoco.Renderer(model, height, width)
        except (RuntimeError, AttributeError, ImportError, mujoco.FatalError) as error:
            raise MissingAssetError(f"no OpenGL back end renders here ({error}). Install one: {GL_HINT}") from error
        self._options = mujoco.MjvOption()
        self._options.geomgroup[:] = 0
        self._options.geomgroup[1] = 1  # robosuite: group 0 collides, group 1 is seen
        self._options.sitegroup[:] = 0
        if look is Look.FAST:
            for flag in (mujoco.mjtRndFlag.mjRND_REFLECTION, mujoco.mjtRndFlag.mjRND_SHADOW):
                self._renderer.scene.flags[flag] = False

    def draw(self, data: mujoco.MjData, camera: str) -> np.ndarray:
        """One camera's picture (h, w, 3) uint8, upright."""
        self._renderer.update_scene(data, camera, self._options)
        return self._renderer.render().copy()

    def close(self) -> None:
        self._renderer.close()


def cache_folder() -> Path:
    """Where files that can be made again are kept: `$GRASPLINE_CACHE`, else `~/.cache/graspline`."""
    return Path(os.environ.get("GRASPLINE_CACHE", Path.home() / ".cache" / "graspline"))


def fast_meshes(xml: str, max_faces: int = MAX_FACES) -> str:
    """The MJCF `xml` with every mesh that only the eye sees replaced by a decimated copy.

    Args:
        xml: complete MJCF with absolute mesh paths, as robosuite writes it.
        max_faces: meshes with fewer are left alone.
    """
    root = ET.fromstring(xml)
    colliding = {geom.get("mesh") for geom in root.iter("geom") if geom.get("mesh") and geom.get("contype", "1") != "0"}
    wanted = [mesh for mesh in root.iter("mesh") if mesh.get("name") not in colliding and mesh.get("file")]
    for mesh in wanted:
        mesh.set("file", str(_decimated(Path(mesh.attrib["file"]), max_faces)))
    return ET.tostring(root, encoding="unicode")


def _decimated(source: Path, max_faces: int) -> Path:
    """A cached copy of `source` with at most `max_faces` faces."""
    key = hashlib.sha256(source.read_bytes()).hexdigest()[:16]
    path = cache_folder() / "meshes" / f"{source.stem}-{max_faces}-{key}.obj"
    if not path.exists():
        vertices, faces = _load(source)
        if len(faces) > max_faces:
            vertices, faces = fast_simplification.simplify(vertices, faces, target_count=max_faces)[:2]
        _write_obj(path, vertices, faces)
    return path


def _load(source: Path) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (V, 3) and faces (F, 3) of any mesh that MuJoCo reads, in the file's own frame."""
    spec = mujoco.MjSpec()
    spec.add_mesh(name="m", file=str(source), inertia=mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL)
    spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_MESH, meshname="m")
    model = spec.compile()
    rotation = np.zeros(9)
    mujoco.mju_quat2Mat(rotation, model.mesh_quat[0])  # undo the compiler's move into the inertial frame
    vertices = model.mesh_vert @ rotation.reshape(3, 3).T + model.mesh_pos[0]
    return _weld(vertices.astype(np.float32), model.mesh_face.astype(np.int32))


def _weld(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Joins vertices at the same place: without it decimation tears a mesh apart along its texture seams."""
    unique, inverse = np.unique(np.round(vertices, 6), axis=0, return_inverse=True)
    faces = inverse.ravel()[faces]
    degenerate = (faces[:, 0] == faces[:, 1]) | (faces[:, 1] == faces[:, 2]) | (faces[:, 0] == faces[:, 2])
    return unique.astype(np.float32), faces[~degenerate].astype(np.int32)


def _write_obj(path: Path, vertices: np.ndarray, faces: np.ndarray) -> None:
    lines = [f"v {x:.6f} {y:.6f} {z:.6f}" for x, y, z in vertices]
    lines += [f"f {a + 1} {b + 1} {c + 1}" for a, b, c in faces]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text("\n".join(lines) + "\n")
    temporary.replace(path)
