"""Verbs of `scripts.robot` for an arm on a cable: find, doctor, calibrate, estop, reset."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from hydra.utils import instantiate
from omegaconf import DictConfig

from real_robot.calibration import ArmCalibration, Sweep, finish_sweep
from real_robot.core.clock import RealClock
from real_robot.core.types import ArmState
from real_robot.drivers.bus import Bus, Codec
from real_robot.drivers.errors import BusError
from real_robot.drivers.identify import look
from real_robot.drivers.servo_arm import ServoArm
from real_robot.drivers.sts_arm import StsArm
from real_robot.loop import Lateness
from real_robot.protocols import dxl2, dxl2_table, sts, sts_table
from real_robot.transports import SerialTransport, port_owner
from vla.core.errors import GrasplineError

BY_ID = Path("/dev/serial/by-id")
SPEEDS = (1_000_000, 500_000, 115_200, 57_600)
IDS = range(1, 16)
LINK_READS = 200


def find(config: DictConfig) -> None:
    """Lists ports and every servo that answers on them. Asks, and changes nothing."""
    ports = [Path(config.port)] if config.port else sorted(BY_ID.glob("*")) if BY_ID.is_dir() else []
    if not ports:
        raise GrasplineError(f"no serial port in {BY_ID}: is the adapter plugged in? Or name one with port=")
    found = 0
    for port in ports:
        owner = port_owner(port)
        print(f"{port}" + (f"  held by process {owner}" if owner else ""))
        for line in () if owner else _scan(port):
            found += 1
            print(f"  {line}", flush=True)
    if not found:
        raise GrasplineError("no servo answered: power, cable, or a speed other than " + ", ".join(map(str, SPEEDS)))


def doctor(config: DictConfig) -> None:
    """A table of the servos and the quality of the link; exit status 1 when something is wrong. No torque."""
    arm, wrong = _arm(config), []
    arm.open()
    try:
        arm.check_identity()
        try:
            arm.check_calibration()
        except BusError as error:
            wrong.append(str(error))
        lateness, state = _link_quality(arm)
        print("  ID joint           rad    V     C  torque  errors")
        for j, (device_id, name) in enumerate(arm.names.items()):
            bits = [text for _, text in arm.describe(int(state.status_J[j]))]
            wrong += [f"{name}: {text}" for text in bits]
            row = f"{state.q_J[j]:7.3f} {state.voltage_J[j]:4.1f} {state.temperature_J[j]:5.0f}"
            print(f"  {device_id:2d} {name:14s} {row}  {'on' if state.torque_on_J[j] else 'off':6s}  {', '.join(bits)}")
        counts = arm.bus.counts
        print(f"block reads: {lateness}; {counts.missing} answers missing, {counts.refused} refused")
        if counts.missing:
            wrong.append(f"{counts.missing} answers of {LINK_READS * len(arm.ids)} are missing: cable, latency timer?")
    finally:
        arm.close()
    wrong += _latency_timer(Path(config.port))
    for line in wrong:
        print(f"! {line}")
    if wrong:
        sys.exit(1)
    print("well")


def calibrate(config: DictConfig) -> None:
    """Sweep by hand for `seconds`, then home; stores into the servos, and saves the file."""
    if config.calibration is None:
        raise GrasplineError("calibration=: name the file to write")
    arm = _arm(config, fresh=True)
    arm.open()
    try:
        arm.check_identity()
        if any(arm.get(device_id, "torque_enable") for device_id in arm.ids):
            raise GrasplineError("some servo has torque on: lower the arm and switch it off first (estop twice)")
        print(f"move every joint to both of its stops, now, for {config.seconds} s")
        calibration = finish_sweep(
            _sweep(arm, config.seconds),
            arm.spec,
            device_ids=arm.ids,
            offsets=[arm.get(device_id, "homing_offset") for device_id in arm.ids],
            offset_sign=-1 if isinstance(arm, StsArm) else 1,
        )
        arm.store(calibration)
        arm.check_calibration()
    finally:
        arm.close()
    calibration.save(Path(config.calibration))
    if config.lerobot is not None:
        Path(config.lerobot).write_text(calibration.to_lerobot())
    print(f"saved {config.calibration}, sha256 {calibration.sha256[:12]}")


def estop(config: DictConfig) -> None:
    """Tells the daemon that owns the port; without one, broadcasts torque off on the free port."""
    owner = port_owner(_port(config))
    if owner is not None:
        os.kill(owner, signal.SIGUSR1)
        print(f"e-stop sent to process {owner}; once more lets the torque go, and the arm falls")
        return
    arm = _arm(config, fresh=True)
    arm.open()
    try:
        for _ in range(3):
            arm.bus.send(arm.codec.torque_off_all())
        time.sleep(0.01)
        print("nobody owns the port: torque off broadcast to every servo")
    finally:
        arm.close()


def reset(config: DictConfig) -> None:
    """Tells the daemon that owns the port. It refuses while the cause is present; its log says so."""
    owner = port_owner(_port(config))
    if owner is None:
        raise GrasplineError(f"{config.port}: no daemon owns it, there is nothing to reset")
    os.kill(owner, signal.SIGUSR2)
    print(f"reset sent to process {owner}")


def _port(config: DictConfig) -> str:
    if config.port is None:
        raise GrasplineError(f"port=: name the serial port, best one of {BY_ID}")
    return str(config.port)


def _arm(config: DictConfig, *, fresh: bool = False) -> ServoArm:
    """The arm of `robot=` on `port=`. `fresh`: not calibrated yet, IDs in the order of the joints."""
    port, calibration = _port(config), None
    if not fresh and config.calibration is None:
        raise GrasplineError("calibration=: name the arm's file; `calibrate` makes it")
    if not fresh:
        calibration = ArmCalibration.load(Path(config.calibration))
    return instantiate(config.robot, _partial_=True)(calibration=calibration, port=port)


def _scan(port: Path) -> Iterator[str]:
    families: tuple[tuple[str, Codec, ModuleType, int], ...] = (
        ("Feetech", sts, sts_table, 0),
        ("Dynamixel", dxl2, dxl2_table, 3),
    )
    for baud in SPEEDS:
        transport = SerialTransport(port, baud)
        try:
            for family, codec, table, identity_size in families:
                bus = Bus(transport, codec, RealClock(), baud=baud)
                for device_id in IDS:
                    one = look(bus, device_id, table.REGISTERS, identity_size)
                    if one is not None:
                        model = table.MODELS.get(one.model, f"model {one.model}")
                        yield f"{family} ID {device_id:3d} {model} at {baud} baud, firmware {_dotted(one.firmware)}"
        finally:
            transport.close()


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _link_quality(arm: ServoArm) -> tuple[Lateness, ArmState]:
    """Durations of block reads, and the last reading."""
    durations = Lateness()
    arm.standing()
    for _ in range(LINK_READS):
        start_s = time.monotonic()
        arm.read()
        durations.add(time.monotonic() - start_s)
    return durations, arm.standing()


def _latency_timer(port: Path) -> list[str]:
    """FTDI adapters wait 16 ms for more bytes unless told otherwise."""
    timer = Path("/sys/bus/usb-serial/devices") / port.resolve().name / "latency_timer"
    if not timer.is_file() or int(timer.read_text()) <= 1:
        return []
    return [f"latency timer is {timer.read_text().strip()} ms: echo 1 | sudo tee {timer}, or a udev rule"]


def _sweep(arm: ServoArm, seconds: float) -> Sweep:
    sweep, end_s = Sweep(), time.monotonic() + seconds
    while time.monotonic() < end_s:
        sweep.update([arm.get(device_id, "present_position") for device_id in arm.ids])
        if sys.stdout.isatty():
            print("\r" + "  ".join(f"{span:4.2f}" for span in sweep.span_rad()) + " rad", end="", flush=True)
        time.sleep(0.02)
    print("travel: " + "  ".join(f"{span:4.2f}" for span in sweep.span_rad()) + " rad")
    return sweep


VERBS = {"find": find, "doctor": doctor, "calibrate": calibrate, "estop": estop, "reset": reset}
