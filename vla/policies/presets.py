"""Whole policies by name. A saved policy names one of these; nothing in a file can name other code.

Special: a preset's module is imported when it is asked for. The large ones bring transformers and timm, ten seconds of
processor time that a small policy need not pay.
"""

from collections.abc import Callable
from importlib import import_module

from vla.core.errors import unknown_name
from vla.policies.vla import VLAPolicy

PRESETS = {name: f"vla.policies.{name}" for name in ("openvla_oft", "smol", "tiny")}


def preset(name: str) -> Callable[..., VLAPolicy]:
    """The function that builds a policy: `tiny_policy` of vla/policies/tiny.py, and so on.

    Raises:
        UnknownNameError: a preset that this version does not know.
    """
    if name not in PRESETS:
        raise unknown_name("policy preset", name, PRESETS)
    return getattr(import_module(PRESETS[name]), f"{name}_policy")
