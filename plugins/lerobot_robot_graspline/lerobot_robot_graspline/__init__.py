"""Arms of graspline in lerobot: `--robot.type=graspline_arm --robot.port=... --robot.calibration=...`.

lerobot imports this package because of the name of its distribution, and finds the robot beside its config.
"""

from lerobot_robot_graspline.config_graspline import GrasplineArmConfig as GrasplineArmConfig
from lerobot_robot_graspline.graspline import GrasplineArm as GrasplineArm
