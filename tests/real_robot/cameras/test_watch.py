"""What reaches a policy, and when a bad camera becomes a fault; on a twin's faults and a virtual clock."""

import pytest

from real_robot.cameras.frames import CameraSpec
from real_robot.cameras.twin import TwinCamera, pattern
from real_robot.cameras.watch import Watch
from real_robot.core.clock import VirtualClock
from real_robot.core.faults import FaultCode, Reaction

SPEC = CameraSpec(name="wrist", serial="A1", height=48, width=64, rate_hz=30.0)


@pytest.mark.parametrize(
    ("name", "least_s", "most_s"), [("freeze", 0.6, 0.75), ("darken", 0.5, 0.6), ("die", 0.55, 0.7)]
)
def test_a_bad_camera_is_withheld_and_becomes_a_fault(name: str, least_s: float, most_s: float) -> None:
    clock = VirtualClock(start_s=5.0)
    camera = TwinCamera(SPEC, pattern(48, 64), clock=clock.now)
    camera.start()
    watch = Watch(SPEC, max_age_s=0.1, start_s=clock.now())

    def pass_time(seconds: float) -> list[bool]:
        shown = []
        for _ in range(round(100 * seconds)):
            clock.sleep_until(clock.now() + 0.01)
            shown.append(watch.look(camera.latest(), clock.now()) is not None)
        return shown

    assert all(pass_time(1.0)) and watch.fault(clock.now()) is None
    getattr(camera, name)()
    began_s = clock.now()
    while watch.fault(clock.now()) is None:
        pass_time(0.01)
        assert clock.now() - began_s < 2.0
    finding = watch.fault(clock.now())
    assert least_s <= clock.now() - began_s <= most_s
    assert finding is not None and finding.code == FaultCode.OBSERVATION_STALE and finding.reaction == Reaction.HOLD
    assert "wrist" in finding.detail and not any(pass_time(0.2))
    camera.heal()
    assert any(pass_time(0.2)) and watch.fault(clock.now()) is None
