"""Cases 16 to 25: servos that fall silent, lie, or are reset; a wire that loses and garbles."""

import numpy as np

from real_robot.conformance.bench import Bench, Device, expect
from real_robot.conformance.case import Case
from real_robot.core.faults import FaultCode
from real_robot.core.supervisor import State
from real_robot.core.types import StopKind
from real_robot.drivers.errors import IdentityError, TorqueOffError
from real_robot.twin import registers_dxl, registers_sts

TRUE_RAD = 0.06  # a reading may be a tick old: 0.03 s at 1 rad/s, and some


def silent_once(device: Device) -> str:
    bench = Bench(device).moving()
    reports = len(bench.reports)
    bench.twin.servo(3).silent(for_=bench.daemon.dt_s)
    bench.run(0.3, driven=True)
    oldest_s = max(float(report.state.age_J[2]) for report in bench.reports[reports:])
    expect(bench.state == State.ACTIVE, f"state {bench.state}")
    expect(0.0 < oldest_s < 0.025, f"age {oldest_s:.3f} s")
    expect(bench.arm.bus.counts.missing > 0, "not counted")
    bench.bounded()
    return f"age {1e3 * oldest_s:.0f} ms passed on, motion in bounds"


def silent_for_good(device: Device) -> str:
    bench = Bench(device).moving()
    bench.twin.servo(3).silent()
    passed_s = bench.faulted(FaultCode.JOINT_SILENT, within_s=0.08)
    first = bench.supervisor.latched.first if bench.supervisor.latched else None
    expect(first is not None and first.joint == bench.spec.names[2], f"names {first}")
    others = [on for i, on in bench.twin.torque_flags().items() if i != 3]
    expect(all(others), "another joint lost its torque")
    bench.twin.servo(3).heal()
    bench.recovered()
    return f"FAULT after {1e3 * passed_s:.0f} ms, names {first.joint if first else ''}; the others hold"


def silent_at_shutdown(device: Device) -> str:
    bench = Bench(device).start()
    bench.twin.servo(4).silent()
    told = ""
    try:
        bench.daemon.shutdown("test")
    except Exception as error:  # noqa: BLE001  (whatever it raises, the state of the twin is judged)
        told = str(error)
    flags = bench.twin.torque_flags()
    expect(not any(on for i, on in flags.items() if i != 4), f"left under torque: {flags}")
    expect("servo 4" in told, f"the error does not name servo 4: '{told}'")
    expect(bench.link.opened is None, "the port is still open")
    last = [write.time_s for i in (5, 6) for write in bench.twin.monitor.of(i, _torque_address(device))]
    expect(len(last) >= 4, "no broadcast stop behind the single ones")
    return "five servos off, broadcast sent, port closed, error names servo 4"


def noise(device: Device) -> str:
    bench = Bench(device, seed=3).moving()
    for servo in bench.twin.servos:
        servo.flip_bit(0.01, for_=2.0)
        servo.truncate(0.01, for_=2.0)
        servo.double(0.01, for_=2.0)
        servo.garbage(0.01, for_=2.0)
    bench.run(2.0, driven=True)
    refused = bench.arm.bus.counts.missing
    expect(bench.state == State.ACTIVE, f"at 3 % loss: {bench.state} {bench.supervisor.latched or ''}")
    expect(refused > 0, "nothing was refused")
    expect(_honest(bench), "a garbled reply was believed")
    for servo in bench.twin.servos:
        servo.flip_bit(0.35)
    passed_s = bench.faulted(FaultCode.LINK_NOISY, FaultCode.JOINT_SILENT, within_s=1.5)
    for servo in bench.twin.servos:
        servo.heal()
    bench.recovered()
    return f"{refused} answers refused at 3 % without a fault; at 35 % FAULT after {passed_s:.1f} s"


def stale_replies(device: Device) -> str:
    bench = Bench(device).moving()
    bench.twin.servo(2).stale_reply(for_=0.04)
    bench.run(0.3, driven=True)
    once = bench.state
    expect(_honest(bench), "an old reply was reported as a position")
    bench.twin.servo(2).delay_reply(0.0105, for_=0.04)
    bench.run(0.3, driven=True)
    expect(_honest(bench), "a late reply was reported as a position")
    bench.twin.servo(5).delay_reply(0.08)
    bench.run(0.4, driven=True)
    expect(_honest(bench), "a reply 80 ms late was reported as a position")
    expect(bench.state == State.FAULT, f"replies 80 ms late for good: {bench.state}")
    return f"never believed; short: {once}, for good: FAULT {bench.code}"


def wrong_ids(device: Device) -> str:
    bench = Bench(device)
    bench.twin.servo(2).duplicate()
    said = _refused_identity(bench)
    expect("ID   2" in said and "share" in said, f"duplicate ID at connect: {said}")
    bench = Bench(device).moving()
    bench.twin.servo(2).wrong_id()
    bench.faulted(FaultCode.JOINT_SILENT, within_s=0.1)
    expect(_honest(bench), "an answer of another ID was believed")
    bench = Bench(device).moving()
    bench.twin.servo(2).duplicate()
    bench.faulted(FaultCode.JOINT_SILENT, within_s=0.1)
    expect(_honest(bench), "an answer of the second servo was believed")
    return "refused at connect with the ID; at run time never believed, FAULT"


