"""Drivers of real arms: the `Arm` protocol of `real_robot.core.types` over a wire."""
