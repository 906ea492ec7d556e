"""Cases 26 to 37: heat, supply, obstacles, encoders, wrong files, wrong servos, cables, stale goals."""

import numpy as np

from real_robot.calibration import CalibrationError, JointCalibration
from real_robot.conformance.bench import Bench, Device, expect
from real_robot.conformance.case import Case
from real_robot.core.admission import Refusal
from real_robot.core.faults import FaultCode
from real_robot.core.supervisor import State
from real_robot.drivers.errors import BusError, CalibrationMismatchError, IdentityError
from real_robot.errors import PortBusyError
from real_robot.twin import registers_dxl, registers_sts
from real_robot.twin.dxl_bus import DxlBusTwin
from vla.core.errors import CorruptFileError


def heat(device: Device) -> str:
    bench = Bench(device).moving()
    bench.twin.servo(2).heat(56.0)
    bench.run(0.3, driven=True)
    expect(bench.state == State.ACTIVE and bench.warned(FaultCode.WARM), f"at 56 C: {bench.state}")
    bench.twin.servo(2).heat(63.0)
    bench.run(0.3, driven=True)
    commands = [report.tick.command for report in bench.reports[-20:]]
    expect(bench.state == State.ACTIVE, f"at 63 C: {bench.state}")
    expect(all(command is not None for command in commands), "no commands at 63 C")
    bench.twin.servo(2).heat(66.0)
    bench.until(lambda: bench.state == State.FAULT, 0.05, "FAULT", driven=True)
    expect(bench.code == FaultCode.OVER_TEMPERATURE, f"first cause {bench.code}")
    off_s = bench.until(lambda: not any(bench.twin.torque_flags().values()), 12.0, "torque off")
    bench.twin.servo(2).heal()
    bench.twin.servo(2).motor.temperature_c = 40.0
    bench.recovered()
    return f"warns at 56 C, slower at 63 C, at 66 C lowered and off after {off_s:.1f} s"


def supply(device: Device) -> str:
    times = []
    for share in (0.8, 1.16):
        bench = Bench(device).moving()
        bench.twin.sag(share, for_=0.1)
        bench.run(0.5, driven=True)
        expect(bench.state == State.ACTIVE, f"a dip of 100 ms: {bench.state} {bench.supervisor.latched or ''}")
        bench.twin.sag(share, for_=2.0)
        times.append(bench.faulted(FaultCode.VOLTAGE, within_s=0.25))
        expect("supply" in str(bench.supervisor.latched), f"does not name the supply: {bench.supervisor.latched}")
        bench.run(2.0)
        bench.recovered()
    return f"FAULT after {1e3 * times[0]:.0f} ms at 80 %, {1e3 * times[1]:.0f} ms at 116 %; 100 ms are borne"


def stall(device: Device) -> str:
    bench = Bench(device).moving()
    bench.judge_speed = False
    bench.twin.servo(1).stall()
    bench.until(lambda: bench.state == State.FAULT, 1.5, "FAULT", driven=True)
    expect(bench.code in (FaultCode.STALL, FaultCode.TRACKING, FaultCode.OVERLOAD), f"first cause {bench.code}")
    commanded = [(r.now_s, float(r.state.q_J[0] - r.tick.command.q_J[0])) for r in bench.reports if r.tick.command]
    after_s = bench.now - next(now_s for now_s, error_rad in commanded if abs(error_rad) > np.radians(4.0))
    expect(after_s <= 0.65, f"FAULT {after_s:.2f} s after 4 degrees of error")
    peak = max(abs(float(report.state.effort_J[0])) for report in bench.reports)
    bench.run(1.0)
    now = abs(float(bench.reports[-1].state.effort_J[0]))
    expect(now < 0.6 * peak, f"effort stays at {now:.2f} of full torque, peak {peak:.2f}")
    bench.twin.servo(1).heal()
    bench.recovered()
    return f"FAULT {after_s:.2f} s after 4 degrees of error; effort from {peak:.2f} to {now:.2f} of full torque"


