"""Draws one picture; says in one line what to install when that fails."""

import os
import sys

os.environ.setdefault("MUJOCO_GL", "egl" if sys.platform == "linux" else "glfw")


def main() -> None:
    """Exits with status 1 and one line if no OpenGL back end renders."""
    try:
        import mujoco  # an import of a back end that is missing is what is being checked

        model = mujoco.MjModel.from_xml_string(
            "<mujoco><worldbody><light pos='0 0 3'/><geom size='.1' rgba='1 0 0 1'/></worldbody></mujoco>"
        )
        data = mujoco.MjData(model)
        mujoco.mj_forward(model, data)
        with mujoco.Renderer(model, 32, 32) as renderer:
            renderer.update_scene(data)
            drawn = renderer.render().any()
    except (ImportError, AttributeError, RuntimeError, OSError) as error:
        sys.exit(f"error: MUJOCO_GL={os.environ['MUJOCO_GL']} does not render: {error}")
    if not drawn:
        sys.exit(f"error: MUJOCO_GL={os.environ['MUJOCO_GL']} draws black pictures")


if __name__ == "__main__":
    main()
