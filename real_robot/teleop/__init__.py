"""Teleoperation: sources of setpoints that a person moves."""
