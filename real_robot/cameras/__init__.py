"""Cameras: V4L2 devices bound by serial number, their twin, and what can be wrong with a picture."""
