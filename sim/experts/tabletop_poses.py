"""The expert of `tabletop`, which reads simulator truth and not the state."""

from sim.experts.tabletop import expert

__all__ = ["expert"]