def encoder(device: Device) -> str:
    bench = Bench(device).moving()
    bench.judge_speed = False
    bench.twin.servo(3).jump(500.0, for_=0.015)
    reports = len(bench.reports)
    bench.run(0.3, driven=True)
    off = max(abs(float(r.state.q_J[2] - r.tick.command.q_J[2])) for r in bench.reports[reports:] if r.tick.command)
    expect(off < 0.3, f"a jump of 500 counts was believed at once: {off:.2f} rad")
    bench.run(0.3, driven=True)
    expect(bench.state == State.ACTIVE, f"after one tick of it: {bench.state} {bench.supervisor.latched or ''}")
    bench.twin.servo(3).jump(500.0)
    bench.until(lambda: bench.state == State.FAULT, 0.1, "FAULT", driven=True)
    expect(bench.code == FaultCode.ENCODER_JUMP, f"first cause {bench.code}")
    bench = Bench(device).moving()
    bench.judge_speed = False
    bench.twin.servo(3).freeze()
    frozen_s = bench.until(lambda: bench.state == State.FAULT, 1.5, "FAULT", driven=True)
    expect(bench.code in (FaultCode.TRACKING, FaultCode.STALL), f"first cause {bench.code}")
    return f"one tick refused, for good: FAULT in 3 readings; frozen: FAULT after {frozen_s:.2f} s"


def wraps(device: Device) -> str:
    try:
        JointCalibration(device_id=1, low_count=3900, high_count=4300)
        expect(False, "a travel across the wrap was taken")
    except CalibrationError as error:
        expect("wrap" in str(error), str(error))
    bench = Bench(device)
    servo = bench.twin.servo(2)
    if device == "sts":
        servo.memory[registers_sts.PHASE] |= 0x10
        servo.stored = bytes(servo.memory[: servo.eeprom_size])
    else:
        servo.put(registers_dxl.MODE, 1, registers_dxl.EXTENDED_MODE)
    said = _refused_calibration(bench)
    expect("servo 2" in said and ("Fix" in said or "expected" in said), said)
    expect(not any(bench.twin.torque_flags().values()), "torque is on")
    return "refused at connect, with the fix"


def wrong_calibration(device: Device) -> str:
    bench = Bench(device)
    servo = bench.twin.servo(3)
    if device == "sts":
        servo.put(registers_sts.OFFSET, 2, 37)
    else:
        servo.put(registers_dxl.OFFSET, 4, 37)
    said = _refused_calibration(bench)
    expect("homing_offset is 37, the file says 0" in said and bench.spec.names[2] in said, said)
    expect(not any(bench.twin.torque_flags().values()), "torque is on")
    try:
        type(bench.arm.calibration).from_lerobot("{}", bench.spec)
        expect(False, "an empty file was taken")
    except CorruptFileError:
        return "no torque; each difference with both numbers"
    return ""


def wrong_servos(device: Device) -> str:
    table, worst_s = [], 0.0
    for fault in ("baud", "missing", "model", "firmware"):
        bench = Bench(device)
        servo = bench.twin.servo(4)
        if fault == "baud":
            bench.rigs[0].baud = 115_200
        elif fault == "missing":
            servo.device_id = 9
        elif fault == "model":
            servo.put(3 if device == "sts" else 0, 2, 1284)
        else:
            servo.put(1 if device == "sts" else 6, 1, 99)
        start_s = bench.now
        try:
            bench.daemon.connect()
            expect(False, f"{fault}: connected")
        except IdentityError as error:
            table.append(str(error))
        worst_s = max(worst_s, bench.now - start_s)
        expect(bench.link.opened is None, "the port is still open")
    expect(worst_s < 2.0, f"took {worst_s:.1f} s")
    expect("baud" in table[0] and "no answer" in table[1] and "ID   9" in table[1], table[1])
    expect("model 1284" in table[2] and "firmware" in table[3], table[3])
    return f"baud, ID, model, firmware: refused in at most {worst_s:.2f} s with a table"


def unplugged(device: Device) -> str:
    bench = Bench(device).moving()
    bench.link.unplug()
    bench.tick()
    expect(bench.state == State.FAULT and bench.code == FaultCode.LINK_LOST, f"{bench.state} {bench.code}")
    bench.rested(0.6)
    told = ""
    if isinstance(bench.twin, DxlBusTwin):
        bench.run(0.3)
        bench.twin.advance()
        tripped = all(servo.watchdog_tripped for servo in bench.twin.servos)
        expect(tripped, "a bus watchdog has not tripped")
        told = ", bus watchdogs tripped"
    bench.run(1.0)
    expect(bench.state == State.FAULT, "left FAULT by itself")
    return f"FAULT in one tick; the arm rests by itself within its resident limits{told}"


