"""Cases 51 to 56, 59 and 60: two arms, the servos' own protections, what is stored in them, and a long run."""

import functools

import numpy as np

from real_robot.calibration import ArmCalibration, Sweep, finish_sweep
from real_robot.conformance.bench import Bench, Device, expect
from real_robot.conformance.case import Case
from real_robot.conformance.reflex import reflex, ur_installed
from real_robot.conformance.soak import soaked
from real_robot.core.supervisor import State
from real_robot.twin import registers_dxl, registers_sts
from real_robot.twin.dxl_bus import DxlBusTwin
from real_robot.twin.sts_bus import StsBusTwin

SOAK_HOURS = 8.0
SHORT_SOAK_H = 60.0 / 3600.0


def bimanual(device: Device) -> str:
    bench = Bench(device, arms=2).start()
    right = bench.daemon.sides["right"]
    bench.activate()
    for tick in range(80):
        if tick % 20 == 0:
            for arm in ("left", "right"):
                bench.daemon.submit(bench.chunk(), bench.token, arm=arm)
        bench.tick()
    expect(bench.state == right.state == State.ACTIVE, f"{bench.state}, {right.state}")
    bench.rigs[1].twin.servo(3).silent()
    bench.until(lambda: right.state == State.FAULT, 0.1, "right in FAULT")
    passed_s = bench.until(lambda: bench.state == State.FAULT, 0.02, "left in FAULT too")
    bench.rested(0.6)
    latched = bench.supervisor.latched
    expect(latched is not None and "right" in str(latched), f"does not name the other arm: {latched}")
    bench.rigs[1].twin.servo(3).heal()
    bench.run(1.2)
    bench.daemon.reset()
    expect(bench.state == right.state == State.HOLD, f"after the reset: {bench.state}, {right.state}")
    return f"the other arm stops {1e3 * passed_s:.0f} ms later and names the cause; one reset for both"


def watchdog_expired(device: Device) -> str:
    bench = Bench(device).moving()
    bench.clock.advance(0.3)
    bench.daemon.leases._beat_s = bench.now
    bench.tick(3)
    expect(bench.state == State.FAULT and "watchdog" in str(bench.supervisor.latched), f"{bench.supervisor.latched}")
    before = bench.positions
    bench.run(1.0)
    assert isinstance(bench.twin, DxlBusTwin)
    expect(all(servo.watchdog_tripped for servo in bench.twin.servos), "cleared without a reset")
    bench.twin.peaks.reset()
    bench.daemon.reset()
    bench._due_s = bench.now
    bench.run(0.3)
    moved = float(np.abs(bench.positions - before).max())
    expect(moved < 0.02, f"moved by {moved:.3f} rad on reset")
    bench.drives_again()
    return f"latched; cleared by the reset alone, which moved {1e3 * moved:.1f} mrad"


def stuffing(device: Device) -> str:
    bench = Bench(device)
    bench.daemon.connect()
    lost = bench.twin.monitor.lost
    for value in (0x00FDFFFF, 0x7DFFFF - 0x800000, -3):
        bench.arm.put(1, {"homing_offset": value})
        expect(bench.arm.get(1, "homing_offset") == value, f"{value:#x} came back as another number")
    bench.arm.put(1, {"homing_offset": 0})
    expect(bench.twin.monitor.lost == lost, "the strict twin dropped a packet")
    return "FF FF FD written and read back through the strict twin, nothing dropped"


def hardware_error(device: Device) -> str:
    bench = Bench(device).moving()
    assert isinstance(bench.twin, DxlBusTwin)
    bench.twin.servo(3).hardware_error(0x20)
    passed_s = bench.until(lambda: bench.state == State.FAULT, 0.03, "FAULT", driven=True)
    expect("overload" in str(bench.supervisor.latched), f"does not name the bit: {bench.supervisor.latched}")
    bench.run(1.0)
    expect(bench.twin.servo(3).reboots == 0, "rebooted without a reset")
    bench.recovered()
    expect(bench.twin.servo(3).reboots == 1, f"{bench.twin.servo(3).reboots} reboots")
    expect(bench.twin.servo(3).memory[registers_dxl.WATCHDOG] == 10, "the resident limits were not written again")
    return f"FAULT after {1e3 * passed_s:.0f} ms names the bit; the reset reboots, restores limits and goal"


def echo(device: Device) -> str:
    bench = Bench(device, echo=True).moving()
    expect(bench.arm.bus.echo, "not detected")
    expect(bench.arm.bus.counts.missing == 0, f"{bench.arm.bus.counts.missing} answers refused")
    return "detected at connect; every answer right"


def eeprom(device: Device) -> str:
    bench = Bench(device)
    if device == "sts":
        bench.twin.servo(2).memory[registers_sts.LOCK] = 0
    bench.moving()
    expect(bench.twin.monitor.num_eeprom_writes == 0, "EEPROM was written while connecting or driving")
    told = ""
    if isinstance(bench.twin, StsBusTwin):
        expect(not bench.twin.servo(2).eeprom_open, "the lock was left open")
        told = ", an open lock is closed"
    bench.daemon.shutdown("test")
    bench.arm.connect()
    bench.arm.store(bench.arm.calibration)
    same = bench.twin.monitor.num_eeprom_writes
    shifted = _swept(bench)
    bench.arm.store(shifted)
    changed = bench.twin.monitor.num_eeprom_writes
    expect(same == 0, f"{same} EEPROM writes for what was stored already")
    expect(0 < changed <= 18, f"{changed} EEPROM writes")
    if isinstance(bench.twin, StsBusTwin):
        expect(not any(servo.eeprom_open for servo in bench.twin.servos), "left open")
    return f"none in motion, none when equal, {changed} for a new calibration{told}"


def _swept(bench: Bench) -> ArmCalibration:
    """A calibration from a sweep through the whole travel."""
    sweep = Sweep()
    lows, highs = ([getattr(j, side) for j in bench.spec.joints] for side in ("low", "high"))
    for share in [*np.linspace(0.5, 0, 20), *np.linspace(0, 1, 40), *np.linspace(1, 0.5, 20)]:
        bench.twin.place([low + share * (high - low) for low, high in zip(lows, highs)])
        sweep.update([bench.arm.get(i, "present_position") for i in bench.arm.ids])
    sign = -1 if bench.device == "sts" else 1
    return finish_sweep(sweep, bench.spec, device_ids=bench.arm.ids, offsets=[0] * 6, offset_sign=sign)


def soak_case(hours: float = 0.0) -> Case:
    """Case 60 in so many hours; 0: a minute of them."""
    missing = "" if hours >= SOAK_HOURS else f"{SOAK_HOURS:.0f} h (soak_hours=8 runs them)"
    run = functools.partial(soaked, hours=hours or SHORT_SOAK_H)
    return Case(number=60, title="soak, 1 % random faults", run=run, missing=missing)


CASES = (
    Case(number=51, title="bimanual: one arm faults", run=bimanual),
    Case(number=52, title="bus watchdog expired", run=watchdog_expired, devices=("dxl",)),
    Case(number=53, title="payload with FF FF FD", run=stuffing, devices=("dxl",)),
    Case(number=54, title="hardware error, reboot needed", run=hardware_error, devices=("dxl",)),
    Case(number=55, title="adapter echoes", run=echo),
    Case(number=56, title="EEPROM lock and writes", run=eeprom),
    Case(
        number=59,
        title="reflex of a controller arm",
        run=reflex,
        missing="" if ur_installed() else "a controller to talk to (pip install ur-rtde)",
    ),
)
