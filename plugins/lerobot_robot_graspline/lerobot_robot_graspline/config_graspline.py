"""What lerobot's command line may say about an arm of ours."""

from dataclasses import dataclass, field

from lerobot.cameras import CameraConfig
from lerobot.robots.config import RobotConfig


@RobotConfig.register_subclass("graspline_arm")
@dataclass(kw_only=True)
class GrasplineArmConfig(RobotConfig):
    """`--robot.<field>=<value>`.

    Args:
        port: serial port, best under /dev/serial/by-id.
        calibration: our JSON file (`python -m scripts.robot calibrate`).
        arm: so101 or koch.
        normal_speed: off: the tool point moves at 0.25 m/s at most.
        align: confirms a slow move to the first action, should that be far away.
        use_degrees: as in lerobot's SO arms; otherwise -100..100. The gripper is always 0..100.
        cameras: lerobot's.
    """

    port: str
    calibration: str
    arm: str = "so101"
    normal_speed: bool = False
    align: bool = False
    use_degrees: bool = True
    cameras: dict[str, CameraConfig] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.arm not in ("so101", "koch"):
            raise ValueError(f"robot.arm is '{self.arm}', expected so101 or koch")