def lost_writes(device: Device) -> str:
    bench = Bench(device).moving()
    bench.twin.lose_sync_writes(1)
    bench.run(0.2, driven=True)
    expect(bench.state == State.ACTIVE, f"after one lost write: {bench.state}")
    bench.twin.lose_sync_writes(1000)
    passed_s = bench.faulted(FaultCode.GOAL_NOT_TAKEN, within_s=0.08)
    bench.twin.lose_sync_writes(0)
    bench.recovered()
    return f"one: written again next tick; all: FAULT after {1e3 * passed_s:.0f} ms"


def servo_reset(device: Device) -> str:
    bench = Bench(device).moving()
    servo = bench.twin.servo(3)
    address = registers_sts.TORQUE_LIMIT if device == "sts" else registers_dxl.GOAL_PWM
    servo.put(_torque_address(device), 1, 0)
    servo.put(address, 2, 500)
    servo.update_command()
    quick_s = bench.until(lambda: bench.state == State.FAULT, 0.03, "FAULT by the shadow", driven=True)
    bench = Bench(device).moving()
    bench.twin.servo(3).reboot()
    boot_s = bench.faulted(FaultCode.JOINT_SILENT, FaultCode.TORQUE_LOST, FaultCode.DEVICE, within_s=0.1)
    bench.run(2.0)
    expect(not bench.twin.torque_flags()[3], "torque came back by itself")
    bench.recovered()
    expect(bench.twin.torque_flags()[3], "torque did not come back with the reset")
    return f"reset registers: {1e3 * quick_s:.0f} ms, a reboot: {1e3 * boot_s:.0f} ms; on again by reset only"


def overload(device: Device) -> str:
    bench = Bench(device).moving()
    bench.twin.servo(2).overload(for_=1.0)
    passed_s = bench.until(lambda: bench.state == State.FAULT, 0.05, "FAULT", driven=True)
    expect(bench.code in (FaultCode.OVERLOAD, FaultCode.TORQUE_LOST), f"first cause {bench.code}")
    bench.run(1.0)
    bench.recovered()
    if device == "dxl":  # the servo itself lets go: nothing is left that could relax
        return f"joint: FAULT after {1e3 * passed_s:.0f} ms; a gripper lets go by itself and faults too"
    bench = Bench(device).moving()
    bench.twin.servo(6).overload(for_=0.5)
    bench.run(1.0, driven=True)
    expect(bench.state == State.ACTIVE and bench.warned(FaultCode.OVERLOAD), f"gripper: {bench.state}")
    return f"joint: FAULT after {1e3 * passed_s:.0f} ms; gripper relaxes and goes on"


def error_while_disabling(device: Device) -> str:
    bench = Bench(device).start()
    bench.twin.servo(2).overload()
    bench.clock.advance(0.05)
    try:
        bench.arm.stop(StopKind.RELEASE)
    except TorqueOffError as error:
        expect(False, f"an error bit was taken for a failure: {error}")
    flags = bench.twin.torque_flags()
    expect(not any(flags.values()), f"left under torque: {flags}")
    return "all six off"


def _torque_address(device: Device) -> int:
    return registers_sts.TORQUE if device == "sts" else registers_dxl.TORQUE


def _refused_identity(bench: Bench) -> str:
    start_s = bench.now
    try:
        bench.daemon.connect()
    except IdentityError as error:
        expect(bench.now - start_s < 2.0, f"took {bench.now - start_s:.1f} s")
        return str(error)
    expect(False, "connected")
    return ""


def _honest(bench: Bench) -> bool:
    """Whether each fresh position so far is near to where the joint then was commanded to be."""
    for report in bench.reports:
        if report.tick.command is None:
            continue
        off_J = np.abs(report.state.q_J - report.tick.command.q_J)
        if (off_J[report.state.age_J == 0.0] > 3 * TRUE_RAD).any():
            return False
    return bool((np.abs(bench.reports[-1].state.q_J - bench.positions) < 4 * TRUE_RAD).all())


CASES = (
    Case(number=16, title="a servo silent for one tick", run=silent_once),
    Case(number=17, title="a servo silent for good", run=silent_for_good),
    Case(number=18, title="a servo silent during shutdown", run=silent_at_shutdown),
    Case(number=19, title="bit flips, cuts, doubles, garbage", run=noise),
    Case(number=20, title="late reply to another request", run=stale_replies),
    Case(number=21, title="wrong ID, duplicate ID", run=wrong_ids),
    Case(number=22, title="SYNC_WRITE lost", run=lost_writes),
    Case(number=23, title="servo brown-out or reboot", run=servo_reset),
    Case(number=24, title="overload bit: joint, gripper", run=overload),
    Case(number=25, title="error bit while disabling", run=error_while_disabling),
)
