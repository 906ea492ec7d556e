"""Calibration on the twin: hidden offsets come back within a count, wraps included; mistakes are refused."""

import json

import numpy as np
import pytest

from real_robot.calibration import (
    ArmCalibration,
    CalibrationError,
    JointCalibration,
    Sweep,
    direction_of,
    finish_sweep,
    uncalibrated,
)
from real_robot.conformance.bench import Bench, Device
from real_robot.core.arms import so101_spec
from vla.core.errors import CorruptFileError, MissingAssetError

SPEC = so101_spec()


def swept(bench: Bench, *, share: float = 1.0, **known) -> ArmCalibration:
    """A hand moves every joint from its middle to both stops and back."""
    middles = np.array([0.5 * (joint.low + joint.high) for joint in bench.spec.joints])
    halves = np.array([0.5 * (joint.high - joint.low) for joint in bench.spec.joints]) * share
    sweep = Sweep()
    for at in [*np.linspace(0, -1, 25), *np.linspace(-1, 1, 50), *np.linspace(1, 0, 25)]:
        bench.twin.place((middles + at * halves).tolist())
        sweep.update([bench.arm.get(i, "present_position") for i in bench.arm.ids])
    offsets = [bench.arm.get(i, "homing_offset") for i in bench.arm.ids]
    sign = -1 if bench.device == "sts" else 1
    return finish_sweep(sweep, bench.spec, device_ids=bench.arm.ids, offsets=offsets, offset_sign=sign, **known)


@pytest.mark.parametrize("device", ["sts", "dxl"])
@pytest.mark.parametrize("seed", range(3))
def test_hidden_offsets_come_back(device: Device, seed: int) -> None:
    rng, bench = np.random.default_rng(seed), Bench(device)
    for servo in bench.twin.servos:
        servo.zero_count = int(rng.integers(0, 4096))  # many of these travels cross the wrap
    bench.twin.place([0.0] * 6)
    bench.arm.open()
    if device == "dxl":
        for servo in bench.twin.servos:
            servo.power_on()
    calibration = swept(bench)
    bench.arm.store(calibration)
    q = rng.uniform(-0.15, 0.9, 6).tolist()
    bench.twin.place(q)
    for device_id, name, angle in zip(bench.arm.ids, bench.spec.names, q):
        joint, count = calibration.joints[name], bench.arm.get(device_id, "present_position")
        assert abs(joint.zero_count + angle * 4096 / (2 * np.pi) - count) <= 2.0
        assert 0 <= joint.low_count < 2048 < joint.high_count < 4096
    bench.arm.check_calibration()


def test_homing_first_goes_wrong_where_sweeping_first_does_not() -> None:
    """The mutation: minimum and maximum of the raw counts, as usual elsewhere, over a travel that crosses the wrap."""
    raw = [(3900 + step) % 4096 for step in range(0, 400, 20)]
    sweep = Sweep()
    for count in raw:
        sweep.update([count])
    assert sweep.high[0] - sweep.low[0] == 380
    assert max(raw) - min(raw) > 4000


def test_too_little_travel_and_exchanged_joints_are_refused() -> None:
    bench = Bench("sts")
    bench.arm.open()
    with pytest.raises(CalibrationError, match=r"too little travel.*'shoulder_pan'"):
        swept(bench, share=0.5)
    exchanged = list(bench.twin.servos)
    exchanged[4].joint, exchanged[5].joint = 5, 4
    with pytest.raises(CalibrationError, match=r"'gripper'.*are the two exchanged"):
        swept(bench)


def test_direction() -> None:
    assert direction_of(4000, 200) == 1 and direction_of(200, 4000) == -1
    with pytest.raises(CalibrationError, match="at least 10 degrees"):
        direction_of(100, 130)


def test_a_reversed_joint_keeps_its_angles() -> None:
    joint = JointCalibration(device_id=1, low_count=1000, high_count=3000, zero_count=2000, direction=-1)
    assert joint.to_rad(joint.to_count(0.5)) == pytest.approx(0.5, abs=1e-3)
    assert joint.to_count(0.5) < 2000
    assert joint.to_count(9.0) == 1000


def test_files(tmp_path) -> None:
    calibration = uncalibrated(SPEC)
    calibration.save(tmp_path / "a" / "arm.json")
    assert ArmCalibration.load(tmp_path / "a" / "arm.json") == calibration
    with pytest.raises(MissingAssetError, match="calibrate"):
        ArmCalibration.load(tmp_path / "none.json")
    for text in ("[]", "{", '{"arm": "x", "joints": {"a": {"id": 1}}}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(CorruptFileError):
            ArmCalibration.load(tmp_path / "bad.json")
    other = ArmCalibration(arm="so101", joints={**calibration.joints, "gripper": JointCalibration(device_id=7)})
    assert other.sha256 != calibration.sha256 == uncalibrated(SPEC).sha256


def test_lerobots_file_both_ways() -> None:
    rows = {
        name: {"id": i, "drive_mode": 0, "homing_offset": -37 * i, "range_min": 800 + i, "range_max": 3300 - i}
        for i, name in enumerate(SPEC.names, start=1)
    }
    calibration = ArmCalibration.from_lerobot(json.dumps(rows), SPEC)
    assert json.loads(calibration.to_lerobot()) == rows
    lift = calibration.joints["shoulder_lift"]
    assert lift.to_rad(0.5 * (lift.low_count + lift.high_count)) == pytest.approx(0.0)
    with pytest.raises(CorruptFileError):
        ArmCalibration.from_lerobot("{}", SPEC)


def test_a_travel_across_the_wrap_or_an_offset_that_does_not_fit() -> None:
    with pytest.raises(CalibrationError, match="wrap"):
        JointCalibration(device_id=1, low_count=3000, high_count=4200)
    with pytest.raises(CalibrationError, match="2048"):
        JointCalibration(device_id=1, homing_offset=2048)
