"""The core of the robot daemon: types, clock, timeline, filter, supervisor. MuJoCo behind one door."""
