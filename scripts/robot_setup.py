"""Verb of `scripts.robot` for new servos: setup, one servo at a time, as they all leave the shop with the same ID.

For each joint from the gripper down: that one servo on the cable, found whatever its ID and speed, given its own ID
and the bus's speed. What is special: a bus with two servos on it is noticed and refused, since both would take the ID.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType

from hydra.utils import instantiate
from omegaconf import DictConfig

from real_robot.drivers.bus import Bus
from real_robot.drivers.errors import BusError, IdentityError
from real_robot.drivers.identify import Found, look
from real_robot.drivers.servo_arm import ServoArm
from real_robot.drivers.sts_arm import StsArm
from real_robot.protocols import dxl2_table, sts_table
from real_robot.transports import SerialTransport, Transport
from scripts.robot_cell import confirmation, port_of
from vla.core.errors import GrasplineError

BAUD = 1_000_000
MAX_ID = 252
UNLOCKED, LOCKED = 0, 1


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One servo of an arm, by its joint; second motors of a joint are listed too."""

    joint: str
    device_id: int
    models: frozenset[int]


def setup(config: DictConfig) -> None:
    """Guides through all servos of the arm of `robot=`; `joints=` names those that are left."""
    arm: ServoArm = instantiate(config.robot, _partial_=True)(calibration=None)
    port = port_of(config.port)

    def ask(words: str) -> None:
        waiting = confirmation(config)(words)
        while waiting():
            time.sleep(0.05)

    guide(arm, lambda baud: SerialTransport(port, baud), config.joints, ask)


def guide(
    arm: ServoArm, open_at: Callable[[int], Transport], joints: Sequence[str] | None, ask: Callable[[str], None]
) -> None:
    """One servo after the other. `open_at`: the port at a speed; `ask` returns when that servo alone is connected."""
    rows = [row for row in wanted(arm) if joints is None or row.joint in joints]
    if not rows:
        raise GrasplineError(f"joints= names none of {list(arm.spec.names)}")
    for row in rows:
        ask(f"{row.joint}: connect this servo alone, and the supply")
        print(f"  {set_up(arm, open_at, row)}", flush=True)
    print("all servos have their IDs: chain them, then `find` and `calibrate`")


def wanted(arm: ServoArm) -> Iterator[Wanted]:
    """The servos of an arm, from the gripper down."""
    for name, servo in reversed([*zip(arm.spec.names, arm.servos, strict=True)]):
        for device_id in (servo.device_id, *servo.shadow_ids):
            yield Wanted(joint=name, device_id=device_id, models=servo.models)


def set_up(arm: ServoArm, open_at: Callable[[int], Transport], row: Wanted) -> str:
    """Finds the only servo on the port and gives it ID and speed. Raises IdentityError, BusError."""
    table = sts_table if isinstance(arm, StsArm) else dxl2_table
    baud, found = only_servo(arm, table, open_at)
    model = table.MODELS.get(found.model, f"model {found.model}")
    if found.model not in row.models:
        names = sorted(table.MODELS.get(number, str(number)) for number in row.models)
        raise IdentityError(f"{row.joint}: this servo is a {model}, expected {' or '.join(names)}")
    with _bus(arm, open_at, baud) as bus:
        _write(bus, table, found.device_id, "torque_enable", 0)
        if table is sts_table:
            _write(bus, table, found.device_id, "lock", UNLOCKED)
        _write(bus, table, found.device_id, "id", row.device_id)
        _write(bus, table, row.device_id, "baud", _number(table, BAUD))
    with _bus(arm, open_at, BAUD) as bus:
        if table is sts_table:
            _write(bus, table, row.device_id, "lock", LOCKED)
        again = look(bus, row.device_id, table.REGISTERS, arm.identity_size)
    if again is None or again.model != found.model:
        raise BusError(f"{row.joint}: the servo does not answer as ID {row.device_id} at {BAUD} baud; start again")
    return f"{model}, was ID {found.device_id} at {baud} baud, is ID {row.device_id} at {BAUD}"


def only_servo(arm: ServoArm, table: ModuleType, open_at: Callable[[int], Transport]) -> tuple[int, Found]:
    """Speed and identity of the servo on the port. Raises IdentityError unless there is exactly one."""
    seen: list[tuple[int, Found]] = []
    for baud in sorted(table.BAUDS.values(), key=lambda each: (each != BAUD, -each)):
        with _bus(arm, open_at, baud) as bus:
            ids = [i for i in range(MAX_ID + 1) if bus.ping(i, data_size=arm.identity_size)]
            looks = [look(bus, i, table.REGISTERS, arm.identity_size) for i in ids]
            seen += [(baud, one) for one in looks if one is not None]
        if seen:
            break
    if not seen:
        raise IdentityError("no servo answers, at any ID and speed: supply? cable? the right port?")
    told = ", ".join(f"ID {one.device_id} at {baud} baud" for baud, one in seen)
    if len(seen) > 1 or seen[0][1].answers > 1:
        raise IdentityError(f"more than one servo is connected ({told}): leave this one alone on the cable")
    return seen[0]


@contextlib.contextmanager
def _bus(arm: ServoArm, open_at: Callable[[int], Transport], baud: int) -> Iterator[Bus]:
    transport = open_at(baud)
    try:
        yield Bus(transport, arm.codec, arm.clock, baud=baud)
    finally:
        transport.close()


def _write(bus: Bus, table: ModuleType, device_id: int, name: str, value: int) -> None:
    """Once, and believed later: the answer to a new ID or speed comes, if at all, from the new one."""
    row = table.REGISTERS[name]
    bus.write(device_id, row.address, row.pack(value), tries=1)


def _number(table: ModuleType, baud: int) -> int:
    return next(number for number, speed in table.BAUDS.items() if speed == baud)


VERBS = {"setup": setup}
