"""Where a number comes from: code, versions, machine and renderer.

Special: published LIBERO scores move by points between MuJoCo versions, so no result is without them.
"""

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from vla.core.protocols import Env

PACKAGES = ("graspline", "mujoco", "robosuite", "hf-libero", "torch", "numpy", "lerobot")


def software() -> dict[str, str | bool | None]:
    """Commit, whether the tree has uncommitted changes, versions (None: not installed), Python, MUJOCO_GL, platform."""
    commit = _git("rev-parse", "HEAD")
    return {
        "commit": commit,
        "dirty": None if commit is None else bool(_git("status", "--porcelain", "--untracked-files=no")),
        **{package: _version(package) for package in PACKAGES},
        "python": platform.python_version(),
        "mujoco_gl": os.environ.get("MUJOCO_GL"),
        "platform": platform.platform(),
        "cpus": str(os.cpu_count()),
    }


def hardware() -> dict[str, str | list[str] | None]:
    """Model of the processor (None: not told) and of each NVIDIA GPU: kernels differ in their last bits."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    models = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    gpus = _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    return {"cpu": models[0] if models else platform.processor() or None, "gpus": gpus.splitlines() if gpus else []}


def gl_renderer(env: Env, task: str) -> str | None:
    """The name of the OpenGL renderer that draws `env`; None where it draws without OpenGL.

    Resets the env to `task` and asks the context that the env makes current: another one would take its place.
    """
    env.reset(task, 0, 0)
    env.observe()
    if "OpenGL" not in sys.modules:
        return None
    from OpenGL import GL  # PyOpenGL binds to a back end on import, so only after the env has chosen one

    name = GL.glGetString(GL.GL_RENDERER)
    return name.decode() if name else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """Output of a git command in this repository; None without git, a repository or a commit."""
    return _output("git", "-C", str(Path(__file__).resolve().parent), *arguments)


def _output(*command: str) -> str | None:
    """What a command prints; None where it is not installed or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