def replugged(device: Device) -> str:
    bench = Bench(device).moving()
    bench.link.unplug()
    bench.run(1.0)
    before = bench.positions
    bench.link.replug()
    bench.twin.peaks.reset()
    back_s = bench.until(lambda: bench.side.linked, 1.0, "linked again")
    bench.run(0.5)
    expect(bench.state == State.FAULT, f"left FAULT by itself: {bench.state}")
    moved = float(np.abs(bench.positions - before).max())
    expect(moved < 0.01, f"moved by {moved:.3f} rad")
    expect(all(bench.twin.torque_flags().values()), "torque was dropped")
    bench.daemon.reset()
    expect(bench.state == State.CONNECTED, f"after the reset: {bench.state}")
    bench.daemon.enable()
    bench.drives_again()
    return f"linked again after {back_s:.1f} s, as found, no motion; reset and enable to go on"


def second_opener(device: Device) -> str:
    bench = Bench(device).moving()
    try:
        bench.link.open()
        expect(False, "a second open succeeded")
    except PortBusyError:
        pass
    for _ in range(40):
        if bench.state == State.FAULT:
            break
        bench.twin.inject(b"\xff\xff\x01\x04\x02\x38\x02\xbe")
        bench.tick()
    expect(bench.state == State.FAULT, "foreign traffic was not noticed")
    expect("foreign" in str(bench.supervisor.latched), f"first cause {bench.supervisor.latched}")
    bench.rested(0.5)
    bench.recovered()
    return "second open refused; foreign traffic: FAULT"


def stale_goal(device: Device) -> str:
    bench = Bench(device)
    bench.daemon.connect()
    for servo in bench.twin.servos:
        servo.put(registers_sts.GOAL if device == "sts" else registers_dxl.GOAL, 2, 2048 + 652)
    bench.twin.peaks.reset()
    bench.daemon.enable()
    bench.run(0.3)
    moved = float(np.abs(bench.positions).max())
    expect(moved < 0.01, f"moved by {moved:.3f} rad at torque-on")
    return f"old goals 1 rad away: moved by {1e3 * moved:.1f} mrad"


def far_start(device: Device) -> str:
    bench = Bench(device).start()
    bench.activate()
    q_HN = np.full((30, 5), 0.5)
    refusal = bench.offer(q_HN=q_HN).refusal
    expect(refusal == Refusal.ALIGNMENT, f"refusal {refusal}")
    bench.run(0.2)
    expect(float(np.abs(bench.positions).max()) < 0.01, "moved without a confirmation")
    bench.daemon.activate(bench.token, "a", align=True)
    bench.twin.peaks.reset()
    bench.offer(q_HN=q_HN)
    expect(bench.state == State.ALIGNING, f"state {bench.state}")
    bench.until(lambda: bench.state == State.ACTIVE, 6.0, "ACTIVE")
    fastest = max(float(np.abs(r.tick.command.dq_J).max()) for r in bench.reports if r.tick.command)
    expect(fastest <= 0.3 + 1e-6, f"aligned at {fastest:.2f} rad/s")
    expect(float(np.abs(bench.positions[:5] - 0.5).max()) < 0.03, "did not arrive")
    return f"refused; confirmed: aligned at {fastest:.2f} rad/s, motors {max(bench.twin.peaks.speed_rad_s):.2f}"


def _refused_calibration(bench: Bench) -> str:
    try:
        bench.daemon.connect()
    except CalibrationMismatchError as error:
        expect(bench.link.opened is None, "the port is still open")
        return str(error)
    except BusError as error:
        expect(False, f"another error: {error}")
    expect(False, "connected")
    return ""


CASES = (
    Case(number=26, title="over-temperature ramp", run=heat),
    Case(number=27, title="supply sag, over-voltage", run=supply),
    Case(number=28, title="stall against an obstacle", run=stall),
    Case(number=29, title="encoder jump, frozen encoder", run=encoder),
    Case(number=30, title="position wraps, multi-turn bit", run=wraps),
    Case(number=31, title="calibration missing or another's", run=wrong_calibration),
    Case(number=32, title="wrong baud, ID, model, firmware", run=wrong_servos),
    Case(number=33, title="USB pulled in motion", run=unplugged),
    Case(number=34, title="USB plugged in again", run=replugged),
    Case(number=35, title="second process on the port", run=second_opener),
    Case(number=36, title="stale goal at enable", run=stale_goal),
    Case(number=37, title="first setpoint 0.5 rad away", run=far_start),
)
